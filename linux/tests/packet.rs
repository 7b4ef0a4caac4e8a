//! Broadcast and multicast as a socket hears them, in namespaces of the test's own. Needs root.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::io::ErrorKind;
use std::os::fd::{AsFd, AsRawFd};
use std::process::Command;
use std::time::Duration;

use weave_linux::netns::{Netns, run_in};
use weave_linux::packet::PacketSocket;

const BROADCAST: [u8; 6] = [0xff; 6];
const MULTICAST: [u8; 6] = [1, 0, 0x5e, 0, 0, 7];
const SOMEBODY: [u8; 6] = [2, 0, 0, 0, 0, 9];
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
const ARP: u16 = 0x0806;
/// 802.1Q: network 7, and none but a priority.
const TAG: [u8; 4] = [0x81, 0, 0, 7];
const PRIORITY: [u8; 4] = [0x81, 0, 0xe0, 0];

fn done(netns: &Netns, program: &str, words: &[&str]) {
    let run = || Command::new(program).args(words).status().unwrap();
    assert!(run_in(netns, run).unwrap().success(), "{program} {words:?}");
}

/// Two namespaces, and a link from `a` in the first to `b` in the second.
fn linked() -> [Netns; 2] {
    let [here, there] = [(); 2].map(|()| Netns::create().unwrap());
    let (process, other) = (std::process::id(), there.as_fd().as_raw_fd());
    let make = format!("ip link add name a type veth peer name b netns /proc/{process}/fd/{other}");
    done(&here, "sh", &["-ec", &make]);
    for (netns, link) in [(&here, "a"), (&there, "b")] {
        let script =
            format!("sysctl -qw net.ipv6.conf.all.disable_ipv6=1; ip link set dev {link} up");
        done(netns, "sh", &["-ec", &script]);
    }
    [here, there]
}

/// A frame whose last byte is its number.
fn frame(number: u8, to: [u8; 6], tag: &[u8], ethertype: u16) -> String {
    let from = [2, 0, 0, 0, 0, 1];
    let bytes = [
        &to[..],
        &from,
        tag,
        &ethertype.to_be_bytes(),
        &[0x45; 39],
        &[number],
    ]
    .concat();
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn send(netns: &Netns, link: &str, frames: &[String]) {
    let script = "import socket, sys\n\
                  out = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)\n\
                  out.bind((sys.argv[1], 0))\n\
                  for frame in sys.argv[2:]: out.send(bytes.fromhex(frame))";
    let frames = frames.iter().map(String::as_str);
    let words: Vec<&str> = ["-c", script, link].into_iter().chain(frames).collect();
    done(netns, "python3", &words);
}

/// The numbers of the frames that a socket has heard.
fn heard(socket: &PacketSocket) -> Vec<u8> {
    let mut numbers = Vec::new();
    loop {
        let mut packet = [0; 256];
        match socket.recv(&mut packet) {
            Ok(heard) => {
                assert_eq!(heard.len, 40);
                numbers.push(packet[39]);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => return numbers,
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn only_what_comes_in_for_a_group_is_heard() {
    let [here, there] = linked();
    let open = || PacketSocket::open(Duration::from_millis(500)).unwrap();
    let socket = run_in(&here, open).unwrap();
    send(&here, "a", &[frame(1, BROADCAST, &[], IPV4)]);
    let frames = [
        frame(2, SOMEBODY, &[], IPV4),
        frame(3, BROADCAST, &TAG, IPV4),
        frame(4, BROADCAST, &[], ARP),
        frame(5, BROADCAST, &[], IPV4),
        frame(6, MULTICAST, &[], IPV4),
        frame(7, MULTICAST, &[], IPV6),
        frame(8, BROADCAST, &PRIORITY, IPV4),
    ];
    send(&there, "b", &frames);
    assert_eq!(heard(&socket), [5, 6, 7, 8]);
}
