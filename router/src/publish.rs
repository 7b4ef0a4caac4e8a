//! Published ports: ports of the host that lead to containers, as the nftables table `weave-publish`.
//!
//! | chain | hook, priority | what |
//! |---|---|---|
//! | `published-in`, `published-out` | prerouting and output, dstnat −3 | the first packet of a connection to a published port gets a container for destination: first by address and port, then, if the address is any of the host's own, by port alone. Behind Services, so that none of them loses a port |
//! | `published-source` | postrouting, srcnat +4 | the container sees the client's own address, unless it could not answer that: a container that is its own client, the host's own `127.0.0.1`, and a client outside of the cluster where the container's default route leads elsewhere |
//!
//! Two lookups, however many ports there are. Nothing of the packet is marked: connections of the host to `127.0.0.1`
//! reach the container because its outer end takes such sources (`route_localnet`, `attach/outer.rs`), while
//! what a container itself sends to such an address ends before anything else ([`crate::rules`]). `::1` has nothing like it in
//! the kernel, so published ports are not to be had there. The table as a whole is small and made anew with each
//! change; connections that stand do not notice. Without a published port there is no table.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::Ipv4Net;
use weave_linux::nft::{
    Batch, Chain, Cmp, Element, Field, Hook, Policy, Rule, RuleSet, Set, Table, Type, Value,
    priority,
};
use weave_model::{ClusterRange, PublishedPort};

/// The name of the table.
pub const TABLE: &str = "weave-publish";

/// The host's own addresses that never leave it.
const LOOPBACK: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8);

/// The gateway of IPv6, an address of every outer end.
const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// A published port and where it leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// The port.
    pub published: PublishedPort,
    /// The container's IPv4 address.
    pub v4: Ipv4Addr,
    /// Its IPv6 address, if it has one.
    pub v6: Option<Ipv6Addr>,
    /// Whether its default route leads through us, so that it answers whoever asks.
    pub by_default: bool,
}

/// What the rules depend on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublishRules {
    /// What the names of the outer ends of containers' veth pairs begin with.
    pub veths: String,
    /// The cluster's addresses.
    pub range: ClusterRange,
    /// The ports; no two of them collide.
    pub targets: Vec<Target>,
}

/// One family's part.
struct Family {
    v4: bool,
    digit: u8,
    kind: Type,
    source: Field,
    destination: Field,
}

const FAMILIES: [Family; 2] = [
    Family {
        v4: true,
        digit: 4,
        kind: Type::Ipv4,
        source: Field::Ip4Saddr,
        destination: Field::Ip4Daddr,
    },
    Family {
        v4: false,
        digit: 6,
        kind: Type::Ipv6,
        source: Field::Ip6Saddr,
        destination: Field::Ip6Daddr,
    },
];

impl Family {
    /// Address, protocol and port of the host → address and port of a container.
    fn exact(&self) -> Set {
        let key = [self.kind, Type::Proto, Type::Port];
        Set::new(format!("exact{}", self.digit), &key).values(&[self.kind, Type::Port])
    }

    /// Protocol and port of the host → address and port of a container.
    fn every(&self) -> Set {
        let key = [Type::Proto, Type::Port];
        Set::new(format!("every{}", self.digit), &key).values(&[self.kind, Type::Port])
    }

    /// Containers as source and destination at once: those that are their own clients.
    fn itself(&self) -> Set {
        Set::new(format!("itself{}", self.digit), &[self.kind, self.kind])
    }

    /// Containers whose default route does not lead through us.
    fn elsewhere(&self) -> Set {
        Set::new(format!("elsewhere{}", self.digit), &[self.kind])
    }

    /// The container's address of this family.
    fn address(&self, target: &Target) -> Option<IpAddr> {
        if self.v4 {
            Some(target.v4.into())
        } else {
            target.v6.map(IpAddr::from)
        }
    }

    /// A rule for packets of this family.
    fn rule(&self) -> Rule {
        let family = if self.v4 { Value::IPV4 } else { Value::IPV6 };
        Rule::new().is(Field::NfProto, family)
    }

    fn outside_of(&self, rule: Rule, range: &ClusterRange) -> Rule {
        if self.v4 {
            rule.outside(self.source, range.v4())
        } else {
            rule.outside(self.source, range.v6())
        }
    }
}

impl PublishRules {
    /// The table with these rules.
    pub fn rule_set(&self) -> RuleSet {
        RuleSet::new(Table::inet(TABLE).comment("weave"), |batch, table| {
            batch.add_chain(table, &Chain::regular("published"));
            for family in &FAMILIES {
                self.destinations(batch, table, family);
            }
            for (name, hook) in [
                ("published-in", Hook::Prerouting),
                ("published-out", Hook::Output),
            ] {
                let chain = Chain::nat(name, hook, priority::DSTNAT - 3, Policy::Accept);
                batch.add_chain(table, &chain);
                batch.add_rule(table, name, &Rule::new().jump("published"));
            }
            self.sources(batch, table);
        })
    }

    /// Which packets get which container.
    fn destinations(&self, batch: &mut Batch, table: &Table, family: &Family) {
        let (exact, every) = (family.exact(), family.every());
        batch.add_set(table, &exact);
        batch.add_set(table, &every);
        for target in &self.targets {
            let PublishedPort {
                protocol,
                host_port,
                port,
                ..
            } = target.published;
            let Some(container) = family
                .address(target)
                .filter(|_| target.published.is_of(family.v4))
            else {
                continue;
            };
            let place = [Value::Byte(protocol.number()), Value::Port(host_port.get())];
            let to = [Value::from(container), Value::Port(port.get())];
            match target.published.one_address() {
                Some(address) => {
                    let key = [Value::from(address)].into_iter().chain(place);
                    batch.add_elements(table, &exact, [Element::new(key).values(to)]);
                }
                None => batch.add_elements(table, &every, [Element::new(place).values(to)]),
            }
        }
        let place = [Field::L4Proto, Field::Dport];
        let whole = [&[family.destination], &place[..]].concat();
        let by_address = family.rule().dnat_map(&whole, &exact);
        batch.add_rule(table, "published", &by_address);
        let own = family
            .rule()
            .is(Field::DaddrType, Value::Number(Field::LOCAL));
        let own = match family.v4 {
            true => own,
            false => own.is_not(family.destination, Ipv6Addr::LOCALHOST),
        };
        batch.add_rule(table, "published", &own.dnat_map(&place, &every));
    }

    /// Which clients the container sees as its gateway.
    fn sources(&self, batch: &mut Batch, table: &Table) {
        let name = "published-source";
        let order = priority::SRCNAT + 4;
        let chain = Chain::nat(name, Hook::Postrouting, order, Policy::Accept);
        batch.add_chain(table, &chain);
        let untouched = Rule::new().masked(Field::CtStatus, Field::DNAT, Cmp::Eq, 0);
        batch.add_rule(table, name, &untouched.ret());
        for family in &FAMILIES {
            let (itself, elsewhere) = (family.itself(), family.elsewhere());
            batch.add_set(table, &itself);
            batch.add_set(table, &elsewhere);
            let own = self.containers(family, |_| true);
            let both = own.map(|one| Element::new([one.clone(), one]));
            batch.add_elements(table, &itself, both);
            let away = self.containers(family, |target| !target.by_default);
            batch.add_elements(table, &elsewhere, away.map(|one| Element::new([one])));
            let own_client = family
                .rule()
                .lookup(&[family.source, family.destination], &itself);
            batch.add_rule(table, name, &own_client.masquerade());
            let foreign = family.outside_of(family.rule(), &self.range);
            let foreign = foreign.lookup(&[family.destination], &elsewhere);
            // The gateway is on the container's link, whatever its routes are.
            let gateway = match family.v4 {
                true => foreign.masquerade(),
                false => foreign.snat(GATEWAY_V6.into()),
            };
            batch.add_rule(table, name, &gateway);
        }
        let host = Rule::new()
            .oifname(&format!("{}*", self.veths))
            .inside(Field::Ip4Saddr, LOOPBACK);
        batch.add_rule(table, name, &host.masquerade());
    }

    /// The addresses of the containers with ports that are meant, each once.
    fn containers(
        &self,
        family: &Family,
        meant: impl Fn(&Target) -> bool,
    ) -> impl Iterator<Item = Value> {
        let addresses = self.targets.iter().filter(|target| meant(target));
        let addresses: BTreeSet<IpAddr> = addresses
            .filter_map(|target| family.address(target))
            .collect();
        addresses.into_iter().map(Value::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_follows_from_the_ports() {
        let rules = |text: &[&str]| {
            let target = |text: &&str| Target {
                published: text.parse().unwrap(),
                v4: "10.32.0.2".parse().unwrap(),
                v6: "fd00::2".parse().ok(),
                by_default: true,
            };
            PublishRules {
                veths: "wv".to_owned(),
                range: ClusterRange::new(
                    "10.32.0.0/12".parse().unwrap(),
                    "fd00::/48".parse().unwrap(),
                )
                .unwrap(),
                targets: text.iter().map(target).collect(),
            }
            .rule_set()
        };
        assert_eq!(rules(&["80:80"]), rules(&["80:80/tcp"]));
        let all = [
            "80:80",
            "80:81",
            "80:80/udp",
            "0.0.0.0:80:80",
            "[::]:80:80",
            "192.0.2.1:80:80",
            "[2001:db8::1]:80:80",
        ];
        for (at, one) in all.iter().enumerate() {
            for other in &all[at + 1..] {
                assert_ne!(rules(&[one]), rules(&[other]), "{one} {other}");
            }
        }
    }
}
