//! The control core on a bad network in virtual time: joining, knowing one another, owning addresses, surviving.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "mesh/copies.rs"]
mod copies;
#[path = "mesh/hostile.rs"]
mod hostile;
#[path = "mesh/members.rs"]
mod members;
#[path = "mesh/removals.rs"]
mod removals;
#[path = "mesh/rotation.rs"]
mod rotation;
#[path = "mesh/ways.rs"]
mod ways;

use std::collections::BTreeMap;
use std::time::Duration;

use rand::RngExt;
use weave_model::{Block, NodeId, Token, TokenId};
use weave_router::core::command::{Command, CommandError, Reply, Taken};
use weave_router::core::view::{Member, Owner};
use weave_router::keys::NodeKeys;
use weave_router::mesh::cluster::ClusterKey;
use weave_router::mesh::deed::Deed;
use weave_router::mesh::message::Message;
use weave_router::mesh::parts;
use weave_router::mesh::tokens::Refusal;
use weave_router::wire::{Header, Type};
use weave_sim::net::Net;

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

/// A cluster of `count` nodes in which everybody knows everybody.
fn cluster(seed: u64, count: usize, range: &str) -> Net {
    let mut net = Net::new(seed, count);
    net.init(0, range);
    let token = net.token(0, count as u32);
    for n in 1..count {
        let answer = net.join(n, &token);
        assert!(matches!(answer, Ok(Reply::Member { .. })), "{answer:?}");
    }
    assert!(net.run_until(MINUTE, Net::agrees), "all agree");
    net
}

#[test]
fn nodes_join_and_learn_of_each_other_with_thirty_percent_loss() {
    for seed in 0..10 {
        let mut net = Net::new(seed, 5).bad();
        net.init(0, "10.32.0.0/12");
        let token = net.token(0, 4);
        for n in 1..5 {
            let answer = net.join(n, &token);
            assert!(
                matches!(answer, Ok(Reply::Member { .. })),
                "seed {seed}, node {n}: {answer:?}"
            );
            net.check_ownership();
        }
        assert!(net.run_until(MINUTE, Net::agrees), "seed {seed}: all agree");
        assert_eq!(net.check_ownership(), 1 << 20, "nothing is lost");
        let owned = net.mine(3);
        let size: u32 = owned.iter().map(Block::size).sum();
        assert!(size >= 256, "seed {seed}: a /24 at least, not {size}");
        let view = net.view(4);
        let Some(Owner::Member(at)) = view.owner(owned[0].first()) else {
            panic!("host4 owns it")
        };
        assert_eq!(view.members[at as usize].name.as_str(), "host4");
        assert_eq!(view.owner(view.mine[0].last()), Some(Owner::Me));
    }
}

/// Sends an address request to a node that lives, and notes every answer that was given so far: those count.
fn use_addresses(net: &mut Net, given: &mut BTreeMap<(usize, String), u32>) {
    let n = net.rng.random_range(0..5_usize);
    if net.nodes[n].core.is_some() {
        let id = format!("c{}", net.rng.random_range(0..20_u32));
        let command = net.command(
            n,
            Command::Allocate {
                id: id.clone(),
                want: None,
                among: Vec::new(),
                area: None,
            },
        );
        net.run(Duration::from_millis(20));
        if let Some(Ok(Reply::Address(offset))) = net.nodes[n].answers.remove(&command) {
            let before = given.insert((n, id), offset);
            assert!(
                before.is_none_or(|before| before == offset),
                "an address that was given stays"
            );
        }
    }
    let mut offsets: Vec<u32> = given.values().copied().collect();
    offsets.sort_unstable();
    assert!(
        offsets.windows(2).all(|pair| pair[0] < pair[1]),
        "given twice: {given:?}"
    );
}

#[test]
fn no_address_is_owned_twice_whenever_nodes_crash() {
    for seed in 100..130 {
        let mut given = BTreeMap::new();
        let mut net = Net::new(seed, 5).bad();
        net.loss = 15;
        net.init(0, "10.32.0.0/20");
        let token = net.token(0, 100);
        for n in 1..5 {
            net.command(
                n,
                Command::Join {
                    token: token.clone(),
                    taken: vec![],
                },
            );
        }
        for _ in 0..60 {
            let pause = Duration::from_millis(net.rng.random_range(1..400));
            net.run(pause);
            net.check_ownership();
            use_addresses(&mut net, &mut given);
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
            if n > 0 && net.view(n).cluster.is_none() {
                let answer = net.join(n, &token);
                let busy = Err(CommandError::Underway);
                assert!(
                    answer == busy || matches!(answer, Ok(Reply::Member { .. })),
                    "seed {seed}: {answer:?}"
                );
            }
        }
        assert!(
            net.run_until(10 * MINUTE, Net::agrees),
            "seed {seed}: all agree"
        );
        let whole = |net: &mut Net| net.check_ownership() == 1 << 12;
        assert!(
            net.run_until(MINUTE, whole),
            "seed {seed}: {} of 4096 are owned",
            net.check_ownership()
        );
    }
}

#[test]
fn a_token_is_good_for_as_many_as_it_says() {
    let mut net = Net::new(1, 4);
    net.init(0, "10.32.0.0/16");
    let token = net.token(0, 1);
    assert!(net.join(1, &token).is_ok());
    assert_eq!(
        net.join(2, &token),
        Err(CommandError::Refused(Refusal::UsedUp))
    );
    net.crash(0);
    net.start(0);
    assert_eq!(
        net.join(2, &token),
        Err(CommandError::Refused(Refusal::UsedUp)),
        "also after a restart"
    );
    let token = net.token(0, 1);
    net.run(HOUR);
    assert_eq!(
        net.join(2, &token),
        Err(CommandError::Refused(Refusal::Expired))
    );
    assert!(net.view(2).cluster.is_none(), "nothing is left half made");
    let token = net.token(0, 1);
    assert!(net.join(2, &token).is_ok());
}

#[test]
fn an_unknown_token_or_a_silent_address_is_given_up() {
    let mut net = Net::new(2, 2);
    net.init(0, "10.32.0.0/16");
    let token = net.token(0, 1);
    let unknown = Token {
        id: TokenId([9; 16]),
        ..token.clone()
    };
    let nowhere = Token {
        addresses: vec!["203.0.113.9:6783".parse().unwrap()],
        ..token
    };
    for token in [unknown, nowhere] {
        let before = net.now.mono;
        let answer = net.join(1, &token);
        assert_eq!(answer, Err(CommandError::NoAnswer(token.addresses)));
        assert!(net.now.mono - before <= Duration::from_secs(11));
    }
    let said = CommandError::NoAnswer(vec![net.nodes[0].address]).to_string();
    assert_eq!(
        said,
        "no node answered at 192.0.2.1:6783, or the token is unknown there"
    );
}

#[test]
fn the_wrong_cluster_is_refused_before_the_joiner_names_itself() {
    let mut net = Net::new(3, 2);
    net.init(0, "10.32.0.0/16");
    let token = Token {
        cluster: [5; 32],
        ..net.token(0, 1)
    };
    let answer = net.join(1, &token);
    assert_eq!(
        answer,
        Err(CommandError::WrongCluster(net.nodes[0].address))
    );
    net.run(MINUTE);
    let from_joiner = net.seen.iter().filter(|(from, _, _)| *from == 1);
    let kinds: Vec<Type> = from_joiner
        .map(|(_, _, bytes)| Header::parse(bytes).unwrap().kind)
        .collect();
    assert!(
        !kinds.is_empty() && kinds.iter().all(|kind| *kind == Type::JoinHello),
        "{kinds:?}"
    );
}

#[test]
fn a_range_in_use_on_the_joining_host_keeps_it_outside() {
    let mut net = Net::new(7, 2);
    net.init(0, "10.32.0.0/16");
    let token = net.token(0, 1);
    let route = Taken {
        net: "10.32.8.0/24".parse().unwrap(),
        by: "the route 10.32.8.0/24 over eth0".to_owned(),
    };
    let join = |taken| Command::Join {
        token: token.clone(),
        taken,
    };
    let error = net.ask(1, join(vec![route])).unwrap_err();
    let text =
        "the cluster's range 10.32.0.0/16 overlaps the route 10.32.8.0/24 over eth0 on this host";
    assert_eq!(error.to_string(), text);
    net.run(MINUTE);
    let view = net.view(0);
    assert!(
        view.awaited.is_empty() && view.members.is_empty(),
        "no ghost"
    );
    let elsewhere = Taken {
        net: "10.33.0.0/16".parse().unwrap(),
        by: "the address 10.33.0.1 of eth0".to_owned(),
    };
    let joined = net.ask(1, join(vec![elsewhere]));
    assert!(matches!(joined, Ok(Reply::Member { .. })), "{joined:?}");
}

#[test]
fn a_join_that_was_cut_off_can_be_repeated_with_the_same_token() {
    for seed in 0..20 {
        let mut net = Net::new(seed, 2);
        net.init(0, "10.32.0.0/16");
        let token = net.token(0, 1);
        net.command(
            1,
            Command::Join {
                token: token.clone(),
                taken: vec![],
            },
        );
        let early = Duration::from_micros(net.rng.random_range(1_000..40_000));
        net.run(early);
        net.crash(1);
        net.start(1);
        let answer = net.join(1, &token);
        let joined = matches!(answer, Ok(_) | Err(CommandError::AlreadyMember(_)));
        // A first save that the crash cut off takes the identity with it, and then the token was used by another node.
        let reborn = answer == Err(CommandError::Refused(Refusal::UsedUp));
        assert!(
            joined || reborn && early < Duration::from_millis(10),
            "seed {seed}: {answer:?} after {early:?}"
        );
    }
}

#[test]
fn a_joiner_whom_the_inviter_forgot_is_told_so() {
    let mut net = Net::new(11, 2);
    net.init(0, "10.32.0.0/16");
    let token = net.token(0, 1);
    let before = net.nodes[0].disk.clone();
    let taken = vec![];
    let join = net.command(1, Command::Join { token, taken });
    assert!(net.run_until(MINUTE, |net| net.view(1).cluster.is_some()));
    net.kill(0, false);
    net.nodes[0].disk = before;
    net.start(0);
    net.run_until(MINUTE, |net| net.nodes[1].answers.contains_key(&join));
    assert_eq!(net.nodes[1].answers[&join], Err(CommandError::Unanswered));
}

#[test]
fn a_restart_keeps_identity_addresses_and_leases() {
    let mut net = cluster(4, 3, "10.32.0.0/16");
    let Ok(Reply::Address(offset)) = net.allocate(1, "web,eth0", None) else {
        panic!()
    };
    let (id, mine) = (net.nodes[1].core.as_ref().unwrap().id(), net.mine(1));
    assert!(mine.iter().any(|block| block.contains(offset)));
    net.crash(1);
    net.run(MINUTE);
    net.start(1);
    assert_eq!(net.nodes[1].core.as_ref().unwrap().id(), id);
    assert_eq!(net.mine(1), mine);
    assert_eq!(
        net.nodes[1].core.as_ref().unwrap().leases(),
        [("web,eth0".to_owned(), offset)]
    );
    assert_eq!(
        net.allocate(1, "web,eth0", None),
        Ok(Reply::Address(offset))
    );
    let Ok(Reply::Address(other)) = net.allocate(1, "db,eth0", None) else {
        panic!()
    };
    assert_ne!(other, offset);
    assert!(
        net.run_until(MINUTE, Net::agrees),
        "the others know it again"
    );
}

#[test]
fn all_nodes_restart_at_once_and_find_each_other() {
    let mut net = cluster(5, 4, "10.32.0.0/16");
    for n in 0..4 {
        net.crash(n);
    }
    net.run(MINUTE);
    for n in 0..4 {
        net.start(n);
    }
    assert!(net.run_until(MINUTE, Net::agrees));
    assert_eq!(net.check_ownership(), 1 << 16);
}

#[test]
fn members_find_each_other_without_the_first_node() {
    let mut net = cluster(6, 3, "10.32.0.0/16");
    net.crash(0);
    net.crash(1);
    net.start(1);
    let met = |net: &mut Net| {
        net.view(1)
            .members
            .iter()
            .filter(|member| member.connected)
            .count()
            == 1
    };
    assert!(net.run_until(MINUTE, met));
}

#[test]
fn a_busy_node_is_given_more_before_it_runs_out() {
    let mut net = cluster(7, 3, "10.32.0.0/20");
    assert_eq!(
        net.view(1).capacity,
        255,
        "a /24 with the broadcast address in it"
    );
    for n in 0..600 {
        let answer = net.allocate(1, &format!("c{n}"), None);
        assert!(matches!(answer, Ok(Reply::Address(_))), "{n}: {answer:?}");
        net.run(Duration::from_millis(20));
    }
    assert!(net.view(1).capacity >= 768, "{}", net.view(1).capacity);
    net.check_ownership();
    assert!(net.run_until(MINUTE, Net::agrees));
}

#[test]
fn an_exhausted_range_is_told_and_a_joiner_is_told_too() {
    let mut net = Net::new(8, 3);
    net.init(0, "10.32.0.0/24");
    for n in 0..253 {
        assert!(net.allocate(0, &n.to_string(), None).is_ok(), "{n}");
    }
    let full = net.allocate(0, "x", None);
    assert_eq!(
        full,
        Err(CommandError::Exhausted {
            used: 253,
            capacity: 253
        })
    );
    let token = net.token(0, 1);
    assert_eq!(net.join(1, &token), Err(CommandError::NoAddresses));
    assert!(net.view(1).cluster.is_some(), "it is a member all the same");
    for n in 0..200 {
        let released = net.ask(0, Command::Release { id: n.to_string() });
        assert!(matches!(released, Ok(Reply::Released(Some(_)))));
    }
    let given = |net: &mut Net| net.view(1).capacity > 0;
    assert!(net.run_until(3 * MINUTE, given), "it goes on asking");
}

#[test]
fn wrong_wishes_get_their_cause() {
    let mut net = cluster(9, 2, "10.32.0.0/16");
    let theirs = net.mine(1)[0].first() + 5;
    assert_eq!(net.allocate(0, "a", Some(77)), Ok(Reply::Address(77)));
    let address = "10.32.0.77".parse().unwrap();
    let taken = net.allocate(0, "b", Some(77));
    assert_eq!(
        taken,
        Err(CommandError::AddressTaken {
            address,
            holder: "a".to_owned()
        })
    );
    assert_eq!(
        net.allocate(0, "a", Some(78)),
        Err(CommandError::HasOther {
            id: "a".to_owned(),
            address
        })
    );
    let gateway = net.allocate(0, "b", Some(1));
    assert_eq!(
        gateway,
        Err(CommandError::Reserved("10.32.0.1".parse().unwrap()))
    );
    let outside = net.allocate(0, "b", Some(1 << 16));
    assert_eq!(
        outside,
        Err(CommandError::Outside("10.32.0.0/16".parse().unwrap()))
    );
    match net.allocate(0, "b", Some(theirs)) {
        Err(CommandError::Elsewhere { node, .. }) => assert_eq!(node, "host2"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn commands_out_of_place_get_their_cause() {
    let mut net = cluster(17, 2, "10.32.0.0/16");
    let again = net.ask(
        0,
        Command::Init {
            v4: "10.0.0.0/16".parse().unwrap(),
            v6: None,
        },
    );
    assert_eq!(
        again,
        Err(CommandError::AlreadyMember("10.32.0.0/16".parse().unwrap()))
    );
    let ttl = HOUR;
    let invite = net.ask(
        1,
        Command::TokenCreate {
            ttl,
            uses: 1,
            addresses: vec![],
        },
    );
    assert_eq!(
        invite,
        Err(CommandError::NotAdmin {
            admins: vec!["host1".to_owned()]
        })
    );
    let unused = net.ask(
        0,
        Command::Release {
            id: "nobody".to_owned(),
        },
    );
    assert_eq!(unused, Ok(Reply::Released(None)));
    let mut alone = Net::new(1, 1);
    assert_eq!(alone.allocate(0, "a", None), Err(CommandError::NotMember));
    let small = alone.ask(
        0,
        Command::Init {
            v4: "10.0.0.0/30".parse().unwrap(),
            v6: None,
        },
    );
    assert!(matches!(small, Err(CommandError::BadRange(_))));
    assert!(alone.view(0).cluster.is_none());
}

#[test]
fn a_full_disk_stops_allocation_and_nothing_else() {
    let mut net = cluster(10, 2, "10.32.0.0/16");
    assert!(net.allocate(1, "before", None).is_ok());
    net.nodes[1].disk_full = true;
    let refused = net.allocate(1, "during", None);
    assert_eq!(
        refused,
        Err(CommandError::Storage("No space left on device".to_owned()))
    );
    let refused = net.allocate(1, "during", None);
    assert!(matches!(refused, Err(CommandError::Storage(_))));
    assert!(
        net.allocate(1, "before", None).is_ok(),
        "what it has it has"
    );
    assert_eq!(net.view(1).used, 1, "nothing is half done");
    assert!(net.view(1).storage_failure.is_some());
    assert!(net.view(1).members[0].connected);
    net.nodes[1].disk_full = false;
    net.run(Duration::from_secs(10));
    assert!(net.view(1).storage_failure.is_none(), "it recovers alone");
    assert!(net.allocate(1, "during", None).is_ok());
}

#[test]
fn a_donor_with_a_full_disk_gives_nothing() {
    let mut net = Net::new(11, 2);
    net.init(0, "10.32.0.0/16");
    let token = net.token(0, 1);
    net.nodes[0].disk_full = true;
    let answer = net.join(1, &token);
    assert!(
        matches!(
            answer,
            Err(CommandError::NoAnswer(_) | CommandError::Refused(Refusal::Unable))
        ),
        "{answer:?}"
    );
    net.nodes[0].disk_full = false;
    net.run(Duration::from_secs(10));
    assert!(net.join(1, &token).is_ok(), "the use was not lost");
    assert_eq!(net.check_ownership(), 1 << 16);
}

#[test]
fn a_node_behind_a_translator_tells_where_it_is_seen() {
    let mut net = Net::new(12, 3);
    net.nodes[1].local = "10.0.0.5:6783".parse().unwrap();
    net.crash(1);
    net.start(1);
    net.init(0, "10.32.0.0/16");
    let token = net.token(0, 2);
    assert!(net.join(1, &token).is_ok());
    assert!(net.join(2, &token).is_ok());
    let seen = net.nodes[1].address;
    let told = |net: &mut Net| {
        let view = net.view(2);
        let host2 = view
            .members
            .iter()
            .find(|member| member.name.as_str() == "host2");
        host2.is_some_and(|member| member.endpoints.ends_with(&[seen]) && member.connected)
    };
    assert!(net.run_until(MINUTE, told));
}

#[test]
fn a_rolled_back_node_signs_a_record_newer_than_its_last() {
    let mut net = cluster(13, 2, "10.32.0.0/16");
    let old = net.nodes[1].disk.clone();
    net.crash(1);
    net.run(MINUTE);
    net.start(1);
    assert!(net.run_until(MINUTE, Net::agrees));
    net.crash(1);
    net.nodes[1].disk = old;
    net.now.wall -= 24 * HOUR;
    net.nodes[1].local = "192.0.2.99:1".parse().unwrap();
    net.start(1);
    let moved = |net: &mut Net| {
        let view = net.view(0);
        view.members[0].endpoints.first() == Some(&net.nodes[1].local)
    };
    assert!(
        net.run_until(5 * MINUTE, moved),
        "the new record is believed"
    );
}

#[test]
fn control_messages_of_others_pass_through() {
    let mut net = cluster(14, 2, "10.32.0.0/16");
    let peer = net.nodes[1].core.as_ref().unwrap().id();
    let now = net.now;
    assert!(
        net.nodes[0]
            .core
            .as_mut()
            .unwrap()
            .send_control(peer, &[40, 1, 2], now)
    );
    net.command(0, Command::SetEndpoints { endpoints: vec![] });
    net.run(Duration::from_secs(1));
    assert_eq!(net.nodes[1].controls, [vec![40, 1, 2]]);
}

#[test]
fn round_trip_times_are_measured() {
    let mut net = cluster(15, 2, "10.32.0.0/16");
    net.run(MINUTE);
    let rtt = net.view(0).members[0].rtt_us.unwrap();
    assert!((2_000..=6_000).contains(&rtt), "{rtt}");
}

#[test]
fn an_idle_cluster_is_quiet() {
    let mut net = cluster(16, 3, "10.32.0.0/16");
    net.run(5 * MINUTE);
    net.seen.clear();
    net.run(10 * MINUTE);
    let bytes: usize = net.seen.iter().map(|(_, _, bytes)| bytes.len()).sum();
    let per_second = bytes / 600 / 3;
    assert!(per_second < 150, "{per_second} bytes a second and node");
}

/// What a member says to another inside their session, whatever it may be.
fn say(net: &mut Net, from: usize, to: usize, message: &Message) {
    let (peer, address) = (
        net.nodes[from].core.as_ref().unwrap().id(),
        net.nodes[from].address,
    );
    let now = net.now;
    for body in parts::split(&message.encode()).unwrap() {
        net.nodes[to]
            .core
            .as_mut()
            .unwrap()
            .handle_control(peer, &body, address, now);
    }
    net.pump(to);
    net.run(Duration::from_millis(50));
}

#[test]
fn a_member_can_change_no_record_but_its_own() {
    let mut net = cluster(18, 3, "10.32.0.0/16");
    let before = net.view(0).members.clone();
    net.run(Duration::from_secs(5));
    let old = net.nodes[1].disk.clone().unwrap();
    let endpoints = vec!["192.0.2.77:7000".parse().unwrap()];
    net.command(2, Command::SetEndpoints { endpoints });
    net.run(Duration::from_secs(5));
    let new = net.nodes[1].disk.clone().unwrap();
    let third = before
        .iter()
        .find(|member| member.name.as_str() == "host3")
        .unwrap()
        .id;
    let record = |disk: &[u8]| {
        let marker = [&[0, 1, 0, 0, 0, 64][..], &net_public(&before, third)].concat();
        let at = disk
            .windows(marker.len())
            .position(|bytes| bytes == marker)
            .unwrap()
            - 1;
        let length = u32::from_be_bytes(disk[at - 4..at].try_into().unwrap()) as usize;
        disk[at..at + length].to_vec()
    };
    assert_ne!(record(&old), record(&new), "the newer record was saved");
    let told = |members: &[Member]| -> Vec<_> {
        let told = |member: &Member| (member.id, member.endpoints.clone(), member.blocks.clone());
        members.iter().map(told).collect()
    };
    let newest = told(&net.view(0).members);
    say(&mut net, 1, 0, &Message::Record(record(&old)));
    assert_eq!(
        told(&net.view(0).members),
        newest,
        "an older record changes nothing"
    );
    let genuine = record(&new);
    for at in (0..genuine.len()).step_by(7) {
        let mut forged = genuine.clone();
        forged[at] ^= 1;
        say(&mut net, 1, 0, &Message::Record(forged));
    }
    assert_eq!(
        told(&net.view(0).members),
        newest,
        "a forged record changes nothing"
    );
}

/// A member's public keys as they stand in its record.
fn net_public(members: &[Member], id: NodeId) -> Vec<u8> {
    let public = members
        .iter()
        .find(|member| member.id == id)
        .unwrap()
        .public;
    [public.dh, public.sign].concat()
}

#[test]
fn a_member_can_give_nothing_that_it_does_not_own() {
    let mut net = cluster(19, 3, "10.32.0.0/16");
    let before = net.ownership();
    let thief = NodeKeys::from_bytes(&[9; 64]);
    let key = ClusterKey::from_bytes(&[8; 32]);
    let victim = net.nodes[0].core.as_ref().unwrap().id();
    let genesis = Deed::genesis(Block::new(0, 16).unwrap(), thief.id(), &key);
    let gift = genesis.give(
        Block::new(256, 8).unwrap(),
        victim,
        1,
        &thief,
        &key.public(),
    );
    say(&mut net, 1, 0, &Message::DeedGrant(vec![gift, genesis]));
    say(&mut net, 1, 0, &Message::DeedGrant(vec![]));
    say(
        &mut net,
        1,
        0,
        &Message::DeedAck {
            block: Block::new(0, 8).unwrap(),
            counter: 2,
        },
    );
    say(&mut net, 1, 0, &Message::DeedRefusal { id: 5 });
    assert_eq!(net.ownership(), before);
    assert!(net.agrees());
}

#[test]
fn junk_in_a_session_does_no_harm() {
    let mut net = cluster(20, 2, "10.32.0.0/16");
    let before = net.ownership();
    for _ in 0..2000 {
        let mut body = vec![0; net.rng.random_range(1..200)];
        net.rng.fill(&mut body[..]);
        body[0] %= 14;
        let (peer, from) = (
            net.nodes[1].core.as_ref().unwrap().id(),
            net.nodes[1].address,
        );
        let now = net.now;
        net.nodes[0]
            .core
            .as_mut()
            .unwrap()
            .handle_control(peer, &body, from, now);
    }
    net.command(0, Command::SetEndpoints { endpoints: vec![] });
    net.run(Duration::from_secs(10));
    let given: u32 = net.mine(1).iter().map(Block::size).sum();
    let had: u32 = before[1].iter().map(Block::size).sum();
    assert!(given >= had);
    net.check_ownership();
    assert!(net.run_until(MINUTE, Net::agrees));
}

#[test]
fn a_member_that_stops_is_seen_to_be_gone_and_then_to_be_back() {
    let mut net = Net::new(77, 2);
    net.init(0, "10.32.0.0/12");
    let token = net.token(0, 1);
    net.join(1, &token).unwrap();
    let connected = |net: &mut Net| net.view(0).members[0].connected;
    assert!(net.run_until(Duration::from_secs(5), connected));
    net.crash(1);
    assert!(
        net.run_until(Duration::from_secs(15), |net| !connected(net)),
        "a ping every ten seconds and three of silence"
    );
    net.start(1);
    assert!(net.run_until(Duration::from_secs(10), connected));
}

/// A ping that was asked for takes as long as the network does, and ends without an answer when there is none.
#[test]
fn a_ping_that_was_asked_for_is_timed() {
    let mut net = cluster(7, 2, "10.32.0.0/12");
    let peer = net.view(1).me;
    let patience = Duration::from_secs(2);
    for _ in 0..5 {
        let answer = net.ask(0, Command::Ping { peer, patience });
        let Ok(Reply::Pong { rtt, observed }) = answer else {
            panic!("{answer:?}")
        };
        assert!((2..=8).contains(&rtt.as_millis()), "{rtt:?}");
        assert_eq!(observed, Some(net.nodes[0].address));
    }
    let nobody = NodeId::from_bytes([9; 32]);
    let answer = net.ask(
        0,
        Command::Ping {
            peer: nobody,
            patience,
        },
    );
    assert_eq!(answer, Err(CommandError::NotConnected(nobody.short())));
    net.cut.insert((0, 1));
    let answer = net.ask(0, Command::Ping { peer, patience });
    assert_eq!(answer, Err(CommandError::NoPong(patience)));
}
