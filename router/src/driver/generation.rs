//! Noticing that this virtual machine goes on from a snapshot, maybe in two places, and random bytes that differ there.
//!
//! Copies of a machine that runs have one memory: the same keys, counters and generators. What two of them seal by one
//! key and counter gives away both contents and lets others forge. So the generators of the core take in bytes from the
//! kernel at every turn of the control thread, before it handles anything: the kernel's source is stirred when the
//! hypervisor names a new generation. And when the kernel says so ([`Uevents`]), the core begins anew
//! ([`Core::handle_generation`]). Where kernel or hypervisor say nothing, a wall clock that jumps against the
//! monotonic one is taken for the word: a copy's clock stands where the snapshot was taken until something sets it.
//!
//! Between the resumption and the word both copies use the same keys; nothing in user space is faster than the word.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rand::TryRng;
use rand::rngs::SysRng;
use tracing::warn;
use weave_linux::poll::{Bell, readable};
use weave_linux::uevent::Uevents;

use crate::core::Core;
use crate::time::{Now, Start};

/// How far the wall clock may move against the monotonic one between two looks, which are ten seconds apart at most while
/// there are sessions: what time daemons do without a jump is less (chrony turns it by a twelfth).
const JUMP: Duration = Duration::from_secs(1);

/// Bytes of the kernel's random source, each time others (`getrandom(2)`).
///
/// # Errors
/// When the kernel has none, which it has once it is up.
pub(super) fn fresh() -> io::Result<[u8; 32]> {
    let mut bytes = [0; 32];
    SysRng
        .try_fill_bytes(&mut bytes)
        .map_err(io::Error::other)?;
    Ok(bytes)
}

/// What the control thread does about it.
#[derive(Debug)]
pub(super) struct Generation {
    start: Start,
    /// The wall clock at the start, as the last look has it.
    wall: Duration,
}

impl Generation {
    pub(super) const fn new(now: Now) -> Self {
        Self {
            start: Start::at(now.mono),
            wall: now.wall,
        }
    }

    /// To be called in every turn before anything is handled. `copied`: the kernel says that this is a copy.
    pub(super) fn turn(&mut self, copied: bool, core: &mut Core, now: Now) {
        let fresh = fresh().unwrap_or_else(|error| {
            warn!(%error, "there are no fresh random bytes: this node goes on with those it has");
            [0; 32]
        });
        if self.jumped(now) || copied {
            core.handle_generation(&fresh, now);
        } else {
            core.reseed(&fresh);
        }
    }

    /// Whether the wall clock was set since the last look.
    fn jumped(&mut self, now: Now) -> bool {
        let passed = Duration::from_millis(self.start.millis(now.mono));
        let wall = now.wall.saturating_sub(passed);
        let before = std::mem::replace(&mut self.wall, wall);
        before.abs_diff(wall) > JUMP
    }
}

/// The thread that waits for the kernel's word. It ends when this is dropped.
#[derive(Debug)]
pub(super) struct Watch {
    bell: Arc<Bell>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// Calls `tell` at each word of a new generation, from a thread of its own.
    ///
    /// # Errors
    /// Without a descriptor or thread to spare, or where the kernel does not let it listen.
    pub(super) fn start(tell: impl Fn() + Send + 'static) -> io::Result<Self> {
        let uevents = Uevents::open()?;
        let bell = Arc::new(Bell::new()?);
        let rung = Arc::clone(&bell);
        let thread = thread::Builder::new()
            .name("weave-copies".into())
            .spawn(move || listen(uevents, &rung, tell))?;
        Ok(Self {
            bell,
            thread: Some(thread),
        })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.bell.ring();
        if let Some(thread) = self.thread.take() {
            // A panic of the thread was reported when it happened.
            let _ = thread.join();
        }
    }
}

fn listen(mut uevents: Uevents, bell: &Bell, tell: impl Fn()) {
    while !bell.rung() {
        let waited = readable(&[uevents.as_fd(), bell.as_fd()], None);
        match waited.and_then(|_| uevents.heard_generation()) {
            Ok(true) => tell(),
            Ok(false) => {}
            Err(error) => {
                return warn!(%error, "copies of this machine are noticed by its clock only");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::now;

    #[test]
    fn a_clock_that_is_set_is_told_from_one_that_is_turned() {
        let start = now();
        let mut clocks = Generation::new(start);
        let mut at = start;
        for _ in 0..100 {
            // Ten seconds that a daemon makes 10.8 of.
            at.mono += Duration::from_secs(10);
            at.wall += Duration::from_millis(10_800);
            assert!(!clocks.jumped(at));
        }
        at.wall += Duration::from_secs(90);
        assert!(clocks.jumped(at));
        assert!(!clocks.jumped(at.after(Duration::from_secs(10))), "once");
        at = at.after(Duration::from_secs(20));
        at.wall -= Duration::from_secs(3600);
        assert!(clocks.jumped(at), "backwards");
    }

    #[test]
    fn fresh_bytes_are_others_each_time() {
        assert_ne!(fresh().ok(), fresh().ok());
        assert!(fresh().is_ok());
    }

    #[test]
    fn the_watch_ends() {
        drop(Watch::start(|| {}).expect("listening needs no privilege"));
    }
}
