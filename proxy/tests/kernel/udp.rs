//! UDP flows whose endpoint goes: a client that keeps its port is answered by another one.

use std::time::Duration;

use weave_model::{Endpoint, EngineChoice, Service};
use weave_proxy::sources::Change;

use crate::lab::{Answer, B, C, Lab, ask, at, exposed, slice, slice_of, udp_socket, until, web};

cases! {
    should_be_able_to_preserve_udp_traffic_when_server_pod_cycles_for_a_cluster_ip_service => KeptFlows,
    should_be_able_to_preserve_udp_traffic_when_server_pod_cycles_for_a_node_port_service => KeptFlows,
    should_be_able_to_preserve_udp_traffic_when_initial_unready_endpoints_get_ready => Deaf,
    a_flow_older_than_its_service_is_picked_for => KeptFlows,
    flows_to_endpoints_that_stay_are_left_alone => KeptFlows,
}

const WAIT: Duration = Duration::from_millis(500);

fn cycles(on: EngineChoice, service: Service, from: impl Fn(&Lab) -> std::net::UdpSocket) {
    let mut lab = Lab::new(on);
    lab.report([Change::Service(service), slice([at(B)])]);
    let client = from(&lab);
    until("an answer", || ask(&client, WAIT).server() == "b");
    lab.report([slice([at(C)])]);
    until("an answer of the other", || {
        ask(&client, WAIT).server() == "c"
    });
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
    until("an answer", || ask(&client, WAIT).server() == "b");
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
    until("an answer", || ask(&client, WAIT).server() == "b");
    assert!(lab.datagrams_were_relayed());
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
            until("an answer of the other", || {
                ask(client, WAIT).server() == "b"
            });
        }
    }
    assert!(lab.datagrams_were_relayed());
}
