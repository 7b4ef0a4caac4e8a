use weave_model::Suite;

use super::*;
use crate::core::Link;
use crate::core::gossip::tests::alone;
use crate::keys::NodeKeys;
use crate::mesh::deeds::Deeds;
use crate::way::Way;

#[test]
fn gifts_that_nobody_asked_for_leave_room_for_those_that_were() {
    let (mut core, key) = alone();
    let (me, now) = (core.id(), core.now);
    let donor = NodeKeys::from_bytes(&[9; 64]);
    let link = Link {
        up: true,
        silent: false,
        since: now.wall,
        way: Way::Direct(([192, 0, 2, 1], 6783).into()),
        suite: Suite::ChaCha20Poly1305,
        boot: 5,
    };
    core.links.insert(donor.id(), link);
    let mut half = Deeds::default();
    let small = (0..512).map(|n| Block::new(n * 8, 3).unwrap());
    for block in small {
        if half.has_room_unasked() {
            half.adopt(Deed::genesis(block, me, &key), &[], 0);
        }
    }
    core.membership.as_mut().unwrap().deeds = half;
    let title = Deed::genesis(Block::new(4096, 12).unwrap(), donor.id(), &key);
    let given = Block::new(4096, 3).unwrap();
    let grant = [title.give(given, me, 5, &donor, &key.public()), title];
    let taken = |core: &mut Core| {
        core.handle_grant(donor.id(), &grant);
        let own = core.membership.as_ref().unwrap();
        own.deeds.has_taken(given, grant[0].version.counter)
    };
    assert!(!taken(&mut core));
    let mut asking = Asking::new(1, None, now.mono);
    asking.asked = Some(donor.id());
    core.asking = Some(asking);
    assert!(taken(&mut core));
}
