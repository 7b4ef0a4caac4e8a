//! Who hears of a removal, and when: nobody before it is durable, and all of the same one.

use std::time::Duration;

use weave_model::NodeId;
use weave_router::core::command::{Command, CommandError, Reply};
use weave_router::core::view::View;
use weave_sim::net::{Answer, Crash, Net};

use super::members::add_admin;
use super::{MINUTE, cluster};

const SECOND: Duration = Duration::from_secs(1);

fn remove(node: &str, heir: Option<&str>) -> Command {
    let (node, heir) = (node.to_owned(), heir.map(str::to_owned));
    Command::Remove { node, heir }
}

fn id(net: &Net, n: usize) -> NodeId {
    net.nodes[n].core().id()
}

fn knows(view: &View, node: NodeId) -> bool {
    view.member(node).is_some()
}

/// Something new of a node, so that its neighbours tell one another what they have of it.
fn change(net: &mut Net, n: usize) {
    let endpoints = vec![net.nodes[n].local, "203.0.113.9:6783".parse().unwrap()];
    net.command(n, Command::SetEndpoints { endpoints });
}

#[test]
fn nobody_hears_of_a_removal_that_its_admin_forgets() {
    for crash in [Some(Crash::Torn), None] {
        let mut net = cluster(71, 4, "10.32.0.0/16");
        net.run(10 * SECOND);
        let node = id(&net, 3);
        // What it says while it saves is on the wire before the save fails.
        net.nodes[0].slow = SECOND / 2;
        (net.nodes[0].crash, net.nodes[0].disk_full) = (crash, crash.is_none());
        let command = net.command(0, remove("host4", None));
        change(&mut net, 3);
        net.run(2 * SECOND);
        match crash {
            Some(_) => assert!(net.nodes[0].core.is_none() && knows(&net.on_disk(0), node)),
            None => {
                let answer = net.nodes[0].answers.remove(&command);
                assert!(matches!(answer, Some(Err(CommandError::Storage(_)))));
                assert!(knows(&net.view(0), node));
            }
        }
        net.run(5 * SECOND);
        assert!(!net.view(3).removed);
        assert!((1..3).all(|n| knows(&net.view(n), node)), "{crash:?}");
        (net.nodes[0].slow, net.nodes[0].disk_full) = (Duration::ZERO, false);
        if net.nodes[0].core.is_none() {
            net.start(0);
        }
        net.run(10 * SECOND);
        assert!(net.run_until(MINUTE, Net::agrees));
        let again = net.ask(0, remove("host4", Some("host3")));
        assert!(matches!(again, Ok(Reply::Removed { heir, .. }) if heir.0 == id(&net, 2)));
        net.gone.insert(3);
        let whole = |net: &mut Net| net.agrees() && net.check_ownership() == 1 << 16;
        assert!(net.run_until(MINUTE, whole));
    }
}

#[test]
fn nobody_hears_of_a_removal_from_a_member_that_forgets_it() {
    let crashes = [Crash::Unsaved, Crash::Torn, Crash::Saved];
    let sent = (0..8).map(Crash::Sent);
    let mut told = 0;
    for crash in crashes.into_iter().chain(sent) {
        let mut net = cluster(72, 4, "10.32.0.0/16");
        net.run(10 * SECOND);
        let node = id(&net, 3);
        // All that the others hear of the first node, they hear from the second.
        net.cut = [(0, 2), (2, 0), (0, 3), (3, 0)].into();
        net.relays = false;
        net.run(10 * SECOND);
        net.nodes[1].crash = Some(crash);
        net.command(0, remove("host4", Some("host3")));
        assert!(net.run_until(SECOND, |net| net.nodes[1].core.is_none()));
        net.run(SECOND);
        let heard = !knows(&net.view(2), node) || net.view(3).removed;
        let remembered = !knows(&net.on_disk(1), node);
        assert!(remembered || !heard, "{crash:?}: it told what it forgot");
        told += u32::from(heard);
        net.start(1);
        net.cut.clear();
        net.relays = true;
        net.gone.insert(3);
        let whole = |net: &mut Net| net.agrees() && net.check_ownership() == 1 << 16;
        assert!(net.run_until(10 * MINUTE, whole), "{crash:?}");
    }
    assert!(told > 0, "some had told before they crashed");
}

/// Two admins remove the fifth node and name two heirs; what they were answered.
fn remove_twice(net: &mut Net) -> [Answer; 2] {
    let heirs = [(0, "host3"), (1, "host4")];
    let commands = heirs.map(|(n, heir)| (n, net.command(n, remove("host5", Some(heir)))));
    net.run(10 * SECOND);
    commands.map(|(n, command)| net.nodes[n].answers.remove(&command).unwrap())
}

#[test]
fn of_two_removals_of_one_node_all_believe_the_same_one() {
    let mut heirs = [0, 0];
    for seed in 0..12 {
        let mut net = cluster(73 + seed, 5, "10.32.0.0/16");
        assert!(add_admin(&mut net, 0, "host2").is_ok());
        assert!(net.run_until(MINUTE, |net| net.view(1).admin));
        net.run(10 * SECOND);
        let theirs = net.mine(4);
        net.kill(4, false);
        net.gone.insert(4);
        // Apart, or at the same time on a bad network.
        if seed % 2 == 0 {
            let sides = [(0, 1), (0, 3), (2, 1), (2, 3)];
            net.cut = sides
                .into_iter()
                .flat_map(|(a, b)| [(a, b), (b, a)])
                .collect();
        } else {
            net.loss = 20;
        }
        for answer in remove_twice(&mut net) {
            assert!(matches!(answer, Ok(Reply::Removed { .. })), "{answer:?}");
        }
        net.cut.clear();
        let whole = |net: &mut Net| net.agrees() && net.check_ownership() == 1 << 16;
        assert!(
            net.run_until(2 * MINUTE, whole),
            "seed {seed}: nothing is lost"
        );
        assert!(
            (0..4).all(|n| net.view(n).waiting.is_empty()),
            "seed {seed}"
        );
        for (at, heir) in [2, 3].into_iter().enumerate() {
            let own = net.mine(heir);
            let has = |first| own.iter().any(|block| block.contains(first));
            heirs[at] += u32::from(theirs.iter().all(|block| has(block.first())));
        }
        for n in 0..4 {
            net.crash(n);
            net.start(n);
        }
        assert!(net.run_until(10 * MINUTE, whole), "seed {seed}: nor later");
    }
    assert!(
        heirs[0] > 0 && heirs[1] > 0 && heirs[0] + heirs[1] == 12,
        "{heirs:?}"
    );
}

/// The same, and the admin whose removal all others know has crashed: it comes back with the other one.
#[test]
fn an_admin_that_comes_back_with_another_removal_keeps_nobody_waiting() {
    for seed in 0..6 {
        let mut net = cluster(91 + seed, 5, "10.32.0.0/16");
        assert!(add_admin(&mut net, 0, "host2").is_ok());
        assert!(net.run_until(MINUTE, |net| net.view(1).admin));
        net.run(10 * SECOND);
        net.kill(4, false);
        net.gone.insert(4);
        net.cut = (0..4)
            .filter(|n| *n != 1)
            .flat_map(|n| [(1, n), (n, 1)])
            .collect();
        assert!(remove_twice(&mut net).iter().all(Result::is_ok));
        net.crash(1);
        net.run(MINUTE);
        net.cut.clear();
        net.start(1);
        let whole = |net: &mut Net| net.agrees() && net.check_ownership() == 1 << 16;
        assert!(net.run_until(2 * MINUTE, whole), "seed {seed}");
    }
}
