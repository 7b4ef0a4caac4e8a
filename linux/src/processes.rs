//! The processes of network namespaces, and the ports that they listen on, as `/proc` tells them (`proc(5)`).
//!
//! A container here is its network namespace: whatever runs in it belongs to it, whoever started it. A namespace's table of
//! sockets is read once, by one of its processes; whose a socket is follows from the descriptors of each. A process is told
//! by the name it gives itself and not by its command line, in which people write passwords. The kernel's own threads are
//! left out: they are hundreds, of the host's namespace, and listen on nothing.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt as _;
use std::time::Duration;

use procfs::ProcError;
use procfs::net::TcpState;
use procfs::process::{FDTarget, Process as Entry, Stat};

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
    /// Those of them that are files, programs among these, or memory of several processes.
    pub shared: u64,
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

/// The processes of one network namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// All of them.
    pub processes: Vec<Process>,
    /// Of how many it is not known what they listen on.
    pub more: u32,
}

/// The processes of each of these network namespaces, given by inode number; what they listen on is found of at most `most`
/// of each, since that goes through all their descriptors.
///
/// What ends meanwhile is left out, and so is what may not be read.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn of_namespaces(wanted: &BTreeSet<u64>, most: usize) -> io::Result<BTreeMap<u64, Found>> {
    let mut entries = BTreeMap::<u64, (Vec<(Entry, Stat)>, Vec<Process>)>::new();
    for entry in procfs::process::all_processes().map_err(plain)? {
        let Ok(entry) = entry else { continue };
        let inode = std::fs::metadata(format!("/proc/{}/ns/net", entry.pid())).map(|ns| ns.ino());
        let Some(inode) = inode.ok().filter(|inode| wanted.contains(inode)) else {
            continue;
        };
        let Ok(stat) = entry.stat() else { continue };
        if is_kernels(&stat) {
            continue;
        }
        let (found, more) = entries.entry(inode).or_default();
        if found.len() < most {
            found.push((entry, stat));
        } else {
            more.push(read(&entry, stat, &HashMap::new()));
        }
    }
    Ok(entries
        .into_iter()
        .map(|(inode, (found, more))| {
            let sockets = listening(&found);
            let read = |(entry, stat)| read(&entry, stat, &sockets);
            let count = more.len() as u32;
            let processes = found.into_iter().map(read).chain(more).collect();
            let found = Found {
                processes,
                more: count,
            };
            (inode, found)
        })
        .collect())
}

/// Whether it is a thread of the kernel (`PF_KTHREAD`).
const fn is_kernels(stat: &Stat) -> bool {
    stat.flags & 0x0020_0000 != 0
}

/// The sockets of a namespace that wait for anybody, by inode: read by the first of its processes that can.
fn listening(processes: &[(Entry, Stat)]) -> HashMap<u64, Port> {
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
        .find_map(|(process, _)| table(process).ok())
        .unwrap_or_default()
}

fn read(entry: &Entry, stat: Stat, sockets: &HashMap<u64, Port>) -> Process {
    let ticks = procfs::ticks_per_second().max(1);
    let (memory, shared) = match entry.statm() {
        Ok(pages) => (pages.resident, pages.shared),
        Err(_) => (stat.rss, 0),
    };
    Process {
        pid: entry.pid().unsigned_abs(),
        cpu: Duration::from_millis((stat.utime + stat.stime) * 1000 / ticks),
        memory: memory * procfs::page_size(),
        shared: shared * procfs::page_size(),
        started: stat.starttime,
        ports: ports(entry, sockets),
        name: stat.comm,
    }
}

/// What of the sockets is this process's, each port once.
fn ports(entry: &Entry, sockets: &HashMap<u64, Port>) -> Vec<Port> {
    if sockets.is_empty() {
        return Vec::new();
    }
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
    use std::process::Command;

    use procfs::FromRead as _;

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
            .processes
            .iter()
            .find(|one| one.pid == std::process::id());
        let me = me.expect("this process runs");
        let has = |tcp, local| me.ports.contains(&Port { tcp, local });
        assert!(has(true, listener.local_addr().unwrap()));
        assert!(has(true, listener6.local_addr().unwrap()));
        assert!(has(false, taker.local_addr().unwrap()));
        assert!(!has(false, talker.local_addr().unwrap()), "it is connected");
        assert!(!has(true, stream.local_addr().unwrap()));
        assert!(me.memory > 100_000 && (1..me.memory).contains(&me.shared));
        assert!(!me.name.is_empty() && me.started > 0);
    }

    #[test]
    fn another_namespace_has_others() {
        assert!(of_namespaces(&[1].into(), 10).unwrap().is_empty());
        let inode = std::fs::metadata("/proc/self/ns/net").unwrap().ino();
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let found = of_namespaces(&[inode].into(), 1).unwrap().remove(&inode);
        child.kill().unwrap();
        child.wait().unwrap();
        let found = found.expect("this process is in it");
        let processes = &found.processes;
        assert_eq!(processes.len(), 1 + found.more as usize);
        assert!(found.more >= 1, "this process and its child are two");
        let child = processes.iter().find(|one| one.pid == child.id());
        assert!(child.is_some_and(|one| one.memory > 0), "{child:?}");
    }

    #[test]
    fn threads_of_the_kernel_are_no_processes() {
        let rest = "0 0 0 0 -1 FLAGS 0 0 0 0 0 0 0 0 20 0 1 0 2 0 0 18446744073709551615 \
                    0 0 0 0 0 0 0 2147483647 0 0 0 0 17 0 0 0 0 0 0 0 0 0 0 0 0 0 0";
        let stat = |comm: &str, flags: &str| {
            let line = format!("2 ({comm}) S {}", rest.replace("FLAGS", flags));
            Stat::from_read(line.as_bytes()).unwrap()
        };
        assert!(is_kernels(&stat("kthreadd", "2129984")));
        assert!(!is_kernels(&stat("systemd", "4194560")));
    }
}
