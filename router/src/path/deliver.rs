//! The last step in: whose packet may go where, the virtio header it gets, and one write.

#![deny(clippy::disallowed_methods)]

use std::io::IoSlice;

use weave_model::Drop;

use super::frames::Frame;
use super::header::{self, Template};
use super::inner::Inner;
use super::routes::{Receive, Routes};
use super::stats::Counters;
use crate::wire::{Shape, Slice, next_packet};

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
}

impl<T: Tap> Delivery<'_, T> {
    /// The session of that index.
    pub(super) fn receive(&self, session: u32) -> Result<&Receive, Drop> {
        let receive = self.routes.inbound.get(&session);
        receive.ok_or(Drop::UnknownSession)
    }

    /// Delivers the whole packets of one datagram.
    pub(super) fn packets(&self, receive: &Receive, body: &mut [u8], ce: bool) {
        let mut at = 0;
        while let Some(record) = next_packet(body, at) {
            let result = record.and_then(|record| {
                at = record.end;
                let packet = &mut body[record.start..record.end];
                self.packet(receive, packet, record.csum_pending, ce)
            });
            if let Err(reason) = result {
                self.counters.dropped(reason);
                if reason == Drop::TooShort {
                    return;
                }
            }
        }
    }

    fn packet(
        &self,
        receive: &Receive,
        packet: &mut [u8],
        csum_pending: bool,
        ce: bool,
    ) -> Result<(), Drop> {
        let inner = Inner::parse(packet)?;
        self.routes
            .admit(receive.peer, inner.source, inner.destination)?;
        if ce {
            header::mark_congestion(packet)?;
        }
        let virtio = header::plain(packet, &inner, csum_pending)?.to_bytes();
        self.tap
            .write(&[IoSlice::new(&virtio), IoSlice::new(packet)])?;
        self.count(receive, packet.len());
        Ok(())
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
            return self.packet(receive, packet, slice.csum_pending, ce);
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
