//! Paths that carry less than the devices at their ends and say nothing about it, and the errors of routers that do.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::lab::ns::Ns;
use crate::lab::traffic::{Load, bulk, datagrams, payload, ping, udp, wait_for};
use crate::lab::{Container, Host, Lab, form};

/// How long any connection may stand still when its path changes.
const STALL: Duration = Duration::from_secs(3);
/// How long it may take until a path that has grown is used again.
const GROWTH: Duration = Duration::from_secs(60);
const SERVER: &str = "203.0.113.10";
const SERVER6: &str = "2001:db8::10";

/// Two hosts and a router between them that drops what is too large, without a word.
struct Apart {
    hosts: [Host; 2],
    middle: Ns,
}

/// What hosts have between them.
#[derive(Clone, Copy)]
enum Underlay {
    V4,
    V6,
}

impl Underlay {
    /// An address on the wire between the router and a host.
    fn address(self, wire: u8, number: u8) -> String {
        match self {
            Self::V4 => format!("10.0.{wire}.{number}"),
            Self::V6 => format!("fd88:{wire}::{number}"),
        }
    }

    const fn prefix(self) -> u8 {
        match self {
            Self::V4 => 24,
            Self::V6 => 64,
        }
    }
}

impl Apart {
    /// `device` is the MTU of all devices between the hosts, `carries` what the router lets pass.
    fn new(lab: &Lab, underlay: Underlay, (device, carries): (u32, u32), containers: &str) -> Self {
        let middle = Ns::add("middle");
        middle.sh(
            "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
             nft add table inet hole
             nft add chain inet hole small '{ type filter hook forward priority 0; }'",
        );
        let hosts = [1, 2].map(|wire: u8| {
            let host = lab.bare_host(&format!("h{wire}"));
            host.ns.join("u0", &middle, &format!("m{wire}"));
            let [own, router] = [1, 254].map(|number| underlay.address(wire, number));
            let prefix = underlay.prefix();
            middle.sh(&format!(
                "ip link set m{wire} mtu {device}; ip addr add {router}/{prefix} dev m{wire}"
            ));
            host.ns.sh(&format!(
                "ip link set u0 mtu {device}; ip addr add {own}/{prefix} dev u0
                 ip route add default via {router}"
            ));
            lab.split(&host.ns, "u0");
            lab.watch(&host.ns, "u0");
            host
        });
        let apart = Self { hosts, middle };
        apart.carry(carries);
        for host in &apart.hosts {
            host.start_with(&["--mtu", containers]);
        }
        form(&apart.hosts);
        apart
    }

    /// From now on the router drops packets of more than so many bytes.
    fn carry(&self, bytes: u32) {
        self.middle.sh(&format!(
            "nft 'flush chain inet hole small; add rule inet hole small meta length > {bytes} counter drop'"
        ));
    }

    fn containers(&self) -> [Container; 2] {
        let [h1, h2] = &self.hosts;
        [h1.attach("left"), h2.attach("right")]
    }

    #[track_caller]
    fn know(&self, bytes: u32, reason: &str, within: Duration) {
        know(&self.hosts, bytes, reason, within);
    }
}

/// Waits until both nodes know what the path carries, on every lane.
#[track_caller]
fn know(hosts: &[Host; 2], bytes: u32, reason: &str, within: Duration) {
    for host in hosts {
        let start = Instant::now();
        loop {
            let seen = mtus(host);
            let right = |mtu: &Value| mtu["bytes"] == bytes && mtu["reason"] == reason;
            if !seen.is_empty() && seen.iter().all(right) {
                break;
            }
            assert!(
                start.elapsed() < within,
                "{bytes} bytes, {reason}, not within {within:?}: {seen:?}"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// What a node says of its path to the only other one: the whole, then each lane.
fn mtus(host: &Host) -> Vec<Value> {
    let connection = &host.json(&["connections"])["connections"][0];
    let lanes = connection["lane_mtus"].as_array().expect("a list");
    let lanes = lanes.iter().map(|lane| lane["mtu"].clone());
    [connection["mtu"].clone()]
        .into_iter()
        .chain(lanes)
        .collect()
}

/// Everything of every size crosses, in both families and both directions.
fn everything_crosses([left, right]: &[Container; 2], sizes: &[usize]) {
    for family in [0, 1] {
        let [near, far] = [left.addresses()[family], right.addresses()[family]];
        for &size in sizes {
            ping(&left.ns, far, size);
            ping(&right.ns, near, size);
            datagrams((&left.ns, near), (&right.ns, far), size);
        }
        bulk(&left.ns, (&right.ns, far), 4 << 20);
    }
}

/// Containers of MTU 1500 over a path of 1280 bytes between devices of 1500, and over one of 1500 between devices of
/// 9000: it is known right after joining, to the byte, and nothing that containers send is lost.
#[test]
fn a_path_that_is_smaller_than_its_devices() {
    for (underlay, device, carries) in [
        (Underlay::V4, 1500, 1280),
        (Underlay::V6, 1500, 1280),
        (Underlay::V4, 9000, 1500),
    ] {
        Lab::run(|lab| {
            let apart = Apart::new(lab, underlay, (device, carries), "1500");
            apart.know(carries, "probed", Duration::from_secs(2));
            let shown = apart.hosts[0].ok(&["connections"]);
            assert!(shown.contains(&format!("{carries} probed")), "{shown}");
            everything_crosses(&apart.containers(), &[56, 1472, 8000]);
        });
    }
}

/// Containers of MTU 9000 over a path of 1500: whole packets of theirs cross, and nobody has to fragment.
#[test]
fn containers_with_a_larger_mtu_than_the_path() {
    Lab::run(|lab| {
        let apart = Apart::new(lab, Underlay::V4, (1500, 1500), "9000");
        apart.know(1500, "interface", Duration::from_secs(2));
        let containers = apart.containers();
        everything_crosses(&containers, &[8000, 20_000]);
        let [left, right] = &containers;
        left.ns
            .sh(&format!("ping -q -c 1 -W 2 -M do -s 8972 {}", right.v4));
        left.ns
            .sh(&format!("ping -q -c 1 -W 2 -M do -s 8952 {}", right.v6));
    });
}

/// A path that shrinks twice and grows again under load: the connections stand still for no more than 3 s, the reason
/// is shown, and what the path carries in the end is used again.
#[test]
fn a_path_that_shrinks_and_grows_under_load() {
    Lab::run(|lab| {
        let apart = Apart::new(lab, Underlay::V4, (1500, 1500), "1500");
        apart.know(1500, "interface", Duration::from_secs(2));
        let [left, right] = apart.containers();
        let rate = 8 << 20;
        let loads = [
            Load::start(rate, &left.ns, (&right.ns, right.v4.into())),
            Load::start(rate, &right.ns, (&left.ns, left.v6.into())),
        ];
        std::thread::sleep(Duration::from_secs(1));
        for carries in [1400, 1280] {
            apart.carry(carries);
            let before = loads.each_ref().map(Load::bytes);
            apart.know(carries, "black_hole", STALL + Duration::from_secs(1));
            // TCP doubles its pauses, so it tries again within as long as the search took. How fast it goes on is its own:
            // BBR takes losses for what the path carries, and is slow for seconds.
            wait_for(
                "the connections go on",
                STALL + Duration::from_secs(2),
                || {
                    let grown = |(load, before): (&Load, u64)| load.bytes() > before + (64 << 10);
                    loads.iter().zip(before).all(grown)
                },
            );
            // What was lost counts as long round trips: TCP would wait for seconds if the path shrank again at once.
            std::thread::sleep(Duration::from_secs(1));
        }
        apart.carry(1500);
        apart.know(1500, "interface", GROWTH);
        for load in loads {
            let stall = load.longest_stall();
            println!("longest stall {stall:?} in {} bytes", load.bytes());
            assert!(stall <= STALL, "stood still for {stall:?}");
            load.finish();
        }
    });
}

/// A firewall on the way begins to stop all ports but the node's own: the flows of the other lanes go on over the first
/// one within 3 s, and spread again when it stops doing so.
#[test]
fn a_lane_that_is_stopped_under_load() {
    Lab::run(|lab| {
        let apart = Apart::new(lab, Underlay::V4, (1500, 1500), "1500");
        let lanes = |host: &Host| host.json(&["connections"])["connections"][0]["lanes"].as_u64();
        let all = lanes(&apart.hosts[0]);
        assert!(all >= Some(2), "a lane for each core: {all:?}");
        let [left, right] = apart.containers();
        let loads: [Load; 6] =
            std::array::from_fn(|_| Load::start(1 << 20, &left.ns, (&right.ns, right.v4.into())));
        std::thread::sleep(Duration::from_secs(1));
        apart
            .middle
            .sh("nft insert rule inet hole small udp sport != 6783 drop");
        wait_for("the first lane is left", STALL, || {
            lanes(&apart.hosts[0]) == Some(1)
        });
        std::thread::sleep(Duration::from_secs(1));
        for load in loads {
            let stall = load.longest_stall();
            println!("longest stall {stall:?} in {} bytes", load.bytes());
            assert!(stall <= STALL, "stood still for {stall:?}");
            load.finish();
        }
        apart.carry(1500);
        let patience = Duration::from_secs(12);
        wait_for("all lanes are used", patience, || {
            lanes(&apart.hosts[0]) == all
        });
    });
}

/// More than the nodes can take, from both sides: probes share the queues that overflow, and still no path is taken for
/// smaller than it is.
#[test]
fn a_flood_does_not_make_a_path_small() {
    Lab::run(|lab| {
        let hosts = lab.cluster::<2>();
        let [left, right] = [hosts[0].attach("left"), hosts[1].attach("right")];
        know(&hosts, 1500, "interface", Duration::from_secs(10));
        let sinks = [&left, &right].map(|container| udp(&container.ns, (container.v4, 5009)));
        let ends = Instant::now() + Duration::from_secs(4);
        std::thread::scope(|scope| {
            for (from, to) in [(&left, &sinks[1]), (&right, &sinks[0])] {
                let to = to.local_addr().expect("a bound socket has an address");
                let socket = udp(&from.ns, (from.v4, 0));
                let said = payload(1400, 5);
                scope.spawn(move || {
                    while Instant::now() < ends {
                        // A full queue of the container's own is what a flood is about.
                        let _ = socket.send_to(&said, to);
                    }
                });
            }
            while Instant::now() < ends {
                for host in &hosts {
                    let seen = mtus(host);
                    let right = |mtu: &Value| mtu["bytes"] == 1500 && mtu["reason"] == "interface";
                    assert!(seen.iter().all(right), "{seen:?}");
                }
                std::thread::sleep(Duration::from_millis(50));
            }
        });
        for host in &hosts {
            let traffic = &host.status()["traffic"];
            println!("in the flood: {traffic}");
            assert!(traffic["sent_packets"].as_u64() > Some(2_000), "{traffic}");
        }
    });
}

/// An uplink that takes 1460 bytes, behind which ICMP is lost: containers of MTU 1500 and 9000 reach the outside all
/// the same, those that were there before the uplink became small too; and their node tells them what is too large.
#[test]
fn the_outside_through_a_small_uplink_without_icmp() {
    Lab::run(|lab| {
        let internet = Ns::add("internet");
        lab.plug(&internet, "u0", 254);
        internet.sh(&format!(
            "ip addr add {SERVER}/32 dev lo; ip addr add {SERVER6}/128 dev lo"
        ));
        let servers = [SERVER, SERVER6].map(|server| server.parse::<IpAddr>().expect("an address"));
        servers.iter().for_each(|server| lab.allow_outside(*server));
        let hosts = [lab.host("h1", 1), lab.host("h2", 2)];
        for (host, mtu) in hosts.iter().zip(["1500", "9000"]) {
            host.ns.sh(
                "ip route add default via 192.168.77.254; ip -6 route add default via fd77::254",
            );
            host.start_with(&["--mtu", mtu]);
        }
        form(&hosts);
        let mut inside = Vec::new();
        for host in &hosts {
            let before = host.attach(&format!("before-{}", host.name));
            host.ns.sh(NO_ICMP);
            host.ns.sh("ip link set u0 mtu 1460");
            let after = host.attach(&format!("after-{}", host.name));
            for container in [&before, &after] {
                for server in servers {
                    bulk(&container.ns, (&internet, server), 2 << 20);
                    large_datagram(&internet, container, server);
                }
                too_large_is_told(container, servers[0]);
            }
            inside.push(after);
        }
        // Between the hosts, too, the uplinks have become small.
        bulk(&inside[0].ns, (&inside[1].ns, inside[1].v4.into()), 1 << 20);
        inside[0].reaches(&inside[1], 1400);
    });
}

/// Errors of IPv4 and IPv6 about reachability and size neither leave nor enter by the uplink.
const NO_ICMP: &str = "nft -f - <<'END'
table inet silence {
  chain in { type filter hook prerouting priority -400;
    iifname u0 icmp type destination-unreachable drop
    iifname u0 icmpv6 type { destination-unreachable, packet-too-big } drop
  }
  chain out { type filter hook postrouting priority 400;
    oifname u0 icmp type destination-unreachable drop
    oifname u0 icmpv6 type { destination-unreachable, packet-too-big } drop
  }
}
END";

/// A datagram to the outside that is larger than the uplink takes arrives in fragments; its answer comes back.
fn large_datagram(internet: &Ns, container: &Container, server: IpAddr) {
    let own = container.addresses()[usize::from(server.is_ipv6())];
    let (client, listener) = (udp(&container.ns, (own, 0)), udp(internet, (server, 0)));
    let sent = payload(4000, 1);
    let to = listener
        .local_addr()
        .expect("a bound socket has an address");
    // A kernel that has just been told that a datagram is too large has lost that one.
    let heard = (0..3).find_map(|_| {
        client.send_to(&sent, to).expect("the datagram leaves");
        listener
            .set_read_timeout(Some(Duration::from_millis(500)))
            .expect("a socket takes a timeout");
        let mut heard = vec![0; 5000];
        let (len, source) = listener.recv_from(&mut heard).ok()?;
        Some((heard[..len] == sent, source))
    });
    let (same, source) = heard.unwrap_or_else(|| panic!("{server} heard nothing of {own}"));
    assert!(same, "it arrived changed");
    listener
        .send_to(&sent[..1400], source)
        .expect("the answer leaves");
    assert_eq!(
        client.recv(&mut [0; 2000]).expect("the answer arrives"),
        1400
    );
}

/// A container that forbids fragments is told by its own node what the uplink takes.
fn too_large_is_told(container: &Container, server: IpAddr) {
    let said = container
        .ns
        .try_sh(&format!("ping -n -c 2 -W 1 -M do -s 1440 {server}"));
    let said = String::from_utf8_lossy(&[said.stdout, said.stderr].concat()).into_owned();
    assert!(
        said.contains("mtu = 1460") || said.contains("mtu=1460"),
        "{said}"
    );
}

/// A node is a router, and is heard as one by containers of other nodes: it shows in a traceroute, and says what its
/// own containers cannot take, so that connections between containers of different MTU work.
#[test]
fn a_router_that_is_heard() {
    Lab::run(|lab| {
        let hosts = [lab.host("h1", 1), lab.host("h2", 2), lab.host("h3", 3)];
        for (host, mtu) in hosts.iter().zip(["9000", "1500", "1500"]) {
            host.start_with(&["--mtu", mtu]);
        }
        form(&hosts);
        let [large, small, third] = [
            hosts[0].attach("large"),
            hosts[1].attach("small"),
            hosts[2].attach("third"),
        ];
        // From a node that owns the gateway's address, to it, and between two that do not.
        for (from, to) in [(&large, &small), (&small, &large), (&third, &small)] {
            for address in to.addresses() {
                let said = from.ns.try_sh(&format!("ping -n -c 1 -W 2 -t 2 {address}"));
                let said = String::from_utf8_lossy(&said.stdout).into_owned();
                let heard = said.to_lowercase().contains(&format!("from {address}"))
                    && said.contains("exceeded");
                assert!(heard, "from {} to {address}: {said}", from.name);
            }
        }
        for (option, address) in [("-4", small.addresses()[0]), ("-6", small.addresses()[1])] {
            let said = large.ns.try_sh(&format!(
                "ping {option} -n -c 2 -W 1 -M do -s 4000 {address}"
            ));
            let said = String::from_utf8_lossy(&[said.stdout, said.stderr].concat()).into_owned();
            assert!(
                said.contains("mtu = 1500") || said.contains("mtu=1500"),
                "{said}"
            );
        }
        for family in [0, 1] {
            bulk(&large.ns, (&small.ns, small.addresses()[family]), 2 << 20);
            bulk(&small.ns, (&large.ns, large.addresses()[family]), 2 << 20);
        }
    });
}
