//! TCP sockets of one network namespace, and what the kernel knows of each (`sock_diag`).
//!
//! The request is `SOCK_DIAG_BY_FAMILY` with `NLM_F_DUMP`, once a family; each answer is an `inet_diag_msg` of 72 bytes and
//! attributes, among them `INET_DIAG_INFO`: the head of `struct tcp_info`, which later kernels only make longer. Ports are
//! big-endian, all else is in native order. Source: `linux/inet_diag.h`, `linux/sock_diag.h`, `linux/tcp.h`.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_SOCK_DIAG;

/// A TCP socket that is, or is becoming, connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpSocket {
    /// Its own end.
    pub local: SocketAddr,
    /// The other, as this socket calls it: before any translation by the host.
    pub remote: SocketAddr,
    /// The smoothed round-trip time in microseconds; absent until one was measured.
    pub rtt_us: Option<u32>,
    /// Segments that it sent anew.
    pub retransmits: u32,
}

/// A connection to `sock_diag` of the network namespace in which it was opened.
#[derive(Debug)]
pub struct Sockets {
    socket: Socket,
}

impl Sockets {
    /// Opens a socket in the calling thread's network namespace.
    ///
    /// # Errors
    /// When the kernel has no `sock_diag`.
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
        socket.bind_auto()?;
        Ok(Self { socket })
    }

    /// The TCP sockets of both families, at most `most`: then the dump is broken off, and this must not be used again.
    /// Listening sockets and those that only wait for their end are not among them.
    ///
    /// # Errors
    /// When the kernel refuses, such as where its `inet_diag` cannot be loaded.
    pub fn tcp(&self, most: usize) -> io::Result<Vec<TcpSocket>> {
        let mut found = Vec::new();
        for family in [libc::AF_INET, libc::AF_INET6] {
            self.socket.send(&request(family as u8), 0)?;
            self.answers(most, &mut found)?;
            if found.len() >= most {
                break;
            }
        }
        Ok(found)
    }

    fn answers(&self, most: usize, found: &mut Vec<TcpSocket>) -> io::Result<()> {
        let mut buffer = Vec::with_capacity(BUFFER);
        loop {
            buffer.clear();
            self.socket.recv(&mut buffer, 0)?;
            let mut rest = &buffer[..];
            while let Some((kind, payload, after)) = message(rest) {
                rest = after;
                match kind {
                    DONE => return Ok(()),
                    ERROR => {
                        let code = payload.first_chunk().copied();
                        let code = code.map_or(-libc::EIO, i32::from_ne_bytes);
                        return Err(io::Error::from_raw_os_error(-code));
                    }
                    _ => found.extend(parse(payload)),
                }
                if found.len() >= most {
                    return Ok(());
                }
            }
        }
    }
}

/// `nlmsghdr` and `inet_diag_req_v2`.
fn request(family: u8) -> [u8; REQUEST] {
    let mut bytes = [0; REQUEST];
    bytes[..4].copy_from_slice(&(REQUEST as u32).to_ne_bytes());
    bytes[4..6].copy_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    bytes[6..8].copy_from_slice(&REQUEST_DUMP.to_ne_bytes());
    bytes[16] = family;
    bytes[17] = libc::IPPROTO_TCP as u8;
    bytes[18] = 1 << (INET_DIAG_INFO - 1);
    bytes[20..24].copy_from_slice(&STATES.to_ne_bytes());
    bytes
}

/// The first message: its type, its payload and what follows.
fn message(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = u32::from_ne_bytes(*bytes.first_chunk()?) as usize;
    let payload = bytes.get(HEADER..length)?;
    let kind = u16::from_ne_bytes([bytes[4], bytes[5]]);
    let after = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((kind, payload, after))
}

/// An `inet_diag_msg` with its attributes; `None` for what is none.
fn parse(payload: &[u8]) -> Option<TcpSocket> {
    let (head, mut attributes) = payload.split_at_checked(MESSAGE)?;
    let family = libc::c_int::from(head[0]);
    let end = |port: usize, ip: usize| {
        let port = u16::from_be_bytes([head[port], head[port + 1]]);
        let bytes: [u8; 16] = head[ip..ip + 16].try_into().ok()?;
        let ip = match family {
            libc::AF_INET => IpAddr::V4(Ipv4Addr::from(*bytes.first_chunk::<4>()?)),
            // A socket of both families that talks IPv4 says so by a mapped address.
            libc::AF_INET6 => Ipv6Addr::from(bytes).to_canonical(),
            _ => return None,
        };
        Some(SocketAddr::new(ip, port))
    };
    let mut socket = TcpSocket {
        local: end(4, 8)?,
        remote: end(6, 24)?,
        rtt_us: None,
        retransmits: 0,
    };
    while let Some((kind, value, after)) = attribute(attributes) {
        attributes = after;
        if kind == INET_DIAG_INFO {
            let number = |at: usize| Some(u32::from_ne_bytes(*value.get(at..)?.first_chunk()?));
            socket.rtt_us = number(TCPI_RTT).filter(|rtt| *rtt > 0);
            socket.retransmits = number(TCPI_TOTAL_RETRANS).unwrap_or_default();
        }
    }
    Some(socket)
}

/// The first attribute: its type, its value and what follows.
fn attribute(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = usize::from(u16::from_ne_bytes(*bytes.first_chunk()?));
    let value = bytes.get(4..length)?;
    let kind = u16::from_ne_bytes([bytes[2], bytes[3]]);
    let after = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((kind, value, after))
}

const HEADER: usize = 16;
/// `nlmsghdr` of 16 bytes, `inet_diag_req_v2` of 56.
const REQUEST: usize = 72;
/// `inet_diag_msg`.
const MESSAGE: usize = 72;
const BUFFER: usize = 64 * 1024;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const REQUEST_DUMP: u16 = 0x301;
const ERROR: u16 = 2;
const DONE: u16 = 3;
const INET_DIAG_INFO: u16 = 2;
/// ESTABLISHED, SYN_SENT, FIN_WAIT1, FIN_WAIT2, CLOSE_WAIT, LAST_ACK and CLOSING.
const STATES: u32 = 1 << 1 | 1 << 2 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 11;
/// Where in `tcp_info` the smoothed round-trip time is.
const TCPI_RTT: usize = 68;
/// Where in `tcp_info` the number of segments sent anew is.
const TCPI_TOTAL_RETRANS: usize = 100;

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    /// Two sockets of this machine's own kernel, found from both sides, and none that listens.
    #[test]
    fn a_connection_is_found_with_its_round_trip() {
        for ip in ["127.0.0.1", "::1"] {
            let listener = TcpListener::bind((ip, 0)).unwrap();
            let there = listener.local_addr().unwrap();
            let stream = TcpStream::connect(there).unwrap();
            let here = stream.local_addr().unwrap();
            let _taken = listener.accept().unwrap();
            let all = Sockets::open().unwrap().tcp(100_000).unwrap();
            let one = all
                .iter()
                .find(|one| (one.local, one.remote) == (here, there))
                .unwrap();
            assert!(one.rtt_us.is_some(), "the handshake measures one: {one:?}");
            assert_eq!(one.retransmits, 0);
            assert!(
                all.iter()
                    .any(|one| (one.local, one.remote) == (there, here))
            );
            assert!(
                !all.iter()
                    .any(|one| one.local == there && one.remote.port() == 0)
            );
            assert_eq!(Sockets::open().unwrap().tcp(1).unwrap().len(), 1);
        }
    }

    #[test]
    fn junk_is_no_socket() {
        assert_eq!(parse(&[0; 71]), None);
        assert_eq!(parse(&[0; 80]), None, "no family");
        let mut short = [0; MESSAGE + 8];
        short[0] = libc::AF_INET as u8;
        short[MESSAGE] = 200;
        let socket = parse(&short).unwrap();
        assert_eq!((socket.rtt_us, socket.retransmits), (None, 0));
        assert!(message(&[16, 0, 0]).is_none() && message(&[4; 16]).is_none());
    }
}
