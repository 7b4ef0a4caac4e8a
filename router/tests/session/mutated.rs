//! A million true datagrams, changed on the way: nothing comes of any, and everything of those that were not changed.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};
use weave_model::Drop;
use weave_router::session::SessionStatus;
use weave_router::wire::HEADER;

use crate::net::{Link, Net, address};

/// How many true datagrams, and how many changed copies of each.
const TRUE: u64 = 2000;
const CHANGED: usize = 500;

/// A copy that differs from the original, and where it claims to come from.
fn changed(original: &[u8], other: &[u8], rng: &mut StdRng) -> Vec<u8> {
    let mut copy = original.to_vec();
    while copy == original {
        let at = rng.random_range(0..copy.len());
        match rng.random_range(0..8) {
            // The header says which session, lane and counter: half of the changes are there.
            0..4 => copy[rng.random_range(0..HEADER)] ^= 1 << rng.random_range(0..8),
            4 => copy[at] ^= 1 << rng.random_range(0..8),
            5 => copy.truncate(at),
            6 => copy.extend((0..rng.random_range(1..40)).map(|_| rng.next_u32() as u8)),
            _ => {
                let end = rng.random_range(at..=copy.len());
                let end = end.min(other.len());
                let at = at.min(end);
                copy[at..end].copy_from_slice(&other[at..end]);
            }
        }
    }
    copy
}

/// All that a datagram could change at a host.
fn state(net: &Net, host: usize) -> (SessionStatus, Vec<String>, Vec<u64>, Vec<u64>) {
    let (host, peer) = (&net.hosts[host], net.hosts[1 - host].id);
    let heard = host.inbound.values().map(|inbound| inbound.last_heard_ms());
    (
        host.sessions.status(peer).unwrap(),
        host.log.clone(),
        host.received.clone(),
        heard.collect(),
    )
}

#[test]
fn a_million_changed_datagrams_change_nothing() {
    let mut net = Net::up(1, Link::default());
    net.keep_capture = true;
    let mut rng = StdRng::seed_from_u64(7);
    let (from, peer) = (net.hosts[0].address, net.hosts[1].id);
    let elsewhere = address("203.0.113.66:6783");
    let seal = |net: &Net, number: u64| {
        let size = [8, 64, 500, 1400][(number % 4) as usize];
        let sealed = net.hosts[0].seal_of(size, peer, (number % 2) as u8, number, net.now);
        sealed.unwrap().1
    };
    let mut reasons = std::collections::BTreeMap::<Drop, u32>::new();
    let mut other = seal(&net, 0);
    for number in 1..=TRUE {
        let datagram = seal(&net, number);
        let (before, due) = (state(&net, 1), net.hosts[1].sessions.poll_timeout());
        for _ in 0..CHANGED {
            let copy = changed(&datagram, &other, &mut rng);
            let from = if rng.random() { from } else { elsewhere };
            let reason = net.deliver(1, &copy, from).unwrap_err();
            *reasons.entry(reason).or_default() += 1;
        }
        assert_eq!(state(&net, 1), before);
        assert_eq!(net.hosts[1].sessions.poll_timeout(), due);
        assert!(net.capture.is_empty(), "no answer");
        net.deliver(1, &datagram, from).unwrap();
        assert_eq!(net.hosts[1].received.last(), Some(&number));
        net.capture.clear();
        other = datagram;
        if number % 100 == 0 {
            net.run(Duration::from_millis(100));
            net.capture.clear();
        }
    }
    println!("{reasons:?}");
    let refused: u32 = reasons.values().sum();
    assert_eq!(u64::from(refused), TRUE * CHANGED as u64);
    assert_eq!(net.hosts[1].received, (1..=TRUE).collect::<Vec<_>>());
    assert!(net.paired(), "the session is the same");
}
