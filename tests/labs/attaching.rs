//! Attaching and detaching again and again, at once, and with the node killed in between: nothing is lost, given twice
//! or left behind.

use std::collections::BTreeSet;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use serde_json::Value;

use crate::lab::node::WEAVECTL;
use crate::lab::ns::{self, Ns};
use crate::lab::traffic::{try_ping, wait_for};
use crate::lab::{Host, Lab};

/// The containers that the node has written down.
fn booked(host: &Host) -> Vec<Value> {
    host.json(&["ps"])["attachments"]
        .as_array()
        .expect("a list")
        .clone()
}

fn pairs(host: &Host) -> usize {
    host.ns
        .sh("ip -br link")
        .lines()
        .filter(|line| line.starts_with("wv"))
        .count()
}

fn begin(host: &Host, arguments: &[&str]) -> Child {
    let mut command = Command::new(WEAVECTL);
    command.env("WEAVE_SOCKET", host.socket()).args(arguments);
    command
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("weavectl starts")
}

fn begin_attach(host: &Host, ns: &Ns) -> Child {
    begin(host, &["attach", ns.name(), "--name", ns.name()])
}

/// What somebody takes of a container's part of the host comes back by itself: its routes, its device, its settings.
#[test]
fn what_is_taken_from_a_container_comes_back() {
    Lab::run(|lab| {
        let h1 = lab.host("h1", 1);
        h1.start();
        h1.ok(&["init"]);
        let [a, b] = [h1.attach("a"), h1.attach("b")];
        let device = booked(&h1)
            .iter()
            .find(|one| one["name"] == "b")
            .and_then(|one| one["host_ifname"].as_str().map(str::to_owned))
            .expect("it is in the book");
        let proxy = format!("net.ipv4.conf.{device}.proxy_arp");
        for taken in [
            format!("ip route del {}", b.v4),
            format!("ip -6 route del {}", b.v6),
            format!("ip link set {device} down"),
            format!("ip addr flush dev {device}; sysctl -qw {proxy}=0"),
        ] {
            h1.ns.sh(&taken);
            let whole = || {
                let settings = h1.ns.sh(&format!("sysctl -n {proxy}"));
                settings.trim() == "1"
                    && (b.addresses().iter()).all(|to| try_ping(&a.ns, *to, 56).status.success())
            };
            wait_for(&format!("mended: {taken}"), Duration::from_secs(30), whole);
        }
        assert_eq!(h1.status()["verdict"], "ok");
    });
}

/// Nothing is attached while the rules that keep containers from using others' addresses cannot be made; once they can,
/// they are there before the container is.
#[test]
fn no_container_comes_before_the_rules() {
    Lab::run(|lab| {
        let h1 = lab.host("h1", 1);
        h1.start();
        h1.ok(&["init"]);
        h1.ns.sh("nft delete table inet weave-attach");
        h1.attach("a");
        let there = || {
            let rules = h1.ns.try_sh("nft list table inet weave-attach");
            String::from_utf8_lossy(&rules.stdout).contains("antispoof")
        };
        assert!(there(), "made before the container was");
        // A table of that name that belongs to another process, for as long as that one lives.
        let take = "add table inet weave-attach; delete table inet weave-attach; add table inet weave-attach { flags owner; }";
        let own = format!("echo '{take}'; exec cat");
        let mut holder = h1.ns.command("sh");
        holder.args(["-c", &format!("({own}) | nft -i")]);
        let mut holder = holder.stdin(Stdio::piped()).spawn().expect("nft starts");
        wait_for("the table is another's", Duration::from_secs(20), || {
            let table = h1.ns.try_sh("nft list table inet weave-attach");
            String::from_utf8_lossy(&table.stdout).contains("owner")
        });
        let c = h1.bare_container("c");
        let attach = ["attach", c.name(), "--name", "c"];
        let refused = h1.ctl(&attach);
        assert_ne!(refused.code, 0, "{refused:?}");
        assert!(refused.err.contains("nothing is attached"), "{refused:?}");
        assert_eq!(pairs(&h1), 1);
        drop(holder.stdin.take());
        holder.wait().expect("it ends");
        h1.ok(&attach);
        assert!(there());
    });
}

/// Twenty at once get twenty different addresses; asking again changes nothing; detaching at once leaves nothing.
#[test]
fn many_attached_at_once_get_addresses_of_their_own() {
    Lab::run(|lab| {
        let h1 = lab.host("h1", 1);
        h1.start();
        h1.ok(&["init"]);
        let containers: Vec<Ns> = (0..20)
            .map(|n| h1.bare_container(&format!("m{n}")))
            .collect();
        for _ in 0..2 {
            let attaching: Vec<Child> = containers.iter().map(|ns| begin_attach(&h1, ns)).collect();
            for mut child in attaching {
                assert!(child.wait().expect("it ends").success());
            }
            let booked = booked(&h1);
            let addresses: BTreeSet<&str> =
                booked.iter().filter_map(|one| one["ip"].as_str()).collect();
            assert_eq!((addresses.len(), pairs(&h1)), (20, 20));
        }
        let detaching: Vec<Child> = containers
            .iter()
            .map(|ns| begin(&h1, &["detach", ns.name()]))
            .collect();
        for mut child in detaching {
            assert!(child.wait().expect("it ends").success());
        }
        assert_eq!((booked(&h1).len(), pairs(&h1)), (0, 0));
        assert_eq!(h1.status()["cluster"]["addresses_used"], 0);
    });
}

/// A container has one interface in a network: a second one, under whatever name, is refused, and detaching by the
/// interface's name takes the one that is meant.
#[test]
fn one_interface_in_a_network() {
    Lab::run(|lab| {
        let h1 = lab.host("h1", 1);
        h1.start();
        h1.ok(&["init"]);
        let one = h1.attach("one");
        let path = one.ns.path().display().to_string();
        let untouched = one.ns.snapshot();
        for second in [["one", "net1"], ["two", "net1"], ["two", "eth0"]] {
            let [name, ifname] = second;
            let said = h1.ctl(&["attach", &path, "--name", name, "--ifname", ifname]);
            assert_eq!(said.code, 1, "{said:?}");
            assert!(
                said.err
                    .contains("already: as one, with the interface eth0"),
                "{said:?}"
            );
        }
        assert_eq!(one.ns.snapshot(), untouched);
        assert_eq!(h1.ctl(&["detach", "one", "--ifname", "net1"]).code, 1);
        h1.ok(&["detach", "one", "--ifname", "eth0"]);
        assert_eq!((booked(&h1).len(), pairs(&h1)), (0, 0));
    });
}

/// A container that comes back under its name has its address again, whether its namespace or only its pair was gone.
#[test]
fn the_same_name_again_is_the_same_attachment() {
    Lab::run(|lab| {
        let h1 = lab.host("h1", 1);
        h1.start();
        h1.ok(&["init"]);
        let [first, other] = [h1.attach("again"), h1.attach("other")];
        h1.ns
            .sh("ip link del $(ip -br link | sed -n 's/^\\(wv[0-9a-f]*\\)@.*/\\1/p' | head -1)");
        for container in [&first, &other] {
            let path = container.ns.path().display().to_string();
            h1.ok(&["attach", &path, "--name", &container.name]);
        }
        first.reaches(&other, 56);
        ns::host(&format!("ip netns del {}", first.ns.name()));
        let second = h1.attach("again");
        assert_eq!(second.v4, first.v4);
        other.reaches(&second, 56);
        assert_eq!((booked(&h1).len(), pairs(&h1)), (2, 2));
    });
}

/// The node is killed in the middle of attaching and detaching, again and again; each start brings journal, devices and
/// addresses together, and in the end every container is attached once and reaches the first.
#[test]
fn a_kill_in_the_middle_leaves_no_address_and_no_link() {
    Lab::run(|lab| {
        let h1 = lab.host("h1", 1);
        h1.start();
        h1.ok(&["init"]);
        let containers: Vec<Ns> = (0..12)
            .map(|n| h1.bare_container(&format!("k{n}")))
            .collect();
        for round in 0..8 {
            let mut busy: Vec<Child> = containers.iter().map(|ns| begin_attach(&h1, ns)).collect();
            sleep(Duration::from_millis(20 + 25 * round));
            busy.extend(
                containers
                    .iter()
                    .step_by(3)
                    .map(|ns| begin(&h1, &["detach", ns.name()])),
            );
            sleep(Duration::from_millis(15 * round));
            h1.end("KILL");
            for mut child in busy {
                child.wait().expect("it ends");
            }
            h1.start();
            let booked = booked(&h1);
            let alive = booked.iter().filter(|one| one["alive"] == true).count();
            assert_eq!(pairs(&h1), alive, "round {round}: {booked:?}");
            assert_eq!(
                h1.status()["cluster"]["addresses_used"],
                booked.len(),
                "round {round}"
            );
        }
        for ns in &containers {
            h1.ok(&["attach", ns.name(), "--name", ns.name()]);
        }
        let booked = booked(&h1);
        assert_eq!((booked.len(), pairs(&h1)), (12, 12));
        for one in &booked {
            let address = one["ip"]
                .as_str()
                .and_then(|ip| ip.split('/').next())
                .expect("an address");
            containers[0].sh(&format!("ping -q -c 1 -W 2 {address}"));
        }
    });
}
