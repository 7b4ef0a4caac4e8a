//! Sessions between two nodes in virtual time, over a network that loses, reorders and duplicates.

mod attack;
mod keep;
mod make;
mod net;
