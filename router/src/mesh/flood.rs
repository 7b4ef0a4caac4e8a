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
//! and not to those from whom it came meanwhile: half of what would be sent twice is saved.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use weave_model::NodeId;

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
    pace: Duration,
    /// Nothing is due before; something may be due later only.
    next: Option<Instant>,
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
        self.peers.insert(peer, Peer::new(now));
        self.wake(now);
    }

    /// A session is gone.
    pub fn down(&mut self, peer: NodeId) {
        self.peers.remove(&peer);
        self.next = self.earliest();
    }

    /// A record is new here: every peer but `except` and its own node must have it.
    pub fn offer(&mut self, record: NodeId, except: Option<NodeId>, now: Instant) {
        let at = now + self.pace;
        for (peer, state) in &mut self.peers {
            if Some(*peer) != except && *peer != record {
                state.put(record, Retry::now(at));
            }
        }
        self.wake(at);
    }

    /// One peer lacks a record.
    pub fn lacks(&mut self, peer: NodeId, record: NodeId, now: Instant) {
        if let Some(state) = self.peers.get_mut(&peer)
            && !state.records.contains_key(&record)
        {
            state.put(record, Retry::now(now));
            self.wake(now);
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
            self.wake(at);
        }
    }

    /// There is no such record any more: nobody is to be told of it.
    pub fn forget(&mut self, record: NodeId) {
        let peers: Vec<NodeId> = self.peers.keys().copied().collect();
        peers.into_iter().for_each(|peer| self.has(peer, record));
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
        if self.next.is_none_or(|next| now < next) {
            return due;
        }
        for (peer, state) in &mut self.peers {
            if now >= state.summary.next {
                state.summary.again(now);
                due.push((*peer, Due::Summary));
            }
            while let Some(record) = state.next_due(now) {
                due.push((*peer, Due::Record(record)));
            }
        }
        self.next = self.earliest();
        due
    }

    /// When [`Flood::due`] may have something.
    pub const fn poll_timeout(&self) -> Option<Instant> {
        self.next
    }

    fn wake(&mut self, at: Instant) {
        self.next = Some(self.next.map_or(at, |next| next.min(at)));
    }

    fn earliest(&self) -> Option<Instant> {
        self.peers.values().map(Peer::poll_timeout).min()
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
        assert_eq!(flood.due(now), []);
        assert_eq!(flood.poll_timeout(), Some(now + FIRST_RETRY));
        assert_eq!(flood.due(now + FIRST_RETRY), [(B, Due::Record(C))]);
        flood.has(B, C);
        assert_eq!(flood.due(now + LAST_RETRY), []);
        assert_eq!(flood.poll_timeout(), Some(now + SUMMARY_INTERVAL));
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
