//! Keeping sessions: rekeys, limits, roaming, NAT, silence.

use std::time::Duration;

use weave_model::Suite;
use weave_router::session::packet_limit;

use crate::net::{Link, Nat, Net, address};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

/// Both hosts send a packet every 20 ms, alternating lanes, for as long as said; then the net comes to rest.
///
/// Every packet that the network did not lose must have been received exactly once.
fn talk(net: &mut Net, time: Duration) {
    let mut sent = [Vec::new(), Vec::new()];
    for number in 0..(time.as_millis() / 20) as u64 {
        for (host, sent) in sent.iter_mut().enumerate() {
            let tagged = number * 2 + host as u64;
            assert!(
                net.data(host, (number % 2) as u8, tagged),
                "host {host} cannot send packet {number}"
            );
            sent.push(tagged);
        }
        net.run(20 * MS);
    }
    net.run(SECOND);
    assert!(net.refused.is_empty(), "{:?}", net.refused);
    for (host, sent) in sent.into_iter().enumerate() {
        let mut received = std::mem::take(&mut net.hosts[1 - host].received);
        received.sort_unstable();
        let expected: Vec<u64> = sent
            .into_iter()
            .filter(|number| !net.lost.contains(number))
            .collect();
        assert_eq!(received.len(), expected.len());
        assert_eq!(received, expected);
    }
    net.lost.clear();
}

#[test]
fn a_rekey_by_time_loses_nothing() {
    let mut net = Net::up(
        1,
        Link {
            jitter: 60 * MS,
            duplicate: 0.1,
            ..Link::default()
        },
    );
    net.connect(1, 0);
    talk(&mut net, 600 * SECOND);
    let ups = net.hosts[0].count("Up");
    assert!((5..=7).contains(&ups), "{ups} sessions in ten minutes");
    assert_eq!(net.hosts[0].count("Down") + net.hosts[1].count("Down"), 0);
    assert!(net.hosts.iter().all(|host| host.inbound.len() <= 2));
}

#[test]
fn a_rekey_over_a_bad_link_loses_nothing_that_arrived() {
    for seed in 0..4 {
        let mut net = Net::up(100 + seed, Link::lossy(0.0));
        net.connect(1, 0);
        net.link = Link::lossy(0.3);
        talk(&mut net, 400 * SECOND);
        assert!(net.hosts[0].count("Up") >= 4, "seed {seed}");
        assert_eq!(
            net.hosts[0].count("Down") + net.hosts[1].count("Down"),
            0,
            "seed {seed}"
        );
    }
}

/// Either side may be the one that wears the keys out.
#[test]
fn a_rekey_by_count_loses_nothing() {
    for busy in 0..2 {
        let mut net = Net::up(
            1,
            Link {
                jitter: 20 * MS,
                ..Link::default()
            },
        );
        net.connect(1, 0);
        let worn = net.outbound(busy).unwrap();
        assert_eq!(worn.limit(), packet_limit(Suite::Aes256Gcm));
        worn.reserve(1, worn.limit() / 2).unwrap();
        talk(&mut net, 5 * SECOND);
        assert!(net.paired());
        assert_ne!(net.outbound(busy).unwrap().receiver(), worn.receiver());
        assert_eq!([0, 1].map(|host| net.hosts[host].count("Up")), [2, 2]);
    }
}

#[test]
fn no_key_outlives_its_count() {
    let mut net = Net::up(1, Link::default());
    let outbound = net.outbound(0).unwrap();
    let limit = outbound.limit();
    net.link.loss = 1.0;
    assert_eq!(outbound.reserve(1, limit - 3), Some(0));
    assert_eq!(outbound.reserve(1, 4), None);
    assert_eq!(outbound.reserve(1, 1), None);
    assert!(
        outbound.reserve(0, 1).is_some(),
        "lanes have keys of their own"
    );
    assert!(!net.data(0, 1, 1) && net.data(0, 0, 2));
    assert_eq!(outbound.reserve(2, 1), None, "there is no lane 2");
}

#[test]
fn no_key_outlives_its_time() {
    let mut net = Net::up(1, Link::default());
    let outbound = net.outbound(0).unwrap();
    let inbound = net.hosts[1].inbound[&outbound.receiver()].clone();
    net.link.loss = 1.0;
    net.run(178 * SECOND);
    assert!(outbound.reserve(0, 1).is_some() && inbound.lane(0).is_some());
    net.run(2 * SECOND);
    assert!(outbound.reserve(0, 1).is_none() && inbound.lane(0).is_none());
    for host in &net.hosts {
        assert_eq!(host.count("Down"), 1);
        assert!(host.inbound.is_empty() && host.outbound.is_empty());
    }
    net.link.loss = 0.0;
    assert!(
        net.run_until(7 * SECOND, Net::paired).is_some(),
        "a wanted session comes back"
    );
}

/// Nobody asked for this session, and nobody uses it.
#[test]
fn an_unused_session_may_end() {
    let mut net = Net::pair(1, Link::default());
    net.connect(0, 1);
    net.run(SECOND);
    let (a, b) = (net.hosts[0].public, net.hosts[1].public);
    // The one that wanted it is gone without a word; the other never wanted it.
    net.hosts[0].sessions.remove_peer(b.id(), net.now);
    net.flush(0);
    net.run(200 * SECOND);
    assert_eq!(net.hosts[1].count("Down"), 1);
    assert!(
        net.hosts[1].sessions.poll_timeout().is_none(),
        "nothing waits for {:?}",
        a.id()
    );
}

#[test]
fn an_endpoint_moves_with_the_newest_packet_of_lane_0() {
    let mut net = Net::up(1, Link::default());
    let (a, old) = (net.hosts[0].id, net.hosts[0].address);
    net.data(0, 1, 1);
    net.run(SECOND);
    assert_eq!(
        net.hosts[1].count("Moved"),
        0,
        "another lane comes from another port, as it should"
    );
    let late = net.hosts[0].seal(net.hosts[1].id, 0, 2, net.now).unwrap();

    let new = address("198.51.100.7:1111");
    net.hosts[0].address = new;
    net.data(0, 0, 3);
    net.run(Duration::from_millis(15));
    assert_eq!(net.hosts[1].outbound[&a].1, new);
    net.data(1, 0, 4);
    net.run(SECOND);
    assert_eq!(net.hosts[0].received, [4]);

    net.deliver(1, &late.1, old).unwrap();
    assert_eq!(net.hosts[1].received, [1, 3, 2]);
    assert_eq!(
        net.hosts[1].outbound[&a].1, new,
        "an older packet moves nothing"
    );
    assert_eq!(net.hosts[1].count("Moved"), 1);
    net.run(300 * SECOND);
    assert!(net.paired(), "rekeys follow");
}

/// Both move at the same moment and have nothing to say: each keeps sending to where the other was.
#[test]
fn two_that_lost_each_other_in_silence_meet_again() {
    let mut net = Net::up(1, Link::default());
    net.connect(1, 0);
    net.run(SECOND);
    net.hosts[0].address = address("198.51.100.7:1111");
    net.hosts[1].address = address("198.51.100.8:2222");
    net.run(5 * SECOND);
    net.introduce(0, 1);
    net.run(60 * SECOND);
    assert!(net.data(0, 0, 1) && net.data(1, 0, 2));
    net.run(SECOND);
    assert_eq!(
        (&net.hosts[1].received[..], &net.hosts[0].received[..]),
        (&[1][..], &[2][..])
    );
}

#[test]
fn a_forged_or_old_packet_moves_nothing() {
    let mut net = Net::up(1, Link::default());
    net.keep_capture = true;
    net.data(0, 0, 1);
    net.run(SECOND);
    let real = net.capture[0].3.clone();
    let elsewhere = address("203.0.113.9:9");
    assert!(net.deliver(1, &real, elsewhere).is_err());
    let mut forged = real;
    forged[15] += 5;
    assert!(net.deliver(1, &forged, elsewhere).is_err());
    assert_eq!(net.hosts[1].count("Moved"), 0);
}

#[test]
fn a_mapping_behind_nat_is_kept_open() {
    let mut net = Net::pair(1, Link::default());
    let outside = address("203.0.113.1:40000");
    net.nat = Some(Nat::new(0, outside, 30 * SECOND));
    net.connect(0, 1);
    net.run(SECOND);
    assert!(net.paired());
    for minute in 0..10 {
        net.run(60 * SECOND);
        assert!(net.data(1, 0, minute));
        net.run(SECOND);
        assert_eq!(net.hosts[0].received.len() as u64, minute + 1);
    }
    assert_eq!(net.nat.as_ref().unwrap().mappings, 1);
    // The NAT forgets everything (it was restarted): the next keepalive makes a new mapping, and the endpoint follows.
    net.nat.as_mut().unwrap().forget();
    net.run(25 * SECOND);
    assert!(net.data(1, 0, 99));
    net.run(SECOND);
    assert_eq!(net.hosts[0].received.last(), Some(&99));
    assert_eq!(net.nat.as_ref().unwrap().mappings, 2);
}

#[test]
fn an_idle_session_costs_next_to_nothing() {
    let mut net = Net::up(1, Link::default());
    net.connect(1, 0);
    net.run(10 * SECOND);
    net.keep_capture = true;
    net.run(600 * SECOND);
    let bytes: usize = net
        .capture
        .iter()
        .map(|(_, _, _, datagram)| datagram.len())
        .sum();
    assert!(
        net.capture.len() < 100 && bytes < 6000,
        "{} datagrams, {bytes} bytes",
        net.capture.len()
    );
}

#[test]
fn silence_is_probed_and_then_broken() {
    let mut net = Net::up(1, Link::default());
    net.run(10 * SECOND);
    let handshakes = |net: &Net| {
        net.capture
            .iter()
            .filter(|(_, _, _, datagram)| datagram[0] & 0xf == 1)
            .count()
    };
    net.keep_capture = true;
    net.link.loss = 1.0;
    net.data(0, 0, 1);
    net.run(200 * MS);
    assert_eq!(net.hosts[0].count("Probe"), 0);
    net.run(250 * MS);
    assert_eq!(net.hosts[0].count("Probe"), 1);
    net.run(2150 * MS);
    assert!((6..=10).contains(&net.hosts[0].count("Probe")));
    assert_eq!(handshakes(&net), 0);
    net.run(SECOND);
    assert!(handshakes(&net) > 0, "three seconds are enough");
    assert_eq!(net.hosts[0].count("Silent"), 1, "and it is told once");
    assert_eq!(
        net.hosts[0].count("Down"),
        0,
        "the old session goes on beside"
    );
    net.run(20 * SECOND);
    net.link.loss = 0.0;
    let took = net.run_until(10 * SECOND, |net| {
        net.hosts[0].count("Up") == 2 && net.paired()
    });
    assert!(took.unwrap() < 8 * SECOND);
    assert_eq!(net.hosts[0].count("Down") + net.hosts[1].count("Down"), 0);
}

/// A stream that goes one way only is no silence: the probe is answered.
#[test]
fn a_one_way_stream_needs_no_handshakes() {
    let mut net = Net::up(1, Link::default());
    for number in 0..1000 {
        net.data(0, 0, number);
        net.run(20 * MS);
    }
    assert_eq!([0, 1].map(|host| net.hosts[host].count("Up")), [1, 1]);
    assert_eq!(net.hosts[1].received.len(), 1000);
}

/// A receiver that has nothing to say says so now and then, without being asked.
#[test]
fn a_receiver_that_only_listens_says_something() {
    let mut net = Net::up(1, Link::default());
    net.hosts[0].expects_answers = false;
    net.run(SECOND);
    net.keep_capture = true;
    for number in 0..62 {
        net.data(0, 0, number);
        net.run(SECOND / 2);
    }
    let own = net.hosts[1].address;
    let said = net
        .capture
        .iter()
        .filter(|(_, from, ..)| *from == own)
        .count();
    assert_eq!(said, 3, "one in ten seconds");
    assert_eq!(net.hosts[0].count("Probe"), 0);
}

#[test]
fn a_peer_that_never_was_there_costs_little() {
    let mut net = Net::pair(
        1,
        Link {
            loss: 1.0,
            ..Link::default()
        },
    );
    net.keep_capture = true;
    net.connect(0, 1);
    net.run(100 * SECOND);
    assert!(
        (15..40).contains(&net.capture.len()),
        "{} tries",
        net.capture.len()
    );
}
