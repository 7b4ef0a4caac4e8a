//! Passing sheets on: what members tell of their containers and Services.
//!
//! The same flooding as for records, beside it. A sheet is taken only from a member whose record is here; one that came
//! too early comes again, because nobody acknowledged it. That of a removed member goes with its record, and is
//! acknowledged to whoever still passes it on: they do not know yet, or are of a version that keeps it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tracing::{debug, warn};
use weave_model::NodeId;

use super::Core;
use super::budget::{Cost, Said};
use crate::mesh::digest::{self, Buckets, Sums};
use crate::mesh::flood::{Due, Flood};
use crate::mesh::message::Message;
use crate::mesh::record::RecordVersion;
use crate::mesh::sheet::Sheet;

/// What it costs to send somebody a sheet that it says it lacks, in signatures.
const RESENT: Cost = Cost::Signatures(32);

/// All that is known of sheets.
#[derive(Debug, Default)]
pub(super) struct Sheets {
    /// Who still has to be told which.
    pub(super) flood: Flood,
    /// The newest of the other members.
    others: BTreeMap<NodeId, Sheet>,
    /// What this node's own is to say.
    content: Option<Vec<u8>>,
    own: Option<Sheet>,
    /// The version of the own sheet that was signed last, or that others were seen to have.
    version: RecordVersion,
}

impl Sheets {
    /// The others' sheets, for the disk.
    pub(super) fn saved(&self) -> impl Iterator<Item = &[u8]> {
        self.others.values().map(Sheet::bytes)
    }

    /// The node is no member any more.
    pub(super) fn forget(&mut self, node: NodeId) {
        self.others.remove(&node);
        self.flood.forget(node);
    }

    fn version_of(&self, node: NodeId, me: NodeId) -> Option<RecordVersion> {
        let own = self.own.as_ref().filter(|_| node == me);
        own.or_else(|| self.others.get(&node)).map(Sheet::version)
    }
}

impl Core {
    /// Takes back what was saved of those that are members still.
    pub(super) fn restore_sheets(&mut self, saved: &[Vec<u8>]) {
        for bytes in saved {
            match self.quarantine.read(self.me, bytes, || Sheet::read(bytes)) {
                Some(Ok(sheet)) if !self.records.contains_key(&sheet.node()) => {}
                Some(Ok(sheet)) => {
                    self.sheets.others.insert(sheet.node(), sheet);
                }
                None => {}
                Some(Err(error)) => warn!(%error, "a saved sheet is left out"),
            }
        }
    }

    /// What members tell, as far as they are members.
    pub(super) fn sheets_of_members(&self) -> BTreeMap<NodeId, Arc<[u8]>> {
        let known = |sheet: &&Sheet| self.records.contains_key(&sheet.node());
        let all = self.sheets.others.values().filter(known);
        all.map(|sheet| (sheet.node(), Arc::clone(sheet.content())))
            .collect()
    }

    /// What this node tells from now on.
    pub(super) fn set_sheet(&mut self, content: Vec<u8>) {
        self.sheets.content = Some(content);
        self.publish_sheet();
    }

    /// Signs this node's sheet anew if what it says has changed, and lets everybody know.
    pub(super) fn publish_sheet(&mut self) {
        let ready = self.active && self.booted;
        let Some(membership) = self.membership.as_ref().filter(|_| ready) else {
            return;
        };
        let Some(content) = &self.sheets.content else {
            return;
        };
        let said = self.sheets.own.as_ref().map(Sheet::content);
        if said.is_some_and(|said| **said == **content) {
            return;
        }
        let last = self.sheets.version.max(RecordVersion {
            boot: self.boot,
            counter: 0,
        });
        let version = RecordVersion {
            counter: last.counter + 1,
            ..last
        };
        match Sheet::sign(content, version, &self.keys, &membership.public) {
            Some(sheet) => {
                (self.sheets.own, self.sheets.version) = (Some(sheet), version);
                self.sheets.flood.offer(self.me, None, self.now.mono);
            }
            None => {
                warn!("this node has more to tell than others take: they know an older state of it")
            }
        }
    }

    pub(super) fn handle_sheet(&mut self, peer: NodeId, bytes: &[u8]) {
        let sheet = match self.quarantine.read(peer, bytes, || Sheet::read(bytes)) {
            Some(Ok(sheet)) => sheet,
            None => return self.changed(),
            Some(Err(error)) => return debug!(from = %peer.short(), %error, "a sheet is left"),
        };
        let (node, version) = (sheet.node(), sheet.version());
        let removed = self.removals.contains(node);
        if !removed
            && self
                .sheets
                .version_of(node, self.me)
                .is_none_or(|mine| mine < version)
        {
            let public = if node == self.me {
                Some(self.keys.public())
            } else {
                self.records.get(&node).map(|record| record.public)
            };
            let Some((public, membership)) = public.zip(self.membership.as_ref()) else {
                return debug!(from = %peer.short(), "a sheet of nobody that is known is left");
            };
            let (said, now) = (Said::Sheet(bytes.len()), self.now.mono);
            if node != self.me && !self.budgets.may_say(node, said, now) {
                return;
            }
            if !self.budgets.pay(peer, Cost::Signatures(1), now) {
                return;
            }
            if !sheet.is_signed_by(&public, &membership.public) {
                return debug!(from = %peer.short(), "a sheet with a wrong signature is left");
            }
            if node == self.me {
                self.handle_own_sheet(version);
            } else {
                self.budgets.said(node, said, now);
                self.learn_sheet(sheet, peer);
            }
        }
        let now = self.now.mono;
        self.sheets.flood.took(peer, (node, version), now);
        self.handle_has_sheet(peer, node, version);
    }

    /// Others have a newer sheet of this node than it has: it was told before a disk was rolled back. The next one is
    /// newer still.
    fn handle_own_sheet(&mut self, version: RecordVersion) {
        self.sheets.version = RecordVersion {
            boot: version.boot + 1,
            counter: 0,
        };
        self.sheets.own = None;
        self.publish_sheet();
    }

    fn learn_sheet(&mut self, sheet: Sheet, from: NodeId) {
        let node = sheet.node();
        debug!(node = %node.short(), version = ?sheet.version(), "a new sheet");
        self.sheets.others.insert(node, sheet);
        self.saving.want_soon(self.now.mono);
        self.sheets.flood.offer(node, Some(from), self.now.mono);
        self.changed();
    }

    pub(super) fn handle_sheet_acks(&mut self, peer: NodeId, acks: &[(NodeId, RecordVersion)]) {
        for (node, version) in acks {
            self.handle_sheet_ack(peer, *node, *version);
        }
    }

    /// A peer acknowledges a sheet; see [`Core::handle_record_acks`].
    fn handle_sheet_ack(&mut self, peer: NodeId, node: NodeId, version: RecordVersion) {
        let mine = self.sheets.version_of(node, self.me);
        let older = mine.is_some_and(|mine| mine > version);
        if !older || self.budgets.pay(peer, RESENT, self.now.mono) {
            self.handle_has_sheet(peer, node, version);
        }
    }

    fn handle_has_sheet(&mut self, peer: NodeId, node: NodeId, version: RecordVersion) {
        match self.sheets.version_of(node, self.me) {
            Some(mine) if mine > version => self.sheets.flood.lacks(peer, node, self.now.mono),
            _ => self.sheets.flood.has(peer, node),
        }
    }

    /// See [`Core::handle_digest`], which does the same with records.
    pub(super) fn handle_sheet_digest(&mut self, peer: NodeId, answer: bool, theirs: &Sums) {
        if !self.budgets.pay(peer, Cost::Summary, self.now.mono) {
            return;
        }
        let sums = digest::sums(&self.sheet_summary());
        let buckets = Buckets::between(&sums, theirs);
        if !buckets.is_empty() {
            return self.send_sheet_summary(peer, false, buckets);
        }
        self.sheets.flood.summarised(peer, self.now.mono);
        if !answer {
            let (answer, sums) = (true, Box::new(sums));
            self.send(peer, &Message::SheetDigest { answer, sums });
        }
    }

    pub(super) fn handle_sheet_summary(
        &mut self,
        peer: NodeId,
        (answer, buckets): (bool, Buckets),
        theirs: &[(NodeId, RecordVersion)],
    ) {
        if !self.budgets.pay(peer, Cost::Summary, self.now.mono) {
            return;
        }
        for (node, version) in theirs {
            self.handle_has_sheet(peer, *node, *version);
        }
        let told: BTreeSet<NodeId> = theirs.iter().map(|(node, _)| *node).collect();
        for (node, _) in self.sheet_summary() {
            if buckets.contain(node) && !told.contains(&node) && node != peer {
                self.sheets.flood.lacks(peer, node, self.now.mono);
            }
        }
        self.sheets.flood.summarised(peer, self.now.mono);
        if !answer {
            self.send_sheet_summary(peer, true, buckets);
        }
    }

    fn sheet_summary(&self) -> Vec<(NodeId, RecordVersion)> {
        let all = self.sheets.others.values().chain(&self.sheets.own);
        all.map(|sheet| (sheet.node(), sheet.version())).collect()
    }

    fn send_sheet_digest(&mut self, peer: NodeId) {
        let summary = self.sheet_summary();
        if summary.len() <= digest::FEW {
            return self.send_sheet_summary(peer, false, Buckets::ALL);
        }
        let (answer, sums) = (false, Box::new(digest::sums(&summary)));
        self.send(peer, &Message::SheetDigest { answer, sums });
    }

    fn send_sheet_summary(&mut self, peer: NodeId, answer: bool, buckets: Buckets) {
        let mut sheets = self.sheet_summary();
        sheets.retain(|(node, _)| buckets.contain(*node));
        let message = Message::SheetSummary {
            answer,
            buckets,
            sheets,
        };
        self.send(peer, &message);
    }

    /// Sends the sheets that are due now.
    pub(super) fn send_due_sheets(&mut self) {
        for (peer, acks) in self.sheets.flood.acks_due(self.now.mono) {
            self.send(peer, &Message::SheetAcks(acks));
        }
        for (peer, due) in self.sheets.flood.due(self.now.mono) {
            match due {
                Due::Summary if self.is_guest(peer) && self.sheets.flood.has_compared(peer) => {
                    self.sheets.flood.summarised(peer, self.now.mono);
                }
                Due::Summary => self.send_sheet_digest(peer),
                Due::Record(node) => {
                    let own = self.sheets.own.as_ref().filter(|_| node == self.me);
                    let sheet = own.or_else(|| self.sheets.others.get(&node));
                    match sheet.map(|sheet| Message::Sheet(sheet.bytes().to_vec())) {
                        Some(message) => self.send(peer, &message),
                        None => self.sheets.flood.has(peer, node),
                    }
                }
            }
        }
    }
}
