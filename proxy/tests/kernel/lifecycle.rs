//! Services that change: their kind, their ports, their endpoints' conditions, and the engine's own restart.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener};
use std::thread;
use std::time::Duration;

use weave_linux::netns::run_in;
use weave_model::{
    Affinity, Endpoint, EngineChoice, Protocol, Service, ServiceKind, TrafficPolicy,
};
use weave_proxy::facts::Facts;
use weave_proxy::kernel::Done;
use weave_proxy::sources::Change;

use crate::affinity::is_forgotten_after_a_second;
use crate::lab::{
    A, Answer, B, C, FAR, Lab, at, connect, echoes, exposed, going, ok, port, slice, tcp, udp,
    until, vanishes, web,
};

cases! {
    should_be_able_to_change_the_type_from_external_name_to_cluster_ip_and_back => NamesToo | Deaf | KeepsPorts,
    should_be_able_to_change_the_type_from_external_name_to_node_port_and_back => NamesToo | Deaf | KeepsPorts,
    should_be_able_to_update_service_type_to_node_port_listening_on_same_port_number_but_different_protocols => Deaf | NoUdp,
    should_be_updated_after_adding_or_deleting_ports => Deaf | KeepsPorts,
    should_work_after_the_service_has_been_recreated => Forgotten,
    should_work_after_restarting_kube_proxy => Amnesia,
    should_work_after_restarting_apiserver => Deaf,
    should_set_tcp_close_wait_timeout => Hasty,
    should_serve_endpoints_on_same_port_and_different_protocol_for_internal_traffic_on_type_load_balancer => Inside | NoUdp,
    should_be_rejected_for_evicted_pods_no_endpoints_exist => Unready,
    should_be_able_to_connect_to_terminating_and_unready_endpoints_if_publish_not_ready_addresses_is_true => OnlyServing,
    should_not_be_able_to_connect_to_terminating_and_unready_endpoints_if_publish_not_ready_addresses_is_false => Unready,
    should_respect_internal_traffic_policy_local_pod_to_pod => NoPolicy,
    should_respect_internal_traffic_policy_local_node_to_pod => NoPolicy,
    should_fallback_to_terminating_endpoints_with_internal_traffic_policy_cluster => NotGoing,
    should_fallback_to_local_terminating_endpoints_with_internal_traffic_policy_local => NotGoing,
    should_fallback_to_terminating_endpoints_with_external_traffic_policy_cluster => NotGoing,
    should_fallback_to_local_terminating_endpoints_with_external_traffic_policy_local => NotGoing,
    should_be_able_to_switch_session_affinity_for_node_port_service => NoAffinity | StaysSticky,
    should_have_session_affinity_timeout_work_for_node_port_service => Forever,
    should_route_traffic_to_an_endpoint_in_the_same_zone => NoHints,
    should_prefer_an_endpoint_on_the_same_node => NoHints,
    should_respect_internal_traffic_policy_local_pod_to_node => NoPolicy,
}

const PATIENCE: Duration = Duration::from_secs(10);
const WEB: &str = "10.96.0.1:80";
const NODE_PORT: &str = "192.0.2.2:30080";
const BALANCER: &str = "203.0.113.5:80";

fn lab(on: EngineChoice, service: Service, endpoints: impl IntoIterator<Item = Endpoint>) -> Lab {
    let mut lab = Lab::new(on);
    lab.report([Change::Service(service), slice(endpoints)]);
    lab
}

/// Only another name: what the API server leaves of the addresses is not served.
fn external_name(service: Service) -> Service {
    Service {
        kind: ServiceKind::ExternalName("elsewhere.example".to_owned()),
        ..service
    }
}

fn changes_type(on: EngineChoice, served: &Service, front: &str) {
    let mut lab = lab(on, external_name(served.clone()), [at(B)]);
    for _ in 0..2 {
        let said = connect(&lab.a, front, Duration::from_millis(700));
        assert!(said.is_err(), "{front}: a name is served");
        lab.report([Change::Service(served.clone())]);
        assert_eq!(tcp(&lab.a, front).server(), "b");
        lab.report([Change::Service(external_name(served.clone()))]);
    }
}

fn should_be_able_to_change_the_type_from_external_name_to_cluster_ip_and_back(on: EngineChoice) {
    changes_type(on, &web(), WEB);
}

fn should_be_able_to_change_the_type_from_external_name_to_node_port_and_back(on: EngineChoice) {
    changes_type(on, &exposed(), NODE_PORT);
}

fn should_be_able_to_update_service_type_to_node_port_listening_on_same_port_number_but_different_protocols(
    on: EngineChoice,
) {
    let only_tcp = Service {
        ports: vec![port(Protocol::Tcp, 80, None)],
        ..web()
    };
    let mut lab = lab(on, only_tcp, [at(B)]);
    assert_eq!(tcp(&lab.a, NODE_PORT), Answer::Refused);
    let both = Service {
        kind: ServiceKind::NodePort,
        ports: exposed().ports,
        ..web()
    };
    lab.report([Change::Service(both)]);
    assert_eq!(tcp(&lab.a, NODE_PORT).server(), "b");
    assert_eq!(udp(&lab.a, NODE_PORT).server(), "b");
}

fn should_be_updated_after_adding_or_deleting_ports(on: EngineChoice) {
    let with = |ports: &[u16]| {
        let ports = ports
            .iter()
            .map(|number| port(Protocol::Tcp, *number, None));
        Change::Service(Service {
            ports: ports.collect(),
            ..web()
        })
    };
    let mut lab = lab(on, web(), [at(B)]);
    lab.report([with(&[80, 81])]);
    assert_eq!(tcp(&lab.a, "10.96.0.1:81").server(), "b");
    lab.report([with(&[81])]);
    assert_eq!(tcp(&lab.a, WEB), Answer::Refused);
    assert_eq!(tcp(&lab.a, "10.96.0.1:81").server(), "b");
}

fn should_work_after_the_service_has_been_recreated(on: EngineChoice) {
    let mut lab = lab(on, web(), [at(B)]);
    for _ in 0..2 {
        assert_eq!(tcp(&lab.a, WEB).server(), "b");
        lab.report([Change::NoService("web".parse().unwrap())]);
        assert!(vanishes(&lab.a, WEB));
        lab.report([Change::Service(web())]);
    }
    assert_eq!(tcp(&lab.a, WEB).server(), "b");
}

fn should_work_after_restarting_kube_proxy(on: EngineChoice) {
    let mut lab = lab(on, web(), [at(B)]);
    assert_eq!(tcp(&lab.a, WEB).server(), "b");
    lab.restart();
    if lab.relay.take().is_some() {
        lab.restart_relay(64);
    }
    assert_eq!(tcp(&lab.a, WEB).server(), "b");
    lab.report([slice([at(C)])]);
    assert_eq!(tcp(&lab.a, WEB).server(), "c");
}

/// There it is away for a minute; what of it matters to a node is that nobody reports, and then everything is reported anew.
fn should_work_after_restarting_apiserver(on: EngineChoice) {
    let mut lab = lab(on, web(), [at(B)]);
    let (mut stream, _) = connect(&lab.a, WEB, PATIENCE).unwrap();
    ok(&lab.host, "nft delete table inet weave-service");
    assert_eq!(
        lab.kernel.look_after(std::time::Instant::now()).unwrap(),
        Done::Remade
    );
    assert_eq!(tcp(&lab.a, WEB).server(), "b");
    let again = [Change::Service(web()), slice([at(B)])];
    assert_eq!(lab.report(again), Done::Kept);
    assert!(echoes(&mut stream));
    lab.report([Change::Service(web()), slice([at(C)])]);
    assert_eq!(tcp(&lab.a, WEB).server(), "c");
    assert!(echoes(&mut stream), "what is established stays");
}

/// There the setting is read; here a client has said all, and its answer comes after more silence than the host had
/// patience for.
fn should_set_tcp_close_wait_timeout(on: EngineChoice) {
    const PORT: u16 = 8090;
    let mut lab = lab(on, web(), []);
    ok(
        &lab.host,
        "sysctl -qw net.netfilter.nf_conntrack_tcp_timeout_close_wait=1",
    );
    lab.restart();
    let Change::Slice(mut behind) = slice([at(B)]) else {
        unreachable!("it is a slice")
    };
    behind
        .ports
        .iter_mut()
        .for_each(|port| port.port = Some(PORT));
    lab.report([Change::Slice(behind)]);
    let listener = run_in(&lab.b, || TcpListener::bind(("0.0.0.0", PORT)).unwrap()).unwrap();
    thread::spawn(move || {
        let (mut stream, peer) = listener.accept().unwrap();
        writeln!(stream, "b {}", peer.ip()).unwrap();
        stream.read_to_end(&mut Vec::new()).unwrap();
        thread::sleep(Duration::from_secs(3));
        stream.write_all(b"late").unwrap();
    });
    let (mut stream, _) = connect(&lab.a, WEB, PATIENCE).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "late");
}

fn should_serve_endpoints_on_same_port_and_different_protocol_for_internal_traffic_on_type_load_balancer(
    on: EngineChoice,
) {
    let lab = lab(on, exposed(), [at(B), at(FAR)]);
    for from in [&lab.a, &lab.host] {
        assert!(["b", "far"].contains(&tcp(from, BALANCER).server()));
        assert!(["b", "far"].contains(&udp(from, BALANCER).server()));
    }
}

fn not_ready(address: &str) -> Endpoint {
    Endpoint {
        ready: false,
        serving: false,
        ..at(address)
    }
}

fn should_be_rejected_for_evicted_pods_no_endpoints_exist(on: EngineChoice) {
    let lab = lab(on, exposed(), [not_ready(B)]);
    for front in [WEB, NODE_PORT, BALANCER] {
        assert_eq!(tcp(&lab.a, front), Answer::Refused);
        assert_eq!(tcp(&lab.host, front), Answer::Refused);
    }
}

/// The slices' writer says so by calling them ready.
fn should_be_able_to_connect_to_terminating_and_unready_endpoints_if_publish_not_ready_addresses_is_true(
    on: EngineChoice,
) {
    let published = Endpoint {
        serving: false,
        terminating: true,
        ..at(B)
    };
    let lab = lab(on, exposed(), [published]);
    for front in [WEB, NODE_PORT] {
        assert_eq!(tcp(&lab.a, front).server(), "b");
    }
}

fn should_not_be_able_to_connect_to_terminating_and_unready_endpoints_if_publish_not_ready_addresses_is_false(
    on: EngineChoice,
) {
    let gone = Endpoint {
        terminating: true,
        ..not_ready(B)
    };
    let lab = lab(on, exposed(), [gone]);
    for front in [WEB, NODE_PORT] {
        assert_eq!(tcp(&lab.a, front), Answer::Refused);
    }
}

fn local() -> Service {
    Service {
        internal: TrafficPolicy::Local,
        ..web()
    }
}

fn should_respect_internal_traffic_policy_local_pod_to_pod(on: EngineChoice) {
    let lab = lab(on, local(), [at(B), at(FAR)]);
    assert_eq!(lab.servers(&lab.a, WEB, 20), ["b"]);
}

/// From a pod with its node's address: the node itself.
fn should_respect_internal_traffic_policy_local_node_to_pod(on: EngineChoice) {
    let mut lab = lab(on, local(), [at(B), at(FAR)]);
    assert_eq!(lab.servers(&lab.host, WEB, 20), ["b"]);
    lab.report([slice([at(FAR)])]);
    assert!(vanishes(&lab.host, WEB));
}

/// To a pod with its node's address.
fn should_respect_internal_traffic_policy_local_pod_to_node(on: EngineChoice) {
    let mut lab = Lab::new(on);
    crate::lab::serve(&lab.host, "host");
    let facts = Facts {
        no_endpoints: Default::default(),
        engine: on,
        ..crate::lab::facts()
    };
    let here = at(crate::lab::HOST);
    lab.report([
        Change::Facts(facts),
        Change::Service(local()),
        slice([here, at(FAR)]),
    ]);
    assert_eq!(lab.servers(&lab.a, WEB, 20), ["host"]);
}

fn should_fallback_to_terminating_endpoints_with_internal_traffic_policy_cluster(on: EngineChoice) {
    let lab = lab(on, web(), [going(B), going(FAR), not_ready(A)]);
    assert_eq!(lab.servers(&lab.c, WEB, 40), ["b", "far"]);
}

fn should_fallback_to_local_terminating_endpoints_with_internal_traffic_policy_local(
    on: EngineChoice,
) {
    let lab = lab(on, local(), [going(B), at(FAR)]);
    assert_eq!(lab.servers(&lab.c, WEB, 20), ["b"]);
}

fn should_fallback_to_terminating_endpoints_with_external_traffic_policy_cluster(on: EngineChoice) {
    let lab = lab(on, exposed(), [going(B), going(FAR)]);
    for front in [NODE_PORT, BALANCER] {
        assert_eq!(lab.servers(&lab.outside, front, 40), ["b", "far"]);
    }
}

fn should_fallback_to_local_terminating_endpoints_with_external_traffic_policy_local(
    on: EngineChoice,
) {
    let local = Service {
        external: TrafficPolicy::Local,
        ..exposed()
    };
    let lab = lab(on, local, [going(B), at(FAR)]);
    for front in [NODE_PORT, BALANCER] {
        assert_eq!(lab.servers(&lab.outside, front, 20), ["b"]);
    }
}

fn sticky(seconds: u32) -> Service {
    Service {
        affinity: Affinity::ClientIp { seconds },
        ..exposed()
    }
}

fn should_be_able_to_switch_session_affinity_for_node_port_service(on: EngineChoice) {
    let mut lab = lab(on, exposed(), [at(A), at(B), at(C)]);
    assert_eq!(lab.servers(&lab.outside, NODE_PORT, 60).len(), 3);
    lab.report([Change::Service(sticky(3600))]);
    lab.keeps(&lab.outside, NODE_PORT);
    lab.report([Change::Service(exposed())]);
    assert_eq!(lab.servers(&lab.outside, NODE_PORT, 60).len(), 3);
}

fn should_have_session_affinity_timeout_work_for_node_port_service(on: EngineChoice) {
    let lab = lab(on, sticky(1), [at(A), at(B), at(C)]);
    is_forgotten_after_a_second(&lab.outside, NODE_PORT);
}

fn should_route_traffic_to_an_endpoint_in_the_same_zone(on: EngineChoice) {
    let of = |address: &str, zone: &str| Endpoint {
        for_zones: [zone.to_owned()].into(),
        ..at(address)
    };
    let mut lab = Lab::new(on);
    let facts = Facts {
        zone: Some("z1".to_owned()),
        engine: on,
        ..crate::lab::facts()
    };
    let endpoints = [of(B, "z1"), of(FAR, "z2")];
    lab.report([
        Change::Facts(facts),
        Change::Service(web()),
        slice(endpoints),
    ]);
    assert_eq!(lab.servers(&lab.a, WEB, 20), ["b"]);
    lab.report([slice([of(B, "z1"), at(FAR)])]);
    // One has no hint. A relay takes to one that is new little by little.
    until("both answer", || {
        lab.servers(&lab.a, WEB, 40) == ["b", "far"]
    });
}

fn should_prefer_an_endpoint_on_the_same_node(on: EngineChoice) {
    let of = |address: &str, node: &str| Endpoint {
        for_nodes: [node.to_owned()].into(),
        ..at(address)
    };
    let mut lab = lab(on, web(), [of(B, "n1"), of(FAR, "n2")]);
    assert_eq!(lab.servers(&lab.a, WEB, 20), ["b"]);
    lab.report([slice([of(FAR, "n2")])]);
    assert_eq!(
        lab.servers(&lab.a, WEB, 5),
        ["far"],
        "nobody here: all count"
    );
}
