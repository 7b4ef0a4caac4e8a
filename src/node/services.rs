//! Services without Kubernetes: this node's sheet out, the others' sheets in, and what they say together to the engine.
//!
//! One task. It looks whenever the desk changed something, and four times a second at what the mesh knows: what is told,
//! what is resolved and what is reported to the engine is only what is other than last time. What has to be written
//! down (an address of this node for the purpose, a removal that was heard of) it leaves to the desk.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch::error::RecvError;
use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, interval, sleep};
use weave_model::api::{Backend, BackendState, RelayedBackend, ServiceInfo, Services};
use weave_model::{ClusterRange, EngineChoice, NodeId, NodeName, ServiceName, Sheet};
use weave_proxy::declared::{
    Declared, Member, Reported, VirtualRange, resolve, wanted, without_address,
};
use weave_proxy::driver::{Engine, Report};
use weave_proxy::facts::{ExternalIps, Facts, Unknown};
use weave_proxy::health::Wanted;
use weave_proxy::networks::{Network, Networks};
use weave_proxy::relay::Watch;
use weave_proxy::sources::Change;
use weave_proxy::table::{LeftOut, Table};
use weave_router::attach::glance::Glance;
use weave_router::core::command::Command;
use weave_router::core::view::{Owner, View};
use weave_router::driver::Router;

use super::book::Book;
use super::checking::Found;
use super::desk::Job;
use super::floating::{self, Holders};
use super::sheets::{Sheets, members, own_sheet, written};
use super::{Published, addresses, networks};
use crate::config::Config;
use crate::vital::Part;

/// Between two looks at a mesh that changes all the time.
const PAUSE: Duration = Duration::from_millis(250);

/// How often it is looked though nothing has changed: what was put off is tried again, and what waits for a time comes.
const LOOK: Duration = Duration::from_secs(1);

/// How often the host's addresses are looked at.
const ADDRESSES: Duration = Duration::from_secs(5);

/// How long after it was asked for the desk is asked again for an address that was not to be had, this node's or a Service's.
const ADDRESS_AGAIN: Duration = Duration::from_secs(5);

/// How long after its start a node believes in members that it has not met yet.
const GRACE: Duration = Duration::from_secs(10);

/// How long after its start a node waits for the first results of its checks before it says or does anything: what was
/// served before the start must not stop being so because nobody has looked yet.
const SETTLE: Duration = Duration::from_secs(3);

/// The Services as they were resolved last.
#[derive(Clone, Default)]
pub(super) struct Known {
    pub(super) declared: Arc<BTreeMap<ServiceName, Declared>>,
    names: Arc<BTreeMap<NodeId, NodeName>>,
}

/// The task.
pub(super) struct Serving {
    pub(super) config: Config,
    pub(super) router: Arc<Router>,
    pub(super) engine: Arc<Engine>,
    pub(super) published: watch::Receiver<Published>,
    pub(super) jobs: mpsc::WeakSender<Job>,
    pub(super) known: watch::Sender<Known>,
    /// What this node is to check, and what it found.
    pub(super) checks: watch::Sender<Arc<Wanted>>,
    pub(super) found: watch::Receiver<Found>,
    pub(super) memory: Memory,
}

/// What was so last time.
pub(super) struct Memory {
    started: Instant,
    /// Whether the first results of checks are here, or were waited for long enough.
    settled: bool,
    told: Option<Sheet>,
    /// What the addresses of this host were found from.
    outlook: Glance<Vec<IpAddr>>,
    sheets: Sheets,
    members: Vec<Member>,
    reported: Reported,
    facts: Facts,
    /// Who holds which floating address.
    floating: Holders,
    /// What the members say of networks and floating addresses may be other than what the desk wrote down.
    unsettled: bool,
    addresses: Addresses,
    /// When the desk was last asked for an address: this node's for the sake of Services, or another one for a Service.
    asked_for_address: Option<Instant>,
}

/// The host's own addresses.
#[derive(Default)]
struct Addresses {
    /// When they were looked at.
    looked: Option<Instant>,
    /// Those at which others reach it.
    reachable: BTreeSet<IpAddr>,
    /// All of them.
    all: BTreeSet<IpAddr>,
}

impl Memory {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            started: now,
            settled: false,
            told: None,
            outlook: Glance::default(),
            sheets: Sheets::default(),
            members: Vec::new(),
            reported: Reported::default(),
            facts: Facts::default(),
            floating: Holders::new(),
            unsettled: false,
            addresses: Addresses::default(),
            asked_for_address: None,
        }
    }
}

impl Serving {
    /// Starts the task. If it ends by itself, `part` tells.
    pub(super) fn start(self, part: Part) {
        tokio::spawn(async move {
            self.run().await;
            drop(part);
        });
    }

    /// Goes on until the desk is gone.
    async fn run(mut self) {
        let mut watch = interval(LOOK);
        watch.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut mesh = self.router.news();
        loop {
            let soonest = sleep(PAUSE);
            let changed = async {
                mesh.changed().await?;
                soonest.await;
                Ok::<_, RecvError>(())
            };
            tokio::select! {
                changed = self.published.changed() => if changed.is_err() { return },
                changed = self.found.changed() => if changed.is_err() { return },
                changed = changed => if changed.is_err() { return },
                _ = watch.tick() => {}
            }
            self.look().await;
        }
    }

    async fn look(&mut self) {
        let view = self.router.view();
        let Some(range) = view.range else {
            return self.forget();
        };
        let book = Arc::clone(&self.published.borrow_and_update().book);
        let found = self.found.borrow_and_update().clone();
        self.look_at_addresses(range).await;
        let virtuals = VirtualRange::new(self.config.services.range, range.v6());
        let young = self.memory.started.elapsed() < GRACE;
        let sheet = own_sheet(&book, &found.services);
        let members = members(&view, sheet.clone(), &mut self.memory.sheets, young);
        self.know_floating(&view, &book, &range, &members);
        let ranges = (&range, &virtuals);
        let addresses = &self.memory.addresses;
        let engine = self.config.services.engine;
        let facts = facts(&view, &book, ranges, addresses, &members, engine);
        let other_facts = self.memory.facts != facts;
        let news = self.memory.members != members;
        let declared = news.then(|| resolve(&members, &virtuals));
        match &declared {
            Some(declared) => self.want(wanted(view.me, declared, &facts)),
            None if other_facts => {
                let declared = Arc::clone(&self.known.borrow().declared);
                self.want(wanted(view.me, &declared, &facts));
            }
            None => {}
        }
        if !self.has_settled(&found) {
            return;
        }
        self.tell(sheet).await;
        let mut changes = Vec::new();
        if other_facts {
            self.memory.facts.clone_from(&facts);
            changes.push(Change::Facts(facts));
        }
        if let Some(declared) = declared {
            changes.extend(self.know(members, declared));
        }
        if !changes.is_empty() {
            self.engine.report(changes);
        }
        self.ask_desk(&book, &range, view.me);
    }

    /// Tells the data path who holds which floating address, when that has changed.
    fn know_floating(
        &mut self,
        view: &View,
        book: &Book,
        range: &ClusterRange,
        members: &[Member],
    ) {
        let holders = floating::holders_now(view, book, range, members);
        if self.memory.floating != holders {
            let of = holders.iter().map(|(ip, (_, node))| (*ip, *node));
            self.router.set_floating(of.collect());
            (self.memory.floating, self.memory.unsettled) = (holders, true);
        }
    }

    /// Outside of a cluster there are no Services: those of a cluster that was left go off this host.
    fn forget(&mut self) {
        self.memory.told = None;
        if !std::mem::take(&mut self.memory.floating).is_empty() {
            self.router.set_floating(BTreeMap::new());
        }
        if self.memory.facts == Facts::default() {
            return;
        }
        self.memory.facts = Facts::default();
        let mut changes = vec![Change::Facts(Facts::default())];
        changes.extend(self.know(Vec::new(), BTreeMap::new()));
        self.want(Wanted::default());
        self.engine.report(changes);
    }

    /// Has the desk write down what has to be. A full one is asked again at the next look.
    fn ask_desk(&mut self, book: &Book, range: &ClusterRange, me: NodeId) {
        let Some(jobs) = self.jobs.upgrade() else {
            return;
        };
        if self.memory.unsettled {
            let due = networks::unsettled(book, range, &self.memory.members, me).is_some()
                || !floating::lost(book, &self.memory.floating, me).is_empty();
            let asked = jobs.try_send(Job::SettleNetworks).is_ok();
            self.memory.unsettled = due && !asked;
        }
        let declared = Arc::clone(&self.known.borrow().declared);
        let lacks_address = lacks_source(book, &self.memory.members)
            || without_address(me, &declared).next().is_some();
        let asked = &mut self.memory.asked_for_address;
        let due = lacks_address && asked.is_none_or(|at| at.elapsed() >= ADDRESS_AGAIN);
        if due {
            *asked = Some(Instant::now());
        }
        if due || needs_desk(book, &self.memory.members, me) {
            let _ = jobs.try_send(Job::SettleServices);
        }
    }

    /// Takes what members tell now for what is known; what of it is new to the engine.
    fn know(
        &mut self,
        members: Vec<Member>,
        declared: BTreeMap<ServiceName, Declared>,
    ) -> Vec<Change> {
        let changes = self.memory.reported.changes(&declared);
        let names = members
            .iter()
            .map(|member| (member.id, member.name.clone()));
        self.known.send_replace(Known {
            declared: Arc::new(declared),
            names: Arc::new(names.collect()),
        });
        self.memory.members = members;
        self.memory.unsettled = true;
        changes
    }

    fn want(&self, wanted: Wanted) {
        self.checks.send_if_modified(|before| {
            let other = **before != wanted;
            if other {
                *before = Arc::new(wanted);
            }
            other
        });
    }

    /// Whether what the checks found may be acted on.
    fn has_settled(&mut self, found: &Found) -> bool {
        let wanted = Arc::clone(&self.checks.borrow());
        let all_checked = wanted.is_empty() || found.settled && found.of == wanted;
        self.memory.settled |= all_checked || self.memory.started.elapsed() > SETTLE;
        self.memory.settled
    }

    /// Tells the others what this node has, when that has changed.
    async fn tell(&mut self, sheet: Sheet) {
        if self.memory.told.as_ref() == Some(&sheet) {
            return;
        }
        let content = written(&sheet);
        match self.router.command(Command::SetSheet { content }).await {
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "others do not learn of this node's containers"),
        }
        self.memory.told = Some(sheet);
    }

    async fn look_at_addresses(&mut self, range: ClusterRange) {
        let Addresses {
            looked,
            reachable,
            all,
        } = &mut self.memory.addresses;
        if looked.is_some_and(|when| when.elapsed() < ADDRESSES) {
            return;
        }
        *looked = Some(Instant::now());
        let outlook = &mut self.memory.outlook;
        match addresses::reachable(self.config.overlay.listen, Some(range), outlook).await {
            Ok(found) => *reachable = found.into_iter().map(|address| address.ip()).collect(),
            Err(error) => tracing::warn!(%error, "cannot find this host's addresses"),
        }
        match addresses::local().await {
            Ok(found) => *all = found,
            Err(error) => tracing::warn!(%error, "cannot find this host's addresses"),
        }
    }
}

/// Whether there are Services, and no address by which endpoints of other nodes would see this host.
fn lacks_source(book: &Book, members: &[Member]) -> bool {
    let any = members
        .iter()
        .any(|member| !member.sheet.services.is_empty());
    any && book.services().source.is_none()
}

/// Whether something has to be written down: see [`super::works::Works::settle_services`].
fn needs_desk(book: &Book, members: &[Member], me: NodeId) -> bool {
    let services = book.services();
    let heard = |name: &ServiceName, stamp| {
        let removed = members.iter().flat_map(|member| &member.sheet.removed);
        let mut same = removed.filter(|one| one.maker == me && one.stamp == stamp);
        same.any(|one| one.name == *name)
    };
    let mut made = services.made.iter();
    made.any(|made| heard(&made.name, made.stamp))
        || services.removed.iter().any(|removed| {
            let maker = members.iter().find(|member| member.id == removed.maker);
            let made = maker.into_iter().flat_map(|maker| &maker.sheet.services);
            !made
                .clone()
                .any(|made| made.name == removed.name && made.stamp == removed.stamp)
        })
}

fn facts(
    view: &View,
    book: &Book,
    (range, virtuals): (&ClusterRange, &VirtualRange),
    addresses: &Addresses,
    members: &[Member],
    engine: EngineChoice,
) -> Facts {
    let own = match (book.host(), book.services().source) {
        (Some(host), _) => std::iter::once(IpAddr::V4(host.ip))
            .chain(host.ip6.map(IpAddr::V6))
            .collect(),
        (None, Some(source)) => both(range, source),
        (None, None) => Vec::new(),
    };
    Facts {
        node: view.me.to_string(),
        zone: None,
        addresses: addresses.reachable.clone(),
        no_endpoints: of_nodes(view, book, range, addresses, members),
        containers: vec![range.v4().into(), range.v6().into()],
        networks: apart(book, range),
        ranges: std::iter::once(virtuals.v4().into())
            .chain(virtuals.v6().map(Into::into))
            .collect(),
        unknown: Unknown::Refused,
        external_ips: ExternalIps::Refused,
        own,
        engine,
    }
}

/// The networks besides the default one.
fn apart(book: &Book, range: &ClusterRange) -> Networks {
    let families = book.networks().known.apart().flat_map(|network| {
        let part = range.part_of(network.range);
        let of = |range| Network {
            range,
            internal: network.spec.internal,
        };
        [of(part.v4().into()), of(part.v6().into())]
    });
    families.collect()
}

/// The addresses by which a node is meant: all of this host's, the networks' gateways, which every host is, and what is
/// known of the others: how they are reached, and what they have among the containers'. That is only what they say, so
/// it counts as far as it can be theirs: nobody has another's container refused that way.
fn of_nodes(
    view: &View,
    book: &Book,
    range: &ClusterRange,
    addresses: &Addresses,
    members: &[Member],
) -> BTreeSet<IpAddr> {
    let networks = book.networks().known.apart();
    let parts = networks.map(|network| range.part_of(network.range));
    let gateways = std::iter::once(*range)
        .chain(parts)
        .flat_map(|part| [IpAddr::from(part.gateway()), part.v6_at(1).into()]);
    let reached = view.members.iter().flat_map(|member| {
        let all = member.endpoints.iter();
        all.map(|endpoint| (member.id, endpoint.ip()))
    });
    let inside = members.iter().flat_map(|member| {
        let all = member.sheet.own.iter();
        all.flat_map(|own| both(range, *own).into_iter().map(|ip| (member.id, ip)))
    });
    let said = reached.chain(inside);
    said.filter(|(id, ip)| can_be_of(view, range, *id, *ip))
        .map(|(_, ip)| ip)
        .chain(addresses.reachable.union(&addresses.all).copied())
        .chain(gateways)
        .collect()
}

/// Whether a node may have an address: among the containers' only what lies in its own deeds.
fn can_be_of(view: &View, range: &ClusterRange, node: NodeId, address: IpAddr) -> bool {
    let Some(offset) = range.offset(address) else {
        return true;
    };
    match view.owner(offset) {
        Some(Owner::Me) => node == view.me,
        Some(Owner::Member(place)) => view.members[place as usize].id == node,
        None => false,
    }
}

/// An address of the containers' range, and its counterpart of the other family; none if it is outside.
fn both(range: &ClusterRange, address: Ipv4Addr) -> Vec<IpAddr> {
    range.offset_v4(address).map_or_else(Vec::new, |offset| {
        vec![range.v4_at(offset).into(), range.v6_at(offset).into()]
    })
}

/// The Services as the API shows them.
pub(super) fn listed(known: &Known, engine: &Engine) -> Services {
    let Report { table, relay, .. } = engine.shown();
    let relayed = relay.map_or_else(BTreeMap::new, |relay| by_endpoint(&relay));
    let info = |(name, declared): (&ServiceName, &Declared)| {
        let mut info = info(declared, &known.names);
        for backend in &mut info.backends {
            backend.relayed = relayed.get(&(name.clone(), backend.address)).copied();
        }
        if let Some(left_out) = table.refused.get(name) {
            note_left_out(left_out, &served(name, &table), &mut info);
        }
        if info.addresses.is_empty() {
            let address = declared.made.address;
            info.refused.push(format!(
                "{address}: another service has it, or it is outside of this node's --service-range"
            ));
        }
        info
    };
    Services {
        services: known.declared.iter().map(info).collect(),
    }
}

/// The addresses of a Service's endpoints that the table has.
fn served(name: &ServiceName, table: &Table) -> BTreeSet<IpAddr> {
    let entries = table.entries.iter();
    let of_service = entries.filter(|(key, _)| key.service == *name);
    of_service
        .flat_map(|(_, entry)| entry.serving.clone())
        .collect()
}

/// Says of what was left out why, and of an endpoint that is listed nowhere that it is not served.
fn note_left_out(left_out: &LeftOut, served: &BTreeSet<IpAddr>, info: &mut ServiceInfo) {
    let refused: BTreeSet<&str> = left_out.iter().map(|one| one.what.as_str()).collect();
    for backend in &mut info.backends {
        let unlisted = left_out.more() > 0
            && backend.state == BackendState::Ready
            && !served.contains(&backend.address.ip());
        if unlisted || refused.contains(&*backend.address.to_string()) {
            backend.state = BackendState::Refused;
        }
    }
    info.refused = left_out.iter().map(ToString::to_string).collect();
    if left_out.more() > 0 {
        info.refused
            .push(format!("{} more, for the same reasons", left_out.more()));
    }
}

/// What the relay sees, by Service and endpoint; of an endpoint behind several ports, all in all.
fn by_endpoint(relay: &Watch) -> BTreeMap<(ServiceName, SocketAddr), RelayedBackend> {
    let mut all: BTreeMap<(ServiceName, SocketAddr), RelayedBackend> = BTreeMap::new();
    for (key, seen) in relay.endpoints() {
        for one in seen {
            let latency_us = one.latency.map(|time| time.as_micros() as u64);
            let new = RelayedBackend {
                open: one.open,
                picks: one.counts.picks,
                failures: one.counts.failures,
                retries: one.counts.retries,
                ejections: one.counts.ejections,
                ejected: one.ejected,
                latency_us,
            };
            let place = all.entry((key.service.clone(), one.address));
            let add = |sum: &mut RelayedBackend| {
                sum.open += new.open;
                sum.picks += new.picks;
                sum.failures += new.failures;
                sum.retries += new.retries;
                sum.ejections += new.ejections;
                sum.ejected |= new.ejected;
                sum.latency_us = sum.latency_us.max(new.latency_us);
            };
            place.and_modify(add).or_insert(new);
        }
    }
    all
}

/// One Service as the API shows it.
pub(super) fn info(declared: &Declared, names: &BTreeMap<NodeId, NodeName>) -> ServiceInfo {
    let spec = &declared.made.spec;
    let backends = declared.backends.iter().flat_map(|backend| {
        let found = backend.check.as_ref().map(|check| &check.found);
        let (state, why) = match found {
            _ if !backend.reachable => (BackendState::Unreachable, None),
            None | Some(Some(Ok(()))) => (BackendState::Ready, None),
            // Of too many, the reasons are not told.
            Some(Some(Err(why))) => (
                BackendState::Failing,
                Some(why).filter(|why| !why.is_empty()),
            ),
            Some(None) => (BackendState::Unchecked, None),
        };
        let targets: BTreeSet<u16> = spec.ports.iter().map(|port| port.target).collect();
        let one = move |target| Backend {
            address: backend.at(target),
            container: backend.container.clone(),
            node: backend.node.and_then(|node| names.get(&node).cloned()),
            state,
            why: why.cloned(),
            relayed: None,
        };
        targets.into_iter().map(one)
    });
    let name_of = |id: &NodeId| {
        let nobody = || id.short().parse().expect("hex digits are a name");
        names.get(id).cloned().unwrap_or_else(nobody)
    };
    ServiceInfo {
        name: declared.made.name.clone(),
        addresses: declared.addresses.clone(),
        spec: spec.clone(),
        node: name_of(&declared.maker),
        made_at: declared.made.stamp / 1000,
        also_made_on: declared.hidden.iter().map(|(id, _)| name_of(id)).collect(),
        backends: backends.collect(),
        refused: Vec::new(),
        last_resort: declared.last_resort,
    }
}
