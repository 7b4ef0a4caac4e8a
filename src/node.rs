//! The parts, wired: the router, the journal of attachments, and the desk that serves requests one after another.
//!
//! A [`Node`] is a handle that can be cloned. What only looks (status, peers, connections, the list of containers) is
//! answered at once from snapshots. What changes something goes to the [`Desk`], a single task, so that no two changes
//! meet half way and none is abandoned half way when the caller goes away.

mod addresses;
mod attaching;
mod book;
mod capture;
mod checking;
mod cni;
mod containers;
mod declaring;
mod desk;
mod docker;
mod facts;
mod floating;
mod flow_watch;
mod given;
mod host;
mod inside;
mod ipam;
mod journal;
mod leaving;
mod members;
mod missing;
mod networks;
mod notes;
mod operations;
mod pcap;
mod publishing;
mod resolve;
mod responder;
mod runtimes;
mod seat;
mod secret;
mod services;
mod sheets;
mod sight;
mod sockets;
mod sweep;
mod targets;
mod testing;
mod tools;
mod trace;
mod tracking;
mod traffic;
mod view;
mod works;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::{Mutex, mpsc, oneshot, watch};
use weave_model::api::{
    AttachRequest, Attachment, Attachments, CniFindings, CniGcRequest, CniRef, Code, Connections,
    ExposeRequest, HostAddress, InitRequest, JoinRequest, Membership, NetworkInfo, NetworkRequest,
    Peers, Refusal, ServiceInfo, ServiceRequest, Services, Status, TokenAnswer, TokenRequest,
    Verdict,
};
use weave_model::docker::Call;
use weave_model::{ContainerName, IfName, NetworkName, ServiceName};
use weave_proxy::driver::Engine;
use weave_router::core::tally;
use weave_router::driver::{self, Offloads, Router, RouterConfig, Stats};

use crate::config::{Config, Facility, FlowWatch};
use crate::obstacle::Obstacle;
use crate::vital::Vitals;

pub use capture::CaptureQuery;
pub use desk::Desk;
pub use docker::{Answer as DockerAnswer, Lent, Pool};
pub(crate) use facts::own_netns;
pub(crate) use host::TUN;
pub use ipam::AddressUse;
pub(crate) use operations::ALLOCATE;
pub use operations::{Runtime, Tallies, Tally};
pub use sight::FlowsSeen;

use book::Book;
use desk::{Job, Reply};
use facts::Facts;
use host::HostSide;
use journal::Journal;
use operations::Operations;
use services::{Known, Memory, Serving};
use sight::Sight;
use works::Works;

/// How many changes may wait; a caller beyond that waits to be let in.
const WAITING: usize = 256;

/// A handle to the running node.
#[derive(Clone)]
pub struct Node {
    shared: Arc<Shared>,
    jobs: mpsc::Sender<Job>,
}

/// What readers need.
struct Shared {
    config: Config,
    router: Arc<Router>,
    /// The book as it was after the last change, and what is amiss on this host.
    published: watch::Receiver<Published>,
    services: watch::Receiver<Known>,
    engine: Arc<Engine>,
    /// Flows, the picture of the mesh, and the page.
    sight: Sight,
    /// Seconds since the Unix epoch.
    started_at: u64,
    /// What was asked of other members.
    asked: notes::Asked,
    /// What container runtimes asked for, and the node itself.
    operations: Arc<Operations>,
    /// Held by the test that is under way.
    testing: Mutex<()>,
}

/// A handle that does not keep the desk at work: what outlasts a request holds this.
#[derive(Clone)]
struct AwayNode {
    shared: Arc<Shared>,
    jobs: mpsc::WeakSender<Job>,
}

impl AwayNode {
    /// The node, unless it is stopping.
    fn back(&self) -> Option<Node> {
        let jobs = self.jobs.upgrade()?;
        Some(Node {
            shared: Arc::clone(&self.shared),
            jobs,
        })
    }

    fn router(&self) -> &Router {
        &self.shared.router
    }

    fn asked(&self) -> &notes::Asked {
        &self.shared.asked
    }
}

impl std::fmt::Debug for AwayNode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AwayNode").finish_non_exhaustive()
    }
}

/// What the desk shows to readers.
#[derive(Clone, Default)]
struct Published {
    book: Arc<Book>,
    pairs: Arc<BTreeSet<String>>,
    obstacles: Arc<[Obstacle]>,
    swept: u64,
}

impl Published {
    /// Whether an attachment's namespace and its interface are still there.
    fn has(&self, entry: &book::Entry) -> bool {
        let ifname = entry.attachment.host_ifname.as_str();
        containers::is_alive(entry) && self.pairs.contains(ifname)
    }
}

fn start_router(config: &Config) -> Result<Arc<Router>, Obstacle> {
    let overlay = &config.overlay;
    let router = Router::start(RouterConfig {
        name: config.name.clone(),
        state_dir: config.state_dir.clone(),
        listen: overlay.listen,
        suites: overlay.suites.clone(),
        discovery: overlay.discovery,
        tun: TUN.to_owned(),
        offloads: offloads(&overlay.without),
    });
    router.map(Arc::new).map_err(|error| no_router(&error))
}

impl Node {
    /// Starts the router, reads the journal and adopts what a former run left on this host.
    pub async fn start(config: Config, vitals: &Vitals) -> Result<(Self, Desk), Obstacle> {
        let router = start_router(&config)?;
        let (journal, book) = Journal::open(&config.state_dir)?;
        let page = sight::open_page(&config, router.view().me)?;
        // Before there are connections; where the kernel cannot yet, it is tried again at every look.
        if config.sight.flows == FlowWatch::On {
            flow_watch::count_bytes();
        }
        let side = HostSide::open(&config)?;
        let (publisher, published) = watch::channel(Published::default());
        let files = (journal, book);
        let mut works = Works::new(config.clone(), Arc::clone(&router), side, files, publisher);
        works.begin().await;
        let operations = Arc::clone(&works.operations);
        let (jobs, waiting) = mpsc::channel(WAITING);
        let engine = Arc::new(Engine::start().map_err(|error| no_engine(&error))?);
        let (knower, services) = watch::channel(Known::default());
        let (checks, found) = checking::start(vitals.part("the checks of endpoints"));
        let serving = Serving {
            config: config.clone(),
            router: Arc::clone(&router),
            engine: Arc::clone(&engine),
            published: published.clone(),
            jobs: jobs.downgrade(),
            known: knower,
            checks,
            found,
            memory: Memory::new(Instant::now()),
        };
        serving.start(vitals.part("the watch of Services"));
        let sight = Sight::new(page, Facts::new(config.sight.runtimes.clone()));
        let shared = Shared {
            config,
            router,
            published,
            services,
            engine,
            sight,
            started_at: wall_seconds(),
            asked: notes::Asked::default(),
            operations,
            testing: Mutex::new(()),
        };
        let shared = Arc::new(shared);
        let node = Self { shared, jobs };
        if let Some(notes) = node.shared.router.notes() {
            notes::start(node.away(), notes, vitals.part("the answers to members"));
        }
        Ok((node, Desk::start(works, waiting, vitals.part("the desk"))))
    }

    /// A handle that does not keep the desk at work.
    fn away(&self) -> AwayNode {
        AwayNode {
            shared: Arc::clone(&self.shared),
            jobs: self.jobs.downgrade(),
        }
    }

    fn asked(&self) -> &notes::Asked {
        &self.shared.asked
    }

    /// Makes a cluster with this node as its first member.
    pub async fn init(&self, request: InitRequest) -> Result<Membership, Refusal> {
        self.ask(|reply| Job::Init(request, reply)).await
    }

    /// Makes a join token.
    pub async fn create_token(&self, request: TokenRequest) -> Result<TokenAnswer, Refusal> {
        self.ask(|reply| Job::Token(request, reply)).await
    }

    /// Joins the cluster that a token invites to.
    pub async fn join(&self, request: JoinRequest) -> Result<Membership, Refusal> {
        self.ask(|reply| Job::Join(request, reply)).await
    }

    /// Attaches a container; the same request again answers the same.
    pub async fn attach(&self, request: AttachRequest) -> Result<Attachment, Refusal> {
        let of_runtime = request.owner.is_some();
        let answer = self.ask(|reply| Job::Attach(Box::new(request), reply));
        if of_runtime {
            self.counted((Runtime::Cni, "add"), answer).await
        } else {
            answer.await
        }
    }

    /// Detaches a container, or one interface of it.
    pub async fn detach(
        &self,
        name: ContainerName,
        ifname: Option<IfName>,
    ) -> Result<Attachments, Refusal> {
        self.ask(|reply| Job::Detach(name, ifname, reply)).await
    }

    /// Frees the attachment that a CNI runtime names so; none is fine.
    pub async fn cni_del(&self, what: CniRef) -> Result<Attachments, Refusal> {
        let answer = self.ask(|reply| Job::CniDel(what, reply));
        self.counted((Runtime::Cni, "del"), answer).await
    }

    /// Looks whether an attachment still is as it was made.
    pub async fn cni_check(&self, what: CniRef) -> Result<CniFindings, Refusal> {
        let answer = self.ask(|reply| Job::CniCheck(what, reply));
        self.counted((Runtime::Cni, "check"), answer).await
    }

    /// Frees what a CNI runtime does not know any more.
    pub async fn cni_gc(&self, request: CniGcRequest) -> Result<Attachments, Refusal> {
        let answer = self.ask(|reply| Job::CniGc(request, reply));
        self.counted((Runtime::Cni, "gc"), answer).await
    }

    /// Gives the host addresses of its own; if it has some, those are the answer.
    pub async fn expose(&self, request: ExposeRequest) -> Result<HostAddress, Refusal> {
        self.ask(|reply| Job::Expose(request, reply)).await
    }

    /// Takes the host's own addresses.
    pub async fn hide(&self) -> Result<HostAddress, Refusal> {
        self.ask(Job::Hide).await
    }

    /// Does what Docker asks.
    pub async fn docker(&self, call: Call) -> Result<DockerAnswer, Refusal> {
        let name = call.name();
        let answer = self.ask(|reply| Job::Docker(Box::new(call), reply));
        self.counted((Runtime::Docker, name), answer).await
    }

    /// Makes a Service.
    pub async fn create_service(&self, request: ServiceRequest) -> Result<ServiceInfo, Refusal> {
        self.ask(|reply| Job::CreateService(Box::new(request), reply))
            .await
    }

    /// Removes a Service, whichever node it was made on.
    pub async fn remove_service(&self, name: ServiceName) -> Result<ServiceInfo, Refusal> {
        self.ask(|reply| Job::RemoveService(name, reply)).await
    }

    /// Makes a network.
    pub async fn create_network(&self, request: NetworkRequest) -> Result<NetworkInfo, Refusal> {
        self.ask(|reply| Job::MakeNetwork(request, reply)).await
    }

    /// Removes a network, whichever node it was made on.
    pub async fn remove_network(&self, name: NetworkName) -> Result<NetworkInfo, Refusal> {
        self.ask(|reply| Job::RemoveNetwork(name, reply)).await
    }

    /// What serves the Services, for the end, when it outlives the node's other parts.
    pub fn service_engine(&self) -> Arc<Engine> {
        Arc::clone(&self.shared.engine)
    }

    /// The Services of the cluster.
    pub fn services(&self) -> Services {
        let known = self.shared.services.borrow().clone();
        services::listed(&known, &self.shared.engine)
    }

    /// What is attached to this node.
    pub fn attachments(&self) -> Attachments {
        let published = self.shared.published.borrow().clone();
        let book = &published.book;
        let attachments = book.entries().map(|entry| Attachment {
            alive: published.has(entry),
            ..entry.attachment.clone()
        });
        Attachments {
            attachments: attachments.collect(),
            called: self.shared.sight.facts.called(book.entries()),
            host: book.host(),
        }
    }

    /// How many of Docker's containers are stopped and keep their addresses, as Docker has it.
    pub fn stopped_by_docker(&self) -> u32 {
        let published = self.shared.published.borrow().clone();
        let book = &published.book;
        let stopped = book.entries().filter(|entry| !published.has(entry));
        let stopped = stopped.filter(|entry| book.is_docker(entry));
        // As the status counts what is gone: by name.
        let names: BTreeSet<_> = stopped.map(|entry| &entry.attachment.name).collect();
        names.len() as u32
    }

    /// Whether all threads of the overlay run.
    pub fn is_healthy(&self) -> bool {
        self.shared.router.is_healthy()
    }

    /// How the node is.
    pub fn status(&self) -> Status {
        let Shared {
            config,
            router,
            published,
            sight,
            started_at,
            engine,
            ..
        } = &*self.shared;
        let mut published = published.borrow().clone();
        let shown = engine.shown();
        let relayed = shown.relay_failure.map(|failure| {
            let cause = format!("the kernel serves what services ask of the relay: {failure}");
            Obstacle::new(cause, "the relay needs Linux 5.12 or newer")
        });
        let kernel = shown.failure.map(|failure| {
            let fix = "look at the log of the kernel, and at: nft list ruleset";
            Obstacle::new(failure, fix)
        });
        let all = published.obstacles.iter().cloned();
        published.obstacles = all.chain(kernel).chain(relayed).collect();
        let mut status = view::status(
            config,
            *started_at,
            &router.view(),
            &router.stats(),
            &published,
        );
        for problem in sight.problems() {
            status.verdict = Verdict::Degraded;
            status.problems.push(problem);
        }
        let containers = self.attachments().attachments;
        status.gone = containers
            .into_iter()
            .filter(|one| !one.alive)
            .map(|one| one.name)
            .collect();
        status.gone.dedup();
        status
    }

    /// The members of the cluster.
    pub fn peers(&self) -> Peers {
        view::peers(&self.shared.router.view())
    }

    /// The sessions with other members.
    pub fn connections(&self) -> Connections {
        view::connections(&self.shared.router.view(), &self.shared.router.stats())
    }

    /// What crosses the overlay, and what members tell one another.
    pub fn overlay(&self) -> (Stats, tally::Tally) {
        (self.shared.router.stats(), self.shared.router.tally())
    }

    /// What container runtimes had this node do.
    pub fn operations(&self) -> Tallies {
        self.shared.operations.tallies()
    }

    async fn counted<A>(
        &self,
        of: (Runtime, &'static str),
        answer: impl Future<Output = Result<A, Refusal>>,
    ) -> Result<A, Refusal> {
        self.shared.operations.counted(of, answer).await
    }

    async fn ask<A>(&self, job: impl FnOnce(Reply<A>) -> Job) -> Result<A, Refusal> {
        let stopping = || {
            Refusal::new(
                Code::NotReady,
                "the node is stopping",
                "ask again when it has started",
            )
        };
        let (reply, answer) = oneshot::channel();
        self.jobs.send(job(reply)).await.map_err(|_| stopping())?;
        answer.await.map_err(|_| stopping())?
    }
}

fn offloads(without: &[Facility]) -> Offloads {
    let has = |facility| !without.contains(&facility);
    Offloads {
        gso: has(Facility::Gso),
        gro: has(Facility::Gro),
        uso: has(Facility::Uso),
        big_tcp: has(Facility::BigTcp),
        multiqueue: has(Facility::Multiqueue),
    }
}

fn no_router(error: &driver::Error) -> Obstacle {
    let fix = match error {
        driver::Error::Tun { .. } => {
            "stop whatever uses that device, or remove it: ip link delete weave0"
        }
        driver::Error::Listen { .. } => "choose another address or port with --listen",
        driver::Error::Socket(_) => "raise the limits of this process",
        driver::Error::State(error) => return Obstacle::from_error(error),
        driver::Error::LaterVersion(_) => "start the newer weaved",
    };
    Obstacle::new(error.to_string(), fix)
}

fn no_engine(error: &std::io::Error) -> Obstacle {
    let cause = format!("missing kernel feature: nftables or connection tracking: {error}");
    Obstacle::new(
        cause,
        "load the kernel modules: modprobe nf_tables nf_conntrack_netlink",
    )
}

/// Milliseconds since the Unix epoch.
fn wall_millis() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_millis() as u64)
}

/// Seconds since the Unix epoch.
fn wall_seconds() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}
