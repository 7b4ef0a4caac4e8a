//! Sets and maps: what a rule looks a packet's fields up in, at the cost of one lookup whatever their size.
//!
//! A set holds keys; a map gives each key data or a verdict. Keys are one field or several; with [`Set::interval`] each
//! field may be a range, which the kernel keeps in a tree (one field) or in lookup tables (several fields, Linux 5.6).

use super::table::Table;
use super::value::{Span, Type, Value, Verdict, concat};
use super::wire::{Attrs, LIST_ELEM, UserData};

/// A set or map of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Set {
    pub(super) name: String,
    /// The number by which rules of the same batch refer to it; only anonymous sets need it.
    pub(super) id: Option<u32>,
    key: Vec<Type>,
    data: Data,
    interval: bool,
    learned: Option<Learned>,
    comment: Option<String>,
}

/// What bounds a set that rules fill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Learned {
    timeout_ms: u64,
    most: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Data {
    None,
    Values(Vec<Type>),
    Verdicts,
}

impl Set {
    /// A set with a name; the key is one field or several.
    pub fn new(name: impl Into<String>, key: &[Type]) -> Self {
        Self {
            name: name.into(),
            id: None,
            key: key.to_vec(),
            data: Data::None,
            interval: false,
            learned: None,
            comment: None,
        }
    }

    /// A set without a name, which lives as long as the one rule that uses it; add it with
    /// [`Batch::add_anonymous`](super::Batch::add_anonymous).
    pub fn anonymous(key: &[Type]) -> Self {
        Self::new("__set%d", key)
    }

    /// Makes it a map to values, for [`Rule::dnat_map`](super::Rule::dnat_map).
    #[must_use]
    pub fn values(mut self, data: &[Type]) -> Self {
        self.data = Data::Values(data.to_vec());
        self.named_as_map()
    }

    /// Makes it a map to verdicts, for [`Rule::vmap`](super::Rule::vmap).
    #[must_use]
    pub fn verdicts(mut self) -> Self {
        self.data = Data::Verdicts;
        self.named_as_map()
    }

    /// Lets elements be ranges. Ranges of one set must not overlap; they may touch.
    ///
    /// # Panics
    /// When a field is kept in the machine's byte order (marks, names, numbers): such ranges mean nothing to the kernel.
    #[must_use]
    pub fn interval(mut self) -> Self {
        assert!(
            !self.key.iter().any(|field| field.is_native()),
            "ranges need fields in network byte order"
        );
        self.interval = true;
        self
    }

    /// Lets rules fill it ([`Rule::update`](super::Rule::update)): an element goes `seconds` after its last update, and
    /// there are at most `most`.
    #[must_use]
    pub fn learned(mut self, seconds: u32, most: u32) -> Self {
        let timeout_ms = u64::from(seconds) * 1000;
        self.learned = Some(Learned { timeout_ms, most });
        self
    }

    /// A word for people.
    #[must_use]
    pub fn comment(mut self, comment: impl Into<String>) -> Self {
        self.comment = Some(comment.into());
        self
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What its data begins with, if it is a map to values.
    pub(super) fn first_value(&self) -> Option<(Type, usize)> {
        match &self.data {
            Data::Values(types) => types.first().map(|first| (*first, types.len())),
            _ => None,
        }
    }

    pub(super) const fn is_anonymous(&self) -> bool {
        self.id.is_some()
    }

    fn named_as_map(mut self) -> Self {
        if self.name == "__set%d" {
            self.name = "__map%d".into();
        }
        self
    }

    fn flags(&self) -> u32 {
        let mut flags = if self.is_anonymous() { 0x1 | 0x2 } else { 0 };
        if self.interval {
            flags |= if self.key.len() > 1 { 0x4 | 0x80 } else { 0x4 };
        }
        if self.learned.is_some() {
            flags |= NFT_SET_TIMEOUT | NFT_SET_EVAL;
        }
        flags | if self.data == Data::None { 0 } else { 0x8 }
    }

    /// The attributes of `NFT_MSG_NEWSET`.
    pub(super) fn encode(&self, table: &Table, id: u32) -> Attrs {
        let mut attrs = Attrs::default();
        attrs
            .text(NFTA_SET_TABLE, &table.name)
            .text(NFTA_SET_NAME, &self.name);
        attrs.u32(NFTA_SET_FLAGS, self.flags());
        attrs
            .u32(NFTA_SET_KEY_TYPE, type_code(&self.key))
            .u32(NFTA_SET_KEY_LEN, width(&self.key));
        match &self.data {
            Data::None => {}
            Data::Values(types) => {
                attrs
                    .u32(NFTA_SET_DATA_TYPE, type_code(types))
                    .u32(NFTA_SET_DATA_LEN, width(types));
            }
            Data::Verdicts => {
                attrs
                    .u32(NFTA_SET_DATA_TYPE, NFT_DATA_VERDICT)
                    .u32(NFTA_SET_DATA_LEN, 0);
            }
        }
        attrs.u32(NFTA_SET_ID, id);
        if let Some(learned) = self.learned {
            attrs.u64(NFTA_SET_TIMEOUT, learned.timeout_ms);
        }
        let ranges = self.interval && self.key.len() > 1;
        if ranges || self.learned.is_some() {
            attrs.nest(NFTA_SET_DESC, |desc| {
                if let Some(learned) = self.learned {
                    desc.u32(NFTA_SET_DESC_SIZE, learned.most);
                }
                if ranges {
                    self.describe_fields(desc);
                }
            });
        }
        attrs.bytes(NFTA_SET_USERDATA, self.user_data().as_bytes());
        attrs
    }

    /// `NFTA_SET_DESC_CONCAT` (2): the width of each field, which ranges over several fields need.
    fn describe_fields(&self, desc: &mut Attrs) {
        desc.nest(2, |fields| {
            for field in &self.key {
                fields.nest(LIST_ELEM, |one| {
                    one.u32(1, field.width() as u32);
                });
            }
        });
    }

    /// What `nft` keeps to print the set: byte orders of key (0) and data (1), comment (7).
    fn user_data(&self) -> UserData {
        let mut user = UserData::default();
        user.put(0, &byte_order(&self.key).to_ne_bytes());
        if let Data::Values(types) = &self.data {
            user.put(1, &byte_order(types).to_ne_bytes());
        }
        if let Some(comment) = &self.comment {
            user.put_text(7, comment);
        }
        user
    }
}

/// One entry of a set or map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Element {
    key: Vec<Span>,
    data: Option<Entry>,
    comment: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Entry {
    Values(Vec<Value>),
    Verdict(Verdict),
}

impl Element {
    /// A key: one item for each field, a [`Value`] or, in a set of intervals, a [`Span`].
    pub fn new(key: impl IntoIterator<Item = impl Into<Span>>) -> Self {
        Self {
            key: key.into_iter().map(Into::into).collect(),
            data: None,
            comment: None,
        }
    }

    /// What a map gives for it.
    #[must_use]
    pub fn values(mut self, values: impl IntoIterator<Item = Value>) -> Self {
        self.data = Some(Entry::Values(values.into_iter().collect()));
        self
    }

    /// What a verdict map does with it.
    #[must_use]
    pub fn verdict(mut self, verdict: Verdict) -> Self {
        self.data = Some(Entry::Verdict(verdict));
        self
    }

    /// A word for people.
    #[must_use]
    pub fn comment(mut self, comment: impl Into<String>) -> Self {
        self.comment = Some(comment.into());
        self
    }

    /// The bytes of its key, the lower end of a range first; they tell elements of one set apart.
    pub fn key_bytes(&self) -> Vec<u8> {
        let mut bytes = concat(self.key.iter().map(|span| &span.low));
        bytes.extend(concat(self.key.iter().map(|span| &span.high)));
        bytes
    }

    /// Appends the list members that stand for it: one, or two where the set keeps ranges of a single field.
    ///
    /// # Panics
    /// When it does not have the fields of the set: the rule set is built wrongly.
    pub(super) fn encode(&self, set: &Set, list: &mut Attrs) {
        self.check(set);
        let low = concat(self.key.iter().map(|span| &span.low));
        let high = concat(self.key.iter().map(|span| &span.high));
        list.nest(LIST_ELEM, |elem| {
            put_value(elem, NFTA_SET_ELEM_KEY, &low);
            if set.interval && set.key.len() > 1 {
                put_value(elem, NFTA_SET_ELEM_KEY_END, &high);
            }
            match &self.data {
                None => {}
                Some(Entry::Values(values)) => {
                    put_value(elem, NFTA_SET_ELEM_DATA, &concat(values.iter()))
                }
                Some(Entry::Verdict(verdict)) => {
                    elem.nest(NFTA_SET_ELEM_DATA, |data| verdict.encode(data));
                }
            }
            if let Some(comment) = &self.comment {
                let mut user = UserData::default();
                user.put_text(0, comment);
                elem.bytes(NFTA_SET_ELEM_USERDATA, user.as_bytes());
            }
        });
        if set.interval
            && set.key.len() == 1
            && let Some(end) = successor(high)
        {
            list.nest(LIST_ELEM, |elem| {
                elem.u32(NFTA_SET_ELEM_FLAGS, NFT_SET_ELEM_INTERVAL_END);
                put_value(elem, NFTA_SET_ELEM_KEY, &end);
            });
        }
    }

    fn check(&self, set: &Set) {
        let fields = self.key.iter().zip(&set.key).all(|(span, kind)| {
            span.low.fits(*kind) && span.high.fits(*kind) && (set.interval || span.low == span.high)
        });
        let data = match (&self.data, &set.data) {
            (None, Data::None) | (Some(Entry::Verdict(_)), Data::Verdicts) => true,
            (Some(Entry::Values(values)), Data::Values(types)) => {
                values.len() == types.len()
                    && values
                        .iter()
                        .zip(types)
                        .all(|(value, kind)| value.fits(*kind))
            }
            _ => false,
        };
        assert!(
            fields && data && self.key.len() == set.key.len(),
            "{self:?} does not fit set {}",
            set.name
        );
    }
}

fn put_value(attrs: &mut Attrs, kind: u16, bytes: &[u8]) {
    attrs.nest(kind, |data| {
        data.bytes(1, bytes);
    });
}

/// The key after this one; `None` after the last.
fn successor(mut key: Vec<u8>) -> Option<Vec<u8>> {
    for byte in key.iter_mut().rev() {
        *byte = byte.wrapping_add(1);
        if *byte != 0 {
            return Some(key);
        }
    }
    None
}

/// `nft`'s number for a type: 6 bits for each field.
fn type_code(types: &[Type]) -> u32 {
    types.iter().fold(0, |code, one| code << 6 | one.code())
}

/// Bytes of a key or of data.
fn width(types: &[Type]) -> u32 {
    let bytes: usize = match types {
        [one] => one.width(),
        several => several
            .iter()
            .map(|one| one.width().next_multiple_of(4))
            .sum(),
    };
    bytes as u32
}

/// `enum byteorder` of `nft`: 0 for several fields, 1 native, 2 network.
fn byte_order(types: &[Type]) -> u32 {
    match types {
        [one] if one.is_native() => 1,
        [_] => 2,
        _ => 0,
    }
}

const NFT_DATA_VERDICT: u32 = 0xffff_ff00;
const NFT_SET_TIMEOUT: u32 = 0x10;
/// Rules may change its elements.
pub(super) const NFT_SET_EVAL: u32 = 0x20;
pub(super) const NFTA_SET_TABLE: u16 = 1;
pub(super) const NFTA_SET_NAME: u16 = 2;
pub(super) const NFTA_SET_FLAGS: u16 = 3;
const NFTA_SET_KEY_TYPE: u16 = 4;
const NFTA_SET_KEY_LEN: u16 = 5;
const NFTA_SET_DATA_TYPE: u16 = 6;
const NFTA_SET_DATA_LEN: u16 = 7;
const NFTA_SET_DESC: u16 = 9;
const NFTA_SET_DESC_SIZE: u16 = 1;
const NFTA_SET_ID: u16 = 10;
const NFTA_SET_TIMEOUT: u16 = 11;
const NFTA_SET_USERDATA: u16 = 13;
pub(super) const NFTA_SET_ELEM_KEY: u16 = 1;
pub(super) const NFTA_SET_ELEM_DATA: u16 = 2;
const NFTA_SET_ELEM_FLAGS: u16 = 3;
const NFTA_SET_ELEM_USERDATA: u16 = 6;
const NFTA_SET_ELEM_KEY_END: u16 = 10;
const NFT_SET_ELEM_INTERVAL_END: u32 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_of_several_fields_have_the_code_nft_gives() {
        let key = [Type::Ipv4, Type::Proto, Type::Port];
        assert_eq!((type_code(&key), width(&key)), (0x730d, 12));
        assert_eq!((type_code(&key[1..2]), width(&key[1..2])), (12, 1));
    }

    #[test]
    fn a_range_up_to_the_last_key_has_no_end() {
        assert_eq!(successor(vec![1, 255, 255]), Some(vec![2, 0, 0]));
        assert_eq!(successor(vec![255, 255]), None);
    }

    #[test]
    #[should_panic(expected = "does not fit set ports")]
    fn an_element_of_another_type_is_a_bug() {
        let set = Set::new("ports", &[Type::Port]);
        Element::new([Value::TCP]).encode(&set, &mut Attrs::default());
    }
}
