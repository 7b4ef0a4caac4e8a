//! Pods as Kubernetes makes them: the calls of kubelet to a real containerd, on two hosts, and what the nodes tell of them.
//!
//! One node asks containerd by its own interface, the other by that of Kubernetes, as it would ask another runtime.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use tokio::runtime::Runtime;
use weave::grpc::Door;

use super::Runtime as Plugin;
use super::containerd::{Containerd, IMAGE, PATIENCE, image};
use crate::lab::node::said;
use crate::lab::ns;
use crate::lab::traffic::wait_for;
use crate::lab::{Host, Lab, form};

#[derive(Clone, PartialEq, prost::Message)]
struct RunSandbox {
    #[prost(message, optional, tag = "1")]
    config: Option<PodConfig>,
}

/// `PodSandboxConfig`.
#[derive(Clone, PartialEq, prost::Message)]
struct PodConfig {
    #[prost(message, optional, tag = "1")]
    metadata: Option<PodMetadata>,
    #[prost(string, tag = "2")]
    hostname: String,
    #[prost(message, repeated, tag = "5")]
    ports: Vec<HostPort>,
    #[prost(btree_map = "string, string", tag = "6")]
    labels: BTreeMap<String, String>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct PodMetadata {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    uid: String,
    #[prost(string, tag = "3")]
    namespace: String,
}

/// `PortMapping`.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct HostPort {
    /// 0 TCP, 1 UDP, 2 SCTP.
    #[prost(int32, tag = "1")]
    pub(super) protocol: i32,
    #[prost(int32, tag = "2")]
    pub(super) container: i32,
    #[prost(int32, tag = "3")]
    pub(super) host: i32,
    /// An address of the host; empty for all.
    #[prost(string, tag = "4")]
    pub(super) ip: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct CreateContainer {
    #[prost(string, tag = "1")]
    sandbox: String,
    #[prost(message, optional, tag = "2")]
    config: Option<ContainerConfig>,
    #[prost(message, optional, tag = "3")]
    pod: Option<PodConfig>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ContainerConfig {
    #[prost(message, optional, tag = "1")]
    metadata: Option<Named>,
    #[prost(message, optional, tag = "2")]
    image: Option<Named>,
}

/// A message whose first field is a name: an id, an image, a container's metadata.
#[derive(Clone, PartialEq, prost::Message)]
struct Named {
    #[prost(string, tag = "1")]
    name: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Nothing {}

fn named(name: &str) -> Named {
    Named {
        name: name.to_owned(),
    }
}

/// What kubelet does with a runtime.
pub(super) struct Kubelet {
    runtime: Runtime,
    door: Door,
}

impl Kubelet {
    pub(super) fn of(containerd: &Containerd<'_>) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        let socket = containerd.dir.join("sock");
        let door = runtime.block_on(Door::open(&socket, 1 << 20));
        let mut kubelet = Self {
            door: door.expect("containerd listens"),
            runtime,
        };
        wait_for("containerd serves Kubernetes", PATIENCE, || {
            kubelet.call::<Nothing>("Version", &Nothing {}).is_ok()
        });
        kubelet
    }

    fn call<Answer: prost::Message + Default>(
        &mut self,
        method: &str,
        question: &impl prost::Message,
    ) -> std::io::Result<Answer> {
        let method = format!("/runtime.v1.RuntimeService/{method}");
        self.runtime
            .block_on(self.door.call(&method, None, question))
    }

    /// Makes a pod with one container, labelled as kubelet does; its sandbox's id.
    #[track_caller]
    fn run(&mut self, name: &str, app: &str) -> String {
        let made = self.try_run(name, app, &[]);
        made.expect("the pod is made")
    }

    /// The same with ports of the host; an error if its sandbox cannot be made.
    #[track_caller]
    pub(super) fn try_run(
        &mut self,
        name: &str,
        app: &str,
        ports: &[HostPort],
    ) -> std::io::Result<String> {
        let labels = [
            ("io.kubernetes.pod.name", name),
            ("io.kubernetes.pod.namespace", "shop"),
            ("app.kubernetes.io/name", app),
        ];
        let labels = labels.map(|(key, value)| (key.to_owned(), value.to_owned()));
        let pod = PodConfig {
            metadata: Some(PodMetadata {
                name: name.to_owned(),
                uid: format!("uid-of-{name}"),
                namespace: "shop".to_owned(),
            }),
            hostname: name.to_owned(),
            ports: ports.to_vec(),
            labels: labels.into(),
        };
        let config = Some(pod.clone());
        let sandbox: Named = self.call("RunPodSandbox", &RunSandbox { config })?;
        let create = CreateContainer {
            sandbox: sandbox.name.clone(),
            config: Some(ContainerConfig {
                metadata: Some(named("main")),
                image: Some(named(IMAGE)),
            }),
            pod: Some(pod),
        };
        let container: Named = self
            .call("CreateContainer", &create)
            .expect("the container is made");
        self.call::<Nothing>("StartContainer", &container)
            .expect("the container starts");
        Ok(sandbox.name)
    }

    #[track_caller]
    pub(super) fn stop(&mut self, sandbox: &str) {
        self.done("StopPodSandbox", sandbox);
    }

    #[track_caller]
    pub(super) fn remove(&mut self, sandbox: &str) {
        self.stop(sandbox);
        self.done("RemovePodSandbox", sandbox);
    }

    #[track_caller]
    fn done(&mut self, method: &str, sandbox: &str) {
        self.call::<Nothing>(method, &named(sandbox))
            .unwrap_or_else(|error| panic!("{method}: {error}"));
    }
}

/// containerd with its part for Kubernetes, which takes the labs' image for its sandboxes too.
pub(super) fn start<'a>(host: &'a Host, lab: &Path, image: &Path) -> Containerd<'a> {
    let dir = Containerd::folder(host, lab);
    let dir = dir.display();
    let config = format!(
        "[plugins.'io.containerd.grpc.v1.cri']
         sandbox_image = '{IMAGE}'
         restrict_oom_score_adj = true
         netns_mounts_under_state_dir = true
         disable_apparmor = true
         [plugins.'io.containerd.grpc.v1.cri'.containerd]
         snapshotter = 'native'
         [plugins.'io.containerd.grpc.v1.cri'.cni]
         bin_dir = '{dir}/bin'
         conf_dir = '{dir}/net.d'\n"
    );
    let containerd = Containerd::start_with(host, lab, &config);
    // It puts every pod's loopback device up by the plugin of the reference.
    let loopback = Path::new(super::REFERENCE).join("loopback");
    std::fs::copy(loopback, containerd.dir.join("bin/loopback")).expect("the reference is there");
    for namespace in ["k8s.io", "default"] {
        containerd.import(namespace, image);
    }
    containerd
}

/// Starts a node that asks the host's containerd by one flag, and by no other.
fn start_node(host: &Host, lab: &Path, flag: &str) {
    let socket: PathBuf = Containerd::folder(host, lab).join("sock");
    let asks = format!("--{flag}={}", socket.display());
    let off = ["docker-api", "containerd-api", "cri-api"].map(|one| format!("--{one}=off"));
    let off = off.iter().filter(|one| !one.contains(flag));
    let flags: Vec<&str> = off.chain([&asks]).map(String::as_str).collect();
    host.start_with(&flags);
}

/// What a node's picture of the whole mesh says of the container with this name in its runtime.
fn told(asked: &Host, name: &str) -> Option<Value> {
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--fail", "--unix-socket"])
        .arg(asked.socket())
        .arg("http://localhost/v1/topology");
    let topology: Value = serde_json::from_str(&said(&mut curl).out).ok()?;
    let containers = topology["containers"].as_array()?;
    let one = containers
        .iter()
        .find(|one| one["runtime"]["name"] == name)?;
    Some(one.clone())
}

/// Waits until a node tells of a pod whose labels, image and workload it cannot know from its attachment.
#[track_caller]
fn is_told(asked: &Host, name: &str, app: &str, image: &str) {
    wait_for(
        &format!("{name} is told on {}", asked.name),
        PATIENCE,
        || {
            told(asked, name).is_some_and(|one| {
                let runtime = &one["runtime"];
                runtime["runtime"] == "containerd"
                    && runtime["image"] == image
                    && runtime["workload"] == app
                    && runtime["pod"] == name
                    && runtime["namespace"] == "shop"
                    && one["inside"]["processes"][0]["name"] == "guest"
            })
        },
    );
}

/// Pods are told with namespace, workload and image on every node, whichever way their own one asks; a container of `ctr`
/// is told with its image, and what is removed is told no more.
#[test]
fn pods_of_containerd() {
    Lab::run(|lab| {
        let image = image(lab);
        let hosts = [lab.host("h1", 1), lab.host("h2", 2)];
        let [h1, h2] = &hosts;
        start_node(h1, lab.dir(), "containerd-api");
        start_node(h2, lab.dir(), "cri-api");
        form(&hosts);
        let [c1, c2] = [h1, h2].map(|host| start(host, lab.dir(), &image));
        let [mut k1, mut k2] = [&c1, &c2].map(Kubelet::of);

        let web = k1.run("web-0", "web");
        let db = k2.run("db-0", "db");
        for asked in &hosts {
            is_told(asked, "web-0", "web", IMAGE);
            is_told(asked, "db-0", "db", IMAGE);
        }
        let ip = |name: &str| told(h1, name).and_then(|one| one["ip"].as_str().map(str::to_owned));
        assert!(ip("web-0").is_some() && ip("web-0") != ip("db-0"));

        let (ctr, _) = c1.run("plain");
        wait_for("a container without a pod is told", PATIENCE, || {
            told(h2, "plain").is_some_and(|one| {
                let runtime = &one["runtime"];
                runtime["image"] == IMAGE && runtime["pod"].is_null()
            })
        });
        c1.kill("plain", ctr);

        k1.remove(&web);
        k2.remove(&db);
        for host in &hosts {
            wait_for("what is gone is told no more", PATIENCE, || {
                told(host, "web-0").is_none() && told(host, "db-0").is_none()
            });
            assert_eq!(Plugin::new(host).left(), (0, 0, 0));
        }

        // As when a lab fails: what still runs leaves nothing that keeps its folder from being removed.
        k1.run("web-1", "web");
        let folder = c1.dir.display().to_string();
        let mounted = || ns::host("cat /proc/self/mountinfo").contains(&folder);
        assert!(mounted(), "the pod's namespace");
        drop(c1);
        assert!(!mounted());
    });
}
