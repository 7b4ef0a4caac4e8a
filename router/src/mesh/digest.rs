//! What two members compare before they tell each other what they have: a number for each bucket of nodes.
//!
//! A list of 1,000 records with their versions has 57 KB, and eight neighbours would exchange it every minute for nothing.
//! So nodes are put into 64 buckets by their ids, and of each bucket the sum of its entries' hashes is told: 512 bytes
//! that are the same on both sides when nothing is missing. Lists are exchanged of those buckets that differ. Whoever
//! has no more than [`FEW`] entries sends the whole list at once.

use blake2::{Blake2s256, Digest as _};
use weave_model::NodeId;

use super::record::RecordVersion;

/// How many buckets there are; a set of them is a [`Buckets`].
pub const BUCKETS: usize = 64;
/// The most entries of which the list is sent at once.
pub const FEW: usize = 20;

/// A sum for each bucket.
pub type Sums = [u64; BUCKETS];

/// Some of the buckets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buckets(pub u64);

impl Buckets {
    /// All of them.
    pub const ALL: Self = Self(u64::MAX);

    /// Whether a node's bucket is among them.
    pub fn contain(self, node: NodeId) -> bool {
        self.0 >> bucket(node) & 1 == 1
    }

    /// Whether there is none.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Those in which two sums differ.
    pub fn between(one: &Sums, other: &Sums) -> Self {
        let differs = |at: &usize| one[*at] != other[*at];
        let differing = (0..BUCKETS).filter(differs);
        Self(differing.fold(0, |set, at| set | 1 << at))
    }
}

/// The entries in some buckets, in as few parts of whole buckets as have no more than `most` entries each.
pub fn parts(
    buckets: Buckets,
    entries: Vec<(NodeId, RecordVersion)>,
    most: usize,
) -> Vec<(Buckets, Vec<(NodeId, RecordVersion)>)> {
    let mut full: [Vec<_>; BUCKETS] = [const { Vec::new() }; BUCKETS];
    let entries = entries.into_iter();
    for entry in entries.filter(|(node, _)| buckets.contain(*node)) {
        full[bucket(entry.0)].push(entry);
    }
    let mut parts: Vec<(Buckets, Vec<_>)> = Vec::new();
    for (at, entries) in full.into_iter().enumerate() {
        let one = buckets.0 & 1 << at;
        match parts.last_mut() {
            Some((set, part)) if part.len() + entries.len() <= most => {
                set.0 |= one;
                part.extend(entries);
            }
            _ => parts.push((Buckets(one), entries)),
        }
    }
    parts
}

fn bucket(node: NodeId) -> usize {
    usize::from(node.as_bytes()[0]) % BUCKETS
}

/// The sums of entries; their order does not matter.
pub fn sums(entries: &[(NodeId, RecordVersion)]) -> Sums {
    let mut sums = [0_u64; BUCKETS];
    for (node, version) in entries {
        let hash = Blake2s256::new()
            .chain_update(node.as_bytes())
            .chain_update(version.boot.to_be_bytes())
            .chain_update(version.counter.to_be_bytes())
            .finalize();
        let first = hash.first_chunk().expect("a hash is longer than that");
        let sum = &mut sums[bucket(*node)];
        *sum = sum.wrapping_add(u64::from_be_bytes(*first));
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_list_is_told_in_parts_that_miss_nothing() {
        let entry = |n: u16| {
            let [high, low] = n.to_be_bytes();
            let mut id = [high; 32];
            id[0] = low;
            (NodeId::from_bytes(id), RecordVersion::default())
        };
        let all: Vec<_> = (0..2560).map(entry).collect();
        let some = Buckets(u64::MAX << 4);
        let parts = parts(some, all.clone(), 100);
        assert_eq!(parts.len(), 30, "each bucket has 40");
        let told = parts.iter().fold(0, |set, (buckets, part)| {
            assert!(part.len() <= 100 && set & buckets.0 == 0);
            assert!(part.iter().all(|(node, _)| buckets.contain(*node)));
            set | buckets.0
        });
        assert_eq!(told, some.0);
        let count = parts.iter().map(|(_, part)| part.len()).sum::<usize>();
        assert_eq!(count, 60 * 40);
        let whole = super::parts(Buckets::ALL, all, 4096);
        assert_eq!(whole.len(), 1);
        assert_eq!(whole[0].0, Buckets::ALL);
        let nothing = super::parts(Buckets::ALL, Vec::new(), 4096);
        assert_eq!(nothing, [(Buckets::ALL, vec![])], "that is told too");
    }

    #[test]
    fn what_differs_is_found_in_its_bucket_only() {
        let entry = |n: u8, counter| {
            let version = RecordVersion { boot: 1, counter };
            (NodeId::from_bytes([n; 32]), version)
        };
        let mine: Vec<_> = (0..=255).map(|n| entry(n, 7)).collect();
        let mut theirs = mine.clone();
        theirs.reverse();
        assert!(Buckets::between(&sums(&mine), &sums(&theirs)).is_empty());
        theirs[0] = entry(255, 8);
        theirs.pop();
        let differ = Buckets::between(&sums(&mine), &sums(&theirs));
        let found = (0..=255).filter(|n| differ.contain(NodeId::from_bytes([*n; 32])));
        assert_eq!(
            found.collect::<Vec<_>>(),
            [0, 63, 64, 127, 128, 191, 192, 255]
        );
    }
}
