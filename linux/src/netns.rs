//! Network namespaces from async code, without ever moving a runtime's worker into one.
//!
//! A namespace belongs to a thread, and a socket keeps the namespace it was opened in. So whatever has to happen inside
//! a container's namespace happens on a short-lived thread of its own ([`run_in`]): it enters, opens the socket or
//! writes the setting, and ends. Nothing has to be undone, and no other thread notices.
//!
//! A namespace is named by a path, by a name below `/run/netns` or by a process id ([`NetnsRef`]), and held by a
//! descriptor ([`Netns`]) that was checked to be one: opening a stray file is an error here, not a surprise later.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Where a person or a runtime says a network namespace is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetnsRef {
    /// A file of the nsfs, such as `/proc/1234/ns/net` or `/run/docker/netns/0123456789ab`.
    Path(PathBuf),
    /// A name that `ip netns` shows: a file below `/run/netns`.
    Name(String),
    /// The namespace of a process.
    Pid(u32),
}

impl NetnsRef {
    /// The file to open.
    pub fn path(&self) -> PathBuf {
        match self {
            Self::Path(path) => path.clone(),
            Self::Name(name) => Path::new("/run/netns").join(name),
            Self::Pid(pid) => PathBuf::from(format!("/proc/{pid}/ns/net")),
        }
    }
}

impl fmt::Display for NetnsRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => path.display().fmt(f),
            Self::Name(name) => f.write_str(name),
            Self::Pid(pid) => write!(f, "process {pid}"),
        }
    }
}

/// The text names no namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a network namespace is a path, a name below /run/netns, or a process id")]
pub struct BadNetnsRef;

impl FromStr for NetnsRef {
    type Err = BadNetnsRef;

    /// Digits alone are a process id and anything with a slash is a path, so a namespace whose name is a number has to
    /// be given by its path.
    fn from_str(text: &str) -> Result<Self, BadNetnsRef> {
        if text.contains('/') {
            return Ok(Self::Path(PathBuf::from(text)));
        }
        if text.is_empty() || text == "." || text == ".." || text.contains('\0') {
            return Err(BadNetnsRef);
        }
        if text.bytes().all(|byte| byte.is_ascii_digit()) {
            return text.parse().map(Self::Pid).map_err(|_| BadNetnsRef);
        }
        Ok(Self::Name(text.to_owned()))
    }
}

/// Why a namespace cannot be opened or entered.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such file or process, or the process has ended.
    #[error("there is no network namespace {0}")]
    NotFound(NetnsRef),
    /// The file is something else: a regular file (a mount that went away leaves one), or another kind of namespace.
    #[error("{0} is not a network namespace")]
    NotNetns(NetnsRef),
    /// The kernel refuses; entering needs `CAP_SYS_ADMIN`, the namespace of a process that may be traced.
    #[error("no permission for the network namespace {0}")]
    Denied(NetnsRef),
    /// Anything else.
    #[error("cannot use the network namespace {netns}: {source}")]
    Failed {
        /// Which namespace.
        netns: NetnsRef,
        /// What the kernel said.
        source: io::Error,
    },
}

impl Error {
    fn new(netns: &NetnsRef, source: io::Error) -> Self {
        let netns = netns.clone();
        match source.raw_os_error() {
            // A process that has ended but was not waited for has no namespaces any more: ESRCH or ENOENT.
            Some(libc::ENOENT | libc::ENOTDIR | libc::ESRCH) => Self::NotFound(netns),
            Some(libc::EACCES | libc::EPERM) => Self::Denied(netns),
            _ => Self::Failed { netns, source },
        }
    }
}

/// Tells namespaces apart: two descriptors with the same identity are the same namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NetnsId {
    /// The device number of the nsfs.
    pub device: u64,
    /// The inode of the namespace there; reused once the namespace is gone.
    pub inode: u64,
}

/// An open network namespace. It lives at least as long as this descriptor.
#[derive(Debug)]
pub struct Netns {
    file: File,
    id: NetnsId,
    origin: NetnsRef,
}

impl Netns {
    /// Opens what the reference names and checks that it is a network namespace.
    pub fn open(netns: &NetnsRef) -> Result<Self, Error> {
        let failed = |source| Error::new(netns, source);
        // O_PATH first: really opening whatever file a caller names could block (a FIFO) or act (a device).
        let place = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_PATH)
            .open(netns.path())
            .map_err(failed)?;
        if filesystem(&place).map_err(failed)? != libc::NSFS_MAGIC {
            return Err(Error::NotNetns(netns.clone()));
        }
        let file = File::open(format!("/proc/self/fd/{}", place.as_raw_fd())).map_err(failed)?;
        if namespace_type(&file).map_err(failed)? != libc::CLONE_NEWNET {
            return Err(Error::NotNetns(netns.clone()));
        }
        let metadata = file.metadata().map_err(failed)?;
        let id = NetnsId {
            device: metadata.dev(),
            inode: metadata.ino(),
        };
        Ok(Self {
            file,
            id,
            origin: netns.clone(),
        })
    }

    /// The namespace of the calling thread.
    pub fn current() -> Result<Self, Error> {
        Self::open(&NetnsRef::Path(PathBuf::from("/proc/thread-self/ns/net")))
    }

    /// Makes a namespace that has no name: it ends with the last descriptor, process and device in it.
    pub fn create() -> Result<Self, Error> {
        let origin = NetnsRef::Path(PathBuf::from("(new)"));
        on_thread(&origin, || {
            // SAFETY: unshare takes no pointer; it changes the namespace of this thread only, which ends right after.
            if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
                return Err(Error::new(&origin, io::Error::last_os_error()));
            }
            Self::current()
        })?
    }

    /// Looks for a namespace whose path is gone: in it there may be processes, and it may be mounted elsewhere. One that
    /// only a descriptor or a device holds is not found.
    pub fn find(id: NetnsId) -> Option<Self> {
        let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        let of_processes = processes.filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            Some(NetnsRef::Pid(pid))
        });
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let mounted = mounts.lines().filter_map(mounted_netns).map(NetnsRef::Path);
        let is_it = |place: &NetnsRef| {
            let found = std::fs::metadata(place.path());
            found.is_ok_and(|found| (found.dev(), found.ino()) == (id.device, id.inode))
        };
        let mut found = of_processes
            .chain(mounted)
            .filter(is_it)
            .filter_map(|place| Self::open(&place).ok());
        found.find(|netns| netns.id == id)
    }

    /// A second descriptor of the same namespace.
    pub fn try_clone(&self) -> Result<Self, Error> {
        let file = self.file.try_clone();
        Ok(Self {
            file: file.map_err(|source| Error::new(&self.origin, source))?,
            id: self.id,
            origin: self.origin.clone(),
        })
    }

    /// Which namespace this is.
    pub const fn id(&self) -> NetnsId {
        self.id
    }

    /// What it was opened by, for messages.
    pub const fn origin(&self) -> &NetnsRef {
        &self.origin
    }

    /// Moves the calling thread into the namespace, for good.
    fn enter(&self) -> Result<(), Error> {
        // SAFETY: the descriptor is open for the length of the call, and setns takes no pointer. The network namespace
        // is a property of the thread; nothing in this process holds state that depends on it staying the same.
        if unsafe { libc::setns(self.file.as_raw_fd(), libc::CLONE_NEWNET) } != 0 {
            return Err(Error::new(&self.origin, io::Error::last_os_error()));
        }
        Ok(())
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Runs a closure on a new thread inside a namespace and waits for it.
///
/// Processes and threads that the closure starts are inside too; sockets it opens stay inside wherever they are used.
/// The wait blocks, so the closure should be short. Panics if the closure does.
pub fn run_in<T: Send>(netns: &Netns, body: impl FnOnce() -> T + Send) -> Result<T, Error> {
    on_thread(&netns.origin, || netns.enter().map(|()| body()))?
}

/// Fails where no thread can be started, as on a host that has as many as it may have.
fn on_thread<T: Send>(origin: &NetnsRef, body: impl FnOnce() -> T + Send) -> Result<T, Error> {
    std::thread::scope(|scope| {
        let started = std::thread::Builder::new().spawn_scoped(scope, body);
        match started.map_err(|source| Error::new(origin, source))?.join() {
            Ok(value) => Ok(value),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// Where a line of mountinfo (proc(5)) has a network namespace, if it does. A path with a space, a tab, a line feed or a
/// backslash in it, which are escaped there, is left.
fn mounted_netns(line: &str) -> Option<PathBuf> {
    let mut fields = line.split(' ').skip(3);
    let (root, place) = (fields.next()?, fields.next()?);
    let plain = root.starts_with("net:[") && !place.contains('\\');
    plain.then(|| PathBuf::from(place))
}

/// The magic number of the filesystem that an open file lies on.
fn filesystem(file: &File) -> io::Result<libc::__fsword_t> {
    // SAFETY: statfs is plain data, for which all zeroes is a value.
    let mut stat: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: the descriptor is open, and `stat` is a statfs that lives through the call.
    if unsafe { libc::fstatfs(file.as_raw_fd(), &raw mut stat) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(stat.f_type)
}

/// `NS_GET_NSTYPE` of `<linux/nsfs.h>`: the `CLONE_NEW*` flag of the namespace behind a descriptor.
fn namespace_type(file: &File) -> io::Result<libc::c_int> {
    const NS_GET_NSTYPE: libc::Ioctl = 0xb703;
    // SAFETY: this ioctl takes no argument and changes nothing; the descriptor is open.
    let kind = unsafe { libc::ioctl(file.as_raw_fd(), NS_GET_NSTYPE) };
    if kind < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_is_a_path_a_name_or_a_pid() {
        assert_eq!(
            "/proc/1/ns/net".parse(),
            Ok(NetnsRef::Path("/proc/1/ns/net".into()))
        );
        assert_eq!("blue".parse(), Ok(NetnsRef::Name("blue".into())));
        assert_eq!("1234".parse(), Ok(NetnsRef::Pid(1234)));
        assert_eq!("./1234".parse(), Ok(NetnsRef::Path("./1234".into())));
        for bad in ["", ".", "..", "99999999999"] {
            assert_eq!(bad.parse::<NetnsRef>(), Err(BadNetnsRef), "{bad:?}");
        }
        assert_eq!(
            NetnsRef::Name("blue".into()).path(),
            Path::new("/run/netns/blue")
        );
        assert_eq!(NetnsRef::Pid(7).path(), Path::new("/proc/7/ns/net"));
    }

    #[test]
    fn stray_files_are_refused() {
        let open = |text: &str| Netns::open(&text.parse().unwrap());
        assert!(matches!(open("/proc/self/ns/mnt"), Err(Error::NotNetns(_))));
        assert!(matches!(open("/proc/self/status"), Err(Error::NotNetns(_))));
        assert!(matches!(open("/dev/null"), Err(Error::NotNetns(_))));
        assert!(matches!(open("/nowhere/at/all"), Err(Error::NotFound(_))));
        assert!(matches!(open("no-such-name"), Err(Error::NotFound(_))));
        assert!(matches!(open("4294967295"), Err(Error::NotFound(_))));
    }

    #[test]
    fn a_namespace_is_found_by_a_process_or_a_mount_of_it() {
        let current = Netns::current().unwrap();
        assert_eq!(
            Netns::find(current.id()).map(|netns| netns.id()),
            Some(current.id())
        );
        let nobody = NetnsId {
            inode: 1,
            ..current.id()
        };
        assert!(Netns::find(nobody).is_none());
        let mounted = "69 27 0:4 net:[4026532281] /run/netns/blue rw shared:9 - nsfs nsfs rw";
        assert_eq!(mounted_netns(mounted), Some("/run/netns/blue".into()));
        for other in [
            "69 27 0:4 mnt:[4026532281] /run/blue rw - nsfs nsfs rw",
            "22 27 0:4 / /proc rw,nosuid shared:2 - proc proc rw",
            "69 27 0:4 net:[4026532281] /run/a\\040b rw - nsfs nsfs rw",
            "",
        ] {
            assert_eq!(mounted_netns(other), None, "{other}");
        }
    }

    #[test]
    fn the_same_namespace_has_the_same_identity() {
        let current = Netns::current().unwrap();
        assert_eq!(
            Netns::open(&NetnsRef::Pid(std::process::id()))
                .unwrap()
                .id(),
            current.id()
        );
    }
}
