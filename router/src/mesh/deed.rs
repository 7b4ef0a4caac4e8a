//! A deed: the signed word of a block's owner that the block now belongs to another node.
//!
//! The genesis deed is signed by the cluster and gives the first node the whole range. Every other deed is signed by
//! the node that owned the block before, and is true only together with the deed by which that node came to own it,
//! and so on to the genesis: a *chain*, as long as the block has had owners. So any member can check any claim by
//! itself, and a node can give away nothing that it never had. Where two deeds overlap the higher version holds. The
//! counter says how many hands the block went through, one more with each: nobody outbids the rightful owner by counting
//! higher than its title allows. The donor's boot nonce decides between two gifts of the same block that a donor made
//! before and after its disk was rolled back.
//!
//! A block can change hands [`MAX_HANDS`] times and a gift has at least 8 addresses, so what a member can make others
//! remember is bounded by what it owns.
//!
//! Where nodes come and go for months, each adds two hands: a block is given, and comes back. So the node that has the
//! cluster's key *renews* what came back to it: it signs a deed like the genesis for the whole of the neighbouring blocks
//! that came to it since it started, whatever titles they had. A renewal proves itself, begins a chain anew, and has a version above all
//! that these addresses ever had, so what came before it is void and may be forgotten. Nobody trusts anybody more for it:
//! who has that key gave the whole range, makes the members and names the heirs, and nobody else can sign one. That such
//! a node renews only what is its own at that moment is checked by itself alone, as what it gives is by every donor.
//!
//! A node that was removed gives nothing any more. Its heir signs the deed itself, and it is true because the removal
//! names that heir; so whoever checks it must know of the removal.

use weave_model::{Block, NodeId};

use super::cluster::{ClusterKey, ClusterPublic};
use super::codec::{Malformed, Reader, Writer};
use super::removal::Removals;
use crate::keys::{NodeKeys, NodePublic};

/// How many hands a block goes through until it is renewed, the first owner's among them: a chain of 32 deeds leads to
/// the genesis or a renewal. A block that went through so many stays with whoever has it.
pub const MAX_HANDS: u64 = 33;
/// The low bits of a counter say how many hands there were since the renewal that the others count.
const HANDS: u32 = 8;
/// The binary logarithm of the smallest gift: fewer addresses would not be worth a deed.
pub const MIN_BITS: u8 = 3;

/// Which of two deeds of the same addresses holds: the higher, by counter and then by boot nonce.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    /// How many times these addresses have changed hands; 1 in the genesis deed. One more with each gift; with each
    /// renewal the next multiple of 256, and 1.
    pub counter: u64,
    /// The donor's boot nonce when it signed; 0 in the genesis deed.
    pub boot: u64,
}

impl Version {
    /// How many hands these addresses went through since they were renewed, this owner's among them.
    pub const fn hands(self) -> u64 {
        self.counter & ((1 << HANDS) - 1)
    }
}

/// Who gave the block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Donor {
    /// The cluster, at its beginning or with a renewal.
    Cluster,
    /// The former owner.
    Node(NodePublic),
    /// Nobody any more: the heir takes what the removed node `of` owned.
    Heir {
        /// Who owned it.
        of: NodeId,
        /// The heir, which is the new owner.
        public: NodePublic,
    },
}

/// One deed.
///
/// 182 bytes: first offset 4 | bits 1 | owner 32 | counter 8 | boot 8 | donor's kind 1 (0 cluster, 1 node, 2 heir) |
/// donor's or heir's X25519 key 32 | its Ed25519 key 32 (both 0 for the cluster) | signature 64 over "weave deed v1", the
/// cluster's id and all before. For an heir the id of the removed node, 32 bytes more, stands before the signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deed {
    /// The addresses.
    pub block: Block,
    /// The new owner.
    pub owner: NodeId,
    /// Its rank among deeds of the same addresses.
    pub version: Version,
    /// Who signed it.
    pub donor: Donor,
    /// The donor's signature.
    pub signature: [u8; 64],
}

impl Deed {
    /// Bytes of [`Deed::write`], at most.
    pub const MAX_LEN: usize = 214;

    /// The deed that gives the whole range to the cluster's first node.
    pub fn genesis(block: Block, owner: NodeId, key: &ClusterKey) -> Self {
        Self::by_cluster(block, owner, 0, 0, key)
    }

    /// The deed by which the owner of a block, which has the cluster's key, holds it whatever happened to it before;
    /// `last` is the highest counter that any of these addresses had. Nobody who had them before outbids it: a chain has
    /// less than 256 hands.
    pub fn renewal(block: Block, owner: NodeId, last: u64, boot: u64, key: &ClusterKey) -> Self {
        Self::by_cluster(block, owner, (last >> HANDS) + 1, boot, key)
    }

    fn by_cluster(block: Block, owner: NodeId, renewals: u64, boot: u64, key: &ClusterKey) -> Self {
        let version = Version {
            counter: (renewals << HANDS) + 1,
            boot,
        };
        let mut deed = Self {
            block,
            owner,
            version,
            donor: Donor::Cluster,
            signature: [0; 64],
        };
        deed.signature = key.sign(&deed.message(key.public().id()));
        deed
    }

    /// Gives `block`, a part of this deed's, from its owner (`keys`) to another node.
    pub fn give(
        &self,
        block: Block,
        owner: NodeId,
        boot: u64,
        keys: &NodeKeys,
        cluster: &ClusterPublic,
    ) -> Self {
        let version = Version {
            counter: self.version.counter + 1,
            boot,
        };
        let donor = Donor::Node(keys.public());
        Self {
            block,
            owner,
            version,
            donor,
            signature: [0; 64],
        }
        .signed(keys, cluster)
    }

    /// Takes `block`, a part of what this deed gave to a node that was removed, as its heir.
    pub fn inherit(
        &self,
        block: Block,
        boot: u64,
        keys: &NodeKeys,
        cluster: &ClusterPublic,
    ) -> Self {
        let public = keys.public();
        let owner = public.id();
        Self {
            donor: Donor::Heir {
                of: self.owner,
                public,
            },
            ..self.give(block, owner, boot, keys, cluster)
        }
        .signed(keys, cluster)
    }

    /// The same gift, signed again by its donor in a later boot.
    pub fn reissued(&self, boot: u64, keys: &NodeKeys, cluster: &ClusterPublic) -> Self {
        let version = Version {
            counter: self.version.counter,
            boot,
        };
        Self { version, ..*self }.signed(keys, cluster)
    }

    fn signed(mut self, keys: &NodeKeys, cluster: &ClusterPublic) -> Self {
        self.signature = keys.sign(&self.message(cluster.id()));
        self
    }

    /// Whether the donor signed it, as far as it may sign at all.
    fn verify(&self, cluster: &ClusterPublic) -> bool {
        let message = self.message(cluster.id());
        let hands = self.version.hands();
        let gift = (2..=MAX_HANDS).contains(&hands) && self.block.bits() >= MIN_BITS;
        match &self.donor {
            Donor::Cluster => hands == 1 && cluster.verify(&message, &self.signature),
            Donor::Node(public) => gift && public.verify(&message, &self.signature),
            Donor::Heir { public, .. } => {
                gift && public.id() == self.owner && public.verify(&message, &self.signature)
            }
        }
    }

    /// Whether `parent` may be the deed by which this one's donor owned the block.
    fn follows(&self, parent: &Self) -> bool {
        let donor = match &self.donor {
            Donor::Cluster => return false,
            Donor::Node(public) => public.id(),
            Donor::Heir { of, .. } => *of,
        };
        parent.owner == donor
            && covers(parent.block, self.block)
            && parent.version.counter.checked_add(1) == Some(self.version.counter)
    }

    /// The deeds in `pool` that lead from this one to the genesis or a renewal, nearest first; `None` if the chain is
    /// broken. For pools of deeds that were proven before: no signature is checked.
    pub fn chain(&self, pool: &[Self]) -> Option<Vec<Self>> {
        let mut chain: Vec<Self> = Vec::new();
        while chain.last().unwrap_or(self).donor != Donor::Cluster {
            chain.push(chain.last().unwrap_or(self).parent(pool)?);
        }
        Some(chain)
    }

    /// The first of those in [`Deed::chain`].
    pub fn parent(&self, pool: &[Self]) -> Option<Self> {
        let parents = pool.iter().filter(|deed| self.follows(deed));
        parents.min_by_key(|deed| deed.version).copied()
    }

    /// Whether the removal that it rests on, if it does on one, is known.
    pub fn has_come_after(&self, removals: &Removals) -> bool {
        match &self.donor {
            Donor::Cluster | Donor::Node(_) => true,
            Donor::Heir { of, .. } => removals.contains(*of),
        }
    }

    /// Whether every signature from this deed to the genesis of `cluster` is right, and every heir is the one that the
    /// removal names; the other deeds are taken from `pool`.
    pub fn proven(&self, pool: &[Self], cluster: &ClusterPublic, removals: &Removals) -> bool {
        Proofs::new(pool, cluster, removals).chain(self).is_some()
    }

    fn is_heir_s(&self, removals: &Removals) -> bool {
        match &self.donor {
            Donor::Cluster | Donor::Node(_) => true,
            Donor::Heir { of, .. } => removals.named(*of, self.owner),
        }
    }

    /// Appends the deed.
    pub fn write(&self, out: &mut Writer) {
        self.write_head(out);
        out.bytes(&self.signature);
    }

    fn write_head(&self, out: &mut Writer) {
        write_block(self.block, out);
        out.bytes(self.owner.as_bytes())
            .u64(self.version.counter)
            .u64(self.version.boot);
        match &self.donor {
            Donor::Cluster => out.u8(0).bytes(&[0; 64]),
            Donor::Node(public) => out.u8(1).bytes(&public.dh).bytes(&public.sign),
            Donor::Heir { of, public } => {
                let out = out.u8(2).bytes(&public.dh).bytes(&public.sign);
                out.bytes(of.as_bytes())
            }
        };
    }

    /// Reads a deed; its signature is not checked yet.
    pub fn read(bytes: &mut Reader<'_>) -> Result<Self, Malformed> {
        let block = read_block(bytes)?;
        let owner = NodeId::from_bytes(bytes.array()?);
        let version = Version {
            counter: bytes.u64()?,
            boot: bytes.u64()?,
        };
        let kind = bytes.u8()?;
        let public = NodePublic {
            dh: bytes.array()?,
            sign: bytes.array()?,
        };
        let donor = match kind {
            0 if public.dh == [0; 32] && public.sign == [0; 32] => Donor::Cluster,
            1 => Donor::Node(public),
            2 => Donor::Heir {
                of: NodeId::from_bytes(bytes.array()?),
                public,
            },
            _ => return Err(bytes.malformed()),
        };
        Ok(Self {
            block,
            owner,
            version,
            donor,
            signature: bytes.array()?,
        })
    }

    fn message(&self, cluster: [u8; 32]) -> Vec<u8> {
        let mut message = Writer::new();
        message.bytes(b"weave deed v1").bytes(&cluster);
        self.write_head(&mut message);
        message.0
    }
}

/// Proves deeds by a pool of deeds of which any may be false; each signature in the pool is checked once at most,
/// however many deeds are to be proven.
#[derive(Debug)]
pub struct Proofs<'a> {
    pool: &'a [Deed],
    words: Vec<Word>,
    cluster: &'a ClusterPublic,
    removals: &'a Removals,
}

/// What is known of a deed in a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Word {
    Unread,
    /// It is false, or nothing true leads from it to the genesis.
    Void,
    /// It is the genesis, or a renewal.
    First,
    /// It is true, and follows from the one at this place.
    After(usize),
}

impl<'a> Proofs<'a> {
    /// Nothing is proven yet.
    pub fn new(pool: &'a [Deed], cluster: &'a ClusterPublic, removals: &'a Removals) -> Self {
        Self {
            pool,
            words: vec![Word::Unread; pool.len()],
            cluster,
            removals,
        }
    }

    /// The deeds of the pool that lead from `deed` to the genesis, nearest first; `None` if that one or all that it
    /// could follow from are false.
    pub fn chain(&mut self, deed: &Deed) -> Option<Vec<Deed>> {
        let mut chain = Vec::new();
        let mut word = self.read(deed);
        while let Word::After(at) = word {
            chain.push(self.pool[at]);
            word = self.words[at];
        }
        (word == Word::First).then_some(chain)
    }

    /// All of the pool that is proven by it.
    pub fn all(mut self) -> Vec<Deed> {
        let pool = self.pool;
        for (at, deed) in pool.iter().enumerate() {
            if self.words[at] == Word::Unread {
                self.words[at] = self.read(deed);
            }
        }
        let all = pool.iter().zip(&self.words);
        let proven = all.filter(|(_, word)| **word != Word::Void);
        proven.map(|(deed, _)| *deed).collect()
    }

    /// The hands are one less with each step, so it ends after [`MAX_HANDS`] of them.
    fn read(&mut self, deed: &Deed) -> Word {
        if !deed.verify(self.cluster) || !deed.is_heir_s(self.removals) {
            return Word::Void;
        }
        if deed.donor == Donor::Cluster {
            return Word::First;
        }
        for at in 0..self.pool.len() {
            let parent = self.pool[at];
            if !deed.follows(&parent) {
                continue;
            }
            if self.words[at] == Word::Unread {
                self.words[at] = self.read(&parent);
            }
            if self.words[at] != Word::Void {
                return Word::After(at);
            }
        }
        Word::Void
    }
}

/// Appends a version: counter, then boot.
pub fn write_version(version: Version, out: &mut Writer) {
    out.u64(version.counter).u64(version.boot);
}

/// Reads a version.
pub fn read_version(bytes: &mut Reader<'_>) -> Result<Version, Malformed> {
    Ok(Version {
        counter: bytes.u64()?,
        boot: bytes.u64()?,
    })
}

/// Appends a block: first offset, bits.
pub fn write_block(block: Block, out: &mut Writer) {
    out.u32(block.first()).u8(block.bits());
}

/// Reads a block.
pub fn read_block(bytes: &mut Reader<'_>) -> Result<Block, Malformed> {
    let (first, bits) = (bytes.u32()?, bytes.u8()?);
    Block::new(first, bits).ok_or_else(|| bytes.malformed())
}

/// Whether every offset of `inner` lies in `outer`.
pub const fn covers(outer: Block, inner: Block) -> bool {
    outer.contains(inner.first()) && outer.contains(inner.last())
}

/// Whether two blocks have offsets in common.
pub const fn meet(one: Block, other: Block) -> bool {
    one.first() <= other.last() && other.first() <= one.last()
}

/// The same offsets in as few blocks as there can be, ascending. `blocks` do not overlap.
pub fn joined(mut blocks: Vec<Block>) -> Vec<Block> {
    blocks.sort_unstable();
    let mut whole: Vec<Block> = Vec::with_capacity(blocks.len());
    for mut block in blocks {
        while let Some(low) = whole.last() {
            let both = Block::new(low.first(), low.bits() + 1);
            match both.filter(|both| both.halves() == Some((*low, block))) {
                Some(both) => (block, _) = (both, whole.pop()),
                None => break,
            }
        }
        whole.push(block);
    }
    whole
}

/// Takes the offsets of `cut` out of `blocks`, halving what is only partly cut.
pub fn subtract(blocks: &[Block], cut: Block) -> Vec<Block> {
    let mut left = Vec::with_capacity(blocks.len());
    let mut todo: Vec<Block> = blocks.iter().rev().copied().collect();
    while let Some(block) = todo.pop() {
        if covers(cut, block) {
            continue;
        }
        match block.halves() {
            Some((low, high)) if covers(block, cut) => todo.extend([high, low]),
            _ => left.push(block),
        }
    }
    left
}

/// Offsets from `first` to `last` and what they are; see [`paint`].
pub type Run<T> = (u32, u32, T);

/// Lays blocks over one another, the one with the lowest version first (of equals, the first in `layers`), and returns
/// what is seen from above: ascending runs that do not overlap, neighbours with the same value joined.
pub fn paint<T: Copy + PartialEq>(mut layers: Vec<(Block, Version, T)>) -> Vec<Run<T>> {
    layers.sort_by_key(|layer| layer.1);
    let mut runs: Vec<Run<T>> = Vec::new();
    for (block, _, value) in layers {
        let (first, last) = (block.first(), block.last());
        let start = runs.partition_point(|run| run.1 < first);
        let end = runs.partition_point(|run| run.0 <= last);
        let mut over = Vec::with_capacity(3);
        if let Some(run) = runs.get(start).filter(|run| start < end && run.0 < first) {
            over.push((run.0, first - 1, run.2));
        }
        over.push((first, last, value));
        if let Some(run) = runs[start..end].last().filter(|run| run.1 > last) {
            over.push((last + 1, run.1, run.2));
        }
        runs.splice(start..end, over);
    }
    runs.dedup_by(|next, run| {
        let joined = run.1 + 1 == next.0 && run.2 == next.2;
        if joined {
            run.1 = next.1;
        }
        joined
    });
    runs
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::authority::Authority;
    use super::super::removal::Removal;
    use super::*;

    fn block(first: u32, bits: u8) -> Block {
        Block::new(first, bits).unwrap()
    }

    fn keys(seed: u8) -> NodeKeys {
        NodeKeys::from_bytes(&[seed; 64])
    }

    fn none() -> Removals {
        Removals::default()
    }

    #[test]
    fn an_heir_takes_what_a_removed_node_had_and_nobody_else_does() {
        let key = ClusterKey::from_bytes(&[1; 32]);
        let cluster = key.public();
        let (a, b, c) = (keys(1), keys(2), keys(3));
        let genesis = Deed::genesis(block(0, 12), a.id(), &key);
        let to_b = genesis.give(block(1024, 10), b.id(), 77, &a, &cluster);
        let pool = [genesis, to_b];
        let taken = to_b.inherit(block(1024, 9), 5, &c, &cluster);
        assert_eq!(taken.version.counter, to_b.version.counter + 1);
        assert!(
            !taken.proven(&pool, &cluster, &none()),
            "nobody was removed"
        );
        let by = Authority::Key(&key);
        let removals = |heir| {
            let mut removals = Removals::default();
            removals.insert(Removal::by_admin(&by, b.id(), heir, 9, vec![]).unwrap());
            removals
        };
        assert!(taken.proven(&pool, &cluster, &removals(c.id())));
        assert!(
            !taken.proven(&pool, &cluster, &removals(a.id())),
            "another heir"
        );
        let too_much = to_b.inherit(block(0, 11), 5, &c, &cluster);
        assert!(!too_much.proven(&pool, &cluster, &removals(c.id())));
        let passed_on = taken.give(block(1024, 8), a.id(), 6, &c, &cluster);
        let pool = [genesis, to_b, taken];
        assert!(passed_on.proven(&pool, &cluster, &removals(c.id())));
        let mut bytes = Writer::new();
        taken.write(&mut bytes);
        assert_eq!(bytes.0.len(), Deed::MAX_LEN);
        assert_eq!(Deed::read(&mut Reader::new(&bytes.0, "deed")), Ok(taken));
    }

    #[test]
    fn a_chain_leads_to_the_genesis() {
        let key = ClusterKey::from_bytes(&[1; 32]);
        let cluster = key.public();
        let (a, b, c) = (keys(1), keys(2), keys(3));
        let genesis = Deed::genesis(block(0, 12), a.id(), &key);
        let to_b = genesis.give(block(1024, 10), b.id(), 77, &a, &cluster);
        let to_c = to_b.give(block(1024, 8), c.id(), 88, &b, &cluster);
        let pool = [genesis, to_b];
        assert!(to_c.proven(&pool, &cluster, &none()));
        assert_eq!(to_c.chain(&pool), Some(vec![to_b, genesis]));
        assert!(!to_c.proven(&[to_b], &cluster, &none()), "no genesis");
        assert!(
            !to_c.proven(&[genesis], &cluster, &none()),
            "b never had it"
        );
        assert!(
            !to_c.proven(&pool, &ClusterKey::from_bytes(&[2; 32]).public(), &none()),
            "another cluster"
        );
        let mut bytes = Writer::new();
        to_c.write(&mut bytes);
        assert_eq!(bytes.0.len(), 182);
        assert_eq!(Deed::read(&mut Reader::new(&bytes.0, "deed")), Ok(to_c));
    }

    #[test]
    fn nobody_gives_what_it_never_had() {
        let key = ClusterKey::from_bytes(&[1; 32]);
        let cluster = key.public();
        let (a, b, c) = (keys(1), keys(2), keys(3));
        let genesis = Deed::genesis(block(0, 12), a.id(), &key);
        let to_b = genesis.give(block(1024, 10), b.id(), 77, &a, &cluster);
        let pool = [genesis, to_b];
        let too_much = to_b.give(block(0, 11), c.id(), 88, &b, &cluster);
        assert!(
            !too_much.proven(&pool, &cluster, &none()),
            "more than it has"
        );
        let stolen = genesis.give(block(0, 10), c.id(), 88, &c, &cluster);
        assert!(
            !stolen.proven(&pool, &cluster, &none()),
            "from the first node, signed by another"
        );
        let renamed = Deed {
            owner: c.id(),
            ..to_b
        };
        assert!(
            !renamed.proven(&pool, &cluster, &none()),
            "changed after it was signed"
        );
        let own = Deed {
            donor: Donor::Cluster,
            version: Version {
                counter: 1,
                boot: 0,
            },
            ..to_b
        };
        assert!(
            !own.proven(&pool, &cluster, &none()),
            "in the cluster's name"
        );
    }

    #[test]
    fn nobody_outbids_by_counting_higher() {
        let key = ClusterKey::from_bytes(&[1; 32]);
        let cluster = key.public();
        let (a, b, c) = (keys(1), keys(2), keys(3));
        let genesis = Deed::genesis(block(0, 12), a.id(), &key);
        let to_b = genesis.give(block(0, 10), b.id(), 7, &a, &cluster);
        let counted = |counter| {
            let version = Version { counter, boot: 7 };
            let deed = Deed {
                version,
                owner: c.id(),
                ..to_b
            };
            deed.signed(&a, &cluster)
        };
        for counter in [0, 1, 3, 40, u64::MAX] {
            let deed = counted(counter);
            assert!(!deed.proven(&[genesis], &cluster, &none()), "{counter}");
        }
        assert!(counted(2).proven(&[genesis], &cluster, &none()));
        let too_small = genesis.give(block(8, 2), c.id(), 7, &a, &cluster);
        assert!(!too_small.proven(&[genesis], &cluster, &none()));
    }

    #[test]
    fn a_block_goes_through_so_many_hands_and_no_more() {
        let key = ClusterKey::from_bytes(&[1; 32]);
        let cluster = key.public();
        let hands = [keys(1), keys(2)];
        let mut pool = vec![Deed::genesis(block(0, 12), hands[0].id(), &key)];
        for n in 2..=MAX_HANDS + 1 {
            let (from, to) = (&hands[n as usize % 2], &hands[(n as usize + 1) % 2]);
            let deed = pool[0].give(block(0, 12), to.id(), n, from, &cluster);
            assert_eq!(deed.proven(&pool, &cluster, &none()), n <= MAX_HANDS, "{n}");
            pool.insert(0, deed);
        }
    }

    #[test]
    fn a_false_deed_in_the_pool_hides_no_true_one() {
        let key = ClusterKey::from_bytes(&[1; 32]);
        let cluster = key.public();
        let (a, b, c, liar) = (keys(1), keys(2), keys(3), keys(4));
        let genesis = Deed::genesis(block(0, 12), a.id(), &key);
        let to_b = genesis.give(block(1024, 10), b.id(), 77, &a, &cluster);
        let to_c = to_b.give(block(1024, 8), c.id(), 88, &b, &cluster);
        // Both have a lower version than the true one: a liar signs what it never had, and one is not signed at all.
        let lie = genesis.give(block(1024, 10), b.id(), 1, &liar, &cluster);
        let unsigned = Deed {
            version: Version {
                boot: 2,
                ..to_b.version
            },
            ..to_b
        };
        let pool = [lie, unsigned, to_b, genesis];
        let chain = Proofs::new(&pool, &cluster, &none()).chain(&to_c);
        assert_eq!(chain, Some(vec![to_b, genesis]));
    }

    #[test]
    fn what_is_cut_leaves_halves() {
        assert_eq!(
            subtract(&[block(0, 3)], block(4, 1)),
            [block(0, 2), block(6, 1)]
        );
        assert_eq!(
            subtract(&[block(0, 3), block(8, 0)], block(0, 3)),
            [block(8, 0)]
        );
        assert_eq!(subtract(&[block(0, 3)], block(8, 3)), [block(0, 3)]);
        assert_eq!(subtract(&[block(4, 1)], block(0, 3)), []);
    }

    #[test]
    fn a_renewal_begins_a_chain_anew_and_only_the_cluster_signs_one() {
        let key = ClusterKey::from_bytes(&[1; 32]);
        let cluster = key.public();
        let (a, b) = (keys(1), keys(2));
        let genesis = Deed::genesis(block(0, 12), a.id(), &key);
        let to_b = genesis.give(block(1024, 10), b.id(), 7, &a, &cluster);
        let back = to_b.give(block(1024, 10), a.id(), 8, &b, &cluster);
        let renewed = Deed::renewal(block(0, 11), a.id(), back.version.counter, 9, &key);
        assert!(renewed.version > back.version && renewed.version.hands() == 1);
        assert!(renewed.proven(&[], &cluster, &none()));
        let again = renewed.give(block(1024, 10), b.id(), 9, &a, &cluster);
        assert!(again.version > renewed.version && again.proven(&[renewed], &cluster, &none()));
        assert!(
            !again.proven(&[genesis], &cluster, &none()),
            "of another chain"
        );
        let later = Deed::renewal(block(0, 11), a.id(), again.version.counter, 9, &key);
        assert!(later.version > again.version);
        let usurped = ClusterKey::from_bytes(&[2; 32]);
        let usurped = Deed::renewal(block(0, 11), b.id(), 3, 9, &usurped);
        assert!(!usurped.proven(&[genesis], &cluster, &none()));
        // A member that counts like a renewal.
        let counted = Deed {
            version: renewed.version,
            ..to_b
        };
        let counted = counted.signed(&a, &cluster);
        assert!(!counted.proven(&[genesis, renewed], &cluster, &none()));
    }

    #[test]
    fn halves_are_joined_as_far_as_they_are_neighbours() {
        let parts = vec![
            block(4, 2),
            block(0, 2),
            block(8, 2),
            block(14, 1),
            block(12, 1),
        ];
        assert_eq!(joined(parts), [block(0, 4)]);
        assert_eq!(
            joined(vec![block(4, 2), block(8, 2)]),
            [block(4, 2), block(8, 2)],
            "neighbours, but no halves of one block"
        );
    }

    fn any_block() -> impl Strategy<Value = Block> {
        (0..64u32, 0..5u8).prop_map(|(first, bits)| block(first >> bits << bits, bits))
    }

    proptest! {
        #[test]
        fn subtract_agrees_with_sets(from in any_block(), cut in any_block()) {
            let left = subtract(&[from], cut);
            for offset in 0..96 {
                let expected = from.contains(offset) && !cut.contains(offset);
                prop_assert_eq!(left.iter().filter(|block| block.contains(offset)).count(), usize::from(expected));
            }
        }

        #[test]
        fn the_highest_version_is_seen(layers in proptest::collection::vec(any_block(), 0..12)) {
            let layers: Vec<(Block, Version, usize)> = layers
                .into_iter()
                .enumerate()
                .map(|(n, block)| (block, Version { counter: 5, boot: (n as u64 * 7) % 11 }, n))
                .collect();
            let runs = paint(layers.clone());
            prop_assert!(runs.windows(2).all(|pair| pair[0].1 < pair[1].0));
            for offset in 0..96 {
                let top = layers.iter().filter(|layer| layer.0.contains(offset)).max_by_key(|layer| layer.1);
                let seen = runs.iter().find(|run| (run.0..=run.1).contains(&offset));
                prop_assert_eq!(top.map(|layer| layer.1), seen.map(|run| layers[run.2].1));
            }
        }
    }
}
