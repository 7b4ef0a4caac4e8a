//! Which of two words about one node is the newer: its records, its sheets, and the removal that ends them.

/// Which of two records of a node is newer: first by boot nonce, then by counter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecordVersion {
    /// Grows with every start of the node.
    pub boot: u64,
    /// Grows with every change since.
    pub counter: u64,
}

impl RecordVersion {
    /// The version of what takes the place of the record of a node that was removed; of two, the higher one holds.
    pub const fn last(counter: u64) -> Self {
        Self {
            boot: u64::MAX,
            counter,
        }
    }

    /// Whether it is one of those, which no record has.
    pub const fn is_last(self) -> bool {
        self.boot == u64::MAX
    }
}
