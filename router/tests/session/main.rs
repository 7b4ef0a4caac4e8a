//! Sessions between two nodes in virtual time, over a network that loses, reorders and duplicates.

#![allow(clippy::unwrap_used, reason = "a test may stop at what cannot be")]

mod attack;
mod keep;
mod make;
mod net;
