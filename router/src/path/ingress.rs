//! In: receives datagrams from a UDP socket, opens each to where it belongs and writes packets to a TUN queue.
//!
//! The kernel steers each lane to one socket, so a lane's window and incomplete packets belong to one thread. What is
//! here is the shell: the socket, the queue, the sessions, and who is told. What becomes of the slices that were opened
//! is decided in `reassembly`.

use std::io::{self, IoSlice};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use weave_linux::tun::Tun;
use weave_linux::udp::{Inbox, Received, UdpSocket};
use weave_model::{Drop, NodeId};

use super::deliver::{Delivery, Tap};
use super::group::GroupPorts;
use super::inner::Inner;
use super::join;
use super::reassembly::{Heard, Reassembly};
use super::relay::{self, Relay};
use super::routes::{Receive, Routes};
use super::spread::Spread;
use super::stats::Counters;
use super::{Door, Input};
use crate::session::LaneIn;
use crate::time::Start;
use crate::way::Way;
use crate::wire::{Envelope, HEADER, Header, Kind, Slice, TAG, Type};

/// "Congestion experienced" in the outer header (RFC 3168).
const CE: u8 = 3;
/// How many messages are taken in one call when each is a datagram, and when the kernel joins them: as much as a burst
/// of sends, so that the other direction has its turn.
pub const MOST_SINGLE: usize = 32;
const MOST_JOINED: usize = 4;

/// What the incoming half of a lane works with.
#[derive(Debug)]
pub struct Ingress {
    /// The socket it receives on.
    pub socket: Arc<UdpSocket>,
    /// Sends on lane 0 what is handed on to other members: bound to the node's port.
    pub main: Arc<UdpSocket>,
    /// Sends it on this lane, from a port of its own.
    pub own: Arc<UdpSocket>,
    /// This lane.
    pub lane: u8,
    /// What was handed on.
    pub relayed: Arc<Counters>,
    /// The queue it writes to.
    pub tun: Arc<Tun>,
    /// Where packets for a group go.
    pub group: Arc<GroupPorts>,
    /// Hands these on.
    pub spread: Spread,
    /// Its counters.
    pub counters: Arc<Counters>,
    /// Tells the control core what it must know.
    pub inputs: SyncSender<Input>,
    /// Where handshakes wait, of all lanes together.
    pub door: Door,
    /// The clock's start.
    pub start: Start,
    /// Whether the kernel takes packets of more than 65,535 bytes.
    pub big_tcp: bool,
    /// Whether it takes UDP packets that it is to cut.
    pub uso: bool,
}

impl Ingress {
    /// Returns whether the control core will hear of it.
    fn tell(&self, input: Input) -> bool {
        let sent = self.inputs.try_send(input).is_ok();
        if !sent {
            self.counters.dropped(Drop::QueueFull);
        }
        sent
    }

    fn delivery<'a>(&'a self, routes: &'a Routes) -> Delivery<'a, Self> {
        Delivery {
            tap: self,
            routes,
            counters: &self.counters,
            uso: self.uso,
        }
    }
}

impl Tap for Ingress {
    fn write(&self, pieces: &[IoSlice<'_>]) -> Result<(), Drop> {
        self.tun.write(pieces).map_err(|_| Drop::Refused)
    }

    fn write_group(
        &self,
        routes: &Routes,
        network: u16,
        inner: &Inner,
        packet: &[u8],
    ) -> Result<(), Drop> {
        self.group.deliver(routes, network, inner, packet, None)
    }

    fn hand_on_group(&self, routes: &Routes, root: usize, slice: &Slice, packet: &[u8]) {
        let root = routes.peers[root].id;
        self.spread.hand_on(routes, root, slice, packet);
    }
}

/// A signal, or an ICMP error that some earlier datagram brought back.
fn is_passing(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionRefused, HostUnreachable, Interrupted, NetworkUnreachable};
    matches!(
        error.kind(),
        Interrupted | ConnectionRefused | HostUnreachable | NetworkUnreachable
    )
}

/// The incoming half of a lane's thread.
#[derive(Debug)]
pub struct Incoming {
    shell: Ingress,
    most: usize,
    reassembly: Reassembly,
    relay: Relay,
    /// A datagram that came in an envelope, while it is opened in its turn.
    inside: Vec<u8>,
}

/// What all datagrams of one message have in common.
#[derive(Clone, Copy, Debug)]
struct Arrival {
    from: Way,
    heard: Heard,
    ecn: u8,
}

impl Incoming {
    /// Nothing received yet.
    pub fn new(shell: Ingress) -> Self {
        let longest = if shell.big_tcp {
            usize::MAX
        } else {
            join::MOST_SHORT
        };
        let sockets = (Arc::clone(&shell.main), Arc::clone(&shell.own));
        let relay = Relay::new(shell.lane, sockets, Arc::clone(&shell.relayed));
        Self {
            shell,
            most: MOST_SINGLE,
            reassembly: Reassembly::new(longest),
            relay,
            inside: Vec::new(),
        }
    }

    /// Takes the datagrams of one call and writes the packets in them. Returns whether there were any.
    ///
    /// # Errors
    /// When the socket fails for good.
    pub fn receive(&mut self, inbox: &mut Inbox, routes: &Routes) -> io::Result<bool> {
        match self.shell.socket.recv_many(inbox, self.most) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) if is_passing(&error) => return Ok(true),
            Err(error) => return Err(error),
        }
        self.most = MOST_SINGLE;
        let now = Instant::now();
        for (bytes, got) in inbox.messages() {
            if got.stride < got.len {
                self.most = MOST_JOINED;
            }
            self.batch(routes, bytes, &got, now);
        }
        self.reassembly.flush(&self.shell.delivery(routes));
        self.relay.flush(routes);
        Ok(true)
    }

    /// When an incomplete packet will have waited enough.
    pub fn due(&self) -> Option<Instant> {
        self.reassembly.poll_timeout()
    }

    /// Delivers of the incomplete packets whose time is over what there is.
    pub fn expire(&mut self, routes: &Routes, now: Instant) {
        let to = self.shell.delivery(routes);
        self.reassembly.handle_timeout(now, &to);
    }

    fn batch(&mut self, routes: &Routes, bytes: &[u8], got: &Received, now: Instant) {
        let heard = Heard {
            now,
            congested: got.ecn == CE,
        };
        let arrival = Arrival {
            from: got.from.into(),
            heard,
            ecn: got.ecn,
        };
        self.shell.counters.batch(got.len.div_ceil(got.stride));
        let mut known: Option<&Receive> = None;
        for datagram in bytes.chunks(got.stride) {
            match Header::parse(datagram) {
                Ok(header) if header.kind == Type::Data => {
                    let last = known.filter(|known| known.inbound.index() == header.receiver);
                    let receive = last.or_else(|| routes.inbound.get(&header.receiver));
                    match self.data(routes, datagram, header, receive, arrival) {
                        Ok(receive) => known = Some(receive),
                        Err(reason) => self.shell.counters.dropped(reason),
                    }
                }
                Ok(_) => match self.shell.door.admit(datagram, got.from) {
                    Ok(stranger) => {
                        self.shell.tell(Input::Handshake(stranger));
                    }
                    Err(reason) => self.shell.counters.dropped(reason),
                },
                Err(reason) => self.shell.counters.dropped(reason),
            }
        }
        if let Some(receive) = known {
            receive.inbound.note_heard(self.shell.start.millis(now));
        }
    }

    /// Opens one datagram and goes on with what is in it.
    fn data<'r>(
        &mut self,
        routes: &Routes,
        datagram: &[u8],
        header: Header,
        receive: Option<&'r Receive>,
        arrival: Arrival,
    ) -> Result<&'r Receive, Drop> {
        let receive = receive.ok_or(Drop::UnknownSession)?;
        let lane = receive.inbound.lane(header.lane).ok_or(Drop::UnknownLane)?;
        let len = self.open(lane, datagram, header, receive, arrival)?;
        let Arrival { from, heard, .. } = arrival;
        let content = self.reassembly.content(len);
        let to = self.shell.delivery(routes);
        match Kind::of(content).ok_or(Drop::UnknownKind)? {
            Kind::Control => {
                let mut lane = lane.lock().unwrap_or_else(PoisonError::into_inner);
                if !lane.may_tell(heard.now) {
                    return Err(Drop::RateLimited);
                }
                self.shell.tell(Input::Control {
                    peer: receive.inbound.peer(),
                    lane: header.lane,
                    largest: lane.take_largest(),
                    body: content[..len - 1].to_vec(),
                    from,
                });
            }
            Kind::Packets => {
                let body = len - 1;
                self.reassembly.handle_packets(receive, body, heard, &to);
            }
            Kind::Slice => self.reassembly.handle_slice(header, len, heard, &to)?,
            Kind::Envelope => self.envelope(routes, receive, header.lane, len, arrival)?,
        }
        Ok(receive)
    }

    /// Goes on with an envelope: what is in it is for this node, or for another one.
    fn envelope(
        &mut self,
        routes: &Routes,
        receive: &Receive,
        lane: u8,
        len: usize,
        arrival: Arrival,
    ) -> Result<(), Drop> {
        let (envelope, datagram) = Envelope::parse(self.reassembly.content(len))?;
        let relay = receive.inbound.peer();
        if !arrival.from.is_direct() {
            return Err(Drop::TooManyHops);
        }
        if envelope.to == routes.me {
            self.inside.clear();
            self.inside.extend_from_slice(datagram);
            let inside = std::mem::take(&mut self.inside);
            let result = self.inside(routes, (relay, &envelope), &inside, arrival);
            self.inside = inside;
            return result;
        }
        let place = relay::next_hop(routes, relay, &envelope)?;
        let lane = receive.inbound.lane(lane).ok_or(Drop::UnknownLane)?;
        let may = || {
            let mut lane = lane.lock().unwrap_or_else(PoisonError::into_inner);
            lane.may_relay(arrival.heard.now)
        };
        if !may() {
            return Err(Drop::RelayLimit);
        }
        let handed = (datagram, arrival.ecn);
        self.relay.hand_on(routes, place, envelope, handed)
    }

    /// Takes a datagram that came through a relay, as if it had come from its sender.
    fn inside(
        &mut self,
        routes: &Routes,
        (relay, envelope): (NodeId, &Envelope),
        datagram: &[u8],
        arrival: Arrival,
    ) -> Result<(), Drop> {
        let end = routes.member(&envelope.from).map(|at| routes.peers[at].id);
        let end = end.filter(|end| *end != relay);
        let end = end.ok_or(Drop::UnknownOrigin)?;
        let from = Way::Relayed { relay, end };
        let header = Header::parse(datagram)?;
        match header.kind {
            Type::Data => {
                let receive = routes.inbound.get(&header.receiver);
                let receive = receive.filter(|receive| receive.inbound.peer() == end);
                let arrival = Arrival { from, ..arrival };
                let receive = self.data(routes, datagram, header, receive, arrival)?;
                let heard = self.shell.start.millis(arrival.heard.now);
                receive.inbound.note_heard(heard);
            }
            Type::Initiation | Type::Response | Type::Cookie => {
                let stranger = self.shell.door.admit(datagram, from)?;
                self.shell.tell(Input::Handshake(stranger));
            }
            _ => return Err(Drop::UnknownOrigin),
        }
        Ok(())
    }

    /// Opens a datagram into the assembly and returns the length of its content.
    fn open(
        &mut self,
        lane: &Mutex<LaneIn>,
        datagram: &[u8],
        header: Header,
        receive: &Receive,
        Arrival { from, heard, .. }: Arrival,
    ) -> Result<usize, Drop> {
        let (head, sealed) = datagram.split_at(HEADER);
        let len = sealed.len().checked_sub(TAG).ok_or(Drop::TooShort)?;
        let mut lane = lane.lock().unwrap_or_else(PoisonError::into_inner);
        let newest = lane.open_into(header.counter, head, sealed, self.reassembly.room(len))?;
        lane.note_size(datagram.len());
        if newest && lane.note_from(from) {
            let told = lane.may_tell(heard.now)
                && self.shell.tell(Input::Heard {
                    peer: receive.inbound.peer(),
                    index: header.receiver,
                    lane: header.lane,
                    from,
                });
            if !told {
                lane.forget_from();
            }
        }
        Ok(len)
    }
}
