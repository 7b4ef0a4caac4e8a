//! The path every packet takes: out of the kernel, cut and sealed, over the wire, opened, and back into a kernel.
//!
//! The pure parts come first: [`inner`] reads a container's packet, [`cut`] turns it into sealed datagrams,
//! [`frames`] puts opened slices together again, [`header`] builds what the kernel wants to see, [`routes`] says whose
//! an address is, [`errors`] lets this node's kernel be heard. Around them stand the two directions, [`egress`] and
//! [`ingress`], that a [`lane`]'s thread runs, and [`group`] for broadcast and multicast. Threads share nothing but an
//! immutable snapshot of the routes, and count what they do in [`stats`].

pub mod csum;
pub mod cut;
pub mod egress;
pub mod errors;
pub mod frames;
pub mod group;
pub mod header;
pub mod ingress;
pub mod inner;
pub mod lane;
pub mod routes;
pub mod stats;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use weave_model::{Drop as Reason, NodeId};

use crate::noise::MAX_DATAGRAM;

/// How many handshakes may wait for the control core: the rest of the channel's room is for members.
const MOST_WAITING: usize = 256;

/// Who has not proved anything yet waits behind this door. Clones are the same door.
#[derive(Clone, Debug, Default)]
pub struct Door(Arc<AtomicUsize>);

/// A datagram that is not sealed with a session's key, and its place behind the [`Door`] until it is dropped.
#[derive(Debug)]
pub struct Stranger {
    /// The whole of it.
    pub bytes: Vec<u8>,
    /// Who sent it.
    pub from: SocketAddr,
    door: Door,
}

impl Door {
    /// Lets a datagram wait.
    ///
    /// # Errors
    /// [`Reason::Malformed`] if it is longer than any handshake, [`Reason::QueueFull`] if too many wait.
    pub fn admit(&self, datagram: &[u8], from: SocketAddr) -> Result<Stranger, Reason> {
        if datagram.len() > MAX_DATAGRAM {
            return Err(Reason::Malformed);
        }
        if self.0.fetch_add(1, Ordering::Relaxed) >= MOST_WAITING {
            self.0.fetch_sub(1, Ordering::Relaxed);
            return Err(Reason::QueueFull);
        }
        Ok(Stranger {
            bytes: datagram.to_vec(),
            from,
            door: self.clone(),
        })
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        self.door.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What data threads tell the control core. The channel is bounded: under a flood inputs are dropped and counted.
#[derive(Debug)]
pub enum Input {
    /// A datagram that is not sealed with a session's key.
    Handshake(Stranger),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_leave_room_for_members() {
        let from = SocketAddr::from(([192, 0, 2, 1], 6783));
        let door = Door::default();
        let knock = |len| door.clone().admit(&vec![0x11; len], from);
        assert_eq!(knock(MAX_DATAGRAM + 1).unwrap_err(), Reason::Malformed);
        let mut waiting: Vec<_> = (0..MOST_WAITING)
            .map(|_| knock(MAX_DATAGRAM).unwrap())
            .collect();
        assert_eq!(knock(100).unwrap_err(), Reason::QueueFull);
        waiting.pop();
        assert_eq!(knock(100).unwrap().bytes.len(), 100);
        drop(waiting);
        assert!((0..MOST_WAITING).all(|_| knock(100).is_ok()));
    }
}
