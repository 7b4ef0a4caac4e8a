//! The contract's words, as code that is slow and plain: no maps, no sharing, one question at a time.

use std::net::{IpAddr, SocketAddr};

use weave_model::{AddressKind, Endpoint, Service, ServicePort, Slice, TrafficPolicy};
use weave_proxy::facts::Facts;
use weave_proxy::table::{Origin, Way};

/// What becomes of a connection.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Pick(Vec<SocketAddr>),
    Drop,
    Reject,
}

/// "Input: endpoints with (ready, serving, terminating, local, node hints, zone hints); dedupe by ip:port across
/// slices, local wins."
fn input(port: &ServicePort, slices: &[Slice], facts: &Facts) -> Vec<(SocketAddr, bool, Endpoint)> {
    let mut found: Vec<(SocketAddr, bool, Endpoint)> = Vec::new();
    let mut slices: Vec<&Slice> = slices.iter().collect();
    slices.sort_by(|a, b| a.name.cmp(&b.name));
    for slice in slices {
        if slice.kind != AddressKind::V4 {
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
                if !endpoint.address.is_ipv4() {
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

/// What becomes of a connection that comes to a front of this kind, from there.
#[allow(
    clippy::too_many_lines,
    reason = "read beside the contract, in its order"
)]
pub(crate) fn outcome(
    service: &Service,
    port: &ServicePort,
    slices: &[Slice],
    facts: &Facts,
    (way, origin, source): (Way, Origin, IpAddr),
) -> Outcome {
    let all = input(port, slices, facts);
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

    // "loadBalancerSourceRanges: drop others to LB IPs only."
    if way == Way::Balancer && !service.source_ranges.is_empty() {
        let v4: Vec<_> = service
            .source_ranges
            .iter()
            .filter(|net| net.addr().is_ipv4())
            .collect();
        if !v4.iter().any(|net| net.contains(&source)) {
            return Outcome::Drop;
        }
    }

    // "externalTrafficPolicy Local: local endpoints only, else drop; pods on the node and the node itself always get
    // Cluster semantics." "internalTrafficPolicy Local + no local endpoint => drop (reject only if no endpoint
    // anywhere)."
    let set = match way {
        Way::Internal if service.internal == TrafficPolicy::Local => local,
        Way::Internal => cluster,
        _ if service.external == TrafficPolicy::Cluster => cluster,
        _ if origin == Origin::Outside => local,
        _ => cluster,
    };
    if !set.is_empty() {
        Outcome::Pick(set)
    } else if any {
        Outcome::Drop
    } else {
        Outcome::Reject
    }
}
