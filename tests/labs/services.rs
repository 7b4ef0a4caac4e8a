//! Services on three hosts: virtual addresses in front of containers that come and go, without Kubernetes.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use crate::hostile::StopAtEnd;
use crate::lab::ns::Ns;
use crate::lab::traffic::wait_for;
use crate::lab::{Container, Host, Lab};
use crate::relayed::Tries;

/// How long a connection may take on a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long the mesh may take to know.
pub(crate) const SOON: Duration = Duration::from_secs(30);

/// Answers on port 8080 with its name and whom it sees; the connection then echoes.
pub(crate) fn serve(ns: &Ns, name: &str) {
    let name = name.to_owned();
    let listener = ns.inside(|| TcpListener::bind("[::]:8080").expect("the port is free"));
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let name = name.clone();
            std::thread::spawn(move || answer(stream, &name));
        }
    });
}

fn answer(mut stream: TcpStream, name: &str) -> std::io::Result<()> {
    let peer = stream.peer_addr()?.ip().to_canonical();
    stream.write_all(format!("{name} {peer}\n").as_bytes())?;
    let mut bytes = [0; 256];
    loop {
        match stream.read(&mut bytes)? {
            0 => return Ok(()),
            count => stream.write_all(&bytes[..count])?,
        }
    }
}

/// Opens a connection; who answers, and whom it sees.
fn connect(from: &Ns, to: SocketAddr) -> std::io::Result<(TcpStream, String, IpAddr)> {
    connect_within(PATIENCE, from, to)
}

pub(crate) fn connect_within(
    patience: Duration,
    from: &Ns,
    to: SocketAddr,
) -> std::io::Result<(TcpStream, String, IpAddr)> {
    let mut stream = from.inside(|| TcpStream::connect_timeout(&to, patience))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let (mut line, mut byte) = (Vec::new(), [0]);
    while line.last() != Some(&b'\n') {
        stream.read_exact(&mut byte)?;
        line.push(byte[0]);
    }
    let line = String::from_utf8(line).expect("a name and an address");
    let (name, saw) = line.trim().split_once(' ').expect("a name and an address");
    let saw = saw.parse().expect("an address");
    Ok((stream, name.to_owned(), saw))
}

pub(crate) fn echoes(stream: &mut TcpStream) -> bool {
    echo_over(stream).is_ok()
}

/// Sends four bytes and reads them back.
pub(crate) fn echo_over(stream: &mut TcpStream) -> std::io::Result<()> {
    let mut back = [0; 4];
    stream.write_all(b"ping")?;
    stream.read_exact(&mut back)?;
    match &back {
        b"ping" => Ok(()),
        other => Err(std::io::Error::other(format!("{other:?} came back"))),
    }
}

/// Connects until every one of these has answered, and nobody else.
#[track_caller]
pub(crate) fn balances(from: &Ns, to: SocketAddr, over: &[&str]) {
    let over: BTreeSet<String> = over.iter().map(|&name| name.to_owned()).collect();
    wait_for(&format!("answers of {over:?}"), SOON, || {
        let seen: BTreeSet<String> = (0..30)
            .filter_map(|_| connect(from, to).ok())
            .map(|(_, name, _)| name)
            .collect();
        seen == over
    });
}

pub(crate) fn is_refused(from: &Ns, to: SocketAddr) -> bool {
    connect(from, to).is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused)
}

/// A container with the label `app=web` that serves before anybody can pick it.
fn web(host: &Host, name: &str) -> Container {
    let ns = host.bare_container(name);
    serve(&ns, name);
    host.attach_ns(ns, name, &["--label", "app=web"])
}

/// Makes `web` on a host; its addresses.
fn create(host: &Host, more: &[&str]) -> [SocketAddr; 2] {
    let words = [
        "service",
        "create",
        "web",
        "--port",
        "80:8080",
        "--selector",
        "app=web",
    ];
    addresses(&host.json(&[&words, more].concat()))
}

/// The addresses of a Service that was made, with its port.
fn addresses(made: &serde_json::Value) -> [SocketAddr; 2] {
    [0, 1].map(|at| {
        let address = made["addresses"][at]
            .as_str()
            .expect("an address of each family");
        SocketAddr::new(address.parse().expect("an address"), 80)
    })
}

#[test]
fn a_service_is_reached_from_everywhere_and_keeps_the_client() {
    Lab::run(|lab| {
        let hosts: [Host; 3] = lab.cluster();
        let servers = ["w1", "w2", "w3"];
        let containers: Vec<Container> = hosts
            .iter()
            .zip(servers)
            .map(|(host, name)| web(host, name))
            .collect();
        let client = hosts[1].attach("client");
        let [v4, v6] = create(&hosts[0], &["--affinity", "1s"]);
        hosts[0].ok(&["service", "rm", "web"]);
        let [again, _] = create(&hosts[0], &[]);
        assert_eq!(v4, again, "a name gets its old address again");
        for from in containers.iter().chain([&client]).map(|one| &one.ns) {
            balances(from, v4, &servers);
            balances(from, v6, &servers);
        }
        for host in &hosts {
            balances(&host.ns, v4, &servers);
        }
        // The client is seen as it is, in both families, unless it is its own server.
        for _ in 0..12 {
            let (_, _, saw) = connect(&client.ns, v4).expect("an answer");
            assert_eq!(saw, IpAddr::V4(client.v4));
            let (_, _, saw) = connect(&client.ns, v6).expect("an answer");
            assert_eq!(saw, IpAddr::V6(client.v6));
        }
        let list = hosts[2].ok(&["service", "list"]);
        assert!(
            list.contains("app=web") && list.contains("6 of 6") && list.contains("h1"),
            "{list}"
        );
        let described = hosts[2].ok(&["service", "describe", "web"]);
        assert!(
            servers.iter().all(|name| described.contains(name)),
            "{described}"
        );
        // Anybody may remove it; then it is refused everywhere.
        hosts[2].ok(&["service", "rm", "web"]);
        for from in [&client.ns, &containers[0].ns, &hosts[0].ns] {
            wait_for("a refusal", SOON, || is_refused(from, v4));
        }
        for host in &hosts {
            wait_for("it is gone everywhere", SOON, || {
                host.json(&["service", "list"])["services"]
                    .as_array()
                    .is_some_and(Vec::is_empty)
            });
        }
    });
}

#[test]
fn endpoints_follow_containers_and_nodes() {
    Lab::run(|lab| {
        let hosts: [Host; 3] = lab.cluster();
        let client = hosts[0].attach("client");
        let [v4, _] = create(&hosts[0], &["--node-port", "30080"]);
        wait_for("a refusal while nobody is behind it", SOON, || {
            is_refused(&client.ns, v4)
        });
        let _first = web(&hosts[0], "w1");
        balances(&client.ns, v4, &["w1"]);
        let _far = [web(&hosts[1], "w2"), web(&hosts[2], "w3")];
        balances(&client.ns, v4, &["w1", "w2", "w3"]);
        // Every host's own address leads to it too, from another host.
        let port = SocketAddr::new(hosts[1].v4.into(), 30080);
        lab.allow_outside(hosts[1].v4);
        balances(&client.ns, port, &["w1", "w2", "w3"]);
        hosts[0].ok(&["detach", "w1"]);
        balances(&client.ns, v4, &["w2", "w3"]);
        // A dead node's endpoints go when the mesh knows.
        hosts[2].end("KILL");
        balances(&client.ns, v4, &["w2"]);
        let described = hosts[0].ok(&["service", "describe", "web"]);
        assert!(described.contains("node unreachable"), "{described}");
        hosts[2].start();
        balances(&client.ns, v4, &["w2", "w3"]);
    });
}

/// Containers that a Service names are behind it wherever they are, from when they are attached on.
#[test]
fn containers_are_behind_a_service_by_name() {
    Lab::run(|lab| {
        let hosts: [Host; 2] = lab.cluster();
        let client = hosts[1].attach("client");
        let words = ["service", "create", "named", "--port", "80:8080"];
        let by = ["--container", "w1", "--container", "w2"];
        let [v4, v6] = addresses(&hosts[0].json(&[&words[..], &by].concat()));
        wait_for("a refusal while nobody is behind it", SOON, || {
            is_refused(&client.ns, v4)
        });
        let _servers = [
            web(&hosts[0], "w1"),
            web(&hosts[1], "w2"),
            web(&hosts[1], "w3"),
        ];
        balances(&client.ns, v4, &["w1", "w2"]);
        balances(&client.ns, v6, &["w1", "w2"]);
        hosts[0].ok(&["detach", "w1"]);
        balances(&client.ns, v4, &["w2"]);
        for host in &hosts {
            let list = host.ok(&["service", "list"]);
            assert!(list.contains("containers w1, w2"), "{list}");
        }
    });
}

/// How soon a node's endpoints follow its containers on other nodes.
const FOLLOWS: Duration = Duration::from_secs(1);

/// How long it took since `begun` until something held, looking again and again without much of a pause.
#[track_caller]
fn took(begun: Instant, what: &str, mut holds: impl FnMut() -> bool) -> Duration {
    while !holds() {
        assert!(begun.elapsed() < FOLLOWS, "{what}: not within {FOLLOWS:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
    begun.elapsed()
}

/// A container is started and stopped some times, seen from another node: from the beginning of the command to the first
/// connection that is served, and to the first that is refused as nobody is behind the Service.
#[test]
fn endpoints_follow_containers_on_other_nodes_within_a_second() {
    Lab::run(|lab| {
        let hosts: [Host; 2] = lab.cluster();
        let client = hosts[1].attach("client");
        let [v4, _] = create(&hosts[0], &[]);
        // One to an endpoint that is not there any more would wait for long.
        let connects = || connect_within(Duration::from_millis(100), &client.ns, v4);
        let refuses = |error: std::io::Error| error.kind() == std::io::ErrorKind::ConnectionRefused;
        wait_for("a refusal", SOON, || connects().is_err_and(refuses));
        let (mut came, mut went) = (Vec::new(), Vec::new());
        for turn in 0..9 {
            let name = format!("w{turn}");
            let ns = hosts[0].bare_container(&name);
            serve(&ns, &name);
            let begun = Instant::now();
            let _server = hosts[0].attach_ns(ns, &name, &["--label", "app=web"]);
            came.push(took(begun, "it is in", || connects().is_ok()));
            let begun = Instant::now();
            hosts[0].ok(&["detach", &name]);
            went.push(took(begun, "it is out", || connects().is_err_and(refuses)));
        }
        for (what, mut times) in [("in", came), ("out", went)] {
            times.sort();
            let (median, longest) = (times[times.len() / 2], times[times.len() - 1]);
            println!(
                "endpoints were {what} on another node {median:.2?} after the command began, or {longest:.2?} at most"
            );
            assert!(longest <= FOLLOWS, "{what}: {times:?}");
        }
    });
}

/// The rules that come back after somebody removed them all: how long that takes at most.
const REMADE: Duration = Duration::from_secs(3);

/// Kills the node and starts it again: its rules stay meanwhile.
fn kill_and_start(hosts: &[Host; 3], client: &Ns, v4: SocketAddr) {
    hosts[0].end("KILL");
    let local = connect(client, SocketAddr::new(v4.ip(), 81));
    assert!(local.is_err(), "rules stay without the daemon");
    hosts[0].start();
    crate::lab::await_mesh(hosts);
}

/// Removes all rules by hand; how long it took until ours were back.
pub(crate) fn flush(host: &Host) -> Duration {
    let begun = Instant::now();
    host.ns.sh("nft flush ruleset");
    wait_for("the rules are back", SOON, || {
        let listed = host.ns.try_sh("nft list map inet weave-service fronts4");
        String::from_utf8_lossy(&listed.stdout).contains("10.96.")
    });
    begun.elapsed()
}

/// Under constant load the daemon of the client's host is killed and started again, the rules are flushed by hand and
/// endpoints come: no old connection breaks, and no new one fails, not even while there are no rules.
#[test]
fn connections_stand_through_changes_restarts_and_flushes() {
    Lab::run(|lab| {
        let hosts: [Host; 3] = lab.cluster();
        let client = hosts[0].attach("client");
        let servers = ["w1", "w2", "w3"];
        let _containers: Vec<Container> = hosts
            .iter()
            .zip(servers)
            .map(|(host, name)| web(host, name))
            .collect();
        let [v4, _] = create(&hosts[1], &[]);
        balances(&client.ns, v4, &servers);
        let mut streams: Vec<TcpStream> = (0..12)
            .map(|_| connect(&client.ns, v4).expect("an answer").0)
            .collect();
        let mut check = |when: &str| {
            let all = streams.iter_mut().all(echoes);
            assert!(all, "a connection broke when {when}");
        };
        let tries = Tries::default();
        std::thread::scope(|scope| {
            let _stop = StopAtEnd(&tries.over);
            scope.spawn(|| tries.go_on_with(|| connect(&client.ns, v4).map(drop)));
            tries.some_more();
            for _ in 0..3 {
                kill_and_start(&hosts, &client.ns, v4);
                check("the daemon was killed and started again");
                tries.some_more();
            }
            tries.none_failed("while the kernel went on by itself");
            for _ in 0..3 {
                let took = flush(&hosts[0]);
                println!("all rules were back {took:.2?} after somebody flushed them");
                assert!(took < REMADE, "the rules took {took:?}");
                check("the rules were removed and came back");
                tries.some_more();
            }
            tries.none_failed("while there were no rules");
            for (turn, host) in hosts.iter().enumerate() {
                let extra = web(host, &format!("extra{turn}"));
                wait_for("the new one is picked", SOON, || {
                    connect(&client.ns, v4).is_ok_and(|(_, name, _)| name == extra.name)
                });
            }
            tries.none_failed("while endpoints came");
            check("endpoints came");
        });
    });
}

#[test]
fn odd_services_are_refused_and_say_why() {
    Lab::run(|lab| {
        let hosts: [Host; 2] = lab.cluster();
        let host = &hosts[0];
        create(host, &["--node-port", "30080"]);
        let says = |words: &[&str], cause: &str| {
            let said = host.ctl(&[&["service"], words].concat());
            assert!(
                said.code != 0 && said.err.contains(cause),
                "{words:?}: {said:?}"
            );
        };
        let by = ["--selector", "app=web"];
        says(
            &[&["create", "web", "--port", "80"], &by[..]].concat(),
            "exists already",
        );
        says(
            &[&["create", "Web", "--port", "80"], &by[..]].concat(),
            "service name",
        );
        says(
            &[&["create", "a", "--port", "0"], &by[..]].concat(),
            "is not a port",
        );
        says(
            &[&["create", "a", "--port", "80", "--port", "80:81"], &by[..]].concat(),
            "given twice",
        );
        says(
            &[
                &["create", "a", "--port", "80", "--node-port", "30080"],
                &by[..],
            ]
            .concat(),
            "node port",
        );
        says(
            &[
                &["create", "a", "--port", "80", "--node-port", "22"],
                &by[..],
            ]
            .concat(),
            "30000 to 32767",
        );
        says(&["create", "a", "--port", "80"], "--selector");
        says(&["rm", "nothing"], "there is no service");
    });
}

#[test]
fn addresses_that_can_be_nobody_s_are_left_out_and_the_others_serve() {
    Lab::run(|lab| {
        let hosts: [Host; 2] = lab.cluster();
        let host = &hosts[0];
        let server = web(host, "w1");
        let good = format!("{}:8080", server.v4);
        let node = format!("{}:22", host.v4);
        host.ok(&[
            "service",
            "create",
            "odd",
            "--port",
            "80",
            "--endpoint",
            "127.0.0.1:80",
            "--endpoint",
            &node,
            "--endpoint",
            &good,
        ]);
        wait_for("the reasons are shown", SOON, || {
            let described = hosts[1].ctl(&["service", "describe", "odd"]).out;
            described.contains("127.0.0.1:80: it is a loopback")
                && described.contains("it is an address of a node")
        });
        let address = host.json(&["service", "describe", "odd"])["addresses"][0]
            .as_str()
            .expect("an address")
            .to_owned();
        let client = hosts[1].attach("client");
        balances(
            &client.ns,
            SocketAddr::new(address.parse().expect("an address"), 80),
            &["w1"],
        );
    });
}

/// How many connections the relay of a host has picked for, by what it shows.
fn picks(host: &Host) -> u64 {
    let described = host.json(&["service", "describe", "web"]);
    let backends = described["backends"].as_array().expect("a list");
    let each = backends.iter().map(|one| one["relayed"]["picks"].as_u64());
    each.flatten().sum()
}

/// Waits for the end of a connection whose other end is gone.
fn is_broken(stream: &mut TcpStream) {
    match stream.read(&mut [0]) {
        Ok(0) => {}
        Ok(_) => panic!("nothing was sent"),
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset),
    }
}

#[test]
fn a_relayed_service_keeps_the_client_and_is_the_kernel_s_while_its_node_is_down() {
    Lab::run(|lab| {
        let hosts: [Host; 2] = lab.cluster();
        let client = hosts[0].attach("client");
        let _containers = [web(&hosts[0], "w1"), web(&hosts[1], "w2")];
        // The others that are the relay's prefer the endpoint of this host.
        let [v4, v6] = create(&hosts[0], &["--balance", "maglev", "--node-port", "30080"]);
        for from in [&client.ns, &hosts[0].ns] {
            balances(from, v4, &["w1", "w2"]);
            balances(from, v6, &["w1", "w2"]);
        }
        for _ in 0..10 {
            let (_, _, saw) = connect(&client.ns, v4).expect("an answer");
            assert_eq!(saw, IpAddr::V4(client.v4));
            let (_, _, saw) = connect(&client.ns, v6).expect("an answer");
            assert_eq!(saw, IpAddr::V6(client.v6));
        }
        for loopback in ["127.0.0.1:30080", "[::1]:30080"] {
            let to = loopback.parse().expect("an address");
            balances(&hosts[0].ns, to, &["w1", "w2"]);
        }
        assert!(picks(&hosts[0]) >= 20);
        let shown = hosts[0].ok(&["service", "describe", "web"]);
        assert!(shown.contains("relay"), "{shown}");

        let (mut carried, ..) = connect(&client.ns, v4).expect("an answer");
        let killed = Instant::now();
        hosts[0].end("KILL");
        is_broken(&mut carried);
        let seen = killed.elapsed();
        // The kernel picks by lot, and without its node a host has no way to the other's endpoint.
        let short = Duration::from_secs(1);
        let served = (0..40).find_map(|_| connect_within(short, &client.ns, v4).ok());
        let (mut kept, name, _) = served.expect("the kernel serves at once");
        assert_eq!(name, "w1");
        let started = Instant::now();
        hosts[0].start();
        wait_for("the relay serves again", SOON, || {
            connect_within(short, &client.ns, v4).is_ok() && picks(&hosts[0]) > 0
        });
        let back = started.elapsed();
        println!(
            "the relay's connection broke {seen:.2?} after its node was killed, and new ones are its own {back:.2?} after the start"
        );
        assert!(seen <= short && back <= short, "{seen:.2?} and {back:.2?}");
        crate::lab::await_mesh(&hosts);
        balances(&client.ns, v4, &["w1", "w2"]);
        assert!(echoes(&mut kept), "what the kernel had stays the kernel's");
    });
}
