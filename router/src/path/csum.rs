//! The Internet checksum (RFC 1071), where the kernel has left one for us to do.

#![deny(clippy::disallowed_methods)]

use std::net::IpAddr;

use weave_linux::tun::VirtioHeader;
use weave_model::Drop;

use super::inner::Inner;

/// Adds bytes, taken as big-endian words, to a running sum that [`fold`] finishes.
pub fn add(sum: u64, bytes: &[u8]) -> u64 {
    let mut words = bytes.chunks_exact(4);
    let total = words.by_ref().fold(sum, |sum, w| {
        sum + u64::from(u32::from_be_bytes([w[0], w[1], w[2], w[3]]))
    });
    match *words.remainder() {
        [a] => total + (u64::from(a) << 24),
        [a, b] => total + (u64::from(a) << 24) + (u64::from(b) << 16),
        [a, b, c] => total + (u64::from(a) << 24) + (u64::from(b) << 16) + (u64::from(c) << 8),
        _ => total,
    }
}

/// Folds a running sum to 16 bits, not complemented.
pub const fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

/// The sum of the pseudo-header (RFC 9293 §3.1, RFC 8200 §8.1), to go on with [`add`] or to [`fold`].
pub fn pseudo(source: IpAddr, destination: IpAddr, protocol: u8, length: u32) -> u64 {
    let sum = match (source, destination) {
        (IpAddr::V4(s), IpAddr::V4(d)) => add(add(0, &s.octets()), &d.octets()),
        (IpAddr::V6(s), IpAddr::V6(d)) => add(add(0, &s.octets()), &d.octets()),
        _ => 0,
    };
    sum + u64::from(protocol) + u64::from(length)
}

/// Finishes the checksum that starts at `start` and is stored `offset` bytes later, as the kernel would; `false` if
/// these lie outside of the packet.
pub fn finish(packet: &mut [u8], start: usize, offset: usize) -> bool {
    let at = start + offset;
    if at + 2 > packet.len() {
        return false;
    }
    let sum = !fold(add(0, &packet[start..]));
    // RFC 768: a UDP checksum of zero means none, so it is sent as all ones; harmless for TCP.
    let sum = if sum == 0 { 0xffff } else { sum };
    packet[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    true
}

/// Finishes what a virtio header says is pending. It must lie behind the IP headers: a container can say where, and a
/// source address that was checked must not change afterwards.
///
/// # Errors
/// [`Drop::Malformed`] if it lies elsewhere.
pub fn settle(packet: &mut [u8], header: &VirtioHeader, inner: &Inner) -> Result<(), Drop> {
    let (start, offset) = (header.csum_start.into(), header.csum_offset.into());
    if start >= inner.transport && finish(packet, start, offset) {
        Ok(())
    } else {
        Err(Drop::Malformed)
    }
}

#[cfg(test)]
mod tests {
    use super::super::inner::tests::tcp4;
    use super::*;

    #[test]
    fn the_example_of_rfc_1071() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(fold(add(0, &bytes)), 0xddf2);
        assert_eq!(
            fold(add(add(0, &bytes[..4]), &bytes[4..7])),
            fold(add(0, &[&bytes[..7], &[0]].concat()))
        );
    }

    #[test]
    fn a_pending_sum_cannot_overwrite_the_source() {
        let mut packet = tcp4(10);
        let inner = Inner::parse(&packet).unwrap();
        for (csum_start, csum_offset) in [(0, 12), (12, 0), (19, 16), (60, 1)] {
            let header = VirtioHeader {
                csum_start,
                csum_offset,
                ..VirtioHeader::default()
            };
            let settled = settle(&mut packet, &header, &inner);
            assert_eq!(settled, Err(Drop::Malformed), "{csum_start}");
            assert_eq!(packet, tcp4(10));
        }
    }

    #[test]
    fn a_finished_sum_verifies() {
        let mut packet: Vec<u8> = (0..61).collect();
        packet[26..28].fill(0);
        assert!(finish(&mut packet, 20, 6));
        assert_eq!(fold(add(0, &packet[20..])), 0xffff);
        assert!(!finish(&mut packet, 58, 2));
    }
}
