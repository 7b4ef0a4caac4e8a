//! Who reaches whom, in the words of "Networking Granular Checks": pods, the node and endpoints as clients, over TCP (there:
//! http) and UDP.

use std::net::SocketAddr;

use weave_linux::netns::Netns;
use weave_model::{EngineChoice, Service};
use weave_proxy::facts::Facts;
use weave_proxy::sources::Change;

use crate::lab::{
    A, Answer, B, C, FAR, HOST, Lab, VIP, ask_with, at, connect, exposed, ip, port, serve_by,
    slice, slice_of, tcp, udp, udp_socket, web,
};
use crate::mutants::patience;

cases! {
    should_function_for_intra_pod_communication => Thief | ThiefUdp,
    should_function_for_node_pod_communication => Thief | ThiefUdp,
    should_function_for_pod_service => NotFromContainers | NoUdp,
    should_function_for_node_service => NotFromHost | NoUdp,
    should_function_for_endpoint_service => Unmasked | NoUdp,
    should_function_for_multiple_endpoint_services_with_same_selector => Once,
    should_update_endpoints => Deaf | LingersUdp,
    should_update_node_port => Deaf | KeepsFronts | KeepsFrontsUdp,
    should_function_for_client_ip_based_session_affinity => NoAffinity | NoAffinityUdp,
    should_support_basic_node_port_udp_functionality => Inside,
    should_be_able_to_handle_large_requests => Small | SmallUdp,
    should_function_for_service_endpoints_using_host_network => NoNodes | NoUdp,
}

const WEB: &str = "10.96.0.1:80";
const NODE_PORT: &str = "192.0.2.2:30080";

fn lab(on: EngineChoice, service: Service, endpoints: &[&str]) -> Lab {
    let mut lab = Lab::new(on);
    lab.report([
        Change::Service(service),
        slice(endpoints.iter().map(|one| at(one))),
    ]);
    lab
}

/// Both protocols lead to one of these.
#[track_caller]
fn reaches(from: &Netns, to: &str, servers: &[&str]) {
    for _ in 0..10 {
        for answer in [tcp(from, to), udp(from, to)] {
            assert!(servers.contains(&answer.server()), "{to}: {answer:?}");
        }
    }
}

fn should_function_for_intra_pod_communication(on: EngineChoice) {
    let lab = lab(on, web(), &[B]);
    reaches(&lab.a, &format!("{B}:8080"), &["b"]);
    assert_eq!(tcp(&lab.a, &format!("{B}:8080")).saw(), Some(ip(A)));
}

fn should_function_for_node_pod_communication(on: EngineChoice) {
    let lab = lab(on, web(), &[B]);
    reaches(&lab.host, &format!("{B}:8080"), &["b"]);
}

fn should_function_for_pod_service(on: EngineChoice) {
    let lab = lab(on, exposed(), &[B, FAR]);
    reaches(&lab.a, WEB, &["b", "far"]);
    reaches(&lab.a, NODE_PORT, &["b", "far"]);
}

fn should_function_for_node_service(on: EngineChoice) {
    let lab = lab(on, exposed(), &[B, FAR]);
    reaches(&lab.host, WEB, &["b", "far"]);
    reaches(&lab.host, NODE_PORT, &["b", "far"]);
}

fn should_function_for_endpoint_service(on: EngineChoice) {
    let lab = lab(on, exposed(), &[A]);
    reaches(&lab.a, WEB, &["a"]);
    reaches(&lab.a, NODE_PORT, &["a"]);
}

fn should_function_for_multiple_endpoint_services_with_same_selector(on: EngineChoice) {
    let mut lab = lab(on, web(), &[A, B]);
    let other = Service {
        name: "other".parse().unwrap(),
        addresses: vec![ip("10.96.0.9")],
        ..web()
    };
    lab.report([Change::Service(other), slice_of("other", [at(A), at(B)])]);
    for front in [WEB, "10.96.0.9:80"] {
        assert_eq!(lab.servers(&lab.c, front, 40), ["a", "b"]);
    }
    lab.report([Change::NoService("other".parse().unwrap())]);
    assert_eq!(lab.servers(&lab.c, WEB, 40), ["a", "b"]);
}

fn should_update_endpoints(on: EngineChoice) {
    let mut lab = lab(on, web(), &[A, B]);
    reaches(&lab.c, WEB, &["a", "b"]);
    lab.report([slice([at(B)])]);
    reaches(&lab.c, WEB, &["b"]);
    lab.report([slice([at(FAR)])]);
    reaches(&lab.c, WEB, &["far"]);
}

fn should_update_node_port(on: EngineChoice) {
    let mut lab = lab(on, exposed(), &[B]);
    reaches(&lab.outside, NODE_PORT, &["b"]);
    let moved = Service {
        ports: vec![
            port(weave_model::Protocol::Tcp, 80, Some(30_081)),
            port(weave_model::Protocol::Udp, 80, Some(30_081)),
        ],
        ..exposed()
    };
    lab.report([Change::Service(moved)]);
    reaches(&lab.outside, "192.0.2.2:30081", &["b"]);
    assert_eq!(tcp(&lab.outside, NODE_PORT), Answer::Refused);
    assert_eq!(udp(&lab.outside, NODE_PORT), Answer::Refused);
}

fn should_function_for_client_ip_based_session_affinity(on: EngineChoice) {
    let sticky = Service {
        affinity: weave_model::Affinity::ClientIp { seconds: 3600 },
        ..web()
    };
    let lab = lab(on, sticky, &[A, B, C]);
    for ask in [tcp, udp] {
        lab.keeps_its_endpoint(ask, &lab.far, WEB);
    }
}

fn should_support_basic_node_port_udp_functionality(on: EngineChoice) {
    let lab = lab(on, exposed(), &[B]);
    for from in [&lab.outside, &lab.a, &lab.host] {
        assert_eq!(udp(from, NODE_PORT).server(), "b");
    }
}

fn should_be_able_to_handle_large_requests(on: EngineChoice) {
    takes_large_requests(&lab(on, web(), &[FAR]), WEB);
}

/// A request of 1 MiB comes back whole; a datagram of several fragments arrives.
pub(crate) fn takes_large_requests(lab: &Lab, front: &str) {
    use std::io::{Read, Write};
    let patience = patience(std::time::Duration::from_secs(10));
    let (stream, _) = connect(&lab.a, front, patience).unwrap();
    let sent: Vec<u8> = (0..1 << 20).map(|at: u32| (at % 251) as u8).collect();
    stream.set_write_timeout(Some(patience)).unwrap();
    let mut writer = stream.try_clone().unwrap();
    let mut back = vec![0; sent.len()];
    std::thread::scope(|scope| {
        scope.spawn(|| writer.write_all(&sent).unwrap());
        (&stream).read_exact(&mut back).unwrap();
    });
    assert!(back == sent);
    let socket = udp_socket(&lab.a, front);
    assert_eq!(ask_with(&socket, &[7; 4000], patience).server(), "far");
}

/// In Kubernetes a pod may have its node's address; elsewhere nobody may claim one.
fn with_an_endpoint_of_the_host(on: EngineChoice) -> Lab {
    let mut lab = Lab::new(on);
    serve_by(&lab.host, "host", SocketAddr::new(ip(HOST), 8080));
    let facts = Facts {
        no_endpoints: Default::default(),
        engine: on,
        ..crate::lab::facts()
    };
    lab.report([
        Change::Facts(facts),
        Change::Service(exposed()),
        slice([at(HOST)]),
    ]);
    lab
}

/// A server of UDP on a host with many addresses answers by the one that it is asked at only if it takes care, which this
/// one does.
fn should_function_for_service_endpoints_using_host_network(on: EngineChoice) {
    let lab = with_an_endpoint_of_the_host(on);
    for from in [&lab.a, &lab.host, &lab.outside] {
        for front in [&format!("{VIP}:80"), NODE_PORT] {
            assert_eq!(tcp(from, front).server(), "host", "{front}");
            assert_eq!(udp(from, front).server(), "host", "{front}");
        }
    }
}

/// That alone is the relay's where an endpoint is the host's.
#[test]
fn a_port_at_a_loopback_address_reaches_an_endpoint_of_the_host() {
    let lab = with_an_endpoint_of_the_host(EngineChoice::Relay);
    assert_eq!(tcp(&lab.host, "127.0.0.1:30080").server(), "host");
    assert_eq!(lab.relay.as_ref().unwrap().counts().accepted, 1);
}
