//! The shell: the way of one UDP session to its endpoint.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use mio::net::UdpSocket;
use weave_linux::intercept::datagrams;
use weave_model::{Protocol, Relayed};

use super::kept::Kept;
use super::pick::Set;
use super::routes::{Group, Source};
use super::sessions::Flow;
use super::shared::{Shared, name};
use crate::table::{Origin, Target, Way};

/// How many endpoints one datagram is given to.
const TRIES: usize = 4;

/// Where a session's datagrams go.
#[derive(Debug)]
pub(super) struct Upstream {
    pub(super) flow: Flow,
    pub(super) group: Arc<Group>,
    way: Way,
    /// Absent where the table leaves it no endpoint but the one that it has.
    set: Option<Set>,
    origin: Origin,
    /// Picked and not given back to the balancer, with the socket that leads there.
    pub(super) picked: Option<(Target, UdpSocket)>,
    /// Whether it sees the client's address.
    as_client: bool,
    began: Instant,
    /// Endpoints that refused what is kept.
    tried: Vec<SocketAddr>,
    /// What was asked last, until there is an answer.
    pub(super) kept: Kept,
    /// Whether answers may wait.
    pub(super) waits: bool,
}

impl Upstream {
    /// Of a flow that has no session; `None` when nothing may come of it.
    pub(super) fn of(flow: Flow, is_host: bool, shared: &Shared, now: Instant) -> Option<Self> {
        let routes = shared.routes.load();
        let (group, way) = routes.of(flow.front, Protocol::Udp)?;
        let origin = if is_host {
            Origin::Host
        } else {
            routes.origin(flow.client.ip())
        };
        Some(Self {
            flow,
            group: Arc::clone(group),
            way,
            set: Some(group.set(way, origin, flow.client.ip())?),
            origin,
            picked: None,
            as_client: false,
            began: now,
            tried: Vec::new(),
            kept: Kept::default(),
            waits: false,
        })
    }

    /// Picks an endpoint that was not tried, and makes the socket to it.
    pub(super) fn dial(
        &mut self,
        shared: &Shared,
        now: Instant,
        draw: u64,
    ) -> Option<&mut UdpSocket> {
        let set = self.set?;
        while self.tried.len() < TRIES {
            let (client, tried) = (self.flow.client, &self.tried);
            let routes = shared.routes.load();
            let of = (&*self.group.entry, self.way, self.origin);
            let reaches = |target: &Target| routes.reaches(of, client.ip(), target);
            let mut balancer = self.group.balancer();
            let target = balancer.pick(client, (set, reaches), tried, now, draw)?;
            drop(balancer);
            let source = routes.source(
                &self.group.entry,
                self.way,
                self.origin,
                client.ip(),
                &target,
            );
            drop(routes);
            let turn = shared.turn.fetch_add(1, Relaxed);
            match datagrams::ask(target.address, name(source), turn) {
                Ok(socket) => {
                    self.began = now;
                    self.as_client = matches!(source, Source::Client(_));
                    let leg = self.leg(&socket, target.address);
                    leg.into_iter().for_each(|leg| shared.legs.add(leg));
                    let picked = self.picked.insert((target, UdpSocket::from_std(socket)));
                    return Some(&mut picked.1);
                }
                Err(_) => {
                    self.group.balancer().handle_end(target.address);
                    self.tried.push(target.address);
                }
            }
        }
        None
    }

    /// What is to be told of the way to an endpoint.
    fn leg(&self, socket: &std::net::UdpSocket, endpoint: SocketAddr) -> Option<Relayed> {
        Some(Relayed {
            protocol: Protocol::Udp,
            client: self.flow.client,
            is_host: self.origin == Origin::Host,
            front: self.flow.front,
            from: socket.local_addr().ok()?,
            endpoint,
        })
    }

    /// Sends; `None` when it has nowhere to.
    pub(super) fn send(&mut self, bytes: &[u8]) -> Option<std::io::Result<usize>> {
        let sent = self.picked.as_ref()?.1.send(bytes);
        if sent.is_ok() {
            self.kept.push(bytes);
        }
        Some(sent)
    }

    /// The routes are others, and lead to its endpoint still.
    pub(super) fn handle_routes(&mut self, group: Arc<Group>, way: Way) {
        self.set = group.set(way, self.origin, self.flow.client.ip());
        (self.group, self.way) = (group, way);
    }

    /// The endpoint answered; `is_first` says whether for the first time.
    pub(super) fn handle_answer(&mut self, is_first: bool, now: Instant) {
        self.kept.clear();
        self.tried.clear();
        if let Some((target, _)) = self.picked.as_ref().filter(|_| is_first) {
            let took = now.saturating_duration_since(self.began);
            let mut balancer = self.group.balancer();
            balancer.handle_answer(target.address, self.flow.client.ip(), took, now);
        }
    }

    /// The endpoint's host says that nobody is there.
    pub(super) fn handle_refusal(&mut self, now: Instant) {
        if let Some((target, _)) = self.picked.take() {
            let mut balancer = self.group.balancer();
            balancer.handle_end(target.address);
            if self.as_client {
                balancer.handle_break(target.address, self.flow.client.ip(), now);
            } else {
                balancer.handle_failure(target.address, now);
            }
            drop(balancer);
            self.tried.push(target.address);
        }
    }

    /// It is over.
    pub(super) fn handle_end(&mut self) {
        if let Some((target, _)) = self.picked.take() {
            self.group.balancer().handle_end(target.address);
        }
    }
}
