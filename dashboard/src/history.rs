//! The last quarter of an hour, as pictures that were already rendered, compressed.
//!
//! Bounded by time and by bytes: one picture each [`EVERY`] seconds, none older than [`KEPT`], and never more than
//! [`MAX_BYTES`]; in a very large mesh pictures lie further apart the older they are, and the past is as long as in a small
//! one. A picture says much the same of many things, so compressed it takes a tenth or less.

use std::collections::VecDeque;
use std::io::{Read as _, Write as _};

use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use hyper::body::Bytes;

/// Seconds between two pictures that are kept.
pub(crate) const EVERY: u64 = 5;

/// How many seconds a picture is kept.
pub(crate) const KEPT: u64 = 900;

/// The most bytes of all pictures.
pub(crate) const MAX_BYTES: usize = 8 << 20;

/// Pictures by the second when they were made.
#[derive(Debug, Default)]
pub(crate) struct History {
    pictures: VecDeque<(u64, Bytes)>,
    bytes: usize,
}

impl History {
    /// Whether a picture made at this second is due to be kept.
    pub(crate) fn is_due(&self, at: u64) -> bool {
        self.pictures
            .back()
            .is_none_or(|(last, _)| at >= last + EVERY || at < *last)
    }

    /// Keeps a picture, and forgets what is too old or too much.
    pub(crate) fn keep(&mut self, at: u64, picture: &str) {
        let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
        let written = packed.write_all(picture.as_bytes());
        let Ok(picture) = written.and_then(|()| packed.finish()).map(Bytes::from) else {
            return;
        };
        // The clock was set back: what was made after this is of another time.
        while self.pictures.back().is_some_and(|(last, _)| *last >= at) {
            let (_, later) = self.pictures.pop_back().unwrap_or_default();
            self.bytes -= later.len();
        }
        self.bytes += picture.len();
        self.pictures.push_back((at, picture));
        while self
            .pictures
            .front()
            .is_some_and(|(oldest, _)| oldest + KEPT < at)
        {
            self.forget(0);
        }
        while self.bytes > MAX_BYTES {
            self.forget(self.least_missed(at));
        }
    }

    fn forget(&mut self, place: usize) {
        let forgotten = self.pictures.remove(place);
        self.bytes -= forgotten.map_or(0, |(_, picture)| picture.len());
    }

    /// The picture without which the gap between its neighbours is smallest, measured by how long ago that is; the oldest
    /// where there is none between two others.
    fn least_missed(&self, now: u64) -> usize {
        let time = |place: usize| self.pictures.get(place).map_or(now, |(at, _)| *at);
        let gap = |place: &usize| {
            let (before, after) = (time(place - 1), time(place + 1));
            (after - before) * KEPT / (now - before).max(1)
        };
        let between = 1..self.pictures.len().saturating_sub(1);
        between.min_by_key(gap).unwrap_or(0)
    }

    /// When the kept pictures were made, ascending.
    pub(crate) fn times(&self) -> Vec<u64> {
        self.pictures.iter().map(|(at, _)| *at).collect()
    }

    /// The picture made at this second or nearest to it, in the form of gzip: whoever asks chose among those that were kept a
    /// moment ago.
    pub(crate) fn nearest(&self, at: u64) -> Option<Bytes> {
        let distance = |(made, _): &&(u64, Bytes)| made.abs_diff(at);
        let (_, picture) = self.pictures.iter().min_by_key(distance)?;
        Some(picture.clone())
    }
}

/// A picture as it was before it was kept, for whom cannot unpack it.
pub(crate) fn unpacked(picture: &[u8]) -> Option<String> {
    let mut text = String::new();
    let read = GzDecoder::new(picture).read_to_string(&mut text);
    read.is_ok().then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_set_back_begins_the_past_anew() {
        let mut history = History::default();
        for at in [1000, 1005, 1010, 1007] {
            assert!(history.is_due(at), "{at}");
            history.keep(at, "picture");
        }
        assert_eq!(history.times(), [1000, 1005, 1007]);
        history.keep(500, "picture");
        assert_eq!(history.times(), [500]);
        assert!(history.bytes < 100);
    }

    #[test]
    fn time_and_bytes_are_bounded() {
        let mut history = History::default();
        for at in 0..2000 {
            if history.is_due(at) {
                history.keep(at, &format!("picture {at}"));
            }
        }
        let times = history.times();
        assert_eq!((times.first(), times.last()), (Some(&1095), Some(&1995)));
        assert!(unpacked(b"no gzip").is_none());
    }

    #[test]
    fn where_nothing_is_kept_of_a_second_the_nearest_is_found() {
        let mut history = History::default();
        assert!(history.nearest(10).is_none());
        for at in [10, 15, 40] {
            history.keep(at, &format!("picture {at}"));
        }
        let table = [
            (10, 10),
            (15, 15),
            (12, 10),
            (13, 15),
            (27, 15),
            (28, 40),
            (0, 10),
        ];
        for (asked, found) in table.into_iter().chain([(u64::MAX, 40)]) {
            let picture = history.nearest(asked).and_then(|packed| unpacked(&packed));
            assert_eq!(picture, Some(format!("picture {found}")), "{asked}");
        }
    }

    /// Letters without a pattern stay about as large as they are: seven bits of eight.
    fn noise(letters: usize) -> String {
        let mut state = 1_u64;
        let mut letter = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            char::from((state >> 57) as u8)
        };
        (0..letters).map(|_| letter()).collect()
    }

    #[test]
    fn what_is_too_much_at_once_leaves_the_newest() {
        let mut history = History::default();
        let large = noise(MAX_BYTES * 11 / 32);
        for at in 2000..2010 {
            history.keep(at, &large);
        }
        let times = history.times();
        assert_eq!((times.len(), times[0], times[2]), (3, 2000, 2009));
        history.keep(2010, &noise(MAX_BYTES * 2));
        assert!(history.times().is_empty() && history.bytes == 0);
    }

    /// Some thirty have room, as of a mesh of a thousand containers: where all were kept, they would be of three minutes.
    #[test]
    fn the_past_of_a_large_mesh_is_as_long_with_fewer_pictures() {
        let mut history = History::default();
        let large = noise(MAX_BYTES / 30);
        for at in (0..3 * KEPT).step_by(EVERY as usize) {
            history.keep(at, &large);
            assert!(history.bytes <= MAX_BYTES);
            let times = history.times();
            let reach = at - times[0];
            assert!(reach >= at.min(KEPT - 90), "{times:?}");
            let gaps = times.windows(2).map(|pair| pair[1] - pair[0]);
            assert!(gaps.max() <= Some(90), "{times:?}");
            let lately = times.iter().filter(|time| at - **time < 30).count() as u64;
            assert!(lately >= 5.min(at / EVERY + 1), "{times:?}");
        }
        assert!(history.times().len() > 30, "there is room for as many");
    }
}
