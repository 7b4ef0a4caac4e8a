//! Whole clusters of Weave's control core in virtual time.
//!
//! The cores are those that `weaved` runs. What stands around them is not: a network that loses, doubles, delays and cuts
//! ([`net`]), disks that are slow, full or rolled back, processes that crash at any point, and people who join, remove and
//! attach. A [`story`] is a list of such events, made from a seed or cut down from another one; [`play`] has it happen
//! and holds every step against [`check`], a plain model of what was promised. A story that breaks a promise is cut down
//! ([`shrink`]) to the few events that it takes. [`lies`] is what a hostile member says. [`scale`] finds out what a cluster
//! costs by its size.
//!
//! Nothing else here reads a clock or a random source of the system, so a seed gives the same run, datagram for datagram.

#![allow(
    clippy::unwrap_used,
    reason = "a simulation fails by panicking, which the player of stories catches"
)]

pub mod check;
pub mod lies;
pub mod net;
pub mod play;
pub mod scale;
pub mod shrink;
pub mod story;
