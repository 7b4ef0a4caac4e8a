//! From opened slices to packets: what is put together where it lies, what waits aside, and what goes out when.
//!
//! Slices that come in order make their packet by being opened one behind the other (`assembly`); the rest wait aside
//! (`frames`). A packet that is whole goes out at once, after what there is of the older ones of its lane, together with
//! those of its stream that wait to be written. What is not whole goes out when its time is over, as one packet for each
//! run of bytes that arrived. So for every slice that arrived its bytes come out once, whatever became of the others; of
//! UDP and of packets that cannot be cut, as far as they make whole datagrams.
//!
//! Out of two packets of a lane the older one goes first whenever both could go. It does not hold up a newer one whose
//! time is over: a packet of which slices still come has itself been overtaken on the way, and a network without us
//! would have shown that too.

#![deny(clippy::disallowed_methods)]

use std::io::IoSlice;
use std::time::Instant;

use weave_model::Drop;

use super::assembly::{Assembly, Wrote};
use super::deliver::{Delivery, Tap};
use super::frames::{FrameId, Frames, Piece};
use super::join::{self, Joined};
use super::routes::Receive;
use crate::wire::{Header, Shape, Slice};

/// How many packets are joined to short ones only after the kernel refused a long one: it was out of memory in large
/// pieces, which passes. At 1 Gbit/s some five seconds.
const SHORT_FOR: u32 = 10_000;

/// How a datagram arrived.
#[derive(Clone, Copy, Debug)]
pub struct Heard {
    /// When.
    pub now: Instant,
    /// Its outer header said "congestion experienced".
    pub congested: bool,
}

/// The incomplete packets of one thread, and whole ones that could be joined by more.
///
/// A datagram is opened into [`Reassembly::room`], and then one of the `handle_` functions goes on with its content. When
/// no more datagrams wait, [`Reassembly::flush`] writes what is whole.
#[derive(Debug)]
pub struct Reassembly {
    assembly: Assembly,
    frames: Frames,
    most: usize,
    /// How many more packets are joined to short ones only.
    short: u32,
}

impl Reassembly {
    /// Nothing received yet. `most` bytes make the longest TCP packet that the kernel takes.
    pub fn new(most: usize) -> Self {
        Self {
            assembly: Assembly::default(),
            frames: Frames::default(),
            most,
            short: 0,
        }
    }

    /// The room that a datagram with `len` bytes of content, at most 65,536, is to be opened into.
    pub fn room(&mut self, len: usize) -> &mut [u8] {
        self.assembly.room(len)
    }

    /// What was opened into the last [`Reassembly::room`].
    pub fn content(&mut self, len: usize) -> &mut [u8] {
        self.assembly.content(len)
    }

    /// When an incomplete packet will have waited enough.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let (open, aside) = (self.assembly.due(), self.frames.due());
        open.into_iter().chain(aside).min()
    }

    /// Delivers of the incomplete packets whose time is over what there is.
    pub fn handle_timeout<T: Tap>(&mut self, now: Instant, to: &Delivery<'_, T>) {
        if self.assembly.due().is_some_and(|due| due <= now) {
            self.set_aside(to);
        }
        self.frames.expire(now);
        self.deliver_ready(to);
    }

    /// Writes what is whole and could have been joined by more.
    pub fn flush<T: Tap>(&mut self, to: &Delivery<'_, T>) {
        let write = |packet: &[u8]| to.tap.write(&[IoSlice::new(packet)]);
        match self.assembly.write(write) {
            Ok(Wrote::AsOne) => {}
            Ok(Wrote::Shorter) => self.short = SHORT_FOR,
            Err(reason) => to.counters.dropped(reason),
        }
    }

    /// Goes on with whole packets: the first `len` bytes of the content just opened.
    pub fn handle_packets<T: Tap>(
        &mut self,
        receive: &Receive,
        len: usize,
        heard: Heard,
        to: &Delivery<'_, T>,
    ) {
        self.flush(to);
        let body = self.assembly.content(len);
        to.packets(receive, body, heard.congested);
    }

    /// Goes on with a slice: the `len` bytes of content just opened, of the datagram with this header.
    ///
    /// # Errors
    /// Why the slice, or the packet that it made whole, is not delivered.
    pub fn handle_slice<T: Tap>(
        &mut self,
        header: Header,
        len: usize,
        heard: Heard,
        to: &Delivery<'_, T>,
    ) -> Result<(), Drop> {
        let (slice, payload) = Slice::parse(self.assembly.content(len))?;
        let first = header.counter.checked_sub(slice.index.into());
        let id = FrameId {
            session: header.receiver,
            lane: header.lane,
            first: first.ok_or(Drop::Malformed)?,
        };
        let result = if self.assembly.continues(id, &slice) {
            self.assembly.extend(payload, heard.congested, heard.now);
            self.complete(to)
        } else {
            self.out_of_order(id, slice, payload, heard, to)
        };
        self.deliver_ready(to);
        result
    }

    /// Goes on with a slice that is not the next one of the open packet. What there is of its packet is all in one place:
    /// if that is open, it goes aside first.
    fn out_of_order<T: Tap>(
        &mut self,
        id: FrameId,
        slice: Slice,
        payload: usize,
        Heard { now, congested }: Heard,
        to: &Delivery<'_, T>,
    ) -> Result<(), Drop> {
        if !self.frames.waits(id) {
            self.set_aside(to);
        }
        if !self.frames.waits(id) {
            self.assembly.start(id, slice, payload, congested, now);
            return self.complete(to);
        }
        let headers = usize::from(slice.headers);
        let content = self.assembly.content(payload + headers);
        let result = self.frames.add(&Piece {
            id,
            slice,
            headers: &content[payload..],
            offset: slice.offset.into(),
            payload: &content[..payload],
            congested,
            since: now,
            heard: now,
        });
        if self.frames.has_ready() && self.assembly.is_older_than(id) {
            self.set_aside(to);
            self.frames.completed(id);
        }
        result
    }

    /// Copies what there is of the open packet aside, for slices that come out of order.
    fn set_aside<T: Tap>(&mut self, to: &Delivery<'_, T>) {
        if let Some(piece) = self.assembly.piece()
            && let Err(reason) = self.frames.add(&piece)
        {
            to.counters.dropped(reason);
        }
        self.assembly.forget();
    }

    /// If the open packet is whole, has it written with those before it, or alone; after what is older than it.
    fn complete<T: Tap>(&mut self, to: &Delivery<'_, T>) -> Result<(), Drop> {
        let Some(id) = self.assembly.whole().map(|open| open.id) else {
            return Ok(());
        };
        self.frames.completed(id);
        self.deliver_ready(to);
        let result = self.accept(to);
        if result.is_err() {
            self.assembly.forget();
        }
        result
    }

    fn accept<T: Tap>(&mut self, to: &Delivery<'_, T>) -> Result<(), Drop> {
        let mut open = self.assembly.whole().cloned().ok_or(Drop::Incomplete)?;
        let receive = to.receive(open.id.session)?;
        let (slice, ce) = (open.slice, open.congested);
        if slice.shape == Shape::Plain {
            self.flush(to);
            let packet = self.assembly.payload_mut();
            let result = to.plain(receive, &slice, packet, ce);
            self.assembly.forget();
            return result;
        }
        let template = to.template(receive, (&slice, open.headers_mut()), ce)?;
        let next = Joined::new(&template, &slice);
        to.count(receive, next.bytes());
        let most = if self.short == 0 {
            self.most
        } else {
            self.most.min(join::MOST_SHORT)
        };
        self.short = self.short.saturating_sub(1);
        if !self.assembly.takes(&next, most) {
            self.flush(to);
        }
        self.assembly.join(next);
        Ok(())
    }

    /// Delivers the packets set aside that are whole, or whose time is over: each run of bytes that arrived.
    fn deliver_ready<T: Tap>(&mut self, to: &Delivery<'_, T>) {
        if !self.frames.has_ready() {
            return;
        }
        self.flush(to);
        for frame in self.frames.take_ready() {
            if let Err(reason) = to.frame(&frame) {
                to.counters.dropped(reason);
            }
            self.frames.recycle(frame);
        }
    }
}
