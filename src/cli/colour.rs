//! Colour for people: on a terminal, and only if they did not say no to it (<https://no-color.org>).

use std::ffi::OsStr;
use std::io::IsTerminal as _;

/// What a word means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tone {
    /// All is well.
    Good,
    /// Something is not as it could be.
    Doubtful,
    /// Something is broken.
    Bad,
}

/// A word for stdout, coloured where a person sees it.
pub(super) fn paint(word: &str, tone: Tone) -> String {
    let refused = std::env::var_os("NO_COLOR");
    if is_wanted(refused.as_deref(), std::io::stdout().is_terminal()) {
        dye(word, tone)
    } else {
        word.to_owned()
    }
}

/// Whether to colour, by what NO_COLOR says: anything but nothing is a no.
fn is_wanted(refused: Option<&OsStr>, terminal: bool) -> bool {
    terminal && refused.is_none_or(OsStr::is_empty)
}

/// The word between the control sequences of ECMA-48 (SGR).
fn dye(word: &str, tone: Tone) -> String {
    let code = match tone {
        Tone::Good => 32,
        Tone::Doubtful => 33,
        Tone::Bad => 31,
    };
    format!("\x1b[{code}m{word}\x1b[0m")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_are_for_terminals_whose_owner_did_not_refuse() {
        for (refused, terminal, wanted) in [
            (None, true, true),
            (Some(""), true, true),
            (Some("1"), true, false),
            (Some("no"), true, false),
            (None, false, false),
        ] {
            let said = is_wanted(refused.map(OsStr::new), terminal);
            assert_eq!(said, wanted, "{refused:?} {terminal}");
        }
    }

    #[test]
    fn a_word_keeps_its_letters_and_nothing_is_dyed_for_a_pipe() {
        assert_eq!(dye("ok", Tone::Good), "\x1b[32mok\x1b[0m");
        // A test's stdout is no terminal, or one whose owner may have set NO_COLOR; either way the word is whole.
        assert!(paint("FAIL", Tone::Bad).contains("FAIL"));
    }
}
