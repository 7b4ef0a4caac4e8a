//! What only the engine in user space does with datagrams: another endpoint for what was refused, node ports at loopback
//! addresses, sessions that move and that are bounded, and what comes after its end.

use std::net::UdpSocket;
use std::time::Duration;

use weave_linux::netns::run_in;
use weave_model::{
    Affinity, Balance, EngineChoice, Protocol, Service, Slice, SlicePort, TrafficPolicy,
};
use weave_proxy::relay::{Counts, Relay};
use weave_proxy::sources::Change;

use crate::lab::{
    Answer, B, C, FAR, Lab, OWN, ask, at, exposed, ip, ok, slice, slice6, udp, udp_socket, until,
    web,
};

const DNS: &str = "10.96.0.1:80";
const NODE_PORT: &str = "192.0.2.2:30080";
const PATIENCE: Duration = Duration::from_secs(10);

fn with(service: Service, endpoints: &[&str]) -> Lab {
    let mut lab = Lab::new(EngineChoice::Relay);
    let endpoints = endpoints.iter().map(|address| at(address));
    lab.report([Change::Service(service), slice(endpoints)]);
    lab
}

fn counts(lab: &Lab) -> Counts {
    lab.relay.as_ref().unwrap().counts()
}

/// An endpoint whose host says that nobody listens at its port.
pub(crate) fn deaf(address: &str) -> Change {
    let Change::Slice(of) = slice([at(address)]) else {
        unreachable!("it is a slice")
    };
    Change::Slice(Slice {
        name: "deaf".to_owned(),
        ports: vec![SlicePort {
            name: "udp".to_owned(),
            protocol: Protocol::Udp,
            port: Some(8999),
        }],
        ..of
    })
}

#[test]
fn datagrams_from_everywhere_go_through_it_and_a_session_keeps_its_endpoint() {
    let lab = with(web(), &[B, C]);
    for (number, from) in [&lab.a, &lab.host, &lab.outside].into_iter().enumerate() {
        let client = udp_socket(from, DNS);
        let first = ask(&client, PATIENCE);
        assert!(["b", "c"].contains(&first.server()), "{first:?}");
        assert!((0..20).all(|_| ask(&client, PATIENCE) == first));
        assert_eq!(counts(&lab).begun, number as u64 + 1);
    }
    assert_eq!((counts(&lab).sessions, counts(&lab).lost), (3, 0));
    // Connection tracking knows nothing of what has to be the kernel's at once when the relay ends.
    let tracked = ok(&lab.host, "cat /proc/net/nf_conntrack || true");
    assert!(!tracked.contains("dst=10.96.0.1"), "{tracked}");
}

#[test]
fn what_an_endpoint_refuses_another_one_gets() {
    let mut lab = with(web(), &[B]);
    lab.report([deaf(C)]);
    let failures = |lab: &Lab| {
        let groups = lab.relay.as_ref().unwrap().routes().groups();
        let group = groups.iter().find(|one| one.key.protocol == Protocol::Udp);
        let seen = group.unwrap().balancer().seen(std::time::Instant::now());
        let refusing = seen.iter().find(|one| one.address.port() == 8999).unwrap();
        refusing.counts.failures
    };
    // A relay takes to one that is new little by little.
    until("the other one was asked", || {
        // Each asks once: the answer is to the very datagram that may have been refused.
        assert_eq!(udp(&lab.a, DNS).server(), "b");
        failures(&lab) > 0
    });
}

#[test]
fn node_ports_are_served_at_loopback_addresses_of_both_families() {
    let mut lab = Lab::new(EngineChoice::Auto);
    let both = Service {
        addresses: vec![ip(crate::lab::VIP), ip("fd96::1")],
        ..exposed()
    };
    lab.report([Change::Service(both), slice([at(B)]), slice6(&["fd77::2"])]);
    assert_eq!(udp(&lab.host, "127.0.0.1:30080").server(), "b");
    assert_eq!(udp(&lab.host, "[::1]:30080").server(), "a");
    assert_eq!(counts(&lab).begun, 2);
    // The kernel has it at all other addresses.
    assert_eq!(udp(&lab.host, "192.0.2.2:30080").server(), "b");
    assert_eq!(udp(&lab.a, DNS).server(), "b");
    assert_eq!(counts(&lab).begun, 2);
    lab.report([slice([])]);
    assert_eq!(udp(&lab.host, "127.0.0.1:30080"), Answer::Refused);
}

#[test]
fn both_families_and_other_nodes_see_who_they_should() {
    let both = Service {
        addresses: vec![ip(crate::lab::VIP), ip("fd96::1")],
        ..web()
    };
    let mut lab = with(both, &[FAR]);
    lab.report([slice6(&["fd77::3"])]);
    assert_eq!(udp(&lab.c, "[fd96::1]:80").saw(), Some(ip("fd77::4")));
    assert_eq!(udp(&lab.a, DNS).saw(), Some(ip(crate::lab::A)));
    assert_eq!(udp(&lab.host, DNS).saw(), Some(ip(OWN)));
    assert_eq!(udp(&lab.outside, DNS).saw(), Some(ip(OWN)));
}

#[test]
fn clients_keep_their_endpoint_over_sessions_where_they_should() {
    for service in [
        Service {
            affinity: Affinity::ClientIp { seconds: 3600 },
            ..web()
        },
        Service {
            affinity: Affinity::ClientIp { seconds: 3600 },
            balance: Some(Balance::Maglev),
            ..web()
        },
    ] {
        let lab = with(service, &[B, C]);
        let first = udp(&lab.a, DNS);
        assert!((0..20).all(|_| udp(&lab.a, DNS) == first));
    }
}

/// Large ones in both directions, and empty ones.
#[test]
fn datagrams_of_every_size_are_carried_whole() {
    let mut lab = with(web(), &[]);
    let echo = run_in(&lab.c, || UdpSocket::bind("[::]:8999").unwrap()).unwrap();
    std::thread::spawn(move || {
        let mut bytes = vec![0; 65_535];
        while let Ok((count, peer)) = echo.recv_from(&mut bytes) {
            let _ = echo.send_to(&bytes[..count], peer);
        }
    });
    lab.report([deaf(C)]);
    let client = udp_socket(&lab.a, DNS);
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    for size in [0, 1, 1472, 1473, 9000, 65_000] {
        let said: Vec<u8> = (0..size).map(|n: u32| (n * 7) as u8).collect();
        let mut back = vec![0; 65_535];
        client.send(&said).unwrap();
        let count = client.recv(&mut back).unwrap();
        assert!(back[..count] == said, "{size}");
    }
}

#[test]
fn when_the_relay_ends_the_kernel_serves_the_same_client_at_once_and_back() {
    let mut lab = with(web(), &[B, C]);
    let clients: Vec<UdpSocket> = [&lab.a, &lab.host, &lab.outside]
        .map(|from| udp_socket(from, DNS))
        .into();
    let all_served = || {
        clients
            .iter()
            .all(|client| ["b", "c"].contains(&ask(client, PATIENCE).server()))
    };
    assert!(all_served());
    lab.end_relay();
    assert!(all_served(), "the same sockets, by the kernel");
    lab.restart_relay(usize::MAX);
    assert!(all_served(), "and by the relay again");
    assert_eq!(counts(&lab).begun, 3);
}

#[test]
fn sessions_end_with_their_service_and_leave_nothing() {
    let mut lab = with(web(), &[B]);
    let client = udp_socket(&lab.a, DNS);
    assert_eq!(ask(&client, PATIENCE).server(), "b");
    let sockets = || ok(&lab.host, "ss -Hnua | grep -c 10.96.0.1:80 || true");
    assert_eq!(sockets().trim(), "1");
    let other = Service {
        ports: vec![crate::lab::port(Protocol::Tcp, 80, None)],
        ..web()
    };
    lab.report([Change::Service(other)]);
    until("the session ends", || counts(&lab).sessions == 0);
    let sockets = || ok(&lab.host, "ss -Hnua | grep -c 10.96.0.1:80 || true");
    until("its socket is closed", || sockets().trim() == "0");
    assert_eq!(ask(&client, PATIENCE), Answer::Refused);
}

/// There is room for few: those that are answered and go on stay, newcomers are lost and counted, and TCP feels nothing.
#[test]
fn at_the_limit_sessions_that_are_answered_stay() {
    let mut lab = with(web(), &[B]);
    lab.end_relay();
    lab.restart_relay(16);
    let clients: Vec<UdpSocket> = (0..60).map(|_| udp_socket(&lab.a, DNS)).collect();
    let short = Duration::from_millis(300);
    let (mut served, mut lost) = (Vec::new(), 0);
    for client in &clients {
        match ask(client, short) {
            Answer::From { .. } => served.push(client),
            _ => lost += 1,
        }
        for client in &served {
            assert_eq!(ask(client, PATIENCE).server(), "b");
        }
    }
    let all = counts(&lab);
    assert!(lost > 0 && all.lost >= lost, "{all:?}");
    assert!(all.sessions <= 16, "{all:?}");
    assert_eq!(crate::lab::tcp(&lab.a, DNS).server(), "b");
}

/// One who only listens is no answer: many such sessions give way to others.
#[test]
fn at_the_limit_sessions_without_an_answer_give_way() {
    let mut lab = with(web(), &[]);
    let _silent = run_in(&lab.c, || UdpSocket::bind("[::]:8999").unwrap()).unwrap();
    lab.report([deaf(C)]);
    lab.end_relay();
    lab.restart_relay(16);
    for _ in 0..60 {
        udp_socket(&lab.a, DNS).send(b"log").unwrap();
    }
    until("all of them were heard", || counts(&lab).begun == 60);
    let all = counts(&lab);
    assert!(all.sessions <= 16 && all.displaced > 0, "{all:?}");
    assert_eq!(all.lost, 0);
}

#[test]
fn a_relay_that_is_dropped_leaves_no_sockets() {
    let mut lab = with(web(), &[B]);
    assert_eq!(udp(&lab.a, DNS).server(), "b");
    lab.end_relay();
    // A process that another test has just begun may have them for a moment.
    until("all are closed", || {
        ok(&lab.host, "ss -Hnua | wc -l").trim() == "0"
    });
    let again: Relay = run_in(&lab.host, Relay::start).unwrap().unwrap();
    drop(again);
}

#[test]
fn all_that_was_not_answered_goes_to_the_next_endpoint() {
    let mut lab = with(web(), &[]);
    let silent = run_in(&lab.c, || UdpSocket::bind("[::]:8999").unwrap()).unwrap();
    lab.report([deaf(C)]);
    let client = udp_socket(&lab.a, DNS);
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    for _ in 0..3 {
        client.send(b"?").unwrap();
        silent.recv(&mut [0]).unwrap();
    }
    drop(silent);
    lab.report([slice([at(B)])]);
    client.send(b"?").unwrap();
    for number in 1..=4 {
        let count = client.recv(&mut [0; 64]).unwrap_or(0);
        assert!(count > 0, "answer {number} of 4");
    }
}

/// Sessions stay where they are, but are not picked for as it was before.
#[test]
fn a_session_is_picked_for_anew_as_the_policy_is_now() {
    let policy = |external| {
        Change::Service(Service {
            external,
            ..exposed()
        })
    };
    let mut lab = with(exposed(), &[B]);
    let clients: Vec<UdpSocket> = (0..8)
        .map(|_| udp_socket(&lab.outside, NODE_PORT))
        .collect();
    let short = Duration::from_millis(200);
    for client in &clients {
        assert_eq!(ask(client, PATIENCE).server(), "b");
    }
    lab.report([policy(TrafficPolicy::Local), slice([at(B), at(FAR)])]);
    crate::rolling::close(&lab.b);
    for client in &clients {
        assert_eq!(ask(client, short), Answer::Nothing, "there is none here");
    }
    lab.report([policy(TrafficPolicy::Cluster)]);
    until("all are served", || {
        clients.iter().all(|one| ask(one, short).server() == "far")
    });
}

/// TCP at B, and UDP at one in C, who hears whoever asks.
fn asked(lab: &mut Lab) -> UdpSocket {
    let asked = run_in(&lab.c, || UdpSocket::bind("[::]:8999").unwrap()).unwrap();
    asked.set_read_timeout(Some(PATIENCE)).unwrap();
    let Change::Slice(mut tcp) = slice([at(B)]) else {
        unreachable!("it is a slice")
    };
    tcp.ports.retain(|port| port.protocol == Protocol::Tcp);
    lab.report([Change::Service(web()), Change::Slice(tcp), deaf(C)]);
    asked
}

/// As on SIGTERM: the kernel has every further datagram, to whom a client's port is as good as any, while the relay asks by
/// ports of its own.
#[test]
fn from_the_beginning_of_a_planned_end_datagrams_are_the_kernels() {
    let mut lab = with(web(), &[]);
    let endpoint = asked(&mut lab);
    let clients = [&lab.a, &lab.host, &lab.outside].map(|from| udp_socket(from, DNS));
    let talk = |said: &[u8]| {
        clients
            .each_ref()
            .map(|client| turn(client, &endpoint, said))
    };
    let ports = clients
        .each_ref()
        .map(|client| client.local_addr().unwrap().port());
    let by_relay = talk(b"before");
    assert!(by_relay.iter().all(|port| !ports.contains(port)));
    let (open, _) = crate::lab::connect(&lab.a, DNS, PATIENCE).unwrap();
    let Lab { relay, a, .. } = &mut lab;
    let relay = relay.as_mut().unwrap();
    let watch = relay.watch();
    std::thread::scope(|scope| {
        let draining = scope.spawn(|| relay.drain().wait(PATIENCE));
        until("new connections are the kernel's", || {
            let accepted = watch.counts().accepted;
            crate::lab::tcp(a, DNS).server() == "b" && watch.counts().accepted == accepted
        });
        assert_eq!(talk(b"during"), ports);
        let Counts {
            sessions,
            begun,
            lost,
            ..
        } = watch.counts();
        assert_eq!((sessions, begun, lost), (0, 3, 0));
        assert!(!draining.is_finished(), "it waits for a connection");
        drop(open);
        assert_eq!(draining.join().unwrap(), 0);
    });
    assert_eq!(talk(b"after"), ports);
}

/// A client says something, hears the answer, and the port by which its endpoint heard it is told.
fn turn(client: &UdpSocket, endpoint: &UdpSocket, said: &[u8]) -> u16 {
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client.send(said).unwrap();
    let mut heard = [0; 8];
    let (count, peer) = endpoint
        .recv_from(&mut heard)
        .unwrap_or_else(|error| panic!("nothing of {client:?}: {error}"));
    assert_eq!(&heard[..count], said);
    endpoint.send_to(said, peer).unwrap();
    let count = client.recv(&mut heard).unwrap();
    assert_eq!(&heard[..count], said);
    peer.port()
}
