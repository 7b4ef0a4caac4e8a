//! Whether an attachment still is as it was made, on both sides and on the way to the overlay. Looks, changes nothing.
//!
//! What others add, such as a plugin that comes after us, is no fault: only what we made has to be there.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use weave_linux::netlink::{Link, Netlink, Route};

use super::outer::GATEWAY_V6;
use super::spec::{AttachSpec, Attachment, DefaultRoute};
use super::{Error, Host, ROUTE_PROTOCOL, limits};

impl Host {
    /// What is missing or wrong of an attachment, one line each; empty when all is as [`Host::attach`] left it.
    ///
    /// `spec` says what is expected: `ipv6` whether it has its IPv6 address, `mac` its hardware address if that is
    /// known, and the default routes are looked for unless they are [`DefaultRoute::Never`] ours.
    pub async fn check(&self, spec: &AttachSpec) -> Result<Vec<String>, Error> {
        let mut wrong = Vec::new();
        match self.netlink.link(&self.tun).await? {
            Some(tun) if tun.up => {}
            Some(_) => wrong.push(format!("the host's device {} is down", self.tun)),
            None => wrong.push(format!("the host has no device {}", self.tun)),
        }
        self.check_outer(spec, &mut wrong).await?;
        check_inner(spec, &mut wrong).await?;
        Ok(wrong)
    }

    /// Which of these attachments have a device that is down, or lack a route on the host. Two questions to the kernel
    /// for all of them; what takes a question for each, [`Host::repair`] sees. Those whose device is gone are not
    /// among them.
    pub async fn astray(&self, attachments: &[Attachment]) -> Result<Vec<bool>, Error> {
        let links: BTreeMap<String, Link> = self
            .netlink
            .links()
            .await?
            .into_iter()
            .map(|link| (link.name.clone(), link))
            .collect();
        let routes = self.netlink.routes_by(ROUTE_PROTOCOL).await?;
        let routes: BTreeSet<(IpNet, Option<u32>)> =
            routes.iter().map(|route| (route.to, route.link)).collect();
        let astray = |attachment: &Attachment| {
            links.get(attachment.outer.as_str()).is_some_and(|link| {
                let there = |address| routes.contains(&(IpNet::from(address), Some(link.index)));
                let limited = !limits::is_missing(attachment, &links);
                !link.up || !limited || !attachment.addresses().all(there)
            })
        };
        Ok(attachments.iter().map(astray).collect())
    }

    async fn check_outer(&self, spec: &AttachSpec, wrong: &mut Vec<String>) -> Result<(), Error> {
        let attachment = &spec.attachment;
        let name = &attachment.outer;
        let Some(link) = self.netlink.link(name).await? else {
            wrong.push(format!("the host has no device {name}"));
            return Ok(());
        };
        if !link.up {
            wrong.push(format!("the host's device {name} is down"));
        }
        wrong.extend(limits::faults(&self.netlink, &link, attachment).await?);
        let gateway = IpNet::from(IpAddr::V4(attachment.range.gateway()));
        let gateway6 = attachment
            .ipv6
            .then(|| IpNet::V6(Ipv6Net::new_assert(GATEWAY_V6, 64)));
        let addresses = std::iter::once(gateway).chain(gateway6);
        missing_addresses(&self.netlink, &link, addresses, "the host's device", wrong).await?;
        let routes = attachment
            .addresses()
            .map(|address| Route::new(IpNet::from(address), link.index));
        missing_routes(&self.netlink, &link, routes, "the host", wrong).await
    }
}

async fn check_inner(spec: &AttachSpec, wrong: &mut Vec<String>) -> Result<(), Error> {
    let (attachment, name) = (&spec.attachment, &spec.ifname);
    let inside = Netlink::open_in(&spec.netns)?;
    let Some(link) = inside.link(name).await? else {
        wrong.push(format!("the container has no device {name}"));
        return Ok(());
    };
    if !link.up {
        wrong.push(format!("the container's device {name} is down"));
    }
    if link.mtu != attachment.mtu {
        let (has, should) = (link.mtu, attachment.mtu);
        wrong.push(format!(
            "the container's device {name} has an MTU of {has}, not {should}"
        ));
    }
    if spec.mac.is_some_and(|mac| link.mac != Some(mac)) {
        wrong.push(format!(
            "the container's device {name} has another hardware address"
        ));
    }
    let v4 = IpNet::from(Ipv4Net::new_assert(
        attachment.v4(),
        attachment.range.v4().prefix_len(),
    ));
    let v6 = attachment.v6().map(|v6| IpNet::from(IpAddr::V6(v6)));
    let also = attachment.also.iter().copied().map(IpNet::from);
    let addresses = std::iter::once(v4).chain(v6).chain(also);
    missing_addresses(&inside, &link, addresses, "the container's device", wrong).await?;
    let routes = inner_routes(spec, &link).into_iter();
    missing_routes(&inside, &link, routes, "the container", wrong).await?;
    // Whether the IPv6 one is ours was not written down: any will do.
    let default6 = IpNet::V6(Ipv6Net::default());
    let by_default = spec.default_route != DefaultRoute::Never;
    if attachment.ipv6 && by_default && inside.routes_to(default6).await?.is_empty() {
        wrong.push(format!("the container has no route to {default6}"));
    }
    Ok(())
}

/// The routes that lead out of the container.
fn inner_routes(spec: &AttachSpec, link: &Link) -> Vec<Route> {
    let attachment = &spec.attachment;
    let on = |to: IpNet| Route::new(to, link.index);
    let gateway = IpAddr::V4(attachment.range.gateway());
    let by_default = spec.default_route != DefaultRoute::Never;
    let mut routes = vec![
        on(IpNet::from(gateway)),
        on(attachment.range.v4().into()).via(gateway),
    ];
    routes.extend(by_default.then(|| on(Ipv4Net::default().into()).via(gateway)));
    if attachment.ipv6 {
        let gateway = IpAddr::V6(GATEWAY_V6);
        routes.push(on(attachment.range.v6().into()).via(gateway));
    }
    routes
}

async fn missing_addresses(
    netlink: &Netlink,
    link: &Link,
    wanted: impl Iterator<Item = IpNet>,
    whose: &str,
    wrong: &mut Vec<String>,
) -> Result<(), Error> {
    let found = netlink.addresses(Some(link.index)).await?;
    let missing = wanted.filter(|net| !found.iter().any(|address| address.net == *net));
    wrong.extend(missing.map(|net| format!("{whose} {} has no address {net}", link.name)));
    Ok(())
}

/// A route is there when one to the same destinations leads over the device, by the same hop; its metric and its
/// source address may be others'.
async fn missing_routes(
    netlink: &Netlink,
    link: &Link,
    wanted: impl Iterator<Item = Route>,
    whose: &str,
    wrong: &mut Vec<String>,
) -> Result<(), Error> {
    let found = netlink.routes_over(link.index, None).await?;
    let there = |route: &Route| {
        found
            .iter()
            .any(|one| (one.to, one.via) == (route.to.trunc(), route.via))
    };
    let missing = wanted.filter(|route| !there(route));
    wrong.extend(missing.map(|route| format!("{whose} has no route to {}", route.to)));
    Ok(())
}
