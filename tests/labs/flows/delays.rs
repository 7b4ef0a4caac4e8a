//! How long it takes until every host tells of a flow, on a machine that may be busy elsewhere.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::{PATIENCE, find};
use crate::lab::Host;
use crate::lab::traffic::wait_for;

/// How soon a flow is told.
pub(super) const SOON: Duration = Duration::from_secs(2);

/// Between two looks of a node while somebody looks.
const AWAKE: Duration = Duration::from_millis(500);

/// A node pauses at least so many times as long as a look costs it.
const SHARE: u32 = 80;

/// Less than this, and the machine did not stand still: so long a thread may wait for its turn on any.
const STILL: Duration = Duration::from_millis(50);

/// How long it took from the end of each flow until each host told of it, while somebody looked there.
pub(super) struct Delays {
    taken: Vec<Delay>,
    /// Whether what is waited for comes with a look.
    looks: bool,
    pulse: Pulse,
    /// For how long the machine had stood still when the last flow was waited for.
    stood: Duration,
}

/// How long one host took to tell of one flow.
struct Delay {
    what: String,
    raw: Duration,
    /// What of it is the machine's: there only if that stood still since the flow before was waited for. Then it is the
    /// time in which it did, and that for which nodes pause longer since their looks, which it held up, seem costly.
    machine: Option<Duration>,
}

impl Delay {
    fn own(&self) -> Duration {
        self.raw.saturating_sub(self.machine.unwrap_or_default())
    }
}

impl Delays {
    pub(super) fn new() -> Self {
        Self::of(true)
    }

    /// Of what is told without a look, so that dear looks are no excuse.
    pub(super) fn without_looks() -> Self {
        Self::of(false)
    }

    fn of(looks: bool) -> Self {
        Self {
            taken: Vec::new(),
            looks,
            pulse: Pulse::start(),
            stood: Duration::ZERO,
        }
    }

    /// Asks all hosts in turn until each tells of a flow that just ended, and what it tells of it is so.
    pub(super) fn take(
        &mut self,
        hosts: &[Host],
        (from, to): (&str, &str),
        (protocol, port): (&str, u16),
        is_so: impl Fn(&Value) -> bool,
    ) {
        let what = format!("all tell of {protocol}/{port} from {from} to {to}");
        let told = RefCell::new(Value::Null);
        self.take_since(Instant::now(), hosts, &what, |host| {
            let looked = |flow: &Value| {
                let so = is_so(flow);
                if !so && told.replace(flow.clone()) != *flow {
                    println!("not so: {} tells of {flow}", host.name);
                }
                so
            };
            find(host, (from, to), (protocol, port), looked).is_some()
        });
    }

    /// The same of what can be known since a moment, which may be yet to come.
    pub(super) fn take_since(
        &mut self,
        known: Instant,
        hosts: &[Host],
        what: &str,
        is_told: impl Fn(&Host) -> bool,
    ) {
        let now = self.pulse.stood_still();
        let before = std::mem::replace(&mut self.stood, now);
        let mut waiting: Vec<&Host> = hosts.iter().collect();
        wait_for(what, PATIENCE, || {
            waiting.retain(|host| {
                let told = is_told(host);
                if told {
                    let (raw, stood) = (known.elapsed(), self.pulse.stood_still());
                    let dear = || match self.looks {
                        true => pauses(hosts),
                        false => Duration::ZERO,
                    };
                    let machine = (stood - before >= STILL).then(|| stood - now + dear());
                    self.taken.push(Delay {
                        what: what.to_owned(),
                        raw,
                        machine,
                    });
                }
                !told
            });
            waiting.is_empty()
        });
    }

    /// Checks that every flow was told within two seconds, as a clock on the wall has it; where the machine stood
    /// still, that this is so without what was the machine's, of three in four: what else it held up cannot be told.
    pub(super) fn check(mut self) {
        let taken = &mut self.taken;
        taken.sort_unstable_by_key(|one| one.raw);
        let raw: Vec<Duration> = taken.iter().map(|one| one.raw).collect();
        let (half, last) = (raw[raw.len() / 2], raw[raw.len() - 1]);
        let held_up = taken.iter().filter(|one| one.machine.is_some()).count();
        println!(
            "flows were told after {half:.2?}, the last after {last:.2?}, raw: {raw:.2?}; the machine stood still for \
             {:.2?} and held {held_up} of them up",
            self.pulse.stood_still()
        );
        let late = taken.iter().filter(|one| one.own() > SOON);
        let (held_up, missed): (Vec<&Delay>, Vec<&Delay>) =
            late.partition(|one| one.machine.is_some());
        let named = |late: &[&Delay]| -> Vec<String> {
            let name = |one: &&Delay| format!("{} after {:.2?}", one.what, one.raw);
            late.iter().map(name).collect()
        };
        assert!(
            missed.is_empty(),
            "told late, and the machine went: {:?}",
            named(&missed)
        );
        assert!(
            held_up.len() * 4 <= taken.len(),
            "told late: {:?}",
            named(&held_up)
        );
    }
}

/// How much longer than usual the hosts pause between two looks for what one costs there, at most.
fn pauses(hosts: &[Host]) -> Duration {
    let pause = |host: &Host| {
        let said = host.ns.sh("curl -fsS http://127.0.0.1:6782/metrics");
        let look = said
            .lines()
            .find_map(|line| line.strip_prefix("weave_flow_look_seconds "));
        let seconds = look.and_then(|seconds| seconds.parse().ok());
        SHARE * Duration::from_secs_f64(seconds.expect("every node tells it"))
    };
    let longest = hosts.iter().map(pause).max().unwrap_or_default();
    longest.saturating_sub(AWAKE)
}

/// A thread that does next to nothing, and notes for how long it was kept from that.
struct Pulse {
    late_us: Arc<AtomicU64>,
    go_on: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Pulse {
    /// Between two beats.
    const BEAT: Duration = Duration::from_millis(10);

    fn start() -> Self {
        let (late_us, go_on) = (Arc::<AtomicU64>::default(), Arc::new(AtomicBool::new(true)));
        let (late, until) = (Arc::clone(&late_us), Arc::clone(&go_on));
        let thread = std::thread::spawn(move || {
            while until.load(Ordering::Relaxed) {
                let before = Instant::now();
                std::thread::sleep(Self::BEAT);
                let over = before.elapsed().saturating_sub(2 * Self::BEAT);
                late.fetch_add(over.as_micros() as u64, Ordering::Relaxed);
            }
        });
        Self {
            late_us,
            go_on,
            thread: Some(thread),
        }
    }

    /// For how long the machine stood still since the start.
    fn stood_still(&self) -> Duration {
        Duration::from_micros(self.late_us.load(Ordering::Relaxed))
    }
}

impl Drop for Pulse {
    fn drop(&mut self) {
        self.go_on.store(false, Ordering::Relaxed);
        // It has nothing to say about how it ends.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}
