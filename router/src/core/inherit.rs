//! Taking the addresses of removed nodes, and testifying for whoever does.
//!
//! The heir asks all living members (see [`crate::mesh::inquiry`]). A member answers once the removal and all its own
//! deeds are durable: from then on it takes nothing from the removed node, whatever still arrives. When all have
//! answered, the heir signs itself what no newer deed covers, saves it and uses it.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use rand::Rng;
use tracing::{debug, info, warn};
use weave_model::NodeId;

use super::Core;
use super::budget::Cost;
use super::saving::Pending;
use crate::mesh::deed::{Deed, MAX_HANDS, MIN_BITS, Proofs};
use crate::mesh::inquiry::{Claim, Inquiry, Testimony, left_over, newest};
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
        let testimony = Testimony {
            id,
            about,
            heir: self.removals.get(about).map(|removal| removal.heir),
            members: self.living(),
            claims: newest(self.claims()),
            deeds: self.deeds_of(about),
        };
        if !testimony.fits() {
            return warn!(to = %peer.short(), about = %about.short(), "this node knows of more deeds than it can testify of");
        }
        self.send(peer, &Message::DeedTestimony(testimony));
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
        if let Some(inquiry) = self.inquiries.0.get_mut(&about) {
            inquiry.answer(peer, testimony, &known, self.now.mono);
            self.stale = true;
        }
    }

    /// Who owns what as far as this node has it at first hand: its own deeds, and those of removed nodes.
    fn claims(&self) -> Vec<Claim> {
        let own = self.membership.iter().flat_map(|own| own.deeds.known());
        let removed = self
            .removed
            .values()
            .filter_map(|removed| removed.record.as_ref());
        own.chain(removed.flat_map(Record::titles))
            .map(Claim::from)
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
        deeds.sort_by_key(|deed| (deed.version, deed.block));
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
        for answer in inquiry.answers() {
            pool.extend(&answer.deeds);
            claims.extend(&answer.claims);
        }
        pool.sort_by_key(|deed| (deed.version, deed.block));
        pool.dedup();
        claims.extend(
            self.records
                .values()
                .flat_map(Record::titles)
                .map(Claim::from),
        );
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
        left.retain(|(deed, block)| block.bits() >= MIN_BITS && deed.version.counter < MAX_HANDS);
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
}

#[cfg(test)]
mod tests;
