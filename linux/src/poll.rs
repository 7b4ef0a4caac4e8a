//! Waiting for descriptors, and waking a thread that waits.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Waits until one of `fds` can be read, or the time is up; `None` waits for ever.
///
/// Returns a bit for each descriptor that is ready (bit 0 is the first). An error or hang-up on a descriptor counts as
/// ready: the next read tells.
///
/// # Panics
/// With more than 4 descriptors.
///
/// # Errors
/// Those of `ppoll` but `EINTR`, which counts as "nothing ready".
pub fn readable(fds: &[BorrowedFd<'_>], timeout: Option<Duration>) -> io::Result<u32> {
    assert!(fds.len() <= 4, "a data thread waits for a few descriptors");
    let mut set = [libc::pollfd {
        fd: -1,
        events: 0,
        revents: 0,
    }; 4];
    for (entry, fd) in set.iter_mut().zip(fds) {
        *entry = libc::pollfd {
            fd: fd.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
    }
    let spec = timeout.map(|t| libc::timespec {
        tv_sec: t.as_secs().try_into().unwrap_or(libc::time_t::MAX),
        tv_nsec: t.subsec_nanos().into(),
    });
    let spec = spec.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: `set` holds at least `fds.len()` entries and `spec` is null or points to a live timespec.
    let ready = unsafe {
        libc::ppoll(
            set.as_mut_ptr(),
            fds.len() as libc::nfds_t,
            spec,
            std::ptr::null(),
        )
    };
    if ready < 0 {
        let error = io::Error::last_os_error();
        return if error.kind() == io::ErrorKind::Interrupted {
            Ok(0)
        } else {
            Err(error)
        };
    }
    let bits = set.iter().take(fds.len()).enumerate();
    Ok(bits
        .filter(|(_, entry)| entry.revents != 0)
        .fold(0, |mask, (place, _)| mask | 1 << place))
}

/// Rung once, for good: any number of waiting threads see it readable (`eventfd`), and a thread that has no reason to wait
/// asks [`Bell::rung`], which costs no system call.
#[derive(Debug)]
pub struct Bell {
    fd: OwnedFd,
    rung: AtomicBool,
}

impl Bell {
    /// Makes a bell that has not rung.
    ///
    /// # Errors
    /// When the process is out of descriptors.
    pub fn new() -> io::Result<Self> {
        // SAFETY: takes two integers; a returned descriptor is ours alone.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self {
            // SAFETY: `fd` was just made and nobody else owns it.
            fd: unsafe { OwnedFd::from_raw_fd(fd) },
            rung: AtomicBool::new(false),
        })
    }

    /// Whether it was rung.
    pub fn rung(&self) -> bool {
        self.rung.load(Ordering::Relaxed)
    }

    /// Makes the bell readable.
    pub fn ring(&self) {
        self.rung.store(true, Ordering::Relaxed);
        let one = 1_u64.to_ne_bytes();
        // SAFETY: writes 8 bytes that live across the call. It fails only at 2^64-1 rings, when it is readable anyway.
        unsafe { libc::write(self.fd.as_raw_fd(), one.as_ptr().cast(), one.len()) };
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bell_wakes_a_waiter() {
        let bell = Bell::new().unwrap();
        assert_eq!(
            readable(&[bell.as_fd()], Some(Duration::from_millis(1))).unwrap(),
            0
        );
        bell.ring();
        assert_eq!(readable(&[bell.as_fd()], None).unwrap(), 1);
    }

    #[test]
    fn a_thread_that_never_waits_hears_the_bell() {
        let bell = Bell::new().unwrap();
        assert!(!bell.rung());
        std::thread::scope(|scope| {
            let busy = scope.spawn(|| {
                while !bell.rung() {
                    std::hint::spin_loop();
                }
            });
            bell.ring();
            busy.join().unwrap();
        });
    }
}
