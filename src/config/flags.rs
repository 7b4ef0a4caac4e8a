//! The flags of `weaved`.

use std::path::PathBuf;

use clap::Parser;
use ipnet::Ipv4Net;
use weave_model::{EngineChoice, NodeName, Suite, parse_net};

use super::{Address, DockerPlugin, Facility, FlowWatch, Place, RuntimeApi, parse_suite};

/// The Weave node: connects this host's containers with those of other hosts, always encrypted.
///
/// Runs in the foreground and logs to stderr. Flags win over the configuration file.
#[derive(Debug, Default, Parser)]
#[command(name = "weaved", version)]
pub struct Flags {
    /// Configuration file (TOML) [default: /etc/weave/weaved.toml, if it exists]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// The node's name [default: the host's name]
    #[arg(long)]
    pub name: Option<NodeName>,

    /// Directory of keys and state [default: /var/lib/weave]
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,

    /// Unix socket of the node API [default: /run/weave/weaved.sock]
    #[arg(long, value_name = "PATH", env = "WEAVE_SOCKET")]
    pub socket: Option<PathBuf>,

    /// Serve Docker as a plugin for networks and addresses: on, off, or the path of the socket
    /// [default: on where Docker is, at /run/docker/plugins/weave.sock]
    #[arg(
        long,
        value_name = "PATH",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "on"
    )]
    pub docker_plugin: Option<DockerPlugin>,

    /// UDP address of the overlay [default: every address of the host, port 6783]
    #[arg(long, value_name = "ADDRESS[:PORT]")]
    pub listen: Option<Address>,

    /// An address other nodes reach this one at; may be repeated [default: the host's own addresses]
    #[arg(long, value_name = "ADDRESS[:PORT]")]
    pub advertise: Vec<Address>,

    /// Dial other nodes only where `weavectl connect` and the token of the join said, not where members say they are
    #[arg(long)]
    pub no_discovery: bool,

    /// Suites to accept, the preferred one first, with commas between
    /// [default: aes-256-gcm,chacha20-poly1305; the other way round where the CPU has no AES]
    #[arg(long, value_name = "SUITES", value_delimiter = ',', value_parser = parse_suite)]
    pub suites: Vec<Suite>,

    /// MTU of the containers, in bytes [default: 1500]
    #[arg(long, value_name = "BYTES")]
    pub mtu: Option<u16>,

    /// Facilities of the kernel to do without, with commas between: gso, gro, uso, big_tcp, multiqueue
    #[arg(long, value_name = "FACILITIES", value_delimiter = ',')]
    pub without: Vec<Facility>,

    /// Where services get their virtual addresses from, the same on every node [default: 10.96.0.0/16]
    #[arg(long, value_name = "CIDR", value_parser = parse_net::<Ipv4Net>)]
    pub service_range: Option<Ipv4Net>,

    /// Which engine serves services: kernel, relay (the node's own proxy), or auto, which is the kernel and the relay
    /// for what a service asks of it [default: auto]
    #[arg(long, value_name = "ENGINE")]
    pub service_engine: Option<EngineChoice>,

    /// Where to serve metrics for Prometheus, at /metrics; off for nowhere [default: 127.0.0.1:6782]
    #[arg(long, value_name = "ADDRESS[:PORT]")]
    pub metrics: Option<Place>,

    /// File with the token that a reader of metrics must present; needed when others than this host can reach them
    #[arg(long, value_name = "FILE")]
    pub metrics_token: Option<PathBuf>,

    /// Where to serve the page, which asks for a login; off for nowhere [default: 127.0.0.1:4040]
    #[arg(long, value_name = "ADDRESS[:PORT]")]
    pub dashboard: Option<Place>,

    /// Whether to look at who talks to whom [default: on]
    #[arg(long, value_name = "on|off", hide_possible_values = true)]
    pub flows: Option<FlowWatch>,

    /// Where to ask Docker about its containers, when one comes and while somebody looks; off for not at all
    /// [default: /run/docker.sock, where the node is in the host's own network]
    #[arg(long, value_name = "PATH")]
    pub docker_api: Option<RuntimeApi>,

    /// Where to ask containerd the same; off for not at all
    /// [default: /run/containerd/containerd.sock, where the node is in the host's own network]
    #[arg(long, value_name = "PATH")]
    pub containerd_api: Option<RuntimeApi>,

    /// Where to ask another runtime of Kubernetes the same, by its CRI; off for not at all
    /// [default: /run/crio/crio.sock, where the node is in the host's own network]
    #[arg(long, value_name = "PATH")]
    pub cri_api: Option<RuntimeApi>,

    /// Where to say whether services are served here, at /healthz and /livez; off for nowhere
    /// [default: every address of the host, port 10256]
    #[arg(long, value_name = "ADDRESS[:PORT]")]
    pub health: Option<Place>,

    /// What to log: error, warn, info, debug, trace, or per module [default: info]
    #[arg(long, value_name = "FILTER", env = "WEAVE_LOG")]
    pub log: Option<String>,
}
