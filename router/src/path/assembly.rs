//! Where opened datagrams land: one buffer in which packets are put together by nothing but opening their slices.
//!
//! Each datagram is opened to the end of what is there. A slice's payload stands first in its content, so the next slice
//! of the packet is opened over what followed it, and the packet lies there whole without a copy, however many receives
//! it took. Whole super-packets of one stream stay in front of the next one and are written together ([`Joined`]). The
//! room before them takes the headers, so that what is written is one piece.
//!
//! ```text
//! | room for headers | joined packets | the open packet's slices | the datagram just opened |
//!               HEAD ^                                       end ^
//! ```

#![deny(clippy::disallowed_methods)]

use std::ops::Range;
use std::time::Instant;

use weave_linux::tun::VirtioHeader;

use super::frames::{FrameId, Piece, due, same_packet};
use super::header::{Built, MAX_HEADERS};
use super::join::{self, Joined};
use crate::wire::Slice;

/// Room for what stands before a payload on the TUN queue.
const HEAD: usize = VirtioHeader::SIZE + MAX_HEADERS;
/// The longest content of a datagram, and the longest payload of a packet.
const LONGEST: usize = 1 << 16;

/// The packet whose slices are arriving in order.
#[derive(Clone, Debug)]
pub struct Open {
    /// Which packet it is.
    pub id: FrameId,
    /// What its slices say of it.
    pub slice: Slice,
    /// Whether any slice of it met congestion.
    pub congested: bool,
    headers: [u8; MAX_HEADERS],
    /// The offset of the first payload byte that is here, and of the first that is not.
    from: usize,
    to: usize,
    since: Instant,
    heard: Instant,
}

impl Open {
    /// The copy of its headers.
    pub fn headers_mut(&mut self) -> &mut [u8] {
        &mut self.headers[..usize::from(self.slice.headers)]
    }

    fn headers(&self) -> &[u8] {
        &self.headers[..usize::from(self.slice.headers)]
    }

    fn is_whole(&self) -> bool {
        self.from == 0 && self.to == usize::from(self.slice.total)
    }
}

/// How the joined packets were written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrote {
    /// In one write, or there were none.
    AsOne,
    /// In several, because the kernel refused them as one.
    Shorter,
}

/// The buffer and what is known of its content.
#[derive(Debug)]
pub struct Assembly {
    buffer: Vec<u8>,
    joined: Option<Joined>,
    open: Option<Open>,
    end: usize,
    /// Where the last datagram was opened.
    at: usize,
}

impl Default for Assembly {
    fn default() -> Self {
        Self {
            buffer: vec![0; HEAD + join::MOST + 2 * LONGEST],
            joined: None,
            open: None,
            end: 0,
            at: 0,
        }
    }
}

impl Assembly {
    /// The room that a datagram with `len` bytes of content, at most 65,536, is to be opened into.
    pub fn room(&mut self, len: usize) -> &mut [u8] {
        self.at = self.end;
        self.content(len)
    }

    /// What was opened into the last [`Assembly::room`].
    pub fn content(&mut self, len: usize) -> &mut [u8] {
        &mut self.buffer[HEAD + self.at..][..len]
    }

    /// Whether a slice is the very next one of the open packet.
    pub fn continues(&self, id: FrameId, slice: &Slice) -> bool {
        self.open.as_ref().is_some_and(|open| {
            open.id == id && open.to == usize::from(slice.offset) && same_packet(&open.slice, slice)
        })
    }

    /// Takes the content just opened as the slice that [`Assembly::continues`] the open packet.
    pub fn extend(&mut self, payload: usize, congested: bool, now: Instant) {
        if let Some(open) = &mut self.open {
            open.to += payload;
            open.congested |= congested;
            open.heard = now;
            self.end += payload;
        }
    }

    /// Takes the content just opened as the first slice of a packet; none may be open.
    pub fn start(
        &mut self,
        id: FrameId,
        slice: Slice,
        payload: usize,
        congested: bool,
        now: Instant,
    ) {
        let count = usize::from(slice.headers);
        let content = HEAD + self.at;
        if self.at != self.end {
            self.buffer
                .copy_within(content..content + payload + count, HEAD + self.end);
            self.at = self.end;
        }
        let mut headers = [0; MAX_HEADERS];
        headers[..count].copy_from_slice(&self.buffer[HEAD + self.at + payload..][..count]);
        let from = usize::from(slice.offset);
        self.open = Some(Open {
            id,
            slice,
            congested,
            headers,
            from,
            to: from + payload,
            since: now,
            heard: now,
        });
        self.end += payload;
    }

    /// The open packet, if all of it is here.
    pub fn whole(&self) -> Option<&Open> {
        self.open.as_ref().filter(|open| open.is_whole())
    }

    /// What there is of the open packet.
    pub fn piece(&self) -> Option<Piece<'_>> {
        let open = self.open.as_ref()?;
        Some(Piece {
            id: open.id,
            slice: open.slice,
            headers: open.headers(),
            offset: open.from,
            payload: &self.buffer[HEAD + self.joined_len()..HEAD + self.end],
            congested: open.congested,
            since: open.since,
            heard: open.heard,
        })
    }

    /// The open packet's payload.
    pub fn payload_mut(&mut self) -> &mut [u8] {
        let start = HEAD + self.joined_len();
        &mut self.buffer[start..HEAD + self.end]
    }

    /// Forgets the open packet.
    pub fn forget(&mut self) {
        self.open = None;
        self.end = self.joined_len();
    }

    /// When the open packet will have waited enough for its next slice.
    pub fn due(&self) -> Option<Instant> {
        let open = self.open.as_ref()?;
        Some(due(open.slice.shape, open.since, open.heard))
    }

    /// Whether the open packet was sent before another one, on the same lane.
    pub fn is_older_than(&self, id: FrameId) -> bool {
        self.open.as_ref().is_some_and(|open| {
            (open.id.session, open.id.lane) == (id.session, id.lane) && open.id.first < id.first
        })
    }

    /// Whether the open packet, whole, can be written together with those before it.
    pub fn takes(&self, next: &Joined, most: usize) -> bool {
        self.joined
            .as_ref()
            .is_none_or(|joined| joined.takes(next, most))
    }

    /// The open packet, whole, is one of those to be written: [`Assembly::takes`] has agreed to it.
    pub fn join(&mut self, next: Joined) {
        match &mut self.joined {
            Some(joined) => joined.join(&next),
            None => self.joined = Some(next),
        }
        self.open = None;
    }

    /// Gives the joined packets, as one, to `write`: virtio header, headers and payload in one piece. If that is refused
    /// and there are several, gives them again in packets as long as any kernel takes them, and says so.
    ///
    /// # Errors
    /// The first refusal of a packet that cannot be shorter.
    pub fn write<E>(&mut self, mut write: impl FnMut(&[u8]) -> Result<(), E>) -> Result<Wrote, E> {
        let Some(joined) = self.joined.take() else {
            return Ok(Wrote::AsOne);
        };
        let payload = joined.payload();
        let mut result = write(self.packet(joined.built(), 0..payload)).map(|()| Wrote::AsOne);
        if result.is_err() && joined.bytes() > join::MOST_SHORT {
            // Headers go over what was written before; the first run's went over nothing.
            let mut runs = joined.shorter();
            result = runs
                .try_for_each(|(run, built)| write(self.packet(&built, run)))
                .map(|()| Wrote::Shorter);
        }
        self.buffer
            .copy_within(HEAD + payload..HEAD + self.end, HEAD);
        self.end -= payload;
        result
    }

    /// Puts the headers before a run of the joined payload.
    fn packet(&mut self, built: &Built, run: Range<usize>) -> &[u8] {
        let (headers, virtio) = (built.headers(), built.virtio.to_bytes());
        let (payload, end) = (HEAD + run.start, HEAD + run.end);
        let start = payload - headers.len() - virtio.len();
        self.buffer[start..][..virtio.len()].copy_from_slice(&virtio);
        self.buffer[payload - headers.len()..payload].copy_from_slice(headers);
        &self.buffer[start..end]
    }

    fn joined_len(&self) -> usize {
        self.joined.as_ref().map_or(0, Joined::payload)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Shape;

    fn slice(offset: u16, total: u16) -> Slice {
        Slice {
            offset,
            total,
            segment: 3,
            network: 0,
            headers: 2,
            index: 0,
            shape: Shape::Tcp4,
            csum_pending: true,
            cwr: false,
            group: false,
        }
    }

    const fn id(first: u64) -> FrameId {
        FrameId {
            session: 1,
            lane: 0,
            first,
        }
    }

    /// Opens a slice: payload `offset, offset + 1, ...`, the headers [88, 99] and a trailer behind it.
    fn open(assembly: &mut Assembly, offset: u16, payload: u16) {
        let content = assembly.room(usize::from(payload) + 2 + Slice::SIZE);
        content.fill(255);
        for (at, byte) in content.iter_mut().take(payload.into()).enumerate() {
            *byte = offset as u8 + at as u8;
        }
        content[payload.into()..][..2].copy_from_slice(&[88, 99]);
    }

    #[test]
    fn slices_in_order_lie_end_to_end() {
        let now = Instant::now();
        let mut assembly = Assembly::default();
        open(&mut assembly, 0, 6);
        assembly.start(id(5), slice(0, 10), 6, false, now);
        assert!(assembly.whole().is_none());
        assert!(!assembly.continues(id(5), &slice(5, 10)));
        assert!(!assembly.continues(id(6), &slice(6, 10)));
        assert!(!assembly.continues(id(5), &slice(6, 11)));
        assert!(assembly.continues(id(5), &slice(6, 10)));
        open(&mut assembly, 6, 4);
        assembly.extend(4, true, now);
        let mut whole = assembly.whole().unwrap().clone();
        assert_eq!(whole.headers_mut(), [88, 99]);
        assert!(whole.congested);
        assert_eq!(assembly.payload_mut(), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
    }

    #[test]
    fn a_packet_given_up_leaves_its_place_to_the_one_that_came() {
        let now = Instant::now();
        let mut assembly = Assembly::default();
        open(&mut assembly, 0, 6);
        assembly.start(id(1), slice(0, 9), 6, false, now);
        open(&mut assembly, 3, 3);
        let piece = assembly.piece().unwrap();
        assert_eq!((piece.offset, piece.payload), (0, &[0, 1, 2, 3, 4, 5][..]));
        assembly.forget();
        assembly.start(id(9), slice(3, 6), 3, false, now);
        assert!(assembly.whole().is_none(), "its beginning is missing");
        let piece = assembly.piece().unwrap();
        assert_eq!((piece.offset, piece.payload), (3, &[3, 4, 5][..]));
        assert_eq!(piece.headers, [88, 99]);
        assert_eq!(assembly.due(), Some(now + crate::path::frames::PATIENCE));
    }
}
