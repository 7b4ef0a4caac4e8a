//! Scripts for shells and pages for `man`, made from the same description of the verbs that the parser uses.

use std::fs;
use std::io;
use std::path::Path;

use clap::CommandFactory as _;
use clap_complete::env::{Bash, EnvCompleter, Fish, Zsh};

use super::args::{Args, For};
use super::complete::VARIABLE;
use super::failure::{Exit, Failure};

/// What is completed, and what completes it.
const NAME: &str = "weavectl";

/// The script for a shell: at Tab it asks `weavectl` itself.
pub(super) fn completion(shell: For) -> Result<String, Failure> {
    let shell: &dyn EnvCompleter = match shell {
        For::Bash => &Bash,
        For::Zsh => &Zsh,
        For::Fish => &Fish,
    };
    let mut script = Vec::new();
    let written = shell.write_registration(VARIABLE, NAME, NAME, NAME, &mut script);
    let script = written.and_then(|()| String::from_utf8(script).map_err(io::Error::other));
    script.map_err(|error| {
        let cause = format!("cannot write the script: {error}");
        Failure::new(Exit::Failed, cause, "")
    })
}

/// Writes a page for `weavectl` and for each verb; tells how many.
pub(super) fn pages(folder: &Path) -> Result<String, Failure> {
    let write = || -> io::Result<usize> {
        fs::create_dir_all(folder)?;
        clap_mangen::generate_to(Args::command().disable_help_subcommand(true), folder)?;
        Ok(fs::read_dir(folder)?.count())
    };
    let pages = write().map_err(|error| {
        let cause = format!("cannot write manual pages to {}: {error}", folder.display());
        Failure::new(Exit::Failed, cause, "name a folder that can be written to")
    })?;
    Ok(format!("{pages} pages in {}\n", folder.display()))
}
