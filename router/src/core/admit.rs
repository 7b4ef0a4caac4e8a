//! Letting strangers in, and being let in.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use tracing::{debug, info, warn};
use weave_model::{ClusterRange, Drop, Token};

use super::Core;
use super::command::{CommandError, Taken};
use super::saved::Membership;
use super::saving::Pending;
use crate::ipam::Ipam;
use crate::mesh::deeds::Deeds;
use crate::mesh::join::{Admission, Answer, Asked, Host, Joining, Outcome, Verdict};
use crate::mesh::tokens::Refusal;
use crate::noise::mac::MacKey;
use crate::session::Transmit;
use crate::wire::{Header, Type};

/// How long a new member waits for its first addresses before it says that there are none.
const FIRST_DEED: Duration = Duration::from_secs(20);

/// A join command under way.
#[derive(Debug)]
pub(super) struct JoinCommand {
    id: u64,
    taken: Vec<Taken>,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    /// Talking to the inviter.
    Asking(Box<Joining>),
    /// Admitted; the membership is being saved.
    Saving,
    /// A member; the first deed is awaited until then.
    Awaiting(Instant),
}

impl JoinCommand {
    /// What the inviter's answers are told from junk by.
    pub(super) fn lock(&self) -> Option<(u32, MacKey)> {
        match &self.stage {
            Stage::Asking(joining) => Some(joining.lock()),
            Stage::Awaiting(_) | Stage::Saving => None,
        }
    }

    /// When the core's timeout has something to do for it.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        match &self.stage {
            Stage::Asking(joining) => Some(joining.poll_timeout()),
            Stage::Awaiting(until) => Some(*until),
            Stage::Saving => None,
        }
    }
}

impl Core {
    /// Begins to join.
    pub(super) fn start_join(&mut self, id: u64, token: Token, taken: Vec<Taken>) {
        let name = &self.config.name;
        let joining = Joining::new(token, &self.keys, name, &mut self.rng, self.now.mono);
        self.joining = Some(JoinCommand {
            id,
            taken,
            stage: Stage::Asking(Box::new(joining)),
        });
        self.handle_join_timeout();
    }

    /// Takes an inviter's datagram.
    pub(super) fn handle_inviter(&mut self, bytes: &[u8], from: SocketAddr) -> Result<(), Drop> {
        let Some(JoinCommand {
            stage: Stage::Asking(joining),
            ..
        }) = &mut self.joining
        else {
            return Err(Drop::BadHandshake);
        };
        let outcome = joining.handle_datagram(bytes, from, self.now.mono)?;
        let range = joining.range().copied();
        match (outcome, range.map(|range| self.check_taken(&range))) {
            (Some(outcome), _) => self.decide(outcome),
            (None, Some(Err(error))) => self.end_join(Err(error)),
            (None, _) => self.handle_join_timeout(),
        }
        Ok(())
    }

    /// Sends what the join has to send, and gives up in time.
    pub(super) fn handle_join_timeout(&mut self) {
        let now = self.now.mono;
        match self.joining.as_mut().map(|join| &mut join.stage) {
            Some(Stage::Asking(joining)) => {
                let outcome = joining.handle_timeout(&self.keys, &mut self.rng, now);
                while let Some((to, bytes)) = joining.poll_transmit() {
                    self.out.push_back(Transmit { to, bytes });
                }
                if let Some(outcome) = outcome {
                    self.decide(outcome);
                }
            }
            Some(Stage::Awaiting(until)) if now >= *until => {
                let alone = !self.links.values().any(|link| link.up);
                self.end_join(Err(if alone {
                    CommandError::Unanswered
                } else {
                    CommandError::NoAddresses
                }))
            }
            _ => {}
        }
    }

    fn decide(&mut self, outcome: Outcome) {
        let error = match outcome {
            Outcome::Admitted(admission, from) => return self.be_admitted(*admission, from),
            Outcome::Refused(refusal) => CommandError::Refused(refusal),
            Outcome::WrongCluster(from) => CommandError::WrongCluster(from),
            Outcome::NoAnswer => CommandError::NoAnswer(self.join_addresses()),
        };
        self.end_join(Err(error));
    }

    fn join_addresses(&self) -> Vec<SocketAddr> {
        match &self.joining {
            Some(JoinCommand {
                stage: Stage::Asking(joining),
                ..
            }) => joining.token().addresses.clone(),
            _ => Vec::new(),
        }
    }

    fn be_admitted(&mut self, admission: Admission, from: SocketAddr) {
        let Admission {
            cluster,
            range,
            secret,
            certificate,
            inviter,
        } = admission;
        if certificate.node != self.me || !certificate.verify(&cluster) {
            return self.end_join(Err(CommandError::WrongCluster(from)));
        }
        if let Err(error) = self.check_taken(&range) {
            return self.end_join(Err(error));
        }
        self.membership = Some(Membership {
            public: cluster,
            key: None,
            range,
            secrets: vec![secret],
            word: None,
            old: Vec::new(),
            certificate,
            deeds: Deeds::default(),
            acquaintances: vec![(inviter, from)],
        });
        self.ipam = Ipam::new(range.size());
        self.note_dialled(from, Some(inviter.id()));
        if let Some(join) = &mut self.joining {
            join.stage = Stage::Saving;
        }
        self.saving.after(Pending::Joined { from });
    }

    /// Refuses a range of which this host uses a part. It is told before the inviter hears who asks.
    fn check_taken(&self, range: &ClusterRange) -> Result<(), CommandError> {
        let taken = self.joining.as_ref().map_or(&[][..], |join| &join.taken);
        for range in [IpNet::V4(range.v4()), IpNet::V6(range.v6())] {
            let overlaps =
                |taken: &&Taken| range.contains(&taken.net) || taken.net.contains(&range);
            if let Some(Taken { by, .. }) = taken.iter().find(overlaps) {
                let by = by.clone();
                return Err(CommandError::RangeTaken { range, by });
            }
        }
        Ok(())
    }

    /// The membership is durable.
    pub(super) fn handle_joined(&mut self, from: SocketAddr) {
        info!(inviter = %from, "this node is a member of a cluster now");
        if let Some(join) = &mut self.joining {
            join.stage = Stage::Awaiting(self.now.mono + FIRST_DEED);
        }
        self.enter();
    }

    /// The first addresses are here, or none will come: the command ends.
    pub(super) fn end_join(&mut self, result: Result<(), CommandError>) {
        let Some(join) = self.joining.take() else {
            return;
        };
        match result {
            Ok(()) => self.reply_member(join.id),
            Err(error) => {
                warn!(%error, "this node did not join");
                self.reply(join.id, Err(error));
            }
        }
    }

    /// Whether a join command waits for the first deed.
    pub(super) fn awaits_deed(&self) -> bool {
        matches!(
            self.joining,
            Some(JoinCommand {
                stage: Stage::Awaiting(_),
                ..
            })
        )
    }

    /// Takes a stranger's datagram.
    pub(super) fn handle_stranger(&mut self, bytes: &[u8], from: SocketAddr) -> Result<(), Drop> {
        let Self {
            membership,
            inviting,
            tokens,
            keys,
            rng,
            ..
        } = self;
        let membership = membership.as_ref().filter(|_| self.active);
        let membership = membership.ok_or(Drop::BadHandshake)?;
        let authority = membership.authority(keys).ok_or(Drop::BadHandshake)?;
        let mut unproven = false;
        let answer = if Header::parse(bytes)?.kind == Type::JoinHello {
            let host = Host {
                tokens,
                keys,
                authority,
                range: membership.range,
            };
            match inviting.handle_hello(bytes, from, host, rng, self.now.mono)? {
                Answer::Proof(proof) => proof,
                Answer::Cookie(cookie) => {
                    unproven = true;
                    cookie
                }
            }
        } else {
            match inviting.handle_request(bytes)? {
                Verdict::Again(answer) => answer,
                Verdict::Asked(asked) => {
                    self.consider(asked, from);
                    return Ok(());
                }
            }
        };
        self.out.push_back(Transmit {
            to: from,
            bytes: answer,
        });
        if unproven {
            return Err(Drop::RateLimited);
        }
        Ok(())
    }

    /// Decides whether a stranger may come in. A use of the token is saved before the stranger hears of it.
    fn consider(&mut self, asked: Asked, from: SocketAddr) {
        if self.saving.failure().is_some() {
            return self.refuse(&asked, Refusal::Unable, from);
        }
        match self.tokens.admit(asked.token, asked.node(), self.now.wall) {
            Ok(true) => {
                let known = self.records.contains_key(&asked.node());
                if let (Some(membership), false) = (&mut self.membership, known) {
                    membership
                        .acquaintances
                        .retain(|(public, _)| *public != asked.public);
                    membership.acquaintances.push((asked.public, from));
                }
                self.saving.after(Pending::Admit { asked, from });
            }
            Ok(false) => self.saving.behind(Pending::Admit { asked, from }),
            Err(refusal) => self.refuse(&asked, refusal, from),
        }
    }

    fn refuse(&mut self, asked: &Asked, refusal: Refusal, from: SocketAddr) {
        info!(node = %asked.node().short(), name = %asked.name, %from, ?refusal, "a joiner is refused");
        if let Some(bytes) = self.inviting.answer(asked.index, &Err(refusal)) {
            self.out.push_back(Transmit { to: from, bytes });
        }
    }

    /// Lets a stranger in: its use of the token is durable.
    pub(super) fn admit(&mut self, asked: &Asked, from: SocketAddr) {
        let Some(membership) = &self.membership else {
            return;
        };
        let (Some(authority), Some(secret)) =
            (membership.authority(&self.keys), membership.secrets.first())
        else {
            return;
        };
        let node = asked.node();
        let admission = Admission {
            cluster: membership.public,
            range: membership.range,
            secret: secret.clone(),
            certificate: authority.certify(node, false, self.now.wall.as_secs()),
            inviter: self.keys.public(),
        };
        let Some(bytes) = self.inviting.answer(asked.index, &Ok(admission)) else {
            debug!(node = %node.short(), "a joiner was let in, but waited no longer");
            return;
        };
        info!(node = %node.short(), name = %asked.name, %from, "a new member");
        self.out.push_back(Transmit { to: from, bytes });
        if !self.records.contains_key(&node) {
            self.sessions.add_peer(asked.public, vec![from], self.now);
            self.changed();
        }
    }
}
