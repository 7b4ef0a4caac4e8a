//! Reading back: enough of tables, chains and rules to see whether what we made is still there, and what was counted.

use super::rule::{
    NFTA_RULE_CHAIN, NFTA_RULE_EXPRESSIONS, NFTA_RULE_HANDLE, NFTA_RULE_TABLE, NFTA_RULE_USERDATA,
};
use super::table::{
    NFTA_CHAIN_HANDLE, NFTA_CHAIN_HOOK, NFTA_CHAIN_NAME, NFTA_CHAIN_POLICY, NFTA_CHAIN_TABLE,
    NFTA_TABLE_HANDLE, NFTA_TABLE_NAME, NFTA_TABLE_USERDATA, UDATA_COMMENT, UDATA_STAMP,
};
use super::wire::{Attributes, Message, UserData, text};

/// A table as the kernel has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableInfo {
    /// `NFPROTO_*`: 1 inet, 2 ip, 10 ip6, and kinds we do not make.
    pub family: u8,
    /// Its name.
    pub name: String,
    /// The kernel's number for it; a table made anew has another.
    pub handle: u64,
    /// [`Table::comment`](super::Table::comment), or what somebody else wrote there.
    pub comment: Option<String>,
    /// [`Table::stamp`](super::Table::stamp).
    pub stamp: Option<u64>,
}

/// A chain as the kernel has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChainInfo {
    /// `NFPROTO_*` of its table.
    pub family: u8,
    /// Its table.
    pub table: String,
    /// Its name.
    pub name: String,
    /// The kernel's number for it.
    pub handle: u64,
    /// `NF_INET_*` hook and priority of a base chain.
    pub hook: Option<(u32, i32)>,
    /// Policy of a base chain: 0 drop, 1 accept.
    pub policy: Option<u32>,
}

/// A rule as the kernel has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleInfo {
    /// `NFPROTO_*` of its table.
    pub family: u8,
    /// Its table.
    pub table: String,
    /// Its chain.
    pub chain: String,
    /// The kernel's number for it, for [`Batch::delete_rule`](super::Batch::delete_rule).
    pub handle: u64,
    /// [`Rule::comment`](super::Rule::comment).
    pub comment: Option<String>,
    /// Packets and bytes, if it counts.
    pub counter: Option<(u64, u64)>,
}

impl TableInfo {
    pub(super) fn parse(message: Message<'_>) -> Option<Self> {
        let attributes = message.attributes();
        let user = attributes.find(NFTA_TABLE_USERDATA).unwrap_or_default();
        let stamp = UserData::find(user, UDATA_STAMP).and_then(|bytes| bytes.try_into().ok());
        Some(Self {
            family: message.family(),
            name: attributes.text(NFTA_TABLE_NAME)?,
            handle: attributes.u64(NFTA_TABLE_HANDLE)?,
            comment: comment(user),
            stamp: stamp.map(u64::from_be_bytes),
        })
    }
}

impl ChainInfo {
    pub(super) fn parse(message: Message<'_>) -> Option<Self> {
        let attributes = message.attributes();
        let hook = attributes.find(NFTA_CHAIN_HOOK).map(Attributes);
        Some(Self {
            family: message.family(),
            table: attributes.text(NFTA_CHAIN_TABLE)?,
            name: attributes.text(NFTA_CHAIN_NAME)?,
            handle: attributes.u64(NFTA_CHAIN_HANDLE)?,
            hook: hook.and_then(|hook| Some((hook.u32(1)?, hook.u32(2)?.cast_signed()))),
            policy: attributes.u32(NFTA_CHAIN_POLICY),
        })
    }
}

impl RuleInfo {
    pub(super) fn parse(message: Message<'_>) -> Option<Self> {
        let attributes = message.attributes();
        Some(Self {
            family: message.family(),
            table: attributes.text(NFTA_RULE_TABLE)?,
            chain: attributes.text(NFTA_RULE_CHAIN)?,
            handle: attributes.u64(NFTA_RULE_HANDLE)?,
            comment: comment(attributes.find(NFTA_RULE_USERDATA).unwrap_or_default()),
            counter: attributes.find(NFTA_RULE_EXPRESSIONS).and_then(counter),
        })
    }
}

fn comment(user: &[u8]) -> Option<String> {
    UserData::find(user, UDATA_COMMENT).map(text)
}

/// Packets and bytes of the first `counter` among expressions.
fn counter(expressions: &[u8]) -> Option<(u64, u64)> {
    Attributes(expressions)
        .map(|(_, one)| Attributes(one))
        .find_map(|expr| {
            let data = Attributes(expr.find(2)?);
            (expr.text(1)? == "counter").then(|| Some((data.u64(2)?, data.u64(1)?)))?
        })
}
