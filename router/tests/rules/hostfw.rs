//! The way through foreign firewalls, with the real programs of both kinds.

use weave_linux::netns::{Netns, run_in};
use weave_router::hostfw::{Error, HostFirewall, TAG};

use crate::{Lab, ok, pings, rules};

/// What Docker sets up on a host, with a container network `docker0`; `$p` is the program.
const DOCKER: &str = "
    $p -P FORWARD DROP
    for chain in DOCKER DOCKER-FORWARD DOCKER-USER; do $p -N $chain; done
    $p -A FORWARD -j DOCKER-USER
    $p -A FORWARD -j DOCKER-FORWARD
    $p -A DOCKER-FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
    $p -A DOCKER-FORWARD -o docker0 -j DOCKER
    $p -A DOCKER-FORWARD -i docker0 -j ACCEPT
    $p -A DOCKER ! -i docker0 -o docker0 -j DROP
    $p -A DOCKER-USER -i nowhere -m comment --comment 'ours: not weave' -j DROP
    $p -A DOCKER-USER -j RETURN
";

/// A careful administrator.
const ADMIN: &str = "
    $p -P FORWARD DROP
    $p -A FORWARD -m conntrack --ctstate INVALID -j DROP
    $p -A FORWARD -i nowhere -j ACCEPT
";

fn on_both(host: &Netns, kind: &str, script: &str) {
    for family in ["iptables", "ip6tables"] {
        ok(host, &format!("p={family}-{kind}\n{script}"));
    }
}

/// The rules of a kind that are not ours.
fn foreign(host: &Netns, kind: &str) -> String {
    let saved = ok(
        host,
        &format!("for p in iptables ip6tables; do $p-{kind}-save -t filter; done"),
    );
    let kept = saved
        .lines()
        .filter(|line| !line.starts_with('#') && !line.contains(TAG));
    // How many packets each policy has seen does not matter.
    kept.map(|line| line.split(" [").next().unwrap_or_default().to_owned() + "\n")
        .collect()
}

fn ensure(lab: &Lab, firewall: &mut HostFirewall) -> Vec<String> {
    run_in(&lab.host, || firewall.ensure()).unwrap().unwrap()
}

/// Two containers, the outside and back, in both families.
fn all_ways(lab: &Lab) -> [bool; 4] {
    ["10.32.0.3", "fd77::3", "192.0.2.1", "2001:db8::1"].map(|address| pings(&lab.a, address))
}

fn opens_the_way(kind: &str, script: &str) {
    let lab = Lab::new();
    lab.on_host(|socket| rules().ensure(socket).unwrap());
    ok(
        &lab.outside,
        "ip route add 10.32.0.0/12 via 192.0.2.2; ip route add fd77::/48 via 2001:db8::2",
    );
    assert_eq!(all_ways(&lab), [true; 4]);
    on_both(&lab.host, kind, script);
    let before = foreign(&lab.host, kind);
    assert_eq!(
        all_ways(&lab),
        [false; 4],
        "{kind}: the firewall is no obstacle"
    );

    let mut firewall = HostFirewall::new("weave0", "wv");
    assert_eq!(ensure(&lab, &mut firewall).len(), 14);
    assert_eq!(all_ways(&lab), [true; 4], "{kind}");
    assert_eq!(foreign(&lab.host, kind), before);
    assert_eq!(ensure(&lab, &mut firewall), [""; 0]);
    assert_eq!(
        ensure(&lab, &mut HostFirewall::new("weave0", "wv")),
        [""; 0],
        "after a restart"
    );
    assert!(
        !pings(&lab.outside, "10.32.0.2") && !pings(&lab.outside, "fd77::2"),
        "{kind}: open to the outside"
    );

    // Flushed by its owner and set up anew.
    on_both(&lab.host, kind, "$p -F; $p -X");
    on_both(&lab.host, kind, script);
    assert_eq!(all_ways(&lab), [false; 4]);
    assert_eq!(ensure(&lab, &mut firewall).len(), 14);
    assert_eq!(all_ways(&lab), [true; 4], "{kind}");

    run_in(&lab.host, || firewall.remove()).unwrap().unwrap();
    run_in(&lab.host, || firewall.remove()).unwrap().unwrap();
    assert!(
        !ok(
            &lab.host,
            &format!("iptables-{kind}-save; ip6tables-{kind}-save")
        )
        .contains(TAG)
    );
    assert_eq!(foreign(&lab.host, kind), before);
    assert_eq!(all_ways(&lab), [false; 4]);
}

#[test]
fn docker_in_nftables() {
    opens_the_way("nft", DOCKER);
}

#[test]
fn docker_in_legacy_tables() {
    opens_the_way("legacy", DOCKER);
}

#[test]
fn a_drop_policy_in_nftables() {
    opens_the_way("nft", ADMIN);
}

#[test]
fn a_drop_policy_in_legacy_tables() {
    opens_the_way("legacy", ADMIN);
}

#[test]
fn docker_s_own_networks_stay_apart() {
    let lab = Lab::new();
    let docked = Netns::create().unwrap();
    Lab::wire(&lab.host, "docker0", &docked);
    ok(&lab.host, "ip addr add 172.17.0.1/16 dev docker0");
    ok(
        &docked,
        "ip addr add 172.17.0.2/16 dev eth0; ip route add default via 172.17.0.1",
    );
    lab.on_host(|socket| rules().ensure(socket).unwrap());
    assert!(pings(&lab.a, "172.17.0.2"));
    on_both(&lab.host, "nft", DOCKER);
    ensure(&lab, &mut HostFirewall::new("weave0", "wv"));
    assert!(!pings(&lab.a, "172.17.0.2"), "Docker's drop was overridden");
    assert!(pings(&lab.a, "10.32.0.3"));
    // Docker allows its containers everything; our border does not.
    assert!(!pings(&docked, "10.32.0.2"));
}

#[test]
fn a_host_without_iptables_rules_is_left_as_it_is() {
    let host = Netns::create().unwrap();
    ok(
        &host,
        "nft add table inet filter; nft add chain inet filter f '{ type filter hook forward priority 0; policy drop; }'",
    );
    let state = || {
        ok(
            &host,
            "nft list ruleset; cat /proc/thread-self/net/ip_tables_names /proc/thread-self/net/ip6_tables_names",
        )
    };
    let before = state();
    let mut firewall = HostFirewall::new("weave0", "wv");
    let done = run_in(&host, || firewall.ensure()).unwrap().unwrap();
    assert_eq!(done, [""; 0]);
    assert_eq!(state(), before);
}

#[test]
fn a_firewall_that_comes_later_is_seen() {
    let lab = Lab::new();
    lab.on_host(|socket| rules().ensure(socket).unwrap());
    let mut firewall = HostFirewall::new("weave0", "wv");
    assert_eq!(ensure(&lab, &mut firewall), [""; 0]);
    for (kind, script, steps) in [("nft", ADMIN, 14), ("legacy", ADMIN, 14)] {
        on_both(&lab.host, kind, script);
        assert_eq!(ensure(&lab, &mut firewall).len(), steps, "{kind}");
        assert_eq!(all_ways(&lab), [true; 4], "{kind}");
    }
    // And goes again, with our rules.
    on_both(&lab.host, "nft", "$p -P FORWARD ACCEPT");
    assert_eq!(ensure(&lab, &mut firewall).len(), 14);
    assert!(!ok(&lab.host, "iptables-nft-save; ip6tables-nft-save").contains(TAG));
}

#[test]
fn a_refusal_is_told_in_the_program_s_words() {
    let host = Netns::create().unwrap();
    // A table of that name that iptables cannot read.
    ok(
        &host,
        "nft add table ip filter; nft add chain ip filter FORWARD '{ type filter hook forward priority 0; policy drop; }'",
    );
    ok(
        &host,
        "nft add set ip filter s '{ type ipv4_addr; }'; nft add rule ip filter FORWARD ip saddr @s meter m '{ ip daddr limit rate 1/second }' accept",
    );
    let mut firewall = HostFirewall::new("weave0", "wv");
    let error = run_in(&host, || firewall.ensure()).unwrap().unwrap_err();
    assert!(matches!(error, Error::Refused { .. }), "{error}");
    assert!(error.to_string().contains("iptables"), "{error}");
}
