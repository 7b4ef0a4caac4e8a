//! What the relay's threads have in common: the routes, a word to stop, and counters.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize};

use arc_swap::ArcSwap;

use super::routes::Routes;

/// Shared by all threads; everything in it is read or counted without waiting for anybody.
#[derive(Debug, Default)]
pub(super) struct Shared {
    pub(super) routes: ArcSwap<Routes>,
    pub(super) stop: AtomicBool,
    pub(super) counts: Counts,
    /// Chooses the ports of connections that are made in clients' names.
    pub(super) turn: AtomicU32,
}

/// What happened.
#[derive(Debug, Default)]
pub(super) struct Counts {
    /// Connections that are open.
    pub(super) open: AtomicUsize,
    /// Connections that were accepted.
    pub(super) accepted: AtomicU64,
    /// Connections that ended with a reset by the relay: no endpoint answered, or one of the sides broke.
    pub(super) reset: AtomicU64,
    /// How often connections had to wait because a thread had as many as it may.
    pub(super) waits: AtomicU64,
}
