//! The deeds of one node: what it was given, what it gave away, and what is left.
//!
//! A gift leaves the donor's blocks the moment it is signed, is saved before it is sent, and is sent again until the
//! receiver says that it has saved it too; the receiver uses the block only then. So at every moment, whatever crashes
//! or is lost, a block has at most one user: the donor has let go before the receiver can have it. After a restart the
//! donor signs unacknowledged gifts again with its new boot nonce, because a receiver believes only grants of the
//! donor's current boot. Titles and gifts are not forgotten when nothing is left of them: a late duplicate of a grant
//! must find that it was used before. Only a durable renewal (see [`super::deed`]) lets its owner forget all that is older
//! and lies within it: its version is above theirs, so whatever comes of them again finds it instead.
//!
//! How much is given: a joiner gets 1/1024 of the range, but at least 256 addresses and at most a quarter of the range;
//! with the default /12 that is a /22. So a thousand joiners find room at one inviter. Whoever fills three quarters of
//! what it has asks for as much again, so busy nodes grow by doubling. A donor keeps at least a quarter of what it has,
//! and enough not to have to ask for more itself.
//!
//! Else titles and gifts live for ever, so all are counted: what one member may ask for and may give, what a record can tell
//! ([`MAX_TOLD`]), and what the saved state can hold. The last hands of a block are kept for nodes that leave, so that
//! a block which came and went with many joiners does not end with one that cannot hand it back.

use std::collections::BTreeSet;

use weave_model::{Block, NodeId};

use super::cluster::{ClusterKey, ClusterPublic};
use super::codec::{Malformed, Reader, Writer};
use super::deed::{
    Deed, Donor, MAX_HANDS, MIN_BITS, Proofs, Version, covers, meet, read_block, read_version,
    subtract, write_block, write_version,
};
use super::removal::Removals;
use crate::keys::NodeKeys;

mod renewing;

/// The most deeds of a kind that are read back, and the most that are kept.
const MAX_READ: usize = 1 << 16;
const MAX_DEEDS: usize = 1 << 15;
/// The most titles of a node, those that are used up among them.
const MAX_TITLES: usize = 1 << 12;
/// The most gifts that one member may have asked for: a node doubles what it has with each, so 20 are enough.
const MAX_GIFTS_TO_ONE: usize = 64;
/// The most titles that are taken from one member: it may have been asked often, and leave.
pub const MAX_TITLES_FROM_ONE: usize = 128;
/// The part of the room for titles that grants may fill which this node did not ask for: what it asks for finds the rest.
const UNASKED: usize = 2;
/// How many deeds this node's blocks may need, titles and what proves them, so that another title and its chain still
/// fit a record.
pub const MAX_TOLD: usize = super::record::MAX_DEEDS - MAX_HANDS as usize - 7;
/// The most hands of a title from which is given to whoever asks; those that are left are for leaving nodes.
const MAX_HANDS_TO_ASKERS: u64 = MAX_HANDS - 9;

/// A deed of this node, and which save made it durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Title {
    deed: Deed,
    saved: u64,
}

/// A deed that this node signed for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Gift {
    deed: Deed,
    saved: u64,
    acked: bool,
}

/// What became of a grant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grant {
    /// It was taken; acknowledge it once it is saved.
    New,
    /// It was taken before; acknowledge it again.
    Known,
    /// It is not of the donor's current boot: leave it, the donor will send another.
    Stale,
    /// It is not proven, or not for this node.
    Bad,
    /// It is one more than the donor may give, or than this node can remember and tell of.
    TooMany,
}

/// The deeds of one node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Deeds {
    titles: Vec<Title>,
    /// The chains of the titles.
    proofs: Vec<Deed>,
    gifts: Vec<Gift>,
    /// Blocks that were found to be others', by these versions, after this node had forgotten that it gave them away.
    left: Vec<(Block, Version)>,
}

impl Deeds {
    /// The deeds of the cluster's first node, durable with save `saved`.
    pub fn genesis(whole: Block, me: NodeId, key: &ClusterKey, saved: u64) -> Self {
        let deed = Deed::genesis(whole, me, key);
        Self {
            titles: vec![Title { deed, saved }],
            ..Self::default()
        }
    }

    /// What this node owns: its titles that are durable with save `durable`, less its gifts and less what `others`
    /// hold by a higher version.
    pub fn blocks(&self, durable: u64, others: &[&Deed]) -> Vec<Block> {
        let mut blocks = Vec::new();
        let saved = self.titles.iter().filter(|title| title.saved <= durable);
        let mut titles: Vec<&Title> = saved.collect();
        // The newest first: a renewal is whole, whatever pieces it was made of.
        titles.sort_by_key(|title| std::cmp::Reverse(title.deed.version));
        for title in titles {
            let mut left = vec![title.deed.block];
            let gifts = self.gifts.iter().map(|gift| &gift.deed);
            let others = gifts.chain(others.iter().copied());
            let others = others.map(|deed| (deed.block, deed.version));
            let all = others.chain(self.left.iter().copied());
            let own = title.deed;
            let near = all.filter(|(block, _)| meet(own.block, *block));
            for (block, _) in near.filter(|(_, version)| *version > own.version) {
                left = subtract(&left, block);
            }
            for known in &blocks {
                left = subtract(&left, *known);
            }
            blocks.extend(left);
        }
        blocks.sort_unstable();
        blocks
    }

    /// Whether a block has addresses in common with a title of this node.
    pub fn meets(&self, block: Block) -> bool {
        self.titles
            .iter()
            .any(|title| meet(title.deed.block, block))
    }

    /// The deeds that prove `blocks`, of each the newest title that is durable with save `durable`, and chains, for the
    /// record.
    pub fn proof_of(&self, blocks: &[Block], durable: u64) -> Vec<Deed> {
        let titles = blocks
            .iter()
            .filter_map(|block| self.title_of(*block, durable));
        self.with_proofs(titles.copied())
    }

    /// Whether an own block may be given to somebody who asks: it did not go through too many hands.
    pub fn may_pass(&self, block: Block) -> bool {
        self.title_of(block, u64::MAX)
            .is_some_and(|title| title.version.hands() < MAX_HANDS_TO_ASKERS)
    }

    /// Whether `peer` may be given something when it asks, and something more can be given at all.
    pub fn may_ask(&self, peer: NodeId) -> bool {
        let to_it = self.gifts.iter().filter(|gift| gift.deed.owner == peer);
        to_it.count() < MAX_GIFTS_TO_ONE && self.gifts.len() < MAX_DEEDS
    }

    /// Whether another title can be taken, from whomever.
    pub fn has_room(&self) -> bool {
        self.has_part_of_room(1)
    }

    /// Whether a title can be taken that this node did not ask for: those fill half of the room at most.
    pub fn has_room_unasked(&self) -> bool {
        self.has_part_of_room(UNASKED)
    }

    fn has_part_of_room(&self, part: usize) -> bool {
        let proofs = self.proofs.len() + MAX_HANDS as usize;
        self.titles.len() < MAX_TITLES / part
            && proofs <= MAX_DEEDS / part
            && self.told(MAX_TOLD / part) < MAX_TOLD / part
    }

    /// How many deeds a record needs that tells of all own blocks; below `few` no more than about so many.
    fn told(&self, few: usize) -> usize {
        let most = self.titles.len() + self.proofs.len();
        if most < few {
            return most;
        }
        self.proof_of(&self.blocks(u64::MAX, &[]), u64::MAX).len()
    }

    /// The newest title of a whole block that is durable with save `durable`.
    fn title_of(&self, block: Block, durable: u64) -> Option<&Deed> {
        self.newest_of(block, durable).map(|title| &title.deed)
    }

    fn newest_of(&self, block: Block, durable: u64) -> Option<&Title> {
        let titles = self.titles.iter().filter(|title| title.saved <= durable);
        titles
            .filter(|title| covers(title.deed.block, block))
            .max_by_key(|title| title.deed.version)
    }

    /// Signs `block` away. `None` if no title covers it, or it went through too many hands. Send it once save `saved` is
    /// durable.
    pub fn give(
        &mut self,
        block: Block,
        to: NodeId,
        boot: u64,
        saved: u64,
        keys: &NodeKeys,
        cluster: &ClusterPublic,
    ) -> Option<Deed> {
        let title = self.title_of(block, u64::MAX)?;
        if title.version.hands() >= MAX_HANDS || self.gifts.len() >= MAX_DEEDS {
            return None;
        }
        let deed = title.give(block, to, boot, keys, cluster);
        self.gifts.push(Gift {
            deed,
            saved,
            acked: false,
        });
        Some(deed)
    }

    /// Signs unacknowledged gifts to living members again in a new boot; `true` if there are any, so that they must be
    /// saved.
    pub fn reissue(
        &mut self,
        boot: u64,
        saved: u64,
        keys: &NodeKeys,
        (cluster, removals): (&ClusterPublic, &Removals),
    ) -> bool {
        let mut any = false;
        let alive = |gift: &&mut Gift| !gift.acked && !removals.contains(gift.deed.owner);
        for gift in self.gifts.iter_mut().filter(alive) {
            *gift = Gift {
                deed: gift.deed.reissued(boot, keys, cluster),
                saved,
                acked: false,
            };
            any = true;
        }
        any
    }

    /// The durable gifts to `peer` that it has not acknowledged, each with its chain, nearest first.
    pub fn unacked(&self, peer: NodeId, durable: u64) -> Vec<Vec<Deed>> {
        let gifts = self
            .gifts
            .iter()
            .filter(|gift| gift.deed.owner == peer && !gift.acked);
        gifts
            .filter(|gift| gift.saved <= durable)
            .map(|gift| self.chain(&gift.deed))
            .collect()
    }

    /// Whether a gift to `peer` is under way, durable or not.
    pub fn is_giving(&self, peer: NodeId) -> bool {
        self.under_way().any(|deed| deed.owner == peer)
    }

    /// The gifts that are under way, durable or not.
    pub fn under_way(&self) -> impl Iterator<Item = &Deed> {
        let gifts = self.gifts.iter().filter(|gift| !gift.acked);
        gifts.map(|gift| &gift.deed)
    }

    /// The nodes that gifts are under way to.
    pub fn receivers(&self) -> Vec<NodeId> {
        self.under_way().map(|deed| deed.owner).collect()
    }

    /// `peer` has saved the gift of `block`; `true` if that is news.
    pub fn acknowledged(&mut self, peer: NodeId, block: Block, counter: u64) -> bool {
        let gift = self.gifts.iter_mut().find(|gift| {
            let deed = &gift.deed;
            !gift.acked
                && deed.owner == peer
                && deed.block == block
                && deed.version.counter == counter
        });
        gift.map(|gift| gift.acked = true).is_some()
    }

    /// Takes a grant: the deed, then its chain. `boot` is the boot nonce in the donor's newest record.
    pub fn accept(
        &mut self,
        grant: &[Deed],
        me: NodeId,
        boot: Option<u64>,
        saved: u64,
        (cluster, removals): (&ClusterPublic, &Removals),
    ) -> Grant {
        let Some((deed, chain)) = grant.split_first() else {
            return Grant::Bad;
        };
        if deed.owner != me {
            return Grant::Bad;
        }
        if self.has_taken(deed.block, deed.version.counter) {
            return Grant::Known;
        }
        let Some(chain) = Proofs::new(chain, cluster, removals).chain(deed) else {
            return Grant::Bad;
        };
        if boot != Some(deed.version.boot) {
            return Grant::Stale;
        }
        let donor = donor_of(deed);
        let from_it = |title: &&Title| donor_of(&title.deed) == donor;
        if !self.has_room() || self.titles.iter().filter(from_it).count() >= MAX_TITLES_FROM_ONE {
            return Grant::TooMany;
        }
        self.titles.push(Title { deed: *deed, saved });
        self.keep_proofs(&chain);
        Grant::New
    }

    fn keep_proofs(&mut self, chain: &[Deed]) {
        for proof in chain {
            if !self.proofs.contains(proof) {
                self.proofs.push(*proof);
            }
        }
    }

    /// Whether this node has a title of this counter or a higher one that covers a block, durable or not.
    pub fn has_taken(&self, block: Block, counter: u64) -> bool {
        self.has_saved(block, counter, u64::MAX)
    }

    /// Whether such a title is durable, so that the grant of the block may be acknowledged. An older title says nothing:
    /// the block may have been away since.
    pub fn has_saved(&self, block: Block, counter: u64, durable: u64) -> bool {
        self.titles.iter().any(|title| {
            let deed = &title.deed;
            let later = deed.version.counter >= counter;
            covers(deed.block, block) && later && title.saved <= durable
        })
    }

    /// Whether every title and gift is durable.
    pub fn are_saved(&self, durable: u64) -> bool {
        let titles = self.titles.iter().map(|title| title.saved);
        let gifts = self.gifts.iter().map(|gift| gift.saved);
        titles.chain(gifts).all(|saved| saved <= durable)
    }

    /// Every deed that this node had or signed: its titles and its gifts.
    pub fn known(&self) -> impl Iterator<Item = &Deed> {
        self.titles().chain(self.gifts())
    }

    /// Its titles, those that are used up among them.
    pub fn titles(&self) -> impl Iterator<Item = &Deed> {
        self.titles.iter().map(|title| &title.deed)
    }

    /// What it gave away.
    pub fn gifts(&self) -> impl Iterator<Item = &Deed> {
        self.gifts.iter().map(|gift| &gift.deed)
    }

    /// Whether this node knows that it signed this deed, in whatever boot, or has left the block to others since.
    pub fn has_given(&self, deed: &Deed) -> bool {
        let same = |gift: &Gift| {
            let known = &gift.deed;
            (known.block, known.owner, known.version.counter)
                == (deed.block, deed.owner, deed.version.counter)
        };
        let left = |(block, version): &(Block, Version)| {
            (*block, version.counter) == (deed.block, deed.version.counter)
        };
        self.gifts.iter().any(same) || self.left.iter().any(left)
    }

    /// Remembers a gift that this node had forgotten; its receiver has it.
    pub fn remember(&mut self, deed: Deed, saved: u64) {
        let same = |gift: &Gift| {
            let known = &gift.deed;
            (known.block, known.owner, known.version.counter)
                == (deed.block, deed.owner, deed.version.counter)
        };
        if !self.gifts.iter().any(same) {
            let acked = true;
            self.gifts.push(Gift { deed, saved, acked });
        }
    }

    /// Whether a title here is lower than what somebody holds of its block by this version, and no later one covers that.
    pub fn is_beaten_by(&self, (claimed, version): (Block, Version)) -> bool {
        let later =
            |title: &Title| title.deed.version > version && covers(title.deed.block, claimed);
        if self.titles.iter().any(later) {
            return false;
        }
        let beaten = |title: &Title| {
            let block = title.deed.block;
            title.deed.version < version && (covers(block, claimed) || covers(claimed, block))
        };
        self.titles.iter().any(beaten)
    }

    /// Leaves to others what they hold by these versions, where those are higher than the titles here.
    pub fn leave_to_others(&mut self, claims: impl Iterator<Item = (Block, Version)>) {
        for claim in claims {
            if self.is_beaten_by(claim) && !self.left.contains(&claim) {
                self.left.push(claim);
            }
        }
    }

    /// The gifts to `node`, each with its chain.
    pub fn given_to(&self, node: NodeId) -> Vec<Deed> {
        let gifts = self.gifts.iter().filter(|gift| gift.deed.owner == node);
        gifts.flat_map(|gift| self.chain(&gift.deed)).collect()
    }

    /// Takes what was proven to be this node's otherwise than by a grant: an inheritance, or a title that it had
    /// forgotten; `chain` leads to it. `false` if there is no room for it.
    pub fn adopt(&mut self, deed: Deed, chain: &[Deed], saved: u64) -> bool {
        if self.titles.iter().any(|title| title.deed == deed) {
            return true;
        }
        let room = self.has_room();
        if room {
            self.keep_proofs(chain);
            self.titles.push(Title { deed, saved });
        }
        room
    }

    /// A deed and what leads from it to the genesis.
    fn chain(&self, deed: &Deed) -> Vec<Deed> {
        let mut chain = vec![*deed];
        chain.extend(deed.chain(&self.pool()).unwrap_or_default());
        chain
    }

    /// Own titles and gifts and what leads from them to the genesis, each once.
    pub fn with_proofs(&self, deeds: impl Iterator<Item = Deed>) -> Vec<Deed> {
        let pool = self.pool();
        let (mut told, mut seen) = (Vec::new(), BTreeSet::new());
        for deed in deeds {
            let mut next = Some(deed);
            while let Some(deed) = next.filter(|deed| seen.insert(deed.signature)) {
                told.push(deed);
                next = deed.parent(&pool);
            }
        }
        told
    }

    fn pool(&self) -> Vec<Deed> {
        let titles = self.titles.iter().map(|title| title.deed);
        self.proofs.iter().copied().chain(titles).collect()
    }

    /// Appends all of it, for the saved state.
    pub fn write(&self, out: &mut Writer) {
        out.u32(self.titles.len() as u32);
        self.titles.iter().for_each(|title| title.deed.write(out));
        out.u32(self.proofs.len() as u32);
        self.proofs.iter().for_each(|deed| deed.write(out));
        out.u32(self.gifts.len() as u32);
        for gift in &self.gifts {
            gift.deed.write(out);
            out.u8(u8::from(gift.acked));
        }
        for (block, version) in &self.left {
            write_block(*block, out);
            write_version(*version, out);
        }
    }

    /// Reads what was saved: all of it is durable.
    pub fn read(bytes: &mut Reader<'_>) -> Result<Self, Malformed> {
        let mut deeds = Self::default();
        for _ in 0..count(bytes)? {
            deeds.titles.push(Title {
                deed: Deed::read(bytes)?,
                saved: 0,
            });
        }
        for _ in 0..count(bytes)? {
            deeds.proofs.push(Deed::read(bytes)?);
        }
        for _ in 0..count(bytes)? {
            let deed = Deed::read(bytes)?;
            deeds.gifts.push(Gift {
                deed,
                saved: 0,
                acked: bytes.u8()? != 0,
            });
        }
        while !bytes.is_empty() {
            deeds.left.push((read_block(bytes)?, read_version(bytes)?));
        }
        Ok(deeds)
    }
}

fn count(bytes: &mut Reader<'_>) -> Result<usize, Malformed> {
    let count = bytes.u32()? as usize;
    if count > MAX_READ {
        Err(bytes.malformed())
    } else {
        Ok(count)
    }
}

/// Whether a node whose record has so many `deeds` takes some that it did not ask for, which need so many `more`.
pub const fn has_room_for(more: usize, deeds: usize) -> bool {
    deeds + more < MAX_TOLD / UNASKED
}

/// Who gave the block, if a node did.
pub fn donor_of(deed: &Deed) -> Option<NodeId> {
    match &deed.donor {
        Donor::Cluster | Donor::Heir { .. } => None,
        Donor::Node(public) => Some(public.id()),
    }
}

/// How large a gift should be at most, as the binary logarithm of its size, the largest first to be tried; `None` if
/// there is nothing to give.
///
/// `whole` is the logarithm of the range's size; `wanted` what is asked for, 0 for what a joiner gets; the donor has
/// `have` addresses and uses `used` of them.
pub fn gift_bits(
    whole: u8,
    wanted: u8,
    have: u32,
    used: u32,
) -> Option<std::ops::RangeInclusive<u8>> {
    let wanted = if wanted == 0 {
        whole.saturating_sub(10).max(8)
    } else {
        wanted
    };
    let mut bits = wanted.min(whole.saturating_sub(2));
    let bearable = |bits: u8| {
        let (gift, have, used) = (1_u64 << bits, u64::from(have), u64::from(used));
        gift * 4 <= have * 3 && used * 4 < (have - gift) * 3
    };
    while bits >= MIN_BITS && !bearable(bits) {
        bits -= 1;
    }
    (bits >= MIN_BITS).then_some(MIN_BITS..=bits)
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) struct Cast {
        pub(super) a: NodeKeys,
        pub(super) b: NodeKeys,
        pub(super) key: ClusterKey,
        pub(super) cluster: ClusterPublic,
        pub(super) deeds: Deeds,
    }

    pub(super) fn cast() -> Cast {
        let (a, b) = (
            NodeKeys::from_bytes(&[1; 64]),
            NodeKeys::from_bytes(&[2; 64]),
        );
        let key = ClusterKey::from_bytes(&[3; 32]);
        let deeds = Deeds::genesis(block(0, 12), a.id(), &key, 1);
        Cast {
            a,
            b,
            cluster: key.public(),
            key,
            deeds,
        }
    }

    pub(super) fn block(first: u32, bits: u8) -> Block {
        Block::new(first, bits).unwrap()
    }

    #[test]
    fn a_gift_is_gone_at_once_and_sent_when_saved() {
        let mut c = cast();
        assert_eq!(c.deeds.blocks(0, &[]), [], "the genesis is not saved yet");
        assert_eq!(c.deeds.blocks(1, &[]), [block(0, 12)]);
        c.deeds
            .give(block(2048, 11), c.b.id(), 7, 2, &c.a, &c.cluster)
            .unwrap();
        assert_eq!(c.deeds.blocks(1, &[]), [block(0, 11)]);
        assert!(c.deeds.unacked(c.b.id(), 1).is_empty(), "not saved yet");
        let grants = c.deeds.unacked(c.b.id(), 2);
        let mut theirs = Deeds::default();
        assert_eq!(
            theirs.accept(
                &grants[0],
                c.b.id(),
                Some(7),
                5,
                (&c.cluster, &Removals::default())
            ),
            Grant::New
        );
        assert_eq!(theirs.blocks(4, &[]), []);
        assert_eq!(theirs.blocks(5, &[]), [block(2048, 11)]);
        assert!(c.deeds.acknowledged(c.b.id(), block(2048, 11), 2));
        assert!(!c.deeds.acknowledged(c.b.id(), block(2048, 11), 2));
        assert!(c.deeds.unacked(c.b.id(), 9).is_empty());
    }

    #[test]
    fn a_late_duplicate_gives_nothing_twice() {
        let mut c = cast();
        c.deeds
            .give(block(2048, 11), c.b.id(), 7, 2, &c.a, &c.cluster)
            .unwrap();
        let grant = c.deeds.unacked(c.b.id(), 2).remove(0);
        let mut theirs = Deeds::default();
        theirs.accept(
            &grant,
            c.b.id(),
            Some(7),
            1,
            (&c.cluster, &Removals::default()),
        );
        theirs
            .give(block(2048, 11), c.a.id(), 8, 2, &c.b, &c.cluster)
            .unwrap();
        assert_eq!(theirs.blocks(2, &[]), []);
        assert_eq!(
            theirs.accept(
                &grant,
                c.b.id(),
                Some(7),
                3,
                (&c.cluster, &Removals::default())
            ),
            Grant::Known
        );
        assert_eq!(theirs.blocks(9, &[]), [], "it was passed on");
        let back = theirs.unacked(c.a.id(), 2).remove(0);
        assert_eq!(
            c.deeds.accept(
                &back,
                c.a.id(),
                Some(8),
                3,
                (&c.cluster, &Removals::default())
            ),
            Grant::New
        );
        assert_eq!(c.deeds.blocks(3, &[]), [block(0, 11), block(2048, 11)]);
    }

    #[test]
    fn an_older_title_of_a_block_says_nothing_of_its_return() {
        let mut c = cast();
        let none = Removals::default();
        let terms = (&c.cluster, &none);
        let (a, b) = (c.a.id(), c.b.id());
        let away = block(2048, 11);
        c.deeds.give(away, b, 7, 2, &c.a, &c.cluster).unwrap();
        let grant = c.deeds.unacked(b, 2).remove(0);
        let mut theirs = Deeds::default();
        theirs.accept(&grant, b, Some(7), 1, terms);
        theirs.give(away, a, 8, 2, &c.b, &c.cluster).unwrap();
        let back = theirs.unacked(a, 2).remove(0);
        assert_eq!(c.deeds.accept(&back, a, Some(8), 3, terms), Grant::New);
        c.deeds.give(away, b, 7, 4, &c.a, &c.cluster).unwrap();
        let again = c.deeds.unacked(b, 4).pop().unwrap();
        assert_eq!(theirs.accept(&again, b, Some(7), 5, terms), Grant::New);
        assert_eq!(theirs.accept(&again, b, Some(7), 6, terms), Grant::Known);
        let counters = [grant[0], again[0]].map(|deed| deed.version.counter);
        let saved = |durable| counters.map(|counter| theirs.has_saved(away, counter, durable));
        assert_eq!(saved(4), [true, false], "the second one is not durable yet");
        assert_eq!(saved(5), [true, true]);
    }

    #[test]
    fn what_nobody_asked_for_leaves_half_of_the_room() {
        let c = cast();
        let mut theirs = Deeds::default();
        let mut unasked = 0;
        for n in 0..512 {
            let title = Deed::genesis(block(n * 8, 3), c.b.id(), &c.key);
            unasked += usize::from(theirs.has_room_unasked());
            if !theirs.adopt(title, &[], 1) {
                break;
            }
        }
        assert_eq!(theirs.titles.len(), MAX_TOLD);
        assert_eq!(unasked, MAX_TOLD / 2);
    }

    #[test]
    fn a_restarted_donor_signs_again() {
        let mut c = cast();
        c.deeds
            .give(block(2048, 11), c.b.id(), 7, 2, &c.a, &c.cluster)
            .unwrap();
        let before = c.deeds.unacked(c.b.id(), 2).remove(0);
        let mut bytes = Writer::new();
        c.deeds.write(&mut bytes);
        let mut again = Deeds::read(&mut Reader::new(&bytes.0, "deeds")).unwrap();
        assert!(again.reissue(8, 1, &c.a, (&c.cluster, &Removals::default())));
        let after = again.unacked(c.b.id(), 1).remove(0);
        let mut theirs = Deeds::default();
        assert_eq!(
            theirs.accept(
                &before,
                c.b.id(),
                Some(8),
                1,
                (&c.cluster, &Removals::default())
            ),
            Grant::Stale
        );
        assert_eq!(
            theirs.accept(
                &after,
                c.b.id(),
                Some(8),
                1,
                (&c.cluster, &Removals::default())
            ),
            Grant::New
        );
        let mut had_it = Deeds::default();
        assert_eq!(
            had_it.accept(
                &before,
                c.b.id(),
                Some(7),
                1,
                (&c.cluster, &Removals::default())
            ),
            Grant::New
        );
        assert_eq!(
            had_it.accept(
                &after,
                c.b.id(),
                Some(8),
                2,
                (&c.cluster, &Removals::default())
            ),
            Grant::Known
        );
        assert!(again.acknowledged(c.b.id(), block(2048, 11), 2));
        assert!(!again.reissue(9, 2, &c.a, (&c.cluster, &Removals::default())));
    }

    #[test]
    fn one_donor_gives_so_many_titles_and_no_more() {
        let mut c = cast();
        let mut theirs = Deeds::default();
        let none = Removals::default();
        let sixteens = (0..256).map(|n| block(n * 16, 3));
        let mut verdicts = Vec::new();
        for part in sixteens {
            c.deeds
                .give(part, c.b.id(), 7, 2, &c.a, &c.cluster)
                .unwrap();
            let grant = c.deeds.unacked(c.b.id(), 2).pop().unwrap();
            let terms = (&c.cluster, &none);
            verdicts.push(theirs.accept(&grant, c.b.id(), Some(7), 1, terms));
        }
        let taken = verdicts.iter().filter(|verdict| **verdict == Grant::New);
        assert_eq!(taken.count(), MAX_TITLES_FROM_ONE);
        assert_eq!(verdicts.last(), Some(&Grant::TooMany));
        let blocks = theirs.blocks(1, &[]);
        assert!(theirs.proof_of(&blocks, u64::MAX).len() <= MAX_TOLD);
        let mut bytes = Writer::new();
        theirs.write(&mut bytes);
        assert!(Deeds::read(&mut Reader::new(&bytes.0, "deeds")).is_ok());
    }

    #[test]
    fn many_donors_cannot_give_more_than_a_record_tells() {
        let mut c = cast();
        let mut theirs = Deeds::default();
        let me = NodeKeys::from_bytes(&[99; 64]).id();
        for n in 0..32_u32 {
            let donor = NodeKeys::from_bytes(&[n as u8 + 10; 64]);
            let part = block(n * 128, 7);
            c.deeds
                .give(part, donor.id(), 7, 2, &c.a, &c.cluster)
                .unwrap();
            let grant = c.deeds.unacked(donor.id(), 2).remove(0);
            for eighth in 0..16 {
                let small = block(n * 128 + eighth * 8, 3);
                let gift = grant[0].give(small, me, 8, &donor, &c.cluster);
                let whole = [&[gift][..], &grant].concat();
                let terms = (&c.cluster, &Removals::default());
                theirs.accept(&whole, me, Some(8), 1, terms);
            }
        }
        let told = theirs.proof_of(&theirs.blocks(1, &[]), 1).len();
        assert!(told >= MAX_TOLD, "as many as are told: {told}");
        assert!(told < MAX_TOLD + MAX_HANDS as usize, "{told}");
    }

    #[test]
    fn a_block_that_went_through_many_hands_is_not_given_to_askers() {
        let c = cast();
        let hands = [&c.b, &c.a];
        let mut deeds = [Deeds::default(), c.deeds.clone()];
        for n in 2..=MAX_HANDS {
            let (to, from) = (n as usize % 2, (n as usize + 1) % 2);
            let asked = deeds[from].may_pass(block(0, 12));
            assert_eq!(asked, n <= MAX_HANDS_TO_ASKERS, "{n}");
            let gift =
                deeds[from].give(block(0, 12), hands[to].id(), n, 2, hands[from], &c.cluster);
            assert!(gift.is_some(), "who leaves hands it over: {n}");
            let grant = deeds[from].unacked(hands[to].id(), 2).pop().unwrap();
            let terms = (&c.cluster, &Removals::default());
            let taken = deeds[to].accept(&grant, hands[to].id(), Some(n), 1, terms);
            assert_eq!(taken, Grant::New, "{n}");
        }
        let last = &mut deeds[MAX_HANDS as usize % 2];
        let own = hands[MAX_HANDS as usize % 2];
        let gift = last.give(block(0, 12), c.a.id(), 99, 2, own, &c.cluster);
        assert_eq!(gift, None, "nobody would believe it");
    }

    #[test]
    fn a_member_asks_so_often_and_no_more() {
        let mut c = cast();
        for n in 0..MAX_GIFTS_TO_ONE as u32 {
            assert!(c.deeds.may_ask(c.b.id()));
            c.deeds
                .give(block(n * 8, 3), c.b.id(), 7, 2, &c.a, &c.cluster)
                .unwrap();
        }
        assert!(!c.deeds.may_ask(c.b.id()));
        assert!(c.deeds.may_ask(c.a.id()), "others may");
    }

    #[test]
    fn a_grant_for_another_or_without_proof_is_bad() {
        let mut c = cast();
        c.deeds
            .give(block(2048, 11), c.b.id(), 7, 2, &c.a, &c.cluster)
            .unwrap();
        let grant = c.deeds.unacked(c.b.id(), 2).remove(0);
        let mut theirs = Deeds::default();
        assert_eq!(
            theirs.accept(
                &grant,
                c.a.id(),
                Some(7),
                1,
                (&c.cluster, &Removals::default())
            ),
            Grant::Bad
        );
        assert_eq!(
            theirs.accept(
                &grant[..1],
                c.b.id(),
                Some(7),
                1,
                (&c.cluster, &Removals::default())
            ),
            Grant::Bad
        );
        assert_eq!(
            theirs.accept(
                &[],
                c.b.id(),
                Some(7),
                1,
                (&c.cluster, &Removals::default())
            ),
            Grant::Bad
        );
        let foreign = ClusterKey::from_bytes(&[9; 32]).public();
        assert_eq!(
            theirs.accept(
                &grant,
                c.b.id(),
                Some(7),
                1,
                (&foreign, &Removals::default())
            ),
            Grant::Bad
        );
    }

    #[test]
    fn a_higher_version_elsewhere_wins() {
        let mut c = cast();
        let rolled_back = c.deeds.clone();
        let given = c
            .deeds
            .give(block(0, 10), c.b.id(), 7, 2, &c.a, &c.cluster)
            .unwrap();
        assert_eq!(
            rolled_back.blocks(1, &[&given]),
            [block(1024, 10), block(2048, 11)]
        );
        let lower = Deed::genesis(block(0, 12), c.b.id(), &c.key);
        assert_eq!(
            rolled_back.blocks(1, &[&lower]),
            [block(0, 12)],
            "equals keep what they have"
        );
    }

    #[test]
    fn joiners_get_a_24_and_donors_keep_enough() {
        let first = |whole, have, used| gift_bits(whole, 0, have, used).map(|bits| *bits.end());
        assert_eq!(first(20, 1 << 20, 0), Some(10), "a /22 of the default /12");
        assert_eq!(first(16, 1 << 16, 0), Some(8), "a /24 of a /16");
        assert_eq!(first(8, 256, 0), Some(6), "a quarter of a /24");
        assert_eq!(
            first(8, 64, 0),
            Some(5),
            "at most three quarters of what is left"
        );
        assert_eq!(first(8, 64, 45), None, "the donor needs it itself");
        assert_eq!(first(8, 8, 0), None);
        assert_eq!(
            gift_bits(20, 12, 1 << 20, 0),
            Some(3..=12),
            "as much as is asked for"
        );
        assert_eq!(
            gift_bits(20, 24, 1 << 20, 0),
            Some(3..=18),
            "but not more than a quarter of the range"
        );
    }
}
