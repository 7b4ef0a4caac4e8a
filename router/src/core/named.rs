//! Which member a word means, its name or the start of its id, and by which a member is spoken of.
//!
//! A node that was let in counts as a member from then on, though it may never come: it has a certificate, so nobody can
//! know that it never will, and it is not forgotten by itself. It has no name here. But it can be spoken of by its id, or
//! whatever waits for it would wait for ever.

use std::collections::BTreeSet;

use weave_model::{NodeId, NodeName};

use super::Core;
use super::command::CommandError;

/// How much of an id has to be said at least, in hex digits.
const MIN_ID: usize = 6;

impl Core {
    /// What a member is called: its name, or the start of its id while its record is not here.
    pub(super) fn called(&self, peer: NodeId) -> String {
        let record = self.records.get(&peer);
        record.map_or_else(|| peer.short(), |record| record.name.to_string())
    }

    /// Who counts as a member here, or with somebody who is asked about a removed node, though nothing was heard of it.
    pub(super) fn awaited(&self) -> BTreeSet<NodeId> {
        let asked = self.inquiries.0.keys();
        let silent = asked.flat_map(|about| self.silent_about(*about));
        let all = self.living().into_iter().chain(silent);
        all.filter(|id| !self.records.contains_key(id)).collect()
    }

    /// The node that a person means, this one included.
    pub(super) fn find(&self, given: &str) -> Result<(NodeId, NodeName), CommandError> {
        let others = self.records.values();
        let others = others.map(|record| (record.node(), record.name.clone()));
        let awaited = self.awaited().into_iter();
        let awaited = awaited.filter_map(|id| Some((id, id.short().parse().ok()?)));
        let all: Vec<(NodeId, NodeName)> = others
            .chain(awaited)
            .chain([(self.me, self.config.name.clone())])
            .collect();
        let named = |(_, name): &&(NodeId, NodeName)| name.as_str() == given;
        let by_id = |(id, _): &&(NodeId, NodeName)| {
            given.len() >= MIN_ID && id.to_string().starts_with(given)
        };
        let mut found: Vec<&(NodeId, NodeName)> = all.iter().filter(named).collect();
        if found.is_empty() {
            found = all.iter().filter(by_id).collect();
        }
        match found[..] {
            [] => Err(CommandError::UnknownNode(given.to_owned())),
            [one] => Ok(one.clone()),
            _ => Err(CommandError::AmbiguousNode {
                given: given.to_owned(),
                ids: found.iter().map(|(id, _)| id.short()).collect(),
            }),
        }
    }
}
