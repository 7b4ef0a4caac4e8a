//! What members tell of themselves, and what this node tells: the sheets, read and written.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use weave_model::api::{Code, Refusal};
use weave_model::{CheckedService, DeclaredService, NodeId, Sheet, SheetContainer};
use weave_proxy::declared::Member;
use weave_router::core::command::CommandError;
use weave_router::core::view::View;
use weave_router::mesh::sheet::MAX_CONTENT;

use super::book::Book;
use crate::obstacle::Obstacle;

/// The longest sheet that a Service may make, in bytes: the rest is for containers to come and for why checks fail.
const MAX_WITH_SERVICES: usize = MAX_CONTENT / 4 * 3;

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
            floating: attachment.also.clone(),
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
        ended: book.ended().told().collect(),
    }
}

/// A sheet as the others get it. Where it is longer than it may be, it goes without what they need least of what checks
/// found: why endpoints fail, then which do, for one that nothing is said of is used no more than one that fails, and
/// at last which pass. What is left may still be too long.
pub(super) fn written(sheet: &Sheet) -> Vec<u8> {
    let leave_out: [fn(&mut CheckedService); 3] = [
        |one| one.failed.iter_mut().for_each(|failed| failed.why.clear()),
        |one| one.failed.clear(),
        |one| one.passed.clear(),
    ];
    let mut content = json(sheet);
    let mut shorter = None;
    for leave_out in leave_out {
        if content.len() <= MAX_CONTENT {
            break;
        }
        let shorter = shorter.get_or_insert_with(|| sheet.clone());
        shorter.health.iter_mut().for_each(leave_out);
        content = json(shorter);
    }
    content
}

fn json(sheet: &Sheet) -> Vec<u8> {
    serde_json::to_vec(sheet).expect("a sheet of strings and numbers is JSON")
}

/// Refuses the Service that was made last if there is no room on the sheet to tell of it, and of all named endpoints
/// that are checked that they pass: with one too many, the others would learn nothing of this node any more.
pub(super) fn check_room(book: &Book) -> Result<(), Refusal> {
    let all_pass = |made: &DeclaredService| {
        let at = |endpoint: &SocketAddr| {
            let port = made.spec.checked_port(Some(endpoint.port()))?;
            Some(SocketAddr::new(endpoint.ip(), port))
        };
        CheckedService {
            name: made.name.clone(),
            stamp: made.stamp,
            passed: made.spec.endpoints.iter().filter_map(at).collect(),
            failed: Vec::new(),
        }
    };
    let made = book.services().made.iter();
    let checked = made.filter(|made| made.spec.health.is_some());
    let health: Vec<CheckedService> = checked.map(all_pass).collect();
    let length = json(&own_sheet(book, &health)).len();
    if length <= MAX_WITH_SERVICES {
        return Ok(());
    }
    let cause = format!(
        "with this service this node would have {} KiB to tell the others, of which services may make {}",
        length.div_ceil(1024),
        MAX_WITH_SERVICES >> 10
    );
    let fix = "make it on another node, name fewer endpoints, select containers by a label, or remove other services \
               that were made here";
    Err(Refusal::new(Code::Conflict, cause, fix))
}

/// Refuses claims of floating addresses that there is no room on the sheet to tell of.
pub(super) fn check_claims_room(book: &Book) -> Result<(), Refusal> {
    let Some(length) = too_long(book) else {
        return Ok(());
    };
    let cause = format!(
        "with these floating addresses this node would have {length} KiB to tell the others, more than the {} that it may",
        MAX_CONTENT >> 10
    );
    let fix = "give them to a container on another node, or detach containers here, or attach them with fewer labels";
    Err(Refusal::new(Code::Conflict, cause, fix))
}

/// What is amiss if there is no room on the sheet even without what checks found.
pub(super) fn obstacle(book: &Book) -> Option<Obstacle> {
    too_long(book).map(|length| {
        let cause = format!(
            "this node has {length} KiB to tell the others, more than the {} that it may: they do not learn of its new \
             containers and services, nor of those that are gone",
            MAX_CONTENT >> 10
        );
        Obstacle::new(cause, CommandError::SheetTooLong.fix())
    })
}

/// How many KiB the sheet has without what checks found, if that is more than it may.
fn too_long(book: &Book) -> Option<usize> {
    let length = json(&own_sheet(book, &[])).len();
    (length > MAX_CONTENT).then(|| length.div_ceil(1024))
}

/// All members as they are seen now, whatever checks found; their sheets are read anew.
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

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use weave_model::{DeclaredPort, FailedCheck, HealthCheck, Protocol, ServiceSpec};

    use super::*;

    /// A Service of a thousand endpoints.
    fn large(number: usize, health: Option<HealthCheck>) -> DeclaredService {
        let port = DeclaredPort {
            port: 80,
            target: 80,
            protocol: Protocol::Tcp,
            node_port: None,
        };
        let endpoint = |n: u16| SocketAddr::new(Ipv4Addr::new(10, 32, 0, 2).into(), 10_000 + n);
        DeclaredService {
            name: format!("large{number}").parse().expect("a name"),
            stamp: 1_700_000_000_000,
            address: Ipv4Addr::new(10, 96, 0, 1),
            spec: ServiceSpec {
                ports: vec![port],
                endpoints: (0..1000).map(endpoint).collect(),
                health,
                ..ServiceSpec::default()
            },
        }
    }

    /// How many large Services a node takes.
    fn taken(health: Option<&HealthCheck>) -> (Book, usize) {
        let mut book = Book::default();
        for number in 0..100 {
            let made = large(number, health.cloned());
            book.services_mut().made.push(made);
            if check_room(&book).is_err() {
                book.services_mut().made.pop();
                return (book, number);
            }
        }
        panic!("there is no end to it");
    }

    /// What checks found of all endpoints that a book names.
    fn found(book: &Book, passes: impl Fn(usize) -> bool) -> Vec<CheckedService> {
        let made = book.services().made.iter();
        made.map(|made| {
            let numbered = || made.spec.endpoints.iter().copied().enumerate();
            let passed = numbered().filter(|(n, _)| passes(*n)).map(|(_, at)| at);
            let failed = numbered().filter(|(n, _)| !passes(*n));
            CheckedService {
                name: made.name.clone(),
                stamp: made.stamp,
                passed: passed.collect(),
                failed: failed
                    .map(|(_, at)| FailedCheck {
                        at,
                        why: "connections are refused".to_owned(),
                    })
                    .collect(),
            }
        })
        .collect()
    }

    fn read(content: &[u8]) -> Sheet {
        assert!(content.len() <= MAX_CONTENT, "{}", content.len());
        serde_json::from_slice(content).expect("it is a sheet")
    }

    #[test]
    fn services_are_made_while_there_is_room_to_tell_of_them() {
        let (plain, checked) = (taken(None).1, taken(Some(&HealthCheck::default())).1);
        assert_eq!((plain, checked), (8, 4));
    }

    #[test]
    fn whatever_checks_find_of_them_the_rest_is_told() {
        let (book, _) = taken(Some(&HealthCheck::default()));
        // All pass: nothing is left out.
        let sheet = own_sheet(&book, &found(&book, |_| true));
        assert_eq!(read(&written(&sheet)), sheet);
        // Some fail: it is told which, and not why.
        let sheet = own_sheet(&book, &found(&book, |n| n % 2 > 0));
        let told = read(&written(&sheet));
        let failed = told.health[0].failed.iter();
        assert!(failed.clone().all(|failed| failed.why.is_empty()));
        assert_eq!(failed.count(), 500);
        assert_eq!(told.health[0].passed, sheet.health[0].passed);
        // All fail: nothing is said of them.
        let told = read(&written(&own_sheet(&book, &found(&book, |_| false))));
        assert!(told.health.iter().all(|one| one.failed.is_empty()));
        assert_eq!(told.services, sheet.services);
    }

    #[test]
    fn a_sheet_without_room_is_an_obstacle() {
        let (mut book, plain) = taken(None);
        assert_eq!(obstacle(&book), None);
        let more = (0..4).map(|number| large(plain + number, None));
        book.services_mut().made.extend(more);
        let obstacle = obstacle(&book).expect("there is no room");
        assert!(obstacle.cause.contains("more than the 192"), "{obstacle:?}");
    }

    #[test]
    fn floating_addresses_are_claimed_while_there_is_room_to_tell_of_them() {
        let claim = |last: u8| weave_model::Floating {
            ip: Ipv4Addr::new(10, 45, 0, last).into(),
            pool: "vips".parse().expect("a name"),
            stamp: 1_700_000_000_000,
        };
        let (mut book, _) = taken(None);
        let mut web = super::super::book::tests::entry("web", "eth0", 1);
        web.attachment.also = vec![claim(1)];
        book.insert(web.clone());
        let value = "v".repeat(63);
        let labels = |count: usize| {
            let key = |n| format!("k{n}").parse().expect("a key");
            let labels = (0..count).map(|n| (key(n), value.parse().expect("a value")));
            labels.collect::<BTreeMap<_, _>>()
        };
        let mut count = 0;
        while check_claims_room(&book).is_ok() {
            count += 1;
            web.attachment.labels = labels(count);
            book.insert(web.clone());
        }
        web.attachment.labels = labels(count - 1);
        book.insert(web.clone());
        assert_eq!(check_claims_room(&book), Ok(()));
        web.attachment.also.extend((2..18).map(claim));
        book.insert(web);
        let refusal = check_claims_room(&book).expect_err("there is no room");
        assert!(refusal.message.contains("more than the 192"), "{refusal:?}");
        assert!(refusal.fix.contains("on another node"), "{refusal:?}");
    }
}
