//! What Docker says of the containers on this host: names, images, labels, and which network namespace is whose.
//!
//! Asked over Docker's own socket while somebody looks, every [`PAUSE`]: the list, and of each container that is new what
//! is known of it. Podman answers the same questions, so its socket will do as well. Of other runtimes the node knows what they
//! said when they attached a container (`src/node/cni.rs`). What is asked, read and kept is bounded; a runtime that does
//! not answer costs the picture nothing but these facts.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Request, header};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use weave_model::api::RuntimeInfo;

/// Between two questions.
const PAUSE: Duration = Duration::from_secs(10);

/// How long all of them together may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// The longest answer, in bytes: a list of some thousands of containers.
const LONGEST: usize = 8 << 20;

/// The most containers that are known at a time.
const MOST: usize = 1024;

/// The most labels of a container, and the longest, name and value together.
const MOST_LABELS: usize = 32;
const LONGEST_LABEL: usize = 256;

/// The version of Docker's API that is spoken: all since 1.12 have it.
const VERSION: &str = "/v1.24";

/// What a runtime said of its containers.
#[derive(Debug, Default)]
pub(super) struct Runtime {
    socket: Option<PathBuf>,
    asked: Option<Instant>,
    known: BTreeMap<String, Known>,
}

#[derive(Clone, Debug)]
struct Known {
    info: RuntimeInfo,
    /// The inode of its network namespace; 0 if that could not be told.
    netns: u64,
    /// Its ends on networks of Docker's.
    endpoints: BTreeSet<String>,
}

/// An entry of `GET /containers/json`.
#[derive(Debug, Deserialize)]
struct Listed {
    #[serde(rename = "Id")]
    id: String,
    #[serde(rename = "NetworkSettings")]
    settings: Option<Settings>,
}

#[derive(Debug, Deserialize)]
struct Settings {
    #[serde(rename = "Networks")]
    networks: Option<BTreeMap<String, Option<EndpointOf>>>,
}

#[derive(Debug, Deserialize)]
struct EndpointOf {
    #[serde(rename = "EndpointID", default)]
    id: String,
}

/// The answer to `GET /containers/ID/json`.
#[derive(Debug, Deserialize)]
struct Inspected {
    #[serde(rename = "Name", default)]
    name: String,
    #[serde(rename = "State")]
    state: State,
    #[serde(rename = "Config")]
    config: Settled,
}

#[derive(Debug, Deserialize)]
struct State {
    #[serde(rename = "Pid", default)]
    pid: u32,
}

#[derive(Debug, Deserialize)]
struct Settled {
    #[serde(rename = "Image", default)]
    image: String,
    #[serde(rename = "Labels")]
    labels: Option<BTreeMap<String, String>>,
}

impl Runtime {
    /// Will ask at this socket, or nobody.
    pub(super) fn new(socket: Option<PathBuf>) -> Self {
        Self {
            socket,
            ..Self::default()
        }
    }

    /// What is known of the container with this namespace.
    pub(super) fn in_netns(&self, netns: u64) -> Option<&RuntimeInfo> {
        let mut known = self.known.values();
        let known = known.find(|one| netns != 0 && one.netns == netns);
        known.map(|known| &known.info)
    }

    /// What is known of the container with this end on a network of Docker's, and the inode of its namespace.
    pub(super) fn with_endpoint(&self, endpoint: &str) -> Option<(u64, &RuntimeInfo)> {
        let mut known = self.known.values();
        let known = known.find(|one| one.endpoints.contains(endpoint))?;
        Some((known.netns, &known.info))
    }

    /// What to ask now: the socket, and what is known so far. Nobody else asks for a while.
    pub(super) fn due(&mut self, now: Instant) -> Option<Question> {
        let socket = self.socket.clone().filter(|socket| socket.exists())?;
        let rested = |at: Instant| now.saturating_duration_since(at) >= PAUSE;
        if !self.asked.is_none_or(rested) {
            return None;
        }
        self.asked = Some(now);
        Some(Question {
            socket,
            known: self.known.clone(),
        })
    }

    /// Takes the answer; what was known stays if there was none.
    pub(super) fn learn(&mut self, answer: io::Result<Answer>) {
        match answer {
            Ok(Answer(known)) => self.known = known,
            Err(error) => tracing::debug!(%error, "the container runtime does not tell"),
        }
    }
}

/// What is to be asked.
#[derive(Debug)]
pub(super) struct Question {
    socket: PathBuf,
    known: BTreeMap<String, Known>,
}

/// What was answered.
#[derive(Debug)]
pub(super) struct Answer(BTreeMap<String, Known>);

impl Question {
    /// Asks.
    ///
    /// # Errors
    /// When nobody answers in time what Docker would.
    pub(super) async fn ask(self) -> io::Result<Answer> {
        tokio::time::timeout(PATIENCE, self.exchange())
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    async fn exchange(mut self) -> io::Result<Answer> {
        let mut door = connect(&self.socket).await?;
        let listed: Vec<Listed> = get(&mut door, "/containers/json").await?;
        let mut known = BTreeMap::new();
        for one in listed.into_iter().take(MOST) {
            let is_id = |id: &str| !id.is_empty() && id.bytes().all(|b| b.is_ascii_hexdigit());
            if !is_id(&one.id) {
                continue;
            }
            let entry = match self.known.remove(&one.id).filter(|known| known.netns != 0) {
                Some(known) => known,
                None => match get(&mut door, &format!("/containers/{}/json", one.id)).await {
                    Ok(inspected) => read(&one.id, inspected),
                    // It may have ended meanwhile.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    Err(error) => return Err(error),
                },
            };
            let networks = one.settings.and_then(|settings| settings.networks);
            let ends = networks.into_iter().flatten().filter_map(|(_, end)| end);
            let endpoints = ends.map(|end| end.id).collect();
            known.insert(one.id, Known { endpoints, ..entry });
        }
        Ok(Answer(known))
    }
}

fn read(id: &str, inspected: Inspected) -> Known {
    let netns = std::fs::metadata(format!("/proc/{}/ns/net", inspected.state.pid));
    let labels = inspected.config.labels.into_iter().flatten();
    let labels = labels.filter(|(name, value)| name.len() + value.len() <= LONGEST_LABEL);
    Known {
        info: RuntimeInfo {
            runtime: "docker".to_owned(),
            id: id.chars().take(12).collect(),
            name: inspected.name.trim_start_matches('/').to_owned(),
            image: inspected.config.image,
            labels: labels.take(MOST_LABELS).collect(),
        },
        netns: netns.map_or(0, |found| found.ino()),
        endpoints: BTreeSet::new(),
    }
}

type Door = SendRequest<Empty<Bytes>>;

async fn connect(socket: &Path) -> io::Result<Door> {
    let stream = UnixStream::connect(socket).await?;
    let (door, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(io::Error::other)?;
    // It ends with the door.
    tokio::spawn(connection);
    Ok(door)
}

async fn get<A: DeserializeOwned>(door: &mut Door, path: &str) -> io::Result<A> {
    door.ready().await.map_err(io::Error::other)?;
    let request = Request::get(format!("{VERSION}{path}"))
        .header(header::HOST, "docker")
        .body(Empty::new())
        .map_err(io::Error::other)?;
    let response = door.send_request(request).await.map_err(io::Error::other)?;
    let status = response.status();
    let body = Limited::new(response.into_body(), LONGEST).collect().await;
    let body = body.map_err(io::Error::other)?.to_bytes();
    if status.as_u16() == 404 {
        return Err(io::ErrorKind::NotFound.into());
    }
    if !status.is_success() {
        return Err(io::Error::other(format!("{path}: {status}")));
    }
    serde_json::from_slice(&body).map_err(io::Error::other)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn what_docker_tells_is_read_and_bounded() {
        let labels: BTreeMap<String, String> =
            (0..50).map(|n| (format!("l{n}"), "x".into())).collect();
        let mut body = serde_json::json!({
            "Id": "0123", "Name": "/shop_web_1", "State": {"Pid": std::process::id(), "Running": true},
            "Config": {"Image": "nginx:1.29", "Labels": labels, "Env": ["SECRET=1"]},
        });
        let inspected = serde_json::from_value(body.clone()).unwrap();
        let known = read("0123456789abcdef", inspected);
        assert_eq!(known.info.name, "shop_web_1");
        assert_eq!(
            (known.info.id.as_str(), known.info.image.as_str()),
            ("0123456789ab", "nginx:1.29")
        );
        assert_eq!(known.info.labels.len(), MOST_LABELS);
        assert_ne!(known.netns, 0);
        body["Config"]["Labels"] = serde_json::json!({"long": "x".repeat(LONGEST_LABEL)});
        body["State"]["Pid"] = 0.into();
        let known = read("0123", serde_json::from_value(body.clone()).unwrap());
        assert!(known.info.labels.is_empty() && known.netns == 0);
        body["Config"]["Labels"] = serde_json::Value::Null;
        assert!(serde_json::from_value::<Inspected>(body).is_ok());
    }

    #[test]
    fn a_list_of_networks_may_be_missing() {
        let text = r#"[{"Id":"ab"},{"Id":"cd","NetworkSettings":{"Networks":{"weave":{"EndpointID":"e1"},"none":null}}}]"#;
        let listed: Vec<Listed> = serde_json::from_str(text).unwrap();
        assert!(listed[0].settings.is_none());
        let networks = listed[1]
            .settings
            .as_ref()
            .unwrap()
            .networks
            .as_ref()
            .unwrap();
        assert_eq!(networks["weave"].as_ref().unwrap().id, "e1");
    }

    #[test]
    fn nobody_is_asked_where_there_is_no_socket() {
        let now = Instant::now();
        assert!(Runtime::new(None).due(now).is_none());
        assert!(
            Runtime::new(Some("/nowhere/docker.sock".into()))
                .due(now)
                .is_none()
        );
        let mut runtime = Runtime::new(Some("/proc/self/exe".into()));
        assert!(runtime.due(now).is_some() && runtime.due(now).is_none());
        assert!(runtime.due(now + PAUSE).is_some());
    }
}
