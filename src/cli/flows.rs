//! `weavectl flows` and `weavectl top`: who talks to whom, once or as it goes on.

use std::collections::HashMap;
use std::io::IsTerminal as _;
use std::time::Duration;

use serde::Serialize;
use weave_model::NodeId;
use weave_model::api::{EndKind, Flow, FlowEnd, PeerState, Protocol, Topology, TopologyContainer};

use super::args::{FlowFilter, Output};
use super::client::Client;
use super::failure::{Exit, Failure};
use super::print::{Reader, bytes, milliseconds, to_stdout};
use super::table::{Columns, Table, printable};

/// How often the picture is asked for while it goes on.
const INTERVAL: Duration = Duration::from_secs(1);

/// From here on what is shown may be older than people expect: a look at a large table takes long, and so the pause after it.
const SLOW: Duration = Duration::from_secs(2);

/// Seconds for which a flow that is not told any more is kept in mind: a busier one may have taken its place for a moment, or
/// its host be silent.
const KEPT: u64 = 60;

/// What both verbs answer as JSON.
#[derive(Debug, Serialize)]
struct Shown<'a> {
    flows: Vec<&'a Flow>,
}

/// Prints the flows that pass the filter; with `follow` each one again when something of it moved, until interrupted. A node
/// that does not answer meanwhile is asked again.
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
    let mut followed = Followed::default();
    followed.moved(&topology, filter);
    followed.lost_more(&topology);
    loop {
        std::thread::sleep(INTERVAL);
        let answer: Result<Topology, Failure> = client.get("/topology");
        for said in followed.said(&answer) {
            eprintln!("weavectl: {said}");
        }
        let Ok(topology) = answer else { continue };
        for flow in followed.moved(&topology, filter) {
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
    let names = Names::of(topology);
    let passing = topology
        .flows
        .iter()
        .filter(|flow| names.passes(flow, filter));
    let mut flows: Vec<&Flow> = passing.collect();
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
        EndKind::Container => printable(&end.name),
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

/// The containers, by their ids: one goes by more names than the one that is shown.
struct Names<'a>(HashMap<&'a str, &'a TopologyContainer>);

impl<'a> Names<'a> {
    fn of(topology: &'a Topology) -> Self {
        let all = topology.containers.iter();
        Self(all.map(|one| (one.id.as_str(), one)).collect())
    }

    /// Whether an end goes by this name or address.
    fn is_called(&self, end: &FlowEnd, wanted: &str) -> bool {
        let container = self.0.get(end.id.as_str());
        end.name == wanted
            || end.ip.to_string() == wanted
            || container.is_some_and(|one| one.is_called(wanted))
    }

    /// Whether a flow is one of those asked for.
    fn passes(&self, flow: &Flow, filter: &FlowFilter) -> bool {
        let names = |end: &FlowEnd, wanted: &Option<String>| {
            let mut wanted = wanted.iter();
            wanted.all(|wanted| self.is_called(end, wanted))
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
}

/// What is kept in mind from one look to the next.
#[derive(Debug, Default)]
struct Followed {
    /// What was counted of each flow, by its id, and when it was told last.
    seen: HashMap<String, (u64, (u64, u64, u64))>,
    /// How much each host had lost.
    lost: HashMap<NodeId, u64>,
    /// Whether it was said that the node does not answer.
    silent: bool,
}

impl Followed {
    /// The flows of which something moved since they were last looked at. Those that are told no more are forgotten.
    fn moved<'a>(&mut self, topology: &'a Topology, filter: &FlowFilter) -> Vec<&'a Flow> {
        let names = Names::of(topology);
        let passing = topology.flows.iter();
        let passing = passing.filter(|flow| names.passes(flow, filter));
        let mut news = Vec::new();
        for flow in passing {
            let counts = &flow.counts;
            let now = (
                counts.connections,
                counts.refused,
                counts.sent_packets + counts.received_packets,
            );
            let before = self.seen.insert(flow.id.clone(), (topology.at, now));
            if before.is_none_or(|(_, before)| before != now) {
                news.push(flow);
            }
        }
        let recent = |at: u64| topology.at.abs_diff(at) <= KEPT;
        self.seen.retain(|_, (at, _)| recent(*at));
        news
    }

    /// What is to be said beside the flows: once that the node does not answer, and what hosts lost.
    fn said(&mut self, answer: &Result<Topology, Failure>) -> Vec<String> {
        match answer {
            Ok(topology) => {
                let before = std::mem::take(&mut self.silent);
                let back = before.then(|| "the node answers again".to_owned());
                back.into_iter().chain(self.lost_more(topology)).collect()
            }
            Err(_) if self.silent => Vec::new(),
            Err(Failure { cause, fix, .. }) => {
                self.silent = true;
                let fix = if fix.is_empty() { "wait" } else { fix };
                vec![format!("{cause} ({fix}); asking again")]
            }
        }
    }

    /// What hosts lost since they were last looked at; one that was started again counts anew.
    fn lost_more(&mut self, topology: &Topology) -> Vec<String> {
        let mut notes = Vec::new();
        for host in &topology.hosts {
            let Some(capture) = &host.capture else {
                continue;
            };
            let before = self.lost.insert(host.id, capture.lost);
            let more = capture.lost.saturating_sub(before.unwrap_or(capture.lost));
            if more > 0 {
                notes.push(lost(host.name.as_str(), more, "now"));
            }
        }
        notes
    }
}

/// That a host has lost flows.
fn lost(host: &str, how_many: u64, since: &str) -> String {
    format!("{host} lost {how_many} {since}: there were more than it keeps, or is told at once")
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
            notes.push(lost(name.as_str(), capture.lost, "since its start"));
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

    fn filter(from: Option<&str>, with: Option<&str>, port: Option<u16>) -> FlowFilter {
        FlowFilter {
            from: from.map(str::to_owned),
            to: None,
            with: with.map(str::to_owned),
            port,
            failing: false,
        }
    }

    /// A picture of one host that lost so many, with these flows.
    fn picture(at: u64, lost: u64, flows: Vec<Flow>) -> Topology {
        let host = serde_json::json!({
            "id": "01".repeat(32), "name": "h1", "state": "connected", "endpoints": [], "blocks": [],
            "more_containers": 0, "problems": [],
            "capture": {"connections": 1, "lost": lost, "untold": 0, "accounting": true, "interval_ms": 500, "took_us": 1},
        });
        Topology {
            at,
            node: NodeId::from_bytes([1; 32]),
            verdict: weave_model::api::Verdict::Ok,
            summary: String::new(),
            problems: Vec::new(),
            hosts: vec![serde_json::from_value(host).unwrap()],
            containers: Vec::new(),
            links: Vec::new(),
            services: Vec::new(),
            flows,
        }
    }

    #[test]
    fn a_container_is_found_by_each_of_its_names() {
        let container = serde_json::json!({
            "id": "c:0101010101/docker-2a66/eth0", "title": "web (blue)", "host": "01".repeat(32), "name": "docker-2a66",
            "ifname": "eth0", "network": "blue", "ip": "10.32.0.2", "ip6": null, "labels": {}, "attached_at": 1, "alive": true,
            "runtime": {"runtime": "docker", "id": "2a", "name": "web", "image": "web:1"},
        });
        let mut one = flow("10.32.0.2", "192.0.2.7");
        one.from.kind = EndKind::Container;
        one.from.id = "c:0101010101/docker-2a66/eth0".to_owned();
        one.from.name = "web (blue)".to_owned();
        let mut topology = picture(1, 0, vec![one]);
        topology.containers = vec![serde_json::from_value(container).unwrap()];
        let names = Names::of(&topology);
        for (name, expected) in [
            ("web", true),
            ("web (blue)", true),
            ("docker-2a66", true),
            ("10.32.0.2", true),
            ("we", false),
            ("192.0.2.7", false),
        ] {
            let passes = names.passes(&topology.flows[0], &filter(Some(name), None, None));
            assert_eq!(passes, expected, "{name}");
        }
        assert!(names.passes(&topology.flows[0], &filter(None, Some("web"), None)));
        assert!(
            whole(&topology, Output::Table, &filter(None, None, None))
                .unwrap()
                .contains("web (blue)")
        );
    }

    #[test]
    fn what_is_told_no_more_is_forgotten_in_time() {
        let (one, all) = (flow("10.32.0.2", "192.0.2.7"), filter(None, None, None));
        let mut followed = Followed::default();
        let moved =
            |followed: &mut Followed, at, flows| followed.moved(&picture(at, 0, flows), &all).len();
        assert_eq!(moved(&mut followed, 1000, vec![one.clone()]), 1, "new");
        assert_eq!(moved(&mut followed, 1001, vec![]), 0);
        assert_eq!(
            moved(&mut followed, 1002, vec![one.clone()]),
            0,
            "it did not move"
        );
        for at in 0..10 * KEPT {
            let other = flow("10.32.0.2", &format!("192.0.{}.{}", at / 200, at % 200));
            assert_eq!(moved(&mut followed, 2000 + at, vec![other]), 1);
        }
        assert_eq!(followed.seen.len() as u64, KEPT + 1);
        assert_eq!(moved(&mut followed, 9000, vec![one]), 1, "new again");
    }

    #[test]
    fn a_node_that_does_not_answer_is_said_once_and_asked_again() {
        let failure = Failure::new(Exit::Unreachable, "no node", "start weaved");
        let mut followed = Followed::default();
        let mut said = |answer: Result<u64, ()>| {
            let answer = answer.map(|lost| picture(1, lost, Vec::new()));
            followed.said(&answer.map_err(|()| failure.clone()))
        };
        let broken = ["no node (start weaved); asking again"];
        assert_eq!(said(Ok(7)), [""; 0], "what was lost before is old");
        assert_eq!(said(Err(())), broken);
        assert_eq!(said(Err(())), [""; 0]);
        assert_eq!(said(Ok(0)), ["the node answers again"], "it counts anew");
        assert_eq!(
            said(Ok(12)),
            ["h1 lost 12 now: there were more than it keeps, or is told at once"]
        );
        assert_eq!(said(Ok(12)), [""; 0]);
        assert_eq!(said(Err(())), broken, "each time");
    }

    #[test]
    fn filters_are_joined_by_and() {
        let one = flow("10.32.0.2", "192.0.2.7");
        let table = [
            (filter(None, None, None), true),
            (filter(Some("10.32.0.2"), None, Some(80)), true),
            (filter(Some("192.0.2.7"), None, None), false),
            (filter(None, Some("192.0.2.7"), None), true),
            (filter(None, Some("192.0.2.8"), None), false),
            (filter(None, None, Some(81)), false),
        ];
        let nobody = Names(HashMap::new());
        let passes = |flow: &Flow, filter: &FlowFilter| nobody.passes(flow, filter);
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
