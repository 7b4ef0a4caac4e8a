//! Tables and chains: where rules live and when the kernel runs them.

use super::wire::{Attrs, UserData};

/// What packets a table sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Family {
    /// IPv4 and IPv6.
    Inet = 1,
    /// IPv4 only.
    Ip = 2,
    /// IPv6 only.
    Ip6 = 10,
}

impl Family {
    /// The word `nft` uses.
    pub(super) const fn word(code: u8) -> &'static str {
        match code {
            1 => "inet",
            2 => "ip",
            10 => "ip6",
            _ => "table",
        }
    }
}

/// A table: its name and what marks it as ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    pub(super) family: Family,
    pub(super) name: String,
    comment: Option<String>,
    stamp: Option<u64>,
    owned: bool,
}

impl Table {
    /// A table of a family.
    pub fn new(family: Family, name: impl Into<String>) -> Self {
        Self {
            family,
            name: name.into(),
            comment: None,
            stamp: None,
            owned: false,
        }
    }

    /// A table for IPv4 and IPv6.
    pub fn inet(name: impl Into<String>) -> Self {
        Self::new(Family::Inet, name)
    }

    /// Says whose it is; `nft` prints it. Takes effect when the table is made, and needs Linux 5.10.
    #[must_use]
    pub fn comment(mut self, comment: impl Into<String>) -> Self {
        self.comment = Some(comment.into());
        self
    }

    /// A number kept with the table that `nft` does not print: say, a hash of the rules, to find on the next start
    /// whether they are still the wanted ones. Takes effect when the table is made.
    #[must_use]
    pub const fn stamp(mut self, stamp: u64) -> Self {
        self.stamp = Some(stamp);
        self
    }

    /// It belongs to the socket that makes it: nobody else can change it, and it goes when the socket is closed, so also
    /// with a process that is killed. Takes effect when the table is made, and needs Linux 5.12.
    #[must_use]
    pub const fn owned(mut self) -> Self {
        self.owned = true;
        self
    }

    /// Its family.
    pub const fn family(&self) -> Family {
        self.family
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn encode(&self) -> Attrs {
        let mut attrs = Attrs::default();
        attrs.text(NFTA_TABLE_NAME, &self.name);
        if self.owned {
            attrs.u32(NFTA_TABLE_FLAGS, NFT_TABLE_F_OWNER);
        }
        let mut user = UserData::default();
        if let Some(comment) = &self.comment {
            user.put_text(UDATA_COMMENT, comment);
        }
        if let Some(stamp) = self.stamp {
            user.put(UDATA_STAMP, &stamp.to_be_bytes());
        }
        if !user.as_bytes().is_empty() {
            attrs.bytes(NFTA_TABLE_USERDATA, user.as_bytes());
        }
        attrs
    }
}

pub(super) const NFTA_TABLE_NAME: u16 = 1;
const NFTA_TABLE_FLAGS: u16 = 2;
const NFT_TABLE_F_OWNER: u32 = 2;
pub(super) const NFTA_TABLE_HANDLE: u16 = 4;
pub(super) const NFTA_TABLE_USERDATA: u16 = 6;
/// `NFTNL_UDATA_TABLE_COMMENT`, and the same number for chains and rules.
pub(super) const UDATA_COMMENT: u8 = 0;
/// Ours: [`Table::stamp`]. Far from the numbers `nft` has given so far; it skips those it does not know.
pub(super) const UDATA_STAMP: u8 = 0xe5;

/// Where in a packet's way a base chain stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Hook {
    /// Before routing, for all that arrives.
    Prerouting = 0,
    /// For what this host itself receives.
    Input = 1,
    /// For what passes through.
    Forward = 2,
    /// For what this host itself sends.
    Output = 3,
    /// After routing, for all that leaves.
    Postrouting = 4,
}

/// What happens to a packet that leaves the end of a base chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Policy {
    /// It goes on.
    Accept = 1,
    /// It is dropped.
    Drop = 0,
}

/// The priorities of `nft`'s names: lower runs first.
pub mod priority {
    /// Before connection tracking.
    pub const RAW: i32 = -300;
    /// After connection tracking, before destination NAT.
    pub const MANGLE: i32 = -150;
    /// Destination NAT in prerouting and output.
    pub const DSTNAT: i32 = -100;
    /// Filters.
    pub const FILTER: i32 = 0;
    /// Source NAT in postrouting and input.
    pub const SRCNAT: i32 = 100;
}

/// A chain of rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    name: String,
    base: Option<Base>,
    comment: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Base {
    kind: &'static str,
    hook: Hook,
    priority: i32,
    policy: Policy,
}

impl Chain {
    /// A chain entered only by jump or goto.
    pub fn regular(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            base: None,
            comment: None,
        }
    }

    /// A chain the kernel enters at a hook.
    pub fn filter(name: impl Into<String>, hook: Hook, priority: i32, policy: Policy) -> Self {
        Self::base(name, "filter", hook, priority, policy)
    }

    /// A chain the kernel enters with the first packet of each connection; translations are allowed in it.
    pub fn nat(name: impl Into<String>, hook: Hook, priority: i32, policy: Policy) -> Self {
        Self::base(name, "nat", hook, priority, policy)
    }

    /// A chain in output whose changes to the packet make the kernel route it again.
    pub fn route(name: impl Into<String>, priority: i32, policy: Policy) -> Self {
        Self::base(name, "route", Hook::Output, priority, policy)
    }

    fn base(
        name: impl Into<String>,
        kind: &'static str,
        hook: Hook,
        priority: i32,
        policy: Policy,
    ) -> Self {
        Self {
            name: name.into(),
            base: Some(Base {
                kind,
                hook,
                priority,
                policy,
            }),
            comment: None,
        }
    }

    /// A word for people; needs Linux 5.10.
    #[must_use]
    pub fn comment(mut self, comment: impl Into<String>) -> Self {
        self.comment = Some(comment.into());
        self
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn encode(&self, table: &Table) -> Attrs {
        let mut attrs = Attrs::default();
        attrs
            .text(NFTA_CHAIN_TABLE, &table.name)
            .text(NFTA_CHAIN_NAME, &self.name);
        if let Some(base) = &self.base {
            attrs
                .text(NFTA_CHAIN_TYPE, base.kind)
                .u32(NFTA_CHAIN_POLICY, base.policy as u32);
            attrs.nest(NFTA_CHAIN_HOOK, |hook| {
                hook.u32(1, base.hook as u32)
                    .u32(2, base.priority.cast_unsigned());
            });
        }
        if let Some(comment) = &self.comment {
            let mut user = UserData::default();
            user.put_text(UDATA_COMMENT, comment);
            attrs.bytes(NFTA_CHAIN_USERDATA, user.as_bytes());
        }
        attrs
    }
}

pub(super) const NFTA_CHAIN_TABLE: u16 = 1;
pub(super) const NFTA_CHAIN_HANDLE: u16 = 2;
pub(super) const NFTA_CHAIN_NAME: u16 = 3;
pub(super) const NFTA_CHAIN_HOOK: u16 = 4;
pub(super) const NFTA_CHAIN_POLICY: u16 = 5;
pub(super) const NFTA_CHAIN_TYPE: u16 = 7;
const NFTA_CHAIN_USERDATA: u16 = 12;
