//! Which way each peer's packets go: straight, or through which relay; and why.
//!
//! Every way is judged by pings of its own, whose answers come back the way they went, so a way that works in one
//! direction only does not count. In a quiet network each peer is pinged by its way in use, once in ten seconds.
//!
//! *Doubt.* When a session says that nothing comes back, the way in use is asked. If that brings nothing at once, all
//! other ways are asked beside it, twice; if one of them answers and the way in use does not, it is taken. That is about
//! half a second after the last packet, before TCP tries for the third time. The pings say that they are an alarm, so a
//! peer whose packets are lost although it hears well doubts its own way too. If nothing answers, the way stays as it is
//! and everything is asked again for as long as the session is silent.
//!
//! *Back.* While a relay stands between, the peer's addresses are asked every second, later every five. A few answers one
//! after another, and packets go straight again; after each return that did not last it takes twice as many.
//!
//! *Better.* A way that works is left for one that is twice as good by time and loss. The others are measured only while
//! the one in use loses more than a few percent or leads through a relay.
//!
//! Both ends of a session choose for themselves. Where two peers are behind translators, each learns the other's outside
//! address from its record; asking that address every second from both sides is what opens the way.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use weave_model::{NodeId, PathReason};

use super::measure::Measure;
use crate::way::Way;

/// Between pings of the way in use.
const INTERVAL: Duration = Duration::from_secs(10);
/// The same while it loses much, or others are measured beside it.
const CLOSELY: Duration = Duration::from_secs(2);
/// How long an answer is waited for before the next ping, and how often that is done.
const RETRY: Duration = Duration::from_secs(1);
const RETRIES: u32 = 3;
/// From this many thousandths lost on, other ways are measured.
const LOSSY: u16 = 50;
/// Between the pings of a doubt: at least, and at most where answers take long.
const STEP: Duration = Duration::from_millis(40);
const LONGEST_STEP: Duration = Duration::from_millis(300);
/// How many addresses and how many relays of a peer are tried.
const MAX_DIRECT: usize = 4;
const MAX_RELAYED: usize = 3;
/// Between two tries to come back from a relay: at first, after [`PATIENCE`], and once one was answered.
const TRY: Duration = Duration::from_secs(1);
const TRY_LATER: Duration = Duration::from_secs(5);
const PATIENCE: Duration = Duration::from_secs(60);
const TRY_AGAIN: Duration = Duration::from_millis(200);
/// How many answers one after another bring packets back to the direct way: at first, and at most.
const NEEDED: u32 = 3;
const MOST_NEEDED: u32 = 24;
/// A return that lasted so long was right.
const LASTING: Duration = Duration::from_secs(60);

/// A ping to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ask {
    /// To whom.
    pub peer: NodeId,
    /// By which way.
    pub way: Way,
    /// Comes back in the answer.
    pub id: u64,
    /// It says that nothing was heard of the peer.
    pub alarm: bool,
    /// It goes by the way in use, and an answer is expected.
    pub expected: bool,
}

/// A way to be taken from now on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Switch {
    /// To whom.
    pub peer: NodeId,
    /// Which.
    pub way: Way,
    /// Why.
    pub reason: PathReason,
}

/// Asking whether the way in use still works.
#[derive(Clone, Copy, Debug)]
struct Doubt {
    since: Instant,
    /// How many pings went by the way in use; the last step waits for answers only.
    step: u32,
    next: Instant,
    /// This node noticed by itself, and says so.
    alarm: bool,
}

#[derive(Debug)]
struct Peer {
    /// The way in use stands among the ways.
    active: Way,
    reason: PathReason,
    changed: Instant,
    ways: Vec<Measure>,
    direct: Vec<SocketAddr>,
    relays: Vec<NodeId>,
    observed: Option<SocketAddr>,
    /// When the way in use is asked next, and how often it did not answer.
    next: Instant,
    unanswered: u32,
    doubt: Option<Doubt>,
    /// When the direct way is tried next, while a relay stands between.
    try_direct: Instant,
    needed: u32,
    returned: Option<Instant>,
}

/// The ways to all peers with whom there is a session.
#[derive(Debug, Default)]
pub struct Paths {
    peers: BTreeMap<NodeId, Peer>,
    last_id: u64,
    /// Nothing is due before; something may be due later only.
    next: Option<Instant>,
}

impl Paths {
    /// A session came up or its keys changed: packets go this way.
    pub fn up(&mut self, peer: NodeId, way: Way, now: Instant) {
        self.peers
            .entry(peer)
            .or_insert_with(|| Peer::new(way, now))
            .next = now;
        self.wake(now);
        self.moved(peer, way, now);
    }

    /// A peer's packets go this way, whoever decided it.
    pub fn moved(&mut self, peer: NodeId, way: Way, now: Instant) {
        if let Some(state) = self.peers.get_mut(&peer).filter(|peer| peer.active != way) {
            let moved = state.active.is_direct() && way.is_direct();
            let reason = if moved {
                PathReason::Moved
            } else {
                PathReason::Handshake
            };
            state.take(way, reason, now);
            state.next = now;
            self.wake(now);
        }
    }

    /// The session is gone.
    pub fn down(&mut self, peer: NodeId) {
        self.peers.remove(&peer);
        if self.peers.is_empty() {
            self.next = None;
        }
    }

    /// Says which other ways there are to a peer, the likeliest first.
    pub fn offer(&mut self, peer: NodeId, direct: &[SocketAddr], relays: &[NodeId]) {
        if let Some(state) = self.peers.get_mut(&peer) {
            state.direct = direct.iter().take(MAX_DIRECT).copied().collect();
            state.relays = relays.iter().take(MAX_RELAYED).copied().collect();
            let ways = state.others(peer);
            let (active, known) = (state.active, &mut state.ways);
            known.retain(|way| way.way == active || ways.contains(&way.way));
            for way in ways {
                if known.iter().all(|known| known.way != way) {
                    known.push(Measure::new(way));
                }
            }
            let next = state.poll_timeout();
            self.wake(next);
        }
    }

    /// Nothing comes back from a peer (`alarm`), or the peer says that nothing arrives there.
    pub fn doubt(&mut self, peer: NodeId, alarm: bool, now: Instant) {
        if let Some(state) = self.peers.get_mut(&peer)
            && state.doubt.is_none_or(|doubt| doubt.is_over())
        {
            let since = state.doubt.map_or(now, |doubt| doubt.since);
            state.doubt = Some(Doubt {
                since,
                step: 0,
                next: now,
                alarm,
            });
            self.wake(now);
        }
    }

    /// An answer came by a way. Returns the way to take if it decides something; `None` if it answers nothing of ours.
    pub fn pong(
        &mut self,
        peer: NodeId,
        id: u64,
        observed: Option<SocketAddr>,
        now: Instant,
    ) -> Option<Option<Switch>> {
        let state = self.peers.get_mut(&peer)?;
        let at = state.ways.iter_mut().position(|way| way.pong(id, now))?;
        let way = state.ways[at].way;
        state.observed = observed.or(state.observed);
        if way == state.active {
            state.doubt = None;
            state.unanswered = 0;
            state.next = now + state.interval();
        }
        let switch = state.decide(peer, now);
        let next = state.poll_timeout();
        self.wake(next);
        Some(switch)
    }

    /// The pings to send now, and the ways to take.
    pub fn due(&mut self, now: Instant) -> (Vec<Ask>, Vec<Switch>) {
        let (mut asks, mut switches) = (Vec::new(), Vec::new());
        if self.next.is_none_or(|next| now < next) {
            return (asks, switches);
        }
        for (id, peer) in &mut self.peers {
            let mut chosen = Vec::new();
            let alarm = peer.doubt_due(now, &mut chosen);
            peer.routine_due(now, &mut chosen);
            peer.return_due(now, &mut chosen);
            let mut asked = BTreeSet::new();
            for way in chosen.into_iter().filter(|way| asked.insert(*way)) {
                self.last_id += 1;
                asks.push(Ask {
                    peer: *id,
                    way,
                    id: self.last_id,
                    alarm,
                    expected: way == peer.active,
                });
                peer.measure(way).sent(self.last_id, now);
            }
            switches.extend(peer.decide(*id, now));
        }
        self.next = self.peers.values().map(Peer::poll_timeout).min();
        (asks, switches)
    }

    /// When [`Paths::due`] may have something.
    pub const fn poll_timeout(&self) -> Option<Instant> {
        self.next
    }

    fn wake(&mut self, at: Instant) {
        self.next = Some(self.next.map_or(at, |next| next.min(at)));
    }

    /// The smoothed round-trip time of the way in use.
    pub fn rtt(&self, peer: NodeId) -> Option<Duration> {
        self.peers.get(&peer)?.active().rtt()
    }

    /// Of a thousand pings by the way in use, how many are lost.
    pub fn loss(&self, peer: NodeId) -> Option<u16> {
        Some(self.peers.get(&peer)?.active().loss())
    }

    /// The way in use, since when, and why.
    pub fn way(&self, peer: NodeId) -> Option<(Way, Instant, PathReason)> {
        let peer = self.peers.get(&peer)?;
        Some((peer.active, peer.changed, peer.reason))
    }

    /// The addresses at which peers see this node, each once.
    pub fn observed(&self) -> Vec<SocketAddr> {
        let peers = self.peers.values();
        let mut observed: Vec<SocketAddr> = peers.filter_map(|peer| peer.observed).collect();
        observed.sort_unstable();
        observed.dedup();
        observed
    }

    /// At which address a peer sees this node.
    pub fn observed_by(&self, peer: NodeId) -> Option<SocketAddr> {
        self.peers.get(&peer)?.observed
    }
}

impl Doubt {
    /// Everything was asked and nothing answered.
    const fn is_over(self) -> bool {
        self.step > 3
    }
}

impl Peer {
    fn new(way: Way, now: Instant) -> Self {
        Self {
            active: way,
            reason: PathReason::Handshake,
            changed: now,
            ways: vec![Measure::new(way)],
            direct: Vec::new(),
            relays: Vec::new(),
            observed: None,
            next: now,
            unanswered: 0,
            doubt: None,
            try_direct: now,
            needed: NEEDED,
            returned: None,
        }
    }

    /// When something of this peer is due.
    fn poll_timeout(&self) -> Instant {
        let doubt = self.doubt.filter(|doubt| !doubt.is_over());
        let doubt = doubt.map(|doubt| doubt.next);
        let back = !self.active.is_direct() && !self.direct.is_empty();
        let back = back.then_some(self.try_direct);
        doubt.into_iter().chain(back).fold(self.next, Instant::min)
    }

    /// All ways that were offered.
    fn others(&self, peer: NodeId) -> Vec<Way> {
        let direct = self.direct.iter().map(|address| Way::Direct(*address));
        let relayed = self.relays.iter().map(|relay| Way::Relayed {
            relay: *relay,
            end: peer,
        });
        direct.chain(relayed).collect()
    }

    fn active(&self) -> &Measure {
        let active = self.ways.iter().find(|way| way.way == self.active);
        active.expect("the way in use stands among the ways")
    }

    fn measure(&mut self, way: Way) -> &mut Measure {
        let at = self.ways.iter().position(|known| known.way == way);
        let at = at.unwrap_or_else(|| {
            self.ways.push(Measure::new(way));
            self.ways.len() - 1
        });
        &mut self.ways[at]
    }

    fn take(&mut self, way: Way, reason: PathReason, now: Instant) {
        if self.active.is_direct() && !way.is_direct() {
            let lasted = |at: Instant| now.saturating_duration_since(at) >= LASTING;
            match self.returned.take() {
                Some(at) if !lasted(at) => self.needed = (self.needed * 2).min(MOST_NEEDED),
                _ => self.needed = NEEDED,
            }
            self.try_direct = now + TRY / 2;
        } else if way.is_direct() {
            self.returned = Some(now);
        }
        self.measure(way).forgive();
        self.ways.iter_mut().for_each(|way| way.successes = 0);
        (self.active, self.reason, self.changed) = (way, reason, now);
        self.doubt = None;
        self.unanswered = 0;
        self.next = now + self.interval();
    }

    fn interval(&self) -> Duration {
        if self.active().loss() >= LOSSY {
            CLOSELY
        } else {
            INTERVAL
        }
    }

    /// How long an answer by the way in use may take before it is missed.
    fn step(&self) -> Duration {
        let rtt = self.active().rtt().unwrap_or_default();
        (rtt * 3 / 2).clamp(STEP, LONGEST_STEP)
    }

    /// Asks what a doubt has to ask now. Returns whether it is an alarm.
    fn doubt_due(&mut self, now: Instant, chosen: &mut Vec<Way>) -> bool {
        let step = self.step();
        let Some(doubt) = self.doubt.as_mut().filter(|doubt| !doubt.is_over()) else {
            return false;
        };
        if doubt.next > now {
            return false;
        }
        if doubt.step == 3 {
            doubt.step += 1;
            return false;
        }
        chosen.push(self.active);
        if (1..3).contains(&doubt.step) {
            let others = self.ways.iter().map(|way| way.way);
            chosen.extend(others.filter(|way| *way != self.active));
        }
        doubt.step += 1;
        doubt.next = now + step;
        doubt.alarm
    }

    /// Asks the way in use now and then, and the others beside it where that may be of use.
    fn routine_due(&mut self, now: Instant, chosen: &mut Vec<Way>) {
        if self.next > now {
            return;
        }
        self.unanswered += 1;
        self.next = now
            + if self.unanswered > RETRIES {
                INTERVAL
            } else {
                RETRY
            };
        if !chosen.contains(&self.active) {
            chosen.push(self.active);
        }
        let closely = self.active().loss() >= LOSSY || !self.active.is_direct();
        if closely && self.unanswered == 1 {
            let relayed = self.ways.iter().map(|way| way.way);
            let others = relayed.filter(|way| !way.is_direct() && *way != self.active);
            chosen.extend(others);
        }
    }

    /// Tries to come back from a relay.
    fn return_due(&mut self, now: Instant, chosen: &mut Vec<Way>) {
        if self.active.is_direct() || self.try_direct > now {
            return;
        }
        let direct = self.ways.iter().filter(|way| way.way.is_direct());
        chosen.extend(direct.map(|way| way.way));
        let long = now.saturating_duration_since(self.changed) >= PATIENCE;
        self.try_direct = now + if long { TRY_LATER } else { TRY };
    }

    /// The way to take now, if it is another one.
    fn decide(&mut self, peer: NodeId, now: Instant) -> Option<Switch> {
        let (way, reason) = self.judge(now)?;
        self.take(way, reason, now);
        Some(Switch { peer, way, reason })
    }

    fn judge(&mut self, now: Instant) -> Option<(Way, PathReason)> {
        let others = || self.ways.iter().filter(|way| way.way != self.active);
        if let Some(doubt) = self
            .doubt
            .filter(|doubt| doubt.step >= 3 && doubt.next <= now)
        {
            let alive = others().filter(|way| way.answered_since(doubt.since));
            let best = alive.min_by_key(|way| (way.score(), way.way));
            return best.map(|best| (best.way, PathReason::Silent));
        }
        if self.doubt.is_some() {
            return None;
        }
        if !self.active.is_direct() {
            let ready = |way: &&Measure| way.way.is_direct() && way.successes > 0;
            if let Some(direct) = others().filter(ready).max_by_key(|way| way.successes) {
                let worse = self.reason == PathReason::Better && direct.loss() >= LOSSY;
                if direct.successes >= self.needed && !worse {
                    return Some((direct.way, PathReason::Direct));
                }
                self.try_direct = self.try_direct.min(now + TRY_AGAIN);
            }
        }
        let active = self.active();
        let better = others().filter(|way| !way.way.is_direct() && way.beats(active));
        let best = better.min_by_key(|way| (way.score(), way.way))?;
        Some((best.way, PathReason::Better))
    }
}

#[cfg(test)]
mod tests;
