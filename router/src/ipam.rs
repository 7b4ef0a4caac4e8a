//! Which container has which address, within the blocks that this node owns.
//!
//! The allocator never asks another node: it gives offsets (see [`weave_model::ClusterRange`]) from its own blocks, one
//! per id, and the same one again for the same id. A released offset rests for [`COOLDOWN`]; then the one released
//! first is reused before any fresh one, so that the addresses in use stay close together and whole blocks stay free to
//! be given away. The network's own address (offset 0), the gateway (1) and the broadcast address (the range's last)
//! are never given.
//!
//! A part of the range that is kept for a network of its own is an *area*. What names no area is given from the rest
//! only. In an area its first two offsets and its last are never given, for the same reasons.
//!
//! Invariants, tested against a set model: an offset has at most one holder, lies in an own block when it is given, and
//! is not given again by itself before its cooldown is over. A lease outlives the loss of its block: the container
//! still uses the address, and only the operator can tell it to stop.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use weave_model::Block;

use crate::time::Now;

/// How long a released address rests: longer than ARP entries, DNS answers and half-closed connections usually live.
pub const COOLDOWN: Duration = Duration::from_secs(60);

/// Why no address was given.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoAddress {
    /// Every address of the node's blocks is in use or resting.
    #[error("no address is free")]
    Exhausted,
    /// The address has another holder on this node.
    #[error("held by {0}")]
    Taken(String),
    /// The id already has another address, at this offset.
    #[error("the id has another address")]
    HasOther(u32),
    /// The network's own, gateway or broadcast address.
    #[error("the address is reserved")]
    Reserved,
    /// The address lies in no block of this node.
    #[error("the address belongs to no block of this node")]
    NotOurs,
    /// The address lies in the area of another network.
    #[error("the address belongs to another network")]
    OtherNetwork,
}

/// One line of the journal: enough to restore the allocator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// An offset and its holder.
    Lease(u32, String),
    /// A released offset and when it was released, since the Unix epoch.
    Resting(u32, Duration),
}

/// The allocator of one node.
#[derive(Clone, Debug)]
pub struct Ipam {
    /// The range's highest offset.
    last: u32,
    /// Own blocks, ascending, disjoint.
    blocks: Vec<Block>,
    leases: BTreeMap<String, u32>,
    holders: BTreeMap<u32, String>,
    /// Released, by age; each may be given again from the instant beside it.
    resting: VecDeque<(u32, Instant)>,
    /// The offsets of `resting`, for look-up.
    rested: BTreeSet<u32>,
    /// The areas of networks, ascending, disjoint.
    areas: Vec<Block>,
    /// For the rest (`None`) and for each area: every own offset of it below this is held, resting or reserved.
    fresh_from: BTreeMap<Option<Block>, u32>,
}

impl Ipam {
    /// An allocator without blocks for a range of `size` offsets.
    pub fn new(size: u32) -> Self {
        Self {
            last: size.saturating_sub(1),
            blocks: Vec::new(),
            leases: BTreeMap::new(),
            holders: BTreeMap::new(),
            resting: VecDeque::new(),
            rested: BTreeSet::new(),
            areas: Vec::new(),
            fresh_from: BTreeMap::new(),
        }
    }

    /// Replaces the own blocks. Leases outside them are kept, and so are resting offsets: a block may be back before they
    /// have rested.
    pub fn set_blocks(&mut self, blocks: &[Block]) {
        self.blocks = blocks.to_vec();
        self.blocks.sort_unstable();
        self.fresh_from.clear();
    }

    /// Replaces the areas. Leases stay where they are. Whether anything changed is the answer.
    pub fn set_areas(&mut self, areas: &[Block]) -> bool {
        let mut areas = areas.to_vec();
        areas.sort_unstable();
        if areas == self.areas {
            return false;
        }
        self.areas = areas;
        self.fresh_from.clear();
        true
    }

    /// The areas, ascending.
    pub fn areas(&self) -> &[Block] {
        &self.areas
    }

    /// [`Ipam::allocate_in`] no area.
    pub fn allocate(
        &mut self,
        id: &str,
        want: Option<u32>,
        now: Instant,
    ) -> Result<u32, NoAddress> {
        self.allocate_in(None, id, want, now)
    }

    /// Gives an address of an area to `id`: the one it has, the one it wants, or any.
    ///
    /// A wanted address is given even while it rests: whoever names an address wants that one, and a container that is
    /// restarted with a fixed address must get it back at once.
    pub fn allocate_in(
        &mut self,
        area: Option<Block>,
        id: &str,
        want: Option<u32>,
        now: Instant,
    ) -> Result<u32, NoAddress> {
        if let Some(&has) = self.leases.get(id) {
            return match want {
                Some(want) if want != has => Err(NoAddress::HasOther(has)),
                _ => Ok(has),
            };
        }
        let offset = match want {
            Some(want) => self.wanted(area, want)?,
            None => self
                .rested_long(area, now, |_| true)
                .or_else(|| self.fresh(area))
                .ok_or(NoAddress::Exhausted)?,
        };
        Ok(self.give(id, offset))
    }

    /// Gives an address of an area to `id` that lies in one of `runs`, by their first and last offset: the one it has, or
    /// any.
    pub fn allocate_among(
        &mut self,
        area: Option<Block>,
        id: &str,
        runs: &[(u32, u32)],
        now: Instant,
    ) -> Result<u32, NoAddress> {
        let among = |offset| {
            runs.iter()
                .any(|(first, last)| (*first..=*last).contains(&offset))
        };
        match self.leases.get(id) {
            Some(&has) if among(has) => return Ok(has),
            Some(&has) => return Err(NoAddress::HasOther(has)),
            None => {}
        }
        let offset = self
            .rested_long(area, now, among)
            .or_else(|| self.fresh_among(area, runs))
            .ok_or(NoAddress::Exhausted)?;
        Ok(self.give(id, offset))
    }

    fn give(&mut self, id: &str, offset: u32) -> u32 {
        self.leases.insert(id.to_owned(), offset);
        self.holders.insert(offset, id.to_owned());
        offset
    }

    /// Takes the address of `id` back and lets it rest; `None` if it has none.
    pub fn release(&mut self, id: &str, now: Instant) -> Option<u32> {
        let offset = self.remove(id)?;
        self.forget_rested(now);
        self.resting.push_back((offset, now + COOLDOWN));
        self.rested.insert(offset);
        Some(offset)
    }

    /// Forgets what has rested in blocks that are not here any more.
    fn forget_rested(&mut self, now: Instant) {
        let due = self.resting.iter().filter(|(_, until)| *until <= now);
        let offsets = due.map(|(offset, _)| *offset);
        let gone: Vec<u32> = offsets.filter(|offset| !self.owns(*offset)).collect();
        if gone.is_empty() {
            return;
        }
        for offset in gone {
            self.rested.remove(&offset);
        }
        let rested = &self.rested;
        self.resting.retain(|(offset, _)| rested.contains(offset));
    }

    /// Takes back an address that nobody was told of: it needs no rest.
    pub fn undo(&mut self, id: &str) -> Option<u32> {
        let offset = self.remove(id)?;
        let from = self.fresh_from.entry(self.area_of(offset)).or_default();
        *from = offset.min(*from);
        Some(offset)
    }

    fn remove(&mut self, id: &str) -> Option<u32> {
        let offset = self.leases.remove(id)?;
        self.holders.remove(&offset);
        Some(offset)
    }

    /// The offset that `id` has.
    pub fn lease(&self, id: &str) -> Option<u32> {
        self.leases.get(id).copied()
    }

    /// Every id and its offset, by id.
    pub fn leases(&self) -> impl Iterator<Item = (&str, u32)> {
        self.leases
            .iter()
            .map(|(id, offset)| (id.as_str(), *offset))
    }

    /// The own blocks, ascending.
    pub fn blocks(&self) -> &[Block] {
        &self.blocks
    }

    /// Whether an offset lies in an own block.
    pub fn owns(&self, offset: u32) -> bool {
        let after = self.blocks.partition_point(|block| block.first() <= offset);
        after > 0 && self.blocks[after - 1].contains(offset)
    }

    /// The area that an offset lies in.
    pub fn area_of(&self, offset: u32) -> Option<Block> {
        let after = self.areas.partition_point(|area| area.first() <= offset);
        let area = *self.areas.get(after.checked_sub(1)?)?;
        area.contains(offset).then_some(area)
    }

    /// The own blocks, or their parts, that lie in an area, ascending.
    pub fn blocks_in(&self, area: Option<Block>) -> Vec<Block> {
        let mut parts = Vec::new();
        for block in &self.blocks {
            match area {
                Some(area) if area.contains(block.first()) && area.contains(block.last()) => {
                    parts.push(*block);
                }
                Some(area) => parts.extend(block.contains(area.first()).then_some(area)),
                None => self.outside_of_areas(*block, &mut parts),
            }
        }
        parts
    }

    fn outside_of_areas(&self, block: Block, parts: &mut Vec<Block>) {
        let meets = |area: &&Block| area.first() <= block.last() && area.last() >= block.first();
        match self.areas.iter().find(meets) {
            None => parts.push(block),
            Some(area) if area.contains(block.first()) && area.contains(block.last()) => {}
            Some(_) => {
                for half in block.halves().into_iter().flat_map(<[Block; 2]>::from) {
                    self.outside_of_areas(half, parts);
                }
            }
        }
    }

    /// How many addresses of an area the own blocks can give.
    pub fn capacity_in(&self, area: Option<Block>) -> u32 {
        let parts = self.blocks_in(area);
        let reserved = self.reserved_in(area).into_iter();
        let reserved = reserved.filter(|one| parts.iter().any(|part| part.contains(*one)));
        let size: u32 = parts.iter().map(Block::size).sum();
        size.saturating_sub(reserved.count() as u32)
    }

    /// How many addresses of an area are in use.
    pub fn used_in(&self, area: Option<Block>) -> u32 {
        let within = |area: &Block| self.holders.range(area.first()..=area.last()).count() as u32;
        match area {
            Some(area) => within(&area),
            None => self.used() - self.areas.iter().map(within).sum::<u32>(),
        }
    }

    /// How many addresses the own blocks can give in all.
    pub fn capacity(&self) -> u32 {
        let areas = self.areas.iter().map(|area| self.capacity_in(Some(*area)));
        self.capacity_in(None) + areas.sum::<u32>()
    }

    /// How many addresses are in use.
    pub fn used(&self) -> u32 {
        self.leases.len() as u32
    }

    /// Of what it is time to ask for another block, as three quarters are in use: the rest (`None`) or areas.
    pub fn wants_more(&self) -> Vec<Option<Block>> {
        let full = |area: &Option<Block>| {
            u64::from(self.used_in(*area)) * 4 >= u64::from(self.capacity_in(*area)) * 3
        };
        let areas = self.areas.iter().copied().map(Some);
        std::iter::once(None).chain(areas).filter(full).collect()
    }

    /// [`Ipam::spare_of`] of no area.
    pub fn spare(&self, bits: u8, now: Instant, may: impl Fn(Block) -> bool) -> Option<Block> {
        self.spare_of(None, bits, now, may)
    }

    /// A part of an area of `1 << bits` offsets without any in use or resting, of the own blocks that `may` be given
    /// from: the highest of the smallest block that has one, so that large blocks stay whole and low addresses stay here.
    pub fn spare_of(
        &self,
        area: Option<Block>,
        bits: u8,
        now: Instant,
        may: impl Fn(Block) -> bool,
    ) -> Option<Block> {
        let parts = self.blocks_in(area);
        let mut blocks: Vec<&Block> = parts
            .iter()
            .filter(|block| block.bits() >= bits && may(**block))
            .collect();
        blocks.sort_by_key(|block| block.bits());
        blocks
            .into_iter()
            .find_map(|block| self.spare_in(block, bits, now))
    }

    fn spare_in(&self, block: &Block, bits: u8, now: Instant) -> Option<Block> {
        let mut end = block.last();
        loop {
            let part = Block::new(end - ((1 << bits) - 1), bits)
                .expect("aligned: it ends where an aligned part of that size ends");
            match self.highest_busy(part, now) {
                None => return Some(part),
                Some(_) if part.first() == block.first() => return None,
                Some(_) => end = part.first() - 1,
            }
        }
    }

    fn highest_busy(&self, part: Block, now: Instant) -> Option<u32> {
        let held = self.holders.range(part.first()..=part.last()).next_back();
        let held = held.map(|(offset, _)| *offset);
        let resting = self
            .resting
            .iter()
            .filter(|(offset, until)| part.contains(*offset) && *until > now)
            .map(|(offset, _)| *offset)
            .max();
        held.max(resting)
    }

    fn wanted(&mut self, area: Option<Block>, want: u32) -> Result<u32, NoAddress> {
        if self.area_of(want) != area {
            return Err(NoAddress::OtherNetwork);
        }
        if self.reserved_in(area).contains(&want) || want > self.last {
            return Err(NoAddress::Reserved);
        }
        if !self.owns(want) {
            return Err(NoAddress::NotOurs);
        }
        if let Some(holder) = self.holders.get(&want) {
            return Err(NoAddress::Taken(holder.clone()));
        }
        if self.rested.remove(&want) {
            self.resting.retain(|(offset, _)| *offset != want);
        }
        Ok(want)
    }

    /// What has rested long enough and `suits`.
    fn rested_long(
        &mut self,
        area: Option<Block>,
        now: Instant,
        suits: impl Fn(u32) -> bool,
    ) -> Option<u32> {
        let due = self.resting.iter().take_while(|(_, until)| *until <= now);
        let mut due = due.map(|(offset, _)| *offset).enumerate();
        // It may have become one of those by an area that was made since, and another's by a deed.
        let reserved = self.reserved_in(area);
        let may = |offset: u32| self.owns(offset) && !reserved.contains(&offset) && suits(offset);
        let (at, offset) = due.find(|(_, offset)| self.area_of(*offset) == area && may(*offset))?;
        self.resting.remove(at);
        self.rested.remove(&offset);
        Some(offset)
    }

    fn fresh(&mut self, area: Option<Block>) -> Option<u32> {
        let from = self.fresh_from.get(&area).copied().unwrap_or(0);
        let is_free = self.is_free_in(area);
        let parts = self.blocks_in(area);
        let mut offsets = parts
            .iter()
            .flat_map(|part| part.first().max(from)..=part.last());
        let found = offsets.find(is_free);
        let from = found.map_or(u32::MAX, |offset| offset + 1);
        self.fresh_from.insert(area, from);
        found
    }

    /// The lowest that was never given, or is not remembered, in one of `runs`.
    fn fresh_among(&self, area: Option<Block>, runs: &[(u32, u32)]) -> Option<u32> {
        let parts = self.blocks_in(area);
        let within = |part: &Block| {
            let (first, last) = (part.first(), part.last());
            let cut = move |run: &(u32, u32)| run.0.max(first)..=run.1.min(last);
            runs.iter().flat_map(cut).find(self.is_free_in(area))
        };
        parts.iter().find_map(within)
    }

    fn is_free_in(&self, area: Option<Block>) -> impl Fn(&u32) -> bool {
        let reserved = self.reserved_in(area);
        move |offset| {
            let busy = self.holders.contains_key(offset) || self.rested.contains(offset);
            !busy && !reserved.contains(offset)
        }
    }

    /// What is never given of an area: the network's own address, its gateway's and its broadcast address.
    fn reserved_in(&self, area: Option<Block>) -> [u32; 3] {
        match area {
            None => [0, 1, self.last],
            Some(area) => [area.first(), area.first() + 1, area.last()],
        }
    }

    /// What [`Ipam::restore`] needs to make the same allocator again.
    pub fn journal(&self, now: Now) -> Vec<Entry> {
        let leases = self
            .leases
            .iter()
            .map(|(id, offset)| Entry::Lease(*offset, id.clone()));
        let resting = self
            .resting
            .iter()
            .filter(|(_, until)| *until > now.mono)
            .map(|rest| {
                let left = rest.1.saturating_duration_since(now.mono);
                Entry::Resting(rest.0, (now.wall + left).saturating_sub(COOLDOWN))
            });
        leases.chain(resting).collect()
    }

    /// Takes over a journal. However the clock was stepped, no rest is longer than
    /// [`COOLDOWN`].
    pub fn restore(&mut self, entries: &[Entry], now: Now) {
        for entry in entries {
            match entry {
                Entry::Lease(offset, id) => {
                    self.leases.insert(id.clone(), *offset);
                    self.holders.insert(*offset, id.clone());
                }
                Entry::Resting(offset, since) => {
                    let left = (*since + COOLDOWN).saturating_sub(now.wall).min(COOLDOWN);
                    if self.rested.insert(*offset) {
                        self.resting.push_back((*offset, now.mono + left));
                    }
                }
            }
        }
        self.resting
            .make_contiguous()
            .sort_by_key(|(_, until)| *until);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn block(first: u32, bits: u8) -> Block {
        Block::new(first, bits).unwrap()
    }

    fn ipam(blocks: &[Block]) -> Ipam {
        let mut ipam = Ipam::new(1024);
        ipam.set_blocks(blocks);
        ipam
    }

    fn now() -> Now {
        Now {
            mono: Instant::now(),
            wall: Duration::from_secs(1_700_000_000),
        }
    }

    #[test]
    fn the_network_gateway_and_broadcast_addresses_are_never_given() {
        let now = now().mono;
        let mut low = ipam(&[block(0, 3)]);
        let given: Vec<u32> = (0..6)
            .map(|n| low.allocate(&n.to_string(), None, now).unwrap())
            .collect();
        assert_eq!(given, [2, 3, 4, 5, 6, 7]);
        assert_eq!(low.allocate("x", None, now), Err(NoAddress::Exhausted));
        let mut high = ipam(&[block(1022, 1)]);
        assert_eq!(high.capacity(), 1);
        assert_eq!(high.allocate("a", None, now), Ok(1022));
        assert_eq!(high.allocate("b", None, now), Err(NoAddress::Exhausted));
        assert_eq!(
            high.allocate("b", Some(1023), now),
            Err(NoAddress::Reserved)
        );
    }

    #[test]
    fn the_same_id_gets_the_same_address() {
        let now = now().mono;
        let mut ipam = ipam(&[block(0, 4)]);
        assert_eq!(ipam.allocate("a", None, now), Ok(2));
        assert_eq!(ipam.allocate("a", None, now), Ok(2));
        assert_eq!(ipam.allocate("a", Some(2), now), Ok(2));
        assert_eq!(
            ipam.allocate("a", Some(3), now),
            Err(NoAddress::HasOther(2))
        );
        assert_eq!(
            ipam.allocate("b", Some(2), now),
            Err(NoAddress::Taken("a".to_owned()))
        );
        assert_eq!(ipam.allocate("b", Some(900), now), Err(NoAddress::NotOurs));
    }

    #[test]
    fn a_released_address_rests_and_the_oldest_comes_back_first() {
        let start = now().mono;
        let mut ipam = ipam(&[block(4, 2)]);
        for id in ["a", "b", "c", "d"] {
            ipam.allocate(id, None, start).unwrap();
        }
        assert_eq!(ipam.release("c", start), Some(6));
        assert_eq!(ipam.release("a", start + Duration::from_secs(5)), Some(4));
        assert_eq!(ipam.release("a", start), None);
        let soon = start + COOLDOWN - Duration::from_millis(1);
        assert_eq!(ipam.allocate("e", None, soon), Err(NoAddress::Exhausted));
        let later = start + COOLDOWN + Duration::from_secs(5);
        assert_eq!(ipam.allocate("e", None, later), Ok(6));
        assert_eq!(ipam.allocate("f", None, later), Ok(4));
    }

    #[test]
    fn areas_are_given_from_only_when_they_are_named() {
        let now = now().mono;
        let mut ipam = ipam(&[block(0, 6), block(128, 4)]);
        let [low, high] = [block(8, 3), block(128, 6)];
        assert!(ipam.set_areas(&[high, low]) && !ipam.set_areas(&[low, high]));
        let default: Vec<u32> = (0..8)
            .map(|n| ipam.allocate(&format!("d{n}"), None, now).unwrap())
            .collect();
        assert_eq!(default, [2, 3, 4, 5, 6, 7, 16, 17]);
        let mut low_area = |n: u32| ipam.allocate_in(Some(low), &format!("l{n}"), None, now);
        let given: Vec<u32> = (0..5).map(|n| low_area(n).unwrap()).collect();
        assert_eq!(given, [10, 11, 12, 13, 14]);
        assert_eq!(low_area(9), Err(NoAddress::Exhausted));
        assert_eq!(ipam.allocate_in(Some(high), "h", None, now), Ok(130));
        let other = Err(NoAddress::OtherNetwork);
        assert_eq!(ipam.allocate("x", Some(131), now), other);
        assert_eq!(ipam.allocate_in(Some(high), "x", Some(20), now), other);
        let reserved = Err(NoAddress::Reserved);
        for offset in [8, 9, 15] {
            assert_eq!(
                ipam.allocate_in(Some(low), "x", Some(offset), now),
                reserved
            );
        }
        let not_ours = ipam.allocate_in(Some(high), "x", Some(150), now);
        assert_eq!(not_ours, Err(NoAddress::NotOurs));
        assert_eq!(
            (ipam.capacity_in(Some(low)), ipam.used_in(Some(low))),
            (5, 5)
        );
        assert_eq!((ipam.capacity_in(Some(high)), ipam.used_in(None)), (14, 8));
        assert_eq!(ipam.capacity_in(None), 64 - 8 - 2);
        assert_eq!(ipam.capacity(), 64 - 8 - 2 + 5 + 14);
        assert_eq!(ipam.wants_more(), [Some(low)]);
    }

    #[test]
    fn an_address_among_some_is_a_free_one_of_its_own_blocks_and_network() {
        let start = now().mono;
        let mut ipam = ipam(&[block(0, 5), block(64, 5)]);
        let area = block(16, 3);
        ipam.set_areas(&[area]);
        let runs = [(0, 3), (14, 17), (40, 65), (200, 300)];
        let among = |ipam: &mut Ipam, area, id: &str, at| ipam.allocate_among(area, id, &runs, at);
        let ids = ["a", "b", "c", "d", "e", "f"];
        let given = ids.map(|id| among(&mut ipam, None, id, start).unwrap());
        assert_eq!(
            given,
            [2, 3, 14, 15, 64, 65],
            "neither those of others nor of a network"
        );
        assert_eq!(
            among(&mut ipam, None, "g", start),
            Err(NoAddress::Exhausted)
        );
        assert_eq!(
            among(&mut ipam, Some(area), "h", start),
            Err(NoAddress::Exhausted)
        );
        assert_eq!(among(&mut ipam, None, "c", start), Ok(14), "it has it");
        assert_eq!(
            ipam.allocate("other", None, start),
            Ok(4),
            "the rest is for the others"
        );
        let has = among(&mut ipam, None, "other", start);
        assert_eq!(has, Err(NoAddress::HasOther(4)));
        for id in ["other", "d"] {
            ipam.release(id, start);
        }
        assert_eq!(
            among(&mut ipam, None, "g", start),
            Err(NoAddress::Exhausted),
            "it rests"
        );
        assert_eq!(among(&mut ipam, None, "g", start + COOLDOWN), Ok(15));
    }

    #[test]
    fn what_rested_comes_back_to_its_own_network() {
        let start = now().mono;
        let mut ipam = ipam(&[block(0, 5)]);
        let area = block(16, 4);
        ipam.set_areas(&[area]);
        ipam.allocate_in(Some(area), "a", None, start).unwrap();
        ipam.allocate("b", None, start).unwrap();
        ipam.release("a", start);
        let later = start + COOLDOWN;
        assert_eq!(ipam.allocate("c", None, later), Ok(3));
        assert_eq!(ipam.allocate_in(Some(area), "d", None, later), Ok(18));
        ipam.undo("d");
        assert_eq!(ipam.allocate_in(Some(area), "e", None, later), Ok(18));
    }

    #[test]
    fn an_area_s_blocks_are_given_away_from_it_alone() {
        let now = now().mono;
        let mut ipam = ipam(&[block(0, 6)]);
        let area = block(16, 4);
        ipam.set_areas(&[area]);
        assert_eq!(
            ipam.spare_of(Some(area), 3, now, |_| true),
            Some(block(24, 3))
        );
        assert_eq!(ipam.spare_of(Some(area), 5, now, |_| true), None);
        assert_eq!(
            ipam.spare(4, now, |_| true),
            Some(block(0, 4)),
            "the smallest part that has it"
        );
        assert_eq!(ipam.blocks_in(None), [block(0, 4), block(32, 5)]);
    }

    #[test]
    fn a_fixed_address_comes_back_at_once() {
        let now = now().mono;
        let mut ipam = ipam(&[block(0, 4)]);
        ipam.allocate("a", Some(9), now).unwrap();
        ipam.release("a", now);
        assert_eq!(ipam.allocate("a", Some(9), now), Ok(9));
        ipam.release("a", now);
        assert_eq!(
            ipam.allocate("b", None, now + COOLDOWN),
            Ok(9),
            "queued once"
        );
    }

    #[test]
    fn spare_blocks_hold_nothing_in_use() {
        let now = now().mono;
        let mut ipam = ipam(&[block(0, 6), block(128, 3)]);
        ipam.allocate("a", Some(40), now).unwrap();
        ipam.allocate("b", Some(63), now).unwrap();
        assert_eq!(
            ipam.spare(3, now, |_| true),
            Some(block(128, 3)),
            "the smallest block that has it"
        );
        assert_eq!(ipam.spare(4, now, |_| true), Some(block(16, 4)));
        ipam.release("b", now);
        assert_eq!(
            ipam.spare(4, now, |_| true),
            Some(block(16, 4)),
            "63 still rests"
        );
        assert_eq!(ipam.spare(4, now + COOLDOWN, |_| true), Some(block(48, 4)));
        assert_eq!(ipam.spare(6, now + COOLDOWN, |_| true), None);
    }

    #[test]
    fn more_is_wanted_at_three_quarters() {
        let now = now().mono;
        let mut ipam = ipam(&[block(8, 3)]);
        for n in 0..6 {
            assert_eq!(ipam.wants_more(), [], "{n} of 8");
            ipam.allocate(&n.to_string(), None, now).unwrap();
        }
        assert_eq!(ipam.wants_more(), [None]);
        ipam.set_blocks(&[block(8, 3), block(32, 3)]);
        assert_eq!(ipam.wants_more(), []);
    }

    #[test]
    fn a_lease_outlives_its_block() {
        let now = now().mono;
        let mut ipam = ipam(&[block(0, 3)]);
        ipam.allocate("a", None, now).unwrap();
        ipam.set_blocks(&[block(8, 3)]);
        assert_eq!(ipam.allocate("a", None, now), Ok(2));
        assert_eq!(ipam.release("a", now), Some(2));
        assert_eq!(
            ipam.allocate("b", None, now + COOLDOWN),
            Ok(8),
            "2 is not ours any more"
        );
    }

    #[test]
    fn a_rested_address_that_became_a_network_s_own_is_not_given() {
        let now = now().mono;
        let mut ipam = ipam(&[block(32, 3)]);
        for offset in 32..40 {
            let id = offset.to_string();
            assert_eq!(ipam.allocate(&id, None, now), Ok(offset));
            ipam.release(&id, now);
        }
        let area = block(32, 3);
        ipam.set_areas(&[area]);
        let later = now + COOLDOWN;
        let mut give = |id: &str| ipam.allocate_in(Some(area), id, None, later);
        let given: Vec<u32> = ["a", "b", "c", "d", "e"]
            .into_iter()
            .map(|id| give(id).unwrap())
            .collect();
        assert_eq!(given, [34, 35, 36, 37, 38]);
        assert_eq!(give("f"), Err(NoAddress::Exhausted));
    }

    #[test]
    fn a_rest_outlives_the_absence_of_its_block() {
        let start = now();
        let blocks = [block(4, 1)];
        let mut before = ipam(&blocks);
        for id in ["a", "b"] {
            before.allocate(id, None, start.mono).unwrap();
        }
        before.release("a", start.mono);
        before.set_blocks(&[]);
        before.release("b", start.mono);
        let mut restarted = ipam(&[]);
        restarted.restore(&before.journal(start), start);
        for mut ipam in [before, restarted] {
            let rested = start.mono + COOLDOWN;
            assert_eq!(
                ipam.allocate("c", None, rested),
                Err(NoAddress::Exhausted),
                "not here"
            );
            ipam.set_blocks(&blocks);
            assert_eq!(
                ipam.allocate("c", None, start.mono),
                Err(NoAddress::Exhausted)
            );
            assert_eq!(ipam.allocate("c", None, rested), Ok(4));
            assert_eq!(ipam.allocate("d", None, rested), Ok(5));
        }
    }

    #[test]
    fn what_rested_elsewhere_is_forgotten() {
        let now = now().mono;
        let mut ipam = ipam(&[block(4, 1)]);
        for id in ["a", "b"] {
            ipam.allocate(id, None, now).unwrap();
        }
        ipam.release("a", now);
        ipam.set_blocks(&[]);
        ipam.release("b", now + COOLDOWN);
        assert_eq!(ipam.resting.len(), 1);
    }

    #[test]
    fn a_restart_keeps_leases_and_rests() {
        let start = now();
        let mut before = ipam(&[block(4, 2)]);
        for id in ["a", "b", "c", "d"] {
            before.allocate(id, None, start.mono).unwrap();
        }
        before.release("b", start.mono);
        let mut after = ipam(&[block(4, 2)]);
        let thirty = Duration::from_secs(30);
        let restart = Now {
            mono: start.mono + thirty,
            wall: start.wall + thirty,
        };
        after.restore(&before.journal(restart), restart);
        assert_eq!(after.lease("a"), Some(4));
        assert_eq!(
            after.allocate("e", None, restart.mono),
            Err(NoAddress::Exhausted)
        );
        assert_eq!(after.allocate("e", None, restart.mono + thirty), Ok(5));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Allocate(u8, Option<u32>),
        Release(u8),
        Wait(u64),
        Restart,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0..20u8, proptest::option::weighted(0.3, 0..80u32)).prop_map(|(id, want)| Step::Allocate(id, want)),
            3 => (0..20u8).prop_map(Step::Release),
            2 => (1..50u64).prop_map(Step::Wait),
            1 => Just(Step::Restart),
        ]
    }

    proptest! {
        /// Against a set: what is held, and when each free offset was released last.
        #[test]
        fn allocator_agrees_with_a_set(steps in proptest::collection::vec(step(), 1..200)) {
            let blocks = [block(0, 3), block(32, 2), block(64, 0)];
            let mine: BTreeSet<u32> = (2..8).chain(32..36).chain(64..65).collect();
            let mut ipam = ipam(&blocks);
            let mut now = now();
            let mut held: BTreeMap<String, u32> = BTreeMap::new();
            let mut released: BTreeMap<u32, Instant> = BTreeMap::new();
            for step in steps {
                match step {
                    Step::Allocate(id, want) => {
                        let id = id.to_string();
                        let free = |offset: &u32| !held.values().any(|has| has == offset);
                        let rested = |offset: &u32| released.get(offset).is_none_or(|at| *at + COOLDOWN <= now.mono);
                        match ipam.allocate(&id, want, now.mono) {
                            Ok(offset) => {
                                if let Some(has) = held.get(&id) {
                                    prop_assert_eq!(offset, *has);
                                } else {
                                    prop_assert!(mine.contains(&offset) && free(&offset));
                                    prop_assert!(want.map_or_else(|| rested(&offset), |want| want == offset));
                                    held.insert(id, offset);
                                }
                            }
                            Err(NoAddress::Exhausted) => {
                                prop_assert!(!mine.iter().any(|offset| free(offset) && rested(offset)));
                            }
                            Err(NoAddress::Taken(by)) => prop_assert_eq!(held.get(&by).copied(), want),
                            Err(NoAddress::HasOther(has)) => prop_assert_eq!(held.get(&id), Some(&has)),
                            Err(NoAddress::Reserved) => prop_assert!(want.is_some_and(|want| want < 2)),
                            Err(NoAddress::NotOurs) => prop_assert!(want.is_some_and(|want| !mine.contains(&want))),
                            Err(NoAddress::OtherNetwork) => prop_assert!(false, "there is none"),
                        }
                    }
                    Step::Release(id) => {
                        let gone = held.remove(&id.to_string());
                        prop_assert_eq!(ipam.release(&id.to_string(), now.mono), gone);
                        if let Some(offset) = gone {
                            released.insert(offset, now.mono);
                        }
                    }
                    Step::Wait(seconds) => {
                        now.mono += Duration::from_secs(seconds);
                        now.wall += Duration::from_secs(seconds);
                    }
                    Step::Restart => {
                        let journal = ipam.journal(now);
                        ipam = Ipam::new(1024);
                        ipam.set_blocks(&blocks);
                        ipam.restore(&journal, now);
                    }
                }
                prop_assert_eq!(ipam.used() as usize, held.len());
            }
        }
    }
}
