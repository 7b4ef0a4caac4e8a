//! What waits for the disk.
//!
//! Everything that must be durable before it has an effect queues here behind the save that will contain it. One save
//! is under way at a time and holds the whole state, so all that changes meanwhile shares the next one. When a save
//! fails, what can be undone is undone and its command refused; the rest waits for the next try, which comes by itself.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use weave_model::{Block, NodeId, NodeName, TokenId};

use super::command::Reply;
use crate::keys::{ClusterSecret, OldSecret};
use crate::mesh::join::Asked;
use crate::mesh::record::RecordVersion;
use crate::mesh::secret::SecretWord;
use crate::mesh::tokens::{TokenInfo, Tokens};

/// After a failed save, how long until the next.
const RETRY: Duration = Duration::from_secs(5);
/// How long a change that nobody waits for may stay unsaved, so that several share a save.
const LAZY: Duration = Duration::from_secs(2);

/// Something that happens once the state is durable.
#[derive(Debug)]
pub(super) enum Pending {
    /// This node's new boot nonce counts: its record may be signed.
    Boot,
    /// The cluster that a command made.
    Init { command: u64 },
    /// The cluster that this node was let into, and where it was.
    Joined { from: SocketAddr },
    /// An address that was given.
    Address {
        command: u64,
        id: String,
        offset: u32,
        fresh: bool,
    },
    /// A token.
    Token {
        command: u64,
        id: TokenId,
        reply: Reply,
    },
    /// A token that was taken back.
    Revoked { command: u64, info: TokenInfo },
    /// Any other answer.
    Answer { command: u64, reply: Reply },
    /// A use of a token: the joiner may be told.
    Admit { asked: Asked, from: SocketAddr },
    /// A deed from this peer: the block may be used.
    Title {
        peer: NodeId,
        block: Block,
        counter: u64,
    },
    /// A gift to this peer: it may be sent.
    Gift { peer: NodeId },
    /// This node's certificate as an admin: its record may carry it.
    Office,
    /// A new secret of the cluster: it may be used. With the command that made it and what it replaced.
    Secret(Option<(u64, Replaced)>),
    /// The removal of a member: it may be cut, and everybody told.
    Removing(Removing),
    /// A removal that this peer told: it may be acknowledged and passed on.
    Heard { node: NodeId, from: NodeId },
    /// The addresses of a removed node: they may be used.
    Inherited,
    /// This node's own removal: everybody may be told.
    Left,
}

/// What removes a member: how its command is answered once that is durable.
#[derive(Debug)]
pub(super) struct Removing {
    pub command: u64,
    pub node: NodeId,
    /// Of the removal.
    pub version: RecordVersion,
    pub name: NodeName,
    /// Who takes its addresses.
    pub heir: (NodeId, NodeName),
}

/// What a change of the secret replaced, in case that it cannot be saved.
pub(super) struct Replaced {
    pub secrets: Vec<ClusterSecret>,
    pub old: Vec<OldSecret>,
    pub word: Option<SecretWord>,
    pub tokens: Tokens,
}

impl std::fmt::Debug for Replaced {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Replaced").finish_non_exhaustive()
    }
}

/// The queue in front of the disk.
#[derive(Debug, Default)]
pub(super) struct Saving {
    /// The number of the newest save that was asked for.
    asked: u64,
    /// The newest save that is durable.
    durable: u64,
    in_flight: bool,
    wanted: bool,
    lazy: Option<Instant>,
    retry: Option<Instant>,
    failure: Option<String>,
    waiting: VecDeque<(u64, Pending)>,
}

impl Saving {
    /// The number of the next save: it will contain what changes now.
    pub(super) const fn next(&self) -> u64 {
        self.asked + 1
    }

    /// The number of the last save that was asked for.
    pub(super) const fn asked(&self) -> u64 {
        self.asked
    }

    /// The state has changed: save it now, though nobody waits for it.
    pub(super) const fn want(&mut self) {
        self.wanted = true;
        self.lazy = None;
    }

    /// The state has changed, but nobody waits for it.
    pub(super) fn want_soon(&mut self, now: Instant) {
        self.lazy.get_or_insert(now + LAZY);
    }

    /// Queues what happens when the state as it is now is durable.
    pub(super) fn after(&mut self, pending: Pending) {
        self.want();
        self.waiting.push_back((self.next(), pending));
    }

    /// Whether the address of `id` waits to be saved.
    pub(super) fn awaits_address(&self, id: &str) -> bool {
        let of = |pending: &Pending| matches!(pending, Pending::Address { id: waiting, .. } if waiting == id);
        self.waiting.iter().any(|(_, pending)| of(pending))
    }

    /// Queues what happens when all changes so far are durable, without asking for a save of its own.
    pub(super) fn behind(&mut self, pending: Pending) {
        let save = if self.wanted { self.next() } else { self.asked };
        self.waiting.push_back((save, pending));
    }

    /// The number of the save to start now, if there is one.
    pub(super) fn start(&mut self) -> Option<u64> {
        if !self.wanted || self.in_flight || self.retry.is_some() {
            return None;
        }
        (self.wanted, self.in_flight) = (false, true);
        self.asked += 1;
        Some(self.asked)
    }

    /// A save is durable.
    pub(super) fn persisted(&mut self, save: u64) {
        if save == self.asked {
            self.in_flight = false;
        }
        self.durable = self.durable.max(save);
        (self.failure, self.retry) = (None, None);
    }

    /// A save failed; returns what waited for it and is to be undone.
    pub(super) fn failed(&mut self, save: u64, cause: String, now: Instant) -> Vec<Pending> {
        if save == self.asked {
            self.in_flight = false;
        }
        self.wanted = true;
        self.retry = Some(now + RETRY);
        self.failure = Some(cause);
        let undone = |pending: &Pending| {
            matches!(
                pending,
                Pending::Init { .. }
                    | Pending::Address { .. }
                    | Pending::Token { .. }
                    | Pending::Revoked { .. }
                    | Pending::Removing(_)
                    | Pending::Secret(Some(_))
                    | Pending::Answer { .. }
            )
        };
        let all = std::mem::take(&mut self.waiting);
        let (undo, keep): (VecDeque<_>, _) =
            all.into_iter().partition(|(_, pending)| undone(pending));
        self.waiting = keep;
        undo.into_iter().map(|(_, pending)| pending).collect()
    }

    /// Everything that waits; it waits no more.
    pub(super) fn abandon(&mut self) -> Vec<Pending> {
        let all = std::mem::take(&mut self.waiting);
        all.into_iter().map(|(_, pending)| pending).collect()
    }

    /// What may happen now.
    pub(super) fn next_ready(&mut self) -> Option<Pending> {
        let ready = self
            .waiting
            .front()
            .is_some_and(|(save, _)| *save <= self.durable);
        if ready {
            self.waiting.pop_front().map(|(_, pending)| pending)
        } else {
            None
        }
    }

    /// The newest durable save.
    pub(super) const fn durable(&self) -> u64 {
        self.durable
    }

    /// Why the last save failed, until one succeeds.
    pub(super) fn failure(&self) -> Option<&str> {
        self.failure.as_deref()
    }

    /// Lets lazy changes and retries become due.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        if self.lazy.is_some_and(|at| now >= at) {
            self.want();
        }
        self.retry = self.retry.filter(|at| now < *at);
    }

    /// When [`Saving::handle_timeout`] has something to do.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.lazy.into_iter().chain(self.retry).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(command: u64) -> Pending {
        Pending::Answer {
            command,
            reply: Reply::Done,
        }
    }

    fn ready(saving: &mut Saving) -> Vec<u64> {
        std::iter::from_fn(|| saving.next_ready())
            .map(|pending| match pending {
                Pending::Answer { command, .. } => command,
                other => panic!("{other:?}"),
            })
            .collect()
    }

    #[test]
    fn changes_during_a_save_share_the_next() {
        let mut saving = Saving::default();
        saving.after(answer(1));
        assert_eq!(saving.start(), Some(1));
        saving.after(answer(2));
        saving.after(answer(3));
        assert_eq!(saving.start(), None, "one at a time");
        saving.persisted(1);
        assert_eq!(ready(&mut saving), [1]);
        assert_eq!(saving.start(), Some(2));
        assert_eq!(ready(&mut saving), [0; 0]);
        saving.behind(answer(4));
        saving.persisted(2);
        assert_eq!(ready(&mut saving), [2, 3, 4]);
        assert_eq!(saving.start(), None);
        saving.behind(answer(5));
        assert_eq!(ready(&mut saving), [5], "nothing is unsaved");
    }

    #[test]
    fn a_failed_save_is_tried_again() {
        let now = Instant::now();
        let mut saving = Saving::default();
        saving.after(answer(1));
        saving.after(Pending::Boot);
        assert_eq!(saving.start(), Some(1));
        let undone = saving.failed(1, "disk full".to_owned(), now);
        assert!(matches!(undone[..], [Pending::Answer { command: 1, .. }]));
        assert_eq!(
            (saving.start(), saving.failure()),
            (None, Some("disk full"))
        );
        saving.handle_timeout(now + RETRY);
        assert_eq!(saving.start(), Some(2));
        assert!(saving.next_ready().is_none());
        saving.persisted(2);
        assert!(matches!(saving.next_ready(), Some(Pending::Boot)));
        assert_eq!(saving.failure(), None);
    }

    #[test]
    fn lazy_changes_wait_for_company() {
        let now = Instant::now();
        let mut saving = Saving::default();
        saving.want_soon(now);
        saving.want_soon(now + Duration::from_secs(1));
        assert_eq!(saving.start(), None);
        assert_eq!(saving.poll_timeout(), Some(now + LAZY));
        saving.handle_timeout(now + LAZY);
        assert_eq!(saving.start(), Some(1));
    }
}
