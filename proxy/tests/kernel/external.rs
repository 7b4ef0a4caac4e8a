//! Fronts for those outside: ports of the node, load balancers' addresses, external addresses.

use weave_model::{Endpoint, EngineChoice, Service, TrafficPolicy};
use weave_proxy::sources::Change;

use crate::lab::{
    A, Answer, B, FAR, HOST, Lab, OUTSIDE, OWN, at, exposed, going, ip, ok, slice, tcp, udp,
    vanishes,
};

cases! {
    should_be_able_to_create_a_functioning_node_port_service => Inside,
    what_policy_cluster_sends_to_other_nodes_finds_its_way_back => NoOwn,
    should_preserve_the_client_with_external_traffic_policy_local => NoPolicy,
    should_only_allow_access_from_service_loadbalancer_source_ranges => NoRanges,
    should_be_possible_to_connect_to_a_service_via_external_ip_when_it_is_not_assigned_to_a_node => NoExternal,
    a_port_of_the_node_is_one_of_its_primary_addresses_and_the_relays_loopback => Everywhere,
}

const NODE_PORT: &str = "192.0.2.2:30080";
const BALANCER: &str = "203.0.113.5:80";

fn lab(
    on: EngineChoice,
    external: TrafficPolicy,
    endpoints: impl IntoIterator<Item = Endpoint>,
) -> Lab {
    let service = Service {
        external,
        ..exposed()
    };
    let mut lab = Lab::new(on);
    lab.report([Change::Service(service), slice(endpoints)]);
    lab
}

fn should_be_able_to_create_a_functioning_node_port_service(on: EngineChoice) {
    let lab = lab(on, TrafficPolicy::Cluster, [at(B), at(FAR)]);
    for from in [&lab.outside, &lab.a, &lab.host] {
        assert_eq!(lab.servers(from, NODE_PORT, 40), ["b", "far"]);
        assert!(["b", "far"].contains(&udp(from, NODE_PORT).server()));
    }
    assert_ne!(tcp(&lab.outside, NODE_PORT).saw(), Some(ip(OUTSIDE)));
}

fn what_policy_cluster_sends_to_other_nodes_finds_its_way_back(on: EngineChoice) {
    let lab = lab(on, TrafficPolicy::Cluster, [at(FAR)]);
    for from in [&lab.outside, &lab.a, &lab.host] {
        assert_eq!(tcp(from, NODE_PORT).saw(), Some(ip(OWN)));
        assert_eq!(tcp(from, BALANCER).saw(), Some(ip(OWN)));
    }
}

fn should_preserve_the_client_with_external_traffic_policy_local(on: EngineChoice) {
    let mut lab = lab(on, TrafficPolicy::Local, [at(B), at(FAR)]);
    for front in [NODE_PORT, BALANCER] {
        assert_eq!(lab.servers(&lab.outside, front, 20), ["b"]);
        assert_eq!(tcp(&lab.outside, front).saw(), Some(ip(OUTSIDE)));
    }
    // From inside there is no policy Local for outside's fronts.
    assert_eq!(lab.servers(&lab.a, BALANCER, 40), ["b", "far"]);
    assert_eq!(tcp(&lab.a, BALANCER).saw(), Some(ip(A)));
    assert_eq!(lab.servers(&lab.host, BALANCER, 40), ["b", "far"]);
    lab.report([slice([at(FAR)])]);
    for front in [NODE_PORT, BALANCER] {
        assert!(
            vanishes(&lab.outside, front),
            "there are endpoints, but none here"
        );
        assert_eq!(tcp(&lab.a, front).server(), "far");
    }
    lab.report([slice([going(B), at(FAR)])]);
    assert_eq!(
        lab.servers(&lab.outside, NODE_PORT, 5),
        ["b"],
        "one that is going still serves"
    );
    lab.report([slice([])]);
    for from in [&lab.outside, &lab.a, &lab.host] {
        assert_eq!(tcp(from, NODE_PORT), Answer::Refused);
        assert_eq!(tcp(from, BALANCER), Answer::Refused);
    }
}

fn should_only_allow_access_from_service_loadbalancer_source_ranges(on: EngineChoice) {
    let mut lab = lab(on, TrafficPolicy::Cluster, [at(B)]);
    let from = |ranges: &[&str]| {
        let ranges = ranges.iter().map(|text| text.parse().unwrap());
        Change::Service(Service {
            source_ranges: ranges.collect(),
            ..exposed()
        })
    };
    lab.report([from(&["198.51.100.0/24"])]);
    assert!(vanishes(&lab.outside, BALANCER));
    assert!(vanishes(&lab.a, BALANCER));
    assert_eq!(
        tcp(&lab.outside, NODE_PORT).server(),
        "b",
        "ports of nodes have no ranges"
    );
    lab.report([from(&["198.51.100.0/24", "192.0.2.1/32"])]);
    assert_eq!(tcp(&lab.outside, BALANCER).server(), "b");
    assert!(vanishes(&lab.a, BALANCER));
    lab.report([from(&["192.0.2.0/24"])]);
    assert_eq!(tcp(&lab.host, BALANCER).server(), "b", "a node in range");
    ok(
        &lab.host,
        "ip route add 203.0.113.5 via 192.0.2.1 src 10.32.0.1",
    );
    assert!(vanishes(&lab.host, BALANCER), "another address of the node");
    ok(
        &lab.host,
        "ip route del 203.0.113.5; ip addr add 203.0.113.5 dev lo",
    );
    assert_eq!(tcp(&lab.host, BALANCER).server(), "b", "the balancer's own");
    lab.report([from(&["192.0.2.1/32"])]);
    assert!(vanishes(&lab.host, BALANCER), "the node is not in range");
    lab.report([from(&[])]);
    assert_eq!(tcp(&lab.a, BALANCER).server(), "b");
}

fn should_be_possible_to_connect_to_a_service_via_external_ip_when_it_is_not_assigned_to_a_node(
    on: EngineChoice,
) {
    let mut lab = lab(on, TrafficPolicy::Cluster, [at(B)]);
    lab.report([Change::Service(Service {
        external_ips: vec![ip("203.0.113.250")],
        ..exposed()
    })]);
    for from in [&lab.a, &lab.host, &lab.outside] {
        assert_eq!(tcp(from, "203.0.113.250:80").server(), "b");
    }
}

fn a_port_of_the_node_is_one_of_its_primary_addresses_and_the_relays_loopback(on: EngineChoice) {
    let lab = lab(on, TrafficPolicy::Cluster, [at(B)]);
    let at_home = tcp(&lab.host, "127.0.0.1:30080");
    match on {
        EngineChoice::Kernel => assert_eq!(at_home, Answer::Refused),
        EngineChoice::Relay | EngineChoice::Auto => assert_eq!(at_home.server(), "b"),
    }
    assert_eq!(tcp(&lab.a, "10.32.0.1:30080"), Answer::Refused);
    assert_eq!(tcp(&lab.host, &format!("{HOST}:30080")).server(), "b");
    let setting = ok(&lab.host, "sysctl -n net.ipv4.conf.all.route_localnet");
    assert_eq!(setting.trim(), "0");
}
