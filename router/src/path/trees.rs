//! By which tree each member's broadcasts come here, and to whom they go on.
//!
//! In a small cluster a sender has a session with everybody: its tree is a star. In a larger one everybody derives the
//! same tree from the shared topology (see [`crate::mesh::topology`]). What a tree says is worked out when a broadcast of
//! its root comes by for the first time, and kept for as long as the topology stays.

#![deny(clippy::disallowed_methods)]

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use weave_model::NodeId;

use crate::mesh::topology::{Branch, Topology};

/// This node's part in the trees of all members.
#[derive(Debug, Default)]
pub struct Trees {
    me: Option<NodeId>,
    topology: Arc<Topology>,
    branches: BTreeMap<NodeId, OnceLock<Branch>>,
}

impl Trees {
    /// The trees over this topology, as `me` sees them; `roots` are all that may send.
    pub fn new(me: NodeId, topology: Arc<Topology>, roots: impl Iterator<Item = NodeId>) -> Self {
        let roots = roots.chain([me]);
        Self {
            me: Some(me),
            topology,
            branches: roots.map(|root| (root, OnceLock::new())).collect(),
        }
    }

    /// Whether they were made of this very topology.
    pub fn are_of(&self, topology: &Arc<Topology>) -> bool {
        self.me.is_some() && Arc::ptr_eq(&self.topology, topology)
    }

    /// Whether there are sessions between some members only, and the others are made on demand.
    pub fn are_sparse(&self) -> bool {
        !self.topology.is_full()
    }

    /// This node's part in a member's tree.
    pub fn branch(&self, root: NodeId) -> Option<&Branch> {
        let me = self.me?;
        let branch = self.branches.get(&root)?;
        Some(branch.get_or_init(|| self.topology.branch(root, me)))
    }

    /// To whom this node sends what its own containers say to all; `None` for everybody.
    pub fn own(&self) -> Option<&Branch> {
        self.branch(self.me?).filter(|_| self.are_sparse())
    }
}
