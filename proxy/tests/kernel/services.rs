//! Virtual addresses from containers and from the host.

use weave_model::{Endpoint, EngineChoice, Protocol, Service, TrafficPolicy};
use weave_proxy::sources::Change;

use crate::lab::{
    A, Answer, B, C, FAR, Lab, OUTSIDE, OWN, VIP, at, going, ip, port, slice, slice6, tcp, udp,
    vanishes, web,
};

cases! {
    should_serve_a_basic_endpoint_from_pods => OnlyHere | NoUdp,
    every_endpoint_gets_its_share => Weighted,
    should_preserve_source_pod_ip_for_traffic_thru_service_cluster_ip => Masked,
    should_allow_pods_to_hairpin_back_to_themselves_through_services => Unmasked | NoUdp,
    should_be_rejected_when_no_endpoints_exist => Dropped | DroppedUdp,
    should_respect_internal_traffic_policy_local => NoPolicy,
    should_fallback_to_terminating_endpoints_when_there_are_no_ready_endpoints => NotGoing,
    ports_that_no_service_has_are_refused_and_addresses_that_none_has_are_silent => Loud,
    should_serve_multiport_endpoints_from_pods => OnePort,
    should_serve_endpoints_on_same_port_and_different_protocols => NoUdp,
    should_be_able_to_up_and_down_services => Forgotten,
    should_implement_service_proxy_name => OthersToo,
    should_implement_headless => HeadlessToo,
    both_families_are_served => V4Only,
}

const WEB: &str = "10.96.0.1:80";

fn lab(on: EngineChoice, service: Service, endpoints: impl IntoIterator<Item = Endpoint>) -> Lab {
    let mut lab = Lab::new(on);
    lab.report([Change::Service(service), slice(endpoints)]);
    lab
}

fn should_serve_a_basic_endpoint_from_pods(on: EngineChoice) {
    let lab = lab(on, web(), [at(B), at(FAR)]);
    for from in [&lab.a, &lab.c, &lab.host] {
        assert_eq!(lab.servers(from, WEB, 40), ["b", "far"]);
        assert!(["b", "far"].contains(&udp(from, WEB).server()));
    }
}

/// Each of two endpoints gets its half: of 300 connections, fewer than 100 to one of them come once in a hundred
/// million runs.
fn every_endpoint_gets_its_share(on: EngineChoice) {
    let lab = lab(on, web(), [at(B), at(C)]);
    let to_b = (0..300)
        .filter(|_| tcp(&lab.a, WEB).server() == "b")
        .count();
    assert!((100..=200).contains(&to_b), "{to_b} of 300");
}

fn should_preserve_source_pod_ip_for_traffic_thru_service_cluster_ip(on: EngineChoice) {
    let mut lab = lab(on, web(), [at(B)]);
    assert_eq!(tcp(&lab.a, WEB).saw(), Some(ip(A)));
    assert_eq!(udp(&lab.a, WEB).saw(), Some(ip(A)));
    lab.report([slice([at(FAR)])]);
    assert_eq!(tcp(&lab.a, WEB).saw(), Some(ip(A)));
    // The host's own address is one that other nodes find the way back to.
    assert_eq!(tcp(&lab.host, WEB).saw(), Some(ip(OWN)));
    assert_eq!(tcp(&lab.outside, WEB).saw(), Some(ip(OWN)));
    assert_ne!(Some(ip(OUTSIDE)), tcp(&lab.outside, WEB).saw());
}

fn should_allow_pods_to_hairpin_back_to_themselves_through_services(on: EngineChoice) {
    let lab = lab(on, web(), [at(A)]);
    let answer = tcp(&lab.a, WEB);
    assert_eq!(answer.server(), "a");
    assert_ne!(
        answer.saw(),
        Some(ip(A)),
        "an answer to itself would not come back"
    );
    assert_eq!(udp(&lab.a, WEB).server(), "a");
}

fn should_be_rejected_when_no_endpoints_exist(on: EngineChoice) {
    let mut lab = lab(on, web(), []);
    for from in [&lab.a, &lab.host, &lab.outside] {
        assert_eq!(tcp(from, WEB), Answer::Refused);
        assert_eq!(udp(from, WEB), Answer::Refused);
    }
    lab.report([slice([at(B)])]);
    assert_eq!(tcp(&lab.a, WEB).server(), "b");
    lab.report([slice([])]);
    assert_eq!(tcp(&lab.a, WEB), Answer::Refused);
}

fn should_respect_internal_traffic_policy_local(on: EngineChoice) {
    let local = Service {
        internal: TrafficPolicy::Local,
        ..web()
    };
    let mut lab = lab(on, local, [at(B), at(FAR)]);
    assert_eq!(lab.servers(&lab.a, WEB, 20), ["b"]);
    lab.report([slice([at(FAR)])]);
    assert!(vanishes(&lab.a, WEB), "there are endpoints, but none here");
    lab.report([slice([])]);
    assert_eq!(tcp(&lab.a, WEB), Answer::Refused);
}

fn should_fallback_to_terminating_endpoints_when_there_are_no_ready_endpoints(on: EngineChoice) {
    let mut lab = lab(on, web(), [going(B), at(C)]);
    assert_eq!(lab.servers(&lab.a, WEB, 20), ["c"]);
    lab.report([slice([going(B)])]);
    assert_eq!(lab.servers(&lab.a, WEB, 5), ["b"]);
}

fn ports_that_no_service_has_are_refused_and_addresses_that_none_has_are_silent(on: EngineChoice) {
    let lab = lab(on, web(), [at(B)]);
    assert_eq!(tcp(&lab.a, "10.96.0.1:81"), Answer::Refused);
    assert_eq!(tcp(&lab.host, "10.96.0.1:81"), Answer::Refused);
    assert!(vanishes(&lab.a, "10.96.0.2:80"));
}

fn should_serve_multiport_endpoints_from_pods(on: EngineChoice) {
    let many = Service {
        ports: vec![
            port(Protocol::Tcp, 80, None),
            port(Protocol::Tcp, 443, None),
        ],
        ..web()
    };
    let mut lab = lab(on, many, [at(B)]);
    assert_eq!(tcp(&lab.a, WEB).server(), "b");
    assert_eq!(tcp(&lab.a, "10.96.0.1:443").server(), "b");
    lab.report([Change::Service(web())]);
    assert_eq!(
        tcp(&lab.a, "10.96.0.1:443"),
        Answer::Refused,
        "updated after deleting a port"
    );
    assert_eq!(tcp(&lab.a, WEB).server(), "b");
}

fn should_serve_endpoints_on_same_port_and_different_protocols(on: EngineChoice) {
    let mut lab = lab(on, web(), [at(B)]);
    assert_eq!(
        (tcp(&lab.a, WEB).server(), udp(&lab.a, WEB).server()),
        ("b", "b")
    );
    let only_tcp = Service {
        ports: vec![port(Protocol::Tcp, 80, None)],
        ..web()
    };
    lab.report([Change::Service(only_tcp)]);
    assert_eq!(
        (tcp(&lab.a, WEB).server(), udp(&lab.a, WEB).server()),
        ("b", "refused")
    );
}

fn should_be_able_to_up_and_down_services(on: EngineChoice) {
    let mut lab = lab(on, web(), [at(B)]);
    let other = Service {
        addresses: vec![ip("10.96.0.9")],
        name: "other".parse().unwrap(),
        ..web()
    };
    lab.report([Change::Service(other)]);
    assert_eq!(tcp(&lab.a, "10.96.0.9:80"), Answer::Refused);
    lab.report([Change::NoService("web".parse().unwrap())]);
    assert!(vanishes(&lab.a, WEB), "its address is nobody's now");
    lab.report([Change::Service(web())]);
    assert_eq!(tcp(&lab.a, WEB).server(), "b", "a recreated service");
}

fn should_implement_service_proxy_name(on: EngineChoice) {
    is_served_only_without_a_label(
        on,
        Service {
            other_proxy: true,
            ..web()
        },
    );
}

fn should_implement_headless(on: EngineChoice) {
    is_served_only_without_a_label(
        on,
        Service {
            headless: true,
            ..web()
        },
    );
}

fn is_served_only_without_a_label(on: EngineChoice, labelled: Service) {
    let mut lab = lab(on, web(), [at(B)]);
    assert_eq!(tcp(&lab.a, WEB).server(), "b");
    lab.report([Change::Service(labelled)]);
    assert!(vanishes(&lab.a, WEB));
    lab.report([Change::Service(web())]);
    assert_eq!(tcp(&lab.a, WEB).server(), "b");
}

fn both_families_are_served(on: EngineChoice) {
    let both = Service {
        addresses: vec![ip(VIP), ip("fd96::1")],
        ..web()
    };
    let mut lab = lab(on, both, [at(B)]);
    lab.report([slice6(&["fd77::3", "fd77::2"])]);
    assert_eq!(lab.servers(&lab.c, "[fd96::1]:80", 20), ["a", "b"]);
    assert_eq!(tcp(&lab.c, "[fd96::1]:80").saw(), Some(ip("fd77::4")));
    assert_eq!(
        lab.servers(&lab.a, "[fd96::1]:80", 20),
        ["a", "b"],
        "hairpin"
    );
    assert_eq!(tcp(&lab.a, "[fd96::1]:81"), Answer::Refused);
    assert_eq!(tcp(&lab.c, WEB).server(), "b");
}
