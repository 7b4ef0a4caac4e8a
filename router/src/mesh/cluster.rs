//! The cluster's key, and the certificates by which it names its members.
//!
//! Whoever makes the cluster makes an Ed25519 key (RFC 8032). Its hash is the cluster's id and stands in every join
//! token; its signature on a certificate makes a node a member; its signature on the genesis deed gives the first node
//! the whole range. The private half never leaves the node that made the cluster. A certificate may say that its node is
//! an *admin*; then that node's own signature counts as the cluster's, as long as the certificate goes with it: a
//! [`Chain`] from the cluster's key over one admin or more, which every member checks by itself (see
//! [`super::authority`]). A certificate does not expire: expiry cuts more networks than it protects, so members are
//! removed by a signed word instead (see [`super::removal`]).

use blake2::{Blake2s256, Digest};
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use rand_core::CryptoRng;
use weave_model::NodeId;
use zeroize::Zeroizing;

use super::codec::{Malformed, Reader, Writer};
use crate::keys::NodePublic;

/// The most admins between the cluster's key and what is signed.
pub const MAX_LINKS: usize = 4;

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

/// One admin on the way from the cluster's key to a signature.
///
/// 136 bytes: X25519 key 32 | Ed25519 key 32 | issued 8 | signature 64. Node, flags (admin) and time are those of the
/// admin's certificate, and so is the signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// The admin's keys.
    pub public: NodePublic,
    /// When it was made an admin, in seconds since the Unix epoch.
    pub issued: u64,
    /// The signature on its certificate, of the admin before it or of the cluster.
    pub signature: [u8; 64],
}

/// By whom something is signed in the cluster's name: by its key (no link), or by the last of these admins, each of whom
/// the one before made an admin, the first of them the cluster.
///
/// On the wire: the number of links, 1 byte, at most [`MAX_LINKS`], and the links.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain(Vec<Link>);

impl Chain {
    /// The longest chain in bytes.
    pub const MAX_LEN: usize = 1 + MAX_LINKS * 136;

    /// The admins, the one that the cluster itself made first.
    pub fn links(&self) -> &[Link] {
        &self.0
    }

    /// The ids of the admins, in the same order.
    pub fn admins(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.0.iter().map(|link| link.public.id())
    }

    /// This chain and one admin more; `None` if it would be too long.
    pub fn extended(&self, link: Link) -> Option<Self> {
        let fits = self.0.len() < MAX_LINKS;
        fits.then(|| Self(self.0.iter().copied().chain([link]).collect()))
    }

    /// Whether the signature is one in the name of `cluster`: every link is signed, and the last one signed this.
    pub fn verify(&self, cluster: &ClusterPublic, message: &[u8], signature: &[u8; 64]) -> bool {
        let mut signer = By::Cluster(*cluster);
        for link in &self.0 {
            let word = certificate_message(cluster.id(), link.public.id(), true, link.issued);
            if !signer.verify(&word, &link.signature) {
                return false;
            }
            signer = By::Admin(link.public);
        }
        signer.verify(message, signature)
    }

    /// Appends the chain.
    pub fn write(&self, out: &mut Writer) {
        out.u8(self.0.len() as u8);
        for link in &self.0 {
            out.bytes(&link.public.dh).bytes(&link.public.sign);
            out.u64(link.issued).bytes(&link.signature);
        }
    }

    /// Reads a chain; no signature is checked yet.
    pub fn read(bytes: &mut Reader<'_>) -> Result<Self, Malformed> {
        let count = usize::from(bytes.u8()?);
        if count > MAX_LINKS {
            return Err(bytes.malformed());
        }
        let link = |bytes: &mut Reader<'_>| {
            Ok(Link {
                public: NodePublic {
                    dh: bytes.array()?,
                    sign: bytes.array()?,
                },
                issued: bytes.u64()?,
                signature: bytes.array()?,
            })
        };
        (0..count)
            .map(|_| link(bytes))
            .collect::<Result<_, _>>()
            .map(Self)
    }
}

enum By {
    Cluster(ClusterPublic),
    Admin(NodePublic),
}

impl By {
    fn verify(&self, message: &[u8], signature: &[u8; 64]) -> bool {
        match self {
            Self::Cluster(key) => key.verify(message, signature),
            Self::Admin(key) => key.verify(message, signature),
        }
    }
}

/// The cluster's word that a node is a member.
///
/// Bytes: node 32 | flags 1 (bit 0: admin) | issued 8 | chain (see [`Chain`]) | signature 64 over
/// "weave certificate v1", the cluster's id and the first 41 bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// The member.
    pub node: NodeId,
    /// It may invite, remove, and make others admins.
    pub admin: bool,
    /// When it was admitted, or made an admin, in seconds since the Unix epoch.
    pub issued: u64,
    /// Who signed it.
    pub chain: Chain,
    /// The signature.
    pub signature: [u8; 64],
}

impl Certificate {
    /// The longest certificate in bytes.
    pub const MAX_LEN: usize = 105 + Chain::MAX_LEN;

    /// Whether it is signed in the name of this cluster.
    pub fn verify(&self, cluster: &ClusterPublic) -> bool {
        let message = certificate_message(cluster.id(), self.node, self.admin, self.issued);
        self.chain.verify(cluster, &message, &self.signature)
    }

    /// The chain of what the holder of this certificate signs, whose keys these are; `None` if it is no admin's or the
    /// chain would be too long.
    pub fn as_signer(&self, public: NodePublic) -> Option<Chain> {
        let link = Link {
            public,
            issued: self.issued,
            signature: self.signature,
        };
        self.chain.extended(link).filter(|_| self.admin)
    }

    /// Appends the certificate.
    pub fn write(&self, out: &mut Writer) {
        out.bytes(self.node.as_bytes())
            .u8(u8::from(self.admin))
            .u64(self.issued);
        self.chain.write(out);
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
            chain: Chain::read(bytes)?,
            signature: bytes.array()?,
        })
    }
}

/// What is signed on a certificate.
pub(super) fn certificate_message(
    cluster: [u8; 32],
    node: NodeId,
    admin: bool,
    issued: u64,
) -> Vec<u8> {
    let mut message = Writer::new();
    message.bytes(b"weave certificate v1").bytes(&cluster);
    message
        .bytes(node.as_bytes())
        .u8(u8::from(admin))
        .u64(issued);
    message.0
}
