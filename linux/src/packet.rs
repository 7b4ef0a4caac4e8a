//! Broadcast and multicast, taken from and put on the containers' interfaces.
//!
//! One `AF_PACKET` socket a family sees what arrives on any interface of the namespace; a filter in the kernel leaves
//! only IP packets for a broadcast or multicast address of the link, so unicast traffic costs a few instructions and
//! no copy. The virtio header tells whether a checksum is still to be done.
//!
//! Sources: `packet(7)`, `Documentation/networking/filter.rst`.

use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;
use std::time::Duration;

use libc::{c_int, c_void};

use crate::tun::VirtioHeader;

const PACKET_VNET_HDR: c_int = 15;
/// Bytes of an Ethernet header.
const ETHERNET: usize = 14;

/// The family of packets a socket takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Ethertype 0x0800.
    V4,
    /// Ethertype 0x86dd.
    V6,
}

impl Family {
    const fn ethertype(self) -> u16 {
        match self {
            Self::V4 => libc::ETH_P_IP as u16,
            Self::V6 => libc::ETH_P_IPV6 as u16,
        }
    }
}

/// A socket for the broadcast and multicast packets of one family.
#[derive(Debug)]
pub struct PacketSocket {
    fd: OwnedFd,
    family: Family,
}

/// A packet that arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heard {
    /// The interface it came in by.
    pub interface: u32,
    /// Its virtio header; offsets count from the start of the IP packet.
    pub header: VirtioHeader,
    /// Bytes of IP packet, which stands at the start of the buffer.
    pub len: usize,
}

impl PacketSocket {
    /// Opens the socket in the namespace of the calling thread.
    ///
    /// # Errors
    /// `PermissionDenied` without `CAP_NET_RAW`.
    pub fn open(family: Family, read_timeout: Duration) -> io::Result<Self> {
        // SAFETY: takes three integers; protocol 0 receives nothing until the filter is in place and it is bound.
        let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        let socket = Self {
            // SAFETY: `fd` was just made and nobody else owns it.
            fd: unsafe { OwnedFd::from_raw_fd(fd) },
            family,
        };
        socket.set(libc::SOL_PACKET, PACKET_VNET_HDR, &1_i32)?;
        let timeout = libc::timeval {
            tv_sec: read_timeout.as_secs() as libc::time_t,
            tv_usec: read_timeout.subsec_micros().into(),
        };
        socket.set(libc::SOL_SOCKET, libc::SO_RCVTIMEO, &timeout)?;
        socket.keep_only_group_traffic()?;
        socket.bind()?;
        Ok(socket)
    }

    /// Attaches a filter: link-level broadcast or multicast, and not sent by ourselves.
    fn keep_only_group_traffic(&self) -> io::Result<()> {
        const LOAD_WORD: u16 = 0x20;
        const JUMP_EQUAL: u16 = 0x15;
        const RETURN: u16 = 0x06;
        const PACKET_TYPE: u32 = (-0x1000_i32 + 4) as u32;
        const BROADCAST: u32 = libc::PACKET_BROADCAST as u32;
        const MULTICAST: u32 = libc::PACKET_MULTICAST as u32;
        let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
        let mut program = [
            step(LOAD_WORD, 0, 0, PACKET_TYPE),
            step(JUMP_EQUAL, 1, 0, BROADCAST),
            step(JUMP_EQUAL, 0, 1, MULTICAST),
            step(RETURN, 0, 0, u32::MAX),
            step(RETURN, 0, 0, 0),
        ];
        let filter = libc::sock_fprog {
            len: program.len() as u16,
            filter: program.as_mut_ptr(),
        };
        self.set(libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &filter)
    }

    fn bind(&self) -> io::Result<()> {
        let address = self.address(0, [0; 6]);
        let size = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        // SAFETY: `address` is a whole `sockaddr_ll` that lives across the call.
        let result =
            unsafe { libc::bind(self.fd.as_raw_fd(), ptr::from_ref(&address).cast(), size) };
        if result < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    }

    fn address(&self, interface: u32, mac: [u8; 6]) -> libc::sockaddr_ll {
        // SAFETY: `sockaddr_ll` is plain data for which all zeroes are valid.
        let mut address: libc::sockaddr_ll = unsafe { zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = self.family.ethertype().to_be();
        address.sll_ifindex = interface as c_int;
        address.sll_halen = 6;
        address.sll_addr[..6].copy_from_slice(&mac);
        address
    }

    fn set<T>(&self, level: c_int, name: c_int, value: &T) -> io::Result<()> {
        let size = size_of::<T>() as libc::socklen_t;
        let value = ptr::from_ref(value).cast::<c_void>();
        // SAFETY: `value` points to a `T` of `size` bytes that lives across the call; the kernel copies it.
        let result = unsafe { libc::setsockopt(self.fd.as_raw_fd(), level, name, value, size) };
        if result < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    }

    /// Waits for a packet and puts it, from its IP header on, at the start of `buffer`.
    ///
    /// # Errors
    /// `WouldBlock` when the read timeout is over; `InvalidData` for something that is no Ethernet frame.
    pub fn recv(&self, buffer: &mut [u8]) -> io::Result<Heard> {
        let mut header = [0; VirtioHeader::SIZE];
        let mut ethernet = [0; ETHERNET];
        let mut parts = [
            libc::iovec {
                iov_base: header.as_mut_ptr().cast(),
                iov_len: header.len(),
            },
            libc::iovec {
                iov_base: ethernet.as_mut_ptr().cast(),
                iov_len: ethernet.len(),
            },
            libc::iovec {
                iov_base: buffer.as_mut_ptr().cast(),
                iov_len: buffer.len(),
            },
        ];
        // SAFETY: both are plain data for which all zeroes are valid.
        let (mut from, mut message): (libc::sockaddr_ll, libc::msghdr) =
            unsafe { (zeroed(), zeroed()) };
        message.msg_name = (&raw mut from).cast();
        message.msg_namelen = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        message.msg_iov = parts.as_mut_ptr();
        message.msg_iovlen = parts.len() as _;
        // SAFETY: all that `message` points to is writable and lives across the call.
        let got = unsafe { libc::recvmsg(self.fd.as_raw_fd(), &raw mut message, 0) };
        let got = usize::try_from(got).map_err(|_| io::Error::last_os_error())?;
        let len = got
            .checked_sub(VirtioHeader::SIZE + ETHERNET)
            .ok_or(io::ErrorKind::InvalidData)?;
        let mut header = VirtioHeader::from_bytes(header);
        header.csum_start = header.csum_start.saturating_sub(ETHERNET as u16);
        Ok(Heard {
            interface: from.sll_ifindex.unsigned_abs(),
            header,
            len,
        })
    }

    /// Puts a whole IP packet, its checksums done, on an interface for a link-level group address.
    ///
    /// # Errors
    /// Those of `sendmsg`: the interface is gone (`ENXIO`), down (`ENETDOWN`) or too small (`EMSGSIZE`).
    pub fn send(&self, interface: u32, group: [u8; 6], packet: &[u8]) -> io::Result<()> {
        let header = VirtioHeader::default().to_bytes();
        let mut ethernet = [0; ETHERNET];
        ethernet[..6].copy_from_slice(&group);
        ethernet[6..12].copy_from_slice(&[0x02, 0, 0, 0, 0, 1]);
        ethernet[12..].copy_from_slice(&self.family.ethertype().to_be_bytes());
        let part = |bytes: &[u8]| libc::iovec {
            iov_base: bytes.as_ptr().cast_mut().cast(),
            iov_len: bytes.len(),
        };
        let mut parts = [part(&header), part(&ethernet), part(packet)];
        let mut to = self.address(interface, group);
        // SAFETY: `msghdr` is plain data for which all zeroes are valid.
        let mut message: libc::msghdr = unsafe { zeroed() };
        message.msg_name = (&raw mut to).cast();
        message.msg_namelen = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        message.msg_iov = parts.as_mut_ptr();
        message.msg_iovlen = parts.len() as _;
        // SAFETY: all that `message` points to lives across the call and is only read.
        let sent = unsafe { libc::sendmsg(self.fd.as_raw_fd(), &raw const message, 0) };
        if sent < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    }
}

impl AsFd for PacketSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
