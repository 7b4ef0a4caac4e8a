//! The words every part of Weave shares. No I/O: values, their text and JSON forms, and the rules they obey.

pub mod api;
pub mod docker;

mod address_range;
mod annotation;
mod bandwidth;
mod drops;
mod durations;
mod engine;
mod floating;
mod health;
mod id;
mod mac;
mod mtu;
mod name;
mod nets;
mod network;
mod publish;
mod range;
mod relayed;
mod service;
mod sheet;
mod suite;
mod token;
mod way;

pub use address_range::{AddressRange, BadAddressRange};
pub use annotation::{Annotated, BadAnnotation};
pub use bandwidth::{Bandwidth, Rate};
pub use drops::Drop;
pub use durations::{BOUNDS, Durations};
pub use engine::{BadWord, Balance, Engine, EngineChoice};
pub use floating::{Floating, MAX_FLOATING};
pub use health::{
    BadHealthCheck, CheckedService, FailedCheck, HealthCheck, MAX_CHECK_SECONDS, MAX_PATH,
};
pub use id::{BadNodeId, NodeId};
pub use mac::{BadMac, Mac};
pub use mtu::{MtuReason, PathMtu};
pub use name::{
    BadName, CniName, ContainerName, IfName, Label, LabelKey, LabelValue, NetworkName, NodeName,
};
pub use nets::{BadNet, Net, optional_net, parse_net};
pub use network::{DeclaredNetwork, LONGEST_PREFIX, MAX_NETWORKS, NetworkSpec, RemovedNetwork};
pub use publish::{BadPublishedPort, PublishedPort};
pub use range::{BadRange, Block, ClusterRange};
pub use relayed::{RELAY_MARK, Relayed};
pub use service::{
    AddressKind, Affinity, BadProtocol, BalancerIp, BalancerMode, Endpoint, Protocol, Service,
    ServiceKind, ServiceName, ServicePort, Slice, SlicePort, TrafficPolicy,
};
pub use sheet::{
    BadService, DeclaredPort, DeclaredService, MAX_ENDPOINTS, MAX_PORTS, MAX_SELECTOR,
    RemovedService, ServiceSpec, Sheet, SheetContainer,
};
pub use suite::Suite;
pub use token::{BadToken, MAX_TOKEN_ADDRESSES, Token, TokenId};
pub use way::PathReason;
