//! What runs in this node's containers and on its host, for who looks: processes, what they take, what they listen on.
//!
//! Read every [`PAUSE`] while somebody looks, from `/proc` ([`weave_linux::processes`]), and made into what is told: of
//! each namespace at most [`MAX_TOLD`] processes, those that listen first and then the busiest, with the rest counted. What a
//! process takes of a core is the difference to the look before.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, Instant};

use weave_linux::processes::{self, Found, Process};
use weave_model::api::{Inside, ListeningPort, ProcessInfo, Protocol};

/// Between two looks.
pub(super) const PAUSE: Duration = Duration::from_secs(5);

/// The most processes of a namespace whose ports are looked for; the host's own may have more.
const MAX_READ: usize = 512;

/// The most processes of a namespace that are told.
const MAX_TOLD: usize = 12;

/// The most ports of a process that are told.
const MAX_PORTS: usize = 8;

/// Shares are told in steps of so many thousandths, so that a picture at rest stays as it is.
const STEP: u32 = 10;

/// A process, as its host tells it from all others since the boot.
type Key = (u32, u64);

/// What was found at the last look.
#[derive(Clone, Debug, Default)]
pub(super) struct Insides {
    looked: Option<Instant>,
    cpu: HashMap<Key, Duration>,
    found: BTreeMap<u64, Inside>,
}

impl Insides {
    /// Whether it is time for a look.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        let looked = self.looked;
        looked.is_none_or(|at| now.saturating_duration_since(at) >= PAUSE)
    }

    /// Whether the last look is no longer ago than this.
    pub(super) fn is_of_last(&self, time: Duration, now: Instant) -> bool {
        let looked = self.looked;
        looked.is_some_and(|at| now.saturating_duration_since(at) < time)
    }

    /// What runs in the network namespace of this inode.
    pub(super) fn of(&self, netns: u64) -> Option<&Inside> {
        self.found.get(&netns)
    }

    /// Reads the namespaces of these inodes. What may not be read stays untold.
    pub(super) fn look(&mut self, namespaces: &BTreeSet<u64>, now: Instant) {
        match processes::of_namespaces(namespaces, MAX_READ) {
            Ok(found) => self.take(found, now),
            Err(error) => {
                tracing::debug!(%error, "processes are not seen");
                self.found.clear();
                self.looked = Some(now);
            }
        }
    }

    fn take(&mut self, found: BTreeMap<u64, Found>, now: Instant) {
        let since = self.looked.replace(now);
        let since = since.map(|at| now.saturating_duration_since(at));
        let before = std::mem::take(&mut self.cpu);
        let every = found.values().flat_map(|one| &one.processes);
        self.cpu = every.map(|one| (key(one), one.cpu)).collect();
        let told = |found| inside(found, &before, since);
        self.found = found
            .into_iter()
            .map(|(netns, found)| (netns, told(found)))
            .collect();
    }
}

const fn key(process: &Process) -> Key {
    (process.pid, process.started)
}

fn inside(
    Found { processes, .. }: Found,
    before: &HashMap<Key, Duration>,
    since: Option<Duration>,
) -> Inside {
    let share = |process: &Process| {
        let spent = process.cpu.saturating_sub(*before.get(&key(process))?);
        let of = since?.as_millis().max(1) as u64;
        let permille = (spent.as_millis() as u64 * 1000 / of) as u32;
        Some(permille.next_multiple_of(STEP))
    };
    let shares: Vec<Option<u32>> = processes.iter().map(share).collect();
    let sum = shares.iter().flatten().sum();
    let memory_bytes = memory(&processes);
    let mut told: Vec<ProcessInfo> = processes
        .into_iter()
        .zip(&shares)
        .map(|(one, share)| ProcessInfo {
            pid: one.pid,
            cpu_permille: *share,
            memory_bytes: one.memory,
            ports: one.ports.iter().take(MAX_PORTS).map(port).collect(),
            name: one.name,
        })
        .collect();
    told.sort_by_key(|one| (one.ports.is_empty(), Reverse(one.cpu_permille), one.pid));
    let more = told.len().saturating_sub(MAX_TOLD) as u32;
    told.truncate(MAX_TOLD);
    Inside {
        processes: told,
        more_processes: more,
        cpu_permille: shares.iter().any(Option::is_some).then_some(sum),
        memory_bytes,
    }
}

/// What processes take together: what each has for itself, and of what is shared, in most cases by them, the most that one has.
///
/// It may be less than they take, where they share several things, and more, where some began as a copy of another (`fork`)
/// and have not changed all of it since: the kernel tells only of files and shared segments that they are shared.
fn memory(processes: &[Process]) -> u64 {
    let own = processes
        .iter()
        .map(|one| one.memory.saturating_sub(one.shared));
    let shared = processes.iter().map(|one| one.shared).max();
    own.sum::<u64>() + shared.unwrap_or_default()
}

const fn port(port: &processes::Port) -> ListeningPort {
    ListeningPort {
        protocol: if port.tcp {
            Protocol::Tcp
        } else {
            Protocol::Udp
        },
        ip: port.local.ip(),
        port: port.local.port(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    fn process(pid: u32, cpu_ms: u64, listens: bool) -> Process {
        let local = ([0, 0, 0, 0], 80).into();
        Process {
            pid,
            name: format!("p{pid}"),
            started: 7,
            cpu: Duration::from_millis(cpu_ms),
            memory: 1000,
            shared: 900,
            ports: listens
                .then_some(processes::Port { tcp: true, local })
                .into_iter()
                .collect(),
        }
    }

    fn all(processes: Vec<Process>) -> Found {
        Found { processes, more: 0 }
    }

    #[test]
    fn who_listens_comes_first_and_shares_are_since_the_last_look() {
        let start = Instant::now();
        let mut insides = Insides::default();
        assert!(insides.is_due(start));
        let look = |cpu: [u64; 3]| {
            let each = cpu.iter().enumerate();
            let each = each.map(|(at, cpu)| process(at as u32, *cpu, at == 2));
            BTreeMap::from([(9, all(each.collect()))])
        };
        insides.take(look([100, 200, 300]), start);
        let first = insides.of(9).unwrap();
        assert_eq!((first.cpu_permille, first.memory_bytes), (None, 1200));
        assert!(!insides.is_due(start + PAUSE / 2));
        insides.take(look([100, 1210, 300]), start + Duration::from_secs(2));
        let second = insides.of(9).unwrap();
        let order: Vec<_> = second
            .processes
            .iter()
            .map(|one| (one.pid, one.cpu_permille))
            .collect();
        assert_eq!(order, [(2, Some(0)), (1, Some(510)), (0, Some(0))]);
        assert_eq!(second.cpu_permille, Some(510));
        let port = second.processes[0].ports[0];
        assert_eq!((port.protocol, port.port), (Protocol::Tcp, 80));
        assert_eq!(insides.of(8), None);
    }

    #[test]
    fn a_number_that_is_used_again_is_another_process() {
        let start = Instant::now();
        let mut insides = Insides::default();
        insides.take([(9, all(vec![process(1, 5000, false)]))].into(), start);
        let again = Process {
            started: 8,
            ..process(1, 10, false)
        };
        insides.take([(9, all(vec![again]))].into(), start + PAUSE);
        assert_eq!(insides.of(9).unwrap().processes[0].cpu_permille, None);
    }

    #[test]
    fn what_is_not_told_is_counted() {
        let many = (0..140).map(|pid| process(pid, 0, pid == 39)).collect();
        let found = Found {
            processes: many,
            more: 100,
        };
        let inside = inside(found, &HashMap::new(), None);
        assert_eq!(
            (inside.processes.len(), inside.more_processes),
            (MAX_TOLD, 128)
        );
        assert_eq!(inside.processes[0].pid, 39);
        assert_eq!(inside.memory_bytes, 140 * 100 + 900, "of all");
    }

    /// PostgreSQL with 1 GiB of shared buffers, all of it mapped by each of 50 processes.
    #[test]
    fn what_processes_share_is_counted_once() {
        let gib = 1 << 30;
        let backend = |pid| Process {
            memory: gib + 5_000_000,
            shared: gib,
            ..process(pid, 0, false)
        };
        let all: Vec<Process> = (0..50).map(backend).collect();
        assert_eq!(memory(&all), gib + 50 * 5_000_000);
    }
}
