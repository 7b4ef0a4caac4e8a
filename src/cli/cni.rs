//! `weavectl cni`: puts the plugin and a network configuration where container runtimes look, and takes them away.
//!
//! A runtime reads its folder of configurations at any moment and calls what they name. So each file appears whole or
//! not at all, the plugin before the configuration that names it, and on the way out the configuration goes first.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::{Value, json};
use weave_linux::file;
use weave_model::api::DEFAULT_SOCKET;

use super::failure::{Exit, Failure};
use crate::removal::{PLUGIN, is_for_us};

/// The configuration's file. Of several, containerd and CRI-O take the first by name.
const CONFLIST: &str = "10-weave.conflist";

/// Where things are put.
#[derive(Debug, clap::Args)]
pub struct Places {
    /// Folder of plugins; may be repeated
    #[arg(long = "bin-dir", value_name = "DIR", default_values = ["/opt/cni/bin", "/usr/lib/cni"])]
    bin_dirs: Vec<PathBuf>,
    /// Folder of network configurations
    #[arg(long, value_name = "DIR", default_value = "/etc/cni/net.d")]
    conf_dir: PathBuf,
}

impl Places {
    /// The files that an installation writes there, whether they are there or not.
    pub(super) fn files(&self) -> Vec<PathBuf> {
        let plugins = self.bin_dirs.iter().map(|folder| folder.join(PLUGIN));
        let conflist = self.conf_dir.join(CONFLIST);
        std::iter::once(conflist).chain(plugins).collect()
    }
}

/// What was done.
#[derive(Debug, Serialize)]
pub(super) struct Done {
    /// The files that were written, in this order.
    written: Vec<PathBuf>,
    /// The files that were removed, in this order.
    removed: Vec<PathBuf>,
    /// Another configuration that runtimes take instead of ours.
    taken_instead: Option<PathBuf>,
}

impl Done {
    /// In words.
    pub(super) fn human(&self) -> String {
        let line = |what: &str, path: &PathBuf| format!("{what} {}\n", path.display());
        let written = self.written.iter().map(|path| line("wrote", path));
        let removed = self.removed.iter().map(|path| line("removed", path));
        let mut text: String = written.chain(removed).collect();
        if text.is_empty() {
            text.push_str("nothing of ours was there\n");
        }
        if let Some(other) = &self.taken_instead {
            text.push_str(&format!(
                "note: containerd and CRI-O take {} first; move it away to have their containers on this network\n",
                other.display()
            ));
        }
        text
    }
}

/// Writes the plugin to each folder, then the configuration. `plugin` is the program to copy; by default what lies
/// beside this one. `socket` goes into the configuration unless it is the default.
pub(super) fn install(
    places: &Places,
    plugin: Option<&Path>,
    socket: &Path,
) -> Result<Done, Failure> {
    let before = places.conf_dir.join(CONFLIST);
    if before.exists() && !is_for_us(&before) {
        let cause = format!("{} is not of this plugin", before.display());
        let fix = "move it away, or take off first what it is for, such as Weave Net";
        return Err(Failure::new(Exit::Failed, cause, fix));
    }
    let source = match plugin {
        Some(path) => path.to_owned(),
        None => beside_us()?,
    };
    let program = fs::read(&source).map_err(|error| {
        let cause = format!("cannot read the plugin {}: {error}", source.display());
        Failure::new(Exit::Failed, cause, "name it with --plugin")
    })?;
    let mut written = Vec::new();
    for folder in &places.bin_dirs {
        written.push(put(folder, PLUGIN, &program, 0o755)?);
    }
    let text = format!("{:#}\n", conflist(socket));
    written.push(put(&places.conf_dir, CONFLIST, text.as_bytes(), 0o644)?);
    Ok(Done {
        written,
        removed: Vec::new(),
        taken_instead: before_ours(&places.conf_dir),
    })
}

/// Removes the configuration, then the plugins. What is not ours stays.
pub(super) fn uninstall(places: &Places) -> Result<Done, Failure> {
    let conflist = places.conf_dir.join(CONFLIST);
    let is_ours = is_for_us(&conflist);
    let plugins = places.bin_dirs.iter().map(|folder| folder.join(PLUGIN));
    let ours = is_ours.then_some(conflist).into_iter().chain(plugins);
    let mut removed = Vec::new();
    for path in ours {
        match fs::remove_file(&path) {
            Ok(()) => removed.push(path),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed("remove", &path, &error)),
        }
    }
    Ok(Done {
        written: Vec::new(),
        removed,
        taken_instead: None,
    })
}

/// The configuration. Its own version is one that containerd 1.6 and Podman 4 read too; newer runtimes choose from the
/// list.
fn conflist(socket: &Path) -> Value {
    let mut plugin = json!({
        "type": PLUGIN,
        "capabilities": {
            "ips": true, "ipRanges": true, "mac": true, "dns": true, "aliases": true, "portMappings": true, "bandwidth": true,
        },
    });
    if socket != Path::new(DEFAULT_SOCKET) {
        plugin["socket"] = json!(socket);
    }
    json!({
        "cniVersion": "1.0.0",
        "cniVersions": ["0.4.0", "1.0.0", "1.1.0"],
        "name": "weave",
        "plugins": [plugin],
    })
}

/// A configuration that comes before ours: runtimes take the first of all that are called so (libcni `ConfFiles`).
fn before_ours(folder: &Path) -> Option<PathBuf> {
    let names = fs::read_dir(folder).ok()?.filter_map(Result::ok);
    let paths = names.map(|entry| entry.path());
    let is_read = |path: &PathBuf| {
        let end = path.extension().and_then(|end| end.to_str());
        matches!(end, Some("conf" | "conflist" | "json"))
    };
    let first = paths
        .filter(is_read)
        .min_by_key(|path| path.file_name().map(ToOwned::to_owned))?;
    (first.file_name()? != CONFLIST).then_some(first)
}

fn beside_us() -> Result<PathBuf, Failure> {
    let own = std::env::current_exe().map_err(|error| {
        let cause = format!("cannot tell where this program lies: {error}");
        Failure::new(Exit::Failed, cause, "name the plugin with --plugin")
    })?;
    Ok(own.with_file_name(PLUGIN))
}

/// Writes a file whole: under a name that nobody looks for, to the disk, then to its place.
fn put(folder: &Path, name: &str, content: &[u8], mode: u32) -> Result<PathBuf, Failure> {
    let path = folder.join(name);
    let write = || fs::create_dir_all(folder).and_then(|()| file::replace(&path, content, mode));
    write().map_err(|error| failed("write", &path, &error))?;
    Ok(path)
}

fn failed(what: &str, path: &Path, error: &io::Error) -> Failure {
    let cause = format!("cannot {what} {}: {error}", path.display());
    Failure::new(
        Exit::Failed,
        cause,
        "run as root, or choose other folders with --bin-dir and --conf-dir",
    )
}
