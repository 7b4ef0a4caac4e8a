//! `weavectl flows` and `weavectl top`: who talks to whom, once or as it goes on.

use std::collections::HashMap;
use std::io::IsTerminal as _;
use std::time::Duration;

use serde::Serialize;
use weave_model::api::{EndKind, Flow, FlowEnd, PeerState, Protocol, Topology};

use super::args::{FlowFilter, Output};
use super::client::Client;
use super::failure::{Exit, Failure};
use super::print::{Reader, bytes, milliseconds, to_stdout};
use super::table::{Columns, Table};

/// How often the picture is asked for while it goes on.
const INTERVAL: Duration = Duration::from_secs(1);

/// From here on what is shown may be older than people expect: a look at a large table takes long, and so the pause after it.
const SLOW: Duration = Duration::from_secs(2);

/// What both verbs answer as JSON.
#[derive(Debug, Serialize)]
struct Shown<'a> {
    flows: Vec<&'a Flow>,
}

/// Prints the flows that pass the filter; with `follow` each one again when something of it moved, until interrupted.
pub(super) fn flows(
    client: &Client<'_>,
    output: Output,
    filter: &FlowFilter,
    follow: bool,
) -> Result<(String, Exit), Failure> {
    let topology: Topology = client.get("/topology")?;
    if !follow {
        return Ok((whole(&topology, output, filter)?, Exit::Ok));
    }
    let mut seen = HashMap::new();
    moved(&topology, filter, &mut seen);
    loop {
        std::thread::sleep(INTERVAL);
        let topology: Topology = client.get("/topology")?;
        for flow in moved(&topology, filter, &mut seen) {
            if to_stdout(&line(flow, output)?)? == Reader::Gone {
                return Ok((String::new(), Exit::Ok));
            }
        }
    }
}

/// Prints the busiest flows over and over, until interrupted; once if that is all that was asked for.
pub(super) fn top(
    client: &Client<'_>,
    output: Output,
    filter: &FlowFilter,
    rounds: Option<u32>,
) -> Result<(String, Exit), Failure> {
    let mut round = 0;
    loop {
        let topology: Topology = client.get("/topology")?;
        let text = whole(&topology, output, filter)?;
        round += 1;
        if rounds == Some(round) {
            return Ok((text, Exit::Ok));
        }
        let clear = if std::io::stdout().is_terminal() {
            "\x1b[H\x1b[2J"
        } else {
            ""
        };
        if to_stdout(&format!("{clear}{text}"))? == Reader::Gone {
            return Ok((String::new(), Exit::Ok));
        }
        std::thread::sleep(INTERVAL);
    }
}

/// All flows that pass, the busiest first, and why some may be missing.
fn whole(topology: &Topology, output: Output, filter: &FlowFilter) -> Result<String, Failure> {
    let mut flows: Vec<&Flow> = topology
        .flows
        .iter()
        .filter(|flow| passes(flow, filter))
        .collect();
    flows.sort_by_key(|flow| {
        let counts = &flow.counts;
        std::cmp::Reverse((
            counts.sent_rate + counts.received_rate,
            counts.open,
            counts.last_at,
        ))
    });
    match output {
        Output::Json => return super::print::json(&Shown { flows }),
        Output::Yaml => return super::print::yaml(&Shown { flows }),
        Output::Table | Output::Wide => {}
    }
    let mut text = if flows.is_empty() {
        none(topology)
    } else {
        let columns = match output {
            Output::Wide => Columns::All,
            _ => Columns::Usual,
        };
        table(&flows, columns)
    };
    for note in notes(topology) {
        text.push_str(&note);
        text.push('\n');
    }
    Ok(text)
}

fn table(flows: &[&Flow], columns: Columns) -> String {
    let usual = [
        "FROM",
        "TO",
        "PROTOCOL",
        "STATE",
        "OPEN",
        "SENT/S",
        "RECEIVED/S",
        "SENT",
        "RECEIVED",
    ];
    let mut table = Table::with(&usual, columns, &["CONNECTIONS", "RTT", "RETRANSMITS"]);
    for flow in flows {
        let mut cells = Vec::from(row(flow));
        if columns == Columns::All {
            cells.extend(more(flow));
        }
        table.row(cells);
    }
    table.render()
}

fn row(flow: &Flow) -> [String; 9] {
    let counts = &flow.counts;
    [
        end(&flow.from),
        to(flow),
        protocol(flow),
        state(flow).to_owned(),
        counts.open.to_string(),
        bytes(counts.sent_rate),
        bytes(counts.received_rate),
        bytes(counts.sent_bytes),
        bytes(counts.received_bytes),
    ]
}

/// What only who asks for more is shown; nothing where no socket of the flow is seen.
fn more(flow: &Flow) -> [String; 3] {
    let tcp = flow.counts.tcp;
    let rtt = tcp.and_then(|tcp| tcp.rtt_us);
    [
        flow.counts.connections.to_string(),
        rtt.map_or_else(String::new, milliseconds),
        tcp.map_or_else(String::new, |tcp| tcp.retransmits.to_string()),
    ]
}

/// One flow in one line, as it goes on.
fn line(flow: &Flow, output: Output) -> Result<String, Failure> {
    match output {
        Output::Json => {
            let json = serde_json::to_string(flow).map_err(|error| {
                Failure::new(Exit::Failed, format!("cannot write JSON: {error}"), "")
            })?;
            return Ok(json + "\n");
        }
        Output::Yaml => return Ok(format!("---\n{}", super::print::yaml(flow)?)),
        Output::Table | Output::Wide => {}
    }
    let [from, to, protocol, state, open, sent, received, ..] = row(flow);
    Ok(format!(
        "{from} -> {to} {protocol} {state}, {open} open, {sent}/s out, {received}/s back\n"
    ))
}

fn end(end: &FlowEnd) -> String {
    match end.kind {
        EndKind::Container => end.name.clone(),
        EndKind::Host => format!("host {}", end.name),
        EndKind::Service => format!("service {}", end.name),
        EndKind::Unknown | EndKind::Outside => end.ip.to_string(),
    }
}

fn to(flow: &Flow) -> String {
    match (&flow.service, flow.via) {
        (Some(service), _) => format!("{} via {service}", end(&flow.to)),
        (None, Some(via)) => format!("{} via {via}", end(&flow.to)),
        (None, None) => end(&flow.to),
    }
}

fn protocol(flow: &Flow) -> String {
    match (flow.protocol, flow.port) {
        (Protocol::Icmp, _) | (_, 0) => flow.protocol.name().to_owned(),
        (protocol, port) => format!("{}/{port}", protocol.name()),
    }
}

fn state(flow: &Flow) -> &'static str {
    let counts = &flow.counts;
    if counts.unanswered > 0 {
        "no answer"
    } else if counts.failing {
        "refused"
    } else if counts.open == 0 {
        "ended"
    } else {
        "ok"
    }
}

/// Whether a flow is one of those asked for.
fn passes(flow: &Flow, filter: &FlowFilter) -> bool {
    let names = |end: &FlowEnd, wanted: &Option<String>| {
        wanted
            .as_ref()
            .is_none_or(|wanted| end.name == *wanted || end.ip.to_string() == *wanted)
    };
    // Who asks for a Service means what goes through it.
    let through = |wanted: &Option<String>| {
        let service = flow.service.as_ref().map(ToString::to_string);
        wanted.is_some() && service == *wanted
    };
    let either = filter.with.is_none()
        || names(&flow.from, &filter.with)
        || names(&flow.to, &filter.with)
        || through(&filter.with);
    either
        && names(&flow.from, &filter.from)
        && (names(&flow.to, &filter.to) || through(&filter.to))
        && filter.port.is_none_or(|port| port == flow.port)
        && (!filter.failing || flow.counts.failing)
}

/// The flows of which something moved since they were last looked at.
fn moved<'a>(
    topology: &'a Topology,
    filter: &FlowFilter,
    seen: &mut HashMap<String, (u64, u64, u64)>,
) -> Vec<&'a Flow> {
    let passing = topology.flows.iter().filter(|flow| passes(flow, filter));
    let mut news = Vec::new();
    for flow in passing {
        let counts = &flow.counts;
        let now = (
            counts.connections,
            counts.refused,
            counts.sent_packets + counts.received_packets,
        );
        if seen.insert(flow.id.clone(), now) != Some(now) {
            news.push(flow);
        }
    }
    news
}

/// Why there is nothing to show.
fn none(topology: &Topology) -> String {
    if topology.containers.is_empty() {
        return "no container is attached; attach one with: weavectl attach NETNS --name NAME\n"
            .to_owned();
    }
    if topology.flows.is_empty() {
        return "no container has talked to anybody of late\n".to_owned();
    }
    format!(
        "none of the {} flows is one of those asked for\n",
        topology.flows.len()
    )
}

/// What the list does not show, and why.
fn notes(topology: &Topology) -> Vec<String> {
    let mut notes = Vec::new();
    for host in &topology.hosts {
        let name = &host.name;
        if let Some(why) = &host.silent {
            let state = if host.state == PeerState::Unreachable {
                "unreachable"
            } else {
                "silent"
            };
            notes.push(format!("{name} is {state}: {why}"));
        }
        let Some(capture) = &host.capture else {
            continue;
        };
        if let Some(failure) = &capture.failure {
            notes.push(format!("{name} sees no flows: {failure}"));
        } else if !capture.accounting {
            let fix = "sysctl net.netfilter.nf_conntrack_acct=1";
            notes.push(format!(
                "{name} counts no bytes: its kernel was not told to ({fix})"
            ));
        }
        if capture.lost > 0 {
            notes.push(format!(
                "{name} lost {} since its start: there were more at once than it keeps",
                capture.lost
            ));
        }
        if u64::from(capture.interval_ms) > SLOW.as_millis() as u64 {
            notes.push(format!(
                "{name} looks every {} s only: its kernel follows {} connections, and a look takes {} ms",
                capture.interval_ms / 1000,
                capture.connections,
                capture.took_us / 1000
            ));
        }
        if capture.untold > 0 {
            notes.push(format!("{name} has {} more flows", capture.untold));
        }
        if capture.unseen > 0 {
            notes.push(format!(
                "{name} did not look at the sockets of {} namespaces: no RTT from there",
                capture.unseen
            ));
        }
    }
    notes
}

#[cfg(test)]
mod tests {
    use weave_model::api::FlowCounts;

    use super::*;

    fn flow(from: &str, to: &str) -> Flow {
        let end = |ip: &str| FlowEnd {
            kind: EndKind::Outside,
            id: format!("o:{ip}"),
            name: ip.to_owned(),
            ip: ip.parse().unwrap(),
        };
        Flow {
            id: format!("{from}>{to}"),
            from: end(from),
            to: end(to),
            protocol: Protocol::Tcp,
            port: 80,
            via: None,
            service: None,
            counts: FlowCounts::default(),
        }
    }

    #[test]
    fn filters_are_joined_by_and() {
        let one = flow("10.32.0.2", "192.0.2.7");
        let filter = |from: Option<&str>, with: Option<&str>, port| FlowFilter {
            from: from.map(str::to_owned),
            to: None,
            with: with.map(str::to_owned),
            port,
            failing: false,
        };
        let table = [
            (filter(None, None, None), true),
            (filter(Some("10.32.0.2"), None, Some(80)), true),
            (filter(Some("192.0.2.7"), None, None), false),
            (filter(None, Some("192.0.2.7"), None), true),
            (filter(None, Some("192.0.2.8"), None), false),
            (filter(None, None, Some(81)), false),
        ];
        for (filter, expected) in table {
            assert_eq!(passes(&one, &filter), expected, "{filter:?}");
        }
        let failing = FlowFilter {
            failing: true,
            ..filter(None, None, None)
        };
        assert!(!passes(&one, &failing));
        let through = Flow {
            service: Some("web".parse().unwrap()),
            ..one
        };
        assert!(passes(&through, &filter(None, Some("web"), None)));
        assert!(!passes(&through, &filter(None, Some("db"), None)));
        assert!(!passes(&through, &filter(Some("web"), None, None)));
    }

    #[test]
    fn a_service_and_a_failure_are_said() {
        let mut one = flow("10.32.0.2", "10.32.0.3");
        one.via = Some("10.96.0.1:80".parse().unwrap());
        one.counts.failing = true;
        let said = line(&one, Output::Table).unwrap();
        let expected = "10.32.0.2 -> 10.32.0.3 via 10.96.0.1:80 tcp/80 refused, 0 open, 0 B/s out, 0 B/s back\n";
        assert_eq!(said, expected);
        one.service = Some("web".parse().unwrap());
        let said = line(&one, Output::Table).unwrap();
        assert!(said.contains("10.32.0.3 via web tcp/80"), "{said}");
    }
}
