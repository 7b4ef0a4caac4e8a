//! What happens to a cluster, and when: made from a seed, or cut down from another story.
//!
//! A seed also says which kinds of trouble a story has at all. A story of everything is too even: a fault that needs
//! three crashes within one partition comes up when crashes and partitions are most of what happens.

use std::fmt;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{RngExt, SeedableRng};

use crate::lies::Lie;
use crate::net::Crash;

/// A story: so many nodes, of which the first makes the cluster, and what happens to them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Story {
    /// Decides what the network does, too.
    pub seed: u64,
    /// How many nodes there are at first.
    pub nodes: usize,
    /// The cluster's IPv4 range.
    pub range: &'static str,
    /// How long it lasts, without the time in which all is to come right again.
    pub time: Duration,
    /// By time; each with its place in the first, whole story.
    pub acts: Vec<(usize, Duration, Act)>,
}

/// Something that happens. Nodes are named by their places; what cannot be done when its time comes is left out.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Act {
    /// A node joins the cluster.
    Join(usize),
    /// Containers start on a node, so many.
    Attach(usize, u8),
    /// The oldest containers of a node end, so many.
    Detach(usize, u8),
    /// A node crashes, and starts again after a while.
    Crash(usize, Crash, Duration),
    /// A node crashes, its disk is put back to an older copy, and it starts again.
    RollBack(usize, u8),
    /// A node's disk is started a second time, elsewhere, for a while.
    Clone(usize, Duration),
    /// One node does not hear another, for a while.
    Deaf(usize, usize, Duration),
    /// Two nodes do not hear each other, for a while.
    Apart(usize, usize, Duration),
    /// The nodes whose bit is set and the others do not hear each other, for a while.
    Split(u64, Duration),
    /// Loss and doubles in percent, and the longest delay, from now on.
    Weather(u32, u32, Duration),
    /// All that a node sends and saves takes longer, for a while.
    Slow(usize, Duration, Duration),
    /// A node does nothing at all, for a while.
    Freeze(usize, Duration),
    /// A node's wall clock jumps by so many seconds.
    Clock(usize, i64),
    /// A node's disk is full, for a while.
    Full(usize, Duration),
    /// The first node removes another.
    Remove(usize),
    /// A node leaves.
    Leave(usize),
    /// The first node gives the cluster another secret.
    Rotate,
    /// A member says something untrue to another.
    Lie(usize, usize, Lie),
    /// Somebody on the wire sends again what one node sent to another, around the edges of the window.
    Replay(usize, usize),
}

/// A kind of act, for a story to have or not.
#[derive(Clone, Copy)]
enum Kind {
    Crash,
    RollBack,
    Clone,
    Cut,
    Weather,
    Slow,
    Clock,
    Full,
    Membership,
    Lie,
    Replay,
}

const KINDS: [Kind; 11] = [
    Kind::Crash,
    Kind::RollBack,
    Kind::Clone,
    Kind::Cut,
    Kind::Weather,
    Kind::Slow,
    Kind::Clock,
    Kind::Full,
    Kind::Membership,
    Kind::Lie,
    Kind::Replay,
];

/// The longest pause between two acts.
const LONGEST_PAUSE: u64 = 60;

impl Story {
    /// A story from a seed.
    pub fn new(seed: u64, nodes: usize, time: Duration) -> Self {
        let mut rng = StdRng::seed_from_u64(seed ^ 0x5709_57ab);
        let range = ["10.32.0.0/20", "10.32.0.0/16", "10.32.0.0/12"];
        let range = range.choose(&mut rng).copied().unwrap_or("10.32.0.0/16");
        let mut acts: Vec<(Duration, Act)> = Vec::new();
        for n in 1..nodes {
            let early = rng.random_range(0..90_000);
            let late = rng.random_range(0..time.as_millis() as u64);
            let at = if rng.random_bool(0.85) { early } else { late };
            acts.push((Duration::from_millis(at), Act::Join(n)));
        }
        let troubles = rng.random_range(2..=5);
        let mut kinds: Vec<Kind> = KINDS.sample(&mut rng, troubles).copied().collect();
        // To a node whose disk was put back and whose clock is behind nobody speaks before its clock is right: what it
        // says cannot be told from what somebody kept.
        if kinds
            .iter()
            .any(|kind| matches!(kind, Kind::RollBack | Kind::Clone))
        {
            kinds.retain(|kind| !matches!(kind, Kind::Clock));
        }
        let mut at = Duration::from_secs(5);
        while at < time {
            acts.push((at, act(&mut rng, nodes, &kinds)));
            // Some things happen one upon the other, most do not.
            let pause = match rng.random_range(0..4) {
                0 => rng.random_range(1..500),
                _ => rng.random_range(500..LONGEST_PAUSE * 1000),
            };
            at += Duration::from_millis(pause);
        }
        let clocks = kinds.iter().any(|kind| matches!(kind, Kind::Clock));
        if !clocks {
            acts.extend(rotation(seed, time));
        }
        acts.sort_by_key(|(at, _)| *at);
        let numbered = acts.into_iter().enumerate();
        Self {
            seed,
            nodes,
            range,
            time,
            acts: numbered.map(|(n, (at, act))| (n, at, act)).collect(),
        }
    }

    /// The same, and all the time nodes leave, are removed, and join, as where a cluster grows and shrinks by itself. Drawn
    /// apart, so that the rest of the story is what it was.
    #[must_use]
    pub fn with_coming_and_going(mut self) -> Self {
        let mut rng = StdRng::seed_from_u64(self.seed ^ 0xc0e5_f70e);
        let acts = self.acts.into_iter().map(|(_, at, act)| (at, act));
        let mut acts: Vec<(Duration, Act)> = acts.collect();
        let mut at = Duration::from_secs(100);
        while at < self.time {
            let n = rng.random_range(1..self.nodes);
            acts.push(match rng.random_range(0..8) {
                0 => (at, Act::Remove(n)),
                _ => (at, Act::Leave(n)),
            });
            // The second one for whom was removed, or was not let go.
            for _ in 0..2 {
                at += Duration::from_millis(rng.random_range(1_000..25_000));
                acts.push((at, Act::Join(n)));
            }
        }
        acts.sort_by_key(|(at, _)| *at);
        let numbered = acts.into_iter().enumerate();
        self.acts = numbered.map(|(n, (at, act))| (n, at, act)).collect();
        self
    }

    /// The same with the acts at these places only.
    #[must_use]
    pub fn only(mut self, places: &[usize]) -> Self {
        self.acts.retain(|(place, ..)| places.contains(place));
        self
    }
}

/// In one story of three the cluster gets another secret. It is drawn apart, so that the rest of a story is what its
/// seed meant before. Not where clocks are wrong: how long the secret before is good goes by the clock.
fn rotation(seed: u64, time: Duration) -> Option<(Duration, Act)> {
    let mut rng = StdRng::seed_from_u64(seed ^ 0x5ec2_e700);
    let at = Duration::from_millis(rng.random_range(0..time.as_millis() as u64));
    rng.random_ratio(1, 3).then_some((at, Act::Rotate))
}

fn act(rng: &mut StdRng, nodes: usize, kinds: &[Kind]) -> Act {
    let n = rng.random_range(0..nodes);
    let other = (n + rng.random_range(1..nodes)) % nodes;
    if kinds.is_empty() || rng.random_bool(0.35) {
        let count = rng.random_range(1..=12);
        return match rng.random_range(0..10) {
            0..3 => Act::Detach(n, count),
            3 => Act::Attach(n, rng.random_range(50..=255)),
            _ => Act::Attach(n, count),
        };
    }
    match kinds.choose(rng) {
        Some(Kind::Crash) => Act::Crash(n, crash(rng), a_while(rng)),
        Some(Kind::RollBack) => Act::RollBack(n, rng.random_range(1..6)),
        Some(Kind::Clone) => Act::Clone(n, a_while(rng)),
        Some(Kind::Cut) => cut(rng, n, other),
        Some(Kind::Weather) => weather(rng),
        Some(Kind::Slow) if rng.random_bool(0.5) => Act::Freeze(n, a_while(rng)),
        Some(Kind::Slow) => Act::Slow(
            n,
            Duration::from_millis(rng.random_range(10..600)),
            a_while(rng),
        ),
        Some(Kind::Clock) => {
            let jumps = [-86_400, -3600, -61, -1, 1, 59, 3600, 86_400];
            Act::Clock(n, jumps.choose(rng).copied().unwrap_or(1))
        }
        Some(Kind::Full) => Act::Full(n, a_while(rng)),
        Some(Kind::Membership) => match rng.random_range(0..8) {
            0 => Act::Remove(1.max(n)),
            1 => Act::Leave(1.max(n)),
            _ => Act::Join(1.max(n)),
        },
        Some(Kind::Lie) => Act::Lie(nodes - 1, other.min(nodes - 2), Lie::any(rng)),
        Some(Kind::Replay) => Act::Replay(n, other),
        None => Act::Attach(n, 1),
    }
}

fn crash(rng: &mut StdRng) -> Crash {
    match rng.random_range(0..7) {
        0 => Crash::Unsaved,
        1 => Crash::Torn,
        2 => Crash::Saved,
        3 => Crash::Sent(0),
        4 => Crash::Sent(rng.random_range(1..4)),
        _ => Crash::Now,
    }
}

fn cut(rng: &mut StdRng, n: usize, other: usize) -> Act {
    match rng.random_range(0..4) {
        0 => Act::Deaf(n, other, a_while(rng)),
        1 => Act::Apart(n, other, a_while(rng)),
        _ => Act::Split(rng.random(), a_while(rng)),
    }
}

fn weather(rng: &mut StdRng) -> Act {
    if rng.random_bool(0.4) {
        return Act::Weather(0, 0, Duration::from_millis(3));
    }
    let delay = Duration::from_millis(rng.random_range(2..200));
    Act::Weather(rng.random_range(0..35), rng.random_range(0..20), delay)
}

/// Mostly short, sometimes minutes.
fn a_while(rng: &mut StdRng) -> Duration {
    let most = [100, 2_000, 20_000, 300_000];
    let most = most.choose(rng).copied().unwrap_or(2_000);
    Duration::from_millis(rng.random_range(1..most))
}

impl fmt::Display for Act {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = |n: &usize| format!("host{}", n + 1);
        match self {
            Self::Join(n) => write!(f, "{} joins", host(n)),
            Self::Attach(n, count) => write!(f, "{count} containers start on {}", host(n)),
            Self::Detach(n, count) => write!(f, "{count} containers end on {}", host(n)),
            Self::Crash(n, Crash::Now, down) => {
                write!(f, "{} crashes and is down for {down:?}", host(n))
            }
            Self::Crash(n, Crash::Sent(most), down) => write!(
                f,
                "{} crashes when it has saved next and sent {most} datagrams, and is down for {down:?}",
                host(n)
            ),
            Self::Crash(n, at, down) => {
                let at = match at {
                    Crash::Unsaved => "before its next save",
                    Crash::Torn => "in its next save, which tears the slot",
                    _ => "when its next save is on disk, before it knows",
                };
                write!(f, "{} crashes {at}, and is down for {down:?}", host(n))
            }
            Self::RollBack(n, by) => {
                write!(f, "{} is put back by {by} saves and starts again", host(n))
            }
            Self::Clone(n, time) => {
                write!(f, "{} is started a second time, for {time:?}", host(n))
            }
            Self::Deaf(n, of, time) => {
                write!(f, "{} does not hear {} for {time:?}", host(n), host(of))
            }
            Self::Apart(n, of, time) => {
                write!(f, "{} and {} are cut for {time:?}", host(n), host(of))
            }
            Self::Split(half, time) => write!(f, "the nodes are split by {half:b} for {time:?}"),
            Self::Weather(loss, doubled, delay) => write!(
                f,
                "{loss} % is lost and {doubled} % doubled, the delay is up to {delay:?}"
            ),
            Self::Slow(n, by, time) => write!(f, "{} is slower by {by:?} for {time:?}", host(n)),
            Self::Freeze(n, time) => write!(f, "{} stands still for {time:?}", host(n)),
            Self::Clock(n, by) => write!(f, "the clock of {} jumps by {by} s", host(n)),
            Self::Full(n, time) => write!(f, "the disk of {} is full for {time:?}", host(n)),
            Self::Remove(n) => write!(f, "host1 removes {}", host(n)),
            Self::Leave(n) => write!(f, "{} leaves", host(n)),
            Self::Rotate => write!(f, "host1 gives the cluster another secret"),
            Self::Lie(n, to, lie) => write!(f, "{} says to {}: {lie}", host(n), host(to)),
            Self::Replay(n, to) => {
                write!(f, "what {} sent to {} is sent again", host(n), host(to))
            }
        }
    }
}

impl fmt::Display for Story {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "seed {}, {} nodes, range {}, {:?}",
            self.seed, self.nodes, self.range, self.time
        )?;
        for (place, at, act) in &self.acts {
            let ms = at.as_millis();
            let clock = format!(
                "{:02}:{:02}:{:02}.{:03}",
                ms / 3_600_000,
                ms / 60_000 % 60,
                ms / 1000 % 60,
                ms % 1000
            );
            writeln!(f, "  {clock} [{place}] {act}")?;
        }
        Ok(())
    }
}
