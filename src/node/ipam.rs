//! Whose addresses are whose, and whether journal, leases and kernel agree.
//!
//! [`show`] is pure: a snapshot in, an answer out. The check looks at the kernel as CNI's CHECK does, at every
//! attachment, and mends nothing.

use std::collections::BTreeMap;

use weave_linux::nft::Found;
use weave_model::api::{Ipam, IpamFinding, IpamFindings, IpamNode, NodeRef, Refusal};
use weave_model::{Block, ClusterRange, DeclaredNetwork, NetworkName};
use weave_router::core::command::{Command, CommandError, Reply};
use weave_router::core::view::{AreaUse, Owner, View};

use super::book::Entry;
use super::members::node_ref;
use super::view::prefixes;
use super::works::{Works, strange_reply};
use super::{Node, containers};

impl Node {
    /// The addresses of the cluster by owner.
    pub fn ipam(&self) -> Result<Ipam, Refusal> {
        let view = self.shared.router.view();
        let range = view.range.ok_or(CommandError::NotMember)?;
        Ok(show(&view, &range))
    }
}

/// How the addresses of a cluster stand, as one node sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AddressUse {
    /// The addresses of the range.
    pub range: u64,
    /// Those of them that members own which cannot be reached.
    pub unreachable: u64,
    /// Those that nobody owns.
    pub unowned: u64,
    /// This node's, by network.
    pub networks: Vec<(NetworkName, AreaUse)>,
}

impl Node {
    /// How the cluster's addresses stand.
    pub fn address_use(&self) -> AddressUse {
        let view = self.shared.router.view();
        let book = self.shared.published.borrow().book.clone();
        let declared = book.networks().known.apart();
        let names = view.range.map_or_else(BTreeMap::new, |range| {
            let named = |one: &DeclaredNetwork| Some((range.block(one.range)?, one.name.clone()));
            declared.filter_map(named).collect()
        });
        count(&view, &names)
    }
}

/// `names` are the networks by their part of the range.
fn count(view: &View, names: &BTreeMap<Block, NetworkName>) -> AddressUse {
    let Some(range) = view.range else {
        return AddressUse::default();
    };
    let (mut owned, mut unreachable) = (0, 0);
    for (first, last, owner) in view.owners() {
        let size = u64::from(last - first) + 1;
        owned += size;
        if let Owner::Member(at) = owner
            && view
                .members
                .get(*at as usize)
                .is_some_and(|member| !member.connected)
        {
            unreachable += size;
        }
    }
    let named = |area: &AreaUse| match area.area {
        None => Some((NetworkName::default_network(), *area)),
        Some(block) => Some((names.get(&block)?.clone(), *area)),
    };
    AddressUse {
        range: range.size().into(),
        unreachable,
        unowned: u64::from(range.size()).saturating_sub(owned),
        networks: view.areas.iter().filter_map(named).collect(),
    }
}

fn show(view: &View, range: &ClusterRange) -> Ipam {
    let of = |node: NodeRef, blocks: &[Block]| IpamNode {
        node,
        blocks: prefixes(range, blocks),
        addresses: blocks.iter().map(|block| u64::from(block.size())).sum(),
        used: None,
        free: None,
    };
    let myself = IpamNode {
        used: Some(view.used),
        free: Some(view.capacity.saturating_sub(view.used)),
        ..of(node_ref(view, view.me), &view.mine)
    };
    let mut others: Vec<IpamNode> = view
        .members
        .iter()
        .map(|member| of(node_ref(view, member.id), &member.blocks))
        .collect();
    others.sort_by(|a, b| a.node.name.cmp(&b.node.name));
    let unowned = gaps(view, range);
    Ipam {
        range: range.v4(),
        nodes: std::iter::once(myself).chain(others).collect(),
        unowned_addresses: unowned.iter().map(|block| u64::from(block.size())).sum(),
        unowned: prefixes(range, &unowned),
    }
}

/// What no run of owners covers, in aligned blocks.
fn gaps(view: &View, range: &ClusterRange) -> Vec<Block> {
    let (mut blocks, mut next) = (Vec::new(), 0);
    let end = (range.size(), range.size());
    let runs = view.owners().iter().map(|run| (run.0, run.1 + 1));
    for (first, after) in runs.chain([end]) {
        while next < first {
            let fits = (first - next).ilog2();
            let aligned = if next == 0 {
                fits
            } else {
                next.trailing_zeros().min(fits)
            };
            blocks.extend(Block::new(next, aligned as u8));
            next += 1 << aligned;
        }
        next = after;
    }
    blocks
}

impl Works {
    /// Looks whether the journal of attachments, the leases and the kernel agree.
    pub(super) async fn check_ipam(&self) -> Result<IpamFindings, Refusal> {
        let range = self.range()?;
        let Reply::Leases(leases) = self.router.command(Command::Leases).await? else {
            return Err(strange_reply());
        };
        let mut leases: BTreeMap<String, u32> = leases.into_iter().collect();
        let mut findings = Vec::new();
        let mut found = |of: &str, wrong: String| {
            findings.push(IpamFinding {
                of: of.to_owned(),
                wrong,
            });
        };
        for (lease, offset) in self.booked(range) {
            if leases.remove(&lease) != offset {
                let address =
                    offset.map_or_else(String::new, |offset| range.v4_at(offset).to_string());
                found(&lease, format!("the address {address} is not leased to it"));
            }
        }
        let entries: Vec<&Entry> = self.book.entries().collect();
        for entry in &entries {
            let attachment = &entry.attachment;
            let of = containers::lease_id(&attachment.name, &attachment.ifname);
            for wrong in self.find_faults(entry, range).await? {
                found(&of, wrong);
            }
        }
        for (lease, offset) in &leases {
            let address = range.v4_at(*offset);
            found(
                lease,
                format!("it has the address {address} and is not attached"),
            );
        }
        match self.side.find_rules(range) {
            Ok(Found::Right) => {}
            Ok(Found::Missing) => found("the host", "our rules are gone".to_owned()),
            Ok(Found::Wrong) => found("the host", "our rules were changed".to_owned()),
            Err(error) => found("the host", format!("our rules cannot be read: {error}")),
        }
        Ok(IpamFindings {
            checked: entries.len() as u32,
            findings,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_owns_is_shown_in_blocks() {
        let range = ClusterRange::new(
            "10.32.0.0/24".parse().unwrap(),
            "fd00::/48".parse().unwrap(),
        )
        .unwrap();
        let mut view = View::empty(
            weave_model::NodeId::from_bytes([1; 32]),
            "host1".parse().unwrap(),
        );
        let shown = |view: &View| -> Vec<String> {
            let shown = show(view, &range);
            let sum: u64 = shown
                .unowned
                .iter()
                .map(|net| 1 << (32 - net.prefix_len()))
                .sum();
            assert_eq!(sum, shown.unowned_addresses);
            shown.unowned.iter().map(ToString::to_string).collect()
        };
        assert_eq!(shown(&view), ["10.32.0.0/24"]);
        view.mine = vec![Block::new(64, 5).unwrap()];
        view.claim_own();
        assert_eq!(
            shown(&view),
            ["10.32.0.0/26", "10.32.0.96/27", "10.32.0.128/25"]
        );
        view.mine = vec![Block::new(0, 8).unwrap()];
        view.claim_own();
        assert_eq!(shown(&view), [""; 0]);
    }

    #[test]
    fn what_members_own_that_cannot_be_reached_is_counted() {
        let range = ClusterRange::new(
            "10.32.0.0/24".parse().unwrap(),
            "fd00::/48".parse().unwrap(),
        );
        let mut view = View::empty(
            weave_model::NodeId::from_bytes([1; 32]),
            "host1".parse().unwrap(),
        );
        assert_eq!(count(&view, &BTreeMap::new()), AddressUse::default());
        view.range = range.ok();
        view.mine = vec![Block::new(64, 5).unwrap()];
        view.claim_own();
        let (known, unknown) = (Block::new(128, 4).unwrap(), Block::new(160, 4).unwrap());
        let area = |area| AreaUse {
            area,
            capacity: 8,
            used: 3,
            asking: area.is_none(),
        };
        view.areas = vec![area(None), area(Some(known)), area(Some(unknown))];
        let names = BTreeMap::from([(known, "blue".parse().unwrap())]);
        let counted = count(&view, &names);
        let seen = (counted.range, counted.unreachable, counted.unowned);
        assert_eq!(seen, (256, 0, 224), "its own are never out of reach");
        let networks: Vec<&str> = counted
            .networks
            .iter()
            .map(|(name, _)| name.as_str())
            .collect();
        assert_eq!(
            networks,
            ["default", "blue"],
            "what is not declared any more has no name"
        );
    }
}
