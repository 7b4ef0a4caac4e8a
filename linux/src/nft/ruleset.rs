//! A table as it should be: made, recognised after a restart, and made again when somebody flushed it.
//!
//! The table carries a stamp, a hash of all that makes it. The stamp says whether the table was made from the same rules;
//! the chains, the number of rules in each and the elements of sets say whether they are still there. A right table is left alone, counters and
//! all; anything else is replaced in one batch, so that no packet meets half of it.

use super::batch::Batch;
use super::expected::{Expected, Seen};
use super::socket::{Error, Socket};
use super::table::Table;

/// A table and all that belongs in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleSet {
    table: Table,
    stamp: u64,
    batch: Batch,
    expected: Expected,
}

/// What a table was found to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// As it should be.
    Right,
    /// Not there.
    Missing,
    /// Made from other rules, or changed by somebody.
    Wrong,
}

impl RuleSet {
    /// Takes a table and what fills it: chains, sets, elements and rules. `fill` is called twice and does the same both
    /// times.
    pub fn new(table: Table, fill: impl Fn(&mut Batch, &Table)) -> Self {
        let mut body = Batch::new();
        fill(&mut body, &table);
        let stamp = fnv1a(body.as_bytes());
        let table = table.stamp(stamp);
        let mut batch = Batch::new();
        batch.replace_table(&table);
        fill(&mut batch, &table);
        let expected = Expected::of(&batch);
        Self {
            table,
            stamp,
            batch,
            expected,
        }
    }

    /// The table.
    pub const fn table(&self) -> &Table {
        &self.table
    }

    /// The transaction that makes it, in place of whatever is there.
    pub const fn batch(&self) -> &Batch {
        &self.batch
    }

    /// Looks, and changes nothing.
    ///
    /// # Errors
    /// When the kernel's rule sets cannot be read.
    pub fn check(&self, socket: &Socket) -> Result<Found, Error> {
        let Some(table) = socket.table(&self.table)? else {
            return Ok(Found::Missing);
        };
        let whole = Seen::Right { more: Vec::new() };
        let right =
            table.stamp == Some(self.stamp) && self.expected.look(socket, &self.table)? == whole;
        Ok(if right { Found::Right } else { Found::Wrong })
    }

    /// Makes the table unless it is right already; tells what was found.
    ///
    /// # Errors
    /// When it can be neither read nor made.
    pub fn ensure(&self, socket: &Socket) -> Result<Found, Error> {
        let found = self.check(socket)?;
        if found != Found::Right {
            socket.send(&self.batch)?;
        }
        Ok(found)
    }

    /// Removes the table, if it is there.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn remove(&self, socket: &Socket) -> Result<(), Error> {
        let mut batch = Batch::new();
        batch.remove_table(&self.table);
        socket.send(&batch)
    }
}

/// FNV-1a, 64 bits: the same for the same bytes in every release, which is all that is asked of it.
fn fnv1a(bytes: &[u8]) -> u64 {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, step)
}

#[cfg(test)]
mod tests {
    use super::super::{Chain, Rule};
    use super::*;

    fn set(comment: &str) -> RuleSet {
        RuleSet::new(Table::inet("t"), |batch, table| {
            batch.add_chain(table, &Chain::regular("a"));
            batch.add_chain(table, &Chain::regular("b"));
            batch.add_rule(table, "a", &Rule::new().accept().comment(comment));
        })
    }

    #[test]
    fn equal_rules_have_equal_stamps() {
        assert_eq!(set("x"), set("x"));
        assert_ne!(set("x").stamp, set("y").stamp);
        assert_eq!(fnv1a(b"foobar"), 0x8594_4171_f739_67e8);
    }
}
