//! What an endpoint was sent and has not answered, for the next one should it refuse: pure.
//!
//! The last [`MOST`] datagrams, as much as [`BYTES`] have room for: a resolver's two questions at once, and little memory
//! for each of very many sessions. What is larger is not kept.

use std::collections::VecDeque;

/// How many are kept.
const MOST: usize = 4;
/// How many bytes all of them have at most.
const BYTES: usize = 2048;

/// Datagrams, oldest first.
#[derive(Debug, Default)]
pub(super) struct Kept {
    bytes: Vec<u8>,
    lengths: VecDeque<usize>,
}

impl Kept {
    /// Keeps one more, in place of the oldest if need be.
    pub(super) fn push(&mut self, datagram: &[u8]) {
        if datagram.len() > BYTES {
            return;
        }
        while self.lengths.len() == MOST || self.bytes.len() + datagram.len() > BYTES {
            let Some(oldest) = self.lengths.pop_front() else {
                break;
            };
            self.bytes.drain(..oldest);
        }
        self.bytes.extend_from_slice(datagram);
        self.lengths.push_back(datagram.len());
    }

    /// There was an answer.
    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.lengths.clear();
    }

    /// All of them.
    pub(super) fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest = self.bytes.as_slice();
        self.lengths.iter().map(move |length| {
            let (one, others) = rest.split_at(*length);
            rest = others;
            one
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_few_are_kept_as_far_as_there_is_room() {
        let mut kept = Kept::default();
        for one in ["a", "", "bc", "d", "efg"] {
            kept.push(one.as_bytes());
        }
        let now: Vec<&[u8]> = kept.iter().collect();
        assert_eq!(now, [&b""[..], b"bc", b"d", b"efg"]);
        kept.push(&[1; BYTES + 1]);
        assert_eq!(kept.iter().count(), 4, "too large for any room");
        kept.push(&[2; BYTES - 4]);
        let lengths: Vec<usize> = kept.iter().map(<[u8]>::len).collect();
        assert_eq!(lengths, [1, 3, BYTES - 4]);
        kept.clear();
        assert_eq!(kept.iter().count(), 0);
    }
}
