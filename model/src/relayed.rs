//! A connection that the relay made to an endpoint because a client asked for a Service.

use std::net::SocketAddr;

use crate::Protocol;

/// The mark of packets that are a relay's: of connections to it, of those it makes, and of their datagrams. None of its bits
/// is one that Kubernetes, Calico, Cilium, Tailscale or Docker give a meaning of their own.
pub const RELAY_MARK: u32 = 0x30b7;

/// What is known of one: whoever sees its packets sees by it that the client's connection and this one are one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Relayed {
    /// Its protocol.
    pub protocol: Protocol,
    /// Who asked.
    pub client: SocketAddr,
    /// Whether that is this host.
    pub is_host: bool,
    /// What was asked for: an address and port of a Service.
    pub front: SocketAddr,
    /// The relay's end of the connection.
    pub from: SocketAddr,
    /// The endpoint's.
    pub endpoint: SocketAddr,
}
