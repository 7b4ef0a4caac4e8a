//! Finding out whether the network does what it should: pings and tests.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::NodeName;

/// `POST /v1/peers/{name}/ping`: one ping to a member, inside its session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PingRequest {
    /// How long to wait for the answer, in milliseconds, at most 60,000.
    #[serde(default = "default_patience")]
    pub patience_ms: u32,
}

/// The answer to a ping.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Pong {
    /// The member.
    pub name: NodeName,
    /// Where packets to it go; absent where they take no direct way.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub endpoint: Option<SocketAddr>,
    /// The address at which it sees this node; absent where a relay stands between.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub observed: Option<SocketAddr>,
    /// The round-trip time, in microseconds.
    pub rtt_us: u32,
}

/// `POST /v1/test`: lets two containers of the node's own, and one on each other member, talk for a few seconds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TestRequest {
    /// The members to test with; all when empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub peers: Vec<String>,
}

/// What came of a test.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TestReport {
    /// The worst of all outcomes.
    pub outcome: TestOutcome,
    /// The node that tested.
    pub node: NodeName,
    /// How long all of it took, in milliseconds.
    pub took_ms: u64,
    /// Each case, those on the node itself first.
    pub cases: Vec<TestCase>,
}

/// How a case ended, the better first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum TestOutcome {
    /// As it should be.
    Passed,
    /// It could not be tried, which says nothing about the network.
    NotRun,
    /// Not as it should be.
    Failed,
}

/// One case of a test.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TestCase {
    /// With which node: its own name for cases on the node itself.
    pub with: NodeName,
    /// What was tried.
    pub name: String,
    /// How it ended.
    pub outcome: TestOutcome,
    /// What was seen, in one line.
    pub found: String,
    /// What to do about it, in one line; absent when there is nothing to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
    /// How long it took, in milliseconds.
    pub took_ms: u64,
}

const fn default_patience() -> u32 {
    1000
}
