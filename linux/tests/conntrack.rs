//! The kernel's table of connections, read in a namespace of the test's own. Needs root.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::net::UdpSocket;
use std::process::Command;

use weave_linux::conntrack::{Conntrack, flows, load};
use weave_linux::netns::{Netns, run_in};

const UDP: u8 = 17;

/// A namespace whose loopback is up and whose connections are followed.
fn followed() -> Netns {
    let netns = Netns::create().unwrap();
    let script = "ip link set lo up && nft add table inet t && \
                  nft 'add chain inet t in { type filter hook input priority 0; }' && \
                  nft add rule inet t in ct state new accept";
    let done = run_in(&netns, || {
        Command::new("sh").args(["-c", script]).status().unwrap()
    });
    assert!(done.unwrap().success());
    netns
}

/// Begins a connection to each of so many ports.
fn begin(netns: &Netns, ports: u16) {
    let socket = run_in(netns, || UdpSocket::bind("127.0.0.1:0").unwrap()).unwrap();
    for port in 1..=ports {
        // Nobody listens there: an earlier refusal is told here, and this one is sent by the second call.
        if socket.send_to(&[1], ("127.0.0.1", port)).is_err() {
            socket.send_to(&[1], ("127.0.0.1", port)).unwrap();
        }
    }
}

/// Has the kernel take all of them out of its table; how many there were.
fn forget_all(netns: &Netns) -> usize {
    let table = run_in(netns, || flows::Conntrack::open().unwrap()).unwrap();
    let found = table.flows(UDP, flows::To::Any, |_| true).unwrap().flows;
    found.iter().for_each(|flow| table.forget(flow).unwrap());
    found.len()
}

#[test]
fn what_ended_is_told_and_what_there_was_no_room_for_is_known_to_be_lost() {
    let netns = followed();
    let table = run_in(&netns, || Conntrack::open().unwrap()).unwrap();
    begin(&netns, 200);
    let load = run_in(&netns, || load().unwrap()).unwrap();
    assert!(load.entries >= 200, "{load:?}");
    assert!(load.limit.is_some_and(|limit| limit > load.entries));
    assert_eq!((load.dropped, load.evicted), (0, 0));
    assert!(forget_all(&netns) >= 200);
    let mut told = 0;
    assert!(!table.ended(|_| told += 1).unwrap(), "all were told");
    assert!(told >= 200, "{told}");

    // Far more than the socket has room for.
    let mut taken = 0;
    for _ in 0..4 {
        begin(&netns, 20_000);
        taken += forget_all(&netns);
    }
    let mut told = 0;
    assert!(table.ended(|_| told += 1).unwrap(), "some were lost");
    assert!(told > 0 && told < taken, "{told} of {taken}");
    assert!(!table.ended(|_| {}).unwrap(), "which is told once");
}
