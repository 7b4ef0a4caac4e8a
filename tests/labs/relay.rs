//! Hosts that cannot reach one another, and the hosts between them, which hand on what they cannot read.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::lab::beat::Beat;
use crate::lab::capture::MARKER;
use crate::lab::traffic::{Conversation, Load, bulk, try_ping, wait_for};
use crate::lab::{Container, Host, Lab, form};

/// How long it may take until packets arrive again when their way is cut or their relay dies; it is about 0.45 s.
const SWITCHED: Duration = Duration::from_millis(1500);
/// The longest that a connection may stand still then: TCP sends again at times of its own. It is mostly 0.65 s, and 1.5 s
/// when a repeated packet is just missed; the rest is for slow machines.
const STILL: Duration = Duration::from_millis(3000);
/// Bytes a second of a load: what a slow machine carries through a relay without trying.
const RATE: usize = 4 << 20;
/// For what only has to happen some time.
const PATIENCE: Duration = Duration::from_secs(30);

/// From now on the switch drops what the host at port `pA` sends to the one at port `pB`, for each pair (A, B).
pub(crate) fn cut(lab: &Lab, pairs: &[(u8, u8)]) {
    let rules = pairs.iter().map(|(from, to)| {
        format!("add rule bridge cut between iifname p{from} oifname p{to} drop\n")
    });
    lab.switch().sh(&format!(
        "nft -f - <<'END'
add table bridge cut
add chain bridge cut between {{ type filter hook forward priority 0; }}
flush chain bridge cut between
{}END",
        rules.collect::<String>()
    ));
}

/// Both directions between two hosts.
pub(crate) const fn both(a: u8, b: u8) -> [(u8, u8); 2] {
    [(a, b), (b, a)]
}

/// What `weavectl connections` on a host says of another one.
fn connection(host: &Host, peer: &str) -> Value {
    let seen = host.connection(peer);
    seen.unwrap_or_else(|| panic!("{peer} is no peer of {}", host.name))
}

/// Waits until packets of a host for another one go through a relay, or straight with `None`.
#[track_caller]
fn await_way(host: &Host, peer: &str, via: Option<&str>) {
    let goes = format!("packets of {} for {peer} go via {via:?}", host.name);
    wait_for(&goes, PATIENCE, || host.goes_via(peer, via));
}

/// TCP both ways between two containers: a conversation, and a load in each direction.
struct Flows {
    talk: Conversation,
    loads: [Load; 2],
    beats: [Beat; 2],
}

impl Flows {
    fn start(a: &Container, b: &Container) -> Self {
        let flows = Self {
            talk: Conversation::start(&a.ns, (&b.ns, b.v4.into())),
            loads: [
                Load::start(RATE, &a.ns, (&b.ns, b.v6.into())),
                Load::start(RATE, &b.ns, (&a.ns, a.v4.into())),
            ],
            beats: [(a, b), (b, a)]
                .map(|(from, to)| Beat::start((&from.ns, from.v4.into()), (&to.ns, to.v4.into()))),
        };
        flows.go_on();
        flows
    }

    /// Waits until all of them have moved on.
    fn go_on(&self) {
        self.talk.assert_goes_on(PATIENCE);
        for load in &self.loads {
            let before = load.bytes();
            wait_for("a load goes on", PATIENCE, || {
                load.bytes() > before + (RATE / 4) as u64
            });
        }
    }

    /// Ends them; says the longest time in which a connection stood still, and that in which no datagram arrived.
    fn finish(self) -> Stood {
        let gaps = self.beats.map(Beat::longest_gap);
        self.talk.finish();
        let stalls = self.loads.each_ref().map(Load::longest_stall);
        self.loads.into_iter().for_each(Load::finish);
        Stood {
            connection: stalls.into_iter().max().expect("there are two"),
            datagrams: gaps.into_iter().max().expect("there are two"),
        }
    }
}

/// How long nothing arrived.
#[derive(Debug)]
struct Stood {
    connection: Duration,
    datagrams: Duration,
}

impl Stood {
    #[track_caller]
    fn check(&self, what: &str) {
        let well = self.connection <= STILL && self.datagrams <= SWITCHED;
        assert!(well, "{what}: too long, {self:?}");
    }
}

/// Cuts a pair of hosts while they talk; returns how long it took until all went on.
fn cut_under_traffic(lab: &Lab, what: &str, [a, b]: [&Container; 2], pairs: &[(u8, u8)]) {
    let flows = Flows::start(a, b);
    cut(lab, pairs);
    let start = Instant::now();
    flows.go_on();
    let went_on = start.elapsed();
    let still = flows.finish();
    println!("{what}: {still:.2?}, all went on after {went_on:.2?}");
    still.check(what);
}

/// Two hosts are cut apart while their containers talk: it goes on through the third, and straight again when healed.
#[test]
fn cut_hosts_talk_through_a_third() {
    Lab::run(|lab| {
        let [h1, h2, h3] = lab.cluster();
        let [a, c] = [h1.attach("a"), h3.attach("c")];
        await_way(&h1, "h3", None);
        for round in 1..=3 {
            cut_under_traffic(lab, &format!("cut {round}"), [&a, &c], &both(1, 3));
            await_way(&h1, "h3", Some("h2"));
            await_way(&h3, "h1", Some("h2"));
            let way = connection(&h1, "h3");
            // What the straight way lost in an earlier cut may have made it the worse one before it is known to be silent.
            let silent = way["path"]["reason"] == "silent";
            assert!(
                silent || way["path"]["reason"] == "better" && round > 1,
                "{way}"
            );
            assert!(way["rtt_us"].is_u64() && way["endpoint"].is_null(), "{way}");
            let shown = h1.ok(&["connections"]);
            assert!(
                shown.contains("via h2") && (!silent || shown.contains("other way silent")),
                "{shown}"
            );
            a.reaches(&c, 56);
            a.reaches(&c, 8000);
            bulk(&a.ns, (&c.ns, c.v4.into()), 8 << 20);
            let handed_on = h2.status()["datagrams"]["handed_on_bytes"].as_u64();
            assert!(
                handed_on > Some(8 << 20),
                "{handed_on:?} bytes went through h2"
            );
            let flows = Flows::start(&a, &c);
            let healed = Instant::now();
            cut(lab, &[]);
            await_way(&h1, "h3", None);
            await_way(&h3, "h1", None);
            println!(
                "back to the direct way {:.2?} after it was healed",
                healed.elapsed()
            );
            flows.go_on();
            flows.finish().check("healed");
            let reason = connection(&h1, "h3")["path"]["reason"].clone();
            // Both ends choose among the addresses of the other one, and one gives way; and a relay that answers late may be
            // the worse way before it is known that the direct one works.
            let known = ["direct", "moved", "better"];
            assert!(known.iter().any(|known| reason == *known), "{reason}");
        }
    });
}

/// Only one direction is cut: both directions go on.
#[test]
fn a_cut_in_one_direction() {
    Lab::run(|lab| {
        let [h1, _h2, h3] = lab.cluster();
        let [a, c] = [h1.attach("a"), h3.attach("c")];
        for (what, pair) in [("from 1 to 3", (1, 3)), ("from 3 to 1", (3, 1))] {
            cut_under_traffic(lab, what, [&a, &c], &[pair]);
            a.reaches(&c, 1472);
            c.reaches(&a, 1472);
            cut(lab, &[]);
            await_way(&h1, "h3", None);
            await_way(&h3, "h1", None);
        }
    });
}

/// The relay dies while it hands on, and another one is there.
#[test]
fn a_relay_that_dies() {
    Lab::run(|lab| {
        let hosts: [Host; 4] = lab.cluster();
        let [h1, h2, h3, h4] = &hosts;
        let [a, c] = [h1.attach("a"), h3.attach("c")];
        cut(lab, &both(1, 3));
        let flows = Flows::start(&a, &c);
        let relay = || {
            let via = connection(h1, "h3")["path"]["via"].clone();
            via.as_str().map(str::to_owned)
        };
        wait_for("there is a relay", PATIENCE, || relay().is_some());
        let first = relay().expect("it was there");
        let (dies, stays) = if first == "h2" { (h2, h4) } else { (h4, h2) };
        // Both directions through the one that dies, or what is shown is less than it says.
        let same = || connection(h3, "h1")["path"]["via"] == *first;
        let through_both = same();
        flows.finish().check("at first");
        let flows = Flows::start(&a, &c);
        dies.end("KILL");
        let start = Instant::now();
        flows.go_on();
        let went_on = start.elapsed();
        await_way(h1, "h3", Some(&stays.name));
        let still = flows.finish();
        println!(
            "the relay died (of both directions: {through_both}): {still:.2?}, all went on after {went_on:.2?}"
        );
        still.check("the relay died");
    });
}

/// Two hosts that never could reach one another join through a third and talk through it.
#[test]
fn hosts_that_never_met() {
    Lab::run(|lab| {
        let hosts = [1, 2, 3].map(|number| lab.host(&format!("h{number}"), number));
        hosts.iter().for_each(Host::start);
        cut(lab, &both(2, 3));
        form(&hosts);
        let [_, h2, h3] = &hosts;
        await_way(h2, "h3", Some("h1"));
        await_way(h3, "h2", Some("h1"));
        let [b, c] = [h2.attach("b"), h3.attach("c")];
        b.reaches(&c, 56);
        b.reaches(&c, 8000);
        bulk(&b.ns, (&c.ns, c.v6.into()), 8 << 20);
        assert_eq!(connection(h2, "h3")["path"]["reason"], "handshake");
        cut(lab, &[]);
        await_way(h2, "h3", None);
        await_way(h3, "h2", None);
    });
}

/// What a relay holds in memory and sends and receives can be read nowhere; at the ends it can.
#[test]
fn a_relay_reads_nothing() {
    Lab::run(|lab| {
        let [h1, h2, h3] = lab.cluster();
        let [a, c] = [h1.attach("a"), h3.attach("c")];
        cut(lab, &both(1, 3));
        wait_for("an echo comes back", PATIENCE, || {
            try_ping(&a.ns, c.v4.into(), 56).status.success()
        });
        await_way(&h1, "h3", Some("h2"));
        await_way(&h3, "h1", Some("h2"));
        let handed = datagrams(&h2);
        let load = Load::start(RATE, &a.ns, (&c.ns, c.v4.into()));
        wait_for("a load goes on", PATIENCE, || load.bytes() > 4 << 20);
        let [one, relay, other] = [&h1, &h2, &h3].map(|host| readings(host.pid()));
        load.finish();
        let handed = datagrams(&h2) - handed;
        println!(
            "the marker is {one}, {relay} and {other} times in memory; {handed} datagrams were handed on"
        );
        assert!(handed > 1000, "the relay handed on {handed} datagrams");
        assert!(one > 0 && other > 0, "the ends hold what they say in clear");
        assert_eq!(relay, 0, "the relay holds what it cannot read");
        // The wires are judged at the end of every lab.
    });
}

/// How many datagrams a host's node has sent.
fn datagrams(host: &Host) -> u64 {
    let status = host.status();
    let sent = &status["datagrams"]["sent"];
    sent.as_u64()
        .unwrap_or_else(|| panic!("a number: {status}"))
}

/// How often the marker stands in the memory of a process.
fn readings(pid: u32) -> usize {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).expect("the process lives");
    let memory = File::open(format!("/proc/{pid}/mem")).expect("root may read it");
    let mut found = 0;
    for line in maps.lines().filter(|line| line.contains(" rw")) {
        let range = line.split(' ').next().unwrap_or_default();
        let (start, end) = range.split_once('-').expect("a range");
        let [start, end] = [start, end].map(|text| u64::from_str_radix(text, 16).expect("hex"));
        let mut bytes = vec![0; (end - start) as usize];
        // What the kernel keeps for itself cannot be read.
        if memory.read_exact_at(&mut bytes, start).is_ok() {
            found += bytes
                .windows(MARKER.len())
                .filter(|at| at == MARKER)
                .count();
        }
    }
    found
}
