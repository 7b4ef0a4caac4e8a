//! The encrypted mesh overlay: everything between a container's packet on one host and on another.
//!
//! Bottom-up: [`time`], [`wire`] and [`keys`] are the words; [`noise`] and [`session`] make and keep keys between two
//! nodes; [`path`] moves packets with them; the control core and the shell that runs it all stand on top.

pub mod time;
pub mod wire;
pub mod keys;
pub mod ipam;
pub mod hostfw;
pub mod rules;
pub mod store;
pub mod noise;
pub mod session;
pub mod mesh;
pub mod core;

pub mod core;
pub mod attach;
pub mod path;
pub mod driver;
