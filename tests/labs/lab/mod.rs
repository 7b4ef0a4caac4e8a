//! A lab: real nodes on hosts that are network namespaces, joined by a switch, with every wire watched.
//!
//! [`Lab::run`] is the whole life of one: it waits until no other lab runs, removes what a killed one left, gives the
//! test a place to build hosts, and at the end, failed or not, removes everything again. When the test did not fail it
//! reads back what crossed every uplink and fails if a single packet could be read there, or is of an unknown kind. So
//! that captures which see nothing do not pass, it lets two containers of its own talk across hosts first (`control`).

pub(crate) mod beat;
pub(crate) mod capture;
mod control;
pub(crate) mod node;
pub(crate) mod ns;
pub(crate) mod traffic;

use std::cell::RefCell;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use capture::Capture;
use control::Control;
pub(crate) use node::{Container, Host};
use ns::Ns;
use traffic::wait_for;

/// The switch between the hosts: a namespace with one bridge.
const SWITCH: &str = "switch";
/// The interface by which every host reaches the others.
const UPLINK: &str = "u0";

/// What crosses a wire between hosts.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wire {
    /// Every datagram by itself, as on most networks: the capture sees the first byte of each.
    Single,
    /// Datagrams of one call stay together, as where network cards take segmented UDP; the fastest path.
    Super,
}

/// One lab while it runs.
pub(crate) struct Lab {
    dir: PathBuf,
    switch: Ns,
    wire: Wire,
    captures: RefCell<Vec<Capture>>,
    allowed: RefCell<Vec<IpAddr>>,
    hosts: RefCell<Vec<String>>,
}

impl Lab {
    /// Runs a lab whose wires carry single packets.
    pub(crate) fn run(test: impl FnOnce(&Self)) {
        Self::run_on(Wire::Single, test);
    }

    /// Runs a lab on the given kind of wire.
    pub(crate) fn run_on(wire: Wire, test: impl FnOnce(&Self)) {
        let _only_one = wait_for_turn();
        let dir = std::env::temp_dir().join("weave-labs");
        clear(&dir);
        std::fs::create_dir_all(&dir).expect("a temporary directory can be made");
        let switch = Ns::add(SWITCH);
        switch.sh("ip link add br0 type bridge mcast_snooping 0 && ip link set br0 up");
        let lab = Self {
            dir: dir.clone(),
            switch,
            wire,
            captures: RefCell::default(),
            allowed: RefCell::default(),
            hosts: RefCell::default(),
        };
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            test(&lab);
            lab.judge_wires();
        }));
        if outcome.is_err() {
            lab.explain();
        }
        clear(&dir);
        if let Err(failure) = outcome {
            resume_unwind(failure);
        }
    }

    /// The switch; host N is at its port `pN`.
    pub(crate) const fn switch(&self) -> &Ns {
        &self.switch
    }

    /// A directory that is removed with the lab.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// A host without an uplink.
    pub(crate) fn bare_host(&self, name: &str) -> Host {
        self.hosts.borrow_mut().push(name.to_owned());
        Host::add(name, &self.dir)
    }

    /// A host on the switch, as number `number`: 192.168.77.N and fd77::N on `u0`, whose capture runs from now on.
    pub(crate) fn host(&self, name: &str, number: u8) -> Host {
        let host = self.host_unwatched(name, number);
        self.watch(&host.ns, UPLINK);
        host
    }

    /// The same without a capture: for wires that carry junk, and more of it than a capture could keep.
    pub(crate) fn host_unwatched(&self, name: &str, number: u8) -> Host {
        let mut host = self.bare_host(name);
        self.plug(&host.ns, UPLINK, number);
        host.v4 = Ipv4Addr::new(192, 168, 77, number);
        host.v6 = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, number.into());
        host
    }

    /// `count` hosts on the switch, h1 and so on, each with a running node, joined to one cluster and connected.
    pub(crate) fn cluster<const COUNT: usize>(&self) -> [Host; COUNT] {
        let hosts = std::array::from_fn(|at| self.host(&format!("h{}", at + 1), at as u8 + 1));
        hosts.iter().for_each(Host::start);
        form(&hosts);
        hosts
    }

    /// Gives a namespace an interface on the switch, with the addresses of the given number.
    pub(crate) fn plug(&self, ns: &Ns, ifname: &str, number: u8) {
        let port = format!("p{number}");
        ns.join(ifname, &self.switch, &port);
        self.switch.sh(&format!("ip link set {port} master br0"));
        ns.sh(&format!(
            "ip addr add 192.168.77.{number}/24 dev {ifname}; ip addr add fd77::{number}/64 dev {ifname} nodad"
        ));
        self.split(ns, ifname);
    }

    /// Makes an interface of a host send every datagram by itself, unless this lab is about super-packets.
    pub(crate) fn split(&self, ns: &Ns, ifname: &str) {
        if self.wire == Wire::Single {
            ns.sh(&format!("ethtool -K {ifname} tx-udp-segmentation off"));
        }
    }

    /// Captures a wire between hosts until the end of the lab, where only sealed packets may have crossed it.
    pub(crate) fn watch(&self, ns: &Ns, ifname: &str) {
        let capture = Capture::start(ns, ifname, &self.dir);
        self.captures.borrow_mut().push(capture);
    }

    /// The same from now on, unless it is watched already.
    fn watch_if_not(&self, ns: &Ns, ifname: &str) {
        let place = capture::place(ns, ifname);
        let watched = self
            .captures
            .borrow()
            .iter()
            .any(|each| each.place() == place);
        if !watched {
            self.watch(ns, ifname);
        }
    }

    /// Captures an interface inside a container; the test itself looks at the frames.
    pub(crate) fn capture(&self, ns: &Ns, ifname: &str) -> Capture {
        Capture::start(ns, ifname, &self.dir)
    }

    /// Lets hosts talk in clear to an address outside the cluster: the internet of this lab.
    pub(crate) fn allow_outside(&self, address: impl Into<IpAddr>) {
        self.allowed.borrow_mut().push(address.into());
    }

    /// Fails unless every watched wire carried sealed packets, and nothing else.
    fn judge_wires(&self) {
        let control = Control::begin(self);
        let (inside, talked) = control
            .map(|Control { inside, hosts }| (inside, hosts))
            .unzip();
        let wires = self.captures.borrow_mut().drain(..).collect::<Vec<_>>();
        let mut frames = Capture::stop_all(wires.into_iter().chain(inside));
        if let Some(hosts) = &talked {
            let inside = frames.pop().expect("the control's capture is the last");
            control::judge(&inside, hosts, &frames);
        }
        let allowed = self.allowed.borrow();
        for wire in &frames {
            assert_eq!(wire.misfit(&allowed), None, "what crossed between hosts");
        }
        let sealed: usize = frames.iter().map(|wire| wire.sealed()).sum();
        assert!(
            frames.len() < 2 || sealed > 0,
            "nothing crossed between the hosts"
        );
        assert!(
            talked.is_some() || sealed == 0,
            "no two nodes are connected at the end of the lab, so that nothing shows that its captures see"
        );
    }

    /// Prints what a person needs to see why the lab failed.
    fn explain(&self) {
        for name in self.hosts.borrow().iter() {
            let file = |suffix: &str| self.dir.join(format!("{name}.{suffix}"));
            let log = std::fs::read(file("log")).unwrap_or_default();
            let log = String::from_utf8_lossy(&log[log.len().saturating_sub(6000)..]);
            let state = ns::try_host(&format!(
                "ip netns exec {0}{name} sh -c 'ip -o addr; ip route; ip -6 route; nft list ruleset | head -150'
                 {1} --socket {2} status; {1} --socket {2} connections",
                ns::PREFIX,
                node::WEAVECTL,
                file("sock").display()
            ));
            eprintln!("==== {name}: log\n{log}\n---- {name}: state\n{state}");
        }
    }
}

/// Makes one cluster of running nodes: the first makes it, the others join; waits until all see all.
pub(crate) fn form(hosts: &[Host]) {
    let (first, others) = hosts.split_first().expect("a cluster has a node");
    first.ok(&["init"]);
    for host in others {
        let token = first.ok(&["token", "create"]);
        host.ok(&["join", token.trim()]);
    }
    await_mesh(hosts);
}

/// Two containers on each host, named after it.
pub(crate) fn two_each(hosts: &[Host]) -> Vec<Container> {
    hosts
        .iter()
        .flat_map(|host| ["a", "b"].map(|suffix| host.attach(&format!("{}{suffix}", host.name))))
        .collect()
}

/// Waits until every node has a session with every other.
pub(crate) fn await_mesh(hosts: &[Host]) {
    await_mesh_of(&hosts.iter().collect::<Vec<_>>());
}

/// The same for hosts that are kept apart.
pub(crate) fn await_mesh_of(hosts: &[&Host]) {
    for host in hosts {
        wait_for(
            &format!("{} sees all", host.name),
            Duration::from_secs(15),
            || {
                let cluster = &host.status()["cluster"];
                cluster["members"] == hosts.len() && cluster["connected"] == hosts.len()
            },
        );
    }
}

/// Waits until no other lab runs on this machine. The turn ends when the value is dropped or the process dies.
fn wait_for_turn() -> UnixListener {
    let name = SocketAddr::from_abstract_name("weave-labs").expect("a short name");
    loop {
        if let Ok(turn) = UnixListener::bind_addr(&name) {
            return turn;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Removes everything that labs make: processes, namespaces, files.
fn clear(dir: &Path) {
    ns::remove_all();
    if dir.exists() {
        std::fs::remove_dir_all(dir).expect("the lab's directory can be removed");
    }
}
