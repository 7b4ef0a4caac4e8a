//! From any Services to any others: the steps are those that the difference needs, they concern nobody else, and the
//! way back ends where it began.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use proptest::prelude::*;
use weave_linux::nft::Batch;
use weave_model::{
    Affinity, BalancerIp, BalancerMode, Protocol, Service, ServiceKind, ServicePort, TrafficPolicy,
};
use weave_proxy::facts::Facts;
use weave_proxy::rules::Rules;
use weave_proxy::rules::anchor::Anchor;
use weave_proxy::sources::{Change, Sources};
use weave_proxy::table::Diff;

use crate::nft::{State, Steps};
use crate::{facts, http, ip, on, service, slice};

/// How many Services there may be.
const PLACES: u8 = 5;

/// What a Service is like, if it is there.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Spec {
    /// The numbers of its endpoints, of 30; even ones are on this node.
    endpoints: BTreeSet<u8>,
    both_families: bool,
    exposed: bool,
    internal: TrafficPolicy,
    external: TrafficPolicy,
    seconds: Option<u32>,
    ranges: bool,
    udp: bool,
}

type World = BTreeMap<u8, Spec>;

fn spec() -> impl Strategy<Value = Spec> {
    let policy = || prop_oneof![Just(TrafficPolicy::Cluster), Just(TrafficPolicy::Local)];
    let endpoints = proptest::collection::btree_set(0..30u8, 0..8);
    let seconds = prop_oneof![3 => Just(None), 1 => Just(Some(60)), 1 => Just(Some(90))];
    let flags = any::<(bool, bool, bool, bool)>();
    (endpoints, policy(), policy(), seconds, flags).prop_map(
        |(endpoints, internal, external, seconds, (both_families, exposed, ranges, udp))| Spec {
            endpoints,
            both_families,
            exposed,
            internal,
            external,
            seconds,
            ranges,
            udp,
        },
    )
}

fn world() -> impl Strategy<Value = World> {
    proptest::collection::btree_map(0..PLACES, spec(), 0..=usize::from(PLACES))
}

fn name(place: u8) -> String {
    format!("s{place}")
}

fn made(place: u8, spec: &Spec) -> Service {
    let mut addresses = vec![ip(&format!("10.96.1.{place}"))];
    addresses.extend(
        spec.both_families
            .then(|| ip(&format!("fd96::1:{place:x}"))),
    );
    let port = |protocol| ServicePort {
        protocol,
        node_port: spec.exposed.then(|| 30_000 + u16::from(place)),
        ..http()
    };
    let mut ports = vec![port(Protocol::Tcp)];
    ports.extend(spec.udp.then(|| port(Protocol::Udp)));
    let balancer = spec.exposed.then(|| BalancerIp {
        ip: ip(&format!("203.0.113.{place}")),
        mode: BalancerMode::Vip,
    });
    let ranges = spec.ranges.then(|| format!("198.51.{place}.0/24"));
    Service {
        kind: ServiceKind::LoadBalancer,
        addresses,
        ports,
        balancer: balancer.into_iter().collect(),
        internal: spec.internal,
        external: spec.external,
        source_ranges: ranges.iter().map(|net| net.parse().unwrap()).collect(),
        affinity: spec
            .seconds
            .map_or(Affinity::None, |seconds| Affinity::ClientIp { seconds }),
        ..service(&name(place), "10.96.1.1")
    }
}

/// Endpoints of Services are their own but for the first ten, which all Services may have.
fn changes(place: u8, spec: Option<&Spec>) -> Vec<Change> {
    let service: weave_model::ServiceName = name(place).parse().unwrap();
    let Some(spec) = spec else {
        return vec![Change::NoService(service)];
    };
    let all = spec.endpoints.iter().map(|number| {
        let node = if number % 2 == 0 { "n1" } else { "n2" };
        let whose = if *number < 10 { 200 } else { place };
        (node, whose, number)
    });
    let v4 = all
        .clone()
        .map(|(node, whose, number)| on(node, &format!("10.32.{whose}.{number}")));
    let v6 = all.map(|(node, whose, number)| on(node, &format!("fd32::{whose:x}:{number:x}")));
    let mut four = slice(&name(place), v4.collect());
    let udp = weave_model::SlicePort {
        protocol: Protocol::Udp,
        ..four.ports[0].clone()
    };
    four.ports.push(udp);
    let six = weave_model::Slice {
        name: format!("{}-6", name(place)),
        kind: weave_model::AddressKind::V6,
        endpoints: v6.collect(),
        ..four.clone()
    };
    let made = made(place, spec);
    [
        Change::Service(made),
        Change::Slice(four),
        Change::Slice(six),
    ]
    .into()
}

/// Sources, rules and the rule set they made, and the same of what holds connections when these are gone.
struct Host {
    sources: Sources,
    rules: Rules,
    state: State,
    anchor: Anchor,
    held: State,
    world: World,
}

impl Host {
    fn new(world: &World) -> Self {
        let mut sources = Sources::default();
        let ranges = ["10.96.0.0/16", "fd96::/112"].map(|net| net.parse().unwrap());
        sources.handle(Change::Facts(Facts {
            ranges: ranges.to_vec(),
            ..facts()
        }));
        for (place, spec) in world {
            let all = changes(*place, Some(spec));
            all.into_iter().for_each(|change| sources.handle(change));
        }
        let (table, _) = sources.build();
        let (rules, batch) = Rules::new(&table, sources.facts());
        let mut state = State::default();
        state.apply(&batch);
        let (anchor, batch) = Anchor::new(&table, sources.facts());
        let mut held = State::default();
        held.apply(&batch);
        Self {
            sources,
            rules,
            state,
            anchor,
            held,
            world: world.clone(),
        }
    }

    /// Goes on to another world by the one batch that it takes.
    fn go_to(&mut self, world: &World) -> (Batch, Steps) {
        let diff = self.hear(world);
        let batch = self.rules.next(&diff, self.sources.facts());
        let batch = batch.expect("there are few chains");
        let steps = self.state.apply(&batch);
        (batch, steps)
    }

    /// What holds connections goes on to another world.
    fn hold(&mut self, world: &World) -> Steps {
        let diff = self.hear(world);
        self.held.apply(&self.anchor.next(&diff))
    }

    /// The fronts at which connections are held.
    fn held(&self) -> BTreeSet<(String, Vec<u8>)> {
        let sets = self.held.sets.iter();
        let sets = sets.filter(|(set, _)| set.contains("held"));
        let keys = sets.flat_map(|(set, keys)| keys.keys().map(move |key| (set, key)));
        keys.map(|(set, key)| (set.clone(), key.clone())).collect()
    }

    /// The fronts that the rules lead to endpoints, but those in the ranges.
    fn led(&self) -> BTreeSet<(String, Vec<u8>)> {
        let maps = [
            ("fronts4", "held4"),
            ("fronts6", "held6"),
            ("port-fronts4", "port-held4"),
            ("port-fronts6", "port-held6"),
        ];
        let keys = |(map, set): (&str, &'static str)| {
            let keys = self.state.sets[map].keys();
            keys.map(move |key| (set.to_owned(), key.clone()))
                .collect::<Vec<_>>()
        };
        let all = maps.into_iter().flat_map(keys);
        all.filter(|(set, key)| !self.is_in_a_range(set, key))
            .collect()
    }

    fn is_in_a_range(&self, set: &str, key: &[u8]) -> bool {
        let address = match set {
            "held4" => IpAddr::from(*key.first_chunk::<4>().unwrap()),
            "held6" => IpAddr::from(*key.first_chunk::<16>().unwrap()),
            _ => return false,
        };
        let ranges = &self.sources.facts().ranges;
        ranges.iter().any(|range| range.contains(&address))
    }

    fn hear(&mut self, world: &World) -> Diff {
        for place in 0..PLACES {
            let (before, after) = (self.world.get(&place), world.get(&place));
            if before != after {
                let all = changes(place, after);
                all.into_iter().for_each(|one| self.sources.handle(one));
            }
        }
        self.world.clone_from(world);
        self.sources.build().1
    }
}

/// How many elements went and came.
fn counts(steps: &Steps) -> [usize; 2] {
    [false, true].map(|added| {
        steps
            .elements
            .iter()
            .filter(|step| step.added == added)
            .count()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// As many elements go and come as the two rule sets differ by, and what is there then is what a new table would have.
    #[test]
    fn a_change_takes_the_steps_that_it_needs_and_ends_where_a_new_table_would(from in world(), to in world()) {
        let mut host = Host::new(&from);
        let before = host.state.clone();
        let (_, steps) = host.go_to(&to);
        let needed = [before.elements_beside(&host.state), host.state.elements_beside(&before)];
        prop_assert_eq!(counts(&steps), needed.map(|some| some.len()));
        let anew = Host::new(&to);
        prop_assert_eq!(host.state.without_kept(), anew.state.without_kept());
    }

    /// What waits while the rules are gone is what they would lead to an endpoint, no more and no less, after any
    /// change; and the change takes no more steps than the two differ by.
    #[test]
    fn what_is_held_is_what_the_rules_lead_somewhere(from in world(), to in world()) {
        let mut host = Host::new(&from);
        let before = host.held.clone();
        let steps = host.hold(&to);
        let needed = [before.elements_beside(&host.held), host.held.elements_beside(&before)];
        prop_assert_eq!(counts(&steps), needed.map(|some| some.len()));
        prop_assert!(steps.sets.is_empty() && steps.chains.is_empty());
        let anew = Host::new(&to);
        prop_assert_eq!(&host.held, &anew.held);
        prop_assert_eq!(host.held(), anew.led());
    }

    /// A change and its opposite take as many steps as one another, and end in the rule set that was there before.
    #[test]
    fn there_and_back_is_the_same_length_and_ends_where_it_began(from in world(), to in world()) {
        let mut host = Host::new(&from);
        // Chains that Services share are made for the first who needs them.
        host.go_to(&to);
        host.go_to(&from);
        let before = host.state.clone();
        let (there, out) = host.go_to(&to);
        let (_, home) = host.go_to(&from);
        let [gone, come] = counts(&out);
        prop_assert_eq!(counts(&home), [come, gone]);
        prop_assert_eq!(&host.state, &before);
        // The same way again is the same bytes.
        let (again, _) = host.go_to(&to);
        prop_assert_eq!(again.as_bytes(), there.as_bytes());
    }

    /// What changes in one Service concerns its own elements, chains and sets, and those that it shares with nobody.
    #[test]
    fn a_change_in_one_service_touches_nothing_of_another(from in world(), place in 0..PLACES, spec in proptest::option::of(spec())) {
        let mut to = from.clone();
        match spec {
            Some(spec) => drop(to.insert(place, spec)),
            None => drop(to.remove(&place)),
        }
        let mut host = Host::new(&from);
        let (_, steps) = host.go_to(&to);
        let others: World = from.into_iter().filter(|(other, _)| *other != place).collect();
        let theirs = Host::new(&others).state;
        for step in &steps.elements {
            let touched = theirs.sets.get(&step.set).is_some_and(|set| set.contains_key(&step.key));
            prop_assert!(!touched, "{:?}", step);
        }
        for set in &steps.sets {
            prop_assert!(!theirs.sets.contains_key(set), "{}", set);
        }
        for chain in &steps.chains {
            prop_assert!(!theirs.chains.contains_key(chain), "{}", chain);
        }
    }

    /// What the endpoints that stay remember of clients stays too: only sets of those that come or go are made or removed.
    #[test]
    fn what_endpoints_remember_stays_with_them(spec in spec(), other in proptest::collection::btree_set(0..30u8, 0..8)) {
        let spec = Spec { seconds: Some(60), both_families: false, udp: false, internal: TrafficPolicy::Cluster, ..spec };
        let next = Spec { endpoints: other, ..spec };
        let moved = spec.endpoints.symmetric_difference(&next.endpoints).count();
        let mut host = Host::new(&[(1, spec)].into());
        let (_, steps) = host.go_to(&[(1, next)].into());
        let sets: BTreeSet<&String> = steps.sets.iter().collect();
        prop_assert_eq!(sets.len(), steps.sets.len(), "each at most once");
        prop_assert_eq!(sets.len(), moved);
    }
}
