//! The statements of the contract, one case each, on a cluster of two hosts.
//!
//! A case gets fresh namespaces and takes off what it adds; afterwards its host must be as it was before, to the last
//! link, address, route and rule. Each must fail on a mutant of the plugin, and those that are not about ours alone pass on
//! plugins of the reference.

mod adding;
mod asking;
mod checking;
mod input;
mod ipam;
mod removing;

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;

use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use super::mutants::{Mutant, must_fail};
use super::{Runtime, Whose, chain, crowd, host_local, killed, ports};
use crate::lab::ns::{self, Ns, assert_same};
use crate::lab::{Container, Host, Lab, await_mesh_of};

/// How many cases there are: none gets lost unnoticed.
const COUNT: usize = 53;

/// How many of them pass on the plugins of the reference.
const CONTROLLED: usize = 21;

/// How long a namespace that is gone may take its interfaces along.
const GOES: Duration = Duration::from_secs(5);

/// How many statements the contract has.
const STATEMENTS: u32 = 38;

/// A lab of its own that shows a statement, a mutant of the plugin on which it must fail, and what it then says.
type Shown = (u32, fn(&Lab), Mutant, &'static str);

/// All of them.
const LABS: [Shown; 11] = [
    (27, chain::behind_others, Mutant::Meddles, "as it was"),
    (
        28,
        ports::lead_to_containers,
        Mutant::Deaf,
        "8080 from outside",
    ),
    (
        28,
        ports::lead_to_containers,
        Mutant::AnyAddress,
        "9090 from outside",
    ),
    (
        28,
        ports::lead_to_containers,
        Mutant::NeedsPrevious,
        "went with the container",
    ),
    (28, ports::datagrams, Mutant::OnlyTcp, "first, "),
    (28, ports::association, Mutant::OnlyTcp, "3869"),
    (33, crowd::a_hundred, Mutant::Twice, "distinct addresses"),
    (33, crowd::a_hundred, Mutant::NeedsPrevious, "after DEL"),
    (
        34,
        killed::plugin_killed,
        Mutant::NeedsPrevious,
        "left by DEL after ADD",
    ),
    (
        34,
        killed::plugin_killed,
        Mutant::Hoards,
        "left by GC after ADD",
    ),
    (34, killed::node_killed, Mutant::Hoards, "of ADD"),
];

/// What is shown by a bench.
const BENCHES: [(u32, &str); 1] = [(38, "./run bench cni")];

/// A network besides the default one.
const SECOND: &str = "second";

/// What a case works with.
struct World<'a> {
    h1: &'a Host,
    h2: &'a Host,
    dir: PathBuf,
    whose: Whose,
}

/// How a case ends on `bridge` and `host-local` of the reference: a case that nothing but ours passes may be about ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Control {
    Passes,
    /// It is known to fail, for this reason.
    Fails(&'static str),
}

use Control::{Fails, Passes};

/// There is no process of the reference that could be down.
const NO_NODE: Control = Fails("no part of it can be down");
/// CNI 1.1 is newer than Debian's.
const NO_VERB: Control = Fails("it has no GC and no STATUS");
const CARELESS: Control = Fails("it passes over what it does not know");

/// What is shown, how, a mutant on which it must fail, and how it ends on the control.
type Case = (&'static str, fn(&World<'_>), Mutant, Control);

const CASES: [Case; COUNT] = [
    (
        "01 VERSION lists every version, whatever is on stdin",
        input::version,
        Mutant::Old,
        Fails("it knows other versions"),
    ),
    (
        "02 an error is one object on stdout, and a line on stderr",
        input::one_object,
        Mutant::Mute,
        Fails("it says nothing on stderr"),
    ),
    (
        "03 the result has the version that was asked for, and its shape",
        adding::shapes,
        Mutant::Modern,
        Passes,
    ),
    (
        "04 the interface is up, with the address, MAC and MTU of the result",
        adding::kernel_state,
        Mutant::OtherMac,
        Passes,
    ),
    (
        "05 the sandbox is CNI_NETNS to the letter; the host's end has none",
        adding::sandboxes,
        Mutant::NoSandbox,
        Passes,
    ),
    (
        "06 the addresses belong to the container's interface",
        adding::indexes,
        Mutant::HostIndex,
        Passes,
    ),
    (
        "07 an interface that is there already is left alone",
        adding::interface_taken,
        Mutant::Overwrites,
        Passes,
    ),
    (
        "08 an ADD that fails leaves nothing",
        adding::failed_add,
        Mutant::Leaks,
        CARELESS,
    ),
    (
        "09 an ADD that fails after IPAM gives the address back to IPAM",
        ipam::failed_after_ipam,
        Mutant::NoIpam,
        Fails("the pair stays where there is no address"),
    ),
    (
        "DEL that the node refuses gives the address back to IPAM all the same",
        ipam::failed_del,
        Mutant::NoIpam,
        Fails("it removes whatever has the name"),
    ),
    (
        "10 DEL twice is fine",
        removing::del_twice,
        Mutant::Strict,
        Passes,
    ),
    (
        "11 DEL without a namespace frees the address",
        removing::del_without_netns,
        Mutant::NeedsNetns,
        Fails("the pair stays where the namespace is not named"),
    ),
    (
        "12 DEL of a namespace that is gone frees the address",
        removing::del_netns_gone,
        Mutant::NeedsNetns,
        Passes,
    ),
    (
        "13 DEL needs no prevResult",
        removing::del_previous,
        Mutant::NeedsPrevious,
        Passes,
    ),
    (
        "14 DEL while the node is down is made up for when it is back",
        removing::del_node_down,
        Mutant::Forgets,
        NO_NODE,
    ),
    (
        "14 an ADD after such a DEL is not undone by it",
        removing::add_after_del_node_down,
        Mutant::Late,
        Fails("asking again is an error"),
    ),
    (
        "15 DEL of what was never added is fine",
        removing::del_never_added,
        Mutant::Strict,
        Passes,
    ),
    (
        "15 DEL of what was attached by hand leaves it alone",
        removing::del_by_hand,
        Mutant::ByName,
        Fails("nothing is attached by hand"),
    ),
    (
        "16 CHECK sees what was taken from the container",
        checking::check_container,
        Mutant::Blind,
        Passes,
    ),
    (
        "16 CHECK sees that the interface is down",
        checking::check_down,
        Mutant::Blind,
        Passes,
    ),
    (
        "16 CHECK sees what was taken from the host",
        checking::check_host,
        Mutant::Blind,
        Fails("its hosts have no route for each container"),
    ),
    (
        "17 CHECK does not mind what others added",
        checking::check_tolerant,
        Mutant::Nervous,
        Passes,
    ),
    (
        "18 CHECK is not in 0.3.1",
        checking::check_version,
        Mutant::Blind,
        Passes,
    ),
    (
        "19 CHECK and ADD fail while the node is down",
        checking::node_down,
        Mutant::Blind,
        NO_NODE,
    ),
    (
        "20 GC frees what is not listed, of its own network only",
        removing::gc_lists,
        Mutant::Sweeps,
        NO_VERB,
    ),
    (
        "21 GC goes on past a failure and reports it",
        removing::gc_failure,
        Mutant::Hoards,
        NO_VERB,
    ),
    (
        "22 GC takes both keys, and a list that is null",
        removing::gc_keys,
        Mutant::Hoards,
        NO_VERB,
    ),
    (
        "23 GC, CHECK and STATUS go on to IPAM",
        ipam::forwarded,
        Mutant::NoIpam,
        NO_VERB,
    ),
    (
        "24 STATUS is 50 without a node and without a cluster",
        checking::status_unavailable,
        Mutant::Blind,
        NO_VERB,
    ),
    (
        "25 STATUS of IPAM is ours",
        ipam::status_of_ipam,
        Mutant::NoIpam,
        NO_VERB,
    ),
    (
        "26 behind another plugin its result goes on unchanged",
        adding::chained,
        Mutant::Rewrites,
        Fails("it cannot be second"),
    ),
    (
        "30 addresses that are asked for, three ways",
        asking::wanted_addresses,
        Mutant::Deaf,
        Passes,
    ),
    (
        "30 an address of either family brings the other's",
        asking::wanted_by_either_family,
        Mutant::Deaf,
        Fails("its families are apart"),
    ),
    (
        "30 an address that is taken is 7 and leaves nothing",
        asking::taken_address,
        Mutant::Deaf,
        Fails("the pair stays where there is no address"),
    ),
    (
        "30 addresses of the ranges that are asked for, until there are none",
        asking::wanted_ranges,
        Mutant::Deaf,
        Fails("the range of its configuration is in the way"),
    ),
    (
        "31 a MAC that is asked for, two ways",
        asking::wanted_mac,
        Mutant::Deaf,
        Passes,
    ),
    (
        "31 a MAC of a group is refused",
        asking::group_mac,
        Mutant::Deaf,
        Passes,
    ),
    (
        "29 both ways carry what was asked for, to a tenth",
        asking::bandwidth,
        Mutant::Generous,
        Fails("that is another plugin"),
    ),
    (
        "29 each way has its bucket in the kernel, and DEL removes both",
        asking::bandwidth_in_kernel,
        Mutant::Swapped,
        Fails("that is another plugin"),
    ),
    (
        "29 CHECK sees a limit that is gone",
        asking::bandwidth_checked,
        Mutant::Blind,
        Fails("that is another plugin"),
    ),
    (
        "wishes that cannot be had are refused rather than passed over",
        asking::refused,
        Mutant::Deaf,
        CARELESS,
    ),
    (
        "32 dns that is configured is in the result",
        asking::configured_names,
        Mutant::Deaf,
        Passes,
    ),
    (
        "32 dns that is asked for is in the result",
        asking::wanted_names,
        Mutant::Deaf,
        Fails("it leaves that to the runtime"),
    ),
    (
        "32 aliases are kept with the container, over a restart of the node, and go with it",
        asking::wanted_aliases,
        Mutant::Deaf,
        CARELESS,
    ),
    (
        "32 CHECK compares the aliases",
        asking::aliases_checked,
        Mutant::Blind,
        CARELESS,
    ),
    (
        "35 each wrong input has its code",
        input::wrong_input,
        Mutant::OneCode,
        Passes,
    ),
    (
        "36 a field that is not known is named, and does not keep a container",
        input::unknown_fields,
        Mutant::Careless,
        CARELESS,
    ),
    (
        "37 two interfaces of one container, in two networks, come and go by themselves",
        adding::two_interfaces,
        Mutant::AllOfIt,
        Passes,
    ),
    (
        "an MTU that is asked for",
        asking::wanted_mtu,
        Mutant::Careless,
        Passes,
    ),
    (
        "asking again answers the same",
        adding::add_again,
        Mutant::Strict,
        Fails("asking again is an error"),
    ),
    (
        "IPAM of another plugin chooses the address",
        ipam::delegated,
        Mutant::NoIpam,
        Passes,
    ),
    (
        "the prefix is the network's, whatever IPAM says",
        ipam::delegated_prefix,
        Mutant::NoIpam,
        Fails("its bridge has one prefix"),
    ),
    (
        "containers of two hosts reach each other",
        adding::two_hosts,
        Mutant::Down,
        Fails("there is nothing between hosts"),
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
            whose: Whose::Ours,
        };
        h1.ok(&["network", "create", SECOND, "--range", "10.47.0.0/24"]);
        for (title, case, ..) in CASES {
            println!("case {title}");
            world.show(title, case);
        }
        println!("{} cases of conformance passed", CASES.len());
        let clean = h1.ns.snapshot();
        for (title, case, mutant, _) in CASES {
            let said = must_fail(mutant, title, || world.show(title, case));
            println!(
                "{title}: {mutant:?}: {}",
                said.lines().next().unwrap_or_default()
            );
            // Or the next one might fail for what this one left.
            world.recover();
            assert_eq!(world.r1().left(), (0, 0, 0), "{title}: {mutant:?}");
            assert_same(&clean, &h1.ns.snapshot(), title);
        }
        println!("and {} failed on their mutants", CASES.len());
    });
}

/// The same cases on plugins of the reference: those that are not about ours pass there too.
#[test]
fn the_reference_as_control() {
    Lab::run(|lab| {
        let [h1, h2] = ["h1", "h2"].map(|name| lab.bare_host(name));
        let world = World {
            h1: &h1,
            h2: &h2,
            dir: lab.dir().to_owned(),
            whose: Whose::Reference,
        };
        // Its bridge is made once and stays; a port of the lab's own and an address keep it from changing with the others.
        let ns = world.container("first");
        world.r1().add("first", &ns);
        world.r1().del("first", &ns);
        h1.ns.sh(
            "ip link set cni0 address 02:00:00:00:00:01; ip link add steady type veth peer name peer
             ip link set steady master cni0 up; ip link set peer up",
        );
        let (mut passed, mut otherwise) = (0, Vec::new());
        for (title, case, _, control) in CASES {
            println!("case {title}");
            let ended = catch_unwind(AssertUnwindSafe(|| world.show(title, case)));
            passed += usize::from(ended.is_ok());
            if ended.is_ok() != (control == Passes) {
                otherwise.push((title, control));
            }
            if ended.is_err() {
                println!("  fails: {control:?}");
                world.recover_reference();
            }
        }
        assert_eq!(otherwise, [], "what did not end as it is known to");
        let failed = COUNT - passed;
        println!("{passed} cases pass on the reference, {failed} are known to fail");
        assert_eq!(passed, CONTROLLED);
    });
}

/// What takes a lab of its own fails on a mutant as well.
#[test]
fn labs_of_their_own_fail_on_their_mutants() {
    for (number, lab, mutant, expected) in LABS {
        let title = format!("statement {number}");
        let said = must_fail(mutant, &title, || Lab::run(lab));
        assert!(said.contains(expected), "{title}, {mutant:?}: {said}");
        println!("{title} failed on {mutant:?}: {said}");
    }
    println!("{} labs failed on their mutants", LABS.len());
}

/// Every statement of the contract is shown: by a case, a lab or a bench.
#[test]
fn every_statement_is_shown() {
    let here = CASES
        .iter()
        .filter_map(|(title, ..)| title.get(..2)?.parse().ok());
    let labs = LABS.map(|(number, ..)| number);
    let benches = BENCHES.map(|(number, _)| number);
    let shown: BTreeSet<u32> = here.chain(labs).chain(benches).collect();
    assert_eq!(shown, (1..=STATEMENTS).collect());
}

impl World<'_> {
    fn r1(&self) -> Runtime<'_> {
        match self.whose {
            Whose::Ours => Runtime::new(self.h1),
            Whose::Reference => Runtime::control(self.h1, &self.dir),
        }
    }

    /// What of CNI it knows.
    fn versions(&self) -> &'static [&'static str] {
        let all = &["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
        match self.whose {
            Whose::Ours => all,
            Whose::Reference => &all[..4],
        }
    }

    /// Fails unless the case does what it says and leaves the host as it was.
    fn show(&self, title: &str, case: fn(&Self)) {
        let before = self.h1.ns.snapshot();
        case(self);
        if self.whose == Whose::Reference {
            // It leaves to the kernel what goes with a namespace, some time after it.
            let late = Instant::now() + GOES;
            while self.r1().left() != (0, 0, 0) && Instant::now() < late {
                thread::sleep(Duration::from_millis(20));
            }
        }
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

    /// The same on the control.
    fn recover_reference(&self) {
        self.h1.ns.try_sh(
            "for link in $(ip -br link show type veth | grep -o '^veth[^@]*') leak0; do ip link del $link; done",
        );
        let kept = host_local(&self.dir);
        if kept.exists() {
            std::fs::remove_dir_all(kept).expect("the lab's directory is there");
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

    /// A container on the first host that no runtime made.
    fn attach(&self, name: &str) -> Container {
        self.h1.attach_ns(self.container(name), name, &[])
    }

    /// Makes a plugin `fake-ipam` that gives `address` and writes down what it is called for. It fails for the verbs in
    /// `fails`. Returns the runtime that uses it.
    fn with_ipam(&self, address: &str, fails: &str) -> Runtime<'_> {
        let (log, plugin) = (self.dir.join("ipam.log"), self.dir.join("fake-ipam"));
        let version = self.versions().last().unwrap_or(&"");
        let script = format!(
            "#!/bin/sh\ncat >/dev/null\necho $CNI_COMMAND >>{}\n\
             case ' {fails} ' in *\" $CNI_COMMAND \"*) echo '{{\"code\":77,\"msg\":\"no luck\"}}'; exit 1;; esac\n\
             [ $CNI_COMMAND != ADD ] || echo '{{\"cniVersion\":\"{version}\",\"ips\":[{{\"address\":\"{address}\"}}]}}'\n",
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
