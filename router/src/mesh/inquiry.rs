//! Asking every living member what it knows of the blocks that a node has, had or gave.
//!
//! An heir asks before it takes anything, and a node whose disk was rolled back asks about itself before it uses
//! anything. One answer is not enough, and neither are all but one: the deed that decides may be known to a single
//! member. So an inquiry ends only when all have answered, those included that only others know of; members that cannot
//! be reached keep it open. "Nobody reported it" is no evidence either, because a gift between two others may be on its
//! way: the newest deed decides, and a donor reports its gifts as well as its titles.
//!
//! What a member says counts as far as it is proven: each deed in an answer with all that leads from it to the genesis,
//! as everywhere else. Without that a single member could keep the addresses of whoever is removed from everybody, by
//! naming owners that there are not. What is not proven is left and counted, and the answer counts without it. A member
//! says which titles it ever had, not only those it uses, so that no block is missed that goes from one to another
//! while they are asked.
//!
//! Only who was asked is heard, and whoever was removed meanwhile is heard no more. Of members that are known here by
//! nobody's word but an answer's, [`MAX_UNKNOWN`] of each answer are waited for, [`PATIENCE`] long: the record of one that
//! lives comes in seconds, and names that somebody made up must not keep addresses from use. An answer that rests on
//! removals which did not come here yet is none: whoever gave it is asked again.
//!
//! ```text
//! inquiry    id 8 | about 32
//! testimony  id 8 | about 32 | heir 32, zero if the node was not removed | sum of all deeds 8 | part 1 | parts 1
//!            | members: count 4, each 32; in the first part | deeds, with chains
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use blake2::{Blake2s256, Digest as _};
use weave_model::{Block, NodeId};

use super::cluster::ClusterPublic;
use super::codec::{Malformed, Reader, Writer};
use super::deed::{Deed, Proofs, Version, covers, subtract};
use super::removal::Removals;

const FIRST_RETRY: Duration = Duration::from_millis(200);
const LAST_RETRY: Duration = Duration::from_secs(2);
/// How many members that are not known here one answer may name.
const MAX_UNKNOWN: usize = 8;
/// How long a member is waited for that is known from an answer only.
const PATIENCE: Duration = Duration::from_secs(600);
const MAX_MEMBERS: usize = 4096;
/// The most deeds in one part, so that it fits a message together with all members.
const MAX_DEEDS: usize = 300;
/// The most parts of a testimony.
const MAX_PARTS: usize = 16;

/// The deeds without those that say nothing beside the others: a newer one covers all their addresses. For
/// [`left_over`] that is the same.
pub fn newest(mut deeds: Vec<Deed>) -> Vec<Deed> {
    deeds.sort_by_key(|deed| std::cmp::Reverse(deed.version));
    let mut kept: Vec<Deed> = Vec::with_capacity(deeds.len());
    for deed in deeds {
        let covered =
            |other: &Deed| other.version > deed.version && covers(other.block, deed.block);
        if !kept.iter().any(covered) {
            kept.push(deed);
        }
    }
    kept
}

/// What one member knows, or a part of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Testimony {
    /// As in the inquiry.
    pub id: u64,
    /// As in the inquiry.
    pub about: NodeId,
    /// Whom the removal names that this member believes; `None` if it knows of none.
    pub heir: Option<NodeId>,
    /// Names what all parts say together: parts of different answers make no whole.
    pub sum: u64,
    /// Which part this is, from 0.
    pub part: u8,
    /// Of how many.
    pub parts: u8,
    /// The living members that it knows, those included that it has just let in.
    pub members: Vec<NodeId>,
    /// Its titles, the deeds that it knows of that node, and what else it has of those addresses, with what proves them.
    pub deeds: Vec<Deed>,
}

impl Testimony {
    /// What a member says, in as many parts as it takes; `None` if that is more than others take.
    pub fn in_parts(
        (id, about): (u64, NodeId),
        heir: Option<NodeId>,
        members: Vec<NodeId>,
        deeds: &[Deed],
    ) -> Option<Vec<Self>> {
        let parts = deeds.len().div_ceil(MAX_DEEDS).max(1);
        if parts > MAX_PARTS || members.len() > MAX_MEMBERS {
            return None;
        }
        let sum = sum(deeds);
        let part = |part: usize| {
            let from = part * MAX_DEEDS;
            let deeds = &deeds[from..deeds.len().min(from + MAX_DEEDS)];
            Self {
                id,
                about,
                heir,
                sum,
                part: part as u8,
                parts: parts as u8,
                members: if part == 0 {
                    members.clone()
                } else {
                    Vec::new()
                },
                deeds: deeds.to_vec(),
            }
        };
        Some((0..parts).map(part).collect())
    }

    /// Appends it.
    pub fn write(&self, out: &mut Writer) {
        out.u64(self.id).bytes(self.about.as_bytes());
        out.bytes(&self.heir.map_or([0; 32], |heir| *heir.as_bytes()));
        out.u64(self.sum).u8(self.part).u8(self.parts);
        out.u32(self.members.len() as u32);
        for member in &self.members {
            out.bytes(member.as_bytes());
        }
        self.deeds.iter().for_each(|deed| deed.write(out));
    }

    /// Reads one.
    pub fn read(bytes: &mut Reader<'_>) -> Result<Self, Malformed> {
        let id = bytes.u64()?;
        let about = NodeId::from_bytes(bytes.array()?);
        let heir = bytes.array()?;
        let sum = bytes.u64()?;
        let (part, parts) = (bytes.u8()?, bytes.u8()?);
        let count = bytes.u32()? as usize;
        if part >= parts || usize::from(parts) > MAX_PARTS || count > MAX_MEMBERS {
            return Err(bytes.malformed());
        }
        let mut members = Vec::new();
        for _ in 0..count {
            members.push(NodeId::from_bytes(bytes.array()?));
        }
        let mut deeds = Vec::new();
        while !bytes.is_empty() {
            if deeds.len() == MAX_DEEDS {
                return Err(bytes.malformed());
            }
            deeds.push(Deed::read(bytes)?);
        }
        Ok(Self {
            id,
            about,
            heir: (heir != [0; 32]).then(|| NodeId::from_bytes(heir)),
            sum,
            part,
            parts,
            members,
            deeds,
        })
    }
}

fn sum(deeds: &[Deed]) -> u64 {
    let mut all = Writer::new();
    deeds.iter().for_each(|deed| deed.write(&mut all));
    let hash = Blake2s256::digest(&all.0);
    hash[..8]
        .iter()
        .fold(0, |sum, byte| sum << 8 | u64::from(*byte))
}

/// The parts of an answer that came so far.
#[derive(Debug)]
struct Coming {
    sum: u64,
    members: Vec<NodeId>,
    parts: Vec<Option<Vec<Deed>>>,
}

/// An inquiry under way.
#[derive(Debug)]
pub struct Inquiry {
    id: u64,
    asked: BTreeSet<NodeId>,
    /// What is proven of each answer.
    answers: BTreeMap<NodeId, Vec<Deed>>,
    coming: BTreeMap<NodeId, Coming>,
    /// Who is known from answers only, and until when it is waited for.
    unknown: BTreeMap<NodeId, Instant>,
    next: Instant,
    wait: Duration,
}

impl Inquiry {
    /// Begins; `id` tells its answers from those to an earlier one.
    pub const fn new(id: u64, now: Instant) -> Self {
        Self {
            id,
            asked: BTreeSet::new(),
            answers: BTreeMap::new(),
            coming: BTreeMap::new(),
            unknown: BTreeMap::new(),
            next: now,
            wait: FIRST_RETRY,
        }
    }

    /// Its id.
    pub const fn id(&self) -> u64 {
        self.id
    }

    /// A member is being asked.
    pub fn ask(&mut self, node: NodeId) {
        self.asked.insert(node);
    }

    /// Whether something that this member says would be news.
    pub fn awaits(&self, from: NodeId, testimony: &Testimony) -> bool {
        testimony.id == self.id && self.asked.contains(&from) && !self.answers.contains_key(&from)
    }

    /// Takes the answer, or a part of it, of a member that is awaited; `known` are the members that are known here. Says
    /// how many of its deeds are not proven, once it is whole; `None` while it is not, or if it has to be given again.
    pub fn answer(
        &mut self,
        from: NodeId,
        testimony: Testimony,
        known: &BTreeSet<NodeId>,
        (cluster, removals): (&ClusterPublic, &Removals),
        now: Instant,
    ) -> Option<usize> {
        let (members, said) = self.put_together(from, testimony)?;
        if said.iter().any(|deed| !deed.has_come_after(removals)) {
            return None;
        }
        let unknown = members.iter().filter(|node| !known.contains(node));
        for node in unknown.take(MAX_UNKNOWN) {
            self.unknown.entry(*node).or_insert(now + PATIENCE);
        }
        let proven = Proofs::new(&said, cluster, removals).all();
        let unproven = said.len() - proven.len();
        self.answers.insert(from, proven);
        // It may name members that were not asked yet.
        (self.next, self.wait) = (now, FIRST_RETRY);
        Some(unproven)
    }

    /// All that a member says, when its last part is here.
    fn put_together(
        &mut self,
        from: NodeId,
        testimony: Testimony,
    ) -> Option<(Vec<NodeId>, Vec<Deed>)> {
        let Testimony {
            sum, part, parts, ..
        } = testimony;
        let anew = || Coming {
            sum,
            members: Vec::new(),
            parts: vec![None; usize::from(parts)],
        };
        let coming = self.coming.entry(from).or_insert_with(anew);
        if (coming.sum, coming.parts.len()) != (sum, usize::from(parts)) {
            *coming = anew();
        }
        *coming.parts.get_mut(usize::from(part))? = Some(testimony.deeds);
        if part == 0 {
            coming.members = testimony.members;
        }
        if coming.parts.iter().any(Option::is_none) {
            return None;
        }
        let coming = self.coming.remove(&from)?;
        let said = coming.parts.into_iter().flatten().flatten();
        Some((coming.members, said.collect()))
    }

    /// Drops the answers of those that are no members any more.
    pub fn forget(&mut self, gone: impl Fn(NodeId) -> bool) {
        self.answers.retain(|node, _| !gone(*node));
        self.coming.retain(|node, _| !gone(*node));
    }

    /// The proven deeds of all answers so far.
    pub fn answers(&self) -> impl Iterator<Item = &Deed> {
        self.answers.values().flatten()
    }

    /// Who has yet to answer: of `known` and of the others that answers name, those that `counts`.
    pub fn missing(
        &self,
        known: impl Iterator<Item = NodeId>,
        counts: impl Fn(NodeId) -> bool,
        now: Instant,
    ) -> BTreeSet<NodeId> {
        let told = self.unknown.iter().filter(|(_, until)| now < **until);
        known
            .chain(told.map(|(node, _)| *node))
            .filter(|node| counts(*node) && !self.answers.contains_key(node))
            .collect()
    }

    /// Whether to ask now, again if nobody has answered since.
    pub fn is_due(&mut self, now: Instant) -> bool {
        let due = now >= self.next;
        if due {
            self.next = now + self.wait;
            self.wait = (self.wait * 2).min(LAST_RETRY);
        }
        due
    }

    /// When [`Inquiry::is_due`] is.
    pub const fn poll_timeout(&self) -> Instant {
        self.next
    }
}

/// What is left for an heir: of each of the removed node's `deeds` the parts that no claim of a higher version covers,
/// with the deed that they come from.
pub fn left_over(deeds: &[Deed], claims: &[(Block, Version)]) -> Vec<(Deed, Block)> {
    let mut deeds = deeds.to_vec();
    deeds.sort_by_key(|deed| std::cmp::Reverse(deed.version));
    let mut left: Vec<(Deed, Block)> = Vec::new();
    for deed in deeds {
        let mut blocks = vec![deed.block];
        let higher = claims.iter().filter(|(_, version)| *version > deed.version);
        let taken = higher.map(|(block, _)| *block);
        for block in taken.chain(left.iter().map(|(_, block)| *block)) {
            blocks = subtract(&blocks, block);
        }
        left.extend(blocks.into_iter().map(|block| (deed, block)));
    }
    left
}

#[cfg(test)]
mod tests {
    use super::super::cluster::ClusterKey;
    use super::*;
    use crate::keys::NodeKeys;

    const NODES: [NodeId; 3] = [
        NodeId::from_bytes([1; 32]),
        NodeId::from_bytes([2; 32]),
        NodeId::from_bytes([3; 32]),
    ];

    fn block(first: u32, bits: u8) -> Block {
        Block::new(first, bits).unwrap()
    }

    fn testimony(id: u64, members: &[NodeId]) -> Testimony {
        said(id, members, &[]).remove(0)
    }

    fn said(id: u64, members: &[NodeId], deeds: &[Deed]) -> Vec<Testimony> {
        let about = (id, NODES[0]);
        Testimony::in_parts(about, Some(NODES[1]), members.to_vec(), deeds).unwrap()
    }

    /// What an inquiry takes of what it awaits.
    fn hear(inquiry: &mut Inquiry, from: NodeId, testimony: Testimony, known: &[NodeId]) {
        let (cluster, none) = (
            ClusterKey::from_bytes(&[4; 32]).public(),
            Removals::default(),
        );
        let known = known.iter().copied().collect();
        if inquiry.awaits(from, &testimony) {
            inquiry.answer(from, testimony, &known, (&cluster, &none), Instant::now());
        }
    }

    #[test]
    fn all_have_to_answer_even_who_is_only_known_to_others() {
        let now = Instant::now();
        let [x, b, c] = NODES;
        let mut inquiry = Inquiry::new(7, now);
        let missing = |inquiry: &Inquiry| {
            let missing = inquiry.missing([b].into_iter(), |node| node != x, now);
            missing.into_iter().collect::<Vec<_>>()
        };
        assert_eq!(missing(&inquiry), [b]);
        hear(&mut inquiry, b, testimony(7, &[]), &[b]);
        assert_eq!(missing(&inquiry), [b], "it was not asked");
        inquiry.ask(b);
        hear(&mut inquiry, b, testimony(6, &[]), &[b]);
        assert_eq!(missing(&inquiry), [b], "an answer to another inquiry");
        hear(&mut inquiry, b, testimony(7, &[x, c]), &[b]);
        assert_eq!(missing(&inquiry), [c]);
        let later = now + LAST_RETRY;
        assert!(inquiry.is_due(later) && !inquiry.is_due(later));
        assert_eq!(inquiry.poll_timeout(), later + FIRST_RETRY);
        inquiry.ask(c);
        hear(&mut inquiry, c, testimony(7, &[b]), &[b]);
        assert!(missing(&inquiry).is_empty());
        inquiry.forget(|node| node == c);
        assert_eq!(missing(&inquiry), [c], "what it said counts no more");
    }

    #[test]
    fn names_that_a_member_made_up_hold_up_little_and_not_for_ever() {
        let now = Instant::now();
        let [_, b, c] = NODES;
        let missing = |inquiry: &Inquiry, now| {
            let missing = inquiry.missing([b, c].into_iter(), |_| true, now);
            missing.into_iter().collect::<Vec<_>>()
        };
        let mut inquiry = Inquiry::new(7, now);
        inquiry.ask(b);
        inquiry.ask(c);
        for first in [20, 120] {
            let strange = (first..first + 100).map(|n| NodeId::from_bytes([n; 32]));
            let told: Vec<NodeId> = [b, c].into_iter().chain(strange).collect();
            hear(&mut inquiry, b, testimony(7, &told), &[b, c]);
        }
        let waited = missing(&inquiry, now);
        assert_eq!(
            waited.len(),
            1 + MAX_UNKNOWN,
            "said twice or not: {waited:?}"
        );
        assert!(waited.contains(&c));
        assert_eq!(
            missing(&inquiry, now + PATIENCE * 2),
            [c],
            "who is known here is waited for"
        );
    }

    #[test]
    fn only_what_is_proven_counts() {
        let [a, x, liar] = [1, 2, 3].map(|byte| NodeKeys::from_bytes(&[byte; 64]));
        let key = ClusterKey::from_bytes(&[4; 32]);
        let (cluster, none) = (key.public(), Removals::default());
        let genesis = Deed::genesis(block(0, 12), a.id(), &key);
        let to_x = genesis.give(block(1024, 10), x.id(), 5, &a, &cluster);
        let robbed = to_x.give(block(1024, 10), liar.id(), 6, &liar, &cluster);
        let unsigned = Deed {
            donor: super::super::deed::Donor::Node(x.public()),
            ..robbed
        };
        let heirless = to_x.inherit(block(1024, 10), 7, &liar, &cluster);
        let now = Instant::now();
        let mut inquiry = Inquiry::new(7, now);
        inquiry.ask(liar.id());
        let told = [genesis, to_x, robbed, unsigned];
        let mut parts = said(7, &[], &told);
        let mut hear = |part: Testimony| {
            let known = BTreeSet::new();
            inquiry.answer(liar.id(), part, &known, (&cluster, &none), now)
        };
        let early = said(7, &[], &[genesis, to_x, heirless]).remove(0);
        assert_eq!(hear(early), None, "that removal is not known here");
        assert_eq!(hear(parts.remove(0)), Some(2));
        let proven: Vec<Deed> = inquiry.answers().copied().collect();
        assert_eq!(proven, [genesis, to_x]);
    }

    #[test]
    fn a_long_answer_counts_when_its_last_part_is_here() {
        let key = ClusterKey::from_bytes(&[4; 32]);
        let [_, b, c] = NODES;
        let many = |count: u32| -> Vec<Deed> {
            let one = Deed::genesis(block(0, 3), b, &key);
            (0..count)
                .map(|n| Deed {
                    block: block(n * 8, 3),
                    ..one
                })
                .collect()
        };
        let about = (7, NODES[0]);
        let most = many((MAX_PARTS * MAX_DEEDS) as u32 + 1);
        assert!(Testimony::in_parts(about, None, vec![], &most).is_none());
        let mut parts = said(7, &[b, c], &many(700));
        assert_eq!(parts.len(), 3);
        let longest = Testimony {
            members: vec![b; MAX_MEMBERS],
            ..parts[0].clone()
        };
        let longest = super::super::message::Message::DeedTestimony(longest).encode();
        assert!(super::super::parts::split(&longest).is_some());
        let mut inquiry = Inquiry::new(7, Instant::now());
        inquiry.ask(b);
        let other = said(7, &[], &many(650)).remove(2);
        let missing = |inquiry: &Inquiry| {
            let missing = inquiry.missing([b].into_iter(), |_| true, Instant::now());
            missing.into_iter().collect::<Vec<_>>()
        };
        let last = parts.remove(1);
        for part in [vec![other], parts].concat() {
            hear(&mut inquiry, b, part, &[b]);
            assert_eq!(
                missing(&inquiry),
                [b],
                "a part of another one makes none whole"
            );
        }
        hear(&mut inquiry, b, last, &[b]);
        assert_eq!(
            missing(&inquiry),
            [c],
            "its members count, whichever part comes last"
        );
    }

    #[test]
    fn what_was_passed_on_is_not_left_over() {
        let [a, x, b] = [1, 2, 3].map(|byte| NodeKeys::from_bytes(&[byte; 64]));
        let key = ClusterKey::from_bytes(&[4; 32]);
        let cluster = key.public();
        let genesis = Deed::genesis(block(0, 12), a.id(), &key);
        let to_x = genesis.give(block(1024, 10), x.id(), 5, &a, &cluster);
        let to_b = to_x.give(block(1024, 8), b.id(), 6, &x, &cluster);
        let back = to_b.give(block(1024, 7), x.id(), 7, &b, &cluster);
        let claims = [&genesis, &to_b].map(|deed| (deed.block, deed.version));
        let left = left_over(&[to_x, back], &claims);
        let blocks: Vec<(u64, Block)> = left
            .iter()
            .map(|(deed, block)| (deed.version.counter, *block))
            .collect();
        assert_eq!(
            blocks,
            [
                (4, block(1024, 7)),
                (2, block(1280, 8)),
                (2, block(1536, 9))
            ]
        );
    }

    #[test]
    fn a_testimony_is_read_as_it_was_written() {
        let key = ClusterKey::from_bytes(&[4; 32]);
        let genesis = Deed::genesis(block(0, 12), NODES[0], &key);
        let whole = Testimony {
            heir: None,
            ..said(9, &NODES, &[genesis]).remove(0)
        };
        let mut bytes = Writer::new();
        whole.write(&mut bytes);
        let read = |bytes: &[u8]| Testimony::read(&mut Reader::new(bytes, "testimony"));
        assert_eq!(read(&bytes.0).as_ref(), Ok(&whole));
        let cut = (0..bytes.0.len()).filter(|at| read(&bytes.0[..*at]).is_ok());
        assert_eq!(cut.count(), 1, "only before the deeds");
    }
}
