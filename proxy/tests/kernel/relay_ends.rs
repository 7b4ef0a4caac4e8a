//! The ends of what the relay carries: behind a receiver without room, at an endpoint that fails, without an answer, and
//! the relay's own.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use socket2::SockRef;
use weave_linux::intercept::reset_on_drop;
use weave_linux::netns::{Netns, run_in};
use weave_model::{EngineChoice, SlicePort};
use weave_proxy::relay::Relay;
use weave_proxy::sources::Change;

use crate::lab::{B, C, Lab, at, ip, ok, slice, until, web};

const WEB: &str = "10.96.0.1:80";
const PATIENCE: Duration = Duration::from_secs(20);
/// How long those who read are late.
const LATE: Duration = Duration::from_millis(300);

pub(crate) fn lab() -> Lab {
    let lab = Lab::new(EngineChoice::Relay);
    for reader in [&lab.a, &lab.c] {
        ok(reader, "sysctl -qw net.ipv4.tcp_rmem='4096 16384 16384'");
    }
    lab
}

/// Serves at port 8082 of a container, each connection by itself.
pub(crate) fn serve(netns: &Netns, each: impl Fn(TcpStream) + Send + Sync + 'static) {
    let listener = run_in(netns, || TcpListener::bind("[::]:8082").unwrap()).unwrap();
    let each = Arc::new(each);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let each = Arc::clone(&each);
            thread::spawn(move || {
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                each(stream);
            });
        }
    });
}

/// Has the Service lead to port 8082 of containers.
pub(crate) fn report(lab: &mut Lab, addresses: &[&str]) {
    let Change::Slice(mut all) = slice(addresses.iter().map(|address| at(address))) else {
        unreachable!("it is a slice")
    };
    all.ports = vec![SlicePort {
        name: "tcp".to_owned(),
        protocol: weave_model::Protocol::Tcp,
        port: Some(8082),
    }];
    lab.report([Change::Service(web()), Change::Slice(all)]);
}

fn relay(lab: &Lab) -> &Relay {
    lab.relay.as_ref().unwrap()
}

/// How often an endpoint was picked, and has failed.
fn noted(lab: &Lab, address: &str) -> (u64, u64) {
    let groups = relay(lab).routes().groups();
    let seen = groups[0].balancer().seen(Instant::now());
    let one = seen.iter().find(|seen| seen.address.ip() == ip(address));
    let counts = one.unwrap().counts;
    (counts.picks, counts.failures)
}

pub(crate) fn open(from: &Netns) -> TcpStream {
    let stream = run_in(from, || TcpStream::connect(WEB)).unwrap().unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// How many bytes come before the end, to one who begins late.
fn read_late(mut stream: &TcpStream) -> usize {
    thread::sleep(LATE);
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    bytes.len()
}

/// Says so many bytes, then some of which the middle one is urgent.
fn say_urgently(mut to: &TcpStream, before: usize) {
    to.write_all(&vec![b'.'; before]).unwrap();
    to.write_all(b"abc").unwrap();
    SockRef::from(to).send_out_of_band(b"X").unwrap();
    to.write_all(b"def").unwrap();
}

/// What of it comes, which ends the test when it does not.
fn hear_urgently(mut from: &TcpStream, before: usize) {
    let mut heard = vec![0; before + 7];
    from.read_exact(&mut heard).unwrap();
    assert!(heard[..before].iter().all(|byte| *byte == b'.'));
    assert_eq!(&heard[before..], b"abcXdef", "after {before}");
}

/// A read stops before what is urgent, and nothing tells that there is more behind it; a pipe does not take it at all.
#[test]
fn urgent_data_is_carried_among_the_rest_both_ways() {
    for before in [0, 1 << 20] {
        for ends in [false, true] {
            let mut lab = lab();
            let (told, heard) = channel();
            let both = move |stream: &TcpStream| {
                thread::scope(|scope| {
                    scope.spawn(|| {
                        say_urgently(stream, before);
                        if ends {
                            stream.shutdown(Shutdown::Write).unwrap();
                        }
                    });
                    hear_urgently(stream, before);
                });
                if ends {
                    assert_eq!((&*stream).read(&mut [0]).unwrap(), 0);
                }
            };
            serve(&lab.c, move |stream| {
                both(&stream);
                told.send(stream).unwrap();
            });
            report(&mut lab, &[C]);
            for _ in 0..8 {
                let stream = open(&lab.a);
                both(&stream);
                let _open = heard.recv_timeout(PATIENCE).unwrap();
            }
        }
    }
}

/// For some of them the relay waits for room having read all but what comes last; the largest have a pipe.
fn sizes() -> Vec<usize> {
    let many = (20_000..200_000).step_by(3_000);
    many.chain([600_000, 1_000_000]).collect()
}

/// Sends so much in two parts, the second one being small, and its end.
fn send(mut stream: &TcpStream, size: usize) {
    stream.write_all(&vec![7; size - 100]).unwrap();
    thread::sleep(LATE / 3);
    stream.write_all(&[7; 100]).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
}

#[test]
fn the_clients_end_arrives_behind_an_endpoint_that_reads_late() {
    let (told, heard) = channel();
    let mut lab = lab();
    serve(&lab.c, move |stream| told.send(read_late(&stream)).unwrap());
    report(&mut lab, &[C]);
    let sent = sizes();
    let streams: Vec<TcpStream> = sent.iter().map(|_| open(&lab.a)).collect();
    thread::scope(|scope| {
        for (stream, size) in streams.iter().zip(&sent) {
            scope.spawn(move || send(stream, *size));
        }
    });
    let each = sent.iter().map(|_| heard.recv_timeout(PATIENCE).unwrap());
    let mut came: Vec<usize> = each.collect();
    came.sort_unstable();
    assert_eq!(came, sent);
    drop(streams);
    until("nothing is open", || is_empty(&lab));
}

#[test]
fn the_endpoints_end_arrives_behind_a_client_that_reads_late() {
    let (sent, next) = (sizes(), AtomicUsize::new(0));
    let mut lab = lab();
    serve(&lab.c, move |stream| {
        send(&stream, sizes()[next.fetch_add(1, Relaxed)]);
    });
    report(&mut lab, &[C]);
    let streams: Vec<TcpStream> = sent.iter().map(|_| open(&lab.a)).collect();
    let mut came: Vec<usize> = thread::scope(|scope| {
        let read = |stream| scope.spawn(move || read_late(stream));
        let each: Vec<_> = streams.iter().map(read).collect();
        each.into_iter().map(|one| one.join().unwrap()).collect()
    });
    came.sort_unstable();
    assert_eq!(came, sent);
    drop(streams);
    until("nothing is open", || is_empty(&lab));
}

fn is_empty(lab: &Lab) -> bool {
    relay(lab).counts().open == 0
}

/// A client may have said all that it has to say, which is nothing, before the endpoint that heard it fails.
#[test]
fn an_end_that_one_endpoint_has_heard_is_told_to_the_next_one() {
    let mut lab = lab();
    serve(&lab.c, |mut stream| {
        assert_eq!(stream.read(&mut [0]).unwrap(), 0);
        reset_on_drop(&stream).unwrap();
    });
    serve(&lab.b, |mut stream| {
        assert_eq!(stream.read(&mut [0]).unwrap(), 0);
        stream.write_all(b"b").unwrap();
    });
    report(&mut lab, &[B, C]);
    for _ in 0..20 {
        let mut stream = open(&lab.a);
        stream.shutdown(Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        assert_eq!(answer, b"b");
    }
    let (picks, failures) = noted(&lab, C);
    assert!(failures > 0 && picks == failures, "{picks} {failures}");
}

/// With few connections open it would get all others: one that takes what is asked and ends without a word has failed.
#[test]
fn an_endpoint_that_ends_connections_without_an_answer_is_left_out() {
    let mut lab = lab();
    serve(&lab.c, |mut stream| stream.read_exact(&mut [0]).unwrap());
    serve(&lab.b, |mut stream| {
        stream.read_exact(&mut [0]).unwrap();
        stream.write_all(b"b").unwrap();
    });
    report(&mut lab, &[B, C]);
    let mut mute = 0;
    for _ in 0..60 {
        let mut stream = open(&lab.a);
        stream.write_all(b"?").unwrap();
        mute += usize::from(stream.read(&mut [0]).unwrap() == 0);
    }
    assert!((1..=10).contains(&mute), "{mute} of 60");
    until("nothing is open", || is_empty(&lab));
    let (picks, failures) = noted(&lab, C);
    assert_eq!((picks, failures), (mute as u64, mute as u64));
}

/// What changes while the relay ends must not bring it new connections.
#[test]
fn one_that_ends_takes_nothing_more_whatever_changes() {
    let mut lab = lab();
    serve(&lab.c, |mut stream| stream.write_all(b"c").unwrap());
    serve(&lab.b, |mut stream| stream.write_all(b"b").unwrap());
    report(&mut lab, &[C]);
    assert_eq!(open(&lab.a).read(&mut [0]).unwrap(), 1);
    assert_eq!(lab.relay.as_mut().unwrap().drain(PATIENCE), 0);
    report(&mut lab, &[B]);
    let mut answer = [0];
    open(&lab.a).read_exact(&mut answer).unwrap();
    assert_eq!((answer, relay(&lab).counts().accepted), (*b"b", 1));
}

/// Breaks a connection as whoever is killed does.
fn break_off(stream: TcpStream) {
    reset_on_drop(&stream).unwrap();
    drop(stream);
}

/// Nobody reads from the client any more, or what it sent has nowhere to go: that it broke is seen all the same.
#[test]
fn a_client_that_breaks_leaves_nothing_open_at_an_endpoint_that_hangs() {
    let mut lab = lab();
    let (sender, held) = channel();
    serve(&lab.b, move |stream| sender.send(stream).unwrap());
    report(&mut lab, &[B]);

    let ended = open(&lab.a);
    send(&ended, 100);
    ended.shutdown(Shutdown::Write).unwrap();
    let _first = held.recv_timeout(PATIENCE).unwrap();
    let full = open(&lab.a);
    full.set_write_timeout(Some(LATE)).unwrap();
    let _second = held.recv_timeout(PATIENCE).unwrap();
    while (&full).write(&[0; 65_536]).is_ok() {}
    until("both are carried", || relay(&lab).counts().open == 2);
    break_off(ended);
    break_off(full);
    until("nothing is left", || is_empty(&lab));
}

/// The same for an endpoint that has sent its end, and breaks before the client has sent its own.
#[test]
fn an_endpoint_that_breaks_behind_its_end_leaves_nothing_open() {
    let mut lab = lab();
    let (sender, ended) = channel();
    serve(&lab.b, move |stream| {
        stream.shutdown(Shutdown::Write).unwrap();
        sender.send(stream).unwrap();
    });
    report(&mut lab, &[B]);

    let client = open(&lab.a);
    assert_eq!(read_late(&client), 0);
    break_off(ended.recv_timeout(PATIENCE).unwrap());
    until("nothing is left", || is_empty(&lab));
}

/// An endpoint that refuses what is too long answers and closes while the client still sends: the answer arrives.
#[test]
fn an_answer_to_what_is_still_being_sent_arrives() {
    const ANSWER: &[u8] = b"413 too long";
    let mut lab = lab();
    serve(&lab.b, |mut stream| {
        stream.read_exact(&mut [0; 1]).unwrap();
        // Until the relay has no room any more either.
        thread::sleep(LATE);
        stream.write_all(ANSWER).unwrap();
    });
    report(&mut lab, &[B]);

    for _ in 0..10 {
        let client = open(&lab.a);
        client.set_write_timeout(Some(PATIENCE)).unwrap();
        let writer = client.try_clone().unwrap();
        let writing = thread::spawn(move || while (&writer).write(&[7; 65_536]).is_ok() {});
        let mut said = Vec::new();
        // The break comes behind it, or the end.
        let _ = (&client).read_to_end(&mut said);
        writing.join().unwrap();
        assert_eq!(said, ANSWER);
    }
    until("nothing is left", || is_empty(&lab));
}

/// Packets that containers got by TCP.
fn received(netns: &Netns) -> u64 {
    let told = ok(netns, "nstat -asz TcpInSegs | grep -o '^TcpInSegs *[0-9]*'");
    told.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Its packets are most of what a short connection costs: the endpoint has the confirmation with the question, and the
/// client the end with the answer. Where the question comes late, the endpoint's is one more.
#[test]
fn a_short_connection_takes_no_packet_more_than_it_has_to() {
    let mut lab = lab();
    serve(&lab.b, |mut stream| {
        SockRef::from(&stream).set_tcp_cork(true).unwrap();
        stream.read_exact(&mut [0; 4]).unwrap();
        stream.write_all(b"answer").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    });
    report(&mut lab, &[B]);

    until("one that takes as few as can be", || {
        let before = [&lab.a, &lab.b].map(received);
        let mut client = open(&lab.a);
        client.write_all(b"ask!").unwrap();
        let mut said = Vec::new();
        client.read_to_end(&mut said).unwrap();
        assert_eq!(said, b"answer");
        drop(client);
        until("nothing is left", || is_empty(&lab));
        // Granted, question heard, answer and end, end heard; asked for, question, answer heard, end.
        [received(&lab.a) - before[0], received(&lab.b) - before[1]] == [4, 4]
    });
}

/// An endpoint that speaks first has to know that it is heard: without a word of the client it is told, and not only when
/// the kernel confirms what it has put off (200 ms).
#[test]
fn an_endpoint_that_speaks_first_does_not_wait_for_a_confirmation() {
    let mut lab = lab();
    serve(&lab.b, |mut stream| {
        stream.write_all(b"220 ready").unwrap();
        assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    });
    report(&mut lab, &[B]);

    let took = (0..10).map(|_| {
        let since = Instant::now();
        open(&lab.a).read_exact(&mut [0; 9]).unwrap();
        since.elapsed()
    });
    let least = took.min().unwrap();
    assert!(least < Duration::from_millis(100), "{least:?}");
}

/// Half an answer must not look like a whole one.
#[test]
fn what_is_open_when_the_relay_ends_is_reset() {
    let mut lab = lab();
    let (sender, held) = channel();
    serve(&lab.b, move |mut stream| {
        stream.write_all(b"half").unwrap();
        sender.send(stream).unwrap();
    });
    report(&mut lab, &[B]);
    let mut client = open(&lab.a);
    client.read_exact(&mut [0; 4]).unwrap();
    let mut server = held.recv_timeout(PATIENCE).unwrap();
    lab.relay.as_mut().unwrap().drain(LATE);
    lab.relay = None;
    for side in [&mut client, &mut server] {
        let end = side.read(&mut [0]).map_err(|error| error.kind());
        assert_eq!(end, Err(std::io::ErrorKind::ConnectionReset));
    }
}
