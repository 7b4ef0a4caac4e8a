//! Ways around what is cut, in virtual time: nodes that talk without end, and how long they ever wait for an answer.

use std::time::{Duration, Instant};

use weave_model::{NodeId, PathReason};
use weave_sim::net::Net;

use super::{MINUTE, cluster};

const SECOND: Duration = Duration::from_secs(1);
/// Between two questions.
const PACE: Duration = Duration::from_millis(10);
/// First bytes of a question and its answer; both are nobody's else.
const QUESTION: u8 = 200;
const ANSWER: u8 = 201;

fn id(net: &Net, n: usize) -> NodeId {
    net.nodes[n].core.as_ref().unwrap().id()
}

/// Through which node packets go from one to another; `None` on the direct way.
fn via(net: &mut Net, from: usize, to: usize) -> Option<usize> {
    let to = id(net, to);
    let relay = net.view(from).member(to).unwrap().via?;
    (0..net.nodes.len()).find(|n| net.nodes[*n].core.is_some() && id(net, *n) == relay)
}

fn reason(net: &mut Net, from: usize, to: usize) -> PathReason {
    let to = id(net, to);
    net.view(from).member(to).unwrap().way.unwrap().1
}

/// Cuts these ways and no others.
fn cut(net: &mut Net, ways: &[(usize, usize)]) {
    net.cut = ways.iter().copied().collect();
}

fn say(net: &mut Net, from: usize, to: usize, what: u8) {
    let (to, now) = (id(net, to), net.now);
    let core = net.nodes[from].core.as_mut().unwrap();
    core.send_control(to, &[what], now);
    net.pump(from);
}

/// Two nodes talk: the first asks every few milliseconds, the second answers. Returns the longest wait for an answer.
fn talk(net: &mut Net, [a, b]: [usize; 2], time: Duration) -> Duration {
    let end = net.now.mono + time;
    let (mut last, mut longest) = (net.now.mono, Duration::ZERO);
    let answers = |net: &mut Net, n: usize, what: u8| {
        let before = net.nodes[n].controls.len();
        net.nodes[n].controls.retain(|body| body[0] != what);
        before - net.nodes[n].controls.len()
    };
    while net.now.mono < end {
        say(net, a, b, QUESTION);
        net.run(PACE);
        for _ in 0..answers(net, b, QUESTION) {
            say(net, b, a, ANSWER);
        }
        if answers(net, a, ANSWER) > 0 {
            last = net.now.mono;
        }
        longest = longest.max(net.now.mono.saturating_duration_since(last));
    }
    longest
}

fn since(start: Instant, net: &Net) -> Duration {
    net.now.mono.saturating_duration_since(start)
}

#[test]
fn a_cut_is_bridged_and_left_again() {
    for seed in 0..10 {
        let mut net = cluster(seed, 3, "10.32.0.0/16");
        net.run(SECOND);
        cut(&mut net, &[(0, 2), (2, 0)]);
        let still = talk(&mut net, [0, 2], 5 * SECOND);
        assert!(
            still <= Duration::from_millis(700),
            "seed {seed}: {still:?}"
        );
        assert_eq!(
            (via(&mut net, 0, 2), via(&mut net, 2, 0)),
            (Some(1), Some(1))
        );
        assert_eq!(reason(&mut net, 0, 2), PathReason::Silent);
        assert_eq!(via(&mut net, 0, 1), None);
        net.cut.clear();
        let healed = net.now.mono;
        while via(&mut net, 0, 2).is_some() || via(&mut net, 2, 0).is_some() {
            let still = talk(&mut net, [0, 2], SECOND / 5);
            assert!(still <= SECOND / 5);
            assert!(
                since(healed, &net) <= 3 * SECOND,
                "seed {seed}: still through the relay"
            );
        }
        assert_eq!(reason(&mut net, 0, 2), PathReason::Direct);
        let (moves, handed_on) = (net.moves, net.handed_on);
        talk(&mut net, [0, 2], MINUTE);
        assert_eq!(
            (net.moves, net.handed_on),
            (moves, handed_on),
            "and stays there"
        );
    }
}

#[test]
fn a_cut_in_one_direction_is_bridged_whoever_asks() {
    for seed in 0..5 {
        for (way, pair) in [
            ((0, 2), [0, 2]),
            ((0, 2), [2, 0]),
            ((2, 0), [0, 2]),
            ((2, 0), [2, 0]),
        ] {
            let mut net = cluster(seed, 3, "10.32.0.0/16");
            cut(&mut net, &[way]);
            let still = talk(&mut net, pair, 5 * SECOND);
            let told = format!("seed {seed}, cut {way:?}, {pair:?} talk: {still:?}");
            assert!(still <= Duration::from_millis(1200), "{told}");
            assert!(talk(&mut net, pair, MINUTE) <= SECOND / 5, "{told}");
            net.cut.clear();
            talk(&mut net, pair, 10 * SECOND);
            assert_eq!(
                (via(&mut net, 0, 2), via(&mut net, 2, 0)),
                (None, None),
                "{told}"
            );
        }
    }
}

#[test]
fn a_relay_that_dies_is_replaced() {
    for seed in 0..10 {
        let mut net = cluster(seed, 4, "10.32.0.0/16");
        cut(&mut net, &[(0, 2), (2, 0)]);
        talk(&mut net, [0, 2], 5 * SECOND);
        let relay = via(&mut net, 0, 2).unwrap();
        net.crash(relay);
        let still = talk(&mut net, [0, 2], 5 * SECOND);
        assert!(
            still <= Duration::from_millis(1200),
            "seed {seed}: {still:?}"
        );
        assert_eq!(via(&mut net, 0, 2), Some(4 - relay));
        net.start(relay);
        assert!(net.run_until(MINUTE, Net::agrees), "seed {seed}: all agree");
    }
}

#[test]
fn nodes_that_never_met_join_through_a_third() {
    for seed in 0..10 {
        let mut net = Net::new(seed, 4).bad();
        let apart = [(1, 2), (2, 1), (1, 3), (3, 1), (2, 3), (3, 2)];
        cut(&mut net, &apart);
        net.init(0, "10.32.0.0/16");
        let token = net.token(0, 3);
        for n in 1..4 {
            net.join(n, &token).unwrap();
        }
        assert!(
            net.run_until(5 * MINUTE, Net::agrees),
            "seed {seed}: all agree"
        );
        assert_eq!(
            (via(&mut net, 1, 2), via(&mut net, 3, 2)),
            (Some(0), Some(0))
        );
        net.cut.clear();
        let direct =
            |net: &mut Net| (1..4).all(|n| (1..4).all(|m| n == m || via(net, n, m).is_none()));
        assert!(
            net.run_until(MINUTE, direct),
            "seed {seed}: through the third for ever"
        );
    }
}

#[test]
fn a_way_that_comes_and_goes_is_not_followed_every_time() {
    let mut net = cluster(1, 3, "10.32.0.0/16");
    let moves = net.moves;
    for _ in 0..60 {
        cut(&mut net, &[(0, 2), (2, 0)]);
        talk(&mut net, [0, 2], 3 * SECOND);
        net.cut.clear();
        talk(&mut net, [0, 2], 3 * SECOND);
    }
    let moves = net.moves - moves;
    assert!((4..=60).contains(&moves), "{moves} moves in 60 cuts");
}

#[test]
fn loss_alone_does_not_stop_a_conversation() {
    let mut net = cluster(2, 3, "10.32.0.0/16");
    net.loss = 30;
    let moves = net.moves;
    let still = talk(&mut net, [0, 2], 5 * MINUTE);
    let moves = net.moves - moves;
    assert!(
        still <= SECOND && moves <= 60,
        "{still:?}, {moves} moves in five minutes"
    );
}

#[test]
fn without_a_relay_a_cut_stays_a_cut_and_heals() {
    let mut net = cluster(3, 2, "10.32.0.0/16");
    cut(&mut net, &[(0, 1), (1, 0)]);
    talk(&mut net, [0, 1], MINUTE);
    let there = net.view(0).members[0].clone();
    assert!(!there.connected && there.via.is_none());
    net.cut.clear();
    let back = |net: &mut Net| net.view(0).members[0].connected;
    assert!(net.run_until(10 * SECOND, back), "not back");
}
