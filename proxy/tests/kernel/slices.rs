//! Services whose endpoints are said in several slices.

use weave_model::{AddressKind, EngineChoice, Protocol, Service, ServicePort, Slice, SlicePort};
use weave_proxy::sources::Change;

use crate::lab::{B, C, FAR, Lab, at, serve_at, tcp, udp, web};

cases! {
    should_support_a_service_with_multiple_ports_specified_in_multiple_endpoint_slices => OneSlice,
    should_support_a_service_with_multiple_endpoint_ips_specified_in_multiple_endpoint_slices => OneSlice,
    should_mirror_a_custom_endpoint_with_multiple_subsets_and_same_ip_address => OneSlice | Once,
}

const ONE: &str = "10.96.0.1:80";
const TWO: &str = "10.96.0.1:81";
const PROTOCOLS: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];

/// `web` with two ports, each of both protocols.
fn two_ports() -> Service {
    let ports = [("one", 80), ("two", 81)];
    let of = |(name, port)| {
        PROTOCOLS.map(|protocol| ServicePort {
            name: format!("{name}-{protocol}"),
            protocol,
            port,
            node_port: None,
        })
    };
    Service {
        ports: ports.into_iter().flat_map(of).collect(),
        ..web()
    }
}

/// A slice of `web` that knows one of its ports.
fn slice(name: &str, (port, number): (&str, u16), endpoints: &[&str]) -> Change {
    let ports = PROTOCOLS.map(|protocol| SlicePort {
        name: format!("{port}-{protocol}"),
        protocol,
        port: Some(number),
    });
    Change::Slice(Slice {
        name: name.to_owned(),
        service: "web".parse().unwrap(),
        kind: AddressKind::V4,
        ports: ports.into(),
        endpoints: endpoints.iter().map(|one| at(one)).collect(),
    })
}

fn should_support_a_service_with_multiple_ports_specified_in_multiple_endpoint_slices(
    on: EngineChoice,
) {
    let mut lab = Lab::new(on);
    serve_at(&lab.c, "c-two", 8081);
    lab.report([
        Change::Service(two_ports()),
        slice("s1", ("one", 8080), &[B]),
        slice("s2", ("two", 8081), &[C]),
    ]);
    for _ in 0..10 {
        for ask in [tcp, udp] {
            assert_eq!(ask(&lab.a, ONE).server(), "b");
            assert_eq!(ask(&lab.a, TWO).server(), "c-two");
        }
    }
}

fn should_support_a_service_with_multiple_endpoint_ips_specified_in_multiple_endpoint_slices(
    on: EngineChoice,
) {
    let mut lab = Lab::new(on);
    let one = ("one", 8080);
    lab.report([
        Change::Service(two_ports()),
        slice("s1", one, &[B]),
        slice("s2", one, &[C, FAR]),
    ]);
    assert_eq!(lab.servers(&lab.a, ONE, 60), ["b", "c", "far"]);
    lab.report([Change::NoSlice("web".parse().unwrap(), "s1".to_owned())]);
    assert_eq!(lab.servers(&lab.a, ONE, 40), ["c", "far"]);
    assert!(["c", "far"].contains(&udp(&lab.a, ONE).server()));
}

/// There a controller makes a slice of each subset; here they are as it makes them.
fn should_mirror_a_custom_endpoint_with_multiple_subsets_and_same_ip_address(on: EngineChoice) {
    let mut lab = Lab::new(on);
    serve_at(&lab.b, "b-two", 8081);
    lab.report([
        Change::Service(two_ports()),
        slice("s1", ("one", 8080), &[B]),
        slice("s2", ("two", 8081), &[B]),
    ]);
    for ask in [tcp, udp] {
        assert_eq!(ask(&lab.a, ONE).server(), "b");
        assert_eq!(ask(&lab.a, TWO).server(), "b-two");
    }
}
