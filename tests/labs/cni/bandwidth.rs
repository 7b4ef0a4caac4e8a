//! How much a container may carry (the capability `bandwidth`): what the kernel was told, and what TCP then carries,
//! beside a twin without limits.
//!
//! The rates are low and the time is long, so that a busy machine does not show: a stall that is shorter than the burst
//! is made up for by it. A longer one makes a stream slower than its limit, never faster: so what was too slow is tried
//! again, and what is too fast fails at once.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{Added, Runtime};
use crate::lab::Lab;
use crate::lab::ns::Ns;
use crate::lab::traffic::wait_for;

/// The limits of the labs in bits a second, each other than the other so that no way is taken for the other.
const INGRESS: u64 = 20_000_000;
const EGRESS: u64 = 12_000_000;

/// What may be carried at once, in bits: a fifth of a second of the slower way.
const BURST: u64 = 2_400_000;

/// How far the rate may be from what was asked for, as the contract has it.
const TOLERANCE: f64 = 0.1;

/// How long what is carried is counted, and before that the burst is let pass.
const COUNTED: Duration = Duration::from_secs(8);
const BEFORE: Duration = Duration::from_secs(1);

/// How often.
const TRIES: usize = 4;

/// A full frame as the bucket counts it, with its Ethernet header, and what of it is TCP's payload (IPv4, timestamps).
const FRAME: f64 = 1514.0;
const PAYLOAD: f64 = 1448.0;

/// The capability with a limit in each direction.
pub(super) fn limits() -> Value {
    json!({"bandwidth": {
        "ingressRate": INGRESS, "ingressBurst": BURST, "egressRate": EGRESS, "egressBurst": BURST,
    }})
}

/// The bits a second on the wire of one TCP stream, counted for a while.
fn carried(from: &Ns, to: (&Ns, IpAddr), counted: Duration) -> f64 {
    let listener =
        to.0.inside(|| TcpListener::bind((to.1, 0)))
            .expect("the container can listen");
    let target = listener.local_addr().expect("a listener has an address");
    let patience = Duration::from_secs(10);
    let mut sender = from
        .inside(|| TcpStream::connect_timeout(&target, patience))
        .unwrap_or_else(|error| panic!("no connection from {} to {target}: {error}", from.name()));
    let (mut receiver, _) = listener.accept().expect("a connection comes");
    receiver
        .set_read_timeout(Some(patience))
        .expect("a socket takes a timeout");
    let pouring = std::thread::spawn(move || while sender.write_all(&[7; 16 << 10]).is_ok() {});
    let mut count = |time: Duration| {
        let (start, mut bytes, mut buffer) = (Instant::now(), 0, vec![0; 64 << 10]);
        while start.elapsed() < time {
            bytes += receiver.read(&mut buffer).expect("the stream goes on");
        }
        bytes as f64 * 8.0 * FRAME / PAYLOAD / start.elapsed().as_secs_f64()
    };
    count(BEFORE);
    let rate = count(counted);
    // What is still on its way is not waited for.
    drop(receiver);
    pouring.join().expect("the sender lives");
    rate
}

/// Fails unless a container carries what was asked for in both directions, and its twin far more.
#[track_caller]
pub(super) fn assert_limited(limited: &Added, twin: &Added, peer: &Added) {
    let [a, b, c] = [limited, twin, peer].map(|one| (&one.ns, one.ips()[0]));
    let free = carried(b.0, c, BEFORE);
    for (way, from, to, asked) in [("in", c, a, INGRESS), ("out", a, c, EGRESS)] {
        let mut rates = Vec::new();
        while rates.len() < TRIES
            && rates
                .iter()
                .all(|rate| *rate < asked as f64 * (1.0 - TOLERANCE))
        {
            rates.push(carried(from.0, to, COUNTED));
        }
        println!("bits a second: {way} {rates:.0?} of {asked}, without limits {free:.0}");
        let most = rates.iter().copied().fold(0.0, f64::max);
        let off = most / asked as f64 - 1.0;
        assert!(
            off.abs() <= TOLERANCE,
            "{way}: {most:.0} of {asked} bit/s, off by {:.1} %",
            off * 100.0
        );
        assert!(free > 3.0 * most, "{way}: {most}, without limits {free}");
    }
}

/// Fails unless the kernel has both buckets as asked for, by what `tc` tells, and leads what the container sends to
/// the second.
#[track_caller]
pub(super) fn assert_in_kernel(host: &Ns, limited: &Added) {
    let outer = limited.outer();
    let by = outer.replacen("wv", "wb", 1);
    for (device, rate) in [(outer, INGRESS), (&by, EGRESS)] {
        let told = host.sh(&format!("tc -j qdisc show dev {device} root"));
        let told: Value = serde_json::from_str(&told).expect("tc writes JSON");
        let bucket = &told[0];
        let (has, burst) = (
            &bucket["options"]["rate"],
            bucket["options"]["burst"].as_f64(),
        );
        assert!(
            bucket["kind"] == "tbf" && *has == rate / 8,
            "{device} at {rate} bit/s: {told}"
        );
        // The kernel keeps the burst as a time.
        let burst = burst.expect("a bucket has a burst") / (BURST / 8) as f64;
        assert!((0.99..=1.01).contains(&burst), "{device}: {told}");
    }
    let filter = host.sh(&format!("tc filter show dev {outer} ingress"));
    let redirected = filter.contains(&format!("Egress Redirect to device {by}"));
    assert!(redirected, "{filter}");
}

/// The limits are part of what is attached: what of them was taken away while the node was dead is there again after
/// its start, and nothing of them outlives the container.
#[test]
fn limits_last_as_long_as_the_container() {
    Lab::run(|lab| {
        let h1 = lab.host("h1", 1);
        h1.start();
        h1.ok(&["init"]);
        let before = h1.ns.snapshot();
        let plain = Runtime::new(&h1);
        let limiting = plain.with("runtimeConfig", limits());
        let [twin, peer] = ["twin", "peer"].map(|id| plain.add(id, &h1.bare_container(id)));
        let limited = limiting.add("limited", &h1.bare_container("limited"));
        let outer = limited.outer().to_owned();
        let by = outer.replacen("wv", "wb", 1);

        h1.end("KILL");
        h1.ns.sh(&format!(
            "tc qdisc del dev {outer} root; tc qdisc del dev {outer} clsact; ip link del {by}"
        ));
        h1.start();
        wait_for("the limits are back", Duration::from_secs(30), || {
            limiting.check("limited", &limited).ok
        });
        assert_in_kernel(&h1.ns, &limited);
        assert_limited(&limited, &twin, &peer);

        // While the node runs, what is missing is found by CHECK, and mended.
        h1.ns.sh(&format!("ip link del {by}"));
        let back = || limiting.check("limited", &limited).ok;
        wait_for("what was deleted is back", Duration::from_secs(30), back);
        assert!(
            limiting.on("ADD", "limited", &limited.ns).ok,
            "it is the same"
        );
        let other = limiting.with("runtimeConfig", json!({}));
        other
            .on("ADD", "limited", &limited.ns)
            .refused(100, "with another bandwidth");

        for (id, added) in [("twin", &twin), ("peer", &peer)] {
            plain.del(id, &added.ns);
        }
        // Its namespace goes without a DEL, and the pair with it.
        crate::lab::ns::host(&format!("ip netns del {}", limited.ns.name()));
        wait_for("nothing is left", Duration::from_secs(60), || {
            plain.left() == (0, 0, 0) && h1.ns.snapshot() == before
        });
    });
}
