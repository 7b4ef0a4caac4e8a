//! Where other hosts can reach this one: what a join token says when nobody told us.
//!
//! Every address of an up device counts, but not those that mean something else on the next host: loopback, link-local,
//! our own devices, and bridges without a default route, which are the private networks of container runtimes. Devices
//! with a default route come first, because they are how this host talks to others.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Instant;

use weave_linux::netlink::route::{Kind, MAIN_TABLE};
use weave_linux::netlink::{Address, Error, Link, Netlink, Route};
use weave_model::ClusterRange;
use weave_router::attach::glance::Glance;
use weave_router::core::command::Taken;

/// Finds the addresses that other hosts may reach `listen` at, the likeliest first. `last` is what was found before.
pub(super) async fn reachable(
    listen: SocketAddr,
    range: Option<ClusterRange>,
    last: &mut Glance<Vec<IpAddr>>,
) -> Result<Vec<SocketAddr>, Error> {
    if !listen.ip().is_unspecified() {
        return Ok(vec![listen]);
    }
    let both = listen.is_ipv6();
    let found = conclude(last, choose).await?;
    let usable = found
        .into_iter()
        .filter(|ip| (both || ip.is_ipv4()) && !range.is_some_and(|range| inside(&range, *ip)));
    Ok(usable
        .map(|ip| SocketAddr::new(ip, listen.port()))
        .collect())
}

/// Every address by which this host can be meant, whatever device has it, ours too.
pub(super) async fn local() -> Result<BTreeSet<IpAddr>, Error> {
    let all = Netlink::open()?.addresses(None).await?;
    let ips = all.iter().map(|address| address.net.addr());
    Ok(ips.filter(|ip| global(*ip)).collect())
}

/// The ranges this host has addresses in or routes to, as far as they mean something of their own: neither ours, nor
/// the default route or a piece of it. `last` is what was found before.
pub(super) async fn taken(last: &mut Glance<Vec<Taken>>) -> Result<Vec<Taken>, Error> {
    conclude(last, claims).await
}

/// What `by` makes of the devices that are not ours, their addresses, and the routes; or what it made of them `last`.
async fn conclude<T: Clone>(
    last: &mut Glance<T>,
    by: fn(&[Link], &[Address], &[Route]) -> T,
) -> Result<T, Error> {
    let netlink = Netlink::open()?;
    let mut links = netlink.links().await?;
    links.retain(|link| !ours(link));
    let mut addresses = netlink.addresses(None).await?;
    addresses.retain(|address| links.iter().any(|link| link.index == address.link));
    let began = Instant::now();
    if let Some(concluded) = last.recall(&links, &addresses, began) {
        return Ok(concluded);
    }
    let routes = netlink.routes(Some(MAIN_TABLE)).await?;
    let concluded = by(&links, &addresses, &routes);
    let took = began.elapsed();
    last.keep((&links, &addresses), concluded.clone(), took, began);
    Ok(concluded)
}

fn claims(links: &[Link], addresses: &[Address], routes: &[Route]) -> Vec<Taken> {
    let others = links.iter().filter(|link| !ours(link));
    let names: BTreeMap<u32, &str> = others
        .map(|link| (link.index, link.name.as_str()))
        .collect();
    let foreign = |index: u32| names.get(&index).copied();
    let addresses = addresses.iter().filter_map(|address| {
        let device = foreign(address.link)?;
        let by = format!("the address {} of {device}", address.net);
        Some(Taken {
            net: address.net,
            by,
        })
    });
    let routes = routes
        .iter()
        .filter(|route| route.kind == Kind::Unicast)
        .filter_map(|route| {
            let device = foreign(route.link?)?;
            let by = format!("the route {} over {device}", route.to);
            Some(Taken { net: route.to, by })
        });
    // A route shorter than /8, or than /7 for IPv6, is a piece of the default route.
    let own_meaning =
        |taken: &Taken| taken.net.prefix_len() >= if taken.net.addr().is_ipv4() { 8 } else { 7 };
    routes.chain(addresses).filter(own_meaning).collect()
}

/// Some address of the Internet, to look up the way to; nothing is sent there.
const OUTSIDE: IpAddr = IpAddr::V4(Ipv4Addr::new(1, 1, 1, 1));

/// The MTU of the device that packets leave this host by, in bytes, if there is one: what fits on the way out.
pub(super) async fn uplink_mtu() -> Option<u32> {
    let netlink = Netlink::open().ok()?;
    let out = netlink.route_for(OUTSIDE).await.ok()??;
    let device = netlink.link_at(out.link?).await.ok()??;
    Some(out.mtu.unwrap_or(device.mtu))
}

fn choose(links: &[Link], addresses: &[Address], routes: &[Route]) -> Vec<IpAddr> {
    let leads_out = |link: u32| {
        routes.iter().any(|route| {
            route.kind == Kind::Unicast && route.to.prefix_len() == 0 && route.link == Some(link)
        })
    };
    let mut found: Vec<(bool, bool, u32, IpAddr)> = Vec::new();
    for link in links.iter().filter(|link| link.up && !ours(link)) {
        let out = leads_out(link.index);
        if link.kind == "bridge" && !out {
            continue;
        }
        let its = addresses
            .iter()
            .filter(|address| address.link == link.index && !address.tentative);
        let its = its
            .map(|address| address.net.addr())
            .filter(|ip| global(*ip));
        found.extend(its.map(|ip| (!out, ip.is_ipv6(), link.index, ip)));
    }
    found.sort_unstable();
    found.into_iter().map(|(_, _, _, ip)| ip).collect()
}

fn ours(link: &Link) -> bool {
    link.name == "weave0" || link.name.starts_with("wv")
}

/// Not loopback, link-local, multicast or unspecified.
fn global(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => {
            !(ip.is_loopback() || ip.is_link_local() || ip.is_multicast() || ip.is_unspecified())
        }
        IpAddr::V6(ip) => {
            !(ip.is_loopback()
                || ip.is_unicast_link_local()
                || ip.is_multicast()
                || ip.is_unspecified())
        }
    }
}

fn inside(range: &ClusterRange, ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => range.v4().contains(&ip),
        IpAddr::V6(ip) => range.v6().contains(&ip),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, name: &str, kind: &str) -> Link {
        Link {
            index,
            name: name.to_owned(),
            kind: kind.to_owned(),
            up: true,
            carrier: true,
            mtu: 1500,
            mac: None,
            alias: String::new(),
            gso_max_size: 65_536,
            gso_ipv4_max_size: None,
            peer_index: None,
        }
    }

    fn address(link: u32, net: &str) -> Address {
        Address::new(link, net.parse().unwrap())
    }

    #[test]
    fn the_way_out_comes_first_and_private_networks_do_not_count() {
        let links = [
            link(1, "lo", ""),
            link(2, "eth1", ""),
            link(3, "eth0", ""),
            link(4, "docker0", "bridge"),
            link(5, "weave0", "tun"),
            link(6, "wv0123456789", "veth"),
        ];
        let addresses = [
            address(1, "127.0.0.1/8"),
            address(1, "203.0.113.7/32"),
            address(2, "10.0.0.2/24"),
            address(3, "2001:db8::3/64"),
            address(3, "fe80::3/64"),
            address(3, "192.0.2.3/24"),
            address(4, "172.17.0.1/16"),
            address(5, "10.32.0.9/32"),
            address(6, "fe80::1/64"),
        ];
        let routes = [
            Route::new("0.0.0.0/0".parse().unwrap(), 3).via("192.0.2.1".parse().unwrap()),
            Route::new("10.0.0.0/24".parse().unwrap(), 2),
        ];
        let found: Vec<String> = choose(&links, &addresses, &routes)
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(
            found,
            ["192.0.2.3", "2001:db8::3", "203.0.113.7", "10.0.0.2"]
        );
    }

    #[test]
    fn what_means_something_here_is_taken() {
        let links = [link(2, "eth0", ""), link(5, "weave0", "tun")];
        let addresses = [address(2, "192.0.2.3/24"), address(5, "10.32.0.1/32")];
        let routes = [
            Route::new("0.0.0.0/0".parse().unwrap(), 2),
            Route::new("128.0.0.0/1".parse().unwrap(), 2),
            Route::new("10.40.0.0/16".parse().unwrap(), 2),
            Route::new("10.32.0.0/12".parse().unwrap(), 5),
            Route::new("2000::/3".parse().unwrap(), 2),
        ];
        let taken = claims(&links, &addresses, &routes);
        let by: Vec<&str> = taken.iter().map(|taken| taken.by.as_str()).collect();
        assert_eq!(
            by,
            [
                "the route 10.40.0.0/16 over eth0",
                "the address 192.0.2.3/24 of eth0"
            ]
        );
    }

    #[test]
    fn a_bridge_that_leads_out_counts() {
        let links = [link(2, "br0", "bridge")];
        let routes = [Route::new("0.0.0.0/0".parse().unwrap(), 2)];
        assert_eq!(
            choose(&links, &[address(2, "192.0.2.3/24")], &routes).len(),
            1
        );
        assert!(choose(&links, &[address(2, "192.0.2.3/24")], &[]).is_empty());
    }
}
