//! Floating addresses: given to an attached container, moved to another, taken off again, and undone when a step fails.

use weave_linux::netlink::IfName;
use weave_router::attach::{AttachSpec, Error};

use super::*;

impl Lab {
    async fn give(&self, to: &AttachSpec, address: &str) -> Result<(), Error> {
        let inside: (&Netns, &IfName) = (&to.netns, &to.ifname);
        let outer = &to.attachment.outer;
        self.host
            .give(outer, inside, address.parse().unwrap())
            .await
    }

    async fn take(&self, from: &AttachSpec, address: &str) {
        let inside: (&Netns, &IfName) = (&from.netns, &from.ifname);
        let (outer, address) = (&from.attachment.outer, address.parse().unwrap());
        self.host.take(outer, Some(inside), address).await.unwrap();
    }

    /// Where the host sends what is for an address.
    fn way_to(&self, address: &str) -> String {
        let route = self.ip(&format!("-o route get {address}"));
        let mut words = route.split_whitespace().skip_while(|word| *word != "dev");
        words.nth(1).unwrap().to_owned()
    }
}

#[tokio::test]
async fn what_is_given_and_taken_leaves_no_trace() {
    let lab = Lab::prepared().await;
    let spec = lab.attached(0x102).await;
    let before = (snapshot(&lab.netns), snapshot(&spec.netns));
    for address in ["10.45.0.9", "fd00:1:2::d:9"] {
        lab.give(&spec, address).await.unwrap();
        assert_eq!(lab.way_to(address), spec.attachment.outer.as_str());
        let given = (snapshot(&lab.netns), snapshot(&spec.netns));
        lab.give(&spec, address).await.unwrap();
        assert_eq!(given, (snapshot(&lab.netns), snapshot(&spec.netns)));
    }
    let addresses = ip_in(&spec.netns, "-o addr show eth0");
    assert!(addresses.contains("inet 10.45.0.9/32"), "{addresses}");
    let v6 = addresses
        .lines()
        .find(|line| line.contains("fd00:1:2::d:9"));
    assert!(v6.unwrap().contains("deprecated"), "{addresses}");
    // It is a source for those who ask for it, and for nobody else.
    for (to, own) in [("10.32.0.9", "10.32.1.2"), ("fd00:1:2::9", "fd00:1:2::102")] {
        let route = ip_in(&spec.netns, &format!("route get {to}"));
        assert!(route.contains(&format!("src {own} ")), "{route}");
    }
    let out = ip_in(&spec.netns, "route get 2001:db8::1");
    assert!(out.contains("src fd00:1:2::102 "), "{out}");
    for address in ["10.45.0.9", "fd00:1:2::d:9"] {
        lab.take(&spec, address).await;
        assert_eq!(lab.way_to(address), "weave0");
        lab.take(&spec, address).await;
    }
    assert_eq!(sorted(&before.0), sorted(&snapshot(&lab.netns)));
    assert_eq!(sorted(&before.1), sorted(&snapshot(&spec.netns)));
}

#[tokio::test]
async fn another_container_takes_it_over() {
    let lab = Lab::prepared().await;
    let (one, two) = (lab.attached(0x102).await, lab.attached(0x103).await);
    for address in ["10.45.0.9", "fd00:1:2::d:9"] {
        lab.give(&one, address).await.unwrap();
        lab.give(&two, address).await.unwrap();
        assert_eq!(lab.way_to(address), two.attachment.outer.as_str());
        // What is left inside is taken when its node comes to it; the way stays.
        lab.take(&one, address).await;
        assert_eq!(lab.way_to(address), two.attachment.outer.as_str());
    }
    let left = ip_in(&one.netns, "-o addr show eth0");
    assert!(
        !left.contains("10.45.0.9") && !left.contains("::d:9"),
        "{left}"
    );
}

#[tokio::test]
async fn a_failure_leaves_nothing_and_what_is_the_host_s_stays() {
    let lab = Lab::prepared().await;
    let spec = lab.attached(0x102).await;
    lab.ip("route add 10.45.0.9/32 dev lo");
    let before = (snapshot(&lab.netns), snapshot(&spec.netns));
    let refused = lab.give(&spec, "10.45.0.9").await;
    assert!(
        matches!(&refused, Err(Error::AddressTaken { device, .. }) if device == "lo"),
        "{refused:?}"
    );
    ip_in(&spec.netns, "link set eth0 name other");
    assert!(lab.give(&spec, "10.45.0.8").await.is_err());
    ip_in(&spec.netns, "link set other name eth0");
    assert_eq!(before.0, snapshot(&lab.netns));
    assert_eq!(sorted(&before.1), sorted(&snapshot(&spec.netns)));
}

/// A restart mends the routes of what the journal says a container has.
#[tokio::test]
async fn its_route_is_looked_after_like_the_others() {
    let lab = Lab::prepared().await;
    let mut spec = lab.attached(0x102).await;
    lab.give(&spec, "10.45.0.9").await.unwrap();
    spec.attachment.also = vec!["10.45.0.9".parse().unwrap()];
    assert_eq!(lab.host.check(&spec).await.unwrap(), [""; 0]);
    assert_eq!(
        lab.host.astray(&[spec.attachment.clone()]).await.unwrap(),
        [false]
    );
    lab.ip("route del 10.45.0.9");
    ip_in(&spec.netns, "addr del 10.45.0.9/32 dev eth0");
    let wrong = lab.host.check(&spec).await.unwrap().join("\n");
    assert!(
        wrong.contains("the host has no route to 10.45.0.9/32"),
        "{wrong}"
    );
    assert!(wrong.contains("has no address 10.45.0.9/32"), "{wrong}");
    assert_eq!(
        lab.host.astray(&[spec.attachment.clone()]).await.unwrap(),
        [true]
    );
    lab.host.repair(&spec.attachment).await.unwrap();
    assert_eq!(lab.way_to("10.45.0.9"), spec.attachment.outer.as_str());
}
