//! Containers reach the world outside the cluster through their host, under the host's address.

use std::net::{IpAddr, TcpListener, TcpStream};
use std::time::Duration;

use crate::lab::Lab;
use crate::lab::ns::Ns;
use crate::lab::traffic::{bulk, payload, ping, udp};

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
