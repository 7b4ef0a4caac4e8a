//! `weavectl`: one verb, one request to the node, one answer in words, JSON or YAML. Some verbs look at the host instead.
//!
//! Data goes to stdout, everything else to stderr; an error is one line with the cause and one with the fix. The exit
//! code says the same as the words: see [`Exit`].

mod args;
mod capture;
mod check;
mod client;
mod cni;
mod colour;
mod commands;
mod complete;
mod dashboard;
mod failure;
mod flows;
mod junit;
mod manual;
mod members;
mod network;
mod ping;
mod print;
mod processes;
mod report;
mod secret;
mod service;
mod shown;
mod table;
mod targets;
mod test;
mod tools;
mod trace;
mod uninstall;
mod watch;

use clap::error::ErrorKind;
use clap::{CommandFactory as _, Parser as _};

pub use args::{Args, Output};
pub use failure::{Exit, Failure};

/// Runs `weavectl` with the process's arguments; what it returns is the exit code.
pub fn main() -> Exit {
    if let Some(exit) = complete::answer(Args::command) {
        return exit;
    }
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => return misused(&error),
    };
    if args.command.is_watched() {
        return watch::repeat(|| commands::run(&args));
    }
    match commands::run(&args) {
        Ok((text, exit)) => match print::to_stdout(&text) {
            Ok(_) => exit,
            Err(failure) => failure.report(),
        },
        Err(failure) => failure.report(),
    }
}

/// Prints what the parser says: help as it is, anything else as cause and fix.
fn misused(error: &clap::Error) -> Exit {
    let exit = match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Exit::Ok,
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => Exit::Usage,
        _ => return usage(&error.to_string()).report(),
    };
    // A reader that went away is not an error.
    let _ = error.print();
    exit
}

/// The parser's message, which is paragraphs: what is wrong, perhaps tips, how it is written, and where the help is.
fn usage(message: &str) -> Failure {
    let paragraph = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut paragraphs = message.split("\n\n").map(paragraph);
    let cause = paragraphs.next().unwrap_or_default();
    let cause = cause.strip_prefix("error: ").unwrap_or(&cause);
    let fix: Vec<String> = paragraphs
        .filter_map(|text| {
            let text = text.strip_prefix("tip: ").unwrap_or(&text);
            let usage = text
                .strip_prefix("Usage: ")
                .map(|usage| format!("write: {usage}"));
            let help = text.starts_with("For more information");
            usage.or_else(|| (!help && !text.is_empty()).then(|| text.to_owned()))
        })
        .collect();
    let fix = match fix.is_empty() {
        true => "see weavectl --help".to_owned(),
        false => fix.join("; "),
    };
    Failure::new(Exit::Usage, cause, fix)
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::{Args, Exit, usage};

    #[track_caller]
    fn said(line: &[&str]) -> (String, String) {
        let words = ["weavectl"].iter().chain(line);
        let error = Args::try_parse_from(words).expect_err("it is wrong");
        let failure = usage(&error.to_string());
        assert_eq!(failure.exit, Exit::Usage);
        (failure.cause, failure.fix)
    }

    #[test]
    fn a_wrong_argument_is_told_with_its_cause_and_its_fix() {
        let (cause, fix) = said(&["attach", "web", "--nam", "a"]);
        assert_eq!(cause, "unexpected argument '--nam' found");
        assert!(
            fix.starts_with("a similar argument exists: '--name'; write: weavectl attach "),
            "{fix}"
        );
        let (cause, fix) = said(&["token", "create", "--ttl", "5"]);
        assert!(cause.contains("'5' for '--ttl <TIME>'"), "{cause}");
        assert_eq!(fix, "see weavectl --help");
        let (cause, fix) = said(&["attach", "web"]);
        assert_eq!(
            cause,
            "the following required arguments were not provided: --name <NAME>"
        );
        assert!(fix.starts_with("write: weavectl attach "), "{fix}");
    }
}
