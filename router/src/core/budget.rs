//! What one member may cost this node, by what it sends and by what it says of itself.
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
//!
//! What a member says of itself comes by way of honest members too: each passes it on to its neighbours. So its records
//! and sheets have buckets by whose they are, in bytes, whoever brings them. One that finds its bucket empty is left; it or
//! a newer one comes again until it is taken, so when its owner falls quiet all have its last word within seconds. Nobody
//! can empty the bucket of another, because only what that one signed is taken from it. An honest record has 0.5 to 2 KB,
//! at most 48, and changes a few times when its node starts; a sheet has up to 192 KB and changes with each container.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tracing::warn;
use weave_model::NodeId;

use super::tally::Left;
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

/// Bytes of the records of one member.
pub(super) const RECORDS: Rate = Rate {
    per_second: 4096,
    burst: 512 << 10,
};
/// Bytes of its sheets.
const SHEETS: Rate = Rate {
    per_second: 16 << 10,
    burst: 2 << 20,
};
/// What the shortest of them costs: all that is done for each.
const SHORTEST: usize = 512;

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

/// What a member says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Said {
    /// A record, of so many bytes.
    Record(usize),
    /// A sheet.
    Sheet(usize),
}

/// The buckets of what one member says of itself.
#[derive(Debug)]
struct Voice {
    records: Bucket,
    sheets: Bucket,
    warned: Option<Instant>,
}

impl Voice {
    const fn new(now: Instant) -> Self {
        Self {
            records: Bucket::new(RECORDS, now),
            sheets: Bucket::new(SHEETS, now),
            warned: None,
        }
    }

    fn bucket(&mut self, said: Said) -> (&mut Bucket, u64) {
        match said {
            Said::Record(bytes) => (&mut self.records, bytes.max(SHORTEST) as u64),
            Said::Sheet(bytes) => (&mut self.sheets, bytes.max(SHORTEST) as u64),
        }
    }
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
pub(super) struct Budgets {
    members: BTreeMap<NodeId, Budget>,
    /// By whose words they are.
    voices: BTreeMap<NodeId, Voice>,
    left: Left,
}

impl Budgets {
    /// Takes the cost of a message from what its sender may spend; `false` if it spent it.
    pub(super) fn pay(&mut self, peer: NodeId, cost: Cost, now: Instant) -> bool {
        let budget = self.members.entry(peer);
        let budget = budget.or_insert_with(|| Budget::new(now));
        let paid = budget.pay(cost, now);
        self.left.by_sender += u64::from(!paid);
        if !paid && budget.warned.is_none_or(|at| now >= at + QUIET) {
            budget.warned = Some(now);
            warn!(peer = %peer.short(), ?cost, "a member asks for more than members need: what is too much is left");
        }
        paid
    }

    /// Whether a member may say this of itself now. Whether it said it is to be found out.
    pub(super) fn may_say(&mut self, owner: NodeId, said: Said, now: Instant) -> bool {
        let Some(voice) = self.voices.get_mut(&owner) else {
            return true;
        };
        let (bucket, bytes) = voice.bucket(said);
        let may = bucket.has(bytes, now);
        self.left.by_owner += u64::from(!may);
        if !may && voice.warned.is_none_or(|at| now >= at + QUIET) {
            voice.warned = Some(now);
            warn!(owner = %owner.short(), ?said, "a member says more of itself than members need: what is too much is left");
        }
        may
    }

    /// A member said this of itself: its signature is right.
    pub(super) fn said(&mut self, owner: NodeId, said: Said, now: Instant) {
        let voice = self.voices.entry(owner);
        let (bucket, bytes) = voice.or_insert_with(|| Voice::new(now)).bucket(said);
        bucket.take_all(bytes, now);
    }

    /// The node is no member any more: it says nothing that is taken.
    pub(super) fn forget_owner(&mut self, owner: NodeId) {
        self.voices.remove(&owner);
    }

    /// What was left, since the start.
    pub(super) const fn left(&self) -> Left {
        self.left
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
    fn who_says_too_much_of_itself_is_heard_again_later_and_others_all_the_while() {
        let now = Instant::now();
        let mut budgets = Budgets::default();
        let say = |budgets: &mut Budgets, owner, said, now| {
            let may = budgets.may_say(owner, said, now);
            if may {
                budgets.said(owner, said, now);
            }
            may
        };
        let (record, sheet) = (Said::Record(1024), Said::Sheet(192 << 10));
        let taken = (0..10_000).filter(|_| say(&mut budgets, PEER, record, now));
        assert_eq!(taken.count(), 512);
        assert_eq!(budgets.left().by_owner, 10_000 - 512);
        assert!(say(&mut budgets, OTHER, record, now), "each by itself");
        let taken = (0..100).filter(|_| say(&mut budgets, PEER, sheet, now));
        assert_eq!(taken.count(), 10, "sheets by themselves");
        let later = now + Duration::from_secs(1);
        let taken = (0..100).filter(|_| say(&mut budgets, PEER, record, later));
        assert_eq!(taken.count(), 4);
        let short = (0..2000).filter(|_| say(&mut budgets, OTHER, Said::Record(1), now));
        assert_eq!(short.count(), 1022, "short ones cost work too");
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
