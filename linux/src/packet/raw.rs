//! An `AF_PACKET` socket: what both users of one have in common.

use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;
use std::time::Duration;

use libc::{c_int, c_void};

const PACKET_VNET_HDR: c_int = 15;

/// The socket, which gives every packet a virtio header.
#[derive(Debug)]
pub(crate) struct RawSocket(OwnedFd);

impl RawSocket {
    /// Opens one in the namespace of the calling thread. It receives nothing until it is bound.
    ///
    /// # Errors
    /// `PermissionDenied` without `CAP_NET_RAW`.
    pub(crate) fn open(read_timeout: Duration) -> io::Result<Self> {
        // SAFETY: takes three integers; protocol 0 receives nothing until it is bound.
        let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `fd` was just made and nobody else owns it.
        let socket = Self(unsafe { OwnedFd::from_raw_fd(fd) });
        socket.set(libc::SOL_PACKET, PACKET_VNET_HDR, &1_i32)?;
        let timeout = libc::timeval {
            tv_sec: read_timeout.as_secs() as libc::time_t,
            tv_usec: read_timeout.subsec_micros().into(),
        };
        socket.set(libc::SOL_SOCKET, libc::SO_RCVTIMEO, &timeout)?;
        Ok(socket)
    }

    /// Sets an option of the socket.
    pub(crate) fn set<T>(&self, level: c_int, name: c_int, value: &T) -> io::Result<()> {
        let size = size_of::<T>() as libc::socklen_t;
        let value = ptr::from_ref(value).cast::<c_void>();
        // SAFETY: `value` points to a `T` of `size` bytes that lives across the call; the kernel copies it.
        checked(unsafe { libc::setsockopt(self.0.as_raw_fd(), level, name, value, size) })
    }

    /// Receives the packets of an ethertype, from a device or from all (0).
    pub(crate) fn bind(&self, ethertype: u16, device: u32) -> io::Result<()> {
        let address = address(ethertype, device);
        let size = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        // SAFETY: `address` is a whole `sockaddr_ll` that lives across the call.
        checked(unsafe { libc::bind(self.0.as_raw_fd(), ptr::from_ref(&address).cast(), size) })
    }

    /// Waits for a packet and puts it into the parts, the virtio header first; says where it came from and how many
    /// bytes there are.
    pub(crate) fn receive<const N: usize>(
        &self,
        parts: [&mut [u8]; N],
    ) -> io::Result<(libc::sockaddr_ll, usize)> {
        let mut parts = parts.map(|part| libc::iovec {
            iov_base: part.as_mut_ptr().cast(),
            iov_len: part.len(),
        });
        // SAFETY: `sockaddr_ll` is plain data for which all zeroes are valid.
        let mut from: libc::sockaddr_ll = unsafe { zeroed() };
        let mut message = message(&mut from, &mut parts);
        // SAFETY: all that `message` points to is writable and lives across the call.
        let got = unsafe { libc::recvmsg(self.0.as_raw_fd(), &raw mut message, 0) };
        let got = usize::try_from(got).map_err(|_| io::Error::last_os_error())?;
        Ok((from, got))
    }

    /// Sends a packet in parts, of which the first is the virtio header.
    pub(crate) fn send<const N: usize>(
        &self,
        mut to: libc::sockaddr_ll,
        parts: [&[u8]; N],
    ) -> io::Result<()> {
        let mut parts = parts.map(|part| libc::iovec {
            iov_base: part.as_ptr().cast_mut().cast(),
            iov_len: part.len(),
        });
        let message = message(&mut to, &mut parts);
        // SAFETY: all that `message` points to lives across the call and is only read.
        let sent = unsafe { libc::sendmsg(self.0.as_raw_fd(), &raw const message, 0) };
        checked(sent.min(0) as c_int)
    }
}

impl AsFd for RawSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Packets of an ethertype on a device.
pub(crate) fn address(ethertype: u16, device: u32) -> libc::sockaddr_ll {
    // SAFETY: `sockaddr_ll` is plain data for which all zeroes are valid.
    let mut address: libc::sockaddr_ll = unsafe { zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = ethertype.to_be();
    address.sll_ifindex = device as c_int;
    address
}

/// A message that borrows both for as long as its user keeps them.
fn message(name: &mut libc::sockaddr_ll, parts: &mut [libc::iovec]) -> libc::msghdr {
    // SAFETY: `msghdr` is plain data for which all zeroes are valid.
    let mut message: libc::msghdr = unsafe { zeroed() };
    message.msg_name = ptr::from_mut(name).cast();
    message.msg_namelen = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    message.msg_iov = parts.as_mut_ptr();
    message.msg_iovlen = parts.len() as _;
    message
}

fn checked(result: c_int) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
