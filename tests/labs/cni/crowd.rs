//! Many at once, and the node killed among them: no address is given twice, and nothing is left behind.

use std::collections::BTreeSet;
use std::process::Child;
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::{Called, Runtime, mutants};
use crate::lab::ns::{self, Ns};
use crate::lab::traffic::wait_for;
use crate::lab::{Host, Lab, await_mesh_of};

/// Namespaces for `count` containers on a host.
pub(super) fn containers(host: &Host, count: usize) -> Vec<(String, Ns)> {
    (0..count)
        .map(|at| (format!("c{at}"), host.bare_container(&format!("c{at}"))))
        .collect()
}

/// Starts a verb for all of them at once and waits for all.
pub(super) fn all_at_once(runtime: &Runtime<'_>, verb: &str, of: &[(String, Ns)]) -> Vec<Called> {
    let mutant = mutants::now();
    let begun: Vec<Result<Child, Called>> = of
        .iter()
        .map(|(id, ns)| {
            let instead = mutant.and_then(|mutant| mutant.instead(runtime, verb, &[]));
            instead.map_or_else(|| Ok(begin(runtime, verb, id, ns)), Err)
        })
        .collect();
    let end = |begun: Result<Child, Called>| {
        let child = match begun {
            Ok(child) => child,
            Err(instead) => return instead,
        };
        let mut called = Called::from(child.wait_with_output().expect("it ends"));
        if let Some(mutant) = mutant {
            mutant.afterwards(runtime, verb, &[], &mut called);
        }
        called
    };
    begun.into_iter().map(end).collect()
}

pub(super) fn begin(runtime: &Runtime<'_>, verb: &str, id: &str, ns: &Ns) -> Child {
    let path = ns.path().display().to_string();
    let vars = [
        ("CNI_CONTAINERID", id),
        ("CNI_NETNS", &path),
        ("CNI_IFNAME", "eth0"),
    ];
    runtime.begin(verb, &vars)
}

#[test]
fn a_hundred_at_once() {
    Lab::run(a_hundred);
}

/// A hundred at once get a hundred addresses and leave none.
pub(super) fn a_hundred(lab: &Lab) {
    let h1 = lab.host("h1", 1);
    h1.start();
    h1.ok(&["init"]);
    let runtime = Runtime::new(&h1);
    let all = containers(&h1, 100);
    one_after_another(&runtime, &all[..40]);

    let start = Instant::now();
    let added = all_at_once(&runtime, "ADD", &all);
    println!("100 ADDs at once: {} ms", start.elapsed().as_millis());
    let address = |called: &Called| called.out["ips"][0]["address"].as_str().map(str::to_owned);
    let distinct: BTreeSet<_> = added.iter().filter_map(address).collect();
    assert_eq!(distinct.len(), 100, "distinct addresses");
    assert_eq!(runtime.left(), (100, 100, 100));

    let start = Instant::now();
    let gone = all_at_once(&runtime, "DEL", &all);
    println!("100 DELs at once: {} ms", start.elapsed().as_millis());
    assert!(gone.iter().all(|called| called.ok && called.out.is_null()));
    assert_eq!(runtime.left(), (0, 0, 0), "after DEL");
}

/// STATUS, 24: a node whose addresses are all in use says 50, and an ADD that finds none changes nothing; one that
/// reaches none of its members says 51. It is the second of two and alone, so that nobody gives it more addresses.
#[test]
fn all_addresses_in_use_and_nobody_to_reach() {
    Lab::run(|lab| {
        let [h1, h2] = [1, 2].map(|number| lab.host(&format!("h{number}"), number));
        h1.start();
        h2.start();
        h1.ok(&["init", "--range", "10.64.0.0/24"]);
        let token = h1.ok(&["token", "create"]);
        h2.ok(&["join", token.trim()]);
        h1.end("KILL");
        let runtime = Runtime::new(&h2);
        let free = h2.status()["cluster"]["addresses"]
            .as_u64()
            .expect("a number");
        let all = containers(&h2, free as usize + 1);
        let (last, rest) = all.split_last().expect("there is one");
        assert!(
            all_at_once(&runtime, "ADD", rest)
                .iter()
                .all(|called| called.ok)
        );
        assert_eq!(runtime.left().1, free);

        runtime
            .call("STATUS", &[])
            .refused(50, "addresses of default on this node are in use");
        let before = last.1.snapshot();
        runtime
            .on("ADD", &last.0, &last.1)
            .refused(11, "no address is free");
        assert_eq!((last.1.snapshot(), runtime.left().1), (before, free));
        runtime.del("c0", &all[0].1);

        // Now there is one, but nobody to reach from it.
        let alone = || h2.status()["cluster"]["connected"] == 1;
        wait_for("the other member is missed", Duration::from_secs(30), alone);
        runtime
            .call("STATUS", &[])
            .refused(51, "none of the 1 other members");
        h1.start();
        await_mesh_of(&[&h1, &h2]);
        assert!(runtime.call("STATUS", &[]).ok);
        assert!(runtime.gc(&[]).ok);
        assert_eq!(runtime.left(), (0, 0, 0));

        // Its addresses rest for a while: those who talk at the end of a lab need a node that has some.
        h2.end("KILL");
        let h3 = lab.host("h3", 3);
        h3.start();
        let token = h1.ok(&["token", "create"]);
        h3.ok(&["join", token.trim()]);
    });
}

/// How long a call takes when nothing else goes on, from the start of the process to its end.
fn one_after_another(runtime: &Runtime<'_>, of: &[(String, Ns)]) {
    for verb in ["ADD", "DEL"] {
        let time = |(id, ns): &(String, Ns)| {
            let start = Instant::now();
            let child = begin(runtime, verb, id, ns);
            let ended = child.wait_with_output().expect("it ends");
            assert!(ended.status.success(), "{verb} of {id}");
            start.elapsed()
        };
        let mut times: Vec<Duration> = of.iter().map(time).collect();
        times.sort_unstable();
        let at =
            |percent: usize| times[(times.len() * percent / 100).min(times.len() - 1)].as_micros();
        println!(
            "{verb} one after another: p50 {} µs, p99 {} µs",
            at(50),
            at(99)
        );
    }
}

/// The node is killed while a crowd comes and goes. Every DEL is said to be done, now or later, and when the node is
/// back it is.
#[test]
fn the_node_killed_in_the_middle_of_del() {
    Lab::run(|lab| {
        let h1 = lab.host("h1", 1);
        h1.start();
        h1.ok(&["init"]);
        let runtime = Runtime::new(&h1);
        let all = containers(&h1, 12);
        for round in 0..6 {
            let added = all_at_once(&runtime, "ADD", &all);
            assert!(
                added.iter().all(|called| called.ok),
                "round {round}: {added:?}"
            );
            let begun: Vec<Child> = all
                .iter()
                .map(|(id, ns)| begin(&runtime, "DEL", id, ns))
                .collect();
            sleep(Duration::from_millis(8 * round));
            h1.end("KILL");
            for child in begun {
                let called = Called::from(child.wait_with_output().expect("it ends"));
                assert!(
                    called.ok && called.out.is_null(),
                    "round {round}: {called:?}"
                );
            }
            h1.start();
            assert_eq!(runtime.left(), (0, 0, 0), "round {round}");
        }
        let journal = lab.dir().join(weave_model::api::CNI_JOURNAL);
        assert_eq!(
            ns::host(&format!("ls -A {} 2>/dev/null || true", journal.display())),
            ""
        );
    });
}
