//! The facilities of the kernel, each used once as a node uses it, in namespaces of their own.

use std::fs::{self, OpenOptions};
use std::io;
use std::net::{Ipv6Addr, SocketAddr};
use std::time::Duration;

use ipnet::Ipv6Net;
use weave_linux::netlink::{self, Netlink, VethEnd};
use weave_linux::netns::{self, Netns, run_in};
use weave_linux::nft;
use weave_linux::packet::PacketSocket;
use weave_linux::tun::{Tun, TunOptions, TunQueues};
use weave_linux::udp::{UdpOptions, UdpSocket};
use weave_model::ClusterRange;
use weave_router::rules::AttachRules;

use super::{Plan, Point};
use crate::preflight;

/// The oldest kernel that has all that is needed.
const OLDEST: (u32, u32) = (5, 10);

/// The kernel's version.
pub(super) fn release() -> Point {
    let text = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    judge_release(text.trim())
}

fn judge_release(text: &str) -> Point {
    let mut numbers = text
        .split(|letter: char| !letter.is_ascii_digit())
        .map_while(|number| number.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version >= OLDEST {
        return Point::ok("kernel", format!("Linux {text}"));
    }
    let (major, minor) = OLDEST;
    let found = format!("Linux {text} is older than {major}.{minor}");
    Point::failure("kernel", found, "install a newer kernel")
}

/// Everything that needs privileges to be tried.
pub(super) async fn facilities(plan: &Plan) -> Vec<Point> {
    let [here, there] = match [Netns::create(), Netns::create()] {
        [Ok(here), Ok(there)] => [here, there],
        [Err(error), _] | [_, Err(error)] => {
            let found = format!("no network namespace can be made: {error}");
            let fix =
                "build the kernel with CONFIG_NET_NS, or allow this process to make namespaces";
            return vec![Point::failure("namespaces", found, fix)];
        }
    };
    let mut points = vec![Point::ok(
        "namespaces",
        "network namespaces can be made and entered",
    )];
    points.extend(tun(&here));
    points.push(nftables(&here, plan));
    points.push(veth(&here, &there).await);
    points.push(packet(&here));
    points.push(udp_batches());
    points.extend(forwarding());
    points
}

/// The TUN device with its virtio header, and the offloads it grants.
fn tun(netns: &Netns) -> Vec<Point> {
    if let Err(obstacle) = preflight::check_tun() {
        return vec![Point::failure("tun", obstacle.cause, obstacle.fix)];
    }
    let options = TunOptions {
        name: "weave0".to_owned(),
        queues: 2,
        tso: true,
        uso: true,
    };
    match inside(netns, || Tun::open(&options)) {
        Ok(queues) => {
            let found = "a TUN device with two queues and vnet_hdr";
            vec![Point::ok("tun", found), offloads(&queues)]
        }
        Err(error) => {
            let found =
                format!("a TUN device with two queues and vnet_hdr cannot be made: {error}");
            vec![Point::failure(
                "tun",
                found,
                "load the kernel module: modprobe tun",
            )]
        }
    }
}

fn offloads(queues: &TunQueues) -> Point {
    let all = [
        (queues.tso, "TCP super-packets"),
        (queues.uso, "UDP super-packets (USO)"),
        (queues.big_tcp, "joined TCP super-packets"),
    ];
    let these = |granted| {
        let names = all.iter().filter(move |(has, _)| *has == granted);
        names.map(|(_, name)| *name).collect::<Vec<_>>().join(", ")
    };
    if these(false).is_empty() {
        return Point::ok("offloads", these(true));
    }
    let found = format!(
        "this kernel has no {}: it works without, but slower",
        these(false)
    );
    let fix = "nothing has to be done; Linux 6.6 and newer have all of them";
    Point::warning("offloads", found, fix)
}

/// The very rules of a node, given to the kernel over netlink.
fn nftables(netns: &Netns, plan: &Plan) -> Point {
    let nowhere = Ipv6Net::new_assert(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0), 48);
    let range = match ClusterRange::new(plan.range, plan.range6.unwrap_or(nowhere)) {
        Ok(range) => range,
        Err(error) => {
            return Point::failure("nftables", error.to_string(), "choose another --range");
        }
    };
    let rules = AttachRules {
        tun: "weave0".to_owned(),
        veths: "wv".to_owned(),
        range,
        networks: Vec::new(),
        closed_udp: vec![plan.listen.port()],
        closed_tcp: Vec::new(),
    };
    let tried = inside(netns, || {
        let socket = nft::Socket::open()?;
        rules.rule_set().ensure(&socket).map_err(io::Error::other)
    });
    match tried {
        Ok(_) => Point::ok(
            "nftables",
            "the kernel takes all rules of a node, over netlink",
        ),
        Err(error) => {
            let fix = "load the modules nf_tables, nft_fib_inet, nft_ct, nft_masq and nft_counter, \
                       or build the kernel with CONFIG_NF_TABLES_INET and those";
            Point::failure("nftables", error.to_string(), fix)
        }
    }
}

async fn veth(here: &Netns, there: &Netns) -> Point {
    let end = |name: &str, last| VethEnd {
        name: name.parse().expect("a short word is an interface name"),
        mac: [2, 0, 0, 0, 0, last],
    };
    let tried: Result<(), netlink::Error> = async {
        let netlink = Netlink::open_in(here)?;
        let ends = [end("wv0123456789", 1), end("eth0", 2)];
        netlink.add_veth(&ends[0], &ends[1], there, 1500).await
    }
    .await;
    match tried {
        Ok(()) => Point::ok("veth", "a pair of devices across two namespaces"),
        Err(error) => Point::failure(
            "veth",
            error.to_string(),
            "load the kernel module: modprobe veth",
        ),
    }
}

fn packet(netns: &Netns) -> Point {
    let wait = Duration::from_millis(1);
    match inside(netns, || PacketSocket::open(wait)) {
        Ok(_) => Point::ok(
            "packet",
            "packet sockets (AF_PACKET), for broadcast and multicast",
        ),
        Err(error) => {
            let found = format!("no packet socket can be opened: {error}");
            Point::failure(
                "packet",
                found,
                "load the kernel module: modprobe af_packet",
            )
        }
    }
}

/// Batches of datagrams, over this host's loopback.
fn udp_batches() -> Point {
    let options = UdpOptions {
        reuse_port: false,
        gso: true,
        gro: true,
    };
    let tried = || -> io::Result<(bool, bool)> {
        let socket = UdpSocket::bind(SocketAddr::from(([127, 0, 0, 1], 0)), options)?;
        let calls = socket.send(socket.local_addr()?, &[0; 200], 100, 0)?;
        Ok((calls == 1, socket.gro()))
    };
    let fix = "nothing has to be done; a node finds out by itself";
    match tried() {
        Ok((true, true)) => Point::ok("udp", "batches of datagrams, sent (GSO) and received (GRO)"),
        Ok((gso, _)) => {
            let lacks = if gso {
                "on receive (GRO)"
            } else {
                "on send (GSO)"
            };
            Point::warning(
                "udp",
                format!("no batches of datagrams {lacks}: slower"),
                fix,
            )
        }
        Err(error) => {
            let found = format!("a datagram to this host's own loopback was not sent: {error}");
            Point::warning(
                "udp",
                found,
                "bring the loopback device up: ip link set lo up",
            )
        }
    }
}

/// Whether forwarding is on or can be switched on, which every router needs.
fn forwarding() -> [Point; 2] {
    let v4 = switch("/proc/sys/net/ipv4/ip_forward");
    let v4 = match v4 {
        Ok(true) => Point::ok("ip_forward", "on"),
        Ok(false) => Point::ok("ip_forward", "off; a node switches it on"),
        Err(error) => {
            let found = format!("forwarding cannot be switched on: {error}");
            Point::failure(
                "ip_forward",
                found,
                "mount /proc/sys writable, or: sysctl -w net.ipv4.ip_forward=1",
            )
        }
    };
    let fix = "build or boot the kernel with IPv6 (no ipv6.disable=1) if containers should have it";
    let v6 = match fs::read_to_string("/proc/sys/net/ipv6/conf/all/disable_ipv6") {
        Ok(text) if text.trim() == "0" => Point::ok("ipv6", "on"),
        Ok(_) => {
            let fix = "sysctl -w net.ipv6.conf.all.disable_ipv6=0, if containers should have it";
            Point::warning(
                "ipv6",
                "switched off on this host: containers get IPv4 only",
                fix,
            )
        }
        Err(_) => Point::warning("ipv6", "not in this kernel: containers get IPv4 only", fix),
    };
    [v4, v6]
}

/// Whether a setting is on; an error if it is off and cannot be written.
fn switch(path: &str) -> io::Result<bool> {
    if fs::read_to_string(path)?.trim() == "1" {
        return Ok(true);
    }
    OpenOptions::new().write(true).open(path).map(|_| false)
}

/// Runs something in a namespace; that it cannot be entered is an error like its own.
fn inside<T: Send>(netns: &Netns, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    run_in(netns, work).map_err(|error: netns::Error| io::Error::other(error))?
}

#[cfg(test)]
mod tests {
    use super::super::State;
    use super::*;

    #[test]
    fn old_kernels_are_told_from_new_ones() {
        for good in ["5.10.0-28-amd64", "6.1.0", "6.18.5+", "10.0"] {
            assert_eq!(judge_release(good).state, State::Ok, "{good}");
        }
        for bad in ["5.9.16", "4.19.0-27-amd64", ""] {
            assert_eq!(judge_release(bad).state, State::Failure, "{bad:?}");
        }
    }

    #[test]
    fn what_the_kernel_lacks_is_named() {
        let granted = |tso, uso, big_tcp| TunQueues {
            queues: Vec::new(),
            tso,
            uso,
            big_tcp,
        };
        assert_eq!(offloads(&granted(true, true, true)).state, State::Ok);
        let some = offloads(&granted(true, false, true));
        assert_eq!(some.state, State::Warning);
        assert!(
            some.found.contains("no UDP super-packets (USO):"),
            "{some:?}"
        );
    }
}
