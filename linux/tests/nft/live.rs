//! Atomicity, size, deletion, reading back, and packets.

use std::net::{Ipv4Addr, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value as Json;
use weave_linux::nft::{
    Batch, Chain, Direction, Element, Error, Family, Field, Hook, Policy, Rule, Set, Socket, Span,
    Table, Type, Value, Verdict, priority,
};

use crate::{in_netns, listing, net, run, v4};

#[test]
fn a_refused_operation_undoes_the_batch_and_is_named() {
    in_netns(|| {
        let socket = Socket::open().unwrap();
        let table = Table::inet("t");
        let mut batch = Batch::new();
        batch.add_table(&table);
        batch.add_chain(&table, &Chain::regular("x"));
        batch.add_rule(&table, "x", &Rule::new().accept());
        batch.add_rule(&table, "x", &Rule::new().comment("bad").goto("nowhere"));
        batch.add_rule(&table, "nowhere", &Rule::new().accept());
        batch.add_chain(&table, &Chain::regular("y"));
        let error = socket.send(&batch).unwrap_err();
        assert_eq!(
            error.to_string(),
            "cannot add rule inet t x \"bad\": No such file or directory (os error 2)"
        );
        assert!(matches!(error, Error::Refused { .. }));
        assert_eq!(listing(), [] as [Json; 0]);
        // The socket is as good as new.
        batch = Batch::new();
        batch.add_table(&table);
        socket.send(&batch).unwrap();
        assert_eq!(listing().len(), 1);
    });
}

#[test]
fn what_holds_stays_when_a_change_is_refused() {
    in_netns(|| {
        let socket = Socket::open().unwrap();
        let table = Table::inet("t");
        let set = Set::new("s", &[Type::Ipv4]);
        let mut batch = Batch::new();
        batch.add_table(&table);
        batch.add_set(&table, &set);
        batch.add_elements(&table, &set, [Element::new([v4("10.0.0.1")])]);
        socket.send(&batch).unwrap();
        let before = listing();
        let generation = socket.generation().unwrap();

        let mut change = Batch::new();
        change.flush_set(&table, &set);
        change.add_elements(&table, &set, [Element::new([v4("10.0.0.2")])]);
        change.delete_elements(&table, &set, [Element::new([v4("10.0.0.3")])]);
        let error = socket.send(&change).unwrap_err();
        assert_eq!(
            error.to_string(),
            "cannot delete elements inet t s: No such file or directory (os error 2)"
        );
        assert_eq!(listing(), before);
        assert_eq!(socket.generation().unwrap(), generation);

        change = Batch::new();
        change.delete_elements(&table, &set, [Element::new([v4("10.0.0.1")])]);
        change.add_elements(&table, &set, [Element::new([v4("10.0.0.2")])]);
        socket.send(&change).unwrap();
        assert!(socket.generation().unwrap() > generation);
        assert_eq!(listing()[1]["set"]["elem"], serde_json::json!(["10.0.0.2"]));
    });
}

#[test]
fn an_owned_table_is_nobody_elses_and_goes_with_its_socket() {
    in_netns(|| {
        let (owner, other) = (Socket::open().unwrap(), Socket::open().unwrap());
        let table = Table::inet("t").owned();
        let mut batch = Batch::new();
        batch.add_table(&table);
        owner.send(&batch).unwrap();
        batch = Batch::new();
        batch.delete_table(&table);
        let error = other.send(&batch).unwrap_err();
        assert!(error.to_string().contains("not permitted"), "{error}");
        run("nft", &["flush", "ruleset"], "");
        assert!(other.table(&table).unwrap().is_some());
        drop(owner);
        // Other tests start processes meanwhile, which have this one's descriptors until they are a program of their own.
        let deadline = Instant::now() + Duration::from_secs(20);
        while other.table(&table).unwrap().is_some() {
            assert!(Instant::now() < deadline, "it stays");
            thread::sleep(Duration::from_millis(5));
        }
    });
}

#[test]
fn ten_thousand_services_are_one_batch_and_one_service_a_small_one() {
    let table = Table::inet("t");
    let map = Set::new("services", &[Type::Ipv4, Type::Proto, Type::Port]).verdicts();
    let service = |n: u32| {
        Element::new([
            Value::V4((0x0a60_0000 + n).into()),
            Value::TCP,
            Value::Port(80),
        ])
    };
    let to = |n: u32| service(n).verdict(Verdict::goto("web"));
    in_netns(|| {
        let socket = Socket::open().unwrap();
        let mut batch = Batch::new();
        batch.replace_table(&table);
        batch.add_chain(&table, &Chain::regular("web"));
        batch.add_set(&table, &map);
        batch.add_elements(&table, &map, (0..10_000).map(to));
        let started = Instant::now();
        socket.send(&batch).unwrap();
        println!("10,000 elements: {:?}", started.elapsed());

        let mut change = Batch::new();
        change.delete_elements(&table, &map, [to(77)]);
        change.add_elements(&table, &map, [to(10_000)]);
        socket.send(&change).unwrap();
        let listed = listing();
        let elements = listed
            .iter()
            .find_map(|object| object["map"]["elem"].as_array())
            .unwrap();
        assert_eq!(elements.len(), 10_000);
        let text = elements.iter().map(ToString::to_string).collect::<String>();
        assert!(
            text.contains("\"10.96.39.16\"")
                && text.contains("\"10.96.0.0\"")
                && !text.contains("\"10.96.0.77\"")
        );
    });
}

#[test]
fn everything_can_be_deleted() {
    in_netns(|| {
        let socket = Socket::open().unwrap();
        let table = Table::inet("t");
        let nets = Set::new("nets", &[Type::Ipv4]).interval();
        let peers = Set::new("peers", &[Type::Ipv4, Type::Port]).interval();
        let mut batch = Batch::new();
        batch.remove_table(&table);
        batch.add_table(&table);
        batch.add_chain(&table, &Chain::regular("x"));
        batch.add_rule(&table, "x", &Rule::new().accept().comment("one"));
        batch.add_rule(&table, "x", &Rule::new().drop().comment("two"));
        for set in [&nets, &peers] {
            batch.add_set(&table, set);
        }
        let prefix = |text| Element::new([Span::prefix(net(text))]);
        let peer =
            |text, port| Element::new([Span::prefix(net(text)), Span::from(Value::Port(port))]);
        batch.add_elements(
            &table,
            &nets,
            [
                prefix("10.0.0.0/8"),
                prefix("11.0.0.0/8"),
                prefix("255.0.0.0/8"),
            ],
        );
        batch.add_elements(
            &table,
            &peers,
            [peer("10.0.0.0/8", 80), peer("11.0.0.0/8", 80)],
        );
        socket.send(&batch).unwrap();

        let rules = socket.rules(&table).unwrap();
        let mut change = Batch::new();
        change.delete_elements(&table, &nets, [prefix("11.0.0.0/8"), prefix("255.0.0.0/8")]);
        change.delete_elements(&table, &peers, [peer("10.0.0.0/8", 80)]);
        change.delete_rule(&table, "x", rules[0].handle);
        socket.send(&change).unwrap();
        let comments: Vec<_> = socket
            .rules(&table)
            .unwrap()
            .into_iter()
            .map(|rule| rule.comment.unwrap())
            .collect();
        assert_eq!(comments, ["two"]);
        let text = run("nft", &["list", "ruleset"], "");
        assert!(
            text.contains("elements = { 10.0.0.0/8 }")
                && text.contains("elements = { 11.0.0.0/8 . 80 }"),
            "{text}"
        );

        let mut rest = Batch::new();
        rest.flush_chain(&table, "x");
        rest.delete_chain(&table, "x");
        rest.delete_set(&table, &nets);
        rest.delete_set(&table, &peers);
        socket.send(&rest).unwrap();
        assert_eq!(listing().len(), 1);
        let mut rest = Batch::new();
        rest.delete_table(&table);
        socket.send(&rest).unwrap();
        assert_eq!(listing().len(), 0);
        let gone = socket.send(&rest).unwrap_err();
        assert!(
            gone.to_string().starts_with("cannot delete table inet t: "),
            "{gone}"
        );
    });
}

#[test]
fn tables_of_others_are_seen_and_left_alone() {
    in_netns(|| {
        run(
            "nft",
            &["-f", "-"],
            "table ip t { comment \"theirs\"; chain c { accept; }\n}",
        );
        let before = listing();
        let socket = Socket::open().unwrap();
        let table = Table::inet("t").comment("ours").stamp(42);
        assert_eq!(socket.table(&table).unwrap(), None);
        assert!(socket.rules(&table).unwrap().is_empty());
        let mut batch = Batch::new();
        batch.replace_table(&table);
        batch.add_chain(
            &table,
            &Chain::filter("f", Hook::Output, -310, Policy::Accept),
        );
        batch.add_rule(&table, "f", &Rule::new().counter());
        socket.send(&batch).unwrap();
        let found = socket.table(&table).unwrap().unwrap();
        assert_eq!(
            (found.comment.as_deref(), found.stamp),
            (Some("ours"), Some(42))
        );
        let theirs = socket.table(&Table::new(Family::Ip, "t")).unwrap().unwrap();
        assert_eq!(
            (theirs.comment.as_deref(), theirs.stamp),
            (Some("theirs"), None)
        );
        let chains = socket.chains(&table).unwrap();
        assert_eq!(
            (chains.len(), chains[0].hook, chains[0].policy),
            (1, Some((3, -310)), Some(1))
        );
        assert_eq!(socket.rules(&table).unwrap()[0].counter, Some((0, 0)));
        // Made anew, it is another table.
        socket.send(&batch).unwrap();
        assert_ne!(socket.table(&table).unwrap().unwrap().handle, found.handle);
        batch = Batch::new();
        batch.remove_table(&table);
        socket.send(&batch).unwrap();
        assert_eq!(listing(), before);
    });
}

#[test]
fn packets_follow_wildcards_ranges_and_maps() {
    let table = Table::inet("t");
    let backends =
        Set::new("b", &[Type::Ipv4, Type::Proto, Type::Port]).values(&[Type::Ipv4, Type::Port]);
    let nets = Set::new("nets", &[Type::Ipv4]).interval();
    in_netns(|| {
        run("ip", &["link", "set", "lo", "up"], "");
        let server = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        server
            .set_read_timeout(Some(Duration::from_secs(5)))
            .unwrap();
        let port = server.local_addr().unwrap().port();
        let mut batch = Batch::new();
        batch.replace_table(&table);
        batch.add_set(&table, &backends);
        batch.add_set(&table, &nets);
        let vip = Element::new([v4("127.9.9.9"), Value::UDP, Value::Port(53)]);
        batch.add_elements(
            &table,
            &backends,
            [vip.values([v4("127.0.0.1"), Value::Port(port)])],
        );
        let spans =
            ["127.0.0.0/9", "127.128.0.0/9"].map(|text| Element::new([Span::prefix(net(text))]));
        batch.add_elements(&table, &nets, spans);
        batch.add_chain(
            &table,
            &Chain::nat("n", Hook::Output, priority::DSTNAT, Policy::Accept),
        );
        let key = [Field::Ip4Daddr, Field::L4Proto, Field::Dport];
        batch.add_rule(&table, "n", &Rule::new().dnat_map(&key, &backends));
        batch.add_chain(
            &table,
            &Chain::filter("i", Hook::Input, priority::FILTER, Policy::Accept),
        );
        let udp = || Rule::new().is(Field::L4Proto, Value::UDP);
        for rule in [
            udp()
                .iifname("l*")
                .any_bit(Field::CtStatus, Field::DNAT)
                .counter()
                .comment("1"),
            udp()
                .iifname("lo")
                .lookup(&[Field::Ip4Daddr], &nets)
                .counter()
                .comment("1"),
            udp()
                .is(Field::UdpDport, Value::Port(port))
                .counter()
                .comment("1"),
            udp()
                .is(Field::CtDport(Direction::Original), Value::Port(53))
                .counter()
                .comment("1"),
            udp().iifname("l").counter().comment("0"),
            udp().iifname("lo2*").counter().comment("0"),
            udp()
                .inside(Field::Ip6Daddr, net("::/0"))
                .counter()
                .comment("0"),
            udp()
                .inside(Field::Ip4Daddr, net("0.0.0.0/0"))
                .counter()
                .comment("1"),
            udp()
                .outside(Field::Ip4Daddr, net("127.0.0.0/31"))
                .counter()
                .comment("0"),
        ] {
            batch.add_rule(&table, "i", &rule);
        }
        let socket = Socket::open().unwrap();
        socket.send(&batch).unwrap();
        let client = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        client
            .send_to(b"hello", (Ipv4Addr::new(127, 9, 9, 9), 53))
            .unwrap();
        let mut buffer = [0; 16];
        assert_eq!(server.recv(&mut buffer).unwrap(), 5);
        for rule in socket
            .rules(&table)
            .unwrap()
            .iter()
            .filter(|rule| rule.chain == "i")
        {
            let packets = rule.counter.unwrap().0.to_string();
            assert_eq!(Some(&packets), rule.comment.as_ref(), "{rule:?}");
        }
    });
}
