//! The sheet: what a member tells of its containers and Services, signed by itself, passed on by everybody.
//!
//! It goes beside the record and not inside of it, because it changes with every container and is not needed to talk.
//! What it says is not the mesh's business: the content is bytes, bounded, and whoever reads them checks them. Like the
//! record it has one writer and a version, the boot nonce first; unlike it, it is believed only after the record, whose
//! keys check its signature.
//!
//! Layout: the byte 1, the node's id (32), boot nonce and counter (8 each), the content, then the signature, 64 bytes,
//! over "weave sheet v1", the cluster's id and everything before the signature.

use std::sync::Arc;

use weave_model::NodeId;

use super::cluster::ClusterPublic;
use super::codec::{Malformed, Reader, Writer};
use super::record::RecordVersion;
use crate::keys::{NodeKeys, NodePublic};

/// The longest content, in bytes: with what is around it, it is the longest message that can be sent in parts.
pub const MAX_CONTENT: usize = 192 << 10;
/// The longest sheet, in bytes.
pub const MAX_SHEET: usize = MAX_CONTENT + HEAD + SIGNATURE;

const FORMAT: u8 = 1;
const HEAD: usize = 1 + 32 + 16;
const SIGNATURE: usize = 64;

/// A sheet with the bytes it is passed on as; cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sheet {
    node: NodeId,
    version: RecordVersion,
    content: Arc<[u8]>,
    bytes: Arc<[u8]>,
}

impl Sheet {
    /// How many bytes are around its content.
    pub const OVERHEAD: usize = HEAD + SIGNATURE;

    /// Signs a content. `None` if it is longer than it may be.
    pub fn sign(
        content: &[u8],
        version: RecordVersion,
        keys: &NodeKeys,
        cluster: &ClusterPublic,
    ) -> Option<Self> {
        let mut out = Writer::new();
        out.u8(FORMAT)
            .bytes(keys.id().as_bytes())
            .u64(version.boot)
            .u64(version.counter)
            .bytes(content);
        let signature = keys.sign(&message(cluster, &out.0));
        out.bytes(&signature);
        (content.len() <= MAX_CONTENT).then(|| Self {
            node: keys.id(),
            version,
            content: content.into(),
            bytes: out.0.into(),
        })
    }

    /// Reads a sheet that nobody has checked yet; see [`Sheet::is_signed_by`].
    ///
    /// # Errors
    /// When it does not have the form of one.
    pub fn read(bytes: &[u8]) -> Result<Self, Malformed> {
        if bytes.len() > MAX_SHEET || bytes.len() < HEAD + SIGNATURE {
            return Err(Malformed("sheet"));
        }
        let mut reader = Reader::new(bytes, "sheet");
        if reader.u8()? != FORMAT {
            return Err(Malformed("sheet: its format is of a later version"));
        }
        Ok(Self {
            node: NodeId::from_bytes(reader.array()?),
            version: RecordVersion {
                boot: reader.u64()?,
                counter: reader.u64()?,
            },
            content: bytes[HEAD..bytes.len() - SIGNATURE].into(),
            bytes: bytes.into(),
        })
    }

    /// Whether the node with these keys wrote it, and for this cluster.
    pub fn is_signed_by(&self, public: &NodePublic, cluster: &ClusterPublic) -> bool {
        let Some((body, signature)) = self.bytes.split_last_chunk::<SIGNATURE>() else {
            return false;
        };
        public.id() == self.node && public.verify(&message(cluster, body), signature)
    }

    /// Whose it is.
    pub const fn node(&self) -> NodeId {
        self.node
    }

    /// Which sheet of that node it is.
    pub const fn version(&self) -> RecordVersion {
        self.version
    }

    /// What it says.
    pub const fn content(&self) -> &Arc<[u8]> {
        &self.content
    }

    /// The signed bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

fn message(cluster: &ClusterPublic, body: &[u8]) -> Vec<u8> {
    [b"weave sheet v1", &cluster.id()[..], body].concat()
}

#[cfg(test)]
mod tests {
    use super::super::cluster::ClusterKey;
    use super::super::message::Message;
    use super::super::parts;
    use super::*;

    const VERSION: RecordVersion = RecordVersion {
        boot: 5,
        counter: 6,
    };

    fn keys(seed: u8) -> NodeKeys {
        NodeKeys::from_bytes(&[seed; 64])
    }

    fn cluster() -> ClusterPublic {
        ClusterKey::from_bytes(&[2; 32]).public()
    }

    #[test]
    fn a_sheet_is_read_as_it_was_signed() {
        let sheet = Sheet::sign(b"what it says", VERSION, &keys(1), &cluster()).unwrap();
        let read = Sheet::read(sheet.bytes()).unwrap();
        assert_eq!(read, sheet);
        assert_eq!(
            (&**read.content(), read.version()),
            (&b"what it says"[..], VERSION)
        );
        assert!(read.is_signed_by(&keys(1).public(), &cluster()));
    }

    #[test]
    fn any_changed_byte_and_any_other_signer_is_seen() {
        let sheet = Sheet::sign(b"content", VERSION, &keys(1), &cluster()).unwrap();
        let believed = |bytes: &[u8], public: &NodePublic, cluster: &ClusterPublic| {
            Sheet::read(bytes).is_ok_and(|sheet| sheet.is_signed_by(public, cluster))
        };
        for at in 0..sheet.bytes().len() {
            let mut bytes = sheet.bytes().to_vec();
            bytes[at] ^= 1;
            assert!(
                !believed(&bytes, &keys(1).public(), &cluster()),
                "byte {at}"
            );
            assert!(
                !believed(&bytes[..at], &keys(1).public(), &cluster()),
                "cut at {at}"
            );
        }
        assert!(!believed(sheet.bytes(), &keys(3).public(), &cluster()));
        let other = ClusterKey::from_bytes(&[4; 32]).public();
        assert!(!believed(sheet.bytes(), &keys(1).public(), &other));
    }

    #[test]
    fn the_longest_fits_a_message() {
        let longest = vec![7; MAX_CONTENT];
        let sheet = Sheet::sign(&longest, VERSION, &keys(1), &cluster()).unwrap();
        assert_eq!(sheet.bytes().len(), MAX_SHEET);
        assert!(parts::split(&Message::Sheet(sheet.bytes().to_vec()).encode()).is_some());
        let longer = vec![7; MAX_CONTENT + 1];
        assert!(Sheet::sign(&longer, VERSION, &keys(1), &cluster()).is_none());
    }
}
