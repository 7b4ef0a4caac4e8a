//! Services out of what members tell: the same everywhere, with one winner for each name and address.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use weave_model::{
    CheckedService, DeclaredPort, DeclaredService, FailedCheck, HealthCheck, NodeId, Protocol,
    RemovedService, ServiceName, ServiceSpec, Sheet, SheetContainer,
};
use weave_proxy::declared::{Member, Reported, VirtualRange, resolve, wanted, without_address};
use weave_proxy::facts::Facts;
use weave_proxy::sources::{Change, Sources};

fn range() -> VirtualRange {
    VirtualRange::new(
        "10.96.0.0/16".parse().unwrap(),
        "fd00::/48".parse().unwrap(),
    )
}

fn service(name: &str, address: [u8; 4]) -> DeclaredService {
    DeclaredService {
        name: name.parse().unwrap(),
        stamp: 1,
        address: address.into(),
        spec: ServiceSpec {
            ports: vec![DeclaredPort {
                port: 80,
                target: 8080,
                protocol: Protocol::Tcp,
                node_port: None,
            }],
            selector: [("app".parse().unwrap(), "web".parse().unwrap())].into(),
            ..ServiceSpec::default()
        },
    }
}

fn container(name: &str, ip: &str, app: &str) -> SheetContainer {
    SheetContainer {
        name: name.parse().unwrap(),
        ips: vec![ip.parse().unwrap()],
        floating: Vec::new(),
        labels: [("app".parse().unwrap(), app.parse().unwrap())].into(),
    }
}

fn member(id: u8, services: Vec<DeclaredService>, containers: Vec<SheetContainer>) -> Member {
    Member {
        id: NodeId::from_bytes([id; 32]),
        name: format!("host{id}").parse().unwrap(),
        reachable: true,
        sheet: Sheet {
            services,
            containers,
            ..Sheet::default()
        },
    }
}

fn addresses(members: &[Member], name: &str) -> Vec<String> {
    let all = resolve(members, &range());
    let backends = &all[&name.parse().unwrap()].backends;
    let reachable = backends.iter().filter(|backend| backend.reachable);
    reachable
        .map(|backend| backend.at(8080).to_string())
        .collect()
}

#[test]
fn containers_of_all_members_are_behind_a_service() {
    let mut members = vec![
        member(
            1,
            vec![service("web", [10, 96, 0, 1])],
            vec![container("a", "10.32.0.2", "web")],
        ),
        member(
            2,
            vec![],
            vec![
                container("a", "10.40.0.2", "web"),
                container("b", "10.40.0.3", "db"),
            ],
        ),
    ];
    assert_eq!(
        addresses(&members, "web"),
        ["10.32.0.2:8080", "10.40.0.2:8080"]
    );
    members[1].reachable = false;
    assert_eq!(addresses(&members, "web"), ["10.32.0.2:8080"]);
}

#[test]
fn containers_are_behind_a_service_by_name_on_whichever_nodes() {
    let mut db = service("db", [10, 96, 0, 1]);
    db.spec.selector.clear();
    db.spec.containers = ["a", "b"].map(|name| name.parse().unwrap()).into();
    let members = [
        member(1, vec![db], vec![container("a", "10.32.0.2", "web")]),
        member(
            2,
            vec![],
            vec![
                container("a", "10.40.0.2", "db"),
                container("b", "10.40.0.3", "db"),
                container("c", "10.40.0.4", "db"),
            ],
        ),
    ];
    assert_eq!(
        addresses(&members, "db"),
        ["10.32.0.2:8080", "10.40.0.2:8080", "10.40.0.3:8080"]
    );
}

#[test]
fn the_lower_node_wins_a_name_and_an_address() {
    let one = member(1, vec![service("web", [10, 96, 0, 1])], vec![]);
    let two = member(
        2,
        vec![
            service("web", [10, 96, 0, 7]),
            service("db", [10, 96, 0, 1]),
        ],
        vec![],
    );
    for members in [[one.clone(), two.clone()], [two, one]] {
        let all = resolve(&members, &range());
        let web = &all[&"web".parse().unwrap()];
        assert_eq!(
            (web.maker, web.made.address),
            (NodeId::from_bytes([1; 32]), Ipv4Addr::new(10, 96, 0, 1))
        );
        assert_eq!(web.hidden, [(NodeId::from_bytes([2; 32]), 1)]);
        let db = &all[&"db".parse().unwrap()];
        assert!(db.addresses.is_empty() && db.hidden.is_empty());
        let lost = |id| without_address(NodeId::from_bytes([id; 32]), &all).collect::<Vec<_>>();
        assert_eq!(lost(1), [] as [&ServiceName; 0]);
        assert_eq!(lost(2), [&"db".parse::<ServiceName>().unwrap()]);
    }
}

#[test]
fn a_service_without_an_address_of_the_range_is_its_makers_to_move() {
    let inside = service("web", [10, 96, 0, 1]);
    let outside = service("db", [10, 97, 0, 1]);
    let members = [
        member(1, vec![inside], vec![]),
        member(2, vec![outside], vec![]),
    ];
    let all = resolve(&members, &range());
    let lost = |id| without_address(NodeId::from_bytes([id; 32]), &all).count();
    assert_eq!((lost(1), lost(2)), (0, 1));
}

#[test]
fn anybody_may_remove_a_service_but_not_its_successor() {
    let mut members = vec![
        member(1, vec![service("web", [10, 96, 0, 1])], vec![]),
        member(2, vec![], vec![]),
    ];
    members[1].sheet.removed = vec![RemovedService {
        name: "web".parse().unwrap(),
        maker: members[0].id,
        stamp: 1,
    }];
    assert!(resolve(&members, &range()).is_empty());
    members[0].sheet.services[0].stamp = 2;
    assert_eq!(resolve(&members, &range()).len(), 1);
    // One that is removed hides nothing, and is not hidden.
    members[0].sheet.services[0].stamp = 1;
    members[1].sheet.services = vec![service("web", [10, 96, 0, 2])];
    let all = resolve(&members, &range());
    let web = &all[&"web".parse().unwrap()];
    assert_eq!((web.maker, &*web.hidden), (members[1].id, &[][..]));
}

#[test]
fn what_another_node_tells_is_checked() {
    let mut odd = service("odd", [10, 96, 0, 2]);
    odd.spec.ports.clear();
    let outside = service("outside", [192, 0, 2, 1]);
    let members = [member(1, vec![odd, outside], vec![])];
    let all = resolve(&members, &range());
    assert_eq!(all.len(), 1);
    assert!(all[&"outside".parse().unwrap()].addresses.is_empty());
}

#[test]
fn both_families_lie_at_the_same_place() {
    assert_eq!(
        range().v6(),
        Some("fd00:0:0:ffff:ffff:ffff:ffff:0/112".parse().unwrap())
    );
    let both = range().both(Ipv4Addr::new(10, 96, 1, 2));
    let six: IpAddr = "fd00:0:0:ffff:ffff:ffff:ffff:102".parse().unwrap();
    assert_eq!(both, [IpAddr::V4(Ipv4Addr::new(10, 96, 1, 2)), six]);
    let tight = VirtualRange::new(
        "10.96.0.0/16".parse().unwrap(),
        "fd00::/104".parse().unwrap(),
    );
    assert_eq!(tight.v6(), None, "no room beside the containers");
}

#[test]
fn addresses_are_chosen_by_name_and_never_twice() {
    let small = VirtualRange::new(
        "10.96.0.0/28".parse().unwrap(),
        "fd00::/48".parse().unwrap(),
    );
    let name = "web".parse().unwrap();
    assert_eq!(
        small.choose(&name, &BTreeSet::new()),
        small.choose(&name, &BTreeSet::new())
    );
    let mut used = BTreeSet::new();
    while let Some(address) = small.choose(&name, &used) {
        assert!(small.v4().contains(&address) && used.insert(address));
    }
    assert_eq!(used.len(), 14, "all but the first and the last");
}

#[test]
fn reports_lead_from_one_state_to_the_next() {
    let web = |containers| {
        let members = [member(1, vec![service("web", [10, 96, 0, 1])], containers)];
        resolve(&members, &range())
    };
    let (mut reported, mut sources) = (Reported::default(), Sources::default());
    let mut targets = |declared: &BTreeMap<_, _>| {
        let changes = reported.changes(declared);
        let count = changes.len();
        changes
            .into_iter()
            .for_each(|change: Change| sources.handle(change));
        let table = sources.build().0;
        let targets = table
            .entries
            .values()
            .map(|entry| entry.cluster.len())
            .sum::<usize>();
        (count, targets)
    };
    assert_eq!(
        targets(&web(vec![container("a", "10.32.0.2", "web")])),
        (2, 1)
    );
    assert_eq!(
        targets(&web(vec![container("a", "10.32.0.2", "web")])),
        (0, 1)
    );
    let six = container("c", "fd00::2", "web");
    assert_eq!(
        targets(&web(vec![container("a", "10.32.0.2", "web"), six])),
        (1, 2)
    );
    assert_eq!(targets(&web(vec![])), (2, 0));
    assert_eq!(targets(&BTreeMap::new()), (1, 0));
}

/// `web` with a check.
fn checked(name: &str) -> DeclaredService {
    let made = service(name, [10, 96, 0, 1]);
    DeclaredService {
        spec: ServiceSpec {
            health: Some(HealthCheck::default()),
            ..made.spec
        },
        ..made
    }
}

/// What a member says of `web`: these passed, those did not.
fn says(member: &mut Member, passed: &[&str], failed: &[&str]) {
    let at = |text: &&str| text.parse().unwrap();
    member.sheet.health = vec![CheckedService {
        name: "web".parse().unwrap(),
        stamp: 1,
        passed: passed.iter().map(at).collect(),
        failed: failed
            .iter()
            .map(|text| FailedCheck {
                at: at(text),
                why: "refused".to_owned(),
            })
            .collect(),
    }];
}

/// The endpoints of `web` that connections go to.
fn used(members: &[Member]) -> Vec<String> {
    let changes = Reported::default().changes(&resolve(members, &range()));
    let slices = changes.into_iter().filter_map(|change| match change {
        Change::Slice(slice) => Some(slice),
        _ => None,
    });
    let ready = slices
        .flat_map(|slice| slice.endpoints)
        .filter(|one| one.ready);
    ready.map(|one| one.address.to_string()).collect()
}

fn two_checked() -> Vec<Member> {
    vec![
        member(
            1,
            vec![checked("web")],
            vec![container("a", "10.32.0.2", "web")],
        ),
        member(2, vec![], vec![container("b", "10.40.0.2", "web")]),
    ]
}

#[test]
fn endpoints_are_used_once_their_check_passes_and_all_of_them_while_none_does() {
    let mut members = two_checked();
    let last_resort =
        |members: &[Member]| resolve(members, &range())[&"web".parse().unwrap()].last_resort;
    assert_eq!(used(&members), ["10.32.0.2", "10.40.0.2"]);
    assert!(last_resort(&members));
    says(&mut members[0], &["10.32.0.2:8080"], &[]);
    assert_eq!(
        used(&members),
        ["10.32.0.2"],
        "the other is not checked yet"
    );
    says(&mut members[1], &["10.40.0.2:8080"], &[]);
    assert_eq!(used(&members), ["10.32.0.2", "10.40.0.2"]);
    says(&mut members[0], &[], &["10.32.0.2:8080"]);
    assert_eq!(used(&members), ["10.40.0.2"]);
    says(&mut members[1], &[], &["10.40.0.2:8080"]);
    assert_eq!(used(&members), ["10.32.0.2", "10.40.0.2"]);
    assert!(last_resort(&members));
    // Who cannot be reached is no last resort.
    members[1].reachable = false;
    assert_eq!(used(&members), ["10.32.0.2"]);
}

#[test]
fn a_member_is_believed_of_its_own_containers_only_and_of_this_service_only() {
    let mut members = two_checked();
    says(&mut members[1], &["10.40.0.2:8080"], &["10.32.0.2:8080"]);
    says(&mut members[0], &["10.32.0.2:8080"], &["10.40.0.2:8080"]);
    assert_eq!(used(&members), ["10.32.0.2", "10.40.0.2"]);
    members[1].sheet.health[0].stamp = 2;
    assert_eq!(
        used(&members),
        ["10.32.0.2"],
        "it speaks of a service of that name that was"
    );
}

#[test]
fn each_endpoint_is_checked_by_one_member() {
    let mut members = two_checked();
    let id = |member: &Member| member.id;
    let checks = |members: &[Member], of: usize| -> Vec<String> {
        let declared = resolve(members, &range());
        let wanted = wanted(id(&members[of]), &declared, &Facts::default());
        wanted
            .keys()
            .map(|subject| subject.at.to_string())
            .collect()
    };
    assert_eq!(checks(&members, 0), ["10.32.0.2:8080"]);
    assert_eq!(checks(&members, 1), ["10.40.0.2:8080"]);
    // Endpoints that are nobody's container: the maker's, and another's while it cannot be reached.
    let spec = &mut members[0].sheet.services[0].spec;
    spec.selector.clear();
    spec.endpoints = vec![
        "198.51.100.7:443".parse().unwrap(),
        "10.40.0.2:9".parse().unwrap(),
    ];
    assert_eq!(checks(&members, 0), ["198.51.100.7:443"]);
    assert_eq!(checks(&members, 1), ["10.40.0.2:9"]);
    let spec = &mut members[0].sheet.services[0].spec;
    spec.endpoints.push("127.0.0.1:22".parse().unwrap());
    assert_eq!(checks(&members, 0), ["198.51.100.7:443"], "nobody's");
    members[0].reachable = false;
    assert_eq!(checks(&members, 1), ["10.40.0.2:9", "198.51.100.7:443"]);
    assert_eq!(checks(&members, 0), [""; 0]);
}

#[test]
fn what_the_table_refuses_is_not_checked() {
    let good: SocketAddr = "10.40.0.2:80".parse().unwrap();
    let refused = ["127.0.0.1:80", "10.32.0.1:2375", "10.96.0.9:80"];
    let mut named = checked("web");
    named.spec.selector.clear();
    named.spec.endpoints = refused.iter().map(|at| at.parse().unwrap()).collect();
    named.spec.endpoints.push(good);
    let members = [member(1, vec![named], vec![])];
    let facts = Facts {
        no_endpoints: ["10.32.0.1".parse().unwrap()].into(),
        ranges: vec!["10.96.0.0/16".parse().unwrap()],
        ..Facts::default()
    };
    let wanted = wanted(members[0].id, &resolve(&members, &range()), &facts);
    let at: Vec<SocketAddr> = wanted.keys().map(|subject| subject.at).collect();
    assert_eq!(at, [good]);
}
