//! A whole core: a member and its peer in virtual time, and whatever the network, the peer, an operator and the disk do.
//!
//! Both start from disks on which they are members of one cluster. The input is a list of moves. What comes from a
//! stranger (junk, junk with the right MACs, old datagrams again, changed or from elsewhere) must change nothing and
//! draw no more bytes than it has; whatever else happens, no address has two owners, every command is answered once,
//! and in the end the two are connected.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use weave_model::{Drop, NodeId, Suite, Token};
use weave_router::core::command::{Command, Reply};
use weave_router::core::dialled::Discovery;
use weave_router::core::{Config, Core, CoreEvent};
use weave_router::noise::mac;
use weave_router::session::{Inbound, SessionEvent};
use weave_router::time::Now;
use weave_router::way::Way;
use weave_router::wire::{HEADER, Header, Kind, Type};

use super::{Input, push_chunk};

const MEMBER: usize = 0;
const PEER: usize = 1;
/// The most moves of one input.
const MOVES: usize = 48;

const SECOND: Duration = Duration::from_secs(1);

struct Node {
    core: Core,
    at: SocketAddr,
    disk: Vec<u8>,
    disk_full: bool,
    inbound: BTreeMap<u32, Arc<Inbound>>,
    commands: u64,
    unanswered: BTreeSet<u64>,
    token: Option<Token>,
}

struct World {
    now: Now,
    nodes: Vec<Node>,
    /// On its way: to whom, from where.
    wire: VecDeque<(usize, SocketAddr, Vec<u8>)>,
    /// What the member has received.
    heard: Vec<(SocketAddr, Vec<u8>)>,
}

fn address(node: usize) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, (node % 200) as u8 + 1], 6783))
}

fn new_core(node: usize, disk: Option<&[u8]>, boot: u8, now: Now) -> Core {
    let config = Config {
        name: format!("host{node}").parse().expect("a name"),
        suites: vec![Suite::Aes256Gcm],
        discovery: Discovery::On,
        preferred: Suite::Aes256Gcm,
        lanes: 2,
    };
    Core::new(config, disk, [boot; 32], now).expect("our own state")
}

impl World {
    /// Two nodes, from their disks or new.
    fn new(disks: [Option<&[u8]>; 2], wall: u64) -> Self {
        let now = Now {
            mono: Instant::now(),
            wall: Duration::from_secs(wall),
        };
        let node = |(number, disk): (usize, Option<&[u8]>)| Node {
            core: new_core(number, disk, number as u8 + 1, now),
            at: address(number),
            disk: disk.unwrap_or_default().to_vec(),
            disk_full: false,
            inbound: BTreeMap::new(),
            commands: 0,
            unanswered: BTreeSet::new(),
            token: None,
        };
        let mut world = Self {
            now,
            nodes: disks.into_iter().enumerate().map(node).collect(),
            wire: VecDeque::new(),
            heard: Vec::new(),
        };
        for number in [MEMBER, PEER] {
            let endpoints = vec![address(number)];
            world.command(number, Command::SetEndpoints { endpoints });
        }
        world
    }

    fn command(&mut self, number: usize, command: Command) {
        let node = &mut self.nodes[number];
        node.commands += 1;
        node.unanswered.insert(node.commands);
        node.core.handle_command(node.commands, command, self.now);
        self.pump(number);
    }

    /// Does what a core wants done; what it sends is on the wire then. Returns how many bytes that was and how many
    /// events there were, saves apart.
    fn pump(&mut self, number: usize) -> (usize, usize) {
        let node = &mut self.nodes[number];
        let (mut bytes, mut events) = (0, 0);
        while let Some(event) = node.core.poll_event() {
            events += 1;
            match event {
                CoreEvent::Session(SessionEvent::Inbound(inbound)) => {
                    node.inbound.insert(inbound.index(), inbound);
                }
                CoreEvent::Session(SessionEvent::Retire(index)) => {
                    node.inbound.remove(&index);
                }
                CoreEvent::Persist { seq, .. } if node.disk_full => {
                    events -= 1;
                    node.core.handle_persist_failed(seq, "full", self.now);
                }
                CoreEvent::Persist { seq, bytes } => {
                    events -= 1;
                    node.disk = bytes.to_vec();
                    node.core.handle_persisted(seq, self.now);
                }
                CoreEvent::Reply { id, result } => {
                    assert!(node.unanswered.remove(&id), "each is answered once");
                    if let Ok(Reply::Token(token, _)) = result {
                        node.token = Some(token);
                    }
                }
                CoreEvent::Session(_) | CoreEvent::Members | CoreEvent::Control { .. } => {}
            }
        }
        let from = node.at;
        while let Some(sent) = self.nodes[number].core.poll_transmit() {
            bytes += sent.bytes.len();
            if let Some(to) = self.nodes.iter().position(|node| node.at == sent.to) {
                self.wire.push_back((to, from, sent.bytes));
            }
        }
        (bytes, events)
    }

    /// A datagram arrives: what a data thread and the core make of it.
    fn deliver(&mut self, to: usize, from: SocketAddr, datagram: &[u8]) -> Result<(), Drop> {
        let now = self.now;
        let node = &mut self.nodes[to];
        let header = Header::parse(datagram)?;
        if header.kind != Type::Data {
            return node.core.handle_datagram(datagram, from, now);
        }
        let inbound = node.inbound.get(&header.receiver);
        let inbound = Arc::clone(inbound.ok_or(Drop::UnknownSession)?);
        let lane = inbound.lane(header.lane).ok_or(Drop::UnknownLane)?;
        let mut lane = lane.lock().expect("one thread");
        let (clear, sealed) = datagram.split_at(HEADER);
        let mut sealed = sealed.to_vec();
        let (plain, newest) = lane.open(header.counter, clear, &mut sealed)?;
        inbound.note_heard(node.core.start().millis(now.mono));
        if newest && lane.note_from(from) {
            let (peer, index) = (inbound.peer(), inbound.index());
            node.core.handle_heard(peer, index, header.lane, from, now);
        }
        if let [body @ .., kind] = plain
            && *kind == Kind::Control as u8
        {
            node.core.handle_control(inbound.peer(), body, from, now);
        }
        Ok(())
    }

    /// Lets time pass; what is sent arrives at once.
    fn run(&mut self, time: Duration) {
        let end = self.now.mono + time;
        for _ in 0..20_000 {
            if let Some((to, from, datagram)) = self.wire.pop_front() {
                if to == MEMBER {
                    self.heard.push((from, datagram.clone()));
                }
                let _ = self.deliver(to, from, &datagram);
                self.pump(to);
                continue;
            }
            let due = self
                .nodes
                .iter()
                .filter_map(|node| node.core.poll_timeout());
            let next = due.min().unwrap_or(end).min(end);
            let step = next.saturating_duration_since(self.now.mono);
            self.now = self.now.after(step);
            if next == end {
                return;
            }
            for number in [MEMBER, PEER] {
                self.nodes[number].core.handle_timeout(self.now);
                self.pump(number);
            }
        }
        panic!("somebody wants to be woken again and again without end");
    }

    /// A datagram of somebody who is none of the two, or of one of them again.
    fn strange(&mut self, from: SocketAddr, datagram: &[u8]) {
        self.nodes[MEMBER].core.handle_timeout(self.now);
        self.pump(MEMBER);
        let before = self.nodes[MEMBER].core.view();
        let sessions: Vec<u32> = self.nodes[MEMBER].inbound.keys().copied().collect();
        let result = self.deliver(MEMBER, from, datagram);
        let (bytes, events) = self.pump(MEMBER);
        assert!(bytes <= datagram.len(), "{bytes} for {}", datagram.len());
        assert_eq!(events, 0, "{result:?}");
        assert_eq!(self.nodes[MEMBER].core.view(), before);
        assert!(self.nodes[MEMBER].inbound.keys().eq(&sessions));
        // A cookie may be read twice, and a hello gets the same answer again; nothing comes of either.
        let harmless = matches!(datagram[..], [0x13 | 0x15, ..]);
        assert!(result.is_err() || harmless, "{datagram:?}");
    }

    /// Something the member has heard before, with a change if `flip` is none of the zeros.
    fn again(&mut self, input: &mut Input<'_>) {
        let (which, from, at, flip) = (input.u16(), input.u8(), input.u16(), input.u8());
        let Some((sender, datagram)) = self.heard.get(usize::from(which) % self.heard.len().max(1))
        else {
            return;
        };
        let (mut from, mut datagram) = (stranger(from).unwrap_or(*sender), datagram.clone());
        from.set_port(6783);
        let at = usize::from(at) % datagram.len();
        datagram[at] ^= flip;
        self.strange(from, &datagram);
    }

    /// Junk, with the right MAC at its end for as much as a member who was thrown out would know.
    fn junk(&mut self, input: &mut Input<'_>, keyed: bool) {
        let from = stranger(input.u8()).unwrap_or_else(|| address(PEER));
        let mut datagram = input.chunk().to_vec();
        if keyed {
            self.nodes[MEMBER]
                .core
                .handle_command(0, Command::Leases, self.now);
            while self.nodes[MEMBER].core.poll_event().is_some() {}
            let locks = self.nodes[MEMBER].core.poll_locks();
            let locks = locks.expect("after a command they may be new");
            let keys = locks.epochs.values().chain(locks.tokens.values());
            let keys: Vec<_> = keys.cloned().collect();
            let key = &keys[usize::from(input.u8()) % keys.len()];
            mac::append(key, None, &mut datagram);
        }
        self.strange(from, &datagram);
    }

    fn operate(&mut self, input: &mut Input<'_>) {
        let (what, number) = (input.u8(), usize::from(input.u8() % 2));
        let id = format!("c{},eth0", input.u8() % 8);
        let want = input.u32();
        let command = match what % 8 {
            0 => Command::Allocate {
                id,
                want: None,
                among: Vec::new(),
                area: None,
            },
            1 => Command::Allocate {
                id,
                want: Some(want),
                among: Vec::new(),
                area: None,
            },
            2 => Command::Release { id },
            3 => Command::Leases,
            4 => Command::TokenCreate {
                ttl: Duration::from_secs(want.into()),
                uses: want >> 16,
                addresses: Vec::new(),
            },
            5 => Command::Init {
                v4: "10.64.0.0/16".parse().expect("a range"),
                v6: None,
            },
            6 => match &self.nodes[MEMBER].token {
                Some(token) => Command::Join {
                    token: token.clone(),
                    taken: Vec::new(),
                },
                None => Command::Leases,
            },
            _ => Command::SetEndpoints {
                endpoints: vec![address(number), address(usize::from(input.u8()))],
            },
        };
        self.command(number, command);
    }

    /// The member ends without a word and starts from its disk.
    fn crash(&mut self, boot: u8) {
        let disk = self.nodes[MEMBER].disk.clone();
        let node = &mut self.nodes[MEMBER];
        node.core = new_core(MEMBER, Some(&disk), boot, self.now);
        node.inbound.clear();
        node.unanswered.clear();
        let endpoints = vec![address(MEMBER)];
        self.command(MEMBER, Command::SetEndpoints { endpoints });
    }

    fn play(&mut self, input: &mut Input<'_>) {
        match input.u8() % 10 {
            0 => self.junk(input, false),
            1 => self.junk(input, true),
            2 => self.again(input),
            3 => self.run(Duration::from_millis(input.u16().into())),
            4 => {
                let (peer, from) = (self.nodes[PEER].core.id(), address(PEER));
                let now = self.now;
                let core = &mut self.nodes[MEMBER].core;
                core.handle_control(peer, input.chunk(), from, now);
                self.pump(MEMBER);
            }
            5 => self.operate(input),
            6 => {
                let peer = self.nodes[PEER].core.id();
                let from = match input.u8() {
                    relay @ 251.. => Way::Relayed {
                        relay: NodeId::from_bytes([relay; 32]),
                        end: peer,
                    },
                    choice => stranger(choice).unwrap_or_else(|| address(PEER)).into(),
                };
                let indices: Vec<u32> = self.nodes[MEMBER].inbound.keys().copied().collect();
                let index = indices.get(usize::from(input.u8())).copied();
                let (index, lane) = (index.unwrap_or_else(|| input.u32()), input.u8());
                let core = &mut self.nodes[MEMBER].core;
                core.handle_heard(peer, index, lane, from, self.now);
                self.pump(MEMBER);
            }
            7 => self.nodes[MEMBER].disk_full = input.u8() % 2 == 1,
            8 => self.crash(input.u8().max(8)),
            _ => {
                let lost = usize::from(input.u8()) % (self.wire.len() + 1);
                self.wire.drain(..lost);
            }
        }
        self.check();
    }

    /// No address has two owners, and what each believes of all is in order.
    fn check(&mut self) {
        let views = [MEMBER, PEER].map(|number| self.nodes[number].core.view());
        for view in &views {
            let runs = view.owners();
            assert!(runs.iter().all(|run| run.0 <= run.1));
            assert!(runs.windows(2).all(|pair| pair[0].1 < pair[1].0));
            assert!(view.used <= view.capacity);
        }
        for mine in &views[MEMBER].mine {
            let theirs = &views[PEER].mine;
            let both = theirs
                .iter()
                .any(|block| block.contains(mine.first()) || mine.contains(block.first()));
            assert!(!both, "{mine:?} has two owners");
        }
    }

    fn connected(&mut self) -> bool {
        let up = |node: &mut Node| node.core.view().members.iter().any(|peer| peer.connected);
        self.nodes.iter_mut().all(up)
    }
}

/// An address to send from; `None` for the peer's own.
fn stranger(choice: u8) -> Option<SocketAddr> {
    (!choice.is_multiple_of(4)).then(|| SocketAddr::from(([203, 0, 113, choice], 6783)))
}

/// The disks of two members of one cluster.
fn disks() -> &'static [Vec<u8>; 2] {
    static DISKS: OnceLock<[Vec<u8>; 2]> = OnceLock::new();
    DISKS.get_or_init(|| {
        let mut world = World::new([None, None], 1_800_000_000);
        let v4 = "10.32.0.0/16".parse().expect("a range");
        world.command(MEMBER, Command::Init { v4, v6: None });
        let token = Command::TokenCreate {
            ttl: 3600 * SECOND,
            uses: 2,
            addresses: Vec::new(),
        };
        world.command(MEMBER, token);
        let token = world.nodes[MEMBER].token.clone().expect("a token was made");
        let taken = Vec::new();
        world.command(PEER, Command::Join { token, taken });
        world.run(5 * SECOND);
        world.check();
        assert!(world.connected() && world.nodes[PEER].unanswered.is_empty());
        [MEMBER, PEER].map(|number| world.nodes[number].disk.clone())
    })
}

/// Plays the moves of the input, then sees that all is well again.
pub(super) fn run(data: &[u8]) {
    let [member, peer] = disks();
    let mut input = Input(data);
    let mut world = World::new([Some(member), Some(peer)], 1_800_000_100);
    world.run(SECOND / 2);
    assert!(world.connected(), "a round trip or two after the start");
    for _ in 0..MOVES {
        if input.is_empty() {
            break;
        }
        world.play(&mut input);
    }
    world.nodes[MEMBER].disk_full = false;
    world.run(60 * SECOND);
    world.check();
    assert!(world.connected(), "a minute after the last move");
    assert!(world.nodes.iter().all(|node| node.unanswered.is_empty()));
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    let header = |kind| {
        Header {
            kind,
            lane: 0,
            receiver: 7,
            counter: 1,
        }
        .to_bytes()
    };
    let mut junk = Vec::new();
    for kind in [Type::Initiation, Type::Response, Type::Cookie, Type::Data] {
        for keyed in [0, 1] {
            junk.extend([keyed, 1]);
            push_chunk(&mut junk, &[&header(kind)[..], &[9; 136]].concat());
            junk.extend([0; 1].iter().take(keyed.into()));
        }
    }
    let replays: Vec<u8> = (0..12)
        .flat_map(|which| [2, 0, which, which, 0, which, which % 3])
        .collect();
    let mut control = vec![3, 0, 100];
    for body in [
        &[1, 0, 0, 0, 0, 0, 0, 0, 9][..],
        &[7, 0, 0, 0, 0, 0, 0, 0, 1, 8],
        &[6, 0],
        &[40, 1],
    ] {
        control.push(4);
        push_chunk(&mut control, body);
    }
    let operate: Vec<u8> = (0..8)
        .flat_map(|what| [5, what, what % 2, what % 3, 0, 0, 1, what, 3, 0, 50])
        .collect();
    let trouble = vec![
        7, 1, 5, 0, 0, 1, 0, 0, 0, 0, 3, 8, 0, 7, 0, 8, 1, 2, 0, 1, 1, 0, 0, 0, 9, 3, 6, 1, 0, 0,
        3, 40, 0,
    ];
    vec![junk, replays, control, operate, trouble]
}
