//! Going on as a copy: the virtual machine was resumed from a snapshot, perhaps not only here.
//!
//! A copy has every key, counter and generator of the other, and what it remembers may be an earlier state of a node that
//! went on elsewhere. So this is a restart without leaving the process: fresh random bytes, a boot nonce higher than all
//! before, no session that was made before, and nothing given away until members have had the time to say what they know
//! (see [`super::past`]). Of two copies that both go on the one that was resumed later gives way.

use rand::Rng;
use rand::rngs::StdRng;
use tracing::warn;

use super::Core;
use super::saving::Pending;
use crate::mesh::record::RecordVersion;
use crate::random::stir;
use crate::time::Now;

/// A boot nonce above `last`: the time in the high bits, so that it is higher than those of runs that are forgotten too.
pub(super) fn boot_after(last: u64, rng: &mut StdRng, now: Now) -> u64 {
    (now.wall.as_secs() << 24 | u64::from(rng.next_u32() >> 8)).max(last + 1)
}

impl Core {
    /// Takes in fresh bytes of the kernel's random source. To be called before whatever may begin or answer a handshake.
    pub fn reseed(&mut self, fresh: &[u8; 32]) {
        stir(&mut self.rng, fresh);
        let mut seed = [0; 32];
        self.rng.fill_bytes(&mut seed);
        self.sessions.reseed(&seed);
    }

    /// This machine goes on from a snapshot, or may do so. `fresh` is as in [`Core::reseed`].
    pub fn handle_generation(&mut self, fresh: &[u8; 32], now: Now) {
        self.now = now;
        self.relocked = true;
        self.reseed(fresh);
        warn!(
            "this machine was resumed from a snapshot, or its clock was set: all sessions are made anew"
        );
        self.boot = boot_after(self.boot.max(self.version.boot), &mut self.rng, now);
        self.past
            .begin_again(self.saving.asked(), self.boot, now.mono);
        self.version = RecordVersion {
            boot: self.boot,
            counter: 0,
        };
        (self.own, self.booted) = (None, false);
        self.saving.after(Pending::Boot);
        self.reissue_gifts();
        self.sessions.renew(self.boot, now);
        self.settle();
    }
}
