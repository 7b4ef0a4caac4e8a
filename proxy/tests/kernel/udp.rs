//! UDP flows whose endpoint goes: a client that keeps its port is answered by another one.

use std::net::UdpSocket;
use std::time::Duration;

use weave_linux::conntrack::flows::{Conntrack, To};
use weave_linux::netns::run_in;
use weave_model::{Endpoint, EngineChoice, Protocol, Service};
use weave_proxy::sources::Change;

use crate::lab::{
    Answer, B, C, Lab, ask, at, exposed, recovers, slice, slice_of, udp, udp_socket, until, web,
};

cases! {
    should_be_able_to_preserve_udp_traffic_when_server_pod_cycles_for_a_cluster_ip_service => KeptFlows,
    should_be_able_to_preserve_udp_traffic_when_server_pod_cycles_for_a_node_port_service => KeptFlows,
    should_be_able_to_preserve_udp_traffic_when_initial_unready_endpoints_get_ready => Deaf,
    a_flow_older_than_its_service_is_picked_for => KeptFlows,
    flows_to_endpoints_that_stay_are_left_alone => KeptFlows,
}

kernel_cases! {
    flows_of_a_service_that_lost_its_last_endpoint_stay_until_there_is_another => Eager,
}

const WAIT: Duration = Duration::from_millis(500);

fn cycles(on: EngineChoice, service: Service, from: impl Fn(&Lab) -> UdpSocket) {
    let mut lab = Lab::new(on);
    lab.report([Change::Service(service), slice([at(B)])]);
    let client = from(&lab);
    until("an answer", || ask(&client, WAIT).server() == "b");
    lab.report([slice([at(C)])]);
    recovers(&client, "c");
    assert!(lab.datagrams_were_relayed());
}

fn should_be_able_to_preserve_udp_traffic_when_server_pod_cycles_for_a_cluster_ip_service(
    on: EngineChoice,
) {
    cycles(on, web(), |lab| udp_socket(&lab.a, "10.96.0.1:80"));
    cycles(on, web(), |lab| udp_socket(&lab.host, "10.96.0.1:80"));
}

fn should_be_able_to_preserve_udp_traffic_when_server_pod_cycles_for_a_node_port_service(
    on: EngineChoice,
) {
    cycles(on, exposed(), |lab| {
        udp_socket(&lab.outside, "192.0.2.2:30080")
    });
}

fn should_be_able_to_preserve_udp_traffic_when_initial_unready_endpoints_get_ready(
    on: EngineChoice,
) {
    let mut lab = Lab::new(on);
    let unready = Endpoint {
        ready: false,
        serving: false,
        ..at(B)
    };
    lab.report([Change::Service(web()), slice([unready])]);
    let client = udp_socket(&lab.a, "10.96.0.1:80");
    assert_eq!(ask(&client, WAIT), Answer::Refused);
    lab.report([slice([at(B)])]);
    recovers(&client, "b");
    assert!(lab.datagrams_were_relayed());
}

fn a_flow_older_than_its_service_is_picked_for(on: EngineChoice) {
    let mut lab = Lab::new(on);
    // There are rules already, so a flow that they say nothing of is known to be left as it is.
    lab.report([Change::Service(web())]);
    // Not an address of the range: before there is a Service, its packets leave by the default route, tracked.
    let front = Service {
        name: "late".parse().unwrap(),
        addresses: vec![crate::lab::ip("198.51.100.50")],
        ..web()
    };
    let client = udp_socket(&lab.a, "198.51.100.50:80");
    for _ in 0..3 {
        client.send(b"?").unwrap();
    }
    lab.report([Change::Service(front), slice_of("late", [at(B)])]);
    recovers(&client, "b");
    assert!(lab.datagrams_were_relayed());
}

/// What Kubernetes' proxy leaves in connection tracking: nobody else could have the flow, and the endpoint that is going may
/// still answer. Not the relay's: what it carries ends with the last endpoint.
fn flows_of_a_service_that_lost_its_last_endpoint_stay_until_there_is_another(on: EngineChoice) {
    let mut lab = Lab::new(on);
    lab.report([Change::Service(web()), slice([at(B)])]);
    let client = udp_socket(&lab.a, "10.96.0.1:80");
    until("an answer", || ask(&client, WAIT).server() == "b");
    lab.report([slice([])]);
    assert_eq!(
        ask(&client, WAIT).server(),
        "b",
        "the flow is still followed"
    );
    assert_eq!(udp(&lab.a, "10.96.0.1:80"), Answer::Refused, "a new one");
    lab.report([slice([at(C)])]);
    recovers(&client, "c");
}

fn flows_to_endpoints_that_stay_are_left_alone(on: EngineChoice) {
    let mut lab = Lab::new(on);
    lab.report([Change::Service(web()), slice([at(B), at(C)])]);
    let clients: Vec<_> = (0..8).map(|_| udp_socket(&lab.a, "10.96.0.1:80")).collect();
    let before: Vec<Answer> = clients.iter().map(|client| ask(client, WAIT)).collect();
    lab.report([slice([at(B)])]);
    for (client, before) in clients.iter().zip(before) {
        if before.server() == "b" {
            assert_eq!(ask(client, WAIT), before);
        } else {
            recovers(client, "b");
        }
    }
    assert!(lab.datagrams_were_relayed());
}

/// A host that follows many flows of others: what a change of a Service asks for is only what goes to its front.
#[test]
fn flows_of_others_are_not_read_for_a_change() {
    const OTHERS: u16 = 12_000;
    let mut lab = Lab::new(EngineChoice::Kernel);
    lab.report([Change::Service(exposed()), slice([at(B)])]);
    let client = udp_socket(&lab.a, "10.96.0.1:80");
    until("an answer", || ask(&client, WAIT).server() == "b");
    let others = run_in(&lab.a, || UdpSocket::bind("0.0.0.0:0").unwrap()).unwrap();
    for port in 0..OTHERS {
        others.send_to(b"?", ("192.0.2.1", 20_000 + port)).unwrap();
    }
    let conntrack = run_in(&lab.host, Conntrack::open).unwrap().unwrap();
    let read = |to| {
        conntrack
            .flows(Protocol::Udp.number(), to, |_| true)
            .unwrap()
    };
    assert!(read(To::Any).read > OTHERS.into());
    let own = read(To::Place("10.96.0.1:80".parse().unwrap()));
    assert_eq!((own.flows.len(), own.read), (1, 1));
    for nobody in [
        To::Place("10.96.0.1:81".parse().unwrap()),
        To::Place("[fd96::1]:80".parse().unwrap()),
        To::Port(false, 20_000),
    ] {
        assert_eq!(read(nobody).read, 0, "{nobody:?}");
    }
    assert_eq!(read(To::Port(true, 20_000)).read, 1);

    lab.report([slice([at(C)])]);
    recovers(&client, "c");
    assert!(read(To::Any).read > OTHERS.into(), "others' flows stay");
}
