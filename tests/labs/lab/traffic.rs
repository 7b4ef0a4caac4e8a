//! What containers say to one another in a lab, and how it is checked: every byte carries the marker or a count.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Output;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::capture::MARKER;
use super::ns::Ns;

/// How long one packet may take, retransmissions of neighbour discovery included.
const PATIENCE: Duration = Duration::from_secs(5);

/// Bytes that are never the same at two places: in each 64, the marker, their place, and noise from the seed.
pub(crate) fn payload(len: usize, seed: u64) -> Vec<u8> {
    let mut noise = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 64);
    while bytes.len() < len {
        bytes.extend_from_slice(MARKER);
        bytes.extend_from_slice(&(bytes.len() as u64).to_be_bytes());
        for _ in 0..5 {
            noise ^= noise << 13;
            noise ^= noise >> 7;
            noise ^= noise << 17;
            bytes.extend_from_slice(&noise.to_be_bytes());
        }
    }
    bytes.truncate(len);
    bytes
}

/// One ICMP echo of `size` bytes with the marker in it; fragments where it must.
pub(crate) fn try_ping(from: &Ns, to: IpAddr, size: usize) -> Output {
    let pattern = data_encoding::HEXLOWER.encode(MARKER);
    from.try_sh(&format!("ping -n -q -c 1 -W 2 -s {size} -p {pattern} {to}"))
}

/// Fails unless one ICMP echo of `size` bytes comes back.
#[track_caller]
pub(crate) fn ping(from: &Ns, to: IpAddr, size: usize) {
    let output = try_ping(from, to, size);
    assert!(
        output.status.success(),
        "no answer to a ping of {size} bytes from {} to {to}: {}{}",
        from.name(),
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// A UDP socket inside a namespace, on the given address, that gives up a receive after [`PATIENCE`].
pub(crate) fn udp(ns: &Ns, at: impl Into<SocketAddr>) -> UdpSocket {
    let at = at.into();
    let socket = ns
        .inside(|| UdpSocket::bind(at))
        .unwrap_or_else(|error| panic!("cannot bind {at} in {}: {error}", ns.name()));
    socket
        .set_read_timeout(Some(PATIENCE))
        .expect("a socket takes a timeout");
    socket
}

/// Sends one datagram of `size` bytes each way between two namespaces and compares every byte.
#[track_caller]
pub(crate) fn datagrams(a: (&Ns, IpAddr), b: (&Ns, IpAddr), size: usize) {
    let (left, right) = (udp(a.0, (a.1, 0)), udp(b.0, (b.1, 0)));
    for (from, to) in [(&left, &right), (&right, &left)] {
        let target = to.local_addr().expect("a bound socket has an address");
        let sent = payload(size, size as u64);
        from.send_to(&sent, target).expect("the datagram leaves");
        let mut got = vec![0; size + 1];
        let (len, source) = to
            .recv_from(&mut got)
            .unwrap_or_else(|error| panic!("{size} bytes to {target} did not arrive: {error}"));
        assert!(
            got[..len] == sent,
            "{size} bytes to {target} arrived changed"
        );
        assert_eq!(
            source,
            from.local_addr().expect("a bound socket has an address")
        );
    }
}

/// Sends `count` datagrams of `size` bytes with one call, which the sender's kernel does not cut, and compares every byte
/// of what arrives. UDP's own batches (`UDP_SEGMENT`) are what programs such as those of HTTP/3 send.
#[track_caller]
pub(crate) fn burst(from: (&Ns, IpAddr), to: (&Ns, IpAddr), size: usize, count: usize) {
    let options = weave_linux::udp::UdpOptions {
        reuse_port: false,
        gso: true,
        gro: false,
    };
    let sender = from
        .0
        .inside(|| weave_linux::udp::UdpSocket::bind((from.1, 0).into(), options))
        .expect("the container can bind");
    let receiver = udp(to.0, (to.1, 0));
    let target = receiver
        .local_addr()
        .expect("a bound socket has an address");
    let sent = payload(size * count, count as u64);
    let calls = sender.send(target, &sent, size, 0);
    assert_eq!(
        calls.expect("the batch leaves"),
        1,
        "the kernel took it whole"
    );
    for expected in sent.chunks(size) {
        let mut got = vec![0; size + 1];
        let len = receiver
            .recv(&mut got)
            .unwrap_or_else(|error| panic!("of a batch to {target} not all arrived: {error}"));
        assert!(
            got[..len] == *expected,
            "of a batch to {target} some changed"
        );
    }
}

/// Sends `size` bytes each way at once over one TCP connection and compares every byte.
#[track_caller]
pub(crate) fn bulk(from: &Ns, to: (&Ns, IpAddr), size: usize) {
    let listener =
        to.0.inside(|| TcpListener::bind((to.1, 0)))
            .expect("the container can listen");
    let target = listener.local_addr().expect("a listener has an address");
    let server = std::thread::spawn(move || {
        exchange(listener.accept().expect("a connection comes").0, size, 2, 1)
    });
    let client = from
        .inside(|| TcpStream::connect_timeout(&target, PATIENCE))
        .unwrap_or_else(|error| panic!("no connection from {} to {target}: {error}", from.name()));
    exchange(client, size, 1, 2);
    server.join().expect("the other end got every byte");
}

/// Sends one payload and at the same time receives the other.
fn exchange(mut stream: TcpStream, size: usize, sends: u64, expects: u64) {
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .expect("a socket takes a timeout");
    let mut writer = stream.try_clone().expect("a socket can be cloned");
    let sending = std::thread::spawn(move || writer.write_all(&payload(size, sends)));
    let mut got = vec![0; size];
    stream
        .read_exact(&mut got)
        .unwrap_or_else(|error| panic!("the bulk transfer stopped: {error}"));
    assert!(got == payload(size, expects), "the bulk arrived changed");
    sending
        .join()
        .expect("the sender lives")
        .expect("every byte can be sent");
}

/// A TCP connection that says one thing after the other, and checks that the other end says the same.
pub(crate) struct Conversation {
    rounds: Arc<AtomicU64>,
    ends: Arc<AtomicBool>,
    client: JoinHandle<()>,
    server: JoinHandle<()>,
}

impl Conversation {
    /// Connects and says 64 bytes every few milliseconds until [`Conversation::finish`].
    pub(crate) fn start(from: &Ns, to: (&Ns, IpAddr)) -> Self {
        Self::start_of(64, from, to)
    }

    /// The same with `size` bytes at a time.
    pub(crate) fn start_of(size: usize, from: &Ns, to: (&Ns, IpAddr)) -> Self {
        let listener =
            to.0.inside(|| TcpListener::bind((to.1, 0)))
                .expect("the container can listen");
        let target = listener.local_addr().expect("a listener has an address");
        let server = std::thread::spawn(move || {
            repeat(size, listener.accept().expect("a connection comes").0)
        });
        let stream = from
            .inside(|| TcpStream::connect_timeout(&target, PATIENCE))
            .unwrap_or_else(|error| {
                panic!("no connection from {} to {target}: {error}", from.name())
            });
        let (rounds, ends) = (
            Arc::new(AtomicU64::new(0)),
            Arc::new(AtomicBool::new(false)),
        );
        let (counted, asked) = (Arc::clone(&rounds), Arc::clone(&ends));
        let client = std::thread::spawn(move || talk(size, stream, &counted, &asked));
        Self {
            rounds,
            ends,
            client,
            server,
        }
    }

    /// How many rounds came back so far.
    pub(crate) fn rounds(&self) -> u64 {
        self.rounds.load(Ordering::Relaxed)
    }

    /// Fails unless ten more rounds come back in time; returns how long that took.
    #[track_caller]
    pub(crate) fn assert_goes_on(&self, within: Duration) -> Duration {
        let (before, start) = (self.rounds(), Instant::now());
        while self.rounds() < before + 10 {
            assert!(!self.client.is_finished(), "the connection broke");
            assert!(
                start.elapsed() < within,
                "the connection stood still for {within:?}"
            );
            std::thread::sleep(Duration::from_millis(5));
        }
        start.elapsed()
    }

    /// Ends the conversation; fails if anything was lost, changed or said twice.
    #[track_caller]
    pub(crate) fn finish(self) {
        self.ends.store(true, Ordering::Relaxed);
        self.client
            .join()
            .expect("every round came back as it was said");
        self.server.join().expect("the other end lives");
    }
}

/// One end: say something, wait until it comes back, count it.
fn talk(size: usize, mut stream: TcpStream, rounds: &AtomicU64, ends: &AtomicBool) {
    stream
        .set_read_timeout(Some(Duration::from_secs(60)))
        .expect("a socket takes a timeout");
    let mut heard = vec![0; size];
    while !ends.load(Ordering::Relaxed) {
        let said = payload(size, rounds.load(Ordering::Relaxed));
        stream.write_all(&said).expect("it can be said");
        stream.read_exact(&mut heard).expect("it comes back");
        assert!(heard == said, "it came back changed");
        rounds.fetch_add(1, Ordering::Relaxed);
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The other end: repeat what is said until the connection is closed.
fn repeat(size: usize, mut stream: TcpStream) {
    let mut heard = vec![0; size];
    while stream.read_exact(&mut heard).is_ok() {
        if stream.write_all(&heard).is_err() {
            return;
        }
    }
}

/// A TCP connection that carries as much as it can, up to a rate, and knows how long it ever stood still.
pub(crate) struct Load {
    progress: Arc<Progress>,
    ends: Arc<AtomicBool>,
    sender: JoinHandle<()>,
    receiver: JoinHandle<()>,
}

/// What has arrived, and the longest time in which nothing did.
struct Progress {
    start: Instant,
    bytes: AtomicU64,
    last: AtomicU64,
    longest: AtomicU64,
}

impl Load {
    /// Connects and sends up to `rate` bytes a second until [`Load::finish`]; every byte is compared.
    pub(crate) fn start(rate: usize, from: &Ns, to: (&Ns, IpAddr)) -> Self {
        let listener =
            to.0.inside(|| TcpListener::bind((to.1, 0)))
                .expect("the container can listen");
        let target = listener.local_addr().expect("a listener has an address");
        let stream = from
            .inside(|| TcpStream::connect_timeout(&target, PATIENCE))
            .unwrap_or_else(|error| {
                panic!("no connection from {} to {target}: {error}", from.name())
            });
        let (accepted, _) = listener.accept().expect("a connection comes");
        let progress = Arc::new(Progress {
            start: Instant::now(),
            bytes: AtomicU64::new(0),
            last: AtomicU64::new(0),
            longest: AtomicU64::new(0),
        });
        let ends = Arc::new(AtomicBool::new(false));
        let (noted, asked) = (Arc::clone(&progress), Arc::clone(&ends));
        let sender = std::thread::spawn(move || pour(rate, stream, &asked));
        let receiver = std::thread::spawn(move || drain(accepted, &noted));
        Self {
            progress,
            ends,
            sender,
            receiver,
        }
    }

    /// How many bytes have arrived so far.
    pub(crate) fn bytes(&self) -> u64 {
        self.progress.bytes.load(Ordering::Relaxed)
    }

    /// The longest time in which no byte arrived, the present one included.
    pub(crate) fn longest_stall(&self) -> Duration {
        let since = |at: &AtomicU64| Duration::from_micros(at.load(Ordering::Relaxed));
        let now = self.progress.start.elapsed();
        now.saturating_sub(since(&self.progress.last))
            .max(since(&self.progress.longest))
    }

    /// Ends the load; fails if anything was lost or changed.
    #[track_caller]
    pub(crate) fn finish(self) {
        self.ends.store(true, Ordering::Relaxed);
        self.sender.join().expect("every byte can be sent");
        self.receiver.join().expect("every byte arrives unchanged");
    }
}

/// What a [`Load`] sends again and again.
fn refrain() -> Vec<u8> {
    payload(64 << 10, 3)
}

fn pour(rate: usize, mut stream: TcpStream, ends: &AtomicBool) {
    let said = refrain();
    let pause = Duration::from_secs_f64(said.len() as f64 / rate as f64);
    while !ends.load(Ordering::Relaxed) {
        stream.write_all(&said).expect("it can be sent");
        std::thread::sleep(pause);
    }
}

fn drain(mut stream: TcpStream, progress: &Progress) {
    stream
        .set_read_timeout(Some(Duration::from_secs(60)))
        .expect("a socket takes a timeout");
    let expected = refrain();
    let (mut heard, mut place) = (vec![0; expected.len()], 0);
    loop {
        let room = heard.len() - place;
        let len = stream.read(&mut heard[..room]).expect("it arrives");
        if len == 0 {
            return;
        }
        assert!(
            heard[..len] == expected[place..place + len],
            "it arrived changed"
        );
        place = (place + len) % expected.len();
        progress.note(len);
    }
}

impl Progress {
    fn note(&self, len: usize) {
        let now = self.start.elapsed().as_micros() as u64;
        let gap = now - self.last.swap(now, Ordering::Relaxed);
        self.longest.fetch_max(gap, Ordering::Relaxed);
        self.bytes.fetch_add(len as u64, Ordering::Relaxed);
    }
}

/// How many datagrams are there, or arrive within a moment.
pub(crate) fn overheard(socket: &UdpSocket) -> usize {
    socket
        .set_read_timeout(Some(Duration::from_millis(200)))
        .expect("a socket takes a timeout");
    std::iter::from_fn(|| socket.recv(&mut [0; 2048]).ok()).count()
}

/// Waits for something that must become true; fails the lab when it does not in time.
#[track_caller]
pub(crate) fn wait_for(what: &str, within: Duration, mut is_true: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_true() {
        assert!(start.elapsed() < within, "{what}: not within {within:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
