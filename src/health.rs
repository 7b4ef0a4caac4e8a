//! What load balancers and supervisors outside are told over HTTP: whether Services are served here.
//!
//! As kube-proxy has it, so that what watches a node of Kubernetes can watch this one:
//!
//! - `/healthz` on port 10256: 200, or 503 when changes of Services wait for the kernel for more than a minute, and while
//!   the node stops, so that new connections go elsewhere before the open ones end (KEP-3836);
//! - `/livez` on the same port: the same but for a node that stops;
//! - the health-check node port of a Service with external traffic policy Local: 200 on nodes that have ready endpoints of
//!   it, 503 on the others, and in the header and the body how many there are (KEP-1669).
//!
//! These ports are open to everybody, so nobody gets more than one short answer: a connection is closed after it, or after
//! [`PATIENCE`], and at most [`MOST`] are open at a port.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{MissedTickBehavior, interval, timeout};
use weave_model::ServiceName;
use weave_proxy::driver::{Engine, Progress};
use weave_proxy::table::Health;

use crate::config::Address;
use crate::obstacle::Obstacle;

/// The longest that a connection may last.
const PATIENCE: Duration = Duration::from_secs(5);

/// The most connections at a time, at each port.
const MOST: usize = 64;

/// How often it is looked whether Services have other health-check node ports.
const LOOK: Duration = Duration::from_secs(1);

/// How many ready endpoints of a Service the node has, for a balancer that weighs nodes.
const WEIGHT: &str = "x-load-balancing-endpoint-weight";

type Answer = Response<Full<Bytes>>;

/// Answers at `/healthz` and `/livez` for as long as it is awaited.
pub async fn serve(listener: TcpListener, engine: Arc<Engine>) {
    let answer = move |path: &str| {
        let progress = engine.progress();
        match path {
            "/healthz" => of_node(&progress, progress.healthy && !progress.stopping),
            "/livez" => of_node(&progress, progress.healthy),
            _ => said(
                StatusCode::NOT_FOUND,
                &json!({ "paths": ["/healthz", "/livez"] }),
            ),
        }
    };
    accept(listener, answer).await;
}

/// Answers at the health-check node ports of all Services for as long as it is awaited. Of a port that it cannot listen
/// at it tells why, once, and tries again; when it can, or need not any more, it tells that there is nothing amiss.
pub async fn serve_node_ports(engine: Arc<Engine>, tell: impl Fn(u16, Option<Obstacle>)) {
    let mut running = JoinSet::new();
    let mut ports: BTreeMap<u16, (ServiceName, AbortHandle)> = BTreeMap::new();
    let mut told: BTreeSet<u16> = BTreeSet::new();
    let mut watch = interval(LOOK);
    watch.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        watch.tick().await;
        while running.try_join_next().is_some() {}
        let table = engine.shown().table;
        ports.retain(|port, (service, task)| {
            let stays = table
                .health
                .get(port)
                .is_some_and(|now| now.service == *service);
            if !stays {
                task.abort();
            }
            stays
        });
        told.retain(|port| {
            let stays = table.health.contains_key(port);
            if !stays {
                tell(*port, None);
            }
            stays
        });
        for (port, health) in &table.health {
            if ports.contains_key(port) {
                continue;
            }
            match TcpListener::bind(Address::any().at(*port)).await {
                Ok(listener) => {
                    let task = serve_node_port(listener, *port, Arc::clone(&engine));
                    ports.insert(*port, (health.service.clone(), running.spawn(task)));
                    if told.remove(port) {
                        tell(*port, None);
                    }
                }
                Err(error) if told.insert(*port) => {
                    tell(*port, Some(taken(*port, health, &error)));
                }
                Err(_) => {}
            }
        }
    }
}

fn taken(port: u16, health: &Health, error: &std::io::Error) -> Obstacle {
    let service = &health.service;
    Obstacle::new(
        format!(
            "the health-check node port {port} of the service {service} cannot be served: {error}"
        ),
        "end what listens there, or give the service another one",
    )
}

async fn serve_node_port(listener: TcpListener, port: u16, engine: Arc<Engine>) {
    let answer = move |_: &str| {
        let table = engine.shown().table;
        match table.health.get(&port) {
            Some(health) => of_service(health, engine.progress().healthy),
            None => said(StatusCode::SERVICE_UNAVAILABLE, &json!({})),
        }
    };
    accept(listener, answer).await;
}

fn of_node(progress: &Progress, well: bool) -> Answer {
    let last = progress.updated.map(rfc3339);
    let body = json!({
        "lastUpdated": last,
        "currentTime": rfc3339(SystemTime::now()),
        "nodeEligible": !progress.stopping,
    });
    said(status(well), &body)
}

fn of_service(health: &Health, well: bool) -> Answer {
    // Without Kubernetes there are no namespaces, and all is in one.
    let name = health.service.as_str();
    let (namespace, name) = name.split_once('/').unwrap_or(("default", name));
    let body = json!({
        "service": { "namespace": namespace, "name": name },
        "localEndpoints": health.local,
        "serviceProxyHealthy": well,
    });
    let mut answer = said(status(well && health.local > 0), &body);
    answer.headers_mut().insert(WEIGHT, health.local.into());
    answer
}

const fn status(well: bool) -> StatusCode {
    if well {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    }
}

fn said(status: StatusCode, body: &Value) -> Answer {
    let mut answer = Response::new(Full::from(body.to_string()));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    answer
}

/// Gives each connection one answer, which depends on the path.
async fn accept(
    listener: TcpListener,
    answer: impl Fn(&str) -> Answer + Clone + Send + Sync + 'static,
) {
    let room = Arc::new(Semaphore::new(MOST));
    let mut connections = JoinSet::new();
    loop {
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else {
            return;
        };
        while connections.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((stream, _)) => {
                let answer = answer.clone();
                connections.spawn(async move {
                    // Whoever does not take the answer has none.
                    let _ = timeout(PATIENCE, answer_one(stream, answer)).await;
                    drop(permit);
                });
            }
            // There are too many open files, or the one who asked is gone already.
            Err(_) => tokio::time::sleep(LOOK).await,
        }
    }
}

async fn answer_one(stream: TcpStream, answer: impl Fn(&str) -> Answer) {
    let service = service_fn(|request: Request<Incoming>| {
        let answer = answer(request.uri().path());
        async move { Ok::<_, Infallible>(answer) }
    });
    let mut server = http1::Builder::new();
    let served = server
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "a question about health is left");
    }
}

/// A time as in RFC 3339, to the second, in UTC.
fn rfc3339(time: SystemTime) -> String {
    let seconds = time
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// The date of a day since the Unix epoch. Years are counted from March, so that a leap day is the last of its year.
fn civil(days: u64) -> (u64, u64, u64) {
    const FOUR_CENTURIES: u64 = 146_097;
    // From the 1st of March of the year 0.
    let days = days + 719_468;
    let (era, day) = (days / FOUR_CENTURIES, days % FOUR_CENTURIES);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let of_year = day - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let of_month = of_year - (153 * month + 2) / 5 + 1;
    let january = u64::from(month >= 10);
    let calendar = if month < 10 { month + 3 } else { month - 9 };
    (era * 400 + year + january, calendar, of_month)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_dates() {
        let at = |seconds| rfc3339(UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(0), "1970-01-01T00:00:00Z");
        assert_eq!(at(951_827_696), "2000-02-29T12:34:56Z");
        assert_eq!(at(1_709_251_199), "2024-02-29T23:59:59Z");
        assert_eq!(at(1_709_251_200), "2024-03-01T00:00:00Z");
        assert_eq!(at(4_107_542_399), "2100-02-28T23:59:59Z");
        assert_eq!(at(4_107_542_400), "2100-03-01T00:00:00Z");
    }

    #[test]
    fn a_service_says_its_namespace_and_counts() {
        let health = |name: &str, local| Health {
            service: name.parse().unwrap(),
            local,
        };
        let two = of_service(&health("shop/web", 2), true);
        assert_eq!(two.status(), StatusCode::OK);
        assert_eq!(two.headers()[WEIGHT], "2");
        for (local, well) in [(0, true), (2, false)] {
            let none = of_service(&health("web", local), well);
            assert_eq!(none.status(), StatusCode::SERVICE_UNAVAILABLE);
        }
    }
}
