//! A host whose memory was copied: nothing is sealed with the old keys any more, and little is lost.

use std::time::Duration;

use weave_router::session::Sessions;
use weave_router::wire::HEADER;

use crate::net::{CLUSTER, Link, Net, config, keys, secret};

const MS: Duration = Duration::from_millis(1);
/// Where the ephemeral key stands in an initiation.
const EPHEMERAL: std::ops::Range<usize> = HEADER + 8..HEADER + 40;

fn renew(net: &mut Net, host: usize, boot: u64) {
    net.hosts[host].sessions.renew(boot, net.now);
    net.flush(host);
}

#[test]
fn the_old_keys_seal_nothing_and_a_round_trip_later_there_are_new_ones() {
    let mut net = Net::up(1, Link::default());
    let old = net.outbound(0).unwrap();
    assert!((0..2).all(|lane| old.reserve(lane, 1).is_some()));
    renew(&mut net, 0, 99);
    assert!((0..2).all(|lane| old.reserve(lane, 1).is_none()), "at once");
    assert!(!net.data(0, 0, 1));
    net.run(60 * MS);
    assert!(net.paired());
    let new = net.outbound(0).unwrap();
    assert!(new.index() != old.index() && new.receiver() != old.receiver());
    assert_eq!(net.outbound(1).unwrap().boot(), 99);
    assert!(net.data(0, 1, 2) && net.data(1, 1, 3));
    net.run(60 * MS);
    assert_eq!(
        (&net.hosts[1].received, &net.hosts[0].received),
        (&vec![2], &vec![3])
    );
    assert_eq!(
        net.hosts[1].inbound.len(),
        1,
        "the peer forgot the old session too"
    );
}

#[test]
fn a_handshake_under_way_is_begun_anew() {
    let mut net = Net::pair(2, Link::default());
    net.connect(0, 1);
    net.run(15 * MS);
    assert!(net.hosts[0].inbound.is_empty(), "the answer is on its way");
    renew(&mut net, 0, 99);
    net.run(6 * MS);
    assert!(
        net.outbound(0).is_none(),
        "the answer to the old one is left"
    );
    net.run(Duration::from_secs(2));
    assert!(net.paired());
    assert_eq!(net.outbound(1).unwrap().boot(), 99);
}

#[test]
fn who_wants_no_session_is_found_again_by_who_does() {
    let mut net = Net::up(3, Link::default());
    renew(&mut net, 1, 99);
    assert!(net.outbound(1).is_none());
    assert!(net.data(0, 0, 1));
    net.run(Duration::from_secs(5));
    assert!(net.paired());
    assert_eq!(net.outbound(0).unwrap().boot(), 99);
}

#[test]
fn copies_that_take_in_fresh_bytes_draw_other_keys() {
    let net = Net::pair(4, Link::default());
    let initiation = |fresh: Option<[u8; 32]>| {
        let mut sessions = Sessions::new(keys(3), config(1), [7; 32], net.now);
        sessions.set_cluster(CLUSTER, secret(1), None, net.now);
        let other = &net.hosts[0];
        let peer = sessions.add_peer(other.public, vec![other.address], net.now);
        if let Some(fresh) = fresh {
            sessions.reseed(&fresh);
        }
        sessions.connect(peer, net.now);
        sessions.poll_transmit().unwrap().bytes
    };
    assert_eq!(initiation(None), initiation(None), "one memory, one key");
    let [one, other] = [1, 2].map(|byte| initiation(Some([byte; 32])));
    assert_ne!(one[EPHEMERAL], other[EPHEMERAL]);
    assert_ne!(one[EPHEMERAL], initiation(None)[EPHEMERAL]);
}
