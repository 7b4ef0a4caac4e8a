//! What `weavectl` does besides asking: it looks at a host before a node is started on it.

use serde_json::Value;

use crate::lab::node::{Said, WEAVECTL, said};
use crate::lab::{Host, Lab};

/// Runs `weavectl` on the host itself, as an administrator would.
fn on(host: &Host, words: &[&str]) -> Said {
    let mut command = host.ns.command(WEAVECTL);
    said(command.env("WEAVE_SOCKET", host.socket()).args(words))
}

/// The point of a name in what `check --pre` found, and how that ended.
fn point(host: &Host, id: &str) -> (i32, Value) {
    let checked = on(host, &["check", "--pre", "-o", "json"]);
    let answer: Value = serde_json::from_str(&checked.out)
        .unwrap_or_else(|error| panic!("not JSON: {error}: {checked:?}"));
    let points = answer["points"].as_array().expect("a list of points");
    let found = points.iter().find(|point| point["id"] == id);
    let found = found.unwrap_or_else(|| panic!("no point {id} in {answer}"));
    (checked.code, found.clone())
}

/// Fails unless a point fails, with a fix that has these words in it.
#[track_caller]
fn fails(host: &Host, id: &str, fix: &str) {
    let (code, found) = point(host, id);
    assert_eq!(
        (code, &found["state"]),
        (1, &Value::from("failure")),
        "{found}"
    );
    let said = found["fix"].as_str().unwrap_or_default();
    assert!(said.contains(fix), "{said}");
}

/// A bare host is fit for a node and is left as it was; each thing that stands in the way is named with its fix, and is
/// fine again once that was followed.
#[test]
fn a_host_is_checked_before_a_node_starts() {
    Lab::run(|lab| {
        let host = lab.host("h1", 1);
        let untouched = host.ns.snapshot();
        let checked = on(&host, &["check", "--pre"]);
        println!("{}", checked.out);
        assert!(matches!(checked.code, 0 | 3), "{checked:?}");
        assert!(!checked.out.contains("FAIL"), "{checked:?}");
        assert_eq!(host.ns.snapshot(), untouched, "the check changed the host");
        for id in [
            "privileges",
            "kernel",
            "tun",
            "nftables",
            "veth",
            "packet",
            "ip_forward",
            "port",
            "range",
            "uplink",
        ] {
            assert_eq!(point(&host, id).1["state"], "ok", "{id}");
        }

        everything_in_the_way(&host);
        the_firewall(&host);

        let unprivileged =
            format!("setpriv --reuid 65534 --clear-groups --inh-caps=-all {WEAVECTL} check --pre");
        let poor = host.ns.try_sh(&unprivileged);
        assert_eq!(poor.status.code(), Some(1));
        let words = String::from_utf8_lossy(&poor.stdout).into_owned();
        assert!(words.contains("FAIL  privileges"), "{words}");

        host.start();
        let (code, node) = point(&host, "node");
        assert_eq!(
            (code, &node["state"]),
            (3, &Value::from("warning")),
            "{node}"
        );
    });
}

/// Each thing in the way of a node fails one point, and only as long as it is there.
fn everything_in_the_way(host: &Host) {
    let squatter = host
        .ns
        .inside(|| std::net::UdpSocket::bind("0.0.0.0:6783").expect("the port is free"));
    fails(host, "port", "ss -lunp");
    drop(squatter);
    host.ns.sh("ip link add weave0 type bridge");
    fails(host, "devices", "ip link delete weave0");
    host.ns
        .sh("ip link delete weave0; ip route add 10.40.0.0/16 dev u0");
    fails(host, "range", "--range");
    host.ns
        .sh("ip route del 10.40.0.0/16; ip link set u0 mtu 1200");
    fails(host, "uplink", "mtu 1500");
    host.ns
        .sh("ip link set u0 mtu 1500; nft add table inet weave-attach");
    fails(host, "rules", "nft delete table inet weave-attach");
    host.ns.sh("nft flush ruleset");
}

/// A firewall that drops by default is told of, and what to do about it can be typed as it stands.
fn the_firewall(host: &Host) {
    host.ns.sh("nft add table inet f; nft 'add chain inet f in { type filter hook input priority 0; policy drop; }'");
    let (_, firewall) = point(host, "firewall");
    assert_eq!(firewall["state"], "warning");
    let fix = firewall["fix"].as_str().unwrap_or_default();
    let command = fix.split(": ").nth(1).expect("a command to follow");
    host.ns.sh(command);
    host.ns
        .sh("nft list ruleset | grep -q 'udp dport 6783 accept'");
    host.ns.sh("nft flush ruleset");
    host.ns.sh("nft add table inet f; nft 'add chain inet f through { type filter hook forward priority 0; policy drop; }'");
    let (_, forwarding) = point(host, "forwarding");
    assert_eq!(forwarding["state"], "warning");
    let fix = forwarding["fix"].as_str().unwrap_or_default();
    let (_, commands) = fix.split_once(": ").expect("commands to follow");
    host.ns.sh(commands);
    host.ns.sh("nft list ruleset | grep -q 'iifname .*wv'");
    host.ns.sh("nft flush ruleset");
    host.ns.sh("nft add table inet firewalld");
    let (_, forwarding) = point(host, "forwarding");
    let fix = forwarding["fix"].as_str().unwrap_or_default();
    assert!(fix.starts_with("firewall-cmd"), "{forwarding}");
    host.ns.sh("nft flush ruleset");
}
