//! What containerd says of its containers: the tasks of each of its namespaces, and of each that is new what is known of it.
//!
//! The containers of a pod share a network namespace and come as one: Kubernetes' part of containerd marks the *sandbox*,
//! which holds the namespace, and kubelet labels all of them with the pod. Docker's own containers are left to
//! [`super::docker`], which knows their names.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;

use super::{LONGEST, MOST, NEW, POD, Told, info, netns_of};
use crate::grpc::{Door, Metadata};

/// The methods that are called (`api/services` of containerd 1.0 and later).
const NAMESPACES: &str = "/containerd.services.namespaces.v1.Namespaces/List";
const TASKS: &str = "/containerd.services.tasks.v1.Tasks/List";
const CONTAINER: &str = "/containerd.services.containers.v1.Containers/Get";

/// The header that says which namespace a call is about.
const NAMESPACE_HEADER: &str = "containerd-namespace";

/// The namespace of containerd in which Docker has its containers.
const OF_DOCKER: &str = "moby";

/// The label that containerd's CRI gives to each container, and its value for a sandbox.
const KIND: (&str, &str) = ("io.cri-containerd.kind", "sandbox");

/// What containerd itself writes into labels for its own use; people did not.
const ITS_OWN: [&str; 2] = ["io.cri-containerd.", "containerd.io/"];

/// The label that nerdctl gives a container's name.
const NERDCTL_NAME: &str = "nerdctl/name";

/// `Task.Status` of a process that ended.
const STOPPED: i32 = 3;

/// What is known.
#[derive(Clone, Debug, Default)]
pub(super) struct Known {
    pieces: BTreeMap<Key, Piece>,
    told: Vec<Told>,
}

/// Which container: containerd's namespace, and the id in it.
type Key = (String, String);

/// A container as containerd has it; a pod is several.
#[derive(Clone, Debug, PartialEq)]
struct Piece {
    pid: u32,
    netns: u64,
    image: String,
    labels: BTreeMap<String, String>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Nothing {}

#[derive(Clone, PartialEq, prost::Message)]
struct Namespaces {
    #[prost(message, repeated, tag = "1")]
    namespaces: Vec<Namespace>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Namespace {
    #[prost(string, tag = "1")]
    name: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Tasks {
    #[prost(message, repeated, tag = "1")]
    tasks: Vec<Task>,
}

/// `containerd.v1.types.Process`.
#[derive(Clone, PartialEq, prost::Message)]
struct Task {
    #[prost(string, tag = "2")]
    id: String,
    #[prost(uint32, tag = "3")]
    pid: u32,
    #[prost(int32, tag = "4")]
    status: i32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Get {
    #[prost(string, tag = "1")]
    id: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Got {
    #[prost(message, optional, tag = "1")]
    container: Option<Container>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Container {
    #[prost(btree_map = "string, string", tag = "2")]
    labels: BTreeMap<String, String>,
    #[prost(string, tag = "3")]
    image: String,
}

impl Known {
    /// What is told of each container and pod.
    pub(super) fn told(&self) -> &[Told] {
        &self.told
    }
}

/// Asks; what containers were made of never changes, so those that were known before are not asked for again.
///
/// # Errors
/// When what is there does not answer as containerd would.
pub(super) async fn ask(socket: PathBuf, mut before: Known) -> io::Result<Known> {
    let mut door = Door::open(&socket, LONGEST).await?;
    let spaces: Namespaces = door.call(NAMESPACES, None, &Nothing {}).await?;
    let mut pieces = BTreeMap::new();
    let mut new = 0;
    for space in spaces.namespaces {
        if space.name == OF_DOCKER {
            continue;
        }
        let metadata = Some((NAMESPACE_HEADER, space.name.as_str()));
        let tasks: Tasks = door.call(TASKS, metadata, &Nothing {}).await?;
        let running = |task: &Task| task.pid != 0 && task.status != STOPPED;
        let room = MOST.saturating_sub(pieces.len());
        for task in tasks.tasks.into_iter().filter(running).take(room) {
            let key = (space.name.clone(), task.id);
            let known = before.pieces.remove(&key);
            let piece = match known.filter(|known| known.pid == task.pid && known.netns != 0) {
                Some(piece) => Some(piece),
                None if new == NEW => None,
                None => {
                    new += 1;
                    get(&mut door, metadata, &key.1, task.pid).await?
                }
            };
            pieces.extend(piece.map(|piece| (key, piece)));
        }
    }
    let told = told(&pieces, netns_of(std::process::id()));
    Ok(Known { pieces, told })
}

/// What is known of one container, unless it ended meanwhile.
async fn get(
    door: &mut Door,
    metadata: Metadata<'_>,
    id: &str,
    pid: u32,
) -> io::Result<Option<Piece>> {
    let question = Get { id: id.to_owned() };
    match door.call::<Got>(CONTAINER, metadata, &question).await {
        Ok(got) => Ok(got.container.map(|container| Piece {
            pid,
            netns: netns_of(pid),
            image: container.image,
            labels: container.labels,
        })),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Makes one of what shares a network namespace with a sandbox. What is in the host's own is on no network of ours.
fn told(pieces: &BTreeMap<Key, Piece>, own_netns: u64) -> Vec<Told> {
    let mut rooms: BTreeMap<u64, Vec<(&Key, &Piece)>> = BTreeMap::new();
    for (key, piece) in pieces {
        if piece.netns != 0 && piece.netns != own_netns {
            rooms.entry(piece.netns).or_default().push((key, piece));
        }
    }
    let told = rooms.into_values().flat_map(|room| {
        let sandbox = room.iter().find(|(_, one)| is_sandbox(one));
        match sandbox {
            Some((key, sandbox)) => vec![pod(key, sandbox, &room)],
            None => room.iter().map(|(key, one)| container(key, one)).collect(),
        }
    });
    told.collect()
}

fn is_sandbox(piece: &Piece) -> bool {
    piece.labels.get(KIND.0).is_some_and(|kind| kind == KIND.1)
}

/// A pod has the images of its containers; that of the sandbox is everybody's.
fn pod(key: &Key, sandbox: &Piece, room: &[(&Key, &Piece)]) -> Told {
    let containers = room.iter().filter(|(_, one)| !is_sandbox(one));
    let mut images: Vec<&str> = containers.map(|(_, one)| one.image.as_str()).collect();
    images.sort_unstable();
    images.dedup();
    let name = sandbox.labels.get(POD).unwrap_or(&key.1);
    tell(key, name, &images.join(", "), sandbox)
}

fn container(key: &Key, piece: &Piece) -> Told {
    let name = piece.labels.get(NERDCTL_NAME).unwrap_or(&key.1);
    tell(key, name, &piece.image, piece)
}

fn tell((space, id): &Key, name: &str, image: &str, piece: &Piece) -> Told {
    let mut labels = piece.labels.clone();
    labels.retain(|label, _| !ITS_OWN.iter().any(|own| label.starts_with(own)));
    Told {
        info: info("containerd", id, name, image, labels),
        netns: piece.netns,
        // Kubernetes calls a CNI plugin with the sandbox's id, `ctr` and nerdctl put the namespace before it.
        handles: [id.clone(), format!("{space}-{id}")].into(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use prost::Message as _;

    use super::*;

    /// The namespace of everybody in the tests that is not on the host's.
    const ROOM: u64 = 4;

    fn piece(netns: u64, image: &str, labels: &[(&str, &str)]) -> Piece {
        let labels = labels.iter().map(|(k, v)| ((*k).into(), (*v).into()));
        Piece {
            pid: 1,
            netns,
            image: image.to_owned(),
            labels: labels.collect(),
        }
    }

    fn key(id: &str) -> Key {
        ("k8s.io".to_owned(), id.to_owned())
    }

    #[test]
    fn the_containers_of_a_pod_are_told_as_one() {
        let of_pod = [(POD, "web-0"), ("app", "web")];
        let sandbox = [&of_pod[..], &[KIND]].concat();
        let pieces = BTreeMap::from([
            (key("1"), piece(ROOM, "web:2", &of_pod)),
            (key("2"), piece(ROOM, "log:1", &of_pod)),
            (key("3"), piece(ROOM, "pause:3", &sandbox)),
            (key("4"), piece(9, "agent:1", &[])),
            (key("5"), piece(0, "gone:1", &[])),
        ]);
        let told = told(&pieces, 9);
        assert_eq!(
            told.len(),
            1,
            "the host's own and what is gone are on no network"
        );
        let pod = &told[0];
        assert_eq!((pod.netns, pod.info.image.as_str()), (ROOM, "log:1, web:2"));
        assert_eq!(
            (pod.info.name.as_str(), pod.info.id.as_str()),
            ("web-0", "3")
        );
        assert!(pod.handles.contains("3") && !pod.handles.contains("1"));
        assert_eq!(pod.info.labels.keys().collect::<Vec<_>>(), ["app"]);
    }

    #[test]
    fn a_container_alone_has_its_own_name() {
        let pieces = BTreeMap::from([
            (key("a"), piece(1, "web:1", &[])),
            (key("b"), piece(2, "web:1", &[(NERDCTL_NAME, "shop")])),
        ]);
        let told = told(&pieces, 0);
        let names: Vec<&str> = told.iter().map(|one| one.info.name.as_str()).collect();
        assert_eq!(names, ["a", "shop"]);
        assert!(told[0].handles.contains("k8s.io-a"));
    }

    /// More of a container than is asked for: containerd tells its id, its runtime, and its whole specification.
    #[derive(Clone, PartialEq, prost::Message)]
    struct Whole {
        #[prost(string, tag = "1")]
        id: String,
        #[prost(btree_map = "string, string", tag = "2")]
        labels: BTreeMap<String, String>,
        #[prost(string, tag = "3")]
        image: String,
        #[prost(message, optional, tag = "5")]
        spec: Option<Get>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    struct Answered {
        #[prost(message, optional, tag = "1")]
        container: Option<Whole>,
    }

    #[test]
    fn what_nobody_asked_for_is_passed_over() {
        let whole = Whole {
            id: "one".to_owned(),
            labels: [("app".to_owned(), "web".to_owned())].into(),
            image: "web:1".to_owned(),
            spec: Some(Get {
                id: "types.containerd.io/opencontainers".to_owned(),
            }),
        };
        let bytes = Answered {
            container: Some(whole),
        }
        .encode_to_vec();
        let container = Got::decode(&bytes[..]).unwrap().container.unwrap();
        assert_eq!(
            (container.image.as_str(), &container.labels["app"][..]),
            ("web:1", "web")
        );
    }
}
