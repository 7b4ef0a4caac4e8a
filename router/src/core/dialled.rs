//! Addresses at which this node looks for members because it was told to: by `connect`, or by the token it joined with.
//!
//! A handshake names who shall answer it, so an address alone is tried for every member that has no session, until one
//! answers there; from then on the address is that member's. These addresses are kept across restarts, come before those
//! that members tell of themselves, and without [`Discovery`] are the only ones that this node dials. A session that is up
//! goes on whatever is forgotten.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use tracing::info;
use weave_model::NodeId;

use super::Core;
use super::command::{CommandError, MAX_DIALLED, Reply};
use super::saving::Pending;
use crate::mesh::record::Record;
use crate::way::Way;

/// Whether members are dialled where they say they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Discovery {
    /// They are.
    #[default]
    On,
    /// Only where an operator or a token said.
    Off,
}

/// The addresses, and who answered there.
pub(super) type Dialled = BTreeMap<SocketAddr, Option<NodeId>>;

fn canonical(address: SocketAddr) -> SocketAddr {
    let way = Way::Direct(address).canonical();
    way.address().unwrap_or(address)
}

impl Core {
    /// Looks for members at an address from now on.
    pub(super) fn dial(
        &mut self,
        command: u64,
        address: SocketAddr,
    ) -> Result<Option<Reply>, CommandError> {
        self.standing()?;
        self.check_storage()?;
        let address = canonical(address);
        if self.dialled.contains_key(&address) {
            return Ok(Some(Reply::Done));
        }
        if self.dialled.len() >= MAX_DIALLED {
            return Err(CommandError::TooManyAddresses);
        }
        self.note_dialled(address, None);
        self.meet_all();
        let reply = Reply::Done;
        self.saving.after(Pending::Answer { command, reply });
        Ok(None)
    }

    /// Looks there no longer.
    pub(super) fn forget_address(
        &mut self,
        command: u64,
        address: SocketAddr,
    ) -> Result<Option<Reply>, CommandError> {
        let address = canonical(address);
        if self.dialled.remove(&address).is_none() {
            return Err(CommandError::UnknownAddress(address));
        }
        self.meet_all();
        self.changed();
        let reply = Reply::Done;
        self.saving.after(Pending::Answer { command, reply });
        Ok(None)
    }

    /// Remembers an address, and who is there if that is known.
    pub(super) fn note_dialled(&mut self, address: SocketAddr, peer: Option<NodeId>) {
        self.dialled.insert(canonical(address), peer);
        self.changed();
    }

    /// A peer answered at an address. If that was looked at, it is the peer's from now on.
    pub(super) fn found_at(&mut self, peer: NodeId, way: Way) {
        let Some(address) = way.canonical().address() else {
            return;
        };
        if let Some(found @ None) = self.dialled.get_mut(&address) {
            info!(peer = %peer.short(), %address, "a member is where this node was told to look");
            *found = Some(peer);
            self.saving.want_soon(self.now.mono);
            self.meet_all();
            self.changed();
        }
    }

    /// A member is one no more: whoever comes after it may be at its address.
    pub(super) fn free_addresses_of(&mut self, node: NodeId) {
        for found in self.dialled.values_mut() {
            if *found == Some(node) {
                *found = None;
            }
        }
    }

    /// Where a member is dialled, the likeliest first.
    pub(super) fn dialled_at(&self, record: &Record) -> Vec<SocketAddr> {
        let node = record.node();
        let ours = self
            .dialled
            .iter()
            .filter(|(_, found)| **found == Some(node));
        let open = self.dialled.iter().filter(|(_, found)| found.is_none());
        let open = open.filter(|_| {
            !self
                .links
                .get(&node)
                .is_some_and(|link| link.way.is_direct())
        });
        let mut addresses: Vec<SocketAddr> = ours.map(|(address, _)| *address).collect();
        if self.config.discovery == Discovery::On {
            let told = record.endpoints.iter().copied().map(canonical);
            addresses.extend(told.filter(|address| !self.dialled.contains_key(address)));
        }
        addresses.extend(open.map(|(address, _)| *address));
        addresses
    }

    fn meet_all(&mut self) {
        for record in self.records.clone().into_values() {
            self.meet(&record);
        }
    }
}
