//! The engine in the kernel: keeps the table `weave-service` what the table of Services says.
//!
//! A change goes in as one batch of elements. What the kernel does not take that way is made anew, whole, still in one
//! batch: packets see the old rules or the new ones, and connections that stand are translated by connection tracking,
//! which no batch touches, and which goes on without these rules as long as there is the [`anchor`]. When anybody changed
//! any rule set of the host since, ours is looked at, and made anew if it is not as it should be.

use std::io;
use std::sync::Arc;

use ipnet::IpNet;
use weave_linux::conntrack::flows::{Conntrack, To};
use weave_linux::nft::{self, Batch, Expected, Seen, Socket};
use weave_linux::sysctl;
use weave_model::Protocol;

use crate::facts::Facts;
use crate::rules::{Rules, anchor};
use crate::stale::{Answers, places};
use crate::table::{Diff, Table};

/// Why the kernel does not do what the table says.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The rules could not be written or read.
    #[error("{0}")]
    Rules(#[from] nft::Error),
    /// Stale flows could not be found or forgotten.
    #[error("connection tracking cannot be reached: {0}")]
    Flows(#[source] io::Error),
}

/// What a look or a change did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Done {
    /// Nothing had to be done.
    Kept,
    /// Elements were changed.
    Changed,
    /// The table was made anew.
    Remade,
}

/// The engine. Lives in the network namespace in which it was opened.
#[derive(Debug)]
pub struct Kernel {
    nft: Socket,
    conntrack: Conntrack,
    facts: Facts,
    table: Arc<Table>,
    /// Absent until the kernel's table is known to be right, and as long as there has been no Service.
    rules: Option<Rules>,
    /// The ranges that the anchor was made for.
    anchored: Option<Vec<IpNet>>,
    /// That there is no anchor was told.
    told: bool,
    /// The number of the host's rule sets when ours was right; 0, which no number is, when it is not.
    generation: u32,
    /// Stale flows could not be forgotten.
    behind: bool,
}

impl Kernel {
    /// Opens what is needed. The only thing it changes is how long half-closed connections are followed.
    ///
    /// # Errors
    /// When the kernel lacks nftables or connection tracking.
    pub fn open() -> io::Result<Self> {
        follow_half_closed();
        Ok(Self {
            nft: Socket::open()?,
            conntrack: Conntrack::open()?,
            facts: Facts::default(),
            table: Arc::default(),
            rules: None,
            anchored: None,
            told: false,
            generation: 0,
            behind: false,
        })
    }

    /// Makes the kernel do what `table` says; `diff` is what is other than in the table given last. The first call
    /// looks whether the kernel has these rules already, from a former run.
    ///
    /// # Errors
    /// When the kernel refuses; the next call tries everything again.
    pub fn apply(&mut self, table: Arc<Table>, diff: &Diff, facts: &Facts) -> Result<Done, Error> {
        let same_facts = self.facts == *facts;
        self.facts.clone_from(facts);
        self.table = table;
        let applied = self.make(diff, same_facts);
        if applied.is_err() {
            self.generation = 0;
        }
        self.anchor();
        applied
    }

    fn make(&mut self, diff: &Diff, same_facts: bool) -> Result<Done, Error> {
        let first = self.rules.is_none();
        let done = match self.rules.take() {
            None if self.table.entries.is_empty() => self.clear()?,
            Some(rules) if same_facts => self.change(rules, diff)?,
            Some(_) => self.remake()?,
            None => self.adopt()?,
        };
        let places = match done {
            // A former run may have ended between its rules and the flows that they leave.
            Done::Kept if first => vec![To::Any],
            Done::Kept => Vec::new(),
            Done::Changed => places(diff),
            Done::Remade => vec![To::Any],
        };
        self.forget_stale(&places)?;
        Ok(done)
    }

    /// Looks whether somebody changed the rules, and makes them right again.
    ///
    /// # Errors
    /// When the kernel's rules cannot be read or made.
    pub fn look_after(&mut self) -> Result<Done, Error> {
        if self.behind {
            self.forget_stale(&[To::Any])?;
        }
        let generation = self.nft.generation()?;
        if generation == self.generation {
            return Ok(Done::Kept);
        }
        let looked = self.look(generation).and_then(|done| {
            if done == Done::Remade {
                // While the rules were gone, datagrams began flows that lead nowhere.
                self.forget_stale(&[To::Any])?;
            }
            Ok(done)
        });
        if looked.is_err() {
            self.generation = 0;
        }
        looked
    }

    fn look(&mut self, generation: u32) -> Result<Done, Error> {
        let Some(rules) = self.rules.take() else {
            return if self.table.entries.is_empty() {
                self.clear()
            } else {
                self.adopt()
            };
        };
        let (_, expected) = self.expected();
        match expected.look(&self.nft, rules.table())? {
            Seen::Right { more } if more.iter().all(|chain| rules.has(chain)) => {
                (self.rules, self.generation) = (Some(rules), generation);
                self.anchor();
                Ok(Done::Kept)
            }
            _ => self.remake(),
        }
    }

    /// Makes the kernel forget the UDP flows to these places that nobody answers who serves there.
    fn forget_stale(&mut self, places: &[To]) -> Result<(), Error> {
        if places.is_empty() {
            return Ok(());
        }
        self.behind = true;
        let answers = Answers::of(&self.table, &self.facts);
        for to in places {
            let stale = self
                .conntrack
                .flows(Protocol::Udp.number(), *to, |flow| answers.is_stale(flow))
                .map_err(Error::Flows)?;
            for flow in &stale.flows {
                self.conntrack.forget(flow).map_err(Error::Flows)?;
            }
            if !stale.flows.is_empty() {
                let (flows, read) = (stale.flows.len(), stale.read);
                tracing::debug!(flows, read, "stale flows are forgotten");
            }
        }
        self.behind = false;
        Ok(())
    }

    fn change(&mut self, mut rules: Rules, diff: &Diff) -> Result<Done, Error> {
        if diff.is_empty() {
            self.rules = Some(rules);
            return Ok(Done::Kept);
        }
        let Some(batch) = rules.next(diff, &self.facts) else {
            return self.remake();
        };
        match self.send(&batch) {
            Ok(()) => {
                self.rules = Some(rules);
                Ok(Done::Changed)
            }
            Err(error) => {
                tracing::info!(%error, "the rules of Services are made anew");
                self.remake()
            }
        }
    }

    /// Sends a batch and keeps count: when nobody else changed anything since the last look, the number grows by one,
    /// and otherwise the next look finds a number it does not know.
    fn send(&mut self, batch: &Batch) -> Result<(), Error> {
        let before = self.nft.generation()?;
        self.nft.send(batch)?;
        let after = self.nft.generation()?;
        if before == self.generation && after == before.wrapping_add(1) {
            self.generation = after;
        }
        Ok(())
    }

    /// As long as there has been no Service in this run, there is no table.
    fn clear(&mut self) -> Result<Done, Error> {
        let generation = self.nft.generation()?;
        let (rules, _) = Rules::new(&self.table, &self.facts);
        let there = self.nft.table(rules.table())?.is_some();
        (self.rules, self.generation) = (None, generation);
        if !there {
            return Ok(Done::Kept);
        }
        let mut batch = Batch::new();
        batch.remove_table(rules.table());
        self.send(&batch)?;
        Ok(Done::Remade)
    }

    fn adopt(&mut self) -> Result<Done, Error> {
        let generation = self.nft.generation()?;
        let (mut rules, expected) = self.expected();
        match expected.look(&self.nft, rules.table())? {
            Seen::Right { more } if rules.adopt(&more) => {
                (self.rules, self.generation) = (Some(rules), generation);
                Ok(Done::Kept)
            }
            _ => self.remake(),
        }
    }

    fn remake(&mut self) -> Result<Done, Error> {
        let (rules, batch) = Rules::new(&self.table, &self.facts);
        self.generation = self.nft.generation()?;
        self.send(&batch)?;
        self.rules = Some(rules);
        Ok(Done::Remade)
    }

    /// Makes what holds connections when the rules go, once there are rules. Without it they hold as long as the rules.
    fn anchor(&mut self) {
        let ranges = &self.facts.ranges;
        if self.rules.is_none() || self.anchored.as_ref() == Some(ranges) {
            return;
        }
        match self.send(&anchor::batch(&self.facts.ranges)) {
            Ok(()) => self.anchored = Some(self.facts.ranges.clone()),
            Err(error) if !self.told => {
                self.told = true;
                tracing::warn!(%error, "connections to Services do not outlive a flush of the rules (Linux 5.12 has what it takes)");
            }
            Err(_) => {}
        }
    }

    fn expected(&self) -> (Rules, Expected) {
        let (rules, batch): (Rules, Batch) = Rules::new(&self.table, &self.facts);
        (rules, Expected::of(&batch))
    }
}

/// How long a connection is followed of which one side has sent its end, and nothing comes any more.
const CLOSE_WAIT: &str = "net/netfilter/nf_conntrack_tcp_timeout_close_wait";
/// As kube-proxy has it, in seconds. The kernel forgets such a connection after a minute; then nobody translates what the
/// other side still has to say, as where it works for longer on a request that has ended.
const AN_HOUR: u32 = 3600;

/// Has the kernel follow half-closed connections for an hour, unless it does so for longer.
fn follow_half_closed() {
    let seconds = sysctl::read(CLOSE_WAIT).map(|text| text.parse::<u32>().unwrap_or(AN_HOUR));
    let written = match seconds {
        Ok(AN_HOUR..) => Ok(()),
        Ok(_) => sysctl::write(CLOSE_WAIT, &AN_HOUR.to_string()),
        Err(error) => Err(error),
    };
    if let Err(error) = written {
        tracing::warn!(%error, "half-closed connections to Services break after a minute of silence");
    }
}
