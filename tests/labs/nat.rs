//! Nodes whose address is not what they know of it: behind a router that translates, or on the move.

use std::time::Duration;

use crate::lab::ns::Ns;
use crate::lab::traffic::{Conversation, bulk, wait_for};
use crate::lab::{Lab, form};

/// Two hosts behind one router share its address outside; a third is public. All containers reach one another.
#[test]
fn two_nodes_behind_the_same_address() {
    Lab::run(|lab| {
        let public = lab.host("public", 1);
        let router = Ns::add("router");
        lab.plug(&router, "u0", 100);
        router.sh(
            "ip link add lan type bridge mcast_snooping 0; ip link set lan up; ip addr add 10.0.0.1/24 dev lan
             sysctl -qw net.ipv4.ip_forward=1
             nft add table ip home
             nft add chain ip home out '{ type nat hook postrouting priority srcnat; }'
             nft add rule ip home out oifname u0 meta l4proto udp masquerade to :6784-6799",
        );
        let private = [("left", 2), ("right", 3)].map(|(name, number)| {
            let host = lab.bare_host(name);
            host.ns.join("u0", &router, name);
            router.sh(&format!("ip link set {name} master lan"));
            host.ns.sh(&format!(
                "ip addr add 10.0.0.{number}/24 dev u0; ip route add default via 10.0.0.1"
            ));
            lab.split(&host.ns, "u0");
            lab.watch(&host.ns, "u0");
            host
        });
        lab.watch(&router, "u0");
        let [left, right] = private;
        let hosts = [public, left, right];
        hosts.iter().for_each(|host| host.start());
        form(&hosts);
        let containers = hosts
            .each_ref()
            .map(|host| host.attach(&format!("on-{}", host.name)));
        for from in &containers {
            for to in containers.iter().filter(|to| to.name != from.name) {
                from.reaches(to, 56);
                from.reaches(to, 8000);
                bulk(&from.ns, (&to.ns, to.v4.into()), 1 << 20);
            }
        }
        let seen = hosts[0].json(&["connections"]);
        for connection in seen["connections"].as_array().expect("a list") {
            let endpoint = connection["endpoint"].as_str().unwrap_or_default();
            assert!(
                endpoint.starts_with("192.168.77.100:"),
                "both are behind the router: {seen}"
            );
        }
    });
}

/// A host gets another address while its containers talk: the connections go on.
#[test]
fn a_host_that_moves() {
    Lab::run(|lab| {
        let [h1, h2] = lab.cluster();
        let [a, b] = [h1.attach("a"), h2.attach("b")];
        let flows = [
            Conversation::start(&a.ns, (&b.ns, b.v4.into())),
            Conversation::start(&b.ns, (&a.ns, a.v6.into())),
        ];
        for address in ["192.168.77.22/24", "192.168.77.23/24"] {
            h2.ns.sh(&format!("ip -4 addr flush dev u0; ip -6 addr flush dev u0 scope global; ip addr add {address} dev u0"));
            for flow in &flows {
                flow.assert_goes_on(Duration::from_secs(15));
            }
        }
        for flow in flows {
            flow.finish();
        }
        a.reaches(&b, 1472);
    });
}

/// Two hosts behind two routers that let nothing in unasked; a third is public. Both learn from the third where the other
/// is seen, ask there at once, and packets go straight.
#[test]
fn two_nodes_behind_two_routers() {
    Lab::run(|lab| {
        let public = lab.host("public", 1);
        let private = [("left", 100), ("right", 101)].map(|(name, number)| {
            let router = Ns::add(&format!("{name}-router"));
            lab.plug(&router, "u0", number);
            router.sh("sysctl -qw net.ipv4.ip_forward=1
                 nft add table ip home
                 nft add chain ip home out '{ type nat hook postrouting priority srcnat; }'
                 nft add rule ip home out oifname u0 meta l4proto udp masquerade
                 nft add chain ip home in '{ type filter hook input priority 0; }'
                 nft add rule ip home in iifname u0 meta l4proto udp drop");
            let host = lab.bare_host(name);
            host.ns.join("u0", &router, "lan");
            router.sh("ip addr add 10.0.0.1/24 dev lan");
            host.ns
                .sh("ip addr add 10.0.0.2/24 dev u0; ip route add default via 10.0.0.1");
            lab.split(&host.ns, "u0");
            lab.watch(&host.ns, "u0");
            lab.watch(&router, "u0");
            host
        });
        let [left, right] = private;
        let hosts = [public, left, right];
        hosts.iter().for_each(|host| host.start());
        form(&hosts);
        let [_, left, right] = &hosts;
        let [a, b] = [left.attach("a"), right.attach("b")];
        a.reaches(&b, 56);
        for (host, peer, outside) in [(left, "right", 101), (right, "left", 100)] {
            let endpoint = format!("192.168.77.{outside}:6783");
            wait_for("packets go straight", Duration::from_secs(30), || {
                let seen = host.json(&["connections"]);
                let mut all = seen["connections"].as_array().expect("a list").iter();
                all.any(|each| each["name"] == peer && each["endpoint"] == *endpoint)
            });
        }
        a.reaches(&b, 8000);
        bulk(&a.ns, (&b.ns, b.v4.into()), 4 << 20);
    });
}
