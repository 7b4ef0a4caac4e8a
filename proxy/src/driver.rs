//! The shell: one thread that owns the sources and the engine, takes reports, and looks after the kernel's rules.
//!
//! Reports that wait together make one table and one batch. What the kernel refuses is tried again at every look.

use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::kernel::{Done, Error, Kernel};
use crate::sources::{Change, Sources};
use crate::table::{Diff, Table};

/// How often it is looked whether somebody changed the rules: one question to the kernel.
const LOOK: Duration = Duration::from_millis(250);

/// What the engine shows.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// The table that the kernel was given last.
    pub table: Arc<Table>,
    /// Why the kernel does not do what it says, while that is so.
    pub failure: Option<String>,
}

/// The running engine. Dropping it ends the thread and leaves the rules.
#[derive(Debug)]
pub struct Engine {
    reports: Option<Sender<Vec<Change>>>,
    shown: Arc<Mutex<Report>>,
    thread: Option<JoinHandle<()>>,
}

impl Engine {
    /// Starts it in the network namespace of the calling thread.
    ///
    /// # Errors
    /// When the kernel lacks what it needs, or a thread cannot be made.
    pub fn start() -> io::Result<Self> {
        let kernel = Kernel::open()?;
        let (reports, waiting) = channel();
        let shown = Arc::new(Mutex::new(Report::default()));
        let work = Work {
            kernel,
            sources: Sources::default(),
            shown: Arc::clone(&shown),
        };
        let thread = thread::Builder::new()
            .name("weave-service".into())
            .spawn(move || work.run(&waiting))?;
        Ok(Self {
            reports: Some(reports),
            shown,
            thread: Some(thread),
        })
    }

    /// Takes reports, all of which hold together.
    pub fn report(&self, changes: Vec<Change>) {
        if let Some(reports) = &self.reports {
            // It fails only when the thread panicked, which was reported when it happened.
            let _ = reports.send(changes);
        }
    }

    /// What it shows now.
    pub fn shown(&self) -> Report {
        lock(&self.shown).clone()
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.reports = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Work {
    kernel: Kernel,
    sources: Sources,
    shown: Arc<Mutex<Report>>,
}

impl Work {
    fn run(mut self, waiting: &Receiver<Vec<Change>>) {
        // Before the first report nothing is known, and what a former run left must not go.
        let Ok(first) = waiting.recv() else { return };
        self.take(first, waiting);
        loop {
            match waiting.recv_timeout(LOOK) {
                Ok(changes) => self.take(changes, waiting),
                Err(RecvTimeoutError::Timeout) => {
                    let looked = self.kernel.look_after();
                    self.tell(
                        looked,
                        "the rules of Services were changed by somebody else",
                    );
                }
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn take(&mut self, first: Vec<Change>, waiting: &Receiver<Vec<Change>>) {
        let all = std::iter::once(first).chain(waiting.try_iter());
        all.flatten().for_each(|change| self.sources.handle(change));
        let before = Arc::clone(self.sources.table());
        let (table, diff): (Arc<Table>, Diff) = self.sources.build();
        for (name, refused) in &table.refused {
            if before.refused.get(name) != Some(refused) {
                let refused: Vec<String> = refused.iter().map(ToString::to_string).collect();
                tracing::warn!(service = %name, ?refused, "left out of a service");
            }
        }
        let done = self
            .kernel
            .apply(Arc::clone(&table), &diff, self.sources.facts());
        lock(&self.shown).table = table;
        self.tell(done, "the rules of Services are made");
    }

    fn tell(&self, done: Result<Done, Error>, remade: &str) {
        let mut shown = lock(&self.shown);
        match done {
            Ok(done) => {
                if done == Done::Remade {
                    tracing::info!("{remade}");
                }
                shown.failure = None;
            }
            Err(error) => {
                let failure = error.to_string();
                if shown.failure.as_ref() != Some(&failure) {
                    tracing::warn!(%error, "the kernel does not do what the table of Services says");
                }
                shown.failure = Some(failure);
            }
        }
    }
}

fn lock(shown: &Mutex<Report>) -> std::sync::MutexGuard<'_, Report> {
    shown.lock().unwrap_or_else(PoisonError::into_inner)
}
