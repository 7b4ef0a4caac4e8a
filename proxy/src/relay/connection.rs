//! The shell: one client's connection and the one that is made for it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use weave_linux::intercept;
use weave_model::{Protocol, Relayed};

use super::answer::Answer;
use super::dial::Dial;
use super::duplex::{Duplex, Way};
use super::lane::{Broke, Lane, Means, Turn};
use super::pick::Set;
use super::routes::{Group, Routes, Source};
use crate::table::{self, Origin, Target};

/// Whether there is an endpoint yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// One was picked and has not answered.
    Dialling,
    /// Bytes may pass.
    Open,
}

/// How a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// Both sides have sent their end.
    Orderly,
    /// Both are told that it broke.
    Reset,
}

/// Whose fault it may be that an endpoint does not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Blame {
    /// The endpoint's.
    Endpoint,
    /// Also the client's, under whose name it was asked: that may be what a firewall answers this client.
    Client,
}

/// A client and its endpoint.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) client: TcpStream,
    pub(super) server: Option<TcpStream>,
    pub(super) peer: SocketAddr,
    /// What the client asked for.
    front: SocketAddr,
    pub(super) group: Arc<Group>,
    pub(super) way: table::Way,
    pub(super) set: Set,
    pub(super) origin: Origin,
    pub(super) stage: Stage,
    pub(super) dial: Dial,
    /// Picked, and not given back to the balancer.
    pub(super) target: Option<SocketAddr>,
    /// Whether it sees the client's address.
    pub(super) as_client: bool,
    /// When it was picked.
    pub(super) began: Instant,
    pub(super) duplex: Duplex,
    /// Tells this try of this connection from all others.
    pub(super) serial: u64,
    /// In which of the thread's rounds the endpoint was picked. What else that round brings is of one before it.
    pub(super) round: u64,
    lanes: [Lane; 2],
    answer: Answer,
    /// The endpoint broke it while the client was heard; what the endpoint has said before is on its way to the client.
    broken: Option<Broken>,
}

/// See [`Connection::broken`].
#[derive(Clone, Copy, Debug)]
struct Broken {
    /// Whether the endpoint had said something before.
    had_answered: bool,
}

impl Connection {
    pub(super) fn new(
        client: TcpStream,
        (peer, front): (SocketAddr, SocketAddr),
        (group, way, set, origin): (Arc<Group>, table::Way, Set, Origin),
        serial: u64,
        now: Instant,
    ) -> Self {
        Self {
            client,
            server: None,
            peer,
            front,
            group,
            way,
            set,
            origin,
            stage: Stage::Dialling,
            dial: Dial::default(),
            target: None,
            as_client: false,
            began: now,
            duplex: Duplex::default(),
            serial,
            round: 0,
            lanes: [Lane::default(), Lane::default()],
            answer: Answer::default(),
            broken: None,
        }
    }

    pub(super) const fn lane(&mut self, way: Way) -> &mut Lane {
        &mut self.lanes[way as usize]
    }

    /// The socket that a direction leads to.
    pub(super) const fn receiver(&self, way: Way) -> Option<&TcpStream> {
        match way {
            Way::Up => self.server.as_ref(),
            Way::Down => Some(&self.client),
        }
    }

    /// Both, as far as there are both.
    pub(super) fn sockets(&self) -> impl Iterator<Item = &TcpStream> {
        std::iter::once(&self.client).chain(&self.server)
    }

    /// Whose fault it may be that the endpoint does not take it: a firewall may refuse what comes under one client's name.
    pub(super) const fn blame(&self) -> Blame {
        if self.as_client {
            Blame::Client
        } else {
            Blame::Endpoint
        }
    }

    /// What is to be told of the connection to the endpoint; nothing when there is none.
    pub(super) fn leg(&self) -> Option<Relayed> {
        Some(Relayed {
            protocol: Protocol::Tcp,
            client: self.peer,
            is_host: self.origin == Origin::Host,
            front: self.front,
            from: self.server.as_ref()?.local_addr().ok()?,
            endpoint: self.target?,
        })
    }

    /// Picks an endpoint for it; who that is to see, and how long it may take. `None` when nobody is left.
    pub(super) fn pick(
        &self,
        routes: &Routes,
        now: Instant,
        draw: u64,
    ) -> Option<(Target, Source, Duration)> {
        if self.dial.is_over() {
            return None;
        }
        let (entry, client) = (&*self.group.entry, self.peer.ip());
        let of = (entry, self.way, self.origin);
        let reaches = |target: &Target| routes.reaches(of, client, target);
        let (among, tried) = ((self.set, reaches), self.dial.tried());
        let mut balancer = self.group.balancer();
        let target = balancer.pick(self.peer, among, tried, now, draw)?;
        let patience = self.dial.patience(balancer.usual(target.address));
        drop(balancer);
        let source = routes.source(entry, self.way, self.origin, client, &target);
        Some((target, source, patience))
    }

    /// Whether there is an endpoint that was not tried for it.
    pub(super) fn has_untried(&self) -> bool {
        let balancer = self.group.balancer();
        balancer.has_untried(self.set, self.dial.tried())
    }

    /// Whether the attempt to reach the endpoint came to an error.
    pub(super) fn has_failed(&self) -> bool {
        let server = self.server.as_ref();
        server.is_none_or(|server| !matches!(server.take_error(), Ok(None)))
    }

    /// Whether the endpoint has taken it, which may not have been told yet.
    pub(super) fn is_connected(&self) -> bool {
        let server = self.server.as_ref();
        self.stage == Stage::Open || server.is_some_and(|server| server.peer_addr().is_ok())
    }

    /// Whether no byte has passed in either direction, nor the endpoint's end, so that another one may take over. The
    /// client's end can be told again.
    pub(super) const fn is_untouched(&self) -> bool {
        !self.has_moved(Way::Up) && !self.has_moved(Way::Down) && !self.duplex.has_ended(Way::Down)
    }

    const fn has_moved(&self, way: Way) -> bool {
        let before = matches!(
            (way, self.broken),
            (Way::Down, Some(Broken { had_answered: true }))
        );
        before || self.lanes[way as usize].moved
    }

    /// The endpoint takes no more of what the client sends, and has broken; what it said before that, as one does who
    /// refuses what is too long, still goes to the client.
    pub(super) const fn handle_deaf(&mut self) {
        let lane = &mut self.lanes[Way::Down as usize];
        self.broken = Some(Broken {
            had_answered: lane.moved,
        });
        lane.moved = false;
        self.duplex.end(Way::Up);
    }

    /// How it ends when the endpoint broke it: that is noted once.
    pub(super) fn ending_broken(&mut self, now: Instant) -> Ending {
        if self.broken.is_some() {
            return self.ending();
        }
        self.handle_break(now);
        Ending::Reset
    }

    /// How it ends when both directions have.
    pub(super) const fn ending(&self) -> Ending {
        match self.broken {
            Some(_) if !self.lanes[Way::Down as usize].moved => Ending::Reset,
            _ => Ending::Orderly,
        }
    }

    /// The endpoint answers.
    pub(super) fn handle_connected(&mut self, now: Instant) {
        self.stage = Stage::Open;
        if let Some(target) = self.target {
            let took = now.saturating_duration_since(self.began);
            self.group.balancer().handle_connected(target, took, now);
        }
        self.answer.handle_connected(now);
    }

    /// Has the endpoint know that it has been heard, whether or not the client had something for it.
    pub(super) fn confirm(&self) {
        // It fails only when the connection is broken, which the next read tells.
        let _ = self.server.as_ref().map(intercept::confirm);
    }

    /// The endpoint does not; nothing is blamed where this host has nothing left to ask it with.
    pub(super) fn handle_failure(&mut self, blame: Option<Blame>, now: Instant) {
        self.server = None;
        self.stage = Stage::Dialling;
        // What the client has sent, its end too, is for the next one; nothing of this one is the next one's.
        self.duplex.reopen(Way::Up);
        self.lanes[Way::Down as usize] = Lane::default();
        if let Some(target) = self.target.take() {
            let mut balancer = self.group.balancer();
            balancer.handle_end(target);
            match blame {
                Some(Blame::Endpoint) => balancer.handle_failure(target, now),
                Some(Blame::Client) => balancer.handle_break(target, self.peer.ip(), now),
                None => {}
            }
            drop(balancer);
            self.dial.failed(target);
        }
    }

    /// It is over, and both sides have said so, or one of them broke. An endpoint that ended it first without a word is
    /// not praised, and where it was asked something it has failed: it would be the one with the fewest connections. Nor
    /// is one praised whose client has given up.
    pub(super) fn handle_end(&mut self, ending: Ending, now: Instant) {
        if let Some(target) = self.target.take() {
            let mut balancer = self.group.balancer();
            balancer.handle_end(target);
            if let Some(waited) = self.answer.handle_end(now) {
                balancer.handle_silence(target, waited, now);
            }
            if ending == Ending::Reset {
                return;
            }
            let is_first = self.duplex.first() == Some(Way::Down);
            let client = self.peer.ip();
            match (self.has_moved(Way::Up), self.has_moved(Way::Down)) {
                (_, true) => balancer.handle_served(target, client, now),
                (true, false) if is_first => balancer.handle_break(target, client, now),
                (false, false) if !is_first => balancer.handle_served(target, client, now),
                (_, false) => {}
            }
        }
    }

    /// The endpoint broke it, after bytes of the client have passed: nobody else may have them. Unless it has answered
    /// something before, that is its fault.
    pub(super) fn handle_break(&mut self, now: Instant) {
        if let Some(target) = self.target.filter(|_| !self.has_moved(Way::Down)) {
            let mut balancer = self.group.balancer();
            balancer.handle_break(target, self.peer.ip(), now);
        }
    }

    /// Moves the bytes of one direction.
    pub(super) fn turn(
        &mut self,
        way: Way,
        means: &mut Means,
        now: Instant,
    ) -> Result<Turn, Broke> {
        let Some(server) = &self.server else {
            return Ok(Turn::Waits);
        };
        let (from, to) = match way {
            Way::Up => (&self.client, server),
            Way::Down => (server, &self.client),
        };
        let result = self.lanes[way as usize].turn((from, to), means);
        if self.has_moved(Way::Down) {
            self.note_answer(now);
        } else if self.has_moved(Way::Up) {
            self.answer.handle_question(now);
        }
        result
    }

    fn note_answer(&mut self, now: Instant) {
        if let Some(took) = self.answer.handle_answer(now)
            && let Some(target) = self.target
        {
            let mut balancer = self.group.balancer();
            balancer.handle_answer(target, self.peer.ip(), took, now);
        }
    }
}
