//! Containers of different networks do not reach each other: the chains that see to it, on the side of who sends and of
//! who receives.
//!
//! Which network an address is in follows from the address alone. One map leads from the source's network to a chain of
//! that network's own, which lets through what stays within it and drops what goes to any other container; a source of
//! the default network has no entry there, so a set of all the others' ranges says where it must not go. That makes two
//! lookups for a packet, however many networks there are; without any there is nothing of all this.
//!
//! | chain | hook, priority | whom it sees |
//! |---|---|---|
//! | `apart` | postrouting, filter −10 | everything that leaves for a container or another node: forwarded, or sent by a relay with a container's address; destinations are translated by then, sources not yet. The host itself reaches its own containers, whichever network they are in |
//! | `apart-in` | input, filter −10 | what containers send to the host's own addresses on the network; answers pass |

use ipnet::{Ipv4Net, Ipv6Net};
use weave_linux::nft::{
    Batch, Chain, Element, Field, Hook, Policy, Rule, Set, Span, Table, Type, Value, Verdict,
    priority,
};
use weave_model::{Block, ClusterRange};

use super::AttachRules;

/// Comment of the rules that count packets from one network to another.
pub const APART: &str = "apart";
/// Comment of the rule that counts packets of internal networks to the outside.
pub const INTERNAL: &str = "internal";

/// A network besides the default one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NetworkRules {
    /// Its addresses.
    pub block: Block,
    /// Whether its containers have no way to the outside.
    pub internal: bool,
}

/// One family's part of the table.
struct Family {
    name: &'static str,
    kind: Type,
    source: Field,
    destination: Field,
}

const FAMILIES: [Family; 2] = [
    Family {
        name: "4",
        kind: Type::Ipv4,
        source: Field::Ip4Saddr,
        destination: Field::Ip4Daddr,
    },
    Family {
        name: "6",
        kind: Type::Ipv6,
        source: Field::Ip6Saddr,
        destination: Field::Ip6Daddr,
    },
];

impl Family {
    fn span(&self, range: &ClusterRange, block: Block) -> Span {
        let (v4, v6): (Ipv4Net, Ipv6Net) = (range.v4_block(block), range.v6_block(block));
        match self.kind {
            Type::Ipv4 => Span::prefix(v4),
            _ => Span::prefix(v6),
        }
    }

    fn inside(&self, rule: Rule, field: Field, range: &ClusterRange, block: Block) -> Rule {
        match self.kind {
            Type::Ipv4 => rule.inside(field, range.v4_block(block)),
            _ => rule.inside(field, range.v6_block(block)),
        }
    }

    fn map(&self) -> Set {
        Set::new(format!("network{}", self.name), &[self.kind])
            .verdicts()
            .interval()
    }

    fn others(&self) -> Set {
        Set::new(format!("networks{}", self.name), &[self.kind]).interval()
    }
}

impl AttachRules {
    /// Adds the chains, if there are networks.
    pub(super) fn apart(&self, batch: &mut Batch, table: &Table) {
        if self.networks.is_empty() {
            return;
        }
        let whole = Block::whole(&self.range);
        batch.add_chain(table, &Chain::regular("between"));
        for network in &self.networks {
            self.network(batch, table, *network, whole);
        }
        for family in FAMILIES {
            self.lookups(batch, table, &family, whole);
        }
        self.hooks(batch, table);
    }

    /// The chain of one network.
    fn network(&self, batch: &mut Batch, table: &Table, network: NetworkRules, whole: Block) {
        let chain = chain_of(network.block);
        batch.add_chain(table, &Chain::regular(&chain));
        for family in FAMILIES {
            for (block, verdict) in [(network.block, Verdict::Accept), (whole, Verdict::Drop)] {
                let to = family.inside(Rule::new(), family.destination, &self.range, block);
                let rule = match verdict {
                    Verdict::Accept => to.accept(),
                    _ => to.counter().drop().comment(APART),
                };
                batch.add_rule(table, &chain, &rule);
            }
        }
    }

    /// Nothing of an internal network leaves by a device that is not ours.
    fn internal(&self, batch: &mut Batch, table: &Table) {
        for network in self.networks.iter().filter(|network| network.internal) {
            for family in FAMILIES {
                let from = family.inside(Rule::new(), family.source, &self.range, network.block);
                let out = self.not_ours(from, Field::Oifname);
                let out = out.is_not(Field::Oifname, Value::name("lo"));
                batch.add_rule(table, "apart", &out.counter().drop().comment(INTERNAL));
            }
        }
    }

    fn lookups(&self, batch: &mut Batch, table: &Table, family: &Family, whole: Block) {
        let (map, others) = (family.map(), family.others());
        batch.add_set(table, &map);
        batch.add_set(table, &others);
        let spans = || {
            let blocks = self.networks.iter().map(|network| network.block);
            blocks.map(|block| (block, family.span(&self.range, block)))
        };
        let chains = spans()
            .map(|(block, span)| Element::new([span]).verdict(Verdict::goto(chain_of(block))));
        batch.add_elements(table, &map, chains);
        batch.add_elements(
            table,
            &others,
            spans().map(|(_, span)| Element::new([span])),
        );
        batch.add_rule(table, "between", &Rule::new().vmap(&[family.source], &map));
        let from = family.inside(Rule::new(), family.source, &self.range, whole);
        let rule = from.lookup(&[family.destination], &others);
        batch.add_rule(table, "between", &rule.counter().drop().comment(APART));
    }

    fn hooks(&self, batch: &mut Batch, table: &Table) {
        let order = priority::FILTER - 10;
        for (name, hook) in [("apart", Hook::Postrouting), ("apart-in", Hook::Input)] {
            batch.add_chain(table, &Chain::filter(name, hook, order, Policy::Accept));
        }
        let own = Rule::new()
            .oifname(&self.any_veth())
            .is(Field::SaddrType, Value::Number(Field::LOCAL));
        batch.add_rule(table, "apart", &own.accept());
        self.internal(batch, table);
        batch.add_rule(table, "apart", &Rule::new().jump("between"));
        let answer = Rule::new().any_bit(Field::CtState, Field::ESTABLISHED);
        batch.add_rule(table, "apart-in", &answer.accept());
        for device in [&self.any_veth(), &self.tun] {
            let from = Rule::new().iifname(device).jump("between");
            batch.add_rule(table, "apart-in", &from);
        }
    }
}

/// The name of a network's chain: it is told by where the network lies, so a new name changes no rule.
fn chain_of(block: Block) -> String {
    format!("network-{:x}", block.first())
}
