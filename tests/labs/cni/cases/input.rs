//! What a runtime sends: versions, variables, fields.

use serde_json::{Value, json};

use super::World;
use crate::cni::Called;

pub(super) fn version(world: &World<'_>) {
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
    let called = Called::from(child.wait_with_output().expect("it ends"));
    assert!(
        called.ok && called.out["supportedVersions"] == all,
        "{called:?}"
    );
    let older = world.r1().with("cniVersion", "0.2.0");
    older
        .on("ADD", "c", &world.container("c"))
        .refused(1, "0.2.0");
}

pub(super) fn one_object(world: &World<'_>) {
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

pub(super) fn wrong_input(world: &World<'_>) {
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
        let called = Called::from(child.wait_with_output().expect("it ends"));
        let whose = r.whose;
        Called { whose, ..called }.refused(6, "JSON");
    }
}

pub(super) fn unknown_fields(world: &World<'_>) {
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
        .with("runtimeConfig", json!({"aliases": "x"}))
        .del("c", &ns);
}
