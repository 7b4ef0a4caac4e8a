//! `weavectl secret`: which secret of the cluster is in use, and another one in its place.

use weave_model::api::{SecretRequest, SecretState};

use super::args::SecretCommand;
use super::client::Client;
use super::members::label;
use super::print;
use super::shown::{Answer, Shown};
use crate::duration::human;

/// Does `weavectl secret ...`.
pub(super) fn run(client: &Client<'_>, shown: &Shown, command: &SecretCommand) -> Answer {
    match command {
        SecretCommand::Show => shown.answer(&client.get("/secret")?, state),
        SecretCommand::Rotate { overlap } => {
            let overlap_s = overlap.as_secs().max(1);
            let done = client.post("/secret", &SecretRequest { overlap_s })?;
            shown.answer(&done, |done: &SecretState| {
                let left = human(left(done));
                format!(
                    "the cluster has secret number {}; the one before, and tokens made before, are good for another {left}\n",
                    done.epoch
                )
            })
        }
    }
}

/// Seconds for which the secret before is accepted.
fn left(state: &SecretState) -> u64 {
    let until = state.previous_until_at.unwrap_or(0);
    until.saturating_sub(print::now())
}

fn state(state: &SecretState) -> String {
    let before = match state.previous_until_at {
        Some(_) => format!(
            "the one before is accepted for another {}",
            human(left(state))
        ),
        None => "no other one is accepted".to_owned(),
    };
    let behind: Vec<String> = state.behind.iter().map(label).collect();
    let behind = match behind.is_empty() {
        true => "all members have it".to_owned(),
        false => format!("not heard of it from: {}", behind.join(" ")),
    };
    format!("secret number {}; {before}; {behind}\n", state.epoch)
}
