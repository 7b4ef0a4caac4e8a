//! Clients and endpoints that do at random, from seeds, what either side of a connection can do: bytes come in order and
//! whole, nobody's at two endpoints, and nothing is left.
//!
//! What either side of a connection does is drawn from the number that the client says first, so the course of a seed is
//! the same each time, but for which thread is first.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use weave_linux::intercept::reset_on_drop;
use weave_linux::netns::{Netns, run_in};
use weave_model::EngineChoice;
use weave_proxy::relay::Relay;

use crate::lab::{A, B, C, FAR, Lab, ok, until};
use crate::relay_ends::report;

const WEB: &str = "10.96.0.1:80";
const PATIENCE: Duration = Duration::from_secs(20);
/// How long one side may do nothing.
const HANGS: Duration = Duration::from_millis(200);
/// Nobody is here: a route leads to a container that has another address.
const NOBODY: &str = "10.32.0.77";
const SEEDS: [u64; 4] = [7, 19, 42, 2026];
/// How many clients there are at a time, and how many connections each makes, one after the other.
const CLIENTS: u64 = 12;
const EACH: u64 = 12;
/// The most bytes of a direction. Some are a stream to the relay, which gets a pipe.
const MOST: u64 = 600_000;
/// Tells the process that has nothing but this test, so that its descriptors are known.
const ALONE: &str = "WEAVE_TEST_ALONE";
const NAME: &str = "relay_random::whatever_both_sides_do_nothing_is_mixed_up_lost_or_left";

/// Numbers from a seed (SplitMix64; Steele and others, "Fast splittable pseudorandom number generators", 2014).
struct Draw(u64);

impl Draw {
    fn next(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % below
    }
}

/// What one side does once the client has said its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Deed {
    /// Says all that it has to, and its end, while it hears the other.
    Both,
    /// Says its end before it hears the other.
    First,
    /// Says nothing before it has heard the other's end.
    Last,
    /// Says so many bytes and breaks.
    Breaks(usize),
    /// Says so many bytes and is gone.
    Leaves(usize),
    /// Does nothing for a while and is gone.
    Hangs,
}

impl Deed {
    const fn is_whole(self) -> bool {
        matches!(self, Self::Both | Self::First | Self::Last)
    }

    fn draw(draw: &mut Draw, whole: &[Self], size: usize) -> Self {
        let part = draw.next(size as u64 + 1) as usize;
        match draw.next(8) {
            0 => Self::Breaks(part),
            1 => Self::Leaves(part),
            2 => Self::Breaks(0),
            3 => Self::Hangs,
            _ => whole[draw.next(whole.len() as u64) as usize],
        }
    }
}

/// What becomes of one connection.
#[derive(Clone, Copy, Debug)]
struct Plan {
    /// Whether the client leaves before it says anything.
    is_mute: bool,
    /// How many bytes go to the endpoint behind the number, and how many come back.
    sizes: [usize; 2],
    client: Deed,
    server: Deed,
}

impl Plan {
    fn of(number: u64) -> Self {
        let mut draw = Draw(number);
        let sizes = [(); 2].map(|()| {
            let most = [1, 300, MOST][draw.next(3) as usize];
            draw.next(most) as usize
        });
        let server = Deed::draw(&mut draw, &[Deed::Both, Deed::First, Deed::Last], sizes[1]);
        // Not both can be the last.
        let whole = match server {
            Deed::Last => &[Deed::Both][..],
            _ => &[Deed::Both, Deed::Last],
        };
        Self {
            is_mute: draw.next(10) == 0,
            sizes,
            client: Deed::draw(&mut draw, whole, sizes[0]),
            server,
        }
    }

    fn is_whole(&self) -> bool {
        !self.is_mute && self.client.is_whole() && self.server.is_whole()
    }
}

/// What one side has heard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Heard {
    bytes: usize,
    /// Whether the other's end came behind them, and no break.
    end: bool,
}

/// One of two directions of a connection, as both sides know it.
#[derive(Clone, Copy)]
struct Bytes {
    number: u64,
    way: usize,
    size: usize,
}

impl Bytes {
    fn at(self, from: usize, count: usize) -> Vec<u8> {
        let salt = Draw(self.number ^ self.way as u64).next(u64::MAX);
        (from as u64..(from + count) as u64)
            .map(|place| (place.wrapping_add(salt).wrapping_mul(2_654_435_761) >> 13) as u8)
            .collect()
    }

    fn say(self, mut stream: &TcpStream, count: usize) -> io::Result<()> {
        stream.write_all(&self.at(0, count))
    }

    /// Says all of it, and the end; an error is for the other direction to tell.
    fn say_all(self, stream: &TcpStream) {
        let _ = self
            .say(stream, self.size)
            .and_then(|()| stream.shutdown(Shutdown::Write));
    }

    /// Hears it until it ends or breaks; it has to come in order, and nothing behind it.
    fn hear(self, mut stream: &TcpStream) -> Heard {
        let (mut heard, mut buffer) = (Heard::default(), vec![0; 16_384]);
        loop {
            match stream.read(&mut buffer) {
                Ok(0) => heard.end = true,
                Ok(count) => {
                    let Self { number, way, .. } = self;
                    let is_right = buffer[..count] == self.at(heard.bytes, count);
                    assert!(is_right, "{number} {way}: other bytes from {}", heard.bytes);
                    heard.bytes += count;
                    assert!(heard.bytes <= self.size, "{number} {way}: too many");
                    continue;
                }
                Err(error) => assert_ne!(error.kind(), io::ErrorKind::WouldBlock, "it hangs"),
            }
            return heard;
        }
    }
}

/// Does what is planned for one side, which says and hears these; what it has heard.
fn act(stream: &TcpStream, deed: Deed, says: Bytes, hears: Bytes) -> Heard {
    match deed {
        Deed::Both => thread::scope(|scope| {
            scope.spawn(|| says.say_all(stream));
            hears.hear(stream)
        }),
        Deed::First => {
            says.say_all(stream);
            hears.hear(stream)
        }
        Deed::Last => {
            let heard = hears.hear(stream);
            says.say_all(stream);
            heard
        }
        Deed::Breaks(count) => {
            let _ = says.say(stream, count);
            reset_on_drop(stream).unwrap();
            Heard::default()
        }
        Deed::Leaves(count) => {
            let _ = says.say(stream, count);
            Heard::default()
        }
        Deed::Hangs => {
            thread::sleep(HANGS);
            Heard::default()
        }
    }
}

/// Both directions of a connection, to the endpoint and back.
fn bytes(number: u64, plan: &Plan) -> [Bytes; 2] {
    [0, 1].map(|way| Bytes {
        number,
        way,
        size: plan.sizes[way],
    })
}

fn be_patient(stream: &TcpStream) {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
}

/// What endpoints have heard, by the client's number: more than one has heard it if there is more than one.
type Log = Arc<Mutex<BTreeMap<u64, Vec<Heard>>>>;

/// Serves at port 8082 of a container. Some are gone or break before they hear anything, so that another one is tried.
fn serve(netns: &Netns, log: &Log) {
    let listener = run_in(netns, || TcpListener::bind("[::]:8082").unwrap()).unwrap();
    let log = Arc::clone(log);
    let count = AtomicU64::new(0);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let log = Arc::clone(&log);
            let drawn = Draw(count.fetch_add(1, Relaxed)).next(8);
            thread::spawn(move || match drawn {
                0 => reset_on_drop(&stream).unwrap(),
                1 => {}
                2 => {
                    thread::sleep(HANGS / 4);
                    answer(&stream, &log);
                }
                _ => answer(&stream, &log),
            });
        }
    });
}

fn answer(mut stream: &TcpStream, log: &Log) {
    be_patient(stream);
    let mut number = [0; 8];
    if stream.read_exact(&mut number).is_err() {
        return;
    }
    let number = u64::from_be_bytes(number);
    // Before all else, so that whoever hears it after this one is seen.
    let place = {
        let mut log = log.lock().unwrap();
        let all = log.entry(number).or_default();
        all.push(Heard::default());
        all.len() - 1
    };
    let plan = Plan::of(number);
    let [up, down] = bytes(number, &plan);
    let heard = act(stream, plan.server, down, up);
    log.lock().unwrap().get_mut(&number).unwrap()[place] = heard;
}

/// One client's connection; what it has heard.
fn ask(from: &Netns, number: u64) -> Heard {
    let plan = Plan::of(number);
    let mut stream = run_in(from, || TcpStream::connect(WEB)).unwrap().unwrap();
    be_patient(&stream);
    if plan.is_mute {
        if plan.client != Deed::Both {
            reset_on_drop(&stream).unwrap();
        }
        return Heard::default();
    }
    if stream.write_all(&number.to_be_bytes()).is_err() {
        return Heard::default();
    }
    let [up, down] = bytes(number, &plan);
    act(&stream, plan.client, up, down)
}

/// All connections of a seed, and what their clients heard.
fn run(lab: &Lab, seed: u64) -> BTreeMap<u64, Heard> {
    let froms = [&lab.a, &lab.host, &lab.outside];
    let client = |client: u64| {
        let from = froms[client as usize % froms.len()];
        let numbers = (0..EACH).map(move |each| seed << 32 | client << 16 | each);
        numbers.map(move |number| (number, ask(from, number)))
    };
    thread::scope(|scope| {
        let all: Vec<_> = (0..CLIENTS)
            .map(|number| scope.spawn(move || client(number).collect::<Vec<_>>()))
            .collect();
        all.into_iter()
            .flat_map(|one| one.join().unwrap())
            .collect()
    })
}

/// Holds what both sides heard against what both said; how many connections were whole.
fn judge(clients: &BTreeMap<u64, Heard>, log: &Log) -> usize {
    let (log, mut planned, mut whole) = (log.lock().unwrap(), 0, 0);
    for (number, of_client) in clients {
        let (plan, servers) = (Plan::of(*number), log.get(number));
        let servers = servers.map_or(&[][..], Vec::as_slice);
        assert!(
            servers.len() <= 1,
            "{number}: it was heard by {}",
            servers.len()
        );
        planned += usize::from(plan.is_whole());
        match servers {
            [] => assert_eq!(of_client.bytes, 0, "{number}: nobody said that"),
            [of_server] if plan.is_whole() => {
                let said = plan.sizes.map(|bytes| Heard { bytes, end: true });
                assert_eq!([*of_server, *of_client], said, "{number}: {plan:?}");
                whole += 1;
            }
            _ => {}
        }
    }
    assert!(
        whole > planned / 3,
        "{whole} of {planned} reached an endpoint"
    );
    whole
}

/// The descriptors of this process but for pipes, which threads keep for the next streams.
fn descriptors() -> usize {
    let all = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    let what = all.filter_map(|one| std::fs::read_link(one.path()).ok());
    what.filter(|what| !what.to_string_lossy().starts_with("pipe:"))
        .count()
}

fn relay(lab: &Lab) -> &Relay {
    lab.relay.as_ref().unwrap()
}

/// How many connections the balancers believe to be open.
fn picked(lab: &Lab) -> u32 {
    let groups = relay(lab).routes().groups();
    let seen = groups
        .iter()
        .flat_map(|group| group.balancer().seen(Instant::now()));
    seen.map(|one| one.open).sum()
}

/// Runs this test in a process that has nothing else to do.
fn run_alone() {
    let alone = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", NAME, "--nocapture"])
        .env(ALONE, "1")
        .output()
        .unwrap();
    let [said, errors] = [&alone.stdout, &alone.stderr].map(|text| String::from_utf8_lossy(text));
    let is_done = alone.status.success() && said.contains("1 passed");
    assert!(is_done, "{said}\n{errors}");
}

#[test]
fn whatever_both_sides_do_nothing_is_mixed_up_lost_or_left() {
    if std::env::var_os(ALONE).is_none() {
        return run_alone();
    }
    let mut lab = Lab::new(EngineChoice::Relay);
    ok(&lab.host, "ip route add 10.32.0.77/32 dev wva");
    let log = Log::default();
    for netns in [&lab.b, &lab.c, &lab.far] {
        serve(netns, &log);
    }
    // Nobody listens at A's port, which refuses.
    report(&mut lab, &[A, B, C, FAR, NOBODY]);
    let before = descriptors();
    for seed in SEEDS {
        eprintln!("seed {seed}");
        let clients = run(&lab, seed);
        until("no connection is open", || relay(&lab).counts().open == 0);
        assert_eq!(picked(&lab), 0, "the balancers believe that some are open");
        until("no descriptor is left", || descriptors() == before);
        eprintln!("{} were whole", judge(&clients, &log));
    }
}
