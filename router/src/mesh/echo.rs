//! Pings that a person asked for: each is timed by itself and has an end, answered or not.
//!
//! On the wire they are the pings of [`super::paths`], so any member answers them. Their ids have the highest bit set,
//! which no ping of the node's own ever has.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use weave_model::NodeId;

/// What sets the ids of these pings apart.
const ASKED: u64 = 1 << 63;

#[derive(Debug)]
struct Waiting {
    command: u64,
    peer: NodeId,
    /// `None` while there is no session to send it in.
    sent: Option<Instant>,
    until: Instant,
    patience: Duration,
}

/// The pings that are under way.
#[derive(Debug, Default)]
pub struct Echoes {
    waiting: BTreeMap<u64, Waiting>,
    last: u64,
}

impl Echoes {
    /// Begins one for a command; it is to be sent when [`Echoes::ready`] says so.
    pub fn ask(&mut self, command: u64, peer: NodeId, patience: Duration, now: Instant) {
        self.last += 1;
        let waiting = Waiting {
            command,
            peer,
            sent: None,
            until: now + patience,
            patience,
        };
        self.waiting.insert(ASKED | self.last, waiting);
    }

    /// There is a session with a peer: the ids of what waits to be sent to it. Time counts from now on.
    pub fn ready(&mut self, peer: NodeId, now: Instant) -> Vec<u64> {
        let mut ready = Vec::new();
        for (id, waiting) in &mut self.waiting {
            if waiting.peer == peer && waiting.sent.is_none() {
                waiting.sent = Some(now);
                ready.push(*id);
            }
        }
        ready
    }

    /// An answer came: the command that waits for it, and how long it took. `None` for every other answer.
    pub fn answered(&mut self, peer: NodeId, id: u64, now: Instant) -> Option<(u64, Duration)> {
        let waiting = self
            .waiting
            .get(&id)
            .filter(|waiting| waiting.peer == peer)?;
        let (command, sent) = (waiting.command, waiting.sent?);
        self.waiting.remove(&id);
        Some((command, now.saturating_duration_since(sent)))
    }

    /// The commands that waited in vain, and how long.
    pub fn overdue(&mut self, now: Instant) -> Vec<(u64, Duration)> {
        let mut over = Vec::new();
        self.waiting.retain(|_, waiting| {
            let waits = now < waiting.until;
            if !waits {
                over.push((waiting.command, waiting.patience));
            }
            waits
        });
        over
    }

    /// Ends all that wait: their commands.
    pub fn abandon(&mut self) -> Vec<u64> {
        let all = std::mem::take(&mut self.waiting);
        all.into_values().map(|waiting| waiting.command).collect()
    }

    /// When [`Echoes::overdue`] has something.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.waiting.values().map(|waiting| waiting.until).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: NodeId = NodeId::from_bytes([1; 32]);
    const B: NodeId = NodeId::from_bytes([2; 32]);

    #[test]
    fn an_answer_is_timed_and_counts_once_and_from_its_peer_only() {
        let start = Instant::now();
        let after = |ms| start + Duration::from_millis(ms);
        let mut echoes = Echoes::default();
        let patience = Duration::from_secs(1);
        echoes.ask(7, A, patience, start);
        let [one] = echoes.ready(A, start)[..] else {
            panic!("it waits to be sent")
        };
        echoes.ask(8, A, patience, after(1));
        assert!(echoes.ready(B, after(5)).is_empty());
        let [two] = echoes.ready(A, after(5))[..] else {
            panic!("the other one waits")
        };
        assert_eq!(echoes.answered(B, one, after(1)), None, "somebody else's");
        assert_eq!(echoes.answered(A, 1, after(1)), None, "the node's own ping");
        assert_eq!(
            echoes.answered(A, two, after(9)),
            Some((8, Duration::from_millis(4)))
        );
        assert_eq!(
            echoes.answered(A, one, after(9)),
            Some((7, Duration::from_millis(9)))
        );
        assert_eq!(echoes.answered(A, one, after(9)), None, "only once");
        assert_eq!(echoes.poll_timeout(), None);
    }

    #[test]
    fn one_without_an_answer_ends_in_time() {
        let start = Instant::now();
        let mut echoes = Echoes::default();
        echoes.ask(7, A, Duration::from_secs(1), start);
        let id = echoes.ready(A, start)[0];
        echoes.ask(8, B, Duration::from_secs(2), start);
        assert_eq!(echoes.poll_timeout(), Some(start + Duration::from_secs(1)));
        assert_eq!(echoes.overdue(start + Duration::from_millis(999)), []);
        assert_eq!(
            echoes.overdue(start + Duration::from_secs(1)),
            [(7, Duration::from_secs(1))]
        );
        assert_eq!(echoes.answered(A, id, start + Duration::from_secs(1)), None);
        assert_eq!(
            echoes.overdue(start + Duration::from_secs(2)),
            [(8, Duration::from_secs(2))]
        );
    }
}
