//! Every metric: its name, what it means, and where its value comes from.

use weave_model::api::{Capture, Connection, Offload, PeerState, Status, Verdict};
use weave_proxy::relay::Watch;

use super::page::{Page, only};
use super::relay;

/// What metrics are made of.
#[derive(Clone, Debug)]
pub struct Facts {
    /// How the node is.
    pub status: Status,
    /// Its sessions.
    pub connections: Vec<Connection>,
    /// How well it sees flows.
    pub capture: Capture,
    /// How many flows it knows.
    pub flows: usize,
    /// How many look at its page.
    pub viewers: usize,
    /// How often one of them was given the whole picture anew.
    pub resyncs: u64,
    /// What the relay of Services has done, once it was needed.
    pub relay: Option<Watch>,
}

/// All metrics in the text format of Prometheus.
pub fn render(facts: &Facts) -> String {
    let page = Page::default();
    node(&page, &facts.status);
    containers(&page, &facts.status);
    traffic(&page, &facts.status);
    peers(&page, facts);
    sessions(&page, &facts.connections);
    exchanged(&page, &facts.connections);
    addresses(&page, &facts.status);
    sight(&page, facts);
    if let Some(relay) = &facts.relay {
        relay::families(&page, relay);
    }
    page.text()
}

fn flag(value: bool) -> f64 {
    f64::from(u8::from(value))
}

fn node(page: &Page, status: &Status) {
    let version = [status.version.clone()];
    page.gauge(
        "weave_build_info",
        "The version of weaved, as a label.",
        ["version"],
        [(version, 1.0)],
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

fn containers(page: &Page, status: &Status) {
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
    let gone = status.gone.len() as u32;
    let attachments = [
        ("up", status.containers.saturating_sub(gone)),
        ("gone", gone),
    ];
    page.gauge(
        "weave_attachments",
        "Attached containers; of those that are gone the address is still taken.",
        ["state"],
        attachments.map(|(state, count)| ([state.to_owned()], count.into())),
    );
}

fn traffic(page: &Page, status: &Status) {
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
        "weave_drops_total",
        "Packets and datagrams that were not passed on, by reason.",
        ["reason"],
        status
            .drops
            .iter()
            .map(|(reason, count)| ([reason.name().to_owned()], *count)),
    );
}

fn peers(page: &Page, facts: &Facts) {
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
    page.counter(
        "weave_records_quarantined_total",
        "Records and sheets of members that are left because reading them failed, which is a fault of weaved.",
        [],
        only(facts.status.quarantined),
    );
}

/// The labels of a member: its name, and its id, because two may have one name.
fn labels(one: &Connection) -> [String; 2] {
    [one.name.to_string(), one.id.short()]
}

const PEER: [&str; 2] = ["peer", "peer_id"];

fn sessions(page: &Page, connections: &[Connection]) {
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
        "weave_peer_lanes",
        "Lanes in use to the member.",
        PEER,
        some(|one| Some(one.lanes.into())),
    );
}

fn exchanged(page: &Page, connections: &[Connection]) {
    type Count = fn(&Connection) -> u64;
    let counters: [(&str, &str, Count); 6] = [
        (
            "weave_rekeys_total",
            "How often new keys took the place of keys in use.",
            |one| one.rekeys,
        ),
        (
            "weave_handshake_retries_total",
            "How often a handshake was begun again because nothing came of the one before.",
            |one| one.handshake_retries,
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

fn addresses(page: &Page, status: &Status) {
    let (owned, used) = status.cluster.as_ref().map_or((0, 0), |cluster| {
        (cluster.addresses, cluster.addresses_used)
    });
    let states = [
        ("owned", owned),
        ("used", used),
        ("free", owned.saturating_sub(used)),
    ];
    page.gauge(
        "weave_ipam_addresses",
        "IPv4 addresses: those this node owns, and of these used and free ones.",
        ["state"],
        states.map(|(state, count)| ([state.to_owned()], count.into())),
    );
    let members = status.cluster.as_ref().map_or(0, |cluster| cluster.members);
    page.gauge(
        "weave_members",
        "Members of the cluster that this node knows, itself included.",
        [],
        only(members.into()),
    );
}

fn sight(page: &Page, facts: &Facts) {
    let Facts { capture, .. } = facts;
    page.gauge(
        "weave_flows",
        "Flows that are known to this node.",
        [],
        only(facts.flows as f64),
    );
    page.gauge(
        "weave_conntrack_entries",
        "Connections that the kernel follows on this host.",
        [],
        only(capture.connections as f64),
    );
    page.counter(
        "weave_flow_events_lost_total",
        "Connections that were left out of flows because there were too many.",
        [],
        only(capture.lost),
    );
    page.gauge(
        "weave_flow_look_seconds",
        "CPU time that the last look at the kernel's connections took.",
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
