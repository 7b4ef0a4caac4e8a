//! A node that ends, planned or not, takes nothing with it: containers keep talking, and what crossed hosts goes on.

use std::time::Duration;

use crate::lab::traffic::Conversation;
use crate::lab::{Container, Host, Lab, await_mesh};

/// How long a TCP connection across hosts may stand still once the node is back: its own retransmission timer, which
/// has grown while the node was away, and the handshake.
const BACK: Duration = Duration::from_secs(10);

/// What a restart must not change on a host.
fn kept(host: &Host) -> [String; 4] {
    let status = host.status();
    let attachments = host.json(&["ps"]);
    [
        status["id"].to_string(),
        status["cluster"]["blocks"].to_string(),
        attachments["attachments"].to_string(),
        host.ns.snapshot(),
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
        for (host, signal) in [(h1, "KILL"), (h2, "KILL"), (h1, "TERM"), (h2, "TERM")] {
            let before = kept(host);
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
            for flow in across.iter().chain(&local) {
                flow.assert_goes_on(BACK);
            }
            assert_eq!(kept(host), before, "what {signal} on {} left", host.name);
            a.reaches(&c, 1472);
            c.reaches(&a, 1472);
        }
        for flow in across.into_iter().chain(local) {
            flow.finish();
        }
    });
}

/// Both nodes killed at once: everything comes back, and new addresses do not collide with old ones.
#[test]
fn both_nodes_at_once() {
    Lab::run(|lab| {
        let hosts = lab.cluster::<2>();
        let [h1, h2] = &hosts;
        let old = [h1.attach("a"), h2.attach("b")];
        let flow = talk(&old[0], &old[1], 0);
        flow.assert_goes_on(Duration::from_secs(5));
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
    });
}

/// A conversation between two containers, in the first family or the second.
fn talk(from: &Container, to: &Container, family: usize) -> Conversation {
    Conversation::start(&from.ns, (&to.ns, to.addresses()[family]))
}
