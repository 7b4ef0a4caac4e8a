//! What the desk does for each request, and how it looks after the host in between.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use tokio::sync::watch;
use weave_linux::conntrack;
use weave_model::api::{
    Code, DEFAULT_RANGE, ExposeRequest, HostAddress, InitRequest, JoinRequest, Membership, Refusal,
    TokenAnswer, TokenRequest,
};
use weave_model::{BadRange, BadToken, ClusterRange, NetworkName};
use weave_router::attach::{self, glance::Glance};
use weave_router::core::command::{Command, CommandError, Reply, Taken};
use weave_router::driver::Router;

use super::book::Book;
use super::host::HostSide;
use super::journal::Journal;
use super::missing::Missing;
use super::operations::{ALLOCATE, Operations, Runtime};
use super::tracking::TrackingWatch;
use super::{Published, addresses, containers, sheets};
use crate::config::Config;
use crate::obstacle::{Obstacle, cause_and_fix};

/// How long an attach waits for this node's part of a network that has just been made.
const PART_WAIT: Duration = Duration::from_secs(5);

/// How long after that it is not waited for again.
const PART_AGAIN: Duration = Duration::from_secs(30);

/// How often it looks meanwhile.
const PART_PAUSE: Duration = Duration::from_millis(20);

/// The lease of the host itself. No container's name is empty.
pub(super) const HOST_LEASE: &str = "/host";

/// The lease of the address by which endpoints of other nodes see this one.
pub(super) const SERVICE_LEASE: &str = "/service";

/// What the desk works with.
pub(super) struct Works {
    pub(super) config: Config,
    pub(super) router: Arc<Router>,
    pub(super) side: HostSide,
    pub(super) book: Book,
    pub(super) journal: Journal,
    pub(super) published: watch::Sender<Published>,
    /// The host's ends of containers' pairs that there are.
    pub(super) pairs: Arc<BTreeSet<String>>,
    /// What is amiss on this host.
    pub(super) obstacles: Arc<[Obstacle]>,
    /// The addresses that the others were told last.
    pub(super) told: Vec<SocketAddr>,
    /// What those were found from.
    pub(super) outlook: Glance<Vec<IpAddr>>,
    /// The ranges that this host has otherwise, for the sake of services.
    pub(super) taken: Glance<Vec<Taken>>,
    /// DELs of CNI's journal that are done and whose files could not be removed, by path and time of change.
    pub(super) drained: BTreeSet<(PathBuf, SystemTime)>,
    /// Interfaces of attachments that were not there at the last look.
    pub(super) missing: Missing,
    /// What was done so far, addresses that were found included.
    pub(super) operations: Arc<Operations>,
    /// How many attachments were freed because their interface was gone.
    pub(super) swept: u64,
    /// The container that is to be looked at closely next, by its place in the book.
    pub(super) turn: usize,
    /// How much room the kernel had for connections.
    pub(super) tracking: TrackingWatch,
    /// Why this node has no address for the sake of services, as it was told last.
    pub(super) no_source: Option<Refusal>,
    /// Networks of which this node was given no part in time, and when.
    pub(super) no_part: BTreeMap<NetworkName, Instant>,
}

impl Works {
    /// What a node begins with; the journal comes with what was in it.
    pub(super) fn new(
        config: Config,
        router: Arc<Router>,
        side: HostSide,
        (journal, book): (Journal, Book),
        published: watch::Sender<Published>,
    ) -> Self {
        Self {
            config,
            router,
            side,
            book,
            journal,
            published,
            pairs: Arc::default(),
            obstacles: Arc::default(),
            told: Vec::new(),
            outlook: Glance::default(),
            taken: Glance::default(),
            drained: BTreeSet::new(),
            missing: Missing::default(),
            operations: Arc::default(),
            swept: 0,
            turn: 0,
            tracking: TrackingWatch::default(),
            no_source: None,
            no_part: BTreeMap::new(),
        }
    }

    /// Puts this host in order, as the book has it, before anybody asks for anything.
    pub(super) async fn begin(&mut self) {
        self.apply_networks().await;
        self.look_after().await;
        self.adopt().await;
    }

    /// Makes a cluster, if its range is free on this host.
    pub(super) async fn init(&mut self, request: InitRequest) -> Result<Membership, Refusal> {
        self.outside_of_clusters()?;
        let default: Ipv4Net = DEFAULT_RANGE.parse().expect("the default is a range");
        let v4 = request.range.unwrap_or(default);
        // Without a wish the range comes from a key that is yet to be made; until then a range that no host has
        // (RFC 3849) stands for it.
        let nowhere = Ipv6Net::new_assert([0x2001, 0xdb8, 0, 0, 0, 0, 0, 0].into(), 48);
        let range = ClusterRange::new(v4, request.range6.unwrap_or(nowhere))
            .map_err(|error| bad_range(&error))?;
        self.side
            .host
            .check_overlap(&range)
            .await
            .map_err(|error| init_refused(&error))?;
        let command = Command::Init {
            v4: range.v4(),
            v6: request.range6,
        };
        self.became_member(command).await
    }

    /// Joins a cluster.
    pub(super) async fn join(&mut self, request: JoinRequest) -> Result<Membership, Refusal> {
        self.outside_of_clusters()?;
        let token = request.token.parse().map_err(|error| bad_token(&error))?;
        let taken = addresses::taken(&mut Glance::default())
            .await
            .map_err(|error| {
                let cause = format!("cannot see which addresses this host uses: {error}");
                Refusal::new(
                    Code::Failed,
                    cause,
                    "look at the log of weaved and of the kernel",
                )
            })?;
        self.became_member(Command::Join { token, taken }).await
    }

    fn outside_of_clusters(&self) -> Result<(), Refusal> {
        let Some(range) = self.router.view().range else {
            return Ok(());
        };
        Err(CommandError::AlreadyMember(range.v4()).into())
    }

    async fn became_member(&mut self, command: Command) -> Result<Membership, Refusal> {
        let Reply::Member { node, range } = self.router.command(command).await? else {
            return Err(strange_reply());
        };
        self.look_after().await;
        self.adopt().await;
        let members = self.router.view().members.len() as u32 + 1;
        Ok(Membership {
            node,
            range: range.v4(),
            range6: range.v6(),
            members,
        })
    }

    /// Makes a join token that carries the addresses other hosts may reach this one at.
    pub(super) async fn create_token(
        &mut self,
        request: TokenRequest,
    ) -> Result<TokenAnswer, Refusal> {
        self.tell_endpoints().await;
        let command = Command::TokenCreate {
            ttl: Duration::from_secs(request.ttl_s),
            uses: request.uses,
            addresses: Vec::new(),
        };
        let Reply::Token(token, expires) = self.router.command(command).await? else {
            return Err(strange_reply());
        };
        Ok(TokenAnswer {
            token: token.to_string(),
            expires_at: expires.as_secs(),
            uses: request.uses,
            addresses: token.addresses,
        })
    }

    /// Gives the host addresses of its own. If it has some, those are the answer.
    pub(super) async fn expose(&mut self, request: ExposeRequest) -> Result<HostAddress, Refusal> {
        let range = self.range()?;
        if let Some(has) = self.book.host() {
            return match request
                .ip
                .filter(|ip| *ip != has.ip && Some(*ip) != has.ip6.map(Into::into))
            {
                None => Ok(has),
                Some(ip) => {
                    let cause = format!("the host is exposed already, with {}, not {ip}", has.ip);
                    Err(Refusal::new(
                        Code::Conflict,
                        cause,
                        "leave --ip out, or take that one: weavectl hide",
                    ))
                }
            };
        }
        let want = request
            .ip
            .map(|ip| containers::offset_in(&range, ip))
            .transpose()?;
        let offset = self.allocate(HOST_LEASE, want).await?;
        if let Err(error) = self.side.host.expose(&range, offset).await {
            self.release(HOST_LEASE).await;
            return Err(containers::refused(&error));
        }
        let ip6 = self.side.ipv6().then(|| range.v6_at(offset));
        let address = HostAddress {
            ip: range.v4_at(offset),
            ip6,
        };
        self.book.set_host(Some(address));
        if let Err(refusal) = self.save() {
            self.book.set_host(None);
            if let Err(error) = self.side.host.hide(&range).await {
                tracing::warn!(%error, "the host's address cannot be taken back");
            }
            self.release(HOST_LEASE).await;
            return Err(refusal);
        }
        Ok(address)
    }

    /// Takes the host's own addresses.
    pub(super) async fn hide(&mut self) -> Result<HostAddress, Refusal> {
        let range = self.range()?;
        let Some(address) = self.book.host() else {
            return Err(Refusal::new(
                Code::NotFound,
                "the host is not exposed",
                "expose it with: weavectl expose",
            ));
        };
        self.side
            .host
            .hide(&range)
            .await
            .map_err(|error| containers::refused(&error))?;
        self.book.set_host(None);
        if let Err(refusal) = self.save() {
            // It is exposed as before: the next look gives it its addresses again.
            self.book.set_host(Some(address));
            self.publish();
            return Err(refusal);
        }
        self.release(HOST_LEASE).await;
        Ok(address)
    }

    /// Puts right what is ours on this host, tells the others new addresses of it, and publishes what is amiss.
    pub(super) async fn look_after(&mut self) {
        self.drain_cni_journal().await;
        self.learn_namespaces();
        self.tell_endpoints().await;
        let obstacles = match self.router.view().range {
            Some(range) => {
                let exposed = self.book.host().and_then(|host| range.offset_v4(host.ip));
                self.side.ensure(range, exposed).await
            }
            None => Vec::new(),
        };
        let mut obstacles = obstacles;
        if let Some(range) = self.router.view().range {
            obstacles.extend(self.mend(range).await);
            obstacles.extend(self.mend_ports(range));
            self.settle_floating().await;
        }
        obstacles.extend(self.route_services().await);
        obstacles.extend(self.network_obstacles());
        obstacles.extend(sheets::obstacle(&self.book));
        obstacles.extend(self.tracking.look(conntrack::load().ok()));
        self.obstacles = obstacles.into();
        if self.tell_ports().await {
            self.sweep().await;
        }
        self.publish();
    }

    /// Tells the others where this host can be reached, when that has changed.
    async fn tell_endpoints(&mut self) {
        let overlay = &self.config.overlay;
        let endpoints = if overlay.advertise.is_empty() {
            let (range, outlook) = (self.router.view().range, &mut self.outlook);
            match addresses::reachable(overlay.listen, range, outlook).await {
                Ok(found) => found,
                Err(error) => {
                    tracing::warn!(%error, "cannot find this host's addresses");
                    return;
                }
            }
        } else {
            overlay.advertise.clone()
        };
        if endpoints == self.told {
            return;
        }
        match self
            .router
            .command(Command::SetEndpoints {
                endpoints: endpoints.clone(),
            })
            .await
        {
            Ok(_) => {
                tracing::info!(?endpoints, "reachable at");
                self.told = endpoints;
            }
            Err(error) => tracing::warn!(%error, "cannot tell the others where this host is"),
        }
    }

    /// The cluster's range, once there is one.
    pub(super) fn range(&self) -> Result<ClusterRange, Refusal> {
        self.router
            .view()
            .range
            .ok_or_else(|| CommandError::NotMember.into())
    }

    /// Finds an address; the same lease gets the same again.
    pub(super) async fn allocate(
        &mut self,
        lease: &str,
        want: Option<u32>,
    ) -> Result<u32, Refusal> {
        self.allocate_of(&NetworkName::default_network(), lease, want)
            .await
    }

    /// Finds an address of a network. Of a network that has just been made this node's part may be on its way; but whoever
    /// else wants something waits meanwhile, so where it did not come it is not waited for again at once.
    pub(super) async fn allocate_of(
        &mut self,
        network: &NetworkName,
        lease: &str,
        want: Option<u32>,
    ) -> Result<u32, Refusal> {
        self.allocate_among(network, lease, want, &[]).await
    }

    /// The same, where it must lie in one of `runs` of offsets, if there are any.
    pub(super) async fn allocate_among(
        &mut self,
        network: &NetworkName,
        lease: &str,
        want: Option<u32>,
        runs: &[(u32, u32)],
    ) -> Result<u32, Refusal> {
        let operations = Arc::clone(&self.operations);
        let of = (Runtime::Node, ALLOCATE);
        operations
            .counted(of, self.find(network, lease, want, runs))
            .await
    }

    async fn find(
        &mut self,
        network: &NetworkName,
        lease: &str,
        want: Option<u32>,
        runs: &[(u32, u32)],
    ) -> Result<u32, Refusal> {
        let area = self.area_of(network);
        let began = Instant::now();
        let waited = |at: &Instant| began.saturating_duration_since(*at) < PART_AGAIN;
        let patience = match self.no_part.get(network).is_some_and(waited) {
            true => Duration::ZERO,
            false => PART_WAIT,
        };
        loop {
            let command = Command::Allocate {
                id: lease.to_owned(),
                want,
                among: runs.to_vec(),
                area,
            };
            let none_yet = match self.router.command(command).await {
                Ok(Reply::Address(offset)) => {
                    self.no_part.remove(network);
                    return Ok(offset);
                }
                Ok(_) => return Err(strange_reply()),
                Err(error @ CommandError::Exhausted { capacity: 0, .. }) if area.is_some() => error,
                Err(CommandError::Exhausted { .. }) if !runs.is_empty() => {
                    return Err(no_address_among());
                }
                Err(error) => return Err(address_refused(error)),
            };
            if began.elapsed() > patience {
                if !patience.is_zero() {
                    self.no_part.insert(network.clone(), Instant::now());
                }
                return Err(address_refused(none_yet));
            }
            tokio::time::sleep(PART_PAUSE).await;
        }
    }

    /// Gives an address back; a failure costs the address, not the request.
    pub(super) async fn release(&self, lease: &str) {
        if let Err(error) = self
            .router
            .command(Command::Release {
                id: lease.to_owned(),
            })
            .await
        {
            tracing::warn!(%error, lease, "cannot give an address back");
        }
    }

    /// Writes the book to the disk and shows it to readers.
    pub(super) fn save(&mut self) -> Result<(), Refusal> {
        self.write_down()?;
        self.publish();
        Ok(())
    }

    /// Writes the book to the disk.
    pub(super) fn write_down(&mut self) -> Result<(), Refusal> {
        self.journal.write(&self.book).map_err(|error| {
            let cause = format!("the journal of attachments cannot be written: {error}");
            Refusal::new(
                Code::Failed,
                cause,
                "free space on the disk of the state directory",
            )
        })
    }

    /// Shows readers what the desk knows.
    pub(super) fn publish(&self) {
        self.published.send_replace(Published {
            book: Arc::new(self.book.clone()),
            pairs: Arc::clone(&self.pairs),
            obstacles: Arc::clone(&self.obstacles),
            swept: self.swept,
        });
    }

    /// Ends the router's threads. Devices, routes and rules stay.
    pub(super) fn stop(self) {
        self.router.stop();
    }
}

pub(super) fn strange_reply() -> Refusal {
    Refusal::new(
        Code::Failed,
        "the router gave an answer that does not fit",
        "look at the log of weaved",
    )
}

/// Other members may have addresses in the ranges, but none comes from them for the sake of one container.
fn no_address_among() -> Refusal {
    Refusal::new(
        Code::Conflict,
        "this node has no free address in the ranges that are asked for",
        "give ranges of its own part of the network, which weavectl ipam shows, or leave them out",
    )
}

fn bad_token(error: &BadToken) -> Refusal {
    let (cause, mut fix) = cause_and_fix(&error.to_string());
    if !fix.contains("weavectl token create") {
        fix.push_str(", or make a new one on a member with: weavectl token create");
    }
    Refusal::new(Code::Invalid, cause, fix)
}

fn bad_range(error: &BadRange) -> Refusal {
    let fix = match error {
        BadRange::Size(_) => "choose another range, for example --range 10.32.0.0/12",
        BadRange::Size6(_) => {
            "choose another range, for example --range6 fd12:3456:789a::/48, or leave it out"
        }
    };
    Refusal::new(Code::Invalid, error.to_string(), fix)
}

fn init_refused(error: &attach::Error) -> Refusal {
    let refusal = containers::refused(error);
    let fix = match error {
        attach::Error::Overlap {
            range: IpNet::V4(_),
            ..
        } => "choose a range that is free, with --range",
        attach::Error::Overlap {
            range: IpNet::V6(_),
            ..
        } => "choose a range that is free, with --range6",
        _ => return refusal,
    };
    Refusal {
        fix: fix.to_owned(),
        ..refusal
    }
}

/// Why there is no address; the fix names the flag.
fn address_refused(error: CommandError) -> Refusal {
    let fix = match &error {
        CommandError::AddressTaken { .. }
        | CommandError::Reserved(_)
        | CommandError::Outside(_) => "give another address with --ip, or leave it out".to_owned(),
        CommandError::HasOther { .. } => "leave --ip out, or detach it first".to_owned(),
        CommandError::Elsewhere { node, .. } => {
            format!("attach the container on {node}, or give another address with --ip")
        }
        _ => return error.into(),
    };
    Refusal {
        fix,
        ..Refusal::from(error)
    }
}
