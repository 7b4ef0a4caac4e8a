//! Devices: make veth pairs, find, list, set, delete.

use std::fmt;
use std::os::fd::{AsFd, AsRawFd};
use std::str::FromStr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};

use super::{Error, Netlink};
use crate::netns::Netns;

/// The name of a network device: what `dev_valid_name` in the kernel takes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IfName(String);

/// The text cannot be the name of a network device.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} cannot be the name of a network device: 1 to 15 bytes, no space, slash or colon, not . or .."
)]
pub struct BadIfName(String);

impl IfName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for IfName {
    type Err = BadIfName;

    fn from_str(text: &str) -> Result<Self, BadIfName> {
        let bad = text.is_empty()
            || text.len() >= libc::IFNAMSIZ
            || text == "."
            || text == ".."
            // The kernel replaces %d by a number, so such a name would not be the one that was asked for.
            || text.contains(['/', ':', '%', '\0'])
            || text.contains(char::is_whitespace);
        if bad {
            Err(BadIfName(text.to_owned()))
        } else {
            Ok(Self(text.to_owned()))
        }
    }
}

impl fmt::Display for IfName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A device as the kernel lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its number in its namespace.
    pub index: u32,
    /// Its name, as the kernel gives it.
    pub name: String,
    /// What it is: `veth`, `tun`, `bridge`; empty for hardware and loopback.
    pub kind: String,
    /// Whether it is up, as an administrator sets it.
    pub up: bool,
    /// Whether it has a carrier.
    pub carrier: bool,
    /// The largest packet, in bytes without link header.
    pub mtu: u32,
    /// The hardware address, if it is an Ethernet one.
    pub mac: Option<[u8; 6]>,
    /// A text for people, at most 255 bytes: we tag what is ours with it. Empty if there is none.
    pub alias: String,
    /// The largest super-packet that the stack gives it, in bytes.
    pub gso_max_size: u32,
    /// The same for IPv4 where the kernel tells them apart (6.3 and later).
    pub gso_ipv4_max_size: Option<u32>,
    /// The index of the other end of a veth pair, in the other end's namespace.
    pub peer_index: Option<u32>,
}

/// One end of a veth pair that is to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VethEnd {
    /// Its name.
    pub name: IfName,
    /// Its hardware address. One that is given stays: `udev` changes the kernel's random ones, some time later.
    pub mac: [u8; 6],
}

impl VethEnd {
    fn attributes(&self, mtu: u32) -> [LinkAttribute; 3] {
        [
            LinkAttribute::IfName(self.name.0.clone()),
            LinkAttribute::Address(self.mac.to_vec()),
            LinkAttribute::Mtu(mtu),
        ]
    }
}

/// What to change about a device; what is `None` stays.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinkChange {
    /// Up or down.
    pub up: Option<bool>,
    /// The largest packet in bytes.
    pub mtu: Option<u32>,
    /// The largest super-packet in bytes. Sets the limit of IPv4 too, which kernels from 6.3 on keep apart.
    pub gso_max_size: Option<u32>,
    /// The text for people.
    pub alias: Option<String>,
    /// A new name; the device must be down (kernels from 6.2 on allow it always).
    pub name: Option<IfName>,
}

impl LinkChange {
    /// Brings a device up.
    pub const fn up() -> Self {
        Self {
            up: Some(true),
            mtu: None,
            gso_max_size: None,
            alias: None,
            name: None,
        }
    }
}

impl Netlink {
    /// Makes a veth pair: one end here, the peer in the other namespace. Both are down.
    ///
    /// The peer never exists in this namespace, so nothing here sees or renames it. `Exists` is for either name.
    pub async fn add_veth(
        &self,
        end: &VethEnd,
        peer: &VethEnd,
        peer_netns: &Netns,
        mtu: u32,
    ) -> Result<(), Error> {
        let mut other = LinkMessage::default();
        other.attributes.extend(peer.attributes(mtu));
        let netns = LinkAttribute::NetNsFd(peer_netns.as_fd().as_raw_fd());
        other.attributes.push(netns);
        let mut message = LinkMessage::default();
        message.attributes.extend(end.attributes(mtu));
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(other))),
        ]));
        let doing = format!(
            "make the veth pair {} with {} in {}",
            end.name,
            peer.name,
            peer_netns.origin()
        );
        let message = RouteNetlinkMessage::NewLink(message);
        self.change(&doing, message, NLM_F_CREATE | NLM_F_EXCL)
            .await
    }

    /// The device of a name; `None` if there is none.
    pub async fn link(&self, name: &IfName) -> Result<Option<Link>, Error> {
        let mut message = LinkMessage::default();
        message
            .attributes
            .push(LinkAttribute::IfName(name.0.clone()));
        self.find_link(&format!("look up the device {name}"), message)
            .await
    }

    /// The device of an index; `None` if there is none.
    pub async fn link_at(&self, index: u32) -> Result<Option<Link>, Error> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        self.find_link(&format!("look up device {index}"), message)
            .await
    }

    async fn find_link(&self, doing: &str, message: LinkMessage) -> Result<Option<Link>, Error> {
        match self.get(doing, RouteNetlinkMessage::GetLink(message)).await {
            Ok(RouteNetlinkMessage::NewLink(found)) => Ok(Some(Link::from(found))),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
            Ok(_) => Err(Error::Closed),
        }
    }

    /// All devices of the namespace, by index.
    pub async fn links(&self) -> Result<Vec<Link>, Error> {
        let question = RouteNetlinkMessage::GetLink(LinkMessage::default());
        let mut links: Vec<_> = self
            .dump("list the devices", question)
            .await?
            .into_iter()
            .filter_map(|answer| match answer {
                RouteNetlinkMessage::NewLink(link) => Some(Link::from(link)),
                _ => None,
            })
            .collect();
        links.sort_by_key(|link| link.index);
        Ok(links)
    }

    /// Changes a device.
    pub async fn set_link(&self, index: u32, change: &LinkChange) -> Result<(), Error> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        if let Some(up) = change.up {
            message.header.change_mask = LinkFlags::Up;
            message.header.flags = if up {
                LinkFlags::Up
            } else {
                LinkFlags::empty()
            };
        }
        message.attributes.extend(
            change
                .name
                .as_ref()
                .map(|name| LinkAttribute::IfName(name.0.clone())),
        );
        message
            .attributes
            .extend(change.mtu.map(LinkAttribute::Mtu));
        message
            .attributes
            .extend(change.alias.clone().map(LinkAttribute::IfAlias));
        if let Some(size) = change.gso_max_size {
            message.attributes.push(LinkAttribute::GsoMaxSize(size));
            // Kernels before 6.3 have no such attribute, and no link message makes them look at ones they don't know.
            message.attributes.push(LinkAttribute::GsoIpv4MaxSize(size));
        }
        self.change(
            &format!("change device {index} ({change})"),
            RouteNetlinkMessage::SetLink(message),
            0,
        )
        .await
    }

    /// Deletes a device (with both ends, if it is a veth pair). `NotFound` if it is gone already.
    pub async fn delete_link(&self, index: u32) -> Result<(), Error> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        self.change(
            &format!("delete device {index}"),
            RouteNetlinkMessage::DelLink(message),
            0,
        )
        .await
    }

    /// The same by name.
    pub async fn delete_link_named(&self, name: &IfName) -> Result<(), Error> {
        let mut message = LinkMessage::default();
        let attribute = LinkAttribute::IfName(name.0.clone());
        message.attributes.push(attribute);
        self.change(
            &format!("delete the device {name}"),
            RouteNetlinkMessage::DelLink(message),
            0,
        )
        .await
    }
}

impl fmt::Display for LinkChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let up = self.up.map(|up| {
            if up {
                "up".to_owned()
            } else {
                "down".to_owned()
            }
        });
        let parts = [
            self.name.as_ref().map(|name| format!("name {name}")),
            self.mtu.map(|mtu| format!("mtu {mtu}")),
            self.gso_max_size.map(|size| format!("gso_max_size {size}")),
            self.alias.as_ref().map(|alias| format!("alias {alias:?}")),
            up,
        ];
        f.write_str(&parts.into_iter().flatten().collect::<Vec<_>>().join(", "))
    }
}

impl From<LinkMessage> for Link {
    fn from(message: LinkMessage) -> Self {
        let flags = message.header.flags;
        let mut link = Self {
            index: message.header.index,
            name: String::new(),
            kind: String::new(),
            up: flags.contains(LinkFlags::Up),
            carrier: flags.contains(LinkFlags::LowerUp),
            mtu: 0,
            mac: None,
            alias: String::new(),
            gso_max_size: 0,
            gso_ipv4_max_size: None,
            peer_index: None,
        };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::Mtu(mtu) => link.mtu = mtu,
                LinkAttribute::Address(bytes) => link.mac = bytes.try_into().ok(),
                LinkAttribute::IfAlias(alias) => link.alias = alias,
                LinkAttribute::GsoMaxSize(size) => link.gso_max_size = size,
                LinkAttribute::GsoIpv4MaxSize(size) => link.gso_ipv4_max_size = Some(size),
                LinkAttribute::Link(index) => link.peer_index = Some(index),
                LinkAttribute::LinkInfo(infos) => {
                    for info in infos {
                        if let LinkInfo::Kind(kind) = info {
                            link.kind = kind.to_string();
                        }
                    }
                }
                _ => {}
            }
        }
        link
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_what_the_kernel_takes() {
        for good in ["eth0", "weave0", "wv0123456789", "eth0.7", "a"] {
            assert_eq!(good.parse::<IfName>().unwrap().as_str(), good);
        }
        for bad in [
            "",
            ".",
            "..",
            "a/b",
            "a b",
            "a:0",
            "sixteen-bytes-16",
            "eth%d",
            "a\0",
        ] {
            assert!(bad.parse::<IfName>().is_err(), "{bad:?}");
        }
    }
}
