//! The shell: a thread with listeners and connections of its own, which it shares with nobody.
//!
//! The kernel spreads new connections over the threads' listeners. A thread waits for all its sockets at once, tells of
//! each by edges (`epoll(7)`), and accepts only when all that happened has been dealt with, and only up to its share
//! of what the process may have open. Beyond that, connections wait in the listeners' queues; the others feel nothing.
//! However many come at once, [`ACCEPTS`] of them have their turn and then what is open has, and listeners take turns.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io;
use std::net::{Shutdown, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use mio::event::Event;
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};
use slab::Slab;
use weave_linux::intercept;
use weave_model::Protocol;

use super::connection::{Connection, Ending, Stage};
use super::datagrams::{Datagrams, Door};
use super::duplex::{Then, Way};
use super::exhausted::is_exhausted;
use super::lane::{Broke, Means, Turn};
use super::maglev::mix;
use super::routes::Source;
use super::shared::{Shared, name};
use crate::table::Origin;

/// How many events are taken at once.
const EVENTS: usize = 1024;
/// How many connections are accepted until others have their turn: few enough that endpoints' answers, for which there
/// is a time, do not wait for long.
const ACCEPTS: usize = 64;
/// What a waker is known by.
pub(super) const WAKE: Token = Token(usize::MAX);
/// Tokens from here on are listeners.
const LISTENERS: usize = usize::MAX / 2;
/// Tokens from here on are doors of UDP.
const DOORS: usize = LISTENERS + 1000;
/// Tokens from here on are sessions of UDP.
const SESSIONS: usize = usize::MAX / 4;
/// How soon it is looked again whether there is room, when connections wait for it.
const ROOM: Duration = Duration::from_millis(10);
/// How often it is looked whether a client has confirmed the last bytes.
const CONFIRMED: Duration = Duration::from_millis(50);
/// The descriptors of a connection.
const SOCKETS: usize = 2;
const BOTH: Interest = Interest::READABLE
    .add(Interest::WRITABLE)
    .add(Interest::PRIORITY);

/// One of the listeners of a thread.
#[derive(Debug)]
pub(super) struct Listener {
    pub(super) socket: TcpListener,
    /// Whether what comes in by it comes from this host.
    pub(super) host: bool,
    /// Whether connections may wait there.
    pub(super) waits: bool,
    /// Whether there was no room for them when it was last looked.
    pub(super) full: bool,
}

/// What a thread owns.
#[derive(Debug)]
pub(super) struct Worker {
    poll: Poll,
    listeners: Vec<Listener>,
    connections: Slab<Connection>,
    datagrams: Datagrams,
    shared: Arc<Shared>,
    means: Means,
    /// When tries to reach an endpoint are given up, and when it is looked whether the last bytes came to a client: when,
    /// which connection, which of its tries.
    deadlines: BinaryHeap<Reverse<(Instant, usize, u64)>>,
    /// Directions whose turn was over before their bytes were.
    again: Vec<(usize, u64, Way)>,
    /// Grows with every try; also numbers connections.
    serial: u64,
    /// Which of the threads it is.
    number: usize,
    /// How often it has waited for its sockets.
    round: u64,
    /// What it was asked of its queues and has answered.
    answered: u64,
    /// Which listener's turn it is.
    next: usize,
    /// Whether no more was accepted only because others had to have their turn.
    more: bool,
    random: u64,
}

impl Worker {
    pub(super) fn new(
        poll: Poll,
        (mut listeners, mut doors): (Vec<Listener>, Vec<Door>),
        shared: Arc<Shared>,
        (sessions, pipes): (usize, usize),
        (number, seed): (usize, u64),
    ) -> io::Result<Self> {
        for (place, listener) in listeners.iter_mut().enumerate() {
            let token = Token(LISTENERS + place);
            let registry = poll.registry();
            registry.register(&mut listener.socket, token, Interest::READABLE)?;
        }
        for (place, door) in doors.iter_mut().enumerate() {
            let token = Token(DOORS + place);
            let registry = poll.registry();
            registry.register(&mut door.socket, token, Interest::READABLE)?;
        }
        let datagrams = Datagrams::new(
            doors,
            Arc::clone(&shared),
            poll.registry().try_clone()?,
            (SESSIONS, sessions),
            mix(seed),
        );
        let kept = Arc::clone(&shared.counts.kept);
        Ok(Self {
            poll,
            listeners,
            connections: Slab::new(),
            datagrams,
            shared,
            means: Means::new(pipes, kept),
            deadlines: BinaryHeap::new(),
            again: Vec::new(),
            serial: 0,
            number,
            round: 0,
            answered: 0,
            next: 0,
            more: false,
            random: seed,
        })
    }

    /// Goes on until it is told to stop.
    pub(super) fn run(mut self) {
        let mut events = Events::with_capacity(EVENTS);
        while !self.shared.stop.load(Relaxed) {
            let patience = self.patience();
            match self.poll.poll(&mut events, patience) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    self.break_all();
                    // Half a relay serves nobody: a thread that ends so ends the process, which is started again.
                    panic!("the relay cannot wait for its sockets: {error}");
                }
            }
            let now = Instant::now();
            self.round += 1;
            for event in &events {
                match event.token() {
                    WAKE => {}
                    Token(token) if token >= DOORS => self.datagrams.handle_door(token - DOORS),
                    Token(token) if token >= LISTENERS => {
                        self.listeners[token - LISTENERS].waits = true;
                    }
                    Token(token) if token >= SESSIONS => {
                        self.datagrams.handle_session(token - SESSIONS);
                    }
                    Token(token) => self.handle(token / 2, token % 2 == 0, event, now),
                }
            }
            let mut again = std::mem::take(&mut self.again);
            again.sort_unstable();
            again.dedup();
            for (id, serial, way) in again {
                if self.is_same(id, serial) {
                    self.turn(id, way, now);
                }
            }
            self.give_up(now);
            self.datagrams.turn(now);
            // Last, so that no event of before can be taken for one of a connection that is new.
            self.take_in(now);
        }
        self.break_all();
    }

    /// Nobody is to take for an end that no more comes.
    fn break_all(&self) {
        for (_, connection) in &self.connections {
            connection.sockets().for_each(break_off);
        }
    }

    /// Accepts what waits; where it is asked whether that is all, it looks first.
    fn take_in(&mut self, now: Instant) {
        let asked = self.shared.open.asks(self.answered);
        if asked.is_some() {
            self.listeners.iter_mut().for_each(|one| one.waits = true);
        }
        self.more = self.accept(now);
        if let Some(asked) = asked.filter(|_| self.listeners.iter().all(|one| !one.waits)) {
            self.shared.open.answer(self.number, asked);
            self.answered = asked;
        }
    }

    fn patience(&self) -> Option<Duration> {
        if self.more || !self.again.is_empty() || self.datagrams.is_busy() {
            return Some(Duration::ZERO);
        }
        let dial = self.deadlines.peek().map(|Reverse((when, ..))| *when);
        let first = dial.into_iter().chain(self.datagrams.poll_timeout()).min();
        let until = first.map(|first| first.saturating_duration_since(Instant::now()));
        let room = self.listeners.iter().any(|one| one.waits).then_some(ROOM);
        until.into_iter().chain(room).min()
    }

    fn is_same(&self, id: usize, serial: u64) -> bool {
        let connection = self.connections.get(id);
        connection.is_some_and(|connection| connection.serial == serial)
    }

    /// Accepts what waits, one at each listener in turn; whether there may be more, and room for it.
    fn accept(&mut self, now: Instant) -> bool {
        for _ in 0..ACCEPTS {
            let Some(number) = self.next_listener() else {
                return false;
            };
            if !self.shared.budget.take(SOCKETS, self.shared.spare) {
                self.note_full();
                return false;
            }
            let listener = &mut self.listeners[number];
            match listener.socket.accept() {
                Ok((stream, client)) => {
                    let host = listener.host;
                    self.begin(stream, client, host, now);
                }
                Err(error) => {
                    self.shared.budget.give(SOCKETS);
                    if is_exhausted(&error) {
                        return false;
                    }
                    // Otherwise it was gone before it was accepted.
                    listener.waits = error.kind() != io::ErrorKind::WouldBlock;
                    listener.full &= listener.waits;
                }
            }
        }
        self.listeners.iter().any(|one| one.waits)
    }

    /// The next one where connections may wait.
    fn next_listener(&mut self) -> Option<usize> {
        let count = self.listeners.len();
        let number = (self.next..self.next + count)
            .map(|number| number % count)
            .find(|number| self.listeners[*number].waits)?;
        self.next = number + 1;
        Some(number)
    }

    /// There is no room for what waits.
    fn note_full(&mut self) {
        for listener in self.listeners.iter_mut().filter(|one| one.waits) {
            if !std::mem::replace(&mut listener.full, true) {
                self.shared.counts.waits.fetch_add(1, Relaxed);
            }
        }
    }

    fn begin(&mut self, stream: TcpStream, client: SocketAddr, host: bool, now: Instant) {
        let routes = self.shared.routes.load();
        let front = stream.local_addr().ok();
        let found = front.and_then(|front| Some((front, routes.of(front, Protocol::Tcp)?)));
        let origin = if host {
            Origin::Host
        } else {
            routes.origin(client.ip())
        };
        let placed = found.and_then(|(front, (group, way))| {
            let set = group.set(way, origin, client.ip())?;
            Some((front, (Arc::clone(group), way, set, origin)))
        });
        self.shared.counts.accepted.fetch_add(1, Relaxed);
        let Some((front, place)) = placed else {
            drop(routes);
            self.refuse(&stream);
            self.shared.budget.give(SOCKETS);
            return;
        };
        drop(routes);
        self.serial += 1;
        let mut connection = Connection::new(stream, (client, front), place, self.serial, now);
        let entry = self.connections.vacant_entry();
        let id = entry.key();
        let registry = self.poll.registry();
        if registry
            .register(&mut connection.client, Token(id * 2), BOTH)
            .is_err()
        {
            self.refuse(&connection.client);
            self.shared.budget.give(SOCKETS);
            return;
        }
        entry.insert(connection);
        self.shared.open.begin();
        self.dial(id, now);
    }

    /// Tries endpoints until one may answer.
    fn dial(&mut self, id: usize, now: Instant) {
        loop {
            self.random = mix(self.random);
            let Some(connection) = self.connections.get_mut(id) else {
                return;
            };
            let routes = self.shared.routes.load();
            let picked = connection.pick(&routes, now, self.random);
            drop(routes);
            let Some((target, source, patience)) = picked else {
                self.close(id, Ending::Reset, now);
                return;
            };
            self.serial += 1;
            connection.serial = self.serial;
            connection.round = self.round;
            let turn = self.shared.turn.fetch_add(1, Relaxed);
            let made = intercept::dial(target.address, name(source), turn).map(TcpStream::from_std);
            let made = made.and_then(|mut stream| {
                let token = Token(id * 2 + 1);
                self.poll.registry().register(&mut stream, token, BOTH)?;
                Ok(stream)
            });
            connection.stage = Stage::Dialling;
            connection.target = Some(target.address);
            connection.as_client = matches!(source, Source::Client(_));
            match made {
                Ok(stream) => {
                    // What this thread did since it was woken is not the endpoint's time.
                    let began = Instant::now();
                    connection.server = Some(stream);
                    connection.began = began;
                    connection
                        .leg()
                        .into_iter()
                        .for_each(|leg| self.shared.legs.add(leg));
                    let deadline = began + patience;
                    self.deadlines
                        .push(Reverse((deadline, id, connection.serial)));
                    return;
                }
                Err(error) => {
                    let is_exhausted = is_exhausted(&error);
                    let blamed = (!is_exhausted).then_some(connection.blame());
                    connection.handle_failure(blamed, now);
                    // Where nothing is left, the same once more only takes time from others.
                    if is_exhausted && !connection.has_untried() {
                        self.close(id, Ending::Reset, now);
                        return;
                    }
                }
            }
        }
    }

    /// Those whose endpoint took too long are tried elsewhere, unless there is only no word of it yet.
    fn give_up(&mut self, now: Instant) {
        while let Some(Reverse((when, id, serial))) = self.deadlines.peek().copied() {
            if when > now {
                return;
            }
            self.deadlines.pop();
            if !self.is_same(id, serial) {
                continue;
            }
            let connection = &mut self.connections[id];
            if connection.lingers() {
                self.linger(id, now);
            } else if !connection.is_connected() {
                connection.handle_failure(Some(connection.blame()), now);
                self.dial(id, now);
            }
        }
    }

    fn handle(&mut self, id: usize, is_client: bool, event: &Event, now: Instant) {
        let Some(connection) = self.connections.get_mut(id) else {
            return;
        };
        if !is_client && connection.round == self.round {
            // Of the endpoint before, whose place was taken in this round: that of now has not been waited for yet.
            return;
        }
        if connection.stage == Stage::Dialling {
            if is_client {
                // Its bytes wait in the kernel; only that it broke is worth an end.
                connection.lane(Way::Up).closing |= event.is_read_closed();
                connection.lane(Way::Up).urgent |= event.is_priority();
                if event.is_error() {
                    self.close(id, Ending::Reset, now);
                }
            } else if event.is_error() {
                if connection.has_failed() {
                    connection.handle_failure(Some(connection.blame()), now);
                    self.dial(id, now);
                }
            } else if event.is_writable() {
                self.connected(id, event, now);
            }
            return;
        }
        let (reads, writes) = if is_client {
            (Way::Up, Way::Down)
        } else {
            (Way::Down, Way::Up)
        };
        let serial = connection.serial;
        let closing = event.is_read_closed() || event.is_error();
        connection.lane(reads).closing |= closing;
        connection.lane(reads).urgent |= event.is_priority();
        if event.is_writable() && connection.lane(writes).full {
            self.turn(id, writes, now);
        }
        if event.is_readable() || closing {
            self.turn(id, reads, now);
        }
        if event.is_error() {
            self.handle_error(id, serial, is_client, now);
        }
    }

    /// A side of an open connection broke, and what could be moved has been. It is told once: where nobody reads from that
    /// side any more, or nobody writes to it, nothing else would tell.
    fn handle_error(&mut self, id: usize, serial: u64, is_client: bool, now: Instant) {
        if !self.is_same(id, serial) {
            return;
        }
        if is_client {
            self.close(id, Ending::Reset, now);
        } else if self.is_unheard(id) {
            self.handle_broken(id, now);
        }
    }

    /// Whether nothing more is to come from the endpoint, and an end of it would not be told otherwise.
    fn is_unheard(&self, id: usize) -> bool {
        let connection = &self.connections[id];
        connection.duplex.has_ended(Way::Down) && !connection.lingers()
    }

    fn connected(&mut self, id: usize, event: &Event, now: Instant) {
        let Some(connection) = self.connections.get_mut(id) else {
            return;
        };
        connection.handle_connected(now);
        connection.lane(Way::Down).closing |= event.is_read_closed();
        connection.lane(Way::Down).urgent |= event.is_priority();
        let serial = connection.serial;
        self.turn(id, Way::Up, now);
        if self.is_same(id, serial) {
            self.connections[id].confirm();
        }
        if event.is_readable() {
            self.turn(id, Way::Down, now);
        }
    }

    fn turn(&mut self, id: usize, way: Way, now: Instant) {
        let Some(connection) = self.connections.get_mut(id) else {
            return;
        };
        if way == Way::Up && connection.is_deaf() {
            self.discard(id, now);
            return;
        }
        if connection.duplex.has_ended(way) || connection.stage == Stage::Dialling {
            return;
        }
        match connection.turn(way, &mut self.means, now) {
            Ok(Turn::Waits) => {}
            Ok(Turn::More) => self.again.push((id, connection.serial, way)),
            Ok(Turn::Ended) => {
                let then = connection.duplex.end(way);
                // Closing would do, but for a receiver that still sends: it loses what waits for the end.
                if then == Then::Shut || connection.lane(way).waits_for_end {
                    // It fails only when the connection is broken, which the next read tells.
                    let _ = connection
                        .receiver(way)
                        .map(|to| to.shutdown(Shutdown::Write));
                }
                match then {
                    Then::Shut => {}
                    Then::Close if connection.is_deaf() => self.linger(id, now),
                    Then::Close => {
                        let ending = connection.ending();
                        self.close(id, ending, now);
                    }
                }
            }
            Err(broke) => {
                let by_server = (way == Way::Down) == (broke == Broke::Sender);
                let may_have_answered = way == Way::Up
                    && !connection.is_untouched()
                    && !connection.duplex.has_ended(Way::Down);
                if by_server && may_have_answered {
                    connection.handle_break(now);
                    connection.handle_deaf();
                    let serial = connection.serial;
                    self.turn(id, Way::Down, now);
                    if self.is_same(id, serial) {
                        self.discard(id, now);
                    }
                } else if by_server {
                    self.handle_broken(id, now);
                } else {
                    self.close(id, Ending::Reset, now);
                }
            }
        }
    }

    /// Reads what a client sends on to an endpoint that does not hear it: it may be one that listens only when it is done.
    fn discard(&mut self, id: usize, now: Instant) {
        let connection = &self.connections[id];
        match self.means.discard(&connection.client) {
            Ok(Turn::More) => self.again.push((id, connection.serial, Way::Up)),
            Ok(Turn::Waits | Turn::Ended) => {}
            Err(_) => self.close(id, Ending::Reset, now),
        }
    }

    /// Closes a connection whose directions have ended as soon as the client has the last bytes.
    fn linger(&mut self, id: usize, now: Instant) {
        let connection = &mut self.connections[id];
        let ending = connection.ending();
        if ending == Ending::Reset || connection.has_lingered(now) {
            self.close(id, ending, now);
        } else {
            let deadline = Reverse((now + CONFIRMED, id, connection.serial));
            self.deadlines.push(deadline);
        }
    }

    /// The endpoint broke a connection.
    fn handle_broken(&mut self, id: usize, now: Instant) {
        let Some(connection) = self.connections.get_mut(id) else {
            return;
        };
        if connection.is_untouched() {
            connection.handle_failure(Some(connection.blame()), now);
            self.dial(id, now);
        } else {
            match connection.ending_broken(now) {
                // It said something before that.
                Ending::Orderly => self.linger(id, now),
                ending @ Ending::Reset => self.close(id, ending, now),
            }
        }
    }

    fn close(&mut self, id: usize, ending: Ending, now: Instant) {
        let Some(mut connection) = self.connections.try_remove(id) else {
            return;
        };
        for way in Way::BOTH {
            connection.lane(way).close(&mut self.means);
        }
        connection.handle_end(ending, now);
        if ending == Ending::Reset {
            self.shared.counts.reset.fetch_add(1, Relaxed);
            connection.sockets().for_each(break_off);
        }
        self.shared.budget.give(SOCKETS);
        self.shared.open.end();
    }

    fn refuse(&self, stream: &TcpStream) {
        self.shared.counts.reset.fetch_add(1, Relaxed);
        break_off(stream);
    }
}

fn break_off(stream: &TcpStream) {
    // It fails only on a socket that is broken already.
    let _ = intercept::reset_on_drop(stream);
}
