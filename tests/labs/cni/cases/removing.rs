//! DEL and GC: what goes, and what stays.

use std::path::Path;

use serde_json::{Value, json};

use super::World;
use crate::cni::Runtime;
use crate::lab::ns::{self, Ns};
use crate::lab::traffic::ping;

pub(super) fn del_twice(world: &World<'_>) {
    let ns = world.container("c");
    world.r1().add("c", &ns);
    world.r1().del("c", &ns);
    world.r1().del("c", &ns);
}

pub(super) fn del_without_netns(world: &World<'_>) {
    for netns in [None, Some("")] {
        let ns = world.container("c");
        world.r1().add("c", &ns);
        let vars = [("CNI_CONTAINERID", "c"), ("CNI_IFNAME", "eth0")];
        let empty = netns.map(|netns| ("CNI_NETNS", netns));
        let called = world
            .r1()
            .call("DEL", &[&vars[..], empty.as_slice()].concat());
        assert!(called.ok, "{called:?}");
        assert_eq!(world.r1().left(), (0, 0, 0));
    }
}

pub(super) fn del_netns_gone(world: &World<'_>) {
    let ns = world.container("c");
    world.r1().add("c", &ns);
    ns::host(&format!("ip netns del {}", ns.name()));
    assert_eq!(world.r1().left().1, 1, "the address stays until DEL");
    world.r1().del("c", &ns);
}

pub(super) fn del_previous(world: &World<'_>) {
    let ns = world.container("c");
    for with in [true, false] {
        let added = world.r1().add("c", &ns);
        let runtime = if with {
            world.r1().with("prevResult", added.result)
        } else {
            world.r1()
        };
        runtime.del("c", &ns);
        assert_eq!(world.r1().left(), (0, 0, 0));
    }
}

pub(super) fn del_node_down(world: &World<'_>) {
    let [a, b] = ["c", "d"].map(|name| world.container(name));
    world.r1().add("c", &a);
    world.r1().add("d", &b);
    world.h1.end("KILL");
    for _ in 0..2 {
        world.r1().del("c", &a);
    }
    ns::host(&format!("ip netns del {}", b.name()));
    world.r1().del("d", &b);
    world.h1.start();
    assert_eq!(world.r1().left(), (0, 0, 0));
    assert!(!a.try_sh("ip link show eth0").status.success());
    let journal = world.dir.join(weave_model::api::CNI_JOURNAL);
    assert_eq!(std::fs::read_dir(journal).expect("it was made").count(), 0);
}

pub(super) fn add_after_del_node_down(world: &World<'_>) {
    let ns = world.container("c");
    world.r1().add("c", &ns);
    // A DEL that found no node a moment before there was one.
    let journal = world.dir.join(weave_model::api::CNI_JOURNAL);
    let entry = journal.join("h1.sock.c.eth0");
    let text = json!({"container": "c", "ifname": "eth0"}).to_string();
    std::fs::create_dir_all(&journal).expect("the lab's directory is there");
    std::fs::write(&entry, text).expect("the journal is there");
    let added = world.r1().add("c", &ns);
    assert!(
        !entry.exists(),
        "what is left there would free the container that came later"
    );
    assert!(world.r1().check("c", &added).ok);
    world.r1().del("c", &ns);
    let text = json!({"container": "d", "ifname": "eth0"}).to_string();
    entry_that_stays(world, &journal.join("h1.sock.d.eth0"), &text);
}

/// A DEL whose entry cannot be removed, since where something is mounted nothing can: it frees nothing twice.
fn entry_that_stays(world: &World<'_>, entry: &Path, text: &str) {
    let ns = world.container("d");
    std::fs::write(entry, text).expect("the journal is there");
    let shown = entry.display();
    ns::host(&format!("mount --bind {shown} {shown}"));
    let added = world.r1().on("ADD", "d", &ns);
    let collected = world.r1().gc(&["d"]);
    let left = world.r1().left();
    ns::host(&format!("umount {shown}"));
    assert!(added.ok && collected.ok, "{added:?} {collected:?}");
    assert_eq!(left, (1, 1, 1), "it came after that DEL");
    assert!(world.r1().gc(&["d"]).ok && !entry.exists());
    assert_eq!(world.r1().left(), (1, 1, 1));
    // The same path again is another DEL.
    std::fs::write(entry, text).expect("the journal is there");
    assert!(world.r1().gc(&["d"]).ok && !entry.exists());
    assert_eq!(world.r1().left(), (0, 0, 0));
}

pub(super) fn del_never_added(world: &World<'_>) {
    world.r1().del("never", &Ns::named("nowhere"));
}

pub(super) fn del_by_hand(world: &World<'_>) {
    let by_hand = world.attach("byhand");
    world.r1().del("byhand", &by_hand.ns);
    ping(
        &by_hand.ns,
        world.h1.json(&["ps"])["attachments"][0]["gateway"]
            .as_str()
            .and_then(|ip| ip.parse().ok())
            .expect("a gateway"),
        56,
    );
    world.h1.ok(&["detach", "byhand"]);
}

pub(super) fn gc_lists(world: &World<'_>) {
    let (one, two) = (world.r1(), world.r1().with("name", "other"));
    let [a, b, c] = ["a", "b", "c"].map(|name| world.container(name));
    let kept = one.add("a", &a);
    one.add("b", &b);
    let other = two.add("c", &c);
    world.attach("hand");
    let collected = |runtime: &Runtime<'_>, keep: &[&str]| {
        let called = runtime.gc(keep);
        assert!(called.ok && called.out.is_null(), "{called:?}");
        world.r1().left()
    };
    assert_eq!(collected(&one, &["a", "b", "unknown"]), (4, 4, 4));
    assert_eq!(collected(&one, &["a"]), (3, 3, 3));
    assert!(one.check("a", &kept).ok && two.check("c", &other).ok);
    assert_eq!(collected(&one, &[]), (2, 2, 2));
    assert!(two.check("c", &other).ok);
    assert_eq!(collected(&two, &[]), (1, 1, 1));
    world.h1.ok(&["detach", "hand"]);
}

pub(super) fn gc_failure(world: &World<'_>) {
    let [a, b, c] = ["a", "b", "c"].map(|name| world.container(name));
    let added = [("a", &a), ("b", &b), ("c", &c)].map(|(id, ns)| world.r1().add(id, ns));
    // A device that is not ours has taken the name of the first one's: it must not be removed.
    let stolen = added[0].outer();
    world.h1.ns.sh(&format!(
        "ip link del {stolen}; ip link add {stolen} type bridge"
    ));
    world.r1().gc(&[]).refused(100, "a: the device");
    assert_eq!(world.r1().left().2, 1, "the others are freed");
    world.h1.ns.sh(&format!("ip link del {stolen}"));
    for _ in 0..2 {
        assert!(world.r1().gc(&[]).ok);
    }
}

pub(super) fn gc_keys(world: &World<'_>) {
    let [a, b] = ["a", "b"].map(|name| world.container(name));
    for key in ["cni.dev/valid-attachments", "cni.dev/attachments"] {
        world.r1().add("a", &a);
        world.r1().add("b", &b);
        let keep = json!([{"containerID": "a", "ifname": "eth0"}]);
        assert!(world.r1().with(key, keep).call("GC", &[]).ok);
        assert_eq!(world.r1().left(), (1, 1, 1));
        assert!(world.r1().with(key, Value::Null).call("GC", &[]).ok);
        assert_eq!(world.r1().left(), (0, 0, 0));
    }
    world.r1().add("a", &a);
    world.r1().call("GC", &[]).refused(7, "valid-attachments");
    world.r1().del("a", &a);
}
