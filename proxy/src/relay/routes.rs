//! Where the relay's connections lead: from the address that a client asked for to the endpoints behind it.
//!
//! Immutable, like the table it is made of; the endpoints' states are shared from one to the next.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use weave_model::{Affinity, Engine, Protocol};

use super::pick::{Balancer, Choice, Set};
use crate::facts::Facts;
use crate::table::{Diff, Entry, Family, Front, Key, Origin, Target, Verdict, Way};

/// One port of a Service that the relay has something to do with.
#[derive(Debug)]
pub struct Group {
    /// Which.
    pub key: Key,
    /// As the table has it.
    pub entry: Arc<Entry>,
    balancer: Arc<Mutex<Balancer>>,
}

impl Group {
    /// Its endpoints; the lock is held for a choice or a note.
    pub fn balancer(&self) -> MutexGuard<'_, Balancer> {
        self.balancer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Which endpoints a connection may have; `None` if the table leaves it none.
    pub fn set(&self, way: Way, origin: Origin, client: IpAddr) -> Option<Set> {
        match self.entry.verdict(way, origin, client) {
            Verdict::Pick(_) if self.entry.uses_local(way, origin) => Some(Set::Local),
            Verdict::Pick(_) => Some(Set::Cluster),
            Verdict::Drop | Verdict::Reject => None,
        }
    }
}

/// Whether the relay has something to do for an entry.
pub fn concerns(entry: &Entry) -> bool {
    entry.engine == Engine::Relay || has_loopback(entry)
}

/// Whether an entry has node ports that are served at loopback addresses.
pub fn has_loopback(entry: &Entry) -> bool {
    entry.loopback && entry.fronts.iter().any(|(front, _)| front.is_node_port())
}

/// Who the endpoint sees as its client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// This host, by whatever address the route has.
    Host,
    /// This host, by the address that other nodes' containers find back to. No device of it need have that.
    Own(IpAddr),
    /// The client itself.
    Client(IpAddr),
}

/// All of them.
#[derive(Clone, Debug, Default)]
pub struct Routes {
    fronts: HashMap<Front, (Arc<Group>, Way)>,
    /// Fronts of the table before: connections that were accepted a moment ago may still ask for them.
    gone: HashMap<Front, (Arc<Group>, Way)>,
    facts: Facts,
}

impl Routes {
    /// The routes of the next table.
    #[must_use]
    pub fn next(&self, diff: &Diff, facts: &Facts, now: Instant) -> Self {
        let mut next = Self {
            fronts: self.fronts.clone(),
            gone: HashMap::new(),
            facts: facts.clone(),
        };
        let mut known: HashMap<&Key, Arc<Mutex<Balancer>>> = HashMap::new();
        for (key, before, _) in diff.pairs() {
            for (front, _) in before.iter().flat_map(|before| &before.fronts) {
                if let Some((group, way)) = next.fronts.remove(front) {
                    known.insert(key, Arc::clone(&group.balancer));
                    next.gone.insert(*front, (group, way));
                }
            }
        }
        for (key, _, after) in diff.pairs() {
            let Some(entry) = after.filter(|entry| concerns(entry)) else {
                continue;
            };
            let choice = Choice::from(entry.as_ref());
            let balancer = match known.remove(key) {
                Some(balancer) => {
                    let mut lock = balancer.lock().unwrap_or_else(PoisonError::into_inner);
                    lock.update(choice, now);
                    drop(lock);
                    balancer
                }
                None => Arc::new(Mutex::new(Balancer::new(choice))),
            };
            let group = Arc::new(Group {
                key: key.clone(),
                entry: Arc::clone(entry),
                balancer,
            });
            for (front, way) in &entry.fronts {
                next.gone.remove(front);
                next.fronts.insert(*front, (Arc::clone(&group), *way));
            }
        }
        next
    }

    /// Has groups forget clients whose time is over, some at a time.
    pub(super) fn forget(&self, now: Instant) {
        let groups = self.fronts.values().map(|(group, _)| group);
        groups
            .filter(|group| group.entry.affinity != Affinity::None)
            .for_each(|group| group.balancer().forget(now));
    }

    /// The same without what only the table before had.
    #[must_use]
    pub fn settled(&self) -> Option<Self> {
        (!self.gone.is_empty()).then(|| Self {
            gone: HashMap::new(),
            ..self.clone()
        })
    }

    /// What is behind the address that a client asked for.
    pub fn of(&self, to: SocketAddr, protocol: Protocol) -> Option<(&Arc<Group>, Way)> {
        let exact = Front {
            address: to.ip(),
            port: to.port(),
            protocol,
        };
        let port = Front {
            address: Family::of(to.ip()).any(),
            ..exact
        };
        let here = to.ip().is_loopback() || self.facts.addresses.contains(&to.ip());
        let both = [&self.fronts, &self.gone];
        let exact = both.iter().find_map(|fronts| fronts.get(&exact));
        let found = exact.or_else(|| {
            let of_port = || both.iter().find_map(|fronts| fronts.get(&port));
            here.then(of_port).flatten()
        });
        found.map(|(group, way)| (group, *way))
    }

    /// The group that leads from a front to an endpoint that serves, and the way, as of now: the table before does not
    /// count.
    pub fn serves(
        &self,
        front: SocketAddr,
        protocol: Protocol,
        endpoint: IpAddr,
    ) -> Option<(&Arc<Group>, Way)> {
        let (group, way) = self.of(front, protocol)?;
        let is_current = group.entry.fronts.iter().any(|(front, _)| {
            let now = self.fronts.get(front);
            now.is_some_and(|(now, _)| Arc::ptr_eq(now, group))
        });
        (is_current && group.entry.serving.contains(&endpoint)).then_some((group, way))
    }

    /// Where a client is that is not this host.
    pub fn origin(&self, client: IpAddr) -> Origin {
        if self.is_container(client) {
            Origin::Container
        } else {
            Origin::Outside
        }
    }

    /// Who an endpoint is to see as its client. One that is its own client sees the host: it could not answer itself.
    pub fn source(
        &self,
        entry: &Entry,
        way: Way,
        origin: Origin,
        client: IpAddr,
        target: &Target,
    ) -> Source {
        let to = target.address.ip();
        if !entry.masquerades(way, origin) && to != client {
            return Source::Client(client);
        }
        let of_family = |own: &&IpAddr| own.is_ipv4() == to.is_ipv4();
        let own = self.facts.own.iter().find(of_family);
        let elsewhere = !target.local && self.is_container(to);
        own.filter(|_| elsewhere)
            .map_or(Source::Host, |own| Source::Own(*own))
    }

    /// Whether networks let what a client says pass to an endpoint: by the client's own address if it is a container's,
    /// whoever it seems to be to the endpoint.
    pub fn reaches(
        &self,
        (entry, way, origin): (&Entry, Way, Origin),
        client: IpAddr,
        target: &Target,
    ) -> bool {
        let from = match (origin, self.source(entry, way, origin, client, target)) {
            (Origin::Container, _) => client,
            (_, Source::Own(own)) => own,
            (_, Source::Host | Source::Client(_)) => return true,
        };
        let (facts, to) = (&self.facts, target.address.ip());
        facts.networks.let_pass(from, to, &facts.containers)
    }

    /// Every group once, in order.
    pub fn groups(&self) -> Vec<Arc<Group>> {
        let mut all: Vec<Arc<Group>> = self
            .fronts
            .values()
            .map(|(group, _)| Arc::clone(group))
            .collect();
        all.sort_by(|one, two| one.key.cmp(&two.key));
        all.dedup_by(|one, two| one.key == two.key);
        all
    }

    fn is_container(&self, address: IpAddr) -> bool {
        self.facts
            .containers
            .iter()
            .any(|net| net.contains(&address))
    }
}
