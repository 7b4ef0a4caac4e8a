//! Membership and ownership: who belongs to the cluster, and which addresses are whose.
//!
//! Bottom-up: [`codec`] reads and writes bytes; [`cluster`] is the cluster's key and its certificates; [`deed`] is one
//! proof of ownership.

pub mod cluster;
pub mod codec;
pub mod deed;
pub mod record;
