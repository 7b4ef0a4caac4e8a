//! Trying to shake hands with one peer: where, with which epoch and suite, and when again.
//!
//! Endpoints and relays are tried in turn, the way that worked last first. After each round over them the next epoch or suite that
//! this node accepts has its turn: the peer may not know the newest secret yet, or may refuse a cipher. Every combination
//! is as strong as the others, so trying them gives nothing away. After every other round the wait doubles; at once after
//! the first would be hard on a link that loses a third of all packets.

use std::time::{Duration, Instant};

use weave_model::{Drop, Suite};

use super::local::Local;
use crate::keys::NodePublic;
use crate::noise::ik::{Initiator, Opening};
use crate::noise::mac::{self, Cookie};
use crate::time::Now;
use crate::way::Way;
use crate::wire::Header;

/// The wait after the first round.
const FIRST_WAIT: Duration = Duration::from_millis(300);
/// The longest wait.
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// A handshake that this node wants.
pub(super) struct Attempt {
    tries: usize,
    /// When to try next.
    pub(super) at: Instant,
    /// The last message 1, not answered yet.
    pub(super) pending: Option<Pending>,
}

/// A message 1 on its way.
pub(super) struct Pending {
    pub(super) initiator: Initiator,
    /// When it was made.
    pub(super) began: Instant,
    to: Way,
    datagram: Vec<u8>,
    /// A cookie came for it, and it was sent again.
    proven: bool,
}

/// What stands in place of the epoch in the cookie reply for a node that was removed: builds that do not know it take
/// such a reply for junk.
pub(super) const REMOVED: u64 = u64::MAX;

/// What a cookie reply says.
pub(super) enum Told {
    /// Prove the address by this.
    Cookie(Cookie),
    /// The peer is in this epoch, and accepts that of message 1 no longer.
    Epoch(u32),
    /// This node was removed from the cluster.
    Removed,
}

impl Attempt {
    /// To be made at once.
    pub(super) const fn new(now: Instant) -> Self {
        Self {
            tries: 0,
            at: now,
            pending: None,
        }
    }

    /// Sends a new message 1 to the next of `ways`, which must not be empty, in place of the last one.
    pub(super) fn step(
        &mut self,
        peer: &NodePublic,
        ways: &[Way],
        cookie: Option<&Cookie>,
        local: &mut Local,
        now: Now,
    ) {
        self.cancel(local);
        let round = self.tries / ways.len();
        let to = ways[self.tries % ways.len()];
        self.tries += 1;
        let wait = FIRST_WAIT
            .saturating_mul(1 << (round / 2).min(8))
            .min(LONGEST_WAIT);
        self.at = now.mono + wait + local.jitter(wait / 3);
        self.pending = Pending::start(peer, to, round, cookie, local, now);
    }

    /// Whether the next message 1 is not the first.
    pub(super) const fn is_again(&self) -> bool {
        self.tries > 0
    }

    /// Forgets the last message 1: nothing answers it any more.
    pub(super) fn cancel(&mut self, local: &mut Local) {
        if let Some(pending) = self.pending.take() {
            local.free_index(pending.index());
        }
    }

    /// Gives way to the peer's own initiation, but comes back if nothing comes of that.
    pub(super) fn yield_to_peer(&mut self, local: &mut Local, now: Instant) {
        self.cancel(local);
        self.at = now + 3 * FIRST_WAIT + local.jitter(FIRST_WAIT);
    }
}

impl Pending {
    fn start(
        peer: &NodePublic,
        to: Way,
        round: usize,
        cookie: Option<&Cookie>,
        local: &mut Local,
        now: Now,
    ) -> Option<Self> {
        let suites: Vec<Suite> = local.offers().collect();
        let epoch = local
            .epochs
            .get(round % local.epochs.len().max(1))?
            .secret
            .epoch;
        let suite = suites[round / local.epochs.len() % suites.len()];
        let opening = Opening {
            epoch,
            index: local.claim_index(peer.id()),
            suite,
        };
        let stamp = local.stamp(now);
        let mut rng = local.fork();
        let secret = local.epoch(epoch)?;
        let cluster = local.cluster(secret);
        let (initiator, mut datagram) = Initiator::start(
            &local.keys,
            peer,
            cluster,
            opening,
            stamp,
            local.about(),
            &mut rng,
        );
        mac::append(&secret.secret.mac_key(&peer.id()), cookie, &mut datagram);
        local.transmit(to, datagram.clone());
        Some(Self {
            initiator,
            began: now.mono,
            to,
            datagram,
            proven: false,
        })
    }

    pub(super) fn index(&self) -> u32 {
        self.initiator.opening().index
    }

    /// Reads a cookie reply, and sends the same message 1 again with the cookie, once. One that names another epoch than
    /// message 1 says that this one is accepted no longer.
    pub(super) fn handle_cookie(
        &mut self,
        peer: &NodePublic,
        header: Header,
        reply: &[u8],
        local: &mut Local,
    ) -> Result<Told, Drop> {
        let epoch = local
            .epoch(self.initiator.opening().epoch)
            .ok_or(Drop::BadHandshake)?;
        let before = self.datagram.len() - mac::MACS;
        let mac1 = self.datagram[before..]
            .first_chunk()
            .expect("an initiation ends with its MACs");
        let cookie = mac::open_reply(&epoch.secret.cookie_key(&peer.id()), mac1, reply)?;
        if header.counter == REMOVED {
            return Ok(Told::Removed);
        }
        let epoch = u32::try_from(header.counter).map_err(|_| Drop::BadHandshake)?;
        if epoch != self.initiator.opening().epoch {
            return Ok(Told::Epoch(epoch));
        }
        if !std::mem::replace(&mut self.proven, true) {
            mac::set_cookie(&cookie, &mut self.datagram);
            local.transmit(self.to, self.datagram.clone());
        }
        Ok(Told::Cookie(cookie))
    }
}
