//! Nodes whose virtual machine goes on from a snapshot: they begin anew without a restart, and own what they owned.

use std::time::Duration;

use rand::RngExt;
use weave_router::core::command::{Command, Reply};
use weave_sim::net::Net;

use super::{MINUTE, cluster};

fn copied(net: &mut Net, n: usize) {
    let mut fresh = [0; 32];
    net.rng.fill(&mut fresh[..]);
    let now = net.clock(n);
    let core = net.nodes[n].core.as_mut().unwrap();
    core.handle_generation(&fresh, now);
    net.pump(n);
}

fn record_boot(net: &Net, of: usize, at: usize) -> u64 {
    let id = net.nodes[of].core().id();
    net.nodes[at].core().known_version(id).unwrap().boot
}

#[test]
fn a_copied_node_has_new_sessions_at_once_and_keeps_its_addresses() {
    let mut net = cluster(71, 3, "10.32.0.0/16");
    assert!(matches!(net.allocate(1, "a", None), Ok(Reply::Address(_))));
    let (owned, boot) = (net.mine(1), record_boot(&net, 1, 0));
    let made = |net: &mut Net| -> Vec<_> {
        let view = net.view(1);
        view.members.iter().map(|member| member.keys).collect()
    };
    let before = made(&mut net);
    net.run(MINUTE / 4);
    copied(&mut net, 1);
    let view = net.view(1);
    assert!(view.members.iter().all(|member| !member.connected));
    let connected = |net: &mut Net| {
        let all = |n: usize, net: &mut Net| net.view(n).members.iter().all(|one| one.connected);
        (0..3).all(|n| all(n, net))
    };
    assert!(net.run_until(Duration::from_millis(500), connected));
    assert!(
        made(&mut net)
            .iter()
            .zip(&before)
            .all(|(now, then)| now > then)
    );
    assert!(net.run_until(MINUTE, |net| record_boot(net, 1, 0) > boot));
    net.run(MINUTE);
    assert!(net.agrees());
    assert_eq!(net.mine(1), owned);
    let view = net.view(1);
    assert!(
        view.waiting.is_empty() && view.twin.is_none(),
        "nothing is in doubt"
    );
    assert!(net.allocate(1, "b", None).is_ok());
    assert_eq!(net.broken, None);
}

#[test]
fn no_address_is_owned_twice_whenever_nodes_are_copied() {
    for seed in 720..728 {
        let mut net = Net::new(seed, 5).bad();
        net.init(0, "10.32.0.0/20");
        let token = net.token(0, 4);
        for n in 1..5 {
            let command = Command::Join {
                token: token.clone(),
                taken: vec![],
            };
            net.command(n, command);
        }
        for _ in 0..40 {
            let wait = net.rng.random_range(50..1500);
            net.run(Duration::from_millis(wait));
            let n = net.rng.random_range(0..5_usize);
            copied(&mut net, n);
            net.check_ownership();
        }
        assert!(net.run_until(10 * MINUTE, Net::agrees), "seed {seed}");
        for n in 0..5 {
            let id = format!("c{n}");
            let given = |net: &mut Net| net.allocate(n, &id, None).is_ok();
            assert!(net.run_until(10 * MINUTE, given), "seed {seed}, node {n}");
        }
        assert_eq!(
            net.check_ownership(),
            1 << 12,
            "seed {seed}: nothing is lost"
        );
        assert_eq!(net.broken, None, "seed {seed}");
    }
}
