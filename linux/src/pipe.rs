//! A pipe that carries bytes from one socket to another without copying them (`splice(2)`).
//!
//! The kernel moves the pages that hold the bytes, so the work is per page and not per byte. A pipe holds as many pages
//! as it has slots, however much of each is used.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;

/// How many bytes a pipe is asked to hold: 256 pages, so that a stream of large packets goes in few calls. What an
/// unprivileged process gets by default is 16 pages; the limit is `fs.pipe-max-size`.
const SIZE: i32 = 1 << 20;

/// A pipe between two sockets, of which neither waits.
#[derive(Debug)]
pub struct Pipe {
    out: OwnedFd,
    into: OwnedFd,
}

impl Pipe {
    /// Makes an empty one: two descriptors.
    ///
    /// # Errors
    /// When the process is out of descriptors, or the user out of pages for pipes.
    pub fn new() -> io::Result<Self> {
        let mut ends = [-1; 2];
        // SAFETY: writes two integers that live across the call.
        if unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC | libc::O_NONBLOCK) } < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: both were just made, and nobody else owns them.
        let [out, into] = ends.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
        // Refused beyond what the user may have; a smaller pipe takes more calls and does as well.
        // SAFETY: passes two integers.
        let _ = unsafe { libc::fcntl(into.as_raw_fd(), libc::F_SETPIPE_SZ, SIZE) };
        Ok(Self { out, into })
    }

    /// Takes up to `most` bytes from a socket; 0 at its end.
    ///
    /// # Errors
    /// `WouldBlock` when the socket has none or the pipe no room, and the socket's own errors.
    pub fn fill(&self, from: BorrowedFd<'_>, most: usize) -> io::Result<usize> {
        splice(from.as_raw_fd(), self.into.as_raw_fd(), most)
    }

    /// Gives up to `most` bytes to a socket.
    ///
    /// # Errors
    /// `WouldBlock` when the socket has no room or the pipe no bytes, and the socket's own errors.
    pub fn drain(&self, to: BorrowedFd<'_>, most: usize) -> io::Result<usize> {
        splice(self.out.as_raw_fd(), to.as_raw_fd(), most)
    }
}

fn splice(from: i32, to: i32, most: usize) -> io::Result<usize> {
    let flags = libc::SPLICE_F_NONBLOCK | libc::SPLICE_F_MOVE;
    // SAFETY: without offsets no pointer is followed.
    let moved = unsafe { libc::splice(from, ptr::null_mut(), to, ptr::null_mut(), most, flags) };
    if moved < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(moved.unsigned_abs())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;

    use super::*;

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let one = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (one, listener.accept().unwrap().0)
    }

    #[test]
    fn bytes_go_from_socket_to_socket_in_order_and_the_end_is_seen() {
        let ((mut client, inner), (outer, mut server)) = (pair(), pair());
        let pipe = Pipe::new().unwrap();
        assert_eq!(
            pipe.drain(outer.as_fd(), 100).unwrap_err().kind(),
            io::ErrorKind::WouldBlock
        );
        let sent: Vec<u8> = (0..50_000_u32).map(|n| n as u8).collect();
        client.write_all(&sent).unwrap();
        drop(client);
        let mut moved = 0;
        while moved < sent.len() {
            let took = pipe.fill(inner.as_fd(), sent.len()).unwrap();
            let mut left = took;
            while left > 0 {
                left -= pipe.drain(outer.as_fd(), left).unwrap();
            }
            moved += took;
        }
        assert_eq!(pipe.fill(inner.as_fd(), 100).unwrap(), 0);
        drop(outer);
        let mut got = Vec::new();
        server.read_to_end(&mut got).unwrap();
        assert_eq!(got, sent);
    }
}
