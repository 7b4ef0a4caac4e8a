//! The process: environment and stdin in, one JSON object on stdout, nothing else there.

use std::io::{Read as _, Write as _};
use std::process::ExitCode;

use weave_cni::environment::Environment;
use weave_cni::error::Error;
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
    let Outcome { version, answer } = answer();
    let (text, code) = match answer {
        Ok(text) => (text, ExitCode::SUCCESS),
        Err(error) => (Some(error.to_json(version)), ExitCode::FAILURE),
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
