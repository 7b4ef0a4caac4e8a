//! Sockets that stand where others are meant, and the route that brings them the packets.
//!
//! A *transparent* socket (`IP_TRANSPARENT`) may have an address that is not the host's: it accepts what an nftables rule
//! gives it ([`Rule::tproxy`](crate::nft::Rule::tproxy)) under the address the client asked for, and connects from the
//! client's. Packets to a foreign address are delivered here only if a route says so; [`route_marked`] makes one for the
//! packets that bear a mark, and for no others.
//!
//! Sources: `Documentation/networking/tproxy.rst`, `ip(7)`, `tcp(7)`, `rtnetlink(7)`.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::time::Duration;

use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use netlink_sys::Socket as Netlink;
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};

use crate::netlink::addr::family;
use crate::netlink::ask::{self, ask};

pub mod datagrams;

/// How many connections wait until they are accepted, where `net.core.somaxconn` allows as many.
const BACKLOG: i32 = 4096;
/// The ports from which connections in others' names are made, below those that a host chooses from by itself: there it
/// may have a connection of its own to the same place.
const PORTS: std::ops::Range<u32> = 10_240..32_700;
/// How many ports are tried for one connection.
const TRIES: u32 = 64;
/// How long a connection is silent until it is asked whether the other end is there, and how often it is asked again.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(15));
/// The number of every namespace's loopback device.
const LOOPBACK: u32 = 1;

/// Who a connection seems to come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Name {
    /// This host, by the address that the route has.
    Host,
    /// Somebody else, or this host by an address that no device of it has.
    Foreign(IpAddr),
}

/// Listens as a transparent socket that never waits. Several may share the address; the kernel spreads connections over
/// them.
///
/// # Errors
/// `PermissionDenied` without CAP_NET_ADMIN, and those of `bind`.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM.nonblocking(),
        Some(Protocol::TCP),
    )?;
    socket.set_reuse_port(true)?;
    socket.set_reuse_address(true)?;
    transparent(&socket, address.ip())?;
    // Connections that are accepted inherit these.
    socket.set_tcp_nodelay(true)?;
    socket.set_out_of_band_inline(true)?;
    keep_alive(&socket)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Begins a connection that never waits. When the other end has taken it, this end confirms that with the first bytes that
/// are written, or when [`confirm`] is called, or else by the kernel's delayed acknowledgement (200 ms). `turn` chooses the port of one that is made in another's name; it should be
/// another one each time.
///
/// # Errors
/// `AddrInUse` when no port is free, `NetworkUnreachable` and the like when there is no way; what comes later is told by
/// the socket.
pub fn dial(to: SocketAddr, name: Name, turn: u32) -> io::Result<TcpStream> {
    let Name::Foreign(from) = name else {
        return connect(dialler(to)?, to);
    };
    let count = PORTS.end - PORTS.start;
    for step in 0..TRIES {
        let port = PORTS.start + turn.wrapping_add(step) % count;
        let socket = dialler(to)?;
        transparent(&socket, from)?;
        socket.set_reuse_address(true)?;
        let from = SocketAddr::new(from, port as u16);
        match socket.bind(&from.into()).and_then(|()| connect(socket, to)) {
            Err(error) if is_taken(&error) => {}
            done => return done,
        }
    }
    Err(io::ErrorKind::AddrInUse.into())
}

/// Ends a connection at once when it is dropped: the other end is told that it broke.
///
/// # Errors
/// Those of `setsockopt`.
pub fn reset_on_drop(socket: &impl AsFd) -> io::Result<()> {
    SockRef::from(socket).set_linger(Some(Duration::ZERO))
}

/// Writes what the end of the direction (`shutdown`) follows at once: both leave in one segment. A mere `close` would lose
/// them where the other end has sent what was not read.
///
/// # Errors
/// Those of `send`.
pub fn write_last(socket: &impl AsFd, bytes: &[u8]) -> io::Result<usize> {
    let flags = libc::MSG_MORE | libc::MSG_NOSIGNAL;
    SockRef::from(socket).send_with_flags(bytes, flags)
}

/// Says now, if it was not said together with the first bytes, that a connection that was [dialled](dial) has been made:
/// whom it leads to does not have it before, and one that speaks first waits for that.
///
/// # Errors
/// Those of `setsockopt`.
pub fn confirm(socket: &impl AsFd) -> io::Result<()> {
    SockRef::from(socket).set_tcp_quickack(true)
}

fn dialler(to: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(
        Domain::for_address(to),
        Type::STREAM.nonblocking(),
        Some(Protocol::TCP),
    )?;
    socket.set_tcp_nodelay(true)?;
    // The first bytes may be there already; then a packet without any is saved.
    socket.set_tcp_quickack(false)?;
    // Urgent data comes in its place among the rest.
    socket.set_out_of_band_inline(true)?;
    // The other end may be lost without a word too.
    keep_alive(&socket)?;
    Ok(socket)
}

fn connect(socket: Socket, to: SocketAddr) -> io::Result<TcpStream> {
    match socket.connect(&to.into()) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
        _ => Ok(socket.into()),
    }
}

fn is_taken(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::AddrInUse | io::ErrorKind::AddrNotAvailable
    )
}

fn transparent(socket: &Socket, of: IpAddr) -> io::Result<()> {
    match of {
        IpAddr::V4(_) => socket.set_ip_transparent_v4(true),
        IpAddr::V6(_) => socket.set_ip_transparent_v6(true),
    }
}

fn keep_alive(socket: &Socket) -> io::Result<()> {
    let (time, interval) = KEEPALIVE;
    let often = TcpKeepalive::new().with_time(time).with_interval(interval);
    socket.set_tcp_keepalive(&often)
}

/// Has packets with a mark delivered to this host whatever their destination: a rule of routing with this priority, and
/// one route in a table of its own. What is there already stays. Where IPv6 is off it is for IPv4 alone; a later call makes
/// up for that.
///
/// # Errors
/// `PermissionDenied` without CAP_NET_ADMIN.
pub fn route_marked(mark: u32, table: u32, priority: u32) -> io::Result<()> {
    let socket = ask::open()?;
    for any in [
        IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    ] {
        let done = change(
            &socket,
            RouteNetlinkMessage::NewRule(rule(any, mark, table, priority)),
            NLM_F_CREATE | NLM_F_EXCL,
        )
        .and_then(|()| {
            let route = RouteNetlinkMessage::NewRoute(to_this_host(any, table));
            change(&socket, route, NLM_F_CREATE | NLM_F_REPLACE)
        });
        match done {
            Err(error) if any.is_ipv6() && has_no_ipv6(&error) => {}
            done => done?,
        }
    }
    Ok(())
}

/// Whether the kernel has no IPv6, or it is off (`disable_ipv6`): then no route leads to a device, and there are no packets.
/// Who lacks CAP_NET_ADMIN is told EPERM.
fn has_no_ipv6(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EAFNOSUPPORT | libc::EACCES)
    )
}

/// Takes back what [`route_marked`] made, as far as it is there.
///
/// # Errors
/// `PermissionDenied` without CAP_NET_ADMIN.
pub fn unroute_marked(mark: u32, table: u32, priority: u32) -> io::Result<()> {
    let socket = ask::open()?;
    for any in [
        IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    ] {
        let made = [
            RouteNetlinkMessage::DelRule(rule(any, mark, table, priority)),
            RouteNetlinkMessage::DelRoute(to_this_host(any, table)),
        ];
        for one in made {
            match change(&socket, one, 0) {
                Err(error) if is_absent(&error) => {}
                done => done?,
            }
        }
    }
    Ok(())
}

/// There is no such rule, no such route, or nothing of this family.
fn is_absent(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENOENT | libc::ESRCH | libc::EAFNOSUPPORT)
    )
}

fn rule(any: IpAddr, mark: u32, table: u32, priority: u32) -> RuleMessage {
    let mut rule = RuleMessage::default();
    rule.header.family = family(any);
    rule.header.action = RuleAction::ToTable;
    rule.attributes = vec![
        RuleAttribute::Priority(priority),
        RuleAttribute::FwMark(mark),
        RuleAttribute::FwMask(u32::MAX),
        RuleAttribute::Table(table),
    ];
    rule
}

fn to_this_host(any: IpAddr, table: u32) -> RouteMessage {
    let mut route = RouteMessage::default();
    route.header.address_family = family(any);
    route.header.protocol = RouteProtocol::Static;
    route.header.scope = RouteScope::Host;
    route.header.kind = RouteType::Local;
    route.header.table = u8::try_from(table).unwrap_or(RouteHeader::RT_TABLE_UNSPEC);
    route.attributes = vec![
        RouteAttribute::Table(table),
        RouteAttribute::Destination(match any {
            IpAddr::V4(any) => RouteAddress::Inet(any),
            IpAddr::V6(any) => RouteAddress::Inet6(any),
        }),
        RouteAttribute::Oif(LOOPBACK),
    ];
    route
}

/// Asks for a change and waits for the answer; that it is there already is as good.
fn change(socket: &Netlink, what: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
    match ask(socket, what, NLM_F_ACK | flags) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        answer => answer.map(drop),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn the_other_end_of_a_connection_that_is_made_is_asked_whether_it_is_there() {
        let there = TcpListener::bind("127.0.0.1:0").unwrap();
        let made = dial(there.local_addr().unwrap(), Name::Host, 0).unwrap();
        let made = SockRef::from(&made);
        assert!(made.keepalive().unwrap() && made.tcp_nodelay().unwrap());
        let (time, interval) = KEEPALIVE;
        assert_eq!(made.tcp_keepalive_time().unwrap(), time);
        assert_eq!(made.tcp_keepalive_interval().unwrap(), interval);
    }
}
