//! Words of the kernel about devices (uevents, `lib/kobject_uevent.c`): heard for one of them only, that the virtual
//! machine goes on as another copy of itself.
//!
//! A hypervisor that resumes a snapshot changes the machine's generation id. The kernel's driver (`drivers/virt/vmgenid.c`)
//! then stirs the kernel's random source and, since Linux 6.10, says so: a word of the action "change" with
//! `NEW_VMGENID=1`. The words of devices that belong to no network namespace reach a socket in each of them.
//!
//! ```text
//! change@/devices/…\0 ACTION=change\0 DEVPATH=/devices/…\0 SUBSYSTEM=…\0 NEW_VMGENID=1\0 SEQNUM=1234\0
//! ```

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use netlink_sys::protocols::NETLINK_KOBJECT_UEVENT;
use netlink_sys::{Socket, SocketAddr};

/// The group in which the kernel speaks; in the other one udev does.
const KERNEL: u32 = 1;
/// The longest word: `UEVENT_BUFFER_SIZE` of the kernel, and as much for what stands before it.
const LONGEST: usize = 4096;

/// A socket that hears the kernel.
#[derive(Debug)]
pub struct Uevents {
    socket: Socket,
    word: Vec<u8>,
}

impl Uevents {
    /// Listens in the calling thread's network namespace. Needs no privilege.
    ///
    /// # Errors
    /// When the kernel has no such socket, or the process no descriptor left.
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_KOBJECT_UEVENT)?;
        socket.set_non_blocking(true)?;
        socket.bind(&SocketAddr::new(0, KERNEL))?;
        Ok(Self {
            socket,
            word: Vec::with_capacity(LONGEST),
        })
    }

    /// Takes all words that wait. Whether the machine may be another copy of itself since: the kernel said so, or words
    /// were lost, of which one may have said so.
    ///
    /// # Errors
    /// When there is nothing to be heard any more.
    pub fn heard_generation(&mut self) -> io::Result<bool> {
        let mut told = false;
        loop {
            match self.next_word() {
                Ok(Some(word)) => told |= tells_generation(word),
                Ok(None) => return Ok(told),
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => told = true,
                Err(error) => return Err(error),
            }
        }
    }

    /// The next word of the kernel; `None` if none waits. What anybody else sent is passed over.
    ///
    /// # Errors
    /// `ENOBUFS` when words were lost, as there were too many.
    pub fn next_word(&mut self) -> io::Result<Option<&[u8]>> {
        loop {
            self.word.clear();
            match self.socket.recv_from(&mut self.word, 0) {
                Ok((_, from)) if from.port_number() == 0 => return Ok(Some(&self.word)),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

impl AsFd for Uevents {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Whether a word says that the virtual machine has another generation id.
pub fn tells_generation(word: &[u8]) -> bool {
    let mut fields = word.split(|byte| *byte == 0);
    let head = fields.next().unwrap_or_default();
    head.starts_with(b"change@/") && fields.any(|field| field == b"NEW_VMGENID=1")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel sends when its driver has no other thing to say than the id's change.
    const CHANGED: &[u8] = b"change@/devices/LNXSYSTM:00/LNXSYBUS:00/VMGENCTR:00\0ACTION=change\0\
        DEVPATH=/devices/LNXSYSTM:00/LNXSYBUS:00/VMGENCTR:00\0SUBSYSTEM=acpi\0NEW_VMGENID=1\0\
        MODALIAS=acpi:QEMUVGID:VM_GEN_COUNTER:\0SEQNUM=2718\0";

    #[test]
    fn a_new_generation_is_told_from_all_else() {
        assert!(tells_generation(CHANGED));
        for other in [
            &b""[..],
            b"change@/devices/virtual/net/eth0\0ACTION=change\0SUBSYSTEM=net\0SEQNUM=1\0",
            b"add@/devices/x\0ACTION=add\0NEW_VMGENID=1\0",
            b"change@/devices/x\0ACTION=change\0NEW_VMGENID=0\0",
            // What `echo change 0 NEW_VMGENID=1 > uevent` in sysfs makes.
            b"change@/devices/x\0ACTION=change\0SYNTH_UUID=0\0SYNTH_ARG_NEW_VMGENID=1\0",
            // What udev says goes by another header.
            b"libudev\0NEW_VMGENID=1\0",
        ] {
            assert!(!tells_generation(other), "{}", other.escape_ascii());
        }
    }

    #[test]
    fn nobody_speaks_unasked() {
        let mut uevents = Uevents::open().expect("listening needs no privilege");
        while let Some(word) = uevents.next_word().expect("nothing is lost") {
            assert!(word.contains(&b'@'), "{}", word.escape_ascii());
        }
    }
}
