//! Any Service and any slices: the table and the naive reading of the contract agree.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use proptest::prelude::*;
use weave_model::{
    AddressKind, BalancerIp, BalancerMode, Endpoint, Protocol, Service, ServiceKind, ServicePort,
    Slice, SlicePort, TrafficPolicy,
};
use weave_proxy::sources::{Change, Sources};
use weave_proxy::table::{Diff, Origin, Table, Verdict, Way};

use crate::naive::{self, Outcome};
use crate::{facts, ip, service};

fn policy() -> impl Strategy<Value = TrafficPolicy> {
    prop_oneof![Just(TrafficPolicy::Cluster), Just(TrafficPolicy::Local)]
}

fn names(words: &'static [&'static str]) -> impl Strategy<Value = BTreeSet<String>> {
    proptest::sample::subsequence(words, 0..=words.len())
        .prop_map(|some| some.into_iter().map(str::to_owned).collect())
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
    (0..12u8, node, conditions, hints).prop_map(
        |(host, node, conditions, (for_nodes, for_zones))| {
            let (ready, serving, terminating) = conditions;
            Endpoint {
                address: IpAddr::V4(Ipv4Addr::new(10, 32, 0, host)),
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

fn port() -> impl Strategy<Value = SlicePort> {
    let name = prop_oneof![3 => Just(""), 1 => Just("other")];
    let protocol = prop_oneof![3 => Just(Protocol::Tcp), 1 => Just(Protocol::Udp)];
    let number = prop_oneof![Just(None), Just(Some(8080)), Just(Some(8081))];
    (name, protocol, number).prop_map(|(name, protocol, port)| SlicePort {
        name: name.to_owned(),
        protocol,
        port,
    })
}

fn slice() -> impl Strategy<Value = Slice> {
    let kind = prop_oneof![
        6 => Just(AddressKind::V4),
        1 => Just(AddressKind::V6),
        1 => Just(AddressKind::Fqdn)
    ];
    let ports = proptest::collection::vec(port(), 1..3);
    let endpoints = proptest::collection::vec(endpoint(), 0..8);
    (0..5u8, kind, ports, endpoints).prop_map(|(name, kind, ports, endpoints)| Slice {
        name: name.to_string(),
        service: "web".parse().unwrap(),
        kind,
        ports,
        endpoints,
    })
}

/// Slices with names of their own.
fn slices() -> impl Strategy<Value = Vec<Slice>> {
    proptest::collection::vec(slice(), 0..4).prop_map(|mut slices| {
        slices.sort_by(|a, b| a.name.cmp(&b.name));
        slices.dedup_by(|a, b| a.name == b.name);
        slices
    })
}

fn any_service() -> impl Strategy<Value = Service> {
    let ranges =
        proptest::sample::subsequence(vec!["10.0.0.0/8", "198.51.100.0/24", "fd00::/8"], 0..=3);
    (policy(), policy(), ranges).prop_map(|(internal, external, ranges)| Service {
        kind: ServiceKind::LoadBalancer,
        internal,
        external,
        source_ranges: ranges.iter().map(|text| text.parse().unwrap()).collect(),
        balancer: vec![BalancerIp {
            ip: ip("203.0.113.5"),
            mode: BalancerMode::Vip,
        }],
        ports: vec![ServicePort {
            name: String::new(),
            protocol: Protocol::Tcp,
            port: 80,
            node_port: Some(30_080),
        }],
        ..service("web", "10.96.0.1")
    })
}

fn tabled(verdict: Verdict<'_>) -> Outcome {
    match verdict {
        Verdict::Pick(targets) => {
            Outcome::Pick(targets.iter().map(|target| target.address).collect())
        }
        Verdict::Drop => Outcome::Drop,
        Verdict::Reject => Outcome::Reject,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn the_table_does_what_the_contract_says(service in any_service(), slices in slices()) {
        let mut sources = Sources::default();
        sources.handle(Change::Facts(facts()));
        sources.handle(Change::Service(service.clone()));
        slices.iter().for_each(|slice| sources.handle(Change::Slice(slice.clone())));
        let (table, _) = sources.build();
        let entry = table.entries.values().next().unwrap();
        let origins = [
            (Origin::Container, ip("10.33.0.9")),
            (Origin::Host, ip("192.0.2.1")),
            (Origin::Outside, ip("198.51.100.7")),
            (Origin::Outside, ip("203.0.113.77")),
        ];
        for way in [Way::Internal, Way::Balancer, Way::NodePort] {
            for (origin, source) in origins {
                let expected = naive::outcome(&service, &service.ports[0], &slices, &facts(), (way, origin, source));
                prop_assert_eq!(tabled(entry.verdict(way, origin, source)), expected, "{:?} {:?}", way, origin);
            }
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
