//! Round-trip times, and at which address the peers see this node.
//!
//! Every connected peer is pinged each ten seconds, and at once when its session asks whether it is still there. The
//! answer says from which address the ping came: a node that is seen at an address which it does not have is behind
//! network address translation, and tells the others.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use weave_model::NodeId;

const INTERVAL: Duration = Duration::from_secs(10);
/// How long an answer is waited for before the next ping.
const RETRY: Duration = Duration::from_secs(1);

#[derive(Debug)]
struct Peer {
    next: Instant,
    /// The last pings that are not answered, by id.
    sent: Vec<(u64, Instant)>,
    rtt: Option<Duration>,
    observed: Option<SocketAddr>,
}

/// The pings to all connected peers.
#[derive(Debug, Default)]
pub struct Pings {
    peers: BTreeMap<NodeId, Peer>,
    last_id: u64,
}

impl Pings {
    /// A session came up.
    pub fn up(&mut self, peer: NodeId, now: Instant) {
        let fresh = || Peer {
            next: now,
            sent: Vec::new(),
            rtt: None,
            observed: None,
        };
        self.peers.entry(peer).or_insert_with(fresh).next = now;
    }

    /// A session is gone.
    pub fn down(&mut self, peer: NodeId) {
        self.peers.remove(&peer);
    }

    /// Asks at once.
    pub fn probe(&mut self, peer: NodeId, now: Instant) {
        if let Some(state) = self.peers.get_mut(&peer) {
            state.next = now;
        }
    }

    /// The pings to send now: to whom, and with which id.
    pub fn due(&mut self, now: Instant) -> Vec<(NodeId, u64)> {
        let mut due = Vec::new();
        for (peer, state) in &mut self.peers {
            if now >= state.next {
                self.last_id += 1;
                state
                    .sent
                    .retain(|(_, at)| now.saturating_duration_since(*at) < INTERVAL);
                state.sent.push((self.last_id, now));
                state.next = now
                    + if state.sent.len() > 3 {
                        INTERVAL
                    } else {
                        RETRY
                    };
                due.push((*peer, self.last_id));
            }
        }
        due
    }

    /// An answer came; `true` if it answers a ping of ours.
    pub fn pong(&mut self, peer: NodeId, id: u64, observed: SocketAddr, now: Instant) -> bool {
        let Some(state) = self.peers.get_mut(&peer) else {
            return false;
        };
        let Some((_, sent)) = state.sent.iter().find(|(sent, _)| *sent == id) else {
            return false;
        };
        let sample = now.saturating_duration_since(*sent);
        state.rtt = Some(state.rtt.map_or(sample, |rtt| (rtt * 7 + sample) / 8));
        state.observed = Some(observed);
        state.sent.clear();
        state.next = now + INTERVAL;
        true
    }

    /// The smoothed round-trip time (RFC 6298 section 2, alpha 1/8).
    pub fn rtt(&self, peer: NodeId) -> Option<Duration> {
        self.peers.get(&peer)?.rtt
    }

    /// The addresses at which peers see this node, each once.
    pub fn observed(&self) -> Vec<SocketAddr> {
        let mut observed: Vec<SocketAddr> = self
            .peers
            .values()
            .filter_map(|state| state.observed)
            .collect();
        observed.sort_unstable();
        observed.dedup();
        observed
    }

    /// At which address a peer sees this node.
    pub fn observed_by(&self, peer: NodeId) -> Option<SocketAddr> {
        self.peers.get(&peer)?.observed
    }

    /// When [`Pings::due`] has something.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.peers.values().map(|state| state.next).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: NodeId = NodeId::from_bytes([1; 32]);

    #[test]
    fn answers_are_timed_and_smoothed() {
        let start = Instant::now();
        let seen: SocketAddr = "198.51.100.7:6783".parse().unwrap();
        let mut pings = Pings::default();
        pings.up(PEER, start);
        let id = pings.due(start)[0].1;
        assert!(!pings.pong(PEER, id + 1, seen, start));
        assert!(pings.pong(PEER, id, seen, start + Duration::from_millis(8)));
        assert!(
            !pings.pong(PEER, id, seen, start + Duration::from_millis(9)),
            "only once"
        );
        assert_eq!(pings.rtt(PEER), Some(Duration::from_millis(8)));
        assert_eq!(pings.observed(), [seen]);
        assert_eq!(pings.due(start + Duration::from_secs(5)), []);
        pings.probe(PEER, start + Duration::from_secs(5));
        let id = pings.due(start + Duration::from_secs(5))[0].1;
        assert!(pings.pong(PEER, id, seen, start + Duration::from_millis(5016)));
        assert_eq!(pings.rtt(PEER), Some(Duration::from_millis(9)));
    }

    #[test]
    fn a_lost_ping_is_repeated_then_rarer() {
        let mut now = Instant::now();
        let mut pings = Pings::default();
        pings.up(PEER, now);
        let mut sent = 0;
        for _ in 0..30 {
            sent += pings.due(now).len();
            now += Duration::from_secs(1);
        }
        assert!(
            (6..=16).contains(&sent),
            "{sent} pings in 30 s without an answer"
        );
        pings.down(PEER);
        assert_eq!(pings.poll_timeout(), None);
    }
}
