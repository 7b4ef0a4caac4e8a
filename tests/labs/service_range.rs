//! Services whose addresses are lost get others: from the node that made them, as far as there are any.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use crate::lab::traffic::wait_for;
use crate::lab::{Host, Lab};
use crate::odd_services::{create, server};
use crate::services::{SOON, balances};

/// The smallest range there is: it has room for [`ROOM`] Services.
const RANGE: &str = "10.97.0.0/28";
const ROOM: usize = 14;

/// The addresses that a host has for Services, of those that have any.
fn addresses(host: &Host) -> BTreeSet<SocketAddr> {
    let listed = host.json(&["service", "list"]);
    let services = listed["services"].as_array().expect("a list");
    let first = |service: &serde_json::Value| {
        let address: IpAddr = service["addresses"][0].as_str()?.parse().ok()?;
        Some(SocketAddr::new(address, 80))
    };
    services.iter().filter_map(first).collect()
}

/// Whether so many Services have an address, each its own, of the range, and the same on every host.
fn are_served(hosts: &[Host], count: usize) -> bool {
    let of_first = addresses(&hosts[0]);
    let inside = |at: &SocketAddr| at.ip().to_string().starts_with("10.97.0.");
    of_first.len() == count
        && of_first.iter().all(inside)
        && hosts.iter().all(|host| addresses(host) == of_first)
}

/// All nodes are started with another range, which is too small by one: all Services but that one get addresses there
/// without anybody doing anything, and so does that one as soon as another goes.
#[test]
fn services_move_to_another_range_and_into_what_becomes_free() {
    Lab::run(|lab| {
        let hosts: [Host; 2] = lab.cluster();
        let one = server(&hosts[0], "one");
        let endpoint = [format!("{}:8080", one.v4)];
        for number in 0..=ROOM {
            create(&hosts[number % 2], &format!("s{number}"), &endpoint);
        }
        wait_for("all hosts know all Services", SOON, || {
            hosts.iter().all(|host| addresses(host).len() == ROOM + 1)
        });
        for host in &hosts {
            host.end("TERM");
            host.start_with(&["--service-range", RANGE]);
        }
        wait_for("addresses of the other range", SOON, || {
            are_served(&hosts, ROOM)
        });
        let client = hosts[1].attach("client");
        for at in addresses(&hosts[0]) {
            balances(&client.ns, at, &["one"]);
        }
        let list = hosts[0].json(&["service", "list"]);
        let served = list["services"].as_array().expect("a list");
        let served = served
            .iter()
            .find(|one| one["addresses"][0].is_string())
            .expect("a Service with an address");
        hosts[0].ok(&["service", "rm", served["name"].as_str().expect("a name")]);
        wait_for("what is free is taken", SOON, || {
            hosts[0].json(&["service", "list"])["services"]
                .as_array()
                .is_some_and(|all| all.len() == ROOM)
                && are_served(&hosts, ROOM)
        });
        for at in addresses(&hosts[0]) {
            balances(&client.ns, at, &["one"]);
        }
    });
}
