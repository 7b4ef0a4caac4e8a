//! What the relay's threads have in common: the routes, a word to stop, counters, and what they may have open.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize};

use arc_swap::ArcSwap;
use weave_linux::intercept::Name;

use super::routes::{Routes, Source};

/// Shared by all threads; everything in it is read or counted without waiting for anybody.
#[derive(Debug, Default)]
pub(super) struct Shared {
    pub(super) routes: ArcSwap<Routes>,
    /// Grows when routes of UDP changed, after they did.
    pub(super) moved: AtomicU64,
    pub(super) stop: AtomicBool,
    pub(super) counts: Counts,
    pub(super) budget: Budget,
    /// Chooses the ports of connections that are made in clients' names.
    pub(super) turn: AtomicU32,
}

/// What happened.
#[derive(Debug, Default)]
pub(super) struct Counts {
    /// Connections that are open.
    pub(super) open: AtomicUsize,
    /// Connections that were accepted.
    pub(super) accepted: AtomicU64,
    /// Connections that ended with a reset by the relay: no endpoint answered, or one of the sides broke.
    pub(super) reset: AtomicU64,
    /// How often connections had to wait because there were as many as there may be.
    pub(super) waits: AtomicU64,
    /// Sessions of UDP that are remembered.
    pub(super) sessions: AtomicUsize,
    /// Sessions that began.
    pub(super) begun: AtomicU64,
    /// Sessions that ended before their time to make room.
    pub(super) displaced: AtomicU64,
    /// Datagrams that came to nothing: no room for a session, no endpoint, or no room in a socket.
    pub(super) lost: AtomicU64,
}

/// How many descriptors the threads have, of those that they may have together.
#[derive(Debug, Default)]
pub(super) struct Budget {
    most: usize,
    used: AtomicUsize,
}

impl Budget {
    pub(super) const fn new(most: usize) -> Self {
        Self {
            most,
            used: AtomicUsize::new(0),
        }
    }

    /// Takes so many, or none.
    pub(super) fn take(&self, count: usize) -> bool {
        let rest = |used: usize| Some(used + count).filter(|used| *used <= self.most);
        self.used.fetch_update(Relaxed, Relaxed, rest).is_ok()
    }

    /// Gives back what was taken.
    pub(super) fn give(&self, count: usize) {
        self.used.fetch_sub(count, Relaxed);
    }
}

/// In whose name an endpoint is asked.
pub(super) const fn name(source: Source) -> Name {
    match source {
        Source::Host => Name::Host,
        // No device has the node's own address: the kernel engine gives it to packets as they leave.
        Source::Own(from) | Source::Client(from) => Name::Foreign(from),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Threads that take and give in every way never have more than there is together, and in the end nothing is taken.
    #[test]
    fn threads_together_never_have_more_than_the_budget() {
        const MOST: usize = 7;
        let (budget, held) = (Budget::new(MOST), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for thread in 1..=4 {
                let (budget, held) = (&budget, &held);
                scope.spawn(move || {
                    for turn in 0..20_000 {
                        let count = 1 + (thread + turn) % 3;
                        if budget.take(count) {
                            let now = held.fetch_add(count, Relaxed) + count;
                            assert!(now <= MOST, "{now}");
                            held.fetch_sub(count, Relaxed);
                            budget.give(count);
                        }
                    }
                });
            }
        });
        assert!(budget.take(MOST) && !budget.take(1));
    }
}
