//! Load balancers' addresses, as far as they are a node's business: nobody here gives a Service such an address, but
//! what comes to it is served, as the Service says and as it changes.

use std::collections::BTreeSet;
use std::time::Duration;

use weave_linux::netns::Netns;
use weave_model::{
    Affinity, BalancerIp, BalancerMode, Endpoint, EngineChoice, Protocol, Service, ServiceKind,
    TrafficPolicy,
};
use weave_proxy::sources::Change;

use crate::lab::{
    A, Answer, B, C, FAR, Lab, OUTSIDE, OWN, ask, at, connect, echoes, exposed, ip, ok, port,
    recovers, slice, tcp, udp, udp_socket, until, vanishes, web,
};
use crate::rolling::close;

cases! {
    should_be_able_to_change_the_type_and_ports_of_a_tcp_service => KeepsFronts | Inside,
    should_be_able_to_change_the_type_and_ports_of_a_udp_service => KeepsFronts | Inside,
    should_be_able_to_create_load_balancer_service_without_node_port_and_change_it => NeedsNodePort | KeepsFronts,
    should_be_able_to_create_an_internal_type_load_balancer => KeepsFronts,
    should_have_session_affinity_work_for_load_balancer_service_with_esipp_on => NoBalancerAffinity | NoAffinityUdp,
    should_have_session_affinity_work_for_load_balancer_service_with_esipp_off => NoBalancerAffinity | NoAffinityUdp,
    should_be_able_to_switch_session_affinity_for_load_balancer_service_with_esipp_on => NoBalancerAffinity | StaysSticky,
    should_be_able_to_switch_session_affinity_for_load_balancer_service_with_esipp_off => NoBalancerAffinity | StaysSticky,
    should_be_able_to_preserve_udp_traffic_when_server_pod_cycles_for_a_load_balancer_service_on_different_nodes => KeptBalancerFlows,
    should_be_able_to_preserve_udp_traffic_when_server_pod_cycles_for_a_load_balancer_service_on_the_same_nodes => KeptBalancerFlows,
    should_work_for_type_load_balancer => NoBalancerPolicy | NoPolicyUdp,
    should_work_for_type_node_port => NoNodePortPolicy | NoPolicyUdp,
    should_only_target_nodes_with_endpoints => LocalElsewhere,
    should_work_from_pods => LocalInside,
    should_handle_updates_to_external_traffic_policy_field => FirstPolicy,
    only_addresses_that_reach_the_node_as_they_are_are_taken => NoProxyMode,
}

const WAIT: Duration = Duration::from_millis(700);
const PATIENCE: Duration = Duration::from_secs(10);
const NODE_PORT: &str = "192.0.2.2:30080";
const BALANCER: &str = "203.0.113.5:80";
const HEALTH_PORT: u16 = 32_000;

fn lab(on: EngineChoice, service: Service, endpoints: impl IntoIterator<Item = Endpoint>) -> Lab {
    let mut lab = Lab::new(on);
    // What nobody takes ends outside, instead of going round until it is too old.
    ok(&lab.outside, "sysctl -qw net.ipv4.ip_forward=0");
    lab.report([Change::Service(service), slice(endpoints)]);
    lab
}

fn answer(protocol: Protocol, from: &Netns, to: &str) -> Answer {
    match protocol {
        Protocol::Udp => udp(from, to),
        _ => tcp(from, to),
    }
}

/// Whether nobody takes what is sent there.
fn is_silent(protocol: Protocol, from: &Netns, to: &str) -> bool {
    match protocol {
        Protocol::Udp => ask(&udp_socket(from, to), WAIT) == Answer::Nothing,
        _ => vanishes(from, to),
    }
}

/// One port, which is all that there is of the other fields of that kind.
fn of_kind(kind: ServiceKind, protocol: Protocol, number: u16, node_port: Option<u16>) -> Change {
    let balancer = match kind {
        ServiceKind::LoadBalancer => exposed().balancer,
        _ => Vec::new(),
    };
    Change::Service(Service {
        kind,
        ports: vec![port(protocol, number, node_port)],
        balancer,
        ..web()
    })
}

/// From inside to outside, to other ports, and back.
fn changes_type_and_ports(on: EngineChoice, protocol: Protocol) {
    use ServiceKind::{ClusterIp, LoadBalancer, NodePort};
    let mut lab = lab(on, web(), [at(B)]);
    let mut becomes = |kind: ServiceKind, number, node_port, served: &[&str], refused: &[&str]| {
        lab.report([of_kind(kind.clone(), protocol, number, node_port)]);
        for front in served {
            let said = answer(protocol, &lab.outside, front);
            assert_eq!(said.server(), "b", "{front} of {kind:?}");
            assert_eq!(answer(protocol, &lab.a, front).server(), "b", "{front}");
        }
        for front in refused {
            let is_balancers = front.starts_with("203.");
            let gone = if is_balancers {
                is_silent(protocol, &lab.outside, front)
            } else {
                answer(protocol, &lab.outside, front) == Answer::Refused
            };
            assert!(gone, "{front} of {kind:?}");
        }
    };
    let (vip, moved) = ("10.96.0.1:80", "192.0.2.2:30081");
    let (vip_81, balancer_81) = ("10.96.0.1:81", "203.0.113.5:81");
    becomes(ClusterIp, 80, None, &[vip], &[NODE_PORT, BALANCER]);
    let (port, other) = (Some(30_080), Some(30_081));
    becomes(NodePort, 80, port, &[vip, NODE_PORT], &[BALANCER]);
    becomes(LoadBalancer, 80, port, &[vip, NODE_PORT, BALANCER], &[]);
    becomes(LoadBalancer, 80, other, &[moved, BALANCER], &[NODE_PORT]);
    becomes(
        LoadBalancer,
        81,
        other,
        &[vip_81, moved, balancer_81],
        &[vip, BALANCER],
    );
    becomes(ClusterIp, 81, None, &[vip_81], &[moved, balancer_81]);
}

fn should_be_able_to_change_the_type_and_ports_of_a_tcp_service(on: EngineChoice) {
    changes_type_and_ports(on, Protocol::Tcp);
}

fn should_be_able_to_change_the_type_and_ports_of_a_udp_service(on: EngineChoice) {
    changes_type_and_ports(on, Protocol::Udp);
}

/// `allocateLoadBalancerNodePorts: false`, then true, and back.
fn should_be_able_to_create_load_balancer_service_without_node_port_and_change_it(
    on: EngineChoice,
) {
    let without = Service {
        ports: web().ports,
        ..exposed()
    };
    let mut lab = lab(on, without.clone(), [at(B), at(FAR)]);
    for (service, has_port) in [
        (None, false),
        (Some(exposed()), true),
        (Some(without), false),
    ] {
        lab.report(service.map(Change::Service));
        for from in [&lab.outside, &lab.a, &lab.host] {
            assert_eq!(lab.servers(from, BALANCER, 40), ["b", "far"]);
            assert!(["b", "far"].contains(&udp(from, BALANCER).server()));
        }
        for said in [tcp(&lab.outside, NODE_PORT), udp(&lab.outside, NODE_PORT)] {
            assert_eq!(said.saw().is_some(), has_port, "{said:?}");
            assert!(has_port || said == Answer::Refused, "{said:?}");
        }
    }
}

/// What a balancer inside or outside of a cloud's network has is an address to a node; it may become another one.
fn should_be_able_to_create_an_internal_type_load_balancer(on: EngineChoice) {
    const INSIDE: &str = "172.20.0.9:80";
    let with = |address: &str| Service {
        balancer: vec![BalancerIp {
            ip: ip(address),
            mode: BalancerMode::Vip,
        }],
        ..exposed()
    };
    let mut lab = lab(on, with("172.20.0.9"), [at(B)]);
    for (address, served, not) in [
        ("172.20.0.9", INSIDE, BALANCER),
        ("203.0.113.5", BALANCER, INSIDE),
        ("172.20.0.9", INSIDE, BALANCER),
    ] {
        lab.report([Change::Service(with(address))]);
        for from in [&lab.outside, &lab.a] {
            assert_eq!(tcp(from, served).server(), "b");
            assert_eq!(udp(from, served).server(), "b");
        }
        assert!(vanishes(&lab.outside, not), "{not}");
    }
}

/// With an address that a balancer keeps to itself (`ipMode: Proxy`), the way over the balancer is not cut short.
fn only_addresses_that_reach_the_node_as_they_are_are_taken(on: EngineChoice) {
    let mut proxied = exposed();
    proxied.balancer[0].mode = BalancerMode::Proxy;
    let mut lab = lab(on, proxied, [at(B)]);
    for from in [&lab.outside, &lab.a, &lab.host] {
        assert!(vanishes(from, BALANCER), "the balancer's own packets");
        assert_eq!(tcp(from, NODE_PORT).server(), "b", "what it sends on");
    }
    lab.report([Change::Service(exposed())]);
    assert_eq!(tcp(&lab.a, BALANCER).server(), "b");
}

fn with(external: TrafficPolicy, affinity: Affinity) -> Service {
    Service {
        external,
        affinity,
        health_port: Some(HEALTH_PORT),
        ..exposed()
    }
}

const STICKY: Affinity = Affinity::ClientIp { seconds: 3600 };

#[track_caller]
fn is_kept(lab: &Lab) {
    for ask in [tcp, udp] {
        lab.keeps_its_endpoint(ask, &lab.outside, BALANCER);
    }
}

fn has_affinity(on: EngineChoice, external: TrafficPolicy) {
    let lab = lab(on, with(external, STICKY), [at(A), at(B), at(C), at(FAR)]);
    is_kept(&lab);
    // It is the same one that the client has by the port of the node.
    let here = tcp(&lab.outside, BALANCER);
    assert_eq!(tcp(&lab.outside, NODE_PORT).server(), here.server());
}

fn should_have_session_affinity_work_for_load_balancer_service_with_esipp_on(on: EngineChoice) {
    has_affinity(on, TrafficPolicy::Local);
}

fn should_have_session_affinity_work_for_load_balancer_service_with_esipp_off(on: EngineChoice) {
    has_affinity(on, TrafficPolicy::Cluster);
}

fn switches_affinity(on: EngineChoice, external: TrafficPolicy) {
    let without = with(external, Affinity::None);
    let mut lab = lab(on, without.clone(), [at(A), at(B), at(C)]);
    for _ in 0..2 {
        lab.report([Change::Service(without.clone())]);
        assert_eq!(lab.servers(&lab.outside, BALANCER, 60).len(), 3);
        lab.report([Change::Service(with(external, STICKY))]);
        is_kept(&lab);
    }
}

fn should_be_able_to_switch_session_affinity_for_load_balancer_service_with_esipp_on(
    on: EngineChoice,
) {
    switches_affinity(on, TrafficPolicy::Local);
}

fn should_be_able_to_switch_session_affinity_for_load_balancer_service_with_esipp_off(
    on: EngineChoice,
) {
    switches_affinity(on, TrafficPolicy::Cluster);
}

/// The server of a client that keeps its port dies, for a while there is none, and then there is another one.
fn cycles(on: EngineChoice, (first, of_first): (&str, &str), (other, of_other): (&str, &str)) {
    let mut lab = lab(on, exposed(), [at(first)]);
    let client = udp_socket(&lab.outside, BALANCER);
    until("an answer", || ask(&client, WAIT).server() == of_first);
    let dies = match of_first {
        "far" => &lab.far,
        _ => &lab.b,
    };
    close(dies);
    lab.report([slice([])]);
    assert!(ask(&client, WAIT).saw().is_none(), "nobody is there");
    lab.report([slice([at(other)])]);
    recovers(&client, of_other);
    assert!(lab.datagrams_were_relayed());
}

fn should_be_able_to_preserve_udp_traffic_when_server_pod_cycles_for_a_load_balancer_service_on_different_nodes(
    on: EngineChoice,
) {
    cycles(on, (B, "b"), (FAR, "far"));
    cycles(on, (FAR, "far"), (B, "b"));
}

fn should_be_able_to_preserve_udp_traffic_when_server_pod_cycles_for_a_load_balancer_service_on_the_same_nodes(
    on: EngineChoice,
) {
    cycles(on, (B, "b"), (C, "c"));
}

/// Policy Local by one front: the client is seen as it is, by endpoints of this node alone.
fn keeps_the_client_by(on: EngineChoice, front: &str) {
    let local = with(TrafficPolicy::Local, Affinity::None);
    let lab = lab(on, local, [at(B), at(C), at(FAR)]);
    assert_eq!(lab.servers(&lab.outside, front, 40), ["b", "c"]);
    for ask in [tcp, udp] {
        assert_eq!(ask(&lab.outside, front).saw(), Some(ip(OUTSIDE)));
    }
}

fn should_work_for_type_load_balancer(on: EngineChoice) {
    keeps_the_client_by(on, BALANCER);
}

fn should_work_for_type_node_port(on: EngineChoice) {
    keeps_the_client_by(on, NODE_PORT);
}

/// How many endpoints the balancer is told of, where it asks.
fn told(lab: &Lab) -> Option<usize> {
    let health = &lab.sources.table().health;
    health.get(&HEALTH_PORT).map(|health| health.local)
}

/// The balancer is told of nodes that have none, and what it sends there nevertheless is not passed on. What it is told
/// over HTTP is in `tests/health.rs` of the root crate.
fn should_only_target_nodes_with_endpoints(on: EngineChoice) {
    let local = with(TrafficPolicy::Local, Affinity::None);
    let mut lab = lab(on, local, [at(FAR)]);
    for (endpoints, here) in [(&[FAR][..], 0), (&[B, FAR], 1), (&[FAR], 0)] {
        lab.report([slice(endpoints.iter().map(|one| at(one)))]);
        assert_eq!(told(&lab), Some(here));
        if here == 0 {
            assert!(vanishes(&lab.outside, BALANCER));
            assert!(is_silent(Protocol::Udp, &lab.outside, BALANCER));
        } else {
            assert_eq!(lab.servers(&lab.outside, BALANCER, 10), ["b"]);
            assert_eq!(udp(&lab.outside, BALANCER).server(), "b");
        }
    }
}

/// Pods reach all endpoints by the fronts for outside, whatever the policy, and even where this node has none.
fn should_work_from_pods(on: EngineChoice) {
    let local = with(TrafficPolicy::Local, Affinity::None);
    let mut lab = lab(on, local, [at(B), at(FAR)]);
    for front in [BALANCER, NODE_PORT] {
        assert_eq!(lab.servers(&lab.a, front, 40), ["b", "far"]);
        assert_eq!(tcp(&lab.a, front).saw(), Some(ip(A)));
    }
    lab.report([slice([at(FAR)])]);
    for front in [BALANCER, NODE_PORT] {
        assert_eq!(tcp(&lab.a, front).server(), "far");
        assert_eq!(udp(&lab.a, front).server(), "far");
    }
}

/// The policy of a Service that is in use changes there and back: what is open stays, what is new has the new one, and
/// the balancer asks only while it has to.
fn should_handle_updates_to_external_traffic_policy_field(on: EngineChoice) {
    let policy = |external| Change::Service(with(external, Affinity::None));
    let mut lab = lab(on, exposed(), [at(B), at(FAR)]);
    let (mut stream, _) = connect(&lab.outside, BALANCER, PATIENCE).unwrap();
    for _ in 0..2 {
        lab.report([policy(TrafficPolicy::Local)]);
        for front in [BALANCER, NODE_PORT] {
            assert_eq!(lab.servers(&lab.outside, front, 20), ["b"], "{front}");
            assert_eq!(tcp(&lab.outside, front).saw(), Some(ip(OUTSIDE)));
            assert_eq!(udp(&lab.outside, front).saw(), Some(ip(OUTSIDE)));
        }
        assert_eq!(told(&lab), Some(1));
        assert!(echoes(&mut stream), "what is open stays");
        lab.report([policy(TrafficPolicy::Cluster)]);
        assert_eq!(told(&lab), None);
        for front in [BALANCER, NODE_PORT] {
            let (mut servers, mut seen) = (BTreeSet::new(), BTreeSet::new());
            until("both answer, and one sees this node", || {
                // At once, because a relay picks the one with the fewest open connections.
                let open: Vec<_> = (0..4)
                    .map(|_| connect(&lab.outside, front, PATIENCE).unwrap())
                    .collect();
                servers.extend(open.iter().map(|(_, answer)| answer.server().to_owned()));
                seen.extend(open.iter().filter_map(|(_, answer)| answer.saw()));
                servers.len() == 2 && seen.contains(&ip(OWN))
            });
            let from = udp(&lab.outside, front).saw();
            assert!(from.is_some_and(|from| from != ip(OUTSIDE)), "{from:?}");
        }
        assert!(echoes(&mut stream), "what is open stays");
    }
}
