//! Handshakes: how two nodes come to share keys that nobody else has.
//!
//! Two patterns of the Noise framework (revision 34), both over X25519 and BLAKE2s: [`ik`] between members, who know each
//! other's static keys, and [`join`] between a member and a stranger who holds a token. The pattern machine is snow's;
//! every primitive below it is given by [`primitives`](self), so that the random bytes are an argument and the ciphers
//! are the same AWS-LC that seals packets. In front of the handshake stands [`mac`]: one keyed hash tells a member from
//! the rest of the world before any curve is touched, and with [`locks`] data threads ask for it before anything waits.
//!
//! The keys leave snow as a raw split and are wiped when dropped ([`Split`]). What snow holds itself (the
//! chaining key, the pre-shared key) it does not wipe when a handshake ends; static and ephemeral secrets lie in our
//! primitives and are wiped.

#![deny(clippy::disallowed_methods)]

pub mod ik;
pub mod join;
pub mod locks;
pub mod mac;
mod primitives;

use rand_core::CryptoRng;
use snow::params::NoiseParams;
use snow::{Builder, HandshakeState};
use weave_model::{Drop, Suite};
use zeroize::Zeroizing;

use primitives::Primitives;

/// The longest handshake datagram that is looked at, in bytes: below every path MTU.
pub const MAX_DATAGRAM: usize = 1200;

const INVARIANT: &str = "the pattern, the keys and the buffers fit one another";

/// Snow's builder over our primitives; the ephemeral key is drawn here and now.
fn builder<'a>(name: &str, rng: &mut impl CryptoRng) -> Builder<'a> {
    let mut ephemeral = Zeroizing::new([0; 32]);
    rng.fill_bytes(&mut *ephemeral);
    let params: NoiseParams = name.parse().expect(INVARIANT);
    Builder::with_resolver(params, Box::new(Primitives::new(ephemeral)))
}

const fn cipher_name(suite: Suite) -> &'static str {
    match suite {
        Suite::ChaCha20Poly1305 => "ChaChaPoly",
        Suite::Aes256Gcm => "AESGCM",
    }
}

/// Appends the next handshake message to a datagram.
fn write(state: &mut HandshakeState, payload: &[u8], datagram: &mut Vec<u8>) {
    let mut message = [0; MAX_DATAGRAM];
    let length = state.write_message(payload, &mut message).expect(INVARIANT);
    datagram.extend_from_slice(&message[..length]);
}

/// Reads a handshake message and returns its payload.
fn read(state: &mut HandshakeState, message: &[u8]) -> Result<Zeroizing<Vec<u8>>, Drop> {
    let mut payload = Zeroizing::new(vec![0; MAX_DATAGRAM]);
    let length = state
        .read_message(message, &mut payload)
        .map_err(|_| Drop::BadHandshake)?;
    payload.truncate(length);
    Ok(payload)
}

/// The two keys that a handshake ends with, seen from one side; wiped when dropped.
pub struct Split {
    /// For what this side sends.
    pub send: Zeroizing<[u8; 32]>,
    /// For what this side receives.
    pub receive: Zeroizing<[u8; 32]>,
}

impl Split {
    /// Of a finished handshake.
    fn of(state: &mut HandshakeState) -> Self {
        let (to_responder, to_initiator) = state.dangerously_get_raw_split();
        let (to_responder, to_initiator) =
            (Zeroizing::new(to_responder), Zeroizing::new(to_initiator));
        if state.is_initiator() {
            Self {
                send: to_responder,
                receive: to_initiator,
            }
        } else {
            Self {
                send: to_initiator,
                receive: to_responder,
            }
        }
    }
}

#[cfg(test)]
mod tests;
