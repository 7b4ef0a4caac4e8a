//! TCP sockets in the namespaces of this node's containers and of the host, read for who looks at flows.
//!
//! A namespace is entered by a thread for the moment in which a socket is opened in it (`weave_linux::netns`), and only if
//! one of the connections that were seen ends there. What is read is bounded: at most [`MAX_NAMESPACES`] namespaces, and
//! [`MAX_SOCKETS`] sockets of each. Only the ends that lie on this host can be seen; the other node sees its own, but a
//! flow is told by one node alone.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use weave_linux::netns::run_in;
use weave_linux::sockets::{Sockets, TcpSocket};

use super::book::{Book, Entry};
use super::containers;

/// The most namespaces of containers that are read for one look.
const MAX_NAMESPACES: usize = 64;

/// The most sockets that are read in one namespace.
const MAX_SOCKETS: usize = 2048;

/// What was read.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) sockets: Vec<TcpSocket>,
    /// Namespaces that were not read, or not to their end: too many, gone, not to be entered, or with too many sockets.
    pub(super) unseen: u32,
}

/// Reads the sockets of the host, and of the containers that have one of these addresses.
pub(super) fn read(book: &Book, ends: &BTreeSet<IpAddr>) -> Found {
    let mut found = Found::default();
    if ends.is_empty() {
        return found;
    }
    found.take(Sockets::open().and_then(|door| door.tcp(MAX_SOCKETS)));
    let talking = book.entries().filter(|entry| {
        let attachment = &entry.attachment;
        let v6 = attachment.ip6.map(|ip6| IpAddr::V6(ip6.addr()));
        ends.contains(&IpAddr::V4(attachment.ip.addr())) || v6.is_some_and(|ip| ends.contains(&ip))
    });
    // A namespace that has several attachments is read once.
    let namespaces: BTreeMap<&str, &Entry> = talking
        .map(|entry| (entry.attachment.netns.as_str(), entry))
        .collect();
    found.unseen += namespaces.len().saturating_sub(MAX_NAMESPACES) as u32;
    for entry in namespaces.into_values().take(MAX_NAMESPACES) {
        found.take(inside(entry));
    }
    found
}

impl Found {
    fn take(&mut self, read: std::io::Result<Vec<TcpSocket>>) {
        match read {
            Ok(sockets) => {
                self.unseen += u32::from(sockets.len() >= MAX_SOCKETS);
                self.sockets.extend(sockets);
            }
            Err(error) => {
                tracing::debug!(%error, "sockets of a namespace are not seen");
                self.unseen += 1;
            }
        }
    }
}

/// The sockets of a container, if its namespace is the one that was attached.
fn inside(entry: &Entry) -> std::io::Result<Vec<TcpSocket>> {
    if !containers::is_alive(entry) {
        return Err(std::io::Error::other("the namespace is gone"));
    }
    let netns = containers::open_netns(&entry.attachment.netns)
        .map_err(|refusal| std::io::Error::other(refusal.message))?;
    let door = run_in(&netns, Sockets::open).map_err(std::io::Error::other)??;
    door.tcp(MAX_SOCKETS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_that_was_not_read_to_its_end_is_counted() {
        let mut found = Found::default();
        let end = ([10, 32, 0, 2], 80).into();
        let one = TcpSocket {
            local: end,
            remote: end,
            rtt_us: None,
            retransmits: 0,
        };
        found.take(Ok(vec![one; MAX_SOCKETS - 1]));
        assert_eq!(found.unseen, 0);
        found.take(Ok(vec![one; MAX_SOCKETS]));
        found.take(Err(std::io::Error::other("gone")));
        assert_eq!(
            (found.unseen, found.sockets.len()),
            (2, 2 * MAX_SOCKETS - 1)
        );
    }
}
