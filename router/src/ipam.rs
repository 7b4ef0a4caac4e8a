//! Which container has which address, within the blocks that this node owns.
//!
//! The allocator never asks another node: it gives offsets (see [`weave_model::ClusterRange`]) from its own blocks, one
//! per id, and the same one again for the same id. A released offset rests for [`COOLDOWN`]; then the one released
//! first is reused before any fresh one, so that the addresses in use stay close together and whole blocks stay free to
//! be given away. The network's own address (offset 0), the gateway (1) and the broadcast address (the range's last)
//! are never given.
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
    /// Every own offset below this is held, resting or reserved.
    fresh_from: u32,
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
            fresh_from: 0,
        }
    }

    /// Replaces the own blocks. Leases outside them are kept; resting offsets outside them are forgotten.
    pub fn set_blocks(&mut self, blocks: &[Block]) {
        self.blocks = blocks.to_vec();
        self.blocks.sort_unstable();
        self.fresh_from = 0;
        let resting = std::mem::take(&mut self.resting);
        self.resting = resting
            .into_iter()
            .filter(|(offset, _)| self.owns(*offset))
            .collect();
        self.rested = self.resting.iter().map(|(offset, _)| *offset).collect();
    }

    /// Gives an address to `id`: the one it has, the one it wants, or any.
    ///
    /// A wanted address is given even while it rests: whoever names an address wants that one, and a container that is
    /// restarted with a fixed address must get it back at once.
    pub fn allocate(
        &mut self,
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
            Some(want) => self.wanted(want)?,
            None => self
                .rested_long(now)
                .or_else(|| self.fresh())
                .ok_or(NoAddress::Exhausted)?,
        };
        self.leases.insert(id.to_owned(), offset);
        self.holders.insert(offset, id.to_owned());
        Ok(offset)
    }

    /// Takes the address of `id` back and lets it rest; `None` if it has none.
    pub fn release(&mut self, id: &str, now: Instant) -> Option<u32> {
        let offset = self.remove(id)?;
        if self.owns(offset) {
            self.resting.push_back((offset, now + COOLDOWN));
            self.rested.insert(offset);
        }
        Some(offset)
    }

    /// Takes back an address that nobody was told of: it needs no rest.
    pub fn undo(&mut self, id: &str) -> Option<u32> {
        let offset = self.remove(id)?;
        self.fresh_from = self.fresh_from.min(offset);
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

    /// How many addresses the own blocks can give in all.
    pub fn capacity(&self) -> u32 {
        let reserved = [0, 1, self.last]
            .into_iter()
            .filter(|offset| self.owns(*offset))
            .count();
        let size: u32 = self.blocks.iter().map(Block::size).sum();
        size.saturating_sub(reserved as u32)
    }

    /// How many addresses are in use.
    pub fn used(&self) -> u32 {
        self.leases.len() as u32
    }

    /// Whether it is time to ask for another block: three quarters are in use.
    pub fn wants_more(&self) -> bool {
        u64::from(self.used()) * 4 >= u64::from(self.capacity()) * 3
    }

    /// An own block of `1 << bits` offsets without any in use or resting, of the blocks that `may` be given from: the
    /// highest of the smallest block that has one, so that large blocks stay whole and low addresses stay here.
    pub fn spare(&self, bits: u8, now: Instant, may: impl Fn(Block) -> bool) -> Option<Block> {
        let mut blocks: Vec<&Block> = self
            .blocks
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

    fn wanted(&mut self, want: u32) -> Result<u32, NoAddress> {
        if self.reserved(want) {
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

    fn rested_long(&mut self, now: Instant) -> Option<u32> {
        let (offset, until) = *self.resting.front()?;
        if until > now {
            return None;
        }
        self.resting.pop_front();
        self.rested.remove(&offset);
        Some(offset)
    }

    fn fresh(&mut self) -> Option<u32> {
        for block in &self.blocks {
            for offset in block.first().max(self.fresh_from)..=block.last() {
                let busy = self.holders.contains_key(&offset) || self.rested.contains(&offset);
                if !busy && !self.reserved(offset) {
                    self.fresh_from = offset + 1;
                    return Some(offset);
                }
            }
            self.fresh_from = self.fresh_from.max(block.last() + 1);
        }
        None
    }

    fn reserved(&self, offset: u32) -> bool {
        offset <= 1 || offset >= self.last
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

    /// Takes over a journal after [`Ipam::set_blocks`]. However the clock was stepped, no rest is longer than
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
                    if self.owns(*offset) && self.rested.insert(*offset) {
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
            assert!(!ipam.wants_more(), "{n} of 8");
            ipam.allocate(&n.to_string(), None, now).unwrap();
        }
        assert!(ipam.wants_more());
        ipam.set_blocks(&[block(8, 3), block(32, 3)]);
        assert!(!ipam.wants_more());
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
