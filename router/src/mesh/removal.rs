//! The signed word that a node is no member any more.
//!
//! An admin signs it for another node, a node signs it for itself when it leaves. It takes the place of the node's
//! record and is newer than every version of it ([`RecordVersion::last`]), so it spreads as records do and nothing brings
//! the node back. It names one *heir*: the only node that may take what the removed one owned, once every living member
//! has confirmed that it knows of the removal.
//!
//! Two admins that do not hear each other may remove one node and name two heirs. Of two removals of one node the one with
//! the lower hash holds, whichever came first: its version is the higher one, so it takes the other's place everywhere. No
//! two heirs take the same addresses, because each takes something only after all living members confirmed the removal
//! that names it, the other heir among them. Who confirms a removal gives the other one up, and says what it took by it
//! before. What was taken by a removal that holds no longer stays proven to all who believed that one.
//!
//! Who leaves shows its certificate. Removals are kept for ever: a certificate has no end, and what an heir took is proven
//! by the removal that names it, as long as anybody has those addresses. So nobody may make removals of nodes that never
//! were: only an admin adds to what all members keep, by every node that it lets in. And there is an end to it: from
//! [`MAX_REMOVALS`] on, members refuse to remove and to leave. They go on believing what they are told, for two admins may
//! pass the end at the same time. And only an admin has something to be *kept*.
//!
//! What an admin signed counts no longer when it is removed, or its key could go on making members. So its removal
//! lists what of it is *kept*: the members, admins, removals and the cluster's secret by it that the signer knew.
//!
//! ```text
//! format 2 | node 32 | heir 32 | issued 8 | by 1: 0 admin, chain; 1 itself, its keys 64, certificate
//! | kept: count 4, each node 32, as 1 (0 member, 1 admin, 2 removed, 3 secret) | signature 64
//! ```
//!
//! The signature is over "weave removal v1", the cluster's id and all before it.

use std::collections::BTreeMap;

use blake2::{Blake2s256, Digest as _};
use weave_model::NodeId;

use super::authority::Authority;
use super::cluster::{Certificate, Chain, ClusterPublic};
use super::codec::{Malformed, Reader, Writer};
use super::secret::SecretWord;
use super::version::RecordVersion;
use crate::keys::{NodeKeys, NodePublic};

/// The first byte of a removal, where a record has 1.
pub const FORMAT: u8 = 2;
/// How many removals a cluster has before no more nodes are removed, and none leaves any more.
pub const MAX_REMOVALS: usize = 8192;
/// The most that a removal can list.
pub const MAX_KEPT: usize = 4096;
/// The most bytes of a removal: that list, and a chain or certificate.
pub const MAX_REMOVAL: usize = MAX_KEPT * 33 + (4 << 10);
const SIGNATURE: usize = 64;
/// How many removals of one node are remembered that hold no longer.
const MAX_BEATEN: usize = 4;

/// As what something that a removed admin signed is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kept {
    /// The node stays a member.
    Member,
    /// The node stays an admin.
    Admin,
    /// The node stays removed.
    Removed,
    /// The secret of this name stays the cluster's ([`SecretWord::name`]).
    Secret,
}

/// Who signed a removal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Remover {
    /// An admin, or the cluster's key.
    Admin(Chain),
    /// The node itself, by its certificate: it leaves.
    Itself(NodePublic, Box<Certificate>),
}

/// A removal with the bytes that it is passed on as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removal {
    /// Who is no member any more.
    pub node: NodeId,
    /// Who may take its addresses.
    pub heir: NodeId,
    /// When, in seconds since the Unix epoch.
    pub issued: u64,
    /// Who says so.
    pub by: Remover,
    kept: Vec<(NodeId, Kept)>,
    bytes: Vec<u8>,
}

impl Removal {
    /// An admin removes a node. `None` if the list of what is kept would be too long.
    pub fn by_admin(
        authority: &Authority<'_>,
        node: NodeId,
        heir: NodeId,
        issued: u64,
        kept: Vec<(NodeId, Kept)>,
    ) -> Option<Self> {
        let by = Remover::Admin(authority.chain());
        let unsigned = Self::unsigned(node, heir, issued, by, kept)?;
        let message = message(&authority.cluster(), &unsigned.bytes);
        Some(unsigned.signed(&authority.sign(&message)))
    }

    /// A node leaves, which this certificate made a member. `None` if the list of what is kept would be too long.
    pub fn by_itself(
        keys: &NodeKeys,
        certificate: &Certificate,
        cluster: &ClusterPublic,
        heir: NodeId,
        issued: u64,
        kept: Vec<(NodeId, Kept)>,
    ) -> Option<Self> {
        let by = Remover::Itself(keys.public(), Box::new(certificate.clone()));
        let unsigned = Self::unsigned(keys.id(), heir, issued, by, kept)?;
        let message = message(cluster, &unsigned.bytes);
        Some(unsigned.signed(&keys.sign(&message)))
    }

    fn unsigned(
        node: NodeId,
        heir: NodeId,
        issued: u64,
        by: Remover,
        kept: Vec<(NodeId, Kept)>,
    ) -> Option<Self> {
        let mut out = Writer::new();
        out.u8(FORMAT).bytes(node.as_bytes()).bytes(heir.as_bytes());
        out.u64(issued);
        match &by {
            Remover::Admin(chain) => chain.write(out.u8(0)),
            Remover::Itself(public, certificate) => {
                out.u8(1).bytes(&public.dh).bytes(&public.sign);
                certificate.write(&mut out);
            }
        }
        out.u32(kept.len() as u32);
        for (node, kept) in &kept {
            out.bytes(node.as_bytes()).u8(*kept as u8);
        }
        (kept.len() <= MAX_KEPT).then_some(Self {
            node,
            heir,
            issued,
            by,
            kept,
            bytes: out.0,
        })
    }

    fn signed(mut self, signature: &[u8; SIGNATURE]) -> Self {
        self.bytes.extend_from_slice(signature);
        self
    }

    /// Whom these bytes say they remove, and their version. Nothing is checked: good for leaving what is no news.
    pub fn claimed(bytes: &[u8]) -> Option<(NodeId, RecordVersion)> {
        let (format, rest) = bytes.split_first()?;
        let node = rest.first_chunk().filter(|_| *format == FORMAT)?;
        Some((NodeId::from_bytes(*node), version(bytes)))
    }

    /// Reads a removal and checks its signature.
    ///
    /// # Errors
    /// If it is malformed, or not signed in the name of the cluster or of the node itself, which has to be a member.
    pub fn read(bytes: &[u8], cluster: &ClusterPublic) -> Result<Self, Malformed> {
        let (body, signature) = bytes
            .split_last_chunk::<SIGNATURE>()
            .ok_or(Malformed("removal"))?;
        let removal = Self {
            bytes: bytes.to_vec(),
            ..decode(body)?
        };
        let message = message(cluster, body);
        let signed = match &removal.by {
            Remover::Admin(chain) => chain.verify(cluster, &message, signature),
            Remover::Itself(public, certificate) => {
                let node = removal.node;
                (public.id(), certificate.node) == (node, node)
                    && (certificate.admin || removal.kept.is_empty())
                    && public.verify(&message, signature)
                    && certificate.verify(cluster)
            }
        };
        if signed && removal.heir != removal.node {
            Ok(removal)
        } else {
            Err(Malformed("signature of a removal"))
        }
    }

    /// The signed bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Which of two removals of one node holds: the one with the higher version.
    pub fn version(&self) -> RecordVersion {
        version(&self.bytes)
    }

    /// Whether what the removed node signed as an admin still counts for `node`.
    fn keeps(&self, node: NodeId, what: Kept) -> bool {
        self.kept.contains(&(node, what))
    }
}

fn decode(body: &[u8]) -> Result<Removal, Malformed> {
    let mut reader = Reader::new(body, "removal");
    if reader.u8()? != FORMAT {
        return Err(reader.malformed());
    }
    let node = NodeId::from_bytes(reader.array()?);
    let heir = NodeId::from_bytes(reader.array()?);
    let issued = reader.u64()?;
    let by = match reader.u8()? {
        0 => Remover::Admin(Chain::read(&mut reader)?),
        1 => {
            let public = NodePublic {
                dh: reader.array()?,
                sign: reader.array()?,
            };
            Remover::Itself(public, Box::new(Certificate::read(&mut reader)?))
        }
        _ => return Err(reader.malformed()),
    };
    let count = reader.u32()? as usize;
    if count > MAX_KEPT {
        return Err(reader.malformed());
    }
    let mut kept = Vec::new();
    for _ in 0..count {
        let node = NodeId::from_bytes(reader.array()?);
        let what = match reader.u8()? {
            0 => Kept::Member,
            1 => Kept::Admin,
            2 => Kept::Removed,
            3 => Kept::Secret,
            _ => return Err(reader.malformed()),
        };
        kept.push((node, what));
    }
    reader.end()?;
    Ok(Removal {
        node,
        heir,
        issued,
        by,
        kept,
        bytes: Vec::new(),
    })
}

fn message(cluster: &ClusterPublic, body: &[u8]) -> Vec<u8> {
    [b"weave removal v1", &cluster.id()[..], body].concat()
}

fn version(bytes: &[u8]) -> RecordVersion {
    let hash = Blake2s256::digest(bytes);
    let first = hash.first_chunk().expect("a hash is longer than that");
    RecordVersion::last(!u64::from_be_bytes(*first))
}

/// All removals that a member believes: one a node at most.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removals {
    holding: BTreeMap<NodeId, Removal>,
    /// Those that were believed before another one of the same node came, the newest last.
    beaten: BTreeMap<NodeId, Vec<Removal>>,
}

impl Removals {
    /// Whether this node is no member any more.
    pub fn contains(&self, node: NodeId) -> bool {
        self.holding.contains_key(&node)
    }

    /// The removal of a node.
    pub fn get(&self, node: NodeId) -> Option<&Removal> {
        self.holding.get(&node)
    }

    /// All of them, by node.
    pub fn iter(&self) -> impl Iterator<Item = &Removal> {
        self.holding.values()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.holding.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.holding.is_empty()
    }

    /// Those that were believed once and hold no longer.
    pub fn beaten(&self) -> impl Iterator<Item = &Removal> {
        self.beaten.values().flatten()
    }

    /// Whether a removal of `node` that is or was believed names this heir.
    pub fn named(&self, node: NodeId, heir: NodeId) -> bool {
        let beaten = self.beaten.get(&node).into_iter().flatten();
        let mut all = self.get(node).into_iter().chain(beaten);
        all.any(|removal| removal.heir == heir)
    }

    /// Believes a removal, unless one of the same node holds against it or a removed admin signed it. `true` if it is
    /// news.
    pub fn insert(&mut self, removal: Removal) -> bool {
        let before = self.get(removal.node).map(Removal::version);
        let news = before < Some(removal.version()) && self.counts(&removal);
        if news {
            self.restore(removal);
        }
        news
    }

    /// Believes a removal that was believed before.
    pub fn restore(&mut self, removal: Removal) {
        let node = removal.node;
        let beaten = match self.holding.get(&node).map(Removal::version) {
            Some(before) if before > removal.version() => Some(removal),
            _ => self.holding.insert(node, removal),
        };
        if let Some(beaten) = beaten {
            let all = self.beaten.entry(node).or_default();
            all.retain(|one| *one != beaten);
            all.drain(..(all.len() + 1).saturating_sub(MAX_BEATEN));
            all.push(beaten);
        }
    }

    /// Forgets a removal that could not be saved.
    pub fn undo(&mut self, node: NodeId, version: RecordVersion) {
        let other = |removal: &Removal| removal.version() != version;
        self.holding
            .retain(|of, removal| *of != node || other(removal));
        let beaten = self.beaten.get_mut(&node);
        beaten.into_iter().for_each(|all| all.retain(other));
    }

    /// Whether the signature on a removal counts: none of the admins behind it was removed without keeping it.
    pub fn counts(&self, removal: &Removal) -> bool {
        match &removal.by {
            Remover::Itself(_, certificate) => self.allow(certificate),
            Remover::Admin(chain) => self.holds(chain, removal.node, Kept::Removed),
        }
    }

    /// Whether a certificate counts: none of the admins behind it was removed without keeping it.
    pub fn allow(&self, certificate: &Certificate) -> bool {
        let kept = if certificate.admin {
            Kept::Admin
        } else {
            Kept::Member
        };
        self.holds(&certificate.chain, certificate.node, kept)
    }

    /// Whether the word that gave the cluster a secret counts: none of the admins behind it was removed without keeping it.
    pub fn allow_secret(&self, word: &SecretWord) -> bool {
        self.holds(word.chain(), word.name(), Kept::Secret)
    }

    fn holds(&self, chain: &Chain, node: NodeId, what: Kept) -> bool {
        let made = chain.admins().skip(1).map(|admin| (admin, Kept::Admin));
        let made = made.chain([(node, what)]);
        chain.admins().zip(made).all(|(admin, (node, what))| {
            self.get(admin)
                .is_none_or(|removal| removal.keeps(node, what))
        })
    }

    /// What of an admin's signatures is to be kept when it is removed: all that counts now.
    pub fn kept_of<'a>(
        &'a self,
        admin: NodeId,
        certificates: impl Iterator<Item = &'a Certificate>,
        secret: Option<&SecretWord>,
    ) -> Vec<(NodeId, Kept)> {
        let mut kept = Vec::new();
        if let Some(word) = secret.filter(|word| self.allow_secret(word)) {
            kept.extend(made_by(admin, word.chain(), (word.name(), Kept::Secret)));
        }
        // Who comes later believes that a node has left only if it believes that it was here.
        let left = self.iter().filter_map(|removal| match &removal.by {
            Remover::Itself(_, certificate) => Some(&**certificate),
            Remover::Admin(_) => None,
        });
        let certificates = certificates.chain(left);
        for certificate in certificates.filter(|certificate| self.allow(certificate)) {
            let last = if certificate.admin {
                Kept::Admin
            } else {
                Kept::Member
            };
            kept.extend(made_by(admin, &certificate.chain, (certificate.node, last)));
        }
        for removal in self.iter().filter(|removal| self.counts(removal)) {
            if let Remover::Admin(chain) = &removal.by {
                kept.extend(made_by(admin, chain, (removal.node, Kept::Removed)));
            }
        }
        kept.sort_unstable();
        kept.dedup();
        kept
    }
}

/// What `admin` signed itself in a chain that ends with `last`.
fn made_by(admin: NodeId, chain: &Chain, last: (NodeId, Kept)) -> Vec<(NodeId, Kept)> {
    let made = chain.admins().skip(1).map(|admin| (admin, Kept::Admin));
    let pairs = chain.admins().zip(made.chain([last]));
    pairs
        .filter(|(signer, _)| *signer == admin)
        .map(|(_, made)| made)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::cluster::ClusterKey;
    use super::*;

    fn keys(seed: u8) -> NodeKeys {
        NodeKeys::from_bytes(&[seed; 64])
    }

    fn key() -> ClusterKey {
        ClusterKey::from_bytes(&[9; 32])
    }

    fn remove(node: u8, heir: u8, kept: Vec<(NodeId, Kept)>) -> Removal {
        let (node, heir) = (keys(node).id(), keys(heir).id());
        Removal::by_admin(&Authority::Key(&key()), node, heir, 5, kept).unwrap()
    }

    fn leave(node: u8, certificate: &Certificate, kept: Vec<(NodeId, Kept)>) -> Removal {
        let (heir, cluster) = (keys(9).id(), key().public());
        Removal::by_itself(&keys(node), certificate, &cluster, heir, 5, kept).unwrap()
    }

    fn admitted(node: u8) -> Certificate {
        Authority::Key(&key()).certify(keys(node).id(), false, 1)
    }

    #[test]
    fn only_who_was_a_member_leaves_and_only_an_admin_keeps_something() {
        let (key, cluster) = (key(), key().public());
        let believed = |removal: &Removal| Removal::read(removal.bytes(), &cluster).is_ok();
        assert!(believed(&leave(1, &admitted(1), vec![])));
        assert!(
            !believed(&leave(1, &admitted(2), vec![])),
            "another's certificate"
        );
        let own = keys(2);
        let forged = Certificate {
            node: keys(1).id(),
            ..admitted(2)
        };
        assert!(!believed(&leave(1, &forged, vec![])), "nobody signed it");
        let usurper = Certificate {
            admin: true,
            ..admitted(2)
        };
        let usurper = Authority::of(None, &own, &usurper, cluster).unwrap();
        let made_up = usurper.certify(keys(1).id(), false, 1);
        assert!(!believed(&leave(1, &made_up, vec![])), "a member signed it");
        let kept = vec![(keys(3).id(), Kept::Member)];
        assert!(!believed(&leave(1, &admitted(1), kept.clone())));
        let office = Authority::Key(&key).certify(keys(1).id(), true, 1);
        assert!(believed(&leave(1, &office, kept)));
    }

    #[test]
    fn who_left_before_its_admin_was_removed_has_left() {
        let (key, cluster) = (key(), key().public());
        let office = Authority::Key(&key).certify(keys(1).id(), true, 1);
        let admin = keys(1);
        let authority = Authority::of(None, &admin, &office, cluster).unwrap();
        let known = leave(2, &authority.certify(keys(2).id(), false, 2), vec![]);
        let stolen = leave(3, &authority.certify(keys(3).id(), false, 2), vec![]);
        let mut removals = Removals::default();
        assert!(removals.insert(known.clone()));
        let kept = removals.kept_of(admin.id(), [&office].into_iter(), None);
        let mut later = Removals::default();
        assert!(later.insert(remove(1, 9, kept)));
        assert!(later.insert(known));
        assert!(!later.insert(stolen), "its key makes no members any more");
    }

    #[test]
    fn a_removal_is_read_as_it_was_signed_and_no_byte_may_change() {
        let cluster = key().public();
        let left = leave(1, &admitted(1), vec![]);
        let removed = remove(1, 2, vec![(keys(3).id(), Kept::Admin)]);
        for removal in [left, removed] {
            assert_eq!(
                Removal::read(removal.bytes(), &cluster).as_ref(),
                Ok(&removal)
            );
            for at in 0..removal.bytes().len() {
                let mut bytes = removal.bytes().to_vec();
                bytes[at] ^= 1;
                assert!(Removal::read(&bytes, &cluster).is_err(), "byte {at}");
                assert!(
                    Removal::read(&bytes[..at], &cluster).is_err(),
                    "cut at {at}"
                );
            }
        }
    }

    #[test]
    fn nobody_is_removed_by_another_member_or_cluster() {
        let cluster = key().public();
        let foreign = ClusterKey::from_bytes(&[8; 32]);
        let ids = [1, 2].map(|n| keys(n).id());
        let strange = Removal::by_admin(&Authority::Key(&foreign), ids[0], ids[1], 5, vec![]);
        assert!(Removal::read(strange.unwrap().bytes(), &cluster).is_err());
        let member = Authority::Key(&key()).certify(ids[1], false, 1);
        let forged = Certificate {
            admin: true,
            ..member
        };
        let keys2 = keys(2);
        let usurper = Authority::of(None, &keys2, &forged, cluster).unwrap();
        let usurped = Removal::by_admin(&usurper, ids[0], ids[1], 5, vec![]).unwrap();
        assert!(Removal::read(usurped.bytes(), &cluster).is_err());
        let itself = leave(2, &admitted(2), vec![]);
        let mut other = itself.bytes().to_vec();
        other[1..33].copy_from_slice(ids[0].as_bytes());
        assert!(
            Removal::read(&other, &cluster).is_err(),
            "in another's name"
        );
    }

    #[test]
    fn of_two_removals_of_a_node_the_same_one_holds_whichever_comes_first() {
        let mut all = [2, 3].map(|heir| remove(1, heir, vec![]));
        all.sort_by_key(Removal::version);
        let [loser, winner] = all;
        assert!(loser.version().is_last() && winner.version().is_last());
        let node = winner.node;
        let mut removals = Removals::default();
        assert!(removals.insert(winner.clone()));
        assert!(!removals.insert(loser.clone()) && !removals.insert(winner.clone()));
        assert!(!removals.named(node, loser.heir), "it was never believed");
        let mut other = Removals::default();
        assert!(other.insert(loser.clone()) && other.insert(winner.clone()));
        assert_eq!(other.get(node), Some(&winner));
        assert!(other.named(node, loser.heir) && other.named(node, winner.heir));
        assert_eq!(other.beaten().collect::<Vec<_>>(), [&loser]);
        let mut restored = Removals::default();
        restored.restore(winner.clone());
        restored.restore(loser);
        assert_eq!(restored, other, "in whatever order they were saved");
        restored.undo(node, winner.version());
        assert!(!restored.contains(node));
    }

    #[test]
    fn of_a_removed_admin_s_signatures_only_what_was_known_counts() {
        let (key, cluster) = (key(), key().public());
        let office = Authority::Key(&key).certify(keys(1).id(), true, 1);
        let admin = keys(1);
        let authority = Authority::of(None, &admin, &office, cluster).unwrap();
        let second = authority.certify(keys(2).id(), true, 2);
        let keys2 = keys(2);
        let by_second = Authority::of(None, &keys2, &second, cluster).unwrap();
        let known = by_second.certify(keys(3).id(), false, 3);
        let mut removals = Removals::default();
        let gone = Removal::by_admin(&authority, keys(7).id(), keys(2).id(), 4, vec![]).unwrap();
        assert!(removals.insert(gone.clone()));
        let kept = removals.kept_of(admin.id(), [&office, &second, &known].into_iter(), None);
        let expected = [(keys(2).id(), Kept::Admin), (keys(7).id(), Kept::Removed)];
        assert!(kept.len() == 2 && expected.iter().all(|one| kept.contains(one)));
        let mut late = Removals::default();
        assert!(late.insert(remove(1, 4, kept)));
        assert!(late.insert(gone), "in whatever order they come");
        assert!(late.allow(&second) && late.allow(&known) && late.allow(&office));
        let after = authority.certify(keys(5).id(), false, 9);
        assert!(after.verify(&cluster) && !late.allow(&after));
        let promoted = authority.certify(keys(3).id(), true, 9);
        assert!(!late.allow(&promoted));
        let revenge = Removal::by_admin(&authority, keys(4).id(), keys(2).id(), 9, vec![]);
        assert!(!late.insert(revenge.unwrap()));
        assert!(
            late.allow(&by_second.certify(keys(6).id(), false, 9)),
            "the second stays one"
        );
    }
}
