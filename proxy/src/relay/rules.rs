//! Which connections the relay gets: the nftables table `weave-relay`.
//!
//! The table belongs to the process (`owned`): when that ends, however it ends, the table is gone in the same instant,
//! and new connections go to the rules of the kernel engine, which has every Service as well. Nobody else can change it.
//!
//! | chain | hook, priority | what |
//! |---|---|---|
//! | `in` | prerouting, mangle −150 | gives the first packet of a connection to a front to a listener, and marks it; marks what belongs to a socket of the relay's; gives what belongs to none to a listener too, as it may bring a cookie back |
//! | `out` | output, mangle −150 | marks what the host itself sends to a front, which sends it through `in` by the loopback device |
//! | `in-udp`, `out-udp` | the same, raw −300 | do it to every datagram to a front, and keep it and its answers out of connection tracking |
//!
//! Datagrams are taken before connection tracking, so that it never holds a flow to a front which nobody translated: when
//! the table goes, the next datagram is a first one to the kernel engine, and translated.
//!
//! The mark routes a packet to this host whatever its destination ([`RELAY_MARK`], [`ROUTES`]), and the rules of the kernel
//! engine let what bears it pass. Whether there is an endpoint at all is seen before anything is accepted: fronts that
//! leave a client none are not taken, and refused or dropped by the kernel.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net};
use weave_linux::nft::{
    Batch, Chain, Cmp, Element, Field, Hook, Policy, Rule, Set, Table, Type, Value, Verdict,
    priority,
};
use weave_model::{Engine, RELAY_MARK};

use crate::facts::Facts;
use crate::table::{Diff, Entry, Family, Origin, Table as Services, Way};

/// The name of the table.
pub const TABLE: &str = "weave-relay";
/// The routing table that delivers marked packets to this host, and the priority of the rule that leads to it.
pub const ROUTES: (u32, u32) = (6783, 783);

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// The ports of the listeners, at the loopback address of each family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ports {
    /// Of TCP.
    pub tcp: Listening,
    /// Of UDP.
    pub udp: Listening,
}

/// The ports of one protocol's listeners.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Listening {
    /// For what comes from this host, by IPv4 and by IPv6.
    pub host: [u16; 2],
    /// For all else.
    pub others: [u16; 2],
}

/// What the table was made to be, and how it becomes the next.
#[derive(Debug)]
pub struct Rules {
    table: Table,
    sets: Sets,
}

/// Its sets and maps, each once a family.
#[derive(Debug)]
struct Sets([[Set; 2]; 6]);

/// What a set is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Use {
    /// Front → the chain that takes everybody's connections, or only those from inside.
    Fronts,
    /// Port of the node → the same.
    Ports,
    /// Fronts that the host itself may have.
    Homes,
    /// Ports of the node that the host itself may have.
    HomePorts,
    /// Ports of loopback addresses.
    Loops,
    /// The node's addresses.
    Nodes,
}

impl Use {
    const ALL: [(Self, &'static str); 6] = [
        (Self::Fronts, "fronts"),
        (Self::Ports, "ports"),
        (Self::Homes, "homes"),
        (Self::HomePorts, "home-ports"),
        (Self::Loops, "loops"),
        (Self::Nodes, "nodes"),
    ];
}

/// A set, and one of its elements.
type Placed = ((Use, Family), Element);

impl Sets {
    fn new() -> Self {
        Self(Use::ALL.map(|(is, name)| {
            [(Type::Ipv4, 4), (Type::Ipv6, 6)].map(|(ip, digit)| {
                let port = [Type::Proto, Type::Port];
                let name = format!("{name}{digit}");
                match is {
                    Use::Fronts => Set::new(name, &[&[ip], &port[..]].concat()).verdicts(),
                    Use::Ports => Set::new(name, &port).verdicts(),
                    Use::Homes => Set::new(name, &[&[ip], &port[..]].concat()),
                    Use::HomePorts | Use::Loops => Set::new(name, &port),
                    Use::Nodes => Set::new(name, &[ip]),
                }
            })
        }))
    }

    const fn get(&self, is: Use, family: Family) -> &Set {
        &self.0[is as usize][family as usize]
    }

    fn all(&self) -> impl Iterator<Item = &Set> {
        self.0.iter().flatten()
    }
}

impl Rules {
    /// The rules of a table of Services, and the batch that makes them.
    ///
    /// `bridged` says whether bridges give what passes them to rules like these (`net.bridge.bridge-nf-call-iptables`).
    /// That is before it has left the bridge for this host, and on that way a packet loses the socket it was given: who is
    /// behind a bridge is left to the kernel engine then.
    pub fn new(services: &Services, facts: &Facts, ports: Ports, bridged: bool) -> (Self, Batch) {
        let rules = Self {
            table: Table::inet(TABLE).comment("weave").owned(),
            sets: Sets::new(),
        };
        let mut batch = Batch::new();
        batch.replace_table(&rules.table);
        rules.make(&mut batch, facts, ports, bridged);
        rules.change(&mut batch, &Diff::between(&Services::default(), services));
        (rules, batch)
    }

    /// The batch that makes these the rules of the next table.
    pub fn next(&self, diff: &Diff) -> Batch {
        let mut batch = Batch::new();
        self.change(&mut batch, diff);
        batch
    }

    /// The batch after which nothing new is taken; what is open goes on.
    pub fn none(&self) -> Batch {
        let mut batch = Batch::new();
        let all = Use::ALL.into_iter().filter(|(is, _)| *is != Use::Nodes);
        for (is, family) in all.flat_map(|(is, _)| FAMILIES.map(|family| (is, family))) {
            batch.flush_set(&self.table, self.sets.get(is, family));
        }
        batch
    }

    fn make(&self, batch: &mut Batch, facts: &Facts, ports: Ports, bridged: bool) {
        let table = &self.table;
        self.sets.all().for_each(|set| batch.add_set(table, set));
        for address in &facts.addresses {
            let nodes = self.sets.get(Use::Nodes, Family::of(*address));
            batch.add_elements(table, nodes, [Element::new([Value::from(*address)])]);
        }
        for chain in ["take", "inside", "home", "home-udp", "first"] {
            batch.add_chain(table, &Chain::regular(chain));
        }
        if bridged {
            batch.add_rule(table, "first", &by_bridge().ret());
        }
        for family in FAMILIES {
            let protocols = [(Value::TCP, ports.tcp), (Value::UDP, ports.udp)];
            for (protocol, listening) in protocols {
                let of = || of_family(family).is(Field::L4Proto, protocol.clone());
                let home = of().iifname("lo");
                let home = give(home, &protocol, family, listening.host[family as usize]);
                batch.add_rule(table, "take", &home);
                let other = of().is_not(Field::Iifname, Value::name("lo"));
                let other = give(other, &protocol, family, listening.others[family as usize]);
                batch.add_rule(table, "take", &other);
            }
        }
        batch.add_rule(table, "inside", &Rule::new().iifname("lo").goto("take"));
        for net in &facts.containers {
            let container = Rule::new().inside(saddr(Family::of(net.addr())), *net);
            batch.add_rule(table, "inside", &container.goto("take"));
        }
        let home = Rule::new().set_mark(Field::CtMark, RELAY_MARK);
        let home = home.set_mark(Field::Mark, RELAY_MARK).accept();
        batch.add_rule(table, "home", &home);
        let home = Rule::new()
            .notrack()
            .set_mark(Field::Mark, RELAY_MARK)
            .accept();
        batch.add_rule(table, "home-udp", &home);
        self.prerouting(batch, bridged);
        self.output(batch);
        self.datagrams(batch);
    }

    fn prerouting(&self, batch: &mut Batch, bridged: bool) {
        let table = &self.table;
        let chain = Chain::filter("in", Hook::Prerouting, priority::MANGLE, Policy::Accept);
        batch.add_chain(table, &chain);
        batch.add_rule(table, "in", &first_packet().jump("first"));
        for family in FAMILIES {
            let set = |is| self.sets.get(is, family);
            let by_front = Rule::new().vmap(&front(family), set(Use::Fronts));
            batch.add_rule(table, "first", &by_front);
            let to_node = Rule::new().lookup(&[daddr(family)], set(Use::Nodes));
            let by_port = to_node.vmap(&PORT, set(Use::Ports));
            batch.add_rule(table, "first", &by_port);
            let at_home = Rule::new()
                .iifname("lo")
                .inside(daddr(family), loopback(family));
            let at_home = at_home.lookup(&PORT, set(Use::Loops)).goto("take");
            batch.add_rule(table, "first", &at_home);
        }
        if bridged {
            self.leave_datagrams_of_bridges(batch);
        }
        // ICMP belongs to the socket whose packet it is about: without it, a path's MTU and refusals stay unknown.
        for protocol in [Value::TCP, Value::UDP, Value::ICMP, Value::ICMPV6] {
            let ours = Rule::new().is(Field::L4Proto, protocol);
            let ours = ours.is(Field::Transparent, Value::Byte(1));
            batch.add_rule(
                table,
                "in",
                &ours.set_mark(Field::Mark, RELAY_MARK).accept(),
            );
        }
        batch.add_rule(table, "in", &of_no_socket().jump("first"));
    }

    /// Datagrams to a front that `first` has left to the kernel engine would be taken for a session's of another client, whose
    /// socket has the front's address.
    fn leave_datagrams_of_bridges(&self, batch: &mut Batch) {
        for family in FAMILIES {
            let set = |is| self.sets.get(is, family);
            let udp = || by_bridge().is(Field::L4Proto, Value::UDP);
            let to_front = udp().lookup(&front(family), set(Use::Homes));
            batch.add_rule(&self.table, "in", &to_front.ret());
            let to_node = udp().lookup(&[daddr(family)], set(Use::Nodes));
            let by_port = to_node.lookup(&PORT, set(Use::HomePorts));
            batch.add_rule(&self.table, "in", &by_port.ret());
        }
    }

    fn output(&self, batch: &mut Batch) {
        let table = &self.table;
        batch.add_chain(
            table,
            &Chain::route("out", priority::MANGLE, Policy::Accept),
        );
        batch.add_chain(table, &Chain::regular("first-out"));
        let known = Rule::new().is(Field::CtMark, Value::Number(RELAY_MARK));
        let known = known.set_mark(Field::Mark, RELAY_MARK).accept();
        batch.add_rule(table, "out", &known);
        batch.add_rule(table, "out", &first_packet().jump("first-out"));
        for family in FAMILIES {
            let set = |is| self.sets.get(is, family);
            let by_front = Rule::new().lookup(&front(family), set(Use::Homes));
            batch.add_rule(table, "first-out", &by_front.goto("home"));
            let to_node = Rule::new().lookup(&[daddr(family)], set(Use::Nodes));
            let by_port = to_node.lookup(&PORT, set(Use::HomePorts));
            batch.add_rule(table, "first-out", &by_port.goto("home"));
        }
    }

    fn datagrams(&self, batch: &mut Batch) {
        let table = &self.table;
        let udp = || Rule::new().is(Field::L4Proto, Value::UDP);
        let chain = Chain::filter("in-udp", Hook::Prerouting, priority::RAW, Policy::Accept);
        batch.add_chain(table, &chain);
        batch.add_rule(table, "in-udp", &udp().jump("first"));
        let chain = Chain::route("out-udp", priority::RAW, Policy::Accept);
        batch.add_chain(table, &chain);
        let others = Rule::new().is_not(Field::L4Proto, Value::UDP);
        batch.add_rule(table, "out-udp", &others.accept());
        for family in FAMILIES {
            let set = |is| self.sets.get(is, family);
            let mut add = |rule: &Rule| batch.add_rule(table, "out-udp", rule);
            let by_front = udp().lookup(&front(family), set(Use::Homes));
            add(&by_front.goto("home-udp"));
            let to_node = udp().lookup(&[daddr(family)], set(Use::Nodes));
            add(&to_node.lookup(&PORT, set(Use::HomePorts)).goto("home-udp"));
            let itself = udp().inside(daddr(family), loopback(family));
            add(&itself.lookup(&PORT, set(Use::Loops)).notrack());
            let answer = udp().lookup(&answering(family), set(Use::Homes));
            add(&answer.notrack());
            let of_node = udp().lookup(&[saddr(family)], set(Use::Nodes));
            add(&of_node.lookup(&SOURCE_PORT, set(Use::HomePorts)).notrack());
            let itself = udp().inside(saddr(family), loopback(family));
            add(&itself.lookup(&SOURCE_PORT, set(Use::Loops)).notrack());
        }
    }

    /// Deletes and adds what differs.
    fn change(&self, batch: &mut Batch, diff: &Diff) {
        let (mut gone, mut come) = (Keyed::new(), Keyed::new());
        for (_, before, after) in diff.pairs() {
            let keyed = |(place, element): Placed| ((place, element.key_bytes()), element);
            gone.extend(
                before
                    .into_iter()
                    .flat_map(|entry| elements(entry))
                    .map(keyed),
            );
            come.extend(
                after
                    .into_iter()
                    .flat_map(|entry| elements(entry))
                    .map(keyed),
            );
        }
        for (((is, family), _), element) in differing(&gone, &come) {
            batch.delete_elements(&self.table, self.sets.get(*is, *family), [element.clone()]);
        }
        for (((is, family), _), element) in differing(&come, &gone) {
            batch.add_elements(&self.table, self.sets.get(*is, *family), [element.clone()]);
        }
    }
}

type Keyed = BTreeMap<((Use, Family), Vec<u8>), Element>;

/// What is in one and not the same in the other.
fn differing<'a>(
    one: &'a Keyed,
    other: &'a Keyed,
) -> impl Iterator<Item = (&'a ((Use, Family), Vec<u8>), &'a Element)> {
    one.iter()
        .filter(|(place, element)| other.get(*place) != Some(*element))
}

/// All elements of an entry.
fn elements(entry: &Entry) -> Vec<Placed> {
    let mut placed = Vec::new();
    for (front, way) in &entry.fronts {
        let family = Family::of(front.address);
        let mut put = |is, element| placed.push(((is, family), element));
        let key = |element: &[Value]| Element::new(element.to_vec());
        let address = Value::from(front.address);
        let port = [
            Value::Byte(front.protocol.number()),
            Value::Port(front.port),
        ];
        if front.is_node_port() && entry.loopback && has_target(entry, *way, Origin::Host) {
            put(Use::Loops, key(&port));
        }
        let Some(chain) = takes(entry, *way) else {
            continue;
        };
        if front.is_node_port() {
            put(Use::Ports, key(&port).verdict(Verdict::goto(chain)));
            put(Use::HomePorts, key(&port));
        } else {
            let place = [&[address], &port[..]].concat();
            put(Use::Fronts, key(&place).verdict(Verdict::goto(chain)));
            put(Use::Homes, key(&place));
        }
    }
    placed
}

/// The chain that takes the connections to a front: everybody's, or only those of containers and of the host. None where
/// there is no endpoint for them; the kernel says so better.
fn takes(entry: &Entry, way: Way) -> Option<&'static str> {
    let inside = entry.engine == Engine::Relay && has_target(entry, way, Origin::Host);
    let outside = has_target(entry, way, Origin::Outside);
    inside.then_some(if outside { "take" } else { "inside" })
}

fn has_target(entry: &Entry, way: Way, origin: Origin) -> bool {
    if entry.uses_local(way, origin) {
        !entry.local.is_empty()
    } else {
        !entry.cluster.is_empty()
    }
}

/// The first packet of a TCP connection that the kernel has not translated already.
fn first_packet() -> Rule {
    untranslated(SYN | ACK, SYN)
}

/// What goes on with a TCP connection that no socket has, and that the kernel has not translated: a listener with no room
/// in its queue keeps nothing of a first packet, and answers it with a cookie (`net.ipv4.tcp_syncookies`). Whether one came
/// back only a listener can tell; it refuses all else.
fn of_no_socket() -> Rule {
    untranslated(SYN | RST | ACK, ACK)
}

/// A TCP packet with these `flags` of `of`, of a connection that the kernel has not translated.
fn untranslated(of: u32, flags: u32) -> Rule {
    let packet = Rule::new().masked(Field::TcpFlags, of, Cmp::Eq, flags);
    packet.masked(Field::CtStatus, Field::DNAT, Cmp::Eq, 0)
}

/// A packet that came in by a bridge of this host.
fn by_bridge() -> Rule {
    Rule::new().is(Field::Iifkind, Value::name("bridge"))
}

/// Gives the packet to a listener, if there is one.
fn give(rule: Rule, protocol: &Value, family: Family, port: u16) -> Rule {
    let address = match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::LOCALHOST),
        Family::V6 => IpAddr::V6(Ipv6Addr::LOCALHOST),
    };
    let untracked = if *protocol == Value::UDP {
        rule.notrack()
    } else {
        rule
    };
    let given = untracked.tproxy(address, port);
    given.set_mark(Field::Mark, RELAY_MARK).accept()
}

fn of_family(family: Family) -> Rule {
    let value = match family {
        Family::V4 => Value::IPV4,
        Family::V6 => Value::IPV6,
    };
    Rule::new().is(Field::NfProto, value)
}

const fn saddr(family: Family) -> Field {
    match family {
        Family::V4 => Field::Ip4Saddr,
        Family::V6 => Field::Ip6Saddr,
    }
}

const fn daddr(family: Family) -> Field {
    match family {
        Family::V4 => Field::Ip4Daddr,
        Family::V6 => Field::Ip6Daddr,
    }
}

const fn front(family: Family) -> [Field; 3] {
    [daddr(family), Field::L4Proto, Field::Dport]
}

fn loopback(family: Family) -> IpNet {
    match family {
        Family::V4 => IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8)),
        Family::V6 => IpNet::from(IpAddr::V6(Ipv6Addr::LOCALHOST)),
    }
}

/// The front that a packet answers for.
const fn answering(family: Family) -> [Field; 3] {
    [saddr(family), Field::L4Proto, Field::Sport]
}

const SOURCE_PORT: [Field; 2] = [Field::L4Proto, Field::Sport];
const PORT: [Field; 2] = [Field::L4Proto, Field::Dport];
const SYN: u32 = 2;
const RST: u32 = 4;
const ACK: u32 = 16;
