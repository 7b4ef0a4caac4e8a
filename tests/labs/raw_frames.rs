//! A container that sends whatever frames it likes: of everything but what it may send, nothing arrives anywhere.
//!
//! It is root in its namespace and writes frames to its interface by a packet socket, past every rule of its own kernel.
//! All carry the marker, and captures in a container of the same host and in one of another host count what could be
//! read there; the wire between the hosts is watched as in every lab.

use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, TcpStream};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use data_encoding::HEXLOWER;
use etherparse::{IpFragOffset, PacketBuilder};

use crate::lab::capture::{Capture, Frames, MARKER};
use crate::lab::ns::{self, Ns};
use crate::lab::{Container, Host, Lab, form};

/// The hardware address of every container's gateway.
const GATEWAY: [u8; 6] = *b"\x02Weave";
const EVERYBODY: [u8; 6] = [0xff; 6];
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
const ARP: u16 = 0x0806;

/// Sends frames, one line of hex each, and says `sent` at the end.
const SENDER: &str = r#"
import socket, sys
out = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
out.bind(("eth0", 0))
for line in sys.stdin:
    out.send(bytes.fromhex(line))
print("sent", flush=True)
"#;

fn send(from: &Ns, frames: &[Vec<u8>]) {
    let mut command = from.command("python3");
    command.args(["-c", SENDER]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut sender = command.spawn().expect("python3 starts");
    let mut pipe = sender.stdin.take().expect("stdin is piped");
    for frame in frames {
        writeln!(pipe, "{}", HEXLOWER.encode(frame)).expect("it reads");
    }
    drop(pipe);
    let mut line = String::new();
    let out = sender.stdout.take().expect("stdout is piped");
    BufReader::new(out)
        .read_line(&mut line)
        .expect("it says something");
    assert_eq!(line, "sent\n");
    assert!(sender.wait().expect("it ends").success());
}

/// A frame to somebody, of an ethertype.
fn frame(to: [u8; 6], ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let own = [2, b'W', 9, 9, 9, 9];
    let mut frame = [&to[..], &own[..], &ethertype.to_be_bytes()[..], payload].concat();
    frame.resize(frame.len().max(60), 0);
    frame
}

/// The same frame with a tag of a virtual LAN.
fn tagged(frame: &[u8], tag: u16, vlan: u16) -> Vec<u8> {
    let tag = [tag.to_be_bytes(), vlan.to_be_bytes()].concat();
    [&frame[..12], &tag[..], &frame[12..]].concat()
}

fn built(builder: etherparse::PacketBuilderStep<etherparse::UdpHeader>) -> Vec<u8> {
    let mut packet = Vec::new();
    builder.write(&mut packet, MARKER).expect("it fits");
    packet
}

fn udp(from: IpAddr, to: IpAddr, ports: (u16, u16)) -> Vec<u8> {
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            built(PacketBuilder::ipv4(from.octets(), to.octets(), 64).udp(ports.0, ports.1))
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            built(PacketBuilder::ipv6(from.octets(), to.octets(), 64).udp(ports.0, ports.1))
        }
        _ => unreachable!("both are of one family"),
    }
}

fn icmp6(from: Ipv6Addr, to: Ipv6Addr, kind: u8) -> Vec<u8> {
    let mut packet = Vec::new();
    PacketBuilder::ipv6(from.octets(), to.octets(), 255)
        .icmpv6_raw(kind, 0, [0x60, 0, 0, 0])
        .write(&mut packet, &[&to.octets()[..], &MARKER[..]].concat())
        .expect("it fits");
    packet
}

/// The packet as one with extension headers before its UDP header: each next header with its body.
fn extended(packet: &[u8], extensions: &[(u8, [u8; 8])]) -> Vec<u8> {
    let mut chain = Vec::new();
    for (at, (_, body)) in extensions.iter().enumerate() {
        let mut body = *body;
        body[0] = extensions.get(at + 1).map_or(packet[6], |(kind, _)| *kind);
        chain.extend(body);
    }
    let mut packet = [&packet[..40], &chain[..], &packet[40..]].concat();
    packet[6] = extensions[0].0;
    let length = (packet.len() - 40) as u16;
    packet[4..6].copy_from_slice(&length.to_be_bytes());
    packet
}

/// What is said of itself by ARP: the sender's hardware and IPv4 address.
fn arp(operation: u8, mine: Ipv4Addr, theirs: Ipv4Addr) -> Vec<u8> {
    let mac = [2, b'W', 9, 9, 9, 9];
    let start = [0, 1, 8, 0, 6, 4, 0, operation];
    [
        &start[..],
        &mac[..],
        &mine.octets()[..],
        &[0; 6][..],
        &theirs.octets()[..],
        &MARKER[..],
    ]
    .concat()
}

/// Sources that are not the container's: of other containers, of the gateway, of nobody here.
fn strangers(other: &Container) -> Vec<IpAddr> {
    let more = [
        "10.32.0.1",
        "172.31.0.1",
        "127.0.0.1",
        "fd55::1",
        "::1",
        "fe80::1",
    ];
    let more = more.map(|text| text.parse().expect("an address"));
    other.addresses().into_iter().chain(more).collect()
}

/// Packets with a source that is another's: plain, in fragments, behind extension headers and IPv4 options.
fn lies(other: &Container, victims: [&Container; 2]) -> Vec<Vec<u8>> {
    let mut packets = Vec::new();
    for source in strangers(other) {
        for victim in victims {
            let to = victim.addresses()[usize::from(source.is_ipv6())];
            let whole = udp(source, to, (5007, 5007));
            packets.push(whole.clone());
            match (source, to) {
                (IpAddr::V4(from), IpAddr::V4(to)) => packets.extend(pieces(from, to)),
                _ => packets.extend([
                    extended(&whole, &[(0, [0, 0, 1, 4, 0, 0, 0, 0])]),
                    extended(&whole, &[(60, [0, 0, 1, 4, 0, 0, 0, 0])]),
                    extended(&whole, &[(43, [0, 0, 4, 0, 0, 0, 0, 0])]),
                    extended(&whole, &[(44, [0, 0, 0, 1, 0, 0, 0, 7])]),
                    extended(&whole, &[(44, [0, 0, 0, 8, 0, 0, 0, 8])]),
                    extended(
                        &whole,
                        &[
                            (0, [0, 0, 1, 4, 0, 0, 0, 0]),
                            (44, [0, 0, 0, 0, 0, 0, 0, 9]),
                        ],
                    ),
                ]),
            }
        }
    }
    packets
}

/// The first, the last and a middle fragment of a datagram of IPv4, and one with options.
fn pieces(from: Ipv4Addr, to: Ipv4Addr) -> Vec<Vec<u8>> {
    let packet = |change: &dyn Fn(&mut etherparse::Ipv4Header)| {
        let mut packet = Vec::new();
        let udp = etherparse::IpNumber::UDP;
        let mut ip =
            etherparse::Ipv4Header::new(24, 64, udp, from.octets(), to.octets()).expect("it fits");
        change(&mut ip);
        ip.header_checksum = ip.calc_header_checksum();
        ip.write(&mut packet).expect("it fits");
        packet.extend([0x13, 0x8f, 0x13, 0x8f, 0, 24, 0, 0]);
        packet.extend(MARKER);
        packet
    };
    let piece = |offset: u16, more: bool| {
        packet(&|ip| {
            ip.identification = 7;
            ip.more_fragments = more;
            ip.dont_fragment = false;
            ip.fragment_offset = IpFragOffset::try_new(offset).expect("a small offset");
        })
    };
    let options = packet(&|ip| ip.options = [1, 1, 1, 0].into());
    vec![piece(0, true), piece(3, true), piece(6, false), options]
}

/// What manages a link, with the container's own addresses or the gateway's.
fn of_the_link(liar: &Container, near: &Container) -> Vec<Vec<u8>> {
    let gateway = Ipv4Addr::new(10, 32, 0, 1);
    let router = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
    let mut frames = Vec::new();
    for to in [GATEWAY, EVERYBODY] {
        for (operation, mine) in [(1, near.v4), (2, near.v4), (2, gateway), (1, gateway)] {
            frames.push(frame(to, ARP, &arp(operation, mine, mine)));
            frames.push(frame(to, ARP, &arp(operation, mine, near.v4)));
        }
        for from in [
            liar.v6,
            router,
            Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x99),
        ] {
            for kind in [130, 131, 133, 134, 135, 136, 137, 143] {
                frames.push(frame(to, IPV6, &icmp6(from, ALL_NODES, kind)));
                // Of the whole world a host takes these with 255 hops only, and a router takes one.
                frames.push(frame(to, IPV6, &icmp6(router, near.v6, kind)));
            }
        }
        let offers = [
            (liar.v4.into(), Ipv4Addr::BROADCAST.into(), (67, 68)),
            (
                liar.v4.into(),
                Ipv4Addr::new(10, 47, 255, 255).into(),
                (67, 68),
            ),
            (gateway.into(), Ipv4Addr::BROADCAST.into(), (67, 68)),
            (liar.v6.into(), ALL_NODES.into(), (547, 546)),
        ];
        for (from, to_ip, ports) in offers {
            let ethertype = match from {
                IpAddr::V4(_) => IPV4,
                IpAddr::V6(_) => IPV6,
            };
            frames.push(frame(to, ethertype, &udp(from, to_ip, ports)));
        }
        let mut redirect = Vec::new();
        let inner = udp(near.v4.into(), liar.v4.into(), (1, 1));
        PacketBuilder::ipv4(gateway.octets(), near.v4.octets(), 64)
            .icmpv4_raw(5, 1, liar.v4.octets())
            .write(&mut redirect, &inner)
            .expect("it fits");
        frames.push(frame(to, IPV4, &redirect));
    }
    frames
}

/// Frames that are not IP, and IP that is not what its frame says.
fn of_other_kinds(liar: &Container, near: &Container) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    let honest = udp(liar.v4.into(), near.v4.into(), (5007, 5007));
    let to_all = udp(liar.v4.into(), Ipv4Addr::BROADCAST.into(), (5007, 5007));
    for to in [
        GATEWAY,
        EVERYBODY,
        [1, 0x80, 0xc2, 0, 0, 0],
        [0x33, 0x33, 0, 0, 0, 1],
    ] {
        // Spanning tree, LLDP, wake-on-LAN, PPPoE, MPLS, EAPOL, AoE, experiments, and a length instead of a type.
        for ethertype in [
            0x0026, 0x88cc, 0x0842, 0x8863, 0x8847, 0x888e, 0x88a2, 0x88b5, 0x22f0, 0xffff,
        ] {
            let payload = [&[0x42, 0x42, 3][..], &MARKER[..], &[0; 40][..]].concat();
            frames.push(frame(to, ethertype, &payload));
        }
        for packet in [&honest, &to_all] {
            let plain = frame(to, IPV4, packet);
            for vlan in [1, 7, 4094] {
                frames.push(tagged(&plain, 0x8100, vlan));
                frames.push(tagged(&plain, 0x88a8, vlan));
                frames.push(tagged(&tagged(&plain, 0x8100, vlan), 0x88a8, vlan));
            }
            frames.push(frame(to, IPV6, packet));
        }
    }
    frames
}

/// What whoever may read the metrics says.
const TOKEN: &str = "0123456789abcdef0123";

/// Starts a node whose page and metrics are at every address.
fn start_open(host: &Host, dir: &Path) {
    let token = dir.join("token");
    std::fs::write(&token, format!("{TOKEN}\n")).expect("it can be written");
    let token = token.display().to_string();
    host.start_with(&[
        "--metrics",
        "::",
        "--metrics-token",
        &token,
        "--dashboard",
        "::",
    ]);
}

/// The host's addresses as its container can name them: of either family, of the uplink and of the gateway.
fn own_addresses(liar: &Container, host: &Host) -> [SocketAddr; 4] {
    let index = liar.ns.sh("ip -o link show eth0 | cut -d: -f1");
    let index = index.trim().parse().expect("a number");
    let gateway6 = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
    [
        (Ipv4Addr::new(10, 32, 0, 1), 0).into(),
        (host.v4, 0).into(),
        (host.v6, 0).into(),
        SocketAddrV6::new(gateway6, 0, 0, index).into(),
    ]
}

/// Fails unless a container reaches the metrics of its host, which are behind a token, and not the page, by none of
/// the addresses at which the host itself reaches both.
fn reaches_what_is_open(liar: &Container, host: &Host) {
    let addresses = own_addresses(liar, host);
    let reached = |from: &Ns, port: u16| -> Vec<SocketAddr> {
        let connects = |place: &SocketAddr| {
            let connect = || TcpStream::connect_timeout(place, Duration::from_millis(500));
            from.inside(connect).is_ok()
        };
        let at = |mut place: SocketAddr| {
            place.set_port(port);
            place
        };
        addresses.into_iter().map(at).filter(connects).collect()
    };
    assert_eq!(reached(&liar.ns, 6782).len(), 4, "the metrics");
    for (header, code) in [
        (String::new(), "401"),
        (format!("Authorization: Bearer {}0", &TOKEN[1..]), "401"),
        (format!("Authorization: Bearer {TOKEN}"), "200"),
    ] {
        for place in [SocketAddr::from((host.v4, 6782)), (host.v6, 6782).into()] {
            let said = liar.ns.sh(&format!(
                "curl -s -o /dev/null -w '%{{http_code}}' --max-time 5 -H '{header}' http://{place}/metrics"
            ));
            assert_eq!(said, code, "{place} with '{header}'");
        }
    }
    assert_eq!(reached(&liar.ns, 4040), [], "the page");
    let own = reached(&host.ns, 4040);
    assert!(own.len() >= 3, "the page, by the host itself: {own:?}");
    host.assert_deaf_to(&liar.ns, &addresses);
}

/// Fails unless the node's socket is closed to a container's user who finds the file, and open to one who may open it.
fn opens_no_socket(liar: &Container, host: &Host) {
    let socket = host.socket();
    let (folder, file) = (socket.parent(), socket.file_name());
    // Inside the folder already, so that the folders above it keep nobody out.
    let ask = format!(
        "cd {} && exec setpriv --reuid nobody --regid nogroup --clear-groups \
         curl --silent --output /dev/null --write-out '%{{http_code}}' --unix-socket ./{} http://node/v1/status",
        folder.expect("it lies in a folder").display(),
        file.expect("it has a name").display()
    );
    let answered = || {
        let said = liar.ns.try_sh(&ask);
        (
            said.status.code(),
            String::from_utf8_lossy(&said.stdout).into_owned(),
        )
    };
    const CANNOT_CONNECT: i32 = 7;
    assert_eq!(answered(), (Some(CANNOT_CONNECT), "000".to_owned()));
    ns::host(&format!("chmod o+rw {}", socket.display()));
    assert_eq!(answered(), (Some(0), "200".to_owned()), "opened by hand");
}

#[test]
fn nothing_but_what_it_may_send_arrives() {
    Lab::run(|lab| {
        let [h1, h2] = [lab.host("h1", 1), lab.host("h2", 2)];
        start_open(&h1, lab.dir());
        h2.start();
        let hosts = [h1, h2];
        form(&hosts);
        let [h1, h2] = &hosts;
        let [liar, near, other] = ["liar", "near", "other"].map(|name| h1.attach(name));
        let far = h2.attach("far");
        // What is to be found out of neighbours is found before anybody looks.
        liar.reaches(&near, 56);
        liar.reaches(&far, 56);
        let captures = [&near, &far].map(|at| lab.capture(&at.ns, "eth0"));
        // Nobody answers with what was sent: that would be seen twice.
        let ears =
            [&near, &far].map(|at| crate::lab::traffic::udp(&at.ns, (Ipv6Addr::UNSPECIFIED, 5007)));
        let mut frames = of_the_link(&liar, &near);
        for packet in lies(&other, [&near, &far]) {
            let ethertype = if packet[0] >> 4 == 4 { IPV4 } else { IPV6 };
            for to in [GATEWAY, EVERYBODY] {
                frames.push(frame(to, ethertype, &packet));
            }
        }
        frames.extend(of_other_kinds(&liar, &near));
        send(&liar.ns, &frames);
        println!("{} frames were sent", frames.len());
        // The same way of sending, in its own name: these arrive.
        let honest = [&near, &far].map(|to| {
            let [v4, v6] = liar.addresses();
            let packets = [
                udp(v4, to.v4.into(), (5007, 5007)),
                udp(v6, to.v6.into(), (5007, 5007)),
            ];
            let [v4, v6] = packets;
            [frame(GATEWAY, IPV4, &v4), frame(GATEWAY, IPV6, &v6)]
        });
        send(&liar.ns, honest.as_flattened());
        for ear in &ears {
            for _ in 0..2 {
                ear.recv(&mut [0; 64]).expect("what is true arrives");
            }
        }
        let came: Vec<usize> = Capture::stop_all(captures.into_iter())
            .iter()
            .map(Frames::readable)
            .collect();
        assert_eq!(came, [2, 2], "of the lies some arrived");
        reaches_what_is_open(&liar, h1);
        opens_no_socket(&liar, h1);
        liar.reaches(&near, 56);
        liar.reaches(&far, 56);
    });
}
