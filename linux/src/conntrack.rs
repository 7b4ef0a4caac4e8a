//! The kernel's table of connections (conntrack), over ctnetlink.
//!
//! Whatever passes a host whose firewall or address translation looks at connections is in it, with both its
//! directions, how far it got, and, where accounting is on (`net.netfilter.nf_conntrack_acct`), its packets and bytes.
//! An entry outlives its connection by 10 s (refused) to 120 s (closed), so whoever looks every few seconds misses next
//! to nothing, without a word from the kernel for each connection: that is what the dump is for. [`flows`] is for Services,
//! which have the kernel forget some.

mod dump;
pub mod flows;

pub use dump::{Connection, Conntrack, Count, End};
