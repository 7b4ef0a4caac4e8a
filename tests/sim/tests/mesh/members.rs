//! Who may invite, and by what: tokens that are listed and taken back, admins beside the node that made the cluster.

use std::time::Duration;

use rand::RngExt;
use weave_router::core::command::{Command, CommandError, Reply};
use weave_router::mesh::tokens::{Refusal, TokenInfo};
use weave_router::wire::{Header, Type};
use weave_sim::net::{Answer, Crash, Net};

use super::{HOUR, MINUTE, cluster};

fn tokens(net: &mut Net, n: usize) -> Vec<TokenInfo> {
    match net.ask(n, Command::TokenList) {
        Ok(Reply::Tokens(tokens)) => tokens,
        other => panic!("{other:?}"),
    }
}

pub(super) fn add_admin(net: &mut Net, n: usize, node: &str) -> Answer {
    let node = node.to_owned();
    net.ask(n, Command::AdminAdd { node })
}

#[test]
fn tokens_are_listed_and_taken_back() {
    let mut net = Net::new(1, 4);
    net.init(0, "10.32.0.0/16");
    let [used, old, taken] = [1, 1, 2].map(|uses| net.token(0, uses));
    assert!(net.join(1, &used).is_ok());
    assert!(net.join(2, &taken).is_ok());
    let start = taken.id.to_string()[..8].to_owned();
    let revoke = |id: String| Command::TokenRevoke { id };
    let answer = net.ask(0, revoke(start.clone()));
    assert!(matches!(answer, Ok(Reply::Tokens(tokens)) if tokens[0].id == taken.id));
    assert!(net.ask(0, revoke(start)).is_ok(), "again is no error");
    for wrong in ["", "zzzzzz", "0000", &taken.id.to_string()[..3]] {
        let error = CommandError::UnknownToken(wrong.to_owned());
        assert_eq!(net.ask(0, revoke(wrong.to_owned())), Err(error));
    }
    net.crash(0);
    net.start(0);
    let refused = Err(CommandError::Refused(Refusal::Revoked));
    assert_eq!(net.join(3, &taken), refused, "also after a restart");
    net.run(HOUR);
    let dead = |net: &mut Net, id| {
        let all = tokens(net, 0);
        all.iter().find(|info| info.id == id).unwrap().dead
    };
    assert_eq!(dead(&mut net, old.id), Some(Refusal::Expired));
    assert_eq!(dead(&mut net, taken.id), Some(Refusal::Revoked));
    net.run(HOUR * 24);
    let fresh = net.token(0, 1);
    let left: Vec<_> = tokens(&mut net, 0)
        .into_iter()
        .map(|info| info.id)
        .collect();
    assert_eq!(left, [fresh.id], "a day later they are forgotten");
}

/// Somebody sends again what a joiner sent, at once and when the join is forgotten: nobody comes in by it.
#[test]
fn a_join_that_is_sent_again_lets_nobody_in() {
    let mut net = Net::new(4, 2);
    net.init(0, "10.32.0.0/16");
    let token = net.token(0, 5);
    assert!(net.join(1, &token).is_ok());
    let of_join = |bytes: &[u8]| {
        let kind = Header::parse(bytes).unwrap().kind;
        matches!(kind, Type::JoinHello | Type::JoinRequest)
    };
    let seen = net.seen.iter().filter(|(from, ..)| *from == 1);
    let seen = seen.map(|(.., bytes)| bytes.clone());
    let join: Vec<Vec<u8>> = seen.filter(|bytes| of_join(bytes)).collect();
    assert!(join.len() >= 2);
    let before = tokens(&mut net, 0);
    for wait in [Duration::ZERO, MINUTE] {
        net.run(wait);
        let from = net.add();
        for bytes in &join {
            net.put(from, 0, bytes.clone());
        }
        net.run(MINUTE);
        assert_eq!(tokens(&mut net, 0), before);
        assert_eq!(net.view(0).members.len(), 1);
    }
}

#[test]
fn an_admin_that_was_made_invites_and_makes_admins() {
    let mut net = Net::new(2, 6).bad();
    net.init(0, "10.32.0.0/16");
    let token = net.token(0, 3);
    for n in 1..4 {
        assert!(net.join(n, &token).is_ok());
    }
    let create = || Command::TokenCreate {
        ttl: HOUR,
        uses: 1,
        addresses: vec![],
    };
    let admins = vec!["host1".to_owned()];
    assert!(net.run_until(MINUTE, |net| net.view(1).members.len() == 3));
    assert_eq!(
        net.ask(1, create()),
        Err(CommandError::NotAdmin {
            admins: admins.clone()
        })
    );
    assert_eq!(
        add_admin(&mut net, 1, "host3"),
        Err(CommandError::NotAdmin { admins })
    );
    assert!(net.run_until(MINUTE, |net| net.view(0).members.len() == 3));
    let done = add_admin(&mut net, 0, "host2");
    assert!(matches!(done, Ok(Reply::Node { name, .. }) if name.as_str() == "host2"));
    assert!(add_admin(&mut net, 0, "host2").is_ok(), "again is no error");
    let sees = |net: &mut Net| net.view(1).admin;
    assert!(net.run_until(MINUTE, sees));
    net.crash(0);
    let token = net.token(1, 1);
    assert!(net.join(4, &token).is_ok(), "the first node is down");
    let id = net.nodes[2].core.as_ref().unwrap().id().to_string();
    assert!(add_admin(&mut net, 1, &id[..6]).is_ok());
    net.crash(1);
    net.start(1);
    let token = net.token(2, 1);
    assert!(
        net.join(5, &token).is_ok(),
        "by an admin that an admin made"
    );
    net.start(0);
    assert!(
        net.run_until(10 * MINUTE, Net::agrees),
        "all believe one another"
    );
    let admins = net
        .view(5)
        .members
        .iter()
        .filter(|member| member.admin)
        .count();
    assert_eq!(admins, 3);
}

#[test]
fn only_members_that_are_here_become_admins() {
    let mut net = cluster(3, 3, "10.32.0.0/16");
    let unknown = CommandError::UnknownNode("host9".to_owned());
    assert_eq!(add_admin(&mut net, 0, "host9"), Err(unknown));
    let short = net.nodes[1].core.as_ref().unwrap().id().to_string()[..5].to_owned();
    let unknown = CommandError::UnknownNode(short.clone());
    assert_eq!(add_admin(&mut net, 0, &short), Err(unknown));
    assert!(add_admin(&mut net, 0, "host1").is_ok(), "it is one");
    // A third node would hand the word on.
    net.cut.extend([(0, 1), (1, 0), (2, 1), (1, 2)]);
    let node = "host2".to_owned();
    assert_eq!(
        add_admin(&mut net, 0, "host2"),
        Err(CommandError::NotConfirmed { node })
    );
    net.run(10 * MINUTE);
    let name = "host2".to_owned();
    assert_eq!(
        add_admin(&mut net, 0, "host2"),
        Err(CommandError::NotConnected(name))
    );
}

fn remove(net: &mut Net, n: usize, node: &str, heir: Option<&str>) -> Answer {
    let (node, heir) = (node.to_owned(), heir.map(str::to_owned));
    net.ask(n, Command::Remove { node, heir })
}

/// Everybody but those that are gone has cut `node`.
fn is_cut(net: &mut Net, node: usize) -> bool {
    let name = net.nodes[node].name.clone();
    let living: Vec<usize> = (0..net.nodes.len())
        .filter(|n| !net.gone.contains(n))
        .collect();
    living.into_iter().all(|n| {
        let up = net.nodes[n].core.is_some();
        !up || net
            .view(n)
            .members
            .iter()
            .all(|member| member.name.as_str() != name)
    })
}

#[test]
fn a_removed_node_is_cut_everywhere_within_two_seconds_and_its_heir_has_all() {
    for seed in 0..10 {
        let mut net = cluster(seed, 6, "10.32.0.0/16").bad();
        net.loss = 20;
        let theirs = net.mine(3);
        let answer = remove(&mut net, 0, "host4", Some("host3"));
        let Ok(Reply::Removed { heir, .. }) = answer else {
            panic!("{answer:?}")
        };
        assert_eq!(heir.1.as_str(), "host3");
        net.gone.insert(3);
        let cut = |net: &mut Net| is_cut(net, 3);
        assert!(net.run_until(Duration::from_secs(2), cut), "seed {seed}");
        assert!(net.run_until(MINUTE, Net::agrees), "seed {seed}");
        let whole = |net: &mut Net| net.check_ownership() == 1 << 16;
        assert!(net.run_until(MINUTE, whole), "seed {seed}: nothing is lost");
        let heirs = net.mine(2);
        assert!(theirs.iter().all(|block| {
            heirs
                .iter()
                .any(|own| own.contains(block.first()) && own.contains(block.last()))
        }));
        net.run(10 * MINUTE);
        assert!(is_cut(&mut net, 3), "seed {seed}: it does not come back");
        for n in [0, 2, 5] {
            net.crash(n);
            net.start(n);
        }
        assert!(net.run_until(10 * MINUTE, Net::agrees), "seed {seed}");
        assert!(
            is_cut(&mut net, 3) && whole(&mut net),
            "seed {seed}: nor after restarts"
        );
    }
}

#[test]
fn the_addresses_of_a_removed_node_wait_for_every_living_member() {
    let mut net = cluster(4, 5, "10.32.0.0/16");
    net.crash(4);
    net.crash(3);
    assert!(remove(&mut net, 0, "host5", None).is_ok());
    net.gone.insert(4);
    net.run(10 * MINUTE);
    let (owned, waits) = (net.check_ownership(), net.view(0).waiting.clone());
    assert!(owned < 1 << 16, "host4 has not confirmed");
    assert_eq!(waits.len(), 1);
    assert_eq!(waits[0].silent.len(), 1);
    net.start(3);
    let whole = |net: &mut Net| net.check_ownership() == 1 << 16;
    assert!(net.run_until(MINUTE, whole), "it has");
    assert!(net.view(0).waiting.is_empty());
    // The removed node comes back and knows of nothing: nobody speaks to it.
    net.start(4);
    net.run(MINUTE);
    assert!(is_cut(&mut net, 4));
    assert!(net.view(4).members.iter().all(|member| !member.connected));
    assert!(net.view(4).dismissed.is_some(), "but it is told why");
}

#[test]
fn what_a_removed_node_gave_away_stays_where_it_is() {
    let mut net = cluster(5, 3, "10.32.0.0/20");
    // The second and third node fill up and ask the first for more until it is the poorer.
    for n in 0..600 {
        let id = format!("c{n}");
        let _ = net.allocate(2, &id, None);
    }
    net.run(MINUTE);
    assert!(add_admin(&mut net, 0, "host2").is_ok());
    assert!(net.run_until(MINUTE, |net| net.view(1).admin));
    let (second, third) = (net.mine(1), net.mine(2));
    assert!(remove(&mut net, 1, "host1", Some("host3")).is_ok());
    net.gone.insert(0);
    let whole = |net: &mut Net| net.check_ownership() == 1 << 12;
    assert!(
        net.run_until(MINUTE, whole),
        "the genesis deed's rest is inherited"
    );
    assert_eq!(net.mine(1), second);
    assert!(
        third
            .iter()
            .all(|block| net.mine(2).iter().any(|own| own.contains(block.first())))
    );
    assert!(net.run_until(MINUTE, Net::agrees));
    assert_eq!(
        net.ask(0, Command::TokenList),
        Err(CommandError::Removed),
        "it was told"
    );
}

#[test]
fn nobody_removes_what_there_is_not_or_itself() {
    let mut net = cluster(6, 3, "10.32.0.0/16");
    assert_eq!(
        remove(&mut net, 0, "host1", None),
        Err(CommandError::Oneself)
    );
    let unknown = |name: &str| Err(CommandError::UnknownNode(name.to_owned()));
    assert_eq!(remove(&mut net, 0, "host7", None), unknown("host7"));
    assert_eq!(
        remove(&mut net, 0, "host2", Some("host8")),
        unknown("host8")
    );
    let itself = Err(CommandError::HeirOfItself("host2".to_owned()));
    assert_eq!(remove(&mut net, 0, "host2", Some("host2")), itself);
    let admins = vec!["host1".to_owned()];
    assert_eq!(
        remove(&mut net, 1, "host3", None),
        Err(CommandError::NotAdmin { admins })
    );
    assert!(remove(&mut net, 0, "host2", None).is_ok());
    assert_eq!(
        remove(&mut net, 0, "host2", None),
        unknown("host2"),
        "it is gone"
    );
    net.run(MINUTE);
    assert!(is_cut(&mut net, 1));
}

#[test]
fn no_address_is_owned_twice_whenever_nodes_crash_around_a_removal() {
    for seed in 200..230 {
        let mut net = cluster(seed, 5, "10.32.0.0/20").bad();
        net.loss = 15;
        let victim = net.rng.random_range(1..5_usize);
        let at = net.rng.random_range(0..30_u32);
        for round in 0..40 {
            let pause = Duration::from_millis(net.rng.random_range(1..400));
            net.run(pause);
            let n = net.rng.random_range(0..5_usize);
            if net.nodes[n].core.is_some() {
                let id = format!("c{round}");
                net.command(
                    n,
                    Command::Allocate {
                        id,
                        want: None,
                        among: Vec::new(),
                        area: None,
                    },
                );
            }
            if round == at {
                if net.nodes[0].core.is_none() {
                    net.start(0);
                }
                let node = net.nodes[victim].name.clone();
                let heir = None;
                net.command(0, Command::Remove { node, heir });
                net.run_until(MINUTE, |net| is_cut(net, victim));
                net.gone.insert(victim);
            }
            net.check_ownership();
            let n = net.rng.random_range(0..5_usize);
            match net.nodes[n].core {
                Some(_) => net.crash(n),
                None => net.start(n),
            }
            net.check_ownership();
        }
        for n in 0..5 {
            if net.nodes[n].core.is_none() {
                net.start(n);
            }
        }
        assert!(
            net.run_until(10 * MINUTE, Net::agrees),
            "seed {seed}: all agree"
        );
        let whole = |net: &mut Net| net.check_ownership() == 1 << 12;
        assert!(
            net.run_until(10 * MINUTE, whole),
            "seed {seed}: {} of 4096 are owned",
            net.check_ownership()
        );
    }
}

fn leave(net: &mut Net, n: usize, force: bool) -> Answer {
    net.ask(n, Command::Leave { force })
}

#[test]
fn a_node_that_leaves_hands_everything_over_and_may_come_back_as_another() {
    for seed in 300..310 {
        let mut net = cluster(seed, 4, "10.32.0.0/16").bad();
        net.loss = 20;
        let before = net.nodes[2].core.as_ref().unwrap().id();
        assert!(net.allocate(2, "web,eth0", None).is_ok());
        assert_eq!(leave(&mut net, 2, false), Err(CommandError::InUse(1)));
        assert!(
            net.ask(
                2,
                Command::Release {
                    id: "web,eth0".to_owned()
                }
            )
            .is_ok()
        );
        let answer = leave(&mut net, 2, false);
        assert!(
            matches!(answer, Ok(Reply::Left { heir: Some(_) })),
            "seed {seed}: {answer:?}"
        );
        assert!(net.view(2).cluster.is_none() && net.view(2).members.is_empty());
        assert_ne!(net.nodes[2].core.as_ref().unwrap().id(), before);
        net.gone.insert(2);
        let whole = |net: &mut Net| net.agrees() && net.check_ownership() == 1 << 16;
        assert!(net.run_until(MINUTE, whole), "seed {seed}: nothing is lost");
        net.crash(2);
        net.start(2);
        assert!(net.view(2).cluster.is_none(), "also after a restart");
        let token = net.token(0, 1);
        let answer = net.join(2, &token);
        assert!(
            matches!(answer, Ok(Reply::Member { .. })),
            "seed {seed}: {answer:?}"
        );
        net.gone.remove(&2);
        assert!(net.run_until(MINUTE, whole), "seed {seed}");
    }
}

#[test]
fn a_node_does_not_leave_others_in_the_lurch_unless_it_must() {
    let mut net = cluster(7, 3, "10.32.0.0/16");
    assert_eq!(leave(&mut net, 0, false), Err(CommandError::LastAdmin));
    net.cut.extend([(1, 0), (0, 1), (1, 2), (2, 1)]);
    net.run(10 * MINUTE);
    assert_eq!(leave(&mut net, 1, false), Err(CommandError::NobodyToTake));
    assert_eq!(leave(&mut net, 1, true), Ok(Reply::Left { heir: None }));
    net.cut.clear();
    assert!(
        remove(&mut net, 0, "host2", None).is_ok(),
        "so the others have to be told"
    );
    net.gone.insert(1);
    let whole = |net: &mut Net| net.check_ownership() == 1 << 16;
    assert!(net.run_until(MINUTE, whole));
    assert!(add_admin(&mut net, 0, "host3").is_ok());
    assert!(leave(&mut net, 0, false).is_ok(), "another admin stays");
    net.gone.insert(0);
    assert!(net.run_until(MINUTE, whole));
    assert_eq!(
        leave(&mut net, 2, false),
        Err(CommandError::LastMember),
        "the cluster would end with it"
    );
    assert_eq!(
        leave(&mut net, 2, true),
        Ok(Reply::Left { heir: None }),
        "the last one"
    );
    assert_eq!(leave(&mut net, 2, false), Err(CommandError::NotMember));
}

#[test]
fn a_cluster_may_shrink_by_more_than_one_member_can_take_back() {
    let count = 70;
    let mut net = cluster(8, count, "10.32.0.0/12");
    for n in (20..count).rev() {
        let answer = leave(&mut net, n, false);
        assert!(
            matches!(answer, Ok(Reply::Left { heir: Some(_) })),
            "node {n}: {answer:?}"
        );
        net.gone.insert(n);
    }
    let whole = |net: &mut Net| net.agrees() && net.check_ownership() == 1 << 20;
    assert!(net.run_until(MINUTE, whole), "nothing is lost");
}

/// Nodes come and go as in a cluster that scales by itself: mostly they leave, sometimes they are killed and removed.
#[test]
fn nodes_come_and_go_for_months_and_every_one_can_leave() {
    /// The records of two members that stay and up to three that do not, with all proofs.
    const MOST_BYTES: usize = 5 * 3000;
    let mut net = Net::new(71, 5);
    net.frugal = true;
    net.init(0, "10.32.0.0/16");
    let token = net.token_for(0, 10_000, HOUR * 24 * 365);
    assert!(net.join(1, &token).is_ok());
    let (mut joins, mut here) = (0, [false; 5]);
    while joins < 250 {
        let n = net.rng.random_range(2..5_usize);
        here[n] = !here[n];
        if here[n] {
            let answer = net.join(n, &token);
            assert!(answer.is_ok(), "join {joins}: {answer:?}");
            joins += 1;
        } else if net.rng.random_ratio(1, 8) {
            net.kill(n, false);
            let name = net.nodes[n].name.clone();
            let removed = remove(&mut net, 0, &name, None);
            assert!(removed.is_ok(), "after join {joins}: {removed:?}");
            net.start(n);
        } else {
            let answer = leave(&mut net, n, false);
            let left = matches!(answer, Ok(Reply::Left { heir: Some(_) }));
            assert!(left, "after join {joins}: {answer:?}");
        }
        let known = net.nodes[0].core().known_bytes();
        assert!(known <= MOST_BYTES, "after join {joins}: {known} bytes");
    }
    net.gone = (2..5).filter(|n| !here[*n]).collect();
    let whole = |net: &mut Net| net.agrees() && net.check_ownership() == 1 << 16;
    assert!(net.run_until(MINUTE, whole), "nothing is lost");
    assert!(net.mine(0).len() <= 8 * 5, "it is whole, too");
}

/// The worst that an old disk of the node with the cluster's key could do: what comes back to it is renewed while it
/// does not know what it has given since.
#[test]
fn an_old_disk_of_the_first_node_takes_nothing_from_whom_it_forgot() {
    let mut net = Net::new(72, 4);
    net.init(0, "10.32.0.0/16");
    let token = net.token(0, 3);
    assert!(net.join(1, &token).is_ok() && net.join(3, &token).is_ok());
    net.run(MINUTE / 4);
    let old = net.nodes[0].disk.clone();
    let between = |one: usize, others: &[usize]| -> Vec<(usize, usize)> {
        let both = others.iter().map(|other| [(one, *other), (*other, one)]);
        both.flatten().collect()
    };
    net.cut.extend(between(1, &[0, 2, 3]));
    assert!(net.join(2, &token).is_ok());
    assert!(net.allocate(2, "a", None).is_ok());
    net.run(MINUTE / 4);
    let theirs = net.mine(2);
    net.cut.extend(between(0, &[2, 3]));
    net.kill(0, false);
    net.nodes[0].disk = old;
    net.start(0);
    for way in between(1, &[0]) {
        net.cut.remove(&way);
    }
    net.run(MINUTE / 2);
    let left = leave(&mut net, 1, false);
    let left = matches!(left, Ok(Reply::Left { heir: Some(_) }));
    assert!(left, "node 3 is a member, too, and is not asked");
    net.gone.insert(1);
    net.run(MINUTE / 4);
    net.cut.clear();
    net.run(MINUTE / 2);
    let whole = |net: &mut Net| net.agrees() && net.check_ownership() == 1 << 16;
    assert!(net.run_until(MINUTE, whole), "{:?}", net.ownership());
    assert_eq!(
        net.mine(2),
        theirs,
        "whom it forgot keeps what it was given"
    );
}

#[test]
fn who_leaves_at_the_second_attempt_loses_nothing_of_the_first() {
    let mut net = cluster(9, 4, "10.32.0.0/16");
    // Node 3 got its addresses from node 0, which falls silent when it is to have them back.
    net.command(3, Command::Leave { force: false });
    net.crash(0);
    net.run(MINUTE / 2);
    let again = leave(&mut net, 3, false);
    assert!(
        matches!(&again, Err(CommandError::NotConfirmed { node }) if node == "host1"),
        "{again:?}"
    );
    let forced = leave(&mut net, 3, true);
    assert!(
        matches!(forced, Ok(Reply::Left { heir: Some(_) })),
        "{forced:?}"
    );
    net.start(0);
    net.gone.insert(3);
    let whole = |net: &mut Net| net.agrees() && net.check_ownership() == 1 << 16;
    assert!(net.run_until(MINUTE, whole), "nothing is lost");
}

#[test]
fn a_crash_while_leaving_loses_no_address() {
    for seed in 400..430 {
        let mut net = cluster(seed, 3, "10.32.0.0/20").bad();
        net.loss = 10;
        net.command(1, Command::Leave { force: false });
        let pause = Duration::from_millis(net.rng.random_range(0..400));
        net.run(pause);
        net.check_ownership();
        let n = net.rng.random_range(0..2_usize);
        net.crash(n);
        net.check_ownership();
        net.start(n);
        net.run(MINUTE);
        if net.view(1).cluster.is_none() {
            net.gone.insert(1);
            if net.view(0).members.len() == 2 {
                assert!(remove(&mut net, 0, "host2", None).is_ok(), "seed {seed}");
            }
        }
        let whole = |net: &mut Net| net.agrees() && net.check_ownership() == 1 << 12;
        assert!(
            net.run_until(10 * MINUTE, whole),
            "seed {seed} after {pause:?}"
        );
    }
}

/// The name on the sheet of each member that a node knows one of.
fn sheets(net: &mut Net, n: usize) -> Vec<String> {
    let view = net.view(n);
    let text = |content: &std::sync::Arc<[u8]>| String::from_utf8(content.to_vec()).unwrap();
    view.sheets.values().map(text).collect()
}

fn tell(net: &mut Net, n: usize) {
    let content = format!("host{}", n + 1).into_bytes();
    net.command(n, Command::SetSheet { content });
}

#[test]
fn sheets_go_with_their_members_and_new_ones_get_those_of_the_living() {
    const GONE: std::ops::Range<usize> = 3..21;
    let mut net = Net::new(61, 23);
    net.init(0, "10.32.0.0/12");
    let token = net.token(0, 23);
    for n in 1..GONE.end {
        assert!(net.join(n, &token).is_ok());
    }
    (0..GONE.end).for_each(|n| tell(&mut net, n));
    let all = |count| move |net: &mut Net| (0..3).all(|n| sheets(net, n).len() == count);
    assert!(net.run_until(10 * MINUTE, all(GONE.end - 1)));
    for n in GONE {
        net.crash(n);
        let (node, heir) = (format!("host{}", n + 1), None);
        assert!(net.ask(0, Command::Remove { node, heir }).is_ok());
    }
    assert!(net.run_until(10 * MINUTE, all(2)), "they are forgotten");
    let bytes = |net: &Net, n: usize| net.nodes[n].core.as_ref().unwrap().known_bytes();
    let before = bytes(&net, 1);
    net.crash(1);
    net.start(1);
    assert!(net.run_until(MINUTE, all(2)), "also by the disk");
    assert!(bytes(&net, 1) <= before + 1024);
    for n in GONE.end..GONE.end + 2 {
        assert!(net.join(n, &token).is_ok());
        tell(&mut net, n);
        let knows = |net: &mut Net| sheets(net, n).len() == n - GONE.end + 3;
        assert!(
            net.run_until(MINUTE, knows),
            "host{} knows the living",
            n + 1
        );
        let told = |net: &mut Net| sheets(net, 2).contains(&format!("host{}", n + 1));
        assert!(net.run_until(MINUTE, told), "and they know it");
    }
}

#[test]
fn a_node_that_was_let_in_and_never_came_can_be_removed() {
    let mut net = cluster(63, 3, "10.32.0.0/16");
    assert!(add_admin(&mut net, 0, "host2").is_ok());
    assert!(net.run_until(MINUTE, |net| net.view(1).admin));
    let late = net.add();
    net.start(late);
    net.run(MINUTE / 6);
    let id = net.nodes[late].core().id();
    net.nodes[late].crash = Some(Crash::Unsaved);
    let (token, taken) = (net.token(0, 1), Vec::new());
    net.command(late, Command::Join { token, taken });
    net.run(MINUTE / 6);
    assert!(net.nodes[late].core.is_none(), "let in, and gone");
    let awaited = net.view(0).awaited.clone();
    assert_eq!(awaited, [(id, Some(net.nodes[late].address))].into());

    net.crash(2);
    let heir = id.short();
    assert_eq!(
        remove(&mut net, 0, "host3", Some(&heir)),
        Err(CommandError::UnknownNode(heir)),
        "it would never take them"
    );
    assert!(remove(&mut net, 0, "host3", Some("host2")).is_ok());
    net.run(MINUTE);
    let silent = |net: &mut Net| -> Vec<_> {
        let view = net.view(1);
        view.waiting.iter().map(|of| of.silent.clone()).collect()
    };
    assert_eq!(silent(&mut net), [vec![id]], "its heir waits for it");
    assert!(net.view(1).awaited.contains_key(&id));
    let removed = remove(&mut net, 1, &id.short(), None);
    assert!(
        matches!(&removed, Ok(Reply::Removed { id: one, name, .. }) if *one == id && name.as_str() == id.short()),
        "{removed:?}"
    );
    assert!(net.run_until(MINUTE, |net| silent(net).is_empty()));
    assert!(net.run_until(MINUTE, |net| net.view(0).awaited.is_empty()));
    net.gone.extend([2, late]);
    assert!(net.run_until(MINUTE, Net::agrees));
    assert_eq!(net.check_ownership(), 1 << 16, "its heir has the addresses");
}
