//! Ports of the host that lead to containers (the capability `portMappings`): who reaches them from where, whom the
//! container sees, and that nothing of them is left.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use super::chain::word;
use super::{Added, Runtime};
use crate::lab::ns::{self, Ns};
use crate::lab::traffic::{udp, wait_for};
use crate::lab::{Host, Lab};

/// A host outside the cluster, by both families.
const OUTSIDE: [&str; 2] = ["192.168.77.254", "fd77::254"];
/// A second address of the host.
const SECOND: &str = "192.168.77.101";

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// A host with a node of its own, and the outside.
fn two(lab: &Lab) -> (Host, Ns) {
    let h1 = lab.host("h1", 1);
    let outside = Ns::add("outside");
    lab.plug(&outside, "u0", 254);
    for one in OUTSIDE {
        lab.allow_outside(address(one));
    }
    h1.ns.sh(&format!(
        "ip addr add {SECOND}/24 dev u0; ip addr add fd77::101/64 dev u0 nodad"
    ));
    h1.start();
    h1.ok(&["init"]);
    (h1, outside)
}

fn mapping(host: u16, container: u16, protocol: &str, ip: &str) -> Value {
    json!({"hostPort": host, "containerPort": container, "protocol": protocol, "hostIP": ip})
}

fn publishing<'a>(runtime: &Runtime<'a>, ports: &[Value]) -> Runtime<'a> {
    runtime.with("runtimeConfig", json!({"portMappings": ports}))
}

fn listen(ns: &Ns, port: u16) -> TcpListener {
    ns.inside(|| TcpListener::bind(("::", port)))
        .expect("the container can listen")
}

/// Whether the table of published ports is there.
fn table(host: &Host) -> bool {
    host.ns
        .try_sh("nft list table inet weave-publish")
        .status
        .success()
}

#[test]
fn ports_lead_to_containers() {
    Lab::run(lead_to_containers);
}

/// From outside, from the host and its `127.0.0.1`, from another container, and from the container itself; by one
/// address of the host or by any, over both families. The container sees who it was where it could answer that.
pub(super) fn lead_to_containers(lab: &Lab) {
    let (h1, outside) = two(lab);
    let before = h1.ns.snapshot();
    let plain = Runtime::new(&h1);
    let ports = [
        mapping(8080, 80, "tcp", ""),
        mapping(9090, 80, "tcp", SECOND),
        mapping(9091, 80, "tcp", "0.0.0.0"),
    ];
    let r = publishing(&plain, &ports);
    let (web, other) = (
        r.add("web", &h1.bare_container("web")),
        plain.add("other", &h1.bare_container("other")),
    );
    let listener = listen(&web.ns, 80);
    let at = |address: IpAddr, port| SocketAddr::new(address, port);
    let says = |from: &Ns, address, port| {
        word(from, at(address, port), &listener).map(|seen| seen.to_canonical())
    };
    let (v4, v6) = (IpAddr::from(h1.v4), IpAddr::from(h1.v6));
    let (second, second6) = (address(SECOND), address("fd77::101"));
    let [out4, out6] = OUTSIDE.map(address);
    for (to, port, seen) in [
        (v4, 8080, Some(out4)),
        (second, 8080, Some(out4)),
        (v6, 8080, Some(out6)),
        (second6, 8080, Some(out6)),
        (second, 9090, Some(out4)),
        (v4, 9090, None),
        (second6, 9090, None),
        (v4, 9091, Some(out4)),
        (v6, 9091, None),
        (v4, 80, None),
    ] {
        assert_eq!(says(&outside, to, port), seen, "{to} {port} from outside");
    }
    from_inside(&h1, [&web, &other], says);
    let checked = r.check("web", &web);
    assert!(checked.ok, "{checked:?}");
    let open = || word(&outside, at(v4, 8080), &listener).is_some();
    survives(&h1, &r, &web, open);

    r.del("web", &web.ns);
    assert!(!table(&h1), "the ports went with the container");
    plain.del("other", &other.ns);
    assert_eq!(h1.ns.snapshot(), before);
    assert_eq!(plain.left(), (0, 0, 0));
}

/// From the host, another container and the container itself.
fn from_inside(
    host: &Host,
    [web, other]: [&Added; 2],
    says: impl Fn(&Ns, IpAddr, u16) -> Option<IpAddr>,
) {
    for to in [IpAddr::from(host.v4), host.v6.into()] {
        let seen = other.ips()[usize::from(to.is_ipv6())];
        assert_eq!(
            says(&other.ns, to, 8080),
            Some(seen),
            "a container's own address"
        );
        assert_eq!(says(&host.ns, to, 8080), Some(to), "the host's own address");
        assert!(
            says(&web.ns, to, 8080).is_some(),
            "a container that is its own client"
        );
    }
    let gateway = Some(IpAddr::from(Ipv4Addr::new(10, 32, 0, 1)));
    assert_eq!(says(&host.ns, address("127.0.0.1"), 8080), gateway);
    assert_eq!(says(&host.ns, address("::1"), 8080), None);
}

/// What is flushed comes back, and CHECK tells it meanwhile; a node that is killed keeps nobody from the port.
fn survives(host: &Host, runtime: &Runtime<'_>, web: &Added, open: impl Fn() -> bool) {
    host.end("KILL");
    assert!(open(), "while the node is down");
    host.ns.sh("nft delete table inet weave-publish");
    host.start();
    wait_for("the rules are back", Duration::from_secs(15), || {
        table(host)
    });
    assert!(open(), "after a restart");
    // The node may mend it before CHECK has looked; then it is flushed again.
    wait_for("CHECK tells it", Duration::from_secs(15), || {
        host.ns.sh("nft flush chain inet weave-publish published");
        let checked = runtime.check("web", web);
        let told = !checked.ok;
        if told {
            checked.refused(101, "published ports were changed");
        }
        told
    });
    let mended = || runtime.check("web", web).ok;
    wait_for("the rules are mended", Duration::from_secs(15), mended);
    assert!(open(), "after a flush");
}

/// The loopback addresses of the host stay its own, though the container's device takes them from it.
#[test]
fn a_container_with_ports_does_not_reach_the_host_s_loopback() {
    Lab::run(|lab| {
        let (h1, _) = two(lab);
        let r = publishing(&Runtime::new(&h1), &[mapping(8080, 80, "tcp", "")]);
        let web = r.add("web", &h1.bare_container("web"));
        let secret = udp(&h1.ns, (Ipv4Addr::LOCALHOST, 7777));
        // Its own loopback device would take such an address: the way to the host is forced.
        web.ns.sh("sysctl -qw net.ipv4.conf.all.route_localnet=1
             ip route del table local local 127.0.0.0/8 dev lo
             ip route del table local local 127.0.0.1 dev lo
             ip route add 127.0.0.0/8 via 10.32.0.1 dev eth0");
        let source = web.ips()[0];
        let socket = udp(&web.ns, (source, 0));
        let dropped = || {
            let rules = h1.ns.sh("nft list chain inet weave-attach antispoof");
            let line = rules.lines().find(|line| line.contains("127.0.0.0/8"));
            let line = line.expect("the rule is there").to_owned();
            !line.contains("packets 0 ")
        };
        assert!(!dropped());
        socket
            .send_to(b"here", (Ipv4Addr::LOCALHOST, 7777))
            .expect("it leaves the container");
        wait_for("the host has dropped it", Duration::from_secs(5), dropped);
        secret.set_nonblocking(true).expect("a socket can");
        assert!(
            secret.recv(&mut [0; 8]).is_err(),
            "the host's own socket heard it"
        );
        r.del("web", &web.ns);
    });
}

#[test]
fn datagrams_find_the_container_that_has_the_port_now() {
    Lab::run(datagrams);
}

/// A client that goes on sending datagrams is answered by whoever has the port now.
pub(super) fn datagrams(lab: &Lab) {
    let (h1, outside) = two(lab);
    let r = publishing(&Runtime::new(&h1), &[mapping(5300, 53, "udp", "")]);
    for (client, to) in OUTSIDE
        .map(address)
        .into_iter()
        .zip([IpAddr::from(h1.v4), h1.v6.into()])
    {
        let client = udp(&outside, (client, 4000));
        let asks = || client.send_to(b"who?", (to, 5300)).expect("it leaves");
        // Before there is anybody, the host's kernel follows the flow as one to itself.
        asks();
        for name in ["first", "second"] {
            let added = r.add(name, &h1.bare_container(name));
            let server = added.ns.inside(|| UdpSocket::bind(("::", 53)));
            let server = server.expect("the container can listen");
            server
                .set_read_timeout(Some(Duration::from_secs(5)))
                .expect("a socket takes a timeout");
            asks();
            let mut got = [0; 16];
            let heard = server.recv_from(&mut got);
            let (_, from) = heard.unwrap_or_else(|error| panic!("{name}, {to}: {error}"));
            server.send_to(name.as_bytes(), from).expect("it leaves");
            let (length, from) = client.recv_from(&mut got).expect("it is answered");
            assert_eq!((&got[..length], from.ip()), (name.as_bytes(), to));
            r.del(name, &added.ns);
            ns::host(&format!("ip netns del {}", added.ns.name()));
        }
    }
}

#[test]
fn an_association_of_sctp_begins() {
    Lab::run(association);
}

/// SCTP, whose packets are made by hand where the kernel has no sockets of it.
pub(super) fn association(lab: &Lab) {
    let (h1, outside) = two(lab);
    let r = publishing(&Runtime::new(&h1), &[mapping(3868, 3869, "sctp", "")]);
    let web = r.add("web", &h1.bare_container("web"));
    let mut server = web.ns.command("python3");
    let mut server = piped(server.args(["-c", SCTP, "30", "server"]));
    assert_eq!(server.line(), "ready");
    let to = h1.v4.to_string();
    let mut client = outside.command("python3");
    let mut client = piped(client.args(["-c", SCTP, "30", "client", &to, "3868"]));
    assert_eq!(client.line(), "ready");
    assert_eq!(server.line(), format!("{} 3869", OUTSIDE[0]));
    assert_eq!(client.line(), format!("{to} 3868 4321"));
    r.del("web", &web.ns);
}

/// Who cannot have a port is told so, and leaves nothing: a port of another container, of a program of the host, of the
/// request itself, on an internal network, behind another plugin, and ports that are none.
#[test]
fn ports_that_cannot_be_had() {
    Lab::run(|lab| {
        let (h1, _) = two(lab);
        h1.ok(&["network", "create", "inner", "--internal"]);
        let plain = Runtime::new(&h1);
        let r = |ports: &[Value]| publishing(&plain, ports);
        let (a, b) = (h1.bare_container("a"), h1.bare_container("b"));
        let first = r(&[mapping(8080, 80, "tcp", h1.v4.to_string().as_str())]);
        let added = first.add("a", &a);
        let again = first.on("ADD", "a", &a);
        assert!(again.ok && again.out == added.result, "{again:?}");
        r(&[]).on("ADD", "a", &a).refused(100, "published ports");
        let program = h1.ns.inside(|| TcpListener::bind(("0.0.0.0", 2222)));
        let _program = program.expect("the host can listen");
        let before = (h1.ns.snapshot(), b.snapshot());
        let tcp = |port, ip: &str| mapping(port, 80, "tcp", ip);
        for (ports, code, said) in [
            (vec![tcp(8080, "")], 7, "another container publishes it: a"),
            (vec![tcp(8080, "0.0.0.0")], 7, "another container"),
            (vec![tcp(2222, "")], 7, "a program of the host"),
            (vec![tcp(2222, SECOND)], 7, "a program of the host"),
            (vec![tcp(1, ""), tcp(1, SECOND)], 7, "collide"),
            (vec![tcp(0, "")], 7, "hostPort 0"),
            (vec![mapping(1, 1, "icmp", "")], 7, "icmp"),
            (vec![tcp(1, "here")], 7, "hostIP"),
        ] {
            r(&ports).on("ADD", "b", &b).refused(code, said);
        }
        let inner = r(&[tcp(8081, "")]).with("network", "inner");
        inner.on("ADD", "b", &b).refused(7, "internal");
        let behind = r(&[tcp(8081, "")]).with("prevResult", json!({"cniVersion": "1.1.0"}));
        behind.on("ADD", "b", &b).refused(2, "portMappings");
        assert_eq!((h1.ns.snapshot(), b.snapshot()), before);

        // The same port at another address, of another family or protocol is another one.
        let apart = r(&[
            tcp(8080, SECOND),
            tcp(8080, "::"),
            mapping(8080, 80, "udp", ""),
            mapping(8080, 80, "sctp", ""),
        ]);
        apart.add("b", &b);
        apart.del("b", &b);
        first.del("a", &a);
        assert_eq!(plain.left(), (0, 0, 0));
        assert!(!table(&h1));
    });
}

/// DEL while the node is down, GC and a namespace that is gone close ports as well.
#[test]
fn ports_are_closed_however_the_container_goes() {
    Lab::run(|lab| {
        let (h1, _) = two(lab);
        let r = publishing(&Runtime::new(&h1), &[mapping(8080, 80, "tcp", "")]);
        let ns = h1.bare_container("web");
        r.add("web", &ns);
        h1.end("KILL");
        r.del("web", &ns);
        assert!(table(&h1), "nobody is there to close it");
        h1.start();
        wait_for("it is made up for", Duration::from_secs(10), || !table(&h1));
        r.add("web", &ns);
        assert!(r.gc(&["web"]).ok && table(&h1));
        assert!(r.gc(&[]).ok && !table(&h1));
        r.add("web", &ns);
        ns::host(&format!("ip netns del {}", ns.name()));
        wait_for("it is swept", Duration::from_secs(30), || !table(&h1));
        assert_eq!(r.left(), (0, 0, 0));
    });
}

/// A program and what it says, line by line.
struct Piped {
    child: std::process::Child,
    out: std::io::BufReader<std::process::ChildStdout>,
}

fn piped(command: &mut Command) -> Piped {
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let out = std::io::BufReader::new(child.stdout.take().expect("stdout is piped"));
    Piped { child, out }
}

impl Piped {
    fn line(&mut self) -> String {
        let mut line = String::new();
        std::io::BufRead::read_line(&mut self.out, &mut line).expect("it can be read");
        line.trim().to_owned()
    }
}

impl Drop for Piped {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Both ends of the beginning of an association: `SECONDS client ADDRESS PORT` and `SECONDS server`.
const SCTP: &str = include_str!("../../sctp.py");
