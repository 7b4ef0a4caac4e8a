//! One thread for each lane, both directions: a TUN queue and a UDP socket, whichever has something.
//!
//! A thread for each direction was tried: with one stream twice as many threads wake each other, and on virtual machines
//! a wake-up of another core costs more than sealing 10 KB. A thread that is busy with data finds the acknowledgements
//! of the other direction waiting when it looks, without having been woken for them.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Instant;

use arc_swap::{ArcSwap, Cache};
use weave_linux::poll::{Bell, readable};

use super::egress::{Egress, Outgoing};
use super::ingress::{Incoming, Ingress};
use super::routes::Routes;

/// How many receives follow each other before the other direction has its turn: as much as a burst of sends.
const RECEIVES: usize = 4;

/// Moves packets in both directions until the bell rings.
///
/// # Errors
/// When a descriptor fails for good.
pub fn run(
    egress: Egress,
    ingress: Ingress,
    routes: &Arc<ArcSwap<Routes>>,
    stop: &Bell,
) -> io::Result<()> {
    let (tun, socket) = (Arc::clone(&egress.tun), Arc::clone(&ingress.socket));
    let (mut outgoing, mut incoming) = (Outgoing::new(egress), Incoming::new(ingress));
    let mut cache = Cache::new(Arc::clone(routes));
    // Asked in every turn: under steady traffic the descriptors are never waited for.
    while !stop.rung() {
        let routes = Arc::clone(cache.load());
        let mut busy = outgoing.burst(&routes)?;
        for _ in 0..RECEIVES {
            if !incoming.receive(&routes)? {
                break;
            }
            busy = true;
        }
        if busy && incoming.due().is_none() {
            continue;
        }
        let now = Instant::now();
        incoming.expire(&routes, now);
        let wait = incoming.due().map(|due| due.saturating_duration_since(now));
        if !busy {
            readable(&[tun.as_fd(), socket.as_fd(), stop.as_fd()], wait)?;
        }
    }
    Ok(())
}
