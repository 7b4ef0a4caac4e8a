//! The last step in: whose packet may go where, the virtio header it gets, and one write.
//!
//! Small packets of one flow that came in one datagram go to the kernel as a [`Train`] if it can cut them again.

#![deny(clippy::disallowed_methods)]

use std::io::IoSlice;

use weave_model::Drop;

use super::frames::Frame;
use super::header::{self, Template};
use super::inner::Inner;
use super::routes::{Receive, Routes};
use super::stats::Counters;
use super::train::{self, Train};
use crate::wire::{Record, Shape, Slice, next_packet};

/// Where this host takes packets.
pub trait Tap {
    /// Takes one packet for the host's IP stack, given in pieces of which the first begins with the virtio header.
    ///
    /// # Errors
    /// [`Drop::Refused`] when the kernel does not want it.
    fn write(&self, pieces: &[IoSlice<'_>]) -> Result<(), Drop>;

    /// Takes one packet for all containers of a network.
    ///
    /// # Errors
    /// As [`super::group::GroupPorts::deliver`].
    fn write_group(
        &self,
        routes: &Routes,
        network: u16,
        inner: &Inner,
        packet: &[u8],
    ) -> Result<(), Drop>;

    /// Hands a packet of the member at that place on to those that get it from this node.
    fn hand_on_group(&self, routes: &Routes, root: usize, slice: &Slice, packet: &[u8]);
}

/// What delivering goes by.
#[derive(Debug)]
pub struct Delivery<'a, T> {
    /// Where packets go.
    pub tap: &'a T,
    /// Who may send what.
    pub routes: &'a Routes,
    /// The thread's counters.
    pub counters: &'a Counters,
    /// Whether the kernel takes UDP packets that it is to cut.
    pub uso: bool,
}

impl<T: Tap> Delivery<'_, T> {
    /// The session of that index.
    pub(super) fn receive(&self, session: u32) -> Result<&Receive, Drop> {
        let receive = self.routes.inbound.get(&session);
        receive.ok_or(Drop::UnknownSession)
    }

    /// Delivers the whole packets of one datagram.
    pub(super) fn packets(&self, receive: &Receive, body: &mut [u8], ce: bool) {
        let (mut at, mut train) = (0, None::<Train>);
        while let Some(record) = next_packet(body, at) {
            let result = record.and_then(|record| {
                at = record.end;
                let packet = &mut body[record.start..record.end];
                let inner = self.admitted(receive, packet, ce)?;
                Ok((record, inner))
            });
            match result {
                Ok((record, inner)) => self.couple(receive, body, &mut train, (record, inner)),
                Err(reason) => self.counters.dropped(reason),
            }
            if matches!(result, Err(Drop::TooShort)) {
                break;
            }
        }
        if let Some(train) = train {
            self.train(receive, body, &train);
        }
    }

    /// Lets a packet go with those before it, or after them.
    fn couple(
        &self,
        receive: &Receive,
        body: &[u8],
        train: &mut Option<Train>,
        (record, inner): (Record, Inner),
    ) {
        let next = self.uso.then(|| Train::new(body, &record, &inner));
        let next = next.flatten();
        if let (Some(train), Some(next)) = (train.as_mut(), &next)
            && train.take(body, next)
        {
            return;
        }
        if let Some(before) = train.take() {
            self.train(receive, body, &before);
        }
        *train = next;
        if train.is_none() {
            let packet = &body[record.start..record.end];
            self.one(receive, packet, &inner, record.csum_pending);
        }
    }

    /// Writes a train as one packet, or if the kernel does not take that, as the packets it has.
    fn train(&self, receive: &Receive, body: &[u8], train: &Train) {
        if train.count() > 1 && self.as_one(body, train).is_ok() {
            for packet in train.packets() {
                self.count(receive, packet.len());
            }
            return;
        }
        for packet in train.packets() {
            self.one(receive, &body[packet], train.inner(), true);
        }
    }

    fn as_one(&self, body: &[u8], train: &Train) -> Result<(), Drop> {
        let built = train.build(body)?;
        let virtio = built.virtio.to_bytes();
        let mut pieces = [IoSlice::new(&[]); 2 + train::LONGEST];
        pieces[0] = IoSlice::new(&virtio);
        pieces[1] = IoSlice::new(built.headers());
        for (piece, payload) in pieces[2..].iter_mut().zip(train.payloads()) {
            *piece = IoSlice::new(&body[payload]);
        }
        self.tap.write(&pieces[..2 + train.count()])
    }

    /// Reads a packet, looks whether it may go where it wants to, and marks it if it met congestion.
    fn admitted(&self, receive: &Receive, packet: &mut [u8], ce: bool) -> Result<Inner, Drop> {
        let inner = Inner::parse(packet)?;
        self.routes
            .admit(receive.peer, inner.source, inner.destination)?;
        if ce {
            header::mark_congestion(packet)?;
        }
        Ok(inner)
    }

    /// Writes and counts one packet that was admitted.
    fn one(&self, receive: &Receive, packet: &[u8], inner: &Inner, csum_pending: bool) {
        let written = header::plain(packet, inner, csum_pending).and_then(|virtio| {
            let virtio = virtio.to_bytes();
            self.tap
                .write(&[IoSlice::new(&virtio), IoSlice::new(packet)])
        });
        match written {
            Ok(()) => self.count(receive, packet.len()),
            Err(reason) => self.counters.dropped(reason),
        }
    }

    /// Delivers a packet that was sent as it is: to a container, or to all of a network.
    pub(super) fn plain(
        &self,
        receive: &Receive,
        slice: &Slice,
        packet: &mut [u8],
        ce: bool,
    ) -> Result<(), Drop> {
        if !slice.group {
            let inner = self.admitted(receive, packet, ce)?;
            self.one(receive, packet, &inner, slice.csum_pending);
            return Ok(());
        }
        let inner = Inner::parse(packet)?;
        let root = self.routes.admit_group(receive.peer, inner.source)?;
        self.count(receive, packet.len());
        self.tap.hand_on_group(self.routes, root, slice, packet);
        self.tap
            .write_group(self.routes, slice.network, &inner, packet)
    }

    /// Delivers of a packet that waited each run of bytes that arrived.
    pub(super) fn frame(&self, frame: &Frame) -> Result<(), Drop> {
        let ce = frame.congested();
        let receive = self.receive(frame.id().session)?;
        if !frame.is_whole() {
            self.counters.dropped(Drop::Incomplete);
        }
        if frame.slice().shape == Shape::Plain {
            if frame.deliverable() {
                let mut packet = frame.payload().to_vec();
                return self.plain(receive, frame.slice(), &mut packet, ce);
            }
            return Ok(());
        }
        let mut headers = frame.headers().to_vec();
        let template = self.template(receive, (frame.slice(), &mut headers), ce)?;
        for run in frame.have() {
            let run = template.usable(run.clone());
            if run.is_empty() {
                continue;
            }
            let built = template.build(run.clone());
            let virtio = built.virtio.to_bytes();
            let payload = &frame.payload()[run];
            self.tap.write(&[
                IoSlice::new(&virtio),
                IoSlice::new(built.headers()),
                IoSlice::new(payload),
            ])?;
            self.count(receive, built.headers().len() + payload.len());
        }
        Ok(())
    }

    /// The headers of a super-packet that may be delivered, marked if it met congestion.
    pub(super) fn template<'a>(
        &self,
        receive: &Receive,
        (slice, headers): (&'a Slice, &'a mut [u8]),
        ce: bool,
    ) -> Result<Template<'a>, Drop> {
        if ce {
            header::mark_congestion(headers)?;
        }
        let template = Template::new(slice, headers)?;
        let inner = &template.inner;
        self.routes
            .admit(receive.peer, inner.source, inner.destination)?;
        Ok(template)
    }

    /// Counts a packet that goes to this host.
    pub(super) fn count(&self, receive: &Receive, bytes: usize) {
        self.counters.packet(bytes);
        receive.counters.received(bytes);
    }
}
