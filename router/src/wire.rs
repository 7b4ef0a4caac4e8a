//! Every byte layout that data datagrams have between nodes, version 1. All integers are big-endian.
//!
//! A datagram begins with a header of 16 bytes in clear, authenticated as associated data:
//!
//! ```text
//!  0        1        2        3        4               8                       16
//! +--------+--------+--------+--------+---------------+-----------------------+
//! |ver|type|  lane  |  hops  |   0    | session index |        counter        |
//! +--------+--------+--------+--------+---------------+-----------------------+
//! ```
//!
//! *ver* is 1. *hops* is 0: what is relayed lies in an envelope, and how often that may be handed on is sealed with it.
//! *session index* is the receiver's. A data datagram goes on with sealed content and ends with a tag of 16 bytes. The content
//! is a body and, at its **end**, a trailer whose last byte is the [`Kind`]. Standing at the end, the trailer never
//! separates what belongs together: the payloads of a super-frame's slices are opened in place and written to the
//! kernel from where they lie.
//!
//! ```text
//! control    body = one control message                                          | kind 1
//! packets    body = (length:15 bits with the top bit CSUM, network:2, packet)... | kind 2
//! slice      body = payload, then a copy of the packet's headers                 | trailer of 12 bytes, kind 3
//! envelope   body = a whole datagram of another session or handshake             | trailer of 34 bytes, kind 4
//! ```
//!
//! An *envelope* is how two members talk that cannot reach one another: each seals it in its session with a third, which
//! opens it, looks at the trailer and seals the same body for the next. The body begins with a header of its own and is
//! sealed end to end, so whoever hands it on sees no more of it than the wire does.
//!
//! A packet for a broadcast or multicast address travels as slices (mostly one) with the flag *group*.
//!
//! The network id travels inside the sealed part: outsiders do not learn it.

use weave_model::{Drop, NodeId};

/// The version this build speaks.
pub const VERSION: u8 = 1;
/// Bytes of the clear header.
pub const HEADER: usize = 16;
/// Bytes of the authentication tag.
pub const TAG: usize = 16;
/// The most lanes a session has.
pub const MAX_LANES: usize = 8;
/// Where the lane stands in a datagram: the kernel steers by this byte.
pub const LANE_OFFSET: u32 = 1;

/// What a datagram is: the low four bits of its first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Type {
    /// First message of a handshake between members (Noise IKpsk2).
    Initiation = 1,
    /// Second message of that handshake.
    Response = 2,
    /// "Prove your address first": the answer to an initiation under load.
    Cookie = 3,
    /// Sealed content of a session.
    Data = 4,
    /// First message of a stranger with a join token (Noise XXpsk0).
    JoinHello = 5,
    /// Second message: the cluster proves itself.
    JoinProof = 6,
    /// Third message: the stranger says who it is.
    JoinRequest = 7,
    /// The answer: admission or refusal.
    JoinGrant = 8,
}

impl Type {
    const fn from_wire(bits: u8) -> Option<Self> {
        Some(match bits {
            1 => Self::Initiation,
            2 => Self::Response,
            3 => Self::Cookie,
            4 => Self::Data,
            5 => Self::JoinHello,
            6 => Self::JoinProof,
            7 => Self::JoinRequest,
            8 => Self::JoinGrant,
            _ => return None,
        })
    }
}

/// The 16 bytes in clear.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What follows.
    pub kind: Type,
    /// Which of the session's lanes it travels on.
    pub lane: u8,
    /// The receiver's session index; 0 where there is none yet.
    pub receiver: u32,
    /// The lane's packet number, which is also the nonce; 0 where nothing is sealed with a session key.
    pub counter: u64,
}

impl Header {
    /// Reads the header of a datagram.
    ///
    /// # Errors
    /// [`Drop::TooShort`], or [`Drop::UnknownType`] for another version, an unknown type, or a relayed datagram.
    pub fn parse(datagram: &[u8]) -> Result<Self, Drop> {
        let head = datagram.first_chunk::<HEADER>().ok_or(Drop::TooShort)?;
        if head[0] >> 4 != VERSION || head[2] != 0 || head[3] != 0 {
            return Err(Drop::UnknownType);
        }
        Ok(Self {
            kind: Type::from_wire(head[0] & 0xf).ok_or(Drop::UnknownType)?,
            lane: head[1],
            receiver: u32_at(head, 4),
            counter: u64::from_be_bytes([
                head[8], head[9], head[10], head[11], head[12], head[13], head[14], head[15],
            ]),
        })
    }

    /// Writes the header.
    pub fn to_bytes(self) -> [u8; HEADER] {
        let mut head = [0; HEADER];
        head[0] = VERSION << 4 | self.kind as u8;
        head[1] = self.lane;
        head[4..8].copy_from_slice(&self.receiver.to_be_bytes());
        head[8..].copy_from_slice(&self.counter.to_be_bytes());
        head
    }
}

/// What sealed content is: its last byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// One message of the control plane.
    Control = 1,
    /// Whole packets.
    Packets = 2,
    /// A piece of one packet, or all of it.
    Slice = 3,
    /// A datagram to be handed on, or one that was.
    Envelope = 4,
}

impl Kind {
    /// The kind of sealed content, read from its last byte.
    pub fn of(content: &[u8]) -> Option<Self> {
        match content.last()? {
            1 => Some(Self::Control),
            2 => Some(Self::Packets),
            3 => Some(Self::Slice),
            4 => Some(Self::Envelope),
            _ => None,
        }
    }
}

/// The top bit of a packet record's length: the transport checksum is still to be done.
const CSUM_PENDING: u16 = 0x8000;
/// Bytes before each packet of a `packets` body.
pub const RECORD: usize = 4;
/// The longest packet that fits a record.
pub const MAX_RECORD: usize = 0x7fff;

/// Appends a packet to a `packets` body.
///
/// The caller keeps packets to [`MAX_RECORD`] bytes.
pub fn push_packet(body: &mut Vec<u8>, packet: &[u8], csum_pending: bool, network: u16) {
    debug_assert!(packet.len() <= MAX_RECORD);
    let flag = if csum_pending { CSUM_PENDING } else { 0 };
    body.extend_from_slice(&(packet.len() as u16 | flag).to_be_bytes());
    body.extend_from_slice(&network.to_be_bytes());
    body.extend_from_slice(packet);
}

/// A packet of a `packets` body: where it lies, and what was said of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// First byte, from the start of the body.
    pub start: usize,
    /// One past its last byte.
    pub end: usize,
    /// The transport checksum is still to be done.
    pub csum_pending: bool,
    /// The network it belongs to.
    pub network: u16,
}

/// Reads the record that starts at `at`; `None` at the end of the body.
pub fn next_packet(body: &[u8], at: usize) -> Option<Result<Record, Drop>> {
    let rest = body.get(at..).filter(|rest| !rest.is_empty())?;
    let Some(head) = rest.first_chunk::<RECORD>() else {
        return Some(Err(Drop::TooShort));
    };
    let length = u16_at(head, 0);
    let start = at + RECORD;
    let end = start + usize::from(length & !CSUM_PENDING);
    if end > body.len() || end == start {
        return Some(Err(Drop::TooShort));
    }
    let csum_pending = length & CSUM_PENDING != 0;
    Some(Ok(Record {
        start,
        end,
        csum_pending,
        network: u16_at(head, 2),
    }))
}

/// What the packet is that a slice belongs to. The receiver parses the packet and checks that it is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Shape {
    /// One packet, sent as it is; its headers are part of the payload and it is whole or nothing.
    Plain = 0,
    /// TCP over IPv4, to be cut into segments.
    Tcp4 = 1,
    /// TCP over IPv6.
    Tcp6 = 2,
    /// UDP over IPv4, to be cut into datagrams.
    Udp4 = 3,
    /// UDP over IPv6.
    Udp6 = 4,
}

impl Shape {
    const fn from_wire(bits: u8) -> Option<Self> {
        Some(match bits {
            0 => Self::Plain,
            1 => Self::Tcp4,
            2 => Self::Tcp6,
            3 => Self::Udp4,
            4 => Self::Udp6,
            _ => return None,
        })
    }
}

/// What a slice says of itself: its last 12 bytes.
///
/// ```text
/// 0        2        4        6        8         9        10       11     12
/// | offset | total  |segment | network| headers | index  |shape+fl| kind |
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slice {
    /// Where this payload begins in the packet's payload, in bytes.
    pub offset: u16,
    /// Bytes of the packet's payload in all.
    pub total: u16,
    /// Bytes of payload in each segment the packet is to be cut into; 0 for [`Shape::Plain`].
    pub segment: u16,
    /// The network it belongs to.
    pub network: u16,
    /// Bytes of the copy of the packet's headers that stands before the trailer.
    pub headers: u8,
    /// How many slices of the packet come before. Their counters are consecutive, so `counter - index` names the packet.
    pub index: u8,
    /// What the packet is.
    pub shape: Shape,
    /// The transport checksum is still to be done (always so unless [`Shape::Plain`]).
    pub csum_pending: bool,
    /// The first segment carries CWR and the others must not (RFC 3168 §6.1.2).
    pub cwr: bool,
    /// It is for every container of the network, not routed.
    pub group: bool,
}

const SLICE_GROUP: u8 = 0x20;
const SLICE_CSUM: u8 = 0x40;
const SLICE_CWR: u8 = 0x80;

impl Slice {
    /// Bytes of the trailer.
    pub const SIZE: usize = 12;

    /// Writes the trailer.
    pub fn to_bytes(self) -> [u8; Self::SIZE] {
        let mut b = [0; Self::SIZE];
        b[0..2].copy_from_slice(&self.offset.to_be_bytes());
        b[2..4].copy_from_slice(&self.total.to_be_bytes());
        b[4..6].copy_from_slice(&self.segment.to_be_bytes());
        b[6..8].copy_from_slice(&self.network.to_be_bytes());
        b[8] = self.headers;
        b[9] = self.index;
        b[10] = self.shape as u8
            | if self.csum_pending { SLICE_CSUM } else { 0 }
            | if self.cwr { SLICE_CWR } else { 0 }
            | if self.group { SLICE_GROUP } else { 0 };
        b[11] = Kind::Slice as u8;
        b
    }

    /// Reads the trailer of a slice's content and the length of its payload, which stands first.
    ///
    /// # Errors
    /// [`Drop::TooShort`]; [`Drop::Malformed`] when offset and length leave the packet, or the shape is unknown.
    pub fn parse(content: &[u8]) -> Result<(Self, usize), Drop> {
        let (rest, b) = content
            .split_last_chunk::<{ Self::SIZE }>()
            .ok_or(Drop::TooShort)?;
        let slice = Self {
            offset: u16_at(b, 0),
            total: u16_at(b, 2),
            segment: u16_at(b, 4),
            network: u16_at(b, 6),
            headers: b[8],
            index: b[9],
            shape: Shape::from_wire(b[10] & 0x1f).ok_or(Drop::Malformed)?,
            csum_pending: b[10] & SLICE_CSUM != 0,
            cwr: b[10] & SLICE_CWR != 0,
            group: b[10] & SLICE_GROUP != 0,
        };
        let payload = rest
            .len()
            .checked_sub(usize::from(slice.headers))
            .ok_or(Drop::TooShort)?;
        let end = usize::from(slice.offset) + payload;
        if payload == 0 || end > usize::from(slice.total) {
            return Err(Drop::Malformed);
        }
        Ok((slice, payload))
    }
}

/// Bytes of a node's id by which an envelope names it. Nobody can make keys whose id begins like another's.
pub const END: usize = 16;

/// By how many members an envelope may be handed on.
pub const MAX_RELAYS: u8 = 1;

/// Bytes that a relayed datagram is shorter than a direct one on the same path: the outer header, trailer and tag.
pub const ENVELOPE: usize = HEADER + Envelope::SIZE + TAG;

/// What an envelope says of the datagram in it: its last 34 bytes.
///
/// ```text
/// 0             16            32     33
/// |    from     |     to      | hops | kind |
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// Who sent the datagram. A relay checks it against the session that the envelope came in.
    pub from: [u8; END],
    /// Whom it is for.
    pub to: [u8; END],
    /// By how many members it may still be handed on, at most [`MAX_RELAYS`].
    pub hops: u8,
}

impl Envelope {
    /// Bytes of the trailer.
    pub const SIZE: usize = 2 * END + 2;

    /// An envelope that leaves its sender.
    pub fn new(from: &NodeId, to: &NodeId) -> Self {
        Self {
            from: end_of(from),
            to: end_of(to),
            hops: MAX_RELAYS,
        }
    }

    /// Writes the trailer.
    pub fn to_bytes(self) -> [u8; Self::SIZE] {
        let mut b = [0; Self::SIZE];
        b[..END].copy_from_slice(&self.from);
        b[END..2 * END].copy_from_slice(&self.to);
        b[2 * END] = self.hops;
        b[2 * END + 1] = Kind::Envelope as u8;
        b
    }

    /// Reads the trailer of an envelope's content and the datagram in it.
    ///
    /// # Errors
    /// [`Drop::TooShort`] if it cannot hold a datagram, [`Drop::TooManyHops`] if it claims more than [`MAX_RELAYS`].
    pub fn parse(content: &[u8]) -> Result<(Self, &[u8]), Drop> {
        let (datagram, b) = content
            .split_last_chunk::<{ Self::SIZE }>()
            .filter(|(datagram, _)| datagram.len() >= HEADER)
            .ok_or(Drop::TooShort)?;
        let mut envelope = Self {
            from: [0; END],
            to: [0; END],
            hops: b[2 * END],
        };
        envelope.from.copy_from_slice(&b[..END]);
        envelope.to.copy_from_slice(&b[END..2 * END]);
        if envelope.hops > MAX_RELAYS {
            return Err(Drop::TooManyHops);
        }
        Ok((envelope, datagram))
    }
}

/// How an envelope names a node.
pub fn end_of(node: &NodeId) -> [u8; END] {
    let mut end = [0; END];
    end.copy_from_slice(&node.as_bytes()[..END]);
    end
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_has_this_layout() {
        let header = Header {
            kind: Type::Data,
            lane: 3,
            receiver: 0x0102_0304,
            counter: 0x0a0b,
        };
        let bytes = header.to_bytes();
        assert_eq!(
            bytes,
            [0x14, 3, 0, 0, 1, 2, 3, 4, 0, 0, 0, 0, 0, 0, 0x0a, 0x0b]
        );
        assert_eq!(Header::parse(&bytes), Ok(header));
        assert_eq!(Header::parse(&bytes[..15]), Err(Drop::TooShort));
        for (at, value) in [(0, 0x24), (0, 0x19), (0, 0x10), (2, 1), (3, 1)] {
            let mut other = bytes;
            other[at] = value;
            assert_eq!(Header::parse(&other), Err(Drop::UnknownType));
        }
    }

    #[test]
    fn packets_come_out_as_they_went_in() {
        let mut body = Vec::new();
        push_packet(&mut body, &[1, 2, 3], true, 7);
        push_packet(&mut body, &[4], false, 0);
        let first = next_packet(&body, 0).unwrap().unwrap();
        assert_eq!(
            first,
            Record {
                start: 4,
                end: 7,
                csum_pending: true,
                network: 7
            }
        );
        let second = next_packet(&body, first.end).unwrap().unwrap();
        assert_eq!(&body[second.start..second.end], [4]);
        assert_eq!(next_packet(&body, second.end), None);
        assert_eq!(next_packet(&body[..6], 0), Some(Err(Drop::TooShort)));
        assert_eq!(next_packet(&[0, 0, 0, 0], 0), Some(Err(Drop::TooShort)));
    }

    #[test]
    fn an_envelope_has_this_layout() {
        let (from, to) = (NodeId::from_bytes([7; 32]), NodeId::from_bytes([8; 32]));
        let envelope = Envelope::new(&from, &to);
        let trailer = [&[7; 16][..], &[8; 16], &[MAX_RELAYS, 4]].concat();
        assert_eq!(envelope.to_bytes()[..], trailer);
        let content = [&[9; HEADER][..], &trailer].concat();
        assert_eq!(Envelope::parse(&content), Ok((envelope, &[9; HEADER][..])));
        assert_eq!(Kind::of(&content), Some(Kind::Envelope));
        assert_eq!(Envelope::parse(&content[1..]), Err(Drop::TooShort));
        let mut further = content;
        let hops = further.len() - 2;
        further[hops] = MAX_RELAYS + 1;
        assert_eq!(Envelope::parse(&further), Err(Drop::TooManyHops));
    }

    #[test]
    fn a_slice_stays_inside_its_packet() {
        let slice = Slice {
            offset: 100,
            total: 110,
            segment: 1448,
            network: 0,
            headers: 4,
            index: 1,
            shape: Shape::Tcp4,
            csum_pending: true,
            cwr: false,
            group: true,
        };
        let content = |payload: usize| [&vec![9; payload + 4][..], &slice.to_bytes()].concat();
        assert_eq!(Slice::parse(&content(10)), Ok((slice, 10)));
        assert_eq!(Slice::parse(&content(11)), Err(Drop::Malformed));
        assert_eq!(Slice::parse(&content(0)), Err(Drop::Malformed));
        assert_eq!(Slice::parse(&content(10)[12..]), Err(Drop::TooShort));
    }
}
