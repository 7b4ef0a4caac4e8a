//! The rules change as little as the table: what goes to the kernel is the difference, whatever else there is.

use proptest::prelude::*;
use weave_model::{Affinity, BalancerIp, BalancerMode, Service, ServiceKind};
use weave_proxy::rules::Rules;
use weave_proxy::sources::{Change, Sources};

use crate::{facts, on, service, slice};

/// A Service with so many endpoints, every other one of this node.
fn endpoints(name: &str, place: u8, count: u8) -> Change {
    let all = (0..count).map(|host| {
        let node = if host % 2 == 0 { "n1" } else { "n2" };
        on(node, &format!("10.32.{place}.{}", host + 1))
    });
    Change::Slice(slice(name, all.collect()))
}

fn declared(place: u8, affinity: Affinity) -> (String, Change) {
    let name = format!("s{place}");
    let service = Service {
        affinity,
        ..service(&name, &format!("10.96.1.{place}"))
    };
    (name, Change::Service(service))
}

/// So many Services with three endpoints each, and the rules of them.
fn many(count: u8, affinity: Affinity) -> (Sources, Rules, usize) {
    let mut sources = Sources::default();
    sources.handle(Change::Facts(facts()));
    for place in 0..count {
        let (name, change) = declared(place, affinity);
        sources.handle(change);
        sources.handle(endpoints(&name, place, 3));
    }
    let (table, _) = sources.build();
    let (rules, whole) = Rules::new(&table, sources.facts());
    (sources, rules, whole.as_bytes().len())
}

/// The bytes that go to the kernel for a change.
fn costs(sources: &mut Sources, rules: &mut Rules, change: Change) -> usize {
    sources.handle(change);
    let (_, diff) = sources.build();
    let batch = rules.next(&diff, sources.facts());
    batch.expect("a change is no new table").as_bytes().len()
}

#[test]
fn a_change_costs_the_same_among_few_services_and_among_many() {
    for affinity in [Affinity::None, Affinity::ClientIp { seconds: 60 }] {
        let costs_among = |count: u8| {
            let (mut sources, mut rules, whole) = many(count, affinity);
            let all =
                [4, 3, 0, 3].map(|left| costs(&mut sources, &mut rules, endpoints("s1", 1, left)));
            (all, whole)
        };
        let ((few, small), (many, large)) = (costs_among(2), costs_among(200));
        assert_eq!(few, many, "{affinity:?}");
        assert!(
            large > small + 10 * many[0],
            "there is much that a change could have cost"
        );
    }
}

/// A host may need more chains of its own than may be left over: a change costs no new table there either.
#[test]
fn a_change_is_small_though_many_services_have_chains_of_their_own() {
    let mut sources = Sources::default();
    sources.handle(Change::Facts(facts()));
    for number in 0..1100_u32 {
        let (high, low) = (number >> 8, number & 0xff);
        let name = format!("s{number}");
        let mut one = service(&name, &format!("10.96.{high}.{low}"));
        one.kind = ServiceKind::LoadBalancer;
        one.balancer = vec![BalancerIp {
            ip: format!("203.0.{high}.{low}").parse().unwrap(),
            mode: BalancerMode::Vip,
        }];
        one.source_ranges = vec![format!("192.{high}.{low}.0/24").parse().unwrap()];
        sources.handle(Change::Service(one));
        sources.handle(endpoints(&name, 1, 3));
    }
    let (table, _) = sources.build();
    let (mut rules, whole) = Rules::new(&table, sources.facts());
    let cost = costs(&mut sources, &mut rules, endpoints("s1", 1, 4));
    assert!(cost * 100 < whole.as_bytes().len(), "{cost}");
}

#[test]
fn what_is_reported_again_costs_nothing() {
    let (mut sources, mut rules, _) = many(20, Affinity::None);
    let nothing = costs(&mut sources, &mut rules, endpoints("s3", 3, 3));
    let (_, again) = declared(4, Affinity::None);
    assert_eq!(costs(&mut sources, &mut rules, again), nothing);
    sources.handle(endpoints("s3", 3, 4));
    let (_, diff) = sources.build();
    assert!(rules.next(&diff, sources.facts()).unwrap().as_bytes().len() > nothing);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// By any way: a change never costs more than to make the Service and its endpoints twice.
    #[test]
    fn changes_stay_small_whatever_came_before(steps in proptest::collection::vec((0..6u8, 0..8u8), 1..20)) {
        let (mut sources, mut rules, _) = many(6, Affinity::None);
        // Chains for as many endpoints as there may be are made once and stay.
        for count in 0..8 {
            costs(&mut sources, &mut rules, endpoints("s0", 0, count));
        }
        for (place, count) in steps {
            let cost = costs(&mut sources, &mut rules, endpoints(&format!("s{place}"), place, count));
            prop_assert!(cost < 6000, "{cost} bytes for {count} endpoints of one service");
        }
    }
}
