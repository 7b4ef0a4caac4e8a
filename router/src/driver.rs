//! The shell around the pure parts: threads, sockets, clocks and the disk.
//!
//! [`Router::start`] opens everything, starts the data threads ([`Workers`]) and one thread for control that owns the
//! [`Core`]. Commands are sent to that thread; what only looks reads a snapshot.

mod bulletin;
mod control;
mod generation;
mod lanes;
mod notes;
mod pmtu;
mod traffic;
mod workers;

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use tokio::sync::{mpsc, oneshot, watch};
use weave_linux::udp::Queue;
use weave_model::{NodeId, NodeName, PathMtu, Suite};

use crate::core::command::{Command, CommandError, Reply};
use crate::core::dialled::Discovery;
use crate::core::tally::Tally;
use crate::core::view::View;
use crate::core::{Config, Core};
use crate::path::Input;
use crate::path::routes::{Area, NextHop, Port};
use crate::path::stats::Sum;
use crate::store::{Store, StoreError};
use crate::time::{Now, Start};
use control::Control;
use generation::Watch;

pub use bulletin::{Bulletin, Bulletins, MAX_TEXT, Why};
pub use notes::{MAX_NOTE, Note};
pub use workers::{Granted, Offloads, Workers, WorkersConfig};

/// How many inputs of data threads may wait for the control thread.
const WAITING_INPUTS: usize = 1024;

/// Why the node cannot run, named after what its operator can do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The TUN device cannot be opened.
    #[error("cannot open the device {device}: {source}")]
    Tun {
        /// Its name.
        device: String,
        /// `NotFound`: no `/dev/net/tun`. `PermissionDenied`: no `CAP_NET_ADMIN`. `ResourceBusy`: in use.
        source: io::Error,
    },
    /// The node's port cannot be bound.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address asked for.
        address: SocketAddr,
        /// `AddrInUse`: another process has it.
        source: io::Error,
    },
    /// A socket or thread could not be made: limits or privileges.
    #[error("cannot open a socket: {0}")]
    Socket(io::Error),
    /// The state directory cannot be used.
    #[error(transparent)]
    State(#[from] StoreError),
    /// The saved state is none that this version can read.
    #[error("the state in {0} was written by a later version of weaved")]
    LaterVersion(PathBuf),
}

/// How a router is to run.
#[derive(Clone, Debug)]
pub struct RouterConfig {
    /// The node's label.
    pub name: NodeName,
    /// Where its state is kept.
    pub state_dir: PathBuf,
    /// Where to listen for datagrams.
    pub listen: SocketAddr,
    /// The suites it accepts; the first is the one it offers.
    pub suites: Vec<Suite>,
    /// Whether it dials members where they say they are.
    pub discovery: Discovery,
    /// The TUN device's name.
    pub tun: String,
    /// What to use of the kernel.
    pub offloads: Offloads,
}

/// The running overlay of one node. Dropping it stops the threads and leaves the devices.
#[derive(Debug)]
pub struct Router {
    shared: Arc<Shared>,
    wake: SyncSender<Input>,
    thread: Mutex<Option<JoinHandle<()>>>,
    notes: Mutex<Option<mpsc::Receiver<Note>>>,
    watch: Mutex<Option<Watch>>,
}

/// What the control thread shares with the handle.
#[derive(Debug)]
struct Shared {
    view: ArcSwap<View>,
    /// Told when there is another view.
    news: watch::Sender<()>,
    stats: Mutex<StatsSource>,
    tally: Mutex<Tally>,
    bulletins: ArcSwap<Bulletins>,
    /// When a member was answered last.
    told: Mutex<Option<Instant>>,
    orders: Mutex<Vec<Order>>,
    /// The kernel said that this machine was copied, and the control thread has not seen it yet.
    copied: AtomicBool,
}

/// Where [`Router::stats`] finds the counters.
#[derive(Debug)]
struct StatsSource {
    workers: Option<Arc<Workers>>,
}

/// What the handle wants of the control thread.
#[derive(Debug)]
enum Order {
    Command(Command, oneshot::Sender<Result<Reply, CommandError>>),
    Ports(BTreeMap<u32, Port>, Vec<Area>),
    Floating(BTreeMap<IpAddr, NodeId>),
    Post(Vec<u8>),
    Ask(Why),
    Note(NodeId, Vec<u8>),
    Stop,
}

/// Counters of the whole node.
#[derive(Clone, Debug, Default)]
pub struct Stats {
    /// From containers to members.
    pub sent: Sum,
    /// From members to containers.
    pub received: Sum,
    /// By member.
    pub peers: BTreeMap<NodeId, PeerStats>,
    /// What waits to be read from the node's port, of all lanes.
    pub queue: Queue,
    /// Every data thread runs, and the control thread.
    pub healthy: bool,
    /// What the kernel does for it.
    pub granted: Granted,
}

/// Counters of one member.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerStats {
    /// The lanes in use to it, ascending, and what the path of each carries.
    pub lanes: Vec<(u8, PathMtu)>,
    /// Packets of containers sent to it.
    pub sent_packets: u64,
    /// Bytes of these.
    pub sent_bytes: u64,
    /// Packets of containers received from it.
    pub received_packets: u64,
    /// Bytes of these.
    pub received_bytes: u64,
    /// How often new keys took the place of keys in use.
    pub rekeys: u64,
    /// How often a handshake was begun again because nothing came of the one before.
    pub retries: u64,
    /// How often a handshake came to an end as it should.
    pub handshakes: u64,
}

impl Router {
    /// Opens the state, the TUN device and the sockets in the namespace of the calling thread, then starts all threads.
    ///
    /// # Errors
    /// Says what is missing; nothing is left running.
    pub fn start(config: RouterConfig) -> Result<Self, Error> {
        let (store, found) = Store::open(&config.state_dir)?;
        if let Some(slot) = &found.damaged_slot {
            tracing::warn!(slot = %slot.display(), "one copy of the state is damaged; the other one is used");
        }
        let (wake, inputs) = sync_channel(WAITING_INPUTS);
        let start = Start::at(Instant::now());
        let workers = Arc::new(Workers::start(&WorkersConfig {
            tun: config.tun.clone(),
            listen: config.listen,
            offloads: config.offloads,
            inputs: wake.clone(),
            start,
        })?);
        let mut core = new_core(
            &config,
            found.content.as_deref().map(Vec::as_slice),
            &workers,
        )?;
        let shared = Arc::new(Shared {
            view: ArcSwap::new(core.view()),
            news: watch::Sender::default(),
            stats: Mutex::new(StatsSource {
                workers: Some(Arc::clone(&workers)),
            }),
            tally: Mutex::default(),
            bulletins: ArcSwap::default(),
            told: Mutex::default(),
            orders: Mutex::default(),
            copied: AtomicBool::new(false),
        });
        let watch = watch_copies(&shared, &wake);
        let (leave, notes) = notes::queue();
        let mut control = Control::new(core, store, workers, inputs, Arc::clone(&shared), leave);
        control.settle();
        let body = move || control.run();
        let thread = thread::Builder::new()
            .name("weave-control".into())
            .spawn(body)
            .map_err(Error::Socket)?;
        Ok(Self {
            shared,
            wake,
            thread: Mutex::new(Some(thread)),
            notes: Mutex::new(Some(notes)),
            watch: Mutex::new(watch),
        })
    }

    /// Has a command done; the answer comes when it is durable.
    ///
    /// # Errors
    /// Why it was not done.
    pub async fn command(&self, command: Command) -> Result<Reply, CommandError> {
        let (reply, answer) = oneshot::channel();
        self.order(Order::Command(command, reply));
        answer.await.unwrap_or(Err(CommandError::Stopping))
    }

    /// Says which interfaces belong to which addresses, for broadcast and multicast, and which ranges are networks of
    /// their own. Packets between networks are dropped.
    pub fn set_ports(&self, ports: BTreeMap<u32, Port>, mut areas: Vec<Area>) {
        areas.sort_unstable();
        self.order(Order::Ports(ports, areas));
    }

    /// Says who holds which floating address. One of a node that is no member is its owner's again.
    pub fn set_floating(&self, holders: BTreeMap<IpAddr, NodeId>) {
        self.order(Order::Floating(holders));
    }

    /// Says what this node tells members that ask; not if it is longer than [`MAX_TEXT`].
    pub fn post_bulletin(&self, text: Vec<u8>) {
        self.order(Order::Post(text));
    }

    /// Asks every connected member what it has to tell; [`Router::bulletins`] has what came.
    pub fn ask_bulletins(&self, why: Why) {
        self.order(Order::Ask(why));
    }

    /// When a member at which somebody looks was last told what this node has to tell.
    pub fn told_bulletin(&self) -> Option<Instant> {
        *lock(&self.shared.told)
    }

    /// What members told when they were last asked; those that are members no more are left out.
    pub fn bulletins(&self) -> Arc<Bulletins> {
        self.shared.bulletins.load_full()
    }

    /// The notes of other members, for the one who asks first. They end with the control thread.
    pub fn notes(&self) -> Option<mpsc::Receiver<Note>> {
        lock(&self.notes).take()
    }

    /// Sends a note of at most [`MAX_NOTE`] bytes to a member; it may be lost.
    pub fn send_note(&self, to: NodeId, bytes: Vec<u8>) {
        self.order(Order::Note(to, bytes));
    }

    /// The cluster as this node knows it.
    pub fn view(&self) -> Arc<View> {
        self.shared.view.load_full()
    }

    /// Changes whenever [`Router::view`] does.
    pub fn news(&self) -> watch::Receiver<()> {
        self.shared.news.subscribe()
    }

    /// What was sent, received and dropped.
    pub fn stats(&self) -> Stats {
        let control = runs(&self.thread);
        let source = lock(&self.shared.stats);
        let workers = source.workers.as_deref();
        let mut stats = workers.map_or_else(Stats::default, read_stats);
        stats.healthy &= control;
        stats
    }

    /// What the control core counted since the start.
    pub fn tally(&self) -> Tally {
        lock(&self.shared.tally).clone()
    }

    /// Whether every thread of the overlay runs; not once it was stopped.
    pub fn is_healthy(&self) -> bool {
        let workers = lock(&self.shared.stats).workers.clone();
        runs(&self.thread) && workers.is_some_and(|workers| workers.healthy())
    }

    /// Ends the threads; containers of this host keep talking to each other. Does nothing the second time.
    pub fn stop(&self) {
        *lock(&self.watch) = None;
        self.order(Order::Stop);
        let thread = lock(&self.thread).take();
        if let Some(thread) = thread {
            // A panic of the thread was reported when it happened.
            let _ = thread.join();
        }
        // What was asked while the thread ended: whoever waits hears that nobody will answer.
        lock(&self.shared.orders).clear();
        lock(&self.shared.stats).workers = None;
    }

    fn order(&self, order: Order) {
        lock(&self.shared.orders).push(order);
        // A full channel means that the thread is awake: it looks at the orders after every batch of inputs.
        if let Err(TrySendError::Disconnected(_)) = self.wake.try_send(Input::Look) {
            lock(&self.shared.orders).clear();
        }
    }
}

impl Drop for Router {
    fn drop(&mut self) {
        self.stop();
    }
}

fn new_core(config: &RouterConfig, saved: Option<&[u8]>, workers: &Workers) -> Result<Core, Error> {
    let terms = Config {
        name: config.name.clone(),
        suites: config.suites.clone(),
        preferred: config
            .suites
            .first()
            .copied()
            .unwrap_or(Suite::ChaCha20Poly1305),
        discovery: config.discovery,
        lanes: workers.lanes.len(),
    };
    let seed = generation::fresh().map_err(Error::Socket)?;
    Core::new(terms, saved, seed, now()).map_err(|_| Error::LaterVersion(config.state_dir.clone()))
}

/// Has the control thread told when this machine is copied, as far as the kernel says so.
fn watch_copies(shared: &Arc<Shared>, wake: &SyncSender<Input>) -> Option<Watch> {
    let (shared, wake) = (Arc::clone(shared), wake.clone());
    let tell = move || {
        shared.copied.store(true, Relaxed);
        // A full channel means that the thread is awake: it looks at this in every turn.
        let _ = wake.try_send(Input::Look);
    };
    let watch = Watch::start(tell);
    let warn = |error: &io::Error| tracing::warn!(%error, "copies of this machine are noticed by its clock only");
    watch.inspect_err(warn).ok()
}

fn read_stats(workers: &Workers) -> Stats {
    let (sent, received) = workers.counts();
    let routes = workers.routes.load();
    let peers = routes.peers.iter().map(|peer| {
        let (sent_packets, sent_bytes, received_packets, received_bytes) = peer.counters.read();
        let stats = PeerStats {
            lanes: peer.send.as_ref().map_or_else(Vec::new, NextHop::mtus),
            sent_packets,
            sent_bytes,
            received_packets,
            received_bytes,
            rekeys: peer.counters.rekeys.load(Relaxed),
            retries: peer.counters.retries.load(Relaxed),
            handshakes: peer.counters.handshakes.load(Relaxed),
        };
        (peer.id, stats)
    });
    Stats {
        sent,
        received,
        peers: peers.collect(),
        queue: workers.queue(),
        healthy: workers.healthy(),
        granted: workers.granted(),
    }
}

/// Whether a thread was started and neither ended nor panicked.
fn runs(thread: &Mutex<Option<JoinHandle<()>>>) -> bool {
    lock(thread)
        .as_ref()
        .is_some_and(|thread| !thread.is_finished())
}

/// Both clocks, read once.
fn now() -> Now {
    let wall = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    Now {
        mono: Instant::now(),
        wall,
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn a_control_thread_that_panicked_is_seen() {
        let (end, ended) = sync_channel::<()>(0);
        let body = move || ended.recv().expect("nobody sends: this is the panic");
        let control = Mutex::new(Some(thread::spawn(body)));
        assert!(runs(&control));
        drop(end);
        while !lock(&control).as_ref().unwrap().is_finished() {
            thread::yield_now();
        }
        assert!(!runs(&control));
        assert!(!runs(&Mutex::new(None)));
    }
}
