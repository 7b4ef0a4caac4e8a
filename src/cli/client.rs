//! One HTTP request over the node's unix socket, on the thread that asks; its answer whole, or piece by piece.

use std::fmt::Write as _;
use std::io::{self, ErrorKind};
use std::path::Path;
use std::time::Duration;

use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::runtime::{Builder, Runtime};
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

    /// Asks for what comes in pieces, and gives each to `take` until there are no more. The time is for the first.
    pub(super) fn stream(
        &self,
        path: &str,
        mut take: impl FnMut(&[u8]) -> io::Result<()>,
    ) -> Result<(), Failure> {
        let runtime = runtime()?;
        let request = request(Method::GET, path, Bytes::new())?;
        runtime.block_on(async {
            let opened = tokio::time::timeout(self.timeout, self.open(request)).await;
            let mut body = opened.map_err(|_| self.too_slow())??;
            while let Some(frame) = body.frame().await {
                let frame = frame.map_err(|error| self.broken(&error))?;
                let Some(piece) = frame.data_ref() else {
                    continue;
                };
                match take(piece) {
                    Ok(()) => {}
                    // Whoever read along has seen enough.
                    Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(()),
                    Err(error) => {
                        let cause = format!("cannot write what was captured: {error}");
                        return Err(Failure::new(Exit::Failed, cause, "free space on the disk"));
                    }
                }
            }
            Ok(())
        })
    }

    /// Sends a request whose answer is read while it comes; the connection is looked after by a task.
    async fn open(&self, request: Request<Full<Bytes>>) -> Result<Incoming, Failure> {
        let stream = UnixStream::connect(self.socket)
            .await
            .map_err(|error| self.no_socket(&error))?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| self.broken(&error))?;
        tokio::spawn(connection);
        let response = sender
            .send_request(request)
            .await
            .map_err(|error| self.broken(&error))?;
        if response.status().is_success() {
            return Ok(response.into_body());
        }
        let status = response.status();
        let body = response.into_body().collect().await;
        let body = body.map_err(|error| self.broken(&error))?.to_bytes();
        Err(read_answer::<Refusal>(status, &body).map_or_else(|failure| failure, Into::into))
    }

    fn broken(&self, error: &hyper::Error) -> Failure {
        let cause = format!(
            "the node closed the connection on {}: {error}",
            self.socket.display()
        );
        Failure::new(Exit::Unreachable, cause, "look at the log of weaved")
    }

    fn call<A: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<A, Failure> {
        let runtime = runtime()?;
        let request = request(method, path, body)?;
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
        let broken = |error: hyper::Error| self.broken(&error);
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

    fn no_socket(&self, error: &io::Error) -> Failure {
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

fn runtime() -> Result<Runtime, Failure> {
    let runtime = Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| Failure::new(Exit::Failed, format!("cannot start: {error}"), ""))
}

fn request(method: Method, path: &str, body: Bytes) -> Result<Request<Full<Bytes>>, Failure> {
    Request::builder()
        .method(method)
        .uri(format!("{PREFIX}{path}"))
        .header("host", "weave")
        .header("content-type", "application/json")
        .body(Full::new(body))
        .map_err(|error| Failure::new(Exit::Usage, format!("cannot ask for {path}: {error}"), ""))
}

/// A word as it may stand in a query (RFC 3986 section 2).
pub(super) fn percent_encoded(word: &str) -> String {
    word.bytes().fold(String::new(), |mut text, byte| {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            text.push(char::from(byte));
        } else {
            let _ = write!(text, "%{byte:02X}");
        }
        text
    })
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
