//! A cluster of more nodes than keep sessions with one another, in virtual time: what it costs, and that it is one.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::time::Duration;

use weave_model::NodeId;
use weave_router::core::command::{Command, Reply};
use weave_sim::net::Net;
use weave_sim::scale::{change, cold_start, idle};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

fn id(net: &Net, n: usize) -> NodeId {
    net.nodes[n].core().id()
}

/// The nodes that this one has sessions with.
fn sessions(net: &mut Net, n: usize) -> BTreeSet<NodeId> {
    let view = net.view(n);
    let up = view.members.iter().filter(|member| member.keys.is_some());
    up.map(|member| member.id).collect()
}

/// A node that another one has no session with.
fn stranger(net: &mut Net, n: usize) -> usize {
    let known = sessions(net, n);
    let mut others = (0..net.nodes.len()).filter(|m| *m != n);
    others.find(|m| !known.contains(&id(net, *m))).unwrap()
}

fn ping(net: &mut Net, from: usize, to: usize) -> bool {
    let (peer, patience) = (id(net, to), 5 * SECOND);
    matches!(
        net.ask(from, Command::Ping { peer, patience }),
        Ok(Reply::Pong { .. })
    )
}

/// Whether a node takes another one to be alive.
fn sees(net: &mut Net, n: usize, other: NodeId) -> bool {
    net.view(n).member(other).unwrap().connected
}

#[test]
fn a_hundred_nodes_come_together_and_cost_little() {
    let (mut net, took) = cold_start(1, 100, 0);
    assert!(took <= 30 * SECOND, "{took:?}");
    // A guest is one for two and a half minutes, its session is used for one more and ends with its keys after three.
    net.run(8 * MINUTE);
    for n in 0..100 {
        let count = sessions(&mut net, n).len();
        assert!(
            (6..=12).contains(&count),
            "host{} has {count} sessions",
            n + 1
        );
    }
    let up = |net: &Net| -> usize {
        net.nodes
            .iter()
            .map(|node| node.core().sessions_up().0)
            .sum()
    };
    let before = up(&net);
    let slowest = (0..5)
        .map(|n| *change(&mut net, 20 * n).last().unwrap())
        .max()
        .unwrap();
    assert!(slowest <= 2 * SECOND, "a change takes {slowest:?}");
    net.run(10 * SECOND);
    assert_eq!(up(&net), before, "a change needs no sessions of its own");
    let bytes = idle(&mut net, MINUTE);
    assert!(bytes <= 2000.0, "a quiet node sends {bytes} bytes a second");
}

#[test]
fn loss_delays_a_crowd_and_keeps_nobody_out() {
    let (mut net, took) = cold_start(2, 40, 20);
    // What one comparison of records missed, the next ones find, a minute later each.
    assert!(took <= 5 * MINUTE, "{took:?}");
    let slowest = *change(&mut net, 7).last().unwrap();
    assert!(slowest <= MINUTE, "{slowest:?}");
}

#[test]
fn a_session_is_made_when_one_is_wanted_and_ends_when_it_serves_nobody() {
    let (mut net, _) = cold_start(3, 40, 0);
    net.run(4 * MINUTE);
    let other = stranger(&mut net, 5);
    let there = id(&net, other);
    assert!(sees(&mut net, 5, there), "it is known to be alive");
    assert!(ping(&mut net, 5, other));
    assert!(sessions(&mut net, 5).contains(&there));
    net.run(5 * MINUTE);
    assert!(!sessions(&mut net, 5).contains(&there), "nobody uses it");
    assert!(ping(&mut net, 5, other), "and it is made again");
}

#[test]
fn a_member_that_cannot_be_reached_is_reached_through_its_neighbours() {
    let (mut net, _) = cold_start(4, 40, 0);
    net.run(4 * MINUTE);
    let other = stranger(&mut net, 5);
    net.cut = [(5, other), (other, 5)].into();
    assert!(!net.run_until(SECOND, |_| false));
    let reached = (0..4).any(|_| ping(&mut net, 5, other));
    assert!(reached && net.handed_on > 0);
    let there = id(&net, other);
    assert!(net.view(5).member(there).unwrap().via.is_some());
}

#[test]
fn the_dead_are_known_to_all_and_the_living_stay_one() {
    let (mut net, _) = cold_start(5, 60, 0);
    net.run(MINUTE);
    let dead: Vec<usize> = (0..60).filter(|n| n % 3 == 1).collect();
    let ids: Vec<NodeId> = (0..60).map(|n| id(&net, n)).collect();
    for n in &dead {
        net.kill(*n, false);
    }
    let agreed = |net: &mut Net| {
        let living = (0..60).filter(|n| n % 3 != 1).collect::<Vec<_>>();
        living.iter().all(|n| {
            (0..60)
                .filter(|m| m != n)
                .all(|m| sees(net, *n, ids[m]) != dead.contains(&m))
        })
    };
    assert!(
        net.run_until(3 * MINUTE, |net| agreed(net)),
        "all know who lives"
    );
}

#[test]
fn after_a_power_cut_each_meets_its_neighbours_and_not_everybody() {
    let (mut net, _) = cold_start(6, 60, 0);
    net.frugal = false;
    // Everybody saves what it knows.
    for n in 0..2 {
        change(&mut net, n);
    }
    net.run(5 * SECOND);
    (0..60).for_each(|n| net.kill(n, true));
    net.run(SECOND);
    (0..60).for_each(|n| net.start(n));
    net.run(20 * SECOND);
    let count = |net: &Net, n: usize| net.nodes[n].core().sessions_up();
    let all = (0..60).map(|n| count(&net, n)).collect::<Vec<_>>();
    assert!(all.iter().all(|(_, met)| *met), "all neighbours are met");
    let most = all.iter().map(|(up, _)| *up).max();
    assert!(most <= Some(12), "one has {most:?} sessions");
}
