//! A peer of which some ways work and others do not, asked in virtual time.

use std::collections::BTreeMap;

use super::*;

const PEER: NodeId = NodeId::from_bytes([9; 32]);

fn direct() -> Way {
    Way::Direct(address())
}

fn address() -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 9], 6783))
}

fn relay(number: u8) -> NodeId {
    NodeId::from_bytes([number; 32])
}

fn through(number: u8) -> Way {
    Way::Relayed {
        relay: relay(number),
        end: PEER,
    }
}

/// The paths of one node to one peer, and the truth about them.
struct World {
    paths: Paths,
    start: Instant,
    now: Instant,
    /// Round-trip times of the ways that work, in milliseconds, and out of how many pings one is lost (0 for none).
    works: BTreeMap<Way, (u64, u64)>,
    answers: Vec<(Instant, Way, u64)>,
    asked: Vec<(Way, bool)>,
    switches: Vec<(Duration, Way, PathReason)>,
}

impl World {
    fn new() -> Self {
        let start = Instant::now();
        let mut paths = Paths::default();
        paths.up(PEER, direct(), start);
        paths.offer(PEER, &[address()], &[relay(1), relay(2)]);
        let works = [
            (direct(), (10, 0)),
            (through(1), (30, 0)),
            (through(2), (20, 0)),
        ];
        Self {
            paths,
            start,
            now: start,
            works: works.into(),
            answers: Vec::new(),
            asked: Vec::new(),
            switches: Vec::new(),
        }
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            let (asks, switches) = self.paths.due(self.now);
            for ask in asks {
                self.asked.push((ask.way, ask.alarm));
                if let Some((ms, lost)) = self.works.get(&ask.way)
                    && (*lost == 0 || !ask.id.is_multiple_of(*lost))
                {
                    let at = self.now + Duration::from_millis(*ms);
                    self.answers.push((at, ask.way, ask.id));
                }
            }
            self.note(switches);
            let due = self.answers.extract_if(.., |(at, ..)| *at <= self.now);
            for (_, _, id) in due.collect::<Vec<_>>() {
                let switch = self.paths.pong(PEER, id, None, self.now).flatten();
                self.note(Vec::from_iter(switch));
            }
            self.now += Duration::from_millis(5);
        }
    }

    fn note(&mut self, switches: Vec<Switch>) {
        let at = self.now - self.start;
        let told = |switch: Switch| (at, switch.way, switch.reason);
        self.switches.extend(switches.into_iter().map(told));
    }

    /// What a session does while nothing comes back: it says so every quarter of a second.
    fn silence(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.paths.doubt(PEER, true, self.now);
            self.run(Duration::from_millis(250));
        }
    }

    fn way(&self) -> Way {
        self.paths.way(PEER).unwrap().0
    }
}

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn a_quiet_peer_is_asked_once_in_ten_seconds_and_nobody_else_is() {
    let mut world = World::new();
    world.run(60 * SECOND);
    assert_eq!(world.asked, vec![(direct(), false); 6]);
    assert_eq!((world.switches.len(), world.paths.loss(PEER)), (0, Some(0)));
    assert_eq!(world.paths.rtt(PEER), Some(Duration::from_millis(10)));
}

#[test]
fn a_way_that_answers_is_kept_after_one_question() {
    let mut world = World::new();
    world.run(SECOND);
    world.asked.clear();
    world.paths.doubt(PEER, true, world.now);
    world.run(SECOND);
    assert_eq!(
        (world.asked.as_slice(), world.switches.len()),
        (&[(direct(), true)][..], 0)
    );
}

#[test]
fn the_best_way_that_answers_takes_the_place_of_one_that_does_not() {
    let mut world = World::new();
    world.run(SECOND);
    world.works.remove(&direct());
    world.silence(SECOND / 4);
    let (at, way, reason) = world.switches[0];
    assert_eq!((way, reason), (through(2), PathReason::Silent));
    assert!(at - SECOND <= Duration::from_millis(150), "after {at:?}");
    world.works.remove(&through(2));
    world.silence(SECOND / 4);
    assert_eq!(world.way(), through(1));
    world.works.insert(direct(), (10, 0));
    world.run(2 * SECOND);
    assert_eq!(
        world.switches.last().map(|last| (last.1, last.2)),
        Some((direct(), PathReason::Direct))
    );
}

#[test]
fn a_slow_way_is_waited_for_and_a_fast_one_is_not() {
    let mut world = World::new();
    world.works = [(direct(), (200, 0)), (through(1), (400, 0))].into();
    world.run(SECOND);
    world.paths.doubt(PEER, true, world.now);
    world.run(SECOND);
    assert_eq!(world.switches, [], "the direct way answered, though late");
    world.works.remove(&direct());
    world.silence(2 * SECOND);
    assert_eq!(
        world.way(),
        through(1),
        "it answers after the doubt, not within it"
    );
}

#[test]
fn where_nothing_answers_the_way_stays_and_is_asked_again() {
    let mut world = World::new();
    world.works.clear();
    world.silence(10 * SECOND);
    assert_eq!((world.way(), world.switches.len()), (direct(), 0));
    world.works.insert(through(1), (30, 0));
    world.silence(SECOND / 2);
    assert_eq!(world.way(), through(1));
}

#[test]
fn a_return_that_does_not_last_takes_longer_the_next_time() {
    let mut world = World::new();
    let mut back = Vec::new();
    for _ in 0..4 {
        world.works.remove(&direct());
        world.silence(2 * SECOND);
        assert_ne!(world.way(), direct());
        world.works.insert(direct(), (10, 0));
        let healed = world.now;
        while world.way() != direct() {
            world.run(SECOND / 10);
        }
        back.push(world.now - healed);
    }
    assert!(back[0] <= 2 * SECOND, "{back:?}");
    assert!(back.is_sorted() && back[3] > back[0] + SECOND, "{back:?}");
    world.run(2 * LASTING);
    world.works.remove(&direct());
    world.silence(2 * SECOND);
    world.works.insert(direct(), (10, 0));
    world.run(2 * SECOND);
    assert_eq!(world.way(), direct(), "what lasted is forgiven");
}

#[test]
fn a_way_that_loses_much_is_left_for_one_that_does_not() {
    let mut world = World::new();
    world.works.insert(direct(), (10, 2));
    world.run(300 * SECOND);
    let first = world.switches.first().map(|first| first.2);
    assert_eq!(first, Some(PathReason::Better));
    assert!(world.switches.len() <= 5, "{:?}", world.switches);
}

#[test]
fn an_answer_to_nothing_and_of_nobody_decides_nothing() {
    let mut world = World::new();
    assert_eq!(world.paths.pong(PEER, 77, None, world.now), None);
    assert_eq!(world.paths.pong(relay(1), 1, None, world.now), None);
    world.run(SECOND);
    world.paths.doubt(relay(7), true, world.now);
    world.paths.down(PEER);
    assert_eq!(world.paths.poll_timeout(), None);
    assert_eq!(world.paths.due(world.now), (vec![], vec![]));
}

#[test]
fn where_peers_see_this_node_is_remembered() {
    let mut world = World::new();
    let seen = SocketAddr::from(([198, 51, 100, 7], 6783));
    let (asks, _) = world.paths.due(world.now);
    world.paths.pong(PEER, asks[0].id, Some(seen), world.now);
    assert_eq!(world.paths.observed(), [seen]);
    assert_eq!(world.paths.observed_by(PEER), Some(seen));
}
