//! Attach, detach, repair: what is made, what is refused, and what is left when something fails.

use weave_linux::sysctl;
use weave_router::attach::{DefaultRoute, Detached, Error, NoIpv6, Repaired, Step};

use super::*;

#[tokio::test]
async fn a_container_gets_its_addresses_and_routes() {
    let lab = Lab::prepared().await;
    let spec = lab.container(0x102);
    let attached = lab.host.attach(&spec).await.unwrap();
    assert_eq!(attached.v6, Ok("fd00:1:2::102".parse().unwrap()));
    assert!(attached.default_route);
    // From the address, so that it stays with it; and one for all outer ends.
    assert_eq!(attached.mac, [0x02, b'W', 10, 32, 1, 2]);
    assert_eq!(attached.outer_mac, *b"\x02Weave");
    let inside = &spec.netns;
    let link = ip_in(inside, "-d link show eth0");
    let mac = attached.mac.map(|byte| format!("{byte:02x}")).join(":");
    assert!(
        link.contains(&mac) && link.contains("mtu 1500") && link.contains("gso_max_size 60000"),
        "{link}"
    );
    let addresses = ip_in(inside, "addr show eth0");
    assert!(
        addresses.contains("inet 10.32.1.2/12 brd 10.47.255.255 scope global noprefixroute"),
        "{addresses}"
    );
    assert!(
        addresses.contains("inet6 fd00:1:2::102/128 scope global nodad"),
        "{addresses}"
    );
    assert_eq!(
        ip_in(inside, "-4 route"),
        "default via 10.32.0.1 dev eth0 proto static \n\
         10.32.0.0/12 via 10.32.0.1 dev eth0 proto static src 10.32.1.2 \n\
         10.32.0.1 dev eth0 proto static scope link src 10.32.1.2 \n\
         224.0.0.0/4 dev eth0 proto static scope link \n"
    );
    let v6 = ip_in(inside, "-6 route");
    assert!(v6.contains("fd00:1:2::/48 via fe80::1 dev eth0"), "{v6}");
    assert!(v6.contains("default via fe80::1 dev eth0"), "{v6}");
    assert!(ip_in(inside, "link show lo").contains("UP"));
    assert_eq!(setting(inside, "net/ipv6/conf/eth0/accept_ra"), "0");
    assert_eq!(setting(inside, "net/ipv6/conf/eth0/accept_redirects"), "0");
    assert_eq!(setting(inside, "net/ipv4/conf/eth0/accept_redirects"), "0");
}

#[tokio::test]
async fn the_outer_end_stands_alone_and_answers_for_all() {
    let lab = Lab::prepared().await;
    let spec = lab.attached(0x102).await;
    let outer = spec.attachment.outer.as_str();
    let link = lab.ip(&format!("-d link show {outer}"));
    assert!(
        link.contains("alias weave: container 258") && link.contains("gso_max_size 262144"),
        "{link}"
    );
    let addresses = lab.ip(&format!("-o addr show {outer}"));
    assert!(
        addresses.contains("inet 10.32.0.1/32") && addresses.contains("inet6 fe80::1/64"),
        "{addresses}"
    );
    assert_eq!(addresses.lines().count(), 2, "{addresses}");
    assert_eq!(
        lab.ip("-4 route show 10.32.1.2"),
        format!("10.32.1.2 dev {outer} proto 87 scope link \n")
    );
    assert!(
        lab.ip("-6 route show fd00:1:2::102")
            .contains(&format!("dev {outer} proto 87"))
    );
    for (key, value) in [
        (format!("net/ipv4/conf/{outer}/proxy_arp"), "1"),
        (format!("net/ipv4/neigh/{outer}/proxy_delay"), "0"),
        (format!("net/ipv4/conf/{outer}/send_redirects"), "0"),
        (format!("net/ipv4/conf/{outer}/accept_redirects"), "0"),
        (format!("net/ipv6/conf/{outer}/accept_ra"), "0"),
        (format!("net/ipv6/conf/{outer}/accept_redirects"), "0"),
        (format!("net/ipv6/conf/{outer}/forwarding"), "1"),
    ] {
        assert_eq!(lab.setting(&key), value, "{key}");
    }
    let outers: Vec<_> = lab
        .host
        .attached()
        .await
        .unwrap()
        .into_iter()
        .map(|link| link.name)
        .collect();
    assert_eq!(outers, [outer]);
}

#[tokio::test]
async fn a_failure_at_any_step_leaves_nothing() {
    let lab = Lab::prepared().await;
    let _other = lab.attached(0x101).await;
    let before = snapshot(&lab.netns);
    for step in Step::ALL {
        let mut spec = lab.container(0x102);
        spec.attachment.bandwidth = limits::limits();
        let inside = snapshot(&spec.netns);
        let mut reached = false;
        let failed = lab.host.attach_watched(&spec, |now| {
            if now == step {
                reached = true;
                return Err(Error::Setting(sysctl::Error::Missing("injected".into())));
            }
            Ok(())
        });
        let failed = failed.await.unwrap_err();
        assert!(
            reached && matches!(failed, Error::Setting(_)),
            "{step:?}: {failed}"
        );
        assert_same(
            &before,
            &snapshot(&lab.netns),
            &format!("host, failed at {step:?}"),
        );
        assert_same(
            &inside,
            &snapshot(&spec.netns),
            &format!("container, failed at {step:?}"),
        );
        // And it can be attached after that.
        lab.host.attach(&spec).await.unwrap();
        assert_eq!(
            lab.host.detach(&spec.attachment.outer).await.unwrap(),
            Detached::Removed
        );
        assert_same(
            &before,
            &snapshot(&lab.netns),
            &format!("detached after {step:?}"),
        );
    }
}

#[tokio::test]
async fn what_is_taken_is_refused_and_nothing_changes() {
    let lab = Lab::prepared().await;
    let there = lab.attached(0x101).await;
    let before = snapshot(&lab.netns);

    let mut spec = lab.container(0x102);
    spec.netns = Arc::clone(&there.netns);
    let inside = snapshot(&spec.netns);
    let refused = lab.host.attach(&spec).await.unwrap_err();
    assert!(
        matches!(&refused, Error::IfNameTaken { ifname, .. } if ifname.as_str() == "eth0"),
        "{refused}"
    );
    assert_same(
        &inside,
        &snapshot(&spec.netns),
        "device name taken, in the container",
    );

    let mut spec = lab.container(0x102);
    spec.attachment.outer = there.attachment.outer.clone();
    let refused = lab.host.attach(&spec).await.unwrap_err();
    assert!(matches!(refused, Error::OuterNameTaken(_)), "{refused}");

    let mut spec = lab.container(0x102);
    spec.attachment.offset = 0x101;
    let refused = lab.host.attach(&spec).await.unwrap_err();
    assert_eq!(
        refused.to_string(),
        "10.32.1.1 is in use on this host, by wv0000000101"
    );

    let mut spec = lab.container(0x102);
    spec.netns = Arc::new(lab.netns.try_clone().unwrap());
    let refused = lab.host.attach(&spec).await.unwrap_err();
    assert!(matches!(refused, Error::HostNamespace(_)), "{refused}");
    assert_same(&before, &snapshot(&lab.netns), "refusals");
}

#[tokio::test]
async fn detaching_twice_is_fine_and_foreign_devices_are_safe() {
    let lab = Lab::prepared().await;
    let before = snapshot(&lab.netns);
    let spec = lab.attached(0x102).await;
    let outer = &spec.attachment.outer;
    assert_eq!(lab.host.detach(outer).await.unwrap(), Detached::Removed);
    assert_eq!(lab.host.detach(outer).await.unwrap(), Detached::NotThere);
    assert_same(&before, &snapshot(&lab.netns), "detached");
    let refused = lab
        .host
        .detach(&"weave0".parse().unwrap())
        .await
        .unwrap_err();
    assert!(matches!(refused, Error::NotOurs(_)), "{refused}");
}

#[tokio::test]
async fn a_container_that_ended_takes_everything_with_it() {
    let lab = Lab::prepared().await;
    let before = snapshot(&lab.netns);
    let spec = lab.attached(0x102).await;
    let attachment = spec.attachment.clone();
    drop(spec);
    // The kernel takes a namespace down in the background.
    let deadline = Instant::now() + Duration::from_secs(10);
    while lab.host.repair(&attachment).await.unwrap() != Repaired::Gone {
        assert!(Instant::now() < deadline, "the pair is still there");
        tokio::task::yield_now().await;
    }
    assert_eq!(
        lab.host.detach(&attachment.outer).await.unwrap(),
        Detached::NotThere
    );
    assert_same(&before, &snapshot(&lab.netns), "the container ended");
}

#[tokio::test]
async fn repair_puts_right_what_is_wrong_and_nothing_else() {
    let lab = Lab::prepared().await;
    let spec = lab.attached(0x102).await;
    let (host, attachment) = (&lab.host, &spec.attachment);
    let outer = attachment.outer.as_str();
    let right = snapshot(&lab.netns);
    assert_eq!(host.repair(attachment).await.unwrap(), Repaired::Right);
    for damage in [
        "-4 route del 10.32.1.2".to_owned(),
        "-6 route del fd00:1:2::102".to_owned(),
        format!("addr del 10.32.0.1/32 dev {outer}"),
        format!("addr del fe80::1/64 dev {outer}"),
        format!("link set {outer} mtu 1400"),
        format!("link set {outer} alias x"),
        format!("link set {outer} down"),
    ] {
        lab.ip(&damage);
        let repaired = host.repair(attachment).await.unwrap();
        assert!(
            matches!(&repaired, Repaired::Fixed(what) if !what.is_empty()),
            "{damage}: {repaired:?}"
        );
        assert_eq!(
            host.repair(attachment).await.unwrap(),
            Repaired::Right,
            "{damage}"
        );
    }
    for key in [
        format!("net/ipv4/conf/{outer}/proxy_arp"),
        format!("net/ipv6/conf/{outer}/forwarding"),
    ] {
        lab.set(&key, "0");
        let fixed = vec![format!("setting {key} = 1")];
        assert_eq!(
            host.repair(attachment).await.unwrap(),
            Repaired::Fixed(fixed)
        );
    }
    assert_same(&sorted(&right), &sorted(&snapshot(&lab.netns)), "repaired");
    let gateway = IpAddr::V4(lab.range.gateway());
    echo(&spec.netns, &lab.netns, gateway).unwrap();
}

#[tokio::test]
async fn ipv6_that_is_off_in_the_container_is_left_off() {
    let lab = Lab::prepared().await;
    let spec = lab.container(0x102);
    for scope in ["all", "default"] {
        let key = format!("net/ipv6/conf/{scope}/disable_ipv6");
        run_in(&spec.netns, || sysctl::write(&key, "1"))
            .unwrap()
            .unwrap();
    }
    let attached = lab.host.attach(&spec).await.unwrap();
    assert_eq!(attached.v6, Err(NoIpv6::Container));
    assert_eq!(lab.ip("-6 route show fd00:1:2::102"), "");
    echo(&spec.netns, &lab.netns, lab.range.gateway().into()).unwrap();
}

#[tokio::test]
async fn ipv6_that_is_off_on_the_host_is_left_off() {
    let lab = Lab::new();
    for scope in ["all", "default"] {
        lab.set(&format!("net/ipv6/conf/{scope}/disable_ipv6"), "1");
    }
    assert!(!lab.host.prepare(&lab.spec()).await.unwrap().ipv6);
    let spec = lab.container(0x102);
    assert_eq!(lab.host.attach(&spec).await.unwrap().v6, Err(NoIpv6::Host));
    assert_eq!(lab.ip("-6 addr"), "");
    echo(&spec.netns, &lab.netns, lab.range.gateway().into()).unwrap();
}

#[tokio::test]
async fn a_default_route_that_is_there_stays() {
    let lab = Lab::prepared().await;
    let spec = lab.container(0x102);
    run_in(&spec.netns, || {
        ip("link add other0 type veth peer name other1");
        ip("link set other0 up");
        ip("link set other1 up");
        ip("addr add 192.0.2.2/24 dev other0");
        ip("route add default via 192.0.2.1 metric 50");
        ip("route add 224.0.0.0/4 dev other0");
    })
    .unwrap();
    assert!(!lab.host.attach(&spec).await.unwrap().default_route);
    assert_eq!(
        ip_in(&spec.netns, "-4 route show default"),
        "default via 192.0.2.1 dev other0 metric 50 \n"
    );
    assert_eq!(
        ip_in(&spec.netns, "-4 route show 224.0.0.0/4"),
        "224.0.0.0/4 dev other0 scope link \n"
    );

    let mut never = lab.container(0x103);
    never.default_route = DefaultRoute::Never;
    assert!(!lab.host.attach(&never).await.unwrap().default_route);
    assert_eq!(ip_in(&never.netns, "-4 route show default"), "");
    echo(&never.netns, &lab.netns, lab.range.gateway().into()).unwrap();
}

#[tokio::test]
async fn a_smaller_uplink_shows_on_the_default_route_only() {
    let lab = Lab::prepared().await;
    let mut spec = lab.container(0x102);
    spec.attachment.mtu = 8900;
    spec.uplink_mtu = Some(1500);
    lab.host.attach(&spec).await.unwrap();
    let v4 = ip_in(&spec.netns, "-4 route");
    assert!(
        v4.contains("default via 10.32.0.1 dev eth0 proto static mtu 1500 advmss 1460"),
        "{v4}"
    );
    assert!(
        v4.contains("10.32.0.0/12 via 10.32.0.1 dev eth0 proto static src 10.32.1.2 \n"),
        "{v4}"
    );
    let v6 = ip_in(&spec.netns, "-6 route show default");
    assert!(v6.contains("mtu 1500 advmss 1440"), "{v6}");
}

#[tokio::test]
async fn a_long_tag_is_cut() {
    let lab = Lab::prepared().await;
    let mut spec = lab.container(0x102);
    spec.attachment.tag = "ä".repeat(300);
    lab.host.attach(&spec).await.unwrap();
    let alias = lab.host.attached().await.unwrap().remove(0).alias;
    assert_eq!(alias, format!("weave: {}", "ä".repeat(100)));
    let again = lab.host.repair(&spec.attachment).await.unwrap();
    assert_eq!(again, Repaired::Right);
}
