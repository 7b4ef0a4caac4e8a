//! Two containers of one host in different networks: nothing passes, whoever they claim to be; and the host is left its
//! way to both.

use weave_linux::nft::Found;
use weave_model::Block;
use weave_router::rules::{APART, INTERNAL, NetworkRules};

use crate::{Lab, ok, pings, rules_for};

/// The container `b` of the lab has 10.32.0.3 and fd77::3; the block from 10.32.0.3 on is its network.
fn network_of_b(internal: bool) -> NetworkRules {
    NetworkRules {
        block: Block::new(3, 0).unwrap(),
        internal,
    }
}

fn counted(lab: &Lab, networks: &[NetworkRules], comment: &str) -> u64 {
    let rules = lab.on_host(|socket| socket.rules(rules_for(networks).table()).unwrap());
    let counted = rules
        .iter()
        .filter(|rule| rule.comment.as_deref() == Some(comment));
    counted.map(|rule| rule.counter.unwrap().0).sum()
}

#[test]
fn containers_of_different_networks_do_not_meet() {
    let lab = Lab::new();
    lab.on_host(|socket| rules_for(&[]).ensure(socket).unwrap());
    assert!(
        pings(&lab.a, "10.32.0.3") && pings(&lab.b, "fd77::2"),
        "the control"
    );
    let networks = [network_of_b(false)];
    lab.on_host(|socket| assert_eq!(rules_for(&networks).ensure(socket).unwrap(), Found::Wrong));
    for to in ["10.32.0.3", "fd77::3"] {
        assert!(!pings(&lab.a, to), "{to}");
    }
    for to in ["10.32.0.2", "fd77::2"] {
        assert!(!pings(&lab.b, to), "{to}");
    }
    assert_eq!(counted(&lab, &networks, APART), 4);
    // The outside and the host reach and are reached as before.
    assert!(pings(&lab.b, "192.0.2.1") && pings(&lab.a, "2001:db8::1"));
    ok(&lab.host, "ip addr add fd77::1/128 dev lo");
    for to in ["10.32.0.2", "10.32.0.3", "fd77::2", "fd77::3"] {
        assert!(pings(&lab.host, to), "{to}");
    }
    assert_eq!(counted(&lab, &networks, APART), 4);
}

#[test]
fn an_internal_network_has_no_way_outside() {
    let lab = Lab::new();
    let networks = [network_of_b(true)];
    lab.on_host(|socket| rules_for(&networks).ensure(socket).unwrap());
    assert!(!pings(&lab.b, "192.0.2.1") && !pings(&lab.b, "2001:db8::1"));
    assert!(
        pings(&lab.a, "192.0.2.1"),
        "the default network is as it was"
    );
    assert!(pings(&lab.host, "10.32.0.3"), "its own host reaches it");
    assert_eq!(counted(&lab, &networks, INTERNAL), 2);
}

#[test]
fn elements_that_somebody_took_out_are_put_back() {
    let lab = Lab::new();
    let networks = [network_of_b(false)];
    lab.on_host(|socket| {
        let rules = rules_for(&networks);
        rules.ensure(socket).unwrap();
        assert_eq!(rules.check(socket).unwrap(), Found::Right);
        for damage in [
            "nft flush map inet weave-attach network4",
            "nft flush set inet weave-attach networks6",
        ] {
            ok(&lab.host, damage);
            assert_eq!(rules.ensure(socket).unwrap(), Found::Wrong, "{damage}");
            assert_eq!(rules.check(socket).unwrap(), Found::Right, "{damage}");
        }
    });
}
