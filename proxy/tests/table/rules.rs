//! Each rule by itself, on a Service with one port and endpoints on two nodes.

use weave_model::{
    Affinity, BalancerIp, BalancerMode, Endpoint, Protocol, Service, ServiceKind, ServicePort,
    Slice, SlicePort, TrafficPolicy,
};
use weave_proxy::facts::{ExternalIps, Facts};
use weave_proxy::sources::{Change, Sources};
use weave_proxy::table::{MAX_TARGETS, Origin, Table, Verdict, Way, Why};

use crate::{facts, http, ip, on, outcome, service, slice, table};

const HERE: &str = "10.32.0.2";
const THERE: &str = "10.40.0.2";

fn both() -> Vec<Endpoint> {
    vec![on("n1", HERE), on("n2", THERE)]
}

fn going(node: &str, address: &str) -> Endpoint {
    Endpoint {
        ready: false,
        terminating: true,
        ..on(node, address)
    }
}

fn unready(node: &str, address: &str) -> Endpoint {
    Endpoint {
        ready: false,
        serving: false,
        ..on(node, address)
    }
}

fn for_node(node: &str, endpoint: Endpoint) -> Endpoint {
    Endpoint {
        for_nodes: [node.to_owned()].into(),
        ..endpoint
    }
}

fn for_zone(zone: &str, endpoint: Endpoint) -> Endpoint {
    Endpoint {
        for_zones: [zone.to_owned()].into(),
        ..endpoint
    }
}

/// Where connections to the one Service go.
fn goes(service: Service, endpoints: Vec<Endpoint>, way: Way, origin: Origin) -> Vec<String> {
    let slices = vec![slice("web", endpoints)];
    let table = table([service], slices);
    outcome(table.entries.values().next().unwrap(), way, origin)
}

fn inside(endpoints: Vec<Endpoint>) -> Vec<String> {
    goes(
        service("web", "10.96.0.1"),
        endpoints,
        Way::Internal,
        Origin::Container,
    )
}

fn why(table: &Table) -> Vec<Why> {
    table
        .refused
        .values()
        .flat_map(|all| all.iter().map(|one| one.why))
        .collect()
}

fn external(policy: TrafficPolicy) -> Service {
    let port = ServicePort {
        node_port: Some(30_080),
        ..http()
    };
    Service {
        kind: ServiceKind::LoadBalancer,
        ports: vec![port],
        external: policy,
        balancer: vec![BalancerIp {
            ip: ip("203.0.113.5"),
            mode: BalancerMode::Vip,
        }],
        ..service("web", "10.96.0.1")
    }
}

#[test]
fn ready_endpoints_of_all_nodes_are_picked() {
    assert_eq!(inside(both()), [HERE, THERE]);
    assert_eq!(inside(vec![on("n1", HERE), unready("n2", THERE)]), [HERE]);
}

#[test]
fn without_endpoints_it_is_refused() {
    assert_eq!(inside(vec![]), ["reject"]);
    assert_eq!(inside(vec![unready("n2", THERE)]), ["reject"]);
}

#[test]
fn ones_that_are_going_serve_when_no_other_is_ready() {
    assert_eq!(inside(vec![going("n1", HERE), on("n2", THERE)]), [THERE]);
    assert_eq!(
        inside(vec![going("n1", HERE), unready("n2", THERE)]),
        [HERE]
    );
    let gone = Endpoint {
        serving: false,
        ..going("n1", HERE)
    };
    assert_eq!(inside(vec![gone]), ["reject"]);
}

#[test]
fn internal_policy_local_takes_own_endpoints_or_drops() {
    let local = Service {
        internal: TrafficPolicy::Local,
        ..service("web", "10.96.0.1")
    };
    let goes = |endpoints| goes(local.clone(), endpoints, Way::Internal, Origin::Container);
    assert_eq!(goes(both()), [HERE]);
    assert_eq!(goes(vec![on("n2", THERE)]), ["drop"]);
    assert_eq!(goes(vec![]), ["reject"]);
    assert_eq!(goes(vec![going("n1", HERE), on("n2", THERE)]), [HERE]);
}

#[test]
fn external_policy_local_is_for_those_from_outside() {
    let goes = |endpoints, origin| {
        goes(
            external(TrafficPolicy::Local),
            endpoints,
            Way::Balancer,
            origin,
        )
    };
    assert_eq!(goes(both(), Origin::Outside), [HERE]);
    assert_eq!(goes(vec![on("n2", THERE)], Origin::Outside), ["drop"]);
    assert_eq!(goes(vec![on("n2", THERE)], Origin::Container), [THERE]);
    assert_eq!(goes(vec![on("n2", THERE)], Origin::Host), [THERE]);
    assert_eq!(goes(vec![], Origin::Outside), ["reject"]);
}

#[test]
fn sources_are_kept_where_the_contract_keeps_them() {
    let entry = |policy| {
        let table = table([external(policy)], vec![slice("web", both())]);
        table.entries.into_values().next().unwrap()
    };
    let (cluster, local) = (entry(TrafficPolicy::Cluster), entry(TrafficPolicy::Local));
    for entry in [&cluster, &local] {
        assert!(!entry.masquerades(Way::Internal, Origin::Container));
        assert!(entry.masquerades(Way::Internal, Origin::Host));
        assert!(entry.masquerades(Way::Internal, Origin::Outside));
    }
    for way in [Way::Balancer, Way::External, Way::NodePort] {
        for origin in [Origin::Container, Origin::Host, Origin::Outside] {
            assert!(cluster.masquerades(way, origin));
            assert_eq!(local.masquerades(way, origin), origin == Origin::Host);
        }
    }
}

#[test]
fn hints_count_when_every_ready_endpoint_has_them() {
    let (near, far) = (
        for_node("n1", on("n1", HERE)),
        for_node("n2", on("n2", THERE)),
    );
    assert_eq!(inside(vec![near.clone(), far.clone()]), [HERE]);
    assert_eq!(
        inside(vec![near, on("n2", THERE)]),
        [HERE, THERE],
        "one has none"
    );
    assert_eq!(inside(vec![far]), [THERE], "none means this node");
    let (near, far) = (
        for_zone("z1", on("n2", THERE)),
        for_zone("z2", on("n1", HERE)),
    );
    assert_eq!(inside(vec![near.clone(), far]), [THERE]);
    assert_eq!(
        inside(vec![near.clone(), for_node("n1", on("n1", HERE))]),
        [HERE, THERE]
    );
    let unhinted = unready("n1", HERE);
    assert_eq!(
        inside(vec![near, unhinted]),
        [THERE],
        "only ready ones must have them"
    );
}

#[test]
fn nodes_are_preferred_to_zones() {
    let near = for_zone("z2", for_node("n1", on("n1", HERE)));
    let far = for_zone("z1", for_node("n2", on("n2", THERE)));
    assert_eq!(inside(vec![near, far]), [HERE]);
}

#[test]
fn one_address_in_two_slices_is_one_endpoint_and_the_local_one_counts() {
    let first = slice("web", vec![going("n2", HERE)]);
    let second = Slice {
        name: "web-2".to_owned(),
        ..slice("web", vec![on("n1", HERE)])
    };
    let table = table([service("web", "10.96.0.1")], vec![first, second]);
    let entry = table.entries.values().next().unwrap();
    assert_eq!((entry.cluster.len(), entry.local.len()), (1, 1));
}

#[test]
fn ports_are_joined_by_name_and_protocol() {
    let named = |name: &str, protocol, port| ServicePort {
        name: name.to_owned(),
        protocol,
        port,
        node_port: None,
    };
    let web = Service {
        ports: vec![
            named("dns", Protocol::Udp, 53),
            named("dns-tcp", Protocol::Tcp, 53),
            named("none", Protocol::Sctp, 9),
        ],
        ..service("web", "10.96.0.1")
    };
    let numbered = |name: &str, protocol, port| SlicePort {
        name: name.to_owned(),
        protocol,
        port,
    };
    let slices = vec![
        Slice {
            ports: vec![
                numbered("dns", Protocol::Udp, Some(5353)),
                numbered("dns-tcp", Protocol::Tcp, Some(5354)),
                numbered("none", Protocol::Sctp, None),
            ],
            ..slice("web", vec![on("n1", HERE)])
        },
        Slice {
            name: "web-2".to_owned(),
            ports: vec![numbered("dns", Protocol::Udp, Some(1053))],
            ..slice("web", vec![on("n2", THERE)])
        },
    ];
    let table = table([web], slices);
    let listed = table.entries.iter().map(|(key, entry)| {
        let targets = entry
            .cluster
            .iter()
            .map(|target| target.address.to_string());
        format!("{key} {}", targets.collect::<Vec<_>>().join(" "))
    });
    assert_eq!(
        listed.collect::<Vec<_>>(),
        [
            "web:9/sctp ",
            "web:53/tcp 10.32.0.2:5354",
            "web:53/udp 10.32.0.2:5353 10.40.0.2:1053",
        ]
    );
}

#[test]
fn services_that_are_not_ours_have_no_entry() {
    let web = || service("web", "10.96.0.1");
    let none = [
        Service {
            addresses: vec![],
            ..web()
        },
        Service {
            headless: true,
            ..web()
        },
        Service {
            other_proxy: true,
            ..web()
        },
        Service {
            kind: ServiceKind::ExternalName("example.org".to_owned()),
            ..web()
        },
    ];
    for service in none {
        assert!(
            table([service], vec![slice("web", both())])
                .entries
                .is_empty()
        );
    }
}

#[test]
fn a_balancer_in_front_is_not_cut_short() {
    let mut web = external(TrafficPolicy::Cluster);
    web.balancer[0].mode = BalancerMode::Proxy;
    let table = table([web], vec![]);
    let ways: Vec<Way> = table
        .entries
        .values()
        .flat_map(|entry| entry.fronts.iter().map(|(_, way)| *way))
        .collect();
    assert_eq!(ways, [Way::NodePort, Way::Internal]);
}

#[test]
fn source_ranges_are_for_the_balancers_addresses() {
    let mut web = external(TrafficPolicy::Cluster);
    web.source_ranges = vec!["10.0.0.0/8".parse().unwrap()];
    let goes = |way, origin| goes(web.clone(), both(), way, origin);
    assert_eq!(goes(Way::Balancer, Origin::Outside), ["drop"]);
    assert_eq!(goes(Way::Balancer, Origin::Container), [HERE, THERE]);
    assert_eq!(goes(Way::NodePort, Origin::Outside), [HERE, THERE]);
}

#[test]
fn a_node_in_range_is_let_in_by_that_address_and_by_the_balancers_own() {
    let lets_in = |range: &str, source: &str| {
        let mut web = external(TrafficPolicy::Cluster);
        web.source_ranges = vec![range.parse().unwrap()];
        let (node, balancer) = (facts().addresses, web.balancer[0].ip);
        let table = table([web], vec![slice("web", both())]);
        let entry = table.entries.values().next().unwrap();
        let source = match source {
            "balancer" => balancer,
            "node" => *node.first().unwrap(),
            other => ip(other),
        };
        entry.verdict(Way::Balancer, Origin::Host, source) != Verdict::Drop
    };
    assert!(lets_in("192.0.2.0/24", "node"));
    assert!(lets_in("192.0.2.0/24", "balancer"));
    assert!(
        !lets_in("192.0.2.0/24", "10.32.0.1"),
        "another of its addresses"
    );
    assert!(
        !lets_in("198.51.100.0/24", "balancer"),
        "the node is not in range"
    );
    assert!(!lets_in("198.51.100.0/24", "node"));
}

#[test]
fn external_addresses_are_taken_only_where_they_are_allowed() {
    let web = Service {
        external_ips: vec![ip("203.0.113.9"), ip("127.0.0.1"), ip("10.96.0.7")],
        ..service("web", "10.96.0.1")
    };
    let refused = table([web.clone()], vec![]);
    assert_eq!(refused.entries.values().next().unwrap().fronts.len(), 1);
    assert!(why(&refused).contains(&Why::External));
    let mut sources = Sources::default();
    sources.handle(Change::Facts(Facts {
        external_ips: ExternalIps::Taken,
        ..facts()
    }));
    sources.handle(Change::Service(web));
    let taken = sources.build().0;
    assert_eq!(taken.entries.values().next().unwrap().fronts.len(), 2);
    assert_eq!(why(&taken), [Why::Virtual, Why::Special]);
}

#[test]
fn endpoints_that_can_be_nobody_else_are_refused_and_the_rest_serves() {
    let odd = [
        ("127.0.0.1", Why::Special),
        ("169.254.169.254", Why::Special),
        ("224.0.0.5", Why::Special),
        ("255.255.255.255", Why::Special),
        ("0.0.0.0", Why::Special),
        ("192.0.2.2", Why::Node),
        ("10.96.3.4", Why::Virtual),
        ("fd00::1", Why::Family),
    ];
    for (address, reason) in odd {
        let slices = vec![slice("web", vec![on("n2", address), on("n1", HERE)])];
        let table = table([service("web", "10.96.0.1")], slices);
        assert_eq!(why(&table), [reason], "{address}");
        let entry = table.entries.values().next().unwrap();
        assert_eq!(outcome(entry, Way::Internal, Origin::Container), [HERE]);
    }
}

#[test]
fn too_many_endpoints_are_bounded() {
    let many = (0..100_000u32).map(|n| {
        let address = std::net::Ipv4Addr::from(0x0a20_0000 + n);
        on("n2", &address.to_string())
    });
    let table = table(
        [service("web", "10.96.0.1")],
        vec![slice("web", many.collect())],
    );
    let entry = table.entries.values().next().unwrap();
    assert_eq!(entry.cluster.len(), MAX_TARGETS);
    assert!(why(&table).iter().all(|why| *why == Why::TooMany));
}

#[test]
fn endpoints_that_nobody_would_pick_leave_room_for_those_that_are_ready() {
    let first = 0x0a20_0000_u32;
    let at = |n: u32| std::net::Ipv4Addr::from(first + n).to_string();
    let unready = |n| Endpoint {
        ready: false,
        serving: false,
        ..on("n2", &at(n))
    };
    let crowd = MAX_TARGETS as u32;
    let gone: Vec<Endpoint> = (0..crowd).map(unready).collect();
    let leaving: Vec<Endpoint> = (crowd..2 * crowd).map(|n| going("n2", &at(n))).collect();
    let ready: Vec<Endpoint> = (2 * crowd..2 * crowd + 3)
        .map(|n| on("n2", &at(n)))
        .collect();
    let table = table(
        [service("web", "10.96.0.1")],
        vec![slice("web", [gone, leaving, ready].concat())],
    );
    let entry = table.entries.values().next().unwrap();
    assert_eq!(entry.cluster.len(), 3, "the ready ones");
    assert_eq!(entry.serving.len(), MAX_TARGETS);
    assert_eq!(why(&table), [Why::TooMany; 3], "of those that are going");
}

#[test]
fn a_virtual_address_wins_over_all_others_then_the_first_by_name() {
    let both = |name: &str| Service {
        external_ips: vec![ip("203.0.113.9")],
        ..service(name, "10.96.0.1")
    };
    let mut sources = Sources::default();
    sources.handle(Change::Facts(Facts {
        external_ips: ExternalIps::Taken,
        ..facts()
    }));
    sources.handle(Change::Service(both("b")));
    sources.build();
    sources.handle(Change::Service(both("a")));
    let (table, diff) = sources.build();
    let fronts = |table: &Table, name: &str| {
        let all = table.entries.iter();
        let mine = all.filter(|(key, _)| key.service.as_str() == name);
        mine.map(|(_, entry)| entry.fronts.len()).sum::<usize>()
    };
    assert_eq!((fronts(&table, "a"), fronts(&table, "b")), (2, 0));
    assert_eq!(
        (diff.added.len(), diff.changed.len()),
        (1, 1),
        "both are in the difference"
    );
    sources.handle(Change::NoService("a".parse().unwrap()));
    let (table, _) = sources.build();
    assert_eq!(
        fronts(&table, "b"),
        2,
        "the loser gets them when the winner goes"
    );
}

#[test]
fn health_counts_own_endpoints_that_are_ready() {
    let web = Service {
        health_port: Some(32_000),
        ..external(TrafficPolicy::Local)
    };
    let count = |endpoints| {
        let table = table([web.clone()], vec![slice("web", endpoints)]);
        table.health[&32_000].local
    };
    assert_eq!(count(both()), 1);
    assert_eq!(
        count(vec![going("n1", HERE), on("n2", THERE)]),
        0,
        "one that is going does not count"
    );
    let cluster = Service {
        external: TrafficPolicy::Cluster,
        ..web.clone()
    };
    assert!(table([cluster], vec![]).health.is_empty());
}

#[test]
fn a_health_check_node_port_is_one_service_s_and_the_other_is_told() {
    let web = |name: &str, vip: &str, health_port| Service {
        kind: ServiceKind::LoadBalancer,
        external: TrafficPolicy::Local,
        health_port: Some(health_port),
        ..service(name, vip)
    };
    let (a, b) = (web("a", "10.96.0.8", 32_000), web("b", "10.96.0.9", 32_000));
    let mut sources = Sources::default();
    sources.handle(Change::Facts(facts()));
    let report = |sources: &mut Sources, change| {
        sources.handle(change);
        let (table, _) = sources.build();
        let has = |port: u16| table.health.get(&port).map(|one| one.service.to_string());
        let told = |name: &str| {
            let left_out = table.refused.get(&name.parse().unwrap());
            left_out.map(|all| all.iter().map(ToString::to_string).collect::<Vec<_>>())
        };
        (has(32_000), has(32_001), told("a"), told("b"))
    };
    let taken = || {
        let line = "health-check node port 32000: another Service has it already";
        Some(vec![line.to_owned()])
    };
    let name = |name: &str| Some(name.to_owned());
    let first = report(&mut sources, Change::Service(b.clone()));
    assert_eq!(first, (name("b"), None, None, None));
    let both = report(&mut sources, Change::Service(a.clone()));
    assert_eq!(both, (name("a"), None, None, taken()), "the first by name");
    // A report of the one that lost changes nothing.
    assert_eq!(report(&mut sources, Change::Service(b)), both);
    let moved = Service {
        health_port: Some(32_001),
        ..a.clone()
    };
    let apart = report(&mut sources, Change::Service(moved));
    assert_eq!(apart, (name("b"), name("a"), None, None));
    assert_eq!(report(&mut sources, Change::Service(a)), both);
    let alone = report(&mut sources, Change::NoService("a".parse().unwrap()));
    assert_eq!(alone, (name("b"), None, None, None));
    // Nor is it served where a port of the node is to lead to endpoints.
    let leading = Service {
        name: "a".parse().unwrap(),
        addresses: vec![ip("10.96.0.8")],
        ports: vec![ServicePort {
            node_port: Some(32_000),
            ..http()
        }],
        ..external(TrafficPolicy::Cluster)
    };
    let none = report(&mut sources, Change::Service(leading));
    assert_eq!(none, (None, None, None, taken()));
}

#[test]
fn serving_endpoints_are_known_whatever_the_policies_say() {
    let web = Service {
        internal: TrafficPolicy::Local,
        affinity: Affinity::ClientIp { seconds: 9 },
        ..service("web", "10.96.0.1")
    };
    let dying = Endpoint {
        serving: false,
        ..going("n2", "10.40.0.3")
    };
    let table = table(
        [web],
        vec![slice(
            "web",
            vec![going("n2", THERE), on("n1", HERE), dying],
        )],
    );
    let entry = table.entries.values().next().unwrap();
    assert_eq!(entry.serving, [ip(HERE), ip(THERE)].into());
}

#[test]
fn each_family_goes_its_own_way() {
    let web = Service {
        addresses: vec![ip("10.96.0.1"), ip("fd00:96::1")],
        ..service("web", "10.96.0.1")
    };
    let six = Slice {
        name: "web-6".to_owned(),
        kind: weave_model::AddressKind::V6,
        ..slice("web", vec![on("n1", "fd00::2")])
    };
    let names = Slice {
        name: "web-names".to_owned(),
        kind: weave_model::AddressKind::Fqdn,
        ..slice("web", vec![on("n1", HERE)])
    };
    let table = table([web], vec![six, names]);
    let all: Vec<Vec<String>> = table
        .entries
        .values()
        .map(|entry| outcome(entry, Way::Internal, Origin::Container))
        .collect();
    assert_eq!(all, [["reject"], ["fd00::2"]]);
}
