//! The signed word by which an admin gives the cluster another secret.
//!
//! The word goes from member to member inside of their sessions, and to nobody else. It says until when the secret before
//! is accepted beside the new one, so that all members stop at the same time, and names it by its digest; who passes the
//! word on adds the old secret itself while that is good, so that one who joined in between knows both. Members need not
//! agree on anything: of two words the one with the higher [`SecretMark`] holds, whichever came first, and everybody's
//! record tells the mark of its own. A word of an admin that was removed counts as far as the removal keeps it.
//!
//! ```text
//! epoch 4 | until 8 | secret 32 | digest of the secret before 32 | chain (see Chain) | signature 64
//! ```
//!
//! The signature is over "weave secret v1", the cluster's id and all before it.

use weave_model::NodeId;
use zeroize::Zeroizing;

use super::authority::Authority;
use super::cluster::{Chain, ClusterPublic};
use super::codec::{Malformed, Reader, Writer};
use crate::keys::ClusterSecret;

const SIGNATURE: usize = 64;

/// Which word somebody has: the higher one holds.
///
/// On the wire: epoch 4 | the first bytes of the secret's digest 8.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SecretMark {
    /// The epoch that it begins.
    pub epoch: u32,
    /// Tells two words of one epoch apart, which two admins gave without knowing of each other.
    pub id: [u8; 8],
}

impl SecretMark {
    /// Of the word that gives this secret.
    pub fn of(secret: &ClusterSecret) -> Self {
        let digest = secret.digest();
        let mut id = [0; 8];
        id.copy_from_slice(&digest[..8]);
        let epoch = secret.epoch;
        Self { epoch, id }
    }

    /// Appends the mark.
    pub fn write(self, out: &mut Writer) {
        out.u32(self.epoch).bytes(&self.id);
    }

    /// Reads a mark.
    pub fn read(bytes: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(Self {
            epoch: bytes.u32()?,
            id: bytes.array()?,
        })
    }
}

/// A word, whose signature was checked, with the bytes that it is passed on as.
#[derive(Clone)]
pub struct SecretWord {
    /// The new secret.
    pub secret: ClusterSecret,
    /// Until when the one before is accepted, in seconds since the Unix epoch.
    pub until: u64,
    /// The digest of the one before.
    pub before: [u8; 32],
    chain: Chain,
    bytes: Zeroizing<Vec<u8>>,
}

impl std::fmt::Debug for SecretWord {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SecretWord")
            .field("mark", &self.mark())
            .field("until", &self.until)
            .finish_non_exhaustive()
    }
}

impl SecretWord {
    /// An admin gives a new secret in place of `before`.
    pub fn new(
        authority: &Authority<'_>,
        secret: ClusterSecret,
        until: u64,
        before: &ClusterSecret,
    ) -> Self {
        let (chain, before) = (authority.chain(), before.digest());
        let mut out = Writer::new();
        out.u32(secret.epoch).u64(until);
        out.bytes(&secret.bytes).bytes(&before);
        chain.write(&mut out);
        let signature = authority.sign(&message(&authority.cluster(), &out.0));
        out.bytes(&signature);
        Self {
            secret,
            until,
            before,
            chain,
            bytes: Zeroizing::new(out.0),
        }
    }

    /// Reads a word and checks its signature.
    ///
    /// # Errors
    /// If it is malformed, or not signed in the name of the cluster.
    pub fn read(bytes: &[u8], cluster: &ClusterPublic) -> Result<Self, Malformed> {
        let (body, signature) = bytes
            .split_last_chunk::<SIGNATURE>()
            .ok_or(Malformed("secret"))?;
        let mut reader = Reader::new(body, "secret");
        let (epoch, until) = (reader.u32()?, reader.u64()?);
        let secret = ClusterSecret {
            epoch,
            bytes: reader.array()?,
        };
        let before = reader.array()?;
        let chain = Chain::read(&mut reader)?;
        reader.end()?;
        if !chain.verify(cluster, &message(cluster, body), signature) {
            return Err(Malformed("signature of a secret"));
        }
        let bytes = Zeroizing::new(bytes.to_vec());
        Ok(Self {
            secret,
            until,
            before,
            chain,
            bytes,
        })
    }

    /// Which word it is.
    pub fn mark(&self) -> SecretMark {
        SecretMark::of(&self.secret)
    }

    /// By what a removal names it: the digest of the secret, as if that were a node.
    pub fn name(&self) -> NodeId {
        NodeId::from_bytes(self.secret.digest())
    }

    /// Who signed it.
    pub const fn chain(&self) -> &Chain {
        &self.chain
    }

    /// The signed bytes; the new secret is among them.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// A word on its way to another member.
///
/// On the wire: 0, or 1 and the secret before it 32 | the word.
#[derive(Clone, PartialEq, Eq)]
pub struct HandedOn {
    /// The secret before it, while that is accepted.
    pub before: Option<Zeroizing<[u8; 32]>>,
    /// The word, as it was signed.
    pub word: Zeroizing<Vec<u8>>,
}

impl std::fmt::Debug for HandedOn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HandedOn").finish_non_exhaustive()
    }
}

impl HandedOn {
    /// Appends it.
    pub fn write(&self, out: &mut Writer) {
        out.u8(u8::from(self.before.is_some()));
        if let Some(before) = &self.before {
            out.bytes(&**before);
        }
        out.bytes(&self.word);
    }

    /// Reads all that is left; no signature is checked yet.
    pub fn read(bytes: &mut Reader<'_>) -> Result<Self, Malformed> {
        let before = match bytes.u8()? {
            0 => None,
            1 => Some(Zeroizing::new(bytes.array()?)),
            _ => return Err(bytes.malformed()),
        };
        let length = bytes.rest().len();
        let word = Zeroizing::new(bytes.bytes(length)?.to_vec());
        Ok(Self { before, word })
    }
}

fn message(cluster: &ClusterPublic, body: &[u8]) -> Zeroizing<Vec<u8>> {
    Zeroizing::new([b"weave secret v1", &cluster.id()[..], body].concat())
}

#[cfg(test)]
mod tests {
    use super::super::cluster::ClusterKey;
    use super::*;
    use crate::keys::NodeKeys;

    fn secret(epoch: u32, byte: u8) -> ClusterSecret {
        ClusterSecret {
            epoch,
            bytes: [byte; 32],
        }
    }

    #[test]
    fn a_word_is_read_as_it_was_signed_and_no_byte_may_change() {
        let key = ClusterKey::from_bytes(&[1; 32]);
        let (cluster, before) = (key.public(), secret(1, 7));
        let word = SecretWord::new(&Authority::Key(&key), secret(2, 8), 99, &before);
        let read = SecretWord::read(word.bytes(), &cluster).unwrap();
        assert_eq!((read.mark(), read.until), (word.mark(), 99));
        assert_eq!(read.secret.bytes, [8; 32]);
        assert_eq!(read.before, before.digest());
        for at in 0..word.bytes().len() {
            let mut bytes = word.bytes().to_vec();
            bytes[at] ^= 1;
            assert!(SecretWord::read(&bytes, &cluster).is_err(), "byte {at}");
            let cut = &word.bytes()[..at];
            assert!(SecretWord::read(cut, &cluster).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn only_admins_of_this_cluster_give_a_secret() {
        let [key, foreign] = [1, 2].map(|seed| ClusterKey::from_bytes(&[seed; 32]));
        let (cluster, node) = (key.public(), NodeKeys::from_bytes(&[3; 64]));
        let by = |authority: &Authority<'_>| {
            let word = SecretWord::new(authority, secret(2, 8), 99, &secret(1, 7));
            SecretWord::read(word.bytes(), &cluster).is_ok()
        };
        assert!(by(&Authority::Key(&key)));
        assert!(!by(&Authority::Key(&foreign)), "another cluster");
        for (admin, counts) in [(true, true), (false, false)] {
            let mut certificate = Authority::Key(&key).certify(node.id(), admin, 5);
            certificate.admin = true;
            let authority = Authority::of(None, &node, &certificate, cluster).unwrap();
            assert_eq!(by(&authority), counts, "admin: {admin}");
        }
    }

    #[test]
    fn of_two_words_one_holds() {
        let marks = [(2, 1), (2, 2), (3, 1)].map(|(e, b)| SecretMark::of(&secret(e, b)));
        assert!(
            marks[0] < marks[2] && marks[1] < marks[2],
            "the later epoch"
        );
        assert_ne!(marks[0], marks[1]);
        let mut bytes = Writer::new();
        marks[0].write(&mut bytes);
        let read = SecretMark::read(&mut Reader::new(&bytes.0, "mark"));
        assert_eq!(read, Ok(marks[0]));
    }
}
