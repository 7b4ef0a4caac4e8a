//! What a runtime says in the environment: the verb, the container, and arguments of its own in `CNI_ARGS`.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;
use weave_model::{CniName, IfName, LabelKey, LabelValue, Mac, parse_net};

use crate::error::Error;

/// The verbs of the specification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Attach a container.
    Add,
    /// Take it off again.
    Del,
    /// Look whether it is as it was made.
    Check,
    /// Free what the runtime does not know any more.
    Gc,
    /// Tell whether containers can be attached.
    Status,
    /// Tell which versions are spoken.
    Version,
}

/// The environment of one call. What a verb needs not may be absent.
#[derive(Clone, Debug)]
pub struct Environment {
    /// `CNI_COMMAND`.
    pub verb: Verb,
    container: Option<String>,
    netns: Option<String>,
    ifname: Option<String>,
    args: String,
    /// `CNI_PATH`: where other plugins are.
    pub path: Vec<PathBuf>,
    /// `WEAVE_SOCKET`.
    pub socket: Option<PathBuf>,
    /// Whether the container may be in the network namespace of this process.
    pub netns_override: bool,
}

/// What a runtime may ask for in `CNI_ARGS`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Args {
    /// `IP`.
    pub ips: Vec<IpAddr>,
    /// `MAC`.
    pub mac: Option<Mac>,
    /// The pod that Kubernetes or Podman says it is.
    pub labels: BTreeMap<LabelKey, LabelValue>,
}

/// The keys of `CNI_ARGS` that become labels.
const LABELS: [(&str, &str); 2] = [
    ("K8S_POD_NAMESPACE", "io.kubernetes.pod.namespace"),
    ("K8S_POD_NAME", "io.kubernetes.pod.name"),
];

/// Keys of `CNI_ARGS` that are known and change nothing here.
const NOTED: [&str; 3] = ["K8S_POD_INFRA_CONTAINER_ID", "K8S_POD_UID", "K8S_POD_ID"];

impl Environment {
    /// Reads the variables through `get`.
    pub fn read(get: impl Fn(&str) -> Option<OsString>) -> Result<Self, Error> {
        let text = |name: &str| match get(name).map(OsString::into_string) {
            None => Ok(None),
            Some(Ok(text)) => Ok(Some(text).filter(|text| !text.is_empty())),
            Some(Err(_)) => Err(Error::environment(name, "not UTF-8")),
        };
        let verb = match text("CNI_COMMAND")?.as_deref() {
            Some("ADD") => Verb::Add,
            Some("DEL") => Verb::Del,
            Some("CHECK") => Verb::Check,
            Some("GC") => Verb::Gc,
            Some("STATUS") => Verb::Status,
            Some("VERSION") => Verb::Version,
            Some(other) => {
                let why = format!("\"{other}\" is none of ADD, DEL, CHECK, GC, STATUS, VERSION");
                return Err(Error::environment("CNI_COMMAND", why));
            }
            None => {
                let fix = "this program is called by container runtimes; weavectl attaches by hand";
                return Err(Error::environment("CNI_COMMAND", "missing").with(fix));
            }
        };
        let path = get("CNI_PATH").unwrap_or_default();
        Ok(Self {
            verb,
            container: text("CNI_CONTAINERID")?,
            netns: text("CNI_NETNS")?,
            ifname: text("CNI_IFNAME")?,
            args: text("CNI_ARGS")?.unwrap_or_default(),
            // An empty entry would mean wherever the runtime happens to stand.
            path: std::env::split_paths(&path)
                .filter(|folder| !folder.as_os_str().is_empty())
                .collect(),
            socket: get("WEAVE_SOCKET")
                .filter(|path| !path.is_empty())
                .map(PathBuf::from),
            netns_override: matches!(text("CNI_NETNS_OVERRIDE")?.as_deref(), Some("1" | "true")),
        })
    }

    /// `CNI_CONTAINERID`.
    pub fn container(&self) -> Result<CniName, Error> {
        required("CNI_CONTAINERID", self.container.as_deref())?
            .parse()
            .map_err(|error| Error::environment("CNI_CONTAINERID", error))
    }

    /// `CNI_IFNAME`.
    pub fn ifname(&self) -> Result<IfName, Error> {
        required("CNI_IFNAME", self.ifname.as_deref())?
            .parse()
            .map_err(|error| Error::environment("CNI_IFNAME", error))
    }

    /// `CNI_NETNS`: an absolute path.
    pub fn netns(&self) -> Result<&str, Error> {
        let netns = required("CNI_NETNS", self.netns.as_deref())?;
        if !netns.starts_with('/') {
            return Err(Error::environment("CNI_NETNS", "not an absolute path"));
        }
        Ok(netns)
    }

    /// `CNI_ARGS`: `KEY=VALUE` pairs with `;` between them. One that is not known is an error unless `IgnoreUnknown`
    /// is set, as in the conventions.
    pub fn args(&self) -> Result<Args, Error> {
        let wrong = |why: String| Error::environment("CNI_ARGS", why);
        let mut args = Args::default();
        let mut unknown = Vec::new();
        let mut lenient = false;
        for pair in self.args.split(';').filter(|pair| !pair.is_empty()) {
            let Some((key, value)) = pair.split_once('=') else {
                return Err(wrong(format!("\"{pair}\" is not KEY=VALUE")));
            };
            match key {
                "IgnoreUnknown" => lenient = matches!(value, "1" | "true" | "TRUE" | "True"),
                "IP" => args.ips.push(address(value).map_err(wrong)?),
                "MAC" => args.mac = Some(value.parse().map_err(|error| wrong(format!("{error}")))?),
                _ if NOTED.contains(&key) => {}
                _ => match LABELS.iter().find(|(known, _)| *known == key) {
                    // What will not do as a label is left out: it is for people only.
                    Some((_, label)) => {
                        args.labels
                            .extend(label.parse().ok().zip(value.parse().ok()));
                    }
                    None => unknown.push(key),
                },
            }
        }
        if !lenient && !unknown.is_empty() {
            let why = format!("unknown: {}", unknown.join(", "));
            return Err(wrong(why).with("set IgnoreUnknown=1 to have them ignored"));
        }
        Ok(args)
    }
}

/// An address as runtimes write it, with or without the length of a prefix, which is the network's own here.
pub(crate) fn address(text: &str) -> Result<IpAddr, String> {
    let whole = text.parse::<IpAddr>().ok();
    let with_prefix = || parse_net::<IpNet>(text).ok().map(|net| net.addr());
    whole
        .or_else(with_prefix)
        .ok_or_else(|| format!("\"{text}\" is not an IP address"))
}

fn required<'a>(name: &str, value: Option<&'a str>) -> Result<&'a str, Error> {
    value.ok_or_else(|| Error::environment(name, "missing"))
}
