//! Neighbours: permanent entries, and addresses that the host answers for (proxy entries).

use std::fmt;
use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::addr::family;
use super::{Ensured, Error, Netlink};

/// What the table says of a neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It has this hardware address, for good: nobody is asked.
    Permanent([u8; 6]),
    /// It was learned, and may be stale. Only listed.
    Learned([u8; 6]),
    /// It is being asked for, or did not answer. Only listed.
    Unknown,
    /// This host answers for it: `proxy_arp` by address, `proxy_ndp`.
    Proxy,
}

/// An entry of a device's neighbour table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// The device's index.
    pub link: u32,
    /// The neighbour's address.
    pub address: IpAddr,
    /// What is known of it.
    pub kind: Kind,
}

impl Neighbour {
    fn message(&self) -> NeighbourMessage {
        let mut message = NeighbourMessage::default();
        message.header.family = family(self.address);
        message.header.ifindex = self.link;
        message
            .attributes
            .push(NeighbourAttribute::Destination(self.address.into()));
        match self.kind {
            Kind::Proxy => message.header.flags = NeighbourFlags::Proxy,
            Kind::Permanent(mac) => {
                message.header.state = NeighbourState::Permanent;
                message
                    .attributes
                    .push(NeighbourAttribute::LinkLayerAddress(mac.to_vec()));
            }
            Kind::Learned(mac) => {
                message.header.state = NeighbourState::Stale;
                message
                    .attributes
                    .push(NeighbourAttribute::LinkLayerAddress(mac.to_vec()));
            }
            Kind::Unknown => {}
        }
        message
    }
}

impl fmt::Display for Neighbour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on device {}", self.address, self.link)
    }
}

impl Netlink {
    /// Adds an entry; `Exists` if there is one. The kernel does not tell that of proxy entries.
    pub async fn add_neighbour(&self, neighbour: &Neighbour) -> Result<(), Error> {
        let message = RouteNetlinkMessage::NewNeighbour(neighbour.message());
        self.change(
            &format!("add the neighbour {neighbour}"),
            message,
            NLM_F_CREATE | NLM_F_EXCL,
        )
        .await
    }

    /// Makes the table say this, unless it does; what it had learned itself gives way.
    pub async fn ensure_neighbour(&self, neighbour: &Neighbour) -> Result<Ensured, Error> {
        if self.neighbours(neighbour.link).await?.contains(neighbour) {
            return Ok(Ensured::Kept);
        }
        let message = RouteNetlinkMessage::NewNeighbour(neighbour.message());
        self.change(
            &format!("set the neighbour {neighbour}"),
            message,
            NLM_F_CREATE | NLM_F_REPLACE,
        )
        .await?;
        Ok(Ensured::Made)
    }

    /// Deletes an entry; `NotFound` if there is none.
    pub async fn delete_neighbour(&self, neighbour: &Neighbour) -> Result<(), Error> {
        let message = RouteNetlinkMessage::DelNeighbour(neighbour.message());
        self.change(&format!("delete the neighbour {neighbour}"), message, 0)
            .await
    }

    /// The entries of a device, proxy entries included, of both families.
    pub async fn neighbours(&self, link: u32) -> Result<Vec<Neighbour>, Error> {
        let mut found = Vec::new();
        for flags in [NeighbourFlags::empty(), NeighbourFlags::Proxy] {
            let mut question = NeighbourMessage::default();
            question.header.flags = flags;
            let answers = self
                .dump(
                    "list the neighbours",
                    RouteNetlinkMessage::GetNeighbour(question),
                )
                .await?;
            found.extend(answers.into_iter().filter_map(|answer| match answer {
                RouteNetlinkMessage::NewNeighbour(message) => parse(&message),
                _ => None,
            }));
        }
        Ok(found
            .into_iter()
            .filter(|neighbour| neighbour.link == link)
            .collect())
    }
}

fn parse(message: &NeighbourMessage) -> Option<Neighbour> {
    if !matches!(
        message.header.family,
        AddressFamily::Inet | AddressFamily::Inet6
    ) {
        return None;
    }
    let mut address = None;
    let mut mac = None;
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => {
                address = Some(IpAddr::V4(*v4))
            }
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => {
                address = Some(IpAddr::V6(*v6))
            }
            NeighbourAttribute::LinkLayerAddress(bytes) => {
                mac = <[u8; 6]>::try_from(bytes.as_slice()).ok()
            }
            _ => {}
        }
    }
    let kind = if message.header.flags.contains(NeighbourFlags::Proxy) {
        Kind::Proxy
    } else {
        match (mac, message.header.state) {
            (Some(mac), NeighbourState::Permanent) => Kind::Permanent(mac),
            (Some(mac), state) if state != NeighbourState::Failed => Kind::Learned(mac),
            _ => Kind::Unknown,
        }
    };
    Some(Neighbour {
        link: message.header.ifindex,
        address: address?,
        kind,
    })
}
