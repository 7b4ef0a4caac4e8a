//! Networks: what is in one is on every host alike, and nothing passes from one to another.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, TcpStream, UdpSocket};
use std::time::Duration;

use serde_json::Value;

use crate::lab::capture::{Capture, Frames};
use crate::lab::traffic::{bulk, payload, try_ping, wait_for};
use crate::lab::{Container, Host, Lab};
use crate::services::{balances, connect_within, serve};

const PORT: u16 = 5009;
/// A group that nobody joined: it is carried all the same.
const GROUP: Ipv4Addr = Ipv4Addr::new(239, 9, 9, 9);

fn networks(host: &Host) -> Vec<Value> {
    let listed = host.json(&["network", "list"]);
    listed["networks"].as_array().expect("a list").clone()
}

fn network(host: &Host, name: &str) -> Option<Value> {
    networks(host).into_iter().find(|one| one["name"] == name)
}

fn await_network(hosts: &[Host], name: &str) {
    for host in hosts {
        let knows = || network(host, name).is_some();
        wait_for("the network is known", Duration::from_secs(20), knows);
    }
}

/// Every way there is of sending something to a container, from another: nobody is expected to answer.
fn say_everything(from: &Container, to: &Container) {
    from.ns.inside(|| {
        for target in to.addresses() {
            let socket = UdpSocket::bind((unspecified(target), 0)).expect("a socket");
            let _ = socket.send_to(&payload(100, 1), (target, PORT));
            let connect = SocketAddr::from((target, PORT));
            let failed = TcpStream::connect_timeout(&connect, Duration::from_millis(50));
            assert!(failed.is_err(), "{} reached {connect}", from.name);
        }
    });
    // Whoever believes that the other one is on its own link asks for it there, and sends it what it likes.
    let (v4, v6) = (to.v4, to.v6);
    from.ns.sh(&format!(
        "ip route add {v4}/32 dev eth0; ip -6 route add {v6}/128 dev eth0
         ping -n -q -c 1 -W 0.2 {v4} || true; ping -n -q -c 1 -W 0.2 {v6} || true
         ip route del {v4}/32 dev eth0; ip -6 route del {v6}/128 dev eth0"
    ));
    for target in to.addresses() {
        let said = from.ns.try_sh(&format!("ping -n -q -c 1 -W 0.3 {target}"));
        assert!(!said.status.success(), "{target} answered {}", from.name);
    }
}

const fn unspecified(like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    }
}

/// One datagram to each kind of group.
fn say_to_groups(from: &Container, broadcast: Ipv4Addr) {
    let index = from.ns.sh("cat /sys/class/net/eth0/ifindex");
    let index: u32 = index.trim().parse().expect("a number");
    from.ns.inside(|| {
        let v4 = UdpSocket::bind((from.v4, 0)).expect("a socket");
        v4.set_broadcast(true).expect("it may broadcast");
        for to in [GROUP, broadcast, Ipv4Addr::BROADCAST] {
            v4.send_to(&payload(100, 2), (to, PORT)).expect("it leaves");
        }
        let v6 = UdpSocket::bind((from.v6, 0)).expect("a socket");
        let group = "ff15::9:9".parse().expect("an address");
        v6.send_to(&payload(100, 3), SocketAddrV6::new(group, PORT, 0, index))
            .expect("it leaves");
    });
}

/// What came from one container to the interface of another: packets with its source addresses, and its questions by
/// ARP.
fn came(frames: &Frames, from: &Container) -> Vec<String> {
    let v6 = frames.mentioning(&from.v6.octets(), 8);
    frames
        .mentioning(&from.v4.octets(), 12)
        .into_iter()
        .chain(v6)
        .collect()
}

/// The ranges of all networks, as a host lists them.
fn ranges(host: &Host) -> Vec<ipnet::Ipv4Net> {
    let listed = networks(host);
    let ranges = listed.iter().map(|one| one["range"].as_str());
    ranges
        .map(|text| text.and_then(|text| text.parse().ok()).expect("a range"))
        .collect()
}

/// A container of a network on each host; they reach each other.
fn pair(hosts: &[Host; 2], network: &str) -> [Container; 2] {
    let pair = [0, 1].map(|at| {
        let name = format!("{}{}", &network[..1], at + 1);
        hosts[at].attach_with(&name, &["--network", network])
    });
    let [here, there] = &pair;
    for size in [56, 1472, 8000] {
        here.reaches(there, size);
    }
    bulk(&here.ns, (&there.ns, there.v4.into()), 1 << 20);
    bulk(&there.ns, (&here.ns, here.v6.into()), 1 << 20);
    pair
}

/// Of the others at each container: what was said to groups in its own network, and nothing from any other.
fn each_heard_its_own(all: &[(usize, &Container)], frames: &[Frames]) {
    for ((network, to), frames) in all.iter().zip(frames) {
        for (other, from) in all {
            let heard = came(frames, from);
            let what = format!("of {} at {}", from.name, to.name);
            if to.name == from.name {
                assert!(heard.len() > 20, "the control, {what}: {heard:?}");
            } else if network == other {
                assert_eq!(heard.len(), 4, "to groups, {what}: {heard:?}");
            } else {
                assert_eq!(heard, [""; 0], "{what}");
            }
        }
    }
}

/// Two networks and the default one, a container of each on both hosts.
#[test]
fn nothing_passes_from_one_to_another() {
    Lab::run(|lab| {
        let hosts = lab.cluster::<2>();
        hosts[0].ok(&["network", "create", "blue"]);
        hosts[1].ok(&["network", "create", "red"]);
        for name in ["blue", "red"] {
            await_network(&hosts, name);
        }
        let [ranges, same] = [&hosts[0], &hosts[1]].map(ranges);
        assert_eq!((ranges.len(), &ranges), (3, &same));
        let containers = ["default", "blue", "red"].map(|network| pair(&hosts, network));
        let pairs = containers.iter().enumerate();
        let all: Vec<(usize, &Container)> = pairs
            .flat_map(|(network, pair)| pair.iter().map(move |one| (network, one)))
            .collect();
        let captures: Vec<Capture> = all
            .iter()
            .map(|(_, one)| lab.capture(&one.ns, "eth0"))
            .collect();
        for (network, from) in &all {
            for (other, to) in &all {
                if network != other {
                    say_everything(from, to);
                }
            }
            say_to_groups(from, ranges[*network].broadcast());
        }
        let frames = Capture::stop_all(captures.into_iter());
        each_heard_its_own(&all, &frames);
        a_restart_changes_nothing(&hosts, &containers);
    });
}

/// A node that is back keeps networks apart before it has heard anybody, and knows whom it has in which.
fn a_restart_changes_nothing(hosts: &[Host], containers: &[[Container; 2]]) {
    let before = network(&hosts[0], "red");
    hosts[1].end("KILL");
    hosts[0].end("KILL");
    hosts[0].start();
    let ruleset = hosts[0].ns.sh("nft list table inet weave-attach");
    assert!(ruleset.contains("apart"), "{ruleset}");
    assert_eq!(network(&hosts[0], "red"), before);
    hosts[1].start();
    crate::lab::await_mesh(hosts);
    let [[d1, d2], [b1, b2], _] = containers else {
        panic!("three networks");
    };
    let together = || try_ping(&b1.ns, b2.v4.into(), 56).status.success();
    wait_for("blue is whole again", Duration::from_secs(20), together);
    for (from, to) in [(b1, d2), (d1, b2), (d1, b1)] {
        let through = try_ping(&from.ns, to.v4.into(), 56).status.success();
        assert!(!through, "{} reached {}", from.name, to.name);
    }
}

/// Makes two networks, and is refused what cannot be one.
fn make_quiet_and_inside(hosts: &[Host; 2]) {
    let [h1, h2] = hosts;
    h1.ok(&[
        "network",
        "create",
        "quiet",
        "--range",
        "10.40.0.0/20",
        "--mtu",
        "1400",
        "--multicast",
        "off",
    ]);
    h1.ok(&["network", "create", "inside", "--internal"]);
    await_network(hosts, "inside");
    refused(
        h2,
        &["network", "create", "quiet"],
        "a network quiet exists already",
    );
    refused(
        h2,
        &["network", "create", "x", "--range", "10.40.8.0/24"],
        "overlaps the network quiet",
    );
    refused(
        h2,
        &["network", "create", "x", "--range", "10.64.0.0/20"],
        "no part of the cluster's range",
    );
    refused(
        h2,
        &["network", "create", "x", "--range", "10.32.0.0/20"],
        "cannot be a network's range",
    );
    let strange = h2.bare_container("strange");
    let path = strange.path().display().to_string();
    refused(
        h2,
        &["attach", &path, "--name", "s", "--network", "x"],
        "there is no network x",
    );
}

/// The same container on a second network, and on that one alone with those who are there.
fn joins_inside([h1, h2]: &[Host; 2], q1: &Container, q2: &Container) {
    let path = q1.ns.path().display().to_string();
    let second = h1.json(&[
        "attach",
        &path,
        "--name",
        "q1",
        "--ifname",
        "eth1",
        "--network",
        "inside",
    ]);
    let i2 = h2.attach_with("i2", &["--network", "inside"]);
    let own = second["ips"][0]["address"].as_str().expect("an address");
    assert!(
        try_ping(&q1.ns, i2.v4.into(), 56).status.success(),
        "{own} to {}",
        i2.v4
    );
    assert!(!try_ping(&q2.ns, i2.v4.into(), 56).status.success());
    assert_eq!(
        i2.ns.sh("ip route show default").trim(),
        "",
        "inside has no way out"
    );
}

/// Removed it can be once nobody is in it, and then it is gone everywhere.
fn quiet_goes([h1, h2]: &[Host; 2]) {
    refused(
        h2,
        &["network", "rm", "quiet"],
        "the network quiet is in use, by q1 on h1, q2 on h2",
    );
    h1.ok(&["detach", "q1", "--ifname", "eth0"]);
    h2.ok(&["detach", "q2"]);
    let unused = || network(h2, "quiet").is_some_and(|one| one["containers"] == 0);
    wait_for("nobody is in quiet", Duration::from_secs(20), unused);
    h2.ok(&["network", "rm", "quiet"]);
    let gone = || [h1, h2].iter().all(|host| networks(host).len() == 2);
    wait_for("quiet is gone everywhere", Duration::from_secs(20), gone);
    refused(h1, &["network", "rm", "quiet"], "there is no network quiet");
    refused(
        h1,
        &["network", "rm", "default"],
        "every cluster has the network default",
    );
}

/// A network has the range, the MTU and the groups that it was made with; one container is on several; a network in use
/// is not removed.
#[test]
fn a_network_is_as_it_was_made_and_goes_when_it_is_empty() {
    Lab::run(|lab| {
        let hosts = lab.cluster::<2>();
        let [h1, h2] = &hosts;
        make_quiet_and_inside(&hosts);
        let [q1, q2] = [(h1, "q1"), (h2, "q2")]
            .map(|(host, name)| host.attach_with(name, &["--network", "quiet"]));
        assert!(q1.v4.to_string().starts_with("10.40."), "{}", q1.v4);
        assert!(q2.ns.sh("ip link show eth0").contains("mtu 1400"));
        q1.reaches(&q2, 3000);
        let heard = lab.capture(&q2.ns, "eth0");
        say_to_groups(&q1, "10.40.15.255".parse().expect("an address"));
        assert_eq!(
            heard.stop().readable(),
            0,
            "groups are not carried in quiet"
        );

        let traced = h1.ctl(&["trace", "q1", "10.32.0.9", "-o", "json"]);
        assert_eq!(traced.code, 1, "it is dropped on the way: {traced:?}");
        let traced: Value = serde_json::from_str(&traced.out).expect("JSON");
        let last = traced["hops"]
            .as_array()
            .and_then(|hops| hops.last())
            .expect("hops")
            .clone();
        assert_eq!(
            (last["check"].as_str(), last["passed"].as_bool()),
            (Some("network"), Some(false))
        );

        joins_inside(&hosts, &q1, &q2);
        quiet_goes(&hosts);
    });
}

#[track_caller]
fn refused(host: &Host, arguments: &[&str], cause: &str) {
    let said = host.ctl(arguments);
    assert!(said.code == 1 && said.err.contains(cause), "{said:?}");
}

/// The control of [`came`]: a socket that nobody listens at refuses, so a container of the same network does answer.
#[test]
fn a_container_of_the_same_network_refuses_by_itself() {
    Lab::run(|lab| {
        let hosts = lab.cluster::<2>();
        hosts[0].ok(&["network", "create", "blue"]);
        await_network(&hosts, "blue");
        let [b1, b2] =
            [0, 1].map(|at| hosts[at].attach_with(&format!("b{at}"), &["--network", "blue"]));
        for target in b2.addresses() {
            let to = SocketAddr::from((target, PORT));
            let error = b1
                .ns
                .inside(|| TcpStream::connect_timeout(&to, Duration::from_secs(5)));
            let kind = error.expect_err("nobody listens").kind();
            assert_eq!(kind, ErrorKind::ConnectionRefused, "{target}");
        }
    });
}

/// The relay makes connections of its own, under the host's name where its client asked for a port of the node.
#[test]
fn no_service_of_either_engine_leads_into_another_network() {
    Lab::run(|lab| {
        let [host] = lab.cluster();
        host.ok(&["network", "create", "blue"]);
        host.ok(&["network", "create", "inside", "--internal"]);
        let db = host.bare_container("db");
        serve(&db, "db");
        let _db = host.attach_ns(db, "db", &["--network", "blue", "--label", "app=db"]);
        let friend = host.attach_with("friend", &["--network", "blue"]);
        let strangers = [
            host.attach("stranger"),
            host.attach_with("insider", &["--network", "inside"]),
        ];
        for (engine, port) in [("kernel", 30_080), ("relay", 30_081)] {
            let made = host.json(&[
                "service",
                "create",
                engine,
                "--port",
                "80:8080",
                "--selector",
                "app=db",
                "--engine",
                engine,
                "--node-port",
                &port.to_string(),
            ]);
            let address = made["addresses"][0].as_str().expect("an address");
            let all = [
                SocketAddr::new(address.parse().expect("an address"), 80),
                SocketAddr::from((host.v4, port)),
            ];
            for to in all {
                balances(&host.ns, to, &["db"]);
                balances(&friend.ns, to, &["db"]);
                for from in &strangers {
                    let reached = connect_within(Duration::from_secs(1), &from.ns, to);
                    assert!(reached.is_err(), "{} by {engine}, {to}", from.name);
                }
            }
        }
        let described = host.json(&["service", "describe", "relay"]);
        let backend = &described["backends"][0]["relayed"];
        // The first may have been the kernel's.
        assert!(backend["picks"].as_u64() >= Some(60), "{described}");
        assert_eq!(backend["failures"].as_u64(), Some(0), "{described}");
    });
}
