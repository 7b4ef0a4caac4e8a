//! The netlink verbs against the kernel, in namespaces of the tests' own. Needs root.
//!
//! The namespaces have no names: they end with the test, however it ends.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::process::Command;
use std::time::{Duration, Instant};

use weave_linux::netlink::link::LinkChange;
use weave_linux::netlink::{
    Address, Ensured, Error, IfName, Link, Neighbour, Netlink, Route, VethEnd, neigh, route,
};
use weave_linux::netns::{self, Netns, NetnsRef, run_in};
use weave_linux::poll::readable;
use weave_linux::sysctl;
use weave_linux::uevent::{Uevents, tells_generation};

fn name(text: &str) -> IfName {
    text.parse().unwrap()
}

fn end(text: &str) -> VethEnd {
    VethEnd {
        name: name(text),
        mac: [2, 0, 0, 0, 0, text.as_bytes()[0]],
    }
}

fn net(text: &str) -> ipnet::IpNet {
    text.parse().unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A namespace with a veth `a` that is up, whose other end `b` is up in a second one.
struct Pair {
    here: Netlink,
    there: Netlink,
    a: Link,
    b: Link,
    _namespaces: [Netns; 2],
}

async fn pair() -> Pair {
    let namespaces = [Netns::create().unwrap(), Netns::create().unwrap()];
    let here = Netlink::open_in(&namespaces[0]).unwrap();
    let there = Netlink::open_in(&namespaces[1]).unwrap();
    here.add_veth(&end("a"), &end("b"), &namespaces[1], 1400)
        .await
        .unwrap();
    let up = LinkChange {
        up: Some(true),
        ..LinkChange::default()
    };
    let a = here.link(&name("a")).await.unwrap().unwrap();
    let b = there.link(&name("b")).await.unwrap().unwrap();
    here.set_link(a.index, &up).await.unwrap();
    there.set_link(b.index, &up).await.unwrap();
    Pair {
        here,
        there,
        a,
        b,
        _namespaces: namespaces,
    }
}

#[test]
fn a_thread_enters_and_nobody_else_does() {
    let before = Netns::current().unwrap().id();
    let other = Netns::create().unwrap();
    assert_ne!(other.id(), before);
    let inside = run_in(&other, || Netns::current().unwrap().id()).unwrap();
    assert_eq!(inside, other.id());
    assert_eq!(Netns::current().unwrap().id(), before);
}

#[test]
fn a_namespace_is_found_by_path_and_by_pid() {
    let other = Netns::create().unwrap();
    let path = format!("/proc/self/fd/{}", other.as_fd().as_raw_fd());
    assert_eq!(
        Netns::open(&path.parse().unwrap()).unwrap().id(),
        other.id()
    );
    let mut child = run_in(&other, || Command::new("sleep").arg("60").spawn().unwrap()).unwrap();
    let by_pid = Netns::open(&NetnsRef::Pid(child.id()));
    child.kill().unwrap();
    // Ended, but not yet waited for.
    let deadline = Instant::now() + Duration::from_secs(5);
    let ended = loop {
        match Netns::open(&NetnsRef::Pid(child.id())) {
            Ok(_) if Instant::now() < deadline => std::thread::yield_now(),
            ended => break ended,
        }
    };
    child.wait().unwrap();
    assert_eq!(by_pid.unwrap().id(), other.id());
    assert!(matches!(ended, Err(netns::Error::NotFound(_))), "{ended:?}");
}

#[test]
fn settings_are_those_of_the_namespace() {
    let other = Netns::create().unwrap();
    let key = "net/ipv4/conf/lo/proxy_arp";
    let here = sysctl::read(key).unwrap();
    let there = run_in(&other, || {
        let changed = sysctl::ensure(key, "1").unwrap();
        assert_eq!(changed, sysctl::Ensured::Changed("0".into()));
        assert_eq!(sysctl::ensure(key, "1").unwrap(), sysctl::Ensured::Kept);
        let bad = sysctl::write("net/ipv4/ip_forward", "x");
        assert!(matches!(bad, Err(sysctl::Error::BadValue { .. })));
        let devices = sysctl::list("net/ipv4/conf").unwrap();
        assert_eq!(devices, ["all", "default", "lo"]);
        sysctl::read(key).unwrap()
    });
    assert_eq!(there.unwrap(), "1");
    assert_eq!(sysctl::read(key).unwrap(), here);
}

#[test]
fn the_kernel_tells_of_devices() {
    let namespace = Netns::create().unwrap();
    let mut uevents = run_in(&namespace, Uevents::open).unwrap().unwrap();
    let made = run_in(&namespace, || {
        Command::new("ip")
            .args([
                "link", "add", "heard", "type", "veth", "peer", "name", "other",
            ])
            .status()
            .unwrap()
    });
    assert!(made.unwrap().success());
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        readable(&[uevents.as_fd()], Some(Duration::from_secs(1))).unwrap();
        match uevents.next_word().unwrap() {
            Some(word) if word.starts_with(b"add@/devices/virtual/net/heard\0") => {
                assert!(!tells_generation(word));
                break;
            }
            _ => assert!(Instant::now() < deadline, "nothing was told"),
        }
    }
}

#[tokio::test]
async fn a_veth_pair_is_made_in_two_namespaces() {
    let pair = pair().await;
    assert_eq!(
        (pair.a.kind.as_str(), pair.a.mtu, pair.a.up),
        ("veth", 1400, false)
    );
    assert_eq!(pair.a.peer_index, Some(pair.b.index));
    assert_eq!(pair.a.mac, Some(end("a").mac));
    assert_eq!(pair.b.mac, Some(end("b").mac));
    let names = |links: Vec<Link>| links.into_iter().map(|link| link.name).collect::<Vec<_>>();
    assert_eq!(names(pair.here.links().await.unwrap()), ["lo", "a"]);
    assert_eq!(names(pair.there.links().await.unwrap()), ["lo", "b"]);

    let change = LinkChange {
        mtu: Some(1300),
        gso_max_size: Some(60_000),
        alias: Some("weave test".into()),
        ..LinkChange::default()
    };
    pair.here.set_link(pair.a.index, &change).await.unwrap();
    let a = pair.here.link_at(pair.a.index).await.unwrap().unwrap();
    assert_eq!(
        (a.mtu, a.gso_max_size, a.alias.as_str()),
        (1300, 60_000, "weave test")
    );
    assert!(a.gso_ipv4_max_size.is_none_or(|size| size == 60_000));
    assert!(a.up && a.carrier);

    pair.here.delete_link(a.index).await.unwrap();
    assert_eq!(pair.there.link(&name("b")).await.unwrap(), None);
    let again = pair.here.delete_link(a.index).await;
    assert!(matches!(again, Err(Error::NotFound(_))));
}

#[tokio::test]
async fn a_name_that_is_taken_changes_nothing() {
    let pair = pair().await;
    let third = Netns::create().unwrap();
    let here = &pair.here;
    let taken = here.add_veth(&end("a"), &end("c"), &third, 1500).await;
    assert!(matches!(taken, Err(Error::Exists(_))), "{taken:?}");
    let taken = here.add_veth(&end("c"), &end("lo"), &third, 1500).await;
    assert!(matches!(taken, Err(Error::Exists(_))), "{taken:?}");
    let inside = Netlink::open_in(&third).unwrap();
    assert_eq!(inside.links().await.unwrap().len(), 1);
    assert_eq!(here.links().await.unwrap().len(), 2);
}

#[tokio::test]
async fn addresses_come_and_go() {
    let pair = pair().await;
    let here = &pair.here;
    let plain = Address::new(pair.a.index, net("10.32.0.7/12")).no_prefix_route();
    let v4 = plain
        .clone()
        .with_broadcast("10.47.255.255".parse().unwrap());
    let v6 = Address::new(pair.a.index, net("fd00::7/128"));
    for address in [&v4, &v6] {
        assert_eq!(here.ensure_address(address).await.unwrap(), Ensured::Made);
        assert_eq!(here.ensure_address(address).await.unwrap(), Ensured::Kept);
        let again = here.add_address(address).await;
        assert!(matches!(again, Err(Error::Exists(_))));
    }
    let found = here.addresses(Some(pair.a.index)).await.unwrap();
    assert!(found.contains(&v4), "{found:?}");
    let usable = |found: &Address| found.net == v6.net && !found.tentative;
    assert!(found.iter().any(usable), "{found:?}");
    // Without a prefix route nothing but the address itself and its broadcast was made.
    let main = here.routes(Some(route::MAIN_TABLE)).await.unwrap();
    assert!(
        main.iter().all(|route| route.to.addr().is_ipv6()),
        "{main:?}"
    );
    let differs = here.ensure_address(&plain).await;
    assert!(matches!(differs, Err(Error::Exists(_))));

    for address in [v4, v6] {
        here.delete_address(pair.a.index, address.net)
            .await
            .unwrap();
        let again = here.delete_address(pair.a.index, address.net).await;
        assert!(matches!(again, Err(Error::NotFound(_))), "{again:?}");
    }
    assert!(here.addresses(Some(9999)).await.unwrap().is_empty());
}

/// One route of every kind that is used, in the order in which they can be added.
fn all_kinds(link: u32) -> Vec<Route> {
    let on = |to: &str| Route::new(net(to), link);
    let refuse = |to: &str| Route {
        kind: route::Kind::Refuse,
        link: None,
        ..on(to)
    };
    vec![
        on("10.32.0.1/32").protocol(87),
        Route {
            mtu: Some(1300),
            advmss: Some(1260),
            ..on("0.0.0.0/0").via(ip("10.32.0.1"))
        },
        on("10.32.0.0/12")
            .via(ip("10.32.0.1"))
            .source(ip("10.32.0.7")),
        Route {
            onlink: true,
            ..on("192.0.2.0/24").via(ip("198.51.100.1"))
        },
        Route {
            table: 1000,
            metric: 7,
            ..on("10.99.0.0/16")
        },
        refuse("10.98.0.0/16"),
        on("fd00::/48")
            .via(ip("fe80::1"))
            .source(ip("fd00::7"))
            .protocol(87),
        on("::/0").via(ip("fe80::1")),
        Route {
            table: 1000,
            ..on("fd00:9::/64")
        },
        refuse("fd00:8::/64"),
    ]
}

#[tokio::test]
async fn routes_come_and_go() {
    let pair = pair().await;
    let here = &pair.here;
    for address in ["10.32.0.7/32", "fd00::7/128"] {
        let address = Address::new(pair.a.index, net(address));
        here.add_address(&address).await.unwrap();
    }
    let routes = all_kinds(pair.a.index);
    for route in &routes {
        assert_eq!(
            here.ensure_route(route).await.unwrap(),
            Ensured::Made,
            "{route}"
        );
        assert_eq!(
            here.ensure_route(route).await.unwrap(),
            Ensured::Kept,
            "{route}"
        );
        let again = here.add_route(route).await;
        assert!(matches!(again, Err(Error::Exists(_))), "{route}");
    }
    let all = here.routes(None).await.unwrap();
    for route in &routes {
        let there = all.iter().any(|found| route.agrees(found));
        assert!(there, "{route:?} not in {all:?}");
    }
    let table = here.routes(Some(1000)).await.unwrap();
    assert_eq!(table.len(), 2, "{table:?}");
    assert!(here.routes(Some(4242)).await.unwrap().is_empty());
    let over = here.routes_over(pair.a.index, Some(1000)).await.unwrap();
    assert_eq!(over.len(), 2, "{over:?}");
    assert!(here.routes_over(1, Some(1000)).await.unwrap().is_empty());
    let taken = |address| here.route_for(ip(address));
    assert!(routes[2].agrees(&taken("10.33.0.9").await.unwrap().unwrap()));
    assert!(routes[6].agrees(&taken("fd00::9").await.unwrap().unwrap()));
    assert!(routes[1].agrees(&taken("203.0.113.1").await.unwrap().unwrap()));
    let own = taken("10.32.0.7").await.unwrap().unwrap();
    assert_eq!(
        (own.kind, own.to),
        (route::Kind::Local, net("10.32.0.7/32"))
    );
    assert_eq!(taken("10.98.0.1").await.unwrap(), None);
    for route in routes.iter().rev() {
        here.delete_route(route).await.unwrap();
        let again = here.delete_route(route).await;
        assert!(matches!(again, Err(Error::NotFound(_))), "{route}");
    }
}

#[tokio::test]
async fn a_route_is_changed_only_when_that_is_said() {
    let pair = pair().await;
    let here = &pair.here;
    for (address, to) in [
        ("10.32.0.7/32", "10.32.0.0/12"),
        ("fd00::7/128", "fd00::/48"),
    ] {
        let address = net(address);
        here.add_address(&Address::new(pair.a.index, address))
            .await
            .unwrap();
        let route = Route::new(net(to), pair.a.index);
        here.add_route(&route).await.unwrap();
        let changed = Route {
            mtu: Some(1280),
            ..route.source(address.addr())
        };
        let refused = here.ensure_route(&changed).await;
        assert!(matches!(refused, Err(Error::Exists(_))), "{refused:?}");
        here.replace_route(&changed).await.unwrap();
        let found = here.routes_to(net(to)).await.unwrap();
        assert!(found.len() == 1 && changed.agrees(&found[0]), "{found:?}");
    }
}

#[tokio::test]
async fn a_device_that_is_down_takes_no_route() {
    let pair = pair().await;
    let down = LinkChange {
        up: Some(false),
        ..LinkChange::default()
    };
    pair.here.set_link(pair.a.index, &down).await.unwrap();
    let route = Route::new(net("10.32.0.0/12"), pair.a.index);
    let refused = pair.here.add_route(&route).await;
    assert!(matches!(refused, Err(Error::Down(_))), "{refused:?}");
}

#[tokio::test]
async fn neighbours_come_and_go() {
    let pair = pair().await;
    let here = &pair.here;
    let mac = pair.b.mac.unwrap();
    for (address, kind) in [
        ("10.32.0.9", neigh::Kind::Permanent(mac)),
        ("fd00::9", neigh::Kind::Permanent(mac)),
        ("10.32.0.10", neigh::Kind::Proxy),
        ("fd00::10", neigh::Kind::Proxy),
    ] {
        let entry = Neighbour {
            link: pair.a.index,
            address: ip(address),
            kind,
        };
        assert_eq!(here.ensure_neighbour(&entry).await.unwrap(), Ensured::Made);
        assert_eq!(here.ensure_neighbour(&entry).await.unwrap(), Ensured::Kept);
        let listed = here.neighbours(pair.a.index).await.unwrap();
        assert!(listed.contains(&entry), "{listed:?}");
        here.delete_neighbour(&entry).await.unwrap();
        let listed = here.neighbours(pair.a.index).await.unwrap();
        assert!(!listed.contains(&entry), "{listed:?}");
        let again = here.delete_neighbour(&entry).await;
        assert!(matches!(again, Err(Error::NotFound(_))), "{again:?}");
    }
}
