//! The node's saved state on disk: two slots, written in turn.
//!
//! `state.0` and `state.1` in the state directory each hold a whole copy of the state: a magic word, a sequence number,
//! the length, the content and a BLAKE2s-256 checksum of all of it. A write goes to the slot with the older copy and is
//! flushed, file and directory, before it counts; so a crash or a full disk can only damage the copy that nobody relies
//! on yet, and the next start takes the other. When no slot can be read the node refuses to start and says what to do:
//! a silent new identity would take its addresses with it to the grave.
//!
//! ```text
//! "WEAVEST1" 8 | sequence 8 | length 4 | content | checksum 32        (integers big-endian)
//! ```

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use blake2::{Blake2s256, Digest};
use weave_linux::file;
use zeroize::Zeroizing;

const MAGIC: &[u8; 8] = b"WEAVEST1";
const HEAD: usize = 20;
const CHECKSUM: usize = 32;
/// The longest content that is read back, in bytes: far above what 4,096 members need.
pub(crate) const MAX_CONTENT: usize = 128 << 20;

/// Why the saved state cannot be used: the cause, then what to do.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The directory or a file in it cannot be made, read or locked.
    #[error(
        "cannot use the state directory {path}: {error}; check its owner, its mode and the disk"
    )]
    Io {
        /// What was touched.
        path: PathBuf,
        /// What the kernel said.
        error: io::Error,
    },
    /// Another process holds the directory.
    #[error(
        "the state directory {0} is in use by another weaved; stop that one, or give this one its own --state-dir"
    )]
    InUse(PathBuf),
    /// Neither copy passes its checksum.
    #[error(
        "both copies of the node's state in {0} are damaged; restore state.0 and state.1 from a backup, or, to give up \
         this node's identity and addresses, move them away, start again and join anew"
    )]
    Damaged(PathBuf),
}

/// What was found at start.
#[derive(Debug)]
pub struct Found {
    /// The newest whole copy; `None` where nothing was ever saved.
    pub content: Option<Zeroizing<Vec<u8>>>,
    /// The other slot was damaged: a write was cut short, as a power loss does, or the disk is failing.
    pub damaged_slot: Option<PathBuf>,
}

/// The two slots of one node; holds the directory's lock.
#[derive(Debug)]
pub struct Store {
    directory: PathBuf,
    /// The sequence of the newest copy, and the slot to write next.
    sequence: u64,
    next: usize,
    _lock: File,
}

enum Slot {
    Absent,
    Damaged,
    Whole {
        sequence: u64,
        content: Zeroizing<Vec<u8>>,
    },
}

impl Store {
    /// Opens the state directory, making it (mode 0700) if it is missing, and reads the newest copy.
    ///
    /// # Errors
    /// Says what to do; never resets anything.
    pub fn open(directory: &Path) -> Result<(Self, Found), StoreError> {
        let failed = |error| StoreError::Io {
            path: directory.to_owned(),
            error,
        };
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(failed)?;
        let lock = lock(directory)?;
        let slots = [read_slot(directory, 0)?, read_slot(directory, 1)?];
        let sequence = |slot: &Slot| match slot {
            Slot::Whole { sequence, .. } => Some(*sequence),
            _ => None,
        };
        let newest = if sequence(&slots[1]) > sequence(&slots[0]) {
            1
        } else {
            0
        };
        let damaged = slots.iter().position(|slot| matches!(slot, Slot::Damaged));
        let found = match (sequence(&slots[newest]), damaged) {
            (None, Some(_)) => return Err(StoreError::Damaged(directory.to_owned())),
            (found, _) => found,
        };
        let store = Self {
            directory: directory.to_owned(),
            sequence: found.unwrap_or(0),
            next: if found.is_some() { 1 - newest } else { 0 },
            _lock: lock,
        };
        let content = slots.into_iter().nth(newest).and_then(|slot| match slot {
            Slot::Whole { content, .. } => Some(content),
            _ => None,
        });
        Ok((
            store,
            Found {
                content,
                damaged_slot: damaged.map(|n| slot_path(directory, n)),
            },
        ))
    }

    /// Saves a copy; when it returns, the copy survives a power loss.
    ///
    /// # Errors
    /// The former copy is still whole then, and the next write tries the same slot again.
    pub fn write(&mut self, content: &[u8]) -> io::Result<()> {
        let sequence = self.sequence + 1;
        let bytes = encode(sequence, content)?;
        let path = slot_path(&self.directory, self.next);
        if path.exists() {
            let mut file = OpenOptions::new().write(true).open(&path)?;
            file.write_all(&bytes)?;
            file.set_len(bytes.len() as u64)?;
            file.sync_all()?;
        } else {
            // The first copy in a slot appears whole or not at all: a torn file beside an absent one could not be told
            // from a damaged state.
            file::replace(&path, &bytes, 0o600)?;
        }
        self.sequence = sequence;
        self.next = 1 - self.next;
        Ok(())
    }
}

fn lock(directory: &Path) -> Result<File, StoreError> {
    let path = directory.join("lock");
    let failed = |error| StoreError::Io {
        path: path.clone(),
        error,
    };
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path);
    let file = file.map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => Err(StoreError::InUse(directory.to_owned())),
        Err(fs::TryLockError::Error(error)) => Err(failed(error)),
    }
}

fn slot_path(directory: &Path, slot: usize) -> PathBuf {
    directory.join(format!("state.{slot}"))
}

fn read_slot(directory: &Path, slot: usize) -> Result<Slot, StoreError> {
    let path = slot_path(directory, slot);
    let failed = |error| StoreError::Io {
        path: path.clone(),
        error,
    };
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Slot::Absent),
        Err(error) => return Err(failed(error)),
    };
    let mut bytes = Zeroizing::new(Vec::new());
    let most = (HEAD + MAX_CONTENT + CHECKSUM) as u64;
    file.take(most).read_to_end(&mut bytes).map_err(failed)?;
    Ok(
        decode(&bytes).map_or(Slot::Damaged, |(sequence, content)| Slot::Whole {
            sequence,
            content: Zeroizing::new(content.to_vec()),
        }),
    )
}

fn encode(sequence: u64, content: &[u8]) -> io::Result<Zeroizing<Vec<u8>>> {
    if content.len() > MAX_CONTENT {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            "the state is too large to be saved",
        ));
    }
    let mut bytes = Zeroizing::new(Vec::with_capacity(HEAD + content.len() + CHECKSUM));
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&sequence.to_be_bytes());
    bytes.extend_from_slice(&(content.len() as u32).to_be_bytes());
    bytes.extend_from_slice(content);
    let checksum = Blake2s256::digest(&bytes);
    bytes.extend_from_slice(&checksum);
    Ok(bytes)
}

/// Bytes after the checksum are what a longer former copy left behind; they do not count.
fn decode(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let (magic, rest) = bytes.split_first_chunk::<8>()?;
    let (sequence, rest) = rest.split_first_chunk::<8>()?;
    let (length, rest) = rest.split_first_chunk::<4>()?;
    let (content, rest) = rest.split_at_checked(u32::from_be_bytes(*length) as usize)?;
    let checksum = rest.first_chunk::<CHECKSUM>()?;
    let sealed = &bytes[..HEAD + content.len()];
    let whole = magic == MAGIC && Blake2s256::digest(sealed).as_slice() == checksum;
    whole.then_some((u64::from_be_bytes(*sequence), content))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    /// A directory of its own for each test, gone afterwards.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let path =
                std::env::temp_dir().join(format!("weave-store-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&path);
            Self(path)
        }

        fn slot(&self, slot: usize) -> PathBuf {
            slot_path(&self.0, slot)
        }

        fn open(&self) -> Result<(Store, Found), StoreError> {
            Store::open(&self.0)
        }

        fn content(&self) -> Vec<u8> {
            self.open().unwrap().1.content.unwrap().to_vec()
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn saved(name: &str, contents: &[&[u8]]) -> Scratch {
        let scratch = Scratch::new(name);
        let (mut store, found) = scratch.open().unwrap();
        assert!(found.content.is_none());
        for content in contents {
            store.write(content).unwrap();
        }
        scratch
    }

    #[test]
    fn the_newest_copy_comes_back() {
        let scratch = saved("newest", &[b"one", b"two, which is longer", b"three"]);
        assert_eq!(scratch.content(), b"three");
        for slot in 0..2 {
            assert_eq!(
                fs::metadata(scratch.slot(slot))
                    .unwrap()
                    .permissions()
                    .mode()
                    & 0o777,
                0o600
            );
        }
        assert_eq!(
            fs::metadata(&scratch.0).unwrap().permissions().mode() & 0o777,
            0o700
        );
        let (mut store, _) = scratch.open().unwrap();
        store.write(b"4").unwrap();
        drop(store);
        assert_eq!(scratch.content(), b"4");
    }

    #[test]
    fn a_write_torn_at_any_byte_leaves_the_former_copy() {
        let scratch = saved("torn", &[b"first copy, the longer one", b"second"]);
        let before = fs::read(scratch.slot(0)).unwrap();
        let after = encode(3, b"third").unwrap();
        for torn in 0..after.len() {
            let mut bytes = before.clone();
            bytes[..torn].copy_from_slice(&after[..torn]);
            fs::write(scratch.slot(0), &bytes).unwrap();
            assert_eq!(
                scratch.content(),
                b"second",
                "overwritten up to byte {torn}"
            );
            fs::write(scratch.slot(0), &after[..torn]).unwrap();
            let (mut store, found) = scratch.open().unwrap();
            assert_eq!(
                found.content.unwrap().as_slice(),
                b"second",
                "cut at byte {torn}"
            );
            assert_eq!(found.damaged_slot, Some(scratch.slot(0)));
            assert_eq!(store.next, 0, "the damaged slot is written next");
            store.write(b"third").unwrap();
            drop(store);
            assert_eq!(scratch.content(), b"third");
            fs::write(scratch.slot(0), &before).unwrap();
        }
    }

    #[test]
    fn any_changed_byte_is_noticed() {
        let scratch = saved("changed", &[b"first", b"second"]);
        let whole = fs::read(scratch.slot(1)).unwrap();
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x40;
            fs::write(scratch.slot(1), &bytes).unwrap();
            assert_eq!(scratch.content(), b"first", "byte {at}");
        }
    }

    #[test]
    fn two_damaged_copies_stop_the_node() {
        let scratch = saved("both", &[b"first", b"second"]);
        fs::write(scratch.slot(0), b"WEAVEST1").unwrap();
        fs::write(scratch.slot(1), b"").unwrap();
        let error = scratch.open().unwrap_err().to_string();
        assert!(
            error.contains("both copies") && error.contains("join anew"),
            "{error}"
        );
        fs::remove_file(scratch.slot(0)).unwrap();
        assert!(
            matches!(scratch.open(), Err(StoreError::Damaged(_))),
            "one damaged, one gone"
        );
    }

    #[test]
    fn one_node_holds_the_directory() {
        let scratch = saved("lock", &[b"first"]);
        let held = scratch.open().unwrap();
        assert!(matches!(scratch.open(), Err(StoreError::InUse(_))));
        drop(held);
        assert_eq!(scratch.content(), b"first");
    }

    #[test]
    fn a_full_disk_leaves_the_former_copy() {
        let scratch = saved("full", &[b"first", b"second"]);
        let (mut store, _) = scratch.open().unwrap();
        fs::remove_file(scratch.slot(0)).unwrap();
        std::os::unix::fs::symlink("/dev/full", scratch.slot(0)).unwrap();
        let error = store.write(b"third").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        drop(store);
        fs::remove_file(scratch.slot(0)).unwrap();
        assert_eq!(scratch.content(), b"second");
    }
}
