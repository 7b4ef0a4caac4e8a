//! Endpoints that are checked, on two hosts, and what a node says of itself to those who balance over nodes.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::lab::ns::Ns;
use crate::lab::traffic::wait_for;
use crate::lab::{Container, Host, Lab};
use crate::services::{SOON, balances, is_refused, serve};

/// Answers on port 8081 whether it is well, beside what it serves.
fn tell_health(ns: &Ns) -> Arc<AtomicBool> {
    let well = Arc::new(AtomicBool::new(true));
    let listener = ns.inside(|| TcpListener::bind("[::]:8081").expect("the port is free"));
    let told = Arc::clone(&well);
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.read(&mut [0; 1024]);
            let status = if told.load(Ordering::Relaxed) {
                "200 OK"
            } else {
                "503 No"
            };
            let answer =
                format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    well
}

/// A container with `app=web` that serves and tells how it is.
fn web(host: &Host, name: &str) -> (Container, Arc<AtomicBool>) {
    let ns = host.bare_container(name);
    serve(&ns, name);
    let well = tell_health(&ns);
    (host.attach_ns(ns, name, &["--label", "app=web"]), well)
}

fn create(host: &Host, name: &str, more: &[&str]) -> SocketAddr {
    let words = ["service", "create", name, "--port", "80:8080"];
    let made = host.json(&[&words, more].concat());
    let address = made["addresses"][0].as_str().expect("an address");
    SocketAddr::new(address.parse().expect("an address"), 80)
}

fn describes(host: &Host, what: &str) -> bool {
    host.ok(&["service", "describe", "web"]).contains(what)
}

#[test]
fn endpoints_that_fail_their_check_are_left_out_everywhere_and_used_when_there_is_no_other() {
    Lab::run(|lab| {
        let hosts: [Host; 2] = lab.cluster();
        let (_one, first) = web(&hosts[0], "w1");
        let (_two, second) = web(&hosts[1], "w2");
        let clients = [hosts[0].attach("c1"), hosts[1].attach("c2")];
        let check = "http:/healthz,interval=1s,timeout=1s,rise=1,fall=2,port=8081";
        let v4 = create(
            &hosts[0],
            "web",
            &["--selector", "app=web", "--health", check],
        );
        let everywhere = |over: &[&str]| {
            for client in &clients {
                balances(&client.ns, v4, over);
            }
        };
        everywhere(&["w1", "w2"]);
        assert!(
            describes(&hosts[1], check),
            "the check is shown on every node"
        );
        wait_for("both pass", SOON, || {
            hosts.iter().all(|host| !describes(host, "not checked yet"))
        });
        // It still serves: that nobody is sent there any more is the check's doing.
        second.store(false, Ordering::Relaxed);
        everywhere(&["w1"]);
        for host in &hosts {
            assert!(
                describes(host, "check fails: it answers 503"),
                "{}",
                host.name
            );
        }
        first.store(false, Ordering::Relaxed);
        everywhere(&["w1", "w2"]);
        wait_for("it is said why", SOON, || {
            describes(&hosts[0], "last resort")
        });
        second.store(true, Ordering::Relaxed);
        everywhere(&["w2"]);
        // A node that starts again does not forget what it knew, and an endpoint that comes is used once it passes.
        hosts[1].end("KILL");
        hosts[1].start();
        crate::lab::await_mesh(&hosts);
        everywhere(&["w2"]);
        first.store(true, Ordering::Relaxed);
        everywhere(&["w1", "w2"]);
    });
}

#[test]
fn given_endpoints_are_checked_by_the_node_that_has_them() {
    Lab::run(|lab| {
        let hosts: [Host; 2] = lab.cluster();
        let (one, _) = web(&hosts[1], "w1");
        let silent = hosts[0].attach("silent");
        let at = |container: &Container| format!("{}:8080", container.v4);
        let words = [
            "--endpoint",
            &at(&one),
            "--endpoint",
            &at(&silent),
            "--health",
            "tcp,interval=1s",
        ];
        let v4 = create(&hosts[0], "web", &words);
        let client = hosts[1].attach("client");
        balances(&client.ns, v4, &["w1"]);
        wait_for("the reason", SOON, || {
            describes(&hosts[1], "check fails: connections are refused")
        });
        // What is described is in the kernel a moment later.
        wait_for("the one that refuses is left out", SOON, || {
            (0..20).all(|_| !is_refused(&client.ns, v4))
        });
        for _ in 0..20 {
            assert!(
                !is_refused(&client.ns, v4),
                "the one that refuses is not picked"
            );
        }
    });
}

/// Asks over HTTP; the status and the body.
fn get(from: &Ns, at: SocketAddr, path: &str) -> Option<(u16, String)> {
    let short = Duration::from_secs(5);
    let stream = from.inside(|| TcpStream::connect_timeout(&at, short));
    let mut stream = stream.ok()?;
    stream.set_read_timeout(Some(short)).ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: node\r\n\r\n");
    stream.write_all(request.as_bytes()).ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    let status = text.split(' ').nth(1)?.parse().ok()?;
    let (_, body) = text.split_once("\r\n\r\n")?;
    Some((status, body.to_owned()))
}

#[test]
fn a_node_tells_load_balancers_that_it_serves_where_it_is_told_to() {
    Lab::run(|lab| {
        let hosts: [Host; 2] = lab.cluster();
        for (path, status) in [("/healthz", 200), ("/livez", 200), ("/", 404)] {
            for address in [IpAddr::from(hosts[0].v4), hosts[0].v6.into()] {
                lab.allow_outside(address);
                let at = SocketAddr::new(address, 10_256);
                let (said, body) = get(&hosts[1].ns, at, path).expect("an answer");
                assert_eq!(said, status, "{path}");
                let eligible = body.contains(r#""nodeEligible":true"#);
                assert_eq!(eligible, status == 200, "{body}");
            }
        }
        hosts[0].end("TERM");
        hosts[0].start_with(&["--health", "127.0.0.1:9999"]);
        let local = "127.0.0.1:9999".parse().expect("an address");
        wait_for("an answer at the other port", SOON, || {
            get(&hosts[0].ns, local, "/healthz").is_some_and(|(status, _)| status == 200)
        });
        let before = "127.0.0.1:10256".parse().expect("an address");
        assert!(get(&hosts[0].ns, before, "/healthz").is_none());
        crate::lab::await_mesh(&hosts);
    });
}
