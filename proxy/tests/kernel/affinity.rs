//! Clients that keep their endpoint.

use std::time::Duration;

use weave_model::{Affinity, EngineChoice, Service, TrafficPolicy};
use weave_proxy::sources::Change;

use crate::lab::{A, B, C, Lab, at, exposed, slice, tcp, udp, until, web};

cases! {
    should_have_session_affinity_work_for_service_with_type_cluster_ip => NoAffinity,
    should_be_able_to_switch_session_affinity_for_service_with_type_cluster_ip => NoAffinity | StaysSticky,
    should_have_session_affinity_timeout_work_for_service_with_type_cluster_ip => Forever,
    should_have_session_affinity_work_for_node_port_service_across_its_fronts => NoAffinity,
    a_client_whose_endpoint_vanished_is_picked_for_anew_and_others_stay => NoAffinity,
}

const WEB: &str = "10.96.0.1:80";

fn sticky(seconds: u32) -> Service {
    Service {
        affinity: Affinity::ClientIp { seconds },
        ..web()
    }
}

fn lab(on: EngineChoice, service: Service) -> Lab {
    let mut lab = Lab::new(on);
    lab.report([Change::Service(service), slice([at(A), at(B), at(C)])]);
    lab
}

fn should_have_session_affinity_work_for_service_with_type_cluster_ip(on: EngineChoice) {
    let lab = lab(on, sticky(3600));
    for from in [&lab.far, &lab.a, &lab.host, &lab.outside] {
        assert_eq!(lab.servers(from, WEB, 12).len(), 1);
    }
    let first = udp(&lab.far, WEB);
    assert!((0..12).all(|_| udp(&lab.far, WEB) == first));
}

fn should_be_able_to_switch_session_affinity_for_service_with_type_cluster_ip(on: EngineChoice) {
    let mut lab = lab(on, web());
    assert_eq!(lab.servers(&lab.far, WEB, 60).len(), 3);
    lab.report([Change::Service(sticky(3600))]);
    assert_eq!(lab.servers(&lab.far, WEB, 12).len(), 1);
    lab.report([Change::Service(web())]);
    assert_eq!(lab.servers(&lab.far, WEB, 60).len(), 3);
}

fn should_have_session_affinity_timeout_work_for_service_with_type_cluster_ip(on: EngineChoice) {
    let lab = lab(on, sticky(1));
    let first = tcp(&lab.far, WEB);
    // Two times in three another one is picked when the client is forgotten.
    until("another endpoint after the timeout", || {
        std::thread::sleep(Duration::from_millis(1200));
        tcp(&lab.far, WEB) != first
    });
}

fn should_have_session_affinity_work_for_node_port_service_across_its_fronts(on: EngineChoice) {
    for external in [TrafficPolicy::Cluster, TrafficPolicy::Local] {
        let lab = lab(
            on,
            Service {
                affinity: Affinity::ClientIp { seconds: 3600 },
                external,
                ..exposed()
            },
        );
        let first = tcp(&lab.outside, "192.0.2.2:30080");
        for front in ["192.0.2.2:30080", "203.0.113.5:80"] {
            assert!(
                (0..10).all(|_| tcp(&lab.outside, front) == first),
                "{front} {external:?}"
            );
        }
    }
}

fn a_client_whose_endpoint_vanished_is_picked_for_anew_and_others_stay(on: EngineChoice) {
    let mut lab = lab(on, sticky(3600));
    let (of_far, of_host) = (tcp(&lab.far, WEB), tcp(&lab.host, WEB));
    let address = |server: &str| match server {
        "a" => A,
        "b" => B,
        _ => C,
    };
    let gone = address(of_far.server());
    let left: Vec<_> = [A, B, C].into_iter().filter(|one| *one != gone).collect();
    lab.report([slice(left.iter().map(|one| at(one)))]);
    let now = tcp(&lab.far, WEB);
    assert_ne!(now.server(), of_far.server());
    assert!((0..10).all(|_| tcp(&lab.far, WEB) == now));
    if of_host.server() != of_far.server() {
        assert!(
            (0..10).all(|_| tcp(&lab.host, WEB) == of_host),
            "others keep theirs"
        );
    }
    // It comes back: nobody is moved to it.
    lab.report([slice([at(A), at(B), at(C)])]);
    assert!((0..10).all(|_| tcp(&lab.far, WEB) == now));
    let other_time = lab.report([Change::Service(sticky(60))]);
    assert_eq!(other_time, weave_proxy::kernel::Done::Changed);
    assert_eq!(lab.servers(&lab.far, WEB, 12).len(), 1);
    lab.report([Change::NoService("web".parse().unwrap())]);
    let left = crate::lab::ok(&lab.host, "nft list table inet weave-service");
    assert!(!left.contains("stick") && !left.contains("who-"), "{left}");
}
