//! Preparing the host, exposing it, and what is refused.

use weave_router::attach::Error;

use super::*;

#[tokio::test]
async fn the_host_becomes_a_router_once() {
    let lab = Lab::new();
    let prepared = lab.host.prepare(&lab.spec()).await.unwrap();
    assert!(prepared.ipv6 && !prepared.changed.is_empty());
    assert_eq!(lab.setting("net/ipv4/ip_forward"), "1");
    assert_eq!(lab.setting("net/ipv6/conf/all/forwarding"), "1");
    let link = lab.ip("-d link show weave0");
    for word in [
        "mtu 1500",
        "gso_max_size 60000",
        "UP",
        "alias weave: router",
    ] {
        assert!(link.contains(word), "{word} not in {link}");
    }
    let addresses = lab.ip("-o addr show weave0");
    assert!(
        addresses.contains("inet 10.32.0.1/32") && addresses.contains("inet6 fd00:1:2::1/128"),
        "{addresses}"
    );
    assert_eq!(addresses.lines().count(), 2, "{addresses}");
    assert!(
        lab.ip("-4 route show 10.32.0.0/12")
            .starts_with("10.32.0.0/12 dev weave0 proto 87 scope link")
    );
    assert!(
        lab.ip("-6 route show fd00:1:2::/48")
            .starts_with("fd00:1:2::/48 dev weave0 proto 87")
    );

    let before = snapshot(&lab.netns);
    let again = lab.host.prepare(&lab.spec()).await.unwrap();
    assert_eq!(again.changed, Vec::<String>::new());
    assert_same(&before, &snapshot(&lab.netns), "prepared again");
}

#[tokio::test]
async fn an_uplink_goes_on_taking_router_advertisements() {
    let lab = Lab::new();
    lab.ip("link add up0 type veth peer name up1");
    lab.set("net/ipv6/conf/up0/accept_ra", "1");
    lab.set("net/ipv6/conf/up1/accept_ra", "0");
    lab.host.prepare(&lab.spec()).await.unwrap();
    assert_eq!(lab.setting("net/ipv6/conf/up0/accept_ra"), "2");
    assert_eq!(lab.setting("net/ipv6/conf/up1/accept_ra"), "0");
    assert_eq!(lab.setting("net/ipv6/conf/weave0/accept_ra"), "0");
}

#[tokio::test]
async fn a_host_that_uses_the_range_is_refused_and_unchanged() {
    for (uses, with) in [
        (
            &["addr add 10.40.0.5/16 dev other0"][..],
            "the address 10.40.0.5/16 of other0",
        ),
        (
            &["route add 10.0.0.0/8 dev other0"],
            "the route 10.0.0.0/8 over other0 in table 254",
        ),
        (
            &["route add 10.33.0.0/16 dev other0 table 52"],
            "the route 10.33.0.0/16 over other0 in table 52",
        ),
        (
            &["-6 route add fd00:1:2:3::/64 dev other0"],
            "the route fd00:1:2:3::/64 over other0 in table 254",
        ),
        (
            &["route add unreachable 10.32.7.0/24"],
            "the route 10.32.7.0/24 over several devices or none",
        ),
    ] {
        let lab = Lab::new();
        lab.ip("link add other0 type veth peer name other1");
        lab.ip("link set other0 up");
        lab.ip("link set other1 up");
        lab.host.check_overlap(&lab.range).await.unwrap();
        for used in uses {
            lab.ip(used);
        }
        let before = snapshot(&lab.netns);
        let refused = lab.host.check_overlap(&lab.range).await.unwrap_err();
        assert!(matches!(refused, Error::Overlap { .. }), "{refused}");
        assert!(refused.to_string().contains(with), "{refused}");
        assert_same(&before, &snapshot(&lab.netns), with);
        // What comes after us is told, and does not take the network away.
        let prepared = lab.host.prepare(&lab.spec()).await.unwrap();
        let told = prepared.overlap.unwrap().to_string();
        assert!(told.contains(with), "{told}");
        assert!(lab.ip("route get 10.47.0.9").contains("dev weave0"));
        lab.host.check_overlap(&lab.range).await.unwrap_err();
    }
}

#[tokio::test]
async fn what_comes_with_an_address_or_a_device_is_told_at_the_next_look() {
    let lab = Lab::new();
    lab.ip("link add other0 type veth peer name other1");
    for _ in 0..2 {
        let prepared = lab.host.prepare(&lab.spec()).await.unwrap();
        assert!(prepared.overlap.is_none(), "{:?}", prepared.overlap);
    }
    lab.ip("route add unreachable 10.32.7.0/24");
    lab.ip("link add other2 type veth peer name other3");
    let told = lab.host.prepare(&lab.spec()).await.unwrap().overlap;
    assert!(told.unwrap().to_string().contains("10.32.7.0/24"));
    lab.ip("route del unreachable 10.32.7.0/24");
    lab.ip("addr add 192.0.2.2/24 dev other0");
    let told = lab.host.prepare(&lab.spec()).await.unwrap().overlap;
    assert!(told.is_none(), "{told:?}");
}

#[tokio::test]
async fn without_the_device_nothing_leaves_by_the_default_route() {
    let lab = Lab::new();
    lab.ip("link add up0 type veth peer name up1");
    lab.ip("link set up0 up");
    lab.ip("link set up1 up");
    lab.ip("addr add 192.0.2.2/24 dev up0");
    lab.ip("addr add 2001:db8::2/64 dev up0 nodad");
    lab.ip("route add default via 192.0.2.1");
    lab.ip("-6 route add default via 2001:db8::1");
    assert!(
        lab.host
            .prepare(&lab.spec())
            .await
            .unwrap()
            .overlap
            .is_none()
    );
    lab.ip("link set weave0 down");
    let routes = lab.ip("-4 route show 10.32.0.0/12") + &lab.ip("-6 route show fd00:1:2::/48");
    assert_eq!(routes.matches("unreachable").count(), 2, "{routes}");
    for gone in ["10.47.0.9", "fd00:1:2::9:9"] {
        let get = || Command::new("ip").args(["route", "get", gone]).output();
        let got = run_in(&lab.netns, get).unwrap().unwrap();
        assert!(!got.status.success(), "{gone}: {got:?}");
    }
    let changed = lab.host.prepare(&lab.spec()).await.unwrap().changed;
    assert!(!changed.is_empty());
    assert!(lab.ip("route get 10.47.0.9").contains("dev weave0"));
}

fn without_settings_of(device: &str, snapshot: &str) -> String {
    let setting = format!("/{device}/");
    let lines = snapshot.lines().filter(|line| !line.contains(&setting));
    let lines: Vec<_> = lines.collect();
    lines
        .join("\n")
        .replace("addrgenmode none", "addrgenmode eui64")
}

#[tokio::test]
async fn preparing_fails_whole() {
    let lab = Lab::new();
    // The settings of our own device are not undone.
    let snapshot = |netns| without_settings_of("weave0", &snapshot(netns));
    let before = snapshot(&lab.netns);
    let too_large = HostSpec {
        mtu: 100_000,
        ..lab.spec()
    };
    let failed = lab.host.prepare(&too_large).await.unwrap_err();
    assert!(matches!(failed, Error::Netlink(_)), "{failed}");
    assert_same(&before, &snapshot(&lab.netns), "prepare failed");

    let no_tun = Host::open_in(lab.netns.try_clone().unwrap(), "weave7".parse().unwrap()).unwrap();
    let failed = no_tun.prepare(&lab.spec()).await.unwrap_err();
    assert_eq!(failed.to_string(), "the host has no TUN device weave7");
    assert_same(&before, &snapshot(&lab.netns), "no TUN device");
}

#[tokio::test]
async fn an_exposed_host_speaks_from_its_own_address() {
    let lab = Lab::prepared().await;
    let before = snapshot(&lab.netns);
    lab.host.expose(&lab.range, 0x105).await.unwrap();
    let exposed = snapshot(&lab.netns);
    assert!(lab.ip("route get 10.33.0.9").contains("src 10.32.1.5"));
    assert!(
        lab.ip("route get fd00:1:2::9:9")
            .contains("src fd00:1:2::105")
    );
    let spec = lab.attached(0x102).await;
    echo(&spec.netns, &lab.netns, "10.32.1.5".parse().unwrap()).unwrap();
    echo(&spec.netns, &lab.netns, "fd00:1:2::105".parse().unwrap()).unwrap();
    lab.host.detach(&spec.attachment.outer).await.unwrap();

    let spec = HostSpec {
        exposed: Some(0x105),
        ..lab.spec()
    };
    assert_eq!(
        lab.host.prepare(&spec).await.unwrap().changed,
        Vec::<String>::new()
    );
    let there = lab.attached(0x102).await;
    lab.ip("addr del 10.32.0.1/32 dev weave0");
    lab.host.expose(&lab.range, 0x105).await.unwrap();
    lab.host.detach(&there.attachment.outer).await.unwrap();
    let exposed = sorted(&exposed);
    assert_same(&exposed, &sorted(&snapshot(&lab.netns)), "exposed again");

    lab.host.hide(&lab.range).await.unwrap();
    assert!(lab.ip("route get 10.33.0.9").contains("src 10.32.0.1"));
    assert!(
        lab.ip("route get fd00:1:2::9:9")
            .contains("src fd00:1:2::1")
    );
    lab.host.hide(&lab.range).await.unwrap();
    assert_same(&sorted(&before), &sorted(&snapshot(&lab.netns)), "hidden");
}

#[tokio::test]
async fn another_range_replaces_the_first() {
    let lab = Lab::new();
    lab.host
        .prepare(&HostSpec {
            exposed: Some(9),
            ..lab.spec()
        })
        .await
        .unwrap();
    let other = HostSpec {
        range: range("10.64.0.0/16", "fd00:9::/48"),
        ..lab.spec()
    };
    lab.host.prepare(&other).await.unwrap();
    let all =
        lab.ip("addr") + &lab.ip("-4 route show table all") + &lab.ip("-6 route show table all");
    assert!(
        all.contains("10.64.0.1/32") && all.contains("fd00:9::1/128"),
        "{all}"
    );
    assert!(
        !all.contains("10.32.") && !all.contains("fd00:1:2:"),
        "{all}"
    );

    let errors = lab.host.clear().await;
    assert!(errors.is_empty(), "{errors:?}");
    let all = lab.ip("-o addr show weave0") + &lab.ip("-4 route show table all");
    assert!(!all.contains("10.64."), "{all}");
}

#[tokio::test]
async fn exposing_fails_whole() {
    let lab = Lab::prepared().await;
    let _container = lab.attached(0x102).await;
    let before = snapshot(&lab.netns);
    let refused = lab.host.expose(&lab.range, 0x102).await.unwrap_err();
    assert!(matches!(refused, Error::AddressTaken { .. }), "{refused}");
    assert_same(
        &before,
        &snapshot(&lab.netns),
        "a container has the address",
    );

    // Somebody else took the route: the address is added, the route refused, the address taken away.
    lab.ip("link add other0 type veth peer name other1");
    lab.ip("link set other0 up");
    lab.ip("link set other1 up");
    lab.ip("route replace 10.32.0.0/12 dev other0");
    let before = snapshot(&lab.netns);
    let refused = lab.host.expose(&lab.range, 0x105).await.unwrap_err();
    assert!(matches!(refused, Error::Netlink(_)), "{refused}");
    assert_same(
        &before,
        &snapshot(&lab.netns),
        "somebody else has the route",
    );
}
