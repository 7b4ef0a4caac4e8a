//! One peer: its sessions, from the one being made to those being left, and whether it answers.
//!
//! *Make before break.* A session that the peer initiated is `next` until an authentic packet shows that the peer has
//! the keys; one that this node initiated is `current` at once, since the response showed it. What `current` replaces
//! stays open for receiving, so a rekey loses no packet in flight. When the peer's boot nonce has changed, the peer
//! forgot its old sessions, and so do we.

mod alive;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use weave_model::NodeId;

use super::attempt::Attempt;
use super::events::SessionEvent;
use super::limits::{Bucket, Rate};
use super::local::Local;
use super::{Inbound, Keys, Outbound, Terms};
use crate::keys::NodePublic;
use crate::noise::Split;
use crate::noise::mac::{COOKIE_LIFE, Cookie};
use crate::time::Now;
use crate::way::Way;
use crate::wire::{HEADER, Header, Kind, TAG, Type};

/// Age at which the initiator makes the next session, and at which the responder does if it did not.
const REKEY_AFTER: Duration = Duration::from_secs(120);
const REKEY_FALLBACK: Duration = Duration::from_secs(135);
/// Age at which a session ends, whatever happens.
const REJECT_AFTER: Duration = Duration::from_secs(180);
/// How long a session stays open for receiving after another took its place.
const LINGER: Duration = Duration::from_secs(60);
/// Sessions left behind at most, so that a peer that shakes hands all the time fills no memory.
const MAX_OLDER: usize = 2;
/// How long the one of two nodes whose id is lower keeps to the address that it chose.
const INSISTS: Duration = Duration::from_secs(1);
/// Initiations of one identity that are answered.
const HELLOS: Rate = Rate {
    per_second: 5,
    burst: 10,
};

/// A session, seen from the protocol.
struct Session {
    outbound: Arc<Outbound>,
    inbound: Arc<Inbound>,
    made: Instant,
    rekey_at: Instant,
}

/// A peer and what there is with it: who it is, the ways to it, the attempt at a session, and its sessions.
pub(super) struct Peer {
    pub(super) id: NodeId,
    pub(super) public: NodePublic,
    pub(super) endpoints: Vec<Way>,
    /// Members that may hand datagrams on to it, the best first.
    pub(super) relays: Vec<NodeId>,
    /// Where packets to the peer go.
    pub(super) way: Option<Way>,
    /// Where it was heard last without a relay between.
    pub(super) direct: Option<SocketAddr>,
    /// When this node chose the way.
    chosen: Option<Instant>,
    /// A session is to be kept up forever.
    pub(super) wanted: bool,
    /// What there is of a session is not kept up.
    pub(super) resting: bool,
    /// The highest stamp and the highest boot nonce accepted from the peer, which need not have come together.
    stamp: u64,
    boot: u64,
    /// The version of its record that the peer told of last.
    pub(super) record: u64,
    pub(super) hellos: Bucket,
    pub(super) attempt: Option<Attempt>,
    cookie: Option<(Cookie, Instant)>,
    current: Option<Session>,
    /// Answered, not confirmed, and where its initiation came from.
    next: Option<(Session, Way)>,
    older: Vec<(Session, Instant)>,
    /// When to say again that this node has the keys, and how often it was said.
    confirm: Option<(Instant, u32)>,
    /// Since when something that was sent is unanswered, in milliseconds since the start.
    silent_since: Option<u64>,
    /// The core was told that it is silent.
    silent: bool,
    /// When the last probe of the silence left, in milliseconds since the start.
    probed_at: u64,
    /// When the last keepalive left, in milliseconds since the start.
    kept_at: u64,
    /// When this peer stands in the queue of timers.
    pub(super) due: Option<Instant>,
}

impl Peer {
    pub(super) const fn new(public: NodePublic, id: NodeId, now: Instant) -> Self {
        Self {
            id,
            public,
            endpoints: Vec::new(),
            relays: Vec::new(),
            way: None,
            direct: None,
            chosen: None,
            wanted: false,
            resting: false,
            stamp: 0,
            boot: 0,
            record: 0,
            hellos: Bucket::new(HELLOS, now),
            attempt: None,
            cookie: None,
            current: None,
            next: None,
            older: Vec::new(),
            confirm: None,
            silent_since: None,
            silent: false,
            probed_at: 0,
            kept_at: 0,
            due: None,
        }
    }

    /// Whether an initiation is newer than all before. A repeated one has neither a higher stamp nor a higher boot nonce
    /// than were seen; a peer whose clock stepped back across a restart still has the latter.
    pub(super) const fn is_new(&self, stamp: u64, boot: u64) -> bool {
        stamp > self.stamp || boot > self.boot
    }

    /// Whether an initiation of the peer was answered in this run, so that older ones are known by their stamps.
    pub(super) const fn was_heard(&self) -> bool {
        self.stamp > 0 || self.boot > 0
    }

    /// Takes note of an initiation that is answered.
    pub(super) fn remember(&mut self, stamp: u64, boot: u64) {
        self.stamp = self.stamp.max(stamp);
        self.boot = self.boot.max(boot);
    }

    /// The session in use.
    pub(super) fn outbound(&self) -> Option<&Arc<Outbound>> {
        self.current.as_ref().map(|session| &session.outbound)
    }

    /// When the session in use was made.
    pub(super) fn since(&self) -> Option<Instant> {
        self.current.as_ref().map(|session| session.made)
    }

    /// When the peer was heard last, in milliseconds since the start; 0 if never.
    pub(super) fn heard_ms(&self) -> u64 {
        self.sessions()
            .map(|session| session.inbound.last_heard_ms())
            .max()
            .unwrap_or(0)
    }

    fn sent_ms(&self) -> u64 {
        self.sessions()
            .map(|session| session.outbound.last_sent_ms())
            .max()
            .unwrap_or(0)
    }

    fn sessions(&self) -> impl Iterator<Item = &Session> {
        let older = self.older.iter().map(|(session, _)| session);
        self.current
            .iter()
            .chain(older)
            .chain(self.next.iter().map(|(session, _)| session))
    }

    /// Keeps no session up from now on.
    pub(super) fn rest(&mut self, local: &mut Local) {
        (self.wanted, self.resting) = (false, true);
        if self.current.is_none() {
            self.settle(local);
        }
    }

    /// Starts shaking hands unless that is under way.
    pub(super) fn begin(&mut self, local: &mut Local, now: Now) {
        if self.attempt.is_none() {
            self.attempt = Some(Attempt::new(now.mono));
            self.step(local, now);
        }
    }

    /// Sends a message 1 if it is time and there is somewhere to send it; otherwise waits to be told of an endpoint.
    fn step(&mut self, local: &mut Local, now: Now) {
        let ways = self.ways();
        let Some(attempt) = &mut self.attempt else {
            return;
        };
        if ways.is_empty() || local.epochs.is_empty() {
            attempt.cancel(local);
            self.attempt = None;
        } else if attempt.at <= now.mono {
            let fresh = |made: Instant| now.mono.saturating_duration_since(made) < COOKIE_LIFE;
            let cookie = self
                .cookie
                .as_ref()
                .filter(|(_, made)| fresh(*made))
                .map(|(cookie, _)| cookie);
            if attempt.is_again() {
                local.emit(SessionEvent::Retried { peer: self.id });
            }
            attempt.step(&self.public, &ways, cookie, local, now);
        }
    }

    /// Where an initiation may be sent: the way in use, then endpoints and relays by turns, so that a peer behind a relay
    /// need not wait until every endpoint was tried.
    fn ways(&self) -> Vec<Way> {
        let (id, mut ways) = (self.id, Vec::from_iter(self.way));
        let mut add = |way| {
            if !ways.contains(&way) {
                ways.push(way);
            }
        };
        for at in 0..self.endpoints.len().max(self.relays.len()) {
            self.endpoints.get(at).copied().map(&mut add);
            let relayed = |relay: &NodeId| Way::Relayed {
                relay: *relay,
                end: id,
            };
            self.relays.get(at).map(relayed).map(&mut add);
        }
        ways
    }

    /// Where packets go once a session was made by handshake messages that came `from` somewhere. One that takes the place
    /// of another keeps to the kind of way that was chosen for that: what the peer chose says nothing about it.
    fn take_way(&mut self, from: Way) {
        if let Way::Direct(address) = from {
            self.direct = Some(address);
        }
        let kept = self.current.is_some() && !self.silent;
        let other_kind = |way: Way| way.is_direct() != from.is_direct();
        if !kept || !self.way.is_some_and(other_kind) {
            self.way = Some(from);
        }
    }

    /// Sends another way from now on, by this node's own choice.
    pub(super) fn choose_way(&mut self, way: Way, local: &mut Local, now: Instant) {
        self.chosen = Some(now);
        self.set_way(way, local);
    }

    fn set_way(&mut self, way: Way, local: &mut Local) {
        if self.way.replace(way) != Some(way) && self.current.is_some() {
            local.emit(SessionEvent::Moved { peer: self.id, way });
        }
    }

    /// Ends the attempt: there is a session.
    fn settle(&mut self, local: &mut Local) {
        if let Some(mut attempt) = self.attempt.take() {
            attempt.cancel(local);
        }
    }

    /// Keeps a cookie for the next initiations.
    pub(super) const fn set_cookie(&mut self, cookie: Cookie, now: Instant) {
        self.cookie = Some((cookie, now));
    }

    /// The peer answered this node's initiation: the new session is in use at once.
    pub(super) fn established(
        &mut self,
        split: Split,
        terms: Terms,
        from: Way,
        local: &mut Local,
        now: Now,
    ) {
        self.settle(local);
        let session = Session::new(split, terms, true, local, now.mono);
        self.take_way(from);
        if let Some((other, _)) = self.next.take() {
            self.leave(other, now.mono);
        }
        self.replace(session, local, now.mono);
        self.confirm = Some((now.mono, 0));
        self.say_again(local, now);
    }

    /// This node answered the peer's initiation: the session waits for the peer's first packet.
    pub(super) fn answered(
        &mut self,
        split: Split,
        terms: Terms,
        from: Way,
        local: &mut Local,
        now: Now,
    ) {
        let session = Session::new(split, terms, false, local, now.mono);
        if let Some((unconfirmed, _)) = self.next.replace((session, from)) {
            unconfirmed.end(local);
        }
        if local.id > self.id
            && let Some(attempt) = &mut self.attempt
        {
            attempt.yield_to_peer(local, now.mono);
        }
    }

    /// A data thread authenticated a packet that is the newest of its lane and is the first there or came from another
    /// address than the one before.
    pub(super) fn heard(&mut self, index: u32, lane: u8, from: Way, local: &mut Local, now: Now) {
        if self
            .next
            .as_ref()
            .is_some_and(|(next, _)| next.inbound.index() == index)
            && let Some((next, asked_from)) = self.next.take()
        {
            self.settle(local);
            self.take_way(if lane == 0 { from } else { asked_from });
            self.replace(next, local, now.mono);
            self.keepalive(local, now);
            return;
        }
        if self
            .current
            .as_ref()
            .is_none_or(|current| current.inbound.index() != index)
        {
            return;
        }
        self.confirm = None;
        let Way::Direct(address) = from else { return };
        if lane == 0 {
            self.direct = Some(address);
            // Two nodes that chose different addresses at once must not follow one another for ever.
            let stays = |at: Instant| local.id < self.id && now.mono < at + INSISTS;
            if self.way.is_none_or(Way::is_direct) && !self.chosen.is_some_and(stays) {
                self.set_way(from, local);
            }
        }
    }

    /// Puts a session into use; the one in use so far stays open for receiving.
    fn replace(&mut self, session: Session, local: &mut Local, now: Instant) {
        let boot = session.outbound.boot();
        if let Some(old) = self.current.take() {
            self.leave(old, now);
        }
        let forgotten = |old: &Session| old.outbound.boot() != boot;
        for (old, _) in self.older.extract_if(.., |(old, _)| forgotten(old)) {
            old.end(local);
        }
        while self.older.len() > MAX_OLDER {
            self.older.remove(0).0.end(local);
        }
        self.confirm = None;
        self.silent_since = None;
        self.silent = false;
        let outbound = Arc::clone(&session.outbound);
        self.current = Some(session);
        if let Some(way) = self.way {
            local.emit(SessionEvent::Up {
                peer: self.id,
                outbound,
                way,
            });
        }
    }

    /// Keeps a session for a while: the peer may still send in it, and threads of this node until they see the new one.
    fn leave(&mut self, session: Session, now: Instant) {
        let until = (now + LINGER).min(session.made + REJECT_AFTER);
        self.older.push((session, until));
    }

    /// Ends everything: the peer was removed, or somebody else may have the keys.
    pub(super) fn end(&mut self, local: &mut Local) {
        self.settle(local);
        (self.confirm, self.silent_since, self.silent) = (None, None, false);
        let sessions = self.older.drain(..).map(|(session, _)| session);
        for session in sessions.chain(self.next.take().map(|(session, _)| session)) {
            session.end(local);
        }
        if let Some(current) = self.current.take() {
            current.end(local);
            local.emit(SessionEvent::Down { peer: self.id });
        }
    }

    /// Seals a control message on lane 0 and sends it, by the given way or by the one in use.
    pub(super) fn send_control(&self, body: &[u8], way: Option<Way>, local: &mut Local) -> bool {
        let (Some(session), Some(to)) = (&self.current, way.or(self.way)) else {
            return false;
        };
        let Some(datagram) = seal(&session.outbound, body, &[Kind::Control as u8]) else {
            return false;
        };
        local.transmit(to, datagram);
        true
    }
}

/// A datagram of lane 0 with `body` and a trailer; `None` when the keys are used up.
pub(super) fn seal(outbound: &Outbound, body: &[u8], trailer: &[u8]) -> Option<Vec<u8>> {
    let counter = outbound.reserve(0, 1)?;
    let header = Header {
        kind: Type::Data,
        lane: 0,
        receiver: outbound.receiver(),
        counter,
    }
    .to_bytes();
    let mut datagram = [&header[..], body, trailer, &[0; TAG]].concat();
    let (content, tail) = datagram[HEADER..].split_at_mut(body.len());
    outbound
        .key(0)
        .seal(counter, &header, content, trailer, tail);
    Some(datagram)
}

impl Session {
    fn new(split: Split, terms: Terms, initiator: bool, local: &mut Local, now: Instant) -> Self {
        let keys = Keys::from_split(split.send, split.receive);
        let (outbound, inbound) = keys.open(terms);
        let inbound = Arc::new(inbound);
        local.emit(SessionEvent::Inbound(Arc::clone(&inbound)));
        let rekey = if initiator {
            REKEY_AFTER
        } else {
            REKEY_FALLBACK
        };
        let rekey_at = now + rekey - local.jitter(REKEY_AFTER / 40);
        Self {
            outbound: Arc::new(outbound),
            inbound,
            made: now,
            rekey_at,
        }
    }

    /// Ends it for every thread, and forgets it.
    fn end(self, local: &mut Local) {
        self.outbound.retire();
        self.inbound.retire();
        local.free_index(self.inbound.index());
        local.emit(SessionEvent::Retire(self.inbound.index()));
    }
}
