//! What only the engine in user space does: another try, node ports at loopback addresses, ends and resets that cross
//! it, endpoints that fail in every way, and its own end.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};
use weave_linux::intercept::reset_on_drop;
use weave_linux::netns::{Netns, run_in};
use weave_model::{Affinity, Balance, Engine, EngineChoice, Service, SlicePort};
use weave_proxy::relay::Relay;
use weave_proxy::sources::Change;
use weave_proxy::table::Diff;

use crate::lab::{
    Answer, B, C, Lab, VIP, at, connect, echoes, exposed, ip, slice, slice6, tcp, udp, until, web,
};

const WEB: &str = "10.96.0.1:80";
const PATIENCE: Duration = Duration::from_secs(20);
/// Nobody is here: a route leads to a container that has another address.
const NOBODY: &str = "10.32.0.77";

fn lab(endpoints: &[&str]) -> Lab {
    with(web(), endpoints)
}

fn with(service: Service, endpoints: &[&str]) -> Lab {
    let mut lab = Lab::new(EngineChoice::Relay);
    crate::lab::ok(&lab.host, "ip route add 10.32.0.77/32 dev wva");
    let endpoints = endpoints.iter().map(|address| at(address));
    lab.report([Change::Service(service), slice(endpoints)]);
    lab
}

fn relay(lab: &Lab) -> &Relay {
    lab.relay.as_ref().unwrap()
}

/// Daemons that configure networks take rules of routing away that are not theirs, when they start.
#[test]
fn the_way_to_it_is_made_again_when_somebody_takes_it_away() {
    let lab = lab(&[B]);
    assert_eq!(tcp(&lab.a, WEB).server(), "b");
    let rules = crate::lab::ok(&lab.host, "ip rule list; ip -6 rule list");
    let ours: Vec<&str> = rules
        .lines()
        .filter(|rule| rule.contains("fwmark"))
        .collect();
    assert_eq!(ours.len(), 2, "one for each family: {rules}");
    let (priority, _) = ours[0].split_once(':').unwrap();
    crate::lab::ok(
        &lab.host,
        &format!("ip rule del priority {priority}; ip -6 rule del priority {priority}"),
    );
    let lost = connect(&lab.a, WEB, Duration::from_millis(300));
    assert!(lost.is_err(), "there is no way to it");
    run_in(&lab.host, || relay(&lab).look_after())
        .unwrap()
        .unwrap();
    assert_eq!(tcp(&lab.a, WEB).server(), "b");
}

/// With `disable_ipv6` no route leads to a device by IPv6. It may be off from the beginning, and come and go.
#[test]
fn where_ipv6_is_off_ipv4_is_served_and_ipv6_as_soon_as_it_is_on() {
    let six = Service {
        addresses: [ip(VIP), ip("fd96::1")].into(),
        ..web()
    };
    let mut lab = with(six, &[B]);
    lab.report([slice6(&["fd77::3"])]);
    lab.end_relay();
    crate::lab::ok(
        &lab.host,
        "ip -6 rule del priority 783; ip -6 route flush table 6783",
    );
    let off = "sysctl -qw net.ipv6.conf.all.disable_ipv6=1";
    crate::lab::ok(&lab.host, off);
    lab.restart_relay(usize::MAX);
    let look = |lab: &Lab| run_in(&lab.host, || relay(lab).look_after()).unwrap();
    for round in 0..2 {
        look(&lab).unwrap();
        let accepted = || relay(&lab).counts().accepted;
        let before = accepted();
        assert_eq!(tcp(&lab.a, WEB).server(), "b");
        assert_eq!(accepted(), before + 1, "round {round}");
        // What the host had is gone with it.
        crate::lab::ok(
            &lab.host,
            "sysctl -qw net.ipv6.conf.all.disable_ipv6=0
             for one in wva:2 wvb:3; do
               ip addr add fe80::1/64 dev ${one%:*} nodad; ip route add fd77::${one#*:}/128 dev ${one%:*}
             done",
        );
        look(&lab).unwrap();
        assert_eq!(tcp(&lab.a, "[fd96::1]:80").server(), "b");
        assert_eq!(accepted(), before + 2, "round {round}");
        crate::lab::ok(&lab.host, off);
    }
}

/// A host may give what passes its bridges to the rules of IP (`br_netfilter`), and take to it or leave it at any time.
#[test]
fn clients_behind_a_bridge_are_served_whether_or_not_rules_are_asked_there() {
    let mut lab = with(exposed(), &[B]);
    let behind = Netns::create().unwrap();
    crate::lab::wire(&lab.host, "port0", &behind);
    crate::lab::ok(
        &lab.host,
        "ip link add br0 type bridge; ip link set br0 up; ip link set port0 master br0; ip addr add 172.30.0.1/24 dev br0",
    );
    crate::lab::ok(
        &behind,
        "ip addr add 172.30.0.2/24 dev eth0; ip route add default via 172.30.0.1",
    );
    for round in 0..2 {
        for ruled in [true, false] {
            let set = ["iptables", "ip6tables"]
                .map(|rules| format!("net.bridge.bridge-nf-call-{rules}={}", u8::from(ruled)));
            let set = format!("sysctl -qw {}", set.join(" "));
            crate::lab::ok(&lab.host, &set);
            let is_outdated = run_in(&lab.host, || relay(&lab).is_outdated()).unwrap();
            assert!(is_outdated || round == 0, "it was {ruled} before");
            lab.report([]);
            let before = relay(&lab).counts().accepted;
            assert_eq!(tcp(&behind, WEB).server(), "b", "ruled: {ruled}");
            assert_eq!(tcp(&lab.a, WEB).server(), "b", "who is behind none");
            let taken = relay(&lab).counts().accepted - before;
            assert_eq!(taken, if ruled { 1 } else { 2 }, "ruled: {ruled}");
            // While another one's session has a socket of the front's address.
            for to in [WEB, "192.0.2.2:30080"] {
                for from in [&lab.a, &behind] {
                    assert_eq!(udp(from, to).server(), "b", "ruled: {ruled}, {to}");
                }
            }
        }
    }
}

/// What the balancer of the only TCP port has noted: picks, failures, retries, ejections of an endpoint.
pub(crate) fn noted(lab: &Lab, address: &str) -> [u64; 4] {
    let groups = relay(lab).routes().groups();
    let seen = groups[0].balancer().seen(Instant::now());
    let one = seen.iter().find(|seen| seen.address.ip() == ip(address));
    let counts = one.unwrap().counts;
    [
        counts.picks,
        counts.failures,
        counts.retries,
        counts.ejections,
    ]
}

fn open(from: &Netns, to: &str) -> (TcpStream, Answer) {
    connect(from, to, PATIENCE).unwrap()
}

/// Serves on port 8080 of a container in place of what serves there else, one connection after the other.
fn serve_otherwise(
    netns: &Netns,
    mut each: impl FnMut(TcpStream) -> io::Result<()> + Send + 'static,
) -> Change {
    let listener = run_in(netns, || TcpListener::bind("[::]:8081").unwrap()).unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let _ = stream.and_then(&mut each);
        }
    });
    // A slice whose port is that one.
    let Change::Slice(slice) = slice([]) else {
        unreachable!("it is a slice")
    };
    Change::Slice(weave_model::Slice {
        name: "odd".to_owned(),
        ports: vec![SlicePort {
            name: "tcp".to_owned(),
            protocol: weave_model::Protocol::Tcp,
            port: Some(8081),
        }],
        ..slice
    })
}

fn odd(change: Change, address: &str) -> Change {
    let Change::Slice(slice) = change else {
        unreachable!("it is a slice")
    };
    Change::Slice(weave_model::Slice {
        endpoints: vec![at(address)],
        ..slice
    })
}

#[test]
fn connections_from_everywhere_are_the_relays_unless_their_service_asks_for_the_kernel() {
    let mut lab = lab(&[B]);
    for (number, from) in [&lab.a, &lab.host, &lab.outside].into_iter().enumerate() {
        assert_eq!(tcp(from, WEB).server(), "b");
        assert_eq!(relay(&lab).counts().accepted, number as u64 + 1);
    }
    let kernel = Service {
        engine: Some(Engine::Kernel),
        ..web()
    };
    lab.report([Change::Service(kernel)]);
    assert_eq!(tcp(&lab.a, WEB).server(), "b");
    assert_eq!(relay(&lab).counts().accepted, 3);
    until("nothing is open", || relay(&lab).counts().open == 0);
}

/// How long an idle socket waits until the other end is asked whether it is there, of a line of `ss -o`; in seconds.
fn asks_in(line: &str) -> Option<u64> {
    let (_, timer) = line.split_once("timer:(keepalive,")?;
    let (time, _) = timer.split_once(',')?;
    match time.strip_suffix("min") {
        Some(minutes) => minutes.parse::<u64>().ok().map(|minutes| minutes * 60),
        None => time.strip_suffix("sec")?.parse().ok(),
    }
}

/// A client or an endpoint may be lost without a word; nothing else would ever end the connection then. The kernel's own time
/// is two hours.
#[test]
fn both_sides_of_what_is_silent_are_asked_within_a_minute_whether_they_are_there() {
    let lab = lab(&[B]);
    // The endpoint sees the container's address, and the node's for the one outside: these are dialled in different ways.
    let _open = [&lab.a, &lab.outside].map(|from| open(from, WEB));
    until("all four sockets of the relay ask", || {
        let sockets = crate::lab::ok(&lab.host, "ss -Htno state established");
        let asking = sockets.lines().map(asks_in);
        asking.clone().count() == 4 && asking.flatten().filter(|time| *time <= 60).count() == 4
    });
}

#[test]
fn with_auto_a_service_asks_for_the_relay_by_how_it_is_to_be_balanced() {
    let mut lab = Lab::new(EngineChoice::Auto);
    lab.report([Change::Service(web()), slice([at(B)])]);
    assert_eq!(tcp(&lab.a, WEB).server(), "b");
    assert_eq!(relay(&lab).counts().accepted, 0);
    let balanced = Service {
        balance: Some(Balance::Latency),
        ..web()
    };
    lab.report([Change::Service(balanced)]);
    assert_eq!(tcp(&lab.a, WEB).server(), "b");
    assert_eq!(relay(&lab).counts().accepted, 1);
}

#[test]
fn node_ports_are_served_at_loopback_addresses_of_both_families() {
    let mut lab = Lab::new(EngineChoice::Auto);
    let both = Service {
        addresses: vec![ip(VIP), ip("fd96::1")],
        ..exposed()
    };
    lab.report([Change::Service(both), slice([at(B)]), slice6(&["fd77::2"])]);
    assert_eq!(tcp(&lab.host, "127.0.0.1:30080").server(), "b");
    assert_eq!(tcp(&lab.host, "[::1]:30080").server(), "a");
    assert_eq!(relay(&lab).counts().accepted, 2);
    // The kernel has it at all other addresses.
    assert_eq!(tcp(&lab.host, "192.0.2.2:30080").server(), "b");
    assert_eq!(relay(&lab).counts().accepted, 2);
    lab.report([slice([])]);
    assert_eq!(tcp(&lab.host, "127.0.0.1:30080"), Answer::Refused);
}

#[test]
fn an_endpoint_that_is_not_there_costs_no_connection_and_is_left_out() {
    let lab = lab(&[NOBODY, B, C]);
    for _ in 0..60 {
        assert!(["b", "c"].contains(&tcp(&lab.a, WEB).server()));
    }
    let [picks, failures, retries, ejections] = noted(&lab, NOBODY);
    assert_eq!((picks, picks), (failures, retries));
    assert!(
        (3..20).contains(&picks) && ejections > 0,
        "{picks} {ejections}"
    );
}

#[test]
fn an_endpoint_that_breaks_connections_before_the_first_byte_costs_none() {
    let mut lab = lab(&[B]);
    let refuse = serve_otherwise(&lab.c, |stream| reset_on_drop(&stream));
    lab.report([odd(refuse, C)]);
    for _ in 0..60 {
        assert_eq!(tcp(&lab.a, WEB).server(), "b");
    }
    assert!(noted(&lab, C)[1] > 0);
}

/// What a client has said may have been done: nobody else gets it. But one that breaks connections without an answer is
/// left out as one that cannot be reached.
#[test]
fn an_endpoint_that_breaks_connections_after_the_first_byte_is_left_out() {
    let mut lab = lab(&[B]);
    let breaks = serve_otherwise(&lab.c, |mut stream| {
        stream.read_exact(&mut [0])?;
        reset_on_drop(&stream)
    });
    lab.report([odd(breaks, C)]);
    let mut broken = 0;
    for _ in 0..60 {
        let mut stream = run_in(&lab.a, || TcpStream::connect(WEB)).unwrap().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let said = stream.write_all(b"?");
        broken += usize::from(said.and_then(|()| stream.read_exact(&mut [0; 4])).is_err());
    }
    assert!(broken <= 10, "{broken} of 60");
    let [picks, failures, ..] = noted(&lab, C);
    assert_eq!((picks, picks), (failures, broken as u64));
}

/// What the kernel has refused once may be what was done before. With the rules that were there, connections would go on
/// to come to it, and end.
#[test]
fn rules_that_the_kernel_refuses_to_change_are_made_anew() {
    let mut lab = lab(&[B]);
    let before = lab.sources.table().clone();
    lab.report([slice([])]);
    let after = lab.sources.table().clone();
    let again = Diff::between(&before, &after);
    let facts = lab.sources.facts().clone();
    let relay = lab.relay.as_mut().unwrap();
    relay.apply(&after, &again, &facts).unwrap();
    assert_eq!(tcp(&lab.a, WEB), Answer::Refused);
    lab.report([slice([at(C)])]);
    for from in [&lab.a, &lab.host, &lab.outside] {
        assert_eq!(tcp(from, WEB).server(), "c");
    }
    assert_eq!(self::relay(&lab).counts().accepted, 3);
}

#[test]
fn nobody_there_breaks_the_connection_within_the_time_of_all_tries() {
    let lab = lab(&[NOBODY]);
    let start = Instant::now();
    assert_eq!(tcp(&lab.a, WEB), Answer::Refused);
    assert!(start.elapsed() > Duration::from_secs(3));
    until("nothing is open", || relay(&lab).counts().open == 0);
}

#[test]
fn an_endpoint_that_hangs_gets_fewer_connections() {
    let mut lab = lab(&[B]);
    // It takes connections and never says a word.
    let mut kept = Vec::new();
    let hang = serve_otherwise(&lab.c, move |stream| {
        kept.push(stream);
        Ok(())
    });
    lab.report([odd(hang, C)]);
    let (mut hung, mut streams) = (0, Vec::new());
    for _ in 0..40 {
        let stream = run_in(&lab.a, || TcpStream::connect(WEB)).unwrap().unwrap();
        stream
            .set_read_timeout(Some(Duration::from_millis(100)))
            .unwrap();
        if (&stream).read_exact(&mut [0; 4]).is_err() {
            hung += 1;
            streams.push(stream);
        }
    }
    assert!(hung <= 4, "{hung} of 40: those that hang count as open");
}

#[test]
fn each_direction_ends_by_itself() {
    let lab = lab(&[B]);
    let (mut stream, _) = open(&lab.a, WEB);
    stream.write_all(b"all of it").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut back = String::new();
    stream.read_to_string(&mut back).unwrap();
    assert_eq!(back, "all of it");
    until("nothing is open", || relay(&lab).counts().open == 0);
}

#[test]
fn a_reset_crosses_in_both_directions() {
    let mut lab = lab(&[]);
    let (told, heard) = std::sync::mpsc::channel();
    let odd_one = serve_otherwise(&lab.c, move |mut stream| {
        stream.write_all(b"c 10.0.0.1\n")?;
        let mut byte = [0];
        match stream.read(&mut byte)? {
            0 => told.send("an end").unwrap(),
            _ if byte == *b"r" => return reset_on_drop(&stream),
            _ => {}
        }
        if stream
            .read(&mut byte)
            .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionReset)
        {
            told.send("a reset").unwrap();
        }
        Ok(())
    });
    lab.report([odd(odd_one, C)]);
    let (mut stream, _) = open(&lab.a, WEB);
    stream.write_all(b"r").unwrap();
    let error = stream.read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    let (mut stream, _) = open(&lab.a, WEB);
    stream.write_all(b"w").unwrap();
    reset_on_drop(&stream).unwrap();
    drop(stream);
    assert_eq!(heard.recv_timeout(PATIENCE).unwrap(), "a reset");
}

/// 64 MB go to a server that sends them back, while the client does not read until it has written more than all
/// buffers on the way hold; what comes back is what went.
#[test]
fn streams_are_carried_whole_and_wait_for_slow_readers() {
    let lab = lab(&[B]);
    let (stream, _) = open(&lab.a, WEB);
    let pattern = |from: u64| -> Vec<u8> {
        (from..from + 65_536)
            .map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8)
            .collect()
    };
    const BLOCKS: u64 = 1024;
    thread::scope(|scope| {
        let mut to = stream.try_clone().unwrap();
        scope.spawn(move || {
            for block in 0..BLOCKS {
                to.write_all(&pattern(block * 65_536)).unwrap();
            }
            to.shutdown(Shutdown::Write).unwrap();
        });
        thread::sleep(Duration::from_millis(300));
        let (mut from, mut block) = (&stream, vec![0; 65_536]);
        for number in 0..BLOCKS {
            from.read_exact(&mut block).unwrap();
            assert!(block == pattern(number * 65_536), "block {number}");
        }
        assert_eq!(from.read(&mut block).unwrap(), 0);
    });
}

#[test]
fn clients_keep_their_endpoint_until_it_fails() {
    let sticky = Service {
        affinity: Affinity::ClientIp { seconds: 3600 },
        ..web()
    };
    let lab = with(sticky, &[NOBODY, B, C]);
    let first = tcp(&lab.a, WEB);
    assert!((0..20).all(|_| tcp(&lab.a, WEB) == first));
}

#[test]
fn when_the_relay_ends_the_kernel_serves_at_once_and_back() {
    let mut lab = lab(&[B, C]);
    let (mut broken, _) = open(&lab.a, WEB);
    assert!(echoes(&mut broken));
    lab.end_relay();
    assert!(!echoes(&mut broken), "its connections end with it");
    for from in [&lab.a, &lab.host, &lab.outside] {
        assert_eq!(lab.servers(from, WEB, 30), ["b", "c"]);
    }
    lab.restart_relay(usize::MAX);
    assert_eq!(lab.servers(&lab.host, WEB, 30), ["b", "c"]);
    assert!(relay(&lab).counts().accepted >= 30);
}

#[test]
fn a_planned_end_lets_what_is_open_end_by_itself() {
    let mut lab = lab(&[B]);
    let mut streams: Vec<TcpStream> = [&lab.a, &lab.host, &lab.outside]
        .map(|from| open(from, WEB).0)
        .into();
    let Lab { relay, a, .. } = &mut lab;
    let relay = relay.as_mut().unwrap();
    thread::scope(|scope| {
        let draining = scope.spawn(|| relay.drain().wait(PATIENCE));
        for _ in 0..10 {
            thread::sleep(Duration::from_millis(30));
            assert!(streams.iter_mut().all(echoes));
            assert_eq!(tcp(a, WEB).server(), "b", "new ones are the kernel's");
        }
        assert!(!draining.is_finished());
        drop(std::mem::take(&mut streams));
        assert_eq!(draining.join().unwrap(), 0);
    });
    assert_eq!(relay.counts().accepted, 3);
}

/// A listener whose queue is full keeps nothing of a client until it brings a cookie back, and so does one that is told to.
#[test]
fn clients_that_bring_cookies_back_are_served() {
    let both = Service {
        addresses: [ip(VIP), ip("fd96::1")].into(),
        ..web()
    };
    let mut lab = with(both, &[B]);
    lab.report([slice6(&["fd77::3"])]);
    crate::lab::ok(&lab.host, "sysctl -qw net.ipv4.tcp_syncookies=2");
    for from in [&lab.a, &lab.host, &lab.outside] {
        for to in [WEB, "[fd96::1]:80"] {
            assert_eq!(tcp(from, to).server(), "b");
        }
    }
    assert_eq!(relay(&lab).counts().accepted, 6);
    assert_eq!(cookies_back(&lab), 6);
}

/// How many cookies clients brought back.
fn cookies_back(lab: &Lab) -> u64 {
    let told = crate::lab::ok(&lab.host, "nstat -asz TcpExtSyncookiesRecv");
    let mut words = told
        .split_whitespace()
        .skip_while(|word| !word.starts_with("Tcp"));
    words.nth(1).and_then(|count| count.parse().ok()).unwrap()
}

/// Connections that are begun and never made, more than the listeners' queues hold, keep nobody out.
#[test]
fn who_begins_connections_and_makes_none_keeps_nobody_out() {
    let mut lab = lab(&[B]);
    lab.end_relay();
    crate::lab::ok(&lab.host, "sysctl -qw net.core.somaxconn=8");
    lab.restart_relay(usize::MAX);
    crate::lab::ok(
        &lab.c,
        "nft 'add table ip unheard; add chain ip unheard in { type filter hook input priority 0; }
              add rule ip unheard in tcp flags & (syn | ack) == syn | ack drop'",
    );
    let front: SocketAddr = WEB.parse().unwrap();
    let begin = || {
        let socket = Socket::new(Domain::IPV4, Type::STREAM.nonblocking(), None).unwrap();
        let _ = socket.connect(&front.into());
        socket
    };
    let begun: Vec<Socket> = run_in(&lab.c, || (0..200).map(|_| begin()).collect()).unwrap();
    for _ in 0..10 {
        assert_eq!(tcp(&lab.a, WEB).server(), "b");
    }
    drop(begun);
    assert!(cookies_back(&lab) > 0);
}

/// With as many connections as there may be, those beyond wait in the kernel's queue: what is open goes on, and each
/// that ends lets one in.
#[test]
fn at_the_limit_new_ones_wait_and_the_others_feel_nothing() {
    let mut lab = lab(&[B]);
    lab.end_relay();
    lab.restart_relay(8);
    let (mut served, mut waiting) = (Vec::new(), Vec::new());
    for _ in 0..40 {
        let stream = run_in(&lab.a, || TcpStream::connect(WEB)).unwrap().unwrap();
        let short = Some(Duration::from_millis(150));
        stream.set_read_timeout(short).unwrap();
        let answered = (&stream).read_exact(&mut [0; 2]).is_ok();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        if answered {
            served.push(stream);
        } else {
            waiting.push(stream);
        }
    }
    assert!(served.len() <= 8 && !waiting.is_empty());
    let counts = relay(&lab).counts();
    assert!(counts.open <= 8);
    // Those of a listener wait together, however long.
    assert!((1..=40).contains(&counts.waits), "{}", counts.waits);
    for stream in &mut served {
        let mut line = Vec::new();
        while line.last() != Some(&b'\n') {
            line.push(0);
            stream
                .read_exact(line.last_mut().map(std::slice::from_mut).unwrap())
                .unwrap();
        }
        assert!(echoes(stream));
    }
    drop(served);
    // Each thread has a queue of its own, so whoever waited longest is not served first.
    let end = Instant::now() + PATIENCE;
    while !waiting.is_empty() {
        assert!(Instant::now() < end, "{} wait for ever", waiting.len());
        waiting.retain(|stream| {
            let moment = Some(Duration::from_millis(10));
            stream.set_read_timeout(moment).unwrap();
            (&*stream).read_exact(&mut [0; 2]).is_err()
        });
    }
}
