//! The paths about networks.

use axum::Json;
use axum::extract::{Path, State};
use weave_model::NetworkName;
use weave_model::api::{NetworkInfo, NetworkRequest, Networks, Refusal};

use super::handlers::{Answer, Body, invalid, read};
use crate::node::Node;

/// Make a network.
#[utoipa::path(post, path = "/v1/networks", request_body = NetworkRequest, responses(
    (status = 200, description = "the network", body = NetworkInfo),
    (status = "default", description = "refused, nothing was changed", body = Refusal),
))]
pub(super) async fn create(State(node): State<Node>, Body(body): Body) -> Answer<NetworkInfo> {
    let request: NetworkRequest = read(&body)?;
    Ok(Json(node.create_network(request).await?))
}

/// List the networks of the cluster.
#[utoipa::path(get, path = "/v1/networks", responses(
    (status = 200, description = "the networks; none while there is no cluster", body = Networks),
))]
pub(super) async fn list(State(node): State<Node>) -> Json<Networks> {
    Json(node.networks())
}

/// Remove a network that nothing is in.
#[utoipa::path(delete, path = "/v1/networks/{name}",
    params(("name" = NetworkName, Path, description = "the network")),
    responses(
        (status = 200, description = "what was removed", body = NetworkInfo),
        (status = "default", description = "refused, nothing was changed", body = Refusal),
    ))]
pub(super) async fn remove(
    State(node): State<Node>,
    name: Result<Path<NetworkName>, axum::extract::rejection::PathRejection>,
) -> Answer<NetworkInfo> {
    let Path(name) = name.map_err(|error| invalid(&error.body_text()))?;
    Ok(Json(node.remove_network(name).await?))
}
