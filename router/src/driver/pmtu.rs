//! What each path carries: packetization layer path MTU discovery (RFC 8899), for every lane of every member.
//!
//! A probe is a control message padded to a size, sealed in the session and sent with DF over the lane it asks about;
//! the answer is small. Nothing is believed but these answers: neither an ICMP error, which anybody may forge, nor the
//! kernel's route. The device that leads to the member only says where to stop looking.
//!
//! Each lane of a member is a [`Path`] of its own, since its source port may lead it another way. [`Mtus`] keeps the
//! paths, writes what they find where the data threads read it ([`OpenLanes`]), and tells the shell what to send.

#![deny(clippy::disallowed_methods)]

mod path;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use weave_model::NodeId;

use crate::path::routes::OpenLanes;
use crate::wire::MAX_LANES;
use path::{Fate, Path};

/// First byte of a control message that asks whether its size passes; four bytes of id follow, then padding.
pub(super) const PROBE: u8 = 34;
/// First byte of the answer, which goes over lane 0; the lane, the four bytes of the id and two bytes with the size of the
/// largest datagram that came by the lane lately follow (see [`Answer`]).
pub(super) const ANSWER: u8 = 35;

/// The least packet that is ever used, in bytes (BASE_PLPMTU and MIN_PLPMTU, RFC 8899 §5.1.2).
const FLOOR: u16 = 1200;
/// The largest packet that is tried, whatever the device could take: loopback's 65,536 would leave one slice a packet.
const CEILING: u16 = 9000;
/// How often is looked which lanes carry packets. One that carries none costs nothing.
const LOOK: Duration = Duration::from_millis(250);

/// After how many rounds of which nothing was heard a lane is given up.
const SILENCE: u32 = 3;
/// How long ago a member's last answer over lane 0 shows that it is there.
const RECENT: Duration = Duration::from_secs(1);

/// A probe to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Probe {
    /// To whom.
    pub(super) peer: NodeId,
    /// Over which lane.
    pub(super) lane: u8,
    /// Comes back in the answer.
    pub(super) id: u32,
    /// Bytes of UDP payload; 0 for as few as it takes.
    pub(super) datagram: u16,
}

/// What came back for a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    /// The lane that the probe came by.
    pub(super) lane: u8,
    /// The probe's.
    pub(super) id: u32,
    /// The largest datagram that the peer received by that lane since the control message before the probe, in bytes of
    /// UDP payload.
    pub(super) largest: u16,
}

/// The paths to one member.
#[derive(Debug)]
struct Peer {
    known: Arc<OpenLanes>,
    /// Bytes of the IP and UDP headers.
    headers: u16,
    /// What the device carries, in bytes of packet.
    top: u16,
    paths: BTreeMap<u8, Path>,
}

/// The paths to all members.
#[derive(Debug, Default)]
pub(super) struct Mtus {
    peers: BTreeMap<NodeId, Peer>,
    last_id: u32,
    looked: Option<Instant>,
}

impl Mtus {
    /// A session came up or its keys changed. `known` is where its lanes are published: another one than before means
    /// another path, of which nothing is known. `headers` are the bytes of IP and UDP headers, `device` the MTU of the
    /// device that leads there.
    pub(super) fn up(
        &mut self,
        peer: NodeId,
        known: &Arc<OpenLanes>,
        (headers, device): (u16, u32),
        now: Instant,
    ) {
        if let Some(same) = self.peers.get_mut(&peer)
            && Arc::ptr_eq(&same.known, known)
        {
            same.paths.values_mut().for_each(|path| path.hurry(now));
            self.device(peer, device, now);
            return;
        }
        let fresh = Peer {
            known: Arc::clone(known),
            headers,
            top: top(device),
            paths: BTreeMap::new(),
        };
        self.peers.insert(peer, fresh);
        self.open(peer, 0, now);
    }

    /// A lane turned out to get through: what it carries is asked next.
    pub(super) fn open(&mut self, peer: NodeId, lane: u8, now: Instant) {
        if let Some(state) = self.peers.get_mut(&peer)
            && usize::from(lane) < MAX_LANES
        {
            state.paths.insert(lane, Path::new(state.top, now));
            state.publish(peer, lane);
        }
    }

    /// The session is gone.
    pub(super) fn down(&mut self, peer: NodeId) {
        self.peers.remove(&peer);
    }

    /// The MTU of the device that leads to a member, in bytes of packet, as it is now.
    pub(super) fn device(&mut self, peer: NodeId, mtu: u32, now: Instant) {
        let Some(state) = self.peers.get_mut(&peer) else {
            return;
        };
        state.top = top(mtu);
        for path in state.paths.values_mut() {
            path.set_top(state.top, now);
        }
        state
            .paths
            .keys()
            .for_each(|lane| state.publish(peer, *lane));
    }

    /// A probe was answered.
    pub(super) fn answered(&mut self, peer: NodeId, answer: Answer, now: Instant) {
        let Some(state) = self.peers.get_mut(&peer) else {
            return;
        };
        if let Some(path) = state.paths.get_mut(&answer.lane) {
            let largest = answer.largest.saturating_add(state.headers);
            path.answered(answer.id, largest, now);
            state.publish(peer, answer.lane);
        }
    }

    /// Concludes what can be concluded, and returns the probes to send now and the lanes over which not even small ones
    /// are answered any more, though packets go that way.
    pub(super) fn due(&mut self, now: Instant) -> (Vec<Probe>, Vec<(NodeId, u8)>) {
        let looks = self
            .looked
            .is_none_or(|looked| now.saturating_duration_since(looked) >= LOOK);
        if looks {
            self.looked = Some(now);
        }
        let (mut probes, mut silent) = (Vec::new(), Vec::new());
        for (id, peer) in &mut self.peers {
            let mut fell = false;
            for lane in 0..MAX_LANES as u8 {
                let Some(path) = peer.paths.get_mut(&lane) else {
                    continue;
                };
                if looks {
                    path.look(|| peer.known.take_used(lane), now);
                }
                let (fate, sizes) = path.handle_timeout(&mut self.last_id, now);
                probes.extend(sizes.into_iter().map(|(probe, size)| Probe {
                    peer: *id,
                    lane,
                    id: probe,
                    datagram: size.saturating_sub(peer.headers),
                }));
                match fate {
                    Fate::Same => continue,
                    Fate::Silent { rounds, since } => {
                        if lane != 0 && peer.answers(since, now) && rounds >= SILENCE {
                            peer.paths.remove(&lane);
                            silent.push((*id, lane));
                        }
                        continue;
                    }
                    Fate::BlackHole { was } => {
                        let peer = id.short();
                        tracing::info!(%peer, lane, was, "packets of this size vanish on the way");
                        fell = true;
                    }
                }
                peer.publish(*id, lane);
            }
            // The other lanes probably share the way, whether they are used now or not.
            if fell {
                peer.paths.values_mut().for_each(|path| path.doubt(now));
            }
        }
        (probes, silent)
    }

    /// When [`Mtus::due`] has something next.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let paths = || self.peers.values().flat_map(|peer| peer.paths.values());
        let look = self.looked.map(|looked| looked + LOOK);
        let look = paths().next().and(look);
        paths().filter_map(Path::poll_timeout).chain(look).min()
    }
}

impl Peer {
    /// Whether the member answered over lane 0 just now, or since. If not, it is asked: a lane is given up only where
    /// another one works, not when a member is overwhelmed or gone.
    fn answers(&mut self, since: Instant, now: Instant) -> bool {
        let Some(path) = self.paths.get_mut(&0) else {
            return false;
        };
        path.doubt(now);
        let recent = |at| at >= since || now.saturating_duration_since(at) <= RECENT;
        path.last_answer().is_some_and(recent)
    }

    /// Writes what is known of a lane's path to where the data threads read it.
    fn publish(&self, peer: NodeId, lane: u8) {
        let Some((size, reason)) = self.paths.get(&lane).map(Path::found) else {
            return;
        };
        let (datagram, before) = (size - self.headers, self.known.path(lane));
        if before != (usize::from(datagram), reason) {
            let peer = peer.short();
            tracing::debug!(%peer, lane, size, %reason, "what a path carries");
            self.known.set_path(lane, datagram, reason);
        }
    }
}

/// The largest packet to try where a device carries `mtu`.
fn top(mtu: u32) -> u16 {
    u16::try_from(mtu).unwrap_or(CEILING).clamp(FLOOR, CEILING)
}

#[cfg(test)]
mod tests;
