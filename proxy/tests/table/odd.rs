//! Input that nobody means well: left out or bounded, told once, and the rest serves as if it were not there.

use std::net::{IpAddr, Ipv6Addr};

use proptest::prelude::*;
use weave_model::{AddressKind, Endpoint, Service, Slice};
use weave_proxy::facts::Facts;
use weave_proxy::rules::Rules;
use weave_proxy::sources::{Change, Sources};
use weave_proxy::table::{LeftOut, MAX_REFUSED, MAX_TARGETS, Origin, Table, Way, Why};

use crate::{facts, ip, on, outcome, service, slice};

const GOOD4: &str = "10.32.0.2";
const GOOD6: &str = "fd32::2";

/// A Service of both families on a node that has addresses of both.
fn sources(slices: Vec<Slice>) -> Sources {
    let mut sources = Sources::default();
    sources.handle(Change::Facts(Facts {
        no_endpoints: [ip("192.0.2.1"), ip("192.0.2.2"), ip("2001:db8::2")].into(),
        ranges: vec![
            "10.96.0.0/16".parse().unwrap(),
            "fd96::/112".parse().unwrap(),
        ],
        ..facts()
    }));
    sources.handle(Change::Service(Service {
        addresses: vec![ip("10.96.0.1"), ip("fd96::1")],
        ..service("web", "10.96.0.1")
    }));
    for slice in slices {
        sources.handle(Change::Slice(slice));
    }
    sources
}

fn of(kind: AddressKind, endpoints: Vec<Endpoint>) -> Slice {
    Slice {
        name: format!("{kind:?}"),
        kind,
        ..slice("web", endpoints)
    }
}

fn web(table: &Table) -> &LeftOut {
    &table.refused[&"web".parse().unwrap()]
}

/// Whom each family of the Service picks.
fn picked(table: &Table) -> Vec<Vec<String>> {
    let entries = table.entries.values();
    let all = entries.map(|entry| outcome(entry, Way::Internal, Origin::Container));
    all.collect()
}

#[test]
fn addresses_of_either_family_that_can_be_nobody_s_are_left_out() {
    let odd = [
        ("127.0.0.1", Why::Special),
        ("127.255.255.254", Why::Special),
        ("169.254.0.1", Why::Special),
        ("169.254.169.254", Why::Special),
        ("224.0.0.1", Why::Special),
        ("239.255.255.250", Why::Special),
        ("255.255.255.255", Why::Special),
        ("0.0.0.0", Why::Special),
        ("0.1.2.3", Why::Special),
        ("192.0.2.1", Why::Node),
        ("192.0.2.2", Why::Node),
        ("10.96.3.4", Why::Virtual),
        ("fd32::9", Why::Family),
        ("::1", Why::Special),
        ("::", Why::Special),
        ("fe80::1", Why::Special),
        ("febf::1", Why::Special),
        ("ff02::1", Why::Special),
        ("ff0e::1", Why::Special),
        ("::ffff:127.0.0.1", Why::Special),
        ("::ffff:10.32.0.9", Why::Special),
        ("2001:db8::2", Why::Node),
        ("fd96::7", Why::Virtual),
        ("10.32.0.9", Why::Family),
    ];
    for (address, reason) in odd {
        // The wrong family is that of the slice, so such an address stands in a slice of the other.
        let v6 = ip(address).is_ipv6() != (reason == Why::Family);
        let (mut four, mut six) = (vec![on("n1", GOOD4)], vec![on("n1", GOOD6)]);
        let into = if v6 { &mut six } else { &mut four };
        into.insert(0, on("n2", address));
        let slices = vec![of(AddressKind::V4, four), of(AddressKind::V6, six)];
        let table = sources(slices).build().0;
        let why: Vec<Why> = web(&table).iter().map(|one| one.why).collect();
        assert_eq!(why, [reason], "{address}");
        assert_eq!(picked(&table), [[GOOD4], [GOOD6]], "{address}");
    }
}

#[test]
fn one_that_is_named_many_times_is_one() {
    let again = || vec![on("n1", GOOD4); 50];
    let second = Slice {
        name: "again".to_owned(),
        ..of(AddressKind::V4, again())
    };
    let table = sources(vec![of(AddressKind::V4, again()), second])
        .build()
        .0;
    assert_eq!(picked(&table), [vec![GOOD4], vec!["reject"]]);
    assert!(table.refused.is_empty());
}

/// A hundred thousand endpoints of each family, with one behind them that is odd for a reason of its own.
fn crowd(first: u32) -> Vec<Slice> {
    let v4 = (first..first + 100_000).map(|n| IpAddr::from((0x0a20_0000 + n).to_be_bytes()));
    let v6 = (first..first + 100_000)
        .map(|n| IpAddr::V6(Ipv6Addr::from((0xfd32_u128 << 112) + u128::from(n))));
    let endpoints = |all: &mut dyn Iterator<Item = IpAddr>, odd: &str| {
        let node = || Some("n2".to_owned());
        let mut endpoints: Vec<Endpoint> = all.map(|one| Endpoint::ready(one, node())).collect();
        endpoints.push(on("n2", odd));
        endpoints
    };
    vec![
        of(AddressKind::V4, endpoints(&mut { v4 }, "127.0.0.1")),
        of(AddressKind::V6, endpoints(&mut { v6 }, "10.32.0.9")),
    ]
}

#[test]
fn a_hundred_thousand_endpoints_are_bounded_and_every_reason_is_told() {
    let table = sources(crowd(1)).build().0;
    assert!(
        table
            .entries
            .values()
            .all(|one| one.cluster.len() == MAX_TARGETS)
    );
    let left_out = web(&table);
    assert_eq!(left_out.iter().count(), MAX_REFUSED + 1);
    let reasons = |why| left_out.iter().filter(|one| one.why == why).count();
    assert_eq!(reasons(Why::TooMany), MAX_REFUSED - 1);
    assert_eq!((reasons(Why::Special), reasons(Why::Family)), (1, 1));
    let all = 2 * (100_000 - MAX_TARGETS + 1);
    assert_eq!(left_out.more(), all - (MAX_REFUSED + 1));
}

#[test]
fn what_is_left_out_is_news_once() {
    let mut sources = sources(crowd(1));
    let before = sources.build().0;
    let first = web(&before);
    assert_eq!(first.news(None).len(), MAX_REFUSED + 1);
    // All are others now, and as many too many.
    for slice in crowd(200_000) {
        sources.handle(Change::Slice(slice));
    }
    let after = sources.build().0;
    assert_ne!(web(&after), first);
    assert!(web(&after).news(Some(first)).is_empty());
    // A reason that was not there before is, and where all are listed so is each.
    let mut more = LeftOut::clone(web(&after));
    more.add("0.0.0.0:0", Why::Port);
    assert_eq!(more.news(Some(first)).len(), 1);
    let (mut few, none) = (LeftOut::default(), LeftOut::default());
    few.add("127.0.0.1:80", Why::Special);
    assert_eq!(few.news(Some(&none)).len(), 1);
    assert!(few.news(Some(&few)).is_empty());
    let old = few.clone();
    few.add("127.0.0.2:80", Why::Special);
    let news: Vec<&str> = few.news(Some(&old)).iter().map(|one| &*one.what).collect();
    assert_eq!(news, ["127.0.0.2:80"]);
}

/// Text that somebody might put where a name belongs that is not read as one: of slices, of ports and of nodes.
fn word() -> impl Strategy<Value = String> {
    prop_oneof![
        ".{0,40}",
        "[\\n\\r\\t\\x00\"'`;{}$()|&<>@#*/\\\\]{0,40}",
        Just("x".repeat(100_000)),
        Just("web } ; flush ruleset ; add table inet t {".to_owned()),
        Just("$(reboot)".to_owned()),
        Just(String::new()),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever they are called, the rules are the bytes they would be by any other name.
    #[test]
    fn names_of_slices_ports_and_nodes_are_in_no_rule(slice_name in word(), port in word(), node in word(), zone in word()) {
        let rules = |slice_name: &str, port: &str, node: &str, zone: &str| {
            let mut web = Service { addresses: vec![ip("10.96.0.1")], ..service("web", "10.96.0.1") };
            web.ports[0].name = port.to_owned();
            let endpoint = Endpoint { for_zones: [zone.to_owned()].into(), ..on(node, GOOD4) };
            let mut slice = Slice { name: slice_name.to_owned(), ..slice("web", vec![endpoint]) };
            slice.ports[0].name = port.to_owned();
            let mut sources = Sources::default();
            sources.handle(Change::Facts(Facts { node: "n1".to_owned(), zone: None, ..facts() }));
            sources.handle(Change::Service(web));
            sources.handle(Change::Slice(slice));
            let (table, _) = sources.build();
            Rules::new(&table, sources.facts()).1.as_bytes().to_vec()
        };
        prop_assume!(node != "n1");
        prop_assert_eq!(rules(&slice_name, &port, &node, &zone), rules("a", "b", "n2", "z"));
    }
}
