//! Leaving all sessions at once: somebody else may have their keys and counters.

use super::Sessions;
use crate::random::stir;
use crate::time::Now;

impl Sessions {
    /// Takes in fresh bytes of the system's random source.
    pub fn reseed(&mut self, fresh: &[u8; 32]) {
        stir(&mut self.local.rng, fresh);
    }

    /// Ends every session and every handshake under way, for every thread and before anything else is sealed, and shakes
    /// hands anew with those that are wanted. By another boot nonce, higher than the last, peers know that the old ones are
    /// over.
    pub fn renew(&mut self, boot: u64, now: Now) {
        self.local.config.boot = boot;
        let all: Vec<_> = self.peers.keys().copied().collect();
        for id in &all {
            self.with(*id, now, |peer, local| peer.end(local));
        }
        for id in all {
            self.with(id, now, |peer, local| {
                if peer.wanted {
                    peer.begin(local, now);
                }
            });
        }
    }
}
