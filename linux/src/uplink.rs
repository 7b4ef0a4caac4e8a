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
use netlink_packet_core::{NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use netlink_packet_route::route::{RouteAttribute, RouteMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_ROUTE;

/// The MTU of the device that leads to an address, in bytes of IP packet.
///
/// # Errors
/// `NetworkUnreachable` or `HostUnreachable` when no route leads there; `InvalidData` for an answer that has no device
/// in it.
pub fn mtu_towards(to: SocketAddr) -> io::Result<u32> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    let RouteNetlinkMessage::NewRoute(route) = ask(&socket, route_to(to))? else {
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
    let RouteNetlinkMessage::NewLink(link) = ask(&socket, RouteNetlinkMessage::GetLink(question))?
    else {
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
    question.header.address_family = match to {
        SocketAddr::V4(_) => AddressFamily::Inet,
        SocketAddr::V6(_) => AddressFamily::Inet6,
    };
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

/// Sends a question that has one answer, and waits for it.
fn ask(socket: &Socket, question: RouteNetlinkMessage) -> io::Result<RouteNetlinkMessage> {
    let mut message = NetlinkMessage::from(question);
    message.header.flags = NLM_F_REQUEST;
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    let (bytes, _) = socket.recv_from_full()?;
    let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&bytes)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    match answer.payload {
        NetlinkPayload::InnerMessage(inner) => Ok(inner),
        NetlinkPayload::Error(error) => Err(error.to_io()),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
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
