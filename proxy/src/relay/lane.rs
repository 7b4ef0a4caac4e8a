//! The shell: moves the bytes of one direction from one socket to the other.
//!
//! What can be given on at once is never kept: it is read into one buffer of the thread and written from there. What
//! the receiver has no room for stays with the direction, and nothing more is read until it is gone, so the sender
//! feels it. A direction that fills the buffer time and again is a stream: it gets a pipe, and its bytes are not copied
//! any more. An idle connection has neither.
//!
//! Urgent data (`MSG_OOB`) is carried in its place among the rest (`SO_OOBINLINE`); that it is urgent is lost.
//!
//! Receivers that read nothing cost little, however many they are: when much is kept already, no more is read at once
//! than a sip.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use mio::net::TcpStream;
use weave_linux::intercept;
use weave_linux::pipe::Pipe;

/// The buffer of a thread, in bytes; also the most that a direction keeps.
pub(super) const BUFFER: usize = 64 * 1024;
/// How many bytes all directions of the relay may keep before they read in sips.
pub(super) const KEPT: usize = 64 << 20;
/// The most that is read at once from then on, in bytes.
const SIP: usize = 4096;
/// How often in a row the buffer has to be filled until there is a pipe.
const STREAM: u8 = 2;
/// The most that is moved through a pipe at once, in bytes.
const PIPEFUL: usize = 1 << 20;
/// How many times a direction may read in its turn, so that others get theirs.
const TURN: u32 = 16;

/// What the directions of a thread have to move bytes with.
#[derive(Debug)]
pub(super) struct Means {
    /// What is read into, when it is given on at once.
    buffer: Vec<u8>,
    pipes: Pipes,
    /// How many bytes all directions of the relay keep.
    kept: Arc<AtomicUsize>,
}

impl Means {
    /// With at most so many pipes.
    pub(super) fn new(pipes: usize, kept: Arc<AtomicUsize>) -> Self {
        Self {
            buffer: vec![0; BUFFER],
            pipes: Pipes {
                free: Vec::new(),
                left: pipes,
            },
            kept,
        }
    }

    /// The bytes that were read into the buffer and not written, in memory of their own.
    fn keep(&self, rest: std::ops::Range<usize>) -> Kept {
        self.kept.fetch_add(rest.len(), Relaxed);
        Kept {
            bytes: self.buffer[rest].to_vec(),
            written: 0,
            all: Arc::clone(&self.kept),
        }
    }

    /// How much may be read at once.
    fn gulp(&self) -> usize {
        let plenty = self.kept.load(Relaxed) < KEPT;
        if plenty { self.buffer.len() } else { SIP }
    }
}

/// Bytes that the receiver had no room for.
#[derive(Debug)]
struct Kept {
    bytes: Vec<u8>,
    written: usize,
    all: Arc<AtomicUsize>,
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.all.fetch_sub(self.bytes.len(), Relaxed);
    }
}

/// Pipes that are not in use, and how many more there may be.
#[derive(Debug)]
struct Pipes {
    free: Vec<Pipe>,
    left: usize,
}

impl Pipes {
    /// One, unless there are too many already: copying does as well.
    fn take(&mut self) -> Option<Pipe> {
        if let Some(pipe) = self.free.pop() {
            return Some(pipe);
        }
        self.left = self.left.checked_sub(1)?;
        let made = Pipe::new().ok();
        if made.is_none() {
            self.left += 1;
        }
        made
    }

    /// An empty one is for others; with bytes in it, it is closed.
    fn give(&mut self, pipe: Pipe, held: usize) {
        if held == 0 {
            self.free.push(pipe);
        } else {
            self.left += 1;
        }
    }
}

/// The bytes under way in one direction.
#[derive(Debug, Default)]
pub(super) struct Lane {
    kept: Option<Kept>,
    pipe: Option<Pipe>,
    /// How many bytes are in the pipe.
    held: usize,
    /// How many bytes went through the pipe since the sender had nothing last.
    streamed: usize,
    filled: u8,
    /// Whether anything was given on.
    pub(super) moved: bool,
    /// Whether the receiver had no room.
    pub(super) full: bool,
    /// Whether the sender's end is near, so that a read which did not fill the buffer is not the last. The socket tells it
    /// once, which may be long before there is room for what comes before it.
    pub(super) closing: bool,
    /// Whether the sender has sent urgent data. A read stops before it, full or not, and a pipe is never given it.
    pub(super) urgent: bool,
    ended: bool,
    /// Whether the sender broke behind the bytes that are kept.
    broken: bool,
    /// Whether the kernel holds the last bytes back until the receiver is told of the end.
    pub(super) waits_for_end: bool,
}

/// How a turn ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// The sender has nothing more, or the receiver no room: an event will tell.
    Waits,
    /// There may be more.
    More,
    /// The sender's end was reached, and all before it is with the receiver.
    Ended,
}

/// Whose socket broke.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Broke {
    Sender,
    Receiver,
}

impl Lane {
    /// Moves what can be moved.
    pub(super) fn turn(
        &mut self,
        (from, to): (&TcpStream, &TcpStream),
        means: &mut Means,
    ) -> Result<Turn, Broke> {
        for _ in 0..TURN {
            self.full = !self.flush(to)?;
            if self.full {
                return Ok(Turn::Waits);
            }
            if self.broken {
                return Err(Broke::Sender);
            }
            if self.ended {
                return Ok(Turn::Ended);
            }
            let got = if self.pipe.is_some() {
                self.fill(from, means)?
            } else {
                self.copy((from, to), means)?
            };
            match got {
                Got::Some => {}
                Got::End => self.ended = true,
                Got::Dry => return Ok(Turn::Waits),
            }
        }
        Ok(Turn::More)
    }

    /// Gives back what it has for others.
    pub(super) fn close(&mut self, means: &mut Means) {
        if let Some(pipe) = self.pipe.take() {
            means.pipes.give(pipe, self.held);
        }
    }

    /// Writes what is kept; whether all of it is gone.
    fn flush(&mut self, to: &TcpStream) -> Result<bool, Broke> {
        while self.held > 0 {
            let Some(pipe) = &self.pipe else { break };
            match pipe.drain(to.as_fd(), self.held) {
                Ok(count) => self.held -= count,
                Err(error) => return waits(&error).then_some(false).ok_or(Broke::Receiver),
            }
            self.moved = true;
        }
        while let Some(kept) = self
            .kept
            .as_mut()
            .filter(|kept| kept.written < kept.bytes.len())
        {
            let mut to = to;
            match to.write(&kept.bytes[kept.written..]) {
                Ok(count) => kept.written += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return waits(&error).then_some(false).ok_or(Broke::Receiver),
            }
            self.moved = true;
        }
        self.kept = None;
        Ok(true)
    }

    /// Through the thread's buffer.
    fn copy(
        &mut self,
        (mut from, mut to): (&TcpStream, &TcpStream),
        means: &mut Means,
    ) -> Result<Got, Broke> {
        let most = means.gulp();
        let count = match from.read(&mut means.buffer[..most]) {
            Ok(0) => return Ok(Got::End),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(Got::Some),
            Err(error) if waits(&error) => {
                self.filled = 0;
                return Ok(Got::Dry);
            }
            Err(_) => return Err(Broke::Sender),
        };
        let (count, after) = self.look_behind((from, count), &mut means.buffer[..most]);
        let bytes = &means.buffer[..count];
        let written = if after == After::End {
            self.waits_for_end = true;
            intercept::write_last(to, bytes)
        } else {
            to.write(bytes)
        };
        let gone = *written.as_ref().unwrap_or(&0);
        self.moved |= gone > 0;
        if gone < count {
            self.kept = Some(means.keep(gone..count));
        }
        match written {
            Err(error) if !waits(&error) && error.kind() != io::ErrorKind::Interrupted => {
                return Err(Broke::Receiver);
            }
            _ => {}
        }
        match after {
            After::End => return Ok(Got::End),
            // What is kept goes on before that is told.
            After::Broke if gone < count => self.broken = true,
            After::Broke => return Err(Broke::Sender),
            After::Unknown => {}
        }
        if count == most && !self.urgent {
            self.filled = self.filled.saturating_add(1);
            if self.filled >= STREAM {
                self.pipe = means.pipes.take();
            }
        } else {
            self.filled = 0;
            if !self.closing && !self.urgent && self.kept.is_none() {
                return Ok(Got::Dry);
            }
        }
        Ok(Got::Some)
    }

    /// What is behind the `count` bytes that were read into the buffer, if it is known to be near: bytes come to the others,
    /// and an end is given on together with them, so that it costs the receiver no segment of its own.
    fn look_behind(
        &self,
        (mut from, count): (&TcpStream, usize),
        buffer: &mut [u8],
    ) -> (usize, After) {
        if !self.closing || count == buffer.len() {
            return (count, After::Unknown);
        }
        match from.read(&mut buffer[count..]) {
            Ok(0) => (count, After::End),
            Ok(more) => (count + more, After::Unknown),
            Err(error) if waits(&error) || error.kind() == io::ErrorKind::Interrupted => {
                (count, After::Unknown)
            }
            Err(_) => (count, After::Broke),
        }
    }

    /// Into the pipe, from where it is flushed.
    fn fill(&mut self, from: &TcpStream, means: &mut Means) -> Result<Got, Broke> {
        if self.urgent {
            self.close(means);
        }
        let Some(pipe) = &self.pipe else {
            return Ok(Got::Some);
        };
        match pipe.fill(from.as_fd(), PIPEFUL) {
            // The end, or urgent data before it: a read tells.
            Ok(0) => {
                self.closing = true;
                self.close(means);
                Ok(Got::Some)
            }
            Ok(count) => {
                self.held = count;
                self.streamed += count;
                Ok(Got::Some)
            }
            Err(error) if waits(&error) => {
                // A stream that became a trickle needs no pipe.
                if self.streamed < BUFFER {
                    self.close(means);
                    self.filled = 0;
                }
                self.streamed = 0;
                Ok(Got::Dry)
            }
            Err(_) => Err(Broke::Sender),
        }
    }
}

/// What a read brought.
enum Got {
    Some,
    End,
    Dry,
}

/// What is known of what comes after bytes that were read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum After {
    Unknown,
    End,
    Broke,
}

fn waits(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use std::net::Shutdown;
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;
    use std::time::{Duration, Instant};

    use mio::{Events, Interest, Poll, Token};
    use proptest::prelude::*;

    use super::*;

    const FROM: Token = Token(0);
    const TO: Token = Token(1);
    /// How long the end may take once nothing is left to do but to read.
    const PATIENCE: Duration = Duration::from_secs(20);

    /// What happens on either side of a lane.
    #[derive(Clone, Debug)]
    enum Step {
        /// The sender sends this much, as far as there is room.
        Send(usize),
        /// The receiver reads this much, as far as there is any.
        Receive(usize),
        /// The lane hears what happened since it heard last.
        Hear,
    }

    /// A lane between two pairs of sockets, driven as [`super::super::worker`] drives it: by edges and nothing else.
    struct Scene {
        sender: UnixStream,
        receiver: UnixStream,
        from: TcpStream,
        to: TcpStream,
        lane: Lane,
        means: Means,
        poll: Poll,
        again: bool,
        over: bool,
        sent: usize,
        received: usize,
    }

    /// The byte that stands at a place of what is sent.
    const fn byte(place: usize) -> u8 {
        (place.wrapping_mul(2_654_435_761) >> 13) as u8
    }

    fn pair() -> (UnixStream, TcpStream) {
        let (outer, inner) = UnixStream::pair().unwrap();
        outer.set_nonblocking(true).unwrap();
        inner.set_nonblocking(true).unwrap();
        let inner = std::net::TcpStream::from(OwnedFd::from(inner));
        (outer, TcpStream::from_std(inner))
    }

    impl Scene {
        fn new(pipes: usize, buffer: usize) -> Self {
            let ((sender, mut from), (receiver, mut to)) = (pair(), pair());
            let poll = Poll::new().unwrap();
            let both = Interest::READABLE | Interest::WRITABLE;
            poll.registry().register(&mut from, FROM, both).unwrap();
            poll.registry().register(&mut to, TO, both).unwrap();
            Self {
                sender,
                receiver,
                from,
                to,
                lane: Lane::default(),
                means: Means {
                    buffer: vec![0; buffer],
                    ..Means::new(pipes, Arc::default())
                },
                poll,
                again: false,
                over: false,
                sent: 0,
                received: 0,
            }
        }

        fn take(&mut self, step: &Step) {
            match step {
                Step::Send(count) => self.send(*count),
                Step::Receive(count) => drop(self.receive(*count)),
                Step::Hear => self.hear(),
            }
        }

        fn send(&mut self, count: usize) {
            let bytes: Vec<u8> = (self.sent..self.sent + count).map(byte).collect();
            match self.sender.write(&bytes) {
                Ok(count) => self.sent += count,
                Err(error) => assert!(waits(&error), "{error}"),
            }
        }

        /// Whether the end was read.
        fn receive(&mut self, count: usize) -> bool {
            let mut bytes = vec![0; count];
            match self.receiver.read(&mut bytes) {
                Ok(0) => return true,
                Ok(count) => {
                    let expected = (self.received..self.received + count).map(byte);
                    assert!(expected.eq(bytes[..count].iter().copied()));
                    self.received += count;
                }
                Err(error) => assert!(waits(&error), "{error}"),
            }
            false
        }

        fn hear(&mut self) {
            let mut events = Events::with_capacity(8);
            let none = Some(Duration::ZERO);
            self.poll.poll(&mut events, none).unwrap();
            if std::mem::take(&mut self.again) {
                self.turn();
            }
            for event in &events {
                if event.token() == FROM {
                    self.lane.closing |= event.is_read_closed();
                    self.turn();
                } else if event.is_writable() && self.lane.full {
                    self.turn();
                }
            }
        }

        fn turn(&mut self) {
            if self.over {
                return;
            }
            let ends = (&self.from, &self.to);
            match self.lane.turn(ends, &mut self.means).unwrap() {
                Turn::Waits => {}
                Turn::More => self.again = true,
                Turn::Ended => {
                    self.over = true;
                    self.to.shutdown(Shutdown::Write).unwrap();
                }
            }
        }

        /// The sender sends no more; all that it sent has to come, and then its end, without a word from it.
        fn finish(mut self) {
            self.sender.shutdown(Shutdown::Write).unwrap();
            let deadline = Instant::now() + PATIENCE;
            self.hear();
            while !self.receive(BUFFER) {
                assert!(Instant::now() < deadline, "the end never came");
                self.hear();
            }
            assert_eq!(self.received, self.sent);
            self.lane.close(&mut self.means);
        }

        /// Until the receiver has room for no more, and the sender neither.
        fn stuff(&mut self) {
            while !self.lane.full {
                self.send(50_000);
                self.hear();
            }
            self.send(50_000);
        }
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => (1..200_000_usize).prop_map(Step::Send),
            1 => (1..300_usize).prop_map(Step::Send),
            2 => (1..100_000_usize).prop_map(Step::Receive),
            4 => Just(Step::Hear),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// However bytes come and are read, and whenever the sender ends: they arrive whole, and so does the end.
        #[test]
        fn bytes_arrive_whole_and_the_end_behind_them(
            steps in proptest::collection::vec(step(), 0..40),
            pipes in 0..2_usize,
            buffer in prop_oneof![Just(BUFFER), Just(4096)],
        ) {
            let mut scene = Scene::new(pipes, buffer);
            steps.iter().for_each(|step| scene.take(step));
            scene.finish();
        }
    }

    /// The sender's end is told while the receiver has no room, and never again.
    #[test]
    fn an_end_that_is_told_to_a_lane_that_is_full_is_not_forgotten() {
        let mut scene = Scene::new(0, BUFFER);
        scene.stuff();
        scene.finish();
    }

    /// What is kept is counted until it is gone, and when it is much, a direction whose receiver reads nothing keeps little.
    #[test]
    fn receivers_that_read_nothing_cost_little_when_much_is_kept() {
        let mut one = Scene::new(0, BUFFER);
        let kept = Arc::clone(&one.means.kept);
        one.stuff();
        let alone = kept.load(Relaxed);
        assert!(alone > SIP, "{alone} bytes");
        kept.fetch_add(KEPT, Relaxed);
        let mut other = Scene::new(0, BUFFER);
        other.means.kept = Arc::clone(&kept);
        other.stuff();
        let both = kept.load(Relaxed) - KEPT;
        assert!(both > alone && both - alone <= SIP, "{alone}, {both} bytes");
        one.finish();
        other.finish();
        assert_eq!(kept.load(Relaxed), KEPT);
    }
}
