//! Beside other people's firewalls: their rules stay as they are, and containers talk all the same.

use std::time::{Duration, Instant};

use crate::lab::traffic::{bulk, try_ping, wait_for};
use crate::lab::{Container, Host, Lab, form};

/// Rules of an administrator: a filter and a translation of their own, with sets, in nft's own words.
const ADMIN: &str = r#"
table inet admin {
	set friends {
		type ipv4_addr
		flags interval
		elements = { 192.168.77.0/24, 198.51.100.7 }
	}
	chain input {
		type filter hook input priority filter; policy accept;
		ip saddr @friends tcp dport 22 counter accept
	}
	chain forward {
		type filter hook forward priority filter + 10; policy accept;
		ct state invalid drop
	}
}
table ip admin-nat {
	chain out {
		type nat hook postrouting priority srcnat; policy accept;
		ip daddr 198.51.100.7 masquerade
	}
}
"#;

/// What Docker 28 sets up on a host without containers, its DOCKER-USER chain included.
const DOCKER: &str = "
iptables -P FORWARD DROP
for chain in DOCKER DOCKER-FORWARD DOCKER-USER; do iptables -N $chain; done
iptables -A FORWARD -j DOCKER-USER
iptables -A FORWARD -j DOCKER-FORWARD
iptables -A DOCKER-FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
iptables -A DOCKER-FORWARD -i docker0 -j ACCEPT
iptables -A DOCKER ! -i docker0 -o docker0 -j DROP
iptables -t nat -N DOCKER
iptables -t nat -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
iptables -t nat -A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
ip6tables -P FORWARD DROP
for chain in DOCKER DOCKER-FORWARD DOCKER-USER; do ip6tables -N $chain; done
ip6tables -A FORWARD -j DOCKER-USER
ip6tables -A FORWARD -j DOCKER-FORWARD
";

/// An administrator's rules and Docker's, forwarding dropped by policy, on every host.
#[test]
fn foreign_rules_stay_and_docker_does_not_block() {
    Lab::run(|lab| {
        let hosts = [lab.host("h1", 1), lab.host("h2", 2)];
        for host in &hosts {
            host.ns
                .sh(&format!("nft -f - <<'END'\n{ADMIN}\nEND\n{DOCKER}"));
        }
        let before = hosts.each_ref().map(foreign);
        assert!(before[0].contains("DOCKER-USER") && before[0].contains("table ip admin-nat"));
        hosts.iter().for_each(Host::start);
        form(&hosts);
        let [a, b, c] = [
            hosts[0].attach("a"),
            hosts[0].attach("b"),
            hosts[1].attach("c"),
        ];
        reach_one_another(&[&a, &b, &c]);
        hosts[0].ok(&["expose"]);
        assert_eq!(
            hosts.each_ref().map(foreign),
            before,
            "foreign rules changed"
        );

        // Docker, started again, empties its chain for users; what we need comes back by itself.
        hosts[0]
            .ns
            .sh("iptables -F DOCKER-USER; ip6tables -F DOCKER-USER");
        wait_for(
            "the way through DOCKER-USER is open again",
            Duration::from_secs(15),
            || {
                c.addresses()
                    .iter()
                    .all(|address| try_ping(&a.ns, *address, 56).status.success())
            },
        );
        for host in &hosts {
            host.end("KILL");
        }
        reach_one_another(&[&a, &b]);
        hosts.iter().for_each(Host::start);
        crate::lab::await_mesh(&hosts);
        reach_one_another(&[&a, &b, &c]);
        assert_eq!(
            hosts.each_ref().map(foreign),
            before,
            "foreign rules changed"
        );
    });
}

/// What ufw does when it reloads with a default of `deny (routed)`: everything is flushed and accepted for a moment,
/// then its chains are made anew and the policy drops. No rule of ours is left by that.
const UFW: &str = "
for iptables in iptables ip6tables; do
$iptables -P FORWARD ACCEPT; $iptables -F; $iptables -X
for chain in ufw-before-forward ufw-user-forward ufw-reject-forward; do
$iptables -N $chain; $iptables -A FORWARD -j $chain
done
$iptables -A ufw-before-forward -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
$iptables -P FORWARD DROP
done
";

/// A firewall that flushes all and drops by policy, again and again while nodes run.
#[test]
fn a_firewall_that_reloads() {
    Lab::run(|lab| {
        let hosts: [_; 2] = lab.cluster();
        let [a, c] = [hosts[0].attach("a"), hosts[1].attach("c")];
        for round in 0..2 {
            for host in &hosts {
                host.ns.sh(UFW);
                let rules = host.ns.sh("iptables -S FORWARD");
                assert!(rules.contains("-P FORWARD DROP"), "{rules}");
            }
            let opened = Instant::now();
            let open = || {
                c.addresses()
                    .iter()
                    .all(|address| try_ping(&a.ns, *address, 56).status.success())
            };
            wait_for("the way is open again", Duration::from_secs(30), open);
            println!("reload {round}: open after {:?}", opened.elapsed());
            for host in &hosts {
                let rules = host.ns.sh("iptables -S; ip6tables -S");
                assert!(rules.contains("weave: "), "ours are back: {rules}");
                assert!(
                    rules.contains("-j ufw-user-forward"),
                    "theirs stay: {rules}"
                );
            }
            reach_one_another(&[&a, &c]);
        }
    });
}

/// Hosts whose uplink is a bridge, with bridged packets passing iptables or not.
#[test]
fn bridges_that_call_iptables_or_not() {
    Lab::run(|lab| {
        let hosts = ["h1", "h2"].map(|name| lab.bare_host(name));
        for (number, host) in hosts.iter().enumerate() {
            let number = number as u8 + 1;
            lab.plug(&host.ns, "u0", number);
            host.ns.sh(&format!(
                "ip link add uplink type bridge mcast_snooping 0; ip link set uplink up
                 ip addr flush dev u0; ip link set u0 master uplink
                 ip addr add 192.168.77.{number}/24 dev uplink; ip route add default via 192.168.77.254
                 iptables -A FORWARD -m conntrack --ctstate INVALID -j DROP"
            ));
            lab.watch(&host.ns, "u0");
            host.start();
        }
        form(&hosts);
        let [a, b, c] = [
            hosts[0].attach("a"),
            hosts[0].attach("b"),
            hosts[1].attach("c"),
        ];
        for setting in [0, 1, 0] {
            for host in &hosts {
                host.ns.sh(&format!(
                    "sysctl -qw net.bridge.bridge-nf-call-iptables={setting} net.bridge.bridge-nf-call-ip6tables={setting}"
                ));
            }
            reach_one_another(&[&a, &b, &c]);
        }
    });
}

/// Every pair in both families, with small packets, fragments and a transfer.
fn reach_one_another(containers: &[&Container]) {
    for from in containers {
        for to in containers.iter().filter(|to| to.name != from.name) {
            from.reaches(to, 56);
            from.reaches(to, 8000);
            bulk(&from.ns, (&to.ns, to.v4.into()), 1 << 18);
        }
    }
}

/// Every rule on a host that is not ours, without counters: the tables of nft but ours, and what iptables saves but
/// single rules that carry our name.
fn foreign(host: &Host) -> String {
    let mut kept = String::new();
    let mut skip = false;
    for line in host.ns.sh("nft -s list ruleset").lines() {
        if let Some(table) = line.strip_prefix("table ") {
            // The tables of iptables follow below, in words that show their comments.
            skip =
                table.contains(" weave-") || table.contains(" filter ") || table.contains(" nat ");
        }
        if !skip {
            kept += &format!("{line}\n");
        }
    }
    for line in host.ns.sh("iptables-save; ip6tables-save").lines() {
        // It says when it ran, and how many packets each policy has seen.
        let line = line.split(" [").next().unwrap_or_default();
        if !line.starts_with('#') && !line.contains("weave") {
            kept += &format!("{line}\n");
        }
    }
    kept
}
