//! Who talks to whom, as every node of a cluster tells it.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::full_tracking::fill;
use crate::lab::node::WEAVECTL;
use crate::lab::ns::Ns;
use crate::lab::traffic::{Conversation, ping, wait_for};
use crate::lab::{Container, Host, Lab};
use crate::relayed::{metric, picks};

mod carrying;
mod delays;

use carrying::{
    DATAGRAMS, carried, connect_in_time, counted, datagrams_to, exchanged, hold, passed, send,
    send_to, stream_of_datagrams,
};
use delays::{Delays, SOON};

/// A node misses an answer that does not come for so long.
const MISSED: Duration = Duration::from_secs(2);

/// How long a test waits for what is late.
const PATIENCE: Duration = Duration::from_secs(20);

/// A flow between two ends to a port of which something is so, if the node tells of one: what went through each address of
/// a Service is a flow of its own.
fn find(
    host: &Host,
    (from, to): (&str, &str),
    (protocol, port): (&str, u16),
    is_so: impl Fn(&Value) -> bool,
) -> Option<Value> {
    let shown = host.json(&["flows"]);
    let is = |flow: &&Value| {
        flow["from"]["name"] == from
            && flow["to"]["name"] == to
            && flow["protocol"] == protocol
            && flow["port"] == port
            && is_so(flow)
    };
    shown["flows"].as_array()?.iter().find(is).cloned()
}

/// TCP and UDP, both families, on one host and across, refused and without an answer, to the outside and from it: each is
/// told by every node, with its ends and its bytes, once, and soon.
#[test]
fn every_node_tells_who_talks_to_whom() {
    Lab::run(|lab| {
        let hosts = lab.cluster::<2>();
        let [h1, h2] = &hosts;
        let [a, b, c] = [h1.attach("a"), h2.attach("b"), h1.attach("c")];
        for host in &hosts {
            host.json(&["flows"]);
        }
        let mut delays = Delays::new();
        for (from, to, ip, port) in [
            (&a, &b, IpAddr::V4(b.v4), 8001),
            (&b, &a, a.v6.into(), 8002),
            (&a, &c, c.v4.into(), 8003),
            (&c, &a, a.v6.into(), 8006),
        ] {
            let before = passed(&from.ns);
            send(&from.ns, &to.ns, ip, port);
            let after = passed(&from.ns);
            let went = [0, 1].map(|way| after[way] - before[way]);
            let ends = (from.name.as_str(), to.name.as_str());
            delays.take(&hosts, ends, ("tcp", port), |flow| {
                counted(flow, went) && flow["connections"] == 1 && flow["refused"] == 0
            });
        }
        ping(&a.ns, b.v4.into(), 56);
        delays.take(&hosts, ("a", "b"), ("icmp", 0), |flow| {
            flow["sent_packets"] == 1 && flow["received_packets"] == 1
        });
        for (from, to, [left, right], port) in [
            (&c, &b, [c.v6.into(), b.v6.into()], 8005),
            (&a, &b, [a.v4.into(), b.v4.into()], 8017),
            (&c, &a, [c.v4.into(), IpAddr::V4(a.v4)], 8007),
            (&c, &a, [c.v6.into(), a.v6.into()], 8008),
        ] {
            stream_of_datagrams((&from.ns, left), (&to.ns, right), port);
            let ends = (from.name.as_str(), to.name.as_str());
            delays.take(&hosts, ends, ("udp", port), |flow| {
                flow["sent_packets"] == DATAGRAMS && exchanged(flow)
            });
        }
        for (from, to, refused) in [
            (&c, &b, SocketAddr::from((b.v4, 8009))),
            (&a, &b, (b.v6, 8013).into()),
            (&a, &c, (c.v4, 8018).into()),
            (&c, &a, (a.v6, 8019).into()),
        ] {
            let answer = from.ns.inside(|| TcpStream::connect(refused));
            assert!(answer.is_err(), "nothing listens there");
            let ends = (from.name.as_str(), to.name.as_str());
            delays.take(&hosts, ends, ("tcp", refused.port()), |flow| {
                flow["refused"] == 1 && flow["failing"] == true
            });
        }
        refusal_in_words(h1);
        outside(lab, &hosts, &a, &mut delays);
        nobody_answers(&hosts, &a, &b, &mut delays);
        delays.check();
        busiest_in_words(h2);
        each_once(h2);
    });
}

/// What nobody answers is told while somebody still asks, and fails as well once an answer was missed for a moment:
/// nothing came back, and nobody refused.
fn nobody_answers(hosts: &[Host], from: &Container, mute: &Container, delays: &mut Delays) {
    mute.ns.sh(&format!("ip route add blackhole {}", from.v4));
    let to: SocketAddr = (mute.v4, 8020).into();
    let asking = || TcpStream::connect_timeout(&to, 2 * MISSED);
    std::thread::scope(|scope| {
        let asks = scope.spawn(|| from.ns.inside(asking));
        let (ends, port) = (("a", "b"), ("tcp", 8020));
        delays.take(hosts, ends, port, |flow| {
            flow["connections"] == 1 && flow["sent_packets"].as_u64() >= Some(1)
        });
        let missed = Instant::now() + MISSED;
        delays.take_since(missed, hosts, "all tell that nobody answers", |host| {
            find(host, ends, port, |flow| {
                flow["unanswered"] == 1 && flow["failing"] == true
            })
            .is_some()
        });
        let answer = asks.join().expect("who asks gives up");
        assert!(answer.is_err(), "who asks cannot be answered");
    });
    for host in hosts {
        let flow = find(host, ("a", "b"), ("tcp", 8020), |_| true).expect("it was just told");
        assert_eq!(
            (&flow["refused"], &flow["received_bytes"]),
            (&0.into(), &0.into())
        );
    }
}

/// A flow that was just refused, in words: it is told as failing for a quarter of a minute.
fn refusal_in_words(host: &Host) {
    let said = host.ok(&["flows", "--failing", "--with", "b", "--from", "c"]);
    let rows = rows(&said);
    assert_eq!(rows.len(), 1, "{said}");
    assert!(
        rows[0].contains("tcp/8009") && rows[0].contains("refused"),
        "{said}"
    );
}

fn busiest_in_words(host: &Host) {
    let said = host.ok(&["top", "-n", "1", "--port", "8001"]);
    let rows = rows(&said);
    assert!(rows.len() == 1 && rows[0].contains("tcp/8001"), "{said}");
}

/// The lines that tell flows. More may follow of how well the nodes see them, for instance that one has too much to do.
fn rows(said: &str) -> Vec<&str> {
    let tells = |line: &&str| {
        ["tcp/", "udp/", "icmp"]
            .iter()
            .any(|one| line.contains(one))
    };
    said.lines().filter(tells).collect()
}

/// The picture has no flow twice.
fn each_once(host: &Host) {
    let picture = host.json(&["flows"]);
    let ids: Vec<&str> = picture["flows"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|flow| flow["id"].as_str())
        .collect();
    let mut once = ids.clone();
    once.sort_unstable();
    once.dedup();
    assert_eq!(once.len(), ids.len(), "each once: {ids:?}");
}

/// Who follows is told of a flow when something of it moves, and not of what was before; it ends with its reader.
#[test]
fn who_follows_is_told_what_moves() {
    Lab::run(|lab| {
        let hosts = lab.cluster::<2>();
        let [h1, h2] = &hosts;
        let [a, b] = [h1.attach("a"), h2.attach("b")];
        send(&a.ns, &b.ns, b.v4.into(), 8021);
        awaited(h1, ("a", "b"), ("tcp", 8021), |flow| {
            carried(flow) && flow["sent_rate"] == 0 && flow["received_rate"] == 0
        });
        let mut follow = Command::new(WEAVECTL)
            .env("WEAVE_SOCKET", h1.socket())
            .args(["flows", "-f", "--with", "b"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("weavectl starts");
        let out = BufReader::new(follow.stdout.take().expect("stdout is piped"));
        let (tell, told) = mpsc::channel();
        let reader = std::thread::spawn(move || {
            let mut lines = out.lines();
            let first: Vec<String> = lines.by_ref().map_while(Result::ok).take(2).collect();
            // Nobody reads any more from here on.
            drop(lines);
            tell.send(first).expect("it is waited for");
        });
        let mut lines = Vec::new();
        wait_for("who follows is told of two", PATIENCE, || {
            send(&a.ns, &b.ns, b.v4.into(), 8022);
            ping(&a.ns, b.v4.into(), 56);
            lines.extend(told.try_iter().flatten());
            !lines.is_empty()
        });
        reader.join().expect("the reader ends");
        assert_eq!(lines.len(), 2, "{lines:?}");
        for line in &lines {
            let is_so = |what: &str| line.starts_with(&format!("a -> b {what} ok, "));
            assert!(is_so("tcp/8022") || is_so("icmp"), "{lines:?}");
            assert!(line.ends_with("/s back"), "{lines:?}");
        }
        wait_for("it ends when nobody reads", PATIENCE, || {
            ping(&a.ns, b.v4.into(), 56);
            let ended = follow.try_wait().expect("it can be waited for");
            ended.is_some_and(|ended| ended.code() == Some(0))
        });
    });
}

/// A node that is to do without flows leaves the kernel as it is: counting costs something for each packet.
#[test]
fn without_flows_the_kernel_is_not_told_to_count() {
    Lab::run(|lab| {
        let host = lab.host("h1", 1);
        let counting = "/proc/sys/net/netfilter/nf_conntrack_acct";
        host.ns.sh(&format!("echo 0 > {counting}"));
        let counts = || host.ns.sh(&format!("cat {counting}"));
        host.start_with(&["--flows=off"]);
        let said = host.ok(&["flows"]);
        assert!(said.contains("started with --flows=off"), "{said}");
        assert_eq!(counts().trim(), "0");
        host.end("TERM");
        host.start();
        wait_for("the kernel counts", PATIENCE, || counts().trim() == "1");
    });
}

/// A look at a long table is dear, so looks lie far apart: that a connection began is told at once all the same, and
/// what it carried with the next look.
#[test]
fn flows_are_told_at_once_however_long_the_table() {
    Lab::run(|lab| {
        let hosts = lab.cluster::<2>();
        let [h1, h2] = &hosts;
        let [a, b] = [h1.attach("a"), h2.attach("b")];
        assert!(fill(lab, h1, 60_000), "there is room for them");
        wait_for("looks lie far apart", PATIENCE, || {
            h1.json(&["flows"]);
            metric(h1, "weave_flow_interval_seconds") > 2.0 * SOON.as_secs_f64()
        });
        let mut delays = Delays::without_looks();
        for port in 8031..8036 {
            send(&a.ns, &b.ns, b.v4.into(), port);
            delays.take(&hosts, ("a", "b"), ("tcp", port), |flow| {
                flow["connections"] == 1
            });
        }
        delays.check();
        awaited(h1, ("a", "b"), ("tcp", 8035), carried);
    });
}

/// UDP of both families, and TCP of both through a Service: what was asked for has the Service's name, the
/// connection goes to who answers, and while it is open its round trip is read from the client's socket.
#[test]
fn flows_through_a_service_and_of_udp_are_told_with_their_ends_and_bytes() {
    Lab::run(|lab| {
        let hosts = lab.cluster::<2>();
        let [h1, h2] = &hosts;
        let [a, b] = [h1.attach("a"), h2.attach_with("b", &["--label", "app=web"])];
        let made = h1.json(&[
            "service",
            "create",
            "web",
            "--port",
            "80:8005",
            "--selector",
            "app=web",
        ]);
        let fronts = [0, 1].map(|at| front(&made, at));
        stream_of_datagrams((&a.ns, a.v4.into()), (&b.ns, b.v4.into()), 8006);
        stream_of_datagrams((&a.ns, a.v6.into()), (&b.ns, b.v6.into()), 8007);
        for (front, ip) in fronts.into_iter().zip([IpAddr::V4(b.v4), b.v6.into()]) {
            let held = hold((&a.ns, front), (&b.ns, ip));
            for host in &hosts {
                let flow = awaited(host, ("a", "b"), ("tcp", 8005), |flow| {
                    flow["via"] == front.to_string()
                        && flow["tcp"]["rtt_us"].as_u64().is_some_and(|rtt| rtt > 0)
                });
                assert_eq!(flow["service"], "web");
                assert_eq!(flow["tcp"]["sockets"], 1, "{flow}");
            }
            drop(held);
        }
        for host in &hosts {
            for port in [8006, 8007] {
                awaited(host, ("a", "b"), ("udp", port), exchanged);
            }
        }
        let said = h2.ok(&["flows", "-o", "wide", "--port", "8005"]);
        assert!(
            said.contains("b via web") && said.contains("RETRANSMITS"),
            "{said}"
        );
    });
}

/// What a wire that loses datagrams makes TCP send anew is told while the connection is open, by all, and in words.
#[test]
fn what_is_sent_anew_is_told() {
    Lab::run(|lab| {
        let hosts = lab.cluster::<2>();
        let [h1, h2] = &hosts;
        let [a, b] = [h1.attach("a"), h2.attach("b")];
        let talk = Conversation::start_of(4096, &a.ns, (&b.ns, b.v4.into()));
        lab.switch().sh("nft -f - <<'END'
table bridge lossy {
 chain between { type filter hook forward priority 0; meta l4proto udp numgen random mod 10 < 1 drop; }
}
END");
        for host in &hosts {
            wait_for("segments are told that were sent anew", PATIENCE, || {
                let told = host.json(&["flows", "--from", "a", "--to", "b"]);
                told["flows"][0]["tcp"]["retransmits"].as_u64() > Some(0)
            });
        }
        lab.switch().sh("nft delete table bridge lossy");
        let said = h2.ok(&["flows", "-o", "wide", "--from", "a", "--to", "b"]);
        let last = rows(&said)[0].split_whitespace().last();
        let shown: Option<u64> = last.and_then(|word| word.parse().ok());
        assert!(shown > Some(0), "{said}");
        talk.assert_goes_on(PATIENCE);
        talk.finish();
    });
}

/// The host that is a member of the network itself, what comes to a container from outside through a port of its host, and
/// what was sent through a Service, TCP and UDP, are told soon as well, with the bytes that went.
#[test]
fn hosts_the_outside_and_services_are_ends_too() {
    Lab::run(|lab| {
        let hosts = lab.cluster::<2>();
        let [h1, h2] = &hosts;
        h1.ok(&["expose"]);
        let [a, b] = [h1.attach("a"), h2.attach_with("b", &["--label", "app=web"])];
        let selected = ["--selector", "app=web", "--node-port", "30080"];
        let web = ["service", "create", "web", "--port", "80:8005"];
        let made = h1.json(&[&web[..], &selected].concat());
        let udp_too = ["service", "create", "names", "--port", "53:8006/udp"];
        let names = h1.json(&[&udp_too[..], &selected[..2]].concat());
        let six = ["service", "create", "six", "--port", "80:8012"];
        let six = h1.json(&[&six[..], &selected[..2]].concat());
        let six_names = ["service", "create", "six-names", "--port", "53:8016/udp"];
        let six_names = h1.json(&[&six_names[..], &selected[..2]].concat());
        let machine = Ns::add("outside");
        lab.plug(&machine, "u0", 9);
        for host in &hosts {
            lab.allow_outside(host.v4);
            host.json(&["flows"]);
        }
        let mut delays = Delays::new();
        send(&h1.ns, &b.ns, b.v4.into(), 8010);
        delays.take(&hosts, ("h1", "b"), ("tcp", 8010), |flow| {
            carried(flow) && flow["from"]["kind"] == "host"
        });
        let own = h1.status()["host"]["ip"].as_str().map(str::parse);
        let own: IpAddr = own.expect("it is exposed").expect("an address");
        send(&b.ns, &h1.ns, own, 8011);
        delays.take(&hosts, ("b", "h1"), ("tcp", 8011), |flow| {
            carried(flow) && flow["to"]["kind"] == "host"
        });
        send_to(&a.ns, front(&made, 0), (&b.ns, (b.v4, 8005).into()));
        delays.take(&hosts, ("a", "b"), ("tcp", 8005), |flow| {
            carried(flow) && flow["service"] == "web"
        });
        send_to(&a.ns, front(&six, 1), (&b.ns, (b.v6, 8012).into()));
        delays.take(&hosts, ("a", "b"), ("tcp", 8012), |flow| {
            carried(flow) && flow["service"] == "six"
        });
        let asked = SocketAddr::new(front(&names, 0).ip(), 53);
        datagrams_to((&a.ns, a.v4.into()), asked, (&b.ns, (b.v4, 8006).into()));
        delays.take(&hosts, ("a", "b"), ("udp", 8006), |flow| {
            exchanged(flow) && flow["service"] == "names"
        });
        let asked = SocketAddr::new(front(&six_names, 1).ip(), 53);
        datagrams_to((&a.ns, a.v6.into()), asked, (&b.ns, (b.v6, 8016).into()));
        delays.take(&hosts, ("a", "b"), ("udp", 8016), |flow| {
            exchanged(flow) && flow["service"] == "six-names"
        });
        by_ports_of_hosts(&hosts, &machine, &b, &mut delays);
        by_their_own_addresses(&hosts, &b, &mut delays);
        delays.check();
    });
}

/// From outside, by the port of the endpoint's own host, and of another.
fn by_ports_of_hosts(hosts: &[Host; 2], machine: &Ns, b: &Container, delays: &mut Delays) {
    for host in hosts {
        let port = SocketAddr::new(host.v4.into(), 30080);
        send_to(machine, port, (&b.ns, (b.v4, 8005).into()));
        delays.take(hosts, ("192.168.77.9", "b"), ("tcp", 8005), |flow| {
            flow["via"] == port.to_string() && carried(flow) && flow["from"]["kind"] == "outside"
        });
    }
}

/// By their addresses on the network between them, not encrypted, they are members all the same: who asks for a Service at the
/// other's port of the host, and who is asked by a container of the other.
fn by_their_own_addresses(hosts: &[Host; 2], b: &Container, delays: &mut Delays) {
    let [h1, h2] = hosts;
    let port = SocketAddr::new(h2.v4.into(), 30080);
    send_to(&h1.ns, port, (&b.ns, (b.v4, 8005).into()));
    delays.take(hosts, ("h1", "b"), ("tcp", 8005), |flow| {
        carried(flow) && flow["from"]["kind"] == "host"
    });
    send(&b.ns, &h1.ns, h1.v4.into(), 8021);
    delays.take(hosts, ("b", "h1"), ("tcp", 8021), |flow| {
        carried(flow) && flow["to"]["ip"] == h1.v4.to_string()
    });
}

/// Where the endpoint of a Service shares its client's host nothing passes between hosts: all tell the flow all the
/// same, by the Service, with its ends and its bytes, of both families and protocols.
#[test]
fn a_service_on_its_clients_host_is_told_too() {
    Lab::run(|lab| {
        let hosts = lab.cluster::<2>();
        let [h1, _] = &hosts;
        let [a, b] = [
            h1.attach("a"),
            h1.attach_with("b", &["--label", "app=near"]),
        ];
        let made = |name, port| {
            let words = ["service", "create", name, "--port", port];
            h1.json(&[&words[..], &["--selector", "app=near"]].concat())
        };
        let (web, names) = (made("web", "80:8005"), made("names", "53:8006/udp"));
        for host in &hosts {
            host.json(&["flows"]);
        }
        let mut delays = Delays::new();
        let families = [(a.v4.into(), b.v4.into()), (a.v6.into(), IpAddr::V6(b.v6))];
        for (at, (left, right)) in families.into_iter().enumerate() {
            let asked = front(&web, at);
            send_to(&a.ns, asked, (&b.ns, (right, 8005).into()));
            delays.take(&hosts, ("a", "b"), ("tcp", 8005), |flow| {
                flow["via"] == asked.to_string() && flow["service"] == "web" && carried(flow)
            });
            let asked = SocketAddr::new(front(&names, at).ip(), 53);
            datagrams_to((&a.ns, left), asked, (&b.ns, (right, 8006).into()));
            delays.take(&hosts, ("a", "b"), ("udp", 8006), |flow| {
                flow["via"] == asked.to_string() && flow["service"] == "names" && exchanged(flow)
            });
        }
        delays.check();
    });
}

/// What goes through a Service of the relay is two connections, and one flow: from who asked to who answers, by the Service,
/// with the bytes that went, once.
#[test]
fn what_the_relay_carries_is_one_flow() {
    Lab::run(|lab| {
        let hosts = lab.cluster::<2>();
        let [h1, h2] = &hosts;
        let [a, b] = [h1.attach("a"), h2.attach_with("b", &["--label", "app=web"])];
        let relayed = |name, port| {
            let words = ["service", "create", name, "--port", port];
            let more = ["--selector", "app=web", "--engine", "relay"];
            h1.json(&[&words[..], &more].concat())
        };
        let (web, names) = (relayed("web", "80:8005"), relayed("names", "53:8006/udp"));
        let families = [(a.v4.into(), b.v4.into()), (a.v6.into(), IpAddr::V6(b.v6))];
        relay_takes(h1, (&a.ns, front(&web, 0)), (&b.ns, (b.v4, 8005).into()));
        for host in &hosts {
            host.json(&["flows"]);
        }
        let (mut through, mut delays) = (Vec::new(), Delays::new());
        for (at, (left, right)) in families.into_iter().enumerate() {
            let asked = front(&web, at);
            send_to(&a.ns, asked, (&b.ns, (right, 8005).into()));
            through.push(asked);
            all_tell(&mut delays, &hosts, asked);
            let asked = SocketAddr::new(front(&names, at).ip(), 53);
            datagrams_to((&a.ns, left), asked, (&b.ns, (right, 8006).into()));
            through.push(asked);
            all_tell(&mut delays, &hosts, asked);
        }
        delays.check();
        for host in &hosts {
            wait_for("each is one flow", PATIENCE, || {
                let told = all_of(host, "a");
                let is_whole = |via: &SocketAddr| relayed_whole(&told, *via);
                through.iter().all(is_whole) && told.len() == through.len()
            });
        }
        let by_relay = [picks(h1, "web"), picks(h1, "names")];
        assert!(
            by_relay[0] >= 3 && by_relay[1] >= 2,
            "it was the relay: {by_relay:?}"
        );
    });
}

/// Takes how long it is until all tell what the relay carried to a Service.
fn all_tell(delays: &mut Delays, hosts: &[Host], asked: SocketAddr) {
    let what = format!("all tell what the relay carried for {asked}");
    delays.take_since(Instant::now(), hosts, &what, |host| {
        relayed_whole(&all_of(host, "a"), asked)
    });
}

/// Whether what was sent through one of the relay's Services is told with its ends and bytes.
fn relayed_whole(told: &BTreeMap<String, Value>, asked: SocketAddr) -> bool {
    told.get(&asked.to_string()).is_some_and(|flow| {
        let whole = match asked.port() {
            80 => carried(flow) && flow["service"] == "web",
            _ => exchanged(flow) && flow["service"] == "names",
        };
        whole && flow["to"]["name"] == "b"
    })
}

/// Connects until it is the relay that takes it up: before, the kernel serves. Each connection has ended on all sides.
fn relay_takes(host: &Host, (from, asked): (&Ns, SocketAddr), (to, listens): (&Ns, SocketAddr)) {
    let listener = to.inside(|| TcpListener::bind(listens));
    let listener = listener.expect("the port is free");
    wait_for("the relay serves", PATIENCE, || {
        drop(connect_in_time(from, asked));
        let (mut taken, _) = listener.accept().expect("a connection comes");
        let heard = taken.read_to_end(&mut Vec::new());
        assert_eq!(heard.expect("its end comes"), 0);
        picks(host, "web") > 0
    });
}

/// What a host tells of the flows from a container, by what was asked for.
fn all_of(host: &Host, from: &str) -> BTreeMap<String, Value> {
    let shown = host.json(&["flows", "--from", from]);
    let flows = shown["flows"].as_array().expect("a list").iter();
    let asked = |flow: &Value| match flow["via"].as_str() {
        Some(via) => via.to_owned(),
        None => format!("{} {}", flow["to"]["name"], flow["port"]),
    };
    flows.map(|flow| (asked(flow), flow.clone())).collect()
}

/// The address at which a Service that was just made is asked.
fn front(made: &Value, at: usize) -> SocketAddr {
    let ip = made["addresses"][at]
        .as_str()
        .expect("an address of each family");
    SocketAddr::new(ip.parse().expect("an address"), 80)
}

/// A machine of the outside, to which a container sends, by TCP and UDP of both families.
fn outside(lab: &Lab, hosts: &[Host], from: &Container, delays: &mut Delays) {
    let machine = Ns::add("outside");
    lab.plug(&machine, "u0", 9);
    for (own, name) in from
        .addresses()
        .into_iter()
        .zip(["192.168.77.9", "fd77::9"])
    {
        let address: IpAddr = name.parse().expect("an address");
        lab.allow_outside(address);
        send(&from.ns, &machine, address, 8004);
        let ends = (from.name.as_str(), name);
        delays.take(hosts, ends, ("tcp", 8004), |flow| {
            flow["to"]["kind"] == "outside" && carried(flow)
        });
        stream_of_datagrams((&from.ns, own), (&machine, address), 8004);
        delays.take(hosts, ends, ("udp", 8004), |flow| {
            flow["to"]["kind"] == "outside" && exchanged(flow)
        });
    }
}

/// Waits until the node tells of a flow, and what it tells of it is so.
fn awaited(
    host: &Host,
    (from, to): (&str, &str),
    (protocol, port): (&str, u16),
    is_so: impl Fn(&Value) -> bool,
) -> Value {
    let mut found = None;
    let what = format!(
        "{} tells of {protocol}/{port} from {from} to {to}",
        host.name
    );
    wait_for(&what, PATIENCE, || {
        found = find(host, (from, to), (protocol, port), &is_so);
        found.is_some()
    });
    found.expect("it was just there")
}
