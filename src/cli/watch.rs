//! `--watch`: the same question again and again, an answer whenever it has changed.
//!
//! On a terminal the new answer takes the place of the old one; in a pipe one follows the other. A node that is away
//! for a while ends nothing: what was said of it stands on stderr, once.

use std::io::{self, ErrorKind, IsTerminal as _, Write as _};
use std::thread;
use std::time::Duration;

use super::failure::{Exit, Failure};
use super::shown::Answer;

/// How often the node is asked.
const PERIOD: Duration = Duration::from_secs(1);

/// Clears the terminal and goes to its first line (ECMA-48 ED and CUP).
const CLEAR: &str = "\x1b[2J\x1b[H";

/// Asks until the reader of stdout is gone; a person ends it with Ctrl-C.
pub(super) fn repeat(ask: impl Fn() -> Answer) -> Exit {
    let mut last: Option<Result<String, Failure>> = None;
    loop {
        let answer = ask().map(|(text, _)| text);
        if last.as_ref() != Some(&answer) {
            match &answer {
                Ok(text) => match show(text) {
                    Ok(()) => {}
                    Err(error) if error.kind() == ErrorKind::BrokenPipe => return Exit::Ok,
                    Err(error) => {
                        let cause = format!("cannot write to stdout: {error}");
                        return Failure::new(Exit::Failed, cause, "").report();
                    }
                },
                Err(failure) if failure.exit == Exit::Usage => return failure.report(),
                Err(failure) => {
                    failure.report();
                }
            }
            last = Some(answer);
        }
        thread::sleep(PERIOD);
    }
}

fn show(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    if io::stdout().is_terminal() {
        out.write_all(CLEAR.as_bytes())?;
    }
    out.write_all(text.as_bytes())?;
    out.flush()
}
