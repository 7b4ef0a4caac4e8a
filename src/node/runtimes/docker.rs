//! What Docker says of its containers: the list, and of each container that is new what is known of it.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Request, Response, header};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::{LONGEST, MOST, NEW, Told, info, netns_of};

/// Where a daemon says in a header which version of its API is its newest; the path itself has none.
const PING: &str = "/_ping";
const API_VERSION: &str = "api-version";

/// As much as is told of why a daemon refuses, in characters.
const CAUSE: usize = 200;

/// What is known, by id.
pub(super) type Known = BTreeMap<String, Told>;

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

/// What a daemon says when it refuses.
#[derive(Debug, Deserialize)]
struct Refusal {
    message: String,
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

/// Asks; of containers that were known before, only their ends on networks are new.
///
/// # Errors
/// When what is there does not answer as Docker would.
pub(super) async fn ask(socket: PathBuf, mut before: Known) -> io::Result<Known> {
    let mut door = connect(&socket).await?;
    let listed: Vec<Listed> = get(&mut door, "/containers/json").await?;
    let mut known = Known::new();
    let mut new = 0;
    for one in listed.into_iter().take(MOST) {
        let is_id = |id: &str| !id.is_empty() && id.bytes().all(|b| b.is_ascii_hexdigit());
        if !is_id(&one.id) {
            continue;
        }
        let entry = match before.remove(&one.id).filter(|known| known.netns != 0) {
            Some(known) => known,
            None if new == NEW => continue,
            None => match get(&mut door, &format!("/containers/{}/json", one.id)).await {
                Ok(inspected) => {
                    new += 1;
                    read(&one.id, inspected)
                }
                // It may have ended meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            },
        };
        let networks = one.settings.and_then(|settings| settings.networks);
        let ends = networks.into_iter().flatten().filter_map(|(_, end)| end);
        let handles = ends.map(|end| end.id).collect();
        known.insert(one.id, Told { handles, ..entry });
    }
    Ok(known)
}

fn read(id: &str, inspected: Inspected) -> Told {
    let Inspected {
        name,
        state,
        config,
    } = inspected;
    let (name, labels) = (
        name.trim_start_matches('/'),
        config.labels.unwrap_or_default(),
    );
    Told {
        info: info("docker", id, name, &config.image, labels),
        netns: netns_of(state.pid),
        handles: Default::default(),
    }
}

/// A connection to a daemon, and the prefix of the version of its API that is spoken.
///
/// A daemon refuses versions that are too old for it (Docker 29 those before 1.44) or too new, and a path without any is
/// deprecated. What is asked for here is the same in all, so its newest is spoken, as clients of Docker agree on one.
struct Door {
    requests: SendRequest<Empty<Bytes>>,
    version: String,
}

async fn connect(socket: &Path) -> io::Result<Door> {
    let stream = UnixStream::connect(socket).await?;
    let (requests, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(io::Error::other)?;
    // It ends with the door.
    tokio::spawn(connection);
    let version = String::new();
    let mut door = Door { requests, version };
    let pong = send(&mut door, PING).await?;
    // One that says no version is asked as if it had only one.
    let said = pong.headers().get(API_VERSION);
    let said = said.and_then(|version| version.to_str().ok());
    door.version = said.and_then(prefix).unwrap_or_default();
    // The next request waits for the end of the answer.
    let body = Limited::new(pong.into_body(), LONGEST).collect().await;
    body.map_err(io::Error::other)?;
    Ok(door)
}

/// What paths of a version, such as `1.44`, begin with.
fn prefix(version: &str) -> Option<String> {
    let (major, minor) = version.split_once('.')?;
    let (major, minor): (u16, u16) = (major.parse().ok()?, minor.parse().ok()?);
    Some(format!("/v{major}.{minor}"))
}

async fn send(door: &mut Door, path: &str) -> io::Result<Response<Incoming>> {
    let requests = &mut door.requests;
    requests.ready().await.map_err(io::Error::other)?;
    let request = Request::get(format!("{}{path}", door.version))
        .header(header::HOST, "docker")
        .body(Empty::new())
        .map_err(io::Error::other)?;
    requests
        .send_request(request)
        .await
        .map_err(io::Error::other)
}

async fn get<A: DeserializeOwned>(door: &mut Door, path: &str) -> io::Result<A> {
    let response = send(door, path).await?;
    let status = response.status();
    let body = Limited::new(response.into_body(), LONGEST).collect().await;
    let body = body.map_err(io::Error::other)?.to_bytes();
    if status.as_u16() == 404 {
        return Err(io::ErrorKind::NotFound.into());
    }
    if !status.is_success() {
        let said = serde_json::from_slice(&body).map(|Refusal { message }| message);
        let said: String = said.unwrap_or_default().chars().take(CAUSE).collect();
        return Err(io::Error::other(format!("{path}: {status}: {said}")));
    }
    serde_json::from_slice(&body).map_err(io::Error::other)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use axum::Json;
    use axum::http::{StatusCode, Uri};
    use axum::response::IntoResponse;
    use serde_json::json;
    use tokio::net::UnixListener;

    use super::*;

    /// Answers as a daemon that speaks these minor versions of the API 1, and no path without one.
    async fn daemon(path: &Path, spoken: std::ops::RangeInclusive<u32>) {
        let listener = UnixListener::bind(path).unwrap();
        let newest = format!("1.{}", spoken.end());
        let answer = move |uri: Uri| async move {
            let path = uri.path();
            if path == "/_ping" {
                return ([("Api-Version", newest)], "OK").into_response();
            }
            let asked = path
                .strip_prefix("/v1.")
                .and_then(|rest| rest.split_once('/'));
            let asked = asked.and_then(|(minor, path)| Some((minor.parse().ok()?, path)));
            let Some((_, path)) = asked.filter(|(minor, _)| spoken.contains(minor)) else {
                let cause = json!({"message": "client version is too old"});
                return (StatusCode::BAD_REQUEST, Json(cause)).into_response();
            };
            let told = match path {
                "containers/json" => json!([{"Id": "ab"}]),
                _ => json!({
                    "Name": "/web", "State": {"Pid": std::process::id()},
                    "Config": {"Image": "nginx:1.29", "Labels": null},
                }),
            };
            Json(told).into_response()
        };
        let routes = axum::Router::new().fallback(answer);
        axum::serve(listener, routes).await.unwrap();
    }

    /// 20.10 speaks 1.12 to 1.41, and 29 refuses what is older than 1.44.
    #[tokio::test]
    async fn old_and_new_daemons_are_asked_in_a_version_that_they_speak() {
        for (name, spoken) in [("20.10", 12..=41), ("29", 44..=52), ("later", 60..=70)] {
            let socket = format!("weave-docker-{}-{name}", std::process::id());
            let socket = std::env::temp_dir().join(socket);
            let (served, served_at) = (socket.clone(), socket.clone());
            let daemon = tokio::spawn(async move { daemon(&served, spoken).await });
            while !socket.exists() {
                tokio::task::yield_now().await;
            }
            let known = ask(socket, Known::new()).await;
            daemon.abort();
            std::fs::remove_file(&served_at).unwrap();
            let known = known.unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_eq!(known["ab"].info.name, "web", "{name}");
        }
    }

    #[test]
    fn only_a_version_becomes_a_part_of_the_path() {
        assert_eq!(prefix("1.44").as_deref(), Some("/v1.44"));
        for odd in ["", "1", "1.44/..", "1.x", " 1.44", "1.44.1"] {
            assert_eq!(prefix(odd), None, "{odd}");
        }
    }

    #[test]
    fn what_docker_tells_is_read() {
        let mut body = serde_json::json!({
            "Id": "0123", "Name": "/shop_web_1", "State": {"Pid": std::process::id(), "Running": true},
            "Config": {"Image": "nginx:1.29", "Labels": {"app": "web"}, "Env": ["SECRET=1"]},
        });
        let inspected = serde_json::from_value(body.clone()).unwrap();
        let known = read("0123456789abcdef", inspected);
        assert_eq!(known.info.name, "shop_web_1");
        assert_eq!(
            (known.info.id.as_str(), known.info.image.as_str()),
            ("0123456789ab", "nginx:1.29")
        );
        assert_ne!(known.netns, 0);
        body["State"]["Pid"] = 0.into();
        body["Config"]["Labels"] = serde_json::Value::Null;
        let known = read("0123", serde_json::from_value(body).unwrap());
        assert!(known.info.labels.is_empty() && known.netns == 0);
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
}
