//! The kernel's table over time: small changes, flushes, strangers, restarts, and connections that stand through all.

use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::{self, ScopedJoinHandle};
use std::time::{Duration, Instant};

use weave_linux::netns::{Netns, run_in};
use weave_linux::nft::{Batch, Socket, Table};
use weave_model::{
    Affinity, BalancerIp, BalancerMode, Engine, EngineChoice, Protocol, Service, TrafficPolicy,
};
use weave_proxy::facts::Unknown;
use weave_proxy::kernel::{Done, Kernel};
use weave_proxy::rules::anchor;
use weave_proxy::sources::Change;

use crate::lab::{
    A, Answer, B, C, FAR, Lab, VIP, ask, at, connect, echoes, exposed, ip, ok, port, sh, slice,
    slice_of, slice6, tcp, udp, udp_socket, until, vanishes, web,
};

cases! {
    endpoints_that_come_and_go_cost_no_connection => Gap,
    nobody_is_refused_at_the_node_or_at_a_balancer_while_the_rules_are_gone => Unheld,
}

const WEB: &str = "10.96.0.1:80";

fn sticky() -> Service {
    Service {
        name: "sticky".parse().unwrap(),
        addresses: vec![ip("10.96.0.2")],
        affinity: Affinity::ClientIp { seconds: 60 },
        ..web()
    }
}

fn lab(on: EngineChoice) -> Lab {
    let mut lab = Lab::new(on);
    lab.report([Change::Service(web()), slice([at(A), at(B)])]);
    lab.report([Change::Service(sticky())]);
    lab
}

/// The table's lines in any order: chains stand in the order they were made.
fn list(lab: &Lab) -> Vec<String> {
    let text = ok(&lab.host, "nft list table inet weave-service");
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

#[test]
fn changes_go_in_as_elements_and_end_where_a_new_table_would() {
    let mut lab = lab(EngineChoice::Kernel);
    assert_eq!(lab.report([slice([at(A), at(B), at(C)])]), Done::Changed);
    assert_eq!(lab.report([slice([at(C)])]), Done::Changed);
    assert_eq!(lab.report([slice([at(C)])]), Done::Kept);
    assert_eq!(lab.kernel.look_after(Instant::now()).unwrap(), Done::Kept);
    assert_eq!(
        lab.restart(),
        Done::Kept,
        "a new engine finds what it would make"
    );
    assert_eq!(
        lab.report([Change::NoService("web".parse().unwrap())]),
        Done::Changed
    );
    assert_eq!(lab.restart(), Done::Kept);
}

#[test]
fn what_was_flushed_or_altered_is_made_again() {
    let mut lab = lab(EngineChoice::Kernel);
    let right = list(&lab);
    let by_hand = [
        "nft flush ruleset",
        "nft delete table inet weave-service",
        "nft flush chain inet weave-service services",
        "nft flush map inet weave-service fronts4",
        "nft delete element inet weave-service vips4 { 10.96.0.1 }",
        "nft add element inet weave-service fronts4 { 10.96.0.66 . tcp . 80 : drop }",
        "nft insert rule inet weave-service services drop",
        "nft 'flush chain inet weave-service guard; add rule inet weave-service guard drop; add rule inet weave-service guard drop'",
    ];
    for command in by_hand {
        ok(&lab.host, command);
        assert_eq!(
            lab.kernel.look_after(Instant::now()).unwrap(),
            Done::Remade,
            "{command}"
        );
        assert_eq!(list(&lab), right, "{command}");
        assert_eq!(lab.servers(&lab.c, WEB, 30), ["a", "b"]);
    }
    // Which clients are remembered is not the engine's to say.
    lab.report([slice_of("sticky", [at(A)])]);
    ok(
        &lab.host,
        "who=$(nft list table inet weave-service | grep -om1 'who-[0-9a-f-]*')
         nft add element inet weave-service $who '{ 10.32.0.99 }'",
    );
    assert_eq!(lab.kernel.look_after(Instant::now()).unwrap(), Done::Kept);
}

/// Whatever the host forwards goes through a hook, so those of source ranges are there only for who has some.
#[test]
fn hooks_of_source_ranges_come_and_go_with_them() {
    let mut lab = Lab::new(EngineChoice::Kernel);
    lab.report([Change::Service(exposed()), slice([at(A)])]);
    let hooks = |lab: &Lab| {
        let lines = list(lab).into_iter();
        lines
            .filter(|line| line.contains("filter hook prerouting"))
            .count()
    };
    assert_eq!(hooks(&lab), 0);
    for (range, there) in [("192.0.2.0/24", 1), ("", 0), ("198.51.100.0/24", 1)] {
        let guarded = Service {
            source_ranges: range.parse().into_iter().collect(),
            ..exposed()
        };
        assert_eq!(lab.report([Change::Service(guarded)]), Done::Changed);
        assert_eq!(hooks(&lab), there, "with ranges '{range}'");
        assert_eq!(lab.restart(), Done::Kept, "with ranges '{range}'");
    }
    let remove =
        "flush chain inet weave-service guard-in; delete chain inet weave-service guard-in";
    ok(&lab.host, &format!("nft '{remove}'"));
    assert_eq!(lab.kernel.look_after(Instant::now()).unwrap(), Done::Remade);
    assert_eq!(hooks(&lab), 1);
}

/// As when a node joins, or is seen under another address: that is about who may be an endpoint.
#[test]
fn what_no_rule_reads_leaves_the_rules_and_whom_they_remember() {
    let mut lab = Lab::new(EngineChoice::Relay);
    let of_kernel = Service {
        engine: Some(Engine::Kernel),
        ..sticky()
    };
    lab.report([
        Change::Service(web()),
        slice([at(A), at(B), at(C)]),
        Change::Service(of_kernel),
        slice_of("sticky", [at(A), at(B), at(C)]),
    ]);
    // Tables that are made anew have other handles.
    let tables = ["weave-service", "weave-relay"];
    let handles = |lab: &Lab| {
        tables.map(|table| {
            let text = ok(&lab.host, &format!("nft -a list table inet {table}"));
            text.lines().next().unwrap().to_owned()
        })
    };
    let (before, first) = (handles(&lab), tcp(&lab.a, "10.96.0.2:80"));
    for turn in 0..10 {
        let mut facts = lab.sources.facts().clone();
        facts.no_endpoints.insert(ip(&format!("198.51.100.{turn}")));
        assert_eq!(lab.report([Change::Facts(facts)]), Done::Kept);
        assert_eq!(tcp(&lab.a, "10.96.0.2:80"), first, "turn {turn}");
    }
    assert_eq!(handles(&lab), before);
    // The other way round: what a rule does read makes them anew.
    let mut facts = lab.sources.facts().clone();
    facts.own.clear();
    assert_eq!(lab.report([Change::Facts(facts)]), Done::Remade);
    let after = handles(&lab);
    assert!(after[0] != before[0] && after[1] != before[1], "{after:?}");
}

/// As on a kernel without tables that belong to somebody: the name of the one that holds connections is taken.
pub(crate) fn nothing_holds(host: &Netns) -> Socket {
    let mut batch = Batch::new();
    batch.replace_table(&Table::inet(anchor::TABLE).owned());
    let socket = run_in(host, Socket::open).unwrap().unwrap();
    socket.send(&batch).unwrap();
    socket
}

/// That of a run that has just ended may be in the way for a moment. Then nothing may change for hours.
#[test]
fn an_anchor_that_was_refused_is_asked_for_again() {
    let mut lab = Lab::new(EngineChoice::Kernel);
    let (taken, start) = (nothing_holds(&lab.host), Instant::now());
    lab.report([Change::Service(web()), slice([at(A)])]);
    let there = |what: &str| {
        let list = format!("nft list table inet {} | grep -q '{what}'", anchor::TABLE);
        sh(&lab.host, &list).status.success()
    };
    let mut look_after = |seconds| {
        let now = start + Duration::from_secs(seconds);
        assert_eq!(lab.kernel.look_after(now).unwrap(), Done::Kept);
        there("chain hold")
    };
    assert!(!look_after(30), "the name is taken");
    drop(taken);
    until("the name is free", || !there("table"));
    assert!(!look_after(60), "once a minute, after two refusals");
    assert!(look_after(91));
}

/// Where connections are followed for somebody else as well, a datagram that comes while the rules are gone, and that
/// nothing holds, begins a flow without translation, by which every later one would go.
#[test]
fn datagrams_that_came_while_the_rules_were_gone_are_led_right_again() {
    let mut lab = Lab::new(EngineChoice::Kernel);
    let _taken = nothing_holds(&lab.host);
    lab.report([Change::Service(exposed()), slice([at(A), at(B)])]);
    ok(
        &lab.host,
        "nft add table inet other; nft add chain inet other c '{ type filter hook prerouting priority 0; }'; \
         nft add rule inet other c ct state new accept; ip route add blackhole default metric 4000; \
         ip route add 203.0.113.5 dev weave0",
    );
    ok(&lab.host, "nft delete table inet weave-service");
    let socket = udp_socket(&lab.c, "203.0.113.5:80");
    let astray = ask(&socket, Duration::from_millis(300));
    assert!(astray.saw().is_none(), "{astray:?}");
    assert_eq!(lab.kernel.look_after(Instant::now()).unwrap(), Done::Remade);
    until("an answer", || {
        ask(&socket, Duration::from_millis(300)).saw().is_some()
    });
}

#[test]
fn foreign_tables_are_left_alone() {
    let mut lab = lab(EngineChoice::Kernel);
    ok(
        &lab.host,
        "nft add table inet other; nft add chain inet other c; nft add rule inet other c counter accept",
    );
    let theirs = ok(&lab.host, "nft list table inet other");
    assert_eq!(lab.kernel.look_after(Instant::now()).unwrap(), Done::Kept);
    lab.report([slice([at(C)])]);
    ok(&lab.host, "nft flush table inet weave-service");
    assert_eq!(lab.kernel.look_after(Instant::now()).unwrap(), Done::Remade);
    assert_eq!(ok(&lab.host, "nft list table inet other"), theirs);
    assert_eq!(tcp(&lab.a, WEB).server(), "c");
}

#[test]
fn connections_stand_through_changes_flushes_and_restarts() {
    let mut lab = lab(EngineChoice::Kernel);
    let mut streams: Vec<_> = (0..10)
        .map(|_| connect(&lab.c, WEB, Duration::from_secs(10)).unwrap().0)
        .collect();
    let mut check = |when: &str| assert!(streams.iter_mut().all(echoes), "{when}");
    lab.report([slice([at(C)])]);
    check("their endpoints are not picked any more");
    ok(&lab.host, "nft flush ruleset");
    check("the rules are gone");
    lab.kernel.look_after(Instant::now()).unwrap();
    check("the rules are back");
    lab.restart();
    lab.report([Change::NoService("web".parse().unwrap())]);
    check("the service is gone");
}

/// However that ends which others go on beside, they end too.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A connection that sends all the time, and how it gets on.
#[derive(Default)]
struct Stream {
    echoes: AtomicUsize,
    broken: AtomicBool,
    /// The longest that an echo took, in milliseconds.
    longest: AtomicU64,
}

impl Stream {
    fn go_on_until(&self, over: &AtomicBool, mut stream: TcpStream) {
        while !over.load(Ordering::Relaxed) {
            let begun = Instant::now();
            if !echoes(&mut stream) {
                self.broken.store(true, Ordering::Relaxed);
                return;
            }
            let took = begun.elapsed().as_millis() as u64;
            self.longest.fetch_max(took, Ordering::Relaxed);
            self.echoes.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Waits for some more echoes.
    fn goes_on(&self, when: &str) {
        let before = self.echoes.load(Ordering::Relaxed);
        until(when, || {
            assert!(
                !self.broken.load(Ordering::Relaxed),
                "{when}: a connection broke"
            );
            self.echoes.load(Ordering::Relaxed) > before + 20
        });
    }
}

/// How long a stream may stand still, whatever is done to the rules.
const STILL: Duration = Duration::from_secs(2);

/// Eight streams, of a container and of a client outside, while somebody removes the rules ten times. They go on while
/// there are none, not only afterwards: no packet of theirs reaches anybody as it should not look. What is new meanwhile
/// waits, and does not leave for the address as if it were anybody's.
#[test]
fn connections_do_not_notice_that_the_rules_are_gone() {
    let mut lab = lab(EngineChoice::Kernel);
    let count = |rule: &str| {
        format!(
            "nft 'table inet seen {{ chain c {{ type filter hook prerouting priority -400; {rule} counter; }}; }}'"
        )
    };
    ok(&lab.c, &count("ip saddr 10.32.0.2-10.32.0.3"));
    ok(&lab.outside, &count("ip daddr 10.96.0.0/16"));
    let (over, streams): (_, [Stream; 8]) = (AtomicBool::new(false), Default::default());
    thread::scope(|scope| {
        let _ends = Ends(&over);
        for (number, stream) in streams.iter().enumerate() {
            let client = [&lab.c, &lab.outside][usize::from(number % 4 == 0)];
            let (open, _) = connect(client, WEB, Duration::from_secs(10)).unwrap();
            let over = &over;
            scope.spawn(move || stream.go_on_until(over, open));
        }
        for turn in 0..10 {
            let by_hand = ["nft flush ruleset", "nft delete table inet weave-service"];
            ok(&lab.host, by_hand[turn % 2]);
            streams.iter().for_each(|one| one.goes_on("without rules"));
            if turn < 4 {
                new_ones_wait(&lab);
            }
            assert!(
                !sh(&lab.host, "nft list table inet weave-service")
                    .status
                    .success()
            );
            assert_eq!(lab.kernel.look_after(Instant::now()).unwrap(), Done::Remade);
            streams.iter().for_each(|one| one.goes_on("with rules"));
        }
    });
    for netns in [&lab.c, &lab.outside] {
        let seen = ok(netns, "nft list table inet seen");
        assert!(seen.contains("packets 0 "), "packets went astray: {seen}");
    }
    for stream in streams {
        let longest = Duration::from_millis(stream.longest.into_inner());
        assert!(longest < STILL, "a stream stood still for {longest:?}");
    }
    assert_eq!(lab.servers(&lab.c, WEB, 30), ["a", "b"]);
}

fn new_ones_wait(lab: &Lab) {
    assert!(vanishes(&lab.c, WEB) && vanishes(&lab.host, WEB));
    let socket = udp_socket(&lab.c, WEB);
    let answer = ask(&socket, Duration::from_millis(300));
    assert!(answer.saw().is_none(), "{answer:?}");
}

/// The elements of maps are out of force a little before the rules are, when somebody removes the table.
#[test]
fn rules_without_their_elements_refuse_nobody() {
    let mut lab = lab(EngineChoice::Kernel);
    let mut facts = lab.sources.facts().clone();
    facts.unknown = Unknown::Refused;
    lab.report([Change::Facts(facts)]);
    let refused =
        |netns| [WEB, "10.96.0.1:81", "10.96.0.77:80"].map(|to| tcp(netns, to) == Answer::Refused);
    assert_eq!(
        refused(&lab.c),
        [false, true, true],
        "ports and addresses of nobody"
    );
    ok(
        &lab.host,
        "for map in $(nft list table inet weave-service | awk '$1 == \"map\" { print $2 }'); do
            nft flush map inet weave-service $map || exit 1
         done",
    );
    for to in [WEB, "10.96.0.1:81", "10.96.0.77:80"] {
        assert!(vanishes(&lab.c, to) && vanishes(&lab.host, to), "{to}");
    }
    assert_eq!(lab.kernel.look_after(Instant::now()).unwrap(), Done::Remade);
    assert_eq!(refused(&lab.c), [false, true, true], "as before");
}

#[test]
fn what_holds_connections_comes_with_the_rules_and_goes_with_the_engine() {
    let mut lab = Lab::new(EngineChoice::Kernel);
    let tables = |lab: &Lab| ok(&lab.host, "nft list tables");
    assert_eq!(tables(&lab), "", "without Services there is nothing");
    lab.report([Change::Service(web()), slice([at(A)])]);
    let both = ["table inet weave-service", "table inet weave-anchor"];
    assert!(both.iter().all(|one| tables(&lab).contains(one)));
    // The rules stay, as whoever comes next needs them; what is owned has nobody any more.
    lab.kernel = run_in(&lab.host, Kernel::open).unwrap().unwrap();
    assert_eq!(tables(&lab).trim(), both[0]);
    assert_eq!(lab.restart(), Done::Kept);
    assert!(both.iter().all(|one| tables(&lab).contains(one)));
}

/// The host has the balancers' addresses itself, as with one that speaks for its nodes, and nobody listens there.
const AT_HOST: [&str; 4] = [
    "192.0.2.2:30080",
    "203.0.113.5:80",
    "[2001:db8::2]:30080",
    "[2001:db8:5::5]:80",
];

/// A Service of both families with every kind of front.
fn everywhere() -> Service {
    let mut service = exposed();
    service.addresses.push(ip("fd96::1"));
    service.balancer.push(BalancerIp {
        ip: ip("2001:db8:5::5"),
        mode: BalancerMode::Vip,
    });
    service
}

/// Without rules the host would refuse what comes to a port of its own or to an address that it has. Clients outside,
/// in a container and on the host ask there all the time while somebody flushes the rules, at first for long: none is
/// refused, and whoever came meanwhile has an endpoint once the rules are back.
fn nobody_is_refused_at_the_node_or_at_a_balancer_while_the_rules_are_gone(on: EngineChoice) {
    let mut lab = Lab::new(on);
    let v6 = slice6(&["fd77::2", "fd77::3"]);
    lab.report([Change::Service(everywhere()), slice([at(A), at(B)]), v6]);
    ok(
        &lab.host,
        "ip addr add 203.0.113.5/32 dev lo; ip addr add 2001:db8:5::5/128 dev lo nodad",
    );
    let clients = [&lab.outside, &lab.c, &lab.host].map(|netns| netns.try_clone().unwrap());
    flush(&lab);
    let sockets = [&clients[0], &clients[1]].map(|from| AT_HOST.map(|to| udp_socket(from, to)));
    for socket in sockets.iter().flatten() {
        let answer = ask(socket, Duration::from_millis(100));
        assert_ne!(answer, Answer::Refused, "{socket:?}");
    }
    if on == EngineChoice::Kernel {
        thread::scope(|scope| {
            for (from, to) in clients.iter().flat_map(|from| AT_HOST.map(|to| (from, to))) {
                scope.spawn(move || assert!(vanishes(from, to), "{to}"));
            }
        });
    }
    assert_eq!(lab.kernel.look_after(Instant::now()).unwrap(), Done::Remade);
    for socket in sockets.iter().flatten() {
        let answer = ask(socket, Duration::from_secs(2));
        assert!(["a", "b"].contains(&answer.server()), "{answer:?}");
    }
    let over = AtomicBool::new(false);
    let made: [[AtomicUsize; 4]; 3] = Default::default();
    thread::scope(|scope| {
        let _ends = Ends(&over);
        let mut asking = Vec::new();
        for (from, made) in clients.iter().zip(&made) {
            for (to, made) in AT_HOST.into_iter().zip(made) {
                let over = &over;
                asking.push(scope.spawn(move || keep_asking(from, to, over, made)));
            }
        }
        for _ in 0..5 {
            // All of them are at it, those too that waited in the turn before.
            let before: Vec<_> = count(&made).collect();
            until("some more connections", || {
                let all = count(&made).zip(&before).all(|(now, then)| now > *then);
                all || asking.iter().any(ScopedJoinHandle::is_finished)
            });
            flush(&lab);
            thread::sleep(Duration::from_millis(50));
            assert_eq!(lab.kernel.look_after(Instant::now()).unwrap(), Done::Remade);
        }
    });
}

fn flush(lab: &Lab) {
    ok(&lab.host, "nft flush ruleset");
}

fn count(made: &[[AtomicUsize; 4]; 3]) -> impl Iterator<Item = usize> {
    made.iter().flatten().map(|one| one.load(Ordering::Relaxed))
}

fn keep_asking(from: &Netns, to: &str, over: &AtomicBool, made: &AtomicUsize) {
    while !over.load(Ordering::Relaxed) {
        let answer = tcp(from, to);
        assert!(["a", "b"].contains(&answer.server()), "{to}: {answer:?}");
        made.fetch_add(1, Ordering::Relaxed);
    }
}

/// What is held follows the Services: where there is no endpoint any more, or only for others, and at ports and
/// addresses that are no Service's by now, all is as if nothing were.
#[test]
fn what_is_held_does_not_change_what_the_rules_refuse() {
    let mut lab = Lab::new(EngineChoice::Kernel);
    let [node, balancer, ..] = AT_HOST;
    ok(&lab.host, "ip addr add 203.0.113.5/32 dev lo");
    lab.report([Change::Service(exposed()), slice([at(A)])]);
    for to in [node, balancer] {
        assert_eq!(tcp(&lab.outside, to).server(), "a");
    }
    lab.report([slice([])]);
    for to in [node, balancer] {
        for from in [&lab.outside, &lab.c, &lab.host] {
            assert_eq!(tcp(from, to), Answer::Refused, "{to} has no endpoint");
        }
        assert_eq!(
            udp(&lab.outside, to),
            Answer::Refused,
            "{to} has no endpoint"
        );
    }
    let local = Service {
        external: TrafficPolicy::Local,
        ..exposed()
    };
    lab.report([Change::Service(local), slice([at(FAR)])]);
    for to in [node, balancer] {
        assert!(
            vanishes(&lab.outside, to),
            "{to} has none for those outside"
        );
        assert_eq!(tcp(&lab.c, to).server(), "far");
    }
    // The host's own server comes next.
    lab.report([Change::Service(web())]);
    assert_eq!(tcp(&lab.c, &format!("{VIP}:80")).server(), "far");
    assert_eq!(tcp(&lab.outside, node), Answer::Refused);
    crate::lab::serve_at(&lab.host, "host", 30_080);
    assert_eq!(tcp(&lab.outside, node).server(), "host");
    assert_eq!(udp(&lab.outside, node).server(), "host");
}

/// Under constant load endpoints come and go 1,000 times in the kernel: no old connection breaks, and no new one is refused. A batch is
/// one step for the kernel, but a packet that is on its way through the rules in that instant may see a rule from before
/// it and an element from after it; that costs it a second until it is sent again.
fn endpoints_that_come_and_go_cost_no_connection(on: EngineChoice) {
    let mut lab = Lab::new(on);
    // With UDP, each change would look through all connections that were ever made here.
    let only_tcp = Service {
        ports: vec![port(Protocol::Tcp, 80, None)],
        ..web()
    };
    lab.report([Change::Service(only_tcp), slice([at(A), at(B)])]);
    let (over, made) = (AtomicBool::new(false), AtomicUsize::new(0));
    let (mut lasting, _) = connect(&lab.c, WEB, Duration::from_secs(10)).unwrap();
    let c = lab.c.try_clone().unwrap();
    thread::scope(|scope| {
        let asking = scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                let answer = tcp(&c, WEB);
                assert!(["a", "b"].contains(&answer.server()), "{answer:?}");
                made.fetch_add(1, Ordering::Relaxed);
            }
        });
        // What it costs the relay is its own tests' business.
        let turns = if on == EngineChoice::Kernel { 500 } else { 100 };
        let start = Instant::now();
        // One that waits a second for its turn is not the only one that is made.
        let goes_on = |turn| {
            turn < turns
                || made.load(Ordering::Relaxed) < 2 && start.elapsed() < Duration::from_secs(20)
        };
        for turn in (0..).take_while(|turn| goes_on(*turn)) {
            let one = if turn % 2 == 0 { A } else { B };
            for endpoints in [vec![at(one)], vec![at(A), at(B)]] {
                let done = lab.report([slice(endpoints)]);
                assert!(done == Done::Changed || crate::mutants::now().is_some());
            }
            // What came to a stop will not go on.
            if asking.is_finished() {
                break;
            }
        }
        over.store(true, Ordering::Relaxed);
    });
    assert!(made.into_inner() > 1);
    assert!(echoes(&mut lasting));
}
