//! What one member may cost this node.
//!
//! A member is authentic, not honest. What it says in its session costs work here: a datagram a few microseconds, a
//! signature fifty, a summary or an inquiry an answer of up to 200 KiB, a request for addresses a block. Each is taken
//! from a bucket of that member, and what finds its bucket empty is left, as if the network had lost it: an honest
//! member sends it again.
//!
//! The buckets are far above what honest members need. The most is needed when a node meets a cluster of 1,000 and one
//! member tells it everything: 2 × 46 parts of summaries, 1,000 records of one part and about 8 signatures, and 1,000
//! sheets of 1 signature and, with a hundred containers each, of 10 parts. That is 11,100 datagrams and 9,000
//! signatures, at once; the buckets hold 32,768 and 16,384. When all 1,000 nodes restart at once, it is 1,000 records and
//! sheets again. A member of a quiet cluster sends less than 10 datagrams a second. What a hostile one can cost for long
//! is 4,096 datagrams and 256 signatures a second, each 1 to 2 % of a core.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tracing::warn;
use weave_model::NodeId;

use crate::session::limits::{Bucket, Rate};

/// Datagrams of the mesh.
const MESSAGES: Rate = Rate {
    per_second: 4096,
    burst: 32_768,
};
/// Signatures that are to be checked.
const SIGNATURES: Rate = Rate {
    per_second: 256,
    burst: 16_384,
};
/// Summaries, of records and of sheets: one a minute, and until one is answered.
const SUMMARIES: Rate = Rate {
    per_second: 1,
    burst: 256,
};
/// What each of them takes from its bucket: one in 4 s, because it can draw everything that is here.
const SUMMARY: u64 = 4;
/// Inquiries: one each 0.2 to 2 s for each node that was removed.
const INQUIRIES: Rate = Rate {
    per_second: 16,
    burst: 256,
};
/// Requests for addresses, those that are repeated not counted: a node that fills up doubles what it has with each.
const REQUESTS: Rate = Rate {
    per_second: 1,
    burst: 24,
};

/// Between two warnings about one member.
const QUIET: Duration = Duration::from_secs(60);

/// What a message costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cost {
    /// A datagram.
    Message,
    /// That many signatures, at most.
    Signatures(usize),
    /// A comparison with all that is here, and an answer.
    Summary,
    /// An answer with all deeds.
    Inquiry,
    /// A block of addresses, or the refusal of one.
    Request,
}

#[derive(Debug)]
struct Budget {
    messages: Bucket,
    signatures: Bucket,
    summaries: Bucket,
    inquiries: Bucket,
    requests: Bucket,
    warned: Option<Instant>,
}

impl Budget {
    const fn new(now: Instant) -> Self {
        Self {
            messages: Bucket::new(MESSAGES, now),
            signatures: Bucket::new(SIGNATURES, now),
            summaries: Bucket::new(SUMMARIES, now),
            inquiries: Bucket::new(INQUIRIES, now),
            requests: Bucket::new(REQUESTS, now),
            warned: None,
        }
    }

    fn pay(&mut self, cost: Cost, now: Instant) -> bool {
        match cost {
            Cost::Message => self.messages.take(now),
            Cost::Signatures(count) => self.signatures.take_all(count as u64, now),
            Cost::Summary => self.summaries.take_all(SUMMARY, now),
            Cost::Inquiry => self.inquiries.take(now),
            Cost::Request => self.requests.take(now),
        }
    }
}

/// The budgets of all members that ever had a session in this run, so that a new session brings no new one.
#[derive(Debug, Default)]
pub(super) struct Budgets(BTreeMap<NodeId, Budget>);

impl Budgets {
    /// Takes the cost of a message from what its sender may spend; `false` if it spent it.
    pub(super) fn pay(&mut self, peer: NodeId, cost: Cost, now: Instant) -> bool {
        let budget = self.0.entry(peer).or_insert_with(|| Budget::new(now));
        let paid = budget.pay(cost, now);
        if !paid && budget.warned.is_none_or(|at| now >= at + QUIET) {
            budget.warned = Some(now);
            warn!(peer = %peer.short(), ?cost, "a member asks for more than members need: what is too much is left");
        }
        paid
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: NodeId = NodeId::from_bytes([1; 32]);
    const OTHER: NodeId = NodeId::from_bytes([2; 32]);

    #[test]
    fn one_member_tells_of_a_thousand_at_once() {
        let now = Instant::now();
        let mut budgets = Budgets::default();
        for _ in 0..2 * 46 {
            assert!(budgets.pay(PEER, Cost::Message, now));
        }
        assert!(budgets.pay(PEER, Cost::Summary, now));
        assert!(budgets.pay(PEER, Cost::Summary, now));
        for _ in 0..1000 {
            let record = budgets.pay(PEER, Cost::Message, now);
            assert!(record && budgets.pay(PEER, Cost::Signatures(8), now));
            let sheet = (0..10).all(|_| budgets.pay(PEER, Cost::Message, now));
            assert!(sheet && budgets.pay(PEER, Cost::Signatures(1), now));
        }
    }

    #[test]
    fn who_spends_everything_takes_nothing_from_others() {
        let now = Instant::now();
        let mut budgets = Budgets::default();
        let spent = (0..100_000).filter(|_| budgets.pay(PEER, Cost::Signatures(10), now));
        assert_eq!(spent.count(), 1638);
        assert!(budgets.pay(OTHER, Cost::Signatures(10), now));
        assert!(budgets.pay(PEER, Cost::Message, now), "each by itself");
        let later = now + Duration::from_secs(1);
        let again = (0..1000).filter(|_| budgets.pay(PEER, Cost::Signatures(10), later));
        assert_eq!(again.count(), 26);
    }
}
