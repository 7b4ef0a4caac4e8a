//! Which lanes get through: each but the first is asked over its own socket and used once it was answered.
//!
//! A lane has a source port of its own. A NAT or firewall in front of the peer may stop it although lane 0 passes; then
//! the probes stay unanswered and all flows keep to lane 0. A lane that falls silent is given up after three probes.

#![deny(clippy::disallowed_methods)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use weave_model::NodeId;

use crate::path::routes::OpenLanes;
use crate::wire::MAX_LANES;

/// First byte of a control message that asks over a lane; the second is the lane.
pub(super) const PROBE: u8 = 32;
/// First byte of the answer, which goes over lane 0; the second is the lane.
pub(super) const ANSWER: u8 = 33;

/// Between probes of a lane that is open, or has long been silent.
const SLOW: Duration = Duration::from_secs(10);
/// Between the first probes of a lane.
const FAST: Duration = Duration::from_millis(500);
/// How many probes are sent fast.
const FAST_PROBES: u32 = 6;
/// How many probes of an open lane may stay unanswered.
const PATIENCE: u32 = 3;

#[derive(Debug)]
struct Lane {
    next: Instant,
    unanswered: u32,
}

#[derive(Debug)]
struct Peer {
    open: Arc<OpenLanes>,
    lanes: Vec<Lane>,
}

/// The lanes to all members.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    peers: BTreeMap<NodeId, Peer>,
}

impl Lanes {
    /// A session with `count` lanes came up, or its path changed: all but lane 0 have to be asked anew. `open` is what is
    /// known of the new path, nothing but its kind.
    pub(super) fn up(
        &mut self,
        peer: NodeId,
        count: usize,
        open: OpenLanes,
        now: Instant,
    ) -> Arc<OpenLanes> {
        let lanes = (0..count.min(MAX_LANES))
            .map(|_| Lane {
                next: now,
                unanswered: 0,
            })
            .collect();
        let open = Arc::new(open);
        self.peers.insert(
            peer,
            Peer {
                open: Arc::clone(&open),
                lanes,
            },
        );
        open
    }

    /// The keys changed but not the path: what is open stays open.
    pub(super) fn rekeyed(
        &mut self,
        peer: NodeId,
        count: usize,
        open: OpenLanes,
        now: Instant,
    ) -> Arc<OpenLanes> {
        match self.peers.get(&peer) {
            Some(known) if known.lanes.len() == count.min(MAX_LANES) => Arc::clone(&known.open),
            _ => self.up(peer, count, open, now),
        }
    }

    /// The session is gone.
    pub(super) fn down(&mut self, peer: NodeId) {
        self.peers.remove(&peer);
    }

    /// A probe was answered. Returns whether that opened the lane.
    pub(super) fn answered(&mut self, peer: NodeId, lane: u8) -> bool {
        let Some(peer) = self.peers.get_mut(&peer) else {
            return false;
        };
        let Some(state) = peer.lanes.get_mut(usize::from(lane)) else {
            return false;
        };
        state.unanswered = 0;
        let news = !peer.open.is_open(lane);
        peer.open.open(lane);
        news
    }

    /// Nothing comes back over a lane any more: it is given up now, and asked anew.
    pub(super) fn silent(&mut self, peer: NodeId, lane: u8, now: Instant) {
        let Some(peer) = self.peers.get_mut(&peer) else {
            return;
        };
        if let Some(state) = peer.lanes.get_mut(usize::from(lane)) {
            (state.next, state.unanswered) = (now, 0);
            peer.open.close(lane);
        }
    }

    /// The probes to send now.
    pub(super) fn due(&mut self, now: Instant) -> Vec<(NodeId, u8)> {
        let mut due = Vec::new();
        for (id, peer) in &mut self.peers {
            for (lane, state) in peer.lanes.iter_mut().enumerate().skip(1) {
                if state.next > now {
                    continue;
                }
                let lane = lane as u8;
                if state.unanswered >= PATIENCE {
                    peer.open.close(lane);
                }
                let slow = peer.open.is_open(lane) || state.unanswered >= FAST_PROBES;
                state.next = now + if slow { SLOW } else { FAST };
                state.unanswered = state.unanswered.saturating_add(1);
                due.push((*id, lane));
            }
        }
        due
    }

    /// When [`Lanes::due`] has something next.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let lanes = self
            .peers
            .values()
            .flat_map(|peer| peer.lanes.iter().skip(1));
        lanes.map(|lane| lane.next).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: NodeId = NodeId::from_bytes([1; 32]);

    #[test]
    fn a_lane_opens_when_answered_and_closes_when_silent() {
        let start = Instant::now();
        let mut lanes = Lanes::default();
        let open = lanes.up(PEER, 2, OpenLanes::default(), start);
        assert_eq!(lanes.due(start), [(PEER, 1)]);
        assert!(!open.is_open(1));
        assert!(lanes.answered(PEER, 1) && !lanes.answered(PEER, 1) && !lanes.answered(PEER, 7));
        assert!(open.is_open(1));
        let mut now = start;
        let mut asked = 0;
        while open.is_open(1) {
            now = lanes.poll_timeout().unwrap();
            asked += lanes.due(now).len();
        }
        assert_eq!((asked, now - start), (4, FAST + 3 * SLOW));
        assert!(open.is_open(0));
    }

    #[test]
    fn a_lane_that_is_given_up_is_asked_at_once() {
        let now = Instant::now();
        let mut lanes = Lanes::default();
        let open = lanes.up(PEER, 2, OpenLanes::default(), now);
        lanes.due(now);
        lanes.answered(PEER, 1);
        lanes.silent(PEER, 1, now);
        assert!(!open.is_open(1));
        assert_eq!(lanes.due(now), [(PEER, 1)]);
        assert!(lanes.answered(PEER, 1));
    }

    #[test]
    fn new_keys_keep_what_is_open_and_a_new_path_does_not() {
        let now = Instant::now();
        let mut lanes = Lanes::default();
        lanes.up(PEER, 4, OpenLanes::default(), now);
        lanes.answered(PEER, 2);
        assert!(lanes.rekeyed(PEER, 4, OpenLanes::default(), now).is_open(2));
        assert!(!lanes.rekeyed(PEER, 2, OpenLanes::default(), now).is_open(2));
        assert!(!lanes.up(PEER, 4, OpenLanes::default(), now).is_open(2));
    }
}
