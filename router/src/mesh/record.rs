//! The node record, version 1: what a member says of itself, signed by itself, passed on by everybody.
//!
//! Each node is the only writer of its record. Records are ordered by version, the boot nonce first: a node that starts
//! again takes a higher nonce, so its first record replaces its last one even if it forgot how far it had counted.
//! A record is believed when the cluster's certificate in it names the node and no removal makes it void, the node signed
//! it, and every block it claims is proven by deeds that stand in the record too. What its deeds prove counts when it is gone, so
//! none may stand there that is not proven. Nothing else in it is checked: a node may call itself what it likes and be
//! anywhere.
//!
//! Layout: the byte 1, then fields (see [`super::codec`]), then the signature, 64 bytes, over "weave record v1", the
//! cluster's id and everything before the signature. A field that this build does not know is signed and passed on with
//! the rest.

use std::net::SocketAddr;
use std::sync::Arc;

use weave_model::{Block, NetworkName, NodeId, NodeName, Suite};

use super::cluster::{Certificate, ClusterPublic};
use super::codec::{Malformed, Reader, Writer};
use super::deed::{Deed, Proofs, Version, covers, read_block, write_block};
use super::removal::Removals;
use super::secret::SecretMark;
use super::topology::MAX_LOST;
pub use super::version::RecordVersion;
use crate::keys::{NodeKeys, NodePublic};
use crate::wire::END;

/// The longest record, in bytes.
pub const MAX_RECORD: usize = 48 << 10;
/// The most endpoints a node names.
pub const MAX_ENDPOINTS: usize = 16;
/// The most deeds that prove its claims.
pub const MAX_DEEDS: usize = 200;
/// The most blocks a node claims.
pub const MAX_BLOCKS: usize = 1024;
const MAX_NETWORKS: usize = 64;
const MAX_NAME: usize = 63;
const SIGNATURE: usize = 64;
const FORMAT: u8 = 1;

const KEYS: u16 = 1;
const VERSION: u16 = 2;
const NAME: u16 = 3;
const CERTIFICATE: u16 = 4;
const ENDPOINTS: u16 = 5;
const SUITES: u16 = 6;
const DEEDS: u16 = 7;
const BLOCKS: u16 = 8;
const NETWORKS: u16 = 9;
const STARTED: u16 = 10;
const LOST: u16 = 11;
const SECRET: u16 = 25;

/// What a node says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content {
    /// Its keys, which are its identity.
    pub public: NodePublic,
    /// Which record this is.
    pub version: RecordVersion,
    /// The boot nonce of the run that signed it, which may be lower than the version's; 0 if an older build did.
    pub started: u64,
    /// Its label.
    pub name: NodeName,
    /// The cluster's word that it is a member.
    pub certificate: Certificate,
    /// Where it may be reached, UDP, the likeliest first.
    pub endpoints: Vec<SocketAddr>,
    /// The suites it accepts; ones that this build does not know are left out.
    pub suites: Vec<Suite>,
    /// The deeds of its blocks and those that prove them.
    pub deeds: Vec<Deed>,
    /// The addresses it owns: its titles less what it gave away.
    pub blocks: Vec<Block>,
    /// The networks it takes part in.
    pub networks: Vec<NetworkName>,
    /// The members that it should have a session with and cannot reach, ascending; see [`super::topology`].
    pub lost: Vec<[u8; END]>,
    /// The last word by which it got a new secret of the cluster; absent while there was none.
    pub secret: Option<SecretMark>,
}

impl Content {
    fn body(&self) -> Vec<u8> {
        let mut out = Writer::new();
        out.u8(FORMAT);
        out.field(KEYS, |w| {
            w.bytes(&self.public.dh).bytes(&self.public.sign);
        });
        out.field(VERSION, |w| {
            w.u64(self.version.boot).u64(self.version.counter);
        });
        out.field(NAME, |w| {
            w.bytes(self.name.as_str().as_bytes());
        });
        out.field(CERTIFICATE, |w| self.certificate.write(w));
        out.field(ENDPOINTS, |w| {
            self.endpoints
                .iter()
                .take(MAX_ENDPOINTS)
                .for_each(|endpoint| {
                    w.address(*endpoint);
                });
        });
        out.field(SUITES, |w| {
            self.suites.iter().for_each(|suite| {
                w.u8(suite.to_wire());
            });
        });
        out.field(DEEDS, |w| self.deeds.iter().for_each(|deed| deed.write(w)));
        out.field(BLOCKS, |w| {
            self.blocks.iter().for_each(|block| write_block(*block, w))
        });
        out.field(NETWORKS, |w| {
            self.networks.iter().for_each(|network| {
                w.counted(network.as_str().as_bytes());
            });
        });
        out.field(STARTED, |w| {
            w.u64(self.started);
        });
        if !self.lost.is_empty() {
            out.field(LOST, |w| {
                self.lost.iter().for_each(|end| {
                    w.bytes(end);
                });
            });
        }
        if let Some(mark) = self.secret {
            out.field(SECRET, |w| mark.write(w));
        }
        out.0
    }

    /// Signs it. `None` if it is longer than a record may be.
    pub fn sign(self, keys: &NodeKeys, cluster: &ClusterPublic) -> Option<Record> {
        let mut bytes = self.body();
        let signature = keys.sign(&message(cluster, &bytes));
        bytes.extend_from_slice(&signature);
        let too_long = bytes.len() > MAX_RECORD
            || self.deeds.len() > MAX_DEEDS
            || self.blocks.len() > MAX_BLOCKS
            || self.networks.len() > MAX_NETWORKS
            || self.lost.len() > MAX_LOST;
        (!too_long).then(|| Record {
            content: Arc::new(self),
            bytes: bytes.into(),
        })
    }
}

/// A record with the bytes it is passed on as; cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    content: Arc<Content>,
    bytes: Arc<[u8]>,
}

impl std::ops::Deref for Record {
    type Target = Content;

    fn deref(&self) -> &Content {
        &self.content
    }
}

impl Record {
    /// The signed bytes, unknown fields included.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Whose it is.
    pub fn node(&self) -> NodeId {
        self.certificate.node
    }

    /// Whose record these bytes say they are, and which. Nothing is checked: good for leaving what is no news.
    ///
    /// # Errors
    /// When it does not begin like a record.
    pub fn claimed(bytes: &[u8]) -> Result<(NodeId, RecordVersion), Malformed> {
        let mut reader = Reader::new(bytes, "record");
        let mut fields = Fields::default();
        if reader.u8()? == FORMAT {
            for tag in [KEYS, VERSION] {
                let (found, field) = reader.field()?;
                if found == tag {
                    fields.read(tag, field)?;
                }
            }
        }
        let claimed = fields.public.map(|public| public.id()).zip(fields.version);
        claimed.ok_or(Malformed("record without keys or version"))
    }

    /// Reads a record and checks that it may be believed.
    ///
    /// # Errors
    /// Says which part is malformed, or not signed by whom it should be.
    pub fn read(
        bytes: &[u8],
        cluster: &ClusterPublic,
        removals: &Removals,
    ) -> Result<Self, Malformed> {
        Self::read_after(None, bytes, cluster, removals)
    }

    /// The same for a node of which a record was read before: what that proved is not checked again where the new one
    /// says the same. Most records differ from the one before in what one signature covers.
    ///
    /// # Errors
    /// As [`Record::read`].
    pub fn read_after(
        before: Option<&Self>,
        bytes: &[u8],
        cluster: &ClusterPublic,
        removals: &Removals,
    ) -> Result<Self, Malformed> {
        let (body, signature) = bytes
            .split_last_chunk::<SIGNATURE>()
            .filter(|_| bytes.len() <= MAX_RECORD)
            .ok_or(Malformed("record"))?;
        let content = decode(body)?;
        let certified = before.is_some_and(|before| before.certificate == content.certificate);
        if content.certificate.node != content.public.id()
            || !(certified || content.certificate.verify(cluster))
        {
            return Err(Malformed("certificate of a record"));
        }
        if content.version.is_last() || !removals.allow(&content.certificate) {
            return Err(Malformed("standing of a record"));
        }
        if !content.public.verify(&message(cluster, body), signature) {
            return Err(Malformed("signature of a record"));
        }
        let record = Self {
            content: Arc::new(content),
            bytes: bytes.into(),
        };
        let same = |before: &Self| certified && before.deeds == record.deeds;
        let all = || Proofs::new(&record.deeds, cluster, removals).all();
        let proven = before.is_some_and(same) || all().len() == record.deeds.len();
        if !proven
            || record
                .blocks
                .iter()
                .any(|block| record.version_of(*block).is_none())
        {
            return Err(Malformed("claim of a record"));
        }
        Ok(record)
    }

    /// The deeds of its own blocks, without those that only prove them.
    pub fn titles(&self) -> impl Iterator<Item = &Deed> {
        let node = self.node();
        self.deeds.iter().filter(move |deed| deed.owner == node)
    }

    /// The version by which it owns a block.
    pub fn version_of(&self, block: Block) -> Option<Version> {
        self.titles()
            .filter(|deed| covers(deed.block, block))
            .map(|deed| deed.version)
            .max()
    }
}

fn message(cluster: &ClusterPublic, body: &[u8]) -> Vec<u8> {
    [b"weave record v1", &cluster.id()[..], body].concat()
}

/// The fields of a record, which come in ascending order of their tags. The first four must be there.
#[derive(Default)]
struct Fields {
    public: Option<NodePublic>,
    version: Option<RecordVersion>,
    name: Option<NodeName>,
    certificate: Option<Certificate>,
    endpoints: Vec<SocketAddr>,
    suites: Vec<Suite>,
    deeds: Vec<Deed>,
    blocks: Vec<Block>,
    networks: Vec<NetworkName>,
    started: u64,
    lost: Vec<[u8; END]>,
    secret: Option<SecretMark>,
}

fn decode(body: &[u8]) -> Result<Content, Malformed> {
    let mut reader = Reader::new(body, "record");
    if reader.u8()? != FORMAT {
        return Err(Malformed("record: its format is of a later version"));
    }
    let mut fields = Fields::default();
    let mut last = 0;
    while !reader.is_empty() {
        let (tag, field) = reader.field()?;
        if tag <= last {
            return Err(Malformed("record: fields out of order"));
        }
        last = tag;
        fields.read(tag, field)?;
    }
    Ok(Content {
        public: fields.public.ok_or(Malformed("record without keys"))?,
        version: fields.version.ok_or(Malformed("record without version"))?,
        name: fields.name.ok_or(Malformed("record without name"))?,
        certificate: fields
            .certificate
            .ok_or(Malformed("record without certificate"))?,
        endpoints: fields.endpoints,
        suites: fields.suites,
        deeds: fields.deeds,
        blocks: fields.blocks,
        networks: fields.networks,
        started: fields.started,
        lost: fields.lost,
        secret: fields.secret,
    })
}

impl Fields {
    fn read(&mut self, tag: u16, mut field: Reader<'_>) -> Result<(), Malformed> {
        match tag {
            KEYS => {
                self.public = Some(NodePublic {
                    dh: field.array()?,
                    sign: field.array()?,
                })
            }
            VERSION => {
                self.version = Some(RecordVersion {
                    boot: field.u64()?,
                    counter: field.u64()?,
                });
            }
            NAME => self.name = Some(name(field.bytes(field.rest().len())?, &field)?),
            CERTIFICATE => self.certificate = Some(Certificate::read(&mut field)?),
            ENDPOINTS => self.endpoints = list(&mut field, MAX_ENDPOINTS, Reader::address)?,
            SUITES => {
                let bytes = field.bytes(field.rest().len())?;
                self.suites = bytes
                    .iter()
                    .filter_map(|byte| Suite::from_wire(*byte))
                    .collect();
            }
            DEEDS => self.deeds = list(&mut field, MAX_DEEDS, Deed::read)?,
            BLOCKS => self.blocks = list(&mut field, MAX_BLOCKS, read_block)?,
            NETWORKS => {
                self.networks = list(&mut field, MAX_NETWORKS, |field| {
                    let text = field.text(MAX_NAME)?;
                    text.parse().map_err(|_| field.malformed())
                })?;
            }
            STARTED => self.started = field.u64()?,
            SECRET => self.secret = Some(SecretMark::read(&mut field)?),
            LOST => self.lost = list(&mut field, MAX_LOST, Reader::array)?,
            _ => return Ok(()),
        }
        field.end()
    }
}

fn name(bytes: &[u8], field: &Reader<'_>) -> Result<NodeName, Malformed> {
    let text = std::str::from_utf8(bytes).map_err(|_| field.malformed())?;
    text.parse().map_err(|_| field.malformed())
}

fn list<'a, T>(
    field: &mut Reader<'a>,
    most: usize,
    read: impl Fn(&mut Reader<'a>) -> Result<T, Malformed>,
) -> Result<Vec<T>, Malformed> {
    let mut items = Vec::new();
    while !field.is_empty() {
        if items.len() == most {
            return Err(field.malformed());
        }
        items.push(read(field)?);
    }
    Ok(items)
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::super::authority::Authority;
    use super::super::cluster::ClusterKey;
    use super::*;

    pub(crate) fn content(keys: &NodeKeys, key: &ClusterKey) -> Content {
        let whole = Block::new(0, 12).unwrap();
        Content {
            public: keys.public(),
            version: RecordVersion {
                boot: 5,
                counter: 6,
            },
            name: "host1".parse().unwrap(),
            certificate: Authority::Key(key).certify(keys.id(), true, 1_700_000_000),
            endpoints: vec![
                "192.0.2.1:6783".parse().unwrap(),
                "[2001:db8::1]:6783".parse().unwrap(),
            ],
            suites: vec![Suite::Aes256Gcm, Suite::ChaCha20Poly1305],
            deeds: vec![Deed::genesis(whole, keys.id(), key)],
            blocks: vec![whole],
            networks: vec![NetworkName::default_network()],
            started: 3,
            lost: vec![[4; END], [7; END]],
            secret: Some(SecretMark {
                epoch: 2,
                id: [8; 8],
            }),
        }
    }

    fn read(bytes: &[u8], cluster: &ClusterPublic) -> Result<Record, Malformed> {
        Record::read(bytes, cluster, &Removals::default())
    }

    fn keys(seed: u8) -> NodeKeys {
        NodeKeys::from_bytes(&[seed; 64])
    }

    #[test]
    fn a_record_is_read_as_it_was_signed() {
        let (node, key) = (keys(1), ClusterKey::from_bytes(&[2; 32]));
        let content = content(&node, &key);
        let record = content.clone().sign(&node, &key.public()).unwrap();
        let read = read(record.bytes(), &key.public()).unwrap();
        assert_eq!(read, record);
        assert_eq!(*read, content);
    }

    #[test]
    fn any_changed_byte_is_refused() {
        let (node, key) = (keys(1), ClusterKey::from_bytes(&[2; 32]));
        let record = content(&node, &key).sign(&node, &key.public()).unwrap();
        for at in 0..record.bytes().len() {
            let mut bytes = record.bytes().to_vec();
            bytes[at] ^= 1;
            assert!(read(&bytes, &key.public()).is_err(), "byte {at}");
            assert!(read(&bytes[..at], &key.public()).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn a_foreign_signer_is_refused() {
        let (node, other) = (keys(1), keys(3));
        let (key, foreign) = (
            ClusterKey::from_bytes(&[2; 32]),
            ClusterKey::from_bytes(&[4; 32]),
        );
        let cluster = key.public();
        let by_other = content(&node, &key).sign(&other, &cluster).unwrap();
        assert!(
            read(by_other.bytes(), &cluster).is_err(),
            "signed by another node"
        );
        let borrowed = Content {
            public: other.public(),
            ..content(&node, &key)
        };
        let borrowed = borrowed.sign(&other, &cluster).unwrap();
        assert!(
            read(borrowed.bytes(), &cluster).is_err(),
            "with another's certificate"
        );
        let stranger = content(&node, &foreign).sign(&node, &cluster).unwrap();
        assert!(
            read(stranger.bytes(), &cluster).is_err(),
            "certified by another cluster"
        );
    }

    #[test]
    fn a_claim_without_a_deed_is_refused() {
        let (node, other) = (keys(1), keys(3));
        let key = ClusterKey::from_bytes(&[2; 32]);
        let cluster = key.public();
        let bare = Content {
            deeds: vec![],
            ..content(&node, &key)
        };
        assert!(read(bare.sign(&node, &cluster).unwrap().bytes(), &cluster).is_err());
        let foreign = Content {
            deeds: content(&other, &key).deeds,
            ..content(&node, &key)
        };
        assert!(read(foreign.sign(&node, &cluster).unwrap().bytes(), &cluster).is_err());
        let genesis = content(&other, &key).deeds[0];
        let given = genesis.give(
            Block::new(1024, 10).unwrap(),
            node.id(),
            9,
            &other,
            &cluster,
        );
        let more = Content {
            deeds: vec![given, genesis],
            ..content(&node, &key)
        };
        assert!(read(more.sign(&node, &cluster).unwrap().bytes(), &cluster).is_err());
        let unproven = genesis.give(given.block, node.id(), 10, &node, &cluster);
        let beside = Content {
            deeds: vec![given, genesis, unproven],
            blocks: vec![given.block],
            ..content(&node, &key)
        };
        assert!(read(beside.sign(&node, &cluster).unwrap().bytes(), &cluster).is_err());
        let right = Content {
            deeds: vec![given, genesis],
            blocks: vec![given.block],
            ..content(&node, &key)
        };
        let right = read(right.sign(&node, &cluster).unwrap().bytes(), &cluster).unwrap();
        assert_eq!(right.titles().count(), 1);
        assert_eq!(
            right.version_of(given.block),
            Some(Version {
                counter: 2,
                boot: 9
            })
        );
    }

    #[test]
    fn an_unknown_field_is_carried() {
        let (node, key) = (keys(1), ClusterKey::from_bytes(&[2; 32]));
        let content = content(&node, &key);
        let mut body = Writer(content.body());
        body.field(900, |w| {
            w.bytes(b"from the future");
        });
        let signature = node.sign(&message(&key.public(), &body.0));
        body.bytes(&signature);
        let record = read(&body.0, &key.public()).unwrap();
        assert_eq!(record.bytes(), body.0);
        assert_eq!(*record, content);
    }

    proptest! {
        #[test]
        fn junk_is_refused_without_harm(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let mut body = vec![FORMAT];
            body.extend_from_slice(&bytes);
            let cluster = ClusterKey::from_bytes(&[2; 32]).public();
            prop_assert!(read(&body, &cluster).is_err());
        }

        #[test]
        fn any_content_round_trips(
            name in "[a-z0-9]([a-z0-9.-]{0,40}[a-z0-9])?",
            boot in any::<u64>(),
            counter in any::<u64>(),
            ports in proptest::collection::vec(any::<(u128, u16, bool)>(), 0..MAX_ENDPOINTS),
            suites in proptest::sample::subsequence(vec![Suite::ChaCha20Poly1305, Suite::Aes256Gcm], 0..=2),
        ) {
            let (node, key) = (keys(1), ClusterKey::from_bytes(&[2; 32]));
            let endpoints = ports.into_iter().map(|(ip, port, v4)| {
                let ip = if v4 { std::net::Ipv4Addr::from(ip as u32).into() } else { std::net::Ipv6Addr::from(ip).into() };
                SocketAddr::new(ip, port)
            }).collect();
            let content = Content {
                name: name.parse().unwrap(),
                version: RecordVersion { boot, counter },
                endpoints,
                suites,
                ..content(&node, &key)
            };
            let record = content.clone().sign(&node, &key.public()).unwrap();
            prop_assert_eq!(&*read(record.bytes(), &key.public()).unwrap(), &content);
        }
    }
}
