//! Services without Kubernetes: what all members' sheets say together, as Services and slices.
//!
//! Pure, and the same on every node that has the same sheets. Of two Services of one name the one of the lower node id
//! counts, and of the other it is known who made it, so that whoever removes the name removes both. Likewise of two that
//! have one address: the other is known and shown, but has no address until its maker gives it another. Endpoints of a
//! member that cannot be reached are not ready.
//!
//! Where a Service asks for checks, an endpoint that is a container is checked by its own node, which alone can tell a
//! dead server from a cut link, and any other by the node that made the Service, or by the first member that can be
//! reached while that one cannot. What a member says counts for what it has to check only. An endpoint is ready once its
//! check passes. The last resort: if no endpoint of a Service passes, all that can be reached are ready, as if nobody had
//! asked: a check that is wrong, or one that has just begun, must not be what takes a Service down.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::{Ipv4Net, Ipv6Net};
use weave_model::{
    AddressKind, Affinity, ContainerName, DeclaredService, Endpoint, NodeId, NodeName, Protocol,
    RemovedService, Service, ServiceKind, ServiceName, ServicePort, Sheet, Slice, SlicePort,
};

use crate::facts::Facts;
use crate::health::{Subject, Wanted};
use crate::select::refusal;
use crate::sources::Change;
use crate::table::Family;

/// A member and what it tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Who it is.
    pub id: NodeId,
    /// Its label.
    pub name: NodeName,
    /// Whether its containers can be reached.
    pub reachable: bool,
    /// What it tells.
    pub sheet: Sheet,
}

/// Where virtual addresses come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VirtualRange {
    v4: Ipv4Net,
    v6: Option<Ipv6Net>,
}

impl VirtualRange {
    /// A range, and as large a block of IPv6 at the end of the containers' range, where that has room for it: an
    /// address of one has its counterpart at the same place of the other.
    pub fn new(v4: Ipv4Net, containers: Ipv6Net) -> Self {
        let bits = 32 - v4.prefix_len();
        // Containers have the first 2^24 addresses at most.
        let room = 128 - containers.prefix_len() > bits.max(24);
        let last = u128::from(containers.broadcast());
        let first = Ipv6Addr::from(last >> bits << bits);
        let v6 = room.then(|| Ipv6Net::new_assert(first, 128 - bits));
        Self { v4, v6 }
    }

    /// The IPv4 part.
    pub const fn v4(&self) -> Ipv4Net {
        self.v4
    }

    /// The IPv6 part.
    pub const fn v6(&self) -> Option<Ipv6Net> {
        self.v6
    }

    /// Both addresses at the place of an IPv4 address; none if it is outside.
    pub fn both(&self, address: Ipv4Addr) -> Vec<IpAddr> {
        if !self.v4.contains(&address) {
            return Vec::new();
        }
        let place = u32::from(address) - u32::from(self.v4.network());
        let v6 = self.v6.map(|net| {
            IpAddr::V6(Ipv6Addr::from(
                u128::from(net.network()) + u128::from(place),
            ))
        });
        std::iter::once(IpAddr::V4(address)).chain(v6).collect()
    }

    /// An address for a Service: the one that its name hashes to, or the next that is free. So it gets its old one back
    /// when it is made again, mostly.
    pub fn choose(&self, name: &ServiceName, used: &BTreeSet<Ipv4Addr>) -> Option<Ipv4Addr> {
        // Neither the first nor the last: what stands for the network and for all of it.
        let first = u32::from(self.v4.network()) + 1;
        let count = u32::from(self.v4.broadcast()).checked_sub(first)?;
        let start = (hash(name.as_str()) % u64::from(count.max(1))) as u32;
        let all = (0..count).map(|step| Ipv4Addr::from(first + (start + step) % count));
        all.into_iter().find(|address| !used.contains(address))
    }
}

/// FNV-1a, 64 bits (RFC 9923).
fn hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// A Service as all sheets together say it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Declared {
    /// As it was made.
    pub made: DeclaredService,
    /// The member that made it.
    pub maker: NodeId,
    /// Its virtual addresses; none if another Service has them.
    pub addresses: Vec<IpAddr>,
    /// Who is behind it, in order.
    pub backends: Vec<Backend>,
    /// Whether no endpoint passes its check, so that all that can be reached are used.
    pub last_resort: bool,
    /// Which members made one of the same name, and when: it serves in place of those.
    pub hidden: Vec<(NodeId, u64)>,
}

/// One behind a Service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Backend {
    /// Its address.
    pub address: IpAddr,
    /// The port that it has of its own, if it was given by address; else the Service's ports say.
    pub port: Option<u16>,
    /// The member it is on.
    pub node: Option<NodeId>,
    /// The container it is.
    pub container: Option<ContainerName>,
    /// Whether its node can be reached.
    pub reachable: bool,
    /// How it is checked, if that was asked for.
    pub check: Option<Check>,
}

/// The check of an endpoint.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Check {
    /// Where.
    pub at: SocketAddr,
    /// The member that does it.
    pub by: NodeId,
    /// What that one found; nothing yet when absent. The error is why it fails.
    pub found: Option<Result<(), String>>,
}

impl Backend {
    /// Whether nothing is known that speaks against it.
    pub fn passes(&self) -> bool {
        let found = self.check.as_ref().map(|check| &check.found);
        self.reachable && found.is_none_or(|found| *found == Some(Ok(())))
    }

    /// Where it listens for a port whose endpoints have this one.
    pub fn at(&self, target: u16) -> SocketAddr {
        SocketAddr::new(self.address, self.port.unwrap_or(target))
    }
}

/// The Services of all sheets, by name.
pub fn resolve(members: &[Member], range: &VirtualRange) -> BTreeMap<ServiceName, Declared> {
    let gone: BTreeSet<&RemovedService> = members
        .iter()
        .flat_map(|member| &member.sheet.removed)
        .collect();
    let mut by_id: Vec<&Member> = members.iter().collect();
    by_id.sort_by_key(|member| member.id);
    let findings = findings(members);
    let mut taken = BTreeSet::new();
    let mut found: BTreeMap<ServiceName, Declared> = BTreeMap::new();
    for member in by_id {
        // Of several that one member makes of one name, which takes a strange member, the first counts.
        let mut names = BTreeSet::new();
        for made in &member.sheet.services {
            let removal = RemovedService {
                name: made.name.clone(),
                maker: member.id,
                stamp: made.stamp,
            };
            let counts = made.spec.check().is_ok() && !gone.contains(&removal);
            if !counts || !names.insert(&made.name) {
                continue;
            }
            if let Some(winner) = found.get_mut(&made.name) {
                winner.hidden.push((member.id, made.stamp));
                continue;
            }
            let mine = taken.insert(made.address);
            let mut backends = backends(made, members);
            note_checks(made, member, members, &findings, &mut backends);
            let declared = Declared {
                made: made.clone(),
                maker: member.id,
                addresses: if mine {
                    range.both(made.address)
                } else {
                    Vec::new()
                },
                last_resort: made.spec.health.is_some() && !backends.iter().any(Backend::passes),
                backends,
                hidden: Vec::new(),
            };
            found.insert(made.name.clone(), declared);
        }
    }
    found
}

fn backends(made: &DeclaredService, members: &[Member]) -> Vec<Backend> {
    let containers = members.iter().flat_map(|member| {
        let all = member.sheet.containers.iter();
        all.map(move |container| (member, container))
    });
    let mut found: Vec<Backend> = if made.spec.endpoints.is_empty() {
        let selected = containers.filter(|(_, container)| made.spec.selects(container));
        let all = selected.flat_map(|(member, container)| {
            container.ips.iter().map(move |address| Backend {
                address: *address,
                port: None,
                node: Some(member.id),
                container: Some(container.name.clone()),
                reachable: member.reachable,
                check: None,
            })
        });
        all.collect()
    } else {
        let by_address: BTreeMap<IpAddr, _> = containers
            .flat_map(|(member, container)| {
                container
                    .ips
                    .iter()
                    .map(move |ip| (*ip, (member, container)))
            })
            .collect();
        let given = made.spec.endpoints.iter().map(|endpoint| {
            let whose = by_address.get(&endpoint.ip());
            Backend {
                address: endpoint.ip(),
                port: Some(endpoint.port()),
                node: whose.map(|(member, _)| member.id),
                container: whose.map(|(_, container)| container.name.clone()),
                reachable: whose.is_none_or(|(member, _)| member.reachable),
                check: None,
            }
        });
        given.collect()
    };
    found.sort();
    found.dedup();
    found
}

/// What members say of their checks: by whom, for which Service and where.
type Findings<'a> = BTreeMap<(NodeId, &'a ServiceName, u64, SocketAddr), Result<(), &'a str>>;

fn findings(members: &[Member]) -> Findings<'_> {
    let mut all = Findings::new();
    for member in members {
        for one in &member.sheet.health {
            let key = |at: SocketAddr| (member.id, &one.name, one.stamp, at);
            all.extend(one.passed.iter().map(|at| (key(*at), Ok(()))));
            let failed = one.failed.iter();
            all.extend(failed.map(|failed| (key(failed.at), Err(&*failed.why))));
        }
    }
    all
}

/// Says of each endpoint who checks it and what that one found, if checks are asked for.
fn note_checks(
    made: &DeclaredService,
    maker: &Member,
    members: &[Member],
    findings: &Findings<'_>,
    backends: &mut [Backend],
) {
    let reachable = || members.iter().filter(|member| member.reachable);
    let first = || reachable().map(|member| member.id).min();
    let standing_in = if maker.reachable { None } else { first() };
    for backend in backends {
        let Some(port) = made.spec.checked_port(backend.port) else {
            continue;
        };
        let at = SocketAddr::new(backend.address, port);
        let by = backend.node.or(standing_in).unwrap_or(maker.id);
        let found = findings.get(&(by, &made.name, made.stamp, at));
        backend.check = Some(Check {
            at,
            by,
            found: found.map(|found| found.map_err(bounded)),
        });
    }
}

/// A member may say what it likes; people have to read it.
fn bounded(why: &str) -> String {
    let plain = why.chars().filter(|letter| !letter.is_control());
    plain.take(200).collect()
}

/// What a member has to check. Not what the table refuses: a Service that another member made must not have this one look
/// at its own loopback, nor at what listens on a node.
pub fn wanted(me: NodeId, declared: &BTreeMap<ServiceName, Declared>, facts: &Facts) -> Wanted {
    let mut all = Wanted::new();
    for (name, one) in declared {
        let Some(how) = &one.made.spec.health else {
            continue;
        };
        let checks = one
            .backends
            .iter()
            .filter_map(|backend| backend.check.as_ref());
        let refused = |at: SocketAddr| refusal(at, Family::of(at.ip()), facts).is_some();
        for check in checks.filter(|check| check.by == me && !refused(check.at)) {
            let subject = Subject {
                service: name.clone(),
                stamp: one.made.stamp,
                at: check.at,
            };
            all.insert(subject, how.clone());
        }
    }
    all
}

/// The Services of a member that have no address: another Service won theirs, or it is outside of the range.
pub fn without_address(
    maker: NodeId,
    declared: &BTreeMap<ServiceName, Declared>,
) -> impl Iterator<Item = &ServiceName> {
    let lost = declared
        .iter()
        .filter(move |(_, one)| one.maker == maker && one.addresses.is_empty());
    lost.map(|(name, _)| name)
}

impl Declared {
    /// The Service for the table.
    fn service(&self) -> Service {
        let spec = &self.made.spec;
        let ports: Vec<ServicePort> = spec
            .ports
            .iter()
            .map(|port| ServicePort {
                name: port_name(port.port, port.protocol),
                protocol: port.protocol,
                port: port.port,
                node_port: port.node_port,
            })
            .collect();
        let node_port = ports.iter().any(|port| port.node_port.is_some());
        Service {
            kind: if node_port {
                ServiceKind::NodePort
            } else {
                ServiceKind::ClusterIp
            },
            affinity: spec
                .affinity_s
                .map_or(Affinity::None, |seconds| Affinity::ClientIp { seconds }),
            engine: spec.engine,
            balance: spec.balance,
            ..Service::new(
                self.made.name.clone(),
                self.addresses.iter().copied(),
                ports,
            )
        }
    }

    /// Its endpoints: a slice for each family and each port of endpoints that have one of their own.
    fn slices(&self) -> BTreeMap<String, Slice> {
        let mut slices: BTreeMap<String, Slice> = BTreeMap::new();
        for backend in &self.backends {
            let (kind, digit) = match backend.address {
                IpAddr::V4(_) => (AddressKind::V4, 4),
                IpAddr::V6(_) => (AddressKind::V6, 6),
            };
            let own = backend
                .port
                .map_or(String::new(), |port| format!("-{port}"));
            let name = format!("ip{digit}{own}");
            let slice = slices.entry(name.clone()).or_insert_with(|| Slice {
                name,
                service: self.made.name.clone(),
                kind,
                ports: self.slice_ports(backend.port),
                endpoints: Vec::new(),
            });
            let node = backend.node.map(|node| node.to_string());
            let used = backend.passes() || self.last_resort && backend.reachable;
            slice.endpoints.push(Endpoint {
                ready: used,
                serving: used,
                ..Endpoint::ready(backend.address, node)
            });
        }
        slices
    }

    fn slice_ports(&self, own: Option<u16>) -> Vec<SlicePort> {
        let ports = self.made.spec.ports.iter();
        let slice_port = |port: &weave_model::DeclaredPort| SlicePort {
            name: port_name(port.port, port.protocol),
            protocol: port.protocol,
            port: Some(own.unwrap_or(port.target)),
        };
        ports.map(slice_port).collect()
    }
}

fn port_name(port: u16, protocol: Protocol) -> String {
    format!("{port}-{protocol}")
}

/// What was reported last, so that only what is other is reported.
#[derive(Debug, Default)]
pub struct Reported(BTreeMap<ServiceName, (Service, BTreeMap<String, Slice>)>);

impl Reported {
    /// The reports that lead from the last Services to these.
    pub fn changes(&mut self, declared: &BTreeMap<ServiceName, Declared>) -> Vec<Change> {
        let next: BTreeMap<_, _> = declared
            .iter()
            .map(|(name, one)| (name.clone(), (one.service(), one.slices())))
            .collect();
        let mut changes = Vec::new();
        for (name, (_, slices)) in &self.0 {
            let left = next.get(name).map(|(_, slices)| slices);
            for slice in slices.keys() {
                if left.is_none_or(|left| !left.contains_key(slice)) {
                    changes.push(Change::NoSlice(name.clone(), slice.clone()));
                }
            }
            if left.is_none() {
                changes.push(Change::NoService(name.clone()));
            }
        }
        for (name, (service, slices)) in &next {
            let before = self.0.get(name);
            if before.is_none_or(|(before, _)| before != service) {
                changes.push(Change::Service(service.clone()));
            }
            for (key, slice) in slices {
                let same = before.and_then(|(_, before)| before.get(key)) == Some(slice);
                if !same {
                    changes.push(Change::Slice(slice.clone()));
                }
            }
        }
        self.0 = next;
        changes
    }
}
