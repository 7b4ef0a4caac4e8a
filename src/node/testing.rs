//! The test of the network: containers of the node's own talk to each other, on this node and with each other member.
//!
//! One namespace here asks, a responder here and one lent by each member answer ([`super::notes`]). Small datagrams, ones
//! that are larger than any path, and a stream go both ways in both families; while datagrams go to another node, one
//! listener inside the asking container must be able to read them and another at the uplink must not. Everything that was
//! made for it goes when the test ends, also when whoever asked goes away in the middle.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::{JoinSet, spawn_blocking};
use weave_linux::netlink::Netlink;
use weave_linux::netns::Netns;
use weave_linux::sniff::Place;
use weave_model::NodeName;
use weave_model::api::{Code, Refusal, TestCase, TestOutcome, TestReport, TestRequest};
use weave_router::core::view::Member;

use super::responder::{At, Responder};
use super::seat::Seat;
use super::traffic::{self, Ear, Overheard};
use super::{Node, notes};

/// How long a test may take; what is not done by then was not run.
const LONGEST: Duration = Duration::from_secs(25);

/// How many members are tested with at a time.
const AT_ONCE: usize = 8;

/// Sizes in bytes and numbers of datagrams: small ones, and ones that take several packets on every path.
const SMALL: (usize, usize) = (64, 10);
const LARGE: (usize, usize) = (8000, 4);

/// Bytes of a stream, each way.
const STREAM: usize = 1 << 20;

/// What to do when packets between containers of one node are lost.
const LOCAL_FIX: &str =
    "see where it is dropped with: weavectl trace, and look at the host's firewall";

/// What to do when packets to another node are lost.
const REMOTE_FIX: &str =
    "see the session with: weavectl connections, and the firewall of both hosts";

impl Node {
    /// Tests the network for a few seconds.
    pub async fn test(&self, request: TestRequest) -> Result<TestReport, Refusal> {
        let busy = || {
            let cause = "a test is under way on this node already";
            Refusal::new(Code::Conflict, cause, "wait until it has ended")
        };
        let _only_one = self.shared.testing.try_lock().map_err(|_| busy())?;
        let members = self.to_test(&request.peers)?;
        let start = Instant::now();
        let seat = Seat::take(self).await?;
        let responder = Responder::start(self).await?;
        let here = self.shared.router.view().name.clone();
        let asking = seat.netns();
        let local = {
            let (asking, at, here) = (Arc::clone(&asking), responder.at().clone(), here.clone());
            spawn_blocking(move || talk(&asking, &here, &at, LOCAL_FIX)).await
        };
        let mut cases = local.unwrap_or_default();
        cases.extend(self.test_members(&members, &asking, start + LONGEST).await);
        let worst = cases.iter().map(|case| case.outcome).max();
        Ok(TestReport {
            outcome: worst.unwrap_or(TestOutcome::Failed),
            node: here,
            took_ms: start.elapsed().as_millis() as u64,
            cases,
        })
    }

    fn to_test(&self, names: &[String]) -> Result<Vec<Member>, Refusal> {
        if names.is_empty() {
            return Ok(self.shared.router.view().members.clone());
        }
        names.iter().map(|name| self.member(name)).collect()
    }

    async fn test_members(
        &self,
        members: &[Member],
        asking: &Arc<Netns>,
        until: Instant,
    ) -> Vec<TestCase> {
        let mut waiting = members.iter().cloned();
        let mut running = JoinSet::new();
        let mut done: Vec<(NodeName, Vec<TestCase>)> = Vec::new();
        loop {
            while running.len() < AT_ONCE
                && let Some(member) = waiting.next()
            {
                let (node, asking) = (self.away(), Arc::clone(asking));
                running.spawn(async move {
                    let name = member.name.clone();
                    let cases = test_member(&node, &member, asking).await;
                    (name, cases)
                });
            }
            let Ok(Some(ended)) = tokio::time::timeout_at(until.into(), running.join_next()).await
            else {
                break;
            };
            done.extend(ended);
        }
        let late = members
            .iter()
            .filter(|member| done.iter().all(|(name, _)| *name != member.name));
        let late: Vec<_> = late
            .map(|member| (member.name.clone(), vec![not_in_time(&member.name)]))
            .collect();
        done.extend(late);
        done.sort_by(|one, two| one.0.cmp(&two.0));
        done.into_iter().flat_map(|(_, cases)| cases).collect()
    }
}

/// All cases with one other member.
async fn test_member(node: &super::AwayNode, member: &Member, asking: Arc<Netns>) -> Vec<TestCase> {
    let began = Instant::now();
    let name = member.name.clone();
    let failed =
        |found: String, fix: String| vec![case(&name, "session", Err(found), Some(fix), began)];
    if !member.connected {
        let fix = "check that weaved runs there, and that UDP passes between the hosts";
        return failed("there is no session".to_owned(), fix.to_owned());
    }
    let Some(here) = node.back() else {
        return failed(
            "this node is stopping".to_owned(),
            "test again later".to_owned(),
        );
    };
    let borrowed = match notes::borrow(&here, member.id).await {
        Ok(borrowed) => borrowed,
        Err(refusal) => return failed(refusal.message, refusal.fix),
    };
    drop(here);
    let place = match member.endpoint {
        Some(endpoint) => uplink(endpoint).await.map(|place| (place, endpoint)),
        None => None,
    };
    let at = borrowed.at.clone();
    let with = member.name.clone();
    let work = move || {
        let mut cases = talk(&asking, &with, &at, REMOTE_FIX);
        cases.push(secrecy(&asking, &with, &at, place));
        cases
    };
    let talked = spawn_blocking(work);
    tokio::select! {
        cases = talked => cases.unwrap_or_default(),
        never = borrowed.keep() => match never {},
    }
}

/// The device by which datagrams to a member leave.
async fn uplink(endpoint: SocketAddr) -> Option<Place> {
    let netlink = Netlink::open().ok()?;
    let route = netlink.route_for(endpoint.ip()).await.ok()??;
    route.link.map(Place::Device)
}

/// Says all there is to say to a responder, in each family that both have.
fn talk(asking: &Netns, with: &NodeName, at: &At, fix: &str) -> Vec<TestCase> {
    let mut cases = Vec::new();
    for (family, is_family) in [
        ("IPv4", IpAddr::is_ipv4 as fn(&IpAddr) -> bool),
        ("IPv6", IpAddr::is_ipv6),
    ] {
        let Some(ip) = at.addresses.iter().find(|ip| is_family(ip)) else {
            let began = Instant::now();
            let mut skipped = case(
                with,
                family,
                Ok(format!("the responder has no {family}")),
                None,
                began,
            );
            skipped.outcome = TestOutcome::NotRun;
            cases.push(skipped);
            continue;
        };
        let [udp, tcp] = [at.udp, at.tcp].map(|port| SocketAddr::new(*ip, port));
        let mut add = |what: &str, run: &dyn Fn() -> Result<String, String>| {
            let began = Instant::now();
            let name = format!("{family}, {what}");
            cases.push(case(with, &name, run(), Some(fix.to_owned()), began));
        };
        add("small datagrams", &|| {
            traffic::datagrams(asking, udp, &at.secret, SMALL)
        });
        add("large datagrams", &|| {
            traffic::datagrams(asking, udp, &at.secret, LARGE)
        });
        add("a stream", &|| {
            traffic::stream(asking, tcp, &at.secret, STREAM)
        });
    }
    cases
}

/// Whether what can be read inside the container cannot be read on the wire.
fn secrecy(
    asking: &Netns,
    with: &NodeName,
    at: &At,
    place: Option<(Place, SocketAddr)>,
) -> TestCase {
    let began = Instant::now();
    let name = "ciphertext on the wire";
    let Some((place, endpoint)) = place else {
        let found =
            Ok("packets take no direct way to it, so there is no wire here to look at".to_owned());
        let mut skipped = case(with, name, found, None, began);
        skipped.outcome = TestOutcome::NotRun;
        return skipped;
    };
    let fix = "do not use this network, and report it: packets must never leave a node in clear";
    let found = overhear(asking, at, place, endpoint);
    case(with, name, found, Some(fix.to_owned()), began)
}

fn overhear(asking: &Netns, at: &At, place: Place, peer: SocketAddr) -> Result<String, String> {
    let failed = |error: std::io::Error| format!("nobody could listen: {error}");
    let ip = at.addresses.first().ok_or("the responder has no address")?;
    let inside = Ear::open(Some(asking), Place::Everywhere, at.secret, peer).map_err(failed)?;
    let wire = Ear::open(None, place, at.secret, peer).map_err(failed)?;
    let talked = traffic::datagrams(asking, SocketAddr::new(*ip, at.udp), &at.secret, (200, 20));
    let [inside, wire] = [inside.close(), wire.close()].map(|heard| heard.map_err(failed));
    let (inside, wire) = (inside?, wire?);
    talked?;
    judge(inside, wire)
}

/// What was said 20 times and answered as often must have been heard inside, and something of it on the wire.
fn judge(inside: Overheard, wire: Overheard) -> Result<String, String> {
    let Overheard {
        readable,
        with_peer,
        missed,
    } = wire;
    if readable > 0 {
        return Err(format!("{readable} packets could be read on the wire"));
    }
    if inside.readable < 40 || with_peer == 0 || missed > 0 {
        return Err(format!(
            "the listeners heard too little to tell: {} packets inside, {with_peer} on the wire, {missed} missed",
            inside.readable
        ));
    }
    Ok(format!(
        "{} packets could be read inside the container, 0 of {with_peer} on the wire",
        inside.readable
    ))
}

fn not_in_time(name: &NodeName) -> TestCase {
    let found = Ok(format!("not within {} s", LONGEST.as_secs()));
    let mut late = case(
        name,
        "all",
        found,
        Some("name fewer members".to_owned()),
        Instant::now(),
    );
    late.outcome = TestOutcome::NotRun;
    late.fix = Some("name fewer members to test with".to_owned());
    late
}

/// A case as it ended; the fix is for one that failed.
fn case(
    with: &NodeName,
    name: &str,
    result: Result<String, String>,
    fix: Option<String>,
    began: Instant,
) -> TestCase {
    let (outcome, found) = match result {
        Ok(found) => (TestOutcome::Passed, found),
        Err(found) => (TestOutcome::Failed, found),
    };
    TestCase {
        with: with.clone(),
        name: name.to_owned(),
        outcome,
        found,
        fix: fix.filter(|_| outcome == TestOutcome::Failed),
        took_ms: began.elapsed().as_millis() as u64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_read_on_the_wire_fails_and_so_do_deaf_listeners() {
        let heard = |readable, with_peer, missed| Overheard {
            readable,
            with_peer,
            missed,
        };
        assert!(judge(heard(40, 0, 0), heard(0, 50, 0)).is_ok());
        let clear = judge(heard(40, 0, 0), heard(1, 50, 0)).unwrap_err();
        assert_eq!(clear, "1 packets could be read on the wire");
        for (inside, wire) in [
            (heard(39, 0, 0), heard(0, 50, 0)),
            (heard(40, 0, 0), heard(0, 0, 0)),
            (heard(40, 0, 0), heard(0, 50, 1)),
        ] {
            assert!(judge(inside, wire).is_err(), "{inside:?} {wire:?}");
        }
    }
}
