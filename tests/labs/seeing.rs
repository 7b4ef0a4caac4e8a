//! What `weavectl` shows of packets and of the node: captures, the way of a packet, a bundle for whoever helps.

use std::io::Read as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::lab::capture::MARKER;
use crate::lab::node::{Said, WEAVECTL, said};
use crate::lab::traffic::{bulk, ping, try_ping, wait_for};
use crate::lab::{Container, Host, Lab, await_mesh};

/// Captures `count` packets while something happens, and gives the file.
pub(crate) fn captured(host: &Host, what: &[&str], count: usize, meanwhile: impl Fn()) -> Vec<u8> {
    let mut capture = Command::new(WEAVECTL)
        .env("WEAVE_SOCKET", host.socket())
        .args(["capture", "-c", &count.to_string()])
        .args(what)
        .stdout(Stdio::piped())
        .spawn()
        .expect("weavectl starts");
    let mut out = capture.stdout.take().expect("stdout is piped");
    let mut file = vec![0; 24];
    out.read_exact(&mut file).expect("the capture begins");
    meanwhile();
    out.read_to_end(&mut file)
        .expect("the capture ends by itself");
    assert_eq!(capture.wait().expect("it ends").code(), Some(0));
    file
}

/// What tcpdump makes of a capture: one line a packet, wrong checksums told.
fn read(lab: &Lab, file: &[u8]) -> String {
    let path = lab.dir().join("seen.pcap");
    std::fs::write(&path, file).expect("a file can be written");
    let read = said(Command::new("tcpdump").args(["-nvv", "-r"]).arg(&path));
    assert_eq!(read.code, 0, "{read:?}");
    read.out
}

fn readable(file: &[u8]) -> bool {
    file.windows(MARKER.len()).any(|window| window == MARKER)
}

/// A capture of a container, and of a member, shows packets in clear whose checksums are right, though the kernel had left
/// them for later; nothing of other members; and it ends after as many packets as were wanted, or with its reader.
#[test]
fn packets_are_captured_in_clear_with_their_checksums() {
    Lab::run(|lab| {
        let hosts = lab.cluster::<3>();
        let [h1, h2, h3] = &hosts;
        let [a, b, c] = [h1.attach("a"), h2.attach("b"), h3.attach("c")];
        let talk = || {
            bulk(&a.ns, (&b.ns, b.v4.into()), 1 << 16);
            bulk(&a.ns, (&b.ns, b.v6.into()), 1 << 16);
        };
        for what in [&["a"][..], &["--peer", "h2"]] {
            let file = captured(h1, what, 20, talk);
            let lines = read(lab, &file);
            assert!(readable(&file), "{what:?}: {lines}");
            let [source, target] = [a.v4, b.v4].map(|ip| ip.to_string());
            assert!(
                lines.contains(&source) && lines.contains(&target),
                "{what:?}: {lines}"
            );
            assert!(
                lines.contains("cksum") && !lines.contains("incorrect"),
                "{what:?}: {lines}"
            );
        }
        let file = captured(h1, &["--peer", "h2"], 4, || {
            (0..3).for_each(|_| ping(&a.ns, c.v4.into(), 56));
            ping(&a.ns, b.v4.into(), 56);
            ping(&a.ns, b.v4.into(), 56);
        });
        assert!(
            !read(lab, &file).contains(&c.v4.to_string()),
            "packets of another member"
        );
        assert_eq!(h1.ctl(&["capture", "nobody"]).code, 1);
        assert_eq!(h1.ctl(&["capture", "--peer", "nobody"]).code, 1);
        assert_eq!(h1.ctl(&["capture"]).code, 2);
    });
}

/// The way of a packet, and its end.
fn traced(host: &Host, from: &str, to: &str) -> Value {
    let said = host.ctl(&["trace", from, to, "-o", "json"]);
    serde_json::from_str(&said.out).unwrap_or_else(|error| panic!("{error}: {said:?}"))
}

/// The check that drops a packet; the real one must not arrive either.
#[track_caller]
fn dropped(host: &Host, (from, to): (&Container, &Container), check: &str) {
    let trace = traced(host, &from.name, &to.v4.to_string());
    let last = trace["hops"]
        .as_array()
        .and_then(|hops| hops.last())
        .cloned();
    let last = last.unwrap_or_default();
    assert_eq!(
        (&trace["end"], &last["check"]),
        (&Value::from("dropped"), &Value::from(check)),
        "{trace}"
    );
    assert!(last["fix"].is_string(), "{last}");
    assert!(
        !try_ping(&from.ns, to.v4.into(), 56).status.success(),
        "but the packet arrived"
    );
}

/// The way to a Service is the way to somebody behind it, and ends at once if there is nobody.
fn through_a_service(h1: &Host, h2: &Host) {
    let make = "service create web --port 80 --selector app=web";
    let made = h1.json(&make.split(' ').collect::<Vec<_>>());
    let front = made["addresses"][0].as_str().expect("an address");
    let check = |trace: &Value| {
        let mut hops = trace["hops"].as_array().into_iter().flatten();
        hops.find(|hop| hop["check"] == "service").cloned()
    };
    let nobody = traced(h1, "a", front);
    let hop = check(&nobody).expect("the service is seen");
    assert_eq!(
        (&nobody["end"], &hop["passed"]),
        (&"dropped".into(), &false.into())
    );
    let _behind = h2.attach_with("behind", &["--label", "app=web"]);
    wait_for("h1 knows who is behind", Duration::from_secs(20), || {
        traced(h1, "a", front)["end"] == "handed_over"
    });
}

/// A container of another node is found by its name, by the address where the two meet, and after one of this node.
fn by_name([h1, h2]: &[Host; 2], a: &Container, far: &Container) {
    let is_handed_over = |name: &str| {
        h1.ctl(&["trace", "a", name]).code == 0 && traced(h1, "a", name)["end"] == "handed_over"
    };
    wait_for("h1 hears of it", Duration::from_secs(20), || {
        is_handed_over(&far.name)
    });
    let trace = traced(h1, "a", &far.name);
    assert_eq!(trace["destination"], far.v4.to_string(), "{trace}");
    assert!(
        trace["hops"].to_string().contains("belongs to h2"),
        "{trace}"
    );
    ping(&a.ns, far.v4.into(), 56);

    let _namesake = h2.attach_ns(h2.bare_container("namesake"), "near", &[]);
    h2.ok(&["network", "create", "apart", "--range", "10.46.0.0/24"]);
    let twice = h2.attach_with("twice", &["--network", "apart"]);
    let path = twice.ns.path().display().to_string();
    h2.ok(&["attach", &path, "--name", "twice", "--ifname", "eth1"]);
    wait_for("a and it meet", Duration::from_secs(20), || {
        is_handed_over("twice")
    });
    assert_eq!(
        traced(h1, "a", "near")["end"],
        "delivered",
        "not to its namesake"
    );
}

/// The way that is told is the way that packets take: they arrive where it says so, and are lost where it says so.
#[test]
fn the_way_of_a_packet_is_told() {
    Lab::run(|lab| {
        let hosts = lab.cluster::<2>();
        let [h1, h2] = &hosts;
        let [a, near, far] = [h1.attach("a"), h1.attach("near"), h2.attach("far")];
        assert_eq!(traced(h1, "a", "near")["end"], "delivered");
        assert_eq!(traced(h1, "a", &near.v6.to_string())["end"], "delivered");
        for address in far.addresses() {
            let trace = traced(h1, "a", &address.to_string());
            assert_eq!(trace["end"], "handed_over", "{trace}");
            ping(&a.ns, address, 56);
        }
        let words = h1.ok(&["trace", "a", &far.v4.to_string()]);
        println!("{words}");
        assert!(
            words.contains("is handed to h2, which knows what becomes of it"),
            "{words}"
        );
        by_name(&hosts, &a, &far);
        assert_eq!(traced(h1, "a", "192.168.77.9")["end"], "leaves");
        through_a_service(h1, h2);

        let unused = traced(h1, "a", "10.32.3.77");
        assert_eq!(
            unused["hops"]
                .as_array()
                .and_then(|hops| hops.last())
                .map(|hop| &hop["check"]),
            Some(&"owner".into()),
            "{unused}"
        );
        a.ns.sh("ip route del 10.32.0.0/12; ip route del default");
        dropped(h1, (&a, &far), "route");
        a.ns.sh("ip route add default via 10.32.0.1 dev eth0");
        lab.switch().sh("ip link set p2 down");
        wait_for("h2 is missed", Duration::from_secs(30), || {
            h1.status()["cluster"]["connected"] == 1
        });
        dropped(h1, (&a, &far), "session");
        lab.switch().sh("ip link set p2 up");
        await_mesh(&hosts);
        assert_eq!(h1.ctl(&["trace", "nobody", "a"]).code, 1);
        assert_eq!(h1.ctl(&["trace", "a", "nobody"]).code, 1);
    });
}

/// The bundle has the node's answers, the host's tables and the log, and nothing of what has to stay secret.
#[test]
fn a_report_has_everything_but_secrets() {
    Lab::run(|lab| {
        let [h1] = lab.cluster();
        h1.attach("a");
        let token = h1.ok(&["token", "create"]);
        let log = lab.dir().join("leaky.log");
        std::fs::write(
            &log,
            format!("somebody logged {token} and password=hunter2\n"),
        )
        .expect("a log");
        let file = lab.dir().join("report.tar.gz").display().to_string();
        let mut command = h1.ns.command(WEAVECTL);
        let told: Said = said(
            command
                .env("WEAVE_SOCKET", h1.socket())
                .args(["report", &file, "--log"])
                .arg(&log),
        );
        assert_eq!(told.code, 0, "{told:?}");
        let unpack = format!(
            "cd {} && mkdir report && tar xzf {file} -C report --strip-components 1 && cd report",
            lab.dir().display()
        );
        crate::lab::ns::host(&unpack);
        let part = |name: &str| {
            std::fs::read_to_string(lab.dir().join("report").join(name))
                .unwrap_or_else(|error| panic!("{name}: {error}"))
        };
        assert!(part("status.json").contains("\"verdict\": \"ok\""));
        assert!(part("attachments.json").contains("\"name\": \"a\""));
        assert!(part("host/nftables.txt").contains("table inet weave-attach"));
        assert!(part("host/links.txt").contains("weave0"));
        assert!(part("weaved.log").contains("weave1.(removed)"));

        let all = crate::lab::ns::host(&format!(
            "cat {0}/report/* {0}/report/host/* 2>/dev/null || true",
            lab.dir().display()
        ));
        assert!(!all.contains(token.trim()) && !all.contains("hunter2"));
        let secret = token
            .trim()
            .split_once('.')
            .map(|parts| &parts.1[..20])
            .expect("a token has two parts");
        assert!(!all.contains(secret), "a part of the token");
        for state in secrets(&h1) {
            assert!(!all.contains(&state), "a piece of the state directory");
        }
    });
}

/// Pieces of what lies in the state directory, as text that a bundle could hold: 16 bytes each in hex.
fn secrets(host: &Host) -> Vec<String> {
    let files = std::fs::read_dir(host.state()).expect("a state directory");
    let files = files.filter_map(|entry| std::fs::read(entry.ok()?.path()).ok());
    let bytes: Vec<u8> = files.flatten().collect();
    assert!(bytes.len() > 200, "the state is there");
    // All of it is looked for, but for the node's id, which everybody may know.
    let id = host.status()["id"].as_str().unwrap_or_default().to_owned();
    let pieces = bytes
        .chunks_exact(16)
        .filter(|piece| piece.iter().any(|byte| *byte != 0));
    let pieces = pieces.map(|piece| data_encoding::HEXLOWER.encode(piece));
    pieces.filter(|piece| !id.contains(piece)).collect()
}

/// Processes of containers and hosts, on this node and another, with what they listen on; by name, and where nothing is
/// known, why.
#[test]
fn what_runs_in_containers_is_told() {
    Lab::run(|lab| {
        let hosts = lab.cluster::<2>();
        let [h1, h2] = &hosts;
        let [a, b] = [h1.attach("a"), h2.attach("b")];
        let serve = |of: &Container, port: &str| {
            let mut server = of.ns.command("python3");
            let server = server.args(["-m", "http.server", port, "--bind", &of.v4.to_string()]);
            let server = server.stdout(Stdio::null()).stderr(Stdio::null());
            server.spawn().expect("python3 is installed")
        };
        let mut servers = [serve(&a, "8001"), serve(&b, "8002")];
        for (name, port, of) in [("a", 8001, &a), ("b", 8002, &b)] {
            wait_for(
                "both nodes tell who listens",
                Duration::from_secs(30),
                || {
                    hosts.iter().all(|host| {
                        let told = host.json(&["processes", name, "--listening"]);
                        let first = &told["places"][0];
                        let process = &first["processes"][0];
                        first["container"] == name
                            && process["name"] == "python3"
                            && process["ports"][0]["port"] == port
                            && process["ports"][0]["ip"] == of.v4.to_string()
                            && process["memory_bytes"].as_u64() > Some(1 << 20)
                    })
                },
            );
        }
        let table = h1.ok(&["processes", "--listening"]);
        for (name, port) in [("b", format!("tcp/{}:8002", b.v4)), ("h2", "weaved".into())] {
            let shown = table
                .lines()
                .any(|line| line.contains(name) && line.contains(&port));
            assert!(shown, "{name} {port}: {table}");
        }
        let nobody = h1.ctl(&["processes", "nobody"]);
        assert_eq!(nobody.code, 1, "{nobody:?}");
        assert!(
            nobody
                .err
                .contains("no container and no host called nobody"),
            "{nobody:?}"
        );
        for server in &mut servers {
            server.kill().expect("it runs until now");
            server.wait().expect("it ends");
        }
        h2.end("KILL");
        wait_for(
            "a host that tells nothing is named",
            Duration::from_secs(60),
            || {
                let said = h1.ctl(&["processes"]);
                said.code == 0 && said.out.contains("h2 tells nothing of its processes")
            },
        );
        h2.start();
        await_mesh(&hosts);
    });
}
