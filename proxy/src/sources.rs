//! Services and slices as they are reported, and the next table out of the last one.
//!
//! A report marks its Service; [`Sources::build`] looks at marked ones only, so a change costs what it concerns and not
//! what there is. Addresses and ports that two Services want go to one of them, always the same: virtual addresses
//! before all others, then by name; so do health-check node ports. When the winner goes, the other one gets them in the
//! same table.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use weave_model::{
    BalancerMode, Protocol, Service, ServiceKind, ServiceName, ServicePort, Slice, TrafficPolicy,
};

use crate::facts::{ExternalIps, Facts};
use crate::select::{self, is_special};
use crate::table::{Diff, Entry, Family, Front, Health, Key, LeftOut, Table, Way, Why};

/// One who wants a front: virtual addresses first, then by name.
type Claim = (bool, Key);

/// All that was reported, and the table it makes.
#[derive(Debug, Default)]
pub struct Sources {
    facts: Facts,
    services: BTreeMap<ServiceName, Service>,
    slices: BTreeMap<ServiceName, BTreeMap<String, Slice>>,
    claims: BTreeMap<Front, BTreeSet<Claim>>,
    /// What each Service claims now.
    claimed: BTreeMap<ServiceName, Vec<(Front, Claim)>>,
    marked: BTreeSet<ServiceName>,
    table: Arc<Table>,
}

/// A report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// What the node is like.
    Facts(Facts),
    /// A Service is so.
    Service(Service),
    /// A Service is gone. Its slices stay until they are reported gone.
    NoService(ServiceName),
    /// A slice is so.
    Slice(Slice),
    /// A slice, by Service and name, is gone.
    NoSlice(ServiceName, String),
}

impl Sources {
    /// Takes a report.
    pub fn handle(&mut self, change: Change) {
        match change {
            Change::Facts(facts) => {
                if self.facts != facts {
                    self.facts = facts;
                    self.marked.extend(self.services.keys().cloned());
                }
            }
            Change::Service(service) => {
                self.marked.insert(service.name.clone());
                self.services.insert(service.name.clone(), service);
            }
            Change::NoService(name) => {
                self.services.remove(&name);
                self.marked.insert(name);
            }
            Change::Slice(slice) => {
                self.marked.insert(slice.service.clone());
                let of_service = self.slices.entry(slice.service.clone()).or_default();
                of_service.insert(slice.name.clone(), slice);
            }
            Change::NoSlice(service, name) => {
                if let Some(of_service) = self.slices.get_mut(&service) {
                    of_service.remove(&name);
                    if of_service.is_empty() {
                        self.slices.remove(&service);
                    }
                }
                self.marked.insert(service);
            }
        }
    }

    /// What the node is like.
    pub const fn facts(&self) -> &Facts {
        &self.facts
    }

    /// The table as it was built last.
    pub const fn table(&self) -> &Arc<Table> {
        &self.table
    }

    /// The table that all reports so far make, and what in it is other than in the last one.
    pub fn build(&mut self) -> (Arc<Table>, Diff) {
        let mut marked = std::mem::take(&mut self.marked);
        let rivals: Vec<ServiceName> = marked.iter().flat_map(|name| self.claim(name)).collect();
        marked.extend(rivals);
        let mut diff = Diff::default();
        if marked.is_empty() {
            return (Arc::clone(&self.table), diff);
        }
        let mut table = (*self.table).clone();
        for name in &marked {
            self.rebuild(name, &mut table, &mut diff);
        }
        self.table = Arc::new(table);
        (Arc::clone(&self.table), diff)
    }

    /// Makes the claims of a Service those that it has now; returns whose fronts are others' for it.
    fn claim(&mut self, name: &ServiceName) -> Vec<ServiceName> {
        let wanted = match self.services.get(name).filter(|service| is_ours(service)) {
            Some(service) => claims_of(service, &self.facts),
            None => Vec::new(),
        };
        let before = self.claimed.remove(name).unwrap_or_default();
        let mut rivals = BTreeSet::new();
        for (front, claim) in &before {
            if let Some(claims) = self.claims.get_mut(front) {
                claims.remove(claim);
                rivals.extend(claims.iter().map(|(_, key)| key.service.clone()));
                if claims.is_empty() {
                    self.claims.remove(front);
                }
            }
        }
        for (front, claim) in &wanted {
            let claims = self.claims.entry(*front).or_default();
            rivals.extend(claims.iter().map(|(_, key)| key.service.clone()));
            claims.insert(claim.clone());
        }
        if !wanted.is_empty() {
            self.claimed.insert(name.clone(), wanted);
        }
        rivals.remove(name);
        rivals.into_iter().collect()
    }

    /// Makes the entries of a Service anew.
    fn rebuild(&self, name: &ServiceName, table: &mut Table, diff: &mut Diff) {
        let mut left_out = LeftOut::default();
        let entries = match self.services.get(name).filter(|service| is_ours(service)) {
            Some(service) => self.entries(service, &mut left_out),
            None => BTreeMap::new(),
        };
        let old: Vec<Key> = keys_of(table, name);
        let keys: BTreeSet<&Key> = old.iter().chain(entries.keys()).collect();
        for key in keys {
            diff.note(key, table.entries.get(key), entries.get(key));
        }
        for key in &old {
            if !entries.contains_key(key) {
                table.entries.remove(key);
            }
        }
        for (key, entry) in entries {
            // What is equal stays the same, so that the next comparison is a pointer's.
            if table.entries.get(&key) != Some(&entry) {
                table.entries.insert(key, entry);
            }
        }
        table.health.retain(|_, health| health.service != *name);
        if let Some((port, health)) = self.health(name, &mut left_out) {
            table.health.insert(port, health);
        }
        if left_out.is_empty() {
            table.refused.remove(name);
        } else {
            table.refused.insert(name.clone(), Arc::new(left_out));
        }
    }

    fn entries(&self, service: &Service, left_out: &mut LeftOut) -> BTreeMap<Key, Arc<Entry>> {
        let mut entries = BTreeMap::new();
        for port in &service.ports {
            for family in families(service) {
                let key = key(service, port, family);
                let fronts = self.fronts(service, port, &key, left_out);
                let slices = self.slices.get(&service.name).into_iter();
                let entry = select::entry(
                    service,
                    port,
                    fronts,
                    family,
                    slices.flat_map(BTreeMap::values),
                    &self.facts,
                    left_out,
                );
                entries.entry(key).or_insert_with(|| Arc::new(entry));
            }
        }
        entries
    }

    /// The fronts that the port of a Service wants and gets.
    fn fronts(
        &self,
        service: &Service,
        port: &ServicePort,
        key: &Key,
        left_out: &mut LeftOut,
    ) -> Vec<(Front, Way)> {
        let mut fronts = BTreeMap::new();
        for (front, way) in wanted(service, port, key.family) {
            match refusal(&front, way, &self.facts) {
                Some(why) => left_out.add(front, why),
                None => {
                    let winner = self.claims.get(&front).and_then(BTreeSet::first);
                    if winner.is_some_and(|(_, winner)| winner == key) {
                        fronts.entry(front).or_insert(way);
                    } else {
                        left_out.add(front, Why::Taken);
                    }
                }
            }
        }
        fronts.into_iter().collect()
    }

    fn health(&self, name: &ServiceName, left_out: &mut LeftOut) -> Option<(u16, Health)> {
        let service = self.services.get(name)?;
        let port = health_port(service)?;
        let wins = |(front, claim): (Front, Claim)| {
            let claims = self.claims.get(&front);
            claims.and_then(BTreeSet::first) == Some(&claim)
        };
        if !health_claims(service).all(wins) {
            left_out.add(format!("health-check node port {port}"), Why::Taken);
            return None;
        }
        let slices = self.slices.get(name).into_iter();
        let health = Health {
            service: name.clone(),
            local: select::ready_here(slices.flat_map(BTreeMap::values), &self.facts),
        };
        Some((port, health))
    }
}

/// Whether a Service is one to serve: it has virtual addresses, and no other proxy has it.
fn is_ours(service: &Service) -> bool {
    !matches!(service.kind, ServiceKind::ExternalName(_))
        && !service.addresses.is_empty()
        && !service.headless
        && !service.other_proxy
}

/// The health-check node port of a Service, if it is to be served.
fn health_port(service: &Service) -> Option<u16> {
    let asks = service.kind == ServiceKind::LoadBalancer
        && service.external == TrafficPolicy::Local
        && is_ours(service);
    service.health_port.filter(|_| asks)
}

/// Its claims: like a node port's, at every address of the host.
fn health_claims(service: &Service) -> impl Iterator<Item = (Front, Claim)> {
    let name = &service.name;
    let claims = health_port(service).map(|port| {
        [Family::V4, Family::V6].map(|family| {
            let (address, protocol) = (family.any(), Protocol::Tcp);
            let front = Front {
                address,
                port,
                protocol,
            };
            // No port of a Service is 0.
            let key = Key {
                service: name.clone(),
                port: 0,
                protocol,
                family,
            };
            (front, (true, key))
        })
    });
    claims.into_iter().flatten()
}

fn families(service: &Service) -> BTreeSet<Family> {
    service.addresses.iter().copied().map(Family::of).collect()
}

fn key(service: &Service, port: &ServicePort, family: Family) -> Key {
    Key {
        service: service.name.clone(),
        port: port.port,
        protocol: port.protocol,
        family,
    }
}

fn keys_of(table: &Table, name: &ServiceName) -> Vec<Key> {
    let first = Key {
        service: name.clone(),
        port: 0,
        protocol: Protocol::Tcp,
        family: Family::V4,
    };
    let from = table.entries.range(first..).map(|(key, _)| key);
    from.take_while(|key| key.service == *name)
        .cloned()
        .collect()
}

/// The fronts that a port of a Service asks for in a family.
fn wanted(
    service: &Service,
    port: &ServicePort,
    family: Family,
) -> impl Iterator<Item = (Front, Way)> {
    let internal = service.addresses.iter().map(|ip| (*ip, Way::Internal));
    let external = service.external_ips.iter().map(|ip| (*ip, Way::External));
    let vips = service
        .balancer
        .iter()
        .filter(|balancer| balancer.mode == BalancerMode::Vip);
    let balancer = vips.map(|balancer| (balancer.ip, Way::Balancer));
    let all = internal.chain(external).chain(balancer);
    let of_family = all.filter(move |(ip, _)| Family::of(*ip) == family);
    let front = |address: IpAddr, port: u16, protocol| Front {
        address,
        port,
        protocol,
    };
    let (number, protocol) = (port.port, port.protocol);
    let fronts = of_family.map(move |(ip, way)| (front(ip, number, protocol), way));
    let node_port = port
        .node_port
        .map(|port| (front(family.any(), port, protocol), Way::NodePort));
    fronts.chain(node_port).filter(|(front, _)| front.port != 0)
}

/// Why a front cannot be had whoever asks.
fn refusal(front: &Front, way: Way, facts: &Facts) -> Option<Why> {
    match way {
        Way::NodePort => None,
        _ if is_special(front.address) => Some(Why::Special),
        Way::External if facts.external_ips == ExternalIps::Refused => Some(Why::External),
        Way::External | Way::Balancer
            if facts.ranges.iter().any(|net| net.contains(&front.address)) =>
        {
            Some(Why::Virtual)
        }
        _ => None,
    }
}

fn claims_of(service: &Service, facts: &Facts) -> Vec<(Front, Claim)> {
    let mut claims: Vec<(Front, Claim)> = health_claims(service).collect();
    for port in &service.ports {
        for family in families(service) {
            let key = key(service, port, family);
            let fronts = wanted(service, port, family);
            let possible = fronts.filter(|(front, way)| refusal(front, *way, facts).is_none());
            claims
                .extend(possible.map(|(front, way)| (front, (way != Way::Internal, key.clone()))));
        }
    }
    claims
}
