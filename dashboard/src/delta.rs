//! What changed between two pictures, so that a browser is sent only that.
//!
//! A [`Delta`] leads from the picture `seq - 1` to the picture `seq`: what is in `set` is new or replaces what has the same
//! id, what is in `gone` is no more. Applied to the former picture it gives the latter, but for the order of its lists.

use std::collections::BTreeMap;

use serde::Serialize;
use weave_model::api::{
    Flow, Problem, Topology, TopologyContainer, TopologyHost, TopologyLink, TopologyService,
    Verdict,
};

/// What changed.
#[derive(Debug, Serialize)]
pub(crate) struct Delta<'a> {
    seq: u64,
    at: u64,
    verdict: Verdict,
    summary: &'a str,
    problems: &'a [Problem],
    hosts: Changes<'a, TopologyHost>,
    containers: Changes<'a, TopologyContainer>,
    links: Changes<'a, TopologyLink>,
    services: Changes<'a, TopologyService>,
    flows: Changes<'a, Flow>,
}

/// What changed in one list.
#[derive(Debug, Serialize)]
struct Changes<'a, T> {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    set: Vec<&'a T>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    gone: Vec<String>,
}

/// What leads from one picture to the next, which gets the number `seq`.
pub(crate) fn between<'a>(before: &'a Topology, after: &'a Topology, seq: u64) -> Delta<'a> {
    Delta {
        seq,
        at: after.at,
        verdict: after.verdict,
        summary: &after.summary,
        problems: &after.problems,
        hosts: changes(&before.hosts, &after.hosts, |host| host.id.to_string()),
        containers: changes(&before.containers, &after.containers, |one| one.id.clone()),
        links: changes(&before.links, &after.links, |link| link.id.clone()),
        services: changes(&before.services, &after.services, |one| one.id.clone()),
        flows: changes(&before.flows, &after.flows, |flow| flow.id.clone()),
    }
}

fn changes<'a, T: PartialEq>(
    before: &'a [T],
    after: &'a [T],
    id: impl Fn(&T) -> String,
) -> Changes<'a, T> {
    let mut old: BTreeMap<String, &T> = before.iter().map(|one| (id(one), one)).collect();
    let set = after
        .iter()
        .filter(|one| old.remove(&id(one)) != Some(*one))
        .collect();
    Changes {
        set,
        gone: old.into_keys().collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_holds_what_is_new_changed_or_gone() {
        let id = |one: &(&str, u32)| one.0.to_owned();
        let before = [("same", 1), ("changed", 1), ("gone", 1)];
        let after = [("same", 1), ("changed", 2), ("new", 1)];
        let Changes { set, gone } = changes(&before, &after, id);
        assert_eq!(set, [&("changed", 2), &("new", 1)]);
        assert_eq!(gone, ["gone"]);
        let Changes { set, gone } = changes(&after, &after, id);
        assert!(set.is_empty() && gone.is_empty());
    }
}
