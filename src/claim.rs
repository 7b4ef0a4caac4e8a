//! One node in a network namespace.
//!
//! Devices, routes and rules of a node have fixed names in its network namespace, and a TUN device made for several
//! queues gives one to whoever asks: two nodes in one namespace would share its packets without a word. So a node takes
//! the namespace first, in two ways that go with the process, however that ends. A lock on a file of root's, named
//! after the namespace, which nobody else can take. And a name that the kernel gives once in each namespace, an abstract
//! unix socket (unix(7)): it also tells of a node that sees other files, in a container. That name is anybody's to
//! take, so it counts only if root has it, or the user of this process.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::os::unix::net;
use std::path::Path;

use weave_linux::unix::{effective_user, listening_user};

use crate::obstacle::Obstacle;

/// Where the locks are.
const FOLDER: &str = "/run/weave";

/// The abstract socket that a node holds in its network namespace.
const NAME: &str = "weave/weaved";

/// A network namespace, taken by this node until the value is dropped or the process ends.
#[derive(Debug)]
pub struct Claim {
    _lock: Option<File>,
    _socket: Option<net::UnixListener>,
}

/// Why it cannot be taken.
enum Refused {
    /// Another node has it.
    Taken,
    /// What the kernel said.
    Failed(io::Error),
}

impl From<io::Error> for Refused {
    fn from(error: io::Error) -> Self {
        Self::Failed(error)
    }
}

/// Takes the network namespace of the calling thread.
pub fn claim_network() -> Result<Claim, Obstacle> {
    claim(Path::new(FOLDER), NAME)
}

fn claim(folder: &Path, name: &str) -> Result<Claim, Obstacle> {
    let lock = match lock(folder) {
        Ok(lock) => Some(lock),
        Err(Refused::Taken) => return Err(taken(name)),
        Err(Refused::Failed(error)) => {
            tracing::debug!(%error, "no lock on the network namespace");
            None
        }
    };
    let socket = match listen(name) {
        Ok(socket) => Some(socket),
        Err(Refused::Taken) => return Err(taken(name)),
        Err(Refused::Failed(error)) if lock.is_some() => {
            tracing::warn!(%error, "the name @{name} is taken by a process that is no weaved: ss -xlp shows which");
            None
        }
        Err(Refused::Failed(error)) => {
            let cause = format!("cannot take this network namespace: {error}");
            let fix = format!("run weaved as root, with a {FOLDER} that can be written");
            return Err(Obstacle::new(cause, fix));
        }
    };
    Ok(Claim {
        _lock: lock,
        _socket: socket,
    })
}

/// Locks the file of this namespace. It stays when the node goes: removing it could take it from under the next one.
fn lock(folder: &Path) -> Result<File, Refused> {
    let mut maker = DirBuilder::new();
    maker.recursive(true).mode(0o755).create(folder)?;
    let netns = std::fs::metadata("/proc/thread-self/ns/net")?.ino();
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(folder.join(format!("netns-{netns}.lock")))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Refused::Taken),
        Err(TryLockError::Error(error)) => Err(error.into()),
    }
}

fn listen(name: &str) -> Result<net::UnixListener, Refused> {
    let address = net::SocketAddr::from_abstract_name(name)?;
    let taken = match net::UnixListener::bind_addr(&address) {
        Err(error) if error.kind() == ErrorKind::AddrInUse => error,
        bound => return Ok(bound?),
    };
    match listening_user(name) {
        Ok(user) if user == 0 || user == effective_user() => Err(Refused::Taken),
        _ => Err(taken.into()),
    }
}

fn taken(name: &str) -> Obstacle {
    Obstacle::new(
        "this network namespace is in use: another weaved runs in it",
        format!(
            "stop that one (ss -xlp shows it as @{name}), or run this one in a network namespace of its own, \
             with its own --socket and --state-dir"
        ),
    )
}

#[cfg(test)]
mod tests {
    use socket2::{Domain, SockAddr, Socket, Type};

    use super::*;

    fn folder(test: &str) -> std::path::PathBuf {
        std::env::temp_dir().join(format!("weave-claim-{test}-{}", std::process::id()))
    }

    fn name(test: &str) -> String {
        format!("weave-claim-{test}-{}", std::process::id())
    }

    #[test]
    fn a_second_node_is_seen_by_the_lock_and_by_the_name() {
        let (here, there) = (folder("here"), folder("there"));
        let first = claim(&here, &name("first"));
        assert!(first.is_ok(), "{first:?}");
        let same_files = claim(&here, &name("other"));
        assert!(same_files.is_err_and(|obstacle| obstacle.cause.contains("in use")));
        let other_files = claim(&there, &name("first"));
        assert!(other_files.is_err_and(|obstacle| obstacle.cause.contains("in use")));
        drop(first);
        assert!(
            claim(&here, &name("first")).is_ok(),
            "it goes with its holder"
        );
    }

    /// A name that is bound and at which nobody listens is no node's.
    #[test]
    fn a_squatter_keeps_no_node_from_starting() {
        let name = name("squatted");
        let squatter = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
        let address = SockAddr::unix(format!("\0{name}")).unwrap();
        squatter.bind(&address).unwrap();
        let first = claim(&folder("squatted"), &name);
        assert!(first.is_ok(), "{first:?}");
        let second = claim(&folder("squatted"), &name);
        assert!(second.is_err(), "the lock still tells of the first");
    }
}
