//! Taking many datagrams in one call, whether the kernel has joined them or not.

use std::io;
use std::mem::zeroed;
use std::os::fd::AsRawFd;

use super::{Control, Received, UdpSocket, from_storage, read_control};

/// Bytes for one message: what the kernel joins is at most 65,535.
const LONGEST: usize = 1 << 16;
/// Bytes from one message's room to the next. Not a power of two: short messages, which touch only the beginnings, would
/// fall into the same few sets of the CPU's caches.
const STRIDE: usize = LONGEST + 2048 + 64;

/// Room for the messages of one [`UdpSocket::recv_many`]. A message is what the kernel joined of one sender's datagrams.
pub struct Inbox {
    room: Vec<u8>,
    slots: Vec<Slot>,
    headers: Vec<libc::mmsghdr>,
    got: usize,
}

/// What one message is received with, besides its room.
struct Slot {
    name: libc::sockaddr_storage,
    control: Control,
    part: libc::iovec,
}

impl Inbox {
    /// Room for as many messages, at least one. Memory that no message ever reaches is not used.
    pub fn new(messages: usize) -> Self {
        let slot = || Slot {
            // SAFETY: `sockaddr_storage` and `iovec` are plain data for which all zeroes are valid.
            name: unsafe { zeroed() },
            control: Control::new(),
            // SAFETY: as above.
            part: unsafe { zeroed() },
        };
        let messages = messages.max(1);
        Self {
            room: vec![0; messages * STRIDE],
            slots: std::iter::repeat_with(slot).take(messages).collect(),
            // SAFETY: `mmsghdr` is plain data for which all zeroes are valid.
            headers: vec![unsafe { zeroed() }; messages],
            got: 0,
        }
    }

    /// The messages of the last receive: their datagrams, end to end, and what is known of them.
    ///
    /// A message whose sender the kernel did not name is left out.
    pub fn messages(&self) -> impl Iterator<Item = (&[u8], Received)> {
        let rooms = self.room.chunks_exact(STRIDE);
        let received = self.headers[..self.got].iter().zip(&self.slots).zip(rooms);
        received.filter_map(|((header, slot), room)| {
            let len = header.msg_len as usize;
            let (stride, ecn) = read_control(&header.msg_hdr);
            let received = Received {
                len,
                stride: stride.unwrap_or(len).max(1),
                from: from_storage(&slot.name).ok()?,
                ecn,
            };
            Some((&room[..len], received))
        })
    }

    /// Points the first `count` headers to their rooms, as the kernel wants them before each call.
    fn prepare(&mut self, count: usize) {
        let rooms = self.room.chunks_exact_mut(STRIDE);
        let slots = self.slots.iter_mut().zip(rooms);
        for (header, (slot, room)) in self.headers.iter_mut().zip(slots).take(count) {
            slot.part = libc::iovec {
                iov_base: room.as_mut_ptr().cast(),
                iov_len: LONGEST,
            };
            let message = &mut header.msg_hdr;
            slot.name.ss_family = 0;
            message.msg_name = (&raw mut slot.name).cast();
            message.msg_namelen = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
            message.msg_iov = &raw mut slot.part;
            message.msg_iovlen = 1;
            message.msg_control = slot.control.bytes.as_mut_ptr().cast();
            message.msg_controllen = slot.control.bytes.len() as _;
        }
    }
}

impl std::fmt::Debug for Inbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inbox")
            .field("messages", &self.slots.len())
            .field("got", &self.got)
            .finish_non_exhaustive()
    }
}

impl UdpSocket {
    /// Takes at most `most` of the messages that wait and returns how many there were, at least one. Never waits.
    ///
    /// # Errors
    /// `WouldBlock` when there is none, or what an ICMP message has said of an earlier datagram.
    pub fn recv_many(&self, inbox: &mut Inbox, most: usize) -> io::Result<usize> {
        inbox.got = 0;
        let count = most.clamp(1, inbox.slots.len());
        inbox.prepare(count);
        // SAFETY: `prepare` has pointed `count` headers to live, writable memory of `inbox`, which is borrowed until the
        // call is over.
        let got = unsafe {
            libc::recvmmsg(
                self.socket.as_raw_fd(),
                inbox.headers.as_mut_ptr(),
                count as libc::c_uint,
                // Signed or not, as the C library has it.
                libc::MSG_DONTWAIT as _,
                std::ptr::null_mut(),
            )
        };
        inbox.got = usize::try_from(got).map_err(|_| io::Error::last_os_error())?;
        Ok(inbox.got)
    }
}
