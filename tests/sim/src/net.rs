//! Cores in virtual time on a bad network: datagrams are lost, doubled and reordered, disks are slow or full, nodes
//! crash at any point. Everything follows from one seed.
//!
//! Time jumps from one event to the next: a datagram that arrives, a save that ends, a core's timer. Each node stands in
//! one queue by when it wants to be woken, so an idle cluster costs nothing but its own timers.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::hash::{Hash as _, Hasher as _};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use weave_model::{Block, NodeId, Suite, Token};
use weave_router::core::command::{Command, CommandError, Reply};
use weave_router::core::dialled::Discovery;
use weave_router::core::view::View;
use weave_router::core::{Config, Core, CoreEvent};
use weave_router::path::cut::Batch;
use weave_router::session::{Inbound, Outbound, SessionEvent};
use weave_router::time::Now;
use weave_router::way::Way;
use weave_router::wire::{Envelope, HEADER, Header, Kind, MAX_RELAYS, Type, end_of};

/// What a command came to.
pub type Answer = Result<Reply, CommandError>;

/// How many former copies of a disk are kept, to be rolled back to.
const COPIES: usize = 8;
/// How many control messages a listening node remembers.
const HEARD: usize = 64;
/// How many counters are remembered of each key.
const SEALED: usize = 64;

/// A cluster, the network between its nodes, and the time there.
#[derive(Debug)]
pub struct Net {
    /// What every clock says, but for those that were set wrong.
    pub now: Now,
    /// Decides what the network does.
    pub rng: StdRng,
    /// The nodes, members or not.
    pub nodes: Vec<Node>,
    /// Out of 100 datagrams, how many are lost.
    pub loss: u32,
    /// Out of 100 datagrams, how many arrive twice.
    pub doubled: u32,
    /// The longest way through the network; the shortest is 1 ms.
    pub delay: Duration,
    /// Who is not heard by whom: from, to.
    pub cut: BTreeSet<(usize, usize)>,
    /// Nodes hand on what others send through them.
    pub relays: bool,
    /// How many datagrams were handed on by a third node.
    pub handed_on: u64,
    /// How often a node took another way to a peer.
    pub moves: u64,
    /// Nodes that are no members any more: what they own does not count.
    pub gone: BTreeSet<usize>,
    /// Every datagram that was put on the wire: from, to, bytes; while `watched`.
    pub seen: Vec<(usize, SocketAddr, Vec<u8>)>,
    /// Datagrams are kept in `seen`.
    pub watched: bool,
    /// Nothing is kept that costs memory or time for each datagram or save: no disk to start from, no counters to compare,
    /// no trace.
    pub frugal: bool,
    /// How many datagrams and bytes were sent.
    pub sent: (u64, u64),
    /// How many events there were: datagrams that arrived, saves that ended, timers.
    pub events: u64,
    /// What broke a promise that is checked here: a counter used twice, a datagram opened twice.
    pub broken: Option<String>,
    start: Instant,
    trace: DefaultHasher,
    wire: BTreeMap<(Instant, u64), Packet>,
    count: u64,
    timers: BTreeSet<(Instant, usize)>,
    places: BTreeMap<SocketAddr, usize>,
}

#[derive(Debug)]
struct Packet {
    from: usize,
    to: usize,
    bytes: Vec<u8>,
}

/// Where in a save a node crashes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Crash {
    /// At once, in the middle of whatever it does.
    Now,
    /// When it begins the next save: nothing of it is on disk.
    Unsaved,
    /// In the next save: the slot is torn, so the next start takes the other one.
    Torn,
    /// When the next save is on disk, before the node knows.
    Saved,
    /// When the node knows, after so many of the datagrams that waited for it.
    Sent(u8),
}

/// One node: a core and what stands around it.
#[derive(Debug)]
pub struct Node {
    /// Its label.
    pub name: String,
    /// Where it is reached; for a node behind a translator, from where it is seen.
    pub address: SocketAddr,
    /// What it believes to be its address.
    pub local: SocketAddr,
    /// The process; `None` while it is down.
    pub core: Option<Core>,
    /// What would be read at the next start.
    pub disk: Option<Vec<u8>>,
    /// What was on the disk before, the newest last.
    pub copies: Vec<Vec<u8>>,
    /// Saves fail.
    pub disk_full: bool,
    /// The answers to commands, by command.
    pub answers: BTreeMap<u64, Answer>,
    /// Control messages that are not the mesh's.
    pub controls: Vec<Vec<u8>>,
    /// The last control messages that it got, whatever they are; while it listens.
    pub heard: VecDeque<Vec<u8>>,
    /// It remembers what it hears.
    pub listens: bool,
    /// How long everything that it sends and saves takes in addition.
    pub slow: Duration,
    /// It does nothing until then, as a stopped process or a starved machine does.
    pub frozen: Option<Instant>,
    /// By how many seconds its wall clock is wrong.
    pub skew: i64,
    /// It crashes there.
    pub crash: Option<Crash>,
    /// Its view may have changed since somebody looked and cleared this.
    pub changed: bool,
    saving: Option<(Instant, u64, Vec<u8>)>,
    inbounds: BTreeMap<u32, Arc<Inbound>>,
    outbounds: BTreeMap<NodeId, (Arc<Outbound>, Way)>,
    commands: u64,
    due: Option<Instant>,
    /// The last counters that it sealed with, by receiver, session and lane.
    sealed: BTreeMap<(usize, u32, u8), BTreeSet<u64>>,
    /// The counters that it opened, by session and lane.
    opened: BTreeSet<(u32, u8, u64)>,
}

impl Node {
    fn new(n: usize) -> Self {
        let host = [192, 0, 2 + (n / 250) as u8, (n % 250) as u8 + 1];
        let address = SocketAddr::from((host, 6783));
        Self {
            name: format!("host{}", n + 1),
            address,
            local: address,
            core: None,
            disk: None,
            copies: Vec::new(),
            disk_full: false,
            answers: BTreeMap::new(),
            controls: Vec::new(),
            heard: VecDeque::new(),
            listens: false,
            slow: Duration::ZERO,
            frozen: None,
            skew: 0,
            crash: None,
            changed: true,
            saving: None,
            inbounds: BTreeMap::new(),
            outbounds: BTreeMap::new(),
            commands: 0,
            due: None,
            sealed: BTreeMap::new(),
            opened: BTreeSet::new(),
        }
    }

    /// The running core.
    ///
    /// # Panics
    /// While the node is down.
    pub fn core(&self) -> &Core {
        self.core.as_ref().unwrap()
    }

    fn config(&self) -> Config {
        Config {
            name: self.name.parse().unwrap(),
            suites: vec![Suite::ChaCha20Poly1305, Suite::Aes256Gcm],
            discovery: Discovery::On,
            preferred: Suite::ChaCha20Poly1305,
            lanes: 2,
        }
    }

    fn store(&mut self, bytes: Vec<u8>) {
        if let Some(before) = self.disk.replace(bytes) {
            self.copies.push(before);
        }
        if self.copies.len() > COPIES {
            self.copies.remove(0);
        }
    }
}

impl Net {
    /// So many nodes that run and are in no cluster, on a network that loses nothing.
    pub fn new(seed: u64, nodes: usize) -> Self {
        let mono = Instant::now();
        let wall = Duration::from_secs(1_700_000_000);
        let mut net = Self {
            now: Now { mono, wall },
            rng: StdRng::seed_from_u64(seed),
            nodes: Vec::new(),
            loss: 0,
            doubled: 0,
            delay: Duration::from_millis(3),
            cut: BTreeSet::new(),
            relays: true,
            handed_on: 0,
            moves: 0,
            gone: BTreeSet::new(),
            seen: Vec::new(),
            watched: true,
            frugal: false,
            sent: (0, 0),
            events: 0,
            broken: None,
            start: mono,
            trace: DefaultHasher::new(),
            wire: BTreeMap::new(),
            count: 0,
            timers: BTreeSet::new(),
            places: BTreeMap::new(),
        };
        for n in 0..nodes {
            net.add();
            net.start(n);
        }
        net
    }

    /// One more node, which does not run yet.
    pub fn add(&mut self) -> usize {
        let n = self.nodes.len();
        self.nodes.push(Node::new(n));
        self.places.insert(self.nodes[n].address, n);
        n
    }

    /// The same with loss, doubles and delay.
    #[must_use]
    pub fn bad(mut self) -> Self {
        (self.loss, self.doubled, self.delay) = (30, 10, Duration::from_millis(40));
        self
    }

    /// How long it has been going on.
    pub fn age(&self) -> Duration {
        self.now.mono.saturating_duration_since(self.start)
    }

    /// A hash of every datagram that arrived and every save, with their times.
    pub fn trace(&self) -> u64 {
        self.trace.finish()
    }

    /// What a node's clocks say.
    pub fn clock(&self, n: usize) -> Now {
        let skew = self.nodes[n].skew;
        let by = Duration::from_secs(skew.unsigned_abs());
        let wall = match skew {
            0.. => self.now.wall + by,
            _ => self.now.wall.saturating_sub(by),
        };
        Now { wall, ..self.now }
    }

    /// Starts a node from its disk.
    pub fn start(&mut self, n: usize) {
        let mut seed = [0; 32];
        self.rng.fill(&mut seed[..]);
        let disk = self.nodes[n].disk.clone();
        let core = Core::new(self.nodes[n].config(), disk.as_deref(), seed, self.clock(n));
        self.nodes[n].core = Some(core.unwrap());
        self.nodes[n].changed = true;
        let endpoints = vec![self.nodes[n].local];
        self.command(n, Command::SetEndpoints { endpoints });
    }

    /// Stops without a word. A save under way is on disk or it is not.
    pub fn crash(&mut self, n: usize) {
        let landed = self.rng.random_bool(0.5);
        self.kill(n, landed);
    }

    /// Stops without a word; says whether a save under way is on disk.
    pub fn kill(&mut self, n: usize, landed: bool) {
        let node = &mut self.nodes[n];
        node.core = None;
        node.inbounds.clear();
        node.outbounds.clear();
        node.opened.clear();
        node.crash = None;
        node.changed = true;
        if let Some((_, _, bytes)) = node.saving.take().filter(|_| landed && !node.disk_full) {
            node.store(bytes);
        }
        self.reschedule(n);
    }

    /// Gives a command; its answer will be in [`Node::answers`] under the number that is returned.
    pub fn command(&mut self, n: usize, command: Command) -> u64 {
        let now = self.clock(n);
        let node = &mut self.nodes[n];
        node.commands += 1;
        let id = node.commands;
        node.core.as_mut().unwrap().handle_command(id, command, now);
        self.pump(n);
        id
    }

    /// Gives a command and waits for its answer.
    ///
    /// # Panics
    /// If none comes within a minute.
    pub fn ask(&mut self, n: usize, command: Command) -> Answer {
        let id = self.command(n, command);
        self.run_until(Duration::from_secs(60), |net| {
            net.nodes[n].answers.contains_key(&id)
        });
        self.nodes[n]
            .answers
            .remove(&id)
            .expect("every command is answered")
    }

    /// Makes a cluster.
    pub fn init(&mut self, n: usize, range: &str) {
        let answer = self.ask(
            n,
            Command::Init {
                v4: range.parse().unwrap(),
                v6: None,
            },
        );
        assert!(matches!(answer, Ok(Reply::Member { .. })), "{answer:?}");
    }

    /// A token that is good for an hour.
    pub fn token(&mut self, n: usize, uses: u32) -> Token {
        self.token_for(n, uses, Duration::from_secs(3600))
    }

    /// A token.
    pub fn token_for(&mut self, n: usize, uses: u32, ttl: Duration) -> Token {
        let addresses = vec![];
        let create = Command::TokenCreate {
            ttl,
            uses,
            addresses,
        };
        match self.ask(n, create) {
            Ok(Reply::Token(token, _)) => token,
            other => panic!("{other:?}"),
        }
    }

    /// Joins and waits for the answer.
    pub fn join(&mut self, n: usize, token: &Token) -> Answer {
        self.ask(
            n,
            Command::Join {
                token: token.clone(),
                taken: vec![],
            },
        )
    }

    /// Allocates an address and waits for the answer.
    pub fn allocate(&mut self, n: usize, id: &str, want: Option<u32>) -> Answer {
        self.ask(
            n,
            Command::Allocate {
                id: id.to_owned(),
                want,
                among: Vec::new(),
                area: None,
            },
        )
    }

    /// What a running node knows.
    pub fn view(&mut self, n: usize) -> Arc<View> {
        self.nodes[n].core.as_mut().unwrap().view()
    }

    /// What a running node owns.
    pub fn mine(&mut self, n: usize) -> Vec<Block> {
        self.view(n).mine.clone()
    }

    /// Lets time pass.
    pub fn run(&mut self, time: Duration) {
        self.run_until(time, |_| false);
    }

    /// Runs for at most `time`; `true` as soon as `done`.
    pub fn run_until(&mut self, time: Duration, done: impl Fn(&mut Self) -> bool) -> bool {
        let end = self.now.mono + time;
        while !done(self) {
            if !self.step(end) {
                return done(self);
            }
        }
        true
    }

    /// Goes on to the next event, if it comes no later than `end`; else there, and `false`.
    ///
    /// # Panics
    /// If a core wants to be woken for the same instant without end.
    pub fn step(&mut self, end: Instant) -> bool {
        let Some(next) = self.next_time().filter(|next| *next <= end) else {
            self.advance(end);
            return false;
        };
        self.advance(next);
        let now = self.now.mono;
        while let Some(packet) = self.arrived() {
            self.deliver(packet);
        }
        let mut busy = 0;
        while let Some(&(due, n)) = self.timers.first()
            && due <= now
        {
            busy += 1;
            assert!(
                busy < 1000 + 10 * self.nodes.len(),
                "{} wants to be woken again and again without end",
                self.nodes[n].name
            );
            self.events += 1;
            self.wake(n);
        }
        true
    }

    fn advance(&mut self, to: Instant) {
        self.now = self.now.after(to.saturating_duration_since(self.now.mono));
    }

    fn next_time(&self) -> Option<Instant> {
        let timer = self.timers.first().map(|(at, _)| *at);
        let wire = self.wire.keys().next().map(|(at, _)| *at);
        timer.into_iter().chain(wire).min()
    }

    fn arrived(&mut self) -> Option<Packet> {
        let first = self.wire.first_entry()?;
        (first.key().0 <= self.now.mono).then(|| first.remove())
    }

    /// Puts a node into the queue by what it waits for now.
    fn reschedule(&mut self, n: usize) {
        let node = &mut self.nodes[n];
        let core = node.core.as_ref().and_then(Core::poll_timeout);
        let save = node.saving.as_ref().map(|saving| saving.0);
        let due = core.into_iter().chain(save).min();
        let due = due.map(|due| node.frozen.map_or(due, |until| due.max(until)));
        if let Some(before) = std::mem::replace(&mut node.due, due) {
            self.timers.remove(&(before, n));
        }
        self.timers.extend(due.map(|due| (due, n)));
    }

    fn wake(&mut self, n: usize) {
        let now = self.clock(n);
        let node = &mut self.nodes[n];
        node.frozen = node.frozen.filter(|until| *until > now.mono);
        self.finish_saving(n);
        let due = |core: &Core| core.poll_timeout().is_some_and(|at| at <= now.mono);
        if let Some(core) = self.nodes[n].core.as_mut().filter(|core| due(core)) {
            core.handle_timeout(now);
            self.pump(n);
        } else {
            self.reschedule(n);
        }
    }

    fn finish_saving(&mut self, n: usize) {
        let now = self.clock(n);
        let node = &mut self.nodes[n];
        let Some((_, seq, bytes)) = node.saving.take_if(|saving| saving.0 <= now.mono) else {
            return;
        };
        if !self.frugal {
            bytes.hash(&mut self.trace);
        }
        if node.disk_full {
            let core = node.core.as_mut().unwrap();
            core.handle_persist_failed(seq, "No space left on device", now);
            return self.pump(n);
        }
        if node.crash == Some(Crash::Torn) {
            return self.kill(n, false);
        }
        if !self.frugal {
            node.store(bytes);
        }
        if node.crash == Some(Crash::Saved) {
            return self.kill(n, true);
        }
        node.core.as_mut().unwrap().handle_persisted(seq, now);
        match node.crash {
            Some(Crash::Sent(most)) => {
                self.pump_some(n, usize::from(most));
                self.kill(n, false);
            }
            _ => self.pump(n),
        }
    }

    /// Does what a core wants done: everything in [`CoreEvent`], then the sending.
    ///
    /// # Panics
    /// If the core breaks its contract with the shell.
    pub fn pump(&mut self, n: usize) {
        self.pump_some(n, usize::MAX);
    }

    /// The same, but only so many datagrams leave.
    fn pump_some(&mut self, n: usize, most: usize) {
        let disk = Duration::from_micros(self.rng.random_range(100..8000)) + self.nodes[n].slow;
        let node = &mut self.nodes[n];
        let core = node.core.as_mut().unwrap();
        while let Some(event) = core.poll_event() {
            match event {
                CoreEvent::Session(SessionEvent::Inbound(inbound)) => {
                    node.inbounds.insert(inbound.index(), inbound);
                }
                CoreEvent::Session(SessionEvent::Retire(index)) => {
                    node.inbounds.remove(&index);
                    node.opened.retain(|(of, ..)| *of != index);
                }
                CoreEvent::Session(SessionEvent::Up {
                    peer,
                    outbound,
                    way,
                }) => {
                    node.outbounds.insert(peer, (outbound, way));
                }
                CoreEvent::Session(SessionEvent::Moved { peer, way }) => {
                    self.moves += 1;
                    if let Some(link) = node.outbounds.get_mut(&peer) {
                        link.1 = way;
                    }
                }
                CoreEvent::Session(SessionEvent::Down { peer }) => {
                    node.outbounds.remove(&peer);
                }
                CoreEvent::Persist { seq, bytes } => {
                    assert!(node.saving.is_none(), "one save at a time");
                    let bytes = if self.frugal {
                        Vec::new()
                    } else {
                        bytes.to_vec()
                    };
                    node.saving = Some((self.now.mono + disk, seq, bytes));
                }
                CoreEvent::Reply { id, result } => {
                    assert!(
                        node.answers.insert(id, result).is_none(),
                        "one answer to each command"
                    );
                }
                CoreEvent::Control { body, .. } => node.controls.push(body),
                CoreEvent::Members => node.changed = true,
                CoreEvent::Session(_) => {}
            }
        }
        if node.crash == Some(Crash::Unsaved) && node.saving.is_some() {
            return self.kill(n, false);
        }
        let sent: Vec<_> = std::iter::from_fn(|| core.poll_transmit()).collect();
        for transmit in sent.into_iter().take(most) {
            if self.watched {
                self.seen.push((n, transmit.to, transmit.bytes.clone()));
            }
            self.send(n, transmit.to, &transmit.bytes);
        }
        self.reschedule(n);
    }

    fn send(&mut self, from: usize, to: SocketAddr, bytes: &[u8]) {
        let Some(&to) = self.places.get(&to) else {
            return;
        };
        self.sent.0 += 1;
        self.sent.1 += bytes.len() as u64;
        if !self.frugal {
            self.note_sealed(from, to, bytes);
        }
        let copies = if self.rng.random_ratio(self.doubled, 100) {
            2
        } else {
            1
        };
        for _ in 0..copies {
            if self.rng.random_ratio(self.loss, 100) || self.cut.contains(&(from, to)) {
                continue;
            }
            self.put(from, to, bytes.to_vec());
        }
    }

    /// Puts a datagram on the wire, which is not going to lose it.
    pub fn put(&mut self, from: usize, to: usize, bytes: Vec<u8>) {
        let way = self.rng.random_range(1_000..=self.delay.as_micros() as u64);
        let slow = self.nodes[from].slow;
        let at = self.now.mono + Duration::from_micros(way) + slow;
        self.put_at(at, from, to, bytes);
    }

    /// Has a datagram arrive just then.
    pub fn put_at(&mut self, at: Instant, from: usize, to: usize, bytes: Vec<u8>) {
        self.count += 1;
        self.wire
            .insert((at, self.count), Packet { from, to, bytes });
    }

    /// Stops a node until then: it neither hears nor does anything.
    pub fn freeze(&mut self, n: usize, until: Instant) {
        self.nodes[n].frozen = Some(until);
        self.reschedule(n);
    }

    /// No counter seals twice under one key. Envelopes are sealed late, so counters may be out of order by a few.
    fn note_sealed(&mut self, from: usize, to: usize, bytes: &[u8]) {
        let Ok(header) = Header::parse(bytes) else {
            return;
        };
        if header.kind != Type::Data {
            return;
        }
        let node = &mut self.nodes[from];
        let key = (to, header.receiver, header.lane);
        let last = node.sealed.entry(key).or_default();
        let old = last.len() == SEALED && last.first() > Some(&header.counter);
        if old || !last.insert(header.counter) {
            let cause = format!("{} seals with counter {} twice", node.name, header.counter);
            self.broken.get_or_insert(cause);
        }
        if last.len() > SEALED {
            last.pop_first();
        }
    }

    fn deliver(&mut self, packet: Packet) {
        if let Some(until) = self.nodes[packet.to]
            .frozen
            .filter(|until| *until > self.now.mono)
        {
            self.count += 1;
            self.wire.insert((until, self.count), packet);
            return;
        }
        self.events += 1;
        if !self.frugal {
            (self.age().as_nanos() as u64, packet.from, packet.to).hash(&mut self.trace);
            packet.bytes.hash(&mut self.trace);
        }
        let from = self.nodes[packet.from].address;
        self.take(packet.to, packet.bytes, from.into());
        if self.nodes[packet.to].core.is_some() {
            self.pump(packet.to);
        }
    }

    /// What a data thread does with control messages and envelopes; the core does the rest.
    fn take(&mut self, n: usize, mut bytes: Vec<u8>, from: Way) {
        let now = self.clock(n);
        let node = &mut self.nodes[n];
        let Some(core) = &mut node.core else { return };
        let Ok(header) = Header::parse(&bytes) else {
            return;
        };
        if header.kind == Type::Data {
            let Some(inbound) = node.inbounds.get(&header.receiver).cloned() else {
                return;
            };
            let Some(lane) = inbound.lane(header.lane) else {
                return;
            };
            let mut lane = lane.lock().unwrap();
            let (clear, sealed) = bytes.split_at_mut(HEADER);
            let Ok((plain, newest)) = lane.open(header.counter, clear, sealed) else {
                return;
            };
            let place = (header.receiver, header.lane, header.counter);
            if !self.frugal && !node.opened.insert(place) {
                let cause = format!("{} opens counter {} twice", node.name, header.counter);
                self.broken.get_or_insert(cause);
            }
            inbound.note_heard(core.start().millis(now.mono));
            if newest && lane.note_from(from) {
                core.handle_heard(inbound.peer(), header.receiver, header.lane, from, now);
            }
            let content = plain.to_vec();
            drop(lane);
            match Kind::of(&content) {
                Some(Kind::Control) if content.len() > 1 => {
                    let body = &content[..content.len() - 1];
                    if node.listens {
                        node.heard.truncate(HEARD - 1);
                        node.heard.push_front(body.to_vec());
                    }
                    core.handle_control(inbound.peer(), body, from, now);
                }
                Some(Kind::Envelope) => self.envelope(n, inbound.peer(), &content),
                _ => {}
            }
        } else {
            let _ = core.handle_datagram(&bytes, from, now);
        }
    }

    /// Takes what came through a relay, or hands it on.
    fn envelope(&mut self, n: usize, from: NodeId, content: &[u8]) {
        let Ok((envelope, datagram)) = Envelope::parse(content) else {
            return;
        };
        let ids = self.nodes.iter().filter_map(|node| node.core.as_ref());
        let ids: Vec<NodeId> = ids.map(Core::id).collect();
        let named = |end| ids.iter().copied().find(|id| end_of(id) == end);
        if self.nodes[n].core().id() == named(envelope.to).unwrap_or(from) {
            let Some(end) = named(envelope.from) else {
                return;
            };
            let from = Way::Relayed { relay: from, end };
            return self.take(n, datagram.to_vec(), from);
        }
        if !self.relays {
            return;
        }
        let next = named(envelope.to).and_then(|to| self.nodes[n].outbounds.get(&to));
        let Some((outbound, Way::Direct(to))) = next.cloned() else {
            return;
        };
        if (envelope.from, envelope.hops) != (end_of(&from), MAX_RELAYS) {
            return;
        }
        let mut batch = Batch::new();
        let trailer = Envelope {
            hops: envelope.hops - 1,
            ..envelope
        };
        let sealed = batch.seal_one(&outbound, 0, datagram, &trailer.to_bytes());
        if sealed.is_ok() {
            self.handed_on += 1;
            let bytes = batch.calls().next().unwrap().to_vec();
            self.send(n, to, &bytes);
        }
    }

    /// What the node would own if it started from its disk now.
    pub fn on_disk(&self, n: usize) -> Arc<View> {
        let disk = self.nodes[n].disk.as_deref();
        let core = Core::new(self.nodes[n].config(), disk, [7; 32], self.clock(n));
        core.unwrap().view()
    }

    /// Whether a node that started from this would be in the cluster, and know all members that it knows now.
    pub fn knows_all_by(&mut self, n: usize, disk: &[u8]) -> bool {
        let core = Core::new(self.nodes[n].config(), Some(disk), [7; 32], self.clock(n));
        let (then, now) = (core.unwrap().view(), self.view(n));
        let known = |id: NodeId| then.member(id).is_some();
        then.cluster.is_some() && now.members.iter().all(|member| known(member.id))
    }

    /// What each node owns, a crashed one by what its disk says; one that is gone nothing.
    pub fn ownership(&mut self) -> Vec<Vec<Block>> {
        (0..self.nodes.len())
            .map(|n| match &mut self.nodes[n].core {
                _ if self.gone.contains(&n) => Vec::new(),
                Some(core) => core.view().mine.clone(),
                None => self.on_disk(n).mine.clone(),
            })
            .collect()
    }

    /// No address has two owners. Returns how many have one.
    ///
    /// # Panics
    /// If one has.
    pub fn check_ownership(&mut self) -> u32 {
        let mut all: Vec<(Block, usize)> = Vec::new();
        for (n, blocks) in self.ownership().into_iter().enumerate() {
            all.extend(blocks.into_iter().map(|block| (block, n)));
        }
        all.sort_unstable();
        for pair in all.windows(2) {
            assert!(
                pair[0].0.last() < pair[1].0.first(),
                "owned twice: {pair:?}"
            );
        }
        all.iter().map(|(block, _)| block.size()).sum()
    }

    /// Every node knows every other, is connected to it, and they agree on who owns what.
    pub fn agrees(&mut self) -> bool {
        let count = self.nodes.len() - self.gone.len();
        let ownership = self.ownership();
        let members = (0..self.nodes.len()).filter(|n| !self.gone.contains(n));
        members.collect::<Vec<_>>().into_iter().all(|n| {
            let view = self.view(n);
            let connected = view
                .members
                .iter()
                .filter(|member| member.connected)
                .count();
            connected == count - 1
                && view.members.len() == count - 1
                && view.members.iter().all(|member| {
                    let other = self
                        .nodes
                        .iter()
                        .position(|node| node.name == member.name.as_str());
                    member.blocks == ownership[other.unwrap()]
                })
        })
    }
}
