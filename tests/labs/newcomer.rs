//! The way of a newcomer, from bare hosts to a network that tested itself, timed.

use std::time::{Duration, Instant};

use crate::lab::Lab;
use crate::lab::node::WEAVECTL;

/// How long it may take, on a machine that does other things as well.
const DEADLINE: Duration = Duration::from_secs(60);

/// Look whether the hosts will do, start a node on each, make a cluster, join it, and let the network test itself: the
/// words of the README, none of which needs to know anything beforehand.
#[test]
fn from_bare_hosts_to_a_tested_network() {
    Lab::run(|lab| {
        let hosts = ["h1", "h2"].map(|name| lab.host(name, if name == "h1" { 1 } else { 2 }));
        let start = Instant::now();
        let told = |step: &str| println!("{:>6.2} s  {step}", start.elapsed().as_secs_f64());
        for host in &hosts {
            let checked = host.ns.try_sh(&format!("{WEAVECTL} check --pre"));
            let words = String::from_utf8_lossy(&checked.stdout);
            assert!(matches!(checked.status.code(), Some(0 | 3)), "{words}");
        }
        told("both hosts are checked");
        hosts.iter().for_each(crate::lab::Host::start);
        told("both nodes run");
        let [h1, h2] = &hosts;
        h1.ok(&["init"]);
        let token = h1.ok(&["token", "create"]);
        h2.ok(&["join", token.trim()]);
        told("they are one cluster");
        let tested = loop {
            let tested = h1.ctl(&["test", "--quick"]);
            // The session may still be on its way; nothing else may be wrong, or it stays so.
            if tested.code == 0 || start.elapsed() > DEADLINE {
                break tested;
            }
        };
        told("the network has tested itself");
        println!("{}", tested.out);
        assert_eq!(tested.code, 0, "{tested:?}");
        assert!(start.elapsed() < DEADLINE, "{:?}", start.elapsed());
    });
}
