//! Removing members: the command, the word that spreads, and the cut.
//!
//! Who removes a node saves the removal before anybody hears of it, so that a crash cannot make it name another heir
//! later; and whoever hears of it saves it before it says that it knows, passes it on or testifies by it. Then it cuts the
//! node; if it cannot save, it does so at once, and tells nobody. What was known of the node's deeds is remembered: its
//! heir will ask (see [`super::inherit`]).

use tracing::{debug, info, warn};
use weave_model::{NodeId, NodeName};

use super::Core;
use super::budget::Cost;
use super::command::{CommandError, Reply};
use super::saved::SavedRemoval;
use super::saving::{Pending, Removing};
use crate::mesh::cluster::{ClusterPublic, MAX_LINKS};
use crate::mesh::message::Message;
use crate::mesh::record::{Record, RecordVersion};
use crate::mesh::removal::{MAX_REMOVALS, Removal, Removals};

/// What is signed in the cluster's name, with the longest chain of admins.
pub(super) const SIGNATURES: Cost = Cost::Signatures(MAX_LINKS + 1);

/// A removal that a node signed itself, with its certificate; one by an admin costs less.
const FAREWELL: Cost = Cost::Signatures(MAX_LINKS + 2);

/// The most bytes of removals and last records before no more nodes are removed.
pub(super) const MAX_REMOVED: usize = 32 << 20;

/// What is remembered of a removed node, beside its removal.
#[derive(Clone, Debug, Default)]
pub(super) struct Removed {
    /// Its last record that came here.
    pub(super) record: Option<Record>,
    /// The save that has it.
    pub(super) saved: u64,
    /// This node is the heir and has taken what there was.
    pub(super) settled: bool,
}

impl Core {
    /// Begins to remove a member.
    pub(super) fn remove(
        &mut self,
        command: u64,
        given: &str,
        heir: Option<&str>,
    ) -> Result<Option<Reply>, CommandError> {
        self.check_admin()?;
        let (node, name) = self.find(given)?;
        if node == self.me {
            return Err(CommandError::Oneself);
        }
        let heir = match heir {
            Some(heir) => self.find_heir(heir)?,
            None => self.usual_heir(node),
        };
        if heir.0 == node {
            return Err(CommandError::HeirOfItself(heir.1.to_string()));
        }
        self.check_removals()?;
        let membership = self.member()?;
        let kept = self.kept_of(node);
        let removal = membership.authority(&self.keys).and_then(|authority| {
            Removal::by_admin(&authority, node, heir.0, self.now.wall.as_secs(), kept)
        });
        let removal = removal.ok_or(CommandError::TooManyKept)?;
        let version = removal.version();
        let removed = self.remember(removal);
        debug_assert!(removed, "a member that was found was not removed before");
        self.saving.after(Pending::Removing(Removing {
            command,
            node,
            version,
            name,
            heir,
        }));
        Ok(None)
    }

    /// Fails if the cluster takes no more removals; tells in the log when it soon will not.
    pub(super) fn check_removals(&self) -> Result<(), CommandError> {
        let (count, bytes) = (self.removals.len(), self.removed_bytes());
        if count >= MAX_REMOVALS || bytes >= MAX_REMOVED {
            return Err(CommandError::TooManyRemoved(count));
        }
        if count >= MAX_REMOVALS / 4 * 3 || bytes >= MAX_REMOVED / 4 * 3 {
            warn!(
                count,
                most = MAX_REMOVALS,
                bytes,
                most_bytes = MAX_REMOVED,
                "so many nodes were removed or have left that soon no more can: start nodes that come and go with the state directory that they had before"
            );
        }
        Ok(())
    }

    /// How many bytes are saved of removed nodes.
    fn removed_bytes(&self) -> usize {
        let removals = self.removals.iter().map(|removal| removal.bytes().len());
        let records = self.removed.values().filter_map(|of| of.record.as_ref());
        removals
            .chain(records.map(|record| record.bytes().len()))
            .sum()
    }

    /// The member that a person means to take addresses: not one that never came, which would not.
    fn find_heir(&self, given: &str) -> Result<(NodeId, NodeName), CommandError> {
        let heir = self.find(given)?;
        let came = heir.0 == self.me || self.records.contains_key(&heir.0);
        came.then_some(heir)
            .ok_or_else(|| CommandError::UnknownNode(given.to_owned()))
    }

    /// Who gave the node its addresses, if it is a living member; else this node.
    fn usual_heir(&self, node: NodeId) -> (NodeId, NodeName) {
        let record = self.records.get(&node);
        let titles = record.into_iter().flat_map(Record::titles);
        let donors = titles.filter_map(crate::mesh::deeds::donor_of);
        let alive = donors.filter_map(|donor| self.records.get(&donor));
        let found = alive
            .map(|record| (record.node(), record.name.clone()))
            .next();
        found.unwrap_or_else(|| (self.me, self.config.name.clone()))
    }

    /// What of an admin's signatures is to be kept when it goes.
    pub(super) fn kept_of(&self, node: NodeId) -> Vec<(NodeId, crate::mesh::removal::Kept)> {
        let own = self.membership.iter().map(|own| &own.certificate);
        let others = self.records.values().map(|record| &record.certificate);
        let word = self.membership.iter().find_map(|own| own.word.as_ref());
        self.removals.kept_of(node, own.chain(others), word)
    }

    /// Believes a removal and remembers the node's deeds. `false` if it is no news.
    pub(super) fn remember(&mut self, removal: Removal) -> bool {
        let (node, heir) = (removal.node, removal.heir);
        let heir_before = self.removals.get(node).map(|removal| removal.heir);
        if !self.removals.insert(removal) {
            return false;
        }
        let before = self.removed.remove(&node).unwrap_or_default();
        if heir_before != Some(heir) {
            // Whoever was to take what there is takes it no more.
            self.inquiries.0.remove(&node);
        }
        let removed = Removed {
            record: before.record.or_else(|| self.records.get(&node).cloned()),
            saved: self.saving.next(),
            settled: before.settled && heir_before == Some(heir),
        };
        self.removed.insert(node, removed);
        true
    }

    /// Takes back a removal that could not be saved. Nobody was told of it.
    pub(super) fn undo_removal(&mut self, node: NodeId, version: RecordVersion) {
        self.removals.undo(node, version);
        if !self.removals.contains(node) {
            self.removed.remove(&node);
        }
    }

    /// The removal of a node, if it is durable: only then may anybody hear of it.
    pub(super) fn told_removal(&self, node: NodeId) -> Option<&Removal> {
        let saved = self.removed.get(&node).map(|removed| removed.saved);
        let durable = saved.is_none_or(|saved| saved <= self.saving.durable());
        self.removals.get(node).filter(|_| durable)
    }

    /// The removal that a command made is durable.
    pub(super) fn removal_saved(&mut self, removing: Removing) {
        let Removing {
            command,
            node,
            name,
            mut heir,
            ..
        } = removing;
        if let Some(other) = self.removals.get(node).map(|removal| removal.heir)
            && other != heir.0
        {
            // Another admin removed it meanwhile, and that holds.
            heir = self.find(&other.to_string()).unwrap_or(heir);
        }
        info!(node = %node.short(), %name, heir = %heir.1, "a member is removed");
        self.tell_removal(node, None);
        self.cut(node);
        let reply = Reply::Removed {
            id: node,
            name,
            heir,
        };
        self.reply(command, Ok(reply));
    }

    /// A peer passes a removal on.
    pub(super) fn handle_removal(&mut self, peer: NodeId, bytes: &[u8]) {
        let Some(membership) = self.membership.as_ref().filter(|_| self.active) else {
            return;
        };
        let Some((node, version)) = Removal::claimed(bytes) else {
            return;
        };
        let mine = self.removals.get(node).map(Removal::version);
        if mine >= Some(version) || (node == self.me && self.has_left()) {
            if self.told_removal(node).is_some() {
                self.acknowledge_removal(node, peer);
                self.handle_has(peer, node, version);
            }
            return;
        }
        if !self.budgets.pay(peer, FAREWELL, self.now.mono) {
            return;
        }
        let read = || Removal::read(bytes, &membership.public);
        let removal = match self.quarantine.read(peer, bytes, read) {
            Some(Ok(removal)) => removal,
            None => return self.changed(),
            Some(Err(error)) => return debug!(from = %peer.short(), %error, "a removal is left"),
        };
        if !self.remember(removal) {
            return warn!(node = %node.short(), from = %peer.short(), "a removal that a removed admin signed is left");
        }
        info!(node = %node.short(), from = %peer.short(), "a member was removed");
        self.saving.after(Pending::Heard { node, from: peer });
        if self.saving.failure().is_some() {
            self.cut_unsaved();
        }
    }

    /// A removal that a peer told is durable.
    pub(super) fn pass_on_removal(&mut self, node: NodeId, from: NodeId) {
        // Before the cut: the node itself may be the one that says it.
        self.acknowledge_removal(node, from);
        self.tell_removal(node, Some(from));
        self.cut(node);
    }

    fn acknowledge_removal(&mut self, node: NodeId, to: NodeId) {
        if let Some(removal) = self.told_removal(node) {
            let ack = Message::RecordAcks(vec![(node, removal.version())]);
            self.send(to, &ack);
        }
    }

    /// Tells everybody that a node is removed, the node itself too.
    fn tell_removal(&mut self, node: NodeId, from: Option<NodeId>) {
        self.flood.offer(node, from, self.now.mono);
        let word = self.told_removal(node).filter(|_| from != Some(node));
        if let Some(message) = word.map(|removal| Message::Record(removal.bytes().to_vec())) {
            self.send(node, &message);
        }
    }

    /// Cuts the nodes whose removals cannot be saved.
    pub(super) fn cut_unsaved(&mut self) {
        let unsaved = self.removals.iter().map(|removal| removal.node);
        let unsaved = unsaved.filter(|node| *node != self.me && self.told_removal(*node).is_none());
        for node in unsaved.collect::<Vec<_>>() {
            self.cut(node);
        }
    }

    /// Ends all that there is with a removed node.
    fn cut(&mut self, node: NodeId) {
        if node == self.me {
            warn!("this node was removed from the cluster");
            let peers: Vec<NodeId> = self.records.keys().copied().collect();
            peers
                .into_iter()
                .for_each(|peer| self.sessions.remove_peer(peer, self.now));
            return self.changed();
        }
        let record = self.records.get(&node).map(|record| record.public);
        let met = self.membership.iter().flat_map(|own| &own.acquaintances);
        let mut met = met.map(|(public, _)| *public);
        if let Some(public) = record.or_else(|| met.find(|public| public.id() == node)) {
            self.sessions.refuse_peer(public, self.now);
        }
        self.forget(node);
        let void = |record: &&Record| !self.removals.allow(&record.certificate);
        let void = self.records.values().filter(void).map(Record::node);
        for node in void.collect::<Vec<_>>() {
            warn!(node = %node.short(), "a member is one no more: only the removed admin said that it is");
            self.forget(node);
        }
        self.review_secret();
        self.changed();
        self.refresh();
    }

    fn forget(&mut self, node: NodeId) {
        self.sessions.remove_peer(node, self.now);
        self.records.remove(&node);
        self.links.remove(&node);
        self.sheets.forget(node);
        self.reach.forget(node, self.now.mono);
        self.budgets.forget_owner(node);
        self.free_addresses_of(node);
        if let Some(membership) = &mut self.membership {
            let other = |public: &crate::keys::NodePublic| public.id() != node;
            membership.acquaintances.retain(|(public, _)| other(public));
        }
    }

    /// Takes over what was saved of removed nodes, and refuses them.
    pub(super) fn restore_removed(&mut self, saved: &[SavedRemoval], cluster: &ClusterPublic) {
        let mut nodes = Vec::new();
        for saved in saved {
            let read = || Removal::read(&saved.removal, cluster);
            match self.quarantine.read(self.me, &saved.removal, read) {
                Some(Ok(removal)) => {
                    nodes.push((removal.version(), removal.node, saved));
                    self.removals.restore(removal);
                }
                None => {}
                Some(Err(error)) => warn!(%error, "a saved removal is left out"),
            }
        }
        let holds = |removals: &Removals, node, version| {
            let holding = removals.get(node).map(Removal::version);
            holding == Some(version)
        };
        nodes.retain(|(version, node, _)| holds(&self.removals, *node, *version));
        for (_, node, saved) in nodes {
            let record = Record::read(&saved.record, cluster, &self.removals).ok();
            if let Some(record) = &record {
                self.sessions.refuse_peer(record.public, self.now);
            }
            let removed = Removed {
                record,
                saved: 0,
                settled: saved.settled,
            };
            self.removed.insert(node, removed);
        }
    }

    /// What [`Core::restore_removed`] takes.
    pub(super) fn removed_to_save(&self) -> Vec<SavedRemoval> {
        let all = self.removals.iter().map(|removal| {
            let removed = self.removed.get(&removal.node);
            let record = removed.and_then(|removed| removed.record.as_ref());
            SavedRemoval {
                removal: removal.bytes().to_vec(),
                record: record.map_or_else(Vec::new, |record| record.bytes().to_vec()),
                settled: removed.is_some_and(|removed| removed.settled),
            }
        });
        let beaten = self.removals.beaten().map(|removal| SavedRemoval {
            removal: removal.bytes().to_vec(),
            record: Vec::new(),
            settled: false,
        });
        all.chain(beaten).collect()
    }

    /// What a removed node called itself.
    pub(super) fn last_name(&self, node: NodeId) -> Option<NodeName> {
        let removed = self.removed.get(&node)?;
        removed.record.as_ref().map(|record| record.name.clone())
    }

    /// The members that count: all that are known and not removed, this one not among them.
    pub(super) fn living(&self) -> Vec<NodeId> {
        let membership = self.membership.iter();
        let met =
            membership.flat_map(|own| own.acquaintances.iter().map(|(public, _)| public.id()));
        let all = self.records.keys().copied().chain(met);
        all.filter(|node| *node != self.me && !self.removals.contains(*node))
            .collect()
    }
}
