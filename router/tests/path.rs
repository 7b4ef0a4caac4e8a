//! The data path between two hosts made of network namespaces, with keys given by hand: no control core.
//!
//! Needs root and `ip` (iproute2), `ping` (iputils) and Python 3.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Instant;

use weave_linux::netns::{Netns, run_in};
use weave_model::{ClusterRange, MtuReason, NodeId, Suite};
use weave_router::driver::{Offloads, Workers, WorkersConfig};
use weave_router::path::Input;
use weave_router::path::routes::{NextHop, OpenLanes, Owned, Owner, Peer, Port, Receive, Routes};
use weave_router::session::{Inbound, Keys, Outbound, Terms};
use weave_router::time::Start;

const PREFIX: &str = "wvpath-";

/// Four namespaces: host a, host b, and a container on each. Removed when dropped, and before they are made.
struct Lab;

impl Lab {
    fn new() -> Self {
        remove();
        for name in ["ha", "hb", "ca", "cb"] {
            ip(&format!("netns add {PREFIX}{name}"));
            ip(&format!("-n {PREFIX}{name} link set lo up"));
        }
        ip(&format!(
            "-n {PREFIX}ha link add u0 type veth peer name u0 netns {PREFIX}hb"
        ));
        for (host, container, address, own) in
            [("ha", "ca", "10.99.0.1", 2), ("hb", "cb", "10.99.0.2", 258)]
        {
            ip(&format!("-n {PREFIX}{host} addr add {address}/24 dev u0"));
            ip(&format!("-n {PREFIX}{host} link set u0 up"));
            plug(host, container, own);
        }
        Self
    }
}

/// A container's link, as `attach` makes it.
fn plug(host: &str, container: &str, own: u32) {
    let (h, c) = (format!("{PREFIX}{host}"), format!("{PREFIX}{container}"));
    let (v4, v6) = (range().v4_at(own), range().v6_at(own));
    ip(&format!(
        "-n {h} link add wv0 type veth peer name eth0 netns {c}"
    ));
    ip(&format!("-n {h} link set wv0 gso_max_size 60000 up"));
    ip(&format!("-n {c} link set eth0 gso_max_size 60000 up"));
    ip(&format!("-n {h} addr add fe80::1/64 dev wv0 nodad"));
    ip(&format!(
        "-n {c} addr add {v4}/12 brd + dev eth0 noprefixroute"
    ));
    ip(&format!("-n {c} addr add {v6}/128 dev eth0 nodad"));
    ip(&format!("-n {c} route add 10.32.0.1 dev eth0"));
    ip(&format!("-n {c} route add default via 10.32.0.1"));
    ip(&format!("-n {c} -6 route add default via fe80::1 dev eth0"));
    ip(&format!("-n {h} route add {v4}/32 dev wv0"));
    ip(&format!("-n {h} -6 route add {v6}/128 dev wv0"));
    let sysctl = "cd /proc/sys/net; echo 1 > ipv4/ip_forward; echo 1 > ipv6/conf/all/forwarding; \
                  echo 1 > ipv4/conf/wv0/proxy_arp; echo 0 > ipv4/neigh/wv0/proxy_delay";
    assert!(in_ns(host, &["sh", "-c", sysctl]).status.success());
}

impl Drop for Lab {
    fn drop(&mut self) {
        remove();
    }
}

fn remove() {
    for name in ["ha", "hb", "ca", "cb"] {
        let _ = Command::new("ip")
            .args(["netns", "del", &format!("{PREFIX}{name}")])
            .output();
    }
}

fn ip(arguments: &str) {
    let output = Command::new("ip")
        .args(arguments.split(' '))
        .output()
        .expect("iproute2 is installed");
    assert!(
        output.status.success(),
        "ip {arguments}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn in_ns(name: &str, command: &[&str]) -> Output {
    let ns = format!("{PREFIX}{name}");
    Command::new("ip")
        .args(["netns", "exec", &ns])
        .args(command)
        .output()
        .expect("iproute2 is installed")
}

fn range() -> ClusterRange {
    ClusterRange::new(
        "10.32.0.0/12".parse().unwrap(),
        "fd00:77::/48".parse().unwrap(),
    )
    .unwrap()
}

/// One host's data threads. The receiver keeps the channel to the control core open.
struct Host {
    workers: Workers,
    _inputs: Receiver<Input>,
}

fn start(name: &str, offloads: Offloads) -> Host {
    let ns = format!("{PREFIX}{name}");
    let netns = Netns::open(&ns.parse().unwrap()).unwrap();
    let (sender, inputs) = sync_channel(64);
    let config = WorkersConfig {
        tun: "weave0".into(),
        listen: "[::]:6783".parse().unwrap(),
        offloads,
        inputs: sender,
        start: Start::at(Instant::now()),
    };
    let workers = run_in(&netns, || Workers::start(&config)).unwrap().unwrap();
    ip(&format!(
        "-n {ns} link set weave0 mtu 1500 gso_max_size 60000 up"
    ));
    ip(&format!("-n {ns} addr add 10.32.0.1/32 dev weave0"));
    ip(&format!("-n {ns} route add 10.32.0.0/12 dev weave0"));
    ip(&format!("-n {ns} -6 route add fd00:77::/48 dev weave0"));
    Host {
        workers,
        _inputs: inputs,
    }
}

fn publish(host: &Host, to: &str, keys: (Outbound, Inbound), here: u32, there: u32) {
    let counters = Arc::default();
    let lanes = Arc::new(OpenLanes::default());
    for lane in 0..host.workers.lanes.len() as u8 {
        lanes.open(lane);
        lanes.set_path(lane, 1472, MtuReason::Interface);
    }
    let send = NextHop {
        to: to.parse().unwrap(),
        outbound: Arc::new(keys.0),
        lanes,
        via: None,
    };
    let id = NodeId::from_bytes([9; 32]);
    let peers = vec![Peer {
        id,
        send: Some(send),
        counters: Arc::clone(&counters),
    }];
    let owned = |first, owner| Owned {
        first,
        last: first + 255,
        owner,
    };
    let mut owners = vec![owned(here, Owner::Here), owned(there, Owner::Peer(0))];
    owners.sort_by_key(|owned| owned.first);
    let receive = Receive {
        inbound: Arc::new(keys.1),
        peer: Some(0),
        counters,
    };
    let interface = in_ns(
        if here == 0 { "ha" } else { "hb" },
        &["cat", "/sys/class/net/wv0/ifindex"],
    )
    .stdout;
    let interface = String::from_utf8(interface)
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    let ports = [(
        interface,
        Port {
            offset: here + 2,
            network: 0,
        },
    )]
    .into();
    host.workers.routes.store(Arc::new(Routes {
        me: [0; 16],
        range: Some(range()),
        owners,
        peers,
        inbound: [(7, receive)].into(),
        ports,
        ..Routes::default()
    }));
}

fn connect(offloads: Offloads, suite: Suite) -> (Host, Host) {
    let (a, b) = (start("ha", offloads), start("hb", offloads));
    let lanes = a.workers.lanes.len();
    let terms = Terms {
        peer: NodeId::from_bytes([9; 32]),
        suite,
        lanes,
        index: 7,
        receiver: 7,
        boot: 1,
    };
    publish(
        &a,
        "10.99.0.2:6783",
        Keys::from_split([1; 32], [2; 32]).open(terms),
        0,
        256,
    );
    publish(
        &b,
        "10.99.0.1:6783",
        Keys::from_split([2; 32], [1; 32]).open(terms),
        256,
        0,
    );
    (a, b)
}

fn ping(arguments: &[&str], to: &str) {
    let command = [
        &["ping", "-c", "3", "-i", "0.1", "-W", "2"],
        arguments,
        &[to],
    ]
    .concat();
    let output = in_ns("ca", &command);
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stdout)
    );
}

/// Sends 8 MiB of a known pattern over TCP and compares the digests at both ends.
fn bulk(family: &str, to: &str) {
    let serve = format!(
        "import socket,hashlib\ns=socket.socket(socket.{family});s.bind(('',7000));s.listen();print('up',flush=True)\n\
         c,_=s.accept();h=hashlib.sha256()\nwhile d:=c.recv(1<<16): h.update(d)\nprint(h.hexdigest())"
    );
    let send = format!(
        "import socket,hashlib\nd=bytes(i*7%256 for i in range(1<<16))*128;s=socket.create_connection(('{to}',7000),5)\n\
         s.sendall(d);s.close();print(hashlib.sha256(d).hexdigest())"
    );
    let ns = format!("{PREFIX}cb");
    let mut server = Command::new("ip")
        .args([
            "netns", "exec", &ns, "timeout", "20", "python3", "-c", &serve,
        ])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = BufReader::new(server.stdout.take().unwrap());
    output.read_line(&mut String::new()).unwrap();
    let sent = in_ns("ca", &["timeout", "20", "python3", "-c", &send]);
    let mut received = String::new();
    output.read_to_string(&mut received).unwrap();
    server.wait().unwrap();
    assert!(
        !received.is_empty(),
        "nothing arrived: {}",
        String::from_utf8_lossy(&sent.stderr)
    );
    assert_eq!(String::from_utf8_lossy(&sent.stdout), received);
}

/// One body for every set of facilities: what a container can do must not depend on them.
fn everything_arrives(offloads: Offloads, suite: Suite) {
    let _lab = Lab::new();
    let (a, b) = connect(offloads, suite);
    let (v4, v6) = (
        range().v4_at(258).to_string(),
        range().v6_at(258).to_string(),
    );
    ping(&[], &v4);
    ping(&[], &v6);
    ping(&["-s", "1472", "-M", "do"], &v4);
    ping(&["-s", "9000"], &v4);
    ping(&["-s", "9000"], &v6);
    bulk("AF_INET", &v4);
    bulk("AF_INET6", &v6);
    let ((sent, _), (_, received)) = (a.workers.counts(), b.workers.counts());
    assert_eq!(
        sent.drops()
            .filter(|(why, _)| *why != weave_model::Drop::LinkScope)
            .count(),
        0,
        "{sent:?}"
    );
    // On a busy machine slices sent one by one may come too late for one another: that is no loss for TCP.
    assert_eq!(
        received
            .drops()
            .filter(|(why, _)| *why != weave_model::Drop::Incomplete)
            .count(),
        0,
        "{received:?}"
    );
    assert!(received.bytes > 16 << 20, "{received:?}");
    assert!(
        offloads.gso == (sent.calls * 5 < sent.datagrams),
        "batches are sent when they are to be: {sent:?}"
    );
    assert!(
        offloads.gro || received.batches == received.datagrams,
        "nothing is joined: {received:?}"
    );
}

#[test]
fn containers_on_two_hosts_reach_each_other_with_any_set_of_offloads() {
    let all = Offloads::default();
    everything_arrives(all, Suite::Aes256Gcm);
    everything_arrives(all, Suite::ChaCha20Poly1305);
    everything_arrives(Offloads { gso: false, ..all }, Suite::Aes256Gcm);
    everything_arrives(
        Offloads {
            gro: false,
            uso: false,
            ..all
        },
        Suite::Aes256Gcm,
    );
    everything_arrives(
        Offloads {
            multiqueue: false,
            ..all
        },
        Suite::Aes256Gcm,
    );
}
