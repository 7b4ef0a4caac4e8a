//! Turning a container's packets into sealed datagrams that lie end to end in one buffer, ready for one call.

#![deny(clippy::disallowed_methods)]

use weave_linux::udp::{MAX_BATCH, MAX_SEGMENTS};
use weave_model::Drop;

use super::header::MAX_HEADERS;
use crate::session::Outbound;
use crate::wire::{ENVELOPE, HEADER, Header, Kind, Slice, TAG, Type};

/// The smallest UDP payload a path may have: packets of 1200 bytes (the BASE_PLPMTU of RFC 8899 §5.1.2) less the headers
/// of IPv6 and UDP.
pub const MIN_DATAGRAM: usize = 1200 - 48;
/// The same of a path through a relay: what is left of it inside of an envelope.
pub const MIN_RELAYED: usize = MIN_DATAGRAM - ENVELOPE;

/// A run of sealed datagrams of equal size (the last may be shorter).
#[derive(Debug)]
pub struct Batch {
    /// Never shrinks: what a call does not need is not cleared for the next one.
    buffer: Vec<u8>,
    len: usize,
    segment: usize,
    /// Where [`Batch::envelop`] writes; empty until there is a relay.
    spare: Vec<u8>,
}

impl Default for Batch {
    fn default() -> Self {
        Self::new()
    }
}

impl Batch {
    /// An empty batch with room for the longest call.
    pub fn new() -> Self {
        Self {
            buffer: vec![0; MAX_BATCH],
            len: 0,
            segment: 1,
            spare: Vec::new(),
        }
    }

    /// Room for `len` bytes, whose content is unspecified.
    fn room(&mut self, len: usize) -> &mut [u8] {
        if self.buffer.len() < len {
            self.buffer.resize(len, 0);
        }
        self.len = len;
        &mut self.buffer[..len]
    }

    /// The calls to make: each piece holds datagrams of [`Batch::segment`] bytes and keeps to the kernel's limits.
    pub fn calls(&self) -> impl Iterator<Item = &[u8]> {
        let most = MAX_SEGMENTS.min(MAX_BATCH / self.segment).max(1);
        self.buffer[..self.len].chunks(most * self.segment)
    }

    /// Bytes of each datagram but the last.
    pub const fn segment(&self) -> usize {
        self.segment
    }

    /// Seals one datagram with `body` and a trailer.
    ///
    /// # Errors
    /// [`Drop::Expired`] when the session's keys are used up; the batch is then empty.
    pub fn seal_one(
        &mut self,
        outbound: &Outbound,
        lane: u8,
        body: &[u8],
        trailer: &[u8],
    ) -> Result<(), Drop> {
        self.len = 0;
        let counter = outbound.reserve(lane, 1).ok_or(Drop::Expired)?;
        self.segment = HEADER + body.len() + trailer.len() + TAG;
        let out = self.room(self.segment);
        seal(outbound, lane, counter, body, trailer, out);
        Ok(())
    }

    /// Forgets what was sealed.
    pub const fn clear(&mut self) {
        self.len = 0;
    }

    /// Seals one more datagram behind the others. `false` if it does not fit the run: it is longer than they are, or
    /// they are as many or as long as one call takes.
    ///
    /// # Errors
    /// [`Drop::Expired`] when the session's keys are used up.
    pub fn push(
        &mut self,
        outbound: &Outbound,
        lane: u8,
        body: &[u8],
        trailer: &[u8],
    ) -> Result<bool, Drop> {
        let (at, length) = (self.len, HEADER + body.len() + trailer.len() + TAG);
        if at > 0 {
            let odd = length > self.segment || !at.is_multiple_of(self.segment);
            if odd || at + length > MAX_BATCH || at / self.segment >= MAX_SEGMENTS {
                return Ok(false);
            }
        }
        let counter = outbound.reserve(lane, 1).ok_or(Drop::Expired)?;
        if at == 0 {
            self.segment = length;
        }
        let out = &mut self.room(at + length)[at..];
        seal(outbound, lane, counter, body, trailer, out);
        Ok(true)
    }

    /// Puts each datagram into an envelope for a relay, sealed in the session with it.
    ///
    /// # Errors
    /// [`Drop::Expired`] when that session's keys are used up.
    pub fn envelop(&mut self, outbound: &Outbound, lane: u8, trailer: &[u8]) -> Result<(), Drop> {
        let count = self.len.div_ceil(self.segment);
        let first = outbound.reserve(lane, count as u64).ok_or(Drop::Expired)?;
        let len = self.len + count * ENVELOPE;
        if self.spare.len() < len {
            self.spare.resize(len, 0);
        }
        let datagrams = self.buffer[..self.len].chunks(self.segment);
        self.segment += ENVELOPE;
        let out = self.spare[..len].chunks_mut(self.segment);
        for (counter, (datagram, out)) in (first..).zip(datagrams.zip(out)) {
            seal(outbound, lane, counter, datagram, trailer, out);
        }
        std::mem::swap(&mut self.buffer, &mut self.spare);
        self.len = len;
        Ok(())
    }

    /// Seals whole packets, as [`crate::wire::push_packet`] has put them together.
    ///
    /// # Errors
    /// As [`Batch::seal_one`].
    pub fn seal_packets(&mut self, outbound: &Outbound, lane: u8, body: &[u8]) -> Result<(), Drop> {
        self.seal_one(outbound, lane, body, &[Kind::Packets as u8])
    }

    /// Cuts `payload` into equal slices that fit `datagram` bytes each and seals them. `slice` says what the packet is;
    /// its offset, total, index and headers are filled in here.
    ///
    /// # Errors
    /// [`Drop::Expired`] when the keys are used up, [`Drop::TooBig`] when the headers or the payload are too long.
    pub fn seal_slices(
        &mut self,
        outbound: &Outbound,
        lane: u8,
        datagram: usize,
        (slice, headers, payload): (Slice, &[u8], &[u8]),
    ) -> Result<(), Drop> {
        self.len = 0;
        let total = u16::try_from(payload.len()).map_err(|_| Drop::TooBig)?;
        if headers.len() > MAX_HEADERS || payload.is_empty() {
            return Err(Drop::TooBig);
        }
        let overhead = HEADER + headers.len() + Slice::SIZE + TAG;
        let room = datagram.max(MIN_RELAYED) - overhead;
        let count = payload.len().div_ceil(room);
        let piece = payload.len().div_ceil(count);
        let first = outbound.reserve(lane, count as u64).ok_or(Drop::Expired)?;
        self.segment = overhead + piece;
        let segment = self.segment;
        let out = self.room(overhead * payload.len().div_ceil(piece) + payload.len());
        let mut trailer = [0; MAX_HEADERS + Slice::SIZE];
        let trailer = &mut trailer[..headers.len() + Slice::SIZE];
        trailer[..headers.len()].copy_from_slice(headers);
        let out = out.chunks_mut(segment);
        for (index, (part, out)) in payload.chunks(piece).zip(out).enumerate() {
            let (offset, index) = ((index * piece) as u16, index as u8);
            let slice = Slice {
                offset,
                total,
                index,
                headers: headers.len() as u8,
                ..slice
            };
            trailer[headers.len()..].copy_from_slice(&slice.to_bytes());
            seal(outbound, lane, first + u64::from(index), part, trailer, out);
        }
        Ok(())
    }
}

/// Writes header, ciphertext of `body | trailer` and tag into `out`, which is exactly that long.
fn seal(outbound: &Outbound, lane: u8, counter: u64, body: &[u8], trailer: &[u8], out: &mut [u8]) {
    let header = Header {
        kind: Type::Data,
        lane,
        receiver: outbound.receiver(),
        counter,
    }
    .to_bytes();
    let (head, rest) = out.split_at_mut(HEADER);
    head.copy_from_slice(&header);
    let (ciphertext, rest) = rest.split_at_mut(body.len());
    outbound
        .key(lane)
        .seal_from(counter, &header, body, trailer, ciphertext, rest);
}

#[cfg(test)]
mod tests {
    use weave_model::{NodeId, Suite};

    use super::*;
    use crate::session::{Inbound, Keys, Terms};
    use crate::wire::{Envelope, Shape};

    fn session() -> (Outbound, Inbound) {
        let terms = Terms {
            peer: NodeId::from_bytes([1; 32]),
            suite: Suite::Aes256Gcm,
            lanes: 1,
            index: 7,
            receiver: 7,
            boot: 1,
        };
        let (outbound, _) = Keys::from_split([1; 32], [2; 32]).open(terms);
        let (_, inbound) = Keys::from_split([2; 32], [1; 32]).open(terms);
        (outbound, inbound)
    }

    /// The contents of all datagrams of a batch.
    fn opened(batch: &Batch, inbound: &Inbound) -> Vec<Vec<u8>> {
        let mut lane = inbound.lane(0).unwrap().lock().unwrap();
        let mut open = |datagram: &[u8]| {
            let header = Header::parse(datagram).unwrap();
            let (head, sealed) = datagram.split_at(HEADER);
            let mut sealed = sealed.to_vec();
            let (content, _) = lane.open(header.counter, head, &mut sealed).unwrap();
            content.to_vec()
        };
        let all = batch.calls().flat_map(|call| call.chunks(batch.segment()));
        all.map(&mut open).collect()
    }

    #[test]
    fn what_is_in_an_envelope_comes_out_as_it_was() {
        let ((end, _), (outbound, inbound)) = (session(), session());
        let slice = Slice {
            offset: 0,
            total: 0,
            segment: 1000,
            network: 0,
            headers: 0,
            index: 0,
            shape: Shape::Tcp4,
            csum_pending: true,
            cwr: false,
            group: false,
        };
        let mut batch = Batch::new();
        let payload = vec![7; 50_000];
        let what = (slice, &[9; 40][..], &payload[..]);
        batch.seal_slices(&end, 0, MIN_RELAYED, what).unwrap();
        let plain: Vec<Vec<u8>> = batch
            .calls()
            .flat_map(|call| call.chunks(batch.segment()))
            .map(<[u8]>::to_vec)
            .collect();
        let [from, to] = [[1; 32], [2; 32]].map(NodeId::from_bytes);
        let envelope = Envelope::new(&from, &to);
        batch.envelop(&outbound, 0, &envelope.to_bytes()).unwrap();
        assert!(batch.segment() <= MIN_DATAGRAM);
        assert!(batch.calls().all(|call| call.len() <= MAX_BATCH));
        let contents = opened(&batch, &inbound);
        let inside: Vec<(Envelope, &[u8])> = contents
            .iter()
            .map(|content| Envelope::parse(content).unwrap())
            .collect();
        assert!(inside.iter().all(|(read, _)| *read == envelope));
        assert!(inside.iter().map(|(_, datagram)| datagram).eq(plain.iter()));
    }

    #[test]
    fn a_run_takes_datagrams_of_one_length_and_a_shorter_one_to_end_it() {
        let (outbound, inbound) = session();
        let mut batch = Batch::new();
        let mut push = |length: usize| batch.push(&outbound, 0, &vec![7; length], &[4]);
        assert_eq!(
            [100, 100, 101, 99, 99, 100]
                .map(&mut push)
                .map(Result::unwrap),
            [true, true, false, true, false, false]
        );
        assert_eq!(opened(&batch, &inbound).len(), 3);
        batch.clear();
        assert_eq!(batch.calls().count(), 0);
        let many = (0..1000).take_while(|_| batch.push(&outbound, 0, &[7; 20], &[4]).unwrap());
        assert_eq!(many.count(), MAX_SEGMENTS);
        batch.clear();
        let long = (0..1000).take_while(|_| batch.push(&outbound, 0, &[7; 8900], &[4]).unwrap());
        assert_eq!(long.count(), MAX_BATCH / (8900 + 1 + HEADER + TAG));
    }
}
