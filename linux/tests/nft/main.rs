//! nftables rule sets: what our writer makes is what `nft` makes of the same in words ([`golden`]), batches hold whole or
//! not at all, packets do what the rules say ([`live`]), and what others change is heard ([`watching`]).
//!
//! Needs root, `ip` and `nft`; every test works in a network namespace of its own, which ends with it.

#![allow(clippy::unwrap_used, reason = "a test may panic")]
#![allow(
    clippy::too_many_lines,
    reason = "a rule set is easiest to read in one piece"
)]

mod golden;
mod live;
mod watching;

use std::io::Write;
use std::process::{Command, Stdio};

use ipnet::IpNet;
use serde_json::Value as Json;
use weave_linux::netns::{Netns, run_in};
use weave_linux::nft::Value;

/// Runs a body in a new network namespace.
fn in_netns<T: Send>(body: impl FnOnce() -> T + Send) -> T {
    let netns = Netns::create().expect("root makes namespaces");
    run_in(&netns, body).unwrap()
}

/// Runs a program to its end and gives its output.
fn run(program: &str, args: &[&str], input: &str) -> String {
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{program} is needed: {error}"));
    child
        .stdin
        .take()
        .unwrap()
        .write_all(input.as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

/// The rule sets of this namespace as `nft` reads them, without handles and with elements sorted.
fn listing() -> Vec<Json> {
    let text = run("nft", &["-j", "list", "ruleset"], "");
    let Json::Object(mut all) = serde_json::from_str(&text).unwrap() else {
        panic!("{text}")
    };
    let Json::Array(mut objects) = all.remove("nftables").unwrap() else {
        panic!("{text}")
    };
    objects.retain(|object| object.get("metainfo").is_none());
    objects.iter_mut().for_each(normalise);
    objects
}

fn normalise(json: &mut Json) {
    match json {
        Json::Object(fields) => {
            fields.remove("handle");
            for (name, value) in fields.iter_mut() {
                normalise(value);
                if let ("elem", Json::Array(elements)) = (name.as_str(), value) {
                    elements.sort_by_key(ToString::to_string);
                }
            }
        }
        Json::Array(items) => items.iter_mut().for_each(normalise),
        _ => {}
    }
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn v4(text: &str) -> Value {
    Value::V4(text.parse().unwrap())
}

fn v6(text: &str) -> Value {
    Value::V6(text.parse().unwrap())
}
