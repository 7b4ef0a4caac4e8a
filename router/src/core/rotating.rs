//! Changing the cluster's secret while everybody talks.
//!
//! An admin makes a new secret and signs the word that gives it (see [`crate::mesh::secret`]). Whoever has the word saves
//! it, shows its mark in its record, and hands the word to every member with a session whose record does not show it. From
//! then on it begins handshakes by the new secret, and after a round in vain by the one before, and answers both; sessions
//! go on, and each gets its keys by the new secret when it is rekeyed. When the time of the word is over, the secret before
//! is accepted no longer, on all nodes at the same time as far as their clocks agree. So a node that was away meanwhile
//! comes back by the old secret as long as that is good, and is handed the word; later it is turned away and told why.
//!
//! Tokens of before are good no longer than the secret of before: what was handed out under it opens no door after it.
//! If the admin that gave a secret is removed by one that did not know of it, those who took it go back to the one before,
//! unless that is gone.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use tracing::{debug, info, warn};
use weave_model::NodeId;
use zeroize::Zeroizing;

use super::Core;
use super::command::{CommandError, Reply, SecretState};
use super::removing::SIGNATURES;
use super::saved::{MAX_OLD, Membership};
use super::saving::{Pending, Replaced};
use crate::keys::{ClusterSecret, OldSecret};
use crate::mesh::message::Message;
use crate::mesh::secret::{HandedOn, SecretWord};

/// How long the secret before may be accepted.
const OVERLAP: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(365 * 24 * 3600);
const FIRST_RETRY: Duration = Duration::from_millis(300);
const LAST_RETRY: Duration = Duration::from_secs(30);
/// How long at most until the wall clock is looked at again: it may be set.
const LOOK: Duration = Duration::from_secs(60);

/// Who has yet to be handed the word, and what was said about secrets that are accepted no longer.
#[derive(Debug, Default)]
pub(super) struct Rotating {
    /// When it is sent to whom next, and how long to wait after that.
    lacking: BTreeMap<NodeId, (Instant, Duration)>,
    due: Option<Instant>,
    /// Members that were turned away since they were heard last.
    pub(super) turned_away: BTreeSet<NodeId>,
    /// The peer that said so, and its epoch: this node's own secret is accepted no longer.
    pub(super) outdated: Option<(NodeId, u32)>,
}

impl Rotating {
    /// When [`Core::go_on_rotating`] has something to do.
    pub(super) const fn poll_timeout(&self) -> Option<Instant> {
        self.due
    }

    /// Something may have to be handed on or given up.
    pub(super) const fn look(&mut self, now: Instant) {
        self.due = Some(now);
    }
}

impl Core {
    /// Begins to change the cluster's secret.
    pub(super) fn rotate(&mut self, command: u64, overlap: Duration) -> Result<(), CommandError> {
        self.check_admin()?;
        if !OVERLAP.contains(&overlap) {
            return Err(CommandError::OverlapTerms);
        }
        if let Some(until) = self.secret_state().and_then(|state| state.previous_until) {
            return Err(CommandError::Overlapping(
                until.saturating_sub(self.now.wall),
            ));
        }
        let until = (self.now.wall + overlap).as_millis().div_ceil(1000) as u64;
        let before = self.member()?.secrets.first().cloned();
        let before = before.ok_or(CommandError::NotMember)?;
        let epoch = before.epoch.saturating_add(1);
        let secret = ClusterSecret::generate(epoch, &mut self.rng);
        let authority = self.member()?.authority(&self.keys);
        let authority = authority.ok_or(CommandError::NotMember)?;
        let word = SecretWord::new(&authority, secret, until, &before);
        let replaced = self.take_word(word, Some(before));
        let replaced = replaced.ok_or(CommandError::NotMember)?;
        self.saving
            .after(Pending::Secret(Some((command, replaced))));
        Ok(())
    }

    /// Puts a word in force as far as the state goes that is saved; `None` outside of a cluster.
    fn take_word(&mut self, word: SecretWord, before: Option<ClusterSecret>) -> Option<Replaced> {
        let me = self.me;
        let membership = self.membership.as_mut()?;
        let tokens = self.tokens.clone();
        self.tokens.end_by(Duration::from_secs(word.until));
        let before = before.filter(|_| Duration::from_secs(word.until) > self.now.wall);
        let secrets: Vec<_> = [Some(word.secret.clone()), before]
            .into_iter()
            .flatten()
            .collect();
        let replaced = Replaced {
            secrets: std::mem::replace(&mut membership.secrets, secrets),
            old: membership.old.clone(),
            word: membership.word.replace(word),
            tokens,
        };
        for secret in &replaced.secrets {
            membership.retire(secret, &me);
        }
        Some(replaced)
    }

    /// A change of the secret could not be saved.
    pub(super) fn undo_rotation(&mut self, replaced: Replaced) {
        let Replaced {
            secrets,
            old,
            word,
            tokens,
        } = replaced;
        if let Some(membership) = &mut self.membership {
            (membership.secrets, membership.old, membership.word) = (secrets, old, word);
        }
        self.tokens = tokens;
    }

    /// The new secret is durable: it is used, and handed on.
    pub(super) fn secret_saved(&mut self, command: Option<u64>) {
        self.use_secrets();
        let Some(state) = self.secret_state() else {
            return;
        };
        info!(epoch = state.epoch, "the cluster has a new secret");
        self.publish();
        if let Some(command) = command {
            self.reply(command, Ok(Reply::Secret(state)));
        }
    }

    /// Lets handshakes be made by the secrets that are good now.
    pub(super) fn use_secrets(&mut self) {
        let Some(membership) = self.membership.as_ref().filter(|_| self.active) else {
            return;
        };
        let mut secrets = membership.secrets.iter().cloned();
        if let Some(current) = secrets.next() {
            let cluster = membership.public.id();
            self.sessions.set_old_secrets(membership.old.clone());
            self.sessions
                .set_cluster(cluster, current, secrets.next(), self.now);
        }
        self.relocked = true;
        self.rotating.look(self.now.mono);
        self.changed();
    }

    /// A member hands a word on.
    pub(super) fn handle_secret(&mut self, peer: NodeId, handed_on: &HandedOn) {
        let Some(membership) = self
            .membership
            .as_ref()
            .filter(|_| self.active && !self.is_out())
        else {
            return;
        };
        if !self.budgets.pay(peer, SIGNATURES, self.now.mono) {
            return;
        }
        let read = || SecretWord::read(&handed_on.word, &membership.public);
        let word = match self.quarantine.read(peer, &handed_on.word, read) {
            Some(Ok(word)) => word,
            None => return self.changed(),
            Some(Err(error)) => return debug!(from = %peer.short(), %error, "a secret is left"),
        };
        if !self.removals.allow_secret(&word) {
            return debug!(from = %peer.short(), "a secret that a removed admin gave is left");
        }
        let ours = membership.word.as_ref().map(SecretWord::mark);
        let current = membership.secrets.first().map_or(0, |secret| secret.epoch);
        if ours.is_some_and(|mark| mark >= word.mark()) || current > word.secret.epoch {
            return;
        }
        let before = membership.before(&word, handed_on.before.as_deref());
        if self.take_word(word, before).is_some() {
            self.saving.after(Pending::Secret(None));
        }
    }

    /// Hands the word to who is due, and gives the secret before up when its time is over.
    pub(super) fn go_on_rotating(&mut self) {
        let now = self.now.mono;
        if self.rotating.due.take_if(|at| *at <= now).is_none() || !self.active || self.is_out() {
            return;
        }
        let Some(until) = self
            .membership
            .iter()
            .find_map(|own| own.word.as_ref())
            .map(|word| word.until)
        else {
            return;
        };
        if self.saving.failure().is_none() && self.now.wall >= Duration::from_secs(until) {
            self.give_up_previous();
        }
        self.hand_on();
        let overlaps = self.membership.iter().any(|own| own.secrets.len() > 1);
        let left = Duration::from_secs(until).saturating_sub(self.now.wall);
        let over = overlaps.then(|| now + left.clamp(Duration::from_millis(1), LOOK));
        let next = self
            .rotating
            .lacking
            .values()
            .map(|(at, _)| *at)
            .chain(over)
            .min();
        self.rotating.due = next;
    }

    fn give_up_previous(&mut self) {
        let me = self.me;
        let Some(membership) = self.membership.as_mut().filter(|own| own.secrets.len() > 1) else {
            return;
        };
        for secret in membership.secrets.split_off(1) {
            info!(
                epoch = secret.epoch,
                "a secret of the cluster is accepted no longer"
            );
            membership.retire(&secret, &me);
        }
        self.saving.want();
        self.use_secrets();
    }

    /// Sends the word to connected members whose records do not show it.
    fn hand_on(&mut self) {
        let Some(membership) = &self.membership else {
            return;
        };
        let Some(word) = &membership.word else {
            return;
        };
        let now = self.now.mono;
        let mark = Some(word.mark());
        let up = self
            .links
            .iter()
            .filter(|(_, link)| link.up && !link.silent);
        let records = up.filter_map(|(peer, _)| self.records.get(peer));
        let lacking: BTreeSet<NodeId> = records
            .filter(|record| record.secret < mark)
            .map(|record| record.node())
            .collect();
        let handed_on = Message::Secret(HandedOn {
            before: membership
                .secrets
                .get(1)
                .map(|secret| Zeroizing::new(secret.bytes)),
            word: Zeroizing::new(word.bytes().to_vec()),
        });
        self.rotating
            .lacking
            .retain(|peer, _| lacking.contains(peer));
        for peer in lacking {
            let (at, wait) = self
                .rotating
                .lacking
                .entry(peer)
                .or_insert((now, FIRST_RETRY));
            if *at <= now {
                (*at, *wait) = (now + *wait, (*wait * 2).min(LAST_RETRY));
                self.send(peer, &handed_on);
            }
        }
    }

    /// An admin was removed: what it gave may count no longer.
    pub(super) fn review_secret(&mut self) {
        let Some(membership) = &mut self.membership else {
            return;
        };
        let void = |word: &SecretWord| !self.removals.allow_secret(word);
        if !membership.word.as_ref().is_some_and(void) {
            return;
        }
        if membership.secrets.len() < 2 {
            return warn!(
                "the cluster's secret was given by an admin that was removed: change it with weavectl secret rotate"
            );
        }
        warn!("a secret that a removed admin gave is given up again");
        membership.secrets.remove(0);
        membership.word = None;
        self.saving.want();
        self.use_secrets();
        self.publish();
    }

    /// A member was turned away, because it knows no secret that is accepted.
    pub(super) fn note_turned_away(&mut self, peer: NodeId) {
        if self.rotating.turned_away.insert(peer) {
            let name = self.called(peer);
            warn!(%name, "a member is refused: it missed a change of the cluster's secret, and the one it has is accepted no longer");
            self.changed();
        }
    }

    /// A peer said that it is in a later epoch.
    pub(super) fn note_outdated(&mut self, peer: NodeId, epoch: u32) {
        let ours = self.secret_state().map_or(0, |state| state.epoch);
        if epoch > ours && self.rotating.outdated.is_none() {
            warn!(%epoch, "this node is refused: it missed a change of the cluster's secret, and the one it has is accepted no longer");
            self.rotating.outdated = Some((peer, epoch));
            self.changed();
        }
    }

    /// A session with a peer is up, so neither was turned away.
    pub(super) fn rotating_up(&mut self, peer: NodeId) {
        self.rotating.turned_away.remove(&peer);
        self.rotating.outdated = None;
        self.rotating.look(self.now.mono);
    }

    /// How it stands with the secret; `None` outside of a cluster.
    pub(super) fn secret_state(&self) -> Option<SecretState> {
        let membership = self.membership.as_ref()?;
        let mark = membership.word.as_ref().map(SecretWord::mark);
        let behind = self.records.values().filter(|record| record.secret < mark);
        let until = membership
            .word
            .as_ref()
            .filter(|_| membership.secrets.len() > 1);
        Some(SecretState {
            epoch: membership.secrets.first()?.epoch,
            previous_until: until.map(|word| Duration::from_secs(word.until)),
            behind: behind.map(|record| record.node()).collect(),
        })
    }
}

impl Membership {
    /// The secret before a word's: as it was handed on, or as it is known here.
    fn before(&self, word: &SecretWord, told: Option<&[u8; 32]>) -> Option<ClusterSecret> {
        let known = self.secrets.iter().cloned();
        let epoch = word.secret.epoch.checked_sub(1)?;
        let told = told.map(|bytes| ClusterSecret {
            epoch,
            bytes: *bytes,
        });
        known
            .chain(told)
            .find(|secret| secret.digest() == word.before)
    }

    /// Remembers a secret, if it is of an earlier epoch than all that are accepted, to tell who still uses it.
    fn retire(&mut self, secret: &ClusterSecret, me: &NodeId) {
        let accepted = self.secrets.iter().any(|good| good.epoch <= secret.epoch);
        if !accepted && self.old.iter().all(|old| old.epoch != secret.epoch) {
            self.old.insert(0, OldSecret::of(secret, me));
            self.old.truncate(MAX_OLD);
        }
    }
}
