//! Link state: which members each member reaches without a relay, how fast, and how much is lost on the way.
//!
//! A member tells its peers in the sessions it has with them, and a table is believed because it came in its owner's
//! session; it is not passed on, so it needs no signature. Whoever looks for a relay to C needs no more than this: the
//! tables of those it reaches itself. A table has a version and is sent again until that version is acknowledged. What
//! changes soon after another change waits for it, the longer the more peers have to be told, and measurements longer than
//! who is reached. A member that tells more often is not listened to.
//!
//! A table is as long as fits one message. Who reaches more members than that names some of them, other ones than its
//! neighbours do: those whose ids are nearest to its own by exclusive or. So everybody is named by about as many.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use weave_model::NodeId;

use super::message::{Link, MAX_LINKS};
use crate::session::limits::{Bucket, Rate};
use crate::wire::{END, end_of};

/// Between two tables at least: for itself, and for each peer that has to be told.
const SPACING: (Duration, Duration) = (Duration::from_millis(500), Duration::from_millis(10));
/// Between two tables that differ in what was measured only.
const REFRESH: (Duration, Duration) = (Duration::from_secs(10), Duration::from_millis(60));
/// Until a table is sent again to who did not acknowledge it.
const RETRY: Duration = Duration::from_millis(300);
const LAST_RETRY: Duration = Duration::from_secs(10);
/// How often a member's table is taken.
const TAKEN: Rate = Rate {
    per_second: 4,
    burst: 8,
};
/// A difference of this many microseconds, or thousandths lost, is worth telling; smaller ones are noise.
const RTT_NOISE: u32 = 5000;
const LOSS_NOISE: u16 = 50;

#[derive(Debug)]
struct Peer {
    /// The version of this node's table that it has.
    has: u64,
    next: Instant,
    wait: Duration,
    taken: Bucket,
    version: u64,
    table: BTreeMap<[u8; END], Link>,
}

/// This node's table and those of its peers.
#[derive(Debug, Default)]
pub struct Links {
    own: BTreeMap<[u8; END], Link>,
    version: u64,
    told: Option<Instant>,
    /// What is to be told next, and when.
    next: Option<(Instant, BTreeMap<[u8; END], Link>)>,
    peers: BTreeMap<NodeId, Peer>,
    /// Who lacks the newest table, by when it is sent next.
    late: BTreeSet<(Instant, NodeId)>,
}

impl Links {
    /// A session with a peer came up that may know nothing of this node.
    pub fn up(&mut self, peer: NodeId, now: Instant) {
        self.down(peer);
        let fresh = Peer {
            has: 0,
            next: now,
            wait: RETRY,
            taken: Bucket::new(TAKEN, now),
            version: 0,
            table: BTreeMap::new(),
        };
        self.peers.insert(peer, fresh);
        if self.version > 0 {
            self.late.insert((now, peer));
        }
    }

    /// The session is gone, and with it what the peer said.
    pub fn down(&mut self, peer: NodeId) {
        if let Some(state) = self.peers.remove(&peer) {
            self.late.remove(&(state.next, peer));
        }
    }

    /// Says whom this node reaches now. It is told when the time has come.
    pub fn set(&mut self, me: NodeId, mut links: Vec<Link>, now: Instant) {
        let my = end_of(&me);
        let distance =
            |link: &Link| -> [u8; END] { std::array::from_fn(|at| link.end[at] ^ my[at]) };
        links.sort_unstable_by_key(distance);
        links.truncate(MAX_LINKS);
        let table: BTreeMap<_, _> = links.into_iter().map(|link| (link.end, link)).collect();
        let same_ends = table.keys().eq(self.own.keys());
        let near = |(a, b): (&Link, &Link)| {
            a.rtt_us.abs_diff(b.rtt_us) <= RTT_NOISE.max(b.rtt_us / 2)
                && a.loss.abs_diff(b.loss) <= LOSS_NOISE
        };
        if same_ends && table.values().zip(self.own.values()).all(near) {
            self.next = None;
            return;
        }
        let (least, each) = if same_ends { REFRESH } else { SPACING };
        let spacing = least.max(each * self.peers.len() as u32);
        let at = self.told.map_or(now, |told| (told + spacing).max(now));
        self.next = Some((at, table));
    }

    /// A peer acknowledged a version of this node's table.
    pub fn acknowledged(&mut self, peer: NodeId, version: u64) {
        if let Some(state) = self.peers.get_mut(&peer) {
            state.has = state.has.max(version.min(self.version));
            if state.has == self.version {
                self.late.remove(&(state.next, peer));
            }
        }
    }

    /// Takes a peer's table. Returns whether it is to be acknowledged, and whether it was news.
    pub fn take(
        &mut self,
        peer: NodeId,
        version: u64,
        links: &[Link],
        now: Instant,
    ) -> (bool, bool) {
        let Some(peer) = self.peers.get_mut(&peer) else {
            return (false, false);
        };
        if !peer.taken.take(now) {
            return (false, false);
        }
        let news = version > peer.version;
        if news {
            peer.version = version;
            peer.table = links.iter().map(|link| (link.end, *link)).collect();
        }
        (true, news)
    }

    /// What a peer says of its way to a member.
    pub fn between(&self, peer: NodeId, end: &[u8; END]) -> Option<Link> {
        self.peers.get(&peer)?.table.get(end).copied()
    }

    /// All members that a peer reaches.
    pub fn of(&self, peer: NodeId) -> impl Iterator<Item = &Link> {
        let peer = self.peers.get(&peer);
        peer.into_iter().flat_map(|peer| peer.table.values())
    }

    /// The version of this node's table, the table, and to whom it is to be sent now.
    pub fn due(&mut self, now: Instant) -> Option<(u64, Vec<Link>, BTreeSet<NodeId>)> {
        if let Some((_, table)) = self.next.take_if(|(at, _)| *at <= now) {
            self.own = table;
            self.version += 1;
            self.told = Some(now);
            self.late.clear();
            for (id, peer) in &mut self.peers {
                (peer.next, peer.wait) = (now, RETRY);
                self.late.insert((now, *id));
            }
        }
        let mut to = BTreeSet::new();
        while let Some(&(_, id)) = self.late.first().filter(|(at, _)| *at <= now) {
            self.late.pop_first();
            if let Some(peer) = self.peers.get_mut(&id) {
                peer.next = now + peer.wait;
                peer.wait = (peer.wait * 2).min(LAST_RETRY);
                self.late.insert((peer.next, id));
                to.insert(id);
            }
        }
        (!to.is_empty()).then(|| (self.version, self.own.values().copied().collect(), to))
    }

    /// When [`Links::due`] has something.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let next = self.next.as_ref().map(|(at, _)| *at);
        let late = self.late.first().map(|(at, _)| *at);
        next.into_iter().chain(late).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: NodeId = NodeId::from_bytes([1; 32]);
    const ME: NodeId = NodeId::from_bytes([2; 32]);

    fn link(end: u8, rtt_us: u32) -> Link {
        Link {
            end: [end; END],
            rtt_us,
            loss: 0,
        }
    }

    #[test]
    fn a_table_is_sent_until_it_is_acknowledged() {
        let mut now = Instant::now();
        let mut links = Links::default();
        links.up(PEER, now);
        assert_eq!(links.due(now), None, "there is nothing to tell");
        links.set(ME, vec![link(7, 100)], now);
        for _ in 0..3 {
            let (version, table, to) = links.due(now).unwrap();
            assert_eq!((version, table, to), (1, vec![link(7, 100)], [PEER].into()));
            assert_eq!(links.due(now), None);
            now = links.poll_timeout().unwrap();
        }
        links.acknowledged(PEER, 9);
        assert_eq!((links.due(now), links.poll_timeout()), (None, None));
        links.up(PEER, now);
        assert!(links.due(now).is_some(), "a new run has to be told again");
    }

    #[test]
    fn changes_are_told_together_and_noise_is_not() {
        let start = Instant::now();
        let mut links = Links::default();
        links.up(PEER, start);
        let told = |links: &mut Links, at: Instant| {
            let due = links.due(at).map(|(version, ..)| version);
            links.acknowledged(PEER, due.unwrap_or(0));
            due
        };
        links.set(ME, vec![link(7, 100)], start);
        assert_eq!(told(&mut links, start), Some(1));
        links.set(ME, vec![link(7, 900)], start);
        assert_eq!(links.poll_timeout(), None, "that is noise");
        links.set(ME, vec![link(7, 9000)], start);
        assert_eq!(links.poll_timeout(), Some(start + REFRESH.0));
        for end in 8..20 {
            links.set(ME, vec![link(7, 9000), link(end, 1)], start);
            assert_eq!(told(&mut links, start), None);
        }
        assert_eq!(links.poll_timeout(), Some(start + SPACING.0));
        assert_eq!(told(&mut links, start + SPACING.0), Some(2));
        assert_eq!(
            links.own.keys().copied().collect::<Vec<_>>(),
            [[7; END], [19; END]]
        );
    }

    #[test]
    fn who_reaches_many_names_as_many_as_fit() {
        let now = Instant::now();
        let mut links = Links::default();
        links.up(PEER, now);
        links.set(ME, (0..=255).map(|end| link(end, 1)).collect(), now);
        let (_, table, _) = links.due(now).unwrap();
        assert_eq!(table.len(), MAX_LINKS);
        assert!(table.contains(&link(2, 1)) && table.contains(&link(3, 1)));
    }

    #[test]
    fn an_old_table_and_one_too_many_change_nothing() {
        let now = Instant::now();
        let mut links = Links::default();
        assert_eq!(links.take(PEER, 1, &[link(7, 1)], now), (false, false));
        links.up(PEER, now);
        assert_eq!(links.take(PEER, 5, &[link(7, 1)], now), (true, true));
        assert_eq!(links.take(PEER, 4, &[link(8, 1)], now), (true, false));
        assert_eq!(links.between(PEER, &[7; END]), Some(link(7, 1)));
        assert_eq!(links.between(PEER, &[8; END]), None);
        let taken = (6..100).filter(|version| links.take(PEER, *version, &[], now).0);
        assert_eq!(taken.count(), TAKEN.burst as usize - 2);
        links.down(PEER);
        assert_eq!(links.of(PEER).count(), 0);
    }
}
