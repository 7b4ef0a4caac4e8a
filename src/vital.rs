//! The parts that the process must not outlive.
//!
//! A panic ends the thread or the task that it happens in, and nothing else. What is left then is half a node: it
//! answers, but nothing that it promises is kept. So each task that the node cannot be without holds a [`Part`], whose
//! end is told wherever it comes from, and a panic in any thread of ours (`weave-…`) is told by the hook that reports it.
//! [`crate::daemon`] waits for the first of them and ends the process, for its supervisor to start it again; containers
//! keep talking meanwhile. A request that panics is none of these: it ends its own connection.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use tokio::sync::watch;
use weave_router::mesh::quarantine::is_reading;

/// How the names of our threads begin.
const THREADS: &str = "weave-";

/// What has ended by itself.
#[derive(Clone, Debug, Default)]
pub struct Vitals(Arc<watch::Sender<Option<String>>>);

impl Vitals {
    /// Something that must not end: whoever does the work holds it until the work is done.
    pub fn part(&self, name: &'static str) -> Part {
        Part {
            name,
            vitals: self.clone(),
        }
    }

    /// From now on a panic in a thread of ours is told, after it was reported as always.
    pub fn watch_threads(&self) {
        let report = std::panic::take_hook();
        let vitals = self.clone();
        std::panic::set_hook(Box::new(move |panic| {
            report(panic);
            if is_reading() {
                // It ends there, and is counted.
                return;
            }
            let thread = thread::current();
            if let Some(name) = thread.name().filter(|name| name.starts_with(THREADS)) {
                vitals.ended_itself(&format!("the thread {name}"));
            }
        }));
    }

    /// Waits until something has ended, and says what: the first of all.
    pub async fn ended(&self) -> String {
        let mut first = self.0.subscribe();
        let found = first.wait_for(Option::is_some).await;
        found
            .ok()
            .and_then(|found| found.clone())
            .unwrap_or_default()
    }

    fn ended_itself(&self, name: &str) {
        self.0.send_if_modified(|first| {
            let news = first.is_none();
            if news {
                *first = Some(name.to_owned());
            }
            news
        });
    }
}

/// A part that must not end; see [`Vitals::part`].
#[derive(Debug)]
pub struct Part {
    name: &'static str,
    vitals: Vitals,
}

impl Drop for Part {
    fn drop(&mut self) {
        self.vitals.ended_itself(self.name);
    }
}

/// Ends the process after `patience`, whatever the rest of it waits for: what is broken may keep what is whole from
/// ending.
pub fn end_within(patience: Duration) {
    let body = move || {
        thread::sleep(patience);
        std::process::exit(1);
    };
    let thread = thread::Builder::new().name("end".into()).spawn(body);
    if thread.is_err() {
        std::process::exit(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What has ended, if it is told soon.
    async fn told(vitals: &Vitals) -> Option<String> {
        let soon = tokio::time::timeout(Duration::from_secs(20), vitals.ended());
        soon.await.ok()
    }

    #[tokio::test]
    async fn a_task_that_panics_is_told_and_the_first_one_counts() {
        let vitals = Vitals::default();
        let (desk, other) = (vitals.part("the desk"), vitals.part("something else"));
        let served = tokio::spawn(async move {
            let _desk = desk;
            tokio::task::yield_now().await;
            panic!("as a bug would");
        });
        assert!(served.await.is_err());
        drop(other);
        assert_eq!(told(&vitals).await.as_deref(), Some("the desk"));
    }

    #[tokio::test]
    async fn a_task_that_returns_is_told_too() {
        let vitals = Vitals::default();
        let part = vitals.part("the watch");
        tokio::spawn(async move { drop(part) });
        assert_eq!(told(&vitals).await.as_deref(), Some("the watch"));
    }

    #[tokio::test]
    async fn a_panic_in_a_thread_of_ours_is_told_and_in_another_not() {
        let vitals = Vitals::default();
        vitals.watch_threads();
        let panics = |name: &str| {
            let thread = thread::Builder::new().name(name.to_owned());
            let body = || panic!("as a bug would");
            thread.spawn(body).expect("a thread").join().is_err()
        };
        assert!(panics("worker"));
        assert_eq!(*vitals.0.borrow(), None);
        assert!(panics("weave-service"));
        let told = told(&vitals).await;
        assert_eq!(told.as_deref(), Some("the thread weave-service"));
    }
}
