//! The rules: each a function from sources to complaints.

use std::collections::{BTreeMap, BTreeSet};

use crate::source::Source;

/// What each crate may depend on among ours; the root crate, the node, may depend on all.
const MAY_USE: &[(&str, &[&str])] = &[
    ("model", &[]),
    ("linux", &[]),
    ("router", &["weave-model", "weave-linux"]),
    ("proxy", &["weave-model", "weave-linux"]),
    ("policy", &["weave-model", "weave-linux"]),
    ("dashboard", &["weave-model", "weave-linux"]),
    ("cni-plugin", &["weave-model", "weave-linux"]),
];

/// Paths that a pure file may not name; each is matched anywhere in a path.
const IMPURE: &[&[&str]] = &[
    &["Instant", "now"],
    &["SystemTime", "now"],
    &["std", "thread"],
    &["thread", "spawn"],
    &["thread", "sleep"],
    &["std", "fs"],
    &["std", "process"],
    &["std", "env"],
    &["TcpListener"],
    &["TcpStream"],
    &["UdpSocket"],
    &["UnixDatagram"],
    &["UnixListener"],
    &["UnixStream"],
    &["tokio"],
    &["rand", "rng"],
    &["OsRng"],
    &["SysRng"],
    &["getrandom"],
    &["weave_linux", "netlink"],
    &["weave_linux", "netns"],
    &["weave_linux", "sysctl"],
];

/// Modules beside one another that need one another, as `a -> b -> a`. A module and its own children are one room.
pub(crate) fn cycles(sources: &[&Source]) -> Vec<String> {
    let modules: BTreeMap<Vec<String>, &Source> = sources
        .iter()
        .map(|source| (source.module(), *source))
        .collect();
    let mut needs: BTreeMap<Vec<String>, BTreeSet<Vec<String>>> = BTreeMap::new();
    for (module, source) in &modules {
        for path in &source.paths {
            let target = resolve(module, path, &modules, 0);
            let shared = module
                .iter()
                .zip(&target)
                .take_while(|(a, b)| a == b)
                .count();
            if shared < module.len() && shared < target.len() {
                let [from, to] = [module, &target].map(|of| of[..=shared].to_vec());
                needs.entry(from).or_default().insert(to);
            }
        }
    }
    let mut found = BTreeSet::new();
    for start in needs.keys() {
        if let Some(way) = way_back(start, &needs)
            && way.iter().all(|module| start <= module)
        {
            found.insert(
                way.iter()
                    .map(|module| module.join("::"))
                    .collect::<Vec<_>>()
                    .join(" -> "),
            );
        }
    }
    found.into_iter().collect()
}

/// The module that `path`, written in `from`, leads to, through re-exports. Empty for what is not ours.
fn resolve(
    from: &[String],
    path: &[String],
    modules: &BTreeMap<Vec<String>, &Source>,
    depth: usize,
) -> Vec<String> {
    let mut at = match path[0].as_str() {
        "crate" => Vec::new(),
        "super" => from[..from.len().saturating_sub(1)].to_vec(),
        first if first == "self" || modules.contains_key(&[from, &[first.to_owned()]].concat()) => {
            from.to_vec()
        }
        _ => return Vec::new(),
    };
    let rest = path.iter().skip(usize::from(
        ["crate", "super", "self"].contains(&path[0].as_str()),
    ));
    for name in rest {
        if name == "super" {
            at.pop();
            continue;
        }
        let child = [at.as_slice(), std::slice::from_ref(name)].concat();
        if modules.contains_key(&child) {
            at = child;
            continue;
        }
        let exported = modules
            .get(&at)
            .and_then(|module| module.paths.iter().find(|path| path.last() == Some(name)));
        return match exported {
            Some(path) if depth < 8 && at != from => {
                let target = resolve(&at, path, modules, depth + 1);
                if target.is_empty() { at } else { target }
            }
            _ => at,
        };
    }
    at
}

/// The shortest way from `start` along `needs` back to it.
fn way_back(
    start: &Vec<String>,
    needs: &BTreeMap<Vec<String>, BTreeSet<Vec<String>>>,
) -> Option<Vec<Vec<String>>> {
    let mut ways = vec![vec![start.clone()]];
    let mut seen = BTreeSet::new();
    while !ways.is_empty() {
        let mut longer = Vec::new();
        for way in ways {
            for next in needs.get(way.last()?).into_iter().flatten() {
                let further = [way.as_slice(), std::slice::from_ref(next)].concat();
                if next == start {
                    return Some(further);
                }
                if seen.insert(next.clone()) {
                    longer.push(further);
                }
            }
        }
        ways = longer;
    }
    None
}

/// Dependencies in a crate's manifest on crates of ours that it may not know.
pub(crate) fn forbidden_dependencies(name: &str, manifest: &str) -> Vec<String> {
    let Some((_, allowed)) = MAY_USE.iter().find(|(known, _)| *known == name) else {
        return vec![format!(
            "{name}: a crate that tests/structure.rs does not know"
        )];
    };
    let ours = manifest
        .lines()
        .map(|line| line.split(['.', ' ', '=']).next().unwrap_or_default());
    let ours = ours.filter(|key| key.starts_with("weave-") && !allowed.contains(key));
    ours.map(|key| format!("{name} depends on {key}")).collect()
}

/// What a crate links, itself not counted: all that can be reached from it in a lock file.
pub(crate) fn linked<'a>(name: &'a str, lock: &'a str) -> BTreeSet<&'a str> {
    let value = |line: &'a str| {
        line.trim()
            .trim_matches([',', '"'])
            .split(' ')
            .next()
            .unwrap_or_default()
    };
    let needs: BTreeMap<&str, Vec<&str>> = lock
        .split("[[package]]")
        .filter_map(|package| {
            let name = package
                .lines()
                .find_map(|line| line.strip_prefix("name = "))?;
            let list = package
                .split_once("dependencies = [")
                .map_or("", |(_, rest)| rest);
            let needed = list.lines().take_while(|line| *line != "]").map(value);
            Some((
                value(name),
                needed.filter(|name| !name.is_empty()).collect(),
            ))
        })
        .collect();
    let mut found = BTreeSet::new();
    let mut open = vec![name];
    while let Some(name) = open.pop() {
        let new = needs
            .get(name)
            .into_iter()
            .flatten()
            .filter(|name| found.insert(**name));
        open.extend(new);
    }
    found
}

/// The paths in a file that only a shell may name.
pub(crate) fn impurities(source: &Source) -> Vec<String> {
    let names = |path: &[String], what: &[&str]| {
        path.windows(what.len())
            .any(|part| part.iter().eq(what.iter()))
    };
    let found = source
        .paths
        .iter()
        .filter(|path| IMPURE.iter().any(|what| names(path, what)));
    found
        .map(|path| format!("{} is pure but names {}", source.file, path.join("::")))
        .collect()
}
