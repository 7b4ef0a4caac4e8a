//! The table `weave-attach`: kept, repaired, and doing what it says.

use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use weave_linux::intercept;
use weave_linux::netns::{Netns, run_in};
use weave_linux::nft::{Found, Socket};
use weave_model::ClusterRange;
use weave_router::rules::{ASTRAY, AttachRules, CONTROL, FOREIGN, OUTBOUND, SPOOFED, UNINVITED};

use crate::{Lab, ok, pings, rules};

/// Packets counted by the rules with a comment.
fn counted(lab: &Lab, comment: &str) -> u64 {
    let rules = lab.on_host(|socket| socket.rules(rules().table()).unwrap());
    let counted = rules
        .iter()
        .filter(|rule| rule.comment.as_deref() == Some(comment));
    counted.map(|rule| rule.counter.unwrap().0).sum()
}

#[test]
fn the_table_is_kept_repaired_and_removed() {
    let host = Netns::create().unwrap();
    run_in(&host, || {
        let socket = Socket::open().unwrap();
        let rules = rules();
        let foreign = "add table ip filter; add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }";
        ok(&host, &format!("nft '{foreign}'"));
        let before = ok(&host, "nft list ruleset");
        assert_eq!(rules.check(&socket).unwrap(), Found::Missing);
        assert_eq!(rules.ensure(&socket).unwrap(), Found::Missing);
        let handle = || socket.table(rules.table()).unwrap().unwrap().handle;
        let first = handle();
        assert_eq!(rules.ensure(&socket).unwrap(), Found::Right);
        assert_eq!(handle(), first, "a right table was made anew");
        for damage in [
            "nft flush ruleset",
            "nft flush table inet weave-attach",
            "nft flush chain inet weave-attach outbound",
            "nft add rule inet weave-attach input accept",
            "nft add chain inet weave-attach other",
        ] {
            ok(&host, damage);
            assert_ne!(rules.check(&socket).unwrap(), Found::Right, "{damage}");
            rules.ensure(&socket).unwrap();
            assert_eq!(rules.check(&socket).unwrap(), Found::Right, "{damage}");
        }
        ok(&host, &format!("nft '{foreign}'"));
        rules.remove(&socket).unwrap();
        rules.remove(&socket).unwrap();
        assert_eq!(ok(&host, "nft list ruleset"), before);
    })
    .unwrap();
}

#[test]
fn rules_for_another_range_replace_the_table() {
    let host = Netns::create().unwrap();
    run_in(&host, || {
        let socket = Socket::open().unwrap();
        rules().ensure(&socket).unwrap();
        let range = ClusterRange::new(
            "10.64.0.0/12".parse().unwrap(),
            "fd78::/48".parse().unwrap(),
        );
        let other = AttachRules {
            tun: "weave0".into(),
            veths: "wv".into(),
            range: range.unwrap(),
            networks: vec![],
            closed_udp: vec![],
            closed_tcp: vec![],
        };
        assert_eq!(other.rule_set().ensure(&socket).unwrap(), Found::Wrong);
        let text = ok(&host, "nft list ruleset");
        assert!(
            text.contains("10.64.0.0/12") && !text.contains("10.32.0.0/12"),
            "{text}"
        );
        assert!(text.contains("comment \"weave\""), "{text}");
    })
    .unwrap();
}

#[test]
fn only_own_addresses_leave_a_container() {
    let lab = Lab::new();
    lab.on_host(|socket| rules().ensure(socket).unwrap());
    // Duplicate address detection sends from no address at all, and must pass.
    ok(
        &lab.a,
        "ip addr add fd77::2:2/128 dev eth0; ip -6 addr add fe80::77/64 dev eth0; sleep 3",
    );
    assert!(pings(&lab.a, "10.32.0.3") && pings(&lab.a, "fd77::3"));
    assert!(pings(&lab.b, "10.32.0.2") && pings(&lab.a, "-I eth0 fe80::1"));
    assert_eq!(counted(&lab, SPOOFED), 0);
    ok(
        &lab.a,
        "ip addr add 10.32.0.9/32 dev eth0; ip addr add fd77::9/128 dev eth0 nodad",
    );
    assert!(!pings(&lab.a, "-I 10.32.0.9 10.32.0.3"));
    assert!(!pings(&lab.a, "-I fd77::9 fd77::3"));
    assert_eq!(counted(&lab, SPOOFED), 2);
    // Nor those of a neighbour, of the host or of the outside.
    ok(
        &lab.a,
        "ip addr add 10.32.0.3/32 dev lo; ip addr add 192.0.2.2/32 dev lo; ip addr add 192.0.2.1/32 dev lo",
    );
    for forged in ["10.32.0.3", "192.0.2.2", "192.0.2.1"] {
        assert!(
            !pings(&lab.a, &format!("-I {forged} 10.32.0.1")),
            "{forged}"
        );
    }
    assert_eq!(counted(&lab, SPOOFED), 5);
}

#[test]
fn outbound_traffic_bears_the_nodes_address_and_fits_its_uplink() {
    let lab = Lab::new();
    assert!(
        !pings(&lab.a, "192.0.2.1"),
        "the outside knows no way to containers"
    );
    lab.on_host(|socket| rules().ensure(socket).unwrap());
    assert!(pings(&lab.a, "192.0.2.1") && pings(&lab.a, "2001:db8::1"));
    assert!(pings(&lab.a, "10.32.0.3") && pings(&lab.a, "fd77::3"));
    assert_eq!(counted(&lab, OUTBOUND), 2);
    for address in ["192.0.2.1:80", "[2001:db8::1]:80"] {
        let address: SocketAddr = address.parse().unwrap();
        let listener = run_in(&lab.outside, || TcpListener::bind(address).unwrap()).unwrap();
        let connect = || TcpStream::connect_timeout(&address, Duration::from_secs(5)).unwrap();
        let inside = run_in(&lab.a, connect).unwrap();
        let (accepted, from) = listener.accept().unwrap();
        assert!(
            ["192.0.2.2", "2001:db8::2"].contains(&from.ip().to_string().as_str()),
            "{from}"
        );
        let expected = if address.is_ipv4() {
            "mss:1248"
        } else {
            "mss:1228"
        };
        for netns in [&lab.a, &lab.outside] {
            let sockets = ok(netns, "ss -Htin state established");
            assert!(sockets.contains(expected), "{sockets}");
        }
        drop((inside, accepted));
    }
}

#[test]
fn containers_do_not_reach_the_nodes_control() {
    let lab = Lab::new();
    lab.on_host(|socket| rules().ensure(socket).unwrap());
    let listen =
        |port| run_in(&lab.host, move || TcpListener::bind(("::", port)).unwrap()).unwrap();
    let listeners = [6782, 4040, 8080].map(listen);
    let connects = |netns: &Netns, address: &str| {
        let address: SocketAddr = address.parse().unwrap();
        run_in(netns, || {
            TcpStream::connect_timeout(&address, Duration::from_millis(500)).is_ok()
        })
        .unwrap()
    };
    for own in ["10.32.0.1", "192.0.2.2", "[2001:db8::2]"] {
        assert!(connects(&lab.a, &format!("{own}:8080")), "{own}");
        for port in [6782, 4040] {
            assert!(!connects(&lab.a, &format!("{own}:{port}")), "{own}:{port}");
        }
    }
    assert!(connects(&lab.host, "192.0.2.2:6782") && connects(&lab.outside, "192.0.2.2:6782"));
    let server = run_in(&lab.host, || UdpSocket::bind(("0.0.0.0", 6783)).unwrap()).unwrap();
    server
        .set_read_timeout(Some(Duration::from_millis(500)))
        .unwrap();
    let send = || {
        UdpSocket::bind("0.0.0.0:0")
            .unwrap()
            .send_to(b"x", "192.0.2.2:6783")
            .unwrap()
    };
    run_in(&lab.a, send).unwrap();
    assert!(server.recv(&mut [0; 8]).is_err());
    run_in(&lab.outside, send).unwrap();
    assert!(server.recv(&mut [0; 8]).is_ok());
    assert!(counted(&lab, CONTROL) >= 7);
    drop(listeners);
}

#[test]
fn a_port_of_the_nodes_control_is_free_at_addresses_that_a_relay_stands_in_for() {
    let lab = Lab::new();
    lab.on_host(|socket| rules().ensure(socket).unwrap());
    let relay = run_in(&lab.host, || {
        intercept::listen("127.0.0.1:5000".parse().unwrap()).unwrap()
    })
    .unwrap();
    ok(
        &lab.host,
        "ip route add local default dev lo table 100; ip rule add fwmark 1 lookup 100
         nft 'table inet relay { chain in { type filter hook prerouting priority mangle;
           ip daddr 10.96.0.1 tcp dport 6782 tproxy ip to 127.0.0.1:5000 meta mark set 1 accept; }; }'",
    );
    let to: SocketAddr = "10.96.0.1:6782".parse().unwrap();
    let connect = || TcpStream::connect_timeout(&to, Duration::from_secs(5)).unwrap();
    let stream = run_in(&lab.a, connect).unwrap();
    assert_eq!(stream.peer_addr().unwrap(), to);
    assert_eq!(counted(&lab, CONTROL), 0);
    drop(relay);
}

#[test]
fn the_outside_neither_calls_containers_nor_speaks_as_one() {
    let lab = Lab::new();
    ok(
        &lab.host,
        "sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.up0.rp_filter=0",
    );
    ok(
        &lab.outside,
        "ip route add 10.32.0.0/12 via 192.0.2.2; ip route add fd77::/48 via 2001:db8::2
         ip addr add 10.32.0.9/32 dev lo; ip addr add fd77::9/128 dev lo nodad",
    );
    ok(
        &lab.host,
        "ip route add 10.32.0.9/32 via 192.0.2.1; ip route add fd77::9/128 via 2001:db8::1",
    );
    let calls = ["10.32.0.2", "fd77::2"];
    let forged = ["-I 10.32.0.9 10.32.0.2", "-I fd77::9 fd77::2"];
    for arguments in calls.iter().chain(&forged) {
        ok(&lab.outside, &format!("ping -n -c1 -w5 {arguments}"));
    }
    ok(
        &lab.host,
        "nft 'table ip published { chain in { type nat hook prerouting priority dstnat; tcp dport 8080 dnat to 10.32.0.2:80; }; }'
         ip route del 10.32.0.9; ip route del fd77::9",
    );
    lab.on_host(|socket| rules().ensure(socket).unwrap());
    for arguments in calls.iter().chain(&forged) {
        assert!(!pings(&lab.outside, arguments), "{arguments}");
    }
    assert_eq!((counted(&lab, UNINVITED), counted(&lab, FOREIGN)), (2, 2));
    assert!(pings(&lab.a, "192.0.2.1") && pings(&lab.a, "2001:db8::1"));
    let container: SocketAddr = "10.32.0.2:80".parse().unwrap();
    let listener = run_in(&lab.a, || TcpListener::bind(container).unwrap()).unwrap();
    let published: SocketAddr = "192.0.2.2:8080".parse().unwrap();
    let connect = || TcpStream::connect_timeout(&published, Duration::from_secs(5)).unwrap();
    let caller = run_in(&lab.outside, connect).unwrap();
    listener.accept().unwrap();
    drop(caller);
}

#[test]
fn what_has_no_way_in_the_cluster_takes_none_outside() {
    let lab = Lab::new();
    ok(
        &lab.host,
        "ip route add default via 192.0.2.1; ip -6 route add default via 2001:db8::1",
    );
    ok(
        &lab.outside,
        "ip addr add 10.40.0.1/32 dev lo; ip addr add fd77::4:1/128 dev lo nodad
         ip route add 10.32.0.2/32 via 192.0.2.2; ip route add fd77::2/128 via 2001:db8::2; sleep 1",
    );
    for there in ["10.40.0.1", "fd77::4:1"] {
        ok(&lab.a, &format!("ping -n -c1 -w5 {there}"));
    }
    lab.on_host(|socket| rules().ensure(socket).unwrap());
    for there in ["10.40.0.1", "fd77::4:1"] {
        assert!(!pings(&lab.a, there), "{there}");
    }
    assert_eq!(counted(&lab, ASTRAY), 2);
}
