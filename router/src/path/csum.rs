//! The Internet checksum (RFC 1071), where the kernel has left one for us to do.

#![deny(clippy::disallowed_methods)]

use std::net::IpAddr;

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

#[cfg(test)]
mod tests {
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
    fn a_finished_sum_verifies() {
        let mut packet: Vec<u8> = (0..61).collect();
        packet[26..28].fill(0);
        assert!(finish(&mut packet, 20, 6));
        assert_eq!(fold(add(0, &packet[20..])), 0xffff);
        assert!(!finish(&mut packet, 58, 2));
    }
}
