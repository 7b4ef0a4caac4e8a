//! How long the kernel engine takes for a recorded stream of events.
//!
//! ```text
//! sync [--range NET] FILE...                      measures, and prints one line of JSON
//! sync record SERVICES ENDPOINTS CHANGES [SEED]   writes a recording that is drawn from the seed, such as: 10000 25 200
//! ```
//!
//! A file is what a watch of Services, of EndpointSlices or of both printed ([`recording`]), a cluster's or a drawn one. All
//! are read to their ends, and parsed, before the clock starts: what is measured is the way from a report to rules. They
//! are reported to the running engine, thread and all, in a network namespace of its own, which ends with it. `--range` is
//! where virtual addresses are from, as a node is told; without it, each is held by itself while rules are gone. What
//! annotations ask for that is not understood is said on standard error, once.
//!
//! `first_s` is from the first report, which has all that the watches began with, to rules in the kernel. `change_*` is one
//! event each, from report to rules; events that change no rules are `idle` and do not count. `deleted_s` and
//! `altered_s` are from what somebody else does (deletes the table, or one element of a set) to rules that are right
//! again. `restart_s` is a new engine that finds them.

use std::fs::File;
use std::io::{BufReader, BufWriter, stdout};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use serde_json::json;
use weave_linux::netns::{Netns, run_in};
use weave_linux::nft::{Batch, Element, Set, Socket, Table, Type, Value};
use weave_proxy::driver::Engine;
use weave_proxy::facts::Facts;
use weave_proxy::rules::TABLE;
use weave_proxy::sources::Change;
use weave_proxy::table::Way;

use crate::draw::Drawn;
use crate::recording::{Error, Recording};

mod draw;
mod recording;

const USAGE: &str = "usage: sync [--range NET] FILE... to measure, or sync record SERVICES ENDPOINTS CHANGES [SEED] > FILE";

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let done = match &words[..] {
        [] => Err(USAGE.into()),
        [word, numbers @ ..] if word == "record" => record(numbers),
        [word, range, files @ ..] if word == "--range" => measured(files, Some(range)),
        files => measured(files, None),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sync: {error}");
            ExitCode::FAILURE
        }
    }
}

fn record(numbers: &[String]) -> Result<(), Error> {
    let numbers: Result<Vec<u32>, _> = numbers.iter().map(|word| word.parse()).collect();
    let (services, endpoints, changes, seed) = match numbers.map_err(|_| USAGE)?[..] {
        [services, endpoints, changes] => (services, endpoints, changes, 1),
        [services, endpoints, changes, seed] => (services, endpoints, changes, seed),
        _ => return Err(USAGE.into()),
    };
    let drawn = Drawn::new(services, endpoints, seed.into());
    Ok(drawn.write(changes, &mut BufWriter::new(stdout().lock()))?)
}

fn measured(files: &[String], range: Option<&String>) -> Result<(), Error> {
    let range = range.map(|range| range.parse()).transpose()?;
    let netns = Netns::create()
        .map_err(|error| format!("{error}\nfix: run it as root, on a kernel with nftables"))?;
    let line = run_in(&netns, || measure(files, range))??;
    println!("{line}");
    Ok(())
}

fn read(files: &[String]) -> Result<Recording, Error> {
    let mut recording = Recording::default();
    for file in files {
        let watch = File::open(file).map_err(|error| format!("{file}: {error}"))?;
        recording
            .read(BufReader::new(watch))
            .map_err(|error| format!("{file}: {error}"))?;
    }
    Ok(recording)
}

/// The node, which is the one that the first endpoint is on.
fn facts(recording: &Recording, range: Option<IpNet>) -> Result<Change, Error> {
    Ok(Change::Facts(Facts {
        node: recording.node().cloned().unwrap_or_default(),
        containers: vec!["10.0.0.0/8".parse()?],
        ranges: range.into_iter().collect(),
        ..Facts::default()
    }))
}

fn measure(files: &[String], range: Option<IpNet>) -> Result<String, Error> {
    let recording = read(files)?;
    let facts = facts(&recording, range)?;
    let Recording {
        mut first,
        later,
        refused,
    } = recording;
    for bad in refused {
        eprintln!("sync: {bad}");
    }
    let (services, endpoints) = size(&first);
    first.push(facts.clone());
    let events = later.len();
    let engine = Engine::start()?;
    let remade = |engine: &Engine| engine.shown().syncs.remade;
    let first = timed(|| remade(&engine), || engine.report(first));
    let changes = changes(&engine, later);
    let [deleted, altered] = meddle(&engine)?;
    drop(engine);
    // Read once more, so that no copy of it counts as memory before.
    let mut end = read(files)?.end();
    end.push(facts);
    let engine = Engine::start()?;
    let restart = timed(|| engine.progress().updated, || engine.report(end));
    assert_eq!(remade(&engine), 0, "a restart finds what it would make");
    let line = json!({
        "services": services,
        "endpoints": endpoints,
        "first_s": rounded(first, 1.0),
        "changes": changes.len(),
        "idle": events - changes.len(),
        "change_p50_ms": quantile(&changes, 500),
        "change_p99_ms": quantile(&changes, 990),
        "deleted_s": rounded(deleted, 1.0),
        "altered_s": rounded(altered, 1.0),
        "restart_s": rounded(restart, 1.0),
        "rss_mib": resident()?,
    });
    Ok(line.to_string())
}

/// How many Services and endpoints are reported.
fn size(reported: &[Change]) -> (usize, usize) {
    let services = reported
        .iter()
        .filter(|change| matches!(change, Change::Service(_)));
    let endpoints = reported.iter().map(|change| match change {
        Change::Slice(slice) => slice.endpoints.len(),
        _ => 0,
    });
    (services.count(), endpoints.sum())
}

/// How long each event took that changed rules, ascending.
fn changes(engine: &Engine, events: Vec<Change>) -> Vec<Duration> {
    let syncs = || engine.shown().syncs;
    let remade = syncs().remade;
    let mut times = Vec::new();
    for event in events {
        let before = syncs().changed;
        let took = timed(|| engine.progress().updated, || engine.report(vec![event]));
        if syncs().changed > before {
            times.push(took);
        }
    }
    assert_eq!(syncs().remade, remade, "changes go in as elements");
    times.sort();
    times
}

/// How long it takes until rules are right again of which somebody else deletes the table, and then one element.
fn meddle(engine: &Engine) -> Result<[Duration; 2], Error> {
    let known = engine.shown().table;
    let mut fronts = known.entries.values().flat_map(|entry| &entry.fronts);
    let (vip, _) = fronts
        .find(|(front, way)| *way == Way::Internal && front.address.is_ipv4())
        .ok_or("there is no Service with an IPv4 address")?;
    let table = Table::inet(TABLE);
    let mut delete = Batch::new();
    delete.delete_table(&table);
    let mut alter = Batch::new();
    let element = Element::new([Value::from(vip.address)]);
    alter.delete_elements(&table, &Set::new("vips4", &[Type::Ipv4]), [element]);
    let somebody = Socket::open()?;
    let mut times = [Duration::ZERO; 2];
    for (batch, took) in [delete, alter].iter().zip(&mut times) {
        let (before, begun) = (engine.shown().syncs.remade, Instant::now());
        somebody.send(batch)?;
        wait(|| engine.shown().syncs.remade != before);
        *took = begun.elapsed();
    }
    Ok(times)
}

/// How often it is looked whether the engine is done.
const TICK: Duration = Duration::from_micros(200);

/// How long it takes after `act` until what is seen of the engine is other than before.
fn timed<T: PartialEq>(now: impl Fn() -> T, act: impl FnOnce()) -> Duration {
    let (before, begun) = (now(), Instant::now());
    act();
    wait(|| now() != before);
    begun.elapsed()
}

fn wait(until: impl Fn() -> bool) {
    while !until() {
        thread::sleep(TICK);
    }
}

/// Milliseconds; none where there is nothing to sort.
fn quantile(ascending: &[Duration], permille: usize) -> Option<f64> {
    let last = ascending.len().checked_sub(1)?;
    Some(rounded(ascending[last * permille / 1000], 1000.0))
}

/// A time in `unit` parts of a second, to three places.
fn rounded(time: Duration, unit: f64) -> f64 {
    (time.as_secs_f64() * unit * 1000.0).round() / 1000.0
}

/// The most memory this process ever had, in MiB.
fn resident() -> std::io::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    Ok(kib.unwrap_or(0) / 1024)
}
