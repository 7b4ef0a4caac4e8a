//! The ways to members: whom this node reaches itself, who can hand on to whom, and what that means for the sessions.
//!
//! [`Paths`] judges ways, [`Links`] knows what members say of theirs. Here the two meet: a member that this node reaches
//! itself, and that says it reaches another one itself, is a relay to that one.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tracing::{debug, info};
use weave_model::NodeId;

use super::Core;
use super::command::Reply;
use crate::mesh::links::Links;
use crate::mesh::message::{Link, Message};
use crate::mesh::paths::{Ask, Paths, Switch};
use crate::way::Way;
use crate::wire::{END, end_of};

/// The most relays that are known of for one member.
const MAX_RELAYS: usize = 3;
/// How long changes are gathered before it is worked out anew who can hand on to whom, and how long measurements are.
const GATHER: Duration = Duration::from_millis(50);
const GATHER_MEASURED: Duration = Duration::from_secs(5);
/// What a thousandth lost weighs beside microseconds, as where ways are measured.
const LOSS_WEIGHT: u64 = 2000;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Ways {
    pub(super) paths: Paths,
    pub(super) links: Links,
    /// What the sessions and the paths were told last, by member.
    told: BTreeMap<NodeId, (Vec<SocketAddr>, Vec<NodeId>)>,
    relink: Option<Instant>,
}

impl Ways {
    /// Who reaches whom may have changed.
    pub(super) fn relink(&mut self, now: Instant) {
        self.relink_at(now + GATHER);
    }

    fn relink_at(&mut self, at: Instant) {
        self.relink = Some(self.relink.map_or(at, |before| before.min(at)));
    }

    /// When [`Core::send_ways`] has something to do.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let timers = [
            self.paths.poll_timeout(),
            self.links.poll_timeout(),
            self.relink,
        ];
        timers.into_iter().flatten().min()
    }
}

impl Core {
    /// Sends the pings and the table of links that are due, and takes the ways that are better now.
    pub(super) fn send_ways(&mut self) {
        let now = self.now.mono;
        if self.ways.relink.take_if(|at| *at <= now).is_some() {
            self.work_out_relays();
        }
        let (asks, switches) = self.ways.paths.due(now);
        asks.into_iter().for_each(|ask| self.send_ping(ask));
        switches
            .into_iter()
            .for_each(|switch| self.take_way(switch));
        if let Some((version, links, to)) = self.ways.links.due(now) {
            let message = Message::Links { version, links };
            to.into_iter().for_each(|peer| self.send(peer, &message));
        }
    }

    fn send_ping(&mut self, ask: Ask) {
        let Ask {
            peer, id, alarm, ..
        } = ask;
        let ping = Message::Ping { id, alarm };
        self.tally.sent(&ping);
        let body = ping.encode();
        if ask.expected {
            self.sessions.send_control(peer, &body, self.now);
        } else {
            self.sessions.send_over(peer, ask.way, &body);
        }
    }

    /// Answers by the way that the question came, so that its sender learns of that way and no other.
    pub(super) fn handle_ping(&mut self, peer: NodeId, id: u64, alarm: bool, from: Way) {
        let observed = from.canonical().address();
        let pong = Message::Pong { id, observed };
        self.tally.sent(&pong);
        let body = pong.encode();
        self.sessions.send_over(peer, from, &body);
        if alarm {
            self.ways.paths.doubt(peer, false, self.now.mono);
        }
    }

    pub(super) fn handle_pong(&mut self, peer: NodeId, id: u64, observed: Option<SocketAddr>) {
        let now = self.now.mono;
        if let Some((command, rtt)) = self.echoes.answered(peer, id, now) {
            return self.reply(command, Ok(Reply::Pong { rtt, observed }));
        }
        let paths = &mut self.ways.paths;
        let (seen, before) = (paths.observed(), (paths.rtt(peer), paths.loss(peer)));
        let Some(switch) = paths.pong(peer, id, observed, now) else {
            return;
        };
        let after = (paths.rtt(peer), paths.loss(peer));
        let near = |a: Option<Duration>, b: Option<Duration>| {
            a.zip(b).is_some_and(|(a, b)| a.abs_diff(b) <= a / 8)
        };
        let seen_anew = paths.observed() != seen;
        if !near(before.0, after.0) || before.1 != after.1 {
            self.ways.relink_at(now + GATHER_MEASURED);
            self.changed();
        }
        if let Some(switch) = switch {
            self.take_way(switch);
        }
        if seen_anew {
            self.changed();
            self.publish();
        }
    }

    fn take_way(&mut self, Switch { peer, way, reason }: Switch) {
        info!(peer = %peer.short(), %way, %reason, "packets take another way");
        self.sessions.set_way(peer, way, self.now);
    }

    pub(super) fn handle_links(&mut self, peer: NodeId, version: u64, links: &[Link]) {
        let now = self.now.mono;
        let (taken, news) = self.ways.links.take(peer, version, links, now);
        if taken {
            self.send(peer, &Message::LinksAck { version });
        }
        if news {
            debug!(peer = %peer.short(), count = links.len(), "a table of links");
            self.ways.relink(now);
        }
    }

    /// The members that this node reaches without a relay, with round-trip time and loss.
    fn direct_links(&self) -> BTreeMap<NodeId, Link> {
        let reached = self.links.iter().filter(|(peer, link)| {
            link.up && !link.silent && link.way.is_direct() && self.reach.keeps(**peer)
        });
        let link = |peer: &NodeId| Link {
            end: end_of(peer),
            rtt_us: micros(self.ways.paths.rtt(*peer)),
            loss: self.ways.paths.loss(*peer).unwrap_or(0),
        };
        reached.map(|(peer, _)| (*peer, link(peer))).collect()
    }

    /// Works out who can hand on to whom, tells the sessions and the paths, and what others should know of it.
    fn work_out_relays(&mut self) {
        let now = self.now.mono;
        let direct = self.direct_links();
        let mut relays: BTreeMap<[u8; END], BTreeSet<(u64, NodeId)>> = BTreeMap::new();
        for (relay, first) in &direct {
            for second in self.ways.links.of(*relay) {
                let score = score(first) + score(second);
                relays
                    .entry(second.end)
                    .or_default()
                    .insert((score, *relay));
            }
        }
        for peer in self.reach.kept().clone() {
            let relays = relays.get(&end_of(&peer)).into_iter().flatten();
            let relays = relays.map(|(_, relay)| *relay);
            let relays = relays.filter(|relay| *relay != peer).take(MAX_RELAYS);
            let told = (self.addresses_of(peer), relays.collect::<Vec<_>>());
            if self.ways.told.get(&peer) != Some(&told) {
                self.sessions.set_relays(peer, told.1.clone(), self.now);
                self.ways.told.insert(peer, told.clone());
            }
            self.ways.paths.offer(peer, &told.0, &told.1);
            let lost = |(way, ..): (Way, _, _)| {
                way.relay()
                    .is_some_and(|relay| !direct.contains_key(&relay))
            };
            if self.ways.paths.way(peer).is_some_and(lost) {
                self.ways.paths.doubt(peer, true, now);
            }
        }
        self.ways.told.retain(|peer, _| self.reach.keeps(*peer));
        self.ways
            .links
            .set(self.me, direct.into_values().collect(), now);
    }

    /// Where a member may be asked without a relay: where it was heard last, then where it is dialled.
    fn addresses_of(&self, peer: NodeId) -> Vec<SocketAddr> {
        let heard = self
            .sessions
            .status(peer)
            .and_then(|status| status.endpoint);
        let mut addresses = Vec::from_iter(heard);
        let dialled = self
            .records
            .get(&peer)
            .map(|record| self.dialled_at(record));
        for address in dialled.into_iter().flatten() {
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
        addresses
    }
}

fn micros(time: Option<Duration>) -> u32 {
    time.map_or(0, |time| time.as_micros().min(u32::MAX.into()) as u32)
}

fn score(link: &Link) -> u64 {
    u64::from(link.rtt_us) + u64::from(link.loss) * LOSS_WEIGHT
}
