//! A DEL that found no node, written down for it: one small file each, whole and on the disk before the runtime hears
//! that it is done.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;

use weave_model::api::{CNI_JOURNAL, CniRef};

/// Writes an entry for the node of a socket. The same again is the same file.
pub fn write(socket: &Path, what: &CniRef) -> io::Result<()> {
    let (Some(parent), Some(name)) = (socket.parent(), socket.file_name()) else {
        return Err(io::Error::new(
            ErrorKind::InvalidInput,
            "the socket is not a path of a file",
        ));
    };
    let folder = parent.join(CNI_JOURNAL);
    // The parent as anybody would make it: the group weave reaches the socket in it.
    fs::create_dir_all(parent)?;
    match DirBuilder::new().mode(0o700).create(&folder) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let (socket, key) = (
        name.to_string_lossy(),
        format!("{}.{}", what.container, what.ifname),
    );
    // The node takes only names that begin with its socket's, so it never sees a file that is not whole.
    let fresh = folder.join(format!(".{socket}.{}", std::process::id()));
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&fresh)?;
    file.write_all(&serde_json::to_vec(what)?)?;
    file.sync_all()?;
    fs::rename(&fresh, folder.join(format!("{socket}.{key}")))?;
    File::open(&folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_one_file_however_often_it_is_written() {
        let scratch =
            std::env::temp_dir().join(format!("weave-cni-journal-{}", std::process::id()));
        let what = CniRef {
            container: "c".repeat(200).parse().unwrap(),
            ifname: "fifteen-letters".parse().unwrap(),
        };
        for _ in 0..2 {
            write(&scratch.join("weaved.sock"), &what).unwrap();
        }
        let files: Vec<_> = fs::read_dir(scratch.join(CNI_JOURNAL)).unwrap().collect();
        assert_eq!(files.len(), 1);
        let file = files.into_iter().next().unwrap().unwrap();
        assert!(
            file.file_name()
                .to_string_lossy()
                .starts_with("weaved.sock.")
        );
        let read: CniRef = serde_json::from_slice(&fs::read(file.path()).unwrap()).unwrap();
        assert_eq!(read, what);
        fs::remove_dir_all(&scratch).unwrap();
    }
}
