//! Flows from looks at the kernel's table of connections: what was counted since the last look, summed by who talks to
//! whom over which protocol and port.
//!
//! Pure: a look is [`Flows::begin`], [`Flows::take`] for each connection that there is, [`Flows::ended`] for each that
//! was taken out of the table, and [`Flows::finish`], in that order; between two looks there may be more that ended,
//! and some that began ([`Flows::began`]), of which the next look tells what they carried. A connection's own counters
//! only grow, so the difference to the look before is what it carried in between; rates are these differences over the
//! time between two looks. What was there before the first look counts for the sums, not for the rates. Of what a relay
//! carries the table has two connections, which are one when it told of them before ([`Flows::relayed`]).
//!
//! Each connection is told by one node: that of the container that began it, or, where it came from outside, the one that
//! let it into the network: to a container of its own, or with an address of its own as the source, which is how a port
//! of a node leads to containers of others.
//!
//! The table is bounded: beyond [`MAX_FLOWS`] the flow that is idle for longest makes room, and when none is idle, or
//! beyond [`MAX_CONNECTIONS`], what comes is counted as lost. A flow of which nothing was seen for [`KEPT`] is forgotten.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use weave_linux::conntrack::{Connection, Count};
use weave_model::Relayed;
use weave_model::api::{FlowCounts, Protocol, ReportFlow};

use legs::{Legs, Part};

mod legs;
mod tcp;

/// The most flows that are kept.
pub const MAX_FLOWS: usize = 4096;

/// The most connections whose counters are remembered between two looks: as many as a map of a quarter of a million
/// places takes, which is some 20 MB. The kernel keeps what ended for two minutes, so 1,000 new ones a second are 120,000.
pub const MAX_CONNECTIONS: usize = 262_144 / 8 * 7;

/// The most connections of a relay of which it is remembered what they are.
const MAX_RELAYED: usize = 65_536;

/// How long a flow is kept after its last connection was gone.
pub const KEPT: Duration = Duration::from_secs(300);

/// How long a flow counts as failing after a refusal; longer where the next look comes later, so that some look tells.
const SORE: Duration = Duration::from_secs(15);

/// How long an answer may take before it is missed.
const PATIENCE: Duration = Duration::from_secs(2);

/// Whose an address is, as this node sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    /// This node's: a container's or the host's own.
    Mine,
    /// Another member's.
    Members,
    /// Not in the network.
    Outside,
}

/// What makes connections one flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    from: IpAddr,
    to: IpAddr,
    protocol: Protocol,
    port: u16,
    via: Option<SocketAddr>,
}

#[derive(Clone, Copy, Debug)]
struct Flow {
    counts: FlowCounts,
    /// Bytes each way since the last look.
    moved: [u64; 2],
    refused_at: Option<Instant>,
    last: Instant,
}

/// What is remembered of a connection until the next look. There may be very many.
#[derive(Clone, Debug)]
struct Known {
    key: Arc<Key>,
    look: u64,
    first: Instant,
    sent: Count,
    received: Count,
    refused: bool,
}

/// The flows of one host.
#[derive(Debug, Default)]
pub struct Flows {
    flows: BTreeMap<Arc<Key>, Flow>,
    /// By the kernel's id and the port it came from.
    known: HashMap<(u32, u16), Known>,
    legs: Legs,
    look: u64,
    at: Option<(Instant, u64)>,
    before: Option<Instant>,
    lost: u64,
    /// Connections for which there was no room since the last look, and those of that look that stood.
    left_out: [u64; 2],
    /// How many of the first have ended.
    left_out_ended: u64,
    /// There is no room for another flow before the next look.
    packed: bool,
    accounting: bool,
}

impl Flows {
    /// Begins a look; `wall` is seconds since the Unix epoch.
    pub fn begin(&mut self, now: Instant, wall: u64) {
        self.before = self.at.map(|(at, _)| at);
        self.at = Some((now, wall));
        self.look += 1;
        self.accounting = false;
        self.packed = false;
        for flow in self.flows.values_mut() {
            (flow.counts.open, flow.counts.unanswered) = (0, 0);
            flow.counts.tcp = None;
        }
    }

    /// Takes a connection that there is, unless it is another member's to tell of, or has nothing to do with the network.
    pub fn take(&mut self, connection: &Connection, whose: impl Fn(IpAddr) -> Whose) {
        let Some(at) = self.at else {
            return;
        };
        let Some((key, first)) = self.note(connection, at, whose) else {
            return;
        };
        let misses = is_missed(connection) && at.0.saturating_duration_since(first) >= PATIENCE;
        if let Some(flow) = self.flows.get_mut(&key) {
            flow.counts.unanswered += u32::from(misses);
        }
    }

    /// Takes the news that a connection began; as of now, which may be long after the last look.
    ///
    /// One that a look has seen already stays as it is. One for which there is no room is left to the next look to count.
    pub fn began(
        &mut self,
        connection: &Connection,
        now: (Instant, u64),
        whose: impl Fn(IpAddr) -> Whose,
    ) {
        let id = (connection.id, connection.from.port);
        if self.at.is_none() || self.known.contains_key(&id) {
            return;
        }
        let before = self.left_out[0];
        self.note(connection, now, whose);
        self.left_out[0] = before;
    }

    /// Takes a connection that is gone, with its last counts; as of now, which may be long after the last look.
    pub fn ended(
        &mut self,
        connection: &Connection,
        now: (Instant, u64),
        whose: impl Fn(IpAddr) -> Whose,
    ) {
        if self.at.is_none() {
            return;
        }
        let before = self.left_out[0];
        self.note(connection, now, whose);
        self.left_out_ended += self.left_out[0] - before;
        let Some(known) = self.known.remove(&(connection.id, connection.from.port)) else {
            return;
        };
        if let Some(flow) = self.flows.get_mut(&*known.key) {
            flow.counts.open = flow.counts.open.saturating_sub(1);
        }
    }

    /// Takes what a relay tells of a connection that it made, before or soon after the connection is seen.
    pub fn relayed(&mut self, one: &Relayed, now: Instant) {
        if !self.legs.add(one, MAX_RELAYED, self.look, now) {
            self.missed();
        }
    }

    /// More came than could be told: so many are unknown that one is counted for all.
    pub const fn missed(&mut self) {
        self.lost += 1;
    }

    /// Counts a connection; its flow, and when it was first seen, if there is one for it.
    fn note(
        &mut self,
        connection: &Connection,
        (now, wall): (Instant, u64),
        whose: impl Fn(IpAddr) -> Whose,
    ) -> Option<(Key, Instant)> {
        self.accounting |= connection.sent.is_some();
        if !is_ours(connection, whose) {
            return None;
        }
        let id = (connection.id, connection.from.port);
        let key = self.told_as(connection, id, now)?;
        let known = self.known.get(&id).filter(|known| *known.key == key);
        let known = known.cloned();
        if known.is_none() && self.known.len() >= MAX_CONNECTIONS || !self.has_room(&key) {
            self.left_out[0] += 1;
            return None;
        }
        let shared = known.as_ref().map(|known| Arc::clone(&known.key));
        let shared = shared.unwrap_or_else(|| self.shared(key));
        let flow = self
            .flows
            .entry(Arc::clone(&shared))
            .or_insert_with(|| Flow::new(now, wall));
        let refused = is_refused(connection);
        let first = known.as_ref().map_or(now, |known| known.first);
        let grown = [
            grown(known.as_ref().map(|known| known.sent), connection.sent),
            grown(
                known.as_ref().map(|known| known.received),
                connection.received,
            ),
        ];
        // What was there before the first look is no news.
        let news = known.is_some() || self.before.is_some();
        flow.add(grown, news);
        let counted = known.as_ref().is_some_and(|known| known.look == self.look);
        flow.counts.open += u32::from(!counted);
        flow.counts.connections += u64::from(known.is_none());
        if refused && !known.as_ref().is_some_and(|known| known.refused) {
            flow.counts.refused += 1;
            flow.refused_at = Some(now);
            flow.counts.failing = true;
        }
        if known.is_none() || grown.iter().any(|grown| grown.packets > 0) {
            (flow.last, flow.counts.last_at) = (now, wall);
        }
        let known = Known {
            key: shared,
            look: self.look,
            first,
            sent: connection.sent.unwrap_or_default(),
            received: connection.received.unwrap_or_default(),
            refused,
        };
        self.known.insert(id, known);
        Some((key, first))
    }

    /// A flow's key, which its connections share with it.
    fn shared(&self, key: Key) -> Arc<Key> {
        match self.flows.get_key_value(&key) {
            Some((shared, _)) => Arc::clone(shared),
            None => Arc::new(key),
        }
    }

    /// Ends a look: connections that are gone are forgotten, rates are set.
    pub fn finish(&mut self) {
        let Some((now, _)) = self.at else {
            return;
        };
        let look = self.look;
        // What stands and was left out at the last look too is lost once, not at each.
        let [now_out, before_out] = self.left_out;
        self.lost += now_out.saturating_sub(before_out);
        self.left_out = [0, now_out - std::mem::take(&mut self.left_out_ended)];
        self.known.retain(|_, known| known.look == look);
        self.legs.finish(look, now);
        let elapsed = self
            .before
            .map(|before| now.saturating_duration_since(before));
        let rate = |bytes: u64| match elapsed {
            Some(elapsed) if !elapsed.is_zero() => (bytes as f64 / elapsed.as_secs_f64()) as u64,
            _ => 0,
        };
        for flow in self.flows.values_mut() {
            let [sent, received] = std::mem::take(&mut flow.moved);
            (flow.counts.sent_rate, flow.counts.received_rate) = (rate(sent), rate(received));
            let sore = |at| {
                self.before.is_some_and(|before| at > before)
                    || now.saturating_duration_since(at) < SORE
            };
            flow.counts.failing = flow.refused_at.is_some_and(sore) || flow.counts.unanswered > 0;
        }
        self.flows.retain(|_, flow| {
            flow.counts.open > 0 || now.saturating_duration_since(flow.last) < KEPT
        });
    }

    /// The busiest flows, failing ones first, at most `most`; and how many were left out.
    pub fn busiest(&self, most: usize) -> (Vec<ReportFlow>, u32) {
        let mut flows: Vec<ReportFlow> = self
            .flows
            .iter()
            .map(|(key, flow)| told(key, flow))
            .collect();
        flows.sort_by_key(|flow| {
            let counts = &flow.counts;
            std::cmp::Reverse((
                counts.failing,
                counts.sent_rate + counts.received_rate,
                counts.open,
                counts.last_at,
            ))
        });
        let left = flows.len().saturating_sub(most);
        flows.truncate(most);
        (flows, left as u32)
    }

    /// How many flows there are.
    pub fn len(&self) -> usize {
        self.flows.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.flows.is_empty()
    }

    /// How many connections were left out because there were too many.
    pub const fn lost(&self) -> u64 {
        self.lost
    }

    /// Whether some connection of the last look had counters.
    pub const fn has_counters(&self) -> bool {
        self.accounting
    }

    /// The flow that a connection is counted in: none for a client's to a relay, of which the relay's own is counted.
    fn told_as(&mut self, connection: &Connection, id: (u32, u16), now: Instant) -> Option<Key> {
        let key = key_of(connection);
        let told = match self.legs.see(connection, self.look, now) {
            Part::Whole => return Some(key),
            Part::Asked => None,
            Part::Made { client, front } => Some(Key {
                from: client.unwrap_or(key.from),
                via: Some(front),
                ..key
            }),
        };
        let before = self.known.get(&id).map(|known| *known.key);
        if before.is_some() && before != told {
            self.withdraw(id);
        }
        told
    }

    /// Takes a connection out of the flow that it was counted in before a relay told what it is.
    fn withdraw(&mut self, id: (u32, u16)) {
        let Some(known) = self.known.remove(&id) else {
            return;
        };
        let Some(flow) = self.flows.get_mut(&*known.key) else {
            return;
        };
        let counts = &mut flow.counts;
        counts.connections = counts.connections.saturating_sub(1);
        counts.open = counts
            .open
            .saturating_sub(u32::from(known.look == self.look));
        counts.refused = counts.refused.saturating_sub(known.refused.into());
        for (sum, part) in [
            (&mut counts.sent_bytes, known.sent.bytes),
            (&mut counts.sent_packets, known.sent.packets),
            (&mut counts.received_bytes, known.received.bytes),
            (&mut counts.received_packets, known.received.packets),
        ] {
            *sum = sum.saturating_sub(part);
        }
        if counts.connections == 0 {
            self.flows.remove(&*known.key);
        }
    }

    /// Whether there is a place for the flow, after the idlest made room if they had to: many at once, since looking for
    /// them means looking at all.
    fn has_room(&mut self, key: &Key) -> bool {
        if self.flows.len() < MAX_FLOWS || self.flows.contains_key(key) {
            return true;
        }
        if self.packed {
            return false;
        }
        let idle = self.flows.iter().filter(|(_, flow)| flow.counts.open == 0);
        let mut idle: Vec<(Instant, Key)> = idle.map(|(key, flow)| (flow.last, **key)).collect();
        idle.sort_unstable();
        for (_, key) in idle.iter().take(MAX_FLOWS / 16) {
            self.flows.remove(key);
        }
        self.packed = idle.is_empty();
        !self.packed
    }
}

impl Flow {
    fn new(now: Instant, wall: u64) -> Self {
        Self {
            counts: FlowCounts {
                last_at: wall,
                ..FlowCounts::default()
            },
            moved: [0; 2],
            refused_at: None,
            last: now,
        }
    }

    fn add(&mut self, [sent, received]: [Count; 2], news: bool) {
        self.counts.sent_bytes += sent.bytes;
        self.counts.sent_packets += sent.packets;
        self.counts.received_bytes += received.bytes;
        self.counts.received_packets += received.packets;
        if news {
            self.moved[0] += sent.bytes;
            self.moved[1] += received.bytes;
        }
    }
}

/// Whether it is this node that tells of a connection.
fn is_ours(connection: &Connection, whose: impl Fn(IpAddr) -> Whose) -> bool {
    match (whose(connection.from.ip), whose(connection.to.ip)) {
        (Whose::Mine, _) | (Whose::Outside, Whose::Mine) => true,
        // It came in here, and goes on with an address of this node.
        (Whose::Outside, Whose::Members) => whose(connection.seen_from.ip) == Whose::Mine,
        (Whose::Members, _) | (Whose::Outside, Whose::Outside) => false,
    }
}

fn key_of(connection: &Connection) -> Key {
    let Connection {
        from, asked, to, ..
    } = connection;
    Key {
        from: from.ip,
        to: to.ip,
        protocol: Protocol::from_number(connection.protocol),
        port: to.port,
        via: (asked != to).then(|| SocketAddr::new(asked.ip, asked.port)),
    }
}

/// Nothing came back where something must: UDP may well go one way.
const fn is_missed(connection: &Connection) -> bool {
    let answers = matches!(
        Protocol::from_number(connection.protocol),
        Protocol::Tcp | Protocol::Icmp
    );
    answers && !connection.answered
}

/// TCP that was reset before it was taken up, by the one who was asked: who asks and resets what was granted, as health
/// checks and scans do, has sent more than came back. Where a reset was the only answer, the kernel takes the connection
/// out of its table at once, and does not even count it as answered.
fn is_refused(connection: &Connection) -> bool {
    let tcp = matches!(Protocol::from_number(connection.protocol), Protocol::Tcp);
    let count = |count: Option<Count>| count.unwrap_or_default().packets;
    let (sent, received) = (count(connection.sent), count(connection.received));
    let only_reset = !connection.answered && received > 0;
    let by_asked = connection.reset && connection.answered && received >= sent;
    tcp && !connection.assured && (only_reset || by_asked)
}

fn grown(before: Option<Count>, now: Option<Count>) -> Count {
    let (before, now) = (before.unwrap_or_default(), now.unwrap_or_default());
    Count {
        packets: now.packets.saturating_sub(before.packets),
        bytes: now.bytes.saturating_sub(before.bytes),
    }
}

fn told(key: &Key, flow: &Flow) -> ReportFlow {
    ReportFlow {
        from: key.from,
        to: key.to,
        protocol: key.protocol,
        port: key.port,
        via: key.via,
        counts: flow.counts,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use weave_linux::conntrack::End;

    use super::*;

    const MINE: [u8; 4] = [10, 32, 0, 2];
    const THEIRS: [u8; 4] = [10, 40, 0, 2];
    const OUTSIDE: [u8; 4] = [192, 0, 2, 7];

    fn whose(ip: IpAddr) -> Whose {
        match ip {
            IpAddr::V4(ip) if ip.octets() == MINE => Whose::Mine,
            IpAddr::V4(ip) if ip.octets() == THEIRS => Whose::Members,
            _ => Whose::Outside,
        }
    }

    fn connection(id: u32, from: [u8; 4], to: [u8; 4], sent: u64, received: u64) -> Connection {
        let end = |ip: [u8; 4], port| End {
            ip: ip.into(),
            port,
        };
        let count = |bytes| {
            Some(Count {
                packets: bytes / 100,
                bytes,
            })
        };
        Connection {
            id,
            protocol: 6,
            from: end(from, 40_000),
            asked: end(to, 80),
            to: end(to, 80),
            seen_from: end(from, 40_000),
            answered: true,
            assured: true,
            reset: false,
            sent: count(sent),
            received: count(received),
        }
    }

    /// So many seconds after the first look, by both clocks.
    fn at(start: Instant, second: u64) -> (Instant, u64) {
        (start + Duration::from_secs(second), 1000 + second)
    }

    /// Looks at these connections, `second` seconds after the first look.
    fn look(
        flows: &mut Flows,
        start: Instant,
        second: u64,
        connections: &[Connection],
    ) -> Vec<ReportFlow> {
        let (now, wall) = at(start, second);
        flows.begin(now, wall);
        connections.iter().for_each(|one| flows.take(one, whose));
        flows.finish();
        flows.busiest(100).0
    }

    #[test]
    fn what_is_counted_is_what_came_since() {
        let (mut flows, start) = (Flows::default(), Instant::now());
        let first = look(
            &mut flows,
            start,
            0,
            &[connection(1, MINE, THEIRS, 500, 100)],
        );
        assert_eq!(
            first[0].counts.sent_rate, 0,
            "it may have been there for hours"
        );
        let two = [
            connection(1, MINE, THEIRS, 2500, 100),
            connection(2, MINE, THEIRS, 0, 400),
        ];
        let counts = look(&mut flows, start, 2, &two)[0].counts;
        assert_eq!((counts.sent_rate, counts.received_rate), (1000, 200));
        assert_eq!((counts.sent_bytes, counts.received_bytes), (2500, 500));
        assert_eq!((counts.connections, counts.open), (2, 2));
        let counts = look(&mut flows, start, 3, &[])[0].counts;
        assert_eq!(
            (counts.connections, counts.open, counts.sent_rate),
            (2, 0, 0)
        );
        assert_eq!((counts.sent_bytes, counts.last_at), (2500, 1002));
    }

    #[test]
    fn each_flow_is_told_by_one_node() {
        let (mut flows, start) = (Flows::default(), Instant::now());
        let seen = [
            connection(1, MINE, THEIRS, 1, 1),
            connection(2, MINE, OUTSIDE, 1, 1),
            connection(3, OUTSIDE, MINE, 1, 1),
            connection(4, THEIRS, MINE, 1, 1),
            connection(5, OUTSIDE, OUTSIDE, 1, 1),
            connection(6, OUTSIDE, THEIRS, 1, 1),
        ];
        assert_eq!(look(&mut flows, start, 0, &seen).len(), 3);
        // A port of this node that leads to another's container, which sees this node, or another node, ask.
        let mut through = connection(7, OUTSIDE, THEIRS, 1, 1);
        through.asked.port = 30_080;
        for (seen_from, told) in [(THEIRS, 0), (OUTSIDE, 0), (MINE, 1)] {
            let mut flows = Flows::default();
            through.seen_from.ip = seen_from.into();
            assert_eq!(look(&mut flows, start, 0, &[through]).len(), told);
        }
    }

    #[test]
    fn who_resets_what_was_granted_was_not_refused() {
        let start = Instant::now();
        for (sent, received, refused) in [(100, 100, 1), (100, 200, 1), (200, 100, 0)] {
            let reset = Connection {
                assured: false,
                reset: true,
                ..connection(1, MINE, THEIRS, sent, received)
            };
            let told = look(&mut Flows::default(), start, 0, &[reset]);
            assert_eq!(told[0].counts.refused, refused, "{sent} and {received}");
        }
    }

    #[test]
    fn refusals_count_once_and_hurt_for_a_while() {
        let (mut flows, start) = (Flows::default(), Instant::now());
        let refused = Connection {
            assured: false,
            reset: true,
            ..connection(1, MINE, THEIRS, 60, 40)
        };
        for second in 0..3 {
            let counts = look(&mut flows, start, second, &[refused])[0].counts;
            assert_eq!((counts.refused, counts.failing), (1, true));
        }
        let counts = look(&mut flows, start, 20, &[])[0].counts;
        assert_eq!((counts.refused, counts.failing), (1, false));
    }

    #[test]
    fn what_came_and_went_between_two_looks_is_counted() {
        let (mut flows, start) = (Flows::default(), Instant::now());
        look(
            &mut flows,
            start,
            0,
            &[connection(1, MINE, THEIRS, 100, 100)],
        );
        let refused = Connection {
            answered: false,
            assured: false,
            ..connection(2, MINE, THEIRS, 100, 100)
        };
        flows.begin(start + Duration::from_secs(1), 1001);
        flows.take(&connection(3, MINE, THEIRS, 100, 0), whose);
        let now = at(start, 1);
        flows.ended(&connection(1, MINE, THEIRS, 900, 100), now, whose);
        flows.ended(&refused, now, whose);
        flows.ended(&connection(3, MINE, THEIRS, 300, 0), now, whose);
        flows.finish();
        let counts = flows.busiest(9).0[0].counts;
        assert_eq!((counts.connections, counts.open, counts.refused), (3, 0, 1));
        assert_eq!((counts.sent_bytes, counts.failing), (1300, true));
        assert!(flows.known.is_empty());
        flows.ended(&connection(4, MINE, THEIRS, 700, 0), at(start, 2), whose);
        let counts = look(&mut flows, start, 3, &[])[0].counts;
        assert_eq!(
            (counts.open, counts.sent_bytes, counts.sent_rate),
            (0, 2000, 350)
        );
        assert_eq!(counts.last_at, 1002);
    }

    /// A look at a large table comes late; that a connection began is known before it.
    #[test]
    fn what_began_is_told_at_once_and_counted_once() {
        let (mut flows, start) = (Flows::default(), Instant::now());
        let new = |id| Connection {
            answered: false,
            assured: false,
            sent: None,
            received: None,
            ..connection(id, MINE, THEIRS, 0, 0)
        };
        flows.began(&new(1), at(start, 0), whose);
        assert!(flows.is_empty(), "before the first look nothing is news");
        look(&mut flows, start, 0, &[]);
        flows.began(&new(1), at(start, 1), whose);
        flows.began(&new(2), at(start, 1), whose);
        let told = flows.busiest(9).0[0];
        let counts = told.counts;
        assert_eq!((told.to, told.port), (THEIRS.into(), 80));
        assert_eq!(
            (counts.connections, counts.open, counts.last_at),
            (2, 2, 1001)
        );
        assert_eq!(
            (counts.sent_bytes, counts.unanswered, counts.failing),
            (0, 0, false)
        );

        flows.ended(&connection(2, MINE, THEIRS, 300, 0), at(start, 2), whose);
        let seen = [connection(1, MINE, THEIRS, 800, 100)];
        let counts = look(&mut flows, start, 4, &seen)[0].counts;
        assert_eq!((counts.connections, counts.open), (2, 1));
        assert_eq!((counts.sent_bytes, counts.sent_rate), (1100, 275));

        // News that waited while the look went on says nothing that is not known.
        flows.began(&new(1), at(start, 4), whose);
        let counts = look(&mut flows, start, 5, &seen)[0].counts;
        assert_eq!((counts.connections, counts.sent_bytes), (2, 1100));
    }

    #[test]
    fn what_began_and_found_no_room_is_lost_once() {
        let (mut flows, start) = (Flows::default(), Instant::now());
        let many = beyond_the_bound(3);
        look(&mut flows, start, 0, &many[..MAX_CONNECTIONS]);
        for one in &many[MAX_CONNECTIONS..] {
            flows.began(one, at(start, 1), whose);
        }
        look(&mut flows, start, 2, &many);
        assert_eq!(flows.lost(), 3);
    }

    /// While nobody looks a minute may lie between two looks.
    #[test]
    fn what_was_refused_long_after_a_look_fails_when_it_was_refused() {
        let (mut flows, start) = (Flows::default(), Instant::now());
        let refused = |id| Connection {
            assured: false,
            reset: true,
            ..connection(id, MINE, THEIRS, 60, 40)
        };
        flows.ended(&refused(1), at(start, 0), whose);
        assert!(flows.is_empty(), "before the first look nothing is news");
        look(&mut flows, start, 0, &[]);
        flows.ended(&refused(2), at(start, 50), whose);
        let counts = flows.busiest(9).0[0].counts;
        assert_eq!((counts.failing, counts.last_at), (true, 1050));
        assert!(look(&mut flows, start, 52, &[])[0].counts.failing);
        assert!(!look(&mut flows, start, 70, &[])[0].counts.failing);
        // Some look tells of it, even if that comes late; one, not two.
        flows.ended(&refused(3), at(start, 80), whose);
        assert!(look(&mut flows, start, 130, &[])[0].counts.failing);
        assert!(!look(&mut flows, start, 190, &[])[0].counts.failing);
    }

    #[test]
    fn whom_nobody_answered_is_not_missed_again_when_the_kernel_gives_up() {
        let (mut flows, start) = (Flows::default(), Instant::now());
        let asking = Connection {
            answered: false,
            assured: false,
            ..connection(1, MINE, OUTSIDE, 60, 0)
        };
        look(&mut flows, start, 0, &[asking]);
        let counts = look(&mut flows, start, 3, &[asking])[0].counts;
        assert_eq!((counts.open, counts.unanswered), (1, 1));
        flows.ended(&asking, at(start, 8), whose);
        let counts = flows.busiest(9).0[0].counts;
        assert_eq!((counts.open, counts.unanswered), (0, 1));
    }

    #[test]
    fn silence_is_missed_after_a_moment() {
        let (mut flows, start) = (Flows::default(), Instant::now());
        let asking = Connection {
            answered: false,
            assured: false,
            ..connection(1, MINE, OUTSIDE, 60, 0)
        };
        assert!(!look(&mut flows, start, 0, &[asking])[0].counts.failing);
        let counts = look(&mut flows, start, 3, &[asking])[0].counts;
        assert_eq!((counts.unanswered, counts.failing), (1, true));
        assert!(!look(&mut flows, start, 4, &[])[0].counts.failing);
    }

    #[test]
    fn a_service_is_named_beside_who_answers() {
        let (mut flows, start) = (Flows::default(), Instant::now());
        let mut one = connection(1, MINE, THEIRS, 1, 1);
        one.asked.ip = [10, 96, 0, 9].into();
        let told = look(&mut flows, start, 0, &[one])[0];
        assert_eq!(told.via, Some("10.96.0.9:80".parse().unwrap()));
        assert_eq!(told.to, IpAddr::from(THEIRS));
    }

    #[test]
    fn memory_is_bounded_and_what_is_lost_is_counted() {
        let (mut flows, start) = (Flows::default(), Instant::now());
        let many: Vec<Connection> = (0..MAX_FLOWS as u32 + 10)
            .map(|n| {
                let mut one = connection(n, MINE, OUTSIDE, 1, 1);
                one.to.ip = IpAddr::from((0xc000_0000 + n).to_be_bytes());
                one.asked = one.to;
                one
            })
            .collect();
        look(&mut flows, start, 0, &many);
        assert_eq!((flows.len(), flows.lost()), (MAX_FLOWS, 10));
        look(&mut flows, start, 1, &many);
        assert_eq!(flows.lost(), 10, "the same ones are lost once");
        look(&mut flows, start, 2, &[]);
        look(&mut flows, start, 3, &many[MAX_FLOWS..]);
        let left = MAX_FLOWS - MAX_FLOWS / 16 + 10;
        assert_eq!(
            (flows.len(), flows.lost()),
            (left, 10),
            "the idle ones make room"
        );
        assert_eq!(flows.busiest(7).1 as usize, left - 7);
        look(&mut flows, start, 400, &[]);
        assert!(flows.is_empty() && flows.known.is_empty());
    }

    /// So many connections of one flow more than are remembered.
    fn beyond_the_bound(more: u32) -> Vec<Connection> {
        let all = 0..MAX_CONNECTIONS as u32 + more;
        all.map(|id| connection(id, MINE, THEIRS, 1, 1)).collect()
    }

    #[test]
    fn connections_beyond_what_is_remembered_are_lost_and_counted() {
        let (mut flows, start) = (Flows::default(), Instant::now());
        let many = beyond_the_bound(5);
        let counts = look(&mut flows, start, 0, &many)[0].counts;
        assert_eq!((counts.open as usize, flows.lost()), (MAX_CONNECTIONS, 5));
        look(&mut flows, start, 1, &many);
        assert_eq!(flows.lost(), 5, "the same ones are lost once");
        let rest = &many[10..];
        look(&mut flows, start, 2, rest);
        let counts = look(&mut flows, start, 3, rest)[0].counts;
        assert_eq!(
            (counts.open as usize, flows.lost()),
            (rest.len(), 5),
            "those that are gone make room"
        );
    }

    #[test]
    fn what_was_left_out_and_ended_between_two_looks_is_lost_at_each() {
        let (mut flows, start) = (Flows::default(), Instant::now());
        let many = beyond_the_bound(3);
        look(&mut flows, start, 0, &many);
        assert_eq!(flows.lost(), 3);
        for (second, lost) in [(1, 7), (2, 11)] {
            for n in 0..4 {
                let brief = connection(1_000_000 + n, MINE, THEIRS, 1, 1);
                flows.ended(&brief, at(start, second), whose);
            }
            look(&mut flows, start, second, &many);
            assert_eq!(flows.lost(), lost);
        }
        for one in &many[MAX_CONNECTIONS..] {
            flows.ended(one, at(start, 3), whose);
        }
        look(&mut flows, start, 3, &many[..MAX_CONNECTIONS]);
        assert_eq!(flows.lost(), 11, "those were lost before they ended");
    }
}
