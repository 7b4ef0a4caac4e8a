//! `weavectl dashboard`: a link that opens the page, and the way to it.
//!
//! Where the node's page can be reached from here, the link leads there and that is all. Where it cannot, because the node
//! runs in another network namespace or serves no page, a port on loopback is opened here, and each connection to it goes
//! through the node's socket, which becomes a connection to the page alone. The code stands behind the `#` of the link, so
//! that it is sent to nobody and written into no log.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::Empty;
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::{Method, Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::runtime::Builder;
use weave_model::api::PageLogin;

use super::client::Client;
use super::failure::{Exit, Failure};
use super::print::to_stdout;
use crate::api::{PROTOCOL, STREAM};

/// The port that is tried first.
const PORT: u16 = 4040;

/// After a connection that could not be accepted.
const PAUSE: Duration = Duration::from_secs(1);

/// Prints a link; forwards the page until interrupted, if it has to.
pub(super) fn run(client: &Client<'_>, port: Option<u16>) -> Result<(String, Exit), Failure> {
    let login: PageLogin = client.post("/dashboard", &())?;
    if port.is_none()
        && let Some(at) = login.address.filter(|_| login.netns == own_netns())
    {
        return Ok((invitation(at, &login), Exit::Ok));
    }
    let runtime = Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(Exit::Failed, format!("cannot start: {error}"), ""))?;
    runtime.block_on(async {
        let listener = listen(port).await?;
        let at = listener
            .local_addr()
            .map_err(|error| Failure::new(Exit::Failed, format!("cannot listen: {error}"), ""))?;
        to_stdout(&invitation(at, &login))?;
        eprintln!(
            "forwarding {at} to the node at {}; Ctrl-C ends it",
            client.socket.display()
        );
        forward(listener, client.socket).await
    })
}

fn invitation(at: SocketAddr, login: &PageLogin) -> String {
    let at = if at.ip().is_unspecified() {
        SocketAddr::new(Ipv4Addr::LOCALHOST.into(), at.port())
    } else {
        at
    };
    let minutes = login.good_for_s / 60;
    format!(
        "http://{at}/#code={}\ngood once, for {minutes} min\n",
        login.code
    )
}

/// The network namespace of this process, as a number; 0 if it cannot be told.
fn own_netns() -> u64 {
    crate::node::own_netns()
}

async fn listen(port: Option<u16>) -> Result<TcpListener, Failure> {
    let at = |port| (Ipv4Addr::LOCALHOST, port);
    let taken = |error| {
        Failure::new(
            Exit::Failed,
            format!("cannot listen on 127.0.0.1: {error}"),
            "choose another port with --port",
        )
    };
    match port {
        Some(port) => TcpListener::bind(at(port)).await.map_err(taken),
        None => match TcpListener::bind(at(PORT)).await {
            Ok(listener) => Ok(listener),
            Err(_) => TcpListener::bind(at(0)).await.map_err(taken),
        },
    }
}

/// Carries each connection through the node's socket; ends only with the process.
async fn forward(listener: TcpListener, socket: &Path) -> Result<(String, Exit), Failure> {
    let socket: PathBuf = socket.to_owned();
    loop {
        let browser = match listener.accept().await {
            Ok((browser, _)) => browser,
            Err(error) => {
                // Most likely there are no descriptors left, until connections end.
                eprintln!("weavectl: a connection was not accepted: {error}");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let socket = socket.clone();
        tokio::spawn(async move {
            if let Err(cause) = carry(browser, &socket).await {
                eprintln!("weavectl: a connection was not forwarded: {cause}");
            }
        });
    }
}

async fn carry(mut browser: TcpStream, socket: &Path) -> Result<(), String> {
    let text = |error: &dyn std::error::Error| error.to_string();
    let stream = UnixStream::connect(socket)
        .await
        .map_err(|error| text(&error))?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| text(&error))?;
    let connection = tokio::spawn(connection.with_upgrades());
    let request = Request::builder()
        .method(Method::POST)
        .uri(STREAM)
        .header(header::HOST, "weave")
        .header(header::CONNECTION, "upgrade")
        .header(header::UPGRADE, PROTOCOL)
        .body(Empty::<Bytes>::new())
        .map_err(|error| text(&error))?;
    let answer = sender
        .send_request(request)
        .await
        .map_err(|error| text(&error))?;
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Err(format!("the node answered {}", answer.status()));
    }
    let page = hyper::upgrade::on(answer)
        .await
        .map_err(|error| text(&error))?;
    // Whichever side ends it, and however, is no news.
    let _ = tokio::io::copy_bidirectional(&mut browser, &mut TokioIo::new(page)).await;
    connection.abort();
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use weave_linux::clock;

    use super::*;

    /// One that listens no more fails at each `accept`, as one does without descriptors.
    #[tokio::test]
    async fn a_listener_that_fails_is_tried_again_after_a_pause() {
        let listener = listen(Some(0)).await.unwrap();
        let listening = socket2::SockRef::from(&listener);
        listening.shutdown(std::net::Shutdown::Both).unwrap();
        let before = clock::thread_cpu();
        let forwarding = forward(listener, Path::new("/nowhere"));
        let time = Duration::from_millis(500);
        assert!(tokio::time::timeout(time, forwarding).await.is_err());
        let took = clock::thread_cpu().saturating_sub(before);
        assert!(took < time / 5, "{took:?}");
    }
}
