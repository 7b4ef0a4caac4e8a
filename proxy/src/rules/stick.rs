//! Services that keep clients at their endpoints: chains of their own, and one set of clients for each endpoint.
//!
//! A new connection first goes where its source is remembered, and is picked for like any other if it is nowhere. The
//! endpoint's chain remembers it, or starts its time again. What an endpoint remembers goes with the endpoint, so a
//! client of one that vanished is picked for anew; and what the others remember stays when the Service changes.

use std::collections::BTreeSet;
use std::sync::Arc;

use weave_linux::nft::{Batch, Chain, Element, Field, Rule, Set, Table, Type, Value, Verdict};
use weave_model::Affinity;

use super::chains::{by_origin, hash, of_family};
use super::choice::Choice;
use super::maps::{ip_type, saddr};
use crate::facts::Facts;
use crate::table::{Entry, Family, Key, Target, Way};

/// The most clients that an endpoint remembers; beyond that they are picked for each time.
const MOST: u32 = 65_535;

/// An entry before and after.
pub(super) type Change<'a> = (&'a Key, Option<&'a Arc<Entry>>, Option<&'a Arc<Entry>>);

/// The chain of a front, unless nobody gets an endpoint by it.
pub(super) fn chain_of(key: &Key, entry: &Entry, way: Way) -> Option<String> {
    let which = match Choice::of(entry, way) {
        Choice::One([]) | Choice::Two([], _) => return None,
        Choice::One(_) if entry.uses_local(way, crate::table::Origin::Container) => Chains::Near,
        Choice::One(_) => Chains::Far,
        Choice::Two(..) => Chains::Mixed,
    };
    Some(which.name(key))
}

/// Makes the chains of an entry what they are to be, before anything leads to them.
pub(super) fn change(
    batch: &mut Batch,
    table: &Table,
    facts: &Facts,
    (key, before, after): Change<'_>,
) {
    let Some((entry, seconds)) = after.and_then(|entry| kept(entry)) else {
        return;
    };
    let old = before.and_then(|entry| kept(entry));
    // Another time means other sets.
    let same_sets = old.is_some_and(|(_, before)| before == seconds);
    let known = old
        .filter(|_| same_sets)
        .map_or_else(BTreeSet::new, |(entry, _)| all_targets(entry));
    if old.is_some() {
        Chains::ALL
            .iter()
            .for_each(|chain| batch.flush_chain(table, &chain.name(key)));
    }
    if let Some((was, _)) = old.filter(|_| !same_sets) {
        remove_targets(batch, table, key, all_targets(was));
    }
    for target in all_targets(entry).difference(&known) {
        make_target(batch, table, key, target, seconds);
    }
    for chain in Chains::ALL {
        batch.add_chain(table, &Chain::regular(chain.name(key)));
    }
    pick(batch, table, key, &Chains::Far.name(key), &entry.cluster);
    pick(batch, table, key, &Chains::Near.name(key), &entry.local);
    if !entry.cluster.is_empty() {
        let near = Chains::Near.name(key);
        let rules = by_origin(key.family, facts, &Chains::Far.name(key), Some(&near));
        let mixed = Chains::Mixed.name(key);
        rules
            .iter()
            .for_each(|rule| batch.add_rule(table, &mixed, rule));
    }
}

/// Removes what nothing leads to any more.
pub(super) fn clear(batch: &mut Batch, table: &Table, (key, before, after): Change<'_>) {
    let Some((was, seconds)) = before.and_then(|entry| kept(entry)) else {
        return;
    };
    match after.and_then(|entry| kept(entry)) {
        Some((is, now)) if now == seconds => {
            let gone = &all_targets(was) - &all_targets(is);
            remove_targets(batch, table, key, gone);
        }
        Some(_) => {}
        None => {
            for chain in [Chains::Mixed, Chains::Far, Chains::Near] {
                batch.flush_chain(table, &chain.name(key));
            }
            for chain in Chains::ALL {
                batch.delete_chain(table, &chain.name(key));
            }
            remove_targets(batch, table, key, all_targets(was));
        }
    }
}

/// The chains of an entry.
#[derive(Clone, Copy)]
enum Chains {
    /// Picks whom policy Cluster may.
    Far,
    /// Picks whom policy Local may.
    Near,
    /// One or the other, by the client.
    Mixed,
}

impl Chains {
    const ALL: [Self; 3] = [Self::Far, Self::Near, Self::Mixed];

    fn name(self, key: &Key) -> String {
        let word = match self {
            Self::Far => "stick",
            Self::Near => "stick-near",
            Self::Mixed => "stick-mixed",
        };
        format!("{word}-{}", id(key))
    }
}

/// The entry, if it keeps clients, and for how long.
fn kept(entry: &Arc<Entry>) -> Option<(&Entry, u32)> {
    match entry.affinity {
        Affinity::ClientIp { seconds } => Some((entry, seconds)),
        Affinity::None => None,
    }
}

/// Looks whether the client is remembered anywhere, then picks.
fn pick(batch: &mut Batch, table: &Table, key: &Key, chain: &str, targets: &[Target]) {
    if targets.is_empty() {
        return;
    }
    for target in targets {
        let known = of_family(key.family).lookup(&[saddr(key.family)], &who(key, target, 0));
        batch.add_rule(table, chain, &known.goto(&to(key, target)));
    }
    let numbered = targets.iter().enumerate().map(|(number, target)| {
        let verdict = Verdict::goto(to(key, target));
        Element::new([Value::Number(number as u32)]).verdict(verdict)
    });
    let map = Set::anonymous(&[Type::Number]).verdicts();
    let map = batch.add_anonymous(table, map, numbered);
    let draw = Field::Random(targets.len() as u32);
    batch.add_rule(table, chain, &Rule::new().vmap(&[draw], &map));
}

fn make_target(batch: &mut Batch, table: &Table, key: &Key, target: &Target, seconds: u32) {
    let (who, to) = (who(key, target, seconds), to(key, target));
    batch.add_set(table, &who);
    batch.add_chain(table, &Chain::regular(&to));
    let remember = of_family(key.family).update(&[saddr(key.family)], &who);
    batch.add_rule(table, &to, &remember);
    let dnat = of_family(key.family)
        .is(Field::L4Proto, Value::Byte(key.protocol.number()))
        .dnat(target.address.ip(), Some(target.address.port()));
    batch.add_rule(table, &to, &dnat);
}

fn remove_targets(
    batch: &mut Batch,
    table: &Table,
    key: &Key,
    targets: impl IntoIterator<Item = Target>,
) {
    for target in targets {
        batch.flush_chain(table, &to(key, &target));
        batch.delete_chain(table, &to(key, &target));
        batch.delete_set(table, &who(key, &target, 0));
    }
}

fn all_targets(entry: &Entry) -> BTreeSet<Target> {
    entry.cluster.iter().chain(&entry.local).copied().collect()
}

/// How the names of sets begin that packets add elements to.
const LEARNED: &str = "who-";

/// Whether packets add elements to the set of this name.
pub(super) fn is_learned(set: &str) -> bool {
    set.starts_with(LEARNED)
}

/// The set of an endpoint's clients.
fn who(key: &Key, target: &Target, seconds: u32) -> Set {
    let name = format!("{LEARNED}{}", target_id(key, target));
    Set::new(name, &[ip_type(key.family)]).learned(seconds, MOST)
}

/// The chain that leads to an endpoint.
fn to(key: &Key, target: &Target) -> String {
    format!("to-{}", target_id(key, target))
}

fn target_id(key: &Key, target: &Target) -> String {
    format!("{}-{}", id(key), hash(&target.address.to_string()))
}

fn id(key: &Key) -> String {
    let family = match key.family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    };
    hash(&format!("{key} {family}"))
}
