//! Changing the cluster's secret under traffic, and what becomes of those who miss it.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::lab::traffic::{Conversation, Load, wait_for};
use crate::lab::{Host, Lab, await_mesh_of};

/// How long the secret before is accepted, in these labs.
const OVERLAP: Duration = Duration::from_secs(12);
/// For what only has to happen some time.
const PATIENCE: Duration = Duration::from_secs(60);
/// Bytes a second of a load.
const RATE: usize = 4 << 20;

fn secret(host: &Host) -> Value {
    host.json(&["secret", "show"])
}

/// Waits until a node accepts nothing but the secret of `epoch`, and all members that it knows but `behind` have that.
#[track_caller]
fn await_only(host: &Host, epoch: u64, behind: usize) {
    wait_for("the secret before is given up", PATIENCE, || {
        let state = secret(host);
        state["epoch"] == epoch
            && state["previous_until_at"].is_null()
            && state["behind"]
                .as_array()
                .is_some_and(|all| all.len() == behind)
    });
}

fn problems(host: &Host) -> String {
    host.status()["problems"].to_string()
}

/// Two streams and a conversation go on across hosts while the secret is changed, and afterwards by the new one alone.
#[test]
fn a_rotation_under_traffic_breaks_nothing() {
    Lab::run(|lab| {
        let [h1, h2, h3] = lab.cluster();
        let [a, b] = [h1.attach("a"), h2.attach("b")];
        let early = h1.ok(&["token", "create", "--ttl", "2h"]);
        let talk = Conversation::start(&a.ns, (&b.ns, b.v4.into()));
        let loads = [
            Load::start(RATE, &a.ns, (&b.ns, b.v6.into())),
            Load::start(RATE, &b.ns, (&a.ns, a.v4.into())),
        ];
        let start = Instant::now();
        let overlap = format!("{}s", OVERLAP.as_secs());
        let said = h1.ok(&["secret", "rotate", "--overlap", &overlap]);
        assert!(said.contains("secret number 2"), "{said}");
        for host in [&h1, &h2, &h3] {
            await_only(host, 2, 0);
        }
        assert!(start.elapsed() >= OVERLAP - Duration::from_secs(2));
        // A restart makes all sessions of a node anew: by the new secret, there is no other.
        h3.end("KILL");
        h3.start();
        await_mesh_of(&[&h1, &h2, &h3]);
        talk.assert_goes_on(PATIENCE);
        let still = loads.each_ref().map(Load::longest_stall);
        println!("rotation: no stream stood still for longer than {still:?}");
        talk.finish();
        loads.into_iter().for_each(Load::finish);
        let h4 = lab.host("h4", 4);
        h4.start();
        let refused = h4.ctl(&["join", early.trim()]);
        assert!(
            refused.code == 1 && refused.err.contains("the token has expired"),
            "a token of before: {refused:?}"
        );
    });
}

/// One node is back before the old secret is given up, another after: the first takes part again, the second is refused,
/// and both sides say why and what to do.
#[test]
fn who_misses_a_rotation_is_told_so() {
    Lab::run(|lab| {
        let [h1, h2, h3] = lab.cluster();
        h2.end("KILL");
        h3.end("KILL");
        let overlap = format!("{}s", OVERLAP.as_secs());
        h1.ok(&["secret", "rotate", "--overlap", &overlap]);
        assert_eq!(secret(&h1)["behind"].as_array().map(Vec::len), Some(2));
        h2.start();
        wait_for("h2 has the new secret", OVERLAP, || {
            secret(&h2)["epoch"] == 2
        });
        await_only(&h1, 2, 1);
        h3.start();
        wait_for("h3 is told", PATIENCE, || {
            problems(&h3).contains("missed a change of the cluster's secret")
        });
        assert!(problems(&h3).contains("weavectl leave --force"));
        wait_for("others say it", PATIENCE, || {
            problems(&h1).contains("h3 is refused") || problems(&h2).contains("h3 is refused")
        });
        let refused = [&h1, &h2].map(|host| host.status()["drops"]["old_secret"].as_u64());
        assert!(refused.iter().flatten().sum::<u64>() > 0, "{refused:?}");
        let said = |host: &Host| {
            let log = std::fs::read_to_string(lab.dir().join(format!("{}.log", host.name)));
            let log = log.expect("the log is there");
            log.matches("missed a change of the cluster's secret")
                .count()
        };
        assert!(
            said(&h1) <= 1 && said(&h2) <= 1 && said(&h3) == 1,
            "each once"
        );
        // What it was told to do.
        h3.ok(&["leave", "--force"]);
        h1.ok(&["rmpeer", "h3"]);
        let token = h1.ok(&["token", "create"]);
        h3.ok(&["join", token.trim()]);
        await_mesh_of(&[&h1, &h2, &h3]);
        assert_eq!(secret(&h3)["epoch"], 2);
    });
}
