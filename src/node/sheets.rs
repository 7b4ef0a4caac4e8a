//! What members tell of themselves, and what this node tells: the sheets, read and written.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use weave_model::{CheckedService, NodeId, Sheet, SheetContainer};
use weave_proxy::declared::Member;
use weave_router::core::view::View;

use super::book::Book;

/// What this node tells.
pub(super) fn own_sheet(book: &Book, health: &[CheckedService]) -> Sheet {
    let containers = book.entries().map(|entry| {
        let attachment = &entry.attachment;
        let v6 = attachment.ip6.map(|ip6| IpAddr::V6(ip6.addr()));
        SheetContainer {
            name: attachment.name.clone(),
            ips: std::iter::once(IpAddr::V4(attachment.ip.addr()))
                .chain(v6)
                .collect(),
            labels: attachment.labels.clone(),
        }
    });
    let host = book.host().map(|host| host.ip);
    Sheet {
        services: book.services().made.clone(),
        removed: book.services().removed.clone(),
        containers: containers.collect(),
        health: health.to_vec(),
        networks: book.networks().told(|name| book.uses_network(name)),
        removed_networks: book.networks().removed.clone(),
        own: host.into_iter().chain(book.services().source).collect(),
    }
}

/// All members as the desk sees them: it decides nothing by what checks found.
pub(super) fn members_now(view: &View, book: &Book) -> Vec<Member> {
    members(view, own_sheet(book, &[]), &mut Sheets::default(), true)
}

/// The sheets that were read already, by the bytes they were read from.
#[derive(Default)]
pub(super) struct Sheets(BTreeMap<NodeId, (Arc<[u8]>, Sheet)>);

impl Sheets {
    fn read(&mut self, node: NodeId, content: &Arc<[u8]>) -> Sheet {
        if let Some((from, sheet)) = self.0.get(&node)
            && Arc::ptr_eq(from, content)
        {
            return sheet.clone();
        }
        let sheet = serde_json::from_slice(content).unwrap_or_else(|error| {
            tracing::warn!(node = %node.short(), %error, "what a member tells cannot be read");
            Sheet::default()
        });
        self.0.insert(node, (Arc::clone(content), sheet.clone()));
        sheet
    }
}

/// All members and what they tell, this node among them.
pub(super) fn members(view: &View, sheet: Sheet, sheets: &mut Sheets, young: bool) -> Vec<Member> {
    let myself = Member {
        id: view.me,
        name: view.name.clone(),
        reachable: true,
        sheet,
    };
    let others = view.members.iter().map(|member| Member {
        id: member.id,
        name: member.name.clone(),
        reachable: member.connected || young && member.since.is_none(),
        sheet: view
            .sheets
            .get(&member.id)
            .map_or_else(Sheet::default, |content| sheets.read(member.id, content)),
    });
    std::iter::once(myself).chain(others).collect()
}
