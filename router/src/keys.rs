//! A node's own keys, the cluster's secret, and what is derived from them.
//!
//! A node makes two key pairs, once, on its own disk: X25519 for sessions and Ed25519 for signatures. Its id is the hash
//! of both public keys, so an id names exactly one pair of keys and nothing has to vouch for the binding. The cluster's
//! secret is what members share: it never encrypts anything itself, it keys the cheap MAC in front of a handshake and
//! the pre-shared key inside it. All private bytes are wiped when dropped.

#![deny(clippy::disallowed_methods)]

mod seal;
#[cfg(any(test, debug_assertions))]
mod spent;

use aws_lc_rs::hkdf;
use blake2::{Blake2s256, Digest};
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use rand_core::CryptoRng;
use weave_model::NodeId;
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

pub use seal::{OpenKey, SealKey, packet_limit};

/// A node's private keys.
#[derive(ZeroizeOnDrop)]
pub struct NodeKeys {
    dh: StaticSecret,
    sign: SigningKey,
    #[zeroize(skip)]
    public: NodePublic,
}

impl NodeKeys {
    /// Length of [`NodeKeys::to_bytes`].
    pub const LEN: usize = 64;

    /// Makes a new identity.
    pub fn generate(rng: &mut impl CryptoRng) -> Self {
        let mut bytes = Zeroizing::new([0; Self::LEN]);
        rng.fill_bytes(&mut *bytes);
        Self::from_bytes(&bytes)
    }

    /// Reads keys back: the X25519 secret (RFC 7748), then the Ed25519 seed (RFC 8032). Any 64 bytes are keys.
    pub fn from_bytes(bytes: &[u8; Self::LEN]) -> Self {
        let mut dh = Zeroizing::new([0; 32]);
        let mut sign = Zeroizing::new([0; 32]);
        dh.copy_from_slice(&bytes[..32]);
        sign.copy_from_slice(&bytes[32..]);
        let dh = StaticSecret::from(*dh);
        let sign = SigningKey::from_bytes(&sign);
        let public = NodePublic {
            dh: PublicKey::from(&dh).to_bytes(),
            sign: sign.verifying_key().to_bytes(),
        };
        Self { dh, sign, public }
    }

    /// The bytes to keep on disk, readable by root alone.
    pub fn to_bytes(&self) -> Zeroizing<[u8; Self::LEN]> {
        let mut bytes = Zeroizing::new([0; Self::LEN]);
        bytes[..32].copy_from_slice(self.dh.as_bytes());
        bytes[32..].copy_from_slice(self.sign.as_bytes());
        bytes
    }

    /// The public halves.
    pub const fn public(&self) -> NodePublic {
        self.public
    }

    /// The id that the public keys hash to.
    pub fn id(&self) -> NodeId {
        self.public.id()
    }

    /// An Ed25519 signature (RFC 8032) over `message`.
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.sign.sign(message).to_bytes()
    }

    /// The X25519 secret, for the Noise handshake alone.
    pub(crate) fn dh_secret(&self) -> &[u8; 32] {
        self.dh.as_bytes()
    }
}

impl std::fmt::Debug for NodeKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("NodeKeys").field(&self.id()).finish()
    }
}

/// A node's public keys, as other members know them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodePublic {
    /// X25519 (RFC 7748), for sessions.
    pub dh: [u8; 32],
    /// Ed25519 (RFC 8032), for signed records.
    pub sign: [u8; 32],
}

impl NodePublic {
    /// BLAKE2s-256 (RFC 7693) of "weave node v1", the X25519 key and the Ed25519 key.
    pub fn id(&self) -> NodeId {
        let mut hash = Blake2s256::new();
        hash.update(b"weave node v1");
        hash.update(self.dh);
        hash.update(self.sign);
        NodeId::from_bytes(hash.finalize().into())
    }

    /// Whether `signature` is this node's over `message`. Strict: no malleable signature and no weak key passes.
    pub fn verify(&self, message: &[u8], signature: &[u8; 64]) -> bool {
        VerifyingKey::from_bytes(&self.sign).is_ok_and(|key| {
            key.verify_strict(message, &Signature::from_bytes(signature))
                .is_ok()
        })
    }
}

/// The secret that all members share during one epoch.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct ClusterSecret {
    /// Counts rotations, from 1. Members accept the current epoch and the one before.
    pub epoch: u32,
    /// 256 random bits.
    pub bytes: [u8; 32],
}

impl ClusterSecret {
    /// A fresh secret for `epoch`.
    pub fn generate(epoch: u32, rng: &mut impl CryptoRng) -> Self {
        let mut bytes = [0; 32];
        rng.fill_bytes(&mut bytes);
        Self { epoch, bytes }
    }

    /// The pre-shared key of a handshake between two nodes. It binds the whole ids, signing keys included, to the
    /// session; the order is initiator, responder.
    pub fn psk(&self, initiator: &NodeId, responder: &NodeId) -> Zeroizing<[u8; 32]> {
        derive(
            &self.bytes,
            &[b"weave psk", initiator.as_bytes(), responder.as_bytes()],
        )
    }

    /// The key of the MAC that every handshake datagram sent *to* `receiver` carries. A stranger cannot compute it, so
    /// junk costs the receiver one hash and gets no answer.
    pub fn mac_key(&self, receiver: &NodeId) -> Zeroizing<[u8; 32]> {
        derive(&self.bytes, &[b"weave mac1", receiver.as_bytes()])
    }

    /// The name of this secret, which says nothing of it: BLAKE2s-256 (RFC 7693) of "weave secret v1", epoch and secret.
    pub fn digest(&self) -> [u8; 32] {
        let mut hash = Blake2s256::new();
        hash.update(b"weave secret v1");
        hash.update(self.epoch.to_be_bytes());
        hash.update(self.bytes);
        hash.finalize().into()
    }

    /// The key that seals the cookies which `sender` hands out under load.
    pub fn cookie_key(&self, sender: &NodeId) -> Zeroizing<[u8; 32]> {
        derive(&self.bytes, &[b"weave cookie", sender.as_bytes()])
    }
}

/// What a node keeps of a secret that is accepted no longer: enough to tell whoever still uses it, but not to open what
/// was said under it.
#[derive(Clone)]
pub struct OldSecret {
    /// Its epoch.
    pub epoch: u32,
    /// [`ClusterSecret::mac_key`] of this node.
    pub mac_key: Zeroizing<[u8; 32]>,
    /// [`ClusterSecret::cookie_key`] of this node.
    pub cookie_key: Zeroizing<[u8; 32]>,
}

impl OldSecret {
    /// What the node `me` keeps of a secret.
    pub fn of(secret: &ClusterSecret, me: &NodeId) -> Self {
        Self {
            epoch: secret.epoch,
            mac_key: secret.mac_key(me),
            cookie_key: secret.cookie_key(me),
        }
    }
}

impl std::fmt::Debug for OldSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OldSecret")
            .field("epoch", &self.epoch)
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for ClusterSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClusterSecret")
            .field("epoch", &self.epoch)
            .finish_non_exhaustive()
    }
}

/// HKDF-SHA256 (RFC 5869) without salt: 32 bytes for one purpose. `info` is concatenated; every caller starts it with a
/// label of its own and follows with fields of fixed length.
pub fn derive(secret: &[u8], info: &[&[u8]]) -> Zeroizing<[u8; 32]> {
    let prk = hkdf::Salt::new(hkdf::HKDF_SHA256, &[]).extract(secret);
    let mut out = Zeroizing::new([0; 32]);
    prk.expand(info, hkdf::HKDF_SHA256)
        .and_then(|okm| okm.fill(&mut *out))
        .expect("one block of HKDF output is always allowed");
    out
}

#[cfg(test)]
mod tests;
