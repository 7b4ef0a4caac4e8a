//! Leaving the cluster: hand all addresses over, say so, forget everything.
//!
//! The addresses go to one member as a gift, and nothing else happens until it has saved them. Then the node signs its
//! own removal, tells all that it is connected with, and becomes a node that was never in a cluster, with new keys: what
//! was removed does not come back. A crash in between ends in one of two places: a member without addresses, which asks
//! for new ones, or, once the removal is saved, the new node.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use rand::Rng;
use tracing::info;
use weave_model::{Block, NodeId, NodeName};

use super::command::{CommandError, Reply};
use super::saving::Pending;
use super::{Core, CoreEvent};
use crate::mesh::deeds::{MAX_TITLES_FROM_ONE, donor_of, has_room_for};
use crate::mesh::record::Record;
use crate::mesh::removal::{MAX_KEPT, Removal, Remover};

/// How long the heir may take to save what it is given.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long those who do not confirm are told.
const FAREWELL: Duration = Duration::from_secs(3);

/// A leave command under way.
#[derive(Debug)]
pub(super) struct Leaving {
    command: u64,
    force: bool,
    heir: (NodeId, NodeName),
    until: Instant,
    stage: Stage,
    told: BTreeSet<NodeId>,
}

#[derive(Debug, PartialEq, Eq)]
enum Stage {
    /// The heir has not confirmed yet.
    Giving,
    /// The removal is being saved.
    Saving,
    /// Everybody is being told.
    Telling,
    /// Nobody has confirmed yet, and nobody else could say that this node has left.
    Unheard,
}

impl Leaving {
    /// When to give up, or to go.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        (self.stage != Stage::Saving).then_some(self.until)
    }
}

impl Core {
    /// Begins to leave. With `force` also without anybody to take the addresses or to confirm that it has them, and as the
    /// last admin.
    pub(super) fn leave(&mut self, command: u64, force: bool) -> Result<(), CommandError> {
        self.member()?;
        self.check_storage()?;
        if self.leaving.is_some() {
            return Err(CommandError::Underway);
        }
        if self.is_out() {
            self.start_anew(command, None);
            return Ok(());
        }
        if self.living().is_empty() {
            if !force {
                return Err(CommandError::LastMember);
            }
            self.start_anew(command, None);
            return Ok(());
        }
        if !force {
            self.check_leave()?;
        }
        self.check_removals()?;
        if self.kept_of(self.me).len() > MAX_KEPT {
            return Err(CommandError::TooManyKept);
        }
        let Some(heir) = self.taker() else {
            if !force {
                return Err(CommandError::NobodyToTake);
            }
            self.start_anew(command, None);
            return Ok(());
        };
        self.hand_over(heir.0);
        self.leaving = Some(Leaving {
            command,
            force,
            heir,
            until: self.now.mono + PATIENCE,
            stage: Stage::Giving,
            told: BTreeSet::new(),
        });
        Ok(())
    }

    fn check_leave(&self) -> Result<(), CommandError> {
        if self.ipam.used() > 0 {
            return Err(CommandError::InUse(self.ipam.used()));
        }
        let admin = self.member()?.authority(&self.keys).is_some();
        let other = self.records.values().any(|record| record.certificate.admin);
        if admin && !other {
            return Err(CommandError::LastAdmin);
        }
        Ok(())
    }

    /// Who shall have the addresses: a connected member that has room for them, and of those the one that gave them, or
    /// else the one with the most.
    fn taker(&self) -> Option<(NodeId, NodeName)> {
        let up = |record: &&Record| {
            let link = self.links.get(&record.node());
            link.is_some_and(|link| link.up && !link.silent)
        };
        let given = self.membership.iter().flat_map(|own| own.deeds.known());
        let donors: Vec<NodeId> = given.filter_map(donor_of).collect();
        let blocks = self.ipam.blocks();
        let proofs = self
            .membership
            .iter()
            .map(|own| own.deeds.proof_of(blocks, u64::MAX));
        let deeds = blocks.len() + proofs.map(|proof| proof.len()).sum::<usize>();
        let rank = |record: &&Record| {
            let size: u32 = record.blocks.iter().map(Block::size).sum();
            let room = has_room_for(deeds, record.deeds.len());
            (room, donors.contains(&record.node()), size)
        };
        let best = self.records.values().filter(up).max_by_key(rank);
        best.map(|record| (record.node(), record.name.clone()))
    }

    fn hand_over(&mut self, heir: NodeId) {
        let (save, boot) = (self.saving.next(), self.boot);
        let mut blocks = self.ipam.blocks().to_vec();
        // More than one node takes from another: what is left over, the smallest, is inherited.
        blocks.sort_by_key(|block| Reverse(block.bits()));
        blocks.truncate(MAX_TITLES_FROM_ONE / 2);
        if let Some(membership) = &mut self.membership {
            for block in blocks {
                let (keys, public) = (&self.keys, membership.public);
                membership
                    .deeds
                    .give(block, heir, boot, save, keys, &public);
            }
        }
        self.saving.after(Pending::Gift { peer: heir });
        self.refresh();
    }

    /// Takes the next step, when it can be taken.
    pub(super) fn go_on_leaving(&mut self) {
        let Some(leaving) = &self.leaving else {
            return;
        };
        let over = self.now.mono >= leaving.until;
        match leaving.stage {
            Stage::Giving => match self.unconfirmed() {
                Some(_) if over && leaving.force => self.sign_off(leaving.heir.0),
                Some(node) if over => {
                    let node = node.to_string();
                    self.fail_leaving(CommandError::NotConfirmed { node });
                }
                Some(_) => {}
                None => self.sign_off(leaving.heir.0),
            },
            Stage::Saving => {}
            Stage::Telling => {
                let up = self.links.iter().filter(|(_, link)| link.up);
                let all = up
                    .map(|(peer, _)| peer)
                    .all(|peer| leaving.told.contains(peer));
                let heard = !leaving.told.is_empty();
                if heard && all || over && (heard || leaving.force) {
                    self.be_gone();
                } else if over && let Some(leaving) = &mut self.leaving {
                    (leaving.stage, leaving.until) = (Stage::Unheard, self.now.mono + PATIENCE);
                }
            }
            Stage::Unheard if over || !leaving.told.is_empty() => self.be_gone(),
            Stage::Unheard => {}
        }
    }

    /// A member that has not confirmed what it is being given: the heir, or one of an earlier attempt.
    fn unconfirmed(&self) -> Option<NodeName> {
        let own = self.membership.as_ref()?;
        let receivers = own.deeds.receivers();
        let record = receivers.iter().find_map(|node| self.records.get(node))?;
        Some(record.name.clone())
    }

    fn fail_leaving(&mut self, error: CommandError) {
        if let Some(leaving) = self.leaving.take() {
            self.reply(leaving.command, Err(error));
        }
    }

    /// The heir has everything: this node is no member from now on.
    fn sign_off(&mut self, heir: NodeId) {
        let kept = self.kept_of(self.me);
        let Some(membership) = &self.membership else {
            return;
        };
        let issued = self.now.wall.as_secs();
        let (certificate, public) = (&membership.certificate, &membership.public);
        let removal = Removal::by_itself(&self.keys, certificate, public, heir, issued, kept);
        let Some(removal) = removal else {
            return self.fail_leaving(CommandError::TooManyKept);
        };
        if !self.remember(removal) {
            return self.fail_leaving(CommandError::Removed);
        }
        if let Some(leaving) = &mut self.leaving {
            leaving.stage = Stage::Saving;
        }
        self.saving.after(Pending::Left);
    }

    /// The removal is durable: everybody is told.
    pub(super) fn say_farewell(&mut self) {
        let until = self.now.mono + FAREWELL;
        if let Some(leaving) = &mut self.leaving {
            (leaving.stage, leaving.until) = (Stage::Telling, until);
            self.flood.offer(self.me, None, self.now.mono);
        }
    }

    fn be_gone(&mut self) {
        if let Some(leaving) = &self.leaving {
            let (command, heir) = (leaving.command, leaving.heir.clone());
            self.start_anew(command, Some(heir));
        }
    }

    /// A peer knows that this node has left.
    pub(super) fn note_farewell(&mut self, peer: NodeId) {
        if let Some(leaving) = &mut self.leaving {
            leaving.told.insert(peer);
        }
    }

    /// Whether this node has left its cluster, and only has yet to forget it.
    pub(super) fn has_left(&self) -> bool {
        let own = self.removals.get(self.me);
        own.is_some_and(|removal| matches!(removal.by, Remover::Itself(..)))
    }

    /// Becomes a node that was never in a cluster, and says so once that is durable.
    fn start_anew(&mut self, command: u64, heir: Option<(NodeId, NodeName)>) {
        info!("this node has left its cluster");
        self.leaving = None;
        let known = self.records.values().map(|record| record.public);
        let met = self
            .membership
            .iter()
            .flat_map(|own| own.acquaintances.iter());
        let peers: Vec<NodeId> = known
            .chain(met.map(|(public, _)| *public))
            .map(|public| public.id())
            .collect();
        for peer in peers {
            self.sessions.remove_peer(peer, self.now);
        }
        while let Some(event) = self.sessions.poll_event() {
            self.events.push_back(CoreEvent::Session(event));
        }
        for pending in self.saving.abandon() {
            self.undo(pending, "the node has left its cluster");
        }
        let asked = self.echoes.abandon().into_iter();
        for command in asked.chain(self.naming.abandon()).collect::<Vec<_>>() {
            self.reply(command, Err(CommandError::Stopping));
        }
        let mut seed = [0; 32];
        self.rng.fill_bytes(&mut seed);
        let Ok(mut fresh) = Self::new(self.config.clone(), None, seed, self.now) else {
            return;
        };
        fresh.sessions.set_start(self.sessions.start());
        fresh.endpoints = std::mem::take(&mut self.endpoints);
        fresh.saving = std::mem::take(&mut self.saving);
        fresh.events = std::mem::take(&mut self.events);
        fresh.out = std::mem::take(&mut self.out);
        fresh.saving.after(Pending::Boot);
        let reply = Reply::Left { heir };
        fresh.saving.after(Pending::Answer { command, reply });
        fresh.changed();
        *self = fresh;
    }
}
