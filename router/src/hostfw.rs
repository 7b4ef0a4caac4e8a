//! Beside other people's firewalls: a way through for containers' packets where the host drops what it forwards.
//!
//! Docker sets the policy of iptables' `FORWARD` to drop, and so do careful administrators. A drop is final in nftables
//! whatever our own tables say, so the accept has to stand where the drop is decided. `plan.rs` says which rules; here
//! they are put there with the host's own `iptables` and `ip6tables`, which know which of the two kernels' tables
//! (nftables or the older x_tables, "legacy") the host's rules are in. Each table in use is looked after by the program of
//! its kind; a table that nobody uses is not even looked at with it, for looking would make it.
//!
//! Every rule of ours bears a comment that begins with `weave: `. No other rule is touched, and when the reason goes (the
//! policy is accept again), so do ours. Firewalls that keep their rules elsewhere are none of this module's business.

use std::process::{Command, Stdio};
use std::{fs, io};

use weave_linux::nft::{self, Family, Socket, Table};

mod plan;

use plan::Step;
pub use plan::TAG;

/// Looks after the accepts of one host.
///
/// Its methods run programs and wait for them, up to some seconds when another has the lock of the tables; not for
/// asynchronous threads. The programs work in the network namespace of the calling thread.
#[derive(Debug)]
pub struct HostFirewall {
    tun: String,
    veths: String,
    /// The generation of nftables at which all was found right.
    seen: Option<u32>,
}

/// Why the way is not open.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The program of the host's firewall refused.
    #[error("{command}: {message}")]
    Refused {
        /// Program and arguments.
        command: String,
        /// What it said.
        message: String,
    },
    /// The program cannot be run.
    #[error("cannot run {program}: {source}")]
    Run {
        /// Its name.
        program: String,
        /// Why.
        source: io::Error,
    },
    /// Whether there is a firewall cannot be told.
    #[error(transparent)]
    Nft(#[from] nft::Error),
}

impl HostFirewall {
    /// For the router's TUN device and the beginning of the names of containers' outer ends.
    pub fn new(tun: impl Into<String>, veths: impl Into<String>) -> Self {
        Self {
            tun: tun.into(),
            veths: veths.into(),
            seen: None,
        }
    }

    /// Puts what is missing, removes what has lost its reason; returns the commands that did it. Costs next to nothing
    /// when no rule set of the namespace has changed since the last call.
    ///
    /// # Errors
    /// With the first thing that failed; what can be done in other tables is done all the same.
    pub fn ensure(&mut self) -> Result<Vec<String>, Error> {
        let socket = Socket::open().map_err(nft::Error::from)?;
        let generation = socket.generation()?;
        let skip_nft = self.seen == Some(generation);
        let done = self.work(&socket, skip_nft, |firewall, listing| {
            plan::wanted(listing, &firewall.tun, &firewall.veths)
        })?;
        // What was just put is looked at once more next time: somebody may have been quicker.
        self.seen = done.is_empty().then_some(generation);
        Ok(done)
    }

    /// Removes every rule of ours; returns the commands that did it.
    ///
    /// # Errors
    /// With the first thing that failed; the rest is removed all the same.
    pub fn remove(&mut self) -> Result<Vec<String>, Error> {
        self.seen = None;
        let socket = Socket::open().map_err(nft::Error::from)?;
        self.work(&socket, false, |_, listing| plan::none(listing))
    }

    fn work(
        &self,
        socket: &Socket,
        skip_nft: bool,
        steps: impl Fn(&Self, &str) -> Vec<Step>,
    ) -> Result<Vec<String>, Error> {
        let mut done = Vec::new();
        let mut failed = None;
        for family in [Family::Ip, Family::Ip6] {
            for kind in [Kind::Nft, Kind::Legacy] {
                if kind == Kind::Nft && skip_nft || !in_use(socket, family, kind)? {
                    continue;
                }
                let Some(program) = find(family, kind) else {
                    continue;
                };
                let worked = run(&program, &["-S".to_owned()]).map(|listing| steps(self, &listing));
                for step in worked.unwrap_or_else(|error| keep(&mut failed, error)) {
                    match run(&program, &step) {
                        Ok(_) => done.push(format!("{program} {}", step.join(" "))),
                        Err(error) => failed = Some(failed.unwrap_or(error)),
                    }
                }
            }
        }
        failed.map_or(Ok(done), Err)
    }
}

/// Remembers the first error.
fn keep(failed: &mut Option<Error>, error: Error) -> Vec<Step> {
    failed.get_or_insert(error);
    Vec::new()
}

/// In which of the kernel's tables a firewall keeps its rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Nft,
    Legacy,
}

/// Whether forwarded packets meet a `filter` table of that kind in this namespace.
fn in_use(socket: &Socket, family: Family, kind: Kind) -> Result<bool, Error> {
    match kind {
        Kind::Nft => {
            let chains = socket.chains(&Table::new(family, "filter"))?;
            Ok(chains.iter().any(|chain| chain.name == "FORWARD"))
        }
        Kind::Legacy => {
            let file = if family == Family::Ip6 {
                "ip6_tables_names"
            } else {
                "ip_tables_names"
            };
            // No such file: no x_tables in this kernel.
            let names =
                fs::read_to_string(format!("/proc/thread-self/net/{file}")).unwrap_or_default();
            Ok(names.lines().any(|name| name == "filter"))
        }
    }
}

/// The host's program for a kind of tables, if it has one.
fn find(family: Family, kind: Kind) -> Option<String> {
    let plain = if family == Family::Ip6 {
        "ip6tables"
    } else {
        "iptables"
    };
    let (suffix, word) = match kind {
        Kind::Nft => ("nft", "nf_tables"),
        Kind::Legacy => ("legacy", "legacy"),
    };
    let is_right = |program: &String| {
        let version = start(program, &["-V".to_owned()])
            .map(|output| output.stdout)
            .unwrap_or_default();
        let version = String::from_utf8_lossy(&version).into_owned();
        // Before 1.8 there was only one kind, and it did not say which.
        version.contains(word)
            || kind == Kind::Legacy && version.starts_with(plain) && !version.contains('(')
    };
    [format!("{plain}-{suffix}"), plain.to_owned()]
        .into_iter()
        .find(is_right)
}

/// Runs a program on the `filter` table, waiting for others to leave it, and gives what it printed.
fn run(program: &str, arguments: &[String]) -> Result<String, Error> {
    let common = ["-w", "5", "-t", "filter"].map(str::to_owned);
    let arguments = [&common, arguments].concat();
    let output = start(program, &arguments).map_err(|source| Error::Run {
        program: program.to_owned(),
        source,
    })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let message = String::from_utf8_lossy(&output.stderr);
    Err(Error::Refused {
        command: format!("{program} {}", arguments.join(" ")),
        message: message
            .lines()
            .next()
            .unwrap_or("failed without a word")
            .to_owned(),
    })
}

fn start(program: &str, arguments: &[String]) -> io::Result<std::process::Output> {
    // A daemon's search path may lack the places for an administrator's programs.
    let path = std::env::var("PATH").unwrap_or_default();
    Command::new(program)
        .args(arguments)
        .env("PATH", format!("{path}:/usr/local/sbin:/usr/sbin:/sbin"))
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
}
