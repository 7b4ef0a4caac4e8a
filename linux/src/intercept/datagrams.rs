//! Transparent sockets for UDP: one that hears what is meant for many addresses, one that speaks as any of them, and one
//! that asks in another's name.
//!
//! A datagram that an nftables rule gives to a socket ([`Rule::tproxy`](crate::nft::Rule::tproxy)) keeps the destination it
//! was sent to, which the kernel tells beside the bytes (`IP_ORIGDSTADDR`, `IPV6_ORIGDSTADDR`; `ip(7)`,
//! `Documentation/networking/tproxy.rst`).

use std::io;
use std::mem::zeroed;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::ptr;

use libc::c_int;
use socket2::{Domain, Protocol, Socket, Type};

use super::{Name, PORTS, TRIES, is_taken, transparent};
use crate::udp::from_storage;

/// How many datagrams are taken at once.
pub const BATCH: usize = 16;
/// The largest datagram there is, in bytes.
pub const LARGEST: usize = 65_535;
/// How many bytes may wait at a socket that hears many, where `net.core.rmem_max` allows as many.
const QUEUE: usize = 1 << 20;

/// Hears, as a transparent socket that never waits, what rules give to it. Several may share the address; the kernel
/// spreads clients over them.
///
/// # Errors
/// `PermissionDenied` without CAP_NET_ADMIN, and those of `bind`.
pub fn hear(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = socket(address)?;
    socket.set_reuse_port(true)?;
    transparent(&socket, address.ip())?;
    // What the system does not grant is less room, and no error.
    socket.set_recv_buffer_size(QUEUE)?;
    let (level, option) = match address {
        SocketAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_RECVORIGDSTADDR),
        SocketAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_RECVORIGDSTADDR),
    };
    let on: c_int = 1;
    // SAFETY: reads one integer that lives across the call.
    let set = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            ptr::from_ref(&on).cast(),
            size_of::<c_int>() as libc::socklen_t,
        )
    };
    if set < 0 {
        return Err(io::Error::last_os_error());
    }
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// Speaks as `address`, whoever's that is. Several may at a time; what comes to them is of no interest, and is soon
/// dropped.
///
/// # Errors
/// As [`hear`].
pub fn speak(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = socket(address)?;
    socket.set_reuse_address(true)?;
    transparent(&socket, address.ip())?;
    socket.set_recv_buffer_size(0)?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// Asks `to`, and hears nobody else. `turn` chooses the port of one that asks in another's name; it should be another
/// one each time.
///
/// # Errors
/// `AddrInUse` when no port is free, `NetworkUnreachable` and the like when there is no way.
pub fn ask(to: SocketAddr, name: Name, turn: u32) -> io::Result<UdpSocket> {
    let Name::Foreign(from) = name else {
        let socket = socket(to)?;
        socket.connect(&to.into())?;
        return Ok(socket.into());
    };
    let count = PORTS.end - PORTS.start;
    for step in 0..TRIES {
        let socket = socket(to)?;
        transparent(&socket, from)?;
        let port = PORTS.start + turn.wrapping_add(step) % count;
        // Not to be shared: of two that ask the same endpoint by one port, one would hear all answers.
        match socket.bind(&SocketAddr::new(from, port as u16).into()) {
            Err(error) if is_taken(&error) => {}
            Err(error) => return Err(error),
            Ok(()) => {
                socket.connect(&to.into())?;
                return Ok(socket.into());
            }
        }
    }
    Err(io::ErrorKind::AddrInUse.into())
}

fn socket(address: SocketAddr) -> io::Result<Socket> {
    let kind = Type::DGRAM.nonblocking();
    Socket::new(Domain::for_address(address), kind, Some(Protocol::UDP))
}

/// Room for what one call brings.
#[derive(Debug)]
pub struct Inbox {
    /// [`BATCH`] times [`LARGEST`] bytes, of which the system gives what is written to.
    bytes: Vec<u8>,
    /// Of those that came last: who sent it, where to, how many bytes.
    heads: Vec<(SocketAddr, SocketAddr, usize)>,
}

/// A datagram as it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Datagram<'a> {
    /// Who sent it.
    pub from: SocketAddr,
    /// Where to.
    pub to: SocketAddr,
    /// What it says; may be empty.
    pub bytes: &'a [u8],
}

impl Default for Inbox {
    fn default() -> Self {
        Self {
            bytes: vec![0; BATCH * LARGEST],
            heads: Vec::with_capacity(BATCH),
        }
    }
}

impl Inbox {
    /// Takes what waits at a socket of [`hear`], at most [`BATCH`]; how many came. One whose addresses the kernel does not
    /// tell is passed over, so [`Inbox::get`] may have fewer.
    ///
    /// # Errors
    /// `WouldBlock` when there is none, and those of `recvmmsg`.
    pub fn receive(&mut self, socket: &impl AsFd) -> io::Result<usize> {
        // SAFETY: all three are plain data for which all zeroes are valid.
        let (mut names, mut parts, mut messages) = unsafe {
            (
                zeroed::<[libc::sockaddr_storage; BATCH]>(),
                zeroed::<[libc::iovec; BATCH]>(),
                zeroed::<[libc::mmsghdr; BATCH]>(),
            )
        };
        let mut controls = [Control([0; 64]); BATCH];
        for (n, room) in self.bytes.chunks_exact_mut(LARGEST).enumerate() {
            parts[n].iov_base = room.as_mut_ptr().cast();
            parts[n].iov_len = room.len();
            let header = &mut messages[n].msg_hdr;
            header.msg_name = (&raw mut names[n]).cast();
            header.msg_namelen = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
            header.msg_iov = &raw mut parts[n];
            header.msg_iovlen = 1;
            header.msg_control = controls[n].0.as_mut_ptr().cast();
            header.msg_controllen = controls[n].0.len() as _;
        }
        let fd = socket.as_fd().as_raw_fd();
        // SAFETY: every header points to a name, a part and a control buffer of its own, all of which live across the call.
        let count = unsafe {
            libc::recvmmsg(
                fd,
                messages.as_mut_ptr(),
                BATCH as u32,
                libc::MSG_DONTWAIT as _,
                ptr::null_mut(),
            )
        };
        let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
        self.heads.clear();
        for (message, name) in messages.iter().zip(&names).take(count) {
            let from = from_storage(name);
            let to = destination(&message.msg_hdr);
            // A length of none: it keeps its place, so that bytes and heads stay side by side.
            let unknown = (SocketAddr::from(([0; 4], 0)), usize::MAX);
            let (from, to, length) = match (from, to) {
                (Ok(from), Some(to)) => (from, to, message.msg_len as usize),
                _ => (unknown.0, unknown.0, unknown.1),
            };
            self.heads.push((from, to, length));
        }
        Ok(count)
    }

    /// One of those that came last.
    pub fn get(&self, number: usize) -> Option<Datagram<'_>> {
        let (from, to, length) = *self.heads.get(number)?;
        let room = self.bytes.chunks_exact(LARGEST).nth(number)?;
        let bytes = room.get(..length)?;
        Some(Datagram { from, to, bytes })
    }
}

/// Room for the control messages of one datagram, aligned as the kernel wants it.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct Control([u8; 64]);

/// Where a datagram was sent to, if the kernel says so.
fn destination(message: &libc::msghdr) -> Option<SocketAddr> {
    // SAFETY: `message` was filled by the kernel, so its control buffer holds well-formed messages.
    let mut next = unsafe { libc::CMSG_FIRSTHDR(message) };
    while !next.is_null() {
        // SAFETY: the macros returned a header inside the control buffer; after one of these two kinds follows a socket
        // address of the family's size, which is copied to where there is room for every kind.
        unsafe {
            let header = next.read_unaligned();
            let size = match (header.cmsg_level, header.cmsg_type) {
                (libc::IPPROTO_IP, libc::IP_ORIGDSTADDR) => size_of::<libc::sockaddr_in>(),
                (libc::IPPROTO_IPV6, libc::IPV6_ORIGDSTADDR) => size_of::<libc::sockaddr_in6>(),
                _ => 0,
            };
            if size > 0 {
                let mut storage: libc::sockaddr_storage = zeroed();
                let data = libc::CMSG_DATA(next);
                ptr::copy_nonoverlapping(data, (&raw mut storage).cast::<u8>(), size);
                return from_storage(&storage).ok();
            }
            next = libc::CMSG_NXTHDR(message, next);
        }
    }
    None
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::netns::{Netns, run_in};

    #[test]
    fn datagrams_come_with_where_they_were_sent_to() {
        let lonely = Netns::create().expect("root makes namespaces");
        run_in(&lonely, || {
            let status = std::process::Command::new("ip")
                .args(["link", "set", "lo", "up"])
                .status();
            assert!(status.unwrap().success());
            for any in ["127.0.0.1:0", "[::1]:0"] {
                let ear = hear(any.parse().unwrap()).unwrap();
                let at = ear.local_addr().unwrap();
                let mouth = UdpSocket::bind(any).unwrap();
                for said in [&b"one"[..], b"", &[7; 9000]] {
                    mouth.send_to(said, at).unwrap();
                }
                let (mut inbox, mut heard) = (Inbox::default(), Vec::new());
                while heard.len() < 3 {
                    let Ok(count) = inbox.receive(&ear) else {
                        continue;
                    };
                    for number in 0..count {
                        let one = inbox.get(number).unwrap();
                        assert_eq!((one.from, one.to), (mouth.local_addr().unwrap(), at));
                        heard.push(one.bytes.to_vec());
                    }
                    assert_eq!(inbox.get(count), None);
                }
                assert_eq!(heard, [b"one".to_vec(), vec![], vec![7; 9000]]);
                let empty = inbox.receive(&ear).unwrap_err();
                assert_eq!(empty.kind(), io::ErrorKind::WouldBlock);
            }
        })
        .unwrap();
    }

    #[test]
    fn who_asks_in_another_s_name_has_a_port_for_itself_and_several_speak_as_one() {
        let lonely = Netns::create().expect("root makes namespaces");
        run_in(&lonely, || {
            let status = std::process::Command::new("bash")
                .args(["-ec", "ip link set lo up; ip route add default dev lo"])
                .status();
            assert!(status.unwrap().success());
            let other = IpAddr::from([192, 0, 2, 7]);
            let to = SocketAddr::from(([198, 51, 100, 1], 53));
            let both = [(); 2].map(|()| ask(to, Name::Foreign(other), 5).unwrap());
            let ports = both.each_ref().map(|one| one.local_addr().unwrap());
            assert_eq!(ports.map(|one| one.ip()), [other; 2]);
            assert_ne!(ports[0], ports[1]);
            let voices = [(); 2].map(|()| speak(to).unwrap());
            assert!(voices.iter().all(|one| one.local_addr().unwrap() == to));
        })
        .unwrap();
    }
}
