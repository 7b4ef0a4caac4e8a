//! Runs one target under libFuzzer: the one that `WEAVE_FUZZ_TARGET` names. Without it, lists them.
//!
//! `WEAVE_FUZZ_SEEDS` names a folder that the target's seeds are written to first. All other arguments are libFuzzer's.

#![no_main]

#[path = "../targets/mod.rs"]
mod targets;

use std::path::Path;
use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use targets::{TARGETS, Target};

static TARGET: OnceLock<&Target> = OnceLock::new();

fuzz_target!(
    init: choose(),
    |data: &[u8]| {
        if let Some(target) = TARGET.get() {
            (target.run)(data);
        }
    }
);

fn choose() {
    let wanted = std::env::var("WEAVE_FUZZ_TARGET").unwrap_or_default();
    let Some(target) = TARGETS.iter().find(|target| target.name == wanted) else {
        for target in TARGETS {
            println!("{:<10} {}", target.name, target.about);
        }
        std::process::exit(i32::from(!wanted.is_empty()));
    };
    if let Some(folder) = std::env::var_os("WEAVE_FUZZ_SEEDS") {
        for (number, seed) in (target.seeds)().iter().enumerate() {
            let file = Path::new(&folder).join(format!("seed-{number}"));
            std::fs::write(&file, seed).expect("the folder for seeds can be written to");
        }
    }
    TARGET.get_or_init(|| target);
}
