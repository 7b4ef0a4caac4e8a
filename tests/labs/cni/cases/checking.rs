//! CHECK and STATUS: what is seen.

use std::time::Duration;

use super::World;
use crate::cni::{Added, Runtime};
use crate::lab::Host;
use crate::lab::ns::Ns;
use crate::lab::traffic::wait_for;

/// CHECK fails once `harm` was done, where the container or the host is `place`.
fn check_after(world: &World<'_>, place: impl FnOnce(&Added) -> (Ns, String), said: &str) {
    let ns = world.container("c");
    let added = world.r1().add("c", &ns);
    let checked = world.r1().check("c", &added);
    assert!(checked.ok && checked.out.is_null(), "{checked:?}");
    let (place, harm) = place(&added);
    // The node may mend it before CHECK has looked; then it is done again.
    let told = (0..3).any(|_| {
        place.sh(&harm);
        let checked = world.r1().check("c", &added);
        if !checked.ok {
            checked.refused(101, said);
        }
        !checked.ok
    });
    assert!(told, "CHECK did not see: {harm}");
    world.r1().del("c", &ns);
}

pub(super) fn check_container(world: &World<'_>) {
    for (harm, said) in [
        (
            "ip addr flush dev eth0 scope global",
            "has no address 10.32",
        ),
        ("ip link del eth0", "has no device eth0"),
        ("ip route del default", "no route to 0.0.0.0/0"),
    ] {
        check_after(world, |added| (added.ns.clone(), harm.to_owned()), said);
    }
}

pub(super) fn check_down(world: &World<'_>) {
    let harm = "ip link set eth0 down".to_owned();
    check_after(world, |added| (added.ns.clone(), harm), "eth0 is down");
}

pub(super) fn check_host(world: &World<'_>) {
    let host = || world.h1.ns.clone();
    check_after(
        world,
        |added| (host(), format!("ip route del {}", added.ips()[0])),
        "the host has no route",
    );
    check_after(
        world,
        |_| (host(), "nft delete table inet weave-attach".to_owned()),
        "rules are gone",
    );
    // The next case needs the rules, which the node makes again at its next round.
    let there = || {
        world
            .h1
            .ns
            .try_sh("nft list table inet weave-attach")
            .status
            .success()
    };
    wait_for("the rules come back", Duration::from_secs(8), there);
}

pub(super) fn check_tolerant(world: &World<'_>) {
    let ns = world.container("c");
    let added = world.r1().add("c", &ns);
    ns.sh("ip route add 192.0.2.0/24 dev eth0; sysctl -qw net.ipv4.conf.eth0.arp_notify=1; ip link set eth0 alias x");
    let checked = world.r1().check("c", &added);
    assert!(checked.ok, "{checked:?}");
    world.r1().del("c", &ns);
}

pub(super) fn check_version(world: &World<'_>) {
    let (ns, runtime) = (world.container("c"), world.r1().with("cniVersion", "0.3.1"));
    let added = runtime.add("c", &ns);
    runtime.check("c", &added).refused(1, "0.3.1");
    runtime.del("c", &ns);
    for verb in ["GC", "STATUS"] {
        world
            .r1()
            .with("cniVersion", "1.0.0")
            .call(verb, &[])
            .refused(1, "1.0.0");
    }
}

pub(super) fn node_down(world: &World<'_>) {
    let ns = world.container("c");
    let added = world.r1().add("c", &ns);
    world.h1.end("KILL");
    world
        .r1()
        .check("c", &added)
        .refused(11, "cannot be reached");
    world
        .r1()
        .on("ADD", "d", &ns)
        .refused(11, "cannot be reached");
    world.r1().gc(&[]).refused(11, "cannot be reached");
    world.h1.start();
    assert!(world.r1().check("c", &added).ok);
    world.r1().del("c", &ns);
}

pub(super) fn status_unavailable(world: &World<'_>) {
    let status = world.r1().call("STATUS", &[]);
    assert!(status.ok && status.out.is_null(), "{status:?}");
    world.h1.end("KILL");
    world
        .r1()
        .call("STATUS", &[])
        .refused(50, "cannot be reached");
    world.h1.start();
    let lonely = Host::add("lonely", &world.dir);
    lonely.start();
    Runtime::new(&lonely)
        .call("STATUS", &[])
        .refused(50, "not a member");
    let ns = world.container("c");
    Runtime::new(&lonely)
        .on("ADD", "c", &ns)
        .refused(11, "not a member");
    lonely.end("TERM");
    crate::lab::await_mesh_of(&[world.h1, world.h2]);
    of_a_network(world);
}

/// STATUS is about the network of the configuration: one that is not there, and one that is full while others are not.
fn of_a_network(world: &World<'_>) {
    let of = |name: &str| world.r1().with("network", name);
    of("absent")
        .call("STATUS", &[])
        .refused(50, "there is no network absent");
    world
        .h1
        .ok(&["network", "create", "small", "--range", "10.47.1.0/26"]);
    let small = of("small");
    let mut added = 0;
    while small.call("STATUS", &[]).ok {
        assert!(added < 64, "it has no more than 64 addresses");
        let id = format!("small{added}");
        small.add(&id, &world.container(&id));
        added += 1;
    }
    small
        .call("STATUS", &[])
        .refused(50, "addresses of small on this node are in use");
    assert!(world.r1().call("STATUS", &[]).ok, "the other one has room");
    for at in 0..added {
        let id = format!("small{at}");
        small.del(&id, &world.container(&id));
    }
    world.h1.ok(&["network", "rm", "small"]);
}
