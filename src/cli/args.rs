//! The words of `weavectl`.

pub(super) mod network;
pub(super) mod service;

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};
use ipnet::{Ipv4Net, Ipv6Net};
use weave_model::api::DEFAULT_SOCKET;
use weave_model::{ContainerName, IfName, Label, NetworkName, PublishedPort, parse_net};

use super::capture::Capture;
use super::check::Check;
use super::cni::Places;
use super::complete;
use super::ping::Ping;
use super::report::Report;
use super::test::Test;
use super::uninstall::Uninstall;
use crate::config::Address;
use crate::duration;
use network::NetworkCommand;
use service::ServiceCommand;

/// Where the help of a verb lists what all verbs take.
const GLOBAL: &str = "Global options";

/// Controls the Weave node of this host.
///
/// Exit codes: 0 ok, 1 failed, 2 wrong usage, 3 degraded, 4 cannot reach the node, 5 timeout.
#[derive(Debug, Parser)]
#[command(name = "weavectl", version, disable_help_subcommand = true)]
pub struct Args {
    /// Unix socket of the node
    #[arg(long, global = true, help_heading = GLOBAL, value_name = "PATH", env = "WEAVE_SOCKET", default_value = DEFAULT_SOCKET)]
    pub socket: PathBuf,

    /// How to print the answer
    #[arg(
        short,
        long,
        global = true,
        help_heading = GLOBAL,
        value_enum,
        value_name = "FORMAT",
        default_value = "table"
    )]
    pub output: Output,

    /// How long to wait for the answer
    #[arg(long, global = true, help_heading = GLOBAL, value_name = "TIME", default_value = "60s", value_parser = duration::parse)]
    pub timeout: Duration,

    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// How an answer is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// Words and aligned columns, for people.
    Table,
    /// The same with more columns.
    Wide,
    /// The API's JSON, for programs.
    Json,
    /// The same as YAML.
    Yaml,
}

/// The shells that completion is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum For {
    /// GNU Bash.
    Bash,
    /// Z shell.
    Zsh,
    /// fish.
    Fish,
}

/// What lists and the status take.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Watch {
    /// Go on, and print the answer anew whenever it has changed
    #[arg(short, long)]
    pub watch: bool,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a new cluster with this node as its first member
    Init {
        /// IPv4 range of the containers, /8 to /24 [default: 10.32.0.0/12]
        #[arg(long, value_name = "CIDR", value_parser = parse_net::<Ipv4Net>)]
        range: Option<Ipv4Net>,
        /// IPv6 range of the containers, /96 or shorter [default: made from the cluster's key]
        #[arg(long, value_name = "CIDR", value_parser = parse_net::<Ipv6Net>)]
        range6: Option<Ipv6Net>,
    },
    /// Invite nodes to the cluster
    Token {
        /// What to do with tokens.
        #[command(subcommand)]
        command: TokenCommand,
    },
    /// Say which nodes may invite and remove others
    Admin {
        /// What to do with admins.
        #[command(subcommand)]
        command: AdminCommand,
    },
    /// Look at the cluster's secret, or change it
    Secret {
        /// What to do with it.
        #[command(subcommand)]
        command: SecretCommand,
    },
    /// Remove a member for good: one that is lost, or not to be trusted any more
    Rmpeer {
        /// The member's name, or the start of its id
        #[arg(add = complete::peers())]
        node: String,
        /// Who takes its addresses [default: who gave them to it, or else this node]
        #[arg(long, value_name = "NODE", add = complete::peers())]
        heir: Option<String>,
    },
    /// Join the cluster that a token invites to
    Join {
        /// What `weavectl token create` printed on a member; - reads it from stdin
        token: String,
    },
    /// Look for other members at an address, from now on and after restarts
    Connect {
        /// Where the other node listens
        #[arg(value_name = "ADDRESS[:PORT]")]
        address: Address,
    },
    /// Look for members at an address no longer; a session that is up goes on
    Forget {
        /// As `weavectl targets` lists it
        #[arg(value_name = "ADDRESS[:PORT]", add = complete::targets())]
        address: Address,
    },
    /// Leave the cluster for good: hand the addresses over, forget everything
    Leave {
        /// Detach all containers first; leave also as the last admin, or with nobody to take the addresses
        #[arg(long)]
        force: bool,
    },
    /// Tell whose addresses are whose
    Ipam {
        /// What to look at [default: show].
        #[command(subcommand)]
        command: Option<IpamCommand>,
    },
    /// Give a container an interface and addresses
    Attach(Attach),
    /// Take a container off the network and free its addresses
    Detach {
        /// The container's name
        #[arg(add = complete::containers())]
        name: ContainerName,
        /// Only this interface [default: all of the container's]
        #[arg(long)]
        ifname: Option<IfName>,
    },
    /// List the attached containers
    Ps(Watch),
    /// Give the host itself addresses on the network
    Expose {
        /// An address it should have [default: any free one]
        #[arg(long, value_name = "ADDRESS")]
        ip: Option<IpAddr>,
    },
    /// Take the host's own addresses off the network
    Hide,
    /// Keep containers apart in networks of their own
    Network {
        /// What to do with networks.
        #[command(subcommand)]
        command: NetworkCommand,
    },
    /// Put virtual addresses in front of containers that come and go
    Service {
        /// What to do with services.
        #[command(subcommand)]
        command: ServiceCommand,
    },
    /// Tell whether all is well, and why not
    Status(Watch),
    /// List the members of the cluster
    Peers(Watch),
    /// List the sessions with other members
    Connections(Watch),
    /// List the addresses at which this node looks for the other members
    Targets(Watch),
    /// Ping a member inside its session, and time the answers
    Ping(Ping),
    /// Let containers of the nodes' own talk, on this node and with every other, and tell what works
    Test(Test),
    /// Tell which way a packet from a container takes, and where it is dropped
    Trace {
        /// The container that sends it
        #[arg(add = complete::containers())]
        from: ContainerName,
        /// Where it goes: an address, or a container of any node, of this one first
        #[arg(add = complete::containers())]
        to: String,
    },
    /// Show packets of a container, or with a member, in clear, as pcap
    Capture(Capture),
    /// Collect what helps to find a fault in one file, without secrets
    Report(Report),
    /// Take everything of Weave off this host
    Uninstall(Uninstall),
    /// Print a script that completes words for a shell
    Completion {
        /// The shell
        shell: For,
    },
    /// Write manual pages
    #[command(hide = true)]
    Man {
        /// The folder to write them to
        folder: PathBuf,
    },
    /// Look whether this host is ready for a node, and what to do if not
    Check(Check),
    /// Show who talks to whom
    Flows {
        /// Go on: print each flow again when something of it moved
        #[arg(short, long)]
        follow: bool,
        /// Which.
        #[command(flatten)]
        filter: FlowFilter,
    },
    /// Show who talks most, over and over
    Top {
        /// How many times [default: until interrupted]
        #[arg(short = 'n', long, value_name = "TIMES", value_parser = clap::value_parser!(u32).range(1..))]
        rounds: Option<u32>,
        /// Which.
        #[command(flatten)]
        filter: FlowFilter,
    },
    /// Show what runs in the containers and on the hosts, and what it listens on
    Processes(ProcessFilter),
    /// Print a link that opens the page in a browser, and forward the page where it cannot be reached
    Dashboard {
        /// Forward the page to this port on loopback [default: only if needed; 4040, or any free one]
        #[arg(long)]
        port: Option<u16>,
    },
    /// Let container runtimes attach their containers: containerd, CRI-O, Podman, Nomad
    Cni {
        /// What to do with the plugin.
        #[command(subcommand)]
        command: CniCommand,
    },
    /// Print the OpenAPI document of the node API
    Openapi,
}

/// Which processes.
#[derive(Debug, clap::Args)]
pub struct ProcessFilter {
    /// Of this container or host only [default: of all]
    #[arg(value_name = "NAME", add = complete::places())]
    pub name: Option<String>,
    /// Only those that listen on a port
    #[arg(short, long)]
    pub listening: bool,
}

/// Which flows are meant; all conditions must hold.
#[derive(Clone, Debug, clap::Args)]
pub struct FlowFilter {
    /// Only those begun by this container or address
    #[arg(long, value_name = "NAME", add = complete::containers_anywhere())]
    pub from: Option<String>,
    /// Only those to this container or address
    #[arg(long, value_name = "NAME", add = complete::containers_anywhere())]
    pub to: Option<String>,
    /// Only those with this container or address at either end
    #[arg(long, value_name = "NAME", add = complete::containers_anywhere())]
    pub with: Option<String>,
    /// Only those to this port
    #[arg(long)]
    pub port: Option<u16>,
    /// Only those that are refused or get no answer
    #[arg(long)]
    pub failing: bool,
}

impl Command {
    /// Whether it is to be asked again and again.
    pub(super) const fn is_watched(&self) -> bool {
        match self {
            Self::Ps(Watch { watch })
            | Self::Status(Watch { watch })
            | Self::Peers(Watch { watch })
            | Self::Connections(Watch { watch })
            | Self::Targets(Watch { watch }) => *watch,
            Self::Token { command } => matches!(command, TokenCommand::List(Watch { watch: true })),
            Self::Admin { command } => matches!(command, AdminCommand::List(Watch { watch: true })),
            Self::Ipam { command } => {
                matches!(command, Some(IpamCommand::Show(Watch { watch: true })))
            }
            Self::Network { command } => command.is_watched(),
            Self::Service { command } => command.is_watched(),
            _ => false,
        }
    }
}

/// `weavectl cni ...`.
#[derive(Debug, Subcommand)]
pub enum CniCommand {
    /// Put the plugin and a network configuration where container runtimes look
    Install {
        /// The program weave-cni [default: the one beside weavectl]
        #[arg(long, value_name = "FILE")]
        plugin: Option<PathBuf>,
        /// Where.
        #[command(flatten)]
        places: Places,
    },
    /// Take both away again; containers keep their addresses until their runtime gives them back
    Uninstall {
        /// Where.
        #[command(flatten)]
        places: Places,
    },
}

/// `weavectl attach ...`.
#[derive(Debug, clap::Args)]
pub struct Attach {
    /// The container's network namespace: a path, a name (ip netns) or a process id
    pub netns: String,
    /// The container's name
    #[arg(long)]
    pub name: ContainerName,
    /// An address it should have [default: any free one]
    #[arg(long, value_name = "ADDRESS")]
    pub ip: Option<IpAddr>,
    /// A floating address that it should have too, from whoever has it now; may be repeated
    #[arg(long, value_name = "ADDRESS")]
    pub also: Vec<IpAddr>,
    /// The interface to make in the container
    #[arg(long, default_value = "eth0")]
    pub ifname: IfName,
    /// The network to attach to
    #[arg(long, default_value = "default", add = complete::networks())]
    pub network: NetworkName,
    /// A label; may be repeated
    #[arg(long = "label", value_name = "KEY=VALUE")]
    pub labels: Vec<Label>,
    /// A port of the host that leads to it; may be repeated
    #[arg(long, value_name = "[ADDRESS:]HOST-PORT:PORT[/PROTOCOL]")]
    pub publish: Vec<PublishedPort>,
}

/// `weavectl token ...`.
#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Print a new join token
    Create {
        /// How long it is good
        #[arg(long, value_name = "TIME", default_value = "1h", value_parser = duration::parse)]
        ttl: Duration,
        /// How many nodes may join with it
        #[arg(long, value_name = "NODES", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
        uses: u32,
    },
    /// List the tokens that were made on this node, those that are no longer good as well
    List(Watch),
    /// Take a token back: nobody joins with it any more
    Revoke {
        /// Its id as listed, or the first digits of it, four or more
        #[arg(add = complete::tokens())]
        id: String,
    },
}

/// `weavectl admin ...`.
#[derive(Debug, Subcommand)]
pub enum AdminCommand {
    /// Let another member invite and remove nodes, and make admins itself
    Add {
        /// The member's name, or the start of its id
        #[arg(add = complete::peers())]
        node: String,
    },
    /// List the nodes that may
    List(Watch),
}

/// `weavectl secret ...`.
#[derive(Clone, Copy, Debug, Subcommand)]
pub enum SecretCommand {
    /// Say which secret is in use, and who has not shown so far that it has it
    Show,
    /// Give the cluster another secret, while all go on talking
    Rotate {
        /// How long the one before is accepted beside it; who is away for longer has to join anew
        #[arg(long, value_name = "TIME", default_value = "24h", value_parser = duration::parse)]
        overlap: Duration,
    },
}

/// `weavectl ipam ...`.
#[derive(Clone, Copy, Debug, Subcommand)]
pub enum IpamCommand {
    /// List who owns which addresses, and how many are in use here
    Show(Watch),
    /// Look whether journal, leases and kernel agree; code 3 if not
    Check,
}
