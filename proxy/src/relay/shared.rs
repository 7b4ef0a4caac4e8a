//! What the relay's threads have in common: the routes, a word to stop, counters, and what they may have open.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize};

use arc_swap::ArcSwap;
use weave_linux::intercept::Name;

use super::agree::{Budget, News, Open};
use super::legs::Legs;
use super::routes::{Routes, Source};

/// Shared by all threads; everything in it is read or counted without waiting for anybody, but for the note of a
/// connection that was made.
#[derive(Debug, Default)]
pub(super) struct Shared {
    pub(super) routes: ArcSwap<Routes>,
    /// Told when routes of UDP changed, after they did.
    pub(super) moved: News,
    /// No datagram is taken any more; told by `moved`.
    pub(super) draining: AtomicBool,
    pub(super) stop: AtomicBool,
    /// Connections that are open.
    pub(super) open: Open,
    pub(super) counts: Counts,
    pub(super) budget: Budget,
    /// How many descriptors connections leave to sessions of UDP.
    pub(super) spare: usize,
    pub(super) legs: Legs,
    /// Chooses the ports of connections that are made in clients' names.
    pub(super) turn: AtomicU32,
}

/// What happened.
#[derive(Debug, Default)]
pub(super) struct Counts {
    /// Connections that were accepted.
    pub(super) accepted: AtomicU64,
    /// Connections that ended with a reset by the relay: no endpoint answered, or one of the sides broke.
    pub(super) reset: AtomicU64,
    /// How often connections had to wait because there were as many as there may be.
    pub(super) waits: AtomicU64,
    /// Bytes of connections that were read and whose receivers had no room for them.
    pub(super) kept: Arc<AtomicUsize>,
    /// Sessions of UDP that are remembered.
    pub(super) sessions: AtomicUsize,
    /// Sessions that began.
    pub(super) begun: AtomicU64,
    /// Sessions that ended before their time to make room.
    pub(super) displaced: AtomicU64,
    /// Datagrams that came to nothing: no room for a session, no endpoint, or no room in a socket.
    pub(super) lost: AtomicU64,
}

/// In whose name an endpoint is asked.
pub(super) const fn name(source: Source) -> Name {
    match source {
        Source::Host => Name::Host,
        // No device has the node's own address: the kernel engine gives it to packets as they leave.
        Source::Own(from) | Source::Client(from) => Name::Foreign(from),
    }
}
