//! How `weavectl` ends: exit codes, and the two lines a person reads when it did not work.

use std::fmt::Display;
use std::process::{ExitCode, Termination};

use weave_model::api::Refusal;

/// The exit codes. 2, wrong usage, is given by the argument parser.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Ok = 0,
    /// The node refused or failed.
    Failed = 1,
    /// The arguments are wrong.
    Usage = 2,
    /// The node answers, but not all is well.
    Degraded = 3,
    /// The node cannot be reached.
    Unreachable = 4,
    /// The node did not answer in time.
    Timeout = 5,
}

impl Termination for Exit {
    fn report(self) -> ExitCode {
        ExitCode::from(self as u8)
    }
}

/// Why a command ended without its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// How the process ends.
    pub exit: Exit,
    /// The cause, in one line.
    pub cause: String,
    /// What to do about it, in one line.
    pub fix: String,
}

impl Failure {
    /// A failure with its cause and its fix.
    pub fn new(exit: Exit, cause: impl Display, fix: impl Into<String>) -> Self {
        Self {
            exit,
            cause: cause.to_string(),
            fix: fix.into(),
        }
    }

    /// Writes the two lines to stderr and gives the exit code.
    pub(super) fn report(&self) -> Exit {
        eprintln!("weavectl: {}", self.cause);
        if !self.fix.is_empty() {
            eprintln!("fix: {}", self.fix);
        }
        self.exit
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Self {
            exit: Exit::Failed,
            cause: refusal.message,
            fix: refusal.fix,
        }
    }
}
