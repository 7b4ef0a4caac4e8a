//! Which UDP flows the kernel must forget, so that their next packet is picked for anew.
//!
//! The rule of `pkg/proxy/conntrack/cleanup.go` of Kubernetes: a flow to a front of a Service that has an endpoint which
//! serves, answered by somebody who is none. It holds for flows older than the Service too: those were never
//! translated, and are answered by whoever has the front's address. A Service without endpoints keeps its flows: they
//! reach nobody, or the one that is just coming back.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use weave_linux::conntrack::flows::Flow;
use weave_model::Protocol;

use crate::facts::Facts;
use crate::table::{Diff, Entry, Table};

/// Who may answer at which front.
#[derive(Debug, Default)]
pub struct Answers<'a> {
    by_address: BTreeMap<SocketAddr, &'a BTreeSet<IpAddr>>,
    by_port: BTreeMap<(bool, u16), &'a BTreeSet<IpAddr>>,
    nodes: BTreeSet<IpAddr>,
}

impl<'a> Answers<'a> {
    /// All UDP fronts of a table.
    pub fn of(table: &'a Table, facts: &Facts) -> Self {
        let mut answers = Self {
            nodes: facts.addresses.clone(),
            ..Self::default()
        };
        let entries = table.entries.values();
        for entry in entries.filter(|entry| !entry.serving.is_empty()) {
            for (front, _) in &entry.fronts {
                if front.protocol != Protocol::Udp {
                    continue;
                }
                if front.is_node_port() {
                    let place = (front.address.is_ipv4(), front.port);
                    answers.by_port.insert(place, &entry.serving);
                } else {
                    let place = SocketAddr::new(front.address, front.port);
                    answers.by_address.insert(place, &entry.serving);
                }
            }
        }
        answers
    }

    /// Whether a flow is to be forgotten.
    pub fn is_stale(&self, flow: &Flow) -> bool {
        let to = flow.destination;
        let node_port = || {
            let place = (to.is_ipv4(), to.port());
            let may = self.by_port.get(&place);
            may.filter(|_| self.nodes.contains(&to.ip()))
        };
        let may = self.by_address.get(&to).or_else(node_port);
        may.is_some_and(|may| !may.contains(&flow.answers.ip()))
    }
}

/// Whether a difference can have made flows stale.
pub fn concerns_udp(diff: &Diff) -> bool {
    let udp = |entry: &Entry| {
        entry
            .fronts
            .iter()
            .any(|(front, _)| front.protocol == Protocol::Udp)
    };
    diff.pairs()
        .any(|(_, _, after)| after.is_some_and(|entry| udp(entry)))
}
