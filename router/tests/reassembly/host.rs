//! Two hosts without their kernels: what one seals, the other opens and puts together, as a lane's thread does.

use std::cell::RefCell;
use std::io::IoSlice;
use std::ops::Range;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use weave_linux::tun::gso;
use weave_model::{ClusterRange, Drop as Reason, NodeId, Suite};
use weave_router::path::cut::Batch;
use weave_router::path::deliver::{Delivery, Tap};
use weave_router::path::inner::Inner;
use weave_router::path::join;
use weave_router::path::reassembly::{Heard, Reassembly};
use weave_router::path::routes::{Owned, Owner, Peer, Receive, Routes};
use weave_router::path::stats::Counters;
use weave_router::session::{Keys, Outbound, Terms};
use weave_router::wire::{HEADER, Header, Kind, Shape, Slice, TAG, push_packet};

use crate::kernel::place;
use crate::traffic::Item;

pub(crate) const LANES: u8 = 4;
const SESSION: u32 = 7;

/// A sealed datagram, and what of its item's payload is in it.
#[derive(Clone, Debug)]
pub(crate) struct Sealed {
    pub(crate) bytes: Vec<u8>,
    pub(crate) range: Range<usize>,
}

/// What was written, in order.
#[derive(Debug, Default)]
struct Written(RefCell<Vec<Vec<u8>>>);

impl Tap for Written {
    fn write(&self, pieces: &[IoSlice<'_>]) -> Result<(), Reason> {
        let pieces: Vec<&[u8]> = pieces.iter().map(|piece| &piece[..]).collect();
        self.0.borrow_mut().push(pieces.concat());
        Ok(())
    }

    fn write_group(&self, _: &Routes, _: u16, _: &Inner, _: &[u8]) -> Result<(), Reason> {
        panic!("nothing was sent to a group")
    }

    fn hand_on_group(&self, _: &Routes, _: usize, _: &Slice, _: &[u8]) {
        panic!("nothing was sent to a group")
    }
}

#[derive(Debug)]
pub(crate) struct Hosts {
    outbound: Outbound,
    batch: Batch,
    routes: Routes,
    counters: Counters,
    written: Written,
    reassembly: Reassembly,
    pub(crate) now: Instant,
}

impl Hosts {
    pub(crate) fn new() -> Self {
        let terms = Terms {
            peer: NodeId::from_bytes([9; 32]),
            suite: Suite::Aes256Gcm,
            lanes: LANES.into(),
            index: SESSION,
            receiver: SESSION,
            boot: 1,
        };
        let (outbound, _) = Keys::from_split([1; 32], [2; 32]).open(terms);
        let (_, inbound) = Keys::from_split([2; 32], [1; 32]).open(terms);
        let range = ClusterRange::new(
            "10.32.0.0/12".parse().unwrap(),
            "fd00::/48".parse().unwrap(),
        );
        let owned = |first, owner| Owned {
            first,
            last: first + 255,
            owner,
        };
        let peer = Peer {
            id: NodeId::from_bytes([9; 32]),
            send: None,
            counters: Arc::default(),
        };
        let receive = Receive {
            inbound: Arc::new(inbound),
            peer: Some(0),
            counters: Arc::default(),
        };
        let routes = Routes {
            me: [0; 16],
            range: Some(range.unwrap()),
            owners: vec![owned(0, Owner::Peer(0)), owned(256, Owner::Here)],
            peers: vec![peer],
            inbound: [(SESSION, receive)].into(),
            floating: [].into(),
            areas: vec![],
            trees: Arc::default(),
            ports: [].into(),
        };
        Self {
            outbound,
            batch: Batch::new(),
            routes,
            counters: Counters::default(),
            written: Written::default(),
            reassembly: Reassembly::new(join::MOST),
            now: Instant::now(),
        }
    }

    /// Cuts and seals as the sender does, into datagrams of at most `datagram` bytes.
    pub(crate) fn seal(&mut self, item: &Item, datagram: usize) -> Vec<Sealed> {
        let (lane, packet) = (item.lane, &item.packets[0]);
        if item.packets.len() > 1 {
            let mut body = Vec::new();
            for packet in &item.packets {
                push_packet(&mut body, &packet.bytes, packet.virtio.needs_csum(), 0);
            }
            self.batch
                .seal_packets(&self.outbound, lane, &body)
                .unwrap();
            let bytes = self.batch.calls().next().unwrap().to_vec();
            let range = 0..item.payload().len();
            return vec![Sealed { bytes, range }];
        }
        let place = place(&packet.bytes);
        let shape = match packet.virtio.gso_type & !gso::ECN {
            gso::TCP4 => Shape::Tcp4,
            gso::TCP6 => Shape::Tcp6,
            gso::UDP if packet.bytes[0] >> 4 == 4 => Shape::Udp4,
            gso::UDP => Shape::Udp6,
            _ => Shape::Plain,
        };
        let slice = Slice {
            offset: 0,
            total: 0,
            segment: packet.virtio.gso_size,
            network: 0,
            headers: 0,
            index: 0,
            shape,
            csum_pending: packet.virtio.needs_csum(),
            cwr: packet.virtio.gso_type & gso::ECN != 0,
            group: false,
        };
        let headers = if item.is_plain() { 0 } else { place.payload };
        let (headers, payload) = packet.bytes.split_at(headers);
        let what = (slice, headers, payload);
        self.batch
            .seal_slices(&self.outbound, lane, datagram, what)
            .unwrap();
        let segment = self.batch.segment();
        let piece = segment - (HEADER + headers.len() + Slice::SIZE + TAG);
        let datagrams = self.batch.calls().flat_map(|call| call.chunks(segment));
        datagrams
            .enumerate()
            .map(|(number, bytes)| Sealed {
                bytes: bytes.to_vec(),
                range: number * piece..(number * piece + piece).min(payload.len()),
            })
            .collect()
    }

    /// Opens a datagram and goes on with what is in it.
    pub(crate) fn receive(&mut self, datagram: &[u8], congested: bool) -> Result<(), Reason> {
        let now = self.now;
        let header = Header::parse(datagram)?;
        let receive = &self.routes.inbound[&header.receiver];
        let (head, sealed) = datagram.split_at(HEADER);
        let len = sealed.len() - TAG;
        let room = self.reassembly.room(len);
        let lane = receive.inbound.lane(header.lane).unwrap();
        let mut lane = lane.lock().unwrap_or_else(PoisonError::into_inner);
        lane.open_into(header.counter, head, sealed, room)?;
        let to = Delivery {
            tap: &self.written,
            routes: &self.routes,
            counters: &self.counters,
            uso: true,
        };
        let heard = Heard { now, congested };
        match Kind::of(self.reassembly.content(len)) {
            Some(Kind::Packets) => {
                self.reassembly.handle_packets(receive, len - 1, heard, &to);
                Ok(())
            }
            Some(Kind::Slice) => self.reassembly.handle_slice(header, len, heard, &to),
            other => panic!("{other:?} was never sent"),
        }
    }

    /// The end of what came in one call.
    pub(crate) fn flush(&mut self) {
        self.reassembly.flush(&Delivery {
            tap: &self.written,
            routes: &self.routes,
            counters: &self.counters,
            uso: true,
        });
    }

    /// Time passes; what is due in it happens when it is due.
    pub(crate) fn pass(&mut self, time: Duration) {
        let until = self.now + time;
        self.flush();
        while let Some(due) = self.reassembly.poll_timeout().filter(|due| *due <= until) {
            self.now = self.now.max(due);
            let to = Delivery {
                tap: &self.written,
                routes: &self.routes,
                counters: &self.counters,
                uso: true,
            };
            self.reassembly.handle_timeout(self.now, &to);
        }
        self.now = until;
    }

    pub(crate) fn is_waiting(&self) -> bool {
        self.reassembly.poll_timeout().is_some()
    }

    /// What was written since the last time, each with its virtio header.
    pub(crate) fn take(&mut self) -> Vec<Vec<u8>> {
        self.written.0.take()
    }
}
