//! One transaction, as bytes: what the kernel applies whole or not at all.

use super::rule::{NFTA_RULE_CHAIN, NFTA_RULE_HANDLE, NFTA_RULE_TABLE, NFTA_RULE_USERDATA, Rule};
use super::set::{Element, NFTA_SET_NAME, NFTA_SET_TABLE, Set};
use super::table::{
    Chain, Family, NFTA_CHAIN_NAME, NFTA_CHAIN_TABLE, NFTA_TABLE_NAME, Table, UDATA_COMMENT,
};
use super::wire::{Attrs, HEADERS, Messages, SUBSYSTEM, UserData, message, text};

/// Operations in the order they are to be done; nothing reaches the kernel before
/// [`Socket::send`](super::Socket::send).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    bytes: Vec<u8>,
    /// Where in `bytes` each operation begins; its sequence number is its place here plus one.
    starts: Vec<usize>,
    /// Sets made so far; numbers them for the rules of the same batch.
    sets: u32,
}

impl Batch {
    /// A batch without operations.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many operations it holds.
    pub fn len(&self) -> usize {
        self.starts.len()
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.starts.is_empty()
    }

    /// The operations as netlink messages, without the markers around them: equal bytes mean equal rule sets.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Makes a table, or keeps it as it is if it is there.
    pub fn add_table(&mut self, table: &Table) {
        self.push(NEWTABLE, CREATE, table.family, &table.encode());
    }

    /// Removes a table with all it holds; refused if there is none.
    pub fn delete_table(&mut self, table: &Table) {
        let mut attrs = Attrs::default();
        attrs.text(NFTA_TABLE_NAME, &table.name);
        self.push(DELTABLE, 0, table.family, &attrs);
    }

    /// Removes a table if it is there (two operations).
    pub fn remove_table(&mut self, table: &Table) {
        self.add_table(table);
        self.delete_table(table);
    }

    /// Makes a table anew, empty, whether it is there or not (three operations). Packets see the old rules until the
    /// batch holds, and the new ones from then on.
    pub fn replace_table(&mut self, table: &Table) {
        self.remove_table(table);
        self.add_table(table);
    }

    /// Makes a chain, or keeps its rules if it is there.
    pub fn add_chain(&mut self, table: &Table, chain: &Chain) {
        self.push(NEWCHAIN, CREATE, table.family, &chain.encode(table));
    }

    /// Removes a chain that nothing refers to.
    pub fn delete_chain(&mut self, table: &Table, chain: &str) {
        let mut attrs = Attrs::default();
        attrs
            .text(NFTA_CHAIN_TABLE, &table.name)
            .text(NFTA_CHAIN_NAME, chain);
        self.push(DELCHAIN, 0, table.family, &attrs);
    }

    /// Removes all rules of a chain.
    pub fn flush_chain(&mut self, table: &Table, chain: &str) {
        let mut attrs = Attrs::default();
        attrs
            .text(NFTA_RULE_TABLE, &table.name)
            .text(NFTA_RULE_CHAIN, chain);
        self.push(DELRULE, 0, table.family, &attrs);
    }

    /// Puts a rule behind the others of a chain.
    pub fn add_rule(&mut self, table: &Table, chain: &str, rule: &Rule) {
        self.push(
            NEWRULE,
            CREATE | APPEND,
            table.family,
            &rule.encode(table, chain),
        );
    }

    /// Puts a rule before the others of a chain.
    pub fn insert_rule(&mut self, table: &Table, chain: &str, rule: &Rule) {
        self.push(NEWRULE, CREATE, table.family, &rule.encode(table, chain));
    }

    /// Removes a rule by the number the kernel gave it ([`RuleInfo::handle`](super::RuleInfo::handle)).
    pub fn delete_rule(&mut self, table: &Table, chain: &str, handle: u64) {
        let mut attrs = Attrs::default();
        attrs
            .text(NFTA_RULE_TABLE, &table.name)
            .text(NFTA_RULE_CHAIN, chain)
            .u64(NFTA_RULE_HANDLE, handle);
        self.push(DELRULE, 0, table.family, &attrs);
    }

    /// Makes a set, or keeps its elements if the same is there.
    pub fn add_set(&mut self, table: &Table, set: &Set) {
        self.sets += 1;
        self.push(NEWSET, CREATE, table.family, &set.encode(table, self.sets));
    }

    /// Makes an anonymous set with its elements; the set given back is for the one rule that uses it, in this batch.
    #[must_use = "a set that no rule uses makes the kernel refuse the batch"]
    pub fn add_anonymous(
        &mut self,
        table: &Table,
        mut set: Set,
        elements: impl IntoIterator<Item = Element>,
    ) -> Set {
        set.id = Some(self.sets + 1);
        self.add_set(table, &set);
        self.add_elements(table, &set, elements);
        set
    }

    /// Removes a set that no rule uses.
    pub fn delete_set(&mut self, table: &Table, set: &Set) {
        let mut attrs = Attrs::default();
        attrs
            .text(NFTA_SET_TABLE, &table.name)
            .text(NFTA_SET_NAME, &set.name);
        self.push(DELSET, 0, table.family, &attrs);
    }

    /// Removes all elements of a set.
    pub fn flush_set(&mut self, table: &Table, set: &Set) {
        self.push(DELSETELEM, 0, table.family, &element_list(table, set));
    }

    /// Adds elements, in as many operations as they need. An element that is there already with the same data is kept;
    /// to give a key of a map other data, delete it first in the same batch.
    ///
    /// # Panics
    /// When an element does not have the fields of the set.
    pub fn add_elements(
        &mut self,
        table: &Table,
        set: &Set,
        elements: impl IntoIterator<Item = Element>,
    ) {
        self.elements(NEWSETELEM, CREATE, table, set, elements);
    }

    /// Removes elements, in as many operations as they need; refused if one is not there.
    ///
    /// # Panics
    /// When an element does not have the fields of the set.
    pub fn delete_elements(
        &mut self,
        table: &Table,
        set: &Set,
        elements: impl IntoIterator<Item = Element>,
    ) {
        self.elements(DELSETELEM, 0, table, set, elements);
    }

    fn elements(
        &mut self,
        kind: u16,
        flags: u16,
        table: &Table,
        set: &Set,
        elements: impl IntoIterator<Item = Element>,
    ) {
        let mut list = Attrs::default();
        for element in elements {
            element.encode(set, &mut list);
            if list.as_bytes().len() >= CHUNK {
                self.push_elements(kind, flags, table, set, &std::mem::take(&mut list));
            }
        }
        if !list.as_bytes().is_empty() {
            self.push_elements(kind, flags, table, set, &list);
        }
    }

    fn push_elements(&mut self, kind: u16, flags: u16, table: &Table, set: &Set, list: &Attrs) {
        let mut attrs = element_list(table, set);
        attrs.nest(NFTA_SET_ELEM_LIST_ELEMENTS, |elements| {
            elements.append(list);
        });
        self.push(kind, flags, table.family, &attrs);
    }

    fn push(&mut self, kind: u16, flags: u16, family: Family, attrs: &Attrs) {
        self.starts.push(self.bytes.len());
        let sequence = self.starts.len() as u32;
        message(
            &mut self.bytes,
            SUBSYSTEM_KIND | kind,
            REQUEST | flags,
            sequence,
            family as u8,
            0,
            attrs,
        );
    }

    /// The datagram: the operations between the markers of a batch, the last one asking for an answer. The kernel
    /// answers each operation that fails without being asked, so one answer tells of all.
    pub(super) fn datagram(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.bytes.len() + 2 * HEADERS);
        let none = Attrs::default();
        message(
            &mut bytes,
            BATCH_BEGIN,
            REQUEST,
            0,
            0,
            SUBSYSTEM.into(),
            &none,
        );
        let body = bytes.len();
        bytes.extend_from_slice(&self.bytes);
        if let Some(last) = self.starts.last() {
            let flags = body + last + 6;
            let asked = u16::from_ne_bytes([bytes[flags], bytes[flags + 1]]) | ACK;
            bytes[flags..flags + 2].copy_from_slice(&asked.to_ne_bytes());
        }
        message(
            &mut bytes,
            BATCH_END,
            REQUEST,
            self.len() as u32 + 1,
            0,
            SUBSYSTEM.into(),
            &none,
        );
        bytes
    }

    /// The chains and rules it makes, in order.
    pub(super) fn made(&self) -> impl Iterator<Item = Made> {
        Messages(&self.bytes).filter_map(|message| match message.kind & 0xff {
            NEWCHAIN => message.attributes().text(NFTA_CHAIN_NAME).map(Made::Chain),
            NEWRULE => message.attributes().text(NFTA_RULE_CHAIN).map(Made::Rule),
            _ => None,
        })
    }

    /// Every message in it.
    pub(super) fn messages(&self) -> Messages<'_> {
        Messages(&self.bytes)
    }

    /// An operation in words, by its sequence number: "add rule inet weave-attach outbound \"masquerade\"".
    pub(super) fn describe(&self, sequence: u32) -> String {
        let start = (sequence as usize)
            .checked_sub(1)
            .and_then(|place| self.starts.get(place));
        let Some(message) = start.and_then(|start| Messages(&self.bytes[*start..]).next()) else {
            return "commit the batch".into();
        };
        let attributes = message.attributes();
        let (verb, below, comment) = match message.kind & 0xff {
            NEWTABLE => ("add table", None, None),
            DELTABLE => ("delete table", None, None),
            NEWCHAIN => ("add chain", Some(NFTA_CHAIN_NAME), None),
            DELCHAIN => ("delete chain", Some(NFTA_CHAIN_NAME), None),
            NEWRULE => ("add rule", Some(NFTA_RULE_CHAIN), Some(NFTA_RULE_USERDATA)),
            DELRULE => ("delete rule", Some(NFTA_RULE_CHAIN), None),
            NEWSET => ("add set", Some(NFTA_SET_NAME), None),
            DELSET => ("delete set", Some(NFTA_SET_NAME), None),
            NEWSETELEM => ("add elements", Some(NFTA_SET_NAME), None),
            _ => ("delete elements", Some(NFTA_SET_NAME), None),
        };
        let mut words = vec![verb.to_owned(), Family::word(message.family()).to_owned()];
        words.extend(attributes.text(NFTA_TABLE_NAME));
        words.extend(below.and_then(|kind| attributes.text(kind)));
        let user = comment.and_then(|kind| attributes.find(kind));
        words.extend(
            user.and_then(|user| UserData::find(user, UDATA_COMMENT))
                .map(|found| format!("{:?}", text(found))),
        );
        words.join(" ")
    }
}

/// What an operation makes, by the name of the chain.
pub(super) enum Made {
    /// A chain.
    Chain(String),
    /// A rule of a chain.
    Rule(String),
}

fn element_list(table: &Table, set: &Set) -> Attrs {
    let mut attrs = Attrs::default();
    attrs
        .text(NFTA_SET_TABLE, &table.name)
        .text(NFTA_SET_NAME, &set.name);
    if let Some(id) = set.id {
        attrs.u32(NFTA_SET_ELEM_LIST_SET_ID, id);
    }
    attrs
}

/// Bytes of elements after which a new operation begins: a nested attribute holds 65,535, an element at most a few
/// hundred.
const CHUNK: usize = 60_000;
const SUBSYSTEM_KIND: u16 = (SUBSYSTEM as u16) << 8;
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
const NEWTABLE: u16 = 0;
const DELTABLE: u16 = 2;
pub(super) const NEWCHAIN: u16 = 3;
const DELCHAIN: u16 = 5;
pub(super) const NEWRULE: u16 = 6;
const DELRULE: u16 = 8;
pub(super) const NEWSET: u16 = 9;
const DELSET: u16 = 11;
pub(super) const NEWSETELEM: u16 = 12;
pub(super) const DELSETELEM: u16 = 14;
const REQUEST: u16 = 0x1;
const ACK: u16 = 0x4;
const CREATE: u16 = 0x400;
const APPEND: u16 = 0x800;
pub(super) const NFTA_SET_ELEM_LIST_ELEMENTS: u16 = 3;
const NFTA_SET_ELEM_LIST_SET_ID: u16 = 4;

#[cfg(test)]
mod tests {
    use super::super::{Type, Value};
    use super::*;

    #[test]
    fn operations_have_words() {
        let table = Table::inet("t");
        let mut batch = Batch::new();
        batch.add_table(&table);
        batch.add_rule(&table, "out", &Rule::new().comment("all").accept());
        batch.flush_set(&table, &Set::new("s", &[Type::Port]));
        assert_eq!(batch.describe(1), "add table inet t");
        assert_eq!(batch.describe(2), "add rule inet t out \"all\"");
        assert_eq!(batch.describe(3), "delete elements inet t s");
        assert_eq!(batch.describe(4), "commit the batch");
        assert_eq!(batch.describe(0), "commit the batch");
    }

    #[test]
    fn many_elements_travel_in_several_operations() {
        let table = Table::inet("t");
        let set = Set::new("s", &[Type::Ipv4, Type::Port]);
        let mut batch = Batch::new();
        let element = |n: u32| Element::new([Value::V4(n.into()), Value::Port(80)]);
        batch.add_elements(&table, &set, (0..10_000).map(element));
        assert!(batch.len() > 1);
        assert!(Messages(batch.as_bytes()).all(|message| message.payload.len() < 65_535));
        assert_eq!(Messages(&batch.datagram()).count(), batch.len() + 2);
        let acks: Vec<_> = Messages(&batch.datagram())
            .map(|message| message.flags & ACK != 0)
            .collect();
        assert_eq!(acks.iter().position(|ack| *ack), Some(batch.len()));
        assert_eq!(acks.iter().filter(|ack| **ack).count(), 1);
    }
}
