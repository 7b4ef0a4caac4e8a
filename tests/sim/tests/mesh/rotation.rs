//! Changing the cluster's secret: whoever can be reached takes part, whoever comes back in time does too, nobody else.

use std::time::Duration;

use rand::RngExt;
use weave_router::core::command::{Command, CommandError, Reply, SecretState};
use weave_router::mesh::tokens::Refusal;
use weave_sim::net::{Answer, Net};

use super::members::add_admin;
use super::{HOUR, MINUTE, cluster};

fn rotate(net: &mut Net, n: usize, overlap: Duration) -> Answer {
    net.ask(n, Command::SecretRotate { overlap })
}

fn state(net: &mut Net, n: usize) -> SecretState {
    net.view(n).secret.clone().unwrap()
}

/// Whether these nodes all have the secret of `epoch`, and know it of everybody but of `behind` members.
fn have(net: &mut Net, nodes: &[usize], epoch: u32, behind: usize) -> bool {
    nodes.iter().all(|n| {
        let state = state(net, *n);
        state.epoch == epoch && state.behind.len() == behind
    })
}

fn cut_off(net: &mut Net, node: usize) {
    for other in (0..net.nodes.len()).filter(|other| *other != node) {
        net.cut.extend([(node, other), (other, node)]);
    }
}

/// Whether a node has a session with another in which it answers.
fn talks(net: &mut Net, n: usize, with: usize) -> bool {
    let id = net.nodes[with].core().id();
    net.view(n)
        .member(id)
        .is_some_and(|member| member.connected)
}

#[test]
fn a_new_secret_reaches_everybody_on_a_bad_network_and_no_session_ends() {
    for seed in 500..504 {
        let mut net = cluster(seed, 6, "10.32.0.0/16").bad();
        let all = [0, 1, 2, 3, 4, 5];
        assert_eq!(state(&mut net, 3).epoch, 1);
        let answer = rotate(&mut net, 0, 10 * MINUTE);
        assert!(matches!(answer, Ok(Reply::Secret(state)) if state.epoch == 2));
        assert!(
            net.run_until(MINUTE, |net| have(net, &all, 2, 0)),
            "seed {seed}"
        );
        let n = net.rng.random_range(0..6);
        net.crash(n);
        net.start(n);
        assert!(net.run_until(MINUTE, |net| net.agrees() && have(net, &all, 2, 0)));
        net.loss = 0;
        let sessions = |net: &mut Net| {
            all.iter()
                .all(|n| all.iter().all(|m| n == m || talks(net, *n, *m)))
        };
        assert!(net.run_until(MINUTE, sessions));
        let over = |net: &mut Net| all.iter().all(|n| state(net, *n).previous_until.is_none());
        let end = net.now.mono + 11 * MINUTE;
        while net.step(end) {
            assert!(sessions(&mut net), "seed {seed}: a session ended");
        }
        assert!(over(&mut net), "the old secret is given up");
        net.crash(2);
        net.start(2);
        assert!(
            net.run_until(MINUTE, sessions),
            "seed {seed}: by the new secret alone"
        );
    }
}

#[test]
fn who_was_away_comes_back_while_the_old_secret_is_good_and_is_told_otherwise() {
    let mut net = cluster(520, 4, "10.32.0.0/16");
    net.crash(2);
    net.crash(3);
    assert!(rotate(&mut net, 0, HOUR).is_ok());
    assert!(net.run_until(MINUTE, |net| have(net, &[0, 1], 2, 2)));
    net.run(HOUR / 2);
    net.start(2);
    assert!(
        net.run_until(MINUTE, |net| have(net, &[0, 1, 2], 2, 1)),
        "in time"
    );
    net.run(HOUR);
    let away = net.nodes[3].disk.clone();
    net.start(3);
    assert!(
        net.run_until(MINUTE, |net| net.view(3).outdated.is_some()),
        "it is told"
    );
    assert_eq!(net.view(3).outdated.unwrap().1, 2);
    let id = net.nodes[3].core().id();
    assert!(net.run_until(MINUTE, |net| {
        [0, 1, 2].iter().any(|n| net.view(*n).turned_away == [id])
    }));
    net.run(10 * MINUTE);
    assert!(!talks(&mut net, 3, 0) && !talks(&mut net, 0, 3));
    assert_eq!(state(&mut net, 3).epoch, 1, "and gets no secret");
    // The others still know the old one for what it is after a start.
    net.crash(3);
    for n in 0..3 {
        net.crash(n);
        net.start(n);
    }
    net.nodes[3].disk = away;
    net.start(3);
    assert!(net.run_until(MINUTE, |net| net.view(3).outdated.is_some()));
}

#[test]
fn a_joiner_takes_part_and_a_token_of_before_ends_with_the_old_secret() {
    let mut net = Net::new(530, 5);
    net.init(0, "10.32.0.0/16");
    let early = net.token_for(0, 4, 24 * HOUR);
    assert!(net.join(1, &early).is_ok());
    net.crash(1);
    assert!(rotate(&mut net, 0, HOUR).is_ok());
    assert!(
        net.join(2, &early).is_ok(),
        "good as long as the old secret"
    );
    let told = |net: &mut Net| state(net, 2).previous_until.is_some();
    assert!(net.run_until(MINUTE, told), "it accepts the old secret too");
    net.start(1);
    assert!(net.run_until(MINUTE, |net| have(net, &[0, 1, 2], 2, 0)));
    net.run(HOUR + MINUTE);
    let expired = Err(CommandError::Refused(Refusal::Expired));
    assert_eq!(net.join(3, &early), expired);
    net.gone.insert(3);
    let late = net.token(0, 1);
    assert!(net.join(4, &late).is_ok());
    assert!(net.run_until(MINUTE, Net::agrees));
}

#[test]
fn two_admins_on_two_sides_of_a_cut_end_with_one_secret() {
    for seed in 540..546 {
        let mut net = cluster(seed, 4, "10.32.0.0/16");
        assert!(add_admin(&mut net, 0, "host3").is_ok());
        for (a, b) in [(0, 2), (0, 3), (1, 2), (1, 3)] {
            net.cut.extend([(a, b), (b, a)]);
        }
        net.run(10 * MINUTE);
        assert!(rotate(&mut net, 0, 2 * HOUR).is_ok());
        assert!(rotate(&mut net, 2, HOUR).is_ok());
        net.run(MINUTE);
        net.cut.clear();
        let agree = |net: &mut Net| net.agrees() && have(net, &[0, 1, 2, 3], 2, 0);
        assert!(net.run_until(2 * MINUTE, agree), "seed {seed}");
        net.run(3 * HOUR);
        for n in 0..4 {
            net.crash(n);
            net.start(n);
        }
        let up = |net: &mut Net| (1..4).all(|n| talks(net, 0, n) && talks(net, n, 0));
        assert!(
            net.run_until(MINUTE, up),
            "seed {seed}: they have one secret"
        );
    }
}

#[test]
fn what_a_removed_admin_gave_unheard_is_taken_back() {
    for seed in 560..563 {
        let mut net = cluster(seed, 5, "10.32.0.0/16");
        assert!(add_admin(&mut net, 0, "host5").is_ok());
        // The admin and one more are alone when it changes the secret; it is removed by who knows nothing of that.
        for (a, b) in [(4, 0), (4, 1), (4, 2), (3, 0), (3, 1), (3, 2)] {
            net.cut.extend([(a, b), (b, a)]);
        }
        net.run(10 * MINUTE);
        assert!(rotate(&mut net, 4, HOUR).is_ok());
        assert!(net.run_until(MINUTE, |net| state(net, 3).epoch == 2));
        let node = "host5".to_owned();
        assert!(net.ask(0, Command::Remove { node, heir: None }).is_ok());
        net.crash(4);
        net.gone.insert(4);
        net.cut.clear();
        let back = |net: &mut Net| net.agrees() && have(net, &[0, 1, 2, 3], 1, 0);
        assert!(net.run_until(2 * MINUTE, back), "seed {seed}");
        net.run(2 * MINUTE);
        assert!(rotate(&mut net, 0, HOUR).is_ok());
        assert!(net.run_until(MINUTE, |net| have(net, &[0, 1, 2, 3], 2, 0)));
    }
}

#[test]
fn the_secret_is_changed_by_admins_one_change_after_the_other() {
    let mut net = cluster(570, 3, "10.32.0.0/16");
    let admins = vec!["host1".to_owned()];
    assert_eq!(
        rotate(&mut net, 1, HOUR),
        Err(CommandError::NotAdmin { admins })
    );
    assert_eq!(
        rotate(&mut net, 0, Duration::ZERO),
        Err(CommandError::OverlapTerms)
    );
    assert!(rotate(&mut net, 0, HOUR).is_ok());
    net.run(MINUTE);
    let again = rotate(&mut net, 0, HOUR);
    assert!(
        matches!(again, Err(CommandError::Overlapping(left)) if left < HOUR),
        "{again:?}"
    );
    net.run(HOUR);
    assert!(rotate(&mut net, 0, HOUR).is_ok());
    assert!(net.run_until(MINUTE, |net| have(net, &[0, 1, 2], 3, 0)));
    net.run(2 * HOUR);
    net.nodes[0].disk_full = true;
    let failed = rotate(&mut net, 0, HOUR);
    assert!(
        matches!(failed, Err(CommandError::Storage(_))),
        "{failed:?}"
    );
    net.nodes[0].disk_full = false;
    net.run(MINUTE);
    assert!(have(&mut net, &[0, 1, 2], 3, 0), "nothing was changed");
}

#[test]
fn a_crash_around_a_change_shuts_nobody_out() {
    for seed in 600..616 {
        let mut net = cluster(seed, 4, "10.32.0.0/20").bad();
        net.loss = 15;
        let overlap = 20 * MINUTE;
        net.command(0, Command::SecretRotate { overlap });
        for _ in 0..6 {
            let pause = Duration::from_millis(net.rng.random_range(0..200));
            net.run(pause);
            let n = net.rng.random_range(0..4_usize);
            match net.nodes[n].core {
                Some(_) => net.crash(n),
                None => net.start(n),
            }
        }
        for n in 0..4 {
            if net.nodes[n].core.is_none() {
                net.start(n);
            }
        }
        net.loss = 0;
        let one = |net: &mut Net| {
            let epoch = state(net, 0).epoch;
            net.agrees() && have(net, &[0, 1, 2, 3], epoch, 0)
        };
        assert!(net.run_until(5 * MINUTE, one), "seed {seed}");
        net.run(21 * MINUTE);
        cut_off(&mut net, 1);
        net.run(5 * MINUTE);
        net.cut.clear();
        let up = |net: &mut Net| (1..4).all(|n| talks(net, 0, n) && talks(net, n, 0));
        assert!(
            net.run_until(MINUTE, up),
            "seed {seed}: by the new secret alone"
        );
    }
}
