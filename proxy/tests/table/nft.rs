//! A rule set as batches make it: what the kernel would hold, or its refusal.
//!
//! Not a filter: no packet goes through. It takes the netlink messages of a batch one after another, as `nf_tables_api.c`
//! does, and refuses what that refuses: elements that are there already with other data or are not there at all, chains
//! that are removed while something leads to them, and jumps to chains that nobody made.

use std::collections::BTreeMap;

use weave_linux::nft::Batch;

/// One expression of a rule: its name and its attributes, whose numbers are those of `linux/netfilter/nf_tables.h`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Expression {
    pub(crate) name: String,
    pub(crate) attributes: BTreeMap<u16, Vec<u8>>,
    /// What an anonymous set holds that it looks up in.
    pub(crate) anonymous: Option<Elements>,
}

/// What a map has for a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Data {
    None,
    Value(Vec<u8>),
    Chain(String),
    Verdict(u32),
}

pub(crate) type Elements = BTreeMap<Vec<u8>, Data>;

/// A table's chains and sets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct State {
    pub(crate) chains: BTreeMap<String, Vec<Vec<Expression>>>,
    pub(crate) sets: BTreeMap<String, Elements>,
    /// What each set is like: flags, types, lengths, timeout.
    kinds: BTreeMap<String, BTreeMap<u16, Vec<u8>>>,
}

/// What a batch did to one element of a named set.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Step {
    pub(crate) set: String,
    pub(crate) key: Vec<u8>,
    pub(crate) added: bool,
}

/// What a batch did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Steps {
    pub(crate) elements: Vec<Step>,
    /// Names of sets that were made or removed.
    pub(crate) sets: Vec<String>,
    /// Names of chains that were made, emptied or removed.
    pub(crate) chains: Vec<String>,
}

const NEWTABLE: u16 = 0;
const DELTABLE: u16 = 2;
const NEWCHAIN: u16 = 3;
const DELCHAIN: u16 = 5;
const NEWRULE: u16 = 6;
const DELRULE: u16 = 8;
const NEWSET: u16 = 9;
const DELSET: u16 = 11;
const NEWSETELEM: u16 = 12;
const DELSETELEM: u16 = 14;

/// `NFT_JUMP` and `NFT_GOTO` as the wire has them.
const LEADS: [u32; 2] = [-3_i32 as u32, -4_i32 as u32];

impl State {
    /// Takes a batch, whole.
    ///
    /// # Panics
    /// When the kernel would refuse it.
    pub(crate) fn apply(&mut self, batch: &Batch) -> Steps {
        let mut steps = Steps::default();
        let mut anonymous: BTreeMap<Vec<u8>, Elements> = BTreeMap::new();
        let mut bytes = batch.as_bytes();
        while bytes.len() >= 16 {
            let len = u32::from_ne_bytes(bytes[..4].try_into().unwrap()) as usize;
            let kind = u16::from_ne_bytes(bytes[4..6].try_into().unwrap()) & 0xff;
            // After the header of netlink comes the one of netfilter.
            self.take(
                kind,
                &attributes(&bytes[20..len]),
                &mut anonymous,
                &mut steps,
            );
            bytes = &bytes[len.next_multiple_of(4)..];
        }
        self.assert_all_lead_somewhere();
        steps
    }

    fn take(
        &mut self,
        kind: u16,
        message: &BTreeMap<u16, Vec<u8>>,
        anonymous: &mut BTreeMap<Vec<u8>, Elements>,
        steps: &mut Steps,
    ) {
        let text = |number: u16| string(&message[&number]);
        match kind {
            NEWTABLE => {}
            DELTABLE => *self = Self::default(),
            NEWCHAIN => {
                let name = text(3);
                self.chains.entry(name.clone()).or_default();
                steps.chains.push(name);
            }
            DELCHAIN => {
                let name = text(3);
                assert!(!self.is_led_to(&name), "{name} is removed while in use");
                let rules = self.chains.remove(&name);
                assert!(rules.is_some_and(|rules| rules.is_empty()), "{name}");
                steps.chains.push(name);
            }
            NEWRULE => {
                let rules = self.chains.get_mut(&text(2)).expect("the chain is there");
                rules.push(expressions(&message[&4], anonymous));
            }
            DELRULE => {
                let name = text(2);
                self.chains
                    .get_mut(&name)
                    .expect("the chain is there")
                    .clear();
                steps.chains.push(name);
            }
            NEWSET if text(2).contains('%') => {
                anonymous.insert(message[&10].clone(), Elements::new());
            }
            NEWSET => {
                let name = text(2);
                let mut like = message.clone();
                // Its number in the batch means nothing afterwards.
                like.remove(&10);
                let was = self.kinds.insert(name.clone(), like.clone());
                assert!(was.is_none_or(|was| was == like), "{name} is another set");
                self.sets.entry(name.clone()).or_default();
                steps.sets.push(name);
            }
            DELSET => {
                let name = text(2);
                assert!(self.sets.remove(&name).is_some(), "there is no {name}");
                self.kinds.remove(&name);
                steps.sets.push(name);
            }
            NEWSETELEM if text(2).contains('%') => {
                let set = anonymous.get_mut(&message[&4]).expect("it was just made");
                set.extend(elements(&message[&3]));
            }
            NEWSETELEM | DELSETELEM => {
                self.element_steps(kind == NEWSETELEM, &text(2), &message[&3], steps)
            }
            other => panic!("message {other}"),
        }
    }

    fn element_steps(&mut self, added: bool, name: &str, list: &[u8], steps: &mut Steps) {
        let set = self.sets.get_mut(name).expect("the set is there");
        for (key, data) in elements(list) {
            if added {
                let was = set.insert(key.clone(), data);
                assert!(was.is_none(), "{name} has {key:?} already");
            } else {
                assert!(set.remove(&key).is_some(), "{name} has no {key:?}");
            }
            let set = name.to_owned();
            steps.elements.push(Step { set, key, added });
        }
    }

    fn is_led_to(&self, chain: &str) -> bool {
        self.leads().any(|to| to == chain)
    }

    /// The names of chains that something leads to.
    fn leads(&self) -> impl Iterator<Item = String> {
        let by_map = self.sets.values().flat_map(BTreeMap::values);
        let rules = self.chains.values().flatten().flatten();
        let by_anonymous = rules.clone().filter_map(|one| one.anonymous.as_ref());
        let by_data = by_map.chain(by_anonymous.flat_map(BTreeMap::values));
        let by_data = by_data.filter_map(|data| match data {
            Data::Chain(chain) => Some(chain.clone()),
            _ => None,
        });
        by_data.chain(rules.filter_map(Expression::leads_to))
    }

    fn assert_all_lead_somewhere(&self) {
        for to in self.leads() {
            assert!(self.chains.contains_key(&to), "nobody made {to}");
        }
    }

    /// Without the shared chains that nothing leads to: they are kept for the next who needs them.
    pub(crate) fn without_kept(mut self) -> Self {
        const SHARED: [&str; 8] = [
            "pick4", "pick6", "near4", "near6", "mixed4", "mixed6", "from4", "from6",
        ];
        loop {
            let shared = |name: &&String| SHARED.iter().any(|shared| name.starts_with(shared));
            let all = self.chains.keys().filter(shared);
            let idle: Vec<String> = all.filter(|name| !self.is_led_to(name)).cloned().collect();
            if idle.is_empty() {
                return self;
            }
            for name in idle {
                self.chains.remove(&name);
            }
        }
    }

    /// Which elements of named sets another state has not, or has otherwise.
    pub(crate) fn elements_beside(&self, other: &Self) -> Vec<(String, Vec<u8>)> {
        let mut beside = Vec::new();
        for (name, set) in &self.sets {
            let there = other.sets.get(name);
            let same = |key| there.and_then(|there: &Elements| there.get(key));
            let mine = set.iter().filter(|(key, data)| same(*key) != Some(*data));
            beside.extend(mine.map(|(key, _)| (name.clone(), key.clone())));
        }
        beside
    }
}

impl Expression {
    /// The chain that an immediate verdict leads to.
    pub(crate) fn leads_to(&self) -> Option<String> {
        let data = self
            .attributes
            .get(&2)
            .filter(|_| self.name == "immediate")?;
        match data_of(data) {
            Data::Chain(chain) => Some(chain),
            _ => None,
        }
    }

    /// What a drawn number is below, if it is drawn at random with the same chance for each (`NFT_NG_RANDOM`, from 0 on).
    pub(crate) fn drawn_below(&self) -> Option<u32> {
        let number = |at: u16| self.attributes.get(&at).map_or(0, |bytes| be32(bytes));
        let random = self.name == "numgen" && number(3) == 1 && number(4) == 0;
        random.then(|| number(2))
    }

    /// The set that it looks up in.
    pub(crate) fn set(&self) -> Option<String> {
        let at = match self.name.as_str() {
            "lookup" | "dynset" => 1,
            _ => return None,
        };
        self.attributes.get(&at).map(|name| string(name))
    }
}

/// Attributes by number; of those that come several times the last.
fn attributes(bytes: &[u8]) -> BTreeMap<u16, Vec<u8>> {
    list(bytes).collect()
}

fn list(mut bytes: &[u8]) -> impl Iterator<Item = (u16, Vec<u8>)> {
    std::iter::from_fn(move || {
        let len = usize::from(u16::from_ne_bytes(bytes.get(..2)?.try_into().unwrap()));
        let number = u16::from_ne_bytes(bytes[2..4].try_into().unwrap()) & 0x3fff;
        let value = bytes[4..len].to_vec();
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((number, value))
    })
}

fn expressions(bytes: &[u8], anonymous: &mut BTreeMap<Vec<u8>, Elements>) -> Vec<Expression> {
    let all = list(bytes).map(|(_, one)| {
        let one = attributes(&one);
        let mut expression = Expression {
            name: string(&one[&1]),
            attributes: one
                .get(&2)
                .map_or_else(BTreeMap::new, |data| attributes(data)),
            anonymous: None,
        };
        if expression.set().is_some_and(|set| set.contains('%')) {
            let id = expression.attributes.remove(&4).expect("it has a number");
            expression.anonymous = Some(anonymous.remove(&id).expect("it was made before"));
        }
        expression
    });
    all.collect()
}

fn elements(bytes: &[u8]) -> Vec<(Vec<u8>, Data)> {
    let all = list(bytes).map(|(_, element)| {
        let element = attributes(&element);
        let key = attributes(&element[&1])
            .remove(&1)
            .expect("a key has a value");
        (
            key,
            element.get(&2).map_or(Data::None, |data| data_of(data)),
        )
    });
    all.collect()
}

fn data_of(bytes: &[u8]) -> Data {
    let data = attributes(bytes);
    if let Some(value) = data.get(&1) {
        return Data::Value(value.clone());
    }
    let verdict = attributes(&data[&2]);
    let code = be32(&verdict[&1]);
    match verdict.get(&2) {
        Some(chain) if LEADS.contains(&code) => Data::Chain(string(chain)),
        _ => Data::Verdict(code),
    }
}

fn be32(bytes: &[u8]) -> u32 {
    u32::from_be_bytes(bytes.try_into().unwrap())
}

fn string(bytes: &[u8]) -> String {
    let text = std::str::from_utf8(bytes).unwrap();
    text.trim_end_matches('\0').to_owned()
}
