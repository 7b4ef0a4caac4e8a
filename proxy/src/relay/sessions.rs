//! Who talks to which front by datagrams, and for how long that is remembered: pure.
//!
//! UDP has no beginning and no end, so a *session* is what lies between a client's first datagram to a front and a time
//! of silence, as in the kernel: [`SHORT`] (`nf_conntrack_udp_timeout`), and [`STREAM`] (`nf_conntrack_udp_timeout_stream`)
//! once something is said in a session that was answered before and is older than [`YOUNG`]. So one question with its
//! answer is not remembered for long. All datagrams of a session have one endpoint.
//!
//! There is room for a fixed number. When it is used up, the one of those that were not answered that is silent for longest
//! makes room; where all were, one that is silent for [`SILENT`] already, or for [`SHORT`] if it is a stream. Otherwise the
//! newcomer is not let in: what works is worth more than what might be a flood of invented addresses.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::collections::binary_heap::{BinaryHeap, PeekMut};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use slab::Slab;

/// How long a session lasts in silence.
pub const SHORT: Duration = Duration::from_secs(30);
/// How long one lasts that is a stream.
pub const STREAM: Duration = Duration::from_secs(120);
/// How old one is that may become a stream.
pub const YOUNG: Duration = Duration::from_secs(2);
/// How long one that was answered is silent before it makes room for another.
pub const SILENT: Duration = Duration::from_secs(5);

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
    began: Instant,
    last: Instant,
    answered: bool,
    stream: bool,
    with: T,
}

impl<T> Session<T> {
    fn over(&self) -> Instant {
        self.last + if self.stream { STREAM } else { SHORT }
    }

    /// Somebody said something.
    fn note(&mut self, now: Instant) {
        self.last = self.last.max(now);
        self.stream |= self.answered && self.last > self.began + YOUNG;
    }

    /// When it may be ended for another one's sake; those that were not answered come first. It only grows.
    fn gives_way(&self) -> Way {
        let long = match (self.answered, self.stream) {
            (false, _) => Duration::ZERO,
            (true, false) => SILENT,
            (true, true) => SHORT,
        };
        (self.answered, self.last + long)
    }
}

/// Whether it was answered, and from when on it makes room.
type Way = (bool, Instant);

/// Sessions in the order of something that only grows: each has one entry, with what that is or was.
type Order<K> = BinaryHeap<Reverse<(K, usize, u64)>>;

/// All of them; each has something `with` it that is the caller's.
#[derive(Debug)]
pub struct Sessions<T> {
    most: usize,
    serial: u64,
    all: Slab<Session<T>>,
    by_flow: HashMap<Flow, usize>,
    /// When they are over.
    looks: Order<Instant>,
    /// When they make room.
    ways: Order<Way>,
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
            ways: BinaryHeap::new(),
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
            began: now,
            last: now,
            answered: false,
            stream: false,
            with,
        };
        let (over, way) = (session.over(), session.gives_way());
        let id = self.all.insert(session);
        self.by_flow.insert(flow, id);
        self.looks.push(Reverse((over, id, self.serial)));
        // While there is room nobody asks who makes it, so what has ended would stay.
        if self.ways.len() > 2 * self.all.len() {
            let is_known = |id: usize, of| self.all.get(id).is_some_and(|one| one.serial == of);
            self.ways
                .retain(|Reverse((_, id, serial))| is_known(*id, *serial));
        }
        self.ways.push(Reverse((way, id, self.serial)));
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
            session.note(now);
        }
    }

    /// The endpoint did; whether for the first time.
    pub fn handle_answer(&mut self, id: usize, now: Instant) -> bool {
        self.all.get_mut(id).is_some_and(|session| {
            session.note(now);
            !std::mem::replace(&mut session.answered, true)
        })
    }

    /// Ends one.
    pub fn end(&mut self, id: usize) -> Option<T> {
        let session = self.all.try_remove(id)?;
        self.by_flow.remove(&session.flow);
        Some(session.with)
    }

    /// Ends the first that may be ended for another one's sake.
    pub fn make_room(&mut self, now: Instant) -> Option<T> {
        let id = first(&mut self.ways, &self.all, Session::gives_way)?;
        let (answered, when) = self.all.get(id)?.gives_way();
        if answered && when > now {
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
            let id = first(&mut self.looks, &self.all, Session::over)?;
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
}

/// The first one in an order. Entries that are out of date are put right on the way.
fn first<T, K: Ord + Copy>(
    order: &mut Order<K>,
    all: &Slab<Session<T>>,
    key: impl Fn(&Session<T>) -> K,
) -> Option<usize> {
    loop {
        let mut top = order.peek_mut()?;
        let Reverse((when, id, serial)) = *top;
        let session = all.get(id).filter(|one| one.serial == serial);
        match session.map(&key) {
            Some(now) if now == when => return Some(id),
            Some(now) => *top = Reverse((now, id, serial)),
            None => drop(PeekMut::pop(top)),
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

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_session_lasts_longer_when_it_goes_on_after_its_answer_and_every_word_begins_its_time_again()
     {
        let start = Instant::now();
        let mut sessions = Sessions::new(10);
        let [silent, once, stream] = [(1, "silent"), (2, "once"), (3, "stream")]
            .map(|(client, what)| sessions.begin(flow(client), what, start).0);
        for id in [once, stream] {
            assert!(sessions.handle_answer(id, start));
            assert!(!sessions.handle_answer(id, start + YOUNG), "only the first");
        }
        let late = start + YOUNG + MS;
        sessions.handle_question(stream, late);
        let later = start + SHORT / 2;
        sessions.handle_question(silent, later);
        assert_eq!(sessions.poll_over(start + YOUNG + SHORT - MS), None);
        assert_eq!(sessions.poll_over(start + YOUNG + SHORT), Some("once"));
        assert_eq!(sessions.poll_over(later + SHORT), Some("silent"));
        assert_eq!(sessions.find(&flow(1)), None);
        assert_eq!(sessions.poll_over(late + STREAM - MS), None);
        assert!(
            sessions
                .poll_timeout()
                .is_some_and(|when| when <= late + STREAM)
        );
        assert_eq!(sessions.poll_over(late + STREAM), Some("stream"));
        assert_eq!(sessions.poll_over(late + STREAM), None);
        assert!(sessions.is_empty() && sessions.poll_timeout().is_none());
    }

    #[test]
    fn the_first_answer_makes_no_stream_however_late() {
        let start = Instant::now();
        let mut sessions = Sessions::new(1);
        let (id, _) = sessions.begin(flow(1), 1, start);
        let late = start + 2 * YOUNG;
        sessions.handle_answer(id, late);
        assert_eq!(sessions.poll_over(late + SHORT), Some(1));
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
        assert_eq!(sessions.make_room(start + SILENT - MS), None, "it works");
        assert_eq!(sessions.make_room(start + SILENT), Some(1));
        let (stream, _) = sessions.begin(flow(1), 1, start);
        let later = start + 2 * YOUNG;
        for when in [start, later] {
            sessions.handle_answer(stream, when);
        }
        assert_eq!(sessions.make_room(later + SHORT - MS), None);
        assert_eq!(sessions.make_room(later + SHORT), Some(1));
    }

    /// Everybody asks once, by another port each time, and is answered.
    #[test]
    fn single_questions_are_served_at_the_pace_of_the_silence_that_makes_room() {
        let (start, room) = (Instant::now(), 500);
        let pause = SILENT / room;
        let mut sessions = Sessions::new(room as usize);
        for number in 0..10 * room {
            let now = start + pause * number;
            if sessions.is_full() {
                assert!(sessions.make_room(now).is_some(), "question {number}");
            }
            let (id, _) = sessions.begin(flow(number as u16), number, now);
            sessions.handle_answer(id, now);
        }
    }

    #[test]
    fn nothing_is_left_of_those_that_have_ended() {
        let start = Instant::now();
        let mut sessions = Sessions::new(10_000);
        for number in 0..2_000 {
            let now = start + MS * number;
            let (id, _) = sessions.begin(flow(number as u16), number, now);
            assert_eq!(sessions.end(id), Some(number));
        }
        assert!(sessions.ways.len() <= 2);
    }

    #[test]
    fn who_was_not_answered_makes_room_before_those_that_are_silent() {
        let start = Instant::now();
        let mut sessions = Sessions::new(2);
        let (once, _) = sessions.begin(flow(1), "once", start);
        sessions.handle_answer(once, start);
        let later = start + SHORT - MS;
        sessions.begin(flow(2), "flood", later);
        assert_eq!(sessions.make_room(later), Some("flood"));
        assert_eq!(sessions.make_room(later), Some("once"));
    }
}
