//! In: receives datagrams from a UDP socket, opens them where they lie and writes packets to a TUN queue.
//!
//! The kernel steers each lane to one socket, so a lane's window and incomplete packets belong to one thread.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use weave_linux::tun::Tun;
use weave_linux::udp::{Received, UdpSocket};
use weave_model::Drop;

use super::frames::{Frame, FrameId, Frames, Run};
use super::group::GroupPorts;
use super::header::{self, Template};
use super::inner::Inner;
use super::routes::{Receive, Routes};
use super::stats::Counters;
use super::{Door, Input};
use crate::session::LaneIn;
use crate::time::Start;
use crate::wire::{HEADER, Header, Kind, Shape, Slice, Type, next_packet};

/// "Congestion experienced" in the outer header (RFC 3168).
const CE: u8 = 3;

/// What the incoming half of a lane works with.
#[derive(Debug)]
pub struct Ingress {
    /// The socket it receives on.
    pub socket: Arc<UdpSocket>,
    /// The queue it writes to.
    pub tun: Arc<Tun>,
    /// Where packets for a group go.
    pub group: Arc<GroupPorts>,
    /// Its counters.
    pub counters: Arc<Counters>,
    /// Tells the control core what it must know.
    pub inputs: SyncSender<Input>,
    /// Where handshakes wait, of all lanes together.
    pub door: Door,
    /// The clock's start.
    pub start: Start,
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
    buffer: Vec<u8>,
    run: Run,
    frames: Frames,
}

impl Incoming {
    /// Nothing received yet.
    pub fn new(shell: Ingress) -> Self {
        Self {
            shell,
            buffer: vec![0; 1 << 16],
            run: Run::default(),
            frames: Frames::default(),
        }
    }

    /// Takes the datagrams of one call and writes the packets in them. Returns whether there were any.
    ///
    /// # Errors
    /// When the socket fails for good.
    pub fn receive(&mut self, routes: &Routes) -> io::Result<bool> {
        let mut buffer = std::mem::take(&mut self.buffer);
        let result = self.shell.socket.recv(&mut buffer);
        if let Ok(got) = &result {
            self.batch(routes, &mut buffer[..got.len], got);
        }
        self.buffer = buffer;
        match result {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) if is_passing(&error) => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// When an incomplete packet will have waited enough.
    pub fn due(&self) -> Option<Instant> {
        self.frames.due()
    }

    /// Delivers of the incomplete packets whose time is over what there is.
    pub fn expire(&mut self, routes: &Routes, now: Instant) {
        self.frames.expire(now);
        self.deliver_ready(routes);
    }

    fn batch(&mut self, routes: &Routes, buffer: &mut [u8], got: &Received) {
        let now = Instant::now();
        self.shell.counters.call(got.len.div_ceil(got.stride));
        let mut heard: Option<&Receive> = None;
        for start in (0..got.len).step_by(got.stride) {
            let datagram = start..(start + got.stride).min(got.len);
            match Header::parse(&buffer[datagram.clone()]) {
                Ok(header) if header.kind == Type::Data => {
                    match self.data(routes, buffer, datagram, header, got) {
                        Ok(receive) => heard = Some(receive),
                        Err(reason) => self.shell.counters.dropped(reason),
                    }
                }
                Ok(_) => match self.shell.door.admit(&buffer[datagram], got.from) {
                    Ok(stranger) => {
                        self.shell.tell(Input::Handshake(stranger));
                    }
                    Err(reason) => self.shell.counters.dropped(reason),
                },
                Err(reason) => self.shell.counters.dropped(reason),
            }
        }
        self.finish_run(routes, buffer, got.ecn == CE, now);
        self.frames.expire(now);
        self.deliver_ready(routes);
        if let Some(receive) = heard {
            receive.inbound.note_heard(self.shell.start.millis(now));
        }
    }

    /// Opens one datagram and goes on with what is in it.
    fn data<'r>(
        &mut self,
        routes: &'r Routes,
        buffer: &mut [u8],
        datagram: Range<usize>,
        header: Header,
        got: &Received,
    ) -> Result<&'r Receive, Drop> {
        let receive = routes
            .inbound
            .get(&header.receiver)
            .ok_or(Drop::UnknownSession)?;
        let lane = receive.inbound.lane(header.lane).ok_or(Drop::UnknownLane)?;
        let at = datagram.start + HEADER;
        let (head, sealed) = buffer[datagram].split_at_mut(HEADER);
        let content = self.open(lane, head, sealed, header, got.from, receive)?;
        let ce = got.ecn == CE;
        match Kind::of(&buffer[at..at + content]).ok_or(Drop::UnknownKind)? {
            Kind::Control => {
                let mut lane = lane.lock().unwrap_or_else(PoisonError::into_inner);
                if !lane.may_tell(Instant::now()) {
                    return Err(Drop::RateLimited);
                }
                let body = buffer[at..at + content - 1].to_vec();
                let (peer, lane) = (receive.inbound.peer(), header.lane);
                self.shell.tell(Input::Control {
                    peer,
                    lane,
                    body,
                    from: got.from,
                });
            }
            Kind::Packets => {
                self.finish_run(routes, buffer, ce, Instant::now());
                self.packets(routes, receive, &mut buffer[at..at + content - 1], ce);
            }
            Kind::Slice => {
                let (slice, payload) = Slice::parse(&buffer[at..at + content])?;
                let first = header
                    .counter
                    .checked_sub(slice.index.into())
                    .ok_or(Drop::Malformed)?;
                let id = FrameId {
                    session: header.receiver,
                    lane: header.lane,
                    first,
                };
                if self.run.continues(id, &slice) {
                    self.run.push(at, payload);
                } else {
                    self.finish_run(routes, buffer, ce, Instant::now());
                    self.run.start(id, slice, at, payload);
                }
            }
        }
        Ok(receive)
    }

    /// Opens in place and returns the length of the content.
    fn open(
        &self,
        lane: &Mutex<LaneIn>,
        head: &[u8],
        sealed: &mut [u8],
        header: Header,
        from: SocketAddr,
        receive: &Receive,
    ) -> Result<usize, Drop> {
        let mut lane = lane.lock().unwrap_or_else(PoisonError::into_inner);
        let (content, newest) = lane.open(header.counter, head, sealed)?;
        let content = content.len();
        if newest && lane.note_from(from) {
            let told = lane.may_tell(Instant::now());
            let told = told
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
        Ok(content)
    }

    fn packets(&self, routes: &Routes, receive: &Receive, body: &mut [u8], ce: bool) {
        let mut at = 0;
        while let Some(record) = next_packet(body, at) {
            let result = record.and_then(|record| {
                at = record.end;
                self.packet(
                    routes,
                    receive,
                    &mut body[record.start..record.end],
                    record.csum_pending,
                    ce,
                )
            });
            if let Err(reason) = result {
                self.shell.counters.dropped(reason);
                if reason == Drop::TooShort {
                    return;
                }
            }
        }
    }

    fn packet(
        &self,
        routes: &Routes,
        receive: &Receive,
        packet: &mut [u8],
        csum_pending: bool,
        ce: bool,
    ) -> Result<(), Drop> {
        let inner = Inner::parse(packet)?;
        routes.admit(receive.peer, inner.source, inner.destination)?;
        if ce {
            header::mark_congestion(packet)?;
        }
        let virtio = header::plain(packet, &inner, csum_pending)?.to_bytes();
        self.write(
            &[IoSlice::new(&virtio), IoSlice::new(packet)],
            receive,
            packet.len(),
        )
    }

    /// Delivers the run if it is the whole packet, else keeps it aside.
    fn finish_run(&mut self, routes: &Routes, buffer: &mut [u8], ce: bool, now: Instant) {
        let Some((id, slice)) = self.run.packet() else {
            return;
        };
        let slice = *slice;
        let result = if self.run.is_whole() && !self.frames.waits(id) {
            self.frames.completed(id);
            self.deliver_ready(routes);
            self.deliver_run(routes, id, &slice, buffer, ce)
        } else {
            self.frames.add(&self.run, buffer, ce, now)
        };
        self.run.clear();
        if let Err(reason) = result {
            self.shell.counters.dropped(reason);
        }
        self.deliver_ready(routes);
    }

    /// Writes a whole packet straight from the receive buffer.
    fn deliver_run(
        &self,
        routes: &Routes,
        id: FrameId,
        slice: &Slice,
        buffer: &mut [u8],
        ce: bool,
    ) -> Result<(), Drop> {
        let receive = routes
            .inbound
            .get(&id.session)
            .ok_or(Drop::UnknownSession)?;
        if slice.shape == Shape::Plain {
            let packet: Vec<u8> = self
                .run
                .parts()
                .iter()
                .flat_map(|part| &buffer[part.place.clone()])
                .copied()
                .collect();
            return self.plain(routes, receive, slice, packet, ce);
        }
        if ce {
            header::mark_congestion(&mut buffer[self.run.headers()])?;
        }
        let template = Template::new(slice, &buffer[self.run.headers()])?;
        routes.admit(
            receive.peer,
            template.inner.source,
            template.inner.destination,
        )?;
        let built = template.build(0..usize::from(slice.total));
        let virtio = built.virtio.to_bytes();
        let mut pieces = Vec::with_capacity(self.run.parts().len() + 2);
        pieces.push(IoSlice::new(&virtio));
        pieces.push(IoSlice::new(built.headers()));
        pieces.extend(
            self.run
                .parts()
                .iter()
                .map(|part| IoSlice::new(&buffer[part.place.clone()])),
        );
        self.write(
            &pieces,
            receive,
            built.headers().len() + usize::from(slice.total),
        )
    }

    /// Delivers a packet that was sent as it is: to a container, or to all of a network.
    fn plain(
        &self,
        routes: &Routes,
        receive: &Receive,
        slice: &Slice,
        mut packet: Vec<u8>,
        ce: bool,
    ) -> Result<(), Drop> {
        if !slice.group {
            return self.packet(routes, receive, &mut packet, slice.csum_pending, ce);
        }
        let inner = Inner::parse(&packet)?;
        routes.admit_source(receive.peer, inner.source)?;
        receive.counters.received(packet.len());
        self.shell.counters.packet(packet.len());
        self.shell
            .group
            .deliver(routes, slice.network, &inner, &packet, None)
    }

    /// Delivers the packets that are whole, or whose time is over: each run of bytes that arrived.
    fn deliver_ready(&mut self, routes: &Routes) {
        if !self.frames.has_ready() {
            return;
        }
        for frame in self.frames.take_ready() {
            if let Err(reason) = self.frame(routes, &frame) {
                self.shell.counters.dropped(reason);
            }
            self.frames.recycle(frame);
        }
    }

    fn frame(&self, routes: &Routes, frame: &Frame) -> Result<(), Drop> {
        let ce = frame.congested();
        let receive = routes
            .inbound
            .get(&frame.id().session)
            .ok_or(Drop::UnknownSession)?;
        if !frame.is_whole() {
            self.shell.counters.dropped(Drop::Incomplete);
        }
        if frame.slice().shape == Shape::Plain {
            if frame.deliverable() {
                return self.plain(routes, receive, frame.slice(), frame.payload().to_vec(), ce);
            }
            return Ok(());
        }
        let mut headers = frame.headers().to_vec();
        if ce {
            header::mark_congestion(&mut headers)?;
        }
        let template = Template::new(frame.slice(), &headers)?;
        routes.admit(
            receive.peer,
            template.inner.source,
            template.inner.destination,
        )?;
        for run in frame.have() {
            let run = template.usable(run.clone());
            if run.is_empty() {
                continue;
            }
            let built = template.build(run.clone());
            let virtio = built.virtio.to_bytes();
            let payload = &frame.payload()[run];
            let pieces = [
                IoSlice::new(&virtio),
                IoSlice::new(built.headers()),
                IoSlice::new(payload),
            ];
            self.write(&pieces, receive, built.headers().len() + payload.len())?;
        }
        Ok(())
    }

    fn write(&self, pieces: &[IoSlice<'_>], receive: &Receive, bytes: usize) -> Result<(), Drop> {
        self.shell.tun.write(pieces).map_err(|_| Drop::Refused)?;
        self.shell.counters.packet(bytes);
        receive.counters.received(bytes);
        Ok(())
    }
}
