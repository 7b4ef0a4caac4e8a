//! `weavectl` as a person or a script meets it: words, streams and exit codes, against a node that is played here.
//!
//! The node is a unix socket that gives one prepared answer, so every ending can be had without privileges.

#![allow(
    clippy::unwrap_used,
    reason = "a test ends at the first thing that is not as it should be"
)]

use std::io::{BufRead, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use serde_json::{Value, json};

/// A directory of its own for each test, gone afterwards.
struct Scratch(PathBuf);

impl Scratch {
    fn new(test: &str) -> Self {
        let path = std::env::temp_dir().join(format!("weave-cli-{}-{test}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn socket(&self) -> PathBuf {
        self.0.join("weaved.sock")
    }

    /// Plays a node that gives `body` with `status` to one request, which comes out of the channel: its first line
    /// and its body.
    fn node(&self, status: u16, body: &Value) -> Receiver<(String, String)> {
        let listener = UnixListener::bind(self.socket()).unwrap();
        let body = body.to_string();
        let (asked, request) = channel();
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let mut lines = Vec::new();
            loop {
                let mut line = String::new();
                reader.read_line(&mut line).unwrap();
                if line.trim().is_empty() {
                    break;
                }
                lines.push(line.trim().to_owned());
            }
            let length = lines
                .iter()
                .find_map(|line| line.strip_prefix("content-length: "));
            let mut sent = vec![0; length.map_or(0, |length| length.parse().unwrap())];
            reader.read_exact(&mut sent).unwrap();
            asked
                .send((lines[0].clone(), String::from_utf8(sent).unwrap()))
                .unwrap();
            let head = format!(
                "HTTP/1.1 {status} x\r\ncontent-length: {}\r\n\r\n",
                body.len()
            );
            stream.write_all((head + &body).as_bytes()).unwrap();
        });
        request
    }

    fn run(&self, words: &[&str]) -> Ended {
        let mut command = Command::new(env!("CARGO_BIN_EXE_weavectl"));
        let output = command
            .env("WEAVE_SOCKET", self.socket())
            .args(words)
            .output()
            .unwrap();
        Ended::from(output)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// How a run ended.
struct Ended {
    code: i32,
    out: String,
    err: String,
}

impl From<Output> for Ended {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap(),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

fn attachment() -> Value {
    json!({
        "name": "web1", "netns": "/run/netns/web1", "ifname": "eth0", "mac": "02:00:0a:20:00:02", "mtu": 1500,
        "host_ifname": "wv0123456789", "host_mac": "02:00:00:00:00:01", "network": "default",
        "ip": "10.32.0.2/12", "gateway": "10.32.0.1", "ip6": "fd00::2/128", "gateway6": "fe80::1", "default_route": true,
        "labels": {"app": "web"}, "attached_at": 1, "alive": true
    })
}

fn status(verdict: &str, summary: &str, problems: &Value) -> Value {
    let traffic =
        json!({"sent_packets": 3, "sent_bytes": 1500, "received_packets": 0, "received_bytes": 0});
    json!({
        "verdict": verdict, "summary": summary, "problems": problems, "version": "0.1.0", "name": "host1",
        "id": "ab".repeat(32), "started_at": 1, "listen": "[::]:6783", "suites": ["aes-256-gcm"], "mtu": 1500,
        "containers": 1, "gone": ["web1"], "host": null, "traffic": traffic,
        "datagrams": {"sent": 40, "sent_calls": 2, "received": 9, "received_batches": 6, "received_calls": 3},
        "drops": {"replay": 2, "forged": 0, "link_scope": 5},
        "offloads": {
            "gso": "used", "gro": "used", "tso": "used", "uso": "refused", "big_tcp": "used", "multiqueue": "used", "queues": 2
        },
        "cluster": {
            "range": "10.32.0.0/12", "range6": "fd00::/48", "members": 3, "connected": 2,
            "blocks": ["10.32.0.0/13"], "addresses": 524_288, "addresses_used": 1
        }
    })
}

const NO_ENDPOINT: &str =
    "not an address without leading zeros and its port, such as 10.32.0.2:8080";

const NO_RANGE: &str = "not an IPv4 range without leading zeros, such as 10.32.0.0/12";

const fn with_endpoint(endpoint: &str) -> [&str; 7] {
    [
        "service",
        "create",
        "web",
        "--port",
        "80",
        "--endpoint",
        endpoint,
    ]
}

/// Each is wrong usage, and is told so by words that contain these.
fn refused(cases: &[(&[&str], &str)]) {
    let scratch = Scratch::new("usage");
    for (words, said) in cases {
        let ended = scratch.run(words);
        assert_eq!(
            (ended.code, ended.out.as_str()),
            (2, ""),
            "{words:?}: {}",
            ended.err
        );
        assert!(ended.err.contains(said), "{words:?}: {}", ended.err);
    }
}

#[test]
fn wrong_usage_is_2() {
    refused(&[
        (&["fly"], "fly"),
        (&["attach", "web1"], "--name"),
        (&["attach", "web1", "--name", "a/b"], "container name"),
        (
            &["attach", "web1", "--name", "a", "--label", "app"],
            "key=value",
        ),
        (
            &[
                "attach",
                "web1",
                "--name",
                "a",
                "--ifname",
                "much-too-long-name",
            ],
            "interface name",
        ),
        (&["token", "create", "--ttl", "5"], "duration"),
        (&["token", "create", "--uses", "0"], "--uses"),
        (&["status", "-o", "xml"], "xml"),
        (&["capture"], "<NAME|--peer <PEER>>"),
        (&["capture", "a", "--peer", "b"], "cannot be used with"),
        (&["completion", "csh"], "csh"),
        (&["ping", "a", "-c", "0"], "--count"),
    ]);
    let scratch = Scratch::new("help");
    assert_eq!(scratch.run(&["--help"]).code, 0);
    assert_eq!(scratch.run(&["--version"]).code, 0);
}

#[test]
fn addresses_and_ranges_that_are_none_are_wrong_usage() {
    refused(&[
        (&["attach", "web1", "--name", "a", "--ip", "10.32"], "--ip"),
        (
            &["attach", "web1", "--name", "a", "--ip", "10.32.0.010"],
            "'10.32.0.010' for '--ip",
        ),
        (&["init", "--range", "10.0.0.0"], NO_RANGE),
        (&["init", "--range", "010.32.0.0/12"], NO_RANGE),
        (&["init", "--range", "10.32.0.0/012"], NO_RANGE),
        (
            &["init", "--range6", "::ffff:010.32.0.0/96"],
            "not an IPv6 range",
        ),
        (
            &["network", "create", "db", "--range", "10.032.0.0/16"],
            NO_RANGE,
        ),
        (&["check", "--pre", "--range", "10.0.0.0"], "--range"),
        (&["check", "--pre", "--range", "010.32.0.0/12"], NO_RANGE),
        (
            &["init", "--range6", "banana"],
            "not an IPv6 range, such as fd00:1:2::/48",
        ),
        (&with_endpoint("010.96.0.1:80"), NO_ENDPOINT),
        (&with_endpoint("10.96.0.01:80"), NO_ENDPOINT),
        (&with_endpoint("[::ffff:10.96.0.01]:80"), NO_ENDPOINT),
        (&with_endpoint("10.96.0.1"), NO_ENDPOINT),
    ]);
}

#[test]
fn what_a_service_could_not_keep_to_is_wrong_usage() {
    let web = ["service", "create", "web", "--endpoint", "192.0.2.1:8080"];
    let asked = |more: [&'static str; 2]| [&web[..], &more].concat();
    let other = asked(["--port", "80:9090"]);
    let parts = [asked(["--port", "80"]), vec!["--affinity", "1500ms"]].concat();
    refused(&[
        (&other, "names another one, 9090"),
        (&parts, "whole seconds"),
    ]);
}

#[test]
fn no_node_is_4() {
    let scratch = Scratch::new("none");
    let ended = scratch.run(&["status"]);
    assert_eq!((ended.code, ended.out.as_str()), (4, ""));
    let lines: Vec<&str> = ended.err.lines().collect();
    assert!(lines[0].ends_with("there is no such socket"), "{lines:?}");
    assert_eq!(
        lines[1..],
        ["fix: start weaved, or name its socket with --socket"]
    );

    drop(UnixListener::bind(scratch.socket()).unwrap());
    let ended = scratch.run(&["ps"]);
    assert_eq!(ended.code, 4);
    assert!(
        ended
            .err
            .contains("nobody listens there\nfix: start weaved\n"),
        "{}",
        ended.err
    );
}

#[test]
fn a_node_that_hangs_up_is_4_and_a_silent_one_5() {
    let scratch = Scratch::new("silent");
    let listener = UnixListener::bind(scratch.socket()).unwrap();
    let ended = scratch.run(&["status", "--timeout", "100ms"]);
    assert_eq!(ended.code, 5, "{}", ended.err);
    assert!(
        ended
            .err
            .contains("no answer from the node within 100 ms\nfix: "),
        "{}",
        ended.err
    );

    let hang_up = thread::spawn(move || {
        let (waiting, _) = listener.accept().unwrap();
        drop(waiting);
        drop(listener.accept().unwrap());
    });
    let ended = scratch.run(&["status", "--timeout", "5s"]);
    assert_eq!(ended.code, 4, "{}", ended.err);
    hang_up.join().unwrap();
}

/// A picture of a container that Docker calls web, with a flow from it of so many packets.
fn picture(sent_packets: u64) -> Value {
    let host = "01".repeat(32);
    let end = |kind: &str, id: &str, name: &str, ip: &str| json!({"kind": kind, "id": id, "name": name, "ip": ip});
    let id = "c:0101010101/docker-2a66/eth0";
    json!({
        "at": 7, "node": host, "verdict": "ok", "summary": "", "problems": [], "hosts": [], "links": [],
        "containers": [{
            "id": id, "title": "web", "host": host, "name": "docker-2a66", "ifname": "eth0", "network": "default",
            "ip": "10.32.0.2", "ip6": null, "labels": {}, "attached_at": 1, "alive": true,
            "runtime": {"runtime": "docker", "id": "2a66", "name": "web", "image": "web:1"}
        }],
        "flows": [{
            "id": "f:1", "from": end("container", id, "web", "10.32.0.2"),
            "to": end("outside", "o:192.0.2.7", "192.0.2.7", "192.0.2.7"), "protocol": "tcp", "port": 80, "via": null,
            "connections": 1, "open": 1, "refused": 0, "unanswered": 0, "sent_bytes": 1, "sent_packets": sent_packets,
            "received_bytes": 1, "received_packets": 1, "sent_rate": 0, "received_rate": 0, "failing": false, "last_at": 1
        }]
    })
}

#[test]
fn flows_have_the_names_that_people_know_and_are_found_by_all() {
    for name in ["web", "docker-2a66", "10.32.0.2"] {
        let scratch = Scratch::new("named");
        let request = scratch.node(200, &picture(1));
        let ended = scratch.run(&["flows", "--from", name]);
        assert_eq!(request.recv().unwrap().0, "GET /v1/topology HTTP/1.1");
        assert_eq!((ended.code, ended.err.as_str()), (0, ""));
        let row = ended.out.lines().nth(1).unwrap_or_default();
        assert!(row.starts_with("web   192.0.2.7  tcp/80"), "{name}: {row}");
    }
}

/// A verb that goes on until it is killed.
struct Running(std::process::Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn flows_are_followed_over_a_node_that_is_started_again() {
    let scratch = Scratch::new("followed");
    let first = scratch.node(200, &picture(1));
    let running = Command::new(env!("CARGO_BIN_EXE_weavectl"))
        .env("WEAVE_SOCKET", scratch.socket())
        .args(["flows", "--follow", "--from", "web"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut running = Running(running.unwrap());
    let mut out = BufReader::new(running.0.stdout.take().unwrap());
    let mut err = BufReader::new(running.0.stderr.take().unwrap());
    let line = |from: &mut dyn BufRead| {
        let mut line = String::new();
        from.read_line(&mut line).unwrap();
        line
    };
    first.recv().unwrap();
    let said = line(&mut err);
    assert!(said.ends_with("asking again\n"), "{said}");
    std::fs::remove_file(scratch.socket()).unwrap();
    let second = scratch.node(200, &picture(2));
    second.recv().unwrap();
    assert_eq!(line(&mut err), "weavectl: the node answers again\n", "once");
    let flow = line(&mut out);
    assert!(flow.starts_with("web -> 192.0.2.7 tcp/80 ok"), "{flow}");
}

#[test]
fn a_refusal_is_1_with_its_cause_and_fix() {
    let scratch = Scratch::new("refused");
    let body =
        json!({"code": "conflict", "message": "the name web1 is taken", "fix": "choose another"});
    let request = scratch.node(409, &body);
    let ended = scratch.run(&["attach", "web1", "--name", "web1"]);
    assert_eq!((ended.code, ended.out.as_str()), (1, ""));
    assert_eq!(
        ended.err,
        "weavectl: the name web1 is taken\nfix: choose another\n"
    );
    assert_eq!(request.recv().unwrap().0, "POST /v1/attachments HTTP/1.1");
}

#[test]
fn attach_asks_for_what_was_typed() {
    let scratch = Scratch::new("attach");
    let request = scratch.node(200, &attachment());
    let words = "attach ./ns --name web1 --ip fd00::2 --ifname net1 --label app=web --label tier=";
    let ended = scratch.run(&words.split(' ').collect::<Vec<_>>());
    assert_eq!((ended.code, ended.err.as_str()), (0, ""));
    assert_eq!(ended.out, "web1: 10.32.0.2 and fd00::2 on eth0\n");
    let (_, body) = request.recv().unwrap();
    let here = std::env::current_dir().unwrap();
    let expected = json!({
        "netns": here.join("ns"), "name": "web1", "ip": "fd00::2", "ifname": "net1", "network": "default",
        "labels": {"app": "web", "tier": ""}
    });
    assert_eq!(serde_json::from_str::<Value>(&body).unwrap(), expected);
}

#[test]
fn attach_in_json_is_a_cni_result() {
    let scratch = Scratch::new("cni");
    let _request = scratch.node(200, &attachment());
    let ended = scratch.run(&["-o", "json", "attach", "web1", "--name", "web1"]);
    let result: Value = serde_json::from_str(&ended.out).unwrap();
    assert_eq!(result["cniVersion"], "1.1.0");
    assert_eq!(result["ips"][0]["address"], "10.32.0.2/12");
    assert_eq!(result["interfaces"][1]["sandbox"], "/run/netns/web1");
}

#[test]
fn detach_may_name_one_interface() {
    let scratch = Scratch::new("detach");
    let request = scratch.node(200, &json!({"attachments": [attachment()], "host": null}));
    let ended = scratch.run(&["detach", "web1", "--ifname", "net&1"]);
    assert_eq!(
        (ended.code, ended.out.as_str()),
        (0, "web1: detached, 10.32.0.2 and fd00::2 are free again\n")
    );
    assert_eq!(
        request.recv().unwrap().0,
        "DELETE /v1/attachments/web1?ifname=net%261 HTTP/1.1"
    );
}

#[test]
fn a_token_stands_alone_on_stdout() {
    let scratch = Scratch::new("token");
    let answer =
        json!({"token": "weave1.abc", "expires_at": 9, "uses": 2, "addresses": ["192.0.2.1:6783"]});
    let request = scratch.node(200, &answer);
    let ended = scratch.run(&["token", "create", "--ttl", "2h", "--uses", "2"]);
    assert_eq!(
        (ended.out.as_str(), ended.err.as_str()),
        ("weave1.abc\n", "")
    );
    let (_, body) = request.recv().unwrap();
    assert_eq!(
        serde_json::from_str::<Value>(&body).unwrap(),
        json!({"ttl_s": 7200, "uses": 2})
    );
}

#[test]
fn status_says_the_verdict_first() {
    let scratch = Scratch::new("status");
    let problem = json!([{"cause": "no session with host3", "fix": "open UDP 6783"}]);
    for (verdict, problems, code) in [("ok", json!([]), 0), ("degraded", problem, 3)] {
        let _request = scratch.node(200, &status(verdict, "2 of 3 members connected", &problems));
        let ended = scratch.run(&["status"]);
        assert_eq!((ended.code, ended.err.as_str()), (code, ""));
        assert!(
            ended
                .out
                .starts_with(&format!("{verdict}: 2 of 3 members connected\n")),
            "{}",
            ended.out
        );
        assert_eq!(
            ended
                .out
                .contains("  no session with host3\n  fix: open UDP 6783\n"),
            code == 3
        );
        assert!(
            ended.out.contains(
                "gone        web1; their addresses are freed within seconds of their interfaces\n"
            ),
            "{}",
            ended.out
        );
        assert!(
            ended.out.contains("drops       replay 2\n"),
            "{}",
            ended.out
        );
        assert!(
            ended.out.contains(
                "offloads    2 queues, using gso gro tso big_tcp multiqueue, refused: uso\n"
            ),
            "{}",
            ended.out
        );
        std::fs::remove_file(scratch.socket()).unwrap();
    }
}

#[test]
fn a_problem_that_is_the_summary_is_not_said_twice() {
    let scratch = Scratch::new("twice");
    let cause = "this node is in no cluster";
    let problem = json!([{"cause": cause, "fix": "make one with: weavectl init"}]);
    let _request = scratch.node(200, &status("degraded", cause, &problem));
    let ended = scratch.run(&["status"]);
    assert!(
        ended
            .out
            .starts_with(&format!("degraded: {cause}\n  fix: make one with")),
        "{}",
        ended.out
    );
}

#[test]
fn the_host_is_exposed_on_a_device_and_hidden_again() {
    let scratch = Scratch::new("expose");
    let both = json!({"ip": "10.32.0.3", "ip6": "fd00::3"});
    let only_v4 = json!({"ip": "10.32.0.3", "ip6": null});
    for (verb, host, said) in [
        ("expose", &both, "host: 10.32.0.3 and fd00::3 on weave0\n"),
        (
            "hide",
            &both,
            "host: hidden, 10.32.0.3 and fd00::3 are free again\n",
        ),
        ("hide", &only_v4, "host: hidden, 10.32.0.3 is free again\n"),
    ] {
        let _request = scratch.node(200, host);
        let ended = scratch.run(&[verb]);
        assert_eq!((ended.code, ended.out.as_str()), (0, said));
        std::fs::remove_file(scratch.socket()).unwrap();
    }
}

#[test]
fn the_help_of_a_verb_tells_its_own_options_first() {
    let scratch = Scratch::new("help");
    for form in ["-h", "--help"] {
        let help = scratch.run(&["attach", form]).out;
        let at = |word: &str| {
            help.find(word)
                .unwrap_or_else(|| panic!("{word} is not in: {help}"))
        };
        let global = at("Global options:");
        for own in ["--name", "--ip", "--ifname", "--label"] {
            assert!(at(own) < global, "{help}");
        }
        for other in ["--socket", "--output", "--timeout"] {
            assert!(at(other) > global, "{help}");
        }
    }
}

#[test]
fn ps_aligns_its_columns() {
    let scratch = Scratch::new("ps");
    let host = json!({"ip": "10.32.0.3", "ip6": "fd00::3"});
    let _request = scratch.node(200, &json!({"attachments": [attachment()], "host": host}));
    let ended = scratch.run(&["ps"]);
    let columns: Vec<Option<usize>> = ended
        .out
        .lines()
        .map(|line| line.find("10.32").or_else(|| line.find("IP")))
        .collect();
    assert_eq!(columns, [Some(8); 3], "{}", ended.out);
    assert!(!ended.out.contains('\x1b'), "no colour in a pipe");
}

#[test]
fn ps_says_what_a_runtime_calls_what_it_attached() {
    let mut of_docker = attachment();
    of_docker["name"] = json!("docker-2a66");
    for (words, more) in [(&["ps"][..], 0), (&["ps", "-o", "wide"], 6)] {
        let scratch = Scratch::new("called");
        let called = json!({"docker-2a66": "shop\u{1b}"});
        let answer = json!({"attachments": [of_docker.clone(), attachment()], "called": called, "host": null});
        let _request = scratch.node(200, &answer);
        let ended = scratch.run(words);
        let cells = |row: usize| {
            let line = ended.out.lines().nth(row).unwrap_or_default();
            let cells = line.split("  ").map(str::trim);
            let cells: Vec<&str> = cells.filter(|cell| !cell.is_empty()).collect();
            cells[8..].to_vec()
        };
        assert_eq!(cells(0).len(), 1 + more, "{}", ended.out);
        assert_eq!(
            [cells(0)[0], cells(1)[0], cells(2)[0]],
            ["CALLED", "shop?", "-"]
        );
    }
}

/// Folders for `weavectl cni`, and a program that stands for the plugin.
struct Folders {
    scratch: Scratch,
    bin: String,
    other: String,
    conf: String,
}

impl Folders {
    fn new(test: &str) -> Self {
        let scratch = Scratch::new(test);
        let at = |name: &str| scratch.0.join(name).display().to_string();
        let [bin, other, conf] = ["bin", "other", "net.d"].map(at);
        std::fs::write(scratch.0.join("plugin"), "a program").unwrap();
        Self {
            scratch,
            bin,
            other,
            conf,
        }
    }

    fn run(&self, words: &[&str]) -> Ended {
        let folders = [
            "--bin-dir",
            &self.bin,
            "--bin-dir",
            &self.other,
            "--conf-dir",
            &self.conf,
        ];
        self.scratch.run(&[&["cni"], words, &folders].concat())
    }

    fn install(&self) -> Ended {
        let plugin = self.scratch.0.join("plugin").display().to_string();
        self.run(&["install", "--plugin", &plugin])
    }

    fn names(folder: &str) -> Vec<String> {
        let entries = std::fs::read_dir(folder).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.collect()
    }
}

/// The plugin is whole and can be run before the configuration names it; doing it again is fine.
#[test]
fn cni_is_installed_plugin_first() {
    let folders = Folders::new("cni-install");
    let Folders {
        bin, other, conf, ..
    } = &folders;
    let expected =
        format!("wrote {bin}/weave-cni\nwrote {other}/weave-cni\nwrote {conf}/10-weave.conflist\n");
    for _ in 0..2 {
        let ended = folders.install();
        assert_eq!(
            (ended.code, ended.out),
            (0, expected.clone()),
            "{}",
            ended.err
        );
    }
    let mode = std::fs::metadata(format!("{bin}/weave-cni"))
        .unwrap()
        .permissions();
    assert_eq!(
        std::os::unix::fs::PermissionsExt::mode(&mode) & 0o777,
        0o755
    );
    let text = std::fs::read(format!("{conf}/10-weave.conflist")).unwrap();
    let conflist: Value = serde_json::from_slice(&text).unwrap();
    let plugin = &conflist["plugins"][0];
    assert_eq!(
        (&conflist["name"], &plugin["type"]),
        (&json!("weave"), &json!("weave-cni"))
    );
    assert_eq!(plugin["socket"], json!(folders.scratch.socket()));
    let able = json!({
        "ips": true, "ipRanges": true, "mac": true, "dns": true, "aliases": true, "portMappings": true, "bandwidth": true,
    });
    assert_eq!(plugin["capabilities"], able);
    assert_eq!(Folders::names(bin), ["weave-cni"]);
    assert_eq!(Folders::names(conf), ["10-weave.conflist"]);
}

/// The configuration goes before what it names, and what is not ours stays.
#[test]
fn cni_is_taken_away_configuration_first() {
    let folders = Folders::new("cni-uninstall");
    let Folders {
        bin, other, conf, ..
    } = &folders;
    folders.install();
    std::fs::write(format!("{conf}/05-first.conflist"), "{}").unwrap();
    let said = folders.install().out;
    assert!(said.contains("05-first.conflist first"), "{said}");
    let expected = format!(
        "removed {conf}/10-weave.conflist\nremoved {bin}/weave-cni\nremoved {other}/weave-cni\n"
    );
    assert_eq!(folders.run(&["uninstall"]).out, expected);
    assert_eq!(Folders::names(conf), ["05-first.conflist"]);
    let foreign = format!("{conf}/10-weave.conflist");
    std::fs::write(&foreign, r#"{"name": "somebody's"}"#).unwrap();
    assert_eq!(
        folders.run(&["uninstall"]).out,
        "nothing of ours was there\n"
    );
    let refused = folders.run(&["install", "--plugin", env!("CARGO_BIN_EXE_weavectl")]);
    assert_eq!(refused.code, 1);
    assert!(
        refused
            .err
            .contains("10-weave.conflist is not of this plugin"),
        "{}",
        refused.err
    );
    assert!(refused.err.contains("fix: move it away"), "{}", refused.err);
    assert_eq!(
        Folders::names(conf),
        ["05-first.conflist", "10-weave.conflist"]
    );
    assert_eq!(
        std::fs::read_to_string(foreign).unwrap(),
        r#"{"name": "somebody's"}"#
    );
}

#[test]
fn a_missing_plugin_is_told_before_anything_is_written() {
    let folders = Folders::new("cni-missing");
    let ended = folders.run(&["install", "--plugin", "/nowhere/weave-cni"]);
    assert_eq!(ended.code, 1);
    let told = ended.err.contains("cannot read the plugin") && ended.err.contains("--plugin");
    assert!(told, "{}", ended.err);
    assert!(
        ![&folders.bin, &folders.conf]
            .into_iter()
            .any(|folder| std::fs::exists(folder).unwrap())
    );
}

#[test]
fn an_answer_comes_as_yaml_or_with_more_columns() {
    let scratch = Scratch::new("forms");
    let list = json!({"attachments": [attachment()], "host": null});
    let _asked = scratch.node(200, &list);
    let ended = scratch.run(&["ps", "-o", "yaml"]);
    assert_eq!(ended.code, 0, "{}", ended.err);
    for line in ["attachments:", "name: web1", "ip: 10.32.0.2/12", "app: web"] {
        assert!(ended.out.contains(line), "{}", ended.out);
    }
    std::fs::remove_file(scratch.socket()).unwrap();
    let _asked = scratch.node(200, &list);
    let ended = scratch.run(&["ps", "-o", "wide"]);
    let lines: Vec<&str> = ended.out.lines().collect();
    assert!(
        lines[0].contains("HOST-INTERFACE") && lines[0].contains("NAMESPACE"),
        "{lines:?}"
    );
    assert!(
        lines[1].contains("wv0123456789") && lines[1].contains("/run/netns/web1"),
        "{lines:?}"
    );
}

#[test]
fn shells_and_man_learn_the_verbs() {
    let scratch = Scratch::new("manual");
    for (shell, word) in [
        ("bash", "complete -o nospace"),
        ("zsh", "#compdef weavectl"),
        ("fish", "complete --keep-order"),
    ] {
        let ended = scratch.run(&["completion", shell]);
        assert_eq!(ended.code, 0, "{}", ended.err);
        for said in [word, "WEAVECTL_COMPLETE"] {
            assert!(ended.out.contains(said), "{shell}: {said}");
        }
    }
    let folder = scratch.0.join("man").display().to_string();
    assert_eq!(scratch.run(&["man", &folder]).code, 0);
    for page in ["weavectl.1", "weavectl-attach.1", "weavectl-token-create.1"] {
        let text = std::fs::read_to_string(scratch.0.join("man").join(page)).unwrap();
        assert!(text.contains(".SH NAME"), "{page}");
    }
}
