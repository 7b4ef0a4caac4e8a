use rand::SeedableRng;

use super::*;
use crate::core::Config;
use crate::core::command::{Command, CommandError};
use crate::core::dialled::Discovery;
use crate::keys::NodeKeys;
use crate::mesh::authority::Authority;
use crate::mesh::cluster::{Certificate, ClusterKey};
use crate::mesh::record::tests::content;
use crate::mesh::removal::MAX_REMOVALS;
use crate::time::Now;
use weave_model::Suite;

const PEER: NodeId = NodeId::from_bytes([1; 32]);

/// A cluster of one, and its key.
pub(in crate::core) fn alone() -> (Core, ClusterKey) {
    let config = Config {
        name: "host1".parse().unwrap(),
        suites: vec![Suite::ChaCha20Poly1305],
        preferred: Suite::ChaCha20Poly1305,
        discovery: Discovery::On,
        lanes: 1,
    };
    let now = Now {
        mono: std::time::Instant::now(),
        wall: Duration::from_secs(1_700_000_000),
    };
    let mut core = Core::new(config, None, [7; 32], now).unwrap();
    let (v4, v6) = ("10.32.0.0/16".parse().unwrap(), None);
    core.handle_command(1, Command::Init { v4, v6 }, now);
    while let Some(event) = core.poll_event() {
        if let CoreEvent::Persist { seq, .. } = event {
            core.handle_persisted(seq, now);
        }
    }
    let key = core.membership.as_ref().and_then(|own| own.key.as_ref());
    let key = ClusterKey::from_bytes(&key.unwrap().to_bytes());
    (core, key)
}

#[test]
fn a_record_that_panics_is_left_and_the_next_one_is_taken() {
    let (mut core, key) = alone();
    let node = NodeKeys::generate(&mut rand::rngs::StdRng::seed_from_u64(2));
    let record = |counter| {
        let version = RecordVersion { boot: 5, counter };
        let nothing = Content {
            version,
            deeds: vec![],
            blocks: vec![],
            ..content(&node, &key)
        };
        nothing.sign(&node, &key.public()).unwrap()
    };
    let [bad, next] = [1, 2].map(record);
    core.quarantine.fault = Some(bad.bytes().to_vec());
    let from = Way::Direct(SocketAddr::from(([192, 0, 2, 1], 6783)));
    let tell = |core: &mut Core, record: &Record| {
        let message = Message::Record(record.bytes().to_vec());
        core.handle_message(PEER, &message.encode(), from);
        core.flood.acks_due(core.now.mono)
    };
    for _ in 0..3 {
        assert_eq!(tell(&mut core, &bad), [], "it is not acknowledged");
    }
    assert_eq!(core.known_version(node.id()), None);
    assert_eq!(core.view().quarantined, 1, "read once");
    let entry = (node.id(), next.version);
    assert_eq!(tell(&mut core, &next), [(PEER, vec![entry])]);
    assert_eq!(core.known_version(node.id()), Some(next.version));
    assert_eq!(
        tell(&mut core, &bad),
        [(PEER, vec![(node.id(), bad.version)])],
        "it is old now"
    );
}

#[test]
fn who_waits_for_a_ping_hears_that_the_node_has_left() {
    let (mut core, _) = alone();
    let now = core.now;
    core.echoes.ask(7, PEER, Duration::from_secs(5), now.mono);
    core.handle_command(2, Command::Leave { force: true }, now);
    let events = std::iter::from_fn(|| core.poll_event());
    let result = events.filter_map(|event| match event {
        CoreEvent::Reply { id: 7, result } => Some(result),
        _ => None,
    });
    let result: Vec<_> = result.collect();
    assert!(matches!(result[..], [Err(CommandError::Stopping)]));
}

#[test]
fn who_never_was_a_member_does_not_leave() {
    let (mut core, key) = alone();
    let node = NodeKeys::generate(&mut rand::rngs::StdRng::seed_from_u64(3));
    let from = Way::Direct(SocketAddr::from(([192, 0, 2, 1], 6783)));
    let heir = core.id();
    let mut leave = |certificate: &Certificate| {
        let removal =
            Removal::by_itself(&node, certificate, &key.public(), heir, 1, vec![]).unwrap();
        let message = Message::Record(removal.bytes().to_vec());
        core.handle_message(PEER, &message.encode(), from);
        core.removals.contains(node.id())
    };
    let foreign = ClusterKey::from_bytes(&[1; 32]);
    let certify = |key: &ClusterKey| Authority::Key(key).certify(node.id(), false, 1);
    assert!(!leave(&certify(&foreign)));
    assert!(leave(&certify(&key)));
}

#[test]
fn a_removal_that_panics_is_left_and_another_is_taken() {
    let (mut core, key) = alone();
    let node = |n: u8| NodeId::from_bytes([n; 32]);
    let heir = core.id();
    let remove =
        |node| Removal::by_admin(&Authority::Key(&key), node, heir, 1, Vec::new()).unwrap();
    let [bad, good] = [7, 8].map(|n| remove(node(n)));
    core.quarantine.fault = Some(bad.bytes().to_vec());
    let from = Way::Direct(SocketAddr::from(([192, 0, 2, 1], 6783)));
    for removal in [&bad, &bad, &good] {
        let message = Message::Record(removal.bytes().to_vec());
        core.handle_message(PEER, &message.encode(), from);
    }
    assert!(!core.removals.contains(node(7)) && core.removals.contains(node(8)));
    assert_eq!(core.view().quarantined, 1, "read once");
}

#[test]
fn a_message_that_panics_is_left() {
    let (mut core, _) = alone();
    let from = Way::Direct(SocketAddr::from(([192, 0, 2, 1], 6783)));
    let ping = Message::Ping {
        id: 1,
        alarm: false,
    };
    core.quarantine.fault = Some(ping.encode());
    core.handle_message(PEER, &ping.encode(), from);
    assert_eq!(core.view().quarantined, 1);
    assert_eq!(core.tally().messages().map(|of| of.2).sum::<u64>(), 0);
}

#[test]
fn a_removal_is_told_when_it_is_durable_and_not_before() {
    let (mut core, key) = alone();
    let (node, heir) = (NodeId::from_bytes([7; 32]), core.id());
    let authority = Authority::Key(&key);
    let removal = Removal::by_admin(&authority, node, heir, 1, Vec::new()).unwrap();
    let from = Way::Direct(SocketAddr::from(([192, 0, 2, 1], 6783)));
    let message = Message::Record(removal.bytes().to_vec());
    let now = core.now;
    core.flood.up(PEER, now.mono);
    core.handle_message(PEER, &message.encode(), from);
    let told = |core: &Core| core.summary().contains(&(node, removal.version()));
    let old = RecordVersion::default();
    core.handle_has(PEER, node, old);
    assert!(core.removals.contains(node), "it is believed at once");
    assert!(!told(&core) && !core.flood.is_lacked(node));
    while let Some(event) = core.poll_event() {
        if let CoreEvent::Persist { seq, .. } = event {
            core.handle_persisted(seq, now);
        }
    }
    core.handle_has(PEER, node, old);
    assert!(told(&core) && core.flood.is_lacked(node));
}

#[test]
fn a_cluster_that_removed_too_many_says_so_and_forgets_none() {
    let (mut core, key) = alone();
    let heir = core.id();
    let authority = Authority::Key(&key);
    let remove = |n: usize| {
        let mut id = [9; 32];
        id[..8].copy_from_slice(&(n as u64).to_le_bytes());
        let node = NodeId::from_bytes(id);
        Removal::by_admin(&authority, node, heir, 1, Vec::new()).unwrap()
    };
    for n in 0..MAX_REMOVALS {
        assert!(core.check_removals().is_ok());
        assert!(core.remember(remove(n)), "{n}");
    }
    let error = CommandError::TooManyRemoved(MAX_REMOVALS);
    assert_eq!(core.check_removals(), Err(error.clone()));
    assert!(error.to_string().starts_with("8192 nodes were removed"));
    assert!(error.fix().contains("with the state directory"));
    // What two admins did at the same time counts all the same.
    assert!(core.remember(remove(MAX_REMOVALS)));
    let now = core.now;
    core.saving.want();
    let mut saved = None;
    while let Some(event) = core.poll_event() {
        if let CoreEvent::Persist { seq, bytes } = event {
            core.handle_persisted(seq, now);
            saved = Some(bytes);
        }
    }
    let saved = saved.unwrap();
    assert!(saved.len() < 4 << 20, "{} bytes", saved.len());
    let back = Core::new(core.config.clone(), Some(&saved), [8; 32], now).unwrap();
    assert_eq!(back.removals, core.removals);
    let (all, mut told) = (back.summary(), 0);
    assert!(all.len() > MAX_REMOVALS);
    let parts = digest::parts(Buckets::ALL, all.clone(), MAX_SUMMARY);
    for (buckets, records) in parts {
        let answer = false;
        let message = Message::Summary {
            answer,
            buckets,
            records,
        };
        let bytes = message.encode();
        assert!(parts::split(&bytes).is_some(), "it can be sent");
        match Message::decode(&bytes) {
            Ok(Some(Message::Summary { records, .. })) => told += records.len(),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(told, all.len(), "and tells of each");
}

#[test]
fn who_is_named_by_the_removal_that_holds_asks_anew_and_the_other_no_more() {
    let (mut core, key) = alone();
    let authority = Authority::Key(&key);
    let node = NodeId::from_bytes([7; 32]);
    let mut all = [core.id(), PEER]
        .map(|heir| Removal::by_admin(&authority, node, heir, 1, Vec::new()).unwrap());
    all.sort_by_key(Removal::version);
    let [loser, winner] = all;
    let now = core.now;
    let save = |core: &mut Core| {
        core.saving.want();
        while let Some(event) = core.poll_event() {
            if let CoreEvent::Persist { seq, .. } = event {
                core.handle_persisted(seq, now);
            }
        }
    };
    let settled = |core: &Core| core.removed.get(&node).unwrap().settled;
    assert!(core.remember(loser));
    // It is the heir of one of the two, and nobody else is there to be asked.
    core.removed.get_mut(&node).unwrap().settled = true;
    assert!(core.remember(winner.clone()));
    assert!(!settled(&core), "that was by the other one");
    save(&mut core);
    core.inquire();
    assert_eq!(settled(&core), winner.heir == core.id());
    assert!(core.inquiries.0.is_empty());
}
