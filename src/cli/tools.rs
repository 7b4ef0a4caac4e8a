//! The verbs that find out: each in a file of its own, here with its request and its way to end.

use weave_model::api::{Trace, TraceRequest};

use super::args::{Args, Command};
use super::client::Client;
use super::failure::{Exit, Failure};
use super::ping::Statistics;
use super::shown::{Answer, Shown};
use super::{check, manual, test, trace, uninstall};

/// Does what a verb of this kind says.
pub(super) fn run(command: &Command, args: &Args, client: &Client<'_>, shown: &Shown) -> Answer {
    match command {
        Command::Ping(ping) => {
            let told = ping.run(client, shown.is_human())?;
            let (text, _) = shown.answer(&told, Statistics::human)?;
            Ok((text, told.exit()))
        }
        Command::Test(test) => {
            let report = test.run(client)?;
            let (text, _) = shown.answer(&report, test::human)?;
            Ok((text, test::exit(&report)))
        }
        Command::Trace { from, to } => {
            let request = TraceRequest {
                from: from.clone(),
                to: to.clone(),
            };
            let way: Trace = client.post("/trace", &request)?;
            let (text, _) = shown.answer(&way, trace::human)?;
            Ok((text, trace::exit(&way)))
        }
        Command::Check(check) => {
            let points = check.look()?;
            let (text, _) = shown.answer(&points, check::human)?;
            Ok((text, check::exit(&points)))
        }
        Command::Uninstall(uninstall) => {
            let done = uninstall.run(&args.socket)?;
            let (text, _) = shown.answer(&done, uninstall::Done::human)?;
            Ok((text, done.exit()))
        }
        Command::Capture(capture) => fine(capture.run(client)?),
        Command::Report(report) => fine(report.run(client)?),
        Command::Completion { shell } => fine(manual::completion(*shell)?),
        Command::Man { folder } => fine(manual::pages(folder)?),
        other => Err(Failure::new(
            Exit::Usage,
            format!("{other:?} is no verb of this kind"),
            "see weavectl --help",
        )),
    }
}

fn fine(text: String) -> Answer {
    Ok((text, Exit::Ok))
}
