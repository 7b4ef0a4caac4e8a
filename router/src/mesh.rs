//! Membership and ownership: who belongs to the cluster, and which addresses are whose.
//!
//! Bottom-up: [`codec`] reads and writes bytes; [`cluster`] is the cluster's key and its certificates; [`deed`] is one
//! proof of ownership, [`deeds`] all that a node has; [`record`] is what a node says of itself; [`message`] and
//! [`parts`] are what members send each other; [`tokens`] are the
//! invitations and [`join`] is how they are used; [`flood`] and [`ping`] say what to send to whom, and
//! when; [`echo`] times pings that were asked for.

pub mod cluster;
pub mod codec;
pub mod deed;
pub mod deeds;
pub mod echo;
pub mod flood;
pub mod join;
pub mod message;
pub mod parts;
pub mod ping;
pub mod record;
pub mod tokens;
