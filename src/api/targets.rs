//! Where the node looks for members because it was told to.

use std::net::SocketAddr;

use axum::Json;
use axum::extract::{Path, State};
use weave_model::api::{Code, Refusal, TargetRequest, Targets};

use super::handlers::{Answer, Body, read};
use crate::node::Node;

/// List the addresses at which this node was told to look for members.
#[utoipa::path(get, path = "/v1/targets", responses(
    (status = 200, description = "those of connect, and of the token of the join", body = Targets),
))]
pub(super) async fn list(State(node): State<Node>) -> Json<Targets> {
    Json(node.targets())
}

/// Look for members at one more address.
#[utoipa::path(post, path = "/v1/targets", request_body = TargetRequest, responses(
    (status = 200, description = "all addresses, that one among them", body = Targets),
    (status = "default", description = "refused, nothing was changed", body = Refusal),
))]
pub(super) async fn connect(State(node): State<Node>, Body(body): Body) -> Answer<Targets> {
    let request: TargetRequest = read(&body)?;
    Ok(Json(node.connect(request).await?))
}

/// Look for members at one address less.
#[utoipa::path(delete, path = "/v1/targets/{address}",
    params(("address" = String, Path, description = "the address with its port")),
    responses(
        (status = 200, description = "all that are left", body = Targets),
        (status = "default", description = "refused, nothing was changed", body = Refusal),
    ))]
pub(super) async fn forget(
    State(node): State<Node>,
    Path(address): Path<String>,
) -> Answer<Targets> {
    let address: SocketAddr = address.parse().map_err(|_| {
        let cause = format!("\"{address}\" is not an address with its port");
        Refusal::new(Code::Invalid, cause, "write 192.0.2.1:6783")
    })?;
    Ok(Json(node.forget(address).await?))
}
