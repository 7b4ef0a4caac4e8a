//! The control core of a node: everything it decides, and nothing it does.
//!
//! The core is pure: datagrams, control messages, commands, finished saves and the passing of time go in; datagrams to
//! send, events and the next wake-up come out. It owns the sessions with all members, knows who the members are, which
//! addresses belong to whom, and who may join. What must survive a crash is saved before it has an effect: the core
//! hands out the whole state as bytes, goes on, and does what waited for it when told that the bytes are on disk.
//!
//! [`command`] is what can be asked; [`view`] is what the rest of the node sees; the other modules are the core's
//! duties, one each: obeying commands, letting nodes in, passing records on, asking for and giving addresses.

pub mod command;
pub mod view;

mod addresses;
mod admins;
mod admit;
mod budget;
pub mod dialled;
mod generation;
mod gossip;
mod inherit;
mod leaving;
mod named;
mod obey;
mod past;
mod reach;
mod removing;
mod rotating;
mod saved;
mod saving;
mod sheets;
mod start;
pub mod tally;
mod ways;

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tracing::{info, warn};
use weave_model::{Block, Drop, NodeId, NodeName, Suite};
use zeroize::Zeroizing;

use crate::ipam::Ipam;
use crate::keys::NodeKeys;
use crate::mesh::codec::Malformed;
use crate::mesh::echo::Echoes;
use crate::mesh::flood::Flood;
use crate::mesh::join::Inviting;
use crate::mesh::parts::Parts;
use crate::mesh::quarantine::Quarantine;
use crate::mesh::record::{Record, RecordVersion};
use crate::mesh::removal::Removals;
use crate::mesh::tokens::Tokens;
use crate::noise::locks::Locks;
use crate::session::{SessionConfig, SessionEvent, Sessions, Transmit};
use crate::time::{Now, Start};
use crate::way::Way;
use crate::wire::{Header, Type};
use addresses::{Asking, Giving};
use admins::Naming;
use admit::JoinCommand;
use budget::{Budgets, Cost};
use command::{Command, CommandError, Reply};
use dialled::{Dialled, Discovery};
use inherit::Inquiries;
use leaving::Leaving;
use past::Past;
use reach::Reach;
use removing::Removed;
use rotating::Rotating;
use saved::{Membership, Snapshot};
use saving::{Pending, Saving};
use sheets::Sheets;
use tally::Tally;
use view::View;
use ways::Ways;

/// How a node is set up.
#[derive(Clone, Debug)]
pub struct Config {
    /// Its label.
    pub name: NodeName,
    /// The suites it accepts.
    pub suites: Vec<Suite>,
    /// The suite it offers first.
    pub preferred: Suite,
    /// Whether it dials members where they say they are.
    pub discovery: Discovery,
    /// How many lanes its sessions have, 1 to [`crate::wire::MAX_LANES`].
    pub lanes: usize,
}

/// What the core tells the shell.
#[derive(Debug)]
pub enum CoreEvent {
    /// Something about a session, for the data path.
    Session(SessionEvent),
    /// The view changed: members, links, or who owns which addresses.
    Members,
    /// Save these bytes in place of the last ones, then call [`Core::handle_persisted`] or
    /// [`Core::handle_persist_failed`] with the number. One save is under way at a time.
    Persist {
        /// Names the save.
        seq: u64,
        /// The whole state; it holds keys.
        bytes: Zeroizing<Vec<u8>>,
    },
    /// The answer to a command.
    Reply {
        /// As given to [`Core::handle_command`].
        id: u64,
        /// What came of it.
        result: Result<Reply, CommandError>,
    },
    /// A control message of a kind that is not the mesh's.
    Control {
        /// Who sent it.
        peer: NodeId,
        /// The message, its kind byte first.
        body: Vec<u8>,
        /// By which way it came.
        from: Way,
    },
}

/// A session with a member, or the lack of one.
#[derive(Clone, Copy, Debug)]
struct Link {
    up: bool,
    /// There is a session, but the peer owes an answer for 3 s.
    silent: bool,
    /// Since the Unix epoch.
    since: Duration,
    way: Way,
    suite: Suite,
    /// The peer's boot nonce.
    boot: u64,
}

/// The control core of one node.
pub struct Core {
    config: Config,
    keys: Arc<NodeKeys>,
    me: NodeId,
    rng: StdRng,
    now: Now,
    /// This run's nonce, higher than that of every run before.
    boot: u64,
    /// The boot nonce is durable, so the record may be signed with it.
    booted: bool,
    /// The version of the own record that was signed last, or that others were seen to have.
    version: RecordVersion,
    membership: Option<Membership>,
    /// The membership is durable.
    active: bool,
    past: Past,
    ipam: Ipam,
    tokens: Tokens,
    sessions: Sessions,
    links: BTreeMap<NodeId, Link>,
    /// The newest records of the other members.
    records: BTreeMap<NodeId, Record>,
    /// This node's own.
    own: Option<Record>,
    endpoints: Vec<SocketAddr>,
    /// Where it looks for members because it was told to.
    dialled: Dialled,
    flood: Flood,
    ways: Ways,
    reach: Reach,
    /// What members tell of their containers and Services.
    sheets: Sheets,
    echoes: Echoes,
    parts: Parts,
    budgets: Budgets,
    quarantine: Quarantine,
    joining: Option<JoinCommand>,
    inviting: Inviting,
    naming: Naming,
    leaving: Option<Leaving>,
    rotating: Rotating,
    removals: Removals,
    /// What is remembered of the nodes in `removals`.
    removed: BTreeMap<NodeId, Removed>,
    inquiries: Inquiries,
    asking: Option<Asking>,
    /// Needs for addresses, by area, that no connected member could meet, and when that was.
    unmet: BTreeMap<Option<Block>, Instant>,
    giving: Giving,
    saving: Saving,
    tally: Tally,
    view: Arc<View>,
    stale: bool,
    /// A token, a join or a secret may be another than when [`Core::poll_locks`] was called last.
    relocked: bool,
    out: VecDeque<Transmit>,
    events: VecDeque<CoreEvent>,
}

impl std::fmt::Debug for Core {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Core")
            .field("me", &self.me)
            .field("active", &self.active)
            .finish_non_exhaustive()
    }
}

impl Core {
    /// Takes part in the cluster: the membership is durable.
    fn enter(&mut self) {
        let Some(membership) = &self.membership else {
            return;
        };
        self.active = true;
        let mut acquaintances = membership.acquaintances.clone();
        let outside = self.removals.contains(self.me);
        acquaintances.retain(|(public, _)| !outside && !self.removals.contains(public.id()));
        self.use_secrets();
        for (public, endpoint) in acquaintances {
            self.sessions.add_peer(public, vec![endpoint], self.now);
            self.sessions.connect(public.id(), self.now);
        }
        for record in self.records.clone().into_values() {
            self.meet(&record);
        }
        self.remap();
        self.refresh();
    }

    /// Takes one datagram that is not of a session's data.
    ///
    /// # Errors
    /// Why it was dropped.
    pub fn handle_datagram(
        &mut self,
        bytes: &[u8],
        from: impl Into<Way>,
        now: Now,
    ) -> Result<(), Drop> {
        self.now = now;
        self.relocked = true;
        let kind = Header::parse(bytes)?.kind;
        let result = match (kind, from.into()) {
            (Type::JoinHello | Type::JoinRequest, Way::Direct(from)) => {
                self.handle_stranger(bytes, from)
            }
            (Type::JoinProof | Type::JoinGrant, Way::Direct(from)) => {
                self.handle_inviter(bytes, from)
            }
            (Type::Cookie, Way::Direct(from)) if self.handle_inviter(bytes, from).is_ok() => Ok(()),
            (Type::Initiation | Type::Response | Type::Cookie, from) => {
                self.sessions.handle_datagram(bytes, from, now)
            }
            _ => Err(Drop::UnknownType),
        };
        self.settle();
        result
    }

    /// Takes the body of a control message that a data thread opened.
    pub fn handle_control(&mut self, peer: NodeId, body: &[u8], from: impl Into<Way>, now: Now) {
        self.now = now;
        if self.budgets.pay(peer, Cost::Message, now.mono) {
            self.handle_message(peer, body, from.into());
            self.settle();
        }
    }

    /// A data thread authenticated a packet of a peer, the first of its session or from a new address.
    pub fn handle_heard(
        &mut self,
        peer: NodeId,
        index: u32,
        lane: u8,
        from: impl Into<Way>,
        now: Now,
    ) {
        self.now = now;
        self.sessions.handle_heard(peer, index, lane, from, now);
        self.settle();
    }

    /// Does what is asked; the answer comes as [`CoreEvent::Reply`] with this `id`.
    pub fn handle_command(&mut self, id: u64, command: Command, now: Now) {
        self.now = now;
        self.relocked = true;
        match self.obey(id, command) {
            Ok(None) => {}
            Ok(Some(reply)) => self.reply(id, Ok(reply)),
            Err(error) => self.reply(id, Err(error)),
        }
        self.settle();
    }

    /// The save with this number is on disk.
    pub fn handle_persisted(&mut self, seq: u64, now: Now) {
        self.now = now;
        self.relocked = true;
        if self.saving.failure().is_some() {
            info!("the node's state can be saved again");
            self.changed();
        }
        self.saving.persisted(seq);
        self.settle();
    }

    /// The save with this number failed. Nothing is allocated or given away until one succeeds; it is tried again.
    pub fn handle_persist_failed(&mut self, seq: u64, cause: &str, now: Now) {
        self.now = now;
        warn!(
            cause,
            "the node's state cannot be saved: nothing is allocated or given away until it can"
        );
        let undone = self.saving.failed(seq, cause.to_owned(), now.mono);
        undone
            .into_iter()
            .for_each(|pending| self.undo(pending, cause));
        self.cut_unsaved();
        self.changed();
        self.settle();
    }

    /// Lets timers fire.
    pub fn handle_timeout(&mut self, now: Now) {
        self.now = now;
        self.sessions.handle_timeout(now);
        self.saving.handle_timeout(now.mono);
        self.relocked |= self.joining.is_some();
        self.handle_join_timeout();
        self.end_echoes();
        self.settle();
    }

    /// When [`Core::handle_timeout`] is to be called next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let own = [
            self.sessions.poll_timeout(),
            self.saving.poll_timeout(),
            self.flood.poll_timeout(),
            self.ways.poll_timeout(),
            self.reach.poll_timeout(),
            self.sheets.poll_timeout(),
            self.echoes.poll_timeout(),
            self.joining.as_ref().and_then(JoinCommand::poll_timeout),
            self.asking.as_ref().and_then(Asking::poll_timeout),
            self.giving.poll_timeout(),
            self.naming.poll_timeout(),
            self.leaving.as_ref().and_then(Leaving::poll_timeout),
            self.inquiries.poll_timeout(),
            self.rotating.poll_timeout(),
        ];
        own.into_iter().flatten().min()
    }

    /// The next datagram to send.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.out
            .pop_front()
            .or_else(|| self.sessions.poll_transmit())
    }

    /// What data threads tell junk from handshakes by, if that may have changed since the last call. To be handed on
    /// before the transmits: what is sent may be answered at once.
    pub fn poll_locks(&mut self) -> Option<Locks> {
        if !std::mem::take(&mut self.relocked) && !self.sessions.is_relocked() {
            return None;
        }
        let mut locks = Locks::default();
        self.sessions.lock(&mut locks);
        if let Some((index, key)) = self.joining.as_ref().and_then(JoinCommand::lock) {
            locks.indices.insert(index);
            locks.joins.insert(index, key);
        }
        let invites = self
            .membership
            .as_ref()
            .is_some_and(|own| own.authority(&self.keys).is_some());
        if invites && self.active {
            let joins = self.inviting.locks();
            locks
                .joins
                .extend(joins.map(|(index, key)| (index, key.clone())));
            let tokens = self.tokens.mac_keys();
            locks.tokens = tokens.map(|(id, key)| (id.0, key.clone())).collect();
        }
        Some(locks)
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<CoreEvent> {
        if let Some(event) = self.events.pop_front() {
            return Some(event);
        }
        let seq = self.saving.start()?;
        Some(CoreEvent::Persist {
            seq,
            bytes: self.snapshot(),
        })
    }

    /// Sends a control message of a kind above [`crate::mesh::message::LAST_KIND`]; it may be lost. `false` without a
    /// session, or if it is longer than [`crate::mesh::message::MAX_BODY`].
    pub fn send_control(&mut self, peer: NodeId, body: &[u8], now: Now) -> bool {
        body.len() <= crate::mesh::message::MAX_BODY && self.sessions.send_control(peer, body, now)
    }

    /// What the core knows now.
    pub fn view(&mut self) -> Arc<View> {
        if self.stale {
            self.stale = false;
            self.view = Arc::new(self.look());
        }
        Arc::clone(&self.view)
    }

    /// What it counted since its start.
    pub fn tally(&self) -> Tally {
        let mut tally = self.tally.clone();
        tally.handshakes = self.sessions.handshakes();
        tally.left = self.budgets.left();
        tally
    }

    /// The addresses in use: id and offset, by id.
    pub fn leases(&self) -> Vec<(String, u32)> {
        self.ipam
            .leases()
            .map(|(id, offset)| (id.to_owned(), offset))
            .collect()
    }

    /// From when the milliseconds in [`crate::session::Outbound`] and [`crate::session::Inbound`] count.
    pub const fn start(&self) -> Start {
        self.sessions.start()
    }

    /// This node's identity.
    pub const fn id(&self) -> NodeId {
        self.me
    }

    /// Brings everything to rest: what an input made possible happens now.
    fn settle(&mut self) {
        loop {
            if let Some(event) = self.sessions.poll_event() {
                self.handle_session(event);
            } else if let Some(pending) = self.saving.next_ready() {
                self.proceed(pending);
            } else {
                break;
            }
        }
        self.ask_if_needed();
        self.inquire();
        self.go_on_leaving();
        self.send_due();
    }

    fn proceed(&mut self, pending: Pending) {
        match pending {
            Pending::Boot => {
                self.booted = true;
                self.publish();
            }
            Pending::Init { command } => {
                self.enter();
                self.reply_member(command);
            }
            Pending::Joined { from } => self.handle_joined(from),
            Pending::Address {
                command, offset, ..
            } => self.reply(command, Ok(Reply::Address(offset))),
            Pending::Revoked { command, info } => {
                self.reply(command, Ok(Reply::Tokens(vec![info])));
            }
            Pending::Token { command, reply, .. } | Pending::Answer { command, reply } => {
                self.reply(command, Ok(reply));
            }
            Pending::Admit { asked, from } => self.admit(&asked, from),
            Pending::Title {
                peer,
                block,
                counter,
            } => self.handle_title(peer, block, counter),
            Pending::Gift { peer } => {
                self.giving.start(peer, self.now.mono);
                // A record that says how far this node has come is out before the receiver tells of the gift.
                self.own = None;
                self.publish();
            }
            Pending::Secret(by) => self.secret_saved(by.map(|(command, _)| command)),
            Pending::Office => self.take_office(),
            Pending::Removing(removing) => self.removal_saved(removing),
            Pending::Heard { node, from } => self.pass_on_removal(node, from),
            Pending::Inherited => self.take_over(),
            Pending::Left => self.say_farewell(),
        }
    }

    fn reply(&mut self, id: u64, result: Result<Reply, CommandError>) {
        self.events.push_back(CoreEvent::Reply { id, result });
    }

    fn reply_member(&mut self, id: u64) {
        if let Some(membership) = &self.membership {
            let reply = Reply::Member {
                node: self.me,
                range: membership.range,
            };
            self.reply(id, Ok(reply));
        }
    }

    /// The view is another now, and others should know.
    fn changed(&mut self) {
        self.stale = true;
        if !self
            .events
            .iter()
            .any(|event| matches!(event, CoreEvent::Members))
        {
            self.events.push_back(CoreEvent::Members);
        }
    }

    fn snapshot(&self) -> Zeroizing<Vec<u8>> {
        saved::encode(&Snapshot {
            keys: &self.keys,
            boot: self.boot.max(self.version.boot),
            saves: self.past.saves + self.saving.asked(),
            in_doubt: self.past.in_doubt,
            stamp: self.sessions.last_stamp(),
            membership: self.membership.as_ref(),
            tokens: &self.tokens,
            journal: self.ipam.journal(self.now),
            records: saved::within(self.records.values().map(Record::bytes)),
            removed: self.removed_to_save(),
            dialled: &self.dialled,
            sheets: saved::within(self.sheets.saved()),
        })
    }
}
