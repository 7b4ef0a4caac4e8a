//! nftables over netlink: rule sets are built as typed values and applied as one atomic batch, without the `nft` binary.
//!
//! Two halves. [`Batch`] is pure: tables, chains, sets and rules become the bytes of one transaction, so what a rule set
//! is can be told, compared and tested without a kernel. [`Socket`] sends those bytes and reads back little: enough to
//! see whether a table is still the one we made. Either all of a batch holds afterwards or none of it; an [`Error`] names
//! the operation the kernel refused.
//!
//! ```
//! use weave_linux::nft::{Batch, Chain, Element, Field, Hook, Policy, Rule, Set, Table, Type, Value, Verdict, priority};
//!
//! let table = Table::inet("example").comment("weave");
//! let services = Set::new("services", &[Type::Ipv4, Type::Proto, Type::Port]).verdicts();
//! let mut batch = Batch::new();
//! batch.replace_table(&table);
//! batch.add_chain(&table, &Chain::regular("web"));
//! batch.add_chain(&table, &Chain::nat("pre", Hook::Prerouting, priority::DSTNAT - 5, Policy::Accept));
//! batch.add_set(&table, &services);
//! let vip = [Value::V4([10, 96, 0, 1].into()), Value::TCP, Value::Port(80)];
//! batch.add_elements(&table, &services, [Element::new(vip).verdict(Verdict::goto("web"))]);
//! batch.add_rule(&table, "pre", &Rule::new().vmap(&[Field::Ip4Daddr, Field::L4Proto, Field::Dport], &services));
//! batch.add_rule(&table, "web", &Rule::new().is(Field::TcpDport, Value::Port(80)).counter().accept());
//! assert_eq!(batch.len(), 9);
//! ```
//!
//! A table that is to stay as we made it, over restarts and other people's flushes, is a [`RuleSet`]. One that is changed
//! a little at a time is held against [`Expected`], when a [`Watch`] has heard that somebody else touched it.
//!
//! The numbers are those of `linux/netfilter/nf_tables.h`; the encodings are the ones `nft` 1.0 chooses, so that
//! `nft list ruleset` prints what was meant.

mod action;
mod batch;
mod expected;
mod field;
mod read;
mod rule;
mod ruleset;
mod set;
mod socket;
mod table;
mod value;
mod watch;
pub(crate) mod wire;

pub use batch::Batch;
pub use expected::{Expected, Seen};
pub use field::{Direction, Field};
pub use read::{ChainInfo, RuleInfo, TableInfo};
pub use rule::{Cmp, Reject, Rule};
pub use ruleset::{Found, RuleSet};
pub use set::{Element, Set};
pub use socket::{Error, Socket};
pub use table::{Chain, Family, Hook, Policy, Table, priority};
pub use value::{Span, Type, Value, Verdict};
pub use watch::{Heard, Watch};
