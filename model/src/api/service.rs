//! Services: making, listing and removing them.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::{ContainerName, NodeName, ServiceName, ServiceSpec};

/// `POST /v1/services`: makes a Service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ServiceRequest {
    /// Its name; the cluster has one Service of each name.
    pub name: ServiceName,
    /// What it is to be.
    #[serde(flatten)]
    pub spec: ServiceSpec,
}

/// A Service as this node sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ServiceInfo {
    /// Its name.
    pub name: ServiceName,
    /// Its virtual addresses; none if it lost them to another Service.
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<String>, example = json!(["10.96.0.10"])))]
    pub addresses: Vec<IpAddr>,
    /// What was asked for.
    #[serde(flatten)]
    pub spec: ServiceSpec,
    /// The node it was made on.
    pub node: NodeName,
    /// When it was made.
    pub made_at: u64,
    /// Nodes on which one of the same name was made while they did not see this one: it serves in place of those.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub also_made_on: Vec<NodeName>,
    /// Who is behind it.
    pub backends: Vec<Backend>,
    /// What of it is left out, and why.
    pub refused: Vec<String>,
    /// Whether no endpoint passes its check, so that all that can be reached are used.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub last_resort: bool,
}

/// One endpoint of a Service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Backend {
    /// Where it listens.
    #[cfg_attr(feature = "openapi", schema(value_type = String, example = "10.32.0.2:8080"))]
    pub address: SocketAddr,
    /// The container it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<ContainerName>,
    /// The node it is on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeName>,
    /// Whether connections are sent to it.
    pub state: BackendState,
    /// Why its check fails.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// What the asked node's relay has to say of it, where that serves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub relayed: Option<RelayedBackend>,
}

/// An endpoint as a node's relay sees it, since it knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RelayedBackend {
    /// Connections that are open or being made.
    pub open: u32,
    /// How often it was picked.
    pub picks: u64,
    /// How often it could not be reached, or broke a connection before its first byte.
    pub failures: u64,
    /// How often another one took its place for the same connection.
    pub retries: u64,
    /// How often it was left out for a while.
    pub ejections: u64,
    /// Whether it is left out now.
    pub ejected: bool,
    /// How long it takes to answer, in microseconds, once measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency_us: Option<u64>,
}

/// Whether connections are sent to an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum BackendState {
    /// They are.
    Ready,
    /// Its node cannot be reached.
    Unreachable,
    /// Its check fails; used only while nobody's passes.
    Failing,
    /// Its check has not ended yet; used only while nobody's passes.
    Unchecked,
    /// Its address may not be an endpoint; never used.
    Refused,
}

/// `GET /v1/services`: the Services of the cluster, by name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Services {
    /// One entry for each.
    pub services: Vec<ServiceInfo>,
}
