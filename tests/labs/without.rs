//! The same network while nodes do without facilities of the kernel: slower, and otherwise the same.
//!
//! Two nodes are told to do without, the third is not: what either kind sends has to be understood by both. That the
//! facility really is not used is seen in what the nodes count. The wires carry batches whole where they are sent so.

use crate::broadcast::{everybody_hears, listeners};
use crate::lab::traffic::{bulk, burst};
use crate::lab::{Container, Host, Lab, Wire, form};
use crate::overlay::{both_ways, every_pair, nothing_strange};

/// The words of `--without`.
const ALL: &str = "gso,gro,uso,big_tcp,multiqueue";
/// Bytes of the transfer.
const BULK: usize = 4 << 20;
/// Datagrams of one batch of a container.
const BURST: u64 = 20;

#[test]
fn without_gso() {
    Lab::run_on(Wire::Super, |lab| core_of_the_network(lab, "gso"));
}

#[test]
fn without_gro() {
    Lab::run_on(Wire::Super, |lab| core_of_the_network(lab, "gro"));
}

#[test]
fn without_uso() {
    Lab::run_on(Wire::Super, |lab| core_of_the_network(lab, "uso"));
}

#[test]
fn without_big_tcp() {
    Lab::run_on(Wire::Super, |lab| core_of_the_network(lab, "big_tcp"));
}

#[test]
fn without_multiqueue() {
    Lab::run_on(Wire::Super, |lab| core_of_the_network(lab, "multiqueue"));
}

#[test]
fn without_any() {
    Lab::run_on(Wire::Super, |lab| core_of_the_network(lab, ALL));
}

/// What every network has to do: all pairs, large packets, a transfer and broadcasts, both families.
fn core_of_the_network(lab: &Lab, without: &str) {
    let hosts = [lab.host("h1", 1), lab.host("h2", 2), lab.host("h3", 3)];
    for host in &hosts[..2] {
        host.start_with(&["--without", without]);
    }
    hosts[2].start();
    form(&hosts);
    let containers = [
        hosts[0].attach("a"),
        hosts[0].attach("b"),
        hosts[1].attach("c"),
        hosts[2].attach("d"),
    ];
    let [a, _, c, d] = &containers;
    every_pair(&containers);
    for family in [0, 1] {
        both_ways([a, c], family, &[1472, 8000, 60_000]);
        both_ways([a, d], family, &[8000]);
    }
    for (family, [from, to]) in [(0, [a, c]), (1, [d, a]), (0, [c, d])] {
        bulk(&from.ns, (&to.ns, to.addresses()[family]), BULK);
    }
    let inside = listeners(&containers);
    for speaker in [0, 3] {
        everybody_hears(&containers, &inside, speaker);
    }
    for host in &hosts {
        batches(host, without);
        said(host, given_up(host, without));
    }
    for (host, [from, to]) in [(&hosts[0], [a, c]), (&hosts[2], [d, c])] {
        let cut = given_up(host, without).contains("uso");
        super_packets(host, [from, to], cut);
    }
    for host in &hosts {
        // When two members call each other at once, one of the calls comes to nothing.
        nothing_strange(host, &["bad_handshake", "unknown_session"]);
    }
}

/// What this node was told to do without.
fn given_up<'a>(host: &Host, without: &'a str) -> &'a str {
    if host.name == "h3" { "" } else { without }
}

/// The status says which facilities are not used because they are not wanted, and nothing else is missing.
fn said(host: &Host, without: &str) {
    let status = host.status();
    let seen = &status["offloads"];
    for facility in ["gso", "gro", "tso", "uso", "big_tcp", "multiqueue"] {
        let wanted = !without.split(',').any(|word| word == facility);
        let expected = if wanted { "used" } else { "without" };
        assert_eq!(seen[facility], expected, "{}: {seen}", host.name);
    }
    let shown = host.ok(&["status"]);
    let words = format!("told to do without {}", without.replace(',', " "));
    assert_eq!(shown.contains(&words), !without.is_empty(), "{shown}");
    let one = without.contains("multiqueue");
    let connections = host.json(&["connections"]);
    for lanes in [&seen["queues"], &connections["connections"][0]["lanes"]] {
        let only = lanes.as_u64() == Some(1);
        // A machine of one core has one queue in any case; between two nodes the smaller number counts.
        assert!(!one || only, "{}: {seen} {connections}", host.name);
    }
}

/// Datagrams move one by one where they are to, and many at once where not.
fn batches(host: &Host, without: &str) {
    let datagrams = &host.status()["datagrams"];
    println!("{} without [{without}]: {datagrams}", host.name);
    let count = |name: &str| datagrams[name].as_u64().expect("a count");
    let one_by_one = count("sent") == count("sent_calls");
    let given_up = given_up(host, without);
    assert_eq!(one_by_one, given_up.contains("gso"), "{datagrams}");
    let one_by_one = count("received") == count("received_batches");
    // The third node hears only what the two others send; these hear it, too, which always sends batches.
    if host.name != "h3" || !without.contains("gso") {
        assert_eq!(one_by_one, given_up.contains("gro"), "{datagrams}");
    }
    assert!(count("received_calls") <= count("received_batches"));
}

/// A batch of UDP that a container sends comes to the node whole, or cut by the kernel; it arrives in any case.
fn super_packets(host: &Host, [from, to]: [&Container; 2], cut: bool) {
    let sent = || {
        host.status()["traffic"]["sent_packets"]
            .as_u64()
            .expect("a count")
    };
    for family in [0, 1] {
        let [own, far] = [from, to].map(|container| container.addresses()[family]);
        let before = sent();
        burst((&from.ns, own), (&to.ns, far), 1000, BURST as usize);
        let packets = sent() - before;
        assert_eq!(packets >= BURST, cut, "{}: {packets} packets", host.name);
    }
}
