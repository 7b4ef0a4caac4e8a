//! What keeps `weaved` from starting or working: a cause and a fix, both for a person.

use std::fmt::Display;

/// Something that has to be mended first.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{cause}")]
pub struct Obstacle {
    /// The cause, in one line.
    pub cause: String,
    /// What to do about it, in one line.
    pub fix: String,
}

impl Obstacle {
    /// An obstacle with its cause and its fix.
    pub fn new(cause: impl Into<String>, fix: impl Into<String>) -> Self {
        Self {
            cause: cause.into(),
            fix: fix.into(),
        }
    }

    /// Takes an error of a library, whose text is the cause and, after the first semicolon, the fix.
    pub fn from_error(error: &impl Display) -> Self {
        let (cause, fix) = cause_and_fix(&error.to_string());
        Self { cause, fix }
    }
}

/// Splits "cause; what to do" at the first semicolon.
pub fn cause_and_fix(text: &str) -> (String, String) {
    let (cause, fix) = text
        .split_once("; ")
        .unwrap_or((text, "look at the log of weaved"));
    (cause.to_owned(), fix.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_splits_at_its_first_semicolon() {
        let obstacle = Obstacle::from_error(&"the disk is full; free some; then start again");
        assert_eq!(
            obstacle,
            Obstacle::new("the disk is full", "free some; then start again")
        );
        assert!(!Obstacle::from_error(&"it broke").fix.is_empty());
    }
}
