//! Floating addresses: who holds which, out of what all members tell, and what follows on this host.
//!
//! A claim stands on the sheet of its container's node and in that node's book. It counts if its address is in a pool and
//! no member has given it to a container, or to itself, out of its own deeds: so a member that lies can take a floating
//! address, and no other. Of several claims that count the newest holds ([`holders`], the same on every node that heard
//! the same). A node that finds one of its own claims outdone takes the address off its container for good.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use weave_linux::netns::Netns;
use weave_model::api::{AttachRequest, Code, Refusal};
use weave_model::{Block, ClusterRange, DeclaredNetwork, Floating, MAX_FLOATING, NodeId};
use weave_proxy::declared::Member;
use weave_router::core::view::{Owner, View};

use super::book::{Book, Entry};
use super::works::Works;
use super::{containers, wall_millis};

/// Who holds which floating address, and since when.
pub(super) type Holders = BTreeMap<IpAddr, (u64, NodeId)>;

/// Who holds which floating address. `owner` says whose an offset is by deed.
pub(super) fn holders(
    pools: &[Block],
    range: &ClusterRange,
    members: &[Member],
    owner: impl Fn(u32) -> Option<NodeId>,
) -> Holders {
    let mut holders = Holders::new();
    let mut given: BTreeMap<NodeId, BTreeSet<u32>> = BTreeMap::new();
    let mut is_given = |offset| {
        let Some(owner) = owner(offset) else {
            return false;
        };
        let of_owner = || given_by(range, members.iter().find(|member| member.id == owner));
        given
            .entry(owner)
            .or_insert_with(of_owner)
            .contains(&offset)
    };
    for member in members {
        let claims = member.sheet.containers.iter().flat_map(|one| &one.floating);
        for claim in claims {
            let offset = range.offset(claim.ip);
            let offset = offset.filter(|offset| pools.iter().any(|pool| pool.contains(*offset)));
            if offset.is_some_and(|offset| !is_given(offset)) {
                let this = (claim.stamp, member.id);
                let newest = holders.entry(claim.ip).or_insert(this);
                *newest = this.max(*newest);
            }
        }
    }
    holders
}

/// The offsets that a member says it has given away, or has itself.
fn given_by(range: &ClusterRange, member: Option<&Member>) -> BTreeSet<u32> {
    let sheets = member.iter().map(|member| &member.sheet);
    let ips = sheets.flat_map(|sheet| {
        let containers = sheet
            .containers
            .iter()
            .flat_map(|one| one.ips.iter().copied());
        containers.chain(sheet.own.iter().copied().map(IpAddr::V4))
    });
    ips.filter_map(|ip| range.offset(ip)).collect()
}

/// The same, as a node sees it.
pub(super) fn holders_now(
    view: &View,
    book: &Book,
    range: &ClusterRange,
    members: &[Member],
) -> Holders {
    let pools = book
        .networks()
        .known
        .pools()
        .filter_map(|pool| range.block(pool.range));
    let pools: Vec<Block> = pools.collect();
    let owner = |offset| {
        Some(match view.owner(offset)? {
            Owner::Me => view.me,
            Owner::Member(place) => view.members[place as usize].id,
        })
    };
    holders(&pools, range, members, owner)
}

/// Whose an address is, by deed or because it floats.
pub(super) fn owner_of(
    view: &View,
    range: &ClusterRange,
    holders: &Holders,
    ip: IpAddr,
) -> Option<Owner> {
    let place = |id: &NodeId| view.members.binary_search_by_key(id, |member| member.id);
    match holders.get(&ip) {
        Some((_, id)) if *id == view.me => Some(Owner::Me),
        Some((_, id)) => place(id).ok().map(|place| Owner::Member(place as u32)),
        None => view.owner(range.offset(ip)?),
    }
}

/// The claims of this node that do not hold.
pub(super) fn lost(book: &Book, holders: &Holders, me: NodeId) -> Vec<(Entry, IpAddr)> {
    let lost = |entry: &Entry| {
        let holds = |claim: &Floating| holders.get(&claim.ip) == Some(&(claim.stamp, me));
        let lost = entry.attachment.also.iter().filter(|claim| !holds(claim));
        let lost = lost.map(|claim| (entry.clone(), claim.ip));
        lost.collect::<Vec<_>>()
    };
    book.entries().flat_map(lost).collect()
}

impl Works {
    pub(super) fn holders(&self, range: &ClusterRange) -> Holders {
        holders_now(&self.router.view(), &self.book, range, &self.members())
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
        let claimed = match self.note_claims(request) {
            Ok(claimed) if claimed.is_empty() => return Ok(()),
            claimed => claimed,
        };
        // The others are told when the address is where it is to be.
        let done = match claimed.and_then(|claimed| self.write_down().map(|()| claimed)) {
            Ok(claimed) => self.move_all(request, &before, &claimed).await,
            Err(refusal) => Err(refusal),
        };
        if done.is_err() {
            self.book = before;
            if let Err(refusal) = self.write_down() {
                tracing::warn!(%refusal, "a claim that failed is still written down");
            }
        }
        self.publish();
        done
    }

    /// Writes claims into the book, over those of other containers of this node. Those that are new are returned.
    fn note_claims(&mut self, request: &AttachRequest) -> Result<Vec<IpAddr>, Refusal> {
        let range = self.range()?;
        let holders = self.holders(&range);
        let key = (&request.name, &request.ifname);
        let Some(mut entry) = self.book.remove(key.0, key.1) else {
            return Ok(Vec::new());
        };
        let mut claimed = Vec::new();
        for ip in &request.also {
            if entry.attachment.also.iter().any(|has| has.ip == *ip) {
                continue;
            }
            if ip.is_ipv6() && entry.attachment.ip6.is_none() {
                let cause = format!("{} has no IPv6, and so cannot have {ip}", request.name);
                let fix =
                    "switch IPv6 on, in the container and on the host, or leave that --also out";
                return Err(Refusal::new(Code::Invalid, cause, fix));
            }
            let offset = range.offset(*ip).unwrap_or(0);
            let newest = holders
                .get(ip)
                .map_or(0, |(stamp, _)| stamp.saturating_add(1));
            entry.attachment.also.push(Floating {
                ip: *ip,
                pool: self.network_with(&range, offset),
                stamp: wall_millis().max(newest),
            });
            claimed.push(*ip);
        }
        if entry.attachment.also.len() > MAX_FLOATING {
            let cause = format!("a container has at most {MAX_FLOATING} floating addresses");
            let fix = format!(
                "take it off the network first: weavectl detach {}",
                request.name
            );
            return Err(Refusal::new(Code::Invalid, cause, fix));
        }
        self.book.drop_claims(&claimed);
        self.book.insert(entry);
        Ok(claimed)
    }

    /// Moves addresses on this host to a container. If one cannot be moved, all are where they were.
    async fn move_all(
        &self,
        request: &AttachRequest,
        before: &Book,
        claimed: &[IpAddr],
    ) -> Result<(), Refusal> {
        let mut entries = self.book.interfaces(&request.name);
        let Some(to) = entries.find(|entry| entry.attachment.ifname == request.ifname) else {
            return Ok(());
        };
        for (at, ip) in claimed.iter().enumerate() {
            let former = before.entries().find(|entry| claims(entry, *ip));
            if let Some(former) = former {
                self.take_from(former, *ip).await;
            }
            let Err(refusal) = self.give_to(to, *ip).await else {
                tracing::info!(name = %request.name, %ip, "has a floating address");
                continue;
            };
            for ip in &claimed[..=at] {
                self.take_from(to, *ip).await;
                if let Some(former) = before.entries().find(|entry| claims(entry, *ip))
                    && let Err(refusal) = self.give_to(former, *ip).await
                {
                    tracing::warn!(%refusal, name = %former.attachment.name, "lost an address");
                }
            }
            return Err(refusal);
        }
        Ok(())
    }

    /// Takes those addresses off this node's containers that are others' by now.
    pub(super) async fn settle_floating(&mut self) {
        let Ok(range) = self.range() else { return };
        let none = |entry: &Entry| entry.attachment.also.is_empty();
        if self.book.entries().all(none) {
            return;
        }
        let me = self.router.view().me;
        let lost = lost(&self.book, &self.holders(&range), me);
        if lost.is_empty() {
            return;
        }
        for (entry, ip) in &lost {
            tracing::info!(name = %entry.attachment.name, %ip, "has lost a floating address");
            self.take_from(entry, *ip).await;
        }
        let before = self.book.clone();
        let ips: Vec<IpAddr> = lost.iter().map(|(_, ip)| *ip).collect();
        self.book.drop_claims(&ips);
        if let Err(refusal) = self.save() {
            tracing::warn!(%refusal, "that addresses are others' is not written down");
            self.book = before;
        }
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
        let netns = containers::open_netns(&attachment.netns)?;
        let outer = containers::kernel_name(&attachment.host_ifname);
        let ifname = containers::kernel_name(&attachment.ifname);
        let given = self.side.host.give(&outer, (&netns, &ifname), ip).await;
        given.map_err(|error| {
            let refusal = containers::refused(&error);
            let fix = refusal.fix.replace("--ip", "--also");
            Refusal { fix, ..refusal }
        })
    }

    /// What cannot be taken is told in the log: without its route no packet comes from it or to it.
    async fn take_from(&self, entry: &Entry, ip: IpAddr) {
        let attachment = &entry.attachment;
        let outer = containers::kernel_name(&attachment.host_ifname);
        let ifname = containers::kernel_name(&attachment.ifname);
        // The namespace of a container that has ended may be another's by now.
        let netns = containers::open_netns(&attachment.netns).ok();
        let netns = netns.filter(|netns| containers::netns_id(netns) == entry.netns_id);
        let inside = netns.as_ref().map(|netns: &Netns| (netns, &ifname));
        if let Err(error) = self.side.host.take(&outer, inside, ip).await {
            tracing::warn!(name = %attachment.name, %ip, %error, "an address cannot be taken off");
        }
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

#[cfg(test)]
mod tests {
    use weave_model::{Sheet, SheetContainer};

    use super::super::book::tests::entry;
    use super::*;

    fn range() -> ClusterRange {
        ClusterRange::new(
            "10.32.0.0/12".parse().unwrap(),
            "fd00::/48".parse().unwrap(),
        )
        .unwrap()
    }

    fn node(byte: u8) -> NodeId {
        NodeId::from_bytes([byte; 32])
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn claim(text: &str, stamp: u64) -> Floating {
        Floating {
            ip: ip(text),
            pool: "vips".parse().unwrap(),
            stamp,
        }
    }

    /// A member with one container.
    fn member(id: u8, own: &str, floating: &[Floating]) -> Member {
        let container = SheetContainer {
            name: "web".parse().unwrap(),
            ips: vec![ip(own)],
            floating: floating.to_vec(),
            labels: BTreeMap::new(),
        };
        Member {
            id: node(id),
            name: format!("host{id}").parse().unwrap(),
            reachable: true,
            sheet: Sheet {
                containers: vec![container],
                ..Sheet::default()
            },
        }
    }

    /// Node 1 owns everything.
    fn held(members: &[Member]) -> Holders {
        let pool = range().block("10.45.0.0/26".parse().unwrap()).unwrap();
        holders(&[pool], &range(), members, |_| Some(node(1)))
    }

    #[test]
    fn the_newest_claim_holds_and_of_two_as_new_that_of_the_greater_node() {
        let of = |first, second| {
            let one = member(1, "10.32.0.2", &[claim("10.45.0.9", first)]);
            let two = member(2, "10.36.0.2", &[claim("10.45.0.9", second)]);
            let orders = [[one.clone(), two.clone()], [two, one]].map(|members| held(&members));
            assert_eq!(orders[0], orders[1]);
            orders[0][&ip("10.45.0.9")]
        };
        assert_eq!(of(8, 7), (8, node(1)));
        assert_eq!(of(7, 8), (8, node(2)));
        assert_eq!(of(7, 7), (7, node(2)));
    }

    #[test]
    fn only_addresses_of_pools_can_be_claimed_and_none_that_its_owner_has_given() {
        let claims = [
            "10.32.0.2",
            "10.32.0.1",
            "fd00::2",
            "10.45.0.64",
            "10.45.0.2",
            "fd00::d:2",
            "192.0.2.1",
            "10.45.0.63",
            "fd00::d:3f",
        ]
        .map(|text| claim(text, 9));
        // The pool was made over an address that the owner had given.
        let owner = member(1, "10.45.0.2", &[]);
        let liar = member(2, "10.36.0.2", &claims);
        let found = held(&[owner, liar.clone()]);
        let ips: Vec<String> = found.keys().map(ToString::to_string).collect();
        assert_eq!(ips, ["10.45.0.63", "fd00::d:3f"]);
        // Whoever is not the owner cannot keep an address from others by saying that it gave it.
        let other = member(3, "10.45.0.63", &[]);
        assert_eq!(held(&[liar, other])[&ip("10.45.0.63")], (9, node(2)));
    }

    #[test]
    fn a_node_has_lost_what_another_claimed_later_and_what_is_in_no_pool() {
        let mut web = entry("web", "eth0", 1);
        web.attachment.also = vec![
            claim("10.45.0.7", 5),
            claim("10.45.0.8", 5),
            claim("10.45.0.9", 5),
        ];
        let mut book = Book::default();
        book.insert(web);
        let holders = Holders::from([
            (ip("10.45.0.7"), (5, node(1))),
            (ip("10.45.0.8"), (6, node(2))),
        ]);
        let lost: Vec<IpAddr> = lost(&book, &holders, node(1))
            .into_iter()
            .map(|(_, ip)| ip)
            .collect();
        assert_eq!(lost, [ip("10.45.0.8"), ip("10.45.0.9")]);
        book.drop_claims(&lost);
        let also: Vec<&Floating> = book
            .entries()
            .flat_map(|entry| &entry.attachment.also)
            .collect();
        assert_eq!(also, [&claim("10.45.0.7", 5)]);
        assert_eq!(Book::from_bytes(&book.to_bytes()).unwrap(), book);
    }
}
