//! Whether the cluster's range is free on this host: pure, over what the kernel listed.

use std::net::IpAddr;

use ipnet::IpNet;
use weave_linux::netlink::route::Kind;
use weave_linux::netlink::{Address, Link, Route};
use weave_model::ClusterRange;

use super::{Error, ROUTE_PROTOCOL};

/// What has to do with a range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Overlap {
    range: IpNet,
    with: String,
}

impl From<Overlap> for Error {
    fn from(Overlap { range, with }: Overlap) -> Self {
        Self::Overlap { range, with }
    }
}

/// The first address that a foreign device has in a range, or the first route to it.
///
/// `foreign` are the devices that are not ours; routes and addresses of others do not count.
pub(super) fn find(
    range: &ClusterRange,
    foreign: &[Link],
    routes: &[Route],
    addresses: &[Address],
) -> Option<Overlap> {
    let name = |index: u32| {
        foreign
            .iter()
            .find(|link| link.index == index)
            .map(|link| link.name.as_str())
    };
    for range in [IpNet::V4(range.v4()), IpNet::V6(range.v6())] {
        for address in addresses {
            let Some(device) = name(address.link) else {
                continue;
            };
            if overlap(&range, &address.net) && !too_broad(&address.net) {
                let with = format!("the address {} of {device}", address.net);
                return Some(Overlap { range, with });
            }
        }
        let foreign = |route: &&Route| route.protocol != ROUTE_PROTOCOL;
        for route in routes.iter().filter(foreign) {
            let device = match route.link {
                Some(index) => match name(index) {
                    Some(device) => device,
                    None => continue,
                },
                None => "several devices or none",
            };
            if overlap(&range, &route.to) && claims(route, &range) {
                let with = format!(
                    "the route {} over {device} in table {}",
                    route.to, route.table
                );
                return Some(Overlap { range, with });
            }
        }
    }
    None
}

fn overlap(one: &IpNet, two: &IpNet) -> bool {
    one.contains(two) || two.contains(one)
}

/// Whether a route that overlaps the range is really about these addresses.
fn claims(route: &Route, range: &IpNet) -> bool {
    match route.kind {
        // A broad refusal ("private addresses do not leave by this uplink") gives way to more specific routes.
        Kind::Refuse => range.contains(&route.to),
        Kind::Unicast | Kind::Local | Kind::Other => !too_broad(&route.to),
    }
}

/// The default route, and the pieces that VPNs cut it into, mean "everything else" and not these addresses.
fn too_broad(net: &IpNet) -> bool {
    let least = match net.addr() {
        IpAddr::V4(_) => 8,
        IpAddr::V6(_) => 7,
    };
    net.prefix_len() < least
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    fn check(
        range: &ClusterRange,
        foreign: &[Link],
        routes: &[Route],
        addresses: &[Address],
    ) -> Result<(), Error> {
        find(range, foreign, routes, addresses).map_or(Ok(()), |found| Err(found.into()))
    }

    /// A device that is up.
    pub(in crate::attach) fn link(index: u32, name: &str) -> Link {
        Link {
            index,
            name: name.into(),
            kind: String::new(),
            up: true,
            carrier: true,
            mtu: 1500,
            mac: None,
            alias: String::new(),
            gso_max_size: 65536,
            gso_ipv4_max_size: None,
            peer_index: None,
        }
    }

    fn range() -> ClusterRange {
        ClusterRange::new(
            "10.32.0.0/12".parse().unwrap(),
            "fd00:1:2::/48".parse().unwrap(),
        )
        .unwrap()
    }

    fn routes(to: &[&str]) -> Result<(), Error> {
        let routes: Vec<_> = to
            .iter()
            .map(|to| Route::new(to.parse().unwrap(), 2))
            .collect();
        check(&range(), &[link(2, "eth0")], &routes, &[])
    }

    #[test]
    fn broad_and_foreign_routes_are_fine() {
        routes(&[
            "0.0.0.0/0",
            "0.0.0.0/1",
            "8.0.0.0/7",
            "10.0.0.0/11",
            "10.48.0.0/12",
            "192.168.0.0/16",
        ])
        .unwrap();
        routes(&["::/0", "fe80::/64", "fd00:1:3::/48", "2000::/3"]).unwrap();
    }

    #[test]
    fn routes_inside_around_and_equal_are_refused() {
        for to in [
            "10.32.0.0/12",
            "10.33.1.0/24",
            "10.0.0.0/8",
            "fd00:1:2:3::/64",
            "fd00::/8",
            "fc00::/7",
        ] {
            let refused = routes(&["0.0.0.0/0", to]).unwrap_err().to_string();
            assert!(
                refused.contains(to) && refused.contains("eth0"),
                "{refused}"
            );
        }
    }

    #[test]
    fn addresses_are_refused_and_ours_are_not() {
        let address = |link| Address::new(link, "10.40.0.5/16".parse().unwrap()).no_prefix_route();
        let devices = [link(2, "eth0")];
        let refused = check(&range(), &devices, &[], &[address(2)])
            .unwrap_err()
            .to_string();
        assert_eq!(
            refused,
            "the range 10.32.0.0/12 overlaps the address 10.40.0.5/16 of eth0"
        );
        check(&range(), &devices, &[], &[address(7)]).unwrap();
        check(
            &range(),
            &devices,
            &[Route::new("10.32.0.0/12".parse().unwrap(), 7)],
            &[],
        )
        .unwrap();
    }

    #[test]
    fn a_refusal_counts_only_inside_the_range() {
        let refuse = |to: &str| {
            let route = Route {
                kind: Kind::Refuse,
                link: None,
                ..Route::new(to.parse().unwrap(), 0)
            };
            check(&range(), &[], &[route], &[])
        };
        refuse("10.0.0.0/8").unwrap();
        assert!(matches!(refuse("10.32.7.0/24"), Err(Error::Overlap { .. })));
    }
}
