//! The cluster's addresses: one number, two families.
//!
//! Every address of the cluster is an *offset* from the start of its IPv4 range; the container's IPv6 address is the
//! IPv6 base plus the same offset. So one allocator and one routing table serve both families.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

/// The ranges a cluster was made with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterRange {
    v4: Ipv4Net,
    v6: Ipv6Net,
}

/// Why a pair of ranges cannot be a cluster's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadRange {
    /// The IPv4 range must hold at least 256 addresses and at most 16,777,216.
    #[error("the range must be between /8 and /24, not /{0}")]
    Size(u8),
    /// The IPv6 range must have room for every IPv4 offset.
    #[error("the IPv6 range must be /96 or shorter, not /{0}")]
    Size6(u8),
}

impl ClusterRange {
    /// Checks the sizes; host bits are cleared.
    pub fn new(v4: Ipv4Net, v6: Ipv6Net) -> Result<Self, BadRange> {
        if !(8..=24).contains(&v4.prefix_len()) {
            return Err(BadRange::Size(v4.prefix_len()));
        }
        if v6.prefix_len() > 96 {
            return Err(BadRange::Size6(v6.prefix_len()));
        }
        Ok(Self {
            v4: v4.trunc(),
            v6: v6.trunc(),
        })
    }

    /// The IPv4 range.
    pub const fn v4(&self) -> Ipv4Net {
        self.v4
    }

    /// The IPv6 range.
    pub const fn v6(&self) -> Ipv6Net {
        self.v6
    }

    /// A block of it as a range of its own, in which offsets are counted from the block's start.
    pub fn part(&self, block: Block) -> Self {
        Self {
            v4: self.v4_block(block),
            v6: self.v6_block(block),
        }
    }

    /// The block that has exactly these addresses; `None` if they are not all in the range.
    pub fn block(&self, net: Ipv4Net) -> Option<Block> {
        let net = net.trunc();
        self.v4
            .contains(&net)
            .then(|| Block::new(self.offset_v4(net.network())?, 32 - net.prefix_len()))?
    }

    /// The part of it that these IPv4 addresses are; the whole for its own, and for such as are not in it.
    pub fn part_of(&self, net: Ipv4Net) -> Self {
        // The IPv6 range is wider than its part that belongs to the IPv4 addresses.
        let whole = net.trunc() == self.v4;
        let block = self.block(net).filter(|_| !whole);
        block.map_or(*self, |block| self.part(block))
    }

    /// How many addresses there are: a power of two.
    pub fn size(&self) -> u32 {
        1 << (32 - self.v4.prefix_len())
    }

    /// The network's gateway, the same on every node: the first address.
    pub fn gateway(&self) -> Ipv4Addr {
        self.v4_at(1)
    }

    /// The IPv4 address at an offset below [`ClusterRange::size`].
    pub fn v4_at(&self, offset: u32) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.v4.network()) | offset)
    }

    /// The IPv6 address at an offset below [`ClusterRange::size`].
    pub fn v6_at(&self, offset: u32) -> Ipv6Addr {
        Ipv6Addr::from(u128::from(self.v6.network()) | u128::from(offset))
    }

    /// The offset of an IPv4 address, if it lies in the range.
    pub fn offset_v4(&self, address: Ipv4Addr) -> Option<u32> {
        let offset = u32::from(address).wrapping_sub(u32::from(self.v4.network()));
        (offset < self.size()).then_some(offset)
    }

    /// The offset of an IPv6 address, if a container could have it.
    pub fn offset_v6(&self, address: Ipv6Addr) -> Option<u32> {
        let offset = u128::from(address).wrapping_sub(u128::from(self.v6.network()));
        (offset < u128::from(self.size())).then_some(offset as u32)
    }

    /// The offset of an address of either family.
    pub fn offset(&self, address: IpAddr) -> Option<u32> {
        match address {
            IpAddr::V4(v4) => self.offset_v4(v4),
            IpAddr::V6(v6) => self.offset_v6(v6),
        }
    }

    /// The IPv4 prefix of a block.
    pub fn v4_block(&self, block: Block) -> Ipv4Net {
        Ipv4Net::new_assert(self.v4_at(block.first()), 32 - block.bits())
    }

    /// The IPv6 prefix of a block.
    pub fn v6_block(&self, block: Block) -> Ipv6Net {
        Ipv6Net::new_assert(self.v6_at(block.first()), 128 - block.bits())
    }
}

/// A power-of-two run of offsets, aligned to its size: what is given from node to node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Block {
    first: u32,
    bits: u8,
}

impl Block {
    /// A block of `1 << bits` addresses from `first`; `None` if that is not aligned or larger than 2^24.
    pub const fn new(first: u32, bits: u8) -> Option<Self> {
        if bits > 24 || first & ((1 << bits) - 1) != 0 || first >= 1 << 24 {
            return None;
        }
        Some(Self { first, bits })
    }

    /// The whole of a range.
    pub fn whole(range: &ClusterRange) -> Self {
        Self {
            first: 0,
            bits: 32 - range.v4().prefix_len(),
        }
    }

    /// The lowest offset.
    pub const fn first(&self) -> u32 {
        self.first
    }

    /// The highest offset.
    pub const fn last(&self) -> u32 {
        self.first + (self.size() - 1)
    }

    /// The binary logarithm of the size.
    pub const fn bits(&self) -> u8 {
        self.bits
    }

    /// How many addresses it holds.
    pub const fn size(&self) -> u32 {
        1 << self.bits
    }

    /// Whether it has an offset that another one has too.
    pub const fn overlaps(&self, other: Self) -> bool {
        self.first <= other.last() && self.last() >= other.first
    }

    /// Whether an offset lies in it.
    pub const fn contains(&self, offset: u32) -> bool {
        offset >= self.first && offset <= self.last()
    }

    /// Its lower and upper half; `None` for a single address.
    pub const fn halves(&self) -> Option<(Self, Self)> {
        if self.bits == 0 {
            return None;
        }
        let bits = self.bits - 1;
        Some((
            Self {
                first: self.first,
                bits,
            },
            Self {
                first: self.first + (1 << bits),
                bits,
            },
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range() -> ClusterRange {
        ClusterRange::new(
            "10.32.0.0/12".parse().unwrap(),
            "fd00:1:2::/48".parse().unwrap(),
        )
        .unwrap()
    }

    #[test]
    fn one_offset_names_two_addresses() {
        let range = range();
        assert_eq!(range.v4_at(258).to_string(), "10.32.1.2");
        assert_eq!(range.v6_at(258).to_string(), "fd00:1:2::102");
        assert_eq!(range.offset("10.32.1.2".parse().unwrap()), Some(258));
        assert_eq!(range.offset("fd00:1:2::102".parse().unwrap()), Some(258));
        assert_eq!(range.offset("10.48.0.0".parse().unwrap()), None);
        assert_eq!(range.offset("fd00:1:2:1::".parse().unwrap()), None);
        assert_eq!(range.gateway().to_string(), "10.32.0.1");
    }

    #[test]
    fn blocks_are_aligned_and_halve() {
        assert_eq!(Block::new(3, 1), None);
        let whole = Block::whole(&range());
        let (low, high) = whole.halves().unwrap();
        assert_eq!((low.first(), low.last() + 1), (0, high.first()));
        assert_eq!(range().v4_block(high).to_string(), "10.40.0.0/13");
        assert_eq!(range().v6_block(high).to_string(), "fd00:1:2::8:0/109");
    }

    #[test]
    fn a_part_counts_from_its_own_start() {
        let block = range().block("10.33.0.0/16".parse().unwrap()).unwrap();
        assert_eq!((block.first(), block.size()), (1 << 16, 1 << 16));
        let part = range().part(block);
        assert_eq!(part.gateway().to_string(), "10.33.0.1");
        assert_eq!(part.v6().to_string(), "fd00:1:2::1:0/112");
        assert_eq!(part.v6_at(5), range().v6_at(block.first() + 5));
        assert_eq!(part.offset("10.33.0.5".parse().unwrap()), Some(5));
        assert_eq!(part.offset("10.34.0.5".parse().unwrap()), None);
        assert_eq!(range().block("10.48.0.0/16".parse().unwrap()), None);
    }

    #[test]
    fn odd_sizes_are_refused() {
        let v6 = "fd00::/48".parse().unwrap();
        assert_eq!(
            ClusterRange::new("10.0.0.0/30".parse().unwrap(), v6),
            Err(BadRange::Size(30))
        );
    }
}
