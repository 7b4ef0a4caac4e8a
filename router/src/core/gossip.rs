//! Knowing the members: records in and out, and what sessions report.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use tracing::{debug, info, warn};
use weave_model::{NetworkName, NodeId};

use super::budget::{Cost, Said};
use super::command::CommandError;
use super::{Core, CoreEvent, Link, past};
use crate::mesh::codec::Malformed;
use crate::mesh::deed::Deed;
use crate::mesh::digest::{self, Buckets, Sums};
use crate::mesh::flood::Due;
use crate::mesh::message::{MAX_SUMMARY, Message};
use crate::mesh::parts;
use crate::mesh::record::{Content, MAX_ENDPOINTS, Record, RecordVersion};
use crate::mesh::removal::{self, Removal};
use crate::mesh::secret::SecretWord;
use crate::session::SessionEvent;
use crate::way::Way;

/// The most members that are believed in, beside this one: all fit a summary.
const MAX_MEMBERS: usize = MAX_SUMMARY - 1;
/// What it costs to send somebody a record that it says it lacks, in signatures.
const RESENT: Cost = Cost::Signatures(8);
/// The most addresses at which others see this node that its record tells.
const MAX_OBSERVED: usize = 4;
/// The longest that the answer to a ping is waited for.
const MAX_PATIENCE: Duration = Duration::from_secs(60);

impl Core {
    /// Takes what the sessions report, and hands it on to the data path.
    pub(super) fn handle_session(&mut self, event: SessionEvent) {
        match &event {
            SessionEvent::Up {
                peer,
                outbound,
                way,
            } => {
                let link = Link {
                    up: true,
                    silent: false,
                    since: self.now.wall,
                    way: *way,
                    suite: outbound.suite(),
                    boot: outbound.boot(),
                };
                self.handle_up(*peer, link);
            }
            SessionEvent::Moved { peer, way } => {
                if let Some(link) = self.links.get_mut(peer) {
                    link.way = *way;
                    self.ways.paths.moved(*peer, *way, self.now.mono);
                    self.ways.relink(self.now.mono);
                    self.changed();
                }
            }
            SessionEvent::Down { peer } => self.handle_down(*peer),
            SessionEvent::Probe { peer } => {
                self.ways.paths.doubt(*peer, true, self.now.mono);
                self.call_helpers(*peer);
            }
            SessionEvent::Silent { peer } => self.handle_silence(*peer, true),
            SessionEvent::Heard { peer } => self.handle_silence(*peer, false),
            SessionEvent::TurnedAway { peer } => self.note_turned_away(*peer),
            SessionEvent::Outdated { peer, epoch } => self.note_outdated(*peer, *epoch),
            SessionEvent::Knocked { node } => self.note_knock(*node),
            SessionEvent::Dismissed { peer } => self.note_dismissal(*peer),
            SessionEvent::Inbound(_) | SessionEvent::Retire(_) | SessionEvent::Retried { .. } => {}
        }
        self.events.push_back(CoreEvent::Session(event));
    }

    fn handle_up(&mut self, peer: NodeId, mut link: Link) {
        let before = self.links.get(&peer).filter(|link| link.up).copied();
        if let Some(before) = before.filter(|before| !before.silent) {
            link.since = before.since;
        }
        self.links.insert(peer, link);
        if before.is_none_or(|before| before.boot != link.boot) {
            info!(peer = %peer.short(), way = %link.way, "a session is up");
            self.ways.links.up(peer, self.now.mono);
            self.parts.forget(peer);
            self.begin_gossip(peer);
            self.resume_giving(peer);
            self.send_evidence(peer);
            self.changed();
        }
        self.ways.paths.up(peer, link.way, self.now.mono);
        self.ways.relink(self.now.mono);
        self.reach_up(peer);
        self.rotating_up(peer);
        self.found_at(peer, link.way);
        self.send_echoes(peer);
        self.stale = true;
    }

    fn handle_silence(&mut self, peer: NodeId, silent: bool) {
        let since = self.now.wall;
        if let Some(link) = self.links.get_mut(&peer) {
            info!(peer = %peer.short(), silent, "a peer fell silent, or speaks again");
            (link.silent, link.since) = (silent, since);
            self.ways.relink(self.now.mono);
            self.reach.look_again(self.now.mono);
            self.changed();
        }
    }

    fn handle_down(&mut self, peer: NodeId) {
        info!(peer = %peer.short(), "the session is down");
        if let Some(link) = self.links.get_mut(&peer) {
            (link.up, link.since) = (false, self.now.wall);
        }
        self.flood.down(peer);
        self.ways.paths.down(peer);
        self.ways.links.down(peer);
        self.ways.relink(self.now.mono);
        self.sheets.flood.down(peer);
        self.parts.forget(peer);
        self.reach.look_again(self.now.mono);
        self.changed();
    }

    /// Takes a control message.
    pub(super) fn handle_message(&mut self, peer: NodeId, body: &[u8], from: Way) {
        match self.decode(peer, body) {
            Ok(Some(Message::Part {
                transfer,
                index,
                count,
                bytes,
            })) => {
                let whole = self.parts.take(peer, transfer, index, count, bytes);
                if let Some(Ok(Some(message))) = whole.map(|whole| self.decode(peer, &whole)) {
                    self.take(peer, message, from);
                }
            }
            Ok(Some(message)) => self.take(peer, message, from),
            Ok(None) => {
                self.events.push_back(CoreEvent::Control {
                    peer,
                    body: body.to_vec(),
                    from,
                });
            }
            Err(error) => debug!(peer = %peer.short(), %error, "a control message is left"),
        }
    }

    /// Reads a message; one whose reading panics is malformed.
    fn decode(&mut self, peer: NodeId, body: &[u8]) -> Result<Option<Message>, Malformed> {
        let message = self.quarantine.read(peer, body, || Message::decode(body));
        message.unwrap_or_else(|| {
            self.changed();
            Err(Malformed("message: reading it panics"))
        })
    }

    fn take(&mut self, peer: NodeId, message: Message, from: Way) {
        self.tally.received(&message);
        match message {
            Message::Ping { id, alarm } => self.handle_ping(peer, id, alarm, from),
            Message::Pong { id, observed } => self.handle_pong(peer, id, observed),
            Message::Part { .. } => debug!(peer = %peer.short(), "a part inside of a part is left"),
            Message::Record(bytes) => self.handle_record(peer, &bytes),
            Message::RecordAcks(acks) => self.handle_record_acks(peer, &acks),
            Message::Digest { answer, sums } => self.handle_digest(peer, answer, &sums),
            Message::Summary {
                answer,
                buckets,
                records,
            } => self.handle_summary(peer, (answer, buckets), &records),
            Message::DeedRequest { id, bits, within } => {
                self.handle_request(peer, id, bits, within);
            }
            Message::DeedGrant(deeds) => self.handle_grant(peer, &deeds),
            Message::DeedAck { block, counter } => self.handle_ack(peer, block, counter),
            Message::DeedRefusal { id } => self.handle_refusal(peer, id),
            Message::Links { version, links } => self.handle_links(peer, version, &links),
            Message::LinksAck { version } => self.ways.links.acknowledged(peer, version),
            Message::Secret(handed_on) => self.handle_secret(peer, &handed_on),
            Message::Office(certificate) => self.handle_office(peer, certificate),
            Message::DeedInquiry { id, about } => self.handle_inquiry(peer, id, about),
            Message::DeedTestimony(testimony) => self.handle_testimony(peer, testimony),
            Message::Sheet(bytes) => self.handle_sheet(peer, &bytes),
            Message::SheetAcks(acks) => self.handle_sheet_acks(peer, &acks),
            Message::SheetDigest { answer, sums } => self.handle_sheet_digest(peer, answer, &sums),
            Message::SheetSummary {
                answer,
                buckets,
                sheets,
            } => self.handle_sheet_summary(peer, (answer, buckets), &sheets),
        }
    }

    /// Sends a ping that a command asked for.
    pub(super) fn start_echo(
        &mut self,
        command: u64,
        peer: NodeId,
        patience: Duration,
    ) -> Result<(), CommandError> {
        let up = self.links.get(&peer).is_some_and(|link| link.up);
        self.want(peer);
        if !up && !self.reach.keeps(peer) {
            return Err(CommandError::NotConnected(self.called(peer)));
        }
        let patience = patience.min(MAX_PATIENCE);
        self.echoes.ask(command, peer, patience, self.now.mono);
        if up {
            self.send_echoes(peer);
        }
        Ok(())
    }

    /// Sends the pings that commands asked for and that waited for a session.
    fn send_echoes(&mut self, peer: NodeId) {
        for id in self.echoes.ready(peer, self.now.mono) {
            self.send(peer, &Message::Ping { id, alarm: false });
        }
    }

    /// Answers the commands whose pings were not answered.
    pub(super) fn end_echoes(&mut self) {
        for (command, patience) in self.echoes.overdue(self.now.mono) {
            self.reply(command, Err(CommandError::NoPong(patience)));
        }
    }

    /// Where this node can be reached: what it was told, then the addresses at which others see it.
    pub(super) fn all_endpoints(&self) -> Vec<SocketAddr> {
        let mut endpoints = self.endpoints.clone();
        endpoints.truncate(MAX_ENDPOINTS - MAX_OBSERVED);
        let observed = self.ways.paths.observed().into_iter();
        let news = observed.filter(|address| !self.endpoints.contains(address));
        endpoints.extend(news.take(MAX_OBSERVED));
        endpoints
    }

    fn handle_record(&mut self, peer: NodeId, bytes: &[u8]) {
        if bytes.first() == Some(&removal::FORMAT) {
            return self.handle_removal(peer, bytes);
        }
        let Some(membership) = self.membership.as_ref().filter(|_| self.active) else {
            return;
        };
        let (node, version) = match Record::claimed(bytes) {
            Ok(claimed) => claimed,
            Err(error) => return debug!(from = %peer.short(), %error, "a record is left"),
        };
        let old = self.version_of(node).is_some_and(|mine| mine >= version);
        if old && !(node == self.me && self.is_beyond_memory(version)) {
            self.flood.took(peer, (node, version), self.now.mono);
            return self.handle_has(peer, node, version);
        }
        let said = Said::Record(bytes.len());
        if node != self.me && !self.budgets.may_say(node, said, self.now.mono) {
            return;
        }
        let cost = Cost::Signatures(4 + bytes.len() / Deed::MAX_LEN);
        if !self.budgets.pay(peer, cost, self.now.mono) {
            return;
        }
        let before = self.records.get(&node);
        let read = || Record::read_after(before, bytes, &membership.public, &self.removals);
        let record = match self.quarantine.read(peer, bytes, read) {
            Some(Ok(record)) => record,
            None => return self.changed(),
            Some(Err(error)) => return debug!(from = %peer.short(), %error, "a record is left"),
        };
        if node == self.me {
            self.handle_own_record(&record);
        } else if self.records.len() >= MAX_MEMBERS && !self.records.contains_key(&node) {
            return warn!(node = %node.short(), "there are too many members");
        } else {
            self.budgets.said(node, said, self.now.mono);
            self.compare_past(&record);
            self.learn(record, peer);
        }
        self.flood.took(peer, (node, version), self.now.mono);
        self.handle_has(peer, node, version);
    }

    fn learn(&mut self, record: Record, from: NodeId) {
        let node = record.node();
        let version = record.version;
        debug!(node = %node.short(), name = %record.name, ?version, "a new record");
        if let Some(membership) = &mut self.membership {
            membership
                .acquaintances
                .retain(|(public, _)| *public != record.public);
        }
        let before = self.records.insert(node, record.clone());
        match &before {
            None if self.is_small() => self.saving.want(),
            // Of many members the neighbours know one another's newest.
            _ => self.saving.want_soon(self.now.mono),
        }
        self.meet(&record);
        if before
            .as_ref()
            .is_none_or(|before| before.lost != record.lost)
        {
            self.remap();
        }
        self.note_admin(&record);
        self.rotating.look(self.now.mono);
        self.flood.offer(node, Some(from), self.now.mono);
        self.changed();
        // Of many members few own what was this node's, and to look costs as much as there are members.
        let own = self.membership.as_ref().map(|own| &own.deeds);
        let meets = |deed: &Deed| own.is_some_and(|own| own.meets(deed.block));
        let same = before
            .as_ref()
            .is_some_and(|before| before.deeds == record.deeds);
        let titles = before.iter().flat_map(Record::titles);
        if !same && titles.chain(record.titles()).any(meets) {
            self.refresh();
        }
    }

    /// How many bytes the records and sheets have that are here.
    pub fn known_bytes(&self) -> usize {
        let records = self.records.values().chain(&self.own);
        let records = records.map(|record| record.bytes().len());
        let sheets = self.sheets.saved().map(<[u8]>::len);
        records.chain(sheets).sum()
    }

    /// The version of a member's record that is here; that of its removal if it was removed.
    pub fn known_version(&self, node: NodeId) -> Option<RecordVersion> {
        self.version_of(node)
    }

    fn version_of(&self, node: NodeId) -> Option<RecordVersion> {
        if let Some(removal) = self.removals.get(node) {
            return Some(removal.version());
        }
        if node == self.me {
            return self.own.as_ref().map(|own| own.version);
        }
        self.records.get(&node).map(|record| record.version)
    }

    /// A peer acknowledges records. It may have taken an older one than is here, and whoever says so gets the newer one:
    /// so it may not say so for nothing.
    fn handle_record_acks(&mut self, peer: NodeId, acks: &[(NodeId, RecordVersion)]) {
        for (node, version) in acks {
            let older = self.version_of(*node).is_some_and(|mine| mine > *version);
            if !older || self.budgets.pay(peer, RESENT, self.now.mono) {
                self.handle_has(peer, *node, *version);
            }
        }
    }

    /// A peer has this version of a record: either it needs to hear no more of it, or it needs the one that is here.
    pub(super) fn handle_has(&mut self, peer: NodeId, node: NodeId, version: RecordVersion) {
        if node == self.me && version.is_last() {
            self.note_farewell(peer);
        }
        if node == peer {
            self.evidence_seen(peer, version);
        }
        match self.version_of(node) {
            Some(mine) if mine > version && self.may_tell(node) => {
                self.flood.lacks(peer, node, self.now.mono);
            }
            _ => self.flood.has(peer, node),
        }
    }

    /// Whether a member's record may be told: of one whose removal is not durable yet neither that nor this.
    fn may_tell(&self, node: NodeId) -> bool {
        !self.removals.contains(node) || self.told_removal(node).is_some()
    }

    /// A peer says the sum of what it has. It is told what is here of the buckets that differ.
    fn handle_digest(&mut self, peer: NodeId, answer: bool, theirs: &Sums) {
        if !self.budgets.pay(peer, Cost::Summary, self.now.mono) {
            return;
        }
        self.note_interest(peer, answer);
        let sums = digest::sums(&self.summary());
        let buckets = Buckets::between(&sums, theirs);
        if !buckets.is_empty() {
            return self.send_summary(peer, false, buckets);
        }
        self.flood.summarised(peer, self.now.mono);
        if !answer {
            let (answer, sums) = (true, Box::new(sums));
            self.send(peer, &Message::Digest { answer, sums });
        }
    }

    fn handle_summary(
        &mut self,
        peer: NodeId,
        (answer, buckets): (bool, Buckets),
        theirs: &[(NodeId, RecordVersion)],
    ) {
        if !self.budgets.pay(peer, Cost::Summary, self.now.mono) {
            return;
        }
        self.note_interest(peer, answer);
        for (node, version) in theirs {
            self.handle_has(peer, *node, *version);
        }
        self.ask_for_own(peer, theirs);
        let told: BTreeSet<NodeId> = theirs.iter().map(|(node, _)| *node).collect();
        let here = self.summary().into_iter().map(|(node, _)| node);
        let here = here.filter(|node| buckets.contain(*node) && !told.contains(node));
        for node in here.filter(|node| *node != peer) {
            self.flood.lacks(peer, node, self.now.mono);
        }
        self.flood.summarised(peer, self.now.mono);
        self.send_evidence(peer);
        if !answer {
            self.send_summary(peer, true, buckets);
        }
    }

    fn summary(&self) -> Vec<(NodeId, RecordVersion)> {
        let all = self.records.values().chain(&self.own);
        let all = all.map(|record| (record.node(), record.version));
        let removed = self.removals.iter();
        let removed = removed.filter(|removal| self.may_tell(removal.node));
        let removed = removed.map(|removal| (removal.node, removal.version()));
        all.filter(|(node, _)| !self.removals.contains(*node))
            .chain(removed)
            .collect()
    }

    /// Says what is here: all of it, or its sums if that is much.
    fn send_digest(&mut self, peer: NodeId) {
        let summary = self.summary();
        if summary.len() <= digest::FEW {
            return self.send_summary(peer, false, Buckets::ALL);
        }
        let (answer, sums) = (false, Box::new(digest::sums(&summary)));
        self.send(peer, &Message::Digest { answer, sums });
    }

    fn send_summary(&mut self, peer: NodeId, answer: bool, buckets: Buckets) {
        for (buckets, records) in digest::parts(buckets, self.summary(), MAX_SUMMARY) {
            let message = Message::Summary {
                answer,
                buckets,
                records,
            };
            self.send(peer, &message);
        }
    }

    /// Signs this node's record anew if what it says has changed, and lets everybody know.
    pub(super) fn publish(&mut self) {
        self.publish_sheet();
        let Some(membership) = self
            .membership
            .as_ref()
            .filter(|_| self.active && self.booted && !self.is_out())
        else {
            return;
        };
        let blocks = self.ipam.blocks().to_vec();
        // What nobody has taken yet has to be proven by somebody when this node is gone.
        let going = membership.deeds.under_way().map(|deed| deed.block);
        let shown: Vec<_> = blocks.iter().copied().chain(going).collect();
        let content = Content {
            public: self.keys.public(),
            version: self.version,
            started: self.boot,
            name: self.config.name.clone(),
            certificate: membership.certificate.clone(),
            endpoints: self.all_endpoints(),
            suites: self.config.suites.clone(),
            deeds: membership.deeds.proof_of(&shown, self.saving.durable()),
            blocks,
            networks: vec![NetworkName::default_network()],
            lost: self.reach.lost(),
            secret: membership.word.as_ref().map(SecretWord::mark),
            remembers: Some(self.past.saves),
        };
        if self.own.as_ref().is_some_and(|own| **own == content) {
            return;
        }
        let saves = self.past.saves + self.saving.durable();
        self.version.counter = (self.version.counter + 1).max(past::counter_at(saves));
        let content = Content {
            version: self.version,
            ..content
        };
        match content.sign(&self.keys, &membership.public) {
            Some(record) => {
                self.own = Some(record);
                self.flood.offer(self.me, None, self.now.mono);
                if self.flood.is_lacked(self.me) {
                    self.tally.news(self.now.mono);
                }
            }
            None => {
                warn!("this node's record is too long: others do not learn of its newest addresses")
            }
        }
    }

    /// Sends all that is due now.
    pub(super) fn send_due(&mut self) {
        self.choose_sessions();
        self.send_ways();
        for (peer, acks) in self.flood.acks_due(self.now.mono) {
            self.send(peer, &Message::RecordAcks(acks));
        }
        for (peer, due) in self.flood.due(self.now.mono) {
            match due {
                Due::Summary if self.is_guest(peer) && self.flood.has_compared(peer) => {
                    self.flood.summarised(peer, self.now.mono);
                }
                Due::Summary => self.send_digest(peer),
                Due::Record(node) => {
                    let own = self.own.as_ref().filter(|_| node == self.me);
                    let record = own.or_else(|| self.records.get(&node));
                    let record = record.filter(|_| !self.removals.contains(node));
                    let removal = self.told_removal(node).map(Removal::bytes);
                    let bytes = removal.or_else(|| record.map(Record::bytes));
                    match bytes.map(|bytes| Message::Record(bytes.to_vec())) {
                        Some(message) => self.send(peer, &message),
                        None => self.flood.has(peer, node),
                    }
                }
            }
        }
        self.send_due_sheets();
        self.send_gifts();
        self.send_offices();
        self.go_on_rotating();
        if self.tally.waits() && !self.flood.is_lacked(self.me) {
            self.tally.all_have(self.now.mono);
        }
    }

    /// Sends a message, in parts if it is long. It may be lost.
    pub(super) fn send(&mut self, peer: NodeId, message: &Message) {
        let Some(bodies) = parts::split(&message.encode()) else {
            return warn!(peer = %peer.short(), "a control message is too long to be sent");
        };
        self.tally.sent(message);
        for body in bodies {
            match message.is_last_word() {
                true => self.sessions.send_last_word(peer, &body),
                false => self.sessions.send_control(peer, &body, self.now),
            };
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
pub(super) mod tests;
