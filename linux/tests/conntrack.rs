//! The kernel's table of connections, read in a namespace of the test's own. Needs root.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::net::UdpSocket;
use std::process::Command;

use weave_linux::conntrack::{Conntrack, News, flows, load};
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
    assert!(!table.news(|_| told += 1).unwrap(), "all were told");
    assert!(told >= 200, "{told}");

    // Far more than the socket has room for.
    let mut taken = 0;
    for _ in 0..4 {
        begin(&netns, 20_000);
        taken += forget_all(&netns);
    }
    let mut told = 0;
    assert!(table.news(|_| told += 1).unwrap(), "some were lost");
    assert!(told > 0 && told < taken, "{told} of {taken}");
    assert!(!table.news(|_| {}).unwrap(), "which is told once");
}

#[test]
fn beginnings_are_told_on_request_and_before_their_ends() {
    let netns = followed();
    let mut table = run_in(&netns, || Conntrack::open().unwrap()).unwrap();
    begin(&netns, 3);
    assert!(news(&table).is_empty(), "nobody asked for beginnings");

    table.hear_beginnings(true).unwrap();
    begin(&netns, 3);
    let told = news(&table);
    assert!(told.len() >= 3, "{told:?}");
    for one in &told {
        let News::Began(connection) = one else {
            panic!("{one:?} has not ended");
        };
        assert_eq!((connection.protocol, connection.sent), (UDP, None));
        assert!((1..=3).contains(&connection.to.port), "{connection:?}");
    }

    begin(&netns, 1);
    forget_all(&netns);
    let told = news(&table);
    let last = |is: fn(&News) -> bool| told.iter().position(is);
    let (began, ended) = (
        last(|one| matches!(one, News::Began(of) if of.to.port == 1)),
        last(|one| matches!(one, News::Ended(of) if of.to.port == 1)),
    );
    assert!(began.is_some() && ended.is_some(), "{told:?}");
    assert!(began < ended, "{told:?}");

    table.hear_beginnings(false).unwrap();
    begin(&netns, 3);
    assert!(news(&table).is_empty(), "nobody asks any more");
}

/// What was told since it was last taken; none of it may be lost.
fn news(table: &Conntrack) -> Vec<News> {
    let mut told = Vec::new();
    assert!(!table.news(|one| told.push(one)).unwrap(), "some were lost");
    told
}
