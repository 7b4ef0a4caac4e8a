//! The contract's words, as code that is slow and plain: no maps, no sharing, one packet and one question at a time.
//!
//! What is in quotes is the contract's (the fields of Kubernetes' Service, and `pkg/proxy/topology.go`).

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use weave_model::{
    AddressKind, BalancerMode, Endpoint, Protocol, Service, ServiceKind, ServicePort, Slice,
    TrafficPolicy,
};
use weave_proxy::facts::{ExternalIps, Facts};
use weave_proxy::table::{Origin, Way};

/// The first packet of a connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Packet {
    pub(crate) origin: Origin,
    pub(crate) source: IpAddr,
    pub(crate) to: SocketAddr,
    pub(crate) protocol: Protocol,
}

/// What becomes of it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It is for no port of a Service.
    NotOurs,
    /// It goes to one of these, which see the node's address instead of the client's or do not.
    Pick {
        of: Vec<SocketAddr>,
        masqueraded: bool,
    },
    Drop,
    Reject,
}

/// Nothing behind such an address can be another machine's (RFC 6890, RFC 4291).
const SPECIAL: [&str; 10] = [
    "0.0.0.0/8",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "224.0.0.0/4",
    "255.255.255.255/32",
    "::/128",
    "::1/128",
    "::ffff:0.0.0.0/96",
    "fe80::/10",
    "ff00::/8",
];

fn is_special(address: IpAddr) -> bool {
    SPECIAL.iter().any(|net| {
        let net: IpNet = net.parse().unwrap();
        net.contains(&address)
    })
}

fn in_ranges(address: IpAddr, facts: &Facts) -> bool {
    facts.ranges.iter().any(|range| range.contains(&address))
}

/// The port of the Service that the packet is for, and by which of its addresses.
fn front<'a>(
    service: &'a Service,
    packet: &Packet,
    facts: &Facts,
) -> Option<(&'a ServicePort, Way)> {
    // "ExternalName: ignored"; "headless: no proxying at all"; the label of another proxy: "the default proxy ignores
    // the Service".
    let ignored = matches!(service.kind, ServiceKind::ExternalName(_))
        || service.headless
        || service.other_proxy
        || service.addresses.is_empty();
    if ignored {
        return None;
    }
    let address = packet.to.ip();
    // "one proxier per family": of a family that the Service has no address of, nothing is its.
    let mut has_family = false;
    for own in &service.addresses {
        has_family |= own.is_ipv4() == address.is_ipv4();
    }
    if !has_family {
        return None;
    }
    for port in &service.ports {
        if port.protocol != packet.protocol {
            continue;
        }
        if port.port == packet.to.port() {
            if service.addresses.contains(&address) {
                return Some((port, Way::Internal));
            }
            // Addresses that are nobody's to give, or that are the cluster's to give, are not taken from a Service.
            let usable = !is_special(address) && !in_ranges(address, facts);
            // "externalIPs: the node accepts traffic for those" where that is allowed; by default it is not.
            let allowed = facts.external_ips == ExternalIps::Taken;
            if usable && allowed && service.external_ips.contains(&address) {
                return Some((port, Way::External));
            }
            // "LB IPs short-circuited when ipMode = VIP; ipMode: Proxy must NOT be short-circuited."
            for balancer in &service.balancer {
                if usable && balancer.ip == address && balancer.mode == BalancerMode::Vip {
                    return Some((port, Way::Balancer));
                }
            }
        }
        // "NodePort: port on node addresses."
        if port.node_port == Some(packet.to.port()) && facts.addresses.contains(&address) {
            return Some((port, Way::NodePort));
        }
    }
    None
}

/// "Input: endpoints with (ready, serving, terminating, local, node hints, zone hints); dedupe by ip:port across
/// slices, local wins." "FQDN ignored; wrong-family addresses ignored." "named ports: slices may carry different numbers
/// per slice."
fn input(
    port: &ServicePort,
    is_v4: bool,
    slices: &[Slice],
    facts: &Facts,
) -> Vec<(SocketAddr, bool, Endpoint)> {
    let mut found: Vec<(SocketAddr, bool, Endpoint)> = Vec::new();
    let mut slices: Vec<&Slice> = slices.iter().collect();
    slices.sort_by(|a, b| a.name.cmp(&b.name));
    let wanted = if is_v4 {
        AddressKind::V4
    } else {
        AddressKind::V6
    };
    for slice in slices {
        if slice.kind != wanted {
            continue;
        }
        for slice_port in &slice.ports {
            if slice_port.name != port.name || slice_port.protocol != port.protocol {
                continue;
            }
            let Some(number) = slice_port.port else {
                continue;
            };
            for endpoint in &slice.endpoints {
                let local = endpoint.node == Some(facts.node.clone());
                let at = SocketAddr::new(endpoint.address, number);
                let odd = at.is_ipv4() != is_v4
                    || is_special(at.ip())
                    || in_ranges(at.ip(), facts)
                    || facts.no_endpoints.contains(&at.ip());
                if odd {
                    continue;
                }
                let same = found.iter().position(|(known, _, _)| *known == at);
                match same {
                    None => found.push((at, local, endpoint.clone())),
                    Some(place) if local => found[place] = (at, local, endpoint.clone()),
                    Some(_) => {}
                }
            }
        }
    }
    found.sort_by_key(|(at, _, _)| *at);
    found
}

/// Who sees the node's address: "pod to ClusterIP keeps the pod's; off-cluster to ClusterIP masqueraded".
/// "externalTrafficPolicy Cluster: masquerade; Local: keep client IP"; a pod's too, but not the node's own.
fn masqueraded(service: &Service, way: Way, origin: Origin) -> bool {
    if way == Way::Internal {
        return origin != Origin::Container;
    }
    if service.external == TrafficPolicy::Cluster {
        return true;
    }
    origin == Origin::Host
}

/// What becomes of a packet.
#[allow(
    clippy::too_many_lines,
    reason = "read beside the contract, in its order"
)]
pub(crate) fn outcome(
    service: &Service,
    slices: &[Slice],
    facts: &Facts,
    packet: &Packet,
) -> Outcome {
    let Some((port, way)) = front(service, packet, facts) else {
        return Outcome::NotOurs;
    };
    let (origin, source) = (packet.origin, packet.source);
    let all = input(port, packet.to.is_ipv4(), slices, facts);
    let serving_terminating = |e: &Endpoint| e.serving && e.terminating;

    // "topology mode: PreferSameNode if every ready endpoint has node hints and at least one names this node; else
    // PreferSameZone if every ready endpoint has zone hints and at least one names this zone; else none."
    let ready: Vec<_> = all.iter().filter(|(_, _, e)| e.ready).collect();
    let zone = facts.zone.clone().unwrap_or_default();
    let same_node = ready.iter().all(|(_, _, e)| !e.for_nodes.is_empty())
        && ready
            .iter()
            .any(|(_, _, e)| e.for_nodes.contains(&facts.node));
    let same_zone = ready.iter().all(|(_, _, e)| !e.for_zones.is_empty())
        && ready.iter().any(|(_, _, e)| e.for_zones.contains(&zone));

    // "cluster set = ready AND allowed by topology mode. If empty -> all serving AND terminating."
    let mut cluster = Vec::new();
    for (at, _, e) in &ready {
        let allowed = if same_node {
            e.for_nodes.contains(&facts.node)
        } else if same_zone {
            e.for_zones.contains(&zone)
        } else {
            true
        };
        if allowed {
            cluster.push(*at);
        }
    }
    if cluster.is_empty() {
        cluster = all
            .iter()
            .filter(|(_, _, e)| serving_terminating(e))
            .map(|(at, _, _)| *at)
            .collect();
    }

    // "local set = local AND ready; if empty -> local AND serving AND terminating."
    let mut local: Vec<SocketAddr> = Vec::new();
    for (at, here, e) in &all {
        if *here && e.ready {
            local.push(*at);
        }
    }
    if local.is_empty() {
        for (at, here, e) in &all {
            if *here && serving_terminating(e) {
                local.push(*at);
            }
        }
    }

    // "hasAnyEndpoints = any ready, or serving-terminating, endpoint in the cluster."
    let any = all
        .iter()
        .any(|(_, _, e)| e.ready || serving_terminating(e));

    // "loadBalancerSourceRanges: drop others to LB IPs only (not NodePort, not externalIPs)."
    if way == Way::Balancer && !service.source_ranges.is_empty() {
        let mut inside = false;
        for net in &service.source_ranges {
            inside |= net.contains(&source);
            // "allowFromNode: the balancer's own addresses, if the node is in range."
            for node in &facts.addresses {
                for balancer in &service.balancer {
                    let vip = balancer.mode == BalancerMode::Vip;
                    let same_family = node.is_ipv4() == balancer.ip.is_ipv4();
                    inside |= net.contains(node) && vip && same_family && source == balancer.ip;
                }
            }
        }
        if !inside {
            return Outcome::Drop;
        }
    }

    // "externalTrafficPolicy Local: local endpoints only, else drop; pods on the node and the node itself always get
    // Cluster semantics." "internalTrafficPolicy Local + no local endpoint => drop (reject only if no endpoint
    // anywhere)."
    let of = match way {
        Way::Internal if service.internal == TrafficPolicy::Local => local,
        Way::Internal => cluster,
        _ if service.external == TrafficPolicy::Cluster => cluster,
        _ if origin == Origin::Outside => local,
        _ => cluster,
    };
    if !of.is_empty() {
        Outcome::Pick {
            of,
            masqueraded: masqueraded(service, way, origin),
        }
    } else if any {
        Outcome::Drop
    } else {
        Outcome::Reject
    }
}
