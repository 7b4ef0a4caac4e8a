//! Who gets a connection: the endpoints of one port of a Service, and the choice among them.
//!
//! In this order: the endpoint where the client was, if the Service keeps clients; the one that the table of
//! [`Maglev`] has for it, if the Service asks for that; else two are drawn, and the better one is taken (Mitzenmacher,
//! "The Power of Two Choices", 2001), by open connections or by latency: two of this node, as long as the better one does
//! not have much more to do than one of another node. Those that are ejected are passed over, and those that were tried
//! for the same connection already; when nobody is left, an ejected one is better than none. One that the client's network
//! is kept apart from is none of them, however it is picked.
//!
//! At most half of the endpoints are out at a time: when more fail, the fault is likely on this side.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use weave_model::{Affinity, Balance};

use super::backend::{Backend, Counts};
use super::maglev::{Maglev, hash, mix};
use super::sticky::Sticky;
use crate::table::{Entry, Target};

/// How often is drawn anew when both of two cannot be taken, before all are looked at.
const DRAWS: u64 = 4;
/// How many times as much as elsewhere an endpoint of this node may have to do, or take.
const NEARER: u32 = 2;
/// How many clients are looked at in a turn, whether their time is over.
const FORGETS: usize = 1000;
/// Shared by all nodes.
const SEED: u64 = 0x5eed;

/// Which of an entry's two sets of endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Set {
    /// Whom policy Cluster may pick.
    Cluster,
    /// Whom policy Local may pick.
    Local,
}

/// What one endpoint is like, for people.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Seen {
    /// Where it listens.
    pub address: SocketAddr,
    /// Connections open or being made.
    pub open: u32,
    /// Its average latency, once measured.
    pub latency: Option<Duration>,
    /// Whether it is left out at the moment.
    pub ejected: bool,
    /// What happened so far.
    pub counts: Counts,
}

/// What all endpoints are like, for a summary.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sum {
    /// Connections open or being made.
    pub open: u64,
    /// Endpoints that the table has.
    pub listed: u64,
    /// How many are left out at the moment.
    pub ejected: u64,
    /// The mean of the average latencies of those that were measured.
    pub latency: Option<Duration>,
    /// The longest of them.
    pub slowest: Option<Duration>,
    /// What happened so far, endpoints that have gone included.
    pub counts: Counts,
}

/// The endpoints of one port of a Service in one family.
#[derive(Debug)]
pub struct Balancer {
    choice: Choice,
    backends: HashMap<SocketAddr, Backend>,
    sticky: Sticky,
    /// What happened to endpoints that have gone since.
    past: Counts,
}

#[derive(Debug, Default)]
struct Targets {
    all: Vec<Target>,
    /// Those of this node.
    near: Vec<Target>,
    /// Those of others.
    far: Vec<Target>,
    maglev: Maglev,
}

impl Targets {
    fn of(all: &[Target], balance: Balance) -> Self {
        let maglev = if balance == Balance::Maglev {
            let addresses: Vec<SocketAddr> = all.iter().map(|target| target.address).collect();
            Maglev::new(&addresses)
        } else {
            Maglev::default()
        };
        let (near, far) = all.iter().partition(|target| target.local);
        Self {
            all: all.to_vec(),
            near,
            far,
            maglev,
        }
    }

    /// The first in the order of this key that can be taken. Where none can, that is seen before the whole order is gone
    /// through, which is long.
    fn first_of(&self, key: u64, can: impl Fn(&Target) -> bool) -> Option<&Target> {
        let order = self.maglev.of(key);
        let mut order = order.filter_map(|number| self.all.get(number));
        let soon = order.by_ref().take(self.all.len()).find(|one| can(one));
        if soon.is_none() && !self.all.iter().any(&can) {
            return None;
        }
        soon.or_else(|| order.find(|one| can(one)))
    }
}

/// The endpoints of an entry, made ready to be chosen among. That takes a while where there are many and the choice is
/// by [`Maglev`], so it is done before anybody who chooses has to wait.
#[derive(Debug, Default)]
pub struct Choice {
    balance: Balance,
    affinity: Affinity,
    cluster: Targets,
    local: Targets,
}

impl From<&Entry> for Choice {
    fn from(entry: &Entry) -> Self {
        Self {
            balance: entry.balance,
            affinity: entry.affinity,
            cluster: Targets::of(&entry.cluster, entry.balance),
            local: Targets::of(&entry.local, entry.balance),
        }
    }
}

impl Balancer {
    /// The endpoints of an entry that was unknown so far.
    pub fn new(choice: Choice) -> Self {
        let mut new = Self {
            choice: Choice::default(),
            backends: HashMap::new(),
            sticky: Sticky::default(),
            past: Counts::NONE,
        };
        new.take(choice, None);
        new
    }

    /// The entry is so now. Endpoints that stay keep what is known of them; new ones are taken to slowly, unless all
    /// are new.
    pub fn update(&mut self, choice: Choice, now: Instant) {
        let any = self.backends.values().any(|backend| backend.listed);
        if self.choice.affinity != choice.affinity {
            self.sticky.clear();
        }
        self.take(choice, any.then_some(now));
    }

    fn take(&mut self, choice: Choice, now: Option<Instant>) {
        self.choice = choice;
        let targets = || self.choice.cluster.all.iter().chain(&self.choice.local.all);
        let listed: HashSet<SocketAddr> = targets().map(|target| target.address).collect();
        for (address, backend) in &mut self.backends {
            backend.listed &= listed.contains(address);
        }
        for target in targets() {
            let known = self.backends.entry(target.address);
            let backend = known.or_insert_with(|| Backend::new(now));
            if let Some(now) = now {
                backend.list(now);
            }
            backend.listed = true;
        }
        let past = &mut self.past;
        self.backends.retain(|_, backend| {
            let stays = backend.listed || backend.open > 0;
            if !stays {
                past.add(backend.counts);
            }
            stays
        });
    }

    /// Picks for a connection, which counts as open until [`Balancer::handle_end`], among those that the client `reaches`.
    /// `tried` are those that did not answer for it already; `draw` is a random number.
    pub fn pick(
        &mut self,
        client: SocketAddr,
        (set, reaches): (Set, impl Fn(&Target) -> bool),
        tried: &[SocketAddr],
        now: Instant,
        draw: u64,
    ) -> Option<Target> {
        let target = self.choose(client, (set, reaches), tried, now, draw)?;
        if let Affinity::ClientIp { seconds } = self.choice.affinity {
            let time = Duration::from_secs(seconds.into());
            self.sticky.keep(client.ip(), target.address, time, now);
        }
        if let Some(backend) = self.backends.get_mut(&target.address) {
            backend.open += 1;
            backend.counts.picks += 1;
        }
        if let Some(last) = tried.last().and_then(|last| self.backends.get_mut(last)) {
            last.counts.retries += 1;
        }
        Some(target)
    }

    fn choose(
        &self,
        client: SocketAddr,
        (set, reaches): (Set, impl Fn(&Target) -> bool),
        tried: &[SocketAddr],
        now: Instant,
        draw: u64,
    ) -> Option<Target> {
        let targets = self.targets(set);
        let untried = |one: &Target| !tried.contains(&one.address) && reaches(one);
        let can = |target: &Target| {
            self.backend(target).is_some_and(|b| !b.is_out(now)) && untried(target)
        };
        if let Some(kept) = self.kept(client, targets, now).filter(|kept| can(kept)) {
            return Some(kept);
        }
        let chosen = if self.choice.balance == Balance::Maglev {
            let key = match self.choice.affinity {
                Affinity::None => client,
                Affinity::ClientIp { .. } => SocketAddr::new(client.ip(), 0),
            };
            targets.first_of(hash(SEED, key), can)
        } else {
            let near = self.of_two(&targets.near, can, now, draw);
            let far = self.of_two(&targets.far, can, now, mix(draw));
            if let (Some(near), Some(far)) = (near, far) {
                let (better, other) = if self.is_too_busy(near, far, now) {
                    (far, near)
                } else {
                    (near, far)
                };
                Some(self.warm(better, other, now, mix(!draw)))
            } else {
                near.or(far)
            }
        };
        let all = &targets.all;
        chosen
            .or_else(|| first_from(below(mix(!draw), all.len()), all, untried))
            .or_else(|| first_from(below(draw, all.len()), all, &reaches))
            .copied()
    }

    const fn targets(&self, set: Set) -> &Targets {
        match set {
            Set::Cluster => &self.choice.cluster,
            Set::Local => &self.choice.local,
        }
    }

    /// Where the client was, if that may be picked.
    fn kept(&self, client: SocketAddr, targets: &Targets, now: Instant) -> Option<Target> {
        if self.choice.affinity == Affinity::None {
            return None;
        }
        let address = self.sticky.of(client.ip(), now)?;
        let same = |target: &&Target| target.address == address;
        targets.all.iter().find(same).copied()
    }

    /// The better of two that are drawn.
    fn of_two<'a>(
        &self,
        all: &'a [Target],
        can: impl Fn(&Target) -> bool,
        now: Instant,
        draw: u64,
    ) -> Option<&'a Target> {
        let mut random = draw;
        for _ in 0..DRAWS {
            random = mix(random);
            let one = below(random, all.len());
            // Another one than the first.
            let two =
                (one + 1 + below(mix(random), all.len().saturating_sub(1))) % all.len().max(1);
            let (one, two) = (all.get(one)?, all.get(two)?);
            match (can(one), can(two)) {
                (true, true) => return Some(self.better(one, two, now, mix(!random))),
                (true, false) => return Some(one),
                (false, true) => return Some(two),
                (false, false) => {}
            }
        }
        first_from(below(random, all.len()), all, can)
    }

    /// Whether one of this node has so much to do that one of another node does better.
    fn is_too_busy(&self, near: &Target, far: &Target, now: Instant) -> bool {
        let (Some(near), Some(far)) = (self.backend(near), self.backend(far)) else {
            return false;
        };
        match self.choice.balance {
            Balance::Latency => near.cost(now) > f64::from(NEARER) * far.cost_afar(now),
            Balance::Least | Balance::Maglev => near.open > NEARER * (far.open + 1),
        }
    }

    fn better<'a>(
        &self,
        one: &'a Target,
        two: &'a Target,
        now: Instant,
        random: u64,
    ) -> &'a Target {
        let (Some(first), Some(second)) = (self.backend(one), self.backend(two)) else {
            return one;
        };
        let better = match self.choice.balance {
            Balance::Latency => first.cost(now).total_cmp(&second.cost(now)),
            Balance::Least | Balance::Maglev => first.open.cmp(&second.open),
        };
        // Which of two was drawn first is chance already.
        if better.is_le() {
            self.warm(one, two, now, random)
        } else {
            self.warm(two, one, now, random)
        }
    }

    /// The better one, with the chance that it has while it warms up.
    fn warm<'a>(
        &self,
        better: &'a Target,
        other: &'a Target,
        now: Instant,
        random: u64,
    ) -> &'a Target {
        let luck = (random >> 11) as f64 / (1_u64 << 53) as f64;
        let chance = self.backend(better).map_or(1.0, |b| b.chance(now));
        if luck < chance { better } else { other }
    }

    fn backend(&self, target: &Target) -> Option<&Backend> {
        self.backends.get(&target.address)
    }

    /// The endpoint took a connection, after this time.
    pub fn handle_connected(&mut self, address: SocketAddr, took: Duration, now: Instant) {
        if let Some(backend) = self.backends.get_mut(&address) {
            backend.connected(took, now);
        }
    }

    /// The endpoint answered a question of this client, after this time.
    pub fn handle_answer(
        &mut self,
        address: SocketAddr,
        client: IpAddr,
        took: Duration,
        now: Instant,
    ) {
        if let Some(backend) = self.backends.get_mut(&address) {
            backend.answered(client, took, now);
        }
    }

    /// A connection has ended on which the endpoint was asked something, and had not answered after this time.
    pub fn handle_silence(&mut self, address: SocketAddr, waited: Duration, now: Instant) {
        if let Some(backend) = self.backends.get_mut(&address) {
            backend.kept_waiting(waited, now);
        }
    }

    /// A connection of this client to the endpoint has ended as connections should.
    pub fn handle_served(&mut self, address: SocketAddr, client: IpAddr, now: Instant) {
        if let Some(backend) = self.backends.get_mut(&address) {
            backend.served(client, now);
        }
    }

    /// Whether there is an endpoint that was not tried.
    pub fn has_untried(&self, set: Set, tried: &[SocketAddr]) -> bool {
        let all = &self.targets(set).all;
        all.iter().any(|target| !tried.contains(&target.address))
    }

    /// The endpoint did not answer, or broke the connection before a byte of the client's had passed.
    pub fn handle_failure(&mut self, address: SocketAddr, now: Instant) {
        self.failed(address, None, now);
    }

    /// The endpoint had heard this client, or was asked under its name, and gave no answer.
    pub fn handle_break(&mut self, address: SocketAddr, client: IpAddr, now: Instant) {
        self.failed(address, Some(client), now);
    }

    fn failed(&mut self, address: SocketAddr, client: Option<IpAddr>, now: Instant) {
        let listed = self.backends.values().filter(|backend| backend.listed);
        let (all, out) = listed.fold((0, 0), |(all, out), backend| {
            (all + 1, out + usize::from(backend.is_out(now)))
        });
        if let Some(backend) = self.backends.get_mut(&address)
            && backend.failed(client, now)
            // What was under way there when it was left out is no new reason.
            && !backend.is_out(now)
            && (out + 1) * 2 <= all
        {
            backend.eject(now);
        }
    }

    /// A connection that was picked for has ended, or its try has.
    pub fn handle_end(&mut self, address: SocketAddr) {
        if let Some(backend) = self.backends.get_mut(&address) {
            backend.open = backend.open.saturating_sub(1);
            if !backend.listed && backend.open == 0 {
                self.past.add(backend.counts);
                self.backends.remove(&address);
            }
        }
    }

    /// How long an endpoint takes to take a connection, if that was seen.
    pub(super) fn usual(&self, address: SocketAddr) -> Option<Duration> {
        self.backends.get(&address)?.usual()
    }

    /// Forgets of some clients where they were, if their time is over.
    pub(super) fn forget(&mut self, now: Instant) {
        self.sticky.forget(FORGETS, now);
    }

    /// What all of its endpoints are like together.
    pub fn sum(&self, now: Instant) -> Sum {
        let mut sum = Sum {
            counts: self.past,
            ..Sum::default()
        };
        let mut measured = Vec::new();
        for backend in self.backends.values() {
            sum.open += u64::from(backend.open);
            sum.listed += u64::from(backend.listed);
            sum.ejected += u64::from(backend.is_out(now));
            sum.counts.add(backend.counts);
            measured.extend(backend.latency_at(now));
        }
        if !measured.is_empty() {
            let mean = measured.iter().sum::<f64>() / measured.len() as f64;
            let slowest = measured.into_iter().fold(0.0, f64::max);
            sum.latency = Some(Duration::from_secs_f64(mean));
            sum.slowest = Some(Duration::from_secs_f64(slowest));
        }
        sum
    }

    /// What its endpoints are like, in order.
    pub fn seen(&self, now: Instant) -> Vec<Seen> {
        let one = |(address, backend): (&SocketAddr, &Backend)| Seen {
            address: *address,
            open: backend.open,
            latency: backend.latency_at(now).map(Duration::from_secs_f64),
            ejected: backend.is_out(now),
            counts: backend.counts,
        };
        let mut all: Vec<Seen> = self.backends.iter().map(one).collect();
        all.sort_by_key(|seen| seen.address);
        all
    }
}

/// The first that can be taken from a place on, round and round.
fn first_from(start: usize, all: &[Target], can: impl Fn(&Target) -> bool) -> Option<&Target> {
    let (end, beginning) = all.split_at(start.min(all.len()));
    beginning.iter().chain(end).find(|target| can(target))
}

/// A number below another one, out of a random number.
const fn below(random: u64, end: usize) -> usize {
    ((random as u128 * end as u128) >> 64) as usize
}
