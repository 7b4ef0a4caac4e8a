//! Making sessions: loss, both at once, several endpoints, suites, epochs, restarts.

use std::time::Duration;

use weave_model::Suite;

use crate::net::{CLUSTER, Host, Link, Net, address, config, keys, secret};

const SECOND: Duration = Duration::from_secs(1);

/// One round trip more the first time since the other node's start, for the proof that the initiation is not an old one.
#[test]
fn a_session_comes_up_in_one_round_trip() {
    let mut net = Net::pair(1, Link::default());
    for round_trips in [2, 1] {
        net.restart(0, 10 - round_trips);
        net.connect(0, 1);
        let took = net
            .run_until(SECOND, |net| net.outbound(0).is_some())
            .unwrap();
        let most = Duration::from_millis(20 * round_trips + 1);
        assert!(took <= most, "{took:?}");
    }
    let took = net.run_until(SECOND, Net::paired).unwrap();
    assert!(took <= Duration::from_millis(11), "{took:?}");
    assert!(net.data(0, 0, 1) && net.data(1, 1, 2));
    net.run(SECOND);
    assert_eq!(
        (&net.hosts[1].received, &net.hosts[0].received),
        (&vec![1], &vec![2])
    );
    assert_eq!(net.outbound(0).unwrap().suite(), Suite::Aes256Gcm);
    assert_eq!(net.outbound(0).unwrap().lanes(), 2);
}

/// What a data thread tells may be lost in a full queue; what it noted is not.
#[test]
fn a_session_comes_up_though_nobody_tells() {
    let mut net = Net::pair(1, Link::default());
    net.hosts[1].tells = false;
    net.connect(0, 1);
    assert!(net.run_until(SECOND, Net::paired).is_some());
}

#[test]
fn a_session_comes_up_at_30_percent_loss() {
    let mut worst = Duration::ZERO;
    for seed in 0..200 {
        let mut net = Net::pair(seed, Link::lossy(0.3));
        net.connect((seed % 2) as usize, 1 - (seed % 2) as usize);
        let took = net.run_until(60 * SECOND, Net::paired);
        worst = worst.max(took.unwrap_or_else(|| panic!("seed {seed}: no session in a minute")));
        net.run(5 * SECOND);
        assert!(
            net.paired() && net.refused.is_empty(),
            "seed {seed}: {:?}",
            net.refused
        );
    }
    assert!(worst < 20 * SECOND, "{worst:?}");
}

#[test]
fn both_at_once_make_one_session_of_the_lower_id() {
    let mut net = Net::pair(1, Link::default());
    net.connect(0, 1);
    net.connect(1, 0);
    net.run(65 * SECOND);
    assert!(net.paired());
    for host in &net.hosts {
        assert_eq!(host.count("Up"), 1);
        assert_eq!(
            host.inbound.len(),
            1,
            "nothing is left of the other handshake: {:?}",
            host.log
        );
    }
}

#[test]
fn both_at_once_converge_over_a_bad_link() {
    for seed in 0..200 {
        let mut net = Net::pair(seed, Link::lossy(0.3));
        net.connect(1, 0);
        net.run(Duration::from_millis(seed % 40));
        net.connect(0, 1);
        net.run_until(60 * SECOND, Net::paired)
            .unwrap_or_else(|| panic!("seed {seed}"));
        net.link = Link::default();
        net.run(20 * SECOND);
        assert!(net.paired(), "seed {seed}");
        let ups = [0, 1].map(|host| net.hosts[host].count("Up"));
        let numbers: Vec<u64> = (0..20).collect();
        for &number in &numbers {
            assert!(net.data(0, 0, number) && net.data(1, 1, number));
        }
        net.run(20 * SECOND);
        assert_eq!(
            (&net.hosts[0].received, &net.hosts[1].received),
            (&numbers, &numbers),
            "seed {seed}"
        );
        assert_eq!(
            [0, 1].map(|host| net.hosts[host].count("Up")),
            ups,
            "seed {seed}: it went on shaking hands"
        );
        assert!(net.refused.is_empty(), "seed {seed}: {:?}", net.refused);
    }
}

#[test]
fn endpoints_are_tried_in_turn() {
    let mut net = Net::pair(1, Link::default());
    let (public, right) = (net.hosts[1].public, net.hosts[1].address);
    let endpoints = vec![address("192.0.2.77:1"), address("[2001:db8::1]:1"), right];
    net.hosts[0].sessions.add_peer(public, endpoints, net.now);
    net.connect(0, 1);
    let took = net.run_until(10 * SECOND, Net::paired).unwrap();
    assert!(took < SECOND, "{took:?}");
    assert_eq!(net.hosts[0].outbound[&public.id()].1, right);
    let retried = [0, 1].map(|host| net.hosts[host].count("Retried"));
    assert_eq!(retried, [2, 0], "each wrong address costs one");
}

#[test]
fn addresses_are_told_apart() {
    let mut net = Net::pair(1, Link::default());
    let (a, b) = (net.hosts[0].id, net.hosts[1].public);
    let scoped = "[fe80::1%7]:6783".parse().unwrap();
    let mapped = address("[::ffff:192.0.2.2]:6783");
    net.hosts[0]
        .sessions
        .add_peer(b, vec![mapped, scoped], net.now);
    net.hosts[0].sessions.connect(b.id(), net.now);
    let sent = net.hosts[0].sessions.poll_transmit().unwrap();
    assert_eq!(
        sent.to, net.hosts[1].address,
        "an IPv4 address in IPv6 clothes is one"
    );
    let asked = net.deliver(1, &sent.bytes, address("[::ffff:192.0.2.1]:6783"));
    assert_eq!(asked, Err(weave_model::Drop::Unproven), "for a cookie");
    net.run(SECOND);
    assert_eq!(
        net.hosts[1].sessions.status(a).unwrap().endpoint,
        Some(net.hosts[0].address)
    );

    let mut net = Net::pair(2, Link::default());
    net.hosts[0].sessions.add_peer(b, vec![scoped], net.now);
    net.hosts[0].sessions.connect(b.id(), net.now);
    assert_eq!(
        net.hosts[0].sessions.poll_transmit().unwrap().to,
        scoped,
        "the scope is kept"
    );
}

#[test]
fn a_session_waits_for_an_endpoint_and_a_cluster() {
    let mut net = Net::pair(1, Link::default());
    let (a, b) = (net.hosts[0].public, net.hosts[1].public);
    let boot = config(9);
    let mut seeded = Host::new(keys(3), address("192.0.2.3:6783"), boot, net.now);
    assert!(seeded.sessions.poll_timeout().is_none());
    seeded.sessions.add_peer(b, Vec::new(), net.now);
    seeded.sessions.connect(b.id(), net.now);
    assert!(seeded.sessions.poll_transmit().is_none());
    seeded
        .sessions
        .set_endpoints(b.id(), vec![net.hosts[1].address], net.now);
    assert!(seeded.sessions.poll_transmit().is_some());

    let mut outside = weave_router::session::Sessions::new(keys(4), config(9), [1; 32], net.now);
    outside.add_peer(a, vec![net.hosts[0].address], net.now);
    outside.connect(a.id(), net.now);
    assert!(outside.poll_transmit().is_none());
    outside.set_cluster(CLUSTER, secret(1), None, net.now);
    assert!(outside.poll_transmit().is_some());
    net.run(SECOND);
}

#[test]
fn a_suite_that_the_peer_refuses_is_not_insisted_on() {
    let mut net = Net::pair(1, Link::default());
    let mut only = config(5);
    (only.suites, only.preferred) = (vec![Suite::ChaCha20Poly1305], Suite::ChaCha20Poly1305);
    let b = &net.hosts[1];
    let b_keys = [keys(1), keys(2)]
        .into_iter()
        .find(|keys| keys.id() == b.id)
        .unwrap();
    net.hosts[1] = Host::new(b_keys, b.address, only, net.now);
    net.introduce(1, 0);
    net.connect(0, 1);
    net.run_until(5 * SECOND, Net::paired).unwrap();
    assert_eq!(net.outbound(0).unwrap().suite(), Suite::ChaCha20Poly1305);
}

/// The one that tries can do no more than try again, and the other notices nothing.
#[track_caller]
fn nobody_is_let_in(net: &Net) {
    let mut logs: Vec<&[String]> = net.hosts.iter().map(|host| host.log.as_slice()).collect();
    logs.retain(|log| !log.is_empty());
    assert_eq!(logs.len(), 1);
    assert!(logs[0].iter().all(|event| event == "Retried"), "{logs:?}");
}

#[test]
fn strangers_and_other_clusters_stay_out() {
    // Another secret.
    let mut net = Net::pair(1, Link::default());
    let wrong = weave_router::keys::ClusterSecret {
        epoch: 1,
        bytes: [0x77; 32],
    };
    net.hosts[0]
        .sessions
        .set_cluster(CLUSTER, wrong, None, net.now);
    net.connect(0, 1);
    net.run(30 * SECOND);
    nobody_is_let_in(&net);
    // Another cluster with the same secret.
    let mut net = Net::pair(2, Link::default());
    net.hosts[0]
        .sessions
        .set_cluster([0xc2; 32], secret(1), None, net.now);
    net.connect(0, 1);
    net.run(30 * SECOND);
    nobody_is_let_in(&net);
    // A node that holds the secret, but that nobody has made known.
    let mut net = Net::pair(3, Link::default());
    net.hosts.push(Host::new(
        keys(9),
        address("192.0.2.9:6783"),
        config(9),
        net.now,
    ));
    net.introduce(2, 1);
    net.connect(2, 1);
    net.run(30 * SECOND);
    nobody_is_let_in(&net);
}

/// The wall clock of a rotation: one side takes up the new epoch, then the other.
#[test]
fn a_rotation_cuts_nobody_off() {
    let mut net = Net::up(1, Link::default());
    net.hosts[0]
        .sessions
        .set_cluster(CLUSTER, secret(2), Some(secret(1)), net.now);
    // The first still reaches a node that has not heard of the rotation, restarted in between.
    net.restart(1, 7);
    net.connect(0, 1);
    net.connect(1, 0);
    net.run_until(10 * SECOND, Net::paired).unwrap();
    net.hosts[1]
        .sessions
        .set_cluster(CLUSTER, secret(2), Some(secret(1)), net.now);
    for _ in 0..300 {
        net.run(SECOND);
        assert!(net.paired());
    }
    assert!(net.hosts[0].count("Up") >= 3 && net.hosts[0].count("Down") == 0);
    // The old epoch has its end.
    net.hosts[0]
        .sessions
        .set_cluster(CLUSTER, secret(3), Some(secret(2)), net.now);
    net.hosts[1]
        .sessions
        .set_cluster(CLUSTER, secret(1), None, net.now);
    net.run(300 * SECOND);
    assert!(net.outbound(0).is_none() && net.outbound(1).is_none());
}

#[test]
fn a_restart_is_over_in_a_second() {
    for (seed, host) in [(1, 0), (2, 1)] {
        let mut net = Net::up(seed, Link::default());
        net.connect(1, 0);
        net.run(10 * SECOND);
        net.restart(host, 77);
        net.connect(host, 1 - host);
        let took = net.run_until(10 * SECOND, Net::paired).unwrap();
        assert!(took < SECOND / 10, "{took:?}");
        assert!(net.data(0, 0, 5) && net.data(1, 0, 6));
        net.run(SECOND);
        assert_eq!(
            (&net.hosts[1].received[..], &net.hosts[0].received[..]),
            (&[5][..], &[6][..])
        );
        let other = &net.hosts[1 - host];
        assert_eq!(
            other.inbound.len(),
            1,
            "the sessions that the peer forgot are gone"
        );
        assert_eq!(
            other.sessions.status(net.hosts[host].id).unwrap().boot,
            Some(77)
        );
    }
}

/// The restarted node does not come forward; its peer notices the silence.
#[test]
fn a_silent_restart_is_noticed() {
    let mut net = Net::up(1, Link::default());
    net.restart(1, 77);
    net.data(0, 0, 1);
    let took = net
        .run_until(10 * SECOND, |net| net.hosts[1].count("Up") == 1)
        .unwrap();
    assert!(took < 4 * SECOND, "{took:?}");
    assert!(net.paired());
}

/// What the clock says after a restart must not lock a node out for as long as the clock is wrong: a higher boot nonce or
/// a kept stamp is enough.
#[test]
fn a_clock_that_steps_back_locks_nobody_out() {
    let back = |boot: u64, keep_stamp: bool| {
        let mut net = Net::up(1, Link::default());
        let old = &net.hosts[0];
        let keys = [keys(1), keys(2)]
            .into_iter()
            .find(|keys| keys.id() == old.id)
            .unwrap();
        let mut config = config(boot);
        config.stamp_floor = if keep_stamp {
            old.sessions.last_stamp()
        } else {
            0
        };
        net.now.wall -= Duration::from_secs(3600);
        net.hosts[0] = Host::new(keys, old.address, config, net.now);
        net.introduce(0, 1);
        net.connect(0, 1);
        net.run_until(10 * SECOND, Net::paired).is_some()
    };
    assert!(back(8, false));
    assert!(back(0, true));
    assert!(!back(0, false), "this one cannot be told from a replay");
}

#[test]
fn removal_cuts_off_at_once() {
    let mut net = Net::up(1, Link::default());
    let (peer, outbound) = (net.hosts[1].id, net.outbound(0).unwrap());
    let inbound = net.hosts[0].inbound.values().next().unwrap().clone();
    net.hosts[0].sessions.remove_peer(peer, net.now);
    assert!(outbound.reserve(0, 1).is_none() && inbound.lane(0).is_none());
    net.flush(0);
    assert!(net.hosts[0].inbound.is_empty() && net.hosts[0].outbound.is_empty());
    net.connect(1, 0);
    net.run(300 * SECOND);
    assert!(net.outbound(0).is_none() && net.outbound(1).is_none());
    assert!(!net.hosts[0].sessions.send_control(peer, b"x", net.now));
}

#[test]
fn the_status_tells_what_the_peer_told() {
    let net = Net::up(1, Link::default());
    let status = net.hosts[0].sessions.status(net.hosts[1].id).unwrap();
    assert_eq!(status.endpoint, Some(net.hosts[1].address));
    assert_eq!((status.boot, status.record), (Some(2), 1));
    assert_eq!(status.suite, Some(Suite::Aes256Gcm));
    assert!(status.since < status.heard && status.heard < Some(net.now.mono));
    assert_eq!(net.hosts[0].sessions.status(net.hosts[0].id), None);
}
