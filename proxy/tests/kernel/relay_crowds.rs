//! Many at once at the relay: who waits for whom, and who gets what is left. All on one core, where it has one thread.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::process::Command;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use weave_linux::intercept;
use weave_linux::netns::{Netns, run_in};
use weave_model::{EngineChoice, Protocol};
use weave_proxy::relay::{Counts, Relay};
use weave_proxy::sources::Change;

use crate::lab::{A, B, C, Lab, at, exposed, ip, slice, udp, udp_socket, until};
use crate::relay_ends::report;
use crate::relay_udp::deaf;

const WEB: &str = "10.96.0.1:80";
const NODE_PORT: &str = "192.0.2.2:30080";
const PATIENCE: Duration = Duration::from_secs(20);
/// Longer than an endpoint may take to take a connection.
const BUSY: Duration = Duration::from_millis(400);

/// Keeps this thread and what it starts on the first core that it may have.
fn on_one_core() {
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
    let list = status
        .lines()
        .find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    let first = list.unwrap().trim().split([',', '-']).next().unwrap();
    let thread = std::fs::read_link("/proc/thread-self").unwrap();
    let thread = thread.file_name().unwrap().to_str().unwrap();
    let done = Command::new("taskset")
        .args(["-pc", first, thread])
        .output()
        .unwrap();
    assert!(done.status.success(), "{done:?}");
}

fn relay(lab: &Lab) -> &Relay {
    lab.relay.as_ref().unwrap()
}

fn counts(lab: &Lab) -> Counts {
    relay(lab).counts()
}

/// Serves whole crowds at port 8082 of a container with a byte each, and tells who came.
fn serve(netns: &Netns) -> Receiver<IpAddr> {
    let any = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 8082));
    let listener = run_in(netns, || intercept::listen(any)).unwrap().unwrap();
    listener.set_nonblocking(false).unwrap();
    let (sender, came) = channel();
    thread::spawn(move || {
        while let Ok((mut stream, peer)) = listener.accept() {
            let told = sender.send(peer.ip());
            if stream.write_all(b"x").is_err() && told.is_err() {
                return;
            }
        }
    });
    came
}

fn crowd(from: &Netns, count: usize) -> Vec<TcpStream> {
    let open = |_| {
        let stream = TcpStream::connect(WEB).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    };
    run_in(from, || (0..count).map(open).collect()).unwrap()
}

/// However long the relay takes to accept all that came at once, endpoints that answer in time have not failed.
#[test]
fn that_thousands_come_at_once_is_no_endpoints_fault() {
    on_one_core();
    let mut lab = Lab::new(EngineChoice::Relay);
    let _came = [serve(&lab.b), serve(&lab.c)];
    report(&mut lab, &[B, C]);
    let groups = relay(&lab).routes().groups();
    // While nobody can be picked the relay takes nobody in but the first.
    let busy = groups[0].balancer();
    let streams = crowd(&lab.a, 2000);
    thread::sleep(BUSY);
    drop(busy);
    for mut stream in streams {
        stream.read_exact(&mut [0]).unwrap();
    }
    for seen in groups[0].balancer().seen(Instant::now()) {
        assert_eq!(
            (seen.counts.failures, seen.counts.retries),
            (0, 0),
            "{seen:?}"
        );
    }
}

/// Those who come by one listener do not wait until nobody comes by another.
#[test]
fn a_crowd_from_the_host_does_not_hold_up_containers() {
    on_one_core();
    let mut lab = Lab::new(EngineChoice::Relay);
    let came = serve(&lab.c);
    report(&mut lab, &[C]);
    let groups = relay(&lab).routes().groups();
    let busy = groups[0].balancer();
    let _crowd = crowd(&lab.host, 500);
    let few = crowd(&lab.a, 5);
    drop(busy);
    for mut stream in few {
        stream.read_exact(&mut [0]).unwrap();
    }
    let order: Vec<IpAddr> = (0..100)
        .map(|_| came.recv_timeout(PATIENCE).unwrap())
        .collect();
    let of_a = order.iter().filter(|peer| **peer == ip(A)).count();
    assert_eq!(of_a, 5, "of the first hundred");
}

/// TCP at B, and UDP at one in C who only listens.
fn silent(lab: &mut Lab) -> std::net::UdpSocket {
    let silent = run_in(&lab.c, || std::net::UdpSocket::bind("[::]:8999").unwrap()).unwrap();
    let Change::Slice(mut tcp) = slice([at(B)]) else {
        unreachable!("it is a slice")
    };
    tcp.ports.retain(|port| port.protocol == Protocol::Tcp);
    lab.report([Change::Service(exposed()), Change::Slice(tcp), deaf(C)]);
    silent
}

/// Connections until no more are taken.
fn fill(lab: &Lab) -> Vec<TcpStream> {
    let streams = crowd(&lab.a, 60);
    until("it is full", || counts(lab).waits > 0);
    streams
}

#[test]
fn when_connections_have_all_that_they_may_a_new_client_of_udp_is_served() {
    let mut lab = Lab::new(EngineChoice::Relay);
    lab.report([Change::Service(exposed()), slice([at(B)])]);
    lab.end_relay();
    lab.restart_relay(16);
    let _full = fill(&lab);
    assert_eq!(udp(&lab.a, WEB).server(), "b");
    assert_eq!(counts(&lab).lost, 0);
}

/// A session of a new front needs two descriptors, and one that ends for it leaves one.
#[test]
fn sessions_give_way_to_one_that_needs_more_than_each_of_them() {
    on_one_core();
    let mut lab = Lab::new(EngineChoice::Relay);
    let _silent = silent(&mut lab);
    lab.end_relay();
    // Of 48 descriptors connections have 44, and three sessions of one front the rest.
    lab.restart_relay(24);
    let _full = fill(&lab);
    for _ in 0..3 {
        udp_socket(&lab.a, WEB).send(b"log").unwrap();
    }
    until("all were heard", || counts(&lab).begun == 3);
    assert_eq!((counts(&lab).open, counts(&lab).displaced), (22, 0));
    udp_socket(&lab.outside, NODE_PORT).send(b"log").unwrap();
    until("one more was heard", || {
        counts(&lab).begun + counts(&lab).lost == 4
    });
    let all = counts(&lab);
    assert_eq!(
        (all.lost, all.displaced, all.sessions),
        (0, 2, 2),
        "{all:?}"
    );
}
