//! The published vectors for both patterns, with our primitives below snow; and the transport messages in them opened
//! by RustCrypto with the raw split, so that the keys we hand on are the right ones.

use std::convert::Infallible;

use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use data_encoding::HEXLOWER;
use rand_core::{TryCryptoRng, TryRng};

use super::*;
use crate::noise::primitives::Primitives;

fn unhex(text: &str) -> Vec<u8> {
    HEXLOWER.decode(text.as_bytes()).unwrap()
}

fn key(text: &str) -> [u8; 32] {
    unhex(text).try_into().unwrap()
}

/// A source that gives the bytes of a vector.
struct Given([u8; 32]);

impl TryRng for Given {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        unreachable!("only whole keys are drawn")
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        unreachable!("only whole keys are drawn")
    }

    fn try_fill_bytes(&mut self, dest: &mut [u8]) -> Result<(), Infallible> {
        dest.copy_from_slice(&self.0);
        Ok(())
    }
}

impl TryCryptoRng for Given {}

/// One of the vectors that the Noise wiki points to (cacophony's).
struct Vector {
    name: &'static str,
    suite: Suite,
    hash: &'static str,
    /// Payload and ciphertext; the first two are the handshake.
    messages: [(&'static str, &'static str); 4],
}

const PROLOGUE: &str = "4a6f686e2047616c74";
const PSK: &str = "54686973206973206d7920417573747269616e20706572737065637469766521";
const INITIATOR: &str = "e61ef9919cde45dd5f82166404bd08e38bceb5dfdfded0a34c8df7ed542214d1";
const INITIATOR_EPHEMERAL: &str =
    "893e28b9dc6ca8d611ab664754b8ceb7bac5117349a4439a6b0569da977c464a";
const RESPONDER: &str = "4a3acbfdb163dec651dfa3194dece676d437029c62a408b4c5ea9114246e4893";
const RESPONDER_PUBLIC: &str = "31e0303fd6418d2f8c0e78b91f22e8caed0fbe48656dcf4767e4834f701b8f62";
const RESPONDER_EPHEMERAL: &str =
    "bbdb4cdbd309f1a1f2e1456967fe288cadd6f712d65dc7b7793d5e63da6b375b";

const VECTORS: [Vector; 2] = [
    Vector {
        name: "Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s",
        suite: Suite::ChaCha20Poly1305,
        hash: "f5191b875290abcd41347ac3622d9679688a7e980229cb937ef748336cfde0e5",
        messages: [
            (
                "4c756477696720766f6e204d69736573",
                "ca35def5ae56cec33dc2036731ab14896bc4c75dbb07a61f879f8e3afa4c7944001e21de9f98ddd8e2ad57527207feb5\
                 6253c9c94a9e496782ecfcb2a75fbcaf1b52948cc48daefe660c62119ab5000980c84831215f2441eba616548e832985\
                 464cf17e51ee93109008399a21f7e13f",
            ),
            (
                "4d757272617920526f746862617264",
                "95ebc60d2b1fa672c1f46a8aa265ef51bfe38e7ccb39ec5be34069f144808843cb765f2caef0751b8f007572dab03222\
                 17755c0632f365717edbf34d33e87a",
            ),
            (
                "462e20412e20486179656b",
                "8153ca9833bc3c1b91a7e66e5f4d4f5b59bf9e64c2f20d15f0bba7",
            ),
            (
                "4361726c204d656e676572",
                "07af0c9c86e1b4e80f36b04ff7688d51141af3debd0332f0a705ef",
            ),
        ],
    },
    Vector {
        name: "Noise_IKpsk2_25519_AESGCM_BLAKE2s",
        suite: Suite::Aes256Gcm,
        hash: "60f2139120264f109f2bd525a8d94877d7896d64394c34a7abedbc114154a6d5",
        messages: [
            (
                "4c756477696720766f6e204d69736573",
                "ca35def5ae56cec33dc2036731ab14896bc4c75dbb07a61f879f8e3afa4c7944f70d65fedfd7ad294f4c8f5c1324c7c9\
                 0e54cd8af05652112a27b261e11ce99d9d517c4a1e0753038edb26066b4087b4c230aafa22b0552550b723eb69374a67\
                 4d306a84e1852e30af2e2dbefeb4fd2f",
            ),
            (
                "4d757272617920526f746862617264",
                "95ebc60d2b1fa672c1f46a8aa265ef51bfe38e7ccb39ec5be34069f1448088434190dae84b6887641a5f81e03d83f7be\
                 91fa1134c18dde966e18fc404b97a8",
            ),
            (
                "462e20412e20486179656b",
                "061b631b380a639a0801920ddf205e2dbf6606c3328683c6af50fc",
            ),
            (
                "4361726c204d656e676572",
                "c4b5ecd181f80279f2cc41217d490ed56459e3e3fb5e758e522d0d",
            ),
        ],
    },
];

fn read_all(state: &mut HandshakeState, message: &[u8]) -> String {
    HEXLOWER.encode(&read(state, message).unwrap())
}

fn written(state: &mut HandshakeState, payload: &str) -> String {
    let mut datagram = Vec::new();
    write(state, &unhex(payload), &mut datagram);
    HEXLOWER.encode(&datagram)
}

#[test]
fn the_published_vectors_hold() {
    for vector in VECTORS {
        assert!(vector.name.contains(cipher_name(vector.suite)));
        let (initiators, member) = (key(INITIATOR), key(RESPONDER));
        let (psk, prologue, responders) = (key(PSK), unhex(PROLOGUE), key(RESPONDER_PUBLIC));
        let mut initiator = builder(vector.name, &mut Given(key(INITIATOR_EPHEMERAL)))
            .local_private_key(&initiators)
            .and_then(|builder| builder.remote_public_key(&responders))
            .and_then(|builder| builder.psk(2, &psk))
            .and_then(|builder| builder.prologue(&prologue))
            .and_then(Builder::build_initiator)
            .unwrap();
        let mut responder = builder(vector.name, &mut Given(key(RESPONDER_EPHEMERAL)))
            .local_private_key(&member)
            .and_then(|builder| builder.prologue(&prologue))
            .and_then(Builder::build_responder)
            .unwrap();
        let [first, second, ..] = vector.messages;
        assert_eq!(written(&mut initiator, first.0), first.1);
        assert_eq!(read_all(&mut responder, &unhex(first.1)), first.0);
        responder.set_psk(2, &psk).unwrap();
        assert_eq!(written(&mut responder, second.0), second.1);
        assert_eq!(read_all(&mut initiator, &unhex(second.1)), second.0);
        for side in [&mut initiator, &mut responder] {
            assert_eq!(HEXLOWER.encode(side.get_handshake_hash()), vector.hash);
            let (to_responder, to_initiator) = side.dangerously_get_raw_split();
            for (key, (plain, sealed)) in [to_responder, to_initiator]
                .iter()
                .zip(&vector.messages[2..])
            {
                assert_eq!(
                    opened_by_rustcrypto(vector.suite, key, &unhex(sealed)),
                    unhex(plain)
                );
            }
        }
    }
}

/// With nonce 0, which is the same bytes in either byte order.
fn opened_by_rustcrypto(suite: Suite, key: &[u8; 32], sealed: &[u8]) -> Vec<u8> {
    let payload = Payload {
        msg: sealed,
        aad: &[],
    };
    match suite {
        Suite::ChaCha20Poly1305 => chacha20poly1305::ChaCha20Poly1305::new(key.into())
            .decrypt(&[0; 12].into(), payload)
            .unwrap(),
        Suite::Aes256Gcm => aes_gcm::Aes256Gcm::new(key.into())
            .decrypt(&[0; 12].into(), payload)
            .unwrap(),
    }
}

#[test]
fn a_point_of_small_order_is_refused() {
    use snow::params::DHChoice;
    use snow::resolvers::CryptoResolver;

    let mut dh = Primitives::new(Zeroizing::new([0; 32]))
        .resolve_dh(&DHChoice::Curve25519)
        .unwrap();
    dh.set(&[7; 32]);
    let mut out = [0; 32];
    for low in [
        [0; 32],
        key("0100000000000000000000000000000000000000000000000000000000000000"),
    ] {
        assert!(dh.dh(&low, &mut out).is_err());
    }
    assert!(dh.dh(&key(RESPONDER_PUBLIC), &mut out).is_ok());
}

#[test]
fn random_bytes_are_given_once() {
    use snow::resolvers::CryptoResolver;

    let mut source = Primitives::new(Zeroizing::new([5; 32]))
        .resolve_rng()
        .unwrap();
    let mut bytes = [0; 32];
    assert!(source.try_fill_bytes(&mut bytes).is_ok());
    assert_eq!(bytes, [5; 32]);
    assert!(source.try_fill_bytes(&mut bytes).is_err());
}
