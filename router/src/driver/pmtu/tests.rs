//! Paths in virtual time: a wire that carries so much, takes so long, and loses.

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use weave_model::MtuReason::{BlackHole, Floor, Interface, Probed};

use weave_model::MtuReason;

use super::*;

const PEER: NodeId = NodeId::from_bytes([1; 32]);
const HEADERS: u16 = 28;

/// A lane to one member, and what its wire does.
struct Wire {
    mtus: Mtus,
    known: Arc<OpenLanes>,
    now: Instant,
    carries: u16,
    rtt: Duration,
    /// Each answer may take so much longer, and overtake or be overtaken.
    jitter: Duration,
    /// Of 100 probes, how many are lost whatever their size; likewise answers.
    loses: u32,
    /// Packets are sent all the time.
    loaded: bool,
    /// The largest datagram among those that the peer receives; 0 for none as large as what is asked about.
    floods: u16,
    on_the_way: Vec<(Instant, u32)>,
    probes: usize,
    rng: StdRng,
}

impl Wire {
    fn new(device: u32, carries: u16, rtt: Duration) -> Self {
        let mut wire = Self {
            mtus: Mtus::default(),
            known: Arc::default(),
            now: Instant::now(),
            carries,
            rtt,
            jitter: Duration::ZERO,
            loses: 0,
            loaded: false,
            floods: 0,
            on_the_way: Vec::new(),
            probes: 0,
            rng: StdRng::seed_from_u64(7),
        };
        let known = Arc::clone(&wire.known);
        wire.mtus.up(PEER, &known, (HEADERS, device), wire.now);
        wire
    }

    /// A path over which packets are sent all the time, and whose size is known.
    fn in_use(size: u16, rtt: Duration) -> Self {
        let mut wire = Self::new(size.into(), size, rtt);
        wire.loaded = true;
        wire.settle();
        wire
    }

    fn found(&self) -> (u16, MtuReason) {
        let (datagram, reason) = self.known.path(0);
        (datagram as u16 + HEADERS, reason)
    }

    fn loses(&mut self) -> bool {
        self.rng.next_u32() % 100 < self.loses
    }

    /// Lets time pass until `end`, or until something is as wanted; returns how long it took.
    fn run(&mut self, end: Duration, mut until: impl FnMut(&Self) -> bool) -> Duration {
        let start = self.now;
        while self.now < start + end && !until(self) {
            if self.loaded {
                self.known.note_used(0);
            }
            let (probes, silent) = self.mtus.due(self.now);
            assert_eq!(silent, [], "lane 0 is never given up");
            for probe in probes {
                self.probes += 1;
                assert_eq!((probe.peer, probe.lane), (PEER, 0));
                if probe.datagram + HEADERS <= self.carries && !self.loses() && !self.loses() {
                    let late = self.jitter * (self.rng.next_u32() % 1000) / 1000;
                    self.on_the_way.push((self.now + self.rtt + late, probe.id));
                }
            }
            self.on_the_way.sort_by_key(|(at, _)| *at);
            let next = self.on_the_way.first().map(|(at, _)| *at);
            let wake = [next, self.mtus.poll_timeout(), Some(start + end)];
            self.now = wake.into_iter().flatten().min().unwrap().max(self.now);
            while let Some((_, id)) = self.on_the_way.pop_if_due(self.now) {
                let answer = Answer {
                    largest: self.floods,
                    ..answer(0, id)
                };
                self.mtus.answered(PEER, answer, self.now);
            }
        }
        self.now - start
    }

    fn settle(&mut self) {
        self.run(Duration::from_secs(8), |_| false);
    }
}

/// The answer of a peer that received nothing large.
const fn answer(lane: u8, id: u32) -> Answer {
    Answer {
        lane,
        id,
        largest: 0,
    }
}

trait PopIfDue {
    fn pop_if_due(&mut self, now: Instant) -> Option<(Instant, u32)>;
}

impl PopIfDue for Vec<(Instant, u32)> {
    fn pop_if_due(&mut self, now: Instant) -> Option<(Instant, u32)> {
        (self.first()?.0 <= now).then(|| self.remove(0))
    }
}

const fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

#[test]
fn what_the_device_carries_is_used_after_one_round_trip() {
    for (device, used) in [(1500, 1500), (1280, 1280), (9000, 9000), (65_536, 9000)] {
        let mut wire = Wire::new(device, 65_535, millis(40));
        assert_eq!(wire.found(), (1200, Floor));
        let took = wire.run(millis(1000), |wire| wire.found() == (used, Interface));
        assert_eq!(took, millis(40), "{device}");
        wire.run(Duration::from_secs(3600), |_| false);
        assert_eq!(wire.probes, 3, "and is then never asked again");
    }
}

#[test]
fn any_size_is_found_to_the_byte_in_a_few_round_trips() {
    for rtt in [1, 30, 200] {
        for device in [1500, 9000] {
            for carries in (1200..device)
                .step_by(7)
                .chain([1280, 1460, 1492, device - 1])
            {
                let mut wire = Wire::new(device.into(), carries, millis(rtt));
                let reason = if carries == 1200 { Floor } else { Probed };
                let took = wire.run(millis(10_000), |wire| wire.found() == (carries, reason));
                // At most five rounds and the first one, each a round trip and 10 ms and more of grace.
                assert!(
                    took <= millis(rtt * 15 + 100),
                    "{carries} of {device}, {rtt} ms: {took:?}"
                );
                wire.settle();
                assert_eq!(wire.found(), (carries, reason));
            }
        }
    }
}

#[test]
fn losses_do_not_make_a_path_small() {
    for loses in [1, 10, 30] {
        for (device, carries) in [(1500, 1500), (1500, 1400), (9000, 1500)] {
            let mut wire = Wire::new(device, carries, millis(20));
            wire.loses = loses;
            wire.loaded = true;
            // A lost probe costs at most the wait for the next look at whether the path has grown.
            wire.run(Duration::from_secs(90), |_| false);
            let mut good = 0;
            for _ in 0..1000 {
                wire.run(millis(100), |_| false);
                good += usize::from(wire.found().0 == carries);
            }
            let least = if loses == 30 { 500 } else { 990 };
            assert!(good >= least, "{loses} % of {carries}: {good} of 1000");
        }
    }
}

#[test]
fn answers_that_overtake_one_another_do_not_make_a_path_small() {
    for carries in [1500, 1400] {
        let mut wire = Wire::new(1500, carries, millis(400));
        wire.jitter = millis(400);
        wire.loaded = true;
        wire.run(Duration::from_secs(60), |_| false);
        let least = wire.found().0;
        let fell = wire.run(Duration::from_secs(3600), |wire| wire.found().0 < least);
        assert_eq!((least, fell), (carries, Duration::from_secs(3600)));
    }
}

#[test]
fn an_answer_may_come_a_little_after_the_control_s() {
    let (mut mtus, known) = (Mtus::default(), Arc::<OpenLanes>::default());
    let start = Instant::now();
    mtus.up(PEER, &known, (HEADERS, 1500), start);
    let (probes, _) = mtus.due(start);
    let (control, sized) = probes.split_last().unwrap();
    assert_eq!((control.datagram, sized.len()), (0, 2));
    mtus.answered(PEER, answer(0, control.id), start + millis(20));
    assert_eq!(
        mtus.due(start + millis(29)).0,
        [],
        "nothing is concluded yet"
    );
    for probe in sized {
        mtus.answered(PEER, answer(0, probe.id), start + millis(29));
    }
    assert_eq!(known.path(0), (1472, Interface));
    assert_eq!(mtus.due(start + millis(60)).0, []);
}

#[test]
fn what_passed_before_the_black_hole_does_not_count() {
    let (mut mtus, known) = (Mtus::default(), Arc::<OpenLanes>::default());
    let mut now = Instant::now();
    mtus.up(PEER, &known, (HEADERS, 1500), now);
    let mut late = Vec::new();
    for step in 0..200 {
        known.note_used(0);
        for probe in mtus.due(now).0 {
            if step < 100 || probe.datagram <= 1300 {
                mtus.answered(PEER, answer(0, probe.id), now);
            } else if probe.datagram == 1472 {
                late.push(probe.id);
            }
        }
        now += millis(10);
    }
    assert_eq!((known.path(0), late.len()), ((1300, BlackHole), 5));
    late.into_iter()
        .for_each(|id| mtus.answered(PEER, answer(0, id), now));
    assert_eq!(known.path(0), (1300, BlackHole));
}

#[test]
fn a_black_hole_is_found_under_load() {
    for (before, after) in [(1500, 1400), (1500, 1280), (9000, 1500), (1500, 1200)] {
        for rtt in [1, 30, 200] {
            let mut wire = Wire::in_use(before, millis(rtt));
            assert_eq!(wire.found(), (before, Interface));
            wire.carries = after;
            let fell = wire.run(Duration::from_secs(9), |wire| wire.found().0 <= after);
            assert!(
                fell <= millis(1100 + 4 * rtt),
                "{before} to {after} at {rtt} ms: {fell:?}"
            );
            wire.settle();
            assert_eq!(wire.found(), (after, BlackHole));
        }
    }
}

#[test]
fn a_flood_that_leaves_room_for_small_probes_only_is_no_black_hole() {
    let mut wire = Wire::in_use(1500, millis(5));
    // All that is large is lost but some of the flood; then the flood is small, and nothing says that large packets pass.
    wire.carries = 1300;
    wire.floods = 1500 - HEADERS;
    let fell = wire.run(Duration::from_secs(60), |wire| wire.found().0 < 1500);
    assert_eq!(fell, Duration::from_secs(60));
    wire.floods = 1499 - HEADERS;
    let fell = wire.run(Duration::from_secs(9), |wire| wire.found().0 < 1500);
    assert!((millis(900)..=millis(1800)).contains(&fell), "{fell:?}");
    let mut wire = Wire::in_use(1500, millis(5));
    wire.carries = 1300;
    wire.floods = 1200 - HEADERS;
    let fell = wire.run(Duration::from_secs(9), |wire| wire.found().0 < 1500);
    assert!(fell <= millis(1100), "{fell:?}");
    wire.settle();
    assert_eq!(wire.found(), (1300, BlackHole));
}

/// A path that shrinks by little while packets of a size that still passes arrive, such as the ends of a connection's
/// chunks: found in little more than a second, and a queue that loses nine of ten probes of any size is no such path.
#[test]
fn a_path_that_shrinks_by_little_is_told_from_a_queue_that_overflows() {
    let mut wire = Wire::in_use(1500, millis(5));
    (wire.carries, wire.floods) = (1400, 1390 - HEADERS);
    let fell = wire.run(Duration::from_secs(9), |wire| wire.found().0 < 1500);
    assert!(fell <= millis(1200), "{fell:?}");
    wire.settle();
    assert_eq!(wire.found(), (1400, BlackHole));
    let mut wire = Wire::in_use(1500, millis(5));
    (wire.loses, wire.floods) = (70, 1490 - HEADERS);
    let fell = wire.run(Duration::from_secs(60), |wire| wire.found().0 < 1500);
    assert_eq!(fell, Duration::from_secs(60));
}

#[test]
fn a_black_hole_on_one_lane_has_the_others_asked() {
    let (mut mtus, known) = (Mtus::default(), Arc::<OpenLanes>::default());
    let mut now = Instant::now();
    mtus.up(PEER, &known, (HEADERS, 1500), now);
    mtus.open(PEER, 1, now);
    for step in 0..500 {
        let carries = if step < 100 { 1500 } else { 1300 };
        known.note_used(1);
        for probe in mtus.due(now).0 {
            if probe.datagram + HEADERS <= carries {
                mtus.answered(PEER, answer(probe.lane, probe.id), now);
            }
        }
        now += millis(10);
    }
    for lane in [0, 1] {
        assert_eq!(known.path(lane), (1300 - 28, BlackHole), "lane {lane}");
    }
}

#[test]
fn a_path_that_stood_idle_is_confirmed_when_it_is_used() {
    let mut wire = Wire::new(1500, 1500, millis(1));
    wire.run(Duration::from_secs(600), |_| false);
    wire.carries = 1280;
    wire.run(Duration::from_secs(600), |_| false);
    assert_eq!(wire.found(), (1500, Interface), "nothing was lost");
    wire.loaded = true;
    let fell = wire.run(Duration::from_secs(9), |wire| wire.found().0 <= 1280);
    assert!(fell <= millis(1000), "{fell:?}");
}

#[test]
fn a_path_that_grows_is_used_again() {
    for (small, large) in [(1280, 1500), (1200, 1201), (1280, 1400), (1400, 9000)] {
        let mut wire = Wire::new(9000, 9000, millis(5));
        wire.loaded = true;
        wire.settle();
        wire.carries = small;
        wire.settle();
        assert_eq!(wire.found(), (small, BlackHole));
        wire.carries = large;
        let took = wire.run(Duration::from_secs(90), |wire| wire.found().0 == large);
        assert!(took <= Duration::from_secs(20), "{took:?}");
        let reason = if large == 9000 { Interface } else { Probed };
        assert_eq!(wire.found(), (large, reason));
    }
}

#[test]
fn the_device_sets_the_bound() {
    let mut wire = Wire::new(1500, 9000, millis(5));
    wire.settle();
    wire.mtus.device(PEER, 1400, wire.now);
    assert_eq!(wire.found(), (1400, Interface), "at once");
    wire.mtus.device(PEER, 8000, wire.now);
    let took = wire.run(millis(1000), |wire| wire.found() == (8000, Interface));
    assert_eq!(took, millis(5));
    wire.mtus.device(PEER, 100, wire.now);
    assert_eq!(wire.found(), (1200, Interface), "the least is the least");
}

#[test]
fn a_dead_path_is_asked_ever_slower_and_found_when_it_is_back() {
    let mut wire = Wire::new(1500, 1400, millis(5));
    wire.loses = 100;
    wire.run(Duration::from_secs(600), |_| false);
    assert!(wire.probes < 250, "{} probes", wire.probes);
    wire.loses = 0;
    let known = Arc::clone(&wire.known);
    wire.mtus.up(PEER, &known, (HEADERS, 1500), wire.now);
    let took = wire.run(millis(1000), |wire| wire.found() == (1400, Probed));
    assert!(took <= millis(200), "{took:?}");
}

#[test]
fn an_idle_path_that_is_smaller_than_its_device_costs_little() {
    let mut wire = Wire::new(9000, 1500, millis(5));
    wire.settle();
    let before = wire.probes;
    wire.run(Duration::from_secs(600), |_| false);
    assert!(wire.probes - before <= 80, "{}", wire.probes - before);
}

/// Packets are sent over lane 1 for a second, and then in the steps of 10 ms of which `used` says so; each probe is
/// answered of which `answers` says so, by its lane and when it was sent. How long after that second lane 1 was given up
/// within a minute.
fn given_up(
    used: impl Fn(u32) -> bool,
    mut answers: impl FnMut(u8, Duration) -> bool,
) -> Option<Duration> {
    let (mut mtus, known) = (Mtus::default(), Arc::<OpenLanes>::default());
    let start = Instant::now();
    mtus.up(PEER, &known, (HEADERS, 1500), start);
    mtus.open(PEER, 1, start);
    for step in 0..6000 {
        let since = millis(10) * step;
        if since < SECOND || used(step) {
            known.note_used(1);
        }
        let (probes, silent) = mtus.due(start + since);
        if !silent.is_empty() {
            assert_eq!(
                (silent, known.path(0)),
                (vec![(PEER, 1)], (1472, Interface))
            );
            return Some(since - SECOND);
        }
        for probe in probes {
            if answers(probe.lane, since) {
                mtus.answered(PEER, answer(probe.lane, probe.id), start + since);
            }
        }
    }
    None
}

const SECOND: Duration = Duration::from_secs(1);

/// Lane 1 works for a second and lane 0, which is idle, when it is told.
fn silence_on_lane_1(lane_0_works: impl Fn(Duration) -> bool, used: &[u32]) -> Option<Duration> {
    let answers = |lane, since| match lane {
        0 => lane_0_works(since),
        _ => since < SECOND,
    };
    given_up(|step| used.contains(&step), answers)
}

/// Who gets no answers sends less and less, as TCP does.
const EVER_LESS: [u32; 3] = [120, 160, 240];

#[test]
fn a_lane_over_which_nothing_comes_back_is_given_up_if_another_works() {
    let took = silence_on_lane_1(|_| true, &EVER_LESS).unwrap();
    assert!(took <= millis(1300), "{took:?}");
    let both_fail = |since| since < Duration::from_secs(1);
    assert_eq!(silence_on_lane_1(both_fail, &EVER_LESS), None);
}

#[test]
fn a_silent_lane_is_given_up_by_a_single_packet_after_a_long_time() {
    // The member is overwhelmed for ten seconds; a packet is sent after that, by somebody who has all but given up.
    let works = |since| !(Duration::from_secs(1)..Duration::from_secs(10)).contains(&since);
    let took = silence_on_lane_1(works, &[120, 160, 240, 400, 2500]).unwrap();
    let packet = millis(24_000);
    assert!((packet..packet + millis(2500)).contains(&took), "{took:?}");
}

/// Floods fill the queue of lane 1, which loses four of ten probes; the one of lane 0 is idle.
#[test]
fn a_lane_that_is_flooded_is_not_given_up() {
    for seed in 0..20 {
        let mut rng = StdRng::seed_from_u64(seed);
        let answers = |lane, since| lane == 0 || since < SECOND || rng.next_u32() % 10 < 6;
        assert_eq!(given_up(|_| true, answers), None, "flood {seed}");
    }
}
