//! Connecting containers, and the host itself, to the network.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use crate::{
    AddressRange, Bandwidth, CniName, ContainerName, Floating, IfName, LabelKey, LabelValue, Mac,
    NetworkName, PublishedPort,
};

/// `POST /v1/attachments`: gives a container an interface and addresses.
///
/// Asking again with the same name, namespace and interface answers with what exists.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AttachRequest {
    /// The container's network namespace: a path, a name under /run/netns, or a process id.
    #[cfg_attr(feature = "openapi", schema(example = "/run/netns/web1"))]
    pub netns: String,
    /// The container's name on this node.
    pub name: ContainerName,
    /// A wanted address, IPv4 or IPv6; any free one when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, example = "10.32.0.9"))]
    pub ip: Option<IpAddr>,
    /// More wanted addresses. All of a container's lie at the same place of their ranges, so this can only be the
    /// other family's counterpart of `ip`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<String>, example = json!(["fd00:1:2::9"])))]
    pub more_ips: Vec<IpAddr>,
    /// Where the IPv4 address must lie: in one of these; anywhere in the network when empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ranges: Vec<AddressRange>,
    /// Floating addresses that it should have beside its own, out of pools; whoever else has them loses them. One that
    /// is attached already gets them too, and keeps those that it has and that are not named.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<String>, example = json!(["10.45.0.10"])))]
    pub also: Vec<IpAddr>,
    /// The hardware address that the interface should have; made from its IPv4 address when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, example = "02:42:0a:20:00:09"))]
    pub mac: Option<Mac>,
    /// The MTU of the interface, in bytes, 1280 to 60000; the node's own when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u16>,
    /// The interface to make in the container.
    #[serde(default = "IfName::eth0")]
    pub ifname: IfName,
    /// The network to attach to.
    #[serde(default = "NetworkName::default_network")]
    pub network: NetworkName,
    /// The container's labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<LabelKey, LabelValue>,
    /// More names of the container.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub aliases: BTreeSet<ContainerName>,
    /// Ports of the host that lead to it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub publish: Vec<PublishedPort>,
    /// How much the interface may carry.
    #[serde(default, skip_serializing_if = "Bandwidth::is_unlimited")]
    pub bandwidth: Bandwidth,
    /// Which CNI runtime's it is; absent for one that is attached by hand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<CniOwner>,
}

/// Whose an attachment is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CniOwner {
    /// The name of the network in the runtime's configuration.
    pub network: CniName,
    /// What the runtime calls the container.
    pub container: CniName,
}

/// A container that is attached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Attachment {
    /// The container's name on this node.
    pub name: ContainerName,
    /// Its network namespace: a path.
    pub netns: String,
    /// Its interface.
    pub ifname: IfName,
    /// The hardware address of that interface.
    #[cfg_attr(feature = "openapi", schema(example = "02:42:0a:20:00:02"))]
    pub mac: String,
    /// The MTU of that interface, in bytes.
    pub mtu: u32,
    /// The other end of the pair, on the host.
    pub host_ifname: IfName,
    /// The hardware address of the host's end.
    pub host_mac: String,
    /// The network it is attached to.
    pub network: NetworkName,
    /// Its IPv4 address, with the prefix of the network.
    #[cfg_attr(feature = "openapi", schema(value_type = String, example = "10.32.0.2/12"))]
    pub ip: Ipv4Net,
    /// The IPv4 gateway.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub gateway: Ipv4Addr,
    /// Its IPv6 address, a /128; absent where IPv6 is switched off in the container or on the host.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, example = "fd00:1:2::2/128"))]
    pub ip6: Option<Ipv6Net>,
    /// The floating addresses that it has beside these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub also: Vec<Floating>,
    /// The IPv6 gateway, link-local.
    #[cfg_attr(feature = "openapi", schema(value_type = String, example = "fe80::1"))]
    pub gateway6: Ipv6Addr,
    /// Whether its default routes lead here; not where it had one before.
    pub default_route: bool,
    /// Its labels.
    pub labels: BTreeMap<LabelKey, LabelValue>,
    /// More names of it, which its runtime gave it.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub aliases: BTreeSet<ContainerName>,
    /// Ports of the host that lead to it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub publish: Vec<PublishedPort>,
    /// How much the interface may carry.
    #[serde(default, skip_serializing_if = "Bandwidth::is_unlimited")]
    pub bandwidth: Bandwidth,
    /// Which CNI runtime's it is; absent for one that was attached by hand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<CniOwner>,
    /// When it was attached.
    pub attached_at: u64,
    /// Whether its namespace and its interface are still there; once its interface was gone for two looks of the node,
    /// its addresses are freed.
    pub alive: bool,
}

/// `GET /v1/attachments`: the containers of this node, by name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Attachments {
    /// One entry for each container, in the order of their names.
    pub attachments: Vec<Attachment>,
    /// What their runtimes call those that were attached by another name: the pod's name, or the container's.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[cfg_attr(feature = "openapi", schema(value_type = BTreeMap<String, String>))]
    pub called: BTreeMap<ContainerName, String>,
    /// The host's own addresses, if it is exposed.
    pub host: Option<HostAddress>,
}

/// `POST /v1/expose`: gives the host itself addresses on the network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ExposeRequest {
    /// A wanted address, IPv4 or IPv6; any free one when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, example = "10.32.0.9"))]
    pub ip: Option<IpAddr>,
}

/// The addresses of an exposed host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct HostAddress {
    /// Its IPv4 address.
    #[cfg_attr(feature = "openapi", schema(value_type = String, example = "10.32.0.3"))]
    pub ip: Ipv4Addr,
    /// Its IPv6 address; absent where IPv6 is switched off on the host.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, example = "fd00:1:2::3"))]
    pub ip6: Option<Ipv6Addr>,
}
