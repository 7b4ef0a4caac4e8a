//! Floating addresses on this host: claimed, given to a container, taken from it, and given back.
//!
//! What holds follows from what all members tell ([`super::holders`]). A node that finds one of its own claims outdone
//! takes the address off its container for good, and a claim that ends, however that comes, is told to have ended
//! ([`super::ended`]). A container's namespace may be without its path by then: it is looked for by its number, and where
//! it is not found the address, which leads nowhere any more, comes off the interface once it is.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use weave_linux::netns::Netns;
use weave_model::api::{AttachRequest, Attachment, Attachments, Code, Refusal};
use weave_model::{ClusterRange, ContainerName, DeclaredNetwork, Floating, IfName, MAX_FLOATING};
use weave_proxy::declared::Member;
use weave_router::attach::Taken;

use super::book::{Book, Entry};
use super::holders::{Holders, Word, forget_ended, holders_now, holds, lost, next_stamp};
use super::works::Works;
use super::{containers, sheets, wall_millis};
use crate::obstacle::Obstacle;

impl Works {
    pub(super) fn holders(&self, range: &ClusterRange) -> Holders {
        holders_now(&self.router.view(), &self.book, range, &self.members())
    }

    /// The floating addresses that an attachment has: what the book says, as far as nobody else took them meanwhile.
    pub(super) fn held_by(&self, entry: &Entry, range: &ClusterRange) -> Vec<IpAddr> {
        let also = &entry.attachment.also;
        if also.is_empty() {
            return Vec::new();
        }
        let (holders, me) = (self.holders(range), self.router.view().me);
        let held = also.iter().filter(|claim| holds(&holders, claim, me));
        held.map(|claim| claim.ip).collect()
    }

    /// Refuses a request for what is no floating address, before anything is done for it.
    pub(super) fn check_floating(
        &self,
        request: &AttachRequest,
        range: &ClusterRange,
    ) -> Result<(), Refusal> {
        let invalid = |cause: String, fix: &str| Err(Refusal::new(Code::Invalid, cause, fix));
        if request.also.is_empty() {
            return Ok(());
        }
        if !request.network.is_default() {
            let cause = format!(
                "floating addresses are of the network default, and {} is to be in {}",
                request.name, request.network
            );
            return invalid(cause, "leave --also out, or --network");
        }
        if request.also.len() > MAX_FLOATING {
            let cause = format!("a container has at most {MAX_FLOATING} floating addresses");
            return invalid(cause, "name fewer with --also");
        }
        let members = self.members();
        request
            .also
            .iter()
            .try_for_each(|ip| self.check_one(*ip, range, &members))
    }

    fn check_one(
        &self,
        ip: IpAddr,
        range: &ClusterRange,
        members: &[Member],
    ) -> Result<(), Refusal> {
        let Some(offset) = range.offset(ip) else {
            let cause = format!(
                "{ip} is no address of the cluster, which has {} and {}",
                range.v4(),
                range.v6()
            );
            return Err(Refusal::new(Code::Invalid, cause, self.pools_fix()));
        };
        let in_pool = |pool: &&DeclaredNetwork| pool.range.contains(&range.v4_at(offset));
        let Some(pool) = self.book.networks().known.pools().find(in_pool) else {
            let what = self.what_it_is(range.v4_at(offset), range, members);
            let cause = format!("{ip} is no floating address: {what}");
            return Err(Refusal::new(Code::Invalid, cause, self.pools_fix()));
        };
        let known = &self.book.networks().known.networks;
        if known.get(&pool.name).is_some_and(|network| network.going) {
            let cause = format!(
                "the pool {} is removed and goes with its last holder",
                pool.name
            );
            return Err(Refusal::new(Code::Conflict, cause, self.pools_fix()));
        }
        match user_of(range.v4_at(offset), range, members) {
            None => Ok(()),
            Some(user) => {
                let cause = format!("{ip} is in use already: it is {user}'s own address");
                Err(Refusal::new(Code::Conflict, cause, "give another --also"))
            }
        }
    }

    /// What an address is that is in no pool.
    fn what_it_is(&self, ip: Ipv4Addr, range: &ClusterRange, members: &[Member]) -> String {
        let networks = self.book.networks().known.apart();
        let parts = networks.map(|one| range.part_of(one.range));
        let mut gateways = parts.chain([*range]).map(|part| part.gateway());
        if gateways.any(|gateway| gateway == ip) {
            return "it is a gateway's, on every node".to_owned();
        }
        match user_of(ip, range, members) {
            Some(user) => format!("it is {user}'s own"),
            None => "it is of a part of the range that nodes give to containers".to_owned(),
        }
    }

    fn pools_fix(&self) -> String {
        let pools = self.book.networks().known.pools();
        let pools = pools.map(|pool| format!("{} ({})", pool.range, pool.name));
        let pools: Vec<String> = pools.collect();
        if pools.is_empty() {
            return "make a pool of floating addresses first: weavectl network create NAME --floating"
                .to_owned();
        }
        format!("give --also an address of a pool: {}", pools.join(", "))
    }

    /// Gives an attached container the floating addresses that a request names, whoever has them, and tells the others.
    pub(super) async fn claim(&mut self, request: &AttachRequest) -> Result<(), Refusal> {
        if request.also.is_empty() {
            return Ok(());
        }
        // What others have taken meanwhile is not held any more.
        self.settle_floating().await;
        let before = self.book.clone();
        let done = self.claim_all(request, &before).await;
        if done.is_err() && self.book != before {
            self.book = before;
            if let Err(refusal) = self.write_down() {
                tracing::warn!(%refusal, "a claim that failed may still be written down");
            }
        }
        self.publish();
        done
    }

    /// Claims, and moves what is claimed. Where that fails the addresses are where they were, and the book is not.
    async fn claim_all(&mut self, request: &AttachRequest, before: &Book) -> Result<(), Refusal> {
        let claimed = self.note_claims(request)?;
        if !claimed.is_empty() {
            sheets::check_claims_room(&self.book)?;
            self.write_down()?;
        }
        // The others are told when the address is where it is to be.
        for (former, ip) in self.move_all(request, before, &claimed).await? {
            if let Some(entry) = self.book.entry_mut(&former) {
                entry.left.insert(ip);
                self.unwritten = true;
            }
        }
        Ok(())
    }

    /// Writes claims into the book, over those of other containers of this node. Those that are new are returned.
    fn note_claims(&mut self, request: &AttachRequest) -> Result<Vec<IpAddr>, Refusal> {
        let range = self.range()?;
        let holders = self.holders(&range);
        let me = self.router.view().me;
        let key = (&request.name, &request.ifname);
        let Some(mut entry) = self.book.remove(key.0, key.1) else {
            return Ok(Vec::new());
        };
        let mut claimed = Vec::new();
        for ip in &request.also {
            let also = &mut entry.attachment.also;
            if also
                .iter()
                .any(|has| has.ip == *ip && holds(&holders, has, me))
            {
                continue;
            }
            if ip.is_ipv6() && entry.attachment.ip6.is_none() {
                let cause = format!("{} has no IPv6, and so cannot have {ip}", request.name);
                let fix =
                    "switch IPv6 on, in the container and on the host, or leave that --also out";
                return Err(Refusal::new(Code::Invalid, cause, fix));
            }
            let offset = range.offset(*ip).unwrap_or(0);
            also.retain(|has| has.ip != *ip);
            also.push(Floating {
                ip: *ip,
                pool: self.network_with(&range, offset),
                stamp: self.stamp(*ip, holders.get(ip))?,
            });
            entry.left.remove(ip);
            claimed.push(*ip);
        }
        if entry.attachment.also.len() > MAX_FLOATING {
            let cause = format!("a container has at most {MAX_FLOATING} floating addresses");
            let fix = format!(
                "give one back first: weavectl detach {} --also ADDRESS",
                request.name
            );
            return Err(Refusal::new(Code::Invalid, cause, fix));
        }
        self.book.drop_claims(&claimed);
        self.book.insert(entry);
        Ok(claimed)
    }

    /// The stamp of a claim that outdoes the last word on its address.
    fn stamp(&self, ip: IpAddr, last: Option<&Word>) -> Result<u64, Refusal> {
        let view = self.router.view();
        next_stamp(last, view.me, wall_millis()).map_err(|last| {
            let member = view.member(last.node);
            let name = member.map_or_else(|| last.node.to_string(), |one| one.name.to_string());
            let cause = format!("{name} claims {ip} for ever: no claim is newer than its");
            let fix = format!(
                "take another address, or detach its container there and remove that member: weavectl rmpeer {name}"
            );
            Refusal::new(Code::Conflict, cause, fix)
        })
    }

    /// Moves addresses on this host to a container; one that it has already is put right. If one cannot be moved, all are
    /// where they were. From whom it was taken while it is still on its interface, is returned.
    async fn move_all(
        &self,
        request: &AttachRequest,
        before: &Book,
        claimed: &[IpAddr],
    ) -> Result<Vec<(Attachment, IpAddr)>, Refusal> {
        let mut left = Vec::new();
        let mut entries = self.book.interfaces(&request.name);
        let Some(to) = entries.find(|entry| entry.attachment.ifname == request.ifname) else {
            return Ok(left);
        };
        let mut moved = Vec::new();
        for ip in &request.also {
            let is_new = claimed.contains(ip);
            let former = before.entries().find(|entry| claims(entry, *ip));
            let former = former.filter(|_| is_new);
            if is_new {
                moved.push((former, *ip));
            }
            match self.move_one(former, to, *ip).await {
                Ok(Taken::LeftInside) => {
                    left.extend(former.map(|one| (one.attachment.clone(), *ip)))
                }
                Ok(Taken::Whole) => {}
                Err(refusal) => {
                    self.move_back(to, &moved).await;
                    return Err(refusal);
                }
            }
            if is_new {
                tracing::info!(name = %request.name, %ip, "has a floating address");
            }
        }
        Ok(left)
    }

    async fn move_one(
        &self,
        former: Option<&Entry>,
        to: &Entry,
        ip: IpAddr,
    ) -> Result<Taken, Refusal> {
        let taken = match former {
            Some(former) => self.take_from(former, ip).await?,
            None => Taken::Whole,
        };
        self.give_to(to, ip).await.map(|()| taken)
    }

    async fn move_back(&self, to: &Entry, moved: &[(Option<&Entry>, IpAddr)]) {
        for (former, ip) in moved {
            if let Err(refusal) = self.take_from(to, *ip).await {
                let name = &to.attachment.name;
                tracing::warn!(%refusal, %name, %ip, "keeps an address");
            }
            if let Some(former) = former
                && let Err(refusal) = self.give_to(former, *ip).await
            {
                let name = &former.attachment.name;
                tracing::warn!(%refusal, %name, %ip, "lost an address");
            }
        }
    }

    /// Takes those addresses off this node's containers that are others' by now, and forgets ended claims that need not be
    /// told any more. What cannot be written down is so all the same, and is written at a later look: an address must
    /// not come back because the disk is full.
    pub(super) async fn settle_floating(&mut self) {
        let Ok(range) = self.range() else { return };
        let none = |entry: &Entry| entry.attachment.also.is_empty() && entry.left.is_empty();
        if self.book.entries().all(none) && self.book.ended().is_empty() && !self.unwritten {
            return;
        }
        let (view, members) = (self.router.view(), self.members());
        let holders = holders_now(&view, &self.book, &range, &members);
        let mut changed = self.take_what_is_left().await;
        for (entry, claim) in lost(&self.book, &holders, view.me) {
            let (name, ip) = (&entry.attachment.name, claim.ip);
            match self.take_from(&entry, ip).await {
                Ok(taken) => {
                    tracing::info!(%name, %ip, "has lost a floating address to a newer claim");
                    self.let_go(&entry.attachment, &claim, taken);
                    changed = true;
                }
                // The claim stays, so that it is tried again.
                Err(refusal) => {
                    tracing::warn!(%name, %ip, %refusal, "an address cannot be taken off");
                }
            }
        }
        changed |= forget_ended(&mut self.book, (&holders, &members), view.me, wall_millis());
        if changed {
            self.publish();
        }
        if changed || self.unwritten {
            let written = self.write_down();
            self.unwritten = written.is_err();
            if let Err(refusal) = written {
                tracing::warn!(%refusal, "that addresses are others' is not written down");
            }
        }
    }

    /// Strikes out a claim whose address was taken from its container.
    fn let_go(&mut self, of: &Attachment, claim: &Floating, taken: Taken) {
        if let Some(entry) = self.book.entry_mut(of) {
            entry.attachment.also.retain(|has| has != claim);
            if taken == Taken::LeftInside {
                entry.left.insert(claim.ip);
            }
        }
        let ended = std::slice::from_ref(claim);
        self.book.ended_mut().note(ended, wall_millis());
    }

    /// Takes those addresses off interfaces whose namespaces were not found before. Whether there were any.
    async fn take_what_is_left(&mut self) -> bool {
        let left = |entry: &&Entry| !entry.left.is_empty();
        let entries: Vec<Entry> = self.book.entries().filter(left).cloned().collect();
        let mut taken = false;
        for entry in entries {
            for ip in &entry.left {
                let is_off = self.take_from(&entry, *ip).await;
                let is_off = is_off.is_ok_and(|taken| taken == Taken::Whole);
                if is_off && let Some(entry) = self.book.entry_mut(&entry.attachment) {
                    taken |= entry.left.remove(ip);
                }
            }
        }
        taken
    }

    /// Addresses that containers have no more, and still have on their interfaces.
    pub(super) fn floating_obstacles(&self) -> Vec<Obstacle> {
        let left = self.book.entries().filter(|entry| !entry.left.is_empty());
        let obstacle = |entry: &Entry| {
            let Attachment { name, netns, .. } = &entry.attachment;
            let ips: Vec<String> = entry.left.iter().map(ToString::to_string).collect();
            let cause = format!(
                "{name} has lost {}, which is still on its interface: its namespace is neither at {netns} nor that of a process",
                ips.join(", ")
            );
            Obstacle::new(
                cause,
                format!("end that container, or: weavectl detach {name}"),
            )
        };
        left.map(obstacle).collect()
    }

    /// Takes a floating address from a container that has it; nobody has it then.
    pub(super) async fn give_back(
        &mut self,
        name: &ContainerName,
        ifname: Option<&IfName>,
        ip: IpAddr,
    ) -> Result<Attachments, Refusal> {
        let is_meant = |entry: &&Entry| {
            ifname.is_none_or(|ifname| entry.attachment.ifname == *ifname) && claims(entry, ip)
        };
        let Some(entry) = self.book.interfaces(name).find(is_meant).cloned() else {
            let cause = format!("{name} has no floating address {ip}");
            let fix = "see under ALSO what it has: weavectl ps";
            return Err(Refusal::new(Code::NotFound, cause, fix));
        };
        let taken = self.take_from(&entry, ip).await?;
        let before = self.book.clone();
        let also = entry.attachment.also.iter();
        for claim in also.filter(|claim| claim.ip == ip) {
            self.let_go(&entry.attachment, claim, taken);
        }
        if let Err(refusal) = self.save() {
            self.book = before;
            self.restore_floating(&entry).await;
            return Err(refusal);
        }
        tracing::info!(%name, %ip, "has given a floating address back");
        let mut entries = self.book.interfaces(name);
        let entry = entries.find(|one| one.attachment.ifname == entry.attachment.ifname);
        Ok(Attachments {
            attachments: entry
                .map(|one| one.attachment.clone())
                .into_iter()
                .collect(),
            called: BTreeMap::new(),
            host: None,
        })
    }

    /// Gives a container what the book says that it has; a kill may have come between the two.
    pub(super) async fn restore_floating(&self, entry: &Entry) {
        for claim in &entry.attachment.also {
            if let Err(refusal) = self.give_to(entry, claim.ip).await {
                let name = &entry.attachment.name;
                tracing::warn!(%name, ip = %claim.ip, %refusal, "lacks a floating address");
            }
        }
    }

    async fn give_to(&self, entry: &Entry, ip: IpAddr) -> Result<(), Refusal> {
        let attachment = &entry.attachment;
        let netns = containers::find_netns(entry)?;
        let outer = containers::kernel_name(&attachment.host_ifname);
        let ifname = containers::kernel_name(&attachment.ifname);
        let given = self.side.host.give(&outer, (&netns, &ifname), ip).await;
        given.map_err(|error| {
            let refusal = containers::refused(&error);
            let fix = refusal.fix.replace("--ip", "--also");
            Refusal { fix, ..refusal }
        })
    }

    async fn take_from(&self, entry: &Entry, ip: IpAddr) -> Result<Taken, Refusal> {
        let attachment = &entry.attachment;
        let outer = containers::kernel_name(&attachment.host_ifname);
        let ifname = containers::kernel_name(&attachment.ifname);
        let netns = containers::find_netns(entry).ok();
        let inside = netns.as_ref().map(|netns: &Netns| (netns, &ifname));
        let taken = self.side.host.take(&outer, inside, ip).await;
        taken.map_err(|error| containers::refused(&error))
    }
}

fn claims(entry: &Entry, ip: IpAddr) -> bool {
    entry.attachment.also.iter().any(|claim| claim.ip == ip)
}

/// Whose own address this is, as the members tell.
fn user_of(ip: Ipv4Addr, range: &ClusterRange, members: &[Member]) -> Option<String> {
    let is = |other: &IpAddr| range.offset(*other) == range.offset_v4(ip);
    members.iter().find_map(|member| {
        let containers = &member.sheet.containers;
        if let Some(one) = containers.iter().find(|one| one.ips.iter().any(is)) {
            return Some(format!("{} on {}", one.name, member.name));
        }
        let own = member.sheet.own.contains(&ip);
        own.then(|| format!("the host {}", member.name))
    })
}
