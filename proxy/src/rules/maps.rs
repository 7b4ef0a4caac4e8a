//! The maps and sets of the table, each once a family.

use std::collections::BTreeMap;

use weave_linux::nft::{Field, Set, Type};

use crate::table::Family;

/// What a map is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Use {
    /// Front → the chain that picks.
    Fronts,
    /// Front and number → whom policy Cluster picks, or whoever else is picked from the only set there is.
    Picks,
    /// Front and number → whom policy Local picks for those from outside.
    Near,
    /// Front → what is done with the source.
    Sources,
    /// Front → what becomes of packets that got no endpoint: refused, dropped, or missed by a change of rules.
    Closed,
    /// Front → the chain of its source ranges.
    Guarded,
    /// Virtual addresses.
    Vips,
    /// Endpoints of this node, as source and destination at once: one that is its own client.
    Loops,
    /// The addresses that take node ports.
    Nodes,
}

/// Which of two kinds of front: an address and a port, or a port of the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum At {
    /// An address of its own.
    Address,
    /// A port of the node's addresses.
    NodePort,
}

/// One map or set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Map {
    pub(super) is: Use,
    pub(super) at: At,
    pub(super) family: Family,
}

impl Map {
    pub(super) const fn new(is: Use, at: At, family: Family) -> Self {
        Self { is, at, family }
    }

    /// All there are.
    fn all() -> impl Iterator<Item = Self> {
        let by_front = [
            Use::Fronts,
            Use::Picks,
            Use::Near,
            Use::Sources,
            Use::Closed,
        ];
        let each = by_front
            .into_iter()
            .flat_map(|is| [At::Address, At::NodePort].map(|at| (is, at)));
        let only = [Use::Guarded, Use::Vips, Use::Loops, Use::Nodes].map(|is| (is, At::Address));
        each.chain(only)
            .flat_map(|(is, at)| [Family::V4, Family::V6].map(|family| Self::new(is, at, family)))
    }

    fn name(self) -> String {
        let word = match self.is {
            Use::Fronts => "fronts",
            Use::Picks => "picks",
            Use::Near => "near",
            Use::Sources => "sources",
            Use::Closed => "closed",
            Use::Guarded => "guarded",
            Use::Vips => "vips",
            Use::Loops => "loops",
            Use::Nodes => "nodes",
        };
        let port = match self.at {
            At::Address => "",
            At::NodePort => "port-",
        };
        format!("{port}{word}{}", digit(self.family))
    }

    fn set(self) -> Set {
        let ip = ip_type(self.family);
        let front: &[Type] = match self.at {
            At::Address => &[ip, Type::Proto, Type::Port],
            At::NodePort => &[Type::Proto, Type::Port],
        };
        match self.is {
            Use::Picks | Use::Near => {
                // The drawn number, as a mark: the plain number has no type that `nft` 1.0 can print in a key.
                Set::new(self.name(), &[front, &[Type::Mark]].concat()).values(&[ip, Type::Port])
            }
            Use::Vips | Use::Nodes => Set::new(self.name(), &[ip]),
            Use::Loops => Set::new(self.name(), &[ip, ip]),
            _ => Set::new(self.name(), front).verdicts(),
        }
    }
}

/// Every map by what it is for.
#[derive(Debug)]
pub(super) struct Maps(BTreeMap<Map, Set>);

impl Maps {
    pub(super) fn new() -> Self {
        Self(Map::all().map(|map| (map, map.set())).collect())
    }

    pub(super) fn get(&self, map: Map) -> &Set {
        self.0.get(&map).expect("every map there is was made")
    }

    pub(super) fn sets(&self) -> impl Iterator<Item = &Set> {
        self.0.values()
    }
}

/// The fields of a packet that are its front.
pub(super) const fn front_fields(at: At, family: Family) -> &'static [Field] {
    match (at, family) {
        (At::Address, Family::V4) => &[Field::Ip4Daddr, Field::L4Proto, Field::Dport],
        (At::Address, Family::V6) => &[Field::Ip6Daddr, Field::L4Proto, Field::Dport],
        (At::NodePort, _) => &[Field::L4Proto, Field::Dport],
    }
}

/// The field of a packet's destination.
pub(super) const fn daddr(family: Family) -> Field {
    match family {
        Family::V4 => Field::Ip4Daddr,
        Family::V6 => Field::Ip6Daddr,
    }
}

/// The field of a packet's source.
pub(super) const fn saddr(family: Family) -> Field {
    match family {
        Family::V4 => Field::Ip4Saddr,
        Family::V6 => Field::Ip6Saddr,
    }
}

/// The type of the family's addresses.
pub(super) const fn ip_type(family: Family) -> Type {
    match family {
        Family::V4 => Type::Ipv4,
        Family::V6 => Type::Ipv6,
    }
}

/// The family in names.
pub(super) const fn digit(family: Family) -> u8 {
    match family {
        Family::V4 => 4,
        Family::V6 => 6,
    }
}
