//! What Services depend on besides themselves: who this node is, and which addresses are whose.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use weave_model::EngineChoice;

use crate::networks::Networks;

/// The node, as the table has to know it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// The node's name, as endpoints and their hints have it.
    pub node: String,
    /// The zone it is in, if there are zones.
    pub zone: Option<String>,
    /// The addresses at which it takes node ports: its primary ones, never loopback.
    pub addresses: BTreeSet<IpAddr>,
    /// Addresses that no endpoint may have. Those of the nodes, outside Kubernetes: there nobody checks who names one.
    pub no_endpoints: BTreeSet<IpAddr>,
    /// Where containers' addresses are from. What comes from there keeps its source.
    pub containers: Vec<IpNet>,
    /// The networks among these besides the default one. The rules need not know: what the kernel translates keeps its
    /// source until networks were held apart.
    pub networks: Networks,
    /// Where virtual addresses are from.
    pub ranges: Vec<IpNet>,
    /// What becomes of packets to virtual addresses that no Service has.
    pub unknown: Unknown,
    /// Whether Services may name addresses outside of these ranges.
    pub external_ips: ExternalIps,
    /// The node's own addresses among the containers', by which endpoints of other nodes answer it.
    pub own: Vec<IpAddr>,
    /// Which engine serves.
    pub engine: EngineChoice,
}

impl Facts {
    /// Whether rules that were made by these are right by `other` too. All else that is here is in the table of Services
    /// already: who may be an endpoint, which ones are near, and which engine serves.
    pub fn same_rules(&self, other: &Self) -> bool {
        self.addresses == other.addresses
            && self.containers == other.containers
            && self.ranges == other.ranges
            && self.unknown == other.unknown
            && self.own == other.own
    }
}

/// What becomes of packets to virtual addresses that no Service has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Unknown {
    /// They vanish, as Kubernetes has it.
    #[default]
    Dropped,
    /// Their sender is told at once.
    Refused,
}

/// Whether `externalIPs` of Services are believed. Whoever may write one takes over that address on every node
/// (CVE-2020-8554), so by default they are not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ExternalIps {
    /// They are left out, and said so.
    #[default]
    Refused,
    /// They are taken.
    Taken,
}
