//! All sessions of a node: one state machine, fed with datagrams, what data threads heard, and time.
//!
//! It never opens a data packet itself; data threads do, with the [`Inbound`]s that it hands out, and tell it only what
//! is news ([`Sessions::handle_heard`]). The shell takes events before transmits: an event may be what makes this node
//! able to read the answer to a transmit.
//!
//! [`Inbound`]: super::Inbound

mod outdated;
mod renewal;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use weave_model::{Drop, Durations, NodeId, Suite};

use super::attempt::Told;
use super::limits::{Bucket, Entry, Gate};
use super::local::Local;
use super::peer::{Peer, seal};
use super::{SessionConfig, SessionEvent, SessionStatus, Terms, Transmit};
use crate::keys::{ClusterSecret, NodeKeys, NodePublic};
use crate::noise::ik::{About, Opening, Responder};
use crate::noise::locks::Locks;
use crate::noise::mac::{self, Checked};
use crate::time::{Now, Start};
use crate::way::Way;
use crate::wire::{Envelope, Header, Type};

/// All sessions of this node, keyed by the peers' ids.
pub struct Sessions {
    local: Local,
    gate: Gate,
    peers: BTreeMap<NodeId, Peer>,
    /// Peers by their X25519 key, which is all that an initiation names.
    by_key: BTreeMap<[u8; 32], NodeId>,
    /// The X25519 keys of nodes that were removed from the cluster.
    refused: BTreeMap<[u8; 32], NodeId>,
    turned_away: Bucket,
    timers: BTreeSet<(Instant, NodeId)>,
}

impl Sessions {
    /// Nobody known, no cluster. `seed` comes from the system's random source; milliseconds of the data path count from
    /// `now` (see [`Sessions::start`]).
    ///
    /// # Panics
    /// If the configuration is not as documented.
    pub fn new(keys: Arc<NodeKeys>, config: SessionConfig, seed: [u8; 32], now: Now) -> Self {
        assert!(
            config.suites.contains(&config.preferred),
            "the preferred suite is one of those accepted"
        );
        assert!(
            (1..=super::MAX_LANES).contains(&config.lanes),
            "a session has 1 to {} lanes",
            super::MAX_LANES
        );
        let mut local = Local::new(keys, config, seed, now);
        let gate = Gate::new(&mut local.rng, now.mono);
        Self {
            local,
            gate,
            peers: BTreeMap::new(),
            by_key: BTreeMap::new(),
            refused: BTreeMap::new(),
            turned_away: Bucket::new(outdated::TURNED_AWAY, now.mono),
            timers: BTreeSet::new(),
        }
    }

    /// From when the milliseconds in [`Outbound`](super::Outbound) and [`Inbound`](super::Inbound) count.
    pub const fn start(&self) -> Start {
        self.local.start
    }

    /// Lets milliseconds count from an earlier start: that of the data threads, which outlive a change of keys.
    pub const fn set_start(&mut self, start: Start) {
        self.local.start = start;
    }

    /// Enters a cluster or takes up a rotated secret. Peers are answered in the epoch of `current` and of `previous`.
    /// Sessions go on; wanted ones are made.
    pub fn set_cluster(
        &mut self,
        id: [u8; 32],
        current: ClusterSecret,
        previous: Option<ClusterSecret>,
        now: Now,
    ) {
        self.local
            .set_cluster(id, std::iter::once(current).chain(previous));
        let wanted: Vec<_> = self
            .peers
            .values()
            .filter(|peer| peer.wanted)
            .map(|peer| peer.id)
            .collect();
        for id in wanted {
            self.connect(id, now);
        }
    }

    /// Whether [`Sessions::lock`] has something new to say.
    pub const fn is_relocked(&self) -> bool {
        self.local.is_relocked()
    }

    /// Puts in what members' handshakes are told from junk by.
    pub fn lock(&mut self, locks: &mut Locks) {
        self.local.lock(locks);
    }

    /// How long handshakes took that this node began and that came to an end as they should, each from the initiation that
    /// was answered.
    pub const fn handshakes(&self) -> Durations {
        self.local.handshakes
    }

    /// Tells peers, in later handshakes, the version of this node's own record.
    pub const fn set_record(&mut self, version: u64) {
        self.local.config.record = version;
    }

    /// The stamp of the last initiation, to be kept for [`SessionConfig::stamp_floor`].
    pub const fn last_stamp(&self) -> u64 {
        self.local.last_stamp()
    }

    /// Makes a peer known, or its endpoints if it is: it may shake hands from now on. The likeliest endpoint comes first.
    pub fn add_peer(&mut self, public: NodePublic, endpoints: Vec<SocketAddr>, now: Now) -> NodeId {
        let id = public.id();
        if id != self.local.id {
            self.by_key.insert(public.dh, id);
            self.peers
                .entry(id)
                .or_insert_with(|| Peer::new(public, id, now.mono));
            self.set_endpoints(id, endpoints, now);
        }
        id
    }

    /// Where the peer may be found. A session that is up stays where it is.
    pub fn set_endpoints(&mut self, peer: NodeId, endpoints: Vec<SocketAddr>, now: Now) {
        self.with(peer, now, |peer, local| {
            peer.endpoints = endpoints
                .into_iter()
                .map(|endpoint| Way::Direct(endpoint).canonical())
                .collect();
            if peer.wanted && peer.outbound().is_none() {
                peer.begin(local, now);
            }
        });
    }

    /// Which members may be asked to hand datagrams on to a peer, the best first. A session that is up stays where it is.
    pub fn set_relays(&mut self, peer: NodeId, relays: Vec<NodeId>, now: Now) {
        self.with(peer, now, |peer, local| {
            peer.relays = relays;
            if peer.wanted && peer.outbound().is_none() {
                peer.begin(local, now);
            }
        });
    }

    /// Sends what is for a peer another way from now on.
    pub fn set_way(&mut self, peer: NodeId, way: Way, now: Now) {
        self.with(peer, now, |peer, local| {
            peer.choose_way(way, local, now.mono)
        });
    }

    /// Cuts the peer off, at once and for every thread, and forgets it.
    pub fn remove_peer(&mut self, peer: NodeId, now: Now) {
        self.with(peer, now, |peer, local| peer.end(local));
        if let Some(peer) = self.peers.remove(&peer) {
            self.by_key.remove(&peer.public.dh);
            if let Some(due) = peer.due {
                self.timers.remove(&(due, peer.id));
            }
        }
    }

    /// Cuts off a node that was removed from the cluster: its handshakes are counted under a reason of their own.
    pub fn refuse_peer(&mut self, public: NodePublic, now: Now) {
        self.remove_peer(public.id(), now);
        self.refused.insert(public.dh, public.id());
    }

    /// Wants a session with a known peer: it is made now, or as soon as a cluster and an endpoint are known, and kept up
    /// until [`Sessions::rest`], or for as long as the peer is known.
    pub fn connect(&mut self, peer: NodeId, now: Now) {
        self.with(peer, now, |peer, local| {
            (peer.wanted, peer.resting) = (true, false);
            if peer.outbound().is_none() {
                peer.begin(local, now);
            }
        });
    }

    /// The peers whose sessions are wanted.
    pub fn wanted(&self) -> impl Iterator<Item = NodeId> + '_ {
        let wanted = self.peers.values().filter(|peer| peer.wanted);
        wanted.map(|peer| peer.id)
    }

    /// Wants no session with a peer any more. One that is up may be used until its keys are too old; no sign of life is
    /// sent in it and no new keys are made, unless the peer does that.
    pub fn rest(&mut self, peer: NodeId, now: Now) {
        self.with(peer, now, |peer, local| peer.rest(local));
    }

    /// Takes a datagram of type [`Type::Initiation`], [`Type::Response`] or [`Type::Cookie`].
    ///
    /// # Errors
    /// Why it was dropped. No session changed then, but a cookie may be asked for.
    pub fn handle_datagram(
        &mut self,
        datagram: &[u8],
        from: impl Into<Way>,
        now: Now,
    ) -> Result<(), Drop> {
        let from = from.into().canonical();
        let header = Header::parse(datagram)?;
        match header.kind {
            Type::Initiation => self.handle_initiation(datagram, from, now),
            Type::Response => self.handle_response(header, datagram, from, now),
            Type::Cookie => self.handle_cookie(header, datagram, now),
            _ => Err(Drop::UnknownType),
        }
    }

    fn handle_initiation(&mut self, datagram: &[u8], from: Way, now: Now) -> Result<(), Drop> {
        let opening = Opening::parse(datagram)?;
        if self.local.epoch(opening.epoch).is_none() {
            return self.turn_away(datagram, opening, from, now);
        }
        let checked = self.admit(datagram, opening, from, now)?;
        if !self.local.config.suites.contains(&opening.suite) {
            return Err(Drop::BadHandshake);
        }
        let mut rng = self.local.fork();
        let local = &self.local;
        let responder = Responder::read(
            &local.keys,
            local.cluster_id(),
            opening,
            checked.content,
            &mut rng,
        )?;
        if let Some(node) = self.refused.get(&responder.initiator).copied() {
            let key = &self
                .local
                .epoch(opening.epoch)
                .ok_or(Drop::BadHandshake)?
                .cookie_key
                .clone();
            return self.dismiss(node, (&checked, key), opening, from, now);
        }
        let peer = *self
            .by_key
            .get(&responder.initiator)
            .ok_or(Drop::BadHandshake)?;
        self.ask_for_proof(peer, &checked, opening, from, now)?;
        let mut answered = Err(Drop::BadHandshake);
        self.with(peer, now, |peer, local| {
            if peer.is_new(responder.stamp, responder.about.boot) && peer.hellos.take(now.mono) {
                answered = answer(peer, responder, opening, from, local, now);
            }
        });
        answered
    }

    /// The cheap part: MAC and, under load, cookie.
    fn admit<'a>(
        &mut self,
        datagram: &'a [u8],
        opening: Opening,
        from: Way,
        now: Now,
    ) -> Result<Checked<'a>, Drop> {
        let mut rng = self.local.fork();
        let epoch = self.local.epoch(opening.epoch).ok_or(Drop::BadHandshake)?;
        let checked = mac::check(&epoch.mac_key, datagram)?;
        let (key, reply) = (&epoch.cookie_key, cookie_header(opening));
        match self
            .gate
            .admit(&checked, key, reply, from, &mut rng, now.mono)
        {
            Entry::Pass => Ok(checked),
            Entry::Refuse => Err(Drop::RateLimited),
            Entry::Prove(reply) => {
                self.local.transmit(from, reply);
                Err(Drop::RateLimited)
            }
        }
    }

    /// Asks a peer that was not heard in this run for a cookie: its initiation may be an old one that somebody kept from
    /// before the last restart, of which no stamp is known any more. One with a cookie of this run is not.
    fn ask_for_proof(
        &mut self,
        peer: NodeId,
        checked: &Checked<'_>,
        opening: Opening,
        from: Way,
        now: Now,
    ) -> Result<(), Drop> {
        let heard = self.peers.get(&peer).is_some_and(Peer::was_heard);
        if heard || !checked.without_cookie() {
            return Ok(());
        }
        let mut rng = self.local.fork();
        let epoch = self.local.epoch(opening.epoch).ok_or(Drop::BadHandshake)?;
        let (key, reply) = (&epoch.cookie_key, cookie_header(opening));
        let reply = self.gate.ask(checked, key, reply, from, &mut rng, now.mono);
        self.local.transmit(from, reply);
        Err(Drop::Unproven)
    }

    fn handle_response(
        &mut self,
        header: Header,
        datagram: &[u8],
        from: Way,
        now: Now,
    ) -> Result<(), Drop> {
        let peer = self
            .local
            .owner(header.receiver)
            .ok_or(Drop::UnknownSession)?;
        let number = u32::try_from(header.counter).map_err(|_| Drop::BadHandshake)?;
        let epoch = self.local.epoch(number).ok_or(Drop::BadHandshake)?;
        let checked = mac::check(&epoch.mac_key, datagram)?;
        if !checked.without_cookie() {
            return Err(Drop::BadHandshake);
        }
        let mut read = Err(Drop::UnknownSession);
        self.with(peer, now, |peer, local| {
            read = finish(peer, header.receiver, checked.content, from, local, now);
        });
        read
    }

    fn handle_cookie(&mut self, header: Header, datagram: &[u8], now: Now) -> Result<(), Drop> {
        let peer = self
            .local
            .owner(header.receiver)
            .ok_or(Drop::UnknownSession)?;
        let mut read = Err(Drop::UnknownSession);
        self.with(peer, now, |peer, local| {
            let pending = peer
                .attempt
                .as_mut()
                .and_then(|attempt| attempt.pending.as_mut());
            if let Some(pending) = pending.filter(|pending| pending.index() == header.receiver) {
                let public = peer.public;
                read = match pending.handle_cookie(&public, header, datagram, local) {
                    Ok(Told::Cookie(cookie)) => {
                        peer.set_cookie(cookie, now.mono);
                        Ok(())
                    }
                    Ok(Told::Epoch(epoch)) => {
                        let peer = peer.id;
                        local.emit(SessionEvent::Outdated { peer, epoch });
                        Ok(())
                    }
                    Ok(Told::Removed) => {
                        local.emit(SessionEvent::Dismissed { peer: peer.id });
                        Ok(())
                    }
                    Err(drop) => Err(drop),
                };
            }
        });
        read
    }

    /// Takes the news from a data thread: an authentic packet, the newest of its lane, was the lane's first or came from
    /// another address than the one before (see [`super::LaneIn::note_from`]).
    pub fn handle_heard(
        &mut self,
        peer: NodeId,
        index: u32,
        lane: u8,
        from: impl Into<Way>,
        now: Now,
    ) {
        let from = from.into().canonical();
        self.with(peer, now, |peer, local| {
            peer.heard(index, lane, from, local, now)
        });
    }

    /// Seals a control message for the peer and queues it. An answer is expected, so the peer's silence counts.
    ///
    /// `false` if there is no session to send it in.
    pub fn send_control(&mut self, peer: NodeId, body: &[u8], now: Now) -> bool {
        let local = &mut self.local;
        let Some(peer) = self.peers.get(&peer) else {
            return false;
        };
        let sent = peer.send_control(body, None, local);
        if let (true, Some(outbound)) = (sent, peer.outbound()) {
            outbound.note_sent(local.start.millis(now.mono));
        }
        sent
    }

    /// The same with a message to which nothing comes back, so the peer's silence does not count.
    pub fn send_last_word(&mut self, peer: NodeId, body: &[u8]) -> bool {
        let peer = self.peers.get(&peer);
        peer.is_some_and(|peer| peer.send_control(body, None, &mut self.local))
    }

    /// Seals a control message for the peer and queues it, to go by the given way and no other. Whether it is answered
    /// says something of that way, so the peer's silence does not count.
    ///
    /// `false` if there is no session to send it in.
    pub fn send_over(&mut self, peer: NodeId, way: Way, body: &[u8]) -> bool {
        let peer = self.peers.get(&peer);
        peer.is_some_and(|peer| peer.send_control(body, Some(way), &mut self.local))
    }

    /// How it stands with a peer; `None` if it is not known.
    pub fn status(&self, peer: NodeId) -> Option<SessionStatus> {
        let peer = self.peers.get(&peer)?;
        let heard = peer.heard_ms();
        Some(SessionStatus {
            way: peer.way,
            endpoint: peer.direct,
            suite: peer.outbound().map(|outbound| outbound.suite()),
            since: peer.since(),
            heard: (heard > 0).then(|| self.local.start.instant(heard)),
            boot: peer.outbound().map(|outbound| outbound.boot()),
            record: peer.record,
        })
    }

    /// When to call [`Sessions::handle_timeout`]; `None` if nothing waits.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.timers.first().map(|(due, _)| *due)
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Now) {
        while let Some(&(due, id)) = self.timers.first()
            && due <= now.mono
        {
            self.timers.pop_first();
            self.with(id, now, |peer, local| {
                peer.due = None;
                peer.handle_timeout(local, now);
            });
        }
    }

    /// The next datagram to send. To be drained after the events.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        loop {
            match self.local.transmits.pop_front()? {
                (Way::Direct(to), bytes) => return Some(Transmit { to, bytes }),
                (Way::Relayed { relay, end }, bytes) => {
                    if let Some(transmit) = self.put_in(relay, &end, &bytes) {
                        return Some(transmit);
                    }
                }
            }
        }
    }

    /// Puts a datagram for `end` into an envelope for a relay; `None` without a direct session with the relay.
    fn put_in(&self, relay: NodeId, end: &NodeId, datagram: &[u8]) -> Option<Transmit> {
        let relay = self.peers.get(&relay)?;
        let to = relay.way?.address()?;
        let trailer = Envelope::new(&self.local.id, end).to_bytes();
        let bytes = seal(relay.outbound()?, datagram, &trailer)?;
        Some(Transmit { to, bytes })
    }

    /// The next event. To be drained before the transmits.
    pub fn poll_event(&mut self) -> Option<SessionEvent> {
        self.local.events.pop_front()
    }

    /// Does something with a peer, if it is known, and puts it into the queue of timers. What is overdue stays so until
    /// [`Sessions::handle_timeout`], however often something else happens before.
    fn with(&mut self, id: NodeId, now: Now, act: impl FnOnce(&mut Peer, &mut Local)) {
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        act(peer, &mut self.local);
        let overdue = peer.due.filter(|due| *due <= now.mono);
        let due = overdue.or_else(|| peer.next_timeout(&self.local, now.mono));
        if due != peer.due {
            if let Some(due) = std::mem::replace(&mut peer.due, due) {
                self.timers.remove(&(due, id));
            }
            self.timers.extend(due.map(|due| (due, id)));
        }
    }
}

/// The header of a cookie for whoever sent an initiation.
fn cookie_header(opening: Opening) -> Header {
    Header {
        kind: Type::Cookie,
        lane: 0,
        receiver: opening.index,
        counter: u64::from(opening.epoch),
    }
}

/// Answers an initiation that proved authentic and new.
fn answer(
    peer: &mut Peer,
    responder: Responder,
    opening: Opening,
    from: Way,
    local: &mut Local,
    now: Now,
) -> Result<(), Drop> {
    let about = responder.about;
    peer.remember(responder.stamp, about.boot);
    let index = local.claim_index(peer.id);
    let epoch = local.epoch(opening.epoch).ok_or(Drop::BadHandshake)?;
    let (mut datagram, split) =
        responder.answer(&local.keys, &peer.id, &epoch.secret, index, local.about());
    mac::append(&epoch.secret.mac_key(&peer.id), None, &mut datagram);
    peer.record = about.record;
    peer.answered(
        split,
        terms(peer.id, opening.suite, about, index, opening.index, local),
        from,
        local,
        now,
    );
    local.transmit(from, datagram);
    Ok(())
}

/// Reads a response to the initiation of that index.
fn finish(
    peer: &mut Peer,
    index: u32,
    content: &[u8],
    from: Way,
    local: &mut Local,
    now: Now,
) -> Result<(), Drop> {
    let pending = peer
        .attempt
        .as_mut()
        .and_then(|attempt| attempt.pending.as_mut());
    let pending = pending
        .filter(|pending| pending.index() == index)
        .ok_or(Drop::UnknownSession)?;
    let (receiver, about) = pending.initiator.finish(content)?;
    // Taken out before the attempt ends: its index goes over to the session.
    let pending = peer
        .attempt
        .as_mut()
        .and_then(|attempt| attempt.pending.take())
        .ok_or(Drop::UnknownSession)?;
    let took = now.mono.saturating_duration_since(pending.began);
    local.handshakes.add(took);
    let suite = pending.initiator.opening().suite;
    let terms = terms(peer.id, suite, about, index, receiver, local);
    peer.record = about.record;
    peer.established(pending.initiator.split(), terms, from, local, now);
    Ok(())
}

fn terms(
    peer: NodeId,
    suite: Suite,
    about: About,
    index: u32,
    receiver: u32,
    local: &Local,
) -> Terms {
    Terms {
        peer,
        suite,
        lanes: about.lanes.min(local.config.lanes),
        index,
        receiver,
        boot: about.boot,
    }
}
