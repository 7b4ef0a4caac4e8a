//! Backends that are replaced one by one under constant load, as a rolling update does it.

use std::io::Write;
use std::net::Shutdown;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use weave_linux::netns::Netns;
use weave_model::EngineChoice;
use weave_proxy::sources::Change;

use crate::lab::{A, C, FAR, Lab, at, connect, echoes, exposed, going, ok, slice, udp};

const WEB: &str = "10.96.0.1:80";
const PATIENCE: Duration = Duration::from_secs(10);
/// How long what was on its way may take after a backend is out, before it takes nothing new.
const GRACE: Duration = Duration::from_millis(100);
const ROUNDS: usize = 4;

/// A whole request: a connection, an answer, an echo, an orderly end.
fn request(from: &Netns) -> bool {
    connect(from, WEB, PATIENCE).is_ok_and(|(mut stream, _)| {
        echoes(&mut stream)
            && stream.shutdown(Shutdown::Write).is_ok()
            && std::io::copy(&mut stream, &mut std::io::sink()).is_ok()
    })
}

/// Requests by TCP and UDP, one after the other, until it is over.
fn ask_on(from: &Netns, over: &AtomicBool, [made, failed]: [&AtomicUsize; 2]) {
    // Not for ever: what fails meanwhile is to be told.
    let end = Instant::now() + Duration::from_secs(120);
    while !over.load(Relaxed) && Instant::now() < end {
        let served = request(from) && ["a", "c", "far"].contains(&udp(from, WEB).server());
        made.fetch_add(1, Relaxed);
        failed.fetch_add(usize::from(!served), Relaxed);
    }
}

/// From now on nobody gets a new connection here, and no datagram in.
fn close(backend: &Netns) {
    ok(
        backend,
        "nft -f - <<'END'
add table inet closed
add chain inet closed in { type filter hook input priority 0; }
add rule inet closed in tcp dport 8080 tcp flags syn reject with tcp reset
add rule inet closed in udp dport 8080 reject
END",
    );
}

fn open(backend: &Netns) {
    ok(backend, "nft delete table inet closed");
}

/// A new one comes in beside the old one, which goes while it still serves, is out, and takes nothing any more: not one
/// request fails, and a connection to the old one lasts until then.
#[test]
fn backends_that_are_replaced_one_by_one_cost_no_request() {
    let mut lab = Lab::new(EngineChoice::Relay);
    lab.report([Change::Service(exposed()), slice([at(A), at(FAR)])]);
    let (over, made, failed) = (
        AtomicBool::new(false),
        AtomicUsize::new(0),
        AtomicUsize::new(0),
    );
    let Lab {
        host,
        a,
        c,
        far,
        outside,
        sources,
        kernel,
        relay,
        ..
    } = &mut lab;
    let relay = relay.as_mut().unwrap();
    std::thread::scope(|scope| {
        for from in [&*host, &*outside] {
            scope.spawn(|| ask_on(from, &over, [&made, &failed]));
        }
        // The first is out: it comes, and the second goes, which comes in the next round.
        let mut turns = [(C, &*c), (A, &*a), (FAR, &*far)];
        close(c);
        for _ in 0..ROUNDS {
            let [new, old, stays] = turns;
            turns = [old, stays, new];
            let mut apply = |endpoints: Vec<weave_model::Endpoint>| {
                sources.handle(slice(endpoints));
                let (table, diff) = sources.build();
                relay.apply(&table, &diff, sources.facts()).unwrap();
                kernel.apply(table, &diff, sources.facts()).unwrap();
                std::thread::sleep(GRACE);
            };
            open(new.1);
            apply(vec![at(new.0), at(old.0), at(stays.0)]);
            let (mut lasting, _) = connect(host, WEB, PATIENCE).unwrap();
            apply(vec![at(new.0), going(old.0), at(stays.0)]);
            assert!(echoes(&mut lasting), "it lasts while its backend does");
            apply(vec![at(new.0), at(stays.0)]);
            close(old.1);
            assert!(lasting.write_all(b"ping").is_ok());
            let before = made.load(Relaxed);
            crate::lab::until("more requests", || made.load(Relaxed) > before + 20);
        }
        over.store(true, Relaxed);
    });
    let (made, failed) = (made.into_inner(), failed.into_inner());
    assert_eq!(failed, 0, "of {made}");
}
