//! A member that lies: about kinds, sizes and offsets, about who sent a packet and to whom, with slices that overlap.
//! Real data threads and a real kernel; the member has true keys and nothing else is true of it.
//!
//! Every lie is counted under its reason, none is written to the kernel, and the kernel has nothing to say about it.
//! Needs root and `ip` (iproute2).

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::{SocketAddr, UdpSocket};
use std::process::Command;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

use etherparse::PacketBuilder;
use weave_linux::netns::{Netns, run_in};
use weave_model::{ClusterRange, Drop as Reason, NodeId, Suite};
use weave_router::driver::{Offloads, Workers, WorkersConfig};
use weave_router::path::Input;
use weave_router::path::routes::{Owned, Owner, Peer, Port, Receive, Routes};
use weave_router::session::{Keys, Outbound, Terms};
use weave_router::time::Start;
use weave_router::wire::{
    Envelope, HEADER, Header, Kind, MAX_RELAYS, Shape, Slice, TAG, Type, end_of, push_packet,
};

const PREFIX: &str = "wvlies-";
/// The host, the member, another member that the host has no session with, and one that is none.
const ME: NodeId = NodeId::from_bytes([1; 32]);
const LIAR: NodeId = NodeId::from_bytes([9; 32]);
const OTHER: NodeId = NodeId::from_bytes([10; 32]);
const STRANGER: NodeId = NodeId::from_bytes([5; 32]);
const MEMBER: &str = "10.99.0.1:6783";
const HOST: &str = "10.99.0.2:6783";
/// The container of the host, and one of the member.
const OURS: u32 = 258;
const THEIRS: u32 = 2;
/// Longer than anything waits for the rest of a packet.
const WAIT: Duration = Duration::from_millis(60);

fn sh(line: &str) -> String {
    let output = Command::new("sh").args(["-ec", line]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{line}: {said}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn inside<T: Send>(name: &str, work: impl FnOnce() -> T + Send) -> T {
    let netns = Netns::open(&format!("{PREFIX}{name}").parse().unwrap()).unwrap();
    run_in(&netns, work).unwrap()
}

fn remove() {
    let names = ["member", "host", "container"].map(|name| format!("{PREFIX}{name}"));
    for name in names {
        let _ = Command::new("ip").args(["netns", "del", &name]).output();
    }
}

fn range() -> ClusterRange {
    let (v4, v6) = ("10.32.0.0/12".parse(), "fd00:78::/48".parse());
    ClusterRange::new(v4.unwrap(), v6.unwrap()).unwrap()
}

fn v4(offset: u32) -> [u8; 4] {
    range().v4_at(offset).octets()
}

fn v6(offset: u32) -> [u8; 16] {
    range().v6_at(offset).octets()
}

/// The host with its data threads, its container's socket, and the member's keys.
struct Lab {
    workers: Workers,
    inputs: Receiver<Input>,
    container: UdpSocket,
    member: UdpSocket,
    outbound: Outbound,
    started: Instant,
}

impl Drop for Lab {
    fn drop(&mut self) {
        remove();
    }
}

impl Lab {
    fn new() -> Self {
        remove();
        sh(&format!(
            "for name in member host container; do ip netns add {PREFIX}$name; ip -n {PREFIX}$name link set lo up; done
             ip -n {PREFIX}member link add u0 type veth peer name u0 netns {PREFIX}host
             ip -n {PREFIX}member addr add 10.99.0.1/24 dev u0; ip -n {PREFIX}member link set u0 up
             ip -n {PREFIX}host addr add 10.99.0.2/24 dev u0; ip -n {PREFIX}host link set u0 up
             ip -n {PREFIX}host link add wv0 type veth peer name eth0 netns {PREFIX}container
             ip -n {PREFIX}host link set wv0 up; ip -n {PREFIX}container link set eth0 up
             ip -n {PREFIX}container addr add {0}/12 dev eth0
             ip -n {PREFIX}host route add {0}/32 dev wv0
             ip netns exec {PREFIX}host sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.wv0.proxy_arp=1",
            range().v4_at(OURS)
        ));
        let (sender, inputs) = sync_channel(4096);
        let config = WorkersConfig {
            tun: "weave0".into(),
            listen: "[::]:6783".parse().unwrap(),
            offloads: Offloads::default(),
            inputs: sender,
            start: Start::at(Instant::now()),
        };
        let workers = inside("host", || Workers::start(&config).unwrap());
        sh(&format!(
            "ip -n {PREFIX}host link set weave0 up; ip -n {PREFIX}host route add 10.32.0.0/12 dev weave0"
        ));
        let (container, member) = (SocketAddr::from((v4(OURS), 7000)), MEMBER);
        Self {
            container: inside("container", || UdpSocket::bind(container).unwrap()),
            member: inside("member", || UdpSocket::bind(member).unwrap()),
            outbound: publish(&workers),
            workers,
            inputs,
            started: Instant::now(),
        }
    }

    /// Seals content as the member.
    fn seal(&self, content: &[u8]) -> Vec<u8> {
        let counter = self.outbound.reserve(0, 1).unwrap();
        self.seal_as(counter, 0, content)
    }

    fn seal_as(&self, counter: u64, lane: u8, content: &[u8]) -> Vec<u8> {
        let header = Header {
            kind: Type::Data,
            lane,
            receiver: self.outbound.receiver(),
            counter,
        }
        .to_bytes();
        let mut datagram = [&header[..], content, &[0; TAG]].concat();
        let (body, tag) = datagram[HEADER..].split_at_mut(content.len());
        let key = self.outbound.key(0);
        key.seal(counter, &header, body, &[], tag);
        datagram
    }

    fn send(&self, datagram: &[u8]) {
        self.member.send_to(datagram, HOST).unwrap();
    }

    /// How often a packet was dropped for that reason, how many packets were handed to the kernel by our counter, and
    /// how many by the kernel's.
    fn counts(&self, reason: Reason) -> (u64, u64, u64) {
        let received = self.workers.counts().1;
        let file = "/sys/class/net/weave0/statistics/rx_packets";
        let kernel = sh(&format!("ip netns exec {PREFIX}host cat {file}"));
        let dropped = received.drops[reason as usize];
        (dropped, received.packets, kernel.trim().parse().unwrap())
    }

    /// Sends datagrams of which each must be counted under `reason` and none be handed to the kernel.
    #[track_caller]
    fn refused(&self, what: &str, reason: Reason, datagrams: &[Vec<u8>]) {
        let before = self.counts(reason);
        datagrams.iter().for_each(|datagram| self.send(datagram));
        let all = before.0 + datagrams.len() as u64;
        let start = Instant::now();
        while self.counts(reason).0 < all && start.elapsed() < Duration::from_secs(2) {
            std::thread::sleep(Duration::from_millis(2));
        }
        std::thread::sleep(WAIT);
        let after = self.counts(reason);
        let drops: Vec<_> = self.workers.counts().1.drops().collect();
        assert_eq!(after, (all, before.1, before.2), "{what}: {drops:?}");
    }

    /// An honest packet still gets through.
    #[track_caller]
    fn honest(&self) {
        let said = format!("{:?}", self.started.elapsed());
        self.send(&self.seal(&plain(&udp4(THEIRS, OURS, said.as_bytes()))));
        self.container
            .set_read_timeout(Some(Duration::from_secs(3)))
            .unwrap();
        let mut heard = [0; 100];
        let (len, from) = self.container.recv_from(&mut heard).unwrap();
        assert_eq!(&heard[..len], said.as_bytes(), "nothing came before it");
        assert_eq!(from, SocketAddr::from((v4(THEIRS), 7000)));
        // The data thread counts what it has handed to the kernel.
        std::thread::sleep(WAIT);
    }
}

/// The host owns the second /24, the member the first, somebody else the third.
fn publish(workers: &Workers) -> Outbound {
    let terms = Terms {
        peer: NodeId::from_bytes([9; 32]),
        suite: Suite::Aes256Gcm,
        lanes: workers.lanes.len(),
        index: 7,
        receiver: 7,
        boot: 1,
    };
    let (outbound, _) = Keys::from_split([1; 32], [2; 32]).open(terms);
    let (_, inbound) = Keys::from_split([2; 32], [1; 32]).open(terms);
    let peer = |id| Peer {
        id: NodeId::from_bytes([id; 32]),
        send: None,
        counters: Arc::default(),
    };
    let owned = |first, owner| Owned {
        first,
        last: first + 255,
        owner,
    };
    let receive = Receive {
        inbound: Arc::new(inbound),
        peer: Some(0),
        counters: Arc::default(),
    };
    let file = "cat /sys/class/net/wv0/ifindex";
    let interface = sh(&format!("ip netns exec {PREFIX}host {file}"));
    let port = Port {
        offset: OURS,
        network: 0,
    };
    workers.routes.store(Arc::new(Routes {
        me: end_of(&ME),
        range: Some(range()),
        owners: vec![
            owned(0, Owner::Peer(0)),
            owned(256, Owner::Here),
            owned(512, Owner::Peer(1)),
        ],
        floating: [].into(),
        peers: vec![peer(9), peer(10)],
        inbound: [(7, receive)].into(),
        areas: vec![],
        trees: Arc::default(),
        ports: [(interface.trim().parse().unwrap(), port)].into(),
    }));
    outbound
}

fn udp4(from: u32, to: u32, payload: &[u8]) -> Vec<u8> {
    udp4_from(v4(from), v4(to), payload)
}

fn udp4_from(from: [u8; 4], to: [u8; 4], payload: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    let builder = PacketBuilder::ipv4(from, to, 64).udp(7000, 7000);
    builder.write(&mut packet, payload).unwrap();
    packet
}

fn udp6_from(from: [u8; 16], to: [u8; 16]) -> Vec<u8> {
    let mut packet = Vec::new();
    let builder = PacketBuilder::ipv6(from, to, 64).udp(7000, 7000);
    builder.write(&mut packet, b"lie").unwrap();
    packet
}

fn tcp4(from: u32, to: u32, payload: usize) -> Vec<u8> {
    let mut packet = Vec::new();
    let builder = PacketBuilder::ipv4(v4(from), v4(to), 64).tcp(7000, 7000, 1, 64_000);
    builder.write(&mut packet, &vec![7; payload]).unwrap();
    packet
}

fn slice(shape: Shape, total: usize, headers: usize) -> Slice {
    Slice {
        offset: 0,
        total: total as u16,
        segment: if shape == Shape::Plain { 0 } else { 1400 },
        network: 0,
        headers: headers as u8,
        index: 0,
        shape,
        csum_pending: shape != Shape::Plain,
        cwr: false,
        group: false,
    }
}

/// A packet as it is, in one slice.
fn plain(packet: &[u8]) -> Vec<u8> {
    let slice = slice(Shape::Plain, packet.len(), 0);
    [packet, &slice.to_bytes()].concat()
}

/// The same for everybody.
fn group(packet: &[u8]) -> Vec<u8> {
    let slice = Slice {
        group: true,
        ..slice(Shape::Plain, packet.len(), 0)
    };
    [packet, &slice.to_bytes()].concat()
}

/// One packet in a body of packets.
fn packets(packet: &[u8], csum_pending: bool) -> Vec<u8> {
    let mut body = Vec::new();
    push_packet(&mut body, packet, csum_pending, 0);
    body.push(Kind::Packets as u8);
    body
}

/// A super-frame of TCP in one slice, of which `lie` says something else.
fn frame(packet: &[u8], lie: impl Fn(Slice) -> Slice) -> Vec<u8> {
    let slice = lie(slice(Shape::Tcp4, packet.len() - 40, 40));
    [&packet[40..], &packet[..40], &slice.to_bytes()].concat()
}

/// A datagram in an envelope.
fn envelope(datagram: &[u8], from: NodeId, to: NodeId) -> Vec<u8> {
    [datagram, &Envelope::new(&from, &to).to_bytes()].concat()
}

/// Asking to be relayed for what may not be.
fn lies_to_a_relay(lab: &Lab) {
    let inside = lab.seal(&plain(&udp4(THEIRS, OURS, b"lie")));
    let sealed = |contents: &[Vec<u8>]| -> Vec<Vec<u8>> {
        contents.iter().map(|content| lab.seal(content)).collect()
    };
    let onward = [(LIAR, STRANGER), (LIAR, OTHER), (LIAR, LIAR), (OTHER, LIAR)];
    let onward = onward.map(|(from, to)| envelope(&inside, from, to));
    lab.refused("to nobody", Reason::NotRelayed, &sealed(&onward));
    let spent = [0, MAX_RELAYS + 1, 255].map(|hops| {
        let envelope = Envelope {
            hops,
            ..Envelope::new(&LIAR, &OTHER)
        };
        [&inside[..], &envelope.to_bytes()].concat()
    });
    lab.refused("on and on", Reason::TooManyHops, &sealed(&spent));
    let short = [
        envelope(&inside[..HEADER - 1], LIAR, OTHER),
        vec![7, Kind::Envelope as u8],
    ];
    lab.refused("with nothing in it", Reason::TooShort, &sealed(&short));
    lab.honest();
}

/// As a relay: what nobody sent.
fn lies_of_a_relay(lab: &Lab) {
    let inside = lab.seal(&plain(&udp4(THEIRS, OURS, b"lie")));
    let sealed = |contents: &[Vec<u8>]| -> Vec<Vec<u8>> {
        contents.iter().map(|content| lab.seal(content)).collect()
    };
    let shake = |kind| {
        let header = Header {
            kind,
            lane: 0,
            receiver: 7,
            counter: 3,
        };
        [&header.to_bytes()[..], &[0; 200]].concat()
    };
    let origins = [
        envelope(&inside, STRANGER, ME),
        envelope(&inside, LIAR, ME),
        envelope(&inside, ME, ME),
        envelope(&shake(Type::JoinHello), OTHER, ME),
        envelope(&shake(Type::JoinGrant), OTHER, ME),
    ];
    lab.refused("from nobody", Reason::UnknownOrigin, &sealed(&origins));
    // Sealed with its own keys and said to be another's, whatever is in it.
    let around = envelope(&lab.seal(&envelope(&inside, LIAR, OTHER)), OTHER, ME);
    let borrowed = [envelope(&inside, OTHER, ME), around];
    lab.refused("another's", Reason::UnknownSession, &sealed(&borrowed));
    let forged = [envelope(&shake(Type::Initiation), OTHER, ME)];
    lab.refused("a handshake", Reason::BadHandshake, &sealed(&forged));
    lab.honest();
}

fn lies_about_the_form(lab: &Lab) {
    let sealed = |contents: &[Vec<u8>]| -> Vec<Vec<u8>> {
        contents.iter().map(|content| lab.seal(content)).collect()
    };
    let tcp = tcp4(THEIRS, OURS, 1000);
    // Before there are 256 packets: an index that leads to before the first.
    let early = frame(&tcp, |slice| Slice {
        index: 255,
        ..slice
    });
    lab.refused(
        "an index before the first",
        Reason::Malformed,
        &sealed(&[early]),
    );
    let kinds = [vec![], vec![9], vec![1, 2, 3, 0], vec![1, 2, 255]];
    lab.refused("kinds", Reason::UnknownKind, &sealed(&kinds));
    let short = [
        vec![1, 2, 3],
        frame(&tcp[..41], |slice| Slice {
            headers: 255,
            ..slice
        }),
    ];
    lab.refused("slices cut short", Reason::TooShort, &sealed(&short));
    let offsets = [
        frame(&tcp, |slice| Slice { offset: 1, ..slice }),
        frame(&tcp, |slice| Slice {
            offset: 65_535,
            ..slice
        }),
        frame(&tcp, |slice| Slice {
            total: 999,
            ..slice
        }),
        frame(&tcp, |slice| Slice { total: 0, ..slice }),
        frame(&tcp[..40], |slice| slice),
    ];
    lab.refused("offsets and totals", Reason::Malformed, &sealed(&offsets));
    let records = [
        vec![0, 0, 2],
        vec![0, 9, 0, 0, 1, 2, 3, 2],
        vec![0, 0, 0, 0, 2],
        vec![255, 255, 0, 0, 1, 2],
    ];
    lab.refused("records", Reason::TooShort, &sealed(&records));
}

fn lies_about_the_packet(lab: &Lab) {
    let sealed = |contents: &[Vec<u8>]| -> Vec<Vec<u8>> {
        contents.iter().map(|content| lab.seal(content)).collect()
    };
    let tcp = tcp4(THEIRS, OURS, 1000);
    let changed = |at: usize, value: u8| {
        let mut packet = tcp.clone();
        packet[at] = value;
        packet
    };
    let shapes = [
        frame(&tcp, |slice| Slice {
            shape: Shape::Tcp6,
            ..slice
        }),
        frame(&tcp, |slice| Slice {
            shape: Shape::Udp4,
            ..slice
        }),
        frame(&tcp, |slice| Slice {
            segment: 0,
            ..slice
        }),
        // 3,000 segments of a byte: the kernel would make a packet of each.
        frame(&tcp4(THEIRS, OURS, 3000), |slice| Slice {
            segment: 1,
            ..slice
        }),
        // Another version, a header length that leaves the packet, a TCP header that does.
        frame(&changed(0, 0x65), |slice| slice),
        frame(&changed(0, 0x4f), |slice| slice),
        frame(&changed(32, 0xf0), |slice| slice),
        // ICMP cannot be cut, nor can a fragment.
        frame(&changed(9, 1), |slice| slice),
        frame(&changed(6, 0x20), |slice| slice),
        frame(&changed(7, 9), |slice| slice),
    ];
    lab.refused("super-frames", Reason::Malformed, &sealed(&shapes));
    let icmp = changed(9, 1);
    let packets = [
        plain(&changed(2, 9)),
        plain(&changed(0, 0x41)),
        plain(&tcp[..19]),
        plain(&changed(0, 0x05)),
        packets(&icmp, true),
        packets(&changed(7, 1), true),
        packets(&changed(3, 1), false),
    ];
    lab.refused("packets", Reason::Malformed, &sealed(&packets));
    let endless = {
        let mut packet = udp6_from(v6(THEIRS), v6(OURS));
        packet[6] = 0;
        packet[40..].fill(0);
        packet
    };
    lab.refused(
        "extension headers",
        Reason::Malformed,
        &sealed(&[plain(&endless)]),
    );
}

fn lies_about_who(lab: &Lab) {
    let sealed = |contents: &[Vec<u8>]| -> Vec<Vec<u8>> {
        contents.iter().map(|content| lab.seal(content)).collect()
    };
    let mapped =
        |v4: [u8; 4]| -> [u8; 16] { std::net::Ipv4Addr::from(v4).to_ipv6_mapped().octets() };
    let foreign = [OURS, 514, 5000, 0xf_ffff].map(|source| udp4(source, OURS, b"lie"));
    let outside = [
        [127, 0, 0, 1],
        [8, 8, 8, 8],
        [0; 4],
        [255; 4],
        [224, 0, 0, 1],
        [10, 99, 0, 2],
    ]
    .map(|source| udp4_from(source, v4(OURS), b"lie"));
    let sources = [v6(OURS), v6(514), mapped(v4(THEIRS)), [0; 16], [0xff; 16]]
        .map(|source| udp6_from(source, v6(OURS)));
    let all = [&foreign[..], &outside, &sources].concat();
    let as_they_are: Vec<_> = all.iter().map(|packet| plain(packet)).collect();
    lab.refused("sources", Reason::ForeignSource, &sealed(&as_they_are));
    let in_records: Vec<_> = all.iter().map(|packet| packets(packet, false)).collect();
    lab.refused(
        "sources in records",
        Reason::ForeignSource,
        &sealed(&in_records),
    );
    let super_frames = [OURS, 514].map(|source| frame(&tcp4(source, OURS, 1000), |slice| slice));
    lab.refused(
        "sources of super-frames",
        Reason::ForeignSource,
        &sealed(&super_frames),
    );
    let elsewhere = [THEIRS, 514, 5000].map(|to| plain(&udp4(THEIRS, to, b"lie")));
    lab.refused("destinations", Reason::NotOurs, &sealed(&elsewhere));
    let to_us = plain(&udp4_from(v4(THEIRS), [10, 99, 0, 2], b"lie"));
    lab.refused("the host itself", Reason::NotOurs, &sealed(&[to_us]));
    let all_hosts = [224, 0, 0, 9];
    let groups = [group(&udp4_from(v4(514), all_hosts, b"lie"))];
    lab.refused("a group's source", Reason::ForeignSource, &sealed(&groups));
    let one = [group(&udp4(THEIRS, OURS, b"lie"))];
    lab.refused_by_the_group("a group of one", Reason::NotOurs, &sealed(&one));
}

impl Lab {
    /// As [`Lab::refused`], but counted as received before it is looked at where it goes.
    #[track_caller]
    fn refused_by_the_group(&self, what: &str, reason: Reason, datagrams: &[Vec<u8>]) {
        let before = self.counts(reason);
        datagrams.iter().for_each(|datagram| self.send(datagram));
        std::thread::sleep(WAIT);
        let after = self.counts(reason);
        let all = datagrams.len() as u64;
        assert_eq!((after.0 - before.0, after.2 - before.2), (all, 0), "{what}");
    }
}

fn slices_that_overlap(lab: &Lab) {
    let tcp = tcp4(THEIRS, OURS, 3000);
    let piece = |counter: u64, index: u8, offset: usize, len: usize, total: u16| {
        let slice = Slice {
            offset: offset as u16,
            index,
            total,
            ..slice(Shape::Tcp4, 3000, 40)
        };
        let payload = &tcp[40 + offset..][..len];
        lab.seal_as(
            counter,
            0,
            &[payload, &tcp[..40], &slice.to_bytes()].concat(),
        )
    };
    let pairs: [[(usize, usize, u16); 2]; 5] = [
        [(0, 1000, 3000), (500, 1000, 3000)],
        [(1000, 1000, 3000), (0, 3000, 3000)],
        [(0, 1000, 3000), (0, 1000, 3000)],
        [(2000, 1000, 3000), (2999, 1, 3000)],
        [(0, 1000, 3000), (1000, 1000, 2000)],
    ];
    for [first, second] in pairs {
        let counter = lab.outbound.reserve(0, 2).unwrap();
        let lie = [
            piece(counter, 0, first.0, first.1, first.2),
            piece(counter + 1, 1, second.0, second.1, second.2),
        ];
        let before = lab.counts(Reason::Malformed);
        lie.iter().for_each(|datagram| lab.send(datagram));
        std::thread::sleep(WAIT);
        let after = lab.counts(Reason::Malformed);
        assert_eq!(
            after,
            (before.0 + 1, before.1, before.2),
            "{first:?} {second:?}"
        );
    }
}

fn lies_about_the_session(lab: &Lab) {
    let honest = plain(&udp4(THEIRS, OURS, b"lie"));
    let counter = lab.outbound.reserve(0, 1).unwrap();
    let lane = lab.seal_as(counter, 200, &honest);
    lab.refused("a lane", Reason::UnknownLane, &[lane]);
    let other_lane = lab.seal_as(counter, 1, &honest);
    lab.refused("another lane's key", Reason::Forged, &[other_lane]);
    let mut index = lab.seal_as(counter, 0, &honest);
    index[7] = 8;
    lab.refused("a session", Reason::UnknownSession, &[index]);
    let beyond = lab.seal_as(u64::MAX, 0, &honest);
    lab.refused("a counter beyond the keys", Reason::Expired, &[beyond]);
    let old = lab.seal_as(0, 0, &honest);
    lab.refused("a counter that was used", Reason::Replay, &[old]);
}

/// A member that has much to say, and one that is somewhere else with every packet, leave room for the others.
fn floods_of_control(lab: &Lab) {
    const COUNT: usize = 3000;
    while lab.inputs.try_recv().is_ok() {}
    let start = Instant::now();
    let moved: Vec<UdpSocket> = (0..2)
        .map(|_| inside("member", || UdpSocket::bind("10.99.0.1:0").unwrap()))
        .collect();
    for number in 0..COUNT {
        lab.send(&lab.seal(&[40, 1, Kind::Control as u8]));
        let packet = plain(&udp4(THEIRS, 5000, b"moved"));
        let moved = &moved[number % 2];
        moved.send_to(&lab.seal(&packet), HOST).unwrap();
        if number % 100 == 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    std::thread::sleep(WAIT);
    let may = 512 + start.elapsed().as_millis() as usize;
    let told = std::iter::from_fn(|| lab.inputs.try_recv().ok()).count();
    let limited = lab.counts(Reason::RateLimited).0 as usize;
    assert!((300..=may).contains(&told), "{told} of at most {may}");
    assert!(limited > COUNT - may, "{limited} were counted");
}

#[test]
fn every_lie_is_counted_and_none_reaches_a_container() {
    let log = sh("dmesg | wc -l").trim().parse::<usize>().unwrap();
    let lab = Lab::new();
    lab.honest();
    lies_about_the_form(&lab);
    lies_to_a_relay(&lab);
    lies_of_a_relay(&lab);
    lab.honest();
    lies_about_the_packet(&lab);
    lab.honest();
    lies_about_who(&lab);
    lab.honest();
    slices_that_overlap(&lab);
    lab.honest();
    lies_about_the_session(&lab);
    lab.honest();
    floods_of_control(&lab);
    lab.honest();
    let said = sh(&format!("dmesg | tail -n +{}", log + 1));
    let complaints = ["WARNING", "BUG", "skb", "gso", "martian", "weave0: "];
    let found = said
        .lines()
        .find(|line| complaints.iter().any(|word| line.contains(word)));
    assert_eq!(found, None, "the kernel says");
}
