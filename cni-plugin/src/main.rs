//! The process: environment and stdin in, one JSON object on stdout, nothing else there.

use std::io::{Read as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use serde_json::Value;
use weave_cni::environment::Environment;
use weave_cni::error::Error;
use weave_cni::netavark::{self, Verb};
use weave_cni::verbs::{self, Outcome};
use weave_cni::version::Version;

fn main() -> ExitCode {
    if std::env::args()
        .nth(1)
        .is_some_and(|word| word == "--version")
    {
        println!("weave-cni {}", env!("CARGO_PKG_VERSION"));
        return ExitCode::SUCCESS;
    }
    let words: Vec<String> = std::env::args().skip(1).collect();
    let (text, code) = match Verb::read(&words) {
        Some(verb) => said(for_netavark(&verb), netavark::error_json),
        None => {
            let Outcome { version, answer } = answer();
            said(answer, |error| error.to_json(version))
        }
    };
    let mut out = std::io::stdout().lock();
    let written = text.map_or(Ok(()), |text| writeln!(out, "{text}"));
    match written.and_then(|()| out.flush()) {
        Ok(()) => code,
        Err(error) => {
            eprintln!("weave-cni: cannot write the answer: {error}");
            ExitCode::FAILURE
        }
    }
}

/// What goes to stdout, and how the process ends.
fn said(
    answer: Result<Option<Value>, Error>,
    error_json: impl Fn(&Error) -> Value,
) -> (Option<Value>, ExitCode) {
    match answer {
        Ok(text) => (text, ExitCode::SUCCESS),
        Err(error) => (Some(error_json(&error)), ExitCode::FAILURE),
    }
}

fn for_netavark(verb: &Verb) -> Result<Option<Value>, Error> {
    let mut stdin = Vec::new();
    if verb.takes_input() {
        let read = std::io::stdin().read_to_end(&mut stdin);
        read.map_err(|error| Error::io("stdin cannot be read", &error))?;
    }
    let socket = std::env::var_os("WEAVE_SOCKET").filter(|path| !path.is_empty());
    netavark::run(verb, &stdin, socket.map(PathBuf::from))
}

fn answer() -> Outcome {
    let environment = match Environment::read(|name| std::env::var_os(name)) {
        Ok(environment) => environment,
        Err(error) => return Outcome::failed(error),
    };
    let mut stdin = Vec::new();
    if let Err(error) = std::io::stdin().read_to_end(&mut stdin) {
        let cause = Error::io("the configuration cannot be read from stdin", &error);
        return Outcome::failed(cause);
    }
    let mut outcome = verbs::run(&environment, &stdin);
    if let Err(error) = &outcome.answer {
        eprintln!("weave-cni: {error}");
    }
    outcome.version = outcome.version.or(Some(Version::NEWEST));
    outcome
}
