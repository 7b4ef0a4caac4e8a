//! The path every packet takes: out of the kernel, cut and sealed, over the wire, opened, and back into a kernel.
//!
//! The pure parts come first: [`inner`] reads a container's packet, [`cut`] turns it into sealed datagrams,
//! [`assembly`] and [`frames`] put opened slices together again, [`header`] builds what the kernel wants to see and
//! [`join`] and [`train`] make one packet of several, [`deliver`] gives it to whom it may go, and [`reassembly`] says when.
//! [`routes`] says whose an address is and [`trees`] how broadcasts go, [`parked`] keeps what waits for a session, [`errors`]
//! lets this node's kernel be heard. Around them stand the two directions, [`egress`]
//! and [`ingress`], that a [`lane`]'s thread runs, [`relay`], which hands on what is for others, and [`group`] for broadcast
//! and multicast, which [`spread`] sends to members. Threads share nothing but an immutable snapshot of the routes, and count what they do in
//! [`stats`].

pub mod assembly;
pub mod csum;
pub mod cut;
pub mod deliver;
pub mod egress;
pub mod errors;
pub mod frames;
pub mod group;
pub mod header;
pub mod ingress;
pub mod inner;
pub mod join;
pub mod lane;
pub mod parked;
pub mod reassembly;
pub mod relay;
pub mod routes;
pub mod spread;
pub mod stats;
pub mod train;
pub mod trees;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use arc_swap::ArcSwap;
use weave_model::{Drop as Reason, NodeId};

use crate::noise::MAX_DATAGRAM;
use crate::noise::locks::{Knock, Locks};
use crate::way::Way;

/// How many handshakes with a right MAC may wait for the control core: the rest of the channel's room is for members.
const MOST_KEYED: usize = 256;
/// How many that only name an index of ours. Who listens on the wire can send such, so they take no place of the others.
const MOST_NAMED: usize = 32;

/// Whoever has no session knocks at this door. What fits none of its [`Locks`] is junk and goes no further; the rest
/// waits here for the control core. Clones are the same door.
#[derive(Clone, Debug, Default)]
pub struct Door(Arc<Behind>);

#[derive(Debug, Default)]
struct Behind {
    locks: ArcSwap<Locks>,
    keyed: AtomicUsize,
    named: AtomicUsize,
}

/// A datagram that is not sealed with a session's key, and its place behind the [`Door`] until it is dropped.
#[derive(Debug)]
pub struct Stranger {
    /// The whole of it.
    pub bytes: Vec<u8>,
    /// By which way it came.
    pub from: Way,
    door: Door,
    knock: Knock,
}

impl Door {
    /// Changes the locks.
    pub fn change(&self, locks: Locks) {
        self.0.locks.store(Arc::new(locks));
    }

    /// Lets a datagram wait if it fits a lock: one hash, before anything is kept of it.
    ///
    /// # Errors
    /// [`Reason::Malformed`] if it is longer than any handshake, [`Reason::QueueFull`] if too many wait, else as
    /// [`Locks::knock`].
    pub fn admit(&self, datagram: &[u8], from: impl Into<Way>) -> Result<Stranger, Reason> {
        if datagram.len() > MAX_DATAGRAM {
            return Err(Reason::Malformed);
        }
        let knock = self.0.locks.load().knock(datagram)?;
        let (waiting, most) = self.places(knock);
        if waiting.fetch_add(1, Ordering::Relaxed) >= most {
            waiting.fetch_sub(1, Ordering::Relaxed);
            return Err(Reason::QueueFull);
        }
        Ok(Stranger {
            bytes: datagram.to_vec(),
            from: from.into(),
            door: self.clone(),
            knock,
        })
    }

    fn places(&self, knock: Knock) -> (&AtomicUsize, usize) {
        match knock {
            Knock::Keyed => (&self.0.keyed, MOST_KEYED),
            Knock::Named => (&self.0.named, MOST_NAMED),
        }
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        self.door
            .places(self.knock)
            .0
            .fetch_sub(1, Ordering::Relaxed);
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
        /// Bytes of the largest datagram that came by that lane since its control message before, this one included.
        largest: usize,
        /// The message.
        body: Vec<u8>,
        /// By which way it came.
        from: Way,
    },
    /// The newest authentic datagram of a lane came by a way that is news.
    Heard {
        /// Who sealed it.
        peer: NodeId,
        /// Our index of the session.
        index: u32,
        /// The lane.
        lane: u8,
        /// The way.
        from: Way,
    },
    /// A datagram was larger than the path's MTU.
    TooBig {
        /// The member it was for.
        peer: NodeId,
    },
    /// A packet waits for a session with a member.
    Wanted {
        /// The member.
        peer: NodeId,
    },
    /// Nothing but a reason to wake up.
    Look,
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;
    use crate::noise::mac;
    use crate::wire::{Header, Type};

    const KEY: [u8; 32] = [1; 32];

    /// A request for a join that is open, and a cookie for an index of ours.
    fn knocks() -> [Vec<u8>; 2] {
        let header = |kind| Header {
            kind,
            lane: 0,
            receiver: 7,
            counter: 0,
        };
        let mut request = header(Type::JoinRequest).to_bytes().to_vec();
        mac::append(&KEY, None, &mut request);
        let mut cookie = header(Type::Cookie).to_bytes().to_vec();
        cookie.resize(mac::REPLY, 9);
        [request, cookie]
    }

    fn door() -> Door {
        let door = Door::default();
        door.change(Locks {
            joins: [(7, KEY.into())].into(),
            indices: [7].into(),
            ..Locks::default()
        });
        door
    }

    #[test]
    fn strangers_leave_room_for_members_and_for_one_another() {
        let from = SocketAddr::from(([192, 0, 2, 1], 6783));
        let (door, [request, cookie]) = (door(), knocks());
        let knock = |datagram: &[u8]| door.admit(datagram, from);
        let mut waiting = Vec::new();
        for (datagram, most) in [(&cookie, MOST_NAMED), (&request, MOST_KEYED)] {
            waiting.extend((0..most).map(|_| knock(datagram).unwrap()));
            assert_eq!(knock(datagram).unwrap_err(), Reason::QueueFull);
            waiting.pop();
            assert_eq!(&knock(datagram).unwrap().bytes, datagram);
        }
        drop(waiting);
        let again: Vec<_> = (0..MOST_KEYED).map(|_| knock(&request)).collect();
        assert!(again.iter().all(Result::is_ok));
    }

    #[test]
    fn junk_takes_no_place() {
        let from = SocketAddr::from(([192, 0, 2, 1], 6783));
        let (door, [request, cookie]) = (door(), knocks());
        let long = vec![0x11; MAX_DATAGRAM + 1];
        assert_eq!(door.admit(&long, from).unwrap_err(), Reason::Malformed);
        for _ in 0..2 * MOST_KEYED {
            let mut junk = request.clone();
            junk[20] ^= 1;
            assert_eq!(door.admit(&junk, from).unwrap_err(), Reason::BadHandshake);
            let mut junk = cookie.clone();
            junk[4] ^= 1;
            assert_eq!(door.admit(&junk, from).unwrap_err(), Reason::UnknownSession);
        }
        assert!(door.admit(&request, from).is_ok());
        door.change(Locks::default());
        assert!(door.admit(&request, from).is_err());
    }
}
