//! Clusters whose hosts lose one another by halves, and wires that lose every third packet.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use crate::lab::traffic::{Conversation, try_ping, wait_for};
use crate::lab::{Container, Host, Lab, await_mesh, form};
use crate::relay::{both, cut};

/// For what only has to happen some time.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long ten rounds may take while TCP backs off again and again.
const LOSSY: Duration = Duration::from_secs(120);

/// Whether a host has no working session with another one.
fn misses(host: &Host, other: &Host) -> bool {
    let seen = host.connection(&other.name);
    seen.is_some_and(|seen| seen["state"] != "connected")
}

/// Containers that a half makes while it is alone: four on each host, each with the half's others in reach.
fn go_on_alone(half: &[Host]) -> Vec<Container> {
    let names = |host: &Host| {
        (1..=4)
            .map(|n| format!("{}n{n}", host.name))
            .collect::<Vec<_>>()
    };
    let made = half
        .iter()
        .flat_map(|host| names(host).into_iter().map(|name| host.attach(&name)));
    let made: Vec<Container> = made.collect();
    made[0].reaches(&made[made.len() - 1], 56);
    made
}

/// Two halves of a cluster are cut apart. Both go on and give addresses; when they meet again no address was given twice,
/// everybody reaches everybody, and a connection between the halves that waited goes on.
#[test]
fn halves_that_are_cut_apart_both_go_on_and_give_no_address_twice() {
    Lab::run(|lab| {
        let hosts: [Host; 4] = lab.cluster();
        let first: Vec<Container> = hosts
            .iter()
            .map(|host| host.attach(&format!("{}f", host.name)))
            .collect();
        let across = Conversation::start(&first[0].ns, (&first[3].ns, first[3].v4.into()));
        let within = Conversation::start(&first[2].ns, (&first[3].ns, first[3].v6.into()));
        across.assert_goes_on(PATIENCE);
        let between = [(1, 3), (1, 4), (2, 3), (2, 4)].map(|(a, b)| both(a, b));
        cut(lab, between.as_flattened());
        for (host, other) in [(0, 2), (1, 3), (3, 0)] {
            wait_for("the other half is missed", PATIENCE, || {
                misses(&hosts[host], &hosts[other])
            });
        }
        let (left, right) = hosts.split_at(2);
        let mut all = first;
        for half in [left, right] {
            all.extend(go_on_alone(half));
            within.assert_goes_on(PATIENCE);
        }
        cut(lab, &[]);
        await_mesh(&hosts);
        across.assert_goes_on(PATIENCE);
        let addresses: BTreeSet<IpAddr> = all.iter().flat_map(Container::addresses).collect();
        assert_eq!(addresses.len(), 2 * all.len(), "an address was given twice");
        for other in &all[1..] {
            wait_for(&format!("{} is reached", other.name), PATIENCE, || {
                let both = other.addresses();
                both.iter()
                    .all(|to| try_ping(&all[0].ns, *to, 56).status.success())
            });
        }
        for host in &hosts {
            host.ok(&["ipam", "check"]);
        }
        across.finish();
        within.finish();
    });
}

/// The switch loses three in ten datagrams each way: nodes join, stay connected, say what they lose, and TCP goes on.
#[test]
fn a_wire_that_loses_three_in_ten() {
    Lab::run(|lab| {
        lab.switch().sh(
            "nft -f - <<'END'
table bridge lossy {
 chain between { type filter hook forward priority 0; meta l4proto udp numgen random mod 10 < 3 drop; }
}
END",
        );
        let hosts: [Host; 2] = [1, 2].map(|n| lab.host(&format!("h{n}"), n));
        hosts.iter().for_each(Host::start);
        form(&hosts);
        let [a, b] = [hosts[0].attach("a"), hosts[1].attach("b")];
        let talk = Conversation::start(&a.ns, (&b.ns, b.v4.into()));
        talk.assert_goes_on(LOSSY);
        let said =
            a.ns.try_sh(&format!("ping -n -q -c 100 -i 0.05 -W 1 {}", b.v6));
        let said = String::from_utf8_lossy(&said.stdout).into_owned();
        let words = said.split_whitespace().collect::<Vec<_>>();
        let at = words.iter().position(|word| *word == "received,");
        let answers: u32 = at
            .and_then(|at| words[at - 1].parse().ok())
            .expect("a count");
        println!("{answers} of 100 echoes came back");
        assert!(
            (20..80).contains(&answers),
            "half of them are lost, not all: {said}"
        );
        wait_for("the loss is shown", PATIENCE, || {
            let seen = hosts[0].json(&["connections"]);
            let to = &seen["connections"][0];
            to["state"] == "connected" && to["path"]["loss_permille"].as_u64() > Some(50)
        });
        lab.switch().sh("nft delete table bridge lossy");
        talk.assert_goes_on(PATIENCE);
        talk.finish();
    });
}
