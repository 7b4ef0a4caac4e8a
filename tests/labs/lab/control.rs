//! The control of a lab's captures: two containers of its own on two hosts say something to each other, once the test is
//! over. Inside a container a capture must see every packet in clear, and on both hosts' wires the capture must have seen
//! sealed ones: a capture that sees nothing, or could not read what it sees, fails the lab instead of passing it.

use serde_json::Value;

use super::capture::{self, Capture, Frames};
use super::node::Host;
use super::traffic::datagrams;
use super::{Lab, UPLINK};

/// Bytes of each datagram; more than one would fit no path.
const SIZE: usize = 900;
/// What one container sends and receives: a datagram each way in each family.
const SAID: usize = 4;

/// A conversation that just took place.
pub(super) struct Control {
    /// What one of the containers saw; it still runs.
    pub(super) inside: Capture,
    /// Whose wires it crossed.
    pub(super) hosts: [Host; 2],
}

impl Control {
    /// Lets two containers talk, if two nodes of the lab have a session.
    pub(super) fn begin(lab: &Lab) -> Option<Self> {
        let hosts = connected(lab)?;
        for host in &hosts {
            lab.watch_if_not(&host.ns, UPLINK);
        }
        let [one, other] = [(&hosts[0], "control-1"), (&hosts[1], "control-2")]
            .map(|(host, name)| host.attach(name));
        let inside = lab.capture(&one.ns, "eth0");
        for family in [0, 1] {
            let [near, far] = [&one, &other].map(|container| container.addresses()[family]);
            datagrams((&one.ns, near), (&other.ns, far), SIZE);
        }
        Some(Self { inside, hosts })
    }
}

/// Fails unless the capture inside saw all of it in clear, and those of the wires saw sealed packets.
pub(super) fn judge(inside: &Frames, hosts: &[Host; 2], wires: &[Frames]) {
    assert_eq!(
        inside.readable(),
        SAID,
        "what the control saw inside a container"
    );
    for host in hosts {
        let place = capture::place(&host.ns, UPLINK);
        let wire = wires.iter().find(|wire| wire.place() == place);
        let sealed = wire.map_or(0, Frames::sealed);
        assert!(sealed >= SAID, "{place} saw {sealed} sealed packets");
    }
}

/// The first two hosts whose nodes run and have a session with each other.
fn connected(lab: &Lab) -> Option<[Host; 2]> {
    let hosts = lab.hosts.borrow();
    let nodes: Vec<(Host, Vec<String>)> = hosts
        .iter()
        .map(|name| Host::known(name, &lab.dir))
        .filter_map(|host| peers(&host).map(|peers| (host, peers)))
        .collect();
    for (at, (one, peers)) in nodes.iter().enumerate() {
        let other = nodes[at + 1..]
            .iter()
            .find(|(other, back)| peers.contains(&other.name) && back.contains(&one.name));
        if let Some((other, _)) = other {
            return Some([one, other].map(|host| Host::known(&host.name, &lab.dir)));
        }
    }
    None
}

/// The names of those with whom a host's node has a session; nothing if it does not answer.
fn peers(host: &Host) -> Option<Vec<String>> {
    let said = host.ctl(&["--timeout", "2s", "connections", "-o", "json"]);
    let answer: Value = serde_json::from_str(&said.out).ok()?;
    let connected = answer["connections"].as_array()?.iter();
    let connected = connected.filter(|each| each["state"] == "connected");
    let name = |each: &Value| each["name"].as_str().map(str::to_owned);
    connected.map(name).collect()
}
