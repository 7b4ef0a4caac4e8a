//! How the node is: the verdict first, then what it stands on.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use super::HostAddress;
use crate::{ContainerName, Drop, NodeId, NodeName, PathMtu, PathReason, Suite};

/// `GET /v1/status`: this node and its place in the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Status {
    /// Whether all is well.
    pub verdict: Verdict,
    /// The verdict in one line.
    pub summary: String,
    /// What is not well; empty when all is.
    pub problems: Vec<Problem>,
    /// The version of `weaved`.
    pub version: String,
    /// This node's name.
    pub name: NodeName,
    /// This node's id.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub id: NodeId,
    /// When this `weaved` started.
    pub started_at: u64,
    /// The UDP address it listens on.
    #[cfg_attr(feature = "openapi", schema(value_type = String, example = "0.0.0.0:6783"))]
    pub listen: SocketAddr,
    /// The suites it accepts, the preferred one first.
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<String>))]
    pub suites: Vec<Suite>,
    /// The MTU of its containers, in bytes.
    pub mtu: u32,
    /// How many containers are attached.
    pub containers: u32,
    /// Those of them whose namespace or interface is gone; they are freed when the interface is gone for two looks.
    pub gone: Vec<ContainerName>,
    /// How many were freed so since the start.
    #[serde(default)]
    pub swept: u64,
    /// The host's own addresses on the network, if it is exposed.
    pub host: Option<HostAddress>,
    /// The cluster; absent before `init` or `join`.
    pub cluster: Option<Cluster>,
    /// What crossed the overlay since the start.
    pub traffic: Traffic,
    /// In how many datagrams, and how many of them were moved at once.
    pub datagrams: Datagrams,
    /// Packets dropped since the start, by reason.
    #[cfg_attr(feature = "openapi", schema(value_type = BTreeMap<String, u64>))]
    pub drops: BTreeMap<Drop, u64>,
    /// How many records and sheets of members are left since the start because reading them failed.
    #[serde(default)]
    pub quarantined: u64,
    /// How many deeds members told of since the start that they did not prove.
    #[serde(default)]
    pub unproven: u64,
    /// How each facility of the kernel that can be done without stands.
    pub offloads: Offloads,
}

/// Facilities of the kernel that make the data path faster; without one it is slower and otherwise the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Offloads {
    /// One call sends many datagrams (`UDP_SEGMENT`).
    pub gso: Offload,
    /// The kernel joins received datagrams (`UDP_GRO`).
    pub gro: Offload,
    /// The TUN device gives and takes TCP super-packets.
    pub tso: Offload,
    /// The TUN device gives UDP super-packets; the kernel has it from 6.2.
    pub uso: Offload,
    /// It takes TCP super-packets over IPv4 of more than 65,535 bytes; the kernel has it from 6.3.
    pub big_tcp: Offload,
    /// A queue, a lane and a thread for each core, at most eight.
    pub multiqueue: Offload,
    /// How many queues, lanes and threads there are.
    pub queues: u32,
}

/// How one facility of the kernel stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Offload {
    /// It is used.
    Used,
    /// `weaved` was told to do without (`--without`).
    Without,
    /// The kernel, or a device that packets left by, does not have it.
    Refused,
}

/// Whether all is well.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Everything that should work does.
    Ok,
    /// Something does not; see the problems.
    Degraded,
}

/// Something that is not well.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Problem {
    /// What it is, in one line.
    pub cause: String,
    /// What to do about it, in one line.
    pub fix: String,
}

/// The cluster as this node sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Cluster {
    /// The IPv4 range.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub range: Ipv4Net,
    /// The IPv6 range.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub range6: Ipv6Net,
    /// How many members there are, this node included.
    pub members: u32,
    /// How many of them can be reached, this node included.
    pub connected: u32,
    /// The prefixes this node gives to its containers.
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<String>))]
    pub blocks: Vec<Ipv4Net>,
    /// How many addresses those hold.
    pub addresses: u32,
    /// How many of those are in use.
    pub addresses_used: u32,
}

/// Packets and bytes that crossed the overlay. Bytes are those of the containers' IP packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Traffic {
    /// Packets sent to other nodes; a super-packet counts once.
    pub sent_packets: u64,
    /// Bytes sent to other nodes.
    pub sent_bytes: u64,
    /// Packets received from other nodes.
    pub received_packets: u64,
    /// Bytes received from other nodes.
    pub received_bytes: u64,
}

/// Datagrams between nodes, and how many of them one step moved. Sent are those with packets of containers; received is
/// all that came to the node's port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Datagrams {
    /// Datagrams sent.
    pub sent: u64,
    /// System calls that sent them: fewer with `gso`.
    pub sent_calls: u64,
    /// Datagrams received.
    pub received: u64,
    /// What the kernel handed over as one: fewer than datagrams with `gro`.
    pub received_batches: u64,
    /// System calls that received them; one may bring several batches.
    pub received_calls: u64,
    /// Datagrams that went from one other member to another through this node, which cannot read them.
    #[serde(default)]
    pub handed_on: u64,
    /// Bytes of these.
    #[serde(default)]
    pub handed_on_bytes: u64,
}

/// `GET /v1/peers`: the members of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Peers {
    /// This node first, then the others by name.
    pub peers: Vec<Peer>,
    /// Nodes that count as members though nothing was heard of them yet: they were let in and did not come.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub awaited: Vec<Awaited>,
}

/// A node that was let in and has not come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Awaited {
    /// Its id; nobody knows its name.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub id: NodeId,
    /// Where it asked from; absent if another member let it in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub endpoint: Option<SocketAddr>,
}

/// A member of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Peer {
    /// Its name.
    pub name: NodeName,
    /// Its id.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub id: NodeId,
    /// Whether it can be reached.
    pub state: PeerState,
    /// Where it says it can be reached.
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<String>))]
    pub endpoints: Vec<SocketAddr>,
    /// The prefixes it gives to its containers.
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<String>))]
    pub blocks: Vec<Ipv4Net>,
}

/// How this node stands to a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum PeerState {
    /// It is this node.
    Myself,
    /// There is a session.
    Connected,
    /// There is none; it is tried again and again.
    Unreachable,
}

/// `GET /v1/connections`: the sessions of this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Connections {
    /// One entry for each other member, by name.
    pub connections: Vec<Connection>,
}

/// The session with another member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Connection {
    /// The member's name.
    pub name: NodeName,
    /// The member's id.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub id: NodeId,
    /// Whether there is a session.
    pub state: PeerState,
    /// The address packets go to; absent without a session, and where a relay stands between.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub endpoint: Option<SocketAddr>,
    /// The suite of the session.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub suite: Option<Suite>,
    /// When its keys were made; the next ones are made after two minutes.
    pub keys_at: Option<u64>,
    /// How many lanes packets are spread over.
    pub lanes: u32,
    /// The largest packet that crosses the path: the least of all lanes in use. Absent without a session.
    pub mtu: Option<PathMtu>,
    /// The same for each lane in use. Their packets may take different ways, so it may differ.
    pub lane_mtus: Vec<LaneMtu>,
    /// The way packets take; absent without a session.
    pub path: Option<ConnectionPath>,
    /// The last measured round-trip time, in microseconds.
    pub rtt_us: Option<u32>,
    /// Since when the member is in this state.
    pub since_at: Option<u64>,
    /// How often new keys took the place of keys in use, since the start.
    pub rekeys: u64,
    /// How often a handshake with it was begun again because nothing came of the one before, since the start.
    pub handshake_retries: u64,
    /// How often a handshake with it came to an end as it should, since the start: the first, and one for each rekey.
    #[serde(default)]
    pub handshakes: u64,
    /// What crossed it since the start.
    pub traffic: Traffic,
}

/// The way that packets for a member take.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ConnectionPath {
    /// The member that hands them on, though it cannot read them; absent where they go straight.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub via: Option<NodeName>,
    /// Of a thousand pings that were sent this way, how many were lost.
    pub loss_permille: Option<u16>,
    /// Since when they take this way.
    pub since_at: u64,
    /// Why they take it now.
    pub reason: PathReason,
}

/// What one lane's path carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct LaneMtu {
    /// The lane, from 0.
    pub lane: u8,
    /// The largest packet that crosses its path.
    pub mtu: PathMtu,
}
