//! The shell around the pure parts: threads, sockets, clocks and the disk.

mod workers;

use std::io;
use std::net::SocketAddr;

pub use workers::{Offloads, Workers, WorkersConfig};

/// Why the node cannot run, named after what its operator can do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The TUN device cannot be opened.
    #[error("cannot open the device {device}: {source}")]
    Tun {
        /// Its name.
        device: String,
        /// `NotFound`: no `/dev/net/tun`. `PermissionDenied`: no `CAP_NET_ADMIN`. `ResourceBusy`: in use.
        source: io::Error,
    },
    /// The node's port cannot be bound.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address asked for.
        address: SocketAddr,
        /// `AddrInUse`: another process has it.
        source: io::Error,
    },
    /// A socket or thread could not be made: limits or privileges.
    #[error("cannot open a socket: {0}")]
    Socket(io::Error),
}
