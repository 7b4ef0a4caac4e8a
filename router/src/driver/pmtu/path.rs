//! One path: the search for what it carries, and the watch over what was found. In the terms of RFC 8899 §5.2, the base
//! and the search are [`Phase::Top`] to [`Phase::Verify`], the search's completion [`Phase::Rest`].
//!
//! *Rounds.* Sizes are asked several at once, the largest first and at the end a probe without padding, the control. Its
//! answer says that the path and the peer are there, and as it was sent last, what was not answered by then was lost. A
//! round of which nothing comes back says nothing about sizes and is asked again, ever slower and with more controls. So
//! a conclusion takes a round trip, and waits for a timer only where the control is lost.
//!
//! *Search.* What the device carries is asked first: most paths carry it, and are known after one round trip. Otherwise
//! the room between the largest size that was answered and the smallest that was not is cut in nine by each round, until
//! nothing is left; at most five rounds from 9,000 down, to the byte. Then that smallest size is asked twice more, since
//! a single probe may have been lost for another reason. Every answer counts at once.
//!
//! *Watch.* While packets go that way, the size in use is asked every half second. It is a black hole when it is not
//! answered five times in three rounds whose controls were, and the peer has received nothing as large meanwhile: a
//! queue that overflows loses probes too, but some of the flood gets through. Where only almost as large packets did, a
//! probe of their size is sent along. A queue loses that one as often, so it takes seven rounds in which it was
//! answered alone, or fourteen if it never was. Then the floor is used at once, and the search finds what is left.
//! Where less is carried than the device takes, one byte more is asked every [`RAISE`]: an answer means that the path
//! has grown. A path that is idle and carries all that the device takes is never asked.

#![deny(clippy::disallowed_methods)]

use std::iter;
use std::time::{Duration, Instant};

use weave_model::MtuReason;

use super::{FLOOR, SILENCE};

/// Between confirmations of the size in use, while packets are sent.
const CONFIRM: Duration = Duration::from_millis(500);
/// Between the rounds that suspect a black hole, so that one burst of losses does not make one.
const SUSPECT: Duration = Duration::from_millis(100);
/// How many rounds in a row must miss the size in use.
const MISSES: u32 = 3;
/// And how many while almost as large packets get through: more likely a queue that overflows than a path that shrank by
/// so little. A round in which a probe of that size got through counts for [`COMPARED`].
const MORE_MISSES: u32 = 14;
const COMPARED: u32 = 2;
/// Between these rounds, in which a burst of losses would take both sizes.
const COMPARE: Duration = Duration::from_millis(50);
/// How long a path that carries less than its device is left alone (PMTU_RAISE_TIMER; 600 s in RFC 8899 §5.1.1, but one
/// small probe is cheaper than a path that stays slow).
const RAISE: Duration = Duration::from_secs(15);
/// How many sizes a round of the search asks.
const WAYS: u16 = 8;
/// How long an answer is waited for before anything is known of the path.
const FIRST_WAIT: Duration = Duration::from_millis(300);
/// Bounds of that wait afterwards.
const WAIT: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));
/// The longest wait when nothing is ever answered.
const LONGEST_WAIT: Duration = Duration::from_secs(10);
/// For how many rounds of which nothing was heard a path counts as used although nothing is sent any more: who gets no
/// answer sends ever less.
const PATIENCE: u32 = 6;
/// How many controls a round sends after one of which nothing was heard, until a lane may be given up: where a queue
/// overflows some get through, on a lane that is stopped none does.
const MORE_CONTROLS: usize = 4;
/// How many probes may be unanswered and still count when an answer comes.
const REMEMBERED: usize = 32;

/// What became of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// Nothing new.
    Same,
    /// The size in use does not pass any more.
    BlackHole {
        /// That size, in bytes of packet.
        was: u16,
    },
    /// Not even the controls are answered, though packets are sent.
    Silent {
        /// For how many rounds.
        rounds: u32,
        /// When the last of them began.
        since: Instant,
    },
}

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Does what the device carries pass?
    Top,
    /// Which sizes between the two bounds do?
    Search,
    /// Does the upper bound really not?
    Verify,
    /// Nothing.
    Rest,
    /// Does the upper bound pass by now?
    Raise,
    /// Does the size in use still pass, which so many rounds have missed?
    Confirm { missed: u32 },
}

/// Probes on their way.
#[derive(Debug)]
struct Round {
    controls: Vec<u32>,
    heard: bool,
    /// The sizes that are not answered.
    open: Vec<u16>,
    /// The largest that is.
    passed: u16,
    began: Instant,
    ends: Instant,
}

#[derive(Clone, Copy, Debug)]
struct Sent {
    id: u32,
    /// Bytes of packet; 0 for a control.
    size: u16,
    at: Instant,
}

/// See the module. Sizes are bytes of IP packet.
#[derive(Debug)]
pub(super) struct Path {
    top: u16,
    size: u16,
    /// The smallest size that was not answered; `top + 1` if there is none.
    high: u16,
    /// What passed before the last black hole; 0 without one, and when the path has grown since.
    fell_from: u16,
    proved: bool,
    phase: Phase,
    round: Option<Round>,
    next: Option<Instant>,
    raise: Instant,
    confirmed: Instant,
    answered: Option<Instant>,
    sent: Vec<Sent>,
    wait: Wait,
    voids: u32,
    used: bool,
    /// It counts as used for less than so many rounds of which nothing is heard.
    patience: u32,
    /// The largest packet that the peer received since the first miss, if it is almost as large as the size in use;
    /// otherwise 0.
    almost: u16,
}

impl Path {
    /// A path of which nothing is known but what its device carries.
    pub(super) const fn new(top: u16, now: Instant) -> Self {
        Self {
            top,
            size: FLOOR,
            high: top + 1,
            fell_from: 0,
            proved: false,
            phase: Phase::Top,
            round: None,
            next: Some(now),
            raise: now,
            confirmed: now,
            answered: None,
            sent: Vec::new(),
            wait: Wait::UNKNOWN,
            voids: 0,
            used: false,
            patience: 0,
            almost: 0,
        }
    }

    /// The largest packet that may be sent, and how that is known.
    pub(super) const fn found(&self) -> (u16, MtuReason) {
        let reason = if self.proved && self.size == self.top {
            MtuReason::Interface
        } else if self.size < self.fell_from {
            MtuReason::BlackHole
        } else if self.size > FLOOR {
            MtuReason::Probed
        } else {
            MtuReason::Floor
        };
        (self.size, reason)
    }

    /// The device carries something else now.
    pub(super) fn set_top(&mut self, top: u16, now: Instant) {
        if top == self.top {
            return;
        }
        self.top = top;
        self.size = self.size.min(top);
        self.high = top + 1;
        self.fell_from = 0;
        self.round = None;
        self.begin(Phase::Top, now);
    }

    /// Asks at once what was waited for: there is reason to believe that the path has come back.
    pub(super) fn hurry(&mut self, now: Instant) {
        if std::mem::take(&mut self.voids) > 0 {
            self.round = None;
            self.next = Some(now);
        }
    }

    /// When a probe was answered last.
    pub(super) const fn last_answer(&self) -> Option<Instant> {
        self.answered
    }

    /// Looks whether packets are sent, and has the size in use confirmed if it is time. `used` says so and forgets it.
    pub(super) fn look(&mut self, used: impl FnOnce() -> bool, now: Instant) {
        let waits = self.phase == Phase::Rest || self.voids > 0;
        if !waits || now.saturating_duration_since(self.confirmed) < CONFIRM {
            return;
        }
        if used() {
            (self.used, self.patience) = (true, self.voids + PATIENCE);
        } else {
            self.used &= (1..self.patience).contains(&self.voids);
        }
        if !self.used {
            return;
        }
        self.doubt(now);
        if let Some(round) = &mut self.round {
            round.ends = round.ends.min(now + WAIT.1);
        }
    }

    /// Has the size in use confirmed: there is reason to believe that the path has changed.
    pub(super) fn doubt(&mut self, now: Instant) {
        if self.phase == Phase::Rest {
            self.begin(Phase::Confirm { missed: 0 }, now);
        }
    }

    /// A probe was answered, by a peer that lately received a packet of `largest` bytes over this path.
    pub(super) fn answered(&mut self, id: u32, largest: u16, now: Instant) {
        let Some(at) = self.sent.iter().position(|sent| sent.id == id) else {
            return;
        };
        let Sent { size, at, .. } = self.sent.remove(at);
        self.wait.sample(now.saturating_duration_since(at));
        (self.voids, self.answered) = (0, Some(now));
        // What the first round hears of may have passed before the path changed; what came after that has not.
        if matches!(self.phase, Phase::Confirm { missed: 1.. }) {
            if u32::from(largest) * 8 >= u32::from(self.size) * 7 {
                self.almost = self.almost.max(largest);
            }
            if largest >= self.size {
                self.confirmed = now;
                self.round = None;
                self.rest();
            }
        }
        if size >= self.size {
            self.confirmed = now;
            self.size = size.min(self.top);
            self.proved = true;
            if matches!(self.phase, Phase::Confirm { .. }) {
                self.round = None;
                self.rest();
            }
        }
        if self.phase == Phase::Raise && size >= self.high {
            self.fell_from = 0;
        }
        if size >= self.high {
            self.high = self.top + 1;
        }
        if self.phase == Phase::Rest && self.size == self.top {
            self.rest();
        } else if self.phase == Phase::Rest && self.high > self.top {
            self.begin(Phase::Search, now);
        }
        let Some(round) = &mut self.round else { return };
        if round.controls.contains(&id) {
            round.heard = true;
            round.ends = round.ends.min(now + self.wait.grace());
        } else if let Some(at) = round.open.iter().position(|open| *open == size) {
            round.open.remove(at);
            round.passed = round.passed.max(size);
        }
        if round.open.iter().all(|open| *open <= round.passed) {
            round.ends = now;
        }
    }

    /// Ends the round whose time is over and begins the next one: the probes to send, by id and size, 0 for a control.
    pub(super) fn handle_timeout(
        &mut self,
        last_id: &mut u32,
        now: Instant,
    ) -> (Fate, Vec<(u32, u16)>) {
        let mut fate = Fate::Same;
        if let Some(round) = self.round.take_if(|round| round.ends <= now) {
            fate = self.conclude(&round, now);
        }
        if self.round.is_some() || self.next.is_none_or(|next| next > now) {
            return (fate, Vec::new());
        }
        if self.phase == Phase::Rest {
            self.phase = Phase::Raise;
        }
        (fate, self.ask(last_id, now))
    }

    /// When [`Path::handle_timeout`] has something to do.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.round
            .as_ref()
            .map_or(self.next, |round| Some(round.ends))
    }

    fn ask(&mut self, last_id: &mut u32, now: Instant) -> Vec<(u32, u16)> {
        let open = self.sizes();
        let silent = (1..=SILENCE).contains(&self.voids);
        let controls = if silent { MORE_CONTROLS } else { 1 };
        let sizes = open.iter().copied().chain(iter::repeat_n(0, controls));
        let probes = sizes.map(|size| {
            *last_id = last_id.wrapping_add(1);
            (*last_id, size)
        });
        let probes: Vec<(u32, u16)> = probes.collect();
        let sent = |&(id, size): &(u32, u16)| Sent { id, size, at: now };
        self.sent.extend(probes.iter().map(sent));
        let old = self.sent.len().saturating_sub(REMEMBERED);
        self.sent.drain(..old);
        self.next = None;
        self.round = Some(Round {
            controls: probes[open.len()..].iter().map(|(id, _)| *id).collect(),
            heard: false,
            open,
            passed: 0,
            began: now,
            ends: now + self.wait.long(self.voids, self.used),
        });
        probes
    }

    /// What the phase asks, the largest size first.
    fn sizes(&self) -> Vec<u16> {
        match self.phase {
            Phase::Top if self.proved || self.top == FLOOR => vec![self.top],
            Phase::Top => vec![self.top, FLOOR],
            Phase::Search => {
                let room = self.high - self.size;
                let ways = WAYS.min(room - 1);
                let size = |part: u16| {
                    let step = u32::from(room) * u32::from(part) / u32::from(ways + 1);
                    self.size + step as u16
                };
                (1..=ways).rev().map(size).collect()
            }
            Phase::Verify => vec![self.high; 2],
            Phase::Raise => vec![self.high],
            Phase::Rest | Phase::Confirm { missed: 0 } => vec![self.size],
            Phase::Confirm { .. } if self.almost == 0 => vec![self.size; 2],
            Phase::Confirm { .. } => vec![self.size, self.size, self.size, self.almost],
        }
    }

    fn conclude(&mut self, round: &Round, now: Instant) -> Fate {
        if !round.heard && round.passed == 0 {
            return self.unheard(round.began, now);
        }
        let above = round.passed.max(self.size);
        if let Some(&missed) = round.open.iter().filter(|size| **size > above).min() {
            self.high = self.high.min(missed);
        }
        match self.phase {
            // An answer would have ended it.
            Phase::Confirm { missed } => {
                let compared = self.almost > 0 && round.passed >= self.almost;
                return self.suspect(missed + if compared { COMPARED } else { 1 }, now);
            }
            Phase::Raise if round.passed == 0 => {
                self.raise = now + RAISE;
                self.rest();
            }
            Phase::Raise => self.begin(Phase::Top, now),
            _ if self.size == self.top => self.rest(),
            Phase::Verify if self.high == self.size + 1 => {
                self.raise = now + RAISE;
                self.rest();
            }
            _ if self.high == self.size + 1 => self.begin(Phase::Verify, now),
            _ => self.begin(Phase::Search, now),
        }
        Fate::Same
    }

    /// Nothing came back: the same again.
    fn unheard(&mut self, since: Instant, now: Instant) -> Fate {
        self.voids += 1;
        self.next = Some(now);
        if self.used {
            let rounds = self.voids;
            Fate::Silent { rounds, since }
        } else {
            Fate::Same
        }
    }

    /// The size in use was missed once more.
    fn suspect(&mut self, missed: u32, now: Instant) -> Fate {
        if missed == 1 {
            self.almost = 0;
        }
        let (misses, pause) = if self.almost > 0 {
            (MORE_MISSES, COMPARE)
        } else {
            (MISSES, SUSPECT)
        };
        if missed < misses {
            self.begin(Phase::Confirm { missed }, now + pause);
            return Fate::Same;
        }
        if self.size == FLOOR {
            self.rest();
            return Fate::Same;
        }
        let was = self.size;
        (self.size, self.high, self.fell_from) = (FLOOR, was, was);
        // What was sent before may have passed before.
        self.sent.clear();
        self.begin(Phase::Search, now);
        Fate::BlackHole { was }
    }

    const fn begin(&mut self, phase: Phase, at: Instant) {
        self.phase = phase;
        self.next = Some(at);
    }

    fn rest(&mut self) {
        self.phase = Phase::Rest;
        self.next = (self.size < self.top).then_some(self.raise);
    }
}

/// How long answers take (RFC 6298 section 2, with a shorter least wait: a probe that is repeated costs little).
#[derive(Clone, Copy, Debug)]
struct Wait {
    smooth: Option<Duration>,
    spread: Duration,
}

impl Wait {
    const UNKNOWN: Self = Self {
        smooth: None,
        spread: Duration::ZERO,
    };

    fn sample(&mut self, sample: Duration) {
        let Some(smooth) = &mut self.smooth else {
            (self.smooth, self.spread) = (Some(sample), sample / 2);
            return;
        };
        self.spread = (self.spread * 3 + smooth.abs_diff(sample)) / 4;
        *smooth = (*smooth * 7 + sample) / 8;
    }

    /// How long to wait for a round of which nothing is heard, after so many of these.
    fn long(&self, voids: u32, used: bool) -> Duration {
        let wait = self.smooth.map_or(FIRST_WAIT, |smooth| {
            (smooth + self.spread * 4).clamp(WAIT.0, WAIT.1)
        });
        let longest = if used { WAIT.1 } else { LONGEST_WAIT };
        (wait * (1 << voids.min(10))).min(longest)
    }

    /// How long to wait for the answers to what was sent before a control that was answered.
    fn grace(&self) -> Duration {
        Duration::from_millis(10) + self.spread * 2
    }
}
