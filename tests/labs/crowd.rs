//! More nodes than keep sessions with one another: sessions with neighbours only, the others made when packets ask.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::broadcast::{everybody_hears, listeners};
use crate::idle::{cpu_time, resident_kib};
use crate::lab::node::WEAVECTL;
use crate::lab::traffic::ping;
use crate::lab::{Container, Host, Lab, await_mesh};

const NODES: usize = 20;
/// How long after the first begins to join each must see all.
const ALL_SEEN: Duration = Duration::from_secs(10);
/// How long an idle node's time is taken.
const IDLE: Duration = Duration::from_secs(5);

/// Twenty nodes of one machine that join at once: all know all within seconds; one packet to anybody is answered, though
/// there was no session with most; what one container says to all is heard once by each; each takes at most 40 MiB.
#[test]
fn twenty_nodes_know_one_another() {
    Lab::run(|lab| {
        let hosts: Vec<Host> = (1..=NODES)
            .map(|n| lab.host_unwatched(&format!("h{n}"), n as u8))
            .collect();
        hosts.iter().for_each(Host::start);
        hosts[0].ok(&["init"]);
        let token = hosts[0].ok(&["token", "create", "--uses", "100"]);
        let begun = Instant::now();
        let join = |host: &Host| {
            let socket = host.socket();
            let words = [
                "--socket",
                &socket.display().to_string(),
                "join",
                token.trim(),
            ];
            Command::new(WEAVECTL)
                .args(words)
                .stdout(Stdio::null())
                .spawn()
                .expect("it runs")
        };
        let joins: Vec<Child> = hosts[1..].iter().map(join).collect();
        for mut join in joins {
            assert!(
                join.wait().expect("it ends").success(),
                "a node could not join"
            );
        }
        let joined = begun.elapsed();
        await_mesh(&hosts);
        let saw = begun.elapsed();
        println!("{NODES} nodes joined after {joined:.1?}, and each saw all after {saw:.1?}");
        assert!(saw <= ALL_SEEN, "each saw all after {saw:.1?}");

        let containers: Vec<Container> = hosts
            .iter()
            .map(|host| host.attach(&format!("c-{}", host.name)))
            .collect();
        for (from, to) in (0..NODES).map(|at| (at, (at + 7) % NODES)) {
            ping(&containers[from].ns, containers[to].v4.into(), 900);
        }
        for other in &containers[1..] {
            ping(&containers[0].ns, other.v6.into(), 56);
        }
        let inside = listeners(&containers);
        for speaker in [0, 7, NODES - 1] {
            everybody_hears(&containers, &inside, speaker);
        }
        measure(&hosts);
    });
}

fn measure(hosts: &[Host]) {
    let pids: Vec<u32> = hosts.iter().map(Host::pid).collect();
    let before: Vec<Duration> = pids.iter().map(|pid| cpu_time(*pid)).collect();
    std::thread::sleep(IDLE);
    let used = pids
        .iter()
        .zip(before)
        .map(|(pid, before)| cpu_time(*pid) - before);
    let most = used.max().unwrap_or_default();
    let resident = pids
        .iter()
        .map(|pid| resident_kib(*pid))
        .max()
        .unwrap_or_default();
    println!("at most {most:?} of a core in {IDLE:?}, and {resident} KiB");
    assert!(resident <= 40 << 10, "{resident} KiB");
}
