//! What waits at a socket to be read, and what found no room there.
//!
//! Source: `SO_MEMINFO` of `asm-generic/socket.h` (Linux 4.12), an array of 32-bit numbers in the order of `SK_MEMINFO_*` in
//! `linux/sock_diag.h`.

use std::io;
use std::mem::size_of;
use std::os::fd::AsRawFd;

use libc::c_int;

use super::UdpSocket;

const SO_MEMINFO: c_int = 55;
/// How many numbers there are.
const NUMBERS: usize = libc::SK_MEMINFO_DROPS as usize + 1;

/// A socket's queue of datagrams that came, or those of several together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Queue {
    /// Bytes of the kernel's memory that those take which wait, more than their contents.
    pub waiting: u64,
    /// How many bytes they may take.
    pub room: u64,
    /// Datagrams that were dropped since the socket was opened: no room, or a wrong checksum.
    pub dropped: u64,
}

impl Queue {
    /// Both together.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self {
            waiting: self.waiting + other.waiting,
            room: self.room + other.room,
            dropped: self.dropped + other.dropped,
        }
    }
}

impl UdpSocket {
    /// How its queue is now.
    ///
    /// # Errors
    /// Those of `getsockopt`.
    pub fn queue(&self) -> io::Result<Queue> {
        let mut numbers = [0_u32; NUMBERS];
        let mut size = size_of::<[u32; NUMBERS]>() as libc::socklen_t;
        let (fd, level) = (self.socket.as_raw_fd(), libc::SOL_SOCKET);
        let to = numbers.as_mut_ptr().cast();
        // SAFETY: the kernel writes at most `size` bytes to `numbers`, which has as many.
        let result = unsafe { libc::getsockopt(fd, level, SO_MEMINFO, to, &raw mut size) };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        let number = |place: c_int| u64::from(numbers[place as usize]);
        Ok(Queue {
            waiting: number(libc::SK_MEMINFO_RMEM_ALLOC),
            room: number(libc::SK_MEMINFO_RCVBUF),
            dropped: number(libc::SK_MEMINFO_DROPS),
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::super::UdpOptions;
    use super::*;

    #[test]
    fn what_nobody_reads_waits_until_there_is_no_room_and_is_dropped_then() {
        let plain = UdpOptions {
            reuse_port: false,
            gso: false,
            gro: false,
        };
        let socket = UdpSocket::bind("127.0.0.1:0".parse().unwrap(), plain).unwrap();
        let empty = socket.queue().unwrap();
        assert_eq!((empty.waiting, empty.dropped), (0, 0));
        let to = socket.local_addr().unwrap();
        let sender = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        sender.send_to(&[1; 1000], to).unwrap();
        let one = socket.queue().unwrap();
        assert!(one.waiting >= 1000 && one.dropped == 0, "{one:?}");
        let sent = 2 * one.room / one.waiting;
        for _ in 0..sent {
            sender.send_to(&[1; 1000], to).unwrap();
        }
        let full = socket.queue().unwrap();
        assert!(
            full.dropped > 0 && full.dropped < sent,
            "{full:?} of {sent}"
        );
        assert_eq!(one.with(full).dropped, full.dropped);
    }
}
