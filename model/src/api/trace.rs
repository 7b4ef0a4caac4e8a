//! The way of a packet, hop by hop, as far as one node can see it.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::ContainerName;

/// `POST /v1/trace`: which way a packet from a container of this node would take.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TraceRequest {
    /// The container that sends it.
    pub from: ContainerName,
    /// Where it goes: an address, or the name of a container of any member, of this node first.
    #[cfg_attr(feature = "openapi", schema(example = "10.47.252.0"))]
    pub to: String,
}

/// The way of the packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Trace {
    /// Its source address.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub source: IpAddr,
    /// Its destination address.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub destination: IpAddr,
    /// What becomes of it.
    pub end: TraceEnd,
    /// Each step, in the order in which the packet meets them. If it is dropped, the last one says why.
    pub hops: Vec<Hop>,
}

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum TraceEnd {
    /// A container of this node gets it.
    Delivered,
    /// It is sent, encrypted, to the member that owns the destination; what becomes of it there, that node knows.
    HandedOver,
    /// It leaves the network with this host's address.
    Leaves,
    /// This host itself gets it.
    Host,
    /// It is dropped.
    Dropped,
}

/// A step on the way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Hop {
    /// Where: a container, a device of the host, or a member.
    pub at: String,
    /// What is looked at there.
    pub check: String,
    /// Whether the packet gets past it.
    pub passed: bool,
    /// What was seen, in one line.
    pub found: String,
    /// What to do about it, in one line; absent when there is nothing to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
}
