//! The cluster's secret: looked at, and changed.

use axum::Json;
use axum::extract::State;
use weave_model::api::{Refusal, SecretRequest, SecretState};

use super::handlers::{Answer, Body, read};
use crate::node::Node;

/// Tell which secret of the cluster is in use.
#[utoipa::path(get, path = "/v1/secret", responses(
    (status = 200, description = "its number, not the secret", body = SecretState),
    (status = "default", description = "this node is in no cluster", body = Refusal),
))]
pub(super) async fn show(State(node): State<Node>) -> Answer<SecretState> {
    Ok(Json(node.secret()?))
}

/// Give the cluster another secret.
#[utoipa::path(post, path = "/v1/secret", request_body = SecretRequest, responses(
    (status = 200, description = "the new one is in use here, and handed to every member that is reached", body = SecretState),
    (status = "default", description = "refused, nothing was changed", body = Refusal),
))]
pub(super) async fn rotate(State(node): State<Node>, Body(body): Body) -> Answer<SecretState> {
    let request: SecretRequest = read(&body)?;
    Ok(Json(node.rotate_secret(request).await?))
}
