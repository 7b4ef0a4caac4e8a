//! Backends that are replaced one by one under constant load, as a rolling update does it.

use std::io::Write;
use std::net::Shutdown;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use weave_linux::netns::Netns;
use weave_model::{Endpoint, EngineChoice, Service, TrafficPolicy};
use weave_proxy::sources::Change;

use crate::lab::{
    A, Answer, C, FAR, Lab, ask, at, connect, echoes, exposed, going, ok, slice, udp, udp_socket,
};

cases! {
    should_not_have_connectivity_disruption_during_rolling_update_with_external_traffic_policy_cluster => Lingers | Gap,
    should_not_have_connectivity_disruption_during_rolling_update_with_external_traffic_policy_local => Lingers | NotGoing,
}

const BALANCER: &str = "203.0.113.5:80";
const WEB: &str = "10.96.0.1:80";
const PATIENCE: Duration = Duration::from_secs(10);
/// How long what was on its way may take after a backend is out, before it takes nothing new.
const GRACE: Duration = Duration::from_millis(100);
const ROUNDS: usize = 4;

/// A whole request: a connection, an answer, an echo, an orderly end.
fn request(from: &Netns, to: &str) -> bool {
    connect(from, to, PATIENCE).is_ok_and(|(mut stream, _)| {
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
        let served = request(from, WEB) && ["a", "c", "far"].contains(&udp(from, WEB).server());
        made.fetch_add(1, Relaxed);
        failed.fetch_add(usize::from(!served), Relaxed);
    }
}

/// From now on nobody gets a new connection here, and no datagram in.
pub(crate) fn close(backend: &Netns) {
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
            let mut apply = |endpoints: Vec<Endpoint>| {
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
    println!("{made} requests to backends that were replaced {ROUNDS} times, none failed");
}

/// Clients of a load balancer's address that ask on until it is over, one by TCP and one by UDP.
#[derive(Default)]
struct Load {
    over: AtomicBool,
    made: [AtomicUsize; 2],
    failed: AtomicUsize,
}

/// Ends the clients, whatever happens.
struct Over<'a>(&'a Load);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.over.store(true, Relaxed);
    }
}

impl Load {
    fn ask_on(&self, which: usize, served: impl Fn() -> bool) {
        while !self.over.load(Relaxed) {
            self.failed.fetch_add(usize::from(!served()), Relaxed);
            self.made[which].fetch_add(1, Relaxed);
        }
    }

    /// Waits until each client has begun and ended a request since now.
    #[track_caller]
    fn go_on(&self) {
        let made = || self.made.each_ref().map(|made| made.load(Relaxed));
        let before = made();
        crate::lab::until("more requests", || {
            let failed = self.failed.load(Relaxed);
            assert_eq!(failed, 0, "requests failed, of {:?}", made());
            let both = made().into_iter().zip(before);
            both.into_iter().all(|(now, before)| now >= before + 2)
        });
    }
}

/// A question by UDP that is asked again when nothing comes back, as a resolver does it.
fn asked(from: &Netns, to: &str) -> bool {
    let (socket, end) = (udp_socket(from, to), Instant::now() + PATIENCE);
    loop {
        match ask(&socket, Duration::from_secs(1)) {
            Answer::From { .. } => return true,
            Answer::Nothing if Instant::now() < end => {}
            Answer::Nothing | Answer::Refused => return false,
        }
    }
}

/// Asks a balancer's address from outside while the Service goes through all that `rounds` says. Before each step it is
/// made sure that whatever was on its way has arrived.
fn under_load(on: EngineChoice, external: TrafficPolicy, rounds: impl Fn(&mut Lab, &Load)) {
    let mut lab = Lab::new(on);
    let service = Service {
        external,
        ..exposed()
    };
    lab.report([Change::Service(service), slice([at(A), at(FAR)])]);
    close(&lab.c);
    let (load, outside) = (Load::default(), lab.outside.try_clone().unwrap());
    std::thread::scope(|scope| {
        let _over = Over(&load);
        scope.spawn(|| load.ask_on(0, || request(&outside, BALANCER)));
        scope.spawn(|| load.ask_on(1, || asked(&outside, BALANCER)));
        load.go_on();
        rounds(&mut lab, &load);
    });
    assert_eq!(load.failed.into_inner(), 0, "of {:?}", load.made);
}

fn becomes(lab: &mut Lab, load: &Load, endpoints: impl IntoIterator<Item = Endpoint>) {
    lab.report([slice(endpoints)]);
    load.go_on();
}

fn backend<'a>(lab: &'a Lab, address: &str) -> &'a Netns {
    match address {
        A => &lab.a,
        C => &lab.c,
        _ => &lab.far,
    }
}

/// On all nodes in turn: a new one comes in, an old one goes while it still serves, and then it is out and closed.
fn should_not_have_connectivity_disruption_during_rolling_update_with_external_traffic_policy_cluster(
    on: EngineChoice,
) {
    under_load(on, TrafficPolicy::Cluster, |lab, load| {
        let mut turns = [C, A, FAR];
        for _ in 0..ROUNDS {
            let [new, old, stays] = turns;
            turns = [old, stays, new];
            open(backend(lab, new));
            becomes(lab, load, [at(new), at(old), at(stays)]);
            becomes(lab, load, [at(new), going(old), at(stays)]);
            becomes(lab, load, [at(new), at(stays)]);
            close(backend(lab, old));
            load.go_on();
        }
    });
}

/// The only one of this node is replaced, and goes before its successor is ready: so long it serves on, though there is
/// one on another node.
fn should_not_have_connectivity_disruption_during_rolling_update_with_external_traffic_policy_local(
    on: EngineChoice,
) {
    under_load(on, TrafficPolicy::Local, |lab, load| {
        let mut turns = [C, A];
        for _ in 0..ROUNDS {
            let [new, old] = turns;
            turns = [old, new];
            becomes(lab, load, [going(old), at(FAR)]);
            open(backend(lab, new));
            becomes(lab, load, [at(new), going(old), at(FAR)]);
            becomes(lab, load, [at(new), at(FAR)]);
            close(backend(lab, old));
            load.go_on();
        }
    });
}
