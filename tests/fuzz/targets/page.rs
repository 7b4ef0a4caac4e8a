//! What a browser, or anybody who is no browser, can send to the server behind the page.

use std::sync::{Once, OnceLock};
use std::time::{SystemTime, UNIX_EPOCH};

use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::runtime::Builder;
use tokio::task::JoinHandle;
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
    static CONTROL: Once = Once::new();
    CONTROL.call_once(who_has_logged_in_sees_it);
    let answer = exchange(page(), data);
    assert!(!answer.contains(HIDDEN), "{answer}");
    is_no_failure(&answer);
}

fn is_no_failure(answer: &str) {
    assert!(
        answer.is_empty() || answer.starts_with("HTTP/1."),
        "{answer}"
    );
    assert!(!answer.starts_with("HTTP/1.1 5"), "{answer}");
}

/// What stands for the cookie of a session in the input of [`viewer`].
const SESSION: &str = "SESSION";

/// The same from somebody who has logged in: nor does the server fail, and whatever was asked, others still see nothing.
pub(super) fn viewer(data: &[u8]) {
    static CONTROL: Once = Once::new();
    CONTROL.call_once(who_has_logged_in_sees_it);
    let page = page();
    is_no_failure(&overheard(page.clone(), &with_session(data)));
    let others = exchange(page, get("/api/topology", "").as_bytes());
    assert!(others.starts_with("HTTP/1.1 401"), "{others}");
}

/// The bytes with the cookie wherever they name it.
fn with_session(data: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = data;
    while let Some(at) = rest
        .windows(SESSION.len())
        .position(|some| some == SESSION.as_bytes())
    {
        bytes.extend_from_slice(&rest[..at]);
        bytes.extend_from_slice(cookie().as_bytes());
        rest = &rest[at + SESSION.len()..];
    }
    bytes.extend_from_slice(rest);
    bytes
}

/// The cookie of a session, which every page of the same key takes.
fn cookie() -> &'static str {
    static COOKIE: OnceLock<String> = OnceLock::new();
    COOKIE.get_or_init(|| {
        let page = page();
        let (code, _) = page.invite([3; 16]);
        let answer = exchange(page, login(&code).as_bytes());
        let (_, cookie) = answer.split_once("set-cookie: ").expect("a session begins");
        let (cookie, _) = cookie.split_once(';').expect("a cookie has attributes");
        cookie.to_owned()
    })
}

/// The control: a session's answer has in it what no other may have.
fn who_has_logged_in_sees_it() {
    let asked = get("/api/topology", "cookie: SESSION\r\n");
    let answer = exchange(page(), &with_session(asked.as_bytes()));
    assert!(answer.contains(HIDDEN), "{answer}");
}

fn page() -> Dashboard {
    let page = Dashboard::new(Identity {
        node: NodeId::from_bytes([1; 32]),
        key: [2; 32],
    });
    let mut picture = sight::picture_of(&shown());
    // For an older one the server waits whether there is a newer.
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    picture.at = now.expect("it is after 1970").as_secs();
    page.publish(picture);
    page
}

/// What the server says to these bytes, until the connection ends.
fn exchange(page: Dashboard, data: &[u8]) -> String {
    text_of(async {
        let (mut browser, serving) = said(page, data).await;
        let mut answer = Vec::new();
        browser.read_to_end(&mut answer).await.expect("it is read");
        serving.await.expect("the server does not panic");
        answer
    })
}

/// What the server says to these bytes until nothing more comes: the events that a session may ask for have no end.
fn overheard(page: Dashboard, data: &[u8]) -> String {
    text_of(overhear(page, data))
}

fn text_of(answer: impl Future<Output = Vec<u8>>) -> String {
    let runtime = Builder::new_current_thread().enable_time().build();
    let answer = runtime.expect("a runtime").block_on(answer);
    String::from_utf8_lossy(&answer).into_owned()
}

/// A connection on which all of it was said, and the server at its other end.
async fn said(page: Dashboard, data: &[u8]) -> (DuplexStream, JoinHandle<()>) {
    let (mut browser, server) = tokio::io::duplex(1 << 20);
    let serving = tokio::spawn(page.serve_one(TokioIo::new(server)));
    browser.write_all(data).await.expect("there is room");
    turns().await;
    browser.shutdown().await.expect("it is open");
    (browser, serving)
}

async fn overhear(page: Dashboard, data: &[u8]) -> Vec<u8> {
    let (mut browser, serving) = said(page, data).await;
    let mut answer = Vec::new();
    loop {
        let read = tokio::select! {
            biased;
            read = browser.read_buf(&mut answer) => read,
            () = turns() => break,
        };
        if read.expect("it is read") == 0 {
            break;
        }
    }
    drop(browser);
    turns().await;
    if serving.is_finished() {
        serving.await.expect("the server does not panic");
    } else {
        serving.abort();
    }
    answer
}

/// Lets the server do all that it can.
async fn turns() {
    for _ in 0..TURNS {
        tokio::task::yield_now().await;
    }
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

fn get(path: &str, more: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: localhost:4040\r\n{more}\r\n")
}

fn login(code: &str) -> String {
    let body = format!(r#"{{"code":"{code}"}}"#);
    format!(
        "POST /api/login HTTP/1.1\r\nhost: localhost:4040\r\norigin: http://localhost:4040\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}

pub(super) fn requests_seeds() -> Vec<Vec<u8>> {
    let session =
        "cookie: weave-0101010101=1793000000.AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA\r\n";
    [
        get("/", "accept-encoding: gzip, br\r\n"),
        get("/api/topology", session),
        get("/api/events", session),
        get("/api/history", "sec-fetch-site: cross-site\r\n"),
        get("/api/history/1", "origin: http://example.net\r\n"),
        get("/../../etc/passwd", "range: bytes=0-9\r\n"),
        login("AAAAAAAAAAAAAAAAAAAAAA"),
        "POST /api/logout HTTP/1.1\r\nhost: [::1]\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n".to_owned(),
        "HEAD / HTTP/1.0\r\n\r\n".to_owned(),
    ]
    .map(String::into_bytes)
    .to_vec()
}

pub(super) fn viewer_seeds() -> Vec<Vec<u8>> {
    let session = "cookie: SESSION\r\n";
    [
        get("/api/topology", session),
        get(
            "/api/topology",
            "cookie: a=b; SESSION\r\nif-none-match: \"1\"\r\n",
        ),
        get("/api/events", "cookie: SESSION\r\nlast-event-id: 1\r\n"),
        get("/api/history", session),
        get("/api/history/1793000000", session),
        get("/api/history/-1?x=%00", session),
        "POST /api/logout HTTP/1.1\r\nhost: localhost:4040\r\norigin: http://localhost:4040\r\n\
         cookie: SESSION\r\ncontent-length: 0\r\n\r\n"
            .to_owned(),
    ]
    .map(String::into_bytes)
    .to_vec()
}
