//! What goes in and out of [`Sessions`](super::Sessions) beside datagrams.

#![deny(clippy::disallowed_methods)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use weave_model::{NodeId, Suite};

use super::{Inbound, Outbound};
use crate::way::Way;

/// What a node decides about all its sessions.
#[derive(Clone, Debug)]
pub struct SessionConfig {
    /// The suites it accepts from others; not empty.
    pub suites: Vec<Suite>,
    /// The suite it offers first, one of `suites`.
    pub preferred: Suite,
    /// How many lanes it can serve, 1 to [`super::MAX_LANES`].
    pub lanes: usize,
    /// Another one at every start, so that peers notice a restart; higher than all before, as far as this node knows.
    pub boot: u64,
    /// The version of its own signed record; see [`super::Sessions::set_record`].
    pub record: u64,
    /// The stamp of a late initiation before this start ([`super::Sessions::last_stamp`]), or 0. Peers answer a restarted
    /// node at once if its boot nonce or its stamp is higher than all before.
    pub stamp_floor: u64,
}

/// A datagram to send from the socket of lane 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transmit {
    /// Where to.
    pub to: SocketAddr,
    /// The whole payload.
    pub bytes: Vec<u8>,
}

/// What the data path and the mesh have to know.
#[derive(Clone, Debug)]
pub enum SessionEvent {
    /// Packets for the index in there may arrive from now on.
    Inbound(Arc<Inbound>),
    /// Use this for sending to the peer from now on, the first time and after every rekey.
    Up {
        /// The peer.
        peer: NodeId,
        /// Seals for it.
        outbound: Arc<Outbound>,
        /// Where its packets go.
        way: Way,
    },
    /// The peer's packets go another way from now on: it was heard from another address, or
    /// [`super::Sessions::set_way`] said so.
    Moved {
        /// The peer.
        peer: NodeId,
        /// Which.
        way: Way,
    },
    /// Something was sent, but nothing heard for 250 ms: ask the peer for a sign of life. Comes again every 250 ms.
    Probe {
        /// The peer.
        peer: NodeId,
    },
    /// The peer owes an answer for 3 s: for people it is gone, though its session stays for what may still come.
    Silent {
        /// The peer.
        peer: NodeId,
    },
    /// A peer that was silent was heard again.
    Heard {
        /// The peer.
        peer: NodeId,
    },
    /// Nothing came of an initiation in time: another one is on its way.
    Retried {
        /// The peer.
        peer: NodeId,
    },
    /// The peer wants a session by a secret that is accepted no longer. It was told so.
    TurnedAway {
        /// The peer.
        peer: NodeId,
    },
    /// The peer does not accept the secret that this node has: the cluster has a newer one.
    Outdated {
        /// The peer.
        peer: NodeId,
        /// The epoch that it is in.
        epoch: u32,
    },
    /// A node that was removed from the cluster wants a session. It was told so.
    Knocked {
        /// The node.
        node: NodeId,
    },
    /// The peer says that this node was removed from the cluster.
    Dismissed {
        /// The peer.
        peer: NodeId,
    },
    /// Nothing for this index is accepted any more.
    Retire(u32),
    /// There is no session with the peer any more.
    Down {
        /// The peer.
        peer: NodeId,
    },
}

/// How it stands with one peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionStatus {
    /// Where packets go; `None` if that is not known.
    pub way: Option<Way>,
    /// The address at which the peer was heard last without a relay between.
    pub endpoint: Option<SocketAddr>,
    /// The suite of the session in use; `None` without one.
    pub suite: Option<Suite>,
    /// When the session in use was made.
    pub since: Option<Instant>,
    /// When an authentic packet arrived last.
    pub heard: Option<Instant>,
    /// The peer's boot nonce; `None` without a session.
    pub boot: Option<u64>,
    /// The version of its signed record that the peer told of in the last handshake.
    pub record: u64,
}
