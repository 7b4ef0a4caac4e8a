//! Making other members admins, and becoming one.
//!
//! The certificate goes to the new admin and nowhere else; it saves it and shows it in its record, which everybody gets
//! and checks. So the command is done when that record is here.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tracing::{debug, info};
use weave_model::{NodeId, NodeName};

use super::Core;
use super::command::{CommandError, PATIENCE, Reply};
use super::removing::SIGNATURES;
use super::saving::Pending;
use crate::mesh::cluster::Certificate;
use crate::mesh::message::Message;
use crate::mesh::record::Record;

const RETRY: Duration = Duration::from_millis(500);

/// Members that are being made admins.
#[derive(Debug, Default)]
pub(super) struct Naming(BTreeMap<NodeId, Named>);

#[derive(Debug)]
struct Named {
    command: u64,
    name: NodeName,
    certificate: Certificate,
    next: Instant,
    until: Instant,
}

impl Naming {
    /// When to send again, or to give up.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.0
            .values()
            .map(|named| named.next.min(named.until))
            .min()
    }

    /// Ends all that wait: their commands.
    pub(super) fn abandon(&mut self) -> Vec<u64> {
        let all = std::mem::take(&mut self.0);
        all.into_values().map(|named| named.command).collect()
    }
}

impl Core {
    /// Begins to make a member an admin.
    pub(super) fn add_admin(
        &mut self,
        id: u64,
        given: &str,
    ) -> Result<Option<Reply>, CommandError> {
        self.check_admin()?;
        let (node, name) = self.find(given)?;
        let is_admin = |record: &Record| record.certificate.admin;
        if node == self.me || self.records.get(&node).is_some_and(is_admin) {
            return Ok(Some(Reply::Node { id: node, name }));
        }
        self.want(node);
        if self.is_small() && !self.links.get(&node).is_some_and(|link| link.up) {
            return Err(CommandError::NotConnected(name.to_string()));
        }
        let Some(record) = self.records.get(&node) else {
            return Err(CommandError::UnknownNode(given.to_owned()));
        };
        let membership = self.member()?;
        let authority = membership.authority(&self.keys);
        let certificate = authority
            .map(|authority| authority.certify(node, true, self.now.wall.as_secs()))
            .filter(|certificate| certificate.as_signer(record.public).is_some())
            .ok_or(CommandError::ChainTooLong)?;
        let named = Named {
            command: id,
            name,
            certificate,
            next: self.now.mono,
            until: self.now.mono + PATIENCE,
        };
        if let Some(before) = self.naming.0.insert(node, named) {
            self.reply(before.command, Err(CommandError::Underway));
        }
        Ok(None)
    }

    /// Sends the certificates that are due, and gives up what is overdue.
    pub(super) fn send_offices(&mut self) {
        let now = self.now.mono;
        let over = self.naming.0.iter().filter(|(_, named)| now >= named.until);
        for node in over.map(|(node, _)| *node).collect::<Vec<_>>() {
            if let Some(named) = self.naming.0.remove(&node) {
                let node = named.name.to_string();
                self.reply(named.command, Err(CommandError::NotConfirmed { node }));
            }
        }
        let mut due = Vec::new();
        for (node, named) in self
            .naming
            .0
            .iter_mut()
            .filter(|(_, named)| now >= named.next)
        {
            named.next = now + RETRY;
            due.push((*node, named.certificate.clone()));
        }
        for (node, certificate) in due {
            self.send(node, &Message::Office(certificate));
        }
    }

    /// A new record is here: it may show that its node is an admin now.
    pub(super) fn note_admin(&mut self, record: &Record) {
        if !record.certificate.admin {
            return;
        }
        if let Some(named) = self.naming.0.remove(&record.node()) {
            info!(node = %record.node().short(), name = %named.name, "a new admin");
            let id = record.node();
            let name = named.name;
            self.reply(named.command, Ok(Reply::Node { id, name }));
        }
    }

    /// An admin says that this node is one from now on.
    pub(super) fn handle_office(&mut self, peer: NodeId, certificate: Certificate) {
        let Some(membership) = self.membership.as_mut().filter(|_| self.active) else {
            return;
        };
        if membership.certificate.admin || certificate.node != self.me || !certificate.admin {
            return;
        }
        if !self.budgets.pay(peer, SIGNATURES, self.now.mono) {
            return;
        }
        if !certificate.verify(&membership.public) {
            return debug!(from = %peer.short(), "a certificate that the cluster did not sign is left");
        }
        membership.certificate = certificate;
        self.saving.after(Pending::Office);
    }

    /// The certificate is durable: everybody may see it.
    pub(super) fn take_office(&mut self) {
        info!("this node is an admin now");
        self.changed();
        self.publish();
    }
}
