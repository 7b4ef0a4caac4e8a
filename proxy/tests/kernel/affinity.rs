//! Clients that keep their endpoint.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use weave_linux::netns::Netns;
use weave_model::{Affinity, EngineChoice, Service, TrafficPolicy};
use weave_proxy::sources::Change;

use crate::lab::{A, Answer, B, C, Lab, at, exposed, ok, slice, tcp, udp, until, web};

cases! {
    should_have_session_affinity_work_for_service_with_type_cluster_ip => NoAffinity | NoAffinityUdp,
    should_be_able_to_switch_session_affinity_for_service_with_type_cluster_ip => NoAffinity | StaysSticky,
    should_have_session_affinity_timeout_work_for_service_with_type_cluster_ip => Forever,
    should_have_session_affinity_work_for_node_port_service_across_its_fronts => NoAffinity,
    a_client_that_connects_again_in_time_keeps_its_endpoint => NoRefresh,
    a_client_whose_endpoint_vanished_is_picked_for_anew_and_others_stay => NoAffinity | Forgets,
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
        lab.keeps(from, WEB);
    }
    lab.keeps_its_endpoint(udp, &lab.far, WEB);
}

fn should_be_able_to_switch_session_affinity_for_service_with_type_cluster_ip(on: EngineChoice) {
    let mut lab = lab(on, web());
    assert_eq!(lab.servers(&lab.far, WEB, 60).len(), 3);
    lab.report([Change::Service(sticky(3600))]);
    lab.keeps(&lab.far, WEB);
    lab.report([Change::Service(web())]);
    assert_eq!(lab.servers(&lab.far, WEB, 60).len(), 3);
}

fn should_have_session_affinity_timeout_work_for_service_with_type_cluster_ip(on: EngineChoice) {
    let lab = lab(on, sticky(1));
    is_forgotten_after_a_second(&lab.far, WEB);
}

/// Two times in three another one is picked when the client is forgotten.
pub(crate) fn is_forgotten_after_a_second(from: &Netns, to: &str) {
    let first = tcp(from, to);
    assert!(first.saw().is_some(), "{first:?}");
    until("another endpoint after the timeout", || {
        std::thread::sleep(Duration::from_millis(1200));
        let now = tcp(from, to);
        now.saw().is_some() && now != first
    });
}

/// A client's time begins again with each of its connections: of six that connect twice a second nobody is forgotten,
/// though the time of each is over twice since the first. Without that, all six would have to be picked the same again
/// each time.
fn a_client_that_connects_again_in_time_keeps_its_endpoint(on: EngineChoice) {
    // A machine that stands still for nearly as long has had more to do than these tests allow for.
    const SECONDS: u32 = 6;
    const TIME: Duration = Duration::from_secs(SECONDS as u64);
    let lab = lab(on, sticky(SECONDS));
    let clients = [&lab.a, &lab.b, &lab.c, &lab.far, &lab.host, &lab.outside];
    let (first, others) = lab.while_all_answer(|| {
        let ask = || clients.map(|from| tcp(from, WEB));
        let (first, end) = (ask(), Instant::now() + TIME * 5 / 2);
        let mut others = BTreeSet::new();
        while Instant::now() < end {
            std::thread::sleep(TIME / 12);
            others.insert(ask());
        }
        (first, others)
    });
    assert!(first.iter().all(|one| one.saw().is_some()), "{first:?}");
    assert_eq!(others, BTreeSet::from([first]));
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
        let node_port = lab.keeps_its_endpoint(tcp, &lab.outside, "192.0.2.2:30080");
        let balancer = lab.keeps_its_endpoint(tcp, &lab.outside, "203.0.113.5:80");
        assert_eq!(node_port, balancer, "{external:?}");
    }
}

/// How many clients there are outside: enough that chance does not give all of them one endpoint.
const MANY: usize = 24;

/// Who answers each of many clients outside, which have addresses of their own.
fn answers_to_many(lab: &Lab) -> Vec<Answer> {
    let client = |number: usize| {
        let address = format!("192.0.2.{}", 100 + number);
        ok(
            &lab.outside,
            &format!(
                "ip addr replace {address}/32 dev eth0
                 ip route replace 10.96.0.0/16 via 192.0.2.2 src {address}"
            ),
        );
        let answer = tcp(&lab.outside, WEB);
        assert!(answer.saw().is_some(), "{address}: {answer:?}");
        answer
    };
    (0..MANY).map(client).collect()
}

fn a_client_whose_endpoint_vanished_is_picked_for_anew_and_others_stay(on: EngineChoice) {
    let mut lab = lab(on, sticky(3600));
    let all = || slice([at(A), at(B), at(C)]);
    let (before, left, after) = loop {
        let failures = lab.failures();
        let before = answers_to_many(&lab);
        let gone = before[0].server();
        let left: Vec<_> = [(A, "a"), (B, "b"), (C, "c")]
            .into_iter()
            .filter(|(_, server)| *server != gone)
            .collect();
        lab.report([slice(left.iter().map(|(address, _)| at(address)))]);
        let after = answers_to_many(&lab);
        assert_eq!(answers_to_many(&lab), after);
        if lab.failures() == failures {
            break (before, left, after);
        }
        lab.report([all()]);
    };
    let gone = before[0].server();
    let others = before.iter().filter(|one| one.server() != gone).count();
    assert!((1..MANY).contains(&others), "{before:?}");
    for (before, after) in before.iter().zip(&after) {
        if before.server() == gone {
            let anew = left.iter().any(|(_, server)| *server == after.server());
            assert!(anew, "{after:?}");
        } else {
            assert_eq!(after, before, "others keep theirs");
        }
    }
    assert_eq!(answers_to_many(&lab), after);
    // It comes back: nobody is moved to it.
    lab.report([slice([at(A), at(B), at(C)])]);
    assert_eq!(answers_to_many(&lab), after);
    let other_time = lab.report([Change::Service(sticky(60))]);
    assert_eq!(other_time, weave_proxy::kernel::Done::Changed);
    lab.keeps(&lab.far, WEB);
    lab.report([Change::NoService("web".parse().unwrap())]);
    let left = ok(&lab.host, "nft list table inet weave-service");
    assert!(!left.contains("stick") && !left.contains("who-"), "{left}");
}
