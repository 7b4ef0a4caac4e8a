//! Debug bookkeeping: every counter that a key has sealed, kept as disjoint runs because counters are nearly contiguous.

use std::collections::BTreeMap;

/// A set of counters.
#[derive(Debug, Default)]
pub(super) struct Spent {
    /// First counter of a run to one past its last; runs neither touch nor overlap.
    runs: BTreeMap<u64, u64>,
}

impl Spent {
    /// Adds a counter; `false` if it was in the set.
    pub(super) fn insert(&mut self, counter: u64) -> bool {
        let before = self
            .runs
            .range(..=counter)
            .next_back()
            .map(|(&first, &end)| (first, end));
        let mut first = counter;
        if let Some((start, end)) = before {
            if counter < end {
                return false;
            }
            if counter == end {
                first = start;
            }
        }
        let end = self.runs.remove(&(counter + 1)).unwrap_or(counter + 1);
        self.runs.insert(first, end);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_join_and_repeats_show() {
        let mut spent = Spent::default();
        for counter in [5, 7, 6, 0, 100] {
            assert!(spent.insert(counter));
        }
        assert_eq!(spent.runs, BTreeMap::from([(0, 1), (5, 8), (100, 101)]));
        for counter in [0, 5, 6, 7, 100] {
            assert!(!spent.insert(counter));
        }
    }
}
