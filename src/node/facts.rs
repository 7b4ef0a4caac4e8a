//! What is known of a container beyond its attachment: what runs in it, and what its runtime says of it.
//!
//! The two belong to a network namespace, and so to the attachments in it. An attachment that Docker asked for does not know
//! its namespace, since Docker moves the interface; there Docker itself says which one it is.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt as _;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use weave_model::api::{Inside, RuntimeInfo};
use weave_model::{ContainerName, IfName};

use crate::config::RuntimeSockets;

use super::Node;
use super::book::Entry;
use super::containers::UNKNOWN;
use super::inside::Insides;
use super::runtimes::Runtimes;

/// What was found longer ago is not told.
const STALE: Duration = Duration::from_secs(20);

/// What the node found out last.
#[derive(Debug, Default)]
pub(super) struct Facts {
    insides: Mutex<Insides>,
    runtimes: Mutex<Runtimes>,
}

/// What is known of each attachment, and what runs on the host.
#[derive(Debug, Default)]
pub(super) struct Known {
    attachments: BTreeMap<(ContainerName, IfName), (Option<Inside>, Option<RuntimeInfo>)>,
    pub(super) host: Option<Inside>,
}

impl Known {
    /// What is known of one attachment.
    pub(super) fn take(
        &mut self,
        name: &ContainerName,
        ifname: &IfName,
    ) -> (Option<Inside>, Option<RuntimeInfo>) {
        let key = (name.clone(), ifname.clone());
        self.attachments.remove(&key).unwrap_or_default()
    }
}

impl Facts {
    /// Nothing known yet; runtimes will be asked at these sockets.
    pub(super) fn new(sockets: RuntimeSockets) -> Self {
        Self {
            insides: Mutex::default(),
            runtimes: Mutex::new(Runtimes::new(sockets)),
        }
    }

    fn place(&self, entry: &Entry) -> (u64, Option<RuntimeInfo>) {
        let runtimes = lock(&self.runtimes);
        let owner = entry.attachment.owner.as_ref();
        let by_name = owner.and_then(|owner| runtimes.attached_as(owner.container.as_str()));
        if entry.netns_id == UNKNOWN {
            return by_name.map_or((0, None), |(netns, info)| (netns, Some(info.clone())));
        }
        let netns = entry.netns_id.1;
        let by_netns = runtimes.in_netns(netns);
        (
            netns,
            by_netns.or_else(|| by_name.map(|(_, info)| info)).cloned(),
        )
    }
}

impl Node {
    /// Finds out what is due, while somebody looks.
    pub(super) async fn look_inside(&self) {
        let (now, facts) = (Instant::now(), &self.shared.sight.facts);
        let question = lock(&facts.runtimes).due(now);
        if let Some(question) = question {
            let answer = question.ask().await;
            let obstacles = lock(&facts.runtimes).learn(answer);
            for (runtime, obstacle) in obstacles {
                match obstacle {
                    Some(obstacle) => self.cannot_serve(runtime, obstacle),
                    None => self.serves(runtime),
                }
            }
        }
        if !lock(&facts.insides).is_due(now) {
            return;
        }
        let mut insides = lock(&facts.insides).clone();
        let book = self.shared.published.borrow().book.clone();
        let mut wanted: BTreeSet<u64> = book.entries().map(|one| facts.place(one).0).collect();
        wanted.insert(own_netns());
        let looked = tokio::task::spawn_blocking(move || {
            insides.look(&wanted, now);
            insides
        });
        if let Ok(insides) = looked.await {
            *lock(&facts.insides) = insides;
        }
    }

    /// What was found out, as far as it is of now.
    pub(super) fn known_facts(&self) -> Known {
        let facts = &self.shared.sight.facts;
        let insides = lock(&facts.insides);
        if !insides.is_of_last(STALE, Instant::now()) {
            return Known::default();
        }
        let book = self.shared.published.borrow().book.clone();
        let attachments = book.entries().map(|entry| {
            let (netns, runtime) = facts.place(entry);
            let (name, ifname) = (&entry.attachment.name, &entry.attachment.ifname);
            let inside = insides.of(netns).cloned();
            ((name.clone(), ifname.clone()), (inside, runtime))
        });
        Known {
            attachments: attachments.collect(),
            host: insides.of(own_netns()).cloned(),
        }
    }
}

/// The network namespace of this process, as the kernel numbers it; 0 if that cannot be told.
pub(crate) fn own_netns() -> u64 {
    std::fs::metadata("/proc/self/ns/net").map_or(0, |found| found.ino())
}

/// What a mutex guards; a thread that panicked with it left nothing half done.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
