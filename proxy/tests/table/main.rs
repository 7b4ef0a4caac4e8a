//! The table: each rule of selection by itself ([`rules`]), all of them against a second implementation that is as
//! naive as the words of the contract ([`naive`], [`against`]), what is other from table to table ([`changes`]), what that
//! makes other in the rules ([`minimal`], [`steps`]), and whom these pick ([`layout`]); both by the rule set that a batch
//! makes ([`nft`]). What is odd is left out ([`odd`]).

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod against;
mod changes;
mod layout;
mod minimal;
mod naive;
mod nft;
mod odd;
mod rules;
mod steps;

use std::net::IpAddr;

use weave_model::{AddressKind, Endpoint, Protocol, Service, ServicePort, Slice, SlicePort};
use weave_proxy::facts::Facts;
use weave_proxy::sources::{Change, Sources};
use weave_proxy::table::{Entry, Origin, Table, Verdict, Way};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// This node is n1 in zone z1.
fn facts() -> Facts {
    Facts {
        node: "n1".to_owned(),
        zone: Some("z1".to_owned()),
        addresses: [ip("192.0.2.1")].into(),
        no_endpoints: [ip("192.0.2.1"), ip("192.0.2.2")].into(),
        containers: vec!["10.32.0.0/12".parse().unwrap()],
        ranges: vec!["10.96.0.0/16".parse().unwrap()],
        ..Facts::default()
    }
}

fn http() -> ServicePort {
    ServicePort {
        name: String::new(),
        protocol: Protocol::Tcp,
        port: 80,
        node_port: None,
    }
}

fn service(name: &str, vip: &str) -> Service {
    Service::new(name.parse().unwrap(), [ip(vip)], [http()])
}

fn slice(service: &str, endpoints: Vec<Endpoint>) -> Slice {
    Slice {
        name: format!("{service}-1"),
        service: service.parse().unwrap(),
        kind: AddressKind::V4,
        ports: vec![SlicePort {
            name: String::new(),
            protocol: Protocol::Tcp,
            port: Some(8080),
        }],
        endpoints,
    }
}

fn on(node: &str, address: &str) -> Endpoint {
    Endpoint::ready(ip(address), Some(node.to_owned()))
}

/// The table of some Services and slices on n1.
fn table(services: impl IntoIterator<Item = Service>, slices: Vec<Slice>) -> Table {
    let mut sources = Sources::default();
    sources.handle(Change::Facts(facts()));
    services
        .into_iter()
        .for_each(|service| sources.handle(Change::Service(service)));
    slices
        .into_iter()
        .for_each(|slice| sources.handle(Change::Slice(slice)));
    (*sources.build().0).clone()
}

/// Where a connection may end up: addresses, "drop" or "reject".
fn outcome(entry: &Entry, way: Way, origin: Origin) -> Vec<String> {
    let source = match origin {
        Origin::Container => ip("10.32.0.9"),
        Origin::Host => ip("192.0.2.1"),
        Origin::Outside => ip("198.51.100.7"),
    };
    match entry.verdict(way, origin, source) {
        Verdict::Pick(targets) => targets
            .iter()
            .map(|target| target.address.ip().to_string())
            .collect(),
        Verdict::Drop => vec!["drop".to_owned()],
        Verdict::Reject => vec!["reject".to_owned()],
    }
}
