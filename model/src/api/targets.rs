//! Where a node looks for other members because it was told to.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::NodeRef;

/// `POST /v1/targets`: looks for members at an address, from now on and after restarts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TargetRequest {
    /// A UDP address with its port.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub address: SocketAddr,
}

/// An address at which this node was told to look.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Target {
    /// The address.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub address: SocketAddr,
    /// The member that answered there; absent while none has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<NodeRef>,
}

/// `GET /v1/targets`: all of them. Where members say they are stands in `GET /v1/peers`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Targets {
    /// Whether members are dialled where they say they are, too.
    pub discovery: bool,
    /// The addresses, ascending.
    pub targets: Vec<Target>,
}
