//! What a node counts moves when it happens, and only then.

use std::time::Duration;

use crate::lab::traffic::{Conversation, bulk, udp, wait_for};
use crate::lab::{Host, Lab, Wire};

/// One number of a node's answer.
fn count(host: &Host, of: &str, path: &str) -> u64 {
    let answer = match of {
        "status" => host.status(),
        _ => host.json(&["connections"])["connections"][0].clone(),
    };
    let number = answer.pointer(path).and_then(serde_json::Value::as_u64);
    number.unwrap_or_else(|| panic!("no {path} in {answer}"))
}

/// Datagrams and the calls that move them, with a transfer; a drop by its reason; retries of a handshake while a peer
/// cannot be reached, and new keys beside the old ones once it can.
#[test]
fn what_happens_is_counted() {
    Lab::run_on(Wire::Super, |lab| {
        let hosts = lab.cluster::<2>();
        let [h1, h2] = &hosts;
        let [a, b] = [h1.attach("a"), h2.attach("b")];
        let moved = || {
            [
                "sent",
                "sent_calls",
                "received",
                "received_batches",
                "received_calls",
            ]
            .map(|name| count(h1, "status", &format!("/datagrams/{name}")))
        };
        let before = moved();
        bulk(&a.ns, (&b.ns, b.v4.into()), 8 << 20);
        let after = moved();
        let grown: Vec<u64> = after
            .iter()
            .zip(before)
            .map(|(now, then)| now - then)
            .collect();
        println!("a transfer of 8 MiB each way: {grown:?}");
        let [sent, sent_calls, received, batches, calls] = grown[..] else {
            panic!("five counts: {grown:?}");
        };
        // 8 MiB in slices of less than 1500 bytes.
        assert!(sent > (8 << 20) / 1500 && received > (8 << 20) / 1500);
        assert!(sent_calls * 5 < sent, "many at once");
        assert!(batches < received && calls <= batches && calls > 0);

        let short = || count(h1, "status", "/drops/too_short");
        let known = short();
        let stranger = udp(&h1.ns, (h1.v4, 0));
        for _ in 0..3 {
            stranger.send_to(b"x", (h1.v4, 6783)).expect("it leaves");
        }
        wait_for("they are counted", Duration::from_secs(2), || {
            short() == known + 3
        });

        let peer = |name: &str| count(h1, "connections", &format!("/{name}"));
        assert_eq!((peer("rekeys"), peer("handshake_retries")), (0, 0));
        let flow = Conversation::start(&a.ns, (&b.ns, b.v6.into()));
        lab.switch().sh("ip link set p2 down");
        wait_for("it is tried again", Duration::from_secs(10), || {
            peer("handshake_retries") > 1
        });
        assert_eq!(peer("rekeys"), 0, "nothing came of them");
        lab.switch().sh("ip link set p2 up");
        wait_for("there are new keys", Duration::from_secs(15), || {
            peer("rekeys") > 0
        });
        flow.assert_goes_on(Duration::from_secs(15));
        flow.finish();
    });
}
