//! Why packets for a member go the way they go.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The reason of the last change of the way to a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum PathReason {
    /// The session was made this way.
    Handshake,
    /// The member was heard from another address.
    Moved,
    /// Nothing came back by the way before, and an answer by this one.
    Silent,
    /// The direct way works again, or for the first time.
    Direct,
    /// This way is much faster than the one before, or loses much less.
    Better,
}

impl fmt::Display for PathReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Handshake => "handshake",
            Self::Moved => "moved",
            Self::Silent => "other way silent",
            Self::Direct => "direct works",
            Self::Better => "better",
        })
    }
}
