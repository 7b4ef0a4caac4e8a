//! The node: the only crate that knows every part.
//!
//! `weaved` is [`config`] (what it is told), [`node`] (the parts, wired), [`api`] (what it can be asked) and [`docker`]
//! (the same for Docker), started in that order by [`daemon`] and stopped in reverse, after [`preflight`] looked whether
//! the host will do and [`claim`] took its network, and ended when a [`vital`] part is; [`notify`] tells systemd.
//! `weavectl` is [`cli`]: it talks to the API, and [`check`]s a host before there is one. What keeps either from its work
//! is an [`obstacle`]: a cause and a fix.
//!
//! [`sight`] lets people look: [`metrics`] for Prometheus, [`health`] for load balancers, and the page of `weave_dashboard`.
//!
//! The other crates, from the bottom: `weave_model` has the words that all share, the API's types included;
//! `weave_linux` is the only door to the kernel; `weave_router` is the overlay, from a container's packet to the wire
//! and back. [`node`] gives it commands and reads its snapshots.
//!
//! Nothing here touches a packet; the router's threads do, and none of them waits for anything in this crate.

pub mod duration;
pub mod grpc;
pub mod obstacle;
pub mod vital;

pub mod config;
pub mod claim;
pub mod preflight;

pub mod check;
pub mod removal;

pub mod node;

pub mod api;
pub mod docker;

pub mod health;
pub mod metrics;
pub mod sight;

pub mod notify;

pub mod cli;
pub mod daemon;
