//! The rules themselves: each sees what it must, and nothing else.

use crate::rules::{cycles, forbidden_dependencies, impurities, linked};
use crate::source::Source;

fn cycles_of(files: &[(&str, &str)]) -> Vec<String> {
    let sources: Vec<Source> = files
        .iter()
        .map(|(file, text)| Source::read(&format!("x/src/{file}"), text))
        .collect();
    cycles(&sources.iter().collect::<Vec<_>>())
}

#[test]
fn a_cycle_is_seen_in_use_trees_and_in_plain_paths() {
    let files = [
        ("lib.rs", "mod a; mod b; mod c;"),
        ("a.rs", "use crate::{b::{X, Y}, c};"),
        ("c.rs", "fn f() { vec![crate::a::g()] }"),
    ];
    assert_eq!(cycles_of(&files), ["a -> c -> a"]);
}

#[test]
fn a_cycle_is_seen_through_children_and_super() {
    let files = [
        ("a.rs", "mod deep;"),
        ("a/deep.rs", "use super::super::b::X;"),
        ("b/mod.rs", "use crate::a::deep::Y;"),
    ];
    assert_eq!(cycles_of(&files), ["a -> b -> a"]);
}

#[test]
fn a_cycle_is_seen_through_a_re_export() {
    let files = [
        ("lib.rs", "pub use a::Thing;"),
        ("a.rs", "use crate::b::X;"),
        ("b.rs", "use crate::Thing;"),
    ];
    assert_eq!(cycles_of(&files), ["a -> b -> a"]);
}

#[test]
fn a_cycle_between_children_of_one_module_is_seen() {
    let files = [
        ("a.rs", "pub mod b; pub mod c;"),
        ("a/b.rs", "use super::c::X;"),
        ("a/c.rs", "use crate::a::b::Y;"),
    ];
    assert_eq!(cycles_of(&files), ["a::b -> a::c -> a::b"]);
}

#[test]
fn tests_comments_and_parents_make_no_cycle() {
    let tests = "mod c; use self::c::Z; // crate::b\n#[cfg(test)]\nmod tests { use crate::b::X; }";
    let files = [
        ("a.rs", tests),
        ("a/c.rs", "use super::Own;"),
        ("b.rs", "use crate::a::Y; const S: &str = \"crate::b\";"),
    ];
    assert_eq!(cycles_of(&files), [""; 0]);
}

#[test]
fn a_sibling_in_a_manifest_is_seen() {
    let manifest =
        "[dependencies]\nweave-model.workspace = true\nweave-proxy = { path = \"../proxy\" }\n";
    assert_eq!(
        forbidden_dependencies("router", manifest),
        ["router depends on weave-proxy"]
    );
    assert_eq!(
        forbidden_dependencies("model", "weave-linux.workspace = true"),
        ["model depends on weave-linux"]
    );
    assert_eq!(forbidden_dependencies("attic", "").len(), 1);
}

#[test]
fn what_is_linked_by_way_of_others_is_seen() {
    let lock = "[[package]]\nname = \"a\"\ndependencies = [\n \"b\",\n]\n\n[[package]]\nname = \"b\"\ndependencies = [\n \"c 1.0.0\",\n]\n\n[[package]]\nname = \"d\"\n";
    assert_eq!(
        linked("a", lock).into_iter().collect::<Vec<_>>(),
        ["b", "c"]
    );
}

#[test]
fn unsafe_code_is_seen_but_not_its_name_in_words() {
    assert!(Source::read("a.rs", "fn f() { g(|| unsafe { h() }) }").names_unsafe);
    assert!(
        !Source::read(
            "a.rs",
            "// unsafe\n#![forbid(unsafe_code)] const U: &str = \"unsafe\";"
        )
        .names_unsafe
    );
}

#[test]
fn lines_are_counted_without_tests() {
    let text = "//! Doc.\nfn f() {}\n\n#[cfg(test)]\nmod tests {\n    fn g() {}\n}\n";
    assert_eq!(Source::read("a.rs", text).lines, 3);
    assert_eq!(
        Source::read("a.rs", "fn f() {}\n#[cfg(test)]\nmod proof;\n").test_modules,
        ["proof"]
    );
}

#[test]
fn clocks_sockets_threads_and_random_sources_are_seen() {
    let impure = [
        "fn f() { std::time::Instant::now(); }",
        "use std::{net::{IpAddr, UdpSocket}, time::Duration};",
        "use std::thread;",
        "fn f() { tokio::spawn(g()) }",
        "fn f() { let mut source = rand::rng(); }",
    ];
    for text in impure {
        assert_eq!(impurities(&Source::read("a.rs", text)).len(), 1, "{text}");
    }
    let pure = "use std::net::SocketAddr; use std::time::Instant; fn f(now: Instant) { now.elapsed_since(now) }";
    assert_eq!(impurities(&Source::read("a.rs", pure)), [""; 0]);
}
