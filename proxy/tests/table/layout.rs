//! The rules give every endpoint the same chance: the number that is drawn has as many values as there are endpoints, and
//! each value has one of them.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use proptest::prelude::*;
use weave_model::{
    Affinity, BalancerIp, BalancerMode, Protocol, Service, ServiceKind, ServicePort, Slice,
    TrafficPolicy,
};
use weave_proxy::rules::Rules;
use weave_proxy::sources::{Change, Sources};
use weave_proxy::table::{Entry, Front, Origin, Target, Way};

use crate::nft::{Data, Expression, State};
use crate::{facts, http, ip, on, service, slice};

const ORIGINS: [Origin; 3] = [Origin::Container, Origin::Host, Origin::Outside];

/// A Service with every kind of front, `here` endpoints on this node and `there` on another.
fn exposed(policy: TrafficPolicy, affinity: Affinity) -> Service {
    Service {
        kind: ServiceKind::LoadBalancer,
        external: policy,
        affinity,
        ports: vec![ServicePort {
            node_port: Some(30_080),
            ..http()
        }],
        addresses: vec![ip("10.96.0.1"), ip("fd96::1")],
        balancer: vec![BalancerIp {
            ip: ip("203.0.113.5"),
            mode: BalancerMode::Vip,
        }],
        ..service("web", "10.96.0.1")
    }
}

fn endpoints(here: u16, there: u16) -> [Slice; 2] {
    let place = |number: u16| if number < here { "n1" } else { "n2" };
    let all = || 0..here + there;
    let v4 = all().map(|n| on(place(n), &format!("10.32.{}.{}", n / 250, n % 250 + 1)));
    let v6 = all().map(|n| on(place(n), &format!("fd32::{:x}", n + 1)));
    let v6 = Slice {
        name: "web-6".to_owned(),
        kind: weave_model::AddressKind::V6,
        ..slice("web", v6.collect())
    };
    [slice("web", v4.collect()), v6]
}

/// Fields of a key or a value, each with zeros up to four bytes.
fn padded(parts: &[&[u8]]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for part in parts {
        bytes.extend_from_slice(part);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    bytes
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

fn key(front: &Front) -> Vec<u8> {
    let protocol = [front.protocol.number()];
    let port = front.port.to_be_bytes();
    if front.is_node_port() {
        padded(&[&protocol, &port])
    } else {
        padded(&[&octets(front.address), &protocol, &port])
    }
}

fn socket(at: SocketAddr) -> Vec<u8> {
    padded(&[&octets(at.ip()), &at.port().to_be_bytes()])
}

/// The map of a front for a purpose.
fn map(front: &Front, word: &str) -> String {
    let beginning = if front.is_node_port() { "port-" } else { "" };
    let digit = if front.address.is_ipv4() { 4 } else { 6 };
    format!("{beginning}{word}{digit}")
}

/// The chain that decides for a front.
fn chain_of(state: &State, front: &Front) -> Option<String> {
    match state.sets[&map(front, "fronts")].get(&key(front)) {
        Some(Data::Chain(chain)) => Some(chain.clone()),
        _ => None,
    }
}

/// Which chain of those that a chain leads to is for packets of an origin: the last is for whom no rule before was.
fn for_origin(state: &State, chain: &str, origin: Origin) -> Option<String> {
    let ways = state.chains[chain]
        .iter()
        .filter_map(|rule| rule.iter().find_map(Expression::leads_to));
    let ways: Vec<String> = ways.collect();
    match origin {
        Origin::Outside => ways.last().cloned(),
        _ => ways.first().cloned(),
    }
}

/// The chain that picks for packets of an origin: the front's own, or the one of two that it leads them to.
fn picks(state: &State, front: &Front, origin: Origin) -> Option<String> {
    let chain = chain_of(state, front)?;
    if is_mixed(&chain) {
        for_origin(state, &chain, origin)
    } else {
        Some(chain)
    }
}

/// Whether a chain leads those from outside elsewhere than the others.
fn is_mixed(chain: &str) -> bool {
    chain.contains("mixed")
}

/// Every endpoint that a chain picks, once for each number that may be drawn.
fn slots(state: &State, chain: &str, front: &Front) -> Vec<Vec<u8>> {
    let expressions = || state.chains[chain].iter().flatten();
    let below = expressions().find_map(Expression::drawn_below);
    let below = below.expect("a number is drawn at random");
    let looked_up = expressions().rfind(|one| one.set().is_some());
    let looked_up = looked_up.expect("it is looked up");
    let slot = |number: u32| match &looked_up.anonymous {
        // Of a Service that keeps clients: a chain for each endpoint, which translates.
        Some(elements) => match &elements[&number.to_ne_bytes().to_vec()] {
            Data::Chain(to) => translates_to(state, to),
            other => panic!("{other:?}"),
        },
        None => {
            let set = looked_up.set().expect("it is a lookup");
            let number = number.to_ne_bytes();
            let place = [key(front), number.to_vec()].concat();
            match &state.sets[&set][&place] {
                Data::Value(to) => to.clone(),
                other => panic!("{other:?}"),
            }
        }
    };
    // One more than can be drawn would be an endpoint that nobody gets.
    if let Some(elements) = &looked_up.anonymous {
        assert_eq!(elements.len(), below as usize);
    } else {
        let set = &state.sets[&looked_up.set().expect("it is a lookup")];
        let mine = set.keys().filter(|all| all.starts_with(&key(front)));
        assert_eq!(mine.count(), below as usize);
    }
    (0..below).map(slot).collect()
}

/// Where the chain of an endpoint leads: the address and the port that its rules load.
fn translates_to(state: &State, chain: &str) -> Vec<u8> {
    let rule = state.chains[chain].last().expect("it translates");
    let loaded = rule.iter().filter(|one| one.name == "immediate");
    let values = loaded.map(|one| {
        let data = &one.attributes[&2];
        // One attribute with the value.
        data[4..usize::from(u16::from_ne_bytes([data[0], data[1]]))].to_vec()
    });
    let values: Vec<Vec<u8>> = values.collect();
    padded(&values.iter().map(Vec::as_slice).collect::<Vec<_>>())
}

/// The endpoint that a rule asks whether it knows the client: it leads to it, and there the client is remembered in the
/// very set that was asked, before anything is translated.
fn asked(state: &State, rule: &[Expression], front: &Front) -> Vec<u8> {
    let lookup = rule.iter().find(|one| one.name == "lookup");
    let lookup = lookup.expect("it looks up");
    let inverted = lookup.attributes.get(&5);
    assert!(inverted.is_none_or(|flags| *flags == [0; 4]), "{rule:?}");
    let to = rule.iter().find_map(Expression::leads_to);
    let to = to.expect("it leads somewhere");
    let (_, before) = state.chains[&to].split_last().expect("it translates");
    let remembers = |rule: &&Vec<Expression>| rule.iter().any(|one| one.name == "dynset");
    let remembers = before.iter().find(remembers).expect("it remembers");
    let set = remembers.iter().find_map(Expression::set);
    assert_eq!(set, lookup.set(), "{to}");
    // Where the source address begins in a header.
    let source: u32 = if front.address.is_ipv4() { 12 } else { 8 };
    for rule in [rule, remembers.as_slice()] {
        let loaded = rule.iter().find(|one| one.name == "payload");
        let loaded = &loaded.expect("a field of the packet").attributes;
        assert_eq!(loaded[&3], source.to_be_bytes(), "{to}");
    }
    translates_to(state, &to)
}

fn targets(entry: &Entry, way: Way, origin: Origin) -> &[Target] {
    if entry.uses_local(way, origin) {
        &entry.local
    } else {
        &entry.cluster
    }
}

fn states(service: &Service, slices: [Slice; 2]) -> (Sources, State) {
    let mut sources = Sources::default();
    let ranges = ["10.96.0.0/16", "fd96::/112"].map(|net| net.parse().unwrap());
    let containers = ["10.32.0.0/12", "fd32::/48"].map(|net| net.parse().unwrap());
    sources.handle(Change::Facts(weave_proxy::facts::Facts {
        ranges: ranges.to_vec(),
        containers: containers.to_vec(),
        ..facts()
    }));
    sources.handle(Change::Service(service.clone()));
    for slice in slices {
        sources.handle(Change::Slice(slice));
    }
    let (table, _) = sources.build();
    let (_, batch) = Rules::new(&table, sources.facts());
    let mut state = State::default();
    state.apply(&batch);
    (sources, state)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    /// By each front and from each origin, every endpoint that may be picked has one slot, and nobody else has any.
    #[test]
    fn every_endpoint_has_one_slot_and_each_slot_is_drawn_alike(
        here in 0..40u16, there in 0..300u16, local in any::<bool>(), keeps in any::<bool>(),
    ) {
        let policy = if local { TrafficPolicy::Local } else { TrafficPolicy::Cluster };
        let affinity = if keeps { Affinity::ClientIp { seconds: 60 } } else { Affinity::None };
        let service = exposed(policy, affinity);
        let (sources, state) = states(&service, endpoints(here, there));
        for entry in sources.table().entries.values() {
            for (front, way) in &entry.fronts {
                let mixed = chain_of(&state, front).filter(|name| is_mixed(name));
                for origin in ORIGINS {
                    let wanted = targets(entry, *way, origin);
                    let picks = picks(&state, front, origin);
                    if wanted.is_empty() {
                        // Nothing picks, or only what the first rules let by.
                        let only = picks.filter(|_| mixed.is_none());
                        let last = mixed.as_ref().and_then(|mixed| for_origin(&state, mixed, Origin::Host));
                        prop_assert!(only.is_none() && (mixed.is_none() || last.is_some()));
                        continue;
                    }
                    let slots = slots(&state, &picks.expect("somebody picks"), front);
                    prop_assert_eq!(slots.len(), wanted.len());
                    let all: BTreeSet<Vec<u8>> = slots.into_iter().collect();
                    let expected: BTreeSet<Vec<u8>> = wanted.iter().map(|target| socket(target.address)).collect();
                    prop_assert_eq!(all, expected, "{:?} {:?}", front, origin);
                }
            }
        }
    }

    /// Of a Service that keeps clients, by each front and from each origin: every endpoint that may be picked, and nobody
    /// else, is asked first whether it knows the client, and the lot comes last.
    #[test]
    fn a_client_is_looked_for_at_every_endpoint_before_a_lot_is_drawn(
        here in 0..20u16, there in 0..20u16, local in any::<bool>(), inside in any::<bool>(),
    ) {
        let policy = |local| if local { TrafficPolicy::Local } else { TrafficPolicy::Cluster };
        let affinity = Affinity::ClientIp { seconds: 60 };
        let service = Service { internal: policy(inside), ..exposed(policy(local), affinity) };
        let (sources, state) = states(&service, endpoints(here, there));
        for entry in sources.table().entries.values() {
            for (front, way) in &entry.fronts {
                for origin in ORIGINS {
                    let wanted = targets(entry, *way, origin);
                    let picks = picks(&state, front, origin);
                    let rules = picks.map_or_else(Vec::new, |picks| state.chains[&picks].clone());
                    let Some((lot, asking)) = rules.split_last() else {
                        prop_assert!(wanted.is_empty(), "{:?} {:?}", front, origin);
                        continue;
                    };
                    let below = lot.iter().find_map(Expression::drawn_below);
                    prop_assert_eq!(below, Some(wanted.len() as u32));
                    let asked = asking.iter().map(|rule| asked(&state, rule, front));
                    let asked: Vec<Vec<u8>> = asked.collect();
                    let expected = wanted.iter().map(|target| socket(target.address));
                    prop_assert_eq!(asked, expected.collect::<Vec<_>>(), "{:?} {:?}", front, origin);
                }
            }
        }
    }

    /// What is done with the source follows the front, as [`Entry::masquerades`] has it.
    #[test]
    fn what_is_done_with_sources_is_what_the_table_says(local in any::<bool>()) {
        let policy = if local { TrafficPolicy::Local } else { TrafficPolicy::Cluster };
        let (sources, state) = states(&exposed(policy, Affinity::None), endpoints(1, 1));
        for entry in sources.table().entries.values() {
            for (front, way) in &entry.fronts {
                let says = ORIGINS.map(|origin| entry.masquerades(*way, origin));
                let chain = match says {
                    [true, true, true] => "masked",
                    [false, true, true] => "foreign",
                    [false, true, false] => "host",
                    other => panic!("{other:?}"),
                };
                let found = &state.sets[&map(front, "sources")][&key(front)];
                prop_assert_eq!(found, &Data::Chain(chain.to_owned()));
            }
        }
    }
}

#[test]
fn a_protocol_is_part_of_a_front() {
    let ports = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp]
        .map(|protocol| ServicePort { protocol, ..http() });
    let web = Service {
        ports: ports.to_vec(),
        ..service("web", "10.96.0.1")
    };
    let (_, state) = states(&web, endpoints(1, 1));
    let fronts: BTreeSet<u8> = state.sets["closed4"].keys().map(|key| key[4]).collect();
    assert_eq!(fronts, [6, 17, 132].into());
}
