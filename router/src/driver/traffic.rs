//! Which members had traffic: a look at their counters now and then, so that packets themselves need not tell.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use weave_model::NodeId;

use crate::path::stats::PeerCounters;

/// Between two looks; much less than the time after which a session rests.
const LOOK: Duration = Duration::from_secs(5);

/// What the counters said at the last look.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    seen: BTreeMap<NodeId, (u64, u64)>,
    next: Option<Instant>,
}

impl Traffic {
    /// When to look next; `None` before the first time.
    pub(super) const fn poll_timeout(&self) -> Option<Instant> {
        self.next
    }

    /// The members whose counters have moved, if it is time to look.
    pub(super) fn due(
        &mut self,
        counters: &BTreeMap<NodeId, Arc<PeerCounters>>,
        now: Instant,
    ) -> Vec<NodeId> {
        if self.next.is_some_and(|next| now < next) {
            return Vec::new();
        }
        self.next = Some(now + LOOK);
        let before = std::mem::take(&mut self.seen);
        let mut moved = Vec::new();
        for (peer, counters) in counters {
            let (sent, _, received, _) = counters.read();
            if before.get(peer).copied().unwrap_or_default() != (sent, received) {
                moved.push(*peer);
            }
            self.seen.insert(*peer, (sent, received));
        }
        moved
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_had_traffic_is_told_once() {
        let start = Instant::now();
        let id = |n| NodeId::from_bytes([n; 32]);
        let counters: BTreeMap<NodeId, Arc<PeerCounters>> =
            [1, 2].map(|n| (id(n), Arc::default())).into();
        let mut traffic = Traffic::default();
        assert!(traffic.due(&counters, start).is_empty());
        counters[&id(2)].received(100);
        assert!(traffic.due(&counters, start).is_empty(), "not yet");
        assert_eq!(traffic.due(&counters, start + LOOK), [id(2)]);
        assert!(traffic.due(&counters, start + 2 * LOOK).is_empty());
    }
}
