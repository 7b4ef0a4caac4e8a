//! What lets people look: the picture of the mesh, a login for the page, and the page itself through the node's socket.

use axum::Json;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use weave_model::api::{Code, PageLogin, Refusal, Topology};

use super::handlers::Answer;
use crate::node::Node;

/// The path that becomes a connection to the page.
pub(crate) const STREAM: &str = "/v1/dashboard/stream";

/// The protocol that the connection changes to: HTTP, asked by a browser.
pub(crate) const PROTOCOL: &str = "weave-page";

/// Show the whole mesh: members, containers, links and who talks to whom.
#[utoipa::path(get, path = "/v1/topology", responses(
    (status = 200, description = "the picture, as this node knows it now", body = Topology),
))]
pub(super) async fn topology(State(node): State<Node>) -> Answer<Topology> {
    Ok(Json(node.topology().await?))
}

/// Make a login for the page.
#[utoipa::path(post, path = "/v1/dashboard", responses(
    (status = 200, description = "a code that opens the page once", body = PageLogin),
    (status = "default", description = "refused, nothing was changed", body = Refusal),
))]
pub(super) async fn page_login(State(node): State<Node>) -> Answer<PageLogin> {
    let mut random = [0; 16];
    aws_lc_rs::rand::fill(&mut random).map_err(|_| {
        let cause = "the kernel's random source failed";
        Refusal::new(Code::Failed, cause, "look at the log of the kernel")
    })?;
    Ok(Json(node.page_login(random)))
}

/// Change the connection into one to the page. What comes over it may do what a browser may, and nothing else.
pub(super) async fn page_stream(State(node): State<Node>, request: Request) -> Response {
    let wanted = request.headers().get(header::UPGRADE);
    if wanted.is_none_or(|wanted| wanted.as_bytes() != PROTOCOL.as_bytes()) {
        return (StatusCode::UPGRADE_REQUIRED, [(header::UPGRADE, PROTOCOL)]).into_response();
    }
    let page = node.dashboard();
    tokio::spawn(async move {
        match hyper::upgrade::on(request).await {
            Ok(connection) => page.serve_one(connection).await,
            Err(error) => tracing::debug!(%error, "a connection to the page was not made"),
        }
    });
    let headers = [(header::CONNECTION, "upgrade"), (header::UPGRADE, PROTOCOL)];
    (StatusCode::SWITCHING_PROTOCOLS, headers).into_response()
}
