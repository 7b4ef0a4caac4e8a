//! What container runtimes had the node do, and the addresses that the node found: how it ended and how long it took, kept
//! for the metrics.
//!
//! Counted is from the request's arrival to its answer, the wait for the desk included. A runtime that went away before it
//! had its answer is counted as such: that is what a node which is too slow looks like.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Mutex;
use std::time::Instant;

use weave_model::Durations;
use weave_model::api::{Code, Refusal};

use super::facts::lock;

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Runtime {
    /// A CNI runtime, or Podman.
    Cni,
    /// Docker.
    Docker,
    /// The node itself, whoever it does something for.
    Node,
}

/// Every way an operation can end.
const RESULTS: [&str; 8] = [
    "ok",
    "invalid",
    "not_found",
    "conflict",
    "not_ready",
    "remote",
    "failed",
    ABANDONED,
];

/// Whoever asked did not wait.
const ABANDONED: &str = "abandoned";

/// What CNI runtimes ask for; counted from zero, so that the first failure shows as a rise.
const CNI: [&str; 4] = ["add", "del", "check", "gc"];

/// What the node itself does: finding an address.
pub(crate) const ALLOCATE: &str = "allocate";

/// One kind of operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tally {
    /// How many ended in each way; all ways there are.
    pub results: BTreeMap<&'static str, u64>,
    /// How long they took.
    pub took: Durations,
}

impl Default for Tally {
    fn default() -> Self {
        Self {
            results: RESULTS.map(|result| (result, 0)).into(),
            took: Durations::default(),
        }
    }
}

/// All kinds, by who asks and the operation's name.
pub type Tallies = BTreeMap<(Runtime, &'static str), Tally>;

/// What was done so far.
#[derive(Debug)]
pub(super) struct Operations(Mutex<Tallies>);

impl Default for Operations {
    fn default() -> Self {
        let kinds = CNI.map(|operation| (Runtime::Cni, operation)).into_iter();
        let kinds = kinds.chain([(Runtime::Node, ALLOCATE)]);
        let none = kinds.map(|kind| (kind, Tally::default()));
        Self(Mutex::new(none.collect()))
    }
}

impl Operations {
    /// Waits for the answer to an operation, and counts it.
    pub(super) async fn counted<A>(
        &self,
        of: (Runtime, &'static str),
        answer: impl Future<Output = Result<A, Refusal>>,
    ) -> Result<A, Refusal> {
        let mut underway = Underway {
            all: self,
            of,
            began: Instant::now(),
            result: ABANDONED,
        };
        let answer = answer.await;
        underway.result = match &answer {
            Ok(_) => "ok",
            Err(refusal) => word(refusal.code),
        };
        answer
    }

    /// What was done so far.
    pub(super) fn tallies(&self) -> Tallies {
        lock(&self.0).clone()
    }
}

/// An operation that is not over; dropped, it is.
struct Underway<'a> {
    all: &'a Operations,
    of: (Runtime, &'static str),
    began: Instant,
    result: &'static str,
}

impl Drop for Underway<'_> {
    fn drop(&mut self) {
        let mut all = lock(&self.all.0);
        let tally = all.entry(self.of).or_default();
        *tally.results.entry(self.result).or_default() += 1;
        tally.took.add(self.began.elapsed());
    }
}

const fn word(code: Code) -> &'static str {
    match code {
        Code::Invalid => "invalid",
        Code::NotFound => "not_found",
        Code::Conflict => "conflict",
        Code::NotReady => "not_ready",
        Code::Remote => "remote",
        Code::Failed => "failed",
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};
    use std::task::{Context, Waker};

    use super::*;

    #[test]
    fn every_end_is_counted_also_that_of_one_who_went_away() {
        let operations = Operations::default();
        let of = (Runtime::Cni, "add");
        let mut context = Context::from_waker(Waker::noop());
        let answers = [
            Ok(()),
            Err(Refusal::new(Code::Conflict, "taken", "take another")),
        ];
        for answer in answers {
            let mut counted = Box::pin(operations.counted(of, ready(answer)));
            assert!(counted.as_mut().poll(&mut context).is_ready());
        }
        let mut gone = Box::pin(operations.counted::<()>(of, pending()));
        assert!(gone.as_mut().poll(&mut context).is_pending());
        drop(gone);
        let tallies = operations.tallies();
        let tally = &tallies[&of];
        let ended: Vec<_> = tally
            .results
            .iter()
            .filter(|(_, count)| **count > 0)
            .collect();
        assert_eq!(ended, [(&"abandoned", &1), (&"conflict", &1), (&"ok", &1)]);
        assert_eq!((tally.took.count(), tallies.len()), (3, CNI.len() + 1));
    }
}
