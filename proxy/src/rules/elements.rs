//! An entry of the table as elements of maps.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use weave_linux::nft::{Element, Value, Verdict};
use weave_model::{Affinity, TrafficPolicy};

use super::chains::Shared;
use super::choice::Choice;
use super::maps::{At, Map, Placed, Use};
use super::stick;
use crate::table::{Entry, Family, Front, Key, Target, Way};

/// All elements of an entry but those that it shares with others.
pub(super) fn of(key: &Key, entry: &Entry) -> Vec<Placed> {
    let mut placed = Vec::new();
    for (front, way) in &entry.fronts {
        let (at, family) = (at(front), key.family);
        let map = |is| Map::new(is, at, family);
        let choice = Choice::of(entry, *way);
        if let Some(chain) = chain_of(key, entry, *way, at) {
            placed.push((map(Use::Fronts), to_chain(front, &chain)));
            placed.push((
                map(Use::Sources),
                to_chain(front, source_chain(entry, *way)),
            ));
        }
        if entry.affinity == Affinity::None {
            let (picks, near): (&[Target], &[Target]) = match choice {
                Choice::One(targets) => (targets, &[]),
                Choice::Two(far, near) => (far, near),
            };
            placed.extend(numbered(front, picks).map(|element| (map(Use::Picks), element)));
            placed.extend(numbered(front, near).map(|element| (map(Use::Near), element)));
        }
        let closed = match (choice.leaves_out(), entry.any) {
            (false, _) => Verdict::goto("missed"),
            (true, true) => Verdict::Drop,
            (true, false) => Verdict::goto("refuse"),
        };
        placed.push((
            map(Use::Closed),
            Element::new(fields(front)).verdict(closed),
        ));
        if let Some(guard) = guard(key, entry, *way) {
            let guarded = Map::new(Use::Guarded, At::Address, family);
            placed.push((guarded, to_chain(front, &guard.name())));
        }
    }
    placed
}

/// The shared chains that an entry's elements lead to.
pub(super) fn chains(key: &Key, entry: &Entry) -> Vec<Shared> {
    let mut chains = Vec::new();
    for (front, way) in &entry.fronts {
        chains.extend(guard(key, entry, *way));
        if entry.affinity == Affinity::None
            && let Some(shared) = shared(key.family, at(front), Choice::of(entry, *way))
        {
            chains.extend(shared.with_others());
        }
    }
    chains
}

/// The fronts of an entry by which somebody gets an endpoint, but those in the ranges. Where nobody does, clients are
/// refused by who has the address; where only some do, the others' packets vanish anyway.
pub(super) fn held<'a>(
    key: &Key,
    entry: &'a Entry,
    ranges: &'a [IpNet],
) -> impl Iterator<Item = Placed> + use<'a> {
    let family = key.family;
    let leads = move |(_, way): &&(Front, Way)| Choice::of(entry, *way).leads();
    let outside = move |front: &&Front| !ranges.iter().any(|range| range.contains(&front.address));
    let fronts = entry.fronts.iter().filter(leads).map(|(front, _)| front);
    fronts.filter(outside).map(move |front| {
        let map = Map::new(Use::Held, at(front), family);
        (map, Element::new(fields(front)))
    })
}

/// How many fronts of an entry let in some sources only.
pub(super) fn guarded(key: &Key, entry: &Entry) -> usize {
    let guards = |(_, way): &&(Front, Way)| guard(key, entry, *way).is_some();
    entry.fronts.iter().filter(guards).count()
}

/// The virtual addresses of an entry: ports of theirs that no Service has are refused.
pub(super) fn vips(entry: &Entry) -> impl Iterator<Item = IpAddr> {
    let internal = entry.fronts.iter().filter(|(_, way)| *way == Way::Internal);
    internal.map(|(front, _)| front.address)
}

/// The endpoints of this node.
pub(super) fn local_targets(entry: &Entry) -> BTreeSet<IpAddr> {
    let all = entry.cluster.iter().chain(&entry.local);
    let here = all.filter(|target| target.local);
    here.map(|target| target.address.ip()).collect()
}

/// A virtual address.
pub(super) fn vip(address: IpAddr) -> Placed {
    let map = Map::new(Use::Vips, At::Address, Family::of(address));
    let refused = Element::new([Value::from(address)]).verdict(Verdict::goto("refuse"));
    (map, refused)
}

/// An endpoint that is its own client.
pub(super) fn to_itself(address: IpAddr) -> Placed {
    let map = Map::new(Use::Loops, At::Address, Family::of(address));
    (
        map,
        Element::new([Value::from(address), Value::from(address)]),
    )
}

/// What is done with the source of connections by a front (see `base`).
const fn source_chain(entry: &Entry, way: Way) -> &'static str {
    match (way, entry.external) {
        (Way::Internal, _) => "foreign",
        (_, TrafficPolicy::Cluster) => "masked",
        (_, TrafficPolicy::Local) => "host",
    }
}

fn chain_of(key: &Key, entry: &Entry, way: Way, at: At) -> Option<String> {
    let choice = Choice::of(entry, way);
    match entry.affinity {
        Affinity::None => shared(key.family, at, choice).map(|chain| chain.name()),
        Affinity::ClientIp { .. } => stick::chain_of(key, entry, way),
    }
}

/// The chain that picks; none where nobody gets an endpoint.
fn shared(family: Family, at: At, choice: Choice<'_>) -> Option<Shared> {
    match choice {
        Choice::One([]) | Choice::Two([], _) => None,
        Choice::One(targets) => Some(Shared::Pick {
            at,
            family,
            is: Use::Picks,
            n: targets.len(),
        }),
        Choice::Two(far, near) => Some(Shared::Mixed {
            at,
            family,
            far: far.len(),
            near: near.len(),
        }),
    }
}

fn guard(key: &Key, entry: &Entry, way: Way) -> Option<Shared> {
    let guarded = way == Way::Balancer && !entry.source_ranges.is_empty();
    guarded.then(|| Shared::From {
        family: key.family,
        ranges: entry.source_ranges.clone(),
    })
}

const fn at(front: &Front) -> At {
    if front.is_node_port() {
        At::NodePort
    } else {
        At::Address
    }
}

fn fields(front: &Front) -> Vec<Value> {
    let address = (!front.is_node_port()).then(|| Value::from(front.address));
    let rest = [
        Value::Byte(front.protocol.number()),
        Value::Port(front.port),
    ];
    address.into_iter().chain(rest).collect()
}

fn to_chain(front: &Front, chain: &str) -> Element {
    Element::new(fields(front)).verdict(Verdict::goto(chain))
}

fn numbered(front: &Front, targets: &[Target]) -> impl Iterator<Item = Element> {
    let front = fields(front);
    targets.iter().enumerate().map(move |(number, target)| {
        let mut key = front.clone();
        key.push(Value::Number(number as u32));
        Element::new(key).values(socket(target.address))
    })
}

fn socket(address: SocketAddr) -> [Value; 2] {
    [Value::from(address.ip()), Value::Port(address.port())]
}
