//! What answers a test: a container of the node's own that says again what it is told, to those who know its secret.
//!
//! The secret is made for one test and told to the one who asked, inside a session or on the node itself. So other
//! containers find a host there that answers nobody, and cannot make two of them talk to each other.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use weave_linux::netns::run_in;
use weave_linux::poll;
use weave_model::api::{Code, Refusal};

use super::Node;
use super::seat::Seat;

/// How often the threads look whether they are to end.
const LOOK: Duration = Duration::from_millis(100);

/// How long one connection may take, and how many bytes it may bring.
const CONNECTION: Duration = Duration::from_secs(5);
const MOST: usize = 8 << 20;

/// What a caller has to say first.
pub(super) type Secret = [u8; 16];

/// Where a responder is and what it wants to hear.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct At {
    /// Its addresses, IPv4 first.
    pub(super) addresses: Vec<IpAddr>,
    /// Its port for datagrams.
    pub(super) udp: u16,
    /// Its port for streams.
    pub(super) tcp: u16,
    /// What each datagram and each stream begins with.
    pub(super) secret: Secret,
}

/// A running responder; it ends when it is dropped.
#[derive(Debug)]
pub(super) struct Responder {
    at: At,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    _seat: Seat,
}

impl Responder {
    /// Attaches a container and lets it answer.
    pub(super) async fn start(node: &Node) -> Result<Self, Refusal> {
        let seat = Seat::take(node).await?;
        let addresses: Vec<IpAddr> = seat.addresses().collect();
        let v6 = addresses.iter().any(IpAddr::is_ipv6);
        let failed = |cause: &dyn std::fmt::Display| {
            let cause = format!("a container of the node's own cannot listen: {cause}");
            Refusal::new(Code::Failed, cause, "look at the log of the kernel")
        };
        let opened = run_in(&seat.netns(), || open(v6)).map_err(|error| failed(&error))?;
        let (datagrams, streams) = opened.map_err(|error| failed(&error))?;
        let ports = [datagrams.local_addr(), streams.local_addr()];
        let [Ok(udp), Ok(tcp)] = ports.map(|address| address.map(|address| address.port())) else {
            return Err(failed(&"it has no address"));
        };
        let secret: Secret = rand::random();
        let stop = Arc::new(AtomicBool::new(false));
        let [one, two] = [Arc::clone(&stop), Arc::clone(&stop)];
        let first = spawn(move || answer_datagrams(&datagrams, &secret, &one));
        let second = spawn(move || answer_streams(&streams, &secret, &two));
        let threads = match (first, second) {
            (Ok(first), Ok(second)) => vec![first, second],
            (Err(error), _) | (_, Err(error)) => {
                stop.store(true, Ordering::Relaxed);
                return Err(failed(&error));
            }
        };
        let at = At {
            addresses,
            udp,
            tcp,
            secret,
        };
        Ok(Self {
            at,
            stop,
            threads,
            _seat: seat,
        })
    }

    /// Where it is.
    pub(super) const fn at(&self) -> &At {
        &self.at
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        // The threads see it soon and end by themselves; nothing waits for them.
        self.stop.store(true, Ordering::Relaxed);
        self.threads.clear();
    }
}

fn spawn(body: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    thread::Builder::new().spawn(body)
}

fn open(v6: bool) -> io::Result<(UdpSocket, TcpListener)> {
    let any: IpAddr = if v6 {
        Ipv6Addr::UNSPECIFIED.into()
    } else {
        Ipv4Addr::UNSPECIFIED.into()
    };
    let datagrams = UdpSocket::bind(SocketAddr::new(any, 0))?;
    datagrams.set_read_timeout(Some(LOOK))?;
    Ok((datagrams, TcpListener::bind(SocketAddr::new(any, 0))?))
}

fn answer_datagrams(socket: &UdpSocket, secret: &Secret, stop: &AtomicBool) {
    let mut buffer = vec![0; 1 << 16];
    while !stop.load(Ordering::Relaxed) {
        let Ok((len, from)) = socket.recv_from(&mut buffer) else {
            continue;
        };
        if buffer[..len].starts_with(secret) {
            // Whoever asked asks again when an answer is lost.
            let _ = socket.send_to(&buffer[..len], from);
        }
    }
}

fn answer_streams(listener: &TcpListener, secret: &Secret, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        let ready = poll::readable(&[listener.as_fd()], Some(LOOK));
        if ready.is_ok_and(|ready| ready != 0)
            && let Ok((stream, from)) = listener.accept()
            && let Err(error) = answer_stream(stream, secret, stop)
        {
            tracing::debug!(%error, %from, "a stream to a responder ended early");
        }
    }
}

fn answer_stream(mut stream: TcpStream, secret: &Secret, stop: &AtomicBool) -> io::Result<()> {
    let until = Instant::now() + CONNECTION;
    stream.set_read_timeout(Some(CONNECTION / 5))?;
    stream.set_write_timeout(Some(CONNECTION / 5))?;
    let mut said = [0; 16];
    stream.read_exact(&mut said)?;
    if said != *secret {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    let mut buffer = vec![0; 1 << 16];
    let mut left = MOST;
    while left > 0 && Instant::now() < until && !stop.load(Ordering::Relaxed) {
        let len = stream.read(&mut buffer)?;
        if len == 0 {
            return Ok(());
        }
        stream.write_all(&buffer[..len])?;
        left = left.saturating_sub(len);
    }
    Err(io::ErrorKind::TimedOut.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_knows_the_secret_is_answered() {
        let (datagrams, streams) = open(false).unwrap();
        let local = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let to = [datagrams.local_addr(), streams.local_addr()].map(|at| local(at.unwrap().port()));
        let stop = AtomicBool::new(false);
        let secret = [7; 16];
        thread::scope(|scope| {
            scope.spawn(|| answer_datagrams(&datagrams, &secret, &stop));
            scope.spawn(|| answer_streams(&streams, &secret, &stop));
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            socket
                .set_read_timeout(Some(Duration::from_secs(10)))
                .unwrap();
            socket.send_to(b"let me in, whoever", to[0]).unwrap();
            let known = [&secret[..], b"hello"].concat();
            socket.send_to(&known, to[0]).unwrap();
            let mut heard = [0; 64];
            let len = socket.recv(&mut heard).unwrap();
            assert_eq!(
                heard[..len],
                known,
                "the first answer is to the second datagram"
            );

            let mut stranger = TcpStream::connect(to[1]).unwrap();
            stranger.write_all(b"sixteen letters!").unwrap();
            assert_eq!(
                stranger.read(&mut heard).unwrap_or(0),
                0,
                "it is hung up on"
            );
            let mut friend = TcpStream::connect(to[1]).unwrap();
            friend.write_all(&known).unwrap();
            friend.read_exact(&mut heard[..5]).unwrap();
            assert_eq!(&heard[..5], b"hello");
            drop(friend);
            stop.store(true, Ordering::Relaxed);
        });
    }
}
