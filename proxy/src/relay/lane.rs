//! The shell: moves the bytes of one direction from one socket to the other.
//!
//! What can be given on at once is never kept: it is read into one buffer of the thread and written from there. What
//! the receiver has no room for stays with the direction, and nothing more is read until it is gone, so the sender
//! feels it. A direction that fills the buffer time and again is a stream: it gets a pipe, and its bytes are not copied
//! any more. An idle connection has neither.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;

use mio::net::TcpStream;
use weave_linux::pipe::Pipe;

/// The buffer of a thread, in bytes; also the most that a direction keeps.
pub(super) const BUFFER: usize = 64 * 1024;
/// How often in a row the buffer has to be filled until there is a pipe.
const STREAM: u8 = 2;
/// The most that is moved through a pipe at once, in bytes.
const PIPEFUL: usize = 1 << 20;
/// How many times a direction may read in its turn, so that others get theirs.
const TURN: u32 = 16;

/// Pipes that are not in use, and how many there are in all.
#[derive(Debug)]
pub(super) struct Pipes {
    free: Vec<Pipe>,
    left: usize,
}

impl Pipes {
    pub(super) const fn new(most: usize) -> Self {
        Self {
            free: Vec::new(),
            left: most,
        }
    }

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
    kept: Vec<u8>,
    /// How much of `kept` was written already.
    written: usize,
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
    ended: bool,
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
    /// Moves what can be moved. `closing` says that the sender's end is near, so that a read which did not fill the
    /// buffer is not the last.
    pub(super) fn turn(
        &mut self,
        (from, to): (&TcpStream, &TcpStream),
        closing: bool,
        buffer: &mut [u8],
        pipes: &mut Pipes,
    ) -> Result<Turn, Broke> {
        for _ in 0..TURN {
            self.full = !self.flush(to)?;
            if self.full {
                return Ok(Turn::Waits);
            }
            if self.ended {
                return Ok(Turn::Ended);
            }
            let got = if self.pipe.is_some() {
                self.fill(from, pipes)?
            } else {
                self.copy((from, to), closing, buffer, pipes)?
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
    pub(super) fn close(&mut self, pipes: &mut Pipes) {
        if let Some(pipe) = self.pipe.take() {
            pipes.give(pipe, self.held);
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
        while self.written < self.kept.len() {
            let mut to = to;
            match to.write(&self.kept[self.written..]) {
                Ok(count) => self.written += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return waits(&error).then_some(false).ok_or(Broke::Receiver),
            }
            self.moved = true;
        }
        if self.written > 0 {
            (self.kept, self.written) = (Vec::new(), 0);
        }
        Ok(true)
    }

    /// Through the thread's buffer.
    fn copy(
        &mut self,
        (mut from, mut to): (&TcpStream, &TcpStream),
        closing: bool,
        buffer: &mut [u8],
        pipes: &mut Pipes,
    ) -> Result<Got, Broke> {
        let count = match from.read(buffer) {
            Ok(0) => return Ok(Got::End),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(Got::Some),
            Err(error) if waits(&error) => {
                self.filled = 0;
                return Ok(Got::Dry);
            }
            Err(_) => return Err(Broke::Sender),
        };
        let written = to.write(&buffer[..count]);
        let gone = *written.as_ref().unwrap_or(&0);
        self.moved |= gone > 0;
        if gone < count {
            self.kept = buffer[gone..count].to_vec();
        }
        match written {
            Err(error) if !waits(&error) && error.kind() != io::ErrorKind::Interrupted => {
                return Err(Broke::Receiver);
            }
            _ => {}
        }
        if count == buffer.len() {
            self.filled = self.filled.saturating_add(1);
            if self.filled >= STREAM {
                self.pipe = pipes.take();
            }
        } else {
            self.filled = 0;
            if !closing && self.kept.is_empty() {
                return Ok(Got::Dry);
            }
        }
        Ok(Got::Some)
    }

    /// Into the pipe, from where it is flushed.
    fn fill(&mut self, from: &TcpStream, pipes: &mut Pipes) -> Result<Got, Broke> {
        let Some(pipe) = &self.pipe else {
            return Ok(Got::Some);
        };
        match pipe.fill(from.as_fd(), PIPEFUL) {
            Ok(0) => Ok(Got::End),
            Ok(count) => {
                self.held = count;
                self.streamed += count;
                Ok(Got::Some)
            }
            Err(error) if waits(&error) => {
                // A stream that became a trickle needs no pipe.
                if self.streamed < BUFFER {
                    self.close(pipes);
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

fn waits(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock
}
