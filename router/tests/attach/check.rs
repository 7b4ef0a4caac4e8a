//! Looking at an attachment: whatever is taken from it is seen, and what others add is not held against it.

use crate::{Lab, ip_in};

/// Each is done to a container of its own or, behind `host`, to the host, and what is said of it then. N is the
/// container's number.
const HARM: [(&str, &str); 14] = [
    ("link set eth0 down", "eth0 is down"),
    ("link set eth0 mtu 1400", "an MTU of 1400, not 1500"),
    (
        "link set eth0 address 02:00:00:00:00:99",
        "hardware address",
    ),
    ("addr del 10.32.0.N/12 dev eth0", "no address 10.32.0.N/12"),
    ("-6 addr flush dev eth0 scope global", "has no address fd"),
    (
        "route del 10.32.0.0/12",
        "the container has no route to 10.32.0.0/12",
    ),
    (
        "route del default",
        "the container has no route to 0.0.0.0/0",
    ),
    ("-6 route del default", "the container has no route to ::/0"),
    ("link del eth0", "has no device eth0"),
    (
        "host route del 10.32.0.N",
        "the host has no route to 10.32.0.N/32",
    ),
    (
        "host addr del 10.32.0.1/32 dev wv00000000NN",
        "no address 10.32.0.1/32",
    ),
    ("host link set wv00000000NN down", "is down"),
    (
        "host link del wv00000000NN",
        "the host has no device wv00000000NN",
    ),
    ("host link set weave0 down", "weave0 is down"),
];

#[tokio::test]
async fn whatever_is_taken_is_seen_and_nothing_is_changed() {
    let lab = Lab::prepared().await;
    for (number, (harm, said)) in (10..).zip(HARM) {
        let named = |text: &str| {
            text.replace("NN", &format!("{number:02x}"))
                .replace('N', &number.to_string())
        };
        let (harm, said) = (named(harm), named(said));
        let mut spec = lab.container(number);
        spec.mac = Some([2, 0, 0, 0, 0, number as u8]);
        lab.host.attach(&spec).await.unwrap();
        assert_eq!(
            lab.host.check(&spec).await.unwrap(),
            [""; 0],
            "before {harm}"
        );
        match harm.strip_prefix("host ") {
            Some(harm) => lab.ip(harm),
            None => ip_in(&spec.netns, &harm),
        };
        let wrong = lab.host.check(&spec).await.unwrap();
        assert!(
            wrong.iter().any(|line| line.contains(&said)),
            "{harm}: {wrong:?}"
        );
        assert_eq!(
            lab.host.check(&spec).await.unwrap(),
            wrong,
            "looking mends nothing"
        );
    }
}

#[tokio::test]
async fn what_others_add_is_no_fault() {
    let lab = Lab::prepared().await;
    let spec = lab.attached(5).await;
    for more in [
        "route add 192.0.2.0/24 dev eth0",
        "addr add 192.0.2.9/24 dev eth0",
        "route replace default via 10.32.0.1 dev eth0 advmss 1200",
        "-6 route add 2001:db8::/32 dev eth0",
        "link set eth0 alias mine",
    ] {
        ip_in(&spec.netns, more);
    }
    assert_eq!(lab.host.check(&spec).await.unwrap(), [""; 0]);
}
