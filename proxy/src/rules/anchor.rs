//! What holds connections while `weave-service` is away: the table `weave-anchor`.
//!
//! The kernel translates nothing, not even packets of connections that it has translated until then, once the last
//! chain of type nat and the last rule about connections are gone: after a flush of all rule sets. This table belongs
//! to the process (`owned`, Linux 5.12), so whoever flushes passes it by, and nobody else can change it. That it has
//! chains keeps translation and connection tracking going until the table of Services is back.
//!
//! New connections find nobody to pick for them meanwhile. Their first packets are dropped: none reaches a stranger, is
//! refused by a host that does not listen there, or begins a flow without translation, and its sender tries again.
//! (Who sends datagrams on the host itself is told so by an error, as of all that is dropped there.)
//!
//! | chain | hook, priority | what |
//! |---|---|---|
//! | `in`, `out` | prerouting and output, dstnat | drop first packets to fronts outside of the ranges |
//! | `leave` | postrouting, srcnat −50 | drops first packets to the ranges, before anybody's masquerading |
//!
//! With the table of Services there, what has been picked for does not come to `in` and `out` any more, and what the
//! relay has taken bears its mark. So they see only what got no endpoint though the front has some, which that table
//! would drop too. Fronts without any endpoint are not held: refusing them stays with it. The ranges need no list, as
//! nothing untranslated gets as far as `leave`.
//!
//! Chains of type nat see the first packets of connections only, so all of this costs the others nothing.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use weave_linux::nft::{Batch, Chain, Field, Hook, Policy, Rule, Table, priority};

use super::base::{ATS, FAMILIES, by_front, relayed, sets};
use super::elements::held;
use super::maps::{Map, Maps, Use, daddr, front_fields};
use crate::facts::Facts;
use crate::table::{Diff, Family, Table as Services};

/// The name of the table.
pub const TABLE: &str = "weave-anchor";

/// What the table was made to be, and how it becomes the next.
#[derive(Debug)]
pub struct Anchor {
    table: Table,
    maps: Maps,
    /// What it was made by.
    ranges: Vec<IpNet>,
    addresses: BTreeSet<IpAddr>,
}

impl Anchor {
    /// What holds connections to a table of Services, and the batch that makes it, in place of what the same process
    /// made before.
    pub fn new(services: &Services, facts: &Facts) -> (Self, Batch) {
        let anchor = Self {
            table: Table::inet(TABLE).comment("weave").owned(),
            maps: Maps::new(Map::anchored()),
            ranges: facts.ranges.clone(),
            addresses: facts.addresses.clone(),
        };
        let mut batch = Batch::new();
        batch.replace_table(&anchor.table);
        sets(&mut batch, &anchor.table, &anchor.maps, facts);
        anchor.make(&mut batch);
        let all = services.entries.iter();
        let all = all.flat_map(|(key, entry)| held(key, entry, &anchor.ranges));
        anchor.maps.replace(&mut batch, &anchor.table, [], all);
        (anchor, batch)
    }

    /// Whether it is what these facts ask for; otherwise it is to be made anew.
    pub fn fits(&self, facts: &Facts) -> bool {
        self.ranges == facts.ranges && self.addresses == facts.addresses
    }

    /// The batch that brings it to the next table of Services; empty where no front has got its first endpoint or lost
    /// its last.
    pub fn next(&self, diff: &Diff) -> Batch {
        let (mut old, mut new) = (Vec::new(), Vec::new());
        for (key, before, after) in diff.pairs() {
            old.extend(
                before
                    .into_iter()
                    .flat_map(|entry| held(key, entry, &self.ranges)),
            );
            new.extend(
                after
                    .into_iter()
                    .flat_map(|entry| held(key, entry, &self.ranges)),
            );
        }
        let mut batch = Batch::new();
        self.maps.replace(&mut batch, &self.table, old, new);
        batch
    }

    fn make(&self, batch: &mut Batch) {
        let table = &self.table;
        batch.add_chain(table, &Chain::regular("hold"));
        for family in FAMILIES {
            for at in ATS {
                let fronts = self.maps.get(Map::new(Use::Held, at, family));
                let to_front = by_front(&self.maps, at, family);
                let to_front = to_front.lookup(front_fields(at, family), fronts);
                batch.add_rule(table, "hold", &to_front.counter().drop());
            }
        }
        for (name, hook, priority) in [
            ("in", Hook::Prerouting, priority::DSTNAT),
            ("out", Hook::Output, priority::DSTNAT),
            ("leave", Hook::Postrouting, priority::SRCNAT - 50),
        ] {
            let chain = Chain::nat(name, hook, priority, Policy::Accept);
            batch.add_chain(table, &chain);
            batch.add_rule(table, name, &relayed());
        }
        for name in ["in", "out"] {
            batch.add_rule(table, name, &Rule::new().jump("hold"));
        }
        // Without a rule that asks about connections, they would not be followed.
        let translated = Rule::new().any_bit(Field::CtStatus, Field::DNAT);
        batch.add_rule(table, "leave", &translated.ret());
        for range in &self.ranges {
            let to_range = Rule::new().inside(daddr(Family::of(range.addr())), *range);
            batch.add_rule(table, "leave", &to_range.counter().drop());
        }
    }
}
