//! Putting slices together again, and making the most of what arrived when some did not.
//!
//! Slices of one packet have consecutive counters, so `counter - index` names the packet within its lane. Nearly always
//! they come in order, and the packet is put together where it is opened (`assembly`). When they do not, what there is of
//! it is copied aside here and waits for the rest: until a later packet of the same lane is whole, or nothing more came
//! for a while. Then each run of bytes that did arrive is delivered as a packet of its own. A packet whose slices overlap
//! or contradict one another is never delivered: no honest sender makes such.
//!
//! What a member can make a node keep is bounded: two packets of at most 64 KB for each lane of its session, of which a
//! thread serves one, and no more than 64 packets a thread of all members together, of which the oldest makes way. And it
//! is bounded in time, however slowly slices come.

#![deny(clippy::disallowed_methods)]

use std::ops::Range;
use std::time::{Duration, Instant};

use weave_model::Drop;

use super::header::MAX_HEADERS;
use crate::wire::{Shape, Slice};

/// How long an incomplete super-frame waits for its next slice before what there is of it is delivered.
pub const PATIENCE: Duration = Duration::from_micros(500);
/// How long a packet waits that is whole or nothing: giving up early would gain nothing.
pub const PLAIN_PATIENCE: Duration = Duration::from_millis(10);
/// How long any packet waits in all, however slowly its slices come.
const LIMIT: Duration = Duration::from_millis(20);
/// How many incomplete packets a lane may have.
const PER_LANE: usize = 2;
/// How many incomplete packets a thread may have over all lanes: 64 x 64 KB.
const IN_ALL: usize = 64;

/// Which packet: session index, lane, and the counter of its first slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameId {
    /// Our index of the session.
    pub session: u32,
    /// The lane.
    pub lane: u8,
    /// The counter of the packet's first slice.
    pub first: u64,
}

/// A run of a packet's payload that arrived, and what its slices said of the packet.
#[derive(Clone, Copy, Debug)]
pub struct Piece<'a> {
    /// Which packet it belongs to.
    pub id: FrameId,
    /// What its slices said; offset and index are those of any one of them.
    pub slice: Slice,
    /// The copy of the packet's headers.
    pub headers: &'a [u8],
    /// Where it belongs in the packet's payload.
    pub offset: usize,
    /// The run itself.
    pub payload: &'a [u8],
    /// Whether any of its slices met congestion.
    pub congested: bool,
    /// When the first of its slices arrived, and the last.
    pub since: Instant,
    /// See `since`.
    pub heard: Instant,
}

/// When a packet of this shape has waited enough whose first slice came at `since` and the last so far at `heard`.
pub fn due(shape: Shape, since: Instant, heard: Instant) -> Instant {
    let patience = if shape == Shape::Plain {
        PLAIN_PATIENCE
    } else {
        PATIENCE
    };
    (heard + patience).min(since + LIMIT)
}

/// What all slices of one packet must agree on.
pub fn same_packet(a: &Slice, b: &Slice) -> bool {
    Slice {
        offset: 0,
        index: 0,
        ..*a
    } == Slice {
        offset: 0,
        index: 0,
        ..*b
    }
}

/// A packet of which some slices are still missing.
#[derive(Debug)]
pub struct Frame {
    id: FrameId,
    slice: Slice,
    headers: [u8; MAX_HEADERS],
    payload: Vec<u8>,
    /// What has arrived: sorted, not touching.
    have: Vec<Range<usize>>,
    congested: bool,
    /// Its slices contradicted one another.
    spoilt: bool,
    since: Instant,
    due: Instant,
}

impl Frame {
    /// What its slices said of it.
    pub const fn slice(&self) -> &Slice {
        &self.slice
    }

    /// Which packet it is.
    pub const fn id(&self) -> FrameId {
        self.id
    }

    /// The copy of its headers.
    pub fn headers(&self) -> &[u8] {
        &self.headers[..usize::from(self.slice.headers)]
    }

    /// Its payload; only the bytes in [`Frame::have`] mean anything.
    pub fn payload(&self) -> &[u8] {
        &self.payload
    }

    /// Whether any slice of it met congestion, which then holds for all of it, as with fragments (RFC 3168 §5.3).
    pub const fn congested(&self) -> bool {
        self.congested
    }

    /// The runs of payload that arrived, in order.
    pub fn have(&self) -> &[Range<usize>] {
        &self.have
    }

    /// Whether nothing is missing.
    pub fn is_whole(&self) -> bool {
        self.have.len() == 1 && self.have[0] == (0..self.payload.len())
    }

    /// Whether any of it can be delivered when no more comes: a plain packet is whole or nothing.
    pub fn deliverable(&self) -> bool {
        self.is_whole() || self.slice.shape != Shape::Plain
    }

    /// More of it came: it may wait a little longer.
    fn extend(&mut self, heard: Instant) {
        self.due = due(self.slice.shape, self.since, heard);
    }

    /// Whether a piece says the same of the packet as those before, and none of its bytes came before.
    fn agrees(&self, piece: &Piece<'_>) -> bool {
        let new = piece.offset..piece.offset + piece.payload.len();
        let overlaps = |have: &Range<usize>| have.start < new.end && new.start < have.end;
        !self.spoilt && same_packet(&self.slice, &piece.slice) && !self.have.iter().any(overlaps)
    }

    fn insert(&mut self, offset: usize, bytes: &[u8]) {
        let new = offset..offset + bytes.len();
        self.payload[new.clone()].copy_from_slice(bytes);
        let at = self.have.partition_point(|have| have.end < new.start);
        let touching = self.have[at..]
            .iter()
            .take_while(|have| have.start <= new.end)
            .count();
        let start = if touching > 0 {
            self.have[at].start.min(new.start)
        } else {
            new.start
        };
        let end = if touching > 0 {
            self.have[at + touching - 1].end.max(new.end)
        } else {
            new.end
        };
        self.have
            .splice(at..at + touching, std::iter::once(start..end));
    }
}

/// The incomplete packets of one thread, oldest first.
#[derive(Debug, Default)]
pub struct Frames {
    open: Vec<Frame>,
    ready: Vec<Frame>,
    spare: Vec<Vec<u8>>,
}

impl Frames {
    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// Whether an incomplete packet of this id waits.
    pub fn waits(&self, id: FrameId) -> bool {
        self.open.iter().any(|frame| frame.id == id)
    }

    /// When the first incomplete packet will have waited enough.
    pub fn due(&self) -> Option<Instant> {
        self.open.iter().map(|frame| frame.due).min()
    }

    /// Copies a run of a packet aside. If that makes the packet whole, it and the older ones of its lane become ready.
    ///
    /// # Errors
    /// [`Drop::Malformed`] when the run contradicts those that came before, or brings bytes that are there.
    pub fn add(&mut self, piece: &Piece<'_>) -> Result<(), Drop> {
        let id = piece.id;
        let place = match self.open.iter().position(|frame| frame.id == id) {
            Some(place) if self.open[place].agrees(piece) => place,
            Some(place) => {
                self.open[place].spoilt = true;
                return Err(Drop::Malformed);
            }
            None => {
                self.make_room(id);
                let frame = self.frame(piece);
                self.open.push(frame);
                self.open.len() - 1
            }
        };
        let frame = &mut self.open[place];
        frame.insert(piece.offset, piece.payload);
        frame.congested |= piece.congested;
        frame.extend(piece.heard);
        if frame.is_whole() {
            self.release_lane_through(id);
        }
        Ok(())
    }

    fn frame(&mut self, piece: &Piece<'_>) -> Frame {
        let mut payload = self.spare.pop().unwrap_or_default();
        payload.clear();
        payload.resize(usize::from(piece.slice.total), 0);
        let mut headers = [0; MAX_HEADERS];
        headers[..piece.headers.len()].copy_from_slice(piece.headers);
        Frame {
            id: piece.id,
            slice: piece.slice,
            headers,
            payload,
            have: Vec::with_capacity(4),
            congested: false,
            spoilt: false,
            since: piece.since,
            due: piece.heard,
        }
    }

    /// A packet of this lane became whole: the older ones of the lane have waited enough.
    pub fn completed(&mut self, id: FrameId) {
        self.release(|frame| same_lane(frame.id, id) && frame.id.first < id.first);
    }

    fn release_lane_through(&mut self, id: FrameId) {
        self.release(|frame| same_lane(frame.id, id) && frame.id.first <= id.first);
    }

    /// The time of these is over.
    pub fn expire(&mut self, now: Instant) {
        self.release(|frame| frame.due <= now);
    }

    fn make_room(&mut self, id: FrameId) {
        let lane = self
            .open
            .iter()
            .filter(|frame| same_lane(frame.id, id))
            .count();
        if lane >= PER_LANE {
            let oldest = self
                .open
                .iter()
                .find(|frame| same_lane(frame.id, id))
                .map(|frame| frame.id);
            self.release(|frame| Some(frame.id) == oldest);
        } else if self.open.len() >= IN_ALL {
            let oldest = self.open.first().map(|frame| frame.id);
            self.release(|frame| Some(frame.id) == oldest);
        }
    }

    fn release(&mut self, which: impl Fn(&Frame) -> bool) {
        let ready = self.open.extract_if(.., |frame| which(frame));
        self.ready.extend(ready.filter(|frame| !frame.spoilt));
        self.ready.sort_by_key(|frame| frame.id.first);
    }

    /// The packets to deliver now, in the order they were sent; the caller gives each back to [`Frames::recycle`].
    pub fn take_ready(&mut self) -> Vec<Frame> {
        std::mem::take(&mut self.ready)
    }

    /// Whether [`Frames::take_ready`] has something.
    pub fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Keeps a frame's buffer for the next one.
    pub fn recycle(&mut self, frame: Frame) {
        if self.spare.len() < PER_LANE * 2 {
            self.spare.push(frame.payload);
        }
    }
}

fn same_lane(a: FrameId, b: FrameId) -> bool {
    a.session == b.session && a.lane == b.lane
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slice(offset: u16, total: u16) -> Slice {
        let (headers, shape) = (2, Shape::Tcp4);
        Slice {
            offset,
            total,
            segment: 3,
            network: 0,
            headers,
            index: 0,
            shape,
            csum_pending: true,
            cwr: false,
            group: false,
        }
    }

    fn id(first: u64) -> FrameId {
        FrameId {
            session: 1,
            lane: 0,
            first,
        }
    }

    /// Adds a slice: payload bytes are `offset, offset + 1, ...`, the headers [88, 99].
    fn add(
        frames: &mut Frames,
        first: u64,
        (offset, len, total): (u16, u16, u16),
        heard: Instant,
    ) -> Result<(), Drop> {
        let payload: Vec<u8> = (offset..offset + len).map(|b| b as u8).collect();
        frames.add(&Piece {
            id: id(first),
            slice: slice(offset, total),
            headers: &[88, 99],
            offset: offset.into(),
            payload: &payload,
            congested: false,
            since: heard,
            heard,
        })
    }

    proptest::proptest! {
        /// Whatever the order and whatever is missing, exactly the bytes that arrived are there.
        #[test]
        fn what_arrived_is_what_is_there(order in proptest::collection::vec(0_u16..10, 1..30)) {
            let now = Instant::now();
            let mut frames = Frames::default();
            let mut seen = [false; 30];
            for piece in order {
                let place = usize::from(piece) * 3;
                if !frames.has_ready() && !seen[place] {
                    add(&mut frames, 1, (piece * 3, 3, 30), now).unwrap();
                    seen[place..][..3].fill(true);
                }
            }
            frames.expire(now + PATIENCE);
            let frame = frames.take_ready().pop().unwrap();
            let mut got = [false; 30];
            for have in frame.have() {
                got[have.clone()].fill(true);
                assert!(have.clone().all(|at| frame.payload()[at] == at as u8));
            }
            assert_eq!(got, seen);
            assert_eq!(frame.is_whole(), seen.iter().all(|s| *s));
            assert_eq!(frame.headers(), [88, 99]);
        }
    }

    #[test]
    fn an_older_packet_goes_first_when_the_next_is_whole() {
        let now = Instant::now();
        let mut frames = Frames::default();
        add(&mut frames, 1, (0, 3, 9), now).unwrap();
        add(&mut frames, 4, (0, 3, 6), now).unwrap();
        assert!(!frames.has_ready());
        add(&mut frames, 4, (3, 3, 6), now).unwrap();
        let ready: Vec<u64> = frames
            .take_ready()
            .iter()
            .map(|frame| frame.id().first)
            .collect();
        assert_eq!(ready, [1, 4]);
        assert!(frames.is_empty());
    }

    #[test]
    fn congestion_stays_with_the_packet_that_met_it() {
        let now = Instant::now();
        let mut frames = Frames::default();
        for (first, offset, congested) in [(1, 0, true), (10, 0, false), (1, 3, false)] {
            let piece = Piece {
                id: id(first),
                slice: slice(offset, 9),
                headers: &[88, 99],
                offset: offset.into(),
                payload: &[0; 3],
                congested,
                since: now,
                heard: now,
            };
            frames.add(&piece).unwrap();
        }
        frames.expire(now + PATIENCE);
        let ready = frames.take_ready();
        let met: Vec<(u64, bool)> = ready
            .iter()
            .map(|frame| (frame.id().first, frame.congested()))
            .collect();
        assert_eq!(met, [(1, true), (10, false)]);
    }

    #[test]
    fn a_lane_has_at_most_two_open() {
        let now = Instant::now();
        let mut frames = Frames::default();
        for first in [1, 10, 20] {
            add(&mut frames, first, (0, 3, 9), now).unwrap();
        }
        assert_eq!(frames.take_ready().len(), 1);
        assert_eq!(frames.due(), Some(now + PATIENCE));
    }

    #[test]
    fn slices_that_contradict_spoil_their_packet() {
        for (offset, len, total) in [(3, 3, 12), (0, 3, 9), (2, 2, 9), (1, 1, 9), (0, 9, 9)] {
            let now = Instant::now();
            let mut frames = Frames::default();
            let mut add = |run| add(&mut frames, 1, run, now);
            assert_eq!(add((0, 3, 9)), Ok(()));
            assert_eq!(add((offset, len, total)), Err(Drop::Malformed));
            assert_eq!(add((3, 6, 9)), Err(Drop::Malformed), "it stays spoilt");
            frames.expire(now + LIMIT);
            assert!(!frames.has_ready() && frames.is_empty());
        }
    }
}
