//! Whose addresses are whose, and whether what is noted agrees with what is there.

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use super::NodeRef;

/// `GET /v1/ipam`: the addresses of the cluster by owner, as this node knows them. Each stands for itself and for the
/// IPv6 address at the same place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Ipam {
    /// The cluster's range.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub range: Ipv4Net,
    /// This node first, the others by name.
    pub nodes: Vec<IpamNode>,
    /// What nobody is known to own: on its way from one node to another, or waiting for an heir.
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<String>))]
    pub unowned: Vec<Ipv4Net>,
    /// How many addresses that is.
    pub unowned_addresses: u64,
}

/// What one node owns.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct IpamNode {
    /// The node.
    pub node: NodeRef,
    /// Its blocks.
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<String>))]
    pub blocks: Vec<Ipv4Net>,
    /// How many addresses these are.
    pub addresses: u64,
    /// How many of them are in use; known of this node only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used: Option<u32>,
    /// How many more this node can give, those that rest for a minute after their release among them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub free: Option<u32>,
}

/// `GET /v1/ipam/check`: what the journal of attachments, the leases and the kernel say of each other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct IpamFindings {
    /// How many interfaces of containers were looked at.
    pub checked: u32,
    /// What is wrong; empty when all agree.
    pub findings: Vec<IpamFinding>,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct IpamFinding {
    /// The container and its interface, the lease, or the host.
    pub of: String,
    /// What is wrong with it.
    pub wrong: String,
}
