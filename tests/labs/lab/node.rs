//! A host of a lab with its node, and the containers on it.

use std::cell::RefCell;
use std::fs::OpenOptions;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::Duration;

use serde_json::Value;

use super::ns::{self, Ns};
use super::traffic::{ping, udp, wait_for};

/// The node under test.
pub(crate) const WEAVED: &str = env!("CARGO_BIN_EXE_weaved");
/// The command line under test.
pub(crate) const WEAVECTL: &str = env!("CARGO_BIN_EXE_weavectl");

/// A machine: a namespace that may have an uplink, and a node that may run.
pub(crate) struct Host {
    /// The host's name and its node's.
    pub(crate) name: String,
    /// The host's network.
    pub(crate) ns: Ns,
    /// The uplink's addresses; unspecified while there is no uplink.
    pub(crate) v4: Ipv4Addr,
    /// The same for IPv6.
    pub(crate) v6: Ipv6Addr,
    dir: PathBuf,
    weaved: RefCell<Option<Child>>,
}

/// What a command line said and how it ended.
#[derive(Debug)]
pub(crate) struct Said {
    /// The exit code.
    pub(crate) code: i32,
    /// Standard output.
    pub(crate) out: String,
    /// Standard error.
    pub(crate) err: String,
}

/// A container: a namespace attached to the network.
#[derive(Clone)]
pub(crate) struct Container {
    /// The name it was attached with.
    pub(crate) name: String,
    /// Its network.
    pub(crate) ns: Ns,
    /// Its IPv4 address.
    pub(crate) v4: Ipv4Addr,
    /// Its IPv6 address.
    pub(crate) v6: Ipv6Addr,
}

impl Container {
    /// One of `weavectl ps`, whose network is to be found as `ns`.
    #[track_caller]
    pub(crate) fn listed(one: &Value, name: &str, ns: Ns) -> Self {
        let address = |field: &str| one[field].as_str().and_then(|ip| ip.split('/').next());
        Self {
            name: name.to_owned(),
            ns,
            v4: address("ip")
                .and_then(|ip| ip.parse().ok())
                .expect("an address"),
            v6: address("ip6")
                .and_then(|ip| ip.parse().ok())
                .expect("an address"),
        }
    }

    /// Fails unless this container gets an answer from both addresses of another, to pings of `size` bytes.
    #[track_caller]
    pub(crate) fn reaches(&self, other: &Self, size: usize) {
        for address in other.addresses() {
            ping(&self.ns, address, size);
        }
    }

    /// Both addresses, IPv4 first.
    pub(crate) fn addresses(&self) -> [IpAddr; 2] {
        [self.v4.into(), self.v6.into()]
    }
}

impl Host {
    /// A host without uplink and without node. Its kernel is set as distrustfully as a distribution may set it: no
    /// forwarding, strict reverse path filter.
    pub(crate) fn add(name: &str, dir: &Path) -> Self {
        Ns::add(name).sh(
            "sysctl -qw net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0 \
             net.ipv4.conf.all.rp_filter=1 net.ipv4.conf.default.rp_filter=1",
        );
        Self::known(name, dir)
    }

    /// The host of this name, to ask its node; how it was started is not known.
    pub(super) fn known(name: &str, dir: &Path) -> Self {
        Self {
            name: name.to_owned(),
            ns: Ns::named(name),
            v4: Ipv4Addr::UNSPECIFIED,
            v6: Ipv6Addr::UNSPECIFIED,
            dir: dir.to_owned(),
            weaved: RefCell::new(None),
        }
    }

    /// The socket on which the node answers.
    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.join(format!("{}.sock", self.name))
    }

    /// Where the node keeps its state.
    pub(crate) fn state(&self) -> PathBuf {
        self.dir.join(format!("{}.state", self.name))
    }

    /// The node's arguments.
    pub(crate) fn arguments(&self) -> Vec<String> {
        let show = |path: PathBuf| path.display().to_string();
        let [state, socket] = [show(self.state()), show(self.socket())];
        [
            "--name",
            &self.name,
            "--state-dir",
            &state,
            "--socket",
            &socket,
        ]
        .map(str::to_owned)
        .to_vec()
    }

    /// Starts the node with more arguments than its own, and waits until it answers.
    pub(crate) fn start_with(&self, more: &[&str]) {
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.dir.join(format!("{}.log", self.name)))
            .expect("the log can be written");
        let mut child = self
            .ns
            .command(WEAVED)
            .args(self.arguments())
            .args(more)
            .stdout(log.try_clone().expect("a file can be cloned"))
            .stderr(log)
            .spawn()
            .expect("weaved starts");
        wait_for(
            &format!("{} answers", self.name),
            Duration::from_secs(10),
            || {
                let ended = child.try_wait().expect("a child can be asked");
                assert!(ended.is_none(), "weaved on {} ended: {ended:?}", self.name);
                self.ctl(&["status"]).code != 4
            },
        );
        *self.weaved.borrow_mut() = Some(child);
    }

    /// Starts the node and waits until it answers.
    pub(crate) fn start(&self) {
        self.start_with(&[]);
    }

    /// The node's process id.
    pub(crate) fn pid(&self) -> u32 {
        self.weaved.borrow().as_ref().expect("weaved runs").id()
    }

    /// Sends the node a signal and waits until it is gone.
    pub(crate) fn end(&self, signal: &str) -> ExitStatus {
        let mut child = self.weaved.borrow_mut().take().expect("weaved runs");
        ns::host(&format!("kill -{signal} {}", child.id()));
        let mut status = None;
        wait_for("weaved ends", Duration::from_secs(5), || {
            status = child.try_wait().expect("a child can be asked");
            status.is_some()
        });
        status.expect("it was just there")
    }

    /// Kills the node, this very moment, and waits until it is gone.
    pub(crate) fn kill(&self) {
        let mut child = self.weaved.borrow_mut().take().expect("weaved runs");
        child.kill().expect("a child can be killed");
        child.wait().expect("a child can be waited for");
    }

    /// Whether the node can be asked anything.
    pub(crate) fn answers(&self) -> bool {
        const UNREACHABLE: i32 = 4;
        self.ctl(&["status"]).code != UNREACHABLE
    }

    /// Runs `weavectl` against this host's node.
    pub(crate) fn ctl(&self, arguments: &[&str]) -> Said {
        said(
            Command::new(WEAVECTL)
                .env("WEAVE_SOCKET", self.socket())
                .args(arguments),
        )
    }

    /// Runs `weavectl`, which must succeed, and returns what it wrote.
    #[track_caller]
    pub(crate) fn ok(&self, arguments: &[&str]) -> String {
        let said = self.ctl(arguments);
        assert_eq!(
            said.code, 0,
            "weavectl {arguments:?} on {}: {said:?}",
            self.name
        );
        said.out
    }

    /// Runs `weavectl ... -o json`, which must succeed, and returns the value.
    #[track_caller]
    pub(crate) fn json(&self, arguments: &[&str]) -> Value {
        let out = self.ok(&[arguments, &["-o", "json"]].concat());
        serde_json::from_str(&out)
            .unwrap_or_else(|error| panic!("{arguments:?} is not JSON: {error}: {out}"))
    }

    /// The node's status, whether all is well or not.
    #[track_caller]
    pub(crate) fn status(&self) -> Value {
        let said = self.ctl(&["status", "-o", "json"]);
        assert!(
            matches!(said.code, 0 | 3),
            "status of {}: {said:?}",
            self.name
        );
        serde_json::from_str(&said.out)
            .unwrap_or_else(|error| panic!("the status is not JSON: {error}: {said:?}"))
    }

    /// What `weavectl connections` says of another member, if it has one of that name.
    pub(crate) fn connection(&self, peer: &str) -> Option<Value> {
        let seen = self.json(&["connections"]);
        let all = seen["connections"].as_array().expect("a list");
        all.iter().find(|each| each["name"] == peer).cloned()
    }

    /// Whether packets for another member go through a relay, or straight with `None`.
    pub(crate) fn goes_via(&self, peer: &str, relay: Option<&str>) -> bool {
        self.connection(peer).is_some_and(|seen| {
            seen["state"] == "connected"
                && seen["endpoint"].is_null() == relay.is_some()
                && seen["path"]["via"].as_str() == relay
        })
    }

    /// Fails if the overlay's port hears a namespace at any of these addresses of the host (their ports do not count), or
    /// does not hear the host itself.
    #[track_caller]
    pub(crate) fn assert_deaf_to(&self, from: &Ns, addresses: &[SocketAddr]) {
        let dropped = || self.status()["drops"]["too_short"].clone();
        let say = |from: &Ns, mut to: SocketAddr| {
            to.set_port(6783);
            let own: IpAddr = match to {
                SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
                SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
            };
            let sent = udp(from, (own, 0)).send_to(b"x", to);
            sent.expect("the datagram leaves");
        };
        let hears = |to: &&SocketAddr| {
            let before = dropped();
            say(from, **to);
            std::thread::sleep(Duration::from_millis(200));
            dropped() != before
        };
        let heard: Vec<&SocketAddr> = addresses.iter().filter(hears).collect();
        assert!(
            heard.is_empty(),
            "the overlay's port hears {} at {heard:?}",
            from.name()
        );
        // The same from the host itself, which may: it is heard, and dropped.
        for own in [(self.v4, 0).into(), (self.v6, 0).into()] {
            let before = dropped();
            say(&self.ns, own);
            wait_for("the port hears its host", Duration::from_secs(2), || {
                dropped() != before
            });
        }
    }

    /// Makes a namespace on this host for a container of this name; it is not attached yet.
    pub(crate) fn bare_container(&self, name: &str) -> Ns {
        Ns::add(name)
    }

    /// Makes a container and attaches it.
    #[track_caller]
    pub(crate) fn attach(&self, name: &str) -> Container {
        self.attach_with(name, &[])
    }

    /// Makes a container and attaches it with more arguments.
    #[track_caller]
    pub(crate) fn attach_with(&self, name: &str, more: &[&str]) -> Container {
        let ns = self.bare_container(name);
        self.attach_ns(ns, name, more)
    }

    /// Attaches what has its network namespace already.
    #[track_caller]
    pub(crate) fn attach_ns(&self, ns: Ns, name: &str, more: &[&str]) -> Container {
        let path = ns.path().display().to_string();
        let result = self.json(&[&["attach", &path, "--name", name], more].concat());
        let address = |at: usize| {
            result["ips"][at]["address"]
                .as_str()
                .and_then(|text| text.split('/').next())
                .unwrap_or_else(|| panic!("no address {at} in {result}"))
        };
        Container {
            name: name.to_owned(),
            ns,
            v4: address(0).parse().expect("the first address is IPv4"),
            v6: address(1).parse().expect("the second address is IPv6"),
        }
    }
}

/// Runs a command to its end.
pub(crate) fn said(command: &mut Command) -> Said {
    let output = command.output().expect("the program starts");
    Said {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}
