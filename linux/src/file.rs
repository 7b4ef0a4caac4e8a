//! Files that are there whole or not at all, whatever is killed or loses power in the middle.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

/// Puts `content` at `path` with the permissions `mode`, in place of what was there: it is written under a hidden name
/// beside it (`.PID-N.new`), flushed, renamed, and the folder flushed. When it returns, it survives a power loss.
///
/// Not for a folder that others may write to: there a name can be taken by a link to somewhere else.
///
/// # Errors
/// When something of this cannot be done: what was at `path` is still there then, and nothing new beside it.
pub fn replace(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let (Some(folder), Some(_)) = (path.parent(), path.file_name()) else {
        let cause = format!("{} is not the path of a file", path.display());
        return Err(io::Error::new(ErrorKind::InvalidInput, cause));
    };
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let fresh = folder.join(format!(".{}-{number}.new", std::process::id()));
    let written = write(&fresh, content, mode).and_then(|()| fs::rename(&fresh, path));
    if let Err(error) = written {
        // The reason is the first failure, whatever becomes of what was begun.
        let _ = fs::remove_file(&fresh);
        return Err(error);
    }
    File::open(folder)?.sync_all()
}

fn write(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(path)?;
    // Whatever the umask says.
    file.set_permissions(Permissions::from_mode(mode))?;
    file.write_all(content)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole_and_nothing_is_left_beside_it() {
        let folder = std::env::temp_dir().join(format!("weave-file-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let path = folder.join("state");
        replace(&path, b"a longer content", 0o600).unwrap();
        replace(&path, b"short", 0o640).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"short");
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o640);
        let beside = folder.join("folder");
        fs::create_dir(&beside).unwrap();
        replace(&beside, b"not over a folder", 0o600).unwrap_err();
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 2);
        replace(&folder.join("absent/state"), b"", 0o600).unwrap_err();
        replace(Path::new("/"), b"", 0o600).unwrap_err();
        fs::remove_dir_all(&folder).unwrap();
    }
}
