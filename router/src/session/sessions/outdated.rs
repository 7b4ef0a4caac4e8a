//! Members that missed a change of the cluster's secret, and nodes that missed that they are members no more.
//!
//! Their handshakes cannot be answered, but silence would leave them to guess. So of each secret that is accepted no longer
//! a node keeps what it needs to know such a handshake and to seal an answer of the size of a cookie: that, with the epoch
//! of today in it, is the answer. Message 1 opens without the secret, so the member is known by its own key.
//!
//! A node that was removed gets such an answer too, with a word in place of the epoch. It is no proof, since every member
//! has the secret; whoever reads it tells a person, and does nothing.

use weave_model::{Drop, NodeId};

use super::{Sessions, cookie_header};
use crate::keys::OldSecret;
use crate::noise::ik::{Opening, Responder};
use crate::noise::mac::{self, Checked};
use crate::session::SessionEvent;
use crate::session::attempt::REMOVED;
use crate::session::limits::Rate;
use crate::time::Now;
use crate::way::Way;
use crate::wire::Header;

/// Handshakes by a secret that is accepted no longer and that are answered.
pub(super) const TURNED_AWAY: Rate = Rate {
    per_second: 16,
    burst: 64,
};

impl Sessions {
    /// Who begins a handshake by one of these is told that it is accepted no longer. Counts from the next
    /// [`Sessions::set_cluster`] on.
    pub fn set_old_secrets(&mut self, old: Vec<OldSecret>) {
        self.local.old = old;
    }

    /// Tells a member that the secret by which it wants a session is accepted no longer: a cookie reply under that secret
    /// which names the epoch of today.
    pub(super) fn turn_away(
        &mut self,
        datagram: &[u8],
        opening: Opening,
        from: Way,
        now: Now,
    ) -> Result<(), Drop> {
        let mut rng = self.local.fork();
        let mut all = self.local.old.iter();
        let old = all.find(|old| old.epoch == opening.epoch);
        let old = old.ok_or(Drop::BadHandshake)?;
        let checked = mac::check(&old.mac_key, datagram)?;
        if !self.turned_away.take(now.mono) {
            return Err(Drop::RateLimited);
        }
        let (keys, cluster) = (&self.local.keys, self.local.cluster_id());
        let responder = Responder::read(keys, cluster, opening, checked.content, &mut rng)?;
        let key = old.cookie_key.clone();
        if let Some(node) = self.refused.get(&responder.initiator).copied() {
            return self.tell_removed(node, (&checked, &key), opening, from, now);
        }
        let peer = *self
            .by_key
            .get(&responder.initiator)
            .ok_or(Drop::BadHandshake)?;
        let header = Header {
            counter: u64::from(self.local.newest_epoch()),
            ..cookie_header(opening)
        };
        let reply = self
            .gate
            .ask(&checked, &key, header, from, &mut rng, now.mono);
        self.local.transmit(from, reply);
        self.local.emit(SessionEvent::TurnedAway { peer });
        Err(Drop::OldSecret)
    }

    /// Tells a node that it was removed, by the secret by which it wants a session, as often as such answers may be given.
    pub(super) fn dismiss(
        &mut self,
        node: NodeId,
        by: (&Checked<'_>, &[u8; 32]),
        opening: Opening,
        from: Way,
        now: Now,
    ) -> Result<(), Drop> {
        if self.turned_away.take(now.mono) {
            return self.tell_removed(node, by, opening, from, now);
        }
        Err(Drop::Removed)
    }

    fn tell_removed(
        &mut self,
        node: NodeId,
        (checked, key): (&Checked<'_>, &[u8; 32]),
        opening: Opening,
        from: Way,
        now: Now,
    ) -> Result<(), Drop> {
        let mut rng = self.local.fork();
        let header = Header {
            counter: REMOVED,
            ..cookie_header(opening)
        };
        let reply = self
            .gate
            .ask(checked, key, header, from, &mut rng, now.mono);
        self.local.transmit(from, reply);
        self.local.emit(SessionEvent::Knocked { node });
        Err(Drop::Removed)
    }
}
