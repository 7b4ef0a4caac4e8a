//! The statements of the contract, one case each, on a cluster of two hosts.
//!
//! A case gets fresh namespaces and takes off what it adds; afterwards its host must be as it was before, to the last
//! link, address, route and rule.

mod adding;
mod asking;
mod checking;
mod input;
mod ipam;
mod removing;

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde_json::json;

use super::Runtime;
use crate::lab::ns::{self, Ns};
use crate::lab::{Host, Lab};

/// How many cases there are: none gets lost unnoticed.
const COUNT: usize = 38;

/// What a case works with.
struct World<'a> {
    h1: &'a Host,
    h2: &'a Host,
    dir: PathBuf,
}

type Case = (&'static str, fn(&World<'_>));

const CASES: [Case; COUNT] = [
    (
        "01 VERSION lists every version, whatever is on stdin",
        input::version,
    ),
    (
        "02 an error is one object on stdout, and a line on stderr",
        input::one_object,
    ),
    (
        "03 the result has the version that was asked for, and its shape",
        adding::shapes,
    ),
    (
        "04 the interface is up, with the address, MAC and MTU of the result",
        adding::kernel_state,
    ),
    (
        "05 the sandbox is CNI_NETNS to the letter; the host's end has none",
        adding::sandboxes,
    ),
    (
        "06 the addresses belong to the container's interface",
        adding::indexes,
    ),
    (
        "07 an interface that is there already is left alone",
        adding::interface_taken,
    ),
    ("08 an ADD that fails leaves nothing", adding::failed_add),
    (
        "09 an ADD that fails after IPAM gives the address back to IPAM",
        ipam::failed_after_ipam,
    ),
    ("10 DEL twice is fine", removing::del_twice),
    (
        "11 DEL without a namespace frees the address",
        removing::del_without_netns,
    ),
    (
        "12 DEL of a namespace that is gone frees the address",
        removing::del_netns_gone,
    ),
    ("13 DEL needs no prevResult", removing::del_previous),
    (
        "14 DEL while the node is down is made up for when it is back",
        removing::del_node_down,
    ),
    (
        "14 an ADD after such a DEL is not undone by it",
        removing::add_after_del_node_down,
    ),
    (
        "15 DEL of what was never added is fine",
        removing::del_never_added,
    ),
    (
        "16 CHECK sees what was taken from the container",
        checking::check_container,
    ),
    (
        "16 CHECK sees what was taken from the host",
        checking::check_host,
    ),
    (
        "17 CHECK does not mind what others added",
        checking::check_tolerant,
    ),
    ("18 CHECK is not in 0.3.1", checking::check_version),
    (
        "19 CHECK and ADD fail while the node is down",
        checking::node_down,
    ),
    (
        "20 GC frees what is not listed, of its own network only",
        removing::gc_lists,
    ),
    (
        "21 GC goes on past a failure and reports it",
        removing::gc_failure,
    ),
    (
        "22 GC takes both keys, and a list that is null",
        removing::gc_keys,
    ),
    ("23 GC, CHECK and STATUS go on to IPAM", ipam::forwarded),
    (
        "24 STATUS is 50 without a node and without a cluster",
        checking::status_unavailable,
    ),
    ("25 STATUS of IPAM is ours", ipam::status_of_ipam),
    (
        "26 behind another plugin its result goes on unchanged",
        adding::chained,
    ),
    (
        "30 addresses that are asked for, three ways",
        asking::wanted_addresses,
    ),
    (
        "30 an address that is taken is 7 and leaves nothing",
        asking::taken_address,
    ),
    ("31 a MAC that is asked for, two ways", asking::wanted_mac),
    (
        "32 dns is in the result, aliases are refused",
        asking::names,
    ),
    ("35 each wrong input has its code", input::wrong_input),
    (
        "36 a field that is not known is named, and does not keep a container",
        input::unknown_fields,
    ),
    ("an MTU that is asked for", asking::wanted_mtu),
    ("asking again answers the same", adding::add_again),
    (
        "IPAM of another plugin chooses the address",
        ipam::delegated,
    ),
    (
        "containers of two hosts reach each other",
        adding::two_hosts,
    ),
];

#[test]
fn conformance() {
    Lab::run(|lab| {
        let [h1, h2] = lab.cluster();
        let world = World {
            h1: &h1,
            h2: &h2,
            dir: lab.dir().to_owned(),
        };
        for (title, case) in CASES {
            println!("case {title}");
            let before = h1.ns.snapshot();
            case(&world);
            assert_eq!(Runtime::new(&h1).left(), (0, 0, 0), "left by: {title}");
            assert_same(&before, &h1.ns.snapshot(), title);
        }
        println!("{} cases of conformance passed", CASES.len());
    });
}

/// Says in which lines two snapshots differ.
#[track_caller]
fn assert_same(before: &str, after: &str, title: &str) {
    let lines = |text: &str| text.lines().map(str::to_owned).collect::<BTreeSet<_>>();
    let (before, after) = (lines(before), lines(after));
    let differ: Vec<_> = before.symmetric_difference(&after).collect();
    assert!(
        differ.is_empty(),
        "the host is not as before: {title}: {differ:#?}"
    );
}

impl World<'_> {
    fn r1(&self) -> Runtime<'_> {
        Runtime::new(self.h1)
    }

    /// A namespace on the first host that no other case has.
    fn container(&self, name: &str) -> Ns {
        let ns = Ns::named(name);
        if ns.path().exists() {
            ns::host(&format!("ip netns del {}", ns.name()));
        }
        self.h1.bare_container(name)
    }

    /// Makes a plugin `fake-ipam` that gives `address` and writes down what it is called for. It fails for the verbs in
    /// `fails`. Returns the runtime that uses it.
    fn with_ipam(&self, address: &str, fails: &str) -> Runtime<'_> {
        let (log, plugin) = (self.dir.join("ipam.log"), self.dir.join("fake-ipam"));
        let script = format!(
            "#!/bin/sh\ncat >/dev/null\necho $CNI_COMMAND >>{}\n\
             case ' {fails} ' in *\" $CNI_COMMAND \"*) echo '{{\"code\":77,\"msg\":\"no luck\"}}'; exit 1;; esac\n\
             [ $CNI_COMMAND != ADD ] || echo '{{\"cniVersion\":\"1.1.0\",\"ips\":[{{\"address\":\"{address}\"}}]}}'\n",
            log.display()
        );
        let write =
            |path, text: &str| std::fs::write(path, text).expect("the lab's directory is there");
        write(&log, "");
        write(&plugin, &script);
        ns::host(&format!("chmod 755 {}", plugin.display()));
        let path = self.dir.display().to_string();
        self.r1()
            .with("ipam", json!({"type": "fake-ipam"}))
            .var("CNI_PATH", &path)
    }

    fn ipam_log(&self) -> String {
        let log = std::fs::read_to_string(self.dir.join("ipam.log"));
        log.expect("the plugin was called")
            .replace('\n', " ")
            .trim()
            .to_owned()
    }
}
