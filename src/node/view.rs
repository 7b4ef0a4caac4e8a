//! What the router and the desk know, as the API shows it: pure, snapshots in, answers out.

use std::collections::BTreeMap;

use ipnet::Ipv4Net;
use weave_model::api::{
    Awaited, Cluster, Connection, ConnectionPath, Connections, Datagrams, LaneMtu, Offload,
    Offloads, Peer, PeerState, Peers, Problem, Status, Traffic, Verdict,
};
use weave_model::{Block, ClusterRange, Drop};
use weave_router::core::view::{Member, View};
use weave_router::driver::{Granted, PeerStats, Stats};

use super::{Published, members, secret};
use crate::config::{Config, Facility};
use crate::obstacle::Obstacle;

/// How the node is; which containers are gone is for the caller to find out.
pub(super) fn status(
    config: &Config,
    started_at: u64,
    view: &View,
    stats: &Stats,
    published: &Published,
) -> Status {
    let mut problems = problems(view, config.overlay.listen.port(), &published.obstacles);
    if !stats.healthy {
        let cause = "a thread that moves packets has ended".to_owned();
        problems.push(Problem {
            cause,
            fix: "look at the log of weaved, then restart it".to_owned(),
        });
    }
    let verdict = if problems.is_empty() {
        Verdict::Ok
    } else {
        Verdict::Degraded
    };
    Status {
        verdict,
        summary: summary(view),
        problems,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        name: view.name.clone(),
        id: view.me,
        started_at,
        listen: config.overlay.listen,
        suites: config.overlay.suites.clone(),
        mtu: config.overlay.mtu.into(),
        containers: published.book.entries().count() as u32,
        gone: Vec::new(),
        swept: published.swept,
        host: published.book.host(),
        cluster: view.range.map(|range| cluster(view, &range)),
        traffic: Traffic {
            sent_packets: stats.sent.packets,
            sent_bytes: stats.sent.bytes,
            received_packets: stats.received.packets,
            received_bytes: stats.received.bytes,
        },
        datagrams: Datagrams {
            sent: stats.sent.datagrams,
            sent_calls: stats.sent.calls,
            received: stats.received.datagrams,
            received_batches: stats.received.batches,
            received_calls: stats.received.calls,
            handed_on: stats.sent.handed_on + stats.received.handed_on,
            handed_on_bytes: stats.sent.handed_on_bytes + stats.received.handed_on_bytes,
        },
        drops: drops(stats),
        quarantined: view.quarantined,
        unproven: view.unproven,
        offloads: offloads(&config.overlay.without, &stats.granted),
    }
}

/// How each facility stands: told to do without, granted, or asked for and not granted.
fn offloads(without: &[Facility], granted: &Granted) -> Offloads {
    let has = |works| {
        if works {
            Offload::Used
        } else {
            Offload::Refused
        }
    };
    let asked = |facility, works| {
        if without.contains(&facility) {
            Offload::Without
        } else {
            has(works)
        }
    };
    Offloads {
        gso: asked(Facility::Gso, granted.gso),
        gro: asked(Facility::Gro, granted.gro),
        tso: has(granted.tso),
        uso: asked(Facility::Uso, granted.uso),
        big_tcp: asked(Facility::BigTcp, granted.big_tcp),
        multiqueue: asked(Facility::Multiqueue, granted.queues > 0),
        queues: granted.queues as u32,
    }
}

fn drops(stats: &Stats) -> BTreeMap<Drop, u64> {
    let counts = stats
        .sent
        .drops
        .iter()
        .zip(&stats.received.drops)
        .map(|(sent, received)| sent + received);
    Drop::ALL.into_iter().zip(counts).collect()
}

fn cluster(view: &View, range: &ClusterRange) -> Cluster {
    Cluster {
        range: range.v4(),
        range6: range.v6(),
        members: view.members.len() as u32 + 1,
        connected: connected(view) + 1,
        blocks: prefixes(range, &view.mine),
        addresses: view.capacity,
        addresses_used: view.used,
    }
}

fn connected(view: &View) -> u32 {
    view.members
        .iter()
        .filter(|member| member.connected)
        .count() as u32
}

fn summary(view: &View) -> String {
    if view.range.is_none() {
        return "this node is in no cluster".to_owned();
    }
    let members = view.members.len() + 1;
    format!(
        "{} of {members} {} connected",
        connected(view) + 1,
        if members == 1 { "member" } else { "members" }
    )
}

fn problems(view: &View, port: u16, obstacles: &[Obstacle]) -> Vec<Problem> {
    let problem = |cause: String, fix: &str| Problem {
        cause,
        fix: fix.to_owned(),
    };
    let mut problems = Vec::new();
    if view.range.is_none() {
        let fix = "make one with: weavectl init, or join one with: weavectl join TOKEN";
        problems.push(problem("this node is in no cluster".to_owned(), fix));
    } else if view.capacity == 0 {
        let cause = "this node has no addresses to give to containers".to_owned();
        problems.push(problem(
            cause,
            "wait a little; if it stays, make sure that a member with addresses is reachable",
        ));
    }
    if let Some(failure) = &view.storage_failure {
        let cause = format!("the node cannot save its state: {failure}");
        problems.push(problem(
            cause,
            "free space on the disk of the state directory, or repair it",
        ));
    }
    problems.extend(members::problems(view));
    problems.extend(secret::problems(view));
    let silent = |member: &&Member| !member.connected && !view.removed;
    for member in view.members.iter().filter(silent) {
        let at: Vec<String> = member.endpoints.iter().map(ToString::to_string).collect();
        let cause = format!("no session with {} ({})", member.name, at.join(" "));
        problems.push(Problem {
            cause,
            fix: format!(
                "check that weaved runs there, and that UDP {port} passes between the hosts"
            ),
        });
    }
    problems.extend(
        obstacles
            .iter()
            .map(|obstacle| problem(obstacle.cause.clone(), &obstacle.fix)),
    );
    problems
}

/// The members, this node first, the others by name.
pub(super) fn peers(view: &View) -> Peers {
    let prefixes = |blocks: &[Block]| {
        view.range
            .map_or_else(Vec::new, |range| prefixes(&range, blocks))
    };
    let myself = Peer {
        name: view.name.clone(),
        id: view.me,
        state: PeerState::Myself,
        endpoints: view.endpoints.clone(),
        blocks: prefixes(&view.mine),
    };
    let others = by_name(view).into_iter().map(|member| Peer {
        name: member.name.clone(),
        id: member.id,
        state: state(member),
        endpoints: member.endpoints.clone(),
        blocks: prefixes(&member.blocks),
    });
    let awaited = view.awaited.iter();
    Peers {
        peers: std::iter::once(myself).chain(others).collect(),
        awaited: awaited
            .map(|(id, endpoint)| Awaited {
                id: *id,
                endpoint: *endpoint,
            })
            .collect(),
    }
}

/// The sessions, by the names of the members.
pub(super) fn connections(view: &View, stats: &Stats) -> Connections {
    let connections = by_name(view).into_iter().map(|member| {
        let counted = stats.peers.get(&member.id);
        let lanes = counted.into_iter().flat_map(|counted| &counted.lanes);
        let lane_mtus: Vec<LaneMtu> = lanes.map(|&(lane, mtu)| LaneMtu { lane, mtu }).collect();
        Connection {
            name: member.name.clone(),
            id: member.id,
            state: state(member),
            endpoint: member.endpoint,
            suite: member.suite,
            keys_at: member.keys.map(|made| made.as_secs()),
            lanes: lane_mtus.len() as u32,
            mtu: lane_mtus
                .iter()
                .map(|lane| lane.mtu)
                .min_by_key(|mtu| mtu.bytes),
            lane_mtus,
            path: path(view, member),
            rtt_us: member.rtt_us,
            since_at: member.since.map(|since| since.as_secs()),
            rekeys: counted.map_or(0, |counted| counted.rekeys),
            handshake_retries: counted.map_or(0, |counted| counted.retries),
            handshakes: counted.map_or(0, |counted| counted.handshakes),
            traffic: counted.map_or_else(Traffic::default, traffic),
        }
    });
    Connections {
        connections: connections.collect(),
    }
}

/// The way of a member's packets, the relay by its name.
fn path(view: &View, member: &Member) -> Option<ConnectionPath> {
    let (since, reason) = member.way?;
    let relay = member.via.and_then(|via| view.member(via));
    Some(ConnectionPath {
        via: relay.map(|relay| relay.name.clone()),
        loss_permille: member.loss,
        since_at: since.as_secs(),
        reason,
    })
}

fn traffic(stats: &PeerStats) -> Traffic {
    Traffic {
        sent_packets: stats.sent_packets,
        sent_bytes: stats.sent_bytes,
        received_packets: stats.received_packets,
        received_bytes: stats.received_bytes,
    }
}

fn by_name(view: &View) -> Vec<&Member> {
    let mut members: Vec<&Member> = view.members.iter().collect();
    members.sort_by(|one, two| (&one.name, one.id).cmp(&(&two.name, two.id)));
    members
}

const fn state(member: &Member) -> PeerState {
    if member.connected {
        PeerState::Connected
    } else {
        PeerState::Unreachable
    }
}

pub(super) fn prefixes(range: &ClusterRange, blocks: &[Block]) -> Vec<Ipv4Net> {
    blocks.iter().map(|block| range.v4_block(*block)).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use clap::Parser as _;
    use weave_model::{MtuReason, NodeId, PathMtu};
    use weave_router::driver::PeerStats;

    use super::*;
    use crate::config::Flags;

    fn alone() -> View {
        View::empty(NodeId::from_bytes([9; 32]), "b".parse().unwrap())
    }

    /// This node is `b`; the others are `c`, connected, and `a`, not.
    fn view() -> View {
        let member = |name: &str, byte, connected| Member {
            id: NodeId::from_bytes([byte; 32]),
            name: name.parse().unwrap(),
            public: weave_router::keys::NodePublic {
                dh: [byte; 32],
                sign: [byte; 32],
            },
            admin: false,
            endpoints: vec!["192.0.2.7:6783".parse().unwrap()],
            blocks: vec![Block::new(256, 8).unwrap()],
            connected,
            since: None,
            endpoint: None,
            suite: None,
            rtt_us: None,
            observed: None,
            via: None,
            keys: None,
            way: None,
            loss: None,
        };
        let range = ClusterRange::new(
            "10.32.0.0/12".parse().unwrap(),
            "fd00::/48".parse().unwrap(),
        );
        let mut view = alone();
        view.range = range.ok();
        view.capacity = 254;
        view.members = vec![member("c", 1, true), member("a", 2, false)];
        view
    }

    fn status_of(view: &View, healthy: bool, published: &Published) -> Status {
        let config = Config::load(Flags::parse_from(["weaved", "--name", "b"])).unwrap();
        status(
            &config,
            7,
            view,
            &Stats {
                healthy,
                ..Stats::default()
            },
            published,
        )
    }

    #[test]
    fn all_well_is_ok() {
        let mut view = view();
        view.members.pop();
        let status = status_of(&view, true, &Published::default());
        assert_eq!((status.verdict, status.problems.len()), (Verdict::Ok, 0));
        assert_eq!(status.summary, "2 of 2 members connected");
    }

    #[test]
    fn whatever_is_amiss_degrades_and_has_a_fix() {
        let published = Published {
            obstacles: Arc::new([Obstacle::new("no rules", "make some")]),
            ..Published::default()
        };
        let mut view = view();
        view.capacity = 0;
        view.storage_failure = Some("disk full".to_owned());
        let status = status_of(&view, false, &published);
        assert_eq!(
            (status.verdict, status.summary.as_str()),
            (Verdict::Degraded, "2 of 3 members connected")
        );
        let causes: Vec<&str> = status
            .problems
            .iter()
            .map(|problem| problem.cause.as_str())
            .collect();
        let words = [
            "no addresses",
            "disk full",
            "no session with a (192.0.2.7:6783)",
            "no rules",
            "a thread",
        ];
        assert_eq!(causes.len(), words.len(), "{causes:?}");
        for (cause, word) in causes.iter().zip(words) {
            assert!(cause.contains(word), "{cause} should say {word}");
        }
        assert!(
            status
                .problems
                .iter()
                .all(|problem| !problem.fix.is_empty())
        );
    }

    #[test]
    fn what_is_refused_is_told_from_what_is_not_asked_for() {
        let granted = Granted {
            gro: true,
            tso: true,
            queues: 1,
            ..Granted::default()
        };
        let seen = offloads(&[Facility::Gso, Facility::Multiqueue], &granted);
        let expected = Offloads {
            gso: Offload::Without,
            gro: Offload::Used,
            tso: Offload::Used,
            uso: Offload::Refused,
            big_tcp: Offload::Refused,
            multiqueue: Offload::Without,
            queues: 1,
        };
        assert_eq!(seen, expected);
    }

    #[test]
    fn outside_of_a_cluster_is_degraded() {
        let status = status_of(&alone(), true, &Published::default());
        assert_eq!((status.verdict, status.cluster), (Verdict::Degraded, None));
        assert!(status.problems[0].fix.contains("weavectl init"));
    }

    #[test]
    fn who_was_let_in_and_never_came_is_shown_by_its_id() {
        let mut view = view();
        let (id, at) = (NodeId::from_bytes([7; 32]), "192.0.2.9:6783".parse().ok());
        view.awaited.insert(id, at);
        let shown = peers(&view);
        assert_eq!(shown.awaited, [Awaited { id, endpoint: at }]);
        assert!(
            shown.peers.iter().all(|peer| peer.id != id),
            "it has no name"
        );
    }

    #[test]
    fn this_node_comes_first_and_the_others_by_name() {
        let view = view();
        let peers = peers(&view).peers;
        let shown: Vec<(&str, PeerState)> = peers
            .iter()
            .map(|peer| (peer.name.as_str(), peer.state))
            .collect();
        let expected = [
            ("b", PeerState::Myself),
            ("a", PeerState::Unreachable),
            ("c", PeerState::Connected),
        ];
        assert_eq!(shown, expected);
        assert_eq!(peers[1].blocks, ["10.32.1.0/24".parse().unwrap()]);
        let mtu = |bytes| PathMtu {
            bytes,
            reason: MtuReason::Probed,
        };
        let counted = PeerStats {
            lanes: vec![(0, mtu(1500)), (3, mtu(1400))],
            sent_bytes: 9,
            rekeys: 2,
            ..PeerStats::default()
        };
        let stats = Stats {
            peers: [(view.members[0].id, counted)].into(),
            ..Stats::default()
        };
        let connections = connections(&view, &stats).connections;
        let lanes: Vec<(u32, Option<PathMtu>, u64, u64)> = connections
            .iter()
            .map(|one| (one.lanes, one.mtu, one.traffic.sent_bytes, one.rekeys))
            .collect();
        assert_eq!(lanes, [(0, None, 0, 0), (2, Some(mtu(1400)), 9, 2)]);
    }
}
