//! The node API: HTTP and JSON over a unix socket, for `weavectl`, the plugins and the dashboard.
//!
//! Each path is a thin handler that reads the request, asks the [`Node`] and writes the answer; the types are those of
//! `weave_model::api`. Whoever may open the socket may do everything: the socket's mode and group are the gate. The
//! OpenAPI document is generated from the handlers and the types, served at `/v1/openapi.json` and kept in
//! `deploy/openapi.json`.

mod handlers;
mod members;
mod networks;
mod looking;
mod secret;
mod socket;
mod targets;
mod tools;

use std::future::Future;
use std::time::Duration;

use axum::Router;
use axum::routing::{delete, get, post};
use tokio::net::UnixListener;
use utoipa::OpenApi;

use crate::node::Node;

pub(crate) use looking::{PROTOCOL, STREAM};
pub use socket::{Socket, SocketError};

/// How long requests in flight may take once the node is asked to stop.
const DRAIN: Duration = Duration::from_secs(1);

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Weave node API",
        description = "What a Weave node can be asked over its unix socket."
    ),
    paths(
        handlers::init,
        handlers::create_token,
        handlers::join,
        handlers::attach,
        handlers::detach,
        handlers::attachments,
        handlers::cni_del,
        handlers::cni_check,
        handlers::cni_gc,
        handlers::expose,
        handlers::hide,
        handlers::create_service,
        handlers::services,
        handlers::remove_service,
        handlers::status,
        handlers::peers,
        handlers::connections,
        members::tokens,
        members::revoke_token,
        members::add_admin,
        members::admins,
        members::remove,
        members::leave,
        members::ipam,
        members::check_ipam,
        secret::show,
        secret::rotate,
        looking::topology,
        looking::page_login,
        networks::create,
        networks::list,
        networks::remove,
        targets::list,
        targets::connect,
        targets::forget,
        tools::ping,
        tools::test,
        tools::trace,
        tools::capture,
    )
)]
struct Document;

/// The OpenAPI document as indented JSON with a newline.
pub fn document() -> String {
    let json = Document::openapi().to_pretty_json();
    json.expect("a document made of strings and numbers is JSON") + "\n"
}

/// Answers requests until `stop` resolves and those in flight are done, or a second has passed.
pub async fn serve(
    listener: UnixListener,
    node: Node,
    stop: impl Future<Output = ()> + Send + 'static,
) {
    let (stopping, mut stopped) = tokio::sync::watch::channel(false);
    let signal = async move {
        stop.await;
        stopping.send_replace(true);
    };
    let server = axum::serve(listener, routes(node)).with_graceful_shutdown(signal);
    let deadline = async {
        let _ = stopped.wait_for(|&stopped| stopped).await;
        tokio::time::sleep(DRAIN).await;
    };
    tokio::select! {
        served = server.into_future() => {
            if let Err(error) = served {
                tracing::warn!(%error, "the node API ended");
            }
        }
        () = deadline => tracing::warn!("requests were still in flight at the end"),
    }
}

fn routes(node: Node) -> Router {
    Router::new()
        .route("/v1/init", post(handlers::init))
        .route(
            "/v1/tokens",
            get(members::tokens).post(handlers::create_token),
        )
        .route("/v1/tokens/{id}", delete(members::revoke_token))
        .route("/v1/removals", post(members::remove))
        .route("/v1/leave", post(members::leave))
        .route("/v1/ipam", get(members::ipam))
        .route("/v1/ipam/check", get(members::check_ipam))
        .route("/v1/admins", get(members::admins).post(members::add_admin))
        .route("/v1/secret", get(secret::show).post(secret::rotate))
        .route("/v1/join", post(handlers::join))
        .route("/v1/networks", get(networks::list).post(networks::create))
        .route("/v1/networks/{name}", delete(networks::remove))
        .route(
            "/v1/attachments",
            get(handlers::attachments).post(handlers::attach),
        )
        .route("/v1/attachments/{name}", delete(handlers::detach))
        .route("/v1/cni/del", post(handlers::cni_del))
        .route("/v1/cni/check", post(handlers::cni_check))
        .route("/v1/cni/gc", post(handlers::cni_gc))
        .route("/v1/expose", post(handlers::expose).delete(handlers::hide))
        .route(
            "/v1/services",
            get(handlers::services).post(handlers::create_service),
        )
        .route("/v1/services/{name}", delete(handlers::remove_service))
        .route("/v1/status", get(handlers::status))
        .route("/v1/peers", get(handlers::peers))
        .route("/v1/connections", get(handlers::connections))
        .route("/v1/topology", get(looking::topology))
        .route("/v1/dashboard", post(looking::page_login))
        .route(STREAM, post(looking::page_stream))
        .route("/v1/targets", get(targets::list).post(targets::connect))
        .route("/v1/targets/{address}", delete(targets::forget))
        .route("/v1/peers/{name}/ping", post(tools::ping))
        .route("/v1/test", post(tools::test))
        .route("/v1/trace", post(tools::trace))
        .route("/v1/capture", get(tools::capture))
        .route("/v1/openapi.json", get(handlers::openapi))
        .fallback(handlers::no_such_path)
        .method_not_allowed_fallback(handlers::no_such_path)
        .with_state(node)
}
