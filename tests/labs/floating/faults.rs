//! What was wrong with floating addresses once: hosts that come back, namespaces without their path, a full disk.

use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use super::{MOVED, SOON, answers, await_answers, claim, has, has_lost, pool, server};
use crate::full_disk::{fill, make_room};
use crate::lab::ns::{self, Ns};
use crate::lab::traffic::wait_for;
use crate::lab::{Lab, await_mesh};

/// Longer than the node's watch takes to come round twice.
const WATCHED: Duration = Duration::from_secs(12);

/// Nobody has it again: not on the host that was away, nor anywhere else.
#[test]
fn a_claim_that_was_outdone_does_not_stand_again() {
    Lab::run(|lab| {
        let hosts = lab.cluster::<3>();
        let [h1, h2, h3] = &hosts;
        let vips = pool(&hosts);
        let client = h3.attach("client");
        let [one, two] = [(h1, "one"), (h2, "two")].map(|(host, name)| server(host, name));
        claim(h1, &one, &vips);
        await_answers(&client, &vips, &one, SOON);
        h1.kill();
        claim(h2, &two, &vips);
        await_answers(&client, &vips, &two, SOON);
        // One is given back, the other goes with its holder; and a restart does not forget that they ended.
        let given = h2.ok(&["detach", "two", "--also", &vips[0].to_string()]);
        assert!(given.contains("two: has 10.45.0.10 no more"), "{given}");
        assert_eq!(has(h2, "two"), [vips[1].to_string()]);
        assert!(!addresses(&two.ns).contains("10.45.0.10/"));
        await_answers(&client, &vips[1..], &two, SOON);
        h2.ok(&["detach", "two"]);
        h2.kill();
        h2.start();
        h1.start();
        await_mesh(&hosts);
        wait_for("it is lost", SOON, || has(h1, "one").is_empty());
        has_lost(h1, &one, &vips);
        for vip in vips {
            assert_eq!(answers(&client, vip), None, "{vip}");
        }
        // It can be claimed again, here too.
        claim(h1, &one, &vips);
        await_answers(&client, &vips, &one, SOON);
    });
}

#[test]
fn what_is_given_back_is_refused_with_cause_and_fix_where_it_is_not_there() {
    Lab::run(|lab| {
        let hosts = lab.cluster::<2>();
        let h1 = &hosts[0];
        let vips = pool(&hosts);
        let one = server(h1, "one");
        claim(h1, &one, &vips[..1]);
        for (name, vip) in [("one", vips[1]), ("nobody", vips[0])] {
            let said = h1.ctl(&["detach", name, "--also", &vip.to_string()]);
            let cause = format!("{name} has no floating address {vip}");
            assert!(said.code == 1 && said.err.contains(&cause), "{said:?}");
            assert!(said.err.contains("weavectl ps"), "{said:?}");
        }
        // Asked for again, it is put right on the interface; and a container that lost its pair keeps what it had.
        one.ns.sh("ip addr del 10.45.0.10/32 dev eth0");
        claim(h1, &one, &vips[..1]);
        assert!(addresses(&one.ns).contains("10.45.0.10/32"));
        one.ns.sh("ip link del eth0");
        let one = h1.attach_ns(one.ns, "one", &[]);
        assert!(addresses(&one.ns).contains("10.45.0.10/32"));
        assert_eq!(has(h1, "one"), ["10.45.0.10"]);
    });
}

fn addresses(ns: &Ns) -> String {
    ns.sh("ip -o addr show dev eth0")
}

/// The addresses in the namespace of a process.
fn addresses_with(process: &Child) -> String {
    let id = process.id();
    ns::try_host(&format!(
        "nsenter --net=/proc/{id}/ns/net ip -o addr show dev eth0"
    ))
}

fn sleeper(ns: &Ns) -> Child {
    let started = ns.command("sleep").arg("120").spawn();
    let child = started.expect("a process starts");
    let is_in =
        || ns::try_host(&format!("ip netns pids {}", ns.name())).contains(&child.id().to_string());
    wait_for("it is in the namespace", SOON, is_in);
    child
}

fn end(mut process: Child) {
    process.kill().expect("a child can be killed");
    process.wait().expect("a child can be waited for");
}

/// What is lost comes off the interface, and what is held is put back there, by whichever way the namespace is found.
#[test]
fn a_namespace_without_its_path_is_found() {
    Lab::run(|lab| {
        let hosts = lab.cluster::<2>();
        let [h1, h2] = &hosts;
        let vips = pool(&hosts);
        let [one, two] = [(h1, "one"), (h2, "two")].map(|(host, name)| server(host, name));
        claim(h1, &one, &vips);
        let inside = sleeper(&one.ns);
        ns::host(&format!("ip netns del {}", one.ns.name()));
        // Another namespace has the path by now: it gets nothing.
        let other = Ns::add("one");
        other.sh("ip link add eth0 type veth peer name eth1 && ip link set eth0 up");
        let id = inside.id();
        ns::host(&format!(
            "nsenter --net=/proc/{id}/ns/net ip addr del 10.45.0.10/32 dev eth0"
        ));
        h1.kill();
        h1.start();
        let is_back = || addresses_with(&inside).contains("10.45.0.10/32");
        wait_for("the address is put back", SOON, is_back);
        assert!(
            !addresses(&other).contains("10.45.0."),
            "{}",
            addresses(&other)
        );

        await_mesh(&hosts);
        claim(h2, &two, &vips[..1]);
        wait_for("it is lost", SOON, || has(h1, "one").len() == 1);
        assert!(!addresses_with(&inside).contains("10.45.0.10/"));

        // In nobody's reach, it stays on the interface until it is found; that is told.
        let file = File::open(format!("/proc/{id}/ns/net")).expect("a namespace");
        end(inside);
        claim(h2, &two, &vips);
        wait_for("it is lost", SOON, || has(h1, "one").is_empty());
        let lost = format!("one has lost {}, which is still on its interface", vips[1]);
        wait_for("it is told", SOON, || {
            h1.status().to_string().contains(&lost)
        });
        h1.kill();
        h1.start();
        await_mesh(&hosts);
        let path = format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
        let found = Command::new("nsenter")
            .args([&format!("--net={path}"), "sleep", "60"])
            .spawn()
            .expect("nsenter starts");
        let own = one.v4.to_string();
        wait_for("it is inside", SOON, || {
            addresses_with(&found).contains(&own)
        });
        let is_off = || !addresses_with(&found).contains(&format!("{}/", vips[1]));
        wait_for("it comes off", SOON, is_off);
        wait_for("all is well", SOON, || {
            !h1.status().to_string().contains(&lost)
        });
        end(found);
    });
}

/// What is lost while nothing can be written down stays lost.
#[test]
fn with_a_full_disk_an_address_does_not_come_back() {
    Lab::run(|lab| {
        let hosts = lab.cluster::<2>();
        let [h1, h2] = &hosts;
        let vips = pool(&hosts);
        let [one, two] = [(h1, "one"), (h2, "two")].map(|(host, name)| server(host, name));
        claim(h1, &one, &vips);
        fill(h1);
        claim(h2, &two, &vips);
        has_lost(h1, &one, &vips);
        let end = Instant::now() + WATCHED;
        while Instant::now() < end {
            let routes = h1.ns.sh("ip route; ip -6 route");
            let is_back = vips.iter().any(|vip| routes.contains(&format!("{vip} ")));
            assert!(!is_back && has(h1, "one").is_empty(), "{routes}");
            std::thread::sleep(Duration::from_millis(50));
        }
        // What cannot be told to last is refused, and nothing of it is left.
        let path = one.ns.path().display().to_string();
        let said = h1.ctl(&["attach", &path, "--name", "one", "--also", "10.45.0.11"]);
        assert!(
            said.code == 1 && said.err.contains("No space left"),
            "{said:?}"
        );
        assert!(!addresses(&one.ns).contains("10.45.0."));
        make_room(h1);
        // Once there is room it is written down: with nobody to hear, the host does not have it again.
        std::thread::sleep(WATCHED / 2);
        h1.kill();
        h2.kill();
        h1.start();
        assert_eq!(has(h1, "one"), [""; 0]);
        assert!(!addresses(&one.ns).contains("10.45.0."));
        h2.start();
        await_mesh(&hosts);
    });
}

/// Where one of several cannot be moved, all are where they were.
#[test]
fn a_claim_that_fails_leaves_all_as_it_was() {
    Lab::run(|lab| {
        let hosts = lab.cluster::<2>();
        let [h1, h2] = &hosts;
        pool(&hosts);
        let client = h2.attach("client");
        let [one, two] = ["one", "two"].map(|name| server(h1, name));
        let [a, b, c] = [10, 11, 12].map(|n| std::net::Ipv4Addr::new(10, 45, 0, n).into());
        claim(h1, &one, &[a]);
        claim(h1, &two, &[b]);
        await_answers(&client, &[b], &two, SOON);
        h1.ns.sh("ip route add 10.45.0.12/32 dev lo");
        let path = one.ns.path().display().to_string();
        let also = [
            "--also",
            "10.45.0.10",
            "--also",
            "10.45.0.11",
            "--also",
            "10.45.0.12",
        ];
        let said = h1.ctl(&[&["attach", &path, "--name", "one"][..], &also].concat());
        assert!(
            said.code == 1 && said.err.contains("10.45.0.12"),
            "{said:?}"
        );
        assert_eq!(
            (has(h1, "one"), has(h1, "two")),
            (vec![a.to_string()], vec![b.to_string()])
        );
        await_answers(&client, &[b], &two, MOVED);
        await_answers(&client, &[a], &one, MOVED);
        assert_eq!(answers(&client, c), None);
        let on = addresses(&one.ns);
        assert!(
            on.contains("10.45.0.10/") && !on.contains("10.45.0.11/"),
            "{on}"
        );
    });
}

/// The node was killed when the book was written and the kernel had not followed: the start ends the move.
#[test]
fn a_move_that_was_cut_short_is_ended_by_the_start() {
    Lab::run(|lab| {
        let hosts = lab.cluster::<2>();
        let [h1, h2] = &hosts;
        let vips = pool(&hosts);
        let client = h2.attach("client");
        let [_one, two] = ["one", "two"].map(|name| server(h1, name));
        claim(h1, &two, &vips);
        await_answers(&client, &vips, &two, SOON);
        let listed = h1.json(&["ps"]);
        let all = listed["attachments"].as_array().expect("a list");
        let one = all.iter().find(|one| one["name"] == "one");
        let outer = one.and_then(|one| one["host_ifname"].as_str());
        let outer = outer.expect("its outer end");
        h1.kill();
        for vip in vips {
            h1.ns.sh(&format!("ip route del {vip}"));
            h1.ns
                .sh(&format!("ip route add {vip} dev {outer} proto 87"));
            let length = if vip.is_ipv4() { 32 } else { 128 };
            let address = format!("{vip}/{length} dev eth0");
            two.ns.sh(&format!("ip addr del {address}"));
        }
        h1.start();
        await_mesh(&hosts);
        await_answers(&client, &vips, &two, SOON);
        assert_eq!(h1.status()["verdict"], "ok", "{}", h1.status());
    });
}
