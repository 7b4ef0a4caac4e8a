//! A host whose kernel follows as many connections as it may: what stands goes on, new ones fail, and the node says so.
//!
//! How many it may is one number for the whole machine, which no namespace can change. So the table of one host is really
//! filled, by connections that ctnetlink makes: marked as answered, because the kernel throws out others for new ones.

use std::fmt::Write as _;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use crate::lab::ns::Ns;
use crate::lab::traffic::{Conversation, wait_for};
use crate::lab::{Container, Host, Lab, await_mesh};
use crate::services::{SOON, balances, connect_within, echoes, serve};

/// For what must come to nothing.
const SHORT: Duration = Duration::from_millis(1500);
/// What the node says, in its status and its log.
const NO_ROOM: &str = "no room for more connections";
/// The connections that fill the table are from here.
const FILLED_FROM: &str = "198.18.0.0/15";

fn number(host: &Host, key: &str) -> usize {
    let text = host.ns.sh(&format!("cat /proc/sys/net/netfilter/{key}"));
    text.trim().parse().expect("a number")
}

/// Has the host's kernel follow so many more connections, for an hour; whether it took all of them.
pub(crate) fn fill(lab: &Lab, host: &Host, connections: usize) -> bool {
    let mut lines = String::new();
    for n in 0..connections {
        // Ports as the low 28 bits, addresses as the rest.
        let (source, destination, high) = (n % 0x4000 + 1, n / 0x4000 % 0x4000 + 1, n >> 28);
        let _ = writeln!(
            lines,
            "-I -s 198.18.{high}.1 -d 198.19.{high}.1 -p udp --sport {source} --dport {destination} \
             -t 3600 -u SEEN_REPLY,ASSURED"
        );
    }
    let file = lab.dir().join("connections");
    std::fs::write(&file, lines).expect("a file can be written");
    // It ends with the first that the kernel does not take.
    let ended = host.ns.try_sh(&format!("conntrack -R {}", file.display()));
    ended.status.success()
}

fn problems(host: &Host) -> String {
    host.status()["problems"].to_string()
}

fn logged(lab: &Lab, host: &Host, what: &str) -> usize {
    let log = std::fs::read_to_string(lab.dir().join(format!("{}.log", host.name)));
    log.expect("the log is there").matches(what).count()
}

/// A server on each host, and a Service in front of both; its address.
fn set_up(hosts: &[Host; 2]) -> (Vec<Container>, SocketAddr) {
    let servers = hosts.iter().zip(["w1", "w2"]).map(|(host, name)| {
        let ns = host.bare_container(name);
        serve(&ns, name);
        host.attach_ns(ns, name, &["--label", "app=web"])
    });
    let servers = servers.collect();
    let by = ["--port", "80:8080", "--selector", "app=web"];
    let made = hosts[0].json(&[&["service", "create", "web"], &by[..]].concat());
    let address = made["addresses"][0].as_str().expect("an address");
    let v4 = SocketAddr::new(address.parse().expect("an address"), 80);
    (servers, v4)
}

/// What the kernel has no room for vanishes, and what stands goes on.
fn is_full(lab: &Lab, host: &Host, client: &Ns, v4: SocketAddr) {
    let most = number(host, "nf_conntrack_max");
    assert!(!fill(lab, host, most + 1000), "all were taken");
    wait_for("the node says so", SOON, || {
        problems(host).contains(NO_ROOM)
    });
    assert!(
        problems(host).contains("nf_conntrack_max="),
        "and what to do"
    );
    wait_for("a new connection fails", SOON, || {
        connect_within(SHORT, client, v4).is_err()
    });
}

#[test]
fn what_stands_goes_on_when_the_kernel_has_no_room_for_more_connections() {
    Lab::run(|lab| {
        let hosts: [Host; 2] = lab.cluster();
        let (servers, v4) = set_up(&hosts);
        let client = hosts[0].attach("client");
        balances(&client.ns, v4, &["w1", "w2"]);
        let mut streams: Vec<TcpStream> = (0..12)
            .map(|_| connect_within(SOON, &client.ns, v4).expect("an answer").0)
            .collect();
        let across = Conversation::start(&client.ns, (&servers[1].ns, servers[1].v4.into()));
        across.assert_goes_on(SOON);
        assert!(!problems(&hosts[0]).contains("room"), "there is room");

        is_full(lab, &hosts[0], &client.ns, v4);
        let mut check = |when: &str| {
            let stand = streams.iter_mut().all(echoes);
            assert!(stand, "one that stood broke when {when}");
            across.assert_goes_on(SOON);
        };
        (0..3).for_each(|_| check("there was no room"));
        // A node that starts anew meets this one, and what goes between them is new to this kernel.
        hosts[1].kill();
        hosts[1].start();
        await_mesh(&hosts);
        check("the other node was started again");

        let filling = format!("conntrack -D -p udp --orig-src {FILLED_FROM} >/dev/null");
        hosts[0].ns.sh(&filling);
        wait_for("the node says no more of it", SOON, || {
            !problems(&hosts[0]).contains("room")
        });
        balances(&client.ns, v4, &["w1", "w2"]);
        check("there was room again");
        across.finish();
        let told = |host, what| logged(lab, host, what);
        assert_eq!(told(&hosts[0], NO_ROOM), 1, "once");
        assert_eq!(told(&hosts[0], "has room for more connections again"), 1);
        assert_eq!(told(&hosts[1], "more connections"), 0, "the other has room");
    });
}
