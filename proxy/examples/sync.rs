//! How long the kernel engine takes at size: `sync SERVICES ENDPOINTS CHANGES` prints one line of JSON.
//!
//! In a network namespace of its own, which ends with it. `first_s` is from the first report to rules in the kernel,
//! `change_*` one endpoint of one Service gone or back, from report to rules, `restart_s` adopting the table in a new run,
//! which is also what a look at the whole table costs.

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
    let [services, endpoints, changes] = numbers[..] else {
        eprintln!("usage: sync SERVICES ENDPOINTS CHANGES, such as: sync 10000 25 200");
        return ExitCode::from(2);
    };
    let measured =
        Netns::create().and_then(|netns| run_in(&netns, || measure(services, endpoints, changes)));
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

fn measure(services: u32, endpoints: u32, changes: u32) -> Measured {
    let (mut sources, mut kernel) = (Sources::default(), Kernel::open()?);
    let start = Instant::now();
    sources.handle(Change::Facts(Facts {
        node: "n1".to_owned(),
        containers: vec![ipnet::IpNet::V4(ipnet::Ipv4Net::new_assert(
            Ipv4Addr::new(10, 0, 0, 0),
            8,
        ))],
        ..Facts::default()
    }));
    for number in 0..services {
        sources.handle(Change::Service(service(number)?));
        sources.handle(Change::Slice(slice(number, endpoints, endpoints)?));
    }
    apply(&mut sources, &mut kernel)?;
    let first = start.elapsed();
    let mut times = Vec::new();
    for turn in 0..changes {
        let number = turn.wrapping_mul(7919) % services;
        for left in [endpoints - 1, endpoints] {
            let start = Instant::now();
            sources.handle(Change::Slice(slice(number, left, endpoints)?));
            let done = apply(&mut sources, &mut kernel)?;
            times.push(start.elapsed());
            assert_eq!(done, Done::Changed, "a change goes in as elements");
        }
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

/// The first `count` of a Service's endpoints, every tenth on this node.
fn slice(number: u32, count: u32, all: u32) -> Result<Slice, weave_model::BadName> {
    let endpoint = |place| {
        let address = Ipv4Addr::from(0x0a00_0000 + number * all + place + 1);
        let node = if place % 10 == 0 { "n1" } else { "n2" };
        Endpoint::ready(IpAddr::V4(address), Some(node.to_owned()))
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
        endpoints: (0..count).map(endpoint).collect(),
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
