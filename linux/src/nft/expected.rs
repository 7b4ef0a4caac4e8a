//! What a batch makes, and whether the kernel still has it: chains, the number of rules in each, and the elements of sets.
//!
//! For tables that change by elements, so that no stamp of the whole could be right. Elements are not compared one by
//! one: of each set the sum of their hashes is, which is the same in any order. Sets that rules fill are left out, and so
//! are anonymous ones, which nobody can change.

use std::collections::BTreeMap;

use super::batch::{Batch, Made, NEWSET, NEWSETELEM, NFTA_SET_ELEM_LIST_ELEMENTS};
use super::set::{
    NFT_SET_EVAL, NFTA_SET_ELEM_DATA, NFTA_SET_ELEM_KEY, NFTA_SET_FLAGS, NFTA_SET_NAME,
};
use super::socket::{Error, Socket};
use super::table::Table;
use super::wire::{Attributes, Message};

/// What should be there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expected {
    rules: BTreeMap<String, usize>,
    /// By set: how many elements, and the sum of their hashes.
    sets: BTreeMap<String, (usize, u64)>,
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// All that should be there, and these chains as well.
    Right {
        /// Chains that nobody expected.
        more: Vec<String>,
    },
    /// Something is missing or other than it should be.
    Wrong,
}

impl Expected {
    /// What a batch makes that begins with a new table.
    pub fn of(batch: &Batch) -> Self {
        let mut expected = Self::default();
        for made in batch.made() {
            match made {
                Made::Chain(chain) => {
                    expected.rules.entry(chain).or_insert(0);
                }
                Made::Rule(chain) => *expected.rules.entry(chain).or_insert(0) += 1,
            }
        }
        for message in batch.messages() {
            let Some(name) = message.attributes().text(NFTA_SET_NAME) else {
                continue;
            };
            match message.kind & 0xff {
                NEWSET if is_compared(&message, &name) => {
                    expected.sets.entry(name).or_insert((0, 0));
                }
                NEWSETELEM => {
                    if let Some(sum) = expected.sets.get_mut(&name) {
                        hashes(message).into_iter().for_each(|hash| add(sum, hash));
                    }
                }
                _ => {}
            }
        }
        expected
    }

    /// Looks, and changes nothing.
    ///
    /// # Errors
    /// When the kernel's rule sets cannot be read.
    pub fn look(&self, socket: &Socket, table: &Table) -> Result<Seen, Error> {
        if socket.table(table)?.is_none() {
            return Ok(Seen::Wrong);
        }
        let mut found: BTreeMap<String, usize> = socket
            .chains(table)?
            .into_iter()
            .map(|chain| (chain.name, 0))
            .collect();
        for rule in socket.rules(table)? {
            *found.entry(rule.chain).or_insert(0) += 1;
        }
        for (chain, rules) in &self.rules {
            if found.remove(chain) != Some(*rules) {
                return Ok(Seen::Wrong);
            }
        }
        for (set, expected) in &self.sets {
            let mut sum = (0, 0);
            for hash in socket.elements(table, set, hashes)? {
                add(&mut sum, hash);
            }
            if sum != *expected {
                return Ok(Seen::Wrong);
            }
        }
        let more = found.into_keys().collect();
        Ok(Seen::Right { more })
    }
}

fn is_compared(message: &Message<'_>, name: &str) -> bool {
    let flags = message.attributes().u32(NFTA_SET_FLAGS).unwrap_or(0);
    flags & NFT_SET_EVAL == 0 && !name.starts_with("__")
}

fn add(sum: &mut (usize, u64), hash: u64) {
    *sum = (sum.0 + 1, sum.1.wrapping_add(hash));
}

/// A hash of the key and the data of each element in a message.
fn hashes(message: Message<'_>) -> Vec<u64> {
    let list = message.attributes().find(NFTA_SET_ELEM_LIST_ELEMENTS);
    let elements = Attributes(list.unwrap_or_default());
    elements
        .map(|(_, element)| {
            let element = Attributes(element);
            let hash = hash(element.find(NFTA_SET_ELEM_KEY), SEED);
            hash_of_data(element.find(NFTA_SET_ELEM_DATA), hash)
        })
        .collect()
}

/// `NFTA_DATA_VALUE` (1) as it is; of `NFTA_DATA_VERDICT` (2) the code (1) and the chain (2).
fn hash_of_data(data: Option<&[u8]>, seed: u64) -> u64 {
    let Some(data) = data.map(Attributes) else {
        return seed;
    };
    match data.find(2).map(Attributes) {
        Some(verdict) => {
            let chain = verdict.text(2).unwrap_or_default();
            fnv1a(
                chain.as_bytes(),
                fnv1a(verdict.find(1).unwrap_or_default(), seed),
            )
        }
        None => fnv1a(data.find(1).unwrap_or_default(), seed),
    }
}

fn hash(key: Option<&[u8]>, seed: u64) -> u64 {
    let value = key.and_then(|key| Attributes(key).find(1));
    fnv1a(value.unwrap_or_default(), seed)
}

fn fnv1a(bytes: &[u8], seed: u64) -> u64 {
    bytes.iter().fold(seed, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

const SEED: u64 = 0xcbf2_9ce4_8422_2325;

#[cfg(test)]
mod tests {
    use super::super::{Chain, Element, Rule, Set, Type, Value, Verdict};
    use super::*;

    fn expected(ports: &[u16]) -> Expected {
        let (table, set) = (Table::inet("t"), Set::new("s", &[Type::Port]).verdicts());
        let mut batch = Batch::new();
        batch.replace_table(&table);
        batch.add_chain(&table, &Chain::regular("a"));
        batch.add_set(&table, &set);
        batch.add_set(&table, &Set::new("who", &[Type::Ipv4]).learned(9, 10));
        let element = |port: &u16| Element::new([Value::Port(*port)]).verdict(Verdict::goto("a"));
        batch.add_elements(&table, &set, ports.iter().map(element));
        batch.add_rule(&table, "a", &Rule::new().accept());
        Expected::of(&batch)
    }

    #[test]
    fn elements_count_in_any_order() {
        assert_eq!(expected(&[1, 2, 3]), expected(&[3, 1, 2]));
        assert_ne!(expected(&[1, 2]), expected(&[1, 3]));
        assert_eq!(
            expected(&[1]).sets.len(),
            1,
            "what rules fill is not compared"
        );
        assert_eq!(expected(&[]).rules, BTreeMap::from([("a".to_owned(), 1)]));
    }
}
