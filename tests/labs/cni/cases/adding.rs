//! ADD: what is made, what is told of it, and what is left alone.

use serde_json::{Value, json};

use super::World;
use crate::cni::{Added, Runtime};
use crate::lab::ns::Ns;
use crate::lab::traffic::{datagrams, ping};

pub(super) fn shapes(world: &World<'_>) {
    for version in world.versions() {
        let (ns, runtime) = (
            world.container("c"),
            world.r1().with("cniVersion", *version),
        );
        let added = runtime.add("c", &ns);
        assert_eq!(added.result["cniVersion"], *version);
        let families: Vec<_> = (0..2)
            .map(|at| added.result["ips"][at]["version"].clone())
            .collect();
        let old = *version < "1.0.0";
        assert_eq!(
            families,
            if old {
                [json!("4"), json!("6")]
            } else {
                [Value::Null, Value::Null]
            }
        );
        let mtu = &added.inner()["mtu"];
        assert_eq!(
            *mtu,
            if *version == "1.1.0" {
                json!(1500)
            } else {
                Value::Null
            }
        );
        assert_eq!(
            added.result["routes"][0],
            json!({"dst": "0.0.0.0/0", "gw": "10.32.0.1"})
        );
        runtime.del("c", &ns);
    }
}

/// What `ip` says of an interface.
pub(super) fn interface(ns: &Ns, name: &str) -> Value {
    let said = ns.sh(&format!("ip -j addr show dev {name}"));
    serde_json::from_str::<Value>(&said).expect("ip writes JSON")[0].clone()
}

pub(super) fn kernel_state(world: &World<'_>) {
    let ns = world.container("c");
    let added = world.r1().add("c", &ns);
    let [outer, inner] = [added.outer_end(), added.inner()];
    let device = interface(&ns, "eth0");
    assert!(
        device["flags"]
            .as_array()
            .expect("flags")
            .contains(&json!("UP")),
        "{device}"
    );
    assert_described(&device, inner);
    let has = |ip: &Value| {
        let text = format!(
            "{}/{}",
            ip["local"].as_str().unwrap_or_default(),
            ip["prefixlen"]
        );
        added.result["ips"]
            .as_array()
            .expect("a list")
            .iter()
            .any(|given| given["address"] == text)
    };
    let found = device["addr_info"]
        .as_array()
        .expect("a list")
        .iter()
        .filter(|ip| has(ip))
        .count();
    assert_eq!(found, 2, "{device}");
    let device = interface(&world.h1.ns, added.outer());
    assert_described(&device, outer);
    world.r1().del("c", &ns);
    assert!(
        !ns.try_sh("ip link show eth0").status.success(),
        "the interface went with it"
    );
}

/// Fails unless a result tells of a device what is so; of its MTU from CNI 1.1 on.
#[track_caller]
fn assert_described(device: &Value, told: &Value) {
    assert_eq!(device["address"], told["mac"]);
    if !told["mtu"].is_null() {
        assert_eq!(device["mtu"], told["mtu"]);
    }
}

pub(super) fn sandboxes(world: &World<'_>) {
    let ns = world.container("c");
    // Another name of the same file, as /var/run is.
    let odd = format!("/run/../run/netns/{}", ns.name());
    let vars = [
        ("CNI_CONTAINERID", "c"),
        ("CNI_NETNS", &odd),
        ("CNI_IFNAME", "eth0"),
    ];
    let called = world.r1().call("ADD", &vars);
    assert!(called.ok, "{called:?}");
    let result = called.out;
    let added = Added { ns, result };
    assert_eq!(added.inner()["sandbox"], odd, "{}", added.result);
    let outer = added.outer_end();
    assert!(outer.get("sandbox").is_none(), "{}", added.result);
    world.r1().del("c", &added.ns);
    let plain = world.r1().add("c", &added.ns);
    let path = plain.ns.path().display().to_string();
    assert_eq!(plain.inner()["sandbox"], path);
    world.r1().del("c", &plain.ns);
}

pub(super) fn indexes(world: &World<'_>) {
    let ns = world.container("c");
    let added = world.r1().add("c", &ns);
    for ip in added.result["ips"].as_array().expect("a list") {
        let at = ip["interface"].as_u64().expect("an index") as usize;
        assert_eq!(added.result["interfaces"][at]["name"], "eth0");
    }
    world.r1().del("c", &ns);
}

pub(super) fn interface_taken(world: &World<'_>) {
    let ns = world.container("c");
    ns.sh("ip link add eth0 type veth peer name other; ip addr add 192.0.2.1/24 dev eth0");
    let before = ns.snapshot();
    world
        .r1()
        .on("ADD", "c", &ns)
        .refused(100, "has a device eth0 already");
    assert_eq!(ns.snapshot(), before);
    let ns = world.container("c");
    let added = world.r1().add("c", &ns);
    let before = ns.snapshot();
    world
        .r1()
        .on("ADD", "stranger", &ns)
        .refused(100, "attached");
    assert_eq!(ns.snapshot(), before);
    assert!(world.r1().check("c", &added).ok);
    world.r1().del("c", &ns);
}

pub(super) fn failed_add(world: &World<'_>) {
    let ns = world.container("c");
    let before = ns.snapshot();
    let r = world.r1();
    r.with("network", "blue")
        .on("ADD", "c", &ns)
        .refused(100, "no network blue");
    r.with("mtu", 100)
        .on("ADD", "c", &ns)
        .refused(7, "MTU of 100");
    r.var("CNI_ARGS", "IP=192.0.2.9")
        .on("ADD", "c", &ns)
        .refused(7, "192.0.2.9");
    r.var("CNI_ARGS", "IP=10.32.0.1")
        .on("ADD", "c", &ns)
        .refused(7, "10.32.0.1");
    let split = json!({"ips": ["10.32.0.9", "10.32.0.8"]});
    r.with("runtimeConfig", split)
        .on("ADD", "c", &ns)
        .refused(7, "both");
    r.on("ADD", "c", &Ns::named("nowhere"))
        .refused(4, "CNI_NETNS");
    r.on("ADD", "c", &world.h1.ns)
        .refused(8, "network namespace of the host");
    assert_eq!(ns.snapshot(), before);
}

pub(super) fn add_again(world: &World<'_>) {
    let ns = world.container("c");
    let first = world.r1().add("c", &ns);
    let before = ns.snapshot();
    assert_eq!(world.r1().add("c", &ns).result, first.result);
    // Another name of the same file is the same namespace, and is told as it was asked.
    let odd = format!("/run/../run/netns/{}", ns.name());
    let again = world.r1().var("CNI_NETNS", &odd).on("ADD", "c", &ns);
    assert_eq!(again.out["interfaces"][1]["sandbox"], odd, "{again:?}");
    assert_eq!(ns.snapshot(), before);
    world
        .r1()
        .with("mtu", 1400)
        .on("ADD", "c", &ns)
        .refused(100, "MTU of 1500");
    world.r1().del("c", &ns);
}

pub(super) fn chained(world: &World<'_>) {
    let ns = world.container("c");
    ns.sh("ip link add eth0 type veth peer name other; ip addr add 192.0.2.1/24 dev eth0");
    let before = ns.snapshot();
    let previous = json!({
        "cniVersion": "1.1.0", "interfaces": [{"name": "eth0", "mac": "02:00:00:00:00:01", "sandbox": ns.path()}],
        "ips": [{"address": "192.0.2.1/24", "interface": 0}], "routes": [{"dst": "0.0.0.0/0"}], "dns": {}, "mine": [1, 2],
    });
    let runtime = world.r1().with("prevResult", previous.clone());
    let called = runtime.on("ADD", "c", &ns);
    assert!(called.ok && called.out == previous, "{called:?}");
    assert!(runtime.on("CHECK", "c", &ns).ok);
    runtime.del("c", &ns);
    assert_eq!(ns.snapshot(), before);
}

pub(super) fn two_interfaces(world: &World<'_>) {
    let (ns, first) = (world.container("c"), world.r1());
    let second = first.with("name", "other").with("network", super::SECOND);
    let both = [(&first, "eth0"), (&second, "net1")];
    let there = |ifname| {
        let found = ns.try_sh(&format!("ip link show {ifname}"));
        found.status.success()
    };
    for gone in 0..2 {
        let results = both.map(|(runtime, ifname)| {
            let added = runtime.on_interface("ADD", "c", &ns, ifname);
            assert!(added.ok, "{added:?}");
            let (ns, result) = (ns.clone(), added.out);
            let added = Added { ns, result };
            assert_eq!(added.inner()["name"], ifname);
            added.result
        });
        let (runtime, ifname) = both[gone];
        assert!(runtime.on_interface("DEL", "c", &ns, ifname).ok);
        assert!(!there(ifname), "{ifname} went");
        let (runtime, ifname) = both[1 - gone];
        assert!(there(ifname), "{ifname} stays");
        let checked = runtime
            .with("prevResult", results[1 - gone].clone())
            .on_interface("CHECK", "c", &ns, ifname);
        assert!(checked.ok, "{ifname}: {checked:?}");
        assert!(runtime.on_interface("DEL", "c", &ns, ifname).ok);
    }
}

pub(super) fn two_hosts(world: &World<'_>) {
    let (r1, r2) = (world.r1(), Runtime::new(world.h2));
    let [a, c] = ["a", "c"].map(|name| r1.add(name, &world.container(name)));
    let b = r2.add("b", &world.container("b"));
    for (from, to) in [(&a, &b), (&b, &a), (&a, &c), (&b, &c)] {
        for (mine, theirs) in from.ips().into_iter().zip(to.ips()) {
            ping(&from.ns, theirs, 1400);
            datagrams((&from.ns, mine), (&to.ns, theirs), 512);
        }
    }
    r1.del("a", &a.ns);
    r1.del("c", &c.ns);
    r2.del("b", &b.ns);
    assert_eq!(r2.left(), (0, 0, 0));
}
