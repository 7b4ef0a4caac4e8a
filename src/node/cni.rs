//! What a CNI runtime asks besides attaching: DEL, CHECK and GC, and the DELs that came while the node was down.
//!
//! All of it is about attachments with an owner; what was attached by hand is never touched. A DEL that found no node
//! lies as a file in a folder beside the socket ([`CNI_JOURNAL`]). The desk looks there at its start, at each round and
//! before it attaches, so that a container that comes back under its id is not taken for the one that went.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use weave_linux::nft::Found;
use weave_model::ClusterRange;
use weave_model::api::{Attachments, CNI_JOURNAL, CniFindings, CniGcRequest, CniRef, Refusal};
use weave_router::core::command::{Command, Reply};

use super::book::Entry;
use super::containers;
use super::works::Works;

impl Works {
    /// Frees an attachment; one that is not there is freed already.
    pub(super) async fn cni_del(&mut self, what: &CniRef) -> Result<Attachments, Refusal> {
        let mut gone = Vec::new();
        if let Some(entry) = self.book.owned(what).cloned() {
            gone.push(self.take_off(entry).await?);
        }
        Ok(Attachments {
            attachments: gone,
            called: BTreeMap::new(),
            host: None,
        })
    }

    /// Frees all of a network that the runtime does not know. One that cannot be freed does not keep the others.
    pub(super) async fn cni_gc(&mut self, request: &CniGcRequest) -> Result<Attachments, Refusal> {
        self.drain_cni_journal().await;
        let forgotten: Vec<Entry> = self.book.forgotten(request).cloned().collect();
        let mut gone = Vec::new();
        let mut failed: Option<Refusal> = None;
        for entry in forgotten {
            let name = entry.attachment.name.clone();
            match self.take_off(entry).await {
                Ok(attachment) => gone.push(attachment),
                Err(refusal) => {
                    let message = match failed.take() {
                        Some(former) => format!("{}; {name}: {refusal}", former.message),
                        None => format!("{name}: {refusal}"),
                    };
                    failed = Some(Refusal { message, ..refusal });
                }
            }
        }
        failed.map_or(
            Ok(Attachments {
                attachments: gone,
                called: BTreeMap::new(),
                host: None,
            }),
            Err,
        )
    }

    /// Looks at an attachment: in the book, at the allocator, in the kernel on both sides, at our rules.
    pub(super) async fn cni_check(&mut self, what: &CniRef) -> Result<CniFindings, Refusal> {
        let range = self.range()?;
        let Some(entry) = self.book.owned(what).cloned() else {
            let line = format!(
                "no container {} is attached with an interface {}",
                what.container, what.ifname
            );
            return Ok(CniFindings {
                attachment: None,
                wrong: vec![line],
            });
        };
        let mut wrong = self.find_faults(&entry, range).await?;
        wrong.extend(self.find_lost_lease(&entry, range).await?);
        match self.side.find_rules(range) {
            Ok(Found::Right) => {}
            Ok(Found::Missing) => wrong.push("the host's rules are gone".to_owned()),
            Ok(Found::Wrong) => wrong.push("the host's rules were changed".to_owned()),
            Err(error) => wrong.push(format!("the host's rules cannot be read: {error}")),
        }
        wrong.extend(self.find_port_faults(range, &entry.attachment));
        Ok(CniFindings {
            attachment: Some(entry.attachment),
            wrong,
        })
    }

    pub(super) async fn find_faults(
        &self,
        entry: &Entry,
        range: ClusterRange,
    ) -> Result<Vec<String>, Refusal> {
        let path = &entry.attachment.netns;
        let Ok(netns) = containers::open_netns(path) else {
            return Ok(vec![format!("the network namespace {path} is gone")]);
        };
        if containers::netns_id(&netns) != entry.netns_id {
            return Ok(vec![format!("{path} is another network namespace by now")]);
        }
        let Some(spec) = containers::to_check(entry, range, netns) else {
            return Ok(vec!["its address is not one of this cluster's".to_owned()]);
        };
        let checked = self.side.host.check(&spec).await;
        checked.map_err(|error| containers::refused(&error))
    }

    async fn find_lost_lease(
        &self,
        entry: &Entry,
        range: ClusterRange,
    ) -> Result<Option<String>, Refusal> {
        let attachment = &entry.attachment;
        let lease = containers::lease_id(&attachment.name, &attachment.ifname);
        let wanted = range.offset_v4(attachment.ip.addr());
        let leased = match self.router.command(Command::Leases).await? {
            Reply::Leases(leases) => leases
                .into_iter()
                .any(|(id, offset)| id == lease && Some(offset) == wanted),
            _ => false,
        };
        let lost = || format!("the address {} is not leased to it", attachment.ip.addr());
        Ok((!leased).then(lost))
    }

    /// Frees what runtimes gave back while nobody listened. What cannot be freed stays for the next look.
    pub(super) async fn drain_cni_journal(&mut self) {
        let entries = match pending(&self.config.socket) {
            Ok(entries) => entries,
            Err(error) => return tracing::warn!(%error, "the journal of CNI cannot be listed"),
        };
        for path in entries {
            let written = changed(&path);
            if written.is_some_and(|at| self.drained.contains(&(path.clone(), at))) {
                self.strike(path, written);
                continue;
            }
            let what = match read(&path) {
                Ok(Some(what)) => what,
                Ok(None) => {
                    tracing::warn!(path = %path.display(), "not an entry of CNI's journal");
                    set_aside(&path);
                    continue;
                }
                Err(error) => {
                    tracing::warn!(%error, path = %path.display(), "cannot be read");
                    continue;
                }
            };
            match self.cni_del(&what).await {
                Ok(_) => {
                    tracing::info!(container = %what.container, "freed what was given back meanwhile");
                    self.strike(path, written);
                }
                Err(refusal) => {
                    tracing::warn!(%refusal, container = %what.container, "cannot be freed");
                }
            }
        }
    }

    /// Removes an entry that is done. One that stays is remembered, lest it free the container that has its id by then;
    /// the same path written anew is another entry.
    fn strike(&mut self, path: PathBuf, written: Option<SystemTime>) {
        match (fs::remove_file(&path), written) {
            (Ok(()), Some(at)) => {
                self.drained.remove(&(path, at));
            }
            (Ok(()), None) => {}
            (Err(error), written) => {
                tracing::warn!(%error, path = %path.display(), "cannot be removed");
                self.drained.extend(written.map(|at| (path, at)));
            }
        }
    }
}

/// When a file was written.
fn changed(path: &Path) -> Option<SystemTime> {
    fs::metadata(path).and_then(|file| file.modified()).ok()
}

/// The entries of the journal that are for the node at this socket.
fn pending(socket: &Path) -> io::Result<Vec<PathBuf>> {
    let (Some(directory), Some(name)) = (socket.parent(), socket.file_name()) else {
        return Ok(Vec::new());
    };
    let found = match fs::read_dir(directory.join(CNI_JOURNAL)) {
        Ok(found) => found,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let prefix = format!("{}.", name.to_string_lossy());
    let ours = |file: &fs::DirEntry| file.file_name().to_string_lossy().starts_with(&prefix);
    found
        .filter_map(|file| {
            file.map(|file| ours(&file).then(|| file.path()))
                .transpose()
        })
        .collect()
}

/// Reads an entry; nothing where the file is none.
fn read(path: &Path) -> io::Result<Option<CniRef>> {
    Ok(serde_json::from_slice(&fs::read(path)?).ok())
}

/// Keeps a strange file for a person to look at, under a name that is no entry's.
fn set_aside(path: &Path) {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    if let Err(error) = fs::rename(path, path.with_file_name(format!(".bad.{name}"))) {
        tracing::warn!(%error, path = %path.display(), "cannot be set aside");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_journal_of_another_node_and_strange_files_are_left_alone() {
        let scratch = std::env::temp_dir().join(format!("weave-cni-drain-{}", std::process::id()));
        let folder = scratch.join(CNI_JOURNAL);
        let socket = scratch.join("a.sock");
        assert!(pending(&socket).unwrap().is_empty());
        fs::create_dir_all(&folder).unwrap();
        for name in ["a.sock.c1.eth0", "b.sock.c1.eth0", ".a.sock.17", "a.sock"] {
            fs::write(folder.join(name), r#"{"container":"c1","ifname":"eth0"}"#).unwrap();
        }
        let found = pending(&socket).unwrap();
        assert_eq!(found, [folder.join("a.sock.c1.eth0")]);
        assert_eq!(read(&found[0]).unwrap().unwrap().container.as_str(), "c1");
        fs::write(&found[0], "half").unwrap();
        assert_eq!(read(&found[0]).unwrap(), None);
        set_aside(&found[0]);
        assert!(pending(&socket).unwrap().is_empty());
        fs::remove_dir_all(&scratch).unwrap();
    }
}
