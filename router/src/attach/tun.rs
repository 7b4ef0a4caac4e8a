//! The host's own part: forwarding switched on, the TUN device with the gateway's addresses, the cluster's routes, and
//! the node's own address when it is exposed.

use std::net::IpAddr;

use ipnet::IpNet;
use weave_linux::netlink::link::LinkChange;
use weave_linux::netlink::route::Kind;
use weave_linux::netlink::{Address, Link, Route};
use weave_linux::netns::run_in;
use weave_linux::sysctl;
use weave_model::ClusterRange;

use super::changes::{Changes, Setting, device_settings};
use super::{Error, GSO_MAX_SIZE, Host, ROUTE_PROTOCOL, TAG, outer};

/// What the host should be like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostSpec {
    /// The cluster's ranges.
    pub range: ClusterRange,
    /// The largest packet of the TUN device, in bytes: the containers' MTU.
    pub mtu: u32,
    /// The node's own address, as an offset into the ranges, while it is exposed.
    pub exposed: Option<u32>,
}

/// What came of preparing the host.
#[derive(Debug)]
pub struct Prepared {
    /// Whether the host has IPv6; without it the network is IPv4 only.
    pub ipv6: bool,
    /// What had to be changed; nothing, after a restart.
    pub changed: Vec<String>,
    /// What else on the host has to do with the cluster's addresses, if it came after us: packets may go astray.
    pub overlap: Option<Error>,
}

impl Host {
    /// Makes the host a router for the cluster. The TUN device has to be there. What is right already stays as it is, and
    /// what earlier settings left on the device goes. What [`Host::check_overlap`] finds is reported and nothing more: a
    /// cluster is not left for a route that somebody adds later. One that comes without a change of devices or addresses is
    /// found at a later call, [`super::glance::AGE`] after the last at most.
    pub async fn prepare(&self, spec: &HostSpec) -> Result<Prepared, Error> {
        let overlap = self
            .glance_overlap(&spec.range)
            .await
            .unwrap_or_else(|error| {
                tracing::debug!(%error, "what overlaps the cluster's range is not known this time");
                None
            });
        let tun = self.tun().await?;
        let ipv6 = self.has_ipv6()?;
        let (mut host, mut device) = (Changes::default(), Changes::default());
        match self
            .make_router(spec, &tun, ipv6, &mut host, &mut device)
            .await
        {
            Ok(()) => {
                let mut changed = device.describe();
                changed.extend(host.describe());
                Ok(Prepared {
                    ipv6,
                    changed,
                    overlap: overlap.map(Error::from),
                })
            }
            Err(cause) => Err(host.undo(&self.netns, &self.netlink, cause).await),
        }
    }

    /// Gives the host an address of its own in the cluster, which its packets to the cluster then come from.
    pub async fn expose(&self, range: &ClusterRange, offset: u32) -> Result<(), Error> {
        self.set_exposed(range, Some(offset)).await
    }

    /// Takes the host's own address away. Doing it again is fine.
    pub async fn hide(&self, range: &ClusterRange) -> Result<(), Error> {
        self.set_exposed(range, None).await
    }

    /// Takes our addresses and routes off the TUN device, for a node that leaves the cluster. What fails does not stop
    /// the rest; the errors are returned.
    pub async fn clear(&self) -> Vec<Error> {
        let mut errors = Vec::new();
        let tun = match self.tun().await {
            Ok(tun) => tun,
            Err(Error::NoTun(_)) => return errors,
            Err(error) => return vec![error],
        };
        let mut changes = Changes::default();
        errors.extend(self.drop_stale_routes(&tun, &[], &mut changes).await.err());
        errors.extend(
            self.drop_stale_addresses(&tun, &[], &mut changes)
                .await
                .err(),
        );
        errors
    }

    /// Refuses an address that the host routes to another device than the one it may be on already.
    pub(super) async fn check_free(&self, address: IpAddr, may: Option<u32>) -> Result<(), Error> {
        let found = self.netlink.route_for(address).await?;
        let taken = found.filter(|route| route.to == IpNet::from(address));
        let Some(route) = taken.filter(|route| may.is_none() || route.link != may) else {
            return Ok(());
        };
        let link = self.netlink.link_at(route.link.unwrap_or(0)).await?;
        let device = link.map_or_else(|| "a route".to_owned(), |link| link.name);
        Err(Error::AddressTaken { address, device })
    }

    /// Whether the host has IPv6: built in, and not switched off for all devices.
    pub(super) fn has_ipv6(&self) -> Result<bool, Error> {
        match run_in(&self.netns, || {
            sysctl::read("net/ipv6/conf/all/disable_ipv6")
        })? {
            Ok(disabled) => Ok(disabled == "0"),
            Err(sysctl::Error::Missing(_)) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    pub(super) async fn tun(&self) -> Result<Link, Error> {
        let found = self.netlink.link(&self.tun).await?;
        found
            .filter(|link| link.kind == "tun")
            .ok_or_else(|| Error::NoTun(self.tun.clone()))
    }

    /// `host` is what would stay behind on the host after a failure. The settings of the device, which is ours, hurt
    /// nobody; undoing them would only make the kernel give it addresses.
    async fn make_router(
        &self,
        spec: &HostSpec,
        tun: &Link,
        ipv6: bool,
        host: &mut Changes,
        device: &mut Changes,
    ) -> Result<(), Error> {
        device.settings(&self.netns, &device_settings(&tun.name, ipv6))?;
        host.settings(&self.netns, &self.forwarding(ipv6)?)?;
        let wanted = LinkChange {
            mtu: Some(spec.mtu),
            gso_max_size: Some(GSO_MAX_SIZE),
            alias: Some(format!("{TAG}: router")),
            ..LinkChange::up()
        };
        host.link(&self.netlink, tun, wanted).await?;
        self.addresses_and_routes(&spec.range, spec.exposed, tun, ipv6, host)
            .await
    }

    async fn set_exposed(&self, range: &ClusterRange, exposed: Option<u32>) -> Result<(), Error> {
        let tun = self.tun().await?;
        let ipv6 = self.has_ipv6()?;
        if let Some(offset) = exposed {
            for address in [range.v4_at(offset).into(), range.v6_at(offset).into()] {
                self.check_free(address, Some(tun.index)).await?;
            }
        }
        let mut changes = Changes::default();
        let set = self
            .addresses_and_routes(range, exposed, &tun, ipv6, &mut changes)
            .await;
        match set {
            Ok(()) => Ok(()),
            Err(cause) => Err(changes.undo(&self.netns, &self.netlink, cause).await),
        }
    }

    /// New addresses come before the routes that prefer them, and old ones go after.
    async fn addresses_and_routes(
        &self,
        range: &ClusterRange,
        exposed: Option<u32>,
        tun: &Link,
        ipv6: bool,
        changes: &mut Changes,
    ) -> Result<(), Error> {
        let addresses = tun_addresses(range, exposed, ipv6);
        for &address in &addresses {
            changes
                .address(&self.netlink, &Address::new(tun.index, address.into()))
                .await?;
        }
        let routes = cluster_routes(range, exposed, tun, ipv6);
        for route in &routes {
            changes.route(&self.netlink, route).await?;
        }
        self.drop_stale_routes(tun, &routes, changes).await?;
        self.drop_stale_addresses(tun, &addresses, changes).await
    }

    async fn drop_stale_routes(
        &self,
        tun: &Link,
        wanted: &[Route],
        changes: &mut Changes,
    ) -> Result<(), Error> {
        for route in self.netlink.routes_by(ROUTE_PROTOCOL).await? {
            let ours = route.link == Some(tun.index) || route.kind == Kind::Refuse;
            if ours && !wanted.iter().any(|wanted| wanted.agrees(&route)) {
                changes.no_route(&self.netlink, route).await?;
            }
        }
        Ok(())
    }

    async fn drop_stale_addresses(
        &self,
        tun: &Link,
        wanted: &[IpAddr],
        changes: &mut Changes,
    ) -> Result<(), Error> {
        for address in self.netlink.addresses(Some(tun.index)).await? {
            let own = match address.net {
                IpNet::V4(_) => true,
                IpNet::V6(v6) => !v6.addr().is_unicast_link_local(),
            };
            if own && !wanted.contains(&address.net.addr()) {
                changes.no_address(&self.netlink, address).await?;
            }
        }
        Ok(())
    }

    /// What switches forwarding on without taking something from the host.
    ///
    /// A forwarding host takes no router advertisements unless `accept_ra` is 2. So devices that take them now, the
    /// uplink among them, get that first, or the host would lose its IPv6 default route.
    fn forwarding(&self, ipv6: bool) -> Result<Vec<Setting>, Error> {
        let mut settings: Vec<Setting> = vec![("net/ipv4/ip_forward".into(), "1")];
        if !ipv6 {
            return Ok(settings);
        }
        let listening = run_in(&self.netns, || {
            if sysctl::read("net/ipv6/conf/all/forwarding")? != "0" {
                return Ok(Vec::new());
            }
            listening_for_routers(self.tun.as_str())
        })??;
        settings.extend(
            listening
                .into_iter()
                .map(|name| (format!("net/ipv6/conf/{name}/accept_ra"), "2")),
        );
        settings.push(("net/ipv6/conf/all/forwarding".into(), "1"));
        Ok(settings)
    }
}

/// The devices, but for our own, that take router advertisements as long as they do not forward.
fn listening_for_routers(tun: &str) -> Result<Vec<String>, Error> {
    let mut listening = Vec::new();
    for name in sysctl::list("net/ipv6/conf")? {
        if ["all", "default", "lo", tun].contains(&name.as_str()) || outer::is_outer_name(&name) {
            continue;
        }
        match sysctl::read(&format!("net/ipv6/conf/{name}/accept_ra")) {
            Ok(accepts) if accepts == "1" => listening.push(name),
            // It went away meanwhile.
            Ok(_) | Err(sysctl::Error::Missing(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(listening)
}

/// The addresses of the TUN device: the gateway's, and the node's own.
fn tun_addresses(range: &ClusterRange, exposed: Option<u32>, ipv6: bool) -> Vec<IpAddr> {
    let gateway = range.offset_v4(range.gateway());
    let mut addresses = Vec::new();
    for offset in gateway.into_iter().chain(exposed) {
        addresses.push(IpAddr::V4(range.v4_at(offset)));
        addresses.extend(ipv6.then(|| IpAddr::V6(range.v6_at(offset))));
    }
    addresses
}

/// The routes to the cluster's ranges. What no container here has goes to the router; and while the device is down or
/// gone, and its routes with it, nowhere: not by the default route, in clear.
fn cluster_routes(
    range: &ClusterRange,
    exposed: Option<u32>,
    tun: &Link,
    ipv6: bool,
) -> Vec<Route> {
    let source4 = exposed.map(|offset| IpAddr::V4(range.v4_at(offset)));
    let source6 = exposed.map(|offset| IpAddr::V6(range.v6_at(offset)));
    let mut ranges = vec![(IpNet::V4(range.v4()), source4)];
    ranges.extend(ipv6.then_some((IpNet::V6(range.v6()), source6)));
    let routes = ranges.into_iter().flat_map(|(to, source)| {
        let route = Route::new(to, tun.index).protocol(ROUTE_PROTOCOL);
        let nowhere = Route {
            kind: Kind::Refuse,
            link: None,
            metric: LAST_METRIC,
            ..route
        };
        [Route { source, ..route }, nowhere]
    });
    routes.collect()
}

/// The metric of a route that every other one is preferred to.
const LAST_METRIC: u32 = u32::MAX;
