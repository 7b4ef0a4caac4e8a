//! Killed in the middle: the plugin, and the node, at a hundred points each, all over ADD and DEL. Nothing is left.
//!
//! The points are random. Their seed is shown when a lab fails; `WEAVE_LAB_SEED` gives it again.

use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};

use serde_json::Value;

use super::bandwidth::limits;
use super::crowd::{all_at_once, begin, containers};
use super::{Called, Runtime};
use crate::lab::ns::Ns;
use crate::lab::{Host, Lab};

/// How often each verb is cut short.
const POINTS: usize = 50;

/// Random points of time.
struct Points(u64);

impl Points {
    fn new() -> Self {
        let given = std::env::var("WEAVE_LAB_SEED").ok();
        let seed = given.map_or_else(now, |seed| seed.parse().expect("a seed is a number"));
        println!("WEAVE_LAB_SEED={seed}");
        Self(seed)
    }

    /// A point before this time is over (xorshift, as Marsaglia has it).
    fn within(&mut self, whole: Duration) -> Duration {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        whole.mul_f64((self.0 >> 11) as f64 / (1_u64 << 53) as f64)
    }
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(1, |since| since.as_nanos() as u64 | 1)
}

/// A host with a node, and a runtime there whose containers have limits: as much as an ADD can make.
fn one(lab: &Lab) -> Host {
    let h1 = lab.host("h1", 1);
    h1.start();
    h1.ok(&["init"]);
    h1
}

fn runtime(host: &Host) -> Runtime<'_> {
    Runtime::new(host).with("runtimeConfig", limits())
}

/// How long a verb takes when nobody is killed.
fn whole(runtime: &Runtime<'_>, verb: &str, (id, ns): &(String, Ns)) -> Duration {
    let start = Instant::now();
    let ended = begin(runtime, verb, id, ns).wait_with_output();
    assert!(ended.expect("it ends").status.success(), "{verb} of {id}");
    start.elapsed()
}

#[test]
fn the_plugin() {
    Lab::run(plugin_killed);
}

/// Whatever the plugin had begun when it was killed, the node ends; DEL frees one half of what is left and GC the
/// other, and nothing remains.
pub(super) fn plugin_killed(lab: &Lab) {
    let h1 = one(lab);
    let runtime = runtime(&h1);
    let mut points = Points::new();
    let before = h1.ns.snapshot();
    let all = containers(&h1, POINTS);
    for verb in ["ADD", "DEL"] {
        if verb == "DEL" {
            let added = all_at_once(&runtime, "ADD", &all);
            assert!(added.iter().all(|called| called.ok));
        }
        cut_short(&runtime, verb, &all, &mut points);
        // What was sent and not yet taken by the node is taken now.
        sleep(Duration::from_millis(200));
        for (id, ns) in all.iter().step_by(2) {
            runtime.del(id, ns);
        }
        let known = attached(&runtime);
        let mut freed = all.iter().step_by(2).map(|(id, _)| id);
        assert!(
            !freed.any(|id| known.contains(id)),
            "left by DEL after {verb}: {known:?}"
        );
        assert!(runtime.gc(&[]).ok);
        assert_eq!(runtime.left(), (0, 0, 0), "left by GC after {verb}");
        assert_eq!(h1.ns.snapshot(), before, "after {verb}");
        let left = |ns: &Ns| ns.try_sh("ip link show eth0").status.success();
        assert!(!all.iter().any(|(_, ns)| left(ns)), "after {verb}");
    }
}

/// What the node has, by what the runtime calls it.
fn attached(runtime: &Runtime<'_>) -> Vec<String> {
    let known = runtime.host.json(&["ps"])["attachments"].clone();
    let known = known.as_array().into_iter().flatten();
    let id = |one: &Value| one["owner"]["container"].as_str().map(str::to_owned);
    known.filter_map(id).collect()
}

/// Begins a verb for each container and kills the plugin.
fn cut_short(runtime: &Runtime<'_>, verb: &str, all: &[(String, Ns)], points: &mut Points) {
    let (id, ns) = &all[0];
    if verb == "ADD" {
        runtime.del(id, ns);
    }
    let whole = whole(runtime, verb, &all[0]);
    runtime.del(id, ns);
    let mut unfinished = 0;
    for (id, ns) in all {
        let mut child = begin(runtime, verb, id, ns);
        sleep(points.within(whole));
        child.kill().expect("a child can be killed");
        let ended = child.wait_with_output().expect("it ends");
        unfinished += usize::from(!ended.status.success());
        // The node ends what it has begun, so that the next one meets it idle.
        sleep(2 * whole);
    }
    println!(
        "{unfinished} of {} {verb}s were cut short, over {} ms",
        all.len(),
        whole.as_millis()
    );
    assert!(unfinished > all.len() / 10, "the kills came too late");
}

#[test]
fn the_node() {
    Lab::run(node_killed);
}

/// The node is killed in the middle of an ADD, and again in the middle of a DEL. After each of its starts GC frees what
/// is left.
pub(super) fn node_killed(lab: &Lab) {
    let h1 = one(lab);
    let runtime = runtime(&h1);
    let mut points = Points::new();
    let before = h1.ns.snapshot();
    let all = containers(&h1, 5);
    let (add, del) = (
        whole(&runtime, "ADD", &all[0]),
        whole(&runtime, "DEL", &all[0]),
    );
    let mut unfinished = 0;
    for at in 0..POINTS {
        let one = &all[at % all.len()];
        let called = killed_in(&runtime, "ADD", one, points.within(add));
        unfinished += usize::from(!called.ok);
        assert_nothing_left(&runtime, at, "ADD");

        let added = runtime.on("ADD", &one.0, &one.1);
        assert!(added.ok, "point {at}: {added:?}");
        let called = killed_in(&runtime, "DEL", one, points.within(del));
        assert!(called.ok, "a DEL is done, now or later: {called:?}");
        assert_nothing_left(&runtime, at, "DEL");
    }
    println!("{unfinished} of {POINTS} ADDs were cut short");
    assert!(unfinished > POINTS / 10, "the kills came too late");
    assert_eq!(h1.ns.snapshot(), before);
    let left = |ns: &Ns| ns.try_sh("ip link show eth0").status.success();
    assert!(!all.iter().any(|(_, ns)| left(ns)));
}

/// Begins a verb, kills the node a moment later, and starts it again.
fn killed_in(
    runtime: &Runtime<'_>,
    verb: &str,
    (id, ns): &(String, Ns),
    after: Duration,
) -> Called {
    let child = begin(runtime, verb, id, ns);
    sleep(after);
    runtime.host.kill();
    let called = Called::from(child.wait_with_output().expect("it ends"));
    runtime.host.start();
    called
}

#[track_caller]
fn assert_nothing_left(runtime: &Runtime<'_>, at: usize, verb: &str) {
    let collected = runtime.gc(&[]);
    assert!(collected.ok, "point {at}: {collected:?}");
    assert_eq!(runtime.left(), (0, 0, 0), "point {at} of {verb}");
    let limits = runtime.host.ns.sh("ip -br link show type ifb");
    assert_eq!(limits, "", "point {at} of {verb}");
}
