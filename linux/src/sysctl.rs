//! The kernel's `net.*` settings, of the calling thread's network namespace.
//!
//! `/proc/sys/net` shows each thread its own namespace, so the settings of a container are read and written on a thread
//! that is inside it ([`crate::netns::run_in`]). A key is written with slashes, `net/ipv4/conf/eth0.7/proxy_arp`,
//! because the names of devices may have dots in them.

use std::fs::OpenOptions;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

/// Why a setting cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel has no such setting: a protocol that is switched off or not built in, or a device that is gone.
    #[error("the kernel has no setting {0}")]
    Missing(String),
    /// Not allowed: not root, or `/proc/sys` is mounted read-only, as in most containers.
    #[error("no permission to write the setting {0}: is /proc/sys read-only?")]
    Denied(String),
    /// The kernel does not take this value.
    #[error("the setting {key} cannot be {value}")]
    BadValue {
        /// Which setting.
        key: String,
        /// What was to be written.
        value: String,
    },
    /// Anything else.
    #[error("the setting {key}: {source}")]
    Failed {
        /// Which setting.
        key: String,
        /// What the kernel said.
        source: io::Error,
    },
}

impl Error {
    fn new(key: &str, value: &str, source: io::Error) -> Self {
        let key = key.to_owned();
        match source.raw_os_error() {
            Some(libc::ENOENT | libc::ENOTDIR) => Self::Missing(key),
            Some(libc::EACCES | libc::EPERM | libc::EROFS) => Self::Denied(key),
            Some(libc::EINVAL | libc::ERANGE) => Self::BadValue {
                key,
                value: value.to_owned(),
            },
            _ => Self::Failed { key, source },
        }
    }
}

/// Whether a setting had to be changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ensured {
    /// It had the value already; nothing was written.
    Kept,
    /// It was written; this is what it was before.
    Changed(String),
}

/// Reads a setting, without the newline.
pub fn read(key: &str) -> Result<String, Error> {
    let mut text = String::new();
    OpenOptions::new()
        .read(true)
        .open(file(key)?)
        .and_then(|mut file| file.read_to_string(&mut text))
        .map_err(|source| Error::new(key, "", source))?;
    Ok(text.trim_end().to_owned())
}

/// Writes a setting.
pub fn write(key: &str, value: &str) -> Result<(), Error> {
    OpenOptions::new()
        .write(true)
        .open(file(key)?)
        .and_then(|mut file| file.write_all(value.as_bytes()))
        .map_err(|source| Error::new(key, value, source))
}

/// Writes a setting unless it has that value: some settings act when they are written, and what is right stays alone.
pub fn ensure(key: &str, value: &str) -> Result<Ensured, Error> {
    let before = read(key)?;
    if before == value {
        return Ok(Ensured::Kept);
    }
    write(key, value)?;
    Ok(Ensured::Changed(before))
}

/// The names below a key, sorted: the devices in `net/ipv6/conf`, for instance.
pub fn list(key: &str) -> Result<Vec<String>, Error> {
    let failed = |source| Error::new(key, "", source);
    let mut names = Vec::new();
    for entry in std::fs::read_dir(file(key)?).map_err(failed)? {
        names.push(
            entry
                .map_err(failed)?
                .file_name()
                .to_string_lossy()
                .into_owned(),
        );
    }
    names.sort();
    Ok(names)
}

/// The file of a key. Keys come in part from the names of devices, so none may leave the tree of network settings.
fn file(key: &str) -> Result<PathBuf, Error> {
    let inside =
        key.starts_with("net/") && key.split('/').all(|part| !matches!(part, "" | "." | ".."));
    if !inside {
        return Err(Error::Missing(key.to_owned()));
    }
    Ok(Path::new("/proc/sys").join(key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_name_the_key() {
        let missing = read("net/ipv4/conf/no-such-device/proxy_arp").unwrap_err();
        assert!(matches!(&missing, Error::Missing(_)));
        assert!(
            missing
                .to_string()
                .contains("net/ipv4/conf/no-such-device/proxy_arp")
        );
    }

    #[test]
    fn keys_stay_among_the_network_settings() {
        for key in [
            "kernel/hostname",
            "net/../kernel/hostname",
            "net//ipv4",
            "/proc/sys/net/ipv4/ip_forward",
            "net/./x",
        ] {
            assert!(matches!(read(key), Err(Error::Missing(_))), "{key}");
        }
    }
}
