//! ICMP errors that this node's kernel sends to containers of other nodes: "time exceeded" in the middle of a
//! traceroute, "packet too big" from a node whose containers have a smaller MTU.
//!
//! The kernel sends them from the gateway's address. Every node has that one, so it says nothing about who speaks:
//! members accept only sources of the sender's own addresses, and a kernel takes no packet from an address that it has
//! itself. An error quotes the packet it is about. If that was for an address of this node, the error leaves under
//! this address: the node speaks for what lies behind it, and can say nothing that its container could not have said.
//! Whoever gets the error looks at what it quotes, not at who sent it (RFC 5927 §4.1).

#![deny(clippy::disallowed_methods)]

use std::net::IpAddr;

use weave_model::Drop;

use super::csum;
use super::inner::{Inner, protocol};
use super::routes::{Owner, Routes};

/// Bytes of an ICMP error in front of what it quotes, in both families.
const HEAD: usize = 8;

/// Gives an error of this node's kernel a source of its own, and says who that is. `packet` has all its checksums.
///
/// # Errors
/// [`Drop::ForeignSource`] for anything else than an error from the gateway about a packet for an address of this node.
pub fn speak_for_own(packet: &mut [u8], inner: &Inner, routes: &Routes) -> Result<IpAddr, Drop> {
    let gateway = routes.is_gateway(inner.source);
    if !gateway || inner.fragment || !is_error(packet, inner) {
        return Err(Drop::ForeignSource);
    }
    let quoted = packet.get(inner.transport + HEAD..).unwrap_or_default();
    let quoted = Inner::parse_prefix(quoted).map_err(|_| Drop::ForeignSource)?;
    let ours = routes.owner_of(quoted.destination) == Some(Owner::Here);
    if !ours || quoted.source != inner.destination {
        return Err(Drop::ForeignSource);
    }
    match (inner.source, quoted.destination) {
        (IpAddr::V4(_), IpAddr::V4(own)) => {
            packet[12..16].copy_from_slice(&own.octets());
            packet[10..12].fill(0);
            let sum = !csum::fold(csum::add(0, &packet[..inner.transport]));
            packet[10..12].copy_from_slice(&sum.to_be_bytes());
        }
        (IpAddr::V6(_), IpAddr::V6(own)) => {
            packet[8..24].copy_from_slice(&own.octets());
            let (_, message) = packet.split_at_mut(inner.transport);
            message[2..4].fill(0);
            let ends = csum::pseudo(
                quoted.destination,
                inner.destination,
                protocol::ICMPV6,
                message.len() as u32,
            );
            let sum = !csum::fold(csum::add(ends, message));
            message[2..4].copy_from_slice(&sum.to_be_bytes());
        }
        _ => return Err(Drop::ForeignSource),
    }
    Ok(quoted.destination)
}

/// Whether a packet is an ICMP error: of IPv4 destination unreachable, time exceeded or a bad parameter (RFC 792); of
/// IPv6 any (RFC 4443 §2.1). Redirects are left out: they are for neighbours.
fn is_error(packet: &[u8], inner: &Inner) -> bool {
    let kind = packet.get(inner.transport);
    match inner.protocol {
        protocol::ICMP => kind.is_some_and(|kind| matches!(kind, 3 | 11 | 12)),
        protocol::ICMPV6 => kind.is_some_and(|kind| matches!(kind, 1..=127)),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use etherparse::{Icmpv4Type, Icmpv6Type, PacketBuilder, SlicedPacket, icmpv4};

    use super::*;
    use crate::path::inner::tests::{tcp4, udp6};
    use crate::path::routes::Owned;

    /// 10.32.0.0 to .255 are another's, 10.40.0.0/24 (and fd00::8:0/120) are this node's.
    fn routes() -> Routes {
        let range = weave_model::ClusterRange::new(
            "10.32.0.0/12".parse().unwrap(),
            "fd00::/48".parse().unwrap(),
        );
        let owned = |first, owner| Owned {
            first,
            last: first + 255,
            owner,
        };
        Routes {
            range: Some(range.unwrap()),
            owners: vec![owned(0, Owner::Peer(0)), owned(8 << 16, Owner::Here)],
            ..Routes::default()
        }
    }

    fn exceeded4(source: [u8; 4], destination: [u8; 4], quoted: &[u8]) -> Vec<u8> {
        let kind = Icmpv4Type::TimeExceeded(icmpv4::TimeExceededCode::TtlExceededInTransit);
        let mut packet = Vec::new();
        PacketBuilder::ipv4(source, destination, 64)
            .icmpv4(kind)
            .write(&mut packet, quoted)
            .unwrap();
        packet
    }

    fn too_big6(source: &str, destination: &str, quoted: &[u8]) -> Vec<u8> {
        let [source, destination] =
            [source, destination].map(|ip| ip.parse::<std::net::Ipv6Addr>().unwrap().octets());
        let mut packet = Vec::new();
        PacketBuilder::ipv6(source, destination, 64)
            .icmpv6(Icmpv6Type::PacketTooBig { mtu: 1500 })
            .write(&mut packet, quoted)
            .unwrap();
        packet
    }

    fn speak(packet: &mut [u8]) -> Result<IpAddr, Drop> {
        let inner = Inner::parse(packet).unwrap();
        speak_for_own(packet, &inner, &routes())
    }

    #[test]
    fn an_error_leaves_under_the_address_it_is_about() {
        let mut packet = exceeded4([10, 32, 0, 1], [10, 32, 0, 2], &tcp4(40)[..28]);
        let own: IpAddr = "10.40.0.2".parse().unwrap();
        assert_eq!(speak(&mut packet), Ok(own));
        assert_eq!(Inner::parse(&packet).unwrap().source, own);
        let sliced = SlicedPacket::from_ip(&packet).unwrap();
        let header = sliced
            .net
            .as_ref()
            .unwrap()
            .ipv4_ref()
            .unwrap()
            .header()
            .to_header();
        assert_eq!(header.header_checksum, header.calc_header_checksum());
        assert_eq!(csum::fold(csum::add(0, &packet[20..])), 0xffff);

        let mut packet = too_big6("fd00::1", "fd00::2", &udp6(900));
        let own: IpAddr = "fd00::8:2".parse().unwrap();
        assert_eq!(speak(&mut packet), Ok(own));
        assert_eq!(Inner::parse(&packet).unwrap().source, own);
        let ends = csum::pseudo(
            own,
            "fd00::2".parse().unwrap(),
            58,
            packet.len() as u32 - 40,
        );
        assert_eq!(csum::fold(csum::add(ends, &packet[40..])), 0xffff);
    }

    #[test]
    fn nothing_else_does() {
        let quoted = tcp4(40);
        let mut turned = quoted.clone();
        turned[16] = 11;
        let lies = [
            exceeded4([10, 32, 0, 3], [10, 32, 0, 2], &quoted),
            exceeded4([10, 40, 0, 2], [10, 32, 0, 2], &quoted),
            exceeded4([10, 32, 0, 1], [10, 32, 0, 9], &quoted),
            exceeded4([10, 32, 0, 1], [10, 32, 0, 2], &turned),
            exceeded4([10, 32, 0, 1], [10, 32, 0, 2], &quoted[..19]),
            exceeded4([10, 32, 0, 1], [10, 32, 0, 2], &[]),
            too_big6("fd00::3", "fd00::2", &udp6(9)),
            too_big6("fd00::1", "fd00::2", &udp6(9)[..39]),
            quoted,
        ];
        for mut lie in lies {
            let before = lie.clone();
            assert_eq!(speak(&mut lie), Err(Drop::ForeignSource));
            assert_eq!(lie, before);
        }
        let mut echo = exceeded4([10, 32, 0, 1], [10, 32, 0, 2], &tcp4(40));
        echo[20] = 8;
        assert_eq!(speak(&mut echo), Err(Drop::ForeignSource));
    }
}
