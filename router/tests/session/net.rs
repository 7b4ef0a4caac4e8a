//! Two hosts (or more) and the network between them, in virtual time, from one seed.
//!
//! A [`Host`] is a [`Sessions`] and the least of a data path: it opens what arrives with the halves it was given, answers
//! probes, and keeps what it received. The [`Net`] delays, reorders, loses and duplicates datagrams, and counts every
//! packet that arrived but could not be opened: that is a packet the sessions lost.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use weave_model::{Drop, NodeId, Suite};
use weave_router::keys::{ClusterSecret, NodeKeys, NodePublic};
use weave_router::session::{Inbound, Outbound, SessionConfig, SessionEvent, Sessions};
use weave_router::time::Now;
use weave_router::wire::{HEADER, Header, Kind, TAG, Type};

pub(crate) const CLUSTER: [u8; 32] = [0xc1; 32];

pub(crate) fn secret(epoch: u32) -> ClusterSecret {
    ClusterSecret {
        epoch,
        bytes: [epoch as u8; 32],
    }
}

pub(crate) fn keys(seed: u8) -> Arc<NodeKeys> {
    Arc::new(NodeKeys::generate(&mut StdRng::from_seed([seed; 32])))
}

pub(crate) fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

pub(crate) fn config(boot: u64) -> SessionConfig {
    let suites = vec![Suite::ChaCha20Poly1305, Suite::Aes256Gcm];
    SessionConfig {
        suites,
        preferred: Suite::Aes256Gcm,
        lanes: 2,
        boot,
        record: 1,
        stamp_floor: 0,
    }
}

/// How the network treats a datagram.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Link {
    pub(crate) delay: Duration,
    /// Up to this is added at random, which reorders.
    pub(crate) jitter: Duration,
    pub(crate) loss: f64,
    pub(crate) duplicate: f64,
}

impl Default for Link {
    fn default() -> Self {
        Self {
            delay: Duration::from_millis(10),
            jitter: Duration::ZERO,
            loss: 0.0,
            duplicate: 0.0,
        }
    }
}

impl Link {
    pub(crate) fn lossy(loss: f64) -> Self {
        Self {
            jitter: Duration::from_millis(40),
            loss,
            duplicate: 0.1,
            ..Self::default()
        }
    }
}

/// A node.
pub(crate) struct Host {
    pub(crate) sessions: Sessions,
    pub(crate) public: NodePublic,
    pub(crate) id: NodeId,
    /// Where its datagrams come from, lane 0.
    pub(crate) address: SocketAddr,
    pub(crate) inbound: BTreeMap<u32, Arc<Inbound>>,
    pub(crate) outbound: BTreeMap<NodeId, (Arc<Outbound>, SocketAddr)>,
    /// Every event so far, by name.
    pub(crate) log: Vec<String>,
    /// Numbers of the data packets that arrived.
    pub(crate) received: Vec<u64>,
    pub(crate) answers_probes: bool,
    /// Its data threads tell what they heard.
    pub(crate) tells: bool,
    /// What it sends wants an answer.
    pub(crate) expects_answers: bool,
}

impl Host {
    pub(crate) fn new(
        keys: Arc<NodeKeys>,
        address: SocketAddr,
        config: SessionConfig,
        now: Now,
    ) -> Self {
        let (public, id) = (keys.public(), keys.id());
        let mut seed = [0; 32];
        seed[..8].copy_from_slice(&config.boot.to_be_bytes());
        seed[8..16].copy_from_slice(&id.as_bytes()[..8]);
        let mut sessions = Sessions::new(keys, config, seed, now);
        sessions.set_cluster(CLUSTER, secret(1), None, now);
        Self {
            sessions,
            public,
            id,
            address,
            inbound: BTreeMap::new(),
            outbound: BTreeMap::new(),
            log: Vec::new(),
            received: Vec::new(),
            answers_probes: true,
            tells: true,
            expects_answers: true,
        }
    }

    pub(crate) fn count(&self, event: &str) -> usize {
        self.log.iter().filter(|name| *name == event).count()
    }

    /// A data packet of that number on a lane, as a data thread seals it; `None` without a usable session.
    pub(crate) fn seal(
        &self,
        peer: NodeId,
        lane: u8,
        number: u64,
        now: Now,
    ) -> Option<(SocketAddr, Vec<u8>)> {
        self.seal_of(8, peer, lane, number, now)
    }

    /// The same with `size` bytes in it, 8 at least.
    pub(crate) fn seal_of(
        &self,
        size: usize,
        peer: NodeId,
        lane: u8,
        number: u64,
        now: Now,
    ) -> Option<(SocketAddr, Vec<u8>)> {
        let (outbound, to) = self.outbound.get(&peer)?;
        let counter = outbound.reserve(lane, 1)?;
        let header = Header {
            kind: Type::Data,
            lane,
            receiver: outbound.receiver(),
            counter,
        }
        .to_bytes();
        let mut datagram = [&header[..], &number.to_be_bytes()].concat();
        datagram.resize(HEADER + size + 1 + TAG, 0);
        let (body, tag) = datagram[HEADER..].split_at_mut(size);
        outbound
            .key(lane)
            .seal(counter, &header, body, &[Kind::Packets as u8], tag);
        if self.expects_answers {
            outbound.note_sent(self.sessions.start().millis(now.mono));
        }
        Some((*to, datagram))
    }

    pub(crate) fn handle(
        &mut self,
        datagram: &[u8],
        from: SocketAddr,
        now: Now,
    ) -> Result<(), Drop> {
        let header = Header::parse(datagram)?;
        if header.kind != Type::Data {
            return self.sessions.handle_datagram(datagram, from, now);
        }
        let inbound = Arc::clone(
            self.inbound
                .get(&header.receiver)
                .ok_or(Drop::UnknownSession)?,
        );
        let mut lane = inbound
            .lane(header.lane)
            .ok_or(Drop::UnknownLane)?
            .lock()
            .unwrap();
        let (clear, sealed) = datagram.split_at(HEADER);
        let mut sealed = sealed.to_vec();
        let (plain, newest) = lane.open(header.counter, clear, &mut sealed)?;
        inbound.note_heard(self.sessions.start().millis(now.mono));
        if newest && lane.note_from(from) && self.tells {
            self.sessions
                .handle_heard(inbound.peer(), inbound.index(), header.lane, from, now);
        }
        match plain {
            [body @ .., kind] if *kind == Kind::Packets as u8 => {
                self.received
                    .push(u64::from_be_bytes(*body.first_chunk().unwrap()));
            }
            [b'?', _] if self.answers_probes => {
                self.sessions.send_control(inbound.peer(), b"!", now);
            }
            _ => {}
        }
        Ok(())
    }

    fn take_events(&mut self, now: Now) {
        while let Some(event) = self.sessions.poll_event() {
            let name = format!("{event:?}");
            self.log
                .push(name.split([' ', '(']).next().unwrap().to_owned());
            match event {
                SessionEvent::Inbound(inbound) => {
                    self.inbound.insert(inbound.index(), inbound);
                }
                SessionEvent::Up {
                    peer,
                    outbound,
                    way,
                } => {
                    let endpoint = way.address().unwrap();
                    self.outbound.insert(peer, (outbound, endpoint));
                }
                SessionEvent::Moved { peer, way } => {
                    self.outbound.get_mut(&peer).unwrap().1 = way.address().unwrap();
                }
                SessionEvent::Probe { peer } => {
                    self.sessions.send_control(peer, b"?", now);
                }
                SessionEvent::Silent { .. }
                | SessionEvent::Heard { .. }
                | SessionEvent::Retried { .. }
                | SessionEvent::TurnedAway { .. }
                | SessionEvent::Knocked { .. }
                | SessionEvent::Dismissed { .. }
                | SessionEvent::Outdated { .. } => {}
                SessionEvent::Retire(index) => {
                    self.inbound.remove(&index).unwrap();
                }
                SessionEvent::Down { peer } => {
                    self.outbound.remove(&peer).unwrap();
                }
            }
        }
    }
}

/// A datagram on its way.
type Flying = (Instant, u64, SocketAddr, SocketAddr, Vec<u8>);

/// A NAT in front of one host: see [`Net::nat`].
pub(crate) struct Nat {
    pub(crate) host: usize,
    /// The public side; the port changes with every new mapping.
    pub(crate) outside: SocketAddr,
    pub(crate) lifetime: Duration,
    used: Option<Instant>,
    pub(crate) mappings: u32,
}

impl Nat {
    pub(crate) const fn new(host: usize, outside: SocketAddr, lifetime: Duration) -> Self {
        Self {
            host,
            outside,
            lifetime,
            used: None,
            mappings: 0,
        }
    }

    /// Forgets the mapping.
    pub(crate) const fn forget(&mut self) {
        self.used = None;
    }
}

pub(crate) struct Net {
    pub(crate) hosts: Vec<Host>,
    pub(crate) link: Link,
    pub(crate) nat: Option<Nat>,
    pub(crate) now: Now,
    rng: StdRng,
    flying: BinaryHeap<Reverse<Flying>>,
    sequence: u64,
    /// Every datagram that was sent, whether it arrived or not: when, from, to, bytes.
    pub(crate) capture: Vec<(Instant, SocketAddr, SocketAddr, Vec<u8>)>,
    pub(crate) keep_capture: bool,
    /// Data packets that arrived and could not be opened, replays of duplicates apart.
    pub(crate) refused: Vec<Drop>,
    /// Data packets that the network itself lost.
    pub(crate) lost: BTreeSet<u64>,
}

impl Net {
    /// Two hosts that know each other, the first with the lower id.
    pub(crate) fn pair(seed: u64, link: Link) -> Self {
        let (mut a, mut b) = (keys(1), keys(2));
        if a.id() > b.id() {
            std::mem::swap(&mut a, &mut b);
        }
        let now = Now {
            mono: Instant::now(),
            wall: Duration::from_secs(1_800_000_000),
        };
        let hosts = vec![
            Host::new(a, address("192.0.2.1:6783"), config(1), now),
            Host::new(b, address("192.0.2.2:6783"), config(2), now),
        ];
        let mut net = Self {
            hosts,
            link,
            nat: None,
            now,
            rng: StdRng::seed_from_u64(seed),
            flying: BinaryHeap::new(),
            sequence: 0,
            capture: Vec::new(),
            keep_capture: false,
            refused: Vec::new(),
            lost: BTreeSet::new(),
        };
        net.introduce(0, 1);
        net.introduce(1, 0);
        net
    }

    /// Two hosts with a session that the first one made.
    pub(crate) fn up(seed: u64, link: Link) -> Self {
        let mut net = Self::pair(seed, link);
        net.connect(0, 1);
        net.run(Duration::from_secs(1));
        assert!(net.paired(), "no session after a second");
        net
    }

    pub(crate) fn introduce(&mut self, host: usize, other: usize) {
        let (public, address) = (self.hosts[other].public, self.hosts[other].address);
        self.hosts[host]
            .sessions
            .add_peer(public, vec![address], self.now);
    }

    pub(crate) fn connect(&mut self, host: usize, other: usize) {
        let peer = self.hosts[other].id;
        self.hosts[host].sessions.connect(peer, self.now);
        self.flush(host);
    }

    /// Replaces a host by one with the same keys that remembers nothing.
    pub(crate) fn restart(&mut self, host: usize, boot: u64) {
        let old = &self.hosts[host];
        let keys = [keys(1), keys(2)]
            .into_iter()
            .find(|keys| keys.id() == old.id)
            .unwrap();
        self.hosts[host] = Host::new(keys, old.address, config(boot), self.now);
        self.introduce(host, 1 - host);
    }

    /// Whether both hosts send in one and the same session.
    pub(crate) fn paired(&self) -> bool {
        let [a, b] = [0, 1].map(|host| self.outbound(host));
        matches!((a, b), (Some(a), Some(b)) if a.index() == b.receiver() && a.receiver() == b.index())
    }

    pub(crate) fn outbound(&self, host: usize) -> Option<Arc<Outbound>> {
        let peer = self.hosts[1 - host].id;
        self.hosts[host]
            .outbound
            .get(&peer)
            .map(|(outbound, _)| Arc::clone(outbound))
    }

    /// Sends a data packet to the other host; `false` without a usable session.
    pub(crate) fn data(&mut self, host: usize, lane: u8, number: u64) -> bool {
        let Some((to, datagram)) =
            self.hosts[host].seal(self.hosts[1 - host].id, lane, number, self.now)
        else {
            return false;
        };
        let mut from = self.hosts[host].address;
        from.set_port(from.port() + u16::from(lane));
        self.send(from, to, datagram, Some(number));
        true
    }

    /// Puts a datagram onto the network.
    pub(crate) fn send(
        &mut self,
        from: SocketAddr,
        to: SocketAddr,
        datagram: Vec<u8>,
        number: Option<u64>,
    ) {
        let from = self.translate(from);
        if self.keep_capture {
            self.capture
                .push((self.now.mono, from, to, datagram.clone()));
        }
        if self.rng.random_bool(self.link.loss) {
            self.lost.extend(number);
            return;
        }
        for _ in 0..=usize::from(self.rng.random_bool(self.link.duplicate)) {
            let at = self.now.mono
                + self.link.delay
                + self.link.jitter.mul_f64(self.rng.random_range(0.0..1.0));
            self.sequence += 1;
            self.flying
                .push(Reverse((at, self.sequence, from, to, datagram.clone())));
        }
    }

    fn translate(&mut self, from: SocketAddr) -> SocketAddr {
        let Some(nat) = &mut self.nat else {
            return from;
        };
        if from.ip() != self.hosts[nat.host].address.ip() {
            return from;
        }
        if nat
            .used
            .is_none_or(|used| used + nat.lifetime <= self.now.mono)
        {
            nat.mappings += 1;
            nat.outside.set_port(40_000 + nat.mappings as u16);
        }
        nat.used = Some(self.now.mono);
        nat.outside
    }

    /// The host that a datagram reaches.
    fn route(&mut self, to: SocketAddr) -> Option<usize> {
        if let Some(nat) = &mut self.nat
            && to == nat.outside
        {
            let open = nat
                .used
                .is_some_and(|used| used + nat.lifetime > self.now.mono);
            nat.used = nat
                .used
                .filter(|_| !open)
                .or_else(|| open.then_some(self.now.mono));
            return open.then_some(nat.host);
        }
        let behind = self.nat.as_ref().map(|nat| nat.host);
        (0..self.hosts.len()).find(|&host| Some(host) != behind && self.hosts[host].address == to)
    }

    /// Takes what a host wants to tell and to send: events first.
    pub(crate) fn flush(&mut self, host: usize) {
        self.hosts[host].take_events(self.now);
        while let Some(transmit) = self.hosts[host].sessions.poll_transmit() {
            self.send(self.hosts[host].address, transmit.to, transmit.bytes, None);
        }
    }

    /// Lets a host handle a datagram at once.
    pub(crate) fn deliver(
        &mut self,
        host: usize,
        datagram: &[u8],
        from: SocketAddr,
    ) -> Result<(), Drop> {
        let result = self.hosts[host].handle(datagram, from, self.now);
        self.flush(host);
        result
    }

    /// Lets time pass.
    pub(crate) fn run(&mut self, time: Duration) {
        let end = self.now.mono + time;
        loop {
            let timers = self
                .hosts
                .iter()
                .filter_map(|host| host.sessions.poll_timeout());
            let arrival = self.flying.peek().map(|Reverse(flying)| flying.0);
            let Some(next) = timers.chain(arrival).min().filter(|next| *next <= end) else {
                break;
            };
            self.now = self
                .now
                .after(next.saturating_duration_since(self.now.mono));
            while let Some(Reverse((_, _, from, to, datagram))) =
                self.flying.pop_if_due(self.now.mono)
            {
                if let Some(host) = self.route(to)
                    && let Err(why) = self.deliver(host, &datagram, from)
                    && datagram[0] & 0xf == Type::Data as u8
                    && why != Drop::Replay
                {
                    self.refused.push(why);
                }
            }
            for host in 0..self.hosts.len() {
                self.hosts[host].sessions.handle_timeout(self.now);
                self.flush(host);
            }
        }
        self.now = self.now.after(end - self.now.mono);
    }

    /// Runs until `done`, at most for `limit`; returns how long it took.
    pub(crate) fn run_until(
        &mut self,
        limit: Duration,
        done: impl Fn(&Self) -> bool,
    ) -> Option<Duration> {
        let began = self.now.mono;
        while self.now.mono - began < limit {
            if done(self) {
                return Some(self.now.mono - began);
            }
            self.run(Duration::from_millis(1));
        }
        None
    }
}

trait PopIfDue {
    fn pop_if_due(&mut self, now: Instant) -> Option<Reverse<Flying>>;
}

impl PopIfDue for BinaryHeap<Reverse<Flying>> {
    fn pop_if_due(&mut self, now: Instant) -> Option<Reverse<Flying>> {
        if self.peek().is_some_and(|Reverse(flying)| flying.0 <= now) {
            self.pop()
        } else {
            None
        }
    }
}
