//! What members tell each other and what a node keeps on disk: read, checked, and written again.

use std::net::SocketAddr;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rand::SeedableRng;
use rand::rngs::StdRng;
use weave_model::{Block, NetworkName, NodeId, Suite};
use weave_router::core::command::Command;
use weave_router::core::dialled::Discovery;
use weave_router::core::{Config, Core, CoreEvent};
use weave_router::keys::{ClusterSecret, NodeKeys};
use weave_router::mesh::authority::Authority;
use weave_router::mesh::cluster::ClusterKey;
use weave_router::mesh::codec::{Reader, Writer};
use weave_router::mesh::deed::{Deed, Version, paint, read_block, subtract, write_block};
use weave_router::mesh::deeds::{Deeds, Grant};
use weave_router::mesh::digest::{BUCKETS, Buckets};
use weave_router::mesh::inquiry::Testimony;
use weave_router::mesh::message::{Link, Message};
use weave_router::mesh::parts::{Parts, split};
use weave_router::mesh::record::{Content, MAX_RECORD, Record, RecordVersion};
use weave_router::mesh::removal::Removals;
use weave_router::mesh::secret::{HandedOn, SecretWord};
use weave_router::time::Now;
use weave_router::wire::END;

use super::{Input, push_chunk};

const SIGNATURE: usize = 64;

fn cluster() -> ClusterKey {
    ClusterKey::from_bytes(&[2; 32])
}

fn keys(seed: u8) -> NodeKeys {
    NodeKeys::generate(&mut StdRng::from_seed([seed; 32]))
}

fn secret_word() -> SecretWord {
    let [before, next] = [1, 2].map(|epoch| ClusterSecret {
        epoch,
        bytes: [epoch as u8; 32],
    });
    SecretWord::new(&Authority::Key(&cluster()), next, 9, &before)
}

fn block(first: u32, bits: u8) -> Block {
    Block::new(first, bits).expect("aligned")
}

/// Several messages of one peer: each is written as it was read, and parts never grow beyond what they may.
pub(super) fn message(data: &[u8]) {
    let (mut input, mut parts) = (Input(data), Parts::default());
    for _ in 0..64 {
        let body = input.chunk();
        let Ok(Some(message)) = Message::decode(body) else {
            continue;
        };
        assert_eq!(
            Message::decode(&message.encode()),
            Ok(Some(message.clone()))
        );
        if let Message::Part {
            transfer,
            index,
            count,
            bytes,
        } = message
            && let Some(whole) =
                parts.take(NodeId::from_bytes([1; 32]), transfer, index, count, bytes)
        {
            assert!(whole.len() <= MAX_RECORD * 2);
            let _ = Message::decode(&whole);
        }
    }
}

pub(super) fn message_seeds() -> Vec<Vec<u8>> {
    let node = keys(1).id();
    let version = RecordVersion {
        boot: 7,
        counter: 1,
    };
    let all = way_messages().into_iter();
    let all = all.chain(flooded_messages(node, version));
    let mut seeds: Vec<Vec<u8>> = all
        .chain(deed_messages(node))
        .map(|message| {
            let mut seed = Vec::new();
            push_chunk(&mut seed, &message.encode());
            seed
        })
        .collect();
    let mut in_parts = Vec::new();
    let long = Message::DeedGrant(vec![genesis(); 8]).encode();
    for part in split(&long).expect("it is short enough") {
        push_chunk(&mut in_parts, &part);
    }
    seeds.push(in_parts);
    seeds
}

fn way_messages() -> [Message; 4] {
    let link = Link {
        end: [9; 16],
        rtt_us: 700,
        loss: 20,
    };
    [
        Message::Ping { id: 1, alarm: true },
        Message::Pong {
            id: 1,
            observed: Some(SocketAddr::from(([192, 0, 2, 1], 6783))),
        },
        Message::Links {
            version: 3,
            links: vec![link; 2],
        },
        Message::LinksAck { version: 3 },
    ]
}

fn flooded_messages(node: NodeId, version: RecordVersion) -> [Message; 7] {
    [
        Message::Record(own_record().bytes().to_vec()),
        Message::RecordAcks(vec![(node, version)]),
        Message::Digest {
            answer: false,
            sums: Box::new([5; BUCKETS]),
        },
        Message::Summary {
            answer: false,
            buckets: Buckets::ALL,
            records: vec![(node, version)],
        },
        Message::SheetAcks(vec![(node, version); 2]),
        Message::SheetDigest {
            answer: true,
            sums: Box::new([5; BUCKETS]),
        },
        Message::SheetSummary {
            answer: true,
            buckets: Buckets::ALL,
            sheets: vec![(node, version)],
        },
    ]
}

fn deed_messages(node: NodeId) -> [Message; 8] {
    [
        Message::DeedRequest {
            id: 1,
            bits: 8,
            within: None,
        },
        Message::DeedGrant(vec![genesis()]),
        Message::DeedAck {
            block: block(256, 8),
            counter: 2,
        },
        Message::DeedRefusal { id: 1 },
        Message::Office(Authority::Key(&cluster()).certify(node, true, 1)),
        Message::Secret(HandedOn {
            before: Some([5; 32].into()),
            word: secret_word().bytes().to_vec().into(),
        }),
        Message::DeedInquiry { id: 1, about: node },
        Message::DeedTestimony(Testimony {
            id: 1,
            about: node,
            heir: Some(keys(2).id()),
            sum: 1,
            part: 0,
            parts: 1,
            members: vec![node],
            deeds: vec![genesis()],
        }),
    ]
}

fn genesis() -> Deed {
    Deed::genesis(block(0, 20), keys(1).id(), &cluster())
}

/// A part of the first node's range, given to the second.
fn gift() -> Deed {
    genesis().give(
        block(256, 8),
        keys(2).id(),
        7,
        &keys(1),
        &cluster().public(),
    )
}

fn own_record() -> Record {
    let (keys, cluster) = (keys(2), cluster());
    let content = Content {
        public: keys.public(),
        version: RecordVersion {
            boot: 7,
            counter: 1,
        },
        started: 1,
        remembers: Some(1),
        name: "host2".parse().expect("a name"),
        certificate: Authority::Key(&cluster).certify(keys.id(), false, 1),
        endpoints: vec![SocketAddr::from(([192, 0, 2, 2], 6783))],
        suites: vec![Suite::Aes256Gcm],
        deeds: vec![gift(), genesis()],
        blocks: vec![block(256, 8)],
        networks: vec![NetworkName::default_network()],
        lost: vec![[9; END]],
        secret: Some(secret_word().mark()),
    };
    content
        .sign(&keys, &cluster.public())
        .expect("short enough")
}

/// A record as it is, and the same signed anew by a member that says of itself what it likes: what is believed bears the
/// cluster's certificate, and every block in it is proven.
pub(super) fn record(data: &[u8]) {
    let (public, none) = (cluster().public(), Removals::default());
    let body = &data[..data.len().saturating_sub(SIGNATURE)];
    let message = [&b"weave record v1"[..], &public.id(), body].concat();
    let signed = [body, &keys(2).sign(&message)].concat();
    for bytes in [data, &signed] {
        let Ok(record) = Record::read(bytes, &public, &none) else {
            continue;
        };
        assert_eq!(record.bytes(), bytes);
        assert_eq!(record.node(), record.public.id());
        assert!(record.certificate.verify(&public));
        assert!(
            record
                .titles()
                .all(|deed| deed.proven(&record.deeds, &public, &none))
        );
        let owned = |block: &Block| record.version_of(*block).is_some();
        assert!(record.blocks.iter().all(owned));
    }
}

pub(super) fn record_seeds() -> Vec<Vec<u8>> {
    vec![own_record().bytes().to_vec()]
}

/// Deeds that came as a grant: taken only when every signature up to the genesis is right. Then what blocks make of one
/// another.
pub(super) fn deed(data: &[u8]) {
    let (me, public) = (keys(2).id(), cluster().public());
    let none = Removals::default();
    let mut reader = Reader::new(data, "deeds");
    let (mut grant, mut written) = (Vec::new(), Writer::new());
    while let Ok(deed) = Deed::read(&mut reader) {
        deed.write(&mut written);
        grant.push(deed);
        if grant.len() == 40 {
            break;
        }
    }
    assert_eq!(written.0, data[..written.0.len()]);
    let mut deeds = Deeds::default();
    if deeds.accept(&grant, me, Some(7), 1, (&public, &none)) == Grant::New {
        assert!(grant[0].owner == me && grant[0].proven(&grant[1..], &public, &none));
        let again = deeds.accept(&grant, me, Some(7), 2, (&public, &none));
        assert!(again == Grant::Known);
        let mut saved = Writer::new();
        deeds.write(&mut saved);
        assert!(Deeds::read(&mut Reader::new(&saved.0, "deeds")).is_ok());
    }
    blocks(&mut reader);
}

/// Blocks cut out of one another, and laid over one another.
fn blocks(reader: &mut Reader<'_>) {
    let mut blocks = Vec::new();
    while let (Ok(block), true) = (read_block(reader), blocks.len() < 16) {
        let mut out = Writer::new();
        write_block(block, &mut out);
        assert_eq!(read_block(&mut Reader::new(&out.0, "block")), Ok(block));
        blocks.push(block);
    }
    let Some(cut) = blocks.pop() else {
        return;
    };
    for left in subtract(&blocks, cut) {
        assert!(!cut.contains(left.first()) && !left.contains(cut.first()));
    }
    let layer = |(place, block): (usize, &Block)| {
        let version = Version {
            counter: place as u64 % 3,
            boot: 0,
        };
        (*block, version, place)
    };
    let runs = paint(blocks.iter().enumerate().map(layer).collect());
    for (first, last, place) in &runs {
        assert!(first <= last && blocks[*place].contains(*first) && blocks[*place].contains(*last));
    }
    assert!(runs.windows(2).all(|pair| pair[0].1 < pair[1].0));
}

pub(super) fn deed_seeds() -> Vec<Vec<u8>> {
    let mut grant = Writer::new();
    gift().write(&mut grant);
    genesis().write(&mut grant);
    let mut blocks = Writer::new();
    genesis().write(&mut blocks);
    for (first, bits) in [(0, 4), (16, 3), (0, 5), (8, 0), (0, 2)] {
        write_block(block(first, bits), &mut blocks);
    }
    vec![grant.0, blocks.0]
}

fn config() -> Config {
    Config {
        name: "host1".parse().expect("a name"),
        suites: vec![Suite::Aes256Gcm],
        discovery: Discovery::On,
        preferred: Suite::Aes256Gcm,
        lanes: 2,
    }
}

fn now() -> Now {
    Now {
        mono: Instant::now(),
        wall: Duration::from_secs(1_800_000_000),
    }
}

/// A node starts from any state or refuses it; if it starts, it can say what it owns, and save that again.
pub(super) fn state(data: &[u8]) {
    let start = now();
    let Ok(mut core) = Core::new(config(), Some(data), [1; 32], start) else {
        return;
    };
    let mine = core.view().mine.clone();
    assert!(mine.windows(2).all(|pair| pair[0].last() < pair[1].first()));
    for step in 1..4 {
        while let Some(event) = core.poll_event() {
            if let CoreEvent::Persist { seq, bytes } = event {
                let again = Core::new(config(), Some(&bytes), [2; 32], start);
                assert!(again.is_ok(), "what was saved can be read");
                core.handle_persisted(seq, start);
            }
        }
        while core.poll_transmit().is_some() {}
        core.handle_timeout(start.after(Duration::from_secs(step)));
    }
}

pub(super) fn state_seeds() -> Vec<Vec<u8>> {
    static SAVED: OnceLock<Vec<Vec<u8>>> = OnceLock::new();
    SAVED.get_or_init(saved).clone()
}

/// Every state that a node writes on its way from nothing to a cluster with a token and an address in use.
fn saved() -> Vec<Vec<u8>> {
    let start = now();
    let mut core = Core::new(config(), None, [1; 32], start).expect("a new node");
    let commands = [
        Command::SetEndpoints {
            endpoints: vec![SocketAddr::from(([192, 0, 2, 1], 6783))],
        },
        Command::Init {
            v4: "10.32.0.0/16".parse().expect("a range"),
            v6: None,
        },
        Command::TokenCreate {
            ttl: Duration::from_secs(3600),
            uses: 2,
            addresses: Vec::new(),
        },
        Command::Allocate {
            id: "a,eth0".to_owned(),
            want: None,
            among: Vec::new(),
            area: None,
        },
    ];
    let mut saved = Vec::new();
    for (id, command) in (1..).zip(commands) {
        core.handle_command(id, command, start);
        while let Some(event) = core.poll_event() {
            if let CoreEvent::Persist { seq, bytes } = event {
                saved.push(bytes.to_vec());
                core.handle_persisted(seq, start);
            }
        }
    }
    saved
}
