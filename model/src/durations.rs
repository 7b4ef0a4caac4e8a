//! How long something took, many times: counts in fixed buckets, which Prometheus adds up over nodes.

use std::time::Duration;

/// The longest that each bucket holds but the last, which holds the rest. From what a batch of rules takes to the patience
/// of a container runtime.
pub const BOUNDS: [Duration; 14] = [
    Duration::from_micros(500),
    Duration::from_millis(1),
    Duration::from_micros(2500),
    Duration::from_millis(5),
    Duration::from_millis(10),
    Duration::from_millis(25),
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(250),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_millis(2500),
    Duration::from_secs(5),
    Duration::from_secs(10),
];

/// A histogram of durations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Durations {
    /// How many fell into each bucket and no smaller one.
    counts: [u64; BOUNDS.len() + 1],
    sum: Duration,
}

impl Durations {
    /// Counts one.
    pub fn add(&mut self, took: Duration) {
        let bucket = BOUNDS.partition_point(|bound| *bound < took);
        self.counts[bucket] += 1;
        self.sum = self.sum.saturating_add(took);
    }

    /// Each bound, and how many took no longer than that.
    pub fn buckets(&self) -> impl Iterator<Item = (Duration, u64)> {
        let mut below = 0;
        BOUNDS
            .into_iter()
            .zip(self.counts)
            .map(move |(bound, count)| {
                below += count;
                (bound, below)
            })
    }

    /// How many there were.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// What all took together.
    pub const fn sum(&self) -> Duration {
        self.sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_in_its_bucket_and_all_larger_ones() {
        let mut all = Durations::default();
        let times = [0, 500, 501, 700_000, 60_000_000];
        for micros in times {
            all.add(Duration::from_micros(micros));
        }
        let below = |micros| {
            let bound = Duration::from_micros(micros);
            let mut buckets = all.buckets();
            buckets.find(|(at, _)| *at == bound).map(|(_, count)| count)
        };
        assert_eq!(below(500), Some(2), "a bound belongs to its bucket");
        assert_eq!(below(1000), Some(3));
        assert_eq!(below(500_000), Some(3));
        assert_eq!(below(10_000_000), Some(4));
        assert_eq!((all.count(), all.sum().as_micros()), (5, 60_701_001));
    }
}
