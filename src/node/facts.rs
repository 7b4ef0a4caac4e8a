//! What is known of a container beyond its attachment: what runs in it, and what its runtime says of it.
//!
//! The two belong to a network namespace, and so to the attachments in it. An attachment that Docker asked for does not know
//! its namespace, since Docker moves the interface; there Docker itself says which one it is.
//!
//! Most is found out while somebody looks. A runtime is asked as well when it attached a container of which it has not said
//! anything yet, so that who looks next finds it by the name that people know.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt as _;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use weave_model::api::{Attachment, Inside, RuntimeInfo};
use weave_model::{ContainerName, IfName};

use crate::config::RuntimeSockets;

use super::Node;
use super::book::Entry;
use super::containers::UNKNOWN;
use super::inside::Insides;
use super::runtimes::Runtimes;

/// What was found longer ago is not told.
const STALE: Duration = Duration::from_secs(20);

/// How many times runtimes are asked about a container that nobody looks at.
const TRIES: u32 = 3;

/// Which attachment: another of the same name comes at another time.
type Key = (ContainerName, IfName, u64);

/// What the node found out last.
#[derive(Debug, Default)]
pub(super) struct Facts {
    insides: Mutex<Insides>,
    runtimes: Mutex<Runtimes>,
    named: Mutex<Named>,
}

/// What runtimes said of each attachment, as long as there is one.
#[derive(Debug, Default)]
struct Named {
    known: BTreeMap<Key, RuntimeInfo>,
    /// How many times they were asked about those of which they have said nothing.
    tries: BTreeMap<Key, u32>,
}

impl Named {
    /// Takes what is said of the attachments that there are now; what is not said is as before.
    fn learn(&mut self, said: impl Iterator<Item = (Key, Option<RuntimeInfo>)>) {
        let mut before = std::mem::take(&mut self.known);
        let all = said.filter_map(|(key, info)| {
            let info = info.or_else(|| before.remove(&key))?;
            Some((key, info))
        });
        self.known = all.collect();
    }

    /// Those of these about which runtimes are to be asked.
    fn open(&self, keys: impl Iterator<Item = Key>) -> Vec<Key> {
        let tries = |key: &Key| self.tries.get(key).copied().unwrap_or_default();
        keys.filter(|key| !self.known.contains_key(key) && tries(key) < TRIES)
            .collect()
    }

    /// Notes that they were asked about these, and forgets what is gone.
    fn asked(&mut self, open: Vec<Key>, all: &BTreeSet<Key>) {
        self.tries.retain(|key, _| all.contains(key));
        for key in open {
            *self.tries.entry(key).or_default() += 1;
        }
    }
}

fn key(entry: &Entry) -> Key {
    let Attachment {
        name,
        ifname,
        attached_at,
        ..
    } = &entry.attachment;
    (name.clone(), ifname.clone(), *attached_at)
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
            named: Mutex::default(),
        }
    }

    /// What runtimes call what is attached by another name.
    pub(super) fn called<'a>(
        &self,
        entries: impl Iterator<Item = &'a Entry>,
    ) -> BTreeMap<ContainerName, String> {
        let named = lock(&self.named);
        let all = entries.filter_map(|entry| {
            let info = named.known.get(&key(entry))?;
            let called = info.pod.as_ref().unwrap_or(&info.name);
            Some((entry.attachment.name.clone(), called.clone()))
        });
        all.filter(|(name, called)| !called.is_empty() && name.as_str() != called)
            .collect()
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
    /// Asks runtimes about what they attached and have not said anything of, whether somebody looks or not.
    pub(super) async fn learn_names(&self) {
        let facts = &self.shared.sight.facts;
        let book = self.shared.published.borrow().book.clone();
        let of_runtimes = || book.entries().filter(|one| one.attachment.owner.is_some());
        let open = lock(&facts.named).open(of_runtimes().map(key));
        if open.is_empty() {
            return;
        }
        let Some(question) = lock(&facts.runtimes).due(Instant::now()) else {
            return;
        };
        let answer = question.ask().await;
        lock(&facts.runtimes).learn(answer);
        let mut named = lock(&facts.named);
        named.asked(open, &of_runtimes().map(key).collect());
        named.learn(book.entries().map(|one| (key(one), facts.place(one).1)));
    }

    /// Finds out what is due, while somebody looks.
    pub(super) async fn look_inside(&self) {
        let (now, facts) = (Instant::now(), &self.shared.sight.facts);
        let question = lock(&facts.runtimes).due(now);
        if let Some(question) = question {
            let answer = question.ask().await;
            lock(&facts.runtimes).learn(answer);
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
        let book = self.shared.published.borrow().book.clone();
        let mut named = lock(&facts.named);
        let recent = insides.is_of_last(STALE, Instant::now());
        let mut running = BTreeMap::new();
        if recent {
            let placed = book.entries().map(|entry| {
                let (key, (netns, runtime)) = (key(entry), facts.place(entry));
                if let Some(inside) = insides.of(netns) {
                    running.insert(key.clone(), inside.clone());
                }
                (key, runtime)
            });
            named.learn(placed);
        }
        let attachments = book.entries().map(key).map(|key| {
            let known = (running.remove(&key), named.known.get(&key).cloned());
            ((key.0, key.1), known)
        });
        Known {
            attachments: attachments.collect(),
            host: insides.of(own_netns()).filter(|_| recent).cloned(),
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

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    fn attached(name: &str, at: u64) -> Key {
        (name.parse().unwrap(), IfName::eth0(), at)
    }

    fn info(name: &str) -> RuntimeInfo {
        RuntimeInfo {
            runtime: "docker".to_owned(),
            id: "2a".to_owned(),
            name: name.to_owned(),
            image: String::new(),
            pod: None,
            namespace: None,
            workload: None,
            labels: BTreeMap::new(),
        }
    }

    #[test]
    fn a_name_is_known_as_long_as_its_attachment_is_there() {
        let (web, again) = (attached("docker-aa", 1), attached("docker-aa", 2));
        let mut named = Named::default();
        named.learn([(web.clone(), Some(info("web")))].into_iter());
        named.learn([(web.clone(), None)].into_iter());
        assert_eq!(named.known[&web].name, "web", "nobody says anything else");
        named.learn([(web.clone(), Some(info("shop")))].into_iter());
        assert_eq!(named.known[&web].name, "shop", "it was renamed");
        named.learn([(again, None)].into_iter());
        assert!(named.known.is_empty(), "another one of that name");
    }

    #[test]
    fn runtimes_are_asked_about_what_they_attached_until_they_tell_or_have_not() {
        let (web, db) = (attached("docker-aa", 1), attached("docker-bb", 1));
        let both: BTreeSet<Key> = [web.clone(), db.clone()].into();
        let mut named = Named::default();
        let open = |named: &Named| named.open(both.iter().cloned());
        assert_eq!(open(&named), [web.clone(), db.clone()]);
        named.asked(open(&named), &both);
        named.learn([(web.clone(), Some(info("web"))), (db.clone(), None)].into_iter());
        for _ in 1..TRIES {
            assert_eq!(open(&named), std::slice::from_ref(&db));
            named.asked(open(&named), &both);
        }
        assert!(open(&named).is_empty(), "they will not say");
        named.asked(Vec::new(), &[web].into());
        assert!(named.tries.keys().all(|key| *key != db), "it is gone");
    }
}
