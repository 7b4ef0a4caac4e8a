//! Why a node did not do what it was asked: a code for programs, a cause and a fix for people.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The kind of a refusal, for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// The request is malformed or asks for something impossible (HTTP 400).
    Invalid,
    /// What it names does not exist (HTTP 404).
    NotFound,
    /// It collides with what exists: a name, an address, a cluster (HTTP 409).
    Conflict,
    /// The node is not in a state to do it: no cluster yet, no address left (HTTP 412).
    NotReady,
    /// Another node refused or did not answer (HTTP 502).
    Remote,
    /// The kernel refused, or the node is broken (HTTP 500).
    Failed,
}

impl Code {
    /// The HTTP status that carries it.
    pub const fn http_status(self) -> u16 {
        match self {
            Self::Invalid => 400,
            Self::NotFound => 404,
            Self::Conflict => 409,
            Self::NotReady => 412,
            Self::Failed => 500,
            Self::Remote => 502,
        }
    }
}

/// The body of every answer that is not a success. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Refusal {
    /// What kind of refusal it is.
    pub code: Code,
    /// The cause, in one line.
    pub message: String,
    /// What to do about it, in one line.
    pub fix: String,
}

impl Refusal {
    /// A refusal with its cause and its fix.
    pub fn new(code: Code, message: impl Into<String>, fix: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            fix: fix.into(),
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}
