//! The namespaces, the servers in them, and the engine on the host.

use std::collections::BTreeSet;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use weave_linux::netns::{Netns, run_in};
use weave_linux::nft::Socket;
use weave_model::{
    AddressKind, Endpoint, EngineChoice, Protocol, Service, ServiceKind, ServicePort, Slice,
    SlicePort,
};
use weave_proxy::facts::{ExternalIps, Facts};
use weave_proxy::kernel::{Done, Kernel};
use weave_proxy::relay::Relay;
use weave_proxy::sources::{Change, Sources};
use weave_proxy::table::{Diff, Table};

use crate::carried;
use crate::mutants::{self, patience};

/// How long a connection may take; the network is in one machine, but that may be busy.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long is waited for what must not come.
const NOTHING: Duration = Duration::from_millis(700);

pub(crate) const A: &str = "10.32.0.2";
pub(crate) const B: &str = "10.32.0.3";
pub(crate) const C: &str = "10.32.0.4";
/// Of another node, behind `weave0`.
pub(crate) const FAR: &str = "10.40.0.2";
pub(crate) const FAR6: &str = "fd77::f2";
pub(crate) const VIP: &str = "10.96.0.1";
pub(crate) const HOST: &str = "192.0.2.2";
pub(crate) const OUTSIDE: &str = "192.0.2.1";
/// The host's own address among the containers', which no device of it has.
pub(crate) const OWN: &str = "10.32.0.200";

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Runs a script in a namespace.
pub(crate) fn sh(netns: &Netns, script: &str) -> Output {
    let run = || Command::new("bash").args(["-ec", script]).output().unwrap();
    run_in(netns, run).unwrap()
}

/// Runs a script that must succeed, and gives what it printed.
pub(crate) fn ok(netns: &Netns, script: &str) -> String {
    let output = sh(netns, script);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{script}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

/// What came of a try to reach something.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Answer {
    /// Who answered, and whom it saw.
    From {
        server: String,
        saw: IpAddr,
    },
    Refused,
    Nothing,
}

impl Answer {
    pub(crate) fn server(&self) -> &str {
        match self {
            Self::From { server, .. } => server,
            Self::Refused => "refused",
            Self::Nothing => "nothing",
        }
    }

    pub(crate) fn saw(&self) -> Option<IpAddr> {
        match self {
            Self::From { saw, .. } => Some(*saw),
            _ => None,
        }
    }
}

pub(crate) struct Lab {
    pub(crate) host: Netns,
    pub(crate) a: Netns,
    pub(crate) c: Netns,
    pub(crate) far: Netns,
    pub(crate) outside: Netns,
    pub(crate) b: Netns,
    pub(crate) sources: Sources,
    pub(crate) kernel: Kernel,
    pub(crate) relay: Option<Relay>,
    /// What the engines were given last.
    given: Arc<Table>,
    /// What a mutant that hears things once has heard.
    heard: BTreeSet<String>,
    /// What a mutant that takes something away has of it.
    _taken: Option<Socket>,
}

impl Lab {
    pub(crate) fn new(on: EngineChoice) -> Self {
        let [host, a, b, c, far, outside] =
            std::array::from_fn(|_| Netns::create().expect("root makes namespaces"));
        ok(
            &host,
            "ip link set lo up
             sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv6.conf.default.accept_dad=0",
        );
        wire(&host, "up0", &outside);
        // The outside is on the way to nowhere too; a redirect would use up what the kernel tells a host in a second.
        ok(
            &host,
            "sysctl -qw net.ipv4.conf.all.send_redirects=0 net.ipv4.conf.up0.send_redirects=0
             ip addr add 192.0.2.2/24 dev up0; ip route add default via 192.0.2.1; ip addr add 2001:db8::2/64 dev up0 nodad; ip -6 route add default via 2001:db8::1",
        );
        ok(
            &outside,
            "ip addr add 192.0.2.1/24 dev eth0; ip addr add 2001:db8::1/64 dev eth0 nodad
             ip route add default via 192.0.2.2; ip -6 route add default via 2001:db8::2",
        );
        for (number, name, netns) in [(2, "wva", &a), (3, "wvb", &b), (4, "wvc", &c)] {
            container(
                &host,
                name,
                netns,
                &format!("10.32.0.{number}"),
                &format!("fd77::{number}"),
            );
        }
        // What stands for the overlay: its far end knows no way back but to addresses of nodes' own.
        container(&host, "weave0", &far, FAR, FAR6);
        ok(&host, "ip addr add fd77::1/128 dev weave0");
        for (netns, name) in [(&a, "a"), (&b, "b"), (&c, "c"), (&far, "far")] {
            serve(netns, name);
        }
        let kernel = run_in(&host, Kernel::open).unwrap().unwrap();
        let taken = mutants::now().and_then(|mutant| mutant.takes(&host));
        let mut lab = Self {
            host,
            a,
            c,
            far,
            outside,
            b,
            sources: Sources::default(),
            kernel,
            relay: None,
            given: Arc::default(),
            heard: BTreeSet::new(),
            _taken: taken,
        };
        if on != EngineChoice::Kernel {
            lab.relay = Some(run_in(&lab.host, Relay::start).unwrap().unwrap());
        }
        let facts = Facts {
            engine: on,
            ..facts()
        };
        let extra = mutants::now().map_or_else(Vec::new, mutants::Mutant::extra);
        lab.report(std::iter::once(Change::Facts(facts)).chain(extra));
        lab
    }

    /// Takes Services and slices, and makes the kernel do what they say.
    pub(crate) fn report(&mut self, changes: impl IntoIterator<Item = Change>) -> Done {
        for change in changes {
            let heard = match mutants::now() {
                Some(mutant) => mutant.hears(change, &mut self.heard),
                None => Some(change),
            };
            heard
                .into_iter()
                .for_each(|change| self.sources.handle(change));
        }
        self.apply()
    }

    fn apply(&mut self) -> Done {
        let (mut table, mut diff) = self.sources.build();
        if let Some(mutant) = mutants::now() {
            table = Arc::new(mutant.table(&table, &self.given));
            diff = Diff::between(&self.given, &table);
            mutant.meanwhile(&self.host);
        }
        self.given = Arc::clone(&table);
        if let Some(relay) = &mut self.relay {
            let facts = self.sources.facts();
            let apply = || relay.apply(&table, &diff, facts);
            run_in(&self.host, apply).unwrap().unwrap();
        }
        let done = self.kernel.apply(table, &diff, self.sources.facts());
        if let Err(error) = &done {
            mutants::is_broken(error);
        }
        let script = mutants::now().and_then(mutants::Mutant::script);
        if let Some(script) = script.filter(|_| !self.given.entries.is_empty()) {
            let output = sh(&self.host, script);
            if !output.status.success() {
                mutants::is_broken(String::from_utf8_lossy(&output.stderr));
            }
        }
        done.unwrap()
    }

    /// What a former run left is found by a new engine.
    pub(crate) fn restart(&mut self) -> Done {
        self.kernel = run_in(&self.host, Kernel::open).unwrap().unwrap();
        if mutants::now() == Some(mutants::Mutant::Amnesia) {
            self.given = Arc::default();
        }
        let diff = Diff::default();
        self.kernel
            .apply(Arc::clone(&self.given), &diff, self.sources.facts())
            .unwrap()
    }

    /// Whether the relay has carried datagrams, where there is one.
    pub(crate) fn datagrams_were_relayed(&self) -> bool {
        let relay = self.relay.as_ref();
        relay.is_none_or(|relay| relay.counts().begun > 0)
    }

    /// Ends the relay. What it listens by is closed in that instant; but a process that another test begins just then has
    /// it until it has become what it is to be, and as long as it does, connections are taken that nobody serves.
    pub(crate) fn end_relay(&mut self) {
        let ears = "ss -Hlntue | grep -E '(127\\.0\\.0\\.1|\\[::1\\]):' || true";
        let told = ok(&self.host, ears);
        let inodes = told
            .split_whitespace()
            .filter_map(|word| word.strip_prefix("ino:"));
        let ears_before: BTreeSet<String> =
            inodes.map(|inode| format!("socket:[{inode}]")).collect();
        assert!(!ears_before.is_empty(), "it listens: {told}");
        self.relay = None;
        let open = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
        let open = open.filter_map(|file| std::fs::read_link(file.path()).ok());
        let left = open.filter(|file| ears_before.contains(&*file.to_string_lossy()));
        assert_eq!(left.count(), 0, "sockets that are still ours");
        until("the end of the relay's sockets", || {
            let tables = ok(&self.host, "nft list tables");
            !tables.contains(weave_proxy::relay::rules::TABLE) && ok(&self.host, ears).is_empty()
        });
    }

    /// Starts the relay with room for so many connections; it takes all that is its own.
    pub(crate) fn restart_relay(&mut self, most: usize) {
        let start = || Relay::start_with(most);
        let mut relay = run_in(&self.host, start).unwrap().unwrap();
        let table = self.sources.table();
        let all = Diff::between(&Table::default(), table);
        // The kernel forgets a former relay's table a moment after that has ended, and the next call tries it anew.
        let end = Instant::now() + Duration::from_secs(2);
        while let Err(error) = relay.apply(table, &all, self.sources.facts()) {
            assert!(Instant::now() < end, "{error}");
            thread::sleep(Duration::from_millis(20));
        }
        self.relay = Some(relay);
    }

    /// How often the relay found that an endpoint does not answer; then it rightly takes another one.
    pub(crate) fn failures(&self) -> u64 {
        let groups = self.relay.iter().flat_map(|relay| relay.watch().groups());
        groups.map(|(_, sum)| sum.counts.failures).sum()
    }

    /// What is seen while all endpoints answer: on a machine that stands still for a moment they do not, and all of it is
    /// looked at anew.
    #[track_caller]
    pub(crate) fn while_all_answer<T>(&self, look: impl Fn() -> T) -> T {
        for _ in 0..5 {
            let before = self.failures();
            let seen = look();
            if self.failures() == before {
                return seen;
            }
        }
        panic!("there is always an endpoint that does not answer");
    }

    /// A client is answered, and by the same one each time that it asks anew. The answer.
    #[track_caller]
    pub(crate) fn keeps_its_endpoint(
        &self,
        ask: impl Fn(&Netns, &str) -> Answer,
        from: &Netns,
        to: &str,
    ) -> Answer {
        let all = || -> BTreeSet<Answer> { (0..13).map(|_| ask(from, to)).collect() };
        let mut answers = self.while_all_answer(all);
        let first = answers.pop_first().unwrap();
        assert!(first.saw().is_some(), "{to}: {first:?}");
        assert!(answers.is_empty(), "{to}: {first:?}, but also {answers:?}");
        first
    }

    /// Some connections that are open together are answered, and by one server.
    #[track_caller]
    pub(crate) fn keeps(&self, from: &Netns, to: &str) {
        let servers = self.while_all_answer(|| self.servers(from, to, 12));
        let answered = ["a", "b", "c", "far"].map(|one| vec![one.to_owned()]);
        assert!(answered.contains(&servers), "{to}: {servers:?}");
    }

    /// Which servers answer `tries` connections that are open together: a relay prefers those of this node while they
    /// have little to do.
    pub(crate) fn servers(&self, from: &Netns, to: &str, tries: usize) -> Vec<String> {
        let (mut servers, mut open) = (Vec::new(), Vec::new());
        for _ in 0..tries {
            let answer = match connect(from, to, patience(PATIENCE)) {
                Ok((stream, answer)) => {
                    open.push(stream);
                    answer
                }
                Err(answer) => answer,
            };
            servers.push(answer.server().to_owned());
            // A mutant that waits for nothing once will do so each time.
            if mutants::now().is_some() && servers.ends_with(&["nothing".to_owned()]) {
                break;
            }
        }
        servers.sort();
        servers.dedup();
        servers
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.relay.iter().for_each(carried::add);
    }
}

pub(crate) fn facts() -> Facts {
    Facts {
        node: "n1".to_owned(),
        addresses: [ip(HOST), ip("2001:db8::2")].into(),
        no_endpoints: [ip(HOST)].into(),
        containers: vec![
            "10.32.0.0/12".parse().unwrap(),
            "fd77::/48".parse().unwrap(),
        ],
        ranges: vec![
            "10.96.0.0/16".parse().unwrap(),
            "fd96::/112".parse().unwrap(),
        ],
        external_ips: ExternalIps::Taken,
        own: vec![ip(OWN), ip("fd77::c8")],
        ..Facts::default()
    }
}

/// A container of the host, with the gateway's address on the host's end.
fn container(host: &Netns, name: &str, netns: &Netns, v4: &str, v6: &str) {
    wire(host, name, netns);
    ok(
        host,
        &format!(
            "ip addr add 10.32.0.1/32 dev {name}; ip addr add fe80::1/64 dev {name} nodad
             ip route add {v4}/32 dev {name}; ip route add {v6}/128 dev {name}"
        ),
    );
    ok(
        netns,
        &format!(
            "ip addr add {v4}/32 dev eth0; ip addr add {v6}/128 dev eth0 nodad
             ip route add 10.32.0.1 dev eth0; ip route add default via 10.32.0.1
             ip -6 route add default via fe80::1 dev eth0"
        ),
    );
}

pub(crate) fn wire(host: &Netns, name: &str, other: &Netns) {
    let path = format!(
        "/proc/{}/fd/{}",
        std::process::id(),
        other.as_fd().as_raw_fd()
    );
    ok(
        host,
        &format!("ip link add {name} type veth peer name eth0 netns {path}; ip link set {name} up"),
    );
    ok(other, "ip link set lo up; ip link set eth0 up");
}

/// Answers on port 8080 with its name.
pub(crate) fn serve(netns: &Netns, name: &'static str) {
    serve_at(netns, name, 8080);
}

/// Answers on a port, TCP and UDP, with its name and whom it sees; a TCP connection then echoes.
pub(crate) fn serve_at(netns: &Netns, name: &'static str, port: u16) {
    serve_by(netns, name, (Ipv6Addr::UNSPECIFIED, port).into());
}

/// The same at one address, by which it answers over UDP too, however many its host has.
pub(crate) fn serve_by(netns: &Netns, name: &'static str, at: SocketAddr) {
    let (tcp, udp) = run_in(netns, || {
        (TcpListener::bind(at).unwrap(), UdpSocket::bind(at).unwrap())
    })
    .unwrap();
    let said = move |peer: SocketAddr| format!("{name} {}\n", peer.ip().to_canonical());
    thread::spawn(move || {
        for stream in tcp.incoming() {
            let Ok(mut stream) = stream else { continue };
            thread::spawn(move || {
                let peer = stream.peer_addr()?;
                stream.write_all(said(peer).as_bytes())?;
                let mut bytes = [0; 512];
                loop {
                    match stream.read(&mut bytes)? {
                        0 => return io::Result::Ok(()),
                        count => stream.write_all(&bytes[..count])?,
                    }
                }
            });
        }
    });
    thread::spawn(move || {
        let mut bytes = [0; 512];
        while let Ok((_, peer)) = udp.recv_from(&mut bytes) {
            let _ = udp.send_to(said(peer).as_bytes(), peer);
        }
    });
}

fn parse(line: &str) -> Answer {
    let (server, saw) = line.trim().split_once(' ').expect("a name and an address");
    Answer::From {
        server: server.to_owned(),
        saw: saw.parse().unwrap(),
    }
}

fn failed(error: &io::Error) -> Answer {
    match error.kind() {
        io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset => Answer::Refused,
        // What the kernel tells a sender on the same host whose datagram a rule refuses.
        io::ErrorKind::PermissionDenied => Answer::Refused,
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => Answer::Nothing,
        _ => panic!("{error}"),
    }
}

/// Opens a connection and reads who answers.
pub(crate) fn connect(
    from: &Netns,
    to: &str,
    patience: Duration,
) -> Result<(TcpStream, Answer), Answer> {
    let to: SocketAddr = to.parse().unwrap();
    let stream = run_in(from, || TcpStream::connect_timeout(&to, patience)).unwrap();
    let mut stream = stream.map_err(|error| failed(&error))?;
    stream
        .set_read_timeout(Some(mutants::patience(PATIENCE)))
        .unwrap();
    let mut line = Vec::new();
    let mut byte = [0];
    while line.last() != Some(&b'\n') {
        stream
            .read_exact(&mut byte)
            .map_err(|error| failed(&error))?;
        line.push(byte[0]);
    }
    let answer = parse(std::str::from_utf8(&line).unwrap());
    Ok((stream, answer))
}

/// One connection that should come to something.
pub(crate) fn tcp(from: &Netns, to: &str) -> Answer {
    connect(from, to, patience(PATIENCE)).map_or_else(|answer| answer, |(_, answer)| answer)
}

/// One connection whose packets should vanish.
pub(crate) fn vanishes(from: &Netns, to: &str) -> bool {
    connect(from, to, NOTHING).is_err_and(|answer| answer == Answer::Nothing)
}

/// Whether an open connection still carries bytes both ways.
pub(crate) fn echoes(stream: &mut TcpStream) -> bool {
    let mut back = [0; 4];
    stream
        .write_all(b"ping")
        .and_then(|()| stream.read_exact(&mut back))
        .is_ok()
        && &back == b"ping"
}

/// A UDP socket that keeps its port, which none had before: with one that was used a moment ago it would go on with the
/// flow of then, wherever that leads.
pub(crate) fn udp_socket(from: &Netns, to: &str) -> UdpSocket {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let to: SocketAddr = to.parse().unwrap();
    let any: IpAddr = if to.is_ipv4() {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    run_in(from, || {
        let ports =
            std::iter::repeat_with(|| 33_000 + NEXT.fetch_add(1, Ordering::Relaxed) % 27_000);
        // One may be the relay's.
        let socket = ports
            .take(100)
            .find_map(|port| UdpSocket::bind((any, port)).ok())
            .expect("a free port");
        socket.connect(to).map(|()| socket)
    })
    .unwrap()
    .unwrap()
}

/// One datagram, and who answers it.
pub(crate) fn ask(socket: &UdpSocket, patience: Duration) -> Answer {
    ask_with(socket, b"?", patience)
}

/// One datagram of these bytes, and who answers it.
pub(crate) fn ask_with(socket: &UdpSocket, question: &[u8], patience: Duration) -> Answer {
    socket.set_read_timeout(Some(patience)).unwrap();
    let mut bytes = [0; 512];
    let answered = socket.send(question).and_then(|_| socket.recv(&mut bytes));
    match answered {
        Ok(count) => parse(std::str::from_utf8(&bytes[..count]).unwrap()),
        Err(error) => failed(&error),
    }
}

/// One question over UDP that should be answered.
pub(crate) fn udp(from: &Netns, to: &str) -> Answer {
    ask(&udp_socket(from, to), patience(PATIENCE))
}

/// From now on what a client sends by a socket that it has reaches this server, a second later at most.
#[track_caller]
pub(crate) fn recovers(socket: &UdpSocket, server: &str) {
    const RETRY: Duration = Duration::from_millis(20);
    let end = Instant::now() + patience(Duration::from_secs(1));
    let mut last = ask(socket, RETRY);
    while last.server() != server {
        assert!(Instant::now() < end, "not {server} but {last:?}");
        thread::sleep(RETRY);
        last = ask(socket, RETRY);
    }
}

/// Waits until something holds.
pub(crate) fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + patience(Duration::from_secs(30));
    while !holds() {
        assert!(Instant::now() < deadline, "{what} never came");
        thread::sleep(Duration::from_millis(50));
    }
}

pub(crate) fn port(protocol: Protocol, port: u16, node_port: Option<u16>) -> ServicePort {
    ServicePort {
        name: protocol.to_string(),
        protocol,
        port,
        node_port,
    }
}

/// `web`: port 80 of TCP and of UDP.
pub(crate) fn web() -> Service {
    let ports = [port(Protocol::Tcp, 80, None), port(Protocol::Udp, 80, None)];
    Service::new("web".parse().unwrap(), [ip(VIP)], ports)
}

/// `web` with port 30080 of the node, and a load balancer's address.
pub(crate) fn exposed() -> Service {
    Service {
        kind: ServiceKind::LoadBalancer,
        ports: vec![
            port(Protocol::Tcp, 80, Some(30_080)),
            port(Protocol::Udp, 80, Some(30_080)),
        ],
        balancer: vec![weave_model::BalancerIp {
            ip: ip("203.0.113.5"),
            mode: weave_model::BalancerMode::Vip,
        }],
        ..web()
    }
}

/// The endpoints of `web`.
pub(crate) fn slice(endpoints: impl IntoIterator<Item = Endpoint>) -> Change {
    slice_of("web", endpoints)
}

/// The endpoints of a Service, for each protocol.
pub(crate) fn slice_of(service: &str, endpoints: impl IntoIterator<Item = Endpoint>) -> Change {
    let slice_port = |protocol: Protocol| SlicePort {
        name: protocol.to_string(),
        protocol,
        port: Some(8080),
    };
    Change::Slice(Slice {
        name: "one".to_owned(),
        service: service.parse().unwrap(),
        kind: AddressKind::V4,
        ports: [Protocol::Tcp, Protocol::Udp, Protocol::Sctp]
            .map(slice_port)
            .into(),
        endpoints: endpoints.into_iter().collect(),
    })
}

/// The endpoints of `web` by IPv6.
pub(crate) fn slice6(endpoints: &[&str]) -> Change {
    let Change::Slice(of_v4) = slice(endpoints.iter().map(|address| at(address))) else {
        unreachable!("it is a slice")
    };
    Change::Slice(Slice {
        name: "six".to_owned(),
        kind: AddressKind::V6,
        ..of_v4
    })
}

/// One that is ready, on this node or on another.
pub(crate) fn at(address: &str) -> Endpoint {
    let node = if [FAR, FAR6].contains(&address) {
        "n2"
    } else {
        "n1"
    };
    Endpoint::ready(ip(address), Some(node.to_owned()))
}

/// One that is going but serves.
pub(crate) fn going(address: &str) -> Endpoint {
    Endpoint {
        ready: false,
        terminating: true,
        ..at(address)
    }
}
