//! A member with true keys that wants too much: what it can cost another is bounded, and the others notice nothing.

use std::time::Duration;

use rand::SeedableRng;
use rand::rngs::StdRng;
use weave_model::Block;
use weave_router::core::command::Command;
use weave_router::mesh::digest::Buckets;
use weave_router::mesh::message::Message;
use weave_router::mesh::parts;
use weave_router::mesh::record::RecordVersion;
use weave_sim::lies::{self, Chatterer, Lie};
use weave_sim::net::Net;

use super::{MINUTE, cluster, net_public, say};

/// Gives a core a message as if it had come in a session, at once.
fn hand(net: &mut Net, from: usize, to: usize, message: &Message) {
    let peer = net.nodes[from].core.as_ref().unwrap().id();
    let (address, now) = (net.nodes[from].address, net.now);
    for body in parts::split(&message.encode()).unwrap() {
        let core = net.nodes[to].core.as_mut().unwrap();
        core.handle_control(peer, &body, address, now);
    }
}

#[test]
fn a_member_that_asks_for_addresses_without_end_is_given_so_many_and_no_more() {
    let mut net = cluster(41, 3, "10.32.0.0/12");
    let before = net.nodes[0].disk.as_ref().unwrap().len();
    let had = net.mine(1).len();
    for id in 0..4000 {
        say(
            &mut net,
            1,
            0,
            &Message::DeedRequest {
                id,
                bits: 3,
                within: None,
            },
        );
    }
    net.run(MINUTE);
    let grown = net.nodes[0].disk.as_ref().unwrap().len() - before;
    assert!(grown < 64 * 400, "its deeds are {grown} bytes more");
    let got = net.mine(1).len() - had;
    assert!((20..=64).contains(&got), "{got} blocks");
    net.check_ownership();
    let asked = net.mine(2).iter().map(Block::size).sum::<u32>();
    say(
        &mut net,
        2,
        0,
        &Message::DeedRequest {
            id: 9,
            bits: 8,
            within: None,
        },
    );
    net.run(MINUTE);
    let given: u32 = net.mine(2).iter().map(Block::size).sum();
    assert_eq!(given, asked + 256, "others are given what they ask for");
    assert!(net.run_until(MINUTE, Net::agrees));
}

#[test]
fn a_member_that_forges_records_without_end_waits_for_its_true_ones() {
    let mut net = cluster(42, 3, "10.32.0.0/16");
    net.run(Duration::from_secs(10));
    let third = net.nodes[2].core.as_ref().unwrap().id();
    let members = net.view(1).members.clone();
    let disk = net.nodes[1].disk.clone().unwrap();
    let keys = [&[0, 1, 0, 0, 0, 64][..], &net_public(&members, third)].concat();
    let at = disk.windows(keys.len()).position(|bytes| bytes == keys);
    let at = at.unwrap() - 1;
    let length = u32::from_be_bytes(disk[at - 4..at].try_into().unwrap()) as usize;
    let mut forged = disk[at..at + length].to_vec();
    // The first byte of the counter: behind the format, two heads of fields, the keys and the boot nonce.
    forged[1 + 6 + 64 + 6 + 8] = 1;
    for _ in 0..4000 {
        hand(&mut net, 1, 0, &Message::Record(forged.clone()));
    }
    net.cut.extend([(0, 2), (2, 0)]);
    let moved = vec!["192.0.2.77:7000".parse().unwrap()];
    let endpoints = moved.clone();
    net.command(2, Command::SetEndpoints { endpoints });
    let knows = |net: &mut Net, n: usize| {
        let view = net.view(n);
        let third = view.members.iter().find(|member| member.id == third);
        third.is_some_and(|third| third.endpoints.starts_with(&moved))
    };
    assert!(net.run_until(Duration::from_millis(20), |net| knows(net, 1)));
    let soon = net.run_until(Duration::from_millis(10), |net| knows(net, 0));
    assert!(!soon, "it has spent what its signatures may cost");
    assert!(
        net.run_until(MINUTE, |net| knows(net, 0)),
        "it is told again"
    );
}

#[test]
fn a_member_that_claims_a_version_puts_nobody_in_doubt() {
    let mut net = cluster(43, 3, "10.32.0.0/16");
    net.run(Duration::from_secs(10));
    let victim = net.nodes[0].core.as_ref().unwrap().id();
    let own = net.mine(0);
    // Whoever is in doubt uses nothing until it has heard all, so from here on it would never end.
    net.kill(2, false);
    net.nodes[2].disk = None;
    let members = net.view(1).members.clone();
    let disk = net.nodes[1].disk.clone().unwrap();
    let keys = [&[0, 1, 0, 0, 0, 64][..], &net_public(&members, victim)].concat();
    let at = disk.windows(keys.len()).position(|bytes| bytes == keys);
    let at = at.unwrap() - 1;
    let length = u32::from_be_bytes(disk[at - 4..at].try_into().unwrap()) as usize;
    let mut forged = disk[at..at + length].to_vec();
    // The last byte of the boot nonce, and the first of the counter: one that it did not sign with, and many saves.
    forged[1 + 6 + 64 + 6 + 7] ^= 1;
    forged[1 + 6 + 64 + 6 + 8] = 1;
    for boot in [7, u64::MAX - 1] {
        let counter = 1 << 50;
        let version = RecordVersion { boot, counter };
        let node = victim;
        let (answer, records) = (true, vec![(victim, version)]);
        let buckets = Buckets::ALL;
        let summary = Message::Summary {
            answer,
            buckets,
            records,
        };
        hand(&mut net, 1, 0, &summary);
        hand(&mut net, 1, 0, &Message::RecordAcks(vec![(node, version)]));
        hand(&mut net, 1, 0, &Message::Record(forged.clone()));
        net.pump(0);
        net.run(Duration::from_secs(5));
        assert_eq!(net.mine(0), own);
        assert!(net.allocate(0, &format!("c{boot}"), None).is_ok());
    }
}

/// How many bytes a second honest nodes send on average, headers included, while something goes on.
fn told_by_honest(net: &mut Net, liar: usize, seconds: u32, mut each: impl FnMut(&mut Net)) -> f64 {
    net.seen.clear();
    for _ in 0..10 * seconds {
        each(net);
        net.run(Duration::from_millis(100));
    }
    let honest = net.seen.iter().filter(|(from, ..)| *from != liar);
    let bytes: usize = honest.map(|(_, _, bytes)| bytes.len() + 28).sum();
    bytes as f64 / f64::from(seconds) / (net.nodes.len() - 1) as f64
}

#[test]
fn a_member_that_changes_its_record_without_end_is_passed_on_so_much_and_no_more() {
    const NODES: usize = 9;
    const LIAR: usize = NODES - 1;
    // Of its records each node takes 4 KiB a second and passes them on to all but two others, once more if a datagram or
    // its acknowledgement crosses a newer one.
    const BOUND: f64 = 2.0 * 4096.0 * (NODES - 2) as f64;
    let mut net = cluster(44, NODES, "10.32.0.0/16");
    net.run(Duration::from_secs(10));
    let quiet = told_by_honest(&mut net, LIAR, 20, |_| ());
    let mut chatterer = Chatterer::of(&net, LIAR).unwrap();
    let mut flood = |net: &mut Net| {
        for to in 0..LIAR {
            for _ in 0..4 {
                hand(net, LIAR, to, &chatterer.say().unwrap());
            }
            net.pump(to);
        }
    };
    // What it may say in one breath.
    told_by_honest(&mut net, LIAR, 10, &mut flood);
    let loud = told_by_honest(&mut net, LIAR, 20, &mut flood);
    assert!(
        loud <= quiet + BOUND,
        "{loud:.0} bytes a second, and {quiet:.0} in quiet times"
    );
    assert!(net.nodes[0].core().tally().left.by_owner > 1000);
    // Others notice nothing: what is new of them is everywhere at once.
    let third = net.nodes[2].core().id();
    let moved = vec!["192.0.2.77:7000".parse().unwrap()];
    let endpoints = moved.clone();
    net.command(2, Command::SetEndpoints { endpoints });
    let knows = |net: &mut Net, n: usize| {
        let view = net.view(n);
        let third = view.member(third);
        third.is_some_and(|third| third.endpoints.starts_with(&moved))
    };
    flood(&mut net);
    let all = |net: &mut Net| (0..LIAR).filter(|n| *n != 2).all(|n| knows(net, n));
    assert!(net.run_until(Duration::from_secs(1), all));
    // And when it falls quiet, all have its last word.
    let liar = net.nodes[LIAR].core().id();
    let same = |net: &mut Net| {
        let versions = net.nodes.iter().map(|node| node.core().known_version(liar));
        let versions: Vec<_> = versions.collect();
        versions.windows(2).all(|pair| pair[0] == pair[1])
    };
    assert!(net.run_until(MINUTE, same));
    net.run(MINUTE);
    assert!(same(&mut net));
}

#[test]
fn a_member_that_testifies_falsely_keeps_no_addresses_from_the_heir() {
    let mut net = cluster(44, 4, "10.32.0.0/16");
    let (liar, victim) = (2, 3);
    net.nodes[liar].listens = true;
    // What it would say by itself is lost, so that its lie comes first.
    net.cut.extend([(liar, 0), (liar, 1)]);
    let (node, heir) = ("host4".to_owned(), Some("host1".to_owned()));
    let theirs = net.mine(victim);
    assert!(net.ask(0, Command::Remove { node, heir }).is_ok());
    net.gone.insert(victim);
    net.run(Duration::from_secs(1));
    let (waits, owned) = (net.view(0).waiting.clone(), net.check_ownership());
    assert_eq!((waits.len(), owned < 1 << 16), (1, true), "it is asked");
    net.cut.clear();
    let mut rng = StdRng::seed_from_u64(44);
    lies::tell(&mut net, liar, 0, Lie::Perjury, &mut rng);
    let told = |net: &mut Net| net.view(0).unproven > 0;
    assert!(
        net.run_until(MINUTE, told),
        "the lie was heard, and counted"
    );
    let whole = |net: &mut Net| net.agrees() && net.check_ownership() == 1 << 16;
    assert!(net.run_until(MINUTE, whole), "the heir has all there was");
    let heirs = net.mine(0);
    let has = |block: &Block| heirs.iter().any(|own| own.contains(block.first()));
    assert!(theirs.iter().all(has));
}
