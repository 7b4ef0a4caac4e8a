//! The engine in the kernel: keeps the table `weave-service` what the table of Services says.
//!
//! A change goes in as one batch of elements. What the kernel does not take that way is made anew, whole, still in one
//! batch: packets see the old rules or the new ones, and connections that stand are translated by connection tracking,
//! which no batch touches, and which goes on without these rules as long as there is the [`Anchor`].
//!
//! The kernel tells who changes which rule set ([`Watch`]). When somebody else touched this table, it is made anew without
//! a look at what is left of it, as the look would take longer than that. Changes of others' tables cost nothing. It is
//! looked at when words of the kernel were lost, after a failure, at the start, and once in a long while in any case.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use weave_linux::conntrack::flows::{Conntrack, To};
use weave_linux::nft::{self, Batch, Expected, Seen, Socket, Watch};
use weave_linux::sysctl;
use weave_model::Protocol;

use crate::facts::Facts;
use crate::rules::anchor::Anchor;
use crate::rules::{self, Rules};
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
    /// The whole table was looked at, and is right.
    Looked,
    /// Elements were changed.
    Changed,
    /// The table was made anew.
    Remade,
}

/// How often the whole table is looked at though nobody is known to have touched it, if somebody changed any rule set of
/// the host: as everything else rests on what is heard.
const AGAIN: Duration = Duration::from_secs(600);

/// How long no anchor is asked for after one was refused, and after a second one in a row. Each is as large as the table
/// of Services, and kernels before 5.12 refuse all; but that of a run before may be still there for a moment.
const REFUSED_FOR: [Duration; 2] = [Duration::from_secs(2), Duration::from_secs(60)];

/// The largest batch in bytes during which it is listened; more makes the kernel say so much that words would be lost.
const LOUD: usize = 16 * 1024;

/// The engine. Lives in the network namespace in which it was opened.
#[derive(Debug)]
pub struct Kernel {
    nft: Socket,
    watch: Watch,
    conntrack: Conntrack,
    facts: Facts,
    table: Arc<Table>,
    /// Absent until the kernel's table is known to be right, and as long as there has been no Service.
    rules: Option<Rules>,
    /// Absent until the kernel has it, and when it is not known to be right.
    anchor: Option<Anchor>,
    /// The kernel has an anchor that may be another than the table asks for.
    adrift: bool,
    /// How often in a row the kernel refused to make an anchor, and when it did last.
    refused: Option<(usize, Instant)>,
    /// As far as is known, the kernel's table is what it should be.
    right: bool,
    /// Somebody else changed it.
    touched: bool,
    /// Since the last look somebody else changed rule sets, whosever.
    others: bool,
    looked: Instant,
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
        let nft = Socket::open()?;
        Ok(Self {
            watch: Watch::open(&nft)?,
            nft,
            conntrack: Conntrack::open()?,
            facts: Facts::default(),
            table: Arc::default(),
            rules: None,
            anchor: None,
            adrift: false,
            refused: None,
            right: false,
            touched: false,
            others: false,
            looked: Instant::now(),
            behind: false,
        })
    }

    /// Makes the kernel do what `table` says; `diff` is what is other than in the table given last. The first call
    /// looks whether the kernel has these rules already, from a former run.
    ///
    /// # Errors
    /// When the kernel refuses; the next call tries everything again.
    pub fn apply(&mut self, table: Arc<Table>, diff: &Diff, facts: &Facts) -> Result<Done, Error> {
        let same_facts = self.facts.same_rules(facts);
        self.facts.clone_from(facts);
        self.table = table;
        let applied = self.make(diff, same_facts);
        if applied.is_err() {
            self.right = false;
        }
        self.anchor(diff, Instant::now());
        applied
    }

    fn make(&mut self, diff: &Diff, same_facts: bool) -> Result<Done, Error> {
        self.hear()?;
        let first = self.rules.is_none();
        let done = match self.rules.take() {
            None if self.table.entries.is_empty() => self.clear()?,
            Some(rules) if same_facts && !self.touched => self.change(rules, diff)?,
            Some(_) => self.remake()?,
            None => self.adopt()?,
        };
        let places = match done {
            // A former run may have ended between its rules and the flows that they leave.
            Done::Kept if first => vec![To::Any],
            Done::Kept | Done::Looked => Vec::new(),
            Done::Changed => places(diff),
            Done::Remade => vec![To::Any],
        };
        self.forget_stale(&places)?;
        Ok(done)
    }

    /// Makes the rules right again if somebody changed them.
    ///
    /// # Errors
    /// When the kernel's rules cannot be read or made.
    pub fn look_after(&mut self, now: Instant) -> Result<Done, Error> {
        if self.behind {
            self.forget_stale(&[To::Any])?;
        }
        let looked = self.mend(now).and_then(|done| {
            if done == Done::Remade {
                // While the rules were gone, datagrams began flows that lead nowhere.
                self.forget_stale(&[To::Any])?;
            }
            Ok(done)
        });
        match looked {
            Err(_) => self.right = false,
            Ok(_) => self.anchor(&Diff::default(), now),
        }
        looked
    }

    fn mend(&mut self, now: Instant) -> Result<Done, Error> {
        self.hear()?;
        let again = self.others && now.duration_since(self.looked) >= AGAIN;
        if self.touched && self.rules.is_some() {
            self.remake()
        } else if self.touched || again || !self.right {
            self.look()
        } else {
            Ok(Done::Kept)
        }
    }

    fn look(&mut self) -> Result<Done, Error> {
        let Some(rules) = self.rules.take() else {
            return if self.table.entries.is_empty() {
                self.clear()
            } else {
                self.adopt()
            };
        };
        self.begin_look()?;
        let (_, expected) = self.expected();
        match expected.look(&self.nft, rules.table())? {
            Seen::Right { more } if more.iter().all(|chain| rules.has(chain)) => {
                (self.rules, self.right) = (Some(rules), true);
                Ok(Done::Looked)
            }
            _ => self.remake(),
        }
    }

    /// What is changed from here on is heard afterwards, and what was before is seen.
    fn begin_look(&mut self) -> Result<(), Error> {
        self.hear()?;
        (self.touched, self.others, self.looked) = (false, false, Instant::now());
        Ok(())
    }

    fn hear(&mut self) -> Result<(), Error> {
        let heard = self.watch.hear(&rules::table()).map_err(nft::Error::from)?;
        self.touched |= heard.rules || heard.sets.iter().any(|set| Rules::fills(set));
        self.others |= heard.others;
        self.right &= !heard.lost;
        Ok(())
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

    /// Sends a batch. The kernel says one word for each element: nobody listens during a large one, and whether others
    /// changed anything meanwhile tells the number of the rule sets, which grows by one with each batch.
    fn send(&mut self, batch: &Batch) -> Result<(), Error> {
        if batch.as_bytes().len() <= LOUD {
            return Ok(self.nft.send(batch)?);
        }
        let before = self.nft.generation()?;
        self.watch.pause().map_err(nft::Error::from)?;
        let sent = self.nft.send(batch);
        self.watch.resume().map_err(nft::Error::from)?;
        // One that is refused leaves the number as it was.
        let ours = u32::from(sent.is_ok());
        self.right &= self.nft.generation()? == before.wrapping_add(ours);
        Ok(sent?)
    }

    /// As long as there has been no Service in this run, there is no table.
    fn clear(&mut self) -> Result<Done, Error> {
        self.begin_look()?;
        let table = rules::table();
        (self.rules, self.right) = (None, true);
        if self.nft.table(&table)?.is_none() {
            return Ok(Done::Kept);
        }
        let mut batch = Batch::new();
        batch.remove_table(&table);
        self.send(&batch)?;
        Ok(Done::Remade)
    }

    fn adopt(&mut self) -> Result<Done, Error> {
        self.begin_look()?;
        let (mut rules, expected) = self.expected();
        match expected.look(&self.nft, rules.table())? {
            Seen::Right { more } if rules.adopt(&more) => {
                (self.rules, self.right) = (Some(rules), true);
                Ok(Done::Kept)
            }
            _ => self.remake(),
        }
    }

    fn remake(&mut self) -> Result<Done, Error> {
        let (rules, batch) = Rules::new(&self.table, &self.facts);
        // Whatever was done to the table before is undone by this.
        self.hear()?;
        (self.right, self.touched) = (true, false);
        self.send(&batch)?;
        self.rules = Some(rules);
        Ok(Done::Remade)
    }

    /// Brings what holds connections when the rules go to the table of Services, and makes it once there are rules.
    /// Without it connections hold as long as the rules.
    fn anchor(&mut self, diff: &Diff, now: Instant) {
        let before = self.anchor.take();
        self.adrift |= before.is_some();
        let (anchor, batch) = match before.filter(|anchor| anchor.fits(&self.facts)) {
            Some(anchor) => {
                let batch = anchor.next(diff);
                (anchor, batch)
            }
            None if self.rules.is_none() || self.is_refused(now) => return,
            None => Anchor::new(&self.table, &self.facts),
        };
        let sent = if batch.is_empty() {
            Ok(())
        } else {
            self.send(&batch)
        };
        match sent {
            Ok(()) => {
                (self.anchor, self.adrift, self.refused) = (Some(anchor), false, None);
            }
            Err(error) => {
                let before = self.refused.map_or(0, |(times, _)| times);
                self.refused = Some((before + 1, now));
                if before == 0 {
                    tracing::warn!(%error, "connections to Services do not outlive a flush of the rules (Linux 5.12 has what it takes); it is tried again");
                }
            }
        }
    }

    /// Whether to ask for an anchor would be in vain, as far as is known. Where there is one, the kernel can.
    fn is_refused(&self, now: Instant) -> bool {
        self.refused.is_some_and(|(times, when)| {
            let often = usize::from(times > 1 && !self.adrift);
            now.saturating_duration_since(when) < REFUSED_FOR[often]
        })
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
