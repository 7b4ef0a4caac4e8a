//! What a test says to a responder, from a container of the node's own, and whether it comes back as it was said.
//!
//! All of it blocks: it runs on threads of its own. Every datagram begins with the responder's secret, which no other
//! traffic carries, so that a listener on the wire can tell whether it was readable there.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use weave_linux::netns::{Netns, run_in};
use weave_linux::sniff::{Place, Sniffer};

use super::responder::Secret;

/// How long an answer to a datagram is waited for, and how often it is sent.
const WAIT: Duration = Duration::from_millis(700);
const TRIES: usize = 3;

/// How long a connection may take to come about, and to be silent.
const STREAM: Duration = Duration::from_secs(3);

/// How long a listener goes on after the last packet: as long as the kernel may hold one back.
const LINGER: Duration = Duration::from_millis(150);

/// Sends `count` datagrams of `size` bytes one after another and compares what comes back. What is lost is sent again.
pub(super) fn datagrams(
    netns: &Netns,
    to: SocketAddr,
    secret: &Secret,
    (size, count): (usize, usize),
) -> Result<String, String> {
    let socket = run_in(netns, || {
        UdpSocket::bind(SocketAddr::new(unspecified(to.ip()), 0))
    })
    .map_err(|error| error.to_string())?
    .and_then(|socket| socket.set_read_timeout(Some(WAIT)).map(|()| socket))
    .map_err(|error| format!("no socket: {error}"))?;
    let mut times = Vec::with_capacity(count);
    let mut again = 0;
    for number in 0..count {
        let said = message(secret, number, size);
        let (time, tries) = exchange(&socket, to, &said)?;
        times.push(time);
        again += tries - 1;
    }
    times.sort_unstable();
    let median = times.get(count / 2).copied().unwrap_or_default();
    let lost = match again {
        0 => String::new(),
        again => format!(", {again} sent again"),
    };
    Ok(format!(
        "{count} of {size} bytes and back, {}{lost}",
        shown(median)
    ))
}

fn exchange(socket: &UdpSocket, to: SocketAddr, said: &[u8]) -> Result<(Duration, usize), String> {
    let mut heard = vec![0; said.len() + 1];
    for attempt in 1..=TRIES {
        let start = Instant::now();
        socket
            .send_to(said, to)
            .map_err(|error| format!("{} bytes cannot be sent: {error}", said.len()))?;
        loop {
            match socket.recv(&mut heard) {
                Ok(len) if heard[..len] == *said => return Ok((start.elapsed(), attempt)),
                // A late answer to an earlier attempt is as good; anything else was changed on the way.
                Ok(len) if len == said.len() => return Err("it came back changed".to_owned()),
                Ok(_) => {}
                Err(error) if is_timeout(&error) => break,
                Err(error) => return Err(format!("{} bytes: {error}", said.len())),
            }
        }
    }
    let waited = WAIT * TRIES as u32;
    Err(format!(
        "no answer to {} bytes in {} ms",
        said.len(),
        waited.as_millis()
    ))
}

/// Sends a stream each way at once and compares every byte.
pub(super) fn stream(
    netns: &Netns,
    to: SocketAddr,
    secret: &Secret,
    size: usize,
) -> Result<String, String> {
    let start = Instant::now();
    let stream = run_in(netns, || TcpStream::connect_timeout(&to, STREAM))
        .map_err(|error| error.to_string())?
        .map_err(|error| format!("no connection: {error}"))?;
    let broke = |error: io::Error| format!("the connection broke: {error}");
    stream.set_read_timeout(Some(STREAM)).map_err(broke)?;
    stream.set_write_timeout(Some(STREAM)).map_err(broke)?;
    let mut writer = stream.try_clone().map_err(broke)?;
    let said = message(secret, 0, size + secret.len());
    let heard = thread::scope(|scope| {
        let sending = scope.spawn(|| writer.write_all(&said));
        let mut heard = vec![0; size];
        let got = (&stream).read_exact(&mut heard);
        // Whoever does not hear may stop to speak.
        let _ = stream.shutdown(std::net::Shutdown::Both);
        let sent = sending.join();
        got.map_err(broke)?;
        match sent {
            Ok(Ok(())) => Ok(heard),
            Ok(Err(error)) => Err(broke(error)),
            Err(_) => Err("the sender panicked".to_owned()),
        }
    })?;
    if heard != said[secret.len()..] {
        return Err("it came back changed".to_owned());
    }
    Ok(format!(
        "{} KiB and back in {}",
        size >> 10,
        shown(start.elapsed())
    ))
}

/// What two listeners heard of the same conversation, one where it is in clear and one where it must not be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Overheard {
    /// Packets in which the secret could be read.
    pub(super) readable: u64,
    /// Datagrams from or to the peer's UDP address.
    pub(super) with_peer: u64,
    /// Packets that the listener missed.
    pub(super) missed: u32,
}

/// Somebody who listens at devices.
#[derive(Debug)]
pub(super) struct Ear {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<io::Result<Overheard>>,
}

impl Ear {
    /// Listens in a namespace, or in the calling thread's.
    pub(super) fn open(
        netns: Option<&Netns>,
        place: Place,
        secret: Secret,
        peer: SocketAddr,
    ) -> io::Result<Self> {
        let open = || Sniffer::open(place, LINGER / 3);
        let sniffer = match netns {
            Some(netns) => run_in(netns, open).map_err(io::Error::other)??,
            None => open()?,
        };
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let thread = thread::spawn(move || listen(&sniffer, &secret, peer, &told));
        Ok(Self { stop, thread })
    }

    /// Ends it; call it once the conversation is over.
    pub(super) fn close(self) -> io::Result<Overheard> {
        thread::sleep(LINGER);
        self.stop.store(true, Ordering::Relaxed);
        let heard = self.thread.join();
        heard.unwrap_or_else(|_| Err(io::Error::other("the listener panicked")))
    }
}

fn listen(
    sniffer: &Sniffer,
    secret: &Secret,
    peer: SocketAddr,
    stop: &AtomicBool,
) -> io::Result<Overheard> {
    let mut buffer = vec![0; 1 << 16];
    let mut heard = Overheard {
        readable: 0,
        with_peer: 0,
        missed: 0,
    };
    while !stop.load(Ordering::Relaxed) {
        match sniffer.recv(&mut buffer) {
            Ok(seen) => {
                let packet = &buffer[..seen.len.min(buffer.len())];
                heard.readable += u64::from(contains(packet, secret));
                heard.with_peer += u64::from(is_with(packet, peer));
            }
            Err(error) if is_timeout(&error) => {}
            Err(error) => return Err(error),
        }
    }
    heard.missed = sniffer.lost()?;
    Ok(heard)
}

fn contains(packet: &[u8], secret: &Secret) -> bool {
    packet.windows(secret.len()).any(|window| window == secret)
}

/// Whether a frame or packet names the peer's address and port: anywhere, for the link's header differs.
fn is_with(packet: &[u8], peer: SocketAddr) -> bool {
    let names = |bytes: &[u8]| packet.windows(bytes.len()).any(|window| window == bytes);
    let named = match peer.ip() {
        IpAddr::V4(ip) => names(&ip.octets()),
        IpAddr::V6(ip) => names(&ip.octets()),
    };
    named && names(&peer.port().to_be_bytes())
}

/// The secret, the number, and bytes that are never the same at two places.
fn message(secret: &Secret, number: usize, size: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(size + 8);
    bytes.extend_from_slice(secret);
    let mut state = number as u64 + 1;
    while bytes.len() < size {
        state = state.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23) ^ bytes.len() as u64;
        bytes.extend_from_slice(&state.to_be_bytes());
    }
    bytes.truncate(size);
    bytes
}

const fn unspecified(like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
    )
}

fn shown(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_begins_with_the_secret_and_has_its_size() {
        let secret = [9; 16];
        for size in [16, 64, 1471, 8000] {
            let said = message(&secret, 3, size);
            assert_eq!((said.len(), &said[..16]), (size, &secret[..]));
        }
        assert_ne!(message(&secret, 0, 64), message(&secret, 1, 64));
        let long = message(&secret, 0, 4096);
        assert!(contains(&long, &secret) && !contains(&long[1..], &secret));
    }

    #[test]
    fn a_peer_is_recognised_whatever_the_link() {
        let peer: SocketAddr = "192.0.2.7:6783".parse().unwrap();
        let mut frame = vec![0; 60];
        frame[26..30].copy_from_slice(&[192, 0, 2, 7]);
        assert!(!is_with(&frame, peer));
        frame[34..36].copy_from_slice(&6783_u16.to_be_bytes());
        assert!(is_with(&frame, peer));
        assert!(!is_with(&frame, "192.0.2.8:6783".parse().unwrap()));
    }
}
