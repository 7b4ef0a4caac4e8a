//! What an attachment is: what is asked for, and what came of it.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use weave_linux::netlink::IfName;
use weave_linux::netns::Netns;
use weave_model::{Bandwidth, ClusterRange};

/// What lasts of an attachment on the host's side, and is kept to repair it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// The outer end's name: `wv` and 10 hex digits.
    pub outer: IfName,
    /// The cluster's ranges.
    pub range: ClusterRange,
    /// The container's address, as an offset into both.
    pub offset: u32,
    /// Whether it has its IPv6 address: before attaching whether it should, afterwards whether it does.
    pub ipv6: bool,
    /// Its floating addresses. Before attaching there are none; see [`super::Host::give`].
    pub also: Vec<IpAddr>,
    /// The largest packet in bytes.
    pub mtu: u32,
    /// Whether it has published ports, so that the host's own programs reach it by `127.0.0.1`.
    pub published: bool,
    /// How much it may carry.
    pub bandwidth: Bandwidth,
    /// Whose it is, for people who look at the host's devices; at most 200 bytes of it are shown.
    pub tag: String,
}

impl Attachment {
    /// The container's IPv4 address.
    pub fn v4(&self) -> Ipv4Addr {
        self.range.v4_at(self.offset)
    }

    /// The container's IPv6 address, if it has one.
    pub fn v6(&self) -> Option<Ipv6Addr> {
        self.ipv6.then(|| self.range.v6_at(self.offset))
    }

    /// The container's addresses: its own, IPv4 first, then the floating ones.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> + use<> {
        [Some(IpAddr::V4(self.v4())), self.v6().map(IpAddr::V6)]
            .into_iter()
            .flatten()
            .chain(self.also.clone())
    }
}

/// What to attach.
#[derive(Clone, Debug)]
pub struct AttachSpec {
    /// The host's side.
    pub attachment: Attachment,
    /// The container's namespace.
    pub netns: Arc<Netns>,
    /// The name of the device in the container.
    pub ifname: IfName,
    /// The hardware address of that device; made from the IPv4 address when absent.
    pub mac: Option<[u8; 6]>,
    /// Whether the container's default route leads through us.
    pub default_route: DefaultRoute,
    /// The largest packet that leaves the host towards the rest of the world, in bytes, if it is known: set on the
    /// default route where it is smaller than the container's MTU.
    pub uplink_mtu: Option<u32>,
}

/// What an attached container has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    /// The hardware address of the container's device.
    pub mac: [u8; 6],
    /// The hardware address of the outer end.
    pub outer_mac: [u8; 6],
    /// The index of the outer end.
    pub outer_index: u32,
    /// The container's IPv6 address, or why it has none.
    pub v6: Result<Ipv6Addr, NoIpv6>,
    /// Whether the IPv4 default route leads through us.
    pub default_route: bool,
}

/// Whether the container's way to the rest of the world leads through us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DefaultRoute {
    /// Where the container has no default route yet. One that it has stays.
    IfNone,
    /// Never: only the cluster's range does.
    Never,
}

/// Why a container has no IPv6 address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoIpv6 {
    /// Nobody asked for one.
    NotWanted,
    /// The host's kernel has no IPv6, or it is switched off for the host.
    Host,
    /// It is switched off in the container.
    Container,
}

impl fmt::Display for NoIpv6 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotWanted => "not asked for",
            Self::Host => "the host has IPv6 switched off",
            Self::Container => "the container has IPv6 switched off",
        })
    }
}
