//! What systemd is told of `weaved`: that it is ready, and that it stops.
//!
//! The protocol is one datagram with a line of text to the socket in `NOTIFY_SOCKET` (sd_notify(3)): a path, or an
//! abstract name behind an `@`. Without that variable nobody wants to know. Nothing here keeps `weaved` from its work.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// What there is to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// The start is over: the API answers.
    Ready,
    /// The end has begun.
    Stopping,
}

/// Tells whoever started this process, if it asked for that.
pub fn tell(state: State) {
    let Some(address) = std::env::var_os("NOTIFY_SOCKET") else {
        return;
    };
    if let Err(error) = send(&address, state) {
        tracing::warn!(%error, ?address, ?state, "cannot tell NOTIFY_SOCKET");
    }
}

fn send(address: &OsStr, state: State) -> io::Result<()> {
    let line: &[u8] = match state {
        State::Ready => b"READY=1",
        State::Stopping => b"STOPPING=1",
    };
    let to = match address.as_bytes().split_first() {
        Some((b'@', name)) => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(address)?,
    };
    let socket = UnixDatagram::unbound()?;
    // A reader that does not read may not hold up the start or the end.
    socket.set_nonblocking(true)?;
    socket.send_to_addr(line, &to).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(socket: &UnixDatagram) -> String {
        let mut line = [0; 64];
        let length = socket.recv(&mut line).unwrap();
        String::from_utf8(line[..length].to_vec()).unwrap()
    }

    #[test]
    fn a_path_hears_of_the_start_and_the_end() {
        let path = std::env::temp_dir().join(format!("weave-notify-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let socket = UnixDatagram::bind(&path).unwrap();
        send(path.as_os_str(), State::Ready).unwrap();
        send(path.as_os_str(), State::Stopping).unwrap();
        assert_eq!([heard(&socket), heard(&socket)], ["READY=1", "STOPPING=1"]);
        std::fs::remove_file(&path).unwrap();
        assert!(send(path.as_os_str(), State::Ready).is_err());
    }

    #[test]
    fn so_does_an_abstract_name() {
        let name = format!("weave-notify-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let socket = UnixDatagram::bind_addr(&address).unwrap();
        send(OsStr::new(&format!("@{name}")), State::Ready).unwrap();
        assert_eq!(heard(&socket), "READY=1");
    }
}
