//! Hearing what others do to a table.

use std::collections::BTreeSet;
use std::fmt::Write;

use weave_linux::nft::{Batch, Chain, Heard, Set, Socket, Table, Type, Watch};

use crate::{in_netns, run};

fn nft(script: &str) {
    run("nft", &["-f", "-"], script);
}

/// Somebody who listens, and a table with a chain and a set, made by the socket whose changes are not listened to.
fn watched() -> (Socket, Watch, Table) {
    let own = Socket::open().unwrap();
    let watch = Watch::open(&own).unwrap();
    let table = Table::inet("t");
    let mut batch = Batch::new();
    batch.replace_table(&table);
    batch.add_chain(&table, &Chain::regular("c"));
    batch.add_set(&table, &Set::new("s", &[Type::Port]));
    own.send(&batch).unwrap();
    (own, watch, table)
}

fn touched() -> Heard {
    Heard {
        others: true,
        rules: true,
        ..Heard::default()
    }
}

#[test]
fn what_others_do_to_a_table_is_heard() {
    in_netns(|| {
        let (_own, mut watch, table) = watched();
        let mut heard_after = |script: &str| {
            nft(script);
            watch.hear(&table).unwrap()
        };
        let others = Heard {
            others: true,
            ..Heard::default()
        };
        let elements = Heard {
            sets: BTreeSet::from(["s".to_owned()]),
            others: true,
            ..Heard::default()
        };
        assert_eq!(heard_after(""), Heard::default(), "not what oneself does");
        for script in [
            "add table inet other; add chain inet other c; add rule inet other c accept",
            "add table ip t; add chain ip t c; add set ip t s { type inet_service; }; add element ip t s { 1 }",
            "delete table ip t",
        ] {
            assert_eq!(heard_after(script), others, "{script}");
        }
        for script in [
            "add element inet t s { 1, 2 }",
            "delete element inet t s { 1 }",
            "flush set inet t s",
        ] {
            assert_eq!(heard_after(script), elements, "{script}");
        }
        for script in [
            "add rule inet t c accept",
            "flush chain inet t c",
            "add chain inet t d",
            "delete chain inet t d",
            "add set inet t n { type mark; }",
            "delete table inet t",
            "add table inet t",
            "flush ruleset",
        ] {
            assert_eq!(heard_after(script), touched(), "{script}");
        }
        assert_eq!(heard_after("flush ruleset"), Heard::default());
    });
}

#[test]
fn what_is_done_during_a_pause_is_not_heard() {
    in_netns(|| {
        let (_own, mut watch, table) = watched();
        nft("add rule inet t c accept");
        watch.pause().unwrap();
        nft("add element inet t s { 1 }");
        watch.resume().unwrap();
        let heard = watch.hear(&table).unwrap();
        assert_eq!(heard, touched(), "what came before it waits");
        nft("add rule inet t c accept");
        assert_eq!(watch.hear(&table).unwrap(), touched());
    });
}

#[test]
fn more_than_there_is_room_for_is_lost_and_known_to_be() {
    in_netns(|| {
        let (_own, mut watch, table) = watched();
        let mut script =
            "add table inet other; add set inet other s { type ipv4_addr; };".to_owned();
        script.push_str("add element inet other s { 10.0.0.0");
        for n in 1..30_000_u32 {
            let _ = write!(script, ", 10.0.{}.{}", n >> 8, n & 255);
        }
        script.push_str(" }; add rule inet t c accept");
        nft(&script);
        let heard = watch.hear(&table).unwrap();
        assert!(heard.lost && heard.others, "{heard:?}");
        nft("add rule inet t c accept");
        assert_eq!(watch.hear(&table).unwrap(), touched(), "it goes on");
    });
}
