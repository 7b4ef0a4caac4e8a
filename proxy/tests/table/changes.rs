//! What is other from table to table is as small as what changed.

use std::sync::Arc;

use weave_proxy::sources::{Change, Sources};

use crate::{facts, on, service, slice};

fn many() -> Sources {
    let mut sources = Sources::default();
    sources.handle(Change::Facts(facts()));
    for n in 0..100 {
        let name = format!("s{n}");
        sources.handle(Change::Service(service(&name, &format!("10.96.1.{n}"))));
        sources.handle(Change::Slice(slice(&name, vec![on("n1", "10.32.0.2")])));
    }
    sources
}

#[test]
fn one_endpoint_changes_one_entry_and_shares_the_others() {
    let mut sources = many();
    let (before, first) = sources.build();
    assert_eq!(first.added.len(), 100);
    sources.handle(Change::Slice(slice(
        "s7",
        vec![on("n1", "10.32.0.2"), on("n2", "10.40.0.2")],
    )));
    let (after, diff) = sources.build();
    assert_eq!(
        (diff.removed.len(), diff.changed.len(), diff.added.len()),
        (0, 1, 0)
    );
    let shared = after
        .entries
        .iter()
        .filter(|(key, entry)| Arc::ptr_eq(entry, &before.entries[*key]));
    assert_eq!(shared.count(), 99);
}

#[test]
fn the_same_again_changes_nothing() {
    let mut sources = many();
    sources.build();
    sources.handle(Change::Slice(slice("s7", vec![on("n1", "10.32.0.2")])));
    sources.handle(Change::Service(service("s8", "10.96.1.8")));
    sources.handle(Change::Facts(facts()));
    assert!(sources.build().1.is_empty());
    assert!(sources.build().1.is_empty());
}
