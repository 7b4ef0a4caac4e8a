//! What a container may carry: the limits are there, are put back, and go with it. `tc` is the second opinion.

use std::num::NonZeroU64;

use weave_model::{Bandwidth, Rate};
use weave_router::attach::{Detached, Repaired};

use super::*;

/// Limits of 8 and 4 Mbit/s.
pub(crate) fn limits() -> Bandwidth {
    let rate = |megabits: u64| {
        NonZeroU64::new(megabits * 1_000_000).map(|rate| Rate {
            rate,
            burst: 400_000,
        })
    };
    Bandwidth {
        ingress: rate(8),
        egress: rate(4),
    }
}

/// A container with limits.
async fn limited(lab: &Lab, offset: u32) -> AttachSpec {
    let mut spec = lab.container(offset);
    spec.attachment.bandwidth = limits();
    lab.host.attach(&spec).await.unwrap();
    spec
}

fn tc(lab: &Lab, line: &str) -> String {
    let run = || {
        Command::new("tc")
            .args(line.split(' '))
            .output()
            .expect("tc is there")
    };
    let output = run_in(&lab.netns, run).unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "tc {line}: {said}");
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test]
async fn both_directions_are_limited_on_the_host() {
    let lab = Lab::prepared().await;
    let before = snapshot(&lab.netns);
    let spec = limited(&lab, 0x102).await;
    let (outer, by) = ("wv0000000102", "wb0000000102");
    for (device, rate) in [(outer, "rate 8Mbit"), (by, "rate 4Mbit")] {
        let shown = tc(&lab, &format!("qdisc show dev {device} root"));
        assert!(shown.contains("tbf") && shown.contains(rate), "{shown}");
    }
    let filter = tc(&lab, &format!("filter show dev {outer} ingress"));
    assert!(
        filter.contains(&format!("Egress Redirect to device {by}")),
        "{filter}"
    );
    let link = lab.ip(&format!("-d link show {by}"));
    assert!(link.contains("alias weave: limits wv0000000102"), "{link}");
    assert_eq!(
        lab.ip(&format!("addr show {by}")).matches("inet").count(),
        0
    );
    assert_eq!(lab.host.check(&spec).await.unwrap(), [""; 0]);
    let outer = &spec.attachment.outer;
    assert_eq!(
        lab.host.repair(&spec.attachment).await.unwrap(),
        Repaired::Right
    );
    // Packets come back from the detour as received by the outer end, or the answer would not.
    let gateway = IpAddr::V4(lab.range.gateway());
    let seen = echo(&spec.netns, &lab.netns, gateway).unwrap();
    assert_eq!(seen, IpAddr::V4(spec.attachment.v4()));
    assert_eq!(lab.host.detach(outer).await.unwrap(), Detached::Removed);
    assert_same(&before, &snapshot(&lab.netns), "detached");
}

#[tokio::test]
async fn a_limit_that_was_taken_away_is_seen_and_put_back() {
    let lab = Lab::prepared().await;
    let spec = limited(&lab, 0x102).await;
    let (outer, by) = ("wv0000000102", "wb0000000102");
    for (harm, said) in [
        (
            format!("tc qdisc del dev {outer} root"),
            "is not limited to 8000000 bit/s",
        ),
        (
            format!("tc qdisc replace dev {outer} root tbf rate 9mbit burst 9kb limit 50kb"),
            "is not limited to 8000000",
        ),
        (
            format!("tc qdisc del dev {by} root"),
            "sends is not limited to 4000000 bit/s",
        ),
        (
            format!("tc qdisc del dev {outer} clsact"),
            "sends is not limited",
        ),
        (format!("ip link set {by} down"), "sends is not limited"),
        (format!("ip link del {by}"), "sends is not limited"),
    ] {
        match harm.split_once(' ').unwrap() {
            ("tc", line) => drop(tc(&lab, line)),
            (_, line) => drop(lab.ip(line)),
        }
        let found = lab.host.check(&spec).await.unwrap();
        assert!(
            found.len() == 1 && found[0].contains(said),
            "{harm}: {found:?}"
        );
        let attachments = [spec.attachment.clone()];
        let astray = lab.host.astray(&attachments).await.unwrap();
        assert_eq!(astray[0], harm.starts_with("ip"), "{harm}");
        let repaired = lab.host.repair(&spec.attachment).await.unwrap();
        assert!(
            matches!(repaired, Repaired::Fixed(_)),
            "{harm}: {repaired:?}"
        );
        assert_eq!(lab.host.check(&spec).await.unwrap(), [""; 0], "{harm}");
    }
    let gateway = IpAddr::V4(lab.range.gateway());
    echo(&spec.netns, &lab.netns, gateway).unwrap();
}

#[tokio::test]
async fn what_outlives_a_container_is_found_and_removed() {
    let lab = Lab::prepared().await;
    let before = snapshot(&lab.netns);
    let spec = limited(&lab, 0x102).await;
    let attachment = spec.attachment.clone();
    let outer = &attachment.outer;
    let traces = lab.host.traces().await.unwrap();
    assert!(traces.iter().eq([outer]), "{traces:?}");
    drop(spec);
    let deadline = Instant::now() + Duration::from_secs(10);
    while lab.host.repair(&attachment).await.unwrap() != Repaired::Gone {
        assert!(Instant::now() < deadline, "the pair is still there");
        tokio::task::yield_now().await;
    }
    let traces = lab.host.traces().await.unwrap();
    assert!(traces.iter().eq([outer]), "{traces:?}");
    assert_eq!(lab.host.detach(outer).await.unwrap(), Detached::NotThere);
    assert_eq!(lab.host.traces().await.unwrap(), []);
    assert_same(&before, &snapshot(&lab.netns), "the container ended");
}
