//! The TUN device: whole super-packets in and out of the kernel's IP stack.
//!
//! A queue is opened with a virtio header (`IFF_VNET_HDR`) and every offload the kernel has, so that a TCP stream is
//! read as packets of up to 64 KB whose checksum is still to be done, and can be written back the same way. The
//! device is persistent: it, its addresses and routes outlive the process, and the next one adopts them.
//!
//! Sources: `Documentation/networking/tuntap.rst`, `include/uapi/linux/if_tun.h`, virtio 1.2 §5.1.6.

use std::fs::OpenOptions;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use libc::{c_int, c_short, c_uint};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkMessage};

use crate::netlink::ask::{self, ask};

const TUNSETIFF: libc::Ioctl = 0x4004_54ca;
const TUNSETPERSIST: libc::Ioctl = 0x4004_54cb;
const TUNSETOFFLOAD: libc::Ioctl = 0x4004_54d0;
const TUNSETVNETHDRSZ: libc::Ioctl = 0x4004_54d8;

const OFFLOAD_CSUM: c_uint = 0x01;
const OFFLOAD_TSO4: c_uint = 0x02;
const OFFLOAD_TSO6: c_uint = 0x04;
const OFFLOAD_TSO_ECN: c_uint = 0x08;
const OFFLOAD_USO4: c_uint = 0x20;
const OFFLOAD_USO6: c_uint = 0x40;

/// The first kernel that takes such packets from a TUN device. From 6.3 on it reads the length of a TCP packet over IPv4
/// from the packet and not from its header (`iph_totlen`), but only since 6.6 a TUN device can hold one of any size
/// (commits 09c2c90705bb, ce7c7fef1473) and the checksums of one that is cut in software are right (82a01ab35bd0).
/// No message or flag tells; a kernel that has them under an older number is only slower.
const BIG_TCP_SINCE: (u32, u32) = (6, 6);

/// What [`Tun::open`] should ask the kernel for.
#[derive(Clone, Debug)]
pub struct TunOptions {
    /// The device's name, at most 15 bytes.
    pub name: String,
    /// How many queues to open. The device is made for several even if one is opened: it keeps its kind for life.
    pub queues: usize,
    /// Whether to ask for TCP segmentation offload (super-packets).
    pub tso: bool,
    /// Whether to ask for UDP segmentation offload; the kernel has it from 6.2.
    pub uso: bool,
}

/// The queues of one device, and what the kernel granted.
#[derive(Debug)]
pub struct TunQueues {
    /// One for each thread; all belong to one device.
    pub queues: Vec<Tun>,
    /// Super-packets of TCP will arrive.
    pub tso: bool,
    /// Super-packets of UDP will arrive.
    pub uso: bool,
    /// Packets of TCP over IPv4 longer than 65,535 bytes, which state a length of 0, may be written.
    pub big_tcp: bool,
}

/// One queue of a TUN device. Reads and writes whole IP packets behind a [`VirtioHeader`]; never blocks.
#[derive(Debug)]
pub struct Tun {
    fd: OwnedFd,
}

impl Tun {
    /// Opens (and makes, if absent) the device in the namespace of the calling thread.
    ///
    /// # Errors
    /// `NotFound` when `/dev/net/tun` is missing, `PermissionDenied` without `CAP_NET_ADMIN`, `ResourceBusy` when
    /// another process has it open, `InvalidInput` when a device of that name is of another kind.
    pub fn open(options: &TunOptions) -> io::Result<TunQueues> {
        let mut queues = Vec::with_capacity(options.queues);
        for _ in 0..options.queues.max(1) {
            queues.push(Self::open_queue(&options.name)?);
        }
        let (tso, uso) = queues[0].set_offloads(options)?;
        let first = &queues[0];
        // SAFETY: TUNSETPERSIST takes its argument by value and touches no memory of ours.
        check(unsafe { libc::ioctl(first.fd.as_raw_fd(), TUNSETPERSIST, 1 as c_int) })?;
        Ok(TunQueues {
            queues,
            tso,
            uso,
            big_tcp: tso && release() >= BIG_TCP_SINCE,
        })
    }

    fn open_queue(name: &str) -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open("/dev/net/tun")?;
        // SAFETY: `ifreq` is plain data for which all zeroes are valid.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        crate::ifname::fill(&mut request.ifr_name, name)?;
        let flags = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_MULTI_QUEUE;
        request.ifr_ifru.ifru_flags = flags as c_short;
        // SAFETY: the kernel reads and writes one `ifreq`, which lives across the call.
        check(unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, &mut request) })?;
        let size: c_int = VirtioHeader::SIZE as c_int;
        // SAFETY: the kernel reads one int, which lives across the call.
        check(unsafe { libc::ioctl(file.as_raw_fd(), TUNSETVNETHDRSZ, &size) })?;
        Ok(Self { fd: file.into() })
    }

    /// Asks for the most and settles for what the kernel has; the grant holds for all queues of the device.
    fn set_offloads(&self, options: &TunOptions) -> io::Result<(bool, bool)> {
        let tso = OFFLOAD_CSUM | OFFLOAD_TSO4 | OFFLOAD_TSO6 | OFFLOAD_TSO_ECN;
        let uso = tso | OFFLOAD_USO4 | OFFLOAD_USO6;
        let set = |flags: c_uint| {
            // SAFETY: TUNSETOFFLOAD takes its argument by value.
            check(unsafe { libc::ioctl(self.fd.as_raw_fd(), TUNSETOFFLOAD, flags) })
        };
        if options.tso && options.uso && set(uso).is_ok() {
            return Ok((true, true));
        }
        if options.tso && set(tso).is_ok() {
            return Ok((true, false));
        }
        set(0)?;
        Ok((false, false))
    }

    /// Reads one packet; the virtio header comes apart from it.
    ///
    /// # Errors
    /// `WouldBlock` when none waits. A packet longer than `packet` is cut by the kernel, so give 65,535 bytes.
    pub fn read(&self, packet: &mut [u8]) -> io::Result<(VirtioHeader, usize)> {
        let mut header = [0; VirtioHeader::SIZE];
        let mut parts = [IoSliceMut::new(&mut header), IoSliceMut::new(packet)];
        // SAFETY: `IoSliceMut` is ABI-compatible with `iovec`, and both slices outlive the call.
        let got = unsafe { libc::readv(self.fd.as_raw_fd(), parts.as_mut_ptr().cast(), 2) };
        let got = usize::try_from(got).map_err(|_| io::Error::last_os_error())?;
        let len = got
            .checked_sub(VirtioHeader::SIZE)
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        Ok((VirtioHeader::from_bytes(header), len))
    }

    /// Writes one packet given in pieces, the first of which is the virtio header's 10 bytes.
    ///
    /// # Errors
    /// `InvalidInput` when the kernel rejects the header or the packet; the device is down: `EIO`.
    pub fn write(&self, pieces: &[IoSlice<'_>]) -> io::Result<()> {
        let count = c_int::try_from(pieces.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        // SAFETY: `IoSlice` is ABI-compatible with `iovec`, and all slices outlive the call.
        let sent = unsafe { libc::writev(self.fd.as_raw_fd(), pieces.as_ptr().cast(), count) };
        if sent < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    }
}

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Makes a persistent device go when its last queue is closed, and closes these.
///
/// # Errors
/// Those of the ioctl.
pub fn remove(queues: TunQueues) -> io::Result<()> {
    for queue in &queues.queues {
        // SAFETY: TUNSETPERSIST takes its argument by value.
        check(unsafe { libc::ioctl(queue.fd.as_raw_fd(), TUNSETPERSIST, 0 as c_int) })?;
    }
    Ok(())
}

/// How many packets the kernel dropped at a device since it was made, because they found no room until they were read. Asked in
/// the calling thread's network namespace.
///
/// # Errors
/// When there is no such device.
pub fn dropped(name: &str) -> io::Result<u64> {
    let mut question = LinkMessage::default();
    let name = LinkAttribute::IfName(name.to_owned());
    question.attributes.push(name);
    let answer = ask(&ask::open()?, RouteNetlinkMessage::GetLink(question), 0)?;
    let Some(RouteNetlinkMessage::NewLink(found)) = answer else {
        return Err(io::ErrorKind::InvalidData.into());
    };
    let dropped = found.attributes.iter().find_map(|one| match one {
        LinkAttribute::Stats64(counted) => Some(counted.tx_dropped),
        _ => None,
    });
    dropped.ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// The kernel's version, major and minor; (0, 0) if it does not tell.
fn release() -> (u32, u32) {
    let text = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = text
        .split(|letter: char| !letter.is_ascii_digit())
        .map_while(|number| number.parse().ok());
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

fn check(result: c_int) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// How a packet is to be cut, the low bits of [`VirtioHeader::gso_type`].
pub mod gso {
    /// An ordinary packet.
    pub const NONE: u8 = 0;
    /// TCP over IPv4.
    pub const TCP4: u8 = 1;
    /// TCP over IPv6.
    pub const TCP6: u8 = 4;
    /// UDP over either family (USO).
    pub const UDP: u8 = 5;
    /// A flag beside the type: the first segment carries CWR (RFC 3168).
    pub const ECN: u8 = 0x80;
}

/// `struct virtio_net_hdr`: what stands before each packet, in the byte order of the machine.
///
/// ```text
/// 0 flags | 1 gso_type | 2..4 hdr_len | 4..6 gso_size | 6..8 csum_start | 8..10 csum_offset
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VirtioHeader {
    /// [`VirtioHeader::NEEDS_CSUM`] or nothing; other bits are for the receiving side only.
    pub flags: u8,
    /// One of [`gso`].
    pub gso_type: u8,
    /// Bytes of headers before the payload that is cut. A hint.
    pub hdr_len: u16,
    /// Bytes of payload in each segment.
    pub gso_size: u16,
    /// Where the checksum starts, bytes from the start of the packet.
    pub csum_start: u16,
    /// Where it is to be stored, bytes from `csum_start`.
    pub csum_offset: u16,
}

impl VirtioHeader {
    /// Bytes on the queue.
    pub const SIZE: usize = 10;
    /// The checksum field holds the sum of the pseudo-header only.
    pub const NEEDS_CSUM: u8 = 1;

    /// Reads the header.
    pub fn from_bytes(b: [u8; Self::SIZE]) -> Self {
        let word = |at: usize| u16::from_ne_bytes([b[at], b[at + 1]]);
        Self {
            flags: b[0],
            gso_type: b[1],
            hdr_len: word(2),
            gso_size: word(4),
            csum_start: word(6),
            csum_offset: word(8),
        }
    }

    /// Writes the header.
    pub fn to_bytes(self) -> [u8; Self::SIZE] {
        let mut b = [0; Self::SIZE];
        b[0] = self.flags;
        b[1] = self.gso_type;
        b[2..4].copy_from_slice(&self.hdr_len.to_ne_bytes());
        b[4..6].copy_from_slice(&self.gso_size.to_ne_bytes());
        b[6..8].copy_from_slice(&self.csum_start.to_ne_bytes());
        b[8..10].copy_from_slice(&self.csum_offset.to_ne_bytes());
        b
    }

    /// Whether the checksum is still to be done.
    pub const fn needs_csum(&self) -> bool {
        self.flags & Self::NEEDS_CSUM != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_is_there_has_a_count_of_drops() {
        assert!(dropped("lo").is_ok());
        let missing = dropped("nosuchlink0").unwrap_err();
        assert_eq!(missing.raw_os_error(), Some(libc::ENODEV));
    }

    #[test]
    fn header_round_trips() {
        let header = VirtioHeader {
            flags: 1,
            gso_type: gso::TCP4 | gso::ECN,
            hdr_len: 52,
            gso_size: 1448,
            csum_start: 20,
            csum_offset: 16,
        };
        assert_eq!(VirtioHeader::from_bytes(header.to_bytes()), header);
        assert!(header.needs_csum());
    }
}
