//! Hands each picture to everybody who looks: rendered once, whatever the number of viewers, and whole only for those who
//! need it whole. Who keeps up needs the steps.
//!
//! A viewer that is slow finds the newest picture when it comes back, not a queue: it is given the step from the last
//! one if that is what it has, and the whole otherwise.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use hyper::body::Bytes;
use tokio::sync::watch;
use weave_model::api::Topology;

use crate::delta;
use crate::history::History;

/// The picture of so many seconds ago is the newest to who asks once.
const FRESH: u64 = 2;

/// How long who asks once waits for a newer one.
const PATIENCE: Duration = Duration::from_secs(4);

/// A picture, rendered as far as somebody asked.
#[derive(Clone, Debug)]
pub(crate) struct Frame {
    /// Its number; 0 for none.
    pub(crate) seq: u64,
    /// What leads here from the one before.
    pub(crate) step: Arc<str>,
    picture: Option<Arc<Picture>>,
}

#[derive(Debug)]
struct Picture {
    topology: Topology,
    whole: OnceLock<Arc<str>>,
}

impl Frame {
    /// The whole as JSON: `{"seq": ..., "topology": ...}`; nothing before the first picture.
    pub(crate) fn whole(&self) -> Arc<str> {
        let Some(picture) = &self.picture else {
            return "".into();
        };
        let whole = picture.whole.get_or_init(|| {
            let topology = json(&picture.topology);
            format!("{{\"seq\":{},\"topology\":{topology}}}", self.seq).into()
        });
        Arc::clone(whole)
    }
}

/// Where pictures come in and go out.
#[derive(Debug)]
pub(crate) struct Hub {
    frames: watch::Sender<Frame>,
    history: Mutex<History>,
    viewers: AtomicUsize,
    resyncs: AtomicU64,
}

impl Default for Hub {
    fn default() -> Self {
        let nothing = Frame {
            seq: 0,
            step: "".into(),
            picture: None,
        };
        Self {
            frames: watch::Sender::new(nothing),
            history: Mutex::default(),
            viewers: AtomicUsize::new(0),
            resyncs: AtomicU64::new(0),
        }
    }
}

impl Hub {
    /// Makes a picture the newest.
    pub(crate) fn publish(&self, topology: Topology) {
        // One picture after another.
        let mut history = lock(&self.history);
        let before = self.frame();
        let (seq, at) = (before.seq + 1, topology.at);
        let step = before.picture.map_or_else(String::new, |before| {
            json(&delta::between(&before.topology, &topology, seq))
        });
        let picture = Picture {
            topology,
            whole: OnceLock::new(),
        };
        let frame = Frame {
            seq,
            step: step.into(),
            picture: Some(Arc::new(picture)),
        };
        if history.is_due(at) {
            history.keep(at, &frame.whole());
        }
        self.frames.send_replace(frame);
    }

    /// The newest picture, and word of each that follows, while the viewer is kept.
    pub(crate) fn view(self: &Arc<Self>) -> Viewer {
        self.viewers.fetch_add(1, Relaxed);
        Viewer {
            hub: Arc::clone(self),
            frames: self.frames.subscribe(),
            has: 0,
        }
    }

    /// The newest picture.
    pub(crate) fn frame(&self) -> Frame {
        self.frames.borrow().clone()
    }

    /// The picture of now, for who asks once: it is waited for as by a viewer, so that it is made. The newest there is, if
    /// none comes. `wall` is the time in seconds since the Unix epoch.
    pub(crate) async fn once(self: &Arc<Self>, wall: u64) -> Frame {
        let mut viewer = self.view();
        let is_fresh = |frame: &Frame| {
            let made = frame.picture.as_ref().map(|picture| picture.topology.at);
            made.is_some_and(|at| at + FRESH >= wall)
        };
        let coming = viewer.frames.wait_for(is_fresh);
        // In either case it is the newest.
        let _ = tokio::time::timeout(PATIENCE, coming).await;
        self.frame()
    }

    /// How many look now.
    pub(crate) fn viewers(&self) -> usize {
        self.viewers.load(Relaxed)
    }

    /// How often a viewer was so slow that it was given the whole anew.
    pub(crate) fn resyncs(&self) -> u64 {
        self.resyncs.load(Relaxed)
    }

    /// When the pictures were made that are kept.
    pub(crate) fn times(&self) -> Vec<u64> {
        lock(&self.history).times()
    }

    /// The picture that is kept of this second or nearest to it, in the form of gzip.
    pub(crate) fn past(&self, at: u64) -> Option<Bytes> {
        lock(&self.history).nearest(at)
    }
}

/// Somebody who looks.
#[derive(Debug)]
pub(crate) struct Viewer {
    hub: Arc<Hub>,
    frames: watch::Receiver<Frame>,
    /// The number of the picture it has.
    has: u64,
}

/// What a viewer is sent.
#[derive(Debug)]
pub(crate) enum News {
    /// A whole picture.
    Whole(Arc<str>),
    /// What changed since the last one.
    Step(Arc<str>),
}

impl Viewer {
    /// Waits until there is a picture that this viewer does not have; `None` when there will be none.
    pub(crate) async fn next(&mut self) -> Option<News> {
        loop {
            let frame = self.frames.borrow_and_update().clone();
            if frame.seq != self.has {
                let follows = self.has > 0 && frame.seq == self.has + 1;
                if self.has > 0 && !follows {
                    self.hub.resyncs.fetch_add(1, Relaxed);
                }
                self.has = frame.seq;
                let news = if follows {
                    News::Step(frame.step)
                } else {
                    News::Whole(frame.whole())
                };
                return Some(news);
            }
            self.frames.changed().await.ok()?;
        }
    }
}

impl Drop for Viewer {
    fn drop(&mut self) {
        self.hub.viewers.fetch_sub(1, Relaxed);
    }
}

fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).expect("names and numbers are JSON")
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use weave_model::NodeId;
    use weave_model::api::Verdict;

    use super::*;

    fn topology(at: u64) -> Topology {
        Topology {
            at,
            node: NodeId::from_bytes([1; 32]),
            verdict: Verdict::Ok,
            summary: String::new(),
            problems: Vec::new(),
            hosts: Vec::new(),
            containers: Vec::new(),
            links: Vec::new(),
            services: Vec::new(),
            flows: Vec::new(),
        }
    }

    #[tokio::test]
    async fn who_keeps_up_gets_steps_and_who_does_not_the_whole() {
        let hub = Arc::new(Hub::default());
        hub.publish(topology(1));
        let mut viewer = hub.view();
        assert!(matches!(viewer.next().await, Some(News::Whole(_))));
        hub.publish(topology(2));
        let Some(News::Step(step)) = viewer.next().await else {
            panic!("it had the one before");
        };
        let step: serde_json::Value = serde_json::from_str(&step).unwrap();
        assert_eq!((&step["seq"], &step["at"]), (&2.into(), &2.into()));
        hub.publish(topology(3));
        hub.publish(topology(4));
        let Some(News::Whole(whole)) = viewer.next().await else {
            panic!("it missed one");
        };
        let whole: serde_json::Value = serde_json::from_str(&whole).unwrap();
        assert_eq!(
            (&whole["seq"], &whole["topology"]["at"]),
            (&4.into(), &4.into())
        );
        assert_eq!((hub.viewers(), hub.resyncs()), (1, 1));
        drop(viewer);
        assert_eq!(hub.viewers(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn who_asks_once_is_a_viewer_until_there_is_a_picture_of_now() {
        let hub = Arc::new(Hub::default());
        assert_eq!(hub.once(100).await.seq, 0, "none came");
        hub.publish(topology(100));
        assert_eq!(hub.once(101).await.seq, 1);
        let asked = {
            let hub = Arc::clone(&hub);
            tokio::spawn(async move { hub.once(200).await.seq })
        };
        tokio::task::yield_now().await;
        assert_eq!(hub.viewers(), 1);
        hub.publish(topology(200));
        assert_eq!(asked.await.unwrap(), 2);
        assert_eq!(hub.viewers(), 0);
    }

    #[test]
    fn the_past_is_kept_at_intervals() {
        let hub = Hub::default();
        (100..112).for_each(|at| hub.publish(topology(at)));
        assert_eq!(hub.times(), [100, 105, 110]);
        assert!(hub.past(105).is_some() && hub.past(105) == hub.past(106));
    }
}
