//! A large mesh that does not exist, on the real page: what a node does with the reports of all members, each second.
//!
//! `crowd CONTAINERS FLOWS VIEWERS` spreads them over hosts of fifty containers each, with a Service for every twenty, and
//! prints a link for each viewer, then serves until it is ended. Every second all reports are parsed, as they come from
//! other nodes, made one picture, compared with the last one and sent; half of the flows have moved. `./run bench page`
//! measures it from outside.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::net::TcpListener;
use weave_dashboard::graph::{Facts, Member, picture};
use weave_dashboard::{Dashboard, Identity};
use weave_model::api::{
    Backend, BackendState, Capture, FlowCounts, PeerState, Protocol, Report, ReportContainer,
    ReportFlow, ReportLink, ServiceInfo, TcpSeen, Traffic, Verdict,
};
use weave_model::{DeclaredPort, MtuReason, NodeId, PathMtu, ServiceSpec, Suite};

/// Containers of a host.
const PER_HOST: u32 = 50;

/// Containers for each Service.
const PER_SERVICE: u32 = 20;

/// How large the mesh is.
#[derive(Clone, Copy)]
struct Size {
    containers: u32,
    flows: u32,
}

impl Size {
    const fn hosts(self) -> u32 {
        self.containers.div_ceil(PER_HOST)
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> std::io::Result<()> {
    let numbers: Vec<u32> = std::env::args()
        .skip(1)
        .filter_map(|word| word.parse().ok())
        .collect();
    let [containers, flows, viewers] = numbers[..] else {
        return Err(std::io::Error::other("crowd CONTAINERS FLOWS VIEWERS"));
    };
    let size = Size { containers, flows };
    let page = Dashboard::new(Identity {
        node: node(0),
        key: [7; 32],
    });
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let at = listener.local_addr()?;
    for viewer in 0..viewers {
        let (code, _) = page.invite([viewer as u8; 16]);
        println!("http://{at}/#code={code}");
    }
    let shown = page.clone();
    tokio::spawn(async move {
        let mut second = 0;
        loop {
            shown.publish(picture(facts(size, second)));
            second += 1;
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    });
    page.serve(listener).await
}

fn node(host: u32) -> NodeId {
    let mut bytes = [0; 32];
    bytes[..4].copy_from_slice(&host.wrapping_add(1).wrapping_mul(0x9e37_79b1).to_be_bytes());
    NodeId::from_bytes(bytes)
}

/// The address of a container: a /24 for each host.
fn ip(container: u32) -> Ipv4Addr {
    let (host, place) = (container / PER_HOST, container % PER_HOST);
    Ipv4Addr::from(0x0a20_0000 + (host << 8) + place + 2)
}

fn facts(size: Size, second: u64) -> Facts {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let at = now.map_or(0, |now| now.as_secs());
    let member = |host: u32| Member {
        id: node(host),
        name: name(&format!("host-{host}")),
        state: if host == 0 {
            PeerState::Myself
        } else {
            PeerState::Connected
        },
        endpoints: vec![SocketAddr::from(([192, 0, 2, host as u8 + 1], 6783))],
        blocks: Vec::new(),
        report: read(&told(size, host, second, at)),
    };
    Facts {
        at,
        me: node(0),
        verdict: Verdict::Ok,
        summary: format!("{} members, all connected", size.hosts()),
        problems: Vec::new(),
        range: None,
        services: (0..size.containers / PER_SERVICE)
            .map(|number| service(number, at))
            .collect(),
        members: (0..size.hosts()).map(member).collect(),
    }
}

/// As a node reads what another one told.
fn read(text: &[u8]) -> Result<Report, String> {
    serde_json::from_slice(text).map_err(|error| error.to_string())
}

/// What a host tells, as it crosses the wire.
fn told(size: Size, host: u32, second: u64, at: u64) -> Vec<u8> {
    let own = host * PER_HOST..size.containers.min((host + 1) * PER_HOST);
    let peers = (0..size.hosts()).filter(|peer| *peer != host);
    let report = Report {
        version: "0.1.0".to_owned(),
        containers: own.map(|number| container(number, at)).collect(),
        links: peers.map(|peer| link(peer, second)).collect(),
        flows: (0..size.flows)
            .filter(|flow| flow % size.hosts() == host)
            .map(|number| flow(size, number, second, at))
            .collect(),
        capture: Capture {
            accounting: true,
            interval_ms: 1000,
            ..Capture::default()
        },
        ..Report::default()
    };
    serde_json::to_vec(&report).expect("names and numbers are JSON")
}

fn container(number: u32, at: u64) -> ReportContainer {
    let label = ("app", format!("app-{}", number / PER_SERVICE));
    ReportContainer {
        name: name(&format!("app-{}-{number}", number / PER_SERVICE)),
        ifname: name("eth0"),
        network: name("default"),
        ip: ip(number),
        ip6: None,
        labels: BTreeMap::from([(name(label.0), name(&label.1))]),
        attached_at: at - at % 86_400,
        alive: true,
        inside: None,
        runtime: None,
    }
}

fn link(peer: u32, second: u64) -> ReportLink {
    ReportLink {
        peer: node(peer),
        state: PeerState::Connected,
        rtt_us: Some(300 + (u64::from(peer) * 7 + second) as u32 % 40),
        loss_permille: Some(0),
        via: None,
        mtu: Some(PathMtu {
            bytes: 1500,
            reason: MtuReason::Probed,
        }),
        suite: Some(Suite::ChaCha20Poly1305),
        traffic: Traffic {
            sent_bytes: second * 50_000,
            sent_packets: second * 50,
            received_bytes: second * 50_000,
            received_packets: second * 50,
        },
    }
}

/// From a container of the host that tells it to one somewhere: every fourth through a Service.
fn flow(size: Size, number: u32, second: u64, at: u64) -> ReportFlow {
    let host = number % size.hosts();
    let step = number / size.hosts();
    let from = (host * PER_HOST + step % PER_HOST).min(size.containers - 1);
    let to =
        (from + 1 + number.wrapping_mul(2_654_435_761) % (size.containers - 1)) % size.containers;
    let services = (size.containers / PER_SERVICE).max(1);
    let via = number
        .is_multiple_of(4)
        .then(|| SocketAddr::new(front(to / PER_SERVICE % services), 80));
    let moves = (u64::from(number) + second).is_multiple_of(2);
    let rate = if moves {
        1000 + u64::from(number % 97) * 1000
    } else {
        0
    };
    let failing = number % 400 == 1;
    let counts = FlowCounts {
        connections: 1 + second,
        open: 1,
        refused: u64::from(failing) * second,
        sent_bytes: second / 2 * 1000,
        sent_packets: second,
        received_bytes: second / 2 * 9000,
        received_packets: second,
        sent_rate: rate / 10,
        received_rate: rate,
        failing,
        last_at: at,
        tcp: Some(TcpSeen {
            sockets: 1,
            rtt_us: Some(300 + number % 50),
            retransmits: 0,
        }),
        ..FlowCounts::default()
    };
    ReportFlow {
        from: ip(from).into(),
        to: ip(to).into(),
        protocol: Protocol::Tcp,
        // So that no two have the same ends.
        port: 8000 + (number % 8000) as u16,
        via,
        counts,
    }
}

fn front(service: u32) -> IpAddr {
    Ipv4Addr::from(0x0a60_0001 + service).into()
}

fn service(number: u32, at: u64) -> ServiceInfo {
    let behind = number * PER_SERVICE..(number + 1) * PER_SERVICE;
    let backend = |container: u32| Backend {
        address: SocketAddr::new(ip(container).into(), 8080),
        container: Some(name(&format!("app-{number}-{container}"))),
        node: Some(name(&format!("host-{}", container / PER_HOST))),
        state: BackendState::Ready,
        why: None,
        relayed: None,
    };
    ServiceInfo {
        name: name(&format!("app-{number}")),
        addresses: vec![front(number)],
        spec: ServiceSpec {
            ports: vec![DeclaredPort {
                port: 80,
                target: 8080,
                protocol: Default::default(),
                node_port: None,
            }],
            ..ServiceSpec::default()
        },
        node: name("host-0"),
        made_at: at - at % 86_400,
        also_made_on: Vec::new(),
        backends: behind.map(backend).collect(),
        refused: Vec::new(),
        last_resort: false,
    }
}

/// A name of any kind.
fn name<T: std::str::FromStr>(text: &str) -> T
where
    T::Err: std::fmt::Debug,
{
    text.parse().expect("it is made of letters and digits")
}
