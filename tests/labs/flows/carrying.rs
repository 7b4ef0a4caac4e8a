//! What flows of these labs carry, and whether that is what was counted.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use serde_json::Value;

use super::PATIENCE;
use crate::lab::ns::Ns;
use crate::lab::traffic::{udp, wait_for};

/// Bytes that each TCP flow of these labs carries from who began it.
const SIZE: usize = 2 << 20;

/// Bytes of the answer.
const ANSWER: usize = 1 << 20;

/// How many datagrams [`stream_of_datagrams`] sends.
pub(super) const DATAGRAMS: u64 = 50;

/// Sends [`SIZE`] bytes over one connection, which are answered by [`ANSWER`] when all of them were read.
pub(super) fn send(from: &Ns, to: &Ns, ip: IpAddr, port: u16) {
    let address = SocketAddr::new(ip, port);
    send_to(from, address, (to, address));
}

/// The same to another address than the one that listens, which leads there in time.
pub(super) fn send_to(from: &Ns, asked: SocketAddr, (to, listens): (&Ns, SocketAddr)) {
    let listener = to
        .inside(|| TcpListener::bind(listens))
        .expect("the port is free");
    let reader = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a connection comes");
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).expect("all of it comes");
        stream.write_all(&vec![8; ANSWER]).expect("it is read");
        bytes.len()
    });
    let mut stream = connect_in_time(from, asked);
    stream.write_all(&vec![7; SIZE]).expect("it is read");
    stream.shutdown(Shutdown::Write).expect("it is open");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("all of it comes");
    assert_eq!(answer.len(), ANSWER);
    assert_eq!(reader.join().expect("the reader ends"), SIZE);
}

/// A connection to who listens, as soon as the way there is known.
pub(super) fn connect_in_time(from: &Ns, to: SocketAddr) -> TcpStream {
    let mut stream = None;
    wait_for(&format!("{to} takes a connection up"), PATIENCE, || {
        stream = from.inside(|| TcpStream::connect(to)).ok();
        stream.is_some()
    });
    stream.expect("it was just there")
}

/// Whether a flow counted what [`send`] carries.
pub(super) fn carried(flow: &Value) -> bool {
    counted(flow, [SIZE as u64, ANSWER as u64])
}

/// Bytes of IP that a container's device has sent and received, those that TCP sent anew as well.
pub(super) fn passed(container: &Ns) -> [u64; 2] {
    const ETHERNET: u64 = 14;
    let said = container.sh("ip -s -j link show eth0");
    let shown: Value = serde_json::from_str(&said).expect("ip writes JSON");
    ["tx", "rx"].map(|way| {
        let stats = &shown[0]["stats64"][way];
        let number = |field: &str| stats[field].as_u64().expect("it is counted");
        number("bytes") - ETHERNET * number("packets")
    })
}

/// Whether a flow counted what [`send`] carries, of which so many bytes passed.
pub(super) fn counted(flow: &Value, [sent, received]: [u64; 2]) -> bool {
    within(flow, "sent_bytes", SIZE as u64, sent)
        && within(flow, "received_bytes", ANSWER as u64, received)
}

/// Whether a flow counted what [`exchange`] carries: 20 or 40 bytes of IP and 8 of UDP on each datagram as well.
pub(super) fn exchanged(flow: &Value) -> bool {
    let carries = |direction, bytes| within(flow, direction, bytes, bytes);
    carries("sent_bytes", DATAGRAMS * 1000) && carries("received_bytes", DATAGRAMS * 1200)
}

/// Whether a flow counted all bytes that it carried, and at most a twentieth more than passed: headers and
/// acknowledgements.
fn within(flow: &Value, direction: &str, carried: u64, passed: u64) -> bool {
    let counted = flow[direction].as_u64();
    counted.is_some_and(|counted| (carried..passed * 105 / 100).contains(&counted))
}

/// Sends datagrams of 1000 bytes to a port, each of which is answered by one of 1200.
pub(super) fn stream_of_datagrams(from: (&Ns, IpAddr), to: (&Ns, IpAddr), port: u16) {
    let (left, right) = (udp(from.0, (from.1, 0)), udp(to.0, (to.1, port)));
    exchange(&left, (to.1, port).into(), &right);
}

fn exchange(left: &UdpSocket, asked: SocketAddr, right: &UdpSocket) {
    for _ in 0..DATAGRAMS {
        left.send_to(&[1; 1000], asked).expect("it leaves");
        let (_, asker) = right.recv_from(&mut [0; 1500]).expect("it arrives");
        right.send_to(&[2; 1200], asker).expect("it leaves");
        left.recv_from(&mut [0; 1500]).expect("it is answered");
    }
}

/// The same through a Service, once a datagram of one byte came by it.
pub(super) fn datagrams_to(from: (&Ns, IpAddr), asked: SocketAddr, to: (&Ns, SocketAddr)) {
    let (left, right) = (udp(from.0, (from.1, 0)), udp(to.0, to.1));
    let patience = right.read_timeout().expect("a socket has one");
    let moment = Some(Duration::from_millis(100));
    right.set_read_timeout(moment).expect("it is not zero");
    wait_for(&format!("{asked} leads to {}", to.1), PATIENCE, || {
        // Refused until somebody is behind it.
        let _ = left.send_to(&[1], asked);
        right.recv_from(&mut [0; 1]).is_ok()
    });
    right.set_read_timeout(patience).expect("it is not zero");
    exchange(&left, asked, &right);
}

/// A connection through a Service that is taken up and has carried something, until both ends are dropped.
pub(super) fn hold(client: (&Ns, SocketAddr), server: (&Ns, IpAddr)) -> [TcpStream; 2] {
    let listener = server
        .0
        .inside(|| TcpListener::bind((server.1, 8005)))
        .expect("the port is free");
    let mut stream = connect_in_time(client.0, client.1);
    let (mut taken, _) = listener.accept().expect("a connection comes");
    stream.write_all(&[7; 1000]).expect("it is read");
    taken.read_exact(&mut [0; 1000]).expect("all of it comes");
    [stream, taken]
}
