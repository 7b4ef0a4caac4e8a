//! What is known of one way to a peer: how long it takes, and how much is lost on it.

use std::time::{Duration, Instant};

use crate::way::Way;

/// A ping that is not answered by then is lost.
const LOST_AFTER: Duration = Duration::from_secs(1);
/// How many pings may be on their way. Answers to older ones are not waited for.
const MOST: usize = 16;
/// What a thousandth lost weighs beside the time, in microseconds: one percent is as bad as 20 ms.
const LOSS_WEIGHT: u64 = 2000;
/// How much better another way has to be before it is taken, beside being twice as good.
const MARGIN: u64 = 20_000;

/// See the module.
#[derive(Debug)]
pub(super) struct Measure {
    pub(super) way: Way,
    sent: Vec<(u64, Instant)>,
    rtt: Option<Duration>,
    /// Of a thousand pings, smoothed like the time.
    loss: u16,
    /// How many pings were answered or lost.
    samples: u32,
    /// When the last answer came.
    pub(super) answered: Option<Instant>,
    /// How many were answered one after another.
    pub(super) successes: u32,
}

impl Measure {
    pub(super) const fn new(way: Way) -> Self {
        Self {
            way,
            sent: Vec::new(),
            rtt: None,
            loss: 0,
            samples: 0,
            answered: None,
            successes: 0,
        }
    }

    /// A ping was sent.
    pub(super) fn sent(&mut self, id: u64, now: Instant) {
        self.expire(now);
        if self.sent.len() == MOST {
            self.sent.remove(0);
        }
        self.sent.push((id, now));
    }

    /// Gives up the pings that should have been answered by now.
    fn expire(&mut self, now: Instant) {
        let before = self.sent.len();
        let wait = LOST_AFTER.max(self.rtt.unwrap_or_default() * 2);
        self.sent
            .retain(|(_, at)| now.saturating_duration_since(*at) < wait);
        for _ in self.sent.len()..before {
            self.sample(1000);
            self.successes = 0;
        }
    }

    /// An answer came; `true` if it answers a ping of this way.
    pub(super) fn pong(&mut self, id: u64, now: Instant) -> bool {
        let Some(at) = self.sent.iter().position(|(sent, _)| *sent == id) else {
            return false;
        };
        let (_, sent) = self.sent.remove(at);
        let took = now.saturating_duration_since(sent);
        self.rtt = Some(self.rtt.map_or(took, |rtt| (rtt * 7 + took) / 8));
        self.sample(0);
        self.answered = Some(now);
        self.successes += 1;
        true
    }

    fn sample(&mut self, lost: u16) {
        self.loss = ((u32::from(self.loss) * 7 + u32::from(lost)) / 8) as u16;
        self.samples = self.samples.saturating_add(1);
    }

    /// Forgets how much was lost: the way has come back.
    pub(super) const fn forgive(&mut self) {
        self.loss = 0;
    }

    /// The smoothed round-trip time (RFC 6298 section 2, alpha 1/8).
    pub(super) const fn rtt(&self) -> Option<Duration> {
        self.rtt
    }

    /// Of a thousand pings, how many are lost.
    pub(super) const fn loss(&self) -> u16 {
        self.loss
    }

    /// Whether it answered after `since`.
    pub(super) fn answered_since(&self, since: Instant) -> bool {
        self.answered.is_some_and(|at| at >= since)
    }

    /// The less, the better; in microseconds. Nothing is known before the first answer.
    pub(super) fn score(&self) -> Option<u64> {
        let rtt = u64::try_from(self.rtt?.as_micros()).unwrap_or(u64::MAX);
        Some(rtt.saturating_add(u64::from(self.loss) * LOSS_WEIGHT))
    }

    /// Whether enough is known of this way to take it instead of `other`, which works, and whether it is worth it.
    pub(super) fn beats(&self, other: &Self) -> bool {
        self.samples >= 4
            && self
                .score()
                .zip(other.score())
                .is_some_and(|(mine, other)| mine.saturating_mul(2).saturating_add(MARGIN) < other)
    }
}
