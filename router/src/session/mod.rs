//! Sessions: authenticated, encrypted channels between two nodes, end to end.
//!
//! A handshake gives each direction one key; from it every *lane* (a source port with its own packets in order) derives
//! its own, so lanes share no counter, no window and no cache line. What data threads need is split from what runs the
//! protocol: an [`Outbound`] to seal with and an [`Inbound`] to open with, both immutable but for a few atomics and one
//! short lock per lane, both handed over by [`Sessions`] as events and dropped when it retires them. A retired pair also
//! refuses by itself, so a thread that still holds an old snapshot cannot use it.

#![deny(clippy::disallowed_methods)]

mod attempt;
mod events;
pub mod limits;
mod local;
mod peer;
mod replay;
mod sessions;

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use weave_model::{Drop, NodeId, Suite};
use zeroize::Zeroizing;

use crate::keys::derive;
pub use crate::keys::{OpenKey, SealKey, packet_limit};
use crate::way::Way;
pub use crate::wire::MAX_LANES;
use limits::{Bucket, Rate};

pub use events::{SessionConfig, SessionEvent, SessionStatus, Transmit};
pub use replay::ReplayWindow;
pub use sessions::Sessions;

/// What the control core is told of one lane: the burst is half of what may wait for it, the rate some percents of its
/// time. What is not told comes again.
const TOLD: Rate = Rate {
    per_second: 1000,
    burst: 512,
};

/// What is handed on for the peer on one lane: with datagrams of 1,400 bytes some 1.1 Gbit/s.
const RELAYED: Rate = Rate {
    per_second: 100_000,
    burst: 20_000,
};

/// Both directions' keys, as the handshake split them. Used once: opening consumes them.
pub struct Keys {
    send: Zeroizing<[u8; 32]>,
    receive: Zeroizing<[u8; 32]>,
}

/// What the two sides of a handshake agreed on, seen from one of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// The node at the other end.
    pub peer: NodeId,
    /// The cipher of both directions.
    pub suite: Suite,
    /// How many lanes both sides can serve, 1 to [`MAX_LANES`].
    pub lanes: usize,
    /// The index that the peer puts into datagrams for us.
    pub index: u32,
    /// The index that we put into datagrams for the peer.
    pub receiver: u32,
    /// The peer's boot nonce: another value means that it was restarted.
    pub boot: u64,
}

impl Keys {
    /// The two keys of a handshake's split, seen from this side.
    pub fn from_split(
        send: impl Into<Zeroizing<[u8; 32]>>,
        receive: impl Into<Zeroizing<[u8; 32]>>,
    ) -> Self {
        Self {
            send: send.into(),
            receive: receive.into(),
        }
    }

    /// Derives the keys of every lane: HKDF of the direction's key with "weave lane" and the lane's number.
    ///
    /// # Panics
    /// If `terms.lanes` is not 1 to [`MAX_LANES`].
    pub fn open(self, terms: Terms) -> (Outbound, Inbound) {
        assert!(
            (1..=MAX_LANES).contains(&terms.lanes),
            "a session has 1 to {MAX_LANES} lanes"
        );
        let lanes = 0..terms.lanes as u8;
        let limit = packet_limit(terms.suite);
        let send = lanes
            .clone()
            .map(|lane| SendLane::new(terms.suite, &lane_key(&self.send, lane)));
        let receive =
            lanes.map(|lane| ReceiveLane::new(terms.suite, &lane_key(&self.receive, lane), limit));
        (
            Outbound {
                terms,
                limit,
                lanes: send.collect(),
                sent_ms: Padded(AtomicU64::new(0)),
            },
            Inbound {
                terms,
                lanes: receive.collect(),
                retired: AtomicBool::new(false),
                heard_ms: Padded(AtomicU64::new(0)),
            },
        )
    }
}

fn lane_key(direction: &[u8; 32], lane: u8) -> Zeroizing<[u8; 32]> {
    derive(direction, &[b"weave lane", &[lane]])
}

/// Alone in its pair of cache lines (CPUs prefetch two), so that threads do not slow one another.
#[repr(align(128))]
struct Padded<T>(T);

/// The sending half of a session. Shared by data threads through an `Arc`; nothing in it locks.
pub struct Outbound {
    terms: Terms,
    limit: u64,
    lanes: Box<[SendLane]>,
    sent_ms: Padded<AtomicU64>,
}

#[repr(align(128))]
struct SendLane {
    next: AtomicU64,
    key: SealKey,
}

impl SendLane {
    fn new(suite: Suite, key: &[u8; 32]) -> Self {
        Self {
            next: AtomicU64::new(0),
            key: SealKey::new(suite, key),
        }
    }
}

impl Outbound {
    /// The node that can open what this seals.
    pub const fn peer(&self) -> NodeId {
        self.terms.peer
    }

    /// The index to put into the outer header, the peer's.
    pub const fn receiver(&self) -> u32 {
        self.terms.receiver
    }

    /// The index that the peer puts into its own: that of the [`Inbound`] made with this.
    pub const fn index(&self) -> u32 {
        self.terms.index
    }

    /// The cipher.
    pub const fn suite(&self) -> Suite {
        self.terms.suite
    }

    /// The peer's boot nonce.
    pub const fn boot(&self) -> u64 {
        self.terms.boot
    }

    /// How many lanes there are, 1 to [`MAX_LANES`].
    pub const fn lanes(&self) -> usize {
        self.lanes.len()
    }

    /// Takes `n` counters of a lane for the caller alone and returns the first of them.
    ///
    /// `None` once the keys are used up or the session is retired, or if the lane does not exist: nothing may be sealed.
    #[inline]
    pub fn reserve(&self, lane: u8, n: u64) -> Option<u64> {
        let next = &self.lanes.get(usize::from(lane))?.next;
        // Looked at before it is added to, so that it can never come near wrapping.
        if next.load(Ordering::Relaxed) >= self.limit || n > self.limit {
            return None;
        }
        let first = next.fetch_add(n, Ordering::Relaxed);
        (first <= self.limit - n).then_some(first)
    }

    /// The key of a lane.
    ///
    /// # Panics
    /// If the lane does not exist; [`Outbound::reserve`] has said so before.
    #[inline]
    pub fn key(&self, lane: u8) -> &SealKey {
        &self.lanes[usize::from(lane)].key
    }

    /// Notes that something that wants an answer was sent at `ms` since the process started.
    #[inline]
    pub fn note_sent(&self, ms: u64) {
        note(&self.sent_ms.0, ms);
    }

    /// The last value given to [`Outbound::note_sent`]; 0 before the first.
    pub fn last_sent_ms(&self) -> u64 {
        self.sent_ms.0.load(Ordering::Relaxed)
    }

    /// The highest counter any lane has reached.
    pub fn most_used(&self) -> u64 {
        self.lanes
            .iter()
            .map(|lane| lane.next.load(Ordering::Relaxed))
            .max()
            .unwrap_or(0)
    }

    /// How many counters each lane has in all.
    pub const fn limit(&self) -> u64 {
        self.limit
    }

    /// Ends it for every thread at once: [`Outbound::reserve`] gives `None` from now on.
    pub fn retire(&self) {
        for lane in &self.lanes {
            lane.next.fetch_max(self.limit, Ordering::Relaxed);
        }
    }
}

impl std::fmt::Debug for Outbound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Outbound").field(&self.terms).finish()
    }
}

/// The receiving half of a session. Shared by data threads through an `Arc`; a lane locks only itself.
pub struct Inbound {
    terms: Terms,
    lanes: Box<[ReceiveLane]>,
    retired: AtomicBool,
    heard_ms: Padded<AtomicU64>,
}

#[repr(align(128))]
struct ReceiveLane(Mutex<LaneIn>);

impl ReceiveLane {
    fn new(suite: Suite, key: &[u8; 32], limit: u64) -> Self {
        let lane = LaneIn {
            key: OpenKey::new(suite, key),
            window: ReplayWindow::new(limit),
            from: None,
            told: None,
            largest: 0,
            relayed: None,
        };
        Self(Mutex::new(lane))
    }
}

/// One lane of an [`Inbound`]: taken by the thread that reads the lane's socket, so the lock is hardly ever contended.
pub struct LaneIn {
    /// Opens the lane's packets.
    pub key: OpenKey,
    /// The counters seen on the lane.
    pub window: ReplayWindow,
    from: Option<Way>,
    told: Option<Bucket>,
    largest: usize,
    relayed: Option<Bucket>,
}

impl LaneIn {
    /// Checks the counter, opens the packet, marks the counter as seen: the whole of what one packet needs.
    ///
    /// Returns the plaintext and whether its counter is the newest of the lane.
    ///
    /// # Errors
    /// The reason for dropping the packet; the window is then as before.
    #[inline]
    pub fn open<'a>(
        &mut self,
        counter: u64,
        aad: &[u8],
        in_out: &'a mut [u8],
    ) -> Result<(&'a mut [u8], bool), Drop> {
        self.window.check(counter)?;
        let plain = self.key.open(counter, aad, in_out)?;
        Ok((plain, self.window.commit(counter)))
    }

    /// Like [`LaneIn::open`], but takes ciphertext and tag as they lie and writes the plaintext to `out`. Returns whether
    /// the counter is the newest of the lane.
    ///
    /// # Errors
    /// As [`LaneIn::open`]; the content of `out` is then unspecified.
    ///
    /// # Panics
    /// If `out` is not as long as the plaintext.
    #[inline]
    pub fn open_into(
        &mut self,
        counter: u64,
        aad: &[u8],
        sealed: &[u8],
        out: &mut [u8],
    ) -> Result<bool, Drop> {
        self.window.check(counter)?;
        let (ciphertext, tag) = sealed.split_at(out.len());
        self.key.open_into(counter, aad, ciphertext, tag, out)?;
        Ok(self.window.commit(counter))
    }

    /// Notes where the newest authentic packet came from. Returns whether that is news, true for the first packet too:
    /// then [`Sessions`] has to hear of it (`handle_heard`).
    #[inline]
    pub fn note_from(&mut self, from: impl Into<Way>) -> bool {
        let from = from.into();
        let news = self.from != Some(from);
        if news {
            self.from = Some(from);
        }
        news
    }

    /// Notes the size of an authentic datagram, in bytes of UDP payload.
    #[inline]
    pub fn note_size(&mut self, datagram: usize) {
        self.largest = self.largest.max(datagram);
    }

    /// The largest size noted since this was asked last; 0 if there was none.
    pub const fn take_largest(&mut self) -> usize {
        std::mem::replace(&mut self.largest, 0)
    }

    /// Whether the control core may be told once more of something on this lane: a member can send control messages and
    /// move about as often as it likes, and the core is there for all of them.
    pub fn may_tell(&mut self, now: Instant) -> bool {
        self.told
            .get_or_insert_with(|| Bucket::new(TOLD, now))
            .take(now)
    }

    /// Whether one more datagram may be handed on for the peer: a member can ask for that as often as it likes, and others
    /// want to be heard too.
    pub fn may_relay(&mut self, now: Instant) -> bool {
        self.relayed
            .get_or_insert_with(|| Bucket::new(RELAYED, now))
            .take(now)
    }

    /// Takes back what [`LaneIn::note_from`] noted, when the word could not be passed on: the next packet is news again.
    #[inline]
    pub const fn forget_from(&mut self) {
        self.from = None;
    }
}

impl Inbound {
    /// The node that sealed what this opens.
    pub const fn peer(&self) -> NodeId {
        self.terms.peer
    }

    /// The index that datagrams for this session carry, ours.
    pub const fn index(&self) -> u32 {
        self.terms.index
    }

    /// The cipher.
    pub const fn suite(&self) -> Suite {
        self.terms.suite
    }

    /// The peer's boot nonce.
    pub const fn boot(&self) -> u64 {
        self.terms.boot
    }

    /// The lane of that number; `None` if there is none or the session is retired.
    #[inline]
    pub fn lane(&self, lane: u8) -> Option<&Mutex<LaneIn>> {
        if self.retired.load(Ordering::Relaxed) {
            return None;
        }
        self.lanes.get(usize::from(lane)).map(|lane| &lane.0)
    }

    /// Notes that an authentic packet arrived at `ms` since the process started.
    #[inline]
    pub fn note_heard(&self, ms: u64) {
        note(&self.heard_ms.0, ms);
    }

    /// The last value given to [`Inbound::note_heard`]; 0 before the first.
    pub fn last_heard_ms(&self) -> u64 {
        self.heard_ms.0.load(Ordering::Relaxed)
    }

    /// Ends it for every thread at once: [`Inbound::lane`] gives `None` from now on.
    pub fn retire(&self) {
        self.retired.store(true, Ordering::Relaxed);
    }
}

impl std::fmt::Debug for Inbound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Inbound").field(&self.terms).finish()
    }
}

/// Written only when it changes: at most once a millisecond, however many packets.
#[inline]
fn note(clock: &AtomicU64, ms: u64) {
    if clock.load(Ordering::Relaxed) != ms {
        clock.store(ms, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(suite: Suite, lanes: usize) -> (Outbound, Inbound) {
        let terms = Terms {
            peer: NodeId::from_bytes([1; 32]),
            suite,
            lanes,
            index: 1,
            receiver: 2,
            boot: 3,
        };
        let (outbound, _) = Keys::from_split([1; 32], [2; 32]).open(terms);
        let (_, inbound) = Keys::from_split([2; 32], [1; 32]).open(terms);
        (outbound, inbound)
    }

    fn sealed(outbound: &Outbound, lane: u8, counter: u64) -> [u8; 20] {
        let mut packet = [7; 20];
        let (body, tag) = packet.split_at_mut(4);
        outbound.key(lane).seal(counter, &[], body, &[], tag);
        packet
    }

    #[test]
    fn lanes_share_nothing() {
        let (outbound, inbound) = pair(Suite::ChaCha20Poly1305, MAX_LANES);
        for lane in 0..MAX_LANES as u8 {
            assert_eq!(outbound.reserve(lane, 1), Some(0));
            for other in 0..MAX_LANES as u8 {
                let mut packet = sealed(&pair(Suite::ChaCha20Poly1305, MAX_LANES).0, lane, 0);
                let lane_in = inbound.lane(other).unwrap().lock().unwrap();
                let opened = lane_in.key.open(0, &[], &mut packet).is_ok();
                assert_eq!(opened, lane == other);
            }
        }
        assert!(inbound.lane(MAX_LANES as u8).is_none());
        assert_eq!(align_of::<SendLane>(), 128);
        assert_eq!(align_of::<ReceiveLane>(), 128);
    }

    #[test]
    #[allow(clippy::disallowed_methods, reason = "some instant to begin with")]
    fn a_peer_is_relayed_for_within_a_limit() {
        let (_, inbound) = pair(Suite::ChaCha20Poly1305, 2);
        let now = Instant::now();
        let relayed = |lane: u8, now| {
            let mut lane = inbound.lane(lane).unwrap().lock().unwrap();
            (0..RELAYED.per_second)
                .filter(|_| lane.may_relay(now))
                .count() as u32
        };
        assert_eq!(relayed(0, now), RELAYED.burst);
        assert_eq!(relayed(0, now), 0);
        assert_eq!(relayed(1, now), RELAYED.burst, "each lane by itself");
        let later = now + std::time::Duration::from_millis(10);
        assert_eq!(relayed(0, later), RELAYED.per_second / 100);
    }

    #[test]
    fn counters_are_given_once_to_many_threads() {
        let (outbound, _) = pair(Suite::Aes256Gcm, 1);
        let taken: Vec<u64> = std::thread::scope(|scope| {
            let take = || {
                (1..2000)
                    .filter_map(|n| outbound.reserve(0, n % 7 + 1))
                    .collect::<Vec<_>>()
            };
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(take)).collect();
            threads
                .into_iter()
                .flat_map(|thread| thread.join().unwrap())
                .collect()
        });
        let distinct: std::collections::BTreeSet<_> = taken.iter().collect();
        assert_eq!((taken.len(), distinct.len()), (4 * 1999, 4 * 1999));
        assert_eq!(
            outbound.most_used(),
            4 * (1..2000).map(|n| n % 7 + 1).sum::<u64>()
        );
    }

    #[test]
    fn a_lane_opens_what_is_new_and_true() {
        let (outbound, inbound) = pair(Suite::Aes256Gcm, 1);
        let mut lane = inbound.lane(0).unwrap().lock().unwrap();
        let packets = [0, 1, 2].map(|counter| sealed(&outbound, 0, counter));
        assert_eq!(
            lane.open(1, &[], &mut packets[1].clone())
                .map(|(_, newest)| newest),
            Ok(true)
        );
        assert_eq!(
            lane.open(0, &[], &mut packets[0].clone())
                .map(|(_, newest)| newest),
            Ok(false)
        );
        assert_eq!(
            lane.open(1, &[], &mut packets[1].clone()),
            Err(Drop::Replay)
        );
        assert_eq!(
            lane.open(3, &[], &mut packets[2].clone()),
            Err(Drop::Forged)
        );
        assert_eq!(
            lane.open(2, &[], &mut packets[2].clone())
                .map(|(_, newest)| newest),
            Ok(true)
        );
        let limit = packet_limit(Suite::Aes256Gcm);
        assert_eq!(
            lane.open(limit, &[], &mut packets[2].clone()),
            Err(Drop::Expired)
        );
    }

    #[test]
    fn one_lane_does_not_fill_the_core_s_queue() {
        let (_, inbound) = pair(Suite::Aes256Gcm, 2);
        let now = Instant::now();
        let told = |lane: u8, at: Instant| {
            let mut lane = inbound.lane(lane).unwrap().lock().unwrap();
            (0..10_000).filter(|_| lane.may_tell(at)).count()
        };
        assert_eq!((told(0, now), told(1, now)), (512, 512));
        assert_eq!(told(0, now + std::time::Duration::from_millis(100)), 100);
    }

    #[test]
    fn an_address_is_news_until_it_was_passed_on() {
        let (_, inbound) = pair(Suite::Aes256Gcm, 1);
        let mut lane = inbound.lane(0).unwrap().lock().unwrap();
        let [here, there] = [1, 2].map(|port| std::net::SocketAddr::from(([192, 0, 2, 1], port)));
        assert!(lane.note_from(here) && !lane.note_from(here) && lane.note_from(there));
        lane.forget_from();
        assert!(lane.note_from(there) && !lane.note_from(there));
    }
}
