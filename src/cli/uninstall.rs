//! `weavectl uninstall`: says what of Weave is on this host, and removes it when that is wanted.

use std::io::{self, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};

use serde::Serialize;
use tokio::runtime::Builder;

use super::cni::Places;
use super::failure::{Exit, Failure};
use crate::claim;
use crate::obstacle::Obstacle;
use crate::removal::{self, Thing};

/// What is not removed, for the one who reads the list.
const STAYS: &str = "stays: /etc/weave, programs and units, and forwarding (net.ipv4.ip_forward), which others may use";

/// `weavectl uninstall ...`.
#[derive(Debug, clap::Args)]
pub struct Uninstall {
    /// Only say what would be removed
    #[arg(long)]
    dry_run: bool,
    /// Do not ask
    #[arg(long)]
    yes: bool,
    /// Where the node keeps its state
    #[arg(long, value_name = "DIR", default_value = "/var/lib/weave")]
    state_dir: PathBuf,
    /// Where the plugin was put.
    #[command(flatten)]
    places: Places,
}

/// What there was, and what became of it.
#[derive(Debug, Serialize)]
pub(super) struct Done {
    found: Vec<Thing>,
    removed: bool,
    #[serde(skip)]
    failed: Vec<Obstacle>,
}

impl Uninstall {
    /// Finds, asks and removes.
    pub(super) fn run(&self, socket: &Path) -> Result<Done, Failure> {
        // Held to the end: a node that is started meanwhile would lose what it stands on.
        let _claim = if self.dry_run {
            None
        } else {
            Some(claim::claim_network().map_err(|_| {
                let fix = "stop it first, and for good: systemctl disable --now weaved";
                Failure::new(Exit::Failed, "weaved runs on this host", fix)
            })?)
        };
        let runtime = Builder::new_current_thread().enable_all().build();
        let runtime = runtime
            .map_err(|error| Failure::new(Exit::Failed, format!("cannot start: {error}"), ""))?;
        let places = removal::Places {
            state_dir: self.state_dir.clone(),
            socket: socket.to_owned(),
            runtimes: self.places.files(),
        };
        let found = runtime.block_on(removal::find(&places));
        let found =
            found.map_err(|obstacle| Failure::new(Exit::Failed, obstacle.cause, obstacle.fix))?;
        if self.dry_run || !self.is_wanted(&found)? {
            return Ok(Done {
                found,
                removed: false,
                failed: Vec::new(),
            });
        }
        let failed = runtime.block_on(removal::remove(&found));
        Ok(Done {
            found,
            removed: true,
            failed,
        })
    }

    /// Asks a person; without one it has to be said beforehand.
    fn is_wanted(&self, found: &[Thing]) -> Result<bool, Failure> {
        if self.yes {
            return Ok(true);
        }
        if !io::stdin().is_terminal() {
            let fix = "see what would be removed with --dry-run, and repeat with --yes";
            return Err(Failure::new(
                Exit::Usage,
                "nobody is there to be asked",
                fix,
            ));
        }
        let failed = |error: io::Error| {
            Failure::new(Exit::Failed, format!("cannot ask: {error}"), "use --yes")
        };
        let mut err = io::stderr();
        write!(
            err,
            "{}remove all of this? this node leaves its cluster for good [y/N] ",
            list(found)
        )
        .map_err(failed)?;
        let mut answer = String::new();
        io::stdin().read_line(&mut answer).map_err(failed)?;
        Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
    }
}

impl Done {
    /// 1 if something could not be removed.
    pub(super) const fn exit(&self) -> Exit {
        if self.failed.is_empty() {
            Exit::Ok
        } else {
            Exit::Failed
        }
    }

    /// In words.
    pub(super) fn human(&self) -> String {
        let head = if self.removed {
            "removed:\n"
        } else {
            "would be removed:\n"
        };
        let failed = self
            .failed
            .iter()
            .map(|obstacle| format!("FAIL  {}\nfix: {}\n", obstacle.cause, obstacle.fix));
        format!(
            "{head}{}{}{STAYS}\n",
            list(&self.found),
            failed.collect::<String>()
        )
    }
}

fn list(things: &[Thing]) -> String {
    things.iter().map(|thing| format!("  {thing}\n")).collect()
}
