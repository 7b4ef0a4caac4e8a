//! What a configuration or a runtime may ask for.

use std::net::IpAddr;
use std::time::Duration;

use serde_json::{Value, json};

use super::super::bandwidth;
use super::World;
use super::adding::interface;
use crate::lab::traffic::{ping, wait_for};

pub(super) fn wanted_addresses(world: &World<'_>) {
    let ns = world.container("c");
    let wanted: IpAddr = "10.32.0.99".parse().expect("an address");
    let r = world.r1();
    for asking in [
        r.with("runtimeConfig", json!({"ips": ["10.32.0.99/12"]})),
        r.with(
            "args",
            json!({"cni": {"ips": ["10.32.0.99"], "labels": [{"key": "app", "value": "web"}]}}),
        ),
        r.var(
            "CNI_ARGS",
            "IgnoreUnknown=1;IP=10.32.0.99;MORE=x;K8S_POD_NAME=web-0",
        ),
    ] {
        let added = asking.add("c", &ns);
        assert_eq!(added.ips()[0], wanted);
        assert!(ns.sh("ip -4 addr show dev eth0").contains("10.32.0.99/12"));
        asking.del("c", &ns);
    }
}

/// An IPv6 address stands for the IPv4 address at the same place, alone or beside it.
pub(super) fn wanted_by_either_family(world: &World<'_>) {
    let (ns, r) = (world.container("c"), world.r1());
    let v4 = "10.32.0.99".to_owned();
    let asking = |ips: &[&String]| r.with("runtimeConfig", json!({"ips": ips}));
    let first = asking(&[&v4]).add("c", &ns);
    let v6 = first.ips()[1].to_string();
    r.del("c", &ns);
    for ips in [vec![&v6], vec![&v4, &v6]] {
        let added = asking(&ips).add("c", &ns);
        assert_eq!(added.ips(), first.ips(), "{ips:?}");
        r.del("c", &ns);
    }
}

pub(super) fn taken_address(world: &World<'_>) {
    let [a, b] = ["c", "d"].map(|name| world.container(name));
    let taken = world.r1().add("c", &a).ips()[0].to_string();
    let before = b.snapshot();
    let asking = world.r1().with("runtimeConfig", json!({"ips": [taken]}));
    asking.on("ADD", "d", &b).refused(7, &taken);
    assert_eq!((b.snapshot(), world.r1().left()), (before, (1, 1, 1)));
    world.r1().del("c", &a);
}

/// A subnet has its own address, its gateway's and its broadcast address for nobody; a network's own range is one too.
pub(super) fn wanted_ranges(world: &World<'_>) {
    let r = world.r1();
    let within = |set: Value| r.with("runtimeConfig", json!({"ipRanges": [set]}));
    let subnet = json!([{"subnet": "10.32.7.0/29"}]);
    let asking = within(subnet.clone());
    let containers = ["c", "d", "e", "f", "g"].map(|id| (id, world.container(id)));
    for (at, (id, ns)) in containers.iter().enumerate() {
        let added = asking.add(id, ns);
        let wanted = format!("10.32.7.{}", at + 2);
        assert_eq!(added.ips()[0].to_string(), wanted);
        let inside = ns.sh("ip -4 addr show dev eth0; ip -4 route");
        assert!(inside.contains(&format!("{wanted}/12")), "{inside}");
        assert!(inside.contains("default via 10.32.0.1"), "{inside}");
        assert!(asking.check(id, &added).ok);
        assert_eq!(asking.add(id, ns).result, added.result, "asked for again");
    }
    ping(
        &containers[0].1,
        "10.32.7.6".parse().expect("an address"),
        56,
    );
    let more = world.container("h");
    let before = more.snapshot();
    let called = asking.on("ADD", "h", &more);
    called.refused(7, "no free address in the ranges");
    assert_eq!((more.snapshot(), r.left()), (before, (5, 5, 5)));
    let second =
        json!([{"subnet": "10.32.8.0/29", "rangeStart": "10.32.8.3", "rangeEnd": "10.32.8.3"}]);
    let elsewhere = within(second.clone()).on("ADD", "c", &containers[0].1);
    elsewhere.refused(7, "10.32.7.2, which is in none of the ranges");
    for (id, ns) in &containers {
        asking.del(id, ns);
    }
    let both = json!([subnet[0], second[0]]);
    let added = within(both).add("h", &more);
    assert_eq!(added.ips()[0].to_string(), "10.32.8.3", "the others rest");
    assert!(more.sh("ip -4 addr show dev eth0").contains("10.32.8.3/12"));
    r.del("h", &more);
    let whole = within(json!([{"subnet": "10.47.0.0/24", "gateway": "10.47.0.1"}]));
    let whole = whole.with("network", super::SECOND);
    whole.add("h", &more);
    assert!(
        more.sh("ip -4 addr show dev eth0")
            .contains("inet 10.47.0.")
    );
    whole.del("h", &more);
}

pub(super) fn wanted_mac(world: &World<'_>) {
    let ns = world.container("c");
    let r = world.r1();
    for asking in [
        r.with("runtimeConfig", json!({"mac": "02:42:0a:00:00:07"})),
        r.var("CNI_ARGS", "IgnoreUnknown=1;MAC=02:42:0A:00:00:07"),
    ] {
        let added = asking.add("c", &ns);
        assert_eq!(added.inner()["mac"], "02:42:0a:00:00:07");
        assert_eq!(interface(&ns, "eth0")["address"], "02:42:0a:00:00:07");
        ping(&ns, "10.32.0.1".parse().expect("the gateway"), 56);
        assert!(asking.check("c", &added).ok);
        asking.del("c", &ns);
    }
}

pub(super) fn group_mac(world: &World<'_>) {
    let (ns, r) = (world.container("c"), world.r1());
    let group = r.with("runtimeConfig", json!({"mac": "01:00:5e:00:00:01"}));
    group.on("ADD", "c", &ns).refused(7, "runtimeConfig.mac");
}

pub(super) fn configured_names(world: &World<'_>) {
    let (ns, r) = (world.container("c"), world.r1());
    let dns = json!({"nameservers": ["192.0.2.53"], "search": ["example.com"]});
    let configured = r.with("dns", dns.clone());
    assert_eq!(configured.add("c", &ns).result["dns"], dns);
    configured.del("c", &ns);
}

/// A capability as runtimes write it that use go-cni, where Go's names of its fields are the keys.
fn as_go_cni(capability: &str, asked: &Value) -> Value {
    let fields = asked[capability].as_object().expect("an object");
    let spelt = fields.iter().map(|(key, value)| {
        let (first, rest) = key.split_at(1);
        (first.to_uppercase() + rest, value.clone())
    });
    json!({capability: Value::Object(spelt.collect())})
}

pub(super) fn wanted_names(world: &World<'_>) {
    let (ns, r) = (world.container("c"), world.r1());
    let asked = json!({"dns": {"servers": ["192.0.2.53"], "searches": ["example.com"], "options": ["ndots:2"]}});
    let dns =
        json!({"nameservers": ["192.0.2.53"], "search": ["example.com"], "options": ["ndots:2"]});
    for asked in [as_go_cni("dns", &asked), asked] {
        let asked = r.with("runtimeConfig", asked);
        assert_eq!(asked.add("c", &ns).result["dns"], dns);
        asked.del("c", &ns);
    }
}

pub(super) fn refused(world: &World<'_>) {
    let (ns, r) = (world.container("c"), world.r1());
    let asked = |asked: Value, code: u64, said: &str| {
        let asking = r.with("runtimeConfig", asked);
        asking.on("ADD", "c", &ns).refused(code, said);
    };
    asked(json!({"infinibandGUID": "c2:11"}), 2, "infinibandGUID");
    asked(json!({"aliases": ["a b"]}), 7, "runtimeConfig.aliases");
    let one = json!({"subnet": "10.32.7.0/29"});
    for (sets, code, said) in [
        (json!([[one], [one]]), 2, "2 range sets"),
        (
            json!([[{"subnet": "fd00::/64"}]]),
            2,
            "not supported with IPv6",
        ),
        (
            json!([[{"subnet": "10.32.7.1/29"}]]),
            7,
            "the subnet is 10.32.7.0/29",
        ),
        (
            json!([[{"subnet": "192.0.2.0/24"}]]),
            7,
            "not in the network default",
        ),
        (
            json!([[{"subnet": "10.32.7.0/29", "gateway": "10.32.7.1"}]]),
            7,
            "the network default has 10.32.0.1",
        ),
        (
            json!([[{"subnet": "10.47.0.0/24"}]]),
            7,
            "no free address in the ranges",
        ),
    ] {
        asked(json!({"ipRanges": sets}), code, said);
    }
    let apart = json!({"ips": ["10.32.0.99"], "ipRanges": [[one]]});
    asked(apart, 7, "10.32.0.99 is in none of the ranges");
    for (value, said) in [
        (json!({"ingressRate": 1000}), "needs ingressBurst"),
        (json!({"egressRate": -1, "egressBurst": 8}), "egressRate -1"),
    ] {
        let asking = r.with("runtimeConfig", json!({"bandwidth": value}));
        asking.on("ADD", "c", &ns).refused(7, said);
    }
    let unused = r.with(
        "runtimeConfig",
        json!({"portMappings": [], "bandwidth": null, "cgroupPath": "/a"}),
    );
    unused.add("c", &ns);
    unused.del("c", &ns);
}

/// The aliases of the only container, as the node tells them.
fn aliases(world: &World<'_>) -> Value {
    world.h1.json(&["ps"])["attachments"][0]["aliases"].clone()
}

pub(super) fn wanted_aliases(world: &World<'_>) {
    let (ns, r) = (world.container("c"), world.r1());
    let asking = r.with("runtimeConfig", json!({"aliases": ["web", "www", "web"]}));
    asking.add("c", &ns);
    assert_eq!(interface(&ns, "eth0")["operstate"], "UP");
    assert_eq!(aliases(world), json!(["web", "www"]));
    let wide = world.h1.ok(&["ps", "-o", "wide"]);
    assert!(
        wide.contains("ALIASES") && wide.contains("web,www"),
        "{wide}"
    );
    world.h1.end("KILL");
    world.h1.start();
    assert_eq!(aliases(world), json!(["web", "www"]));
    let other = r.with("runtimeConfig", json!({"aliases": ["mail"]}));
    other.on("ADD", "c", &ns).refused(100, "with other aliases");
    asking.del("c", &ns);
    r.add("c", &ns);
    assert_eq!(aliases(world), Value::Null, "they went with the container");
    r.del("c", &ns);
    crate::lab::await_mesh_of(&[world.h1, world.h2]);
}

pub(super) fn aliases_checked(world: &World<'_>) {
    let (ns, r) = (world.container("c"), world.r1());
    let named = |names: &[&str]| r.with("runtimeConfig", json!({"aliases": names}));
    let added = named(&["web"]).add("c", &ns);
    assert!(named(&["web"]).check("c", &added).ok);
    for other in [&["mail"][..], &["mail", "web"], &[]] {
        let checked = named(other).check("c", &added);
        checked.refused(101, "its aliases are [web], not [");
    }
    r.del("c", &ns);
}

pub(super) fn bandwidth(world: &World<'_>) {
    let plain = world.r1();
    let r = plain.with("runtimeConfig", bandwidth::limits());
    let [twin, peer] = ["d", "e"].map(|id| plain.add(id, &world.container(id)));
    let limited = r.add("c", &world.container("c"));
    assert!(r.check("c", &limited).ok);
    bandwidth::assert_limited(&limited, &twin, &peer);
    for (id, added) in [("c", &limited), ("d", &twin), ("e", &peer)] {
        plain.del(id, &added.ns);
    }
}

pub(super) fn bandwidth_in_kernel(world: &World<'_>) {
    let asked = bandwidth::limits();
    let ns = world.container("c");
    for asked in [as_go_cni("bandwidth", &asked), asked] {
        let r = world.r1().with("runtimeConfig", asked);
        let limited = r.add("c", &ns);
        bandwidth::assert_in_kernel(&world.h1.ns, &limited);
        r.del("c", &limited.ns);
    }
    let left = world.h1.ns.sh("tc qdisc show; ip -br link show type ifb");
    assert!(!left.contains("tbf") && !left.contains("wb"), "{left}");
}

pub(super) fn bandwidth_checked(world: &World<'_>) {
    let r = world.r1().with("runtimeConfig", bandwidth::limits());
    let limited = r.add("c", &world.container("c"));
    assert!(r.check("c", &limited).ok);
    for harm in [
        "tc qdisc del dev OUTER root",
        "tc qdisc del dev OUTER clsact",
    ] {
        let seen = || {
            let called = r.check("c", &limited);
            !called.ok && called.out.to_string().contains("not limited to")
        };
        let harmed = || {
            // Whatever the node has mended in between is taken away again.
            world.h1.ns.try_sh(&harm.replace("OUTER", limited.outer()));
            seen()
        };
        wait_for("CHECK sees it", Duration::from_secs(20), harmed);
    }
    r.del("c", &limited.ns);
}

pub(super) fn wanted_mtu(world: &World<'_>) {
    let (ns, r) = (world.container("c"), world.r1().with("mtu", 1400));
    let added = r.add("c", &ns);
    if r.config["cniVersion"] == "1.1.0" {
        assert_eq!(added.inner()["mtu"], 1400);
    }
    assert_eq!(interface(&ns, "eth0")["mtu"], 1400);
    assert_eq!(interface(&world.h1.ns, added.outer())["mtu"], 1400);
    r.del("c", &ns);
}
