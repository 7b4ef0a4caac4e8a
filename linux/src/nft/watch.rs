//! The kernel's words about changes of rule sets: whoever listens need not look at a table that nobody else touches.
//!
//! When a batch holds, the kernel tells all who listen (`NFNLGRP_NFTABLES`) what it did: a message for each table, chain,
//! rule, set and element, each with its table's name and with the number of the socket that sent the batch, and
//! `NFT_MSG_NEWGEN` behind them. Words that find no room are lost, and the next read says so (`ENOBUFS`).
//!
//! While somebody listens, every element costs the kernel a buffer of 8 KB until its batch is done: 2 GB for 250,000
//! elements. So nobody should listen while it sends very many itself ([`Watch::pause`]).

use std::collections::BTreeSet;
use std::io;

use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket as Netlink, SocketAddr};

use super::batch::{DELSETELEM, NEWSETELEM};
use super::set::{NFTA_SET_NAME, NFTA_SET_TABLE};
use super::socket::Socket;
use super::table::Table;
use super::wire::{Message, Messages, SUBSYSTEM};

/// What was heard since the last time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Heard {
    /// Somebody else changed any rule set of the host.
    pub others: bool,
    /// Somebody else made or removed the table, or chains, rules or sets of it.
    pub rules: bool,
    /// The sets of the table to which somebody else added elements, or took some away.
    pub sets: BTreeSet<String>,
    /// Words were lost; what they were about is not known.
    pub lost: bool,
}

/// A listener.
#[derive(Debug)]
pub struct Watch {
    socket: Netlink,
    words: Vec<u8>,
    /// The number of the socket whose changes are our own.
    own: u32,
}

impl Watch {
    /// Listens in the calling thread's network namespace to what all others than `own` change.
    ///
    /// # Errors
    /// When the kernel has no nftables, or without CAP_NET_ADMIN.
    pub fn open(own: &Socket) -> io::Result<Self> {
        let mut socket = Netlink::new(NETLINK_NETFILTER)?;
        socket.set_non_blocking(true)?;
        socket.bind(&SocketAddr::new(0, 0))?;
        socket.add_membership(GROUP)?;
        Ok(Self {
            socket,
            words: Vec::with_capacity(LONGEST),
            own: own.number()?,
        })
    }

    /// Hears nothing from now on. What was heard already still waits.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn pause(&self) -> io::Result<()> {
        self.socket.drop_membership(GROUP)
    }

    /// Hears again. What was changed meanwhile stays unheard;
    /// [`Socket::generation`] before and after tells whether there was anything.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn resume(&self) -> io::Result<()> {
        self.socket.add_membership(GROUP)
    }

    /// Takes all words that wait; those of others about `table` are told apart.
    ///
    /// # Errors
    /// When there is nothing to be heard any more.
    pub fn hear(&mut self, table: &Table) -> io::Result<Heard> {
        let mut heard = Heard::default();
        loop {
            self.words.clear();
            match self.socket.recv_from(&mut self.words, 0) {
                Ok((_, from)) if from.port_number() == 0 => {
                    let words = Messages(&self.words);
                    let theirs = words.filter(|word| word.port != self.own);
                    theirs.for_each(|word| heard.take(&word, table));
                }
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(heard),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => heard.lost = true,
                Err(error) => return Err(error),
            }
        }
    }
}

impl Heard {
    fn take(&mut self, word: &Message<'_>, table: &Table) {
        self.others = true;
        let ours = word.family() == table.family as u8
            && word.kind >> 8 == u16::from(SUBSYSTEM)
            && word.kind & 0xff != NEWGEN
            // All kinds of objects have the name of their table there.
            && word.attributes().text(NFTA_SET_TABLE).as_deref() == Some(table.name());
        if !ours {
            return;
        }
        match word.kind & 0xff {
            NEWSETELEM | DELSETELEM => self.sets.extend(word.attributes().text(NFTA_SET_NAME)),
            _ => self.rules = true,
        }
    }
}

/// `NFNLGRP_NFTABLES`.
const GROUP: u32 = 7;
const NEWGEN: u16 = 15;
/// The kernel gathers its words to datagrams of at most 8 KB (`NLMSG_GOODSIZE`), and of one word where that is longer.
const LONGEST: usize = 64 * 1024;
