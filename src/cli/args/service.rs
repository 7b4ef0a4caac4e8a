//! The words after `weavectl service`.

use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

use clap::{ArgGroup, Subcommand};
use weave_model::{Balance, ContainerName, Engine, HealthCheck, Label, Protocol, ServiceName};

use super::Watch;
use crate::cli::complete;
use crate::duration;

/// `weavectl service ...`.
#[derive(Debug, Subcommand)]
pub enum ServiceCommand {
    /// Make a service; every container and host of the cluster reaches it
    Create(Create),
    /// List the services of the cluster
    List(Watch),
    /// Show a service and who is behind it
    Describe {
        /// The service
        #[arg(add = complete::services())]
        name: ServiceName,
        /// Once, or on and on.
        #[command(flatten)]
        watch: Watch,
    },
    /// Remove a service, whichever node it was made on
    Rm {
        /// The service
        #[arg(add = complete::services())]
        name: ServiceName,
    },
}

impl ServiceCommand {
    /// Whether it is to be asked again and again.
    pub(super) const fn is_watched(&self) -> bool {
        match self {
            Self::List(Watch { watch }) => *watch,
            Self::Describe { watch, .. } => watch.watch,
            _ => false,
        }
    }
}

/// `weavectl service create ...`.
#[derive(Debug, clap::Args)]
#[command(group = ArgGroup::new("behind").args(["selector", "containers", "endpoints"]).required(true))]
pub struct Create {
    /// The service's name
    pub name: ServiceName,
    /// A port, the containers' port if it is another, and the protocol if it is not tcp; may be repeated
    #[arg(
        long = "port",
        value_name = "PORT[:TARGET][/PROTOCOL]",
        required = true
    )]
    pub ports: Vec<Port>,
    /// A label that the containers behind it have; of several, all
    #[arg(long = "selector", value_name = "KEY=VALUE")]
    pub selector: Vec<Label>,
    /// A container behind it by name, on whichever host, in place of a selector; may be repeated
    #[arg(long = "container", value_name = "NAME", add = complete::containers_anywhere())]
    pub containers: Vec<ContainerName>,
    /// An endpoint by address, in place of a selector; may be repeated
    #[arg(long = "endpoint", value_name = "ADDRESS:PORT", value_parser = endpoint)]
    pub endpoints: Vec<SocketAddr>,
    /// Keep clients at their endpoint until they made no connection for this long
    #[arg(long, value_name = "TIME", value_parser = seconds)]
    pub affinity: Option<Duration>,
    /// A port of every host's own addresses that leads to it too, 30000 to 32767; with several ports, in their order
    #[arg(long = "node-port", value_name = "PORT")]
    pub node_ports: Vec<u16>,
    /// Who carries it: kernel, or relay, the nodes' own proxy for TCP and UDP [default: what each node is set to]
    #[arg(long)]
    pub engine: Option<Engine>,
    /// How the relay chooses among the endpoints: least (open connections), latency, or maglev (by the client's
    /// address, the same on every node); asks for the relay
    #[arg(long)]
    pub balance: Option<Balance>,
    /// Use endpoints only while this check passes: tcp, or http:/PATH, and what is other than
    /// interval=2s,timeout=1s,rise=2,fall=3 with commas between; port=PORT checks at another port. While no endpoint
    /// passes, all are used
    #[arg(long, value_name = "CHECK")]
    pub health: Option<HealthCheck>,
}

/// Less than a second would be lost on the way.
fn seconds(text: &str) -> Result<Duration, String> {
    let time = duration::parse(text)?;
    if time.subsec_millis() == 0 {
        Ok(time)
    } else {
        Err("it is counted in whole seconds, such as 90s or 10m".to_owned())
    }
}

/// What has leading zeros is no address: some take it for octal, and reach somebody else.
fn endpoint(text: &str) -> Result<SocketAddr, &'static str> {
    text.parse().map_err(|_| {
        "not an address without leading zeros and its port, such as 10.32.0.2:8080 or [fd00::2]:8080"
    })
}

/// `80`, `80:8080`, `53/udp`, `80:8080/tcp`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Port {
    /// Of the service.
    pub port: u16,
    /// Of the containers.
    pub target: u16,
    /// For both.
    pub protocol: Protocol,
}

impl FromStr for Port {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (numbers, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
        let (port, target) = numbers.split_once(':').unwrap_or((numbers, numbers));
        let number = |text: &str| match text.parse::<u16>() {
            Ok(number) if number > 0 => Ok(number),
            _ => Err(format!(
                "\"{text}\" is not a port, such as 80, 80:8080 or 53/udp"
            )),
        };
        Ok(Self {
            port: number(port)?,
            target: number(target)?,
            protocol: protocol.parse().map_err(|error| format!("{error}"))?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_read_in_all_their_forms() {
        let port = |text: &str| text.parse::<Port>().map(|p| (p.port, p.target, p.protocol));
        assert_eq!(port("80"), Ok((80, 80, Protocol::Tcp)));
        assert_eq!(port("80:8080"), Ok((80, 8080, Protocol::Tcp)));
        assert_eq!(port("53/udp"), Ok((53, 53, Protocol::Udp)));
        assert_eq!(port("53:5353/udp"), Ok((53, 5353, Protocol::Udp)));
        for wrong in ["", "0", "80:", ":80", "80/icmp", "70000", "80:80:80"] {
            assert!(port(wrong).is_err(), "{wrong}");
        }
    }
}
