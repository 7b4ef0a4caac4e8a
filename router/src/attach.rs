//! Attaching a container to the network, and the host's own part of it: the only place that orders the steps.
//!
//! There is no bridge. The host routes: each container has a veth pair whose outer end stands alone in the host's stack,
//! with one route per address, and everything else of the cluster's range goes to the TUN device, behind which the
//! router finds the node that owns the destination.
//!
//! | where | what |
//! |---|---|
//! | container | its IPv4 address with the range's whole prefix and broadcast address, but no prefix route; a route to the gateway on the link; the range, and the default route if there is none, by the gateway; its IPv6 address as a /128, with routes by `fe80::1` |
//! | outer end | the gateway's address, `fe80::1`, `proxy_arp` without delay (for a container that insists on a prefix route), routes to the container's two addresses |
//! | TUN | the gateway's addresses, the node's own address when it is exposed, the routes to the cluster's two ranges |
//!
//! The gateway's address stands on every outer end, and not on the TUN device alone, so that containers find it by ARP
//! whatever `arp_ignore` says, and so that those of one host keep talking when the TUN device is gone.
//!
//! A runtime that moves the container's end itself is lent a pair ([`Host::lend`]); its outer end is the same.
//!
//! Nothing is half made: [`Host::attach`], [`Host::lend`], [`Host::prepare`] and [`Host::expose`] undo what they did
//! when a step fails. Nothing right is made again: [`Host::prepare`] and [`Host::repair`] look first, so a restart
//! changes nothing; [`Host::check`] only looks.
//! The futures are not to be dropped half-way: run them in a task that is waited for.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use weave_linux::netlink::{Address, IfName, Link, Netlink};
use weave_linux::netns::Netns;
use weave_model::ClusterRange;

mod changes;
mod check;
mod container;
mod error;
mod floating;
pub mod glance;
mod lend;
mod limits;
mod outer;
mod overlap;
mod pair;
mod spec;
mod tun;
mod virtuals;

pub use error::Error;
use glance::Glance;
pub use lend::Lent;
pub use pair::{Detached, Repaired, Step};
pub use spec::{AttachSpec, Attached, Attachment, DefaultRoute, NoIpv6};
pub use tun::{HostSpec, Prepared};
pub use virtuals::VIRTUAL_PROTOCOL;

/// What our routes say about who made them; a number that `rt_protos` gives to nobody.
pub const ROUTE_PROTOCOL: u8 = 87;

/// The largest super-packet of our devices, in bytes: with the overlay's headers it still fits one send of at most
/// 65,507 bytes and 64 segments.
pub const GSO_MAX_SIZE: u32 = 60_000;

/// The largest packet that a container is handed whole: several super-packets that were joined on arrival.
pub const JOINED_MAX_SIZE: u32 = 1 << 18;

/// What the alias of a device of ours begins with.
pub const TAG: &str = "weave";

/// The host that containers are attached to: one network namespace with one TUN device.
#[derive(Debug)]
pub struct Host {
    netns: Arc<Netns>,
    netlink: Netlink,
    tun: IfName,
    /// What the cluster's range overlapped.
    overlap: Mutex<Glance<(ClusterRange, Option<overlap::Overlap>)>>,
}

impl Host {
    /// The host whose namespace the calling thread is in. `tun` is the name of the router's device, which may come
    /// later.
    pub fn open(tun: IfName) -> Result<Self, Error> {
        Self::open_in(Netns::current()?, tun)
    }

    /// A host in another namespace.
    pub fn open_in(netns: Netns, tun: IfName) -> Result<Self, Error> {
        let netlink = Netlink::open_in(&netns)?;
        Ok(Self {
            netns: Arc::new(netns),
            netlink,
            tun,
            overlap: Mutex::default(),
        })
    }

    /// Refuses a range of which the host already routes a part, or has an address in. Changes nothing.
    ///
    /// Devices of ours do not count, nor does the default route, nor any other route that is too broad to mean these
    /// addresses (shorter than /8, or than /7 for IPv6).
    pub async fn check_overlap(&self, range: &ClusterRange) -> Result<(), Error> {
        let (links, addresses) = self.foreign_devices().await?;
        let routes = self.netlink.routes(None).await?;
        let found = overlap::find(range, &links, &routes, &addresses);
        found.map_or(Ok(()), |found| Err(found.into()))
    }

    /// The same for a look that comes every few seconds: routes that came alone may be found a few minutes later.
    async fn glance_overlap(
        &self,
        range: &ClusterRange,
    ) -> Result<Option<overlap::Overlap>, Error> {
        let (links, addresses) = self.foreign_devices().await?;
        let began = Instant::now();
        let kept = lock(&self.overlap).recall(&links, &addresses, began);
        if let Some((_, found)) = kept.filter(|(of, _)| of == range) {
            return Ok(found);
        }
        let routes = self.netlink.routes(None).await?;
        let found = overlap::find(range, &links, &routes, &addresses);
        let concluded = (*range, found.clone());
        lock(&self.overlap).keep((&links, &addresses), concluded, began.elapsed(), began);
        Ok(found)
    }

    /// The devices that are not ours, and their addresses.
    async fn foreign_devices(&self) -> Result<(Vec<Link>, Vec<Address>), Error> {
        let mut links = self.netlink.links().await?;
        links.retain(|link| !self.is_ours(link));
        let mut addresses = self.netlink.addresses(None).await?;
        addresses.retain(|address| links.iter().any(|link| link.index == address.link));
        Ok((links, addresses))
    }

    /// The outer ends of all attached containers, by index.
    pub async fn attached(&self) -> Result<Vec<Link>, Error> {
        let links = self.netlink.links().await?;
        Ok(links.into_iter().filter(outer::is_outer_end).collect())
    }

    fn is_ours(&self, link: &Link) -> bool {
        link.name == self.tun.as_str() || outer::is_outer_end(link)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
