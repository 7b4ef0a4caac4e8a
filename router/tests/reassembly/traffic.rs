//! What containers send: streams of TCP and batches of UDP as their kernel gives them to the router, single packets that
//! are cut because they are long, and short ones that share a datagram. With options, extension headers and flags.

use std::ops::Range;

use weave_linux::tun::{VirtioHeader, gso};

use crate::kernel::{CWR, Packet, TCP, UDP, fold, place, pseudo, set_length, set_u16, set_v4_sum};

/// The sender's address and the receiver's, as offsets into the cluster's range.
pub(crate) const THEIRS: u8 = 2;
pub(crate) const OURS: u8 = 3;

/// What the headers of a packet are to say.
#[derive(Clone, Debug)]
pub(crate) struct Head {
    pub(crate) v6: bool,
    /// Each a word of IPv4 options or an extension header of IPv6.
    pub(crate) extras: Vec<u8>,
    pub(crate) ecn: u8,
    pub(crate) id: u16,
    pub(crate) may_fragment: bool,
    /// The source port, which tells flows apart.
    pub(crate) port: u16,
    pub(crate) tcp: Option<Tcp>,
}

#[derive(Clone, Debug)]
pub(crate) struct Tcp {
    pub(crate) sequence: u32,
    pub(crate) flags: u8,
    /// Words of options.
    pub(crate) options: u8,
}

/// What the kernel has left to do.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Left {
    Nothing,
    Checksum,
    /// Cutting into segments of so many bytes, and their checksums.
    Cutting(u16),
}

impl Head {
    pub(crate) fn packet(&self, payload: &[u8], left: Left) -> Packet {
        let mut bytes = if self.v6 { self.ip6() } else { self.ip4() };
        let transport = bytes.len();
        bytes.extend(self.port.to_be_bytes());
        bytes.extend(7000_u16.to_be_bytes());
        match &self.tcp {
            Some(tcp) => {
                bytes.extend(tcp.sequence.to_be_bytes());
                bytes.extend(99_u32.to_be_bytes());
                bytes.extend([(5 + tcp.options) << 4, tcp.flags, 0x40, 0, 0, 0, 0, 0]);
                bytes.extend([1].repeat(4 * usize::from(tcp.options)));
            }
            None => bytes.extend([0; 4]),
        }
        let headers = bytes.len();
        bytes.extend(payload);
        set_length(&mut bytes);
        let length = bytes.len() - transport;
        if self.tcp.is_none() {
            set_u16(&mut bytes, transport + 4, length as u16);
        }
        if !self.v6 {
            set_v4_sum(&mut bytes);
        }
        let protocol = if self.tcp.is_some() { TCP } else { UDP };
        let offset = if self.tcp.is_some() { 16 } else { 6 };
        let partial = fold(pseudo(&bytes, protocol, length));
        set_u16(&mut bytes, transport + offset, partial);
        let (gso_type, gso_size) = match left {
            Left::Cutting(size) => (self.gso_type(), size),
            _ => (gso::NONE, 0),
        };
        let virtio = VirtioHeader {
            flags: VirtioHeader::NEEDS_CSUM,
            gso_type,
            hdr_len: headers as u16,
            gso_size,
            csum_start: transport as u16,
            csum_offset: offset as u16,
        };
        let packet = Packet { virtio, bytes };
        match left {
            Left::Nothing => Packet {
                virtio: VirtioHeader::default(),
                bytes: packet.cut().remove(0),
            },
            _ => packet,
        }
    }

    fn gso_type(&self) -> u8 {
        let ecn = |tcp: &Tcp| if tcp.flags & CWR != 0 { gso::ECN } else { 0 };
        match (&self.tcp, self.v6) {
            (Some(tcp), false) => gso::TCP4 | ecn(tcp),
            (Some(tcp), true) => gso::TCP6 | ecn(tcp),
            (None, _) => gso::UDP,
        }
    }

    fn ip4(&self) -> Vec<u8> {
        let words = 5 + self.extras.len() as u8;
        let [id, id_low] = self.id.to_be_bytes();
        let fragment = if self.may_fragment { 0 } else { 0x40 };
        let protocol = if self.tcp.is_some() { TCP } else { UDP };
        let mut bytes = vec![0x40 | words, 0x28 | self.ecn, 0, 0];
        bytes.extend([id, id_low, fragment, 0, 63, protocol, 0, 0]);
        bytes.extend([10, 32, 0, THEIRS, 10, 32, 1, OURS]);
        for extra in &self.extras {
            // A router alert, or padding.
            bytes.extend(if *extra == 0 { [148, 4, 0, 0] } else { [1; 4] });
        }
        bytes
    }

    fn ip6(&self) -> Vec<u8> {
        let address = |net: u8, host: u8| {
            let mut address = [0; 16];
            (address[0], address[1]) = (0xfd, 0);
            (address[14], address[15]) = (net, host);
            address
        };
        let protocol = if self.tcp.is_some() { TCP } else { UDP };
        let mut bytes = vec![0x60, self.ecn << 4 | 3, 2, 1, 0, 0, protocol, 63];
        bytes.extend(address(0, THEIRS));
        bytes.extend(address(1, OURS));
        let mut next_at = 6;
        for (number, extra) in self.extras.iter().enumerate() {
            let (kind, body) = match extra {
                // Hop-by-hop options come first or not at all: a router alert (RFC 2711) and padding.
                0 if number == 0 => (0, vec![0, 0, 5, 2, 0, 0, 1, 0]),
                1 => (60, [&[0, 1, 1, 12][..], &[0; 12]].concat()),
                // Mobile IPv6 (RFC 6275 §6.4): on its way to a care-of address.
                2 => (43, [&[0, 2, 2, 1, 0, 0, 0, 0], &address(9, 9)[..]].concat()),
                // Segment routing (RFC 8754), arrived and on its way.
                3 => (
                    43,
                    [&[0, 2, 4, 0, 0, 0, 0, 0], &address(1, OURS)[..]].concat(),
                ),
                4 => (43, {
                    let list = [address(8, 8), address(1, OURS)].concat();
                    [&[0, 4, 4, 1, 1, 0, 0, 0], &list[..]].concat()
                }),
                _ => (60, vec![0, 0, 1, 4, 0, 0, 0, 0]),
            };
            let at = bytes.len();
            bytes.extend(body);
            bytes[at] = bytes[next_at];
            bytes[next_at] = kind;
            next_at = at;
        }
        bytes
    }
}

/// The byte at a place of a flow: every run of a few is found there only.
pub(crate) fn byte(flow: u16, at: usize) -> u8 {
    let mixed = (at as u32 ^ u32::from(flow) << 18).wrapping_mul(0x9e37_79b1);
    (mixed >> 24) as u8 ^ (mixed >> 13) as u8
}

/// What goes to the other host at once: one packet that is cut, or short ones that share a datagram.
#[derive(Clone, Debug)]
pub(crate) struct Item {
    pub(crate) lane: u8,
    /// The stream and the place in it of the first byte, if the packet belongs to one.
    pub(crate) stream: Option<(usize, usize)>,
    pub(crate) packets: Vec<Packet>,
}

impl Item {
    /// Whether it goes as it is, not as headers and a payload to be cut.
    pub(crate) fn is_plain(&self) -> bool {
        self.packets[0].virtio.gso_type == gso::NONE
    }

    /// The bytes that its slices carry, apart from copies of its headers.
    pub(crate) fn payload(&self) -> &[u8] {
        let bytes = &self.packets[0].bytes;
        if self.is_plain() {
            bytes
        } else {
            &bytes[place(bytes).payload..]
        }
    }

    /// What of the payload the packet of that number comes from, once the sender's kernel had cut it.
    pub(crate) fn range(&self, number: usize) -> Range<usize> {
        let size = usize::from(self.packets[0].virtio.gso_size);
        if size == 0 || self.packets.len() > 1 {
            return 0..self.payload().len();
        }
        number * size..(number * size + size).min(self.payload().len())
    }
}

/// A TCP stream: super-packets that follow one another.
#[derive(Clone, Debug)]
pub(crate) struct Stream {
    pub(crate) head: Head,
    pub(crate) segment: u16,
    /// The payload and the flags of each.
    pub(crate) parts: Vec<(usize, u8)>,
}

impl Stream {
    pub(crate) fn items(&self, stream: usize, lane: u8) -> Vec<Item> {
        let (mut start, mut id) = (0, self.head.id);
        let mut items = Vec::new();
        for (len, flags) in &self.parts {
            let mut head = self.head.clone();
            let tcp = head.tcp.as_mut().unwrap();
            tcp.sequence = tcp.sequence.wrapping_add(start as u32);
            tcp.flags = *flags;
            head.id = id;
            let payload: Vec<u8> = (start..start + len).map(|at| byte(head.port, at)).collect();
            items.push(Item {
                lane,
                stream: Some((stream, start)),
                packets: vec![head.packet(&payload, Left::Cutting(self.segment))],
            });
            start += len;
            id = id.wrapping_add(len.div_ceil(self.segment.into()) as u16);
        }
        items
    }

    pub(crate) fn len(&self) -> usize {
        self.parts.iter().map(|(len, _)| len).sum()
    }
}

/// Datagrams of `segment` bytes, of which each begins with its number.
pub(crate) fn datagrams(head: &Head, lane: u8, segment: u16, len: usize) -> Item {
    let size = usize::from(segment);
    let payload: Vec<u8> = (0..len)
        .map(|at| match at % size {
            0 => (at / size) as u8,
            _ => byte(head.port, at),
        })
        .collect();
    Item {
        lane,
        stream: None,
        packets: vec![head.packet(&payload, Left::Cutting(segment))],
    }
}

/// One packet that goes as it is, or several together; each flow has the next port.
pub(crate) fn plain(head: &Head, lane: u8, left: Left, lengths: &[usize]) -> Item {
    let packets = lengths.iter().enumerate().map(|(number, len)| {
        let mut head = head.clone();
        head.port += number as u16;
        let payload: Vec<u8> = (0..*len).map(|at| byte(head.port, at)).collect();
        head.packet(&payload, left)
    });
    Item {
        lane,
        stream: None,
        packets: packets.collect(),
    }
}

/// Several packets of one flow that go together, as one socket sends them one after the other.
pub(crate) fn together(head: &Head, lane: u8, left: Left, lengths: &[usize]) -> Item {
    let packets = lengths.iter().enumerate().map(|(number, len)| {
        let mut head = head.clone();
        head.id = head.id.wrapping_add(number as u16);
        let payload: Vec<u8> = (0..*len)
            .map(|at| byte(head.port, 1000 * number + at))
            .collect();
        head.packet(&payload, left)
    });
    Item {
        lane,
        stream: None,
        packets: packets.collect(),
    }
}
