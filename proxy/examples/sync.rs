//! How long the kernel engine takes at size: `sync SERVICES ENDPOINTS CHANGES [SEED]` prints one line of JSON.
//!
//! What is reported is a stream of events drawn from the seed: Services and their slices in any order, as a list of an API
//! server has them, and then changes, each of one endpoint that goes, comes back or is not ready any more. The same seed
//! is the same stream. In a network namespace of its own, which ends with it. `first_s` is from the first report to rules
//! in the kernel, `change_*` one event, from report to rules, `restart_s` adopting the table in a new run,
//! which is also what a look at the whole table costs.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use weave_linux::netns::{Netns, run_in};
use weave_model::{AddressKind, Endpoint, Protocol, Service, ServicePort, Slice, SlicePort};
use weave_proxy::facts::Facts;
use weave_proxy::kernel::{Done, Kernel};
use weave_proxy::sources::{Change, Sources};
use weave_proxy::table::Diff;

fn main() -> ExitCode {
    let numbers: Vec<u32> = std::env::args()
        .skip(1)
        .filter_map(|word| word.parse().ok())
        .collect();
    let (&[services, endpoints, changes] | &[services, endpoints, changes, _]) = &numbers[..]
    else {
        eprintln!("usage: sync SERVICES ENDPOINTS CHANGES [SEED], such as: sync 10000 25 200");
        return ExitCode::from(2);
    };
    let stream = Stream {
        services,
        endpoints,
        state: u64::from(numbers.get(3).copied().unwrap_or(1)),
        absent: BTreeMap::new(),
    };
    let measured = Netns::create().and_then(|netns| run_in(&netns, || measure(stream, changes)));
    match measured {
        Ok(Ok(line)) => {
            println!("{line}");
            ExitCode::SUCCESS
        }
        Ok(Err(error)) => failed(&error),
        Err(error) => failed(&error),
    }
}

fn failed(error: &dyn std::fmt::Display) -> ExitCode {
    eprintln!("sync: {error}\nfix: run it as root, on a kernel with nftables");
    ExitCode::FAILURE
}

type Measured = Result<String, Box<dyn std::error::Error + Send + Sync>>;

/// The events.
struct Stream {
    services: u32,
    endpoints: u32,
    state: u64,
    /// The endpoint of a Service that is not ready or not there.
    absent: BTreeMap<u32, (u32, bool)>,
}

impl Stream {
    /// The next number below `below` (splitmix64).
    fn draw(&mut self, below: u32) -> u32 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ mixed >> 31) % u64::from(below.max(1))) as u32
    }

    /// All Services and slices, in an order drawn by lot.
    fn list(&mut self) -> Result<Vec<Change>, weave_model::BadName> {
        let mut all = Vec::new();
        for number in 0..self.services {
            all.push(Change::Service(service(number)?));
            all.push(Change::Slice(slice(number, self.endpoints, None)?));
        }
        for last in (1..all.len()).rev() {
            let other = self.draw(last as u32 + 1) as usize;
            all.swap(last, other);
        }
        Ok(all)
    }

    /// One endpoint comes back, or goes, or is not ready any more.
    fn change(&mut self) -> Result<Change, weave_model::BadName> {
        let number = self.draw(self.services);
        let without = match self.absent.remove(&number) {
            Some(_) => None,
            None => Some((self.draw(self.endpoints), self.draw(2) == 0)),
        };
        if let Some(without) = without {
            self.absent.insert(number, without);
        }
        Ok(Change::Slice(slice(number, self.endpoints, without)?))
    }
}

fn measure(mut stream: Stream, changes: u32) -> Measured {
    let Stream {
        services,
        endpoints,
        ..
    } = stream;
    let (mut sources, mut kernel) = (Sources::default(), Kernel::open()?);
    let events = stream.list()?;
    let start = Instant::now();
    sources.handle(Change::Facts(Facts {
        node: "n1".to_owned(),
        containers: vec![ipnet::IpNet::V4(ipnet::Ipv4Net::new_assert(
            Ipv4Addr::new(10, 0, 0, 0),
            8,
        ))],
        ..Facts::default()
    }));
    events.into_iter().for_each(|event| sources.handle(event));
    apply(&mut sources, &mut kernel)?;
    let first = start.elapsed();
    let mut times = Vec::new();
    for _ in 0..changes {
        let event = stream.change()?;
        let start = Instant::now();
        sources.handle(event);
        let done = apply(&mut sources, &mut kernel)?;
        times.push(start.elapsed());
        assert_eq!(done, Done::Changed, "a change goes in as elements");
    }
    times.sort();
    let at = |permille: usize| millis(times[(times.len() - 1) * permille / 1000]);
    let start = Instant::now();
    let mut again = Kernel::open()?;
    let adopted = again.apply(
        Arc::clone(sources.table()),
        &Diff::default(),
        sources.facts(),
    )?;
    assert_eq!(adopted, Done::Kept, "a restart finds what it would make");
    let restart = start.elapsed();
    Ok(format!(
        r#"{{"services":{services},"endpoints":{endpoints},"first_s":{:.3},"change_p50_ms":{:.2},"change_p99_ms":{:.2},"restart_s":{:.3},"rss_mib":{}}}"#,
        first.as_secs_f64(),
        at(500),
        at(990),
        restart.as_secs_f64(),
        resident()?
    ))
}

fn apply(sources: &mut Sources, kernel: &mut Kernel) -> Result<Done, weave_proxy::kernel::Error> {
    let (table, diff) = sources.build();
    kernel.apply(table, &diff, sources.facts())
}

fn service(number: u32) -> Result<Service, weave_model::BadName> {
    let port = ServicePort {
        name: String::new(),
        protocol: Protocol::Tcp,
        port: 80,
        node_port: None,
    };
    let address = IpAddr::V4(Ipv4Addr::from(0xac10_0000 + number));
    Ok(Service::new(
        format!("s{number}").parse()?,
        [address],
        [port],
    ))
}

/// A Service's endpoints, every tenth on this node; one of them is left out, or is not ready.
fn slice(
    number: u32,
    count: u32,
    without: Option<(u32, bool)>,
) -> Result<Slice, weave_model::BadName> {
    let endpoint = |place| {
        let address = Ipv4Addr::from(0x0a00_0000 + number * count + place + 1);
        let node = if place % 10 == 0 { "n1" } else { "n2" };
        let ready = without != Some((place, true));
        Endpoint {
            ready,
            serving: ready,
            ..Endpoint::ready(IpAddr::V4(address), Some(node.to_owned()))
        }
    };
    let there = (0..count).filter(|place| without != Some((*place, false)));
    Ok(Slice {
        name: "one".to_owned(),
        service: format!("s{number}").parse()?,
        kind: AddressKind::V4,
        ports: vec![SlicePort {
            name: String::new(),
            protocol: Protocol::Tcp,
            port: Some(8080),
        }],
        endpoints: there.map(endpoint).collect(),
    })
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// The most memory this process ever had, in MiB.
fn resident() -> std::io::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    Ok(kib.unwrap_or(0) / 1024)
}
