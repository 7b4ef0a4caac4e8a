//! The node API: what `weavectl`, the plugins and the dashboard say to a node, as types.
//!
//! HTTP and JSON over the node's unix socket, everything under [`PREFIX`]. A request is a struct here, an answer is a
//! struct here, and a refusal is always a [`Refusal`] with a cause and a fix. The OpenAPI document is generated from
//! these types (feature `openapi`). Within version 1 fields are only added: readers ignore what they do not know.
//!
//! Times are whole seconds since the Unix epoch (`*_at`), durations carry their unit in the name.

mod attach;
mod cluster;
mod cni;
mod ipam;
mod members;
mod targets;
mod network;
mod refusal;
mod service;
mod status;
mod topology;
mod tools;
mod trace;

pub use attach::{AttachRequest, Attachment, Attachments, CniOwner, ExposeRequest, HostAddress};
pub use cluster::{InitRequest, JoinRequest, Membership, TokenAnswer, TokenRequest};
pub use cni::{
    CNI_JOURNAL, CniDns, CniFindings, CniGcRequest, CniInterface, CniIp, CniRef, CniResult,
    CniRoute,
};
pub use ipam::{Ipam, IpamFinding, IpamFindings, IpamNode};
pub use members::{
    AdminRequest, Admins, LeaveAnswer, LeaveRequest, NodeRef, RemovalAnswer, RemovalRequest,
    SecretRequest, SecretState, TokenEntry, TokenList, TokenState,
};
pub use network::{NetworkInfo, NetworkRequest, Networks};
pub use refusal::{Code, Refusal};
pub use service::{Backend, BackendState, RelayedBackend, ServiceInfo, ServiceRequest, Services};
pub use status::{
    Awaited, Cluster, Connection, ConnectionPath, Connections, Datagrams, LaneMtu, Offload,
    Offloads, Peer, PeerState, Peers, Problem, Status, Traffic, Verdict,
};
pub use targets::{Target, TargetRequest, Targets};
pub use tools::{PingRequest, Pong, TestCase, TestOutcome, TestReport, TestRequest};
pub use topology::{
    Capture, EndKind, Flow, FlowCounts, FlowEnd, Inside, ListeningPort, PageLogin, ProcessInfo,
    Protocol, Report, ReportContainer, ReportFlow, ReportLink, RuntimeInfo, TcpSeen, Topology,
    TopologyContainer, TopologyHost, TopologyLink, TopologyService,
};
pub use trace::{Hop, Trace, TraceEnd, TraceRequest};

/// Every path of the API begins with this.
pub const PREFIX: &str = "/v1";

/// Where `weaved` listens and `weavectl` calls when nothing else is said.
pub const DEFAULT_SOCKET: &str = "/run/weave/weaved.sock";

/// The seconds a join token is good for when nothing else is said.
pub const DEFAULT_TOKEN_TTL_S: u64 = 3600;

/// The IPv4 range a cluster gets when nothing else is said.
pub const DEFAULT_RANGE: &str = "10.32.0.0/12";

/// Where Services get their virtual addresses from when nothing else is said.
pub const DEFAULT_SERVICE_RANGE: &str = "10.96.0.0/16";
