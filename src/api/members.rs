//! Tokens, admins, removals and addresses: read, ask the node, answer.

use axum::Json;
use axum::extract::{Path, State};
use weave_model::api::{
    AdminRequest, Admins, Ipam, IpamFindings, LeaveAnswer, LeaveRequest, NodeRef, Refusal,
    RemovalAnswer, RemovalRequest, TokenEntry, TokenList,
};

use super::handlers::{Answer, Body, read};
use crate::node::Node;

/// List the join tokens that were made here.
#[utoipa::path(get, path = "/v1/tokens", responses(
    (status = 200, description = "those that are no longer good as well, for a day; none while there is no cluster", body = TokenList),
    (status = "default", description = "this node is no admin", body = Refusal),
))]
pub(super) async fn tokens(State(node): State<Node>) -> Answer<TokenList> {
    Ok(Json(node.tokens().await?))
}

/// Take a join token back.
#[utoipa::path(delete, path = "/v1/tokens/{id}",
    params(("id" = String, Path, description = "the token's id, or its first digits, four or more")),
    responses(
        (status = 200, description = "the token, which lets nobody in any more", body = TokenEntry),
        (status = "default", description = "refused, nothing was changed", body = Refusal),
    ))]
pub(super) async fn revoke_token(
    State(node): State<Node>,
    Path(id): Path<String>,
) -> Answer<TokenEntry> {
    Ok(Json(node.revoke_token(id).await?))
}

/// Make a member an admin.
#[utoipa::path(post, path = "/v1/admins", request_body = AdminRequest, responses(
    (status = 200, description = "that member is an admin, now or already", body = NodeRef),
    (status = "default", description = "refused, nothing was changed", body = Refusal),
))]
pub(super) async fn add_admin(State(node): State<Node>, Body(body): Body) -> Answer<NodeRef> {
    let request: AdminRequest = read(&body)?;
    Ok(Json(node.add_admin(request).await?))
}

/// List the admins of the cluster.
#[utoipa::path(get, path = "/v1/admins", responses(
    (status = 200, description = "this node first, if it is one", body = Admins),
))]
pub(super) async fn admins(State(node): State<Node>) -> Json<Admins> {
    Json(node.admins())
}

/// Remove a member for good.
#[utoipa::path(post, path = "/v1/removals", request_body = RemovalRequest, responses(
    (status = 200, description = "it is cut off, and everybody who is reached is told", body = RemovalAnswer),
    (status = "default", description = "refused, nothing was changed", body = Refusal),
))]
pub(super) async fn remove(State(node): State<Node>, Body(body): Body) -> Answer<RemovalAnswer> {
    let request: RemovalRequest = read(&body)?;
    Ok(Json(node.remove(request).await?))
}

/// Leave the cluster for good.
#[utoipa::path(post, path = "/v1/leave", request_body = LeaveRequest, responses(
    (status = 200, description = "this node is in no cluster, and has new keys", body = LeaveAnswer),
    (status = "default", description = "refused; with force, containers may be detached already", body = Refusal),
))]
pub(super) async fn leave(State(node): State<Node>, Body(body): Body) -> Answer<LeaveAnswer> {
    let request: LeaveRequest = read(&body)?;
    Ok(Json(node.leave(request).await?))
}

/// Tell whose addresses are whose.
#[utoipa::path(get, path = "/v1/ipam", responses(
    (status = 200, description = "this node first", body = Ipam),
    (status = "default", description = "this node is in no cluster", body = Refusal),
))]
pub(super) async fn ipam(State(node): State<Node>) -> Answer<Ipam> {
    Ok(Json(node.ipam()?))
}

/// Look whether the journal of attachments, the leases and the kernel agree.
#[utoipa::path(get, path = "/v1/ipam/check", responses(
    (status = 200, description = "what was found", body = IpamFindings),
    (status = "default", description = "it cannot be looked at", body = Refusal),
))]
pub(super) async fn check_ipam(State(node): State<Node>) -> Answer<IpamFindings> {
    Ok(Json(node.check_ipam().await?))
}
