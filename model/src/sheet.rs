//! What nodes tell each other of their containers, and of the Services and networks that were made on them, without
//! Kubernetes.
//!
//! Each node is the only writer of its sheet. The Services of the cluster are those of all sheets together, and every
//! node reads the same out of the same sheets. What one node made another may remove: it says so in its own sheet, and
//! keeps saying so until the maker has struck the Service out.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::engine::{Balance, Engine};
use crate::floating::Floating;
use crate::health::{CheckedService, HealthCheck, MAX_CHECK_SECONDS, MAX_PATH};
use crate::network::{DeclaredNetwork, RemovedNetwork};
use crate::service::{Affinity, Protocol, ServiceName};
use crate::{ContainerName, LabelKey, LabelValue, NodeId};

/// The most ports of a Service.
pub const MAX_PORTS: usize = 32;
/// The most endpoints, or containers, that a Service may name.
pub const MAX_ENDPOINTS: usize = 1000;
/// The most labels that a selector may ask for.
pub const MAX_SELECTOR: usize = 16;

/// What one node tells.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sheet {
    /// The Services that were made on it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub services: Vec<DeclaredService>,
    /// Services of other nodes that were removed on it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub removed: Vec<RemovedService>,
    /// Its containers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub containers: Vec<SheetContainer>,
    /// What its checks of endpoints found.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub health: Vec<CheckedService>,
    /// The networks that were made on it or have containers here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub networks: Vec<DeclaredNetwork>,
    /// Networks that were removed on it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub removed_networks: Vec<RemovedNetwork>,
    /// The addresses that the host itself has among the containers', at most two. The IPv6 address of each lies at the same
    /// place of the range of those.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub own: Vec<Ipv4Addr>,
}

/// A Service as it was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeclaredService {
    /// Its name; the cluster has one Service of each name.
    pub name: ServiceName,
    /// When it was made, in milliseconds since the Unix epoch; with its maker it tells it from a later one of its name.
    pub stamp: u64,
    /// Its virtual address. Its IPv6 address lies at the same place of the range of those.
    pub address: Ipv4Addr,
    /// What was asked for.
    #[serde(flatten)]
    pub spec: ServiceSpec,
}

/// What a Service is to be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ServiceSpec {
    /// Its ports, at least one.
    pub ports: Vec<DeclaredPort>,
    /// The labels of the containers behind it, all of which they must have; none where something is named.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub selector: BTreeMap<LabelKey, LabelValue>,
    /// The names of the containers behind it, on whichever nodes, where there is no selector.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub containers: BTreeSet<ContainerName>,
    /// Endpoints by address and port, where there is neither.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<String>, example = json!(["10.32.0.2:8080"])))]
    pub endpoints: Vec<SocketAddr>,
    /// For how many seconds a client stays with its endpoint, 1 to 86,400; not at all when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub affinity_s: Option<u32>,
    /// The engine it asks for; the node's choice when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine: Option<Engine>,
    /// How the relay is to choose among the endpoints; asks for the relay too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub balance: Option<Balance>,
    /// How its endpoints are checked; not at all when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<HealthCheck>,
}

/// A port of a Service as it was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct DeclaredPort {
    /// The port of the virtual address.
    pub port: u16,
    /// The port of the endpoints; those that are given have their own.
    pub target: u16,
    /// The protocol.
    #[serde(default)]
    pub protocol: Protocol,
    /// The port of every node's own addresses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_port: Option<u16>,
}

/// "This Service is removed."
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RemovedService {
    /// Its name.
    pub name: ServiceName,
    /// The node that made it.
    pub maker: NodeId,
    /// When that was.
    pub stamp: u64,
}

/// A container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SheetContainer {
    /// Its name on its node.
    pub name: ContainerName,
    /// Its addresses.
    pub ips: Vec<IpAddr>,
    /// The floating addresses that it claims.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub floating: Vec<Floating>,
    /// Its labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<LabelKey, LabelValue>,
}

/// Why a Service cannot be as it was asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadService {
    /// It has none, or too many.
    #[error("a service has 1 to {MAX_PORTS} ports")]
    Ports,
    /// Port 0, of the Service, its endpoints or the nodes.
    #[error("0 is no port")]
    PortZero,
    /// The same twice.
    #[error("the port {0}/{1} is given twice")]
    PortTwice(u16, Protocol),
    /// None of them, or more than one.
    #[error("a service has a selector, names of containers, or endpoints")]
    Behind,
    /// Endpoints have ports of their own.
    #[error("a service whose endpoints are given has one port")]
    OnePort,
    /// Too many of something.
    #[error(
        "a service has at most {MAX_ENDPOINTS} endpoints or names of containers, and {MAX_SELECTOR} labels in its \
         selector"
    )]
    TooMany,
    /// Too short or too long.
    #[error("affinity lasts 1 to {} seconds", Affinity::MAX_SECONDS)]
    Affinity,
    /// A path, a time or a count that cannot be.
    #[error(
        "a health check has a path of at most {MAX_PATH} letters without spaces and commas that begins with /, an interval \
         of 1 to {MAX_CHECK_SECONDS} seconds, a timeout of at most that, and counts of at least 1"
    )]
    Health,
    /// Nothing of it can be connected to.
    #[error(
        "a service without a port of TCP is checked at another port: give the health check one"
    )]
    HealthPort,
}

impl ServiceSpec {
    /// Checks what types cannot; for what comes from people and from other nodes alike.
    ///
    /// # Errors
    /// The first rule that is broken.
    pub fn check(&self) -> Result<(), BadService> {
        if self.ports.is_empty() || self.ports.len() > MAX_PORTS {
            return Err(BadService::Ports);
        }
        let mut seen = BTreeSet::new();
        for port in &self.ports {
            if port.port == 0 || port.target == 0 || port.node_port == Some(0) {
                return Err(BadService::PortZero);
            }
            if !seen.insert((port.port, port.protocol)) {
                return Err(BadService::PortTwice(port.port, port.protocol));
            }
        }
        let behind = [
            self.selector.is_empty(),
            self.containers.is_empty(),
            self.endpoints.is_empty(),
        ];
        if behind.iter().filter(|is_empty| !**is_empty).count() != 1 {
            return Err(BadService::Behind);
        }
        if !self.endpoints.is_empty() && self.ports.len() > 1 {
            return Err(BadService::OnePort);
        }
        let named = self.endpoints.len().max(self.containers.len());
        if named > MAX_ENDPOINTS || self.selector.len() > MAX_SELECTOR {
            return Err(BadService::TooMany);
        }
        if self.endpoints.iter().any(|endpoint| endpoint.port() == 0) {
            return Err(BadService::PortZero);
        }
        match self.affinity_s {
            Some(seconds) if !(1..=Affinity::MAX_SECONDS).contains(&seconds) => {
                Err(BadService::Affinity)
            }
            _ => self.check_health(),
        }
    }

    fn check_health(&self) -> Result<(), BadService> {
        match &self.health {
            Some(check) if !check.is_right() => Err(BadService::Health),
            Some(check) if check.port.is_none() && self.first_tcp().is_none() => {
                Err(BadService::HealthPort)
            }
            _ => Ok(()),
        }
    }

    fn first_tcp(&self) -> Option<&DeclaredPort> {
        let mut ports = self.ports.iter();
        ports.find(|port| port.protocol == Protocol::Tcp)
    }

    /// At which port an endpoint is checked, which may have a port of its own; not at all if nothing is asked for.
    pub fn checked_port(&self, own: Option<u16>) -> Option<u16> {
        let check = self.health.as_ref()?;
        let first = || own.or_else(|| self.first_tcp().map(|port| port.target));
        check.port.or_else(first)
    }

    /// Whether a container is behind it.
    pub fn selects(&self, container: &SheetContainer) -> bool {
        let labels = &container.labels;
        let has = |(key, value): (&LabelKey, &LabelValue)| labels.get(key) == Some(value);
        let by_labels = !self.selector.is_empty() && self.selector.iter().all(has);
        by_labels || self.containers.contains(&container.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> ServiceSpec {
        ServiceSpec {
            ports: vec![DeclaredPort {
                port: 80,
                target: 8080,
                protocol: Protocol::Tcp,
                node_port: None,
            }],
            selector: [("app".parse().unwrap(), "web".parse().unwrap())].into(),
            ..ServiceSpec::default()
        }
    }

    fn containers(count: usize) -> BTreeSet<ContainerName> {
        let names = (0..count).map(|n| format!("web{n}").parse().unwrap());
        names.collect()
    }

    #[test]
    #[allow(clippy::too_many_lines, reason = "one line for each rule")]
    fn each_rule_is_checked() {
        let port = spec().ports[0];
        let ports = |ports: &[DeclaredPort]| ServiceSpec {
            ports: ports.to_vec(),
            ..spec()
        };
        let endpoint: SocketAddr = "10.32.0.2:80".parse().unwrap();
        let zero = DeclaredPort { target: 0, ..port };
        let other = DeclaredPort { port: 81, ..port };
        let named = ServiceSpec {
            selector: BTreeMap::new(),
            endpoints: vec![endpoint],
            ..spec()
        };
        let by_name = ServiceSpec {
            selector: BTreeMap::new(),
            containers: containers(MAX_ENDPOINTS),
            ..spec()
        };
        for right in [spec(), named.clone(), by_name.clone()] {
            assert_eq!(right.check(), Ok(()));
        }
        let wrong = [
            (ports(&[]), BadService::Ports),
            (ports(&[port; MAX_PORTS + 1]), BadService::Ports),
            (ports(&[zero]), BadService::PortZero),
            (
                ports(&[port, port]),
                BadService::PortTwice(80, Protocol::Tcp),
            ),
            (
                ServiceSpec {
                    endpoints: vec![endpoint],
                    ..spec()
                },
                BadService::Behind,
            ),
            (
                ServiceSpec {
                    selector: BTreeMap::new(),
                    ..spec()
                },
                BadService::Behind,
            ),
            (
                ServiceSpec {
                    containers: containers(1),
                    ..spec()
                },
                BadService::Behind,
            ),
            (
                ServiceSpec {
                    containers: containers(MAX_ENDPOINTS + 1),
                    ..by_name
                },
                BadService::TooMany,
            ),
            (
                ServiceSpec {
                    ports: vec![port, other],
                    ..named.clone()
                },
                BadService::OnePort,
            ),
            (
                ServiceSpec {
                    endpoints: vec![endpoint; MAX_ENDPOINTS + 1],
                    ..named
                },
                BadService::TooMany,
            ),
            (
                ServiceSpec {
                    affinity_s: Some(0),
                    ..spec()
                },
                BadService::Affinity,
            ),
            (
                ServiceSpec {
                    health: Some(HealthCheck {
                        timeout_s: 0,
                        ..HealthCheck::default()
                    }),
                    ..spec()
                },
                BadService::Health,
            ),
            (
                ServiceSpec {
                    health: Some(HealthCheck::default()),
                    ..ports(&[DeclaredPort {
                        protocol: Protocol::Udp,
                        ..port
                    }])
                },
                BadService::HealthPort,
            ),
        ];
        for (spec, why) in wrong {
            assert_eq!(spec.check(), Err(why));
        }
    }

    #[test]
    fn a_selector_asks_for_all_of_its_labels_and_a_name_for_no_label() {
        let labels = |pairs: &[(&str, &str)]| {
            let parse =
                |(key, value): &(&str, &str)| (key.parse().unwrap(), value.parse().unwrap());
            pairs
                .iter()
                .map(parse)
                .collect::<BTreeMap<LabelKey, LabelValue>>()
        };
        let container = |pairs: &[(&str, &str)]| SheetContainer {
            name: "web1".parse().unwrap(),
            ips: Vec::new(),
            floating: Vec::new(),
            labels: labels(pairs),
        };
        assert!(spec().selects(&container(&[("app", "web"), ("tier", "front")])));
        assert!(!spec().selects(&container(&[("app", "db")])));
        assert!(!spec().selects(&container(&[])));
        let both = ServiceSpec {
            selector: labels(&[("app", "web"), ("tier", "front")]),
            ..spec()
        };
        assert!(!both.selects(&container(&[("app", "web")])));
        assert!(!ServiceSpec::default().selects(&container(&[("app", "web")])));
        // By name, whatever the labels.
        let named = |count| ServiceSpec {
            selector: BTreeMap::new(),
            containers: containers(count),
            ..spec()
        };
        assert!(named(2).selects(&container(&[])));
        assert!(!named(1).selects(&container(&[("app", "web")])));
    }

    #[test]
    fn a_sheet_reads_what_was_written_and_skips_what_it_does_not_know() {
        let sheet = Sheet {
            services: vec![DeclaredService {
                name: "web".parse().unwrap(),
                stamp: 7,
                address: Ipv4Addr::new(10, 96, 0, 1),
                spec: spec(),
            }],
            ..Sheet::default()
        };
        let text = serde_json::to_string(&sheet).unwrap();
        assert_eq!(serde_json::from_str::<Sheet>(&text).unwrap(), sheet);
        let later = text.replacen('{', r#"{"later":1,"#, 1);
        assert_eq!(serde_json::from_str::<Sheet>(&later).unwrap(), sheet);
    }
}
