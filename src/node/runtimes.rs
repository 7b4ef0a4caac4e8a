//! What container runtimes say of the containers on this host: names, images, labels, pods, and which network namespace is
//! whose.
//!
//! Three are asked, each over its own socket, every [`PAUSE`] while somebody looks and else when somebody is new:
//! [`docker`] (Podman answers the same questions), [`containerd`], and by [`cri`] what else serves Kubernetes. Two ways
//! lead from what they say to an attachment: its namespace, or the name by which the runtime asked for it. Where two
//! runtimes know the same container, as Docker and the containerd beneath it, the first of them is heard. Of other
//! runtimes the node knows what they said when they attached a container (`src/node/cni.rs`). What is asked, read and
//! kept is bounded; a runtime that does not answer costs the picture nothing but these facts. One that is there and
//! fails again and again is a problem of the node's.

mod containerd;
mod cri;
mod docker;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use weave_model::api::RuntimeInfo;

use crate::config::RuntimeSockets;
use crate::obstacle::Obstacle;

/// Between two questions.
pub(super) const PAUSE: Duration = Duration::from_secs(10);

/// How long all that one runtime is asked may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// How often in a row a runtime fails until that is told: one that starts, or is busy, has time until then.
const TOLD_AFTER: u32 = 2;

/// The longest answer, in bytes: a list of some thousands of containers.
const LONGEST: usize = 8 << 20;

/// The most containers of one runtime that are known at a time.
const MOST: usize = 1024;

/// The most containers that a runtime is asked about one by one each time; the others come the next time.
const NEW: usize = 100;

/// The most labels of a container, and the longest, name and value together.
const MOST_LABELS: usize = 32;
const LONGEST_LABEL: usize = 256;

/// The longest name of a container, an image, a pod, in characters.
const LONGEST_NAME: usize = 256;

/// Labels by which kubelet says which pod a container belongs to.
const POD: &str = "io.kubernetes.pod.name";
const NAMESPACE: &str = "io.kubernetes.pod.namespace";

/// Labels that say of which application a container is a part, those first that say it best: Kubernetes' recommended ones,
/// what people used before, and those of Docker's tools.
const WORKLOAD: [&str; 5] = [
    "app.kubernetes.io/name",
    "app",
    "k8s-app",
    "com.docker.compose.service",
    "com.docker.swarm.service.name",
];

/// What runtimes said of their containers.
#[derive(Debug, Default)]
pub(super) struct Runtimes {
    sockets: RuntimeSockets,
    asked: Option<Instant>,
    docker: docker::Known,
    containerd: containerd::Known,
    cri: Vec<Told>,
    /// How often in a row each has failed, by its flag.
    failed: BTreeMap<&'static str, u32>,
}

/// What a runtime said of a container, or of all that are in one pod.
#[derive(Clone, Debug, PartialEq)]
struct Told {
    info: RuntimeInfo,
    /// The inode of its network namespace; 0 if that could not be told.
    netns: u64,
    /// The names by which it may have been attached: Docker's ends on networks, what a CNI plugin is called with.
    handles: BTreeSet<String>,
}

impl Runtimes {
    /// Will ask at these sockets.
    pub(super) fn new(sockets: RuntimeSockets) -> Self {
        Self {
            sockets,
            ..Self::default()
        }
    }

    /// What is known of the container with this namespace.
    pub(super) fn in_netns(&self, netns: u64) -> Option<&RuntimeInfo> {
        let told = self.told().find(|one| netns != 0 && one.netns == netns);
        told.map(|told| &told.info)
    }

    /// What is known of the container that was attached by this name, and the inode of its namespace.
    pub(super) fn attached_as(&self, handle: &str) -> Option<(u64, &RuntimeInfo)> {
        let told = self.told().find(|one| one.handles.contains(handle))?;
        Some((told.netns, &told.info))
    }

    fn told(&self) -> impl Iterator<Item = &Told> {
        let containerd = self.containerd.told();
        self.docker.values().chain(containerd).chain(&self.cri)
    }

    /// What to ask now, with what is known so far, if nobody asked for so long.
    pub(super) fn due(&mut self, now: Instant, pause: Duration) -> Option<Question> {
        let there = |socket: &Option<PathBuf>| socket.clone().filter(|socket| socket.exists());
        let sockets = RuntimeSockets {
            docker: there(&self.sockets.docker),
            containerd: there(&self.sockets.containerd),
            cri: there(&self.sockets.cri),
        };
        let rested = |at: Instant| now.saturating_duration_since(at) >= pause;
        let nobody = sockets == RuntimeSockets::default() && !self.is_failing();
        if nobody || !self.asked.is_none_or(rested) {
            return None;
        }
        self.asked = Some(now);
        Some(Question {
            sockets,
            docker: self.docker.clone(),
            containerd: self.containerd.clone(),
        })
    }

    /// Whether one that was asked last gave no answer.
    pub(super) fn is_failing(&self) -> bool {
        !self.failed.is_empty()
    }

    /// Takes the answer; of a runtime that gave none, what was known stays. What stands in the way of each, if anything
    /// that is to be told.
    pub(super) fn learn(&mut self, answer: Answer) -> [(&'static str, Option<Obstacle>); 3] {
        let Self { failed, .. } = self;
        let docker = judge("docker-api", answer.docker, failed, &mut self.docker);
        let containerd = judge(
            "containerd-api",
            answer.containerd,
            failed,
            &mut self.containerd,
        );
        let cri = judge("cri-api", answer.cri, failed, &mut self.cri);
        [docker, containerd, cri]
    }
}

/// Takes what one answered, if it was asked and did; what stands in the way, under the name of its flag.
fn judge<T>(
    flag: &'static str,
    answer: Asked<T>,
    failed: &mut BTreeMap<&'static str, u32>,
    known: &mut T,
) -> (&'static str, Option<Obstacle>) {
    let error = match answer {
        Some((_, Ok(told))) => {
            *known = told;
            None
        }
        // Its socket is left of it, and nobody listens.
        Some((_, Err(error))) if error.kind() == io::ErrorKind::ConnectionRefused => None,
        Some((socket, Err(error))) => Some((socket, error)),
        None => None,
    };
    let Some((socket, error)) = error else {
        failed.remove(flag);
        return (flag, None);
    };
    let times = failed.entry(flag).or_default();
    *times += 1;
    let told = *times >= TOLD_AFTER;
    let obstacle = || {
        let socket = socket.display();
        Obstacle::new(
            format!("names, images and labels of containers are missing: {socket}: {error}"),
            format!("look at the log of what listens there, or start weaved with --{flag} off"),
        )
    };
    (flag, told.then(obstacle))
}

/// What is to be asked.
#[derive(Debug)]
pub(super) struct Question {
    sockets: RuntimeSockets,
    docker: docker::Known,
    containerd: containerd::Known,
}

/// Which socket was asked and what came of it, if any was.
type Asked<T> = Option<(PathBuf, io::Result<T>)>;

/// What was answered.
#[derive(Debug, Default)]
pub(super) struct Answer {
    docker: Asked<docker::Known>,
    containerd: Asked<containerd::Known>,
    cri: Asked<Vec<Told>>,
}

impl Question {
    /// Asks all at once.
    pub(super) async fn ask(self) -> Answer {
        let (docker, containerd, cri) = tokio::join!(
            in_time(self.sockets.docker, |at| docker::ask(at, self.docker)),
            in_time(self.sockets.containerd, |at| containerd::ask(
                at,
                self.containerd
            )),
            in_time(self.sockets.cri, cri::ask),
        );
        Answer {
            docker,
            containerd,
            cri,
        }
    }
}

/// The answer from a socket, if there is one in time.
async fn in_time<T>(
    socket: Option<PathBuf>,
    ask: impl AsyncFnOnce(PathBuf) -> io::Result<T>,
) -> Asked<T> {
    let socket = socket?;
    let answer = tokio::time::timeout(PATIENCE, ask(socket.clone())).await;
    let answer = answer.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    if let Err(error) = &answer {
        let socket = socket.display();
        tracing::debug!(%error, %socket, "a container runtime does not tell");
    }
    Some((socket, answer))
}

/// Puts together what is told of a container, within bounds. What its labels say of its pod and workload is said apart.
fn info(
    runtime: &str,
    id: &str,
    name: &str,
    image: &str,
    mut labels: BTreeMap<String, String>,
) -> RuntimeInfo {
    let workload = WORKLOAD.iter().find_map(|label| labels.get(*label));
    let workload = workload.map(|name| short(name));
    let mut take = |label: &str| labels.remove(label).map(|name| short(&name));
    let (pod, namespace) = (take(POD), take(NAMESPACE));
    let fits = |(name, value): &(String, String)| name.len() + value.len() <= LONGEST_LABEL;
    RuntimeInfo {
        runtime: short(runtime),
        id: id.chars().take(12).collect(),
        name: short(name),
        image: short(image),
        pod,
        namespace,
        workload,
        labels: labels.into_iter().filter(fits).take(MOST_LABELS).collect(),
    }
}

/// As much of a name as is told.
fn short(name: &str) -> String {
    name.chars().take(LONGEST_NAME).collect()
}

/// The inode of a process's network namespace; 0 if there is none.
fn netns_of(pid: u32) -> u64 {
    std::fs::metadata(format!("/proc/{pid}/ns/net")).map_or(0, |found| found.ino())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    impl Runtimes {
        /// Takes it that Docker told of a container of this name, in this namespace.
        pub(in super::super) fn tell(&mut self, name: &str, netns: u64) {
            self.docker.insert(name.to_owned(), told(name, netns, name));
        }
    }

    fn told(name: &str, netns: u64, handle: &str) -> Told {
        Told {
            info: info("docker", "0123456789abcdef", name, "web:1", BTreeMap::new()),
            netns,
            handles: [handle.to_owned()].into(),
        }
    }

    #[test]
    fn labels_say_which_pod_and_which_workload() {
        let of = |labels: &[(&str, &str)]| {
            let labels = labels.iter().map(|(k, v)| ((*k).into(), (*v).into()));
            info("containerd", "a", "a", "i", labels.collect())
        };
        let pod = of(&[
            (POD, "web-0"),
            (NAMESPACE, "shop"),
            ("app", "web"),
            ("k8s-app", "x"),
        ]);
        assert_eq!(
            (
                pod.pod.as_deref(),
                pod.namespace.as_deref(),
                pod.workload.as_deref()
            ),
            (Some("web-0"), Some("shop"), Some("web"))
        );
        assert_eq!(pod.labels.keys().collect::<Vec<_>>(), ["app", "k8s-app"]);
        let compose = of(&[("com.docker.compose.service", "db")]);
        assert_eq!(
            (compose.workload.as_deref(), compose.pod),
            (Some("db"), None)
        );
        let best = of(&[("app", "old"), ("app.kubernetes.io/name", "new")]);
        assert_eq!(best.workload.as_deref(), Some("new"));
    }

    #[test]
    fn what_is_told_is_bounded() {
        let labels = (0..50).map(|n| (format!("l{n}"), "x".to_owned()));
        let known = info(
            "r",
            "0123456789abcdef",
            &"é".repeat(LONGEST_NAME + 1),
            "i",
            labels.collect(),
        );
        assert_eq!(
            (known.id.as_str(), known.labels.len()),
            ("0123456789ab", MOST_LABELS)
        );
        assert_eq!(known.name, "é".repeat(LONGEST_NAME));
        let long = [("long".to_owned(), "x".repeat(LONGEST_LABEL))];
        assert!(info("r", "a", "a", "i", long.into()).labels.is_empty());
    }

    #[test]
    fn an_attachment_is_found_by_namespace_or_name_and_docker_is_heard_first() {
        let mut runtimes = Runtimes::new(RuntimeSockets::default());
        let docker = [("one".to_owned(), told("docker", 7, "e1"))].into();
        let cri = vec![told("cri", 7, "e1"), told("pod", 0, "sandbox")];
        runtimes.learn(Answer {
            docker: Some(("/d".into(), Ok(docker))),
            containerd: None,
            cri: Some(("/c".into(), Ok(cri))),
        });
        assert_eq!(runtimes.in_netns(7).unwrap().name, "docker");
        assert_eq!(runtimes.attached_as("e1").unwrap().0, 7);
        assert_eq!(runtimes.attached_as("sandbox").unwrap().1.name, "pod");
        assert!(runtimes.in_netns(0).is_none() && runtimes.attached_as("e2").is_none());
        let refused = || io::Error::other("/containers/json: 400 Bad Request: too old");
        runtimes.learn(refuses(refused()));
        assert!(runtimes.in_netns(7).is_some(), "what was known stays");
    }

    fn refuses(error: io::Error) -> Answer {
        Answer {
            docker: Some(("/run/docker.sock".into(), Err(error))),
            ..Answer::default()
        }
    }

    #[test]
    fn a_runtime_that_goes_on_refusing_is_told_with_its_words_and_one_that_is_gone_is_not() {
        let mut runtimes = Runtimes::new(RuntimeSockets::default());
        let mut told = |answer| {
            let [(flag, docker), (_, None), (_, None)] = runtimes.learn(answer) else {
                panic!("the others were not asked");
            };
            assert_eq!(flag, "docker-api");
            (docker, runtimes.due(Instant::now(), PAUSE).is_some())
        };
        let other = || refuses(io::Error::other("400 Bad Request: too old"));
        assert_eq!(told(other()).0, None, "once is nothing");
        let (obstacle, _) = told(other());
        let obstacle = obstacle.unwrap();
        assert!(
            obstacle
                .cause
                .ends_with("/run/docker.sock: 400 Bad Request: too old")
        );
        assert!(
            obstacle.fix.contains("--docker-api off"),
            "{}",
            obstacle.fix
        );
        // Its socket goes away, and the problem with it.
        assert_eq!(told(Answer::default()), (None, false));
        for _ in 0..3 {
            let gone = io::ErrorKind::ConnectionRefused.into();
            assert_eq!(told(refuses(gone)).0, None, "nobody is there");
        }
    }

    #[test]
    fn nobody_is_asked_where_there_is_no_socket() {
        let now = Instant::now();
        let at = |socket: &str| {
            Runtimes::new(RuntimeSockets {
                containerd: Some(socket.into()),
                ..RuntimeSockets::default()
            })
        };
        assert!(Runtimes::default().due(now, PAUSE).is_none());
        assert!(at("/nowhere/containerd.sock").due(now, PAUSE).is_none());
        let mut runtimes = at("/proc/self/exe");
        assert!(runtimes.due(now, PAUSE).is_some() && runtimes.due(now, PAUSE).is_none());
        assert!(runtimes.due(now + PAUSE, PAUSE).is_some());
    }
}
