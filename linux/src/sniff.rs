//! A copy of every packet that crosses a device, both ways, for people who want to see them.
//!
//! The packets are what the kernel's stack hands over: super-packets whole, checksums perhaps still to be done. The
//! virtio header tells which, so that a reader can finish them. A reader that is too slow misses packets, and the kernel
//! counts them ([`Sniffer::lost`]); the device is not slowed.
//!
//! Sources: `packet(7)`, `packet_rcv` in the kernel's `net/packet/af_packet.c`.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::time::Duration;

use libc::c_int;

use crate::packet::raw::RawSocket;
use crate::tun::VirtioHeader;

const PACKET_STATISTICS: c_int = 6;
/// Bytes of packets that may wait for the reader; the kernel doubles it.
const ROOM: c_int = 16 << 20;

/// Which devices to listen at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// All of the namespace.
    Everywhere,
    /// The one with this index.
    Device(u32),
}

/// A packet that was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The device it crossed.
    pub device: u32,
    /// Whether this host sent it by that device; otherwise it came in.
    pub sent: bool,
    /// What is still to be done to it; offsets count from the start of the bytes.
    pub header: VirtioHeader,
    /// Its bytes in the buffer, link header first where the device has one. Fewer than it has if the buffer is shorter.
    pub len: usize,
}

/// An open ear at a device.
#[derive(Debug)]
pub struct Sniffer {
    raw: RawSocket,
}

impl Sniffer {
    /// Begins to listen in the namespace of the calling thread. [`Sniffer::recv`] waits for at most `patience`.
    ///
    /// # Errors
    /// `PermissionDenied` without `CAP_NET_RAW`; `ENODEV` when the device is gone.
    pub fn open(place: Place, patience: Duration) -> io::Result<Self> {
        let raw = RawSocket::open(patience)?;
        let forced = raw.set(libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &ROOM);
        if forced.is_err() {
            // Without CAP_NET_ADMIN the system's limit holds.
            raw.set(libc::SOL_SOCKET, libc::SO_RCVBUF, &ROOM)?;
        }
        let device = match place {
            Place::Everywhere => 0,
            Place::Device(index) => index,
        };
        raw.bind(libc::ETH_P_ALL as u16, device)?;
        Ok(Self { raw })
    }

    /// Waits for a packet.
    ///
    /// # Errors
    /// `WouldBlock` when the time is over; `NetworkDown` when the device was taken down or is gone.
    pub fn recv(&self, buffer: &mut [u8]) -> io::Result<Seen> {
        loop {
            match self.receive(buffer) {
                // A kind of super-packet that virtio has no word for; the kernel has dropped it for this reader.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                seen => return seen,
            }
        }
    }

    fn receive(&self, buffer: &mut [u8]) -> io::Result<Seen> {
        let mut header = [0; VirtioHeader::SIZE];
        let (from, got) = self.raw.receive([&mut header, buffer])?;
        let len = got
            .checked_sub(VirtioHeader::SIZE)
            .ok_or(io::ErrorKind::InvalidData)?;
        Ok(Seen {
            device: from.sll_ifindex.unsigned_abs(),
            sent: from.sll_pkttype == libc::PACKET_OUTGOING,
            header: VirtioHeader::from_bytes(header),
            len,
        })
    }

    /// How many packets were missed since the last call, because the reader was too slow.
    ///
    /// # Errors
    /// Those of `getsockopt`.
    pub fn lost(&self) -> io::Result<u32> {
        let mut counts = [0_u32; 2];
        let mut size = size_of::<[u32; 2]>() as libc::socklen_t;
        // SAFETY: `counts` is a `tpacket_stats` (packets, drops), writable for `size` bytes across the call.
        let result = unsafe {
            libc::getsockopt(
                self.raw.as_fd().as_raw_fd(),
                libc::SOL_PACKET,
                PACKET_STATISTICS,
                counts.as_mut_ptr().cast(),
                &raw mut size,
            )
        };
        if result < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(counts[1])
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use std::net::UdpSocket;

    use super::*;
    use crate::netlink::Netlink;
    use crate::netlink::link::LinkChange;
    use crate::netns::{Netns, run_in};

    /// Loopback shows each packet twice: sent, and come in. Needs root, as all of this crate's tests of the kernel do.
    #[test]
    fn both_ways_are_seen_and_nothing_is_lost() {
        let netns = Netns::create().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let netlink = Netlink::open_in(&netns).unwrap();
            netlink.set_link(1, &LinkChange::up()).await.unwrap();
        });
        let (sniffer, socket) = run_in(&netns, || {
            let sniffer = Sniffer::open(Place::Device(1), Duration::from_secs(10)).unwrap();
            (sniffer, UdpSocket::bind("127.0.0.1:0").unwrap())
        })
        .unwrap();
        socket
            .send_to(b"a marker", socket.local_addr().unwrap())
            .unwrap();
        let mut buffer = [0; 2048];
        let mut ways = Vec::new();
        while ways.len() < 2 {
            let seen = sniffer.recv(&mut buffer).unwrap();
            if buffer[..seen.len].ends_with(b"a marker") {
                assert_eq!((seen.device, seen.len), (1, 14 + 20 + 8 + 8));
                ways.push(seen.sent);
            }
        }
        ways.sort_unstable();
        assert_eq!(ways, [false, true]);
        assert_eq!(sniffer.lost().unwrap(), 0);
    }
}
