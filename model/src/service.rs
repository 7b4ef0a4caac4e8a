//! Services and what stands behind them: the words that every source of Services and every engine share.
//!
//! A Service is a virtual address with ports; its endpoints come in slices, each the work of one writer (a node of the
//! mesh, or the slice controller of Kubernetes). The fields are those of Kubernetes' `Service` v1 and `EndpointSlice`
//! v1, parsed: what stands here is well-formed, and what it means is decided in one place, the proxy's table.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::engine::{Balance, Engine};
use crate::name::{BadName, name, word};

name! {
    /// A Service's name: a DNS label of at most 63 lower-case letters, digits or `-`; behind a namespace and `/` where
    /// there are namespaces.
    ServiceName, "web",
    "a service name: 1 to 63 lower-case letters, digits or '-', beginning and ending with a letter or digit, with a namespace and '/' before it where there are namespaces",
    |text| match text.split_once('/') {
        Some((namespace, name)) => label(namespace) && label(name),
        None => label(text),
    }
}

fn label(text: &str) -> bool {
    let lower = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    word(text, 63) && text.bytes().all(lower)
}

/// A protocol with ports that Services may have.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
    /// SCTP, as a stream of packets between two ports: associations with several addresses are not followed.
    Sctp,
}

impl Protocol {
    /// Its number (IANA).
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        })
    }
}

/// The text is no protocol with ports.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not a protocol: tcp, udp or sctp")]
pub struct BadProtocol(String);

impl FromStr for Protocol {
    type Err = BadProtocol;

    fn from_str(text: &str) -> Result<Self, BadProtocol> {
        match text {
            "tcp" | "TCP" => Ok(Self::Tcp),
            "udp" | "UDP" => Ok(Self::Udp),
            "sctp" | "SCTP" => Ok(Self::Sctp),
            _ => Err(BadProtocol(text.to_owned())),
        }
    }
}

/// Whether a client keeps its endpoint from one connection to the next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Affinity {
    /// Every connection is picked for anew.
    #[default]
    None,
    /// Connections from one address go to one endpoint, until none was made for this many seconds.
    ClientIp {
        /// 1 to 86,400.
        seconds: u32,
    },
}

impl Affinity {
    /// What Kubernetes takes when nothing is said.
    pub const DEFAULT_SECONDS: u32 = 10_800;
    /// The longest that may be asked for.
    pub const MAX_SECONDS: u32 = 86_400;
}

/// Which endpoints a node may choose for traffic that comes to it.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum TrafficPolicy {
    /// Those of all nodes.
    #[default]
    Cluster,
    /// Its own only.
    Local,
}

/// What a Service asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ServiceKind {
    /// Addresses of the cluster's own.
    #[default]
    ClusterIp,
    /// These, and a port of every node.
    NodePort,
    /// These, and addresses of a load balancer outside.
    LoadBalancer,
    /// Only another name in DNS.
    ExternalName(String),
}

/// A port of a Service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServicePort {
    /// By which the slices name it; empty where there is only one.
    pub name: String,
    /// Its protocol.
    pub protocol: Protocol,
    /// The port of the virtual addresses.
    pub port: u16,
    /// The port of every node's own addresses.
    pub node_port: Option<u16>,
}

/// An address that a load balancer outside has for a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BalancerIp {
    /// The address.
    pub ip: IpAddr,
    /// How its packets reach the nodes.
    pub mode: BalancerMode,
}

/// How the packets of a load balancer reach the nodes (KEP-1860).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum BalancerMode {
    /// With the balancer's address as their destination: nodes take that address themselves.
    #[default]
    Vip,
    /// With a node's: the way over the balancer must not be cut short.
    Proxy,
}

/// A Service: one virtual address, or one a family, in front of endpoints that come and go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Its name.
    pub name: ServiceName,
    /// What it asks for.
    pub kind: ServiceKind,
    /// Its virtual addresses, at most one a family; none if it is headless.
    pub addresses: Vec<IpAddr>,
    /// Its ports.
    pub ports: Vec<ServicePort>,
    /// More addresses that nodes take for it; believed only where the node's facts allow it.
    pub external_ips: Vec<IpAddr>,
    /// The load balancer's addresses.
    pub balancer: Vec<BalancerIp>,
    /// Who may come in by the load balancer's addresses; everybody when empty.
    pub source_ranges: Vec<IpNet>,
    /// Whether clients keep their endpoint.
    pub affinity: Affinity,
    /// For traffic to the virtual addresses.
    pub internal: TrafficPolicy,
    /// For traffic to all others.
    pub external: TrafficPolicy,
    /// Where each node answers the load balancer whether it has ready endpoints.
    pub health_port: Option<u16>,
    /// The label `service.kubernetes.io/service-proxy-name`: another proxy serves it.
    pub other_proxy: bool,
    /// The label `service.kubernetes.io/headless`.
    pub headless: bool,
    /// The engine it asks for.
    pub engine: Option<Engine>,
    /// How it asks to be balanced.
    pub balance: Option<Balance>,
}

impl Service {
    /// A Service with virtual addresses and ports, and all else as it is when nothing is said.
    pub fn new(
        name: ServiceName,
        addresses: impl IntoIterator<Item = IpAddr>,
        ports: impl IntoIterator<Item = ServicePort>,
    ) -> Self {
        Self {
            name,
            kind: ServiceKind::ClusterIp,
            addresses: addresses.into_iter().collect(),
            ports: ports.into_iter().collect(),
            external_ips: Vec::new(),
            balancer: Vec::new(),
            source_ranges: Vec::new(),
            affinity: Affinity::None,
            internal: TrafficPolicy::Cluster,
            external: TrafficPolicy::Cluster,
            health_port: None,
            other_proxy: false,
            headless: false,
            engine: None,
            balance: None,
        }
    }
}

/// What kind of addresses a slice holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AddressKind {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
    /// Names, which no proxy follows.
    Fqdn,
}

/// A port of the endpoints of a slice.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SlicePort {
    /// The Service's port of the same name and protocol leads here.
    pub name: String,
    /// Its protocol.
    pub protocol: Protocol,
    /// The port of the endpoints; without one the slice says nothing of it.
    pub port: Option<u16>,
}

/// Endpoints of a Service that have the same ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    /// Its own name; with the Service's it is unique.
    pub name: String,
    /// The Service it belongs to.
    pub service: ServiceName,
    /// What its addresses are.
    pub kind: AddressKind,
    /// The ports of each of its endpoints.
    pub ports: Vec<SlicePort>,
    /// Its endpoints.
    pub endpoints: Vec<Endpoint>,
}

/// One that serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Where.
    pub address: IpAddr,
    /// The node it is on, by name; unknown for one outside.
    pub node: Option<String>,
    /// It takes new work.
    pub ready: bool,
    /// It answers, whether it is going or not.
    pub serving: bool,
    /// It is going.
    pub terminating: bool,
    /// The nodes that should prefer it.
    pub for_nodes: BTreeSet<String>,
    /// The zones that should prefer it.
    pub for_zones: BTreeSet<String>,
}

impl Endpoint {
    /// One that is ready.
    pub const fn ready(address: IpAddr, node: Option<String>) -> Self {
        Self {
            address,
            node,
            ready: true,
            serving: true,
            terminating: false,
            for_nodes: BTreeSet::new(),
            for_zones: BTreeSet::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_is_named_like_a_host() {
        for right in ["web", "a-1", "shop/web", "0"] {
            assert!(right.parse::<ServiceName>().is_ok(), "{right}");
        }
        for wrong in [
            "",
            "Web",
            "a.b",
            "-a",
            "a/b/c",
            "/a",
            "a/",
            "a b",
            &"a".repeat(64),
        ] {
            assert!(wrong.parse::<ServiceName>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn protocols_are_words_in_either_case() {
        for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
            let text = protocol.to_string();
            assert_eq!(text.parse(), Ok(protocol));
            assert_eq!(text.to_uppercase().parse(), Ok(protocol));
        }
        assert!("icmp".parse::<Protocol>().is_err());
    }
}
