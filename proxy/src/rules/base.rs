//! What is in the table whatever Services there are: the maps, and the chains at the hooks.

use ipnet::IpNet;
use weave_linux::nft::{
    Batch, Chain, Cmp, Direction, Element, Field, Hook, Policy, Reject, Rule, Table, Value,
    Verdict, priority,
};
use weave_model::RELAY_MARK;

use super::chains::{containers, is_local, of_family, to_node, value_of};
use super::maps::{At, Map, Maps, Use, daddr, front_fields, saddr};
use crate::facts::{Facts, Unknown};
use crate::table::Family;

pub(super) const FAMILIES: [Family; 2] = [Family::V4, Family::V6];
pub(super) const ATS: [At; 2] = [At::Address, At::NodePort];

/// The device to other nodes: by it the node's address must be one that other nodes find.
const OVERLAY: &str = "weave0";

pub(super) fn make(batch: &mut Batch, table: &Table, maps: &Maps, facts: &Facts) {
    sets(batch, table, maps, facts);
    for name in [
        "guard", "services", "masked", "foreign", "host", "refuse", "missed", "nobody", "closed",
    ] {
        batch.add_chain(table, &Chain::regular(name));
    }
    guard(batch, table, maps);
    services(batch, table, maps);
    sources(batch, table, facts);
    mask(batch, table, maps);
    closed(batch, table, maps, facts);
}

/// The maps and sets of a table, and the addresses that take node ports.
pub(super) fn sets(batch: &mut Batch, table: &Table, maps: &Maps, facts: &Facts) {
    maps.sets().for_each(|set| batch.add_set(table, set));
    for family in FAMILIES {
        let of_family = facts
            .addresses
            .iter()
            .filter(|address| Family::of(**address) == family);
        let elements = of_family.map(|address| Element::new([Value::from(*address)]));
        let nodes = maps.get(Map::new(Use::Nodes, At::Address, family));
        batch.add_elements(table, nodes, elements);
    }
}

fn filter(batch: &mut Batch, table: &Table, name: &str, (hook, priority): (Hook, i32), to: &str) {
    let chain = Chain::filter(name, hook, priority, Policy::Accept);
    batch.add_chain(table, &chain);
    // What was decided for a connection's first packet holds for all: the others pay for one rule only.
    let first = Rule::new().masked(
        Field::CtState,
        Field::ESTABLISHED | Field::RELATED,
        Cmp::Eq,
        0,
    );
    batch.add_rule(table, name, &first.jump(to));
}

fn guard(batch: &mut Batch, table: &Table, maps: &Maps) {
    for family in FAMILIES {
        let map = maps.get(Map::new(Use::Guarded, At::Address, family));
        let rule = Rule::new().vmap(front_fields(At::Address, family), map);
        batch.add_rule(table, "guard", &rule);
    }
}

/// The hooks of the chain `guard`, and when they come.
const GUARDS: [(&str, Hook); 2] = [("guard-in", Hook::Prerouting), ("guard-out", Hook::Output)];

/// Has packets pass the guard. It costs every packet that the host forwards, so it is asked for only while a front has
/// source ranges.
pub(super) fn hook_guard(batch: &mut Batch, table: &Table) {
    for (name, hook) in GUARDS {
        filter(batch, table, name, (hook, priority::DSTNAT - 15), "guard");
    }
}

/// Has them pass it no more.
pub(super) fn unhook_guard(batch: &mut Batch, table: &Table) {
    for (name, _) in GUARDS {
        batch.flush_chain(table, name);
        batch.delete_chain(table, name);
    }
}

fn services(batch: &mut Batch, table: &Table, maps: &Maps) {
    for family in FAMILIES {
        for at in ATS {
            let rule = by_front(maps, at, family);
            let map = maps.get(Map::new(Use::Fronts, at, family));
            batch.add_rule(table, "services", &rule.vmap(front_fields(at, family), map));
        }
    }
    for (name, hook) in [("pick-in", Hook::Prerouting), ("pick-out", Hook::Output)] {
        let chain = Chain::nat(name, hook, priority::DSTNAT - 5, Policy::Accept);
        batch.add_chain(table, &chain);
        batch.add_rule(table, name, &relayed());
        batch.add_rule(table, name, &Rule::new().jump("services"));
    }
}

/// What the relay has taken is none of the kernel's work.
pub(super) fn relayed() -> Rule {
    Rule::new().is(Field::Mark, Value::Number(RELAY_MARK)).ret()
}

/// The beginning of a rule that looks a packet's front up.
pub(super) fn by_front(maps: &Maps, at: At, family: Family) -> Rule {
    match at {
        At::Address => Rule::new(),
        At::NodePort => to_node(Rule::new(), family, maps),
    }
}

/// Which source the endpoint sees: `masked` the node's, `foreign` a container's own and the node's for all others,
/// `host` the client's own unless the host itself is the client.
fn sources(batch: &mut Batch, table: &Table, facts: &Facts) {
    for own in &facts.own {
        let rule = of_family(Family::of(*own)).oifname(OVERLAY);
        batch.add_rule(table, "masked", &rule.snat(*own));
    }
    batch.add_rule(table, "masked", &Rule::new().masquerade());
    for own in &facts.own {
        let net = IpNet::from(*own);
        let rule = Rule::new().inside(saddr(Family::of(*own)), net);
        batch.add_rule(table, "foreign", &rule.ret());
    }
    for chain in ["foreign", "host"] {
        batch.add_rule(table, chain, &is_local(Rule::new()).goto("masked"));
    }
    for family in FAMILIES {
        for container in containers(family, facts) {
            batch.add_rule(table, "foreign", &container.ret());
        }
    }
    batch.add_rule(table, "foreign", &Rule::new().goto("masked"));
}

fn mask(batch: &mut Batch, table: &Table, maps: &Maps) {
    let chain = Chain::nat(
        "mask",
        Hook::Postrouting,
        priority::SRCNAT + 5,
        Policy::Accept,
    );
    batch.add_chain(table, &chain);
    let untouched = Rule::new().masked(Field::CtStatus, Field::DNAT, Cmp::Eq, 0);
    batch.add_rule(table, "mask", &untouched.ret());
    for family in FAMILIES {
        let loops = maps.get(Map::new(Use::Loops, At::Address, family));
        let itself = Rule::new().lookup(&[saddr(family), daddr(family)], loops);
        batch.add_rule(table, "mask", &itself.masquerade());
        for at in ATS {
            let map = maps.get(Map::new(Use::Sources, at, family));
            let rule = match at {
                At::Address => of_family(family),
                At::NodePort => {
                    let nodes = maps.get(Map::new(Use::Nodes, At::Address, family));
                    of_family(family).lookup(&[original(family)], nodes)
                }
            };
            let fields = original_front(at, family);
            batch.add_rule(table, "mask", &rule.vmap(&fields, map));
        }
    }
}

const fn original(family: Family) -> Field {
    match family {
        Family::V4 => Field::CtIp4Daddr(Direction::Original),
        Family::V6 => Field::CtIp6Daddr(Direction::Original),
    }
}

/// The front as the client had it.
fn original_front(at: At, family: Family) -> Vec<Field> {
    let address = (at == At::Address).then(|| original(family));
    let rest = [Field::L4Proto, Field::CtDport(Direction::Original)];
    address.into_iter().chain(rest).collect()
}

fn closed(batch: &mut Batch, table: &Table, maps: &Maps, facts: &Facts) {
    let tcp = Rule::new().is(Field::L4Proto, Value::TCP);
    batch.add_rule(table, "refuse", &tcp.reject(Reject::TcpReset));
    let other = Rule::new().reject(Reject::PortUnreachable);
    batch.add_rule(table, "refuse", &other);
    // A packet that is on its way while rules change may see a rule from before and an element from after, and be
    // picked for by neither. It vanishes, so its sender tries again, instead of being told that nobody is there.
    let missed = Rule::new().any_bit(Field::CtState, Field::NEW | Field::INVALID);
    batch.add_rule(table, "missed", &missed.drop());
    batch.add_rule(table, "closed", &relayed());
    for family in FAMILIES {
        for at in ATS {
            let map = maps.get(Map::new(Use::Closed, at, family));
            let rule = by_front(maps, at, family).vmap(front_fields(at, family), map);
            batch.add_rule(table, "closed", &rule);
        }
        let vips = maps.get(Map::new(Use::Vips, At::Address, family));
        let unknown_port = Rule::new().vmap(&[daddr(family)], vips);
        batch.add_rule(table, "closed", &unknown_port);
    }
    nobody(batch, table, maps, facts);
    stray(batch, table, maps);
    let before = priority::FILTER - 10;
    for (name, hook, to) in [
        ("closed-input", Hook::Input, "closed"),
        ("closed-forward", Hook::Forward, "stray"),
        ("closed-output", Hook::Output, "closed"),
    ] {
        filter(batch, table, name, (hook, before), to);
    }
}

/// Addresses of the ranges that no Service has.
///
/// While somebody removes the table, its rules still run when the elements of its maps are out of force already, so a
/// packet may find nobody who picks for it and everything else as it was. Therefore it is elements of maps alone that
/// lead to a refusal, here by the packet's family: without them the packet goes on, to where it is held.
fn nobody(batch: &mut Batch, table: &Table, maps: &Maps, facts: &Facts) {
    for range in &facts.ranges {
        let nobody = Rule::new().inside(daddr(Family::of(range.addr())), *range);
        let nobody = match facts.unknown {
            Unknown::Dropped => nobody.counter().drop(),
            Unknown::Refused => nobody.counter().goto("refuse"),
        };
        batch.add_rule(table, "nobody", &nobody);
    }
    for family in FAMILIES {
        let ranges = maps.get(Map::new(Use::Ranges, At::Address, family));
        let element = Element::new([value_of(family)]).verdict(Verdict::goto("nobody"));
        batch.add_elements(table, ranges, [element]);
        let rule = Rule::new().vmap(&[Field::NfProto], ranges);
        batch.add_rule(table, "closed", &rule);
    }
}

/// What belongs to no connection is not translated back. If an endpoint of this node sends such a packet, the client would
/// see it come from a stranger, and its reset would end the connection of whom it did not ask.
fn stray(batch: &mut Batch, table: &Table, maps: &Maps) {
    batch.add_chain(table, &Chain::regular("stray"));
    for family in FAMILIES {
        let endpoints = maps.get(Map::new(Use::Loops, At::Address, family));
        let invalid = of_family(family).any_bit(Field::CtState, Field::INVALID);
        let rule = invalid.lookup(&[saddr(family), saddr(family)], endpoints);
        batch.add_rule(table, "stray", &rule.counter().drop());
    }
    batch.add_rule(table, "stray", &Rule::new().goto("closed"));
}
