//! The CNI plugin (CNI specification 1.1.0): what a container runtime calls for each container, as one short process.
//!
//! It decides nothing about the network. It reads what the runtime says ([`environment`], [`config`]), asks the node
//! over its socket ([`node`]) and says the answer in the words of the version that was asked for ([`result`], [`error`]);
//! [`verbs`] is the order of that for each verb. So it is small, starts in a millisecond, and a runtime that kills it
//! half-way kills no half-made container: the node carries what it took to its end, and DEL or GC free it.
//!
//! Two things it does itself. A DEL that finds no node is written down beside the socket for the node to read when it
//! starts ([`journal`], [`free`]), because a runtime does not ask twice. And where the configuration names another IPAM plugin,
//! that one is called as the specification says ([`delegate`]), and the node is asked for the address it chose.
//!
//! Called with one of netavark's words, the same program is a plugin of netavark ([`netavark`]).

pub mod version;

pub mod error;

pub mod environment;

pub mod spelling;

pub mod bandwidth;
pub mod ports;
pub mod ranges;
pub mod config;
pub mod result;

pub mod delegate;
pub mod journal;
pub mod node;

pub mod free;

pub mod netavark;
pub mod verbs;
