//! What `weaved` is told: flags, then the file, then the defaults, made into one checked [`Config`].
//!
//! The file is optional and has the same words as the flags. An unknown key is an error: a typing mistake must not
//! silently mean the default.

mod docker;
mod file;
mod flags;
mod runtimes;
mod sight;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use ipnet::Ipv4Net;
use weave_model::{EngineChoice, NodeName, Suite};
use weave_router::core::dialled::Discovery;

pub use docker::DockerPlugin;
pub use flags::Flags;
pub use runtimes::{RuntimeApi, RuntimeSockets, in_network_of_host};
pub use sight::{FlowWatch, Place, Sight};

use crate::obstacle::Obstacle;

/// The UDP port of the overlay.
pub const DEFAULT_PORT: u16 = 6783;

/// Where the file is looked for when `--config` is absent.
pub const DEFAULT_FILE: &str = "/etc/weave/weaved.toml";

/// Everything `weaved` needs to know, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The node's label.
    pub name: NodeName,
    /// Keys, deeds and attachments; owned by one `weaved`.
    pub state_dir: PathBuf,
    /// The unix socket of the node API.
    pub socket: PathBuf,
    /// What to log, in the syntax of `tracing_subscriber::EnvFilter`.
    pub log: String,
    /// Whether Docker is served.
    pub docker: DockerPlugin,
    /// The overlay.
    pub overlay: Overlay,
    /// Services.
    pub services: ServiceConfig,
    /// Metrics and the page.
    pub sight: Sight,
}

/// The section of Services.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceConfig {
    /// Where virtual addresses come from, /8 to /28; the same on every node.
    pub range: Ipv4Net,
    /// Which engine serves them on this node.
    pub engine: EngineChoice,
}

/// The MTUs that a container's interface may have, in bytes: from IPv6's least to what fits a super-packet.
pub const MTU_RANGE: RangeInclusive<u16> = 1280..=60_000;

/// The section of the overlay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overlay {
    /// The UDP address to listen on.
    pub listen: SocketAddr,
    /// The addresses other nodes are told to use; found by the node itself when empty.
    pub advertise: Vec<SocketAddr>,
    /// The suites to accept, the preferred one first; never empty.
    pub suites: Vec<Suite>,
    /// Whether members are dialled where they say they are.
    pub discovery: Discovery,
    /// The MTU of the containers, in bytes, 1280 to 60000.
    pub mtu: u16,
    /// Facilities of the kernel that are not used; those that it lacks are done without in any case.
    pub without: Vec<Facility>,
}

/// A facility of the kernel that makes the data path faster and that it can do without.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum Facility {
    /// Batches of datagrams on send (`UDP_SEGMENT`).
    Gso,
    /// Batches of datagrams on receive (`UDP_GRO`).
    Gro,
    /// Super-packets of UDP from containers (`TUN_F_USO4`, `TUN_F_USO6`).
    Uso,
    /// Packets of TCP over IPv4 of more than 65,535 bytes, several joined into one on receive.
    BigTcp,
    /// A queue, a lane and a thread for each core.
    Multiqueue,
}

impl Config {
    /// Reads the file, if there is one, and lets the flags win over it.
    pub fn load(flags: Flags) -> Result<Self, Obstacle> {
        let file = file::read(flags.config.as_deref())?;
        Self::merge(flags, file)
    }

    fn merge(flags: Flags, file: file::File) -> Result<Self, Obstacle> {
        let overlay = file.overlay;
        let sight = merge_sight(&flags, file.sight)?;
        let engine = flags.service_engine.or(file.services.engine);
        let name = match flags.name.or(file.name) {
            Some(name) => name,
            None => host_name()?,
        };
        let listen = flags.listen.or(overlay.listen).unwrap_or_else(Address::any);
        let listen = listen.at(DEFAULT_PORT);
        let advertise = if flags.advertise.is_empty() {
            overlay.advertise
        } else {
            flags.advertise
        };
        let advertise = advertise
            .iter()
            .map(|address| address.at(listen.port()))
            .collect();
        let suites = if flags.suites.is_empty() {
            overlay.suites
        } else {
            flags.suites
        };
        Ok(Self {
            name,
            state_dir: flags
                .state_dir
                .or(file.state_dir)
                .unwrap_or_else(|| "/var/lib/weave".into()),
            socket: flags
                .socket
                .or(file.socket)
                .unwrap_or_else(|| weave_model::api::DEFAULT_SOCKET.into()),
            log: flags.log.or(file.log).unwrap_or_else(|| "info".to_owned()),
            docker: flags
                .docker_plugin
                .or(file.docker_plugin)
                .unwrap_or_default(),
            overlay: Overlay {
                listen,
                advertise,
                suites: suites_or_default(suites),
                discovery: match flags.no_discovery || overlay.discovery == Some(false) {
                    true => Discovery::Off,
                    false => Discovery::On,
                },
                mtu: check_mtu(flags.mtu.or(overlay.mtu).unwrap_or(1500))?,
                without: if flags.without.is_empty() {
                    overlay.without
                } else {
                    flags.without
                },
            },
            services: ServiceConfig::new(flags.service_range.or(file.services.range), engine)?,
            sight,
        })
    }
}

fn merge_sight(flags: &Flags, file: file::SightSection) -> Result<Sight, Obstacle> {
    let token_file = flags.metrics_token.clone().or(file.metrics_token);
    let runtimes = RuntimeSockets::new(
        flags
            .docker_api
            .clone()
            .or(file.docker_api)
            .unwrap_or_default(),
        flags
            .containerd_api
            .clone()
            .or(file.containerd_api)
            .unwrap_or_default(),
        flags.cri_api.clone().or(file.cri_api).unwrap_or_default(),
    );
    let sight = sight::merge(sight::Said {
        metrics: flags.metrics.or(file.metrics),
        token_file: token_file.as_deref(),
        dashboard: flags.dashboard.or(file.dashboard),
        health: flags.health.or(file.health),
    })?;
    Ok(Sight {
        flows: flags.flows.or(file.flows).unwrap_or_default(),
        runtimes,
        ..sight
    })
}

impl ServiceConfig {
    fn new(range: Option<Ipv4Net>, engine: Option<EngineChoice>) -> Result<Self, Obstacle> {
        Ok(Self {
            range: check_service_range(range)?,
            engine: engine.unwrap_or_default(),
        })
    }
}

fn check_service_range(given: Option<Ipv4Net>) -> Result<Ipv4Net, Obstacle> {
    let default = weave_model::api::DEFAULT_SERVICE_RANGE;
    let range = given
        .unwrap_or_else(|| default.parse().expect("the default is a range"))
        .trunc();
    if (8..=28).contains(&range.prefix_len()) {
        return Ok(range);
    }
    let cause = format!("{range} cannot be the range of virtual addresses");
    Err(Obstacle::new(
        cause,
        format!("give --service-range a range of /8 to /28, such as {default}"),
    ))
}

/// An address with an optional port: `192.0.2.1`, `192.0.2.1:6783`, `[2001:db8::1]:6783`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    ip: IpAddr,
    port: Option<u16>,
}

impl Address {
    /// Every address of the host: both families, or IPv4 alone where the kernel has no IPv6.
    pub fn any() -> Self {
        let v6 = Path::new("/proc/net/if_inet6").exists();
        let ip = if v6 {
            Ipv6Addr::UNSPECIFIED.into()
        } else {
            Ipv4Addr::UNSPECIFIED.into()
        };
        Self { ip, port: None }
    }

    /// With its port, or this one if it has none.
    pub fn at(self, port: u16) -> SocketAddr {
        SocketAddr::new(self.ip, self.port.unwrap_or(port))
    }
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(address) = text.parse::<SocketAddr>() {
            return Ok(Self {
                ip: address.ip(),
                port: Some(address.port()),
            });
        }
        match text.parse() {
            Ok(ip) => Ok(Self { ip, port: None }),
            Err(_) => Err(format!(
                "\"{text}\" is not an address: write 192.0.2.1 or 192.0.2.1:6783"
            )),
        }
    }
}

impl<'de> serde::Deserialize<'de> for Address {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

/// Reads the name of a suite.
pub fn parse_suite(text: &str) -> Result<Suite, String> {
    let all = [Suite::Aes256Gcm, Suite::ChaCha20Poly1305];
    all.into_iter()
        .find(|suite| suite.to_string() == text)
        .ok_or_else(|| format!("\"{text}\" is not a suite: aes-256-gcm or chacha20-poly1305"))
}

/// Both suites, the one that this CPU is faster at first; a given list loses its repetitions.
fn suites_or_default(given: Vec<Suite>) -> Vec<Suite> {
    if given.is_empty() {
        return if aes_in_hardware() {
            vec![Suite::Aes256Gcm, Suite::ChaCha20Poly1305]
        } else {
            vec![Suite::ChaCha20Poly1305, Suite::Aes256Gcm]
        };
    }
    let mut suites = Vec::new();
    for suite in given {
        if !suites.contains(&suite) {
            suites.push(suite);
        }
    }
    suites
}

#[cfg(target_arch = "x86_64")]
fn aes_in_hardware() -> bool {
    std::arch::is_x86_feature_detected!("aes") && std::arch::is_x86_feature_detected!("pclmulqdq")
}

#[cfg(target_arch = "aarch64")]
fn aes_in_hardware() -> bool {
    std::arch::is_aarch64_feature_detected!("aes")
        && std::arch::is_aarch64_feature_detected!("pmull")
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn aes_in_hardware() -> bool {
    false
}

/// IPv6 needs 1280 (RFC 8200 section 5); a super-packet must fit one datagram.
fn check_mtu(mtu: u16) -> Result<u16, Obstacle> {
    if MTU_RANGE.contains(&mtu) {
        return Ok(mtu);
    }
    let cause = format!("an MTU of {mtu} is out of range");
    Err(Obstacle::new(cause, "give an MTU between 1280 and 60000"))
}

/// The host's name, as the kernel has it.
fn host_name() -> Result<NodeName, Obstacle> {
    let path = "/proc/sys/kernel/hostname";
    let bad = |cause: String| Obstacle {
        cause,
        fix: "give a name with --name".to_owned(),
    };
    let text = std::fs::read_to_string(path)
        .map_err(|error| bad(format!("cannot read {path}: {error}")))?;
    text.trim()
        .parse()
        .map_err(|error| bad(format!("the host's name will not do: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;

    fn flags(words: &[&str]) -> Flags {
        Flags::try_parse_from(["weaved"].iter().chain(words)).unwrap()
    }

    #[test]
    fn defaults_are_those_of_the_design() {
        let config = Config::merge(flags(&["--name", "a"]), file::File::default()).unwrap();
        assert_eq!(config.state_dir, PathBuf::from("/var/lib/weave"));
        assert_eq!(config.socket, PathBuf::from("/run/weave/weaved.sock"));
        assert_eq!(config.overlay.listen.to_string(), "[::]:6783");
        assert_eq!((config.overlay.mtu, config.overlay.suites.len()), (1500, 2));
    }

    #[test]
    fn a_range_with_leading_zeros_is_refused() {
        let words = ["weaved", "--service-range", "010.96.0.0/16"];
        let refusal = Flags::try_parse_from(words).unwrap_err().to_string();
        let why = "not an IPv4 range without leading zeros, such as 10.32.0.0/12";
        assert!(refusal.contains(why), "{refusal}");
        let cause = file::parse("[services]\nrange = '010.96.0.0/16'\n").unwrap_err();
        assert_eq!(cause, format!("line 2: \"010.96.0.0/16\" is {why}"));
    }

    #[test]
    fn flags_win_over_the_file() {
        let text = "name = 'file'\nlog = 'debug'\n[overlay]\nlisten = '192.0.2.1'\nmtu = 9000\n";
        let file = file::parse(text).unwrap();
        let words = [
            "--name",
            "flag",
            "--listen",
            "198.51.100.1:7000",
            "--advertise",
            "203.0.113.9",
        ];
        let config = Config::merge(flags(&words), file).unwrap();
        assert_eq!(config.name.as_str(), "flag");
        assert_eq!(config.log, "debug");
        assert_eq!(config.overlay.mtu, 9000);
        assert_eq!(config.overlay.listen.to_string(), "198.51.100.1:7000");
        assert_eq!(
            config.overlay.advertise,
            ["203.0.113.9:7000".parse().unwrap()]
        );
    }

    #[test]
    fn the_example_file_states_the_defaults() {
        let example = include_str!("../deploy/weaved.toml");
        let merged =
            |text| Config::merge(flags(&["--name", "a"]), file::parse(text).unwrap()).unwrap();
        let mut stated = merged(example);
        assert_eq!(stated.overlay.suites.len(), 2);
        // Which suite comes first depends on the CPU.
        stated.overlay.suites = merged("").overlay.suites;
        assert_eq!(stated, merged(""));
        let optional = example
            .replace("# name", "name")
            .replace("# listen", "listen");
        let all = merged(&optional.replace("# advertise", "advertise"));
        assert_eq!(all.overlay.advertise, ["203.0.113.7:6783".parse().unwrap()]);
    }

    #[test]
    fn mistakes_are_said() {
        assert!(file::parse("nmae = 'a'").is_err());
        assert!(file::parse("[overlay]\nsuites = ['rot13']").is_err());
        assert!(file::parse("[overlay]\nlisten = 'here'").is_err());
        let facility = file::parse("[overlay]\nwithout = ['gso', 'lro']").unwrap_err();
        assert_eq!(
            facility,
            "line 2: unknown variant `lro`, expected one of `gso`, `gro`, `uso`, `big_tcp`, `multiqueue`"
        );
        let facility = Flags::try_parse_from(["weaved", "--without", "gso,lro"]).unwrap_err();
        let said = facility.to_string();
        assert!(
            said.contains("'lro'") && said.contains("gso, gro, uso, big_tcp, multiqueue"),
            "{said}"
        );
        let small = Config::merge(
            flags(&["--name", "a", "--mtu", "576"]),
            file::File::default(),
        );
        assert_eq!(small.unwrap_err().cause, "an MTU of 576 is out of range");
    }

    #[test]
    fn lists_are_read() {
        let words = [
            "--name",
            "a",
            "--suites",
            "chacha20-poly1305,chacha20-poly1305",
        ];
        let config = Config::merge(flags(&words), file::File::default()).unwrap();
        assert_eq!(config.overlay.suites, [Suite::ChaCha20Poly1305]);
        let without = |words: &[&str], text| {
            let words = [&["--name", "a"], words].concat();
            let config = Config::merge(flags(&words), file::parse(text).unwrap()).unwrap();
            config.overlay.without
        };
        let text = "[overlay]\nwithout = ['big_tcp', 'multiqueue']";
        let both = [Facility::BigTcp, Facility::Multiqueue];
        assert_eq!(without(&[], text), both);
        let flag = ["--without", "gso,big_tcp"];
        assert_eq!(without(&flag, text), [Facility::Gso, Facility::BigTcp]);
    }
}
