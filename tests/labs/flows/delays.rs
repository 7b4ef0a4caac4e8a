//! How long it takes until every host tells of a flow, on a machine that may be busy elsewhere.

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

/// How long it took from the end of each flow until each host told of it, while somebody looked there. Neither counts the
/// time in which the machine stood still, nor that for which nodes pause longer since looks are costly there.
pub(super) struct Delays {
    taken: Vec<Duration>,
    pulse: Pulse,
}

impl Delays {
    pub(super) fn new() -> Self {
        Self {
            taken: Vec::new(),
            pulse: Pulse::start(),
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
        let (ended, stood) = (Instant::now(), self.pulse.stood_still());
        let mut waiting: Vec<&Host> = hosts.iter().collect();
        let what = format!("all tell of {protocol}/{port} from {from} to {to}");
        wait_for(&what, PATIENCE, || {
            waiting.retain(|host| {
                let told = find(host, (from, to), (protocol, port), &is_so).is_some();
                if told {
                    let (took, still) = (ended.elapsed(), self.pulse.stood_still() - stood);
                    self.taken.push(took.saturating_sub(still + pauses(hosts)));
                }
                !told
            });
            waiting.is_empty()
        });
    }

    /// Checks that flows are told within two seconds; a machine that was busy elsewhere may be late with a few.
    pub(super) fn check(mut self) {
        let taken = &mut self.taken;
        taken.sort_unstable();
        let (half, last) = (taken[taken.len() / 2], taken[taken.len() - 1]);
        let stood = self.pulse.stood_still();
        println!(
            "flows were told after {half:.2?}, the last after {last:.2?}; the machine stood still for {stood:.2?}"
        );
        let late = taken.iter().filter(|one| **one > SOON).count();
        assert!(late * 4 <= taken.len(), "told late: {taken:.2?}");
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
