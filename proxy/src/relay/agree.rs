//! What the relay's threads agree on by atomics: everything here that one thread's word has to order for another.
//!
//! What else they share is a table that is never changed (`ArcSwap`), a balancer behind a lock, or a count that decides
//! nothing. This file needs nothing but atomics, so that a model checker can run it as it stands: `tests/models` has it
//! go through every order in which the threads' steps can fall, and through what each of them may see of the others'.

#[cfg(not(loom))]
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

#[cfg(loom)]
use loom::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use Ordering::{Acquire, Relaxed, Release};

/// How many descriptors the threads have, of those that they may have together.
#[derive(Debug, Default)]
pub(super) struct Budget {
    most: usize,
    used: AtomicUsize,
}

impl Budget {
    pub(super) fn new(most: usize) -> Self {
        Self {
            most,
            used: AtomicUsize::new(0),
        }
    }

    /// Takes so many and leaves so many for others, or takes none.
    pub(super) fn take(&self, count: usize, leave: usize) -> bool {
        let rest = |used: usize| Some(used + count).filter(|used| used + leave <= self.most);
        self.used.fetch_update(Relaxed, Relaxed, rest).is_ok()
    }

    /// Gives back what was taken.
    pub(super) fn give(&self, count: usize) {
        self.used.fetch_sub(count, Relaxed);
    }
}

/// Tells the threads that what they remember was made of something that has been replaced.
#[derive(Debug, Default)]
pub(super) struct News(AtomicU64);

impl News {
    /// To be called when what replaces it can be found.
    pub(super) fn tell(&self) {
        self.0.fetch_add(1, Release);
    }

    /// Whether there is news since it was `heard` of last. Whoever looks afterwards finds what was told of; whoever
    /// looked before may have to be told again.
    pub(super) fn is_new(&self, heard: &mut u64) -> bool {
        let now = self.0.load(Acquire);
        std::mem::replace(heard, now) != now
    }
}

/// The connections that are open, and whether all are known: a connection is the relay's as soon as the kernel has it in
/// a listener's queue, where nobody has counted it yet.
#[derive(Debug, Default)]
pub(super) struct Open {
    count: AtomicUsize,
    /// Grows with each time that it is asked whether all queues are empty.
    asked: AtomicU64,
    /// What each thread has answered last.
    answered: Box<[AtomicU64]>,
}

impl Open {
    pub(super) fn new(threads: usize) -> Self {
        Self {
            count: AtomicUsize::new(0),
            asked: AtomicU64::new(0),
            answered: (0..threads).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    /// One more; by the thread that took it out of the queue, before it answers anything.
    pub(super) fn begin(&self) {
        self.count.fetch_add(1, Relaxed);
    }

    /// One less; when nothing is left to do for it.
    pub(super) fn end(&self) {
        self.count.fetch_sub(1, Release);
    }

    /// How many there are, as far as they have been counted.
    pub(super) fn count(&self) -> usize {
        self.count.load(Acquire)
    }

    /// Asks the threads to empty their queues, into which nothing more comes; what to ask [`Open::is_over`] with.
    pub(super) fn ask(&self) -> u64 {
        self.asked.fetch_add(1, Release) + 1
    }

    /// What a thread is asked that has `answered` this last, if it is anything else. It has to look into its queues after
    /// this.
    pub(super) fn asks(&self, answered: u64) -> Option<u64> {
        let asked = self.asked.load(Acquire);
        (asked != answered).then_some(asked)
    }

    /// A thread has found its queues empty, and counted what was in them.
    pub(super) fn answer(&self, thread: usize, asked: u64) {
        if let Some(answered) = self.answered.get(thread) {
            answered.store(asked, Release);
        }
    }

    /// Whether all threads have answered, and then whether nothing is open.
    pub(super) fn is_over(&self, asked: u64) -> bool {
        self.answered.iter().all(|one| one.load(Acquire) >= asked) && self.count() == 0
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    /// Threads that take and give in every way never have more than there is together, and in the end nothing is taken.
    #[test]
    fn threads_together_never_have_more_than_the_budget() {
        const MOST: usize = 7;
        const LEFT: usize = 2;
        let leaving = AtomicUsize::new(0);
        let (budget, held) = (Budget::new(MOST), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for thread in 1..=4 {
                let (budget, held, leaving) = (&budget, &held, &leaving);
                scope.spawn(move || {
                    for turn in 0..20_000 {
                        let count = 1 + (thread + turn) % 3;
                        let leave = if count == 1 { 0 } else { LEFT };
                        if budget.take(count, leave) {
                            let now = held.fetch_add(count, Relaxed) + count;
                            assert!(now <= MOST, "{now}");
                            let share = if leave == 0 { 0 } else { count };
                            let now = leaving.fetch_add(share, Relaxed) + share;
                            assert!(now + leave <= MOST, "{now}");
                            leaving.fetch_sub(share, Relaxed);
                            held.fetch_sub(count, Relaxed);
                            budget.give(count);
                        }
                    }
                });
            }
        });
        assert!(!budget.take(MOST, 1) && budget.take(MOST, 0) && !budget.take(1, 0));
    }

    #[test]
    fn it_is_over_when_all_threads_have_answered_and_nothing_is_open() {
        let open = Open::new(2);
        let asked = open.ask();
        open.begin();
        for thread in 0..2 {
            assert!(!open.is_over(asked));
            assert_eq!(open.asks(0), Some(asked));
            open.answer(thread, asked);
        }
        assert!(!open.is_over(asked));
        open.end();
        assert!(open.is_over(asked));
        assert_eq!(open.asks(asked), None);
        assert!(!open.is_over(open.ask()), "asked again, they answer again");
    }
}
