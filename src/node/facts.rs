//! What is known of a container beyond its attachment: what runs in it, and what its runtime says of it.
//!
//! The two belong to a network namespace, and so to the attachments in it. An attachment that Docker asked for does not know
//! its namespace, since Docker moves the interface; there Docker itself says which one it is.
//!
//! While somebody looks both are found out again and again. At other times runtimes are asked because of an attachment that is
//! new, [`TIMES`] in all, so that pictures of the past have names, images, labels and pods; `/proc` is left alone then.

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
use super::runtimes::{PAUSE, Runtimes};

/// What was found longer ago is not told.
const STALE: Duration = Duration::from_secs(20);

/// How often runtimes are asked about an attachment while nobody looks: a pod is attached before its images run.
const TIMES: u32 = 3;

/// Between two such questions where no attachment is quite new.
const REST: Duration = Duration::from_secs(60);

/// What the node found out last.
#[derive(Debug, Default)]
pub(super) struct Facts {
    insides: Mutex<Insides>,
    runtimes: Mutex<Runtimes>,
    asked: Mutex<Asked>,
}

/// An attachment as it was made: its name and interface, its namespace, and when.
type Made = (ContainerName, IfName, (u64, u64), u64);

/// About which attachments runtimes were asked, and how often.
///
/// The kernel gives the number of a namespace that has gone to the next one, so what a runtime said before an attachment was
/// made is not about it.
#[derive(Clone, Debug, Default)]
struct Asked(BTreeMap<Made, u32>);

impl Asked {
    fn knows(&self, entry: &Entry) -> bool {
        self.0.contains_key(&made(entry))
    }

    /// How long after the last question to ask the next one, while nobody looks; not at all if nothing is expected of it.
    fn pause<'a>(&self, entries: impl Iterator<Item = &'a Entry>) -> Option<Duration> {
        let times = |entry| self.0.get(&made(entry)).copied().unwrap_or_default();
        let fewest = entries.map(times).min()?;
        match fewest {
            0 => Some(PAUSE),
            some => (some < TIMES).then_some(REST),
        }
    }

    /// Notes a question about these; what has gone is forgotten.
    fn again<'a>(&self, entries: impl Iterator<Item = &'a Entry>) -> Self {
        let times = entries.map(made).map(|one| {
            let before = self.0.get(&one).copied().unwrap_or_default();
            (one, before.saturating_add(1))
        });
        Self(times.collect())
    }
}

fn made(entry: &Entry) -> Made {
    let one = &entry.attachment;
    (
        one.name.clone(),
        one.ifname.clone(),
        entry.netns_id,
        one.attached_at,
    )
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
            asked: Mutex::default(),
        }
    }

    /// What runtimes call what is attached by another name.
    pub(super) fn called<'a>(
        &self,
        entries: impl Iterator<Item = &'a Entry>,
    ) -> BTreeMap<ContainerName, String> {
        let all = entries.filter_map(|entry| {
            let info = self.place(entry).1?;
            let called = info.pod.unwrap_or(info.name);
            Some((entry.attachment.name.clone(), called))
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
        let asked = lock(&self.asked).knows(entry);
        let by_netns = runtimes.in_netns(netns).filter(|_| asked);
        (
            netns,
            by_netns.or_else(|| by_name.map(|(_, info)| info)).cloned(),
        )
    }
}

impl Node {
    /// Finds out what is due: all of it while somebody looks, else what runtimes say of what is new.
    pub(super) async fn look_inside(&self, looked_at: bool) {
        let (now, facts) = (Instant::now(), &self.shared.sight.facts);
        self.ask_runtimes(now, looked_at).await;
        if !looked_at || !lock(&facts.insides).is_due(now) {
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

    async fn ask_runtimes(&self, now: Instant, looked_at: bool) {
        let facts = &self.shared.sight.facts;
        let book = self.shared.published.borrow().book.clone();
        let asked = lock(&facts.asked).clone();
        let question = {
            let mut runtimes = lock(&facts.runtimes);
            let pause = if looked_at {
                Some(PAUSE)
            } else {
                let failing = runtimes.is_failing().then_some(REST);
                asked.pause(book.entries()).or(failing)
            };
            pause.and_then(|pause| runtimes.due(now, pause))
        };
        let Some(question) = question else { return };
        let answer = question.ask().await;
        let (obstacles, failing) = {
            let mut runtimes = lock(&facts.runtimes);
            (runtimes.learn(answer), runtimes.is_failing())
        };
        // Of what one was asked that gave no answer, what it said before may be about other containers.
        if !failing {
            *lock(&facts.asked) = asked.again(book.entries());
        }
        for (runtime, obstacle) in obstacles {
            match obstacle {
                Some(obstacle) => self.cannot_serve(runtime, obstacle),
                None => self.serves(runtime),
            }
        }
    }

    /// What was found out: of what runs, as far as it is of now, and of what runtimes said, what they said last.
    pub(super) fn known_facts(&self) -> Known {
        let facts = &self.shared.sight.facts;
        let insides = lock(&facts.insides);
        let recent = insides.is_of_last(STALE, Instant::now());
        let inside = |netns| insides.of(netns).filter(|_| recent).cloned();
        let book = self.shared.published.borrow().book.clone();
        let attachments = book.entries().map(|entry| {
            let (netns, runtime) = facts.place(entry);
            let (name, ifname) = (&entry.attachment.name, &entry.attachment.ifname);
            ((name.clone(), ifname.clone()), (inside(netns), runtime))
        });
        Known {
            attachments: attachments.collect(),
            host: inside(own_netns()),
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

    fn entry(name: &str, inode: u64, at: u64) -> Entry {
        let entry = serde_json::json!({
            "attachment": {
                "name": name, "netns": "/n", "ifname": "eth0", "mac": "", "mtu": 1400, "host_ifname": "v", "host_mac": "",
                "network": "default", "ip": "10.32.0.2/12", "gateway": "10.32.0.1", "ip6": null, "gateway6": "fe80::1",
                "default_route": true, "labels": {}, "attached_at": at, "alive": true,
            },
            "netns_id": [4, inode],
        });
        serde_json::from_value(entry).unwrap()
    }

    #[test]
    fn at_rest_runtimes_are_asked_a_few_times_about_what_is_new_and_then_no_more() {
        let (a, b) = (entry("a", 7, 1), entry("b", 8, 2));
        let mut asked = Asked::default();
        assert_eq!(asked.pause([].iter()), None, "there is nobody to ask about");
        assert_eq!(asked.pause([&a].into_iter()), Some(PAUSE));
        asked = asked.again([&a].into_iter());
        assert!(asked.knows(&a) && !asked.knows(&b));
        assert_eq!(asked.pause([&a].into_iter()), Some(REST));
        assert_eq!(asked.pause([&a, &b].into_iter()), Some(PAUSE));
        for _ in 1..TIMES {
            asked = asked.again([&a].into_iter());
        }
        assert_eq!(asked.pause([&a].into_iter()), None);
        let asked = asked.again([&b].into_iter());
        assert!(!asked.knows(&a), "it has gone");
    }

    #[test]
    fn what_was_said_of_a_namespace_is_not_said_of_the_next_with_its_number() {
        let (first, second) = (entry("a", 7, 1), entry("b", 7, 2));
        let facts = Facts::default();
        lock(&facts.runtimes).tell("web", 7);
        *lock(&facts.asked) = Asked::default().again([&first].into_iter());
        let name = |entry| facts.place(entry).1.map(|info| info.name);
        assert_eq!(name(&first).as_deref(), Some("web"));
        assert_eq!(name(&second), None);
        assert_eq!(name(&entry("a", 7, 3)), None, "attached anew");
    }
}
