//! A host with two containers and an outside, as namespaces without names: the table `weave-attach` ([`attach`]) and the
//! accepts beside foreign firewalls ([`hostfw`]).
//!
//! Needs root, `ip`, `ping`, `ss`, `nft` and `iptables` in both kinds; the namespaces end with the test, however it ends.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod attach;
mod hostfw;
mod networks;

use std::os::fd::{AsFd, AsRawFd};
use std::process::{Command, Output};

use weave_linux::netns::{Netns, run_in};
use weave_linux::nft::{RuleSet, Socket};
use weave_model::ClusterRange;
use weave_router::rules::{AttachRules, NetworkRules};

/// Runs a script in a namespace.
fn sh(netns: &Netns, script: &str) -> Output {
    let run = || Command::new("bash").args(["-ec", script]).output().unwrap();
    run_in(netns, run).unwrap()
}

/// Runs a script that must succeed, and gives what it printed.
fn ok(netns: &Netns, script: &str) -> String {
    let output = sh(netns, script);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{script}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

fn pings(netns: &Netns, arguments: &str) -> bool {
    sh(netns, &format!("ping -n -c1 -W0.4 {arguments}"))
        .status
        .success()
}

fn rules() -> RuleSet {
    rules_for(&[])
}

/// The table in a cluster with these networks.
fn rules_for(networks: &[NetworkRules]) -> RuleSet {
    let range = ClusterRange::new(
        "10.32.0.0/12".parse().unwrap(),
        "fd77::/48".parse().unwrap(),
    );
    AttachRules {
        tun: "weave0".into(),
        veths: "wv".into(),
        range: range.unwrap(),
        networks: networks.to_vec(),
        closed_udp: vec![6783],
        closed_tcp: vec![6782, 4040],
    }
    .rule_set()
}

/// A host, what it routes for, and what lies beyond.
struct Lab {
    host: Netns,
    a: Netns,
    b: Netns,
    outside: Netns,
}

impl Lab {
    /// The uplink carries 1300 bytes where the containers and the outside believe in 1500.
    fn new() -> Self {
        let [host, a, b, outside] =
            std::array::from_fn(|_| Netns::create().expect("root makes namespaces"));
        ok(
            &host,
            "ip link set lo up
             sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv6.conf.default.accept_dad=0",
        );
        Self::wire(&host, "up0", &outside);
        ok(
            &host,
            "ip link set up0 mtu 1300; ip addr add 192.0.2.2/24 dev up0; ip addr add 2001:db8::2/64 dev up0 nodad",
        );
        ok(
            &outside,
            "ip addr add 192.0.2.1/24 dev eth0; ip addr add 2001:db8::1/64 dev eth0 nodad",
        );
        for (number, name, netns) in [(2, "wva", &a), (3, "wvb", &b)] {
            Self::wire(&host, name, netns);
            ok(
                &host,
                &format!(
                    "ip addr add 10.32.0.1/32 dev {name}; ip addr add fe80::1/64 dev {name} nodad
                     ip route add 10.32.0.{number}/32 dev {name}; ip route add fd77::{number}/128 dev {name}"
                ),
            );
            ok(
                netns,
                &format!(
                    "ip addr add 10.32.0.{number}/32 dev eth0; ip addr add fd77::{number}/128 dev eth0 nodad
                     ip route add 10.32.0.1 dev eth0; ip route add default via 10.32.0.1
                     ip -6 route add default via fe80::1 dev eth0"
                ),
            );
        }
        Self {
            host,
            a,
            b,
            outside,
        }
    }

    /// Puts a pair of devices between the host and `eth0` of another namespace.
    fn wire(host: &Netns, name: &str, other: &Netns) {
        let path = format!(
            "/proc/{}/fd/{}",
            std::process::id(),
            other.as_fd().as_raw_fd()
        );
        ok(
            host,
            &format!(
                "ip link add {name} type veth peer name eth0 netns {path}; ip link set {name} up"
            ),
        );
        ok(other, "ip link set lo up; ip link set eth0 up");
    }

    fn on_host<T: Send>(&self, body: impl FnOnce(&Socket) -> T + Send) -> T {
        run_in(&self.host, || body(&Socket::open().unwrap())).unwrap()
    }
}
