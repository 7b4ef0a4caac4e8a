//! Joining super-packets of one TCP stream that wait together into one, as the kernel's receive offload joins segments.
//!
//! A packet costs the receiving host a pass through its IP stack, a wake-up of the reader and an acknowledgement,
//! whatever its size. When several super-packets of a stream have arrived before any was written, they go together: with
//! one stream of 7 Gbit/s about two at a time, which saves a tenth of all CPU time. Nothing waits for more to come: what
//! one receive brought is written before the next.
//!
//! An IPv4 packet of more than 65,535 bytes states a length of 0, and the kernel goes by what it was given (BIG TCP,
//! `iph_totlen` in `include/linux/ip.h`; since when it does for a TUN device stands in `linux/src/tun.rs`). It never
//! leaves the host in this form: a device that does not take it gets it cut. A container whose runtime reads packets with
//! a stack of its own, as gVisor's does, would see it: for such there is `--without big_tcp`. If the kernel refuses it, for which it needs
//! memory in large pieces, it is written in shorter ones, so nothing is lost ([`Joined::shorter`]). IPv6 packets of that
//! size would need a header of their own, so IPv6 is not joined.
//!
//! Which packets may be joined: `tcp_gro_receive` in `net/ipv4/tcp_offload.c`.

#![deny(clippy::disallowed_methods)]

use std::ops::Range;

use weave_linux::tun::gso;

use super::header::{Built, MOST_TCP_SEGMENTS, Template, lengthen};
use super::inner::Inner;
use crate::wire::Slice;

/// The most payload of one joined packet: four super-packets of the size that our devices allow.
pub const MOST: usize = 4 * 60_000;
/// The most bytes of a joined packet where the kernel takes no longer ones: with an Ethernet header it stays below the
/// 65,536 from which on a device of theirs cuts in software.
pub const MOST_SHORT: usize = 65_535 - 14;

const ACK: u8 = 0x10;
const PSH: u8 = 0x08;
const DONT_FRAGMENT: u8 = 0x40;

/// One super-packet, or several of one stream that follow each other without a gap.
#[derive(Debug)]
pub struct Joined {
    built: Built,
    inner: Inner,
    segment: usize,
    payload: usize,
}

impl Joined {
    /// A single super-packet, all of it.
    pub fn new(template: &Template<'_>, slice: &Slice) -> Self {
        let payload = usize::from(slice.total);
        Self {
            built: template.build(0..payload),
            inner: template.inner,
            segment: slice.segment.into(),
            payload,
        }
    }

    /// Bytes of payload in all.
    pub const fn payload(&self) -> usize {
        self.payload
    }

    /// Bytes of the packet in all.
    pub fn bytes(&self) -> usize {
        self.built.headers().len() + self.payload
    }

    /// Whether `next` continues this stream and says nothing new but its sequence number. `most` limits the
    /// bytes of the whole packet.
    pub fn takes(&self, next: &Self, most: usize) -> bool {
        let (a, b) = (self.built.headers(), next.built.headers());
        let t = self.inner.transport;
        let same = |range: Range<usize>| a[range.clone()] == b[range];
        let tcp4 = |of: &Self| of.built.virtio.gso_type == gso::TCP4;
        let plain_flags = |of: &[u8]| of[t + 13] & !PSH == ACK;
        let payload = self.payload + next.payload;
        let fits = payload <= MOST
            && self.bytes() + next.payload <= most
            && payload.div_ceil(self.segment) <= usize::from(MOST_TCP_SEGMENTS);
        fits && tcp4(self)
            && tcp4(next)
            && self.segment == next.segment
            && self.payload.is_multiple_of(self.segment)
            && (a.len(), t) == (b.len(), next.inner.transport)
            && a[6] & DONT_FRAGMENT != 0
            && same(0..2)
            && same(6..10)
            && same(12..t + 4)
            && sequence(b, t) == sequence(a, t).wrapping_add(self.payload as u32)
            && same(t + 8..t + 13)
            && plain_flags(a)
            && plain_flags(b)
            && same(t + 14..t + 16)
            && same(t + 18..a.len())
    }

    /// Appends a packet that [`Joined::takes`] has agreed to.
    pub fn join(&mut self, next: &Self) {
        self.payload += next.payload;
        let flags = self.inner.transport + 13;
        self.built.headers_mut()[flags] |= next.built.headers()[flags];
        lengthen(&mut self.built, &self.inner, self.payload);
    }

    /// The same in packets as long as any kernel takes them: for each the run of the payload, and its headers.
    pub fn shorter(&self) -> impl Iterator<Item = (Range<usize>, Built)> + use<> {
        let (built, inner, payload) = (self.built, self.inner, self.payload);
        let segment = self.segment;
        let step = ((MOST_SHORT - built.headers().len()) / segment).max(1) * segment;
        (0..payload).step_by(step).map(move |start| {
            let run = start..(start + step).min(payload);
            (run.clone(), part(built, &inner, segment, run, payload))
        })
    }

    /// The headers to write before the payload, and what the kernel is told of them.
    pub const fn built(&self) -> &Built {
        &self.built
    }
}

/// The headers for a run of a joined packet's payload, which begins where a segment does.
fn part(
    mut built: Built,
    inner: &Inner,
    segment: usize,
    run: Range<usize>,
    payload: usize,
) -> Built {
    let (t, head) = (inner.transport, built.headers_mut());
    let id = u16::from_be_bytes([head[4], head[5]]).wrapping_add((run.start / segment) as u16);
    head[4..6].copy_from_slice(&id.to_be_bytes());
    let sequence = sequence(head, t).wrapping_add(run.start as u32);
    head[t + 4..t + 8].copy_from_slice(&sequence.to_be_bytes());
    if run.end < payload {
        head[t + 13] &= !PSH;
    }
    if run.len() <= segment {
        (built.virtio.gso_type, built.virtio.gso_size) = (gso::NONE, 0);
    }
    lengthen(&mut built, inner, run.len());
    built
}

fn sequence(headers: &[u8], transport: usize) -> u32 {
    let at = transport + 4;
    u32::from_be_bytes([
        headers[at],
        headers[at + 1],
        headers[at + 2],
        headers[at + 3],
    ])
}

#[cfg(test)]
mod tests {
    use super::super::inner::tests::tcp4;
    use super::*;
    use crate::wire::Shape;

    const HEADERS: usize = 52;
    const SEGMENT: u16 = 1448;
    const LONG: usize = usize::MAX;

    /// A super-packet of the stream, as the sender's kernel makes it, with its headers changed by `edit`.
    fn packet(start: u32, total: u16, edit: impl FnOnce(&mut [u8])) -> Joined {
        let slice = Slice {
            offset: 0,
            total,
            segment: SEGMENT,
            network: 0,
            headers: HEADERS as u8,
            index: 0,
            shape: Shape::Tcp4,
            csum_pending: true,
            cwr: false,
            group: false,
        };
        let mut headers = tcp4(usize::from(total))[..HEADERS].to_vec();
        headers[6] |= DONT_FRAGMENT;
        headers[24..28].copy_from_slice(&(77 + start).to_be_bytes());
        headers[33] = ACK;
        edit(&mut headers);
        Joined::new(&Template::new(&slice, &headers).unwrap(), &slice)
    }

    fn finished(joined: &Joined, payload: &[u8]) -> Vec<u8> {
        let mut bytes = [joined.built().headers(), payload].concat();
        let virtio = joined.built().virtio;
        let (start, offset) = (virtio.csum_start.into(), virtio.csum_offset.into());
        assert!(super::super::csum::finish(&mut bytes, start, offset));
        bytes
    }

    #[test]
    fn what_follows_without_a_gap_makes_one_packet() {
        let payload = |range: Range<u32>| range.map(|i| i as u8).collect::<Vec<_>>();
        let mut both = packet(0, 10 * SEGMENT, |_| ());
        let next = packet(10 * u32::from(SEGMENT), 5000, |head| head[33] |= PSH);
        assert!(both.takes(&next, LONG));
        both.join(&next);
        assert_eq!(both.payload(), 19_480);
        let got = finished(&both, &payload(0..19_480));
        let alone = packet(0, 19_480, |head| head[33] |= PSH);
        assert_eq!(got, finished(&alone, &payload(0..19_480)));
        assert_eq!(both.built().virtio, alone.built().virtio);
    }

    #[test]
    fn a_packet_longer_than_its_length_field_states_none() {
        let size = 40 * SEGMENT;
        let mut all = packet(0, size, |_| ());
        for place in 1..4 {
            let next = packet(place * u32::from(size), size, |_| ());
            assert!(!all.takes(&next, MOST_SHORT), "an older kernel");
            assert!(all.takes(&next, LONG));
            all.join(&next);
        }
        assert_eq!(all.bytes(), HEADERS + 4 * usize::from(size));
        assert_eq!(all.built().headers()[2..4], [0, 0]);
        let fifth = packet(4 * u32::from(size), size, |_| ());
        assert!(!all.takes(&fifth, LONG));
    }

    #[test]
    fn in_shorter_packets_it_is_the_same_stream() {
        let size = 40 * SEGMENT;
        let mut all = packet(0, size, |_| ());
        for place in 1..4 {
            let flags = if place == 3 { ACK | PSH } else { ACK };
            let next = packet(place * u32::from(size), size, |head| head[33] = flags);
            all.join(&next);
        }
        let payload: Vec<u8> = (0..all.payload()).map(|at| at as u8).collect();
        let (mut end, mut count) = (0, 0);
        for (run, built) in all.shorter() {
            assert!((run.start, run.start % usize::from(SEGMENT)) == (end, 0));
            let alone = packet(run.start as u32, run.len() as u16, |head| {
                let id = 4 + (run.start / usize::from(SEGMENT)) as u16;
                head[4..6].copy_from_slice(&id.to_be_bytes());
                head[33] = if run.end == payload.len() {
                    ACK | PSH
                } else {
                    ACK
                };
            });
            let part = Joined {
                built,
                inner: alone.inner,
                segment: SEGMENT.into(),
                payload: run.len(),
            };
            let mut expected = finished(&alone, &payload[run.clone()]);
            let got = finished(&part, &payload[run.clone()]);
            // The first packet's id is what the builder of the tests gave it.
            expected[4..6].copy_from_slice(&got[4..6]);
            expected[10..12].copy_from_slice(&got[10..12]);
            assert_eq!(got, expected);
            assert_eq!(part.built.virtio, alone.built.virtio);
            (end, count) = (run.end, count + 1);
        }
        assert_eq!((end, count), (payload.len(), 4));
    }

    #[test]
    fn nothing_that_says_more_than_its_sequence_number_is_joined() {
        let first = || packet(0, 10 * SEGMENT, |_| ());
        let start = 10 * u32::from(SEGMENT);
        assert!(first().takes(&packet(start, 5000, |_| ()), LONG));
        for (at, what) in [
            (1, "traffic class"),
            (8, "time to live"),
            (15, "source"),
            (21, "source port"),
            (27, "sequence"),
            (31, "acknowledgement"),
            (33, "flags"),
            (35, "window"),
            (41, "options"),
        ] {
            let next = packet(start, 5000, |head| head[at] ^= 1);
            assert!(!first().takes(&next, LONG), "{what}");
        }
        let may_be_fragmented = |head: &mut [u8]| head[6] = 0;
        let next = packet(start, 5000, may_be_fragmented);
        assert!(!packet(0, 10 * SEGMENT, may_be_fragmented).takes(&next, LONG));
        let short = packet(0, 5000, |_| ());
        assert!(
            !short.takes(&packet(5000, 5000, |_| ()), LONG),
            "only the last segment may be short"
        );
    }
}
