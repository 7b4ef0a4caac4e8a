//! Time as an argument: pure code never reads a clock, it is told.

use std::time::{Duration, Instant};

/// One reading of both clocks, taken by the shell before it calls into pure code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// The monotonic clock: every timer and every interval.
    pub mono: Instant,
    /// The wall clock, since the Unix epoch: only for stamps that must grow across restarts and for what people read.
    pub wall: Duration,
}

impl Now {
    /// The same reading, later by `step` on both clocks.
    pub fn after(self, step: Duration) -> Self {
        Self {
            mono: self.mono + step,
            wall: self.wall + step,
        }
    }
}

/// The instant from which the milliseconds of the data path's atomics are counted.
///
/// One per process, taken at start; 64 bits of milliseconds do not wrap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Start(Instant);

impl Start {
    /// Counts from `instant`.
    pub const fn at(instant: Instant) -> Self {
        Self(instant)
    }

    /// Milliseconds from the start to `mono`; 0 for anything before it.
    pub fn millis(self, mono: Instant) -> u64 {
        u64::try_from(mono.saturating_duration_since(self.0).as_millis()).unwrap_or(u64::MAX)
    }

    /// The instant that a count of milliseconds names.
    pub fn instant(self, millis: u64) -> Instant {
        self.0 + Duration::from_millis(millis)
    }
}
