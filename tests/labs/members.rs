//! Who is a member and who may say so: tokens taken back, other nodes that invite, members removed for good.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::lab::beat::Beat;
use crate::lab::traffic::{try_ping, wait_for};
use crate::lab::{Host, Lab, await_mesh_of};

/// How long a word may take to reach every node.
const SPREAD: Duration = Duration::from_secs(20);
/// How long after its removal a node may still get something, wherever the others are.
const CUT: Duration = Duration::from_secs(2);

/// The names in a list of members.
fn names(list: &Value) -> Vec<String> {
    let list = list.as_array().expect("a list");
    let names = list.iter().filter_map(|one| one["name"].as_str());
    names.map(str::to_owned).collect()
}

fn members(host: &Host) -> Vec<String> {
    names(&host.json(&["peers"])["peers"])
}

/// Tokens are listed with who came in by them, and one that is taken back lets nobody in.
#[test]
fn a_token_that_was_taken_back_is_worth_nothing() {
    Lab::run(|lab| {
        let [h1, _h2] = lab.cluster();
        let h3 = lab.host("h3", 3);
        h3.start();
        let token = h1.ok(&["token", "create", "--uses", "2"]);
        let list = h1.json(&["token", "list"]);
        let tokens = list["tokens"].as_array().expect("a list");
        assert_eq!(tokens.len(), 2, "{list}");
        let used = tokens.iter().find(|one| one["state"] == "used-up");
        assert_eq!(names(&used.expect("h2's")["joined"]), ["h2"]);
        let good = tokens.iter().find(|one| one["state"] == "good");
        let id = good.and_then(|one| one["id"].as_str()).expect("an id");
        assert_eq!(h1.json(&["token", "revoke", &id[..8]])["state"], "revoked");
        let said = h3.ctl(&["join", token.trim()]);
        assert!(said.code == 1 && said.err.contains("revoked"), "{said:?}");
        let logged = |host: &Host, what: &str| {
            let log = std::fs::read_to_string(lab.dir().join(format!("{}.log", host.name)));
            log.expect("the log is there").matches(what).count()
        };
        assert_eq!(
            logged(&h1, "a joiner is refused"),
            1,
            "once, however often it asked"
        );
        assert_eq!(logged(&h3, "this node did not join"), 1);
        let shown = h1.ok(&["token", "list"]);
        assert!(
            shown.contains("revoked") && shown.contains("used up"),
            "{shown}"
        );
    });
}

/// The first node is lost: an admin that it had made invites and removes it, and its addresses are not lost.
#[test]
fn a_cluster_outlives_the_node_that_made_it() {
    Lab::run(|lab| {
        let [h1, h2] = lab.cluster();
        let web = h2.attach("web");
        h1.ok(&["admin", "add", "h2"]);
        assert_eq!(names(&h1.json(&["admin", "list"])["admins"]), ["h1", "h2"]);
        h1.end("KILL");
        let h3 = lab.host("h3", 3);
        h3.start();
        let token = h2.ok(&["token", "create"]);
        h3.ok(&["join", token.trim()]);
        let db = h3.attach("db");
        web.reaches(&db, 56);
        let done = h2.json(&["rmpeer", "h1", "--heir", "h3"]);
        assert_eq!(
            (&done["removed"]["name"], &done["heir"]["name"]),
            (&"h1".into(), &"h3".into())
        );
        await_mesh_of(&[&h2, &h3]);
        wait_for("h3 owns what h1 had", SPREAD, || {
            let cluster = &h3.status()["cluster"];
            cluster["addresses"].as_u64() > Some(900_000)
        });
        web.reaches(&db, 56);
        assert_eq!(h2.ctl(&["status"]).code, 0, "nothing is amiss");
    });
}

/// A removed node that lives: everybody cuts it, its packets get nothing, and it knows.
#[test]
fn a_removed_node_gets_nothing() {
    Lab::run(|lab| {
        let [h1, h2, h3] = lab.cluster();
        let [a, b, c] = [h1.attach("a"), h2.attach("b"), h3.attach("c")];
        c.reaches(&a, 56);
        b.reaches(&c, 56);
        let pairs = [(&a, &c), (&c, &a), (&b, &c), (&c, &b)];
        let beats =
            pairs.map(|(from, to)| Beat::start((&from.ns, from.v4.into()), (&to.ns, to.v4.into())));
        let begun = Instant::now();
        h1.ok(&["rmpeer", "h3"]);
        for host in [&h1, &h2] {
            wait_for("h3 is a member no more", SPREAD, || {
                members(host).len() == 2
            });
        }
        std::thread::sleep(CUT.saturating_sub(begun.elapsed()) + CUT / 4);
        for (beat, (from, to)) in beats.into_iter().zip(pairs) {
            let last = beat.finish().last().copied();
            let after = last.map(|at| at.saturating_duration_since(begun));
            let after = after.expect("it arrived while all were members");
            println!(
                "{} last heard {} {after:.2?} after the removal began",
                to.name, from.name
            );
            assert!(
                after <= CUT,
                "{} heard {} for {after:?}",
                to.name,
                from.name
            );
        }
        for other in [&a, &b] {
            let heard = try_ping(&c.ns, other.v4.into(), 56);
            assert!(!heard.status.success(), "c still reaches {}", other.name);
        }
        a.reaches(&b, 56);
        let problems = h3.status()["problems"].to_string();
        assert!(
            problems.contains("was removed from the cluster"),
            "{problems}"
        );
        let said = h3.ctl(&["attach", "1", "--name", "d"]);
        assert!(
            said.code == 1 && said.err.contains("leave --force"),
            "{said:?}"
        );
        wait_for("h1 has what h3 owned", SPREAD, || {
            h1.ctl(&["status"]).code == 0
        });
    });
}

/// A node that was removed while it was cut off, and comes back without knowing: its handshakes are refused and counted,
/// the others log it once, and it is told.
#[test]
fn a_node_that_was_removed_behind_its_back_stays_outside() {
    Lab::run(|lab| {
        let [h1, h2, h3] = lab.cluster();
        let [a, c] = [h1.attach("a"), h3.attach("c")];
        lab.switch().sh("ip link set p3 down");
        h1.ok(&["rmpeer", "h3"]);
        wait_for("h2 knows", SPREAD, || members(&h2).len() == 2);
        lab.switch().sh("ip link set p3 up");
        let refused = |host: &Host| host.status()["drops"]["removed"].as_u64() > Some(0);
        wait_for("h3 knocks in vain", SPREAD, || refused(&h1) && refused(&h2));
        let told = || h3.status()["problems"].to_string();
        wait_for("h3 says why", SPREAD, || {
            told().contains("was removed from the cluster while it was away")
        });
        let often = |host: &Host| host.status()["drops"]["removed"].as_u64() > Some(2);
        wait_for("h3 goes on", SPREAD, || often(&h1) && often(&h2));
        for (host, what) in [
            (&h1, "a node that was removed comes back"),
            (&h2, "a node that was removed comes back"),
            (&h3, "it was removed from the cluster while it was away"),
        ] {
            let log = std::fs::read_to_string(lab.dir().join(format!("{}.log", host.name)));
            let count = log.expect("the log is there").matches(what).count();
            assert_eq!(count, 1, "{}: {what}", host.name);
        }
        let heard = try_ping(&c.ns, a.v4.into(), 56);
        assert!(!heard.status.success(), "c still reaches a");
        assert_eq!(members(&h1), ["h1", "h2"]);
    });
}

/// A node leaves and joins again: nothing of the old cluster is left on its host, its addresses are used by others.
#[test]
fn a_node_that_leaves_takes_nothing_along_and_may_come_back() {
    Lab::run(|lab| {
        let [h1, h2] = lab.cluster();
        let a = h1.attach("a");
        h2.attach("b");
        h2.ok(&["expose"]);
        h2.ok(&[
            "service",
            "create",
            "web",
            "--port",
            "80",
            "--selector",
            "app=web",
        ]);
        let before = h2.status()["id"].clone();
        let said = h2.ctl(&["leave"]);
        assert!(said.code == 1 && said.err.contains("in use"), "{said:?}");
        let left = h2.json(&["leave", "--force"]);
        assert_eq!(
            (&left["heir"]["name"], &left["detached"]),
            (&"h1".into(), &1.into())
        );
        wait_for("nothing of it is on the host", SPREAD, || {
            let host = h2.ns.snapshot();
            !host.contains("10.32.") && !host.contains("10.96.")
        });
        wait_for("h1 is alone", SPREAD, || members(&h1) == ["h1"]);
        let ipam = h1.json(&["ipam"]);
        assert_eq!(ipam["nodes"][0]["addresses"], 1 << 20, "{ipam}");
        assert_eq!(ipam["unowned_addresses"], 0);
        assert_eq!(h2.ctl(&["status"]).code, 3, "it is in no cluster");
        let token = h1.ok(&["token", "create"]);
        h2.ok(&["join", token.trim()]);
        await_mesh_of(&[&h1, &h2]);
        assert_ne!(h2.status()["id"], before, "another node of the same name");
        for host in [&h1, &h2] {
            let shown = host.json(&["service", "list"]);
            assert_eq!(shown["services"], serde_json::json!([]), "{shown}");
        }
        h2.attach("c").reaches(&a, 56);
    });
}

/// Whose addresses are whose, and what is said when journal, leases and kernel do not agree.
#[test]
fn addresses_are_accounted_for() {
    Lab::run(|lab| {
        let [h1, h2] = lab.cluster();
        let [web, db] = ["web", "db"].map(|name| h2.attach(name));
        let ipam = h2.json(&["ipam", "show"]);
        let nodes = ipam["nodes"].as_array().expect("a list");
        assert_eq!(nodes[0]["node"]["name"], "h2");
        assert_eq!(nodes[0]["used"], 2);
        let all: u64 = nodes
            .iter()
            .filter_map(|node| node["addresses"].as_u64())
            .sum();
        assert_eq!(
            all + ipam["unowned_addresses"].as_u64().expect("a number"),
            1 << 20
        );
        assert!(h1.ok(&["ipam"]).contains("h2"));
        let make = "service create web --port 80 --selector app=web";
        h2.ok(&make.split(' ').collect::<Vec<_>>());
        wait_for("the host has an address for it", SPREAD, || {
            h2.json(&["ipam", "show"])["nodes"][0]["used"] == 3
        });
        let checked = h2.json(&["ipam", "check"]);
        assert_eq!(
            (&checked["checked"], &checked["findings"]),
            (&2.into(), &serde_json::json!([]))
        );
        web.ns.sh(&format!("ip addr del {}/12 dev eth0", web.v4));
        db.ns.sh("ip link del eth0");
        let said = h2.ctl(&["ipam", "check", "-o", "json"]);
        assert_eq!(said.code, 3, "{said:?}");
        let found: Value = serde_json::from_str(&said.out).expect("it is JSON");
        let of: Vec<&str> = found["findings"]
            .as_array()
            .expect("a list")
            .iter()
            .filter_map(|one| one["of"].as_str())
            .collect();
        assert!(of.iter().any(|of| of.contains("web")), "{said:?}");
        assert!(of.iter().any(|of| of.contains("db")), "{said:?}");
    });
}
