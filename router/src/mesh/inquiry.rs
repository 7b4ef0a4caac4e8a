//! Asking every living member what it knows of the blocks that a node has, had or gave.
//!
//! An heir asks before it takes anything, and a node whose disk was rolled back asks about itself before it uses
//! anything. One answer is not enough, and neither are all but one: the deed that decides may be known to a single
//! member. So an inquiry ends only when all have answered, those included that only others know of; members that cannot
//! be reached keep it open. "Nobody reported it" is no evidence either, because a gift between two others may be on its
//! way: the newest deed decides, and a donor reports its gifts as well as its titles.
//!
//! Only who was asked is heard, and whoever was removed meanwhile is heard no more. Of members that are known here by
//! nobody's word but an answer's, [`MAX_UNKNOWN`] of each answer are waited for, [`PATIENCE`] long: the record of one that
//! lives comes in seconds, and names that somebody made up must not keep addresses from use.
//!
//! ```text
//! inquiry    id 8 | about 32
//! testimony  id 8 | about 32 | heir 32, zero if the node was not removed | members: count 4, each 32
//!            | claims: count 4, each first offset 4, bits 1, owner 32, counter 8, boot 8 | deeds of the node, with chains
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use weave_model::{Block, NodeId};

use super::codec::{Malformed, Reader, Writer};
use super::deed::{Deed, MAX_HANDS, Version, covers, read_block, subtract, write_block};

const FIRST_RETRY: Duration = Duration::from_millis(200);
const LAST_RETRY: Duration = Duration::from_secs(2);
/// How many members that are not known here one answer may name.
const MAX_UNKNOWN: usize = 8;
/// How long a member is waited for that is known from an answer only.
const PATIENCE: Duration = Duration::from_secs(600);
const MAX_MEMBERS: usize = 4096;
const MAX_CLAIMS: usize = 4000;
const MAX_DEEDS: usize = 1000;

/// A deed without its signature: enough to know that a block is another's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The addresses.
    pub block: Block,
    /// Who owns them, or owned them.
    pub owner: NodeId,
    /// By which version.
    pub version: Version,
}

impl From<&Deed> for Claim {
    fn from(deed: &Deed) -> Self {
        Self {
            block: deed.block,
            owner: deed.owner,
            version: deed.version,
        }
    }
}

/// The claims without those that say nothing beside the others: a newer one covers all their addresses. For
/// [`left_over`] that is the same.
pub fn newest(mut claims: Vec<Claim>) -> Vec<Claim> {
    claims.sort_by_key(|claim| std::cmp::Reverse(claim.version));
    let mut kept: Vec<Claim> = Vec::with_capacity(claims.len());
    for claim in claims {
        let covered =
            |other: &Claim| other.version > claim.version && covers(other.block, claim.block);
        if !kept.iter().any(covered) {
            kept.push(claim);
        }
    }
    kept
}

/// What one member knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Testimony {
    /// As in the inquiry.
    pub id: u64,
    /// As in the inquiry.
    pub about: NodeId,
    /// Whom the removal names that this member believes; `None` if it knows of none.
    pub heir: Option<NodeId>,
    /// The living members that it knows, those included that it has just let in.
    pub members: Vec<NodeId>,
    /// Its titles and gifts, and those of removed nodes that it remembers.
    pub claims: Vec<Claim>,
    /// The deeds that it knows of that node, with what proves them.
    pub deeds: Vec<Deed>,
}

impl Testimony {
    /// Whether others take it: no list is longer than they read.
    pub fn fits(&self) -> bool {
        self.members.len() <= MAX_MEMBERS
            && self.claims.len() <= MAX_CLAIMS
            && self.deeds.len() <= MAX_DEEDS
    }

    /// Appends it.
    pub fn write(&self, out: &mut Writer) {
        out.u64(self.id).bytes(self.about.as_bytes());
        out.bytes(&self.heir.map_or([0; 32], |heir| *heir.as_bytes()));
        out.u32(self.members.len() as u32);
        for member in &self.members {
            out.bytes(member.as_bytes());
        }
        out.u32(self.claims.len() as u32);
        for claim in &self.claims {
            write_block(claim.block, out);
            out.bytes(claim.owner.as_bytes());
            out.u64(claim.version.counter).u64(claim.version.boot);
        }
        self.deeds.iter().for_each(|deed| deed.write(out));
    }

    /// Reads one.
    pub fn read(bytes: &mut Reader<'_>) -> Result<Self, Malformed> {
        let id = bytes.u64()?;
        let about = NodeId::from_bytes(bytes.array()?);
        let heir = bytes.array()?;
        let mut members = Vec::new();
        for _ in 0..count(bytes, MAX_MEMBERS)? {
            members.push(NodeId::from_bytes(bytes.array()?));
        }
        let mut claims = Vec::new();
        for _ in 0..count(bytes, MAX_CLAIMS)? {
            claims.push(Claim {
                block: read_block(bytes)?,
                owner: NodeId::from_bytes(bytes.array()?),
                version: Version {
                    counter: bytes.u64()?,
                    boot: bytes.u64()?,
                },
            });
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
            members,
            claims,
            deeds,
        })
    }
}

fn count(bytes: &mut Reader<'_>, most: usize) -> Result<usize, Malformed> {
    let count = bytes.u32()? as usize;
    if count > most {
        Err(bytes.malformed())
    } else {
        Ok(count)
    }
}

/// An inquiry under way.
#[derive(Debug)]
pub struct Inquiry {
    id: u64,
    asked: BTreeSet<NodeId>,
    answers: BTreeMap<NodeId, Testimony>,
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

    /// Takes the answer of a member that was asked; `known` are the members that are known here. A claim of a counter
    /// that no chain has is no claim.
    pub fn answer(
        &mut self,
        from: NodeId,
        mut testimony: Testimony,
        known: &BTreeSet<NodeId>,
        now: Instant,
    ) {
        if testimony.id != self.id || !self.asked.contains(&from) {
            return;
        }
        testimony
            .claims
            .retain(|claim| claim.version.counter <= MAX_HANDS);
        if !self.answers.contains_key(&from) {
            let members = testimony.members.iter();
            let unknown = members.filter(|node| !known.contains(node));
            for node in unknown.take(MAX_UNKNOWN) {
                self.unknown.entry(*node).or_insert(now + PATIENCE);
            }
        }
        self.answers.insert(from, testimony);
        // It may name members that were not asked yet.
        (self.next, self.wait) = (now, FIRST_RETRY);
    }

    /// Drops the answers of those that are no members any more.
    pub fn forget(&mut self, gone: impl Fn(NodeId) -> bool) {
        self.answers.retain(|node, _| !gone(*node));
    }

    /// All answers so far.
    pub fn answers(&self) -> impl Iterator<Item = &Testimony> {
        self.answers.values()
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
pub fn left_over(deeds: &[Deed], claims: &[Claim]) -> Vec<(Deed, Block)> {
    let mut deeds = deeds.to_vec();
    deeds.sort_by_key(|deed| std::cmp::Reverse(deed.version));
    let mut left: Vec<(Deed, Block)> = Vec::new();
    for deed in deeds {
        let mut blocks = vec![deed.block];
        let higher = claims.iter().filter(|claim| claim.version > deed.version);
        let taken = higher.map(|claim| claim.block);
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
        Testimony {
            id,
            about: NODES[0],
            heir: Some(NODES[1]),
            members: members.to_vec(),
            claims: Vec::new(),
            deeds: Vec::new(),
        }
    }

    #[test]
    fn all_have_to_answer_even_who_is_only_known_to_others() {
        let now = Instant::now();
        let [x, b, c] = NODES;
        let mut inquiry = Inquiry::new(7, now);
        let known = BTreeSet::from([b]);
        let missing = |inquiry: &Inquiry| {
            let missing = inquiry.missing([b].into_iter(), |node| node != x, now);
            missing.into_iter().collect::<Vec<_>>()
        };
        assert_eq!(missing(&inquiry), [b]);
        inquiry.answer(b, testimony(7, &[]), &known, now);
        assert_eq!(missing(&inquiry), [b], "it was not asked");
        inquiry.ask(b);
        inquiry.answer(b, testimony(6, &[]), &known, now);
        assert_eq!(missing(&inquiry), [b], "an answer to another inquiry");
        inquiry.answer(b, testimony(7, &[x, c]), &known, now);
        assert_eq!(missing(&inquiry), [c]);
        assert!(inquiry.is_due(now) && !inquiry.is_due(now));
        assert_eq!(inquiry.poll_timeout(), now + FIRST_RETRY);
        inquiry.ask(c);
        inquiry.answer(c, testimony(7, &[b]), &known, now);
        assert!(missing(&inquiry).is_empty());
        inquiry.forget(|node| node == c);
        assert_eq!(missing(&inquiry), [c], "what it said counts no more");
    }

    #[test]
    fn names_that_a_member_made_up_hold_up_little_and_not_for_ever() {
        let now = Instant::now();
        let [_, b, c] = NODES;
        let known = BTreeSet::from([b, c]);
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
            inquiry.answer(b, testimony(7, &told), &known, now);
        }
        let waited = missing(&inquiry, now);
        assert_eq!(
            waited.len(),
            1 + MAX_UNKNOWN,
            "said twice or not: {waited:?}"
        );
        assert!(waited.contains(&c));
        assert_eq!(
            missing(&inquiry, now + PATIENCE),
            [c],
            "who is known here is waited for"
        );
    }

    #[test]
    fn a_claim_that_no_chain_has_is_none() {
        let now = Instant::now();
        let b = NODES[1];
        let claim = |counter| Claim {
            block: block(0, 12),
            owner: b,
            version: Version { counter, boot: 1 },
        };
        let mut inquiry = Inquiry::new(7, now);
        inquiry.ask(b);
        let said = Testimony {
            claims: vec![claim(MAX_HANDS), claim(MAX_HANDS + 1), claim(u64::MAX)],
            ..testimony(7, &[])
        };
        inquiry.answer(b, said, &BTreeSet::new(), now);
        let claims: Vec<Claim> = inquiry
            .answers()
            .flat_map(|answer| answer.claims.clone())
            .collect();
        assert_eq!(claims, [claim(MAX_HANDS)]);
    }

    #[test]
    fn what_was_passed_on_is_not_left_over() {
        let (a, x, b) = (
            NodeKeys::from_bytes(&[1; 64]),
            NodeKeys::from_bytes(&[2; 64]),
            NodeKeys::from_bytes(&[3; 64]),
        );
        let key = ClusterKey::from_bytes(&[4; 32]);
        let cluster = key.public();
        let genesis = Deed::genesis(block(0, 12), a.id(), &key);
        let to_x = genesis.give(block(1024, 10), x.id(), 5, &a, &cluster);
        let to_b = to_x.give(block(1024, 8), b.id(), 6, &x, &cluster);
        let back = to_b.give(block(1024, 7), x.id(), 7, &b, &cluster);
        let claims: Vec<Claim> = [&genesis, &to_b].map(Claim::from).to_vec();
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
            claims: vec![Claim::from(&genesis)],
            deeds: vec![genesis],
            heir: None,
            ..testimony(9, &NODES)
        };
        let mut bytes = Writer::new();
        whole.write(&mut bytes);
        let read = |bytes: &[u8]| Testimony::read(&mut Reader::new(bytes, "testimony"));
        assert_eq!(read(&bytes.0).as_ref(), Ok(&whole));
        let cut = (0..bytes.0.len()).filter(|at| read(&bytes.0[..*at]).is_ok());
        assert_eq!(cut.count(), 1, "only before the deeds");
    }
}
