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
use super::mutants::{Mutant, must_fail};
use crate::lab::ns::{self, Ns};
use crate::lab::{Host, Lab, await_mesh_of};

/// How many cases there are: none gets lost unnoticed.
const COUNT: usize = 42;

/// How many statements the contract has.
const STATEMENTS: u32 = 38;

/// Statements that take a lab of their own, or more than one.
const ELSEWHERE: [(u32, &str); 5] = [
    (27, "cni::chain::behind_bridge"),
    (28, "cni::ports"),
    (33, "cni::crowd::a_hundred_at_once"),
    (34, "cni::killed"),
    (38, "./run bench cni"),
];

/// A network besides the default one.
const SECOND: &str = "second";

/// What a case works with.
struct World<'a> {
    h1: &'a Host,
    h2: &'a Host,
    dir: PathBuf,
}

/// What is shown, how, and a mutant on which it must fail.
type Case = (&'static str, fn(&World<'_>), Mutant);

const CASES: [Case; COUNT] = [
    (
        "01 VERSION lists every version, whatever is on stdin",
        input::version,
        Mutant::Old,
    ),
    (
        "02 an error is one object on stdout, and a line on stderr",
        input::one_object,
        Mutant::Mute,
    ),
    (
        "03 the result has the version that was asked for, and its shape",
        adding::shapes,
        Mutant::Modern,
    ),
    (
        "04 the interface is up, with the address, MAC and MTU of the result",
        adding::kernel_state,
        Mutant::OtherMac,
    ),
    (
        "05 the sandbox is CNI_NETNS to the letter; the host's end has none",
        adding::sandboxes,
        Mutant::NoSandbox,
    ),
    (
        "06 the addresses belong to the container's interface",
        adding::indexes,
        Mutant::HostIndex,
    ),
    (
        "07 an interface that is there already is left alone",
        adding::interface_taken,
        Mutant::Overwrites,
    ),
    (
        "08 an ADD that fails leaves nothing",
        adding::failed_add,
        Mutant::Leaks,
    ),
    (
        "09 an ADD that fails after IPAM gives the address back to IPAM",
        ipam::failed_after_ipam,
        Mutant::NoIpam,
    ),
    (
        "DEL that the node refuses gives the address back to IPAM all the same",
        ipam::failed_del,
        Mutant::NoIpam,
    ),
    ("10 DEL twice is fine", removing::del_twice, Mutant::Strict),
    (
        "11 DEL without a namespace frees the address",
        removing::del_without_netns,
        Mutant::NeedsNetns,
    ),
    (
        "12 DEL of a namespace that is gone frees the address",
        removing::del_netns_gone,
        Mutant::NeedsNetns,
    ),
    (
        "13 DEL needs no prevResult",
        removing::del_previous,
        Mutant::NeedsPrevious,
    ),
    (
        "14 DEL while the node is down is made up for when it is back",
        removing::del_node_down,
        Mutant::Forgets,
    ),
    (
        "14 an ADD after such a DEL is not undone by it",
        removing::add_after_del_node_down,
        Mutant::Late,
    ),
    (
        "15 DEL of what was never added is fine",
        removing::del_never_added,
        Mutant::Strict,
    ),
    (
        "16 CHECK sees what was taken from the container",
        checking::check_container,
        Mutant::Blind,
    ),
    (
        "16 CHECK sees what was taken from the host",
        checking::check_host,
        Mutant::Blind,
    ),
    (
        "17 CHECK does not mind what others added",
        checking::check_tolerant,
        Mutant::Nervous,
    ),
    (
        "18 CHECK is not in 0.3.1",
        checking::check_version,
        Mutant::Blind,
    ),
    (
        "19 CHECK and ADD fail while the node is down",
        checking::node_down,
        Mutant::Blind,
    ),
    (
        "20 GC frees what is not listed, of its own network only",
        removing::gc_lists,
        Mutant::Sweeps,
    ),
    (
        "21 GC goes on past a failure and reports it",
        removing::gc_failure,
        Mutant::Hoards,
    ),
    (
        "22 GC takes both keys, and a list that is null",
        removing::gc_keys,
        Mutant::Hoards,
    ),
    (
        "23 GC, CHECK and STATUS go on to IPAM",
        ipam::forwarded,
        Mutant::NoIpam,
    ),
    (
        "24 STATUS is 50 without a node and without a cluster",
        checking::status_unavailable,
        Mutant::Blind,
    ),
    (
        "25 STATUS of IPAM is ours",
        ipam::status_of_ipam,
        Mutant::NoIpam,
    ),
    (
        "26 behind another plugin its result goes on unchanged",
        adding::chained,
        Mutant::Rewrites,
    ),
    (
        "30 addresses that are asked for, three ways",
        asking::wanted_addresses,
        Mutant::Deaf,
    ),
    (
        "30 an address that is taken is 7 and leaves nothing",
        asking::taken_address,
        Mutant::Deaf,
    ),
    (
        "31 a MAC that is asked for, two ways",
        asking::wanted_mac,
        Mutant::Deaf,
    ),
    (
        "29 bandwidth is limited both ways, and CHECK sees it",
        asking::bandwidth,
        Mutant::Deaf,
    ),
    (
        "wishes that cannot be had are refused rather than passed over",
        asking::refused,
        Mutant::Deaf,
    ),
    (
        "32 dns that is configured or asked for is in the result",
        asking::names,
        Mutant::Deaf,
    ),
    (
        "35 each wrong input has its code",
        input::wrong_input,
        Mutant::OneCode,
    ),
    (
        "36 a field that is not known is named, and does not keep a container",
        input::unknown_fields,
        Mutant::Careless,
    ),
    (
        "37 two interfaces of one container, in two networks, come and go by themselves",
        adding::two_interfaces,
        Mutant::AllOfIt,
    ),
    (
        "an MTU that is asked for",
        asking::wanted_mtu,
        Mutant::Careless,
    ),
    (
        "asking again answers the same",
        adding::add_again,
        Mutant::Strict,
    ),
    (
        "IPAM of another plugin chooses the address",
        ipam::delegated,
        Mutant::NoIpam,
    ),
    (
        "containers of two hosts reach each other",
        adding::two_hosts,
        Mutant::Down,
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
        h1.ok(&["network", "create", SECOND, "--range", "10.47.0.0/24"]);
        for (title, case, _) in CASES {
            println!("case {title}");
            world.show(title, case);
        }
        println!("{} cases of conformance passed", CASES.len());
        let clean = h1.ns.snapshot();
        for (title, case, mutant) in CASES {
            must_fail(mutant, title, || world.show(title, case));
            // Or the next one might fail for what this one left.
            world.recover();
            assert_eq!(world.r1().left(), (0, 0, 0), "{title}: {mutant:?}");
            assert_same(&clean, &h1.ns.snapshot(), title);
        }
        println!("and {} failed on their mutants", CASES.len());
    });
}

/// Every statement of the contract is shown, here or by the test that is named.
#[test]
fn every_statement_is_shown() {
    let here = CASES
        .iter()
        .filter_map(|(title, ..)| title.get(..2)?.parse().ok());
    let shown: BTreeSet<u32> = here.chain(ELSEWHERE.map(|(number, _)| number)).collect();
    assert_eq!(shown, (1..=STATEMENTS).collect());
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

    /// Fails unless the case does what it says and leaves the host as it was.
    fn show(&self, title: &str, case: fn(&Self)) {
        let before = self.h1.ns.snapshot();
        case(self);
        assert_eq!(self.r1().left(), (0, 0, 0), "left by: {title}");
        assert_same(&before, &self.h1.ns.snapshot(), title);
    }

    /// Takes away what a case that failed half-way left.
    fn recover(&self) {
        let mut restarted = false;
        for host in [self.h1, self.h2] {
            if !host.answers() {
                host.start();
                restarted = true;
            }
            // Some go by themselves meanwhile.
            host.ns.try_sh(
                "for link in $(ip -br link | grep -o '^w[bv][0-9a-f]*') leak0; do ip link del $link; done",
            );
            let known = host.json(&["ps"])["attachments"].clone();
            for one in known.as_array().into_iter().flatten() {
                host.ctl(&["detach", one["name"].as_str().unwrap_or_default()]);
            }
        }
        if restarted {
            await_mesh_of(&[self.h1, self.h2]);
        }
        let journal = self.dir.join(weave_model::api::CNI_JOURNAL);
        if journal.exists() {
            std::fs::remove_dir_all(journal).expect("the lab's directory is there");
        }
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
