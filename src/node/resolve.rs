//! Which networks there are, out of what all members tell: pure, and the same on every node that heard the same.
//!
//! A network is there as long as anybody declares it: the node it was made on, and every node that has containers in
//! it. So one that was removed while somebody attached a container elsewhere goes with that container, and nobody finds
//! itself in the default network all of a sudden. Of two that cannot both be (one name, one number, overlapping ranges;
//! made at once, or while the cluster was in two parts) the older one is, whoever made it; the other one is *lost*.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use weave_model::{
    Block, ClusterRange, DeclaredNetwork, LONGEST_PREFIX, MAX_NETWORKS, NetworkName, NodeId,
    RemovedNetwork, Sheet,
};

/// What a node keeps of networks over a restart.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Records {
    /// Those that were made here.
    pub(super) made: Vec<DeclaredNetwork>,
    /// Those that were removed here, until nobody declares them any more.
    pub(super) removed: Vec<RemovedNetwork>,
    /// All that there were at the last look, for as long as the others have not been heard.
    pub(super) known: Resolved,
}

/// The networks besides the default one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Resolved {
    /// By name.
    pub(super) networks: BTreeMap<NetworkName, Network>,
    /// Those that cannot be, and the name of the one that each gave way to.
    pub(super) lost: Vec<(DeclaredNetwork, NetworkName)>,
}

/// A network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Network {
    /// As it was declared.
    pub(super) declared: DeclaredNetwork,
    /// It was removed, and goes when nobody has containers in it.
    pub(super) going: bool,
}

impl Resolved {
    /// Puts together what members tell.
    pub(super) fn of<'a>(
        range: &ClusterRange,
        sheets: impl Iterator<Item = &'a Sheet> + Clone,
    ) -> Self {
        let removed: BTreeSet<&RemovedNetwork> = sheets
            .clone()
            .flat_map(|sheet| &sheet.removed_networks)
            .collect();
        let mut declared: Vec<&DeclaredNetwork> =
            sheets.flat_map(|sheet| &sheet.networks).collect();
        declared.sort_by_key(|one| (one.stamp, &one.name, one.maker, one.number, one.range));
        declared.dedup();
        let mut found = Self::default();
        for one in declared {
            let Some(block) = valid(range, one) else {
                continue;
            };
            if let Some(winner) = found.in_the_way(range, one, block) {
                found.lost.push((one.clone(), winner));
            } else if found.networks.len() < MAX_NETWORKS {
                let network = Network {
                    declared: one.clone(),
                    going: removed.iter().any(|removed| one.is(removed)),
                };
                found.networks.insert(one.name.clone(), network);
            }
        }
        found
    }

    /// The network that cannot be there together with another one.
    fn in_the_way(
        &self,
        range: &ClusterRange,
        one: &DeclaredNetwork,
        block: Block,
    ) -> Option<NetworkName> {
        let mut others = self.networks.values().map(|other| &other.declared);
        let other = others.find(|other| {
            let overlaps = range
                .block(other.range)
                .is_some_and(|other| other.overlaps(block));
            other.name == one.name || other.number == one.number || overlaps
        })?;
        Some(other.name.clone())
    }

    /// The networks as they were declared, by name.
    pub(super) fn declared(&self) -> impl Iterator<Item = &DeclaredNetwork> {
        self.networks.values().map(|network| &network.declared)
    }

    /// Those that are apart from others: all but the pools of floating addresses.
    pub(super) fn apart(&self) -> impl Iterator<Item = &DeclaredNetwork> {
        self.declared().filter(|one| !one.spec.floating)
    }

    /// The pools.
    pub(super) fn pools(&self) -> impl Iterator<Item = &DeclaredNetwork> {
        self.declared().filter(|one| one.spec.floating)
    }

    /// Their ranges, as blocks.
    pub(super) fn blocks(&self, range: &ClusterRange) -> Vec<Block> {
        let blocks = self.declared().map(|one| range.block(one.range));
        blocks.flatten().collect()
    }
}

/// The block of a network that could be, whatever others there are.
fn valid(range: &ClusterRange, one: &DeclaredNetwork) -> Option<Block> {
    let block = range.block(one.range)?;
    let named = !one.name.is_default() && one.number > 0;
    (named && fits(range, block)).then_some(block)
}

/// Whether a block can be a network's: it has room, and leaves the default network its own special addresses.
pub(super) fn fits(range: &ClusterRange, block: Block) -> bool {
    let special = block.contains(1) || block.contains(range.size() - 1);
    block.bits() >= 32 - LONGEST_PREFIX && !special
}

impl Records {
    /// What this node tells: what it made, and what it has containers in.
    pub(super) fn told(&self, in_use: impl Fn(&NetworkName) -> bool) -> Vec<DeclaredNetwork> {
        let held = self.known.declared().filter(|one| in_use(&one.name));
        let mut told: Vec<DeclaredNetwork> = self.made.iter().chain(held).cloned().collect();
        told.sort_by(|a, b| (&a.name, a.stamp).cmp(&(&b.name, b.stamp)));
        told.dedup();
        told
    }

    /// What these records become by what the others tell: a network that was removed elsewhere is struck out, one whose
    /// maker is a member no more is taken on by all, and a removal that everybody heard is forgotten.
    pub(super) fn settled(
        &self,
        range: &ClusterRange,
        members: &BTreeMap<NodeId, &Sheet>,
        (me, own): (NodeId, &Sheet),
    ) -> Self {
        let others = members.values().copied();
        let removed = |one: &DeclaredNetwork| {
            let mut said = others.clone().flat_map(|sheet| &sheet.removed_networks);
            said.any(|removed| one.is(removed)) || self.removed.iter().any(|said| one.is(said))
        };
        let orphaned = self.known.declared().filter(|one| {
            let here = members.contains_key(&one.maker) || one.maker == me;
            !here && !removed(one) && !self.made.contains(one)
        });
        let mut made: Vec<DeclaredNetwork> = self.made.iter().chain(orphaned).cloned().collect();
        made.retain(|one| !removed(one));
        let declared = |removed: &&RemovedNetwork| {
            let mut all = others.clone().flat_map(|sheet| &sheet.networks);
            all.any(|one| one.is(removed)) || own.networks.iter().any(|one| one.is(removed))
        };
        let still: Vec<RemovedNetwork> = self.removed.iter().filter(declared).cloned().collect();
        let known = Resolved::of(range, others.clone().chain([own]));
        Self {
            made,
            removed: still,
            known,
        }
    }
}

#[cfg(test)]
mod tests {
    use weave_model::NetworkSpec;

    use super::*;

    fn range() -> ClusterRange {
        ClusterRange::new(
            "10.32.0.0/12".parse().unwrap(),
            "fd00::/48".parse().unwrap(),
        )
        .unwrap()
    }

    fn node(byte: u8) -> NodeId {
        NodeId::from_bytes([byte; 32])
    }

    fn network(name: &str, stamp: u64, net: &str) -> DeclaredNetwork {
        DeclaredNetwork {
            name: name.parse().unwrap(),
            stamp,
            maker: node(1),
            number: stamp as u16,
            range: net.parse().unwrap(),
            spec: NetworkSpec::default(),
        }
    }

    fn sheet(networks: &[DeclaredNetwork], removed: &[&DeclaredNetwork]) -> Sheet {
        let removed = removed.iter().map(|one| RemovedNetwork {
            name: one.name.clone(),
            stamp: one.stamp,
        });
        Sheet {
            networks: networks.to_vec(),
            removed_networks: removed.collect(),
            ..Sheet::default()
        }
    }

    fn names(resolved: &Resolved) -> Vec<&str> {
        resolved.networks.keys().map(NetworkName::as_str).collect()
    }

    #[test]
    fn the_older_of_two_that_cannot_both_be_wins_in_any_order() {
        let old = network("blue", 5, "10.33.0.0/16");
        let rivals = [
            network("blue", 6, "10.34.0.0/16"),
            network("red", 7, "10.33.8.0/24"),
            DeclaredNetwork {
                number: 5,
                ..network("green", 8, "10.35.0.0/16")
            },
        ];
        for rival in rivals {
            let sheets = [
                sheet(std::slice::from_ref(&rival), &[]),
                sheet(std::slice::from_ref(&old), &[]),
            ];
            for sheets in [sheets.clone(), [sheets[1].clone(), sheets[0].clone()]] {
                let found = Resolved::of(&range(), sheets.iter());
                assert_eq!(names(&found), ["blue"]);
                assert_eq!(found.networks[&old.name].declared, old);
                assert_eq!(found.lost, [(rival.clone(), old.name.clone())]);
            }
        }
    }

    #[test]
    fn what_cannot_be_a_network_is_left() {
        for net in [
            "10.32.0.0/16",
            "10.47.0.0/16",
            "10.33.0.0/27",
            "10.64.0.0/16",
            "10.32.0.0/12",
        ] {
            let sheet = sheet(&[network("blue", 5, net)], &[]);
            assert_eq!(
                names(&Resolved::of(&range(), [&sheet].into_iter())),
                [""; 0],
                "{net}"
            );
        }
    }

    #[test]
    fn a_removed_one_is_there_while_somebody_has_containers_in_it() {
        let blue = network("blue", 5, "10.33.0.0/16");
        let maker = Records {
            made: vec![blue.clone()],
            ..Records::default()
        };
        let remover = sheet(&[], &[&blue]);
        let members = BTreeMap::from([(node(2), &remover)]);
        let own = |records: &Records, used| sheet(&records.told(|_| used), &[]);
        let settled = |records: &Records, used| {
            records.settled(&range(), &members, (node(1), &own(records, used)))
        };
        let before = settled(&maker, false);
        assert!(before.known.networks[&blue.name].going && before.made.is_empty());
        // Nobody is in it: it goes with the maker's next sheet, and with that the removal's purpose.
        let after = settled(&before, false);
        assert_eq!(names(&after.known), [""; 0]);
        // Somebody is: it stays.
        let used = settled(&before, true);
        assert!(used.known.networks[&blue.name].going);
        let said = Records {
            removed: remover.removed_networks.clone(),
            ..Records::default()
        };
        let holder = sheet(&[blue], &[]);
        let empty = Sheet::default();
        let heard = |sheet: &Sheet| {
            said.settled(
                &range(),
                &BTreeMap::from([(node(1), sheet)]),
                (node(2), &empty),
            )
        };
        assert_eq!(
            heard(&holder).removed.len(),
            1,
            "it is said as long as it is declared"
        );
        assert_eq!(heard(&empty).removed, []);
    }

    #[test]
    fn a_network_outlives_the_node_that_made_it() {
        let blue = network("blue", 5, "10.33.0.0/16");
        let (me, records) = (node(3), Records::default());
        let (empty, told) = (Sheet::default(), sheet(std::slice::from_ref(&blue), &[]));
        let with_maker = BTreeMap::from([(node(1), &told), (node(2), &empty)]);
        let records = records.settled(&range(), &with_maker, (me, &empty));
        assert_eq!(
            (names(&records.known), records.made.len()),
            (vec!["blue"], 0)
        );
        let without = BTreeMap::from([(node(2), &empty)]);
        let records = records.settled(&range(), &without, (me, &empty));
        assert_eq!(records.made, [blue]);
        // Its maker struck it out while it is a member: that was a removal.
        let silent = BTreeMap::from([(node(1), &empty)]);
        let heard = Records::default()
            .settled(&range(), &with_maker, (me, &empty))
            .settled(&range(), &silent, (me, &empty));
        assert_eq!((heard.made.len(), heard.known.networks.len()), (0, 0));
    }
}
