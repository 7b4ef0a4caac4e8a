//! `weavectl check --pre`: shows what stands in the way of a node, with what to do about each thing.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;

use ipnet::{Ipv4Net, Ipv6Net};
use tokio::runtime::Builder;
use weave_model::api::DEFAULT_RANGE;
use weave_model::parse_net;

use super::colour::{Tone, paint};
use super::failure::{Exit, Failure};
use crate::check::{self, Plan, Point, Points, State};
use crate::config::{Address, DEFAULT_PORT};

/// `weavectl check ...`.
#[derive(Debug, clap::Args)]
pub struct Check {
    /// Look whether a node can be started on this host; changes nothing; so far the only check
    #[arg(long)]
    pre: bool,
    /// The UDP address that the node will listen on [default: port 6783 of every address]
    #[arg(long, value_name = "ADDRESS[:PORT]")]
    listen: Option<Address>,
    /// The IPv4 range of the cluster
    #[arg(long, value_name = "CIDR", default_value = DEFAULT_RANGE, value_parser = parse_net::<Ipv4Net>)]
    range: Ipv4Net,
    /// The IPv6 range of the cluster [default: made from the cluster's key]
    #[arg(long, value_name = "CIDR", value_parser = parse_net::<Ipv6Net>)]
    range6: Option<Ipv6Net>,
    /// Where the node will keep its state
    #[arg(long, value_name = "DIR", default_value = "/var/lib/weave")]
    state_dir: PathBuf,
    /// Folder of the container runtimes' network configurations
    #[arg(long, value_name = "DIR", default_value = "/etc/cni/net.d")]
    conf_dir: PathBuf,
}

impl Check {
    fn plan(&self) -> Plan {
        let listen: SocketAddr = self.listen.unwrap_or_else(Address::any).at(DEFAULT_PORT);
        Plan {
            listen,
            range: self.range,
            range6: self.range6,
            state_dir: self.state_dir.clone(),
            conf_dir: self.conf_dir.clone(),
        }
    }

    /// Looks at this host.
    pub(super) fn look(&self) -> Result<Points, Failure> {
        let runtime = Builder::new_current_thread().enable_all().build();
        let runtime = runtime
            .map_err(|error| Failure::new(Exit::Failed, format!("cannot start: {error}"), ""))?;
        Ok(runtime.block_on(check::before_start(&self.plan())))
    }
}

/// How the process ends.
pub(super) const fn exit(points: &Points) -> Exit {
    match points.state {
        State::Ok => Exit::Ok,
        State::Warning => Exit::Degraded,
        State::Failure => Exit::Failed,
    }
}

/// A line for each point, a second one with what to do, and the sum.
pub(super) fn human(points: &Points) -> String {
    let mut text = String::new();
    for Point {
        id,
        state,
        found,
        fix,
    } in &points.points
    {
        let (word, tone) = word(*state);
        let _ = writeln!(text, "{}  {id:<11} {found}", paint(word, tone));
        if let Some(fix) = fix {
            let _ = writeln!(text, "      fix: {fix}");
        }
    }
    let count = |state| {
        points
            .points
            .iter()
            .filter(|point| point.state == state)
            .count()
    };
    let sum = match (count(State::Failure), count(State::Warning)) {
        (0, 0) => "a node can be started here".to_owned(),
        (0, warnings) => format!("a node can be started here; {}", many(warnings, "warning")),
        (failures, 0) => format!(
            "a node cannot be started here: {}",
            many(failures, "failure")
        ),
        (failures, warnings) => format!(
            "a node cannot be started here: {}, {}",
            many(failures, "failure"),
            many(warnings, "warning")
        ),
    };
    let _ = writeln!(text, "\n{sum}");
    text
}

const fn word(state: State) -> (&'static str, Tone) {
    match state {
        State::Ok => ("ok  ", Tone::Good),
        State::Warning => ("warn", Tone::Doubtful),
        State::Failure => ("FAIL", Tone::Bad),
    }
}

fn many(count: usize, word: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {word}{plural}")
}
