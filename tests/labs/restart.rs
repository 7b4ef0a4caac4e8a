//! A node that ends, planned or not, takes nothing with it: containers keep talking, and what crossed hosts goes on.

use std::time::Duration;

use crate::lab::ns;
use crate::lab::traffic::{Conversation, try_ping, wait_for};
use crate::lab::{Container, Host, Lab, await_mesh};

/// How long a TCP connection across hosts may stand still once the node is back: its own retransmission timer, which
/// has grown while the node was away, and the handshake.
const BACK: Duration = Duration::from_secs(10);

/// What a restart must not change on a host and in a container of it.
fn kept(host: &Host, container: &Container) -> [String; 5] {
    let status = host.status();
    let attachments = host.json(&["ps"]);
    [
        status["id"].to_string(),
        status["cluster"]["blocks"].to_string(),
        attachments["attachments"].to_string(),
        host.ns.snapshot(),
        container.ns.snapshot(),
    ]
}

/// Killed without warning and restarted, in turn on both hosts; then stopped and started as planned.
#[test]
fn connections_outlive_the_node() {
    Lab::run(|lab| {
        let hosts = lab.cluster::<2>();
        let [h1, h2] = &hosts;
        let [a, b, c] = [h1.attach("a"), h1.attach("b"), h2.attach("c")];
        h1.ok(&["expose"]);
        let local = [talk(&a, &b, 0), talk(&b, &a, 1)];
        let across = [talk(&a, &c, 0), talk(&c, &a, 1), talk(&c, &b, 0)];
        let heavy = Conversation::start_of(60_000, &b.ns, (&c.ns, c.v6.into()));
        let ends = [
            (h1, &a, "KILL"),
            (h2, &c, "KILL"),
            (h1, &b, "TERM"),
            (h2, &c, "TERM"),
        ];
        for (host, container, signal) in ends {
            let before = kept(host, container);
            let status = host.end(signal);
            assert!(
                signal == "KILL" || status.success(),
                "a planned stop ended with {status}"
            );
            std::thread::sleep(Duration::from_millis(300));
            for flow in &local {
                flow.assert_goes_on(Duration::from_secs(1));
            }
            host.start();
            await_mesh(&hosts);
            for flow in across.iter().chain(&local).chain([&heavy]) {
                flow.assert_goes_on(BACK);
            }
            let after = kept(host, container);
            assert_eq!(after, before, "what {signal} on {} changed", host.name);
            a.reaches(&c, 1472);
            c.reaches(&a, 1472);
        }
        for flow in across.into_iter().chain(local).chain([heavy]) {
            flow.finish();
        }
    });
}

/// Both nodes killed at once: everything comes back, new addresses do not collide with old ones, and a token that was
/// given before still lets a node in.
#[test]
fn connections_survive_killing_every_node() {
    Lab::run(|lab| {
        let hosts = lab.cluster::<2>();
        let [h1, h2] = &hosts;
        let old = [h1.attach("a"), h2.attach("b")];
        let flow = talk(&old[0], &old[1], 0);
        flow.assert_goes_on(Duration::from_secs(5));
        let token = h1.ok(&["token", "create"]);
        for host in &hosts {
            host.end("KILL");
        }
        hosts.iter().for_each(Host::start);
        await_mesh(&hosts);
        flow.assert_goes_on(BACK);
        flow.finish();
        let new = [h1.attach("c"), h2.attach("d")];
        for fresh in &new {
            assert!(
                old.iter().all(|known| known.v4 != fresh.v4),
                "{} was given twice",
                fresh.v4
            );
            for known in &old {
                fresh.reaches(known, 56);
            }
        }
        h1.ok(&["detach", "a"]);
        assert_eq!(
            h1.json(&["ps"])["attachments"].as_array().map(Vec::len),
            Some(1)
        );
        let h3 = lab.host("h3", 3);
        h3.start();
        h3.ok(&["join", token.trim()]);
    });
}

/// A member that is gone is shown as gone, with the exit code of a degraded node, until it is back.
#[test]
fn a_member_that_is_gone_is_seen() {
    Lab::run(|lab| {
        let hosts = lab.cluster::<2>();
        let [h1, h2] = &hosts;
        let [a, b] = [h1.attach("a"), h2.attach("b")];
        a.reaches(&b, 56);
        h2.end("KILL");
        wait_for("h1 misses h2", Duration::from_secs(15), || {
            try_ping(&a.ns, b.v4.into(), 56);
            h1.ctl(&["status"]).code == 3
        });
        let status = h1.status();
        assert_eq!(status["verdict"], "degraded");
        assert!(status["problems"][0].to_string().contains("h2"), "{status}");
        let connections = h1.json(&["connections"]);
        assert_eq!(connections["connections"][0]["state"], "unreachable");
        h2.start();
        await_mesh(&hosts);
        a.reaches(&b, 56);
        assert_eq!(h1.ctl(&["status"]).code, 0);
    });
}

/// The node that made the cluster is gone: the others go on, and even one that restarts finds the rest again.
#[test]
fn members_do_without_the_first_node() {
    Lab::run(|lab| {
        let [h1, h2, h3] = lab.cluster();
        let [a, b] = [h2.attach("a"), h3.attach("b")];
        let flow = talk(&a, &b, 0);
        h1.end("KILL");
        flow.assert_goes_on(Duration::from_secs(1));
        h3.end("KILL");
        h3.start();
        flow.assert_goes_on(BACK);
        flow.finish();
        let late = h3.attach("late");
        late.reaches(&a, 1472);
    });
}

/// After a reboot containers, devices, routes and rules are gone; the node comes back as the same member with the same
/// prefix, frees what is gone, and gives its addresses again.
#[test]
fn a_rebooted_host_is_the_same_member_and_frees_what_is_gone() {
    Lab::run(|lab| {
        let hosts = lab.cluster::<2>();
        let [h1, h2] = &hosts;
        let [lost, there] = [h1.attach("lost"), h2.attach("there")];
        let before = h1.status();
        h1.end("KILL");
        ns::host(&format!("ip netns del {}", lost.ns.name()));
        h1.ns.sh(
            "ip link del weave0; nft flush ruleset; sysctl -qw net.ipv4.ip_forward=0; \
                 for p in 87 88; do ip -4 route flush proto $p; ip -6 route flush proto $p; done",
        );
        assert!(
            !h1.ns.sh("ip route").contains("10."),
            "the host is as after a reboot"
        );
        h1.start();
        await_mesh(&hosts);
        let after = h1.status();
        assert_eq!(after["id"], before["id"]);
        assert_eq!(after["cluster"]["blocks"], before["cluster"]["blocks"]);
        wait_for("what is gone is freed", Duration::from_secs(90), || {
            h1.status()["swept"] == 1
        });
        assert_eq!(h1.json(&["ps"])["attachments"], serde_json::json!([]));
        let fresh = h1.attach_with("fresh", &["--ip", "10.32.0.77"]);
        fresh.reaches(&there, 1472);
        let again = h1.attach_with("lost-again", &["--ip", &lost.v4.to_string()]);
        there.reaches(&again, 1472);
    });
}

/// A conversation between two containers, in the first family or the second.
fn talk(from: &Container, to: &Container, family: usize) -> Conversation {
    Conversation::start(&from.ns, (&to.ns, to.addresses()[family]))
}
