//! Making a cluster, inviting to it and joining it.

use std::net::SocketAddr;

use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use super::DEFAULT_TOKEN_TTL_S;
use crate::{NodeId, optional_net};

/// `POST /v1/init`: makes a cluster with this node as its first member.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct InitRequest {
    /// The IPv4 range, /8 to /24; 10.32.0.0/12 when absent.
    #[serde(
        default,
        deserialize_with = "optional_net",
        skip_serializing_if = "Option::is_none"
    )]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, example = "10.32.0.0/12"))]
    pub range: Option<Ipv4Net>,
    /// The IPv6 range, /96 or shorter; when absent a unique local /48 made from the cluster's key.
    #[serde(
        default,
        deserialize_with = "optional_net",
        skip_serializing_if = "Option::is_none"
    )]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, example = "fd00:1:2::/48"))]
    pub range6: Option<Ipv6Net>,
}

/// The answer to init and join: what this node is now a member of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Membership {
    /// This node's id.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub node: NodeId,
    /// The cluster's IPv4 range.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub range: Ipv4Net,
    /// The cluster's IPv6 range.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub range6: Ipv6Net,
    /// How many members this node knows, itself included.
    pub members: u32,
}

/// `POST /v1/tokens`: makes a join token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TokenRequest {
    /// How long the token is good, in seconds, 1 to 31,536,000.
    #[serde(default = "default_ttl")]
    pub ttl_s: u64,
    /// How many nodes may join with it, 1 to 10,000.
    #[serde(default = "default_uses")]
    pub uses: u32,
}

/// A join token. It is a secret until it is used up or expired.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TokenAnswer {
    /// The token itself, one word.
    pub token: String,
    /// When it stops being good.
    pub expires_at: u64,
    /// How many nodes may join with it.
    pub uses: u32,
    /// The addresses of this node that it carries.
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<String>))]
    pub addresses: Vec<SocketAddr>,
}

/// `POST /v1/join`: joins the cluster that a token invites to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct JoinRequest {
    /// What `weavectl token create` printed on a member.
    pub token: String,
}

const fn default_ttl() -> u64 {
    DEFAULT_TOKEN_TTL_S
}

const fn default_uses() -> u32 {
    1
}
