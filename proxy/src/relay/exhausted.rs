//! Which failures to ask an endpoint are this host's own.

use std::io;

/// Whether the process or the system has no descriptor, memory or port left, which is no endpoint's fault.
pub(super) fn is_exhausted(error: &io::Error) -> bool {
    use io::ErrorKind::{AddrInUse, AddrNotAvailable};
    const ENOMEM: i32 = 12;
    const ENFILE: i32 = 23;
    const EMFILE: i32 = 24;
    const ENOBUFS: i32 = 105;
    let has_no_port = matches!(error.kind(), AddrInUse | AddrNotAvailable);
    let code = error.raw_os_error();
    has_no_port
        || [ENOMEM, ENFILE, EMFILE, ENOBUFS]
            .into_iter()
            .any(|one| code == Some(one))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn that_nothing_is_left_here_is_no_endpoints_fault() {
        const EMFILE: i32 = 24;
        const EADDRINUSE: i32 = 98;
        const EADDRNOTAVAIL: i32 = 99;
        const ENETUNREACH: i32 = 101;
        for code in [EMFILE, EADDRINUSE, EADDRNOTAVAIL] {
            assert!(is_exhausted(&io::Error::from_raw_os_error(code)), "{code}");
        }
        // As it comes when all ports that were tried are taken.
        assert!(is_exhausted(&io::ErrorKind::AddrInUse.into()));
        assert!(!is_exhausted(&io::Error::from_raw_os_error(ENETUNREACH)));
    }
}
