//! `weavectl`: one verb, one request to the node, one answer in words, JSON or YAML. Some verbs look at the host instead.
//!
//! Data goes to stdout, everything else to stderr; an error is one line with the cause and one with the fix. The exit
//! code says the same as the words: see [`Exit`].

mod args;
mod capture;
mod check;
mod client;
mod cni;
mod colour;
mod commands;
mod dashboard;
mod failure;
mod flows;
mod junit;
mod manual;
mod members;
mod network;
mod ping;
mod print;
mod processes;
mod report;
mod secret;
mod service;
mod shown;
mod table;
mod targets;
mod test;
mod tools;
mod trace;
mod uninstall;
mod watch;

use clap::Parser as _;

pub use args::{Args, Output};
pub use failure::{Exit, Failure};

/// Runs `weavectl` with the process's arguments; what it returns is the exit code.
pub fn main() -> Exit {
    let args = Args::parse();
    if args.command.is_watched() {
        return watch::repeat(|| commands::run(&args));
    }
    match commands::run(&args) {
        Ok((text, exit)) => match print::to_stdout(&text) {
            Ok(()) => exit,
            Err(failure) => failure.report(),
        },
        Err(failure) => failure.report(),
    }
}
