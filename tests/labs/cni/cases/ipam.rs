//! Another plugin chooses addresses: a script that writes down what it is called for.

use std::time::Duration;

use serde_json::json;

use super::World;
use crate::lab::await_mesh_of;
use crate::lab::ns::Ns;
use crate::lab::traffic::wait_for;

pub(super) fn failed_after_ipam(world: &World<'_>) {
    let ns = world.container("c");
    let before = ns.snapshot();
    world
        .with_ipam("192.0.2.5/24", "")
        .on("ADD", "c", &ns)
        .refused(7, "192.0.2.5");
    assert_eq!(world.ipam_log(), "ADD DEL");
    world
        .with_ipam("10.32.0.5/24", "ADD")
        .on("ADD", "c", &ns)
        .refused(77, "no luck");
    assert_eq!(
        world.ipam_log(),
        "ADD DEL",
        "it may have given an address all the same"
    );
    assert_eq!(ns.snapshot(), before);
    let missing = world
        .r1()
        .with("ipam", json!({"type": "absent"}))
        .on("ADD", "c", &ns);
    missing.refused(7, "no plugin \\\"absent\\\"");
    unheard_after_ipam(world, &ns);
}

/// The node is not there, or says nothing: whatever it does yet is undone, since the address may go to somebody else.
fn unheard_after_ipam(world: &World<'_>, ns: &Ns) {
    world.h1.end("KILL");
    let called = world.with_ipam("10.32.0.71/24", "").on("ADD", "c", ns);
    called.refused(11, "cannot be reached");
    assert_eq!(world.ipam_log(), "ADD DEL");
    let journal = world.dir.join(weave_model::api::CNI_JOURNAL);
    let waiting = || std::fs::read_dir(&journal).map_or(0, Iterator::count);
    assert_eq!(waiting(), 1, "it is to be freed when the node is back");
    world.h1.start();
    wait_for("it is", Duration::from_secs(20), || waiting() == 0);
    await_mesh_of(&[world.h1, world.h2]);
}

pub(super) fn failed_del(world: &World<'_>) {
    let ns = world.container("c");
    let runtime = world.with_ipam("10.32.0.72/12", "");
    let added = runtime.add("c", &ns);
    let stolen = added.outer();
    // A device that is not ours has taken its name: it must not be removed, and the node refuses.
    world.h1.ns.sh(&format!(
        "ip link del {stolen}; ip link add {stolen} type bridge"
    ));
    runtime.on("DEL", "c", &ns).refused(11, "the device");
    assert_eq!(
        world.ipam_log(),
        "ADD DEL",
        "the address goes back all the same"
    );
    world.h1.ns.sh(&format!("ip link del {stolen}"));
    runtime.del("c", &ns);
}

pub(super) fn forwarded(world: &World<'_>) {
    let ns = world.container("c");
    let runtime = world.with_ipam("10.32.0.70/12", "");
    let added = runtime.add("c", &ns);
    assert!(
        runtime.check("c", &added).ok && runtime.gc(&["c"]).ok && runtime.call("STATUS", &[]).ok
    );
    runtime.del("c", &ns);
    assert_eq!(world.ipam_log(), "ADD CHECK GC STATUS DEL");
    let failing = world.with_ipam("10.32.0.70/12", "CHECK GC");
    let added = failing.add("c", &ns);
    failing.check("c", &added).refused(77, "no luck");
    failing.gc(&[]).refused(77, "no luck");
    assert_eq!(
        world.r1().left(),
        (0, 0, 0),
        "what is ours is freed all the same"
    );
}

pub(super) fn status_of_ipam(world: &World<'_>) {
    let well = world.with_ipam("10.32.0.70/12", "");
    assert!(well.call("STATUS", &[]).ok);
    world
        .with_ipam("10.32.0.70/12", "STATUS")
        .call("STATUS", &[])
        .refused(77, "no luck");
}

pub(super) fn delegated(world: &World<'_>) {
    let (ns, r) = (world.container("c"), world.with_ipam("10.32.0.77/12", ""));
    let added = r.add("c", &ns);
    assert_eq!(added.ips()[0].to_string(), "10.32.0.77");
    assert!(ns.sh("ip -4 addr show dev eth0").contains("10.32.0.77/12"));
    r.del("c", &ns);
    assert_eq!(world.ipam_log(), "ADD DEL");
}

pub(super) fn delegated_prefix(world: &World<'_>) {
    let (ns, r) = (world.container("c"), world.with_ipam("10.32.0.77/24", ""));
    assert_eq!(r.add("c", &ns).ips()[0].to_string(), "10.32.0.77");
    assert!(ns.sh("ip -4 addr show dev eth0").contains("10.32.0.77/12"));
    r.del("c", &ns);
}
