//! What the kernel does with containers' packets on the way in and out of a node: the nftables table `weave-attach`.
//!
//! | chain | hook, priority | what |
//! |---|---|---|
//! | `antispoof` | prerouting −310 | from a container come only packets with its own addresses: the route back to the source must leave by the interface the packet came in by. And from no other device come packets with a source in the cluster's range, or they would be taken for a container's. Nothing from a container is for the host's loopback addresses, which the devices of containers with published ports take. It runs before connection tracking, so a forged packet leaves no trace there. Duplicate address detection (from `::`) and link-local addresses pass; ARP is not IP and never comes here |
//! | `input` | input −10 | containers, of this node and of others, do not reach the node's control ports at its addresses, Docker's not by its own bridge either; the host does not hear their broadcasts and multicasts, except what manages the link (neighbour discovery, MLD, IGMP) |
//! | `border` | forward −10 | what a container sends to the cluster goes to a device of ours or nowhere, so that it never leaves in clear by the default route while the cluster's own is missing; and nothing outside opens a connection to a container but by an address that was translated (a published port, a Service) |
//! | `mss` | forward −150 | TCP between containers and the outside announces no larger segments than both routes carry |
//! | `outbound` | postrouting, srcnat +5 | what containers send to the outside leaves with the node's address |
//!
//! Networks besides the default one add chains of their own (`rules/networks.rs`).
//!
//! "Outside" is every destination that is neither in the cluster's range nor behind a device of ours; broadcast and
//! multicast are never translated. Priorities leave room for Services (destination NAT before, source NAT at the same
//! place) and for policy (the plain filter hooks).

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use weave_linux::nft::{Batch, Chain, Field, Hook, Policy, Rule, RuleSet, Table, Value, priority};
use weave_model::{ClusterRange, RELAY_MARK};

mod networks;

pub use networks::{APART, INTERNAL, NetworkRules};

/// The bridge by which Docker's containers on our network reach the outside, and the host under addresses of Docker's.
const DOCKER_GATEWAY: &str = "docker_gwbridge";

/// The name of the table.
pub const TABLE: &str = "weave-attach";

/// What the rules depend on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttachRules {
    /// The router's TUN device.
    pub tun: String,
    /// What the names of the outer ends of containers' veth pairs begin with.
    pub veths: String,
    /// The cluster's addresses.
    pub range: ClusterRange,
    /// The networks besides the default one; their ranges do not overlap.
    pub networks: Vec<NetworkRules>,
    /// UDP ports of the node that containers must not reach.
    pub closed_udp: Vec<u16>,
    /// TCP ports of the node that containers must not reach.
    pub closed_tcp: Vec<u16>,
}

impl AttachRules {
    /// The table with these rules.
    pub fn rule_set(&self) -> RuleSet {
        RuleSet::new(Table::inet(TABLE).comment("weave"), |batch, table| {
            self.antispoof(batch, table);
            self.input(batch, table);
            self.border(batch, table);
            self.mss(batch, table);
            self.outbound(batch, table);
            self.apart(batch, table);
        })
    }

    fn antispoof(&self, batch: &mut Batch, table: &Table) {
        let chain = Chain::filter(
            "antispoof",
            Hook::Prerouting,
            priority::RAW - 10,
            Policy::Accept,
        );
        batch.add_chain(table, &chain);
        let forged = Rule::new()
            .iifname(&self.any_veth())
            .is(Field::RouteBack, Value::Number(0));
        batch.add_rule(
            table,
            "antispoof",
            &forged.counter().drop().comment(SPOOFED),
        );
        let inner = Rule::new()
            .iifname(&self.any_veth())
            .inside(Field::Ip4Daddr, LOOPBACK);
        batch.add_rule(table, "antispoof", &inner.counter().drop().comment(CONTROL));
        for source in self.within(Field::Ip4Saddr, Field::Ip6Saddr) {
            let foreign = self
                .not_ours(source, Field::Iifname)
                .is_not(Field::Iifname, Value::name("lo"));
            batch.add_rule(
                table,
                "antispoof",
                &foreign.counter().drop().comment(FOREIGN),
            );
        }
    }

    fn border(&self, batch: &mut Batch, table: &Table) {
        batch.add_chain(table, &Chain::regular("uninvited"));
        let translated = Rule::new().any_bit(Field::CtStatus, Field::DNAT).ret();
        batch.add_rule(table, "uninvited", &translated);
        let first = Rule::new().any_bit(Field::CtState, Field::NEW);
        batch.add_rule(
            table,
            "uninvited",
            &first.counter().drop().comment(UNINVITED),
        );
        let chain = Chain::filter(
            "border",
            Hook::Forward,
            priority::FILTER - 10,
            Policy::Accept,
        );
        batch.add_chain(table, &chain);
        let ours = self.any_veth();
        for destination in self.within(Field::Ip4Daddr, Field::Ip6Daddr) {
            let astray = self.not_ours(destination.iifname(&ours), Field::Oifname);
            batch.add_rule(table, "border", &astray.counter().drop().comment(ASTRAY));
        }
        for device in [&ours, &self.tun] {
            let entering = self.not_ours(Rule::new().oifname(device), Field::Iifname);
            batch.add_rule(table, "border", &entering.jump("uninvited"));
        }
    }

    /// Rules for an address of the cluster, one a family.
    fn within(&self, v4: Field, v6: Field) -> [Rule; 2] {
        [
            Rule::new().inside(v4, self.range.v4()),
            Rule::new().inside(v6, self.range.v6()),
        ]
    }

    fn input(&self, batch: &mut Batch, table: &Table) {
        batch.add_chain(table, &Chain::regular("control"));
        for (field, ports) in [
            (Field::UdpDport, &self.closed_udp),
            (Field::TcpDport, &self.closed_tcp),
        ] {
            for port in ports {
                let closed = Rule::new().is(field, Value::Port(*port)).counter().drop();
                batch.add_rule(table, "control", &closed.comment(CONTROL));
            }
        }
        batch.add_chain(
            table,
            &Chain::filter("input", Hook::Input, priority::FILTER - 10, Policy::Accept),
        );
        // A relay's sockets are no control ports; nor does it pay for the question whose the address is.
        let relayed = Rule::new().is(Field::Mark, Value::Number(RELAY_MARK));
        batch.add_rule(table, "input", &relayed.accept());
        for device in [self.any_veth().as_str(), &self.tun, DOCKER_GATEWAY] {
            // What is for others and comes in all the same is taken by a Service's relay.
            let for_host = Rule::new()
                .iifname(device)
                .is_not(Field::DaddrType, Value::Number(Field::UNICAST));
            batch.add_rule(table, "input", &for_host.jump("control"));
        }
        self.group(batch, table);
    }

    /// What containers send to a group is for the containers of their network, not for the host.
    fn group(&self, batch: &mut Batch, table: &Table) {
        batch.add_chain(table, &Chain::regular("group"));
        for protocol in [ICMPV6, IGMP] {
            let link = Rule::new().is(Field::L4Proto, Value::Byte(protocol));
            batch.add_rule(table, "group", &link.ret());
        }
        batch.add_rule(table, "group", &Rule::new().counter().drop().comment(GROUP));
        for kind in [Field::MULTICAST, Field::BROADCAST] {
            let heard = Rule::new()
                .iifname(&self.any_veth())
                .is(Field::DaddrType, Value::Number(kind));
            batch.add_rule(table, "input", &heard.jump("group"));
        }
    }

    fn mss(&self, batch: &mut Batch, table: &Table) {
        batch.add_chain(
            table,
            &Chain::filter("mss", Hook::Forward, priority::MANGLE, Policy::Accept),
        );
        let ours = self.any_veth();
        for (inside, outside) in [
            (Field::Iifname, Field::Oifname),
            (Field::Oifname, Field::Iifname),
        ] {
            let crossing = self.not_ours(Rule::new().is(inside, Value::name(&ours)), outside);
            batch.add_rule(
                table,
                "mss",
                &crossing.any_bit(Field::TcpFlags, SYN).clamp_mss(),
            );
        }
    }

    fn outbound(&self, batch: &mut Batch, table: &Table) {
        let chain = Chain::nat(
            "outbound",
            Hook::Postrouting,
            priority::SRCNAT + 5,
            Policy::Accept,
        );
        batch.add_chain(table, &chain);
        let v4 = Rule::new()
            .inside(Field::Ip4Saddr, self.range.v4())
            .outside(Field::Ip4Daddr, self.range.v4())
            .is_not(Field::DaddrType, Value::Number(Field::MULTICAST))
            .is_not(Field::DaddrType, Value::Number(Field::BROADCAST));
        let v6 = Rule::new()
            .inside(Field::Ip6Saddr, self.range.v6())
            .outside(Field::Ip6Daddr, self.range.v6())
            .is_not(Field::DaddrType, Value::Number(Field::MULTICAST));
        for rule in [v4, v6] {
            // What leaves by the loopback device comes back: the host's own connections to relayed Services.
            let rule = rule.is_not(Field::Oifname, Value::name("lo"));
            let rule = self.not_ours(rule, Field::Oifname).counter().masquerade();
            batch.add_rule(table, "outbound", &rule.comment(OUTBOUND));
        }
    }

    /// Adds that a device is neither the TUN nor a container's.
    fn not_ours(&self, rule: Rule, device: Field) -> Rule {
        rule.is_not(device, Value::name(&self.tun))
            .is_not(device, Value::name(self.any_veth()))
    }

    fn any_veth(&self) -> String {
        format!("{}*", self.veths)
    }
}

/// Comment of the rule that counts packets with a forged source; as long as the table stands it counts on.
pub const SPOOFED: &str = "spoofed";
/// Comment of the rules that count packets of other devices with a source in the cluster's range.
pub const FOREIGN: &str = "foreign";
/// Comment of the rules that count packets from containers to the cluster for which there is no way but in clear.
pub const ASTRAY: &str = "astray";
/// Comment of the rule that counts packets with which the outside wanted to open a connection to a container.
pub const UNINVITED: &str = "uninvited";
/// Comment of the rules that count packets from containers to the node's control ports and loopback addresses.
pub const CONTROL: &str = "control";
/// Comment of the rule that counts broadcasts and multicasts that the host was not given.
pub const GROUP: &str = "group";
/// Comment of the rules that count connections translated on their way out.
pub const OUTBOUND: &str = "outbound";

/// The addresses of a host that never leave it (RFC 1122, 3.2.1.3).
const LOOPBACK: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8);
/// Protocol number of ICMP for IPv6 (IANA).
const ICMPV6: u8 = 58;
/// Protocol number of the Internet Group Management Protocol (IANA).
const IGMP: u8 = 2;
/// The TCP flag with which either side announces its segment size.
const SYN: u32 = 2;
