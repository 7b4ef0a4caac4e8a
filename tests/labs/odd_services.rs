//! Services that nobody means well: what of them is left out is said, in `describe` and once in the log; what cannot be
//! at all is refused; and the Services beside them serve.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::process::Command;
use std::time::Duration;

use ipnet::Ipv6Net;
use serde_json::{Value, json};
use weave_router::store::Store;

use crate::lab::node::said;
use crate::lab::traffic::wait_for;
use crate::lab::{Container, Host, Lab, await_mesh};
use crate::relay::{both, cut};
use crate::services::{SOON, balances, connect_within, serve};

/// What a node tells in its log of what it left out.
const LEFT_OUT: &str = "left out of a service";

/// A container that serves, with a label of its own.
pub(crate) fn server(host: &Host, name: &str) -> Container {
    let ns = host.bare_container(name);
    serve(&ns, name);
    host.attach_ns(ns, name, &["--label", &format!("app={name}")])
}

/// Makes a Service in front of endpoints; its address.
pub(crate) fn create(host: &Host, name: &str, endpoints: &[String]) -> SocketAddr {
    let mut words = vec!["service", "create", name, "--port", "80"];
    for endpoint in endpoints {
        words.extend(["--endpoint", endpoint]);
    }
    first_address(&host.json(&words))
}

fn first_address(made: &Value) -> SocketAddr {
    let address = made["addresses"][0].as_str().expect("an address");
    SocketAddr::new(address.parse().expect("an address"), 80)
}

/// How often something is in a host's log.
fn logged(lab: &Lab, host: &Host, what: &str) -> usize {
    let log = std::fs::read_to_string(lab.dir().join(format!("{}.log", host.name)));
    log.expect("the log is there").matches(what).count()
}

/// Has the API make a Service, however it is asked: the status and the body.
fn post(lab: &Lab, host: &Host, body: &str) -> (String, String) {
    let file = lab.dir().join("body.json");
    std::fs::write(&file, body).expect("a file can be written");
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--max-time", "30", "--unix-socket"])
        .arg(host.socket())
        .args([
            "-H",
            "content-type: application/json",
            "-w",
            "\n%{http_code}",
        ])
        .arg("--data-binary")
        .arg(format!("@{}", file.display()))
        .arg("http://localhost/v1/services");
    let out = said(&mut curl).out;
    let (body, status) = out.rsplit_once('\n').expect("a body and a status");
    (status.to_owned(), body.to_owned())
}

/// Endpoints that can be nobody's.
const SPECIAL: [&str; 10] = [
    "127.0.0.1:80",
    "169.254.169.254:80",
    "224.0.0.251:80",
    "255.255.255.255:80",
    "0.0.0.0:80",
    "[::1]:80",
    "[::]:80",
    "[fe80::1]:80",
    "[ff02::fb]:80",
    "[::ffff:127.0.0.1]:80",
];

/// What some take for octal is no address, by the command line and by the API.
fn leading_zeros_are_refused(lab: &Lab, host: &Host) {
    let endpoint = "010.32.0.9:80";
    let by = ["service", "create", "octal", "--port", "80", "--endpoint"];
    let said = host.ctl(&[&by[..], &[endpoint]].concat());
    assert!(
        said.code == 2 && said.err.contains("without leading zeros"),
        "{said:?}"
    );
    let body = json!({
        "name": "octal",
        "ports": [{ "port": 80, "target": 80 }],
        "endpoints": [endpoint],
    });
    let (status, answer) = post(lab, host, &body.to_string());
    let refusal: Value = serde_json::from_str(&answer).expect("a refusal");
    let cause = refusal["message"].as_str().expect("a cause");
    assert!(
        status.starts_with('4') && cause.contains("invalid socket address"),
        "{status} {answer}"
    );
}

/// Endpoints of both families that can be nobody's, or are a node's: each is shown with its reason on every node and is in
/// the log of each once, however often other Services change; the good ones serve.
#[test]
fn endpoints_that_cannot_be_are_shown_everywhere_and_logged_once() {
    Lab::run(|lab| {
        let hosts: [Host; 2] = lab.cluster();
        let good = server(&hosts[0], "good");
        let nodes = [
            format!("{}:22", hosts[0].v4),
            format!("{}:22", hosts[1].v4),
            format!("[{}]:22", hosts[0].v6),
            format!("[{}]:22", hosts[1].v6),
        ];
        let special = SPECIAL.map(str::to_owned);
        let virtual_one = "10.96.0.1:80".to_owned();
        let good = [format!("{}:8080", good.v4), format!("{}:8080", good.v4)];
        let all = [
            &special[..],
            &nodes,
            std::slice::from_ref(&virtual_one),
            &good,
        ]
        .concat();
        let at = create(&hosts[0], "odd", &all);
        let mut reasons = Vec::new();
        reasons.extend(
            special
                .iter()
                .map(|one| format!("{one}: it is a loopback, ")),
        );
        reasons.extend(
            nodes
                .iter()
                .map(|one| format!("{one}: it is an address of a node")),
        );
        reasons.push(format!("{virtual_one}: it is in the range of virtual"));
        for host in &hosts {
            wait_for("every reason is shown", SOON, || {
                let described = host.ctl(&["service", "describe", "odd"]).out;
                reasons.iter().all(|reason| described.contains(reason))
            });
        }
        let client = hosts[1].attach("client");
        balances(&client.ns, at, &["good"]);
        // More changes, each of which makes a new table.
        for turn in 0..5 {
            let name = format!("plain{turn}");
            let at = create(&hosts[1], &name, &good);
            balances(&client.ns, at, &["good"]);
        }
        for host in &hosts {
            assert_eq!(logged(lab, host, LEFT_OUT), 1, "{}", host.name);
        }
        leading_zeros_are_refused(lab, &hosts[1]);
        let list = hosts[1].ok(&["service", "list"]);
        assert!(list.contains("plain4") && !list.contains("octal"), "{list}");
    });
}

/// What listens on a host for itself, and must not be connected to.
fn daemon(host: &Host) -> TcpListener {
    let listen = || TcpListener::bind("[::]:2375").expect("the port is free");
    let listener = host.ns.inside(listen);
    listener.set_nonblocking(true).expect("a socket");
    listener
}

/// A port at addresses that hosts have inside: the gateways', a private bridge's, the one that a service gave, the exposed.
/// The gateway of the network of which no host has a container is on no device.
fn inside(host: &Host, source: IpAddr) -> Vec<String> {
    let exposed = host.json(&["expose"]);
    host.ok(&["network", "create", "side"]);
    let of = |value: &Value| value.as_str().expect("an address").to_owned();
    let listed = host.json(&["network", "list"]);
    let networks = listed["networks"].as_array().expect("a list");
    let gateways = networks.iter().flat_map(|network| {
        let range6: Ipv6Net = of(&network["range6"]).parse().expect("a range");
        let gateway6 = Ipv6Addr::from(u128::from(range6.network()) + 1);
        let gateway = of(&network["gateway"]);
        [format!("{gateway}:2375"), format!("[{gateway6}]:2375")]
    });
    let mut all: Vec<String> = gateways.collect();
    assert_eq!(all.len(), 4, "{listed}");
    all.extend([
        "172.30.0.1:2375".to_owned(),
        format!("{source}:2375"),
        format!("{}:2375", of(&exposed["ip"])),
        format!("[{}]:2375", of(&exposed["ip6"])),
    ]);
    all
}

/// What hosts have among the containers' addresses, and on devices of their own, is no endpoint either: nothing that listens
/// on a host is reached by a Service, nor by its checks.
#[test]
fn addresses_that_hosts_have_inside_are_nobodys_endpoints() {
    Lab::run(|lab| {
        let hosts: [Host; 2] = lab.cluster();
        for host in &hosts {
            host.ns
                .sh("ip link add docker9 type bridge; ip link set docker9 up; \
                 ip addr add 172.30.0.1/16 dev docker9");
        }
        let daemons = [0, 1].map(|number| daemon(&hosts[number]));
        let good = server(&hosts[0], "good");
        let client = hosts[1].attach("client");
        let good = format!("{}:8080", good.v4);
        let web = create(&hosts[0], "web", std::slice::from_ref(&good));
        balances(&client.ns, web, &["good"]);
        balances(&hosts[1].ns, web, &["good"]);
        let (_, _, source) = connect_within(SOON, &hosts[1].ns, web).expect("an answer");
        let nodes = inside(&hosts[0], source);
        let all = [&nodes[..], std::slice::from_ref(&good)].concat();
        let plain = create(&hosts[0], "plain", &all);
        for host in &hosts {
            wait_for("every reason is shown", SOON, || {
                let described = host.ctl(&["service", "describe", "plain"]).out;
                let refused = |node| format!("{node}: it is an address of a node");
                nodes.iter().all(|node| described.contains(&refused(node)))
            });
        }
        // Until each node knew what others have inside, one may have been picked, but not from now on.
        daemons
            .iter()
            .for_each(|daemon| while daemon.accept().is_ok() {});
        let mut words = vec![
            "service",
            "create",
            "checked",
            "--port",
            "80",
            "--health",
            "tcp,interval=1s",
        ];
        words.extend(all.iter().flat_map(|endpoint| ["--endpoint", endpoint]));
        let checked = first_address(&hosts[1].json(&words));
        for at in [plain, checked] {
            balances(&client.ns, at, &["good"]);
            balances(&hosts[0].ns, at, &["good"]);
        }
        // Time for each check to come to every endpoint.
        std::thread::sleep(Duration::from_secs(3));
        for daemon in daemons {
            assert!(
                daemon.accept().is_err(),
                "a daemon of a host was connected to"
            );
        }
    });
}

/// Has a node that is down say, once it is back, that another's address is the one that endpoints of others see it by.
fn claim_in_journal(host: &Host, address: Ipv4Addr) {
    let (mut store, found) = Store::open(&host.state().join("attachments")).expect("a journal");
    let content = found.content.expect("something was written");
    let mut book: Value = serde_json::from_slice(&content).expect("the journal is JSON");
    book["services"]["source"] = json!(address);
    let content = serde_json::to_vec(&book).expect("it was JSON");
    store.write(&content).expect("it can be written");
}

/// A member that says it is reached at another's container, and has its address inside: that one stays an endpoint on all
/// other nodes. What the member says of its own counts.
#[test]
fn a_member_cannot_have_anothers_container_refused() {
    Lab::run(|lab| {
        let hosts: [Host; 2] = lab.cluster();
        let victims = ["one", "two"].map(|name| server(&hosts[0], name));
        let endpoints = victims.each_ref().map(|one| format!("{}:8080", one.v4));
        // Its journal begins with that.
        let _own = hosts[1].attach("own");
        hosts[1].end("TERM");
        claim_in_journal(&hosts[1], victims[0].v4);
        let said = [hosts[1].v4, victims[1].v4, Ipv4Addr::new(203, 0, 113, 7)];
        let said = said.map(|address| address.to_string());
        let words = said
            .iter()
            .flat_map(|address| ["--advertise", address.as_str()]);
        hosts[1].start_with(&words.collect::<Vec<_>>());
        await_mesh(&hosts);
        let exposed = hosts[1].json(&["expose"]);
        let its_own = [
            format!("{}:8080", exposed["ip"].as_str().expect("an address")),
            "203.0.113.7:8080".to_owned(),
        ];
        let web = create(&hosts[0], "web", &[&endpoints[..], &its_own].concat());
        let described = || hosts[0].ctl(&["service", "describe", "web"]).out;
        let refused =
            |one: &String| described().contains(&format!("{one}: it is an address of a node"));
        wait_for("what is the member's own is refused", SOON, || {
            its_own.iter().all(refused)
        });
        assert!(!endpoints.iter().any(refused), "{}", described());
        balances(&hosts[0].attach("client").ns, web, &["one", "two"]);
    });
}

/// More than may be listed: the rest is counted, and none of it is shown as if it were served.
#[test]
fn what_is_too_much_is_counted_or_refused_and_others_serve() {
    Lab::run(|lab| {
        let [host] = lab.cluster();
        let one = server(&host, "one");
        let good = format!("{}:8080", one.v4);
        let served = create(&host, "served", std::slice::from_ref(&good));
        let loopback = (1..1000).map(|n| format!("127.0.{}.{}:80", n / 250, n % 250));
        let all: Vec<String> = loopback.chain([good]).collect();
        let body =
            json!({ "name": "many", "ports": [{ "port": 80, "target": 80 }], "endpoints": all });
        let (status, made) = post(lab, &host, &body.to_string());
        assert_eq!(status, "200", "{made}");
        let many = first_address(&serde_json::from_str(&made).expect("a Service"));
        wait_for("the rest is counted", SOON, || {
            let described = host.ctl(&["service", "describe", "many"]).out;
            described.contains("left out   979 more, for the same reasons")
        });
        let described = host.json(&["service", "describe", "many"]);
        let backends = described["backends"].as_array().expect("a list");
        let refused = backends.iter().filter(|one| one["state"] == "refused");
        assert_eq!(refused.count(), 999, "{described}");
        balances(&one.ns, many, &["one"]);

        // A hundred thousand by the API, and one more than there may be.
        for count in [100_000, 1001] {
            let mut list = String::new();
            for n in 0..count {
                let _ = write!(
                    list,
                    "\"10.{}.{}.{}:80\",",
                    32 + n / 65_536,
                    n / 256 % 256,
                    n % 256
                );
            }
            let list = list.trim_end_matches(',');
            let body = format!(
                r#"{{"name":"big","ports":[{{"port":80,"target":80}}],"endpoints":[{list}]}}"#
            );
            let (status, body) = post(lab, &host, &body);
            assert!(
                status.starts_with('4') && body.contains("at most 1000 endpoints"),
                "{count}: {status} {body}"
            );
        }
        balances(&one.ns, served, &["one"]);
        let list = host.ok(&["service", "list"]);
        assert!(!list.contains("big"), "{list}");
        assert_eq!(logged(lab, &host, LEFT_OUT), 1);
    });
}

/// Names that are no names, by the command line and by the API: refused, and no rule knows them.
#[test]
fn names_that_are_none_are_refused() {
    Lab::run(|lab| {
        let [host] = lab.cluster();
        let one = server(&host, "one");
        let served = create(&host, "served", &[format!("{}:8080", one.v4)]);
        balances(&one.ns, served, &["one"]);
        let rules = || host.ns.sh("nft list table inet weave-service");
        // The last thing that the rules wait for is the node's own address among the containers'.
        wait_for("the rules are complete", SOON, || {
            rules().contains("snat ip6 to")
        });
        let before = rules();
        let long = "a".repeat(64);
        let longer = "a".repeat(20_000);
        let odd = [
            "",
            " ",
            "web\nweb",
            "web\"; flush ruleset",
            "'web'",
            "wéb",
            "\u{202e}bew",
            "$(reboot)",
            "`reboot`",
            "web } ; add table inet t {",
            "../web",
            "-web",
            "web-",
            "a/b/c",
            "/web",
            "*",
            "web\t",
            &long,
            &longer,
        ];
        for name in odd {
            let by = ["service", "create", "--port", "80", "--selector", "app=one"];
            let words = [&by[..], &["--", name]].concat();
            let said = host.ctl(&words);
            assert!(
                said.code != 0 && said.err.contains("service name"),
                "{name:?}: {said:?}"
            );
            let body = json!({
                "name": name,
                "ports": [{ "port": 80, "target": 8080 }],
                "selector": { "app": "one" },
            });
            let (status, answer) = post(lab, &host, &body.to_string());
            assert!(status.starts_with('4'), "{name:?}: {status} {answer}");
        }
        assert_eq!(rules(), before);
        balances(&one.ns, served, &["one"]);
    });
}

/// Has the API make Services of a thousand endpoints each, all of them on one container without a server there, until
/// one is refused: how many were made, and the refusal.
fn make_until_refused(lab: &Lab, host: &Host, container: &Container) -> (usize, String) {
    let endpoints = (10_000..11_000).map(|port| format!("{}:{port}", container.v4));
    let endpoints: Vec<String> = endpoints.collect();
    for turn in 0..20 {
        let body = json!({
            "name": format!("large{turn}"),
            "ports": [{ "port": 80, "target": 80 }],
            "endpoints": endpoints,
            "health": { "interval_s": 600, "fall": 1 },
        });
        match post(lab, host, &body.to_string()) {
            (status, _) if status == "200" => {}
            (status, body) if status == "409" => return (turn, body),
            other => panic!("{other:?}"),
        }
    }
    panic!("twenty large services were made on one node");
}

/// More than a node may tell the others is refused, with a reason; and where checks find more than that has room for,
/// the others still learn of its containers.
#[test]
fn a_node_tells_of_its_containers_however_much_it_has_to_tell_of_services() {
    Lab::run(|lab| {
        let hosts: [Host; 2] = lab.cluster();
        let one = server(&hosts[0], "one");
        let (made, refusal) = make_until_refused(lab, &hosts[0], &one);
        assert!(refusal.contains("KiB to tell the others"), "{refusal}");
        println!("{made} services of 1000 endpoints were made on one node");
        let list = hosts[1].ok(&["service", "list"]);
        assert!(!list.contains(&format!("large{made}")), "{list}");
        wait_for("all are checked", SOON, || {
            let shown = hosts[0].json(&["service", "list"]);
            let services = shown["services"].as_array().expect("a list");
            let mut backends = services
                .iter()
                .flat_map(|one| one["backends"].as_array().expect("a list"));
            backends.all(|one| one["why"] == "connections are refused")
        });
        let web = ["service", "create", "web", "--port", "80:8080"];
        let at = first_address(&hosts[1].json(&[&web[..], &["--selector", "app=late"]].concat()));
        let _late = server(&hosts[0], "late");
        balances(&hosts[1].attach("client").ns, at, &["late"]);
        hosts[0].ok(&["detach", "late"]);
        wait_for("it is gone", SOON, || {
            let described = hosts[1].json(&["service", "describe", "web"]);
            described["backends"].as_array().is_some_and(Vec::is_empty)
        });
        let status = hosts[0].ok(&["status"]);
        assert!(!status.contains("to tell the others"), "{status}");
    });
}

/// Two hosts that do not see each other make a Service of one name each. Once they meet, one of them serves on both, the
/// other is told of, and whoever removes the name removes both for good.
#[test]
fn a_service_that_another_one_hides_is_told_of_and_removed_with_it() {
    Lab::run(|lab| {
        let hosts: [Host; 2] = lab.cluster();
        let servers = [(0, "one"), (1, "two")].map(|(at, name)| server(&hosts[at], name));
        let endpoints = servers.each_ref().map(|one| [format!("{}:8080", one.v4)]);
        cut(lab, &both(1, 2));
        for (host, other) in [(0, "h2"), (1, "h1")] {
            wait_for("the other host is missed", SOON, || {
                let seen = hosts[host].connection(other);
                seen.is_some_and(|seen| seen["state"] != "connected")
            });
            create(&hosts[host], "web", &endpoints[host]);
        }
        cut(lab, &[]);
        await_mesh(&hosts);
        for host in &hosts {
            wait_for("both makers are listed", SOON, || {
                let list = host.ok(&["service", "list"]);
                list.contains("h1, also h2") || list.contains("h2, also h1")
            });
            let described = host.ok(&["service", "describe", "web"]);
            assert!(described.contains("also made  on h"), "{described}");
        }
        hosts[1].ok(&["service", "rm", "web"]);
        let gone = |host: &Host| {
            let list = host.json(&["service", "list"]);
            list["services"].as_array().is_some_and(Vec::is_empty)
        };
        for host in &hosts {
            wait_for("both are gone", SOON, || gone(host));
        }
        let at = create(&hosts[0], "web", &endpoints[1]);
        balances(&servers[0].ns, at, &["two"]);
        let list = hosts[0].ok(&["service", "list"]);
        assert!(!list.contains("also"), "{list}");
    });
}
