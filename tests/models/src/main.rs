//! The relay's threads in every order: models of each of the agreements of `proxy/src/relay/agree.rs`, run by loom.
//!
//! Loom runs a model again and again until it has seen the orders of its threads' steps ([`CHANGES`]), and lets each load
//! give every value that the memory model of C11 allows it. A model fails where an assertion does. So that this means
//! something, one must fail where an agreement is made weaker in any one place (`build.rs`), or is used in a wrong order.
//! Those run in a process each, which they may take with them. Ends with 1 if anything holds that must not, or the reverse.

#[cfg(not(loom))]
compile_error!("the models need loom's atomics: RUSTFLAGS=\"--cfg loom\"");

use std::process::{Command, ExitCode, Stdio};
use std::{env, io};

#[allow(dead_code, reason = "the models need no more than they use")]
#[path = "../../../proxy/src/relay/agree.rs"]
mod agree;

/// The models of one copy of the agreements, and wrong uses of it.
macro_rules! models {
    ($agree:ident) => {
        use loom::sync::Arc;
        use loom::sync::atomic::Ordering::{Acquire, Release};
        use loom::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
        use loom::thread;

        use $agree::{Budget, News, Open};

        /// Whether two steps are done in the order in which they must be.
        #[derive(Clone, Copy, PartialEq)]
        pub(super) enum Order {
            Right,
            Wrong,
        }

        pub(super) const MODELS: &[fn()] = &[
            budget,
            || news(Order::Right),
            || drain(Order::Right, Order::Right),
        ];

        #[allow(dead_code, reason = "of the unbroken copy only")]
        pub(super) const WRONG_USES: &[(&str, fn())] = &[
            ("told before there is anything new", || news(Order::Wrong)),
            ("answered before the queue was emptied", || {
                drain(Order::Wrong, Order::Right)
            }),
            (
                "the queue looked into before it is known what is asked",
                || drain(Order::Right, Order::Wrong),
            ),
        ];

        /// What the budget of the models has.
        const MOST: usize = 2;

        /// Nobody ever has more than there is, and in the end all of it is there.
        fn budget() {
            super::check(|| {
                let shared = Arc::new((Budget::new(MOST), AtomicUsize::new(0)));
                let threads: Vec<_> = [(1, 1), (2, 0)]
                    .map(|(count, leave)| {
                        let shared = Arc::clone(&shared);
                        thread::spawn(move || spend(&shared, count, leave))
                    })
                    .into();
                spend(&shared, 1, 0);
                for thread in threads {
                    thread.join().unwrap();
                }
                assert!(shared.0.take(MOST, 0) && !shared.0.take(1, 0));
            });

            fn spend((budget, held): &(Budget, AtomicUsize), count: usize, leave: usize) {
                if budget.take(count, leave) {
                    assert!(held.fetch_add(count, Relaxed) + count <= MOST);
                    held.fetch_sub(count, Relaxed);
                    budget.give(count);
                }
            }
        }

        /// A thread of the relay remembers what it made of the routes, which stand here as their number. However its turns
        /// fall, after one more, for which it is woken, it has the last.
        fn news(told: Order) {
            super::check(move || {
                let shared = Arc::new((News::default(), AtomicU64::new(0)));
                let worker = thread::spawn({
                    let shared = Arc::clone(&shared);
                    move || {
                        let mut mind = (0, 0);
                        look(&shared, &mut mind);
                        look(&shared, &mut mind);
                        mind
                    }
                });
                for routes in [1, 2] {
                    // As `ArcSwap` stores and loads.
                    if told == Order::Right {
                        shared.1.store(routes, Release);
                        shared.0.tell();
                    } else {
                        shared.0.tell();
                        shared.1.store(routes, Release);
                    }
                }
                let mut mind = worker.join().unwrap();
                look(&shared, &mut mind);
                assert_eq!(mind.1, 2);
            });

            fn look((news, routes): &(News, AtomicU64), (heard, made_of): &mut (u64, u64)) {
                if news.is_new(heard) {
                    *made_of = routes.load(Acquire);
                }
            }
        }

        /// What the kernel has in a listener's queue, and whether the one connection is through.
        struct Listener {
            open: Open,
            queue: AtomicUsize,
            through: AtomicBool,
        }

        /// A connection came to a queue before the rules that lead there went. When it is over, it is through; and in
        /// the end it is over.
        fn drain(answered: Order, looked: Order) {
            super::check(move || {
                let shared = Arc::new(Listener {
                    open: Open::new(1),
                    queue: AtomicUsize::new(0),
                    through: AtomicBool::new(false),
                });
                let worker = thread::spawn({
                    let shared = Arc::clone(&shared);
                    move || {
                        let mut mind = (false, 0);
                        turn(&shared, &mut mind, answered, looked);
                        turn(&shared, &mut mind, answered, looked);
                        mind
                    }
                });
                shared.queue.store(1, Relaxed);
                let asked = shared.open.ask();
                if shared.open.is_over(asked) {
                    assert!(shared.through.load(Relaxed), "a connection is lost");
                }
                let mut mind = worker.join().unwrap();
                turn(&shared, &mut mind, answered, looked);
                turn(&shared, &mut mind, answered, looked);
                assert!(shared.open.is_over(asked) && shared.through.load(Relaxed));
            });

            /// Ends what it holds, then takes in what waits.
            fn turn(
                listener: &Listener,
                (held, last): &mut (bool, u64),
                answered: Order,
                looked: Order,
            ) {
                if std::mem::replace(held, false) {
                    listener.through.store(true, Relaxed);
                    listener.open.end();
                }
                if looked == Order::Wrong {
                    take_in(listener, held);
                }
                let asked = listener.open.asks(*last);
                if answered == Order::Right && looked == Order::Right {
                    take_in(listener, held);
                }
                if let Some(asked) = asked {
                    listener.open.answer(0, asked);
                    *last = asked;
                }
                if answered == Order::Wrong {
                    take_in(listener, held);
                }
            }

            fn take_in(listener: &Listener, held: &mut bool) {
                if listener.queue.load(Relaxed) == 1 {
                    listener.queue.store(0, Relaxed);
                    listener.open.begin();
                    *held = true;
                }
            }
        }
    };
}

/// In every order with so many changes of thread where none is forced; more cost minutes and find no more mutants.
const CHANGES: usize = 3;

fn check(model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(CHANGES);
    builder.check(model);
}

mod right {
    use super::agree;
    models!(agree);
}

include!(concat!(env!("OUT_DIR"), "/mutants.rs"));

/// What must not hold: what is wrong with it, and the models of which one has to find it.
fn faults() -> Vec<(&'static str, &'static [fn()])> {
    let uses = right::WRONG_USES.iter();
    let uses = uses.map(|(what, model)| (*what, std::slice::from_ref(model)));
    uses.chain(MUTANTS.iter().copied()).collect()
}

/// Whether the fault with this number is found, in a process of its own.
fn is_found(number: usize) -> io::Result<bool> {
    let mut itself = Command::new(env::current_exe()?);
    itself.arg(number.to_string());
    let status = itself
        .stderr(Stdio::null())
        .stdout(Stdio::null())
        .status()?;
    Ok(!status.success())
}

fn main() -> io::Result<ExitCode> {
    let faults = faults();
    let asked = env::args().nth(1).and_then(|number| number.parse().ok());
    if let Some((_, models)) = asked.and_then(|number: usize| faults.get(number)) {
        models.iter().for_each(|model| model());
        return Ok(ExitCode::SUCCESS);
    }
    right::MODELS.iter().for_each(|model| model());
    println!("holds in every order: what the threads agree on");
    let mut all = true;
    for (number, (what, _)) in faults.iter().enumerate() {
        let found = is_found(number)?;
        println!("{}: {what}", if found { "found" } else { "NOT FOUND" });
        all &= found;
    }
    Ok(if all {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
