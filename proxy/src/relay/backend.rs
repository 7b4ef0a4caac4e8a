//! What the relay knows of one endpoint: how busy it is, how fast, and whether it is left out for a while.
//!
//! Latency is a *peak* average (Finagle's): a slower answer counts at once, faster ones bring it down over
//! [`MEMORY`], and so does time without any, so that one that was slow is tried again. Until an endpoint was asked
//! something, the time counts that it takes to take connections; afterwards only answers do, and those that were waited
//! for in vain: one that hangs takes connections as fast as any.
//!
//! An endpoint that fails [`FAILURES`] times in a row is ejected for [`EJECTED`], twice as long each time it fails again
//! on its return, at most [`EJECTED_AT_MOST`]. Once it has heard the client, what that said may be why it failed. So
//! failures of this kind that one client alone has seen do not eject an endpoint that served another one within
//! [`OTHERS`], or one could take endpoints away from all. One that is new or returns is taken to slowly: its chance grows
//! to the whole over [`WARM_UP`].

use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Over which time an old latency is forgotten.
const MEMORY: Duration = Duration::from_secs(10);
/// Over which time one of an endpoint elsewhere is, where there is one on this node: each that is tried only to know how
/// fast it is now is a connection that leaves the node.
const MEMORY_AFAR: Duration = Duration::from_secs(100);
/// How many failures in a row eject.
pub(super) const FAILURES: u32 = 3;
/// For how long, the first time.
pub(super) const EJECTED: Duration = Duration::from_secs(2);
/// The longest.
const EJECTED_AT_MOST: Duration = Duration::from_secs(60);
/// For how long it is held to serve a client that it served.
pub(super) const OTHERS: Duration = Duration::from_secs(10);
/// How long an endpoint gets less than its share.
pub(super) const WARM_UP: Duration = Duration::from_secs(10);
/// The chance that it begins with.
const COLD: f64 = 0.1;
/// What is assumed of an endpoint that was asked and has not answered yet.
const UNKNOWN: Duration = Duration::from_secs(1);

/// What happened to an endpoint since it is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// How often it was picked.
    pub picks: u64,
    /// How often it could not be reached, or broke a connection without an answer.
    pub failures: u64,
    /// How often another one was picked in its place for the same connection.
    pub retries: u64,
    /// How often it was left out for a while.
    pub ejections: u64,
}

impl Counts {
    /// None of all.
    pub(super) const NONE: Self = Self {
        picks: 0,
        failures: 0,
        retries: 0,
        ejections: 0,
    };

    /// Adds those of another.
    pub(super) const fn add(&mut self, other: Self) {
        self.picks += other.picks;
        self.failures += other.failures;
        self.retries += other.retries;
        self.ejections += other.ejections;
    }
}

/// One endpoint.
#[derive(Clone, Debug)]
pub(super) struct Backend {
    /// Whether the table has it; one that has gone stays until its connections have ended.
    pub(super) listed: bool,
    /// Connections that are open or being made.
    pub(super) open: u32,
    pub(super) counts: Counts,
    /// Since when it warms up.
    cold: Option<Instant>,
    latency: Option<(Duration, Instant)>,
    /// How long it takes to take a connection; longer ones count at once.
    connects: Option<Duration>,
    /// Whether that is of what it was asked, or of connections that it took.
    asked: bool,
    failed: u32,
    /// Who saw those failures.
    seen_by: SeenBy,
    /// Whom it served last, and whom before that was another one, and when.
    served: [Option<(IpAddr, Instant)>; 2],
    out: Option<Instant>,
    /// How often it was ejected without an answer since.
    times: u32,
}

/// Who saw an endpoint fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SeenBy {
    Nobody,
    /// One client, which it had heard, or under whose name it was asked.
    One(IpAddr),
    /// More than one, or the relay itself.
    Many,
}

impl Backend {
    /// One that is known from the beginning, or since now.
    pub(super) const fn new(cold: Option<Instant>) -> Self {
        Self {
            listed: true,
            open: 0,
            counts: Counts::NONE,
            cold,
            latency: None,
            connects: None,
            asked: false,
            failed: 0,
            seen_by: SeenBy::Nobody,
            served: [None, None],
            out: None,
            times: 0,
        }
    }

    /// It is in the table again.
    pub(super) fn list(&mut self, now: Instant) {
        if !self.listed {
            self.listed = true;
            self.cold = Some(now);
        }
    }

    /// Whether it is left out.
    pub(super) fn is_out(&self, now: Instant) -> bool {
        self.out.is_some_and(|until| now < until)
    }

    /// The chance that it is taken when it is drawn: 1 but for one that warms up.
    pub(super) fn chance(&self, now: Instant) -> f64 {
        let since = match (self.out, self.cold) {
            (Some(until), Some(cold)) => until.max(cold),
            (Some(one), None) | (None, Some(one)) => one,
            (None, None) => return 1.0,
        };
        let warm = now.saturating_duration_since(since).as_secs_f64() / WARM_UP.as_secs_f64();
        warm.clamp(COLD, 1.0)
    }

    /// What its answer would cost now, in seconds: its latency for each connection that waits there.
    pub(super) fn cost(&self, now: Instant) -> f64 {
        self.cost_by(MEMORY, now)
    }

    /// The same of one that is elsewhere, for those of this node to be held against.
    pub(super) fn cost_afar(&self, now: Instant) -> f64 {
        self.cost_by(MEMORY_AFAR, now)
    }

    fn cost_by(&self, memory: Duration, now: Instant) -> f64 {
        match self.latency {
            Some((latency, when)) => {
                latency.as_secs_f64() * forgotten(when, now, memory) * f64::from(self.open + 1)
            }
            None => UNKNOWN.as_secs_f64() * f64::from(self.open),
        }
    }

    /// The average latency in seconds, if anything was measured.
    pub(super) fn latency_at(&self, now: Instant) -> Option<f64> {
        let (latency, when) = self.latency?;
        Some(latency.as_secs_f64() * forgotten(when, now, MEMORY))
    }

    /// It took this long to take a connection.
    pub(super) fn connected(&mut self, took: Duration, now: Instant) {
        let before = self.connects.unwrap_or(took);
        self.connects = Some(took.max((before * 7 + took) / 8));
        if !self.asked {
            self.took(took, now);
        }
    }

    /// How long it takes to take a connection, if that was seen.
    pub(super) const fn usual(&self) -> Option<Duration> {
        self.connects
    }

    /// It took this long to answer.
    pub(super) fn answered(&mut self, client: IpAddr, took: Duration, now: Instant) {
        self.asked = true;
        self.took(took, now);
        self.served(client, now);
    }

    /// It was waited for in vain for so long: the answer would have come later, if at all.
    pub(super) fn kept_waiting(&mut self, waited: Duration, now: Instant) {
        self.asked = true;
        if self
            .latency_at(now)
            .is_none_or(|latency| waited.as_secs_f64() > latency)
        {
            self.took(waited, now);
        }
    }

    fn took(&mut self, took: Duration, now: Instant) {
        let old = self.latency_at(now).unwrap_or(0.0);
        let new = took.as_secs_f64();
        let kept = self
            .latency
            .map_or(0.0, |(_, when)| forgotten(when, now, MEMORY));
        let average = if new > old {
            new
        } else {
            old.mul_add(kept, new * (1.0 - kept))
        };
        self.latency = Some((Duration::from_secs_f64(average), now));
    }

    /// It did what it is there for. That it took a connection is not enough: one that breaks each does that too.
    pub(super) fn served(&mut self, client: IpAddr, now: Instant) {
        (self.failed, self.times) = (0, 0);
        self.seen_by = SeenBy::Nobody;
        if self.served[0].is_some_and(|(last, _)| last != client) {
            self.served[1] = self.served[0];
        }
        self.served[0] = Some((client, now));
    }

    /// Whether it serves others than this client.
    fn serves_others(&self, client: IpAddr, now: Instant) -> bool {
        let mut served = self.served.iter().flatten();
        served.any(|(who, when)| *who != client && now.saturating_duration_since(*when) < OTHERS)
    }

    /// It failed, after it had heard the client if one is given, or was asked under its name; whether it has to be ejected,
    /// which is the caller's to allow.
    pub(super) fn failed(&mut self, client: Option<IpAddr>, now: Instant) -> bool {
        self.counts.failures += 1;
        self.failed += 1;
        self.seen_by = match (self.seen_by, client) {
            (SeenBy::Nobody, Some(client)) => SeenBy::One(client),
            (SeenBy::One(known), Some(client)) if known == client => SeenBy::One(known),
            _ => SeenBy::Many,
        };
        let is_blamed = match self.seen_by {
            SeenBy::One(client) => !self.serves_others(client, now),
            SeenBy::Nobody | SeenBy::Many => true,
        };
        // One that comes back and fails is out again at once.
        is_blamed && (self.failed >= FAILURES || self.times > 0)
    }

    /// Leaves it out for a while.
    pub(super) fn eject(&mut self, now: Instant) {
        let long = EJECTED.saturating_mul(1 << self.times.min(10));
        self.out = Some(now + long.min(EJECTED_AT_MOST));
        self.times += 1;
        self.failed = 0;
        self.seen_by = SeenBy::Nobody;
        self.counts.ejections += 1;
    }
}

/// How much is left of what was known then.
fn forgotten(then: Instant, now: Instant, memory: Duration) -> f64 {
    let passed = now.saturating_duration_since(then).as_secs_f64();
    (-passed / memory.as_secs_f64()).exp()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_slow_answer_counts_at_once_and_is_forgotten_slowly() {
        let start = Instant::now();
        let mut one = Backend::new(None);
        one.took(MS, start);
        one.took(100 * MS, start + MS);
        let latency = one.latency_at(start + 2 * MS).expect("it was measured");
        assert!((0.099..0.101).contains(&latency), "{latency}");
        one.took(MS, start + 3 * MS);
        let latency = one.latency_at(start + 3 * MS).expect("it was measured");
        assert!(latency > 0.09, "one fast answer changes little: {latency}");
        let later = one.latency_at(start + 5 * MEMORY).expect("it was measured");
        assert!(later < 0.001, "{later}");
    }

    #[test]
    fn once_it_was_asked_something_it_is_of_no_matter_how_fast_it_takes_connections() {
        let start = Instant::now();
        let mut one = Backend::new(None);
        one.connected(MS, start);
        one.kept_waiting(1000 * MS, start + MS);
        for n in 2..1000 {
            one.connected(MS, start + n * MS);
            one.kept_waiting(MS, start + n * MS);
        }
        let latency = one.latency_at(start + 1000 * MS).expect("it was measured");
        assert!((0.89..0.92).contains(&latency), "time alone: {latency}");
    }

    #[test]
    fn how_long_it_takes_to_take_a_connection_grows_at_once_and_falls_slowly() {
        let (now, mut one) = (Instant::now(), Backend::new(None));
        assert_eq!(one.usual(), None);
        for (took, usual) in [(8, 8), (80, 80), (0, 70), (70, 70), (90, 90)] {
            one.connected(took * MS, now);
            assert_eq!(one.usual(), Some(usual * MS));
        }
    }

    #[test]
    fn ejections_last_longer_each_time_until_it_answers() {
        let mut now = Instant::now();
        let mut one = Backend::new(None);
        for _ in 1..FAILURES {
            assert!(!one.failed(None, now));
        }
        for times in 0..8 {
            assert!(one.failed(None, now));
            one.eject(now);
            let long = (EJECTED * (1 << times)).min(EJECTED_AT_MOST);
            assert!(one.is_out(now + long - MS) && !one.is_out(now + long));
            now += long;
        }
        one.connected(MS, now);
        assert!(
            one.failed(None, now),
            "it takes connections, and that is all"
        );
        one.served(IpAddr::from([10, 32, 0, 2]), now);
        assert!(
            !one.failed(None, now),
            "an answer makes good for all before"
        );
    }

    #[test]
    fn what_one_client_alone_has_seen_ejects_nobody_who_serves_others() {
        let [bad, good, third] = [2, 3, 4].map(|n| IpAddr::from([10, 32, 0, n]));
        let (now, mut one) = (Instant::now(), Backend::new(None));
        one.served(good, now);
        one.served(bad, now);
        (0..20).for_each(|_| assert!(!one.failed(Some(bad), now)));
        assert!(
            one.failed(Some(bad), now + OTHERS),
            "who was served is gone"
        );
        assert!(one.failed(Some(third), now), "two have seen it");
        one.eject(now);
        (0..20).for_each(|_| assert!(!one.failed(Some(bad), now), "and so on its return"));
        assert!(one.failed(None, now), "the relay has seen it too");
    }

    #[test]
    fn a_client_that_nobody_is_beside_ejects_alone() {
        let alone = IpAddr::from([10, 32, 0, 2]);
        let (now, mut one) = (Instant::now(), Backend::new(None));
        one.served(alone, now);
        (1..FAILURES).for_each(|_| assert!(!one.failed(Some(alone), now)));
        assert!(one.failed(Some(alone), now));
    }

    #[test]
    fn one_that_is_new_warms_up() {
        let start = Instant::now();
        let one = Backend::new(Some(start));
        assert!(one.chance(start) <= COLD);
        assert!((0.4..0.6).contains(&one.chance(start + WARM_UP / 2)));
        assert!(one.chance(start + WARM_UP) >= 1.0);
        assert!(Backend::new(None).chance(start) >= 1.0);
    }
}
