//! When a thread that moves packets gets the CPU: soon after it woke up, and not for long.
//!
//! Other hosts' kernels forward packets in soft interrupts, before any program runs. A thread that does the same work
//! stands in line with the programs whose packets it moves, and each of them may run for some milliseconds first. So it
//! asks for a larger share (a nice level) and for short turns, which the scheduler gives sooner (EEVDF, from Linux 6.12;
//! earlier kernels ignore the wish). It stays an ordinary thread: whatever it does, programs get their part of the CPU.
//!
//! Sources: `sched_setattr(2)`, `include/uapi/linux/sched/types.h`, `Documentation/scheduler/sched-eevdf.rst`.

use std::io;
use std::time::Duration;

/// `struct sched_attr`, its first version.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct Attributes {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    /// Nanoseconds: for an ordinary thread the length of a turn.
    runtime: u64,
    deadline: u64,
    period: u64,
}

/// Gives the calling thread a nice level (-20, the largest share, to 19) and turns of so long, at least 0.1 ms.
///
/// # Errors
/// `PermissionDenied` for a level below the one it has, without `CAP_SYS_NICE`; nothing has changed then.
pub fn prefer(nice: i32, turn: Duration) -> io::Result<()> {
    let attributes = Attributes {
        size: size_of::<Attributes>() as u32,
        policy: libc::SCHED_OTHER as u32,
        nice,
        runtime: u64::try_from(turn.as_nanos()).unwrap_or(u64::MAX),
        ..Attributes::default()
    };
    // SAFETY: the kernel reads one `sched_attr` of the size it states, which lives across the call; thread 0 is the caller.
    let result = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_changes_itself_alone() {
        let level = || {
            let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
            let (_, fields) = stat.rsplit_once(") ").unwrap();
            fields.split(' ').nth(16).unwrap().parse::<i32>().unwrap()
        };
        let before = level();
        let thread = std::thread::spawn(move || {
            prefer(before + 3, Duration::from_micros(100)).unwrap();
            level()
        });
        assert_eq!(thread.join().unwrap(), before + 3);
        assert_eq!(level(), before);
    }
}
