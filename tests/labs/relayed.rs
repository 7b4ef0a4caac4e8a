//! What the end of a node does to connections that its relay carries: killed, stopped, and back.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crate::hostile::StopAtEnd;
use crate::lab::ns::Ns;
use crate::lab::traffic::wait_for;
use crate::lab::{Host, Lab};
use crate::services::{echo_over, echoes};

/// How long a connection may take on a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(5);
/// For what only has to happen some time.
const SOON: Duration = Duration::from_secs(30);
/// The longest time without a new connection that is served, whatever happens to the node.
const GAP: Duration = Duration::from_secs(1);
/// How many connections are open of each kind.
const MANY: usize = 8;

/// Sends back what comes to port 8080, by TCP and by UDP.
fn echo(ns: &Ns) {
    let (tcp, udp) = ns.inside(|| {
        (
            TcpListener::bind("[::]:8080").expect("the port is free"),
            UdpSocket::bind("[::]:8080").expect("the port is free"),
        )
    });
    std::thread::spawn(move || {
        for mut stream in tcp.incoming().flatten() {
            std::thread::spawn(move || {
                let mut bytes = [0; 256];
                while let Ok(count @ 1..) = stream.read(&mut bytes) {
                    let _ = stream.write_all(&bytes[..count]);
                }
            });
        }
    });
    std::thread::spawn(move || {
        let mut bytes = [0; 256];
        while let Ok((count, peer)) = udp.recv_from(&mut bytes) {
            let _ = udp.send_to(&bytes[..count], peer);
        }
    });
}

fn connect(from: &Ns, to: SocketAddr) -> std::io::Result<TcpStream> {
    let stream = from.inside(|| TcpStream::connect_timeout(&to, PATIENCE))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

fn many(from: &Ns, to: SocketAddr) -> Vec<TcpStream> {
    (0..MANY)
        .map(|_| {
            let mut stream = connect(from, to).expect("a connection");
            assert!(echoes(&mut stream));
            stream
        })
        .collect()
}

/// A Service in front of the echo; its IPv4 address.
fn create(host: &Host, name: &str, port: &str, engine: &str) -> SocketAddr {
    let words = [
        "service",
        "create",
        name,
        "--port",
        port,
        "--selector",
        "app=echo",
    ];
    let made = host.json(&[&words[..], &["--engine", engine]].concat());
    let address = made["addresses"][0].as_str().expect("an address");
    SocketAddr::new(address.parse().expect("an address"), 80)
}

/// How many picks the relay shows of a Service.
pub(crate) fn picks(host: &Host, name: &str) -> u64 {
    let described = host.json(&["service", "describe", name]);
    let backends = described["backends"].as_array().expect("a list");
    let each = backends.iter().map(|one| one["relayed"]["picks"].as_u64());
    each.flatten().sum()
}

/// New connections, one after the other, until it is over.
#[derive(Default)]
pub(crate) struct Tries {
    pub(crate) over: AtomicBool,
    made: AtomicUsize,
    failed: AtomicUsize,
    /// What became of the first one that failed, and after how long.
    first: Mutex<Option<String>>,
    /// The longest time from one that was served to the next, in microseconds.
    gap: AtomicU64,
}

impl Tries {
    fn go_on(&self, from: &Ns, to: SocketAddr) {
        self.go_on_with(|| echo_over(&mut connect(from, to)?));
    }

    /// Tries again and again whether one is served.
    pub(crate) fn go_on_with(&self, serve: impl Fn() -> std::io::Result<()>) {
        // Not for ever: what fails meanwhile is to be told.
        let end = Instant::now() + 4 * SOON;
        let mut last = Instant::now();
        while !self.over.load(Relaxed) && Instant::now() < end {
            let begun = Instant::now();
            let served = serve();
            self.made.fetch_add(1, Relaxed);
            match served {
                Ok(()) => {
                    let gap = last.elapsed().as_micros() as u64;
                    self.gap.fetch_max(gap, Relaxed);
                    last = Instant::now();
                }
                Err(error) => self.note(&error, begun.elapsed()),
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn note(&self, error: &std::io::Error, after: Duration) {
        self.failed.fetch_add(1, Relaxed);
        let mut first = self.first.lock().expect("nobody panicked");
        first.get_or_insert_with(|| format!("{error} after {after:.2?}"));
    }

    #[track_caller]
    pub(crate) fn none_failed(&self, when: &str) {
        let (made, failed) = (self.made.load(Relaxed), self.failed.load(Relaxed));
        let first = self.first.lock().expect("nobody panicked");
        assert_eq!(failed, 0, "of {made}, {when}; the first: {first:?}");
    }

    /// Waits until some more were made.
    pub(crate) fn some_more(&self) {
        let before = self.made.load(Relaxed);
        wait_for("new connections", SOON, || {
            self.made.load(Relaxed) > before + 20
        });
    }
}

/// A host with a client and a server behind three Services: TCP and UDP of the relay, and TCP of the kernel.
struct Scene {
    host: Host,
    client: Ns,
    relayed: SocketAddr,
    plain: SocketAddr,
    /// A client of the second one that keeps its port.
    asking: UdpSocket,
}

impl Scene {
    fn new(lab: &Lab) -> Self {
        let [host] = lab.cluster();
        let client = host.attach("client").ns;
        let server = host.bare_container("server");
        echo(&server);
        host.attach_ns(server, "server", &["--label", "app=echo"]);
        let relayed = create(&host, "relayed", "80:8080", "relay");
        let datagrams = create(&host, "datagrams", "80:8080/udp", "relay");
        let plain = create(&host, "plain", "80:8080", "kernel");
        wait_for("both are served", SOON, || {
            let served = |to| connect(&client, to).is_ok_and(|mut one| echoes(&mut one));
            served(relayed) && served(plain)
        });
        let asking = client.inside(|| UdpSocket::bind("0.0.0.0:0").expect("a port"));
        asking.connect(datagrams).expect("a way");
        let short = Some(Duration::from_millis(500));
        asking.set_read_timeout(short).expect("a time");
        Self {
            host,
            client,
            relayed,
            plain,
            asking,
        }
    }

    /// Whether a datagram comes back.
    fn answers(&self) -> bool {
        let asked = self.asking.send(b"?");
        asked.and_then(|_| self.asking.recv(&mut [0; 8])).is_ok()
    }

    /// Kills the node and starts it again while somebody makes new connections.
    fn kill_and_start(&self, tries: &Tries, broken: &mut [TcpStream], kept: &mut [TcpStream]) {
        tries.some_more();
        let killed = Instant::now();
        self.host.end("KILL");
        let has_ended = |one: &mut TcpStream| !matches!(one.read(&mut [0; 4]), Ok(1..));
        assert!(broken.iter_mut().all(has_ended));
        println!(
            "{MANY} relayed connections knew of their end within {:.2?}",
            killed.elapsed()
        );
        assert!(kept.iter_mut().all(echoes), "what the kernel has goes on");
        wait_for("the same client's datagrams are the kernel's", SOON, || {
            self.answers()
        });
        tries.some_more();
        let started = Instant::now();
        self.host.start();
        wait_for("the relay serves again", SOON, || {
            picks(&self.host, "relayed") > 0
        });
        println!(
            "the relay was back {:.2?} after the start",
            started.elapsed()
        );
        tries.some_more();
    }
}

/// Killed: what the relay has open ends at once and visibly, what the kernel has goes on, new connections and every further
/// datagram are the kernel's. Back: new ones are the relay's again, and what the kernel had stays its.
#[test]
fn what_breaks_when_a_node_with_a_relay_is_killed() {
    Lab::run(|lab| {
        let scene = Scene::new(lab);
        let mut broken = many(&scene.client, scene.relayed);
        let mut kept = many(&scene.client, scene.plain);
        wait_for("a datagram comes back", SOON, || scene.answers());
        assert!(picks(&scene.host, "datagrams") > 0);
        assert!(picks(&scene.host, "relayed") >= MANY as u64);
        let tries = Tries::default();
        std::thread::scope(|scope| {
            let _stop = StopAtEnd(&tries.over);
            scope.spawn(|| tries.go_on(&scene.client, scene.relayed));
            scene.kill_and_start(&tries, &mut broken, &mut kept);
        });
        let (made, failed) = (tries.made.into_inner(), tries.failed.into_inner());
        let gap = Duration::from_micros(tries.gap.into_inner());
        println!(
            "{failed} of {made} new connections failed from before the kill until after; the longest time without one: {gap:.2?}"
        );
        assert!(gap <= GAP, "{gap:?}");
        assert!(failed <= 1, "only the one that was open when it was killed");
        assert!(kept.iter_mut().all(echoes), "they stay the kernel's");
        wait_for("datagrams are the relay's again", SOON, || {
            scene.answers() && picks(&scene.host, "datagrams") > 0
        });
    });
}

/// Stopped: what is open may end by itself, meanwhile new connections are the kernel's, and none fails.
#[test]
fn a_relay_that_is_stopped_lets_its_connections_end() {
    Lab::run(|lab| {
        let scene = Scene::new(lab);
        let mut open = many(&scene.client, scene.relayed);
        assert!(picks(&scene.host, "relayed") >= MANY as u64);
        let pid = scene.host.pid().to_string();
        let ended = || !Path::new("/proc").join(&pid).join("cwd").exists();
        let tries = Tries::default();
        std::thread::scope(|scope| {
            let _stop = StopAtEnd(&tries.over);
            scope.spawn(|| tries.go_on(&scene.client, scene.relayed));
            tries.some_more();
            scene.host.ns.sh(&format!("kill -TERM {pid}"));
            tries.some_more();
            assert!(
                !ended() && open.iter_mut().all(echoes),
                "they are waited for"
            );
            open.clear();
            wait_for("the node ends", SOON, ended);
            tries.some_more();
        });
        tries.none_failed("while the relay ended");
        scene.host.end("KILL");
    });
}

/// All values of a metric together.
pub(crate) fn metric(host: &Host, name: &str) -> f64 {
    let text = host
        .ns
        .sh("curl -fsS --max-time 5 http://127.0.0.1:6782/metrics");
    let values = text.lines().filter(|line| {
        let rest = line.strip_prefix(name);
        rest.is_some_and(|rest| rest.starts_with(['{', ' ']))
    });
    let number = |line: &str| line.rsplit_once(' ')?.1.parse::<f64>().ok();
    values.filter_map(number).sum()
}

/// One of two containers behind a Service has no server: no client notices, and `service describe` and the metrics say
/// what it cost.
#[test]
fn what_an_endpoint_that_refuses_costs_can_be_seen() {
    Lab::run(|lab| {
        let [host] = lab.cluster();
        let client = host.attach("client").ns;
        for name in ["server", "idle"] {
            let container = host.bare_container(name);
            if name == "server" {
                echo(&container);
            }
            host.attach_ns(container, name, &["--label", "app=echo"]);
        }
        let to = create(&host, "half", "80:8080", "relay");
        wait_for("both are picked from", SOON, || {
            let described = host.json(&["service", "describe", "half"]);
            let backends = described["backends"].as_array().expect("a list");
            let known = backends.iter().filter(|one| one["relayed"].is_object());
            // Of each family.
            known.count() == 4
        });
        let served = |_: &u32| connect(&client, to).is_ok_and(|mut one| echoes(&mut one));
        assert_eq!((0..100).filter(served).count(), 100);
        let described = host.json(&["service", "describe", "half"]);
        let of = |container: &str| {
            let mut all = described["backends"].as_array().expect("a list").iter();
            let one = all.find(|one| {
                let address = one["address"].as_str().expect("an address");
                one["container"] == container && address.starts_with("10.")
            });
            one.expect("it is behind it")["relayed"].clone()
        };
        let (idle, server) = (of("idle"), of("server"));
        let picks = idle["picks"].as_u64().expect("a number");
        assert!(picks > 0 && idle["ejections"].as_u64() > Some(0), "{idle}");
        assert!(
            idle["failures"] == picks && idle["retries"] == picks,
            "{idle}"
        );
        assert_eq!(server["picks"], 100, "{server}");
        assert!(server["latency_us"].as_u64() > Some(0), "{server}");
        for name in ["picks", "failures", "retries", "ejections"] {
            let sum = [&idle, &server].map(|one| one[name].as_f64().expect("a number"));
            let shown = metric(&host, &format!("weave_relay_{name}_total"));
            assert!(shown == sum[0] + sum[1], "{name}: {shown}");
        }
        assert!(metric(&host, "weave_relay_latency_seconds") > 0.0);
        host.end("KILL");
    });
}
