//! The control thread: feeds the core, does what it says, and publishes routes for the data threads.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};
use weave_linux::udp::is_too_big;
use weave_linux::uplink::mtu_towards;
use weave_model::NodeId;

use super::bulletin::{self, Board, Bulletin, Why};
use super::generation::Generation;
use super::lanes::{self, Lanes};
use super::notes::{self, Note};
use super::pmtu::{self, Answer, Mtus};
use super::traffic::Traffic;
use super::workers::Workers;
use super::{Order, Shared, lock, now};
use crate::core::command::{CommandError, Reply};
use crate::core::view::{self, View};
use crate::core::{Core, CoreEvent};
use crate::path::Input;
use crate::path::cut::Batch;
use crate::path::routes::{
    Area, NextHop, OpenLanes, Owned, Owner, Peer, Port, RELAYED_HEADERS, Receive, Routes, Via,
    header_bytes,
};
use crate::path::stats::PeerCounters;
use crate::path::trees::Trees;
use crate::session::{Inbound, Outbound, SessionEvent};
use crate::store::Store;
use crate::way::Way;
use crate::wire::{Envelope, HEADER, Kind, TAG, end_of};

/// How many inputs are taken before the core's outputs are looked at.
const BURST: usize = 64;
/// How long what a device carries is believed.
const MTU_AGE: Duration = Duration::from_secs(10);

/// How packets reach a member.
#[derive(Debug)]
struct Link {
    outbound: Arc<Outbound>,
    way: Way,
    lanes: Arc<OpenLanes>,
    measured: Instant,
}

/// Everything the control thread owns.
#[derive(Debug)]
pub(super) struct Control {
    core: Core,
    store: Store,
    workers: Arc<Workers>,
    inputs: Receiver<Input>,
    shared: Arc<Shared>,
    links: BTreeMap<NodeId, Link>,
    inbound: HashMap<u32, Arc<Inbound>>,
    counters: BTreeMap<NodeId, Arc<PeerCounters>>,
    ports: BTreeMap<u32, Port>,
    areas: Vec<Area>,
    /// Who holds which floating address.
    floating: BTreeMap<IpAddr, NodeId>,
    lanes: Lanes,
    mtus: Mtus,
    traffic: Traffic,
    trees: Arc<Trees>,
    board: Board,
    generation: Generation,
    waiting: HashMap<u64, oneshot::Sender<Result<Reply, CommandError>>>,
    last_command: u64,
    batch: Batch,
    notes: mpsc::Sender<Note>,
    stale: bool,
    stop: bool,
}

impl Control {
    pub(super) fn new(
        core: Core,
        store: Store,
        workers: Arc<Workers>,
        inputs: Receiver<Input>,
        shared: Arc<Shared>,
        notes: mpsc::Sender<Note>,
    ) -> Self {
        Self {
            core,
            store,
            workers,
            inputs,
            shared,
            links: BTreeMap::new(),
            inbound: HashMap::new(),
            counters: BTreeMap::new(),
            ports: BTreeMap::new(),
            areas: Vec::new(),
            floating: BTreeMap::new(),
            lanes: Lanes::default(),
            mtus: Mtus::default(),
            traffic: Traffic::default(),
            trees: Arc::default(),
            board: Board::default(),
            generation: Generation::new(now()),
            waiting: HashMap::new(),
            last_command: 0,
            batch: Batch::new(),
            notes,
            stale: true,
            stop: false,
        }
    }

    /// Runs until told to stop.
    pub(super) fn run(mut self) {
        while !self.stop {
            let wait = self.next_wake().saturating_duration_since(Instant::now());
            let input = self.inputs.recv_timeout(wait);
            let copied = self.shared.copied.swap(false, Relaxed);
            self.generation.turn(copied, &mut self.core, now());
            match input {
                Ok(input) => self.take_inputs(input),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            self.take_orders();
            self.core.handle_timeout(now());
            self.measure_devices();
            self.probe_lanes();
            self.probe_mtus();
            self.look_at_traffic();
            self.settle();
        }
    }

    fn next_wake(&self) -> Instant {
        let paths = self
            .links
            .values()
            .map(|link| link.measured + MTU_AGE)
            .min();
        let own = [
            self.core.poll_timeout(),
            self.lanes.poll_timeout(),
            self.mtus.poll_timeout(),
            self.traffic
                .poll_timeout()
                .filter(|_| self.trees.are_sparse()),
            paths,
        ];
        own.into_iter()
            .flatten()
            .min()
            .unwrap_or_else(|| Instant::now() + MTU_AGE)
    }

    fn take_inputs(&mut self, first: Input) {
        self.take_input(first);
        for _ in 1..BURST {
            match self.inputs.try_recv() {
                Ok(input) => self.take_input(input),
                Err(_) => return,
            }
        }
    }

    fn take_input(&mut self, input: Input) {
        match input {
            Input::Handshake(stranger) => {
                let from = stranger.from;
                if let Err(reason) = self.core.handle_datagram(&stranger.bytes, from, now()) {
                    tracing::debug!(%from, reason = reason.name(), "a handshake message was dropped");
                    self.workers.control.dropped(reason);
                }
            }
            Input::Control {
                peer,
                lane,
                largest,
                body,
                from,
            } => self.take_control(peer, (lane, largest), &body, from),
            Input::Heard {
                peer,
                index,
                lane,
                from,
            } => self.core.handle_heard(peer, index, lane, from, now()),
            Input::TooBig { peer } => self.measure(peer),
            Input::Wanted { peer } => self.core.handle_wanted(peer, now()),
            Input::Look => {}
        }
    }

    fn take_control(&mut self, peer: NodeId, (lane, largest): (u8, usize), body: &[u8], from: Way) {
        let at = now();
        match *body {
            [lanes::PROBE, ..] => {
                self.core.send_control(peer, &[lanes::ANSWER, lane], at);
            }
            [lanes::ANSWER, lane, ..] => {
                if self.lanes.answered(peer, lane) {
                    tracing::debug!(peer = %peer.short(), lane, "a lane is open");
                    self.mtus.open(peer, lane, at.mono);
                }
            }
            [pmtu::PROBE, a, b, c, d, ..] => {
                let [high, low] = u16::try_from(largest).unwrap_or(u16::MAX).to_be_bytes();
                let answer = [pmtu::ANSWER, lane, a, b, c, d, high, low];
                self.core.send_control(peer, &answer, at);
            }
            [pmtu::ANSWER, lane, a, b, c, d, high, low] => {
                let answer = Answer {
                    lane,
                    id: u32::from_be_bytes([a, b, c, d]),
                    largest: u16::from_be_bytes([high, low]),
                };
                self.mtus.answered(peer, answer, at.mono);
            }
            [bulletin::ASK, ..] => {
                for part in self.board.answer(peer, body, at.mono) {
                    self.core.send_control(peer, &part, at);
                    if Why::of(body) == Why::Watched {
                        *lock(&self.shared.told) = Some(at.mono);
                    }
                }
            }
            [bulletin::PART, ..] => {
                if let Some(text) = self.board.take(peer, body) {
                    self.told(peer, text, at.mono);
                }
            }
            _ => self.core.handle_control(peer, body, from, at),
        }
    }

    /// Asks all members that can be reached what they have to tell.
    fn ask_members(&mut self, why: Why) {
        if self.trees.are_sparse() {
            let all: Vec<NodeId> = self.counters.keys().copied().collect();
            all.into_iter()
                .for_each(|member| self.core.handle_wanted(member, now()));
        }
        let members: Vec<NodeId> = self.links.keys().copied().collect();
        let question = self.board.ask(&members, why);
        for member in members {
            self.core.send_control(member, &question, now());
        }
    }

    /// A member told something.
    fn told(&mut self, peer: NodeId, text: Vec<u8>, at: Instant) {
        let view = self.core.view();
        let mut bulletins = (*self.shared.bulletins.load_full()).clone();
        let text = text.into();
        bulletins.insert(peer, Bulletin { at, text });
        bulletins.retain(|id, _| view.member(*id).is_some());
        self.shared.bulletins.store(Arc::new(bulletins));
    }

    fn take_orders(&mut self) {
        let orders = std::mem::take(&mut *lock(&self.shared.orders));
        for order in orders {
            match order {
                Order::Command(command, reply) => {
                    self.last_command += 1;
                    self.waiting.insert(self.last_command, reply);
                    self.core.handle_command(self.last_command, command, now());
                }
                Order::Ports(ports, areas) => {
                    (self.ports, self.areas) = (ports, areas);
                    self.stale = true;
                }
                Order::Floating(holders) => {
                    self.floating = holders;
                    self.stale = true;
                }
                Order::Post(text) => self.board.post(text),
                Order::Ask(why) => self.ask_members(why),
                Order::Note(to, bytes) => {
                    self.core.handle_wanted(to, now());
                    self.core.send_control(to, &notes::body(&bytes), now());
                }
                Order::Stop => self.stop = true,
            }
        }
    }

    /// Does all that the core wants, then publishes what changed.
    pub(super) fn settle(&mut self) {
        while let Some(event) = self.core.poll_event() {
            self.take_event(event);
        }
        // Published first: what is sent now may be answered at once.
        if let Some(locks) = self.core.poll_locks() {
            self.workers.door.change(locks);
        }
        if self.stale {
            self.stale = false;
            self.publish();
        }
        while let Some(transmit) = self.core.poll_transmit() {
            let bytes = &transmit.bytes;
            if let Err(error) = self.workers.lanes[0].send(transmit.to, bytes, bytes.len(), 0) {
                tracing::debug!(to = %transmit.to, %error, "a control datagram was not sent");
            }
        }
        *lock(&self.shared.tally) = self.core.tally();
    }

    fn take_event(&mut self, event: CoreEvent) {
        match event {
            CoreEvent::Session(event) => self.take_session(event),
            CoreEvent::Members => self.stale = true,
            CoreEvent::Persist { seq, bytes } => match self.store.write(&bytes) {
                Ok(()) => self.core.handle_persisted(seq, now()),
                Err(error) => self
                    .core
                    .handle_persist_failed(seq, &error.to_string(), now()),
            },
            CoreEvent::Reply { id, result } => {
                // Whoever asks right after the answer must see what was done.
                self.publish();
                if let Some(reply) = self.waiting.remove(&id) {
                    // The caller may have gone away; the command is done all the same.
                    let _ = reply.send(result);
                }
            }
            CoreEvent::Control { peer, body, .. } if body.first() == Some(&notes::KIND) => {
                let bytes = body[1..].to_vec();
                // One that nobody fetches in time is lost, like one that was lost on the way.
                let _ = self.notes.try_send(Note { from: peer, bytes });
            }
            CoreEvent::Control { peer, body, .. } => {
                tracing::debug!(peer = %peer.short(), kind = body.first(), "a control message of an unknown kind");
                self.workers.control.dropped(weave_model::Drop::UnknownKind);
            }
        }
    }

    fn take_session(&mut self, event: SessionEvent) {
        match event {
            SessionEvent::Inbound(inbound) => {
                self.inbound.insert(inbound.index(), inbound);
            }
            SessionEvent::Retire(index) => {
                self.inbound.remove(&index);
            }
            SessionEvent::Up {
                peer,
                outbound,
                way,
            } => {
                self.counters_of(peer).handshakes.fetch_add(1, Relaxed);
                let same_run = |link: &Link| link.outbound.boot() == outbound.boot();
                if self.links.get(&peer).is_some_and(same_run) {
                    self.counters_of(peer).rekeys.fetch_add(1, Relaxed);
                }
                self.link_up(peer, outbound, way);
            }
            SessionEvent::Retried { peer } => {
                self.counters_of(peer).retries.fetch_add(1, Relaxed);
                return;
            }
            SessionEvent::Moved { peer, way } => {
                if let Some(link) = self.links.remove(&peer) {
                    self.link_up(peer, link.outbound, way);
                }
            }
            SessionEvent::Down { peer } => {
                self.links.remove(&peer);
                self.lanes.down(peer);
                self.mtus.down(peer);
            }
            SessionEvent::Probe { .. }
            | SessionEvent::Silent { .. }
            | SessionEvent::Heard { .. }
            | SessionEvent::TurnedAway { .. }
            | SessionEvent::Outdated { .. } => return,
        }
        self.stale = true;
    }

    fn counters_of(&mut self, peer: NodeId) -> &PeerCounters {
        self.counters.entry(peer).or_default()
    }

    fn link_up(&mut self, peer: NodeId, outbound: Arc<Outbound>, way: Way) {
        let (at, count) = (Instant::now(), outbound.lanes());
        let same_path = self.links.get(&peer).is_some_and(|link| link.way == way);
        let open = if way.is_direct() {
            OpenLanes::default()
        } else {
            OpenLanes::relayed()
        };
        let lanes = if same_path {
            self.lanes.rekeyed(peer, count, open, at)
        } else {
            self.lanes.up(peer, count, open, at)
        };
        // Without a route nothing is known; it is asked again.
        let device = self.device_towards(way).unwrap_or(0);
        let headers = way.address().map_or(RELAYED_HEADERS, header_bytes);
        self.mtus.up(peer, &lanes, (headers, device), at);
        let link = Link {
            outbound,
            way,
            lanes,
            measured: at,
        };
        self.links.insert(peer, link);
    }

    /// Where datagrams that go some way go first; `None` without a direct session with the relay.
    fn first_hop(&self, way: Way) -> Option<SocketAddr> {
        match way {
            Way::Direct(address) => Some(address),
            Way::Relayed { relay, .. } => self.links.get(&relay)?.way.address(),
        }
    }

    /// What the device carries that datagrams go out by; `None` without a route.
    fn device_towards(&self, way: Way) -> Option<u32> {
        mtu_towards(self.first_hop(way)?).ok()
    }

    /// How data threads reach a member now.
    fn send(&self, link: &Link) -> Option<NextHop> {
        let via = match link.way {
            Way::Direct(_) => None,
            Way::Relayed { relay, end } => {
                let relay = self.links.get(&relay)?;
                Some(Arc::new(Via {
                    outbound: Arc::clone(&relay.outbound),
                    lanes: Arc::clone(&relay.lanes),
                    trailer: Envelope::new(&self.core.id(), &end).to_bytes(),
                }))
            }
        };
        Some(NextHop {
            to: self.first_hop(link.way)?,
            outbound: Arc::clone(&link.outbound),
            lanes: Arc::clone(&link.lanes),
            via,
        })
    }

    /// Keeps the sessions with members that have traffic, where sessions are made on demand.
    fn look_at_traffic(&mut self) {
        if !self.trees.are_sparse() {
            return;
        }
        let at = now();
        for peer in self.traffic.due(&self.counters, at.mono) {
            self.core.handle_wanted(peer, at);
        }
    }

    fn probe_lanes(&mut self) {
        for (peer, lane) in self.lanes.due(Instant::now()) {
            self.send_on_lane(peer, lane, &[lanes::PROBE, lane]);
        }
    }

    fn probe_mtus(&mut self) {
        let at = Instant::now();
        let (probes, silent) = self.mtus.due(at);
        for (peer, lane) in silent {
            tracing::info!(peer = %peer.short(), lane, "a lane fell silent");
            self.lanes.silent(peer, lane, at);
        }
        for probe in probes {
            let [a, b, c, d] = probe.id.to_be_bytes();
            let mut body = vec![pmtu::PROBE, a, b, c, d];
            let padded = usize::from(probe.datagram).saturating_sub(HEADER + 1 + TAG);
            body.resize(body.len().max(padded), 0);
            self.send_on_lane(probe.peer, probe.lane, &body);
        }
    }

    /// Sends a control message over a lane; it may be lost.
    fn send_on_lane(&mut self, peer: NodeId, lane: u8, body: &[u8]) {
        let Some(send) = self.links.get(&peer).and_then(|link| self.send(link)) else {
            return;
        };
        let (batch, trailer) = (&mut self.batch, [Kind::Control as u8]);
        let sealed = batch.seal_one(&send.outbound, lane, body, &trailer);
        let put_in = |()| match &send.via {
            None => Ok(lane),
            Some(via) => via.put_in(batch, lane),
        };
        let Ok(Some(socket)) = sealed
            .and_then(put_in)
            .map(|lane| self.workers.lanes.get(usize::from(lane)))
        else {
            return;
        };
        let out = |call: &[u8]| socket.send(send.to, call, call.len(), 0).map(|_| ());
        let sent = self.batch.calls().try_for_each(out);
        if let Err(error) = sent {
            tracing::debug!(peer = %peer.short(), lane, %error, "a probe was not sent");
            if is_too_big(&error) {
                self.measure(peer);
            }
        }
    }

    fn measure_devices(&mut self) {
        let due = Instant::now() - MTU_AGE;
        let old = self.links.iter().filter(|(_, link)| link.measured <= due);
        let old: Vec<NodeId> = old.map(|(peer, _)| *peer).collect();
        old.into_iter().for_each(|peer| self.measure(peer));
    }

    /// Asks what the device carries that leads to a member.
    fn measure(&mut self, peer: NodeId) {
        let Some(link) = self.links.get_mut(&peer) else {
            return;
        };
        link.measured = Instant::now();
        let (way, measured) = (link.way, link.measured);
        if let Some(mtu) = self.device_towards(way) {
            self.mtus.device(peer, mtu, measured);
        }
    }

    fn publish(&mut self) {
        let view = self.core.view();
        let links = &self.links;
        // With who was let in there is a session before its record is here.
        let stays = |id: &NodeId| view.member(*id).is_some() || links.contains_key(id);
        self.counters.retain(|id, _| stays(id));
        let routes = self.routes(&view);
        self.workers.routes.store(Arc::new(routes));
        let before = self.shared.view.swap(Arc::clone(&view));
        if !Arc::ptr_eq(&before, &view) {
            self.shared.news.send_replace(());
        }
    }

    fn routes(&mut self, view: &View) -> Routes {
        let owner = |owner| match owner {
            view::Owner::Me => Owner::Here,
            view::Owner::Member(place) => Owner::Peer(place as usize),
        };
        let owners = view.owners().iter().map(|run| Owned {
            first: run.0,
            last: run.1,
            owner: owner(run.2),
        });
        let mut peers = Vec::with_capacity(view.members.len());
        for member in &view.members {
            let link = self.links.get(&member.id);
            peers.push(Peer {
                id: member.id,
                send: link.and_then(|link| self.send(link)),
                counters: Arc::clone(self.counters.entry(member.id).or_default()),
            });
        }
        let inbound = self.inbound.iter().map(|(index, inbound)| {
            let id = inbound.peer();
            let peer = peers.binary_search_by_key(&id, |peer| peer.id).ok();
            let counters =
                peer.map_or_else(Arc::default, |place| Arc::clone(&peers[place].counters));
            (
                *index,
                Receive {
                    inbound: Arc::clone(inbound),
                    peer,
                    counters,
                },
            )
        });
        let inbound = inbound.collect();
        if !self.trees.are_of(&view.topology) {
            let roots = view.members.iter().map(|member| member.id);
            let topology = Arc::clone(&view.topology);
            self.trees = Arc::new(Trees::new(view.me, topology, roots));
        }
        let floating = self.floating.iter().map(|(ip, id)| (*ip, *id));
        let routes = Routes {
            me: end_of(&view.me),
            range: view.range,
            owners: owners.collect(),
            peers,
            inbound,
            ports: self.ports.clone(),
            areas: self.areas.clone(),
            trees: Arc::clone(&self.trees),
            ..Routes::default()
        };
        routes.with_floating(view.me, floating)
    }
}
