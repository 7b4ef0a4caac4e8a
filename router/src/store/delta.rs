//! What is different between two copies of the state, as bytes: pieces of the former copy, and between them what is new.
//!
//! ```text
//! pieces: from 4 | length 4 | new bytes 4 | new bytes ...        (integers big-endian)
//! ```
//!
//! Each piece says which bytes of the former copy come next, and which new ones after them. They are found by blocks that
//! both copies have, wherever they stand: a lease more or less moves all that comes after it.

use std::collections::BTreeMap;

use zeroize::Zeroizing;

use super::MAX_CONTENT;

/// What is looked for in the former copy. It is shorter than a lease.
const BLOCK: usize = 32;
/// The most new bytes that are worth a search: it takes a look for each of them.
const MOST_NEW: usize = 8 << 10;

/// What makes `new` of `old`; `None` if that is so much that a whole copy is better.
pub(super) fn between(old: &[u8], new: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let head = common(old, new);
    let tail = common_end(&old[head..], &new[head..]);
    let (old_end, new_end) = (old.len() - tail, new.len() - tail);
    let mut blocks = BTreeMap::new();
    for (at, block) in old[head..old_end].chunks_exact(BLOCK).enumerate() {
        blocks.entry(block).or_insert(head + at * BLOCK);
    }
    let mut delta = Delta::default();
    let (mut piece, mut at, mut fresh) = ((0, head), head, head);
    while at + BLOCK <= new_end {
        if delta.new + (at - fresh) > MOST_NEW {
            return None;
        }
        let Some(from) = blocks.get(&new[at..at + BLOCK]) else {
            at += 1;
            continue;
        };
        let before = common_end(&old[..*from], &new[fresh..at]);
        let length = common(&old[*from..], &new[at..new_end]);
        delta.push(piece, &new[fresh..at - before]);
        piece = (from - before, before + length);
        at += length;
        fresh = at;
    }
    delta.push(piece, &new[fresh..new_end]);
    delta.push((old_end, tail), &[]);
    (delta.new <= MOST_NEW).then_some(delta.bytes)
}

/// What `old` becomes by a delta; `None` if it was not made of that copy.
pub(super) fn apply(old: &[u8], mut delta: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let mut new = Zeroizing::new(Vec::with_capacity(old.len()));
    while !delta.is_empty() {
        let (from, rest) = number(delta)?;
        let (length, rest) = number(rest)?;
        let (count, rest) = number(rest)?;
        let (fresh, rest) = rest.split_at_checked(count)?;
        let kept = old.get(from..from.checked_add(length)?)?;
        if new.len() + kept.len() + fresh.len() > MAX_CONTENT {
            return None;
        }
        new.extend_from_slice(kept);
        new.extend_from_slice(fresh);
        delta = rest;
    }
    Some(new)
}

#[derive(Default)]
struct Delta {
    bytes: Zeroizing<Vec<u8>>,
    /// How many of them are new.
    new: usize,
}

impl Delta {
    fn push(&mut self, (from, length): (usize, usize), fresh: &[u8]) {
        for number in [from, length, fresh.len()] {
            self.bytes.extend_from_slice(&(number as u32).to_be_bytes());
        }
        self.bytes.extend_from_slice(fresh);
        self.new += fresh.len();
    }
}

fn number(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let (number, rest) = bytes.split_first_chunk()?;
    Some((u32::from_be_bytes(*number) as usize, rest))
}

/// How many bytes two copies have in common from their beginnings on.
fn common(one: &[u8], other: &[u8]) -> usize {
    const STEP: usize = 256;
    let steps = one.chunks_exact(STEP).zip(other.chunks_exact(STEP));
    let same = STEP * steps.take_while(|(one, other)| one == other).count();
    let rest = one[same..].iter().zip(&other[same..]);
    same + rest.take_while(|(one, other)| one == other).count()
}

/// The same from their ends on.
fn common_end(one: &[u8], other: &[u8]) -> usize {
    const STEP: usize = 256;
    let steps = one.rchunks_exact(STEP).zip(other.rchunks_exact(STEP));
    let same = STEP * steps.take_while(|(one, other)| one == other).count();
    let one = one[..one.len() - same].iter().rev();
    let rest = one.zip(other[..other.len() - same].iter().rev());
    same + rest.take_while(|(one, other)| one == other).count()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn leases(names: impl IntoIterator<Item = u32>) -> Vec<u8> {
        let lease = |name| format!("{name:08x} a container of some name, eth0;");
        names.into_iter().map(lease).collect::<String>().into()
    }

    #[test]
    fn a_lease_more_or_less_is_a_few_bytes_wherever_it_stands() {
        let old = leases(0..1000);
        for (new, most) in [
            (leases((0..500).chain([5000]).chain(500..1000)), 100),
            (leases((0..500).chain(501..1000)), 100),
            (leases((1..1000).chain([5000, 5001])), 200),
            (leases((0..10).chain([1 << 20]).chain(20..1000)), 100),
            (old.clone(), 100),
        ] {
            let delta = between(&old, &new).unwrap();
            assert!(delta.len() <= most, "{} bytes", delta.len());
            assert_eq!(*apply(&old, &delta).unwrap(), new);
        }
    }

    #[test]
    fn two_changes_far_apart_are_two_pieces() {
        let old = leases(0..1000);
        let mut new = leases((0..900).chain([5000]).chain(900..1000));
        new[..4].copy_from_slice(b"seen");
        let delta = between(&old, &new).unwrap();
        assert!(delta.len() <= 200, "{} bytes", delta.len());
        assert_eq!(*apply(&old, &delta).unwrap(), new);
    }

    #[test]
    fn what_is_mostly_new_is_no_delta() {
        let strange = |n: u32| n.wrapping_mul(2_654_435_761).to_be_bytes();
        let other: Vec<u8> = (0..3000).flat_map(strange).collect();
        assert!(between(&leases(0..1000), &other).is_none());
        assert!(between(&[], &[7; MOST_NEW + 1]).is_none());
        assert!(between(&[], &[7; MOST_NEW]).is_some());
    }

    #[test]
    fn a_delta_of_another_copy_is_told_by_what_it_lacks() {
        let (old, new) = (leases(0..100), leases(1..100));
        let delta = between(&old, &new).unwrap();
        assert!(apply(&old[..1000], &delta).is_none());
        assert!(apply(&old, &delta[..delta.len() - 1]).is_none());
    }

    proptest! {
        #[test]
        fn every_change_comes_back(
            old in prop::collection::vec(0_u8..3, 0..600),
            cuts in prop::collection::vec((0_usize..600, 0_usize..300), 0..5),
            fresh in prop::collection::vec(any::<u8>(), 0..100),
        ) {
            let mut new = fresh.clone();
            for (from, length) in cuts {
                let from = from.min(old.len());
                new.extend_from_slice(&old[from..(from + length).min(old.len())]);
                new.extend_from_slice(&fresh);
            }
            let delta = between(&old, &new).unwrap();
            prop_assert_eq!(&*apply(&old, &delta).unwrap(), &new);
        }

        #[test]
        fn what_is_no_delta_ends_nothing(old in prop::collection::vec(any::<u8>(), 0..50), delta in prop::collection::vec(any::<u8>(), 0..60)) {
            let _ = apply(&old, &delta);
        }
    }
}
