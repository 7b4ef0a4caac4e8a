//! What a runtime is told when it did not work: a code of the specification, the cause, and what to do.

use std::fmt;

use serde_json::{Value, json};
use weave_model::api::{Code, Refusal};

use crate::version::Version;

/// The codes of the specification, section "Error", and ours from 100 on.
pub mod code {
    /// The version of the configuration is not supported.
    pub const INCOMPATIBLE: u32 = 1;
    /// A field of the configuration is not supported; the message names it and its value.
    pub const UNSUPPORTED: u32 = 2;
    /// An environment variable is missing or wrong; the message names it.
    pub const ENVIRONMENT: u32 = 4;
    /// Reading or writing failed.
    pub const IO: u32 = 5;
    /// Something is not the JSON it should be.
    pub const DECODE: u32 = 6;
    /// The configuration asks for something that cannot be.
    pub const CONFIG: u32 = 7;
    /// The container has no network namespace of its own (a code of the Go library).
    pub const NETNS: u32 = 8;
    /// It may work later.
    pub const LATER: u32 = 11;
    /// STATUS: no container can be attached.
    pub const NOT_AVAILABLE: u32 = 50;
    /// STATUS: the same, and those that are attached may not reach everything.
    pub const LIMITED: u32 = 51;
    /// The node refused or could not do it.
    pub const NODE: u32 = 100;
    /// CHECK: the container is not as it was made.
    pub const FAULTY: u32 = 101;
}

/// Why a verb failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// One of [`code`], or that of a delegated plugin.
    pub code: u32,
    /// The cause, in one line.
    pub message: String,
    /// What to do about it, or more about the cause; may be empty.
    pub details: String,
}

impl Error {
    /// An error with its cause.
    pub fn new(code: u32, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            details: String::new(),
        }
    }

    /// The same with what to do.
    pub fn with(self, details: impl Into<String>) -> Self {
        Self {
            details: details.into(),
            ..self
        }
    }

    /// A variable of the environment that is missing or wrong.
    pub fn environment(variable: &str, why: impl fmt::Display) -> Self {
        Self::new(code::ENVIRONMENT, format!("{variable}: {why}"))
    }

    /// A field of the configuration that asks for what cannot be.
    pub fn config(field: &str, why: impl fmt::Display) -> Self {
        Self::new(code::CONFIG, format!("{field}: {why}"))
    }

    /// Reading or writing failed.
    pub fn io(doing: &str, error: &std::io::Error) -> Self {
        Self::new(code::IO, format!("{doing}: {error}"))
    }

    /// The object that goes to stdout.
    pub fn to_json(&self, version: Option<Version>) -> Value {
        let version = version.unwrap_or(Version::NEWEST);
        let mut object =
            json!({"cniVersion": version.as_str(), "code": self.code, "msg": self.message});
        if !self.details.is_empty() {
            object["details"] = self.details.clone().into();
        }
        object
    }
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        let code = match refusal.code {
            Code::Invalid => code::CONFIG,
            Code::NotReady | Code::Remote => code::LATER,
            Code::NotFound | Code::Conflict | Code::Failed => code::NODE,
        };
        Self::new(code, refusal.message).with(refusal.fix)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if self.details.is_empty() {
            return Ok(());
        }
        write!(f, "; {}", self.details)
    }
}
