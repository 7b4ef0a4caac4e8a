//! What others may try: replay, change, flood.

use std::sync::Arc;
use std::time::Duration;

use weave_model::Drop;
use weave_router::session::Sessions;

use crate::net::{CLUSTER, Host, Link, Net, address, config, keys, secret};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

fn flipped(datagram: &[u8], bit: usize) -> Vec<u8> {
    let mut datagram = datagram.to_vec();
    datagram[bit / 8] ^= 1 << (bit % 8);
    datagram
}

/// Host 0's initiation, which has not arrived.
fn initiation(net: &mut Net) -> Vec<u8> {
    net.keep_capture = true;
    net.connect(0, 1);
    let datagram = net.capture.last().unwrap().3.clone();
    net.link.loss = 1.0;
    net.run(50 * MS);
    net.hosts[1].log.clear();
    datagram
}

/// The same with the cookie that a node asks of a peer it has not heard since its own start.
fn proven(net: &mut Net) -> Vec<u8> {
    let datagram = initiation(net);
    let [a, b] = [0, 1].map(|host| net.hosts[host].address);
    assert_eq!(net.deliver(1, &datagram, a), Err(Drop::Unproven));
    let cookie = net.capture.last().unwrap().3.clone();
    assert!(cookie[0] & 0xf == 3 && cookie.len() < datagram.len());
    net.deliver(0, &cookie, b).unwrap();
    net.capture.last().unwrap().3.clone()
}

#[test]
fn no_bit_of_an_initiation_may_be_changed() {
    let mut net = Net::pair(
        1,
        Link {
            loss: 1.0,
            ..Link::default()
        },
    );
    let datagram = proven(&mut net);
    let from = net.hosts[0].address;
    for bit in 0..datagram.len() * 8 {
        // Slowly, so that it is not the load that keeps them out.
        net.run(10 * MS);
        assert!(
            net.deliver(1, &flipped(&datagram, bit), from).is_err(),
            "bit {bit}"
        );
        assert!(net.hosts[1].log.is_empty(), "bit {bit}");
    }
    let answers = net
        .capture
        .iter()
        .filter(|(_, _, _, sent)| sent[0] & 0xf == 2)
        .count();
    assert_eq!(answers, 0);
    net.deliver(1, &datagram, from).unwrap();
}

#[test]
fn no_bit_of_a_response_may_be_changed() {
    let mut net = Net::pair(
        1,
        Link {
            loss: 1.0,
            ..Link::default()
        },
    );
    let datagram = proven(&mut net);
    let [a, b] = [0, 1].map(|host| net.hosts[host].address);
    net.deliver(1, &datagram, a).unwrap();
    let response = net.capture.last().unwrap().3.clone();
    assert_eq!(response[0] & 0xf, 2);
    for bit in 0..response.len() * 8 {
        assert!(
            net.deliver(0, &flipped(&response, bit), b).is_err(),
            "bit {bit}"
        );
    }
    assert!(net.hosts[0].log.is_empty());
    net.deliver(0, &response, b).unwrap();
    assert_eq!(net.hosts[0].count("Up"), 1);
}

/// Everything that was ever sent, again, at once, later, and from elsewhere.
#[test]
fn a_replay_changes_nothing() {
    let mut net = Net::pair(1, Link::default());
    net.keep_capture = true;
    net.connect(0, 1);
    net.connect(1, 0);
    net.run(SECOND);
    for number in 0..20 {
        net.data(0, 0, number);
        net.data(1, 1, number);
        net.run(10 * SECOND);
    }
    net.keep_capture = false;
    let capture = std::mem::take(&mut net.capture);
    let before: Vec<_> = net
        .hosts
        .iter()
        .map(|host| (host.log.clone(), host.received.clone()))
        .collect();
    for from in [None, Some(address("203.0.113.66:6783"))] {
        for (_, sender, to, datagram) in &capture {
            let host = usize::from(*to == net.hosts[1].address);
            assert!(
                net.deliver(host, datagram, from.unwrap_or(*sender))
                    .is_err()
            );
        }
    }
    for (host, (log, received)) in net.hosts.iter().zip(&before) {
        assert_eq!((&host.log, &host.received), (log, received));
    }
    assert!(net.paired());
}

/// Whoever can stop an initiation and send it on from elsewhere must not draw traffic to that address.
#[test]
fn an_initiation_alone_moves_no_endpoint() {
    let mut net = Net::up(1, Link::default());
    let (a, at) = (net.hosts[0].id, net.hosts[0].address);
    net.restart(0, 9);
    net.link.loss = 1.0;
    let stolen = initiation(&mut net);
    net.deliver(1, &stolen, address("203.0.113.66:6783"))
        .unwrap();
    assert_eq!(net.hosts[1].sessions.status(a).unwrap().endpoint, Some(at));
    net.hosts[1].sessions.send_control(a, b"?", net.now);
    net.flush(1);
    assert_eq!(net.capture.last().unwrap().2, at);
}

/// A restarted node cannot know old initiations by their stamps: they lack a cookie of its new run.
#[test]
fn a_replay_after_a_restart_brings_no_session() {
    let mut net = Net::up(1, Link::default());
    net.keep_capture = true;
    net.restart(1, 9);
    net.restart(0, 10);
    net.connect(0, 1);
    net.run(SECOND);
    let capture = std::mem::take(&mut net.capture);
    net.restart(1, 11);
    let at = net.hosts[1].address;
    let elsewhere = address("203.0.113.66:6783");
    let mut initiations = 0;
    for (_, sender, _, datagram) in capture.iter().filter(|sent| sent.2 == at) {
        initiations += usize::from(datagram[0] & 0xf == 1);
        for from in [*sender, elsewhere] {
            assert!(net.deliver(1, datagram, from).is_err());
        }
    }
    assert!(initiations > 1, "one without and one with a cookie");
    assert!(net.hosts[1].log.is_empty(), "not even half a session");
}

/// Initiations with a right MAC, each from a source of its own: what a hostile member can send without receiving.
struct Flood(Vec<Vec<u8>>);

impl Flood {
    fn new(net: &Net, count: u8) -> Self {
        let to = net.hosts[1].public;
        let initiation = |seed: u8| {
            let mut sessions = Sessions::new(keys(seed), config(1), [seed; 32], net.now);
            sessions.set_cluster(CLUSTER, secret(1), None, net.now);
            sessions.add_peer(to, vec![net.hosts[1].address], net.now);
            sessions.connect(to.id(), net.now);
            sessions.poll_transmit().unwrap().bytes
        };
        Self((10..10 + count).map(initiation).collect())
    }

    /// 5,000 a second for some milliseconds.
    fn rage(&self, net: &mut Net, time: Duration) {
        for ms in 0..time.as_millis() as usize {
            for at in 0..5 {
                let number = ms * 5 + at;
                let from = format!("203.0.113.{}:{}", number % 250, 1024 + number % 60_000);
                let result = net.deliver(1, &self.0[number % self.0.len()], address(&from));
                assert!(result.is_err());
            }
            net.run(MS);
        }
    }
}

#[test]
fn under_load_a_member_still_gets_in() {
    let mut net = Net::pair(1, Link::default());
    let flood = Flood::new(&net, 50);
    flood.rage(&mut net, 300 * MS);
    net.keep_capture = true;
    net.connect(0, 1);
    let mut took = 0;
    while !net.paired() {
        flood.rage(&mut net, MS);
        took += 1;
        assert!(took < 2000, "no session in two seconds of flood");
    }
    assert!(
        took < 200,
        "the cookie is used at once, not at the next try: {took} ms"
    );
    let own = net.hosts[0].address;
    let cookies = net
        .capture
        .iter()
        .filter(|sent| sent.2 == own && sent.3[0] & 0xf == 3)
        .count();
    assert!(cookies > 0, "it was asked for a cookie");
    let longest = net
        .capture
        .iter()
        .filter(|sent| sent.3[0] & 0xf == 3)
        .map(|sent| sent.3.len())
        .max();
    assert!(
        longest.unwrap() < flood.0[0].len(),
        "an answer is shorter than the question"
    );
}

#[test]
fn junk_costs_no_answer_and_no_state() {
    let mut net = Net::up(1, Link::default());
    net.keep_capture = true;
    let valid = {
        let mut other = Net::pair(
            9,
            Link {
                loss: 1.0,
                ..Link::default()
            },
        );
        initiation(&mut other)
    };
    for length in 0..=300 {
        let mut junk = vec![0x11; length];
        for kind in 1..=4_u8 {
            if let Some(first) = junk.first_mut() {
                *first = 0x10 | kind;
            }
            assert!(net.deliver(1, &junk, address("203.0.113.5:5")).is_err());
        }
        let cut = &valid[..length.min(valid.len() - 1)];
        assert!(net.deliver(1, cut, address("203.0.113.5:5")).is_err());
    }
    assert!(net.capture.is_empty());
    assert_eq!(net.hosts[1].inbound.len(), 1);
}

/// One identity cannot make this node answer without end.
#[test]
fn one_member_is_limited() {
    let mut net = Net::up(1, Link::default());
    net.link.loss = 1.0;
    let to = net.hosts[1].public;
    let from = net.hosts[0].address;
    let mut refused = 0;
    for round in 3..63_u64 {
        let mut sessions = Sessions::new(
            own_keys(&net.hosts[0]),
            config(round),
            [round as u8; 32],
            net.now,
        );
        sessions.set_cluster(CLUSTER, secret(1), None, net.now);
        sessions.add_peer(to, vec![net.hosts[1].address], net.now);
        net.run(MS);
        sessions.connect(to.id(), net.now);
        let datagram = sessions.poll_transmit().unwrap().bytes;
        refused += usize::from(net.deliver(1, &datagram, from) == Err(Drop::BadHandshake));
    }
    assert!((45..=50).contains(&refused), "{refused} of 60 refused");
    let kept = net.hosts[1].inbound.len();
    assert!(kept <= 2, "the session, and only the newest beside it");
}

fn own_keys(host: &Host) -> Arc<weave_router::keys::NodeKeys> {
    [keys(1), keys(2)]
        .into_iter()
        .find(|keys| keys.id() == host.id)
        .unwrap()
}
