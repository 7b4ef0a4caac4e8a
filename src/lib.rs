//! The node: the only crate that knows every part.
//!
//! `weaved` is [`config`] (what it is told), [`node`] (the parts, wired) and [`api`] (what it can be asked), started in
//! that order by [`daemon`] and stopped in reverse. `weavectl` is [`cli`]: it only talks to the API.
//! Nothing here touches a packet; the router's threads do, and none of them waits for anything in this crate.

pub mod duration;
pub mod obstacle;

pub mod config;
pub mod preflight;

pub mod node;

pub mod api;

pub mod cli;
pub mod daemon;
