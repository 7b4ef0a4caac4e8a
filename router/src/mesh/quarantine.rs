//! Words of members whose reading panics.
//!
//! What a member says of itself is passed on by everybody, so a fault in what reads it would end every node that hears it,
//! and again after each start. So records, sheets, removals, secrets and all messages are read where a panic ends the
//! reading and nothing else. Reading is pure: only shared references go in, so what there was stays as it was, and what
//! comes out, if anything does, is whole. All that is checked and follows from one record by itself is worked out there,
//! before anything is applied.
//!
//! The hash of what panicked is kept, so that it is read once, however often it comes; a later version is other bytes, and
//! is read again. It is neither acknowledged nor passed on.

use std::cell::Cell;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};

use blake2::{Blake2s256, Digest as _};
use tracing::warn;
use weave_model::NodeId;

/// How many hashes are kept, the newest.
const MOST: usize = 256;

type Hash = [u8; 32];

thread_local! {
    static READING: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread reads what may panic: such a panic is told and ends nothing.
pub fn is_reading() -> bool {
    READING.get()
}

/// What is not read any more.
#[derive(Debug, Default)]
pub struct Quarantine {
    held: VecDeque<Hash>,
    total: u64,
    /// What reading panics at.
    #[cfg(test)]
    pub(crate) fault: Option<Vec<u8>>,
}

fn hash(bytes: &[u8]) -> Hash {
    Blake2s256::digest(bytes).into()
}

impl Quarantine {
    /// How many words were put here in this run.
    pub const fn total(&self) -> u64 {
        self.total
    }

    /// Reads what came from a member; `None` if that panics, or did before. `read` must change nothing.
    pub fn read<T>(&mut self, from: NodeId, bytes: &[u8], read: impl FnOnce() -> T) -> Option<T> {
        if !self.held.is_empty() && self.held.contains(&hash(bytes)) {
            return None;
        }
        #[cfg(test)]
        let read = || {
            assert!(self.fault.as_deref() != Some(bytes), "as a bug would");
            read()
        };
        READING.set(true);
        // Nothing is left half changed: `read` changes nothing.
        let result = catch_unwind(AssertUnwindSafe(read));
        READING.set(false);
        if result.is_err() {
            self.hold(from, hash(bytes));
        }
        result.ok()
    }

    fn hold(&mut self, from: NodeId, hash: Hash) {
        let first = hash[..4]
            .iter()
            .fold(0, |sum: u32, byte| sum << 8 | u32::from(*byte));
        warn!(from = %from.short(), hash = format!("{first:08x}"), "reading what a member says of itself panics: it is left; this is a fault of weaved");
        self.total += 1;
        self.held.truncate(MOST - 1);
        self.held.push_front(hash);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: NodeId = NodeId::from_bytes([1; 32]);

    #[test]
    fn what_panics_is_read_once_and_all_else_as_before() {
        let mut quarantine = Quarantine::default();
        let reads = Cell::new(0);
        let read = |quarantine: &mut Quarantine, bytes: &[u8]| {
            quarantine.read(PEER, bytes, || {
                reads.set(reads.get() + 1);
                assert!(is_reading() && bytes != b"bad");
                bytes.len()
            })
        };
        assert_eq!(read(&mut quarantine, b"good"), Some(4));
        for _ in 0..3 {
            assert_eq!(read(&mut quarantine, b"bad"), None);
            assert!(!is_reading());
        }
        assert_eq!(read(&mut quarantine, b"later"), Some(5));
        assert_eq!((reads.get(), quarantine.total()), (3, 1));
    }

    #[test]
    fn as_many_are_kept_as_there_is_room_for() {
        let mut quarantine = Quarantine::default();
        let read = |quarantine: &mut Quarantine, n: usize| {
            let bytes = n.to_be_bytes();
            let read = || -> () { panic!("as a bug would") };
            quarantine.read(PEER, &bytes, read).is_some()
        };
        assert!((0..=MOST).all(|n| !read(&mut quarantine, n)));
        assert_eq!(quarantine.held.len(), MOST);
        assert!(!read(&mut quarantine, MOST), "it is still there");
        assert_eq!(quarantine.total(), MOST as u64 + 1);
        assert!(!read(&mut quarantine, 0), "the oldest is read again");
        assert_eq!(quarantine.total(), MOST as u64 + 2);
    }
}
