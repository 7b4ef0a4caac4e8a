//! Which UDP flows the kernel must forget, so that their next packet is picked for anew.
//!
//! The rule of `pkg/proxy/conntrack/cleanup.go` of Kubernetes: a flow to a front of a Service that has an endpoint which
//! serves, answered by somebody who is none. It holds for flows older than the Service too: those were never
//! translated, and are answered by whoever has the front's address. A Service without endpoints keeps its flows: they
//! reach nobody, or the one that is just coming back.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use weave_linux::conntrack::flows::{Flow, To};
use weave_model::Protocol;

use crate::facts::Facts;
use crate::table::{Diff, Table};

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

/// The most places that the kernel is asked for one by one: it goes through all its flows for each.
const MOST: usize = 16;

/// Where the flows go that a difference can have made stale.
pub fn places(diff: &Diff) -> Vec<To> {
    let after = diff.pairs().filter_map(|(_, _, after)| after);
    let serving = after.filter(|entry| !entry.serving.is_empty());
    let fronts = serving.flat_map(|entry| entry.fronts.iter().map(|(front, _)| front));
    let udp = fronts.filter(|front| front.protocol == Protocol::Udp);
    let places: Vec<To> = udp
        .map(|front| {
            if front.is_node_port() {
                To::Port(front.address.is_ipv4(), front.port)
            } else {
                To::Place(SocketAddr::new(front.address, front.port))
            }
        })
        .collect();
    if places.len() > MOST {
        vec![To::Any]
    } else {
        places
    }
}
