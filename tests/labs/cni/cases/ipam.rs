//! Another plugin chooses addresses: a script that writes down what it is called for.

use serde_json::json;

use super::World;

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
    assert_eq!(ns.snapshot(), before);
    let missing = world
        .r1()
        .with("ipam", json!({"type": "absent"}))
        .on("ADD", "c", &ns);
    missing.refused(7, "no plugin \\\"absent\\\"");
}

pub(super) fn forwarded(world: &World<'_>) {
    let ns = world.container("c");
    let runtime = world.with_ipam("10.32.0.70/24", "");
    let added = runtime.add("c", &ns);
    assert!(
        runtime.check("c", &added).ok && runtime.gc(&["c"]).ok && runtime.call("STATUS", &[]).ok
    );
    runtime.del("c", &ns);
    assert_eq!(world.ipam_log(), "ADD CHECK GC STATUS DEL");
    let failing = world.with_ipam("10.32.0.70/24", "CHECK GC");
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
    world
        .with_ipam("10.32.0.70/24", "STATUS")
        .call("STATUS", &[])
        .refused(77, "no luck");
}

pub(super) fn delegated(world: &World<'_>) {
    let (ns, r) = (world.container("c"), world.with_ipam("10.32.0.77/24", ""));
    let added = r.add("c", &ns);
    assert_eq!(added.ips()[0].to_string(), "10.32.0.77");
    assert!(ns.sh("ip -4 addr show dev eth0").contains("10.32.0.77/12"));
    r.del("c", &ns);
    assert_eq!(world.ipam_log(), "ADD DEL");
}
