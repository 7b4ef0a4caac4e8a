//! The cluster's key, and the certificates by which it names its members.
//!
//! Whoever makes the cluster makes an Ed25519 key (RFC 8032). Its hash is the cluster's id and stands in every join
//! token; its signature on a certificate makes a node a member; its signature on the genesis deed gives the first node
//! the whole range. Admin nodes hold the private half and are the only ones that can invite. A certificate does not
//! expire: expiry cuts more networks than it protects, so members are removed by revocation instead.

use blake2::{Blake2s256, Digest};
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use rand_core::CryptoRng;
use weave_model::NodeId;
use zeroize::Zeroizing;

use super::codec::{Malformed, Reader, Writer};

/// The private key of a cluster; wiped when dropped.
pub struct ClusterKey(SigningKey);

impl ClusterKey {
    /// Makes a new cluster.
    pub fn generate(rng: &mut impl CryptoRng) -> Self {
        let mut seed = Zeroizing::new([0; 32]);
        rng.fill_bytes(&mut *seed);
        Self::from_bytes(&seed)
    }

    /// Reads a key back from its 32-byte seed.
    pub fn from_bytes(seed: &[u8; 32]) -> Self {
        Self(SigningKey::from_bytes(seed))
    }

    /// The seed to keep on disk.
    pub fn to_bytes(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(self.0.to_bytes())
    }

    /// The public half.
    pub fn public(&self) -> ClusterPublic {
        ClusterPublic(self.0.verifying_key().to_bytes())
    }

    /// A signature over `message`, which starts with a label of its own kind.
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.0.sign(message).to_bytes()
    }

    /// Makes `node` a member.
    pub fn certify(&self, node: NodeId, admin: bool, issued: u64) -> Certificate {
        let mut certificate = Certificate {
            node,
            admin,
            issued,
            signature: [0; 64],
        };
        certificate.signature = self.sign(&certificate.message(self.public().id()));
        certificate
    }
}

impl std::fmt::Debug for ClusterKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("ClusterKey").field(&self.public()).finish()
    }
}

/// The public key of a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClusterPublic(pub [u8; 32]);

impl ClusterPublic {
    /// The cluster's id: BLAKE2s-256 (RFC 7693) of "weave cluster v1" and the key.
    pub fn id(&self) -> [u8; 32] {
        let mut hash = Blake2s256::new();
        hash.update(b"weave cluster v1");
        hash.update(self.0);
        hash.finalize().into()
    }

    /// Whether `signature` is the cluster's over `message`; strict.
    pub fn verify(&self, message: &[u8], signature: &[u8; 64]) -> bool {
        VerifyingKey::from_bytes(&self.0).is_ok_and(|key| {
            key.verify_strict(message, &Signature::from_bytes(signature))
                .is_ok()
        })
    }
}

/// The cluster's word that a node is a member.
///
/// 105 bytes: node 32 | flags 1 (bit 0: admin) | issued 8 | signature 64 over "weave certificate v1", the cluster's id
/// and the first 41 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// The member.
    pub node: NodeId,
    /// It holds the cluster's key and may invite.
    pub admin: bool,
    /// When it was admitted, in seconds since the Unix epoch.
    pub issued: u64,
    /// The cluster's signature.
    pub signature: [u8; 64],
}

impl Certificate {
    /// Bytes of [`Certificate::write`].
    pub const LEN: usize = 105;

    /// Whether this cluster signed it.
    pub fn verify(&self, cluster: &ClusterPublic) -> bool {
        cluster.verify(&self.message(cluster.id()), &self.signature)
    }

    /// Appends the certificate.
    pub fn write(&self, out: &mut Writer) {
        self.write_head(out);
        out.bytes(&self.signature);
    }

    /// Reads a certificate; its signature is not checked yet.
    pub fn read(bytes: &mut Reader<'_>) -> Result<Self, Malformed> {
        let node = NodeId::from_bytes(bytes.array()?);
        let flags = bytes.u8()?;
        let issued = bytes.u64()?;
        if flags > 1 {
            return Err(bytes.malformed());
        }
        Ok(Self {
            node,
            admin: flags == 1,
            issued,
            signature: bytes.array()?,
        })
    }

    fn write_head(&self, out: &mut Writer) {
        out.bytes(self.node.as_bytes())
            .u8(u8::from(self.admin))
            .u64(self.issued);
    }

    fn message(&self, cluster: [u8; 32]) -> Vec<u8> {
        let mut message = Writer::new();
        message.bytes(b"weave certificate v1").bytes(&cluster);
        self.write_head(&mut message);
        message.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_cluster_makes_members() {
        let ours = ClusterKey::from_bytes(&[1; 32]);
        let theirs = ClusterKey::from_bytes(&[2; 32]);
        let node = NodeId::from_bytes([3; 32]);
        let certificate = ours.certify(node, false, 1_700_000_000);
        let mut bytes = Writer::new();
        certificate.write(&mut bytes);
        assert_eq!(bytes.0.len(), Certificate::LEN);
        assert_eq!(
            Certificate::read(&mut Reader::new(&bytes.0, "certificate")),
            Ok(certificate)
        );
        assert!(certificate.verify(&ours.public()));
        assert!(!certificate.verify(&theirs.public()));
        assert!(
            !Certificate {
                admin: true,
                ..certificate
            }
            .verify(&ours.public())
        );
        assert!(
            !Certificate {
                node: NodeId::from_bytes([4; 32]),
                ..certificate
            }
            .verify(&ours.public())
        );
    }
}
