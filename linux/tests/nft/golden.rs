//! The same rule set written by us and by `nft`, as `nft` lists it.

use weave_linux::nft::{
    Batch, Chain, Cmp, Direction, Element, Family, Field, Hook, Policy, Reject, Rule, Set, Socket,
    Span, Table, Type, Value, Verdict, priority,
};

use crate::{in_netns, listing, net, run, v4, v6};

/// Applies a batch in one namespace and a text in another, and compares what `nft` then reads.
fn assert_same(batch: &Batch, text: &str) {
    let ours = in_netns(|| {
        Socket::open().unwrap().send(batch).unwrap();
        (listing(), run("nft", &["list", "ruleset"], ""))
    });
    let theirs = in_netns(|| {
        run("nft", &["-f", "-"], text);
        listing()
    });
    for (ours, theirs) in ours.0.iter().zip(&theirs) {
        assert_eq!(ours, theirs);
    }
    assert_eq!(ours.0.len(), theirs.len(), "{}", ours.1);
}

#[test]
fn tables_and_chains_are_as_nft_makes_them() {
    let table = Table::inet("t").comment("weave").stamp(7);
    let other = Table::new(Family::Ip6, "six");
    let mut batch = Batch::new();
    batch.replace_table(&table);
    batch.add_chain(&table, &Chain::regular("x").comment("called"));
    batch.add_chain(
        &table,
        &Chain::filter("early", Hook::Prerouting, -310, Policy::Accept),
    );
    batch.add_chain(
        &table,
        &Chain::filter("in", Hook::Input, priority::FILTER, Policy::Drop),
    );
    batch.add_chain(
        &table,
        &Chain::nat(
            "out",
            Hook::Postrouting,
            priority::SRCNAT + 5,
            Policy::Accept,
        ),
    );
    batch.add_chain(
        &table,
        &Chain::route("again", priority::MANGLE, Policy::Accept),
    );
    batch.add_table(&other);
    batch.add_chain(
        &other,
        &Chain::filter("f", Hook::Forward, priority::RAW, Policy::Accept),
    );
    assert_same(
        &batch,
        r#"table inet t {
            comment "weave"
            chain x { comment "called"; }
            chain early { type filter hook prerouting priority -310; policy accept; }
            chain in { type filter hook input priority 0; policy drop; }
            chain out { type nat hook postrouting priority 105; policy accept; }
            chain again { type route hook output priority -150; policy accept; }
        }
        table ip6 six { chain f { type filter hook forward priority -300; policy accept; }
        }"#,
    );
}

#[test]
fn tests_of_packets_are_as_nft_makes_them() {
    let table = Table::inet("t");
    let rules = [
        Rule::new()
            .iifname("wv*")
            .is(Field::RouteBack, Value::Number(0))
            .counter()
            .drop()
            .comment("spoof"),
        Rule::new()
            .is(Field::DaddrType, Value::Number(Field::LOCAL))
            .accept(),
        Rule::new()
            .is_not(Field::Oifname, Value::name("weave0"))
            .oifname("eth0")
            .accept(),
        Rule::new().is(Field::PktType, Value::Byte(2)).accept(),
        Rule::new()
            .is(Field::NfProto, Value::IPV6)
            .is(Field::L4Proto, Value::SCTP)
            .accept(),
        Rule::new().is(Field::Mark, Value::Number(0x10)).accept(),
        Rule::new()
            .masked(Field::Mark, 0xff00, Cmp::Eq, 0x1200)
            .accept(),
        Rule::new()
            .inside(Field::Ip4Saddr, net("10.32.0.0/12"))
            .outside(Field::Ip4Daddr, net("10.32.0.0/12"))
            .accept(),
        Rule::new()
            .inside(Field::Ip4Saddr, net("10.0.0.0/8"))
            .is(Field::Ip4Daddr, v4("10.1.2.3"))
            .accept(),
        Rule::new()
            .inside(Field::Ip6Saddr, net("fd00:1::/48"))
            .outside(Field::Ip6Daddr, net("ff00::/8"))
            .accept(),
        Rule::new()
            .is(Field::TcpDport, Value::Port(80))
            .is_not(Field::TcpSport, Value::Port(81))
            .accept(),
        Rule::new()
            .between(Field::UdpDport, Value::Port(6783), Value::Port(6784))
            .accept(),
        Rule::new().is(Field::UdpSport, Value::Port(53)).accept(),
        Rule::new().is(Field::SctpDport, Value::Port(5)).accept(),
        Rule::new()
            .is(Field::L4Proto, Value::TCP)
            .is(Field::TcpDport, Value::Port(22))
            .accept(),
        Rule::new().any_bit(Field::TcpFlags, 2).accept(),
        Rule::new().is(Field::Icmp4Type, Value::Byte(8)).accept(),
        Rule::new().is(Field::Icmp6Type, Value::Byte(135)).accept(),
        Rule::new()
            .any_bit(Field::CtState, Field::ESTABLISHED | Field::RELATED)
            .accept(),
        Rule::new()
            .any_bit(Field::CtStatus, Field::DNAT)
            .is(Field::CtDirection, Value::Byte(0))
            .accept(),
        Rule::new().is(Field::CtMark, Value::Number(9)).accept(),
        Rule::new()
            .is(Field::CtIp4Daddr(Direction::Original), v4("1.2.3.4"))
            .accept(),
        Rule::new()
            .is(Field::CtIp6Saddr(Direction::Reply), v6("fd00::1"))
            .accept(),
        Rule::new().limit(10, 5).accept(),
    ];
    let mut batch = Batch::new();
    batch.add_table(&table);
    batch.add_chain(
        &table,
        &Chain::filter("c", Hook::Prerouting, -310, Policy::Accept),
    );
    for rule in &rules {
        batch.add_rule(&table, "c", rule);
    }
    batch.insert_rule(&table, "c", &Rule::new().counter().comment("first"));
    assert_same(
        &batch,
        r#"table inet t {
            chain c {
            type filter hook prerouting priority -310; policy accept;
            counter comment "first"
            iifname "wv*" fib saddr . iif oif missing counter drop comment "spoof"
            fib daddr type local accept
            oifname != "weave0" oifname "eth0" accept
            meta pkttype multicast accept
            meta nfproto ipv6 meta l4proto sctp accept
            meta mark 0x10 accept
            meta mark and 0xff00 == 0x1200 accept
            ip saddr 10.32.0.0/12 ip daddr != 10.32.0.0/12 accept
            ip saddr 10.0.0.0/8 ip daddr 10.1.2.3 accept
            ip6 saddr fd00:1::/48 ip6 daddr != ff00::/8 accept
            tcp dport 80 tcp sport != 81 accept
            udp dport 6783-6784 accept
            udp sport 53 accept
            sctp dport 5 accept
            meta l4proto tcp tcp dport 22 accept
            tcp flags syn accept
            icmp type echo-request accept
            icmpv6 type nd-neighbor-solicit accept
            ct state established,related accept
            ct status dnat ct direction original accept
            ct mark 9 accept
            ct original ip daddr 1.2.3.4 accept
            ct reply ip6 saddr fd00::1 accept
            limit rate 10/second accept
            }
        }"#,
    );
}

#[test]
fn actions_are_as_nft_makes_them() {
    let table = Table::inet("t");
    let mut batch = Batch::new();
    batch.add_table(&table);
    batch.add_chain(&table, &Chain::regular("x"));
    batch.add_chain(
        &table,
        &Chain::filter("f", Hook::Forward, priority::FILTER, Policy::Accept),
    );
    for rule in [
        Rule::new()
            .is(Field::L4Proto, Value::TCP)
            .reject(Reject::TcpReset),
        Rule::new().reject(Reject::PortUnreachable),
        Rule::new().reject(Reject::AdminProhibited),
        Rule::new().set_mark(Field::Mark, 0x10),
        Rule::new().set_mark(Field::CtMark, 0x11),
        Rule::new().add_mark(Field::Mark, 0x4000),
        Rule::new().copy_mark(Field::Mark, Field::CtMark),
        Rule::new().copy_mark(Field::CtMark, Field::Mark),
        Rule::new().any_bit(Field::TcpFlags, 2).clamp_mss(),
        Rule::new().counter().jump("x"),
        Rule::new().iifname("a").goto("x"),
        Rule::new().ret(),
    ] {
        batch.add_rule(&table, "f", &rule);
    }
    batch.add_chain(
        &table,
        &Chain::filter("t", Hook::Prerouting, priority::MANGLE, Policy::Accept),
    );
    for rule in [
        Rule::new()
            .is(Field::L4Proto, Value::TCP)
            .tproxy("127.0.0.1".parse().unwrap(), 50080)
            .accept(),
        Rule::new()
            .is(Field::L4Proto, Value::UDP)
            .tproxy("::1".parse().unwrap(), 50080),
        Rule::new()
            .is(Field::Transparent, Value::Byte(1))
            .set_mark(Field::Mark, 7)
            .accept(),
    ] {
        batch.add_rule(&table, "t", &rule);
    }
    batch.add_chain(
        &table,
        &Chain::filter("u", Hook::Prerouting, priority::RAW, Policy::Accept),
    );
    let untracked = Rule::new().is(Field::L4Proto, Value::UDP).notrack();
    batch.add_rule(&table, "u", &untracked.set_mark(Field::Mark, 7));
    batch.add_chain(
        &table,
        &Chain::nat(
            "pre",
            Hook::Prerouting,
            priority::DSTNAT - 5,
            Policy::Accept,
        ),
    );
    for rule in [
        Rule::new()
            .is(Field::L4Proto, Value::TCP)
            .dnat("10.1.1.1".parse().unwrap(), Some(80)),
        Rule::new().dnat("fd00::1".parse().unwrap(), None),
        Rule::new()
            .is(Field::L4Proto, Value::UDP)
            .dnat("fd00::1".parse().unwrap(), Some(53)),
        Rule::new()
            .is(Field::TcpDport, Value::Port(80))
            .redirect(8080),
    ] {
        batch.add_rule(&table, "pre", &rule);
    }
    batch.add_chain(
        &table,
        &Chain::nat(
            "post",
            Hook::Postrouting,
            priority::SRCNAT + 5,
            Policy::Accept,
        ),
    );
    batch.add_rule(
        &table,
        "post",
        &Rule::new().snat("10.1.1.2".parse().unwrap()),
    );
    batch.add_rule(&table, "post", &Rule::new().masquerade());
    assert_same(
        &batch,
        r#"table inet t {
            chain x { }
            chain f {
                type filter hook forward priority 0; policy accept;
                meta l4proto tcp reject with tcp reset
                reject
                reject with icmpx admin-prohibited
                meta mark set 0x10
                ct mark set 0x11
                meta mark set meta mark | 0x4000
                ct mark set meta mark
                meta mark set ct mark
                tcp flags syn tcp option maxseg size set rt mtu
                counter jump x
                iifname "a" goto x
                return
            }
            chain t {
                type filter hook prerouting priority -150; policy accept;
                meta l4proto tcp tproxy ip to 127.0.0.1:50080 accept
                meta l4proto udp tproxy ip6 to [::1]:50080
                socket transparent 1 meta mark set 7 accept
            }
            chain u {
                type filter hook prerouting priority -300; policy accept;
                meta l4proto udp notrack meta mark set 7
            }
            chain pre {
                type nat hook prerouting priority -105; policy accept;
                meta l4proto tcp dnat ip to 10.1.1.1:80
                dnat ip6 to fd00::1
                meta l4proto udp dnat ip6 to [fd00::1]:53
                tcp dport 80 redirect to :8080
            }
            chain post {
                type nat hook postrouting priority 105; policy accept;
                snat ip to 10.1.1.2
                masquerade
            }
        }"#,
    );
}

#[test]
fn sets_and_maps_are_as_nft_makes_them() {
    let table = Table::inet("t");
    let service = [Type::Ipv4, Type::Proto, Type::Port];
    let nets = Set::new("nets", &[Type::Ipv4]).interval();
    let peers = Set::new("peers", &service).interval();
    let six = Set::new("six", &[Type::Ipv6, Type::Port]).comment("both");
    let names = Set::new("names", &[Type::Ifname]);
    let marks = Set::new("marks", &[Type::Mark]);
    let backends = Set::new("backends", &service).values(&[Type::Ipv4, Type::Port]);
    let verdicts = Set::new("verdicts", &service).verdicts();
    let zones = Set::new("zones", &[Type::Ipv6]).interval().verdicts();
    let mut batch = Batch::new();
    batch.add_table(&table);
    batch.add_chain(&table, &Chain::regular("x"));
    for set in [
        &nets, &peers, &six, &names, &marks, &backends, &verdicts, &zones,
    ] {
        batch.add_set(&table, set);
    }
    let spans = ["10.0.0.0/8", "11.0.0.0/8", "192.168.1.5/32", "240.0.0.0/4"]
        .map(|text| Span::prefix(net(text)));
    batch.add_elements(&table, &nets, spans.map(|span| Element::new([span])));
    let peer = [
        Span::prefix(net("10.0.0.0/8")),
        Value::TCP.into(),
        Span::ports(80..=90),
    ];
    let any = [
        Span::prefix(net("0.0.0.0/0")),
        Span::any_proto(),
        Span::ports(1..=1),
    ];
    batch.add_elements(&table, &peers, [Element::new(peer), Element::new(any)]);
    batch.add_elements(
        &table,
        &six,
        [Element::new([v6("fd00::7"), Value::Port(443)]).comment("e")],
    );
    batch.add_elements(&table, &names, [Element::new([Value::name("eth0")])]);
    batch.add_elements(&table, &marks, [Element::new([Value::Number(7)])]);
    let vip = || Element::new([v4("10.9.9.9"), Value::TCP, Value::Port(80)]);
    batch.add_elements(
        &table,
        &backends,
        [vip().values([v4("10.1.1.1"), Value::Port(8080)])],
    );
    batch.add_elements(&table, &verdicts, [vip().verdict(Verdict::goto("x"))]);
    let zone = Element::new([Span::prefix(net("fd00::/64"))]).verdict(Verdict::Return);
    batch.add_elements(&table, &zones, [zone]);
    batch.add_chain(
        &table,
        &Chain::nat("c", Hook::Prerouting, priority::DSTNAT, Policy::Accept),
    );
    let key = [Field::Ip4Daddr, Field::L4Proto, Field::Dport];
    for rule in [
        Rule::new()
            .lookup(&[Field::Ip4Saddr], &nets)
            .lookup_not(&[Field::Iifname], &names)
            .accept(),
        Rule::new().lookup(&key, &peers).accept(),
        Rule::new()
            .lookup(&[Field::Ip6Daddr, Field::TcpDport], &six)
            .accept(),
        Rule::new().lookup(&[Field::Mark], &marks).accept(),
        Rule::new().vmap(&key, &verdicts),
        Rule::new().vmap(&[Field::Ip6Saddr], &zones),
        Rule::new().dnat_map(&key, &backends),
    ] {
        batch.add_rule(&table, "c", &rule);
    }
    let pick = batch.add_anonymous(
        &table,
        Set::anonymous(&[Type::Number]).verdicts(),
        [(0, Verdict::goto("x")), (1, Verdict::Accept)]
            .map(|(n, go)| Element::new([Value::Number(n)]).verdict(go)),
    );
    batch.add_rule(&table, "c", &Rule::new().vmap(&[Field::Random(2)], &pick));
    let ports = [22, 80].map(|port| Element::new([Value::Port(port)]));
    let ports = batch.add_anonymous(&table, Set::anonymous(&[Type::Port]), ports);
    batch.add_rule(
        &table,
        "c",
        &Rule::new().lookup(&[Field::TcpDport], &ports).accept(),
    );
    assert_same(
        &batch,
        r#"table inet t {
            set nets { type ipv4_addr; flags interval;
                elements = { 10.0.0.0/8, 11.0.0.0/8, 192.168.1.5, 240.0.0.0/4 } }
            set peers { type ipv4_addr . inet_proto . inet_service; flags interval;
                elements = { 10.0.0.0/8 . tcp . 80-90, 0.0.0.0/0 . 0-255 . 1 } }
            set six { type ipv6_addr . inet_service; comment "both"; elements = { fd00::7 . 443 comment "e" } }
            set names { type ifname; elements = { "eth0" } }
            set marks { type mark; elements = { 7 } }
            map backends { type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service;
                elements = { 10.9.9.9 . tcp . 80 : 10.1.1.1 . 8080 } }
            map verdicts { type ipv4_addr . inet_proto . inet_service : verdict;
                elements = { 10.9.9.9 . tcp . 80 : goto x } }
            map zones { type ipv6_addr : verdict; flags interval; elements = { fd00::/64 : return } }
            chain x { }
            chain c {
                type nat hook prerouting priority -100; policy accept;
                ip saddr @nets iifname != @names accept
                ip daddr . meta l4proto . th dport @peers accept
                ip6 daddr . tcp dport @six accept
                meta mark @marks accept
                ip daddr . meta l4proto . th dport vmap @verdicts
                ip6 saddr vmap @zones
                dnat ip addr . port to ip daddr . meta l4proto . th dport map @backends
                numgen random mod 2 vmap { 0 : goto x, 1 : accept }
                tcp dport { 22, 80 } accept
            }
        }"#,
    );
}
