//! Who still has to be told which record: reliable flooding over sessions that lose datagrams.
//!
//! When a session comes up both sides send a *summary* of the records they have, or its digest, until the other's comes
//! back; each then sends what the other lacks. A record that is new here goes to every neighbour but the one it came
//! from, again and again until the peer acknowledges it or shows that it has a newer one. A summary each minute finds
//! what a bug or a lost state left apart.
//!
//! To one peer a few records are under way at a time, the longest due first. An acknowledgement makes room for the next,
//! and so does a pause: what a peer never acknowledges, whatever the reason, costs time and holds up nothing.
//!
//! Among many a record comes to each from several sides. So there it is passed on a moment later ([`Flood::set_pace`]),
//! and not to those from whom it came meanwhile: half of what would be sent twice is saved. Acknowledgements wait as
//! long, so that several share a datagram.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use weave_model::NodeId;

use super::message::MAX_ACKS;
use super::record::RecordVersion;

const FIRST_RETRY: Duration = Duration::from_millis(300);
const LAST_RETRY: Duration = Duration::from_secs(5);
const SUMMARY_INTERVAL: Duration = Duration::from_secs(60);
/// How many records are sent to one peer at a time; the others wait for acknowledgements, or for [`FIRST_RETRY`] without.
const WINDOW: usize = 16;

#[derive(Clone, Copy, Debug)]
struct Retry {
    next: Instant,
    wait: Duration,
}

impl Retry {
    const fn now(now: Instant) -> Self {
        Self {
            next: now,
            wait: FIRST_RETRY,
        }
    }

    fn was_sent(&self) -> bool {
        self.wait > FIRST_RETRY
    }

    fn again(&mut self, now: Instant) {
        self.next = now + self.wait;
        self.wait = (self.wait * 2).min(LAST_RETRY);
    }
}

#[derive(Debug)]
struct Peer {
    summary: Retry,
    /// It has shown what it has since the session came up.
    compared: bool,
    records: BTreeMap<NodeId, Retry>,
    /// The same records by when each is due.
    queue: BTreeSet<(Instant, NodeId)>,
    /// How many may be sent before an acknowledgement; when there is none, from when on there is all of it again.
    room: usize,
    refill: Instant,
    /// Its place in the queue of peers: nothing is due before, something may be due later only.
    due: Instant,
}

impl Peer {
    const fn new(now: Instant) -> Self {
        Self {
            summary: Retry::now(now),
            compared: false,
            records: BTreeMap::new(),
            queue: BTreeSet::new(),
            room: WINDOW,
            refill: now,
            due: now,
        }
    }

    fn put(&mut self, record: NodeId, retry: Retry) {
        if let Some(before) = self.records.insert(record, retry) {
            self.queue.remove(&(before.next, record));
        }
        self.queue.insert((retry.next, record));
    }

    fn take(&mut self, record: NodeId) -> Option<Retry> {
        let retry = self.records.remove(&record)?;
        self.queue.remove(&(retry.next, record));
        Some(retry)
    }

    /// The next record that may be sent now; it is noted as sent.
    fn next_due(&mut self, now: Instant) -> Option<NodeId> {
        if self.room == 0 && now >= self.refill {
            self.room = WINDOW;
        }
        let (at, record) = *self.queue.first()?;
        if self.room == 0 || now < at {
            return None;
        }
        let mut retry = self.take(record)?;
        retry.again(now);
        self.put(record, retry);
        (self.room, self.refill) = (self.room - 1, now + FIRST_RETRY);
        Some(record)
    }

    /// When something of it may be due.
    fn poll_timeout(&self) -> Instant {
        let record = self.queue.first().map(|(at, _)| match self.room {
            0 => self.refill.max(*at),
            _ => *at,
        });
        record.map_or(self.summary.next, |at| at.min(self.summary.next))
    }
}

/// Something to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// The summary of all records.
    Summary,
    /// The record of this node.
    Record(NodeId),
}

/// What every neighbour with a session still lacks.
#[derive(Debug, Default)]
pub struct Flood {
    peers: BTreeMap<NodeId, Peer>,
    /// Each peer by when something may be due to it, so that an acknowledgement costs no look at all the others.
    queue: BTreeSet<(Instant, NodeId)>,
    /// What is to be acknowledged, to whom, and by when.
    acks: BTreeMap<NodeId, Vec<(NodeId, RecordVersion)>>,
    acks_at: Option<Instant>,
    pace: Duration,
}

impl Flood {
    /// How long a record waits before it is passed on.
    pub const fn set_pace(&mut self, pace: Duration) {
        self.pace = pace;
    }

    /// Whether a peer is told.
    pub fn tells(&self, peer: NodeId) -> bool {
        self.peers.contains_key(&peer)
    }

    /// Whether a peer's summary came since its session is up.
    pub fn has_compared(&self, peer: NodeId) -> bool {
        let state = self.peers.get(&peer);
        state.is_some_and(|state| state.compared)
    }

    /// A session came up, anew or again.
    pub fn up(&mut self, peer: NodeId, now: Instant) {
        self.down(peer);
        self.peers.insert(peer, Peer::new(now));
        self.queue.insert((now, peer));
    }

    /// A session is gone.
    pub fn down(&mut self, peer: NodeId) {
        if let Some(state) = self.peers.remove(&peer) {
            self.queue.remove(&(state.due, peer));
        }
    }

    /// A record is new here: every peer but `except` and its own node must have it.
    pub fn offer(&mut self, record: NodeId, except: Option<NodeId>, now: Instant) {
        let at = now + self.pace;
        for (peer, state) in &mut self.peers {
            if Some(*peer) != except && *peer != record {
                state.put(record, Retry::now(at));
                let at = state.poll_timeout();
                wake(&mut self.queue, (*peer, state), at);
            }
        }
    }

    /// One peer lacks a record.
    pub fn lacks(&mut self, peer: NodeId, record: NodeId, now: Instant) {
        if let Some(state) = self.peers.get_mut(&peer)
            && !state.records.contains_key(&record)
        {
            state.put(record, Retry::now(now));
            let at = state.poll_timeout();
            wake(&mut self.queue, (peer, state), at);
        }
    }

    /// A peer has the record, or a newer one.
    pub fn has(&mut self, peer: NodeId, record: NodeId) {
        let Some(state) = self.peers.get_mut(&peer) else {
            return;
        };
        if let Some(retry) = state.take(record) {
            if retry.was_sent() {
                state.room = (state.room + 1).min(WINDOW);
            }
            // Another one may have its turn.
            let at = state.poll_timeout();
            wake(&mut self.queue, (peer, state), at);
        }
    }

    /// Whether some peer has yet to show that it has a record.
    pub fn is_lacked(&self, record: NodeId) -> bool {
        let mut peers = self.peers.values();
        peers.any(|state| state.records.contains_key(&record))
    }

    /// There is no such record any more: nobody is to be told of it.
    pub fn forget(&mut self, record: NodeId) {
        let peers: Vec<NodeId> = self.peers.keys().copied().collect();
        peers.into_iter().for_each(|peer| self.has(peer, record));
    }

    /// A record came from a peer, and that one or a newer one is here: the peer is told so.
    pub fn took(&mut self, peer: NodeId, entry: (NodeId, RecordVersion), now: Instant) {
        let acks = self.acks.entry(peer).or_default();
        acks.push(entry);
        let full = acks.len() >= MAX_ACKS;
        let at = if full { now } else { now + self.pace };
        self.acks_at = Some(self.acks_at.map_or(at, |before| before.min(at)));
    }

    /// The acknowledgements to send now, and to whom; as many as fit a message in each.
    pub fn acks_due(&mut self, now: Instant) -> Vec<(NodeId, Vec<(NodeId, RecordVersion)>)> {
        if self.acks_at.take_if(|at| *at <= now).is_none() {
            return Vec::new();
        }
        let all = std::mem::take(&mut self.acks).into_iter();
        let messages = all.flat_map(|(peer, acks)| {
            let messages: Vec<_> = acks.chunks(MAX_ACKS).map(<[_]>::to_vec).collect();
            messages.into_iter().map(move |acks| (peer, acks))
        });
        messages.collect()
    }

    /// A peer's summary came: it heard ours, or will with the answer.
    pub fn summarised(&mut self, peer: NodeId, now: Instant) {
        if let Some(state) = self.peers.get_mut(&peer) {
            state.compared = true;
            state.summary = Retry {
                next: now + SUMMARY_INTERVAL,
                wait: FIRST_RETRY,
            };
        }
    }

    /// What is to be sent now, and to whom.
    pub fn due(&mut self, now: Instant) -> Vec<(NodeId, Due)> {
        let mut due = Vec::new();
        while let Some(&(_, peer)) = self.queue.first().filter(|(at, _)| *at <= now) {
            self.queue.pop_first();
            let Some(state) = self.peers.get_mut(&peer) else {
                continue;
            };
            if now >= state.summary.next {
                state.summary.again(now);
                due.push((peer, Due::Summary));
            }
            while let Some(record) = state.next_due(now) {
                due.push((peer, Due::Record(record)));
            }
            state.due = state.poll_timeout();
            self.queue.insert((state.due, peer));
        }
        due
    }

    /// When [`Flood::due`] or [`Flood::acks_due`] may have something.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let next = self.queue.first().map(|(at, _)| *at);
        next.into_iter().chain(self.acks_at).min()
    }
}

/// Something is due to a peer at `at`, if nothing was before.
fn wake(queue: &mut BTreeSet<(Instant, NodeId)>, (peer, state): (NodeId, &mut Peer), at: Instant) {
    if at < state.due {
        queue.remove(&(state.due, peer));
        state.due = at;
        queue.insert((at, peer));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: NodeId = NodeId::from_bytes([1; 32]);
    const B: NodeId = NodeId::from_bytes([2; 32]);
    const C: NodeId = NodeId::from_bytes([3; 32]);

    #[test]
    fn a_record_goes_to_all_but_its_sender_until_acknowledged() {
        let now = Instant::now();
        let mut flood = Flood::default();
        for peer in [A, B, C] {
            flood.up(peer, now);
            flood.summarised(peer, now);
        }
        flood.offer(C, Some(A), now);
        assert_eq!(flood.due(now), [(B, Due::Record(C))]);
        assert!(flood.is_lacked(C) && !flood.is_lacked(A));
        assert_eq!(flood.due(now), []);
        assert_eq!(flood.poll_timeout(), Some(now + FIRST_RETRY));
        assert_eq!(flood.due(now + FIRST_RETRY), [(B, Due::Record(C))]);
        flood.has(B, C);
        assert!(!flood.is_lacked(C));
        assert_eq!(flood.due(now + LAST_RETRY), []);
        assert_eq!(flood.poll_timeout(), Some(now + SUMMARY_INTERVAL));
    }

    #[test]
    fn among_many_acknowledgements_share_a_datagram() {
        let now = Instant::now();
        let mut flood = Flood::default();
        let entry = |n| (NodeId::from_bytes([n; 32]), RecordVersion::default());
        flood.took(A, entry(1), now);
        assert_eq!(
            flood.acks_due(now),
            [(A, vec![entry(1)])],
            "among few at once"
        );
        let pace = Duration::from_millis(30);
        flood.set_pace(pace);
        flood.took(A, entry(1), now);
        flood.took(B, entry(1), now);
        flood.took(A, entry(2), now + pace / 2);
        assert_eq!(flood.acks_due(now + pace / 2), []);
        assert_eq!(flood.poll_timeout(), Some(now + pace));
        let due = [(A, vec![entry(1), entry(2)]), (B, vec![entry(1)])];
        assert_eq!(flood.acks_due(now + pace), due);
        assert_eq!(flood.poll_timeout(), None);
        (0..MAX_ACKS).for_each(|_| flood.took(C, entry(3), now));
        let full = [(C, vec![entry(3); MAX_ACKS])];
        assert_eq!(flood.acks_due(now), full, "a full one waits for nothing");
    }

    #[test]
    fn a_summary_is_repeated_until_the_other_comes() {
        let now = Instant::now();
        let mut flood = Flood::default();
        flood.up(A, now);
        assert_eq!(flood.due(now), [(A, Due::Summary)]);
        assert_eq!(flood.due(now + FIRST_RETRY), [(A, Due::Summary)]);
        flood.summarised(A, now + FIRST_RETRY);
        assert_eq!(flood.due(now + LAST_RETRY), []);
        assert_eq!(
            flood.due(now + FIRST_RETRY + SUMMARY_INTERVAL),
            [(A, Due::Summary)]
        );
        flood.down(A);
        assert_eq!(flood.poll_timeout(), None);
    }

    /// A flood with one peer that lacks as many records, whose ids begin with 10, 11 and so on.
    fn lacking(count: u8, now: Instant) -> (Flood, Vec<NodeId>) {
        let mut flood = Flood::default();
        flood.up(A, now);
        flood.summarised(A, now);
        let id = |at: u8| NodeId::from_bytes([10 + at; 32]);
        let records: Vec<NodeId> = (0..count).map(id).collect();
        for record in &records {
            flood.lacks(A, *record, now);
        }
        (flood, records)
    }

    fn records(due: Vec<(NodeId, Due)>) -> Vec<NodeId> {
        let record = |(_, due)| match due {
            Due::Record(record) => Some(record),
            Due::Summary => None,
        };
        due.into_iter().filter_map(record).collect()
    }

    #[test]
    fn a_window_is_under_way_and_acknowledgements_make_room() {
        let now = Instant::now();
        let (mut flood, all) = lacking(40, now);
        assert_eq!(records(flood.due(now)), all[..WINDOW]);
        assert_eq!(flood.due(now), []);
        flood.has(A, all[3]);
        flood.has(A, all[7]);
        assert_eq!(flood.poll_timeout(), Some(now));
        assert_eq!(records(flood.due(now)), all[WINDOW..WINDOW + 2]);
        assert_eq!(flood.poll_timeout(), Some(now + FIRST_RETRY));
        // What was never sent makes no room.
        flood.has(A, all[39]);
        assert_eq!(flood.due(now), []);
        let next = records(flood.due(now + FIRST_RETRY));
        assert_eq!(next, all[WINDOW + 2..2 * WINDOW + 2]);
    }

    #[test]
    fn what_is_never_acknowledged_starves_nothing() {
        let now = Instant::now();
        let (mut flood, dead) = lacking(3 * WINDOW as u8, now);
        let mut at = now;
        for _ in 0..100 {
            flood.due(at);
            at += FIRST_RETRY;
        }
        let newest = NodeId::from_bytes([255; 32]);
        flood.lacks(A, newest, at);
        let sent_at = (0..20).find(|round| {
            let due = flood.due(at + FIRST_RETRY * *round);
            records(due).contains(&newest)
        });
        assert!(sent_at.is_some_and(|round| round < 3), "{sent_at:?}");
        // Nor does the other way round: what is tried again is not put off for ever.
        flood.has(A, newest);
        let later = at + 2 * LAST_RETRY;
        let mut again = Vec::new();
        for round in 0..4 {
            again.extend(records(flood.due(later + FIRST_RETRY * round)));
        }
        again.sort_unstable();
        assert_eq!(again, dead);
    }

    #[test]
    fn what_is_gone_is_sent_to_nobody() {
        let now = Instant::now();
        let (mut flood, all) = lacking(2, now);
        flood.forget(all[0]);
        assert_eq!(records(flood.due(now)), all[1..]);
        flood.forget(all[1]);
        assert_eq!(flood.due(now + LAST_RETRY), []);
        assert_eq!(flood.poll_timeout(), Some(now + SUMMARY_INTERVAL));
    }
}
