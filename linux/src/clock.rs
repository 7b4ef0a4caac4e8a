//! What the kernel knows of time: whether it believes in its wall clock, and how long a thread computed.

use std::io;
use std::mem::zeroed;
use std::time::Duration;

/// Whether a time daemon keeps the clock (`STA_UNSYNC` is not set); see `adjtimex(2)`. Changes nothing.
///
/// # Errors
/// Those of `adjtimex`.
pub fn is_kept() -> io::Result<bool> {
    // SAFETY: `timex` is plain data for which all zeroes are valid; `modes` of 0 only asks.
    let mut timex: libc::timex = unsafe { zeroed() };
    // SAFETY: `timex` is writable and lives across the call.
    if unsafe { libc::adjtimex(&raw mut timex) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(timex.status & libc::STA_UNSYNC == 0)
}

/// CPU time, in user and kernel mode, that the calling thread has used since it began (`CLOCK_THREAD_CPUTIME_ID`).
pub fn thread_cpu() -> Duration {
    let mut used = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `used` is writable and lives across the call, which fails only for clocks that do not exist.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut used) };
    Duration::new(used.tv_sec as u64, used.tv_nsec as u32)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    #[test]
    fn a_thread_that_computes_uses_cpu_time_and_one_that_sleeps_does_not() {
        let before = super::thread_cpu();
        let until = before + std::time::Duration::from_millis(20);
        let began = Instant::now();
        while super::thread_cpu() < until {
            std::hint::spin_loop();
        }
        assert!(began.elapsed() >= std::time::Duration::from_millis(19));
        let before = super::thread_cpu();
        std::thread::sleep(std::time::Duration::from_millis(50));
        assert!(super::thread_cpu() - before < std::time::Duration::from_millis(40));
    }

    #[test]
    fn the_kernel_answers() {
        super::is_kept().expect("asking needs no privilege");
    }
}
