//! What the core knows, as an immutable snapshot for the data path and for people.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use weave_model::{Block, ClusterRange, NodeId, NodeName, PathReason, Suite};

use super::Core;
use super::command::SecretState;
use super::dialled::Discovery;
use crate::keys::NodePublic;
use crate::mesh::deed::{Run, Version, paint};
use crate::mesh::record::Record;
use crate::mesh::topology::Topology;

/// Who owns an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// This node.
    Me,
    /// The member at this place in [`View::members`].
    Member(u32),
}

/// Another member of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its identity.
    pub id: NodeId,
    /// Its label.
    pub name: NodeName,
    /// Its keys.
    pub public: NodePublic,
    /// It may invite, remove, and make others admins.
    pub admin: bool,
    /// Where it says it can be reached.
    pub endpoints: Vec<SocketAddr>,
    /// The addresses it owns.
    pub blocks: Vec<Block>,
    /// Whether it can be reached: there is a session in which it answers, or one can be made as far as others tell.
    pub connected: bool,
    /// Since when that is so, since the Unix epoch; absent before the first session of this run.
    pub since: Option<Duration>,
    /// Where its packets go; absent without a session, and where they go through a relay.
    pub endpoint: Option<SocketAddr>,
    /// The member that hands its packets on.
    pub via: Option<NodeId>,
    /// Since when packets take this way, since the Unix epoch, and why; absent without a session.
    pub way: Option<(Duration, PathReason)>,
    /// Of a thousand pings by this way, how many are lost.
    pub loss: Option<u16>,
    /// The suite of the session.
    pub suite: Option<Suite>,
    /// Since when its keys are in use, since the Unix epoch.
    pub keys: Option<Duration>,
    /// Smoothed round-trip time in microseconds.
    pub rtt_us: Option<u32>,
    /// At which address it sees this node.
    pub observed: Option<SocketAddr>,
}

/// How this node's addresses of one network are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AreaUse {
    /// The network's area; absent for the rest of the range.
    pub area: Option<Block>,
    /// How many addresses of it this node can give.
    pub capacity: u32,
    /// How many of them are given.
    pub used: u32,
    /// Other members were asked for more of it, and have not given any yet.
    pub asking: bool,
}

/// Addresses of a removed node that wait for members to confirm.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// The node.
    pub of: NodeId,
    /// Its label, if it was known.
    pub name: Option<NodeName>,
    /// Who has yet to confirm.
    pub silent: Vec<NodeId>,
}

/// The cluster as this node knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// This node.
    pub me: NodeId,
    /// Its label.
    pub name: NodeName,
    /// Where it says it can be reached, the observed addresses last.
    pub endpoints: Vec<SocketAddr>,
    /// The cluster's id, the hash of its key; absent outside of a cluster.
    pub cluster: Option<[u8; 32]>,
    /// The cluster's addresses; absent outside of a cluster.
    pub range: Option<ClusterRange>,
    /// This node may invite, remove, and make others admins.
    pub admin: bool,
    /// The addresses that this node owns, ascending.
    pub mine: Vec<Block>,
    /// How many addresses those can give.
    pub capacity: u32,
    /// How many of them are given.
    pub used: u32,
    /// The same for each network, the default one first.
    pub areas: Vec<AreaUse>,
    /// Why the node's state cannot be saved, while that is so: nothing is allocated or given away then.
    pub storage_failure: Option<String>,
    /// The other members, by id.
    pub members: Vec<Member>,
    /// Who counts as a member though nothing was heard of it yet, and where it is or was: nodes that were let in and did
    /// not come, and in a node that joins the one that let it in.
    pub awaited: BTreeMap<NodeId, Option<SocketAddr>>,
    /// An admin has removed this node.
    pub removed: bool,
    /// Where another process with this node's identity was told to be reached; absent if there is none.
    pub twin: Option<Vec<SocketAddr>>,
    /// That process has run longer: this one takes no part any more.
    pub gave_way: bool,
    /// Whether members are dialled where they say they are.
    pub discovery: Discovery,
    /// Where this node looks for members because it was told to, and who answered there.
    pub dialled: BTreeMap<SocketAddr, Option<NodeId>>,
    /// How it stands with the cluster's secret; absent outside of a cluster.
    pub secret: Option<SecretState>,
    /// Members that are refused because they missed a change of the secret.
    pub turned_away: Vec<NodeId>,
    /// Who refuses this node because it missed one, and the epoch of the cluster.
    pub outdated: Option<(NodeId, u32)>,
    /// Who refuses this node because it was removed, as far as that one says; it was away when the others heard of it.
    pub dismissed: Option<NodeId>,
    /// How many records and sheets of members are left because reading them panicked; see
    /// [`crate::mesh::quarantine`].
    pub quarantined: u64,
    /// How many deeds members told of that they did not prove; see [`crate::mesh::inquiry`].
    pub unproven: u64,
    /// What this node is the heir of, but may not take yet; itself, after its disk was put back to an older copy.
    pub waiting: Vec<Waiting>,
    /// What the other members tell of their containers and Services; nobody has checked it.
    pub sheets: BTreeMap<NodeId, Arc<[u8]>>,
    /// Who has sessions with whom, and by which tree broadcasts go.
    pub topology: Arc<Topology>,
    owners: Vec<Run<Owner>>,
}

impl View {
    /// The view of a node that knows nothing but itself.
    pub fn empty(me: NodeId, name: NodeName) -> Self {
        Self {
            me,
            name,
            endpoints: Vec::new(),
            cluster: None,
            range: None,
            admin: false,
            mine: Vec::new(),
            capacity: 0,
            used: 0,
            areas: Vec::new(),
            storage_failure: None,
            members: Vec::new(),
            awaited: BTreeMap::new(),
            removed: false,
            twin: None,
            gave_way: false,
            discovery: Discovery::On,
            dialled: BTreeMap::new(),
            secret: None,
            turned_away: Vec::new(),
            outdated: None,
            dismissed: None,
            quarantined: 0,
            unproven: 0,
            waiting: Vec::new(),
            sheets: BTreeMap::new(),
            topology: Arc::default(),
            owners: Vec::new(),
        }
    }

    /// Sets who owns what: `claims` are the members' blocks, each with its version. What is left of this node's own
    /// after conflicts lies above all.
    pub(super) fn set_owners(&mut self, mut claims: Vec<(Block, Version, Owner)>) {
        let top = Version {
            counter: u64::MAX,
            boot: u64::MAX,
        };
        claims.extend(self.mine.iter().map(|block| (*block, top, Owner::Me)));
        self.owners = paint(claims);
    }

    /// Makes this node's blocks the only ones that are owned.
    pub fn claim_own(&mut self) {
        self.set_owners(Vec::new());
    }

    /// Who owns the address at an offset, by binary search.
    pub fn owner(&self, offset: u32) -> Option<Owner> {
        let after = self.owners.partition_point(|run| run.0 <= offset);
        let run = self.owners.get(after.checked_sub(1)?)?;
        (offset <= run.1).then_some(run.2)
    }

    /// All that is owned: first offset, last offset, owner; ascending, disjoint, neighbours of one owner joined.
    pub fn owners(&self) -> &[(u32, u32, Owner)] {
        &self.owners
    }

    /// The member with this id.
    pub fn member(&self, id: NodeId) -> Option<&Member> {
        let at = self
            .members
            .binary_search_by_key(&id, |member| member.id)
            .ok()?;
        self.members.get(at)
    }
}

impl Core {
    /// What the core knows now.
    pub(super) fn look(&self) -> View {
        let mut view = View::empty(self.me, self.config.name.clone());
        view.endpoints = self.all_endpoints();
        view.discovery = self.config.discovery;
        view.storage_failure = self.saving.failure().map(str::to_owned);
        let Some(membership) = self.membership.as_ref().filter(|_| self.active) else {
            return view;
        };
        view.cluster = Some(membership.public.id());
        view.range = Some(membership.range);
        view.admin = membership.authority(&self.keys).is_some();
        view.mine = self.ipam.blocks().to_vec();
        (view.capacity, view.used) = (self.ipam.capacity(), self.ipam.used());
        view.areas = self.look_at_areas();
        let alive = self.alive();
        let members = self.records.values();
        view.members = members.map(|record| self.look_at(record, &alive)).collect();
        let met = membership.acquaintances.iter();
        let met: BTreeMap<NodeId, SocketAddr> =
            met.map(|(public, at)| (public.id(), *at)).collect();
        let awaited = self.awaited().into_iter();
        view.awaited = awaited.map(|id| (id, met.get(&id).copied())).collect();
        view.topology = Arc::clone(&self.reach.topology);
        view.removed = self.removals.contains(self.me);
        view.twin.clone_from(&self.past.twin);
        view.gave_way = self.past.gave_way;
        view.dialled.clone_from(&self.dialled);
        view.secret = self.secret_state();
        view.turned_away = self.rotating.turned_away.iter().copied().collect();
        view.outdated = self.rotating.outdated;
        view.dismissed = self.rotating.dismissed;
        view.quarantined = self.quarantine.total();
        view.unproven = self.tally.unproven;
        let waiting = self.inquiries.0.keys().map(|of| Waiting {
            of: *of,
            name: self.last_name(*of),
            silent: self.silent_about(*of),
        });
        view.waiting = waiting.collect();
        view.sheets = self.sheets_of_members();
        let mut claims = Vec::new();
        for (at, record) in self.records.values().enumerate() {
            let owner = Owner::Member(at as u32);
            let claim = |block| {
                record
                    .version_of(block)
                    .map(|version| (block, version, owner))
            };
            claims.extend(record.blocks.iter().filter_map(|block| claim(*block)));
        }
        view.set_owners(claims);
        view
    }

    fn look_at_areas(&self) -> Vec<AreaUse> {
        let asked_for = self.asked_for();
        let of = |area| AreaUse {
            area,
            capacity: self.ipam.capacity_in(area),
            used: self.ipam.used_in(area),
            asking: asked_for == Some(area),
        };
        let areas = self.ipam.areas().iter().copied().map(Some);
        std::iter::once(None).chain(areas).map(of).collect()
    }

    fn look_at(&self, record: &Record, alive: &BTreeSet<NodeId>) -> Member {
        let id = record.node();
        let link = self.links.get(&id);
        let up = link.filter(|link| link.up);
        Member {
            id,
            name: record.name.clone(),
            public: record.public,
            admin: record.certificate.admin,
            endpoints: record.endpoints.clone(),
            blocks: record.blocks.clone(),
            connected: self.is_reached(id, alive),
            since: link.map(|link| link.since),
            endpoint: up.and_then(|link| link.way.address()),
            via: up.and_then(|link| link.way.relay()),
            way: up
                .and_then(|_| self.ways.paths.way(id))
                .map(|(_, since, reason)| (self.wall(since), reason)),
            loss: self.ways.paths.loss(id),
            suite: up.map(|link| link.suite),
            keys: self
                .sessions
                .status(id)
                .and_then(|status| status.since)
                .map(|since| self.wall(since)),
            rtt_us: self
                .ways
                .paths
                .rtt(id)
                .map(|rtt| rtt.as_micros().min(u32::MAX.into()) as u32),
            observed: self.ways.paths.observed_by(id),
        }
    }

    /// An instant of the past, since the Unix epoch.
    fn wall(&self, at: Instant) -> Duration {
        let past = self.now.mono.saturating_duration_since(at);
        self.now.wall.saturating_sub(past)
    }
}
