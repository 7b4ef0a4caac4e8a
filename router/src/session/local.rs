//! This node's side of every session: its keys, its cluster, its random source, and what waits to be polled.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};
use weave_model::{Durations, NodeId, Suite};
use zeroize::Zeroizing;

use super::events::{SessionConfig, SessionEvent};
use crate::keys::{ClusterSecret, NodeKeys, OldSecret};
use crate::noise::ik::{About, Cluster};
use crate::noise::locks::Locks;
use crate::time::{Now, Start};
use crate::way::Way;

/// One epoch of the cluster's secret, with the keys of what others send to this node.
pub(super) struct Epoch {
    pub(super) secret: ClusterSecret,
    pub(super) mac_key: Zeroizing<[u8; 32]>,
    pub(super) cookie_key: Zeroizing<[u8; 32]>,
}

/// See the module.
pub(super) struct Local {
    pub(super) keys: Arc<NodeKeys>,
    pub(super) id: NodeId,
    pub(super) config: SessionConfig,
    pub(super) start: Start,
    pub(super) rng: StdRng,
    cluster: [u8; 32],
    /// The current epoch first, then the one before. Empty outside a cluster.
    pub(super) epochs: Vec<Epoch>,
    /// Epochs that are accepted no longer: whoever begins a handshake in one is told so.
    pub(super) old: Vec<OldSecret>,
    /// The stamp of the last initiation sent.
    stamp: u64,
    /// Whose handshake or session has an index.
    indices: BTreeMap<u32, NodeId>,
    /// The keys or the indices are others than when [`Local::lock`] was called last.
    relocked: bool,
    /// The way of each is looked at when it is polled: what is relayed goes in a session with the relay.
    pub(super) transmits: VecDeque<(Way, Vec<u8>)>,
    pub(super) events: VecDeque<SessionEvent>,
    /// How long handshakes took that this node began.
    pub(super) handshakes: Durations,
}

impl Local {
    pub(super) fn new(
        keys: Arc<NodeKeys>,
        config: SessionConfig,
        seed: [u8; 32],
        now: Now,
    ) -> Self {
        Self {
            id: keys.id(),
            keys,
            stamp: config.stamp_floor,
            config,
            start: Start::at(now.mono),
            rng: StdRng::from_seed(seed),
            cluster: [0; 32],
            epochs: Vec::new(),
            old: Vec::new(),
            indices: BTreeMap::new(),
            relocked: false,
            transmits: VecDeque::new(),
            events: VecDeque::new(),
            handshakes: Durations::default(),
        }
    }

    pub(super) fn set_cluster(
        &mut self,
        id: [u8; 32],
        secrets: impl IntoIterator<Item = ClusterSecret>,
    ) {
        self.cluster = id;
        let epoch = |secret: ClusterSecret| Epoch {
            mac_key: secret.mac_key(&self.id),
            cookie_key: secret.cookie_key(&self.id),
            secret,
        };
        self.epochs = secrets.into_iter().map(epoch).collect();
        self.relocked = true;
    }

    /// The keys of an epoch, if it is one of those accepted now.
    pub(super) fn epoch(&self, number: u32) -> Option<&Epoch> {
        self.epochs
            .iter()
            .find(|epoch| epoch.secret.epoch == number)
    }

    /// The newest epoch that is accepted.
    pub(super) fn newest_epoch(&self) -> u32 {
        self.epochs.first().map_or(0, |epoch| epoch.secret.epoch)
    }

    /// What both sides of a handshake in that epoch share.
    pub(super) const fn cluster<'a>(&'a self, epoch: &'a Epoch) -> Cluster<'a> {
        Cluster {
            id: &self.cluster,
            secret: &epoch.secret,
        }
    }

    pub(super) const fn cluster_id(&self) -> &[u8; 32] {
        &self.cluster
    }

    pub(super) const fn about(&self) -> About {
        About {
            boot: self.config.boot,
            record: self.config.record,
            lanes: self.config.lanes,
        }
    }

    /// The suites to offer in turn, the preferred one first.
    pub(super) fn offers(&self) -> impl Iterator<Item = Suite> + '_ {
        let preferred = self.config.preferred;
        std::iter::once(preferred).chain(
            self.config
                .suites
                .iter()
                .copied()
                .filter(move |&suite| suite != preferred),
        )
    }

    /// A random index that nobody has: a guess of it succeeds once in 2^32.
    pub(super) fn claim_index(&mut self, peer: NodeId) -> u32 {
        loop {
            let index = self.rng.next_u32();
            if index != 0 && !self.indices.contains_key(&index) {
                self.indices.insert(index, peer);
                self.relocked = true;
                return index;
            }
        }
    }

    pub(super) fn free_index(&mut self, index: u32) {
        self.indices.remove(&index);
        self.relocked = true;
    }

    /// Whether [`Local::lock`] has something new to say.
    pub(super) const fn is_relocked(&self) -> bool {
        self.relocked
    }

    /// Puts in what members' handshakes are told by.
    pub(super) fn lock(&mut self, locks: &mut Locks) {
        self.relocked = false;
        let accepted = self.epochs.iter();
        let accepted = accepted.map(|epoch| (epoch.secret.epoch, epoch.mac_key.clone()));
        let old = self.old.iter().map(|old| (old.epoch, old.mac_key.clone()));
        locks.epochs = old.chain(accepted).collect();
        locks.indices.extend(self.indices.keys());
    }

    pub(super) fn owner(&self, index: u32) -> Option<NodeId> {
        self.indices.get(&index).copied()
    }

    /// A stamp higher than every one before: nanoseconds of the wall clock, or one more than the last if that stepped
    /// back (as TAI64N in WireGuard).
    pub(super) fn stamp(&mut self, now: Now) -> u64 {
        let wall = u64::try_from(now.wall.as_nanos()).unwrap_or(u64::MAX);
        self.stamp = wall.max(self.stamp.saturating_add(1));
        self.stamp
    }

    pub(super) const fn last_stamp(&self) -> u64 {
        self.stamp
    }

    /// A random share of `most`, so that nodes which failed together do not retry together.
    pub(super) fn jitter(&mut self, most: Duration) -> Duration {
        most.mul_f64(self.rng.random_range(0.0..1.0))
    }

    /// A random source of its own for one handshake.
    pub(super) fn fork(&mut self) -> StdRng {
        StdRng::from_rng(&mut self.rng)
    }

    pub(super) fn transmit(&mut self, to: Way, bytes: Vec<u8>) {
        self.transmits.push_back((to, bytes));
    }

    pub(super) fn emit(&mut self, event: SessionEvent) {
        self.events.push_back(event);
    }
}
