//! What is asked wrongly is refused with its cause and its fix, one line each, the right exit code, and no trace.

use std::net::UdpSocket;
use std::process::Command;
use std::time::Duration;

use crate::lab::node::{Said, WEAVED, said};
use crate::lab::traffic::wait_for;
use crate::lab::{Host, Lab, ns};

/// Fails unless a program ended with `code` and its last two lines are a cause and a fix that say these words.
#[track_caller]
fn refused(said: &Said, code: i32, cause: &str, fix: &str) {
    assert_eq!(said.code, code, "{said:?}");
    assert_eq!(said.out, "", "{said:?}");
    let lines: Vec<&str> = said.err.lines().collect();
    let [.., first, second] = lines[..] else {
        panic!("a cause and a fix, one line each: {said:?}");
    };
    let first = first
        .strip_prefix("weavectl: ")
        .or_else(|| first.strip_prefix("weaved: "));
    assert!(
        first.is_some_and(|text| text.contains(cause)),
        "the cause should say \"{cause}\": {}",
        said.err
    );
    let second = second.strip_prefix("fix: ");
    assert!(
        second.is_some_and(|text| text.contains(fix)),
        "the fix should say \"{fix}\": {}",
        said.err
    );
}

/// Runs a line of `weavectl` on a host, which must refuse in exactly two lines and change nothing there.
#[track_caller]
fn refuses(host: &Host, line: &str, cause: &str, fix: &str) {
    let before = everything(host);
    let arguments: Vec<&str> = line.split_whitespace().collect();
    let said = host.ctl(&arguments);
    refused(&said, 1, cause, fix);
    assert_eq!(said.err.lines().count(), 2, "{said:?}");
    assert_eq!(everything(host), before, "`weavectl {line}` left something");
}

/// The host's network and what its node knows, without what changes by itself.
fn everything(host: &Host) -> [String; 4] {
    let mut status = host.status();
    for moving in ["traffic", "datagrams", "drops"] {
        status[moving].take();
    }
    [
        host.ns.snapshot(),
        status.to_string(),
        host.json(&["ps"]).to_string(),
        host.ctl(&["peers"]).out,
    ]
}

/// Tokens: not one, damaged, expired, used up, for a node that is a member already.
#[test]
fn bad_tokens_are_refused_with_cause_and_fix() {
    Lab::run(|lab| {
        let [h1, h2] = lab.cluster();
        let h3 = lab.host("h3", 3);
        h3.start();
        let again = "weavectl token create";
        refuses(&h3, "join open-sesame", "not a join token", again);
        let token = h1.ok(&["token", "create"]);
        refuses(
            &h3,
            &format!("join {}", damaged(token.trim())),
            "token",
            "copy it again",
        );
        let brief = h1.ok(&["token", "create", "--ttl", "1s"]);
        std::thread::sleep(Duration::from_millis(1500));
        refuses(&h3, &format!("join {brief}"), "expired", again);
        refuses(&h2, &format!("join {token}"), "already", "weavectl leave");
        for line in [
            "token create",
            "token list",
            "token revoke 0123",
            "admin add h1",
        ] {
            refuses(&h2, line, "not an admin", "h1");
        }
        refuses(&h1, "token revoke 0123", "no token", "token list");
        refuses(&h1, "admin add h9", "no member", "weavectl peers");
        refuses(&h1, "rmpeer h9", "no member", "weavectl peers");
        refuses(&h1, "rmpeer h2 --heir h9", "no member", "weavectl peers");
        refuses(&h1, "rmpeer h2 --heir h2", "of itself", "--heir");
        refuses(&h1, "rmpeer h1", "remove itself", "weavectl leave");
        refuses(&h1, "leave", "last admin", "admin add");
        let web = h2.attach("web");
        refuses(&h2, "leave", "in use by web", "leave --force");
        assert!(
            h2.ok(&["ipam", "check"]).contains("all agree"),
            "{}",
            web.name
        );
        for line in ["leave", "leave --force", "ipam", "ipam check"] {
            refuses(&h3, line, "not a member", "weavectl join");
        }
        h3.ok(&["join", token.trim()]);
        let h4 = lab.host("h4", 4);
        h4.start();
        refuses(&h4, &format!("join {token}"), "used", again);
    });
}

/// The same token with one character changed, near its end.
fn damaged(token: &str) -> String {
    let (head, tail) = token.split_at(token.len() - 5);
    let other = if tail.starts_with('a') { 'b' } else { 'a' };
    format!("{head}{other}{}", &tail[1..])
}

/// A token whose member is gone, and then one whose member's address belongs to another cluster.
#[test]
fn tokens_that_lead_nowhere() {
    Lab::run(|lab| {
        let [h1, h2] = ["h1", "h2"].map(|name| lab.host(name, name.as_bytes()[1] - b'0'));
        h1.start();
        h2.start();
        h1.ok(&["init"]);
        let token = h1.ok(&["token", "create"]);
        h1.end("TERM");
        let join = format!("--timeout 20s join {token}");
        refuses(&h2, &join, "192.168.77.1:6783", "weaved");
        std::fs::remove_dir_all(h1.state()).expect("the state can be removed");
        h1.start();
        h1.ok(&["init"]);
        refuses(&h2, &join, "192.168.77.1:6783", "token");
        refuses(&h1, "leave", "the only member", "leave --force");
        let fresh = h1.ok(&["token", "create"]);
        h2.ok(&["join", fresh.trim()]);
    });
}

/// Ranges: too small, too large, in use on the host, in use on a host that joins; a second cluster.
#[test]
fn ranges_that_are_no_good_or_taken_are_refused() {
    Lab::run(|lab| {
        let [h1, h2] = [lab.host("h1", 1), lab.host("h2", 2)];
        h1.ns.sh("ip route add 10.40.0.0/16 via 192.168.77.9");
        h2.ns.sh("ip route add 10.55.8.0/24 via 192.168.77.9");
        h1.start();
        h2.start();
        refuses(&h1, "init --range 10.32.0.0/30", "/30", "--range");
        refuses(&h1, "init --range 0.0.0.0/4", "/4", "--range");
        refuses(
            &h1,
            "init --range 10.48.0.0/12 --range6 fd00::/120",
            "/120",
            "--range6",
        );
        refuses(&h1, "init", "10.40.0.0/16", "--range");
        refuses(
            &h1,
            "init --range 192.168.0.0/16",
            "192.168.77.1/24",
            "--range",
        );
        refuses(
            &h1,
            "init --range 10.48.0.0/12 --range6 fd77::/48",
            "fd77::1/64",
            "--range6",
        );
        assert_eq!(h1.ctl(&["init", "--range", "10.48/12"]).code, 2);

        h1.ok(&["init", "--range", "10.48.0.0/12"]);
        refuses(&h1, "init", "already", "weavectl leave");
        let token = h1.ok(&["token", "create"]);
        refuses(&h2, &format!("join {token}"), "10.55.8.0/24", "route");
        h2.ns.sh("ip route del 10.55.8.0/24");
        h2.ok(&["join", token.trim()]);
    });
}

/// What needs a cluster, before there is one.
#[test]
fn a_node_without_a_cluster_says_so() {
    Lab::run(|lab| {
        let h1 = lab.host("h1", 1);
        h1.start();
        let free = h1.bare_container("free");
        let attach = format!("attach {} --name free", free.name());
        for line in [&attach, "token create", "expose"] {
            refuses(&h1, line, "cluster", "weavectl init");
        }
    });
}

/// Containers: unknown namespaces, taken names and interfaces, networks that do not exist.
#[test]
fn containers_that_cannot_be_attached_are_refused() {
    Lab::run(|lab| {
        let [h1] = lab.cluster();
        h1.attach("taken");
        let free = h1.bare_container("free");
        free.sh("ip link add eth0 type bridge");
        let path = free.path().display().to_string();
        let untouched = free.snapshot();
        for (words, cause, fix) in [
            ("no-such --name free", "no-such", "ip netns"),
            ("/run/no-such --name free", "/run/no-such", "path"),
            (
                "/etc/hostname --name free",
                "/etc/hostname is not a network namespace",
                "path",
            ),
            ("4194000 --name free", "4194000", "process"),
            (&format!("{path} --name free"), "eth0", "--ifname"),
            (&format!("{path} --name taken"), "taken", "detach"),
            (
                &format!("{path} --name free --network blue"),
                "blue",
                "weavectl network list",
            ),
        ] {
            refuses(&h1, &format!("attach {words}"), cause, fix);
        }
        assert_eq!(
            free.snapshot(),
            untouched,
            "a refused attach left something inside"
        );
        refuses(&h1, "detach nobody", "nobody", "weavectl ps");
        refuses(&h1, "hide", "not exposed", "weavectl expose");
    });
}

/// Addresses: taken, of another node, outside the range, and those that no container can have.
#[test]
fn addresses_that_cannot_be_had_are_refused() {
    Lab::run(|lab| {
        let [h1, h2] = lab.cluster();
        let (taken, remote) = (h1.attach("taken").v4, h2.attach("remote").v4.to_string());
        let free = h1.bare_container("free");
        let attach = |address: &str| format!("attach {} --name free --ip {address}", free.name());
        for address in [
            &taken.to_string(),
            "10.99.0.1",
            "10.32.0.0",
            "10.32.0.1",
            "10.47.255.255",
        ] {
            refuses(&h1, &attach(address), address, "--ip");
            refuses(&h1, &format!("expose --ip {address}"), address, "--ip");
        }
        refuses(&h1, &attach(&remote), "h2", "--ip");
        assert_eq!(
            free.sh("ip -o link | wc -l").trim(),
            "1",
            "something was left inside"
        );
    });
}

/// Words that are no arguments, a node that is not there, a node that does not answer.
#[test]
fn wrong_command_lines_are_refused_before_anything_happens() {
    Lab::run(|lab| {
        let h1 = lab.host("h1", 1);
        refused(&h1.ctl(&["status"]), 4, "no such socket", "start weaved");
        h1.start();
        for wrong in [
            &["attach"] as &[_],
            &["frobnicate"],
            &["token", "create", "--ttl", "soon"],
            &["attach", "x", "--name", "a/b"],
        ] {
            let said = h1.ctl(wrong);
            assert_eq!(
                (said.code, said.out.as_str()),
                (2, ""),
                "{wrong:?}: {said:?}"
            );
            assert!(
                said.err.starts_with("weavectl: ") && said.err.contains("\nfix: "),
                "{said:?}"
            );
        }
        ns::host(&format!("kill -STOP {}", h1.pid()));
        refused(
            &h1.ctl(&["--timeout", "300ms", "status"]),
            5,
            "no answer",
            "--timeout",
        );
        ns::host(&format!("kill -CONT {}", h1.pid()));
        h1.ok(&["init"]);
        h1.end("KILL");
        refused(&h1.ctl(&["status"]), 4, "nobody listens", "start weaved");
    });
}

/// Runs a node in the foreground that must refuse to start, and leave nothing.
#[track_caller]
fn does_not_start(host: &Host, command: &mut Command, cause: &str, fix: &str) {
    let before = host.ns.snapshot();
    let said = said(command.args(host.arguments()));
    refused(&said, 1, cause, fix);
    assert_eq!(
        host.ns.snapshot(),
        before,
        "a node that did not start left something"
    );
}

/// A node that cannot run says so at once: a port in use, a directory in use, no rights, no TUN device.
#[test]
fn a_node_that_cannot_start_says_why() {
    Lab::run(|lab| {
        let h1 = lab.host("h1", 1);
        let timed = |program: &str| {
            let mut command = h1.ns.command("timeout");
            command.args(["-s", "KILL", "10"]).arg(program);
            command
        };
        let holder = h1
            .ns
            .inside(|| UdpSocket::bind("0.0.0.0:6783"))
            .expect("the port is free");
        does_not_start(&h1, &mut timed(WEAVED), "6783", "--listen");
        drop(holder);

        does_not_start(
            &h1,
            timed("setpriv").args([
                "--bounding-set=-net_admin",
                "--inh-caps=-net_admin",
                "--",
                WEAVED,
            ]),
            "CAP_NET_ADMIN",
            "root",
        );
        let copy = lab.dir().join("weaved");
        std::fs::copy(WEAVED, &copy).expect("the program can be copied");
        std::fs::create_dir_all(h1.state()).expect("a directory can be made");
        ns::host(&format!(
            "chmod 755 {}; chown nobody {}",
            lab.dir().display(),
            h1.state().display()
        ));
        let nobody = ["--reuid=nobody", "--regid=nogroup", "--clear-groups", "--"];
        does_not_start(
            &h1,
            timed("setpriv").args(nobody).arg(copy),
            "CAP_NET_ADMIN",
            "root",
        );
        ns::host(&format!("rm -r {}", h1.state().display()));

        let without_tun = format!("mount -t tmpfs none /dev/net && exec {WEAVED} \"$@\"");
        does_not_start(
            &h1,
            timed("unshare").args(["--mount", "sh", "-c", &without_tun, "sh"]),
            "/dev/net/tun",
            "modprobe tun",
        );

        ns::host(&format!("touch {}", h1.state().display()));
        does_not_start(
            &h1,
            &mut timed(WEAVED),
            &h1.state().display().to_string(),
            "--state-dir",
        );
        ns::host(&format!("rm {}", h1.state().display()));

        h1.start();
        h1.ok(&["init"]);
        does_not_start(&h1, &mut timed(WEAVED), "in use", "--state-dir");
        h1.ok(&["status"]);
    });
}

/// A node with everything of its own but the network namespace, where another runs: it would share that one's devices.
/// It leaves no trace, and the first goes on, killed and started again too; it starts when the first has ended.
#[test]
fn a_second_node_in_a_network_namespace_does_not_start() {
    Lab::run(|lab| {
        let first = lab.host("h1", 1);
        first.start();
        first.ok(&["init"]);
        let own = lab.dir().join("second");
        let mut second = first.ns.command("timeout");
        second.args(["10", WEAVED, "--name", "second", "--listen", "[::]:7000"]);
        second.arg("--state-dir").arg(own.join("state"));
        second.arg("--socket").arg(own.join("sock"));
        let refuses = |second: &mut Command| {
            let before = everything(&first);
            let cause = "another weaved runs in it";
            refused(&said(second), 1, cause, "network namespace of its own");
            assert!(!own.exists(), "a node that did not start left something");
            assert_eq!(everything(&first), before);
        };
        refuses(&mut second);
        first.end("KILL");
        first.start();
        refuses(&mut second);
        first.end("TERM");
        let mut second = second.spawn().expect("weaved starts");
        wait_for("the namespace is free", Duration::from_secs(5), || {
            own.join("sock").exists()
        });
        ns::host(&format!("kill {}", second.id()));
        assert!(second.wait().expect("it ends").code().is_some());
    });
}
