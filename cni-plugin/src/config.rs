//! The configuration on stdin: what is known, what is asked for, and what is refused.
//!
//! When a container is made, a key that is not known is an error that names it: whoever wrote it meant something. DEL
//! and GC read what they need and pass over the rest, because a container must go whatever the configuration says.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;

use serde_json::{Map, Value, json};
use weave_model::api::{CniRef, DEFAULT_SOCKET};
use weave_model::{
    AddressRange, Bandwidth, CniName, ContainerName, LabelKey, LabelValue, Mac, NetworkName,
    PublishedPort,
};

use crate::environment::{Environment, Verb, address};
use crate::error::{Error, code};
use crate::spelling::respelt;
use crate::version::Version;
use crate::{bandwidth, ports, ranges};

/// What a configuration says.
#[derive(Clone, Debug)]
pub struct Config {
    /// The version to answer in.
    pub version: Version,
    /// The network's name in the runtime.
    pub name: CniName,
    /// The node's socket.
    pub socket: PathBuf,
    /// The network's name in the cluster.
    pub network: NetworkName,
    /// The MTU of the interface, in bytes.
    pub mtu: Option<u16>,
    /// The IPAM plugin that chooses addresses instead of the node.
    pub ipam: Option<String>,
    /// What the result says about DNS.
    pub dns: Option<Value>,
    /// Wanted addresses.
    pub ips: Vec<IpAddr>,
    /// Where an address must come from; anywhere in the network when empty.
    pub ranges: Vec<AddressRange>,
    /// The wanted hardware address.
    pub mac: Option<Mac>,
    /// Ports of the host that lead to the container.
    pub publish: Vec<PublishedPort>,
    /// How much the interface may carry.
    pub bandwidth: Bandwidth,
    /// The container's labels.
    pub labels: BTreeMap<LabelKey, LabelValue>,
    /// More names of the container.
    pub aliases: BTreeSet<ContainerName>,
    /// The result of the plugin before, or of ADD.
    pub previous: Option<Value>,
    /// GC: what the runtime still knows.
    pub valid: Option<Vec<CniRef>>,
}

/// Keys that are read here, or that belong to the runtime.
const KNOWN: [&str; 16] = [
    "cniVersion",
    "cniVersions",
    "name",
    "type",
    "socket",
    "network",
    "mtu",
    "ipam",
    "dns",
    "args",
    "capabilities",
    "runtimeConfig",
    "prevResult",
    "disableCheck",
    "disableGC",
    "loadOnlyInlinedPlugins",
];

/// Keys of `runtimeConfig` that only tell something.
const NOTED: [&str; 2] = ["cgroupPath", "io.kubernetes.cri.pod-annotations"];

/// Both keys under which runtimes send what GC keeps.
const VALID: [&str; 2] = ["cni.dev/valid-attachments", "cni.dev/attachments"];

/// The version of a configuration, as far as it can be told.
pub fn version_of(stdin: &[u8]) -> Option<Version> {
    let value: Value = serde_json::from_slice(stdin).ok()?;
    Version::parse(value.get("cniVersion")?.as_str()?)
}

impl Config {
    /// Reads the configuration for a verb.
    pub fn read(environment: &Environment, stdin: &[u8]) -> Result<Self, Error> {
        let decoded: Result<Map<String, Value>, _> = serde_json::from_slice(stdin);
        let object = decoded.map_err(|error| {
            Error::new(
                code::DECODE,
                format!("the configuration is not JSON: {error}"),
            )
        })?;
        let fields = Fields(&object);
        let version = supported(&fields, environment.verb)?;
        let name = fields
            .text("name")?
            .ok_or_else(|| Error::config("name", "missing"))?;
        let socket = fields.text("socket")?.map(PathBuf::from);
        let mut config = Self {
            version,
            name: parsed("name", name)?,
            socket: socket
                .or_else(|| environment.socket.clone())
                .unwrap_or_else(|| DEFAULT_SOCKET.into()),
            network: NetworkName::default_network(),
            mtu: None,
            ipam: fields.ipam()?,
            dns: None,
            ips: Vec::new(),
            ranges: Vec::new(),
            mac: None,
            publish: Vec::new(),
            bandwidth: Bandwidth::default(),
            labels: BTreeMap::new(),
            aliases: BTreeSet::new(),
            previous: fields.some("prevResult").cloned(),
            valid: fields.valid()?,
        };
        if matches!(environment.verb, Verb::Add | Verb::Check | Verb::Status) {
            config.read_wishes(&fields)?;
        }
        Ok(config)
    }

    fn read_wishes(&mut self, fields: &Fields<'_>) -> Result<(), Error> {
        fields.refuse_unknown()?;
        if let Some(network) = fields.text("network")? {
            self.network = parsed("network", network)?;
        }
        self.mtu = fields.mtu()?;
        self.dns = fields.some("dns").cloned();
        if self.dns.as_ref().is_some_and(|dns| !dns.is_object()) {
            return Err(Error::config("dns", "not an object"));
        }
        if let Some(args) = fields.some("args").and_then(|args| args.get("cni")) {
            self.read_args(args)?;
        }
        match fields.some("runtimeConfig") {
            None => Ok(()),
            Some(Value::Object(runtime)) => self.read_runtime(runtime),
            Some(_) => Err(Error::config("runtimeConfig", "not an object")),
        }
    }

    /// `args.cni` of the conventions: `ips` and `labels`.
    fn read_args(&mut self, args: &Value) -> Result<(), Error> {
        for ip in texts("args.cni.ips", args.get("ips"))? {
            self.ips.push(wanted("args.cni.ips", &ip)?);
        }
        for label in args
            .get("labels")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
        {
            let part = |key: &str| label.get(key).and_then(Value::as_str);
            let (Some(key), Some(value)) = (part("key"), part("value")) else {
                return Err(Error::config(
                    "args.cni.labels",
                    "not a list of keys and values",
                ));
            };
            let label = (
                parsed("args.cni.labels", key)?,
                parsed("args.cni.labels", value)?,
            );
            self.labels.extend([label]);
        }
        Ok(())
    }

    /// What the runtime adds for the capabilities that the configuration names.
    fn read_runtime(&mut self, runtime: &Map<String, Value>) -> Result<(), Error> {
        for (key, value) in runtime.iter().filter(|(_, value)| !is_nothing(value)) {
            let field = format!("runtimeConfig.{key}");
            match key.as_str() {
                "ips" => {
                    for ip in texts(&field, Some(value))? {
                        self.ips.push(wanted(&field, &ip)?);
                    }
                }
                "mac" => {
                    let text = value.as_str();
                    let text = text.ok_or_else(|| Error::config(&field, "not a text"))?;
                    self.mac = Some(parsed(&field, text)?);
                }
                "dns" => self.dns = Some(dns_of_runtime(value)?),
                "portMappings" => self.publish = ports::of_capability(&field, value)?,
                "bandwidth" => self.bandwidth = bandwidth::of_capability(&field, value)?,
                "aliases" => self.aliases = aliases(&field, value, self.name.as_str())?,
                // Passed on with the rest of the configuration.
                "ipRanges" if self.ipam.is_some() => {}
                "ipRanges" => self.ranges = ranges::of_capability(&field, value)?,
                _ if NOTED.contains(&key.as_str()) => {}
                _ => return Err(unsupported(&field, value)),
            }
        }
        Ok(())
    }
}

/// The top of a configuration.
struct Fields<'a>(&'a Map<String, Value>);

impl<'a> Fields<'a> {
    /// A field that is there and not null.
    fn some(&self, key: &str) -> Option<&'a Value> {
        self.0.get(key).filter(|value| !value.is_null())
    }

    fn text(&self, key: &str) -> Result<Option<&'a str>, Error> {
        let text = self.some(key).map(|value| {
            let text = value.as_str();
            text.ok_or_else(|| Error::config(key, "not a text"))
        });
        Ok(text.transpose()?.filter(|text| !text.is_empty()))
    }

    fn mtu(&self) -> Result<Option<u16>, Error> {
        let Some(value) = self.some("mtu").filter(|value| **value != json!(0)) else {
            return Ok(None);
        };
        let mtu = value.as_u64().and_then(|mtu| u16::try_from(mtu).ok());
        mtu.map(Some)
            .ok_or_else(|| Error::config("mtu", format!("{value} is not a number of bytes")))
    }

    /// The type of the IPAM plugin, if the configuration names one.
    fn ipam(&self) -> Result<Option<String>, Error> {
        let Some(ipam) = self.some("ipam") else {
            return Ok(None);
        };
        let ipam = ipam.as_object();
        let ipam = ipam.ok_or_else(|| Error::config("ipam", "not an object"))?;
        match Fields(ipam).text("type")? {
            Some(name) if name.contains('/') => {
                Err(Error::config("ipam.type", "not a plugin's name"))
            }
            Some(name) => Ok(Some(name.to_owned())),
            None => Ok(None),
        }
    }

    fn valid(&self) -> Result<Option<Vec<CniRef>>, Error> {
        let Some((key, list)) = VALID.iter().find_map(|key| Some((key, self.0.get(*key)?))) else {
            return Ok(None);
        };
        let list = match list {
            Value::Null => &Vec::new(),
            Value::Array(list) => list,
            _ => return Err(Error::config(key, "not a list")),
        };
        let mut valid = Vec::new();
        for one in list {
            let part = |part: &str| one.get(part).and_then(Value::as_str);
            let (Some(container), Some(ifname)) = (part("containerID"), part("ifname")) else {
                return Err(Error::config(
                    key,
                    format!("{one} is not a container and an interface"),
                ));
            };
            // A name that is none of ours is of nothing that we have.
            if let (Ok(container), Ok(ifname)) = (container.parse(), ifname.parse()) {
                valid.push(CniRef { container, ifname });
            }
        }
        Ok(Some(valid))
    }

    fn refuse_unknown(&self) -> Result<(), Error> {
        let known = |key: &str| KNOWN.contains(&key) || key.starts_with("cni.dev/");
        match self.0.iter().find(|(key, _)| !known(key)) {
            None => Ok(()),
            Some((key, value)) => Err(unsupported(key, value)),
        }
    }
}

/// The version, if it is spoken and has the verb.
fn supported(fields: &Fields<'_>, verb: Verb) -> Result<Version, Error> {
    let asked = fields.text("cniVersion")?.unwrap_or("0.1.0");
    let spoken = Version::ALL.map(Version::as_str).join(", ");
    let version = Version::parse(asked).ok_or_else(|| {
        let message = format!("cniVersion {asked} is not supported");
        Error::new(code::INCOMPATIBLE, message).with(format!("these are: {spoken}"))
    })?;
    let least = match verb {
        Verb::Check => Version::V0_4_0,
        Verb::Gc | Verb::Status => Version::V1_1_0,
        Verb::Add | Verb::Del | Verb::Version => Version::V0_3_0,
    };
    if version < least {
        let message = format!("cniVersion {asked} does not have this verb");
        let fix = format!("it came with {}", least.as_str());
        return Err(Error::new(code::INCOMPATIBLE, message).with(fix));
    }
    Ok(version)
}

fn unsupported(key: &str, value: &Value) -> Error {
    Error::new(
        code::UNSUPPORTED,
        format!("{key} is not supported: {value}"),
    )
}

fn parsed<T: std::str::FromStr<Err: std::fmt::Display>>(
    field: &str,
    text: &str,
) -> Result<T, Error> {
    text.parse().map_err(|error| Error::config(field, error))
}

fn wanted(field: &str, text: &str) -> Result<IpAddr, Error> {
    address(text).map_err(|why| Error::config(field, why))
}

fn texts(field: &str, value: Option<&Value>) -> Result<Vec<String>, Error> {
    let list = value.filter(|value| !value.is_null());
    serde_json::from_value(list.cloned().unwrap_or_else(|| json!([])))
        .map_err(|_| Error::config(field, "not a list of texts"))
}

/// The value of the capability `aliases`: names. Podman sends those of each of the container's networks, by the network's
/// name, and among them what it calls the container itself; what will not do as a name is left out there.
fn aliases(field: &str, value: &Value, network: &str) -> Result<BTreeSet<ContainerName>, Error> {
    match value.as_object() {
        Some(networks) => {
            let names = texts(field, networks.get(network))?;
            Ok(names.iter().filter_map(|name| name.parse().ok()).collect())
        }
        None => {
            let names = texts(field, Some(value))?;
            names.iter().map(|name| parsed(field, name)).collect()
        }
    }
}

/// The names of the capability in those of a result.
fn dns_of_runtime(value: &Value) -> Result<Value, Error> {
    let field = "runtimeConfig.dns";
    let value = respelt(value, &["servers", "searches", "options"]);
    let part = |key: &str| texts(&format!("{field}.{key}"), value.get(key));
    Ok(json!({
        "nameservers": part("servers")?,
        "search": part("searches")?,
        "options": part("options")?,
    }))
}

/// What a runtime sends for a capability that nobody used.
fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(object) => object.values().all(is_nothing),
        _ => false,
    }
}
