//! Whose an address is and how to reach them: an immutable snapshot that data threads read without a lock.

#![deny(clippy::disallowed_methods)]

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use weave_model::{ClusterRange, Drop, NodeId};

use super::stats::PeerCounters;
use crate::session::{Inbound, Outbound};

/// Everything a data thread needs to know. The control core publishes a new one when anything in it changes.
#[derive(Debug, Default)]
pub struct Routes {
    /// The cluster's addresses; `None` before `init` or `join`.
    pub range: Option<ClusterRange>,
    /// Who owns which offsets: sorted, not overlapping.
    pub owners: Vec<Owned>,
    /// The members that owners name by place.
    pub peers: Vec<Peer>,
    /// Sessions that may be received on, by our index.
    pub inbound: HashMap<u32, Receive>,
    /// The containers' interfaces, by interface index.
    pub ports: BTreeMap<u32, Port>,
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
    pub send: Option<Send>,
    /// What was exchanged with it.
    pub counters: Arc<PeerCounters>,
}

/// How packets reach a member.
#[derive(Clone, Debug)]
pub struct Send {
    /// Where datagrams go.
    pub to: SocketAddr,
    /// The session's sending half.
    pub outbound: Arc<Outbound>,
    /// The most bytes of UDP payload that fit the path.
    pub datagram: usize,
    /// Which lanes were answered; lane 0 needs no answer.
    pub lanes: Arc<OpenLanes>,
}

/// The lanes of a path that are known to get through: a source port of its own may be stopped by a NAT or firewall.
#[derive(Debug)]
pub struct OpenLanes(AtomicU8);

impl Default for OpenLanes {
    fn default() -> Self {
        Self(AtomicU8::new(1))
    }
}

impl OpenLanes {
    /// The lane a thread should use: its own if that is open, else lane 0.
    pub fn choose(&self, own: u8) -> u8 {
        if self.is_open(own) { own } else { 0 }
    }

    /// Whether a lane, below 8, is open.
    pub fn is_open(&self, lane: u8) -> bool {
        self.0.load(Ordering::Relaxed) >> lane & 1 == 1
    }

    /// Notes that a lane was answered.
    pub fn open(&self, lane: u8) {
        self.0.fetch_or(1 << lane, Ordering::Relaxed);
    }

    /// Notes that a lane other than 0 stays silent.
    pub fn close(&self, lane: u8) {
        self.0.fetch_and(!(1 << lane) | 1, Ordering::Relaxed);
    }

    /// How many are open.
    pub fn count(&self) -> u32 {
        self.0.load(Ordering::Relaxed).count_ones()
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

/// The number of the network that every container is in until there are several.
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
    /// Who owns an offset.
    pub fn owner(&self, offset: u32) -> Option<Owner> {
        let place = self.owners.partition_point(|owned| owned.last < offset);
        self.owners
            .get(place)
            .filter(|owned| owned.first <= offset)
            .map(|owned| owned.owner)
    }

    /// Who owns an address; `None` outside the cluster or if nobody does.
    pub fn owner_of(&self, address: IpAddr) -> Option<Owner> {
        self.owner(self.range.as_ref()?.offset(address)?)
    }

    /// The member that a packet of ours goes to.
    ///
    /// # Errors
    /// [`Drop::ForeignSource`] if the source is not ours to use, [`Drop::NoRoute`] if nobody else owns the destination.
    pub fn towards(&self, source: IpAddr, destination: IpAddr) -> Result<usize, Drop> {
        if self.owner_of(source) != Some(Owner::Here) {
            return Err(Drop::ForeignSource);
        }
        match self.owner_of(destination) {
            Some(Owner::Peer(place)) => Ok(place),
            Some(Owner::Here) | None => Err(Drop::NoRoute),
        }
    }

    /// Whether a member may send us a packet with these addresses.
    ///
    /// # Errors
    /// [`Drop::ForeignSource`] if the source is not its own, [`Drop::NotOurs`] if the destination is not ours.
    pub fn admit(
        &self,
        peer: Option<usize>,
        source: IpAddr,
        destination: IpAddr,
    ) -> Result<(), Drop> {
        self.admit_source(peer, source)?;
        match self.owner_of(destination) {
            Some(Owner::Here) => Ok(()),
            Some(Owner::Peer(_)) | None => Err(Drop::NotOurs),
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
    fn only_own_sources_leave_and_only_their_own_arrive() {
        let routes = routes();
        assert_eq!(routes.towards(ip("10.32.0.9"), ip("10.32.2.9")), Ok(0));
        assert_eq!(
            routes.towards(ip("10.32.2.1"), ip("10.32.2.9")),
            Err(Drop::ForeignSource)
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
    fn lane_0_never_closes() {
        let lanes = OpenLanes::default();
        assert_eq!(lanes.choose(3), 0);
        lanes.open(3);
        assert_eq!((lanes.choose(3), lanes.count()), (3, 2));
        lanes.close(3);
        lanes.close(0);
        assert_eq!((lanes.choose(3), lanes.count()), (0, 1));
    }
}
