//! Containers on several hosts reach one another, whatever they send: both families, any size, local and remote.

use std::net::IpAddr;
use std::process::Command;
use std::time::Duration;

use crate::lab::node::{WEAVECTL, said};
use crate::lab::traffic::{bulk, datagrams, ping, try_ping};
use crate::lab::{Container, Host, Lab, Wire, await_mesh, two_each};

/// Five hosts with two containers each: every container reaches every other and its own host, in both families, and
/// what a container's own interface shows in clear is sealed on every wire.
#[test]
fn every_pair_of_five_hosts_talks() {
    Lab::run(|lab| {
        let hosts: [Host; 5] =
            std::array::from_fn(|at| lab.host(&format!("h{}", at + 1), at as u8 + 1));
        hosts.iter().for_each(Host::start);
        join_at_once(&hosts);
        let containers = two_each(&hosts);
        let control = lab.capture(&containers[0].ns, "eth0");
        every_pair(&containers);
        for (host, pair) in hosts.iter().zip(containers.chunks(2)) {
            for container in pair {
                for address in container.addresses() {
                    ping(&host.ns, address, 1472);
                }
                ping(&container.ns, host.v4.into(), 1472);
            }
        }
        // Nine others, two families, asked and asking, request and answer; and its host, three times, once of these
        // in IPv6, where 1472 bytes make two fragments.
        assert_eq!(control.stop().readable(), 9 * 2 * 2 * 2 + 4 * 2);
    });
}

/// Every container reaches every other, in both families.
#[track_caller]
pub(crate) fn every_pair(containers: &[Container]) {
    for from in containers {
        for to in containers.iter().filter(|to| to.name != from.name) {
            from.reaches(to, 56);
        }
    }
}

/// The first node makes a cluster, and all others join it at the same moment with one token.
fn join_at_once(hosts: &[Host]) {
    let (first, others) = hosts.split_first().expect("a cluster has a node");
    first.ok(&["init"]);
    let uses = others.len().to_string();
    let token = first.ok(&["token", "create", "--uses", &uses]);
    std::thread::scope(|scope| {
        for host in others {
            let (socket, token) = (host.socket(), token.trim());
            scope.spawn(move || {
                let said = said(
                    Command::new(WEAVECTL)
                        .env("WEAVE_SOCKET", socket)
                        .args(["join", token]),
                );
                assert_eq!(said.code, 0, "{said:?}");
            });
        }
    });
    await_mesh(hosts);
}

/// Packets of every size between hosts, with the wires carrying single datagrams.
#[test]
fn every_size_on_a_wire_of_single_packets() {
    Lab::run(every_size);
}

/// The same where the datagrams of one call stay together.
#[test]
fn every_size_on_a_wire_of_super_packets() {
    Lab::run_on(Wire::Super, every_size);
}

/// The same where the wire takes no more than 1280 bytes: the containers do not notice.
#[test]
fn every_size_on_a_wire_with_a_small_mtu() {
    Lab::run(|lab| {
        let hosts = [lab.host("h1", 1), lab.host("h2", 2)];
        for host in &hosts {
            host.ns.sh("ip link set u0 mtu 1280");
            host.start();
        }
        crate::lab::form(&hosts);
        sizes_between(lab, &hosts[0], &hosts[1]);
    });
}

/// The same where hosts have nothing but IPv6 between them.
#[test]
fn every_size_on_a_wire_of_ipv6() {
    Lab::run(|lab| {
        let hosts = [lab.host("h1", 1), lab.host("h2", 2)];
        for host in &hosts {
            host.ns.sh("ip -4 addr flush dev u0");
            host.start();
        }
        crate::lab::form(&hosts);
        sizes_between(lab, &hosts[0], &hosts[1]);
    });
}

/// Nodes that prefer different suites, or accept only one, find one that both accept.
#[test]
fn nodes_agree_on_a_suite_that_both_accept() {
    Lab::run(|lab| {
        let suites = [
            "aes-256-gcm,chacha20-poly1305",
            "chacha20-poly1305",
            "chacha20-poly1305,aes-256-gcm",
        ];
        let hosts = [lab.host("h1", 1), lab.host("h2", 2), lab.host("h3", 3)];
        for (host, suites) in hosts.iter().zip(suites) {
            host.start_with(&["--suites", suites]);
        }
        crate::lab::form(&hosts);
        let containers = hosts
            .each_ref()
            .map(|host| host.attach(&format!("on-{}", host.name)));
        for from in &containers {
            for to in containers.iter().filter(|to| to.name != from.name) {
                from.reaches(to, 1472);
            }
        }
        let seen = hosts[1].json(&["connections"]);
        for connection in seen["connections"].as_array().expect("a list") {
            assert_eq!(connection["suite"], "chacha20-poly1305", "{seen}");
        }
    });
}

fn every_size(lab: &Lab) {
    let [h1, h2] = lab.cluster();
    sizes_between(lab, &h1, &h2);
}

/// Every kind and size of packet between containers of two hosts, and between two of one host.
fn sizes_between(lab: &Lab, h1: &Host, h2: &Host) {
    let [here, beside, there] = [h1.attach("here"), h1.attach("beside"), h2.attach("there")];
    let control = lab.capture(&here.ns, "eth0");
    for other in [&there, &beside] {
        for family in [0, 1] {
            let [near, far] = [here.addresses()[family], other.addresses()[family]];
            // A whole packet that must not be fragmented, then ICMP fragments, in both directions.
            unfragmented(&here, far);
            unfragmented(other, near);
            both_ways([&here, other], family, &[1, 1472, 1473, 8000, 60_000]);
            bulk(&here.ns, (&other.ns, far), 8 << 20);
        }
    }
    assert!(control.stop().readable() > 500);
    let cores = std::thread::available_parallelism()
        .expect("the machine has cores")
        .get() as u64;
    let lanes = &h1.json(&["connections"])["connections"][0]["lanes"];
    assert!(
        lanes.as_u64() >= Some(cores.min(2)),
        "all of it went over {lanes} lanes"
    );
    for host in [h1, h2] {
        nothing_strange(host, &[]);
    }
}

/// Fails if a node dropped anything for another reason than these and the usual ones.
#[track_caller]
pub(crate) fn nothing_strange(host: &Host, but_for: &[&str]) {
    // What a container's kernel says to its own neighbours is not for others; slices and packets may be lost where the
    // machine is short of time; a peer's first handshake is asked for a cookie. Anything else is a fault.
    let harmless = [
        "link_scope",
        "incomplete",
        "queue_full",
        "congested",
        "unproven",
    ];
    let drops = host.status()["drops"].clone();
    let all = drops.as_object().expect("drops are counted by reason");
    let known = |why: &str| harmless.contains(&why) || but_for.contains(&why);
    assert!(
        all.iter().all(|(why, count)| *count == 0 || known(why)),
        "{}: {drops}",
        host.name
    );
}

/// Pings and datagrams of these sizes between two containers, both ways, in the first family or the second.
#[track_caller]
pub(crate) fn both_ways([here, there]: [&Container; 2], family: usize, sizes: &[usize]) {
    let [near, far] = [here, there].map(|container| container.addresses()[family]);
    for &size in sizes {
        ping(&here.ns, far, size);
        ping(&there.ns, near, size);
        datagrams((&here.ns, near), (&there.ns, far), size);
    }
}

/// A ping of the container's whole MTU that may not be fragmented.
fn unfragmented(from: &Container, to: IpAddr) {
    let size = if to.is_ipv4() { 1472 } else { 1452 };
    let output = from
        .ns
        .try_sh(&format!("ping -n -q -c 1 -W 2 -M do -s {size} {to}"));
    assert!(
        output.status.success(),
        "1500 bytes from {} to {to} in one piece: {output:?}",
        from.name
    );
}

/// `weavectl expose` makes the host itself a member of the network, and `hide` ends it.
#[test]
fn an_exposed_host_reaches_remote_containers() {
    Lab::run(|lab| {
        let [h1, h2] = lab.cluster();
        let remote = h2.attach("remote");
        let local = h1.attach("local");
        h1.ok(&["expose"]);
        let host: [IpAddr; 2] = ["ip", "ip6"].map(|family| {
            let answer = h1.status();
            answer["host"][family]
                .as_str()
                .expect("an exposed host has addresses")
                .parse()
                .unwrap()
        });
        for family in [0, 1] {
            for container in [&remote, &local] {
                let address = container.addresses()[family];
                ping(&h1.ns, address, 56);
                ping(&container.ns, host[family], 8000);
                datagrams((&h1.ns, host[family]), (&container.ns, address), 8000);
                bulk(&container.ns, (&h1.ns, host[family]), 1 << 20);
            }
        }
        h1.ok(&["hide"]);
        assert!(
            !try_ping(&remote.ns, host[0], 56).status.success(),
            "a hidden host answers"
        );
        ping(&remote.ns, local.v4.into(), 56);
        ping(&h1.ns, local.v4.into(), 56);
    });
}

/// Addresses and names come back when a container is detached, and a namespace can be attached again.
#[test]
fn a_detached_container_is_gone() {
    Lab::run(|lab| {
        let [h1, h2] = lab.cluster();
        let stays = h2.attach("stays");
        h1.attach("first");
        let before = h1.ns.snapshot();
        let goes = h1.attach_with("goes", &["--ifname", "net7", "--label", "app=web"]);
        let shown = h1.json(&["ps"]);
        assert_eq!(shown["attachments"][1]["labels"]["app"], "web", "{shown}");
        goes.ns.sh("ip link show net7");
        ping(&stays.ns, goes.v4.into(), 56);
        h1.ok(&["detach", "goes"]);
        assert_eq!(goes.ns.sh("ip -o link | grep -v ' lo:' || true"), "");
        assert_eq!(h1.ns.snapshot(), before);
        let again = h1.json(&[
            "attach",
            goes.ns.name(),
            "--name",
            "goes",
            "--ip",
            &goes.v4.to_string(),
        ]);
        assert_eq!(again["ips"][0]["address"], format!("{}/12", goes.v4));
        let same = h1.json(&["attach", goes.ns.name(), "--name", "goes"]);
        assert_eq!(same, again, "asking twice gives the same");
        ping(&stays.ns, goes.v4.into(), 56);
        // A process id names a namespace too.
        let other = h1.bare_container("other");
        let mut sleeper = other
            .command("sleep")
            .arg("60")
            .spawn()
            .expect("sleep starts");
        std::thread::sleep(Duration::from_millis(200));
        h1.ok(&["attach", &sleeper.id().to_string(), "--name", "other"]);
        other.sh("ip link show eth0");
        sleeper
            .kill()
            .and_then(|()| sleeper.wait())
            .expect("sleep ends");
        // A container that ended without a word can still be detached.
        crate::lab::ns::host(&format!("ip netns del {}", other.name()));
        h1.ok(&["detach", "other"]);
        h1.ok(&["detach", "goes"]);
        assert_eq!(h1.ns.snapshot(), before);
    });
}
