//! What the first packet of a connection costs, by how many Services there are: `first_packet CONNECTIONS COUNT...` prints
//! one line of JSON for each COUNT, and one for a connection without any Service (0).
//!
//! Three namespaces of its own, which end with it: a client, a host with the engine in the kernel, and behind it a server
//! that has the addresses of all endpoints. What is measured is how long `connect` takes, from a container's side, to
//! Services drawn at random, so that neither one element nor one cache line is looked up again and again.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use weave_linux::netns::{Netns, run_in};
use weave_model::{AddressKind, Endpoint, Protocol, Service, ServicePort, Slice, SlicePort};
use weave_proxy::facts::Facts;
use weave_proxy::kernel::Kernel;
use weave_proxy::sources::{Change, Sources};

/// Endpoints of each Service.
const ENDPOINTS: u32 = 25;
/// Where the server listens.
const SERVER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 77, 0, 1)), 8080);

type Done<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

fn main() -> ExitCode {
    let mut numbers = std::env::args()
        .skip(1)
        .filter_map(|word| word.parse().ok());
    let (Some(connections), counts) = (numbers.next(), numbers.collect::<Vec<u32>>()) else {
        eprintln!(
            "usage: first_packet CONNECTIONS COUNT..., such as: first_packet 5000 10 100 1000 10000"
        );
        return ExitCode::from(2);
    };
    match measure(connections, &counts) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!(
                "first_packet: {error}\nfix: run it as root, on a kernel with nftables and with ip installed"
            );
            ExitCode::FAILURE
        }
    }
}

fn measure(connections: u32, counts: &[u32]) -> Done<()> {
    let [client, host, server] = [Netns::create()?, Netns::create()?, Netns::create()?];
    wire(&client, &host, &server)?;
    let listener = run_in(&server, || TcpListener::bind("0.0.0.0:8080"))??;
    std::thread::spawn(move || listener.incoming().for_each(drop));
    println!("{}", line(0, times(&client, connections, |_| SERVER)?));
    let (mut sources, mut kernel) = (Sources::default(), run_in(&host, Kernel::open)??);
    sources.handle(Change::Facts(Facts {
        node: "n1".to_owned(),
        containers: vec!["10.0.0.0/8".parse()?],
        ..Facts::default()
    }));
    let mut there = 0;
    for count in counts {
        for number in there..*count {
            sources.handle(Change::Service(service(number)?));
            sources.handle(Change::Slice(slice(number)?));
        }
        there = there.max(*count);
        let (table, diff) = sources.build();
        kernel.apply(table, &diff, sources.facts())?;
        let front = |turn: u32| SocketAddr::new(address(draw(turn) % there), 80);
        println!("{}", line(there, times(&client, connections, front)?));
    }
    Ok(())
}

/// How long connections take, sorted.
fn times(client: &Netns, count: u32, to: impl Fn(u32) -> SocketAddr + Send) -> Done<Vec<Duration>> {
    let all = move || {
        let mut times = Vec::new();
        // The first ones find caches cold, and are not counted.
        for turn in 0..count + count / 10 {
            let to = to(turn);
            let start = Instant::now();
            drop(TcpStream::connect_timeout(&to, Duration::from_secs(5))?);
            times.push(start.elapsed());
        }
        let mut times = times.split_off(count as usize / 10);
        times.sort();
        std::io::Result::Ok(times)
    };
    Ok(run_in(client, all)??)
}

fn line(services: u32, times: Vec<Duration>) -> String {
    let at = |permille: usize| {
        let time = times[(times.len() - 1) * permille / 1000];
        time.as_secs_f64() * 1e6
    };
    let (p1, p50, p99) = (at(10), at(500), at(990));
    format!(r#"{{"services":{services},"p1_us":{p1:.1},"p50_us":{p50:.1},"p99_us":{p99:.1}}}"#)
}

/// A number that looks drawn by lot, the same in each run (a step of splitmix64).
fn draw(turn: u32) -> u32 {
    let mixed = (u64::from(turn) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    ((mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 33) as u32
}

const fn address(number: u32) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from_bits(0xac10_0000 + number))
}

fn service(number: u32) -> Result<Service, weave_model::BadName> {
    let port = ServicePort {
        name: String::new(),
        protocol: Protocol::Tcp,
        port: 80,
        node_port: None,
    };
    Ok(Service::new(
        format!("s{number}").parse()?,
        [address(number)],
        [port],
    ))
}

/// Endpoints that all are the one server's, which has the whole of 10.77.0.0/16.
fn slice(number: u32) -> Result<Slice, weave_model::BadName> {
    let endpoint = |place: u32| {
        let at = Ipv4Addr::from_bits(0x0a4d_0000 + (number * ENDPOINTS + place) % 65_000 + 1);
        Endpoint::ready(at.into(), Some("n2".to_owned()))
    };
    Ok(Slice {
        name: "one".to_owned(),
        service: format!("s{number}").parse()?,
        kind: AddressKind::V4,
        ports: vec![SlicePort {
            name: String::new(),
            protocol: Protocol::Tcp,
            port: Some(8080),
        }],
        endpoints: (0..ENDPOINTS).map(endpoint).collect(),
    })
}

/// client 10.1.0.2 - 10.1.0.1 host 10.2.0.1 - 10.2.0.2 server.
fn wire(client: &Netns, host: &Netns, server: &Netns) -> Done<()> {
    for (name, other, net) in [("c", client, 1), ("s", server, 2)] {
        let other_path = format!(
            "/proc/{}/fd/{}",
            std::process::id(),
            other.as_fd().as_raw_fd()
        );
        run(
            host,
            &format!("ip link add {name} type veth peer name eth0 netns {other_path}"),
        )?;
        run(
            host,
            &format!("ip addr add 10.{net}.0.1/24 dev {name}; ip link set {name} up"),
        )?;
        run(
            other,
            &format!(
                "ip link set lo up; ip addr add 10.{net}.0.2/24 dev eth0; ip link set eth0 up
                 ip route add default via 10.{net}.0.1; sysctl -qw net.ipv4.ip_local_port_range='1024 65000' net.ipv4.tcp_tw_reuse=1"
            ),
        )?;
    }
    run(
        host,
        "sysctl -qw net.ipv4.ip_forward=1; ip route add 10.77.0.0/16 via 10.2.0.2",
    )?;
    run(server, "ip route add local 10.77.0.0/16 dev lo")
}

fn run(netns: &Netns, script: &str) -> Done<()> {
    let done = run_in(netns, || Command::new("sh").args(["-ec", script]).status())??;
    if done.success() {
        Ok(())
    } else {
        Err(format!("`{script}` failed").into())
    }
}
