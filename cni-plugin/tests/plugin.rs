//! The plugin as a process, against a node that is played here: what it sends, what it says, how it ends.

#![allow(
    clippy::unwrap_used,
    reason = "a test ends at the first thing that is not as it should be"
)]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread::{self, JoinHandle};

use serde_json::{Value, json};

/// A directory of its own for each test, gone afterwards.
struct Scratch(PathBuf);

/// How a run ended: whether well, and what was on stdout.
type Ended = (bool, Value);

impl Scratch {
    fn new(test: &str) -> Self {
        let path = std::env::temp_dir().join(format!("weave-cni-{}-{test}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn socket(&self) -> PathBuf {
        self.0.join("weaved.sock")
    }

    /// Plays a node that says `answer` to one request, whose first line and body come back.
    fn node(&self, answer: &str) -> JoinHandle<(String, Value)> {
        let listener = UnixListener::bind(self.socket()).unwrap();
        let answer = answer.to_owned();
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
            let mut body = vec![0; length.unwrap().parse().unwrap()];
            reader.read_exact(&mut body).unwrap();
            stream.write_all(answer.as_bytes()).unwrap();
            (
                lines[0].clone(),
                serde_json::from_slice(&body).unwrap_or_default(),
            )
        })
    }

    /// Calls a verb for `eth0` of `c1`, whose namespace is that of this very process.
    fn call(&self, verb: &str, more: &Value) -> Ended {
        let mut config = json!({"cniVersion": "1.1.0", "name": "net", "type": "weave-cni"});
        for (key, value) in more.as_object().unwrap() {
            config[key] = value.clone();
        }
        let mut child = Command::new(env!("CARGO_BIN_EXE_weave-cni"))
            .env_clear()
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", "c1")
            .env("CNI_NETNS", "/proc/self/ns/net")
            .env("CNI_NETNS_OVERRIDE", "1")
            .env("CNI_IFNAME", "eth0")
            .env("WEAVE_SOCKET", self.socket())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(config.to_string().as_bytes()).unwrap();
        drop(stdin);
        let output = child.wait_with_output().unwrap();
        let out = String::from_utf8(output.stdout).unwrap();
        let value = if out.is_empty() {
            Value::Null
        } else {
            serde_json::from_str(&out).unwrap()
        };
        (output.status.success(), value)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn http(status: u16, body: &Value) -> String {
    let body = body.to_string();
    format!(
        "HTTP/1.1 {status} x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}

fn attachment() -> Value {
    json!({
        "name": "c1", "netns": "/proc/self/ns/net", "ifname": "eth0", "mac": "02:00:0a:20:00:02", "mtu": 1500,
        "host_ifname": "wv0123456789", "host_mac": "02:00:00:00:00:01", "network": "default",
        "ip": "10.32.0.2/12", "gateway": "10.32.0.1", "ip6": "fd00::2/128", "gateway6": "fe80::1", "default_route": true,
        "labels": {}, "attached_at": 1, "alive": true
    })
}

#[test]
fn add_asks_for_what_runtime_and_configuration_say() {
    let scratch = Scratch::new("add");
    let node = scratch.node(&http(200, &attachment()));
    let (ok, out) = scratch.call(
        "ADD",
        &json!({
            "mtu": 1400,
            "runtimeConfig": {
                "ips": ["10.32.0.2/12", "fd00::2"], "mac": "02:00:0a:20:00:02", "aliases": ["www", "web", "www"],
                "ipRanges": [[{"subnet": "10.32.0.0/24", "rangeEnd": "10.32.0.9"}]],
            },
            "args": {"cni": {"labels": [{"key": "app", "value": "web"}]}},
        }),
    );
    assert!(ok, "{out}");
    assert_eq!(
        out["ips"][1],
        json!({"address": "fd00::2/128", "gateway": "fe80::1", "interface": 1})
    );
    let (line, body) = node.join().unwrap();
    assert_eq!(line, "POST /v1/attachments HTTP/1.1");
    let expected = json!({
        "netns": "/proc/self/ns/net", "name": "c1", "ip": "10.32.0.2", "more_ips": ["fd00::2"],
        "mac": "02:00:0a:20:00:02", "mtu": 1400, "ifname": "eth0", "network": "default", "labels": {"app": "web"},
        "aliases": ["web", "www"], "ranges": [{"subnet": "10.32.0.0/24", "first": "10.32.0.1", "last": "10.32.0.9"}],
        "owner": {"network": "net", "container": "c1"},
    });
    assert_eq!(body, expected);
}

/// The two kinds of answers that are none: DEL is written down, everything else is to be tried again.
/// As Podman sends them: by networks, and with whatever its containers are called.
#[test]
fn aliases_are_those_of_the_network() {
    let scratch = Scratch::new("aliases");
    let node = scratch.node(&http(
        400,
        &json!({"code": "invalid", "message": "no", "fix": "none"}),
    ));
    let aliases = json!({"net": ["web", "0123456789ab", "a name", "web"], "other": ["mail"]});
    scratch.call("ADD", &json!({"runtimeConfig": {"aliases": aliases}}));
    let (_, body) = node.join().unwrap();
    assert_eq!(body["aliases"], json!(["0123456789ab", "web"]));
}

#[test]
fn an_answer_that_cannot_be_read_is_none() {
    for (test, answer) in [
        ("empty", ""),
        ("cut", "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{}"),
        ("strange", "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"),
        ("other", "SSH-2.0-x\r\n\r\n"),
    ] {
        let scratch = Scratch::new(test);
        let node = scratch.node(answer);
        let (ok, out) = scratch.call("ADD", &json!({}));
        assert!(!ok && out["code"] == 11, "{test}: {out}");
        node.join().unwrap();
        std::fs::remove_file(scratch.socket()).unwrap();
        let node = scratch.node(answer);
        assert_eq!(
            scratch.call("DEL", &json!({})),
            (true, Value::Null),
            "{test}"
        );
        assert_eq!(node.join().unwrap().0, "POST /v1/cni/del HTTP/1.1");
        assert!(
            scratch.0.join("cni-journal/weaved.sock.c1.eth0").exists(),
            "{test}"
        );
    }
}

#[test]
fn refusals_keep_their_words_and_get_a_code() {
    for (refusal, code) in [
        ("invalid", 7),
        ("not_ready", 11),
        ("remote", 11),
        ("conflict", 100),
        ("failed", 100),
    ] {
        let scratch = Scratch::new(refusal);
        let _node = scratch.node(&http(
            400,
            &json!({"code": refusal, "message": "the cause", "fix": "the fix"}),
        ));
        let (ok, out) = scratch.call("ADD", &json!({"cniVersion": "0.4.0"}));
        assert!(!ok);
        assert_eq!(
            out,
            json!({"cniVersion": "0.4.0", "code": code, "msg": "the cause", "details": "the fix"})
        );
    }
}

#[test]
fn del_fails_where_it_can_neither_be_done_nor_written_down() {
    let scratch = Scratch::new("nowhere");
    std::fs::write(scratch.0.join("cni-journal"), "a file").unwrap();
    let (ok, out) = scratch.call("DEL", &json!({}));
    assert!(!ok && out["code"] == 11, "{out}");
}
