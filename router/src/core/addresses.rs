//! Owning addresses: asking other members for blocks, and giving them.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rand::Rng;
use tracing::{debug, info, warn};
use weave_model::{Block, NodeId};

use super::Core;
use super::budget::Cost;
use super::command::CommandError;
use super::saved::Membership;
use super::saving::Pending;
use crate::mesh::deed::Deed;
use crate::mesh::deeds::{Grant, donor_of, gift_bits};
use crate::mesh::message::Message;
use crate::mesh::record::{MAX_BLOCKS, Record};

const FIRST_RETRY: Duration = Duration::from_millis(300);
const LAST_RETRY: Duration = Duration::from_secs(1);
/// How often one member is asked before the next one is.
const TRIES: u32 = 6;
/// How long a member that has nothing to give is left alone.
const REFUSED_FOR: Duration = Duration::from_secs(30);

/// How many members without a session are asked, those that own most.
const MOST_DONORS: usize = 8;

/// Into how many pieces more the blocks of a /8 can fall when one is given away.
const PIECES: usize = 24;

/// This node needs more addresses.
#[derive(Debug)]
pub(super) struct Asking {
    /// Names this need; a member that has met it does not meet it twice.
    id: u64,
    /// The area of a network that they are for.
    within: Option<Block>,
    asked: Option<NodeId>,
    tries: u32,
    next: Instant,
    wait: Duration,
    refused: BTreeMap<NodeId, Instant>,
    /// A grant came and is being saved.
    granted: bool,
}

impl Asking {
    fn new(id: u64, within: Option<Block>, now: Instant) -> Self {
        let refused = BTreeMap::new();
        Self {
            id,
            within,
            asked: None,
            tries: 0,
            next: now,
            wait: FIRST_RETRY,
            refused,
            granted: false,
        }
    }

    /// When to ask again.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        (!self.granted).then_some(self.next)
    }
}

/// Gifts under way: when to send them again.
#[derive(Debug, Default)]
pub(super) struct Giving {
    peers: BTreeMap<NodeId, (Instant, Duration)>,
    /// The last need of each member that was met.
    met: BTreeMap<NodeId, u64>,
}

impl Giving {
    /// A gift is to be sent now.
    pub(super) fn start(&mut self, peer: NodeId, now: Instant) {
        self.peers.insert(peer, (now, FIRST_RETRY));
    }

    /// When to send the next one.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.peers.values().map(|(next, _)| *next).min()
    }

    fn due(&mut self, now: Instant) -> Vec<NodeId> {
        let mut due = Vec::new();
        for (peer, (next, wait)) in self.peers.iter_mut().filter(|(_, (next, _))| now >= *next) {
            due.push(*peer);
            (*next, *wait) = (now + *wait, (*wait * 2).min(LAST_RETRY));
        }
        due
    }
}

impl Core {
    /// Works out anew which blocks are this node's, after a title, a gift or another's record changed.
    pub(super) fn refresh(&mut self) {
        let durable = self.saving.durable();
        let Some(membership) = self.membership.as_mut().filter(|_| self.active) else {
            return;
        };
        let forgot = membership.deeds.forget_renewed(durable);
        if forgot {
            self.saving.want_soon(self.now.mono);
        }
        let removed = self.removed.values();
        let removed = removed.filter_map(|removed| removed.record.as_ref());
        let others: Vec<&Deed> = self
            .records
            .values()
            .chain(removed)
            .flat_map(Record::titles)
            .collect();
        let blocks = if self.past.in_doubt || self.past.gave_way {
            Vec::new()
        } else {
            membership.deeds.blocks(durable, &others)
        };
        if blocks == self.ipam.blocks() {
            if forgot {
                self.publish();
            }
            return;
        }
        self.ipam.set_blocks(&blocks);
        let lost = self
            .ipam
            .leases()
            .filter(|(_, offset)| !self.ipam.owns(*offset))
            .count();
        if lost > 0 {
            warn!(
                lost,
                "addresses in use here belong to another member by a later deed"
            );
        }
        info!(
            blocks = blocks.len(),
            addresses = self.ipam.capacity(),
            "own addresses changed"
        );
        self.changed();
        self.publish();
    }

    /// Begins to ask for addresses if it is time, and stops if it is not.
    pub(super) fn ask_if_needed(&mut self) {
        let room = |own: &Membership| own.deeds.has_room();
        let standing = self.active && self.standing().is_ok_and(room) && !self.past.in_doubt;
        let able = standing && self.saving.failure().is_none();
        let wants = if able {
            self.ipam.wants_more()
        } else {
            Vec::new()
        };
        match &self.asking {
            Some(asking) if asking.granted || wants.contains(&asking.within) => {}
            _ => {
                let now = self.now.mono;
                let need = self.urgent(&wants);
                self.stale |= self.asked_for() != need;
                let id = need.map(|within| (within, self.rng.next_u64()));
                self.asking = id.map(|(within, id)| Asking::new(id, within, now));
            }
        }
        if self
            .asking
            .as_ref()
            .is_some_and(|asking| !asking.granted && self.now.mono >= asking.next)
        {
            self.ask();
        }
    }

    /// Of what this node asks others for more: a network's area, or the rest (`None`).
    pub(super) fn asked_for(&self) -> Option<Option<Block>> {
        self.asking.as_ref().map(|asking| asking.within)
    }

    /// Which need to see to: not one that nobody could meet a moment ago, while there is another.
    fn urgent(&self, wants: &[Option<Block>]) -> Option<Option<Block>> {
        let unmet = |within: &Option<Block>| {
            let at = self.unmet.get(within);
            at.is_some_and(|at| self.now.mono < *at + REFUSED_FOR)
        };
        let open = wants.iter().find(|within| !unmet(within));
        open.or_else(|| wants.first()).copied()
    }

    fn ask(&mut self) {
        let now = self.now.mono;
        let donor = self.choose_donor();
        let within = self.asking.as_ref().and_then(|asking| asking.within);
        let parts = self.ipam.blocks_in(within);
        let whole: u32 = parts.iter().map(Block::size).sum();
        let Some(asking) = &mut self.asking else {
            return;
        };
        if donor != asking.asked {
            (asking.asked, asking.tries, asking.wait) = (donor, 0, FIRST_RETRY);
        }
        asking.tries += 1;
        asking.next = now + asking.wait;
        asking.wait = (asking.wait * 2).min(LAST_RETRY);
        let id = asking.id;
        match donor {
            Some(donor) => {
                self.want(donor);
                let bits = match (whole, within) {
                    (0, None) => 0,
                    (0, Some(area)) => first_bits(area),
                    _ => whole.ilog2() as u8,
                };
                self.send(donor, &Message::DeedRequest { id, bits, within });
            }
            None if self.all_refused() => self.nobody_gives(),
            None => {}
        }
    }

    /// The one that is being asked, for a few tries; else the connected member with the most addresses. One that is not
    /// known yet is the inviter, and has the most as far as one can tell.
    fn choose_donor(&self) -> Option<NodeId> {
        let asking = self.asking.as_ref()?;
        let now = self.now.mono;
        let refused = |id: &NodeId| {
            asking
                .refused
                .get(id)
                .is_some_and(|at| now < *at + REFUSED_FOR)
        };
        let mut willing = self.donors();
        willing.retain(|id| !refused(id));
        if let Some(asked) = asking
            .asked
            .filter(|id| asking.tries < TRIES && willing.contains(id))
        {
            return Some(asked);
        }
        let size = |id: &NodeId| {
            let record = self.records.get(id);
            record.map_or(u32::MAX, |record| {
                let blocks = record.blocks.iter();
                blocks.map(|block| common(*block, asking.within)).sum()
            })
        };
        let others = willing.iter().filter(|id| Some(**id) != asking.asked);
        others
            .max_by_key(|id| size(id))
            .or_else(|| willing.first())
            .copied()
    }

    fn all_refused(&self) -> bool {
        let Some(asking) = &self.asking else {
            return false;
        };
        let donors = self.donors();
        let refused = |id| asking.refused.contains_key(id);
        !donors.is_empty() && donors.iter().all(refused)
    }

    /// Who may be asked: all connected members; where sessions are made on demand, also the living ones that own most.
    fn donors(&self) -> Vec<NodeId> {
        let up = self.links.iter().filter(|(_, link)| link.up);
        let mut donors: Vec<NodeId> = up.map(|(id, _)| *id).collect();
        if self.is_small() {
            return donors;
        }
        let alive = self.alive();
        let size = |record: &&Record| record.blocks.iter().map(Block::size).sum::<u32>();
        let others = self
            .records
            .values()
            .filter(|record| alive.contains(&record.node()));
        let mut others: Vec<&Record> = others.collect();
        others.sort_by_key(|record| std::cmp::Reverse(size(record)));
        donors.extend(others.into_iter().take(MOST_DONORS).map(Record::node));
        donors.sort_unstable();
        donors.dedup();
        donors
    }

    fn nobody_gives(&mut self) {
        warn!("no connected member has addresses to give");
        if let Some(asking) = &mut self.asking {
            asking.refused.clear();
            asking.next = self.now.mono + REFUSED_FOR;
            self.unmet.insert(asking.within, self.now.mono);
        }
        let wants = self.ipam.wants_more();
        if self.unmet.len() < wants.len() {
            self.asking = None;
        }
        if self.awaits_deed() {
            self.end_join(Err(CommandError::NoAddresses));
        }
    }

    /// A member has nothing to give.
    pub(super) fn handle_refusal(&mut self, peer: NodeId, id: u64) {
        let now = self.now.mono;
        if let Some(asking) = self
            .asking
            .as_mut()
            .filter(|asking| asking.id == id && !asking.granted)
        {
            asking.refused.insert(peer, now);
            asking.next = now;
        }
    }

    /// A member asks for addresses.
    pub(super) fn handle_request(
        &mut self,
        peer: NodeId,
        id: u64,
        bits: u8,
        within: Option<Block>,
    ) {
        let Some(membership) = self.membership.as_mut().filter(|_| self.active) else {
            return;
        };
        if !self.past.gives(self.now.mono) {
            return;
        }
        if membership.deeds.is_giving(peer) || self.giving.met.get(&peer) == Some(&id) {
            return;
        }
        if !self.budgets.pay(peer, Cost::Request, self.now.mono) {
            return;
        }
        let able = self.saving.failure().is_none()
            && self.leaving.is_none()
            && membership.deeds.may_ask(peer)
            && self.ipam.blocks().len() <= MAX_BLOCKS - PIECES;
        let block = if able {
            let whole = within.unwrap_or_else(|| Block::whole(&membership.range));
            let (have, used) = (self.ipam.capacity_in(within), self.ipam.used_in(within));
            let sizes = gift_bits(whole.bits(), bits, have, used);
            let mut sizes = sizes.into_iter().flatten().rev();
            let may = |block| membership.deeds.may_pass(block);
            sizes.find_map(|bits| self.ipam.spare_of(within, bits, self.now.mono, may))
        } else {
            None
        };
        let save = self.saving.next();
        let gift = block.and_then(|block| {
            membership
                .deeds
                .give(block, peer, self.boot, save, &self.keys, &membership.public)
        });
        let Some(gift) = gift else {
            self.send(peer, &Message::DeedRefusal { id });
            return;
        };
        info!(to = %peer.short(), first = gift.block.first(), addresses = gift.block.size(), "a block is given");
        self.giving.met.insert(peer, id);
        self.saving.after(Pending::Gift { peer });
        self.refresh();
    }

    /// A member gives a block, or says again that it did.
    pub(super) fn handle_grant(&mut self, peer: NodeId, grant: &[Deed]) {
        let boot = self
            .links
            .get(&peer)
            .filter(|link| link.up)
            .map(|link| link.boot);
        let Some(membership) = self.membership.as_mut().filter(|_| self.active) else {
            return;
        };
        let Some(deed) = grant.first().filter(|deed| donor_of(deed) == Some(peer)) else {
            return;
        };
        let cost = Cost::Signatures(grant.len());
        if !self.budgets.pay(peer, cost, self.now.mono) {
            return;
        }
        let save = self.saving.next();
        let (block, counter) = (deed.block, deed.version.counter);
        let asked = self
            .asking
            .as_ref()
            .is_some_and(|asking| !asking.granted && asking.asked == Some(peer));
        let deeds = &membership.deeds;
        if !asked && !deeds.has_taken(block, counter) && !deeds.has_room_unasked() {
            return warn!(from = %peer.short(), first = block.first(), "a block that this node did not ask for is left: it has many");
        }
        match membership.deeds.accept(
            grant,
            self.me,
            boot,
            save,
            (&membership.public, &self.removals),
        ) {
            Grant::New => {
                if let Some(asking) = &mut self.asking {
                    asking.granted = true;
                }
                self.saving.after(Pending::Title {
                    peer,
                    block,
                    counter,
                });
            }
            Grant::Known
                if membership
                    .deeds
                    .has_saved(block, counter, self.saving.durable()) =>
            {
                self.send(peer, &Message::DeedAck { block, counter });
            }
            Grant::Known => {}
            Grant::TooMany => {
                warn!(from = %peer.short(), first = block.first(), "a block is left: it is one more than can be remembered or told of");
            }
            verdict => debug!(from = %peer.short(), ?verdict, "a grant is left"),
        }
    }

    /// A block that was given to this node is durable: it may be used, and the donor may stop.
    pub(super) fn handle_title(&mut self, peer: NodeId, block: Block, counter: u64) {
        info!(from = %peer.short(), first = block.first(), addresses = block.size(), "a block was given to this node");
        self.asking = None;
        self.unmet.clear();
        self.take_over();
        self.send(peer, &Message::DeedAck { block, counter });
        if self.awaits_deed() {
            self.end_join(Ok(()));
        }
    }

    /// The receiver has saved a gift.
    pub(super) fn handle_ack(&mut self, peer: NodeId, block: Block, counter: u64) {
        let Some(membership) = &mut self.membership else {
            return;
        };
        if membership.deeds.acknowledged(peer, block, counter) {
            self.saving.want_soon(self.now.mono);
        }
        if !membership.deeds.is_giving(peer) {
            self.giving.peers.remove(&peer);
        }
    }

    /// A session with a member came up: what is being given to it is sent at once.
    pub(super) fn resume_giving(&mut self, peer: NodeId) {
        let membership = self.membership.as_ref();
        if membership.is_some_and(|membership| membership.deeds.is_giving(peer)) {
            self.giving.start(peer, self.now.mono);
        }
    }

    /// Sends the gifts that are due.
    pub(super) fn send_gifts(&mut self) {
        for peer in self.giving.due(self.now.mono) {
            let Some(membership) = &self.membership else {
                return;
            };
            let grants = membership.deeds.unacked(peer, self.saving.durable());
            let up = self.links.get(&peer).is_some_and(|link| link.up);
            if !up || !membership.deeds.is_giving(peer) {
                self.giving.peers.remove(&peer);
                continue;
            }
            for grant in grants {
                self.send(peer, &Message::DeedGrant(grant));
            }
        }
    }
}

/// How much of an area a member that has none of it asks for first, as the binary logarithm: the 256th part, so that
/// many members find some, but no less than 32 addresses.
fn first_bits(area: Block) -> u8 {
    area.bits().saturating_sub(8).max(5)
}

/// How many offsets of a block lie in an area.
fn common(block: Block, area: Option<Block>) -> u32 {
    let Some(area) = area else {
        return block.size();
    };
    let (first, last) = (
        block.first().max(area.first()),
        block.last().min(area.last()),
    );
    (last + 1).saturating_sub(first)
}

#[cfg(test)]
mod tests;
