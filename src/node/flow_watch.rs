//! The watch: looks at the kernel's connections, for as long as the node runs.
//!
//! It looks every [`RESTED`], or every [`AWAKE`] while somebody looks at the picture here or on another member, but
//! never so often that looking takes more than an eightieth of a core ([`SHARE`]), or a 4,000th while nobody cares: the
//! kernel goes through all of its table, 2 to 10 ms even when next to nothing is in it. One look that takes longer than
//! those around it changes nothing ([`Costs`]). What ended in between is taken every [`TICK`], and while somebody looks
//! what began, which costs what there is: so a flow is told at once however long the table, and what it carried by the
//! next look. What the sockets of TCP tell ([`sockets`]) is read only while somebody looks.
//!
//! The flows belong to the watch alone, so nobody waits while a large table is read; the others see what it found last.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use weave_dashboard::flows::{Flows, Whose};
use weave_linux::conntrack::{Conntrack, News};
use weave_linux::{clock, sysctl};
use weave_router::core::view::{Owner, View};

use super::facts::lock;
use super::holders::{Holders, owner_of};
use super::sight::{LINGER, PAST};
use super::{Node, sockets, wall_seconds};
use crate::config::FlowWatch;

/// How often it is seen what ended and whether somebody looks, and how often the page gets a new picture.
const TICK: Duration = Duration::from_secs(1);

/// Between two looks while nobody cares.
const RESTED: Duration = Duration::from_secs(10);

/// Between two looks while somebody does, and how often it is seen then what began and ended where looks are rarer.
const AWAKE: Duration = Duration::from_millis(500);

/// The least rest, however long the last look took by the clock.
const MOMENT: Duration = Duration::from_millis(50);

/// How long a member that asked because somebody looks there counts as looking.
const ASKED_BY_MEMBER: Duration = Duration::from_millis(2500);

/// Looks that cost some CPU time are followed by pauses at least this many times as long.
const SHARE: u32 = 80;

/// The same while nobody cares: the kernel's table is long even when little is in it.
const RESTED_SHARE: u32 = 4000;

/// How many looks tell what one costs.
const LOOKS: usize = 3;

/// The longest pause for that.
const LONGEST: Duration = Duration::from_secs(60);

/// The most flows in a report.
const MAX_FLOWS: usize = 256;

/// Where the kernel is told to count bytes.
const ACCOUNTING: &str = "net/netfilter/nf_conntrack_acct";

/// Where it is told to tell of beginnings and ends.
const TELLING: &str = "net/netfilter/nf_conntrack_events";

/// What only the watch has: the flows, and its door to the kernel's connections while that is open.
#[derive(Debug, Default)]
struct Watch {
    flows: Flows,
    door: Option<Conntrack>,
    costs: Costs,
}

/// CPU time of the last looks, the newest first.
///
/// A look costs what the cheapest of them did. A large table makes all of them long; a virtual machine from which its
/// core was taken in the middle of one finds that time in its own account, and a cold cache costs only the first.
#[derive(Debug, Default)]
struct Costs([Option<Duration>; LOOKS]);

impl Costs {
    /// Takes what a look took; what one costs.
    fn take(&mut self, took: Duration) -> Duration {
        self.0.rotate_right(1);
        self.0[0] = Some(took);
        self.0.iter().flatten().min().copied().unwrap_or_default()
    }
}

impl Node {
    /// Looks, tells and shows, for good.
    pub async fn watch(self) {
        let mut watch = Watch::default();
        if self.sees_flows() {
            // From the start, because what ends is told only to those who listen. A failure is told by the first look.
            watch.door = Conntrack::open().ok();
            have_news_told();
        }
        let mut shown = Instant::now();
        loop {
            if self.is_due(Instant::now()) {
                watch = self.look(watch).await;
                // First, for a runtime may take its time.
                self.post_report();
                self.look_inside(self.rest(Instant::now()) == AWAKE).await;
            } else if let Some(door) = &mut watch.door {
                self.take_news(door, &mut watch.flows);
            }
            if shown.elapsed() >= TICK {
                shown = Instant::now();
                self.show().await;
            }
            let (now, picture) = (Instant::now(), TICK.saturating_sub(shown.elapsed()));
            let mut rest = self.until_due(now).min(picture);
            if self.rest(now) == AWAKE {
                rest = rest.min(AWAKE);
            }
            tokio::time::sleep(rest.max(MOMENT)).await;
        }
    }

    /// Whether this node was told to see flows at all.
    fn sees_flows(&self) -> bool {
        self.shared.config.sight.flows == FlowWatch::On
    }

    /// Whether it is time for a look.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.until_due(now).is_zero()
    }

    /// How long it is until then.
    fn until_due(&self, now: Instant) -> Duration {
        let Some((at, cost)) = lock(&self.shared.sight.seen).looked else {
            return Duration::ZERO;
        };
        let since = now.saturating_duration_since(at);
        self.pause(now, cost).saturating_sub(since)
    }

    /// How long to rest between two looks that cost so much CPU time.
    fn pause(&self, now: Instant, cost: Duration) -> Duration {
        let rest = match self.rest(now) {
            RESTED => RESTED.max((cost * RESTED_SHARE).min(LONGEST)),
            rest => rest,
        };
        rest.max(cost * SHARE)
    }

    /// How long to rest between two looks that cost nothing.
    fn rest(&self, now: Instant) -> Duration {
        let within = |at: Option<Instant>, time| {
            at.is_some_and(|at| now.saturating_duration_since(at) < time)
        };
        if self.is_watched(now) || within(self.shared.router.told_bulletin(), ASKED_BY_MEMBER) {
            AWAKE
        } else if within(self.last_viewed(), LINGER) {
            PAST
        } else {
            RESTED
        }
    }

    /// One look at the kernel's connections, on a thread of its own: the kernel writes its table while the look waits.
    async fn look(&self, watch: Watch) -> Watch {
        let (node, began) = (self.clone(), Instant::now());
        let looking = tokio::task::spawn_blocking(move || {
            let before = clock::thread_cpu();
            let watch = node.look_at_kernel(watch);
            (watch, clock::thread_cpu().saturating_sub(before))
        });
        let (mut watch, took) = looking.await.unwrap_or_else(|error| {
            tracing::error!(%error, "a look at the kernel's connections broke off; flows are counted anew");
            <(Watch, Duration)>::default()
        });
        let cost = watch.costs.take(took);
        let rest = self.pause(began, cost);
        let mut seen = lock(&self.shared.sight.seen);
        seen.looked = Some((began, cost));
        seen.capture.took_us = cost.as_micros() as u64;
        seen.capture.interval_ms = rest.as_millis() as u32;
        watch
    }

    /// Takes what happened since it was last taken, and tells it to who looks.
    fn take_news(&self, door: &mut Conntrack, flows: &mut Flows) {
        self.take_relayed(flows);
        let view = self.shared.router.view();
        let floating = self.floating();
        let looked_at = self.rest(Instant::now()) == AWAKE;
        // A socket that failed is found out by the next look.
        let _ = door.hear_beginnings(looked_at);
        let now = (Instant::now(), wall_seconds());
        let events = take_news(door, flows, (&*view, &*floating), now).unwrap_or_default();
        lock(&self.shared.sight.seen).events += events;
        self.tell(flows);
        if looked_at {
            self.post_report();
        }
    }

    /// Reads the connections, and, while somebody looks, what their sockets tell.
    fn look_at_kernel(&self, mut watch: Watch) -> Watch {
        if self.sees_flows() {
            self.look_at_connections(&mut watch);
        } else {
            let said = "this node was started with --flows=off".to_owned();
            lock(&self.shared.sight.seen).capture.failure = Some(said);
        }
        if self.rest(Instant::now()) == AWAKE {
            let book = self.shared.published.borrow().book.clone();
            let found = sockets::read(&book, &watch.flows.tcp_ends());
            watch.flows.see(&found.sockets);
            lock(&self.shared.sight.seen).capture.unseen = found.unseen;
        }
        self.tell(&watch.flows);
        watch
    }

    fn look_at_connections(&self, watch: &mut Watch) {
        let accounting = count_bytes();
        let looked = self.read_connections(watch);
        let mut seen = lock(&self.shared.sight.seen);
        let capture = &mut seen.capture;
        capture.accounting = accounting;
        match looked {
            Ok(count) => {
                capture.connections = count as u64;
                capture.failure = None;
            }
            Err(error) => {
                // What it had to tell is lost with it.
                if watch.door.take().is_some() && capture.failure.is_none() {
                    watch.flows.missed();
                }
                let cause = format!("cannot read the kernel's connections: {error}");
                if capture.failure.replace(cause.clone()).as_ref() != Some(&cause) {
                    tracing::warn!(%error, "cannot read the kernel's connections; flows are not seen");
                }
            }
        }
    }

    /// Reads what connections there are, and what ended; how many there are.
    fn read_connections(&self, watch: &mut Watch) -> io::Result<usize> {
        let view = self.shared.router.view();
        let floating = self.floating();
        let at = (&*view, &*floating);
        let Watch { flows, door, .. } = watch;
        let door = match door {
            Some(door) => door,
            None => door.insert(Conntrack::open()?),
        };
        door.hear_beginnings(self.rest(Instant::now()) == AWAKE)?;
        self.take_relayed(flows);
        let now = (Instant::now(), wall_seconds());
        flows.begin(now.0, now.1);
        let count = door.dump(|connection| flows.take(&connection, |ip| whose(at, ip)))?;
        self.take_relayed(flows);
        let events = count as u64 + take_news(door, flows, at, now)?;
        lock(&self.shared.sight.seen).events += events;
        flows.finish();
        Ok(count)
    }

    /// Takes what the relay tells of its connections, which is best known before they are seen.
    fn take_relayed(&self, flows: &mut Flows) {
        let made = self.shared.engine.shown().relay.map(|relay| relay.made());
        let made = made.unwrap_or_default();
        let now = Instant::now();
        made.legs.iter().for_each(|leg| flows.relayed(leg, now));
        if made.lost > 0 {
            flows.missed();
        }
    }

    /// The last word on each floating address.
    fn floating(&self) -> Arc<Holders> {
        Arc::clone(&self.shared.services.borrow().floating)
    }

    /// Lets the others see the flows as they are now.
    fn tell(&self, flows: &Flows) {
        let (busiest, untold) = flows.busiest(MAX_FLOWS);
        let mut seen = lock(&self.shared.sight.seen);
        seen.flows = busiest;
        seen.kept = flows.len();
        seen.capture.untold = untold;
        seen.capture.lost = flows.lost();
    }
}

/// Has the kernel count bytes; whether it does. Connections that are there already stay without.
pub(super) fn count_bytes() -> bool {
    sysctl::ensure(ACCOUNTING, "1").is_ok()
}

/// Has the kernel tell of beginnings and ends, where it was told not to.
fn have_news_told() {
    let silent = sysctl::read(TELLING).is_ok_and(|value| value == "0");
    if silent && let Err(error) = sysctl::write(TELLING, "1") {
        tracing::warn!(%error, "the kernel tells of no connections that end; flows that begin and end between two looks are not seen");
    }
}

/// Takes what happened since it was last taken; how much that was.
fn take_news(
    door: &Conntrack,
    flows: &mut Flows,
    at: (&View, &Holders),
    now: (Instant, u64),
) -> io::Result<u64> {
    let mut events = 0;
    let missed = door.news(|news| {
        events += 1;
        match news {
            News::Began(connection) => flows.began(&connection, now, |ip| whose(at, ip)),
            News::Ended(connection) => flows.ended(&connection, now, |ip| whose(at, ip)),
        }
    })?;
    if missed {
        flows.missed();
    }
    Ok(events)
}

/// Whose an address is: a floating one is its holder's.
fn whose((view, floating): (&View, &Holders), ip: IpAddr) -> Whose {
    let owner = |range| owner_of(view, &range, floating, ip);
    match view.range.and_then(owner) {
        Some(Owner::Me) => Whose::Mine,
        Some(Owner::Member(_)) => Whose::Members,
        None => Whose::Outside,
    }
}

#[cfg(test)]
mod tests {
    use super::super::book::tests::{node, range};
    use super::super::holders::Word;
    use super::*;

    #[test]
    fn a_floating_address_is_its_holder_s_and_nobody_s_once_the_claim_has_ended() {
        let mut view = View::empty(node(9), "b".parse().unwrap());
        view.range = Some(range());
        let vip = "10.45.0.9".parse().unwrap();
        let of = |ended| {
            let word = Word {
                stamp: 7,
                node: node(9),
                ended,
            };
            let floating = Holders::from([(vip, word)]);
            whose((&view, &floating), vip)
        };
        assert_eq!(of(false), Whose::Mine);
        assert_eq!(of(true), Whose::Outside);
    }

    #[test]
    fn one_look_that_took_long_costs_nothing_and_a_large_table_is_noticed() {
        let mut costs = Costs::default();
        let table = [
            (51, 51),
            (4, 4),
            (51, 4),
            (5, 4),
            (200, 5),
            (60, 5),
            (70, 60),
            (3, 3),
        ];
        for (took, cost) in table {
            let found = costs.take(Duration::from_millis(took));
            assert_eq!(found, Duration::from_millis(cost), "after {took} ms");
        }
    }
}
