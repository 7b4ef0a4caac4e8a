//! Finding out that this node has forgotten something: its disk was put back to an older copy, or a copy of it runs elsewhere.
//!
//! Every save has a number that grows for ever, and every version of this node's record is at least as high as the last
//! save that changed what it owns. So a record of its own that is higher than what was saved when it started tells it
//! that its disk is older than what it did; so does a deed that it signed and does not know. Only what this node signed
//! counts: what a member claims in a summary makes this node ask it for the record. From then on it is *in doubt*, which
//! is durable: it uses nothing and gives nothing until all living members have told what they know of its deeds (see
//! [`super::inherit`]). Then it takes back the titles that it had forgotten, and leaves what others hold by a later deed.
//! Members help: one that sees a member's record replaced by one of another run sends that member the former, which
//! nobody else might have any more. How much the other run had forgotten only it can tell, since it may have saved a lot
//! meanwhile: its record says how many saves it remembers. The former is sent only if it is of a later one, so when all
//! nodes start again at once, as after a power cut, nobody needs a session with everybody.
//!
//! A node that has forgotten even its members cannot ask them. So whoever starts from a disk gives nothing away for
//! some seconds, in which they come to it.
//!
//! Two processes with one identity each see the other's records. A record says when the run that signed it began. The
//! one that began earlier signs a higher version, and stays; the one that began later, when it has tried that once, gives
//! way: it ends all sessions, uses nothing, and says why. Until they meet they cannot know of each other.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tracing::{info, warn};
use weave_model::NodeId;

use super::Core;
use super::saved::Saved;
use super::saving::Pending;
use crate::mesh::deed::{Deed, Proofs};
use crate::mesh::deeds::{Deeds, donor_of};
use crate::mesh::inquiry::Inquiry;
use crate::mesh::message::Message;
use crate::mesh::record::{Record, RecordVersion};

/// The number of the save in a record's counter; below it is room for changes without one.
const SAVES: u32 = 24;

/// How long a node that started from its disk gives nothing away: members that know better try to reach it at least
/// once in that time.
const PAUSE: Duration = Duration::from_secs(7);

/// What this node knows of its own past.
#[derive(Debug, Default)]
pub(super) struct Past {
    /// How many saves there were before this run.
    pub(super) saves: u64,
    /// The boot nonces that this run signed with.
    pub(super) signed: Vec<u64>,
    /// The disk was put back: what this node owns is to be found out.
    pub(super) in_doubt: bool,
    /// From when on it gives addresses away; at once if it is new.
    gives_from: Option<Instant>,
    /// The first save of which the titles are renewed: what was there before may be older than what this node did.
    pub(super) renews_from: u64,
    /// A record of this node that another run signed led this run to a higher version.
    raised: bool,
    /// Where another process with this node's identity was told to be reached.
    pub(super) twin: Option<Vec<SocketAddr>>,
    /// That process began earlier: this one does nothing any more.
    pub(super) gave_way: bool,
    /// Records of members that were replaced by ones of another run, of each the one of the latest state.
    evidence: BTreeMap<NodeId, Record>,
}

/// Whether this node signed a deed away, does not know it, and would take the block for its own.
fn is_forgotten(deed: &Deed, me: NodeId, deeds: &Deeds) -> bool {
    donor_of(deed) == Some(me)
        && !deeds.has_given(deed)
        && deeds.is_beaten_by((deed.block, deed.version))
}

impl Past {
    /// What a node knows that starts, from its disk or anew.
    pub(super) fn new(saved: Option<&Saved>, boot: u64, now: Instant) -> Self {
        let member = saved.is_some_and(|saved| saved.membership.is_some());
        Self {
            saves: saved.map_or(0, |saved| saved.saves),
            in_doubt: saved.is_some_and(|saved| saved.in_doubt),
            signed: vec![boot],
            gives_from: member.then(|| now + PAUSE),
            renews_from: 1,
            ..Self::default()
        }
    }

    /// The node goes on as a copy: what it remembers ends with the saves so far, and others may know of more.
    pub(super) fn begin_again(&mut self, saves: u64, boot: u64, now: Instant) {
        self.saves += saves;
        (self.signed, self.raised) = (vec![boot], false);
        self.gives_from = Some(now + PAUSE);
        self.renews_from = saves + 1;
    }

    /// The members that have yet to see what they said before they forgot it.
    pub(super) fn witnesses(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.evidence.keys().copied()
    }

    /// Whether it may give addresses away.
    pub(super) fn gives(&self, now: Instant) -> bool {
        self.gives_from.is_none_or(|at| at <= now)
    }
}

/// The lowest counter of a record that is signed when save number `save` is durable.
pub(super) const fn counter_at(save: u64) -> u64 {
    save << SAVES
}

const fn save_of(version: RecordVersion) -> u64 {
    version.counter >> SAVES
}

impl Core {
    /// Whether a record of this node in this version, if it signed one, shows that its disk was put back. Anybody may
    /// claim a version, so what counts is the record.
    pub(super) fn is_beyond_memory(&self, version: RecordVersion) -> bool {
        let another = !version.is_last() && !self.past.signed.contains(&version.boot);
        another && !self.past.in_doubt && save_of(version) > self.past.saves
    }

    /// A member's summary came. If it claims a record of this node that this one cannot have signed as far as it
    /// remembers, it is asked for that: an acknowledgement of the lowest version draws what it has. Once for each
    /// summary, and what summaries may cost is bounded.
    pub(super) fn ask_for_own(&mut self, peer: NodeId, theirs: &[(NodeId, RecordVersion)]) {
        let node = self.me;
        let beyond = |(of, version): &(NodeId, RecordVersion)| {
            *of == node && self.is_beyond_memory(*version)
        };
        if theirs.iter().any(beyond) {
            let version = RecordVersion::default();
            self.send(peer, &Message::RecordAcks(vec![(node, version)]));
        }
    }

    /// Somebody has this record of this node. If it is newer than the last one that this run signed, the next one is
    /// newer still, unless an earlier run is alive.
    pub(super) fn handle_own_record(&mut self, record: &Record) {
        let version = record.version;
        if self.is_beyond_memory(version) {
            // Whoever shows it again, after all were asked, tells nothing new.
            self.past.saves = save_of(version);
            self.recall();
        }
        if version <= self.version {
            return;
        }
        if record.started < self.boot && self.past.raised {
            return self.give_way(record);
        }
        if record.started > self.boot {
            warn!(at = ?record.endpoints, "another process has this node's identity");
            self.past.twin = Some(record.endpoints.clone());
        }
        self.past.raised = true;
        self.version = RecordVersion {
            boot: version.boot.saturating_add(1),
            counter: 0,
        };
        self.past.signed.push(self.version.boot);
        // The next run has to begin above this one.
        (self.own, self.booted) = (None, false);
        self.saving.after(Pending::Boot);
        self.recall();
    }

    /// Believes nothing of what the disk says of this node's deeds until all members were asked.
    fn recall(&mut self) {
        if self.past.in_doubt || self.membership.is_none() {
            return;
        }
        warn!(
            "others know of a later state of this node than its disk: was it put back to a copy?"
        );
        self.past.in_doubt = true;
        self.saving.want();
        self.changed();
        self.refresh();
    }

    /// A member's record came: whether it proves a gift of this node that it has forgotten, or that the member began
    /// anew, and may have forgotten something.
    pub(super) fn compare_past(&mut self, record: &Record) {
        let Some(membership) = &self.membership else {
            return;
        };
        let forgotten = |deed: &&Deed| {
            is_forgotten(deed, self.me, &membership.deeds)
                && deed.proven(&record.deeds, &membership.public, &self.removals)
        };
        if record.deeds.iter().any(|deed| forgotten(&deed)) {
            self.recall();
        }
        let node = record.node();
        let forgot = |before: &Record| {
            let remembers = record.remembers;
            remembers.is_none_or(|saves| save_of(before.version) > saves)
        };
        if self
            .past
            .evidence
            .get(&node)
            .is_some_and(|held| !forgot(held))
        {
            self.past.evidence.remove(&node);
        }
        let before = self.records.get(&node);
        let before = before.filter(|before| before.version.boot != record.version.boot);
        let before = before.filter(|before| forgot(before));
        let best = self.past.evidence.get(&node);
        let best = best.map(|record| save_of(record.version));
        let before = before.filter(|before| best.is_none_or(|best| save_of(before.version) > best));
        if let Some(before) = before.cloned() {
            self.past.evidence.insert(node, before);
            self.send_evidence(node);
        }
    }

    /// Shows a member what it said before it forgot it.
    pub(super) fn send_evidence(&mut self, node: NodeId) {
        if let Some(record) = self.past.evidence.get(&node) {
            let message = Message::Record(record.bytes().to_vec());
            self.send(node, &message);
        }
    }

    /// A member has seen this version of its record.
    pub(super) fn evidence_seen(&mut self, node: NodeId, version: RecordVersion) {
        let evidence = self.past.evidence.get(&node);
        if evidence.is_some_and(|record| record.version == version) {
            self.past.evidence.remove(&node);
        }
    }

    /// All have answered: takes the titles that were forgotten, and leaves what is another's by a later deed.
    pub(super) fn conclude_about_me(&mut self, inquiry: &Inquiry) {
        let save = self.saving.next();
        let Some(membership) = &mut self.membership else {
            return;
        };
        let mut pool: Vec<Deed> = membership.deeds.known().copied().collect();
        pool.extend(inquiry.answers());
        pool.sort_by_key(|deed| (deed.version, deed.block, deed.signature));
        pool.dedup();
        let mut proofs = Proofs::new(&pool, &membership.public, &self.removals);
        // The newest first, if there is no room for all.
        for title in pool.iter().rev().filter(|deed| deed.owner == self.me) {
            let Some(chain) = proofs.chain(title) else {
                continue;
            };
            if !membership.deeds.adopt(*title, &chain, save) {
                warn!("there is no room for all titles that this node had forgotten");
            }
        }
        let others = inquiry.answers().filter(|deed| deed.owner != self.me);
        let others = others.map(|deed| (deed.block, deed.version));
        let forgotten = |record: &Record| {
            let proven = |deed: &&Deed| {
                is_forgotten(deed, self.me, &membership.deeds)
                    && deed.proven(&record.deeds, &membership.public, &self.removals)
            };
            record.deeds.iter().filter(proven).copied().collect()
        };
        let gifts: Vec<Vec<Deed>> = self.records.values().map(forgotten).collect();
        membership.deeds.leave_to_others(others);
        for gift in gifts.into_iter().flatten() {
            membership.deeds.remember(gift, save);
        }
        self.past.in_doubt = false;
        // Those whom this node has forgotten altogether were not asked.
        self.past.renews_from = save + 1;
        info!("all members have told what they know: this node uses its addresses again");
        self.saving.after(Pending::Inherited);
        self.changed();
    }

    /// Another process with this identity began earlier and is alive.
    fn give_way(&mut self, record: &Record) {
        warn!(at = ?record.endpoints, "another process with this node's identity runs longer: this one stops");
        self.past.twin = Some(record.endpoints.clone());
        self.past.gave_way = true;
        let met = self.membership.iter().flat_map(|own| &own.acquaintances);
        let met = met.map(|(public, _)| public.id());
        let peers: Vec<NodeId> = self.records.keys().copied().chain(met).collect();
        for peer in peers {
            self.sessions.remove_peer(peer, self.now);
        }
        self.refresh();
        self.changed();
    }

    /// This node takes no part any more, though it may not have heard it from itself.
    pub(super) fn is_out(&self) -> bool {
        self.past.gave_way || self.removals.contains(self.me)
    }
}
