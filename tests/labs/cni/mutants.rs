//! Mutants of the plugin: each breaks one promise between the runtime of a lab and the real plugin, and a case that is
//! about the promise must fail on it. A case that passes on its mutant shows nothing.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use serde_json::{Value, json};

use super::{Called, Runtime, Whose};

/// What a mutant does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mutant {
    /// VERSION does not tell of the newest version.
    Old,
    /// Nothing is on stderr.
    Mute,
    /// A result is always of the newest version.
    Modern,
    /// The result tells another hardware address.
    OtherMac,
    /// The result does not tell the namespace.
    NoSandbox,
    /// The addresses are said to be the host's.
    HostIndex,
    /// An interface that is in the way is removed.
    Overwrites,
    /// An ADD that fails leaves a device.
    Leaks,
    /// The other plugin for addresses is not called.
    NoIpam,
    /// DEL fails where nothing is attached, and ADD where something is.
    Strict,
    /// DEL does nothing without a namespace.
    NeedsNetns,
    /// DEL does nothing without the result of ADD.
    NeedsPrevious,
    /// DEL does nothing while the node is down.
    Forgets,
    /// A DEL that the node made up for is written down once more.
    Late,
    /// CHECK sees nothing, and STATUS neither.
    Blind,
    /// CHECK sees something always.
    Nervous,
    /// GC frees nothing.
    Hoards,
    /// GC frees all.
    Sweeps,
    /// A result that is handed on loses what is not known.
    Rewrites,
    /// What is asked for beside the configuration is passed over.
    Deaf,
    /// Behind another plugin it changes what that one made.
    Meddles,
    /// A port of one address of the host is opened on all.
    AnyAddress,
    /// Ports are TCP's, whatever is asked for.
    OnlyTcp,
    /// Every container is told the same address.
    Twice,
    /// A container carries a sixth more than what was asked for.
    Generous,
    /// What is asked for one direction is taken for the other.
    Swapped,
    /// Fields of the configuration that are not known, or are the MTU, are passed over.
    Careless,
    /// Every failure has the same code.
    OneCode,
    /// The container's interface stays down.
    Down,
    /// DEL takes off all interfaces of the container.
    AllOfIt,
    /// DEL takes off whatever has the container's name.
    ByName,
}

thread_local! {
    static NOW: Cell<Option<Mutant>> = const { Cell::new(None) };
}

/// The mutant that this thread's runtimes call.
pub(super) fn now() -> Option<Mutant> {
    NOW.get()
}

/// Fails unless the case fails on the mutant. What the case says when it fails is shown, is right, and returned.
pub(super) fn must_fail(mutant: Mutant, title: &str, case: impl FnOnce()) -> String {
    NOW.set(Some(mutant));
    let ended = catch_unwind(AssertUnwindSafe(case));
    NOW.set(None);
    let Err(said) = ended else {
        panic!("{title}: the case passes though {mutant:?}");
    };
    let text = said.downcast_ref::<&str>().map(ToString::to_string);
    text.or_else(|| said.downcast_ref::<String>().cloned())
        .unwrap_or_default()
}

impl Mutant {
    /// The call as the mutant does it.
    pub(super) fn call(self, runtime: &Runtime<'_>, verb: &str, vars: &[(&str, &str)]) -> Called {
        if let Some(said) = self.instead(runtime, verb, vars) {
            return said;
        }
        let mut called = self.bent(runtime, verb, vars).really(verb, vars);
        self.afterwards(runtime, verb, vars, &mut called);
        called
    }

    /// What is answered without calling the plugin at all.
    pub(super) fn instead(
        self,
        runtime: &Runtime<'_>,
        verb: &str,
        vars: &[(&str, &str)],
    ) -> Option<Called> {
        let netns = var(vars, "CNI_NETNS").unwrap_or_default();
        let nothing = match (self, verb) {
            (Self::NeedsNetns, "DEL") => !Path::new(netns).exists(),
            (Self::NeedsPrevious, "DEL") => runtime.config.get("prevResult").is_none(),
            (Self::Forgets, "DEL") => !runtime.host.answers(),
            (Self::Blind, "CHECK" | "STATUS") | (Self::Hoards, "GC") => true,
            (Self::Strict, "DEL") => {
                return (!attached(runtime, vars)).then(|| failed("nothing is attached"));
            }
            (Self::Strict, "ADD") => {
                return attached(runtime, vars).then(|| failed("it is attached"));
            }
            (Self::Nervous, "CHECK") => return Some(failed("something may be wrong")),
            _ => false,
        };
        nothing.then(done)
    }

    /// The runtime with what the mutant does not hear left out.
    fn bent<'a>(self, runtime: &Runtime<'a>, verb: &str, vars: &[(&str, &str)]) -> Runtime<'a> {
        let mut bent = runtime.clone();
        match (self, verb) {
            (Self::NoIpam, _) => forget(&mut bent.config, &["ipam"]),
            (Self::Careless, _) => forget(&mut bent.config, &["mut", "mtu"]),
            (Self::Deaf, "ADD") => {
                forget(&mut bent.config, &["runtimeConfig", "args", "dns"]);
                bent.vars.retain(|(name, _)| name != "CNI_ARGS");
            }
            (Self::AnyAddress, "ADD") => each_port(&mut bent, |port| port["hostIP"] = json!("")),
            (Self::OnlyTcp, "ADD") => each_port(&mut bent, |port| port["protocol"] = json!("tcp")),
            (Self::Generous, "ADD") => {
                for direction in ["ingressRate", "egressRate"] {
                    let rate = &mut bent.config["runtimeConfig"]["bandwidth"][direction];
                    *rate = json!(rate.as_u64().unwrap_or_default() * 7 / 6);
                }
            }
            (Self::Swapped, "ADD") => {
                let bandwidth = &mut bent.config["runtimeConfig"]["bandwidth"];
                let (ingress, egress) = (
                    bandwidth["ingressRate"].take(),
                    bandwidth["egressRate"].take(),
                );
                bandwidth["ingressRate"] = egress;
                bandwidth["egressRate"] = ingress;
            }
            (Self::Sweeps, "GC") => {
                let keys = ["cni.dev/valid-attachments", "cni.dev/attachments"];
                forget(&mut bent.config, &keys);
                bent.config[keys[0]] = json!([]);
            }
            (Self::Overwrites, "ADD") => {
                let netns = var(vars, "CNI_NETNS").unwrap_or_default();
                super::ns::try_host(&format!("nsenter --net={netns} ip link del eth0"));
            }
            _ => {}
        }
        bent
    }

    /// What the mutant makes of what came of it.
    pub(super) fn afterwards(
        self,
        runtime: &Runtime<'_>,
        verb: &str,
        vars: &[(&str, &str)],
        called: &mut Called,
    ) {
        let netns = var(vars, "CNI_NETNS").unwrap_or_default();
        let inside = |line: &str| super::ns::try_host(&format!("nsenter --net={netns} {line}"));
        match (self, verb, called.ok) {
            (Self::Old, "VERSION", true) => {
                called.out["supportedVersions"] = json!(["0.3.0", "0.3.1", "0.4.0", "1.0.0"]);
            }
            (Self::Mute, ..) => called.err.clear(),
            (Self::Modern, "ADD", true) => called.out["cniVersion"] = json!("1.1.0"),
            (Self::OtherMac, "ADD", true) => {
                called.out["interfaces"][1]["mac"] = json!("02:00:00:00:00:00");
            }
            (Self::NoSandbox, "ADD", true) => {
                called.out["interfaces"][1]["sandbox"] = Value::Null;
            }
            (Self::HostIndex, "ADD", true) => called.out["ips"][0]["interface"] = json!(0),
            (Self::Leaks, "ADD", false) => {
                inside("ip link add leak0 type veth peer name leak1");
            }
            (Self::Late, "ADD", true) => {
                let socket = runtime.host.socket();
                let folder = socket.with_file_name(weave_model::api::CNI_JOURNAL);
                let entry = json!({"container": "c", "ifname": "eth0"}).to_string();
                let written = std::fs::create_dir_all(&folder)
                    .and_then(|()| std::fs::write(folder.join("h1.sock.c.eth0"), entry));
                written.expect("the lab's directory is there");
            }
            (Self::Rewrites, "ADD", true) => {
                called.out.as_object_mut().map(|out| out.remove("mine"));
            }
            (Self::OneCode, _, false) => called.out["code"] = json!(999),
            (Self::Twice, "ADD", true) => called.out["ips"][0]["address"] = json!("10.32.0.2/12"),
            (Self::Meddles, "ADD", true) if runtime.config.get("prevResult").is_some() => {
                inside("ip link set eth0 alias meddled");
            }
            (Self::Down, "ADD", true) => {
                inside("ip link set eth0 down");
            }
            (Self::ByName, "DEL", true) => {
                let name = var(vars, "CNI_CONTAINERID").unwrap_or_default();
                runtime.host.ctl(&["detach", name]);
            }
            (Self::AllOfIt, "DEL", true) => {
                for one in known(runtime, vars) {
                    let name = one["name"].as_str().unwrap_or_default();
                    runtime.host.ok(&["detach", name]);
                }
            }
            _ => {}
        }
    }
}

fn each_port(runtime: &mut Runtime<'_>, change: impl Fn(&mut Value)) {
    let ports = runtime.config["runtimeConfig"]["portMappings"].as_array_mut();
    ports.into_iter().flatten().for_each(change);
}

fn forget(config: &mut Value, fields: &[&str]) {
    if let Some(config) = config.as_object_mut() {
        config.retain(|field, _| !fields.contains(&field.as_str()));
    }
}

fn var<'a>(vars: &[(&str, &'a str)], wanted: &str) -> Option<&'a str> {
    vars.iter()
        .find(|(name, _)| *name == wanted)
        .map(|(_, value)| *value)
}

/// Whether the node has the container that the variables name.
fn attached(runtime: &Runtime<'_>, vars: &[(&str, &str)]) -> bool {
    !known(runtime, vars).is_empty()
}

/// What is attached of the container that the variables name.
fn known(runtime: &Runtime<'_>, vars: &[(&str, &str)]) -> Vec<Value> {
    let all = runtime.host.json(&["ps"])["attachments"].clone();
    let id = var(vars, "CNI_CONTAINERID");
    let of = |one: &&Value| one["owner"]["container"].as_str() == id;
    let all = all.as_array().into_iter().flatten();
    all.filter(of).cloned().collect()
}

fn failed(why: &str) -> Called {
    Called {
        ok: false,
        whose: Whose::Ours,
        out: json!({"cniVersion": "1.1.0", "code": 100, "msg": why}),
        err: String::new(),
    }
}

fn done() -> Called {
    Called {
        ok: true,
        whose: Whose::Ours,
        out: Value::Null,
        err: String::new(),
    }
}
