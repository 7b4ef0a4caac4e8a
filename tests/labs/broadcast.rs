//! Broadcast and multicast reach every container of the network, and nobody else.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};

use socket2::{InterfaceIndexOrAddress, SockRef};

use crate::lab::ns::Ns;
use crate::lab::traffic::{overheard, payload, udp};
use crate::lab::{Container, Lab, two_each};

const PORT: u16 = 5007;
const GROUP: Ipv4Addr = Ipv4Addr::new(239, 1, 2, 3);
const GROUP6: Ipv6Addr = Ipv6Addr::new(0xff15, 0, 0, 0, 0, 0, 0x1234, 0x5678);
const MDNS: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 251);
const MDNS6: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0xfb);

/// Three hosts with two containers each, and bystanders: the hosts, on every interface they have, a machine on the
/// same wire, and a container of somebody else's on the first host.
#[test]
fn everybody_in_the_network_and_nobody_outside() {
    Lab::run(|lab| {
        let hosts = lab.cluster::<3>();
        let containers = two_each(&hosts);
        let foreign = Ns::add("foreign");
        foreign.join("eth0", &hosts[0].ns, "f0");
        foreign.sh("ip addr add 172.20.0.2/24 dev eth0");
        hosts[0].ns.sh("ip addr add 172.20.0.1/24 dev f0");
        let neighbour = Ns::add("neighbour");
        lab.plug(&neighbour, "u0", 99);

        let inside = listeners(&containers);
        let bystanders = hosts.iter().map(|host| &host.ns);
        let outside: Vec<(&str, [UdpSocket; 2])> = bystanders
            .chain([&foreign, &neighbour])
            .map(|ns| (ns.name(), listen(ns)))
            .collect();
        let control = lab.capture(&containers[3].ns, "eth0");

        let said: usize = [0, 2, 4]
            .map(|speaker| everybody_hears(&containers, &inside, speaker))
            .iter()
            .sum();
        for (sockets, container) in inside.iter().zip(&containers) {
            let twice = sockets.each_ref().map(overheard);
            assert_eq!(
                twice,
                [0, 0],
                "datagrams that {} heard twice",
                container.name
            );
        }
        for (name, sockets) in &outside {
            let overheard = sockets.each_ref().map(overheard);
            assert_eq!(
                overheard,
                [0, 0],
                "datagrams that {name} heard outside, in IPv4 and IPv6"
            );
        }
        assert_eq!(control.stop().readable(), said);
    });
}

/// The listeners of each container.
pub(crate) fn listeners(containers: &[Container]) -> Vec<[UdpSocket; 2]> {
    let listen = |container: &Container| listen(&container.ns);
    containers.iter().map(listen).collect()
}

/// One container says something to every group and broadcast address, and all hear it, itself included. Returns to how
/// many.
#[track_caller]
pub(crate) fn everybody_hears(
    containers: &[Container],
    inside: &[[UdpSocket; 2]],
    speaker: usize,
) -> usize {
    let targets = [
        SocketAddr::from((GROUP, PORT)),
        (MDNS, PORT).into(),
        (Ipv4Addr::BROADCAST, PORT).into(),
        (Ipv4Addr::new(10, 47, 255, 255), PORT).into(),
        (GROUP6, PORT).into(),
        (MDNS6, PORT).into(),
    ];
    for target in targets {
        let sent = say(&containers[speaker], target, 500 + speaker);
        for (listener, container) in inside.iter().zip(containers) {
            // The speaker hears itself too, inside its own kernel.
            let heard = hear(&listener[usize::from(target.is_ipv6())]);
            assert!(
                heard.as_ref() == Some(&sent),
                "{} did not hear {target} from {speaker}",
                container.name
            );
        }
    }
    targets.len()
}

/// A socket for each family that hears every group of this lab on every interface of a namespace.
fn listen(ns: &Ns) -> [UdpSocket; 2] {
    let v4 = udp(ns, (Ipv4Addr::UNSPECIFIED, PORT));
    let v6 = udp(ns, SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, PORT + 1, 0, 0));
    for index in interfaces(ns) {
        for group in [GROUP, MDNS] {
            let interface = InterfaceIndexOrAddress::Index(index);
            SockRef::from(&v4)
                .join_multicast_v4_n(&group, &interface)
                .expect("a group can be joined");
        }
        for group in [GROUP6, MDNS6] {
            v6.join_multicast_v6(&group, index)
                .expect("a group can be joined");
        }
    }
    [v4, v6]
}

/// The index of every interface but loopback.
fn interfaces(ns: &Ns) -> Vec<u32> {
    let links: Vec<serde_json::Value> =
        serde_json::from_str(&ns.sh("ip -j link show up")).expect("ip writes JSON");
    let links = links.iter().filter(|link| link["ifname"] != "lo");
    links
        .map(|link| link["ifindex"].as_u64().expect("a link has an index") as u32)
        .collect()
}

/// What a socket hears next; nothing if it hears nothing for a while.
fn hear(socket: &UdpSocket) -> Option<Vec<u8>> {
    let mut heard = [0; 2048];
    let len = socket.recv(&mut heard).ok()?;
    Some(heard[..len].to_vec())
}

/// One container says `size` bytes to a group or a broadcast address; returns them.
fn say(from: &Container, to: SocketAddr, size: usize) -> Vec<u8> {
    let sent = payload(size, size as u64);
    let socket = match to {
        SocketAddr::V4(_) => udp(&from.ns, (from.v4, 0)),
        SocketAddr::V6(_) => udp(&from.ns, (from.v6, 0)),
    };
    socket.set_broadcast(true).expect("a socket may broadcast");
    let to = match to {
        SocketAddr::V6(to) => {
            SocketAddrV6::new(*to.ip(), PORT + 1, 0, interfaces(&from.ns)[0]).into()
        }
        to @ SocketAddr::V4(_) => to,
    };
    socket
        .send_to(&sent, to)
        .unwrap_or_else(|error| panic!("{} cannot say {to}: {error}", from.name));
    sent
}
