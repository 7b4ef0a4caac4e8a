//! Networks besides the default one: making, listing and removing them, and what follows on this host.
//!
//! What a node knows of networks stands in its book ([`Records`]), so that a restart keeps them apart before anybody was
//! heard. Whenever the sheets of others say something else, the desk settles the two ([`Works::settle_networks`]) and
//! tells the allocator, the data path and the rules.

mod choose;

use std::collections::{BTreeMap, BTreeSet};

use ipnet::Ipv4Net;
use weave_model::api::{Code, NetworkInfo, NetworkRequest, Networks, Refusal};
use weave_model::{
    Block, ClusterRange, ContainerName, DeclaredNetwork, LONGEST_PREFIX, MAX_NETWORKS, NetworkName,
    NetworkSpec, NodeId, NodeName, RemovedNetwork, Sheet, SheetContainer,
};
use weave_proxy::declared::Member;
use weave_router::core::command::{Command, Reply};
use weave_router::path::routes::{Area, DEFAULT_NETWORK};
use weave_router::rules::NetworkRules;

use super::book::Book;
use super::resolve::{self, Records};
use super::sheets;
use super::works::Works;
use super::{Node, wall_millis};
use crate::config::MTU_RANGE;
use crate::obstacle::Obstacle;

/// How many users of a network a refusal names.
const NAMED: usize = 5;

/// A container of a network, and its node.
type User = (ContainerName, NodeName);

/// What the desk should write down, if it is other than what stands there.
pub(super) fn unsettled(
    book: &Book,
    range: &ClusterRange,
    members: &[Member],
    me: NodeId,
) -> Option<Records> {
    let (own, others): (Vec<&Member>, Vec<&Member>) =
        members.iter().partition(|member| member.id == me);
    let own = own.first()?;
    let others: BTreeMap<NodeId, &Sheet> =
        others.into_iter().map(|one| (one.id, &one.sheet)).collect();
    let settled = book.networks().settled(range, &others, (me, &own.sheet));
    (settled != *book.networks()).then_some(settled)
}

impl Node {
    /// The networks of the cluster; none while there is no cluster.
    pub fn networks(&self) -> Networks {
        let view = self.shared.router.view();
        let Some(range) = view.range else {
            let networks = Vec::new();
            return Networks { networks };
        };
        let book = self.shared.published.borrow().book.clone();
        let members = sheets::members_now(&view, &book);
        let mut listed = listed(&book, &range, &members);
        for one in &mut listed.networks {
            let area = if one.name.is_default() {
                None
            } else {
                range.block(one.range)
            };
            if let Some(area) = view.areas.iter().find(|known| known.area == area) {
                (one.addresses, one.addresses_used) = (area.capacity, area.used);
            }
        }
        listed
    }
}

fn listed(book: &Book, range: &ClusterRange, members: &[Member]) -> Networks {
    let known = &book.networks().known;
    let all = known.networks.values().map(|network| {
        let going = network
            .going
            .then(|| "it is removed and goes with its last container".to_owned());
        info(&network.declared, range, members, going)
    });
    let lost = known.lost.iter().map(|(one, winner)| {
        let problem = format!("it cannot be beside {winner}, which is older");
        info(one, range, members, Some(problem))
    });
    let mut networks: Vec<NetworkInfo> = all.chain(lost).collect();
    networks.sort_by(|a, b| a.name.cmp(&b.name));
    let apart = networks.iter().filter(|one| !one.spec.floating);
    let others: u32 = apart.map(|one| one.containers).sum();
    let containers = users(members, range.v4()).len() as u32;
    let default = NetworkInfo {
        name: NetworkName::default_network(),
        range: range.v4(),
        range6: range.v6(),
        gateway: range.gateway(),
        spec: NetworkSpec::default(),
        containers: containers.saturating_sub(others),
        addresses: 0,
        addresses_used: 0,
        node: None,
        problem: None,
    };
    networks.insert(0, default);
    Networks { networks }
}

fn info(
    declared: &DeclaredNetwork,
    range: &ClusterRange,
    members: &[Member],
    problem: Option<String>,
) -> NetworkInfo {
    let part = range.part_of(declared.range);
    let maker = members.iter().find(|member| member.id == declared.maker);
    NetworkInfo {
        name: declared.name.clone(),
        range: declared.range,
        range6: part.v6(),
        gateway: part.gateway(),
        spec: declared.spec,
        containers: users_of(members, declared).len() as u32,
        addresses: 0,
        addresses_used: 0,
        node: maker.map(|maker| maker.name.clone()),
        problem,
    }
}

/// Who has an address in a range.
fn users(members: &[Member], net: Ipv4Net) -> Vec<User> {
    let of = |member: &Member| {
        let inside = |ip: &std::net::IpAddr| match ip {
            std::net::IpAddr::V4(v4) => net.contains(v4),
            std::net::IpAddr::V6(_) => false,
        };
        let containers = member.sheet.containers.iter();
        let users = containers.filter(|one| one.ips.iter().any(inside));
        let users = users.map(|one| (one.name.clone(), member.name.clone()));
        users.collect::<Vec<_>>()
    };
    let mut users: Vec<User> = members.iter().flat_map(of).collect();
    users.sort();
    users
}

/// Who is in a network; of a pool, who has an address of it.
fn users_of(members: &[Member], network: &DeclaredNetwork) -> Vec<User> {
    if !network.spec.floating {
        return users(members, network.range);
    }
    let of = |member: &Member| {
        let claims = |one: &&SheetContainer| {
            let mut claimed = one.floating.iter();
            claimed.any(|floating| floating.pool == network.name)
        };
        let users = member.sheet.containers.iter().filter(claims);
        let users = users.map(|one| (one.name.clone(), member.name.clone()));
        users.collect::<Vec<_>>()
    };
    let mut users: Vec<User> = members.iter().flat_map(of).collect();
    users.sort();
    users
}

fn named(users: &[User]) -> String {
    let shown = users.iter().take(NAMED);
    let mut text: Vec<String> = shown
        .map(|(name, node)| format!("{name} on {node}"))
        .collect();
    if users.len() > NAMED {
        text.push(format!("{} more", users.len() - NAMED));
    }
    text.join(", ")
}

impl Works {
    /// Makes a network.
    pub(super) async fn declare_network(
        &mut self,
        request: NetworkRequest,
    ) -> Result<NetworkInfo, Refusal> {
        let range = self.range()?;
        self.settle_networks().await;
        self.check_network(&request)?;
        let members = self.members();
        let block = self.block_for(&request, &range, &members).await?;
        let used = self.book.networks().known.declared();
        let used: BTreeSet<u16> = used.map(|one| one.number).collect();
        let declared = DeclaredNetwork {
            number: choose::choose_number(&request.name, &used),
            name: request.name,
            stamp: wall_millis(),
            maker: self.router.view().me,
            range: range.v4_block(block),
            spec: request.spec,
        };
        let before = self.book.networks().clone();
        self.book.networks_mut().made.push(declared.clone());
        if let Err(refusal) = self.write_networks(&range) {
            *self.book.networks_mut() = before;
            return Err(refusal);
        }
        self.apply_networks().await;
        tracing::info!(name = %declared.name, range = %declared.range, "a network is made");
        Ok(info(&declared, &range, &self.members(), None))
    }

    fn check_network(&self, request: &NetworkRequest) -> Result<(), Refusal> {
        let known = &self.book.networks().known;
        let name = &request.name;
        if name.is_default() || known.networks.contains_key(name) {
            let cause = format!("a network {name} exists already");
            let fix = "choose another name; see what there is with: weavectl network list";
            return Err(Refusal::new(Code::Conflict, cause, fix));
        }
        if known.networks.len() >= MAX_NETWORKS {
            let cause = format!("a cluster has at most {MAX_NETWORKS} networks");
            let fix = "remove one that is not needed: weavectl network rm NAME";
            return Err(Refusal::new(Code::Conflict, cause, fix));
        }
        let NetworkSpec {
            mtu,
            multicast,
            internal,
            floating,
        } = request.spec;
        if floating && (mtu.is_some() || !multicast || internal) {
            let cause = "a pool of floating addresses is no network of its own";
            let fix = "leave --mtu, --multicast and --internal out";
            return Err(Refusal::new(Code::Invalid, cause, fix));
        }
        match mtu.filter(|mtu| !MTU_RANGE.contains(mtu)) {
            None => Ok(()),
            Some(mtu) => Err(Refusal::new(
                Code::Invalid,
                format!("an MTU of {mtu} is out of range"),
                "give an MTU between 1280 and 60000",
            )),
        }
    }

    /// Where the new network's addresses lie.
    async fn block_for(
        &self,
        request: &NetworkRequest,
        range: &ClusterRange,
        members: &[Member],
    ) -> Result<Block, Refusal> {
        let others = self.book.networks().known.blocks(range);
        if let Some(net) = request.range {
            return self.named_block(net, range, members).await;
        }
        let mut used = self.used_offsets().await?;
        let ips = members.iter().flat_map(|member| &member.sheet.containers);
        used.extend(
            ips.flat_map(|one| &one.ips)
                .filter_map(|ip| range.offset(*ip)),
        );
        let own = self.router.view().mine.clone();
        choose::choose_block(range, &request.name, &others, &used, &own).ok_or_else(|| {
            let cause = format!(
                "no part of {} is free that a network could have",
                range.v4()
            );
            let fix = "give a smaller one with --range, or remove networks";
            Refusal::new(Code::NotReady, cause, fix)
        })
    }

    async fn named_block(
        &self,
        net: Ipv4Net,
        range: &ClusterRange,
        members: &[Member],
    ) -> Result<Block, Refusal> {
        let invalid = |cause: String, fix: String| Refusal::new(Code::Invalid, cause, fix);
        let block = range.block(net).ok_or_else(|| {
            let cause = format!("{net} is no part of the cluster's range {}", range.v4());
            let fix = "give --range a part of it, or leave it out";
            invalid(cause, fix.to_owned())
        })?;
        if !resolve::fits(range, block) {
            let cause = format!("{net} cannot be a network's range");
            let fix = format!(
                "give a /{LONGEST_PREFIX} or larger, without the first and the last addresses of {}",
                range.v4()
            );
            return Err(invalid(cause, fix));
        }
        let mut known = self.book.networks().known.declared();
        let overlapping = |other: &&DeclaredNetwork| {
            range
                .block(other.range)
                .is_some_and(|other| other.overlaps(block))
        };
        if let Some(other) = known.find(overlapping) {
            let cause = format!("{net} overlaps the network {}, {}", other.name, other.range);
            let fix = "give another --range, or leave it out";
            return Err(Refusal::new(Code::Conflict, cause, fix));
        }
        let used = self.used_offsets().await?;
        let here = used.range(block.first()..=block.last()).next();
        let by = users(members, net);
        let exposed = members.iter().flat_map(|member| &member.sheet.own);
        let exposed = exposed.copied().find(|ip| net.contains(ip));
        let here = here.map(|offset| range.v4_at(*offset)).or(exposed);
        if by.is_empty() && here.is_none() {
            return Ok(block);
        }
        let by = match (&by[..], here) {
            ([], Some(ip)) => ip.to_string(),
            _ => named(&by),
        };
        let cause = format!("addresses of {net} are in use in another network: {by}");
        let fix = "give another --range, or leave it out";
        Err(Refusal::new(Code::Conflict, cause, fix))
    }

    /// What has an address here.
    async fn used_offsets(&self) -> Result<BTreeSet<u32>, Refusal> {
        match self.router.command(Command::Leases).await? {
            Reply::Leases(leases) => Ok(leases.into_iter().map(|(_, offset)| offset).collect()),
            _ => Err(super::works::strange_reply()),
        }
    }

    /// Removes a network, whichever node made it, unless somebody is in it.
    pub(super) async fn remove_network(
        &mut self,
        name: &NetworkName,
    ) -> Result<NetworkInfo, Refusal> {
        let range = self.range()?;
        if name.is_default() {
            let cause = "every cluster has the network default";
            return Err(Refusal::new(Code::Invalid, cause, "name another one"));
        }
        self.settle_networks().await;
        let found = self.meant(name)?;
        let members = self.members();
        self.check_unused(&found, &members)?;
        let before = self.book.networks().clone();
        let records = self.book.networks_mut();
        records.made.retain(|made| *made != found);
        records.removed.push(RemovedNetwork {
            name: found.name.clone(),
            stamp: found.stamp,
        });
        if let Err(refusal) = self.write_networks(&range) {
            *self.book.networks_mut() = before;
            return Err(refusal);
        }
        self.apply_networks().await;
        tracing::info!(%name, "a network is removed");
        Ok(info(&found, &range, &members, None))
    }

    /// The network of this name; if there is none, one that had to give way to another.
    fn meant(&self, name: &NetworkName) -> Result<DeclaredNetwork, Refusal> {
        let known = &self.book.networks().known;
        let lost = known.lost.iter().map(|(lost, _)| lost);
        let mut all = known.declared().chain(lost);
        all.find(|one| one.name == *name)
            .cloned()
            .ok_or_else(|| no_network(name))
    }

    fn check_unused(&self, network: &DeclaredNetwork, members: &[Member]) -> Result<(), Refusal> {
        let name = &network.name;
        let by = users_of(members, network);
        if !by.is_empty() {
            let cause = format!("the network {name} is in use, by {}", named(&by));
            let fix = "detach them first: weavectl detach CONTAINER, on their nodes";
            return Err(Refusal::new(Code::Conflict, cause, fix));
        }
        if self.book.docker().uses(name) {
            let cause = format!("a network of Docker on this host is the network {name}");
            let fix = "remove it first: docker network rm NAME";
            return Err(Refusal::new(Code::Conflict, cause, fix));
        }
        Ok(())
    }

    /// Works out anew which networks there are, and writes it down with what was changed in the book.
    fn write_networks(&mut self, range: &ClusterRange) -> Result<(), Refusal> {
        let me = self.router.view().me;
        if let Some(settled) = unsettled(&self.book, range, &self.members(), me) {
            *self.book.networks_mut() = settled;
        }
        self.save()
    }

    /// Takes over what others say of networks.
    pub(super) async fn settle_networks(&mut self) {
        let Ok(range) = self.range() else { return };
        let me = self.router.view().me;
        let Some(settled) = unsettled(&self.book, &range, &self.members(), me) else {
            return;
        };
        let before = std::mem::replace(self.book.networks_mut(), settled);
        if let Err(refusal) = self.save() {
            tracing::warn!(%refusal, "what others say of networks is not written down");
            *self.book.networks_mut() = before;
            return;
        }
        self.apply_networks().await;
    }

    /// Tells the allocator, the rules and the data path which networks there are.
    pub(super) async fn apply_networks(&mut self) {
        let Ok(range) = self.range() else { return };
        let known = &self.book.networks().known;
        let areas = known.blocks(&range);
        let rules = known.apart().filter_map(|one| {
            Some(NetworkRules {
                block: range.block(one.range)?,
                internal: one.spec.internal,
            })
        });
        self.side.networks = rules.collect();
        if let Err(error) = self.router.command(Command::SetAreas { areas }).await {
            tracing::warn!(%error, "the allocator does not know the networks");
        }
        if let Err(refusal) = self.side.guard(range) {
            tracing::warn!(%refusal, "networks are kept apart by the data path alone");
        }
        self.tell_ports().await;
    }

    /// The ranges of networks, for the data path. Addresses of a pool are of the default network.
    pub(super) fn areas(&self, range: &ClusterRange) -> Vec<Area> {
        let known = self.book.networks().known.apart();
        let area = |one: &DeclaredNetwork| {
            Some(Area {
                block: range.block(one.range)?,
                network: one.number,
            })
        };
        known.filter_map(area).collect()
    }

    /// A network by its name; `None` for the default one.
    pub(super) fn network(&self, name: &NetworkName) -> Result<Option<DeclaredNetwork>, Refusal> {
        if name.is_default() {
            return Ok(None);
        }
        let network = self.book.networks().known.networks.get(name);
        let network = network.ok_or_else(|| no_network(name))?;
        if network.going {
            let cause = format!("the network {name} is removed and goes with its last container");
            return Err(Refusal::new(
                Code::Conflict,
                cause,
                "attach to another network",
            ));
        }
        if network.declared.spec.floating {
            let cause =
                format!("{name} is a pool of floating addresses, to which nothing is attached");
            let fix = format!(
                "attach to another network; in default, --also gives a container an address of {}",
                network.declared.range
            );
            return Err(Refusal::new(Code::Invalid, cause, fix));
        }
        Ok(Some(network.declared.clone()))
    }

    /// The range of a network, as the allocator knows it; `None` for the default one.
    pub(super) fn area_of(&self, name: &NetworkName) -> Option<Block> {
        let network = self.book.networks().known.networks.get(name)?;
        self.range().ok()?.block(network.declared.range)
    }

    /// The network that an offset is in.
    pub(super) fn network_with(&self, range: &ClusterRange, offset: u32) -> NetworkName {
        let address = range.v4_at(offset);
        let mut known = self.book.networks().known.declared();
        let found = known.find(|one| one.range.contains(&address));
        found.map_or_else(NetworkName::default_network, |one| one.name.clone())
    }

    /// The network that packets to an offset are in: that of a floating address is the default one.
    pub(super) fn network_reaching(&self, range: &ClusterRange, offset: u32) -> NetworkName {
        let name = self.network_with(range, offset);
        let network = self.book.networks().known.networks.get(&name);
        match network.is_some_and(|network| network.declared.spec.floating) {
            true => NetworkName::default_network(),
            false => name,
        }
    }

    /// How packets to groups of a network are marked; `None` where they are not carried.
    pub(super) fn group_number(&self, name: &NetworkName) -> Option<u16> {
        if name.is_default() {
            return Some(DEFAULT_NETWORK);
        }
        let network = self.book.networks().known.networks.get(name)?;
        let DeclaredNetwork { number, spec, .. } = network.declared;
        spec.multicast.then_some(number)
    }

    /// Networks that cannot be beside others.
    pub(super) fn network_obstacles(&self) -> Vec<Obstacle> {
        let lost = self.book.networks().known.lost.iter();
        let obstacle = |(one, winner): &(DeclaredNetwork, NetworkName)| {
            let cause = format!(
                "the network {} cannot be beside {winner}, which is older: they share a name or addresses",
                one.name
            );
            let fix = format!(
                "detach its containers, then: weavectl network rm {}, and make it anew",
                one.name
            );
            Obstacle::new(cause, fix)
        };
        lost.map(obstacle).collect()
    }
}

fn no_network(name: &NetworkName) -> Refusal {
    let cause = format!("there is no network {name}");
    let fix = format!(
        "see what there is with `weavectl network list`, or: weavectl network create {name}"
    );
    Refusal::new(Code::NotFound, cause, fix)
}
