//! What a runtime of Kubernetes says of its pods by the interface that kubelet uses, the CRI (`runtime.v1`): those that are
//! ready, and the images of the containers that run in them.
//!
//! It does not say which network namespace is whose in words that all runtimes share; but a CNI plugin is called with the
//! sandbox's id, and that is the name by which the pod was attached.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;

use super::{LONGEST, MOST, NAMESPACE, POD, Told, info};
use crate::grpc::Door;

const VERSION: &str = "/runtime.v1.RuntimeService/Version";
const SANDBOXES: &str = "/runtime.v1.RuntimeService/ListPodSandbox";
const CONTAINERS: &str = "/runtime.v1.RuntimeService/ListContainers";

/// `ContainerState` of one that runs; a sandbox that is ready has the state 0.
const RUNNING: i32 = 1;
const READY: i32 = 0;

#[derive(Clone, PartialEq, prost::Message)]
struct Nothing {}

#[derive(Clone, PartialEq, prost::Message)]
struct Version {
    #[prost(string, tag = "2")]
    runtime: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Sandboxes {
    #[prost(message, repeated, tag = "1")]
    items: Vec<Sandbox>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Sandbox {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(message, optional, tag = "2")]
    metadata: Option<Metadata>,
    #[prost(int32, tag = "3")]
    state: i32,
    #[prost(btree_map = "string, string", tag = "5")]
    labels: BTreeMap<String, String>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Metadata {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "3")]
    namespace: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Containers {
    #[prost(message, repeated, tag = "1")]
    items: Vec<Container>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Container {
    #[prost(string, tag = "2")]
    sandbox: String,
    #[prost(message, optional, tag = "4")]
    image: Option<Image>,
    #[prost(int32, tag = "6")]
    state: i32,
}

/// `ImageSpec`: the image as the runtime resolved it, which may be no more than a hash, and as the pod names it.
#[derive(Clone, PartialEq, prost::Message)]
struct Image {
    #[prost(string, tag = "1")]
    image: String,
    #[prost(string, tag = "18")]
    named: String,
}

/// Asks for all.
///
/// # Errors
/// When what is there does not answer as a runtime of Kubernetes would.
pub(super) async fn ask(socket: PathBuf) -> io::Result<Vec<Told>> {
    let mut door = Door::open(&socket, LONGEST).await?;
    let version: Version = door.call(VERSION, None, &Nothing {}).await?;
    let sandboxes: Sandboxes = door.call(SANDBOXES, None, &Nothing {}).await?;
    let containers: Containers = door.call(CONTAINERS, None, &Nothing {}).await?;
    Ok(told(&version.runtime, sandboxes, containers))
}

fn told(runtime: &str, sandboxes: Sandboxes, containers: Containers) -> Vec<Told> {
    let mut images: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for one in containers.items {
        let Some(image) = one.image.filter(|_| one.state == RUNNING) else {
            continue;
        };
        let named = Some(image.named).filter(|name| !name.is_empty());
        let image = named.unwrap_or(image.image);
        images.entry(one.sandbox).or_default().insert(image);
    }
    let ready = sandboxes.items.into_iter().filter(|one| one.state == READY);
    let told = ready.take(MOST).map(|one| {
        let images: Vec<String> = images.remove(&one.id).into_iter().flatten().collect();
        let Metadata { name, namespace } = one.metadata.unwrap_or_default();
        let mut labels = one.labels;
        labels.insert(POD.to_owned(), name.clone());
        labels.insert(NAMESPACE.to_owned(), namespace);
        Told {
            info: info(runtime, &one.id, &name, &images.join(", "), labels),
            netns: 0,
            handles: [one.id].into(),
        }
    });
    told.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(sandbox: &str, image: &str, named: &str, state: i32) -> Container {
        Container {
            sandbox: sandbox.to_owned(),
            image: Some(Image {
                image: image.to_owned(),
                named: named.to_owned(),
            }),
            state,
        }
    }

    fn sandbox(id: &str, state: i32) -> Sandbox {
        Sandbox {
            id: id.to_owned(),
            metadata: Some(Metadata {
                name: "web-0".to_owned(),
                namespace: "shop".to_owned(),
            }),
            state,
            labels: [("app".to_owned(), "web".to_owned())].into(),
        }
    }

    #[test]
    fn a_pod_has_the_images_of_what_runs_in_it() {
        let sandboxes = Sandboxes {
            items: vec![sandbox("one", READY), sandbox("two", 1)],
        };
        let containers = Containers {
            items: vec![
                container("one", "sha256:ab", "web:2", RUNNING),
                container("one", "log:1", "", RUNNING),
                container("one", "init:1", "", 2),
                container("two", "web:1", "", RUNNING),
            ],
        };
        let told = told("cri-o", sandboxes, containers);
        assert_eq!(told.len(), 1, "what is not ready is on no network");
        let (info, handles) = (&told[0].info, &told[0].handles);
        assert!(handles.contains("one"));
        assert_eq!(
            (info.runtime.as_str(), info.image.as_str()),
            ("cri-o", "log:1, web:2")
        );
        assert_eq!(
            (
                info.pod.as_deref(),
                info.namespace.as_deref(),
                info.workload.as_deref()
            ),
            (Some("web-0"), Some("shop"), Some("web"))
        );
    }
}
