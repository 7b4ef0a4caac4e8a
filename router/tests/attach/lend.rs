//! A pair that is lent: what a runtime finds, does with it and gives back, as Docker does.

use std::os::fd::{AsFd as _, AsRawFd as _};

use weave_router::attach::{Detached, Error, Repaired};

use super::*;

const INNER: &str = "wc0000000102";

/// Moves a device of one namespace to another, under another name.
fn move_to(from: &Netns, name: &str, to: &Netns, new_name: &str) {
    let path = format!("/proc/{}/fd/{}", std::process::id(), to.as_fd().as_raw_fd());
    ip_in(from, &format!("link set {name} down"));
    ip_in(
        from,
        &format!("link set {name} netns {path} name {new_name}"),
    );
}

#[tokio::test]
async fn what_is_lent_works_in_a_container_and_comes_back() {
    let lab = Lab::prepared().await;
    let (other, spec) = (lab.attached(0x101).await, lab.container(0x102));
    let before = snapshot(&lab.netns);
    let (attachment, inner) = (&spec.attachment, INNER.parse().unwrap());
    let mac = [2, 0x42, 0, 0, 0, 7];
    let start = Instant::now();
    let lent = lab.host.lend(attachment, &inner, Some(mac)).await.unwrap();
    println!("lent in {:?}", start.elapsed());
    assert_eq!(
        (lent.mac, lent.outer_mac, lent.ipv6),
        (mac, *b"\x02Weave", true)
    );
    let found = lab.ip(&format!("-d link show {INNER}"));
    assert!(
        found.contains("02:42:00:00:00:07")
            && found.contains("state DOWN")
            && found.contains("gso_max_size 60000"),
        "{found}"
    );

    let inside = &spec.netns;
    move_to(&lab.netns, INNER, inside, "eth0");
    ip_in(inside, "addr add 10.32.1.2/12 dev eth0");
    ip_in(inside, "addr add fd00:1:2::102/128 dev eth0 nodad");
    ip_in(inside, "link set eth0 up");
    ip_in(inside, "-6 route add fe80::1/128 dev eth0");
    ip_in(inside, "-6 route add fd00:1:2::/48 via fe80::1 dev eth0");
    for (from, to) in [(&other, &spec), (&spec, &other)] {
        for (source, address) in from.attachment.addresses().zip(to.attachment.addresses()) {
            assert_eq!(
                echo(&from.netns, &to.netns, address).unwrap(),
                source,
                "to {address}"
            );
        }
    }
    assert_eq!(lab.host.repair(attachment).await.unwrap(), Repaired::Right);

    move_to(inside, "eth0", &lab.netns, INNER);
    assert_eq!(
        lab.host.detach(&attachment.outer).await.unwrap(),
        Detached::Removed
    );
    assert_same(
        &sorted(&before),
        &sorted(&snapshot(&lab.netns)),
        "after it went",
    );
}

#[tokio::test]
async fn nothing_is_lent_twice_and_nothing_is_left_of_a_failure() {
    let lab = Lab::prepared().await;
    let spec = lab.container(0x102);
    let inner = INNER.parse().unwrap();
    lab.ip(&format!("link add {INNER} type veth peer name foreign"));
    let before = sorted(&snapshot(&lab.netns));
    let lent = lab.host.lend(&spec.attachment, &inner, None).await;
    assert!(matches!(lent, Err(Error::OuterNameTaken(name)) if name == inner));
    assert_same(
        &before,
        &sorted(&snapshot(&lab.netns)),
        "after a name was taken",
    );

    lab.ip(&format!("link del {INNER}"));
    lab.host.lend(&spec.attachment, &inner, None).await.unwrap();
    let mut second = lab.container(0x102);
    second.attachment.outer = "wv0123456789".parse().unwrap();
    let lent = lab
        .host
        .lend(&second.attachment, &"wc0123456789".parse().unwrap(), None)
        .await;
    assert!(matches!(lent, Err(Error::AddressTaken { .. })), "{lent:?}");
}
