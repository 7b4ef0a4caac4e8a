//! The engine in user space: connections to Services end here, and others are made to their endpoints.
//!
//! So it can do what the kernel cannot: try another endpoint as long as no byte has passed ([`dial`]), choose by load
//! and latency and leave out what fails ([`pick`]), and serve node ports at loopback addresses. Clients and endpoints
//! need not know: a connection is taken under the address that the client asked for, and made from the client's address
//! wherever the table says so ([`routes`]).
//!
//! A connection to a front is steered by [`rules`] to one of two listeners a family and thread, for all Services
//! together, and so are datagrams. [`worker`] is a thread, [`connection`] a pair of sockets, [`lane`] one direction of it,
//! [`datagrams`] what a thread has of UDP, with [`upstream`] towards an endpoint and [`voices`] towards clients; all else
//! decides, without socket or clock. This is the shell around them: it starts the threads and gives them the next table.

use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use mio::net::{TcpListener, UdpSocket};
use mio::{Poll, Waker};
use weave_linux::{descriptors, intercept, nft, sysctl};
use weave_model::{Protocol, RELAY_MARK};

use crate::facts::Facts;
use crate::table::{Diff, Key, Table};
use agree::{Budget, Open};
use datagrams::Door;
use pick::{Seen, Sum};
use rules::{Listening, Ports, ROUTES, Rules};
use shared::Shared;
use worker::{Listener, WAKE, Worker};

mod backend;
mod legs;
mod maglev;
mod sticky;

pub use legs::Made;

pub mod pick;

mod agree;
mod answer;
mod dial;
mod duplex;
mod exhausted;
mod kept;
mod lane;

pub mod routes;
pub mod rules;

pub mod sessions;

mod connection;
mod datagrams;
mod shared;
mod upstream;
mod voices;
mod worker;

/// The most threads; more than that share sockets of others than ours.
const MOST_THREADS: usize = 8;
/// Descriptors that are left to the rest of the process.
const RESERVED: u64 = 1_000;
/// Which part of the descriptors may be UDP's: one of so many.
const UDP_SHARE: usize = 4;
/// Which part of them can be UDP's alone.
const UDP_SPARE: usize = 16;
/// The most streams of each thread that are moved without copying.
const PIPES: usize = 64;
/// How often it is looked whether connections have ended.
const LOOK: Duration = Duration::from_millis(20);
/// How long a client may take to confirm a connection that it was granted before the relay took no more.
const HANDSHAKE: Duration = Duration::from_millis(300);
/// How long the threads may take to end their sessions of UDP.
const SESSIONS_END: Duration = Duration::from_millis(500);

/// The running relay. Dropping it breaks its connections.
#[derive(Debug)]
pub struct Relay {
    nft: nft::Socket,
    ports: Ports,
    rules: Option<Rules>,
    /// Whether bridges gave what passes them to rules when these were made.
    bridged: bool,
    /// It takes no new connections any more.
    draining: bool,
    facts: Facts,
    shared: Arc<Shared>,
    threads: Vec<(Arc<Waker>, JoinHandle<()>)>,
}

/// What it has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Connections that are open.
    pub open: usize,
    /// Connections that were accepted.
    pub accepted: u64,
    /// Connections that it ended with a reset: no endpoint answered, or one of the sides broke.
    pub reset: u64,
    /// How often connections had to wait because there were as many as there may be.
    pub waits: u64,
    /// Bytes of connections that wait in the relay's memory for receivers that read too slowly.
    pub kept: usize,
    /// Sessions of UDP that are remembered.
    pub sessions: usize,
    /// Sessions that began.
    pub begun: u64,
    /// Sessions that ended before their time to make room for others.
    pub displaced: u64,
    /// Datagrams that came to nothing: no room for a session, no endpoint, or no room in a socket.
    pub lost: u64,
}

/// Has packets with the mark delivered to this host; what is there already stays.
fn route() -> io::Result<()> {
    let (table, priority) = ROUTES;
    intercept::route_marked(RELAY_MARK, table, priority)
}

/// Takes the rule and the routes off the host that brought a relay its packets; they outlive its process.
///
/// # Errors
/// `PermissionDenied` without CAP_NET_ADMIN.
pub fn unroute() -> io::Result<()> {
    let (table, priority) = ROUTES;
    intercept::unroute_marked(RELAY_MARK, table, priority)
}

impl Relay {
    /// Starts it in the network namespace of the calling thread, with as many connections as the process may have
    /// descriptors for.
    ///
    /// # Errors
    /// When the kernel lacks what it needs, such as tables that belong to a process (Linux 5.12), or there are no
    /// descriptors.
    pub fn start() -> io::Result<Self> {
        Self::start_with(usize::MAX)
    }

    /// The same, with at most so many connections.
    ///
    /// # Errors
    /// As [`Relay::start`].
    pub fn start_with(most: usize) -> io::Result<Self> {
        let nft = nft::Socket::open()?;
        route()?;
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let count = cores.min(MOST_THREADS);
        let (ports, listeners) = listen(count)?;
        let open = descriptors::raise()?.saturating_sub(RESERVED) as usize;
        // Two ends a pipe, two sockets a connection.
        let pipes = PIPES.min(open / count / 8);
        let budget = (open - 2 * pipes * count)
            .min(most.saturating_mul(2))
            .max(2);
        let shared = Arc::new(Shared {
            budget: Budget::new(budget),
            spare: budget / UDP_SPARE,
            open: Open::new(count),
            ..Shared::default()
        });
        let mut relay = Self {
            nft,
            ports,
            rules: None,
            bridged: false,
            draining: false,
            facts: Facts::default(),
            shared,
            threads: Vec::new(),
        };
        let sessions = (budget / UDP_SHARE / count).max(1);
        let random = RandomState::new();
        for (number, listeners) in listeners.into_iter().enumerate() {
            let poll = Poll::new()?;
            let waker = Waker::new(poll.registry(), WAKE)?;
            let shared = Arc::clone(&relay.shared);
            let seed = random.hash_one(number);
            let worker = Worker::new(poll, listeners, shared, (sessions, pipes), (number, seed))?;
            let thread = thread::Builder::new()
                .name(format!("weave-relay-{number}"))
                .spawn(move || worker.run())?;
            relay.threads.push((Arc::new(waker), thread));
        }
        Ok(relay)
    }

    /// Makes it serve what `table` says; `diff` is what is other than in the table given last. After [`Relay::drain`] only
    /// connections that have no endpoint yet go by it. To be called in its network namespace.
    ///
    /// # Errors
    /// When the kernel refuses its rules, also all of them in place of what is there. The next call tries that again.
    pub fn apply(&mut self, table: &Table, diff: &Diff, facts: &Facts) -> Result<(), nft::Error> {
        let bridged = are_bridges_ruled();
        let same_facts = self.facts.same_rules(facts) && self.bridged == bridged;
        if bridged && !self.bridged {
            tracing::info!(
                "the relay leaves clients behind bridges to the kernel's rules, as net.bridge.bridge-nf-call-iptables or -ip6tables is on"
            );
        }
        self.bridged = bridged;
        self.facts.clone_from(facts);
        let next = self.shared.routes.load().next(diff, facts, Instant::now());
        // First there is an answer, then there are questions.
        self.shared.routes.store(Arc::new(next));
        if !same_facts || diff.pairs().any(|(key, ..)| key.protocol == Protocol::Udp) {
            self.move_sessions();
        }
        if self.draining {
            return Ok(());
        }
        if let Some(rules) = self.rules.take().filter(|_| same_facts) {
            match self.nft.send(&rules.next(diff)) {
                Ok(_) => {
                    self.rules = Some(rules);
                    return Ok(());
                }
                // What is there would go on to bring connections that nobody takes any more.
                Err(error) => tracing::warn!(%error, "the relay's rules are made anew"),
            }
        }
        let (rules, batch) = Rules::new(table, facts, self.ports, bridged);
        self.nft.send(&batch)?;
        self.rules = Some(rules);
        Ok(())
    }

    /// Has the threads hold their sessions against the routes, also where nothing comes in.
    fn move_sessions(&self) {
        self.shared.moved.tell();
        wake(self.threads.iter().map(|(waker, _)| waker));
    }

    /// Forgets what the table before had; to be called some time after a change.
    pub fn settle(&self) {
        if let Some(settled) = self.shared.routes.load().settled() {
            self.shared.routes.store(Arc::new(settled));
        }
    }

    /// Whether it has to be told the table again, as a setting changed by which its rules were made, of the network namespace
    /// of the calling thread.
    pub fn is_outdated(&self) -> bool {
        self.rules.is_some() && self.bridged != are_bridges_ruled()
    }

    /// Sees that packets with its mark are delivered to it, in the network namespace of the calling thread: daemons that
    /// configure networks take rules of routing away that are not theirs. Also forgets clients whose time is over.
    ///
    /// # Errors
    /// When the kernel refuses the rule or the route.
    pub fn look_after(&self) -> io::Result<()> {
        self.shared.routes.load().forget(Instant::now());
        route()
    }

    /// Takes no new connections and no datagrams, which are the kernel's from now on. The connections that are open can be
    /// waited for; the relay serves them meanwhile, and is told of every table as before.
    pub fn drain(&mut self) -> Drain {
        self.draining = true;
        self.end_sessions();
        let stopped = self.rules.take().map(|rules| self.nft.send(&rules.none()));
        if let Some(Err(error)) = stopped {
            tracing::warn!(%error, "the relay goes on to get connections until it ends");
        }
        Drain {
            shared: Arc::clone(&self.shared),
            wakers: self
                .threads
                .iter()
                .map(|(waker, _)| Arc::clone(waker))
                .collect(),
        }
    }

    /// Ends all sessions of UDP. While there is one, its socket has the front's address and gets what its clients say; and
    /// an answer that left after the rules went would be a flow to connection tracking, whose answer the client's next
    /// question would be, which nobody translates. So they end first, and what comes until the rules go is lost.
    fn end_sessions(&self) {
        self.shared.draining.store(true, Relaxed);
        self.move_sessions();
        let deadline = Instant::now() + SESSIONS_END;
        while self.shared.counts.sessions.load(Relaxed) > 0 && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// What it has done so far.
    pub fn counts(&self) -> Counts {
        self.watch().counts()
    }

    /// A view of it for other threads.
    pub fn watch(&self) -> Watch {
        Watch {
            shared: Arc::clone(&self.shared),
        }
    }

    /// The routes as they are.
    pub fn routes(&self) -> Arc<routes::Routes> {
        self.shared.routes.load_full()
    }
}

/// The end of a relay that takes no more.
#[derive(Debug)]
pub struct Drain {
    shared: Arc<Shared>,
    wakers: Vec<Arc<Waker>>,
}

impl Drain {
    /// Waits until the connections that are open have ended, but not longer than `patience`. How many are left.
    pub fn wait(self, patience: Duration) -> usize {
        let deadline = Instant::now() + patience;
        // Those that were on their way when the rules went come to a queue meanwhile.
        thread::sleep(HANDSHAKE.min(patience));
        let asked = self.shared.open.ask();
        wake(&self.wakers);
        while !self.shared.open.is_over(asked) && Instant::now() < deadline {
            thread::sleep(LOOK);
        }
        self.shared.open.count()
    }
}

fn wake<'a>(wakers: impl IntoIterator<Item = &'a Arc<Waker>>) {
    for waker in wakers {
        if let Err(error) = waker.wake() {
            tracing::debug!(%error, "a thread of the relay looks with the next packet");
        }
    }
}

/// A view of the relay, which may outlive it.
#[derive(Clone, Debug)]
pub struct Watch {
    shared: Arc<Shared>,
}

impl Watch {
    /// What it has done so far.
    pub fn counts(&self) -> Counts {
        let counts = &self.shared.counts;
        Counts {
            open: self.shared.open.count(),
            accepted: counts.accepted.load(Relaxed),
            reset: counts.reset.load(Relaxed),
            waits: counts.waits.load(Relaxed),
            kept: counts.kept.load(Relaxed),
            sessions: counts.sessions.load(Relaxed),
            begun: counts.begun.load(Relaxed),
            displaced: counts.displaced.load(Relaxed),
            lost: counts.lost.load(Relaxed),
        }
    }

    /// What the endpoints of each port of a Service are like together, of those that are the relay's; in order.
    pub fn groups(&self) -> Vec<(Key, Sum)> {
        let now = Instant::now();
        let groups = self.shared.routes.load().groups();
        let sum = |group: &Arc<routes::Group>| (group.key.clone(), group.balancer().sum(now));
        groups.iter().map(sum).collect()
    }

    /// What connections it made for whom since the last call; for one who asks again and again.
    pub fn made(&self) -> Made {
        self.shared.legs.take()
    }

    /// The endpoints of each port of a Service that is the relay's.
    pub fn endpoints(&self) -> Vec<(Key, Vec<Seen>)> {
        let now = Instant::now();
        let groups = self.shared.routes.load().groups();
        let of_group = |group: &Arc<routes::Group>| {
            let seen = group.balancer().seen(now);
            (group.key.clone(), seen)
        };
        groups.iter().map(of_group).collect()
    }
}

/// Whether what passes a bridge of this network namespace is given to rules of IP.
fn are_bridges_ruled() -> bool {
    ["iptables", "ip6tables"].iter().any(|one| {
        // Where the kernel has no such setting, they are not.
        sysctl::read(&format!("net/bridge/bridge-nf-call-{one}")).is_ok_and(|set| set != "0")
    })
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.shared.stop.store(true, Relaxed);
        for (waker, thread) in std::mem::take(&mut self.threads) {
            // Where it cannot be woken it is left to itself; it ends with the process.
            if waker.wake().is_ok() {
                let _ = thread.join();
            }
        }
    }
}

/// What a thread listens by.
type Ears = (Vec<Listener>, Vec<Door>);

/// The listeners of each thread, and the ports they share.
fn listen(threads: usize) -> io::Result<(Ports, Vec<Ears>)> {
    let mut ears: Vec<Ears> = (0..threads).map(|_| Ears::default()).collect();
    let tcp = share(threads, |thread, host, address| {
        let socket = intercept::listen(address)?;
        let at = socket.local_addr();
        ears[thread].0.push(Listener {
            socket: TcpListener::from_std(socket),
            host,
            waits: false,
            full: false,
        });
        at
    })?;
    let udp = share(threads, |thread, host, address| {
        let socket = intercept::datagrams::hear(address)?;
        let at = socket.local_addr();
        ears[thread].1.push(Door {
            socket: UdpSocket::from_std(socket),
            host,
            waits: false,
        });
        at
    })?;
    Ok((Ports { tcp, udp }, ears))
}

/// Has a protocol's sockets made: for what comes from this host and for all else, for each family and thread. `make` gets
/// the thread, whether it is for this host, and the address, and says where the socket is.
fn share(
    threads: usize,
    mut make: impl FnMut(usize, bool, SocketAddr) -> io::Result<SocketAddr>,
) -> io::Result<Listening> {
    let mut listening = Listening::default();
    let kinds = [(true, &mut listening.host), (false, &mut listening.others)];
    for (host, of_kind) in kinds {
        let families = [
            IpAddr::V4(Ipv4Addr::LOCALHOST),
            IpAddr::V6(Ipv6Addr::LOCALHOST),
        ];
        for (address, port) in families.into_iter().zip(of_kind) {
            for thread in 0..threads {
                match make(thread, host, SocketAddr::new(address, *port)) {
                    Ok(at) => *port = at.port(),
                    // Without IPv6 nobody asks by it.
                    Err(_) if address.is_ipv6() && *port == 0 => break,
                    Err(error) => return Err(error),
                }
            }
        }
    }
    Ok(listening)
}
