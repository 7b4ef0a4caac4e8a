//! The container's end of the veth pair.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use weave_linux::netlink::link::LinkChange;
use weave_linux::netlink::route::{Kind, MAIN_TABLE};
use weave_linux::netlink::{Address, Link, Netlink, Route};
use weave_linux::netns::run_in;
use weave_linux::sysctl;

use super::changes::{Changes, Setting};
use super::outer::GATEWAY_V6;
use super::spec::{AttachSpec, DefaultRoute};
use super::{Error, GSO_MAX_SIZE};

/// The index of the loopback device in every namespace (`LOOPBACK_IFINDEX` of the kernel).
const LOOPBACK: u32 = 1;

/// Whether the container's device can have IPv6 addresses.
pub(super) fn has_ipv6(spec: &AttachSpec) -> Result<bool, Error> {
    let key = format!("net/ipv6/conf/{}/disable_ipv6", spec.ifname);
    match run_in(&spec.netns, || sysctl::read(&key))? {
        Ok(disabled) => Ok(disabled == "0"),
        Err(sysctl::Error::Missing(_)) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Makes the device believe nothing about routes but what it is told here.
pub(super) fn settings(spec: &AttachSpec, changes: &mut Changes) -> Result<(), Error> {
    let name = &spec.ifname;
    let mut settings: Vec<Setting> = vec![(format!("net/ipv4/conf/{name}/accept_redirects"), "0")];
    if spec.attachment.ipv6 {
        settings.extend(
            ["accept_ra", "accept_redirects"]
                .map(|key| (format!("net/ipv6/conf/{name}/{key}"), "0")),
        );
    }
    changes.settings(&spec.netns, &settings)
}

/// Brings the container's loopback device up, as whoever made the container may have left to others.
pub(super) async fn loopback(inside: &Netlink, changes: &mut Changes) -> Result<(), Error> {
    match inside.link_at(LOOPBACK).await? {
        Some(lo) => changes.link(inside, &lo, LinkChange::up()).await,
        None => Ok(()),
    }
}

/// Brings the device up. The container may hand over super-packets as large as the TUN device takes.
pub(super) async fn up(inside: &Netlink, link: &Link, changes: &mut Changes) -> Result<(), Error> {
    let wanted = LinkChange {
        gso_max_size: Some(GSO_MAX_SIZE),
        ..LinkChange::up()
    };
    changes.link(inside, link, wanted).await
}

/// Gives the device the container's addresses.
///
/// The IPv4 address has the whole network's prefix, so that programs see one flat network and its broadcast address.
/// The prefix has no route on the link all the same: everything goes by the gateway.
pub(super) async fn addresses(
    inside: &Netlink,
    link: &Link,
    spec: &AttachSpec,
    changes: &mut Changes,
) -> Result<(), Error> {
    let attachment = &spec.attachment;
    let range = attachment.range.v4();
    let net = Ipv4Net::new_assert(attachment.v4(), range.prefix_len());
    let address = Address::new(link.index, net.into())
        .no_prefix_route()
        .with_broadcast(range.broadcast());
    changes.address(inside, &address).await?;
    if let Some(v6) = attachment.v6() {
        let net = Ipv6Net::from(v6);
        changes
            .address(
                inside,
                &Address::new(link.index, net.into()).no_prefix_route(),
            )
            .await?;
    }
    Ok(())
}

/// Makes the container's routes; tells whether the default routes are ours.
pub(super) async fn routes(
    inside: &Netlink,
    link: &Link,
    spec: &AttachSpec,
    changes: &mut Changes,
) -> Result<bool, Error> {
    let attachment = &spec.attachment;
    let gateway = IpAddr::V4(attachment.range.gateway());
    let on = |to: IpNet| Route::new(to, link.index);
    let own = IpAddr::V4(attachment.v4());
    changes
        .route(inside, &on(IpNet::from(gateway)).source(own))
        .await?;
    changes
        .route(
            inside,
            &on(attachment.range.v4().into()).via(gateway).source(own),
        )
        .await?;
    multicast(inside, link, changes).await?;
    if let Some(v6) = attachment.v6() {
        let range = on(attachment.range.v6().into()).via(GATEWAY_V6.into());
        changes.route(inside, &range.source(v6.into())).await?;
    }
    if spec.default_route == DefaultRoute::Never {
        return Ok(false);
    }
    let v4 = default_route(
        inside,
        spec,
        on(Ipv4Net::default().into()).via(gateway),
        changes,
    )
    .await?;
    if attachment.ipv6 {
        default_route(
            inside,
            spec,
            on(Ipv6Net::default().into()).via(GATEWAY_V6.into()),
            changes,
        )
        .await?;
    }
    Ok(v4)
}

/// Groups are heard and reached over this network, also where the default route is somebody else's. IPv6 needs no
/// route for that.
async fn multicast(inside: &Netlink, link: &Link, changes: &mut Changes) -> Result<(), Error> {
    let groups = IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(224, 0, 0, 0), 4));
    if inside.routes_to(groups).await?.is_empty() {
        changes
            .route(inside, &Route::new(groups, link.index))
            .await?;
    }
    Ok(())
}

/// Adds a default route unless there is one, whatever its metric.
async fn default_route(
    inside: &Netlink,
    spec: &AttachSpec,
    route: Route,
    changes: &mut Changes,
) -> Result<bool, Error> {
    let there = inside.routes_to(route.to).await?;
    if there
        .iter()
        .any(|found| found.table == MAIN_TABLE && found.kind == Kind::Unicast)
    {
        return Ok(false);
    }
    let headers = if route.to.addr().is_ipv4() { 40 } else { 60 };
    let mtu = spec.uplink_mtu.filter(|&mtu| mtu < spec.attachment.mtu);
    let route = Route {
        mtu,
        advmss: mtu.map(|mtu| mtu.saturating_sub(headers)),
        ..route
    };
    changes.route(inside, &route).await?;
    Ok(true)
}
