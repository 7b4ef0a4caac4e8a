//! What a browser, or anybody who is no browser, can send to the server behind the page.

use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use weave_dashboard::{Dashboard, Identity};
use weave_model::NodeId;
use weave_model::api::Report;

use super::sight;

/// A container in the picture that is shown: who has not logged in must not read of it.
const HIDDEN: &str = "nobody-shall-see-this";

/// How often the server gets its turn before the connection is ended.
const TURNS: usize = 64;

/// Bytes on a connection are answered, or the connection ends; never by a failure of the server, and nothing of the picture
/// is in an answer, as no bytes are a session.
pub(super) fn requests(data: &[u8]) {
    let runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = { runtime }.enable_time().build().expect("a runtime");
    let answer = runtime.block_on(exchange(data));
    let answer = String::from_utf8_lossy(&answer);
    assert!(!answer.contains(HIDDEN), "{answer}");
    assert!(
        answer.is_empty() || answer.starts_with("HTTP/1."),
        "{answer}"
    );
    assert!(!answer.starts_with("HTTP/1.1 5"), "{answer}");
}

async fn exchange(data: &[u8]) -> Vec<u8> {
    let identity = Identity {
        node: NodeId::from_bytes([1; 32]),
        key: [2; 32],
    };
    let page = Dashboard::new(identity);
    page.publish(sight::picture_of(&shown()));
    let (mut browser, server) = tokio::io::duplex(1 << 20);
    let serving = tokio::spawn(page.serve_one(TokioIo::new(server)));
    browser.write_all(data).await.expect("there is room");
    for _ in 0..TURNS {
        tokio::task::yield_now().await;
    }
    browser.shutdown().await.expect("it is open");
    let mut answer = Vec::new();
    browser.read_to_end(&mut answer).await.expect("it is read");
    serving.await.expect("the server does not panic");
    answer
}

fn shown() -> Report {
    let seeds = sight::report_seeds();
    let seed = seeds.first().expect("there is a seed");
    let mut report: Report = serde_json::from_slice(seed).expect("it is a report");
    for container in &mut report.containers {
        container.name = HIDDEN.parse().expect("it is a name");
    }
    report
}

pub(super) fn requests_seeds() -> Vec<Vec<u8>> {
    let body = r#"{"code":"AAAAAAAAAAAAAAAAAAAAAA"}"#;
    let login = format!(
        "POST /api/login HTTP/1.1\r\nhost: localhost:4040\r\norigin: http://localhost:4040\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let get = |path: &str, more: &str| {
        format!("GET {path} HTTP/1.1\r\nhost: localhost:4040\r\n{more}\r\n")
    };
    let session =
        "cookie: weave-0101010101=1793000000.AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA\r\n";
    [
        get("/", "accept-encoding: gzip, br\r\n"),
        get("/api/topology", session),
        get("/api/events", session),
        get("/api/history", "sec-fetch-site: cross-site\r\n"),
        get("/api/history/1", "origin: http://example.net\r\n"),
        get("/../../etc/passwd", "range: bytes=0-9\r\n"),
        login,
        "POST /api/logout HTTP/1.1\r\nhost: [::1]\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n".to_owned(),
        "HEAD / HTTP/1.0\r\n\r\n".to_owned(),
    ]
    .map(String::into_bytes)
    .to_vec()
}
