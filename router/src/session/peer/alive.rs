//! Whether a peer's session still serves: silence, age, wear, and what is said so that nobody takes us for dead.
//!
//! Data threads note only the time of what they send and hear. Everything else is concluded from those two numbers, on
//! a common tick, so that a thousand idle peers wake the thread no more often than one.

use std::time::{Duration, Instant};

use super::{Peer, REJECT_AFTER};
use crate::session::events::SessionEvent;
use crate::session::local::Local;
use crate::time::Now;

/// How long the peer may take to show that it has the keys.
const CONFIRM_WITHIN: Duration = Duration::from_secs(15);
/// Waits between confirmations of a new session: the first, doubled each time.
const CONFIRM_WAIT: Duration = Duration::from_millis(100);
const CONFIRM_TRIES: u32 = 6;
/// Sent, but heard nothing for so long: ask. TCP tries again 0.2, 0.6 and 1.4 s after a loss; if another way is to be in
/// use by the second time, it has to be found in the 0.4 s before.
const PROBE_AFTER: u64 = 250;
/// Sent, but heard nothing for so long: shake hands anew.
const SILENT_AFTER: u64 = 3000;
/// Heard for so long without having sent anything: say something.
const PASSIVE_KEEPALIVE: u64 = 10_000;
/// Sent nothing for so long to a peer whose session is wanted: keep the NAT's mapping.
const PERSISTENT_KEEPALIVE: u64 = 20_000;
/// Heard nothing for so long, keepalives included, from a peer whose session is wanted: shake hands anew.
const DEAF_AFTER: u64 = 45_000;
/// Neither sent nor heard for so long: a session nobody asked for may end.
const UNUSED_AFTER: u64 = 60_000;
/// All peers are looked at on common multiples of this, so that a thousand of them wake the thread no more than one; who
/// owes an answer, also when that is late.
const TICK: u64 = 200;

impl Peer {
    /// Does what is due.
    pub(in crate::session) fn handle_timeout(&mut self, local: &mut Local, now: Now) {
        let now_ms = local.start.millis(now.mono);
        self.take_up_next(local, now);
        self.expire(local, now);
        self.notice_silence(now_ms, local, now);
        if self
            .current
            .as_ref()
            .is_some_and(|current| current.inbound.last_heard_ms() > 0)
        {
            self.confirm = None;
        }
        self.say_again(local, now);
        if self.rekey_due(now_ms, now.mono) || (self.wanted && self.is_deaf(now_ms, local)) {
            self.begin(local, now);
        }
        self.step(local, now);
        let last = self.sent_ms().max(self.kept_at);
        let passive = !self.resting && self.heard_ms() >= last + PASSIVE_KEEPALIVE;
        if passive || (self.wanted && now_ms >= last + PERSISTENT_KEEPALIVE) {
            self.keepalive(local, now);
        }
    }

    /// Takes up the next session if a data thread has used it, should its word have been lost on the way here.
    fn take_up_next(&mut self, local: &mut Local, now: Now) {
        if let Some((next, asked_from)) = &self.next
            && next.inbound.last_heard_ms() > 0
        {
            self.heard(next.inbound.index(), 0, *asked_from, local, now);
        }
    }

    /// Ends what is too old.
    fn expire(&mut self, local: &mut Local, now: Now) {
        for (old, _) in self.older.extract_if(.., |(_, until)| *until <= now.mono) {
            old.end(local);
        }
        if let Some((next, _)) = self
            .next
            .take_if(|(next, _)| next.made + CONFIRM_WITHIN <= now.mono)
        {
            next.end(local);
        }
        if let Some(current) = self
            .current
            .take_if(|current| current.made + REJECT_AFTER <= now.mono)
        {
            current.end(local);
            self.confirm = None;
            self.silent_since = None;
            self.silent = false;
            if !self.wanted {
                self.settle(local);
            }
            local.emit(SessionEvent::Down { peer: self.id });
        }
    }

    fn rekey_due(&self, now_ms: u64, now: Instant) -> bool {
        let Some(current) = &self.current else {
            return false;
        };
        let recent = now_ms < self.heard_ms().max(self.sent_ms()) + UNUSED_AFTER;
        let used = self.wanted || (recent && !self.resting);
        let worn = current.outbound.most_used() >= current.outbound.limit() / 2;
        worn || (used && now >= current.rekey_at)
    }

    /// Whether there is no session, or one in which even the answers to keepalives are missing.
    fn is_deaf(&self, now_ms: u64, local: &Local) -> bool {
        self.current.as_ref().is_none_or(|current| {
            let made = local.start.millis(current.made);
            now_ms >= self.heard_ms().max(made) + DEAF_AFTER
        })
    }

    /// Asks a peer that does not answer, and shakes hands anew beside the session when that brings nothing.
    fn notice_silence(&mut self, now_ms: u64, local: &mut Local, now: Now) {
        let (sent, heard) = (self.sent_ms(), self.heard_ms());
        if self.current.is_none() || sent <= heard {
            self.silent_since = None;
            if std::mem::take(&mut self.silent) {
                local.emit(SessionEvent::Heard { peer: self.id });
            }
            return;
        }
        let since = match self.silent_since {
            Some(since) if heard < since => since,
            _ => sent,
        };
        self.silent_since = Some(since);
        let silent = now_ms.saturating_sub(since);
        if silent >= PROBE_AFTER && now_ms.saturating_sub(self.probed_at) >= PROBE_AFTER {
            self.probed_at = now_ms;
            local.emit(SessionEvent::Probe { peer: self.id });
        }
        if silent >= SILENT_AFTER {
            if !std::mem::replace(&mut self.silent, true) {
                local.emit(SessionEvent::Silent { peer: self.id });
            }
            self.begin(local, now);
        }
    }

    /// When to call [`Peer::handle_timeout`] next.
    pub(in crate::session) fn next_timeout(&self, local: &Local, now: Instant) -> Option<Instant> {
        let tick = || {
            local
                .start
                .instant((local.start.millis(now) / TICK + 1) * TICK)
        };
        let attempt = self.attempt.as_ref().map(|attempt| attempt.at);
        let confirm = self.confirm.map(|(at, _)| at);
        let session = self.sessions().next().map(|_| tick());
        let late = self.silent_since.map(|since| {
            let asked = since.max(self.probed_at);
            local.start.instant(asked + PROBE_AFTER)
        });
        let late = late.filter(|late| *late > now);
        let timers = [attempt, confirm, session, late];
        timers.into_iter().flatten().min()
    }

    /// A control message without a body: nothing but "I am here, and here are the keys".
    pub(super) fn keepalive(&mut self, local: &mut Local, now: Now) {
        if self.send_control(&[], None, local) {
            self.kept_at = local.start.millis(now.mono);
        }
    }

    /// Tells the peer once more that this node has the keys, until something is heard in the new session. If nothing ever
    /// is, the peer does not use it (it moved away, or gave it up before our word came), and another one is made.
    pub(super) fn say_again(&mut self, local: &mut Local, now: Now) {
        let Some((_, tries)) = self.confirm.filter(|(at, _)| *at <= now.mono) else {
            return;
        };
        if tries < CONFIRM_TRIES {
            self.keepalive(local, now);
            self.confirm = Some((now.mono + CONFIRM_WAIT * (1 << tries), tries + 1));
        } else {
            self.confirm = None;
            self.begin(local, now);
        }
    }
}
