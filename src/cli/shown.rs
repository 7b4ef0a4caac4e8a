//! How answers are shown, whatever the verb: in words, as JSON or as YAML, and with which exit code.

use serde::Serialize;

use super::args::Output;
use super::failure::{Exit, Failure};
use super::print;
use super::table::Columns;

/// What goes to stdout, and how the process ends.
pub(super) type Answer = Result<(String, Exit), Failure>;

/// The form that was asked for.
pub(super) struct Shown {
    output: Output,
}

impl Shown {
    /// For this form.
    pub(super) const fn new(output: Output) -> Self {
        Self { output }
    }

    /// Which columns a table has.
    pub(super) fn columns(&self) -> Columns {
        match self.output {
            Output::Wide => Columns::All,
            _ => Columns::Usual,
        }
    }

    /// Whether the answer is for a person.
    pub(super) fn is_human(&self) -> bool {
        matches!(self.output, Output::Table | Output::Wide)
    }

    /// An answer as JSON, or in the words that `human` finds.
    pub(super) fn answer<A: Serialize>(
        &self,
        answer: &A,
        human: impl FnOnce(&A) -> String,
    ) -> Answer {
        let text = match self.output {
            Output::Table | Output::Wide => human(answer),
            Output::Json => print::json(answer)?,
            Output::Yaml => print::yaml(answer)?,
        };
        Ok((text, Exit::Ok))
    }
}
