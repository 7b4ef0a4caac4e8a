//! `weavectl report`: everything that helps to find a fault, in one file that can be given away.
//!
//! The node's own answers, what the host's tools say of its network, the log if there is one, and versions. Nothing is
//! read from the state directory, where the keys are; and from every text goes what looks like a token or like the value of
//! a setting that is called a secret ([`redacted`]).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::Value;
use tar::{Builder, Header};

use super::client::Client;
use super::failure::{Exit, Failure};
use super::print;

/// The node's answers, by what they are called in the bundle.
const ANSWERS: [(&str, &str); 8] = [
    ("status.json", "/status"),
    ("peers.json", "/peers"),
    ("connections.json", "/connections"),
    ("attachments.json", "/attachments"),
    ("networks.json", "/networks"),
    ("services.json", "/services"),
    ("ipam.json", "/ipam"),
    ("targets.json", "/targets"),
];

/// What the host's own tools are asked. One that is not installed is said to be missing.
const COMMANDS: [(&str, &str); 13] = [
    ("host/uname.txt", "uname -a"),
    ("host/links.txt", "ip -d -s link"),
    ("host/addresses.txt", "ip address"),
    ("host/routes.txt", "ip route show table all"),
    ("host/routes6.txt", "ip -6 route show table all"),
    ("host/rules.txt", "ip rule"),
    ("host/neighbours.txt", "ip neighbour"),
    ("host/nftables.txt", "nft list ruleset"),
    ("host/iptables.txt", "iptables-save -c"),
    ("host/sockets.txt", "ss -lnup"),
    (
        "host/settings.txt",
        "sysctl -a -r ^net[.]ipv[46][.](conf|ip_forward)",
    ),
    ("host/modules.txt", "lsmod"),
    ("log.txt", "journalctl -u weaved -n 5000 --no-pager"),
];

/// Files that are taken as they are, but for secrets.
const FILES: [(&str, &str); 4] = [
    ("weaved.toml", "/etc/weave/weaved.toml"),
    ("host/os-release.txt", "/etc/os-release"),
    ("host/cpuinfo.txt", "/proc/cpuinfo"),
    ("host/memory.txt", "/proc/meminfo"),
];

/// `weavectl report ...`.
#[derive(Debug, clap::Args)]
pub struct Report {
    /// The file to write [default: weave-report-TIME.tar.gz]
    file: Option<PathBuf>,
    /// A log of weaved to take along, where systemd does not keep it
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
}

impl Report {
    /// Collects and writes the bundle; what cannot be had is said in it.
    pub(super) fn run(&self, client: &Client<'_>) -> Result<String, Failure> {
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let name = format!("weave-report-{}", since.as_secs());
        let file = self
            .file
            .clone()
            .unwrap_or_else(|| format!("{name}.tar.gz").into());
        let parts = self.collect(client);
        write(&file, &name, &parts, since.as_secs()).map_err(|error| {
            let cause = format!("cannot write {}: {error}", file.display());
            Failure::new(
                Exit::Failed,
                cause,
                "name a file in a folder that can be written to",
            )
        })?;
        Ok(format!(
            "{} parts in {}; tokens and secrets are left out\n",
            parts.len(),
            file.display()
        ))
    }

    fn collect(&self, client: &Client<'_>) -> Vec<(String, String)> {
        let mut parts = vec![(
            "weavectl.txt".to_owned(),
            format!("weavectl {}\n", env!("CARGO_PKG_VERSION")),
        )];
        for (name, path) in ANSWERS {
            let text = match client.get::<Value>(path) {
                Ok(answer) => print::json(&answer).unwrap_or_default(),
                Err(failure) => format!("{}\n", failure.cause),
            };
            parts.push((name.to_owned(), text));
        }
        for (name, command) in COMMANDS {
            parts.push((name.to_owned(), run(command)));
        }
        let log = self.log.iter().map(|path| ("weaved.log", path.as_path()));
        let files = FILES.map(|(name, path)| (name, Path::new(path)));
        for (name, path) in files.into_iter().chain(log) {
            let text = fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
            parts.push((
                name.to_owned(),
                text.unwrap_or_else(|error| format!("{error}\n")),
            ));
        }
        parts
            .into_iter()
            .map(|(name, text)| (name, redacted(&text)))
            .collect()
    }
}

/// What a command says, and how it ended if it failed.
fn run(line: &str) -> String {
    let mut words = line.split(' ');
    let program = words.next().unwrap_or_default();
    let path = std::env::var("PATH").unwrap_or_default();
    let output = Command::new(program)
        .args(words)
        .env("PATH", format!("{path}:/usr/local/sbin:/usr/sbin:/sbin"))
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output();
    match output {
        Ok(output) => {
            let [out, err] =
                [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes));
            let ended = if output.status.success() {
                String::new()
            } else {
                format!("{}\n", output.status)
            };
            format!("# {line}\n{out}{err}{ended}")
        }
        Err(error) => format!("# {line}\ncannot be run: {error}\n"),
    }
}

/// One folder with all parts, as a compressed tar file that only its owner may read.
fn write(file: &Path, folder: &str, parts: &[(String, String)], at: u64) -> io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let out = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(file)?;
    let mut bundle = Builder::new(GzEncoder::new(out, Compression::default()));
    for (name, text) in parts {
        let mut header = Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(at);
        bundle.append_data(&mut header, format!("{folder}/{name}"), text.as_bytes())?;
    }
    bundle.into_inner()?.finish()?.sync_all()
}

/// A text without join tokens, and without the values of settings whose names say that they are secret.
fn redacted(text: &str) -> String {
    let mut lines = String::with_capacity(text.len());
    for line in text.split_inclusive('\n') {
        lines.push_str(&without_secret_value(&without_tokens(line)));
    }
    lines
}

/// Every word that begins as a token does, cut off behind that.
fn without_tokens(line: &str) -> String {
    const START: &str = "weave1.";
    let mut out = String::new();
    let mut rest = line;
    while let Some(at) = rest.find(START) {
        let (before, token) = rest.split_at(at + START.len());
        out.push_str(before);
        let is_token = |letter: char| {
            letter.is_ascii_alphanumeric() || matches!(letter, '-' | '_' | '.' | '=')
        };
        let end = token
            .find(|letter| !is_token(letter))
            .unwrap_or(token.len());
        out.push_str("(removed)");
        rest = &token[end..];
    }
    out + rest
}

fn without_secret_value(line: &str) -> String {
    let Some((name, _)) = line.split_once(['=', ':']) else {
        return line.to_owned();
    };
    let name_is_secret = ["secret", "password", "passwd", "private", "token"]
        .iter()
        .any(|word| name.to_ascii_lowercase().trim_end().ends_with(word));
    if name_is_secret {
        format!("{}(removed)\n", &line[..=name.len()])
    } else {
        line.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_go_and_everything_else_stays() {
        let log =
            "joined with weave1.KGeZq4n75xbWZ_JDVA9DEg-moyo= at 192.0.2.1\nweave1.abc,weave1.def\n";
        let expected =
            "joined with weave1.(removed) at 192.0.2.1\nweave1.(removed),weave1.(removed)\n";
        assert_eq!(redacted(log), expected);
        let plain = "10.32.0.0/12 dev weave0 proto 87\nname = \"host1\"\n\"id\": \"0069bf2e\"";
        assert_eq!(redacted(plain), plain);
    }

    #[test]
    fn what_is_called_a_secret_loses_its_value() {
        let config =
            "Password = 'x'\ncluster-secret: y\n# a token is made with weavectl\nprivate = z";
        let expected = "Password =(removed)\ncluster-secret:(removed)\n# a token is made with weavectl\nprivate =(removed)\n";
        assert_eq!(redacted(config), expected);
    }
}
