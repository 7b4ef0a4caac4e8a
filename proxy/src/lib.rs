//! Services: virtual addresses in front of endpoints that come and go.
//!
//! Bottom-up: [`networks`] says which containers reach each other; [`facts`] is what has to be known of the node;
//! [`select`] decides which endpoints a Service may use here; [`table`] is the result, immutable, and what differs
//! between two of them; [`sources`] keeps Services and endpoints as they are reported and makes the next table out of
//! the last one. An engine does what the table says: [`rules`] is the table as nftables rules, [`stale`] which UDP
//! flows they leave behind, and [`kernel`] the engine that keeps the kernel to both. [`declared`] turns what members
//! tell into Services, where there is no Kubernetes, and [`health`] says when their endpoints are to be checked;
//! [`driver`] is the thread around all.

pub mod networks;

pub mod facts;
pub mod table;

pub mod select;

pub mod sources;

pub mod rules;

pub mod stale;

pub mod kernel;

pub mod relay;

pub mod health;

pub mod declared;

pub mod driver;
