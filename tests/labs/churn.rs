//! Endpoints that come and go a thousand times under constant load, while the node is killed and started again and somebody
//! flushes its rules.
//!
//! Two containers are two hundred endpoints, a port each. An endpoint that says it is not well is left out after the
//! next check and still serves meanwhile, as one that is about to go: whoever gets it is served, so a connection that
//! fails was sent to nobody.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crate::hostile::StopAtEnd;
use crate::lab::ns::Ns;
use crate::lab::traffic::wait_for;
use crate::lab::{Container, Host, Lab};
use crate::relayed::Tries;
use crate::services::{SOON, echo_over, echoes, flush};

/// The endpoints of each container: ports from here on.
const FIRST: u16 = 9000;
const MANY: u16 = 100;
/// How often an endpoint must have come, and how often one must have gone.
const TURNS: usize = 1000;
/// One endpoint changes its mind so often: each of them a little more seldom than it is checked.
const PACE: Duration = Duration::from_millis(6);
/// How long a connection may take on a machine that is busy, while its node starts.
const PATIENCE: Duration = Duration::from_secs(15);
/// For all of it.
const END: Duration = Duration::from_secs(150);

/// Whether each endpoint says that it is well.
type Moods = Vec<Arc<AtomicBool>>;

/// Echoes at each port, and answers checks.
fn serve(ns: &Ns) -> Moods {
    let one = |port| {
        let well = Arc::new(AtomicBool::new(true));
        let listener = ns.inside(|| TcpListener::bind(("0.0.0.0", port)).expect("it is free"));
        let mood = Arc::clone(&well);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let mood = Arc::clone(&mood);
                std::thread::spawn(move || answer(stream, &mood));
            }
        });
        well
    };
    (FIRST..FIRST + MANY).map(one).collect()
}

fn answer(mut stream: TcpStream, well: &AtomicBool) -> std::io::Result<()> {
    let mut bytes = [0; 1024];
    loop {
        let count = stream.read(&mut bytes)?;
        if bytes[..count].starts_with(b"GET") {
            let status = if well.load(Relaxed) {
                "200 OK"
            } else {
                "503 No"
            };
            let close = "content-length: 0\r\nconnection: close";
            return stream.write_all(format!("HTTP/1.1 {status}\r\n{close}\r\n\r\n").as_bytes());
        }
        match count {
            0 => return Ok(()),
            count => stream.write_all(&bytes[..count])?,
        }
    }
}

fn connect(from: &Ns, to: SocketAddr) -> std::io::Result<TcpStream> {
    let stream = from.inside(|| TcpStream::connect_timeout(&to, PATIENCE))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// A Service of all endpoints, which are checked each second; its address.
fn create(host: &Host, containers: &[Container]) -> SocketAddr {
    let ports = || FIRST..FIRST + MANY;
    let endpoints = containers
        .iter()
        .flat_map(|one| ports().map(|port| format!("{}:{port}", one.v4)));
    let endpoints: Vec<String> = endpoints.collect();
    let check = "http:/,interval=1s,rise=1,fall=1";
    let mut words = vec![
        "service", "create", "web", "--port", "80", "--health", check,
    ];
    for endpoint in &endpoints {
        words.extend(["--endpoint", endpoint]);
    }
    let made = host.json(&words);
    let address = made["addresses"][0].as_str().expect("an address");
    SocketAddr::new(address.parse().expect("an address"), 80)
}

/// Has one endpoint after the other change its mind, so that about half of them are well at any time.
fn change_moods(moods: &Moods, over: &AtomicBool) {
    for mood in moods.iter().step_by(2) {
        mood.store(false, Relaxed);
    }
    // Not for ever: what fails meanwhile is to be told.
    let end = Instant::now() + END;
    let turns = moods.iter().cycle();
    for mood in turns.take_while(|_| !over.load(Relaxed) && Instant::now() < end) {
        mood.fetch_xor(true, Relaxed);
        std::thread::sleep(PACE);
    }
}

/// How often endpoints came and went, as a node shows them.
#[derive(Default)]
struct Seen {
    states: BTreeMap<String, bool>,
    come: usize,
    gone: usize,
}

impl Seen {
    fn look(&mut self, host: &Host) {
        let said = host.ctl(&["service", "describe", "web", "-o", "json"]);
        // Nobody answers while the node is down.
        let Ok(shown) = serde_json::from_str::<serde_json::Value>(&said.out) else {
            return;
        };
        for one in shown["backends"].as_array().expect("a list") {
            let is_used = match one["state"].as_str() {
                Some("ready") => true,
                Some("failing") => false,
                _ => continue,
            };
            let address = one["address"].as_str().expect("an address").to_owned();
            match self.states.insert(address, is_used) {
                Some(was) if was != is_used && is_used => self.come += 1,
                Some(was) if was != is_used => self.gone += 1,
                _ => {}
            }
        }
    }

    /// Looks until so many have come and so many have gone.
    fn look_until(&mut self, host: &Host, turns: usize, begun: Instant) {
        while self.come < turns || self.gone < turns {
            let late = begun.elapsed() > END;
            assert!(!late, "{} came and {} went so far", self.come, self.gone);
            self.look(host);
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// How many endpoints the kernel picks from.
fn picked_from(host: &Host) -> usize {
    let listed = host.ns.sh("nft list map inet weave-service picks4");
    listed.matches(". tcp .").count()
}

fn kill_and_start(hosts: &[Host; 2]) {
    hosts[0].kill();
    hosts[0].start();
    crate::lab::await_mesh(hosts);
}

#[test]
fn a_thousand_endpoints_come_and_go_and_no_connection_breaks() {
    Lab::run(|lab| {
        let hosts: [Host; 2] = lab.cluster();
        let client = hosts[0].attach("client").ns;
        let spaces = [0, 1].map(|at| hosts[at].bare_container(&format!("w{at}")));
        let moods: Moods = spaces.iter().flat_map(serve).collect();
        let containers =
            [0, 1].map(|at| hosts[at].attach_ns(spaces[at].clone(), &format!("w{at}"), &[]));
        let v4 = create(&hosts[0], &containers);
        let all = moods.len();
        wait_for("all are used", SOON, || {
            let listed = hosts[0].ns.try_sh("nft list map inet weave-service picks4");
            listed.status.success() && picked_from(&hosts[0]) == all
        });
        let connected = |_| connect(&client, v4).expect("a connection");
        let mut streams: Vec<TcpStream> = (0..24).map(connected).collect();
        let mut check = |when: &str| {
            assert!(
                streams.iter_mut().all(echoes),
                "a connection broke when {when}"
            );
        };
        check("nothing happened");
        let (tries, begun, mut seen) = (Tries::default(), Instant::now(), Seen::default());
        let serve = || echo_over(&mut connect(&client, v4)?);
        std::thread::scope(|scope| {
            let _stop = StopAtEnd(&tries.over);
            scope.spawn(|| tries.go_on_with(serve));
            scope.spawn(|| change_moods(&moods, &tries.over));
            seen.look_until(&hosts[0], TURNS / 4, begun);
            check("endpoints came and went");
            kill_and_start(&hosts);
            check("the daemon was killed and started again");
            seen.look_until(&hosts[0], TURNS / 2, begun);
            tries.none_failed("before any rule was flushed");
            tries.some_more();
            flush(&hosts[0]);
            check("the rules were removed and came back");
            tries.some_more();
            tries.none_failed("while there were no rules");
            seen.look_until(&hosts[0], TURNS, begun);
            tries.some_more();
            tries.none_failed("while endpoints came and went");
        });
        check("a thousand endpoints had come and gone");
        println!(
            "{} came and {} went in {:.1?}",
            seen.come,
            seen.gone,
            begun.elapsed()
        );
        let well = |moods: &Moods| moods.iter().filter(|mood| mood.load(Relaxed)).count();
        wait_for("the kernel has those that are well", SOON, || {
            picked_from(&hosts[0]) == well(&moods)
        });
    });
}
