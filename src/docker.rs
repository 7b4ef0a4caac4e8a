//! The node as a plugin of Docker's: networks and addresses, over a unix socket of its own.
//!
//! Docker finds the socket in `/run/docker/plugins`, by the name of the driver ([`DEFAULT_SOCKET`]), whenever a network
//! or a container of that driver is used; it asks once what the plugin implements and never again, so the node has to
//! be as it was after any restart: all that Docker was given is in the node's book ([`crate::node`]). Only root may
//! use the socket.
//!
//! The network is local to each Docker and the same for all of the cluster: whoever creates it anywhere gets the
//! cluster's network. Unicast, broadcast and multicast of containers go by our interface. The way to the outside and
//! published ports are Docker's own, by its bridge `docker_gwbridge`, which it adds to a container whose other networks
//! name no gateway: so `docker port`, ports chosen by Docker, its proxy and its rules work as on any of its networks. For
//! a container on an internal network of the cluster it is asked not to (moby, `JoinResponse.DisableGatewayService`).
//!
//! `weaved` serves it where Docker is: [`DOCKER`] exists, from the start or from when Docker first runs, and the node is in
//! the network namespace of process 1, so not one of several nodes of a lab. `--docker-plugin` says otherwise.

use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use hyper::body::Bytes;
use serde_json::{Value, json};
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use weave_model::api::{Code, Refusal};
use weave_model::docker::{ADDRESS_SPACE, Call, DEFAULT_SOCKET};

use crate::api::{Socket, SocketError};
use crate::config::{DockerPlugin, in_network_of_host};
use crate::node::{DockerAnswer, Lent, Node, Pool};

/// What a Docker that runs, or ran since the last boot, has made.
const DOCKER: &str = "/run/docker";

/// How often a node without Docker looks whether there is one by now.
const WATCH: Duration = Duration::from_secs(5);

/// How long calls in flight may take once the node is asked to stop.
const DRAIN: Duration = Duration::from_secs(1);

/// The type of every answer.
const CONTENT_TYPE: &str = "application/vnd.docker.plugins.v1.2+json";

/// The plugin while it is served, or while Docker is waited for.
#[derive(Debug)]
pub struct Plugin {
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Plugin {
    /// Starts it as the configuration says.
    ///
    /// # Errors
    /// Where the socket was named and cannot be had.
    pub fn start(config: &DockerPlugin, node: Node) -> Result<Self, SocketError> {
        let (stop, stopped) = watch::channel(false);
        let task = match config {
            DockerPlugin::Off => tokio::spawn(std::future::ready(())),
            DockerPlugin::WhereDockerIs => tokio::spawn(wait_for_docker(node, stopped)),
            DockerPlugin::At(path) => {
                let socket = Socket::bind_for_root(path)?;
                tokio::spawn(serve(socket, path.clone(), node, stopped))
            }
        };
        Ok(Self { stop, task })
    }

    /// Answers what was asked, for at most a second, and ends.
    pub async fn stop(mut self) {
        self.stop.send_replace(true);
        if tokio::time::timeout(DRAIN, &mut self.task).await.is_err() {
            tracing::warn!("calls of Docker's were still in flight at the end");
            self.task.abort();
        }
    }
}

async fn wait_for_docker(node: Node, mut stopped: watch::Receiver<bool>) {
    if !in_network_of_host() {
        return;
    }
    let path = PathBuf::from(DEFAULT_SOCKET);
    let mut told = false;
    loop {
        if Path::new(DOCKER).exists() {
            match Socket::bind_for_root(&path) {
                Ok(socket) => return serve(socket, path, node, stopped).await,
                Err(error) if !told => {
                    tracing::warn!(%error, "Docker cannot use this node's network");
                    told = true;
                }
                Err(_) => {}
            }
        }
        tokio::select! {
            () = tokio::time::sleep(WATCH) => {}
            _ = stopped.wait_for(|&stopped| stopped) => return,
        }
    }
}

async fn serve(socket: Socket, path: PathBuf, node: Node, mut stopped: watch::Receiver<bool>) {
    let (listener, _file): (UnixListener, _) = match socket.into_listener() {
        Ok(parts) => parts,
        Err(error) => return tracing::warn!(%error, "Docker's plugin cannot be served"),
    };
    tracing::info!(socket = %path.display(), "serving Docker");
    let routes = Router::new().fallback(answer).with_state(node);
    let stop = async move {
        // The sender lives as long as this task is wanted.
        let _ = stopped.wait_for(|&stopped| stopped).await;
    };
    let served = axum::serve(listener, routes).with_graceful_shutdown(stop);
    if let Err(error) = served.await {
        tracing::warn!(%error, "Docker's plugin ended");
    }
}

/// Answers one call: its name is the path, its body JSON.
async fn answer(State(node): State<Node>, uri: Uri, body: Bytes) -> Response {
    let name = uri.path().trim_start_matches('/');
    let body = if body.is_empty() { &b"null"[..] } else { &body };
    let call = match Call::read(name, &mut serde_json::Deserializer::from_slice(body)) {
        Ok(Some(call)) => call,
        // To Docker this means that the plugin does not have the call, and that it can do without.
        Ok(None) => return StatusCode::NOT_FOUND.into_response(),
        Err(error) => {
            let cause = format!("the call {name} cannot be read: {error}");
            let fix = "this version of Docker is not known to work";
            return refused(name, &Refusal::new(Code::Invalid, cause, fix));
        }
    };
    tracing::debug!(?call, "Docker asks");
    let answer = match said_by_itself(&call) {
        Some(answer) => answer,
        None => match node.docker(call).await {
            Ok(answer) => written(answer),
            Err(refusal) => return refused(name, &refusal),
        },
    };
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], answer.to_string()).into_response()
}

/// What does not depend on the node.
fn said_by_itself(call: &Call) -> Option<Value> {
    Some(match call {
        Call::Activate => json!({"Implements": ["NetworkDriver", "IpamDriver"]}),
        Call::DriverCapabilities => json!({"Scope": "local", "ConnectivityScope": "global"}),
        // The hardware address tells which two addresses are one container's.
        Call::IpamCapabilities => {
            json!({"RequiresMACAddress": true, "RequiresRequestReplay": false})
        }
        Call::AddressSpaces => json!({
            "LocalDefaultAddressSpace": ADDRESS_SPACE, "GlobalDefaultAddressSpace": ADDRESS_SPACE,
        }),
        Call::EndpointInfo(_) => json!({"Value": {}}),
        _ => return None,
    })
}

/// What the node did, in Docker's words.
fn written(answer: DockerAnswer) -> Value {
    match answer {
        DockerAnswer::Done => json!({}),
        DockerAnswer::Pool(Pool { id, net, gateway }) => json!({
            "PoolID": id, "Pool": net, "Data": {"com.docker.network.gateway": gateway},
        }),
        DockerAnswer::Address(address) => json!({"Address": address, "Data": {}}),
        DockerAnswer::Lent(lent) => joined(&lent),
    }
}

/// The interface and its routes; the one to the range comes with the IPv4 address. No gateway: see above. Groups need
/// a route of their own, for the default route is Docker's.
fn joined(lent: &Lent) -> Value {
    const ON_LINK: u8 = 1;
    const BY_HOP: u8 = 0;
    let mut routes = vec![json!({"Destination": "224.0.0.0/4", "RouteType": ON_LINK})];
    if lent.ipv6 {
        let range = lent.range.v6();
        routes.extend([
            json!({"Destination": "fe80::1/128", "RouteType": ON_LINK}),
            json!({"Destination": range, "RouteType": BY_HOP, "NextHop": "fe80::1"}),
        ]);
    }
    json!({
        "InterfaceName": {"SrcName": lent.name, "DstPrefix": "eth"},
        "StaticRoutes": routes,
        "DisableGatewayService": lent.internal,
    })
}

/// A refusal as both interfaces say it. Docker shows it to whoever typed the command, so the fix is in it.
fn refused(name: &str, refusal: &Refusal) -> Response {
    let Refusal { message, fix, .. } = refusal;
    tracing::info!(call = name, message, "refused");
    let text = format!("{message}; fix: {fix}");
    let body = json!({"Err": text, "Error": text}).to_string();
    let kind = [(header::CONTENT_TYPE, CONTENT_TYPE)];
    (StatusCode::INTERNAL_SERVER_ERROR, kind, body).into_response()
}
