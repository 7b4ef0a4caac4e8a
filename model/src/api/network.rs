//! Networks: making, listing and removing them.

use std::net::Ipv4Addr;

use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use crate::{NetworkName, NetworkSpec, NodeName, optional_net};

/// `POST /v1/networks`: makes a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct NetworkRequest {
    /// Its name; the cluster has one network of each name.
    pub name: NetworkName,
    /// Its IPv4 addresses, a part of the cluster's range; chosen when absent.
    #[serde(
        default,
        deserialize_with = "optional_net",
        skip_serializing_if = "Option::is_none"
    )]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, example = "10.33.0.0/16"))]
    pub range: Option<Ipv4Net>,
    /// What it is to be.
    #[serde(flatten)]
    pub spec: NetworkSpec,
}

/// A network as this node sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct NetworkInfo {
    /// Its name.
    pub name: NetworkName,
    /// Its IPv4 addresses.
    #[cfg_attr(feature = "openapi", schema(value_type = String, example = "10.33.0.0/16"))]
    pub range: Ipv4Net,
    /// Its IPv6 addresses.
    #[cfg_attr(feature = "openapi", schema(value_type = String, example = "fd00::1:0/112"))]
    pub range6: Ipv6Net,
    /// The IPv4 gateway of its containers.
    #[cfg_attr(feature = "openapi", schema(value_type = String, example = "10.33.0.1"))]
    pub gateway: Ipv4Addr,
    /// What was asked for.
    #[serde(flatten)]
    pub spec: NetworkSpec,
    /// How many interfaces of containers it has, on all nodes that this one has heard of.
    pub containers: u32,
    /// How many of its addresses the node that answers may give out, those in use included; others lend it more in time.
    #[serde(default)]
    pub addresses: u32,
    /// How many of these are in use.
    #[serde(default)]
    pub addresses_used: u32,
    /// The node it was made on, while that is a member; none for the default network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeName>,
    /// What is wrong with it, if anything is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// `GET /v1/networks`: the networks of the cluster; the default one first, then by name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Networks {
    /// One entry for each.
    pub networks: Vec<NetworkInfo>,
}
