//! Building what the kernel is given: never a header from the wire, always one made here from a packet parsed here.
//!
//! A super-frame is TCP or UDP with a payload that the kernel cuts into segments. From the copy of its headers and any
//! run of its payload a correct packet is made: lengths, sequence number, checksums and flags are those that a
//! per-packet tunnel would have delivered for just these bytes.

#![deny(clippy::disallowed_methods)]

use weave_linux::tun::{VirtioHeader, gso};
use weave_model::Drop;

use super::csum;
use super::inner::{Inner, protocol};
use crate::wire::{Shape, Slice};

/// The longest copy of headers that a slice can carry.
pub const MAX_HEADERS: usize = 255;
/// The most segments that the kernel is asked to cut a UDP packet into: `UDP_MAX_SEGMENTS` since Linux 6.9.
const MOST_UDP_SEGMENTS: u16 = 128;
/// The same for TCP: 64 KB in segments of 32 bytes. Kernels send no smaller ones, and each costs a buffer.
pub(super) const MOST_TCP_SEGMENTS: u16 = 2048;
const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const CWR: u8 = 0x80;

/// The headers of one packet to be written, and the virtio header for it.
#[derive(Clone, Copy, Debug)]
pub struct Built {
    /// What stands before the packet on the TUN queue.
    pub virtio: VirtioHeader,
    /// The packet's headers.
    bytes: [u8; MAX_HEADERS],
    len: usize,
}

impl Built {
    /// The packet's headers, which go before the run of payload.
    pub fn headers(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// The same, to be changed.
    pub(super) fn headers_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[..self.len]
    }
}

/// Gives TCP headers that were made for some payload those of `payload` bytes, which may be more than 65,535.
pub(super) fn lengthen(built: &mut Built, inner: &Inner, payload: usize) {
    let head = &mut built.bytes[..built.len];
    let whole = head.len() + payload;
    set_ip_length(head, whole, 0);
    set_partial_sum(head, inner, 16, whole - inner.transport);
}

/// The parsed headers of a super-frame.
#[derive(Clone, Copy, Debug)]
pub struct Template<'a> {
    slice: &'a Slice,
    headers: &'a [u8],
    /// What the headers say.
    pub inner: Inner,
}

impl<'a> Template<'a> {
    /// Parses the copy of the headers that a slice carried and holds it against what the slice said.
    ///
    /// # Errors
    /// [`Drop::Malformed`] when they disagree, or the packet is none that a kernel may be asked to cut.
    pub fn new(slice: &'a Slice, headers: &'a [u8]) -> Result<Self, Drop> {
        let inner = Inner::parse_prefix(headers)?;
        let shape = match (inner.protocol, inner.source.is_ipv4()) {
            (protocol::TCP, true) => Shape::Tcp4,
            (protocol::TCP, false) => Shape::Tcp6,
            (protocol::UDP, true) => Shape::Udp4,
            (protocol::UDP, false) => Shape::Udp6,
            _ => return Err(Drop::Malformed),
        };
        let whole = headers.len() + usize::from(slice.total);
        let most = match shape {
            Shape::Udp4 | Shape::Udp6 => MOST_UDP_SEGMENTS,
            Shape::Tcp4 | Shape::Tcp6 | Shape::Plain => MOST_TCP_SEGMENTS,
        };
        let sound = shape == slice.shape
            && !inner.fragment
            && slice.segment > 0
            && slice.total.div_ceil(slice.segment) <= most
            && inner.headers(headers) == Some(headers.len())
            && whole <= usize::from(u16::MAX);
        if sound {
            Ok(Self {
                slice,
                headers,
                inner,
            })
        } else {
            Err(Drop::Malformed)
        }
    }

    const fn is_tcp(&self) -> bool {
        matches!(self.slice.shape, Shape::Tcp4 | Shape::Tcp6)
    }

    /// Narrows a run of payload bytes to what can be delivered of it: all of it for TCP, whole datagrams for UDP.
    pub fn usable(&self, run: std::ops::Range<usize>) -> std::ops::Range<usize> {
        if self.is_tcp() {
            return run;
        }
        let segment = usize::from(self.slice.segment);
        let start = run.start.next_multiple_of(segment);
        let end = if run.end == usize::from(self.slice.total) {
            run.end
        } else {
            run.end / segment * segment
        };
        start..end.max(start)
    }

    /// Makes the headers for the payload bytes `run`, which [`Template::usable`] has narrowed.
    pub fn build(&self, run: std::ops::Range<usize>) -> Built {
        let mut bytes = [0; MAX_HEADERS];
        let len = self.headers.len();
        let head = &mut bytes[..len];
        head.copy_from_slice(self.headers);
        let segment = usize::from(self.slice.segment);
        set_ip_length(head, len + run.len(), (run.start / segment) as u16);
        let transport = self.inner.transport;
        let length = len - transport + run.len();
        if self.is_tcp() {
            adjust_tcp(&mut head[transport..], &run, usize::from(self.slice.total));
        } else {
            set_u16(&mut head[transport..], 4, length as u16);
        }
        let csum_offset = if self.is_tcp() { 16 } else { 6 };
        set_partial_sum(head, &self.inner, csum_offset, length);
        let (gso_type, gso_size) = if run.len() > segment {
            (self.gso_type(run.start), segment)
        } else {
            (gso::NONE, 0)
        };
        let virtio = VirtioHeader {
            flags: VirtioHeader::NEEDS_CSUM,
            gso_type,
            hdr_len: len as u16,
            gso_size: gso_size as u16,
            csum_start: transport as u16,
            csum_offset: csum_offset as u16,
        };
        Built { virtio, bytes, len }
    }

    const fn gso_type(&self, start: usize) -> u8 {
        match self.slice.shape {
            Shape::Tcp4 => {
                gso::TCP4
                    | if self.slice.cwr && start == 0 {
                        gso::ECN
                    } else {
                        0
                    }
            }
            Shape::Tcp6 => {
                gso::TCP6
                    | if self.slice.cwr && start == 0 {
                        gso::ECN
                    } else {
                        0
                    }
            }
            Shape::Udp4 | Shape::Udp6 => gso::UDP,
            Shape::Plain => gso::NONE,
        }
    }
}

/// The virtio header for a packet that is written as it is.
///
/// # Errors
/// [`Drop::Malformed`] when a checksum is said to be pending where there is none to do.
pub fn plain(packet: &[u8], inner: &Inner, csum_pending: bool) -> Result<VirtioHeader, Drop> {
    if !csum_pending {
        return Ok(VirtioHeader::default());
    }
    let offset = inner.csum_offset().ok_or(Drop::Malformed)?;
    if inner.fragment || inner.transport + usize::from(offset) + 2 > packet.len() {
        return Err(Drop::Malformed);
    }
    Ok(VirtioHeader {
        flags: VirtioHeader::NEEDS_CSUM,
        csum_start: inner.transport as u16,
        csum_offset: offset,
        ..VirtioHeader::default()
    })
}

/// Notes in a packet that congestion was met on the way (RFC 6040 §4.2, figure 4).
///
/// The beginning of a packet will do, as long as its IP headers are whole.
///
/// # Errors
/// [`Drop::Congested`] if the packet's ends do not speak ECN: then dropping it is how they are told.
/// [`Drop::Malformed`] if the headers are not whole and sound.
pub fn mark_congestion(packet: &mut [u8]) -> Result<(), Drop> {
    let v6 = Inner::parse_prefix(packet)?.source.is_ipv6();
    let (at, shift) = if v6 { (1, 4) } else { (1, 0) };
    if packet[at] >> shift & 3 == 0 {
        return Err(Drop::Congested);
    }
    packet[at] |= 3 << shift;
    if !v6 {
        set_u16(packet, 10, 0);
        let header = usize::from(packet[0] & 0xf) * 4;
        let sum = !csum::fold(csum::add(0, &packet[..header]));
        set_u16(packet, 10, sum);
    }
    Ok(())
}

/// Sets the packet's length; for IPv4 also the identification `segments` further on and the header's checksum.
fn set_ip_length(head: &mut [u8], length: usize, segments: u16) {
    if head[0] >> 4 == 6 {
        set_u16(head, 4, (length - 40) as u16);
        return;
    }
    // A length that has no room: 0, as in a packet that the kernel itself joined.
    set_u16(head, 2, u16::try_from(length).unwrap_or(0));
    let id = u16::from_be_bytes([head[4], head[5]]).wrapping_add(segments);
    set_u16(head, 4, id);
    set_u16(head, 10, 0);
    let header = usize::from(head[0] & 0xf) * 4;
    let sum = !csum::fold(csum::add(0, &head[..header]));
    set_u16(head, 10, sum);
}

/// Puts the sum of the pseudo-header, for `length` bytes of transport header and payload, where the kernel goes on.
fn set_partial_sum(head: &mut [u8], inner: &Inner, offset: usize, length: usize) {
    let destination = inner.last_destination(head);
    let Inner {
        source,
        protocol,
        transport,
        ..
    } = *inner;
    let sum = csum::pseudo(source, destination, protocol, length as u32);
    set_u16(&mut head[transport..], offset, csum::fold(sum));
}

/// Moves the sequence number to the run, and leaves FIN and PSH to the last byte and CWR to the first.
fn adjust_tcp(tcp: &mut [u8], run: &std::ops::Range<usize>, total: usize) {
    let sequence =
        u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]).wrapping_add(run.start as u32);
    tcp[4..8].copy_from_slice(&sequence.to_be_bytes());
    if run.end < total {
        tcp[13] &= !(FIN | PSH);
    }
    if run.start > 0 {
        tcp[13] &= !CWR;
    }
}

fn set_u16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::super::inner::tests::{tcp4, udp6};
    use super::*;
    use etherparse::{Ipv4HeaderSlice, SlicedPacket, TcpHeaderSlice, TransportSlice};

    fn slice(shape: Shape, total: usize, segment: u16, headers: usize) -> Slice {
        let (total, headers) = (total as u16, headers as u8);
        Slice {
            offset: 0,
            total,
            segment,
            network: 0,
            headers,
            index: 0,
            shape,
            csum_pending: true,
            cwr: false,
            group: false,
        }
    }

    /// The packet as a receiver would see it once the kernel has done what the virtio header asks for.
    fn finished(built: &Built, payload: &[u8]) -> Vec<u8> {
        let mut packet = [built.headers(), payload].concat();
        let v = built.virtio;
        assert!(csum::finish(
            &mut packet,
            v.csum_start.into(),
            v.csum_offset.into()
        ));
        packet
    }

    #[test]
    fn the_whole_frame_comes_out_as_it_was() {
        let packet = tcp4(5000);
        let slice = slice(Shape::Tcp4, 5000, 1448, 52);
        let built = Template::new(&slice, &packet[..52]).unwrap().build(0..5000);
        assert_eq!(
            (built.virtio.gso_type, built.virtio.gso_size),
            (gso::TCP4, 1448)
        );
        assert_eq!(finished(&built, &packet[52..]), packet);
    }

    #[test]
    fn a_run_of_tcp_is_a_correct_shorter_packet() {
        let packet = tcp4(5000);
        let slice = slice(Shape::Tcp4, 5000, 1448, 52);
        let built = Template::new(&slice, &packet[..52])
            .unwrap()
            .build(1000..2000);
        assert_eq!(
            (built.virtio.gso_type, built.virtio.gso_size),
            (gso::NONE, 0)
        );
        let out = finished(&built, &packet[1052..2052]);
        let ip = Ipv4HeaderSlice::from_slice(&out).unwrap();
        assert_eq!(ip.header_checksum(), ip.to_header().calc_header_checksum());
        assert_eq!(ip.total_len(), 1052);
        let tcp = TcpHeaderSlice::from_slice(&out[20..]).unwrap();
        assert_eq!(
            (tcp.sequence_number(), tcp.psh(), tcp.ack()),
            (1077, false, true)
        );
        let sum = tcp
            .to_header()
            .calc_checksum_ipv4(&ip.to_header(), &out[52..])
            .unwrap();
        assert_eq!(tcp.checksum(), sum);
    }

    #[test]
    fn a_run_of_udp_keeps_whole_datagrams_only() {
        let packet = udp6(2500);
        let slice = slice(Shape::Udp6, 2500, 1000, 48);
        let template = Template::new(&slice, &packet[..48]).unwrap();
        assert_eq!(template.usable(100..2400), 1000..2000);
        assert_eq!(template.usable(900..2500), 1000..2500);
        assert_eq!(template.usable(100..900), 1000..1000);
        let built = template.build(2000..2500);
        let out = finished(&built, &packet[48 + 2000..]);
        let sliced = SlicedPacket::from_ip(&out).unwrap();
        let Some(TransportSlice::Udp(udp)) = sliced.transport else {
            panic!("UDP was sent")
        };
        assert_eq!((udp.length(), udp.payload()), (508, &packet[48 + 2000..]));
    }

    #[test]
    fn a_slice_that_lies_about_its_packet_is_refused() {
        let packet = tcp4(5000);
        let good = slice(Shape::Tcp4, 5000, 1448, 52);
        for bad in [
            Slice {
                shape: Shape::Tcp6,
                ..good
            },
            Slice {
                shape: Shape::Udp4,
                ..good
            },
            Slice { segment: 0, ..good },
            Slice {
                total: u16::MAX,
                ..good
            },
        ] {
            assert!(Template::new(&bad, &packet[..52]).is_err(), "{bad:?}");
        }
        assert!(Template::new(&good, &packet[..60]).is_err());
        assert!(Template::new(&good, &packet[..40]).is_err());
    }

    #[test]
    fn a_kernel_is_not_asked_for_countless_segments() {
        let packet = tcp4(60_000);
        let refused = |segment| {
            let slice = slice(Shape::Tcp4, 60_000, segment, 52);
            Template::new(&slice, &packet[..52]).is_err()
        };
        assert!(refused(1) && refused(29) && !refused(30) && !refused(48));
        let packet = udp6(6_000);
        let refused = |segment| {
            let slice = slice(Shape::Udp6, 6_000, segment, 48);
            Template::new(&slice, &packet[..48]).is_err()
        };
        assert!(refused(46) && !refused(47));
    }

    #[test]
    fn congestion_on_the_way_is_told_inward() {
        let mut packet = tcp4(10);
        assert_eq!(mark_congestion(&mut packet), Err(Drop::Congested));
        packet[1] |= 2;
        mark_congestion(&mut packet).unwrap();
        let ip = Ipv4HeaderSlice::from_slice(&packet).unwrap();
        assert_eq!(
            (ip.ecn().value(), ip.header_checksum()),
            (3, ip.to_header().calc_header_checksum())
        );
        let mut packet = udp6(10);
        packet[1] |= 1 << 4;
        mark_congestion(&mut packet).unwrap();
        assert_eq!(Inner::parse(&packet).unwrap().ecn, 3);
    }

    #[test]
    fn congestion_in_headers_that_are_cut_short_is_refused() {
        for whole in [tcp4(10), udp6(10)] {
            for len in 0..whole.len().min(40) {
                let mut packet = whole[..len].to_vec();
                let marked = mark_congestion(&mut packet);
                let sound = Inner::parse_prefix(&whole[..len]).is_ok();
                let reason = if sound {
                    Drop::Congested
                } else {
                    Drop::Malformed
                };
                assert_eq!(marked, Err(reason), "{len}");
            }
        }
    }

    #[test]
    fn a_pending_checksum_needs_a_place() {
        let mut packet = tcp4(10);
        let inner = Inner::parse(&packet).unwrap();
        assert_eq!(plain(&packet, &inner, true).unwrap().csum_start, 20);
        assert_eq!(
            plain(&packet, &inner, false).unwrap(),
            VirtioHeader::default()
        );
        packet[9] = 1;
        let inner = Inner::parse(&packet).unwrap();
        assert!(plain(&packet, &inner, true).is_err());
    }
}
