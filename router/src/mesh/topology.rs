//! Who keeps a session with whom, as every member derives it from what all of them know.
//!
//! Up to [`FULL_MESH`] members each has a session with each. In a larger cluster that would be quadratic, so each keeps
//! sessions with a few *neighbours* and makes others when packets ask for them. An identity is a hash, so its first 32
//! bytes are four independent random numbers: by each of them the members stand in a ring, and a member's neighbours are
//! the ones before and behind it in each ring. Four random rings laid over one another are an expander: any two members
//! are a few steps apart (four or five among 1,000), and half of the members may be dead without the rest falling apart.
//! A member that comes or goes changes the neighbours of at most eight others, and nobody has to agree on anything: all
//! that goes in are the members' ids and what stands in their signed records.
//!
//! *Who is lost.* A member that cannot reach a neighbour says so in its record, walks past it in the ring and takes the
//! next one as well, at most [`WALK`] steps. So the links between members follow from the records: a pair is linked if one
//! of them walks to the other and neither says that it lost the other. Whoever can be reached from here over such links
//! is taken to be alive, without a ping ever going there; a member that died, or a whole part of the cluster behind a
//! cut, hangs on no link any more. In good times the records say nothing, and nothing is told.
//!
//! *Trees.* What is for everybody goes along the tree of shortest ways from its sender over the same links.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use weave_model::NodeId;

use crate::wire::{END, end_of};

/// The most members, this one included, that all have sessions with one another.
pub const FULL_MESH: usize = 16;
/// How many rings there are.
const RINGS: usize = 4;
/// The most members that are asked in each direction of a ring until one is not lost.
const WALK: usize = 8;
/// The most members that one says it lost.
pub const MAX_LOST: usize = 2 * RINGS * WALK;

/// Of whom a packet for everybody comes at one member, and to whom it goes on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Branch {
    /// Who hands it to this member; `None` for the sender itself and for one that no link leads to.
    pub parent: Option<NodeId>,
    /// To whom this member hands it on, ascending.
    pub children: Vec<NodeId>,
}

/// The members and the links between them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Topology {
    /// Ascending; everything else names members by their place here.
    ids: Vec<NodeId>,
    /// The members in the order of each ring, and where in it each stands.
    rings: [(Vec<usize>, Vec<usize>); RINGS],
    lost: BTreeMap<usize, BTreeSet<usize>>,
    /// Whom each is linked with, ascending; empty in a full mesh.
    links: Vec<Vec<usize>>,
}

/// The number by which a member stands in a ring.
fn key(id: &NodeId, ring: usize) -> &[u8] {
    &id.as_bytes()[8 * ring..8 * (ring + 1)]
}

impl Topology {
    /// The topology of these members, of each the ones that it says it lost.
    pub fn new<'a>(members: impl IntoIterator<Item = (NodeId, &'a [[u8; END]])>) -> Self {
        let members: BTreeMap<NodeId, &[[u8; END]]> = members.into_iter().collect();
        let mut new = Self {
            ids: members.keys().copied().collect(),
            ..Self::default()
        };
        if new.is_full() {
            return new;
        }
        for (place, ends) in members.values().enumerate() {
            let lost: BTreeSet<usize> = ends.iter().filter_map(|end| new.named(end)).collect();
            if !lost.is_empty() {
                new.lost.insert(place, lost);
            }
        }
        new.rings = std::array::from_fn(|ring| {
            let mut order: Vec<usize> = (0..new.ids.len()).collect();
            order.sort_by_key(|place| key(&new.ids[*place], ring));
            let mut stands = vec![0; order.len()];
            for (at, place) in order.iter().enumerate() {
                stands[*place] = at;
            }
            (order, stands)
        });
        new.link();
        new
    }

    fn link(&mut self) {
        let mut links = vec![BTreeSet::new(); self.ids.len()];
        for a in 0..self.ids.len() {
            for b in self.walk(a) {
                if !self.is_lost(a, b) && !self.is_lost(b, a) {
                    links[a].insert(b);
                    links[b].insert(a);
                }
            }
        }
        self.links = links.into_iter().map(Vec::from_iter).collect();
    }

    /// Whether there are so few members that each has a session with each.
    pub fn is_full(&self) -> bool {
        self.ids.len() <= FULL_MESH
    }

    fn place(&self, id: NodeId) -> Option<usize> {
        self.ids.binary_search(&id).ok()
    }

    fn named(&self, end: &[u8; END]) -> Option<usize> {
        self.ids.binary_search_by(|id| end_of(id).cmp(end)).ok()
    }

    fn is_lost(&self, by: usize, whom: usize) -> bool {
        let lost = self.lost.get(&by);
        lost.is_some_and(|lost| lost.contains(&whom))
    }

    /// Whom a member should have sessions with: in each direction of each ring the next one that it did not lose, and
    /// those on the way there.
    fn walk(&self, from: usize) -> BTreeSet<usize> {
        let mut met = BTreeSet::new();
        for (order, stands) in &self.rings {
            let (at, count) = (stands[from], order.len());
            let steps = WALK.min(count - 1);
            let mut walk = |next: &dyn Fn(usize) -> usize| {
                for step in 1..=steps {
                    let whom = order[next(step)];
                    met.insert(whom);
                    if !self.is_lost(from, whom) {
                        break;
                    }
                }
            };
            walk(&|step| (at + step) % count);
            walk(&|step| (at + count - step) % count);
        }
        met
    }

    /// Whom a member should have sessions with, lost or not.
    pub fn neighbours(&self, of: NodeId) -> BTreeSet<NodeId> {
        match self.place(of) {
            _ if self.is_full() => self.ids.iter().copied().filter(|id| *id != of).collect(),
            Some(place) => self
                .walk(place)
                .into_iter()
                .map(|at| self.ids[at])
                .collect(),
            None => BTreeSet::new(),
        }
    }

    /// Whom a member is linked with, ascending.
    pub fn linked(&self, with: NodeId) -> Vec<NodeId> {
        match self.place(with) {
            _ if self.is_full() => self.ids.iter().copied().filter(|id| *id != with).collect(),
            Some(place) => self.links[place].iter().map(|at| self.ids[*at]).collect(),
            None => Vec::new(),
        }
    }

    /// Who can be reached over links by one that has sessions with `first`, these included.
    pub fn reached(&self, first: impl IntoIterator<Item = NodeId>) -> BTreeSet<NodeId> {
        let first = first.into_iter().filter_map(|id| self.place(id));
        let mut seen: BTreeSet<usize> = first.collect();
        let mut next = Vec::from_iter(seen.iter().copied());
        while let Some(at) = next.pop() {
            let links = self.links.get(at).into_iter().flatten();
            next.extend(links.filter(|other| seen.insert(**other)));
        }
        seen.into_iter().map(|at| self.ids[at]).collect()
    }

    /// A member's part in the tree by which packets of `root` come to everybody.
    pub fn branch(&self, root: NodeId, of: NodeId) -> Branch {
        if self.is_full() {
            let children = if root == of {
                self.linked(of)
            } else {
                Vec::new()
            };
            let parent = (root != of).then_some(root);
            return Branch { parent, children };
        }
        let (Some(root), Some(me)) = (self.place(root), self.place(of)) else {
            return Branch::default();
        };
        let parents = self.parents(root);
        let children = self.links[me].iter().filter(|at| parents[**at] == Some(me));
        Branch {
            parent: parents[me].filter(|_| me != root).map(|at| self.ids[at]),
            children: children.map(|at| self.ids[*at]).collect(),
        }
    }

    /// Of each member who hands it packets of `root`: the nearest of those that are nearest to the root, found breadth
    /// first. The root's is itself.
    fn parents(&self, root: usize) -> Vec<Option<usize>> {
        let mut parents = vec![None; self.ids.len()];
        parents[root] = Some(root);
        let mut next = VecDeque::from([root]);
        while let Some(at) = next.pop_front() {
            for other in &self.links[at] {
                if parents[*other].is_none() {
                    parents[*other] = Some(at);
                    next.push_back(*other);
                }
            }
        }
        // The root has no child that is itself.
        parents[root] = None;
        parents
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    fn ids(count: usize) -> Vec<NodeId> {
        let mut rng = StdRng::seed_from_u64(7);
        let mut id = || {
            let mut bytes = [0; 32];
            rng.fill_bytes(&mut bytes);
            NodeId::from_bytes(bytes)
        };
        (0..count).map(|_| id()).collect()
    }

    /// The members, of whom each of the living says the dead that it should have a session with.
    fn with_dead(ids: &[NodeId], dead: &BTreeSet<NodeId>) -> Topology {
        let mut lost: BTreeMap<NodeId, Vec<[u8; END]>> =
            ids.iter().map(|id| (*id, Vec::new())).collect();
        loop {
            let all = lost.iter().map(|(id, lost)| (*id, &lost[..]));
            let topology = Topology::new(all);
            let before = lost.clone();
            for (id, lost) in lost.iter_mut().filter(|(id, _)| !dead.contains(id)) {
                let met = topology.neighbours(*id);
                *lost = met.intersection(dead).map(end_of).collect();
            }
            if lost == before {
                return topology;
            }
        }
    }

    #[test]
    fn few_have_sessions_with_all_and_many_with_eight() {
        let none: &[[u8; END]] = &[];
        let of = |count| Topology::new(ids(count).into_iter().map(|id| (id, none)));
        let few = of(FULL_MESH);
        assert!(
            ids(FULL_MESH)
                .into_iter()
                .all(|id| few.neighbours(id).len() == FULL_MESH - 1)
        );
        let many = of(1000);
        for id in ids(1000) {
            let mine = many.neighbours(id);
            assert!((6..=8).contains(&mine.len()), "{}", mine.len());
            assert!(
                mine.iter()
                    .all(|other| many.neighbours(*other).contains(&id))
            );
            assert_eq!(many.linked(id), Vec::from_iter(mine));
        }
    }

    #[test]
    fn a_newcomer_changes_the_neighbours_of_eight() {
        let none: &[[u8; END]] = &[];
        let all = ids(301);
        let before = Topology::new(all[..300].iter().map(|id| (*id, none)));
        let after = Topology::new(all.iter().map(|id| (*id, none)));
        let changed = all[..300]
            .iter()
            .filter(|id| before.neighbours(**id) != after.neighbours(**id));
        assert!(changed.count() <= 8);
    }

    #[test]
    fn the_living_reach_the_living_and_nobody_else() {
        let all = ids(400);
        for share in [10, 40, 120, 200] {
            let dead: BTreeSet<NodeId> = all[..share].iter().copied().collect();
            let topology = with_dead(&all, &dead);
            let me = all[399];
            let first = topology.linked(me);
            assert!(first.iter().all(|id| !dead.contains(id)));
            let reached = topology.reached(first);
            let living: BTreeSet<NodeId> = all[share..].iter().copied().collect();
            assert_eq!(reached, living, "{share} of 400 dead");
        }
    }

    #[test]
    fn a_tree_reaches_all_once_from_everybody() {
        let all = ids(200);
        let dead: BTreeSet<NodeId> = all[..30].iter().copied().collect();
        let topology = with_dead(&all, &dead);
        for root in [all[30], all[77], all[199]] {
            let mut told = BTreeSet::from([root]);
            let mut depth = 0;
            let mut next = vec![root];
            while !next.is_empty() {
                depth += 1;
                let mut after = Vec::new();
                for node in next {
                    for child in topology.branch(root, node).children {
                        assert!(told.insert(child), "told twice");
                        assert_eq!(topology.branch(root, child).parent, Some(node));
                        after.push(child);
                    }
                }
                next = after;
            }
            assert_eq!(told.len(), 170);
            assert!(depth <= 7, "{depth} steps");
        }
    }

    #[test]
    fn a_few_are_a_star() {
        let all = ids(3);
        let none: &[[u8; END]] = &[];
        let topology = Topology::new(all.iter().map(|id| (*id, none)));
        let (root, other) = (all[0], all[1]);
        assert_eq!(topology.branch(root, root).children.len(), 2);
        let leaf = Branch {
            parent: Some(root),
            children: Vec::new(),
        };
        assert_eq!(topology.branch(root, other), leaf);
    }
}
