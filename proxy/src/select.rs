//! Which endpoints of a Service this node may use: pure, one Service at a time.
//!
//! Two sets are chosen (`pkg/proxy/topology.go` of Kubernetes, KEP-1669, KEP-2433, KEP-3015):
//!
//! - **cluster**: the ready endpoints, or, when their hints tell this node to, those meant for it; if none is ready,
//!   those that are going but still serve.
//! - **local**: the ready ones of this node; if there is none, those of this node that are going but still serve.
//!
//! Hints count only if every ready endpoint has them and one of them means this node (or, failing that, its zone): one
//! that lacks them could get no traffic from anybody.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use weave_model::{
    AddressKind, BalancerMode, Endpoint, Engine, EngineChoice, Protocol, Service, ServicePort,
    Slice,
};

use crate::facts::Facts;
use crate::table::{Entry, Family, Front, LeftOut, MAX_TARGETS, Target, Way, Why};

/// What one port of a Service leads to in one family. `fronts` are the caller's to choose.
pub fn entry<'a>(
    service: &Service,
    port: &ServicePort,
    fronts: Vec<(Front, Way)>,
    family: Family,
    slices: impl IntoIterator<Item = &'a Slice>,
    facts: &Facts,
    left_out: &mut LeftOut,
) -> Entry {
    let known = endpoints(port, family, slices, facts, left_out);
    let cluster = targets(cluster(&known, facts), facts);
    let local = targets(local(&known, facts), facts);
    let mut both = cluster.iter().chain(&local);
    // What is sent to an address of this host from a client's would not come back by the relay; at loopback addresses the
    // host itself is the client.
    let is_host = both.any(|target| facts.addresses.contains(&target.address.ip()));
    let engine = if is_host {
        Engine::Kernel
    } else {
        engine(service, port, facts)
    };
    Entry {
        fronts,
        cluster,
        local,
        any: known
            .values()
            .any(|endpoint| endpoint.ready || going(endpoint)),
        internal: service.internal,
        external: service.external,
        affinity: service.affinity,
        source_ranges: ranges(service, family, facts),
        serving: known
            .values()
            .filter(|endpoint| endpoint.serving)
            .map(|endpoint| endpoint.address)
            .collect(),
        engine,
        balance: service.balance.unwrap_or_default(),
        loopback: port.protocol != Protocol::Sctp && facts.engine != EngineChoice::Kernel,
    }
}

/// Who carries a port's connections: what the Service asks for, if the node lets it and the relay can. The kernel draws
/// lots, so who asks for more asks for the relay.
fn engine(service: &Service, port: &ServicePort, facts: &Facts) -> Engine {
    let by_balance = || service.balance.map(|_| Engine::Relay);
    let wish = service.engine.or_else(by_balance);
    match (facts.engine, port.protocol) {
        (EngineChoice::Kernel, _) | (_, Protocol::Sctp) => Engine::Kernel,
        (EngineChoice::Relay, _) => service.engine.unwrap_or(Engine::Relay),
        (EngineChoice::Auto, _) => wish.unwrap_or_default(),
    }
}

/// How many endpoints of a Service this node has that are ready, by address.
pub fn ready_here<'a>(slices: impl IntoIterator<Item = &'a Slice>, facts: &Facts) -> usize {
    let all = slices.into_iter().flat_map(|slice| &slice.endpoints);
    let ready = all.filter(|endpoint| endpoint.ready && is_local(endpoint, facts));
    ready
        .map(|endpoint| endpoint.address)
        .collect::<BTreeSet<_>>()
        .len()
}

/// Whether nothing behind an address can be another machine's.
pub fn is_special(address: IpAddr) -> bool {
    let link_local = match address {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast() || v4.octets()[0] == 0,
        IpAddr::V6(v6) => v6.is_unicast_link_local() || v6.to_ipv4_mapped().is_some(),
    };
    link_local || address.is_loopback() || address.is_multicast() || address.is_unspecified()
}

/// The endpoints of all slices that can be of use, each once. Of two that say the same address and port, the one on this
/// node counts, else the first. Of too many those stay that are ready, then those that are going but serve.
fn endpoints<'a>(
    port: &ServicePort,
    family: Family,
    slices: impl IntoIterator<Item = &'a Slice>,
    facts: &Facts,
    left_out: &mut LeftOut,
) -> BTreeMap<SocketAddr, &'a Endpoint> {
    let mut known: BTreeMap<SocketAddr, &Endpoint> = BTreeMap::new();
    for slice in slices.into_iter().filter(|slice| is_of(slice, family)) {
        for number in ports(slice, &port.name, port.protocol) {
            for endpoint in &slice.endpoints {
                let at = SocketAddr::new(endpoint.address, number);
                match refusal(at, family, facts) {
                    Some(why) => left_out.add(at, why),
                    None if known.contains_key(&at) && !is_local(endpoint, facts) => {}
                    None => {
                        known.insert(at, endpoint);
                    }
                }
            }
        }
    }
    // Who neither is ready nor serves is nowhere asked for.
    known.retain(|_, endpoint| endpoint.ready || endpoint.serving);
    bounded(known, left_out)
}

fn bounded<'a>(
    known: BTreeMap<SocketAddr, &'a Endpoint>,
    left_out: &mut LeftOut,
) -> BTreeMap<SocketAddr, &'a Endpoint> {
    if known.len() <= MAX_TARGETS {
        return known;
    }
    let mut all: Vec<_> = known.into_iter().collect();
    all.sort_by_key(|(at, endpoint)| (!endpoint.ready, !endpoint.terminating, *at));
    let too_many = all.split_off(MAX_TARGETS);
    too_many
        .iter()
        .for_each(|(at, _)| left_out.add(at, Why::TooMany));
    all.into_iter().collect()
}

fn ports(slice: &Slice, name: &str, protocol: Protocol) -> impl Iterator<Item = u16> {
    let named = slice
        .ports
        .iter()
        .filter(move |port| port.name == name && port.protocol == protocol);
    named.filter_map(|port| port.port)
}

fn is_of(slice: &Slice, family: Family) -> bool {
    match slice.kind {
        AddressKind::V4 => family == Family::V4,
        AddressKind::V6 => family == Family::V6,
        AddressKind::Fqdn => false,
    }
}

/// Why an endpoint cannot be one of a family.
pub fn refusal(at: SocketAddr, family: Family, facts: &Facts) -> Option<Why> {
    let ip = at.ip();
    if Family::of(ip) != family {
        Some(Why::Family)
    } else if at.port() == 0 {
        Some(Why::Port)
    } else if is_special(ip) {
        Some(Why::Special)
    } else if facts.no_endpoints.contains(&ip) {
        Some(Why::Node)
    } else if facts.ranges.iter().any(|range| range.contains(&ip)) {
        Some(Why::Virtual)
    } else {
        None
    }
}

/// Whom policy Cluster may pick.
fn cluster<'a>(
    known: &BTreeMap<SocketAddr, &'a Endpoint>,
    facts: &Facts,
) -> Vec<(SocketAddr, &'a Endpoint)> {
    let ready: Vec<_> = of(known, |endpoint| endpoint.ready);
    if ready.is_empty() {
        return of(known, going);
    }
    let meant: [&dyn Fn(&Endpoint) -> bool; 2] = [
        &|endpoint| endpoint.for_nodes.contains(&facts.node),
        &|endpoint| {
            facts
                .zone
                .as_ref()
                .is_some_and(|zone| endpoint.for_zones.contains(zone))
        },
    ];
    let hinted: [fn(&Endpoint) -> bool; 2] = [
        |endpoint| !endpoint.for_nodes.is_empty(),
        |endpoint| !endpoint.for_zones.is_empty(),
    ];
    for (meant, hinted) in meant.into_iter().zip(hinted) {
        let all = ready.iter().all(|(_, endpoint)| hinted(endpoint));
        if all && ready.iter().any(|(_, endpoint)| meant(endpoint)) {
            return ready
                .into_iter()
                .filter(|(_, endpoint)| meant(endpoint))
                .collect();
        }
    }
    ready
}

/// Whom policy Local may pick.
fn local<'a>(
    known: &BTreeMap<SocketAddr, &'a Endpoint>,
    facts: &Facts,
) -> Vec<(SocketAddr, &'a Endpoint)> {
    let ready = of(known, |endpoint| {
        is_local(endpoint, facts) && endpoint.ready
    });
    if ready.is_empty() {
        of(known, |endpoint| {
            is_local(endpoint, facts) && going(endpoint)
        })
    } else {
        ready
    }
}

fn of<'a>(
    known: &BTreeMap<SocketAddr, &'a Endpoint>,
    which: impl Fn(&Endpoint) -> bool,
) -> Vec<(SocketAddr, &'a Endpoint)> {
    let all = known.iter().map(|(at, endpoint)| (*at, *endpoint));
    all.filter(|(_, endpoint)| which(endpoint)).collect()
}

fn targets(chosen: Vec<(SocketAddr, &Endpoint)>, facts: &Facts) -> Vec<Target> {
    let target = |(address, endpoint): (SocketAddr, &Endpoint)| Target {
        address,
        local: is_local(endpoint, facts),
    };
    chosen.into_iter().map(target).collect()
}

const fn going(endpoint: &Endpoint) -> bool {
    endpoint.serving && endpoint.terminating
}

fn is_local(endpoint: &Endpoint, facts: &Facts) -> bool {
    endpoint.node.as_ref() == Some(&facts.node)
}

/// Ranges of the other family mean nobody of this one, so they stay as a range that nobody is in only if there is no
/// other: a Service with IPv4 ranges alone lets nobody in over IPv6.
///
/// A balancer's address that a node has on a device of its own, as some have it, is also whom the node's packets to it come
/// from. So it is let in where the node is in range, and no other address of the node (`allowFromNode` of kube-proxy).
fn ranges(service: &Service, family: Family, facts: &Facts) -> Vec<IpNet> {
    let of_family = |net: &&IpNet| Family::of(net.addr()) == family;
    let mut here: Vec<IpNet> = service
        .source_ranges
        .iter()
        .filter(of_family)
        .copied()
        .collect();
    if here.is_empty() {
        return service.source_ranges.clone();
    }
    let mut nodes = facts.addresses.iter();
    if nodes.any(|node| here.iter().any(|range| range.contains(node))) {
        let vips = service
            .balancer
            .iter()
            .filter(|one| one.mode == BalancerMode::Vip);
        let own = vips.map(|one| IpNet::from(one.ip));
        here.extend(own.filter(|own| of_family(&own)));
    }
    here
}
