//! What a kernel makes of a packet that is written to a TUN queue: it cuts it and does its checksums. Every packet that
//! comes out of it was checked. Shares no code with the path.
//!
//! After `tcp_gso_segment`, `__udp_gso_segment`, `inet_gso_segment` and `skb_checksum_help` of Linux 6.12.

use weave_linux::tun::{VirtioHeader, gso};

pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
pub(crate) const FIN: u8 = 0x01;
pub(crate) const PSH: u8 = 0x08;
pub(crate) const ACK: u8 = 0x10;
pub(crate) const CWR: u8 = 0x80;

/// A packet as it lies on the queue.
#[derive(Clone, Debug)]
pub(crate) struct Packet {
    pub(crate) virtio: VirtioHeader,
    pub(crate) bytes: Vec<u8>,
}

/// Where a packet's transport header and its payload begin, and the protocol.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Place {
    pub(crate) protocol: u8,
    pub(crate) transport: usize,
    pub(crate) payload: usize,
}

impl Packet {
    pub(crate) fn read(written: &[u8]) -> Self {
        let (virtio, bytes) = written.split_first_chunk().unwrap();
        Self {
            virtio: VirtioHeader::from_bytes(*virtio),
            bytes: bytes.to_vec(),
        }
    }

    /// The packets that leave the kernel.
    pub(crate) fn cut(&self) -> Vec<Vec<u8>> {
        let (virtio, packet) = (&self.virtio, &self.bytes[..]);
        let place = place(packet);
        let stated = if packet[0] >> 4 == 4 {
            u16_at(packet, 2)
        } else {
            u16_at(packet, 4) + 40
        };
        let big = packet.len() > 0xffff && virtio.gso_type == gso::TCP4;
        assert_eq!(stated, if big { 0 } else { packet.len() }, "stated length");
        if virtio.needs_csum() {
            assert_eq!(usize::from(virtio.csum_start), place.transport);
            let offset = if place.protocol == TCP { 16 } else { 6 };
            assert_eq!(virtio.csum_offset, offset);
        }
        let parts = if virtio.gso_type == gso::NONE {
            let mut packet = packet.to_vec();
            if virtio.needs_csum() {
                finish(&mut packet, place);
            }
            vec![packet]
        } else {
            self.segments(place)
        };
        parts.iter().for_each(|packet| valid(packet));
        parts
    }

    fn segments(&self, place: Place) -> Vec<Vec<u8>> {
        let (virtio, packet) = (&self.virtio, &self.bytes[..]);
        let kind = match (place.protocol, packet[0] >> 4) {
            (TCP, 4) => gso::TCP4,
            (TCP, _) => gso::TCP6,
            _ => gso::UDP,
        };
        let cwr = place.protocol == TCP && packet[place.transport + 13] & CWR != 0;
        let ecn = if cwr { gso::ECN } else { 0 };
        assert_eq!(virtio.gso_type, kind | ecn);
        assert_eq!(usize::from(virtio.hdr_len), place.payload);
        assert!(virtio.needs_csum());
        let size = usize::from(virtio.gso_size);
        let count = (packet.len() - place.payload).div_ceil(size);
        assert!(place.protocol == TCP || count <= 128);
        (0..count)
            .map(|number| segment(packet, place, size, number))
            .collect()
    }
}

fn segment(packet: &[u8], place: Place, size: usize, number: usize) -> Vec<u8> {
    let from = place.payload + number * size;
    let to = (from + size).min(packet.len());
    let mut part = [&packet[..place.payload], &packet[from..to]].concat();
    set_length(&mut part);
    if part[0] >> 4 == 4 {
        let id = u16_at(&part, 4) + number;
        set_u16(&mut part, 4, id as u16);
        set_v4_sum(&mut part);
    }
    let t = place.transport;
    let (before, after) = (packet.len() - t, part.len() - t);
    let sum = if place.protocol == TCP {
        let sequence = u32::from_be_bytes(part[t + 4..t + 8].try_into().unwrap());
        let sequence = sequence.wrapping_add((number * size) as u32);
        part[t + 4..t + 8].copy_from_slice(&sequence.to_be_bytes());
        if to < packet.len() {
            part[t + 13] &= !(FIN | PSH);
        }
        if number > 0 {
            part[t + 13] &= !CWR;
        }
        t + 16
    } else {
        set_u16(&mut part, t + 4, after as u16);
        t + 6
    };
    let whole = !fold(before as u64);
    let partial = fold(u16_at(&part, sum) as u64 + u64::from(whole) + after as u64);
    set_u16(&mut part, sum, partial);
    finish(&mut part, place);
    part
}

/// Sums up from the transport header to the end, with the sum of the pseudo-header that stands there.
fn finish(packet: &mut [u8], place: Place) {
    let at = place.transport + if place.protocol == TCP { 16 } else { 6 };
    let sum = !fold(sum(&packet[place.transport..]));
    set_u16(packet, at, if sum == 0 { 0xffff } else { sum });
}

/// One packet that any receiver would take.
fn valid(packet: &[u8]) {
    let place = place(packet);
    let length = packet.len() - place.transport;
    if packet[0] >> 4 == 4 {
        assert_eq!(u16_at(packet, 2), packet.len());
        let header = usize::from(packet[0] & 15) * 4;
        assert_eq!(
            fold(sum(&packet[..header])),
            0xffff,
            "the IPv4 header's sum"
        );
    } else {
        assert_eq!(u16_at(packet, 4), packet.len() - 40);
    }
    if place.protocol == UDP {
        assert_eq!(u16_at(packet, place.transport + 4), length);
        assert_ne!(u16_at(packet, place.transport + 6), 0);
    }
    let sum = pseudo(packet, place.protocol, length) + sum(&packet[place.transport..]);
    assert_eq!(fold(sum), 0xffff, "the transport checksum");
}

/// The sum of the pseudo-header. The destination is the last one, wherever the packet goes next (RFC 8200 §8.1).
pub(crate) fn pseudo(packet: &[u8], protocol: u8, length: usize) -> u64 {
    let addresses = if packet[0] >> 4 == 4 {
        sum(&packet[12..20])
    } else {
        sum(&packet[8..24]) + sum(final_destination(packet))
    };
    addresses + u64::from(protocol) + length as u64
}

fn final_destination(packet: &[u8]) -> &[u8] {
    let (mut next, mut at) = (packet[6], 40);
    while matches!(next, 0 | 43 | 60) {
        let end = at + 8 + 8 * usize::from(packet[at + 1]);
        if next == 43 && packet[at + 3] > 0 {
            // Segment routing lists the last one first (RFC 8754 §2).
            let list = &packet[at + 8..end];
            let last = if packet[at + 2] == 4 {
                0
            } else {
                list.len() - 16
            };
            return &list[last..last + 16];
        }
        (next, at) = (packet[at], end);
    }
    &packet[24..40]
}

pub(crate) fn place(packet: &[u8]) -> Place {
    let (mut protocol, mut transport) = if packet[0] >> 4 == 4 {
        (packet[9], usize::from(packet[0] & 15) * 4)
    } else {
        (packet[6], 40)
    };
    while packet[0] >> 4 == 6 && matches!(protocol, 0 | 43 | 60) {
        protocol = packet[transport];
        transport += 8 + 8 * usize::from(packet[transport + 1]);
    }
    let header = match protocol {
        TCP => usize::from(packet[transport + 12] >> 4) * 4,
        UDP => 8,
        other => panic!("protocol {other} was never sent"),
    };
    let payload = transport + header;
    Place {
        protocol,
        transport,
        payload,
    }
}

pub(crate) fn ecn(packet: &[u8]) -> u8 {
    if packet[0] >> 4 == 4 {
        packet[1] & 3
    } else {
        packet[1] >> 4 & 3
    }
}

/// The same packet with other ECN bits.
pub(crate) fn with_ecn(packet: &[u8], ecn: u8) -> Vec<u8> {
    let mut packet = packet.to_vec();
    if packet[0] >> 4 == 4 {
        packet[1] = packet[1] & !3 | ecn;
        set_v4_sum(&mut packet);
    } else {
        packet[1] = packet[1] & !0x30 | ecn << 4;
    }
    packet
}

pub(crate) fn set_length(packet: &mut [u8]) {
    let length = packet.len() as u16;
    if packet[0] >> 4 == 4 {
        set_u16(packet, 2, length);
    } else {
        set_u16(packet, 4, length - 40);
    }
}

pub(crate) fn set_v4_sum(packet: &mut [u8]) {
    set_u16(packet, 10, 0);
    let header = usize::from(packet[0] & 15) * 4;
    let sum = !fold(sum(&packet[..header]));
    set_u16(packet, 10, sum);
}

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> usize {
    usize::from(u16::from_be_bytes([bytes[at], bytes[at + 1]]))
}

pub(crate) fn set_u16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

fn sum(bytes: &[u8]) -> u64 {
    let word = |pair: &[u8]| u64::from(pair[0]) << 8 | u64::from(*pair.get(1).unwrap_or(&0));
    bytes.chunks(2).map(word).sum()
}

pub(crate) fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}
