//! Out: reads packets from a TUN queue, finds their owner, seals and sends them.
//!
//! A super-frame goes at once, cut into slices, in one call. Small packets are gathered while more wait in the queue
//! and go together; a lone one leaves as soon as the queue is found empty. No timer is involved.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

use weave_linux::tun::{Tun, VirtioHeader, gso};
use weave_linux::udp::{UdpSocket, is_too_big};
use weave_model::{Drop, NodeId};

use super::cut::{Batch, MIN_DATAGRAM};
use super::inner::Inner;
use super::parked::{self, Parked};
use super::routes::{DEFAULT_NETWORK, NextHop, Peer, Routes};
use super::stats::Counters;
use super::{Input, csum, errors};
use crate::time::Start;
use crate::wire::{HEADER, MAX_RECORD, RECORD, Shape, Slice, TAG, push_packet};

/// How many packets are taken before what was gathered is sent and the other direction has its turn.
const BURST: usize = 64;
/// How many bytes, likewise.
const BURST_BYTES: usize = 256 << 10;
/// How often the control core is told, at most, that datagrams are too big: until it has looked, all of them may be.
const TELL_AGAIN: Duration = Duration::from_millis(100);

/// What the outgoing half of a lane works with.
#[derive(Debug)]
pub struct Egress {
    /// The lane, which is also the number of its TUN queue.
    pub lane: u8,
    /// The queue it reads.
    pub tun: Arc<Tun>,
    /// Sends on lane 0: bound to the node's port.
    pub main: Arc<UdpSocket>,
    /// Sends on this lane, from a port of its own; for lane 0 the same as `main`.
    pub own: Arc<UdpSocket>,
    /// Its counters.
    pub counters: Arc<Counters>,
    /// Tells the control core what it must know.
    pub inputs: SyncSender<Input>,
    /// The clock's start.
    pub start: Start,
}

/// Packets for one member that wait for the end of the burst.
#[derive(Debug)]
struct Gathered {
    place: usize,
    ecn: u8,
    body: Vec<u8>,
}

/// The outgoing half of a lane's thread.
#[derive(Debug)]
pub struct Outgoing {
    shell: Egress,
    packet: Vec<u8>,
    gathered: Vec<Gathered>,
    batch: Batch,
    told: Option<Instant>,
    parked: Parked,
}

impl Outgoing {
    /// Nothing gathered yet.
    pub fn new(shell: Egress) -> Self {
        Self {
            shell,
            packet: vec![0; 1 << 16],
            gathered: Vec::new(),
            batch: Batch::new(),
            told: None,
            parked: Parked::default(),
        }
    }

    /// Takes what waits in the TUN queue, at most a burst, and sends it. Returns whether there was anything.
    ///
    /// # Errors
    /// When the TUN queue fails for good.
    pub fn burst(&mut self, routes: &Routes) -> io::Result<bool> {
        if !self.parked.is_empty() {
            self.unpark(routes);
        }
        let mut packet = std::mem::take(&mut self.packet);
        let result = self.take_burst(routes, &mut packet);
        self.packet = packet;
        for place in 0..self.gathered.len() {
            self.flush(routes, place);
        }
        result
    }

    /// How long the thread may sleep at most: something may wait for a session.
    pub fn due(&self) -> Option<Duration> {
        (!self.parked.is_empty()).then_some(parked::LOOK)
    }

    /// Sends what waited for a session that is there now.
    fn unpark(&mut self, routes: &Routes) {
        let there = |peer| {
            let place = routes.place(peer);
            place.is_some_and(|place| routes.peers[place].send.is_some())
        };
        let (taken, late) = self.parked.take(Instant::now(), there);
        (0..late).for_each(|_| self.shell.counters.dropped(Drop::NoSession));
        for mut waiting in taken {
            let sent = self.packet(routes, waiting.header, &mut waiting.packet);
            if let Err(reason) = sent {
                self.shell.counters.dropped(reason);
            }
        }
    }

    /// Lets a packet wait for a session with its member, and asks for one; not where sessions are always there.
    fn park(
        &mut self,
        routes: &Routes,
        peer: NodeId,
        what: (VirtioHeader, &[u8]),
    ) -> Result<(), Drop> {
        if !routes.trees.are_sparse() {
            return Err(Drop::NoSession);
        }
        if !self.parked.has(peer) {
            // A full channel: the next packet after this one's patience asks again.
            let _ = self.shell.inputs.try_send(Input::Wanted { peer });
        }
        if self.parked.push(peer, what, Instant::now()) {
            Ok(())
        } else {
            Err(Drop::NoSession)
        }
    }

    fn take_burst(&mut self, routes: &Routes, packet: &mut [u8]) -> io::Result<bool> {
        let mut bytes = 0;
        for taken in 0..BURST {
            match self.shell.tun.read(packet) {
                Ok((header, len)) => {
                    self.shell.counters.packet(len);
                    if let Err(reason) = self.packet(routes, header, &mut packet[..len]) {
                        self.shell.counters.dropped(reason);
                    }
                    bytes += len;
                    if bytes > BURST_BYTES {
                        return Ok(true);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(taken > 0),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    fn packet(
        &mut self,
        routes: &Routes,
        header: VirtioHeader,
        packet: &mut [u8],
    ) -> Result<(), Drop> {
        let inner = Inner::parse(packet)?;
        if inner.destination.is_multicast() {
            // The kernel's own chatter on the device, such as MLD: containers' groups take another way.
            return Ok(());
        }
        let place = match routes.towards(inner.source, inner.destination) {
            Err(Drop::ForeignSource) if !header.needs_csum() => {
                let own = errors::speak_for_own(packet, &inner, routes)?;
                routes.towards(own, inner.destination)?
            }
            place => place?,
        };
        let peer = &routes.peers[place];
        let Some(send) = &peer.send else {
            return self.park(routes, peer.id, (header, packet));
        };
        let shape = match header.gso_type & !gso::ECN {
            gso::NONE => Shape::Plain,
            gso::TCP4 => Shape::Tcp4,
            gso::TCP6 => Shape::Tcp6,
            gso::UDP if inner.source.is_ipv4() => Shape::Udp4,
            gso::UDP => Shape::Udp6,
            _ => return Err(Drop::Malformed),
        };
        if shape != Shape::Plain {
            self.flush_peer(routes, place);
            let headers = inner.headers(packet).ok_or(Drop::Malformed)?;
            let slice = describe(shape, &header);
            return self.slices(
                peer,
                send,
                inner.ecn,
                (slice, &packet[..headers], &packet[headers..]),
            );
        }
        let csum_pending = settle_csum(packet, &header, &inner)?;
        let room = send.datagram(self.shell.lane);
        if packet.len() + RECORD + 1 + HEADER + TAG <= room && packet.len() <= MAX_RECORD {
            self.gather(routes, place, inner.ecn, packet, csum_pending);
            return Ok(());
        }
        self.flush_peer(routes, place);
        let slice = Slice {
            csum_pending,
            ..describe(shape, &header)
        };
        self.slices(peer, send, inner.ecn, (slice, &[], packet))
    }

    /// Adds a packet to those that wait for its member, after sending these if it does not fit beside them.
    fn gather(
        &mut self,
        routes: &Routes,
        place: usize,
        ecn: u8,
        packet: &[u8],
        csum_pending: bool,
    ) {
        let at = self
            .gathered
            .iter()
            .position(|gathered| gathered.place == place)
            .unwrap_or_else(|| {
                let free = self
                    .gathered
                    .iter()
                    .position(|gathered| gathered.body.is_empty());
                free.unwrap_or_else(|| {
                    self.gathered.push(Gathered {
                        place,
                        ecn,
                        body: Vec::with_capacity(1 << 11),
                    });
                    self.gathered.len() - 1
                })
            });
        let room = routes.peers[place]
            .send
            .as_ref()
            .map_or(MIN_DATAGRAM, |send| send.datagram(self.shell.lane))
            - (1 + HEADER + TAG);
        let waiting = &self.gathered[at];
        let fits = waiting.body.len() + RECORD + packet.len() <= room && waiting.ecn == ecn;
        if !waiting.body.is_empty() && !fits {
            self.flush(routes, at);
        }
        let waiting = &mut self.gathered[at];
        (waiting.place, waiting.ecn) = (place, ecn);
        push_packet(&mut waiting.body, packet, csum_pending, DEFAULT_NETWORK);
        routes.peers[place].counters.sent(packet.len());
    }

    /// Sends what waits for a member, so that a larger packet does not overtake it.
    fn flush_peer(&mut self, routes: &Routes, place: usize) {
        if let Some(at) = self
            .gathered
            .iter()
            .position(|gathered| gathered.place == place)
        {
            self.flush(routes, at);
        }
    }

    fn flush(&mut self, routes: &Routes, at: usize) {
        let gathered = &mut self.gathered[at];
        if gathered.body.is_empty() {
            return;
        }
        if let Some(send) = &routes.peers[gathered.place].send {
            let lane = send.lanes.choose(self.shell.lane);
            let sealed = self
                .batch
                .seal_packets(&send.outbound, lane, &gathered.body);
            let (peer, ecn) = (routes.peers[gathered.place].id, gathered.ecn);
            let batch = &mut self.batch;
            let sent = sealed.and_then(|()| self.shell.transmit(batch, send, lane, ecn));
            if let Err(reason) = sent {
                self.shell.counters.dropped(reason);
                self.tell(peer, reason);
            }
        }
        self.gathered[at].body.clear();
    }

    fn slices(
        &mut self,
        peer: &Peer,
        send: &NextHop,
        ecn: u8,
        what: (Slice, &[u8], &[u8]),
    ) -> Result<(), Drop> {
        let lane = send.lanes.choose(self.shell.lane);
        self.batch
            .seal_slices(&send.outbound, lane, send.lanes.datagram(lane), what)?;
        self.shell
            .transmit(&mut self.batch, send, lane, ecn)
            .inspect_err(|reason| self.tell(peer.id, *reason))?;
        peer.counters.sent(what.1.len() + what.2.len());
        Ok(())
    }

    /// Has the control core look at the path's MTU again, when that is why something was not sent.
    fn tell(&mut self, peer: NodeId, reason: Drop) {
        if reason == Drop::TooBig && is_due(&mut self.told, Instant::now()) {
            // A full channel: there will be more of these.
            let _ = self.shell.inputs.try_send(Input::TooBig { peer });
        }
    }
}

/// Whether it is time again, and then notes that.
fn is_due(last: &mut Option<Instant>, now: Instant) -> bool {
    let due = last.is_none_or(|last| now.saturating_duration_since(last) >= TELL_AGAIN);
    if due {
        *last = Some(now);
    }
    due
}

impl Egress {
    fn transmit(&self, batch: &mut Batch, send: &NextHop, lane: u8, ecn: u8) -> Result<(), Drop> {
        send.lanes.note_used(lane);
        let lane = match &send.via {
            None => lane,
            Some(via) => via.put_in(batch, lane)?,
        };
        let socket = if lane == 0 { &self.main } else { &self.own };
        transmit(socket, batch, send, ecn, &self.counters)?;
        send.outbound.note_sent(self.start.millis(Instant::now()));
        Ok(())
    }
}

/// Sends the datagrams of a batch, in as few calls as the kernel takes them.
///
/// # Errors
/// [`Drop::TooBig`] when they exceed the interface's MTU, [`Drop::Refused`] for any other refusal.
pub(super) fn transmit(
    socket: &UdpSocket,
    batch: &Batch,
    send: &NextHop,
    ecn: u8,
    counters: &Counters,
) -> Result<(), Drop> {
    for call in batch.calls() {
        let sent = socket.send(send.to, call, batch.segment(), ecn);
        let calls = sent.map_err(|error| {
            if is_too_big(&error) {
                Drop::TooBig
            } else {
                Drop::Refused
            }
        })?;
        counters.sent(call.len().div_ceil(batch.segment()), calls);
    }
    Ok(())
}

fn describe(shape: Shape, header: &VirtioHeader) -> Slice {
    Slice {
        offset: 0,
        total: 0,
        segment: if shape == Shape::Plain {
            0
        } else {
            header.gso_size
        },
        network: DEFAULT_NETWORK,
        headers: 0,
        index: 0,
        shape,
        csum_pending: true,
        cwr: header.gso_type & gso::ECN != 0,
        group: false,
    }
}

/// Says whether the transport checksum is left to the receiver's kernel; one of another kind is done here.
fn settle_csum(packet: &mut [u8], header: &VirtioHeader, inner: &Inner) -> Result<bool, Drop> {
    if !header.needs_csum() {
        return Ok(false);
    }
    let here = usize::from(header.csum_start) == inner.transport;
    if here && inner.csum_offset() == Some(header.csum_offset) && !inner.fragment {
        return Ok(true);
    }
    csum::settle(packet, header, inner)?;
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_became_small_does_not_drown_the_control_core() {
        let (start, mut last) = (Instant::now(), None);
        let told = (0..10_000_u64)
            .filter(|i| is_due(&mut last, start + Duration::from_micros(i * 100)))
            .count();
        assert_eq!(told, 10);
    }
}
