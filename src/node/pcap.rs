//! Captured packets as pcap, which Wireshark and tcpdump read.
//!
//! ```text
//! file:   a1b2c3d4 | version 2, 4 | time zone, accuracy (0) | longest packet | link type     (24 bytes)
//! packet: seconds | microseconds | bytes kept | bytes there were                             (16 bytes), then the bytes
//! ```
//!
//! All numbers are of this machine's byte order, which the first one tells. Source: draft-ietf-opsawg-pcap.

use std::time::Duration;

use weave_linux::tun::VirtioHeader;
use weave_router::path::csum;

/// The longest packet that is kept, in bytes: a super-packet that was joined.
pub(super) const LONGEST: usize = 1 << 18;

/// What a packet begins with (draft-ietf-opsawg-pcaplinktype).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LinkType {
    /// An Ethernet header.
    Ethernet = 1,
    /// An IP header.
    Raw = 101,
}

/// What stands at the start of a file.
pub(super) fn file_header(link: LinkType) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(24);
    bytes.extend(0xa1b2_c3d4_u32.to_ne_bytes());
    for half in [2_u16, 4] {
        bytes.extend(half.to_ne_bytes());
    }
    for word in [0, 0, LONGEST as u32, link as u32] {
        bytes.extend(word.to_ne_bytes());
    }
    bytes
}

/// A packet seen at a time since the Unix epoch.
pub(super) fn record(packet: &[u8], at: Duration) -> Vec<u8> {
    let length = packet.len() as u32;
    let mut bytes = Vec::with_capacity(16 + packet.len());
    for word in [at.as_secs() as u32, at.subsec_micros(), length, length] {
        bytes.extend(word.to_ne_bytes());
    }
    bytes.extend_from_slice(packet);
    bytes
}

/// Does what the kernel left for later: the checksum of a packet that has not left the host yet. A super-packet gets the
/// sum of all of it, which is what its own length says.
pub(super) fn finish(packet: &mut [u8], header: &VirtioHeader) {
    if header.needs_csum() {
        csum::finish(packet, header.csum_start.into(), header.csum_offset.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_have_their_sizes_and_places() {
        let header = file_header(LinkType::Raw);
        assert_eq!(header.len(), 24);
        assert_eq!(header[20..], 101_u32.to_ne_bytes());
        let at = Duration::from_micros(1_500_000_000_000_007);
        let packet = record(b"packet", at);
        assert_eq!(packet.len(), 16 + 6);
        assert_eq!(packet[4..8], 7_u32.to_ne_bytes());
        assert_eq!(packet[8..12], packet[12..16]);
        assert_eq!(packet[16..], *b"packet");
    }

    #[test]
    fn a_sum_that_was_left_for_later_is_done_and_no_other_touched() {
        let mut packet: Vec<u8> = (0..60).collect();
        packet[36..38].fill(0);
        let before = packet.clone();
        finish(&mut packet, &VirtioHeader::default());
        assert_eq!(packet, before);
        let pending = VirtioHeader {
            flags: VirtioHeader::NEEDS_CSUM,
            csum_start: 20,
            csum_offset: 16,
            ..VirtioHeader::default()
        };
        finish(&mut packet, &pending);
        assert_eq!(csum::fold(csum::add(0, &packet[20..])), 0xffff);
        let outside = VirtioHeader {
            csum_start: 59,
            ..pending
        };
        finish(&mut packet, &outside);
    }
}
