//! Who talks to which front by datagrams, and for how long that is remembered: pure.
//!
//! UDP has no beginning and no end, so a *session* is what lies between a client's first datagram to a front and a time
//! of silence: [`UNANSWERED`] as long as nobody answered, [`ANSWERED`] afterwards (the kernel's own times for UDP,
//! `nf_conntrack_udp_timeout` and `nf_conntrack_udp_timeout_stream`). All datagrams of a session have one endpoint.
//!
//! There is room for a fixed number. When it is used up, the session that would be over first makes room, if it was not
//! answered, or is silent for [`UNANSWERED`] already; otherwise the newcomer is not let in: what works is worth more than
//! what might be a flood of invented addresses.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use slab::Slab;

/// How long a session without an answer lasts.
pub const UNANSWERED: Duration = Duration::from_secs(30);
/// How long one lasts that was answered.
pub const ANSWERED: Duration = Duration::from_secs(120);

/// Who talks to which front.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Flow {
    /// The client.
    pub client: SocketAddr,
    /// What it sends to.
    pub front: SocketAddr,
}

#[derive(Debug)]
struct Session<T> {
    flow: Flow,
    serial: u64,
    last: Instant,
    answered: bool,
    with: T,
}

impl<T> Session<T> {
    fn over(&self) -> Instant {
        self.last + if self.answered { ANSWERED } else { UNANSWERED }
    }
}

/// All of them; each has something `with` it that is the caller's.
#[derive(Debug)]
pub struct Sessions<T> {
    most: usize,
    serial: u64,
    all: Slab<Session<T>>,
    by_flow: HashMap<Flow, usize>,
    /// When to look whether a session is over: each has one entry, for a time that is not after its end.
    looks: BinaryHeap<Reverse<(Instant, usize, u64)>>,
}

impl<T> Sessions<T> {
    /// None yet, and room for so many.
    pub fn new(most: usize) -> Self {
        Self {
            most,
            serial: 0,
            all: Slab::new(),
            by_flow: HashMap::new(),
            looks: BinaryHeap::new(),
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Whether there is no room for another one.
    pub fn is_full(&self) -> bool {
        self.all.len() >= self.most
    }

    /// The number of a flow's session.
    pub fn find(&self, flow: &Flow) -> Option<usize> {
        self.by_flow.get(flow).copied()
    }

    /// Begins one, and gives its number; a session that the flow has already gives way, and is given back as well.
    pub fn begin(&mut self, flow: Flow, with: T, now: Instant) -> (usize, Option<T>) {
        let before = self.find(&flow).and_then(|id| self.end(id));
        self.serial += 1;
        let session = Session {
            flow,
            serial: self.serial,
            last: now,
            answered: false,
            with,
        };
        let over = session.over();
        let id = self.all.insert(session);
        self.by_flow.insert(flow, id);
        self.looks.push(Reverse((over, id, self.serial)));
        (id, before)
    }

    /// What is with a session.
    pub fn get_mut(&mut self, id: usize) -> Option<&mut T> {
        let session = self.all.get_mut(id)?;
        Some(&mut session.with)
    }

    /// The numbers of all.
    pub fn ids(&self) -> Vec<usize> {
        self.all.iter().map(|(id, _)| id).collect()
    }

    /// The client said something.
    pub fn handle_question(&mut self, id: usize, now: Instant) {
        if let Some(session) = self.all.get_mut(id) {
            session.last = session.last.max(now);
        }
    }

    /// The endpoint did; whether for the first time.
    pub fn handle_answer(&mut self, id: usize, now: Instant) -> bool {
        self.all.get_mut(id).is_some_and(|session| {
            session.last = session.last.max(now);
            !std::mem::replace(&mut session.answered, true)
        })
    }

    /// Ends one.
    pub fn end(&mut self, id: usize) -> Option<T> {
        let session = self.all.try_remove(id)?;
        self.by_flow.remove(&session.flow);
        Some(session.with)
    }

    /// Ends the one that would be over first, if it may be ended for another one's sake.
    pub fn make_room(&mut self, now: Instant) -> Option<T> {
        let id = self.first()?;
        let session = self.all.get(id)?;
        let silent = now.saturating_duration_since(session.last) >= UNANSWERED;
        if session.answered && !silent {
            return None;
        }
        self.end(id)
    }

    /// When [`Sessions::poll_over`] may have something to say next; not later than that.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let Reverse((when, ..)) = self.looks.peek()?;
        Some(*when)
    }

    /// Ends one whose time is over.
    pub fn poll_over(&mut self, now: Instant) -> Option<T> {
        while self.poll_timeout().is_some_and(|when| when <= now) {
            let id = self.first()?;
            if self
                .all
                .get(id)
                .is_some_and(|session| session.over() <= now)
            {
                return self.end(id);
            }
        }
        None
    }

    /// The one that will be over first. Entries that are out of date are put right on the way.
    fn first(&mut self) -> Option<usize> {
        loop {
            let mut top = self.looks.peek_mut()?;
            let Reverse((when, id, serial)) = *top;
            let session = self.all.get(id).filter(|one| one.serial == serial);
            match session.map(Session::over) {
                Some(over) if over == when => return Some(id),
                Some(over) => *top = Reverse((over, id, serial)),
                None => drop(std::collections::binary_heap::PeekMut::pop(top)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(client: u16) -> Flow {
        Flow {
            client: SocketAddr::from(([10, 32, 0, 2], client)),
            front: SocketAddr::from(([10, 96, 0, 1], 53)),
        }
    }

    #[test]
    fn an_answered_session_lasts_longer_and_every_word_begins_its_time_again() {
        let start = Instant::now();
        let mut sessions = Sessions::new(10);
        let (silent, _) = sessions.begin(flow(1), "silent", start);
        let (answered, _) = sessions.begin(flow(2), "answered", start);
        assert!(sessions.handle_answer(answered, start));
        assert!(!sessions.handle_answer(answered, start), "only the first");
        let later = start + UNANSWERED / 2;
        sessions.handle_question(silent, later);
        assert_eq!(sessions.poll_over(start + UNANSWERED), None);
        assert_eq!(sessions.poll_over(later + UNANSWERED), Some("silent"));
        assert_eq!(sessions.find(&flow(1)), None);
        let end = start + ANSWERED;
        assert_eq!(sessions.poll_over(end - Duration::from_millis(1)), None);
        assert!(sessions.poll_timeout().is_some_and(|when| when <= end));
        assert_eq!(sessions.poll_over(end), Some("answered"));
        assert_eq!(sessions.poll_over(end), None);
        assert!(sessions.is_empty() && sessions.poll_timeout().is_none());
    }

    #[test]
    fn who_was_not_answered_makes_room_and_who_was_does_after_a_silence() {
        let start = Instant::now();
        let mut sessions = Sessions::new(2);
        let (first, _) = sessions.begin(flow(1), 1, start);
        sessions.begin(flow(2), 2, start);
        sessions.handle_answer(first, start);
        assert!(sessions.is_full());
        assert_eq!(sessions.make_room(start), Some(2));
        assert_eq!(sessions.make_room(start), None, "it works");
        assert_eq!(sessions.make_room(start + UNANSWERED), Some(1));
    }
}
