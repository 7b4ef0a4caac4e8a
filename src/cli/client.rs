//! One HTTP request over the node's unix socket, on the thread that asks.

use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::runtime::Builder;
use weave_model::api::{PREFIX, Refusal};

use super::failure::{Exit, Failure};

/// Where the node is and how long to wait for it.
pub(super) struct Client<'a> {
    /// The node's socket.
    pub(super) socket: &'a Path,
    /// For the whole exchange.
    pub(super) timeout: Duration,
}

impl Client<'_> {
    /// Asks for `path`, below the API's prefix.
    pub(super) fn get<A: DeserializeOwned>(&self, path: &str) -> Result<A, Failure> {
        self.call(Method::GET, path, Bytes::new())
    }

    /// Sends `body` as JSON to `path`.
    pub(super) fn post<A: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<A, Failure> {
        let json = serde_json::to_vec(body).map_err(|error| {
            Failure::new(
                Exit::Failed,
                format!("cannot write the request: {error}"),
                "",
            )
        })?;
        self.call(Method::POST, path, json.into())
    }

    /// Asks to remove what is at `path`.
    pub(super) fn delete<A: DeserializeOwned>(&self, path: &str) -> Result<A, Failure> {
        self.call(Method::DELETE, path, Bytes::new())
    }

    fn call<A: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<A, Failure> {
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| Failure::new(Exit::Failed, format!("cannot start: {error}"), ""))?;
        let request = Request::builder()
            .method(method)
            .uri(format!("{PREFIX}{path}"))
            .header("host", "weave")
            .header("content-type", "application/json")
            .body(Full::new(body))
            .map_err(|error| {
                Failure::new(Exit::Usage, format!("cannot ask for {path}: {error}"), "")
            })?;
        runtime.block_on(async {
            let timed = tokio::time::timeout(self.timeout, self.exchange(request)).await;
            let (status, body) = timed.map_err(|_| self.too_slow())??;
            read_answer(status, &body)
        })
    }

    async fn exchange(
        &self,
        request: Request<Full<Bytes>>,
    ) -> Result<(StatusCode, Bytes), Failure> {
        let stream = UnixStream::connect(self.socket)
            .await
            .map_err(|error| self.no_socket(&error))?;
        let broken = |error: hyper::Error| {
            let cause = format!(
                "the node closed the connection on {}: {error}",
                self.socket.display()
            );
            Failure::new(Exit::Unreachable, cause, "look at the log of weaved")
        };
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(broken)?;
        let answer = async {
            let response = sender.send_request(request).await.map_err(broken)?;
            let status = response.status();
            let body = response.into_body().collect().await.map_err(broken)?;
            Ok((status, body.to_bytes()))
        };
        tokio::pin!(answer, connection);
        tokio::select! {
            answered = &mut answer => answered,
            _ = &mut connection => answer.await,
        }
    }

    fn no_socket(&self, error: &std::io::Error) -> Failure {
        let socket = self.socket.display();
        let (why, fix) = match error.kind() {
            ErrorKind::NotFound => (
                "there is no such socket",
                "start weaved, or name its socket with --socket",
            ),
            ErrorKind::ConnectionRefused => ("nobody listens there", "start weaved"),
            ErrorKind::PermissionDenied => {
                ("permission denied", "run as root, or join the group weave")
            }
            _ => {
                return Failure::new(
                    Exit::Unreachable,
                    format!("cannot reach the node at {socket}: {error}"),
                    "start weaved",
                );
            }
        };
        Failure::new(
            Exit::Unreachable,
            format!("cannot reach the node at {socket}: {why}"),
            fix,
        )
    }

    fn too_slow(&self) -> Failure {
        let cause = format!(
            "no answer from the node within {} ms",
            self.timeout.as_millis()
        );
        Failure::new(
            Exit::Timeout,
            cause,
            "wait longer with --timeout, or look at the log of weaved",
        )
    }
}

/// A success's body, or the refusal that it is.
fn read_answer<A: DeserializeOwned>(status: StatusCode, body: &[u8]) -> Result<A, Failure> {
    let strange = |error: serde_json::Error| {
        let cause = format!(
            "the node's answer (HTTP {}) cannot be read: {error}",
            status.as_u16()
        );
        Failure::new(
            Exit::Failed,
            cause,
            "use weavectl and weaved of the same version",
        )
    };
    if status.is_success() {
        return serde_json::from_slice(body).map_err(strange);
    }
    let refusal: Refusal = serde_json::from_slice(body).map_err(strange)?;
    Err(refusal.into())
}
