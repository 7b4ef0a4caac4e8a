//! UDP sockets that move many datagrams in one call.
//!
//! A send gives one buffer of equal datagrams (the last may be shorter) and their size; the kernel cuts it as late as
//! it can (`UDP_SEGMENT`). A receive takes as many datagrams of one sender as the kernel could join (`UDP_GRO`), and many
//! such messages where it could join none ([`Inbox`]). Where the kernel or a device refuses, [`UdpSocket::send`] falls
//! back to a datagram a call and remembers it for that socket, visibly ([`UdpSocket::gso`]).
//!
//! Sources: `udp(7)`, `Documentation/networking/segmentation-offloads.rst`, `ip(7)`, `ipv6(7)`.

mod inbox;
mod queue;

use std::io;
use std::mem::{size_of, zeroed};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};

pub use inbox::Inbox;
use libc::{c_int, c_void};
pub use queue::Queue;
use socket2::{Domain, Protocol, Socket, Type};

/// The most datagrams that one [`UdpSocket::send`] may carry: `UDP_MAX_SEGMENTS` of kernels before 6.9.
pub const MAX_SEGMENTS: usize = 64;
/// The most bytes that one [`UdpSocket::send`] may carry: what an IPv4 packet holds beside its headers.
pub const MAX_BATCH: usize = 65_507;

/// How a socket is to be opened.
#[derive(Clone, Copy, Debug)]
pub struct UdpOptions {
    /// Several sockets share the address; see [`UdpSocket::steer`].
    pub reuse_port: bool,
    /// Ask for batches on send.
    pub gso: bool,
    /// Ask for batches on receive.
    pub gro: bool,
}

/// A bound UDP socket. Shared by threads: every call is one system call.
#[derive(Debug)]
pub struct UdpSocket {
    socket: Socket,
    v6: bool,
    gso: AtomicBool,
    gro: bool,
}

/// What one receive brought: `len` bytes that are datagrams of `stride` bytes, the last perhaps shorter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// Bytes in all.
    pub len: usize,
    /// Bytes of each datagram but the last; never 0.
    pub stride: usize,
    /// Who sent them; an IPv4 address is never shown as mapped.
    pub from: SocketAddr,
    /// The two ECN bits of the outer header (RFC 3168).
    pub ecn: u8,
}

impl UdpSocket {
    /// Binds; `[::]` takes IPv4 as well where the kernel has both. Datagrams are never fragmented by the kernel.
    ///
    /// # Errors
    /// `AddrInUse`, `AddrNotAvailable`, or `Unsupported` where the kernel has no IPv6.
    pub fn bind(address: SocketAddr, options: UdpOptions) -> io::Result<Self> {
        let v6 = address.is_ipv6();
        let domain = if v6 { Domain::IPV6 } else { Domain::IPV4 };
        let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
        if v6 {
            socket.set_only_v6(false)?;
        }
        socket.set_reuse_port(options.reuse_port)?;
        let this = Self {
            socket,
            v6,
            gso: AtomicBool::new(options.gso),
            gro: false,
        };
        this.never_fragment()?;
        this.size_buffers();
        let gro = options.gro && this.set(libc::SOL_UDP, libc::UDP_GRO, 1).is_ok();
        this.set(libc::IPPROTO_IP, libc::IP_RECVTOS, 1)?;
        if v6 {
            this.set(libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS, 1)?;
        }
        this.socket.bind(&address.into())?;
        Ok(Self { gro, ..this })
    }

    /// Sets DF and takes the path MTU from nobody but us (`IP_PMTUDISC_PROBE`).
    fn never_fragment(&self) -> io::Result<()> {
        self.set(
            libc::IPPROTO_IP,
            libc::IP_MTU_DISCOVER,
            libc::IP_PMTUDISC_PROBE,
        )?;
        if self.v6 {
            self.set(
                libc::IPPROTO_IPV6,
                libc::IPV6_MTU_DISCOVER,
                libc::IPV6_PMTUDISC_PROBE,
            )?;
        }
        Ok(())
    }

    /// To receive 4 MiB (the kernel doubles it): 60 super-frames, which is what a TCP stream has under way at most, or some
    /// 50 ms of small packets. With half of it one stream lost 1 % of its frames at the queue's end, with twice as much
    /// pings after a flood of small packets took up to 122 ms. To send 4 MiB. Less where the system's limits say so.
    fn size_buffers(&self) {
        for (force, polite, size) in [
            (libc::SO_RCVBUFFORCE, libc::SO_RCVBUF, 2 << 20),
            (libc::SO_SNDBUFFORCE, libc::SO_SNDBUF, 2 << 20),
        ] {
            if self.set(libc::SOL_SOCKET, force, size).is_err() {
                let _ = self.set(libc::SOL_SOCKET, polite, size);
            }
        }
    }

    fn set(&self, level: c_int, name: c_int, value: c_int) -> io::Result<()> {
        let size = size_of::<c_int>() as libc::socklen_t;
        let value = ptr::from_ref(&value).cast::<c_void>();
        // SAFETY: `value` points to an int of `size` bytes that lives across the call.
        let result = unsafe { libc::setsockopt(self.socket.as_raw_fd(), level, name, value, size) };
        if result < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    }

    /// The address it is bound to.
    ///
    /// # Errors
    /// Those of `getsockname`.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket
            .local_addr()?
            .as_socket()
            .ok_or_else(|| io::ErrorKind::InvalidInput.into())
    }

    /// Whether batches are still sent in one call.
    pub fn gso(&self) -> bool {
        self.gso.load(Ordering::Relaxed)
    }

    /// Whether received datagrams may be joined.
    pub const fn gro(&self) -> bool {
        self.gro
    }

    /// For a group of sockets on one address (`reuse_port`), called on the last one bound: a datagram goes to the
    /// socket whose place in the order of binding is the byte at `offset` of its payload, modulo `sockets`.
    ///
    /// # Errors
    /// Those of `SO_ATTACH_REUSEPORT_CBPF`.
    pub fn steer(&self, offset: u32, sockets: u32) -> io::Result<()> {
        const LOAD_BYTE: u16 = 0x30;
        const MODULO: u16 = 0x94;
        const RETURN_A: u16 = 0x16;
        let step = |code, k| libc::sock_filter {
            code,
            jt: 0,
            jf: 0,
            k,
        };
        let mut program = [
            step(LOAD_BYTE, offset),
            step(MODULO, sockets.max(1)),
            step(RETURN_A, 0),
        ];
        self.attach(libc::SO_ATTACH_REUSEPORT_CBPF, &mut program)
    }

    /// Has the kernel drop all that arrives, for a socket that only sends: nobody would read it.
    ///
    /// # Errors
    /// Those of `SO_ATTACH_FILTER`.
    pub fn deafen(&self) -> io::Result<()> {
        const RETURN: u16 = 0x06;
        let nothing = libc::sock_filter {
            code: RETURN,
            jt: 0,
            jf: 0,
            k: 0,
        };
        self.attach(libc::SO_ATTACH_FILTER, &mut [nothing])
    }

    fn attach(&self, option: c_int, program: &mut [libc::sock_filter]) -> io::Result<()> {
        let filter = libc::sock_fprog {
            len: program.len() as u16,
            filter: program.as_mut_ptr(),
        };
        let size = size_of::<libc::sock_fprog>() as libc::socklen_t;
        // SAFETY: `filter` and the program it points to live across the call; the kernel copies both.
        let result = unsafe {
            libc::setsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_SOCKET,
                option,
                ptr::from_ref(&filter).cast(),
                size,
            )
        };
        if result < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    }

    /// Sends `batch` as datagrams of `segment` bytes (the last may be shorter), marked with two ECN bits. Returns how
    /// many calls it took.
    ///
    /// The caller keeps to [`MAX_SEGMENTS`] and [`MAX_BATCH`].
    ///
    /// # Errors
    /// `EMSGSIZE` when a datagram exceeds the interface's MTU; `NetworkUnreachable` and the like as `sendmsg` has them.
    pub fn send(&self, to: SocketAddr, batch: &[u8], segment: usize, ecn: u8) -> io::Result<usize> {
        let address = Address::new(to, self.v6);
        if batch.len() <= segment {
            return self.send_one(&address, batch, None, ecn).map(|()| 1);
        }
        if self.gso() {
            match self.send_one(&address, batch, Some(segment as u16), ecn) {
                Err(error) if refuses_gso(&error) => {}
                result => return result.map(|()| 1),
            }
        }
        batch
            .chunks(segment)
            .try_for_each(|datagram| self.send_one(&address, datagram, None, ecn))?;
        // Only now it is known that the batch was refused, and not the address or the size of its datagrams: EINVAL may
        // mean all of these.
        self.gso.store(false, Ordering::Relaxed);
        Ok(batch.len().div_ceil(segment))
    }

    fn send_one(
        &self,
        to: &Address,
        bytes: &[u8],
        segment: Option<u16>,
        ecn: u8,
    ) -> io::Result<()> {
        let mut control = Control::new();
        let mut used = 0;
        if let Some(segment) = segment {
            used = control.push(
                used,
                libc::SOL_UDP,
                libc::UDP_SEGMENT,
                &segment.to_ne_bytes(),
            );
        }
        if ecn != 0 {
            let (level, kind) = to.traffic_class();
            used = control.push(used, level, kind, &c_int::from(ecn).to_ne_bytes());
        }
        let mut part = libc::iovec {
            iov_base: bytes.as_ptr().cast_mut().cast(),
            iov_len: bytes.len(),
        };
        // SAFETY: `msghdr` is plain data for which all zeroes are valid.
        let mut message: libc::msghdr = unsafe { zeroed() };
        message.msg_name = ptr::from_ref(&to.storage).cast_mut().cast();
        message.msg_namelen = to.len;
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        if used > 0 {
            message.msg_control = control.bytes.as_mut_ptr().cast();
            message.msg_controllen = used as _;
        }
        // SAFETY: all that `message` points to lives across the call and is only read.
        let sent = unsafe { libc::sendmsg(self.socket.as_raw_fd(), &raw const message, 0) };
        if sent < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    }
}

impl AsFd for UdpSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Whether a send failed because a datagram is larger than the path takes.
pub fn is_too_big(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EMSGSIZE)
}

/// `EIO`: the device cannot checksum; `EINVAL`, `EOPNOTSUPP`: the kernel does not know the option.
fn refuses_gso(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EIO | libc::EINVAL | libc::EOPNOTSUPP)
    )
}

/// Room for the control messages of one call, aligned as the kernel wants it.
#[repr(C, align(8))]
struct Control {
    bytes: [u8; 96],
}

impl Control {
    const fn new() -> Self {
        Self { bytes: [0; 96] }
    }

    /// Appends a control message at `used` and returns where the next one goes.
    fn push(&mut self, used: usize, level: c_int, kind: c_int, data: &[u8]) -> usize {
        // SAFETY: the macros only compute sizes.
        let (len, space) = unsafe {
            (
                libc::CMSG_LEN(data.len() as u32) as usize,
                libc::CMSG_SPACE(data.len() as u32) as usize,
            )
        };
        assert!(
            used + space <= self.bytes.len(),
            "two small control messages fit"
        );
        let header = libc::cmsghdr {
            cmsg_len: len as _,
            cmsg_level: level,
            cmsg_type: kind,
        };
        // SAFETY: `used + space` bytes are in bounds (asserted) and `cmsghdr` may be written unaligned.
        unsafe {
            self.bytes
                .as_mut_ptr()
                .add(used)
                .cast::<libc::cmsghdr>()
                .write_unaligned(header)
        };
        let data_at = used + len - data.len();
        self.bytes[data_at..data_at + data.len()].copy_from_slice(data);
        used + space
    }
}

/// Reads the segment size and the ECN bits out of a received message.
fn read_control(message: &libc::msghdr) -> (Option<usize>, u8) {
    let (mut stride, mut ecn) = (None, 0);
    // SAFETY: `message` was filled by the kernel, so its control buffer holds well-formed messages.
    let mut next = unsafe { libc::CMSG_FIRSTHDR(message) };
    while !next.is_null() {
        // SAFETY: the macros returned a header inside the control buffer, and its data is at least an int (GRO,
        // traffic class) or a byte (TOS) long.
        unsafe {
            let header = next.read_unaligned();
            let data = libc::CMSG_DATA(next);
            match (header.cmsg_level, header.cmsg_type) {
                (libc::SOL_UDP, libc::UDP_GRO) => {
                    stride = usize::try_from(data.cast::<c_int>().read_unaligned()).ok();
                }
                (libc::IPPROTO_IP, libc::IP_TOS) => ecn = *data & 3,
                (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => {
                    ecn = (data.cast::<c_int>().read_unaligned() & 3) as u8;
                }
                _ => {}
            }
            next = libc::CMSG_NXTHDR(message, next);
        }
    }
    (stride.filter(|s| *s > 0), ecn)
}

/// A socket address as the kernel takes it for one of our sockets.
struct Address {
    storage: libc::sockaddr_storage,
    len: libc::socklen_t,
    v4: bool,
}

impl Address {
    /// An IPv4 address goes through a dual-stack socket as a mapped one.
    fn new(to: SocketAddr, v6_socket: bool) -> Self {
        let v4 = to.is_ipv4();
        let to = match to {
            SocketAddr::V4(v4) if v6_socket => {
                SocketAddr::V6(SocketAddrV6::new(v4.ip().to_ipv6_mapped(), v4.port(), 0, 0))
            }
            to => to,
        };
        // SAFETY: `sockaddr_storage` is plain data for which all zeroes are valid.
        let mut storage: libc::sockaddr_storage = unsafe { zeroed() };
        let len = match to {
            SocketAddr::V4(to) => {
                let raw = libc::sockaddr_in {
                    sin_family: libc::AF_INET as libc::sa_family_t,
                    sin_port: to.port().to_be(),
                    sin_addr: libc::in_addr {
                        s_addr: u32::from(*to.ip()).to_be(),
                    },
                    sin_zero: [0; 8],
                };
                // SAFETY: `sockaddr_storage` is large enough and aligned for every socket address.
                unsafe { (&raw mut storage).cast::<libc::sockaddr_in>().write(raw) };
                size_of::<libc::sockaddr_in>()
            }
            SocketAddr::V6(to) => {
                let raw = libc::sockaddr_in6 {
                    sin6_family: libc::AF_INET6 as libc::sa_family_t,
                    sin6_port: to.port().to_be(),
                    sin6_flowinfo: to.flowinfo(),
                    sin6_addr: libc::in6_addr {
                        s6_addr: to.ip().octets(),
                    },
                    sin6_scope_id: to.scope_id(),
                };
                // SAFETY: `sockaddr_storage` is large enough and aligned for every socket address.
                unsafe { (&raw mut storage).cast::<libc::sockaddr_in6>().write(raw) };
                size_of::<libc::sockaddr_in6>()
            }
        };
        Self {
            storage,
            len: len as libc::socklen_t,
            v4,
        }
    }

    const fn traffic_class(&self) -> (c_int, c_int) {
        if self.v4 {
            (libc::IPPROTO_IP, libc::IP_TOS)
        } else {
            (libc::IPPROTO_IPV6, libc::IPV6_TCLASS)
        }
    }
}

pub(crate) fn from_storage(storage: &libc::sockaddr_storage) -> io::Result<SocketAddr> {
    match c_int::from(storage.ss_family) {
        libc::AF_INET => {
            // SAFETY: the family says that the storage holds a `sockaddr_in`.
            let raw = unsafe { &*ptr::from_ref(storage).cast::<libc::sockaddr_in>() };
            let ip = Ipv4Addr::from(u32::from_be(raw.sin_addr.s_addr));
            Ok(SocketAddrV4::new(ip, u16::from_be(raw.sin_port)).into())
        }
        libc::AF_INET6 => {
            // SAFETY: the family says that the storage holds a `sockaddr_in6`.
            let raw = unsafe { &*ptr::from_ref(storage).cast::<libc::sockaddr_in6>() };
            let ip = Ipv6Addr::from(raw.sin6_addr.s6_addr);
            let port = u16::from_be(raw.sin6_port);
            Ok(match ip.to_ipv4_mapped() {
                Some(v4) => SocketAddrV4::new(v4, port).into(),
                None => SocketAddrV6::new(ip, port, 0, raw.sin6_scope_id).into(),
            })
        }
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPTIONS: UdpOptions = UdpOptions {
        reuse_port: false,
        gso: true,
        gro: true,
    };

    fn bind(address: &str, options: UdpOptions) -> UdpSocket {
        UdpSocket::bind(address.parse().unwrap(), options).unwrap()
    }

    fn recv(socket: &UdpSocket, buffer: &mut [u8]) -> io::Result<Received> {
        crate::poll::readable(&[socket.as_fd()], Some(std::time::Duration::from_secs(2)))?;
        let mut inbox = Inbox::new(1);
        socket.recv_many(&mut inbox, 1)?;
        let (bytes, received) = inbox.messages().next().unwrap();
        buffer[..bytes.len()].copy_from_slice(bytes);
        Ok(received)
    }

    #[test]
    fn a_batch_arrives_as_equal_datagrams_with_its_ecn_bits() {
        for (listen, target) in [
            ("127.0.0.1:0", "127.0.0.1"),
            ("[::]:0", "127.0.0.1"),
            ("[::]:0", "::1"),
        ] {
            let (a, b) = (bind(listen, OPTIONS), bind(listen, OPTIONS));
            let to = SocketAddr::new(target.parse().unwrap(), b.local_addr().unwrap().port());
            let batch: Vec<u8> = (0..3500_u32).map(|i| i as u8).collect();
            assert_eq!(a.send(to, &batch, 1000, 1).unwrap(), 1);
            assert!(a.gso(), "this kernel has UDP_SEGMENT");
            let mut got = Vec::new();
            let mut buffer = [0; 65_535];
            while got.len() < batch.len() {
                let r = recv(&b, &mut buffer).unwrap();
                assert!(r.stride == 1000 || r.len == r.stride);
                assert_eq!((r.ecn, r.from.ip().to_string()), (1, target.to_string()));
                got.extend_from_slice(&buffer[..r.len]);
            }
            assert_eq!(got, batch);
        }
    }

    #[test]
    fn an_address_that_is_refused_does_not_end_batches() {
        let a = bind("127.0.0.1:0", OPTIONS);
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let error = a.send(nowhere, &[7; 2500], 1000, 0).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
        assert!(a.gso());
    }

    #[test]
    fn without_gso_the_same_datagrams_arrive_one_by_one() {
        let plain = UdpOptions {
            gso: false,
            gro: false,
            ..OPTIONS
        };
        let (a, b) = (bind("127.0.0.1:0", plain), bind("127.0.0.1:0", plain));
        let calls = a.send(b.local_addr().unwrap(), &[7; 2500], 1000, 0);
        assert_eq!(calls.unwrap(), 3);
        let mut buffer = [0; 65_535];
        let sizes: Vec<usize> = (0..3).map(|_| recv(&b, &mut buffer).unwrap().len).collect();
        assert_eq!(sizes, [1000, 1000, 500]);
    }

    #[test]
    fn many_messages_come_in_one_call() {
        let plain = UdpOptions {
            gro: false,
            ..OPTIONS
        };
        let (a, b) = (bind("127.0.0.1:0", plain), bind("127.0.0.1:0", plain));
        for message in 0..5_u8 {
            let bytes = vec![message; 100 + usize::from(message)];
            a.send(b.local_addr().unwrap(), &bytes, 1000, message & 3)
                .unwrap();
        }
        let mut inbox = Inbox::new(4);
        let mut next = 0;
        for most in [3, 9] {
            let got = b.recv_many(&mut inbox, most).unwrap();
            assert_eq!(inbox.messages().count(), got);
            for (bytes, received) in inbox.messages() {
                assert_eq!(bytes, vec![next; 100 + usize::from(next)]);
                assert_eq!((received.len, received.ecn), (bytes.len(), next & 3));
                assert_eq!(received.from, a.local_addr().unwrap());
                next += 1;
            }
        }
        assert_eq!(next, 5);
        let nothing = b.recv_many(&mut inbox, 4).unwrap_err();
        assert_eq!(nothing.kind(), io::ErrorKind::WouldBlock);
        assert_eq!(inbox.messages().count(), 0);
    }

    #[test]
    fn a_byte_of_the_payload_steers_to_a_socket() {
        let options = UdpOptions {
            reuse_port: true,
            ..OPTIONS
        };
        let first = bind("127.0.0.1:0", options);
        let address = first.local_addr().unwrap();
        let group = [first, UdpSocket::bind(address, options).unwrap()];
        group[1].steer(1, 2).unwrap();
        let sender = bind("127.0.0.1:0", OPTIONS);
        let mut buffer = [0; 65_535];
        for lane in [0, 1, 2, 3, 1, 1, 0] {
            sender.send(address, &[9, lane, 9], 3, 0).unwrap();
            let got = recv(&group[usize::from(lane) % 2], &mut buffer).unwrap();
            assert_eq!(&buffer[..got.len], [9, lane, 9]);
        }
    }

    #[test]
    fn a_socket_that_only_sends_keeps_nothing() {
        let (deaf, other) = (bind("127.0.0.1:0", OPTIONS), bind("127.0.0.1:0", OPTIONS));
        deaf.deafen().unwrap();
        let mut buffer = [0; 65_535];
        deaf.send(other.local_addr().unwrap(), b"out", 3, 0)
            .unwrap();
        assert_eq!(recv(&other, &mut buffer).unwrap().len, 3);
        other
            .send(deaf.local_addr().unwrap(), b"back", 4, 0)
            .unwrap();
        let nothing = deaf.recv_many(&mut Inbox::new(1), 1).unwrap_err();
        assert_eq!(nothing.kind(), io::ErrorKind::WouldBlock);
    }
}
