//! The node's saved state on disk: two slots, written in turn.
//!
//! `state.0` and `state.1` in the state directory each hold a whole copy of the state: a magic word, a sequence number,
//! the length, the content and a BLAKE2s-256 checksum of all of it. A write goes to the slot with the older copy and is
//! flushed, file and directory, before it counts; so a crash or a full disk can only damage the copy that nobody relies
//! on yet, and the next start takes the other. When no slot can be read the node refuses to start and says what to do:
//! a silent new identity would take its addresses with it to the grave.
//!
//! A lease is a few bytes of a state that may have a megabyte. So a write that changes little appends to its slot what is
//! different from the copy there ([`delta`]), until that is half as long as the copy; then, after a failure, and the first
//! time since the start, the slot is written anew. The checksum of a change covers the one before it, so what a longer
//! former content of the file left behind belongs to nothing.
//!
//! ```text
//! copy:    "WEAVEST2" 8 | sequence 8 | length 4 | content | checksum 32        (integers big-endian)
//! change:  "WEAVECH1" 8 | sequence 8 | length 4 | delta   | checksum 32
//! ```
//!
//! Builds that know no changes wrote "WEAVEST1". Once this one has written there is none of these any more: such a build
//! would read on without the changes, and give away addresses that are taken.

mod delta;

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt as _, OpenOptionsExt};
use std::path::{Path, PathBuf};

use blake2::{Blake2s256, Digest};
use weave_linux::file;
use zeroize::Zeroizing;

const MAGIC: &[u8; 8] = b"WEAVEST2";
const CHANGE: &[u8; 8] = b"WEAVECH1";
const FORMER: &[u8; 8] = b"WEAVEST1";
const HEAD: usize = 20;
const CHECKSUM: usize = 32;
/// How many bytes of changes a slot may have, however short its copy is.
const FEW: usize = 16 << 10;
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
    /// What each slot has, as far as this process wrote it.
    written: [Option<Written>; 2],
    /// A slot may have been written by a build that knows no changes.
    former: bool,
    _lock: File,
}

/// What is in a slot.
struct Written {
    content: Zeroizing<Vec<u8>>,
    checksum: [u8; CHECKSUM],
    /// How long the file is, and how much of that are changes.
    length: u64,
    changes: usize,
}

impl std::fmt::Debug for Written {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Written").finish_non_exhaustive()
    }
}

enum Slot {
    Absent,
    Damaged,
    Whole(Whole),
}

/// What is read of a slot.
struct Whole {
    sequence: u64,
    content: Zeroizing<Vec<u8>>,
    /// By a build that knows no changes.
    former: bool,
    /// Something follows that does not belong to it.
    torn: bool,
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
            Slot::Whole(whole) => Some(whole.sequence),
            _ => None,
        };
        let newest = if sequence(&slots[1]) > sequence(&slots[0]) {
            1
        } else {
            0
        };
        let former = |slot: &Slot| matches!(slot, Slot::Whole(Whole { former: true, .. }));
        let torn =
            |slot: &Slot| matches!(slot, Slot::Damaged | Slot::Whole(Whole { torn: true, .. }));
        let damaged = slots.iter().enumerate().position(|(n, slot)| match slot {
            Slot::Whole(_) => n != newest && torn(slot),
            _ => torn(slot),
        });
        let found = match (sequence(&slots[newest]), damaged) {
            (None, Some(_)) => return Err(StoreError::Damaged(directory.to_owned())),
            (found, _) => found,
        };
        let store = Self {
            directory: directory.to_owned(),
            sequence: found.unwrap_or(0),
            next: if found.is_some() { 1 - newest } else { 0 },
            written: [None, None],
            former: slots.iter().any(former),
            _lock: lock,
        };
        let content = slots.into_iter().nth(newest).and_then(|slot| match slot {
            Slot::Whole(whole) => Some(whole.content),
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
        self.write_next(content)?;
        // The copy counts already: should this fail, the next write tries again.
        if self.former && self.write_next(content).is_ok() {
            self.former = false;
        }
        Ok(())
    }

    fn write_next(&mut self, content: &[u8]) -> io::Result<()> {
        let sequence = self.sequence + 1;
        let path = slot_path(&self.directory, self.next);
        let before = self.written[self.next].take();
        let written = match before.and_then(|before| append(&path, before, sequence, content)) {
            Some(written) => written,
            None => rewrite(&path, sequence, content)?,
        };
        self.written[self.next] = Some(written);
        self.sequence = sequence;
        self.next = 1 - self.next;
        Ok(())
    }
}

/// Writes a slot anew.
fn rewrite(path: &Path, sequence: u64, content: &[u8]) -> io::Result<Written> {
    let bytes = encode(MAGIC, &[], sequence, content)?;
    if path.exists() {
        let mut file = OpenOptions::new().write(true).open(path)?;
        file.write_all(&bytes)?;
        file.set_len(bytes.len() as u64)?;
        file.sync_all()?;
    } else {
        // The first copy in a slot appears whole or not at all: a torn file beside an absent one could not be told
        // from a damaged state.
        file::replace(path, &bytes, 0o600)?;
    }
    Ok(Written {
        content: Zeroizing::new(content.to_vec()),
        checksum: *bytes.last_chunk().expect("a checksum ends it"),
        length: bytes.len() as u64,
        changes: 0,
    })
}

/// Appends to a slot what is different; `None` if that is better written anew: it is much, or the disk refuses it.
fn append(path: &Path, before: Written, sequence: u64, content: &[u8]) -> Option<Written> {
    let most = FEW.max(content.len() / 2);
    let delta = delta::between(&before.content, content)?;
    let exact = |made: Zeroizing<Vec<u8>>| **made == *content;
    if before.changes + delta.len() > most
        || !delta::apply(&before.content, &delta).is_some_and(exact)
    {
        return None;
    }
    let bytes = encode(CHANGE, &before.checksum, sequence, &delta).ok()?;
    let put = || {
        let file = OpenOptions::new().write(true).open(path)?;
        if file.metadata()?.len() != before.length {
            return Err(io::Error::other("somebody else wrote to it"));
        }
        file.write_all_at(&bytes, before.length)?;
        file.sync_all()
    };
    put().ok()?;
    Some(Written {
        content: Zeroizing::new(content.to_vec()),
        checksum: *bytes.last_chunk()?,
        length: before.length + bytes.len() as u64,
        changes: before.changes + bytes.len(),
    })
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
    let most = 2 * (HEAD + MAX_CONTENT + CHECKSUM) as u64;
    file.take(most).read_to_end(&mut bytes).map_err(failed)?;
    Ok(decode(&bytes).map_or(Slot::Damaged, Slot::Whole))
}

fn encode(
    magic: &[u8; 8],
    before: &[u8],
    sequence: u64,
    content: &[u8],
) -> io::Result<Zeroizing<Vec<u8>>> {
    if content.len() > MAX_CONTENT {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            "the state is too large to be saved",
        ));
    }
    let mut bytes = Zeroizing::new(Vec::with_capacity(HEAD + content.len() + CHECKSUM));
    bytes.extend_from_slice(magic);
    bytes.extend_from_slice(&sequence.to_be_bytes());
    bytes.extend_from_slice(&(content.len() as u32).to_be_bytes());
    bytes.extend_from_slice(content);
    let checksum = checksum(before, &bytes);
    bytes.extend_from_slice(&checksum);
    Ok(bytes)
}

/// The checksum of a copy, or of a change after what has the checksum `before`.
fn checksum(before: &[u8], sealed: &[u8]) -> [u8; CHECKSUM] {
    let digest = Blake2s256::new().chain_update(before);
    digest.chain_update(sealed).finalize().into()
}

/// A copy or a change that passes its checksum, and what follows it.
struct Sealed<'a> {
    sequence: u64,
    content: &'a [u8],
    checksum: [u8; CHECKSUM],
    rest: &'a [u8],
}

fn unseal<'a>(magic: &[u8; 8], before: &[u8], bytes: &'a [u8]) -> Option<Sealed<'a>> {
    let (found, rest) = bytes.split_first_chunk::<8>()?;
    let (sequence, rest) = rest.split_first_chunk::<8>()?;
    let (length, rest) = rest.split_first_chunk::<4>()?;
    let (content, rest) = rest.split_at_checked(u32::from_be_bytes(*length) as usize)?;
    let (said, rest) = rest.split_first_chunk::<CHECKSUM>()?;
    let sealed = &bytes[..HEAD + content.len()];
    let whole = found == magic && checksum(before, sealed) == *said;
    whole.then_some(Sealed {
        sequence: u64::from_be_bytes(*sequence),
        content,
        checksum: *said,
        rest,
    })
}

/// The copy in a slot with the changes after it, up to one that is not whole.
fn decode(bytes: &[u8]) -> Option<Whole> {
    let former = unseal(FORMER, &[], bytes);
    let is_former = former.is_some();
    let mut last = former.or_else(|| unseal(MAGIC, &[], bytes))?;
    let mut content = Zeroizing::new(last.content.to_vec());
    while let Some(change) = unseal(CHANGE, &last.checksum, last.rest).filter(|_| !is_former)
        && let Some(changed) = delta::apply(&content, change.content)
    {
        (content, last) = (changed, change);
    }
    Some(Whole {
        sequence: last.sequence,
        content,
        former: is_former,
        torn: !is_former && !last.rest.is_empty(),
    })
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
        let after = encode(MAGIC, &[], 3, b"third").unwrap();
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

    /// A state of so many leases.
    fn leases(count: u32) -> Vec<u8> {
        let lease = |n: u32| format!("{n:08x} a container of some name, eth0;");
        (0..count).map(lease).collect::<String>().into()
    }

    #[test]
    fn a_lease_is_appended_and_its_slot_written_anew_in_time() {
        let scratch = saved("leases", &[&leases(1000), &leases(1001)]);
        let (mut store, _) = scratch.open().unwrap();
        // Whatever was there, this process wrote none of it.
        store.write(&leases(1002)).unwrap();
        store.write(&leases(1003)).unwrap();
        let mut appended = 0;
        for count in 1004..2000 {
            let slot = scratch.slot(store.next);
            let before = fs::read(&slot).unwrap();
            store.write(&leases(count)).unwrap();
            let after = fs::read(&slot).unwrap();
            let most = leases(count).len() * 3 / 2 + 200;
            assert!(after.len() <= most, "{} bytes", after.len());
            if after.starts_with(&before) {
                assert!(after.len() - before.len() < 250, "{count}");
                appended += 1;
            }
            if count % 50 == 0 {
                drop(store);
                assert_eq!(scratch.content(), leases(count));
                store = scratch.open().unwrap().0;
            }
        }
        assert!(appended > 900, "{appended} of 996");
    }

    #[test]
    fn a_change_torn_at_any_byte_leaves_the_former_copy() {
        let scratch = Scratch::new("change");
        let (mut store, _) = scratch.open().unwrap();
        (10..14).for_each(|count| store.write(&leases(count)).unwrap());
        assert_eq!(store.next, 0);
        let (before, other) = (
            fs::read(scratch.slot(0)).unwrap(),
            fs::read(scratch.slot(1)).unwrap(),
        );
        store.write(&leases(14)).unwrap();
        drop(store);
        let after = fs::read(scratch.slot(0)).unwrap();
        assert_eq!(after[..before.len()], before, "it is appended");
        assert_eq!(scratch.content(), leases(14));
        for torn in before.len()..after.len() {
            for rest in [0, after.len() - torn] {
                let mut bytes = after[..torn].to_vec();
                bytes.resize(torn + rest, 0xa5);
                fs::write(scratch.slot(0), &bytes).unwrap();
                fs::write(scratch.slot(1), &other).unwrap();
                let (mut store, found) = scratch.open().unwrap();
                assert_eq!(*found.content.unwrap(), leases(13), "torn at byte {torn}");
                let torn = (torn + rest > before.len()).then(|| scratch.slot(0));
                assert_eq!(found.damaged_slot, torn);
                assert_eq!(store.next, 0, "the torn slot is written next");
                store.write(&leases(15)).unwrap();
                drop(store);
                assert_eq!(scratch.content(), leases(15));
            }
        }
        for at in 0..after.len() {
            let mut bytes = after.clone();
            bytes[at] ^= 0x40;
            fs::write(scratch.slot(0), &bytes).unwrap();
            fs::write(scratch.slot(1), &other).unwrap();
            assert_eq!(scratch.content(), leases(13), "byte {at}");
        }
    }

    #[test]
    fn what_a_longer_file_left_behind_belongs_to_nothing() {
        let scratch = Scratch::new("left");
        let (mut store, _) = scratch.open().unwrap();
        (10..16).for_each(|count| store.write(&leases(count)).unwrap());
        drop(store);
        let bytes = fs::read(scratch.slot(0)).unwrap();
        // Written anew up to the checksum, with the changes of the former copy still behind it.
        let mut torn = encode(MAGIC, &[], 9, &leases(10)).unwrap().to_vec();
        torn.extend_from_slice(&bytes[torn.len()..]);
        assert!(torn.windows(8).any(|part| part == CHANGE));
        fs::write(scratch.slot(0), &torn).unwrap();
        assert_eq!(scratch.content(), leases(10));
    }

    #[test]
    fn a_change_that_the_disk_refuses_is_written_anew() {
        let scratch = Scratch::new("refused");
        let (mut store, _) = scratch.open().unwrap();
        (10..14).for_each(|count| store.write(&leases(count)).unwrap());
        // Somebody put another file there.
        fs::write(scratch.slot(0), b"junk").unwrap();
        store.write(&leases(14)).unwrap();
        drop(store);
        assert_eq!(scratch.content(), leases(14));
    }

    #[test]
    fn a_build_that_knows_no_changes_does_not_read_on_without_them() {
        let scratch = Scratch::new("former");
        fs::create_dir_all(&scratch.0).unwrap();
        for (slot, content) in [b"first", b"later"].into_iter().enumerate() {
            let bytes = encode(FORMER, &[], slot as u64 + 1, content).unwrap();
            fs::write(scratch.slot(slot), &*bytes).unwrap();
        }
        assert_eq!(scratch.content(), b"later");
        let (mut store, _) = scratch.open().unwrap();
        store.write(b"third").unwrap();
        drop(store);
        assert_eq!(scratch.content(), b"third");
        for slot in 0..2 {
            assert!(fs::read(scratch.slot(slot)).unwrap().starts_with(MAGIC));
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
        fs::write(scratch.slot(0), MAGIC).unwrap();
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
