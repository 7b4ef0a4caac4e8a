//! In: receives datagrams from a UDP socket, opens each to where it belongs and writes packets to a TUN queue.
//!
//! The kernel steers each lane to one socket, so a lane's window and incomplete packets belong to one thread. Slices that
//! come in order make their packet by being opened one behind the other (`assembly`); others wait aside (`frames`).

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use weave_linux::tun::Tun;
use weave_linux::udp::{Inbox, Received, UdpSocket};
use weave_model::Drop;

use super::assembly::Assembly;
use super::frames::{FrameId, Frames, Piece};
use super::group::GroupPorts;
use super::join::{self, Joined};
use super::routes::{Receive, Routes};
use super::stats::Counters;
use super::{Door, Input};
use crate::session::LaneIn;
use crate::time::Start;
use crate::wire::{HEADER, Header, Kind, Shape, Slice, TAG, Type};

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
    /// Whether the kernel takes packets of more than 65,535 bytes.
    pub big_tcp: bool,
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
    most: usize,
    assembly: Assembly,
    frames: Frames,
}

/// What all datagrams of one message have in common.
#[derive(Clone, Copy, Debug)]
struct Arrival {
    from: SocketAddr,
    ce: bool,
    now: Instant,
}

impl Incoming {
    /// Nothing received yet.
    pub fn new(shell: Ingress) -> Self {
        Self {
            shell,
            most: MOST_SINGLE,
            assembly: Assembly::default(),
            frames: Frames::default(),
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
        self.flush();
        Ok(true)
    }

    /// Writes what is whole and could have been joined by more.
    fn flush(&mut self) {
        let shell = &self.shell;
        let write = |packet: &[u8]| shell.write(&[IoSlice::new(packet)]);
        if let Some(Err(reason)) = self.assembly.write(write) {
            self.shell.counters.dropped(reason);
        }
    }

    /// When an incomplete packet will have waited enough.
    pub fn due(&self) -> Option<Instant> {
        let (open, aside) = (self.assembly.due(), self.frames.due());
        open.into_iter().chain(aside).min()
    }

    /// Delivers of the incomplete packets whose time is over what there is.
    pub fn expire(&mut self, routes: &Routes, now: Instant) {
        if self.assembly.due().is_some_and(|due| due <= now) {
            self.set_aside();
        }
        self.frames.expire(now);
        self.deliver_ready(routes);
    }

    fn batch(&mut self, routes: &Routes, bytes: &[u8], got: &Received, now: Instant) {
        let arrival = Arrival {
            from: got.from,
            ce: got.ecn == CE,
            now,
        };
        self.shell.counters.call(got.len.div_ceil(got.stride));
        let mut heard: Option<&Receive> = None;
        for datagram in bytes.chunks(got.stride) {
            match Header::parse(datagram) {
                Ok(header) if header.kind == Type::Data => {
                    let known = heard.filter(|known| known.inbound.index() == header.receiver);
                    let receive = known.or_else(|| routes.inbound.get(&header.receiver));
                    match self.data(routes, datagram, header, receive, arrival) {
                        Ok(receive) => heard = Some(receive),
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
        if let Some(receive) = heard {
            receive
                .inbound
                .note_heard(self.shell.start.millis(arrival.now));
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
        let content = self.assembly.content(len);
        match Kind::of(content).ok_or(Drop::UnknownKind)? {
            Kind::Control => {
                let mut lane = lane.lock().unwrap_or_else(PoisonError::into_inner);
                if !lane.may_tell(arrival.now) {
                    return Err(Drop::RateLimited);
                }
                let body = content[..len - 1].to_vec();
                let (peer, lane) = (receive.inbound.peer(), header.lane);
                self.shell.tell(Input::Control {
                    peer,
                    lane,
                    body,
                    from: arrival.from,
                });
            }
            Kind::Packets => {
                self.flush();
                let body = &mut self.assembly.content(len)[..len - 1];
                self.shell.packets(routes, receive, body, arrival.ce);
            }
            Kind::Slice => self.slice(routes, header, len, arrival)?,
        }
        Ok(receive)
    }

    /// Opens a datagram into the assembly and returns the length of its content.
    fn open(
        &mut self,
        lane: &Mutex<LaneIn>,
        datagram: &[u8],
        header: Header,
        receive: &Receive,
        Arrival { from, now, .. }: Arrival,
    ) -> Result<usize, Drop> {
        let (head, sealed) = datagram.split_at(HEADER);
        let len = sealed.len().checked_sub(TAG).ok_or(Drop::TooShort)?;
        let mut lane = lane.lock().unwrap_or_else(PoisonError::into_inner);
        let newest = lane.open_into(header.counter, head, sealed, self.assembly.room(len))?;
        if newest && lane.note_from(from) {
            let told = lane.may_tell(now)
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

    /// Goes on with a slice that was just opened.
    fn slice(
        &mut self,
        routes: &Routes,
        header: Header,
        len: usize,
        arrival: Arrival,
    ) -> Result<(), Drop> {
        let (slice, payload) = Slice::parse(self.assembly.content(len))?;
        let first = header.counter.checked_sub(slice.index.into());
        let id = FrameId {
            session: header.receiver,
            lane: header.lane,
            first: first.ok_or(Drop::Malformed)?,
        };
        let Arrival { ce, now, .. } = arrival;
        // A packet is in one place at a time: what has begun aside is finished aside.
        let continues = self.assembly.continues(id, &slice);
        if !continues && !self.frames.waits(id) {
            self.set_aside();
        }
        if self.frames.waits(id) {
            let content = self.assembly.content(len);
            self.frames.add(&Piece {
                id,
                slice,
                headers: &content[payload..][..slice.headers.into()],
                offset: slice.offset.into(),
                payload: &content[..payload],
                congested: ce,
                heard: now,
            })?;
        } else if continues {
            self.assembly.extend(payload, ce, now);
            self.complete(routes)?;
        } else {
            self.assembly.start(id, slice, payload, ce, now);
            self.complete(routes)?;
        }
        self.deliver_ready(routes);
        Ok(())
    }

    /// Copies what there is of the open packet aside, for slices that come out of order.
    fn set_aside(&mut self) {
        if let Some(piece) = self.assembly.piece()
            && let Err(reason) = self.frames.add(&piece)
        {
            self.shell.counters.dropped(reason);
        }
        self.assembly.forget();
    }

    /// If the open packet is whole, has it written with those before it, or alone; after what is older than it.
    fn complete(&mut self, routes: &Routes) -> Result<(), Drop> {
        let Some(id) = self.assembly.whole().map(|open| open.id) else {
            return Ok(());
        };
        self.frames.completed(id);
        self.deliver_ready(routes);
        let result = self.accept(routes);
        if result.is_err() {
            self.assembly.forget();
        }
        result
    }

    fn accept(&mut self, routes: &Routes) -> Result<(), Drop> {
        let mut open = self.assembly.whole().cloned().ok_or(Drop::Incomplete)?;
        let receive = routes
            .inbound
            .get(&open.id.session)
            .ok_or(Drop::UnknownSession)?;
        let (slice, ce) = (open.slice, open.congested);
        if slice.shape == Shape::Plain {
            self.flush();
            let packet = self.assembly.payload_mut();
            let result = self.shell.plain(routes, receive, &slice, packet, ce);
            self.assembly.forget();
            return result;
        }
        let template = self
            .shell
            .template(routes, receive, (&slice, open.headers_mut()), ce)?;
        let next = Joined::new(&template, &slice);
        self.shell.count(receive, next.bytes());
        let most = if self.shell.big_tcp {
            usize::MAX
        } else {
            join::MOST_SHORT
        };
        if !self.assembly.takes(&next, most) {
            self.flush();
        }
        self.assembly.join(next);
        Ok(())
    }

    /// Delivers the packets set aside that are whole, or whose time is over: each run of bytes that arrived.
    fn deliver_ready(&mut self, routes: &Routes) {
        if !self.frames.has_ready() {
            return;
        }
        self.flush();
        for frame in self.frames.take_ready() {
            if let Err(reason) = self.shell.frame(routes, &frame) {
                self.shell.counters.dropped(reason);
            }
            self.frames.recycle(frame);
        }
    }
}
