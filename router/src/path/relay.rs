//! Handing on: what one member sends to another through this node, which can read none of it.
//!
//! An envelope is handed on only from a member's session into another member's own session, with this node, that has a
//! direct way: never to an address that somebody names, never back to where it came from, never through a further relay.
//! Its sender must be the member whose session it came in. The session's window keeps out what was seen before, and each
//! lane of a session has an allowance, so a member can make a relay send neither twice nor faster than that. One datagram
//! comes out for one that came in, of the same length.

#![deny(clippy::disallowed_methods)]

use std::sync::Arc;

use weave_linux::udp::UdpSocket;
use weave_model::{Drop, NodeId};

use super::cut::Batch;
use super::egress::transmit;
use super::routes::{NextHop, Routes};
use super::stats::Counters;
use crate::wire::{Envelope, end_of};

/// Who may be handed what: the place of the next member among the peers.
///
/// # Errors
/// [`Drop::TooManyHops`] if it may not be handed on any more, [`Drop::NotRelayed`] if it is not its sender's to send, or
/// if the receiver is the sender, no member, or not reached without another relay.
pub fn next_hop(routes: &Routes, from: NodeId, envelope: &Envelope) -> Result<usize, Drop> {
    if envelope.hops == 0 {
        return Err(Drop::TooManyHops);
    }
    let place = routes.member(&envelope.to).ok_or(Drop::NotRelayed)?;
    let peer = &routes.peers[place];
    let direct = peer.send.as_ref().is_some_and(|send| send.via.is_none());
    if envelope.from != end_of(&from) || peer.id == from || !direct {
        return Err(Drop::NotRelayed);
    }
    Ok(place)
}

/// What one thread hands on. Datagrams that follow one another to the same member leave in one call.
#[derive(Debug)]
pub struct Relay {
    /// The lane of the thread.
    lane: u8,
    main: Arc<UdpSocket>,
    own: Arc<UdpSocket>,
    counters: Arc<Counters>,
    batch: Batch,
    /// To whom the batch goes, over which lane, with which ECN bits.
    waiting: Option<(usize, u8, u8)>,
}

impl Relay {
    /// Nothing to hand on yet. Sends from `main` on lane 0 and from `own` on `lane`.
    pub fn new(
        lane: u8,
        (main, own): (Arc<UdpSocket>, Arc<UdpSocket>),
        counters: Arc<Counters>,
    ) -> Self {
        Self {
            lane,
            main,
            own,
            counters,
            batch: Batch::new(),
            waiting: None,
        }
    }

    /// Hands a datagram on to the member at that place; it leaves with the next [`Relay::flush`], if not before.
    ///
    /// # Errors
    /// [`Drop::NotRelayed`] when the session is gone, [`Drop::Expired`] when its keys are used up.
    pub fn hand_on(
        &mut self,
        routes: &Routes,
        place: usize,
        envelope: Envelope,
        (datagram, ecn): (&[u8], u8),
    ) -> Result<(), Drop> {
        let send = routes.peers[place].send.as_ref();
        let send = send.ok_or(Drop::NotRelayed)?;
        let lane = send.lanes.choose(self.lane);
        let trailer = Envelope {
            hops: envelope.hops - 1,
            ..envelope
        };
        let trailer = trailer.to_bytes();
        let to = (place, lane, ecn);
        if self.waiting != Some(to) {
            self.flush(routes);
        }
        if !self.batch.push(&send.outbound, lane, datagram, &trailer)? {
            self.flush(routes);
            self.batch.push(&send.outbound, lane, datagram, &trailer)?;
        }
        self.waiting = Some(to);
        self.counters.handed_on(datagram.len());
        Ok(())
    }

    /// Sends what waits.
    pub fn flush(&mut self, routes: &Routes) {
        let Some((place, lane, ecn)) = self.waiting.take() else {
            return;
        };
        if let Some(send) = routes.peers.get(place).and_then(|peer| peer.send.as_ref())
            && let Err(reason) = self.transmit(send, lane, ecn)
        {
            self.counters.dropped(reason);
        }
        self.batch.clear();
    }

    fn transmit(&self, send: &NextHop, lane: u8, ecn: u8) -> Result<(), Drop> {
        let socket = if lane == 0 { &self.main } else { &self.own };
        transmit(socket, &self.batch, send, ecn, &self.counters)
    }
}

#[cfg(test)]
#[allow(
    clippy::disallowed_methods,
    reason = "tests need some instant to begin with"
)]
mod tests {
    use std::sync::Arc;

    use weave_model::Suite;

    use super::super::routes::{OpenLanes, Peer, Via};
    use super::*;
    use crate::session::{Keys, Outbound, Terms};
    use crate::wire::MAX_RELAYS;

    const A: NodeId = NodeId::from_bytes([1; 32]);
    const C: NodeId = NodeId::from_bytes([3; 32]);
    const FAR: NodeId = NodeId::from_bytes([5; 32]);
    const GONE: NodeId = NodeId::from_bytes([7; 32]);

    fn outbound(peer: NodeId) -> Arc<Outbound> {
        let terms = Terms {
            peer,
            suite: Suite::ChaCha20Poly1305,
            lanes: 1,
            index: 1,
            receiver: 2,
            boot: 3,
        };
        Arc::new(Keys::from_split([1; 32], [2; 32]).open(terms).0)
    }

    /// A relay that reaches A and C itself, one member through A, and one not at all.
    fn routes() -> Routes {
        let send = |peer: NodeId| NextHop {
            to: ([192, 0, 2, peer.as_bytes()[0]], 6783).into(),
            outbound: outbound(peer),
            lanes: Arc::default(),
            via: None,
        };
        let via = Via {
            outbound: outbound(A),
            lanes: Arc::new(OpenLanes::default()),
            trailer: [0; Envelope::SIZE],
        };
        let far = NextHop {
            via: Some(Arc::new(via)),
            ..send(FAR)
        };
        let peers = [
            (A, Some(send(A))),
            (C, Some(send(C))),
            (FAR, Some(far)),
            (GONE, None),
        ];
        let peer = |(id, send)| Peer {
            id,
            send,
            counters: Arc::default(),
        };
        Routes {
            peers: peers.into_iter().map(peer).collect(),
            ..Routes::default()
        }
    }

    #[test]
    fn only_members_that_are_reached_are_handed_anything() {
        let routes = routes();
        let next = |from, envelope| next_hop(&routes, from, &envelope);
        assert_eq!(next(A, Envelope::new(&A, &C)), Ok(1));
        assert_eq!(next(C, Envelope::new(&C, &A)), Ok(0));
        let stranger = NodeId::from_bytes([8; 32]);
        for to in [FAR, GONE, A, stranger] {
            let refused = next(A, Envelope::new(&A, &to));
            assert_eq!(refused, Err(Drop::NotRelayed), "to {}", to.short());
        }
        assert_eq!(
            next(C, Envelope::new(&A, &C)),
            Err(Drop::NotRelayed),
            "a false name"
        );
        let spent = Envelope {
            hops: 0,
            ..Envelope::new(&A, &C)
        };
        assert_eq!(next(A, spent), Err(Drop::TooManyHops));
        assert_eq!(
            MAX_RELAYS, 1,
            "what was handed on once is never handed on again"
        );
    }
}
