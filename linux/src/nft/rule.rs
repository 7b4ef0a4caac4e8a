//! Rules: tests of the packet, one after the other, and what to do when all hold.
//!
//! A rule is written in the order the kernel runs it. Each test loads fields into registers, 4 bytes a slot, and compares
//! or looks them up; the first that fails ends the rule. Actions are in `action.rs`.

use ipnet::IpNet;

use super::field::Field;
use super::set::Set;
use super::table::{Table, UDATA_COMMENT};
use super::value::Value;
use super::wire::{Attrs, LIST_ELEM, UserData};

/// A rule under construction: tests first, then actions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    exprs: Attrs,
    /// The family already tested for.
    family: Option<u8>,
    /// The protocol already tested for.
    protocol: Option<u8>,
    comment: Option<String>,
}

/// How to compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Cmp {
    /// Equal.
    Eq = 0,
    /// Not equal.
    Neq = 1,
    /// Less; of fields in network byte order only, as the three below.
    Lt = 2,
    /// Less or equal.
    Lte = 3,
    /// Greater.
    Gt = 4,
    /// Greater or equal.
    Gte = 5,
}

/// What a sender is told whose packet is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reject {
    /// A TCP reset; of TCP only.
    TcpReset,
    /// ICMP or ICMPv6 "no route".
    NoRoute,
    /// ICMP or ICMPv6 "port unreachable".
    PortUnreachable,
    /// ICMP "host unreachable", ICMPv6 "address unreachable".
    HostUnreachable,
    /// ICMP or ICMPv6 "administratively prohibited".
    AdminProhibited,
}

impl Rule {
    /// A rule that holds for every packet.
    pub fn new() -> Self {
        Self::default()
    }

    /// A word for people; `nft` prints it.
    #[must_use]
    pub fn comment(mut self, comment: impl Into<String>) -> Self {
        self.comment = Some(comment.into());
        self
    }

    /// The field has this value.
    #[must_use]
    pub fn is(self, field: Field, value: impl Into<Value>) -> Self {
        self.compare(field, Cmp::Eq, value)
    }

    /// The field has another value.
    #[must_use]
    pub fn is_not(self, field: Field, value: impl Into<Value>) -> Self {
        self.compare(field, Cmp::Neq, value)
    }

    /// The field compares so with a value.
    #[must_use]
    pub fn compare(mut self, field: Field, how: Cmp, value: impl Into<Value>) -> Self {
        let value = value.into();
        match (field, how, &value) {
            (Field::NfProto, Cmp::Eq, Value::Byte(family)) => self.family = Some(*family),
            (Field::L4Proto, Cmp::Eq, Value::Byte(protocol)) => self.protocol = Some(*protocol),
            _ => {}
        }
        self.load(&[field]);
        self.cmp(how, &value.comparand());
        self
    }

    /// It came in by this interface; `wv*` means any that begins so.
    #[must_use]
    pub fn iifname(self, name: &str) -> Self {
        self.is(Field::Iifname, Value::name(name))
    }

    /// It leaves by this interface; `wv*` means any that begins so.
    #[must_use]
    pub fn oifname(self, name: &str) -> Self {
        self.is(Field::Oifname, Value::name(name))
    }

    /// The field lies between two values, both included; of fields in network byte order only.
    #[must_use]
    pub fn between(mut self, field: Field, low: impl Into<Value>, high: impl Into<Value>) -> Self {
        self.load(&[field]);
        self.cmp(Cmp::Gte, &low.into().comparand());
        self.cmp(Cmp::Lte, &high.into().comparand());
        self
    }

    /// The address lies in this prefix, of the field's family.
    #[must_use]
    pub fn inside(self, field: Field, net: impl Into<IpNet>) -> Self {
        self.prefix(field, Cmp::Eq, net.into())
    }

    /// The address does not lie in this prefix, of the field's family.
    #[must_use]
    pub fn outside(self, field: Field, net: impl Into<IpNet>) -> Self {
        self.prefix(field, Cmp::Neq, net.into())
    }

    /// At least one of these bits is set in a field of flags.
    #[must_use]
    pub fn any_bit(self, field: Field, bits: u32) -> Self {
        self.masked(field, bits, Cmp::Neq, 0)
    }

    /// The field, reduced to the bits of a mask, compares so with a number.
    #[must_use]
    pub fn masked(mut self, field: Field, mask: u32, how: Cmp, value: u32) -> Self {
        let (mask, value) = match field.width() {
            1 => (vec![mask as u8], vec![value as u8]),
            _ => (mask.to_ne_bytes().to_vec(), value.to_ne_bytes().to_vec()),
        };
        self.load(&[field]);
        self.mask(&mask, &vec![0; mask.len()]);
        self.cmp(how, &value);
        self
    }

    /// The fields are in the set.
    #[must_use]
    pub fn lookup(mut self, fields: &[Field], set: &Set) -> Self {
        self.load(fields);
        self.find(set, None, false);
        self
    }

    /// The fields are not in the set.
    #[must_use]
    pub fn lookup_not(mut self, fields: &[Field], set: &Set) -> Self {
        self.load(fields);
        self.find(set, None, true);
        self
    }

    /// Does what the verdict map says for the fields; goes on when it says nothing.
    #[must_use]
    pub fn vmap(mut self, fields: &[Field], map: &Set) -> Self {
        self.load(fields);
        self.find(map, Some(VERDICT_REGISTER), false);
        self
    }

    fn prefix(mut self, field: Field, how: Cmp, net: IpNet) -> Self {
        let mask = Value::from(net.netmask()).comparand();
        self.load(&[field]);
        if net.prefix_len() < net.max_prefix_len() {
            self.mask(&mask, &vec![0; mask.len()]);
        }
        self.cmp(how, &Value::from(net.network()).comparand());
        self
    }

    /// Loads fields one after the other from the first slot, after the tests they need.
    pub(super) fn load(&mut self, fields: &[Field]) {
        for field in fields {
            self.require(*field);
        }
        let mut slot = 0;
        for field in fields {
            let (name, attrs) = field.load(register(slot));
            self.expr(name, &attrs);
            slot += field.width().div_ceil(4);
        }
        assert!(slot <= 16, "the fields of one test fit 64 bytes");
    }

    fn require(&mut self, field: Field) {
        if let Some(family) = field.needs_family()
            && self.family != Some(family)
        {
            self.family = Some(family);
            self.load(&[Field::NfProto]);
            self.cmp(Cmp::Eq, &[family]);
        }
        if let Some(protocol) = field.needs_protocol()
            && self.protocol != Some(protocol)
        {
            self.protocol = Some(protocol);
            self.load(&[Field::L4Proto]);
            self.cmp(Cmp::Eq, &[protocol]);
        }
    }

    /// Looks up the first slot, into a register when something is wanted of it.
    pub(super) fn find(&mut self, set: &Set, into: Option<u32>, invert: bool) {
        let mut attrs = Attrs::default();
        attrs.text(1, &set.name).u32(2, register(0));
        if let Some(into) = into {
            attrs.u32(3, into);
        }
        if let Some(id) = set.id {
            attrs.u32(4, id);
        }
        if invert {
            attrs.u32(5, 1);
        }
        self.expr("lookup", &attrs);
    }

    /// Compares the first slot.
    fn cmp(&mut self, how: Cmp, bytes: &[u8]) {
        let mut attrs = Attrs::default();
        attrs
            .u32(1, register(0))
            .u32(2, how as u32)
            .nest(3, |data| {
                data.bytes(1, bytes);
            });
        self.expr("cmp", &attrs);
    }

    /// Changes the first slot to `(slot & mask) ^ xor`.
    pub(super) fn mask(&mut self, mask: &[u8], xor: &[u8]) {
        let mut attrs = Attrs::default();
        attrs
            .u32(1, register(0))
            .u32(2, register(0))
            .u32(3, mask.len() as u32);
        for (kind, bytes) in [(4, mask), (5, xor)] {
            attrs.nest(kind, |data| {
                data.bytes(1, bytes);
            });
        }
        self.expr("bitwise", &attrs);
    }

    /// Appends one expression: name (1) and attributes (2).
    pub(super) fn expr(&mut self, name: &str, attrs: &Attrs) {
        self.exprs.nest(LIST_ELEM, |expr| {
            expr.text(1, name).nest(2, |data| {
                data.append(attrs);
            });
        });
    }

    pub(super) fn encode(&self, table: &Table, chain: &str) -> Attrs {
        let mut attrs = Attrs::default();
        attrs
            .text(NFTA_RULE_TABLE, &table.name)
            .text(NFTA_RULE_CHAIN, chain);
        attrs.nest(NFTA_RULE_EXPRESSIONS, |list| {
            list.append(&self.exprs);
        });
        if let Some(comment) = &self.comment {
            let mut user = UserData::default();
            user.put_text(UDATA_COMMENT, comment);
            attrs.bytes(NFTA_RULE_USERDATA, user.as_bytes());
        }
        attrs
    }
}

/// The number of a 4-byte register: `NFT_REG32_00` and up.
pub(super) fn register(slot: usize) -> u32 {
    8 + slot as u32
}

const VERDICT_REGISTER: u32 = 0;
pub(super) const NFTA_RULE_TABLE: u16 = 1;
pub(super) const NFTA_RULE_CHAIN: u16 = 2;
pub(super) const NFTA_RULE_HANDLE: u16 = 3;
pub(super) const NFTA_RULE_EXPRESSIONS: u16 = 4;
pub(super) const NFTA_RULE_USERDATA: u16 = 7;
