//! Services of two families, by what is sent over IPv6: the tests of "Dual stack" and of "Granular Checks: Services
//! Secondary IP Family", whose http is TCP here.

use std::time::Duration;

use weave_linux::netns::Netns;
use weave_model::{
    Affinity, BalancerIp, BalancerMode, EngineChoice, Protocol, Service, TrafficPolicy,
};
use weave_proxy::sources::Change;

use crate::granular::takes_large_requests;
use crate::lab::{
    A, Answer, B, FAR6, Lab, VIP, ask, at, exposed, ip, port, recovers, slice, slice6, tcp, udp,
    udp_socket, until, vanishes, web,
};

cases! {
    should_be_able_to_reach_pod_on_ipv4_and_ipv6_ip => Thief | ThiefUdp,
    should_create_service_with_ipv4_cluster_ip => V6Only | NoUdp,
    should_create_service_with_ipv6_cluster_ip => V4Only | NoUdp6,
    should_create_service_with_ipv4_v6_cluster_ip => FirstFamily | NoUdp6,
    should_create_service_with_ipv6_v4_cluster_ip => FirstFamily | NoUdp6,
    should_function_for_pod_service_secondary_ip_family => NotFromContainers6 | NoUdp6,
    should_function_for_node_service_secondary_ip_family => NotFromHost6 | NoUdp6,
    should_function_for_endpoint_service_secondary_ip_family => Unmasked6 | NoUdp6,
    should_function_from_outside_by_node_ports_of_the_secondary_ip_family => NoNodePorts6 | NoUdp6,
    should_update_endpoints_secondary_ip_family => Deaf6 | LingersUdp,
    should_update_node_port_secondary_ip_family => KeepsFronts | KeepsFrontsUdp,
    should_function_for_client_ip_based_session_affinity_secondary_ip_family => NoAffinity6 | NoAffinityUdp,
    should_be_able_to_handle_large_requests_secondary_ip_family => Small6 | SmallUdp,
    should_be_rejected_when_no_endpoints_of_the_secondary_ip_family_exist => Dropped | DroppedUdp,
    the_client_is_preserved_over_ipv6_with_external_traffic_policy_local => NoPolicy6 | NoPolicyUdp,
    source_ranges_of_ipv6_are_kept => NoRanges6 | NoUdp6,
    udp_traffic_over_ipv6_is_preserved_when_its_server_cycles => KeptFlows,
}

const VIP6: &str = "fd96::1";
const A6: &str = "fd77::2";
const B6: &str = "fd77::3";
const C6: &str = "fd77::4";
const OUTSIDE6: &str = "2001:db8::1";
const BALANCER6: &str = "2001:db8:5::5";
const WEB: &str = "10.96.0.1:80";
const WEB6: &str = "[fd96::1]:80";
const NODE_PORT: &str = "192.0.2.2:30080";
const NODE_PORT6: &str = "[2001:db8::2]:30080";
const BALANCER: &str = "[2001:db8:5::5]:80";
const WAIT: Duration = Duration::from_millis(500);

/// A Service with virtual addresses, in this order.
fn of(addresses: &[&str], service: Service) -> Service {
    Service {
        addresses: addresses.iter().map(|address| ip(address)).collect(),
        ..service
    }
}

/// Two families, ports of the node, and a load balancer's address of each family.
fn both() -> Service {
    let mut service = of(&[VIP, VIP6], exposed());
    service.balancer.push(BalancerIp {
        ip: ip(BALANCER6),
        mode: BalancerMode::Vip,
    });
    service
}

/// By IPv4 there is B alone, so that whoever else answers was asked by IPv6.
fn lab(on: EngineChoice, service: Service, endpoints: &[&str]) -> Lab {
    let mut lab = Lab::new(on);
    lab.report([Change::Service(service), slice([at(B)]), slice6(endpoints)]);
    lab
}

/// Both protocols lead to one of these.
#[track_caller]
fn reaches(from: &Netns, to: &str, servers: &[&str]) {
    for _ in 0..8 {
        for answer in [tcp(from, to), udp(from, to)] {
            assert!(servers.contains(&answer.server()), "{to}: {answer:?}");
        }
    }
}

fn should_be_able_to_reach_pod_on_ipv4_and_ipv6_ip(on: EngineChoice) {
    let lab = lab(on, both(), &[C6]);
    for (to, by) in [(format!("[{B6}]:8080"), A6), (format!("{B}:8080"), A)] {
        reaches(&lab.a, &to, &["b"]);
        assert_eq!(tcp(&lab.a, &to).saw(), Some(ip(by)));
        reaches(&lab.host, &to, &["b"]);
    }
}

fn should_create_service_with_ipv4_cluster_ip(on: EngineChoice) {
    let lab = lab(on, of(&[VIP], web()), &[C6]);
    reaches(&lab.a, WEB, &["b"]);
    assert!(vanishes(&lab.a, WEB6), "nobody has it");
}

fn should_create_service_with_ipv6_cluster_ip(on: EngineChoice) {
    let lab = lab(on, of(&[VIP6], web()), &[C6]);
    reaches(&lab.a, WEB6, &["c"]);
    assert!(vanishes(&lab.a, WEB), "nobody has it");
}

fn serves_both(on: EngineChoice, addresses: &[&str]) {
    let lab = lab(on, of(addresses, web()), &[C6, FAR6]);
    for from in [&lab.a, &lab.host] {
        reaches(from, WEB, &["b"]);
        reaches(from, WEB6, &["c", "far"]);
    }
}

fn should_create_service_with_ipv4_v6_cluster_ip(on: EngineChoice) {
    serves_both(on, &[VIP, VIP6]);
}

fn should_create_service_with_ipv6_v4_cluster_ip(on: EngineChoice) {
    serves_both(on, &[VIP6, VIP]);
}

fn should_function_for_pod_service_secondary_ip_family(on: EngineChoice) {
    let lab = lab(on, both(), &[C6, FAR6]);
    assert_eq!(lab.servers(&lab.a, WEB6, 40), ["c", "far"]);
    assert_eq!(tcp(&lab.a, WEB6).saw(), Some(ip(A6)));
    assert_eq!(udp(&lab.a, WEB6).saw(), Some(ip(A6)));
    for front in [WEB6, NODE_PORT6, BALANCER] {
        reaches(&lab.a, front, &["c", "far"]);
    }
    reaches(&lab.a, NODE_PORT, &["b"]);
}

fn should_function_for_node_service_secondary_ip_family(on: EngineChoice) {
    let lab = lab(on, both(), &[C6, FAR6]);
    assert_eq!(lab.servers(&lab.host, WEB6, 40), ["c", "far"]);
    for front in [WEB6, NODE_PORT6, BALANCER] {
        reaches(&lab.host, front, &["c", "far"]);
    }
    reaches(&lab.host, NODE_PORT, &["b"]);
}

fn should_function_for_endpoint_service_secondary_ip_family(on: EngineChoice) {
    let lab = lab(on, both(), &[A6]);
    for front in [WEB6, NODE_PORT6] {
        reaches(&lab.a, front, &["a"]);
    }
    let answer = tcp(&lab.a, WEB6);
    assert_ne!(answer.saw(), Some(ip(A6)), "it would not come back");
}

fn should_function_from_outside_by_node_ports_of_the_secondary_ip_family(on: EngineChoice) {
    let lab = lab(on, both(), &[C6, FAR6]);
    assert_eq!(lab.servers(&lab.outside, NODE_PORT6, 40), ["c", "far"]);
    for front in [NODE_PORT6, BALANCER] {
        reaches(&lab.outside, front, &["c", "far"]);
    }
    assert_ne!(tcp(&lab.outside, NODE_PORT6).saw(), Some(ip(OUTSIDE6)));
    reaches(&lab.outside, NODE_PORT, &["b"]);
}

fn should_update_endpoints_secondary_ip_family(on: EngineChoice) {
    let mut lab = lab(on, both(), &[A6, B6]);
    reaches(&lab.c, WEB6, &["a", "b"]);
    lab.report([slice6(&[B6])]);
    reaches(&lab.c, WEB6, &["b"]);
    lab.report([slice6(&[FAR6])]);
    reaches(&lab.c, WEB6, &["far"]);
    reaches(&lab.c, WEB, &["b"]);
}

fn should_update_node_port_secondary_ip_family(on: EngineChoice) {
    let mut lab = lab(on, both(), &[C6]);
    reaches(&lab.outside, NODE_PORT6, &["c"]);
    let moved = Service {
        ports: vec![
            port(Protocol::Tcp, 80, Some(30_081)),
            port(Protocol::Udp, 80, Some(30_081)),
        ],
        ..both()
    };
    lab.report([Change::Service(moved)]);
    reaches(&lab.outside, "[2001:db8::2]:30081", &["c"]);
    assert_eq!(tcp(&lab.outside, NODE_PORT6), Answer::Refused);
    assert_eq!(udp(&lab.outside, NODE_PORT6), Answer::Refused);
}

fn should_function_for_client_ip_based_session_affinity_secondary_ip_family(on: EngineChoice) {
    let sticky = Service {
        affinity: Affinity::ClientIp { seconds: 3600 },
        ..both()
    };
    let mut lab = lab(on, sticky, &[A6, B6, C6]);
    for (from, front) in [
        (&lab.far, WEB6),
        (&lab.host, WEB6),
        (&lab.outside, NODE_PORT6),
        (&lab.outside, BALANCER),
    ] {
        for ask in [tcp, udp] {
            lab.keeps_its_endpoint(ask, from, front);
        }
    }
    lab.report([Change::Service(both())]);
    assert_eq!(lab.servers(&lab.far, WEB6, 60), ["a", "b", "c"]);
}

fn should_be_able_to_handle_large_requests_secondary_ip_family(on: EngineChoice) {
    takes_large_requests(&lab(on, both(), &[FAR6]), WEB6);
}

fn should_be_rejected_when_no_endpoints_of_the_secondary_ip_family_exist(on: EngineChoice) {
    let mut lab = lab(on, both(), &[]);
    for from in [&lab.a, &lab.host] {
        for front in [WEB6, NODE_PORT6] {
            assert_eq!(tcp(from, front), Answer::Refused, "{front}");
            assert_eq!(udp(from, front), Answer::Refused, "{front}");
        }
        assert_eq!(tcp(from, WEB).server(), "b", "the other family is served");
    }
    lab.report([slice6(&[C6])]);
    reaches(&lab.a, WEB6, &["c"]);
}

fn the_client_is_preserved_over_ipv6_with_external_traffic_policy_local(on: EngineChoice) {
    let local = Service {
        external: TrafficPolicy::Local,
        ..both()
    };
    let mut lab = lab(on, local, &[C6, FAR6]);
    for front in [NODE_PORT6, BALANCER] {
        reaches(&lab.outside, front, &["c"]);
        assert_eq!(tcp(&lab.outside, front).saw(), Some(ip(OUTSIDE6)));
        assert_eq!(udp(&lab.outside, front).saw(), Some(ip(OUTSIDE6)));
    }
    lab.report([slice6(&[FAR6])]);
    assert!(vanishes(&lab.outside, NODE_PORT6), "none is here");
    assert_eq!(tcp(&lab.a, NODE_PORT6).server(), "far");
}

fn source_ranges_of_ipv6_are_kept(on: EngineChoice) {
    let from = |range: &str| Service {
        source_ranges: vec![range.parse().unwrap()],
        ..both()
    };
    let mut lab = lab(on, from("2001:db8:1::/64"), &[C6]);
    assert!(vanishes(&lab.outside, BALANCER));
    reaches(&lab.outside, NODE_PORT6, &["c"]);
    lab.report([Change::Service(from("2001:db8::/64"))]);
    reaches(&lab.outside, BALANCER, &["c"]);
    assert!(vanishes(&lab.a, BALANCER));
}

/// Who asks, and where.
type Asks = fn(&Lab) -> (&Netns, &str);

fn udp_traffic_over_ipv6_is_preserved_when_its_server_cycles(on: EngineChoice) {
    let clients: [Asks; 3] = [
        |lab| (&lab.a, WEB6),
        |lab| (&lab.host, WEB6),
        |lab| (&lab.outside, NODE_PORT6),
    ];
    for client in clients {
        let mut lab = lab(on, both(), &[B6]);
        let (from, front) = client(&lab);
        let socket = udp_socket(from, front);
        until("an answer", || ask(&socket, WAIT).server() == "b");
        lab.report([slice6(&[C6])]);
        recovers(&socket, "c");
        assert!(lab.datagrams_were_relayed());
    }
}
