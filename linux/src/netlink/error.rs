//! What can go wrong when the kernel is asked to change the network, by what the caller can do about it.

use std::io;

use crate::netns;

/// Why a netlink verb failed. The text in each says what was being done: "add the route 10.32.0.7/32".
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Something is there already under that name or key. The `ensure_*` verbs say so only where it differs.
    #[error("cannot {0}: it exists already")]
    Exists(String),
    /// What is named is not there (any more).
    #[error("cannot {0}: not found")]
    NotFound(String),
    /// Needs `CAP_NET_ADMIN` in the user namespace that owns the network namespace.
    #[error("cannot {0}: no permission; this needs root or CAP_NET_ADMIN")]
    Denied(String),
    /// The device is down, or its other end is.
    #[error("cannot {0}: the device is down")]
    Down(String),
    /// No route leads there, or one that refuses.
    #[error("cannot {0}: there is no route")]
    Unreachable(String),
    /// The kernel does not take these values.
    #[error("cannot {0}: the kernel does not accept it")]
    Invalid(String),
    /// The kernel lacks the feature: built without it, switched off, or too old.
    #[error("cannot {0}: not supported by this kernel")]
    Unsupported(String),
    /// The namespace cannot be entered.
    #[error(transparent)]
    Netns(#[from] netns::Error),
    /// The socket is gone; nothing more can be asked through it.
    #[error("the netlink socket was closed")]
    Closed,
    /// Anything else.
    #[error("cannot {doing}: {source}")]
    Failed {
        /// What was being done.
        doing: String,
        /// What the kernel said.
        source: io::Error,
    },
}

impl Error {
    pub(super) fn failed(doing: &str, source: io::Error) -> Self {
        Self::Failed {
            doing: doing.to_owned(),
            source,
        }
    }

    /// From the error number in the kernel's answer.
    pub(super) fn answered(doing: &str, source: io::Error) -> Self {
        let doing = doing.to_owned();
        match source.raw_os_error() {
            Some(libc::EEXIST) => Self::Exists(doing),
            // A route that is not there is ESRCH, an address EADDRNOTAVAIL, a device ENODEV.
            Some(libc::ENOENT | libc::ENODEV | libc::ESRCH | libc::EADDRNOTAVAIL) => {
                Self::NotFound(doing)
            }
            Some(libc::EPERM | libc::EACCES) => Self::Denied(doing),
            Some(libc::ENETDOWN) => Self::Down(doing),
            Some(libc::ENETUNREACH | libc::EHOSTUNREACH) => Self::Unreachable(doing),
            Some(libc::EINVAL | libc::ERANGE) => Self::Invalid(doing),
            Some(libc::EOPNOTSUPP | libc::EAFNOSUPPORT | libc::EPROTONOSUPPORT) => {
                Self::Unsupported(doing)
            }
            _ => Self::Failed { doing, source },
        }
    }

    /// Whether something was there already.
    pub const fn is_exists(&self) -> bool {
        matches!(self, Self::Exists(_))
    }

    /// Whether what was named is not there.
    pub const fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound(_))
    }
}
