//! The fuzz targets as a plain test: every seed, every input of the corpora, and changed copies of both.
//!
//! `./run fuzz` looks for new inputs; those worth keeping are committed to `tests/fuzz/corpus`, one folder a target.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "fuzz/targets/mod.rs"]
mod targets;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use targets::{TARGETS, Target};

/// How long a target is given changed copies.
const CHANGED_FOR: Duration = Duration::from_millis(700);

fn corpus(target: &Target) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fuzz/corpus")
        .join(target.name);
    let mut files: Vec<_> = std::fs::read_dir(&folder)
        .unwrap_or_else(|error| {
            panic!(
                "{} has no corpus in {}: {error}",
                target.name,
                folder.display()
            )
        })
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    files
        .iter()
        .map(|file| std::fs::read(file).unwrap())
        .collect()
}

/// Runs one input; says which it was if it fails.
fn run(target: &Target, data: &[u8]) {
    let outcome = catch_unwind(AssertUnwindSafe(|| (target.run)(data)));
    assert!(outcome.is_ok(), "{} fails on {data:?}", target.name);
}

/// A copy with a few bytes changed, a piece cut out, or a piece of another input put in.
fn changed(of: &[u8], other: &[u8], rng: &mut StdRng) -> Vec<u8> {
    let mut copy = of.to_vec();
    for _ in 0..rng.random_range(1..4) {
        let at = rng.random_range(0..=copy.len());
        match rng.random_range(0..6) {
            0 => copy.truncate(at),
            1 => copy.insert(at, rng.random()),
            2 => {
                let end = (at + rng.random_range(0..64)).min(copy.len());
                copy.drain(at..end);
            }
            3 => {
                let start = rng.random_range(0..=other.len());
                let end = (start + rng.random_range(0..64)).min(other.len());
                copy.splice(at..at, other[start..end].iter().copied());
            }
            _ => {
                if let Some(byte) = copy.get_mut(at) {
                    *byte = rng.random();
                }
            }
        }
    }
    copy
}

/// From one seed; only how far it comes depends on the machine.
#[test]
fn every_target_keeps_its_promises() {
    for target in TARGETS {
        let mut rng = StdRng::seed_from_u64(1);
        let seeds = (target.seeds)();
        assert!(!seeds.is_empty());
        let inputs = [seeds, corpus(target), vec![Vec::new()]].concat();
        inputs.iter().for_each(|input| run(target, input));
        let (start, mut count) = (Instant::now(), 0);
        while start.elapsed() < CHANGED_FOR {
            let [one, other] = [0; 2].map(|_| &inputs[rng.random_range(0..inputs.len())]);
            run(target, &changed(one, other, &mut rng));
            count += 1;
        }
        println!("{}: {} kept, {count} changed", target.name, inputs.len());
    }
}

#[test]
fn targets_have_names_and_say_what_they_read() {
    let mut names: Vec<_> = TARGETS.iter().map(|target| target.name).collect();
    assert!(TARGETS.iter().all(|target| !target.about.is_empty()));
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), TARGETS.len());
}
