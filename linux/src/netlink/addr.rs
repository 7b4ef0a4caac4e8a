//! Addresses of devices: add, delete, list.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressMessage, AddressScope, CacheInfo,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::{Ensured, Error, Netlink};

/// An address of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// The device's index.
    pub link: u32,
    /// The address and the length of its prefix.
    pub net: IpNet,
    /// IPv4: the address for broadcasts on the link.
    pub broadcast: Option<Ipv4Addr>,
    /// The kernel makes no route to the prefix for it (`noprefixroute`).
    pub no_prefix_route: bool,
    /// IPv6: usable at once, without asking on the link whether somebody has it (`nodad`).
    pub no_dad: bool,
    /// IPv6: the source of no packet whose sender has not asked for it (RFC 4862, 5.5.4).
    pub deprecated: bool,
    /// IPv6: not usable yet, or never because somebody has it. Not part of a request.
    pub tentative: bool,
}

impl Address {
    /// An address with nothing special about it, but that an IPv6 one is used at once.
    pub const fn new(link: u32, net: IpNet) -> Self {
        let no_dad = matches!(net, IpNet::V6(_));
        Self {
            link,
            net,
            broadcast: None,
            no_prefix_route: false,
            no_dad,
            deprecated: false,
            tentative: false,
        }
    }

    /// The same, without a route to the prefix.
    pub const fn no_prefix_route(self) -> Self {
        Self {
            no_prefix_route: true,
            ..self
        }
    }

    /// The same, but the source of nothing unless a program asks for it.
    pub const fn deprecated(self) -> Self {
        Self {
            deprecated: matches!(self.net, IpNet::V6(_)),
            ..self
        }
    }

    /// The same, with a broadcast address.
    pub const fn with_broadcast(self, broadcast: Ipv4Addr) -> Self {
        Self {
            broadcast: Some(broadcast),
            ..self
        }
    }

    fn message(&self) -> AddressMessage {
        let mut message = AddressMessage::default();
        message.header.index = self.link;
        message.header.prefix_len = self.net.prefix_len();
        message.header.family = family(self.net.addr());
        message.header.scope = scope(self.net.addr());
        message
            .attributes
            .push(AddressAttribute::Address(self.net.addr()));
        message
            .attributes
            .push(AddressAttribute::Local(self.net.addr()));
        message
            .attributes
            .extend(self.broadcast.map(AddressAttribute::Broadcast));
        let mut flags = AddressFlags::empty();
        flags.set(AddressFlags::Noprefixroute, self.no_prefix_route);
        flags.set(AddressFlags::Nodad, self.no_dad);
        if !flags.is_empty() {
            message.attributes.push(AddressAttribute::Flags(flags));
        }
        if self.deprecated {
            let mut lifetimes = CacheInfo::default();
            lifetimes.ifa_valid = u32::MAX;
            message
                .attributes
                .push(AddressAttribute::CacheInfo(lifetimes));
        }
        message
    }

    fn agrees(&self, found: &Self) -> bool {
        self.broadcast == found.broadcast && self.no_prefix_route == found.no_prefix_route
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on device {}", self.net, self.link)
    }
}

impl Netlink {
    /// Adds an address; `Exists` if the device has it, whatever its flags.
    pub async fn add_address(&self, address: &Address) -> Result<(), Error> {
        let message = RouteNetlinkMessage::NewAddress(address.message());
        self.change(
            &format!("add the address {address}"),
            message,
            NLM_F_CREATE | NLM_F_EXCL,
        )
        .await
    }

    /// Adds an address unless the device has it with the same broadcast address and prefix route.
    pub async fn ensure_address(&self, address: &Address) -> Result<Ensured, Error> {
        match self.add_address(address).await {
            Ok(()) => Ok(Ensured::Made),
            Err(error) if error.is_exists() => {
                let found = self.addresses(Some(address.link)).await?;
                let agrees = found
                    .iter()
                    .any(|found| found.net == address.net && address.agrees(found));
                if agrees {
                    Ok(Ensured::Kept)
                } else {
                    Err(error)
                }
            }
            Err(error) => Err(error),
        }
    }

    /// Takes an address away; `NotFound` if the device does not have it.
    pub async fn delete_address(&self, link: u32, net: IpNet) -> Result<(), Error> {
        let message = Address {
            no_dad: false,
            ..Address::new(link, net)
        }
        .message();
        let doing = format!("delete the address {net} of device {link}");
        self.change(&doing, RouteNetlinkMessage::DelAddress(message), 0)
            .await
    }

    /// The addresses of a device, or of all, of both families.
    pub async fn addresses(&self, link: Option<u32>) -> Result<Vec<Address>, Error> {
        let mut question = AddressMessage::default();
        question.header.index = link.unwrap_or(0);
        let answers = match self
            .dump(
                "list the addresses",
                RouteNetlinkMessage::GetAddress(question),
            )
            .await
        {
            // A device that is gone has no addresses.
            Err(error) if error.is_not_found() => Vec::new(),
            answers => answers?,
        };
        let addresses = answers.into_iter().filter_map(|answer| match answer {
            RouteNetlinkMessage::NewAddress(message) => parse(&message),
            _ => None,
        });
        Ok(addresses
            .filter(|address| link.is_none_or(|link| link == address.link))
            .collect())
    }
}

fn parse(message: &AddressMessage) -> Option<Address> {
    // IFA_LOCAL is the address itself; IFA_ADDRESS is the same, or the far end of a point-to-point link.
    let mut local = None;
    let mut other = None;
    let mut broadcast = None;
    let mut flags = AddressFlags::from_bits_retain(u32::from(message.header.flags.bits()));
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(address) => local = Some(*address),
            AddressAttribute::Address(address) => other = Some(*address),
            AddressAttribute::Broadcast(address) => broadcast = Some(*address),
            AddressAttribute::Flags(all) => flags = *all,
            _ => {}
        }
    }
    Some(Address {
        link: message.header.index,
        net: IpNet::new(local.or(other)?, message.header.prefix_len).ok()?,
        broadcast,
        no_prefix_route: flags.contains(AddressFlags::Noprefixroute),
        no_dad: flags.contains(AddressFlags::Nodad),
        deprecated: flags.contains(AddressFlags::Deprecated),
        tentative: flags.intersects(AddressFlags::Tentative | AddressFlags::Dadfailed),
    })
}

pub(crate) const fn family(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

const fn scope(address: IpAddr) -> AddressScope {
    match address {
        IpAddr::V6(v6) if v6.is_unicast_link_local() => AddressScope::Link,
        _ => AddressScope::Universe,
    }
}
