//! A member that no longer reads what it is sent: the others do not notice.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::hostile::{StopAtEnd, echoes};
use crate::idle::resident_kib;
use crate::lab::ns::{self, Ns};
use crate::lab::traffic::{Conversation, ping, udp, wait_for};
use crate::lab::{Host, Lab, await_mesh, form};

/// Datagrams in a row, and the pause after them: up to 20,000 a second of 1200 bytes.
const ROW: u64 = 40;
const PAUSE: Duration = Duration::from_millis(2);

/// Sends to an address until told to stop; counts what was sent.
fn flood(from: &Ns, own: IpAddr, to: IpAddr, stop: &AtomicBool, sent: &AtomicU64) {
    let socket = udp(from, (own, 0));
    while !stop.load(Ordering::Relaxed) {
        for _ in 0..ROW {
            // Full queues, and no route any more, are part of it.
            let _ = socket.send_to(&[7; 1200], (to, 9));
        }
        sent.fetch_add(ROW, Ordering::Relaxed);
        std::thread::sleep(PAUSE);
    }
}

/// One node of three is stopped, as by a debugger or a host out of memory, and goes on being sent to: containers of the
/// two others talk as before, the sender keeps nothing for it, and when it goes on, so does its part of the network.
#[test]
fn a_stopped_member_that_is_flooded_slows_nobody() {
    Lab::run(|lab| {
        let hosts = [1, 2, 3].map(|number| lab.host_unwatched(&format!("h{number}"), number));
        hosts.iter().for_each(Host::start);
        form(&hosts);
        let [h1, h2, h3] = &hosts;
        let [a, b, c] = [h1.attach("a"), h2.attach("b"), h3.attach("c")];
        a.reaches(&c, 56);
        let flow = Conversation::start(&a.ns, (&b.ns, b.v4.into()));
        flow.assert_goes_on(Duration::from_secs(5));
        let (_, _, before) = echoes(&a.ns, b.v4.into());
        ns::host(&format!("kill -STOP {}", h3.pid()));
        let (stop, sent) = (AtomicBool::new(false), AtomicU64::new(0));
        std::thread::scope(|scope| {
            let _stop = StopAtEnd(&stop);
            scope.spawn(|| flood(&a.ns, a.v4.into(), c.v4.into(), &stop, &sent));
            wait_for("it is flooded", Duration::from_secs(20), || {
                sent.load(Ordering::Relaxed) > 1000
            });
            let memory = resident_kib(h1.pid());
            let (count, lost, during) = echoes(&a.ns, b.v4.into());
            println!(
                "before: {before}\nwhile {} were sent to the stopped one: {during}",
                sent.load(Ordering::Relaxed)
            );
            assert!(lost * 1000 <= count, "{lost} of {count} echoes lost");
            flow.assert_goes_on(Duration::from_secs(5));
            let then = resident_kib(h1.pid());
            assert!(then < memory + 4096, "{memory} KiB, then {then} KiB");
        });
        assert!(sent.load(Ordering::Relaxed) > 5000, "that was no flood");
        goes_on(h3);
        await_mesh(&hosts);
        ping(&a.ns, c.v4.into(), 1400);
        flow.finish();
    });
}

/// A stopped process goes on.
fn goes_on(host: &Host) {
    ns::host(&format!("kill -CONT {}", host.pid()));
}
