//! The CNI plugin as a runtime calls it, against real nodes: what the specification asks, seen in the kernel.
//!
//! [`Runtime`] is a runtime without containers: it calls the plugin for a namespace and keeps the result, as libcni does.

mod bandwidth;
mod cases;
mod chain;
mod containerd;
mod crowd;
mod host_ports;
mod killed;
mod mutants;
mod netavark;
mod podman;
mod pods;
mod ports;

pub(crate) use chain::word;
pub(crate) use containerd::{AT_ONCE, BACK, SWEPT, image};

use std::io::Write as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use serde_json::{Value, json};

use crate::lab::Host;
use crate::lab::node::WEAVED;
use crate::lab::ns::{self, Ns};

/// The plugin under test: the one to install.
pub(crate) fn plugin() -> PathBuf {
    let target = Path::new(WEAVED).parent().and_then(Path::parent);
    let plugin = target.expect("it has a folder").join("install/weave-cni");
    assert!(
        plugin.exists(),
        "no {}: build all with ./run build",
        plugin.display()
    );
    plugin
}

/// A runtime starts it anew for each call, on hosts with whatever libc: it needs no other file, and is small.
#[test]
fn the_plugin_is_static_and_small() {
    let plugin = plugin();
    let size = std::fs::metadata(&plugin).expect("it is there").len();
    println!("weave-cni: {:.2} MB", size as f64 / 1e6);
    assert!(size < 3_000_000, "{size} bytes");
    let headers = Command::new("readelf").args(["-lW"]).arg(&plugin).output();
    let headers = headers.expect("binutils are installed");
    let headers = String::from_utf8_lossy(&headers.stdout).into_owned();
    assert!(headers.contains("LOAD"), "{headers}");
    assert!(!headers.contains("INTERP"), "{headers}");
}

/// Where Debian puts the reference plugins.
const REFERENCE: &str = "/usr/lib/cni";

/// Has the plugin add a container of this name to a host's network, and take it off again.
pub(crate) fn come_and_go(host: &Host, id: &str) {
    let (runtime, ns) = (Runtime::new(host), host.bare_container(id));
    runtime.add(id, &ns);
    runtime.del(id, &ns);
}

/// Whose plugin a runtime calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whose {
    Ours,
    Reference,
}

/// A runtime on a host, with one network.
#[derive(Clone)]
struct Runtime<'a> {
    host: &'a Host,
    whose: Whose,
    plugin: PathBuf,
    config: Value,
    vars: Vec<(String, String)>,
}

/// How a call ended.
#[derive(Debug)]
struct Called {
    ok: bool,
    whose: Whose,
    /// What was on stdout: nothing, or one JSON object.
    out: Value,
    err: String,
}

impl<'a> Runtime<'a> {
    /// A runtime with a network `weave` of version 1.1.0.
    fn new(host: &'a Host) -> Self {
        let config = json!({
            "cniVersion": "1.1.0", "name": "weave", "type": "weave-cni", "socket": host.socket(),
        });
        Self {
            host,
            whose: Whose::Ours,
            plugin: plugin(),
            config,
            vars: Vec::new(),
        }
    }

    /// One that calls a plugin of the reference, with a configuration of its own.
    fn reference(host: &'a Host, name: &str, config: Value) -> Self {
        let plugin = PathBuf::from(REFERENCE).join(name);
        let vars = vec![("CNI_PATH".to_owned(), REFERENCE.to_owned())];
        Self {
            host,
            whose: Whose::Reference,
            plugin,
            config,
            vars,
        }
    }

    /// The plugins `bridge` and `host-local` with a network as ours is: both families, a default route, a gateway.
    fn control(host: &'a Host, dir: &Path) -> Self {
        let config = json!({
            "cniVersion": "1.0.0", "name": "weave", "type": "bridge", "bridge": "cni0", "isDefaultGateway": true,
            "ipam": {
                "type": "host-local", "dataDir": host_local(dir),
                "ranges": [[{"subnet": "10.32.0.0/12"}], [{"subnet": "fd00:32::/64"}]],
            },
        });
        Self::reference(host, "bridge", config)
    }

    /// The same with a field of the configuration set.
    fn with(&self, field: &str, value: impl Into<Value>) -> Self {
        let mut changed = self.clone();
        changed.config[field] = value.into();
        changed
    }

    /// The same with a variable set.
    fn var(&self, name: &str, value: &str) -> Self {
        let mut changed = self.clone();
        changed.vars.push((name.to_owned(), value.to_owned()));
        changed
    }

    fn command(&self, verb: &str, more: &[(&str, &str)]) -> Command {
        let program = self.plugin.to_str().expect("a plain path");
        let mut command = self.host.ns.command(program);
        command.env("CNI_COMMAND", verb).env("CNI_PATH", "/nowhere");
        command
            .envs(more.iter().copied())
            .envs(self.vars.iter().cloned());
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Starts a call; the configuration is written to it.
    fn begin(&self, verb: &str, more: &[(&str, &str)]) -> Child {
        let mut child = self.command(verb, more).spawn().expect("the plugin starts");
        let mut stdin = child.stdin.take().expect("stdin is piped");
        // One that fails early does not read it all.
        let _ = stdin.write_all(self.config.to_string().as_bytes());
        child
    }

    fn call(&self, verb: &str, more: &[(&str, &str)]) -> Called {
        match mutants::now() {
            None => self.really(verb, more),
            Some(mutant) => mutant.call(self, verb, more),
        }
    }

    fn really(&self, verb: &str, more: &[(&str, &str)]) -> Called {
        let output = self.begin(verb, more).wait_with_output();
        Called {
            whose: self.whose,
            ..Called::from(output.expect("the plugin ends"))
        }
    }

    /// Calls a verb for `eth0` of a container in a namespace.
    fn on(&self, verb: &str, id: &str, ns: &Ns) -> Called {
        self.on_interface(verb, id, ns, "eth0")
    }

    fn on_interface(&self, verb: &str, id: &str, ns: &Ns, ifname: &str) -> Called {
        let path = ns.path().display().to_string();
        let vars = [
            ("CNI_CONTAINERID", id),
            ("CNI_NETNS", &path),
            ("CNI_IFNAME", ifname),
        ];
        self.call(verb, &vars)
    }

    /// ADD, which must succeed.
    #[track_caller]
    fn add(&self, id: &str, ns: &Ns) -> Added {
        let called = self.on("ADD", id, ns);
        assert!(called.ok, "ADD of {id}: {called:?}");
        Added {
            ns: ns.clone(),
            result: called.out,
        }
    }

    /// DEL, which must succeed and say nothing.
    #[track_caller]
    fn del(&self, id: &str, ns: &Ns) {
        let called = self.on("DEL", id, ns);
        assert!(called.ok && called.out.is_null(), "DEL of {id}: {called:?}");
    }

    /// CHECK with the result of ADD.
    fn check(&self, id: &str, added: &Added) -> Called {
        self.with("prevResult", added.result.clone())
            .on("CHECK", id, &added.ns)
    }

    /// GC that keeps `eth0` of these containers.
    fn gc(&self, keep: &[&str]) -> Called {
        let keep: Vec<Value> = keep
            .iter()
            .map(|id| json!({"containerID": id, "ifname": "eth0"}))
            .collect();
        self.with("cni.dev/valid-attachments", keep).call("GC", &[])
    }

    /// How many devices of containers there are, how many addresses are given and how many attachments are known.
    fn left(&self) -> (usize, u64, usize) {
        if self.whose == Whose::Reference {
            return self.left_by_reference();
        }
        let links = self.host.ns.sh("ip -br link");
        let devices = links.lines().filter(|line| line.starts_with("wv")).count();
        let status = self.host.status();
        let used = status["cluster"]["addresses_used"]
            .as_u64()
            .expect("a number");
        let known = self.host.json(&["ps"])["attachments"]
            .as_array()
            .expect("a list")
            .len();
        (devices, used, known)
    }

    /// The same of the control, which knows of attachments by their IPv4 addresses alone.
    fn left_by_reference(&self) -> (usize, u64, usize) {
        let devices = self.host.ns.sh("ip -br link show type veth");
        let devices = devices.lines().filter(|line| line.starts_with("veth"));
        let kept = self.config["ipam"]["dataDir"].as_str().expect("a folder");
        let kept = ns::host(&format!(
            "cd {kept} 2>/dev/null && find . -name '*.*.*.*' || true"
        ));
        let addresses = kept.lines().filter(|file| !file.contains("last_reserved"));
        let used = addresses.count();
        (devices.count(), used as u64, used)
    }
}

/// Where the control's plugin for addresses keeps them.
fn host_local(dir: &Path) -> PathBuf {
    dir.join("host-local")
}

impl From<Output> for Called {
    /// Fails if stdout is anything but empty or one JSON object.
    fn from(output: Output) -> Self {
        let out = String::from_utf8(output.stdout).expect("stdout is text");
        let out = if out.is_empty() {
            Value::Null
        } else {
            let value: Value = serde_json::from_str(&out).expect("stdout is one JSON value");
            assert!(value.is_object(), "stdout is one object: {value}");
            value
        };
        Self {
            ok: output.status.success(),
            whose: Whose::Ours,
            out,
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl Called {
    /// Fails unless the call failed with this code and said this. The reference has codes and words of its own: of it
    /// no more is asked than that it failed.
    #[track_caller]
    fn refused(&self, code: u64, word: &str) {
        if self.whose == Whose::Reference {
            assert!(!self.ok, "it should fail: {self:?}");
            return;
        }
        assert!(
            !self.ok && self.out["code"] == code,
            "not code {code}: {self:?}"
        );
        let said = format!("{} {}", self.out["msg"], self.out["details"]);
        assert!(said.contains(word), "it should say {word}: {self:?}");
    }
}

/// A container that was added.
struct Added {
    ns: Ns,
    result: Value,
}

impl Added {
    /// Its addresses as the result has them, IPv4 first.
    fn ips(&self) -> Vec<IpAddr> {
        let ips = self.result["ips"].as_array().expect("a list");
        let text = |ip: &Value| ip["address"].as_str().expect("a text").to_owned();
        ips.iter()
            .map(|ip| {
                text(ip)
                    .split('/')
                    .next()
                    .expect("an address")
                    .parse()
                    .expect("an address")
            })
            .collect()
    }

    /// Its interface, as the result has it: the one in a sandbox.
    #[track_caller]
    fn inner(&self) -> &Value {
        &self.result["interfaces"][self.inner_at()]
    }

    /// Its other end on the host, which stands before it.
    #[track_caller]
    fn outer_end(&self) -> &Value {
        &self.result["interfaces"][self.inner_at() - 1]
    }

    #[track_caller]
    fn inner_at(&self) -> usize {
        let all = self.result["interfaces"].as_array().expect("a list");
        let found = all.iter().position(|one| one["sandbox"].is_string());
        found.expect("an interface is in a sandbox")
    }

    /// The name of its other end on the host.
    #[track_caller]
    fn outer(&self) -> &str {
        self.outer_end()["name"].as_str().expect("a name")
    }
}
