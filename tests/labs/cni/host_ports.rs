//! Ports of the host as Kubernetes asks for them: in the `port_mappings` of a pod, which containerd hands on as a
//! capability. They lead to the pod from the other host and its pods, whatever becomes of containerd and the node.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};

use super::Runtime;
use super::chain::word;
use super::containerd::{AT_ONCE, BACK, image};
use super::pods::{HostPort, Kubelet, start};
use crate::lab::ns::{self, Ns, assert_same};
use crate::lab::traffic::{Conversation, udp};
use crate::lab::{Container, Host, Lab, await_mesh};

const TCP: i32 = 0;
const UDP: i32 = 1;

fn port(protocol: i32, host: u16, container: u16, ip: Option<Ipv4Addr>) -> HostPort {
    HostPort {
        protocol,
        container: container.into(),
        host: host.into(),
        ip: ip.map_or_else(String::new, |ip| ip.to_string()),
    }
}

/// What the pod asks for: at any address of the host, and at one.
fn ports(host: &Host) -> [HostPort; 3] {
    [
        port(TCP, 8080, 80, None),
        port(TCP, 9090, 80, Some(host.v4)),
        port(UDP, 5300, 53, None),
    ]
}

/// Where the labs find the pod of a host.
fn pod_ns(host: &Host) -> Ns {
    Ns::named(&format!("{}-pod", host.name))
}

/// The pod with this sandbox, as its node has it.
fn pod(host: &Host, sandbox: &str) -> Container {
    let listed = host.json(&["ps"])["attachments"].clone();
    let mut all = listed.as_array().into_iter().flatten();
    let one = all.find(|one| one["owner"]["container"] == sandbox);
    let one = one.expect("the pod is attached");
    let name = one["labels"]["io.kubernetes.pod.name"].as_str();
    let ns = pod_ns(host);
    let [path, netns] = [
        ns.path().display().to_string(),
        one["netns"].as_str().expect("a path").to_owned(),
    ];
    ns::host(&format!(
        "ip netns del {} 2>/dev/null || true; touch {path}; mount --bind {netns} {path}",
        ns.name()
    ));
    Container::listed(one, name.expect("it has a name"), ns)
}

/// A pod with ports, and what listens in it.
struct Web {
    pod: Container,
    tcp: TcpListener,
    udp: UdpSocket,
}

impl Web {
    fn new(pod: Container) -> Self {
        let tcp = pod.ns.inside(|| TcpListener::bind(("0.0.0.0", 80)));
        let udp = udp(&pod.ns, (Ipv4Addr::UNSPECIFIED, 53));
        Self {
            tcp: tcp.expect("nothing else listens in it"),
            udp,
            pod,
        }
    }

    /// Fails unless the ports lead here from a namespace whose packets leave its host as `seen`.
    #[track_caller]
    fn assert_open(&self, from: &Ns, host: &Host, seen: Ipv4Addr) {
        for port in [8080, 9090] {
            let found = word(from, (host.v4, port).into(), &self.tcp);
            assert_eq!(found, Some(seen.into()), "TCP {port} from {}", from.name());
        }
        let found = self.datagram(from, (host.v4, 5300).into());
        assert_eq!(found, seen, "UDP 5300 from {}", from.name());
    }

    /// Whom a datagram came from, as the pod sees it; the answer comes from where the question went.
    #[track_caller]
    fn datagram(&self, from: &Ns, to: SocketAddr) -> IpAddr {
        let client = udp(from, (Ipv4Addr::UNSPECIFIED, 0));
        client.send_to(b"word", to).expect("it leaves");
        let mut heard = [0; 8];
        let (length, seen) = self.udp.recv_from(&mut heard).expect("it arrives");
        assert_eq!(&heard[..length], b"word");
        self.udp.send_to(b"answer", seen).expect("it leaves");
        let (length, answered) = client.recv_from(&mut heard).expect("it is answered");
        assert_eq!((&heard[..length], answered), (&b"answer"[..], to));
        seen.ip()
    }
}

/// Whether anything of published ports is left on a host.
fn published(host: &Host) -> bool {
    let listed = host.ns.sh("nft list tables");
    listed.contains("weave-publish")
}

/// From the host, the other host and its pod; while containerd, the node and both are away, and when they are back. A
/// port that is taken is refused and free again after its pod, whoever was away when that went.
#[test]
fn ports_of_pods() {
    Lab::run(|lab| {
        let image = image(lab);
        let hosts = lab.cluster::<2>();
        let [h1, h2] = &hosts;
        // Hosts talk to a published port as to any other of a host.
        lab.allow_outside(h1.v4);
        let [mut c1, c2] = [h1, h2].map(|host| start(host, lab.dir(), &image));
        let [mut k1, mut k2] = [&c1, &c2].map(Kubelet::of);
        let before = hosts.each_ref().map(|host| host.ns.snapshot());
        let ports = ports(h1);
        let db = k2.try_run("db-0", "db", &[]).expect("the pod is made");
        let made = k1.try_run("web-0", "web", &ports);
        let mut sandbox = made.expect("the pod is made");
        let (web, client) = (Web::new(pod(h1, &sandbox)), pod(h2, &db));
        let open = || {
            web.assert_open(&h1.ns, h1, h1.v4);
            web.assert_open(&h2.ns, h1, h2.v4);
            web.assert_open(&client.ns, h1, h2.v4);
        };
        open();
        assert_taken(&mut k1, &ports[0]);

        let talk = Conversation::start(&client.ns, (&web.pod.ns, web.pod.v4.into()));
        for signal in ["TERM", "KILL"] {
            c1.end(signal);
            open();
            talk.assert_goes_on(AT_ONCE);
            h1.end(signal);
            open();
            c1.start_again();
            h1.start();
            await_mesh(&hosts);
            open();
            talk.assert_goes_on(BACK);
        }
        talk.finish();
        drop(web);

        // As when a pod is made anew: the ports are there for its next sandbox, also one that went with nobody there.
        for node in ["runs", "is away"] {
            k1 = Kubelet::of(&c1);
            if node == "is away" {
                h1.end("KILL");
            }
            k1.remove(&sandbox);
            if node == "is away" {
                assert!(published(h1), "nobody is there to close them");
                h1.start();
                await_mesh(&hosts);
            }
            assert!(!published(h1), "the node {node}");
            let made = k1.try_run("web-0", "web", &ports);
            sandbox = made.unwrap_or_else(|error| panic!("the node {node}: {error}"));
            let web = Web::new(pod(h1, &sandbox));
            web.assert_open(&h2.ns, h1, h2.v4);
        }
        k1.remove(&sandbox);
        k2.remove(&db);
        assert_nothing_left(&hosts, &before);
    });
}

fn assert_nothing_left(hosts: &[Host], before: &[String]) {
    for host in hosts {
        ns::try_host(&format!("ip netns del {}", pod_ns(host).name()));
        assert_eq!(Runtime::new(host).left(), (0, 0, 0));
    }
    for (host, before) in hosts.iter().zip(before) {
        assert_same(before, &host.ns.snapshot(), &host.name);
    }
}

/// Somebody else asks for the port that the pod has.
fn assert_taken(kubelet: &mut Kubelet, taken: &HostPort) {
    let refused = kubelet.try_run("web-1", "web", std::slice::from_ref(taken));
    let refused = refused.expect_err("the port is taken").to_string();
    assert!(
        refused.contains("another container publishes it"),
        "{refused}"
    );
}
