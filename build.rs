//! Tells the binary which compiler made it.

use std::env;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let rustc = env::var("RUSTC").expect("cargo sets it");
    let said = Command::new(rustc).arg("--version").output();
    let said = said.expect("the compiler that cargo uses runs");
    let said = String::from_utf8_lossy(&said.stdout);
    // Such as: rustc 1.89.0 (29483883e 2025-08-04).
    let version = said.split(' ').nth(1).unwrap_or("unknown").trim();
    println!("cargo::rustc-env=WEAVE_RUSTC={version}");
}
