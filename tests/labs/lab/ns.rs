//! A named network namespace, and the only way in which the labs touch the kernel's network.
//!
//! Everything happens inside namespaces whose names start with [`PREFIX`]; the machine's own network is never touched.
//! A program is started in a namespace with `nsenter`; a socket is opened there by a short-lived thread and belongs to
//! the namespace for good, so that tests use plain `std::net` sockets wherever they stand.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::{Command, Output};

use weave_linux::netns::{Netns, NetnsRef, run_in};

/// How the names of the labs' namespaces start: whatever starts so is a lab's, and is removed when a lab starts.
pub(crate) const PREFIX: &str = "wlab-";

/// A network namespace of the lab, by the name that `ip netns` knows.
#[derive(Clone)]
pub(crate) struct Ns {
    name: String,
}

impl Ns {
    /// Makes a namespace with loopback up and IPv6 addresses usable at once (no duplicate address detection).
    pub(crate) fn add(name: &str) -> Self {
        let ns = Self::named(name);
        let full = &ns.name;
        host(&format!("ip netns add {full}"));
        ns.sh("ip link set lo up && sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0");
        ns
    }

    /// The namespace that has, or would have, this name.
    pub(crate) fn named(name: &str) -> Self {
        Self {
            name: format!("{PREFIX}{name}"),
        }
    }

    /// The name that `ip netns` shows.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The namespace as a file, as `weavectl attach` takes it.
    pub(crate) fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.name)
    }

    /// A program, to be started in this namespace. It is killed when the thread that started it ends.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net={}", self.path().display()))
            .args(["setpriv", "--pdeathsig", "KILL", "--"])
            .arg(program);
        command
    }

    /// Runs a shell line in this namespace and returns what it wrote; a failure fails the lab.
    pub(crate) fn sh(&self, line: &str) -> String {
        succeed(line, self.command("sh").args(["-ec", line]))
    }

    /// Runs a shell line in this namespace; the outcome is the caller's to judge.
    pub(crate) fn try_sh(&self, line: &str) -> Output {
        self.command("sh")
            .args(["-c", line])
            .output()
            .expect("nsenter starts")
    }

    /// Runs a function on a thread of its own inside the namespace. Sockets opened there stay there.
    pub(crate) fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        Netns::open(&NetnsRef::Path(self.path()))
            .and_then(|netns| run_in(&netns, work))
            .expect("the lab's namespace can be entered")
    }

    /// Joins two namespaces by a veth pair, both ends up.
    pub(crate) fn join(&self, ifname: &str, other: &Self, other_ifname: &str) {
        let (here, there) = (&self.name, &other.name);
        host(&format!(
            "ip link add {ifname} netns {here} type veth peer name {other_ifname} netns {there}
             ip -n {here} link set {ifname} up
             ip -n {there} link set {other_ifname} up"
        ));
    }

    /// Everything that somebody could have changed in this namespace: links, addresses, routes, rules, firewall.
    /// Counters and lifetimes are left out, so that two snapshots are equal exactly when nothing changed.
    pub(crate) fn snapshot(&self) -> String {
        self.sh(
            "ip -o link | sed 's/ state [A-Z]* / /'; ip -o addr | sed 's/ [0-9]*sec/ /g'
             ip route show table all; ip -6 route show table all | sed 's/ expires [0-9]*sec//'
             ip rule; ip -6 rule; nft -s list ruleset; sysctl -a 2>/dev/null | grep -E 'forwarding|rp_filter|proxy'",
        )
    }
}

/// Fails unless two snapshots have the same lines, and says in which they differ.
#[track_caller]
pub(crate) fn assert_same(before: &str, after: &str, what: &str) {
    let lines = |text: &str| text.lines().map(str::to_owned).collect::<BTreeSet<_>>();
    let (before, after) = (lines(before), lines(after));
    let differ: Vec<_> = before.symmetric_difference(&after).collect();
    assert!(
        differ.is_empty(),
        "the host is not as before: {what}: {differ:#?}"
    );
}

/// Runs a shell line outside the lab's namespaces; a failure fails the lab.
pub(crate) fn host(line: &str) -> String {
    succeed(line, Command::new("sh").args(["-ec", line]))
}

/// Runs a shell line outside the lab's namespaces and returns all it said, however it ended.
pub(crate) fn try_host(line: &str) -> String {
    let output = Command::new("sh")
        .args(["-c", line])
        .output()
        .expect("sh starts");
    let [out, err] =
        [&output.stdout, &output.stderr].map(|said| String::from_utf8_lossy(said).into_owned());
    out + &err
}

/// Removes every namespace of the labs, and ends whatever still runs in one.
pub(crate) fn remove_all() {
    let names = std::fs::read_dir("/run/netns")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.starts_with(PREFIX));
    for name in names {
        host(&format!(
            "ip netns pids {name} | xargs -r kill -9 || true; ip netns del {name}"
        ));
    }
}

/// Runs a command to its end and returns its standard output; fails the lab with what it said if it failed.
fn succeed(what: &str, command: &mut Command) -> String {
    let output = command.output().expect("the program starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "`{what}` failed: {said}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}
