//! The processes of network namespaces, and the ports that they listen on, as `/proc` tells them (`proc(5)`).
//!
//! A container here is its network namespace: whatever runs in it belongs to it, whoever started it. A namespace's table of
//! sockets is read once, by one of its processes; whose a socket is follows from the descriptors of each. A process is told
//! by the name it gives itself and not by its command line, in which people write passwords.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt as _;
use std::time::Duration;

use procfs::net::TcpState;
use procfs::process::{FDTarget, Process as Entry};
use procfs::{ProcError, WithCurrentSystemInfo as _};

/// The most descriptors of a process that are looked at for sockets.
const MAX_DESCRIPTORS: usize = 1024;

/// A process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its number, as the host counts.
    pub pid: u32,
    /// What it calls itself: at most 15 bytes, of any kind.
    pub name: String,
    /// When it started, in ticks since the boot: with the number it tells a process from a later one.
    pub started: u64,
    /// The CPU time it has taken since.
    pub cpu: Duration,
    /// Bytes of memory that are its own or shared with others.
    pub memory: u64,
    /// What it listens on.
    pub ports: Vec<Port>,
}

/// A port that a socket listens on, or takes datagrams of anybody.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Port {
    /// TCP, or else UDP.
    pub tcp: bool,
    /// The address, often the unspecified one, and the port.
    pub local: SocketAddr,
}

/// The processes of each of these network namespaces, given by inode number, at most `most` of each.
///
/// What ends meanwhile is left out, and so is what may not be read.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn of_namespaces(
    wanted: &BTreeSet<u64>,
    most: usize,
) -> io::Result<BTreeMap<u64, Vec<Process>>> {
    let mut entries = BTreeMap::<u64, Vec<Entry>>::new();
    for entry in procfs::process::all_processes().map_err(plain)? {
        let Ok(entry) = entry else { continue };
        let inode = std::fs::metadata(format!("/proc/{}/ns/net", entry.pid())).map(|ns| ns.ino());
        let Some(inode) = inode.ok().filter(|inode| wanted.contains(inode)) else {
            continue;
        };
        let found = entries.entry(inode).or_default();
        if found.len() < most {
            found.push(entry);
        }
    }
    Ok(entries
        .into_iter()
        .map(|(inode, found)| {
            let sockets = listening(&found);
            let processes = found.iter().filter_map(|entry| read(entry, &sockets).ok());
            (inode, processes.collect())
        })
        .collect())
}

/// The sockets of a namespace that wait for anybody, by inode: read by the first of its processes that can.
fn listening(processes: &[Entry]) -> HashMap<u64, Port> {
    let table = |process: &Entry| {
        let mut found = HashMap::new();
        for socket in process.tcp()?.into_iter().chain(process.tcp6()?) {
            if socket.state == TcpState::Listen {
                let local = socket.local_address;
                found.insert(socket.inode, Port { tcp: true, local });
            }
        }
        for socket in process.udp()?.into_iter().chain(process.udp6()?) {
            if socket.remote_address.port() == 0 {
                let local = socket.local_address;
                found.insert(socket.inode, Port { tcp: false, local });
            }
        }
        Ok::<_, ProcError>(found)
    };
    processes
        .iter()
        .find_map(|process| table(process).ok())
        .unwrap_or_default()
}

fn read(entry: &Entry, sockets: &HashMap<u64, Port>) -> Result<Process, ProcError> {
    let stat = entry.stat()?;
    let ticks = procfs::ticks_per_second().max(1);
    Ok(Process {
        pid: entry.pid().unsigned_abs(),
        cpu: Duration::from_millis((stat.utime + stat.stime) * 1000 / ticks),
        memory: stat.rss_bytes().get(),
        started: stat.starttime,
        ports: ports(entry, sockets),
        name: stat.comm,
    })
}

/// What of the sockets is this process's, each port once.
fn ports(entry: &Entry, sockets: &HashMap<u64, Port>) -> Vec<Port> {
    let Ok(descriptors) = entry.fd() else {
        return Vec::new();
    };
    let descriptors = descriptors.take(MAX_DESCRIPTORS).flatten();
    let owned = descriptors.filter_map(|one| match one.target {
        FDTarget::Socket(inode) => sockets.get(&inode).copied(),
        _ => None,
    });
    let ports: BTreeSet<Port> = owned.collect();
    ports.into_iter().collect()
}

fn plain(error: ProcError) -> io::Error {
    io::Error::other(error.to_string())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};

    use super::*;

    /// This very process, with what it listens on and not what it is connected by.
    #[test]
    fn a_process_is_found_in_its_namespace_with_its_ports() {
        let inode = std::fs::metadata("/proc/self/ns/net").unwrap().ino();
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let listener6 = TcpListener::bind(("::1", 0)).unwrap();
        let taker = UdpSocket::bind(("127.0.0.1", 0)).unwrap();
        let talker = UdpSocket::bind(("127.0.0.1", 0)).unwrap();
        talker.connect(taker.local_addr().unwrap()).unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let found = of_namespaces(&[inode].into(), 100_000).unwrap();
        assert_eq!(found.keys().copied().collect::<Vec<_>>(), [inode]);
        let me = found[&inode]
            .iter()
            .find(|one| one.pid == std::process::id());
        let me = me.expect("this process runs");
        let has = |tcp, local| me.ports.contains(&Port { tcp, local });
        assert!(has(true, listener.local_addr().unwrap()));
        assert!(has(true, listener6.local_addr().unwrap()));
        assert!(has(false, taker.local_addr().unwrap()));
        assert!(!has(false, talker.local_addr().unwrap()), "it is connected");
        assert!(!has(true, stream.local_addr().unwrap()));
        assert!(me.memory > 100_000 && !me.name.is_empty() && me.started > 0);
    }

    #[test]
    fn another_namespace_has_others() {
        assert!(of_namespaces(&[1].into(), 10).unwrap().is_empty());
        let inode = std::fs::metadata("/proc/self/ns/net").unwrap().ino();
        assert_eq!(of_namespaces(&[inode].into(), 1).unwrap()[&inode].len(), 1);
    }
}
