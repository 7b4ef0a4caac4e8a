//! Broadcast and multicast, taken from and put on the containers' interfaces.
//!
//! One `AF_PACKET` socket sees what arrives on any interface of the namespace; a filter in the kernel leaves
//! only IP packets for a broadcast or multicast address of the link, so unicast traffic costs a few instructions and
//! no copy. The virtio header tells whether a checksum is still to be done.
//!
//! The socket asks for all ethertypes, and the filter for those of IP. To sockets of one ethertype recent kernels (seen
//! with 6.18) deliver after the protocol itself, which therefore gets a clone of every packet, and copies its headers to
//! forward it; those of all ethertypes come first, and what the filter refuses costs nothing more. What leaves is not
//! shown to the socket at all (Linux 4.20), as a clone of each would be made for that too. So it hears a packet before
//! the filters of a device's ingress do, and what arrives on the port of a bridge there and on the bridge.
//!
//! Sources: `packet(7)`, `Documentation/networking/filter.rst`, `__netif_receive_skb_core` in `net/core/dev.c`.

pub(crate) mod raw;

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use crate::tun::VirtioHeader;
use raw::RawSocket;

/// Bytes of an Ethernet header.
const ETHERNET: usize = 14;

/// Bytes that may wait to be received, so that what a host's other bridges hear leaves room for what containers say.
const ROOM: libc::c_int = 1 << 20;

/// A socket for broadcast and multicast packets of IP.
#[derive(Debug)]
pub struct PacketSocket(RawSocket);

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
    /// `PermissionDenied` without `CAP_NET_RAW` and `CAP_NET_ADMIN`.
    pub fn open(read_timeout: Duration) -> io::Result<Self> {
        let socket = Self(RawSocket::open(read_timeout)?);
        socket.keep_only_group_traffic()?;
        let raw = &socket.0;
        raw.set(libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &ROOM)?;
        raw.set(libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, &1_i32)?;
        raw.bind(libc::ETH_P_ALL as u16, 0)?;
        Ok(socket)
    }

    /// Attaches a filter: IP packets for a link-level broadcast or multicast address that are in no VLAN.
    fn keep_only_group_traffic(&self) -> io::Result<()> {
        const LOAD_WORD: u16 = 0x20;
        const AND: u16 = 0x54;
        const JUMP_EQUAL: u16 = 0x15;
        const RETURN: u16 = 0x06;
        const EXTRA: i32 = libc::SKF_AD_OFF;
        const PACKET_TYPE: u32 = (EXTRA + libc::SKF_AD_PKTTYPE) as u32;
        const PROTOCOL: u32 = (EXTRA + libc::SKF_AD_PROTOCOL) as u32;
        const TAG: u32 = (EXTRA + libc::SKF_AD_VLAN_TAG) as u32;
        const VLAN: u32 = 0xfff;
        const BROADCAST: u32 = libc::PACKET_BROADCAST as u32;
        const MULTICAST: u32 = libc::PACKET_MULTICAST as u32;
        const IPV4: u32 = libc::ETH_P_IP as u32;
        const IPV6: u32 = libc::ETH_P_IPV6 as u32;
        let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
        let mut program = [
            step(LOAD_WORD, 0, 0, PACKET_TYPE),
            step(JUMP_EQUAL, 1, 0, BROADCAST),
            step(JUMP_EQUAL, 0, 7, MULTICAST),
            step(LOAD_WORD, 0, 0, PROTOCOL),
            step(JUMP_EQUAL, 1, 0, IPV4),
            step(JUMP_EQUAL, 0, 4, IPV6),
            step(LOAD_WORD, 0, 0, TAG),
            step(AND, 0, 0, VLAN),
            step(JUMP_EQUAL, 0, 1, 0),
            step(RETURN, 0, 0, u32::MAX),
            step(RETURN, 0, 0, 0),
        ];
        let filter = libc::sock_fprog {
            len: program.len() as u16,
            filter: program.as_mut_ptr(),
        };
        self.0
            .set(libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &filter)
    }

    /// Waits for a packet and puts it, from its IP header on, at the start of `buffer`.
    ///
    /// # Errors
    /// `WouldBlock` when the read timeout is over; `InvalidData` for something that is no Ethernet frame.
    pub fn recv(&self, buffer: &mut [u8]) -> io::Result<Heard> {
        let mut header = [0; VirtioHeader::SIZE];
        let mut ethernet = [0; ETHERNET];
        let (from, got) = self.0.receive([&mut header, &mut ethernet, buffer])?;
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

    /// Puts a whole IP packet of either family, its checksums done, on an interface for a link-level group address.
    ///
    /// # Errors
    /// Those of `sendmsg`: the interface is gone (`ENXIO`), down (`ENETDOWN`) or too small (`EMSGSIZE`).
    pub fn send(&self, interface: u32, group: [u8; 6], packet: &[u8]) -> io::Result<()> {
        let ethertype = match packet.first() {
            Some(first) if first >> 4 == 6 => libc::ETH_P_IPV6 as u16,
            _ => libc::ETH_P_IP as u16,
        };
        let header = VirtioHeader::default().to_bytes();
        let mut ethernet = [0; ETHERNET];
        ethernet[..6].copy_from_slice(&group);
        ethernet[6..12].copy_from_slice(&[0x02, 0, 0, 0, 0, 1]);
        ethernet[12..].copy_from_slice(&ethertype.to_be_bytes());
        let mut to = raw::address(ethertype, interface);
        to.sll_halen = 6;
        to.sll_addr[..6].copy_from_slice(&group);
        self.0.send(to, [&header, &ethernet, packet])
    }
}

impl AsFd for PacketSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
