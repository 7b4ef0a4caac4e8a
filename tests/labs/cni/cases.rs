//! The statements of the contract, one case each, on a cluster of two hosts.
//!
//! A case gets fresh namespaces and takes off what it adds; afterwards its host must be as it was before, to the last
//! link, address, route and rule.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};

use super::{Added, Runtime};
use crate::lab::ns::{self, Ns};
use crate::lab::traffic::{datagrams, ping, wait_for};
use crate::lab::{Host, Lab};

/// How many cases there are: none gets lost unnoticed.
const COUNT: usize = 38;

/// What a case works with.
struct World<'a> {
    h1: &'a Host,
    h2: &'a Host,
    dir: PathBuf,
}

type Case = (&'static str, fn(&World<'_>));

const CASES: [Case; COUNT] = [
    (
        "01 VERSION lists every version, whatever is on stdin",
        version,
    ),
    (
        "02 an error is one object on stdout, and a line on stderr",
        one_object,
    ),
    (
        "03 the result has the version that was asked for, and its shape",
        shapes,
    ),
    (
        "04 the interface is up, with the address, MAC and MTU of the result",
        kernel_state,
    ),
    (
        "05 the sandbox is CNI_NETNS to the letter; the host's end has none",
        sandboxes,
    ),
    (
        "06 the addresses belong to the container's interface",
        indexes,
    ),
    (
        "07 an interface that is there already is left alone",
        interface_taken,
    ),
    ("08 an ADD that fails leaves nothing", failed_add),
    (
        "09 an ADD that fails after IPAM gives the address back to IPAM",
        failed_after_ipam,
    ),
    ("10 DEL twice is fine", del_twice),
    (
        "11 DEL without a namespace frees the address",
        del_without_netns,
    ),
    (
        "12 DEL of a namespace that is gone frees the address",
        del_netns_gone,
    ),
    ("13 DEL needs no prevResult", del_previous),
    (
        "14 DEL while the node is down is made up for when it is back",
        del_node_down,
    ),
    (
        "14 an ADD after such a DEL is not undone by it",
        add_after_del_node_down,
    ),
    ("15 DEL of what was never added is fine", del_never_added),
    (
        "16 CHECK sees what was taken from the container",
        check_container,
    ),
    ("16 CHECK sees what was taken from the host", check_host),
    ("17 CHECK does not mind what others added", check_tolerant),
    ("18 CHECK is not in 0.3.1", check_version),
    ("19 CHECK and ADD fail while the node is down", node_down),
    (
        "20 GC frees what is not listed, of its own network only",
        gc_lists,
    ),
    ("21 GC goes on past a failure and reports it", gc_failure),
    ("22 GC takes both keys, and a list that is null", gc_keys),
    ("23 GC, CHECK and STATUS go on to IPAM", forwarded),
    (
        "24 STATUS is 50 without a node and without a cluster",
        status_unavailable,
    ),
    ("25 STATUS of IPAM is ours", status_of_ipam),
    (
        "26 behind another plugin its result goes on unchanged",
        chained,
    ),
    (
        "30 addresses that are asked for, three ways",
        wanted_addresses,
    ),
    (
        "30 an address that is taken is 7 and leaves nothing",
        taken_address,
    ),
    ("31 a MAC that is asked for, two ways", wanted_mac),
    ("32 dns is in the result, aliases are refused", names),
    ("35 each wrong input has its code", wrong_input),
    (
        "36 a field that is not known is named, and does not keep a container",
        unknown_fields,
    ),
    ("an MTU that is asked for", wanted_mtu),
    ("asking again answers the same", add_again),
    ("IPAM of another plugin chooses the address", delegated),
    ("containers of two hosts reach each other", two_hosts),
];

#[test]
fn conformance() {
    Lab::run(|lab| {
        let [h1, h2] = lab.cluster();
        let world = World {
            h1: &h1,
            h2: &h2,
            dir: lab.dir().to_owned(),
        };
        for (title, case) in CASES {
            println!("case {title}");
            let before = h1.ns.snapshot();
            case(&world);
            assert_eq!(Runtime::new(&h1).left(), (0, 0, 0), "left by: {title}");
            assert_same(&before, &h1.ns.snapshot(), title);
        }
        println!("{} cases of conformance passed", CASES.len());
    });
}

/// Says in which lines two snapshots differ.
#[track_caller]
fn assert_same(before: &str, after: &str, title: &str) {
    let lines = |text: &str| text.lines().map(str::to_owned).collect::<BTreeSet<_>>();
    let (before, after) = (lines(before), lines(after));
    let differ: Vec<_> = before.symmetric_difference(&after).collect();
    assert!(
        differ.is_empty(),
        "the host is not as before: {title}: {differ:#?}"
    );
}

impl World<'_> {
    fn r1(&self) -> Runtime<'_> {
        Runtime::new(self.h1)
    }

    /// A namespace on the first host that no other case has.
    fn container(&self, name: &str) -> Ns {
        let ns = Ns::named(name);
        if ns.path().exists() {
            ns::host(&format!("ip netns del {}", ns.name()));
        }
        self.h1.bare_container(name)
    }

    /// Makes a plugin `fake-ipam` that gives `address` and writes down what it is called for. It fails for the verbs in
    /// `fails`. Returns the runtime that uses it.
    fn with_ipam(&self, address: &str, fails: &str) -> Runtime<'_> {
        let (log, plugin) = (self.dir.join("ipam.log"), self.dir.join("fake-ipam"));
        let script = format!(
            "#!/bin/sh\ncat >/dev/null\necho $CNI_COMMAND >>{}\n\
             case ' {fails} ' in *\" $CNI_COMMAND \"*) echo '{{\"code\":77,\"msg\":\"no luck\"}}'; exit 1;; esac\n\
             [ $CNI_COMMAND != ADD ] || echo '{{\"cniVersion\":\"1.1.0\",\"ips\":[{{\"address\":\"{address}\"}}]}}'\n",
            log.display()
        );
        let write =
            |path, text: &str| std::fs::write(path, text).expect("the lab's directory is there");
        write(&log, "");
        write(&plugin, &script);
        ns::host(&format!("chmod 755 {}", plugin.display()));
        let path = self.dir.display().to_string();
        self.r1()
            .with("ipam", json!({"type": "fake-ipam"}))
            .var("CNI_PATH", &path)
    }

    fn ipam_log(&self) -> String {
        let log = std::fs::read_to_string(self.dir.join("ipam.log"));
        log.expect("the plugin was called")
            .replace('\n', " ")
            .trim()
            .to_owned()
    }
}

fn version(world: &World<'_>) {
    let all = json!(["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]);
    for asked in ["0.3.1", "1.1.0"] {
        let called = world
            .r1()
            .with("cniVersion", asked)
            .var("CNI_NETNS", "dummy")
            .call("VERSION", &[]);
        assert!(
            called.ok && called.out["supportedVersions"] == all,
            "{called:?}"
        );
        assert_eq!(called.out["cniVersion"], asked);
    }
    let mut child = world
        .r1()
        .command("VERSION", &[])
        .spawn()
        .expect("the plugin starts");
    drop(child.stdin.take());
    let called = super::Called::from(child.wait_with_output().expect("it ends"));
    assert!(
        called.ok && called.out["supportedVersions"] == all,
        "{called:?}"
    );
}

fn one_object(world: &World<'_>) {
    let ns = world.container("c");
    let called = world.r1().with("mtu", 1).on("ADD", "c", &ns);
    assert!(
        !called.ok && called.err.starts_with("weave-cni: "),
        "{called:?}"
    );
    assert_eq!(called.err.lines().count(), 1, "{called:?}");
    let keys: Vec<_> = called.out.as_object().expect("an object").keys().collect();
    assert_eq!(keys, ["cniVersion", "code", "details", "msg"]);
}

fn shapes(world: &World<'_>) {
    for version in ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let (ns, runtime) = (world.container("c"), world.r1().with("cniVersion", version));
        let added = runtime.add("c", &ns);
        assert_eq!(added.result["cniVersion"], version);
        let families: Vec<_> = (0..2)
            .map(|at| added.result["ips"][at]["version"].clone())
            .collect();
        let old = version < "1.0.0";
        assert_eq!(
            families,
            if old {
                [json!("4"), json!("6")]
            } else {
                [Value::Null, Value::Null]
            }
        );
        let mtu = &added.result["interfaces"][1]["mtu"];
        assert_eq!(
            *mtu,
            if version == "1.1.0" {
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
fn interface(ns: &Ns, name: &str) -> Value {
    let said = ns.sh(&format!("ip -j addr show dev {name}"));
    serde_json::from_str::<Value>(&said).expect("ip writes JSON")[0].clone()
}

fn kernel_state(world: &World<'_>) {
    let ns = world.container("c");
    let added = world.r1().add("c", &ns);
    let [outer, inner] = [0, 1].map(|at| added.result["interfaces"][at].clone());
    let device = interface(&ns, "eth0");
    assert!(
        device["flags"]
            .as_array()
            .expect("flags")
            .contains(&json!("UP")),
        "{device}"
    );
    assert_eq!(
        (&device["address"], &device["mtu"]),
        (&inner["mac"], &inner["mtu"])
    );
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
    assert_eq!(
        (&device["address"], &device["mtu"]),
        (&outer["mac"], &outer["mtu"])
    );
    world.r1().del("c", &ns);
    assert!(
        !ns.try_sh("ip link show eth0").status.success(),
        "the interface went with it"
    );
}

fn sandboxes(world: &World<'_>) {
    let ns = world.container("c");
    // Another name of the same file, as /var/run is.
    let odd = format!("/run/../run/netns/{}", ns.name());
    let vars = [
        ("CNI_CONTAINERID", "c"),
        ("CNI_NETNS", &odd),
        ("CNI_IFNAME", "eth0"),
    ];
    for _ in 0..2 {
        let added = world.r1().call("ADD", &vars);
        assert_eq!(added.out["interfaces"][1]["sandbox"], odd, "{added:?}");
        assert!(
            added.out["interfaces"][0].get("sandbox").is_none(),
            "{added:?}"
        );
    }
    let plain = world.r1().add("c", &ns);
    assert_eq!(
        plain.result["interfaces"][1]["sandbox"],
        ns.path().display().to_string()
    );
    world.r1().del("c", &ns);
}

fn indexes(world: &World<'_>) {
    let ns = world.container("c");
    let added = world.r1().add("c", &ns);
    for ip in added.result["ips"].as_array().expect("a list") {
        let at = ip["interface"].as_u64().expect("an index") as usize;
        assert_eq!(added.result["interfaces"][at]["name"], "eth0");
    }
    world.r1().del("c", &ns);
}

fn interface_taken(world: &World<'_>) {
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

fn failed_add(world: &World<'_>) {
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

fn failed_after_ipam(world: &World<'_>) {
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

fn del_twice(world: &World<'_>) {
    let ns = world.container("c");
    world.r1().add("c", &ns);
    world.r1().del("c", &ns);
    world.r1().del("c", &ns);
}

fn del_without_netns(world: &World<'_>) {
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

fn del_netns_gone(world: &World<'_>) {
    let ns = world.container("c");
    world.r1().add("c", &ns);
    ns::host(&format!("ip netns del {}", ns.name()));
    assert_eq!(world.r1().left().1, 1, "the address stays until DEL");
    world.r1().del("c", &ns);
}

fn del_previous(world: &World<'_>) {
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

fn del_node_down(world: &World<'_>) {
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

fn add_after_del_node_down(world: &World<'_>) {
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
}

fn del_never_added(world: &World<'_>) {
    world.r1().del("never", &Ns::named("nowhere"));
    let by_hand = world.h1.attach("byhand");
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

/// CHECK fails once `harm` was done, where the container or the host is `place`.
fn check_after(world: &World<'_>, place: impl Fn(&Added) -> (Ns, String), said: &str) {
    let ns = world.container("c");
    let added = world.r1().add("c", &ns);
    let checked = world.r1().check("c", &added);
    assert!(checked.ok && checked.out.is_null(), "{checked:?}");
    let (place, harm) = place(&added);
    place.sh(&harm);
    world.r1().check("c", &added).refused(101, said);
    world.r1().del("c", &ns);
}

fn check_container(world: &World<'_>) {
    for (harm, said) in [
        (
            "ip addr flush dev eth0 scope global",
            "has no address 10.32",
        ),
        ("ip link del eth0", "has no device eth0"),
        ("ip route del default", "no route to 0.0.0.0/0"),
        ("ip link set eth0 down", "eth0 is down"),
    ] {
        check_after(world, |added| (added.ns.clone(), harm.to_owned()), said);
    }
}

fn check_host(world: &World<'_>) {
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

fn check_tolerant(world: &World<'_>) {
    let ns = world.container("c");
    let added = world.r1().add("c", &ns);
    ns.sh("ip route add 192.0.2.0/24 dev eth0; sysctl -qw net.ipv4.conf.eth0.arp_notify=1; ip link set eth0 alias x");
    let checked = world.r1().check("c", &added);
    assert!(checked.ok, "{checked:?}");
    world.r1().del("c", &ns);
}

fn check_version(world: &World<'_>) {
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

fn node_down(world: &World<'_>) {
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

fn gc_lists(world: &World<'_>) {
    let (one, two) = (world.r1(), world.r1().with("name", "other"));
    let [a, b, c] = ["a", "b", "c"].map(|name| world.container(name));
    let kept = one.add("a", &a);
    one.add("b", &b);
    let other = two.add("c", &c);
    let by_hand = world.h1.attach("hand");
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
    drop(by_hand);
}

fn gc_failure(world: &World<'_>) {
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

fn gc_keys(world: &World<'_>) {
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

fn forwarded(world: &World<'_>) {
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

fn status_unavailable(world: &World<'_>) {
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
}

fn status_of_ipam(world: &World<'_>) {
    world
        .with_ipam("10.32.0.70/24", "STATUS")
        .call("STATUS", &[])
        .refused(77, "no luck");
}

fn chained(world: &World<'_>) {
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

fn wanted_addresses(world: &World<'_>) {
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
        let v6 = added.ips()[1].to_string();
        asking.del("c", &ns);
        // The other family's address by its own, and both together.
        for ips in [vec![v6.clone()], vec!["10.32.0.99".to_owned(), v6.clone()]] {
            let both = r.with("runtimeConfig", json!({"ips": ips}));
            assert_eq!(both.add("c", &ns).ips()[0], wanted);
            both.del("c", &ns);
        }
    }
}

fn taken_address(world: &World<'_>) {
    let [a, b] = ["c", "d"].map(|name| world.container(name));
    let taken = world.r1().add("c", &a).ips()[0].to_string();
    let before = b.snapshot();
    let asking = world.r1().with("runtimeConfig", json!({"ips": [taken]}));
    asking.on("ADD", "d", &b).refused(7, &taken);
    assert_eq!((b.snapshot(), world.r1().left()), (before, (1, 1, 1)));
    world.r1().del("c", &a);
}

fn wanted_mac(world: &World<'_>) {
    let ns = world.container("c");
    let r = world.r1();
    for asking in [
        r.with("runtimeConfig", json!({"mac": "02:42:0a:00:00:07"})),
        r.var("CNI_ARGS", "MAC=02:42:0A:00:00:07"),
    ] {
        let added = asking.add("c", &ns);
        assert_eq!(added.result["interfaces"][1]["mac"], "02:42:0a:00:00:07");
        assert_eq!(interface(&ns, "eth0")["address"], "02:42:0a:00:00:07");
        ping(&ns, "10.32.0.1".parse().expect("the gateway"), 56);
        assert!(asking.check("c", &added).ok);
        asking.del("c", &ns);
    }
    let group = r.with("runtimeConfig", json!({"mac": "01:00:5e:00:00:01"}));
    group.on("ADD", "c", &ns).refused(7, "runtimeConfig.mac");
}

fn names(world: &World<'_>) {
    let (ns, r) = (world.container("c"), world.r1());
    let dns = json!({"nameservers": ["192.0.2.53"], "search": ["example.com"]});
    let configured = r.with("dns", dns.clone());
    assert_eq!(configured.add("c", &ns).result["dns"], dns);
    configured.del("c", &ns);
    let asked = json!({"dns": {"servers": ["192.0.2.53"], "searches": ["example.com"], "options": ["ndots:2"]}});
    let asked = r.with("runtimeConfig", asked);
    let dns =
        json!({"nameservers": ["192.0.2.53"], "search": ["example.com"], "options": ["ndots:2"]});
    assert_eq!(asked.add("c", &ns).result["dns"], dns);
    asked.del("c", &ns);
    for (key, value) in [
        ("aliases", json!(["web"])),
        (
            "portMappings",
            json!([{"hostPort": 80, "containerPort": 80, "protocol": "tcp"}]),
        ),
        ("bandwidth", json!({"ingressRate": 1000})),
        ("ipRanges", json!([[{"subnet": "10.32.0.0/24"}]])),
    ] {
        let asking = r.with("runtimeConfig", json!({key: value}));
        asking
            .on("ADD", "c", &ns)
            .refused(2, &format!("runtimeConfig.{key}"));
    }
    let unused = r.with(
        "runtimeConfig",
        json!({"portMappings": [], "bandwidth": null, "cgroupPath": "/a"}),
    );
    unused.add("c", &ns);
    unused.del("c", &ns);
}

fn wrong_input(world: &World<'_>) {
    let (ns, r) = (world.container("c"), world.r1());
    let path = ns.path().display().to_string();
    let all = [
        ("CNI_CONTAINERID", "c"),
        ("CNI_NETNS", path.as_str()),
        ("CNI_IFNAME", "eth0"),
    ];
    for missing in 0..all.len() {
        let vars: Vec<_> = all
            .iter()
            .enumerate()
            .filter(|(at, _)| *at != missing)
            .map(|(_, var)| *var)
            .collect();
        r.call("ADD", &vars).refused(4, all[missing].0);
    }
    for (name, bad) in [
        ("CNI_CONTAINERID", "../c"),
        ("CNI_IFNAME", "sixteen-letters-"),
        ("CNI_IFNAME", "a/b"),
        ("CNI_NETNS", "relative"),
        ("CNI_ARGS", "nothing"),
        ("CNI_ARGS", "IP=x"),
        ("CNI_ARGS", "WHO=me"),
    ] {
        r.var(name, bad).on("ADD", "c", &ns).refused(4, name);
    }
    r.call("add", &[]).refused(4, "CNI_COMMAND");
    r.with("name", "a/b").on("ADD", "c", &ns).refused(7, "name");
    r.with("name", Value::Null)
        .on("ADD", "c", &ns)
        .refused(7, "name");
    r.with("cniVersion", "0.2.0")
        .on("ADD", "c", &ns)
        .refused(1, "0.2.0");
    r.with("cniVersion", "9.9.9")
        .on("DEL", "c", &ns)
        .refused(1, "9.9.9");
    r.with("mtu", "big").on("ADD", "c", &ns).refused(7, "mtu");
    r.with("prevResult", Value::Null)
        .on("CHECK", "c", &ns)
        .refused(7, "prevResult");
    for text in ["", "{", "[]", "\"x\""] {
        let mut bad = r.with("name", "weave");
        bad.config = json!(null);
        let mut child = bad.command("ADD", &all).spawn().expect("the plugin starts");
        let mut stdin = child.stdin.take().expect("stdin is piped");
        std::io::Write::write_all(&mut stdin, text.as_bytes()).expect("it reads");
        drop(stdin);
        super::Called::from(child.wait_with_output().expect("it ends")).refused(6, "JSON");
    }
}

fn unknown_fields(world: &World<'_>) {
    let (ns, r) = (world.container("c"), world.r1());
    let typed = r.with("mut", 1400);
    typed
        .on("ADD", "c", &ns)
        .refused(2, "mut is not supported: 1400");
    r.with("disableCheck", true)
        .with("disableGC", true)
        .with("cni.dev/more", 1)
        .add("c", &ns);
    typed
        .with("mtu", "big")
        .with("runtimeConfig", json!({"aliases": ["x"]}))
        .del("c", &ns);
}

fn wanted_mtu(world: &World<'_>) {
    let (ns, r) = (world.container("c"), world.r1().with("mtu", 1400));
    let added = r.add("c", &ns);
    assert_eq!(added.result["interfaces"][1]["mtu"], 1400);
    assert_eq!(interface(&ns, "eth0")["mtu"], 1400);
    assert_eq!(interface(&world.h1.ns, added.outer())["mtu"], 1400);
    r.del("c", &ns);
}

fn add_again(world: &World<'_>) {
    let ns = world.container("c");
    let first = world.r1().add("c", &ns);
    let before = ns.snapshot();
    assert_eq!(world.r1().add("c", &ns).result, first.result);
    assert_eq!(ns.snapshot(), before);
    world
        .r1()
        .with("mtu", 1400)
        .on("ADD", "c", &ns)
        .refused(100, "MTU of 1500");
    world.r1().del("c", &ns);
}

fn delegated(world: &World<'_>) {
    let (ns, r) = (world.container("c"), world.with_ipam("10.32.0.77/24", ""));
    let added = r.add("c", &ns);
    assert_eq!(added.ips()[0].to_string(), "10.32.0.77");
    assert!(ns.sh("ip -4 addr show dev eth0").contains("10.32.0.77/12"));
    r.del("c", &ns);
    assert_eq!(world.ipam_log(), "ADD DEL");
}

fn two_hosts(world: &World<'_>) {
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
