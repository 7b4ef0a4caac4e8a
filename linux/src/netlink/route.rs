//! Routes: add, replace, delete, list, of both families.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric,
    RouteProtocol, RouteScope, RouteType,
};

use super::addr::family;
use super::{Ensured, Error, Netlink};

/// The main routing table.
pub const MAIN_TABLE: u32 = RouteHeader::RT_TABLE_MAIN as u32;
/// The table of the host's own addresses, which the kernel keeps.
pub const LOCAL_TABLE: u32 = 255;
/// The metric that the kernel gives an IPv6 route which asks for none (`IP6_RT_PRIO_USER`).
const DEFAULT_METRIC_V6: u32 = 1024;

/// What a route does with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Sends it to the next hop.
    Unicast,
    /// Takes it: the destination is this host.
    Local,
    /// Refuses it with an ICMP error (unreachable, prohibit) or silently (blackhole), or looks in the next table.
    Refuse,
    /// Anything else: broadcast, anycast, multicast.
    Other,
}

/// A route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The destinations it is for.
    pub to: IpNet,
    /// What it does; requests are for unicast routes, and for unreachable ones with [`Kind::Refuse`].
    pub kind: Kind,
    /// The device that packets leave by. A listed route with several next hops has none.
    pub link: Option<u32>,
    /// The next hop; without one, destinations are on the link.
    pub via: Option<IpAddr>,
    /// The next hop is reachable on the device though no route says so.
    pub onlink: bool,
    /// The address that packets of this host's own get.
    pub source: Option<IpAddr>,
    /// The table.
    pub table: u32,
    /// The smaller of two metrics wins. 0 is the kernel's choice, which for IPv6 is 1024.
    pub metric: u32,
    /// Who made it: a number of `rt_protos`.
    pub protocol: u8,
    /// The largest packet in bytes, where it is smaller than the device's.
    pub mtu: Option<u32>,
    /// The largest TCP segment that is advertised to the other end, in bytes.
    pub advmss: Option<u32>,
}

impl Route {
    /// A unicast route in the main table over a device, to destinations on its link.
    pub const fn new(to: IpNet, link: u32) -> Self {
        Self {
            to,
            kind: Kind::Unicast,
            link: Some(link),
            via: None,
            onlink: false,
            source: None,
            table: MAIN_TABLE,
            metric: 0,
            protocol: 4,
            mtu: None,
            advmss: None,
        }
    }

    /// The same, by a next hop.
    pub const fn via(self, hop: IpAddr) -> Self {
        Self {
            via: Some(hop),
            ..self
        }
    }

    /// The same, with a preferred source.
    pub const fn source(self, source: IpAddr) -> Self {
        Self {
            source: Some(source),
            ..self
        }
    }

    /// The same, marked as made by somebody else than an administrator.
    pub const fn protocol(self, protocol: u8) -> Self {
        Self { protocol, ..self }
    }

    fn message(&self) -> RouteMessage {
        let mut message = RouteMessage::default();
        let header = &mut message.header;
        header.address_family = family(self.to.addr());
        header.destination_prefix_length = self.to.prefix_len();
        header.protocol = RouteProtocol::from(self.protocol);
        header.kind = if self.kind == Kind::Refuse {
            RouteType::Unreachable
        } else {
            RouteType::Unicast
        };
        // IPv4 has destinations on the link in link scope; IPv6 has no scopes of routes.
        let on_link = self.via.is_none() && self.kind == Kind::Unicast && self.to.addr().is_ipv4();
        header.scope = if on_link {
            RouteScope::Link
        } else {
            RouteScope::Universe
        };
        header.flags = if self.onlink {
            RouteFlags::Onlink
        } else {
            RouteFlags::empty()
        };
        // The field in the header is one byte; tables above 255 are named by the attribute alone.
        header.table = u8::try_from(self.table).unwrap_or(RouteHeader::RT_TABLE_UNSPEC);
        let attributes = &mut message.attributes;
        attributes.push(RouteAttribute::Table(self.table));
        attributes.push(RouteAttribute::Destination(self.to.network().into()));
        attributes.extend(self.link.map(RouteAttribute::Oif));
        attributes.extend(self.via.map(|hop| RouteAttribute::Gateway(hop.into())));
        attributes.extend(
            self.source
                .map(|source| RouteAttribute::PrefSource(source.into())),
        );
        attributes.extend((self.metric != 0).then_some(RouteAttribute::Priority(self.metric)));
        let metrics: Vec<_> = self
            .mtu
            .map(RouteMetric::Mtu)
            .into_iter()
            .chain(self.advmss.map(RouteMetric::Advmss))
            .collect();
        attributes.extend((!metrics.is_empty()).then_some(RouteAttribute::Metrics(metrics)));
        message
    }

    /// Whether two routes are the same but for what the kernel fills in.
    pub fn agrees(&self, found: &Self) -> bool {
        self.same_key(found) && self.filled_in() == found.filled_in()
    }

    /// Whether the kernel would say that one stands in the way of the other.
    fn same_key(&self, other: &Self) -> bool {
        let (one, two) = (self.filled_in(), other.filled_in());
        (one.to, one.table, one.metric) == (two.to, two.table, two.metric)
    }

    fn filled_in(&self) -> Self {
        let metric = if self.metric == 0 && self.to.addr().is_ipv6() {
            DEFAULT_METRIC_V6
        } else {
            self.metric
        };
        // The kernel reports its loopback device for an IPv6 route that refuses.
        let link = if self.kind == Kind::Refuse {
            None
        } else {
            self.link
        };
        Self {
            metric,
            link,
            to: self.to.trunc(),
            ..self.clone()
        }
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.kind == Kind::Refuse {
            return write!(f, "unreachable {}", self.to);
        }
        write!(f, "{}", self.to)?;
        if let Some(hop) = self.via {
            write!(f, " via {hop}")?;
        }
        match self.link {
            Some(link) => write!(f, " over device {link}"),
            None => Ok(()),
        }
    }
}

/// Which routes to list. Kernels before 4.20 list all the same, so it is applied here too.
#[derive(Clone, Copy, Debug, Default)]
struct Filter {
    table: Option<u32>,
    link: Option<u32>,
    protocol: Option<u8>,
}

impl Filter {
    fn passes(self, route: &Route) -> bool {
        self.table.is_none_or(|table| table == route.table)
            && self.link.is_none_or(|link| Some(link) == route.link)
            && self
                .protocol
                .is_none_or(|protocol| protocol == route.protocol)
    }
}

impl Netlink {
    /// Adds a route; `Exists` if the table has one to the same destinations with the same metric.
    pub async fn add_route(&self, route: &Route) -> Result<(), Error> {
        let message = RouteNetlinkMessage::NewRoute(route.message());
        self.change(
            &format!("add the route {route}"),
            message,
            NLM_F_CREATE | NLM_F_EXCL,
        )
        .await
    }

    /// Adds a route, in place of one to the same destinations with the same metric if there is one.
    pub async fn replace_route(&self, route: &Route) -> Result<(), Error> {
        let message = RouteNetlinkMessage::NewRoute(route.message());
        self.change(
            &format!("set the route {route}"),
            message,
            NLM_F_CREATE | NLM_F_REPLACE,
        )
        .await
    }

    /// Adds a route unless it is there just so.
    pub async fn ensure_route(&self, route: &Route) -> Result<Ensured, Error> {
        match self.add_route(route).await {
            Ok(()) => Ok(Ensured::Made),
            Err(error) if error.is_exists() => {
                // A host may have very many routes, but not many of one device, or that refuse and have the same maker.
                let filter = Filter {
                    table: Some(route.table),
                    link: route.filled_in().link,
                    protocol: Some(route.protocol),
                };
                let found = self.routes_of(route.to.addr(), filter).await?;
                let kept = found.iter().any(|found| route.agrees(found));
                if kept { Ok(Ensured::Kept) } else { Err(error) }
            }
            Err(error) => Err(error),
        }
    }

    /// Deletes a route; `NotFound` if there is none like it.
    pub async fn delete_route(&self, route: &Route) -> Result<(), Error> {
        let mut message = route.message();
        // 0 and "nowhere" are wildcards in a deletion.
        message.header.scope = RouteScope::NoWhere;
        message.header.protocol = RouteProtocol::Unspec;
        message
            .attributes
            .retain(|attribute| !matches!(attribute, RouteAttribute::Metrics(_)));
        self.change(
            &format!("delete the route {route}"),
            RouteNetlinkMessage::DelRoute(message),
            0,
        )
        .await
    }

    /// All routes of all tables, of both families; or those of one table.
    pub async fn routes(&self, table: Option<u32>) -> Result<Vec<Route>, Error> {
        self.both_families(Filter {
            table,
            ..Filter::default()
        })
        .await
    }

    /// The routes that bear the number of who made them, of all tables, of both families.
    pub async fn routes_by(&self, protocol: u8) -> Result<Vec<Route>, Error> {
        self.both_families(Filter {
            protocol: Some(protocol),
            ..Filter::default()
        })
        .await
    }

    /// The routes over a device, of all tables or of one, of both families.
    pub async fn routes_over(&self, link: u32, table: Option<u32>) -> Result<Vec<Route>, Error> {
        self.both_families(Filter {
            table,
            link: Some(link),
            protocol: None,
        })
        .await
    }

    async fn both_families(&self, filter: Filter) -> Result<Vec<Route>, Error> {
        let mut routes = self
            .routes_of(IpAddr::V4(Ipv4Addr::UNSPECIFIED), filter)
            .await?;
        match self
            .routes_of(IpAddr::V6(Ipv6Addr::UNSPECIFIED), filter)
            .await
        {
            // A kernel without IPv6 has no routes of it.
            Err(Error::Unsupported(_)) => {}
            more => routes.extend(more?),
        }
        Ok(routes)
    }

    /// The routes to exactly these destinations, in any table.
    pub async fn routes_to(&self, to: IpNet) -> Result<Vec<Route>, Error> {
        let mut routes = self.routes_of(to.addr(), Filter::default()).await?;
        routes.retain(|route| route.to == to.trunc());
        Ok(routes)
    }

    /// The route that the kernel would take for a packet of this host's own to an address; `None` if it has none.
    pub async fn route_for(&self, address: IpAddr) -> Result<Option<Route>, Error> {
        let mut question = RouteMessage::default();
        question.header.address_family = family(address);
        question.header.destination_prefix_length = IpNet::from(address).prefix_len();
        // The entry of the table, and not what became of it in the cache of destinations.
        question.header.flags = RouteFlags::FibMatch;
        question
            .attributes
            .push(RouteAttribute::Destination(address.into()));
        let doing = format!("look up the route to {address}");
        match self
            .get(&doing, RouteNetlinkMessage::GetRoute(question))
            .await
        {
            Ok(RouteNetlinkMessage::NewRoute(message)) => Ok(parse(&message)),
            Err(Error::Unreachable(_) | Error::Unsupported(_)) => Ok(None),
            Err(error) => Err(error),
            Ok(_) => Err(Error::Closed),
        }
    }

    async fn routes_of(&self, any: IpAddr, filter: Filter) -> Result<Vec<Route>, Error> {
        let mut question = RouteMessage::default();
        question.header.address_family = family(any);
        question.header.protocol = RouteProtocol::from(filter.protocol.unwrap_or(0));
        let attributes = &mut question.attributes;
        attributes.extend(filter.table.map(RouteAttribute::Table));
        attributes.extend(filter.link.map(RouteAttribute::Oif));
        let answers = match self
            .dump("list the routes", RouteNetlinkMessage::GetRoute(question))
            .await
        {
            // A table that was never used is not there.
            Err(error) if error.is_not_found() => return Ok(Vec::new()),
            answers => answers?,
        };
        let routes = answers.into_iter().filter_map(|answer| match answer {
            RouteNetlinkMessage::NewRoute(message) => parse(&message),
            _ => None,
        });
        Ok(routes.filter(|route| filter.passes(route)).collect())
    }
}

fn parse(message: &RouteMessage) -> Option<Route> {
    let header = &message.header;
    let any: IpAddr = match header.address_family {
        netlink_packet_route::AddressFamily::Inet => Ipv4Addr::UNSPECIFIED.into(),
        netlink_packet_route::AddressFamily::Inet6 => Ipv6Addr::UNSPECIFIED.into(),
        _ => return None,
    };
    let mut route = Route {
        to: IpNet::new(any, header.destination_prefix_length).ok()?,
        kind: match header.kind {
            RouteType::Unicast => Kind::Unicast,
            RouteType::Local => Kind::Local,
            RouteType::Unreachable
            | RouteType::Prohibit
            | RouteType::BlackHole
            | RouteType::Throw => Kind::Refuse,
            _ => Kind::Other,
        },
        link: None,
        via: None,
        onlink: header.flags.contains(RouteFlags::Onlink),
        source: None,
        table: u32::from(header.table),
        metric: 0,
        protocol: header.protocol.into(),
        mtu: None,
        advmss: None,
    };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(to) => {
                route.to = IpNet::new(ip(to)?, header.destination_prefix_length).ok()?;
            }
            RouteAttribute::Oif(link) => route.link = Some(*link),
            RouteAttribute::Gateway(hop) => route.via = ip(hop),
            RouteAttribute::PrefSource(source) => route.source = ip(source),
            RouteAttribute::Table(table) => route.table = *table,
            RouteAttribute::Priority(metric) => route.metric = *metric,
            RouteAttribute::Metrics(metrics) => {
                for metric in metrics {
                    match metric {
                        RouteMetric::Mtu(mtu) => route.mtu = Some(*mtu),
                        RouteMetric::Advmss(advmss) => route.advmss = Some(*advmss),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    Some(route)
}

const fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some(IpAddr::V4(*v4)),
        RouteAddress::Inet6(v6) => Some(IpAddr::V6(*v6)),
        _ => None,
    }
}
