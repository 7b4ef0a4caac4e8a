//! How long the kernel engine takes at size: `sync SERVICES ENDPOINTS CHANGES [SEED]` prints one line of JSON.
//!
//! What is reported to the running engine, thread and all, is no recording of a cluster: it is drawn from the seed.
//! Services and their slices in any order, as a list of an API server has them, and then changes, each of one endpoint
//! that goes, comes back or is not ready any more. The same seed is the same stream. In a network namespace of its own,
//! which ends with it. `first_s` is from the first report to rules in the kernel, `change_*` one event, from report to
//! rules. `deleted_s` and `altered_s` are from what somebody else does (deletes the table, or one element of a set)
//! to rules that are right again. `restart_s` is a new engine that finds them.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use weave_linux::netns::{Netns, run_in};
use weave_linux::nft::{Batch, Element, Set, Socket, Table, Type, Value};
use weave_model::{AddressKind, Endpoint, Protocol, Service, ServicePort, Slice, SlicePort};
use weave_proxy::driver::{Engine, Syncs};
use weave_proxy::facts::Facts;
use weave_proxy::rules::TABLE;
use weave_proxy::sources::Change;

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

    /// The node, and all Services and slices as they are now, in an order drawn by lot.
    fn list(&mut self) -> Result<Vec<Change>, weave_model::BadName> {
        let mut all = Vec::new();
        for number in 0..self.services {
            let without = self.absent.get(&number).copied();
            all.push(Change::Service(service(number)?));
            all.push(Change::Slice(slice(number, self.endpoints, without)?));
        }
        for last in (1..all.len()).rev() {
            let other = self.draw(last as u32 + 1) as usize;
            all.swap(last, other);
        }
        all.push(Change::Facts(Facts {
            node: "n1".to_owned(),
            containers: vec![ipnet::IpNet::V4(ipnet::Ipv4Net::new_assert(
                Ipv4Addr::new(10, 0, 0, 0),
                8,
            ))],
            ..Facts::default()
        }));
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
    let engine = Engine::start()?;
    let all = stream.list()?;
    let first = timed(&engine, |syncs| syncs.remade, || engine.report(all));
    let mut times = Vec::new();
    for _ in 0..changes {
        let event = vec![stream.change()?];
        // A change that goes in as elements: remade would be another thing.
        let report = || engine.report(event);
        times.push(timed(&engine, |syncs| syncs.changed, report));
    }
    times.sort();
    let at = |permille: usize| millis(times[(times.len() - 1) * permille / 1000]);
    let table = Table::inet(TABLE);
    let mut delete = Batch::new();
    delete.delete_table(&table);
    let mut alter = Batch::new();
    let vip = Element::new([Value::from(vip(0))]);
    alter.delete_elements(&table, &Set::new("vips4", &[Type::Ipv4]), [vip]);
    let somebody = Socket::open()?;
    let mut did = [Ok(()), Ok(())];
    let [deleting, altering] = &mut did;
    let remade = |syncs: &Syncs| syncs.remade;
    let deleted = timed(&engine, remade, || *deleting = somebody.send(&delete));
    let altered = timed(&engine, remade, || *altering = somebody.send(&alter));
    did.into_iter().collect::<Result<(), _>>()?;
    drop(engine);
    let engine = Engine::start()?;
    let all = stream.list()?;
    let begun = Instant::now();
    engine.report(all);
    while engine.progress().updated.is_none() {
        thread::sleep(TICK);
    }
    let restart = begun.elapsed();
    assert_eq!(
        engine.shown().syncs.remade,
        0,
        "a restart finds what it would make"
    );
    Ok(format!(
        r#"{{"services":{services},"endpoints":{endpoints},"first_s":{:.3},"change_p50_ms":{:.2},"change_p99_ms":{:.2},"deleted_s":{:.3},"altered_s":{:.3},"restart_s":{:.3},"rss_mib":{}}}"#,
        first.as_secs_f64(),
        at(500),
        at(990),
        deleted.as_secs_f64(),
        altered.as_secs_f64(),
        restart.as_secs_f64(),
        resident()?
    ))
}

/// How often it is looked whether the engine is done.
const TICK: Duration = Duration::from_micros(200);

/// How long it takes after `act` until a count of the engine's grows.
fn timed(engine: &Engine, count: fn(&Syncs) -> u64, act: impl FnOnce()) -> Duration {
    let now = || count(&engine.shown().syncs);
    let (before, begun) = (now(), Instant::now());
    act();
    while now() == before {
        thread::sleep(TICK);
    }
    begun.elapsed()
}

fn vip(number: u32) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from(0xac10_0000 + number))
}

fn service(number: u32) -> Result<Service, weave_model::BadName> {
    let port = ServicePort {
        name: String::new(),
        protocol: Protocol::Tcp,
        port: 80,
        node_port: None,
    };
    let address = vip(number);
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
