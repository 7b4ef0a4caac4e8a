//! The plan of the house, checked: who may import whom, where unsafe code lives, how long a file may be, what is pure.
//!
//! Sources are read as tokens (`source`), so comments and strings never count, and what stands under `#[cfg(test)]` is
//! left out. `rules` turns sources into complaints, and `proof` shows that each rule sees what it must.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use rules::{cycles, forbidden_dependencies, impurities, linked};
use source::Source;

#[path = "structure/proof.rs"]
mod proof;
#[path = "structure/rules.rs"]
mod rules;
#[path = "structure/source.rs"]
mod source;

/// Lines a file may have, without its tests. About 400 is already long.
const LONGEST: usize = 600;

/// Crates whose files are pure: no clock, socket, thread, file or random source of their own. `model` has no shell.
const PURE_CRATES: &[&str] = &["model", "router", "proxy"];

/// The files and folders of these crates that are shells around the pure rest.
const SHELLS: &[&str] = &[
    "proxy/src/driver.rs",        // the thread around sources and engine
    "proxy/src/kernel.rs",        // writes rules, and reads and deletes tracked flows
    "proxy/src/relay.rs",         // starts the threads, writes rules
    "proxy/src/relay/connection", // two sockets
    "proxy/src/relay/datagrams",  // a thread's sockets of UDP
    "proxy/src/relay/lane",       // moves bytes between them
    "proxy/src/relay/upstream",   // a socket to an endpoint
    "proxy/src/relay/voices",     // sockets to clients
    "proxy/src/relay/worker",     // a thread
    "router/src/attach",          // puts a container on the network: netlink and namespaces
    "router/src/driver",          // sockets, clocks and the thread that runs the core
    "router/src/hostfw.rs",       // runs the host's iptables
    "router/src/path/egress",     // a data thread
    "router/src/path/group",      // a data thread
    "router/src/path/ingress",    // a data thread
    "router/src/path/lane",       // the loop of a data thread
    "router/src/path/relay",      // the part of a data thread that hands on
    "router/src/path/spread",     // the part of a data thread that sends to members
    "router/src/store",           // the state file
];

fn assert_none(complaints: &[String]) {
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}

#[test]
fn modules_beside_one_another_need_one_another_one_way_only() {
    let of_crate = |(name, sources): (&String, &Vec<Source>)| {
        let library: Vec<&Source> = sources
            .iter()
            .filter(|source| !source.file.contains("src/bin/"))
            .collect();
        cycles(&library)
            .into_iter()
            .map(|cycle| format!("{name}: {cycle}"))
            .collect::<Vec<_>>()
    };
    assert_none(&house().iter().flat_map(of_crate).collect::<Vec<_>>());
}

#[test]
fn the_parts_do_not_know_one_another() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let of_crate = |name: &String| {
        let manifest = fs::read_to_string(root.join(name).join("Cargo.toml")).expect("a manifest");
        forbidden_dependencies(name, &manifest)
    };
    let crates = house();
    assert_none(
        &crates
            .keys()
            .filter(|name| !name.is_empty())
            .flat_map(of_crate)
            .collect::<Vec<_>>(),
    );
}

/// It starts for each container: an async runtime, a web stack or a parser of arguments would be most of it.
#[test]
fn the_cni_plugin_links_next_to_nothing() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let lock = fs::read_to_string(root.join("Cargo.lock")).expect("a lock file");
    let linked = linked("weave-cni", &lock);
    assert!(linked.contains("serde_json"), "{linked:?}");
    // What only its tests need is in the lock file too, and is as small.
    let heavy = [
        "tokio",
        "axum",
        "hyper",
        "clap",
        "reqwest",
        "tracing",
        "aws-lc-rs",
        "kube",
    ];
    let found = heavy.into_iter().filter(|name| linked.contains(name));
    assert_none(
        &found
            .map(|name| format!("weave-cni links {name}"))
            .collect::<Vec<_>>(),
    );
}

#[test]
fn unsafe_code_lives_in_linux_only() {
    let crates = house();
    let outside = crates
        .iter()
        .filter(|(name, _)| *name != "linux")
        .flat_map(|(_, sources)| sources);
    let found = outside.filter(|source| source.names_unsafe);
    assert_none(&found.map(|source| source.file.clone()).collect::<Vec<_>>());
}

#[test]
fn files_are_short_and_say_what_they_are() {
    let crates = house();
    let mut complaints = Vec::new();
    for source in crates.values().flatten() {
        if source.lines > LONGEST {
            complaints.push(format!(
                "{}: {} lines, at most {LONGEST}",
                source.file, source.lines
            ));
        }
        if !source.starts_with_doc {
            complaints.push(format!("{} does not start with its `//!`", source.file));
        }
    }
    assert_none(&complaints);
}

#[test]
fn what_is_pure_has_no_clock_socket_thread_or_random_source() {
    let crates = house();
    let is_shell = |file: &str| SHELLS.iter().any(|shell| file.starts_with(shell));
    let pure = PURE_CRATES.iter().flat_map(|name| &crates[*name]);
    assert_none(
        &pure
            .filter(|source| !is_shell(&source.file))
            .flat_map(impurities)
            .collect::<Vec<_>>(),
    );
    for shell in SHELLS {
        let exists = crates
            .values()
            .flatten()
            .any(|source| source.file.starts_with(shell));
        assert!(
            exists,
            "{shell} is listed as a shell, but no file is called that"
        );
    }
}

/// Every Rust file of the project that is not a test, by the crate's folder; the root crate is `""`.
fn house() -> BTreeMap<String, Vec<Source>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut crates = BTreeMap::new();
    for entry in fs::read_dir(root).expect("the project can be listed") {
        let name = entry
            .expect("the project can be listed")
            .file_name()
            .into_string()
            .expect("plain names");
        if root.join(&name).join("Cargo.toml").exists() {
            crates.insert(name.clone(), sources(root, &format!("{name}/src")));
        }
    }
    crates.insert(String::new(), sources(root, "src"));
    crates
}

fn sources(root: &Path, folder: &str) -> Vec<Source> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(root.join(&folder)).expect("a folder of the project") {
            let name = entry
                .expect("a folder of the project")
                .file_name()
                .into_string()
                .expect("plain names");
            let path = format!("{folder}/{name}");
            if root.join(&path).is_dir() {
                folders.push(path);
            } else if name.ends_with(".rs") {
                let text = fs::read_to_string(root.join(&path)).expect("a source is text");
                found.push(Source::read(&path, &text));
            }
        }
    }
    let tests: Vec<Vec<String>> = found
        .iter()
        .flat_map(|source| {
            source
                .test_modules
                .iter()
                .map(|name| [source.module(), vec![name.clone()]].concat())
        })
        .collect();
    found.retain(|source| !tests.iter().any(|test| source.module().starts_with(test)));
    found.sort_by(|a, b| a.file.cmp(&b.file));
    found
}
