//! Sending a packet for a group to other members: one sealed copy for each.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::Instant;

use weave_linux::udp::UdpSocket;
use weave_model::{Drop, NodeId};

use super::cut::Batch;
use super::egress::transmit;
use super::routes::{Peer, Routes};
use super::stats::Counters;
use crate::time::Start;
use crate::wire::{Shape, Slice};

/// How often a packet is handed on at most: while members do not agree on the topology yet, it might go in circles. Of
/// 1,000 members the farthest is six steps away.
const MOST_STEPS: u16 = 16;

/// What it takes to send to members.
#[derive(Debug)]
pub struct Spread {
    main: Arc<UdpSocket>,
    counters: Arc<Counters>,
    start: Start,
    batch: RefCell<Batch>,
}

impl Spread {
    /// Sends from `main` on lane 0.
    pub fn new(main: Arc<UdpSocket>, counters: Arc<Counters>, start: Start) -> Self {
        let batch = RefCell::new(Batch::new());
        Self {
            main,
            counters,
            start,
            batch,
        }
    }

    /// Sends what a container of this host says to a network.
    pub fn begin(&self, routes: &Routes, network: u16, packet: &[u8]) {
        match routes.trees.own() {
            Some(branch) => self.to_children(routes, &branch.children, (network, 0), packet),
            None => {
                let up = routes.peers.iter().filter(|peer| peer.send.is_some());
                up.for_each(|peer| self.to(peer, (network, 0), packet));
            }
        }
    }

    /// Hands on what came by the tree of `root`, which is how often it was handed on before and for which network.
    pub fn hand_on(&self, routes: &Routes, root: NodeId, slice: &Slice, packet: &[u8]) {
        let branch = routes.trees.branch(root);
        let Some(branch) = branch.filter(|branch| !branch.children.is_empty()) else {
            return;
        };
        if slice.segment >= MOST_STEPS {
            return self.counters.dropped(Drop::TooManyHops);
        }
        let how = (slice.network, slice.segment + 1);
        self.to_children(routes, &branch.children, how, packet);
    }

    fn to_children(&self, routes: &Routes, children: &[NodeId], how: (u16, u16), packet: &[u8]) {
        for child in children {
            if let Some(place) = routes.place(*child) {
                self.to(&routes.peers[place], how, packet);
            }
        }
    }

    fn to(&self, peer: &Peer, (network, steps): (u16, u16), packet: &[u8]) {
        let slice = Slice {
            offset: 0,
            total: 0,
            segment: steps,
            network,
            headers: 0,
            index: 0,
            shape: Shape::Plain,
            csum_pending: false,
            cwr: false,
            group: true,
        };
        match self.seal_and_send(peer, slice, packet) {
            Ok(()) => peer.counters.sent(packet.len()),
            Err(reason) => self.counters.dropped(reason),
        }
    }

    fn seal_and_send(&self, peer: &Peer, slice: Slice, packet: &[u8]) -> Result<(), Drop> {
        let send = peer.send.as_ref().ok_or(Drop::NoSession)?;
        let batch = &mut *self.batch.borrow_mut();
        let room = send.lanes.datagram(0);
        batch.seal_slices(&send.outbound, 0, room, (slice, &[], packet))?;
        send.lanes.note_used(0);
        if let Some(via) = &send.via {
            via.put_in(batch, 0)?;
        }
        transmit(&self.main, batch, send, 0, &self.counters)?;
        send.outbound.note_sent(self.start.millis(Instant::now()));
        Ok(())
    }
}
