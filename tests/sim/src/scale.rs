//! What a cluster costs by its size, in virtual time: how fast it comes together, how fast a change is everywhere, what a
//! quiet node sends, and how much it remembers.
//!
//! All nodes join at once with one token, each with a sheet, and know nobody but the first. Times are virtual and follow
//! from the seed; links take 1 to 3 ms and lose nothing unless told. What is measured of the machine, memory and CPU, is of
//! the whole process divided by the nodes: the cores and the simulator around them.

use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

use weave_model::NodeId;
use weave_router::core::command::Command;
use weave_router::mesh::record::RecordVersion;

use crate::net::Net;

/// Bytes of IP and UDP headers around each datagram.
const HEADERS: u64 = 28;
/// How often is looked whether something is everywhere.
const LOOK: Duration = Duration::from_millis(10);
/// How long after all have met there is more to do than in a quiet cluster.
const SETTLED: Duration = Duration::from_secs(10);
/// How long a quiet cluster is watched.
const QUIET: Duration = Duration::from_secs(60);
/// How many changes are followed.
const CHANGES: usize = 20;

/// What was found.
#[derive(Clone, Copy, Debug)]
pub struct Figures {
    /// How many nodes.
    pub nodes: usize,
    /// From the first join until everybody has everybody's newest record and a session with each neighbour, in seconds.
    pub cold_start: f64,
    /// What that cost in CPU, the ten seconds after it included, in milliseconds a node.
    pub cold_cpu: f64,
    /// Until a change of one node is at half of the others, and at 99 of 100, in milliseconds.
    pub change: (f64, f64),
    /// What a quiet node sends, headers included, in bytes a second.
    pub idle_bytes: f64,
    /// What that costs in CPU, in microseconds a second and node.
    pub idle_cpu: f64,
    /// How many sessions a quiet node has.
    pub sessions: f64,
    /// What a node has of records and sheets, in bytes as they are sent and saved.
    pub table: f64,
    /// Memory, in bytes a node.
    pub memory: f64,
}

/// CPU that this process has used.
fn cpu() -> Duration {
    let text = fs::read_to_string("/proc/self/schedstat").unwrap_or_default();
    let first = text.split_whitespace().next();
    Duration::from_nanos(first.and_then(|nanos| nanos.parse().ok()).unwrap_or(0))
}

/// Memory that this process has, in bytes.
fn memory() -> f64 {
    let text = fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = text.split_whitespace().nth(1);
    4096.0
        * pages
            .and_then(|pages| pages.parse::<f64>().ok())
            .unwrap_or(0.0)
}

fn tell(net: &Net, what: &str) {
    eprintln!(
        "{} nodes {what}: {:.2} s there, {:.0} s of CPU, {:.1} GB, {} datagrams",
        net.nodes.len(),
        net.age().as_secs_f64(),
        cpu().as_secs_f64(),
        memory() / 1e9,
        net.sent.0
    );
}

fn ids(net: &Net) -> Vec<NodeId> {
    net.nodes.iter().map(|node| node.core().id()).collect()
}

/// Whether everybody has everybody's newest record.
fn knows(net: &Net, ids: &[NodeId]) -> bool {
    let own = |at: usize| net.nodes[at].core().known_version(ids[at]);
    let newest: Vec<Option<RecordVersion>> = (0..ids.len()).map(own).collect();
    let all = newest.iter().all(Option::is_some);
    all && net.nodes.iter().all(|node| {
        let known = ids.iter().map(|id| node.core().known_version(*id));
        known.eq(newest.iter().copied())
    })
}

/// A cluster of that size, come together, and how long that took.
///
/// # Panics
/// If it takes more than five minutes.
pub fn cold_start(seed: u64, nodes: usize, loss: u32) -> (Net, Duration) {
    let mut net = Net::new(seed, nodes);
    (net.watched, net.frugal, net.loss) = (false, true, loss);
    net.init(0, "10.32.0.0/12");
    let token = net.token(0, nodes as u32);
    let begun = net.now.mono;
    for n in 0..nodes {
        net.command(
            n,
            Command::SetSheet {
                content: vec![n as u8; 100],
            },
        );
        if n > 0 {
            let (token, taken) = (token.clone(), Vec::new());
            net.command(n, Command::Join { token, taken });
        }
    }
    let ids = ids(&net);
    let together =
        |net: &Net| knows(net, &ids) && net.nodes.iter().all(|node| node.core().sessions_up().1);
    while !together(&net) {
        let age = net.now.mono.saturating_duration_since(begun);
        assert!(age < Duration::from_secs(300), "they do not come together");
        net.run(Duration::from_millis(250));
    }
    let took = net.now.mono.saturating_duration_since(begun);
    (net, took)
}

/// Until a change of one node is at the others, ascending.
///
/// # Panics
/// If it takes a minute.
pub fn change(net: &mut Net, n: usize) -> Vec<Duration> {
    let ids = ids(net);
    let before = net.nodes[n].core().known_version(ids[n]);
    let begun = net.now.mono;
    let other = SocketAddr::from((
        [203, 0, 113, 1],
        1024 + (net.age().as_millis() % 60_000) as u16,
    ));
    let endpoints = vec![net.nodes[n].local, other];
    net.command(n, Command::SetEndpoints { endpoints });
    let version = net.nodes[n].core().known_version(ids[n]);
    assert!(version > before, "the record has changed");
    let mut took = Vec::new();
    while took.len() < ids.len() - 1 {
        net.run(LOOK);
        let age = net.now.mono.saturating_duration_since(begun);
        assert!(age < Duration::from_secs(60), "it does not come everywhere");
        let have = net
            .nodes
            .iter()
            .filter(|node| node.core().known_version(ids[n]) >= version);
        took.resize(have.count() - 1, age);
    }
    took
}

/// What a quiet node sends, in bytes a second, headers included.
pub fn idle(net: &mut Net, time: Duration) -> f64 {
    let before = net.sent;
    net.run(time);
    let bytes = net.sent.1 - before.1 + HEADERS * (net.sent.0 - before.0);
    bytes as f64 / net.nodes.len() as f64 / time.as_secs_f64()
}

/// Finds out what a cluster of that size costs, and tells on the way how far it is: with a thousand it takes a while.
pub fn measure(seed: u64, nodes: usize) -> Figures {
    let (used, spent) = (memory(), cpu());
    let each = nodes as f64;
    let (mut net, took) = cold_start(seed, nodes, 0);
    tell(&net, "together");
    // Sheets come after records, and what was lost in the crowd is sent again.
    net.run(SETTLED);
    let cold_cpu = (cpu() - spent).as_secs_f64() * 1e3 / each;
    tell(&net, "settled");
    // What was made while not everybody was known has ended by then.
    net.run(Duration::from_secs(150));
    let mut changes = Vec::new();
    for at in 0..CHANGES {
        changes.extend(change(&mut net, at * nodes / CHANGES));
    }
    tell(&net, "changed");
    changes.sort_unstable();
    let share = |percent: usize| changes[(changes.len() * percent / 100).min(changes.len() - 1)];
    net.run(Duration::from_secs(10));
    let spent = cpu();
    let idle_bytes = idle(&mut net, QUIET);
    let idle_cpu = (cpu() - spent).as_secs_f64() * 1e6 / each / QUIET.as_secs_f64();
    let sessions = net.nodes.iter().map(|node| node.core().sessions_up().0);
    let count: usize = sessions.sum();
    let tables: usize = net.nodes.iter().map(|node| node.core().known_bytes()).sum();
    Figures {
        nodes,
        cold_start: took.as_secs_f64(),
        cold_cpu,
        change: (share(50).as_secs_f64() * 1e3, share(99).as_secs_f64() * 1e3),
        idle_bytes,
        idle_cpu,
        sessions: count as f64 / each,
        table: tables as f64 / each,
        memory: (memory() - used).max(0.0) / each,
    }
}
