//! The unix socket of the node API: who may open it, and who owns it.

use std::io;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _, chown};
use std::os::unix::net;
use std::path::{Path, PathBuf};

use tokio::net::UnixListener;

/// Members of this group may use the node without being root.
const GROUP: &str = "weave";

/// Why the socket cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another process answers there.
    #[error("the socket {0} is in use: another weaved is running")]
    Taken(PathBuf),
    /// There is a file, and it is no socket.
    #[error("{0} exists and is not a socket")]
    Foreign(PathBuf),
    /// Anything else.
    #[error("cannot listen at {path}: {source}")]
    Failed {
        /// The socket.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// A listening socket, which takes its file with it when it goes.
#[derive(Debug)]
pub struct Socket {
    listener: net::UnixListener,
    file: File,
}

/// The file of a socket; removed on drop.
#[derive(Debug)]
struct File(PathBuf);

impl Drop for File {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Socket {
    /// Listens at `path` with mode 0660 and, if it exists, the group `weave`. A socket that nobody answers at is
    /// replaced.
    pub fn bind(path: &Path) -> Result<Self, SocketError> {
        let failed = |source| SocketError::Failed {
            path: path.to_owned(),
            source,
        };
        let socket = Self::bind_with(path, 0o660)?;
        let groups = std::fs::read_to_string("/etc/group").unwrap_or_default();
        if let Some(gid) = group_id(&groups, GROUP) {
            chown(path, None, Some(gid)).map_err(failed)?;
        }
        Ok(socket)
    }

    /// The same for the user alone who runs the node.
    pub fn bind_for_root(path: &Path) -> Result<Self, SocketError> {
        Self::bind_with(path, 0o600)
    }

    fn bind_with(path: &Path, mode: u32) -> Result<Self, SocketError> {
        let failed = |source| SocketError::Failed {
            path: path.to_owned(),
            source,
        };
        clear(path)?;
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory).map_err(failed)?;
        }
        let listener = net::UnixListener::bind(path).map_err(failed)?;
        let file = File(path.to_owned());
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        Ok(Self { listener, file })
    }

    /// The listener for the runtime of the calling task, and a guard that removes the file.
    pub fn into_listener(self) -> io::Result<(UnixListener, impl Sized)> {
        Ok((UnixListener::from_std(self.listener)?, self.file))
    }
}

/// Finds a group in the text of `/etc/group`: `name:password:id:members`, see group(5).
fn group_id(groups: &str, name: &str) -> Option<u32> {
    let fields = groups
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>());
    fields
        .filter(|fields| fields.first() == Some(&name))
        .find_map(|fields| fields.get(2)?.parse().ok())
}

/// Removes what a weaved that was killed left behind.
fn clear(path: &Path) -> Result<(), SocketError> {
    let failed = |source| SocketError::Failed {
        path: path.to_owned(),
        source,
    };
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(SocketError::Foreign(path.to_owned()));
        }
        Ok(_) => {}
    }
    match net::UnixStream::connect(path) {
        Ok(_) => Err(SocketError::Taken(path.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(failed)
        }
        Err(error) => Err(failed(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str) -> PathBuf {
        let directory =
            std::env::temp_dir().join(format!("weave-socket-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&directory);
        directory.join("run/weaved.sock")
    }

    fn cleanup(path: &Path) {
        let directory = path.ancestors().nth(2).expect("scratch makes two levels");
        let _ = std::fs::remove_dir_all(directory);
    }

    #[test]
    fn a_live_socket_is_left_alone_and_a_stale_one_replaced() {
        let path = scratch("stale");
        let first = Socket::bind(&path).unwrap();
        assert!(matches!(Socket::bind(&path), Err(SocketError::Taken(_))));
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o660);
        // A killed process closes its socket and leaves the file.
        let Socket { listener, file } = first;
        drop(listener);
        std::mem::forget(file);
        drop(Socket::bind(&path).unwrap());
        assert!(!path.exists());
        cleanup(&path);
    }

    #[test]
    fn groups_are_found_by_their_whole_name() {
        let groups = "root:x:0:\nweavers:x:7:\nweave:x:990:ann,bob\n";
        assert_eq!(group_id(groups, "weave"), Some(990));
        assert_eq!(group_id(groups, "wea"), None);
    }

    #[test]
    fn another_kind_of_file_is_not_removed() {
        let path = scratch("foreign");
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, "mine").unwrap();
        assert!(matches!(Socket::bind(&path), Err(SocketError::Foreign(_))));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "mine");
        cleanup(&path);
    }
}
