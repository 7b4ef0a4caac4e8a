//! `weavectl capture`: packets of a container, or with a member, in clear, as pcap to a file or a pipe.

use std::fs::File;
use std::io::{self, IsTerminal as _, Write};
use std::path::{Path, PathBuf};

use weave_model::{ContainerName, IfName};

use super::client::{Client, percent_encoded};
use super::complete;
use super::failure::{Exit, Failure};

/// `weavectl capture ...`.
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("what").required(true).args(["name", "peer"]))]
pub struct Capture {
    /// A container of this node
    #[arg(add = complete::containers())]
    name: Option<ContainerName>,
    /// What crosses between this node and a member, instead of one container's packets
    #[arg(long, add = complete::peers())]
    peer: Option<String>,
    /// Which of the container's interfaces [default: the first]
    #[arg(long, requires = "name")]
    ifname: Option<IfName>,
    /// The file to write; - is stdout [default: stdout, if it is no terminal]
    #[arg(short, long, value_name = "FILE")]
    write: Option<PathBuf>,
    /// End after so many packets [default: at Ctrl-C]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
}

impl Capture {
    /// Captures; each packet is written when it comes, so a file is whole whenever this ends.
    pub(super) fn run(&self, client: &Client<'_>) -> Result<String, Failure> {
        let mut out = self.sink()?;
        let mut bytes = 0_u64;
        client.stream(&self.path(), |piece| {
            bytes += piece.len() as u64;
            out.write_all(piece).and_then(|()| out.flush())
        })?;
        if let Some(path) = self.file() {
            eprintln!("{bytes} bytes in {}", path.display());
        }
        Ok(String::new())
    }

    fn path(&self) -> String {
        let mut query = Vec::new();
        let mut add = |key: &str, value: Option<String>| {
            query.extend(value.map(|value| format!("{key}={}", percent_encoded(&value))));
        };
        add("container", self.name.as_ref().map(ToString::to_string));
        add("ifname", self.ifname.as_ref().map(ToString::to_string));
        add("peer", self.peer.clone());
        add("count", self.count.map(|count| count.to_string()));
        format!("/capture?{}", query.join("&"))
    }

    fn file(&self) -> Option<&Path> {
        self.write.as_deref().filter(|path| *path != Path::new("-"))
    }

    fn sink(&self) -> Result<Box<dyn Write>, Failure> {
        if let Some(path) = self.file() {
            let file = File::create(path).map_err(|error| {
                let cause = format!("cannot write {}: {error}", path.display());
                Failure::new(
                    Exit::Failed,
                    cause,
                    "name a file in a folder that can be written to",
                )
            })?;
            return Ok(Box::new(file));
        }
        if self.write.is_none() && io::stdout().is_terminal() {
            let fix =
                "write to a file with -w FILE, or read along: weavectl capture ... | tcpdump -nr -";
            return Err(Failure::new(
                Exit::Usage,
                "a capture is not for a terminal",
                fix,
            ));
        }
        Ok(Box::new(io::stdout()))
    }
}
