//! Who is in the cluster and who may invite: tokens and admins.

use serde::{Deserialize, Serialize};

use crate::{NodeId, NodeName};

/// A member that an answer is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct NodeRef {
    /// Its id.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub id: NodeId,
    /// Its label; absent for a node that is not known here (any more).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub name: Option<NodeName>,
}

/// Whether a join token still lets nodes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum TokenState {
    /// It does.
    Good,
    /// As many nodes as it was made for have joined with it.
    UsedUp,
    /// Its time is over.
    Expired,
    /// It was taken back.
    Revoked,
}

/// A join token as the node that made it remembers it. The secret in it is never shown again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TokenEntry {
    /// Its public name, 32 hex digits; the first four or more stand for it.
    pub id: String,
    /// Whether it still lets nodes in.
    pub state: TokenState,
    /// When its time is over.
    pub expires_at: u64,
    /// How many nodes may join with it.
    pub uses: u32,
    /// The nodes that did.
    pub joined: Vec<NodeRef>,
}

/// `GET /v1/tokens`: the tokens of this node; those that are no longer good for a day after their time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TokenList {
    /// By id.
    pub tokens: Vec<TokenEntry>,
}

/// `POST /v1/admins`: makes a member an admin, so that it can invite and remove nodes and make admins itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AdminRequest {
    /// The member's name, or the start of its id, 6 hex digits or more.
    pub node: String,
}

/// `POST /v1/secret`: gives the cluster another secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SecretRequest {
    /// How long the secret before is accepted beside the new one, in seconds: 1 to 31536000 (365 days). Who is away for
    /// longer has to join anew.
    pub overlap_s: u64,
}

/// `GET /v1/secret`, and what a change of it answers: which secret of the cluster is in use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SecretState {
    /// Which secret is the current one; they are counted from 1.
    pub epoch: u32,
    /// Until when the one before is accepted; absent if it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous_until_at: Option<u64>,
    /// The members that have not shown so far that they have the current one.
    pub behind: Vec<NodeRef>,
}

/// `GET /v1/admins`: the admins of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Admins {
    /// This node first, if it is one; the others by id.
    pub admins: Vec<NodeRef>,
}

/// `POST /v1/removals`: removes a member for good.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RemovalRequest {
    /// The member's name, or the start of its id, 6 hex digits or more.
    pub node: String,
    /// Who shall take its addresses, likewise; when absent the member that gave them to it, or else this node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heir: Option<String>,
}

/// A member that was removed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RemovalAnswer {
    /// The member.
    pub removed: NodeRef,
    /// Who takes its addresses, once every living member has confirmed that it knows of the removal.
    pub heir: NodeRef,
}

/// `POST /v1/leave`: this node leaves the cluster for good.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct LeaveRequest {
    /// Detach all containers, leave also as the last admin, and also when no member can take the addresses.
    #[serde(default)]
    pub force: bool,
}

/// The answer to leave: this node is in no cluster, and has new keys.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct LeaveAnswer {
    /// Who has its addresses now; absent when there was nobody to take them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heir: Option<NodeRef>,
    /// How many interfaces were detached.
    pub detached: u32,
}
