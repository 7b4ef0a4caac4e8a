//! With whom this node keeps sessions, whom it tells what is new, and who is alive as far as anybody can tell.
//!
//! In a small cluster that is everybody. In a larger one sessions are kept with the *neighbours* that
//! [`crate::mesh::topology`] names, and with whoever takes this node for one, its *guests*; these pass on what is new.
//! All other sessions are made on demand: packets ask for one ([`Core::handle_wanted`]), or something that this node has
//! to tell one member does. A session that served nobody for a minute is left to *rest*: nothing is sent in it and no new
//! keys are made, so it ends with its keys, on both sides at about the same time; packets that come before wake it.
//!
//! A neighbour that cannot be reached for ten seconds is *lost*: this node's record says so, and the next one in the ring
//! is taken as well. Who is alive follows from everybody's records; what an own session shows counts more.
//!
//! A member that cannot be reached directly may be reached through one of its own neighbours. So while it cannot, some of
//! these *helpers* are kept as well: their tables say whether they reach it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::debug;
use weave_model::NodeId;

use super::Core;
use crate::mesh::record::Record;
use crate::mesh::topology::{FULL_MESH, Topology};
use crate::time::Now;
use crate::wire::{END, end_of};

/// A session that was used by nothing for so long rests.
const IDLE: Duration = Duration::from_secs(60);
/// A member that did not compare records for so long is no guest any more; it does so each minute.
const GUEST: Duration = Duration::from_secs(150);
/// A neighbour without a working session for so long is lost.
const LOST_AFTER: Duration = Duration::from_secs(10);
/// A member without a working session for so long cannot be reached, whatever others say, and needs helpers before.
const MISSED_AFTER: Duration = Duration::from_secs(3);
const HELP_AFTER: Duration = Duration::from_secs(1);
/// How many helpers are asked.
const HELPERS: usize = 3;
/// How long changes are gathered before the sessions are looked at again, in a large cluster.
const GATHER: Duration = Duration::from_millis(100);
/// How long a new record waits before it is passed on, there.
const PACE: Duration = Duration::from_millis(30);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Reach {
    pub(super) topology: Arc<Topology>,
    /// The members or what they lost are others than the topology was made of.
    remap: bool,
    neighbours: BTreeSet<NodeId>,
    /// Who takes this node for a neighbour, and when it last showed that.
    guests: BTreeMap<NodeId, Instant>,
    /// Who was needed for something else, and when last.
    active: BTreeMap<NodeId, Instant>,
    /// Those of them who are needed to reach another member only; for them nobody is asked.
    helpers: BTreeSet<NodeId>,
    /// With whom a session is kept, for any of these reasons.
    kept: BTreeSet<NodeId>,
    /// Since when there is no working session with one of these.
    missing: BTreeMap<NodeId, Instant>,
    lost: BTreeSet<NodeId>,
    due: Option<Instant>,
}

impl Reach {
    /// The neighbours that are lost, for the record.
    pub(super) fn lost(&self) -> Vec<[u8; END]> {
        self.lost.iter().map(end_of).collect()
    }

    /// Whether a session is kept with a member.
    pub(super) fn keeps(&self, peer: NodeId) -> bool {
        self.kept.contains(&peer)
    }

    /// With whom sessions are kept.
    pub(super) const fn kept(&self) -> &BTreeSet<NodeId> {
        &self.kept
    }

    /// Something changed that may change with whom sessions are kept.
    pub(super) fn look_again(&mut self, now: Instant) {
        self.look_at(now + GATHER);
    }

    fn look_at(&mut self, at: Instant) {
        self.due = Some(self.due.map_or(at, |due| due.min(at)));
    }

    /// When [`Core::choose_sessions`] has something to do.
    pub(super) const fn poll_timeout(&self) -> Option<Instant> {
        self.due
    }

    /// A member is one no more.
    pub(super) fn forget(&mut self, node: NodeId, now: Instant) {
        self.guests.remove(&node);
        self.active.remove(&node);
        self.kept.remove(&node);
        self.missing.remove(&node);
        self.remap = true;
        self.look_again(now);
    }

    /// Whether a member had no working session for at least so long.
    fn is_missing(&self, peer: NodeId, long: Duration, now: Instant) -> bool {
        let since = self.missing.get(&peer);
        since.is_some_and(|since| now.saturating_duration_since(*since) >= long)
    }

    /// When something in here is over next.
    fn next(&self, now: Instant) -> Option<Instant> {
        let guests = self.guests.values().map(|at| *at + GUEST);
        let active = self.active.values().map(|at| *at + IDLE);
        let steps = [HELP_AFTER, MISSED_AFTER, LOST_AFTER];
        let missing = self.missing.values();
        let missing = missing.flat_map(|since| steps.map(|step| *since + step));
        let all = guests.chain(active).chain(missing);
        all.filter(|at| *at > now).min()
    }
}

impl Core {
    /// Whether there are so few members that each keeps a session with each.
    pub(super) fn is_small(&self) -> bool {
        self.records.len() < FULL_MESH
    }

    /// A member's record is here, new or anew: it may shake hands, and this node may want to.
    pub(super) fn meet(&mut self, record: &Record) {
        if self.is_out() {
            return;
        }
        self.sessions
            .add_peer(record.public, self.dialled_at(record), self.now);
        self.ways.relink(self.now.mono);
    }

    /// The members are others now, or what they say they lost.
    pub(super) fn remap(&mut self) {
        self.reach.remap = true;
        if self.is_small() {
            self.reach.look_at(self.now.mono);
        } else {
            self.reach.look_again(self.now.mono);
        }
    }

    /// Packets are for a member or came from it, or this node has something to tell it: a session with it is made, or
    /// kept for another while.
    pub fn handle_wanted(&mut self, peer: NodeId, now: Now) {
        self.now = now;
        self.reach.helpers.remove(&peer);
        self.want(peer);
        self.settle();
    }

    pub(super) fn want(&mut self, peer: NodeId) {
        if self.is_small() || self.is_out() || !self.records.contains_key(&peer) {
            return;
        }
        self.reach.active.insert(peer, self.now.mono);
        if self.reach.kept.insert(peer) {
            self.keep(peer);
            self.reach.look_again(self.now.mono);
        }
    }

    /// Whether there is a session with a member in which it answers.
    fn works(&self, peer: NodeId) -> bool {
        let link = self.links.get(&peer);
        link.is_some_and(|link| link.up && !link.silent)
    }

    /// Looks, if it is time, with whom sessions are to be kept, and makes it so.
    pub(super) fn choose_sessions(&mut self) {
        let now = self.now.mono;
        if self.reach.due.take_if(|at| *at <= now).is_none() || !self.active || self.is_out() {
            return;
        }
        if std::mem::take(&mut self.reach.remap) {
            self.draw_topology();
        }
        self.note_missing();
        let lost = self.lost_neighbours();
        if lost != self.reach.lost {
            self.reach.lost = lost;
            self.draw_topology();
            self.note_missing();
            self.publish();
            self.changed();
        }
        self.set_kept();
        self.choose_audience();
        if let Some(at) = self.reach.next(now) {
            self.reach.look_at(at);
        }
    }

    /// With how many members a session answers, and whether with every neighbour.
    pub fn sessions_up(&self) -> (usize, bool) {
        let up = self.links.keys().filter(|peer| self.works(**peer));
        let all = self.reach.neighbours.iter().all(|peer| self.works(*peer));
        (up.count(), all)
    }

    fn draw_topology(&mut self) {
        let own = self.reach.lost();
        let others = self
            .records
            .values()
            .map(|record| (record.node(), &record.lost[..]));
        let topology = Topology::new(others.chain([(self.me, &own[..])]));
        self.reach.neighbours = topology.neighbours(self.me);
        let pace = if topology.is_full() {
            Duration::ZERO
        } else {
            PACE
        };
        self.flood.set_pace(pace);
        self.sheets.flood.set_pace(pace);
        self.reach.topology = Arc::new(topology);
        self.changed();
    }

    fn note_missing(&mut self) {
        let now = self.now.mono;
        let wanted = self.reach.neighbours.union(&self.reach.kept);
        let missing: BTreeSet<NodeId> = wanted.copied().filter(|peer| !self.works(*peer)).collect();
        self.reach.missing.retain(|peer, _| missing.contains(peer));
        for peer in missing {
            let since = *self.reach.missing.entry(peer).or_insert(now);
            if now.saturating_duration_since(since) >= HELP_AFTER {
                self.call_helpers(peer);
            }
        }
    }

    fn lost_neighbours(&self) -> BTreeSet<NodeId> {
        if self.reach.topology.is_full() {
            return BTreeSet::new();
        }
        let now = self.now.mono;
        let lost = |peer: &&NodeId| self.reach.is_missing(**peer, LOST_AFTER, now);
        self.reach.neighbours.iter().filter(lost).copied().collect()
    }

    /// Has some of a member's neighbours at hand, who may hand on to it.
    pub(super) fn call_helpers(&mut self, peer: NodeId) {
        if self.is_small() || self.reach.helpers.contains(&peer) {
            return;
        }
        let mut helpers = self.reach.topology.linked(peer);
        helpers.retain(|helper| *helper != self.me);
        helpers.sort_by_key(|helper| !self.works(*helper));
        helpers.truncate(HELPERS);
        for helper in helpers {
            if !self.reach.keeps(helper) {
                self.reach.helpers.insert(helper);
            }
            self.want(helper);
        }
    }

    fn set_kept(&mut self) {
        let kept = self.those_to_keep();
        let known = |peer: &NodeId| self.records.contains_key(peer);
        let rest: Vec<NodeId> = self.sessions.wanted().filter(known).collect();
        for peer in rest.into_iter().filter(|peer| !kept.contains(peer)) {
            self.let_rest(peer);
        }
        let new: Vec<NodeId> = kept.difference(&self.reach.kept).copied().collect();
        self.reach.kept = kept;
        new.into_iter().for_each(|peer| self.keep(peer));
    }

    fn those_to_keep(&mut self) -> BTreeSet<NodeId> {
        let now = self.now.mono;
        let fresh = |at: &Instant, long| now.saturating_duration_since(*at) < long;
        self.reach.guests.retain(|_, at| fresh(at, GUEST));
        self.reach.active.retain(|_, at| fresh(at, IDLE));
        let active = &self.reach.active;
        self.reach.helpers.retain(|peer| active.contains_key(peer));
        let mut kept = self.reach.neighbours.clone();
        kept.extend(self.reach.guests.keys().chain(self.reach.active.keys()));
        let gifts = self.membership.iter();
        kept.extend(gifts.flat_map(|own| own.deeds.receivers()));
        kept.extend(self.past.witnesses());
        let relay = |peer| self.links.get(peer).and_then(|link| link.way.relay());
        let relays: Vec<NodeId> = kept.iter().filter_map(relay).collect();
        kept.extend(relays);
        kept.retain(|peer| self.records.contains_key(peer));
        kept
    }

    fn keep(&mut self, peer: NodeId) {
        self.sessions.connect(peer, self.now);
        if let Some(link) = self.links.get(&peer).filter(|link| link.up) {
            self.ways.paths.up(peer, link.way, self.now.mono);
        }
        self.ways.relink(self.now.mono);
    }

    fn let_rest(&mut self, peer: NodeId) {
        debug!(peer = %peer.short(), "a session rests");
        self.sessions.rest(peer, self.now);
        self.ways.paths.down(peer);
        self.ways.relink(self.now.mono);
        self.changed();
    }

    /// A session came up. One that this node did not ask for is used for something.
    pub(super) fn reach_up(&mut self, peer: NodeId) {
        if !self.reach.keeps(peer) {
            self.want(peer);
        }
        if self.reach.missing.contains_key(&peer) {
            self.reach.look_again(self.now.mono);
        }
    }

    /// Whether a member is told what is new: a neighbour, a guest, or one that is not known yet.
    fn is_told(&self, peer: NodeId) -> bool {
        self.is_small()
            || !self.records.contains_key(&peer)
            || self.reach.neighbours.contains(&peer)
            || self.reach.guests.contains_key(&peer)
    }

    /// A session came up with somebody who may know nothing of what this node told it before.
    pub(super) fn begin_gossip(&mut self, peer: NodeId) {
        self.flood.down(peer);
        self.sheets.flood.down(peer);
        if self.is_told(peer) {
            self.flood.up(peer, self.now.mono);
            self.sheets.flood.up(peer, self.now.mono);
        }
    }

    /// Tells those with a session that are to be told, and no others.
    fn choose_audience(&mut self) {
        let up = self.links.iter().filter(|(_, link)| link.up);
        for peer in up.map(|(peer, _)| *peer).collect::<Vec<_>>() {
            if self.is_told(peer) != self.flood.tells(peer) {
                self.begin_gossip(peer);
            }
        }
    }

    /// A member compares its records with this node's, by itself and not in answer: it takes this node for a neighbour.
    pub(super) fn note_interest(&mut self, peer: NodeId, answer: bool) {
        if answer || self.is_small() || self.reach.neighbours.contains(&peer) {
            return;
        }
        self.reach.guests.insert(peer, self.now.mono);
        if !self.flood.tells(peer) {
            self.begin_gossip(peer);
        }
        self.reach.look_again(self.now.mono);
    }

    /// Whether a member takes this node for a neighbour and this node does not. It compares records again and again; if
    /// this node did so too, each would be the other's guest for ever.
    pub(super) fn is_guest(&self, peer: NodeId) -> bool {
        self.reach.guests.contains_key(&peer) && !self.reach.neighbours.contains(&peer)
    }

    /// Who is alive, as far as own sessions and everybody's records tell; nobody in a small cluster, where sessions do.
    pub(super) fn alive(&self) -> BTreeSet<NodeId> {
        let first = self.reach.kept.iter().filter(|peer| self.works(**peer));
        self.reach.topology.reached(first.copied())
    }

    /// Whether a member can be reached, with the members that are [`Core::alive`].
    pub(super) fn is_reached(&self, peer: NodeId, alive: &BTreeSet<NodeId>) -> bool {
        if self.is_small() {
            return self.works(peer);
        }
        let kept = self.reach.keeps(peer);
        let silent = self
            .links
            .get(&peer)
            .is_some_and(|link| link.up && link.silent);
        let missing = self.reach.is_missing(peer, MISSED_AFTER, self.now.mono);
        match kept && (missing || silent) {
            true => false,
            false => alive.contains(&peer) || kept && self.works(peer),
        }
    }
}
