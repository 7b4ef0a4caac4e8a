//! The control thread: feeds the core, does what it says, and publishes routes for the data threads.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use weave_linux::udp::mtu_towards;
use weave_model::NodeId;

use super::lanes::{ANSWER, Lanes, PROBE};
use super::workers::Workers;
use super::{Order, Shared, lock, now};
use crate::core::command::{CommandError, Reply};
use crate::core::view::{self, View};
use crate::core::{Core, CoreEvent};
use crate::path::Input;
use crate::path::cut::{Batch, MIN_DATAGRAM};
use crate::path::routes::{OpenLanes, Owned, Owner, Peer, Port, Receive, Routes, Send};
use crate::path::stats::PeerCounters;
use crate::session::{Inbound, Outbound, SessionEvent};
use crate::store::Store;
use crate::wire::Kind;

/// How many inputs are taken before the core's outputs are looked at.
const BURST: usize = 64;
/// How long a path's MTU is believed.
const MTU_AGE: Duration = Duration::from_secs(10);
/// Bytes of the UDP header.
const UDP: usize = 8;
/// The largest datagram sent, whatever the interface could take: loopback's 65,536 would leave one slice a packet.
const MAX_DATAGRAM: usize = 9000;

/// How packets reach a member.
#[derive(Debug)]
struct Link {
    outbound: Arc<Outbound>,
    endpoint: SocketAddr,
    lanes: Arc<OpenLanes>,
    datagram: usize,
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
    lanes: Lanes,
    waiting: HashMap<u64, oneshot::Sender<Result<Reply, CommandError>>>,
    last_command: u64,
    batch: Batch,
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
            lanes: Lanes::default(),
            waiting: HashMap::new(),
            last_command: 0,
            batch: Batch::new(),
            stale: true,
            stop: false,
        }
    }

    /// Runs until told to stop.
    pub(super) fn run(mut self) {
        while !self.stop {
            let wait = self.next_wake().saturating_duration_since(Instant::now());
            match self.inputs.recv_timeout(wait) {
                Ok(input) => self.take_inputs(input),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            self.take_orders();
            self.core.handle_timeout(now());
            self.probe_lanes();
            self.measure_paths();
            self.settle();
        }
    }

    fn next_wake(&self) -> Instant {
        let paths = self
            .links
            .values()
            .map(|link| link.measured + MTU_AGE)
            .min();
        let own = [self.core.poll_timeout(), self.lanes.poll_timeout(), paths];
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
                body,
                from,
            } => match *body.as_slice() {
                [PROBE, ..] => {
                    self.core.send_control(peer, &[ANSWER, lane], now());
                }
                [ANSWER, lane, ..] => {
                    if self.lanes.answered(peer, lane) {
                        tracing::debug!(peer = %peer.short(), lane, "a lane is open");
                    }
                }
                _ => self.core.handle_control(peer, &body, from, now()),
            },
            Input::Heard {
                peer,
                index,
                lane,
                from,
            } => self.core.handle_heard(peer, index, lane, from, now()),
            Input::TooBig { peer } => {
                if let Some(link) = self.links.get_mut(&peer) {
                    self.stale |= link.measure();
                }
            }
            Input::Look => {}
        }
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
                Order::Ports(ports) => {
                    self.ports = ports;
                    self.stale = true;
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
                endpoint,
            } => self.link_up(peer, outbound, endpoint),
            SessionEvent::Moved { peer, endpoint } => {
                if let Some(link) = self.links.remove(&peer) {
                    self.link_up(peer, link.outbound, endpoint);
                }
            }
            SessionEvent::Down { peer } => {
                self.links.remove(&peer);
                self.lanes.down(peer);
            }
            SessionEvent::Probe { .. }
            | SessionEvent::Silent { .. }
            | SessionEvent::Heard { .. } => return,
        }
        self.stale = true;
    }

    fn link_up(&mut self, peer: NodeId, outbound: Arc<Outbound>, endpoint: SocketAddr) {
        let (at, count) = (Instant::now(), outbound.lanes());
        let same_path = self
            .links
            .get(&peer)
            .is_some_and(|link| link.endpoint == endpoint);
        let lanes = if same_path {
            self.lanes.rekeyed(peer, count, at)
        } else {
            self.lanes.up(peer, count, at)
        };
        let mut link = Link {
            outbound,
            endpoint,
            lanes,
            datagram: 0,
            measured: at,
        };
        link.measure();
        self.links.insert(peer, link);
    }

    fn probe_lanes(&mut self) {
        for (peer, lane) in self.lanes.due(Instant::now()) {
            let Some(link) = self.links.get(&peer) else {
                continue;
            };
            let Some(socket) = self.workers.lanes.get(usize::from(lane)) else {
                continue;
            };
            if self
                .batch
                .seal_one(&link.outbound, lane, &[PROBE, lane], &[Kind::Control as u8])
                .is_err()
            {
                continue;
            }
            for call in self.batch.calls() {
                if let Err(error) = socket.send(link.endpoint, call, call.len(), 0) {
                    tracing::debug!(peer = %peer.short(), lane, %error, "a lane's probe was not sent");
                }
            }
        }
    }

    fn measure_paths(&mut self) {
        let due = Instant::now() - MTU_AGE;
        for link in self.links.values_mut().filter(|link| link.measured <= due) {
            self.stale |= link.measure();
        }
    }

    fn publish(&mut self) {
        let view = self.core.view();
        self.counters.retain(|id, _| view.member(*id).is_some());
        let routes = self.routes(&view);
        self.workers.routes.store(Arc::new(routes));
        self.shared.view.store(view);
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
        let peers = view.members.iter().map(|member| {
            let counters = Arc::clone(self.counters.entry(member.id).or_default());
            Peer {
                id: member.id,
                send: self.links.get(&member.id).map(Link::send),
                counters,
            }
        });
        let peers: Vec<Peer> = peers.collect();
        let inbound = self.inbound.iter().map(|(index, inbound)| {
            let peer = peers.iter().position(|peer| peer.id == inbound.peer());
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
        Routes {
            range: view.range,
            owners: owners.collect(),
            peers,
            inbound,
            ports: self.ports.clone(),
        }
    }
}

impl Link {
    /// Looks the path's MTU up; returns whether it changed.
    fn measure(&mut self) -> bool {
        self.measured = Instant::now();
        let ip = if self.endpoint.is_ipv4() { 20 } else { 40 };
        let datagram = match mtu_towards(self.endpoint) {
            Ok(mtu) => (mtu as usize)
                .saturating_sub(ip + UDP)
                .clamp(MIN_DATAGRAM, MAX_DATAGRAM),
            Err(_) => self.datagram.max(MIN_DATAGRAM),
        };
        let changed = datagram != self.datagram;
        self.datagram = datagram;
        changed
    }

    fn send(&self) -> Send {
        Send {
            to: self.endpoint,
            outbound: Arc::clone(&self.outbound),
            datagram: self.datagram,
            lanes: Arc::clone(&self.lanes),
        }
    }
}
