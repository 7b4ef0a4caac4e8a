//! Finding out what the network does: calls that may take a while and change nothing that lasts.

use std::convert::Infallible;

use axum::Json;
use axum::body::Body;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse as _, Response};
use futures_util::stream;
use hyper::body::Bytes;
use weave_model::api::{PingRequest, Pong, Refusal, TestReport, TestRequest, Trace, TraceRequest};

use super::handlers::{Answer, Refused, invalid, read};
use crate::node::{CaptureQuery, Node};

/// The media type of pcap (draft-ietf-opsawg-pcap).
const PCAP: &str = "application/vnd.tcpdump.pcap";

/// Ping a member inside its session.
#[utoipa::path(post, path = "/v1/peers/{name}/ping", request_body = PingRequest,
    params(("name" = String, Path, description = "the member's name, or the first digits of its id")),
    responses(
        (status = 200, description = "it answered", body = Pong),
        (status = "default", description = "it did not, or is no member", body = Refusal),
    ))]
pub(super) async fn ping(
    State(node): State<Node>,
    name: Result<Path<String>, PathRejection>,
    body: Bytes,
) -> Answer<Pong> {
    let Path(name) = name.map_err(|error| invalid(&error.body_text()))?;
    let request: PingRequest = read(&body)?;
    Ok(Json(node.ping(&name, request).await?))
}

/// Let containers of the nodes' own talk for a few seconds.
#[utoipa::path(post, path = "/v1/test", request_body = TestRequest, responses(
    (status = 200, description = "what came of each case", body = TestReport),
    (status = "default", description = "nothing could be tested", body = Refusal),
))]
pub(super) async fn test(State(node): State<Node>, body: Bytes) -> Answer<TestReport> {
    let request: TestRequest = read(&body)?;
    Ok(Json(node.test(request).await?))
}

/// Tell which way a packet from a container would take, and what becomes of it.
#[utoipa::path(post, path = "/v1/trace", request_body = TraceRequest, responses(
    (status = 200, description = "each step, and the end", body = Trace),
    (status = "default", description = "there is no such packet", body = Refusal),
))]
pub(super) async fn trace(State(node): State<Node>, body: Bytes) -> Answer<Trace> {
    let request: TraceRequest = read(&body)?;
    Ok(Json(node.trace(request).await?))
}

/// Stream packets of a container, or with a member, in clear, as a pcap file that ends when nobody reads it.
#[utoipa::path(get, path = "/v1/capture",
    params(
        ("container" = Option<String>, Query, description = "a container of this node"),
        ("ifname" = Option<String>, Query, description = "which of its interfaces; the first when absent"),
        ("peer" = Option<String>, Query, description = "or a member: its name, or the first digits of its id"),
        ("count" = Option<u64>, Query, description = "how many packets; without end when absent"),
    ),
    responses(
        (status = 200, description = "packets, as they come", body = Vec<u8>, content_type = PCAP),
        (status = "default", description = "nothing was captured", body = Refusal),
    ))]
pub(super) async fn capture(
    State(node): State<Node>,
    query: Result<Query<CaptureQuery>, QueryRejection>,
) -> Result<Response, Refused> {
    let Query(query) = query.map_err(|error| invalid(&error.body_text()))?;
    let pieces = node.capture(query).await?;
    let next = |mut pieces: tokio::sync::mpsc::Receiver<Bytes>| async {
        let piece = pieces.recv().await?;
        Some((Ok::<_, Infallible>(piece), pieces))
    };
    let body = Body::from_stream(stream::unfold(pieces, next));
    Ok(([(CONTENT_TYPE, PCAP)], body).into_response())
}
