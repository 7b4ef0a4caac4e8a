//! How much a container may carry (the capability `bandwidth`), by what TCP carries, beside a twin without limits.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{Added, Runtime};
use crate::lab::Lab;
use crate::lab::ns::Ns;
use crate::lab::traffic::wait_for;

/// The limit of the labs, and what of it may be carried: between a quarter and one and a half.
const LIMIT: u64 = 8_000_000;
const LIMITED: std::ops::Range<f64> = 2e6..12e6;

/// How long what is carried is counted, and before that the burst is let pass.
const COUNTED: Duration = Duration::from_secs(2);
const BEFORE: Duration = Duration::from_millis(300);

/// The capability with the same limit in both directions.
pub(super) fn limits() -> Value {
    let (rate, burst) = (LIMIT, 400_000);
    json!({"bandwidth": {
        "ingressRate": rate, "ingressBurst": burst, "egressRate": rate, "egressBurst": burst,
    }})
}

/// The bits a second that one TCP stream carries.
fn carried(from: &Ns, to: (&Ns, IpAddr)) -> f64 {
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
        let (start, mut bytes, mut buffer) = (Instant::now(), 0, [0; 64 << 10]);
        while start.elapsed() < time {
            bytes += receiver.read(&mut buffer).expect("the stream goes on");
        }
        bytes as f64 * 8.0 / start.elapsed().as_secs_f64()
    };
    count(BEFORE);
    let rate = count(COUNTED);
    // What is still on its way is not waited for.
    drop(receiver);
    pouring.join().expect("the sender lives");
    rate
}

/// Fails unless a container carries what it may in both directions, and its twin far more.
#[track_caller]
pub(super) fn assert_limited(limited: &Added, twin: &Added, peer: &Added) {
    let [a, b, c] = [limited, twin, peer].map(|one| (&one.ns, one.ips()[0]));
    let (ingress, egress, free) = (carried(c.0, a), carried(a.0, c), carried(b.0, c));
    println!("bits a second: in {ingress:.0}, out {egress:.0}, without limits {free:.0}");
    for (way, rate) in [("in", ingress), ("out", egress)] {
        assert!(LIMITED.contains(&rate), "{way}: {rate} of {LIMIT} bit/s");
        assert!(free > 10.0 * rate, "{way}: {rate}, without limits {free}");
    }
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
