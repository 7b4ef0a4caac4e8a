//! The checks of endpoints that this node has to make: a task that connects, asks and tells what it found.
//!
//! When which is due, and what a result changes, is decided in [`weave_proxy::health`]. Checks go out from the host, which
//! has a way to its own containers whatever else is up.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http_body_util::Empty;
use hyper::Request;
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::{HOST, USER_AGENT};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep_until, timeout};
use weave_model::{CheckedService, HealthCheck};
use weave_proxy::health::{Checks, Wanted};

use crate::vital::Part;

/// The most checks that are under way at a time; more wait for their turn.
const MOST: usize = 64;

/// What is known of the endpoints that this node checks.
#[derive(Clone, Debug, Default)]
pub(super) struct Found {
    pub(super) services: Arc<[CheckedService]>,
    /// Whether each of them has been checked.
    pub(super) settled: bool,
    /// For what this was found.
    pub(super) of: Arc<Wanted>,
}

/// Starts the task: where it is told what to check, and where it tells what it found. It ends when nobody can want anything
/// any more; if it ends by itself, `part` tells.
pub(super) fn start(part: Part) -> (watch::Sender<Arc<Wanted>>, watch::Receiver<Found>) {
    let (asker, wanted) = watch::channel(Arc::default());
    let (teller, found) = watch::channel(Found::default());
    tokio::spawn(async move {
        run(wanted, teller).await;
        drop(part);
    });
    (asker, found)
}

async fn run(mut wanted: watch::Receiver<Arc<Wanted>>, found: watch::Sender<Found>) {
    let (mut checks, mut running) = (Checks::default(), JoinSet::new());
    loop {
        let room = running.len() < MOST;
        let due = checks.poll_timeout().filter(|_| room);
        let due = due.unwrap_or_else(|| Instant::now() + Duration::from_secs(3600));
        tokio::select! {
            changed = wanted.changed() => {
                if changed.is_err() {
                    return;
                }
                checks.handle_wanted(&wanted.borrow_and_update(), Instant::now());
                tell(&checks, &wanted, &found);
            }
            Some(Ok((subject, result))) = running.join_next() => {
                let settled = checks.is_settled();
                let changed = checks.handle_result(&subject, result, Instant::now());
                if changed || settled != checks.is_settled() {
                    tell(&checks, &wanted, &found);
                }
            }
            () = sleep_until(due.into()) => {
                if let Some((subject, how)) = checks.poll_check(Instant::now()) {
                    running.spawn(async move {
                        let result = check(subject.at, &how).await;
                        (subject, result)
                    });
                }
            }
        }
    }
}

fn tell(checks: &Checks, wanted: &watch::Receiver<Arc<Wanted>>, found: &watch::Sender<Found>) {
    found.send_replace(Found {
        services: checks.outcomes().into(),
        settled: checks.is_settled(),
        of: Arc::clone(&wanted.borrow()),
    });
}

/// One check. The error is the same text as long as the cause is the same.
async fn check(at: SocketAddr, how: &HealthCheck) -> Result<(), String> {
    let patience = Duration::from_secs(how.timeout_s.into());
    let checked = async {
        let stream = TcpStream::connect(at).await.map_err(|error| why(&error))?;
        match &how.path {
            Some(path) => ask(stream, at, path).await,
            None => Ok(()),
        }
    };
    let late = |_| Err(format!("no answer within {} s", how.timeout_s));
    timeout(patience, checked).await.unwrap_or_else(late)
}

fn why(error: &io::Error) -> String {
    match error.kind() {
        ErrorKind::ConnectionRefused => "connections are refused".to_owned(),
        ErrorKind::ConnectionReset => "connections are broken off".to_owned(),
        ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => {
            "there is no way to it".to_owned()
        }
        kind => kind.to_string(),
    }
}

async fn ask(stream: TcpStream, at: SocketAddr, path: &str) -> Result<(), String> {
    let odd = |error: hyper::Error| {
        let silent = error.is_incomplete_message() || error.is_closed() || error.is_canceled();
        let why = if silent {
            "it ends the connection without an answer"
        } else {
            "it does not speak HTTP"
        };
        why.to_owned()
    };
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(odd)?;
    let request = Request::get(path)
        .header(HOST, at.to_string())
        .header(USER_AGENT, concat!("weave/", env!("CARGO_PKG_VERSION")))
        .body(Empty::<Bytes>::new())
        .map_err(|error| error.to_string())?;
    let (mut answer, mut connection) = (pin!(sender.send_request(request)), pin!(connection));
    // The connection makes the request go on, and may end with the answer in the same moment.
    let answer = tokio::select! {
        answer = &mut answer => answer,
        _ = &mut connection => answer.await,
    };
    let answer = answer.map_err(odd)?;
    match answer.status().as_u16() {
        200..=399 => Ok(()),
        status => Err(format!("it answers {status}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    /// A server that reads a request, writes this, and ends.
    async fn server(answer: &'static str) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = [0; 1024];
                let count = stream.read(&mut request).await.unwrap_or(0);
                let asked = String::from_utf8_lossy(&request[..count]).into_owned();
                if asked.starts_with("GET /healthz HTTP/1.1\r\n") {
                    let _ = stream.write_all(answer.as_bytes()).await;
                }
            }
        });
        at
    }

    async fn http(answer: &'static str) -> Result<(), String> {
        let how = "http:/healthz,interval=30s,timeout=30s".parse().unwrap();
        check(server(answer).await, &how).await
    }

    #[tokio::test]
    async fn an_answer_of_200_to_399_passes() {
        assert_eq!(
            http("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await,
            Ok(())
        );
        let moved = "HTTP/1.1 302 Found\r\nlocation: /\r\ncontent-length: 0\r\n\r\n";
        assert_eq!(http(moved).await, Ok(()));
        let not = http("HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n").await;
        assert_eq!(not, Err("it answers 503".to_owned()));
        assert!(http("220 mail.example ESMTP\r\n").await.is_err());
        assert!(http("").await.is_err(), "it ends without an answer");
    }

    #[tokio::test]
    async fn a_connection_is_enough_for_tcp_and_a_refusal_is_not() {
        let how = "tcp,interval=30s,timeout=30s".parse().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        assert_eq!(check(at, &how).await, Ok(()));
        drop(listener);
        assert_eq!(
            check(at, &how).await,
            Err("connections are refused".to_owned())
        );
    }

    #[tokio::test]
    async fn silence_fails_when_its_time_is_over() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let how = "http:/healthz,timeout=1s".parse().unwrap();
        assert_eq!(
            check(at, &how).await,
            Err("no answer within 1 s".to_owned())
        );
    }
}
