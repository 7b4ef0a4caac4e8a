//! The same program as a plugin of netavark, by which Podman makes networks of drivers that it does not have (netavark
//! plugin API 1.0.0, `plugin-API.md` of containers/netavark).
//!
//! Netavark says the verb as an argument, `create`, `setup NETNS`, `teardown NETNS` or `info`, and JSON on stdin. The
//! driver's name is that of the program's file. A network's options are written into Podman's own configuration by
//! `create` and come back with every call, so nothing is kept here. Addresses are the node's to give: `create` takes the
//! choice from Podman (`ipam_options`). What is attached belongs to the container as Podman calls it, so a teardown that
//! finds no node is written down like a DEL of CNI.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use serde::Deserialize;
use serde_json::{Map, Value, json};
use weave_model::api::{AttachRequest, Attachment, CniOwner, CniRef, DEFAULT_SOCKET};
use weave_model::{
    Bandwidth, CniName, ContainerName, IfName, LabelKey, LabelValue, Mac, NetworkName,
};

use crate::error::{Error, code};
use crate::{free, node, ports};

/// The label that a container's name becomes, as with Podman's CNI backend.
const NAME_LABEL: &str = "io.kubernetes.pod.name";

/// A verb and its arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Check and complete a network's configuration.
    Create,
    /// Attach a container, whose namespace is at this path.
    Setup(String),
    /// Take it off again.
    Teardown,
    /// Tell the versions.
    Info,
}

/// A container and the network it is attached to: stdin of `setup` and `teardown`.
#[derive(Clone, Debug, Deserialize)]
struct Exec {
    container_id: CniName,
    #[serde(default)]
    container_name: String,
    #[serde(default)]
    port_mappings: Option<Vec<Value>>,
    network: Network,
    network_options: PerNetwork,
}

#[derive(Clone, Debug, Deserialize)]
struct Network {
    name: CniName,
    #[serde(default)]
    options: Option<BTreeMap<String, String>>,
}

#[derive(Clone, Debug, Deserialize)]
struct PerNetwork {
    interface_name: IfName,
    #[serde(default)]
    static_ips: Option<Vec<IpAddr>>,
    #[serde(default)]
    static_mac: Option<Mac>,
    #[serde(default)]
    aliases: Option<Vec<String>>,
    #[serde(default)]
    options: Option<BTreeMap<String, String>>,
}

/// What a network's options come to.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Options {
    mtu: Option<u16>,
    socket: Option<PathBuf>,
    network: NetworkName,
}

impl Verb {
    /// Reads the arguments after the program's name; `None` where the program is not called by netavark.
    pub fn read(words: &[String]) -> Option<Self> {
        match words {
            [verb] if verb == "create" => Some(Self::Create),
            [verb, netns] if verb == "setup" => Some(Self::Setup(netns.clone())),
            [verb, _] if verb == "teardown" => Some(Self::Teardown),
            [verb] if verb == "info" => Some(Self::Info),
            _ => None,
        }
    }

    /// Whether there is something to read on stdin.
    pub fn takes_input(&self) -> bool {
        *self != Self::Info
    }
}

/// Does what netavark asks; what it is told goes to stdout. `socket` is the node's where the network does not say.
pub fn run(verb: &Verb, stdin: &[u8], socket: Option<PathBuf>) -> Result<Option<Value>, Error> {
    match verb {
        Verb::Info => Ok(Some(json!({
            "version": env!("CARGO_PKG_VERSION"), "api_version": "1.0.0",
        }))),
        Verb::Create => create(read(stdin)?).map(|network| Some(Value::Object(network))),
        Verb::Setup(netns) => setup(netns, stdin, socket).map(Some),
        Verb::Teardown => teardown(read(stdin)?, socket).map(|()| None),
    }
}

/// The object that says an error.
pub fn error_json(error: &Error) -> Value {
    json!({"error": error.to_string()})
}

fn read<'de, T: Deserialize<'de>>(stdin: &'de [u8]) -> Result<T, Error> {
    serde_json::from_slice(stdin)
        .map_err(|error| Error::new(code::DECODE, format!("stdin cannot be read: {error}")))
}

/// Refuses what cannot be had; what Podman wrote that is not known here stays as it is.
fn create(mut network: Map<String, Value>) -> Result<Map<String, Value>, Error> {
    let given = |field: &str| match network.get(field) {
        None | Some(Value::Null | Value::Bool(false)) => false,
        Some(Value::Array(list)) => !list.is_empty(),
        Some(Value::String(text)) => !text.is_empty(),
        Some(_) => true,
    };
    let why_not = [
        ("subnets", "leave --subnet out: addresses are the cluster's"),
        ("routes", "leave --route out"),
        (
            "network_interface",
            "leave --interface-name out: there is no bridge",
        ),
        (
            "internal",
            "leave --internal out: containers reach the outside by their host",
        ),
    ];
    if let Some((field, fix)) = why_not.into_iter().find(|(field, _)| given(field)) {
        return Err(Error::config(field, "cannot be had of this driver").with(fix));
    }
    let options = network.get("options").cloned().unwrap_or_default();
    let options: Option<BTreeMap<String, String>> =
        serde_json::from_value(options).map_err(|error| Error::config("options", error))?;
    Options::read(options.as_ref())?;
    network.insert("ipam_options".to_owned(), json!({"driver": "none"}));
    network.insert("dns_enabled".to_owned(), false.into());
    Ok(network)
}

impl Options {
    fn read(options: Option<&BTreeMap<String, String>>) -> Result<Self, Error> {
        let mut read = Self {
            mtu: None,
            socket: None,
            network: NetworkName::default_network(),
        };
        for (key, value) in options.into_iter().flatten() {
            match key.as_str() {
                "mtu" => {
                    let mtu = value
                        .parse()
                        .map_err(|error| Error::config("mtu", format!("\"{value}\": {error}")))?;
                    read.mtu = Some(mtu);
                }
                "network" => {
                    let name = value.parse();
                    read.network = name.map_err(|error| Error::config("network", error))?;
                }
                "socket" if value.starts_with('/') => read.socket = Some(value.into()),
                "socket" => return Err(Error::config("socket", "not an absolute path")),
                _ => {
                    let message = format!("the option {key}={value} means nothing to Weave");
                    let fix = format!("leave --opt {key} out");
                    return Err(Error::new(code::UNSUPPORTED, message).with(fix));
                }
            }
        }
        Ok(read)
    }
}

/// The node's socket: the network's own, that of the environment, the usual one.
fn socket(own: Option<PathBuf>, environment: Option<PathBuf>) -> PathBuf {
    own.or(environment).unwrap_or_else(|| DEFAULT_SOCKET.into())
}

/// What `setup` asks the node for, and the node's socket if the network names one.
///
/// # Errors
/// When stdin is not what netavark sends, or asks for what cannot be had.
pub fn asked(netns: &str, stdin: &[u8]) -> Result<(AttachRequest, Option<PathBuf>), Error> {
    let exec: Exec = read(stdin)?;
    let options = Options::read(exec.network.options.as_ref())?;
    let publish = ports::of_netavark(exec.port_mappings.as_deref().unwrap_or_default())?;
    if let Some(key) = exec
        .network_options
        .options
        .iter()
        .flatten()
        .map(|(key, _)| key)
        .next()
    {
        let message = format!("network_options: the option {key} means nothing to Weave");
        return Err(Error::new(code::UNSUPPORTED, message));
    }
    let mut ips = exec.network_options.static_ips.iter().flatten().copied();
    // A name that will not do as a label or an alias is left out: it is for people only.
    let label: Option<(LabelKey, LabelValue)> = NAME_LABEL
        .parse()
        .ok()
        .zip(exec.container_name.parse().ok());
    let aliases = exec.network_options.aliases.iter().flatten();
    let request = AttachRequest {
        netns: netns.to_owned(),
        name: ContainerName::of_cni(&exec.container_id),
        ip: ips.next(),
        more_ips: ips.collect(),
        also: Vec::new(),
        ranges: Vec::new(),
        mac: exec.network_options.static_mac,
        mtu: options.mtu,
        ifname: exec.network_options.interface_name,
        network: options.network,
        labels: label.into_iter().collect(),
        aliases: aliases.filter_map(|alias| alias.parse().ok()).collect(),
        publish,
        bandwidth: Bandwidth::default(),
        owner: Some(CniOwner {
            network: exec.network.name,
            container: exec.container_id,
        }),
    };
    Ok((request, options.socket))
}

fn setup(netns: &str, stdin: &[u8], environment: Option<PathBuf>) -> Result<Value, Error> {
    let (request, own) = asked(netns, stdin)?;
    let attachment: Attachment = node::post(&socket(own, environment), "/attachments", &request)?;
    Ok(status(&attachment))
}

/// What `podman inspect` shows.
fn status(attachment: &Attachment) -> Value {
    let v4 = json!({"ipnet": attachment.ip, "gateway": attachment.gateway});
    let v6 = attachment
        .ip6
        .map(|ip6| json!({"ipnet": ip6, "gateway": attachment.gateway6}));
    let subnets: Vec<Value> = std::iter::once(v4).chain(v6).collect();
    json!({
        "dns_search_domains": [],
        "dns_server_ips": [],
        "interfaces": {
            attachment.ifname.as_str(): {"mac_address": attachment.mac, "subnets": subnets},
        },
    })
}

fn teardown(exec: Exec, environment: Option<PathBuf>) -> Result<(), Error> {
    // What the options say now, or whether they are understood, must not keep the container.
    let options = exec.network.options.as_ref();
    let own = options.and_then(|options| options.get("socket"));
    let socket = socket(own.map(PathBuf::from), environment);
    let what = CniRef {
        container: exec.container_id,
        ifname: exec.network_options.interface_name,
    };
    free::free(&socket, &what)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(more: Value) -> Map<String, Value> {
        let mut network = json!({
            "name": "weave", "id": "2f25", "driver": "weave", "subnets": null, "internal": false,
            "dns_enabled": true, "ipam_options": {"driver": "host-local"}, "options": {"mtu": "1400"}, "later": 1,
        });
        for (key, value) in more.as_object().unwrap() {
            network[key] = value.clone();
        }
        network.as_object().unwrap().clone()
    }

    #[test]
    fn a_network_is_completed_and_what_is_not_known_stays() {
        let made = create(network(json!({}))).unwrap();
        assert_eq!(made["ipam_options"], json!({"driver": "none"}));
        assert_eq!(
            (&made["dns_enabled"], &made["later"]),
            (&json!(false), &json!(1))
        );
        assert_eq!(
            (&made["name"], &made["id"], &made["driver"]),
            (&json!("weave"), &json!("2f25"), &json!("weave"))
        );
    }

    #[test]
    fn what_cannot_be_had_is_named() {
        for (more, word) in [
            (json!({"subnets": [{"subnet": "10.0.0.0/16"}]}), "subnets"),
            (json!({"internal": true}), "internal"),
            (json!({"network_interface": "br9"}), "network_interface"),
            (json!({"options": {"color": "blue"}}), "color"),
            (json!({"options": {"mtu": "many"}}), "mtu"),
            (json!({"options": {"socket": "here"}}), "socket"),
            (json!({"options": 1}), "options"),
        ] {
            let error = create(network(more.clone())).unwrap_err();
            assert!(error.to_string().contains(word), "{more}: {error}");
        }
    }

    #[test]
    fn only_netavark_s_words_are_netavark_s() {
        let read = |words: &str| {
            Verb::read(
                &words
                    .split_whitespace()
                    .map(str::to_owned)
                    .collect::<Vec<_>>(),
            )
        };
        assert_eq!(read("info"), Some(Verb::Info));
        assert_eq!(
            read("setup /run/netns/a"),
            Some(Verb::Setup("/run/netns/a".to_owned()))
        );
        assert_eq!(read("teardown /run/netns/a"), Some(Verb::Teardown));
        for other in ["", "--version", "setup", "create a"] {
            assert_eq!(read(other), None, "{other}");
        }
    }
}
