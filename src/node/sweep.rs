//! The sweep: attachments whose interface is gone are freed, whoever should have done it.
//!
//! A runtime may never say that a container ended, and a person may forget. The sign is the host's end of the pair: the
//! kernel removes it with the container's end, and that with its namespace. A namespace whose name is gone but that
//! somebody still uses keeps its pair, and its address. One look may come at a bad moment, so two are needed, and
//! seconds between them ([`super::missing`]). A DEL or detach that comes afterwards finds nothing to do, as it may.
//!
//! Docker's endpoints are left alone: it keeps their addresses while a container is stopped, and says when it is done.

use tokio::time::Instant;

use super::book::Entry;
use super::works::Works;

impl Works {
    /// Frees what has been gone for two looks. The pairs must have been listed just now.
    pub(super) async fn sweep(&mut self) {
        let pairs = &self.pairs;
        let gone = self
            .book
            .entries()
            .filter(|entry| !pairs.contains(entry.attachment.host_ifname.as_str()))
            .filter(|entry| !self.book.is_docker(entry));
        let key = |entry: &Entry| {
            (
                entry.attachment.name.clone(),
                entry.attachment.ifname.clone(),
            )
        };
        let long = self.missing.look(gone.map(key), Instant::now());
        for (name, ifname) in long {
            let meant = |entry: &&Entry| entry.attachment.ifname == ifname;
            let Some(entry) = self.book.interfaces(&name).find(meant).cloned() else {
                continue;
            };
            match self.take_off(entry).await {
                Ok(_) => {
                    self.swept += 1;
                    tracing::info!(%name, %ifname, "freed: its interface is gone");
                }
                Err(refusal) => tracing::warn!(%name, %refusal, "cannot be freed"),
            }
        }
    }
}
