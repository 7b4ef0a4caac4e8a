//! Whom a node dials of itself: those it was told of, and with discovery also those that it hears of.

use std::time::Duration;

use crate::lab::traffic::{try_ping, wait_for};
use crate::lab::{Container, Host, Lab, await_mesh_of};

/// For what only has to happen some time.
const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until packets of a host for another one go through a relay, or straight with `None`.
#[track_caller]
fn await_way(host: &Host, peer: &str, via: Option<&str>) {
    let goes = format!("packets of {} for {peer} go via {via:?}", host.name);
    wait_for(&goes, PATIENCE, || host.goes_via(peer, via));
}

/// Waits until a container reaches another one again, both of whose nodes have just started.
#[track_caller]
fn reaches_again(from: &Container, to: &Container) {
    wait_for("an answer after the start", PATIENCE, || {
        try_ping(&from.ns, to.v4.into(), 1000).status.success()
    });
    from.reaches(to, 1000);
}

/// Has the switch count what the hosts at two ports send each other straight.
fn count_between(lab: &Lab, a: u8, b: u8) {
    lab.switch().sh(&format!(
        "nft -f - <<'END'
table bridge seen {{
  chain between {{
    type filter hook forward priority 0
    ip saddr 192.168.77.{a} ip daddr 192.168.77.{b} udp dport 6783 counter
    ip saddr 192.168.77.{b} ip daddr 192.168.77.{a} udp dport 6783 counter
    ip6 saddr fd77::{a} ip6 daddr fd77::{b} udp dport 6783 counter
    ip6 saddr fd77::{b} ip6 daddr fd77::{a} udp dport 6783 counter
  }}
}}
END"
    ));
}

/// How many datagrams that were.
fn counted(lab: &Lab) -> u64 {
    let rules = lab.switch().sh("nft list table bridge seen");
    let counts = rules.split("counter packets ").skip(1);
    let count = |text: &str| {
        text.split(' ')
            .next()
            .and_then(|number| number.parse::<u64>().ok())
    };
    let counts: Vec<u64> = counts.filter_map(count).collect();
    assert_eq!(counts.len(), 4, "{rules}");
    counts.iter().sum()
}

/// The addresses that a node was told of.
fn told(host: &Host) -> Vec<String> {
    let seen = host.json(&["targets"]);
    let all = seen["targets"].as_array().expect("a list").iter();
    let told = all.filter(|one| one["source"] == "connect");
    told.filter_map(|one| one["address"].as_str())
        .map(str::to_owned)
        .collect()
}

/// Two nodes that were told only of a third never send each other a datagram, and talk through it; told of one another,
/// they do, also after a restart; told to forget, they do no longer.
#[test]
fn without_discovery_nodes_dial_only_whom_they_were_told_of() {
    Lab::run(|lab| {
        let hosts = [1, 2, 3].map(|number| lab.host(&format!("h{number}"), number));
        let [h1, h2, h3] = &hosts;
        count_between(lab, 2, 3);
        hosts
            .iter()
            .for_each(|host| host.start_with(&["--no-discovery"]));
        h1.ok(&["init"]);
        for host in [h2, h3] {
            let token = h1.ok(&["token", "create"]);
            host.ok(&["join", token.trim()]);
        }
        await_mesh_of(&[h1, h2, h3]);
        await_way(h2, "h3", Some("h1"));
        await_way(h3, "h2", Some("h1"));
        let [b, c] = [h2.attach("b"), h3.attach("c")];
        // A way that could be found straight would be tried each second.
        for _ in 0..4 {
            b.reaches(&c, 1000);
            std::thread::sleep(Duration::from_secs(1));
        }
        assert_eq!(counted(lab), 0, "h2 and h3 dialled nobody else");
        assert_eq!(told(h2).len(), 1, "where the token led: {:?}", told(h2));
        let at = "192.168.77.3:6783";
        let said = h2.ok(&["connect", "192.168.77.3"]);
        assert!(said.contains(at), "{said}");
        await_way(h2, "h3", None);
        await_way(h3, "h2", None);
        assert!(counted(lab) > 0);
        assert!(h2.ok(&["targets"]).contains("connect"));
        for host in [h2, h3] {
            host.end("KILL");
            host.start_with(&["--no-discovery"]);
        }
        await_way(h2, "h3", None);
        await_way(h3, "h2", None);
        assert!(told(h2).contains(&at.to_owned()), "saved: {:?}", told(h2));
        reaches_again(&b, &c);
        h2.ok(&["forget", at]);
        let again = h2.ctl(&["forget", at]);
        assert!(
            again.code == 1 && again.err.contains("was not told"),
            "{again:?}"
        );
        for host in [h2, h3] {
            host.end("KILL");
        }
        lab.switch().sh("nft delete table bridge seen");
        count_between(lab, 2, 3);
        for host in [h2, h3] {
            host.start_with(&["--no-discovery"]);
        }
        await_way(h2, "h3", Some("h1"));
        await_way(h3, "h2", Some("h1"));
        reaches_again(&b, &c);
        assert_eq!(counted(lab), 0, "forgotten");
    });
}

/// Two nodes of which neither was told of the other have no session, until one of them is.
#[test]
fn a_node_is_told_where_another_one_is() {
    Lab::run(|lab| {
        let [h1, h2] = [1, 2].map(|number| lab.host(&format!("h{number}"), number));
        for host in [&h1, &h2] {
            host.start_with(&["--no-discovery"]);
        }
        h1.ok(&["init"]);
        let token = h1.ok(&["token", "create"]);
        h2.ok(&["join", token.trim()]);
        await_mesh_of(&[&h1, &h2]);
        h2.ok(&["forget", "192.168.77.1"]);
        for host in [&h1, &h2] {
            host.end("KILL");
        }
        for host in [&h1, &h2] {
            host.start_with(&["--no-discovery"]);
        }
        std::thread::sleep(Duration::from_secs(3));
        for (host, other) in [(&h1, "h2"), (&h2, "h1")] {
            let seen = host.connection(other).expect("it is a member");
            assert_eq!(seen["state"], "unreachable");
        }
        h1.ok(&["connect", "192.168.77.2"]);
        await_mesh_of(&[&h1, &h2]);
        let seen = h1.connection("h2").expect("it is a member");
        assert_eq!(seen["endpoint"], "192.168.77.2:6783");
        let found = h1.json(&["targets"]);
        assert_eq!(found["targets"][0]["peer"], "h2", "{found}");
    });
}
