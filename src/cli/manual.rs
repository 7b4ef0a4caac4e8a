//! Completion for shells and pages for `man`, made from the same description of the verbs that the parser uses.

use std::fs;
use std::io;
use std::path::Path;

use clap::CommandFactory as _;
use clap_complete::Shell;

use super::args::{Args, For};
use super::failure::{Exit, Failure};

/// What Bash does after the generated function: the first word behind a verb that takes a name is completed with the
/// names that the node knows just now.
const BASH_NAMES: &str = r#"
_weavectl_names() {
    _weavectl "$@"
    local kind
    case ${COMP_WORDS[1]} in
        detach|capture|trace) kind=containers ;;
        ping|test) kind=peers ;;
        *) return ;;
    esac
    case $2 in -*) return ;; esac
    COMPREPLY=($(compgen -W "$(weavectl names "$kind" 2>/dev/null)" -- "$2"))
}
complete -F _weavectl_names -o nosort -o bashdefault -o default weavectl
"#;

/// The same for fish, which adds up what it is told.
const FISH_NAMES: &str = r#"
complete -c weavectl -n "__fish_seen_subcommand_from detach capture trace" -f -a "(weavectl names containers 2>/dev/null)"
complete -c weavectl -n "__fish_seen_subcommand_from ping test" -f -a "(weavectl names peers 2>/dev/null)"
"#;

/// The script for a shell.
pub(super) fn completion(shell: For) -> Result<String, Failure> {
    let (generator, more) = match shell {
        For::Bash => (Shell::Bash, BASH_NAMES),
        For::Zsh => (Shell::Zsh, ""),
        For::Fish => (Shell::Fish, FISH_NAMES),
    };
    let mut script = Vec::new();
    clap_complete::generate(generator, &mut Args::command(), "weavectl", &mut script);
    let script = String::from_utf8(script).map_err(|error| {
        Failure::new(Exit::Failed, format!("the script is no text: {error}"), "")
    })?;
    Ok(script + more)
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
