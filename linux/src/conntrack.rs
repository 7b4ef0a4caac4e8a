//! The kernel's table of connections (conntrack), over ctnetlink.
//!
//! Whatever passes a host whose firewall or address translation looks at connections is in it, with both its
//! directions, how far it got, and, where accounting is on (`net.netfilter.nf_conntrack_acct`), its packets and bytes.
//! Most entries outlive their connection for a while, TCP's by 120 s; one that is refused is gone at once. So there are
//! two ways to look: [`Conntrack::dump`] gives what there is, which costs by the table, and [`Conntrack::news`] what
//! the kernel took out since, with its last counts, and on request what it put in. [`flows`] is for Services, which
//! have the kernel forget some, and [`load()`] tells how full the table is.

mod dump;
pub mod flows;
mod load;

pub use dump::{Connection, Conntrack, Count, End, News};
pub use load::{Load, load};
