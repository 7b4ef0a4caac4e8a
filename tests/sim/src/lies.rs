//! A member that lies: what it says inside its sessions, with its own true keys.

use std::fmt;

use rand::RngExt;
use rand::rngs::StdRng;
use weave_model::Block;
use weave_router::keys::NodeKeys;
use weave_router::mesh::cluster::ClusterPublic;
use weave_router::mesh::codec::Reader;
use weave_router::mesh::deed::{Deed, Donor};
use weave_router::mesh::inquiry::Testimony;
use weave_router::mesh::message::Message;
use weave_router::mesh::parts;
use weave_router::mesh::record::{Content, Record, RecordVersion};
use weave_router::mesh::removal::{Removal, Removals};

use crate::net::Net;

/// Something untrue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lie {
    /// Random bytes, the kind of a message before them.
    Junk,
    /// What it heard from others, some bits of it changed.
    Changed,
    /// What it heard from others once, said again to whoever it may be.
    Again,
    /// A record of its own that claims the blocks of another member by that one's deeds.
    Thief,
    /// A deed by which another member's block comes to a third one, signed by the liar.
    Forger,
    /// The last record of another member in a newer version, signed by the liar.
    Ghost,
    /// That another member has left.
    Farewell,
    /// Many records of its own, each newer than the one before.
    Flood,
    /// To whoever asked about a removed node: that others have its addresses.
    Perjury,
}

const ALL: [(Lie, &str); 9] = [
    (Lie::Junk, "random bytes"),
    (Lie::Changed, "what it heard, changed"),
    (Lie::Again, "what it heard, once more"),
    (Lie::Thief, "that the blocks of others are its own"),
    (
        Lie::Forger,
        "a deed of a block that it does not own, for somebody else",
    ),
    (
        Lie::Ghost,
        "a newer record of somebody else, with half of its block",
    ),
    (Lie::Farewell, "that somebody else has left"),
    (
        Lie::Flood,
        "a hundred records of its own, one after another",
    ),
    (Lie::Perjury, "that it has what a removed node had"),
];

impl fmt::Display for Lie {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = ALL.iter().find(|(lie, _)| lie == self);
        f.write_str(text.map_or("", |(_, text)| text))
    }
}

impl Lie {
    /// Any of them.
    pub fn any(rng: &mut StdRng) -> Self {
        ALL[rng.random_range(0..ALL.len())].0
    }
}

/// What a liar has to lie with.
struct Liar {
    keys: NodeKeys,
    cluster: ClusterPublic,
    /// The newest records that it heard of others.
    records: Vec<Record>,
    /// The removals that it knows, with the last record of each node.
    removed: Vec<(Removal, Record)>,
    /// What it says of itself, if somebody heard it.
    own: Option<Record>,
}

impl Liar {
    /// From the disk of a member: the keys are its first field, the cluster's key begins its third.
    fn of(net: &Net, n: usize) -> Option<Self> {
        let mut reader = Reader::new(net.nodes[n].disk.as_deref()?, "disk");
        let (mut keys, mut cluster, mut records) = (None, None, Vec::new());
        let mut removed = Vec::new();
        reader.u8().ok()?;
        while !reader.is_empty() {
            match reader.field().ok()? {
                (1, mut field) => keys = Some(NodeKeys::from_bytes(&field.array().ok()?)),
                (3, mut field) => cluster = Some(ClusterPublic(field.array().ok()?)),
                (8, mut field) => {
                    while !field.is_empty() {
                        records.push(field.counted(1 << 20).ok()?.to_vec());
                    }
                }
                (11, mut field) => {
                    while !field.is_empty() {
                        field.u8().ok()?;
                        let removal = field.counted(1 << 20).ok()?.to_vec();
                        removed.push((removal, field.counted(1 << 20).ok()?.to_vec()));
                    }
                }
                _ => {}
            }
        }
        let (keys, cluster) = (keys?, cluster?);
        let read = |bytes: &Vec<u8>| Record::read(bytes, &cluster, &Removals::default()).ok();
        let gone = |(removal, record): &(Vec<u8>, Vec<u8>)| {
            Some((Removal::read(removal, &cluster).ok()?, read(record)?))
        };
        Some(Self {
            own: None,
            removed: removed.iter().filter_map(gone).collect(),
            records: records.iter().filter_map(read).collect(),
            keys,
            cluster,
        })
    }

    /// The same, with what others have of it.
    fn known_to(mut self, others: Vec<Self>) -> Self {
        let me = self.keys.id();
        let records = others.into_iter().flat_map(|other| other.records);
        let own = records.filter(|record| record.node() == me);
        self.own = own.max_by_key(|record| record.version);
        self
    }

    fn sign(&self, content: Content) -> Option<Message> {
        let record = content.sign(&self.keys, &self.cluster)?;
        Some(Message::Record(record.bytes().to_vec()))
    }

    /// Its own record with a higher counter, by so much.
    fn newer(&self, by: u64) -> Option<Content> {
        let own = (**self.own.as_ref()?).clone();
        let version = RecordVersion {
            counter: own.version.counter + by,
            ..own.version
        };
        Some(Content { version, ..own })
    }
}

/// A member that changes its record without end.
pub struct Chatterer {
    liar: Liar,
    by: u64,
}

impl Chatterer {
    /// From the disks of a member, and of those that know it.
    pub fn of(net: &Net, n: usize) -> Option<Self> {
        let others = (0..net.nodes.len()).filter_map(|n| Liar::of(net, n));
        let liar = Liar::of(net, n)?.known_to(others.collect());
        Some(Self { liar, by: 0 })
    }

    /// Its record in the next version.
    pub fn say(&mut self) -> Option<Message> {
        self.by += 1;
        self.liar.sign(self.liar.newer(self.by)?)
    }
}

/// Has `liar` say something to `to`, inside their session if there is one.
pub fn tell(net: &mut Net, liar: usize, to: usize, lie: Lie, rng: &mut StdRng) {
    let heard: Vec<_> = net.nodes[liar].heard.iter().cloned().collect();
    let bodies = match lie {
        Lie::Junk => (0..50).map(|_| junk(rng)).collect(),
        Lie::Changed => heard.into_iter().map(|body| change(body, rng)).collect(),
        Lie::Again => heard,
        _ => {
            let others = (0..net.nodes.len()).filter_map(|n| Liar::of(net, n));
            let liar = Liar::of(net, liar).map(|liar| liar.known_to(others.collect()));
            let messages = liar.map(|liar| match lie {
                Lie::Perjury => perjured(&liar, &heard),
                _ => composed(&liar, lie, rng),
            });
            let messages = messages.unwrap_or_default();
            let bodies = messages.iter().filter_map(|m| parts::split(&m.encode()));
            bodies.flatten().collect::<Vec<_>>()
        }
    };
    let Some(peer) = net.nodes[to].core.as_ref().map(|core| core.id()) else {
        return;
    };
    let now = net.clock(liar);
    if let Some(core) = &mut net.nodes[liar].core {
        for body in bodies {
            core.send_control(peer, &body, now);
        }
        net.pump(liar);
    }
}

fn junk(rng: &mut StdRng) -> Vec<u8> {
    let mut body = vec![0; rng.random_range(1..200)];
    rng.fill(&mut body[..]);
    body[0] %= 24;
    body
}

fn change(mut body: Vec<u8>, rng: &mut StdRng) -> Vec<u8> {
    for _ in 0..rng.random_range(1..4) {
        let at = rng.random_range(0..body.len());
        body[at] ^= 1 << rng.random_range(0..8);
    }
    body
}

/// An answer to the last inquiry about each removed node that it heard: with the node's own deeds, and what makes the
/// liar the owner, signed by itself or not at all.
fn perjured(liar: &Liar, heard: &[Vec<u8>]) -> Vec<Message> {
    let mut told = Vec::new();
    for (removal, record) in &liar.removed {
        let asked = heard.iter().find_map(|body| match Message::decode(body) {
            Ok(Some(Message::DeedInquiry { id, about })) if about == removal.node => Some(id),
            _ => None,
        });
        let Some(id) = asked else { continue };
        let mut deeds = liar
            .own
            .as_ref()
            .map_or_else(Vec::new, |own| own.deeds.clone());
        deeds.extend(&record.deeds);
        for title in record.titles() {
            let me = liar.keys.id();
            let taken = title.give(title.block, me, u64::MAX, &liar.keys, &liar.cluster);
            let donor = Donor::Node(record.public);
            deeds.extend([taken, Deed { donor, ..taken }]);
        }
        let about = (id, removal.node);
        let parts = Testimony::in_parts(about, Some(removal.heir), vec![], &deeds);
        let parts = parts.into_iter().flatten();
        told.extend(parts.map(Message::DeedTestimony));
    }
    told
}

fn composed(liar: &Liar, lie: Lie, rng: &mut StdRng) -> Vec<Message> {
    if lie == Lie::Flood {
        let newer = (1..=100).filter_map(|by| liar.sign(liar.newer(by)?));
        return newer.collect();
    }
    if liar.records.is_empty() {
        return Vec::new();
    }
    let victim = &liar.records[rng.random_range(0..liar.records.len())];
    let other = &liar.records[rng.random_range(0..liar.records.len())];
    let message = match lie {
        Lie::Thief => liar.newer(1).and_then(|own| {
            let (blocks, deeds) = (victim.blocks.clone(), victim.deeds.clone());
            liar.sign(Content {
                blocks,
                deeds,
                ..own
            })
        }),
        Lie::Forger => victim.deeds.first().map(|title| {
            let block = Block::new(title.block.first(), title.block.bits());
            let block = block.unwrap_or(title.block);
            let boot = liar.own.as_ref().map_or(1, |own| own.version.boot);
            let deed = title.give(block, other.node(), boot, &liar.keys, &liar.cluster);
            let chain = std::iter::once(deed).chain(victim.deeds.iter().copied());
            Message::DeedGrant(chain.collect::<Vec<Deed>>())
        }),
        Lie::Ghost => {
            let content = (**victim).clone();
            let version = RecordVersion {
                boot: content.version.boot,
                counter: content.version.counter + 1,
            };
            let half = |block: &Block| Block::new(block.first(), block.bits().saturating_sub(1));
            let blocks = content.blocks.first().and_then(half).into_iter().collect();
            liar.sign(Content {
                version,
                blocks,
                ..content
            })
        }
        Lie::Farewell => {
            let own = liar.own.as_ref().map(|own| &own.certificate);
            let (keys, cluster) = (&liar.keys, &liar.cluster);
            let leave = |own| Removal::by_itself(keys, own, cluster, other.node(), 1, vec![]);
            let of_itself = own.and_then(leave);
            of_itself.map(|removal| {
                let mut bytes = removal.bytes().to_vec();
                bytes[1..33].copy_from_slice(victim.node().as_bytes());
                Message::Record(bytes)
            })
        }
        _ => None,
    };
    message.into_iter().collect()
}
