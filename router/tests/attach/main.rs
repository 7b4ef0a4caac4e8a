//! Attaching containers to a host, all of them namespaces of the tests' own. Needs root, `ip` and `/dev/net/tun`.
//!
//! The namespaces have no names: they end with the test, however it ends.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod check;
mod floating;
mod host;
mod lend;
mod limits;
mod pair;
mod traffic;

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use weave_linux::netns::{Netns, run_in};
use weave_linux::sysctl;
use weave_linux::tun::{Tun, TunOptions, TunQueues};
use weave_model::ClusterRange;
use weave_router::attach::{AttachSpec, Attachment, DefaultRoute, Host, HostSpec};

/// A namespace where link-local addresses are settled at once, so that nothing changes by itself.
fn namespace() -> Netns {
    let netns = Netns::create().unwrap();
    for scope in ["all", "default"] {
        let key = format!("net/ipv6/conf/{scope}/accept_dad");
        run_in(&netns, || sysctl::write(&key, "0"))
            .unwrap()
            .unwrap();
    }
    netns
}

/// A host that is a namespace, with a TUN device that nobody reads.
struct Lab {
    netns: Netns,
    host: Host,
    range: ClusterRange,
    _tun: TunQueues,
}

impl Lab {
    fn new() -> Self {
        let netns = namespace();
        let options = TunOptions {
            name: "weave0".into(),
            queues: 1,
            tso: true,
            uso: false,
        };
        let tun = run_in(&netns, || {
            ip("link set lo up");
            Tun::open(&options).unwrap()
        });
        Self {
            host: Host::open_in(netns.try_clone().unwrap(), "weave0".parse().unwrap()).unwrap(),
            range: range("10.32.0.0/12", "fd00:1:2::/48"),
            netns,
            _tun: tun.unwrap(),
        }
    }

    async fn prepared() -> Self {
        let lab = Self::new();
        lab.host.prepare(&lab.spec()).await.unwrap();
        lab
    }

    fn spec(&self) -> HostSpec {
        HostSpec {
            range: self.range,
            mtu: 1500,
            exposed: None,
        }
    }

    /// Runs `ip` on the host.
    fn ip(&self, arguments: &str) -> String {
        run_in(&self.netns, || ip(arguments)).unwrap()
    }

    /// What to attach to get a container with the address at an offset.
    fn container(&self, offset: u32) -> AttachSpec {
        AttachSpec {
            attachment: Attachment {
                outer: format!("wv{offset:010x}").parse().unwrap(),
                range: self.range,
                offset,
                ipv6: true,
                also: Vec::new(),
                mtu: 1500,
                published: false,
                bandwidth: weave_model::Bandwidth::default(),
                tag: format!("container {offset}"),
            },
            netns: Arc::new(namespace()),
            ifname: "eth0".parse().unwrap(),
            mac: None,
            default_route: DefaultRoute::IfNone,
            uplink_mtu: None,
        }
    }

    async fn attached(&self, offset: u32) -> AttachSpec {
        let spec = self.container(offset);
        self.host.attach(&spec).await.unwrap();
        spec
    }

    fn setting(&self, key: &str) -> String {
        setting(&self.netns, key)
    }

    fn set(&self, key: &str, value: &str) {
        run_in(&self.netns, || sysctl::write(key, value))
            .unwrap()
            .unwrap();
    }
}

fn range(v4: &str, v6: &str) -> ClusterRange {
    ClusterRange::new(v4.parse().unwrap(), v6.parse().unwrap()).unwrap()
}

fn setting(netns: &Netns, key: &str) -> String {
    run_in(netns, || sysctl::read(key)).unwrap().unwrap()
}

/// Runs `ip` in the namespace of the calling thread.
fn ip(arguments: &str) -> String {
    let output = Command::new("ip")
        .args(arguments.split(' '))
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {arguments}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

fn ip_in(netns: &Netns, arguments: &str) -> String {
    run_in(netns, || ip(arguments)).unwrap()
}

/// All devices, addresses, routes and settings of a namespace, as text to compare; taken when the kernel has noticed
/// all carriers.
fn snapshot(netns: &Netns) -> String {
    let deadline = Instant::now() + Duration::from_secs(5);
    let moving = |all: &String| {
        ["NO-CARRIER", "LOWERLAYERDOWN"]
            .iter()
            .any(|word| all.contains(word))
    };
    loop {
        let all = listing(netns);
        if !moving(&all) || Instant::now() > deadline {
            return all;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn listing(netns: &Netns) -> String {
    run_in(netns, || {
        let mut all = String::new();
        for list in [
            "-d link",
            "addr",
            "-4 route show table all",
            "-6 route show table all",
            "neigh show proxy",
        ] {
            all += &ip(list);
        }
        for tree in [
            "net/ipv4/conf",
            "net/ipv6/conf",
            "net/ipv4/neigh",
            "net/ipv6/neigh",
        ] {
            for device in sysctl::list(tree).unwrap() {
                for key in sysctl::list(&format!("{tree}/{device}")).unwrap() {
                    let key = format!("{tree}/{device}/{key}");
                    // Some settings cannot be read until they are set.
                    let value = sysctl::read(&key).unwrap_or_default();
                    all += &format!("{key} = {value}\n");
                }
            }
        }
        all + &sysctl::read("net/ipv4/ip_forward").unwrap()
    })
    .unwrap()
}

/// The lines of a snapshot, where what was made again stands in another place.
fn sorted(snapshot: &str) -> String {
    let mut lines: Vec<_> = snapshot.lines().collect();
    lines.sort_unstable();
    lines.join("\n")
}

/// Fails with the lines that differ.
fn assert_same(before: &str, after: &str, when: &str) {
    let missing: Vec<_> = before
        .lines()
        .filter(|line| !after.lines().any(|other| other == *line))
        .collect();
    let new: Vec<_> = after
        .lines()
        .filter(|line| !before.lines().any(|other| other == *line))
        .collect();
    assert!(
        before == after,
        "{when}: missing {missing:#?}, new {new:#?}"
    );
}

/// Sends a datagram from one namespace to an address in another and back; returns where it came from.
fn echo(from: &Netns, to: &Netns, address: IpAddr) -> Result<IpAddr, std::io::Error> {
    let server = run_in(to, || UdpSocket::bind((address, 0))).unwrap()?;
    let any: SocketAddr = if address.is_ipv4() {
        "0.0.0.0:0"
    } else {
        "[::]:0"
    }
    .parse()
    .unwrap();
    let client = run_in(from, || UdpSocket::bind(any)).unwrap()?;
    for socket in [&server, &client] {
        socket.set_read_timeout(Some(Duration::from_secs(3)))?;
    }
    let mut buffer = [0; 64];
    client.connect(server.local_addr()?)?;
    client.send(b"ping")?;
    let (length, source) = uninterrupted(|| server.recv_from(&mut buffer))?;
    server.send_to(&buffer[..length], source)?;
    let length = uninterrupted(|| client.recv(&mut buffer))?;
    assert_eq!(&buffer[..length], b"ping");
    Ok(source.ip())
}

/// Tries again when a signal came between.
fn uninterrupted<T>(mut call: impl FnMut() -> std::io::Result<T>) -> std::io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}
