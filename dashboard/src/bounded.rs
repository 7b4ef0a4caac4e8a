//! An HTTP server that strangers cannot use up: the page and the metrics may be served on an address that others reach,
//! by a process whose descriptors the containers of its host depend on.
//!
//! At most [`MOST`] connections are open at a time; further ones wait in the kernel's queue. One that does not send the
//! whole head of a request within [`PATIENCE`], counted from its start or from the answer before, is closed. An answer may
//! last as long as its reader stays, which the events of the page need.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// The most connections at a time.
pub const MOST: usize = 128;

/// How long a connection may be without a whole request.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// How long nothing is accepted after the system had no room for a connection.
const PAUSE: Duration = Duration::from_millis(100);

/// Serves until `stop`, and requests in progress to their end; all of it ends when this is dropped.
pub async fn serve(listener: TcpListener, routes: Router, stop: impl Future<Output = ()>) {
    serve_with(PATIENCE, listener, routes, stop).await;
}

async fn serve_with(
    patience: Duration,
    listener: TcpListener,
    routes: Router,
    stop: impl Future<Output = ()>,
) {
    let (room, open) = (Arc::new(Semaphore::new(MOST)), GracefulShutdown::new());
    let mut connections = JoinSet::new();
    let mut stop = pin!(stop);
    loop {
        let accepted = tokio::select! {
            accepted = accept(&listener, &room) => accepted,
            () = &mut stop => break,
        };
        while connections.try_join_next().is_some() {}
        let Some((stream, place)) = accepted else {
            continue;
        };
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(patience)
            .serve_connection(
                TokioIo::new(stream),
                TowerToHyperService::new(routes.clone()),
            );
        let connection = open.watch(connection);
        connections.spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection ended early");
            }
            drop(place);
        });
    }
    open.shutdown().await;
}

/// The next connection, once there is room for it, with its place; `None` if the system had none for it.
async fn accept(
    listener: &TcpListener,
    room: &Arc<Semaphore>,
) -> Option<(TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    let place = Arc::clone(room)
        .acquire_owned()
        .await
        .expect("it is never closed");
    match listener.accept().await {
        Ok((stream, _)) => {
            // Events are small, and each is waited for.
            let _ = stream.set_nodelay(true);
            Some((stream, place))
        }
        Err(error) => {
            tracing::debug!(%error, "a connection cannot be accepted");
            tokio::time::sleep(PAUSE).await;
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use axum::routing::get;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::time::timeout;

    use super::*;

    async fn start(
        patience: Duration,
        stop: impl Future<Output = ()> + Send + 'static,
    ) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
        let at = listener.local_addr().expect("a bound listener has one");
        let routes = Router::new().route("/", get(async || "here"));
        tokio::spawn(serve_with(patience, listener, routes, stop));
        at
    }

    async fn ask(at: SocketAddr) -> String {
        let mut stream = TcpStream::connect(at).await.expect("it listens");
        let request = b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
        stream.write_all(request).await.expect("it is read");
        let mut answer = String::new();
        stream
            .read_to_string(&mut answer)
            .await
            .expect("it is text");
        answer
    }

    #[tokio::test]
    async fn connections_beyond_the_bound_wait_for_one_to_end() {
        let at = start(PATIENCE, std::future::pending()).await;
        let mut idle = Vec::new();
        for _ in 0..MOST {
            idle.push(TcpStream::connect(at).await.expect("it listens"));
        }
        let waiting = tokio::spawn(ask(at));
        let mut waiting = pin!(waiting);
        let early = timeout(Duration::from_millis(200), &mut waiting).await;
        assert!(early.is_err(), "it was served beyond the bound");
        idle.pop();
        let answer = waiting.await.expect("the task ends");
        assert!(answer.ends_with("here"), "{answer}");
    }

    #[tokio::test]
    async fn who_sends_no_request_is_closed() {
        let at = start(Duration::from_millis(100), std::future::pending()).await;
        let mut stream = TcpStream::connect(at).await.expect("it listens");
        stream.write_all(b"GET / HT").await.expect("it is read");
        let closed = timeout(PATIENCE, stream.read(&mut [0; 16])).await;
        assert!(matches!(closed, Ok(Ok(0) | Err(_))), "{closed:?}");
    }

    #[tokio::test]
    async fn a_stop_ends_it() {
        let (tell, told) = tokio::sync::oneshot::channel::<()>();
        let at = start(PATIENCE, async { drop(told.await) }).await;
        assert!(ask(at).await.ends_with("here"));
        drop(tell);
        let refused = async {
            while TcpStream::connect(at).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let ended = timeout(Duration::from_secs(10), refused).await;
        ended.expect("the listener is closed");
    }
}
