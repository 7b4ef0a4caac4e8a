//! Answers in words: what a person wants to know first comes first.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{ErrorKind, Write as _};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::{SystemTime, UNIX_EPOCH};

use ipnet::Ipv4Net;
use serde::Serialize;
use weave_model::api::{
    Attachment, Attachments, Awaited, Cluster, Connection, Connections, Datagrams, HostAddress,
    Membership, Offload, Offloads, Peer, PeerState, Peers, Status, TokenAnswer, Traffic, Verdict,
};
use weave_model::{Drop, NodeId};

use super::colour::{Tone, paint};
use super::failure::{Exit, Failure};
use super::table::{Columns, Table, printable};
use crate::duration::human;

/// What is said in place of a list of other nodes that is empty.
pub(super) const NO_PEERS: &str = "this node has no peers; invite one with: weavectl token create, or, if it is in no \
    cluster yet (see weavectl status), make one with weavectl init or join one with weavectl join TOKEN\n";

/// The same of what every cluster has at least one of.
pub(super) const NO_CLUSTER: &str = "this node is in no cluster; make one with weavectl init, or join one with weavectl join TOKEN\n";

/// Whether there is somebody to read more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reader {
    There,
    Gone,
}

/// Writes an answer; a reader that went away early, such as `head`, is not an error.
pub(super) fn to_stdout(text: &str) -> Result<Reader, Failure> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(Reader::There),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(Reader::Gone),
        Err(error) => Err(Failure::new(
            Exit::Failed,
            format!("cannot write to stdout: {error}"),
            "see that what stdout leads to has room",
        )),
    }
}

/// An answer as indented JSON with a newline.
pub(super) fn json(answer: &impl Serialize) -> Result<String, Failure> {
    serde_json::to_string_pretty(answer)
        .map(|text| text + "\n")
        .map_err(|error| Failure::new(Exit::Failed, format!("cannot write JSON: {error}"), ""))
}

/// An answer as YAML.
pub(super) fn yaml(answer: &impl Serialize) -> Result<String, Failure> {
    serde_saphyr::to_string(answer)
        .map_err(|error| Failure::new(Exit::Failed, format!("cannot write YAML: {error}"), ""))
}

/// A cluster that was just made.
pub(super) fn made(answer: &Membership) -> String {
    let Membership { range, range6, .. } = answer;
    format!("cluster {range} and {range6} is made; invite nodes with: weavectl token create\n")
}

/// What to do with a token, for a person who sees it: where it is good, for how many and how long.
pub(super) fn invitation(answer: &TokenAnswer, now: u64) -> String {
    let TokenAnswer {
        expires_at,
        uses,
        addresses,
        ..
    } = answer;
    let nodes = if *uses == 1 { "node" } else { "nodes" };
    let left = human(expires_at.saturating_sub(now));
    format!(
        "on another host: weavectl join TOKEN (good for {uses} {nodes} and {left}, at {})",
        list(addresses)
    )
}

/// A cluster that was just joined.
pub(super) fn joined(answer: &Membership) -> String {
    let Membership {
        range,
        range6,
        members,
        ..
    } = answer;
    format!("joined the cluster {range} and {range6}; it has {members} members\n")
}

/// The attached containers, and the host if it is exposed.
pub(super) fn attachments(answer: &Attachments, columns: Columns) -> String {
    if answer.attachments.is_empty() && answer.host.is_none() {
        return "no containers are attached; attach one with: weavectl attach NETNS --name NAME\n"
            .to_owned();
    }
    let mut usual = vec![
        "NAME",
        "IP",
        "IP6",
        "INTERFACE",
        "NETWORK",
        "AGE",
        "STATE",
        "LABELS",
    ];
    if !answer.called.is_empty() {
        usual.push("CALLED");
    }
    let floats = answer.attachments.iter().any(|one| !one.also.is_empty());
    if floats {
        usual.push("ALSO");
    }
    let more = [
        "MAC",
        "MTU",
        "HOST-INTERFACE",
        "NAMESPACE",
        "OWNER",
        "ALIASES",
    ];
    let mut table = Table::with(&usual, columns, &more);
    if let Some(host) = &answer.host {
        let mut cells = vec![String::new(); usual.len()];
        cells[0] = "(host)".to_owned();
        cells[1] = host.ip.to_string();
        cells[2] = show(host.ip6);
        cells[6] = "exposed".to_owned();
        if columns == Columns::All {
            cells.resize(usual.len() + more.len(), String::new());
        }
        table.row(cells);
    }
    for one in &answer.attachments {
        let mut cells = attachment_cells(one, columns);
        if floats {
            cells.insert(USUAL, also(one));
        }
        if !answer.called.is_empty() {
            let called = answer.called.get(&one.name);
            cells.insert(
                USUAL,
                called.map_or_else(String::new, |name| printable(name)),
            );
        }
        table.row(cells);
    }
    table.render()
}

/// The floating addresses of a container.
fn also(one: &Attachment) -> String {
    let ips = one.also.iter().map(|floating| floating.ip.to_string());
    ips.collect::<Vec<_>>().join(",")
}

/// How many columns an attachment has unless more are asked for.
const USUAL: usize = 8;

fn attachment_cells(one: &Attachment, columns: Columns) -> Vec<String> {
    let labels = one
        .labels
        .iter()
        .map(|(key, value)| format!("{key}={value}"));
    let mut cells = vec![
        one.name.to_string(),
        one.ip.addr().to_string(),
        show(one.ip6.map(|ip6| ip6.addr())),
        one.ifname.to_string(),
        one.network.to_string(),
        human(now().saturating_sub(one.attached_at)),
        if one.alive { "up" } else { "gone" }.to_owned(),
        labels.collect::<Vec<_>>().join(","),
    ];
    if columns == Columns::All {
        let owner = one.owner.as_ref();
        let aliases = one.aliases.iter().map(ToString::to_string);
        cells.extend([
            one.mac.clone(),
            one.mtu.to_string(),
            one.host_ifname.to_string(),
            one.netns.clone(),
            show(owner.map(|owner| format!("{}/{}", owner.network, owner.container))),
            aliases.collect::<Vec<_>>().join(","),
        ]);
    }
    cells
}

/// A container that was just attached.
pub(super) fn attached(one: &Attachment) -> String {
    let own = both(one.ip.addr(), one.ip6.map(|ip6| ip6.addr()));
    let also = match one.also.is_empty() {
        true => String::new(),
        false => format!(", also {}", also(one)),
    };
    format!("{}: {own} on {}{also}\n", one.name, one.ifname)
}

/// Containers that were just detached.
pub(super) fn detached(answer: &Attachments) -> String {
    answer
        .attachments
        .iter()
        .fold(String::new(), |mut text, one| {
            let free = free(one.ip.addr(), one.ip6.map(|ip6| ip6.addr()));
            let _ = writeln!(text, "{}: detached, {free}", one.name);
            text
        })
}

/// The host's own addresses, just given.
pub(super) fn exposed(address: &HostAddress) -> String {
    format!("host: {} on weave0\n", both(address.ip, address.ip6))
}

/// The host's own addresses, just taken.
pub(super) fn hidden(address: &HostAddress) -> String {
    format!("host: hidden, {}\n", free(address.ip, address.ip6))
}

fn free(ip: Ipv4Addr, ip6: Option<Ipv6Addr>) -> String {
    let verb = if ip6.is_some() { "are" } else { "is" };
    format!("{} {verb} free again", both(ip, ip6))
}

fn both(ip: Ipv4Addr, ip6: Option<Ipv6Addr>) -> String {
    ip6.map_or_else(|| ip.to_string(), |ip6| format!("{ip} and {ip6}"))
}

/// A value, or nothing.
fn show(value: Option<impl ToString>) -> String {
    value.map_or_else(String::new, |value| value.to_string())
}

/// The members.
pub(super) fn peers(answer: &Peers, columns: Columns) -> String {
    let mut table = Table::new(&["NAME", "ID", "STATE", "ADDRESSES", "OWNS"]);
    let shown_id = |id: &NodeId| match columns {
        Columns::Usual => id.short(),
        Columns::All => id.to_string(),
    };
    for Peer {
        name,
        id,
        state: how,
        endpoints,
        blocks,
    } in &answer.peers
    {
        table.row([
            name.to_string(),
            shown_id(id),
            state(*how).to_owned(),
            list(endpoints),
            runs(blocks),
        ]);
    }
    for Awaited { id, endpoint } in &answer.awaited {
        let (name, owns) = ("?".to_owned(), String::new());
        let state = "never came".to_owned();
        table.row([name, shown_id(id), state, show(*endpoint), owns]);
    }
    table.render()
}

/// The sessions.
pub(super) fn connections(answer: &Connections, columns: Columns) -> String {
    if answer.connections.is_empty() {
        return NO_PEERS.to_owned();
    }
    let usual = [
        "PEER", "STATE", "PATH", "BECAUSE", "SUITE", "KEYS", "LANES", "MTU", "RTT", "LOSS", "FOR",
        "SENT", "RECEIVED",
    ];
    let mut table = Table::with(&usual, columns, &["ID", "REKEYS", "RETRIES", "LANE-MTUS"]);
    for one in &answer.connections {
        let mut cells = vec![
            one.name.to_string(),
            state(one.state).to_owned(),
            path(one),
            show(one.path.as_ref().map(|path| path.reason)),
            show(one.suite),
            show(one.keys_at.map(age)),
            one.lanes.to_string(),
            show(one.mtu.map(|mtu| format!("{} {}", mtu.bytes, mtu.reason))),
            show(one.rtt_us.map(milliseconds)),
            show(loss(one)),
            show(one.since_at.map(age)),
            bytes(one.traffic.sent_bytes),
            bytes(one.traffic.received_bytes),
        ];
        if columns == Columns::All {
            let lanes = one.lane_mtus.iter();
            let lanes = lanes.map(|each| format!("{}:{}", each.lane, each.mtu.bytes));
            cells.extend([
                one.id.short(),
                one.rekeys.to_string(),
                one.handshake_retries.to_string(),
                lanes.collect::<Vec<_>>().join(" "),
            ]);
        }
        table.row(cells);
    }
    table.render()
}

/// Where a peer's packets go.
fn path(one: &Connection) -> String {
    let via = one.path.as_ref().and_then(|path| path.via.as_ref());
    match (via, one.endpoint) {
        (Some(via), _) => format!("via {via}"),
        (None, Some(endpoint)) => format!("direct {endpoint}"),
        (None, None) => String::new(),
    }
}

/// How long ago something was.
fn age(at: u64) -> String {
    human(now().saturating_sub(at))
}

/// How many of its pings are lost.
fn loss(one: &Connection) -> Option<String> {
    let permille = one.path.as_ref()?.loss_permille?;
    Some(format!("{}.{} %", permille / 10, permille % 10))
}

/// Microseconds as people read them: `0.37 ms`.
pub(super) fn milliseconds(us: u32) -> String {
    format!("{}.{:02} ms", us / 1000, us % 1000 / 10)
}

/// The verdict, what is wrong and how to mend it, then the facts.
pub(super) fn status(answer: &Status) -> String {
    let mut text = format!("{}: {}\n", verdict(answer.verdict), answer.summary);
    for problem in &answer.problems {
        if problem.cause != answer.summary {
            let _ = writeln!(text, "  {}", problem.cause);
        }
        let _ = writeln!(text, "  fix: {}", problem.fix);
    }
    text.push('\n');
    let mut fact = |name: &str, value: String| {
        let _ = writeln!(text, "{name:<11} {value}");
    };
    let up = human(now().saturating_sub(answer.started_at));
    fact(
        "node",
        format!(
            "{} ({}), weaved {}, up {up}",
            answer.name,
            answer.id.short(),
            answer.version
        ),
    );
    fact(
        "listen",
        format!("{}, suites {}", answer.listen, list(&answer.suites)),
    );
    if let Some(cluster) = &answer.cluster {
        cluster_facts(cluster, &mut fact);
    }
    fact(
        "containers",
        format!("{} attached, MTU {}", answer.containers, answer.mtu),
    );
    if !answer.gone.is_empty() {
        let hint = "their addresses are freed within seconds of their interfaces";
        fact("gone", format!("{}; {hint}", list(&answer.gone)));
    }
    fact(
        "host",
        answer
            .host
            .map_or_else(|| "not exposed".to_owned(), |host| both(host.ip, host.ip6)),
    );
    if answer.swept > 0 {
        let what = "freed because their interfaces were gone";
        fact("swept", format!("{} {what}", answer.swept));
    }
    fact("offloads", offloads(&answer.offloads));
    fact("traffic", traffic(&answer.traffic));
    fact("datagrams", datagrams(&answer.datagrams));
    fact("drops", drops(&answer.drops));
    text
}

/// What was lost. What was never meant to leave the host is not, nor is a handshake that was asked to show a cookie first:
/// that a container looks for its neighbours, or a node was started, worries nobody.
fn drops(counts: &BTreeMap<Drop, u64>) -> String {
    let lost: Vec<String> = counts
        .iter()
        .filter(|&(&why, &count)| count > 0 && !matches!(why, Drop::LinkScope | Drop::Unproven))
        .map(|(why, count)| format!("{} {count}", why.name()))
        .collect();
    if lost.is_empty() {
        "none".to_owned()
    } else {
        lost.join(", ")
    }
}

fn cluster_facts(cluster: &Cluster, fact: &mut impl FnMut(&str, String)) {
    fact(
        "cluster",
        format!("{} and {}", cluster.range, cluster.range6),
    );
    let Cluster {
        addresses,
        addresses_used,
        blocks,
        ..
    } = cluster;
    fact(
        "addresses",
        format!(
            "{addresses_used} of {addresses} used, from {}",
            runs(blocks)
        ),
    );
}

fn traffic(traffic: &Traffic) -> String {
    format!(
        "sent {} in {} packets, received {} in {}",
        bytes(traffic.sent_bytes),
        traffic.sent_packets,
        bytes(traffic.received_bytes),
        traffic.received_packets,
    )
}

/// How many there were, and how many a system call moved.
fn datagrams(count: &Datagrams) -> String {
    let one = |datagrams: u64, calls: u64| {
        let tenths = (datagrams * 10 + calls / 2).checked_div(calls).unwrap_or(0);
        format!("{datagrams}, {}.{} a call", tenths / 10, tenths % 10)
    };
    format!(
        "sent {}; received {}",
        one(count.sent, count.sent_calls),
        one(count.received, count.received_calls),
    )
}

fn verdict(verdict: Verdict) -> String {
    match verdict {
        Verdict::Ok => paint("ok", Tone::Good),
        Verdict::Degraded => paint("degraded", Tone::Doubtful),
    }
}

pub(super) const fn state(state: PeerState) -> &'static str {
    match state {
        PeerState::Myself => "this node",
        PeerState::Connected => "connected",
        PeerState::Unreachable => "unreachable",
    }
}

/// Prefixes as runs of addresses, neighbours joined: one node's prefixes are often the pieces of one run.
fn runs(prefixes: &[Ipv4Net]) -> String {
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for prefix in prefixes {
        let (first, last) = (u32::from(prefix.network()), u32::from(prefix.broadcast()));
        match runs.last_mut() {
            Some(run) if run.1.checked_add(1) == Some(first) => run.1 = last,
            _ => runs.push((first, last)),
        }
    }
    let text = runs.iter().map(|(first, last)| {
        let [first, last] = [first, last].map(|address| Ipv4Addr::from(*address));
        format!("{first}-{last}")
    });
    text.collect::<Vec<_>>().join(" ")
}

fn list(items: &[impl ToString]) -> String {
    items
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(" ")
}

/// The facilities of the kernel that are used, then those that it refused and those that were not asked for.
fn offloads(offloads: &Offloads) -> String {
    let all = [
        (offloads.gso, "gso"),
        (offloads.gro, "gro"),
        (offloads.tso, "tso"),
        (offloads.uso, "uso"),
        (offloads.big_tcp, "big_tcp"),
        (offloads.multiqueue, "multiqueue"),
    ];
    let which = |how| {
        let these = all.iter().filter(|(state, _)| *state == how);
        these.map(|(_, name)| *name).collect::<Vec<_>>().join(" ")
    };
    let queues = if offloads.queues == 1 {
        "queue"
    } else {
        "queues"
    };
    let mut text = format!("{} {queues}", offloads.queues);
    for (how, word) in [
        (Offload::Used, "using"),
        (Offload::Refused, "refused:"),
        (Offload::Without, "told to do without"),
    ] {
        let these = which(how);
        if !these.is_empty() {
            let _ = write!(text, ", {word} {these}");
        }
    }
    text
}

/// A number of bytes with three figures or so: `999 B`, `1.5 kB`, `20.1 GB`.
pub(super) fn bytes(count: u64) -> String {
    let units = ["kB", "MB", "GB", "TB", "PB", "EB"];
    let mut tenths = count / 100;
    if count < 1000 {
        return format!("{count} B");
    }
    let mut unit = 0;
    while tenths >= 10_000 {
        tenths /= 1000;
        unit += 1;
    }
    format!("{}.{} {}", tenths / 10, tenths % 10, units[unit])
}

/// Seconds since the Unix epoch.
pub(super) fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbouring_prefixes_are_one_run() {
        let prefixes =
            ["10.32.0.0/13", "10.40.0.0/14", "10.47.0.0/24"].map(|net| net.parse().unwrap());
        assert_eq!(
            runs(&prefixes),
            "10.32.0.0-10.43.255.255 10.47.0.0-10.47.0.255"
        );
    }

    #[test]
    fn an_invitation_says_where_and_how_long_it_is_good() {
        let answer = TokenAnswer {
            token: "weave1.abc".to_owned(),
            expires_at: 107,
            uses: 1,
            addresses: vec!["192.0.2.1:6783".parse().unwrap()],
        };
        assert_eq!(
            invitation(&answer, 7),
            "on another host: weavectl join TOKEN (good for 1 node and 100 s, at 192.0.2.1:6783)"
        );
    }

    #[test]
    fn datagrams_are_told_with_their_average() {
        let count = Datagrams {
            sent: 250,
            sent_calls: 8,
            ..Datagrams::default()
        };
        let text = "sent 250, 31.3 a call; received 0, 0.0 a call";
        assert_eq!(datagrams(&count), text);
    }

    #[test]
    fn what_the_kernel_refuses_is_said() {
        let mut seen = Offloads {
            gso: Offload::Used,
            gro: Offload::Used,
            tso: Offload::Used,
            uso: Offload::Used,
            big_tcp: Offload::Used,
            multiqueue: Offload::Used,
            queues: 2,
        };
        let all = "2 queues, using gso gro tso uso big_tcp multiqueue";
        assert_eq!(offloads(&seen), all);
        seen.uso = Offload::Refused;
        seen.big_tcp = Offload::Refused;
        (seen.multiqueue, seen.queues) = (Offload::Without, 1);
        let some =
            "1 queue, using gso gro tso, refused: uso big_tcp, told to do without multiqueue";
        assert_eq!(offloads(&seen), some);
    }

    #[test]
    fn byte_counts_read_well() {
        let shown = [
            0,
            999,
            1000,
            1500,
            999_999,
            1_000_000,
            20_100_000_000,
            u64::MAX,
        ]
        .map(bytes);
        assert_eq!(
            shown,
            [
                "0 B", "999 B", "1.0 kB", "1.5 kB", "999.9 kB", "1.0 MB", "20.1 GB", "18.4 EB"
            ]
        );
    }
}
