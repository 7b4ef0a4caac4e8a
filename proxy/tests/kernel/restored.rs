//! Many rules that somebody took away or altered: how soon a running engine has them back, and what others' changes cost.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use weave_linux::netns::{Netns, run_in};
use weave_model::{EngineChoice, Protocol, Service};
use weave_proxy::driver::Engine;
use weave_proxy::kernel::{Done, Kernel};
use weave_proxy::sources::{Change, Sources};
use weave_proxy::table::Diff;

use crate::lab::{A, B, Lab, at, facts, ok, port, slice, slice_of, web};

const SERVICES: u32 = 1000;
const ENDPOINTS: u32 = 25;

/// How long rules may be missing or wrong.
const SOON: Duration = Duration::from_secs(3);

/// Services with their endpoints.
fn many() -> Vec<Change> {
    let of = |number: u32| {
        let name = format!("s{number}");
        let vip = IpAddr::V4(Ipv4Addr::from(0x0a60_0100 + number));
        let first = 0x0a20_0100 + number * ENDPOINTS;
        let endpoint = |n: u32| at(&Ipv4Addr::from(first + n).to_string());
        let ports = [port(Protocol::Tcp, 80, None)];
        let service = Service::new(name.parse().unwrap(), [vip], ports);
        let endpoints = (0..ENDPOINTS).map(endpoint);
        [Change::Service(service), slice_of(&name, endpoints)]
    };
    let facts = std::iter::once(Change::Facts(facts()));
    facts.chain((0..SERVICES).flat_map(of)).collect()
}

/// Waits until the engine has made all anew once more; how long that took.
fn remade(engine: &Engine, before: u64) -> Duration {
    let begun = Instant::now();
    while engine.shown().syncs.remade == before {
        assert!(begun.elapsed() < SOON, "the rules are not back");
        thread::sleep(Duration::from_millis(5));
    }
    begun.elapsed()
}

#[test]
fn many_rules_that_were_taken_away_or_altered_are_back_within_three_seconds() {
    let host = Netns::create().expect("root makes namespaces");
    let engine = run_in(&host, Engine::start).unwrap().unwrap();
    engine.report(many());
    remade(&engine, 0);
    for by_hand in [
        "nft flush ruleset",
        "nft delete table inet weave-service",
        "nft flush map inet weave-service picks4",
        "nft delete element inet weave-service vips4 { 10.96.1.7 }",
        "nft insert rule inet weave-service services drop",
    ] {
        let before = engine.shown().syncs.remade;
        ok(&host, by_hand);
        let took = remade(&engine, before);
        println!("{by_hand}: all is right after {took:.2?}");
    }
    // While reports come all the time nobody waits for a quiet moment.
    let before = engine.shown().syncs.remade;
    let until_remade = || engine.shown().syncs.remade > before;
    ok(&host, "nft insert rule inet weave-service services drop");
    let begun = Instant::now();
    for turn in 0.. {
        engine.report(vec![slice_of("other", [at([A, B][turn % 2])])]);
        if until_remade() {
            break;
        }
        assert!(begun.elapsed() < SOON, "the rules are not right");
        thread::sleep(Duration::from_millis(50));
    }
    // What was made is what a new engine would make.
    drop(engine);
    let mut sources = Sources::default();
    many().into_iter().for_each(|change| sources.handle(change));
    let (table, diff) = sources.build();
    let mut kernel = run_in(&host, Kernel::open).unwrap().unwrap();
    let done = kernel.apply(Arc::clone(&table), &diff, sources.facts());
    assert_eq!(done.unwrap(), Done::Kept);
    assert_eq!(
        kernel
            .apply(table, &Diff::default(), sources.facts())
            .unwrap(),
        Done::Kept
    );
}

/// What others do to their own rule sets costs no look at ours, however much is in it; what could not be heard does, and
/// so does, once in a long while, whatever they do.
#[test]
fn changes_of_others_cost_no_look() {
    let mut lab = Lab::new(EngineChoice::Kernel);
    lab.report([Change::Service(web()), slice([at(A), at(B)])]);
    let later = Duration::from_secs(3600);
    let mut done_after = |script: &str, later| {
        ok(&lab.host, script);
        lab.kernel.look_after(Instant::now() + later).unwrap()
    };
    let none = Duration::ZERO;
    assert_eq!(done_after("true", later), Done::Kept, "nobody did anything");
    let theirs = "nft add table inet other; nft add set inet other s '{ type ipv4_addr; }'";
    assert_eq!(done_after(theirs, none), Done::Kept);
    assert_eq!(
        done_after("true", later),
        Done::Looked,
        "after a long while"
    );
    assert_eq!(
        done_after("true", later),
        Done::Kept,
        "nobody did anything since"
    );
    let loud = "(echo -n 'add element inet other s { 10.0.0.0'; \
                for n in {1..30000}; do echo -n \", 10.0.$((n >> 8)).$((n & 255))\"; done; echo '}') | nft -f -";
    assert_eq!(done_after(loud, none), Done::Looked, "words were lost");
    assert_eq!(done_after("true", none), Done::Kept);
}
