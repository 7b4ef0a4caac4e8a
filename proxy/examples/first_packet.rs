//! What the first packet of a connection costs, by how many Services there are: `first_packet CONNECTIONS COUNT...` prints
//! lines of JSON: two for connections that pass a host without any Service (0), and two for each COUNT.
//!
//! Namespaces of its own, which end with it: a client, behind it a host for each COUNT with the engine in the kernel, and
//! behind all of them a server that has the addresses of all endpoints. What is measured is how long `connect` takes, from a
//! container's side, to Services drawn at random, so that neither one element nor one cache line is looked up again and
//! again. The hosts take turns, one connection each: what else the machine does, and what it has in its caches,
//! is the same for all of them. One after the other they could not be compared: which cores the two ends find themselves on
//! makes more of a difference from one second to the next than ten thousand Services do.
//!
//! To tell what the size of the maps costs from what it costs that so many different addresses are spoken to (memory that no
//! cache holds, of the maps and of all else that a host keeps of an address), each host is asked for all of its Services and
//! for the first ten of them (`drawn_from`); the one without Services for one address of the server, and for as many as the
//! largest COUNT.

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
/// How many of them are spoken to where it is not all.
const FEW: u32 = 10;
/// Where the server listens.
const PORT: u16 = 8080;

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

/// A host between the client and the server.
struct Host {
    /// Its place in addresses.
    number: u32,
    services: u32,
    /// What holds connections while rules are gone goes with it.
    _kernel: Option<Kernel>,
    /// It goes with its namespace.
    _netns: Netns,
}

/// Connections to so many places behind a host.
struct Way<'a> {
    host: &'a Host,
    drawn_from: u32,
    times: Vec<Duration>,
}

impl Way<'_> {
    /// Where a turn's connection goes.
    fn to(&self, turn: u32) -> SocketAddr {
        let number = draw(turn) % self.drawn_from;
        if self.host.services == 0 {
            SocketAddr::new(endpoint(number), PORT)
        } else {
            SocketAddr::new(address(self.host.number, number), 80)
        }
    }
}

fn measure(connections: u32, counts: &[u32]) -> Done<()> {
    let [client, server] = [Netns::create()?, Netns::create()?];
    run(&client, CLIENT)?;
    run(
        &server,
        "ip link set lo up; ip route add local 10.77.0.0/16 dev lo",
    )?;
    let listener = run_in(&server, || TcpListener::bind(("0.0.0.0", PORT)))??;
    std::thread::spawn(move || listener.incoming().for_each(drop));
    let numbered = std::iter::once(&0).chain(counts).zip(0..);
    let hosts = numbered.map(|(services, number)| {
        let netns = Netns::create()?;
        wire(&client, &netns, &server, number)?;
        let serves = *services > 0;
        let kernel = serves.then(|| serve(&netns, number, *services));
        let services = *services;
        Ok(Host {
            number,
            services,
            _kernel: kernel.transpose()?,
            _netns: netns,
        })
    });
    let hosts = hosts.collect::<Done<Vec<Host>>>()?;
    let most = counts.iter().copied().max().unwrap_or(1).min(65_000);
    let ways = hosts.iter().flat_map(|host| {
        let drawn_from = match host.services {
            0 => [1, most],
            all => [all.min(FEW), all],
        };
        drawn_from.map(|drawn_from| Way {
            host,
            drawn_from,
            times: Vec::new(),
        })
    });
    for way in timed(&client, connections, ways.collect())? {
        println!("{}", line(way));
    }
    Ok(())
}

/// Has the kernel of a host serve so many Services.
fn serve(host: &Netns, place: u32, services: u32) -> Done<Kernel> {
    let (mut sources, mut kernel) = (Sources::default(), run_in(host, Kernel::open)??);
    sources.handle(Change::Facts(Facts {
        node: "n1".to_owned(),
        containers: vec!["10.0.0.0/8".parse()?],
        ranges: vec!["172.16.0.0/12".parse()?],
        ..Facts::default()
    }));
    for number in 0..services {
        sources.handle(Change::Service(service(place, number)?));
        sources.handle(Change::Slice(slice(number)?));
    }
    let (table, diff) = sources.build();
    kernel.apply(table, &diff, sources.facts())?;
    Ok(kernel)
}

/// How long connections take, by turns.
fn timed<'a>(client: &Netns, count: u32, mut ways: Vec<Way<'a>>) -> Done<Vec<Way<'a>>> {
    let all = move || {
        // The first ones find caches cold, and are not counted.
        let warm = count / 10;
        for turn in 0..count + warm {
            for way in &mut ways {
                let to = way.to(turn);
                let start = Instant::now();
                drop(TcpStream::connect_timeout(&to, Duration::from_secs(5))?);
                if turn >= warm {
                    way.times.push(start.elapsed());
                }
            }
        }
        std::io::Result::Ok(ways)
    };
    Ok(run_in(client, all)??)
}

fn line(way: Way<'_>) -> String {
    let mut times = way.times;
    times.sort();
    let at = |permille: usize| {
        let time = times[(times.len() - 1) * permille / 1000];
        time.as_secs_f64() * 1e6
    };
    let (services, drawn_from) = (way.host.services, way.drawn_from);
    let (p1, p50, p99) = (at(10), at(500), at(990));
    format!(
        r#"{{"services":{services},"drawn_from":{drawn_from},"p1_us":{p1:.1},"p50_us":{p50:.1},"p99_us":{p99:.1}}}"#
    )
}

/// A number that looks drawn by lot, the same in each run (a step of splitmix64).
fn draw(turn: u32) -> u32 {
    let mixed = (u64::from(turn) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    ((mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 33) as u32
}

/// The address of a host's Service: 172.16.0.0/16 is the first host's, 172.17.0.0/16 the next one's.
const fn address(host: u32, number: u32) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from_bits(0xac10_0000 + (host << 16) + number))
}

fn service(host: u32, number: u32) -> Result<Service, weave_model::BadName> {
    let port = ServicePort {
        name: String::new(),
        protocol: Protocol::Tcp,
        port: 80,
        node_port: None,
    };
    Ok(Service::new(
        format!("s{number}").parse()?,
        [address(host, number)],
        [port],
    ))
}

/// One of the server's addresses, which are the whole of 10.77.0.0/16.
const fn endpoint(number: u32) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from_bits(0x0a4d_0001 + number % 65_000))
}

/// Endpoints that all are the one server's.
fn slice(number: u32) -> Result<Slice, weave_model::BadName> {
    let one = |place: u32| {
        let at = endpoint(number * ENDPOINTS + place);
        Endpoint::ready(at, Some("n2".to_owned()))
    };
    Ok(Slice {
        name: "one".to_owned(),
        service: format!("s{number}").parse()?,
        kind: AddressKind::V4,
        ports: vec![SlicePort {
            name: String::new(),
            protocol: Protocol::Tcp,
            port: Some(PORT),
        }],
        endpoints: (0..ENDPOINTS).map(one).collect(),
    })
}

/// Before any host is there.
const CLIENT: &str = "ip link set lo up; sysctl -qw net.ipv4.ip_local_port_range='1024 65000' net.ipv4.tcp_tw_reuse=1";

/// Host N: client 10.1.N.2 - 10.1.N.1 host 10.2.N.1 - 10.2.N.2 server. The first is the way to the server's own addresses.
fn wire(client: &Netns, host: &Netns, server: &Netns, number: u32) -> Done<()> {
    for (name, other, net) in [("c", client, 1), ("s", server, 2)] {
        let other_path = format!(
            "/proc/{}/fd/{}",
            std::process::id(),
            other.as_fd().as_raw_fd()
        );
        run(
            host,
            &format!(
                "ip link add {name} type veth peer name eth{number} netns {other_path}
                 ip addr add 10.{net}.{number}.1/24 dev {name}; ip link set {name} up"
            ),
        )?;
        run(
            other,
            &format!(
                "ip addr add 10.{net}.{number}.2/24 dev eth{number}; ip link set eth{number} up"
            ),
        )?;
    }
    let services = if number == 0 {
        "10.77.0.0/16".to_owned()
    } else {
        format!("172.{}.0.0/16", 16 + number)
    };
    run(
        client,
        &format!("ip route add {services} via 10.1.{number}.1"),
    )?;
    run(
        server,
        &format!("ip route add 10.1.{number}.0/24 via 10.2.{number}.1"),
    )?;
    run(
        host,
        &format!("sysctl -qw net.ipv4.ip_forward=1; ip route add 10.77.0.0/16 via 10.2.{number}.2"),
    )
}

fn run(netns: &Netns, script: &str) -> Done<()> {
    let done = run_in(netns, || Command::new("sh").args(["-ec", script]).status())??;
    if done.success() {
        Ok(())
    } else {
        Err(format!("`{script}` failed").into())
    }
}
