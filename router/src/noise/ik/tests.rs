use rand::SeedableRng;
use rand::rngs::StdRng;

use super::*;
use crate::noise::mac;
use crate::session::Terms;

const CLUSTER: [u8; 32] = [6; 32];
const OPENING: Opening = Opening {
    epoch: 3,
    index: 0x0a0b_0c0d,
    suite: Suite::Aes256Gcm,
};
const ABOUT: About = About {
    boot: 11,
    record: 12,
    lanes: 4,
};

fn keys(seed: u8) -> NodeKeys {
    NodeKeys::generate(&mut StdRng::from_seed([seed; 32]))
}

fn secret(byte: u8) -> ClusterSecret {
    ClusterSecret {
        epoch: 3,
        bytes: [byte; 32],
    }
}

/// Message 1 from node 1 to node 2.
fn started(secret: &ClusterSecret, opening: Opening) -> (Initiator, Vec<u8>) {
    let cluster = Cluster {
        id: &CLUSTER,
        secret,
    };
    let peer = keys(2).public();
    Initiator::start(
        &keys(1),
        &peer,
        cluster,
        opening,
        99,
        ABOUT,
        &mut StdRng::from_seed([8; 32]),
    )
}

fn responder(content: &[u8], opening: Opening) -> Result<Responder, Drop> {
    Responder::read(
        &keys(2),
        &CLUSTER,
        opening,
        content,
        &mut StdRng::from_seed([9; 32]),
    )
}

fn answered(content: &[u8], opening: Opening, secret: &ClusterSecret) -> (Vec<u8>, Keys) {
    let initiator = keys(1).id();
    responder(content, opening)
        .unwrap()
        .answer(&keys(2), &initiator, secret, 0x0102_0304, ABOUT)
}

#[test]
fn both_sides_come_to_the_same_keys() {
    for suite in [Suite::ChaCha20Poly1305, Suite::Aes256Gcm] {
        let opening = Opening { suite, ..OPENING };
        let (mut initiator, mut datagram) = started(&secret(7), opening);
        mac::append(&[0; 32], None, &mut datagram);
        assert_eq!(datagram.len(), INITIATION);
        assert_eq!(Opening::parse(&datagram), Ok(opening));
        let content = &datagram[..INITIATION - MACS];
        let read = responder(content, opening).unwrap();
        assert_eq!(
            (read.initiator, read.stamp, read.about),
            (keys(1).public().dh, 99, ABOUT)
        );

        let (response, ours) = answered(content, opening, &secret(7));
        assert_eq!(response.len(), RESPONSE - MACS);
        assert_eq!(initiator.finish(&response), Ok((0x0102_0304, ABOUT)));
        let terms = Terms {
            peer: keys(1).id(),
            suite,
            lanes: 4,
            index: 1,
            receiver: 2,
            boot: 0,
        };
        let (out, _) = ours.open(terms);
        let (_, inn) = initiator.keys().open(terms);
        for lane in 0..4 {
            let mut packet = *b"packet..................";
            let (body, tag) = packet.split_at_mut(8);
            out.key(lane).seal(0, b"aad", body, &[], tag);
            let mut lane = inn.lane(lane).unwrap().lock().unwrap();
            assert_eq!(lane.open(0, b"aad", &mut packet).unwrap().0, b"packet..");
        }
    }
}

/// Even with right MACs, which every member can make.
#[test]
fn no_bit_of_message_1_may_be_changed() {
    let (_, content) = started(&secret(7), OPENING);
    for bit in 0..content.len() * 8 {
        let mut changed = content.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        mac::append(&[0; 32], None, &mut changed);
        let Ok(opening) = Opening::parse(&changed) else {
            continue;
        };
        assert!(
            responder(&changed[..content.len()], opening).is_err(),
            "bit {bit}"
        );
    }
}

#[test]
fn no_bit_of_message_2_may_be_changed() {
    let (mut initiator, content) = started(&secret(7), OPENING);
    let (response, _) = answered(&content, OPENING, &secret(7));
    for bit in 0..response.len() * 8 {
        let mut changed = response.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        assert!(initiator.finish(&changed).is_err(), "bit {bit}");
    }
    assert!(initiator.finish(&response).is_ok());
}

#[test]
fn secret_cluster_and_ids_must_agree() {
    let (mut initiator, content) = started(&secret(7), OPENING);
    let (response, _) = answered(&content, OPENING, &secret(8));
    assert_eq!(initiator.finish(&response), Err(Drop::BadHandshake));
    let other = responder(&content, OPENING).unwrap();
    let (response, _) = other.answer(&keys(2), &keys(3).id(), &secret(7), 1, ABOUT);
    assert_eq!(initiator.finish(&response), Err(Drop::BadHandshake));
    let rng = &mut StdRng::from_seed([9; 32]);
    assert!(Responder::read(&keys(2), &[7; 32], OPENING, &content, rng).is_err());
    assert!(Responder::read(&keys(3), &CLUSTER, OPENING, &content, rng).is_err());
}
