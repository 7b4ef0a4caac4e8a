//! Has a story happen, and holds every step of it against the model.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use rand::SeedableRng;
use rand::rngs::StdRng;
use weave_model::Token;
use weave_router::core::Core;
use weave_router::core::command::{Command, Reply};
use weave_router::wire::{Header, Type};

use crate::check::{Container, Model};
use crate::lies;
use crate::net::{Answer, Crash, Net};
use crate::story::{Act, Story};

/// Between two looks at what is not looked at after each step: answers, what is over, who is to be trusted again.
const SLICE: Duration = Duration::from_millis(500);
/// Datagrams in one [`SLICE`] from which on a run counts as a storm. Windows that a story fills on purpose are not counted,
/// nor is the first exchange, in which everybody tells everybody of everybody.
const STORM: u64 = 30_000;
/// And so many more for each triple of nodes, for each tells each of each.
const STORM_EACH: u64 = 2;
/// How long a doubtful node has to be connected with everybody before it should know.
const TOLD: Duration = Duration::from_secs(10);
/// How long it may take at the end until all is well again.
const PATIENCE: Duration = Duration::from_secs(30 * 60);
/// How long the secret before is good: longer than any story, so that nobody who was away misses it.
const OVERLAP: Duration = Duration::from_secs(24 * 3600);
/// How long a node waits at the end before it tries again to join.
const REJOIN: Duration = Duration::from_secs(45);
/// How many datagrams there are in a window, and a few more.
const WINDOW: usize = 8192 + 8;
/// How often a whole window is sent in one story.
const MAX_WINDOWS: u32 = 2;

/// What a run came to that broke no promise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// A hash of every datagram and every save, with their times.
    pub trace: u64,
    /// How much time passed there.
    pub time: Duration,
    /// How many events there were.
    pub events: u64,
    /// How many datagrams were sent.
    pub datagrams: u64,
    /// How many addresses were given to containers.
    pub addresses: u64,
}

/// What a run came to that broke one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// When, from the start.
    pub at: Duration,
    /// Which promise.
    pub what: String,
}

impl Failure {
    /// What kind of break it is: what it says, without names and numbers.
    pub fn kind(&self) -> String {
        let words = self.what.split_whitespace();
        let plain = words.filter(|word| !word.contains(|c: char| c.is_ascii_digit()));
        plain.take(4).collect::<Vec<_>>().join(" ")
    }
}

/// Something that ends a trouble.
#[derive(Debug)]
enum Over {
    Cut(Vec<(usize, usize)>),
    Slow(usize),
    Full(usize),
    Start(usize),
    Clone(usize, usize),
    Leave(usize),
}

/// What a command was for.
#[derive(Debug)]
enum Asked {
    Attach(Container),
    Detach(Container, Instant),
    Remove(usize),
    Leave(usize),
    Join,
}

struct World {
    net: Net,
    model: Model,
    rng: StdRng,
    token: Token,
    asked: BTreeMap<(usize, u64), Asked>,
    over: Vec<(Instant, Over)>,
    /// For how long a node will be down that is about to crash.
    down: BTreeMap<usize, Duration>,
    starting: BTreeSet<usize>,
    /// Since when a doubtful node is connected with everybody.
    steady: BTreeMap<usize, Instant>,
    /// What was cut, each as often as it is.
    cuts: BTreeMap<(usize, usize), u32>,
    captured: Vec<(usize, usize, Vec<u8>)>,
    joining: BTreeMap<usize, Instant>,
    /// What two processes with one identity were given, and one of them did not know, may be nobody's.
    doubled: bool,
    /// A disk was put back, or a node crashed before it answered: a removal may be forgotten, or never have been one.
    unsure: bool,
    windows: u32,
    containers: u64,
    given: u64,
}

/// Plays a story to its end.
///
/// # Errors
/// The first promise that was broken, a panic anywhere in it included.
pub fn play(story: &Story) -> Result<Outcome, Failure> {
    let mut at = Duration::ZERO;
    let played = catch_unwind(AssertUnwindSafe(|| {
        let mut world = World::new(story);
        let result = world.play(story);
        at = world.net.age();
        result.map(|()| Outcome {
            trace: world.net.trace(),
            time: world.net.age(),
            events: world.net.events,
            datagrams: world.net.sent.0,
            addresses: world.given,
        })
    }));
    match played {
        Ok(result) => result.map_err(|what| Failure { at, what }),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
            let what = format!("panic: {}", text.unwrap_or_default());
            Err(Failure { at, what })
        }
    }
}

impl World {
    fn new(story: &Story) -> Self {
        let mut net = Net::new(story.seed, story.nodes);
        net.watched = false;
        net.init(0, story.range);
        let token = net.token_for(0, 10_000, Duration::from_secs(300 * 24 * 3600));
        // No disk is put back to before the token was made: nobody could join by it.
        net.nodes[0].copies.clear();
        let mut model = Model::default();
        for (_, _, act) in &story.acts {
            if let Act::Lie(liar, ..) = act {
                net.nodes[*liar].listens = true;
                model.liars.insert(*liar);
            }
        }
        Self {
            net,
            model,
            rng: StdRng::seed_from_u64(story.seed ^ 0x9e37_79b9),
            token,
            asked: BTreeMap::new(),
            over: Vec::new(),
            down: BTreeMap::new(),
            starting: BTreeSet::new(),
            steady: BTreeMap::new(),
            cuts: BTreeMap::new(),
            captured: Vec::new(),
            joining: BTreeMap::new(),
            doubled: false,
            unsure: false,
            windows: 0,
            containers: 0,
            given: 0,
        }
    }

    fn play(&mut self, story: &Story) -> Result<(), String> {
        let start = self.net.now.mono;
        for (_, at, act) in &story.acts {
            self.run_to(start + *at)?;
            self.act(act);
            self.model.look(&mut self.net)?;
        }
        self.run_to(start + story.time)?;
        self.recover(story)
    }

    fn run_to(&mut self, end: Instant) -> Result<(), String> {
        while self.net.now.mono < end {
            let slice = end.min(self.net.now.mono + SLICE);
            let storm = STORM + STORM_EACH * (self.net.nodes.len() as u64).pow(3);
            let most = self.net.sent.0 + storm;
            while self.net.step(slice) {
                self.model.look(&mut self.net)?;
                if self.net.sent.0 > most {
                    return Err(format!("a storm: {storm} datagrams within {SLICE:?}"));
                }
            }
            self.tidy()?;
        }
        Ok(())
    }

    /// What is not looked at after each step.
    fn tidy(&mut self) -> Result<(), String> {
        self.take_answers()?;
        let now = self.net.now.mono;
        for n in 0..self.net.nodes.len() {
            let dead = self.net.nodes[n].core.is_none() && !self.net.gone.contains(&n);
            if dead && self.starting.insert(n) {
                let down = self.down.remove(&n).unwrap_or(Duration::from_secs(1));
                self.over.push((now + down, Over::Start(n)));
                self.forget_asked(n);
            }
        }
        let (due, later) = std::mem::take(&mut self.over)
            .into_iter()
            .partition(|(at, _)| *at <= now);
        self.over = later;
        let due: Vec<(Instant, Over)> = due;
        due.into_iter().try_for_each(|(_, over)| self.end(over))?;
        self.regain_trust();
        self.model.look(&mut self.net)
    }

    /// A node is down: what it was asked for is not answered any more.
    fn forget_asked(&mut self, n: usize) {
        let removal = |asked: &Asked| matches!(asked, Asked::Remove(_));
        let mut theirs = self.asked.iter().filter(|((at, _), _)| *at == n);
        self.unsure |= theirs.any(|(_, asked)| removal(asked));
        self.asked.retain(|(at, _), _| *at != n);
    }

    fn take_answers(&mut self) -> Result<(), String> {
        for n in 0..self.net.nodes.len() {
            self.net.nodes[n].controls.clear();
            for (command, answer) in std::mem::take(&mut self.net.nodes[n].answers) {
                if let Some(asked) = self.asked.remove(&(n, command)) {
                    self.take_answer(asked, answer)?;
                }
            }
        }
        Ok(())
    }

    fn take_answer(&mut self, asked: Asked, answer: Answer) -> Result<(), String> {
        match (asked, answer) {
            (Asked::Attach(container), Ok(Reply::Address(offset))) => {
                self.given += 1;
                self.model.given(&mut self.net, container, offset)?;
            }
            (Asked::Detach(container, at), Ok(Reply::Released(offset))) => {
                self.model.released(&container, offset, at);
            }
            (Asked::Leave(n), Ok(Reply::Left { .. })) => {
                self.model.empty(n);
                self.model.reborn(n);
                self.joining.remove(&n);
            }
            (Asked::Remove(n), Err(_)) => self.model.reborn(n),
            _ => {}
        }
        Ok(())
    }

    fn end(&mut self, over: Over) -> Result<(), String> {
        match over {
            Over::Cut(ways) => {
                for way in ways {
                    let left = self.cuts.entry(way).or_insert(1);
                    *left -= 1;
                    if *left == 0 {
                        self.cuts.remove(&way);
                        self.net.cut.remove(&way);
                    }
                }
            }
            Over::Slow(n) => self.net.nodes[n].slow = Duration::ZERO,
            Over::Full(n) => self.net.nodes[n].disk_full = false,
            Over::Start(n) => {
                self.starting.remove(&n);
                self.net.start(n);
                let doubtful = self.model.doubtful().contains(&n);
                if self.net.nodes[n].core.is_some() && !doubtful {
                    self.model.started(&self.net, n)?;
                }
            }
            Over::Clone(n, copy) => {
                self.net.kill(copy, false);
                self.net.nodes[copy].disk = None;
                self.net.nodes[copy].changed = true;
                self.steady.remove(&n);
                // It gave way to the other one, as it should if that one is older; only a new start ends that.
                if self.net.nodes[n].core.is_some() {
                    self.net.crash(n);
                }
            }
            Over::Leave(n) => {
                if self.net.nodes[n].core.is_some() {
                    let command = self.net.command(n, Command::Leave { force: false });
                    self.asked.insert((n, command), Asked::Leave(n));
                }
            }
        }
        Ok(())
    }

    /// A doubtful node that was connected with everybody for a while should know what it is.
    fn regain_trust(&mut self) {
        let now = self.net.now.mono;
        for n in self.model.doubtful() {
            let twin = self
                .over
                .iter()
                .any(|(_, over)| matches!(over, Over::Clone(of, copy) if *of == n || *copy == n));
            if twin || !self.is_connected(n) {
                self.steady.remove(&n);
                continue;
            }
            let since = *self.steady.entry(n).or_insert(now);
            if now.saturating_duration_since(since) >= TOLD {
                self.steady.remove(&n);
                self.model.trust(&mut self.net, n);
            }
        }
    }

    /// Whether a node has a session with every living member.
    fn is_connected(&mut self, n: usize) -> bool {
        if self.net.gone.contains(&n) || self.net.nodes[n].core.is_none() {
            return self.net.gone.contains(&n);
        }
        let view = self.net.view(n);
        (0..self.net.nodes.len()).all(|m| {
            if m == n || self.net.gone.contains(&m) || self.model.is_removed(m) {
                return true;
            }
            let id = self.net.nodes[m].core.as_ref().map(Core::id);
            let member = id.and_then(|id| view.member(id));
            match member {
                Some(member) => member.connected,
                None => id.is_some() && !self.is_member(m),
            }
        })
    }

    /// Whether a node that runs is in the cluster.
    fn is_member(&mut self, n: usize) -> bool {
        self.net.nodes[n].core.is_some() && self.net.view(n).cluster.is_some()
    }

    /// Whether a node runs and is not stopped.
    fn is_up(&self, n: usize) -> bool {
        let (node, now) = (&self.net.nodes[n], self.net.now.mono);
        node.core.is_some() && node.frozen.is_none_or(|until| until <= now)
    }

    fn act(&mut self, act: &Act) {
        let now = self.net.now.mono;
        match *act {
            Act::Join(n) => self.join(n),
            Act::Attach(n, count) if self.is_up(n) => {
                (0..count).for_each(|_| self.attach(n));
            }
            Act::Detach(n, count) if self.is_up(n) => self.detach(n, count.into()),
            Act::Crash(n, Crash::Now, down) if self.is_up(n) => {
                self.down.insert(n, down);
                self.net.crash(n);
            }
            Act::Crash(n, at, down) if self.is_up(n) => {
                self.down.insert(n, down);
                self.net.nodes[n].crash = Some(at);
            }
            Act::RollBack(n, by) => self.roll_back(n, by.into()),
            Act::Clone(n, time) if self.is_up(n) && self.is_member(n) => self.double(n, time),
            Act::Deaf(n, of, time) => self.cut(vec![(of, n)], time),
            Act::Apart(n, of, time) => self.cut(vec![(of, n), (n, of)], time),
            Act::Split(half, time) => {
                let side = |n: usize| half >> (n % 64) & 1;
                let count = self.net.nodes.len();
                let all = (0..count).flat_map(|a| (0..count).map(move |b| (a, b)));
                self.cut(all.filter(|(a, b)| side(*a) != side(*b)).collect(), time);
            }
            Act::Weather(loss, doubled, delay) => {
                (self.net.loss, self.net.doubled, self.net.delay) = (loss, doubled, delay);
            }
            Act::Slow(n, by, time) => {
                self.net.nodes[n].slow = by;
                self.over.push((now + time, Over::Slow(n)));
            }
            Act::Freeze(n, time) => self.net.freeze(n, now + time),
            Act::Clock(n, by) => {
                self.net.nodes[n].skew += by;
                self.model.forget_rests(n);
            }
            Act::Full(n, time) => {
                self.net.nodes[n].disk_full = true;
                self.over.push((now + time, Over::Full(n)));
            }
            _ => self.act_of_members(act),
        }
    }

    /// What members do to one another, and what strangers do.
    fn act_of_members(&mut self, act: &Act) {
        let now = self.net.now.mono;
        match *act {
            Act::Remove(n) if self.is_up(0) && self.is_member(n) && !self.model.is_removed(n) => {
                let node = self.net.nodes[n].core().id().to_string();
                self.model.removed(n);
                let command = Command::Remove { node, heir: None };
                let command = self.net.command(0, command);
                self.asked.insert((0, command), Asked::Remove(n));
            }
            Act::Leave(n) if self.is_up(n) => {
                self.detach(n, usize::MAX);
                self.over
                    .push((now + Duration::from_secs(1), Over::Leave(n)));
            }
            Act::Rotate if self.is_up(0) => {
                let overlap = OVERLAP;
                self.net.command(0, Command::SecretRotate { overlap });
            }
            Act::Lie(n, to, lie) => {
                lies::tell(&mut self.net, n, to, lie, &mut self.rng);
            }
            Act::Replay(n, to) => self.replay(n, to),
            _ => {}
        }
    }

    fn join(&mut self, n: usize) {
        let now = self.net.now.mono;
        let busy = |at: &Instant| now < *at + REJOIN;
        if self.net.nodes[n].core.is_none() || self.joining.get(&n).is_some_and(busy) {
            return;
        }
        if !self.is_member(n) {
            // It left, whether the answer came or not.
            self.model.reborn(n);
        }
        if self.model.is_removed(n) {
            self.model.empty(n);
            let command = self.net.command(n, Command::Leave { force: true });
            self.asked.insert((n, command), Asked::Leave(n));
        } else if !self.is_member(n) {
            self.joining.insert(n, now);
            let (token, taken) = (self.token.clone(), vec![]);
            let command = self.net.command(n, Command::Join { token, taken });
            self.asked.insert((n, command), Asked::Join);
        }
    }

    /// Whoever let a node in may have forgotten it before they spoke: its disk was put back. Nobody knows the node then;
    /// whoever joined it has it leave and join again.
    fn begin_anew_if_forgotten(&mut self, n: usize) {
        let now = self.net.now.mono;
        let busy = |at: &Instant| now < *at + REJOIN;
        if self.joining.get(&n).is_some_and(busy) || !self.is_member(n) {
            return;
        }
        let view = self.net.view(n);
        if view.members.is_empty() && view.mine.is_empty() {
            self.joining.insert(n, now);
            self.model.empty(n);
            let command = self.net.command(n, Command::Leave { force: true });
            self.asked.insert((n, command), Asked::Leave(n));
        }
    }

    /// The only member that knew of a removal may have forgotten it, if it had saved it at all. Whom all living members
    /// still name, though there is no such node any more, is removed once more.
    fn remove_again(&mut self) {
        if !self.unsure || !self.is_up(0) {
            return;
        }
        let all = 0..self.net.nodes.len();
        let alive = all.filter(|n| !self.net.gone.contains(n));
        let alive: Vec<usize> = alive
            .filter(|n| self.net.nodes[*n].core.is_some())
            .collect();
        let ids: Vec<_> = alive
            .iter()
            .map(|n| self.net.nodes[*n].core().id())
            .collect();
        let mut lost: BTreeSet<_> = self.net.view(0).members.iter().map(|m| m.id).collect();
        lost.retain(|id| !ids.contains(id));
        for n in alive {
            if self.is_member(n) {
                let view = self.net.view(n);
                lost.retain(|id| view.member(*id).is_some());
            }
        }
        for node in lost {
            let node = node.to_string();
            self.net.command(0, Command::Remove { node, heir: None });
        }
    }

    fn attach(&mut self, n: usize) {
        if self.net.nodes[n].core.is_none() {
            return;
        }
        self.containers += 1;
        let (id, want) = (format!("c{}", self.containers), None);
        let container = (n, id.clone());
        self.model.asks(&container);
        let command = self.net.command(
            n,
            Command::Allocate {
                id,
                want,
                among: Vec::new(),
                area: None,
            },
        );
        self.asked.insert((n, command), Asked::Attach(container));
    }

    fn detach(&mut self, n: usize, most: usize) {
        for container in self.model.containers(n, most) {
            if self.net.nodes[n].core.is_none() {
                return;
            }
            self.model.asks(&container);
            let id = container.1.clone();
            let command = self.net.command(n, Command::Release { id });
            let asked = Asked::Detach(container, self.net.now.mono);
            self.asked.insert((n, command), asked);
        }
    }

    fn roll_back(&mut self, n: usize, by: usize) {
        let node = &self.net.nodes[n];
        let Some(at) = node.copies.len().checked_sub(by) else {
            return;
        };
        let copy = node.copies[at].clone();
        if !self.is_member(n) || !self.net.knows_all_by(n, &copy) {
            return;
        }
        self.unsure = true;
        self.net.kill(n, false);
        self.net.nodes[n].disk = Some(copy);
        self.net.nodes[n].copies.clear();
        self.model.doubt(n);
        self.model.empty(n);
        self.steady.remove(&n);
        self.asked.retain(|(at, _), _| *at != n);
        self.net.start(n);
        self.mistrust_leases(n);
    }

    /// What the disk says of containers counts for nothing.
    fn mistrust_leases(&mut self, n: usize) {
        let leases = self.net.nodes[n].core().leases();
        for (id, _) in leases {
            self.model.asks(&(n, id));
        }
    }

    fn double(&mut self, n: usize, time: Duration) {
        self.doubled = true;
        let copy = self.net.add();
        self.net.gone.insert(copy);
        let (disk, name) = (
            self.net.nodes[n].disk.clone(),
            self.net.nodes[n].name.clone(),
        );
        let skew = self.net.nodes[n].skew;
        let node = &mut self.net.nodes[copy];
        (node.disk, node.name, node.skew) = (disk, name, skew);
        self.model.doubt(n);
        self.model.doubt(copy);
        self.net.start(copy);
        if self.net.nodes[copy].core.is_some() {
            self.mistrust_leases(copy);
        }
        let until = self.net.now.mono + time.max(Duration::from_secs(1));
        self.over.push((until, Over::Clone(n, copy)));
    }

    fn cut(&mut self, ways: Vec<(usize, usize)>, time: Duration) {
        for way in &ways {
            *self.cuts.entry(*way).or_default() += 1;
            self.net.cut.insert(*way);
        }
        self.over.push((self.net.now.mono + time, Over::Cut(ways)));
    }

    /// Sends again what went from one node to another: all that was captured before, and around the edges of the window
    /// what is sent now to fill it.
    fn replay(&mut self, n: usize, to: usize) {
        let old = std::mem::take(&mut self.captured);
        for (from, to, bytes) in old {
            self.net.put(from, to, bytes);
        }
        let Some(peer) = self.net.nodes[to].core.as_ref().map(Core::id) else {
            return;
        };
        let whole = self.windows < MAX_WINDOWS;
        self.windows += u32::from(whole);
        let count = if whole { WINDOW } else { 20 };
        let (now, place) = (self.net.clock(n), self.net.nodes[to].address);
        if self.net.nodes[n].core.is_none() {
            return;
        }
        self.net.watched = true;
        self.net.seen.clear();
        for _ in 0..count {
            let core = self.net.nodes[n].core.as_mut().unwrap();
            core.send_control(peer, &[200], now);
        }
        self.net.pump(n);
        self.net.watched = false;
        let seen = std::mem::take(&mut self.net.seen);
        let data = |bytes: &[u8]| Header::parse(bytes).is_ok_and(|h| h.kind == Type::Data);
        let sent = seen
            .into_iter()
            .filter(|(from, at, bytes)| *from == n && *at == place && data(bytes));
        let sent: Vec<Vec<u8>> = sent.map(|(_, _, bytes)| bytes).collect();
        let edges = sent.iter().take(16).chain(sent.iter().rev().take(4));
        self.captured = edges.map(|bytes| (n, to, bytes.clone())).collect();
        let later = self.net.now.mono + Duration::from_millis(400);
        for bytes in sent.iter().take(16) {
            self.net.put_at(later, n, to, bytes.clone());
        }
    }

    /// All troubles are over: all has to come right again.
    fn recover(&mut self, story: &Story) -> Result<(), String> {
        let net = &mut self.net;
        (net.loss, net.doubled, net.delay) = (0, 0, Duration::from_millis(3));
        net.cut.clear();
        self.cuts.clear();
        for node in &mut net.nodes {
            node.slow = Duration::ZERO;
            node.disk_full = false;
            node.crash = None;
        }
        let now = net.now.mono;
        for (at, over) in &mut self.over {
            if !matches!(over, Over::Cut(_)) {
                *at = now;
            }
        }
        self.over.retain(|(_, over)| !matches!(over, Over::Cut(_)));
        self.run_to(now + Duration::from_secs(5))?;
        let end = now + PATIENCE;
        loop {
            for n in 1..story.nodes {
                self.begin_anew_if_forgotten(n);
                self.join(n);
            }
            self.remove_again();
            let next = self.net.now.mono + Duration::from_secs(5);
            self.run_to(next)?;
            if self.is_well() {
                break;
            }
            if self.net.now.mono >= end {
                return Err(format!("stuck at the end: {}", self.what_is_wrong()));
            }
        }
        self.run_to(self.net.now.mono + Duration::from_secs(20))?;
        // Whatever the steps were excused for.
        let owned = u64::from(self.net.check_ownership());
        if !self.all_are_owned() || owned != self.model.total() {
            return Err(format!("at the end {}", self.what_is_wrong()));
        }
        for n in 0..story.nodes {
            if self.net.nodes[n].core.is_some() {
                self.model.check_leases(&self.net, n)?;
            }
        }
        Ok(())
    }

    fn is_well(&mut self) -> bool {
        let running = |n: usize| self.net.gone.contains(&n) || self.net.nodes[n].core.is_some();
        (0..self.net.nodes.len()).all(running)
            && self
                .model
                .doubtful()
                .iter()
                .all(|n| self.net.gone.contains(n))
            && self.net.agrees()
            && self.all_are_owned()
    }

    fn all_are_owned(&mut self) -> bool {
        let range = self.net.view(0).range;
        let all = range.map_or(0, |range| u64::from(range.size()));
        self.model.total() == all || (self.doubled && self.model.total() < all)
    }

    /// Who believes of whom what is not so.
    fn false_beliefs(&mut self) -> Vec<String> {
        let owned = self.net.ownership();
        let mut wrong = Vec::new();
        for n in 0..self.net.nodes.len() {
            if self.net.gone.contains(&n) || self.net.nodes[n].core.is_none() {
                continue;
            }
            for member in &self.net.view(n).members {
                let name = member.name.as_str();
                let place = self.net.nodes.iter().position(|node| node.name == name);
                let truth = place.map_or(&[][..], |place| &owned[place]);
                if member.blocks != truth {
                    let (who, said) = (&self.net.nodes[n].name, &member.blocks);
                    wrong.push(format!(
                        "{who} believes that {name} owns {said:?}, not {truth:?}"
                    ));
                }
            }
        }
        wrong
    }

    fn what_is_wrong(&mut self) -> String {
        let mut wrong = vec![format!("{} addresses are owned", self.model.total())];
        for n in 0..self.net.nodes.len() {
            let name = self.net.nodes[n].name.clone();
            if self.net.gone.contains(&n) {
                continue;
            }
            if self.net.nodes[n].core.is_none() {
                wrong.push(format!("{name} is down"));
                continue;
            }
            let view = self.net.view(n);
            let off = view.members.iter().filter(|member| !member.connected);
            let off: Vec<&str> = off.map(|member| member.name.as_str()).collect();
            let waits: usize = view
                .waiting
                .iter()
                .map(|waiting| waiting.silent.len())
                .sum();
            wrong.push(format!(
                "{name}: {} members, not connected {off:?}, owns {}, waits for {waits}, removed {}",
                view.members.len(),
                view.mine.iter().map(|block| block.size()).sum::<u32>(),
                view.removed
            ));
        }
        wrong.extend(self.false_beliefs());
        wrong.push(format!("doubtful {:?}", self.model.doubtful()));
        wrong.join("\n    ")
    }
}
