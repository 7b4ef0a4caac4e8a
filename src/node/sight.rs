//! What this node sees of its containers' flows, what it tells the others, and the picture it makes of what all tell.
//!
//! The watch looks at the kernel's connections every [`RESTED`], or every [`AWAKE`] while somebody looks at the picture here
//! or on another member, but never so often that looking takes more than a fiftieth of a core ([`SHARE`]): the kernel goes
//! through all of its table, 2 to 10 ms even when next to nothing is in it. What ended in between is taken every [`TICK`],
//! which costs what there is. What the sockets of TCP tell ([`sockets`]) is read only while somebody looks. What was found is posted as this node's report; the other members' reports are asked for only
//! while somebody looks, and, more rarely, for a quarter of an hour afterwards, so that the page has a past to show.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use weave_dashboard::Dashboard;
use weave_dashboard::flows::{Flows, Whose};
use weave_dashboard::graph::{self, Member};
use weave_linux::conntrack::Conntrack;
use weave_linux::sysctl;
use weave_model::NodeId;
use weave_model::api::{
    Capture, PageLogin, PeerState, Problem, Refusal, Report, ReportContainer, ReportLink, Topology,
};
use weave_router::core::view::{Owner, View};
use weave_router::driver::{Bulletin, MAX_TEXT};

use super::facts::{Facts, lock, own_netns};
use super::{Node, sockets, wall_seconds};
use crate::config::FlowWatch;
use crate::obstacle::Obstacle;

/// How often it is seen what ended, and whether somebody looks.
const TICK: Duration = Duration::from_secs(1);

/// Between two looks while nobody cares.
const RESTED: Duration = Duration::from_secs(10);

/// Between two looks while somebody does.
const AWAKE: Duration = Duration::from_secs(1);

/// Between two questions to the other members for the sake of the past.
const PAST: Duration = Duration::from_secs(5);

/// How long after the last viewer the past is still recorded.
const LINGER: Duration = Duration::from_secs(900);

/// How long somebody who asked once counts as looking.
const ASKED: Duration = Duration::from_secs(10);

/// How long a member that asked counts as looking: less than [`PAST`], which is not worth a look.
const ASKED_BY_MEMBER: Duration = Duration::from_millis(2500);

/// A look that took some time is followed by a pause this many times as long.
const SHARE: u32 = 50;

/// The most flows in a report.
const MAX_FLOWS: usize = 256;

/// A report older than this says nothing about now.
const STALE: Duration = Duration::from_secs(15);

/// A report younger than this need not be asked for again.
const FRESH: Duration = Duration::from_millis(1500);

/// How long a picture waits for reports.
const PATIENCE: Duration = Duration::from_secs(2);

/// Where the kernel is told to count bytes.
const ACCOUNTING: &str = "net/netfilter/nf_conntrack_acct";

/// What the node keeps of what it sees.
#[derive(Debug)]
pub(super) struct Sight {
    pub(super) dashboard: Dashboard,
    /// Where the page listens, once it does.
    page: OnceLock<SocketAddr>,
    seen: Mutex<Seen>,
    looked: Mutex<Looked>,
    problems: Mutex<Vec<Problem>>,
    pub(super) facts: Facts,
}

/// What the last look found.
#[derive(Debug, Default)]
struct Seen {
    flows: Flows,
    capture: Capture,
    /// When the kernel was looked at, and how long that took.
    looked: Option<(Instant, Duration)>,
    /// The report that was posted last.
    posted: Vec<u8>,
}

/// When somebody looked, and when others were asked for it.
#[derive(Debug, Default)]
struct Looked {
    asked_by: Option<Instant>,
    viewed: Option<Instant>,
    asked: Option<Instant>,
}

impl Sight {
    pub(super) fn new(dashboard: Dashboard, facts: Facts) -> Self {
        Self {
            dashboard,
            page: OnceLock::new(),
            seen: Mutex::default(),
            looked: Mutex::default(),
            problems: Mutex::default(),
            facts,
        }
    }

    /// What could not be served.
    pub(super) fn problems(&self) -> Vec<Problem> {
        lock(&self.problems).clone()
    }
}

impl Node {
    /// The page of this node.
    pub fn dashboard(&self) -> Dashboard {
        self.shared.sight.dashboard.clone()
    }

    /// Says where the page listens.
    pub fn page_listens(&self, at: SocketAddr) {
        // It is said once, at the start.
        let _ = self.shared.sight.page.set(at);
    }

    /// Says that something cannot be served; the network works all the same.
    pub fn cannot_serve(&self, obstacle: Obstacle) {
        tracing::warn!(cause = obstacle.cause, fix = obstacle.fix, "not served");
        lock(&self.shared.sight.problems).push(Problem {
            cause: obstacle.cause,
            fix: obstacle.fix,
        });
    }

    /// Makes a login for the page.
    pub fn page_login(&self, random: [u8; 16]) -> PageLogin {
        let sight = &self.shared.sight;
        let (code, good_for) = sight.dashboard.invite(random);
        PageLogin {
            code,
            good_for_s: good_for.as_secs() as u32,
            address: sight.page.get().copied(),
            netns: own_netns(),
        }
    }

    /// How well flows are seen, and how many there are.
    pub fn flow_capture(&self) -> (Capture, usize) {
        let seen = lock(&self.shared.sight.seen);
        (seen.capture.clone(), seen.flows.len())
    }

    /// The picture of the whole mesh now: waits a moment for a look here and for what others tell.
    pub async fn topology(&self) -> Result<Topology, Refusal> {
        let now = Instant::now();
        lock(&self.shared.sight.looked).asked_by = Some(now);
        if !self.all_told(FRESH) {
            self.ask_others(now);
        }
        let until = now + PATIENCE;
        while !(self.all_told(FRESH) && self.looked_within(FRESH)) && Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(self.picture())
    }

    /// Looks, tells and shows, for good.
    pub async fn watch(self) {
        // From the start, because what ends is told only to those who listen.
        let mut door = self.sees_flows().then(|| Conntrack::open().ok()).flatten();
        loop {
            if self.is_due(Instant::now()) {
                door = self.look(door).await;
                if self.rest(Instant::now()) == AWAKE {
                    self.look_inside().await;
                }
                self.post_report();
            } else if let Some(door) = &door {
                self.take_ended(door);
            }
            self.show();
            tokio::time::sleep(TICK).await;
        }
    }

    /// Whether this node was told to see flows at all.
    fn sees_flows(&self) -> bool {
        self.shared.config.sight.flows == FlowWatch::On
    }

    /// Whether it is time for a look.
    fn is_due(&self, now: Instant) -> bool {
        let Some((at, took)) = lock(&self.shared.sight.seen).looked else {
            return true;
        };
        now.saturating_duration_since(at) >= self.rest(now).max(took * SHARE)
    }

    /// How long to rest between two looks.
    fn rest(&self, now: Instant) -> Duration {
        let within = |at: Option<Instant>, time| {
            at.is_some_and(|at| now.saturating_duration_since(at) < time)
        };
        if self.is_watched(now) || within(self.shared.router.told_bulletin(), ASKED_BY_MEMBER) {
            AWAKE
        } else if within(lock(&self.shared.sight.looked).viewed, LINGER) {
            PAST
        } else {
            RESTED
        }
    }

    fn looked_within(&self, age: Duration) -> bool {
        let looked = lock(&self.shared.sight.seen).looked;
        looked.is_some_and(|(at, _)| at.elapsed() < age)
    }

    /// One look at the kernel's connections.
    async fn look(&self, door: Option<Conntrack>) -> Option<Conntrack> {
        let (node, began) = (self.clone(), Instant::now());
        // The kernel writes its table while this waits.
        let looked = tokio::task::spawn_blocking(move || node.look_at_kernel(door)).await;
        let took = began.elapsed();
        let rest = self.rest(began).max(took * SHARE);
        let mut seen = lock(&self.shared.sight.seen);
        seen.looked = Some((began, took));
        seen.capture.took_us = took.as_micros() as u64;
        seen.capture.interval_ms = rest.as_millis() as u32;
        looked.ok().flatten()
    }

    /// Takes what ended since it was last taken.
    fn take_ended(&self, door: &Conntrack) {
        let view = self.shared.router.view();
        let mut seen = lock(&self.shared.sight.seen);
        let missed = door.ended(|connection| {
            seen.flows.ended(&connection, |ip| whose(&view, ip));
        });
        // A socket that failed is found out by the next look.
        if missed.unwrap_or(false) {
            seen.flows.missed();
        }
    }

    /// Reads the connections, and, while somebody looks, what their sockets tell.
    fn look_at_kernel(&self, door: Option<Conntrack>) -> Option<Conntrack> {
        let door = self.look_at_connections(door);
        if self.rest(Instant::now()) == AWAKE {
            let ends = lock(&self.shared.sight.seen).flows.tcp_ends();
            let book = self.shared.published.borrow().book.clone();
            let found = sockets::read(&book, &ends);
            let mut seen = lock(&self.shared.sight.seen);
            seen.capture.unseen = found.unseen;
            seen.flows.see(&found.sockets);
        }
        door
    }

    fn look_at_connections(&self, door: Option<Conntrack>) -> Option<Conntrack> {
        if !self.sees_flows() {
            let said = "this node was started with --flows=off".to_owned();
            lock(&self.shared.sight.seen).capture.failure = Some(said);
            return None;
        }
        let accounting = count_bytes();
        let view = self.shared.router.view();
        let mut seen = lock(&self.shared.sight.seen);
        let seen = &mut *seen;
        seen.capture.accounting = accounting;
        let door = door.map_or_else(Conntrack::open, Ok);
        let looked = door.and_then(|door| {
            seen.flows.begin(Instant::now(), wall_seconds());
            let count = door.dump(|connection| {
                seen.flows.take(&connection, |ip| whose(&view, ip));
            })?;
            let missed = door.ended(|connection| {
                seen.flows.ended(&connection, |ip| whose(&view, ip));
            })?;
            if missed {
                seen.flows.missed();
            }
            seen.flows.finish();
            Ok((door, count))
        });
        match looked {
            Ok((door, count)) => {
                seen.capture.connections = count as u64;
                seen.capture.lost = seen.flows.lost();
                seen.capture.failure = None;
                Some(door)
            }
            Err(error) => {
                let cause = format!("cannot read the kernel's connections: {error}");
                if seen.capture.failure.replace(cause.clone()).as_ref() != Some(&cause) {
                    tracing::warn!(%error, "cannot read the kernel's connections; flows are not seen");
                }
                None
            }
        }
    }

    /// Posts what this node has to tell, when it is another text than before.
    fn post_report(&self) {
        let text = fitting(self.report());
        let mut seen = lock(&self.shared.sight.seen);
        if seen.posted != text {
            seen.posted.clone_from(&text);
            self.shared.router.post_bulletin(text);
        }
    }

    /// What this node tells of itself.
    fn report(&self) -> Report {
        let attachments = self.attachments();
        let links = self
            .connections()
            .connections
            .into_iter()
            .map(|one| ReportLink {
                peer: one.id,
                state: one.state,
                rtt_us: one.rtt_us,
                loss_permille: one.path.as_ref().and_then(|path| path.loss_permille),
                via: one.path.and_then(|path| path.via),
                mtu: one.mtu,
                suite: one.suite,
                traffic: one.traffic,
            });
        let mut known = self.known_facts();
        let containers = attachments.attachments.into_iter();
        let containers = containers.map(|one| {
            let (inside, runtime) = known.take(&one.name, &one.ifname);
            ReportContainer {
                name: one.name,
                ifname: one.ifname,
                network: one.network,
                ip: one.ip.addr(),
                ip6: one.ip6.map(|ip6| ip6.addr()),
                labels: one.labels,
                attached_at: one.attached_at,
                alive: one.alive,
                inside,
                runtime,
            }
        });
        let containers = containers.collect();
        let (flows, capture) = {
            let seen = lock(&self.shared.sight.seen);
            let (flows, untold) = seen.flows.busiest(MAX_FLOWS);
            let capture = Capture {
                untold,
                ..seen.capture.clone()
            };
            (flows, capture)
        };
        Report {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            containers,
            more_containers: 0,
            host: attachments.host,
            links: links.collect(),
            flows,
            capture,
            problems: self.status().problems,
            inside: known.host,
        }
    }

    /// Asks others and makes a picture, as far as somebody looks.
    fn show(&self) {
        let now = Instant::now();
        let sight = &self.shared.sight;
        if sight.dashboard.viewers() > 0 {
            lock(&sight.looked).viewed = Some(now);
        }
        let within = |at: Option<Instant>, time| at.is_some_and(|at| now - at < time);
        let (asked, viewed) = {
            let looked = lock(&sight.looked);
            (looked.asked, looked.viewed)
        };
        let due = if self.is_watched(now) {
            true
        } else {
            within(viewed, LINGER) && !within(asked, PAST)
        };
        if due {
            sight.dashboard.publish(self.picture());
            self.ask_others(now);
        }
    }

    fn is_watched(&self, now: Instant) -> bool {
        let asked_by = lock(&self.shared.sight.looked).asked_by;
        self.shared.sight.dashboard.viewers() > 0
            || asked_by.is_some_and(|at| now.saturating_duration_since(at) < ASKED)
    }

    fn ask_others(&self, now: Instant) {
        lock(&self.shared.sight.looked).asked = Some(now);
        self.shared.router.ask_bulletins();
    }

    /// Whether every member that can be reached told something that recently.
    fn all_told(&self, age: Duration) -> bool {
        let told = self.shared.router.bulletins();
        let recent = |id: NodeId| told.get(&id).is_some_and(|one| one.at.elapsed() < age);
        let view = self.shared.router.view();
        let mut reachable = view.members.iter().filter(|member| member.connected);
        reachable.all(|member| recent(member.id))
    }

    /// The picture of what is known now.
    fn picture(&self) -> Topology {
        let status = self.status();
        let told = self.shared.router.bulletins();
        let members = self.peers().peers.into_iter().map(|peer| Member {
            report: match peer.state {
                PeerState::Myself => Ok(self.report()),
                PeerState::Connected => read(told.get(&peer.id)),
                PeerState::Unreachable => Err("there is no session with it".to_owned()),
            },
            id: peer.id,
            name: peer.name,
            state: peer.state,
            endpoints: peer.endpoints,
            blocks: peer.blocks,
        });
        graph::picture(graph::Facts {
            at: wall_seconds(),
            me: status.id,
            verdict: status.verdict,
            summary: status.summary,
            problems: status.problems,
            range: self.shared.router.view().range,
            services: self.services().services,
            members: members.collect(),
        })
    }
}

/// Has the kernel count bytes; whether it does. Connections that are there already stay without.
pub(super) fn count_bytes() -> bool {
    sysctl::ensure(ACCOUNTING, "1").is_ok()
}

/// A member's report, or why there is none.
fn read(told: Option<&Bulletin>) -> Result<Report, String> {
    let told = told.ok_or("it has told nothing yet; an older version of weaved never does")?;
    if told.at.elapsed() > STALE {
        return Err("it has told nothing for a while".to_owned());
    }
    serde_json::from_slice(&told.text)
        .map_err(|_| "it tells what this version of weaved cannot read".to_owned())
}

/// Whose an address is.
fn whose(view: &View, ip: IpAddr) -> Whose {
    let offset = view.range.and_then(|range| range.offset(ip));
    match offset.and_then(|offset| view.owner(offset)) {
        Some(Owner::Me) => Whose::Mine,
        Some(Owner::Member(_)) => Whose::Members,
        None => Whose::Outside,
    }
}

/// A report as text that may be told: what does not fit is left out and counted, processes first, then flows.
fn fitting(mut report: Report) -> Vec<u8> {
    loop {
        let text = serde_json::to_vec(&report).expect("names and numbers are JSON");
        if text.len() <= MAX_TEXT {
            return text;
        }
        if report.inside.is_some() || report.containers.iter().any(|one| one.inside.is_some()) {
            report.inside = None;
            for container in &mut report.containers {
                container.inside = None;
            }
        } else if report.flows.len() > 16 {
            let left = report.flows.len() / 2;
            report.capture.untold += (report.flows.len() - left) as u32;
            report.flows.truncate(left);
        } else {
            let left = report.containers.len() / 2;
            report.more_containers += (report.containers.len() - left) as u32;
            report.containers.truncate(left);
            report.problems.truncate(8);
        }
    }
}

/// Where the secret behind the page's sessions is kept, so that a restart ends none.
const KEY_FILE: &str = "page.key";

/// The page, with the secret from the state directory, which is made if there is none.
pub(super) fn open_page(
    config: &crate::config::Config,
    node: NodeId,
) -> Result<Dashboard, Obstacle> {
    let path = config.state_dir.join(KEY_FILE);
    let bad = |error: std::io::Error| {
        Obstacle::new(
            format!(
                "cannot keep the page's secret in {}: {error}",
                path.display()
            ),
            "make the state directory writable",
        )
    };
    let key = match std::fs::read(&path) {
        Ok(bytes) => bytes.try_into().ok(),
        Err(_) => None,
    };
    let key = match key {
        Some(key) => key,
        None => {
            let mut key = [0; 32];
            aws_lc_rs::rand::fill(&mut key)
                .map_err(|_| bad(std::io::Error::other("no random bytes")))?;
            write_secret(&path, &key).map_err(bad)?;
            key
        }
    };
    Ok(Dashboard::new(weave_dashboard::Identity { node, key }))
}

fn write_secret(path: &std::path::Path, bytes: &[u8]) -> std::io::Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut options = std::fs::OpenOptions::new();
    let mut file = options
        .create(true)
        .write(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(bytes)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn a_report_that_is_too_long_loses_flows_then_containers_and_says_so() {
        let container = |n: u32| ReportContainer {
            name: format!("container-with-a-long-name-{n}").parse().unwrap(),
            ifname: "eth0".parse().unwrap(),
            network: "default".parse().unwrap(),
            ip: n.into(),
            ip6: None,
            labels: BTreeMap::new(),
            attached_at: 1,
            alive: true,
            inside: None,
            runtime: None,
        };
        let report = Report {
            containers: (0..5000).map(container).collect(),
            ..Report::default()
        };
        let text = fitting(report);
        assert!(text.len() <= MAX_TEXT && text.len() > MAX_TEXT / 3);
        let told: Report = serde_json::from_slice(&text).unwrap();
        assert_eq!(told.containers.len() + told.more_containers as usize, 5000);
    }
}
