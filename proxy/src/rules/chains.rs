//! The chains that Services share: who picks among how many, and who may come in from where.
//!
//! A chain's name says all that is in it, so one that is there is right, whoever needed it first.

use std::fmt::Write;

use blake2::{Blake2s256, Digest};
use ipnet::IpNet;
use weave_linux::nft::{Batch, Chain, Field, Rule, Table, Value};

use super::maps::{At, Map, Maps, Use, daddr, digit, front_fields, saddr};
use crate::facts::Facts;
use crate::table::Family;

/// A shared chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Shared {
    /// Picks among `n`.
    Pick {
        at: At,
        family: Family,
        is: Use,
        n: usize,
    },
    /// Picks among `far` for containers and the host, among `near` for those from outside.
    Mixed {
        at: At,
        family: Family,
        far: usize,
        near: usize,
    },
    /// Lets in from these ranges only.
    From { family: Family, ranges: Vec<IpNet> },
}

impl Shared {
    pub(super) fn name(&self) -> String {
        match self {
            Self::Pick { at, family, is, n } => {
                let is = if *is == Use::Near { "near" } else { "pick" };
                format!("{is}{}{}-{n}", digit(*family), suffix(*at))
            }
            Self::Mixed {
                at,
                family,
                far,
                near,
            } => format!("mixed{}{}-{far}-{near}", digit(*family), suffix(*at)),
            Self::From { family, ranges } => {
                let mut text = String::new();
                for range in ranges {
                    let _ = write!(text, "{range} ");
                }
                format!("from{}-{}", digit(*family), hash(&text))
            }
        }
    }

    /// The chains it leads to, itself last.
    pub(super) fn with_others(self) -> Vec<Self> {
        let mut chains = Vec::new();
        if let Self::Mixed {
            at,
            family,
            far,
            near,
        } = self
        {
            for (is, n) in [(Use::Picks, far), (Use::Near, near)] {
                if n > 0 {
                    chains.push(Self::Pick { at, family, is, n });
                }
            }
        }
        chains.push(self);
        chains
    }

    pub(super) fn make(&self, batch: &mut Batch, table: &Table, maps: &Maps, facts: &Facts) {
        let name = self.name();
        batch.add_chain(table, &Chain::regular(&name));
        for rule in self.rules(maps, facts) {
            batch.add_rule(table, &name, &rule);
        }
    }

    fn rules(&self, maps: &Maps, facts: &Facts) -> Vec<Rule> {
        match self {
            Self::Pick { at, family, is, n } => {
                let draw = Field::Random(*n as u32);
                let fields = [front_fields(*at, *family), &[draw]].concat();
                let map = maps.get(Map::new(*is, *at, *family));
                vec![of_family(*family).dnat_map(&fields, map)]
            }
            Self::Mixed {
                at,
                family,
                far,
                near,
            } => {
                let (at, family) = (*at, *family);
                let picks = |is, n| Self::Pick { at, family, is, n }.name();
                let near = (*near > 0).then(|| picks(Use::Near, *near));
                match far {
                    0 => Vec::new(),
                    _ => by_origin(family, facts, &picks(Use::Picks, *far), near.as_deref()),
                }
            }
            Self::From { family, ranges } => {
                let inside = |range: &&IpNet| Family::of(range.addr()) == *family;
                let mut rules: Vec<Rule> = ranges
                    .iter()
                    .filter(inside)
                    .map(|range| Rule::new().inside(saddr(*family), *range).ret())
                    .collect();
                rules.push(of_family(*family).counter().drop());
                rules
            }
        }
    }
}

/// One way for containers and for the host, another for those from outside.
pub(super) fn by_origin(
    family: Family,
    facts: &Facts,
    inside: &str,
    outside: Option<&str>,
) -> Vec<Rule> {
    let mut rules: Vec<Rule> = containers(family, facts)
        .map(|rule| rule.goto(inside))
        .collect();
    rules.push(is_local(of_family(family)).goto(inside));
    rules.extend(outside.map(|outside| of_family(family).goto(outside)));
    rules
}

/// The source is a container's.
pub(super) fn containers(family: Family, facts: &Facts) -> impl Iterator<Item = Rule> {
    let of_family = move |net: &&IpNet| Family::of(net.addr()) == family;
    facts
        .containers
        .iter()
        .filter(of_family)
        .map(move |net| Rule::new().inside(saddr(family), *net))
}

/// The source is this host's.
pub(super) fn is_local(rule: Rule) -> Rule {
    rule.is(Field::SaddrType, Value::Number(Field::LOCAL))
}

/// The packet is of this family.
pub(super) fn of_family(family: Family) -> Rule {
    Rule::new().is(Field::NfProto, value_of(family))
}

/// A family as a packet's [`Field::NfProto`].
pub(super) const fn value_of(family: Family) -> Value {
    match family {
        Family::V4 => Value::IPV4,
        Family::V6 => Value::IPV6,
    }
}

/// The destination is in the set of the node's addresses.
pub(super) fn to_node(rule: Rule, family: Family, maps: &Maps) -> Rule {
    let nodes = maps.get(Map::new(Use::Nodes, At::Address, family));
    rule.lookup(&[daddr(family)], nodes)
}

/// Whether a chain of this name may stay without anything that leads to it.
pub(super) fn is_shared(name: &str) -> bool {
    [
        "pick4", "pick6", "near4", "near6", "mixed4", "mixed6", "from4", "from6",
    ]
    .iter()
    .any(|beginning| name.starts_with(beginning))
}

const fn suffix(at: At) -> &'static str {
    match at {
        At::Address => "",
        At::NodePort => "-port",
    }
}

/// The hash that stands for a text in a name: 32 hex digits of BLAKE2s (RFC 7693), the same over restarts and versions.
/// Texts are other people's, and nobody finds two of one hash to get at another's chain.
pub(super) fn hash(text: &str) -> String {
    let hash: [u8; 32] = Blake2s256::digest(text.as_bytes()).into();
    let half = hash.first_chunk().expect("it has 32 bytes");
    format!("{:032x}", u128::from_be_bytes(*half))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_those_of_the_standard() {
        // Appendix B of RFC 7693.
        assert_eq!(hash("abc"), "508c5e8c327c14e2e1a72ba34eeb452f");
    }

    #[test]
    fn ranges_that_differ_have_chains_that_differ() {
        let from = |ranges: &[&str]| {
            let ranges = ranges.iter().map(|range| range.parse().expect("a range"));
            Shared::From {
                family: Family::V4,
                ranges: ranges.collect(),
            }
            .name()
        };
        let name = from(&["192.0.2.0/24"]);
        assert_ne!(name, from(&["192.0.2.0/25"]));
        assert_eq!(name.len(), "from4-".len() + 32, "{name}");
    }
}
