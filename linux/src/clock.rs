//! Whether the kernel believes in its wall clock.

use std::io;
use std::mem::zeroed;

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

#[cfg(test)]
mod tests {
    #[test]
    fn the_kernel_answers() {
        super::is_kept().expect("asking needs no privilege");
    }
}
