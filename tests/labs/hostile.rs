//! What strangers on the wire can do to a node: flood its port with junk, and send again what they saw.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};
use serde_json::Value;
use weave_linux::udp::{Inbox, UdpOptions, UdpSocket};

use crate::idle::{cpu_time, resident_kib};
use crate::lab::ns::{self, Ns};
use crate::lab::traffic::{Conversation, ping, wait_for};
use crate::lab::{Container, Host, Lab, await_mesh, form};

/// Junk datagrams a second.
const RATE: u64 = 100_000;
/// How many go to the kernel in one call; all of a call are of one length.
const CALL: usize = 50;
/// The flooder's number on the switch.
const FLOODER: u8 = 9;

/// Lengths of handshake messages: a cookie, a response, an initiation, a proof, a hello, an admission, a request.
const HANDSHAKES: [usize; 7] = [64, 128, 184, 244, 248, 292, 336];

/// As many questions as a program asks in a minute that asks every 10 ms: so much is listened to, and sent again.
const MINUTE: u64 = 6000;

/// Who floods, and what came of it.
struct Flooder {
    ns: Ns,
    sockets: Vec<UdpSocket>,
}

impl Flooder {
    fn new(lab: &Lab) -> Self {
        let ns = Ns::add("flooder");
        lab.plug(&ns, "u0", FLOODER);
        let more: Vec<u8> = (100..120).collect();
        let add = |last: &u8| format!("ip addr add 192.168.77.{last}/24 dev u0; ");
        ns.sh(&more.iter().map(add).collect::<String>());
        let options = UdpOptions {
            reuse_port: false,
            gso: true,
            gro: false,
        };
        let bind = |last: &u8| {
            let from = SocketAddr::from((Ipv4Addr::new(192, 168, 77, *last), 6783));
            ns.inside(|| UdpSocket::bind(from, options))
                .expect("a socket")
        };
        let sockets = more.iter().map(bind).collect();
        Self { ns, sockets }
    }

    /// Sends junk to `to` until told to stop, [`RATE`] a second if the machine can; counts what was sent.
    fn rage(&self, to: SocketAddr, stop: &AtomicBool, sent: &AtomicU64) {
        let mut rng = StdRng::seed_from_u64(1);
        let mut buffer = vec![0; CALL * 1200];
        let start = Instant::now();
        while !stop.load(Ordering::Relaxed) {
            let due = (start.elapsed().as_secs_f64() * RATE as f64) as u64;
            // What the machine could not send in time is not made up for.
            let late = due.saturating_sub(sent.load(Ordering::Relaxed));
            if late < CALL as u64 {
                std::thread::sleep(Duration::from_micros(200));
                continue;
            }
            let segment = junk(&mut rng, &mut buffer);
            let socket = &self.sockets[rng.random_range(0..self.sockets.len())];
            // Full queues are part of a flood.
            let _ = socket.send(to, &buffer[..segment * CALL], segment, 0);
            sent.fetch_add(CALL as u64, Ordering::Relaxed);
        }
    }

    /// Floods `to` while something is done; returns what came of that, how much was sent meanwhile and how long it took.
    fn during<T>(&self, to: SocketAddr, work: impl FnOnce() -> T) -> (T, u64, Duration) {
        let (stop, sent) = (AtomicBool::new(false), AtomicU64::new(0));
        std::thread::scope(|scope| {
            let _stop = StopAtEnd(&stop);
            scope.spawn(|| self.rage(to, &stop, &sent));
            std::thread::sleep(Duration::from_secs(1));
            let (first, start) = (sent.load(Ordering::Relaxed), Instant::now());
            let done = work();
            (done, sent.load(Ordering::Relaxed) - first, start.elapsed())
        })
    }

    /// Bytes on the flooder's wire: from it and to it.
    fn bytes(&self) -> [u64; 2] {
        let line = self.ns.sh("grep u0: /proc/net/dev");
        let counts: Vec<&str> = line.split_whitespace().collect();
        [9, 1].map(|at| counts[at].parse().expect("a count"))
    }

    /// How many datagrams anybody sent to the flooder.
    fn answers(&self) -> usize {
        let mut inbox = Inbox::new(64);
        let heard = self
            .sockets
            .iter()
            .map(|socket| socket.recv_many(&mut inbox, 64).unwrap_or(0));
        heard.sum()
    }
}

/// Ends a flood, whatever happened meanwhile.
pub(crate) struct StopAtEnd<'a>(pub(crate) &'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Fills the buffer with datagrams of one kind of junk and returns their length.
fn junk(rng: &mut StdRng, buffer: &mut [u8]) -> usize {
    let kind = rng.random_range(0..3);
    let segment = match kind {
        0 => rng.random_range(1..300),
        1 => HANDSHAKES[rng.random_range(0..HANDSHAKES.len())],
        _ => rng.random_range(32..1200),
    };
    rng.fill_bytes(&mut buffer[..segment * CALL]);
    for (at, datagram) in buffer[..segment * CALL].chunks_mut(segment).enumerate() {
        match kind {
            // Any bytes at all.
            0 => continue,
            // Shaped like handshakes of the first epoch.
            1 => {
                datagram[..8].copy_from_slice(&[0x11 + (at % 8) as u8, 0, 0, 0, 0, 0, 0, 0]);
                datagram[8..16].copy_from_slice(&1_u64.to_be_bytes());
                if datagram[0] == 0x11 {
                    datagram[20..24].copy_from_slice(&[1, 0, 0, 0]);
                }
            }
            // Data of a session that there is not.
            _ => datagram[..4].copy_from_slice(&[0x14, at as u8 % 2, 0, 0]),
        }
    }
    segment
}

/// A thousand echoes in a few seconds: out of how many how many were lost, and what `ping` says of the times.
pub(crate) fn echoes(from: &Ns, to: IpAddr) -> (u32, u32, String) {
    let output = from.try_sh(&format!("ping -n -q -i 0.002 -c 1500 -W 1 {to}"));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let number = |after: &str, before: &str| -> u32 {
        let start = said.find(after).map_or(0, |at| at + after.len());
        let end = said[start..]
            .find(before)
            .map_or(said.len(), |at| start + at);
        said[start..end].trim().parse().expect("ping counts")
    };
    let sent = number("statistics ---\n", " packets transmitted");
    let received = number("transmitted, ", " received");
    let times = said.lines().last().unwrap_or_default().to_owned();
    (sent, sent - received, times)
}

fn drops(host: &Host) -> BTreeMap<String, u64> {
    let drops = host.status()["drops"].clone();
    serde_json::from_value(drops).expect("drops are counts by reason")
}

/// By how much each count grew.
fn grown(before: &BTreeMap<String, u64>, after: &BTreeMap<String, u64>) -> BTreeMap<String, u64> {
    let growth = |(reason, count): (&String, &u64)| {
        let more = count - before.get(reason).copied().unwrap_or(0);
        (more > 0).then(|| (reason.clone(), more))
    };
    after.iter().filter_map(growth).collect()
}

/// What a node has used up and counted at one moment.
struct Use {
    memory_kib: u64,
    cpu: Duration,
    drops: BTreeMap<String, u64>,
}

impl Use {
    fn of(host: &Host) -> Self {
        Self {
            memory_kib: resident_kib(host.pid()),
            cpu: cpu_time(host.pid()),
            drops: drops(host),
        }
    }
}

/// Junk at the port of a node: flows of its containers go on, a new member gets in, nothing is answered, nothing grows.
#[test]
fn a_flood_of_junk_costs_existing_flows_nothing() {
    Lab::run(|lab| {
        let hosts = [1, 2, 3].map(|number| lab.host_unwatched(&format!("h{number}"), number));
        hosts.iter().for_each(Host::start);
        form(&hosts[..2]);
        let [h1, h2, late] = &hosts;
        let [a, b] = [h1.attach("a"), h2.attach("b")];
        let token = h1.ok(&["token", "create"]);
        let flow = Conversation::start(&b.ns, (&a.ns, a.v4.into()));
        flow.assert_goes_on(Duration::from_secs(5));
        println!("before: {:?}", echoes(&b.ns, a.v4.into()));
        let flooder = Flooder::new(lab);
        let port = SocketAddr::from((h1.v4, 6783));
        let ((before, after), flooded, took) = flooder.during(port, || {
            let before = Use::of(h1);
            let (count, lost, times) = echoes(&b.ns, a.v4.into());
            println!("echoes: {lost} of {count} lost; {times}");
            assert!(lost * 1000 <= count, "{lost} of {count} lost");
            let begun = Instant::now();
            late.ok(&["join", token.trim()]);
            let joined = begun.elapsed();
            println!("a new member was in after {joined:?}");
            assert!(joined < Duration::from_secs(2), "{joined:?}");
            flow.assert_goes_on(Duration::from_secs(2));
            (before, Use::of(h1))
        });
        judge_flood(&before, &after, flooded, took);
        flow.finish();
        let [out, back] = flooder.bytes();
        println!("{out} bytes to the node, {back} bytes back");
        assert_eq!(flooder.answers(), 0, "junk is not answered");
        assert!(back * 100 < out, "{back} bytes for {out}");
        await_mesh(&hosts);
        ping(&a.ns, b.v4.into(), 1400);
    });
}

/// The flood was one, it was counted, and it cost no memory and nobody's place.
fn judge_flood(before: &Use, after: &Use, flooded: u64, took: Duration) {
    let rate = flooded as f64 / took.as_secs_f64();
    let cpu = (after.cpu - before.cpu).as_secs_f64() / took.as_secs_f64();
    let dropped = grown(&before.drops, &after.drops);
    println!("{rate:.0} junk datagrams a second for {took:.1?}, {cpu:.2} of a core");
    println!("dropped: {dropped:?}");
    let [memory, then] = [before, after].map(|at| at.memory_kib);
    println!("memory {memory} KiB, then {then} KiB");
    assert!(then < memory + 2048, "{memory} KiB, then {then} KiB");
    assert!(rate > RATE as f64 / 10.0, "that was no flood: {rate:.0}");
    let junk: u64 = dropped.values().sum();
    assert!(junk > flooded / 2, "{junk} of {flooded} were counted");
    assert_eq!(dropped.get("queue_full"), None, "junk takes no place");
}

/// Whoever saw the wire and can send from any address.
struct Listener {
    ns: Ns,
    seen: Vec<(SocketAddr, Vec<u8>)>,
}

impl Listener {
    /// Takes the sender's addresses for its own, without telling the switch or the neighbours.
    fn new(lab: &Lab, seen: Vec<(SocketAddr, Vec<u8>)>, victim: &Host) -> Self {
        let ns = Ns::add("listener");
        lab.plug(&ns, "u0", FLOODER);
        let link = victim.ns.sh("ip -o link show u0");
        let (_, mac) = link.split_once("link/ether ").expect("it has an address");
        let mac = &mac[..17];
        ns.sh(&format!(
            "sysctl -qw net.ipv4.conf.all.arp_ignore=1 net.ipv4.conf.all.arp_announce=2
             ip neigh replace {} lladdr {mac} dev u0 nud permanent
             ip neigh replace {} lladdr {mac} dev u0 nud permanent",
            victim.v4, victim.v6
        ));
        let sources: std::collections::BTreeSet<IpAddr> =
            seen.iter().map(|(from, _)| from.ip()).collect();
        for source in sources {
            ns.sh(&format!("ip addr add {source} dev lo"));
        }
        Self { ns, seen }
    }

    /// Sends all that was seen again, slowly enough that nothing of it is lost; from where it came, or from elsewhere.
    fn replay(&self, victim: &Host, spoofed: bool) {
        let mut sockets = BTreeMap::new();
        for (from, datagram) in &self.seen {
            let v4 = from.is_ipv4();
            let to: IpAddr = if v4 {
                victim.v4.into()
            } else {
                victim.v6.into()
            };
            let own = match v4 {
                true => SocketAddr::from((Ipv4Addr::new(192, 168, 77, FLOODER), 6783)),
                false => SocketAddr::from((
                    "fd77::9".parse::<std::net::Ipv6Addr>().expect("an address"),
                    6783,
                )),
            };
            let from = if spoofed { *from } else { own };
            let bind = || std::net::UdpSocket::bind(from).expect("a socket");
            let socket = sockets.entry(from).or_insert_with(|| self.ns.inside(bind));
            socket
                .send_to(datagram, (to, 6783))
                .expect("it can be sent");
            std::thread::sleep(Duration::from_micros(300));
        }
    }
}

/// What a replay could have changed at a host: packets that came in, and since when each member is connected and where.
fn standing(host: &Host) -> (Value, Value) {
    let mut connections = host.json(&["connections"])["connections"].clone();
    for connection in connections.as_array_mut().expect("a list") {
        let fields = connection.as_object_mut().expect("an object");
        fields.retain(|name, _| {
            ["name", "state", "endpoint", "since_at", "received_packets"].contains(&name.as_str())
        });
    }
    (
        host.status()["traffic"]["received_packets"].clone(),
        connections,
    )
}

/// Everything that h1 is sent while both nodes start again, one after the other, and their containers talk.
fn listen(lab: &Lab, hosts: &[Host; 2], [a, b]: [&Container; 2]) -> Vec<(SocketAddr, Vec<u8>)> {
    let [h1, h2] = hosts;
    let wire = lab.capture(lab.switch(), "p1");
    for host in [h2, h1] {
        host.end("KILL");
        host.start();
        await_mesh(hosts);
    }
    let talks = [(); 12].map(|()| Conversation::start(&b.ns, (&a.ns, a.v4.into())));
    b.reaches(a, 3000);
    wait_for("a minute's worth is said", Duration::from_secs(60), || {
        talks.iter().map(Conversation::rounds).sum::<u64>() >= MINUTE
    });
    talks.into_iter().for_each(Conversation::finish);
    let frames = wire.stop();
    let [v4, v6] = [h1.v4.into(), h1.v6.into()].map(|to| frames.datagrams_to(to));
    let seen = [v4, v6].concat();
    let [initiations, responses, cookies, data] = [0x11, 0x12, 0x13, 0x14]
        .map(|kind| seen.iter().filter(|(_, bytes)| bytes[0] == kind).count());
    println!(
        "seen: {initiations} initiations, {responses} responses, {cookies} cookies, {data} of data"
    );
    // Several questions may share a datagram.
    assert!(data > MINUTE as usize / 4 && initiations > 0 && responses > 0);
    seen
}

/// A session's datagrams again, at once, later, from another address and after a restart: every one is dropped and
/// counted, none is delivered, no handshake is made of any, and the session goes on.
#[test]
fn what_was_seen_is_sent_again() {
    Lab::run(|lab| {
        let hosts = lab.cluster::<2>();
        let [h1, h2] = &hosts;
        let [a, b] = [h1.attach("a"), h2.attach("b")];
        let seen = listen(lab, &hosts, [&a, &b]);
        let count = seen.len() as u64;
        let listener = Listener::new(lab, seen, h1);
        for (when, spoofed) in [
            ("at once", true),
            ("later", true),
            ("from elsewhere", false),
            ("after a restart", true),
        ] {
            if when == "after a restart" {
                h1.end("KILL");
                h1.start();
                await_mesh(&hosts);
            }
            if when != "at once" {
                std::thread::sleep(Duration::from_secs(2));
            }
            let (before, counted) = (standing(h1), drops(h1));
            listener.replay(h1, spoofed);
            wait_for("all are counted", Duration::from_secs(20), || {
                grown(&counted, &drops(h1)).values().sum::<u64>() >= count
            });
            let dropped = grown(&counted, &drops(h1));
            println!("{when}: {dropped:?}");
            assert_eq!(dropped.values().sum::<u64>(), count, "{when}: {dropped:?}");
            assert_eq!(standing(h1), before, "{when}");
            ping(&b.ns, a.v4.into(), 1400);
        }
        ns::host(&format!("ip netns del {}", listener.ns.name()));
        await_mesh(&hosts);
        a.reaches(&b, 1472);
    });
}
