//! Who gets how many connections, in virtual time and with a seed: each way to choose, endpoints that fail, are new, or
//! come and go.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use weave_model::{Affinity, Balance, Engine, TrafficPolicy};
use weave_proxy::relay::pick::{Balancer, Set};
use weave_proxy::table::{Entry, Target};

const MS: Duration = Duration::from_millis(1);

fn endpoint(number: u8) -> SocketAddr {
    SocketAddr::from(([10, 32, 0, number], 8080))
}

fn client(number: u32) -> SocketAddr {
    let [_, a, b, c] = number.to_be_bytes();
    SocketAddr::from(([172, a, b, c], 40_000))
}

fn entry(balance: Balance, numbers: impl IntoIterator<Item = u8>) -> Entry {
    let target = |number| Target {
        address: endpoint(number),
        local: false,
    };
    Entry {
        fronts: Vec::new(),
        cluster: numbers.into_iter().map(target).collect(),
        local: Vec::new(),
        any: true,
        internal: TrafficPolicy::Cluster,
        external: TrafficPolicy::Cluster,
        affinity: Affinity::None,
        source_ranges: Vec::new(),
        serving: BTreeSet::new(),
        engine: Engine::Relay,
        balance,
        loopback: true,
    }
}

/// The same, of which the first so many are on this node.
fn near(count: usize, balance: Balance, numbers: impl IntoIterator<Item = u8>) -> Entry {
    let mut entry = entry(balance, numbers);
    entry
        .cluster
        .iter_mut()
        .take(count)
        .for_each(|target| target.local = true);
    entry
}

/// A balancer with a clock and a seed of its own.
struct World {
    balancer: Balancer,
    now: Instant,
    random: u64,
    clients: u32,
}

impl World {
    fn new(entry: &Entry) -> Self {
        Self {
            balancer: Balancer::new(entry.into()),
            now: Instant::now(),
            random: 1,
            clients: 0,
        }
    }

    fn pick_for(&mut self, client: SocketAddr, tried: &[SocketAddr]) -> SocketAddr {
        // Knuth's numbers, of which the high bits are good.
        self.random = self
            .random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let (now, draw) = (self.now, self.random);
        let picked = self
            .balancer
            .pick(client, (Set::Cluster, |_: &_| true), tried, now, draw);
        picked.unwrap().address
    }

    fn pick(&mut self) -> SocketAddr {
        self.clients += 1;
        self.pick_for(client(self.clients), &[])
    }

    fn fail(&mut self, endpoint: SocketAddr) {
        self.balancer.handle_failure(endpoint, self.now);
        self.balancer.handle_end(endpoint);
    }

    fn answer(&mut self, endpoint: SocketAddr, took: Duration) {
        let who = client(self.clients).ip();
        self.balancer.handle_answer(endpoint, who, took, self.now);
    }

    /// How many of so many short connections each endpoint gets.
    fn shares(&mut self, count: usize) -> BTreeMap<SocketAddr, usize> {
        let mut shares = BTreeMap::new();
        for _ in 0..count {
            let picked = self.pick();
            *shares.entry(picked).or_default() += 1;
            self.balancer.handle_end(picked);
        }
        shares
    }
}

#[test]
fn idle_endpoints_get_equal_shares() {
    for balance in [Balance::Least, Balance::Maglev] {
        let shares = World::new(&entry(balance, 0..4)).shares(4000);
        assert!(
            shares.values().all(|share| (850..1150).contains(share)),
            "{shares:?}"
        );
    }
}

#[test]
fn open_connections_stay_even_with_least() {
    let mut world = World::new(&entry(Balance::Least, 0..10));
    let mut open: BTreeMap<SocketAddr, usize> = BTreeMap::new();
    for _ in 0..1000 {
        *open.entry(world.pick()).or_default() += 1;
    }
    // Lots alone would leave some 30 between the most and the least.
    let (most, least) = (open.values().max(), open.values().min());
    assert!(most.unwrap() - least.unwrap() <= 6, "{open:?}");
}

#[test]
fn the_slow_get_less_with_latency_and_are_tried_again() {
    let mut world = World::new(&entry(Balance::Latency, 0..3));
    let took = |one: SocketAddr| if one == endpoint(2) { 50 * MS } else { MS };
    let mut shares = [0; 2];
    for turn in 0..4000 {
        let picked = world.pick();
        world.answer(picked, took(picked));
        world.balancer.handle_end(picked);
        world.now += 10 * MS;
        shares[usize::from(picked == endpoint(2))] += usize::from(turn > 10);
    }
    assert!(shares[1] > 0 && shares[1] < 80, "{shares:?}");
    // It is as fast as the others now: it gets its share again.
    world.now += Duration::from_secs(60);
    for one in 0..3 {
        world.answer(endpoint(one), MS);
    }
    world.now += Duration::from_secs(200);
    assert!(world.shares(300).len() == 3);
}

#[test]
fn one_that_takes_connections_and_hangs_gets_few_with_latency() {
    let mut world = World::new(&entry(Balance::Latency, 0..3));
    let hangs = endpoint(2);
    let mut shares = [0; 2];
    for _ in 0..2000 {
        let picked = world.pick();
        world.balancer.handle_connected(picked, MS, world.now);
        if picked == hangs {
            world.balancer.handle_silence(hangs, 500 * MS, world.now);
        } else {
            world.answer(picked, 2 * MS);
        }
        world.balancer.handle_end(picked);
        world.now += 10 * MS;
        shares[usize::from(picked == hangs)] += 1;
    }
    assert!((1..20).contains(&shares[1]), "{shares:?}");
}

#[test]
fn whoever_fails_is_left_out_and_returns_slowly() {
    let mut world = World::new(&entry(Balance::Least, 0..4));
    let bad = endpoint(3);
    let mut failed = 0;
    for _ in 0..400 {
        let picked = world.pick();
        if picked == bad {
            failed += 1;
            world.fail(bad);
        } else {
            world.balancer.handle_end(picked);
        }
    }
    assert_eq!(failed, 3, "three failures, and no connection more");
    world.now += Duration::from_secs(2);
    let share = |world: &mut World| world.shares(2000).get(&bad).copied().unwrap_or(0);
    let cold = share(&mut world);
    world.now += Duration::from_secs(12);
    let warm = share(&mut world);
    assert!((10..150).contains(&cold), "{cold}");
    assert!((400..600).contains(&warm), "{warm}");
}

/// Connections that were under way there when an endpoint was left out fail as well.
#[test]
fn what_fails_while_an_endpoint_is_left_out_keeps_it_out_no_longer() {
    let mut world = World::new(&entry(Balance::Least, 0..4));
    for _ in 0..10 {
        world.balancer.handle_failure(endpoint(0), world.now);
    }
    let seen = |world: &World| world.balancer.seen(world.now)[0];
    let out = seen(&world);
    assert_eq!((out.ejected, out.counts.ejections), (true, 1));
    world.now += Duration::from_secs(2);
    assert!(!seen(&world).ejected);
}

#[test]
fn at_most_half_are_left_out() {
    let mut world = World::new(&entry(Balance::Least, 0..4));
    for _ in 0..20 {
        for number in 0..4 {
            world.fail(endpoint(number));
        }
    }
    let out = world.balancer.seen(world.now);
    assert_eq!(out.iter().filter(|seen| seen.ejected).count(), 2);
    let mut alone = World::new(&entry(Balance::Least, 0..1));
    (0..10).for_each(|_| alone.fail(endpoint(0)));
    assert_eq!(alone.pick(), endpoint(0));
}

#[test]
fn an_endpoint_that_is_new_gets_its_share_little_by_little() {
    let mut world = World::new(&entry(Balance::Least, 0..3));
    let four = entry(Balance::Least, 0..4);
    world.balancer.update((&four).into(), world.now);
    let new = endpoint(3);
    let mut shares = Vec::new();
    for _ in 0..3 {
        shares.push(world.shares(2000).get(&new).copied().unwrap_or(0));
        world.now += Duration::from_secs(5);
    }
    assert!(
        shares[0] > 0 && shares[0] < shares[1] && shares[1] < shares[2],
        "{shares:?}"
    );
    assert!((400..600).contains(&shares[2]), "{shares:?}");
}

/// Connections of before may keep an endpoint known for as long as it is not listed.
#[test]
fn an_endpoint_that_is_listed_again_gets_its_share_little_by_little() {
    let mut world = World::new(&entry(Balance::Least, 0..4));
    let others = [1, 2, 3].map(endpoint);
    let stays = world.pick_for(client(0), &others);
    for numbers in [1..4, 0..4] {
        let listed = entry(Balance::Least, numbers);
        world.balancer.update((&listed).into(), world.now);
    }
    world.balancer.handle_end(stays);
    let share = |world: &mut World| world.shares(2000).get(&stays).copied().unwrap_or(0);
    let cold = share(&mut world);
    world.now += Duration::from_secs(10);
    let warm = share(&mut world);
    assert!((10..150).contains(&cold), "{cold}");
    assert!((400..600).contains(&warm), "{warm}");
}

#[test]
fn idle_endpoints_of_this_node_get_all_and_others_when_they_fail() {
    for balance in [Balance::Least, Balance::Latency] {
        let mut world = World::new(&near(2, balance, 0..6));
        let shares = world.shares(1000);
        assert_eq!(shares.len(), 2, "{shares:?}");
        for number in 0..2 {
            assert!(
                (400..600).contains(&shares[&endpoint(number)]),
                "{shares:?}"
            );
        }
        (0..3).for_each(|_| world.fail(endpoint(0)));
        assert_eq!(world.shares(100), [(endpoint(1), 100)].into());
        (0..3).for_each(|_| world.fail(endpoint(1)));
        let shares = world.shares(1000);
        assert!(!shares.contains_key(&endpoint(0)) && !shares.contains_key(&endpoint(1)));
        assert_eq!(shares.len(), 4, "{shares:?}");
    }
}

#[test]
fn what_is_too_much_for_endpoints_of_this_node_goes_to_others() {
    let mut world = World::new(&near(2, Balance::Least, 0..4));
    let picked: Vec<SocketAddr> = (0..300).map(|_| world.pick()).collect();
    let here = [0, 1].map(endpoint);
    let first: BTreeSet<SocketAddr> = picked.iter().copied().take(4).collect();
    assert_eq!(first, here.into());
    let near = picked.iter().filter(|one| here.contains(one)).count();
    assert!((190..220).contains(&near), "twice as much: {near} of 300");
}

#[test]
fn an_endpoint_of_this_node_that_is_new_gets_its_share_little_by_little() {
    let mut world = World::new(&near(0, Balance::Least, 1..4));
    world.shares(10);
    world
        .balancer
        .update((&near(1, Balance::Least, 0..4)).into(), world.now);
    let shares = world.shares(1000);
    assert!((60..140).contains(&shares[&endpoint(0)]), "{shares:?}");
    world.now += Duration::from_secs(10);
    assert_eq!(world.shares(100), [(endpoint(0), 100)].into());
}

#[test]
fn slow_endpoints_of_this_node_are_passed_over_with_latency() {
    let mut world = World::new(&near(1, Balance::Latency, 0..3));
    let mut here = 0;
    for _ in 0..200 {
        let picked = world.pick();
        let is_near = picked == endpoint(0);
        here += usize::from(is_near);
        world.answer(picked, if is_near { 50 * MS } else { MS });
        world.balancer.handle_end(picked);
        world.now += MS;
    }
    assert!((1..20).contains(&here), "{here} of 200");
}

#[test]
fn of_endpoints_that_are_as_fast_the_one_with_less_to_do_is_taken_with_latency() {
    let mut world = World::new(&entry(Balance::Latency, 0..2));
    for number in 0..2 {
        let other = endpoint(1 - number);
        let picked = world.pick_for(client(0), &[other]);
        world.answer(picked, MS);
        world.balancer.handle_end(picked);
    }
    let busy = (0..20).map(|n| world.pick_for(client(n), &[endpoint(1)]));
    assert!(
        busy.collect::<Vec<_>>()
            .iter()
            .all(|one| *one == endpoint(0))
    );
    assert_eq!(world.shares(200), [(endpoint(1), 200)].into());
}

#[test]
fn to_know_how_fast_others_are_few_connections_leave_this_node() {
    let mut world = World::new(&near(1, Balance::Latency, 0..50));
    let mut here = 0;
    for _ in 0..1200 {
        let picked = world.pick();
        here += usize::from(picked == endpoint(0));
        world.answer(picked, MS);
        world.balancer.handle_end(picked);
        world.now += 50 * MS;
    }
    assert!(here > 1100, "{here} of 1200 in a minute");
}

#[test]
fn it_is_known_whether_anybody_was_not_tried() {
    let world = World::new(&entry(Balance::Least, 0..2));
    let tried = [0, 1].map(endpoint);
    assert!(world.balancer.has_untried(Set::Cluster, &tried[..1]));
    assert!(!world.balancer.has_untried(Set::Cluster, &tried));
    assert!(!world.balancer.has_untried(Set::Local, &[]));
}

/// A client comes to each node from another port; with affinity that makes no difference.
#[test]
fn maglev_gives_a_client_with_affinity_the_same_on_every_node() {
    let sticky = Entry {
        affinity: Affinity::ClientIp { seconds: 100 },
        ..entry(Balance::Maglev, 0..10)
    };
    let (mut one, mut other) = (World::new(&sticky), World::new(&sticky));
    for n in 0..100 {
        let here = client(n);
        let there = SocketAddr::new(here.ip(), 50_000);
        assert_eq!(one.pick_for(here, &[]), other.pick_for(there, &[]));
    }
}

/// The order of a client is long; other clients wait until the choice for it is made.
#[test]
fn that_a_client_reaches_nobody_is_soon_seen_with_maglev() {
    const MANY: u8 = 200;
    let mut world = World::new(&entry(Balance::Maglev, 0..MANY));
    let asked = std::cell::Cell::new(0);
    let reaches = |_: &Target| {
        asked.set(asked.get() + 1);
        false
    };
    let picked = world
        .balancer
        .pick(client(1), (Set::Cluster, reaches), &[], world.now, 7);
    assert_eq!(picked, None);
    assert!(asked.get() < 10 * usize::from(MANY), "{}", asked.get());
}

#[test]
fn maglev_gives_a_client_the_same_on_every_node_and_moves_few() {
    let (mut one, mut other) = (
        World::new(&entry(Balance::Maglev, 0..10)),
        World::new(&entry(Balance::Maglev, 0..10)),
    );
    let choices = |world: &mut World| -> Vec<SocketAddr> {
        (0..1000).map(|n| world.pick_for(client(n), &[])).collect()
    };
    let before = choices(&mut one);
    other.random = 99;
    assert_eq!(before, choices(&mut other));
    one.balancer
        .update((&entry(Balance::Maglev, 1..10)).into(), one.now);
    let after = choices(&mut one);
    let moved = before.iter().zip(&after).filter(|(was, is)| was != is);
    let (lost, more): (Vec<_>, Vec<_>) = moved.partition(|(was, _)| **was == endpoint(0));
    assert!(
        !lost.is_empty() && more.len() < 40,
        "{} {}",
        lost.len(),
        more.len()
    );
}

#[test]
fn a_client_stays_while_its_time_lasts_and_its_endpoint_answers() {
    let sticky = Entry {
        affinity: Affinity::ClientIp { seconds: 60 },
        ..entry(Balance::Least, 0..5)
    };
    let mut world = World::new(&sticky);
    let me = client(7);
    let mine = world.pick_for(me, &[]);
    for _ in 0..50 {
        world.now += Duration::from_secs(59);
        assert_eq!(world.pick_for(me, &[]), mine);
    }
    let second = world.pick_for(me, &[mine]);
    assert_ne!(second, mine);
    assert_eq!(
        world.pick_for(me, &[]),
        second,
        "the one that answered is kept"
    );
}

#[test]
fn what_was_removed_keeps_its_connections_and_gets_no_more() {
    let mut world = World::new(&entry(Balance::Least, 0..2));
    let picked: Vec<SocketAddr> = (0..20).map(|_| world.pick()).collect();
    world
        .balancer
        .update((&entry(Balance::Least, 1..2)).into(), world.now);
    assert!((0..50).all(|_| world.pick() == endpoint(1)));
    let open = |world: &World| {
        let seen = world.balancer.seen(world.now);
        seen.iter()
            .find(|seen| seen.address == endpoint(0))
            .map(|seen| seen.open)
    };
    let of_gone = picked.iter().filter(|one| **one == endpoint(0)).count();
    assert_eq!(open(&world), Some(of_gone as u32));
    (0..of_gone).for_each(|_| world.balancer.handle_end(endpoint(0)));
    assert_eq!(
        open(&world),
        None,
        "it is forgotten with its last connection"
    );
}

/// What may happen to a balancer.
#[derive(Clone, Debug)]
enum Step {
    Pick(u32),
    End(usize),
    Fail(usize),
    Answer(usize, u64),
    Update(Vec<u8>, u8),
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..20_u32).prop_map(Step::Pick),
        2 => any::<usize>().prop_map(Step::End),
        1 => any::<usize>().prop_map(Step::Fail),
        1 => (any::<usize>(), 0..3000_u64).prop_map(|(at, ms)| Step::Answer(at, ms)),
        1 => (prop::collection::vec(0..8_u8, 0..8), 0..3_u8).prop_map(|(all, how)| Step::Update(all, how)),
        1 => (0..90_000_u64).prop_map(Step::Wait),
    ]
}

proptest! {
    /// Against a count of its own: whatever happens, a pick is one of those listed, there is one if any is listed, and
    /// what counts as open is what was picked and has not ended.
    #[test]
    fn what_is_open_is_what_was_picked_and_has_not_ended(steps in prop::collection::vec(step(), 1..200)) {
        let mut listed: BTreeSet<u8> = (0..3).collect();
        let mut world = World::new(&entry(Balance::Least, listed.clone()));
        let mut open: Vec<SocketAddr> = Vec::new();
        for step in steps {
            match step {
                Step::Pick(who) => {
                    let (now, draw) = (world.now, u64::from(who).wrapping_mul(0x9e37_79b9_7f4a_7c15));
                    let picked = world.balancer.pick(client(who), (Set::Cluster, |_: &_| true), &[], now, draw);
                    prop_assert_eq!(picked.is_some(), !listed.is_empty());
                    if let Some(picked) = picked {
                        prop_assert!(listed.iter().any(|number| endpoint(*number) == picked.address));
                        open.push(picked.address);
                    }
                }
                Step::End(at) if !open.is_empty() => {
                    let one = open.swap_remove(at % open.len());
                    world.balancer.handle_end(one);
                }
                Step::Fail(at) if !open.is_empty() => {
                    let one = open.swap_remove(at % open.len());
                    world.fail(one);
                }
                Step::Answer(at, ms) if !open.is_empty() => {
                    let one = open[at % open.len()];
                    world.answer(one, ms as u32 * MS);
                }
                Step::End(_) | Step::Fail(_) | Step::Answer(..) => {}
                Step::Update(all, how) => {
                    listed = all.into_iter().collect();
                    let balance = [Balance::Least, Balance::Latency, Balance::Maglev][usize::from(how)];
                    world.balancer.update((&entry(balance, listed.clone())).into(), world.now);
                }
                Step::Wait(ms) => world.now += ms as u32 * MS,
            }
            let counted: u32 = world.balancer.seen(world.now).iter().map(|seen| seen.open).sum();
            prop_assert_eq!(counted as usize, open.len());
        }
    }
}

/// When all that are left are ejected, they share what nobody else can have.
#[test]
fn of_those_that_are_left_out_each_is_a_last_resort() {
    let mut world = World::new(&entry(Balance::Least, 0..4));
    let out = [0, 1].map(endpoint);
    for one in out {
        (0..3).for_each(|_| world.balancer.handle_failure(one, world.now));
    }
    let tried = [2, 3].map(endpoint);
    let mut times = [0; 2];
    for _ in 0..200 {
        let picked = world.pick_for(client(1), &tried);
        let place = out.iter().position(|one| *one == picked);
        times[place.expect("it was not tried")] += 1;
    }
    // Places of two that were tried lead to the first: it has three of four.
    assert!(times.iter().all(|times| *times > 20), "{times:?}");
}

/// What Prometheus adds up must not fall when an endpoint goes.
#[test]
fn counts_of_endpoints_that_have_gone_stay_in_the_sum() {
    let mut world = World::new(&entry(Balance::Least, 0..4));
    let picked: Vec<SocketAddr> = (0..100).map(|_| world.pick()).collect();
    world.balancer.handle_failure(picked[0], world.now);
    world
        .balancer
        .handle_connected(picked[1], 20 * MS, world.now);
    let before = world.balancer.sum(world.now);
    assert_eq!((before.open, before.listed, before.ejected), (100, 4, 0));
    assert_eq!((before.counts.picks, before.counts.failures), (100, 1));
    assert_eq!(
        (before.latency, before.slowest),
        (Some(20 * MS), Some(20 * MS))
    );
    world
        .balancer
        .update((&entry(Balance::Least, 0..1)).into(), world.now);
    let fewer = world.balancer.sum(world.now);
    assert_eq!((fewer.listed, fewer.counts), (1, before.counts));
    picked
        .iter()
        .for_each(|one| world.balancer.handle_end(*one));
    let ended = world.balancer.sum(world.now);
    assert_eq!((ended.open, ended.counts), (0, before.counts));
}

/// What a client and the endpoints may do, where clients are kept.
#[derive(Clone, Debug)]
enum Visit {
    Comes(u32),
    Lists(BTreeSet<u8>),
    Waits(u32),
}

/// For how long clients are kept, in seconds.
const KEPT: u32 = 60;

fn visit() -> impl Strategy<Value = Visit> {
    prop_oneof![
        8 => (0..6_u32).prop_map(Visit::Comes),
        1 => prop::collection::btree_set(0..8_u8, 1..8).prop_map(Visit::Lists),
        1 => (0..40_u32).prop_map(Visit::Waits),
    ]
}

/// Pearson's sum over equal shares.
fn chi_square(shares: &BTreeMap<SocketAddr, usize>, endpoints: usize, draws: usize) -> f64 {
    let expected = draws as f64 / endpoints as f64;
    let seen: f64 = shares
        .values()
        .map(|share| (*share as f64 - expected).powi(2) / expected)
        .sum();
    // Those that nobody got.
    seen + (endpoints - shares.len()) as f64 * expected
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// However many there are and whatever is drawn: as even as lots are. The bound is seven standard deviations above
    /// what the sum is for fair lots, and more for few of them, which fewer than one in 10^9 tries exceed.
    #[test]
    fn lots_are_fair_for_any_number_of_endpoints(count in 1..=200_u8, seed in any::<u64>(), latency in any::<bool>()) {
        let balance = if latency { Balance::Latency } else { Balance::Least };
        let mut world = World::new(&entry(balance, 0..count));
        world.random = seed;
        let draws = 200 * usize::from(count);
        let shares = world.shares(draws);
        let freedom = f64::from(count) - 1.0;
        let bound = freedom + 7.0 * (2.0 * freedom).sqrt() + 40.0;
        let sum = chi_square(&shares, usize::from(count), draws);
        prop_assert!(sum <= bound, "{} endpoints: {} > {}", count, sum, bound);
    }

    /// The hash gives each endpoint the same share of its table within a hundredth (`maglev.rs`); clients fall on places
    /// like lots.
    #[test]
    fn hashed_clients_are_even_for_any_number_of_endpoints(count in 1..=100_u8, first in any::<u16>()) {
        let mut world = World::new(&entry(Balance::Maglev, 0..count));
        world.clients = u32::from(first);
        let shares = world.shares(400 * usize::from(count));
        prop_assert_eq!(shares.len(), usize::from(count));
        // 400 each: seven standard deviations are 140.
        for (one, share) in shares {
            prop_assert!((250..=550).contains(&share), "{} of 400 for {}", share, one);
        }
    }

    /// Whoever comes again in time gets the same endpoint for as long as that is listed, however the others change, and by
    /// any way to choose.
    #[test]
    fn a_client_moves_only_when_its_endpoint_goes_or_its_time_is_over(
        visits in prop::collection::vec(visit(), 1..150), how in 0..3_usize,
    ) {
        let balance = [Balance::Least, Balance::Latency, Balance::Maglev][how];
        let sticky = |numbers: BTreeSet<u8>| Entry {
            affinity: Affinity::ClientIp { seconds: KEPT },
            ..entry(balance, numbers)
        };
        let mut listed: BTreeSet<u8> = (0..4).collect();
        let mut world = World::new(&sticky(listed.clone()));
        let mut known: BTreeMap<u32, (SocketAddr, Instant)> = BTreeMap::new();
        for visit in visits {
            match visit {
                Visit::Comes(who) => {
                    let picked = world.pick_for(client(who), &[]);
                    prop_assert!(listed.iter().any(|number| endpoint(*number) == picked));
                    if let Some((before, until)) = known.get(&who) && world.now < *until {
                        prop_assert_eq!(picked, *before, "client {}", who);
                    }
                    known.insert(who, (picked, world.now + Duration::from_secs(KEPT.into())));
                }
                Visit::Lists(numbers) => {
                    listed = numbers;
                    // Whose endpoint went is free to go anywhere, also back to it.
                    known.retain(|_, (at, _)| listed.iter().any(|number| endpoint(*number) == *at));
                    world.balancer.update((&sticky(listed.clone())).into(), world.now);
                }
                Visit::Waits(seconds) => world.now += Duration::from_secs(seconds.into()),
            }
        }
    }
}
