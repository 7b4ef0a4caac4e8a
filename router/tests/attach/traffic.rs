//! Packets through it: container to container, to the host and back, with the settings that hosts are found with.

use super::*;

/// Every pair of the two containers and the host, both ways, both families; from the addresses they should come from.
fn all_talk(lab: &Lab, a: &AttachSpec, b: &AttachSpec) {
    for (from, to) in [(a, b), (b, a)] {
        for (source, address) in from.attachment.addresses().zip(to.attachment.addresses()) {
            assert_eq!(
                echo(&from.netns, &to.netns, address).unwrap(),
                source,
                "to {address}"
            );
            let host = if address.is_ipv4() {
                lab.range.gateway().into()
            } else {
                IpAddr::V6(lab.range.v6_at(1))
            };
            assert_eq!(
                echo(&from.netns, &lab.netns, host).unwrap(),
                source,
                "to {host}"
            );
            assert_eq!(
                echo(&lab.netns, &to.netns, address).unwrap(),
                host,
                "from the host to {address}"
            );
        }
    }
}

#[tokio::test]
async fn two_containers_and_their_host_talk() {
    let lab = Lab::prepared().await;
    let (a, b) = (lab.attached(0x101).await, lab.attached(0x102).await);
    all_talk(&lab, &a, &b);
}

#[tokio::test]
async fn strict_settings_of_the_host_do_no_harm() {
    let lab = Lab::new();
    for scope in ["all", "default"] {
        lab.set(&format!("net/ipv4/conf/{scope}/rp_filter"), "1");
        // What kube-proxy in IPVS mode and many load balancers set.
        lab.set(&format!("net/ipv4/conf/{scope}/arp_ignore"), "1");
        lab.set(&format!("net/ipv4/conf/{scope}/arp_announce"), "2");
    }
    lab.host.prepare(&lab.spec()).await.unwrap();
    let (a, b) = (lab.attached(0x101).await, lab.attached(0x102).await);
    all_talk(&lab, &a, &b);
}

#[tokio::test]
async fn a_container_that_insists_on_the_link_is_answered() {
    let lab = Lab::prepared().await;
    let (a, b) = (lab.attached(0x101).await, lab.attached(0x102).await);
    // As Docker makes it: the prefix on the link, the default route by the gateway.
    run_in(&a.netns, || {
        ip("-4 route flush table main");
        ip("route add 10.32.0.0/12 dev eth0 src 10.32.1.1");
        ip("route add default via 10.32.0.1");
    })
    .unwrap();
    for address in ["10.32.1.2", "10.32.0.1"] {
        let to = if address == "10.32.1.2" {
            &b.netns
        } else {
            &lab.netns
        };
        echo(&a.netns, to, address.parse().unwrap()).unwrap();
    }
    echo(&b.netns, &a.netns, "10.32.1.1".parse().unwrap()).unwrap();
    // Other nodes' containers are behind the TUN device, and answered for as well.
    let client = run_in(&a.netns, || UdpSocket::bind("0.0.0.0:0"))
        .unwrap()
        .unwrap();
    client.send_to(b"x", "10.40.0.9:9").unwrap();
    let deadline = Instant::now() + Duration::from_secs(5);
    while !ip_in(&a.netns, "neigh show 10.40.0.9").contains("lladdr") {
        assert!(Instant::now() < deadline, "nobody answers for 10.40.0.9");
        std::thread::sleep(Duration::from_millis(10));
    }
    // But nobody takes the container's own address from it.
    let own = ip_in(&a.netns, "-o addr show eth0");
    assert!(own.contains("10.32.1.1/12"), "{own}");
}

#[tokio::test]
async fn local_containers_talk_without_the_tun_device() {
    let lab = Lab::prepared().await;
    let (a, b) = (lab.attached(0x101).await, lab.attached(0x102).await);
    lab.ip("link del weave0");
    for netns in [&a.netns, &b.netns] {
        run_in(netns, || ip("neigh flush all")).unwrap();
    }
    echo(&a.netns, &b.netns, "10.32.1.2".parse().unwrap()).unwrap();
    echo(&b.netns, &a.netns, "fd00:1:2::101".parse().unwrap()).unwrap();
    echo(&a.netns, &lab.netns, "10.32.0.1".parse().unwrap()).unwrap();
}

#[tokio::test]
async fn one_container_less_does_not_disturb_the_others() {
    let lab = Lab::prepared().await;
    let (a, b) = (lab.attached(0x101).await, lab.attached(0x102).await);
    let c = lab.attached(0x103).await;
    lab.host.detach(&c.attachment.outer).await.unwrap();
    all_talk(&lab, &a, &b);
}
