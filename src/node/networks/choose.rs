//! Where a new network's addresses lie, and its number: pure.

use std::collections::BTreeSet;

use weave_model::{Block, ClusterRange, NetworkName};

use crate::node::resolve::fits;

/// A network gets the 16th part of the cluster's range when nobody names another, at most 65,536 addresses.
fn usual_bits(range: &ClusterRange) -> u8 {
    let whole = Block::whole(range).bits();
    whole.saturating_sub(4).clamp(6, 16)
}

/// A block of the usual size that overlaps no other network and has no address in use: in the node's own blocks if there
/// is one, as then nobody else can be giving an address of it away at this moment. Which one follows from the name.
pub(super) fn choose_block(
    range: &ClusterRange,
    name: &NetworkName,
    others: &[Block],
    used: &BTreeSet<u32>,
    own: &[Block],
) -> Option<Block> {
    let bits = usual_bits(range);
    let slots = range.size() >> bits;
    let start = hash(name) % slots;
    let free = |block: &Block| {
        let taken = others.iter().any(|other| other.overlaps(*block));
        fits(range, *block) && !taken && used.range(block.first()..=block.last()).next().is_none()
    };
    let all = (0..slots).filter_map(|step| Block::new(((start + step) % slots) << bits, bits));
    let free: Vec<Block> = all.filter(free).collect();
    let is_own = |block: &&Block| {
        let mut own = own.iter();
        own.any(|own| own.contains(block.first()) && own.contains(block.last()))
    };
    free.iter().find(is_own).or_else(|| free.first()).copied()
}

/// A number that no other network has.
pub(super) fn choose_number(name: &NetworkName, used: &BTreeSet<u16>) -> u16 {
    let start = (hash(name) % u32::from(u16::MAX)) as u16;
    let numbers = (0..u16::MAX).map(|step| {
        let number = (u32::from(start) + u32::from(step)) % u32::from(u16::MAX);
        number as u16 + 1
    });
    let mut free = numbers.filter(|number| !used.contains(number));
    free.next().expect("there are fewer networks than numbers")
}

/// FNV-1a, 32 bits (RFC 9923).
fn hash(name: &NetworkName) -> u32 {
    name.as_str().bytes().fold(0x811c_9dc5, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(v4: &str) -> ClusterRange {
        ClusterRange::new(v4.parse().unwrap(), "fd00::/48".parse().unwrap()).unwrap()
    }

    fn name(text: &str) -> NetworkName {
        text.parse().unwrap()
    }

    #[test]
    fn networks_get_ranges_that_are_free_until_there_are_no_more() {
        for (v4, most) in [
            ("10.32.0.0/12", 14),
            ("10.32.0.0/16", 14),
            ("10.32.0.0/24", 2),
        ] {
            let range = range(v4);
            let mut taken: Vec<Block> = Vec::new();
            for number in 0.. {
                let name = name(&format!("n{number}"));
                let Some(block) = choose_block(&range, &name, &taken, &BTreeSet::new(), &[]) else {
                    break;
                };
                assert!(fits(&range, block) && !taken.iter().any(|one| one.overlaps(block)));
                taken.push(block);
            }
            assert_eq!(taken.len(), most, "{v4}");
        }
    }

    #[test]
    fn own_blocks_come_first_and_used_ones_never() {
        let range = range("10.32.0.0/12");
        let own = Block::new(8 << 16, 16).unwrap();
        let choose = |used: &BTreeSet<u32>| choose_block(&range, &name("blue"), &[], used, &[own]);
        assert_eq!(choose(&BTreeSet::new()), Some(own));
        let other = choose(&BTreeSet::from([own.first() + 77]));
        assert!(other.is_some_and(|other| other != own));
    }

    #[test]
    fn numbers_are_never_0_and_never_twice() {
        let mut used = BTreeSet::new();
        for _ in 0..300 {
            let number = choose_number(&name("blue"), &used);
            assert!(number > 0 && used.insert(number));
        }
    }
}
