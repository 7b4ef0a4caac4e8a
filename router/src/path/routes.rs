//! Whose an address is and how to reach them: an immutable snapshot that data threads read without a lock.

#![deny(clippy::disallowed_methods)]

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};

use weave_model::{Block, ClusterRange, Drop, MtuReason, NodeId, PathMtu};

use super::cut::{Batch, MIN_DATAGRAM, MIN_RELAYED};
use super::stats::PeerCounters;
use super::trees::Trees;
use crate::session::{Inbound, Outbound};
use crate::wire::{END, ENVELOPE, Envelope, MAX_LANES};

/// Everything a data thread needs to know. The control core publishes a new one when anything in it changes.
#[derive(Debug, Default)]
pub struct Routes {
    /// The cluster's addresses; `None` before `init` or `join`.
    pub range: Option<ClusterRange>,
    /// Who owns which offsets: sorted, not overlapping.
    pub owners: Vec<Owned>,
    /// How envelopes name this node.
    pub me: [u8; END],
    /// Who holds which floating address, whoever owns its offset.
    pub floating: BTreeMap<IpAddr, Owner>,
    /// The members that owners name by place, by their ids.
    pub peers: Vec<Peer>,
    /// Sessions that may be received on, by our index.
    pub inbound: HashMap<u32, Receive>,
    /// The containers' interfaces, by interface index.
    pub ports: BTreeMap<u32, Port>,
    /// The ranges of networks besides the default one: sorted, not overlapping.
    pub areas: Vec<Area>,
    /// How broadcasts go, and whether sessions are made on demand.
    pub trees: Arc<Trees>,
}

/// A network besides the default one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Area {
    /// Its range. It alone says which network an address is in.
    pub block: Block,
    /// Its number, from 1.
    pub network: u16,
}

/// A run of offsets and who owns it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owned {
    /// Lowest offset.
    pub first: u32,
    /// Highest offset.
    pub last: u32,
    /// Whose it is.
    pub owner: Owner,
}

/// Who owns a run of offsets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// This node.
    Here,
    /// The member at that place in [`Routes::peers`].
    Peer(usize),
}

/// A member that packets can be sent to.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Who it is.
    pub id: NodeId,
    /// How to reach it now; `None` while there is no session.
    pub send: Option<NextHop>,
    /// What was exchanged with it.
    pub counters: Arc<PeerCounters>,
}

/// How packets reach a member.
#[derive(Clone, Debug)]
pub struct NextHop {
    /// Where datagrams go: to the member, or to the relay.
    pub to: SocketAddr,
    /// The session's sending half.
    pub outbound: Arc<Outbound>,
    /// Which lanes were answered, lane 0 needs no answer; and what fits the path of each.
    pub lanes: Arc<OpenLanes>,
    /// What puts them into envelopes for a relay; `None` on a direct path.
    pub via: Option<Arc<Via>>,
}

/// A relay, as it stands before one member.
#[derive(Clone, Debug)]
pub struct Via {
    /// The session with the relay.
    pub outbound: Arc<Outbound>,
    /// Its lanes.
    pub lanes: Arc<OpenLanes>,
    /// The trailer of the envelopes.
    pub trailer: [u8; Envelope::SIZE],
}

impl Via {
    /// Puts the datagrams of a batch, sealed on `lane`, into envelopes. Returns the lane to send these on.
    ///
    /// # Errors
    /// As [`Batch::envelop`].
    pub fn put_in(&self, batch: &mut Batch, lane: u8) -> Result<u8, Drop> {
        let lane = self.lanes.choose(lane);
        batch.envelop(&self.outbound, lane, &self.trailer)?;
        Ok(lane)
    }
}

impl NextHop {
    /// The most bytes of UDP payload that fit the path of the lane that a thread should use.
    pub fn datagram(&self, own: u8) -> usize {
        self.lanes.datagram(self.lanes.choose(own))
    }

    /// The lanes in use, ascending, and the largest packet that crosses the path of each.
    pub fn mtus(&self) -> Vec<(u8, PathMtu)> {
        let headers = match self.via {
            None => header_bytes(self.to),
            Some(_) => RELAYED_HEADERS,
        };
        let lanes = (0..MAX_LANES as u8).filter(|lane| self.lanes.is_open(*lane));
        let mtu = |lane| {
            let (datagram, reason) = self.lanes.path(lane);
            let bytes = datagram as u16 + headers;
            (lane, PathMtu { bytes, reason })
        };
        lanes.map(mtu).collect()
    }
}

/// Bytes of headers in front of a relayed datagram: an envelope, and IPv6 and UDP, since the relay may go on over IPv6.
pub const RELAYED_HEADERS: u16 = 40 + 8 + ENVELOPE as u16;

/// Bytes of the IP and UDP headers in front of what is sent to an address.
pub const fn header_bytes(to: SocketAddr) -> u16 {
    if to.is_ipv4() { 20 + 8 } else { 40 + 8 }
}

/// The lanes of a path that are known to get through, since a source port of its own may be stopped by a NAT or
/// firewall; and what fits the path of each. Data threads read it for each packet, so what changes here holds at once.
#[derive(Debug)]
pub struct OpenLanes {
    open: AtomicU8,
    /// The lanes over which packets were sent since this was asked last.
    used: AtomicU8,
    /// The least that every path carries, in bytes of UDP payload.
    least: usize,
    /// Of each lane the largest datagram in the lower 16 bits, above them the number of its [`MtuReason`].
    paths: [AtomicU32; MAX_LANES],
}

impl Default for OpenLanes {
    fn default() -> Self {
        Self::at_least(MIN_DATAGRAM)
    }
}

impl OpenLanes {
    /// The lanes of a path through a relay.
    pub fn relayed() -> Self {
        Self::at_least(MIN_RELAYED)
    }

    fn at_least(least: usize) -> Self {
        Self {
            open: AtomicU8::new(1),
            used: AtomicU8::new(0),
            least,
            paths: std::array::from_fn(|_| AtomicU32::new(least as u32)),
        }
    }

    /// The lane a thread should use: its own if that is open, else lane 0.
    pub fn choose(&self, own: u8) -> u8 {
        if self.is_open(own) { own } else { 0 }
    }

    /// Whether a lane, below 8, is open.
    pub fn is_open(&self, lane: u8) -> bool {
        self.open.load(Ordering::Relaxed) >> lane & 1 == 1
    }

    /// Notes that a lane was answered.
    pub fn open(&self, lane: u8) {
        self.open.fetch_or(1 << lane, Ordering::Relaxed);
    }

    /// Notes that a lane other than 0 stays silent.
    pub fn close(&self, lane: u8) {
        self.open.fetch_and(!(1 << lane) | 1, Ordering::Relaxed);
    }

    /// How many are open.
    pub fn count(&self) -> u32 {
        self.open.load(Ordering::Relaxed).count_ones()
    }

    /// The most bytes of UDP payload that fit the path of a lane, at least [`MIN_DATAGRAM`], or [`MIN_RELAYED`].
    pub fn datagram(&self, lane: u8) -> usize {
        self.path(lane).0
    }

    /// The same, and how it is known.
    pub fn path(&self, lane: u8) -> (usize, MtuReason) {
        let path = self.paths.get(usize::from(lane));
        let path = path.map_or(self.least as u32, |path| path.load(Ordering::Relaxed));
        let reason = MtuReason::from_number((path >> 16) as u8);
        ((path & 0xffff) as usize, reason)
    }

    /// Notes what fits the path of a lane, in bytes of UDP payload.
    pub fn set_path(&self, lane: u8, datagram: u16, reason: MtuReason) {
        if let Some(path) = self.paths.get(usize::from(lane)) {
            let datagram = datagram.max(self.least as u16);
            path.store(
                u32::from(reason as u8) << 16 | u32::from(datagram),
                Ordering::Relaxed,
            );
        }
    }

    /// Notes that packets are sent over a lane.
    pub fn note_used(&self, lane: u8) {
        if self.used.load(Ordering::Relaxed) >> lane & 1 == 0 {
            self.used.fetch_or(1 << lane, Ordering::Relaxed);
        }
    }

    /// Whether packets were sent over a lane since this was asked last.
    pub fn take_used(&self, lane: u8) -> bool {
        let mask = 1 << lane;
        self.used.load(Ordering::Relaxed) & mask != 0
            && self.used.fetch_and(!mask, Ordering::Relaxed) & mask != 0
    }
}

/// A session that packets are received on.
#[derive(Clone, Debug)]
pub struct Receive {
    /// The receiving half.
    pub inbound: Arc<Inbound>,
    /// The sender's place in [`Routes::peers`]; `None` for one that owns nothing we know of.
    pub peer: Option<usize>,
    /// What was exchanged with it.
    pub counters: Arc<PeerCounters>,
}

/// The number of the network of every address that is in no [`Area`].
pub const DEFAULT_NETWORK: u16 = 0;

/// A container's interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Port {
    /// The container's offset.
    pub offset: u32,
    /// The network it is in.
    pub network: u16,
}

impl Routes {
    /// The same, with who holds which floating address. Of one that is no member nothing is said.
    pub fn with_floating(
        mut self,
        me: NodeId,
        holders: impl Iterator<Item = (IpAddr, NodeId)>,
    ) -> Self {
        let owner = |id| match self.place(id) {
            Some(place) => Some(Owner::Peer(place)),
            None => (id == me).then_some(Owner::Here),
        };
        self.floating = holders
            .filter_map(|(ip, id)| Some((ip, owner(id)?)))
            .collect();
        self
    }

    /// The place of a member.
    pub fn place(&self, id: NodeId) -> Option<usize> {
        self.peers.binary_search_by_key(&id, |peer| peer.id).ok()
    }

    /// The place of the member that an envelope names so.
    pub fn member(&self, end: &[u8; END]) -> Option<usize> {
        let named = |peer: &Peer| peer.id.as_bytes()[..END].cmp(end);
        self.peers.binary_search_by(named).ok()
    }

    /// Who owns an offset.
    pub fn owner(&self, offset: u32) -> Option<Owner> {
        let place = self.owners.partition_point(|owned| owned.last < offset);
        self.owners
            .get(place)
            .filter(|owned| owned.first <= offset)
            .map(|owned| owned.owner)
    }

    /// Whose an address is, by deed or as a floating address; `None` outside the cluster or if it is nobody's.
    pub fn owner_of(&self, address: IpAddr) -> Option<Owner> {
        if let Some(holder) = self.floating.get(&address) {
            return Some(*holder);
        }
        self.owner(self.range.as_ref()?.offset(address)?)
    }

    /// Whether an address is a network's gateway's, which every node has: no packet between nodes comes from it.
    pub fn is_gateway(&self, address: IpAddr) -> bool {
        let Some(range) = &self.range else {
            return false;
        };
        range.offset(address).is_some_and(|offset| {
            let network = self.area(offset).map_or(0, |area| area.block.first());
            offset == network + 1
        })
    }

    fn area(&self, offset: u32) -> Option<&Area> {
        let after = self
            .areas
            .partition_point(|area| area.block.first() <= offset);
        let area = self.areas.get(after.checked_sub(1)?)?;
        area.block.contains(offset).then_some(area)
    }

    /// The network that an address is in; one outside of the cluster is in the default network.
    pub fn network_of(&self, address: IpAddr) -> u16 {
        if self.areas.is_empty() {
            return DEFAULT_NETWORK;
        }
        let offset = self.range.as_ref().and_then(|range| range.offset(address));
        offset
            .and_then(|offset| self.area(offset))
            .map_or(DEFAULT_NETWORK, |area| area.network)
    }

    /// The broadcast address of a network; `None` for a network that is not known.
    pub fn broadcast(&self, network: u16) -> Option<Ipv4Addr> {
        let range = self.range.as_ref()?;
        if network == DEFAULT_NETWORK {
            return Some(range.v4().broadcast());
        }
        let area = self.areas.iter().find(|area| area.network == network)?;
        Some(range.v4_at(area.block.last()))
    }

    fn within_one(&self, source: IpAddr, destination: IpAddr) -> Result<(), Drop> {
        match self.network_of(source) == self.network_of(destination) {
            true => Ok(()),
            false => Err(Drop::OtherNetwork),
        }
    }

    /// The member that a packet of ours goes to.
    ///
    /// # Errors
    /// [`Drop::ForeignSource`] if the source is not ours to use, [`Drop::NoRoute`] if nobody else owns the destination,
    /// [`Drop::OtherNetwork`] if the two are in different networks.
    pub fn towards(&self, source: IpAddr, destination: IpAddr) -> Result<usize, Drop> {
        if self.owner_of(source) != Some(Owner::Here) || self.is_gateway(source) {
            return Err(Drop::ForeignSource);
        }
        self.within_one(source, destination)?;
        match self.owner_of(destination) {
            Some(Owner::Peer(place)) => Ok(place),
            Some(Owner::Here) | None => Err(Drop::NoRoute),
        }
    }

    /// Whether a member may send us a packet with these addresses.
    ///
    /// # Errors
    /// [`Drop::ForeignSource`] if the source is not its own, [`Drop::NotOurs`] if the destination is not ours,
    /// [`Drop::OtherNetwork`] if the two are in different networks.
    pub fn admit(
        &self,
        peer: Option<usize>,
        source: IpAddr,
        destination: IpAddr,
    ) -> Result<(), Drop> {
        self.admit_source(peer, source)?;
        self.within_one(source, destination)?;
        match self.owner_of(destination) {
            Some(Owner::Here) => Ok(()),
            Some(Owner::Peer(_)) | None => Err(Drop::NotOurs),
        }
    }

    /// Whose packet for a group this is, if the member that it came from may send it or hand it on to us.
    ///
    /// # Errors
    /// [`Drop::ForeignSource`] if it may not.
    pub fn admit_group(&self, peer: Option<usize>, source: IpAddr) -> Result<usize, Drop> {
        let (Some(Owner::Peer(owner)), Some(peer)) = (self.owner_of(source), peer) else {
            return Err(Drop::ForeignSource);
        };
        let by_tree = || {
            let branch = self.trees.branch(self.peers[owner].id);
            branch.is_some_and(|branch| branch.parent == Some(self.peers[peer].id))
        };
        if owner == peer || by_tree() {
            Ok(owner)
        } else {
            Err(Drop::ForeignSource)
        }
    }

    /// Whether a member may send us a packet from this address.
    ///
    /// # Errors
    /// [`Drop::ForeignSource`] if it may not.
    pub fn admit_source(&self, peer: Option<usize>, source: IpAddr) -> Result<(), Drop> {
        match (self.owner_of(source), peer) {
            (Some(Owner::Peer(owner)), Some(peer)) if owner == peer => Ok(()),
            _ => Err(Drop::ForeignSource),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn routes() -> Routes {
        let range = ClusterRange::new(
            "10.32.0.0/12".parse().unwrap(),
            "fd00::/48".parse().unwrap(),
        )
        .unwrap();
        let owned = |first, last, owner| Owned { first, last, owner };
        Routes {
            range: Some(range),
            owners: vec![
                owned(0, 255, Owner::Here),
                owned(512, 767, Owner::Peer(0)),
                owned(768, 1023, Owner::Peer(1)),
            ],
            ..Routes::default()
        }
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn offsets_find_their_owner() {
        let routes = routes();
        for (offset, owner) in [
            (0, Some(Owner::Here)),
            (255, Some(Owner::Here)),
            (256, None),
            (512, Some(Owner::Peer(0))),
            (768, Some(Owner::Peer(1))),
            (1024, None),
        ] {
            assert_eq!(routes.owner(offset), owner, "{offset}");
        }
        assert_eq!(routes.owner_of(ip("fd00::300")), Some(Owner::Peer(1)));
        assert_eq!(routes.owner_of(ip("8.8.8.8")), None);
    }

    #[test]
    fn networks_are_told_apart_by_their_addresses_both_ways() {
        let area = |first, network| Area {
            block: Block::new(first, 7).unwrap(),
            network,
        };
        let routes = Routes {
            areas: vec![area(128, 7), area(640, 9)],
            ..routes()
        };
        for (address, network) in [
            ("10.32.0.127", 0),
            ("10.32.0.128", 7),
            ("fd00::ff", 7),
            ("10.32.1.0", 0),
            ("10.32.2.128", 9),
            ("8.8.8.8", 0),
        ] {
            assert_eq!(routes.network_of(ip(address)), network, "{address}");
        }
        let other = Err(Drop::OtherNetwork);
        for (here, there) in [
            ("10.32.0.9", "10.32.2.129"),
            ("10.32.0.130", "10.32.2.9"),
            ("fd00::82", "fd00::209"),
            ("10.32.0.130", "10.32.2.130"),
        ] {
            assert_eq!(routes.towards(ip(here), ip(there)), other, "{here}");
            let back = routes.admit(Some(0), ip(there), ip(here));
            assert_eq!(back.map(|()| 0), other, "{there}");
        }
        assert_eq!(routes.towards(ip("10.32.0.9"), ip("10.32.2.9")), Ok(0));
        assert!(routes.is_gateway(ip("10.32.0.129")) && routes.is_gateway(ip("10.32.0.1")));
        assert!(!routes.is_gateway(ip("10.32.0.2")));
        assert_eq!(routes.broadcast(7), "10.32.0.255".parse().ok());
        assert_eq!(
            (routes.broadcast(0), routes.broadcast(8)),
            ("10.47.255.255".parse().ok(), None)
        );
    }

    #[test]
    fn only_own_sources_leave_and_only_their_own_arrive() {
        let routes = routes();
        assert_eq!(routes.towards(ip("10.32.0.9"), ip("10.32.2.9")), Ok(0));
        assert_eq!(
            routes.towards(ip("10.32.2.1"), ip("10.32.2.9")),
            Err(Drop::ForeignSource)
        );
        assert_eq!(
            routes.towards(ip("10.32.0.1"), ip("10.32.2.9")),
            Err(Drop::ForeignSource),
            "the gateway is everywhere"
        );
        assert_eq!(
            routes.towards(ip("10.32.0.9"), ip("10.32.1.9")),
            Err(Drop::NoRoute)
        );
        assert_eq!(
            routes.admit(Some(0), ip("10.32.2.9"), ip("10.32.0.9")),
            Ok(())
        );
        assert_eq!(
            routes.admit(Some(1), ip("10.32.2.9"), ip("10.32.0.9")),
            Err(Drop::ForeignSource)
        );
        assert_eq!(
            routes.admit(None, ip("10.32.2.9"), ip("10.32.0.9")),
            Err(Drop::ForeignSource)
        );
        assert_eq!(
            routes.admit(Some(0), ip("10.32.2.9"), ip("10.32.3.9")),
            Err(Drop::NotOurs)
        );
    }

    #[test]
    fn a_floating_address_is_its_holder_s_alone_and_moves_whole() {
        let held = |holder| Routes {
            floating: [(ip("10.32.0.200"), holder)].into(),
            ..routes()
        };
        // The offset is this node's by deed; member 1 holds the address, and neither this node nor member 0 has it.
        let away = held(Owner::Peer(1));
        let (from, to) = (ip("10.32.0.200"), ip("10.32.0.9"));
        assert_eq!(away.towards(to, from), Ok(1));
        assert_eq!(
            away.towards(from, ip("10.32.2.9")),
            Err(Drop::ForeignSource)
        );
        assert_eq!(away.admit(Some(1), from, to), Ok(()));
        assert_eq!(away.admit(Some(0), from, to), Err(Drop::ForeignSource));
        assert_eq!(
            away.admit(Some(0), ip("10.32.2.9"), from),
            Err(Drop::NotOurs)
        );
        // Its counterpart of the other family is another address.
        assert_eq!(away.owner_of(ip("fd00::c8")), Some(Owner::Here));
        let here = held(Owner::Here);
        assert_eq!(here.towards(from, ip("10.32.2.9")), Ok(0));
        assert_eq!(here.admit(Some(0), ip("10.32.2.9"), from), Ok(()));
        assert_eq!(here.admit(Some(1), from, to), Err(Drop::ForeignSource));
    }

    #[test]
    fn lane_0_never_closes() {
        let lanes = OpenLanes::default();
        assert_eq!(lanes.choose(3), 0);
        lanes.open(3);
        assert_eq!((lanes.choose(3), lanes.count()), (3, 2));
        lanes.close(3);
        lanes.close(0);
        assert_eq!((lanes.choose(3), lanes.count()), (0, 1));
    }
    #[test]
    fn a_lane_knows_its_path_and_whether_it_was_used() {
        let lanes = OpenLanes::default();
        assert_eq!(lanes.path(3), (MIN_DATAGRAM, MtuReason::Floor));
        lanes.set_path(3, 8972, MtuReason::Interface);
        assert_eq!(lanes.path(3), (8972, MtuReason::Interface));
        assert_eq!(lanes.datagram(0), MIN_DATAGRAM);
        lanes.set_path(3, 100, MtuReason::Floor);
        assert_eq!(lanes.datagram(3), MIN_DATAGRAM, "never less");
        lanes.note_used(3);
        assert!(!lanes.take_used(0) && lanes.take_used(3) && !lanes.take_used(3));
    }
}
