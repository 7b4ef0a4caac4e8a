//! Reading a container's packet: who sent it, to whom, and where its transport header stands.

#![deny(clippy::disallowed_methods)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use weave_model::Drop;

/// IP protocol numbers (IANA).
pub mod protocol {
    /// Hop-by-hop options of IPv6.
    pub const HOP_BY_HOP: u8 = 0;
    /// Errors and echoes of IPv4.
    pub const ICMP: u8 = 1;
    /// Group management of IPv4.
    pub const IGMP: u8 = 2;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// Routing header of IPv6.
    pub const ROUTING: u8 = 43;
    /// Fragment header of IPv6.
    pub const FRAGMENT: u8 = 44;
    /// ICMP for IPv6: also neighbour discovery and group management.
    pub const ICMPV6: u8 = 58;
    /// Destination options of IPv6.
    pub const OPTIONS: u8 = 60;
}

/// Types of routing headers that list whole addresses (IANA).
mod routing {
    /// Source routing: the last stop is the last of the list (RFC 2460 §4.4).
    pub(super) const SOURCE: u8 = 0;
    /// Mobile nodes: one address, the home (RFC 6275 §6.4).
    pub(super) const HOME: u8 = 2;
    /// Segments: the last stop is the first of the list (RFC 8754 §2).
    pub(super) const SEGMENTS: u8 = 4;
}

/// What the headers of a packet say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inner {
    /// The sender's address.
    pub source: IpAddr,
    /// The receiver's address.
    pub destination: IpAddr,
    /// The transport protocol, behind any extension headers.
    pub protocol: u8,
    /// Where the transport header starts, in bytes.
    pub transport: usize,
    /// The two ECN bits.
    pub ecn: u8,
    /// It is a fragment, so the transport header may be missing.
    pub fragment: bool,
}

impl Inner {
    /// Reads the IP headers; the length they state must be that of `packet`.
    ///
    /// # Errors
    /// [`Drop::Malformed`] for anything that is not one whole IPv4 or IPv6 packet.
    pub fn parse(packet: &[u8]) -> Result<Self, Drop> {
        let inner = Self::parse_prefix(packet)?;
        if stated_length(packet) == Some(packet.len()) {
            Ok(inner)
        } else {
            Err(Drop::Malformed)
        }
    }

    /// Reads the IP headers of a packet of which only the beginning is there.
    ///
    /// # Errors
    /// [`Drop::Malformed`] if the headers themselves are not whole and sound.
    pub fn parse_prefix(packet: &[u8]) -> Result<Self, Drop> {
        match packet.first().map(|byte| byte >> 4) {
            Some(4) => parse_v4(packet),
            Some(6) => parse_v6(packet),
            _ => None,
        }
        .ok_or(Drop::Malformed)
    }

    /// Bytes of all headers in front of the payload that can be cut: TCP's and UDP's only.
    pub fn headers(&self, packet: &[u8]) -> Option<usize> {
        match self.protocol {
            protocol::TCP => {
                let length = usize::from(packet.get(self.transport + 12)? >> 4) * 4;
                (length >= 20 && self.transport + length <= packet.len())
                    .then_some(self.transport + length)
            }
            protocol::UDP => (self.transport + 8 <= packet.len()).then_some(self.transport + 8),
            _ => None,
        }
    }

    /// The last destination, which the pseudo-header names (RFC 8200 §8.1): that of a routing header that is not used up,
    /// else [`Inner::destination`]. `packet` may end behind the extension headers.
    pub fn last_destination(&self, packet: &[u8]) -> IpAddr {
        let routed = self.destination.is_ipv6() && self.transport > 40;
        let last = if routed { last_stop(packet) } else { None };
        last.unwrap_or(self.destination)
    }

    /// Where the transport protocol keeps its checksum, from the start of its header.
    pub const fn csum_offset(&self) -> Option<u16> {
        match self.protocol {
            protocol::TCP => Some(16),
            protocol::UDP => Some(6),
            _ => None,
        }
    }
}

/// The length that the IP header states for the whole packet.
fn stated_length(packet: &[u8]) -> Option<usize> {
    let word = |at: usize| {
        Some(usize::from(u16::from_be_bytes([
            *packet.get(at)?,
            *packet.get(at + 1)?,
        ])))
    };
    if packet.first()? >> 4 == 4 {
        word(2)
    } else {
        Some(word(4)? + 40)
    }
}

fn parse_v4(packet: &[u8]) -> Option<Inner> {
    let head = packet.first_chunk::<20>()?;
    let transport = usize::from(head[0] & 0xf) * 4;
    if transport < 20 || transport > packet.len() {
        return None;
    }
    let fragment = u16::from_be_bytes([head[6], head[7]]) & 0x3fff != 0;
    Some(Inner {
        source: Ipv4Addr::new(head[12], head[13], head[14], head[15]).into(),
        destination: Ipv4Addr::new(head[16], head[17], head[18], head[19]).into(),
        protocol: head[9],
        transport,
        ecn: head[1] & 3,
        fragment,
    })
}

fn parse_v6(packet: &[u8]) -> Option<Inner> {
    let head = packet.first_chunk::<40>()?;
    let address = |at: usize| {
        head[at..at + 16]
            .try_into()
            .map(|b: [u8; 16]| IpAddr::from(Ipv6Addr::from(b)))
            .ok()
    };
    let (mut next, mut at, mut fragment) = (head[6], 40, false);
    loop {
        let length = match next {
            protocol::HOP_BY_HOP | protocol::ROUTING | protocol::OPTIONS => {
                usize::from(*packet.get(at + 1)?) * 8 + 8
            }
            protocol::FRAGMENT if !fragment => {
                fragment = true;
                8
            }
            _ => break,
        };
        next = *packet.get(at)?;
        at += length;
        if at > packet.len() {
            return None;
        }
        if fragment {
            break;
        }
    }
    Some(Inner {
        source: address(8)?,
        destination: address(24)?,
        protocol: next,
        transport: at,
        ecn: (head[1] >> 4) & 3,
        fragment,
    })
}

/// The last address of the routing header, if the packet is still on its way there.
fn last_stop(packet: &[u8]) -> Option<IpAddr> {
    let (mut next, mut at) = (packet[6], 40);
    loop {
        let end = at + usize::from(*packet.get(at + 1)?) * 8 + 8;
        match next {
            protocol::ROUTING if *packet.get(at + 3)? > 0 => {
                let last = match *packet.get(at + 2)? {
                    routing::SEGMENTS => at + 8,
                    routing::SOURCE | routing::HOME => end - 16,
                    _ => return None,
                };
                let address = packet.get(last..)?.first_chunk::<16>()?;
                return Some(Ipv6Addr::from(*address).into());
            }
            protocol::HOP_BY_HOP | protocol::ROUTING | protocol::OPTIONS => {
                (next, at) = (*packet.get(at)?, end);
            }
            _ => return None,
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use etherparse::PacketBuilder;

    pub(crate) fn tcp4(payload: usize) -> Vec<u8> {
        let builder =
            PacketBuilder::ipv4([10, 32, 0, 2], [10, 40, 0, 2], 64).tcp(1000, 2000, 77, 64_000);
        write(builder.psh().ack(5).options_raw(&[1; 12]).unwrap(), payload)
    }

    pub(crate) fn udp6(payload: usize) -> Vec<u8> {
        let (s, d) = (
            "fd00::2".parse::<Ipv6Addr>().unwrap(),
            "fd00::8:2".parse::<Ipv6Addr>().unwrap(),
        );
        let builder = PacketBuilder::ipv6(s.octets(), d.octets(), 64).udp(1000, 2000);
        let mut packet = Vec::new();
        builder.write(&mut packet, &bytes(payload)).unwrap();
        packet
    }

    fn write(
        builder: etherparse::PacketBuilderStep<etherparse::TcpHeader>,
        payload: usize,
    ) -> Vec<u8> {
        let mut packet = Vec::new();
        builder.write(&mut packet, &bytes(payload)).unwrap();
        packet
    }

    pub(crate) fn bytes(len: usize) -> Vec<u8> {
        (0..len).map(|i| (i % 251) as u8).collect()
    }

    #[test]
    fn headers_are_found() {
        let packet = tcp4(100);
        let inner = Inner::parse(&packet).unwrap();
        assert_eq!(
            (inner.source.to_string(), inner.destination.to_string()),
            ("10.32.0.2".into(), "10.40.0.2".into())
        );
        assert_eq!(
            (inner.protocol, inner.transport, inner.headers(&packet)),
            (6, 20, Some(52))
        );
        let packet = udp6(9);
        let inner = Inner::parse(&packet).unwrap();
        assert_eq!(
            (inner.protocol, inner.transport, inner.headers(&packet)),
            (17, 40, Some(48))
        );
        assert_eq!(inner.source.to_string(), "fd00::2");
    }

    #[test]
    fn lengths_must_agree() {
        let mut packet = tcp4(100);
        packet.push(0);
        assert_eq!(Inner::parse(&packet), Err(Drop::Malformed));
        assert_eq!(Inner::parse(&packet[..100]), Err(Drop::Malformed));
        assert_eq!(Inner::parse(&[]), Err(Drop::Malformed));
        packet[0] = 0x44;
        assert_eq!(Inner::parse_prefix(&packet), Err(Drop::Malformed));
    }

    #[test]
    fn extension_headers_are_walked_and_fragments_seen() {
        let mut packet = udp6(8);
        packet[6] = protocol::HOP_BY_HOP;
        packet.splice(
            40..40,
            [
                protocol::OPTIONS,
                0,
                1,
                4,
                0,
                0,
                0,
                0,
                protocol::UDP,
                0,
                1,
                4,
                0,
                0,
                0,
                0,
            ],
        );
        let inner = Inner::parse_prefix(&packet).unwrap();
        assert_eq!(
            (inner.protocol, inner.transport, inner.fragment),
            (17, 56, false)
        );
        packet[48] = protocol::FRAGMENT;
        let inner = Inner::parse_prefix(&packet).unwrap();
        assert_eq!((inner.transport, inner.fragment), (64, true));
        assert_eq!(Inner::parse_prefix(&packet[..50]), Err(Drop::Malformed));
    }

    #[test]
    fn a_routing_header_on_its_way_says_where_it_ends() {
        let stop = |last: u8| [[0xfd; 15].as_slice(), &[last]].concat();
        let packet = |kind: u8, left: u8| {
            let mut packet = udp6(0);
            packet[6] = protocol::ROUTING;
            let head = [protocol::UDP, 4, kind, left, 1, 0, 0, 0];
            packet.splice(40..40, [&head[..], &stop(1), &stop(2)].concat());
            packet
        };
        let last = |packet: &[u8]| {
            let inner = Inner::parse_prefix(packet).unwrap();
            assert_eq!(inner.transport, 80);
            inner.last_destination(packet).to_string()
        };
        let first = "fdfd:fdfd:fdfd:fdfd:fdfd:fdfd:fdfd:fd01";
        let second = "fdfd:fdfd:fdfd:fdfd:fdfd:fdfd:fdfd:fd02";
        assert_eq!(last(&packet(routing::SOURCE, 2)), second);
        assert_eq!(last(&packet(routing::HOME, 1)), second);
        assert_eq!(last(&packet(routing::SEGMENTS, 1)), first);
        assert_eq!(last(&packet(routing::SEGMENTS, 0)), "fd00::8:2");
        assert_eq!(last(&packet(3, 1)), "fd00::8:2", "it lists parts only");
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(packet: Vec<u8>) {
            if let Ok(inner) = Inner::parse(&packet) {
                assert!(inner.transport <= packet.len());
                let _ = inner.last_destination(&packet);
                let _ = inner.headers(&packet);
            }
        }
    }
}
