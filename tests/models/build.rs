//! Makes the mutants of `agree.rs`: copies that are each weaker in one place.
//!
//! Every ordering that is more than relaxed is once made relaxed, and [`OTHERS`] break what is no matter of an ordering.
//! The result is `mutants.rs`: a module for each with the models of it, and `MUTANTS`, the list of all.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::{env, fs};

const SOURCE: &str = "../../proxy/src/relay/agree.rs";

/// What is there, and what is put in its place.
const OTHERS: &[(&str, &str)] = &[
    (
        "self.used.fetch_update(Relaxed, Relaxed, rest).is_ok()",
        "rest(self.used.load(Relaxed)).map(|used| self.used.store(used, Relaxed)).is_some()",
    ),
    (
        "self.answered.iter().all(|one| one.load(Acquire) >= asked) && self.count() == 0",
        "self.count() == 0 && self.answered.iter().all(|one| one.load(Acquire) >= asked)",
    ),
    (
        "self.answered.iter().all(|one| one.load(Acquire) >= asked) && self.count() == 0",
        "asked > 0 && self.count() == 0",
    ),
];

/// The text without its documentation, which an included file may not have, and without its tests.
fn code(text: &str) -> String {
    let end = text.find("#[cfg(all(test").expect("its tests come last");
    let lines = text[..end].lines();
    let code = lines.filter(|line| !line.trim_start().starts_with("//"));
    code.collect::<Vec<_>>().join("\n")
}

/// Each mutant's text, and what was done to it.
fn mutants(code: &str) -> Vec<(String, String)> {
    let mut all = Vec::new();
    let start = code.find("impl ").expect("there is code");
    for strong in ["Acquire", "Release"] {
        let places = code.match_indices(strong);
        for (place, _) in places.filter(|(place, _)| *place > start) {
            let (before, rest) = code.split_at(place);
            let line = before.lines().count();
            let text = format!("{before}Relaxed{}", &rest[strong.len()..]);
            let what = code.lines().nth(line - 1).unwrap_or_default().trim();
            all.push((text, format!("{strong} is Relaxed in: {what}")));
        }
    }
    for (right, wrong) in OTHERS {
        assert!(code.contains(right), "{SOURCE} has no `{right}` any more");
        all.push((
            code.replace(right, wrong),
            format!("`{right}` is `{wrong}`"),
        ));
    }
    all
}

fn main() {
    println!("cargo::rerun-if-changed={SOURCE}");
    let text = fs::read_to_string(SOURCE).expect("it is there");
    let mut made = String::new();
    let mut list = String::new();
    for (number, (text, what)) in mutants(&code(&text)).into_iter().enumerate() {
        let _ = writeln!(
            made,
            "mod mutant_{number} {{ mod agree {{ {text} }} models!(agree); }}"
        );
        let _ = writeln!(list, "({what:?}, mutant_{number}::MODELS),");
    }
    let _ = writeln!(made, "const MUTANTS: &[(&str, &[fn()])] = &[{list}];");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    fs::write(out.join("mutants.rs"), made).expect("it can be written");
}
