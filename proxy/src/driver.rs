//! The shell: one thread that owns the sources and the engines, takes reports, and looks after the kernel's rules.
//!
//! Reports that wait together make one table and one batch. What the kernel refuses is tried again at every look. The
//! kernel engine has every Service; the relay, which is started with the first that is its own, stands before it, and
//! without it all are the kernel's.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use weave_model::Durations;

use crate::kernel::{Done, Error, Kernel};
use crate::relay::{Relay, Watch, routes};
use crate::sources::{Change, Sources};
use crate::table::{Diff, Entry, Table};

/// How often the way to the relay is looked after, and what failed of it is tried again.
const RELAY_LOOK: Duration = Duration::from_secs(2);

/// How often it is heard whether somebody changed the rules: one question to the kernel.
const LOOK: Duration = Duration::from_millis(250);

/// How long a report may wait for the kernel until the engine is not well: what kube-proxy takes, twice its sync period.
const LATE: Duration = Duration::from_secs(60);

/// How the engine gets on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// When the kernel was last brought to what was reported.
    pub updated: Option<SystemTime>,
    /// No report has waited for that for too long. At the start, before there was any, all is well.
    pub healthy: bool,
    /// The engine is asked to take no more.
    pub stopping: bool,
}

/// Reports counted on their way.
#[derive(Debug, Default)]
struct Count {
    sent: u64,
    done: u64,
    /// Since when the oldest that is not done has waited, or a little later.
    waiting: Option<Instant>,
    updated: Option<SystemTime>,
}

impl Count {
    fn send(&mut self, now: Instant) {
        self.sent += 1;
        self.waiting.get_or_insert(now);
    }

    fn finish(&mut self, done: u64, now: Instant, wall: SystemTime) {
        if self.done != done {
            (self.done, self.updated) = (done, Some(wall));
        }
        self.waiting = (self.done != self.sent).then_some(now);
    }

    fn is_late(&self, now: Instant) -> bool {
        self.waiting
            .is_some_and(|since| now.duration_since(since) >= LATE)
    }
}

/// How the kernel was brought to what was reported.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Syncs {
    /// By changing elements.
    pub changed: u64,
    /// By making the table anew, whole.
    pub remade: u64,
    /// Not: it refused, or could not be asked. It is tried again at every look.
    pub failed: u64,
    /// How long it took, from a report to the kernel having it.
    pub took: Durations,
}

impl Syncs {
    fn add(&mut self, done: Option<Done>) {
        match done {
            Some(Done::Kept | Done::Looked) => {}
            Some(Done::Changed) => self.changed += 1,
            Some(Done::Remade) => self.remade += 1,
            None => self.failed += 1,
        }
    }
}

/// What the engine shows.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// The table that the kernel was given last.
    pub table: Arc<Table>,
    /// Why the kernel does not do what it says, while that is so.
    pub failure: Option<String>,
    /// Why the relay does not, while that is so; the kernel does in its place.
    pub relay_failure: Option<String>,
    /// The relay, once there was something for it to do.
    pub relay: Option<Watch>,
    /// How the kernel came to it.
    pub syncs: Syncs,
}

/// What the thread is asked.
enum Order {
    Report(Instant, Vec<Change>),
    Drain(Duration, Sender<usize>),
}

/// The running engine. Dropping it ends the thread and leaves the rules.
#[derive(Debug)]
pub struct Engine {
    orders: Option<Sender<Order>>,
    shown: Arc<Mutex<Report>>,
    count: Arc<Mutex<Count>>,
    stopping: AtomicBool,
    thread: Option<JoinHandle<()>>,
}

impl Engine {
    /// Starts it in the network namespace of the calling thread.
    ///
    /// # Errors
    /// When the kernel lacks what it needs, or a thread cannot be made.
    pub fn start() -> io::Result<Self> {
        let kernel = Kernel::open()?;
        let (orders, waiting) = channel();
        let shown = Arc::new(Mutex::new(Report::default()));
        let count = Arc::new(Mutex::new(Count::default()));
        let work = Work {
            kernel,
            relay: None,
            draining: false,
            relay_looked: Instant::now(),
            way_failure: None,
            sources: Sources::default(),
            shown: Arc::clone(&shown),
            count: Arc::clone(&count),
            taken: 0,
        };
        let thread = thread::Builder::new()
            .name("weave-service".into())
            .spawn(move || work.run(&waiting))?;
        Ok(Self {
            orders: Some(orders),
            shown,
            count,
            stopping: AtomicBool::new(false),
            thread: Some(thread),
        })
    }

    /// Takes reports, all of which hold together.
    pub fn report(&self, changes: Vec<Change>) {
        let now = Instant::now();
        lock(&self.count).send(now);
        self.order(Order::Report(now, changes));
    }

    /// How it gets on now.
    pub fn progress(&self) -> Progress {
        let count = lock(&self.count);
        Progress {
            updated: count.updated,
            healthy: !count.is_late(Instant::now()),
            stopping: self.stopping.load(Ordering::Relaxed),
        }
    }

    /// Has the relay take no new connections, and waits until those that are open have ended, but not longer than
    /// `patience`. How many are left.
    pub fn drain(&self, patience: Duration) -> usize {
        self.stopping.store(true, Ordering::Relaxed);
        let (reply, answer) = channel();
        self.order(Order::Drain(patience, reply));
        answer.recv().unwrap_or_default()
    }

    fn order(&self, order: Order) {
        if let Some(orders) = &self.orders {
            // It fails only when the thread panicked, which was reported when it happened.
            let _ = orders.send(order);
        }
    }

    /// What it shows now.
    pub fn shown(&self) -> Report {
        lock(&self.shown).clone()
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.orders = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Work {
    kernel: Kernel,
    relay: Option<Relay>,
    /// No relay is started any more.
    draining: bool,
    relay_looked: Instant,
    /// Why the way to the relay could not be mended, while that is so.
    way_failure: Option<String>,
    sources: Sources,
    shown: Arc<Mutex<Report>>,
    count: Arc<Mutex<Count>>,
    /// How many reports the table has.
    taken: u64,
}

impl Work {
    fn run(mut self, waiting: &Receiver<Order>) {
        // Before the first report nothing is known, and what a former run left must not go.
        let mut known = false;
        let mut looked = Instant::now();
        loop {
            let mut next = match waiting.recv_timeout(LOOK.saturating_sub(looked.elapsed())) {
                Ok(order) => Some(order),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            // Also where there is always another report.
            if looked.elapsed() >= LOOK {
                looked = Instant::now();
                if known {
                    self.look();
                }
            }
            while let Some(order) = next.take() {
                match order {
                    Order::Report(since, first) => {
                        next = self.take(since, first, waiting);
                        known = true;
                    }
                    Order::Drain(patience, reply) => {
                        self.draining = true;
                        let relay = self.relay.as_mut();
                        let left = relay.map_or(0, |relay| relay.drain(patience));
                        // Whoever asked may have gone.
                        let _ = reply.send(left);
                    }
                }
            }
        }
    }

    fn look(&mut self) {
        let looked = self.kernel.look_after(Instant::now());
        self.tell(
            looked,
            "the rules of Services were changed by somebody else",
        );
        if let Some(relay) = &self.relay {
            relay.settle();
        }
        if self.relay_looked.elapsed() >= RELAY_LOOK {
            self.relay_looked = Instant::now();
            self.look_after_relay();
        }
    }

    /// Mends the way to the relay, and tries again what failed.
    fn look_after_relay(&mut self) {
        let failed = lock(&self.shown).relay_failure.is_some();
        let table = Arc::clone(self.sources.table());
        match &self.relay {
            None if failed => self.relay(&table, &Diff::between(&Table::default(), &table)),
            Some(relay) if failed || relay.is_outdated() => self.relay(&table, &Diff::default()),
            Some(relay) => {
                let failure = relay.look_after().err().map(|error| error.to_string());
                if let Some(error) = failure.as_ref().filter(|_| self.way_failure != failure) {
                    tracing::warn!(%error, "packets may not find the way to the relay");
                }
                self.way_failure = failure;
            }
            None => {}
        }
    }

    /// Takes all reports that wait, and gives back what waited behind them.
    fn take(
        &mut self,
        since: Instant,
        first: Vec<Change>,
        waiting: &Receiver<Order>,
    ) -> Option<Order> {
        let mut all = first;
        self.taken += 1;
        let behind = loop {
            match waiting.try_recv() {
                Ok(Order::Report(_, more)) => {
                    all.extend(more);
                    self.taken += 1;
                }
                Ok(other) => break Some(other),
                Err(_) => break None,
            }
        };
        all.into_iter()
            .for_each(|change| self.sources.handle(change));
        let before = Arc::clone(self.sources.table());
        let (table, diff): (Arc<Table>, Diff) = self.sources.build();
        tell_left_out(&before, &table);
        self.relay(&table, &diff);
        let done = self
            .kernel
            .apply(Arc::clone(&table), &diff, self.sources.facts());
        {
            let mut shown = lock(&self.shown);
            shown.table = table;
            if done.is_ok() {
                shown.syncs.took.add(since.elapsed());
            }
        }
        self.tell(done, "the rules of Services are made");
        behind
    }

    /// Gives the relay its part; what it cannot do is left to the kernel.
    fn relay(&mut self, table: &Table, diff: &Diff) {
        let concerned = diff.pairs().any(|(_, before, after)| {
            let concerns = |entry: &Arc<Entry>| routes::concerns(entry);
            before.is_some_and(concerns) || after.is_some_and(concerns)
        });
        let facts = self.sources.facts();
        let applied = match &mut self.relay {
            Some(relay) => relay.apply(table, diff, facts).map_err(|e| e.to_string()),
            None if concerned && !self.draining => match Relay::start() {
                Ok(mut relay) => {
                    let all = Diff::between(&Table::default(), table);
                    let applied = relay.apply(table, &all, facts);
                    self.relay = Some(relay);
                    applied.map_err(|error| error.to_string())
                }
                Err(error) => Err(error.to_string()),
            },
            None => return,
        };
        let failure = applied.err();
        let mut shown = lock(&self.shown);
        if let Some(failure) = failure.as_ref().filter(|_| shown.relay_failure != failure) {
            tracing::warn!(%failure, "the relay does not serve; the kernel does in its place");
        }
        shown.relay_failure = failure;
        shown.relay = self.relay.as_ref().map(Relay::watch);
    }

    /// The kernel does what all reports say that were taken.
    fn is_done(&self) {
        lock(&self.count).finish(self.taken, Instant::now(), SystemTime::now());
    }

    fn tell(&self, done: Result<Done, Error>, remade: &str) {
        let mut shown = lock(&self.shown);
        shown.syncs.add(done.as_ref().ok().copied());
        match done {
            Ok(done) => {
                if done == Done::Remade {
                    tracing::info!("{remade}");
                }
                shown.failure = None;
                self.is_done();
            }
            Err(error) => {
                let failure = error.to_string();
                if shown.failure.as_ref() != Some(&failure) {
                    tracing::warn!(%error, "the kernel does not do what the table of Services says");
                }
                shown.failure = Some(failure);
            }
        }
    }
}

/// Tells what of Services is left out now that was not before.
fn tell_left_out(before: &Table, now: &Table) {
    for (name, left_out) in &now.refused {
        let old = before.refused.get(name).map(Arc::as_ref);
        let news = left_out.news(old);
        if !news.is_empty() {
            let refused: Vec<String> = news.iter().map(ToString::to_string).collect();
            let more = left_out.more();
            tracing::warn!(service = %name, ?refused, more, "left out of a service");
        }
    }
}

fn lock<T>(shared: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_late_when_a_report_waits_for_too_long_and_not_when_there_is_none() {
        let (mut count, start) = (Count::default(), Instant::now());
        let wall = SystemTime::UNIX_EPOCH;
        assert!(!count.is_late(start + 10 * LATE), "nothing was asked");
        count.send(start);
        count.send(start + LATE / 2);
        assert!(!count.is_late(start + LATE / 2));
        assert!(count.is_late(start + LATE), "the first is waited for");
        count.finish(1, start + LATE, wall);
        assert!(!count.is_late(start + LATE), "it goes on");
        assert!(count.is_late(start + 2 * LATE), "the second one waits");
        count.finish(2, start + 2 * LATE, wall);
        assert!(!count.is_late(start + 10 * LATE));
        assert_eq!(count.updated, Some(wall));
    }
}
