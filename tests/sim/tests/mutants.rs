//! The simulator can tell right from wrong: production code in which one rule is broken is caught, each within a budget
//! of seeds.
//!
//! Nothing of this is in the production sources. They are copied, each mutant is written into the copy behind a switch,
//! and the simulator is built once around it; so what is broken here is what runs there. A rule that has moved makes
//! this test fail with its name. The copy has a version of its own: to cargo, which builds it beside what is fetched and
//! built already, its crates are others than the true ones, so no mutant gets into a program that is built here.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

/// What it is called, the file, what stands there, what stands there instead, and how many seeds it may take.
///
/// A record's version would hold without the boot nonce, because the counter follows from the number of saves; so a version
/// that only counts is one without either.
const MUTANTS: [(&str, &str, &str, &str, u32); 7] = [
    (
        "send before fsync",
        "router/src/core/saving.rs",
        "*save <= self.durable",
        "(*save <= self.durable || MUTANT)",
        40,
    ),
    (
        "no version",
        "router/src/mesh/deeds.rs",
        "*version > own.version",
        "(*version > own.version || MUTANT)",
        60,
    ),
    (
        "counter only",
        "router/src/mesh/version.rs",
        "#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecordVersion {",
        "impl PartialOrd for RecordVersion {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for RecordVersion {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        let boots = if MUTANT { std::cmp::Ordering::Equal } else { self.boot.cmp(&other.boot) };
        boots.then(self.counter.cmp(&other.counter))
    }
}
/// Which of two records of a node is newer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct RecordVersion {",
        40,
    ),
    (
        "counter only",
        "router/src/core/gossip.rs",
        ".max(past::counter_at(saves))",
        ".max(if MUTANT { 0 } else { past::counter_at(saves) })",
        40,
    ),
    (
        "immediate takeover",
        "router/src/core/inherit.rs",
        "if missing.is_empty() {",
        "if missing.is_empty() || MUTANT {",
        100,
    ),
    (
        "unsigned record accepted",
        "router/src/mesh/record.rs",
        "if !content.public.verify(&message(cluster, body), signature) {",
        "if !content.public.verify(&message(cluster, body), signature) && !MUTANT {",
        60,
    ),
    (
        "window off by one",
        "router/src/session/replay.rs",
        ".div_ceil(64)",
        ".div_ceil(if MUTANT { 65 } else { 64 })",
        40,
    ),
];

const SWITCH: &str = r#"
/// Whether this mutant is the one that runs.
pub fn mutant(name: &str) -> bool {
    static MUTANT: std::sync::OnceLock<Option<String>> = std::sync::OnceLock::new();
    MUTANT.get_or_init(|| std::env::var("WEAVE_MUTANT").ok()).as_deref() == Some(name)
}
"#;

/// Copies the sources, without what is built or fetched.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let name = entry.file_name();
        let (from, to) = (entry.path(), to.join(&name));
        let built = ["target", "node_modules", "dist", "corpus"].map(std::ffi::OsStr::new);
        if built.contains(&name.as_os_str()) || name.as_encoded_bytes().starts_with(b".") {
            continue;
        }
        if from.is_dir() {
            copy(&from, &to);
        } else if fs::read(&to).ok() != fs::read(&from).ok() {
            fs::copy(&from, &to).unwrap();
        }
    }
}

/// Makes other crates of the copy's: none that cargo could take for the true ones.
fn rename(copy: &Path) {
    let version = concat!("version = \"", env!("CARGO_PKG_VERSION"), "\"");
    let other = concat!("version = \"", env!("CARGO_PKG_VERSION"), "-mutants\"");
    let manifest = copy.join("Cargo.toml");
    let text = fs::read_to_string(&manifest).unwrap();
    assert!(text.contains(version), "the workspace has its version");
    fs::write(&manifest, text.replacen(version, other, 1)).unwrap();
    let lock = copy.join("Cargo.lock");
    let text = fs::read_to_string(&lock).unwrap();
    let packages = text.split("\n\n").map(|package| {
        if package.contains("name = \"weave") && !package.contains("source = ") {
            package.replacen(version, other, 1)
        } else {
            package.to_owned()
        }
    });
    fs::write(&lock, packages.collect::<Vec<_>>().join("\n\n")).unwrap();
}

/// Writes all mutants into the copy.
fn mutate(copy: &Path) {
    for (name, file, right, wrong, _) in MUTANTS {
        let path = copy.join(file);
        let text = fs::read_to_string(&path).unwrap();
        assert!(
            text.contains(right),
            "{name}: {file} has no {right:?} any more"
        );
        let wrong = wrong.replace("MUTANT", &format!("crate::mutant({name:?})"));
        fs::write(&path, text.replacen(right, &wrong, 1)).unwrap();
    }
    let library = copy.join("router/src/lib.rs");
    let text = fs::read_to_string(&library).unwrap();
    fs::write(&library, text + SWITCH).unwrap();
}

fn build() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let here = env::current_exe().unwrap();
    let target = here.ancestors().nth(3).unwrap();
    let sources = target.join("mutants");
    copy(&root, &sources);
    rename(&sources);
    mutate(&sources);
    let built = Command::new(env!("CARGO"))
        .args([
            "build",
            "--quiet",
            "--release",
            "--locked",
            "-p",
            "weave-sim",
        ])
        .current_dir(&sources)
        .env("CARGO_TARGET_DIR", target)
        .status()
        .unwrap();
    assert!(built.success());
    let binary = sources.join("weave-sim-mutants");
    fs::copy(target.join("release/weave-sim"), &binary).unwrap();
    binary
}

#[test]
fn each_broken_rule_is_caught() {
    let binary = build();
    let mut missed = Vec::new();
    let mut mutants = MUTANTS.map(|(name, .., seeds)| (name, seeds)).to_vec();
    mutants.dedup();
    for (name, seeds) in mutants {
        let run = |mutant: &str, seeds: &str| {
            Command::new(&binary)
                .args(["--seed", "1", "--seeds", seeds, "--nodes", "5"])
                .args(["--hours", "0.5", "--shrink", "0"])
                .env("WEAVE_MUTANT", mutant)
                .output()
                .unwrap()
        };
        let output = run(name, &seeds.to_string());
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let break_of = text.lines().find(|line| line.contains(" breaks after "));
        match break_of {
            Some(line) => println!("{name}: {line}"),
            None => missed.push(name),
        }
    }
    assert!(missed.is_empty(), "not caught: {missed:?}");
}
