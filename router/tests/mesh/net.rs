//! Cores in virtual time on a bad network: datagrams are lost, doubled and reordered, disks are slow or full, nodes
//! crash at any point. Everything follows from one seed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use weave_model::{Block, NodeId, Suite, Token};
use weave_router::core::command::{Command, CommandError, Reply};
use weave_router::core::view::View;
use weave_router::core::{Config, Core, CoreEvent};
use weave_router::path::cut::Batch;
use weave_router::session::{Inbound, Outbound, SessionEvent};
use weave_router::time::Now;
use weave_router::way::Way;
use weave_router::wire::{Envelope, HEADER, Header, Kind, MAX_RELAYS, Type, end_of};

pub(crate) type Answer = Result<Reply, CommandError>;

pub(crate) struct Net {
    pub(crate) now: Now,
    pub(crate) rng: StdRng,
    pub(crate) nodes: Vec<Node>,
    /// Out of 100 datagrams, how many are lost, doubled.
    pub(crate) loss: u32,
    pub(crate) doubled: u32,
    /// The longest way through the network; the shortest is 1 ms.
    pub(crate) delay: Duration,
    /// Pairs that do not hear each other.
    pub(crate) cut: BTreeSet<(usize, usize)>,
    /// How many datagrams were handed on by a third node.
    pub(crate) handed_on: u64,
    /// How often a node took another way to a peer.
    pub(crate) moves: u64,
    /// Nodes that are no members any more: what they own does not count.
    pub(crate) gone: BTreeSet<usize>,
    /// Every datagram that was put on the wire: from, to, bytes.
    pub(crate) seen: Vec<(usize, SocketAddr, Vec<u8>)>,
    wire: BTreeMap<(Instant, u64), Packet>,
    count: u64,
}

struct Packet {
    from: usize,
    to: usize,
    bytes: Vec<u8>,
}

pub(crate) struct Node {
    pub(crate) name: String,
    /// Where it is reached; for a node behind a translator, from where it is seen.
    pub(crate) address: SocketAddr,
    /// What it believes to be its address.
    pub(crate) local: SocketAddr,
    pub(crate) core: Option<Core>,
    pub(crate) disk: Option<Vec<u8>>,
    pub(crate) disk_full: bool,
    pub(crate) answers: BTreeMap<u64, Answer>,
    pub(crate) controls: Vec<Vec<u8>>,
    saving: Option<(Instant, u64, Vec<u8>)>,
    inbounds: BTreeMap<u32, Arc<Inbound>>,
    outbounds: BTreeMap<NodeId, (Arc<Outbound>, Way)>,
    commands: u64,
}

impl Net {
    pub(crate) fn new(seed: u64, nodes: usize) -> Self {
        let wall = Duration::from_secs(1_700_000_000);
        let mut net = Self {
            now: Now {
                mono: Instant::now(),
                wall,
            },
            rng: StdRng::seed_from_u64(seed),
            nodes: Vec::new(),
            loss: 0,
            doubled: 0,
            delay: Duration::from_millis(3),
            cut: BTreeSet::new(),
            handed_on: 0,
            moves: 0,
            gone: BTreeSet::new(),
            seen: Vec::new(),
            wire: BTreeMap::new(),
            count: 0,
        };
        for n in 0..nodes {
            let address = SocketAddr::from(([192, 0, 2, n as u8 + 1], 6783));
            net.nodes.push(Node {
                name: format!("host{}", n + 1),
                address,
                local: address,
                core: None,
                disk: None,
                disk_full: false,
                answers: BTreeMap::new(),
                controls: Vec::new(),
                saving: None,
                inbounds: BTreeMap::new(),
                outbounds: BTreeMap::new(),
                commands: 0,
            });
            net.start(n);
        }
        net
    }

    pub(crate) fn bad(mut self) -> Self {
        (self.loss, self.doubled, self.delay) = (30, 10, Duration::from_millis(40));
        self
    }

    fn config(&self, n: usize) -> Config {
        Config {
            name: self.nodes[n].name.parse().unwrap(),
            suites: vec![Suite::ChaCha20Poly1305, Suite::Aes256Gcm],
            preferred: Suite::ChaCha20Poly1305,
            lanes: 2,
        }
    }

    pub(crate) fn start(&mut self, n: usize) {
        let mut seed = [0; 32];
        self.rng.fill(&mut seed[..]);
        let disk = self.nodes[n].disk.clone();
        let core = Core::new(self.config(n), disk.as_deref(), seed, self.now).unwrap();
        self.nodes[n].core = Some(core);
        let endpoints = vec![self.nodes[n].local];
        self.command(n, Command::SetEndpoints { endpoints });
    }

    /// Stops without a word. A save under way is on disk or it is not.
    pub(crate) fn crash(&mut self, n: usize) {
        let landed = self.rng.random_bool(0.5);
        let node = &mut self.nodes[n];
        node.core = None;
        node.inbounds.clear();
        node.outbounds.clear();
        if let Some((_, _, bytes)) = node.saving.take().filter(|_| landed && !node.disk_full) {
            node.disk = Some(bytes);
        }
    }

    pub(crate) fn command(&mut self, n: usize, command: Command) -> u64 {
        let node = &mut self.nodes[n];
        node.commands += 1;
        let id = node.commands;
        node.core
            .as_mut()
            .unwrap()
            .handle_command(id, command, self.now);
        self.pump(n);
        id
    }

    /// Gives a command and waits for its answer.
    pub(crate) fn ask(&mut self, n: usize, command: Command) -> Answer {
        let id = self.command(n, command);
        self.run_until(Duration::from_secs(60), |net| {
            net.nodes[n].answers.contains_key(&id)
        });
        self.nodes[n]
            .answers
            .remove(&id)
            .expect("every command is answered")
    }

    pub(crate) fn init(&mut self, n: usize, range: &str) {
        let answer = self.ask(
            n,
            Command::Init {
                v4: range.parse().unwrap(),
                v6: None,
            },
        );
        assert!(matches!(answer, Ok(Reply::Member { .. })), "{answer:?}");
    }

    pub(crate) fn token(&mut self, n: usize, uses: u32) -> Token {
        let ttl = Duration::from_secs(3600);
        match self.ask(
            n,
            Command::TokenCreate {
                ttl,
                uses,
                addresses: vec![],
            },
        ) {
            Ok(Reply::Token(token, _)) => token,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn join(&mut self, n: usize, token: &Token) -> Answer {
        self.ask(
            n,
            Command::Join {
                token: token.clone(),
                taken: vec![],
            },
        )
    }

    pub(crate) fn allocate(&mut self, n: usize, id: &str, want: Option<u32>) -> Answer {
        self.ask(
            n,
            Command::Allocate {
                id: id.to_owned(),
                want,
            },
        )
    }

    pub(crate) fn view(&mut self, n: usize) -> Arc<View> {
        self.nodes[n].core.as_mut().unwrap().view()
    }

    pub(crate) fn mine(&mut self, n: usize) -> Vec<Block> {
        self.view(n).mine.clone()
    }

    pub(crate) fn run(&mut self, time: Duration) {
        self.run_until(time, |_| false);
    }

    /// Runs for at most `time`; `true` as soon as `done`.
    pub(crate) fn run_until(&mut self, time: Duration, done: impl Fn(&mut Self) -> bool) -> bool {
        let end = self.now.mono + time;
        let mut busy = 0;
        loop {
            if done(self) {
                return true;
            }
            let Some(next) = self.next_time().filter(|next| *next <= end) else {
                break;
            };
            busy = if next <= self.now.mono { busy + 1 } else { 0 };
            assert!(
                busy < 1000,
                "somebody wants to be woken again and again without end"
            );
            self.advance(next);
            self.step();
        }
        self.advance(end);
        done(self)
    }

    fn advance(&mut self, to: Instant) {
        self.now = self.now.after(to.saturating_duration_since(self.now.mono));
    }

    fn next_time(&self) -> Option<Instant> {
        let cores = self
            .nodes
            .iter()
            .filter_map(|node| node.core.as_ref()?.poll_timeout());
        let disks = self
            .nodes
            .iter()
            .filter_map(|node| Some(node.saving.as_ref()?.0));
        let wire = self.wire.keys().next().map(|(at, _)| *at);
        cores.chain(disks).chain(wire).min()
    }

    fn step(&mut self) {
        let now = self.now;
        while let Some(entry) = self
            .wire
            .first_entry()
            .filter(|entry| entry.key().0 <= now.mono)
        {
            let packet = entry.remove();
            self.deliver(packet);
        }
        for n in 0..self.nodes.len() {
            self.finish_saving(n);
            let due = |core: &Core| core.poll_timeout().is_some_and(|at| at <= now.mono);
            if let Some(core) = self.nodes[n].core.as_mut().filter(|core| due(core)) {
                core.handle_timeout(now);
                self.pump(n);
            }
        }
    }

    fn finish_saving(&mut self, n: usize) {
        let now = self.now;
        let node = &mut self.nodes[n];
        let Some((_, seq, bytes)) = node.saving.take_if(|saving| saving.0 <= now.mono) else {
            return;
        };
        let core = node.core.as_mut().unwrap();
        if node.disk_full {
            core.handle_persist_failed(seq, "No space left on device", now);
        } else {
            node.disk = Some(bytes);
            core.handle_persisted(seq, now);
        }
        self.pump(n);
    }

    pub(crate) fn pump(&mut self, n: usize) {
        let mut sent = Vec::new();
        let disk = Duration::from_micros(self.rng.random_range(100..8000));
        let node = &mut self.nodes[n];
        let core = node.core.as_mut().unwrap();
        while let Some(event) = core.poll_event() {
            match event {
                CoreEvent::Session(SessionEvent::Inbound(inbound)) => {
                    node.inbounds.insert(inbound.index(), inbound);
                }
                CoreEvent::Session(SessionEvent::Retire(index)) => {
                    node.inbounds.remove(&index);
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
                    node.saving = Some((self.now.mono + disk, seq, bytes.to_vec()));
                }
                CoreEvent::Reply { id, result } => {
                    assert!(
                        node.answers.insert(id, result).is_none(),
                        "one answer to each command"
                    );
                }
                CoreEvent::Control { body, .. } => node.controls.push(body),
                CoreEvent::Session(_) | CoreEvent::Members => {}
            }
        }
        while let Some(transmit) = core.poll_transmit() {
            sent.push(transmit);
        }
        for transmit in sent {
            self.seen.push((n, transmit.to, transmit.bytes.clone()));
            self.send(n, transmit.to, &transmit.bytes);
        }
    }

    fn send(&mut self, from: usize, to: SocketAddr, bytes: &[u8]) {
        let Some(to) = self.nodes.iter().position(|node| node.address == to) else {
            return;
        };
        let copies = if self.rng.random_ratio(self.doubled, 100) {
            2
        } else {
            1
        };
        for _ in 0..copies {
            if self.rng.random_ratio(self.loss, 100) || self.cut.contains(&(from, to)) {
                continue;
            }
            let way = self.rng.random_range(1_000..=self.delay.as_micros() as u64);
            self.count += 1;
            let at = self.now.mono + Duration::from_micros(way);
            self.wire.insert(
                (at, self.count),
                Packet {
                    from,
                    to,
                    bytes: bytes.to_vec(),
                },
            );
        }
    }

    fn deliver(&mut self, packet: Packet) {
        let from = self.nodes[packet.from].address;
        self.take(packet.to, packet.bytes, from.into());
        if self.nodes[packet.to].core.is_some() {
            self.pump(packet.to);
        }
    }

    /// What a data thread does with control messages and envelopes; the core does the rest.
    fn take(&mut self, n: usize, mut bytes: Vec<u8>, from: Way) {
        let now = self.now;
        let node = &mut self.nodes[n];
        let Some(core) = &mut node.core else { return };
        let header = Header::parse(&bytes).unwrap();
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
            inbound.note_heard(core.start().millis(now.mono));
            if newest && lane.note_from(from) {
                core.handle_heard(inbound.peer(), header.receiver, header.lane, from, now);
            }
            let content = plain.to_vec();
            drop(lane);
            match Kind::of(&content) {
                Some(Kind::Control) if content.len() > 1 => {
                    let body = &content[..content.len() - 1];
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
        if self.nodes[n].core.as_ref().unwrap().id() == named(envelope.to).unwrap_or(from) {
            let Some(end) = named(envelope.from) else {
                return;
            };
            let from = Way::Relayed { relay: from, end };
            return self.take(n, datagram.to_vec(), from);
        }
        let next = named(envelope.to).and_then(|to| self.nodes[n].outbounds.get(&to));
        let Some((outbound, Way::Direct(to))) = next.cloned() else {
            return;
        };
        assert_eq!((envelope.from, envelope.hops), (end_of(&from), MAX_RELAYS));
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

    /// What each node owns, a crashed one by what its disk says; one that is gone nothing.
    pub(crate) fn ownership(&mut self) -> Vec<Vec<Block>> {
        (0..self.nodes.len())
            .map(|n| match &mut self.nodes[n].core {
                _ if self.gone.contains(&n) => Vec::new(),
                Some(core) => core.view().mine.clone(),
                None => {
                    let disk = self.nodes[n].disk.clone();
                    let core = Core::new(self.config(n), disk.as_deref(), [7; 32], self.now);
                    core.unwrap().view().mine.clone()
                }
            })
            .collect()
    }

    /// No address has two owners. Returns how many have one.
    pub(crate) fn check_ownership(&mut self) -> u32 {
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
    pub(crate) fn agrees(&mut self) -> bool {
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
