//! Floating addresses: what an attached container is given beside its own address, and loses again.
//!
//! Nobody has to be told by gratuitous ARP or an unsolicited advertisement: a container's neighbours are outer ends,
//! which all have one hardware address, and the host's neighbour entries are of the device that its route names. So the
//! address is wherever the host's route to it leads, and the same route is what lets packets from it in.

use std::net::IpAddr;

use ipnet::IpNet;
use weave_linux::netlink::{self, Address, IfName, Link, Netlink, Route};
use weave_linux::netns::Netns;

use super::changes::Changes;
use super::{Error, Host, ROUTE_PROTOCOL, outer};

impl Host {
    /// Gives an attached container a further address: first to its device, then to the host's routes. One that another
    /// container of this host has is routed to this one from now on. Doing it again is fine; whatever step fails, nothing
    /// of it is left.
    pub async fn give(
        &self,
        outer: &IfName,
        (netns, ifname): (&Netns, &IfName),
        address: IpAddr,
    ) -> Result<(), Error> {
        let inside = Netlink::open_in(netns)?;
        let (mut there, mut here) = (Changes::default(), Changes::default());
        let both = (&mut there, &mut here);
        match self
            .hand_over(outer, (&inside, ifname), address, both)
            .await
        {
            Ok(()) => Ok(()),
            Err(cause) => {
                let cause = here.undo(&self.netns, &self.netlink, cause).await;
                Err(there.undo(netns, &inside, cause).await)
            }
        }
    }

    async fn hand_over(
        &self,
        outer: &IfName,
        (inside, ifname): (&Netlink, &IfName),
        address: IpAddr,
        (there, here): (&mut Changes, &mut Changes),
    ) -> Result<(), Error> {
        let outer = self.outer_end(outer).await?;
        let inner = inside.link(ifname).await?;
        let gone = || netlink::Error::NotFound(format!("find the container's device {ifname}"));
        let inner = inner.ok_or_else(gone)?;
        if let Some(former) = self.former(address, &outer).await? {
            here.no_route(&self.netlink, former).await?;
        }
        let wanted = Address::new(inner.index, IpNet::from(address));
        there
            .address(inside, &wanted.no_prefix_route().deprecated())
            .await?;
        let route = Route::new(IpNet::from(address), outer.index).protocol(ROUTE_PROTOCOL);
        here.route(&self.netlink, &route).await
    }

    /// Takes a further address: from the host's routes, after which nothing comes from it any more, then from the
    /// container's device. What is not there, with the container itself, is no failure.
    pub async fn take(
        &self,
        outer: &IfName,
        inside: Option<(&Netns, &IfName)>,
        address: IpAddr,
    ) -> Result<(), Error> {
        let changes = &mut Changes::default();
        if let Some(outer) = self.netlink.link(outer).await? {
            let route = Route::new(IpNet::from(address), outer.index).protocol(ROUTE_PROTOCOL);
            changes.no_route(&self.netlink, route).await?;
        }
        let Some((netns, ifname)) = inside else {
            return Ok(());
        };
        let inside = Netlink::open_in(netns)?;
        if let Some(inner) = inside.link(ifname).await? {
            let address = Address::new(inner.index, IpNet::from(address));
            changes.no_address(&inside, address).await?;
        }
        Ok(())
    }

    async fn outer_end(&self, name: &IfName) -> Result<Link, Error> {
        let link = self.netlink.link(name).await?;
        link.filter(outer::is_outer_end)
            .ok_or_else(|| Error::NotOurs(name.clone()))
    }

    /// The route to an address that another container of this host has.
    async fn former(&self, address: IpAddr, to: &Link) -> Result<Option<Route>, Error> {
        let found = self.netlink.route_for(address).await?;
        let exact = |route: &Route| route.to == IpNet::from(address);
        let Some(route) = found.filter(|route| exact(route) && route.link != Some(to.index)) else {
            return Ok(None);
        };
        let link = self.netlink.link_at(route.link.unwrap_or(0)).await?;
        match link {
            Some(link) if outer::is_outer_end(&link) => Ok(Some(route)),
            link => Err(Error::AddressTaken {
                address,
                device: link.map_or_else(|| "a route".to_owned(), |link| link.name),
            }),
        }
    }
}
