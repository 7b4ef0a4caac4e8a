//! The path every packet takes: out of the kernel, cut and sealed, over the wire, opened, and back into a kernel.
//!
//! The pure parts come first: [`inner`] reads a container's packet, [`cut`] turns it into sealed datagrams,
//! [`frames`] puts opened slices together again, [`header`] builds what the kernel wants to see, [`routes`] says whose
//! an address is. Around them stand the two directions, [`egress`] and [`ingress`], that a [`lane`]'s thread runs, and
//! [`group`] for broadcast and multicast. Threads share nothing but an immutable snapshot of the routes, and count what
//! they do in [`stats`].

pub mod csum;
pub mod cut;
pub mod egress;
pub mod frames;
pub mod group;
pub mod header;
pub mod ingress;
pub mod inner;
pub mod lane;
pub mod routes;
pub mod stats;

use std::net::SocketAddr;

use weave_model::NodeId;

/// What data threads tell the control core. The channel is bounded: under a flood inputs are dropped and counted.
#[derive(Debug)]
pub enum Input {
    /// A datagram that is not sealed with a session's key.
    Handshake {
        /// The whole of it.
        bytes: Vec<u8>,
        /// Who sent it.
        from: SocketAddr,
    },
    /// A message of the control plane, authenticated.
    Control {
        /// Who sealed it.
        peer: NodeId,
        /// The lane it came by.
        lane: u8,
        /// The message.
        body: Vec<u8>,
        /// Where it came from.
        from: SocketAddr,
    },
    /// The newest authentic datagram of a lane came from an address that is news.
    Heard {
        /// Who sealed it.
        peer: NodeId,
        /// Our index of the session.
        index: u32,
        /// The lane.
        lane: u8,
        /// The address.
        from: SocketAddr,
    },
    /// A datagram was larger than the path's MTU.
    TooBig {
        /// The member it was for.
        peer: NodeId,
    },
    /// Nothing but a reason to wake up.
    Look,
}
