//! The shell for UDP: what a thread hears at its doors goes on to endpoints, and what they answer comes back.
//!
//! All clients and all fronts come in by one socket a family and kind, to which the kernel tells whom a datagram was meant
//! for. A session ([`Sessions`]) has a socket of its own towards its endpoint ([`Upstream`]), connected, so that it hears
//! nobody else and learns at once when the endpoint's host says that nobody is there. Answers leave by a socket that has
//! the front's address ([`Voices`]). Nothing ever waits: what a socket has no room for is lost, as it would be on a wire.
//!
//! The last datagrams that were not answered are kept, so that another endpoint gets them when the first one refuses.
//! When routes change, sessions end whose front is gone or whose endpoint does not serve any more, and the next datagram is
//! picked for anew.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use mio::net::UdpSocket;
use mio::{Interest, Registry, Token};
use weave_linux::intercept::datagrams::{self, Inbox};
use weave_model::Protocol;

use super::maglev::mix;
use super::sessions::{Flow, Sessions};
use super::shared::Shared;
use super::upstream::Upstream;
use super::voices::Voices;

/// How many calls a socket may be read with in its turn, so that others get theirs.
const TURN: u32 = 16;

/// One of the sockets by which datagrams come in.
#[derive(Debug)]
pub(super) struct Door {
    pub(super) socket: UdpSocket,
    /// Whether what comes in by it comes from this host.
    pub(super) host: bool,
    /// Whether datagrams may wait there.
    pub(super) waits: bool,
}

/// What a thread has of UDP.
#[derive(Debug)]
pub(super) struct Datagrams {
    doors: Vec<Door>,
    sessions: Sessions<Upstream>,
    voices: Voices,
    shared: Arc<Shared>,
    registry: Registry,
    /// The token of session 0.
    first: usize,
    /// Absent while it is read from.
    inbox: Option<Inbox>,
    buffer: Vec<u8>,
    again: Vec<usize>,
    /// Which news of the routes the sessions were held against last.
    moved: u64,
    random: u64,
}

impl Datagrams {
    /// At most so many sessions, which have the tokens from `first` on; doors are registered by the caller.
    pub(super) fn new(
        doors: Vec<Door>,
        shared: Arc<Shared>,
        registry: Registry,
        (first, most): (usize, usize),
        seed: u64,
    ) -> Self {
        Self {
            doors,
            sessions: Sessions::new(most),
            voices: Voices::new(Arc::clone(&shared)),
            shared,
            registry,
            first,
            inbox: Some(Inbox::default()),
            buffer: vec![0; datagrams::LARGEST],
            again: Vec::new(),
            moved: 0,
            random: seed,
        }
    }

    /// Something waits at a door.
    pub(super) fn handle_door(&mut self, number: usize) {
        if let Some(door) = self.doors.get_mut(number) {
            door.waits = true;
        }
    }

    /// Something waits at a session's socket.
    pub(super) fn handle_session(&mut self, id: usize) {
        if let Some(upstream) = self.sessions.get_mut(id)
            && !std::mem::replace(&mut upstream.waits, true)
        {
            self.again.push(id);
        }
    }

    /// Whether something is known to wait.
    pub(super) fn is_busy(&self) -> bool {
        !self.again.is_empty() || self.doors.iter().any(|door| door.waits)
    }

    /// When time alone has something to do.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.sessions.poll_timeout()
    }

    /// Everybody's turn.
    pub(super) fn turn(&mut self, now: Instant) {
        self.look_at_routes();
        for id in std::mem::take(&mut self.again) {
            self.answer(id, now);
        }
        for number in 0..self.doors.len() {
            self.hear(number, now);
        }
        while let Some(upstream) = self.sessions.poll_over(now) {
            self.ended(upstream);
        }
    }

    /// Takes what waits at a door.
    fn hear(&mut self, number: usize, now: Instant) {
        let Some(mut inbox) = self.inbox.take_if(|_| self.doors[number].waits) else {
            return;
        };
        for _ in 0..TURN {
            let Some(door) = self.doors.get_mut(number).filter(|door| door.waits) else {
                break;
            };
            let host = door.host;
            match inbox.receive(&door.socket) {
                Ok(count) => {
                    for datagram in (0..count).filter_map(|number| inbox.get(number)) {
                        let flow = Flow {
                            client: datagram.from,
                            front: datagram.to,
                        };
                        self.ask(flow, host, datagram.bytes, now);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // If it is more than that nothing waits, the next event tells.
                Err(_) => door.waits = false,
            }
        }
        self.inbox = Some(inbox);
    }

    /// Gives a client's datagram to its endpoint.
    fn ask(&mut self, flow: Flow, is_host: bool, bytes: &[u8], now: Instant) {
        let known = self.sessions.find(&flow);
        let Some(id) = known.or_else(|| self.begin(flow, is_host, now)) else {
            self.lose();
            return;
        };
        self.sessions.handle_question(id, now);
        self.send(id, bytes, now);
    }

    /// Sends to a session's endpoint, or to others when that refuses.
    fn send(&mut self, id: usize, bytes: &[u8], now: Instant) {
        while let Some(upstream) = self.sessions.get_mut(id) {
            match upstream.send(bytes) {
                Some(Ok(_)) => return,
                Some(Err(error)) if is_refusal(&error) => self.repick(id, now),
                _ => break,
            }
        }
        self.lose();
    }

    /// Begins a session for a client that has none.
    fn begin(&mut self, flow: Flow, is_host: bool, now: Instant) -> Option<usize> {
        if self.shared.draining.load(Relaxed) {
            return None;
        }
        let upstream = Upstream::of(flow, is_host, &self.shared, now)?;
        let taken = self.make_room(flow, now)?;
        if self.voices.join(flow.front).is_err() {
            self.shared.budget.give(taken);
            return None;
        }
        let (id, before) = self.sessions.begin(flow, upstream, now);
        before.into_iter().for_each(|upstream| self.ended(upstream));
        self.shared.counts.begun.fetch_add(1, Relaxed);
        self.shared.counts.sessions.fetch_add(1, Relaxed);
        self.dial(id, now);
        Some(id)
    }

    /// Takes what a session and its answers need, all of it at once, if need be from other sessions; how much that is.
    fn make_room(&mut self, flow: Flow, now: Instant) -> Option<usize> {
        // Each that ends leaves at least one, and two are needed at most.
        for _ in 0..3 {
            let needs = 1 + self.voices.needs(flow.front);
            if !self.sessions.is_full() && self.shared.budget.take(needs, 0) {
                return Some(needs);
            }
            let other = self.sessions.make_room(now)?;
            self.shared.counts.displaced.fetch_add(1, Relaxed);
            self.ended(other);
        }
        None
    }

    /// Picks for a session; it ends when nobody is left.
    fn dial(&mut self, id: usize, now: Instant) {
        self.random = mix(self.random);
        let Some(upstream) = self.sessions.get_mut(id) else {
            return;
        };
        let socket = upstream.dial(&self.shared, now, self.random);
        let told = socket.is_some_and(|socket| {
            let token = Token(self.first + id);
            self.registry
                .register(socket, token, Interest::READABLE)
                .is_ok()
        });
        if !told {
            self.end(id);
        }
    }

    /// The endpoint refuses: another one has its place, and gets what this one has not answered.
    fn repick(&mut self, id: usize, now: Instant) {
        let Some(upstream) = self.sessions.get_mut(id) else {
            return;
        };
        upstream.handle_refusal(now);
        let kept = std::mem::take(&mut upstream.kept);
        self.dial(id, now);
        for bytes in kept.iter() {
            self.send(id, bytes, now);
        }
    }

    /// Gives a session's answers to its client.
    fn answer(&mut self, id: usize, now: Instant) {
        for _ in 0..TURN {
            let Some(upstream) = self.sessions.get_mut(id) else {
                return;
            };
            let Some((_, socket)) = &upstream.picked else {
                return;
            };
            match socket.recv(&mut self.buffer) {
                Ok(count) => self.answered(id, count, now),
                Err(error) if is_refusal(&error) => self.repick(id, now),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => {
                    upstream.waits = false;
                    return;
                }
            }
        }
        self.again.push(id);
    }

    /// The first `count` bytes of the buffer are an endpoint's answer.
    fn answered(&mut self, id: usize, count: usize, now: Instant) {
        let is_first = self.sessions.handle_answer(id, now);
        let Some(upstream) = self.sessions.get_mut(id) else {
            return;
        };
        upstream.handle_answer(is_first, now);
        let Flow { client, front } = upstream.flow;
        if !self.voices.say(front, client, &self.buffer[..count]) {
            self.lose();
        }
    }

    /// After a change of routes: ends sessions that could not be as they are if they began now.
    fn look_at_routes(&mut self) {
        if !self.shared.moved.is_new(&mut self.moved) {
            return;
        }
        if self.shared.draining.load(Relaxed) {
            self.sessions.ids().into_iter().for_each(|id| self.end(id));
            return;
        }
        let routes = self.shared.routes.load_full();
        for id in self.sessions.ids() {
            let Some(upstream) = self.sessions.get_mut(id) else {
                continue;
            };
            let target = upstream
                .picked
                .as_ref()
                .map(|(target, _)| target.address.ip());
            let group = target.and_then(|ip| routes.serves(upstream.flow.front, Protocol::Udp, ip));
            match group {
                Some((group, way)) => upstream.handle_routes(Arc::clone(group), way),
                None => self.end(id),
            }
        }
    }

    fn end(&mut self, id: usize) {
        if let Some(upstream) = self.sessions.end(id) {
            self.ended(upstream);
        }
    }

    /// Gives back what a session had.
    fn ended(&mut self, mut upstream: Upstream) {
        upstream.handle_end();
        self.voices.leave(upstream.flow.front);
        self.shared.budget.give(1);
        self.shared.counts.sessions.fetch_sub(1, Relaxed);
    }

    fn lose(&self) {
        self.shared.counts.lost.fetch_add(1, Relaxed);
    }
}

/// Whether somebody on the way says that the endpoint is not there.
fn is_refusal(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable
    )
}
