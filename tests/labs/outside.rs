//! Containers reach the world outside the cluster through their host, under the host's address, and only under their own
//! address inside.

use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream};
use std::time::Duration;

use crate::lab::ns::Ns;
use crate::lab::traffic::{bulk, overheard, payload, ping, udp};
use crate::lab::{Container, Lab};

const SERVER: &str = "203.0.113.10";
const SERVER6: &str = "2001:db8::10";

/// A server outside sees the host, in both families, by ICMP, UDP and TCP; and a host whose uplink takes less than the
/// containers send still carries large transfers both ways.
#[test]
fn the_outside_sees_the_host() {
    Lab::run(|lab| {
        let [h1, h2] = lab.cluster();
        let internet = Ns::add("internet");
        lab.plug(&internet, "u0", 254);
        internet.sh(&format!(
            "ip addr add {SERVER}/32 dev lo; ip addr add {SERVER6}/128 dev lo"
        ));
        for host in [&h1, &h2] {
            host.ns.sh(
                "ip route add default via 192.168.77.254; ip -6 route add default via fd77::254",
            );
        }
        h2.ns.sh("ip link set u0 mtu 1400");
        let servers = [SERVER, SERVER6].map(|server| server.parse::<IpAddr>().unwrap());
        for server in servers {
            lab.allow_outside(server);
        }
        let containers = [h1.attach("one"), h2.attach("two")];
        for (host, container) in [&h1, &h2].into_iter().zip(&containers) {
            let expected: [IpAddr; 2] = [host.v4.into(), host.v6.into()];
            for ((server, own), shown) in
                servers.into_iter().zip(container.addresses()).zip(expected)
            {
                ping(&container.ns, server, 56);
                let (client, listener) =
                    (udp(&container.ns, (own, 0)), udp(&internet, (server, 0)));
                let sent = payload(400, 7);
                client
                    .send_to(&sent, listener.local_addr().unwrap())
                    .expect("the datagram leaves");
                let mut heard = [0; 2048];
                let (len, source) = listener
                    .recv_from(&mut heard)
                    .expect("the outside hears the container");
                assert_eq!(source.ip(), shown, "who {} is outside", container.name);
                listener
                    .send_to(&heard[..len], source)
                    .expect("the answer leaves");
                assert_eq!(
                    client.recv(&mut heard).expect("the answer arrives"),
                    sent.len()
                );
                assert_eq!(tcp_source(&container.ns, &internet, server), shown);
                bulk(&container.ns, (&internet, server), 2 << 20);
            }
        }
        // All the while the network inside goes on under the containers' own addresses.
        let listener = udp(&containers[1].ns, (containers[1].v4, 0));
        let client = udp(&containers[0].ns, (containers[0].v4, 0));
        client
            .send_to(&payload(64, 1), listener.local_addr().unwrap())
            .expect("the datagram leaves");
        assert_eq!(
            listener.recv_from(&mut [0; 64]).expect("it arrives").1.ip(),
            containers[0].v4
        );
    });
}

/// A container that gives itself the address of another, or any other, is not heard by anybody; and under its own it
/// does not reach its node's port.
#[test]
fn a_container_that_lies() {
    Lab::run(|lab| {
        let [h1, h2] = lab.cluster();
        let [liar, near, far] = [h1.attach("liar"), h1.attach("near"), h2.attach("far")];
        let others = [h1.attach("other"), h2.attach("another")];
        // Its neighbours are known from honest packets, so that no lie waits for them.
        liar.reaches(&near, 56);
        liar.reaches(&far, 56);
        let strangers =
            ["10.32.0.77", "172.31.0.1", "fd55::1"].map(|text| text.parse().expect("an address"));
        let stolen = others
            .iter()
            .flat_map(Container::addresses)
            .chain(strangers);
        let witnesses = [&near, &far].map(|at| at.addresses().map(|ip| udp(&at.ns, (ip, 5007))));
        let say = |from: IpAddr| {
            let socket = udp(&liar.ns, (from, 0));
            for witness in witnesses
                .iter()
                .map(|each| &each[usize::from(from.is_ipv6())])
            {
                let to = witness.local_addr().expect("a bound socket has an address");
                socket
                    .send_to(&payload(64, 0), to)
                    .expect("the datagram leaves");
            }
        };
        for lie in stolen {
            let add = if lie.is_ipv4() {
                "ip addr add"
            } else {
                "ip -6 addr add nodad"
            };
            liar.ns.sh(&format!("{add} {lie} dev eth0"));
            say(lie);
        }
        for witness in witnesses.iter().flatten() {
            assert_eq!(overheard(witness), 0, "a lie was heard");
        }
        liar.addresses().into_iter().for_each(say);
        for witness in witnesses.iter().flatten() {
            assert_eq!(overheard(witness), 1, "the truth was not heard");
        }
        let gateway = Ipv4Addr::new(10, 32, 0, 1);
        h1.assert_deaf_to(&liar.ns, &[(h1.v4, 0).into(), (gateway, 0).into()]);
    });
}

/// The address under which a server sees a TCP client.
fn tcp_source(client: &Ns, server: &Ns, at: IpAddr) -> IpAddr {
    let listener = server
        .inside(|| TcpListener::bind((at, 0)))
        .expect("the server listens");
    let target = listener.local_addr().expect("a listener has an address");
    let _stream = client
        .inside(|| TcpStream::connect_timeout(&target, Duration::from_secs(5)))
        .expect("the client connects");
    listener.accept().expect("the connection is there").1.ip()
}
