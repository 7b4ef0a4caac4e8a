//! The netlink socket that carries batches to the kernel and answers back.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use super::batch::Batch;
use super::read::{ChainInfo, RuleInfo, TableInfo};
use super::table::Table;
use super::wire::{Attributes, Attrs, Message, Messages, SUBSYSTEM, message, text};

/// Why a rule set could not be applied or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused an operation; nothing of the batch holds. `NotFound` and `AlreadyExists` tell of names,
    /// `PermissionDenied` of a missing privilege (CAP_NET_ADMIN), `Unsupported` of a kernel without the expression.
    #[error("cannot {operation}: {source}{}", hint.as_deref().map(|hint| format!(" ({hint})")).unwrap_or_default())]
    Refused {
        /// The operation in words.
        operation: String,
        /// The kernel's error.
        source: io::Error,
        /// What the kernel says about it, if anything.
        hint: Option<String>,
    },
    /// The batch is larger than one datagram may be; send it in parts.
    #[error(
        "a batch of {0} bytes is more than this kernel takes at once; CAP_NET_ADMIN lifts the limit"
    )]
    TooLarge(usize),
    /// The socket failed.
    #[error("nftables cannot be reached: {0}")]
    Socket(#[from] io::Error),
}

/// A connection to nftables of the network namespace in which it was opened.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
}

impl Socket {
    /// Opens a socket in the calling thread's network namespace.
    ///
    /// # Errors
    /// When the kernel has no nftables.
    pub fn open() -> io::Result<Self> {
        // SAFETY: socket(2) takes no pointers.
        let fd = unsafe {
            libc::socket(
                libc::AF_NETLINK,
                libc::SOCK_RAW | libc::SOCK_CLOEXEC,
                libc::NETLINK_NETFILTER,
            )
        };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just made and is owned by nobody else.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let socket = Self { fd };
        // Errors come back without the request they answer, and with the kernel's words where it has any.
        socket.set(libc::SOL_NETLINK, libc::NETLINK_CAP_ACK, 1)?;
        socket.set(libc::SOL_NETLINK, libc::NETLINK_EXT_ACK, 1)?;
        Ok(socket)
    }

    /// Applies a batch: all of it, or nothing.
    ///
    /// # Errors
    /// [`Error::Refused`] with the first operation the kernel did not take.
    pub fn send(&self, batch: &Batch) -> Result<(), Error> {
        if batch.is_empty() {
            return Ok(());
        }
        self.discard();
        let bytes = batch.datagram();
        self.make_room(bytes.len());
        self.write(&bytes)?;
        self.verdict(batch)
    }

    /// All tables, of every family.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn tables(&self) -> Result<Vec<TableInfo>, Error> {
        self.dump(GETTABLE, 0, &Attrs::default(), TableInfo::parse)
    }

    /// A table, if it is there.
    ///
    /// # Errors
    /// When tables cannot be read.
    pub fn table(&self, table: &Table) -> Result<Option<TableInfo>, Error> {
        let mut tables = self.tables()?.into_iter();
        Ok(tables.find(|found| found.family == table.family as u8 && found.name == table.name))
    }

    /// The chains of a table; none if there is no such table.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn chains(&self, table: &Table) -> Result<Vec<ChainInfo>, Error> {
        let mut chains = self.dump(
            GETCHAIN,
            table.family as u8,
            &Attrs::default(),
            ChainInfo::parse,
        )?;
        chains.retain(|chain| chain.family == table.family as u8 && chain.table == table.name);
        Ok(chains)
    }

    /// The rules of a table in the order of its chains; none if there is no such table.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn rules(&self, table: &Table) -> Result<Vec<RuleInfo>, Error> {
        let mut attrs = Attrs::default();
        attrs.text(super::rule::NFTA_RULE_TABLE, &table.name);
        let mut rules = self.dump(GETRULE, table.family as u8, &attrs, RuleInfo::parse)?;
        rules.retain(|rule| rule.family == table.family as u8 && rule.table == table.name);
        Ok(rules)
    }

    /// What a set or map of a table holds, each element as `read` has it.
    pub(super) fn elements<T>(
        &self,
        table: &Table,
        set: &str,
        read: impl Fn(Message<'_>) -> Vec<T>,
    ) -> Result<Vec<T>, Error> {
        let mut attrs = Attrs::default();
        attrs
            .text(super::set::NFTA_SET_TABLE, &table.name)
            .text(super::set::NFTA_SET_NAME, set);
        let lists = self.dump(GETSETELEM, table.family as u8, &attrs, |message| {
            Some(read(message))
        })?;
        Ok(lists.into_iter().flatten().collect())
    }

    /// A number that grows with every change anybody makes to the namespace's rule sets.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn generation(&self) -> Result<u32, Error> {
        self.discard();
        let mut request = Vec::new();
        message(
            &mut request,
            kind(GETGEN),
            REQUEST,
            1,
            0,
            0,
            &Attrs::default(),
        );
        self.write(&request)?;
        let mut buffer = vec![0; BUFFER];
        let read = self.read(&mut buffer, 0)?;
        let answer = Messages(&buffer[..read]).next();
        let generation = answer.and_then(|answer| match answer.kind {
            ERROR => None,
            _ => answer.attributes().u32(NFTA_GEN_ID),
        });
        generation.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData).into())
    }

    /// The socket's number (`nl_pid`), by which the kernel tells whose a change is.
    pub(super) fn number(&self) -> io::Result<u32> {
        // A socket has none before it has sent anything.
        self.generation().map_err(|error| match error {
            Error::Socket(error) => error,
            other => io::Error::other(other),
        })?;
        // SAFETY: an address of zeros is a valid one.
        let mut address: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
        let mut length = size_of::<libc::sockaddr_nl>() as libc::socklen_t;
        // SAFETY: both pointers are to live values, and the length is that of the address.
        let result = unsafe {
            libc::getsockname(
                self.fd.as_raw_fd(),
                (&raw mut address).cast(),
                &raw mut length,
            )
        };
        if result == 0 {
            Ok(address.nl_pid)
        } else {
            Err(io::Error::last_os_error())
        }
    }

    /// Reads the answers to a batch: they are queued before the send returns.
    fn verdict(&self, batch: &Batch) -> Result<(), Error> {
        let mut buffer = vec![0; BUFFER];
        let mut done = false;
        loop {
            let read = match self.read(&mut buffer, libc::MSG_DONTWAIT) {
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // Many refusals at once; the first is in the queue.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => continue,
                Err(error) => return Err(error.into()),
            };
            for answer in Messages(&buffer[..read]).filter(|answer| answer.kind == ERROR) {
                if let Some((source, hint)) = refusal(&answer) {
                    self.discard();
                    return Err(Error::Refused {
                        operation: batch.describe(answer.sequence),
                        source,
                        hint,
                    });
                }
                done |= answer.sequence == batch.len() as u32;
            }
        }
        if done {
            Ok(())
        } else {
            Err(io::Error::from(io::ErrorKind::UnexpectedEof).into())
        }
    }

    /// Asks for all objects of a kind; again when they changed meanwhile.
    fn dump<T>(
        &self,
        what: u16,
        family: u8,
        attrs: &Attrs,
        parse: impl Fn(Message<'_>) -> Option<T>,
    ) -> Result<Vec<T>, Error> {
        loop {
            self.discard();
            let mut request = Vec::new();
            message(
                &mut request,
                kind(what),
                REQUEST | DUMP,
                1,
                family,
                0,
                attrs,
            );
            self.write(&request)?;
            if let Some(found) = self.collect(&parse)? {
                return Ok(found);
            }
        }
    }

    /// Reads one dump; `None` when it was interrupted by a change.
    fn collect<T>(
        &self,
        parse: &impl Fn(Message<'_>) -> Option<T>,
    ) -> Result<Option<Vec<T>>, Error> {
        let mut buffer = vec![0; BUFFER];
        let mut found = Vec::new();
        let mut interrupted = false;
        loop {
            let read = self.read(&mut buffer, 0)?;
            for message in Messages(&buffer[..read]) {
                interrupted |= message.flags & DUMP_INTERRUPTED != 0;
                match message.kind {
                    DONE => return Ok((!interrupted).then_some(found)),
                    ERROR => match refusal(&message) {
                        // The table that was asked for is not there.
                        Some((error, _)) if error.kind() == io::ErrorKind::NotFound => {
                            return Ok(Some(found));
                        }
                        Some((error, _)) => return Err(error.into()),
                        None => {}
                    },
                    _ => found.extend(parse(message)),
                }
            }
        }
    }

    /// Throws away answers nobody asked for any more.
    fn discard(&self) {
        let mut byte = [0];
        while self.read(&mut byte, libc::MSG_DONTWAIT).is_ok() {}
    }

    fn make_room(&self, bytes: usize) {
        let Ok(size) = i32::try_from(bytes.max(64 * 1024).saturating_mul(2)) else {
            return;
        };
        // Without privilege over the namespace the forced size is refused; the ordinary one may still be enough, and
        // sending says so if it is not.
        if self
            .set(libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, size)
            .is_err()
        {
            let _ = self.set(libc::SOL_SOCKET, libc::SO_SNDBUF, size);
        }
    }

    fn set(&self, level: i32, option: i32, value: i32) -> io::Result<()> {
        let length = size_of::<i32>() as libc::socklen_t;
        // SAFETY: the pointer is to a live i32 of the length given.
        let result = unsafe {
            libc::setsockopt(
                self.fd.as_raw_fd(),
                level,
                option,
                (&raw const value).cast(),
                length,
            )
        };
        if result == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }

    fn write(&self, bytes: &[u8]) -> Result<(), Error> {
        // SAFETY: the pointer and length describe a live slice. Without an address the datagram goes to the kernel.
        let sent =
            unsafe { libc::send(self.fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), 0) };
        if sent >= 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.raw_os_error() == Some(libc::EMSGSIZE) {
            return Err(Error::TooLarge(bytes.len()));
        }
        Err(error.into())
    }

    fn read(&self, buffer: &mut [u8], flags: i32) -> io::Result<usize> {
        loop {
            // SAFETY: the pointer and length describe a live, writable slice.
            let read = unsafe {
                libc::recv(
                    self.fd.as_raw_fd(),
                    buffer.as_mut_ptr().cast(),
                    buffer.len(),
                    flags,
                )
            };
            if read >= 0 {
                return Ok(read.unsigned_abs());
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
    }
}

/// The error in an `NLMSG_ERROR`, with the kernel's words; `None` when it says that all is well.
fn refusal(message: &Message<'_>) -> Option<(io::Error, Option<String>)> {
    let code = message
        .payload
        .first_chunk()
        .map_or(-libc::EIO, |code| i32::from_ne_bytes(*code));
    // The answer repeats the request's header (16 bytes) and, with extended acknowledgements, adds attributes.
    let words = message
        .payload
        .get(20..)
        .and_then(|rest| Attributes(rest).find(NLMSGERR_ATTR_MSG));
    (code != 0).then(|| (io::Error::from_raw_os_error(-code), words.map(text)))
}

const fn kind(what: u16) -> u16 {
    (SUBSYSTEM as u16) << 8 | what
}

/// A dump comes in datagrams of at most 32 KB, and of as much as we offer to read.
const BUFFER: usize = 128 * 1024;
const GETTABLE: u16 = 1;
const GETCHAIN: u16 = 4;
const GETRULE: u16 = 7;
const GETSETELEM: u16 = 13;
const GETGEN: u16 = 16;
const NFTA_GEN_ID: u16 = 1;
const REQUEST: u16 = 0x1;
const DUMP: u16 = 0x300;
const DUMP_INTERRUPTED: u16 = 0x10;
const ERROR: u16 = 2;
const DONE: u16 = 3;
const NLMSGERR_ATTR_MSG: u16 = 1;
