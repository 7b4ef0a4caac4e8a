//! Obeying commands.

use std::net::{Ipv6Addr, SocketAddr};
use std::time::Duration;

use ipnet::{Ipv4Net, Ipv6Net};
use tracing::info;
use weave_model::{Block, ClusterRange, MAX_TOKEN_ADDRESSES, Token};

use super::Core;
use super::command::{Command, CommandError, MAX_ID, Reply, shown};
use super::saved::Membership;
use super::saving::Pending;
use super::view::Owner;
use crate::ipam::{Ipam, NoAddress};
use crate::keys::ClusterSecret;
use crate::mesh::authority::Authority;
use crate::mesh::cluster::{ClusterKey, ClusterPublic};
use crate::mesh::deeds::Deeds;
use crate::mesh::sheet::MAX_CONTENT;
use crate::mesh::tokens::{Refusal, TokenInfo};

const MAX_TTL: Duration = Duration::from_secs(365 * 24 * 3600);
const MAX_USES: u32 = 10_000;
/// How much of a token's id has to be said at least, in hex digits.
const MIN_ID: usize = 4;

impl Core {
    /// Does a command at once (`Some`), or begins it: its answer comes when what it changed is durable.
    pub(super) fn obey(
        &mut self,
        id: u64,
        command: Command,
    ) -> Result<Option<Reply>, CommandError> {
        match command {
            Command::Init { v4, v6 } => self.init(id, v4, v6)?,
            Command::TokenCreate {
                ttl,
                uses,
                addresses,
            } => self.create_token(id, ttl, uses, addresses)?,
            Command::TokenList => {
                self.check_admin()?;
                return Ok(Some(Reply::Tokens(self.tokens.list(self.now.wall))));
            }
            Command::TokenRevoke { id: start } => return self.revoke_token(id, &start),
            Command::Remove { node, heir } => return self.remove(id, &node, heir.as_deref()),
            Command::Leave { force } => self.leave(id, force)?,
            Command::SecretRotate { overlap } => self.rotate(id, overlap)?,
            Command::Connect { address } => return self.dial(id, address),
            Command::Forget { address } => return self.forget_address(id, address),
            Command::AdminAdd { node } => return self.add_admin(id, &node),
            Command::Join { token, taken } => {
                self.check_free()?;
                self.start_join(id, token, taken);
            }
            Command::Allocate {
                id: interface,
                want,
                among,
                area,
            } => return self.allocate(id, interface, (want, &among), area),
            Command::SetAreas { areas } => {
                if self.ipam.set_areas(&areas) {
                    self.ask_if_needed();
                    self.publish();
                }
                return Ok(Some(Reply::Done));
            }
            Command::Release { id: interface } => return self.release(id, &interface),
            Command::Leases => {
                let leases = self.ipam.leases();
                let leases = leases.map(|(id, offset)| (id.to_owned(), offset));
                return Ok(Some(Reply::Leases(leases.collect())));
            }
            Command::SetSheet { content } => {
                if content.len() > MAX_CONTENT {
                    return Err(CommandError::SheetTooLong);
                }
                self.set_sheet(content);
                return Ok(Some(Reply::Done));
            }
            Command::Ping { peer, patience } => self.start_echo(id, peer, patience)?,
            Command::SetEndpoints { mut endpoints } => {
                let mut seen = std::collections::BTreeSet::new();
                endpoints.retain(|endpoint| seen.insert(*endpoint));
                self.endpoints = endpoints;
                self.changed();
                self.publish();
                return Ok(Some(Reply::Done));
            }
        }
        Ok(None)
    }

    /// Takes back what a command did whose save failed, and says so.
    pub(super) fn undo(&mut self, pending: Pending, cause: &str) {
        let command = match pending {
            Pending::Init { command } => {
                self.membership = None;
                command
            }
            Pending::Address {
                command, id, fresh, ..
            } => {
                if fresh {
                    self.ipam.undo(&id);
                }
                command
            }
            Pending::Token { command, id, .. } => {
                self.tokens.remove(id);
                command
            }
            Pending::Revoked { command, info } => {
                self.tokens.set_revoked(info.id, false);
                command
            }
            Pending::Removing(removing) => {
                self.undo_removal(removing.node, removing.version);
                removing.command
            }
            Pending::Secret(Some((command, replaced))) => {
                self.undo_rotation(replaced);
                command
            }
            Pending::Answer { command, .. } => command,
            _ => return,
        };
        self.reply(command, Err(CommandError::Storage(cause.to_owned())));
    }

    /// Fails if this node is a member or about to become one.
    fn check_free(&self) -> Result<(), CommandError> {
        self.check_storage()?;
        match &self.membership {
            Some(membership) if self.active => {
                Err(CommandError::AlreadyMember(membership.range.v4()))
            }
            None if self.joining.is_none() => Ok(()),
            _ => Err(CommandError::Underway),
        }
    }

    /// The cluster's id, if this node may sign in its name and can save that it did.
    pub(super) fn check_admin(&self) -> Result<[u8; 32], CommandError> {
        let membership = self.standing()?;
        if membership.authority(&self.keys).is_none() {
            let admins = self.records.values();
            let admins = admins.filter(|record| record.certificate.admin);
            let admins = admins.map(|record| record.name.to_string()).collect();
            return Err(CommandError::NotAdmin { admins });
        }
        self.check_storage()?;
        Ok(membership.public.id())
    }

    pub(super) fn check_storage(&self) -> Result<(), CommandError> {
        self.saving
            .failure()
            .map_or(Ok(()), |cause| Err(CommandError::Storage(cause.to_owned())))
    }

    pub(super) fn member(&self) -> Result<&Membership, CommandError> {
        self.membership
            .as_ref()
            .filter(|_| self.active)
            .ok_or(CommandError::NotMember)
    }

    /// The membership, if nobody has removed this node.
    pub(super) fn standing(&self) -> Result<&Membership, CommandError> {
        let membership = self.member()?;
        if self.removals.contains(self.me) {
            return Err(CommandError::Removed);
        }
        if self.past.gave_way {
            let at = self.past.twin.clone().unwrap_or_default();
            return Err(CommandError::GaveWay(at));
        }
        if self.leaving.is_some() {
            return Err(CommandError::Leaving);
        }
        Ok(membership)
    }

    fn init(&mut self, id: u64, v4: Ipv4Net, v6: Option<Ipv6Net>) -> Result<(), CommandError> {
        self.check_free()?;
        let key = ClusterKey::generate(&mut self.rng);
        let range = ClusterRange::new(v4, v6.unwrap_or_else(|| unique_local(&key.public())))?;
        let save = self.saving.next();
        self.membership = Some(Membership {
            public: key.public(),
            range,
            secrets: vec![ClusterSecret::generate(1, &mut self.rng)],
            certificate: Authority::Key(&key).certify(self.me, true, self.now.wall.as_secs()),
            deeds: Deeds::genesis(Block::whole(&range), self.me, &key, save),
            word: None,
            old: Vec::new(),
            key: Some(key),
            acquaintances: Vec::new(),
        });
        self.ipam = Ipam::new(range.size());
        self.saving.after(Pending::Init { command: id });
        info!(range = %range.v4(), range6 = %range.v6(), "a new cluster");
        Ok(())
    }

    fn create_token(
        &mut self,
        id: u64,
        ttl: Duration,
        uses: u32,
        mut addresses: Vec<SocketAddr>,
    ) -> Result<(), CommandError> {
        let cluster = self.check_admin()?;
        if ttl < Duration::from_secs(1) || ttl > MAX_TTL || !(1..=MAX_USES).contains(&uses) {
            return Err(CommandError::TokenTerms);
        }
        if addresses.is_empty() {
            addresses = self.all_endpoints();
        }
        addresses.truncate(MAX_TOKEN_ADDRESSES);
        if addresses.is_empty() {
            return Err(CommandError::NoEndpoint);
        }
        let (token, secret) = self.tokens.create(ttl, uses, self.now.wall, &mut self.rng);
        let word = Token {
            cluster,
            id: token,
            secret: *secret,
            addresses,
        };
        let reply = Reply::Token(word, self.now.wall + ttl);
        self.saving.after(Pending::Token {
            command: id,
            id: token,
            reply,
        });
        Ok(())
    }

    fn revoke_token(&mut self, id: u64, start: &str) -> Result<Option<Reply>, CommandError> {
        self.check_admin()?;
        let mut found = self.tokens.list(self.now.wall);
        found.retain(|info| start.len() >= MIN_ID && info.id.to_string().starts_with(start));
        let info = match <[TokenInfo; 1]>::try_from(found) {
            Ok([info]) => info,
            Err(found) if found.is_empty() => {
                return Err(CommandError::UnknownToken(start.to_owned()));
            }
            Err(_) => return Err(CommandError::AmbiguousToken(start.to_owned())),
        };
        let dead = Some(Refusal::Revoked);
        if info.dead == dead {
            return Ok(Some(Reply::Tokens(vec![info])));
        }
        self.tokens.set_revoked(info.id, true);
        self.saving.after(Pending::Revoked {
            command: id,
            info: TokenInfo { dead, ..info },
        });
        Ok(None)
    }

    fn allocate(
        &mut self,
        command: u64,
        id: String,
        (want, among): (Option<u32>, &[(u32, u32)]),
        area: Option<Block>,
    ) -> Result<Option<Reply>, CommandError> {
        let range = self.standing()?.range;
        if id.len() > MAX_ID {
            return Err(CommandError::BadId);
        }
        let fresh = self.ipam.lease(&id).is_none();
        if self.past.in_doubt {
            return Err(CommandError::InDoubt);
        }
        if fresh {
            self.check_storage()?;
        }
        let given = if want.is_none() && !among.is_empty() {
            self.ipam.allocate_among(area, &id, among, self.now.mono)
        } else {
            self.ipam.allocate_in(area, &id, want, self.now.mono)
        };
        let offset = given.map_err(|error| self.explain(error, (&range, area), &id, want))?;
        if fresh {
            self.stale = true;
            self.saving.after(Pending::Address {
                command,
                id,
                offset,
                fresh,
            });
        } else if self.saving.awaits_address(&id) {
            self.saving.behind(Pending::Address {
                command,
                id,
                offset,
                fresh,
            });
        } else {
            return Ok(Some(Reply::Address(offset)));
        }
        Ok(None)
    }

    fn release(&mut self, command: u64, id: &str) -> Result<Option<Reply>, CommandError> {
        self.member()?;
        let Some(offset) = self.ipam.release(id, self.now.mono) else {
            return Ok(Some(Reply::Released(None)));
        };
        self.stale = true;
        self.saving.after(Pending::Answer {
            command,
            reply: Reply::Released(Some(offset)),
        });
        Ok(None)
    }

    fn explain(
        &mut self,
        error: NoAddress,
        (range, area): (&ClusterRange, Option<Block>),
        id: &str,
        want: Option<u32>,
    ) -> CommandError {
        let address = match want.map(|want| shown(range, want)).transpose() {
            Ok(address) => address.unwrap_or_else(|| range.v4().network()),
            Err(outside) => return outside,
        };
        match error {
            NoAddress::Exhausted => CommandError::Exhausted {
                used: self.ipam.used_in(area),
                capacity: self.ipam.capacity_in(area),
            },
            NoAddress::OtherNetwork => CommandError::OtherNetwork(address),
            NoAddress::Taken(holder) => CommandError::AddressTaken { address, holder },
            NoAddress::HasOther(offset) => CommandError::HasOther {
                id: id.to_owned(),
                address: range.v4_at(offset),
            },
            NoAddress::Reserved => CommandError::Reserved(address),
            NoAddress::NotOurs => {
                let view = self.view();
                match want.and_then(|want| view.owner(want)) {
                    Some(Owner::Member(at)) => {
                        let node = view.members[at as usize].name.to_string();
                        CommandError::Elsewhere { address, node }
                    }
                    _ => CommandError::Unowned(address),
                }
            }
        }
    }
}

/// A unique local /48 (RFC 4193) whose 40 random bits come from the cluster's id.
fn unique_local(cluster: &ClusterPublic) -> Ipv6Net {
    let id = cluster.id();
    let mut octets = [0; 16];
    octets[0] = 0xfd;
    octets[1..6].copy_from_slice(&id[..5]);
    Ipv6Net::new_assert(Ipv6Addr::from(octets), 48)
}
