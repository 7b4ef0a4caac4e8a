//! Packets that wait for a session that is being made.
//!
//! In a large cluster there are sessions with some members only; a packet for another one asks for a session and waits
//! here for it, mostly for one or two round trips. What waits is bounded; what waited too long is dropped, as it would
//! have been without a place to wait.

#![deny(clippy::disallowed_methods)]

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use weave_linux::tun::VirtioHeader;
use weave_model::NodeId;

/// How long a packet waits at most: longer than a handshake that is lost twice and a relay that is found take.
pub const PATIENCE: Duration = Duration::from_secs(3);
/// How often is looked whether a session is there.
pub const LOOK: Duration = Duration::from_millis(2);
/// How many packets wait at most, and how many bytes.
const MOST: usize = 256;
const MOST_BYTES: usize = 1 << 20;

/// A packet, for whom it is, and since when it waits.
#[derive(Debug)]
pub struct Waiting {
    /// For whom.
    pub peer: NodeId,
    /// As the kernel gave it.
    pub header: VirtioHeader,
    /// As well.
    pub packet: Vec<u8>,
    since: Instant,
}

/// The packets of one thread.
#[derive(Debug, Default)]
pub struct Parked {
    packets: VecDeque<Waiting>,
    bytes: usize,
}

impl Parked {
    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.packets.is_empty()
    }

    /// Whether something waits for this member.
    pub fn has(&self, peer: NodeId) -> bool {
        self.packets.iter().any(|waiting| waiting.peer == peer)
    }

    /// Lets a packet wait; `false` if there is no room.
    pub fn push(&mut self, peer: NodeId, what: (VirtioHeader, &[u8]), now: Instant) -> bool {
        let (header, packet) = what;
        let fits = self.packets.len() < MOST && self.bytes + packet.len() <= MOST_BYTES;
        if fits {
            self.bytes += packet.len();
            self.packets.push_back(Waiting {
                peer,
                header,
                packet: packet.to_vec(),
                since: now,
            });
        }
        fits
    }

    /// The first packet, of those that came first, whose session is there; and how many waited in vain.
    pub fn take(&mut self, now: Instant, ready: impl Fn(NodeId) -> bool) -> (Vec<Waiting>, usize) {
        let (mut taken, mut late) = (Vec::new(), 0);
        for waiting in std::mem::take(&mut self.packets) {
            if ready(waiting.peer) {
                self.bytes -= waiting.packet.len();
                taken.push(waiting);
            } else if now.saturating_duration_since(waiting.since) >= PATIENCE {
                self.bytes -= waiting.packet.len();
                late += 1;
            } else {
                self.packets.push_back(waiting);
            }
        }
        (taken, late)
    }
}

#[cfg(test)]
#[allow(
    clippy::disallowed_methods,
    reason = "tests need some instant to begin with"
)]
mod tests {
    use super::*;

    const A: NodeId = NodeId::from_bytes([1; 32]);
    const B: NodeId = NodeId::from_bytes([2; 32]);

    #[test]
    fn packets_wait_in_order_for_their_own_session_and_not_for_ever() {
        let start = Instant::now();
        let mut parked = Parked::default();
        for (peer, byte) in [(A, 1), (B, 2), (A, 3)] {
            assert!(parked.push(peer, (VirtioHeader::default(), &[byte]), start));
        }
        assert!(parked.has(A) && parked.has(B));
        let (taken, late) = parked.take(start, |peer| peer == A);
        let bytes: Vec<u8> = taken.iter().map(|waiting| waiting.packet[0]).collect();
        assert_eq!((bytes, late), (vec![1, 3], 0));
        assert!(!parked.has(A) && !parked.is_empty());
        let (taken, late) = parked.take(start + PATIENCE, |_| false);
        assert_eq!((taken.len(), late, parked.bytes), (0, 1, 0));
        assert!(parked.is_empty());
    }

    #[test]
    fn what_waits_is_bounded() {
        let (start, header) = (Instant::now(), VirtioHeader::default());
        let mut parked = Parked::default();
        let small = (0..1000).filter(|_| parked.push(A, (header, &[0; 100]), start));
        assert_eq!(small.count(), MOST);
        let mut parked = Parked::default();
        let large = (0..1000).filter(|_| parked.push(A, (header, &[0; 60_000]), start));
        assert_eq!(large.count(), MOST_BYTES / 60_000);
    }
}
