//! Which counters were seen: a sliding window of 8,192, as wide as reordering gets at 10 Gbit/s.
//!
//! RFC 6479's idea: a ring of words, in which moving forward clears whole words instead of shifting bits. The ring has
//! one word more than the window, so that the word being entered never overlaps the oldest one still in use.

#![deny(clippy::disallowed_methods)]

use weave_model::Drop;

const WORDS: usize = 129;

/// The counters accepted so far on one lane of a session.
///
/// Two steps, since a forged packet must not move the window: [`ReplayWindow::check`] before the packet is opened,
/// [`ReplayWindow::commit`] after it proved authentic.
#[derive(Clone, Debug)]
pub struct ReplayWindow {
    /// The lowest counter that is too high for every packet accepted so far: the newest plus one, or 0.
    next: u64,
    /// Counters from here on are beyond what the keys may seal.
    limit: u64,
    words: [u64; WORDS],
}

impl ReplayWindow {
    /// How far behind the newest counter a packet may still arrive.
    pub const SIZE: u64 = 8192;

    /// An empty window that refuses counters from `limit` on.
    pub const fn new(limit: u64) -> Self {
        Self {
            next: 0,
            limit,
            words: [0; WORDS],
        }
    }

    /// One past the newest counter; 0 before the first packet.
    pub const fn next(&self) -> u64 {
        self.next
    }

    /// Whether a packet with this counter would be accepted if it is authentic.
    ///
    /// # Errors
    /// [`Drop::Replay`] if it was seen or lies behind the window, [`Drop::Expired`] from the limit on.
    #[inline]
    pub const fn check(&self, counter: u64) -> Result<(), Drop> {
        if counter >= self.limit {
            return Err(Drop::Expired);
        }
        if counter >= self.next {
            return Ok(());
        }
        if self.next - counter > Self::SIZE {
            return Err(Drop::Replay);
        }
        let (word, bit) = place(counter);
        if self.words[word] & bit == 0 {
            Ok(())
        } else {
            Err(Drop::Replay)
        }
    }

    /// Marks a counter that [`ReplayWindow::check`] passed as seen. Returns whether it is the newest so far.
    #[inline]
    pub fn commit(&mut self, counter: u64) -> bool {
        let newest = counter >= self.next;
        if newest {
            self.advance(counter);
        }
        let (word, bit) = place(counter);
        self.words[word] |= bit;
        newest
    }

    fn advance(&mut self, counter: u64) {
        let entered = counter / 64;
        // The words after the one that holds the newest counter so far; all of them after a jump.
        let fresh = self
            .next
            .div_ceil(64)
            .max(entered.saturating_sub(WORDS as u64 - 1));
        for word in fresh..=entered {
            self.words[(word % WORDS as u64) as usize] = 0;
        }
        self.next = counter + 1;
    }
}

#[inline]
const fn place(counter: u64) -> (usize, u64) {
    ((counter / 64 % WORDS as u64) as usize, 1 << (counter % 64))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// The same by a set of everything that was seen.
    #[derive(Default)]
    struct Model {
        seen: BTreeSet<u64>,
    }

    impl Model {
        fn accepts(&self, counter: u64, limit: u64) -> Result<(), Drop> {
            let behind = self
                .seen
                .last()
                .is_some_and(|newest| counter + ReplayWindow::SIZE <= *newest);
            match counter {
                _ if counter >= limit => Err(Drop::Expired),
                _ if behind || self.seen.contains(&counter) => Err(Drop::Replay),
                _ => Ok(()),
            }
        }
    }

    fn agree(counters: impl IntoIterator<Item = u64>, limit: u64) {
        let (mut window, mut model) = (ReplayWindow::new(limit), Model::default());
        for counter in counters {
            let verdict = model.accepts(counter, limit);
            assert_eq!(window.check(counter), verdict, "counter {counter}");
            if verdict.is_ok() {
                let newest = model.seen.last().is_none_or(|newest| counter > *newest);
                assert_eq!(window.commit(counter), newest);
                model.seen.insert(counter);
                assert_eq!(window.next(), model.seen.last().unwrap() + 1);
            }
        }
    }

    /// Steps back and forth, mostly near the newest, sometimes far: the walk of a reordering link.
    fn walk() -> impl Strategy<Value = Vec<u64>> {
        let step = prop_oneof![
            6 => -20i64..30,
            2 => -9000i64..9000,
            1 => prop::sample::select(vec![-8193i64, -8192, -8191, 63, 64, 65, 8191, 8192, 8256, 100_000]),
        ];
        prop::collection::vec(step, 1..400).prop_map(|steps| {
            let mut newest = 0i64;
            let at = steps.into_iter().map(|step| {
                let counter = (newest + step).max(0);
                newest = newest.max(counter);
                counter as u64
            });
            at.collect()
        })
    }

    proptest! {
        #[test]
        fn the_window_is_the_set(counters in walk()) {
            agree(counters, u64::MAX);
        }

        #[test]
        fn the_limit_is_kept(counters in walk(), limit in 0..20_000u64) {
            agree(counters, limit);
        }

        /// The same walk near the largest counters there are.
        #[test]
        fn large_counters_are_no_different(counters in walk()) {
            let base = (1 << 60) - 9_000_000;
            agree(counters.into_iter().map(|counter| base + counter), 1 << 60);
        }
    }

    #[test]
    fn all_of_the_window_is_usable() {
        let size = ReplayWindow::SIZE;
        for newest in [size - 1, size, size + 63, 3 * size + 17] {
            agree(
                std::iter::once(newest)
                    .chain((0..=newest).rev())
                    .chain(0..=newest + 1),
                u64::MAX,
            );
        }
    }
}
