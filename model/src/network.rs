//! Networks besides the default one: containers of different networks do not reach each other.
//!
//! A network is a part of the cluster's range, and which network an address is in follows from the address alone. What
//! was declared on any node stands on that node's sheet ([`crate::Sheet`]), and on those of all nodes that have
//! containers in the network, so it outlives whoever made it.

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use crate::{NetworkName, NodeId};

/// The most networks of a cluster besides the default one.
pub const MAX_NETWORKS: usize = 64;

/// The longest prefix of a network's range: 64 addresses.
pub const LONGEST_PREFIX: u8 = 26;

/// A network as it was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeclaredNetwork {
    /// Its name; the cluster has one network of each name.
    pub name: NetworkName,
    /// When it was made, in milliseconds since the Unix epoch; with its name it tells it from a later one.
    pub stamp: u64,
    /// The node that it was made on.
    pub maker: NodeId,
    /// How packets to groups of it are marked on the wire: from 1.
    pub number: u16,
    /// Its addresses, a part of the cluster's range. Its IPv6 addresses lie at the same place of that range.
    pub range: Ipv4Net,
    /// What was asked for.
    #[serde(flatten)]
    pub spec: NetworkSpec,
}

/// How a network is to be, apart from its addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct NetworkSpec {
    /// The MTU of its containers' interfaces, in bytes, 1280 to 60,000; the node's own when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u16>,
    /// Whether broadcasts and multicasts are carried.
    #[serde(default = "yes")]
    pub multicast: bool,
    /// Whether its containers have no way to the outside of the cluster.
    #[serde(default)]
    pub internal: bool,
    /// Whether it is a pool of floating addresses ([`crate::Floating`]): no container is attached to it, those of the
    /// default network may have addresses of it beside their own, and to all packets these are addresses of that network.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub floating: bool,
}

const fn yes() -> bool {
    true
}

impl Default for NetworkSpec {
    fn default() -> Self {
        Self {
            mtu: None,
            multicast: true,
            internal: false,
            floating: false,
        }
    }
}

/// "This network is removed." Said until nobody declares it any more.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RemovedNetwork {
    /// Its name.
    pub name: NetworkName,
    /// When it was made.
    pub stamp: u64,
}

impl DeclaredNetwork {
    /// Whether it is the one that a removal means.
    pub fn is(&self, removed: &RemovedNetwork) -> bool {
        self.name == removed.name && self.stamp == removed.stamp
    }
}
