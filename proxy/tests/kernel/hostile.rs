//! Services whose endpoints cannot be, or are too many: they are left out with their reason, and others feel nothing.

use std::net::{IpAddr, Ipv4Addr};

use weave_model::{Endpoint, EngineChoice, Service};
use weave_proxy::sources::Change;
use weave_proxy::table::{MAX_TARGETS, Why};

use crate::lab::{B, C, HOST, Lab, at, ip, slice, slice_of, tcp, web};

cases! {
    endpoints_that_cannot_be_are_left_out_and_said_and_the_others_serve => Believes,
    a_service_of_a_hundred_thousand_endpoints_is_bounded_and_others_serve => Crowded,
}

const WEB: &str = "10.96.0.1:80";

fn endpoints_that_cannot_be_are_left_out_and_said_and_the_others_serve(on: EngineChoice) {
    let mut lab = Lab::new(on);
    let odd = [
        ("127.0.0.1", Why::Special),
        ("169.254.169.254", Why::Special),
        ("224.0.0.5", Why::Special),
        ("255.255.255.255", Why::Special),
        (HOST, Why::Node),
        ("10.96.0.1", Why::Virtual),
        ("fd77::3", Why::Family),
    ];
    // One of them twice, which is once.
    let mut endpoints = vec![at(B), at(C), at(C)];
    endpoints.extend(odd.map(|(address, _)| at(address)));
    lab.report([Change::Service(web()), slice(endpoints)]);
    assert_eq!(lab.servers(&lab.a, WEB, 60), ["b", "c"]);
    let table = lab.sources.table();
    let refused = &table.refused[&"web".parse().unwrap()];
    for (address, why) in odd {
        let said =
            |one: &&weave_proxy::table::Refused| one.what.contains(address) && one.why == why;
        assert!(
            refused.iter().any(|one| said(&one)),
            "{address}: {refused:?}"
        );
    }
    let entry = table.entries.values().next().unwrap();
    assert_eq!(entry.cluster.len(), 2);
}

fn a_service_of_a_hundred_thousand_endpoints_is_bounded_and_others_serve(on: EngineChoice) {
    let mut lab = Lab::new(on);
    lab.report([Change::Service(web()), slice([at(B)])]);
    let big = Service {
        name: "big".parse().unwrap(),
        addresses: vec![ip("10.96.0.9")],
        ..web()
    };
    let many = |count: u32| {
        let address = |n: u32| IpAddr::V4(Ipv4Addr::from_bits(0x0a22_0000 + n));
        let endpoint = move |n| Endpoint::ready(address(n), Some("n2".to_owned()));
        slice_of("big", (0..count).map(endpoint))
    };
    lab.report([Change::Service(big), many(100_000)]);
    assert_eq!(tcp(&lab.a, WEB).server(), "b");
    let table = lab.sources.table();
    let sizes = table.entries.values().map(|entry| entry.cluster.len());
    assert_eq!(sizes.max(), Some(MAX_TARGETS));
    let refused = &table.refused[&"big".parse().unwrap()];
    assert!(refused.iter().all(|one| one.why == Why::TooMany));
    // What it had is taken back, and the others still serve.
    lab.report([slice([at(C)]), many(1)]);
    assert_eq!(tcp(&lab.a, WEB).server(), "c");
}
