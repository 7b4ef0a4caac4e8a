//! What Docker says of its containers: the list, and of each container that is new what is known of it.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Request, header};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::{LONGEST, MOST, NEW, Told, info, netns_of};

/// The version of Docker's API that is spoken: all since 1.12 have it.
const VERSION: &str = "/v1.24";

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
