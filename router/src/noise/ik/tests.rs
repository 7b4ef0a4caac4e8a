use data_encoding::HEXLOWER;
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::*;
use crate::noise::mac;
use crate::session::{Inbound, Keys, Outbound, Terms};

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

fn open(split: Split, terms: Terms) -> (Outbound, Inbound) {
    Keys::from_split(split.send, split.receive).open(terms)
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

fn answered(content: &[u8], opening: Opening, secret: &ClusterSecret) -> (Vec<u8>, Split) {
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
        let (out, _) = open(ours, terms);
        let (_, inn) = open(initiator.split(), terms);
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

const INITIATION_BYTES: &str = "110000000000000000000000000000030a0b0c0d010000007b0d47d93427f8311160781c7c733fd89f88970aef490d8aa0ee\
     19a4cb8a1b1481e498317da959fba46669572516a5e6c021bfa620bb6c56ca0082e1feae14981edb23fb6ce2c7a5d426efed\
     161133b290f94badebb4afa1e1c26955d9317ef2fbf4669e20967aa602083dd4d374a38d6da816da56e2cbb84859656a58d9\
     ab1a6bd4df717ac35c72f15e2d3650970f0700000000000000000000000000000000";

const RESPONSE_BYTES: &str = "120000000a0b0c0d0000000000000003ff2ee45601ec1b67310c7790404585ae697331eee1c1f8cf2419731c1fff3e6b26a4\
     5ac7c64e4ba6e6516b725ba8ec03200d7c7c9a8919004183c70301169b1f9690ec4eec96521ed6954acb47f1d3782e699036\
     f25e0926e3d82283527d17aa00000000000000000000000000000000";

const DATA_BYTES: &str =
    "14010000000000020000000000000005d48c54068a3c0d86cad7a68b12cd576428f18997a8c1f3";

/// The datagrams of version 1, byte by byte, as a second implementation written from the module's description made them.
#[test]
fn the_bytes_on_the_wire_are_these() {
    let (secret, opening) = (
        secret(7),
        Opening {
            suite: Suite::ChaCha20Poly1305,
            ..OPENING
        },
    );
    let (node, peer) = (
        NodeKeys::from_bytes(&[0x11; 64]),
        NodeKeys::from_bytes(&[0x22; 64]),
    );
    let cluster = Cluster {
        id: &CLUSTER,
        secret: &secret,
    };
    let mut rng = Fixed(0x33);
    let (mut initiator, mut datagram) =
        Initiator::start(&node, &peer.public(), cluster, opening, 99, ABOUT, &mut rng);
    mac::append(&secret.mac_key(&peer.id()), None, &mut datagram);
    assert_eq!(HEXLOWER.encode(&datagram), INITIATION_BYTES);

    let mut rng = Fixed(0x44);
    let responder = Responder::read(
        &peer,
        &CLUSTER,
        opening,
        &datagram[..INITIATION - MACS],
        &mut rng,
    )
    .unwrap();
    let (mut response, _) = responder.answer(&peer, &node.id(), &secret, 0x0102_0304, ABOUT);
    mac::append(&secret.mac_key(&node.id()), None, &mut response);
    assert_eq!(HEXLOWER.encode(&response), RESPONSE_BYTES);

    initiator.finish(&response[..RESPONSE - MACS]).unwrap();
    let terms = Terms {
        peer: peer.id(),
        suite: opening.suite,
        lanes: 2,
        index: 1,
        receiver: 2,
        boot: 0,
    };
    let (outbound, _) = open(initiator.split(), terms);
    let header = Header {
        kind: Type::Data,
        lane: 1,
        receiver: 2,
        counter: 5,
    }
    .to_bytes();
    let mut packet = *b"packet.................";
    let (body, rest) = packet.split_at_mut(6);
    outbound.key(1).seal(5, &header, body, &[2], rest);
    assert_eq!(
        HEXLOWER.encode(&[&header[..], &packet].concat()),
        DATA_BYTES
    );
}

/// A source that gives one byte over and over.
struct Fixed(u8);

impl rand_core::TryRng for Fixed {
    type Error = std::convert::Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Self::Error> {
        Ok(u32::from_be_bytes([self.0; 4]))
    }

    fn try_next_u64(&mut self) -> Result<u64, Self::Error> {
        Ok(u64::from_be_bytes([self.0; 8]))
    }

    fn try_fill_bytes(&mut self, dest: &mut [u8]) -> Result<(), Self::Error> {
        dest.fill(self.0);
        Ok(())
    }
}

impl rand_core::TryCryptoRng for Fixed {}
