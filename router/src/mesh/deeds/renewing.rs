//! Renewing what came back, and forgetting what a renewal makes void; see [`crate::mesh::deed`] for why that is sound.
//!
//! A renewal beats whatever these addresses had before, so it must not rest on memory. Of what was read from the disk some
//! may have been given away since, if the disk was put back and nobody has said so yet. Where such a title is only used, its
//! owner loses to those it gave to; renewed, it would take from them. So only titles that came in this run are renewed,
//! each the word of who had the addresses until then, and only they are joined.

use std::collections::BTreeSet;

use weave_model::{Block, NodeId};

use super::{Deeds, Title};
use crate::mesh::cluster::ClusterKey;
use crate::mesh::deed::{Deed, Donor, Version, covers, joined};

impl Deeds {
    /// Renews what of `blocks`, all that this node owns, came with save `since` or later and went through other hands, each
    /// with the neighbours that came then too and make it a larger block. `true` if there is any, so that it must be saved.
    pub fn renew(
        &mut self,
        blocks: &[Block],
        (me, boot): (NodeId, u64),
        (since, saved): (u64, u64),
        key: &ClusterKey,
    ) -> bool {
        let new = |block: &&Block| {
            let title = self.newest_of(**block, u64::MAX);
            title.is_some_and(|title| title.saved >= since)
        };
        let blocks: Vec<Block> = blocks.iter().filter(new).copied().collect();
        let mut any = false;
        for whole in joined(blocks.clone()) {
            let parts = blocks.iter().filter(|block| covers(whole, **block));
            let titles = parts.filter_map(|block| self.title_of(*block, u64::MAX));
            let titles: BTreeSet<Version> = titles.map(|title| title.version).collect();
            let hands = titles.iter().map(|version| version.hands()).max();
            let Some(last) = titles.last().filter(|_| hands > Some(1)) else {
                continue;
            };
            let deed = Deed::renewal(whole, me, last.counter, boot, key);
            self.titles.push(Title { deed, saved });
            any = true;
        }
        any
    }

    /// Forgets what a renewal that is durable with save `durable` makes void. `true` if there is anything.
    pub fn forget_renewed(&mut self, durable: u64) -> bool {
        let saved = self.titles.iter().filter(|title| title.saved <= durable);
        let renewals: Vec<Deed> = saved
            .map(|title| title.deed)
            .filter(|deed| deed.donor == Donor::Cluster)
            .collect();
        let void = |block: Block, version: Version| {
            let beats = |deed: &Deed| version < deed.version && covers(deed.block, block);
            renewals.iter().any(beats)
        };
        let before = self.titles.len() + self.gifts.len() + self.left.len();
        // Something that stays may have come of one that goes.
        let going = self.titles().filter(|deed| void(deed.block, deed.version));
        let going: Vec<Deed> = going.copied().collect();
        self.keep_proofs(&going);
        self.titles
            .retain(|title| !void(title.deed.block, title.deed.version));
        self.gifts
            .retain(|gift| !void(gift.deed.block, gift.deed.version));
        self.left.retain(|(block, version)| !void(*block, *version));
        let any = self.titles.len() + self.gifts.len() + self.left.len() < before;
        if any {
            // What others gave leads on over gifts, so those are proofs as well.
            let titles: BTreeSet<[u8; 64]> = self.titles().map(|deed| deed.signature).collect();
            let proofs = self.with_proofs(self.known().copied()).into_iter();
            self.proofs = proofs
                .filter(|deed| !titles.contains(&deed.signature))
                .collect();
        }
        any
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::Grant;
    use super::super::tests::{Cast, block, cast};
    use super::*;
    use crate::keys::NodeKeys;
    use crate::mesh::codec::{Reader, Writer};
    use crate::mesh::deed::meet;
    use crate::mesh::removal::Removals;

    /// A block goes from the first node to another, and back by a grant.
    fn there_and_back(c: &mut Cast, away: Block, save: u64) -> Vec<Deed> {
        let none = Removals::default();
        let (a, b) = (c.a.id(), c.b.id());
        c.deeds.give(away, b, 7, save, &c.a, &c.cluster).unwrap();
        let grant = c.deeds.unacked(b, save).pop().unwrap();
        let mut theirs = Deeds::default();
        let terms = (&c.cluster, &none);
        assert_eq!(theirs.accept(&grant, b, Some(7), save, terms), Grant::New);
        assert!(c.deeds.acknowledged(b, away, grant[0].version.counter));
        theirs.give(away, a, 8, save, &c.b, &c.cluster).unwrap();
        let back = theirs.unacked(a, save).pop().unwrap();
        let taken = c.deeds.accept(&back, a, Some(8), save, terms);
        assert_eq!(taken, Grant::New);
        back
    }

    #[test]
    fn what_came_back_is_renewed_with_its_neighbours_and_all_before_forgotten() {
        let mut c = cast();
        let (me, away) = ((c.a.id(), 9), block(2048, 10));
        let back = there_and_back(&mut c, away, 2);
        let pieces = c.deeds.blocks(2, &[]);
        assert_eq!(pieces, [block(0, 11), away, block(3072, 10)]);
        assert_eq!(c.deeds.proof_of(&pieces, 2).len(), 3);
        assert!(c.deeds.renew(&pieces, me, (1, 3), &c.key));
        assert!(
            !c.deeds.renew(&pieces, me, (1, 3), &c.key),
            "it waits to be saved"
        );
        assert_eq!(
            c.deeds.blocks(2, &[]),
            pieces,
            "and serves as it is till then"
        );
        assert_eq!(c.deeds.proof_of(&pieces, 2).len(), 3, "by what is saved");
        assert!(!c.deeds.forget_renewed(2));
        assert!(c.deeds.forget_renewed(3));
        let whole = block(0, 12);
        assert_eq!(c.deeds.blocks(3, &[]), [whole]);
        assert_eq!(c.deeds.known().count() + c.deeds.proofs.len(), 1);
        assert_eq!(c.deeds.proof_of(&[whole], 3).len(), 1);
        let none = Removals::default();
        let late = c
            .deeds
            .accept(&back, c.a.id(), Some(8), 4, (&c.cluster, &none));
        assert_eq!(late, Grant::Known, "a late duplicate");
        assert!(!c.deeds.is_beaten_by((away, back[1].version)));
        let again = c.deeds.give(away, c.b.id(), 9, 4, &c.a, &c.cluster);
        assert!(again.unwrap().version > back[0].version);
        assert_eq!(c.deeds.blocks(4, &[]), [block(0, 11), block(3072, 10)]);
    }

    #[test]
    fn what_came_back_and_was_given_on_keeps_its_proof() {
        let mut c = cast();
        let away = block(2048, 9);
        there_and_back(&mut c, away, 2);
        let other = NodeKeys::from_bytes(&[5; 64]).id();
        let on = c.deeds.give(away, other, 9, 3, &c.a, &c.cluster).unwrap();
        there_and_back(&mut c, block(1024, 9), 4);
        let mine = c.deeds.blocks(4, &[]);
        assert!(c.deeds.renew(&mine, (c.a.id(), 9), (1, 5), &c.key));
        assert!(c.deeds.forget_renewed(5));
        let (grant, none) = (c.deeds.unacked(other, 5).remove(0), Removals::default());
        assert_eq!(grant.len(), 4);
        assert!(on.proven(&grant[1..], &c.cluster, &none));
    }

    #[test]
    fn what_came_and_went_five_hundred_times_is_proven_by_as_much_as_before() {
        let mut c = cast();
        let living = NodeKeys::from_bytes(&[5; 64]).id();
        let theirs = block(0, 8);
        c.deeds
            .give(theirs, living, 7, 2, &c.a, &c.cluster)
            .unwrap();
        let mut last = BTreeMap::new();
        for save in 3..503 {
            let away = block(1024 + (save as u32 * 7 % 12) * 256, 8);
            let back = there_and_back(&mut c, away, save);
            let before = last.insert(away, back[0].version);
            assert!(before < Some(back[1].version), "versions only grow");
            let mine = c.deeds.blocks(save, &[]);
            assert!(c.deeds.renew(&mine, (c.a.id(), save), (1, save), &c.key));
            assert!(c.deeds.forget_renewed(save));
            let mine = c.deeds.blocks(save, &[]);
            assert_eq!(mine.iter().map(Block::size).sum::<u32>(), 4096 - 256);
            assert!(mine.len() <= 4, "{mine:?}");
            assert!(c.deeds.proof_of(&mine, save).len() <= 5);
            assert!(c.deeds.known().count() + c.deeds.proofs.len() <= 6);
        }
    }

    #[test]
    fn what_others_have_is_not_renewed_or_forgotten() {
        let mut c = cast();
        let other = NodeKeys::from_bytes(&[5; 64]).id();
        let theirs = block(3072, 10);
        c.deeds.give(theirs, other, 7, 2, &c.a, &c.cluster).unwrap();
        there_and_back(&mut c, block(2048, 10), 2);
        let mine = c.deeds.blocks(2, &[]);
        assert!(c.deeds.renew(&mine, (c.a.id(), 9), (1, 3), &c.key));
        assert!(c.deeds.forget_renewed(3));
        assert_eq!(c.deeds.blocks(3, &[]), [block(0, 11), block(2048, 10)]);
        let gifts: Vec<&Deed> = c.deeds.gifts().collect();
        assert!(gifts.len() == 1 && gifts[0].block == theirs);
        for title in c
            .deeds
            .titles()
            .filter(|title| title.version > gifts[0].version)
        {
            assert!(!meet(title.block, theirs), "{title:?}");
        }
        assert_eq!(
            c.deeds.unacked(other, 3)[0].len(),
            2,
            "it is proven as before"
        );
    }

    #[test]
    fn what_was_read_from_the_disk_is_not_renewed() {
        let mut c = cast();
        let (me, none) = ((c.a.id(), 9), Removals::default());
        there_and_back(&mut c, block(2048, 9), 2);
        let mut bytes = Writer::new();
        c.deeds.write(&mut bytes);
        c.deeds = Deeds::read(&mut Reader::new(&bytes.0, "deeds")).unwrap();
        let before = c.deeds.blocks(0, &[]);
        assert!(!c.deeds.renew(&before, me, (1, 1), &c.key), "nothing came");
        // What the copy of the disk does not know: some of it was given to another since.
        let genesis = Deed::genesis(block(0, 12), c.a.id(), &c.key);
        let other = NodeKeys::from_bytes(&[5; 64]).id();
        let theirs = genesis.give(block(0, 10), other, 8, &c.a, &c.cluster);
        there_and_back(&mut c, block(2560, 9), 2);
        let mine = c.deeds.blocks(2, &[]);
        assert!(c.deeds.renew(&mine, me, (1, 3), &c.key));
        assert!(c.deeds.forget_renewed(3));
        let renewals = c.deeds.titles().filter(|title| title.version.counter > 256);
        let renewed: Vec<Block> = renewals.map(|title| title.block).collect();
        assert_eq!(renewed, [block(2560, 9)], "what came in this run");
        assert!(theirs.proven(&[genesis], &c.cluster, &none));
        let left = c.deeds.blocks(3, &[&theirs]);
        assert!(!left.iter().any(|mine| meet(*mine, theirs.block)));
        // The next run's: the two halves have one owner, but one of them waits until it comes back again.
        there_and_back(&mut c, block(2048, 9), 4);
        let mine = c.deeds.blocks(4, &[]);
        assert!(c.deeds.renew(&mine, me, (1, 5), &c.key));
        assert!(c.deeds.forget_renewed(5));
        let whole = c.deeds.blocks(5, &[]).contains(&block(2048, 10));
        assert!(whole, "{:?}", c.deeds.blocks(5, &[]));
    }
}
