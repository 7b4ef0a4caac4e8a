//! Making and removing Services, and what else the desk writes down for them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::ops::RangeInclusive;

use weave_model::api::{Code, Refusal, ServiceInfo, ServiceRequest};
use weave_model::{ClusterRange, DeclaredService, NodeId, NodeName, RemovedService, ServiceName};
use weave_proxy::declared::{Declared, Member, VirtualRange, resolve, without_address};

use super::facts::lock;
use super::works::{SERVICE_LEASE, Works};
use super::{addresses, wall_millis};
use super::{services, sheets};
use crate::obstacle::Obstacle;

/// The ports of hosts that lead to Services, as in Kubernetes: none that a server of a host is likely to have, and below
/// those that the kernel gives to clients (`ip_local_port_range`).
const NODE_PORTS: RangeInclusive<u16> = 30_000..=32_767;

impl Works {
    /// Makes a Service.
    pub(super) async fn create_service(
        &mut self,
        request: ServiceRequest,
    ) -> Result<ServiceInfo, Refusal> {
        let range = self.range()?;
        let ServiceRequest { name, spec } = request;
        spec.check().map_err(|error| {
            Refusal::new(
                Code::Invalid,
                error.to_string(),
                "see weavectl service create --help",
            )
        })?;
        let virtuals = self.virtuals(range);
        let members = self.members();
        let declared = resolve(&members, &virtuals);
        if let Some(other) = declared.get(&name) {
            let maker = name_of(&members, other.maker);
            let cause = format!("a service {name} exists already, made on {maker}");
            let fix =
                format!("choose another name, or remove it first: weavectl service rm {name}");
            return Err(Refusal::new(Code::Conflict, cause, fix));
        }
        check_node_ports(&spec, &declared)?;
        let used: BTreeSet<Ipv4Addr> = declared.values().map(|one| one.made.address).collect();
        let address = virtuals.choose(&name, &used).ok_or_else(|| {
            let cause = format!("no virtual address is free in {}", virtuals.v4());
            Refusal::new(
                Code::NotReady,
                cause,
                "remove services, or start all nodes with a larger --service-range",
            )
        })?;
        let made = DeclaredService {
            name: name.clone(),
            stamp: wall_millis(),
            address,
            spec,
        };
        self.book.services_mut().made.push(made);
        if let Err(refusal) = sheets::check_room(&self.book).and_then(|()| self.save()) {
            self.book.services_mut().made.pop();
            return Err(refusal);
        }
        self.settle_services().await;
        tracing::info!(%name, %address, "a service is made");
        let members = self.members();
        let declared = resolve(&members, &virtuals);
        let info = declared
            .get(&name)
            .map(|one| services::info(one, &names(&members)));
        info.ok_or_else(|| gone(&name))
    }

    /// Removes a Service, whoever made it, and all others of its name: what it hides must not come in its place.
    pub(super) fn remove_service(&mut self, name: &ServiceName) -> Result<ServiceInfo, Refusal> {
        let range = self.range()?;
        let virtuals = self.virtuals(range);
        let members = self.members();
        let declared = resolve(&members, &virtuals);
        let found = declared.get(name).ok_or_else(|| gone(name))?;
        let before = self.book.services().clone();
        let me = self.router.view().me;
        let services = self.book.services_mut();
        services.made.retain(|made| made.name != *name);
        let hidden = found.hidden.iter().copied();
        let all = hidden.chain([(found.maker, found.made.stamp)]);
        let others = all.filter(|(maker, _)| *maker != me);
        services
            .removed
            .extend(others.map(|(maker, stamp)| RemovedService {
                name: name.clone(),
                maker,
                stamp,
            }));
        if let Err(refusal) = self.save() {
            *self.book.services_mut() = before;
            return Err(refusal);
        }
        tracing::info!(%name, "a service is removed");
        Ok(services::info(found, &names(&members)))
    }

    /// Strikes out what others removed, forgets removals that were heard of, gives a Service that lost its address
    /// another one, and gets this node an address by which endpoints of others see it.
    pub(super) async fn settle_services(&mut self) {
        let Ok(range) = self.range() else { return };
        let me = self.router.view().me;
        let members = self.members();
        let before = self.book.services().clone();
        let removed: Vec<RemovedService> = members
            .iter()
            .flat_map(|member| member.sheet.removed.iter().cloned())
            .collect();
        let is_removed = |made: &DeclaredService| {
            let same = |one: &&RemovedService| one.maker == me && one.stamp == made.stamp;
            removed.iter().filter(same).any(|one| one.name == made.name)
        };
        let still_made = |one: &RemovedService| {
            let maker = members.iter().find(|member| member.id == one.maker);
            let made = maker.into_iter().flat_map(|maker| &maker.sheet.services);
            made.clone()
                .any(|made| made.name == one.name && made.stamp == one.stamp)
        };
        let services = self.book.services_mut();
        services.made.retain(|made| !is_removed(made));
        services.removed.retain(still_made);
        self.move_services(&self.virtuals(range));
        let any = members
            .iter()
            .any(|member| !member.sheet.services.is_empty());
        if any && self.book.services().source.is_none() {
            match self.allocate(SERVICE_LEASE, None).await {
                Ok(offset) => self.book.services_mut().source = Some(range.v4_at(offset)),
                Err(refusal) => self.tell_once(&refusal),
            }
        }
        if *self.book.services() != before {
            if let Err(refusal) = self.save() {
                tracing::warn!(%refusal, "what others say of services is not written down");
            }
            let amiss = self.route_services().await;
            self.obstacles = self.obstacles.iter().cloned().chain(amiss).collect();
            self.publish();
        }
    }

    /// A Service of this node gets another address if another one won its own, or that is outside of the range.
    fn move_services(&mut self, virtuals: &VirtualRange) {
        let me = self.router.view().me;
        let declared = resolve(&self.members(), virtuals);
        let mut used: BTreeSet<Ipv4Addr> = declared.values().map(|one| one.made.address).collect();
        let lost: BTreeSet<&ServiceName> = without_address(me, &declared).collect();
        for made in &mut self.book.services_mut().made {
            if lost.contains(&made.name)
                && let Some(address) = virtuals.choose(&made.name, &used)
            {
                tracing::info!(name = %made.name, %address, "a service gets another address");
                used.insert(address);
                made.address = address;
            }
        }
    }

    /// Gives the host a way to virtual addresses, once there was a Service.
    pub(super) async fn route_services(&mut self) -> Option<Obstacle> {
        let services = self.book.services();
        let range = self.config.services.range;
        let net = services.source.is_some().then_some(range);
        if net.is_some() {
            let taken = addresses::taken(&mut self.taken).await.ok()?;
            let other = taken.into_iter().find(|taken| {
                let inside = |net: ipnet::IpNet| net.contains(&ipnet::IpNet::V4(range));
                inside(taken.net) || ipnet::IpNet::V4(range).contains(&taken.net)
            });
            if let Some(other) = other {
                let cause = format!(
                    "the range of virtual addresses {range} overlaps {}",
                    other.by
                );
                return Some(Obstacle::new(
                    cause,
                    "start all nodes with another --service-range, or remove that",
                ));
            }
        }
        let source = self.book.host().map(|host| host.ip);
        match self.side.host.route_virtual(net, source).await {
            Ok(changes) if changes.is_empty() => None,
            Ok(changes) => {
                tracing::info!(?changes, "put right for services");
                None
            }
            Err(error) => Some(Obstacle::new(
                format!("this host has no way to virtual addresses: {error}"),
                "look at: ip route, and at the log of the kernel",
            )),
        }
    }

    /// Where services have their addresses.
    pub(super) fn virtuals(&self, range: ClusterRange) -> VirtualRange {
        VirtualRange::new(self.config.services.range, range.v6())
    }

    /// Says why this node has no address for the sake of services, when that is another reason than before.
    fn tell_once(&mut self, refusal: &Refusal) {
        if self.no_source.as_ref() != Some(refusal) {
            tracing::warn!(%refusal, "this host reaches only its own endpoints of services");
            self.no_source = Some(refusal.clone());
        }
    }

    pub(super) fn members(&self) -> Vec<Member> {
        let sheet = sheets::own_sheet(&self.book, &[]);
        sheets::members(&self.router.view(), sheet, &mut lock(&self.sheets), true)
    }
}

fn check_node_ports(
    spec: &weave_model::ServiceSpec,
    declared: &BTreeMap<ServiceName, Declared>,
) -> Result<(), Refusal> {
    for port in &spec.ports {
        let Some(wanted) = port.node_port else {
            continue;
        };
        if !NODE_PORTS.contains(&wanted) {
            let (first, last) = (NODE_PORTS.start(), NODE_PORTS.end());
            return Err(Refusal::new(
                Code::Invalid,
                format!(
                    "the node port {wanted} would be taken from what listens there, on every host"
                ),
                format!("give --node-port one of {first} to {last}"),
            ));
        }
        let same = |other: &&Declared| {
            let mut ports = other.made.spec.ports.iter();
            ports.any(|one| one.node_port == Some(wanted) && one.protocol == port.protocol)
        };
        if let Some(other) = declared.values().find(same) {
            let cause = format!(
                "the node port {wanted} is the service {}'s",
                other.made.name
            );
            return Err(Refusal::new(
                Code::Conflict,
                cause,
                "give another --node-port",
            ));
        }
    }
    Ok(())
}

fn names(members: &[Member]) -> BTreeMap<NodeId, NodeName> {
    members
        .iter()
        .map(|member| (member.id, member.name.clone()))
        .collect()
}

fn name_of(members: &[Member], id: NodeId) -> String {
    let found = members.iter().find(|member| member.id == id);
    found.map_or_else(|| id.short(), |member| member.name.to_string())
}

fn gone(name: &ServiceName) -> Refusal {
    let cause = format!("there is no service {name}");
    Refusal::new(
        Code::NotFound,
        cause,
        "see what there is with: weavectl service list",
    )
}
