//! The last quarter of an hour, as pictures that were already rendered.
//!
//! Bounded by time and by bytes: one picture each [`EVERY`] seconds, none older than [`KEPT`], and never more than
//! [`MAX_BYTES`]; in a large mesh the past is shorter, not the memory larger.

use std::collections::VecDeque;
use std::sync::Arc;

/// Seconds between two pictures that are kept.
pub(crate) const EVERY: u64 = 5;

/// How many seconds a picture is kept.
pub(crate) const KEPT: u64 = 900;

/// The most bytes of all pictures.
pub(crate) const MAX_BYTES: usize = 8 << 20;

/// Pictures by the second when they were made.
#[derive(Debug, Default)]
pub(crate) struct History {
    pictures: VecDeque<(u64, Arc<str>)>,
    bytes: usize,
}

impl History {
    /// Whether a picture made at this second is due to be kept.
    pub(crate) fn is_due(&self, at: u64) -> bool {
        self.pictures
            .back()
            .is_none_or(|(last, _)| at >= last + EVERY)
    }

    /// Keeps a picture, and forgets what is too old or too much.
    pub(crate) fn keep(&mut self, at: u64, picture: Arc<str>) {
        self.bytes += picture.len();
        self.pictures.push_back((at, picture));
        while let Some((oldest, picture)) = self.pictures.front() {
            if oldest + KEPT >= at && self.bytes <= MAX_BYTES {
                break;
            }
            self.bytes -= picture.len();
            self.pictures.pop_front();
        }
    }

    /// When the kept pictures were made, ascending.
    pub(crate) fn times(&self) -> Vec<u64> {
        self.pictures.iter().map(|(at, _)| *at).collect()
    }

    /// The picture made at this second.
    pub(crate) fn at(&self, at: u64) -> Option<Arc<str>> {
        let place = self
            .pictures
            .binary_search_by_key(&at, |(at, _)| *at)
            .ok()?;
        Some(Arc::clone(&self.pictures.get(place)?.1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_and_bytes_are_bounded() {
        let mut history = History::default();
        for at in 0..2000 {
            if history.is_due(at) {
                history.keep(at, "picture".into());
            }
        }
        let times = history.times();
        assert_eq!((times.first(), times.last()), (Some(&1095), Some(&1995)));
        assert!(history.at(1100).is_some() && history.at(1101).is_none());
        let large: Arc<str> = "x".repeat(MAX_BYTES / 3).into();
        for at in 2000..2010 {
            history.keep(at, Arc::clone(&large));
        }
        assert_eq!(history.times(), [2007, 2008, 2009]);
    }
}
