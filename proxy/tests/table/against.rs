//! Any Service and any slices: the table and the naive reading of the contract agree about every packet.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use proptest::prelude::*;
use weave_model::{
    AddressKind, BalancerIp, BalancerMode, Endpoint, Protocol, Service, ServiceKind, ServicePort,
    Slice, SlicePort, TrafficPolicy,
};
use weave_proxy::facts::{ExternalIps, Facts};
use weave_proxy::sources::{Change, Sources};
use weave_proxy::table::{Diff, Front, Origin, Table, Verdict};

use crate::naive::{self, Outcome, Packet};
use crate::{facts, ip, service};

fn policy() -> impl Strategy<Value = TrafficPolicy> {
    prop_oneof![Just(TrafficPolicy::Cluster), Just(TrafficPolicy::Local)]
}

fn names(words: &'static [&'static str]) -> impl Strategy<Value = BTreeSet<String>> {
    proptest::sample::subsequence(words, 0..=words.len())
        .prop_map(|some| some.into_iter().map(str::to_owned).collect())
}

/// Addresses that no endpoint may have.
const ODD: [&str; 12] = [
    "127.0.0.1",
    "169.254.169.254",
    "239.1.2.3",
    "0.0.0.7",
    "192.0.2.2",
    "10.96.0.1",
    "::1",
    "fe80::7",
    "ff02::1",
    "::",
    "::ffff:10.32.0.1",
    "fd96::1",
];

/// Addresses of endpoints: mostly usable ones of either family.
fn address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        8 => (0..12u8).prop_map(|host| IpAddr::from([10, 32, 0, host])),
        8 => (0..12u8).prop_map(|host| ip(&format!("fd32::{host:x}"))),
        1 => proptest::sample::select(&ODD[..]).prop_map(ip),
    ]
}

/// Mostly hinted or mostly not, so that both happen.
fn endpoint() -> impl Strategy<Value = Endpoint> {
    let node = prop_oneof![
        Just(None),
        Just(Some("n1".to_owned())),
        Just(Some("n2".to_owned()))
    ];
    let conditions = any::<(bool, bool, bool)>();
    let hints = prop_oneof![
        (names(&["n1", "n2"]), names(&["z1", "z2"])),
        (Just(["n1".to_owned()].into()), names(&["z1", "z2"])),
        (
            Just(["n2".to_owned()].into()),
            Just(["z1".to_owned()].into())
        ),
    ];
    (address(), node, conditions, hints).prop_map(
        |(address, node, conditions, (for_nodes, for_zones))| {
            let (ready, serving, terminating) = conditions;
            Endpoint {
                address,
                node,
                ready,
                serving,
                terminating,
                for_nodes,
                for_zones,
            }
        },
    )
}

/// The ports of Services: two of one number, one of each protocol, and one name that two protocols share.
const PORTS: [(&str, Protocol, u16, Option<u16>); 5] = [
    ("", Protocol::Tcp, 80, Some(30_080)),
    ("dns", Protocol::Udp, 53, None),
    ("dns", Protocol::Tcp, 53, Some(30_053)),
    ("more", Protocol::Tcp, 81, None),
    ("sctp", Protocol::Sctp, 9, Some(30_080)),
];

/// The endpoints' port for one of these, or for another.
fn port() -> impl Strategy<Value = SlicePort> {
    let named = prop_oneof![
        6 => proptest::sample::select(&PORTS[..]).prop_map(|port| (port.0, port.1)),
        1 => Just(("other", Protocol::Tcp)),
        1 => Just(("", Protocol::Udp)),
    ];
    let number = prop_oneof![Just(None), Just(Some(8080)), Just(Some(8081))];
    (named, number).prop_map(|((name, protocol), port)| SlicePort {
        name: name.to_owned(),
        protocol,
        port,
    })
}

/// Of either family or of names, and mostly with endpoints that are of the same.
fn slice() -> impl Strategy<Value = Slice> {
    let kind = prop_oneof![
        4 => Just(AddressKind::V4),
        4 => Just(AddressKind::V6),
        1 => Just(AddressKind::Fqdn)
    ];
    let ports = proptest::collection::vec(port(), 1..5);
    let endpoints = proptest::collection::vec(endpoint(), 0..12);
    (0..6u8, kind, ports, endpoints).prop_map(|(name, kind, ports, mut endpoints)| {
        // One of the other family is left in, or all of a slice of names.
        let fits = |endpoint: &Endpoint| (kind == AddressKind::V6) == endpoint.address.is_ipv6();
        let other = endpoints.iter().position(|endpoint| !fits(endpoint));
        let mut place = 0..;
        endpoints.retain(|endpoint| {
            let here = place.next();
            fits(endpoint) || kind == AddressKind::Fqdn || (name == 0 && here == other)
        });
        Slice {
            name: name.to_string(),
            service: "web".parse().unwrap(),
            kind,
            ports,
            endpoints,
        }
    })
}

/// Slices with names of their own.
fn slices() -> impl Strategy<Value = Vec<Slice>> {
    proptest::collection::vec(slice(), 0..5).prop_map(|mut slices| {
        slices.sort_by(|a, b| a.name.cmp(&b.name));
        slices.dedup_by(|a, b| a.name == b.name);
        slices
    })
}

fn some(all: &'static [&'static str]) -> impl Strategy<Value = Vec<&'static str>> {
    proptest::sample::subsequence(all, 0..=all.len())
}

/// What is ignored, seldom; the rest of the time it is a Service with all it may have.
fn kind() -> impl Strategy<Value = (ServiceKind, bool, bool)> {
    prop_oneof![
        20 => Just((ServiceKind::LoadBalancer, false, false)),
        1 => Just((ServiceKind::ExternalName("example.org".to_owned()), false, false)),
        1 => Just((ServiceKind::ClusterIp, true, false)),
        1 => Just((ServiceKind::ClusterIp, false, true)),
    ]
}

fn any_service() -> impl Strategy<Value = Service> {
    let addresses = prop_oneof![
        2 => Just(vec!["10.96.0.1", "fd96::1"]),
        1 => Just(vec!["10.96.0.1"]),
        1 => Just(vec!["fd96::1"])
    ];
    let ranges = some(&[
        "10.0.0.0/8",
        "192.0.2.0/24",
        "198.51.100.0/24",
        "fd00::/8",
        "2001:db8::/48",
    ]);
    let external = some(&["203.0.113.9", "2001:db8:9::9", "127.0.0.1", "10.96.0.7"]);
    let balancer = some(&["203.0.113.5", "2001:db8:5::5", "203.0.113.9", "fd96::5"]);
    let ports = proptest::sample::subsequence(&PORTS[..], 1..=PORTS.len());
    let front = (addresses, external, balancer, any::<bool>());
    (front, policy(), policy(), ranges, ports, kind()).prop_map(
        |((addresses, external_ips, balancer, proxy), internal, external, ranges, ports, kind)| {
            // The first of them is a balancer's that sends from addresses of its own, half of the time.
            let mode = |place| match (place, proxy) {
                (0, true) => BalancerMode::Proxy,
                _ => BalancerMode::Vip,
            };
            let balancer = balancer.iter().enumerate();
            let ports = ports
                .iter()
                .map(|(name, protocol, port, node_port)| ServicePort {
                    name: (*name).to_owned(),
                    protocol: *protocol,
                    port: *port,
                    node_port: *node_port,
                });
            let (kind, headless, other_proxy) = kind;
            Service {
                kind,
                headless,
                other_proxy,
                internal,
                external,
                addresses: addresses.into_iter().map(ip).collect(),
                external_ips: external_ips.into_iter().map(ip).collect(),
                source_ranges: ranges.iter().map(|text| text.parse().unwrap()).collect(),
                balancer: balancer
                    .map(|(place, text)| BalancerIp {
                        ip: ip(text),
                        mode: mode(place),
                    })
                    .collect(),
                ports: ports.collect(),
                ..service("web", "10.96.0.1")
            }
        },
    )
}

/// A node with addresses of both families.
fn any_facts() -> impl Strategy<Value = Facts> {
    let external = prop_oneof![Just(ExternalIps::Refused), Just(ExternalIps::Taken)];
    (external, any::<bool>()).prop_map(|(external_ips, zoned)| Facts {
        external_ips,
        zone: facts().zone.filter(|_| zoned),
        addresses: [ip("192.0.2.1"), ip("2001:db8::1")].into(),
        ranges: vec![
            "10.96.0.0/16".parse().unwrap(),
            "fd96::/112".parse().unwrap(),
        ],
        ..facts()
    })
}

/// What the table says of a packet: the one front it is for, if there is one, decides.
fn tabled(table: &Table, facts: &Facts, packet: &Packet) -> Outcome {
    let to_node = facts.addresses.contains(&packet.to.ip());
    let is_for = |front: &Front| {
        let there = if front.is_node_port() {
            to_node && front.address.is_ipv4() == packet.to.is_ipv4()
        } else {
            front.address == packet.to.ip()
        };
        there && front.port == packet.to.port() && front.protocol == packet.protocol
    };
    let all = table.entries.values().flat_map(|entry| {
        let fronts = entry.fronts.iter().filter(|(front, _)| is_for(front));
        fronts.map(move |(_, way)| (entry, *way))
    });
    let found: Vec<_> = all.collect();
    assert!(found.len() <= 1, "a packet is for one front: {found:?}");
    let Some((entry, way)) = found.first() else {
        return Outcome::NotOurs;
    };
    match entry.verdict(*way, packet.origin, packet.source) {
        Verdict::Pick(targets) => Outcome::Pick {
            of: targets.iter().map(|target| target.address).collect(),
            masqueraded: entry.masquerades(*way, packet.origin),
        },
        Verdict::Drop => Outcome::Drop,
        Verdict::Reject => Outcome::Reject,
    }
}

/// Packets of every origin to every address, port and protocol that could be a front, and to some that cannot.
fn packets() -> Vec<Packet> {
    let origins = [
        (Origin::Container, ["10.33.0.9", "fd32::99"]),
        (Origin::Host, ["192.0.2.1", "2001:db8::1"]),
        (Origin::Host, ["203.0.113.5", "2001:db8:5::5"]),
        (Origin::Outside, ["198.51.100.7", "2001:db8::7"]),
        (Origin::Outside, ["203.0.113.77", "2001:470::7"]),
    ];
    let addresses = [
        "10.96.0.1",
        "10.96.0.2",
        "10.96.0.7",
        "127.0.0.1",
        "192.0.2.1",
        "203.0.113.5",
        "203.0.113.9",
        "2001:db8::1",
        "2001:db8:5::5",
        "2001:db8:9::9",
        "fd96::1",
        "fd96::5",
    ];
    let mut packets = Vec::new();
    for (origin, sources) in origins {
        for to in addresses.map(ip) {
            for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
                for port in [9, 53, 80, 81, 30_053, 30_080] {
                    packets.push(Packet {
                        origin,
                        source: ip(sources[usize::from(to.is_ipv6())]),
                        to: SocketAddr::new(to, port),
                        protocol,
                    });
                }
            }
        }
    }
    packets
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn the_table_does_what_the_contract_says(service in any_service(), slices in slices(), facts in any_facts()) {
        let mut sources = Sources::default();
        sources.handle(Change::Facts(facts.clone()));
        sources.handle(Change::Service(service.clone()));
        slices.iter().for_each(|slice| sources.handle(Change::Slice(slice.clone())));
        let (table, _) = sources.build();
        for packet in packets() {
            let expected = naive::outcome(&service, &slices, &facts, &packet);
            prop_assert_eq!(tabled(&table, &facts, &packet), expected, "{:?}", packet);
        }
    }

    /// However the reports came, the table is that of all of them at once, and differences lead from one to the next.
    #[test]
    fn reports_one_by_one_make_the_same_table(
        services in proptest::collection::vec((0..4u8, 0..3u8, any::<bool>()), 1..20),
        slices in proptest::collection::vec((slice(), 0..4u8, any::<bool>()), 0..20),
    ) {
        let mut changes: Vec<Change> = Vec::new();
        for (name, vip, there) in services {
            let name = format!("s{name}");
            changes.push(if there {
                Change::Service(service(&name, &format!("10.96.0.{vip}")))
            } else {
                Change::NoService(name.parse().unwrap())
            });
        }
        for (place, (slice, name, there)) in slices.into_iter().enumerate() {
            let service: weave_model::ServiceName = format!("s{name}").parse().unwrap();
            let change = if there {
                Change::Slice(Slice { service, ..slice })
            } else {
                Change::NoSlice(service, slice.name)
            };
            let place = (place * 2).min(changes.len());
            changes.insert(place, change);
        }
        let (mut stepwise, mut at_once) = (Sources::default(), Sources::default());
        for sources in [&mut stepwise, &mut at_once] {
            sources.handle(Change::Facts(facts()));
        }
        let mut before = Table::default();
        for change in changes {
            at_once.handle(change.clone());
            stepwise.handle(change);
            let (after, diff) = stepwise.build();
            prop_assert_eq!(sorted(diff), sorted(Diff::between(&before, &after)));
            before = (*after).clone();
        }
        prop_assert_eq!(&*at_once.build().0, &before);
    }
}

fn sorted(mut diff: Diff) -> Diff {
    diff.removed.sort_by(|a, b| a.0.cmp(&b.0));
    diff.changed.sort_by(|a, b| a.0.cmp(&b.0));
    diff.added.sort_by(|a, b| a.0.cmp(&b.0));
    diff
}
