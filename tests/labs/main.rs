//! The labs: real `weaved` and `weavectl` on hosts that are network namespaces. They need root and fail without it.
//!
//! `lab` builds the hosts and watches the wires; each other module is one subject of the network's promise.

mod lab;

mod attaching;
mod broadcast;
mod cni;
mod counters;
mod firewall;
mod hostile;
mod idle;
mod mtu;
mod nat;
mod newcomer;
mod outside;
mod overlay;
mod restart;
mod seeing;
mod tools;
mod wire;
mod without;
mod wrong_input;
