//! The web server of the page: login, the picture, its changes as they come (server-sent events), and the past.
//!
//! Nothing but the page's own files is given to anybody without a session. No GET changes anything; the two POSTs change
//! the login of who sends them. The page may load nothing from elsewhere and be framed by nobody (Content Security
//! Policy).

use std::convert::Infallible;
use std::future::pending;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use axum::body::to_bytes;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use axum::middleware::{self, Next};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use futures_util::stream;
use hyper::rt::{Read, Write};
use hyper_util::service::TowerToHyperService;
use serde::Deserialize;
use tokio::net::TcpListener;
use weave_model::NodeId;
use weave_model::api::Topology;

use crate::bounded;
use crate::gate::{self, Door, Refused};
use crate::history::unpacked;
use crate::hub::{Hub, News};
use crate::login::{CODE_GOOD, Logins, SESSION_GOOD};
use crate::page;

const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; \
connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// How often a quiet stream says that it is alive.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Whose page it is.
#[derive(Clone, Copy)]
pub struct Identity {
    /// The node.
    pub node: NodeId,
    /// The secret behind sessions, random and the same after a restart.
    pub key: [u8; 32],
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity")
            .field("node", &self.node)
            .finish_non_exhaustive()
    }
}

/// The page of one node. Clones share it.
#[derive(Clone, Debug)]
pub struct Dashboard {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    hub: Arc<Hub>,
    logins: Mutex<Logins>,
    /// Names the node, because browsers do not tell ports apart.
    cookie: String,
}

impl Dashboard {
    /// A page without a picture.
    pub fn new(identity: Identity) -> Self {
        let shared = Shared {
            hub: Arc::default(),
            logins: Mutex::new(Logins::new(identity.key)),
            cookie: format!("weave-{}", identity.node.short()),
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// Shows a picture to everybody who looks.
    pub fn publish(&self, topology: Topology) {
        self.shared.hub.publish(topology);
    }

    /// How many look now.
    pub fn viewers(&self) -> usize {
        self.shared.hub.viewers()
    }

    /// How often a viewer was so slow that it was given the whole anew.
    pub fn resyncs(&self) -> u64 {
        self.shared.hub.resyncs()
    }

    /// Makes random bytes a code that opens the page once; how long it is good.
    pub fn invite(&self, random: [u8; 16]) -> (String, Duration) {
        (
            self.shared.logins().invite(random, Instant::now()),
            CODE_GOOD,
        )
    }

    /// Serves the page for as long as it is awaited.
    ///
    /// # Errors
    /// When the listener has no address.
    pub async fn serve(self, listener: TcpListener) -> std::io::Result<()> {
        let address = listener.local_addr()?;
        bounded::serve(listener, self.routes(door_of(address)), pending()).await;
        Ok(())
    }

    /// Serves the page over one connection that came by the node's socket, until it ends.
    pub async fn serve_one(self, connection: impl Read + Write + Unpin + Send + 'static) {
        let service = TowerToHyperService::new(self.routes(Door::Local));
        let served = hyper::server::conn::http1::Builder::new()
            .serve_connection(connection, service)
            .await;
        if let Err(error) = served {
            tracing::debug!(%error, "a forwarded connection to the page ended early");
        }
    }

    fn routes(self, door: Door) -> Router {
        let asked = Router::new()
            .route("/api/topology", get(topology))
            .route("/api/events", get(events))
            .route("/api/history", get(history))
            .route("/api/history/{at}", get(past))
            .route_layer(middleware::from_fn_with_state(self.clone(), logged_in));
        Router::new()
            .merge(asked)
            .route("/api/login", post(login))
            .route("/api/logout", post(logout))
            .fallback_service(get(|uri: Uri| async move { page::file(uri.path()) }))
            .layer(middleware::from_fn(move |request: Request, next: Next| {
                guard(door, request, next)
            }))
            .with_state(self)
    }
}

impl Shared {
    fn logins(&self) -> std::sync::MutexGuard<'_, Logins> {
        self.logins.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The session that a browser shows.
    fn session<'a>(&self, headers: &'a HeaderMap) -> Option<&'a str> {
        let cookies = headers.get_all(header::COOKIE).iter();
        let mut pairs = cookies
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(';'))
            .filter_map(|pair| pair.trim().split_once('='));
        pairs.find_map(|(name, value)| (name == self.cookie).then_some(value))
    }

    fn cookie(&self, value: &str, seconds: u64) -> HeaderValue {
        let name = &self.cookie;
        let text = format!("{name}={value}; Path=/; Max-Age={seconds}; HttpOnly; SameSite=Strict");
        HeaderValue::try_from(text).expect("a cookie of figures and letters is a header")
    }
}

const fn door_of(address: SocketAddr) -> Door {
    let ip = address.ip();
    if ip.is_loopback() {
        Door::Local
    } else {
        Door::Address(ip)
    }
}

/// Refuses what is not ours to answer, and says to the browser how narrowly to treat what we do.
async fn guard(door: Door, request: Request, next: Next) -> Response {
    let mut response = match gate::check(request.method(), request.headers(), door) {
        Ok(()) => next.run(request).await,
        Err(refused) => forbidden(refused),
    };
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers
        .entry(header::CACHE_CONTROL)
        .or_insert(HeaderValue::from_static("no-store"));
    response
}

fn forbidden(refused: Refused) -> Response {
    (StatusCode::FORBIDDEN, format!("{}\n", refused.cause())).into_response()
}

async fn logged_in(State(page): State<Dashboard>, request: Request, next: Next) -> Response {
    let session = page.shared.session(request.headers());
    let holds = session.is_some_and(|session| page.shared.logins().holds(session, wall()));
    if !holds {
        let text = "log in with what this prints: weavectl dashboard\n";
        return (StatusCode::UNAUTHORIZED, text).into_response();
    }
    next.run(request).await
}

/// The most bytes of what the login sends.
const MAX_LOGIN: usize = 1024;

/// What the login sends.
#[derive(Deserialize)]
struct Code {
    code: String,
}

async fn login(State(page): State<Dashboard>, request: Request) -> Response {
    // Who announces a body and never sends it would hold a place among those that are served, without any login.
    let sent = to_bytes(request.into_body(), MAX_LOGIN);
    let Ok(sent) = tokio::time::timeout(bounded::PATIENCE, sent).await else {
        return (StatusCode::REQUEST_TIMEOUT, "the code did not come\n").into_response();
    };
    let body = sent.unwrap_or_default();
    let session = serde_json::from_slice::<Code>(&body).ok().and_then(|sent| {
        let code = sent.code.trim();
        page.shared.logins().redeem(code, Instant::now(), wall())
    });
    let Some(session) = session else {
        let text = "the code is used, too old or wrong; a new one: weavectl dashboard\n";
        return (StatusCode::UNAUTHORIZED, text).into_response();
    };
    let cookie = page.shared.cookie(&session, SESSION_GOOD);
    (StatusCode::NO_CONTENT, [(header::SET_COOKIE, cookie)]).into_response()
}

async fn logout(State(page): State<Dashboard>) -> Response {
    let cookie = page.shared.cookie("", 0);
    (StatusCode::NO_CONTENT, [(header::SET_COOKIE, cookie)]).into_response()
}

/// The picture of now.
async fn topology(State(page): State<Dashboard>) -> Response {
    let frame = page.shared.hub.once(wall()).await;
    if frame.seq == 0 {
        return (StatusCode::SERVICE_UNAVAILABLE, "there is no picture yet\n").into_response();
    }
    json(frame.whole().to_string())
}

/// The newest picture, then each change as it comes.
async fn events(State(page): State<Dashboard>) -> Response {
    let news = stream::unfold(page.shared.hub.view(), |mut viewer| async {
        let event = match viewer.next().await? {
            News::Whole(whole) => Event::default().event("whole").data(&*whole),
            News::Step(step) => Event::default().event("step").data(&*step),
        };
        Some((Ok::<_, Infallible>(event), viewer))
    });
    Sse::new(news)
        .keep_alive(KeepAlive::new().interval(KEEP_ALIVE))
        .into_response()
}

/// When the pictures were made that can be asked for.
async fn history(State(page): State<Dashboard>) -> Json<Vec<u64>> {
    Json(page.shared.hub.times())
}

/// The picture of a second of the past, or the nearest that is kept; it says of when it is.
async fn past(State(page): State<Dashboard>, at: Path<String>, headers: HeaderMap) -> Response {
    let Some(picture) = at.parse().ok().and_then(|at| page.shared.hub.past(at)) else {
        return (StatusCode::NOT_FOUND, "no picture is kept\n").into_response();
    };
    let takes = headers.get(header::ACCEPT_ENCODING);
    if takes.is_none_or(|takes| !takes.as_bytes().windows(4).any(|word| word == b"gzip")) {
        return json(unpacked(&picture).unwrap_or_default());
    }
    let kind = (header::CONTENT_TYPE, "application/json");
    ([kind, (header::CONTENT_ENCODING, "gzip")], picture).into_response()
}

fn json(text: String) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], text).into_response()
}

/// Seconds since the Unix epoch.
fn wall() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use axum::body::{Body, Bytes};
    use http_body_util::BodyExt as _;
    use tower::ServiceExt as _;
    use weave_model::api::Verdict;

    use super::*;

    const HERE: &str = "127.0.0.1:4040";

    fn page() -> Dashboard {
        let page = Dashboard::new(Identity {
            node: NodeId::from_bytes([9; 32]),
            key: [1; 32],
        });
        page.publish(Topology {
            at: wall(),
            node: NodeId::from_bytes([9; 32]),
            verdict: Verdict::Ok,
            summary: "<script>alert(1)</script>".to_owned(),
            problems: Vec::new(),
            hosts: Vec::new(),
            containers: Vec::new(),
            links: Vec::new(),
            services: Vec::new(),
            flows: Vec::new(),
        });
        page
    }

    /// Asks as a browser would; `headers` are `name: value`.
    async fn ask(page: &Dashboard, line: &str, headers: &[&str], body: &str) -> Response {
        let (method, path) = line.split_once(' ').unwrap();
        let mut request = Request::builder().method(method).uri(path);
        for header in headers {
            let (name, value) = header.split_once(": ").unwrap();
            request = request.header(name, value);
        }
        let request = request.body(Body::from(body.to_owned())).unwrap();
        page.clone()
            .routes(Door::Local)
            .oneshot(request)
            .await
            .unwrap()
    }

    async fn text(response: Response) -> String {
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        String::from_utf8(bytes.to_vec()).unwrap()
    }

    /// Logs in and returns the header that shows it.
    async fn session(page: &Dashboard) -> String {
        let (code, _) = page.invite([3; 16]);
        let body = format!("{{\"code\":\"{code}\"}}");
        let headers = [
            &format!("host: {HERE}")[..],
            &format!("origin: http://{HERE}"),
        ];
        let response = ask(page, "POST /api/login", &headers, &body).await;
        assert_eq!(response.status(), StatusCode::NO_CONTENT);
        let cookie = response.headers()[header::SET_COOKIE].to_str().unwrap();
        assert!(cookie.contains("; HttpOnly; SameSite=Strict"), "{cookie}");
        assert!(cookie.starts_with("weave-0909090909="), "{cookie}");
        format!("cookie: other=1; {}", cookie.split(';').next().unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn a_login_that_is_announced_and_never_sent_ends() {
        let never = stream::pending::<Result<Bytes, Infallible>>();
        let request = Request::builder()
            .method("POST")
            .uri("/api/login")
            .header("host", HERE)
            .header("origin", format!("http://{HERE}"))
            .body(Body::from_stream(never))
            .unwrap();
        let answer = page().routes(Door::Local).oneshot(request);
        let answer = tokio::time::timeout(2 * bounded::PATIENCE, answer).await;
        let answer = answer.expect("it is not waited for").unwrap();
        assert_eq!(answer.status(), StatusCode::REQUEST_TIMEOUT);
    }

    #[tokio::test]
    async fn who_may_ask_what() {
        let page = page();
        let session = &session(&page).await[..];
        let (host, origin) = (
            &format!("host: {HERE}")[..],
            &format!("origin: http://{HERE}")[..],
        );
        let kept = format!("GET /api/history/{}", page.shared.hub.times()[0]);
        let forged = "cookie: weave-0909090909=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
        let table: &[(&str, &[&str], u16)] = &[
            ("GET /api/topology", &[host, session], 200),
            ("GET /api/topology", &[host], 401),
            ("GET /api/topology", &[host, forged], 401),
            ("GET /api/topology", &["host: evil.example", session], 403),
            ("GET /api/topology", &[session], 403),
            (
                "GET /api/topology",
                &[host, session, "origin: http://evil.example"],
                403,
            ),
            ("GET /api/events", &[host], 401),
            ("GET /api/history", &[host], 401),
            ("GET /api/history", &[host, session], 200),
            (&kept, &[host, session], 200),
            ("GET /api/history/101", &[host, session], 200),
            ("GET /api/history/-1", &[host, session], 404),
            ("GET /api/history/x", &[host, session], 404),
            (&kept, &[host], 401),
            ("GET /", &[host], 200),
            ("GET /", &["host: evil.example"], 403),
            ("GET /../../etc/passwd", &[host], 404),
            ("GET /api/nothing", &[host, session], 404),
            ("POST /api/topology", &[host, origin, session], 405),
            ("DELETE /api/topology", &[host, origin, session], 405),
            ("GET /api/login", &[host, session], 405),
            ("GET /api/logout", &[host, session], 405),
            ("POST /api/login", &[host], 403),
            ("POST /api/login", &[host, origin], 401),
            (
                "POST /api/logout",
                &[host, "origin: http://evil.example", session],
                403,
            ),
            ("POST /api/logout", &[host, origin, session], 204),
        ];
        for (line, headers, expected) in table {
            let response = ask(&page, line, headers, "").await;
            assert_eq!(response.status(), *expected, "{line} {headers:?}");
            let policy = response.headers()[header::CONTENT_SECURITY_POLICY]
                .to_str()
                .unwrap();
            assert!(
                policy.starts_with("default-src 'none'; script-src 'self';"),
                "{policy}"
            );
            assert_eq!(
                response.headers()[header::X_CONTENT_TYPE_OPTIONS],
                "nosniff"
            );
        }
    }

    #[tokio::test]
    async fn what_is_said_is_data_and_never_a_page() {
        let page = page();
        let session = session(&page).await;
        let headers = [&format!("host: {HERE}")[..], &session];
        let response = ask(&page, "GET /api/topology", &headers, "").await;
        assert_eq!(response.headers()[header::CONTENT_TYPE], "application/json");
        assert_eq!(response.headers()[header::CACHE_CONTROL], "no-store");
        let picture: serde_json::Value = serde_json::from_str(&text(response).await).unwrap();
        assert_eq!(picture["topology"]["summary"], "<script>alert(1)</script>");
    }

    #[tokio::test]
    async fn events_begin_with_the_whole_and_count_as_a_viewer() {
        let page = page();
        let session = session(&page).await;
        let headers = [&format!("host: {HERE}")[..], &session];
        let response = ask(&page, "GET /api/events", &headers, "").await;
        assert_eq!(page.viewers(), 1);
        let mut body = response.into_body();
        let first = body.frame().await.unwrap().unwrap().into_data().unwrap();
        assert!(
            first.starts_with(b"event: whole\ndata: {\"seq\":1,"),
            "{first:?}"
        );
        drop(body);
        assert_eq!(page.viewers(), 0);
    }

    #[tokio::test]
    async fn a_code_is_good_once() {
        let page = page();
        let (code, _) = page.invite([4; 16]);
        let headers = [
            &format!("host: {HERE}")[..],
            &format!("origin: http://{HERE}"),
        ];
        for expected in [204, 401] {
            let body = format!("{{\"code\":\"{code}\"}}");
            let response = ask(&page, "POST /api/login", &headers, &body).await;
            assert_eq!(response.status(), expected);
        }
        for junk in ["", "{}", "{\"code\":7}", "[]", "{\"code\":\"\\u0000\"}"] {
            let response = ask(&page, "POST /api/login", &headers, junk).await;
            assert_eq!(response.status(), 401, "{junk}");
        }
    }
}
