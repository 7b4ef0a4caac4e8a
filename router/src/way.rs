//! The way that datagrams take to a node: straight to an address, or through a third member that cannot read them.
//!
//! A session is end to end whatever way its datagrams take, and its way may change under it. What comes through a relay
//! lies in an envelope ([`crate::wire::Envelope`]) inside the relay's own sessions with both ends.

#![deny(clippy::disallowed_methods)]

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use weave_model::NodeId;

/// Where datagrams for a node go, or where one came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Way {
    /// Straight to an address.
    Direct(SocketAddr),
    /// In an envelope.
    Relayed {
        /// The member that hands it on.
        relay: NodeId,
        /// The member at the other end.
        end: NodeId,
    },
}

impl Way {
    /// An IPv4 address stays one, whichever kind of socket it came from; an IPv6 address keeps its scope.
    pub fn canonical(self) -> Self {
        match self {
            Self::Direct(address) => match address.ip().to_canonical() {
                ip @ IpAddr::V4(_) => Self::Direct(SocketAddr::new(ip, address.port())),
                IpAddr::V6(_) => self,
            },
            Self::Relayed { .. } => self,
        }
    }

    /// The address of the other end; `None` through a relay.
    pub const fn address(self) -> Option<SocketAddr> {
        match self {
            Self::Direct(address) => Some(address),
            Self::Relayed { .. } => None,
        }
    }

    /// The member that hands it on; `None` on a direct way.
    pub const fn relay(self) -> Option<NodeId> {
        match self {
            Self::Direct(_) => None,
            Self::Relayed { relay, .. } => Some(relay),
        }
    }

    /// Whether no other member stands between.
    pub const fn is_direct(self) -> bool {
        matches!(self, Self::Direct(_))
    }
}

impl From<SocketAddr> for Way {
    fn from(address: SocketAddr) -> Self {
        Self::Direct(address)
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Direct(address) => address.fmt(f),
            Self::Relayed { relay, .. } => write!(f, "via {}", relay.short()),
        }
    }
}
