//! Networks are apart, whatever address leads to an endpoint; and whom the relay blames where one client's packets vanish.

use std::time::Duration;

use weave_linux::netns::Netns;
use weave_model::EngineChoice;
use weave_proxy::facts::Facts;
use weave_proxy::networks::Network;
use weave_proxy::sources::Change;

use crate::lab::{
    A, Answer, B, C, FAR, Lab, ask, at, exposed, facts, ok, slice, tcp, udp, udp_socket, web,
};
use crate::relay::noted;

const WEB: &str = "10.96.0.1:80";
/// By its virtual address, a load balancer's, and a port of the node.
const ALL: [&str; 3] = [WEB, "203.0.113.5:80", "192.0.2.2:30080"];
const SHORT: Duration = Duration::from_millis(200);

/// A is in the default network, B in one that is internal, C and FAR in a third.
fn lab() -> Lab {
    let of = |(range, internal): (String, bool)| Network {
        range: range.parse().unwrap(),
        internal,
    };
    let networks = [
        (format!("{B}/32"), true),
        (format!("{C}/32"), false),
        ("10.40.0.0/16".to_owned(), false),
    ];
    let mut lab = Lab::new(EngineChoice::Relay);
    lab.report([Change::Facts(Facts {
        engine: EngineChoice::Relay,
        networks: networks.into_iter().map(of).collect(),
        ..facts()
    })]);
    lab
}

fn is_kept_apart(from: &Netns, to: &str) {
    assert_eq!(tcp(from, to), Answer::Refused, "{to}");
    assert_eq!(ask(&udp_socket(from, to), SHORT), Answer::Nothing, "{to}");
}

#[test]
fn no_address_leads_into_another_network() {
    let mut lab = lab();
    lab.report([Change::Service(exposed()), slice([at(C)])]);
    for to in ALL {
        is_kept_apart(&lab.a, to);
        is_kept_apart(&lab.b, to);
        // The host reaches its own containers, and whoever it lets in does.
        for from in [&lab.c, &lab.host, &lab.outside] {
            assert_eq!(tcp(from, to).server(), "c", "{to}");
            assert_eq!(udp(from, to).server(), "c", "{to}");
        }
    }
    assert_eq!(noted(&lab, C), [9, 0, 0, 0], "nobody has asked in vain");
    // By its own address it is in the default network.
    lab.report([slice([at(FAR)])]);
    for from in [&lab.a, &lab.b, &lab.host, &lab.outside] {
        is_kept_apart(from, ALL[2]);
    }
    assert_eq!(noted(&lab, FAR), [0; 4]);
}

#[test]
fn of_several_networks_endpoints_a_client_gets_its_own() {
    let mut lab = lab();
    lab.report([Change::Service(exposed()), slice([A, B, C, FAR].map(at))]);
    for to in ALL {
        for (from, server) in [(&lab.a, "a"), (&lab.b, "b"), (&lab.c, "c")] {
            assert_eq!(lab.servers(from, to, 12), [server], "{to}");
            assert_eq!(udp(from, to).server(), server, "{to}");
        }
    }
}

/// A firewall may drop what one client sends, or refuse it. Only under its name an endpoint does not answer then.
#[test]
fn what_does_not_answer_one_client_alone_serves_the_others() {
    serves_the_others("postrouting", "drop");
    serves_the_others("output", "meta l4proto tcp reject with tcp reset");
}

fn serves_the_others(hook: &str, verdict: &str) {
    let mut lab = Lab::new(EngineChoice::Relay);
    lab.report([Change::Service(web()), slice([B, C].map(at))]);
    ok(
        &lab.host,
        &format!(
            "nft add table ip wall
             nft 'add chain ip wall out {{ type filter hook {hook} priority -10; }}'
             nft add rule ip wall out ip saddr {A} ip daddr {C} {verdict}"
        ),
    );
    while noted(&lab, C)[0] == 0 {
        assert!(tcp(&lab.outside, WEB).saw().is_some());
    }
    while noted(&lab, C)[1] < 5 {
        assert_eq!(tcp(&lab.a, WEB).server(), "b");
    }
    let [picks, failures, _, ejections] = noted(&lab, C);
    assert_eq!(ejections, 0, "{failures} failures of {picks}");
}
