//! Sessions between two nodes in virtual time, over a network that loses, reorders and duplicates.

#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test may stop at what cannot be, and needs some instant to begin with"
)]

mod attack;
mod copies;
mod keep;
mod make;
mod mutated;
mod net;
mod storm;
