//! What a thread has taken from its TUN queue and not sent yet: short, and fair between flows.
//!
//! The kernel's queue of a TUN device is first come, first served, and a TCP stream keeps its whole window waiting there,
//! because the device takes packets off the stack's accounts. So the thread takes what waits as soon as it looks, at most
//! [`MOST`] packets, and [`Fair`] says which goes next. A packet stays where it was read until it was sent: with one flow
//! nothing is copied that was not before, and the buffer last used is used first, while it is in the CPU's cache.

use std::io;

use weave_linux::tun::{Tun, VirtioHeader};

use super::fair::{Fair, flow};
use super::inner::Inner;
use super::stats::Counters;

/// How many packets are taken before any of them was sent.
const MOST: usize = 64;
/// The longest packet.
const LONGEST: usize = 1 << 16;
/// From one packet's room to the next. Not a power of two: short packets, which touch only the beginnings, would fall
/// into the same few sets of the CPU's caches.
const STRIDE: usize = LONGEST + 2048 + 64;

/// What was read with a packet, or from its headers.
#[derive(Clone, Copy, Debug)]
pub struct Taken {
    /// How the kernel wants it to be cut.
    pub header: VirtioHeader,
    /// What its headers say.
    pub inner: Inner,
    len: usize,
}

/// The packets that wait.
#[derive(Debug)]
pub struct Backlog {
    /// Memory that no packet ever reaches is not used.
    room: Vec<u8>,
    taken: [Option<Taken>; MOST],
    free: Vec<usize>,
    fair: Fair,
}

impl Default for Backlog {
    fn default() -> Self {
        Self {
            room: vec![0; MOST * STRIDE],
            taken: [None; MOST],
            free: (0..MOST).rev().collect(),
            fair: Fair::default(),
        }
    }
}

impl Backlog {
    /// Takes what waits in the queue, until it is found empty or there is no more room. What is no IP packet is dropped.
    ///
    /// # Errors
    /// When the queue fails for good.
    pub fn fill(&mut self, tun: &Tun, counters: &Counters) -> io::Result<()> {
        while let Some(&place) = self.free.last() {
            let room = &mut self.room[place * STRIDE..][..LONGEST];
            match tun.read(room) {
                Ok((header, len)) => {
                    counters.packet(len);
                    match Inner::parse(&room[..len]) {
                        Ok(inner) => self.keep(place, header, inner, len),
                        Err(reason) => counters.dropped(reason),
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn keep(&mut self, place: usize, header: VirtioHeader, inner: Inner, len: usize) {
        let flow = flow(&inner, &self.room[place * STRIDE..][..len]);
        self.taken[place] = Some(Taken { header, inner, len });
        self.free.pop();
        self.fair.push(flow, len, place);
    }

    /// The packet that goes next, if any waits. Its place is free for another one after the next [`Backlog::fill`].
    pub fn pop(&mut self) -> Option<(Taken, &mut [u8])> {
        let place = self.fair.pop()?;
        self.free.push(place);
        let taken = self.taken[place].take()?;
        Some((taken, &mut self.room[place * STRIDE..][..taken.len]))
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.fair.is_empty()
    }
}
