//! What holds established connections while `weave-service` is away: the table `weave-anchor`.
//!
//! The kernel translates nothing, not even packets of connections that it has translated until then, once the last chain
//! of type nat and the last rule about connections are gone: after a flush of all rule sets. This table belongs to the
//! process (`owned`, Linux 5.12), so whoever flushes passes it by, and nobody else can change it. Its chains decide
//! nothing; that they are there keeps translation and connection tracking going until the table of Services is back.
//!
//! New connections find nobody to pick for them meanwhile. What would leave for the Services' ranges as it came is
//! dropped: it reaches no stranger, begins no flow without translation, and is tried again by its sender. With the table
//! of Services there, nothing untranslated gets that far but what the relay has taken.
//!
//! | chain | hook, priority | what |
//! |---|---|---|
//! | `in`, `out` | prerouting and output, dstnat | nothing |
//! | `leave` | postrouting, srcnat −50: before anybody's masquerading | drops first packets to the ranges |

use ipnet::IpNet;
use weave_linux::nft::{Batch, Chain, Field, Hook, Policy, Rule, Table, priority};

use super::base::relayed;
use super::maps::daddr;
use crate::table::Family;

/// The name of the table.
pub const TABLE: &str = "weave-anchor";

/// The batch that makes it, in place of what the same process made before.
pub fn batch(ranges: &[IpNet]) -> Batch {
    let table = Table::inet(TABLE).comment("weave").owned();
    let mut batch = Batch::new();
    batch.replace_table(&table);
    for (name, hook, priority) in [
        ("in", Hook::Prerouting, priority::DSTNAT),
        ("out", Hook::Output, priority::DSTNAT),
        ("leave", Hook::Postrouting, priority::SRCNAT - 50),
    ] {
        let chain = Chain::nat(name, hook, priority, Policy::Accept);
        batch.add_chain(&table, &chain);
    }
    // Without a rule that asks about connections, they would not be followed.
    let translated = Rule::new().any_bit(Field::CtStatus, Field::DNAT);
    batch.add_rule(&table, "leave", &translated.ret());
    batch.add_rule(&table, "leave", &relayed());
    for range in ranges {
        let to_range = Rule::new().inside(daddr(Family::of(range.addr())), *range);
        batch.add_rule(&table, "leave", &to_range.counter().drop());
    }
    batch
}
