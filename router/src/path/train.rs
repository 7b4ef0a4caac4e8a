//! A train: small UDP packets of one flow that came in one datagram, written as one packet that the kernel cuts again.
//!
//! For small packets nearly all of the receiving host's work is the pass through its IP stack, whatever their size.
//! A sender that has several waiting puts them into one datagram ([`cut`](super::cut)), and those of one flow and size
//! lie in it at equal distances. So a train is no more than where its first packet lies and how many there are, and it is
//! written from where they lie: the headers once, then every payload. The kernel cuts it where the socket wants single
//! datagrams, as it does with what an application sent with `UDP_SEGMENT`; packets go in their order, and none waits.
//!
//! Only packets whose checksum the sender's kernel left to do are joined: nothing can have happened to their bytes, so
//! the receiver may make the sums anew. As in the kernel's own receive offload (`udp_gro_receive` in
//! `net/ipv4/udp_offload.c`) a shorter packet ends a train, and everything but lengths, sums and the identification has to
//! be equal.

#![deny(clippy::disallowed_methods)]

use std::ops::Range;

use weave_model::Drop;

use super::header::{Built, MAX_HEADERS, Template};
use super::inner::{Inner, protocol};
use crate::wire::{RECORD, Record, Shape, Slice};

/// The most packets in a train: `UDP_MAX_SEGMENTS` of kernels before 6.9.
pub const LONGEST: usize = 64;
/// Bytes of a UDP header.
const UDP_HEADER: usize = 8;
const DONT_FRAGMENT: u8 = 0x40;

/// Packets of one flow, behind each other in the body of a datagram. All but the last are of the same size.
#[derive(Clone, Copy, Debug)]
pub struct Train {
    /// Where the first packet lies.
    first: usize,
    inner: Inner,
    /// Bytes of headers of each packet.
    headers: usize,
    /// Bytes of payload of each packet but the last, and of the last.
    segment: usize,
    last: usize,
    count: usize,
}

impl Train {
    /// A train of one packet, if others may follow it.
    pub fn new(body: &[u8], record: &Record, inner: &Inner) -> Option<Self> {
        let packet = &body[record.start..record.end];
        let headers = inner.transport + UDP_HEADER;
        let segment = packet.len().checked_sub(headers).filter(|len| *len > 0)?;
        let length = packet.get(inner.transport + 4..inner.transport + 6)?;
        let stated = usize::from(u16::from_be_bytes([length[0], length[1]]));
        let may_lead = inner.protocol == protocol::UDP
            && headers <= MAX_HEADERS
            && !inner.fragment
            && record.csum_pending
            && stated == UDP_HEADER + segment;
        may_lead.then_some(Self {
            first: record.start,
            inner: *inner,
            headers,
            segment,
            last: segment,
            count: 1,
        })
    }

    /// Takes the packet behind its last one, if it is one more of the same.
    pub fn take(&mut self, body: &[u8], next: &Self) -> bool {
        let takes = next.first == self.first + self.count * self.stride()
            && self.last == self.segment
            && next.segment <= self.segment
            && next.headers == self.headers
            && self.count < LONGEST
            && self.bytes() + next.segment <= usize::from(u16::MAX)
            && self.same_flow(body, next);
        if takes {
            self.last = next.segment;
            self.count += 1;
        }
        takes
    }

    /// Whether the headers say the same but for lengths and sums; and the kernel will number the packets as they are,
    /// or it does not matter.
    fn same_flow(&self, body: &[u8], next: &Self) -> bool {
        let (a, b) = (&body[self.first..], &body[next.first..]);
        let same = |range: Range<usize>| a[range.clone()] == b[range];
        let ports = self.inner.transport..self.inner.transport + 4;
        if self.inner.source.is_ipv6() {
            return same(0..4) && same(6..ports.end);
        }
        let id = |packet: &[u8]| u16::from_be_bytes([packet[4], packet[5]]);
        let numbered = id(a).wrapping_add(self.count as u16) == id(b);
        same(0..2) && same(6..10) && same(12..ports.end) && (numbered || a[6] & DONT_FRAGMENT != 0)
    }

    /// What the headers of each of its packets say.
    pub const fn inner(&self) -> &Inner {
        &self.inner
    }

    /// How many packets it has.
    pub const fn count(&self) -> usize {
        self.count
    }

    /// Bytes of it as one packet.
    const fn bytes(&self) -> usize {
        self.headers + self.payload()
    }

    const fn payload(&self) -> usize {
        (self.count - 1) * self.segment + self.last
    }

    /// From the start of one packet to that of the next.
    const fn stride(&self) -> usize {
        self.headers + self.segment + RECORD
    }

    /// Where its packets lie in the body, in order.
    pub fn packets(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let Self { first, headers, .. } = *self;
        let (count, stride) = (self.count, self.stride());
        let (segment, last) = (self.segment, self.last);
        (0..count).map(move |number| {
            let payload = if number + 1 < count { segment } else { last };
            let start = first + number * stride;
            start..start + headers + payload
        })
    }

    /// Where their payloads lie.
    pub fn payloads(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let headers = self.headers;
        self.packets()
            .map(move |packet| packet.start + headers..packet.end)
    }

    /// The headers of the one packet, and what the kernel is told of it.
    ///
    /// # Errors
    /// Those of [`Template::new`].
    pub fn build(&self, body: &[u8]) -> Result<Built, Drop> {
        let shape = if self.inner.source.is_ipv4() {
            Shape::Udp4
        } else {
            Shape::Udp6
        };
        let slice = Slice {
            offset: 0,
            total: self.payload() as u16,
            segment: self.segment as u16,
            network: 0,
            headers: self.headers as u8,
            index: 0,
            shape,
            csum_pending: true,
            cwr: false,
            group: false,
        };
        let headers = &body[self.first..self.first + self.headers];
        Ok(Template::new(&slice, headers)?.build(0..self.payload()))
    }
}
