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
                let chain = chain_of(&state, front);
                for origin in [Origin::Container, Origin::Host, Origin::Outside] {
                    let wanted = targets(entry, *way, origin);
                    let mixed = chain.clone().filter(|name| name.contains("mixed"));
                    let picks = match &mixed {
                        Some(mixed) => for_origin(&state, mixed, origin),
                        None => chain.clone(),
                    };
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

    /// What is done with the source follows the front, as [`Entry::masquerades`] has it.
    #[test]
    fn what_is_done_with_sources_is_what_the_table_says(local in any::<bool>()) {
        let policy = if local { TrafficPolicy::Local } else { TrafficPolicy::Cluster };
        let (sources, state) = states(&exposed(policy, Affinity::None), endpoints(1, 1));
        for entry in sources.table().entries.values() {
            for (front, way) in &entry.fronts {
                let origins = [Origin::Container, Origin::Host, Origin::Outside];
                let says = origins.map(|origin| entry.masquerades(*way, origin));
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

/// Of a Service that keeps clients: every endpoint that may be picked is asked first whether it knows the client, the lot
/// comes last, and an endpoint's chain remembers the client in the very set that was asked.
#[test]
fn a_client_is_looked_for_at_every_endpoint_before_a_lot_is_drawn() {
    let affinity = Affinity::ClientIp { seconds: 60 };
    let (sources, state) = states(&exposed(TrafficPolicy::Cluster, affinity), endpoints(3, 4));
    for entry in sources.table().entries.values() {
        let front = &entry.fronts[0].0;
        let chain = chain_of(&state, front).expect("somebody picks");
        let (lot, asked) = state.chains[&chain].split_last().expect("there are rules");
        assert!(lot.iter().any(|one| one.drawn_below() == Some(7)));
        let mut found = BTreeSet::new();
        for rule in asked {
            let set = rule.iter().find_map(Expression::set).expect("a lookup");
            let to = rule.iter().find_map(Expression::leads_to).expect("a way");
            let updated = |one: &Expression| (one.name == "dynset").then(|| one.set()).flatten();
            let remembers = state.chains[&to].iter().flatten().find_map(updated);
            assert_eq!(remembers, Some(set));
            found.insert(translates_to(&state, &to));
        }
        let all = entry.cluster.iter().map(|target| socket(target.address));
        assert_eq!(found, all.collect());
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
