//! Who talks to whom: the picture of the whole mesh, and what each node tells the others for it.
//!
//! A node sees the connections that pass its own host, so each member writes a [`Report`] of its containers and flows;
//! a [`Topology`] is what one node makes of all reports it has. A flow is told once, by the node of whoever began it; what
//! came from outside, by the node it came to.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use super::{HostAddress, PeerState, Problem, ServiceInfo, Traffic, Verdict};
use crate::{
    ContainerName, IfName, LabelKey, LabelValue, NetworkName, NodeId, NodeName, PathMtu,
    ServiceName, Suite,
};

/// What a node tells the others of itself, so that any of them can show the whole mesh.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The version of `weaved`.
    pub version: String,
    /// Its containers.
    pub containers: Vec<ReportContainer>,
    /// How many more containers it has than there was room for.
    pub more_containers: u32,
    /// The host's own addresses, if it is exposed.
    pub host: Option<HostAddress>,
    /// Its sessions with other members.
    pub links: Vec<ReportLink>,
    /// How many more sessions it has than there was room for.
    #[serde(default)]
    pub more_links: u32,
    /// The flows it sees, the busiest first.
    pub flows: Vec<ReportFlow>,
    /// How well it sees them.
    pub capture: Capture,
    /// What is not well there.
    pub problems: Vec<Problem>,
    /// What runs on the host outside of all containers; told while somebody looks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inside: Option<Inside>,
}

/// A container, as its node tells of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReportContainer {
    /// Its name on that node.
    pub name: ContainerName,
    /// Its interface.
    pub ifname: IfName,
    /// The network it is attached to.
    pub network: NetworkName,
    /// Its IPv4 address.
    pub ip: Ipv4Addr,
    /// Its IPv6 address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip6: Option<Ipv6Addr>,
    /// Its labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<LabelKey, LabelValue>,
    /// When it was attached.
    pub attached_at: u64,
    /// Whether its namespace and its interface are still there.
    pub alive: bool,
    /// What runs in it; told while somebody looks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inside: Option<Inside>,
    /// What its runtime says of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime: Option<RuntimeInfo>,
}

/// A session, as one of its ends tells of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReportLink {
    /// The other end.
    pub peer: NodeId,
    /// Whether there is a session.
    pub state: PeerState,
    /// The smoothed round-trip time, in microseconds.
    pub rtt_us: Option<u32>,
    /// Of a thousand pings, how many were lost.
    #[serde(default)]
    pub loss_permille: Option<u16>,
    /// The member that hands packets on, though it cannot read them; absent where they go straight.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub via: Option<NodeName>,
    /// The largest packet that crosses it.
    pub mtu: Option<PathMtu>,
    /// The suite of the session.
    pub suite: Option<Suite>,
    /// What this end sent and received since its start.
    pub traffic: Traffic,
}

/// Connections of one kind between two addresses, as a node counts them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReportFlow {
    /// Who began them.
    pub from: IpAddr,
    /// Who answers.
    pub to: IpAddr,
    /// The protocol.
    pub protocol: Protocol,
    /// The port of who answers; 0 where the protocol has none.
    pub port: u16,
    /// The address and port that were asked for, where the destination was translated: a Service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub via: Option<SocketAddr>,
    /// What was counted.
    #[serde(flatten)]
    pub counts: FlowCounts,
}

/// What is counted of a flow since it was first seen. Bytes are those of IP packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct FlowCounts {
    /// Connections that were begun.
    pub connections: u64,
    /// Connections that the kernel still follows.
    pub open: u32,
    /// Connections that were refused.
    pub refused: u64,
    /// Connections being followed that nobody has answered for longer than a moment.
    pub unanswered: u32,
    /// Bytes from who began it.
    pub sent_bytes: u64,
    /// Packets of these.
    pub sent_packets: u64,
    /// Bytes to who began it.
    pub received_bytes: u64,
    /// Packets of these.
    pub received_packets: u64,
    /// Bytes a second from who began it, of late.
    pub sent_rate: u64,
    /// Bytes a second to who began it, of late.
    pub received_rate: u64,
    /// Connections were refused, or nobody answers, of late.
    pub failing: bool,
    /// When something of it was last seen to move.
    pub last_at: u64,
    /// What the kernel knows of its TCP connections; absent where their sockets are not seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp: Option<TcpSeen>,
}

/// What the kernel knows of the TCP connections of a flow that are open now (`struct tcp_info`), at the end that lies on
/// the host that tells of it: where both do, at who began them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TcpSeen {
    /// How many sockets were found.
    pub sockets: u32,
    /// The smoothed round-trip time in microseconds, the mean of all that measured one; absent while none did.
    pub rtt_us: Option<u32>,
    /// Segments that were sent anew by that end.
    pub retransmits: u64,
}

/// The protocol of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// ICMP and ICMPv6.
    Icmp,
    /// SCTP.
    Sctp,
    /// Any other.
    Other,
}

impl Protocol {
    /// From the number in the IP header (<https://www.iana.org/assignments/protocol-numbers>).
    pub const fn from_number(number: u8) -> Self {
        match number {
            6 => Self::Tcp,
            17 => Self::Udp,
            1 | 58 => Self::Icmp,
            132 => Self::Sctp,
            _ => Self::Other,
        }
    }

    /// The word that JSON and people use.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Icmp => "icmp",
            Self::Sctp => "sctp",
            Self::Other => "other",
        }
    }
}

/// How well a node sees the flows of its host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Capture {
    /// Connections that the kernel follows on the host, those of others included.
    pub connections: u64,
    /// Flows that were left out because there were too many to keep, since the start.
    pub lost: u64,
    /// Flows that are kept but were too many to be told.
    pub untold: u32,
    /// Whether the kernel counts packets and bytes.
    pub accounting: bool,
    /// Milliseconds between two looks at the kernel's table.
    pub interval_ms: u32,
    /// Microseconds of CPU time that a look takes: the least of the last three.
    pub took_us: u64,
    /// Namespaces whose sockets the last look did not see, or not all: there were too many, or it may not enter them.
    #[serde(default)]
    pub unseen: u32,
    /// Why nothing is seen, if so.
    pub failure: Option<String>,
}

/// `GET /v1/topology`: the whole mesh, as this node knows it now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Topology {
    /// When it was made.
    pub at: u64,
    /// The node that made it.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub node: NodeId,
    /// Whether all is well on that node.
    pub verdict: Verdict,
    /// The same in one line.
    pub summary: String,
    /// What is not well there.
    pub problems: Vec<Problem>,
    /// The members, by name.
    pub hosts: Vec<TopologyHost>,
    /// Their containers, by host and name.
    pub containers: Vec<TopologyContainer>,
    /// Each pair of members once.
    pub links: Vec<TopologyLink>,
    /// The Services of the cluster, by name, as the node that made the picture sees them.
    #[serde(default)]
    pub services: Vec<TopologyService>,
    /// Who talks to whom.
    pub flows: Vec<Flow>,
}

/// What runs in a network namespace: a container's, or the host's own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Inside {
    /// Processes: first those that listen on a port, then the busiest.
    pub processes: Vec<ProcessInfo>,
    /// How many more there are.
    pub more_processes: u32,
    /// What all of them take of one core, in thousandths; absent until it was measured.
    pub cpu_permille: Option<u32>,
    /// Bytes of memory of all of them: what each has for itself, and the most that one of them shares.
    pub memory_bytes: u64,
}

/// A process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ProcessInfo {
    /// Its number, as its host counts.
    pub pid: u32,
    /// What it calls itself. Its command line is not told, because people write passwords there.
    pub name: String,
    /// What it takes of one core, in thousandths; absent until it was measured.
    pub cpu_permille: Option<u32>,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// What it listens on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<ListeningPort>,
}

/// A port on which a process waits for anybody.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ListeningPort {
    /// `tcp` or `udp`.
    pub protocol: Protocol,
    /// The address; 0.0.0.0 or :: for every one of the container's.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub ip: IpAddr,
    /// The port.
    pub port: u16,
}

/// What the runtime that made a container says of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RuntimeInfo {
    /// Which runtime: `docker`, `containerd`, or what the one of Kubernetes calls itself.
    pub runtime: String,
    /// The first 12 figures of the container's id there; of a pod, of its sandbox.
    pub id: String,
    /// Its name there.
    pub name: String,
    /// The image that it was made from; of a pod those of its containers, with commas between.
    pub image: String,
    /// The pod that it is, or is a part of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// The namespace of that pod in Kubernetes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// The application that it is a part of, as its labels say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workload: Option<String>,
    /// Its labels there; long ones and all but the first 32 are left out.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

/// A Service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TopologyService {
    /// Names it: `s:` and its name.
    pub id: String,
    /// What it is.
    #[serde(flatten)]
    pub info: ServiceInfo,
}

/// A member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TopologyHost {
    /// Its id.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub id: NodeId,
    /// Its name.
    pub name: NodeName,
    /// Whether it can be reached from the node that made the picture.
    pub state: PeerState,
    /// Its version; absent while it tells nothing.
    pub version: Option<String>,
    /// Where it says it can be reached.
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<String>))]
    pub endpoints: Vec<SocketAddr>,
    /// The prefixes it gives to its containers.
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<String>))]
    pub blocks: Vec<Ipv4Net>,
    /// The host's own addresses on the network, if it is exposed.
    pub exposed: Option<HostAddress>,
    /// Why nothing is known of its containers and flows, if so.
    pub silent: Option<String>,
    /// How many more containers it has than are shown.
    pub more_containers: u32,
    /// How many of its links it does not tell of; those of which the other end tells are shown all the same.
    #[serde(default)]
    pub more_links: u32,
    /// How well it sees flows.
    pub capture: Option<Capture>,
    /// What is not well there.
    pub problems: Vec<Problem>,
    /// What runs on it outside of all containers; absent until it has told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inside: Option<Inside>,
}

/// A container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TopologyContainer {
    /// Names it in flows: `c:`, the first figures of the host's id, name and interface.
    pub id: String,
    /// For people: the name of its pod, or what its runtime calls it, else `name`; where that is not enough on its host, with
    /// what tells it from others in brackets.
    #[serde(default)]
    pub title: String,
    /// The id of the first attachment of the same container, where this is a further one: such containers count once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub same_as: Option<String>,
    /// The id of its host.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub host: NodeId,
    /// Its name as it was attached: what `weavectl ps`, `detach` and the node's DNS go by.
    pub name: ContainerName,
    /// Its interface.
    pub ifname: IfName,
    /// Its network.
    pub network: NetworkName,
    /// Its IPv4 address.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub ip: Ipv4Addr,
    /// Its IPv6 address.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub ip6: Option<Ipv6Addr>,
    /// Its labels.
    pub labels: BTreeMap<LabelKey, LabelValue>,
    /// When it was attached.
    pub attached_at: u64,
    /// Whether its namespace and its interface are still there.
    pub alive: bool,
    /// What runs in it; absent until its node has told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inside: Option<Inside>,
    /// What its runtime says of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime: Option<RuntimeInfo>,
}

/// The labels by which a runtime that attaches a container says which pod it is; Podman names its containers so too.
const POD: &str = "io.kubernetes.pod.name";
const NAMESPACE: &str = "io.kubernetes.pod.namespace";

impl TopologyContainer {
    /// The pod that it is, as its runtime knows or said when it attached it.
    pub fn pod(&self) -> Option<&str> {
        let runtime = self.runtime.as_ref();
        let told = runtime.and_then(|runtime| runtime.pod.as_deref());
        told.or_else(|| self.label(POD))
    }

    /// The namespace of that pod.
    pub fn namespace(&self) -> Option<&str> {
        let runtime = self.runtime.as_ref();
        let told = runtime.and_then(|runtime| runtime.namespace.as_deref());
        told.or_else(|| self.label(NAMESPACE))
    }

    /// The name that its runtime gave it: its pod's where it is one.
    pub fn runtime_name(&self) -> Option<&str> {
        let runtime = self.runtime.as_ref();
        let name = || runtime.map(|runtime| runtime.name.as_str());
        self.pod().or_else(name).filter(|name| !name.is_empty())
    }

    /// Whether it goes by this name: as it was attached, as its runtime calls it, or as it is shown.
    pub fn is_called(&self, name: &str) -> bool {
        let runtime = self.runtime.as_ref();
        self.name.as_str() == name
            || self.title == name
            || self.runtime_name() == Some(name)
            || runtime.is_some_and(|runtime| runtime.name == name)
    }

    fn label(&self, key: &str) -> Option<&str> {
        let mut labels = self.labels.iter();
        labels.find_map(|(label, value)| (label.as_str() == key).then(|| value.as_str()))
    }
}

/// The encrypted link between two members.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TopologyLink {
    /// Names it: `l:` and the first figures of both ids.
    pub id: String,
    /// The id of one end.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub a: NodeId,
    /// The id of the other.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub b: NodeId,
    /// Connected if either end says so.
    pub state: PeerState,
    /// The smoothed round-trip time, in microseconds.
    pub rtt_us: Option<u32>,
    /// Of a thousand pings, how many were lost: the worse of both directions.
    #[serde(default)]
    pub loss_permille: Option<u16>,
    /// The member that hands packets on, though it cannot read them; absent where they go straight.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub via: Option<NodeName>,
    /// The largest packet that crosses it: the smaller of both directions.
    pub mtu: Option<PathMtu>,
    /// The suite of the session.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub suite: Option<Suite>,
    /// What `a` sent to `b` and received from it since the start of who tells it.
    pub traffic: Traffic,
}

/// Connections of one kind between two ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Flow {
    /// Names it.
    pub id: String,
    /// Who began it.
    pub from: FlowEnd,
    /// Who answers.
    pub to: FlowEnd,
    /// The protocol.
    pub protocol: Protocol,
    /// The port of who answers; 0 where the protocol has none.
    pub port: u16,
    /// The address and port that were asked for, where the destination was translated: a Service.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub via: Option<SocketAddr>,
    /// The Service that has that address; absent where none is known to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<ServiceName>,
    /// What was counted.
    #[serde(flatten)]
    pub counts: FlowCounts,
}

/// One end of a flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct FlowEnd {
    /// What it is.
    pub kind: EndKind,
    /// The container's id, the host's id, the Service's, or the address.
    pub id: String,
    /// For people: a container's title, another's name, or the address.
    pub name: String,
    /// Its address.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub ip: IpAddr,
}

/// What an end of a flow is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum EndKind {
    /// A container.
    Container,
    /// A member itself.
    Host,
    /// A Service itself: what was sent to its address was passed on to nobody.
    Service,
    /// An address of the network that no container is known to have: gone, or its host tells nothing.
    Unknown,
    /// Not in the network.
    Outside,
}

/// `POST /v1/dashboard`: a login for the page.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PageLogin {
    /// Opens the page once, soon.
    pub code: String,
    /// How many seconds it is good.
    pub good_for_s: u32,
    /// Where the page is served on the node's host; nowhere but through the socket when absent.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub address: Option<SocketAddr>,
    /// The network namespace that the node is in, as the kernel numbers it: the address is good in that one.
    pub netns: u64,
}
