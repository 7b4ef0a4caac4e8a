//! The words after `weavectl network`.

use clap::{Subcommand, ValueEnum};
use ipnet::Ipv4Net;
use weave_model::{NetworkName, parse_net};

use super::Watch;
use crate::cli::complete;

/// `weavectl network ...`.
#[derive(Debug, Subcommand)]
pub enum NetworkCommand {
    /// Make a network; its containers reach one another, on every host, and no other container
    Create(Create),
    /// List the networks of the cluster
    List(Watch),
    /// Remove a network that no container is in, whichever node it was made on
    Rm {
        /// The network
        #[arg(add = complete::networks())]
        name: NetworkName,
    },
}

impl NetworkCommand {
    /// Whether it is to be asked again and again.
    pub(super) const fn is_watched(&self) -> bool {
        matches!(self, Self::List(Watch { watch: true }))
    }
}

/// `weavectl network create ...`.
#[derive(Debug, clap::Args)]
pub struct Create {
    /// Its name
    pub name: NetworkName,
    /// Its addresses, a part of the cluster's range [default: a free one]
    #[arg(long, value_name = "CIDR", value_parser = parse_net::<Ipv4Net>)]
    pub range: Option<Ipv4Net>,
    /// The MTU of its containers' interfaces in bytes [default: each node's own]
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u16).range(1280..=60_000))]
    pub mtu: Option<u16>,
    /// Whether broadcasts and multicasts are carried
    #[arg(long, value_enum, default_value = "on")]
    pub multicast: Switch,
    /// Leave its containers no way to the outside of the cluster
    #[arg(long)]
    pub internal: bool,
    /// Make it a pool of floating addresses for containers of the default network: see attach --also
    #[arg(long, conflicts_with_all = ["mtu", "multicast", "internal"])]
    pub floating: bool,
}

/// On or off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    /// It is.
    On,
    /// It is not.
    Off,
}
