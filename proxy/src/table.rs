//! The table: for every port of every Service, the addresses in front of it and the endpoints behind it, as one node
//! sees them.
//!
//! A [`Table`] never changes. The next one shares all that stayed the same, and a [`Diff`] names what did not, so an
//! engine's work is as large as the change. Nothing of a table is particular to an engine: [`Entry::verdict`] says what
//! is to become of a connection, and an engine is right when it does that.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;
use weave_model::{Affinity, Balance, Engine, Protocol, ServiceName, TrafficPolicy};

/// IPv4 or IPv6: nothing crosses from one to the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The family of an address.
    pub const fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// The address that stands for any.
    pub const fn any(self) -> IpAddr {
        match self {
            Self::V4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            Self::V6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        }
    }
}

/// A port of a Service in one family.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// The Service.
    pub service: ServiceName,
    /// The port of its virtual addresses.
    pub port: u16,
    /// The port's protocol.
    pub protocol: Protocol,
    /// The family.
    pub family: Family,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}/{}", self.service, self.port, self.protocol)
    }
}

/// Where connections to a Service go to before anybody picked for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Front {
    /// The address; the unspecified one for a port of the node's own addresses.
    pub address: IpAddr,
    /// The port.
    pub port: u16,
    /// The protocol.
    pub protocol: Protocol,
}

impl Front {
    /// Whether it is a port of the node's own addresses.
    pub const fn is_node_port(&self) -> bool {
        self.address.is_unspecified()
    }
}

impl fmt::Display for Front {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let address = SocketAddr::new(self.address, self.port);
        write!(f, "{address}/{}", self.protocol)
    }
}

/// What kind of front it is; it decides which traffic policy counts, and whether sources are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Way {
    /// The Service's virtual address.
    Internal,
    /// An address of a load balancer.
    Balancer,
    /// An address that the Service names.
    External,
    /// A port of the node's own addresses.
    NodePort,
}

/// Where a connection comes from, as far as it matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A container of any node.
    Container,
    /// This host.
    Host,
    /// Anywhere else.
    Outside,
}

/// What becomes of a connection to a front.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict<'a> {
    /// It goes to one of these, each with the same chance; never none.
    Pick(&'a [Target]),
    /// Its packets vanish: there are endpoints, but none that this node may use.
    Drop,
    /// It is refused: there is no endpoint at all.
    Reject,
}

/// An endpoint that may be picked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Target {
    /// Where it listens.
    pub address: SocketAddr,
    /// Whether it is on this node.
    pub local: bool,
}

/// All that has to be known of a Service's port in one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The fronts, in order.
    pub fronts: Vec<(Front, Way)>,
    /// Whom policy Cluster may pick, in order.
    pub cluster: Vec<Target>,
    /// Whom policy Local may pick, in order.
    pub local: Vec<Target>,
    /// Whether there is an endpoint anywhere.
    pub any: bool,
    /// For the virtual addresses.
    pub internal: TrafficPolicy,
    /// For all other fronts.
    pub external: TrafficPolicy,
    /// Whether clients keep their endpoint.
    pub affinity: Affinity,
    /// Who may come in by a load balancer's addresses; everybody when empty.
    pub source_ranges: Vec<IpNet>,
    /// The addresses of all endpoints that serve, whatever the policies: a UDP flow to any other is stale.
    pub serving: BTreeSet<IpAddr>,
    /// Who carries its connections.
    pub engine: Engine,
    /// How the relay chooses.
    pub balance: Balance,
    /// Whether its node ports are served at loopback addresses too, which is the relay's work whatever the engine.
    pub loopback: bool,
}

impl Entry {
    /// What becomes of a new connection.
    pub fn verdict(&self, way: Way, origin: Origin, source: IpAddr) -> Verdict<'_> {
        if way == Way::Balancer && !self.lets_in(source) {
            return Verdict::Drop;
        }
        let targets = if self.uses_local(way, origin) {
            &self.local
        } else {
            &self.cluster
        };
        match (targets.is_empty(), self.any) {
            (false, _) => Verdict::Pick(targets),
            (true, true) => Verdict::Drop,
            (true, false) => Verdict::Reject,
        }
    }

    /// Whether the endpoint sees the node's address in place of the client's. (An endpoint that is its own client
    /// always does.)
    pub fn masquerades(&self, way: Way, origin: Origin) -> bool {
        match (way, self.external) {
            (Way::Internal, _) => origin != Origin::Container,
            (_, TrafficPolicy::Cluster) => true,
            (_, TrafficPolicy::Local) => origin == Origin::Host,
        }
    }

    /// Policy Local holds for the virtual addresses; for the others it holds for traffic from outside only.
    pub fn uses_local(&self, way: Way, origin: Origin) -> bool {
        match way {
            Way::Internal => self.internal == TrafficPolicy::Local,
            _ => self.external == TrafficPolicy::Local && origin == Origin::Outside,
        }
    }

    fn lets_in(&self, source: IpAddr) -> bool {
        self.source_ranges.is_empty() || self.source_ranges.iter().any(|net| net.contains(&source))
    }
}

/// What a load balancer is told at a health-check node port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// The Service.
    pub service: ServiceName,
    /// How many ready endpoints this node has; ones that are going do not count.
    pub local: usize,
}

/// What was left out of a Service, and why.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Refused {
    /// The address, endpoint or port.
    pub what: String,
    /// Why.
    pub why: Why,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.why)
    }
}

/// Why something of a Service is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Why {
    /// Nothing behind such an address can be another machine's.
    #[error("it is a loopback, link-local, multicast or unspecified address")]
    Special,
    /// It is a node's.
    #[error("it is an address of a node")]
    Node,
    /// It is a virtual address.
    #[error("it is in the range of virtual addresses")]
    Virtual,
    /// It is of another family than its slice says.
    #[error("it is of another family than the slice that names it")]
    Family,
    /// Port 0.
    #[error("0 is no port")]
    Port,
    /// There are too many.
    #[error("a port has more than {MAX_TARGETS} endpoints")]
    TooMany,
    /// Another Service has it.
    #[error("another Service has it already")]
    Taken,
    /// [`crate::facts::ExternalIps`].
    #[error("this cluster does not take external addresses")]
    External,
}

/// The most endpoints that one port of a Service may have in one family; those that nobody would pick do not count.
pub const MAX_TARGETS: usize = 10_000;
/// The most refusals that are listed of one Service, besides one for each reason.
pub const MAX_REFUSED: usize = 20;

/// What was left out of a Service: some of it by name, the rest by number.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeftOut {
    listed: BTreeSet<Refused>,
    more: usize,
}

impl LeftOut {
    /// Notes one. Beyond [`MAX_REFUSED`] only the first of each reason is listed.
    pub fn add(&mut self, what: impl ToString, why: Why) {
        if self.listed.len() >= MAX_REFUSED && self.iter().any(|one| one.why == why) {
            self.more += 1;
        } else {
            let what = what.to_string();
            self.listed.insert(Refused { what, why });
        }
    }

    /// What is listed, in order.
    pub fn iter(&self) -> impl Iterator<Item = &Refused> + Clone {
        self.listed.iter()
    }

    /// How often something was left out that is not listed.
    pub const fn more(&self) -> usize {
        self.more
    }

    /// Whether nothing was left out.
    pub fn is_empty(&self) -> bool {
        self.listed.is_empty()
    }

    /// What of this nobody was told of when there was that before. Where more is left out than is listed, which of it is
    /// listed changes with every change of endpoints; then only a new reason is news.
    pub fn news(&self, before: Option<&Self>) -> Vec<&Refused> {
        let Some(before) = before else {
            return self.iter().collect();
        };
        let was_told = |one: &Refused| {
            let reason = || before.iter().any(|old| old.why == one.why);
            before.listed.contains(one) || before.more > 0 && reason()
        };
        self.iter().filter(|one| !was_told(one)).collect()
    }
}

/// All Services as one node sees them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// By Service, port and family.
    pub entries: BTreeMap<Key, Arc<Entry>>,
    /// Health-check node ports.
    pub health: BTreeMap<u16, Health>,
    /// What was left out, by Service.
    pub refused: BTreeMap<ServiceName, Arc<LeftOut>>,
}

/// What one table has that another has not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Diff {
    /// Gone, as they were.
    pub removed: Vec<(Key, Arc<Entry>)>,
    /// Other than they were: before and after.
    pub changed: Vec<(Key, Arc<Entry>, Arc<Entry>)>,
    /// New.
    pub added: Vec<(Key, Arc<Entry>)>,
}

impl Diff {
    /// What leads from one table to another.
    pub fn between(before: &Table, after: &Table) -> Self {
        let keys: BTreeSet<&Key> = before.entries.keys().chain(after.entries.keys()).collect();
        let mut diff = Self::default();
        for key in keys {
            diff.note(key, before.entries.get(key), after.entries.get(key));
        }
        diff
    }

    /// Notes what became of one entry.
    pub fn note(&mut self, key: &Key, before: Option<&Arc<Entry>>, after: Option<&Arc<Entry>>) {
        let key = || key.clone();
        match (before.cloned(), after.cloned()) {
            (Some(before), None) => self.removed.push((key(), before)),
            (None, Some(after)) => self.added.push((key(), after)),
            (Some(before), Some(after)) if !Arc::ptr_eq(&before, &after) && before != after => {
                self.changed.push((key(), before, after));
            }
            _ => {}
        }
    }

    /// Whether the tables are the same.
    pub fn is_empty(&self) -> bool {
        self.removed.is_empty() && self.changed.is_empty() && self.added.is_empty()
    }

    /// Every entry it is about: before, after.
    pub fn pairs(&self) -> impl Iterator<Item = (&Key, Option<&Arc<Entry>>, Option<&Arc<Entry>>)> {
        let removed = self.removed.iter().map(|(key, was)| (key, Some(was), None));
        let changed = self
            .changed
            .iter()
            .map(|(key, was, is)| (key, Some(was), Some(is)));
        let added = self.added.iter().map(|(key, is)| (key, None, Some(is)));
        removed.chain(changed).chain(added)
    }
}
