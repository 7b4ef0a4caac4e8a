//! The labs: real `weaved` and `weavectl` on hosts that are network namespaces. They need root and fail without it.
//!
//! `lab` builds the hosts and watches the wires; each other module is one subject of the network's promise.

mod lab;

mod attaching;
mod broadcast;
mod cni;
mod churn;
mod completing;
mod counters;
mod crowd;
mod docker;
mod dashboard;
mod firewall;
mod floating;
mod flows;
mod full_disk;
mod full_tracking;
mod health;
mod hostile;
mod idle;
mod lists;
mod members;
mod metrics;
mod mtu;
mod nat;
mod networks;
mod newcomer;
mod odd_services;
mod outside;
mod overlay;
mod partition;
mod raw_frames;
mod relay;
mod relayed;
mod restart;
mod rotation;
mod service_range;
mod services;
mod seeing;
mod tools;
mod stopped;
mod targets;
mod wire;
mod without;
mod wrong_input;
