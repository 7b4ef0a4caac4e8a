//! The maps and sets of the tables, each once a family.

use std::collections::BTreeMap;

use weave_linux::nft::{Batch, Element, Field, Set, Table, Type};

use crate::table::Family;

/// What a map is for. In this order they are made and, by who removes the table, put out of force: first what refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Use {
    /// Virtual address → refused, as a port that no Service has.
    Vips,
    /// Family → the chain that closes the ranges.
    Ranges,
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
    /// Endpoints of this node, as source and destination at once: one that is its own client.
    Loops,
    /// The addresses that take node ports.
    Nodes,
    /// Fronts that lead to endpoints and are in no range: what is new waits there while the other maps are gone.
    Held,
}

/// An element and where it belongs.
pub(super) type Placed = (Map, Element);

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

    /// All of the table of Services.
    pub(super) fn served() -> impl Iterator<Item = Self> {
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
        let only = [Use::Vips, Use::Ranges, Use::Guarded, Use::Loops, Use::Nodes]
            .map(|is| (is, At::Address));
        of_each_family(each.chain(only))
    }

    /// All of the table that holds connections.
    pub(super) fn anchored() -> impl Iterator<Item = Self> {
        let all = [
            (Use::Nodes, At::Address),
            (Use::Held, At::Address),
            (Use::Held, At::NodePort),
        ];
        of_each_family(all.into_iter())
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
            Use::Ranges => "ranges",
            Use::Loops => "loops",
            Use::Nodes => "nodes",
            Use::Held => "held",
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
            Use::Vips => Set::new(self.name(), &[ip]).verdicts(),
            Use::Ranges => Set::new(self.name(), &[Type::Family]).verdicts(),
            Use::Nodes => Set::new(self.name(), &[ip]),
            Use::Loops => Set::new(self.name(), &[ip, ip]),
            Use::Held => Set::new(self.name(), front),
            _ => Set::new(self.name(), front).verdicts(),
        }
    }
}

fn of_each_family(all: impl Iterator<Item = (Use, At)>) -> impl Iterator<Item = Map> {
    all.flat_map(|(is, at)| [Family::V4, Family::V6].map(|family| Map::new(is, at, family)))
}

/// Every map of a table by what it is for.
#[derive(Debug)]
pub(super) struct Maps(BTreeMap<Map, Set>);

impl Maps {
    pub(super) fn new(all: impl Iterator<Item = Map>) -> Self {
        Self(all.map(|map| (map, map.set())).collect())
    }

    pub(super) fn get(&self, map: Map) -> &Set {
        self.0.get(&map).expect("every map there is was made")
    }

    pub(super) fn sets(&self) -> impl Iterator<Item = &Set> {
        self.0.values()
    }

    /// Deletes and adds what differs.
    pub(super) fn replace(
        &self,
        batch: &mut Batch,
        table: &Table,
        old: impl IntoIterator<Item = Placed>,
        new: impl IntoIterator<Item = Placed>,
    ) {
        let (mut gone, mut come) = (Grouped::default(), Grouped::default());
        let before = keyed(old);
        let mut after = keyed(new);
        for (place, element) in before {
            match after.get(&place) {
                Some(same) if *same == element => drop(after.remove(&place)),
                _ => gone.put(place.0, element),
            }
        }
        for ((map, _), element) in after {
            come.put(map, element);
        }
        for (map, elements) in gone.0 {
            batch.delete_elements(table, self.get(map), elements);
        }
        for (map, elements) in come.0 {
            batch.add_elements(table, self.get(map), elements);
        }
    }
}

#[derive(Default)]
struct Grouped(BTreeMap<Map, Vec<Element>>);

impl Grouped {
    fn put(&mut self, map: Map, element: Element) {
        self.0.entry(map).or_default().push(element);
    }
}

fn keyed(placed: impl IntoIterator<Item = Placed>) -> BTreeMap<(Map, Vec<u8>), Element> {
    let by_key = |(map, element): Placed| ((map, element.key_bytes()), element);
    placed.into_iter().map(by_key).collect()
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
