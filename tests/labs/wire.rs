//! The harness itself: without Weave between them, its captures do see what hosts say in clear.

use std::net::IpAddr;
use std::time::Duration;

use crate::lab::Lab;
use crate::lab::traffic::{Conversation, bulk, datagrams, ping};

/// Plain routing between two hosts: every kind of traffic of the labs works, and the capture reads all of it.
#[test]
fn a_capture_reads_what_is_in_clear() {
    Lab::run(|lab| {
        let [a, b] = ["a", "b"].map(|name| lab.bare_host(name));
        lab.plug(&a.ns, "u0", 1);
        lab.plug(&b.ns, "u0", 2);
        let seen = lab.capture(&b.ns, "u0");
        for (left, right) in [("192.168.77.1", "192.168.77.2"), ("fd77::1", "fd77::2")] {
            let [left, right] = [left, right].map(|text| text.parse::<IpAddr>().unwrap());
            ping(&a.ns, right, 56);
            ping(&a.ns, right, 8000);
            datagrams((&a.ns, left), (&b.ns, right), 8000);
            bulk(&a.ns, (&b.ns, right), 1 << 20);
            let flow = Conversation::start(&a.ns, (&b.ns, right));
            flow.assert_goes_on(Duration::from_secs(5));
            flow.finish();
        }
        let frames = seen.stop();
        assert!(frames.readable() > 100, "only {}", frames.readable());
        assert_eq!(frames.sealed(), 0);
        assert!(
            frames
                .misfit(&[])
                .is_some_and(|found| found.contains("in clear"))
        );
        let ends = ["192.168.77.1", "fd77::1"].map(|end| end.parse().expect("an address"));
        assert_eq!(frames.misfit(&ends), None);
    });
}
