//! What lists: all alike while there is no cluster, and printed anew when what is listed changes.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use serde_json::Value;

use crate::lab::node::WEAVECTL;
use crate::lab::traffic::wait_for;
use crate::lab::{Host, Lab};

fn words(line: &str) -> Vec<&str> {
    line.split(' ').collect()
}

/// Lists that have nothing in them without a cluster, but for the node itself and what it was told.
const LISTS: [&str; 8] = [
    "ps",
    "peers",
    "connections",
    "targets",
    "network list",
    "service list",
    "token list",
    "admin list",
];

/// Outside a cluster a list is empty, which is no failure; what is about the cluster itself is refused.
#[test]
fn lists_without_a_cluster_are_empty() {
    Lab::run(|lab| {
        let host = lab.host("h1", 1);
        host.start();
        for list in LISTS {
            let said = host.ctl(&words(list));
            assert_eq!((said.code, said.err.as_str()), (0, ""), "{list}: {said:?}");
            assert!(!said.out.is_empty(), "{list} says something to a person");
            let told = host.json(&words(list));
            let told = told.as_object().expect("an object");
            let arrays = told.values().filter_map(Value::as_array);
            let listed: Vec<&Value> = arrays.flatten().collect();
            let itself = |one: &&Value| one["state"] == "myself";
            assert!(listed.iter().all(itself), "{list}: {listed:?}");
        }
        for asked in ["ipam show", "secret show"] {
            let said = host.ctl(&words(asked));
            assert_eq!((said.code, said.out.as_str()), (1, ""), "{asked}");
            assert!(said.err.contains("weavectl init"), "{asked}: {said:?}");
        }
    });
}

/// A list that is watched.
struct Watched {
    child: Child,
    lines: Receiver<String>,
    seen: String,
}

impl Watched {
    fn start(host: &Host, list: &str) -> Self {
        let mut command = Command::new(WEAVECTL);
        command.env("WEAVE_SOCKET", host.socket());
        command.args(words(list)).arg("--watch");
        let mut child = command
            .stdout(Stdio::piped())
            .spawn()
            .expect("weavectl starts");
        let out = BufReader::new(child.stdout.take().expect("stdout is piped"));
        let (read, lines) = channel();
        std::thread::spawn(move || {
            out.lines()
                .map_while(Result::ok)
                .try_for_each(|line| read.send(line))
        });
        let seen = String::new();
        Self { child, lines, seen }
    }

    fn shows(&mut self, word: &str) -> bool {
        self.seen
            .extend(self.lines.try_iter().map(|line| line + "\n"));
        self.seen.contains(word)
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Each list shows what was there at first, and then what came.
#[test]
fn lists_can_be_watched() {
    Lab::run(|lab| {
        let [h1, _h2] = &lab.cluster::<2>();
        h1.ok(&words("service create shop --port 80 --selector app=shop"));
        let container = h1.bare_container("web");
        let netns = container.path().display().to_string();
        let attach = format!("attach {netns} --name web --label app=shop");
        let patience = Duration::from_secs(15);
        for (list, at_first, change, then) in [
            ("network list", "default", "network create blue", "blue"),
            (
                "service list",
                "shop",
                "service create other --port 81 --selector app=b",
                "other",
            ),
            ("service describe shop", "shop", attach.as_str(), "10.32.0."),
            ("ps", "web", "expose", "10.32.0."),
            ("token list", "used up", "token create", "good"),
            ("admin list", "h1", "admin add h2", "h2"),
            ("ipam show", "h2", "detach web", "h1"),
        ] {
            let mut watched = Watched::start(h1, list);
            wait_for(&format!("{list}: {at_first}"), patience, || {
                watched.shows(at_first)
            });
            let before = watched.seen.len();
            h1.ok(&words(change));
            wait_for(&format!("{list}: {then}"), patience, || {
                watched.shows(then)
                    && watched.seen.len() > before
                    && watched.seen[before..].contains(then)
            });
        }
    });
}
