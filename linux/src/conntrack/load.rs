//! How full the kernel's table of connections is, and what came of it: two questions that the kernel answers from counters.
//!
//! `IPCTNL_MSG_CT_GET_STATS` gives the entries and the limit, `IPCTNL_MSG_CT_GET_STATS_CPU`, dumped, what each core counted
//! since the network namespace was made. Numbers are big-endian, of 32 bits, and start anew when they are full. Source:
//! `linux/netfilter/nfnetlink_conntrack.h` (`ctattr_stats_global`, `ctattr_stats_cpu`).

use std::io;

use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_NETFILTER;

use super::dump::{REQUEST, REQUEST_DUMP, ask};

/// The table of one network namespace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Connections in it.
    pub entries: u64,
    /// How many there may be; absent where the kernel, older than 4.18, does not say.
    pub limit: Option<u64>,
    /// Packets that were dropped because their connection found no room.
    pub dropped: u64,
    /// Connections that were forgotten early to make room for others.
    pub evicted: u64,
    /// Connections that did not get into the table, most because another of the same ends was there first.
    pub not_inserted: u64,
}

/// Asks in the calling thread's network namespace.
///
/// # Errors
/// Without `CAP_NET_ADMIN`, or where the kernel follows no connections.
pub fn load() -> io::Result<Load> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    let mut load = Load::default();
    ask(&socket, GET_STATS, REQUEST, |all| {
        load.entries = all.u32(ENTRIES).unwrap_or_default().into();
        load.limit = all.u32(MAX_ENTRIES).map(u64::from);
    })?;
    ask(&socket, GET_STATS_CPU, REQUEST_DUMP, |core| {
        let count = |kind| u64::from(core.u32(kind).unwrap_or_default());
        load.dropped += count(DROP);
        load.evicted += count(EARLY_DROP);
        load.not_inserted += count(INSERT_FAILED);
    })?;
    Ok(load)
}

/// `NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_GET_STATS_CPU`.
const GET_STATS_CPU: u16 = 0x104;
/// `NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_GET_STATS`.
const GET_STATS: u16 = 0x105;

const ENTRIES: u16 = 1;
const MAX_ENTRIES: u16 = 2;
const INSERT_FAILED: u16 = 9;
const DROP: u16 = 10;
const EARLY_DROP: u16 = 11;
