use std::net::SocketAddr;

use rand::SeedableRng;
use weave_model::Block;

use super::*;
use crate::core::CoreEvent;
use crate::core::gossip::tests::alone;
use crate::keys::NodeKeys;
use crate::mesh::authority::Authority;
use crate::mesh::deeds::Deeds;
use crate::mesh::record::Content;
use crate::mesh::record::tests::content;
use crate::mesh::removal::Removal;
use crate::way::Way;

const PEER: NodeId = NodeId::from_bytes([1; 32]);

fn save(core: &mut Core) {
    while let Some(event) = core.poll_event() {
        if let CoreEvent::Persist { seq, .. } = event {
            core.handle_persisted(seq, core.now);
        }
    }
}

#[test]
fn an_inheritance_that_found_no_room_is_taken_when_there_is_some() {
    let (mut core, key) = alone();
    let me = core.id();
    let node = NodeKeys::generate(&mut rand::rngs::StdRng::seed_from_u64(2));
    let block = Block::new(4096, 12).unwrap();
    let record = Content {
        deeds: vec![Deed::genesis(block, node.id(), &key)],
        blocks: vec![block],
        ..content(&node, &key)
    };
    let record = record.sign(&node, &key.public()).unwrap();
    let removal = Removal::by_admin(&Authority::Key(&key), node.id(), me, 1, vec![]).unwrap();
    let mut full = Deeds::default();
    let small = (0..512).map(|n| Block::new(n * 8, 3).unwrap());
    let mut titles = small.map(|block| Deed::genesis(block, me, &key));
    assert!(titles.any(|title| !full.adopt(title, &[], 0)));
    core.membership.as_mut().unwrap().deeds = full;
    let from = Way::Direct(SocketAddr::from(([192, 0, 2, 1], 6783)));
    for bytes in [record.bytes(), removal.bytes()] {
        let message = Message::Record(bytes.to_vec());
        core.handle_message(PEER, &message.encode(), from);
    }
    save(&mut core);
    let settled = |core: &Core| core.removed[&node.id()].settled;
    assert!(!settled(&core) && !core.ipam.owns(block.first()));
    core.handle_timeout(core.now);
    assert!(core.inquiries.0.is_empty(), "nobody is asked in vain");
    core.membership.as_mut().unwrap().deeds = Deeds::default();
    core.handle_timeout(core.now);
    save(&mut core);
    assert!(settled(&core) && core.ipam.owns(block.first()));
}
