//! Attaching and detaching, step by step, and what a start finds of former attachments.
//!
//! Attach: find an address, make the pair, write it down, answer. Whatever fails takes back what was done before. A
//! kill in between leaves an address that the same container gets again and a pair that is in no book, which the next
//! start removes. Detach: remove the pair, strike it out, give the address back.

use std::collections::BTreeMap;
use std::sync::Arc;

use weave_linux::netlink::Link;
use weave_linux::netns::Netns;
use weave_model::api::{AttachRequest, Attachment, Attachments, Code, Refusal};
use weave_model::{ClusterRange, ContainerName, IfName, Mac, NetworkName, NetworkSpec};
use weave_router::attach::{AttachSpec, DefaultRoute, Repaired};
use weave_router::core::command::{Command, Reply};
use weave_router::path::routes::Port;

use super::addresses;
use super::book::Entry;
use super::containers::{self, Plan};
use super::publishing;
use super::works::{HOST_LEASE, SERVICE_LEASE, Works};
use crate::obstacle::Obstacle;

/// How many containers are looked at closely at one look.
const ROUND: usize = 8;

impl Works {
    /// Attaches a container.
    pub(super) async fn attach(&mut self, request: AttachRequest) -> Result<Attachment, Refusal> {
        let range = self.range()?;
        // What was freed while the node was down may be the container that comes now.
        self.drain_cni_journal().await;
        let netns = containers::open_netns(&request.netns)?;
        let network = self.network(&request.network)?;
        let part = network
            .as_ref()
            .map_or(range, |one| range.part_of(one.range));
        self.check_floating(&request, &range)?;
        match containers::plan(&self.book, &request, &part, containers::netns_id(&netns))? {
            Plan::Done(entry) if self.is_whole(&entry, range).await? => {
                self.claim(&request).await?;
                let entry = self.booked_as(&request).unwrap_or(*entry);
                return Ok(entry.attachment);
            }
            Plan::Done(entry) => self.clear_away(&entry, &request).await?,
            Plan::Replace(former) => {
                for entry in &former {
                    self.clear_away(entry, &request).await?;
                }
            }
            Plan::Make => {}
        }
        let network_spec = network.map_or_else(NetworkSpec::default, |network| network.spec);
        let lease = containers::lease_id(&request.name, &request.ifname);
        let made = self
            .attach_anew(&request, &lease, network_spec, part, netns)
            .await;
        if made.is_err() {
            // The address of a former attachment was kept for this one.
            self.release(&lease).await;
        }
        made
    }

    /// Attaches what is not attached, or not any more. If this fails, the lease may be held all the same.
    async fn attach_anew(
        &mut self,
        request: &AttachRequest,
        lease: &str,
        network_spec: NetworkSpec,
        part: ClusterRange,
        netns: Netns,
    ) -> Result<Attachment, Refusal> {
        let range = self.range()?;
        publishing::check(&self.book, request, &network_spec)?;
        self.side.guard(range)?;
        let first = range.offset_v4(part.v4().network()).unwrap_or(0);
        let want = containers::wanted_offset(&part, request)?.map(|want| first + want);
        let runs = containers::runs(&part, request).into_iter();
        let runs: Vec<_> = runs.map(|run| (first + run.0, first + run.1)).collect();
        let offset = self
            .allocate_among(&request.network, lease, want, &runs)
            .await?;
        let spec = AttachSpec {
            attachment: containers::to_make(
                &self.book,
                request,
                part,
                offset - first,
                network_spec.mtu.unwrap_or(self.config.overlay.mtu),
            ),
            netns: netns.into(),
            ifname: containers::kernel_name(&request.ifname),
            mac: request.mac.map(Mac::bytes),
            default_route: match network_spec.internal {
                true => DefaultRoute::Never,
                false => DefaultRoute::IfNone,
            },
            uplink_mtu: addresses::uplink_mtu().await,
        };
        let made = self.make(request, &spec).await?;
        let Err(refusal) = self.claim(request).await else {
            let entry = self.booked_as(request);
            return Ok(entry.map_or(made, |entry| entry.attachment));
        };
        if let Some(entry) = self.booked_as(request)
            && let Err(error) = self.strike_out(&entry).await
        {
            tracing::warn!(%error, "an attachment without its floating addresses cannot be taken back");
        }
        Err(refusal)
    }

    /// What a request has led to, as it stands in the book.
    fn booked_as(&self, request: &AttachRequest) -> Option<Entry> {
        let mut entries = self.book.interfaces(&request.name);
        let entry = entries.find(|entry| entry.attachment.ifname == request.ifname);
        entry.cloned()
    }

    /// Whether an attachment in the book has its pair; what else is amiss with it is mended.
    async fn is_whole(&self, entry: &Entry, range: ClusterRange) -> Result<bool, Refusal> {
        let Some(wanted) = containers::to_repair(entry, range) else {
            return Ok(false);
        };
        let found = self
            .side
            .host
            .repair(&wanted)
            .await
            .map_err(|error| containers::refused(&error))?;
        Ok(found != Repaired::Gone)
    }

    /// Removes what is left of a former attachment. The new one gets its address, unless it asks for another.
    async fn clear_away(&mut self, former: &Entry, request: &AttachRequest) -> Result<(), Refusal> {
        self.strike_out(former).await?;
        if !containers::suits(former, request) || former.attachment.ifname != request.ifname {
            let Attachment { name, ifname, .. } = &former.attachment;
            self.release(&containers::lease_id(name, ifname)).await;
        }
        Ok(())
    }

    async fn make(
        &mut self,
        request: &AttachRequest,
        spec: &AttachSpec,
    ) -> Result<Attachment, Refusal> {
        let attached = self
            .side
            .host
            .attach(spec)
            .await
            .map_err(|error| containers::refused(&error))?;
        let entry = containers::entry(request, spec, &attached);
        let attachment = entry.attachment.clone();
        self.book.insert(entry.clone());
        if let Err(refusal) = self.save() {
            self.book.remove(&request.name, &request.ifname);
            if let Err(error) = self.side.host.detach(&spec.attachment.outer).await {
                tracing::warn!(%error, "a container's device cannot be taken back");
            }
            return Err(refusal);
        }
        if let Err(refusal) = self.open_ports(&attachment) {
            if let Err(error) = self.strike_out(&entry).await {
                tracing::warn!(%error, "an attachment without its ports cannot be taken back");
            }
            return Err(refusal);
        }
        self.tell_ports().await;
        tracing::info!(name = %attachment.name, ip = %attachment.ip.addr(), "attached");
        Ok(attachment)
    }

    /// Detaches a container, or one interface of it.
    pub(super) async fn detach(
        &mut self,
        name: &ContainerName,
        ifname: Option<&IfName>,
    ) -> Result<Attachments, Refusal> {
        let meant = |entry: &&Entry| ifname.is_none_or(|ifname| entry.attachment.ifname == *ifname);
        let entries: Vec<Entry> = self.book.interfaces(name).filter(meant).cloned().collect();
        if entries.is_empty() {
            let cause = match ifname {
                Some(ifname) => {
                    format!("no container {name} is attached with an interface {ifname}")
                }
                None => format!("no container {name} is attached"),
            };
            return Err(Refusal::new(
                Code::NotFound,
                cause,
                "see what is attached with: weavectl ps",
            ));
        }
        let mut gone = Vec::new();
        for entry in entries {
            gone.push(self.take_off(entry).await?);
        }
        Ok(Attachments {
            attachments: gone,
            called: BTreeMap::new(),
            host: None,
        })
    }

    /// Takes one interface off the network and gives its address back.
    pub(super) async fn take_off(&mut self, entry: Entry) -> Result<Attachment, Refusal> {
        self.strike_out(&entry).await?;
        if let Err(refusal) = self.forget_endpoint(&entry).await {
            self.book.insert(entry);
            self.publish();
            return Err(refusal);
        }
        let Entry { attachment, .. } = entry;
        let Attachment { name, ifname, .. } = &attachment;
        self.release(&containers::lease_id(name, ifname)).await;
        tracing::info!(%name, ip = %attachment.ip.addr(), "detached");
        Ok(attachment)
    }

    /// Removes a pair and its entry; the address stays leased. What cannot be written stays in the book, without its
    /// pair, so that the next try finds it.
    async fn strike_out(&mut self, entry: &Entry) -> Result<(), Refusal> {
        let Attachment {
            name,
            ifname,
            host_ifname,
            ..
        } = &entry.attachment;
        let outer = containers::kernel_name(host_ifname);
        self.side
            .host
            .detach(&outer)
            .await
            .map_err(|error| containers::refused(&error))?;
        self.book.remove(name, ifname);
        let saved = self.save();
        if saved.is_err() {
            self.book.insert(entry.clone());
        }
        self.close_ports(&entry.attachment);
        self.tell_ports().await;
        saved
    }

    /// Looks which pairs there are, and tells the router whose they are, for broadcast and multicast. Whether that can be
    /// said is the answer.
    pub(super) async fn tell_ports(&mut self) -> bool {
        let Some(range) = self.router.view().range else {
            return false;
        };
        let links = match self.side.host.attached().await {
            Ok(links) => links,
            Err(error) => {
                tracing::warn!(%error, "cannot list the containers' devices");
                return false;
            }
        };
        let by_name: BTreeMap<&str, &Link> = links
            .iter()
            .map(|link| (link.name.as_str(), link))
            .collect();
        let port = |entry: &Entry| {
            let Attachment {
                host_ifname,
                ip,
                network,
                ..
            } = &entry.attachment;
            let link = by_name.get(host_ifname.as_str())?;
            let offset = range.offset_v4(ip.addr())?;
            let network = self.group_number(network)?;
            Some((link.index, Port { offset, network }))
        };
        let ports = self.book.entries().filter_map(port).collect();
        self.router.set_ports(ports, self.areas(&range));
        self.pairs = Arc::new(links.into_iter().map(|link| link.name).collect());
        self.publish();
        true
    }

    /// Takes over what a former run left: mends what is in the book, and removes pairs that are not.
    pub(super) async fn adopt(&mut self) {
        let Some(range) = self.router.view().range else {
            return;
        };
        let entries: Vec<Entry> = self.book.entries().cloned().collect();
        for entry in &entries {
            self.adopt_one(entry, range).await;
        }
        self.settle_leases(range).await;
        let known = |name: &str| {
            entries
                .iter()
                .any(|entry| entry.attachment.host_ifname.as_str() == name)
        };
        let found = match self.side.host.traces().await {
            Ok(found) => found,
            Err(error) => return tracing::warn!(%error, "cannot list the containers' devices"),
        };
        for device in found.iter().filter(|name| !known(name.as_str())) {
            tracing::warn!(%device, "removing a container's device that is in no journal");
            if let Err(error) = self.side.host.detach(device).await {
                tracing::warn!(%error, %device, "cannot remove it");
            }
        }
    }

    /// The addresses that the book says are given, by lease; `None` where one is outside of the cluster's range.
    pub(super) fn booked(&self, range: ClusterRange) -> BTreeMap<String, Option<u32>> {
        let mut booked: BTreeMap<String, Option<u32>> = self
            .book
            .entries()
            .filter(|entry| !self.book.is_docker(entry))
            .map(|Entry { attachment: a, .. }| {
                (
                    containers::lease_id(&a.name, &a.ifname),
                    range.offset_v4(a.ip.addr()),
                )
            })
            .collect();
        let docker = self.book.docker().leases();
        booked.extend(docker.map(|(lease, offset)| (lease, Some(offset))));
        if let Some(host) = self.book.host() {
            booked.insert(HOST_LEASE.to_owned(), range.offset_v4(host.ip));
        }
        if let Some(source) = self.book.services().source {
            booked.insert(SERVICE_LEASE.to_owned(), range.offset_v4(source));
        }
        booked
    }

    /// Makes the allocator and the book agree: a kill may have come between the two. The book is what containers live
    /// by.
    async fn settle_leases(&mut self, range: ClusterRange) {
        let leases = match self.router.command(Command::Leases).await {
            Ok(Reply::Leases(leases)) => leases,
            Ok(_) => return,
            Err(error) => return tracing::warn!(%error, "cannot list the addresses that are given"),
        };
        let booked = self.booked(range);
        for (lease, _) in leases
            .iter()
            .filter(|(lease, _)| !booked.contains_key(lease))
        {
            tracing::info!(lease, "giving back an address that nothing has");
            self.release(lease).await;
        }
        let leased = |lease: &String| leases.iter().any(|(id, _)| id == lease);
        for (lease, offset) in booked.iter().filter(|(lease, _)| !leased(lease)) {
            let network = offset.map_or_else(NetworkName::default_network, |offset| {
                self.network_with(&range, offset)
            });
            if let Err(refusal) = self.allocate_of(&network, lease, *offset).await {
                tracing::warn!(%refusal, lease, "an address in use cannot be kept for it");
            }
        }
    }

    /// Puts right what somebody else changed of containers' devices and routes on this host: at once what two questions
    /// to the kernel show, the rest one container after another, [`ROUND`] at a look. What cannot be is returned.
    pub(super) async fn mend(&mut self, range: ClusterRange) -> Vec<Obstacle> {
        let wanted = |entry: &Entry| {
            let wanted = containers::to_repair(entry, range)?;
            Some((entry.attachment.name.clone(), wanted))
        };
        let all: Vec<_> = self.book.entries().filter_map(wanted).collect();
        let attachments: Vec<_> = all.iter().map(|(_, wanted)| wanted.clone()).collect();
        let astray = match self.side.host.astray(&attachments).await {
            Ok(astray) => astray,
            Err(error) => {
                tracing::warn!(%error, "cannot look after the containers' devices");
                return Vec::new();
            }
        };
        let turn = self.turn..self.turn + ROUND;
        self.turn = if turn.end < all.len() { turn.end } else { 0 };
        let mut obstacles = Vec::new();
        for (at, (name, wanted)) in all.iter().enumerate() {
            if !astray[at] && !turn.contains(&at) {
                continue;
            }
            match self.side.host.repair(wanted).await {
                Ok(Repaired::Fixed(changes)) => tracing::warn!(%name, ?changes, "mended"),
                Ok(Repaired::Right | Repaired::Gone) => {}
                Err(error) => {
                    let refusal = containers::refused(&error);
                    let cause = format!("the container {name} is cut off: {}", refusal.message);
                    obstacles.push(Obstacle::new(cause, refusal.fix));
                }
            }
        }
        obstacles
    }

    async fn adopt_one(&self, entry: &Entry, range: ClusterRange) {
        let name = &entry.attachment.name;
        let Some(wanted) = containers::to_repair(entry, range) else {
            return tracing::warn!(%name, "its address is not one of this cluster's");
        };
        match self.side.host.repair(&wanted).await {
            Ok(Repaired::Right) => tracing::debug!(%name, "adopted"),
            Ok(Repaired::Fixed(changes)) => tracing::info!(%name, ?changes, "adopted and mended"),
            Ok(Repaired::Gone) => {
                return tracing::info!(%name, "its device is gone; it is freed unless it comes back");
            }
            Err(error) => return tracing::warn!(%name, %error, "cannot be mended"),
        }
        self.restore_floating(entry).await;
    }
}
