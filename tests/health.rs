//! Health-check node ports, asked over HTTP in a namespace with a real engine. Needs root.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use weave::health::{serve, serve_node_ports};
use weave::obstacle::Obstacle;
use weave_linux::netns::{Netns, run_in};
use weave_model::{
    AddressKind, Endpoint, Protocol, Service, ServiceKind, ServicePort, Slice, SlicePort,
    TrafficPolicy,
};
use weave_proxy::driver::Engine;
use weave_proxy::facts::Facts;
use weave_proxy::sources::Change;

/// The health-check node port.
const PORT: u16 = 32_000;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A namespace with an engine, the servers under test, and the obstacles that they told of.
struct Lab {
    netns: Netns,
    engine: Arc<Engine>,
    told: Arc<Mutex<Vec<Obstacle>>>,
    mutant: Mutant,
}

/// What is heard wrong of endpoints; a case that is about it must fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mutant {
    None,
    /// One that is going counts as any other.
    GoingCounts,
    /// Those of other nodes count too.
    OthersCount,
}

impl Mutant {
    fn hears(self, endpoint: Endpoint) -> Endpoint {
        match self {
            Self::None => endpoint,
            Self::GoingCounts => Endpoint {
                ready: endpoint.ready || endpoint.terminating,
                ..endpoint
            },
            Self::OthersCount => Endpoint {
                node: Some("n1".to_owned()),
                ..endpoint
            },
        }
    }

    /// How long something is waited for; a mutant waits for what never comes.
    const fn patience(self) -> Duration {
        match self {
            Self::None => Duration::from_secs(30),
            _ => Duration::from_secs(3),
        }
    }
}

impl Lab {
    fn new() -> Self {
        Self::with(Mutant::None)
    }

    fn with(mutant: Mutant) -> Self {
        let netns = Netns::create().expect("root makes namespaces");
        let up = || {
            std::process::Command::new("ip")
                .args(["link", "set", "lo", "up"])
                .status()
        };
        assert!(run_in(&netns, up).unwrap().unwrap().success());
        let engine = Arc::new(run_in(&netns, Engine::start).unwrap().unwrap());
        engine.report(vec![Change::Facts(Facts {
            node: "n1".to_owned(),
            ..Facts::default()
        })]);
        Self {
            netns,
            engine,
            told: Arc::default(),
            mutant,
        }
    }

    /// Runs the servers on a thread of their own in the namespace, for as long as the test does.
    fn start(&self) {
        let (engine, told) = (Arc::clone(&self.engine), Arc::clone(&self.told));
        let serve_all = async move {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:10256")
                .await
                .unwrap();
            let tell = |_: u16, obstacle: Option<_>| told.lock().unwrap().extend(obstacle);
            tokio::join!(
                serve(listener, engine.clone()),
                serve_node_ports(engine, tell)
            );
        };
        let body = move || {
            let runtime = tokio::runtime::Builder::new_current_thread();
            runtime_of(runtime).block_on(serve_all);
        };
        // A thread made there stays there.
        run_in(&self.netns, || std::thread::spawn(body)).unwrap();
    }

    fn report(&self, endpoints: Vec<Endpoint>) {
        let endpoints = endpoints.into_iter().map(|one| self.mutant.hears(one));
        self.engine
            .report(vec![Change::Service(local()), slice(endpoints.collect())]);
    }

    /// Status, weight and body of an answer; nothing if nobody listens.
    fn get(&self, port: u16, path: &str) -> Option<(u16, Option<String>, Value)> {
        let at = SocketAddr::from(([127, 0, 0, 1], port));
        let mut stream = run_in(&self.netns, || TcpStream::connect(at))
            .unwrap()
            .ok()?;
        stream
            .set_read_timeout(Some(Duration::from_secs(30)))
            .unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nhost: node\r\n\r\n").ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        let (head, body) = text.split_once("\r\n\r\n")?;
        let status = head.split(' ').nth(1)?.parse().unwrap();
        let weight = head
            .lines()
            .find_map(|line| line.strip_prefix("x-load-balancing-endpoint-weight: "));
        Some((
            status,
            weight.map(str::to_owned),
            serde_json::from_str(body).unwrap(),
        ))
    }

    /// Waits until the health-check node port says this.
    fn until(&self, status: u16, local: usize) -> Value {
        let deadline = Instant::now() + self.mutant.patience();
        loop {
            let said = self.get(PORT, "/");
            if let Some((is, weight, body)) = &said
                && *is == status
                && weight.as_deref() == Some(&local.to_string())
            {
                return body.clone();
            }
            assert!(
                Instant::now() < deadline,
                "not {status} with {local}: {said:?}"
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

fn runtime_of(mut builder: tokio::runtime::Builder) -> tokio::runtime::Runtime {
    builder.enable_all().build().unwrap()
}

fn local() -> Service {
    let port = ServicePort {
        name: String::new(),
        protocol: Protocol::Tcp,
        port: 80,
        node_port: Some(30_080),
    };
    Service {
        kind: ServiceKind::LoadBalancer,
        external: TrafficPolicy::Local,
        health_port: Some(PORT),
        ..Service::new("shop/web".parse().unwrap(), [ip("10.96.0.1")], [port])
    }
}

fn slice(endpoints: Vec<Endpoint>) -> Change {
    Change::Slice(Slice {
        name: "one".to_owned(),
        service: "shop/web".parse().unwrap(),
        kind: AddressKind::V4,
        ports: vec![SlicePort {
            name: String::new(),
            protocol: Protocol::Tcp,
            port: Some(8080),
        }],
        endpoints,
    })
}

fn on(node: &str, address: &str) -> Endpoint {
    Endpoint::ready(ip(address), Some(node.to_owned()))
}

/// Two ready endpoints of this node count; then one that is going, which serves on, does not.
fn counts_local_ready_endpoints(lab: &Lab) {
    lab.start();
    lab.report(vec![
        on("n1", "10.32.0.2"),
        on("n1", "10.32.0.3"),
        on("n2", "10.40.0.2"),
    ]);
    let body = lab.until(200, 2);
    let expected = json!({
        "service": { "namespace": "shop", "name": "web" },
        "localEndpoints": 2,
        "serviceProxyHealthy": true,
    });
    assert_eq!(body, expected);
    let going = Endpoint {
        ready: false,
        terminating: true,
        ..on("n1", "10.32.0.2")
    };
    lab.report(vec![going, on("n2", "10.40.0.2")]);
    assert_eq!(lab.until(503, 0)["localEndpoints"], 0);
}

#[test]
fn healthcheck_node_port_fails_its_case_where_endpoints_count_that_must_not() {
    for (mutant, says) in [
        (Mutant::GoingCounts, "not 503 with 0"),
        (Mutant::OthersCount, "not 200 with 2"),
    ] {
        let lab = Lab::with(mutant);
        let case = AssertUnwindSafe(|| counts_local_ready_endpoints(&lab));
        let why = catch_unwind(case).expect_err("the case fails");
        let why = why.downcast_ref::<String>().cloned().unwrap_or_default();
        assert!(why.contains(says), "{mutant:?}: {why}");
    }
}

#[test]
fn healthcheck_node_port_counts_local_ready_endpoints_and_fails_if_only_terminating_ones_are_left()
{
    let lab = Lab::new();
    counts_local_ready_endpoints(&lab);
    lab.report(vec![on("n1", "10.32.0.3")]);
    lab.until(200, 1);
    // Without policy Local nobody has to know which nodes have endpoints.
    let cluster = Service {
        external: TrafficPolicy::Cluster,
        ..local()
    };
    lab.engine.report(vec![Change::Service(cluster)]);
    let deadline = Instant::now() + Duration::from_secs(30);
    while lab.get(PORT, "/").is_some() {
        assert!(Instant::now() < deadline, "the port is still served");
    }
    // The policy of a Service may change back, and its port may be another one then.
    lab.engine.report(vec![Change::Service(local())]);
    lab.until(200, 1);
    let moved = Service {
        health_port: Some(PORT + 1),
        ..local()
    };
    lab.engine.report(vec![Change::Service(moved)]);
    let deadline = Instant::now() + Duration::from_secs(30);
    while lab.get(PORT, "/").is_some() || lab.get(PORT + 1, "/").is_none() {
        assert!(Instant::now() < deadline, "the port does not follow");
    }
}

#[test]
fn a_health_check_node_port_that_is_taken_is_told_once_and_served_when_it_is_free() {
    let lab = Lab::new();
    let taken = run_in(&lab.netns, || TcpListener::bind("0.0.0.0:32000"))
        .unwrap()
        .unwrap();
    lab.start();
    lab.report(vec![on("n1", "10.32.0.2")]);
    let deadline = Instant::now() + Duration::from_secs(30);
    while lab.told.lock().unwrap().is_empty() {
        assert!(Instant::now() < deadline, "nobody told");
        std::thread::sleep(Duration::from_millis(20));
    }
    drop(taken);
    lab.until(200, 1);
    let told = lab.told.lock().unwrap();
    assert!(
        told.len() == 1 && told[0].cause.contains("shop/web"),
        "{told:?}"
    );
}

#[test]
fn a_node_that_stops_is_alive_but_takes_no_more() {
    let lab = Lab::new();
    lab.start();
    let deadline = Instant::now() + Duration::from_secs(30);
    while lab
        .get(10_256, "/healthz")
        .is_none_or(|(status, ..)| status != 200)
    {
        assert!(Instant::now() < deadline, "it is never healthy");
    }
    lab.engine.drain(Duration::ZERO);
    let (status, _, body) = lab.get(10_256, "/healthz").unwrap();
    assert_eq!((status, &body["nodeEligible"]), (503, &json!(false)));
    assert_eq!(lab.get(10_256, "/livez").unwrap().0, 200);
}

/// More than may be open at a time say nothing; those who ask get their answers nevertheless.
#[test]
fn whoever_says_nothing_keeps_nobody_from_an_answer() {
    let lab = Lab::new();
    lab.start();
    lab.report(vec![on("n1", "10.32.0.2")]);
    lab.until(200, 1);
    let silent = || {
        (0..200)
            .map(|_| TcpStream::connect(("127.0.0.1", PORT)).unwrap())
            .collect()
    };
    let silent: Vec<TcpStream> = run_in(&lab.netns, silent).unwrap();
    lab.until(200, 1);
    drop(silent);
}
