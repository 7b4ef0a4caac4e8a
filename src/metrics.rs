//! Metrics for Prometheus, at `/metrics`: read from the node's counters when somebody asks, kept nowhere.
//!
//! [`families`] is pure: what the node says in, the text out. Names begin with `weave_`, units are seconds and bytes, labels
//! have few values, or as many as there are members, networks and, up to a limit, Services; never an address.
//! `docs/metrics.md` lists all. On loopback anybody on the host may read, but no page of a browser by a name of its own; elsewhere
//! a bearer token is asked for (RFC 6750), which such a page cannot know, so that any name will do.

mod page;

mod addresses;
mod host;
mod operations;
mod relay;
mod services;

mod families;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use subtle::ConstantTimeEq as _;
use tokio::net::TcpListener;
use tokio::sync::watch;
use weave_dashboard::{bounded, is_from_here};
use weave_linux::{conntrack, myself, tun};

use crate::node::{Node, TUN};

pub use families::{Facts, render};

/// The form of the answer: the text format of Prometheus, version 0.0.4.
const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Answers scrapes until told to stop, and those in progress to their end.
pub(crate) async fn serve(
    listener: TcpListener,
    node: Node,
    token: Option<String>,
    mut stopped: watch::Receiver<bool>,
) {
    let stop = async move {
        // Whoever would tell is gone: that is a stop as well.
        let _ = stopped.wait_for(|&stopped| stopped).await;
    };
    bounded::serve(listener, routes(node, token), stop).await;
}

fn routes(node: Node, token: Option<String>) -> Router {
    Router::new()
        .route("/metrics", get(scrape))
        .with_state(node)
        .layer(middleware::from_fn_with_state(token, may_read))
}

async fn scrape(State(node): State<Node>) -> Response {
    let (page, engine) = (node.dashboard(), node.service_engine());
    let (stats, tally) = node.overlay();
    let facts = Facts {
        status: node.status(),
        stopped: node.stopped_by_docker(),
        connections: node.connections().connections,
        stats,
        tally,
        addresses: node.address_use(),
        services: node.services(),
        engine: engine.shown(),
        progress: engine.progress(),
        operations: node.operations(),
        flows: node.flows_seen(),
        viewers: page.viewers(),
        resyncs: page.resyncs(),
        // What cannot be read is left out: a scrape has the rest.
        no_room: tun::dropped(TUN).ok(),
        conntrack: conntrack::load().ok(),
        usage: myself::usage().ok(),
    };
    ([(header::CONTENT_TYPE, TEXT)], render(&facts)).into_response()
}

async fn may_read(State(token): State<Option<String>>, request: Request, next: Next) -> Response {
    let Some(token) = token else {
        if is_from_here(request.method(), request.headers()) {
            return next.run(request).await;
        }
        let cause = "metrics are served by the addresses of loopback and localhost, to no page of another site\n";
        return (StatusCode::FORBIDDEN, cause).into_response();
    };
    let shown = request.headers().get(header::AUTHORIZATION);
    let shown = shown.and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
    if shown.is_some_and(|shown| bool::from(shown.ct_eq(token.as_bytes()))) {
        next.run(request).await
    } else {
        let ask = [(header::WWW_AUTHENTICATE, "Bearer")];
        (
            StatusCode::UNAUTHORIZED,
            ask,
            "metrics need the token of --metrics-token\n",
        )
            .into_response()
    }
}
