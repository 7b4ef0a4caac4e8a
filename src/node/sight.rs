//! What this node sees of its containers' flows, what it tells the others, and the picture it makes of what all tell.
//!
//! What the watch ([`super::flow_watch`]) finds is posted as this node's report. The other members' reports are asked for while
//! somebody looks, and more rarely at other times, so that the page has a past to show whenever it is opened: each
//! [`PAST`] for a quarter of an hour after somebody looked, else as [`quiet`] has it. A picture waits for the answers: so what
//! happened at a member is in it after the member's look and one question, 1.5 s at most.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use weave_dashboard::Dashboard;
use weave_dashboard::graph::{self, Member};
use weave_model::NodeId;
use weave_model::api::{
    Capture, PageLogin, PeerState, Problem, Refusal, Report, ReportContainer, ReportFlow,
    ReportLink, Topology,
};
use weave_router::driver::{Bulletin, MAX_TEXT, Why};

use super::facts::{Facts, lock, own_netns};
use super::{Node, wall_seconds};
use crate::obstacle::Obstacle;

/// Between two questions to the other members for the sake of the past.
pub(super) const PAST: Duration = Duration::from_secs(5);

/// Between two such questions when nobody has looked for long, in a small mesh.
const QUIET: Duration = Duration::from_secs(15);

/// In a larger one, so long for each member: a member is asked every two seconds at most.
const QUIET_EACH: Duration = Duration::from_secs(2);

/// With more members than this what they told would be too old for a picture: the past begins when somebody looks.
const QUIET_MEMBERS: usize = 30;

/// A question so soon after another one has no answer of its own, and would void the other's.
const HASTY: Duration = Duration::from_millis(400);

/// How long after the last viewer the past is recorded as closely.
pub(super) const LINGER: Duration = Duration::from_secs(900);

/// How long somebody who asked once counts as looking.
const ASKED: Duration = Duration::from_secs(10);

/// A report older than this, and than the pause before the last question, says nothing about now.
const STALE: Duration = Duration::from_secs(15);

/// A report younger than this need not be asked for again.
const FRESH: Duration = Duration::from_millis(900);

/// How long a picture that was asked for waits for reports.
const PATIENCE: Duration = Duration::from_secs(2);

/// How long the picture on the page, which is made again soon, waits for them.
const ANSWER: Duration = Duration::from_millis(200);

/// A question to another host and its answer take about this long.
const ROUND: Duration = Duration::from_millis(10);

/// What the node keeps of what it sees.
#[derive(Debug)]
pub(super) struct Sight {
    pub(super) dashboard: Dashboard,
    /// Where the page listens, once it does.
    page: OnceLock<SocketAddr>,
    pub(super) seen: Mutex<Seen>,
    looked: Mutex<Looked>,
    /// What cannot be served now, by what it is.
    problems: Mutex<BTreeMap<String, Problem>>,
    pub(super) facts: Facts,
}

/// What the last look found.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// The busiest flows, as many as are told.
    pub(super) flows: Vec<ReportFlow>,
    /// How many flows are kept.
    pub(super) kept: usize,
    pub(super) capture: Capture,
    /// Connections that were read, and beginnings and ends that were told, since the start.
    pub(super) events: u64,
    /// When the kernel was looked at, and the CPU time that a look costs.
    pub(super) looked: Option<(Instant, Duration)>,
    /// The report that was posted last.
    posted: Vec<u8>,
}

/// How well this node sees flows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FlowsSeen {
    /// What the last look told.
    pub capture: Capture,
    /// How many flows are kept.
    pub kept: usize,
    /// Connections that were read, and beginnings and ends that were told, since the start.
    pub events: u64,
}

/// When somebody looked, and when others were asked for it.
#[derive(Debug, Default)]
struct Looked {
    asked_by: Option<Instant>,
    viewed: Option<Instant>,
    asked: Option<Instant>,
    /// Between the last two questions.
    pause: Duration,
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
        lock(&self.problems).values().cloned().collect()
    }
}

impl Node {
    /// The page of this node.
    pub fn dashboard(&self) -> Dashboard {
        self.shared.sight.dashboard.clone()
    }

    /// Says where the page listens.
    pub fn page_listens(&self, at: SocketAddr) {
        // Once it listens, it is where it is.
        let _ = self.shared.sight.page.set(at);
    }

    /// Says that something cannot be served, until it is; the network works all the same.
    pub fn cannot_serve(&self, what: &str, obstacle: Obstacle) {
        let problem = Problem {
            cause: obstacle.cause,
            fix: obstacle.fix,
        };
        let (cause, fix) = (problem.cause.clone(), problem.fix.clone());
        let before = lock(&self.shared.sight.problems).insert(what.to_owned(), problem.clone());
        if before.as_ref() != Some(&problem) {
            tracing::warn!(cause, fix, "not served");
        }
    }

    /// Says that what could not be served is, or need not be any more.
    pub fn serves(&self, what: &str) {
        if lock(&self.shared.sight.problems).remove(what).is_some() {
            tracing::info!(what, "served now");
        }
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
    pub fn flows_seen(&self) -> FlowsSeen {
        let seen = lock(&self.shared.sight.seen);
        FlowsSeen {
            capture: seen.capture.clone(),
            kept: seen.kept,
            events: seen.events,
        }
    }

    /// The picture of the whole mesh now: waits a moment for a look here and for what others tell.
    pub async fn topology(&self) -> Result<Topology, Refusal> {
        let now = Instant::now();
        lock(&self.shared.sight.looked).asked_by = Some(now);
        let fresh = now.checked_sub(FRESH).unwrap_or(now);
        if !self.all_told(fresh) {
            self.ask_others(now, Why::Watched);
        }
        let until = now + PATIENCE;
        while !self.all_told(fresh) || self.is_due(Instant::now()) {
            if Instant::now() >= until {
                break;
            }
            tokio::time::sleep(ROUND).await;
        }
        Ok(self.picture())
    }

    /// Posts what this node has to tell, when it is another text than before.
    pub(super) fn post_report(&self) {
        let text = fitting(self.report(), self.shared.router.view().me);
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
            (seen.flows.clone(), seen.capture.clone())
        };
        Report {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            containers,
            more_containers: 0,
            host: attachments.host,
            links: links.collect(),
            more_links: 0,
            flows,
            capture,
            problems: self.status().problems,
            inside: known.host,
        }
    }

    /// Asks others and makes a picture of what they answer, as far as somebody looks.
    pub(super) async fn show(&self) {
        self.learn_names().await;
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
        let (why, pause, patience) = if self.is_watched(now) {
            (Why::Watched, Some(Duration::ZERO), ANSWER)
        } else if within(viewed, LINGER) {
            (Why::ForThePast, Some(PAST), PATIENCE)
        } else {
            let pause = quiet(self.shared.router.view().members.len());
            (Why::ForThePast, pause, PATIENCE)
        };
        if pause.is_none_or(|pause| within(asked, pause)) {
            return;
        }
        self.ask_others(now, why);
        while !self.all_told(now) && now.elapsed() < patience {
            if why == Why::ForThePast && self.is_watched(Instant::now()) {
                break;
            }
            tokio::time::sleep(ROUND).await;
        }
        sight.dashboard.publish(self.picture());
    }

    pub(super) fn is_watched(&self, now: Instant) -> bool {
        let asked_by = lock(&self.shared.sight.looked).asked_by;
        self.shared.sight.dashboard.viewers() > 0
            || asked_by.is_some_and(|at| now.saturating_duration_since(at) < ASKED)
    }

    /// When the page was last seen open.
    pub(super) fn last_viewed(&self) -> Option<Instant> {
        lock(&self.shared.sight.looked).viewed
    }

    fn ask_others(&self, now: Instant, why: Why) {
        {
            let mut looked = lock(&self.shared.sight.looked);
            let before = looked.asked.map(|at| now.saturating_duration_since(at));
            if before.is_some_and(|pause| pause < HASTY) {
                return;
            }
            (looked.asked, looked.pause) = (Some(now), before.unwrap_or_default());
        }
        self.shared.router.ask_bulletins(why);
    }

    /// Whether every member that can be reached told something since then.
    fn all_told(&self, since: Instant) -> bool {
        let told = self.shared.router.bulletins();
        let recent = |id: NodeId| told.get(&id).is_some_and(|one| one.at >= since);
        let view = self.shared.router.view();
        let mut reachable = view.members.iter().filter(|member| member.connected);
        reachable.all(|member| recent(member.id))
    }

    /// The picture of what is known now.
    fn picture(&self) -> Topology {
        let status = self.status();
        let told = self.shared.router.bulletins();
        let stale = STALE + lock(&self.shared.sight.looked).pause;
        let members = self.peers().peers.into_iter().map(|peer| Member {
            report: match peer.state {
                PeerState::Myself => Ok(self.report()),
                PeerState::Connected => read(told.get(&peer.id), stale),
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

/// How often the past is recorded while nobody looks, by how many members there are; not at all where they are too many.
fn quiet(members: usize) -> Option<Duration> {
    (members <= QUIET_MEMBERS).then(|| QUIET.max(QUIET_EACH * members as u32))
}

/// A member's report, or why there is none.
fn read(told: Option<&Bulletin>, stale: Duration) -> Result<Report, String> {
    let told = told.ok_or("it has told nothing yet; an older version of weaved never does")?;
    let silent = told.at.elapsed();
    if silent > stale {
        return Err(format!("it has told nothing for {} s", silent.as_secs()));
    }
    serde_json::from_slice(&told.text)
        .map_err(|_| "it tells what this version of weaved cannot read".to_owned())
}

/// Links and flows that are told even where there is no room for all containers.
const FEW: usize = 16;

/// Problems that are told where there is no room for all.
const FEW_PROBLEMS: usize = 8;

/// A report as text that may be told: what does not fit is left out and counted, processes first, then links and flows,
/// whichever are more, then containers.
fn fitting(mut report: Report, me: NodeId) -> Vec<u8> {
    loop {
        let text = serde_json::to_vec(&report).expect("names and numbers are JSON");
        if text.len() <= MAX_TEXT || !shorten(&mut report, me) {
            return text;
        }
    }
}

/// Leaves out a part of a report; whether there was any left that may be.
fn shorten(report: &mut Report, me: NodeId) -> bool {
    let (links, flows) = (report.links.len(), report.flows.len());
    if report.inside.is_some() || report.containers.iter().any(|one| one.inside.is_some()) {
        report.inside = None;
        for container in &mut report.containers {
            container.inside = None;
        }
    } else if report.problems.len() > FEW_PROBLEMS {
        report.problems.truncate(FEW_PROBLEMS);
    } else if links > FEW && links >= flows {
        // Each tells of the members that come next in the ring of ids: half of its links from each are all links, while
        // the same half from both ends would leave the other untold.
        let told_first = |link: &ReportLink| {
            let is_up = link.state == PeerState::Connected;
            (is_up, link.peer < me, link.peer)
        };
        report.links.sort_by_key(told_first);
        report.more_links += halve(&mut report.links);
    } else if flows > FEW {
        report.capture.untold += halve(&mut report.flows);
    } else if !report.containers.is_empty() {
        report.more_containers += halve(&mut report.containers);
    } else {
        return false;
    }
    true
}

/// Leaves out the second half of a list; how many that were.
fn halve<T>(list: &mut Vec<T>) -> u32 {
    let left = list.len() / 2;
    list.drain(left..).count() as u32
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

    use weave_model::api::Traffic;

    use super::*;

    #[test]
    fn while_nobody_looks_a_member_is_asked_every_two_seconds_at_most() {
        for members in 1..=QUIET_MEMBERS {
            let pause = quiet(members).unwrap();
            assert!(pause >= QUIET && pause >= QUIET_EACH * members as u32);
            assert!(pause <= Duration::from_secs(60), "it is still a past");
        }
        assert_eq!(quiet(QUIET_MEMBERS + 1), None);
    }

    fn id(number: u32) -> NodeId {
        let mut bytes = [0; 32];
        bytes[..4].copy_from_slice(&number.to_be_bytes());
        NodeId::from_bytes(bytes)
    }

    fn link(peer: u32, state: PeerState) -> ReportLink {
        ReportLink {
            peer: id(peer),
            state,
            rtt_us: Some(25_000),
            loss_permille: Some(0),
            via: None,
            mtu: None,
            suite: None,
            traffic: Traffic::default(),
        }
    }

    fn told(text: &[u8]) -> Report {
        assert!(text.len() <= MAX_TEXT && text.len() > MAX_TEXT / 3);
        serde_json::from_slice(text).unwrap()
    }

    #[test]
    fn of_thousands_of_links_those_that_are_down_and_to_the_next_are_told() {
        let (mine, members) = (700, 2000);
        let others = (0..members).filter(|peer| *peer != mine);
        let links = others.map(|peer| match peer {
            3 => link(peer, PeerState::Unreachable),
            _ => link(peer, PeerState::Connected),
        });
        let report = Report {
            links: links.collect(),
            ..Report::default()
        };
        let told = told(&fitting(report, id(mine)));
        assert_eq!(told.links.len() + told.more_links as usize, 1999);
        assert_eq!(told.links[0], link(3, PeerState::Unreachable));
        let next = (mine + 1..).take(told.links.len() - 1);
        let next: Vec<_> = next.map(|peer| link(peer, PeerState::Connected)).collect();
        assert_eq!(told.links[1..], next);
    }

    #[test]
    fn a_report_of_which_nothing_more_can_be_left_out_is_no_endless_task() {
        let report = Report {
            version: "v".repeat(MAX_TEXT + 1),
            ..Report::default()
        };
        assert!(fitting(report, id(0)).len() > MAX_TEXT);
    }

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
        let told = told(&fitting(report, id(0)));
        assert_eq!(told.containers.len() + told.more_containers as usize, 5000);
    }
}
