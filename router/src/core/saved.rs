//! The node's saved state as bytes.
//!
//! One value holds all that must survive: who the node is, its cluster, its secrets, its deeds and gifts, the tokens it
//! made, which container has which address, and the newest records of the other members, so that it finds them again.
//! The byte 1, then fields (see [`crate::mesh::codec`]); the checksum is the store's. A field that this build does not
//! know was written by a later one, and such a state is refused: to run an older build on it could give an address away
//! twice.

use std::net::SocketAddr;
use std::time::Duration;

use weave_model::{ClusterRange, NodeId};
use zeroize::Zeroizing;

use super::command::{MAX_DIALLED, MAX_ID};
use super::dialled::Dialled;
use crate::ipam::Entry;
use crate::keys::{ClusterSecret, NodeKeys, NodePublic, OldSecret};
use crate::mesh::authority::Authority;
use crate::mesh::cluster::{Certificate, ClusterKey, ClusterPublic};
use crate::mesh::codec::{Malformed, Reader, Writer};
use crate::mesh::deeds::Deeds;
use crate::mesh::join::{read_range, write_range};
use crate::mesh::record::MAX_RECORD;
use crate::mesh::removal::MAX_REMOVAL;
use crate::mesh::secret::SecretWord;
use crate::mesh::sheet::MAX_SHEET;
use crate::mesh::tokens::Tokens;

const FORMAT: u8 = 1;
const KEYS: u16 = 1;
const BOOT: u16 = 2;
const CLUSTER: u16 = 3;
const CLUSTER_KEY: u16 = 4;
const DEEDS: u16 = 5;
const TOKENS: u16 = 6;
const JOURNAL: u16 = 7;
const RECORDS: u16 = 8;
const ACQUAINTANCES: u16 = 9;
const STAMP: u16 = 10;
const REMOVED: u16 = 11;
const SHEETS: u16 = 21;
const PAST: u16 = 24;
const SECRET: u16 = 31;
const DIALLED: u16 = 32;

const MAX_SECRETS: u32 = 2;
/// How many secrets are remembered that are accepted no longer.
pub(super) const MAX_OLD: usize = 4;
/// Longer than any word that gives a secret.
const MAX_WORD: usize = 1 << 10;
/// The most bytes of records, and of sheets, that are saved: whatever members say of themselves, the state fits the
/// store. 1,000 members need about 1 MiB of each.
const MAX_TOLD: usize = 16 << 20;

/// The part of the state that a member has.
pub(super) struct Membership {
    pub public: ClusterPublic,
    pub key: Option<ClusterKey>,
    pub range: ClusterRange,
    /// The current secret first, then the one before.
    pub secrets: Vec<ClusterSecret>,
    /// By what the current secret came; absent while it is the first one, and with a node that just joined.
    pub word: Option<SecretWord>,
    /// Secrets that are accepted no longer, the newest first.
    pub old: Vec<OldSecret>,
    pub certificate: Certificate,
    pub deeds: Deeds,
    /// Members whose record is not known yet: the node that let this one in, and those that this one let in.
    pub acquaintances: Vec<(NodePublic, SocketAddr)>,
}

impl Membership {
    /// By what this node signs in the cluster's name; `None` if it is no admin.
    pub(super) fn authority<'a>(&'a self, keys: &'a NodeKeys) -> Option<Authority<'a>> {
        Authority::of(self.key.as_ref(), keys, &self.certificate, self.public)
    }
}

/// All of the state.
pub(super) struct Saved {
    pub keys: Zeroizing<[u8; NodeKeys::LEN]>,
    pub boot: u64,
    /// The number of this save, of all that this node ever made; 0 if an older build wrote it.
    pub saves: u64,
    /// It is to be found out what this node owns.
    pub in_doubt: bool,
    /// The stamp of the last handshake that this node began.
    pub stamp: u64,
    pub membership: Option<Membership>,
    pub tokens: Tokens,
    pub journal: Vec<Entry>,
    /// As they were signed; checked again when they are used.
    pub records: Vec<Vec<u8>>,
    pub removed: Vec<SavedRemoval>,
    /// Where this node was told to look for members.
    pub dialled: Dialled,
    /// As they were signed by others.
    pub sheets: Vec<Vec<u8>>,
}

/// A removal, as it was signed; checked again when it is used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SavedRemoval {
    /// The removal.
    pub removal: Vec<u8>,
    /// The last record of the node; empty if none came here.
    pub record: Vec<u8>,
    /// This node is its heir and has taken what there was.
    pub settled: bool,
}

/// What [`encode`] takes: the state as it stands in the core.
pub(super) struct Snapshot<'a> {
    pub keys: &'a NodeKeys,
    pub boot: u64,
    pub saves: u64,
    pub in_doubt: bool,
    pub stamp: u64,
    pub membership: Option<&'a Membership>,
    pub tokens: &'a Tokens,
    pub journal: Vec<Entry>,
    pub records: Vec<&'a [u8]>,
    pub removed: Vec<SavedRemoval>,
    pub dialled: &'a Dialled,
    pub sheets: Vec<&'a [u8]>,
}

/// What of the others' words is saved; the rest is heard again when they are met.
pub(super) fn within<'a>(words: impl Iterator<Item = &'a [u8]>) -> Vec<&'a [u8]> {
    let mut left = MAX_TOLD;
    words
        .filter(|word| match left.checked_sub(word.len()) {
            Some(rest) => {
                left = rest;
                true
            }
            None => false,
        })
        .collect()
}

/// The bytes to save.
pub(super) fn encode(state: &Snapshot<'_>) -> Zeroizing<Vec<u8>> {
    let mut out = Writer::new();
    out.u8(FORMAT);
    out.field(KEYS, |w| {
        w.bytes(&*state.keys.to_bytes());
    });
    out.field(BOOT, |w| {
        w.u64(state.boot);
    });
    out.field(STAMP, |w| {
        w.u64(state.stamp);
    });
    if let Some(membership) = state.membership {
        write_membership(membership, &mut out);
    }
    out.field(TOKENS, |w| state.tokens.write(w));
    out.field(JOURNAL, |w| {
        state.journal.iter().for_each(|entry| write_entry(entry, w))
    });
    out.field(RECORDS, |w| {
        state.records.iter().for_each(|record| {
            w.counted(record);
        });
    });
    out.field(REMOVED, |w| {
        for removed in &state.removed {
            w.u8(u8::from(removed.settled));
            w.counted(&removed.removal).counted(&removed.record);
        }
    });
    if !state.sheets.is_empty() {
        out.field(SHEETS, |w| {
            state.sheets.iter().for_each(|sheet| {
                w.counted(sheet);
            });
        });
    }
    if !state.dialled.is_empty() {
        out.field(DIALLED, |w| {
            for (address, found) in state.dialled {
                w.address(*address).u8(u8::from(found.is_some()));
                if let Some(node) = found {
                    w.bytes(node.as_bytes());
                }
            }
        });
    }
    out.field(PAST, |w| {
        w.u64(state.saves).u8(u8::from(state.in_doubt));
    });
    Zeroizing::new(out.0)
}

fn write_membership(membership: &Membership, out: &mut Writer) {
    out.field(CLUSTER, |w| {
        w.bytes(&membership.public.0);
        write_range(&membership.range, w);
        w.u32(membership.secrets.len() as u32);
        for secret in &membership.secrets {
            w.u32(secret.epoch).bytes(&secret.bytes);
        }
        membership.certificate.write(w);
    });
    if membership.word.is_some() || !membership.old.is_empty() {
        out.field(SECRET, |w| {
            w.counted(membership.word.as_ref().map_or(&[], SecretWord::bytes));
            for old in &membership.old {
                w.u32(old.epoch).bytes(&*old.mac_key);
                w.bytes(&*old.cookie_key);
            }
        });
    }
    if let Some(key) = &membership.key {
        out.field(CLUSTER_KEY, |w| {
            w.bytes(&*key.to_bytes());
        });
    }
    out.field(DEEDS, |w| membership.deeds.write(w));
    out.field(ACQUAINTANCES, |w| {
        for (public, address) in &membership.acquaintances {
            w.bytes(&public.dh).bytes(&public.sign).address(*address);
        }
    });
}

fn write_entry(entry: &Entry, out: &mut Writer) {
    match entry {
        Entry::Lease(offset, id) => out.u8(1).u32(*offset).counted(id.as_bytes()),
        Entry::Resting(offset, since) => out.u8(2).u32(*offset).u64(since.as_millis() as u64),
    };
}

/// Reads what [`encode`] wrote.
pub(super) fn decode(bytes: &[u8]) -> Result<Saved, Malformed> {
    let mut reader = Reader::new(bytes, "saved state");
    if reader.u8()? != FORMAT {
        return Err(Malformed("saved state: it was written by a later version"));
    }
    let mut fields = Fields::default();
    while !reader.is_empty() {
        let (tag, field) = reader.field()?;
        fields.read(tag, field)?;
    }
    let word = fields.word.as_deref().filter(|word| !word.is_empty());
    let word = word.zip(fields.cluster.as_ref());
    let word = word.map(|(word, cluster)| SecretWord::read(word, &cluster.public));
    let word = word.transpose()?;
    let membership = fields.cluster.map(|cluster| Membership {
        word,
        old: fields.old,
        key: fields.key,
        deeds: fields.deeds,
        acquaintances: fields.acquaintances,
        ..cluster
    });
    Ok(Saved {
        keys: fields.keys.ok_or(Malformed("saved state without keys"))?,
        boot: fields.boot,
        saves: fields.past.0,
        in_doubt: fields.past.1,
        stamp: fields.stamp,
        membership,
        tokens: fields.tokens,
        journal: fields.journal,
        records: fields.records,
        removed: fields.removed,
        dialled: fields.dialled,
        sheets: fields.sheets,
    })
}

#[derive(Default)]
struct Fields {
    keys: Option<Zeroizing<[u8; NodeKeys::LEN]>>,
    boot: u64,
    cluster: Option<Membership>,
    key: Option<ClusterKey>,
    word: Option<Zeroizing<Vec<u8>>>,
    old: Vec<OldSecret>,
    deeds: Deeds,
    tokens: Tokens,
    journal: Vec<Entry>,
    records: Vec<Vec<u8>>,
    removed: Vec<SavedRemoval>,
    dialled: Dialled,
    sheets: Vec<Vec<u8>>,
    acquaintances: Vec<(NodePublic, SocketAddr)>,
    stamp: u64,
    past: (u64, bool),
}

impl Fields {
    fn read(&mut self, tag: u16, mut field: Reader<'_>) -> Result<(), Malformed> {
        let field = &mut field;
        match tag {
            KEYS => self.keys = Some(Zeroizing::new(field.array()?)),
            BOOT => self.boot = field.u64()?,
            CLUSTER => self.cluster = Some(read_cluster(field)?),
            CLUSTER_KEY => {
                self.key = Some(ClusterKey::from_bytes(&Zeroizing::new(field.array()?)));
            }
            DEEDS => self.deeds = Deeds::read(field)?,
            TOKENS => self.tokens = Tokens::read(field)?,
            JOURNAL => {
                while !field.is_empty() {
                    self.journal.push(read_entry(field)?);
                }
            }
            RECORDS => {
                while !field.is_empty() {
                    self.records.push(field.counted(MAX_RECORD)?.to_vec());
                }
            }
            ACQUAINTANCES => {
                while !field.is_empty() {
                    let public = NodePublic {
                        dh: field.array()?,
                        sign: field.array()?,
                    };
                    self.acquaintances.push((public, field.address()?));
                }
            }
            REMOVED => {
                while !field.is_empty() {
                    self.removed.push(SavedRemoval {
                        settled: field.u8()? != 0,
                        removal: field.counted(MAX_REMOVAL)?.to_vec(),
                        record: field.counted(MAX_RECORD)?.to_vec(),
                    });
                }
            }
            SHEETS => {
                while !field.is_empty() {
                    self.sheets.push(field.counted(MAX_SHEET)?.to_vec());
                }
            }
            SECRET => self.read_secret(field)?,
            DIALLED => self.read_dialled(field)?,
            STAMP => self.stamp = field.u64()?,
            PAST => self.past = (field.u64()?, field.u8()? != 0),
            _ => return Err(Malformed("saved state: it was written by a later version")),
        }
        field.end()
    }

    fn read_secret(&mut self, field: &mut Reader<'_>) -> Result<(), Malformed> {
        self.word = Some(Zeroizing::new(field.counted(MAX_WORD)?.to_vec()));
        while !field.is_empty() {
            self.old.push(OldSecret {
                epoch: field.u32()?,
                mac_key: Zeroizing::new(field.array()?),
                cookie_key: Zeroizing::new(field.array()?),
            });
        }
        Ok(())
    }

    fn read_dialled(&mut self, field: &mut Reader<'_>) -> Result<(), Malformed> {
        while !field.is_empty() && self.dialled.len() < MAX_DIALLED {
            let address = field.address()?;
            let found = match field.u8()? {
                0 => None,
                _ => Some(NodeId::from_bytes(field.array()?)),
            };
            self.dialled.insert(address, found);
        }
        Ok(())
    }
}

fn read_cluster(field: &mut Reader<'_>) -> Result<Membership, Malformed> {
    let public = ClusterPublic(field.array()?);
    let range = read_range(field)?;
    let count = field.u32()?;
    if !(1..=MAX_SECRETS).contains(&count) {
        return Err(field.malformed());
    }
    let secret = |field: &mut Reader<'_>| {
        Ok(ClusterSecret {
            epoch: field.u32()?,
            bytes: field.array()?,
        })
    };
    let secrets = (0..count)
        .map(|_| secret(field))
        .collect::<Result<_, _>>()?;
    let certificate = Certificate::read(field)?;
    let (key, deeds, acquaintances) = (None, Deeds::default(), Vec::new());
    Ok(Membership {
        public,
        key,
        range,
        secrets,
        word: None,
        old: Vec::new(),
        certificate,
        deeds,
        acquaintances,
    })
}

fn read_entry(field: &mut Reader<'_>) -> Result<Entry, Malformed> {
    let kind = field.u8()?;
    let offset = field.u32()?;
    match kind {
        1 => Ok(Entry::Lease(offset, field.text(MAX_ID)?.to_owned())),
        2 => Ok(Entry::Resting(offset, Duration::from_millis(field.u64()?))),
        _ => Err(field.malformed()),
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;
    use weave_model::Block;

    use super::*;

    fn saved() -> (NodeKeys, Membership, Tokens) {
        let mut rng = StdRng::seed_from_u64(3);
        let keys = NodeKeys::generate(&mut rng);
        let key = ClusterKey::generate(&mut rng);
        let range = ClusterRange::new(
            "10.32.0.0/12".parse().unwrap(),
            "fd00::/48".parse().unwrap(),
        )
        .unwrap();
        let secrets: Vec<_> = [3, 2]
            .map(|epoch| ClusterSecret::generate(epoch, &mut rng))
            .into();
        let word = SecretWord::new(&Authority::Key(&key), secrets[0].clone(), 9, &secrets[1]);
        let membership = Membership {
            public: key.public(),
            range,
            secrets,
            certificate: Authority::Key(&key).certify(keys.id(), true, 5),
            deeds: Deeds::genesis(Block::whole(&range), keys.id(), &key, 0),
            word: Some(word),
            old: vec![OldSecret::of(
                &ClusterSecret::generate(1, &mut rng),
                &keys.id(),
            )],
            key: Some(key),
            acquaintances: vec![(keys.public(), "192.0.2.1:6783".parse().unwrap())],
        };
        let mut tokens = Tokens::default();
        tokens.create(Duration::from_secs(60), 2, Duration::from_secs(9), &mut rng);
        (keys, membership, tokens)
    }

    #[test]
    fn what_is_saved_comes_back() {
        let (keys, membership, tokens) = saved();
        let journal = vec![
            Entry::Lease(7, "web,eth0".to_owned()),
            Entry::Resting(8, Duration::from_millis(1234)),
        ];
        let dialled = [6783, 6784].map(|port| SocketAddr::from(([192, 0, 2, 9], port)));
        let dialled = dialled.into_iter().zip([None, Some(keys.id())]).collect();
        let snapshot = |membership, journal| Snapshot {
            keys: &keys,
            boot: 9,
            saves: 12,
            in_doubt: true,
            stamp: 77,
            membership,
            tokens: &tokens,
            journal,
            records: vec![b"one", b"two"],
            removed: vec![SavedRemoval {
                removal: b"gone".to_vec(),
                record: Vec::new(),
                settled: true,
            }],
            dialled: &dialled,
            sheets: vec![b"three"],
        };
        let bytes = encode(&snapshot(Some(&membership), journal.clone()));
        let back = decode(&bytes).unwrap();
        assert_eq!((back.boot, back.saves, back.in_doubt), (9, 12, true));
        assert_eq!(back.journal, journal);
        let again = Snapshot {
            keys: &NodeKeys::from_bytes(&back.keys),
            boot: back.boot,
            saves: back.saves,
            in_doubt: back.in_doubt,
            stamp: back.stamp,
            membership: back.membership.as_ref(),
            tokens: &back.tokens,
            journal: back.journal.clone(),
            records: back.records.iter().map(Vec::as_slice).collect(),
            removed: back.removed.clone(),
            dialled: &back.dialled,
            sheets: back.sheets.iter().map(Vec::as_slice).collect(),
        };
        assert_eq!(encode(&again), bytes);
        let alone = decode(&encode(&snapshot(None, vec![]))).unwrap();
        assert!(alone.membership.is_none());
    }

    use super::super::removing::MAX_REMOVED;

    #[test]
    fn what_others_say_does_not_outgrow_the_store() {
        let (short, long) = (vec![1; 100], vec![2; MAX_SHEET]);
        let words: Vec<&[u8]> = (0..4096)
            .map(|n| if n == 4095 { &short[..] } else { &long[..] })
            .collect();
        let kept = within(words.into_iter());
        let bytes: usize = kept.iter().map(|word| word.len()).sum();
        assert!(bytes <= MAX_TOLD && bytes + MAX_SHEET > MAX_TOLD);
        assert_eq!(kept.last(), Some(&&short[..]), "what still fits is kept");
        const { assert!(2 * MAX_TOLD + MAX_REMOVED <= crate::store::MAX_CONTENT / 2) };
    }

    #[test]
    fn a_cut_or_later_state_is_refused() {
        let (keys, membership, tokens) = saved();
        let bytes = encode(&Snapshot {
            keys: &keys,
            boot: 9,
            saves: 12,
            in_doubt: false,
            stamp: 77,
            membership: Some(&membership),
            tokens: &tokens,
            journal: vec![],
            records: vec![],
            removed: vec![],
            dialled: &Dialled::new(),
            sheets: vec![],
        });
        let cut = (0..bytes.len())
            .filter(|at| decode(&bytes[..*at]).is_ok())
            .count();
        assert!(cut <= 12, "only between two fields: {cut}");
        let mut later = bytes.to_vec();
        later[0] = FORMAT + 1;
        assert!(decode(&later).is_err());
        let mut unknown = Writer(bytes.to_vec());
        unknown.field(99, |_| ());
        assert!(decode(&unknown.0).is_err());
    }
}
