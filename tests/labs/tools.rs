//! What `weavectl` does besides asking: it looks at a host before a node is started, and has the network test itself.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::lab::node::{Said, WEAVECTL, said};
use crate::lab::traffic::wait_for;
use crate::lab::{Host, Lab, await_mesh};

/// Runs `weavectl` on the host itself, as an administrator would.
fn on(host: &Host, words: &[&str]) -> Said {
    let mut command = host.ns.command(WEAVECTL);
    said(command.env("WEAVE_SOCKET", host.socket()).args(words))
}

/// The point of a name in what `check --pre` found, and how that ended.
fn point(host: &Host, id: &str) -> (i32, Value) {
    let checked = on(host, &["check", "--pre", "-o", "json"]);
    let answer: Value = serde_json::from_str(&checked.out)
        .unwrap_or_else(|error| panic!("not JSON: {error}: {checked:?}"));
    let points = answer["points"].as_array().expect("a list of points");
    let found = points.iter().find(|point| point["id"] == id);
    let found = found.unwrap_or_else(|| panic!("no point {id} in {answer}"));
    (checked.code, found.clone())
}

/// Fails unless a point fails, with a fix that has these words in it.
#[track_caller]
fn fails(host: &Host, id: &str, fix: &str) {
    let (code, found) = point(host, id);
    assert_eq!(
        (code, &found["state"]),
        (1, &Value::from("failure")),
        "{found}"
    );
    let said = found["fix"].as_str().unwrap_or_default();
    assert!(said.contains(fix), "{said}");
}

/// A bare host is fit for a node and is left as it was; each thing that stands in the way is named with its fix, and is
/// fine again once that was followed.
#[test]
fn a_host_is_checked_before_a_node_starts() {
    Lab::run(|lab| {
        let host = lab.host("h1", 1);
        let untouched = host.ns.snapshot();
        let checked = on(&host, &["check", "--pre"]);
        println!("{}", checked.out);
        assert!(matches!(checked.code, 0 | 3), "{checked:?}");
        assert!(!checked.out.contains("FAIL"), "{checked:?}");
        assert_eq!(host.ns.snapshot(), untouched, "the check changed the host");
        for id in [
            "privileges",
            "kernel",
            "tun",
            "nftables",
            "veth",
            "packet",
            "ip_forward",
            "port",
            "range",
            "uplink",
        ] {
            assert_eq!(point(&host, id).1["state"], "ok", "{id}");
        }

        everything_in_the_way(&host);
        the_firewall(&host);

        let unprivileged =
            format!("setpriv --reuid 65534 --clear-groups --inh-caps=-all {WEAVECTL} check --pre");
        let poor = host.ns.try_sh(&unprivileged);
        assert_eq!(poor.status.code(), Some(1));
        let words = String::from_utf8_lossy(&poor.stdout).into_owned();
        assert!(words.contains("FAIL  privileges"), "{words}");

        host.start();
        let (code, node) = point(&host, "node");
        assert_eq!(
            (code, &node["state"]),
            (3, &Value::from("warning")),
            "{node}"
        );
    });
}

/// Each thing in the way of a node fails one point, and only as long as it is there.
fn everything_in_the_way(host: &Host) {
    let squatter = host
        .ns
        .inside(|| std::net::UdpSocket::bind("0.0.0.0:6783").expect("the port is free"));
    fails(host, "port", "ss -lunp");
    drop(squatter);
    host.ns.sh("ip link add weave0 type bridge");
    fails(host, "devices", "ip link delete weave0");
    host.ns
        .sh("ip link delete weave0; ip route add 10.40.0.0/16 dev u0");
    fails(host, "range", "--range");
    host.ns
        .sh("ip route del 10.40.0.0/16; ip link set u0 mtu 1200");
    fails(host, "uplink", "mtu 1500");
    host.ns
        .sh("ip link set u0 mtu 1500; nft add table inet weave-attach");
    fails(host, "rules", "nft delete table inet weave-attach");
    host.ns.sh("nft flush ruleset");
}

/// A firewall that drops by default is told of, and what to do about it can be typed as it stands.
fn the_firewall(host: &Host) {
    host.ns.sh("nft add table inet f; nft 'add chain inet f in { type filter hook input priority 0; policy drop; }'");
    let (_, firewall) = point(host, "firewall");
    assert_eq!(firewall["state"], "warning");
    let fix = firewall["fix"].as_str().unwrap_or_default();
    let command = fix.split(": ").nth(1).expect("a command to follow");
    host.ns.sh(command);
    host.ns
        .sh("nft list ruleset | grep -q 'udp dport 6783 accept'");
    host.ns.sh("nft flush ruleset");
    host.ns.sh("nft add table inet f; nft 'add chain inet f through { type filter hook forward priority 0; policy drop; }'");
    let (_, forwarding) = point(host, "forwarding");
    assert_eq!(forwarding["state"], "warning");
    let fix = forwarding["fix"].as_str().unwrap_or_default();
    let (_, commands) = fix.split_once(": ").expect("commands to follow");
    host.ns.sh(commands);
    host.ns.sh("nft list ruleset | grep -q 'iifname .*wv'");
    host.ns.sh("nft flush ruleset");
    host.ns.sh("nft add table inet firewalld");
    let (_, forwarding) = point(host, "forwarding");
    let fix = forwarding["fix"].as_str().unwrap_or_default();
    assert!(fix.starts_with("firewall-cmd"), "{forwarding}");
    host.ns.sh("nft flush ruleset");
}

/// Three nodes test each other: everything passes, a file says so for build servers, and nothing of it is left; when a
/// link is cut the test says which member cannot be reached, and is over in time.
#[test]
fn the_network_tests_itself() {
    Lab::run(|lab| {
        let hosts = lab.cluster::<3>();
        let [h1, h2, h3] = &hosts;
        let file = lab.dir().join("junit.xml");
        let path = file.display().to_string();
        let said = h1.ctl(&["test", "--quick", "--junit", &path]);
        println!("{}", said.out);
        assert_eq!(said.code, 0, "{said:?}");
        assert!(
            said.out.contains("20 passed, 0 failed, 0 not run"),
            "{}",
            said.out
        );
        for host in [h2, h3] {
            assert!(
                said.out.contains(&format!("ok      {}  ", host.name)),
                "{}",
                said.out
            );
        }
        let xml = std::fs::read_to_string(file).expect("the file is written");
        assert!(
            xml.contains("tests=\"20\" failures=\"0\" skipped=\"0\""),
            "{xml}"
        );
        hosts.iter().for_each(nothing_is_left);

        let one = h2.json(&["test", "h1"]);
        assert_eq!(
            (&one["outcome"], one["cases"].as_array().map(Vec::len)),
            (&Value::from("passed"), Some(13))
        );
        assert_eq!(h1.ctl(&["test", "nobody"]).code, 1);

        lab.switch().sh("ip link set p3 down");
        wait_for("h3 is gone", Duration::from_secs(30), || {
            h1.status()["cluster"]["connected"] == 2
        });
        let cut = h1.ctl(&["test", "--quick"]);
        assert_eq!(cut.code, 1, "{cut:?}");
        assert!(
            cut.out.contains("FAIL    h3         session"),
            "{}",
            cut.out
        );
        assert!(
            cut.out.contains("13 passed, 1 failed, 0 not run"),
            "{}",
            cut.out
        );
        lab.switch().sh("ip link set p3 up");
        nothing_is_left(h1);
    });
}

/// Whoever asked for a test goes away in the middle of it, or the node is killed: nothing of it is left either.
#[test]
fn a_test_that_is_interrupted_leaves_nothing() {
    Lab::run(|lab| {
        let hosts = lab.cluster::<2>();
        let [h1, h2] = &hosts;
        // A test may be over before it is seen: then the next one is waited for.
        let begin = || {
            let mut test = spawn_test(h1);
            wait_for("both nodes take part", Duration::from_secs(60), || {
                let is_over = test.try_wait().expect("a child can be asked").is_some();
                if is_over {
                    test = spawn_test(h1);
                }
                !is_over && !booked(h1).is_empty() && !booked(h2).is_empty()
            });
            test
        };
        let mut test = begin();
        test.kill().expect("it runs");
        test.wait().expect("it ends");
        hosts.iter().for_each(nothing_is_left);
        let mut test = begin();
        h1.end("KILL");
        test.wait().expect("it ends");
        h1.start();
        hosts.iter().for_each(nothing_is_left);
        await_mesh(&hosts);
    });
}

/// A test that runs.
fn spawn_test(host: &Host) -> Child {
    Command::new(WEAVECTL)
        .env("WEAVE_SOCKET", host.socket())
        .args(["test", "--quick"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("weavectl starts")
}

/// The attachments in a node's book.
fn booked(host: &Host) -> Vec<Value> {
    let list = host.json(&["ps"]);
    list["attachments"].as_array().cloned().unwrap_or_default()
}

/// Waits until a node has neither attachments nor addresses in use nor containers' devices.
fn nothing_is_left(host: &Host) {
    wait_for(
        &format!("nothing is left on {}", host.name),
        Duration::from_secs(90),
        || {
            let links = host.ns.sh("ip -br link");
            let used = &host.status()["cluster"]["addresses_used"];
            booked(host).is_empty() && *used == 0 && !links.contains("wv")
        },
    );
}

/// Pings inside a session are answered, timed and counted; those to a member that is away are lost.
#[test]
fn members_are_pinged() {
    Lab::run(|lab| {
        let hosts = lab.cluster::<2>();
        let [h1, _] = &hosts;
        let told = h1.json(&["ping", "h2", "-c", "5", "-i", "10ms"]);
        println!("{told}");
        assert_eq!(
            (&told["sent"], &told["received"]),
            (&Value::from(5), &Value::from(5))
        );
        let rtts = told["rtts_us"].as_array().expect("a list");
        assert!(
            rtts.iter()
                .all(|us| us.as_u64().is_some_and(|us| (1..1_000_000).contains(&us))),
            "{told}"
        );
        let words = h1.ok(&["ping", "h2", "-c", "2", "-i", "10ms"]);
        assert!(
            words.starts_with("ping 1: h2 (192.168.77.2:6783) answered in "),
            "{words}"
        );
        assert!(words.contains("2 sent, 2 received, 0% lost"), "{words}");
        assert_eq!(h1.ctl(&["ping", "h1"]).code, 1);
        assert_eq!(h1.ctl(&["ping", "nobody"]).code, 1);
        lab.switch().sh("ip link set p2 down");
        let lost = h1.ctl(&["ping", "h2", "-c", "2", "-i", "10ms", "--wait", "100ms"]);
        assert_eq!(lost.code, 1, "{lost:?}");
        lab.switch().sh("ip link set p2 up");
        await_mesh(&hosts);
    });
}

/// Has a node make all that it may leave on a host.
fn leave_all(host: &Host) {
    host.start();
    host.ok(&["init"]);
    host.attach("a");
    // What comes to a node port at loopback is the relay's.
    let service = "service create web --port 80 --selector app=web --node-port 30080";
    host.ok(&service.split(' ').collect::<Vec<_>>());
    let soon = Duration::from_secs(30);
    wait_for("the relay's routes", soon, || {
        host.ns.sh("ip rule").contains("783:")
    });
    wait_for("a way through the firewall", soon, || {
        host.ns.sh("iptables -S").contains("weave: ")
    });
}

/// What a node leaves on a host is listed and then removed, down to the last device, rule and file of ours; what is not
/// ours stays, and a node that runs is not pulled away from under its containers.
#[test]
fn everything_of_ours_is_removed() {
    Lab::run(|lab| {
        let host = lab.host("h1", 1);
        host.ns.sh("iptables -P FORWARD DROP");
        // Whether a device has a carrier changes by itself, some time after its node ended.
        let look = || {
            let lines = "ip -br link | cut -d' ' -f 1; ip rule; ip -6 rule; ip route; ip -6 route; nft -s list ruleset";
            host.ns.sh(lines).replace(" linkdown", "")
        };
        let untouched = look();
        leave_all(&host);
        let show = |name: &str| lab.dir().join(name).display().to_string();
        let [bin, conf, state] = [
            show("bin"),
            show("conf"),
            host.state().display().to_string(),
        ];
        let places = ["--bin-dir", &bin, "--conf-dir", &conf];
        let plugin = ["--plugin", WEAVECTL];
        host.ok(&[&["cni", "install"][..], &places, &plugin].concat());
        let words = [&["uninstall", "--state-dir", &state][..], &places].concat();
        let uninstall = |more: &[&str]| on(&host, &[&words[..], more].concat());

        let running = uninstall(&["--yes"]);
        assert!(
            running.code == 1 && running.err.contains("weaved runs on this host"),
            "{running:?}"
        );
        host.end("TERM");
        let before = look();
        let dry = uninstall(&["--dry-run"]);
        println!("{}", dry.out);
        assert_eq!(dry.code, 0, "{dry:?}");
        for thing in [
            "device weave0",
            "device wv",
            "route unreachable 10.32.0.0/12",
            "nftables table inet weave-attach",
            "routing table 6783",
            &state,
            &bin,
            &conf,
        ] {
            assert!(dry.out.contains(thing), "{thing}: {}", dry.out);
        }
        assert_eq!(uninstall(&[]).code, 2, "nobody is asked");
        assert_eq!(look(), before, "it was only said");
        let done = uninstall(&["--yes"]);
        assert_eq!(done.code, 0, "{done:?}");
        assert_eq!(look(), untouched);
        let files = ["conf/10-weave.conflist", "bin/weave-cni"].map(|name| lab.dir().join(name));
        let left = files.into_iter().chain([host.state(), host.socket()]);
        assert_eq!(left.filter(|path| path.exists()).count(), 0);
        assert_eq!(uninstall(&["--yes"]).code, 0, "a second time is fine");
    });
}
