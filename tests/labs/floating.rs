//! Floating addresses: a container has one until another claims it, on whichever host, and nobody else does meanwhile.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::lab::traffic::{try_ping, wait_for};
use crate::lab::{Container, Host, Lab, await_mesh};
use crate::services::{connect_within, serve};

const SOON: Duration = Duration::from_secs(20);

/// How long traffic may take to go where an address has moved.
const MOVED: Duration = Duration::from_secs(1);

/// Makes the pool, and waits until all know it; an address of it of each family, at different places.
fn pool(hosts: &[Host]) -> [IpAddr; 2] {
    let words = ["network", "create", "vips", "--floating"];
    let made = hosts[1].json(&[&words[..], &["--range", "10.45.0.0/26"]].concat());
    assert_eq!(made["floating"], true, "{made}");
    for host in hosts {
        let knows = || host.ok(&["network", "list"]).contains("vips");
        wait_for("the pool is known", SOON, knows);
    }
    let range = made["range6"].as_str().expect("a range");
    let v6: ipnet::Ipv6Net = range.parse().expect("a range");
    let v6 = v6.hosts().nth(0x11).expect("it has more");
    ["10.45.0.10".parse().expect("an address"), v6.into()]
}

/// What a container was attached with, and these besides.
fn claim(host: &Host, container: &Container, also: &[IpAddr]) -> Value {
    let path = container.ns.path().display().to_string();
    let also: Vec<String> = also.iter().map(|ip| format!("--also={ip}")).collect();
    let also: Vec<&str> = also.iter().map(String::as_str).collect();
    host.json(&[&["attach", &path, "--name", &container.name], &also[..]].concat())
}

/// Who answers at an address.
fn answers(from: &Container, ip: IpAddr) -> Option<String> {
    let to = SocketAddr::new(ip, 8080);
    let (_, name, saw) = connect_within(Duration::from_millis(150), &from.ns, to).ok()?;
    assert!(from.addresses().contains(&saw), "{name} saw {saw}");
    Some(name)
}

#[track_caller]
fn await_answers(from: &Container, vips: &[IpAddr], of: &Container, within: Duration) {
    let began = Instant::now();
    for ip in vips {
        let what = format!("{} answers at {ip}", of.name);
        let left = within.saturating_sub(began.elapsed());
        wait_for(&what, left, || {
            answers(from, *ip).as_ref() == Some(&of.name)
        });
    }
    println!(
        "{} answers at {vips:?} after {:?}",
        of.name,
        began.elapsed()
    );
}

/// The floating addresses that a host says a container has.
fn has(host: &Host, name: &str) -> Vec<String> {
    let listed = host.json(&["ps"]);
    let all = listed["attachments"].as_array().expect("a list");
    let one = all.iter().find(|one| one["name"] == name);
    let also = one.and_then(|one| one["also"].as_array());
    let ips = also.into_iter().flatten().map(|one| one["ip"].as_str());
    ips.map(|ip| ip.expect("an address").to_owned()).collect()
}

/// Fails unless a container has lost these addresses: on its interface, in its node's book and on its host.
#[track_caller]
fn has_lost(host: &Host, container: &Container, vips: &[IpAddr]) {
    wait_for("the former holder gives way", MOVED, || {
        has(host, &container.name).is_empty()
    });
    let inside = container.ns.sh("ip -o addr show dev eth0");
    let routes = host.ns.sh("ip route; ip -6 route");
    for ip in vips {
        assert!(!inside.contains(&format!("{ip}/")), "{inside}");
        assert!(!routes.contains(&format!("{ip} ")), "{routes}");
    }
}

/// A container that takes an address on its own is nobody's with it.
#[track_caller]
fn cannot_pose(container: &Container, vips: &[IpAddr], to: &Container) {
    for ip in vips {
        let (length, to) = match ip {
            IpAddr::V4(_) => (32, IpAddr::V4(to.v4)),
            IpAddr::V6(_) => (128, IpAddr::V6(to.v6)),
        };
        let address = format!("{ip}/{length} dev eth0");
        container
            .ns
            .sh(&format!("ip addr add {address} noprefixroute"));
        std::thread::sleep(Duration::from_millis(100));
        let ping = format!("ping -n -q -c 1 -W 0.5 -I {ip} {to}");
        let posed = container.ns.try_sh(&ping).status.success();
        assert!(!posed, "{} posed as {ip}", container.name);
        container.ns.sh(&format!("ip addr del {address}"));
    }
}

/// A container that answers.
fn server(host: &Host, name: &str) -> Container {
    let ns = host.bare_container(name);
    serve(&ns, name);
    host.attach_ns(ns, name, &[])
}

#[test]
fn an_address_is_where_it_was_claimed_last() {
    Lab::run(|lab| {
        let hosts = lab.cluster::<3>();
        let [h1, h2, h3] = &hosts;
        let vips = pool(&hosts);
        let client = h3.attach("client");
        let [one, two, three] =
            [(h1, "one"), (h2, "two"), (h2, "three")].map(|(host, name)| server(host, name));
        cannot_pose(&two, &vips, &client);
        let made = claim(h1, &one, &vips);
        assert_eq!(made["ips"][2]["address"], "10.45.0.10/32", "{made}");
        await_answers(&client, &vips, &one, SOON);
        await_answers(&two, &vips, &one, SOON);
        // The holder may speak with it; what it says without being asked to has its own address.
        for (ip, to) in vips.iter().zip(client.addresses()) {
            one.ns.sh(&format!("ping -n -q -c 1 -W 2 -I {ip} {to}"));
        }
        let chosen = one.ns.sh(&format!("ip route get {}", client.v6));
        assert!(chosen.contains(&format!("src {} ", one.v6)), "{chosen}");

        // To another host, and there to another container.
        claim(h2, &two, &vips);
        await_answers(&client, &vips, &two, MOVED);
        has_lost(h1, &one, &vips);
        cannot_pose(&one, &vips, &client);
        await_answers(&one, &vips, &two, MOVED);
        claim(h2, &three, &vips[..1]);
        await_answers(&client, &vips[..1], &three, MOVED);
        await_answers(&client, &vips[1..], &two, MOVED);
        assert_eq!(has(h2, "two"), [vips[1].to_string()]);
        cannot_pose(&two, &vips[..1], &client);
        h2.ok(&["trace", "two", "client"]);
        let traced = h3.ok(&["trace", "client", "10.45.0.10"]);
        assert!(traced.contains("10.45.0.10 belongs to h2"), "{traced}");
        one.reaches(&three, 56);

        outlives_its_node(&hosts, &client, &[(vips[0], &three), (vips[1], &two)]);
        goes_with_its_holder(&hosts, &client, &vips);
    });
}

/// A node that was killed has what it had, and one that was down while it lost something learns so.
fn outlives_its_node(hosts: &[Host; 3], client: &Container, held: &[(IpAddr, &Container)]) {
    let [h1, h2, _] = hosts;
    for host in [h2, h1] {
        host.kill();
        host.start();
    }
    await_mesh(hosts);
    for (ip, holder) in held {
        await_answers(client, &[*ip], holder, SOON);
        assert_eq!(has(h2, &holder.name), [ip.to_string()]);
    }
    assert!(h2.ok(&["ps"]).contains("ALSO"), "{}", h2.ok(&["ps"]));
    // Meanwhile somebody else takes it.
    h2.kill();
    let vip = held[0].0;
    let four = server(h1, "four");
    claim(h1, &four, &[vip]);
    await_answers(client, &[vip], &four, MOVED);
    h2.start();
    wait_for("the node that was down gives way", SOON, || {
        has(h2, &held[0].1.name).is_empty()
    });
    await_answers(client, &[vip], &four, MOVED);
}

/// Detached or ended, the holder has it no more; a pool that is held is not removed.
fn goes_with_its_holder(hosts: &[Host; 3], client: &Container, vips: &[IpAddr; 2]) {
    let [h1, h2, h3] = hosts;
    let in_use = || {
        let said = h3.ctl(&["network", "rm", "vips"]);
        said.code == 1 && said.err.contains("in use, by four on h1, two on h2")
    };
    wait_for("it is known who has it", SOON, in_use);
    h1.ok(&["detach", "four"]);
    let silent = |ip: IpAddr| !try_ping(&client.ns, ip, 56).status.success();
    wait_for("nobody has it", MOVED + MOVED, || silent(vips[0]));
    crate::lab::ns::Ns::named("two").sh("ip link del eth0");
    wait_for("it went with its container", SOON, || {
        has(h2, "two").is_empty() && silent(vips[1])
    });
    wait_for("the pool can be removed", SOON, || {
        h3.ctl(&["network", "rm", "vips"]).code == 0
    });
    let left = || {
        hosts
            .iter()
            .any(|host| host.ok(&["network", "list"]).contains("vips"))
    };
    wait_for("the pool is gone", SOON, || !left());
}

#[track_caller]
fn refused(host: &Host, words: &[&str], cause: &str, fix: &str) {
    let said = host.ctl(words);
    let told = said.err.contains(cause) && said.err.contains(fix);
    assert!(said.code == 1 && told, "{words:?}: {said:?}");
}

#[test]
fn what_is_no_floating_address_is_refused_with_cause_and_fix() {
    Lab::run(|lab| {
        let hosts = lab.cluster::<2>();
        let [h1, h2] = &hosts;
        let ns = h1.bare_container("web");
        let path = ns.path().display().to_string();
        let attach = |more: &[&'static str]| -> Vec<String> {
            let words = [&["attach", &path, "--name", "web"], more].concat();
            words.into_iter().map(str::to_owned).collect()
        };
        let wrong = |more: &[&'static str], cause: &str, fix: &str| {
            let words = attach(more);
            refused(
                h1,
                &words.iter().map(String::as_str).collect::<Vec<_>>(),
                cause,
                fix,
            );
        };
        let make = "make a pool of floating addresses first: weavectl network create";
        let of_nodes = "no floating address: it is of a part of the range that nodes give";
        wrong(&["--also", "10.45.0.10"], of_nodes, make);
        pool(&hosts);
        let name = "give --also an address of a pool: 10.45.0.0/26 (vips)";
        wrong(
            &["--also", "192.0.2.9"],
            "192.0.2.9 is no address of the cluster",
            name,
        );
        wrong(&["--also", "10.45.0.64"], of_nodes, name);
        wrong(
            &["--also", "10.32.0.1"],
            "it is a gateway's, on every node",
            name,
        );
        let exposed = h2.json(&["expose"]);
        let own: &'static str = exposed["ip"]
            .as_str()
            .expect("an address")
            .to_owned()
            .leak();
        let db = h2.attach("db");
        let other: &'static str = db.v6.to_string().leak();
        let knows = |what: &str| {
            let words = attach(&["--also", own]);
            let said = h1.ctl(&words.iter().map(String::as_str).collect::<Vec<_>>());
            said.err.contains(what)
        };
        wait_for("h1 knows", SOON, || knows("it is the host h2's own"));
        wrong(
            &["--also", other],
            "no floating address: it is db on h2's own",
            name,
        );
        h1.ok(&["network", "create", "blue"]);
        let blue = ["--network", "blue", "--also", "10.45.0.10"];
        wrong(
            &blue,
            "floating addresses are of the network default",
            "leave --also out",
        );
        wrong(
            &["--network", "vips"],
            "vips is a pool of floating addresses",
            "--also",
        );
        let not_own = "10.45.0.10 is not one of that network";
        wrong(&["--ip", "10.45.0.10"], not_own, "weavectl network list");
        for more in [&["--also", "10.45.0"][..], &["--also", ""], &["--also"]] {
            let words = attach(more);
            let said = h1.ctl(&words.iter().map(String::as_str).collect::<Vec<_>>());
            assert_eq!(said.code, 2, "{more:?}: {said:?}");
        }
        let create = ["network", "create", "more", "--floating", "--range"];
        refused(
            h2,
            &[&create[..], &["10.45.0.0/27"]].concat(),
            "cannot be",
            "give a /26",
        );
        let used = [
            "network",
            "create",
            "more",
            "--floating",
            "--range",
            "10.47.0.0/16",
        ];
        refused(
            h2,
            &used,
            "cannot be a network's range",
            "without the first and the last",
        );
        let said = h2.ctl(&["network", "create", "more", "--floating", "--internal"]);
        assert_eq!(said.code, 2, "{said:?}");
        // Of what was refused nothing is left, whatever of it was right.
        assert!(ns.sh("ip -o link").lines().count() == 1 && has(h1, "web").is_empty());
        wrong(
            &["--also", "10.45.0.10", "--also", "10.32.0.1"],
            "gateway",
            name,
        );
        assert!(!h1.ok(&["ps"]).contains("web"), "{}", h1.ok(&["ps"]));
        // Without IPv6 there is no address of that family, and the attachment is taken back whole.
        ns.sh("sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1");
        let v6 = h1.json(&["network", "list"])["networks"][2]["range6"].clone();
        let v6: ipnet::Ipv6Net = v6.as_str().and_then(|net| net.parse().ok()).expect("a net");
        let v6: &'static str = v6.addr().to_string().leak();
        wrong(
            &["--also", v6],
            "web has no IPv6, and so cannot have",
            "switch IPv6 on",
        );
        assert!(!h1.ok(&["ps"]).contains("web") && ns.sh("ip -o link").lines().count() == 1);
    });
}
