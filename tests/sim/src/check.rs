//! What was promised, as a plain model beside the cluster, held against it after each step.
//!
//! No address has two owners, and no two containers have the same one (a node that was removed and that every living
//! member has cut off does not count); an address that was given is still there after a crash; one that was given back
//! rests for a minute; nobody but a member itself changes what others believe of it; no counter seals or opens twice
//! ([`crate::net`] notices). At the end, when all troubles are over: everybody agrees, and every address has an owner.
//!
//! A disk that was rolled back and a second process with the same disk cannot know of themselves before they have met
//! anybody. So until such a node had time to be told, it is *doubtful*, and what is owned twice may be its fault: if it
//! owns it too, or believed so since then and may have given it away. After that nothing may be.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash as _, Hasher as _};
use std::sync::Arc;
use std::time::Instant;

use weave_model::{Block, NodeId};
use weave_router::core::view::View;
use weave_router::ipam::COOLDOWN;

use crate::net::Net;

/// What a container is called where it runs, and on which node.
pub type Container = (usize, String);

/// See the module.
#[derive(Debug, Default)]
pub struct Model {
    /// Who has which address, by what the node answered.
    given: BTreeMap<u32, Container>,
    by_container: BTreeMap<Container, u32>,
    /// Containers of which a node may or may not have journalled an address: an answer never came.
    unsure: BTreeSet<Container>,
    /// When each address was given back, and where.
    rested: BTreeMap<u32, (usize, Instant)>,
    owned: Vec<Vec<Block>>,
    /// Hashes of all that each identity ever owned, at some time.
    said: BTreeMap<NodeId, BTreeSet<u64>>,
    ids: BTreeMap<NodeId, usize>,
    /// Nodes that were removed, or that left, by the identity that they had.
    removed: BTreeSet<usize>,
    /// Nodes that may not know what they are, and the places that share one identity.
    doubtful: BTreeSet<usize>,
    /// What those have believed to own since they may not know it.
    suspect: BTreeSet<Block>,
    /// There were such nodes: an address in use may be lost to what they gave.
    doubted: bool,
    /// Nodes of which nothing is believed.
    pub liars: BTreeSet<usize>,
}

fn hash(blocks: &[Block]) -> u64 {
    let mut hasher = DefaultHasher::new();
    blocks.hash(&mut hasher);
    hasher.finish()
}

/// What is in both; of two blocks that meet one lies in the other.
fn overlaps(a: &[Block], b: &[Block]) -> impl Iterator<Item = Block> {
    let meet = |x: &Block, y: &Block| x.first() <= y.last() && y.first() <= x.last();
    let pairs = a.iter().flat_map(|x| b.iter().map(move |y| (*x, *y)));
    let both = pairs.filter(move |(x, y)| meet(x, y));
    both.map(|(x, y)| if x.size() < y.size() { x } else { y })
}

impl Model {
    /// Looks at every node whose view may have changed.
    ///
    /// # Errors
    /// The promise that is broken.
    pub fn look(&mut self, net: &mut Net) -> Result<(), String> {
        if let Some(broken) = net.broken.take() {
            return Err(broken);
        }
        for n in 0..net.nodes.len() {
            if std::mem::take(&mut net.nodes[n].changed) {
                self.look_at(net, n)?;
            }
        }
        Ok(())
    }

    fn look_at(&mut self, net: &mut Net, n: usize) -> Result<(), String> {
        self.owned.resize(net.nodes.len(), Vec::new());
        let view = match net.nodes[n].core {
            Some(_) => net.view(n),
            None => net.on_disk(n),
        };
        if net.nodes[n].core.is_some() {
            self.ids.insert(view.me, n);
        }
        // A node that crashed may have said just before what it had just saved.
        self.said
            .entry(view.me)
            .or_default()
            .insert(hash(&view.mine));
        if self.doubtful.contains(&n) {
            self.suspect.extend(&view.mine);
        }
        if self.owned[n] != view.mine {
            self.owned[n].clone_from(&view.mine);
            self.check_owner(net, n)?;
            self.check_containers(net, n)?;
        }
        self.check_members(net, n, &view)
    }

    /// What containers of a node have is still the node's.
    fn check_containers(&self, net: &Net, n: usize) -> Result<(), String> {
        if self.doubted || self.removed.contains(&n) || self.liars.contains(&n) {
            return Ok(());
        }
        for ((_, id), offset) in self.of(n) {
            if !self.owned[n].iter().any(|block| block.contains(*offset)) {
                let name = &net.nodes[n].name;
                return Err(format!(
                    "{id} has address {offset} on {name}, which lost it"
                ));
            }
        }
        Ok(())
    }

    /// Whether a node that may not know what it is can be the cause if two have something of this.
    fn is_doubtful(&self, nodes: [usize; 2], block: Block) -> bool {
        let suspect = |all: &Block| all.contains(block.first()) && all.contains(block.last());
        let doubtful = nodes.iter().any(|n| self.doubtful.contains(n));
        doubtful || self.suspect.iter().any(suspect)
    }

    /// Nothing of what a node owns is another's.
    fn check_owner(&self, net: &mut Net, n: usize) -> Result<(), String> {
        for other in (0..self.owned.len()).filter(|other| *other != n) {
            let all = overlaps(&self.owned[n], &self.owned[other]);
            let mut all = all.filter(|block| !self.is_doubtful([n, other], *block));
            let Some(block) = all.next() else {
                continue;
            };
            if !self.is_fenced(net, n) && !self.is_fenced(net, other) {
                let [a, b] = [n, other].map(|n| net.nodes[n].name.clone());
                return Err(format!("{a} and {b} own {block:?}"));
            }
        }
        Ok(())
    }

    /// Whether a node was removed and all living members have cut it off.
    fn is_fenced(&self, net: &mut Net, n: usize) -> bool {
        if !self.removed.contains(&n) {
            return false;
        }
        let known = self.ids.iter().filter(|(_, place)| **place == n);
        let known: Vec<NodeId> = known.map(|(id, _)| *id).collect();
        let counts = |m: &usize| *m != n && !self.removed.contains(m) && !self.doubtful.contains(m);
        let others = (0..net.nodes.len()).filter(counts);
        others.collect::<Vec<_>>().into_iter().all(|m| {
            let view = match net.nodes[m].core {
                Some(_) => net.view(m),
                None => net.on_disk(m),
            };
            let knows = |id: &NodeId| view.members.iter().any(|member| member.id == *id);
            // One that says farewell still has what it knew, and nobody listens to it.
            view.removed || !known.iter().any(knows)
        })
    }

    /// What a node believes of the others is what they said.
    fn check_members(&self, net: &Net, n: usize, view: &Arc<View>) -> Result<(), String> {
        if self.liars.contains(&n) {
            return Ok(());
        }
        for member in &view.members {
            let Some(&place) = self.ids.get(&member.id) else {
                continue;
            };
            let honest = !self.liars.contains(&place) && !self.doubtful.contains(&place);
            let said = self.said.get(&member.id);
            let said = said.is_some_and(|said| said.contains(&hash(&member.blocks)));
            let said = said || member.blocks.is_empty();
            if honest && !said {
                let (who, of) = (&net.nodes[n].name, &member.name);
                return Err(format!(
                    "{who} believes that {of} owns {:?}, which it never said",
                    member.blocks
                ));
            }
        }
        Ok(())
    }

    /// A node answered that a container has an address.
    ///
    /// # Errors
    /// If that breaks a promise.
    pub fn given(
        &mut self,
        net: &mut Net,
        container: Container,
        offset: u32,
    ) -> Result<(), String> {
        let n = container.0;
        self.unsure.remove(&container);
        let holder = self.given.get(&offset).cloned();
        if let Some(holder) = holder.filter(|holder| *holder != container)
            && let Some(one) = Block::new(offset, 0)
            && !self.is_doubtful([holder.0, n], one)
            && !self.is_fenced(net, holder.0)
            && !self.is_fenced(net, n)
        {
            return Err(format!(
                "address {offset} is {}'s on {} and was given to {} on {}",
                holder.1, net.nodes[holder.0].name, container.1, net.nodes[n].name
            ));
        }
        if let Some(before) = self.by_container.get(&container)
            && *before != offset
        {
            return Err(format!(
                "{} had address {before} and has {offset} now",
                container.1
            ));
        }
        if let Some((at, since)) = self.rested.remove(&offset) {
            let rest = net.now.mono.saturating_duration_since(since);
            if at == n && rest < COOLDOWN {
                return Err(format!("address {offset} rested for {rest:?} only"));
            }
        }
        self.given.insert(offset, container.clone());
        self.by_container.insert(container, offset);
        Ok(())
    }

    /// A container is to get an address, or to give its own back; the answer may never come.
    pub fn asks(&mut self, container: &Container) {
        if let Some(offset) = self.by_container.remove(container) {
            self.given.remove(&offset);
        }
        self.unsure.insert(container.clone());
    }

    /// A node answered that a container's address was given back.
    pub fn released(&mut self, container: &Container, offset: Option<u32>, now: Instant) {
        self.unsure.remove(container);
        if let Some(offset) = offset.filter(|offset| !self.given.contains_key(offset)) {
            self.rested.insert(offset, (container.0, now));
        }
    }

    /// The clock of a node was set: how long its addresses have rested is not known any more after its next start.
    pub fn forget_rests(&mut self, n: usize) {
        self.rested.retain(|_, (at, _)| *at != n);
    }

    /// The oldest containers of a node.
    pub fn containers(&self, n: usize, most: usize) -> Vec<Container> {
        let of = self.by_container.keys().filter(|(at, _)| *at == n);
        of.take(most).cloned().collect()
    }

    /// A node started from its disk: what it had answered is there.
    ///
    /// # Errors
    /// What is not.
    pub fn started(&mut self, net: &Net, n: usize) -> Result<(), String> {
        let leases: BTreeMap<_, _> = net.nodes[n].core().leases().into_iter().collect();
        for ((_, id), offset) in self.of(n) {
            if leases.get(id) != Some(offset) {
                let name = &net.nodes[n].name;
                return Err(format!(
                    "{name} forgot that {id} has {offset} when it crashed"
                ));
            }
        }
        Ok(())
    }

    fn of(&self, n: usize) -> impl Iterator<Item = (&Container, &u32)> {
        self.by_container
            .iter()
            .filter(move |((at, _), _)| *at == n)
    }

    /// The containers of a node are gone, and what it will say of them is not to be believed.
    pub fn empty(&mut self, n: usize) {
        let gone: Vec<Container> = self.of(n).map(|(container, _)| container.clone()).collect();
        gone.iter().for_each(|container| self.asks(container));
        self.unsure.retain(|(at, _)| *at != n);
        self.forget_rests(n);
    }

    /// A node was put back to an old disk, or is one of two with the same.
    pub fn doubt(&mut self, n: usize) {
        self.doubtful.insert(n);
        self.doubted = true;
    }

    /// A node had time to be told what it is.
    pub fn trust(&mut self, net: &mut Net, n: usize) {
        if self.doubtful.remove(&n) {
            if self.doubtful.is_empty() {
                self.suspect.clear();
            }
            self.owned.iter_mut().for_each(Vec::clear);
            net.nodes.iter_mut().for_each(|node| node.changed = true);
        }
    }

    /// Nodes that may not know what they are.
    pub fn doubtful(&self) -> Vec<usize> {
        self.doubtful.iter().copied().collect()
    }

    /// An admin said that a node is removed, or the node that it leaves.
    pub fn removed(&mut self, n: usize) {
        self.removed.insert(n);
    }

    /// Whether a node was removed or left.
    pub fn is_removed(&self, n: usize) -> bool {
        self.removed.contains(&n)
    }

    /// A node that was removed begins anew, with another identity.
    pub fn reborn(&mut self, n: usize) {
        self.removed.remove(&n);
        self.ids.retain(|_, place| *place != n);
    }

    /// How many addresses have an owner.
    pub fn total(&self) -> u64 {
        let living = self.owned.iter().enumerate();
        let living = living.filter(|(n, _)| !self.removed.contains(n));
        let blocks = living.flat_map(|(_, blocks)| blocks);
        blocks.map(|block| u64::from(block.size())).sum()
    }

    /// At the end: no node has journalled an address that nobody can name.
    ///
    /// # Errors
    /// The first one.
    pub fn check_leases(&self, net: &Net, n: usize) -> Result<(), String> {
        for (id, offset) in net.nodes[n].core().leases() {
            let container = (n, id);
            let known = self.by_container.get(&container) == Some(&offset);
            if !known && !self.unsure.contains(&container) {
                let name = &net.nodes[n].name;
                return Err(format!(
                    "{name} keeps address {offset} for {}, which is gone",
                    container.1
                ));
            }
        }
        Ok(())
    }
}
