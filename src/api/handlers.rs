//! One function for each path and method: read, ask the node, answer.

use std::net::IpAddr;

use axum::Json;
use axum::extract::{FromRequest, Path, Query, Request, State};
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use hyper::body::Bytes;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use weave_model::api::{
    AttachRequest, Attachment, Attachments, CniFindings, CniGcRequest, CniRef, Code, Connections,
    ExposeRequest, HostAddress, InitRequest, JoinRequest, Membership, Peers, Refusal, ServiceInfo,
    ServiceRequest, Services, Status, TokenAnswer, TokenRequest,
};
use weave_model::{ContainerName, IfName, ServiceName};

use crate::node::Node;

/// A [`Refusal`] as an HTTP answer.
pub(super) struct Refused(Refusal);

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        Self(refusal)
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.code.http_status());
        (
            status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
            Json(self.0),
        )
            .into_response()
    }
}

/// The body of a request. One that is too long, or breaks off, is refused in the words of all refusals.
pub(super) struct Body(pub(super) Bytes);

impl<S: Send + Sync> FromRequest<S> for Body {
    type Rejection = Refused;

    async fn from_request(request: Request, state: &S) -> Result<Self, Refused> {
        let read = Bytes::from_request(request, state).await;
        read.map(Self).map_err(|rejection| {
            let cause = format!("the request cannot be read: {}", rejection.body_text());
            let fix = "send a body of 2 MiB at most";
            Refused(Refusal::new(Code::Invalid, cause, fix))
        })
    }
}

pub(super) type Answer<A> = Result<Json<A>, Refused>;

/// Make a cluster with this node as its first member.
#[utoipa::path(post, path = "/v1/init", request_body = InitRequest, responses(
    (status = 200, description = "the cluster is made", body = Membership),
    (status = "default", description = "refused, nothing was changed", body = Refusal),
))]
pub(super) async fn init(State(node): State<Node>, Body(body): Body) -> Answer<Membership> {
    let request: InitRequest = read(&body)?;
    Ok(Json(node.init(request).await?))
}

/// Make a join token.
#[utoipa::path(post, path = "/v1/tokens", request_body = TokenRequest, responses(
    (status = 200, description = "the token", body = TokenAnswer),
    (status = "default", description = "refused, nothing was changed", body = Refusal),
))]
pub(super) async fn create_token(
    State(node): State<Node>,
    Body(body): Body,
) -> Answer<TokenAnswer> {
    let request: TokenRequest = read(&body)?;
    Ok(Json(node.create_token(request).await?))
}

/// Join the cluster that a token invites to.
#[utoipa::path(post, path = "/v1/join", request_body = JoinRequest, responses(
    (status = 200, description = "this node is a member", body = Membership),
    (status = "default", description = "refused, nothing was changed", body = Refusal),
))]
pub(super) async fn join(State(node): State<Node>, Body(body): Body) -> Answer<Membership> {
    let request: JoinRequest = read(&body)?;
    Ok(Json(node.join(request).await?))
}

/// Give a container an interface and addresses.
#[utoipa::path(post, path = "/v1/attachments", request_body = AttachRequest, responses(
    (status = 200, description = "the container is attached, or was already", body = Attachment),
    (status = "default", description = "refused, nothing was changed", body = Refusal),
))]
pub(super) async fn attach(State(node): State<Node>, Body(body): Body) -> Answer<Attachment> {
    let request: AttachRequest = read(&body)?;
    Ok(Json(node.attach(request).await?))
}

/// What of a container is meant.
#[derive(Debug, Deserialize)]
pub(super) struct Only {
    ifname: Option<IfName>,
    also: Option<IpAddr>,
}

/// Take a container off the network and free its addresses, or take a floating address from it.
#[utoipa::path(delete, path = "/v1/attachments/{name}",
    params(
        ("name" = ContainerName, Path, description = "the container"),
        ("ifname" = Option<IfName>, Query, description = "only this interface; all when absent"),
        ("also" = Option<String>, Query,
            description = "only this floating address; the container stays attached"),
    ),
    responses(
        (status = 200, description = "what was detached, or what has the address no more", body = Attachments),
        (status = "default", description = "refused, nothing was changed", body = Refusal),
    ))]
pub(super) async fn detach(
    State(node): State<Node>,
    name: Result<Path<ContainerName>, axum::extract::rejection::PathRejection>,
    only: Result<Query<Only>, axum::extract::rejection::QueryRejection>,
) -> Answer<Attachments> {
    let Path(name) = name.map_err(|error| invalid(&error.body_text()))?;
    let Query(only) = only.map_err(|error| invalid(&error.body_text()))?;
    Ok(Json(match only.also {
        None => node.detach(name, only.ifname).await?,
        Some(ip) => node.give_back(name, only.ifname, ip).await?,
    }))
}

/// List the attached containers.
#[utoipa::path(get, path = "/v1/attachments", responses(
    (status = 200, description = "the containers of this node", body = Attachments),
))]
pub(super) async fn attachments(State(node): State<Node>) -> Json<Attachments> {
    Json(node.attachments())
}

/// Free the attachment that a CNI runtime names so; none is fine.
#[utoipa::path(post, path = "/v1/cni/del", request_body = CniRef, responses(
    (status = 200, description = "what was freed", body = Attachments),
    (status = "default", description = "refused, nothing was changed", body = Refusal),
))]
pub(super) async fn cni_del(State(node): State<Node>, Body(body): Body) -> Answer<Attachments> {
    let what: CniRef = read(&body)?;
    Ok(Json(node.cni_del(what).await?))
}

/// Look whether an attachment of a CNI runtime still is as it was made.
#[utoipa::path(post, path = "/v1/cni/check", request_body = CniRef, responses(
    (status = 200, description = "what was found", body = CniFindings),
    (status = "default", description = "it cannot be looked at", body = Refusal),
))]
pub(super) async fn cni_check(State(node): State<Node>, Body(body): Body) -> Answer<CniFindings> {
    let what: CniRef = read(&body)?;
    Ok(Json(node.cni_check(what).await?))
}

/// Free what a CNI runtime does not know any more.
#[utoipa::path(post, path = "/v1/cni/gc", request_body = CniGcRequest, responses(
    (status = 200, description = "what was freed", body = Attachments),
    (status = "default", description = "something cannot be freed; all else was", body = Refusal),
))]
pub(super) async fn cni_gc(State(node): State<Node>, Body(body): Body) -> Answer<Attachments> {
    let request: CniGcRequest = read(&body)?;
    Ok(Json(node.cni_gc(request).await?))
}

/// Give the host itself addresses on the network.
#[utoipa::path(post, path = "/v1/expose", request_body = ExposeRequest, responses(
    (status = 200, description = "the host has these addresses, now or already", body = HostAddress),
    (status = "default", description = "refused, nothing was changed", body = Refusal),
))]
pub(super) async fn expose(State(node): State<Node>, Body(body): Body) -> Answer<HostAddress> {
    let request: ExposeRequest = read(&body)?;
    Ok(Json(node.expose(request).await?))
}

/// Take the host's own addresses off the network.
#[utoipa::path(delete, path = "/v1/expose", responses(
    (status = 200, description = "the addresses the host had", body = HostAddress),
    (status = "default", description = "refused, nothing was changed", body = Refusal),
))]
pub(super) async fn hide(State(node): State<Node>) -> Answer<HostAddress> {
    Ok(Json(node.hide().await?))
}

/// Make a Service: a virtual address in front of containers.
#[utoipa::path(post, path = "/v1/services", request_body = ServiceRequest, responses(
    (status = 200, description = "the service is made", body = ServiceInfo),
    (status = "default", description = "refused, nothing was changed", body = Refusal),
))]
pub(super) async fn create_service(
    State(node): State<Node>,
    Body(body): Body,
) -> Answer<ServiceInfo> {
    let request: ServiceRequest = read(&body)?;
    Ok(Json(node.create_service(request).await?))
}

/// List the Services of the cluster.
#[utoipa::path(get, path = "/v1/services", responses(
    (status = 200, description = "by name", body = Services),
))]
pub(super) async fn services(State(node): State<Node>) -> Json<Services> {
    Json(node.services())
}

/// Remove a Service, whichever node it was made on.
#[utoipa::path(delete, path = "/v1/services/{name}",
    params(("name" = ServiceName, Path, description = "the service")),
    responses(
        (status = 200, description = "what was removed", body = ServiceInfo),
        (status = "default", description = "refused, nothing was changed", body = Refusal),
    ))]
pub(super) async fn remove_service(
    State(node): State<Node>,
    name: Result<Path<ServiceName>, axum::extract::rejection::PathRejection>,
) -> Answer<ServiceInfo> {
    let Path(name) = name.map_err(|error| invalid(&error.body_text()))?;
    Ok(Json(node.remove_service(name).await?))
}

/// Tell whether all is well, and why not.
#[utoipa::path(get, path = "/v1/status", responses(
    (status = 200, description = "the verdict first", body = Status),
))]
pub(super) async fn status(State(node): State<Node>) -> Json<Status> {
    Json(node.status())
}

/// List the members of the cluster.
#[utoipa::path(get, path = "/v1/peers", responses(
    (status = 200, description = "this node first", body = Peers),
))]
pub(super) async fn peers(State(node): State<Node>) -> Json<Peers> {
    Json(node.peers())
}

/// List the sessions with other members.
#[utoipa::path(get, path = "/v1/connections", responses(
    (status = 200, description = "one for each other member", body = Connections),
))]
pub(super) async fn connections(State(node): State<Node>) -> Json<Connections> {
    Json(node.connections())
}

/// This API's document.
pub(super) async fn openapi() -> impl IntoResponse {
    (
        [(header::CONTENT_TYPE, "application/json")],
        super::document(),
    )
}

/// Any other path or method.
pub(super) async fn no_such_path(uri: Uri) -> Refused {
    let cause = format!("the node API has no such call: {}", uri.path());
    Refused(Refusal::new(
        Code::NotFound,
        cause,
        "see /v1/openapi.json for what there is",
    ))
}

pub(super) fn read<R: DeserializeOwned>(body: &[u8]) -> Result<R, Refused> {
    serde_json::from_slice(body).map_err(|error| invalid(&error.to_string()))
}

pub(super) fn invalid(why: &str) -> Refused {
    let cause = format!("the request cannot be read: {why}");
    Refused(Refusal::new(
        Code::Invalid,
        cause,
        "see /v1/openapi.json for its form",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_body_that_is_too_long_is_refused_as_all_else_is() {
        let long = axum::body::Body::from(vec![b' '; 3 << 20]);
        let read = Body::from_request(Request::new(long), &()).await;
        let response = read.err().unwrap().into_response();
        assert_eq!(response.status(), StatusCode::BAD_REQUEST);
        let said = axum::body::to_bytes(response.into_body(), 1 << 16).await;
        let refusal: Refusal = serde_json::from_slice(&said.unwrap()).unwrap();
        assert!(refusal.fix.contains("2 MiB"), "{refusal:?}");
    }
}
