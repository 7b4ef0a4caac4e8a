//! How many descriptors this process may have.
//!
//! Source: `getrlimit(2)`.

use std::io;

/// Raises what the process may have open to what it may ask for, and gives that number.
///
/// # Errors
/// Those of `getrlimit` and `setrlimit`.
pub fn raise() -> io::Result<u64> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: writes to a live `rlimit`.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } < 0 {
        return Err(io::Error::last_os_error());
    }
    if limit.rlim_cur < limit.rlim_max {
        limit.rlim_cur = limit.rlim_max;
        // SAFETY: reads a live `rlimit`.
        if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(limit.rlim_cur)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn what_was_raised_is_the_most_there_is() {
        let raised = raise().unwrap();
        assert!(raised > 100);
        assert_eq!(raise().unwrap(), raised);
    }
}
