//! Taking the addresses of removed nodes, and testifying for whoever does.
//!
//! The heir asks all living members (see [`crate::mesh::inquiry`]). A member answers once the removal and all its own
//! deeds are durable: from then on it takes nothing from the removed node, whatever still arrives. When all have
//! answered, the heir signs itself what no newer deed covers, saves it and uses it. A deed that somebody tells of counts
//! if it is proven, and only then.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use rand::Rng;
use tracing::{debug, info, warn};
use weave_model::{Block, NodeId};

use super::Core;
use super::budget::Cost;
use super::saving::Pending;
use crate::mesh::deed::{Deed, MAX_HANDS, MIN_BITS, Proofs, Version, covers, meet};
use crate::mesh::inquiry::{Inquiry, Testimony, left_over, newest};
use crate::mesh::message::Message;
use crate::mesh::record::Record;

/// The inquiries under way, by the node that they are about.
#[derive(Debug, Default)]
pub(super) struct Inquiries(pub(super) BTreeMap<NodeId, Inquiry>);

impl Inquiries {
    /// When to ask again.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.0.values().map(Inquiry::poll_timeout).min()
    }
}

impl Core {
    /// Begins the inquiries that are to be made, asks who has not answered, and ends those that all have answered.
    pub(super) fn inquire(&mut self) {
        if !self.active || self.is_out() {
            // Nobody would answer, and what waits to be asked again would wake this node without end.
            self.inquiries.0.clear();
            return;
        }
        let durable = self.saving.durable();
        let mine = self
            .removals
            .iter()
            .filter(|removal| removal.heir == self.me);
        let room = || {
            let own = self.membership.as_ref();
            own.is_some_and(|own| own.deeds.has_room())
        };
        let open = mine.map(|removal| removal.node).filter(|node| {
            let removed = self.removed.get(node);
            let open = removed.is_some_and(|removed| !removed.settled && removed.saved <= durable);
            // One that found no room for all goes on when there is some.
            open && (self.inquiries.0.contains_key(node) || room())
        });
        let me = self.past.in_doubt.then_some(self.me);
        for node in open.chain(me).collect::<Vec<_>>() {
            if !self.inquiries.0.contains_key(&node) {
                let inquiry = Inquiry::new(self.rng.next_u64(), self.now.mono);
                self.inquiries.0.insert(node, inquiry);
                self.changed();
            }
        }
        for about in self.inquiries.0.keys().copied().collect::<Vec<_>>() {
            self.ask_about(about);
        }
    }

    fn ask_about(&mut self, about: NodeId) {
        let now = self.now.mono;
        if let Some(inquiry) = self.inquiries.0.get_mut(&about) {
            inquiry.forget(|node| self.removals.contains(node));
        }
        let missing = self.silent_about(about);
        let Some(inquiry) = self.inquiries.0.get_mut(&about) else {
            return;
        };
        if missing.is_empty() {
            self.conclude(about);
        } else if inquiry.is_due(now) {
            let id = inquiry.id();
            missing.iter().for_each(|node| inquiry.ask(*node));
            for node in missing {
                self.want(node);
                self.send(node, &Message::DeedInquiry { id, about });
            }
        }
    }

    /// Who has yet to answer an inquiry.
    pub(super) fn silent_about(&self, about: NodeId) -> Vec<NodeId> {
        let Some(inquiry) = self.inquiries.0.get(&about) else {
            return Vec::new();
        };
        let counts = |node| node != self.me && !self.removals.contains(node);
        let missing = inquiry.missing(self.living().into_iter(), counts, self.now.mono);
        missing.into_iter().collect()
    }

    /// A member asks what this one knows.
    pub(super) fn handle_inquiry(&mut self, peer: NodeId, id: u64, about: NodeId) {
        let Some(membership) = self.membership.as_ref().filter(|_| self.active) else {
            return;
        };
        let durable = self.saving.durable();
        let removed = self.removed.get(&about);
        if !self.budgets.pay(peer, Cost::Inquiry, self.now.mono) {
            return;
        }
        let ready = removed.map_or(about == peer, |removed| removed.saved <= durable);
        if !ready || !membership.deeds.are_saved(durable) {
            return debug!(from = %peer.short(), about = %about.short(), "an inquiry comes too early");
        }
        let heir = self.removals.get(about).map(|removal| removal.heir);
        let (members, deeds) = (self.living(), self.told_of(about));
        let Some(parts) = Testimony::in_parts((id, about), heir, members, &deeds) else {
            return warn!(to = %peer.short(), about = %about.short(), "this node knows of more deeds than it can testify of");
        };
        for part in parts {
            self.send(peer, &Message::DeedTestimony(part));
        }
    }

    /// A member says what it knows.
    pub(super) fn handle_testimony(&mut self, peer: NodeId, testimony: Testimony) {
        let about = testimony.about;
        let agrees = testimony.heir == self.removals.get(about).map(|removal| removal.heir);
        if !agrees {
            return debug!(from = %peer.short(), about = %about.short(), "it knows of another removal, or of none");
        }
        let known = self.living().into_iter().chain([self.me]);
        let known = known.chain(self.removals.iter().map(|removal| removal.node));
        let known: BTreeSet<NodeId> = known.collect();
        let inquiry = self.inquiries.0.get_mut(&about);
        let inquiry = inquiry.filter(|inquiry| inquiry.awaits(peer, &testimony));
        let (Some(inquiry), Some(membership)) = (inquiry, &self.membership) else {
            return;
        };
        let cost = Cost::Signatures(testimony.deeds.len());
        if !self.budgets.pay(peer, cost, self.now.mono) {
            return;
        }
        let terms = (&membership.public, &self.removals);
        let unproven = inquiry.answer(peer, testimony, &known, terms, self.now.mono);
        if let Some(unproven @ 1..) = unproven {
            warn!(from = %peer.short(), about = %about.short(), unproven, "a member testifies of deeds that it does not prove: they are left");
            self.tally.unproven += unproven as u64;
            self.changed();
        }
        self.stale = true;
    }

    /// What this node tells whoever asks about a node: all titles that it ever had, the deeds that name that node, and
    /// of its gifts and the titles of removed nodes what may be newer than those; each with what proves it.
    ///
    /// Its titles are enough for its gifts: what it gave from a title is covered by it, and a title that is older than
    /// the node's is the one by which that came about. Only two runs of one donor give what neither is older than.
    fn told_of(&self, about: NodeId) -> Vec<Deed> {
        let mut told = self.deeds_of(about);
        let theirs: Vec<(Block, Version)> = told
            .iter()
            .filter(|deed| deed.owner == about)
            .map(|deed| (deed.block, deed.version))
            .collect();
        let newer = |deed: &&Deed| {
            let beats = |(block, version): &(Block, Version)| {
                meet(*block, deed.block) && *version < deed.version
            };
            theirs.iter().any(beats)
        };
        if let Some(membership) = &self.membership {
            let deeds = &membership.deeds;
            let own = newest(deeds.titles().copied().collect());
            let gifts = deeds.gifts().filter(newer).copied();
            told.extend(deeds.with_proofs(own.into_iter().chain(gifts)));
        }
        for record in self.removed.values().filter_map(|one| one.record.as_ref()) {
            let through = |title: &Deed| {
                let mut all = record.deeds.iter();
                all.any(|deed| deed.owner == about && covers(deed.block, title.block))
            };
            let titles = record
                .titles()
                .filter(|title| newer(title) || through(title));
            for title in titles {
                told.push(*title);
                told.extend(title.chain(&record.deeds).unwrap_or_default());
            }
        }
        told.sort_by_key(|deed| (deed.version, deed.block, deed.signature));
        told.dedup();
        told
    }

    /// Who owns what as far as this node has it at first hand: its own deeds, and those of removed nodes.
    fn claims(&self) -> Vec<(Block, Version)> {
        let own = self.membership.iter().flat_map(|own| own.deeds.known());
        let removed = self
            .removed
            .values()
            .filter_map(|removed| removed.record.as_ref());
        own.chain(removed.flat_map(Record::titles))
            .map(|deed| (deed.block, deed.version))
            .collect()
    }

    /// The deeds that name a node, with what proves them: those in its last record, and this node's gifts to it.
    fn deeds_of(&self, node: NodeId) -> Vec<Deed> {
        let removed = self
            .removed
            .get(&node)
            .and_then(|removed| removed.record.as_ref());
        let record = removed.or_else(|| self.records.get(&node));
        let mut deeds = record.map_or_else(Vec::new, |record| record.deeds.clone());
        let own = self.membership.iter();
        deeds.extend(own.flat_map(|own| own.deeds.given_to(node)));
        deeds.sort_by_key(|deed| (deed.version, deed.block, deed.signature));
        deeds.dedup();
        deeds
    }

    /// All have answered: what no newer deed covers is this node's.
    fn conclude(&mut self, about: NodeId) {
        let Some(inquiry) = self.inquiries.0.remove(&about) else {
            return;
        };
        if about == self.me {
            return self.conclude_about_me(&inquiry);
        }
        let mut pool = self.deeds_of(about);
        let mut claims = self.claims();
        pool.extend(inquiry.answers());
        pool.sort_by_key(|deed| (deed.version, deed.block, deed.signature));
        pool.dedup();
        let others = self.records.values().flat_map(Record::titles);
        let others = others.chain(inquiry.answers());
        claims.extend(others.map(|deed| (deed.block, deed.version)));
        let (save, boot) = (self.saving.next(), self.boot);
        let Some(membership) = &mut self.membership else {
            return;
        };
        let mut proofs = Proofs::new(&pool, &membership.public, &self.removals);
        let mut chains = BTreeMap::new();
        for deed in pool.iter().filter(|deed| deed.owner == about) {
            if let Some(chain) = proofs.chain(deed) {
                chains.insert((deed.version, deed.block), (*deed, chain));
            }
        }
        let theirs: Vec<Deed> = chains.values().map(|(deed, _)| *deed).collect();
        let mut left = left_over(&theirs, &claims);
        // Nobody would believe one hand more than a chain has.
        left.retain(|(deed, block)| block.bits() >= MIN_BITS && deed.version.hands() < MAX_HANDS);
        left.sort_by_key(|(_, block)| Reverse(block.bits()));
        let (mut addresses, mut settled) = (0, true);
        for (deed, block) in left {
            let Some((_, after)) = chains.get(&(deed.version, deed.block)) else {
                continue;
            };
            let taken = deed.inherit(block, boot, &self.keys, &membership.public);
            let chain = [&[deed], &after[..]].concat();
            if !membership.deeds.adopt(taken, &chain, save) {
                warn!(of = %about.short(), "there is no room for all addresses of a removed node: the smallest blocks wait for it");
                settled = false;
                break;
            }
            addresses += block.size();
        }
        info!(of = %about.short(), addresses, "the addresses of a removed node are this node's now");
        if let Some(removed) = self.removed.get_mut(&about) {
            removed.settled = settled;
        }
        self.saving.after(Pending::Inherited);
    }

    /// Addresses that were not this node's may be used now. If it has the cluster's key, it renews those of this run.
    pub(super) fn take_over(&mut self) {
        self.refresh();
        let (save, me, boot) = (self.saving.next(), self.me, self.boot);
        let gives = self.past.gives(self.now.mono) && !self.past.in_doubt && !self.is_out();
        let Some(membership) = self.membership.as_mut().filter(|_| gives) else {
            return;
        };
        let Some(key) = &membership.key else {
            return;
        };
        let saves = (self.past.renews_from, save);
        let blocks = self.ipam.blocks();
        if membership.deeds.renew(blocks, (me, boot), saves, key) {
            self.saving.after(Pending::Inherited);
        }
    }
}

#[cfg(test)]
mod tests;
