//! Every metric: its name, what it means, and where its value comes from.

use weave_linux::conntrack::Load;
use weave_linux::myself::Usage;
use weave_model::Drop;
use weave_model::api::{Connection, Offload, PeerState, Services, Status, Verdict};
use weave_proxy::driver::{Progress, Report};
use weave_router::core::tally::{Left, Tally};
use weave_router::driver::Stats;

use super::page::{Page, only};
use super::{addresses, host, operations, relay, services};
use crate::node::{AddressUse, FlowsSeen, Tallies};

/// The commit that this was built from, where the build was told.
const COMMIT: &str = match option_env!("WEAVE_COMMIT") {
    Some(commit) => commit,
    None => "unknown",
};

/// What metrics are made of.
#[derive(Clone, Debug)]
pub struct Facts {
    /// How the node is.
    pub status: Status,
    /// Docker's containers that are stopped, among those of which the status says that they are gone.
    pub stopped: u32,
    /// Its sessions.
    pub connections: Vec<Connection>,
    /// What crossed the overlay.
    pub stats: Stats,
    /// What members told one another.
    pub tally: Tally,
    /// How the cluster's addresses stand.
    pub addresses: AddressUse,
    /// The Services of the cluster.
    pub services: Services,
    /// What serves them, and how it gets on.
    pub engine: Report,
    /// When it did what it was told.
    pub progress: Progress,
    /// What container runtimes had the node do.
    pub operations: Tallies,
    /// How well it sees flows.
    pub flows: FlowsSeen,
    /// How many look at its page.
    pub viewers: usize,
    /// How often one of them was given the whole picture anew.
    pub resyncs: u64,
    /// Packets that found no room in the queue of the overlay's device, where it is there.
    pub no_room: Option<u64>,
    /// The kernel's table of connections, where it can be asked.
    pub conntrack: Option<Load>,
    /// What the process takes, where `/proc` says.
    pub usage: Option<Usage>,
}

/// All metrics in the text format of Prometheus.
pub fn render(facts: &Facts) -> String {
    let mut page = Page::default();
    node(&mut page, &facts.status);
    containers(&mut page, &facts.status, facts.stopped);
    traffic(&mut page, &facts.status);
    queue(&mut page, &facts.stats);
    page.counter(
        "weave_transmit_queue_dropped_total",
        "Packets of containers and the host that the kernel dropped at weave0, because they found no room until the node read them.",
        [],
        facts.no_room.map(|count| ([], count)),
    );
    drops(&mut page, &facts.stats);
    peers(&mut page, facts);
    sessions(&mut page, &facts.connections);
    kinds(&mut page, &facts.connections);
    exchanged(&mut page, &facts.connections);
    messages(&mut page, &facts.tally);
    addresses::families(&mut page, &facts.status, &facts.addresses);
    operations::allocations(&mut page, &facts.operations);
    services::families(&mut page, &facts.services, &facts.engine.table);
    services::syncs(&mut page, &facts.engine.syncs, &facts.progress);
    if let Some(relay) = &facts.engine.relay {
        relay::families(&mut page, relay);
    }
    operations::families(&mut page, &facts.operations);
    sight(&mut page, facts);
    if let Some(load) = &facts.conntrack {
        host::conntrack(&mut page, load);
    }
    if let Some(usage) = &facts.usage {
        host::process(&mut page, usage);
    }
    page.text()
}

fn flag(value: bool) -> f64 {
    f64::from(u8::from(value))
}

fn node(page: &mut Page, status: &Status) {
    let build = [&status.version, COMMIT, env!("WEAVE_RUSTC")].map(str::to_owned);
    page.gauge(
        "weave_build_info",
        "What weaved was built from and with, as labels.",
        ["version", "commit", "rustc"],
        [(build, 1.0)],
    );
    page.gauge(
        "weave_start_time_seconds",
        "When weaved started, in seconds since the Unix epoch.",
        [],
        only(status.started_at as f64),
    );
    page.gauge(
        "weave_degraded",
        "Whether something does not work as it should; weavectl status says what.",
        [],
        only(flag(status.verdict == Verdict::Degraded)),
    );
    page.gauge(
        "weave_problems",
        "How many things do not work as they should.",
        [],
        only(status.problems.len() as f64),
    );
    let offloads = &status.offloads;
    let facilities = [
        ("gso", offloads.gso),
        ("gro", offloads.gro),
        ("tso", offloads.tso),
        ("uso", offloads.uso),
        ("big_tcp", offloads.big_tcp),
        ("multiqueue", offloads.multiqueue),
    ];
    page.gauge(
        "weave_offload_used",
        "Whether a facility of the kernel that makes the overlay faster is used.",
        ["facility"],
        facilities.map(|(name, state)| ([name.to_owned()], flag(state == Offload::Used))),
    );
    page.gauge(
        "weave_queues",
        "Queues, lanes and threads of the overlay.",
        [],
        only(offloads.queues.into()),
    );
}

fn containers(page: &mut Page, status: &Status, stopped: u32) {
    page.gauge(
        "weave_container_mtu_bytes",
        "The MTU of containers' interfaces.",
        [],
        only(status.mtu.into()),
    );
    page.gauge(
        "weave_host_exposed",
        "Whether the host itself has an address on the network.",
        [],
        only(flag(status.host.is_some())),
    );
    page.gauge(
        "weave_attachments",
        "Attached containers; of those that Docker has stopped, or that are gone, the address is still taken.",
        ["state"],
        states(status.containers, status.gone.len() as u32, stopped)
            .map(|(state, count)| ([state.to_owned()], count.into())),
    );
}

/// How many attachments are in each state, of all, those that are gone, and those of them that Docker has stopped.
const fn states(all: u32, gone: u32, stopped: u32) -> [(&'static str, u32); 3] {
    [
        ("up", all.saturating_sub(gone)),
        ("stopped", stopped),
        ("gone", gone.saturating_sub(stopped)),
    ]
}

fn traffic(page: &mut Page, status: &Status) {
    let datagrams = &status.datagrams;
    page.counter(
        "weave_datagrams_transmitted_total",
        "Datagrams with packets of containers that were sent to other nodes.",
        [],
        only(datagrams.sent),
    );
    page.counter(
        "weave_datagram_transmit_calls_total",
        "System calls that sent them; fewer than datagrams with gso.",
        [],
        only(datagrams.sent_calls),
    );
    page.counter(
        "weave_datagrams_received_total",
        "Datagrams that came to the node's port.",
        [],
        only(datagrams.received),
    );
    page.counter(
        "weave_datagram_receive_batches_total",
        "What the kernel handed over as one; fewer than datagrams with gro.",
        [],
        only(datagrams.received_batches),
    );
    page.counter(
        "weave_datagram_receive_calls_total",
        "System calls that received them.",
        [],
        only(datagrams.received_calls),
    );
    page.counter(
        "weave_handed_on_datagrams_total",
        "Datagrams between two other members that this node handed on; it cannot read them.",
        [],
        only(datagrams.handed_on),
    );
    page.counter(
        "weave_handed_on_bytes_total",
        "Bytes of these.",
        [],
        only(datagrams.handed_on_bytes),
    );
}

fn queue(page: &mut Page, stats: &Stats) {
    let queue = stats.queue;
    page.gauge(
        "weave_receive_queue_bytes",
        "Memory of the kernel that datagrams take which wait to be read from the node's port.",
        [],
        only(queue.waiting as f64),
    );
    page.gauge(
        "weave_receive_queue_limit_bytes",
        "How much they may take; datagrams of more are dropped.",
        [],
        only(queue.room as f64),
    );
    page.counter(
        "weave_receive_queue_dropped_total",
        "Datagrams that the kernel dropped at the node's port, because they found no room or were damaged.",
        [],
        only(queue.dropped),
    );
}

fn drops(page: &mut Page, stats: &Stats) {
    let directions = [("transmit", &stats.sent), ("receive", &stats.received)];
    let counts = directions.into_iter().flat_map(|(direction, sum)| {
        let counts = Drop::ALL.into_iter().zip(sum.drops);
        counts.map(move |(reason, count)| ([reason.name().to_owned(), direction.to_owned()], count))
    });
    page.counter(
        "weave_drops_total",
        "Packets and datagrams that were not passed on, by reason, and by whether they were on their way out or in.",
        ["reason", "direction"],
        counts,
    );
}

fn peers(page: &mut Page, facts: &Facts) {
    let count = |state| {
        facts
            .connections
            .iter()
            .filter(|one| one.state == state)
            .count() as f64
    };
    let states = [
        ("connected", PeerState::Connected),
        ("unreachable", PeerState::Unreachable),
    ];
    page.gauge(
        "weave_peers",
        "Other members of the cluster, by whether there is a session with them.",
        ["state"],
        states.map(|(name, state)| ([name.to_owned()], count(state))),
    );
    let members = facts.status.cluster.as_ref();
    page.gauge(
        "weave_members",
        "Members of the cluster that this node knows, itself included.",
        [],
        only(members.map_or(0, |cluster| cluster.members).into()),
    );
    page.counter(
        "weave_records_quarantined_total",
        "Records and sheets of members that are left because reading them failed, which is a fault of weaved.",
        [],
        only(facts.status.quarantined),
    );
    page.counter(
        "weave_deeds_unproven_total",
        "Deeds that members told of without proof when they were asked about the addresses of another one; they count for nothing.",
        [],
        only(facts.status.unproven),
    );
}

/// The labels of a member: its name, and its id, because two may have one name.
fn labels(one: &Connection) -> [String; 2] {
    [one.name.to_string(), one.id.short()]
}

const PEER: [&str; 2] = ["peer", "peer_id"];

fn sessions(page: &mut Page, connections: &[Connection]) {
    let some = |value: fn(&Connection) -> Option<f64>| {
        let value = move |one: &Connection| Some((labels(one), value(one)?));
        connections.iter().filter_map(value)
    };
    page.gauge(
        "weave_peer_connected",
        "Whether there is a session with the member.",
        PEER,
        some(|one| Some(flag(one.state == PeerState::Connected))),
    );
    page.gauge(
        "weave_peer_state_since_timestamp_seconds",
        "Since when the member is in that state, in seconds since the Unix epoch.",
        PEER,
        some(|one| Some(one.since_at? as f64)),
    );
    page.gauge(
        "weave_peer_rtt_seconds",
        "The smoothed round-trip time to the member.",
        PEER,
        some(|one| Some(f64::from(one.rtt_us?) / 1e6)),
    );
    page.gauge(
        "weave_peer_path_mtu_bytes",
        "The largest packet that crosses the path to the member.",
        PEER,
        some(|one| Some(one.mtu?.bytes.into())),
    );
    page.gauge(
        "weave_peer_loss_ratio",
        "Of the pings on the way to the member, how many were lost of late.",
        PEER,
        some(|one| Some(f64::from(one.path.as_ref()?.loss_permille?) / 1e3)),
    );
    page.gauge(
        "weave_peer_relayed",
        "Whether packets for the member are handed on by another one, as they do not get through straight.",
        PEER,
        some(|one| Some(flag(one.path.as_ref()?.via.is_some()))),
    );
    page.gauge(
        "weave_peer_keys_timestamp_seconds",
        "When the keys in use to the member were made, in seconds since the Unix epoch.",
        PEER,
        some(|one| Some(one.keys_at? as f64)),
    );
    page.gauge(
        "weave_peer_lanes",
        "Lanes in use to the member.",
        PEER,
        some(|one| Some(one.lanes.into())),
    );
}

/// What of a session is no number.
fn kinds(page: &mut Page, connections: &[Connection]) {
    let kind = |one: &Connection| {
        let [peer, id] = labels(one);
        let via = one.path.as_ref()?.via.as_ref();
        let via = via.map_or_else(String::new, ToString::to_string);
        Some(([peer, id, one.suite?.to_string(), via], 1.0))
    };
    page.gauge(
        "weave_peer_session_info",
        "The cipher of the session with the member, and the member that hands its packets on, if any, as labels.",
        ["peer", "peer_id", "suite", "via"],
        connections.iter().filter_map(kind),
    );
    let handshakes = connections.iter().flat_map(|one| {
        let [peer, id] = labels(one);
        let results = [
            ("completed", one.handshakes),
            ("unanswered", one.handshake_retries),
        ];
        results.map(|(result, count)| ([peer.clone(), id.clone(), result.to_owned()], count))
    });
    page.counter(
        "weave_handshakes_total",
        "Handshakes with the member, the first and those for new keys: completed ones, and those that nothing came of.",
        ["peer", "peer_id", "result"],
        handshakes,
    );
}

fn messages(page: &mut Page, tally: &Tally) {
    page.histogram(
        "weave_handshake_duration_seconds",
        "How long handshakes took that this node began, from the message that was answered to the keys.",
        [],
        only(tally.handshakes),
    );
    let counts = tally.messages().flat_map(|(about, sent, received)| {
        let directions = [("transmit", sent), ("receive", received)];
        directions
            .map(|(direction, count)| ([about.name().to_owned(), direction.to_owned()], count))
    });
    page.counter(
        "weave_gossip_messages_total",
        "Messages of members to one another about the cluster, by what they are about.",
        ["kind", "direction"],
        counts,
    );
    let Left {
        by_sender,
        by_owner,
    } = tally.left;
    page.counter(
        "weave_gossip_left_total",
        "Messages of members that were left: who sent it asks for more than members need (sender), or whose it is says more of itself (owner).",
        ["reason"],
        [("sender", by_sender), ("owner", by_owner)].map(|(reason, count)| ([reason.to_owned()], count)),
    );
    page.histogram(
        "weave_gossip_convergence_seconds",
        "How long it took until every member with a session had what is new of this node: its addresses, and where it is.",
        [],
        only(tally.spread),
    );
}

fn exchanged(page: &mut Page, connections: &[Connection]) {
    type Count = fn(&Connection) -> u64;
    let counters: [(&str, &str, Count); 5] = [
        (
            "weave_rekeys_total",
            "How often new keys took the place of keys in use.",
            |one| one.rekeys,
        ),
        (
            "weave_transmit_bytes_total",
            "Bytes of containers' packets sent to the member.",
            |one| one.traffic.sent_bytes,
        ),
        (
            "weave_transmit_packets_total",
            "Containers' packets sent to the member; a super-packet counts once.",
            |one| one.traffic.sent_packets,
        ),
        (
            "weave_receive_bytes_total",
            "Bytes of containers' packets received from the member.",
            |one| one.traffic.received_bytes,
        ),
        (
            "weave_receive_packets_total",
            "Containers' packets received from the member.",
            |one| one.traffic.received_packets,
        ),
    ];
    for (name, help, value) in counters {
        page.counter(
            name,
            help,
            PEER,
            connections.iter().map(|one| (labels(one), value(one))),
        );
    }
}

fn sight(page: &mut Page, facts: &Facts) {
    let capture = &facts.flows.capture;
    page.gauge(
        "weave_flows",
        "Flows that are known to this node.",
        [],
        only(facts.flows.kept as f64),
    );
    page.counter(
        "weave_flow_events_total",
        "Connections that were read from the kernel's table, and beginnings and ends of connections that it told.",
        [],
        only(facts.flows.events),
    );
    page.counter(
        "weave_flow_events_lost_total",
        "Connections that are missing from flows, at least: there were too many to keep, or too many began or ended at once to be told, which counts as one.",
        [],
        only(capture.lost),
    );
    page.gauge(
        "weave_flow_look_seconds",
        "CPU time that a look at the kernel's connections takes: the least of the last three.",
        [],
        only(capture.took_us as f64 / 1e6),
    );
    page.gauge(
        "weave_flow_interval_seconds",
        "How long it is between two looks at the kernel's connections.",
        [],
        only(f64::from(capture.interval_ms) / 1e3),
    );
    page.gauge(
        "weave_ui_clients",
        "Browsers that look at this node's page.",
        [],
        only(facts.viewers as f64),
    );
    page.counter(
        "weave_ui_resyncs_total",
        "How often a slow browser was given the whole picture anew.",
        [],
        only(facts.resyncs),
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_docker_has_stopped_is_not_gone() {
        let expected = [("up", 5), ("stopped", 3), ("gone", 1)];
        assert_eq!(states(9, 4, 3), expected);
    }
}
