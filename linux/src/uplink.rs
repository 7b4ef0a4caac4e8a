//! What the device that leads to an address carries.
//!
//! Two questions to rtnetlink, asked on a socket that waits for the answer: this is for threads without a runtime. The
//! kernel also keeps, for each destination, what ICMP said of the path (`IP_MTU` of a connected socket). That is left
//! aside: whoever can forge an ICMP error could make it small. Our sockets do not heed it either
//! (`IP_PMTUDISC_PROBE`, see [`crate::udp`]): what they may send is what the device carries.
//!
//! Sources: `rtnetlink(7)`, `ip_sk_use_pmtu` in the kernel's `include/net/ip.h`.

use std::io;
use std::net::SocketAddr;

use ipnet::IpNet;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use netlink_packet_route::route::{RouteAttribute, RouteMessage};

use crate::netlink::addr::family;
use crate::netlink::ask::{self, ask};

/// The MTU of the device that leads to an address, in bytes of IP packet.
///
/// # Errors
/// `NetworkUnreachable` or `HostUnreachable` when no route leads there; `InvalidData` for an answer that has no device
/// in it.
pub fn mtu_towards(to: SocketAddr) -> io::Result<u32> {
    let socket = ask::open()?;
    let Some(RouteNetlinkMessage::NewRoute(route)) = ask(&socket, route_to(to), 0)? else {
        return Err(io::ErrorKind::InvalidData.into());
    };
    let device = route
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Oif(index) => Some(*index),
            _ => None,
        });
    let mut question = LinkMessage::default();
    question.header.index = device.ok_or(io::ErrorKind::InvalidData)?;
    let question = RouteNetlinkMessage::GetLink(question);
    let Some(RouteNetlinkMessage::NewLink(link)) = ask(&socket, question, 0)? else {
        return Err(io::ErrorKind::InvalidData.into());
    };
    let mtu = link
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            LinkAttribute::Mtu(mtu) => Some(*mtu),
            _ => None,
        });
    mtu.ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn route_to(to: SocketAddr) -> RouteNetlinkMessage {
    let mut question = RouteMessage::default();
    question.header.address_family = family(to.ip());
    question.header.destination_prefix_length = IpNet::from(to.ip()).prefix_len();
    let attributes = &mut question.attributes;
    attributes.push(RouteAttribute::Destination(to.ip().into()));
    if let SocketAddr::V6(v6) = to
        && v6.scope_id() != 0
    {
        attributes.push(RouteAttribute::Oif(v6.scope_id()));
    }
    RouteNetlinkMessage::GetRoute(question)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn loopback_carries_what_its_device_says() {
        let said = std::fs::read_to_string("/sys/class/net/lo/mtu").unwrap();
        let mtu: u32 = said.trim().parse().unwrap();
        for to in ["127.0.0.1:9", "[::1]:9"] {
            assert_eq!(mtu_towards(to.parse().unwrap()).unwrap(), mtu, "{to}");
        }
    }
}
