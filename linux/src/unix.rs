//! Who stands behind a name among the abstract unix sockets (unix(7)) of the calling thread's network namespace.

use std::io;
use std::mem::size_of;
use std::os::fd::AsRawFd as _;

use socket2::{Domain, SockAddr, Socket, Type};

/// The user that listens under an abstract name: the effective user id at the time of its listen(2). Never waits.
///
/// # Errors
/// `ConnectionRefused` if nobody listens there, `WouldBlock` if too many wait to be let in, and what else connect(2)
/// says.
pub fn listening_user(name: &str) -> io::Result<u32> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.connect(&SockAddr::unix(format!("\0{name}"))?)?;
    let mut credentials = libc::ucred {
        pid: 0,
        uid: 0,
        gid: 0,
    };
    let mut length = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: the descriptor is open as long as `socket` is, and the kernel writes at most `length` bytes, the size of
    // `credentials`, of which every content is valid.
    let done = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut credentials).cast(),
            &raw mut length,
        )
    };
    if done == 0 {
        Ok(credentials.uid)
    } else {
        Err(io::Error::last_os_error())
    }
}

/// The effective user of this process.
pub fn effective_user() -> u32 {
    // SAFETY: it has no arguments and cannot fail.
    unsafe { libc::geteuid() }
}

#[cfg(test)]
mod tests {
    use std::os::linux::net::SocketAddrExt as _;
    use std::os::unix::net::{SocketAddr, UnixListener};

    use super::*;

    #[test]
    fn a_listener_is_told_from_nobody() {
        let name = format!("weave-unix-test-{}", std::process::id());
        let nobody = listening_user(&name).map_err(|error| error.kind());
        assert_eq!(nobody, Err(io::ErrorKind::ConnectionRefused));
        let address = SocketAddr::from_abstract_name(&name).expect("a short name");
        let _held = UnixListener::bind_addr(&address).expect("the name is free");
        assert_eq!(listening_user(&name).ok(), Some(effective_user()));
    }
}
