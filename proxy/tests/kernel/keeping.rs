//! The kernel's table over time: small changes, flushes, strangers, restarts, and connections that stand through all.

use std::time::Duration;

use weave_model::{Affinity, EngineChoice, Protocol, Service};
use weave_proxy::kernel::Done;
use weave_proxy::sources::Change;

use crate::lab::{
    A, B, C, Lab, ask, at, connect, echoes, ip, ok, port, slice, tcp, udp_socket, until, web,
};

cases! {
    endpoints_that_come_and_go_cost_no_connection => Gap,
}

const WEB: &str = "10.96.0.1:80";

fn sticky() -> Service {
    Service {
        name: "sticky".parse().unwrap(),
        addresses: vec![ip("10.96.0.2")],
        affinity: Affinity::ClientIp { seconds: 60 },
        ..web()
    }
}

fn lab(on: EngineChoice) -> Lab {
    let mut lab = Lab::new(on);
    lab.report([Change::Service(web()), slice([at(A), at(B)])]);
    lab.report([Change::Service(sticky())]);
    lab
}

/// The table's lines in any order: chains stand in the order they were made.
fn list(lab: &Lab) -> Vec<String> {
    let text = ok(&lab.host, "nft list table inet weave-service");
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

#[test]
fn changes_go_in_as_elements_and_end_where_a_new_table_would() {
    let mut lab = lab(EngineChoice::Kernel);
    assert_eq!(lab.report([slice([at(A), at(B), at(C)])]), Done::Changed);
    assert_eq!(lab.report([slice([at(C)])]), Done::Changed);
    assert_eq!(lab.report([slice([at(C)])]), Done::Kept);
    assert_eq!(lab.kernel.look_after().unwrap(), Done::Kept);
    assert_eq!(
        lab.restart(),
        Done::Kept,
        "a new engine finds what it would make"
    );
    assert_eq!(
        lab.report([Change::NoService("web".parse().unwrap())]),
        Done::Changed
    );
    assert_eq!(lab.restart(), Done::Kept);
}

#[test]
fn what_was_flushed_or_altered_is_made_again() {
    let mut lab = lab(EngineChoice::Kernel);
    let right = list(&lab);
    let by_hand = [
        "nft flush ruleset",
        "nft delete table inet weave-service",
        "nft flush chain inet weave-service services",
        "nft flush map inet weave-service fronts4",
        "nft delete element inet weave-service vips4 { 10.96.0.1 }",
        "nft add element inet weave-service fronts4 { 10.96.0.66 . tcp . 80 : drop }",
        "nft insert rule inet weave-service services drop",
    ];
    for command in by_hand {
        ok(&lab.host, command);
        assert_eq!(lab.kernel.look_after().unwrap(), Done::Remade, "{command}");
        assert_eq!(list(&lab), right, "{command}");
        assert_eq!(lab.servers(&lab.c, WEB, 30), ["a", "b"]);
    }
}

/// Where connections are followed for somebody else as well, a datagram that comes while the rules are gone begins a flow
/// without translation, which every later one would go by.
#[test]
fn datagrams_that_came_while_the_rules_were_gone_are_led_right_again() {
    let mut lab = lab(EngineChoice::Kernel);
    ok(
        &lab.host,
        "nft add table inet other; nft add chain inet other c '{ type filter hook prerouting priority 0; }'; \
         nft add rule inet other c ct state new accept; ip route add blackhole default metric 4000; \
         ip route add 10.96.0.0/16 via 10.32.0.9 dev weave0 onlink 2>/dev/null || ip route add 10.96.0.0/16 dev weave0",
    );
    ok(&lab.host, "nft delete table inet weave-service");
    let socket = udp_socket(&lab.c, WEB);
    let astray = ask(&socket, Duration::from_millis(300));
    assert!(astray.saw().is_none(), "{astray:?}");
    assert_eq!(lab.kernel.look_after().unwrap(), Done::Remade);
    until("an answer", || {
        ask(&socket, Duration::from_millis(300)).saw().is_some()
    });
}

#[test]
fn foreign_tables_are_left_alone() {
    let mut lab = lab(EngineChoice::Kernel);
    ok(
        &lab.host,
        "nft add table inet other; nft add chain inet other c; nft add rule inet other c counter accept",
    );
    let theirs = ok(&lab.host, "nft list table inet other");
    assert_eq!(lab.kernel.look_after().unwrap(), Done::Kept);
    lab.report([slice([at(C)])]);
    ok(&lab.host, "nft flush table inet weave-service");
    assert_eq!(lab.kernel.look_after().unwrap(), Done::Remade);
    assert_eq!(ok(&lab.host, "nft list table inet other"), theirs);
    assert_eq!(tcp(&lab.a, WEB).server(), "c");
}

#[test]
fn connections_stand_through_changes_flushes_and_restarts() {
    let mut lab = lab(EngineChoice::Kernel);
    let mut streams: Vec<_> = (0..10)
        .map(|_| connect(&lab.c, WEB, Duration::from_secs(10)).unwrap().0)
        .collect();
    let mut check = |when: &str| assert!(streams.iter_mut().all(echoes), "{when}");
    lab.report([slice([at(C)])]);
    check("their endpoints are not picked any more");
    // Without any rule of translation the kernel translates nothing, not even what it did before.
    ok(&lab.host, "nft flush ruleset");
    lab.kernel.look_after().unwrap();
    check("the rules were gone and are back");
    lab.restart();
    lab.report([Change::NoService("web".parse().unwrap())]);
    check("the service is gone");
}

/// Under constant load endpoints come and go 1,000 times in the kernel: no old connection breaks, and no new one is refused. A batch is
/// one step for the kernel, but a packet that is on its way through the rules in that instant may see a rule from before
/// it and an element from after it; that costs it a second until it is sent again.
fn endpoints_that_come_and_go_cost_no_connection(on: EngineChoice) {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
    let mut lab = Lab::new(on);
    // With UDP, each change would look through all connections that were ever made here.
    let only_tcp = Service {
        ports: vec![port(Protocol::Tcp, 80, None)],
        ..web()
    };
    lab.report([Change::Service(only_tcp), slice([at(A), at(B)])]);
    let (over, made) = (AtomicBool::new(false), AtomicUsize::new(0));
    let (mut lasting, _) = connect(&lab.c, WEB, Duration::from_secs(10)).unwrap();
    let c = lab.c.try_clone().unwrap();
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                let answer = tcp(&c, WEB);
                assert!(["a", "b"].contains(&answer.server()), "{answer:?}");
                made.fetch_add(1, Ordering::Relaxed);
            }
        });
        // What it costs the relay is its own tests' business.
        let turns = if on == EngineChoice::Kernel { 500 } else { 100 };
        for turn in 0..turns {
            let one = if turn % 2 == 0 { A } else { B };
            for endpoints in [vec![at(one)], vec![at(A), at(B)]] {
                let done = lab.report([slice(endpoints)]);
                assert!(done == Done::Changed || crate::mutants::now().is_some());
            }
            // What came to a stop will not go on.
            if asking.is_finished() {
                break;
            }
        }
        over.store(true, Ordering::Relaxed);
    });
    assert!(made.into_inner() > 0);
    assert!(echoes(&mut lasting));
}
