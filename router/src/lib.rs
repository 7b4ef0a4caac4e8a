//! The encrypted mesh overlay: everything between a container's packet on one host and on another.
//!
//! Bottom-up: [`time`], [`random`], [`wire`], [`way`] and [`keys`] are the words; [`noise`] and [`session`] make and keep keys between two
//! nodes; [`mesh`] is what members tell each other, [`ipam`] and [`store`] what a node must not forget, and [`core`]
//! the control core made of them; [`path`] moves packets with the sessions' keys; [`rules`], [`publish`], [`hostfw`] and [`attach`]
//! set up the host and its containers; [`driver`] runs it all.

pub mod time;
pub mod random;
pub mod wire;
pub mod way;
pub mod keys;
pub mod noise;
pub mod session;
pub mod ipam;
pub mod store;
pub mod mesh;
pub mod core;
pub mod path;
pub mod rules;
pub mod publish;
pub mod hostfw;
pub mod attach;
pub mod driver;
