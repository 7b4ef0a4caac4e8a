//! The word that a node is a member no more.

use weave_model::NodeId;
use weave_router::keys::NodeKeys;
use weave_router::mesh::authority::Authority;
use weave_router::mesh::cluster::ClusterKey;
use weave_router::mesh::removal::{Kept, Removal, Removals};

const SIGNATURE: usize = 64;

fn cluster() -> ClusterKey {
    ClusterKey::from_bytes(&[2; 32])
}

fn keys(seed: u8) -> NodeKeys {
    NodeKeys::from_bytes(&[seed; 64])
}

/// A removal as it is, and the same signed anew by the cluster and by a member: what is believed says who signed it, and
/// of one node only the first is believed.
pub(super) fn removal(data: &[u8]) {
    let (key, member) = (cluster(), keys(1));
    let public = key.public();
    let body = &data[..data.len().saturating_sub(SIGNATURE)];
    let message = [&b"weave removal v1"[..], &public.id(), body].concat();
    let by_cluster = [body, &key.sign(&message)].concat();
    let by_member = [body, &member.sign(&message)].concat();
    let mut removals = Removals::default();
    for (bytes, anybody) in [(data, false), (&by_cluster, true), (&by_member, false)] {
        let Ok(removal) = Removal::read(bytes, &public) else {
            continue;
        };
        assert_eq!(removal.bytes(), bytes);
        assert!(removal.heir != removal.node);
        assert!(anybody || removal.bytes() == data || removal.node == member.id());
        let first = removals.insert(removal.clone());
        assert!(!removals.insert(removal.clone()), "only once");
        let believed = removals.get(removal.node).map(|one| one.heir);
        assert!(!first || believed == Some(removal.heir));
    }
}

pub(super) fn removal_seeds() -> Vec<Vec<u8>> {
    let key = cluster();
    let (public, heir) = (key.public(), keys(3).id());
    let kept = vec![
        (keys(4).id(), Kept::Admin),
        (NodeId::from_bytes([5; 32]), Kept::Removed),
    ];
    let office = Authority::Key(&key).certify(keys(2).id(), true, 1);
    let admin = keys(2);
    let admin = Authority::of(None, &admin, &office, public);
    let all = [
        Removal::by_admin(&Authority::Key(&key), keys(1).id(), heir, 9, kept),
        admin.and_then(|admin| Removal::by_admin(&admin, keys(1).id(), heir, 9, vec![])),
        Removal::by_itself(&keys(2), &office, &public, heir, 9, vec![]),
    ];
    let all = all.into_iter().flatten();
    all.map(|removal| removal.bytes().to_vec()).collect()
}
