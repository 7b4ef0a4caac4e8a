//! The table as nftables rules: the table `weave-service`, made whole once and changed by elements from then on.
//!
//! One lookup finds a Service, one more its endpoint, however many there are. A front leads by a verdict map to a chain
//! that all Services with as many endpoints share: it draws a number and asks a second map for the endpoint with that
//! number of the front the packet goes to. So a Service is nothing but elements of maps, and a change of a Service a few
//! of them, in one batch. Only Services that keep clients at their endpoints have chains of their own ([`stick`]).
//!
//! | chain | hook, priority | what |
//! |---|---|---|
//! | `guard-in`, `guard-out` | prerouting and output, −115 | source ranges of load balancers; there only while one has some |
//! | `pick-in`, `pick-out` | prerouting and output, dstnat −5 | picks for the first packet of each connection |
//! | `mask` | postrouting, srcnat +5 | where the endpoint must see the node's address instead of the client's |
//! | `closed-*` | input, forward, output, −10 | what got no endpoint: refused or dropped, and ports that no Service has |
//!
//! `closed-forward` also drops packets of endpoints that belong to no connection, as nobody translates them (`stray`).
//!
//! What a packet's front was is still known behind the translation: connection tracking keeps the original destination.
//! So no mark is needed, and marks of others are left alone.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use weave_linux::nft::{self, Batch};

use crate::facts::Facts;
use crate::table::{Diff, Table};

pub mod anchor;

mod base;
mod chains;
mod choice;
mod elements;
mod maps;
mod stick;

use maps::{Map, Maps, Placed};

/// The name of the table.
pub const TABLE: &str = "weave-service";

/// The most chains that may have come since the table was made, to some of which nothing may lead any more; beyond that it
/// is made anew.
const MAX_KEPT: usize = 1024;

/// How many entries are turned into elements at a time when all are made: elements take several times the memory of the
/// bytes that they become.
const AT_ONCE: usize = 256;

/// What the kernel's table was made to be, and how it becomes the next.
#[derive(Debug)]
pub struct Rules {
    table: nft::Table,
    maps: Maps,
    /// Shared chains that there are.
    chains: BTreeSet<String>,
    /// How many of these there were when the table was made: so many it needed.
    needed: usize,
    /// How many entries have the address.
    vips: Counted<IpAddr>,
    loops: Counted<IpAddr>,
    /// How many fronts let in some sources only.
    guarded: usize,
}

/// The table that all rules are in.
pub fn table() -> nft::Table {
    nft::Table::inet(TABLE).comment("weave")
}

/// How often something is wanted.
#[derive(Debug)]
struct Counted<T>(BTreeMap<T, usize>);

impl<T: Ord + Clone> Counted<T> {
    /// Counts one more; whether it is the first.
    fn add(&mut self, one: T) -> bool {
        let count = self.0.entry(one).or_insert(0);
        *count += 1;
        *count == 1
    }

    /// Counts one less; whether it was the last.
    fn remove(&mut self, one: &T) -> bool {
        let Some(count) = self.0.get_mut(one) else {
            return false;
        };
        *count -= 1;
        let last = *count == 0;
        if last {
            self.0.remove(one);
        }
        last
    }
}

impl Rules {
    /// The rules of a table, and the batch that makes them in place of whatever is there.
    pub fn new(table: &Table, facts: &Facts) -> (Self, Batch) {
        let mut rules = Self {
            table: self::table(),
            maps: Maps::new(Map::served()),
            chains: BTreeSet::new(),
            needed: 0,
            vips: Counted(BTreeMap::new()),
            loops: Counted(BTreeMap::new()),
            guarded: 0,
        };
        let mut batch = Batch::new();
        batch.replace_table(&rules.table);
        base::make(&mut batch, &rules.table, &rules.maps, facts);
        let all: Vec<_> = table.entries.iter().collect();
        for some in all.chunks(AT_ONCE) {
            let added = some
                .iter()
                .map(|(key, entry)| ((*key).clone(), Arc::clone(entry)));
            let diff = Diff {
                added: added.collect(),
                ..Diff::default()
            };
            rules.change(&mut batch, &diff, facts);
        }
        rules.needed = rules.chains.len();
        (rules, batch)
    }

    /// The table they are in.
    pub const fn table(&self) -> &nft::Table {
        &self.table
    }

    /// The batch that makes these the rules of the next table; `None` when it is better made anew.
    pub fn next(&mut self, diff: &Diff, facts: &Facts) -> Option<Batch> {
        let mut batch = Batch::new();
        self.change(&mut batch, diff, facts);
        (self.chains.len() <= self.needed + MAX_KEPT).then_some(batch)
    }

    /// Takes over chains that were found beside the expected ones; whether all of them are chains that may stay.
    pub fn adopt(&mut self, more: &[String]) -> bool {
        let ours = more.iter().all(|chain| chains::is_shared(chain));
        self.chains.extend(more.iter().cloned());
        ours
    }

    /// Whether the elements of a set are ours alone; others are those that packets add.
    pub fn fills(set: &str) -> bool {
        !stick::is_learned(set)
    }

    /// Whether a shared chain is ours.
    pub fn has(&self, chain: &str) -> bool {
        self.chains.contains(chain)
    }

    /// First what is led to, then where it leads from; what is not led to any more goes last.
    fn change(&mut self, batch: &mut Batch, diff: &Diff, facts: &Facts) {
        let (mut old, mut new) = (Vec::new(), Vec::new());
        let had_guarded = self.guarded > 0;
        for (key, before, after) in diff.pairs() {
            stick::change(batch, &self.table, facts, (key, before, after));
            if let Some(before) = before {
                self.forget(&mut old, key, before);
            }
            if let Some(after) = after {
                for chain in elements::chains(key, after) {
                    if self.chains.insert(chain.name()) {
                        chain.make(batch, &self.table, &self.maps, facts);
                    }
                }
                self.learn(&mut new, key, after);
            }
        }
        match (had_guarded, self.guarded > 0) {
            (false, true) => base::hook_guard(batch, &self.table),
            (true, false) => base::unhook_guard(batch, &self.table),
            _ => {}
        }
        self.maps.replace(batch, &self.table, old, new);
        for (key, before, after) in diff.pairs() {
            stick::clear(batch, &self.table, (key, before, after));
        }
    }

    fn learn(
        &mut self,
        new: &mut Vec<Placed>,
        key: &crate::table::Key,
        entry: &crate::table::Entry,
    ) {
        new.extend(elements::of(key, entry));
        self.guarded += elements::guarded(key, entry);
        for vip in elements::vips(entry) {
            if self.vips.add(vip) {
                new.push(elements::vip(vip));
            }
        }
        for target in elements::local_targets(entry) {
            if self.loops.add(target) {
                new.push(elements::to_itself(target));
            }
        }
    }

    fn forget(
        &mut self,
        old: &mut Vec<Placed>,
        key: &crate::table::Key,
        entry: &crate::table::Entry,
    ) {
        old.extend(elements::of(key, entry));
        self.guarded -= elements::guarded(key, entry);
        for vip in elements::vips(entry) {
            if self.vips.remove(&vip) {
                old.push(elements::vip(vip));
            }
        }
        for target in elements::local_targets(entry) {
            if self.loops.remove(&target) {
                old.push(elements::to_itself(target));
            }
        }
    }
}
